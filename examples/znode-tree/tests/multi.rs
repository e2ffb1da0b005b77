//! multi and multiRead, to the byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use support::*;
use znode_tree::jute::Reader;
use znode_tree::wire::MultiHeader;
use znode_tree::wire::Stat;
use znode_tree::wire::op;

const END: &[u8] = b"\xff\xff\xff\xff\x01\xff\xff\xff\xff";

fn error(code: i32) -> Vec<u8> {
    let code = code.to_be_bytes();
    [b"\xff\xff\xff\xff\0".as_slice(), &code, &code].concat()
}

#[test]
fn a_multi_that_fails_says_where_and_has_done_nothing() {
    let mut group = Group::new("{}");
    group.ok(&create("/a", b"", 0));
    group.events();
    let before = group.harness.snapshot();
    let body = group.ok(&multi(&[
        create("/b", b"", 0),
        set_data("/a", b"new", 0),
        check("/a", 7),
        delete("/a", 1),
        create("/c", b"", 0),
    ]));
    let expected = [error(0), error(0), error(-103), error(-2), error(-2), END.to_vec()].concat();
    assert_eq!(body, expected);
    assert!(group.events().is_empty());
    assert_eq!(group.harness.snapshot(), before);
}

#[test]
fn a_multi_sees_what_it_has_done_and_its_results_are_framed_as_it_is() {
    let mut group = Group::new("{}");
    let body = group.ok(&multi(&[
        create("/a", b"1", 0),
        create_as(op::CREATE2, "/a/b", b"22", EPHEMERAL),
        set_data("/a", b"333", 0),
        check("/a", 1),
        delete("/a/b", 0),
        create("/a/n", b"", SEQUENTIAL),
        create_as(op::CREATE_CONTAINER, "/c", b"", 4),
        create("/d", b"", 4),
    ]));
    let zxid = group.harness.index() as i64;
    let now = group.harness.now_ms() as i64;
    let stat = Stat { czxid: zxid, mzxid: zxid, pzxid: zxid, ctime: now, mtime: now, ..Stat::default() };
    let owned = |ephemeral_owner, data_length| Stat { ephemeral_owner, data_length, ..stat };
    let set = Stat { version: 1, cversion: 1, num_children: 1, data_length: 3, ..stat };
    let expected = record(|out| {
        let header = |op| MultiHeader { op, done: false, err: 0 };
        header(1).write(out);
        out.text("/a");
        header(15).write(out);
        out.text("/a/b");
        owned(1, 2).write(out);
        header(5).write(out);
        set.write(out);
        header(13).write(out);
        header(2).write(out);
        header(1).write(out);
        out.text("/a/n0000000001");
        for path in ["/c", "/d"] {
            header(15).write(out);
            out.text(path);
            owned(0, 0).write(out);
        }
        out.raw(END);
    });
    assert_eq!(body, expected);
    assert_eq!(group.stat("/a").cversion, 3);
    assert_eq!(
        group.events(),
        [
            "created /a",
            "children /",
            "created /a/b",
            "children /a",
            "data /a",
            "deleted /a/b",
            "children /a",
            "created /a/n0000000001",
            "children /a",
            "created /c",
            "children /",
            "created /d",
            "children /",
        ]
    );
}

#[test]
fn an_empty_multi_is_an_empty_success() {
    let mut group = Group::new("{}");
    assert_eq!(group.ok(&multi(&[])), END);
    assert_eq!(group.read(&framed(op::MULTI_READ, &[])), (0, END.to_vec()));
}

#[test]
fn a_multi_with_something_that_is_no_write_is_malformed_as_a_whole() {
    let mut group = Group::new("{}");
    let (_, good) = create("/a", b"", 0);
    for (story, request) in [
        ("a read", multi(&[create("/a", b"", 0), read(op::GET_DATA, "/")])),
        ("a TTL's flags without a TTL", multi(&[create("/a", b"", 5)])),
        ("setACL", multi(&[set_acl("/", OPEN, -1)])),
        ("a multi", multi(&[multi(&[])])),
        ("ClickHouse's", multi(&[versioned(op::TRY_REMOVE, "/a", -1)])),
        ("no end", (op::MULTI, [b"\0\0\0\x01\0\xff\xff\xff\xff".as_slice(), &good].concat())),
        ("nothing", (op::MULTI, vec![])),
    ] {
        assert_eq!(group.write_as(1, &[], &request), (-5, vec![]), "{story}");
    }
    assert!(!group.exists("/a"));
}

#[test]
fn a_multi_takes_back_all_kinds_of_changes_to_the_last_place() {
    let mut group = Group::new(r#"{"extended_types":true}"#);
    for path in ["/p", "/p/a", "/p/b", "/p/c", "/p/c/x"] {
        group.ok(&create(path, b"data", 0));
    }
    group.ok(&create("/p/e", b"", EPHEMERAL));
    group.ok(&create_ttl("/p/t", 5, 1_000));
    group.ok(&create_as(op::CREATE_CONTAINER, "/p/k", b"", 4));
    group.ok(&create("/p/k/x", b"", 0));
    group.harness.advance(10);
    group.events();
    let before = group.harness.snapshot();
    let mut steps = vec![
        delete("/p/b", -1),
        create("/p/b", b"again", 0),
        delete("/p/b", -1),
        delete("/p/a", -1),
        delete("/p/e", -1),
        create("/p/e", b"", EPHEMERAL),
        set_data("/p/t", b"longer", -1),
        create("/p/t/x", b"", 0),
        delete("/p/t/x", -1),
        delete("/p/k/x", -1),
        delete("/p/k", -1),
        delete("/p/c/x", -1),
        delete("/p/c", -1),
        create("/p/c", b"", SEQUENTIAL),
        set_data("/p", b"", 0),
        check("/none", -1),
    ];
    while steps.len() > 1 {
        let body = group.ok(&multi(&steps));
        assert_eq!(body, [error(0).repeat(steps.len() - 1), error(-101), END.to_vec()].concat());
        assert_eq!(group.harness.snapshot(), before, "{} steps", steps.len());
        let last = steps.len() - 2;
        steps.remove(last);
    }
    assert_eq!(group.children("/p"), ["a", "b", "c", "e", "t", "k"]);
    group.harness.end_session(1);
    assert_eq!(group.events(), ["deleted /p/e", "children /p"]);
}

#[test]
fn the_entries_of_a_multi_read_stand_alone() {
    let mut group = Group::new("{}");
    group.ok(&create("/a", b"1", 0));
    group.ok(&create("/a/b", b"", 0));
    let (code, body) = group.read(&framed(
        op::MULTI_READ,
        &[read(op::GET_DATA, "/a"), read(op::GET_DATA, "/none"), read(op::GET_CHILDREN, "/a")],
    ));
    assert_eq!(code, 0);
    let mut reader = Reader::new(&body);
    assert_eq!(MultiHeader::read(&mut reader), Ok(MultiHeader { op: op::GET_DATA, done: false, err: 0 }));
    assert_eq!(reader.buffer(), Ok(Some(&b"1"[..])));
    assert_eq!(Stat::read(&mut reader).unwrap().num_children, 1);
    let rest = [error(-101), b"\0\0\0\x08\0\0\0\0\0\0\0\0\x01\0\0\0\x01b".to_vec(), END.to_vec()].concat();
    assert_eq!(reader.rest(), rest);
    assert_eq!(group.read(&framed(op::MULTI_READ, &[read(op::EXISTS, "/a")])).0, -5);
    assert_eq!(group.read(&framed(op::MULTI_READ, &[delete("/a", -1)])).0, -5);
}
