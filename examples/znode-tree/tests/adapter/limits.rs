use znode_tree::wire::op;

use crate::world::World;
use crate::world::create;
use crate::world::path_watch;
use crate::world::request;
use crate::world::set_data;

#[test]
fn frames_below_nothing_and_above_the_limit_end_the_connection() {
    let mut world = World::new(1);
    for bytes in [
        &(-1_i32).to_be_bytes()[..],
        &i32::MIN.to_be_bytes(),
        &0x10_0000_i32.to_be_bytes(),
        b"ruok",
        &[0, 0, 0, 0],
        &[0, 0, 0, 3, 1, 2, 3],
    ] {
        let mut peer = world.connect(0);
        world.send(&peer, bytes);
        assert!(world.is_closed(&peer), "{bytes:?}");
        assert_eq!(world.all(&mut peer), []);
    }
    // As long as allowed: it is waited for.
    let peer = world.connect(0);
    world.send(&peer, &0xf_ffff_i32.to_be_bytes());
    assert!(!world.is_closed(&peer));
}

#[test]
fn a_frame_as_long_as_allowed_is_taken_in_any_pieces() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    world.create(&mut peer, "/big");
    let room = 0xf_ffff - request(0, op::SET_DATA, &set_data("/big", "")).len() + 4;
    let bytes = request(7, op::SET_DATA, &set_data("/big", &"x".repeat(room)));
    assert_eq!(bytes.len(), 4 + 0xf_ffff);
    for piece in bytes.chunks(60_000) {
        world.send(&peer, piece);
        world.desk.run();
    }
    assert_eq!(world.next(&mut peer).unwrap().error, 0);
    assert_eq!(world.ask(&mut peer, op::GET_DATA, &path_watch("/big", false)).data().0.len(), room);
}

/// A client that sends without end and waits for nothing is read from as fast as it is answered.
#[test]
fn no_more_is_read_from_a_client_with_too_much_under_way() {
    let mut world = World::with(2, "{}", r#"{"listen":{"outstanding_limit":10}}"#);
    let mut peer = world.connect(1);
    world.create(&mut peer, "/a");
    // Nothing comes back from the log.
    world.desk.lag(1, true);
    let before = world.desk.last();
    for xid in 0..500 {
        world.send(&peer, &request(xid, op::SET_DATA, &set_data("/a", "x")));
        world.desk.run();
    }
    assert!(world.desk.is_held(peer.client));
    assert_eq!(world.desk.last() - before, 10, "so many were asked, and not one more");
    world.desk.lag(1, false);
    let xids: Vec<i32> = world.all(&mut peer).iter().map(|reply| reply.xid).collect();
    assert_eq!(xids, Vec::from_iter(0..500), "and none was lost");
    assert!(!world.desk.is_held(peer.client));
}

#[test]
fn fifty_thousand_requests_in_a_row_are_all_answered() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    world.create(&mut peer, "/a");
    let mut bytes = Vec::new();
    for xid in 0..50_000 {
        bytes.extend(request(xid, op::EXISTS, &path_watch("/a", false)));
    }
    for piece in bytes.chunks(64 << 10) {
        world.send(&peer, piece);
    }
    let xids: Vec<i32> = world.all(&mut peer).iter().map(|reply| reply.xid).collect();
    assert_eq!(xids, Vec::from_iter(0..50_000));
}

#[test]
fn many_connections_come_and_go_without_a_trace() {
    let mut world = World::new(1);
    for round in 0..2_000 {
        let mut peer = world.connect(0);
        if round % 3 == 0 {
            assert_eq!(world.error(&mut peer, op::CREATE, &create(&format!("/e{round}"), "", 1)), 0);
            assert_eq!(world.error(&mut peer, op::EXISTS, &path_watch("/", true)), 0);
        }
        world.desk.hang_up(peer.client);
    }
    world.desk.advance(60_000);
    assert!(world.word(0, "srvr").contains("\nConnections: 1\nOutstanding: 0\n"));
    assert!(world.word(0, "wchs").ends_with("Total watches:0\n"));
    assert!(world.word(0, "mntr").contains("zk_ephemerals_count\t0\n"));
}

/// Thousands of clients that each begin a large request and never end it: what they cost is bounded, and those who
/// behave go on.
#[test]
fn frames_that_never_end_do_not_add_up_without_bound() {
    let mut world = World::new(1);
    let mut honest = world.connect(0);
    let mut slow = Vec::new();
    for _ in 0..200 {
        let peer = world.connect(0);
        world.send(&peer, &0xf_ffff_i32.to_be_bytes());
        world.send(&peer, &vec![0; 0xf_fff0]);
        world.desk.run();
        slow.push(peer);
    }
    let closed = slow.iter().filter(|peer| world.desk.is_closed(peer.client)).count();
    assert_eq!(closed, 200 - 128);
    assert_eq!(world.error(&mut honest, op::GET_DATA, &path_watch("/", false)), 0);
    slow.iter().for_each(|peer| world.desk.hang_up(peer.client));
    let peer = world.connect(0);
    world.send(&peer, &0xf_ffff_i32.to_be_bytes());
    world.send(&peer, &vec![0; 0xf_fff0]);
    assert!(!world.is_closed(&peer), "what the others kept is given back");
}
