//! The tree as ClickHouse servers meet it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use statehouse_sdk::Snapshot;
use support::*;
use znode_tree::jute::Reader;
use znode_tree::wire::MultiHeader;
use znode_tree::wire::Stat;
use znode_tree::wire::op;

fn group() -> Group {
    Group::new(r#"{"compatibility":"clickhouse","availability_zone":"eu-1a"}"#)
}

fn remove_recursive(path: &str, limit: u32) -> Request {
    (op::REMOVE_RECURSIVE, record(|out| _ = out.text(path).u32(limit)))
}

fn filtered(path: &str, filter: u8) -> Request {
    (op::FILTERED_LIST, record(|out| _ = out.text(path).bool(false).u8(filter)))
}

fn names(body: &[u8]) -> Vec<&str> {
    Reader::new(body).texts().unwrap()
}

#[test]
fn a_server_finds_out_what_it_may_ask() {
    let mut group = group();
    assert_eq!(group.children("/"), ["keeper"]);
    assert_eq!(group.children("/keeper"), ["api_version", "feature_flags", "config", "availability_zone"]);
    assert_eq!(group.data("/keeper/api_version"), "2");
    assert_eq!(group.data("/keeper/availability_zone"), "eu-1a");
    let (_, body) = group.read(&read(op::GET_DATA, "/keeper/feature_flags"));
    assert_eq!(Reader::new(&body).buffer(), Ok(Some(&[0b1111_1111, 0b0111_0000][..])));
    for request in [
        create("/keeper/x", b"", 0),
        create("/keeper", b"", 0),
        set_data("/keeper/config", b"", -1),
        set_acl("/keeper", OPEN, -1),
        delete("/keeper/config", -1),
        check("/keeper", -1),
        remove_recursive("/keeper", 100),
        remove_recursive("/", 100),
    ] {
        assert_eq!(group.write(&request), -8, "{request:?}");
    }
    group.ok(&create("/keepers", b"", 0));
}

#[test]
fn the_members_are_told_without_a_version() {
    let mut group = group();
    for (members, events) in [("server.1=a:1;participant;1", 1), ("server.1=a:1;participant;1", 0), ("server.1=a:1", 1)]
    {
        group.ok(&(znode_tree::call::own::SET_CONFIG, record(|out| _ = out.text(members))));
        assert_eq!((group.data("/keeper/config").as_str(), group.events().len()), (members, events));
    }
}

#[test]
fn zookeeper_knows_none_of_it() {
    let mut group = Group::new("{}");
    assert!(!group.exists("/keeper"));
    assert_eq!(group.write(&remove_recursive("/a", 1)), -6);
    assert_eq!(group.read(&filtered("/", 0)).0, -6);
}

#[test]
fn an_operation_that_was_switched_off_is_unknown() {
    let mut group =
        Group::new(r#"{"compatibility":"clickhouse","feature_flags":{"try_remove":false,"multi_read":false}}"#);
    assert_eq!(group.write(&versioned(op::TRY_REMOVE, "/a", -1)), -6);
    assert_eq!(group.read(&framed(op::MULTI_READ, &[])).0, -6);
    assert_eq!(group.write(&multi(&[create("/a", b"", 0), versioned(op::TRY_REMOVE, "/b", -1)])), -6);
    assert!(!group.exists("/a"));
    let (_, body) = group.read(&read(op::GET_DATA, "/keeper/feature_flags"));
    assert_eq!(Reader::new(&body).buffer(), Ok(Some(&[0b1011_1111, 0b0011_0000][..])));
}

#[test]
fn create_if_not_exists_is_content_with_what_is_there() {
    let mut group = group();
    let again = create_as(op::CREATE_IF_NOT_EXISTS, "/a", b"1", 0);
    for _ in 0..2 {
        assert_eq!(path_in(&group.ok(&again)), "/a");
    }
    assert_eq!(group.events(), ["created /a", "children /"]);
    assert_eq!(group.stat("/").num_children, 2);
    assert_eq!(group.write(&create_as(op::CREATE_IF_NOT_EXISTS, "/a", b"", SEQUENTIAL)), -8);
}

#[test]
fn remove_recursive_takes_all_or_nothing() {
    let mut group = group();
    for path in ["/t", "/t/a", "/t/a/b", "/t/c", "/u"] {
        group.ok(&create(path, b"", 0));
    }
    assert_eq!(group.write_as(7, &[], &create("/t/e", b"", EPHEMERAL)).0, 0);
    group.events();
    assert_eq!(group.write(&remove_recursive("/t", 4)), -111);
    assert_eq!(group.write(&remove_recursive("/t", 0)), -111);
    assert!(group.events().is_empty());
    group.ok(&remove_recursive("/none", 0));
    group.ok(&remove_recursive("/none/none", 0));
    group.ok(&remove_recursive("/t", 5));
    assert_eq!(
        group.events(),
        [
            "deleted /t/e",
            "children /t",
            "deleted /t/c",
            "children /t",
            "deleted /t/a/b",
            "children /t/a",
            "deleted /t/a",
            "children /t",
            "deleted /t",
            "children /",
        ]
    );
    assert_eq!(group.children("/"), ["keeper", "u"]);
    group.harness.end_session(7);
    assert!(group.events().is_empty());

    group.ok(&create("/l", b"", 0));
    group.ok(&create_with("/l/locked", &[(1, "world", "anyone")]));
    assert_eq!(group.write(&remove_recursive("/l", 9)), -102);
    assert!(group.exists("/l/locked"));
}

#[test]
fn try_remove_never_minds() {
    let mut group = group();
    group.ok(&create("/a", b"", 0));
    group.ok(&create("/a/b", b"", 0));
    group.events();
    for request in [("/none", -1), ("/none/none", -1), ("/a", -1), ("/a/b", 7)] {
        group.ok(&versioned(op::TRY_REMOVE, request.0, request.1));
    }
    assert!(group.events().is_empty());
    group.ok(&versioned(op::TRY_REMOVE, "/a/b", 0));
    assert_eq!(group.events(), ["deleted /a/b", "children /a"]);
}

#[test]
fn conditions_of_a_multi() {
    let mut group = group();
    group.ok(&create("/a", b"123", 0));
    let mut result = |condition: Request| {
        let body = group.ok(&multi(&[condition]));
        MultiHeader::read(&mut Reader::new(&body)).unwrap().err
    };
    assert_eq!(result(versioned(op::CHECK_NOT_EXISTS, "/b", -1)), 0);
    assert_eq!(result(versioned(op::CHECK_NOT_EXISTS, "/a", -1)), -110);
    assert_eq!(result(versioned(op::CHECK_NOT_EXISTS, "/a", 0)), -110);
    assert_eq!(result(versioned(op::CHECK_NOT_EXISTS, "/a", 1)), 0);

    let any = Stat {
        czxid: -1,
        mzxid: -1,
        ctime: -1,
        mtime: -1,
        version: -1,
        cversion: -1,
        aversion: -1,
        ephemeral_owner: -1,
        data_length: -1,
        num_children: -1,
        pzxid: -1,
    };
    let check_stat = |stat: Stat| {
        (
            op::CHECK_STAT,
            record(|out| {
                out.text("/a").i32(-1);
                stat.write(out);
            }),
        )
    };
    assert_eq!(result(check_stat(any)), 0);
    assert_eq!(result(check_stat(Stat { data_length: 3, num_children: 0, version: 0, ..any })), 0);
    for wrong in [
        Stat { czxid: 0, ..any },
        Stat { mzxid: 0, ..any },
        Stat { ctime: 0, ..any },
        Stat { mtime: 0, ..any },
        Stat { version: 1, ..any },
        Stat { cversion: 1, ..any },
        Stat { aversion: 1, ..any },
        Stat { ephemeral_owner: 1, ..any },
        Stat { data_length: 1, ..any },
        Stat { num_children: 1, ..any },
        Stat { pzxid: 0, ..any },
    ] {
        assert_eq!(result(check_stat(wrong)), -103, "{wrong:?}");
    }
    // On their own, too.
    assert_eq!(group.write(&check("/a", 0)), 0);
    assert_eq!(group.write(&versioned(op::CHECK_NOT_EXISTS, "/a", -1)), -110);
}

#[test]
fn lists_are_filtered_and_may_tell_more() {
    let mut group = group();
    group.ok(&create("/l", b"", 0));
    group.ok(&create("/l/p", b"persistent", 0));
    group.ok(&create("/l/e", b"ephemeral", EPHEMERAL));
    for (filter, expected) in [(0, &["p", "e"][..]), (1, &["p"]), (2, &["e"])] {
        let (code, body) = group.read(&filtered("/l", filter));
        assert_eq!((code, names(&body)), (0, expected.to_vec()));
        assert_eq!(stat_in(&body, |reader| _ = reader.texts()).num_children, 2);
    }
    assert_eq!(group.read(&filtered("/l", 3)).0, -5);
    for (with_stats, with_data) in [(false, false), (true, false), (false, true), (true, true)] {
        let body = record(|out| _ = out.text("/l").bool(false).u8(2).bool(with_stats).bool(with_data));
        let (code, body) = group.read(&(op::FILTERED_LIST_WITH_STATS_AND_DATA, body));
        assert_eq!(code, 0);
        let mut reader = Reader::new(&body);
        assert_eq!(reader.texts().unwrap(), ["e"]);
        assert_eq!(Stat::read(&mut reader).unwrap().num_children, 2);
        assert_eq!(reader.count(), Ok(Some(u32::from(with_stats))));
        if with_stats {
            assert_eq!(Stat::read(&mut reader).unwrap().data_length, 9);
        }
        assert_eq!(reader.count(), Ok(Some(u32::from(with_data))));
        if with_data {
            assert_eq!(reader.buffer(), Ok(Some(&b"ephemeral"[..])));
        }
        assert!(reader.rest().is_empty());
    }
    // The names are no secret, the rest of a child is.
    group.ok(&set_acl("/l/p", &[(2, "world", "anyone")], -1));
    assert_eq!(group.read(&filtered("/l", 0)).0, 0);
    assert_eq!(group.read(&filtered("/l", 2)).0, -102);
}

#[test]
fn a_recursive_list_goes_breadth_first_and_around_what_is_hidden() {
    let mut group = group();
    for path in ["/t", "/t/a", "/t/a/x", "/t/b", "/t/b/y", "/t/b/y/z"] {
        group.ok(&create(path, b"", 0));
    }
    let mut list = |path: &str, limit| {
        let (code, body) = group.read(&(op::LIST_RECURSIVE, record(|out| _ = out.text(path).u32(limit))));
        assert_eq!(code, 0);
        names(&body).join(" ")
    };
    assert_eq!(list("/t", 100), "/t/a /t/b /t/a/x /t/b/y /t/b/y/z");
    assert_eq!(list("/t", 3), "/t/a /t/b /t/a/x");
    assert_eq!(list("/t", 0), "");
    assert!(list("/", 2).starts_with("/keeper /t"));
    group.ok(&set_acl("/t/b", &[(2, "world", "anyone")], -1));
    let (_, body) = group.read(&(op::LIST_RECURSIVE, record(|out| _ = out.text("/t").u32(100))));
    assert_eq!(names(&body), ["/t/a", "/t/a/x"]);
}

#[test]
fn a_multi_read_takes_lists_as_well() {
    let mut group = group();
    group.ok(&create("/a", b"", 0));
    let (code, body) = group.read(&framed(
        op::MULTI_READ,
        &[
            filtered("/a", 0),
            read(op::EXISTS, "/a"),
            (op::LIST_RECURSIVE, record(|out| _ = out.text("/a").u32(1))),
            (
                op::FILTERED_LIST_WITH_STATS_AND_DATA,
                record(|out| _ = out.text("/").bool(false).u8(0).bool(true).bool(true)),
            ),
            read(op::GET_CHILDREN2, "/none"),
            read(op::GET_DATA, "/a"),
        ],
    ));
    assert_eq!(code, 0, "ClickHouse's list with stats and data was refused, and the other reads with it");
    let mut reader = Reader::new(&body);
    let mut header = || MultiHeader::read(&mut reader).map(|header| (header.op, header.err));
    assert_eq!(header(), Ok((op::GET_CHILDREN2, 0)), "Keeper answers it as a list");
    reader.texts().unwrap();
    Stat::read(&mut reader).unwrap();
    let mut header = || MultiHeader::read(&mut reader).map(|header| (header.op, header.err));
    assert_eq!(header(), Ok((op::EXISTS, 0)));
    Stat::read(&mut reader).unwrap();
    let mut header = || MultiHeader::read(&mut reader).map(|header| (header.op, header.err));
    assert_eq!(header(), Ok((op::LIST_RECURSIVE, 0)));
    assert!(reader.texts().unwrap().is_empty());
    let mut header = || MultiHeader::read(&mut reader).map(|header| (header.op, header.err));
    assert_eq!(header(), Ok((op::FILTERED_LIST_WITH_STATS_AND_DATA, 0)));
    assert_eq!(reader.texts().unwrap(), ["keeper", "a"]);
    Stat::read(&mut reader).unwrap();
    assert_eq!(reader.count(), Ok(Some(2)));
    (0..2).for_each(|_| _ = Stat::read(&mut reader).unwrap());
    assert_eq!(reader.count(), Ok(Some(2)));
    (0..2).for_each(|_| _ = reader.buffer().unwrap());
    let mut header = || MultiHeader::read(&mut reader).map(|header| (header.op, header.err));
    assert_eq!(header(), Ok((op::GET_CHILDREN2, -101)));
    assert_eq!(header(), Ok((op::GET_DATA, 0)));
}

/// ClickHouse 26.9 asked in a multiRead which of a table's keys were there, and failed with `std::bad_cast` when one was not: the
/// answer was headed as an error, as ZooKeeper's is.
#[test]
fn an_entry_of_a_multi_read_that_fails_keeps_its_operation() {
    let mut group = group();
    let asked = [read(op::EXISTS, "/a"), read(op::GET_DATA, "/b"), read(op::GET_CHILDREN, "/c"), filtered("/d", 0)];
    let (code, body) = group.read(&framed(op::MULTI_READ, &asked));
    let mut reader = Reader::new(&body);
    for operation in [op::EXISTS, op::GET_DATA, op::GET_CHILDREN, op::GET_CHILDREN2] {
        assert_eq!(MultiHeader::read(&mut reader), Ok(MultiHeader { op: operation, done: false, err: -101 }));
    }
    assert_eq!((code, MultiHeader::read(&mut reader), reader.rest().len()), (0, Ok(MultiHeader::END), 0));
}

#[test]
fn numbers_are_counted_as_clickhouse_does() {
    let mut group = group();
    group.ok(&create("/a", b"", 0));
    let created = group.stat("/a");
    group.ok(&create("/a/b", b"", 0));
    let pzxid = group.harness.index() as i64;
    group.ok(&set_data("/a/b", b"", -1));
    assert_eq!(group.stat("/a").cversion, 2, "setting a child counts");
    group.ok(&delete("/a/b", -1));
    assert_eq!(group.stat("/a"), Stat { cversion: 3, pzxid, ..created }, "removing it leaves the pzxid alone");
    assert_eq!(path_in(&group.ok(&create("/a/n", b"", SEQUENTIAL))), "/a/n0000000001", "only creations are numbered");
    assert_eq!(group.write(&create_with("/i", &[(31, "ip", "127.0.0.1")])), -114);
    let body = group.ok(&create_as(op::CREATE_CONTAINER, "/c", b"", 4));
    assert_eq!(stat_in(&body, |reader| _ = reader.text()).ephemeral_owner, i64::MIN);
}

/// ClickHouse Keeper's pzxid knows of no removal, and a client that came back was told by it what it had missed: never of
/// a child that had gone.
#[test]
fn who_comes_back_with_a_watch_is_told_of_a_child_that_went_though_the_pzxid_is_silent() {
    let mut plain = Plain::new(r#"{"compatibility":"clickhouse"}"#);
    let ok = |plain: &mut Plain, request: &Request| assert_eq!(plain.write(1, &[], request).0, 0, "{request:?}");
    let missed = |plain: &mut Plain, path: &str, since: u64| {
        let lists = record(|out| {
            out.i64(since as i64).count(0).count(0).count(1).text(path);
        });
        let (code, body) = plain.read(1, &[], &(op::SET_WATCHES, lists));
        assert_eq!(code, 0);
        znode_tree::call::read_missed(&body).unwrap().len()
    };
    for path in ["/a", "/a/b", "/a/c", "/none"] {
        ok(&mut plain, &create(path, b"", 0));
    }
    let before = plain.header.index;
    let pzxid = |plain: &mut Plain, path: &str| stat_in(&plain.read(1, &[], &read(op::EXISTS, path)).1, |_| {}).pzxid;
    let of_creation = pzxid(&mut plain, "/a");
    let failing = multi(&[delete("/a/b", -1), delete("/a/nothing", -1)]);
    assert_eq!(plain.write(1, &[], &failing).0, 0, "its results say that it failed");
    assert_eq!(missed(&mut plain, "/a", before), 0, "it never was");
    ok(&mut plain, &delete("/a/b", -1));
    let went = plain.header.index;
    assert_eq!((missed(&mut plain, "/a", before), missed(&mut plain, "/a", went)), (1, 0));
    assert_eq!((missed(&mut plain, "/", before), missed(&mut plain, "/none", before)), (0, 0));
    assert_eq!(pzxid(&mut plain, "/a"), of_creation, "as ClickHouse shows it");
    ok(&mut plain, &delete("/none", -1));

    let bytes = plain.snapshot();
    plain.machine = znode_tree::ZnodeTree::restore(&mut &bytes[..]).unwrap();
    assert_eq!(plain.snapshot(), bytes);
    assert_eq!((missed(&mut plain, "/a", before), missed(&mut plain, "/a", went)), (1, 0), "and after a restart");
    let now = plain.header.index;
    assert_eq!((missed(&mut plain, "/", went), missed(&mut plain, "/", now)), (1, 0), "of the root, too");

    // Longer than is counted: rather once too often than never.
    plain.header.index += u64::from(u32::MAX);
    let late = plain.header.index;
    ok(&mut plain, &delete("/a/c", -1));
    assert_eq!(missed(&mut plain, "/a", late), 1);
    assert_eq!(pzxid(&mut plain, "/a"), of_creation);
    ok(&mut plain, &create("/a/d", b"", 0));
    let now = plain.header.index;
    assert_eq!((missed(&mut plain, "/a", now), pzxid(&mut plain, "/a")), (0, now as i64));
}

#[test]
fn a_full_tree_takes_no_more_but_may_be_read_and_emptied() {
    let mut group = Group::new(r#"{"compatibility":"clickhouse","memory_soft_limit_bytes":1500}"#);
    let mut created = 0;
    let full = loop {
        match group.write(&create(&format!("/n{created}"), &[0; 100], 0)) {
            0 => created += 1,
            code => break code,
        }
    };
    assert_eq!(full, -10);
    assert!((4..8).contains(&created), "{created}");
    assert_eq!(group.write(&set_data("/n0", b"x", -1)), -10);
    assert_eq!(group.write(&multi(&[create("/m", b"", 0)])), -10);
    assert_eq!(group.write(&set_acl("/n0", &[(31, "digest", "u:h")], -1)), -10);
    assert_eq!(group.stat("/n0").data_length, 100);
    // A multi that removes more than it adds is let through, and makes room.
    group.ok(&multi(&[delete("/n0", -1), delete("/n1", -1), create("/m", b"", 0)]));
    group.ok(&set_data("/n2", b"x", -1));
    // Lists of permissions are memory, too.
    let ids: Vec<String> = (0..100).map(|number| format!("user{number}:hash")).collect();
    let list: Vec<(i32, &str, &str)> = ids.iter().map(|id| (31, "digest", id.as_str())).collect();
    group.ok(&create_with("/guarded", &list));
    assert_eq!(group.write(&set_data("/n2", b"x", -1)), -10);
    group.ok(&delete("/guarded", -1));
    group.ok(&set_data("/n2", b"x", -1));
}
