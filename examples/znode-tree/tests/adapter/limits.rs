use statehouse_sdk::adapter::Asked;
use znode_tree::adapter::Kept;
use znode_tree::jute::Reader;
use znode_tree::wire::MultiHeader;
use znode_tree::wire::Stat;
use znode_tree::wire::op;

use crate::world::Hello;
use crate::world::World;
use crate::world::body;
use crate::world::create;
use crate::world::delete;
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

/// Writes are asked as they come, and their bodies were counted for nobody while they were on their way through the log: a
/// client could have 1,000 of a megabyte each there.
#[test]
fn no_more_is_read_from_a_client_with_too_many_bytes_under_way() {
    let mut world = World::new(2);
    let (mut peer, mut other) = (world.connect(1), world.connect(1));
    world.create(&mut peer, "/a");
    world.desk.lag(1, true);
    let before = world.desk.last();
    let data = "x".repeat(1_000_000);
    for xid in 0..20 {
        world.send(&peer, &request(xid, op::SET_DATA, &set_data("/a", &data)));
        world.desk.run();
    }
    assert!(world.desk.is_held(peer.client));
    assert_eq!(world.desk.last() - before, 5, "more than 4 MiB with the last of them");
    world.send(&other, &request(1, op::SET_DATA, &set_data("/a", "y")));
    world.desk.run();
    assert_eq!(world.desk.last() - before, 6, "others go on");
    world.desk.lag(1, false);
    let xids: Vec<i32> = world.all(&mut peer).iter().map(|reply| reply.xid).collect();
    assert_eq!(xids, Vec::from_iter(0..20), "and none was lost");
    assert!(!world.desk.is_held(peer.client));
    assert_eq!(world.all(&mut other).len(), 1);
    world.desk.hang_up(peer.client);
    world.desk.hang_up(other.client);
    world.desk.run();
    assert_eq!(world.desk.adapter(1).unwrap().kept(), Kept::default(), "each is given back once");
}

/// As the test above, of many clients: what all have on its way is bounded, and who has little goes on.
#[test]
fn writes_under_way_of_all_clients_do_not_add_up_without_bound() {
    let mut world = World::new(2);
    let mut honest = world.connect(1);
    let peers: Vec<_> = (0..40).map(|_| world.connect(1)).collect();
    world.create(&mut honest, "/a");
    world.desk.lag(1, true);
    let data = "x".repeat(1_000_000);
    for _ in 0..4 {
        for peer in &peers {
            world.send(peer, &request(1, op::SET_DATA, &set_data("/a", &data)));
            world.desk.run();
        }
    }
    let closed = peers.iter().filter(|peer| world.desk.is_closed(peer.client)).count();
    assert!((5..20).contains(&closed), "{closed}");
    world.send(&honest, &request(1, op::SET_DATA, &set_data("/a", "y")));
    world.desk.run();
    assert!(!world.desk.is_closed(honest.client));
    world.desk.lag(1, false);
    assert_eq!(world.all(&mut honest).len(), 1);
}

/// One client alone could watch until the adapter's memory, and with it everybody's connection, was gone.
#[test]
fn who_watches_too_much_is_disconnected_and_nobody_else() {
    let mut world = World::new(1);
    let (mut greedy, mut other) = (world.connect(0), world.connect(0));
    assert_eq!(world.error(&mut other, op::EXISTS, &path_watch("/seen", true)), -101);
    let path = |at: usize| format!("/{at}/{}", "x".repeat(400_000));
    let restored = body(|out| {
        out.i64(0).count(0).count(1).text(&path(1_000)).count(0).count(0).count(0);
    });
    assert_eq!(world.error(&mut greedy, op::SET_WATCHES2, &restored), 0);
    let mut at = 0;
    while !world.is_closed(&greedy) {
        world.send(&greedy, &request(at as i32, op::EXISTS, &path_watch(&path(at), true)));
        at += 1;
        assert!(at < 1_000, "64 MiB");
    }
    assert_eq!(at, (64 << 20) / 400_000, "with the one that was restored");
    assert_eq!(world.word(0, "wchs"), "1 connections watching 1 paths\nTotal watches:1\n");
    world.create(&mut other, "/seen");
    assert_eq!(world.events(&mut other), [(1, "/seen".to_owned())]);
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

/// As the test above, in ClickHouse's compressed streams: what waits to be unpacked counts as well.
#[test]
fn compressed_blocks_that_never_end_do_not_add_up_without_bound() {
    let mut world = World::new(1);
    let mut head = vec![0; 16];
    head.push(0x82);
    head.extend(0xf_ffff_u32.to_le_bytes());
    head.extend(0xf_ffff_u32.to_le_bytes());
    head.resize(0xf_fff0, 0);
    let mut slow = Vec::new();
    for _ in 0..150 {
        let peer = world.greet(0, &Hello { version: 10, ..Hello::default() });
        world.send(&peer, &head);
        world.desk.run();
        slow.push(peer);
    }
    let closed = slow.iter().filter(|peer| world.desk.is_closed(peer.client)).count();
    assert_eq!(closed, 150 - 128);
    slow.iter().for_each(|peer| world.desk.hang_up(peer.client));
    let peer = world.connect(0);
    world.send(&peer, &0xf_ffff_i32.to_be_bytes());
    world.send(&peer, &vec![0; 0xf_fff0]);
    assert!(!world.is_closed(&peer), "what the others kept is given back");
}

/// More than the host lets one query answer: ZooKeeper sends it, and so does this.
#[test]
fn a_list_of_very_many_children_is_sent_whole() {
    let mut world = World::new(2);
    let (mut peer, mut writer) = (world.connect(1), world.connect(0));
    world.create(&mut writer, "/many");
    let name = |at: u32| format!("{:0>100}", at);
    for first in (0..90_000).step_by(5_000) {
        let batch = body(|out| {
            for at in first..first + 5_000 {
                MultiHeader { op: op::CREATE, done: false, err: -1 }.write(out);
                out.raw(&create(&format!("/many/{}", name(at)), "", 0));
            }
            MultiHeader::END.write(out);
        });
        assert_eq!(world.error(&mut writer, op::MULTI, &batch), 0);
    }
    let expected: Vec<String> = (0..90_000).map(name).collect();
    // Others are answered meanwhile, and each in the order asked; a watch is left as by any other list.
    for xid in 1..=3 {
        world.send(&peer, &request(xid, op::GET_CHILDREN, &path_watch("/many", true)));
        world.send(&peer, &request(10 + xid, op::EXISTS, &path_watch("/", false)));
    }
    world.send(&peer, &request(20, op::CREATE, &create("/other", "", 0)));
    let replies = world.all(&mut peer);
    assert_eq!(replies.iter().map(|reply| reply.xid).collect::<Vec<_>>(), [1, 11, 2, 12, 3, 13, 20]);
    for reply in &replies[..6] {
        assert_eq!(reply.error, 0);
        if reply.xid < 10 {
            assert!(Reader::new(&reply.body).texts().unwrap() == expected);
        }
    }
    assert_eq!(world.error(&mut writer, op::DELETE, &delete(&format!("/many/{}", name(7)))), 0);
    assert_eq!(world.events(&mut peer), [(4, "/many".to_owned())]);
    // Who goes away while it is gathered leaves the others theirs.
    let mut third = world.connect(1);
    for peer in [&peer, &third] {
        world.send(peer, &request(30, op::GET_CHILDREN2, &path_watch("/many", false)));
    }
    world.desk.hang_up(peer.client);
    let reply = world.next(&mut third).unwrap();
    assert_eq!((reply.xid, reply.error), (30, 0));
    assert_eq!(Reader::new(&reply.body).texts().unwrap().len(), 89_999);
}

/// Beyond what the gateway takes in one call there is an answer, too, and the connection goes on.
#[test]
fn an_answer_without_end_is_an_error() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    let data = "x".repeat(900_000);
    assert_eq!(world.error(&mut peer, op::CREATE, &create("/big", &data, 0)), 0);
    let reads = |count: usize| {
        body(|out| {
            for _ in 0..count {
                MultiHeader { op: op::GET_DATA, done: false, err: -1 }.write(out);
                out.raw(&path_watch("/big", false));
            }
            MultiHeader::END.write(out);
        })
    };
    let reply = world.ask(&mut peer, op::MULTI_READ, &reads(10));
    assert_eq!((reply.error, reply.body.len()), (0, 10 * (9 + 4 + data.len() + 68) + 9));
    assert_eq!(world.error(&mut peer, op::MULTI_READ, &reads(1_000)), -1);
    assert_eq!(world.error(&mut peer, op::GET_DATA, &path_watch("/big", false)), 0);
}

/// The host gives an adapter up that hands it more than 64 MiB in one call, with all its connections.
#[test]
fn one_change_that_many_are_to_hear_of_at_once_ends_some_connections_and_not_all() {
    let mut world = World::new(1);
    let mut writer = world.connect(0);
    let path = format!("/{}", "long".repeat(100_000));
    world.create(&mut writer, &path);
    let mut watchers: Vec<_> = (0..200).map(|_| world.connect(0)).collect();
    for watcher in &mut watchers {
        assert_eq!(world.error(watcher, op::EXISTS, &path_watch(&path, true)), 0);
    }
    world.desk.keep_asked();
    assert_eq!(world.error(&mut writer, op::SET_DATA, &set_data(&path, "new")), 0);
    let asked = world.desk.take_asked();
    let sent = asked.iter().map(|(_, asked)| match asked {
        Asked::Send { bytes, .. } => bytes.len(),
        _ => 0,
    });
    assert!(sent.sum::<usize>() < 64 << 20);
    let (told, closed): (Vec<_>, Vec<_>) =
        watchers.into_iter().partition(|watcher| !world.desk.is_closed(watcher.client));
    assert!(told.len() > 100 && closed.len() > 50, "{} {}", told.len(), closed.len());
    for mut watcher in told {
        assert_eq!(world.events(&mut watcher), [(3, path.clone())]);
    }
    // Who was disconnected comes back, and is told.
    let mut back = world.reattach(0, &closed[0], 1);
    let missed = body(|out| {
        out.i64(1).count(1).text(&path).count(0).count(0);
    });
    assert_eq!(world.error(&mut back, op::SET_WATCHES, &missed), 0);
    assert_eq!(world.events(&mut back), [(3, path)]);
}

/// A client with very many watches restores them in several requests.
#[test]
fn watches_are_restored_however_many_they_are() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    for part in 0..20 {
        let paths: Vec<String> =
            (0..500).map(|at| format!("/none/of/a/client/with/many/watches/{part}/{at}")).collect();
        let lists = body(|out| {
            out.i64(0).count(0).texts(paths.iter()).count(0).count(0).texts(paths.iter());
        });
        assert_eq!(world.error(&mut peer, op::SET_WATCHES2, &lists), 0);
    }
    assert_eq!(world.word(0, "wchs"), "1 connections watching 10000 paths\nTotal watches:10000\n");
}

/// The pieces are of one state, though entries are applied meanwhile; and what was asked behind the list is answered from
/// no earlier one.
#[test]
fn a_long_list_is_of_one_state_and_no_answer_behind_it_of_an_earlier_one() {
    let mut world = World::new(1);
    let (mut reader, mut writer) = (world.connect(0), world.connect(0));
    let name = |at: usize| format!("/many/{at:0>400}");
    world.create(&mut writer, "/many");
    for first in (0..22_000).step_by(1_000) {
        let batch = body(|out| {
            for at in first..first + 1_000 {
                MultiHeader { op: op::CREATE, done: false, err: -1 }.write(out);
                out.raw(&create(&name(at), "", 0));
            }
            MultiHeader::END.write(out);
        });
        assert_eq!(world.error(&mut writer, op::MULTI, &batch), 0);
    }
    for other in [false, true] {
        let before = world.ask(&mut writer, op::GET_CHILDREN2, &path_watch("/many", false)).body.len();
        for xid in 0..4 {
            world.send(&reader, &request(10 * xid + 1, op::GET_CHILDREN2, &path_watch("/many", false)));
            world.send(&reader, &request(10 * xid + 2, op::EXISTS, &path_watch("/many", false)));
        }
        for at in 0..60 {
            // First beside the list, then in it.
            let path = if other { name(100_000 + at) } else { format!("/beside{at}") };
            world.send(&writer, &request(at as i32 + 1, op::CREATE, &create(&path, "", 0)));
        }
        let replies = world.all(&mut reader);
        assert_eq!(replies.iter().map(|reply| reply.xid).collect::<Vec<_>>(), [1, 2, 11, 12, 21, 22, 31, 32]);
        assert!(replies.is_sorted_by_key(|reply| reply.zxid), "a client's time never goes back");
        let mut grown = 0;
        for reply in replies.iter().filter(|reply| reply.xid % 10 == 1) {
            let mut list = Reader::new(&reply.body);
            let names = list.texts().unwrap().len();
            assert_eq!((reply.error, Stat::read(&mut list).unwrap().num_children as usize), (0, names));
            grown = reply.body.len() - before;
        }
        assert_eq!(grown > 0, other, "there were changes meanwhile");
        assert_eq!(world.all(&mut writer).len(), 60);
    }
}
