//! ClickHouse's plans: what the host is asked for, in which order, and what the client is told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;
use serde_json::json;
use znode_tree::adapter::Kept;
use znode_tree::wire::op;

use crate::world::Peer;
use crate::world::World;
use crate::world::path_watch;

const PARAMS: &str = r#"{"compatibility":"clickhouse"}"#;
const SETTINGS: &str =
    r#"{"params":{"compatibility":"clickhouse"},"listen":{"four_letter_words":"rcfg,ruok"},"node":3}"#;

/// A host with its cluster: what it was asked for, and how it stands.
#[derive(Default)]
struct Host {
    asked: Vec<String>,
    /// Voters, with how much each is to lead.
    members: BTreeMap<u64, u64>,
    leader: u64,
    /// What the next changes fail with, one after the other; nothing: they do not.
    failures: Vec<&'static str>,
}

impl Host {
    fn change(&mut self, wish: &str) -> Result<String, (&'static str, &'static str)> {
        let change: Value = serde_json::from_str(wish).unwrap();
        if wish != "{}" {
            self.asked.push(wish.to_owned());
            let failure = if self.failures.is_empty() { "" } else { self.failures.remove(0) };
            if !failure.is_empty() {
                return Err((failure, "as the test says"));
            }
        }
        let list = |key: &str| change[key].as_array().cloned().unwrap_or_default();
        let number = |value: &Value| value.as_u64().unwrap();
        for add in list("add") {
            self.members.insert(number(&add["node"]), 100);
        }
        for node in list("remove") {
            self.members.remove(&number(&node)).ok_or(("node_not_found", "it is not there"))?;
        }
        for wanted in list("priorities") {
            self.members.insert(number(&wanted["node"]), number(&wanted["priority"]));
        }
        if let Some(leader) = change["lead"].as_u64() {
            self.leader = leader;
        }
        Ok(self.answer())
    }

    fn begin_anew(&mut self, failures: Vec<&'static str>) {
        (self.asked, self.failures) = (Vec::new(), failures);
    }

    fn answer(&self) -> String {
        let member = |(id, priority): (&u64, &u64)| json!({"id": id, "address": format!("node{id}:9234"), "role": "voter", "matched": 10 + id, "priority": priority});
        let members: Vec<Value> = self.members.iter().map(member).collect();
        json!({ "done": true, "leader": self.leader, "members": members }).to_string()
    }
}

/// Five servers, of which the second leads.
fn world() -> (World, Rc<RefCell<Host>>) {
    let mut world = World::with(2, PARAMS, SETTINGS);
    let members = (1..=5).map(|node| (node, 100)).collect();
    let host = Rc::new(RefCell::new(Host { members, leader: 2, ..Host::default() }));
    let asked = host.clone();
    world.desk.change_by(move |wish| asked.borrow_mut().change(wish));
    (world, host)
}

fn frame(plan: &str) -> Vec<u8> {
    let mut bytes = b"rcfg".to_vec();
    bytes.extend((plan.len() as u32).to_be_bytes());
    bytes.extend(plan.as_bytes());
    bytes
}

fn send(world: &mut World, plan: &str) -> Peer {
    let peer = world.dial(1);
    world.send(&peer, &frame(plan));
    world.desk.run();
    peer
}

/// Status and message, and that the connection was closed behind them.
fn answer(world: &mut World, peer: &mut Peer) -> (String, String) {
    assert!(world.is_closed(peer), "the plan is at its end");
    let text = world.text(peer);
    let told: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let field = |key: &str| told[key].as_str().unwrap().to_owned();
    (field("status"), field("message"))
}

fn run(world: &mut World, plan: &str) -> (String, String) {
    let mut peer = send(world, plan);
    answer(world, &mut peer)
}

#[test]
fn clickhouses_own_plan_goes_from_five_servers_to_three() {
    let (mut world, host) = world();
    let plan = r#"{"max_action_wait_time_ms":180000,"max_total_wait_time_ms":600000,
        "preconditions":{"leaders":[1,2],"members":[1,2,3,4,5]},"actions":[
        {"transfer_leadership":[3]},{"remove_members":[1,2]},
        {"set_priority":[{"id":4,"priority":100},{"id":5,"priority":100}]},
        {"transfer_leadership":[4,5]},{"set_priority":[{"id":3,"priority":0}]}]}"#;
    assert_eq!(run(&mut world, plan), ("ok".to_owned(), "Reconfiguration successfully applied".to_owned()));
    assert_eq!(
        host.borrow().asked,
        [
            r#"{"lead":3,"wait_ms":180000}"#,
            r#"{"remove":[1],"wait_ms":180000}"#,
            r#"{"remove":[2],"wait_ms":180000}"#,
            r#"{"priorities":[{"node":4,"priority":100}],"wait_ms":180000}"#,
            r#"{"priorities":[{"node":5,"priority":100}],"wait_ms":180000}"#,
            r#"{"lead":5,"wait_ms":180000}"#,
            r#"{"priorities":[{"node":3,"priority":0}],"wait_ms":180000}"#,
        ]
    );
    // Whoever reads after the answer finds it so, at every server.
    for node in [0, 1] {
        let mut peer = world.connect(node);
        let (data, _) = world.ask(&mut peer, op::GET_DATA, &path_watch("/keeper/config", false)).data();
        let expected = "server.3=node3:9234;participant;0\nserver.4=node4:9234;participant;100\nserver.5=node5:9234;participant;100";
        assert_eq!(String::from_utf8(data).unwrap(), expected);
        world.desk.hang_up(peer.client);
    }
    world.desk.advance(200_000);
    assert_eq!(world.desk.adapter(1).unwrap().kept(), Kept::default());
}

#[test]
fn servers_join_and_lead() {
    let (mut world, host) = world();
    let plan = r#"{"actions":[{"add_members":[{"id":6,"endpoint":"node6:9234","priority":120}]},{"transfer_leadership":[6,7]}]}"#;
    // It is started while the plan waits for it.
    host.borrow_mut().failures = vec!["node_not_found", "node_not_found"];
    let mut peer = send(&mut world, plan);
    assert!(!world.is_closed(&peer));
    world.desk.advance(6_000);
    assert_eq!(answer(&mut world, &mut peer).0, "ok");
    let asked = host.borrow().asked.clone();
    let adds = asked.iter().filter(|wish| wish.contains(r#""add":[{"learner":false,"node":6}]"#)).count();
    assert_eq!((adds, asked.len()), (3, 5), "{asked:?}");
    assert!(
        asked[3].contains(r#""priorities":[{"node":6,"priority":120}]"#) && asked[4].contains(r#""lead":6"#),
        "{asked:?}"
    );
}

#[test]
fn what_does_not_hold_is_an_error_and_nothing_is_done() {
    let (mut world, host) = world();
    for (plan, word) in [
        (r#"{"preconditions":{"leaders":[3]}}"#, "expected leader id"),
        (r#"{"preconditions":{"members":[5,6,7,8,9]}}"#, "found in cluster, but precondition"),
        (
            r#"{"preconditions":{"leaders":[1],"members":[1,2,3,4,5]},"actions":[{"remove_members":[1]}]}"#,
            "expected leader id",
        ),
        (r#"{"actions":[{"remove_members":[3]}]}"#, "Reconfigure command cannot remove current server id"),
        (
            r#"{"actions":[{"set_priority":[{"id":1,"priority":7}]},{"remove_members":[4],"retry":-1}]}"#,
            "non-negative, got -1",
        ),
        (r#"{"actions":[{"remove_members":[1]},{"remove_members":[2]}]}"#, "cannot remove leader"),
        ("no JSON", "cannot be read"),
        ("", "cannot be read"),
        (r#"{"actions":[{"set_priority":[{"id":1,"priority":1000}]}]}"#, "cannot be read"),
    ] {
        let (status, message) = run(&mut world, plan);
        assert!(status == "error" && message.contains(word), "{plan}: {status}: {message}");
    }
    host.borrow_mut().leader = 9;
    world.desk.change_by(|_| Err(("no_leader", "nobody")));
    assert_eq!(run(&mut world, r#"{"actions":[]}"#), ("error".to_owned(), "no_leader: nobody".to_owned()));
    assert_eq!(host.borrow().asked.len(), 0);
}

#[test]
fn it_needs_the_flavour_the_allow_list_and_the_operators_leave() {
    let plan = frame(r#"{"actions":[]}"#);
    let zookeeper = r#"{"listen":{"four_letter_words":"*"},"node":3}"#;
    let default = r#"{"params":{"compatibility":"clickhouse"},"node":3}"#;
    for (params, settings) in [("{}", zookeeper), (PARAMS, default)] {
        let mut world = World::with(1, params, settings);
        world.desk.change_by(|wish| panic!("the host is asked for {wish}"));
        let mut peer = world.dial(0);
        world.send(&peer, &plan);
        assert!(world.is_closed(&peer) && world.text(&mut peer).is_empty(), "closed without a word");
    }
    let mut world = World::with(2, PARAMS, SETTINGS);
    let (status, message) = run(&mut world, r#"{"actions":[]}"#);
    assert!(status == "error" && message.starts_with("forbidden: "), "{message}");
}

#[test]
fn a_plan_may_come_in_pieces_and_one_that_is_too_long_or_never_comes_is_none() {
    let (mut world, host) = world();
    let mut peer = world.dial(0);
    for byte in frame(r#"{"actions":[{"remove_members":[4]}]}"#) {
        assert!(host.borrow().asked.is_empty());
        world.send(&peer, &[byte]);
        world.desk.run();
    }
    assert_eq!(answer(&mut world, &mut peer).0, "ok");

    for length in [64 * 1024 + 1, u32::MAX] {
        let mut peer = world.dial(0);
        world.send(&peer, &[b"rcfg".as_slice(), &length.to_be_bytes()].concat());
        world.desk.run();
        let (status, message) = answer(&mut world, &mut peer);
        assert!(status == "error" && message.contains("65536 are the most"), "{message}");
    }
    let peers = [&b"rcfg"[..], b"rcfg\0\0", b"rcfg\0\0\0\x09{", b"rcfg\0\x01\0\0"].map(|bytes| {
        let peer = world.dial(0);
        world.send(&peer, bytes);
        peer
    });
    world.desk.advance(14_000);
    for mut peer in peers {
        assert!(world.is_closed(&peer) && world.text(&mut peer).is_empty());
    }
    assert_eq!(host.borrow().asked.len(), 1);
}

#[test]
fn a_step_is_tried_again_until_its_time_is_over_and_the_rest_is_left() {
    let (mut world, host) = world();
    // Whoever does not take the lead in time is not the only one who may.
    host.borrow_mut().failures = vec!["timeout"];
    let mut peer = send(&mut world, r#"{"actions":[{"transfer_leadership":[4,5]}]}"#);
    world.desk.advance(4_000);
    assert_eq!(answer(&mut world, &mut peer).0, "ok");
    let leaders: Vec<Value> =
        host.borrow().asked.iter().map(|wish| serde_json::from_str::<Value>(wish).unwrap()["lead"].clone()).collect();
    assert_eq!((leaders, host.borrow().leader), (vec![json!(5), json!(4)], 4), "the one that holds the most first");

    for (code, plan, tries) in [
        ("timeout", r#"{"max_action_wait_time_ms":0,"actions":[{"remove_members":[1,5]}]}"#, 1),
        ("last_voter", r#"{"actions":[{"remove_members":[1,5]}]}"#, 1),
        (
            "change_in_progress",
            r#"{"max_total_wait_time_ms":3000,"actions":[{"remove_members":[1,5],"retry":100}]}"#,
            3,
        ),
        ("change_in_progress", r#"{"max_action_wait_time_ms":2000,"actions":[{"remove_members":[1,5],"retry":0}]}"#, 2),
    ] {
        host.borrow_mut().begin_anew(vec![code; 100]);
        let mut peer = send(&mut world, plan);
        world.desk.advance(20_000);
        let (status, message) = answer(&mut world, &mut peer);
        assert!(status == "error" && message.contains(code), "{message}");
        assert!(message.contains("Cannot remove server 1"), "{message}");
        let asked = host.borrow().asked.len();
        assert!(asked <= tries + 1 && asked >= tries.min(2), "{code}: {asked} of {tries}");
        assert_eq!(host.borrow().members.len(), 5);
    }
    // Who is gone already need not go.
    host.borrow_mut().begin_anew(Vec::new());
    assert_eq!(run(&mut world, r#"{"actions":[{"remove_members":[9,1]}]}"#).0, "ok");
    // What was done before the step that failed is said.
    host.borrow_mut().begin_anew(vec!["", "last_voter"]);
    let (_, message) = run(&mut world, r#"{"actions":[{"remove_members":[5]},{"remove_members":[2]}]}"#);
    assert!(message.contains("Cannot remove server 2") && message.ends_with("Steps done before: 1"), "{message}");
    assert_eq!(host.borrow().members.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn one_plan_runs_at_a_time_and_ends_with_its_connection() {
    let (mut world, host) = world();
    world.desk.hold_told(true);
    let first = send(&mut world, r#"{"actions":[{"remove_members":[1]},{"remove_members":[5]}]}"#);
    let (status, message) = run(&mut world, r#"{"actions":[]}"#);
    assert!(status == "error" && message.contains("is running at this server"), "{message}");
    // Its first step is under way.
    world.desk.hold_told(false);
    world.desk.hold_told(true);
    world.desk.run();
    world.desk.hang_up(first.client);
    world.desk.hold_told(false);
    world.desk.run();
    assert_eq!(host.borrow().asked.len(), 1, "{:?}", host.borrow().asked);
    assert_eq!(world.desk.adapter(1).unwrap().kept(), Kept::default());
    assert_eq!(run(&mut world, r#"{"actions":[]}"#).0, "ok", "another one may begin");
}
