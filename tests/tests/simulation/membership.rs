//! Nodes come and go while everything else goes wrong.

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use statehouse::membership::Change;
use statehouse::membership::ChangeKind;
use statehouse::service::ApplyRequest;
use statehouse::service::Service;
use statehouse::sim::Crash;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimCluster;
use statehouse::sim::SimRandom;
use statehouse::types::NodeId;

use crate::modules::modules;
use crate::nemesis;
use crate::on_guest_thread;
use crate::scenario;
use crate::scenario::Plan;
use crate::world::Sabotage;
use crate::world::Shared;
use crate::world::World;
use crate::world::now_ms;
use crate::world::sleep_ms;

/// Fewer nodes than this the cluster never has: with two, a lost disk is a lost majority.
const NODES_MIN: usize = 3;

async fn begin(world: &Shared, at: NodeId, kind: ChangeKind) {
    let text = kind.to_string();
    let begun = world.cluster.call(at, move |node| async move { node.change_begin(kind).await }).await;
    world.note(format!("{text}, asked of {at}: {begun:?}"));
    if matches!(begun, Ok(Ok(_))) {
        world.count("changes begun");
    }
}

/// Changes the members until `until_ms`.
pub async fn run(world: Shared, mut random: SimRandom, until_ms: u64) {
    while now_ms() < until_ms {
        sleep_ms(random.between(100, 1500)).await;
        let ids = world.cluster.ids();
        let (at, other) = (*random.pick(&ids).unwrap(), *random.pick(&ids).unwrap());
        match random.between(0, 99) {
            0..25 => {
                if let Some(id) = world.cluster.out().first().copied() {
                    world.note(format!("{id} may join"));
                    world.cluster.let_in(id);
                    nemesis::start_later(&world, id, random.between(0, 500));
                }
            }
            25..50 => {
                let learner = random.chance(150);
                begin(&world, at, ChangeKind::NodeAdd { node: other, learner }).await;
            }
            50..70 if ids.len() > NODES_MIN && voters(&world, at, "catalog").await > NODES_MIN => {
                let kind = match random.chance(250) {
                    true => ChangeKind::NodeDemote { node: other },
                    false => ChangeKind::NodeRemove { node: other },
                };
                begin(&world, at, kind).await;
            }
            70..85 => {
                let group = random.pick(&["catalog", "kv", "counter", "brittle"]).unwrap().to_string();
                let to = random.chance(500).then_some(other);
                let moved =
                    world.cluster.call(at, move |node| async move { node.leader_transfer(group, to).await }).await;
                world.note(format!("leader transfer to {to:?}, asked of {at}: {moved:?}"));
                if matches!(moved, Ok(Ok(_))) {
                    world.count("leaders moved");
                }
            }
            90..97 if ids.len() > NODES_MIN => {
                let group = random.pick(&["kv", "counter", "brittle"]).unwrap().to_string();
                let kind = match random.between(0, 2) {
                    // Three at least, as above.
                    0 if voters(&world, at, &group).await > NODES_MIN => {
                        ChangeKind::MemberDemote { group, node: other }
                    }
                    0 | 1 => ChangeKind::MemberPromote { group, node: other },
                    _ => {
                        let out = *random.pick(&ids).unwrap();
                        let voters = ids.iter().copied().filter(|id| *id != out).collect();
                        ChangeKind::MemberSet { group, voters }
                    }
                };
                begin(&world, at, kind).await;
            }
            85..90 => {
                let listed = world.cluster.call(at, |node| async move { node.change_list().await }).await;
                let running = listed.ok().and_then(Result::ok).unwrap_or_default();
                // Removals that end halfway could leave a group with two members, one after the other.
                let adds = |kind: &ChangeKind| matches!(kind, ChangeKind::NodeAdd { .. });
                if let Some(change) = running.into_iter().find(|change| change.is_running() && adds(&change.kind)) {
                    world.note(format!("cancel {}", change.kind));
                    drop(world.cluster.call(at, move |node| async move { node.change_cancel(change.id).await }).await);
                }
            }
            _ => {}
        }
    }
}

/// How many nodes vote in a group, as one of them sees it; 0 when it does not know.
async fn voters(world: &Shared, at: NodeId, group: &str) -> usize {
    let group = group.to_string();
    let listed = world.cluster.call(at, |node| async move { node.member_list(group).await }).await;
    let members = listed.ok().and_then(Result::ok).unwrap_or_default();
    members.iter().filter(|member| member.role == "voter").count()
}

/// Takes away the nodes that have learnt that they were removed, as whoever runs them does.
pub async fn watch_removals(world: Shared) {
    while !world.stopped() {
        sleep_ms(100).await;
        for id in world.cluster.ids() {
            if let Some(why) = world.cluster.node(id).and_then(|node| node.removal()) {
                world.note(why);
                world.count("nodes that left");
                world.cluster.retire(id);
            }
        }
    }
}

/// A node that runs.
pub fn someone(world: &Shared) -> Option<NodeId> {
    world.cluster.ids().into_iter().find(|id| world.cluster.node(*id).is_some())
}

/// The changes of a kind, as a node lists them, once none of them runs; else what is waited for.
pub async fn ended_changes(
    world: &Shared,
    at: NodeId,
    is_meant: impl Fn(&ChangeKind) -> bool,
) -> Result<Vec<Change>, String> {
    let listed = world.cluster.call(at, |node| async move { node.change_list().await }).await;
    let Ok(Ok(mut changes)) = listed else { return Err(format!("{listed:?}")) };
    changes.retain(|change| is_meant(&change.kind));
    match changes.iter().find(|change| change.is_running()) {
        Some(change) => Err(format!("{change:?}")),
        None => Ok(changes),
    }
}

/// After the last fault: what runs must end, and whoever is there becomes a full node.
pub async fn finish(world: &Shared, until_ms: u64) {
    let mut waits_for = String::new();
    while now_ms() < until_ms {
        sleep_ms(100).await;
        let ids = world.cluster.ids();
        let Some(at) = someone(world) else { continue };
        if let Err(why) = ended_changes(world, at, |_| true).await {
            waits_for = why;
            continue;
        }
        let members = world.cluster.call(at, |node| async move { node.member_list("catalog".to_string()).await }).await;
        let Ok(Ok(members)) = members else {
            waits_for = format!("{members:?}");
            continue;
        };
        let known: Vec<NodeId> = members.iter().map(|member| member.id).collect();
        waits_for = format!("the nodes {ids:?} are there, the members are {members:?}");
        if known != ids {
            continue;
        }
        let mut whole = true;
        for group in ["catalog", "kv", "counter", "brittle"] {
            let listed = world.cluster.call(at, move |node| async move { node.member_list(group.to_string()).await });
            let Ok(Ok(listed)) = listed.await else {
                whole = false;
                continue;
            };
            let voters: Vec<NodeId> =
                listed.iter().filter(|member| member.role == "voter").map(|member| member.id).collect();
            if let Some(node) = ids.iter().copied().find(|id| !voters.contains(id)) {
                whole = false;
                begin(world, at, ChangeKind::NodeAdd { node, learner: false }).await;
                break;
            }
        }
        if whole {
            if ids.iter().any(|id| *id > 3) {
                world.count("nodes that came");
            }
            return;
        }
    }
    world.problem(format!("the members do not settle: {waits_for}"));
}

/// Three nodes that are ready, with nothing on them.
async fn three(seed: u64) -> Shared {
    let mut random = SimRandom::new(seed);
    let mut plan = Plan::draw(&mut random);
    plan.nodes = 3;
    let mut options = scenario::options(seed, &mut random, &plan);
    options.joiners = 1;
    let world = World::new(SimCluster::new(options, modules().host.clone()), false, Sabotage::Nothing);
    for id in world.cluster.ids() {
        nemesis::start(&world, id).await;
    }
    scenario::become_ready(&world, now_ms()).await;
    world
}

/// Nothing gets from or to the node.
pub fn isolate(world: &Shared, id: NodeId) {
    for other in world.cluster.ids().into_iter().filter(|other| *other != id) {
        world.cluster.network().cut(id, other);
        world.cluster.network().cut(other, id);
    }
}

pub fn play(seed: u64, story: impl AsyncFnOnce(&Shared) + Send) {
    on_guest_thread(move || {
        statehouse::module::mark_guest_thread();
        LifeRuntime::with_seed(seed).block_on(async {
            let world = three(seed).await;
            story(&world).await;
            world.cluster.network().mend();
            scenario::become_ready(&world, now_ms()).await;
            assert_eq!(world.problems(), Vec::<String>::new());
        });
    });
}

/// What it says of the members decides whose replica is removed: one that was replaced knows only who they were.
#[test]
fn a_leader_that_was_cut_off_does_not_tell_who_the_members_are() {
    play(7, async |world| {
        let leader = world.cluster.node(1).unwrap().catalog().leader().unwrap();
        let ask = || world.cluster.call(leader, |node| async move { node.member_list("catalog".to_string()).await });
        assert_eq!(ask().await.unwrap().unwrap().len(), 3);
        isolate(world, leader);
        assert!(world.cluster.node(leader).unwrap().catalog().leads(), "it has not noticed yet");
        assert!(ask().await.unwrap().is_err());
    });
}

/// Found by kazoo's test of read-only servers: two of three nodes were stopped, and the third, to which one of them had just
/// handed over, took itself for the leader for ever.
#[test]
fn a_node_that_hears_nobody_knows_no_leader() {
    for seed in 1..=4 {
        play(seed, async |world| {
            let leader = world.cluster.node(1).unwrap().catalog().leader().unwrap();
            let follower = leader % 3 + 1;
            for id in [leader, follower] {
                isolate(world, id);
                let node = world.cluster.node(id).unwrap();
                let began_ms = now_ms();
                while node.catalog().leader().is_some() {
                    assert!(now_ms() < began_ms + 10_000, "node {id} follows {:?}", node.catalog().leader());
                    sleep_ms(50).await;
                }
                assert!(!node.not_ready().is_empty());
                assert_eq!(node.catalog().standing().leader, None);
                world.cluster.network().mend();
                scenario::become_ready(world, now_ms()).await;
            }
        });
    }
}

/// A follower hears nobody for as long as thirty elections take, while the others go on, and comes back. It has asked all the
/// time whether it would be elected, and never stood: nobody has a new term over it, or another leader.
#[test]
fn a_follower_that_was_cut_off_for_long_disturbs_nobody_when_it_is_back() {
    for seed in 1..=4 {
        play(seed, async |world| {
            let mut random = SimRandom::new(seed);
            scenario::set_up(world, &mut random).await;
            let ids = world.cluster.ids();
            let leader = leader_among(world, &ids).await;
            let follower = leader % 3 + 1;
            let standing = |id: NodeId| world.cluster.node(id).unwrap().group_by_id(COUNTER).unwrap().standing();
            let before = standing(leader);
            assert_eq!((standing(follower).leader, standing(follower).term), (Some(leader), before.term));
            let mut session = world.open_session(&mut random, "counter", 60_000).await;
            isolate(world, follower);
            let began_ms = now_ms();
            while now_ms() < began_ms + 20_000 {
                world.apply_surely(&mut random, "counter", &mut session, br#"{"Add":1}"#).await.unwrap();
                sleep_ms(500).await;
                let now = standing(leader);
                assert_eq!((now.leader, now.term), (Some(leader), before.term), "while it was away");
            }
            assert_eq!(standing(follower).leader, None);
            world.cluster.network().mend();
            let mended_ms = now_ms();
            while now_ms() < mended_ms + 10_000 {
                for id in [leader, follower] {
                    assert_eq!(standing(id).term, before.term, "node {id} has another term");
                }
                assert_eq!(standing(leader).leader, Some(leader));
                sleep_ms(20).await;
            }
            assert_eq!(standing(follower).leader, Some(leader));
        });
    }
}

/// A group with one voter asks nobody, and need not wait for an election timeout: not at its beginning, and not after a crash.
#[test]
fn a_node_alone_leads_long_before_an_election_timeout() {
    const ELECTION_TIMEOUT_MS: u64 = 60_000;
    on_guest_thread(|| {
        statehouse::module::mark_guest_thread();
        LifeRuntime::with_seed(6).block_on(async {
            let mut random = SimRandom::new(6);
            let mut plan = Plan::draw(&mut random);
            plan.nodes = 1;
            let mut options = scenario::options(6, &mut random, &plan);
            options.settings.timing.election_timeout_ms = ELECTION_TIMEOUT_MS;
            let world = World::new(SimCluster::new(options, modules().host.clone()), false, Sabotage::Nothing);
            let began_ms = now_ms();
            nemesis::start(&world, 1).await;
            scenario::become_ready(&world, now_ms()).await;
            scenario::set_up(&world, &mut random).await;
            leader_among(&world, &[1]).await;
            let first_ms = now_ms() - began_ms;
            world.cluster.crash(1, Crash::Power);
            let began_ms = now_ms();
            nemesis::start(&world, 1).await;
            leader_among(&world, &[1]).await;
            let again_ms = now_ms() - began_ms;
            assert!(first_ms < ELECTION_TIMEOUT_MS / 10, "{first_ms} ms for the first groups");
            assert!(again_ms < ELECTION_TIMEOUT_MS / 60, "{again_ms} ms after the crash");
            assert_eq!(world.problems(), Vec::<String>::new());
        });
    });
}

/// Found by a test with real processes: a leader was killed whose first entry only the third node had, which was not to lead. The
/// second one could not win its vote, and the third one did not stand, until the first came back.
#[test]
fn nodes_that_are_not_to_lead_do_when_nobody_else_can() {
    on_guest_thread(|| {
        statehouse::module::mark_guest_thread();
        LifeRuntime::with_seed(5).block_on(async {
            let mut random = SimRandom::new(5);
            let mut plan = Plan::draw(&mut random);
            plan.nodes = 3;
            let mut options = scenario::options(5, &mut random, &plan);
            options.settings.election_priority = 0;
            let world = World::new(SimCluster::new(options, modules().host.clone()), false, Sabotage::Nothing);
            for id in world.cluster.ids() {
                nemesis::start(&world, id).await;
            }
            scenario::become_ready(&world, now_ms()).await;
            scenario::set_up(&world, &mut random).await;
            assert_eq!(world.problems(), Vec::<String>::new());
        });
    });
}

/// The leader of a group that counts, as long as there is one among these nodes.
pub async fn leader_among(world: &Shared, nodes: &[NodeId]) -> NodeId {
    let began_ms = now_ms();
    loop {
        let leads = |id: &&NodeId| {
            let group = world.cluster.node(**id).and_then(|node| node.group_by_id(COUNTER));
            group.is_some_and(|group| group.leads())
        };
        if let Some(id) = nodes.iter().find(leads) {
            return *id;
        }
        assert!(now_ms() < began_ms + 10_000, "none of {nodes:?} leads");
        sleep_ms(50).await;
    }
}

/// The id of the second group of [`scenario::set_up`].
pub const COUNTER: u64 = 2;

/// A leader is cut off, and another one elected with the third node's vote; the two acknowledge a command. Then the new one is cut
/// off, and the third node loses its disk: it has forgotten whom it elected, and what it acknowledged. The old leader never heard
/// of a successor; with the third node's help it would have a majority again.
#[test]
fn a_node_that_lost_its_disk_does_not_help_a_leader_of_the_past() {
    for seed in 1..=4 {
        play(seed, async |world| {
            let mut random = SimRandom::new(seed);
            scenario::set_up(world, &mut random).await;
            let ids = world.cluster.ids();
            let old = leader_among(world, &ids).await;
            isolate(world, old);
            let others: Vec<NodeId> = ids.iter().copied().filter(|id| *id != old).collect();
            let new = leader_among(world, &others).await;
            let lost = others.into_iter().find(|id| *id != new).unwrap();
            let add = |at: NodeId, command: &'static [u8]| {
                world.cluster.call(at, move |node| async move {
                    let command = Bytes::from_static(command);
                    let (group, timeout_ms) = ("counter".to_string(), Some(2000));
                    node.apply(ApplyRequest { group, session: None, sequence: None, command, timeout_ms }).await
                })
            };
            add(new, br#"{"Add":7}"#).await.unwrap().unwrap();
            world.cluster.lose_disk(lost);
            world.cluster.network().mend();
            isolate(world, new);
            nemesis::start(world, lost).await;
            for _ in 0..5 {
                let answer = add(old, br#"{"Add":100}"#).await.unwrap();
                assert!(answer.is_err(), "the leader of the past acknowledged: {answer:?}");
            }
            world.cluster.network().mend();
            scenario::become_ready(world, now_ms()).await;
            let value = world.query_surely(&mut random, "counter", br#""Get""#).await.unwrap();
            assert_eq!(value.reply, Bytes::from_static(b"7"));
        });
    }
}
