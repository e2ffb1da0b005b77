//! Clients that change the cluster's members: who may, what they may ask for, what it ends with.

use std::cell::RefCell;
use std::rc::Rc;

use znode_tree::adapter::Kept;
use znode_tree::wire::Stat;
use znode_tree::wire::op;

use crate::world::Peer;
use crate::world::World;
use crate::world::body;
use crate::world::path_watch;
use crate::world::request;

const CONFIG: &str = "/zookeeper/config";
const SETTINGS: &str =
    r#"{"listen":{"super_digest":"super:D/InIHSb7yEEbrWz8b9l71RjZJU=","four_letter_words":"*"},"node":1}"#;
const JOINING: &str = "server.4=127.0.0.4:2888:3888:participant;127.0.0.4:2181";
const TWO: &str = r#"{"members":[{"id":1,"address":"a:1","role":"voter"},{"id":2,"address":"b:2","role":"voter"}]}"#;
const THREE: &str = r#"{"done":true,"members":[{"id":1,"address":"a:1","role":"voter"},
    {"id":2,"address":"b:2","role":"voter"},{"id":4,"address":"d:4","role":"voter"}]}"#;

/// Two nodes, whose clients may change the members.
fn world() -> World {
    let mut world = World::with(2, r#"{"reconfig_enabled":true}"#, SETTINGS);
    world.desk.tell("status", TWO);
    // The leader writes down who there is.
    world.desk.advance(2_000);
    world
}

/// What the host is asked to change, one after the other; it does all of it.
fn obliging(world: &mut World) -> Rc<RefCell<Vec<String>>> {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let changes = asked.clone();
    world.desk.change_by(move |wish| {
        changes.borrow_mut().push(wish.to_owned());
        Ok(THREE.to_owned())
    });
    asked
}

fn superuser(world: &mut World, node: usize) -> Peer {
    let mut peer = world.connect(node);
    let proof = body(|out| _ = out.i32(0).text("digest").text("super:test"));
    assert_eq!(world.error(&mut peer, op::AUTH, &proof), 0);
    peer
}

fn texts(joining: Option<&str>, leaving: Option<&str>, members: Option<&str>, version: i64) -> Vec<u8> {
    body(|out| {
        for text in [joining, leaving, members] {
            out.buffer(text.map(str::as_bytes));
        }
        out.i64(version);
    })
}

fn joins(joining: &str) -> Vec<u8> {
    texts(Some(joining), None, None, -1)
}

/// The configuration that a client reads, with its version.
fn config(world: &mut World, peer: &mut Peer) -> (String, i64) {
    let (data, stat) = world.ask(peer, op::GET_DATA, &path_watch(CONFIG, false)).data();
    let text = String::from_utf8(data).unwrap();
    assert!(text.ends_with(&format!("version={:x}", stat.mzxid)), "{text}");
    (text, stat.mzxid)
}

#[test]
fn a_server_joins_and_the_answer_is_the_new_configuration() {
    for node in [0, 1] {
        let mut world = world();
        let asked = obliging(&mut world);
        let mut watcher = world.connect(1 - node);
        world.ask(&mut watcher, op::GET_DATA, &path_watch(CONFIG, true));
        let mut peer = superuser(&mut world, node);
        let reply = world.ask(&mut peer, op::RECONFIG, &joins(JOINING));
        assert_eq!(*asked.borrow(), [r#"{"add":[{"node":4,"learner":false}],"remove":[],"wait_ms":60000}"#]);
        let (data, stat) = reply.data();
        let expected = format!(
            "server.1=a:1:1:participant\nserver.2=b:2:2:participant\nserver.4=d:4:4:participant\nversion={:x}",
            reply.zxid
        );
        assert_eq!(String::from_utf8(data.clone()).unwrap(), expected);
        assert_eq!((stat.mzxid, stat.version, stat.data_length), (reply.zxid, 2, expected.len() as i32));
        let read = world.ask(&mut peer, op::GET_DATA, &path_watch(CONFIG, false));
        assert_eq!(read.data(), (data, stat), "as getData tells it");
        assert_eq!(world.events(&mut watcher), [(3, CONFIG.to_owned())]);
    }
}

#[test]
fn joining_and_leaving_come_in_one_and_bulk_is_made_of_them() {
    let mut world = world();
    let asked = obliging(&mut world);
    let mut peer = superuser(&mut world, 0);
    let both = texts(Some("server.4=h:1:2:observer;3,server.5=h:1:2;3"), Some("2, 9"), None, -1);
    assert_eq!(world.error(&mut peer, op::RECONFIG, &both), 0);
    let whole = texts(None, None, Some("server.1=a:1:1:participant\nserver.4=d:4:4;2181"), -1);
    assert_eq!(world.error(&mut peer, op::RECONFIG, &whole), 0);
    assert_eq!(world.error(&mut peer, op::RECONFIG, &texts(None, None, None, -1)), 0);
    assert_eq!(world.error(&mut peer, op::RECONFIG, &joins("server.2=b:1:1:observer;3")), 0, "a participant observes");
    assert_eq!(
        *asked.borrow(),
        [
            r#"{"add":[{"node":4,"learner":true},{"node":5,"learner":false}],"remove":[2],"wait_ms":60000}"#,
            r#"{"add":[{"node":4,"learner":false}],"remove":[2],"wait_ms":60000}"#,
            r#"{"add":[],"remove":[],"wait_ms":60000}"#,
            r#"{"add":[{"node":2,"learner":true}],"remove":[],"wait_ms":60000}"#,
        ]
    );
}

#[test]
fn who_may_is_said_by_the_params_the_list_of_the_configuration_and_the_host() {
    let mut off = World::with(1, "{}", SETTINGS);
    let mut peer = superuser(&mut off, 0);
    assert_eq!(off.error(&mut peer, op::RECONFIG, &joins(JOINING)), -123);
    assert_eq!(off.error(&mut peer, op::RECONFIG, &joins("some thing")), -123);
    assert_eq!(off.error(&mut peer, op::RECONFIG, b"\0\0"), -5);

    let mut world = world();
    let mut chief = superuser(&mut world, 0);
    assert_eq!(world.error(&mut chief, op::RECONFIG, &joins(JOINING)), -123, "the host lets no adapter");
    let asked = obliging(&mut world);
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::RECONFIG, &joins(JOINING)), -102);
    assert_eq!(asked.borrow().len(), 0);
    // The super user lets whoever comes from here.
    let open = body(|out| _ = out.text(CONFIG).count(1).i32(3).text("ip").text("10.1.2.3").i32(-1));
    assert_eq!(world.error(&mut peer, op::SET_ACL, &open), -102);
    assert_eq!(world.error(&mut chief, op::SET_ACL, &open), 0);
    assert_eq!(world.error(&mut peer, op::RECONFIG, &joins(JOINING)), 0);
    assert_eq!(asked.borrow().len(), 1);

    let mut clickhouse = World::with(1, r#"{"reconfig_enabled":true,"compatibility":"clickhouse"}"#, SETTINGS);
    let mut peer = clickhouse.connect(0);
    assert_eq!(clickhouse.error(&mut peer, op::RECONFIG, &joins(JOINING)), -6);
}

#[test]
fn it_may_depend_on_the_version_of_the_configuration() {
    let mut world = world();
    let asked = obliging(&mut world);
    let mut peer = superuser(&mut world, 1);
    let (_, version) = config(&mut world, &mut peer);
    for other in [version + 1, version - 1, 0, -2, i64::MAX] {
        assert_eq!(world.error(&mut peer, op::RECONFIG, &texts(Some(JOINING), None, None, other)), -103, "{other}");
    }
    assert_eq!(asked.borrow().len(), 0);
    assert_eq!(world.error(&mut peer, op::RECONFIG, &texts(Some(JOINING), None, None, version)), 0);
    assert_eq!(world.error(&mut peer, op::RECONFIG, &texts(Some(JOINING), None, None, version)), -103, "it was used");

    // A server that was always by itself has no version.
    let mut lone = World::with(1, r#"{"reconfig_enabled":true}"#, SETTINGS);
    lone.desk.tell("status", r#"{"members":[{"id":1,"address":"a:1","role":"voter"}]}"#);
    obliging(&mut lone);
    let mut peer = superuser(&mut lone, 0);
    assert_eq!(lone.error(&mut peer, op::RECONFIG, &texts(Some(JOINING), None, None, 1)), -103);
    assert_eq!(lone.error(&mut peer, op::RECONFIG, &texts(Some(JOINING), None, None, 0)), 0);
}

#[test]
fn what_cannot_be_is_refused_before_the_host_is_asked() {
    let mut world = world();
    let asked = obliging(&mut world);
    let mut peer = superuser(&mut world, 0);
    for refused in [
        joins("some thing"),
        joins("server.4=h:1"),
        joins("server.1=a:1:1:observer;3,server.2=b:1:1:observer;3"),
        texts(None, Some("two"), None, -1),
        texts(None, Some("1,2"), None, -1),
        texts(None, None, Some(""), -1),
        texts(None, None, Some("server.1=a:1:1:observer"), -1),
    ] {
        assert_eq!(world.error(&mut peer, op::RECONFIG, &refused), -8, "{refused:?}");
    }
    // Of what cannot be read a stranger learns as much.
    let mut stranger = world.connect(0);
    assert_eq!(world.error(&mut stranger, op::RECONFIG, &joins("some thing")), -8);
    assert_eq!(asked.borrow().len(), 0);
}

#[test]
fn the_hosts_refusals_have_zookeepers_numbers_and_change_nothing() {
    let mut world = world();
    let mut peer = superuser(&mut world, 0);
    let before = config(&mut world, &mut peer);
    for (code, error) in [
        ("change_in_progress", -14),
        ("node_not_found", -13),
        ("not_caught_up", -13),
        ("timeout", -13),
        ("no_leader", -13),
        ("cancelled", -13),
        ("last_voter", -8),
        ("bad_request", -8),
        ("forbidden", -123),
        ("internal", -1),
    ] {
        world.desk.change_by(move |_| Err((code, "as the test says")));
        let reply = world.ask(&mut peer, op::RECONFIG, &joins(JOINING));
        assert_eq!((reply.error, reply.body.len()), (error, 0), "{code}");
    }
    world.desk.change_by(|_| Ok("no JSON".to_owned()));
    assert_eq!(world.error(&mut peer, op::RECONFIG, &joins(JOINING)), -1);
    world.desk.tell("status", "no JSON");
    assert_eq!(world.error(&mut peer, op::RECONFIG, &joins(JOINING)), -1);
    assert_eq!(config(&mut world, &mut peer), before);
}

#[test]
fn what_is_asked_behind_it_waits_and_a_ping_does_not() {
    let mut world = world();
    obliging(&mut world);
    let mut peer = superuser(&mut world, 1);
    let mut other = world.connect(1);
    world.desk.hold_told(true);
    let mut bytes = request(20, op::EXISTS, &path_watch("/none", false));
    bytes.extend(request(21, op::RECONFIG, &joins(JOINING)));
    bytes.extend(request(22, op::GET_DATA, &path_watch(CONFIG, false)));
    world.send(&peer, &bytes);
    assert_eq!(world.all(&mut peer).iter().map(|reply| reply.xid).collect::<Vec<_>>(), [20]);
    world.send(&peer, &request(-2, op::PING, &[]));
    assert_eq!(world.all(&mut peer).iter().map(|reply| reply.xid).collect::<Vec<_>>(), [-2]);
    assert_eq!(world.error(&mut other, op::EXISTS, &path_watch("/none", false)), -101, "others go on");
    // Who the members are; then that they have changed.
    for _ in 0..2 {
        world.desk.hold_told(false);
        world.desk.hold_told(true);
        world.desk.run();
    }
    let replies = world.all(&mut peer);
    assert_eq!(replies.iter().map(|reply| (reply.xid, reply.error)).collect::<Vec<_>>(), [(21, 0), (22, 0)]);
    assert_eq!(replies[0].body, replies[1].body);

    // Whoever goes away meanwhile leaves nothing behind.
    world.send(&peer, &request(23, op::RECONFIG, &joins(JOINING)));
    world.desk.run();
    world.desk.hang_up(peer.client);
    world.desk.hang_up(other.client);
    world.desk.hold_told(false);
    world.desk.run();
    assert_eq!(world.desk.adapter(1).unwrap().kept(), Kept::default());
}

#[test]
fn a_cluster_that_shrank_to_one_node_says_so_and_a_lone_node_says_nothing() {
    let one = r#"{"members":[{"id":1,"address":"a:1","role":"voter"}]}"#;
    let mut world = World::with(1, "{}", SETTINGS);
    world.desk.tell("status", one);
    world.desk.advance(5_000);
    let mut peer = world.connect(0);
    let empty = world.ask(&mut peer, op::GET_DATA, &path_watch(CONFIG, true)).data();
    assert_eq!((empty.0.len(), empty.1), (0, Stat { aversion: -1, ..Stat::default() }));

    world.desk.tell("status", TWO);
    world.desk.advance(2_000);
    assert_eq!(world.events(&mut peer), [(3, CONFIG.to_owned())]);
    world.ask(&mut peer, op::GET_DATA, &path_watch(CONFIG, true));
    world.desk.restart(0);
    let mut peer = world.connect(0);
    world.ask(&mut peer, op::GET_DATA, &path_watch(CONFIG, true));
    world.desk.tell("status", one);
    world.desk.advance(4_000);
    assert_eq!(world.events(&mut peer), [(3, CONFIG.to_owned())]);
    assert!(config(&mut world, &mut peer).0.starts_with("server.1=a:1:1:participant\nversion="));
}
