use znode_tree::wire::op;

use crate::world::World;
use crate::world::create;
use crate::world::path_watch;
use crate::world::request;
use crate::world::set_data;

#[test]
fn a_session_moves_to_another_server_with_its_ephemeral_nodes() {
    let mut world = World::new(2);
    let mut first = world.connect(0);
    assert_eq!(world.error(&mut first, op::CREATE, &create("/mine", "", 1)), 0);
    let mut second = world.reattach(1, &first, 1);
    assert_eq!(second.session(), first.session());
    assert_eq!(second.welcome, first.welcome, "with the same password and timeout");
    assert!(world.is_closed(&first), "the host moved the session: the old connection ends");
    let stat = world.ask(&mut second, op::GET_DATA, &path_watch("/mine", false)).data().1;
    assert_eq!(stat.ephemeral_owner, first.session());
}

#[test]
fn a_second_connection_to_the_same_server_closes_the_first() {
    let mut world = World::new(1);
    let first = world.connect(0);
    let mut second = world.reattach(0, &first, 0);
    assert!(world.is_closed(&first));
    assert_eq!(world.error(&mut second, op::GET_DATA, &path_watch("/", false)), 0);
    let third = world.reattach(0, &second, 0);
    assert!(world.is_closed(&second) && !world.is_closed(&third));
}

#[test]
fn a_write_of_the_old_connection_is_not_applied_after_the_move() {
    let mut world = World::new(2);
    let mut first = world.connect(0);
    world.create(&mut first, "/a");
    // Node 0 hears nothing of the move for a while.
    world.desk.lag(0, true);
    let mut second = world.reattach(1, &first, 1);
    assert_eq!(second.session(), first.session());
    world.send(&first, &request(9, op::SET_DATA, &set_data("/a", "late")));
    world.desk.run();
    assert!(!world.is_closed(&first));
    world.desk.lag(0, false);
    assert!(world.is_closed(&first));
    assert_eq!(world.ask(&mut second, op::GET_DATA, &path_watch("/a", false)).data().0, b"");
}

#[test]
fn a_session_lives_by_pings_and_by_anything_else_and_ends_without() {
    let mut world = World::new(2);
    let (mut pinging, mut reading, silent) = (world.connect(1), world.connect(1), world.connect(1));
    assert_eq!(world.error(&mut pinging, op::CREATE, &create("/p", "", 1)), 0);
    for _ in 0..10 {
        world.desk.advance(5_000);
        assert_eq!(world.error(&mut pinging, op::PING, &[]), 0);
        assert_eq!(world.error(&mut reading, op::GET_DATA, &path_watch("/p", false)), 0);
    }
    assert!(world.is_closed(&silent), "its session has ended, so its connection does");
    let refused = world.reattach(0, &silent, 0);
    assert_eq!(refused.session(), 0, "and nobody gets it back");
    world.desk.advance(15_000);
    assert!(world.is_closed(&pinging));
    let mut other = world.connect(0);
    assert_eq!(world.error(&mut other, op::EXISTS, &path_watch("/p", false)), -101);
}

#[test]
fn close_session_is_answered_and_then_the_connection_ends() {
    let mut world = World::new(2);
    let mut peer = world.connect(1);
    assert_eq!(world.error(&mut peer, op::CREATE, &create("/e", "", 1)), 0);
    world.send(&peer, &request(1, op::GET_DATA, &path_watch("/e", false)));
    world.send(&peer, &request(2, op::CLOSE_SESSION, b"junk is not looked at"));
    world.send(&peer, &request(3, op::GET_DATA, &path_watch("/e", false)));
    let replies: Vec<_> = world.all(&mut peer).iter().map(|reply| (reply.xid, reply.error, reply.zxid)).collect();
    let last = world.desk.last() as i64;
    assert_eq!(replies, [(1, 0, last - 1), (2, 0, last)]);
    assert!(world.is_closed(&peer));
    assert_eq!(world.reattach(0, &peer, 0).session(), 0);
    let mut other = world.connect(0);
    assert_eq!(world.error(&mut other, op::EXISTS, &path_watch("/e", false)), -101);
}

#[test]
fn a_connection_that_is_lost_leaves_its_session_to_run_out() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::CREATE, &create("/e", "", 1)), 0);
    world.desk.hang_up(peer.client);
    world.desk.advance(5_000);
    let mut back = world.reattach(0, &peer, 0);
    assert_eq!(back.session(), peer.session());
    assert_eq!(world.error(&mut back, op::EXISTS, &path_watch("/e", false)), 0);
    world.desk.hang_up(back.client);
    world.desk.advance(10_000);
    assert_eq!(world.reattach(0, &back, 0).session(), 0);
}

#[test]
fn an_adapter_that_is_lost_costs_connections_and_no_sessions() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::CREATE, &create("/e", "", 1)), 0);
    world.desk.restart(0);
    assert!(world.is_closed(&peer));
    let mut back = world.reattach(0, &peer, world.desk.last() as i64);
    assert_eq!(world.error(&mut back, op::EXISTS, &path_watch("/e", false)), 0);
}

#[test]
fn without_a_leader_writes_end_the_connection_and_after_a_while_everything_does() {
    let mut world = World::new(1);
    let (mut writer, mut reader) = (world.connect(0), world.connect(0));
    world.create(&mut writer, "/a");
    world.desk.lead(None);
    world.send(&writer, &request(7, op::SET_DATA, &set_data("/a", "x")));
    assert!(world.is_closed(&writer), "nobody knows what became of it, so nothing is said");
    assert_eq!(world.all(&mut writer), []);
    assert_eq!(world.error(&mut reader, op::GET_DATA, &path_watch("/a", false)), 0);
    world.desk.advance(30_000);
    assert!(world.is_closed(&reader), "what it reads grows stale");
}

/// A hostile client can name any session; it cannot act in one that is not its own.
#[test]
fn create_session_is_no_request() {
    let mut world = World::new(1);
    for operation in [op::CREATE_SESSION, -1, 0, 997, 10_000, 10_002, 10_007] {
        let mut peer = world.connect(0);
        let before = world.desk.last();
        let reply = world.ask(&mut peer, operation, &[0; 64]);
        assert_eq!((reply.error, reply.zxid, reply.body.len()), (-6, -1, 0), "{operation}");
        assert!(world.is_closed(&peer));
        assert_eq!(world.desk.last(), before);
    }
}
