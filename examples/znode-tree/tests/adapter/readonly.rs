//! Clients that would rather read something old than nothing: ZooKeeper's read-only mode.

use znode_tree::wire::op;

use crate::world::Hello;
use crate::world::World;
use crate::world::create;
use crate::world::path_watch;
use crate::world::request;

const SETTINGS: &str = r#"{"listen":{"read_only_mode":true,"four_letter_words":"*"},"node":1}"#;
const CLIENT: Hello =
    Hello { version: 0, zxid: 0, timeout_ms: 10_000, session: 0, password: [0; 16], read_only: Some(true) };

fn world() -> World {
    let mut world = World::with(1, "{}", SETTINGS);
    let mut peer = world.connect(0);
    world.create(&mut peer, "/a");
    world.desk.hang_up(peer.client);
    world
}

#[test]
fn without_a_leader_a_client_that_takes_it_may_read_and_is_refused_to_write() {
    let mut world = world();
    world.desk.lead(None);
    let mut peer = world.greet(0, &CLIENT);
    let welcome = peer.welcome.clone().unwrap();
    assert!((welcome.session, welcome.timeout_ms, welcome.is_read_only) > (0, 9_999, false), "{welcome:?}");
    assert_eq!(world.error(&mut peer, op::GET_DATA, &path_watch("/a", true)), 0);
    assert_eq!(world.error(&mut peer, op::GET_EPHEMERALS, b"\0\0\0\x01/"), 0);
    let before = world.desk.last();
    for operation in [op::CREATE, op::CREATE2, op::DELETE, op::SET_DATA, op::SET_ACL, op::MULTI, op::SYNC, op::RECONFIG]
    {
        assert_eq!(world.error(&mut peer, operation, &create("/b", "", 0)), -119, "{operation}");
    }
    assert_eq!(world.desk.last(), before);
    // In the order they were asked, as ever.
    world.send(&peer, &request(70, op::EXISTS, &path_watch("/a", false)));
    world.send(&peer, &request(71, op::CREATE, &create("/b", "", 0)));
    world.send(&peer, &request(72, op::EXISTS, &path_watch("/a", false)));
    assert_eq!(
        world.all(&mut peer).iter().map(|reply| (reply.xid, reply.error)).collect::<Vec<_>>(),
        [(70, 0), (71, -119), (72, 0)]
    );
    assert_eq!(world.error(&mut peer, op::CLOSE_SESSION, &[]), 0);
    assert!(world.is_closed(&peer));
    assert!(world.greet(0, &Hello { read_only: Some(false), ..CLIENT }).welcome.is_none(), "who did not ask for it");
}

#[test]
fn a_client_keeps_what_it_has_of_its_session_and_takes_it_up_when_there_is_a_leader() {
    let mut world = world();
    let peer = world.connect(0);
    let Some(welcome) = peer.welcome.clone() else { panic!("no welcome") };
    world.desk.lead(None);
    let hello = Hello { session: welcome.session, password: welcome.password, ..CLIENT };
    let mut reading = world.greet(0, &hello);
    assert_eq!(reading.session(), welcome.session);
    assert!(reading.welcome.as_ref().unwrap().is_read_only);
    world.desk.lead(Some(0));
    world.ask(&mut reading, op::PING, &[]);
    world.desk.advance(4_000);
    assert!(world.is_closed(&reading), "it shall connect again, to write as well");
    let writing = world.greet(0, &hello);
    assert_eq!((writing.session(), writing.welcome.as_ref().unwrap().is_read_only), (welcome.session, false));
}

#[test]
fn a_reader_that_is_not_heard_of_is_let_go() {
    let mut world = world();
    world.desk.lead(None);
    let (mut awake, asleep) = (world.greet(0, &CLIENT), world.greet(0, &CLIENT));
    for _ in 0..5 {
        world.desk.advance(4_000);
        world.ask(&mut awake, op::PING, &[]);
    }
    assert!(!world.is_closed(&awake) && world.is_closed(&asleep));
}

#[test]
fn words_say_that_it_is_read_only() {
    let mut world = world();
    assert_eq!(world.word(0, "isro"), "rw");
    world.desk.lead(None);
    assert_eq!(world.word(0, "isro"), "ro");
    assert!(world.word(0, "srvr").contains("\nMode: read-only\n"));
    assert!(world.word(0, "mntr").contains("zk_server_state\tread-only\n"));
}
