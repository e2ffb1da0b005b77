use znode_tree::wire::MultiHeader;
use znode_tree::wire::op;

use crate::world::Peer;
use crate::world::World;
use crate::world::body;
use crate::world::create;
use crate::world::delete;
use crate::world::path_watch;
use crate::world::request;
use crate::world::set_data;

fn two() -> (World, Peer, Peer) {
    let mut world = World::new(2);
    let (mut watcher, other) = (world.connect(1), world.connect(0));
    world.create(&mut watcher, "/a");
    (world, watcher, other)
}

fn event(number: i32, path: &str) -> (i32, String) {
    (number, path.to_owned())
}

#[test]
fn data_and_exists_watches_of_one_node_are_one_notification() {
    let (mut world, mut watcher, mut other) = two();
    for operation in [op::GET_DATA, op::EXISTS, op::GET_DATA] {
        assert_eq!(world.error(&mut watcher, operation, &path_watch("/a", true)), 0);
    }
    let zxid = world.ask(&mut other, op::SET_DATA, &set_data("/a", "x")).zxid;
    world.ask(&mut other, op::SET_DATA, &set_data("/a", "y"));
    let all = world.all(&mut watcher);
    assert_eq!(all.len(), 1, "once, though data changed twice");
    assert_eq!((all[0].event(), all[0].zxid), ((3, 3, "/a".to_owned()), zxid));
}

#[test]
fn watches_on_missing_nodes_are_left_by_exists_alone() {
    let (mut world, mut watcher, mut other) = two();
    for (path, operation) in
        [("/e", op::EXISTS), ("/d", op::GET_DATA), ("/c", op::GET_CHILDREN), ("/c2", op::GET_CHILDREN2)]
    {
        assert_eq!(world.error(&mut watcher, operation, &path_watch(path, true)), -101);
        world.create(&mut other, path);
    }
    assert_eq!(world.events(&mut watcher), [event(1, "/e")]);
}

/// ClickHouse's: ZooKeeper's multiRead sets none.
#[test]
fn a_multi_read_leaves_watches_on_missing_nodes_by_exists_alone_too() {
    let mut world = World::with(1, r#"{"compatibility":"clickhouse"}"#, r#"{"params":{"compatibility":"clickhouse"}}"#);
    let mut watcher = world.connect(0);
    world.create(&mut watcher, "/a");
    let asked = [("/e", op::EXISTS), ("/d", op::GET_DATA), ("/c", op::GET_CHILDREN), ("/a", op::GET_DATA)];
    let many = body(|out| {
        for (path, operation) in asked {
            MultiHeader { op: operation, done: false, err: -1 }.write(out);
            out.raw(&path_watch(path, true));
        }
        MultiHeader::END.write(out);
    });
    assert_eq!(world.error(&mut watcher, op::MULTI_READ, &many), 0);
    let mut other = world.connect(0);
    ["/e", "/d", "/c"].into_iter().for_each(|path| world.create(&mut other, path));
    world.ask(&mut other, op::SET_DATA, &set_data("/a", "x"));
    assert_eq!(world.events(&mut watcher), [event(1, "/e"), event(3, "/a")]);
}

#[test]
fn child_watches_hear_of_children_and_of_the_end_but_not_of_data() {
    let (mut world, mut watcher, mut other) = two();
    for (operation, change, rest, heard) in [
        (op::GET_CHILDREN, op::CREATE, create("/a/b", "", 0), Some(event(4, "/a"))),
        (op::GET_CHILDREN2, op::SET_DATA, set_data("/a/b", "x"), None),
        (op::GET_CHILDREN2, op::SET_DATA, set_data("/a", "x"), None),
        (op::GET_CHILDREN, op::DELETE, delete("/a/b"), Some(event(4, "/a"))),
        (op::GET_CHILDREN2, op::DELETE, delete("/a"), Some(event(2, "/a"))),
    ] {
        assert_eq!(world.error(&mut watcher, operation, &path_watch("/a", true)), 0);
        assert_eq!(world.error(&mut other, change, &rest), 0);
        assert_eq!(world.events(&mut watcher), Vec::from_iter(heard));
    }
}

#[test]
fn ones_own_write_is_announced_before_its_reply() {
    let (mut world, mut watcher, _) = two();
    world.create(&mut watcher, "/a/b");
    assert_eq!(world.error(&mut watcher, op::GET_DATA, &path_watch("/a/b", true)), 0);
    assert_eq!(world.error(&mut watcher, op::GET_CHILDREN, &path_watch("/a/b", true)), 0);
    assert_eq!(world.error(&mut watcher, op::GET_CHILDREN, &path_watch("/a", true)), 0);
    world.send(&watcher, &request(9, op::DELETE, &delete("/a/b")));
    let all = world.all(&mut watcher);
    assert_eq!(
        all[..2].iter().map(|reply| reply.event()).collect::<Vec<_>>(),
        [(2, 3, "/a/b".to_owned()), (4, 3, "/a".to_owned())]
    );
    assert_eq!((all[2].xid, all[2].error, all.len()), (9, 0, 3));
}

#[test]
fn a_notification_comes_before_any_read_that_shows_what_came_after_it() {
    let (mut world, mut watcher, mut other) = two();
    world.create(&mut other, "/y");
    for round in 0..100 {
        assert_eq!(world.error(&mut watcher, op::GET_DATA, &path_watch("/a", true)), 0);
        world.send(&other, &request(round, op::SET_DATA, &set_data("/a", "x")));
        world.send(&other, &request(round, op::SET_DATA, &set_data("/y", &round.to_string())));
        world.send(&watcher, &request(round, op::GET_DATA, &path_watch("/y", false)));
        world.send(&watcher, &request(round, op::GET_DATA, &path_watch("/y", false)));
        let mut told = false;
        for reply in world.all(&mut watcher) {
            match reply.xid {
                -1 => told = true,
                _ => assert!(told || reply.data().0 != round.to_string().as_bytes(), "news before the notification"),
            }
        }
        assert!(told);
        world.all(&mut other);
    }
}

fn add_watch(path: &str, mode: i32) -> Vec<u8> {
    body(|out| {
        out.text(path).i32(mode);
    })
}

#[test]
fn persistent_watches_stay_and_recursive_ones_hear_the_subtree() {
    let (mut world, mut watcher, mut other) = two();
    let mut recursive = world.connect(1);
    let reply = world.ask(&mut watcher, op::ADD_WATCH, &add_watch("/a", 0));
    assert_eq!((reply.error, reply.body), (0, vec![0; 4]));
    assert_eq!(world.error(&mut recursive, op::ADD_WATCH, &add_watch("/a", 1)), 0);
    assert_eq!(world.error(&mut watcher, op::ADD_WATCH, &add_watch("/a", 2)), -5);
    world.create(&mut other, "/a/b");
    world.create(&mut other, "/a/b/c");
    for _ in 0..3 {
        world.ask(&mut other, op::SET_DATA, &set_data("/a", "x"));
    }
    world.ask(&mut other, op::SET_DATA, &set_data("/a/b/c", "x"));
    world.ask(&mut other, op::DELETE, &delete("/a/b/c"));
    let data = || event(3, "/a");
    assert_eq!(world.events(&mut watcher), [event(4, "/a"), data(), data(), data()]);
    let expected =
        [event(1, "/a/b"), event(1, "/a/b/c"), data(), data(), data(), event(3, "/a/b/c"), event(2, "/a/b/c")];
    assert_eq!(world.events(&mut recursive), expected);
}

#[test]
fn watches_can_be_looked_up_and_removed_type_by_type() {
    let (mut world, mut watcher, mut other) = two();
    assert_eq!(world.error(&mut watcher, op::GET_DATA, &path_watch("/a", true)), 0);
    assert_eq!(world.error(&mut watcher, op::GET_CHILDREN, &path_watch("/a", true)), 0);
    assert_eq!(world.error(&mut watcher, op::ADD_WATCH, &add_watch("/a", 1)), 0);
    // In one go: what is looked up waits for the reads before it.
    world.send(&watcher, &request(40, op::EXISTS, &path_watch("/none", true)));
    world.send(&watcher, &request(41, op::CHECK_WATCHES, &add_watch("/none", 2)));
    world.send(&watcher, &request(42, op::REMOVE_WATCHES, &add_watch("/none", 3)));
    world.send(&watcher, &request(43, op::EXISTS, &path_watch("/none", true)));
    world.send(&watcher, &request(44, op::REMOVE_WATCHES, &add_watch("/none", 1)));
    let errors: Vec<_> = world.all(&mut watcher).iter().map(|reply| (reply.xid, reply.error)).collect();
    assert_eq!(errors, [(40, -101), (41, 0), (42, 0), (43, -101), (44, -121)]);
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6].map(|kind| world.error(&mut watcher, op::CHECK_WATCHES, &add_watch("/a", kind))),
        [-5, 0, 0, 0, -121, 0, -5]
    );
    assert_eq!(world.error(&mut watcher, op::REMOVE_WATCHES, &add_watch("/a", 2)), 0);
    assert_eq!(world.error(&mut watcher, op::REMOVE_WATCHES, &add_watch("/a", 2)), -121);
    assert_eq!(world.error(&mut watcher, op::REMOVE_WATCHES, &add_watch("/a", 5)), 0);
    world.ask(&mut other, op::SET_DATA, &set_data("/a", "x"));
    world.create(&mut other, "/a/b");
    assert_eq!(world.events(&mut watcher), [event(4, "/a")], "the child watch is left");
}

fn set_watches(zxid: i64, lists: [&[&str]; 5]) -> Vec<u8> {
    body(|out| {
        out.i64(zxid);
        for list in lists {
            out.texts(list.iter());
        }
    })
}

#[test]
fn a_client_that_comes_back_hears_at_once_what_it_missed_and_later_the_rest() {
    let (mut world, mut watcher, mut other) = two();
    world.create(&mut other, "/same");
    world.create(&mut other, "/gone");
    let zxid = world.ask(&mut watcher, op::EXISTS, &path_watch("/", false)).zxid;
    world.desk.hang_up(watcher.client);
    world.ask(&mut other, op::SET_DATA, &set_data("/a", "x"));
    world.ask(&mut other, op::DELETE, &delete("/gone"));
    world.create(&mut other, "/born");
    world.create(&mut other, "/a/child");

    let mut back = world.reattach(0, &watcher, zxid);
    let lists: [&[&str]; 5] =
        [&["/a", "/same", "/gone"], &["/born", "/unborn"], &["/a", "/same", "/gone"], &["/p"], &["/r"]];
    world.send(&back, &request(-8, op::SET_WATCHES2, &set_watches(zxid, lists)));
    let all = world.all(&mut back);
    let (reply, events) = all.split_last().unwrap();
    assert_eq!((reply.xid, reply.error, reply.body.len()), (-8, 0, 0));
    assert!(events.iter().all(|event| event.zxid == -1));
    let events: Vec<_> = events.iter().map(|event| (event.event().0, event.event().2)).collect();
    assert_eq!(events, [event(3, "/a"), event(2, "/gone"), event(1, "/born"), event(4, "/a"), event(2, "/gone")]);

    world.ask(&mut other, op::SET_DATA, &set_data("/a", "y"));
    world.create(&mut other, "/gone");
    assert_eq!(world.events(&mut back), [], "what fired is not watched any more");
    world.create(&mut other, "/unborn");
    world.create(&mut other, "/same/child");
    world.ask(&mut other, op::SET_DATA, &set_data("/same", "y"));
    world.create(&mut other, "/p");
    world.create(&mut other, "/r");
    world.create(&mut other, "/r/below");
    let expected = [
        event(1, "/unborn"),
        event(4, "/same"),
        event(3, "/same"),
        event(1, "/p"),
        event(1, "/r"),
        event(1, "/r/below"),
    ];
    assert_eq!(world.events(&mut back), expected);
}

#[test]
fn watches_of_a_connection_that_ends_vanish() {
    let (mut world, mut watcher, mut other) = two();
    for (operation, rest) in [(op::GET_DATA, path_watch("/a", true)), (op::ADD_WATCH, add_watch("/a", 0))] {
        assert_eq!(world.error(&mut watcher, operation, &rest), 0);
    }
    assert!(world.word(1, "wchs").contains("Total watches:1"));
    world.desk.hang_up(watcher.client);
    world.desk.run();
    assert_eq!(world.word(1, "wchs"), "0 connections watching 0 paths\nTotal watches:0\n");
    let mut back = world.reattach(1, &watcher, 0);
    world.ask(&mut other, op::SET_DATA, &set_data("/a", "x"));
    assert_eq!(world.events(&mut back), [], "the client brings them back itself");
}

#[test]
fn who_may_not_read_a_node_hears_nothing_of_it() {
    let (mut world, mut watcher, mut other) = two();
    let auth = |user: &str| {
        body(|out| {
            out.i32(0).text("digest").text(user);
        })
    };
    assert_eq!(world.error(&mut other, op::AUTH, &auth("me:secret")), 0);
    assert_eq!(world.error(&mut watcher, op::ADD_WATCH, &add_watch("/a", 1)), 0);
    let secret = body(|out| {
        out.text("/a/secret").text("").count(1).i32(31).text("auth").text("").i32(0);
    });
    assert_eq!(world.error(&mut other, op::CREATE, &secret), 0);
    world.create(&mut other, "/a/open");
    assert_eq!(world.events(&mut watcher), [event(1, "/a/open")]);
    assert_eq!(world.error(&mut watcher, op::AUTH, &auth("me:secret")), 0);
    world.ask(&mut other, op::SET_DATA, &set_data("/a/secret", "x"));
    assert_eq!(world.events(&mut watcher), [event(3, "/a/secret")]);
}

#[test]
fn the_end_of_a_session_is_heard_once_per_ephemeral_node() {
    let (mut world, mut watcher, mut other) = two();
    for at in 0..20 {
        assert_eq!(world.error(&mut other, op::CREATE, &create(&format!("/e{at:02}"), "", 1)), 0);
        assert_eq!(world.error(&mut watcher, op::EXISTS, &path_watch(&format!("/e{at:02}"), true)), 0);
    }
    assert_eq!(world.error(&mut other, op::CLOSE_SESSION, &[]), 0);
    let zxid = world.desk.last() as i64;
    let all = world.all(&mut watcher);
    assert!(all.iter().all(|event| event.zxid == zxid && event.event().0 == 2));
    assert_eq!(all.len(), 20);
}
