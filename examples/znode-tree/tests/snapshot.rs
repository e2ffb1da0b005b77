//! The state as bytes: to the byte, and what comes of bytes that are none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use statehouse_sdk::Snapshot;
use support::*;
use znode_tree::ZnodeTree;
use znode_tree::wire::op;

fn restore(bytes: &[u8]) -> Result<ZnodeTree, String> {
    ZnodeTree::restore(&mut &bytes[..]).map_err(|error| error.to_string())
}

/// A bit of everything.
fn grown() -> Plain {
    let mut plain = Plain::new(r#"{"extended_types":true}"#);
    for request in [
        create("/a", b"data", 0),
        create("/a/b", b"", SEQUENTIAL),
        create_with("/a/c", &[(31, "digest", "u:h"), (1, "world", "anyone")]),
        create_with("/a/d", &[(31, "digest", "u:h"), (1, "world", "anyone")]),
        create("/a/e", b"mine", EPHEMERAL),
        create_as(op::CREATE_CONTAINER, "/k", b"", 4),
        create("/k/x", b"", 0),
        delete("/k/x", -1),
        create_ttl("/t", 5, 1_000),
        set_data("/a", b"more data", 0),
        create("/zookeeper/quota/a", b"", 0),
        create("/zookeeper/quota/a/zookeeper_limits", b"count=9,bytes=9", 0),
        create("/zookeeper/quota/a/zookeeper_stats", b"", 0),
    ] {
        assert_eq!(plain.write(5, &[("digest", "u:h")], &request).0, 0, "{request:?}");
    }
    plain
}

#[test]
fn a_restored_tree_writes_the_same_bytes_and_goes_on_alike() {
    let mut first = grown();
    let bytes = first.snapshot();
    let mut second = Plain { machine: restore(&bytes).unwrap(), header: first.header, effects: Default::default() };
    assert_eq!(second.snapshot(), bytes);
    let counts = (znode_tree::call::own::STATUS, Vec::new());
    assert_eq!(
        first.read(0, &[], &counts),
        second.read(0, &[], &counts),
        "what mntr says of sizes is the same after a restart"
    );
    for request in [
        create("/a/x", b"12345", SEQUENTIAL),
        delete("/a/c", -1),
        create_with("/other", &[(1, "ip", "::1")]),
        delete("/t", -1),
    ] {
        let identities = [("digest", "u:h")];
        assert_eq!(first.write(5, &identities, &request), second.write(5, &identities, &request));
        assert_eq!(first.effects, second.effects);
        assert_eq!(first.snapshot(), second.snapshot());
    }
    first.end_session(5);
    second.end_session(5);
    assert_eq!(first.events(), ["deleted /a/e", "children /a"]);
    assert_eq!(first.effects, second.effects);
    assert_eq!(first.snapshot(), second.snapshot());
}

#[test]
fn a_new_groups_snapshot_is_these_bytes() {
    let plain = Plain::new(r#"{"super_digest":"s"}"#);
    let bytes = plain.snapshot();
    let params =
        serde_json::to_vec(&znode_tree::params::Params { super_digest: Some("s".to_owned()), ..Default::default() })
            .unwrap();
    let seed = plain.machine.tree().seed();
    let expected = record(|out| {
        out.raw(b"ZNTR\x01").buffer(Some(&params)).i64(seed as i64).i64(0).i32(0).u8(0).i64(0).i32(5 - 1);
        let node = |out: &mut znode_tree::jute::Writer<'_>, flags: u8| _ = out.u8(flags).i64(0).i64(0);
        node(out, 5);
        out.i64(0).i32(0).i32(0).i32(1).i32(0).text("").i32(0);
        node(out, 5);
        out.i64(0).i32(0).i32(0).i32(2).i32(0).text("zookeeper").i32(0);
        node(out, 1);
        out.i32(0).text("quota").i32(0);
        node(out, 3);
        out.i64(0).i64(0).i32(0).i32(-1).i32(1);
        acl(out, &[(1, "world", "anyone")]);
        out.text("config").i32(0);
        out.raw(b"RTNZ");
    });
    assert_eq!(bytes, expected);
}

#[test]
fn a_snapshot_that_was_cut_anywhere_is_refused() {
    let bytes = grown().snapshot();
    for cut in 0..bytes.len() {
        let why = restore(&bytes[..cut]).err().unwrap();
        assert!(why.contains("ends too early") || why.contains("params"), "{cut}: {why}");
    }
}

#[test]
fn a_snapshot_with_a_changed_byte_is_refused_or_another_tree_but_never_a_panic() {
    let bytes = grown().snapshot();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut broken = bytes.clone();
            broken[at] ^= flip;
            if let Ok(machine) = restore(&broken) {
                let mut again = Vec::new();
                machine.snapshot(&mut again).unwrap();
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let bytes = grown().snapshot();
    let why = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut broken = bytes.clone();
        change(&mut broken);
        restore(&broken).err().unwrap()
    };
    assert_eq!(why(&|bytes| bytes[0] = b'X'), "snapshot: this is no snapshot of a znode tree");
    assert_eq!(why(&|bytes| bytes[4] = 2), "snapshot: the snapshot has version 2, this module reads version 1");
    let tail = bytes.len() - 4;
    assert_eq!(why(&|bytes| bytes[tail] = 0), "snapshot: something follows the last node");
    let of = |name: &[u8]| bytes.windows(name.len()).position(|window| window == name).unwrap();
    let e = of(b"\0\0\0\x01e\0\0\0\x04mine") + 4;
    assert!(why(&|bytes| bytes[e] = b'/').contains(r#"has a bad path, "/a//""#));
    assert!(why(&|bytes| bytes[e] = b'd').contains(r#"has a bad path, "/a/d""#));
    assert!(why(&|bytes| bytes[e] = 0xff).contains("not UTF-8"));
}
