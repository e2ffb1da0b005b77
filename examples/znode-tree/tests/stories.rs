//! The tree as clients meet it, one story a test. Each step runs on three replicas that are compared
//! (see `statehouse_sdk::testing`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use statehouse_sdk::Snapshot;
use support::*;
use znode_tree::ZnodeTree;
use znode_tree::call;
use znode_tree::jute::Reader;
use znode_tree::jute::Writer;
use znode_tree::wire::Stat;
use znode_tree::wire::op;

#[test]
fn a_node_lives_as_in_zookeeper() {
    let mut group = Group::new("{}");
    let now = group.harness.now_ms() as i64;
    assert_eq!(path_in(&group.ok(&create("/a", b"one", 0))), "/a");
    let czxid = group.harness.index() as i64;
    assert_eq!(group.events(), ["created /a", "children /"]);
    let fresh = Stat { czxid, mzxid: czxid, pzxid: czxid, ctime: now, mtime: now, data_length: 3, ..Stat::default() };
    assert_eq!(group.stat("/a"), fresh);

    group.harness.advance(5);
    let body = group.ok(&set_data("/a", b"second", 0));
    let mzxid = group.harness.index() as i64;
    let set = Stat { mzxid, mtime: now + 5, version: 1, data_length: 6, ..fresh };
    assert_eq!(stat_in(&body, |_| {}), set);
    assert_eq!(group.events(), ["data /a"]);

    group.ok(&create("/a/b", b"", 0));
    group.ok(&create("/a/c", b"", 0));
    let pzxid = group.harness.index() as i64;
    assert_eq!(group.stat("/a"), Stat { pzxid, cversion: 2, num_children: 2, ..set });
    assert_eq!(group.children("/a"), ["b", "c"]);
    group.events();
    group.ok(&delete("/a/b", 0));
    assert_eq!(group.events(), ["deleted /a/b", "children /a"]);
    let pzxid = group.harness.index() as i64;
    assert_eq!(group.stat("/a"), Stat { pzxid, cversion: 3, num_children: 1, ..set });

    group.ok(&set_acl("/a", OPEN, 0));
    assert_eq!(group.stat("/a").aversion, 1);
    assert!(group.events().is_empty(), "no watch waits for an ACL");
    assert_eq!(group.data("/a"), "second");
}

#[test]
fn the_nodes_of_zookeepers_own_are_as_in_zookeeper() {
    let mut group = Group::new("{}");
    assert_eq!(group.stat("/"), Stat { cversion: -1, num_children: 1, ..Stat::default() });
    assert_eq!(group.stat(""), group.stat("/"), "ZooKeeper has its root at both");
    assert_eq!(group.stat("/zookeeper"), Stat { cversion: -2, num_children: 2, ..Stat::default() });
    assert_eq!(group.children("/zookeeper"), ["quota", "config"]);
    assert_eq!(group.stat("/zookeeper/config"), Stat { aversion: -1, ..Stat::default() });
    assert_eq!(group.write(&set_data("/zookeeper/config", b"", -1)), -102);
    for path in ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"] {
        assert_eq!(group.write(&delete(path, -1)), -8, "{path}");
    }
    assert_eq!(group.write(&create("/", b"", 0)), -110);
    // The host tells who the members are.
    let members = |text: &str| (call::own::SET_CONFIG, record(|out| _ = out.text(text)));
    group.ok(&members("server.1=a:1:2:participant;0.0.0.0:2181\n"));
    let zxid = group.harness.index();
    group.ok(&members("server.1=a:1:2:participant;0.0.0.0:2181\n"));
    assert_eq!(group.events(), ["data /zookeeper/config"]);
    let config = format!("server.1=a:1:2:participant;0.0.0.0:2181\nversion={zxid:x}");
    assert_eq!(group.data("/zookeeper/config"), config);
    group.ok(&members(""));
    assert_eq!(group.events(), ["data /zookeeper/config"]);
}

#[test]
fn the_earlier_check_wins() {
    let mut group = Group::new("{}");
    group.ok(&create("/a", b"", 0));
    group.ok(&create("/a/b", b"", 0));
    group.ok(&create_with("/locked", &[(1, "world", "anyone")]));
    group.ok(&create("/e", b"", EPHEMERAL));
    let bad_acl = |path: &str| create_with(path, &[]);
    let steps: &[(&str, i32, Request)] = &[
        ("flags before the path", -8, create("no slash", b"", 77)),
        ("TTL is off, before the path", -6, create_ttl("no slash", 5, 1)),
        ("no slash before the ACL", -8, bad_acl("a")),
        ("the ACL before the parent", -114, bad_acl("/none/x")),
        ("the parent before the path", -101, create("/none//x", b"", 0)),
        ("the permission before the path", -102, create("/locked/..", b"", 0)),
        ("the path before the node", -8, create("/a/", b"", 0)),
        ("a child of an ephemeral", -108, create("/e/x", b"", 0)),
        ("the node before its ephemeral parent", -110, create("/a", b"", EPHEMERAL)),
        ("delete: the permission before the node", -102, delete("/locked/none", -1)),
        ("delete: the node before the version", -101, delete("/none", 7)),
        ("delete: the parent before the node", -101, delete("/none/x", 7)),
        ("delete: the version before the children", -103, delete("/a", 7)),
        ("delete: the children", -111, delete("/a", 0)),
        ("setData: the path before the node", -8, set_data("/a/", b"", 0)),
        ("setData: the permission before the version", -102, set_data("/locked", b"", 7)),
        ("setData: the version", -103, set_data("/a", b"", 7)),
        ("setACL: the ACL before the node", -114, set_acl("/none", &[], 0)),
        ("setACL: the permission before the version", -102, set_acl("/locked", OPEN, 7)),
        ("setACL: the version", -103, set_acl("/a", OPEN, 7)),
        ("check is for a multi", -6, check("/a", 0)),
        ("no such operation", -6, (9_999, vec![])),
        ("a read is no command", -6, read(op::GET_DATA, "/a")),
        ("cut off", -5, (op::CREATE, b"\0\0\0\x09/a".to_vec())),
        ("a null path", -5, (op::DELETE, b"\xff\xff\xff\xff\0\0\0\0".to_vec())),
    ];
    let before = group.harness.snapshot();
    for (story, expected, request) in steps {
        assert_eq!(group.write(request), *expected, "{story}");
        assert_eq!(group.harness.snapshot(), before, "{story}: it has changed something");
    }
    assert!(group.events().iter().all(|event| !event.contains("none")));
    assert_eq!(group.write_as(0, &[], &create("/x", b"", EPHEMERAL)).0, -112, "an ephemeral of no session");
}

#[test]
fn sequence_numbers_count_what_was_ever_created() {
    let mut group = Group::new("{}");
    group.ok(&create("/q", b"", 0));
    let next = |group: &mut Group, prefix| path_in(&group.ok(&create(prefix, b"", SEQUENTIAL)));
    assert_eq!(next(&mut group, "/q/n-"), "/q/n-0000000000");
    assert_eq!(next(&mut group, "/q/"), "/q/0000000001");
    group.ok(&create("/q/plain", b"", 0));
    group.ok(&delete("/q/n-0000000000", -1));
    assert_eq!(next(&mut group, "/q/n-"), "/q/n-0000000003", "deletions do not count");
    group.ok(&create("/q/n-0000000005", b"", 0));
    assert_eq!(group.write(&create("/q/n-", b"", SEQUENTIAL)), -110, "the name is taken");
    assert_eq!(group.write(&create("/q/n-", b"", SEQUENTIAL)), -110, "and the number stays");
    assert_eq!(next(&mut group, "/q/m-"), "/q/m-0000000005");
}

#[test]
fn numbers_may_be_as_large_as_they_get() {
    let mut plain = Plain::new("{}");
    plain.header.index = 1 << 33;
    plain.write(1, &[], &create("/q", b"", 0));
    // Two thousand million creations later.
    let mut bytes = plain.snapshot();
    let zxid = ((1_i64 << 33) + 1).to_be_bytes();
    let at = bytes.windows(8).rposition(|window| window == zxid).unwrap() - 1;
    // From a node that never had children to one that had: flags, and its numbers behind the times.
    assert_eq!(bytes[at], 1);
    bytes[at] = 5;
    let numbers = record(|out| _ = out.raw(&zxid).i32(i32::MAX).i32(0).i32(0));
    bytes.splice(at + 17..at + 17, numbers);
    plain.machine = statehouse_sdk::Snapshot::restore(&mut &bytes[..]).unwrap();
    let mut next = || {
        let (code, body) = plain.write(1, &[], &create("/q/n", b"", SEQUENTIAL));
        assert_eq!(code, 0);
        path_in(&body)
    };
    assert_eq!([next(), next(), next()], ["/q/n2147483647", "/q/n-2147483648", "/q/n-2147483647"]);
    let (_, body) = plain.read(1, &[], &read(op::EXISTS, "/q"));
    let stat = stat_in(&body, |_| {});
    assert_eq!((stat.czxid, stat.num_children), ((1 << 33) + 1, 3));
}

#[test]
fn ephemerals_go_with_their_session_in_one_entry() {
    let mut group = Group::new("{}");
    let (mine, other) = (group.harness.open_session(), group.harness.open_session());
    group.ok(&create("/s", b"", 0));
    for (session, name) in [(mine, "c"), (other, "b"), (mine, "a"), (mine, "d")] {
        assert_eq!(group.write_as(session, &[], &create(&format!("/s/{name}"), b"", EPHEMERAL)).0, 0);
    }
    assert_eq!(group.stat("/s/a").ephemeral_owner, mine as i64);
    group.ok(&delete("/s/d", -1));
    group.events();
    group.harness.end_session(mine);
    let zxid = group.harness.index() as i64;
    let oldest_first = ["deleted /s/c", "children /s", "deleted /s/a", "children /s"];
    assert_eq!(group.events(), oldest_first);
    assert_eq!(group.children("/s"), ["b"]);
    assert_eq!((group.stat("/s").pzxid, group.stat("/s").cversion), (zxid, 7));
    group.harness.end_session(77);
    assert!(group.events().is_empty());
}

/// Which nodes go in the first entry, and in which order, must not depend on how a replica came to its state.
#[test]
fn a_session_with_very_many_ephemerals_ends_in_several_entries_alike_on_all_replicas() {
    let mut plain = Plain::new("{}");
    let part = |number: u32| create(&format!("/e{:06}", number.wrapping_mul(7_919) % 1_000_000), b"", EPHEMERAL);
    for first in (0..60_000).step_by(5_000) {
        let parts: Vec<_> = (first..first + 5_000).map(part).collect();
        assert_eq!(plain.write(5, &[], &multi(&parts)).0, 0);
    }
    // One that was there before, so that the other replica keeps its nodes at other places.
    plain.write(1, &[], &delete("/e000000", -1));
    let mut other = Plain::new("{}");
    other.machine = ZnodeTree::restore(&mut &plain.snapshot()[..]).unwrap();
    other.header = plain.header;
    let mut entries = 0;
    while plain.machine.tree().owns_nodes(5) {
        for replica in [&mut plain, &mut other] {
            match entries {
                0 => replica.end_session(5),
                _ => replica.fire(2),
            }
        }
        assert_eq!(plain.events(), other.events(), "entry {entries}");
        assert_eq!(plain.effects.timers, other.effects.timers);
        assert_eq!(plain.effects.timers.is_empty(), !plain.machine.tree().owns_nodes(5));
        entries += 1;
    }
    assert_eq!((entries, plain.machine.tree().node_count()), (2, 4));
    assert_eq!(plain.snapshot(), other.snapshot());
}

#[test]
fn a_session_asks_for_its_ephemerals() {
    let mut plain = Plain::new("{}");
    for (session, path) in [(5, "/ab"), (5, "/ac"), (6, "/b"), (5, "/b2")] {
        assert_eq!(plain.write(session, &[], &create(path, b"", EPHEMERAL)).0, 0);
    }
    let mut ask = |session, prefix: &str| {
        let (code, body) = plain.read(session, &[], &(op::GET_EPHEMERALS, record(|out| _ = out.text(prefix))));
        assert_eq!(code, 0);
        Reader::new(&body).texts().unwrap().join(" ")
    };
    assert_eq!(ask(5, "/"), "/ab /ac /b2");
    assert_eq!(ask(5, "/a"), "/ab /ac");
    assert_eq!(ask(6, " "), "/b");
    assert_eq!(ask(7, "/"), "");
    let (_, body) = plain.read(0, &[], &(call::own::EPHEMERALS, vec![]));
    let mut reader = Reader::new(&body);
    assert_eq!(reader.count(), Ok(Some(2)));
    assert_eq!((reader.i64(), reader.texts().unwrap().len()), (Ok(5), 3));
    assert_eq!((reader.i64(), reader.texts().unwrap()), (Ok(6), vec!["/b"]));
    let (_, body) = plain.read(0, &[], &(call::own::STATUS, vec![]));
    let mut reader = Reader::new(&body);
    let numbers: Vec<_> = (0..5).map(|_| reader.i64().unwrap()).collect();
    // Eight nodes: the root, ZooKeeper's three, four ephemerals.
    assert_eq!(numbers[..4], [8, 4, 2, 0]);
    assert_eq!(
        numbers[4],
        ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config", "/ab", "/ac", "/b", "/b2"].concat().len() as i64
    );
}

#[test]
fn a_container_goes_after_its_last_child() {
    let mut group = Group::new("{}");
    let container = |path| create_as(op::CREATE_CONTAINER, path, b"", 4);
    let body = group.ok(&container("/c"));
    let stat = stat_in(&body, |reader| _ = reader.text());
    assert_eq!(stat.ephemeral_owner, 0, "ZooKeeper does not tell");
    group.ok(&container("/unused"));
    group.ok(&create("/c/x", b"", 0));
    assert!(group.harness.timers().is_empty(), "nothing waits: an idle group writes nothing");
    group.ok(&delete("/c/x", -1));
    group.events();
    group.harness.restart();
    assert_eq!(group.harness.advance(60_000), 1);
    assert_eq!(group.events(), ["deleted /c", "children /"]);
    assert!(group.exists("/unused"));
    assert_eq!(group.harness.advance(600_000), 0);
    // A child that comes in time saves it.
    group.ok(&container("/d"));
    group.ok(&create("/d/x", b"", 0));
    group.ok(&delete("/d/x", -1));
    group.ok(&create("/d/y", b"", 0));
    group.harness.advance(120_000);
    assert!(group.exists("/d"));
    // ZooKeeper's own request, from a client.
    assert_eq!(group.write(&(op::DELETE_CONTAINER, record(|out| _ = out.text("/d")))), -111);
    assert_eq!(group.write(&(op::DELETE_CONTAINER, record(|out| _ = out.text("/d/y")))), -103);
}

#[test]
fn a_container_that_was_never_used_goes_if_it_is_wanted() {
    let mut group = Group::new(r#"{"container_max_never_used_ms":300000}"#);
    group.ok(&create_as(op::CREATE_CONTAINER, "/c", b"", 4));
    group.harness.advance(240_000);
    assert!(group.exists("/c"));
    group.harness.advance(121_000);
    assert!(!group.exists("/c"));
}

#[test]
fn a_node_with_a_ttl_goes_when_nothing_happens_to_it() {
    let mut group = Group::new(r#"{"extended_types":true,"container_check_interval_ms":1000}"#);
    for (ttl, flags) in [(0, 5), (-1, 5), (1 << 40, 5), (5, 0), (5, 1)] {
        assert_eq!(group.write(&create_ttl("/t", flags, ttl)), -8, "{ttl} {flags}");
    }
    assert_eq!(group.write(&create("/t", b"", 5)), -8, "create has no TTL");
    let body = group.ok(&create_ttl("/t", 5, 2_000));
    let stat = stat_in(&body, |reader| _ = reader.text());
    assert_eq!(stat.ephemeral_owner, 0, "ZooKeeper does not tell");
    group.harness.advance(1_900);
    group.ok(&set_data("/t", b"", -1));
    group.harness.advance(1_900);
    assert!(group.exists("/t"), "the write has prolonged it");
    group.ok(&create("/t/child", b"", 0));
    group.harness.advance(10_000);
    group.ok(&delete("/t/child", -1));
    assert!(group.exists("/t"), "the child has protected it");
    group.events();
    group.harness.advance(1_000);
    assert_eq!(group.events(), ["deleted /t", "children /"]);
    let path = path_in(&group.ok(&create_ttl("/n-", 6, 1)));
    assert_eq!(path, "/n-0000000001");
    assert!(group.harness.timers().len() == 1);
    group.harness.advance(2_000);
    assert!(group.harness.timers().is_empty());
}

#[test]
fn thousands_that_expire_together_are_several_entries() {
    let mut plain = Plain::new(r#"{"extended_types":true}"#);
    for number in 0..2_500 {
        assert_eq!(plain.write(1, &[], &create_ttl(&format!("/t{number}"), 5, 1)).0, 0);
    }
    let mut counts = Vec::new();
    plain.header.time_ms += 60_000;
    while plain.machine.tree().node_count() > 4 {
        let before = plain.machine.tree().node_count();
        plain.fire(1);
        counts.push(before - plain.machine.tree().node_count());
        let again = [(1, Some(plain.header.time_ms))];
        assert_eq!(plain.effects.timers == again, plain.machine.tree().node_count() > 4);
    }
    assert_eq!(counts, [1_000, 1_000, 500]);
}

/// What goes by itself is told to watchers; long paths would be more than the host takes of one entry.
#[test]
fn long_paths_that_expire_together_stay_below_what_an_entry_may_tell() {
    let mut plain = Plain::new(r#"{"extended_types":true}"#);
    let top = format!("/{}", "long".repeat(50_000));
    plain.write(1, &[], &create(&top, b"", 0));
    for number in 0..100 {
        assert_eq!(plain.write(1, &[], &create_ttl(&format!("{top}/t{number}"), 5, 1)).0, 0);
    }
    plain.header.time_ms += 60_000;
    let mut entries = 0;
    while plain.machine.tree().first_due().is_some() {
        plain.fire(1);
        entries += 1;
        assert!(plain.effects.events.iter().all(|event| event.len() < 1 << 20));
        assert!(plain.effects.events.iter().map(Vec::len).sum::<usize>() < 16 << 20);
        assert_eq!(plain.effects.timers.is_empty(), plain.machine.tree().first_due().is_none());
    }
    assert!(entries > 2, "{entries}");
}

#[test]
fn a_client_that_comes_back_is_told_what_it_missed() {
    let mut group = Group::new("{}");
    for path in ["/same", "/set", "/gone", "/parent"] {
        group.ok(&create(path, b"", 0));
    }
    let seen = group.harness.index() as i64;
    group.ok(&set_data("/set", b"", -1));
    group.ok(&delete("/gone", -1));
    group.ok(&create("/parent/child", b"", 0));
    let body = record(|out| {
        out.i64(seen);
        out.texts(["/same", "/set", "/gone"].iter());
        out.texts(["/none", "/same"].iter());
        out.texts(["/same", "/parent", "/gone"].iter());
    });
    let with_persistent = [body.clone(), record(|out| _ = out.count(0).texts(["/a"].iter()))].concat();
    for request in [(op::SET_WATCHES, body), (op::SET_WATCHES2, with_persistent)] {
        let (code, body) = group.read(&request);
        assert_eq!(code, 0);
        use znode_tree::wire::EventType::*;
        assert_eq!(
            call::read_missed(&body).unwrap(),
            [
                (NodeDataChanged, "/set"),
                (NodeDeleted, "/gone"),
                (NodeCreated, "/same"),
                (NodeChildrenChanged, "/parent"),
                (NodeDeleted, "/gone"),
            ]
        );
    }
    let add_watch = |mode| (op::ADD_WATCH, record(|out| _ = out.text("/a").i32(mode)));
    assert_eq!(group.read(&add_watch(1)), (0, vec![0; 4]));
    assert_eq!(group.read(&add_watch(2)).0, -5);
}

#[test]
fn a_quota_counts_and_refuses() {
    let mut group = Group::new(r#"{"enforce_quota":true}"#);
    group.ok(&create("/a", b"12", 0));
    group.ok(&create("/a/b", b"345", 0));
    group.ok(&create("/zookeeper/quota/a", b"", 0));
    let limits = "/zookeeper/quota/a/zookeeper_limits";
    let stats = "/zookeeper/quota/a/zookeeper_stats";
    group.ok(&create(limits, b"count=1,bytes=1=;byteHardLimit=10;countHardLimit=4", 0));
    group.ok(&create(stats, b"count=0,bytes=0", 0));
    assert_eq!(group.data(stats), "count=2,bytes=5", "what was there is counted");
    group.ok(&create("/a/c", b"6", 0));
    assert_eq!(group.data(stats), "count=3,bytes=6", "the soft limit only warns");
    assert_eq!(group.write(&create("/a/d", b"12345", 0)), -125);
    group.ok(&create("/a/d", b"1234", 0));
    assert_eq!(group.write(&create("/a/e", b"", 0)), -125);
    assert_eq!(group.write(&set_data("/a", b"123", -1)), -125);
    group.ok(&set_data("/a/d", b"", -1));
    group.ok(&delete("/a/c", -1));
    assert_eq!(group.data(stats), "count=3,bytes=5");
    assert_eq!(group.stat(stats).version, 0, "counting is no write");
    let failing = multi(&[create("/a/x", b"1", 0), delete("/none", -1)]);
    group.ok(&failing);
    assert_eq!(group.data(stats), "count=3,bytes=5", "a multi that failed has counted nothing");
    group.events();
    group.ok(&delete(limits, -1));
    assert_eq!(group.write(&create("/a/e", &[0; 100], 0)), 0, "without limits there is no quota");
}

#[test]
fn whoever_has_no_permission_is_refused_and_told_little() {
    let anna = &[("digest", "anna:hash")][..];
    let bert = &[("ip", "10.0.0.9"), ("digest", "bert:hash")][..];
    let root = &[("super", ""), ("digest", "super:x")][..];
    let mut group = Group::new("{}");
    let list = [(31, "auth", ""), (1, "ip", "10.0.0.0/24")];
    assert_eq!(group.write_as(1, anna, &create_with("/p", &list)).0, 0);
    assert_eq!(group.events(), ["created /p (anna:hash) (10.0.0.0/24)", "children /"]);
    assert_eq!(group.write_as(1, &[], &create_with("/q", &list)).0, -114);

    for (who, reads, writes) in [(anna, 0, 0), (bert, 0, -102), (root, 0, 0), (&[], -102, -102)] {
        for operation in [op::GET_DATA, op::EXISTS, op::GET_CHILDREN, op::GET_CHILDREN2] {
            assert_eq!(group.read_as(who, &read(operation, "/p")).0, reads, "{who:?} {operation}");
        }
        assert_eq!(group.write_as(1, who, &set_data("/p", b"", -1)).0, writes, "{who:?}");
        assert_eq!(group.write_as(1, who, &create("/p/x", b"", 0)).0, writes, "{who:?}");
        assert_eq!(group.write_as(1, who, &delete("/p/x", -1)).0, writes, "{who:?}");
        assert_eq!(group.write_as(1, who, &delete("/p/none", -1)).0, if writes == 0 { -101 } else { -102 });
    }
    assert_eq!(
        group.events()[..3],
        ["data /p (anna:hash) (10.0.0.0/24)", "created /p/x", "children /p (anna:hash) (10.0.0.0/24)"]
    );
    let mut ids = |who| {
        let (code, body) = group.read_as(who, &(op::GET_ACL, record(|out| _ = out.text("/p"))));
        assert_eq!(code, 0);
        let entries = znode_tree::wire::AclEntry::read_all(&mut Reader::new(&body)).unwrap();
        entries.iter().map(|entry| entry.id.unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(anna), ["anna:hash", "10.0.0.0/24"]);
    assert_eq!(ids(bert), ["anna:x", "10.0.0.0/24"], "the hash is for those who may change it");
    let may_read = (call::own::MAY_READ, record(|out| _ = out.texts(["/p", "/", "/none"].iter())));
    assert_eq!(group.read_as(anna, &may_read), (0, vec![1, 1, 2]));
    assert_eq!(group.read_as(&[], &may_read), (0, vec![0, 1, 2]));

    let mut careless = Group::new(r#"{"skip_acl":true}"#);
    careless.ok(&create_with("/p", &[(1, "digest", "anna:hash")]));
    careless.ok(&set_data("/p", b"", -1));
    assert_eq!(careless.events(), ["created /p", "children /", "data /p"]);
}

#[test]
fn every_operation_asks_for_its_own_permission() {
    let mut group = Group::new("{}");
    for bit in [1, 2, 4, 8, 16] {
        let path = format!("/p{bit}");
        let below = format!("{path}/x");
        group.ok(&create(&path, b"", 0));
        group.ok(&create(&below, b"", 0));
        group.ok(&set_acl(&path, &[(bit, "world", "anyone")], -1));
        let expected = |wanted: i32| if bit & wanted != 0 { 0 } else { -102 };
        let get_acl = (op::GET_ACL, record(|out| _ = out.text(&path)));
        let count = (op::GET_ALL_CHILDREN_NUMBER, record(|out| _ = out.text(&path)));
        for (request, wanted) in [
            (read(op::GET_DATA, &path), 1),
            (read(op::EXISTS, &path), 1),
            (read(op::GET_CHILDREN2, &path), 1),
            (get_acl, 1 | 16),
            (count, 1),
        ] {
            assert_eq!(group.read(&request).0, expected(wanted), "{bit}: {request:?}");
        }
        for (request, wanted) in [
            (set_data(&path, b"", -1), 2),
            (create(&format!("{path}/y"), b"", 0), 4),
            (delete(&below, -1), 8),
            (set_acl(&path, &[(bit, "world", "anyone")], -1), 16),
        ] {
            assert_eq!(group.write(&request), expected(wanted), "{bit}: {request:?}");
        }
        let (_, body) = group.write_as(1, &[], &multi(&[check(&path, -1)]));
        assert_eq!(Reader::new(&body).i32().unwrap(), if bit == 1 { op::CHECK } else { -1 });
    }
}

/// As in ZooKeeper, which reads U+FFFD there: no node can have such a name.
#[test]
fn a_path_that_is_not_utf8_is_no_nodes() {
    let mut group = Group::new("{}");
    let garbled = |(operation, mut body): Request| {
        body[5] = 0xff;
        (operation, body)
    };
    assert_eq!(group.write(&garbled(create("/n", b"", 0))), -8);
    assert_eq!(group.write(&garbled(set_data("/n", b"", -1))), -8);
    assert_eq!(group.write(&garbled(delete("/n", -1))), -101);
    assert_eq!(group.read(&garbled(read(op::GET_DATA, "/n"))).0, -101);
}

#[test]
fn null_data_stays_null() {
    let mut group = Group::new("{}");
    let null = record(|out| {
        out.text("/n").buffer(None);
        acl(out, OPEN);
        out.i32(0);
    });
    group.ok(&(op::CREATE, null));
    let (_, body) = group.read(&read(op::GET_DATA, "/n"));
    assert_eq!(body[..4], [0xff; 4]);
    group.ok(&set_data("/n", b"", -1));
    let (_, body) = group.read(&read(op::GET_DATA, "/n"));
    assert_eq!(body[..4], [0; 4]);
}

#[test]
fn below_a_node_are_all_its_descendants() {
    let mut group = Group::new("{}");
    for path in ["/a", "/a/b", "/a/b/c", "/a/d", "/ab"] {
        group.ok(&create(path, b"", 0));
    }
    let mut count = |path: &str| {
        let (code, body) = group.read(&(op::GET_ALL_CHILDREN_NUMBER, record(|out| _ = out.text(path))));
        assert_eq!(code, 0);
        Reader::new(&body).i32().unwrap()
    };
    assert_eq!((count("/a"), count("/a/b"), count("/a/d"), count("/")), (3, 1, 0, 8));
    // The root by its other name is one of them.
    assert_eq!(count(""), 9);
}

#[test]
fn params_that_make_no_sense_are_refused() {
    let refused = |params: &str| {
        statehouse_sdk::testing::Harness::<znode_tree::ZnodeTree, statehouse_sdk::codec::Raw>::try_with_params(params)
            .err()
            .map(|reject| reject.text().to_owned())
            .unwrap()
    };
    assert!(refused(r#"{"max_ttl_ms":0}"#).contains("max_ttl_ms is 0"));
    assert!(refused(r#"{"skipACL":true}"#).contains("unknown field `skipACL`"));
    assert!(refused(r#"{"feature_flags":{"fast":true}}"#).contains("there is no \"fast\""));
    assert!(refused(r#"{"compatibility":"etcd"}"#).contains("etcd"));
}

#[test]
fn bytes_that_are_no_call_are_refused() {
    let mut group = Group::new("{}");
    assert!(group.harness.apply_bytes(0, b"").is_err());
    assert!(group.harness.query_bytes(b"\x02\0\0\0\x04").is_err());
    let mut out = Vec::new();
    Writer::new(&mut out).u8(1).i32(op::DELETE).u16(9);
    assert!(group.harness.apply_bytes(0, &out).is_err());
}
