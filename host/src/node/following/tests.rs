#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
//! What follows from members, files and changes.

use super::*;
use crate::catalog::GroupEntry;
use crate::membership::ListedNode;
use crate::membership::RosterMember;
use crate::types::LogId;

/// A cluster whose catalog has one group on all nodes, and the files of its nodes.
struct World {
    catalog: Catalog,
    roster: Roster,
    files: BTreeMap<NodeId, Result<NodeList, String>>,
}

/// `v1,2 l3`: voters 1 and 2, learner 3.
fn nodes(text: &str) -> BTreeMap<NodeId, bool> {
    let mut all = BTreeMap::new();
    for part in text.split_whitespace() {
        let (role, ids) = part.split_at(1);
        all.extend(ids.split(',').map(|id| (id.parse().unwrap(), role == "v")));
    }
    all
}

fn list(text: &str) -> NodeList {
    let node = |(id, voter)| (id, ListedNode { address: format!("a:{id}"), voter });
    nodes(text).into_iter().map(node).collect()
}

impl World {
    /// Members as they are, each of which holds the group; node 1 leads; each voter's file lists them.
    fn of(members: &str) -> Self {
        let members = nodes(members);
        let member = |(id, voter): (&NodeId, &bool)| {
            (*id, RosterMember { address: format!("a:{id}"), voter: *voter, matched: Some(9), receives: None })
        };
        let roster = Roster {
            node: 1,
            leader: Some(1),
            membership: None::<LogId>,
            committed: true,
            members: members.iter().map(member).collect(),
            ..Roster::default()
        };
        let entry = GroupEntry {
            id: 7,
            module: "kv".into(),
            digest: [0; 32],
            modules: Vec::new(),
            params: Vec::new(),
            limits: crate::module::Limits::default(),
            seed: 0,
            created_ms: 0,
            members: BTreeMap::new(),
            hosts: members.keys().copied().collect(),
            replicas: None,
            listen: Vec::new(),
            listen_params: Vec::new(),
            base: None,
        };
        let groups = BTreeMap::from([("store".to_owned(), entry)]);
        let world = Self { catalog: Catalog { groups, ..Catalog::default() }, roster, files: BTreeMap::new() };
        let same = world.roster.members.iter();
        let same = same.map(|(id, one)| (*id, ListedNode { address: one.address.clone(), voter: one.voter })).collect();
        world.all_list(same)
    }

    fn all_list(mut self, list: NodeList) -> Self {
        self.files = self.roster.voters().into_iter().map(|id| (id, Ok(list.clone()))).collect();
        self
    }

    fn lists(mut self, node: NodeId, text: &str) -> Self {
        self.files.insert(node, Ok(list(text)));
        self
    }

    /// The node has joined, and holds no group.
    fn joined(mut self, node: NodeId) -> Self {
        let member = RosterMember { address: format!("a:{node}"), voter: false, matched: Some(9), receives: None };
        self.roster.members.insert(node, member);
        self
    }

    fn change(mut self, kind: ChangeKind, state: ChangeState) -> Self {
        let id = self.catalog.changes.len() as u64 + 1;
        self.catalog.changes.insert(id, Change { id, kind, state, began_ms: 0, changed_ms: 0 });
        self
    }

    fn next(&self) -> Next {
        next(&self.catalog, &self.roster, &self.files)
    }

    #[track_caller]
    fn waits(&self, words: &[&str]) {
        let Next::Waits(text) = self.next() else { panic!("{:?}", self.next()) };
        assert!(words.iter().all(|words| text.contains(words)), "{text}");
    }
}

fn add(node: NodeId) -> Next {
    Next::Begin(ChangeKind::NodeAdd { node, learner: false })
}

fn remove(node: NodeId) -> Next {
    Next::Begin(ChangeKind::NodeRemove { node })
}

#[test]
fn files_that_list_the_members_ask_for_nothing() {
    assert_eq!(World::of("v1,2,3").next(), Next::Nothing);
    assert_eq!(World::of("v1,2,3 l4").next(), Next::Nothing);
    assert_eq!(World::of("v1").next(), Next::Nothing);
}

#[test]
fn one_edited_file_of_three_changes_nothing_and_two_do() {
    let world = World::of("v1,2,3").joined(4).lists(2, "v1,2,3,4");
    world.waits(&[
        "node 4 has joined",
        "1 of 3 files list nodes 1, 2, 3, 4 (by node 2)",
        "majority lists nodes 1, 2, 3",
    ]);
    assert_eq!(world.lists(3, "v1,2,3,4").next(), add(4));
    // Whoever edits first removes nobody.
    World::of("v1,2,3").lists(1, "v1,2").waits(&["1 of 3 files list nodes 1, 2 (by node 1)"]);
    assert_eq!(World::of("v1,2,3").lists(1, "v1,2").lists(3, "v1,2").next(), remove(3));
}

#[test]
fn without_a_majority_of_the_voters_files_nothing_changes() {
    let world = World::of("v1,2,3,4").lists(1, "v1,2,3").lists(2, "v1,2,3");
    world.waits(&[
        "2 of 4 files list nodes 1, 2, 3 (by node 1, 2)",
        "2 of 4 files list nodes 1, 2, 3, 4",
        "no majority",
    ]);
    let mut silent = World::of("v1,2,3").lists(1, "v1,2,3,4").joined(4);
    for node in [2, 3] {
        silent.files.insert(node, Err("it does not follow its file".to_owned()));
    }
    silent.waits(&["1 of 3 files list", "node 2: it does not follow its file", "no majority"]);
    // A learner's file counts for nothing.
    assert_eq!(World::of("v1 l2,3").lists(2, "v2,3").lists(3, "v2,3").next(), Next::Nothing);
}

#[test]
fn who_comes_is_in_before_anybody_goes_and_the_leader_goes_last() {
    let listed = |world: World| world.all_list(list("v3,4,5"));
    listed(World::of("v1,2,3")).waits(&["the files list node 4 (a:4), node 5 (a:5), which has not joined yet"]);
    // One that is there need not wait for the other.
    assert_eq!(listed(World::of("v1,2,3").joined(5)).next(), add(5));
    listed(World::of("v1,2,3,5")).waits(&["node 4 (a:4), which has not joined yet"]);
    assert_eq!(listed(World::of("v1,2,3,5").joined(4)).next(), add(4));
    assert_eq!(listed(World::of("v1,2,3,4,5")).next(), remove(2));
    assert_eq!(listed(World::of("v1,3,4,5")).next(), remove(1));
    assert_eq!(listed(World::of("v3,4,5")).next(), Next::Nothing);
}

#[test]
fn a_list_without_a_voter_of_now_is_not_followed() {
    World::of("v1,2,3").joined(4).all_list(list("v4,5,6")).waits(&["4, 5, 6", "none of which votes now (1, 2, 3 do)"]);
    World::of("v1,2").all_list(list("l1,2 v3")).waits(&["none of which votes now"]);
}

#[test]
fn another_address_of_a_member_stops_all_of_the_list() {
    let mut moved = list("v1,2,3,4");
    moved.get_mut(&2).unwrap().address = "b:2".to_owned();
    World::of("v1,2,3").joined(4).all_list(moved).waits(&["node 2 at b:2", "a member at a:2", "does not change"]);
    let mut taken = list("v1,2,4");
    taken.get_mut(&4).unwrap().address = "a:3".to_owned();
    World::of("v1,2,3").all_list(taken).waits(&["node 4 at a:3, which is the address of node 3"]);
}

#[test]
fn roles_are_followed_too() {
    let learner = |node| Next::Begin(ChangeKind::NodeAdd { node, learner: true });
    assert_eq!(World::of("v1,2,3").joined(4).all_list(list("v1,2,3 l4")).next(), learner(4));
    assert_eq!(World::of("v1,2,3 l4").all_list(list("v1,2,3,4")).next(), add(4));
    let demoted = World::of("v1,2,3").all_list(list("v1,2 l3"));
    assert_eq!(demoted.next(), Next::Begin(ChangeKind::NodeDemote { node: 3 }));
    // Its vote goes after another one has come.
    assert_eq!(World::of("v1,2,3").joined(4).all_list(list("v1,2,4 l3")).next(), add(4));
    assert_eq!(World::of("v1,2,3 l4").all_list(list("v1,2,3")).next(), remove(4));
}

#[test]
fn a_change_that_runs_is_waited_for_unless_the_files_have_changed_their_mind() {
    let adds = || ChangeKind::NodeAdd { node: 4, learner: false };
    let runs = || ChangeState::Running("it catches up".to_owned());
    let world = World::of("v1,2,3").joined(4).all_list(list("v1,2,3,4")).change(adds(), runs());
    world.waits(&["change 1 goes on: add node 4"]);
    assert_eq!(world.all_list(list("v1,2,3")).next(), Next::Cancel(1, adds()));
    let removes = || ChangeKind::NodeRemove { node: 3 };
    let back = World::of("v1,2,3").change(removes(), runs());
    assert_eq!(back.next(), Next::Cancel(1, removes()));
    // What it had done is undone.
    let back = World::of("v1,2,3").change(removes(), ChangeState::Failed(ServiceError::new(ErrorCode::Cancelled, "")));
    assert_eq!(back.next(), add(3));
    assert_eq!(back.change(ChangeKind::NodeAdd { node: 3, learner: false }, ChangeState::Done).next(), Next::Nothing);
    // A change of a group's module is nobody's business here.
    let module = ChangeKind::GroupModule { group: "store".to_owned(), module: "kv".to_owned(), digest: [1; 32] };
    assert_eq!(World::of("v1,2").change(module, runs()).all_list(list("v1")).next(), remove(2));
}

/// All files and all orders of edits that three nodes can have between two lists: whatever is begun towards one of them, the other one has
/// no majority afterwards.
#[test]
fn a_change_that_was_begun_leaves_no_majority_to_the_other_list() {
    let lists = ["v1,2,3", "v1,2,3,4", "v1,2", "v2,3,4", "v1,2,3,4,5"];
    for members in ["v1,2,3", "v1,2,3,4", "v1,2", "v1,2,3,4,5"] {
        let voters: Vec<NodeId> = nodes(members).into_keys().collect();
        for (one, other) in
            lists.iter().flat_map(|one| lists.map(|other| (*one, other))).filter(|(one, other)| one != other)
        {
            for chosen in 0..1_u32 << 5 {
                let file = |id: NodeId| if chosen & (1 << (id - 1)) == 0 { one } else { other };
                let fill = |mut world: World| {
                    let all: Vec<NodeId> = world.roster.voters().into_iter().collect();
                    for id in all {
                        world = world.lists(id, file(id));
                    }
                    world
                };
                let mut world = World::of(members);
                for id in 1..=5 {
                    if !voters.contains(&id) {
                        world = world.joined(id);
                    }
                }
                let world = fill(world);
                let before = agreed(&world.roster.voters(), &world.files).map(|(list, _)| list.clone());
                let mut after = world;
                match after.next() {
                    Next::Begin(ChangeKind::NodeAdd { node, .. }) => {
                        after.roster.members.get_mut(&node).unwrap().voter = true;
                    }
                    Next::Begin(ChangeKind::NodeRemove { node }) => _ = after.roster.members.remove(&node),
                    _ => continue,
                }
                let after = fill(after);
                if let Ok((now, _)) = agreed(&after.roster.voters(), &after.files) {
                    assert_eq!(Ok(now), before.as_ref(), "{members}: {one} and {other}, {chosen:b}");
                }
            }
        }
    }
}
