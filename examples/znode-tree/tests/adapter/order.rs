use znode_tree::wire::op;

use crate::world::World;
use crate::world::body;
use crate::world::create;
use crate::world::path_watch;
use crate::world::request;
use crate::world::set_data;

#[test]
fn replies_come_in_the_order_of_requests_and_reads_see_the_writes_before_them_only() {
    let mut world = World::new(2);
    let mut peer = world.connect(1);
    world.create(&mut peer, "/a");
    let mut bytes = Vec::new();
    for round in 0..50 {
        bytes.extend(request(round * 5, op::SET_DATA, &set_data("/a", &format!("{round}"))));
        bytes.extend(request(round * 5 + 1, op::GET_DATA, &path_watch("/a", false)));
        bytes.extend(request(-2, op::PING, &[]));
        bytes.extend(request(
            round * 5 + 3,
            op::SYNC,
            &body(|out| {
                out.text("/a");
            }),
        ));
        bytes.extend(request(round * 5 + 4, op::EXISTS, &path_watch("/none", false)));
    }
    world.send(&peer, &bytes);
    let replies = world.all(&mut peer);
    assert_eq!(replies.len(), 250);
    for (round, replies) in replies.chunks(5).enumerate() {
        let round = round as i32;
        let xids: Vec<i32> = replies.iter().map(|reply| reply.xid).collect();
        assert_eq!(xids, [round * 5, round * 5 + 1, -2, round * 5 + 3, round * 5 + 4]);
        let (data, stat) = replies[1].data();
        assert_eq!(data, round.to_string().as_bytes());
        assert_eq!(stat.mzxid, replies[0].zxid, "a write's zxid is its entry's");
        assert_eq!(
            replies[3].body,
            body(|out| {
                out.text("/a");
            })
        );
        assert_eq!((replies[4].error, replies[4].body.len()), (-101, 0));
    }
    assert!(replies.is_sorted_by_key(|reply| reply.zxid), "a client's time never goes back");
}

#[test]
fn sync_waits_until_this_server_has_what_others_acknowledged() {
    let mut world = World::new(2);
    let (mut here, mut there) = (world.connect(0), world.connect(1));
    world.create(&mut here, "/a");
    world.desk.lag(1, true);
    assert_eq!(world.error(&mut here, op::SET_DATA, &set_data("/a", "new")), 0);
    assert_eq!(world.ask(&mut there, op::GET_DATA, &path_watch("/a", false)).data().0, b"", "stale, and allowed to be");
    world.send(
        &there,
        &request(
            50,
            op::SYNC,
            &body(|out| {
                out.text("/a");
            }),
        ),
    );
    world.send(&there, &request(51, op::GET_DATA, &path_watch("/a", false)));
    assert_eq!(world.all(&mut there), []);
    world.desk.lag(1, false);
    let replies = world.all(&mut there);
    assert_eq!(replies[0].xid, 50);
    assert_eq!(replies[1].data().0, b"new");
}

#[test]
fn xids_are_the_clients_own_affair() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    let xids = [i32::MAX, 1, 1, 0, i32::MIN, -7, 12];
    for xid in xids {
        world.send(&peer, &request(xid, op::EXISTS, &path_watch("/", false)));
    }
    assert!(world.all(&mut peer).iter().map(|reply| (reply.xid, reply.error)).eq(xids.map(|xid| (xid, 0))));
}

#[test]
fn quorum_reads_see_what_others_acknowledged() {
    for (settings, sees_it) in [("{}", false), (r#"{"listen":{"quorum_reads":true}}"#, true)] {
        let mut world = World::with(2, "{}", settings);
        let (mut here, mut there) = (world.connect(0), world.connect(1));
        world.desk.lag(1, true);
        world.create(&mut here, "/new");
        world.send(&there, &request(1, op::EXISTS, &path_watch("/new", false)));
        let early = world.next(&mut there);
        world.desk.lag(1, false);
        let reply = early.or_else(|| world.next(&mut there)).unwrap();
        assert_eq!(reply.error == 0, sees_it, "{settings}");
    }
}

#[test]
fn an_unknown_operation_is_unimplemented_after_what_was_asked_before_and_then_the_connection_ends() {
    let mut world = World::new(1);
    // An auth packet without a body is no packet: it ends the connection at once.
    for operation in (-20..300).chain([500, 507, 9_999, i32::MIN, i32::MAX]).filter(|number| *number != op::AUTH) {
        let mut peer = world.connect(0);
        world.send(&peer, &request(1, op::CREATE, &create("/x", "", 0)));
        world.send(&peer, &request(2, operation, &[]));
        world.send(&peer, &request(3, op::PING, &[]));
        let replies = world.all(&mut peer);
        assert_eq!(replies[0].xid, 1);
        let known = znode_tree::call::route(operation) != znode_tree::call::Route::Unknown
            && !(500..=507).contains(&operation)
            && operation != op::SASL
            && operation != op::CHECK;
        if known {
            // Nodes with a TTL are switched off by default.
            let error = replies.get(1).map(|reply| reply.error);
            assert!(error != Some(-6) || operation == op::CREATE_TTL, "{operation}");
        } else {
            assert_eq!((replies[1].xid, replies[1].zxid, replies[1].error), (2, -1, -6), "{operation}");
            assert_eq!((replies.len(), world.is_closed(&peer)), (2, true));
        }
    }
}

#[test]
fn short_bodies_are_marshalling_errors_and_the_connection_goes_on() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    let operations = [
        op::CREATE,
        op::DELETE,
        op::EXISTS,
        op::GET_DATA,
        op::SET_DATA,
        op::GET_ACL,
        op::SET_ACL,
        op::GET_CHILDREN,
        op::SYNC,
        op::GET_CHILDREN2,
        op::MULTI,
        op::CREATE2,
        op::CHECK_WATCHES,
        op::REMOVE_WATCHES,
        op::CREATE_CONTAINER,
        op::CREATE_TTL,
        op::MULTI_READ,
        op::SET_WATCHES,
        op::GET_EPHEMERALS,
        op::GET_ALL_CHILDREN_NUMBER,
        op::SET_WATCHES2,
        op::ADD_WATCH,
    ];
    for operation in operations {
        let reply = world.ask(&mut peer, operation, &[0, 0]);
        assert_eq!((reply.error, reply.body.len()), (-5, 0), "{operation}");
    }
    // A length that nothing follows.
    assert_eq!(world.error(&mut peer, op::GET_DATA, b"\x7f\xff\xff\xffab"), -5);
    assert_eq!(world.error(&mut peer, op::SET_WATCHES, b"\0\0\0\0\0\0\0\0\x7f\xff\xff\xff"), -5);
    // What follows a whole record is not looked at.
    let mut long = path_watch("/", false);
    long.extend(b"junk");
    assert_eq!(world.error(&mut peer, op::GET_DATA, &long), 0);
}

fn auth(scheme: &str, proof: Option<&[u8]>) -> Vec<u8> {
    body(|out| {
        out.i32(0).text(scheme).buffer(proof);
    })
}

#[test]
fn who_am_i_tells_the_address_and_every_user() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    let reply = world.ask(&mut peer, op::WHO_AM_I, &[]);
    assert_eq!(
        reply.body,
        body(|out| {
            out.count(1).text("ip").text("10.1.2.3");
        })
    );
    for proof in [&b"user1:12345"[..], b"user2", b"", b"user1:12345"] {
        let reply = world.ask(&mut peer, op::AUTH, &auth("digest", Some(proof)));
        assert_eq!((reply.xid, reply.zxid, reply.error, reply.body.len()), (-4, 0, 0, 0));
    }
    let reply = world.ask(&mut peer, op::WHO_AM_I, b"\0\0");
    let expected = body(|out| {
        out.count(4).text("ip").text("10.1.2.3");
        out.text("digest").text("user1").text("digest").text("user2").text("digest").text("");
    });
    assert_eq!(reply.body, expected);
}

#[test]
fn a_proof_that_fails_is_told_and_ends_the_connection() {
    let mut world = World::new(1);
    for (scheme, proof) in
        [("world", Some(&b"anyone"[..])), ("digest", None), ("nope", Some(b"a:b")), ("super", Some(b"a:b"))]
    {
        let mut peer = world.connect(0);
        let reply = world.ask(&mut peer, op::AUTH, &auth(scheme, proof));
        assert_eq!((reply.zxid, reply.error), (0, -115), "{scheme}");
        assert!(world.is_closed(&peer));
    }
    let mut peer = world.connect(0);
    world.send(&peer, &request(-4, op::AUTH, b"\0\0"));
    assert!(world.is_closed(&peer));
    assert_eq!(world.all(&mut peer), [], "half a packet is not answered");
}

/// ClickHouse Keeper takes `digest` with one colon; here every proof that ZooKeeper takes was taken.
#[test]
fn clickhouse_mode_takes_a_name_and_a_password_and_nothing_else() {
    let params = r#"{"compatibility":"clickhouse"}"#;
    let mut world = World::with(1, params, r#"{"params":{"compatibility":"clickhouse"}}"#);
    for (scheme, proof) in [
        ("ip", Some(&b""[..])),
        ("digest", Some(b"user")),
        ("digest", Some(b"user:pass:word")),
        ("digest", Some(b"")),
        ("digest", None),
        ("world", Some(b"any:one")),
    ] {
        let mut peer = world.connect(0);
        assert_eq!(world.error(&mut peer, op::AUTH, &auth(scheme, proof)), -115, "{scheme} {proof:?}");
        assert!(world.is_closed(&peer));
    }
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::AUTH, &auth("digest", Some(b"user:password"))), 0);
    let mut zookeepers = World::new(1);
    let mut peer = zookeepers.connect(0);
    for (scheme, proof) in [("ip", &b""[..]), ("digest", b"user"), ("digest", b"a:b:c")] {
        assert_eq!(zookeepers.error(&mut peer, op::AUTH, &auth(scheme, Some(proof))), 0);
    }
}

#[test]
fn a_ping_is_answered_with_its_own_xid_whatever_was_sent() {
    let mut world = World::new(1);
    let mut peer = world.connect(0);
    world.send(&peer, &request(77, op::PING, b"anything"));
    let reply = world.next(&mut peer).unwrap();
    assert_eq!((reply.xid, reply.error, reply.body.len()), (-2, 0, 0));
}
