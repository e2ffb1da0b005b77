//! Another server's tree is loaded, before any client writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use statehouse_sdk::Context;
use statehouse_sdk::Effects;
use statehouse_sdk::Snapshot;
use statehouse_sdk::StateMachine;
use support::*;
use znode_tree::ZnodeTree;
use znode_tree::call::own;
use znode_tree::jute::Reader;
use znode_tree::wire::ErrorCode;
use znode_tree::wire::op;

/// A batch: after so many nodes, these paths, each with its owner and how many children were created in it.
fn batch(before: i64, nodes: &[(&str, i64, i32)]) -> Request {
    let body = record(|out| {
        out.i64(before).count(nodes.len());
        for (path, owner, created) in nodes {
            out.text(path).buffer(Some(path.as_bytes()));
            acl(out, &[(31, "digest", "u:h"), (1, "world", "anyone")]);
            out.i64(100).i64(200).i64(300).i64(1_000).i64(2_000).i64(*owner);
            out.i32(7).i32(3).i32(*created).i32(2 * *created);
        }
    });
    (own::LOAD, body)
}

const BEGIN: Request = (own::LOAD_BEGIN, Vec::new());

fn end(nodes: i64) -> Request {
    (own::LOAD_END, record(|out| _ = out.i64(nodes)))
}

fn group() -> Plain {
    Plain::new(r#"{"zxid_base":4294967296}"#)
}

fn rejected(group: &mut Plain, request: &Request) -> String {
    let mut effects = Effects::default();
    let mut ctx = Context::new(group.header, &mut effects);
    group.machine.apply(&mut ctx, call(request, &[])).unwrap_err().to_string()
}

fn number(reply: (i32, Vec<u8>)) -> i64 {
    assert_eq!(reply.0, 0);
    Reader::new(&reply.1).i64().unwrap()
}

#[test]
fn a_tree_is_loaded_with_all_numbers_and_clients_go_on_above_it() {
    let mut group = group();
    let there = number(group.write(0, &[], &BEGIN));
    let first = batch(0, &[("/", 0, 9), ("/a", 0, 12), ("/a/item-0000000011", 0, 0)]);
    assert_eq!(number(group.write(0, &[], &first)), 3);
    // The reply was lost: sent again, it is not loaded twice.
    assert_eq!(number(group.write(0, &[], &first)), 3);
    assert_eq!(number(group.write(0, &[], &batch(3, &[("/zookeeper", 0, 2), ("/zookeeper/quota", 0, 0)]))), 5);
    let bytes = group.snapshot();
    assert_eq!(number(group.write(0, &[], &end(5))), there + 2);
    assert_ne!(group.snapshot(), bytes);

    let (error, stat) = group.read(0, &[], &read(op::EXISTS, "/a"));
    assert_eq!(error, 0);
    let stat = znode_tree::wire::Stat::read(&mut Reader::new(&stat)).unwrap();
    assert_eq!((stat.czxid, stat.mzxid, stat.pzxid, stat.ctime, stat.mtime), (100, 200, 300, 1_000, 2_000));
    assert_eq!((stat.version, stat.aversion, stat.cversion, stat.num_children), (7, 3, 2 * 12 - 1, 1));
    // The ACL counts, and the next number is the one after the last.
    let sequential = create("/a/item-", b"", SEQUENTIAL);
    assert_eq!(group.write(0, &[], &sequential).0, ErrorCode::NoAuth.number());
    let (error, reply) = group.write(0, &[("digest", "u:h")], &sequential);
    assert_eq!((error, Reader::new(&reply).text().unwrap()), (0, Some("/a/item-0000000012")));
    let (_, stat) = group.read(0, &[], &read(op::EXISTS, "/a/item-0000000012"));
    let stat = znode_tree::wire::Stat::read(&mut Reader::new(&stat)).unwrap();
    assert!(stat.czxid > 1 << 32, "{stat:?}");
}

/// A container is loaded before its children: for a moment it looks like one that lost them all.
#[test]
fn no_container_goes_while_its_children_are_still_to_come() {
    let mut group = group();
    group.write(0, &[], &BEGIN);
    group.write(0, &[], &batch(0, &[("/c", i64::MIN, 1), ("/gone", i64::MIN, 1)]));
    assert!(group.effects.timers.is_empty(), "nobody looks for what goes by itself");
    group.write(0, &[], &batch(2, &[("/c/child", 0, 0)]));
    assert!(group.effects.timers.is_empty());
    group.write(0, &[], &end(3));
    let timers = std::mem::take(&mut group.effects.timers);
    let [(timer, Some(at_ms))] = timers[..] else { panic!("{timers:?}") };
    group.header.time_ms = at_ms;
    group.fire(timer);
    assert_eq!(group.read(0, &[], &read(op::EXISTS, "/c")).0, 0);
    assert_eq!(group.read(0, &[], &read(op::EXISTS, "/gone")).0, ErrorCode::NoNode.number());
}

#[test]
fn what_would_not_fit_an_event_is_not_loaded() {
    let mut group = group();
    group.write(0, &[], &BEGIN);
    let path = format!("/{}", "long".repeat(120_000));
    assert!(rejected(&mut group, &batch(0, &[(&path, 0, 0)])).contains("is not a path, or over 458752 bytes long"));
}

#[test]
fn while_it_lasts_clients_wait() {
    let mut group = group();
    group.write(0, &[], &BEGIN);
    let loss = ErrorCode::ConnectionLoss.number();
    assert_eq!(group.write(0, &[], &create("/x", b"", 0)).0, loss);
    assert_eq!(group.read(0, &[], &read(op::EXISTS, "/")).0, loss);
    group.write(0, &[], &end(0));
    assert_eq!(group.write(0, &[], &create("/x", b"", 0)).0, 0);
}

#[test]
fn a_group_that_clients_write_to_is_not_loaded() {
    let mut written = group();
    assert_eq!(written.write(0, &[], &create("/x", b"", 0)).0, 0);
    let before = written.snapshot();
    assert!(rejected(&mut written, &BEGIN).contains("clients have written"));
    assert!(rejected(&mut written, &batch(0, &[("/", 0, 0)])).contains("no import was begun"));
    assert_eq!(written.snapshot(), before);
    let mut over = group();
    over.write(0, &[], &BEGIN);
    over.write(0, &[], &end(0));
    assert!(rejected(&mut over, &BEGIN).contains("clients have written"));
}

/// What is wrong with a batch is said, and none of it is loaded.
#[test]
fn a_bad_batch_changes_nothing() {
    let mut group = group();
    group.write(0, &[], &BEGIN);
    let before = group.snapshot();
    let mut cut = batch(0, &[("/a", 0, 0)]);
    cut.1.pop();
    for (request, said) in [
        (batch(0, &[("/a", 0, 0), ("/b/c", 0, 0)]), "parent of \"/b/c\""),
        (batch(0, &[("/a", 0, 0), ("/a", 0, 0)]), "loaded already"),
        (batch(0, &[("/a", 0, 0), ("a", 0, 0)]), "not a path"),
        (batch(0, &[("/zookeeper/config", 0, 0)]), "this server's own"),
        (batch(1, &[("/a", 0, 0)]), "comes after 1 nodes, but 0 were loaded"),
        (cut, "no batch"),
        (end(1), "0 nodes were loaded, 1 were sent"),
    ] {
        let text = rejected(&mut group, &request);
        assert!(text.contains(said), "{text}");
        assert_eq!(group.snapshot(), before, "{text}");
    }
    let mut low = Plain::new("{}");
    low.write(0, &[], &BEGIN);
    assert!(rejected(&mut low, &batch(0, &[("/a", 0, 0)])).contains("zxid_base"));
}

/// A replica that restores in the middle goes on with it.
#[test]
fn an_import_survives_a_snapshot() {
    let mut first = group();
    first.write(0, &[], &BEGIN);
    first.write(0, &[], &batch(0, &[("/", 0, 1), ("/c", i64::MIN, 0)]));
    let machine = ZnodeTree::restore(&mut &first.snapshot()[..]).unwrap();
    let mut second = Plain { machine, header: first.header, effects: Default::default() };
    for request in [batch(2, &[("/c/x", 0, 0)]), end(3), create("/y", b"", 0)] {
        let identities = [("digest", "u:h")];
        assert_eq!(first.write(0, &identities, &request), second.write(0, &identities, &request), "{request:?}");
        assert_eq!(first.snapshot(), second.snapshot());
    }
}
