use znode_tree::jute::Reader;
use znode_tree::wire::op;

use crate::world::Hello;
use crate::world::Welcome;
use crate::world::World;
use crate::world::body;
use crate::world::frame;
use crate::world::path_watch;
use crate::world::request;
use crate::world::set_data;

#[test]
fn a_client_without_the_read_only_byte_is_answered_without_it() {
    let mut world = World::new(1);
    for (read_only, length) in [(None, 36), (Some(false), 37), (Some(true), 37)] {
        let peer = world.greet(0, &Hello { read_only, ..Hello::default() });
        let welcome = peer.welcome.unwrap();
        assert_eq!((welcome.length, welcome.timeout_ms, welcome.version), (length, 10_000, 0));
        assert_ne!((welcome.session, welcome.password), (0, [0; 16]));
    }
}

#[test]
fn timeouts_are_negotiated_between_the_smallest_and_the_largest() {
    let mut world = World::new(1);
    for (asked, granted) in [(-7, 4_000), (0, 4_000), (6_000, 6_000), (1_000_000_000, 40_000)] {
        let peer = world.greet(0, &Hello { timeout_ms: asked, ..Hello::default() });
        assert_eq!(peer.welcome.unwrap().timeout_ms, granted);
    }
}

#[test]
fn odd_handshakes_are_taken_as_zookeeper_takes_them() {
    let mut world = World::new(1);
    let head = |version: i32| {
        body(|out| {
            out.i32(version).i64(0).i32(6_000).i64(0);
        })
    };
    let with = |password: &[u8]| {
        body(|out| {
            out.raw(&head(0)).raw(password);
        })
    };
    for (frame_body, length) in [
        (with(b"\0\0\0\x02pw"), Some(36)),
        (with(b"\xff\xff\xff\xff"), Some(36)),
        (with(b"\0\0\0\0\x01 and more"), Some(37)),
        (
            body(|out| {
                out.raw(&head(7)).i32(0).bool(false);
            }),
            Some(37),
        ),
        (head(0), None),
        (with(b"\0\0\0\x10short"), None),
        (Vec::new(), None),
    ] {
        let mut peer = world.dial(0);
        world.send(&peer, &frame(&frame_body));
        world.desk.run();
        let answer = world.frame(&mut peer);
        assert_eq!(answer.as_ref().map(Vec::len), length, "{frame_body:?}");
        assert_eq!(world.is_closed(&peer), length.is_none());
    }
}

#[test]
fn garbage_instead_of_a_handshake_closes_the_connection() {
    let mut world = World::new(1);
    for bytes in [&b"garb"[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4], &[0x7f, 0xff, 0xff, 0xff], &[0, 0, 0, 0]] {
        let mut peer = world.dial(0);
        world.send(&peer, bytes);
        assert!(world.is_closed(&peer), "{bytes:?}");
        assert_eq!(world.text(&mut peer), "");
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte_with_requests_right_behind() {
    let mut world = World::new(1);
    let mut peer = world.dial(0);
    let mut bytes = Hello::default().frame();
    bytes.extend(request(1, op::GET_DATA, &path_watch("/", false)));
    bytes.extend(request(-2, op::PING, &[]));
    for byte in bytes {
        world.send(&peer, &[byte]);
        world.desk.run();
    }
    assert_eq!(world.frame(&mut peer).unwrap().len(), 37);
    let replies: Vec<_> = world.all(&mut peer).iter().map(|reply| (reply.xid, reply.error)).collect();
    assert_eq!(replies, [(1, 0), (-2, 0)]);

    // And all in one piece, before the session is there.
    let mut peer = world.dial(0);
    let mut bytes = Hello::default().frame();
    bytes.extend(request(1, op::GET_DATA, &path_watch("/", false)));
    world.send(&peer, &bytes);
    world.desk.run();
    assert_eq!(world.frame(&mut peer).unwrap().len(), 37);
    assert_eq!(world.all(&mut peer).len(), 1);
    assert!(!world.desk.is_held(peer.client));
}

#[test]
fn a_client_that_has_seen_more_than_this_server_is_turned_away() {
    let mut world = World::new(2);
    let mut peer = world.connect(0);
    world.desk.lag(1, true);
    world.create(&mut peer, "/a");
    let zxid = world.desk.last() as i64;
    let refused = world.reattach(1, &peer, zxid);
    assert_eq!((refused.welcome.clone(), world.is_closed(&refused)), (None, true));
    assert!(!world.is_closed(&peer), "the old connection is not harmed by it");
    world.desk.lag(1, false);
    world.desk.run();
    let moved = world.reattach(1, &peer, zxid);
    assert_eq!(moved.session(), peer.session());
}

const NO_SESSION: Welcome =
    Welcome { version: 0, timeout_ms: 0, session: 0, password: [0; 16], is_read_only: false, length: 37 };

#[test]
fn an_unknown_session_and_a_wrong_password_are_answered_as_expired_and_closed() {
    let mut world = World::new(1);
    let peer = world.connect(0);
    let password = peer.welcome.as_ref().unwrap().password;
    let mut wrong = password;
    wrong[15] ^= 1;
    for (session, password) in [
        (12_345, password),
        (peer.session(), wrong),
        (peer.session(), [0; 16]),
        (-1, wrong),
        (-2, [0; 16]),
        (-3, [0; 16]),
    ] {
        let refused = world.greet(0, &Hello { session, password, ..Hello::default() });
        assert_eq!(refused.welcome.clone(), Some(NO_SESSION));
        assert!(world.is_closed(&refused));
    }
    // Unlike ZooKeeper, which closes it before it looks at the password.
    assert!(!world.is_closed(&peer));
}

#[test]
fn without_a_leader_nobody_is_let_in() {
    let mut world = World::new(3);
    let peer = world.connect(1);
    world.desk.lead(None);
    for hello in [Hello::default(), Hello { session: peer.session(), ..Hello::default() }] {
        let refused = world.greet(2, &hello);
        assert_eq!((refused.welcome.clone(), world.is_closed(&refused)), (None, true));
    }
    world.desk.lead(Some(2));
    world.connect(2);
}

#[test]
fn clickhouse_mode_says_that_there_is_no_leader() {
    let mut world = World::with(1, r#"{"compatibility":"clickhouse"}"#, r#"{"params":{"compatibility":"clickhouse"}}"#);
    world.desk.lead(None);
    let refused = world.greet(0, &Hello { read_only: None, ..Hello::default() });
    assert_eq!(refused.welcome.as_ref().map(|welcome| (welcome.version, welcome.length)), Some((42, 36)));
    assert!(world.is_closed(&refused));
}

/// ClickHouse's protocol 11: a byte about compression that the length does not count, and xids of 64 bits.
#[test]
fn clickhouses_wide_xids_are_wide_in_every_frame() {
    let params = r#"{"compatibility":"clickhouse"}"#;
    let mut world = World::with(1, params, r#"{"params":{"compatibility":"clickhouse"}}"#);
    let hello = |compressed: bool| {
        body(|out| {
            out.i32(45).i32(11).bool(compressed).i64(0).i32(30_000).i64(0).buffer(Some(&[0; 16])).bool(true);
        })
    };
    let mut peer = world.dial(0);
    for piece in hello(false).chunks(7) {
        world.send(&peer, piece);
        world.desk.run();
    }
    let welcome = world.frame(&mut peer).unwrap();
    assert_eq!((welcome.len(), &welcome[..8]), (37, &[0, 0, 0, 11, 0, 0, 0x75, 0x30][..]));
    let wide = |xid: i64, operation: i32, rest: &[u8]| {
        frame(&body(|out| {
            out.i64(xid).i32(operation).raw(rest);
        }))
    };
    world.send(&peer, &wide(i64::MAX, op::GET_DATA, &path_watch("/", true)));
    world.send(&peer, &wide(-2, op::PING, &[]));
    world.send(&peer, &wide(1 << 40, op::SET_DATA, &set_data("/", "x")));
    world.desk.run();
    let frames: Vec<_> = std::iter::from_fn(|| world.frame(&mut peer)).collect();
    let xids: Vec<i64> = frames.iter().map(|frame| i64::from_be_bytes(*frame.first_chunk().unwrap())).collect();
    assert_eq!(xids, [i64::MAX, -2, -1, 1 << 40]);
    assert_eq!(frames[1].len(), 20);
    assert_eq!(
        frames[2][20..],
        body(|out| {
            out.i32(3).i32(3).text("/");
        })
    );
}

/// ClickHouse's protocol 12: what each request carries behind it is no part of the next one, whatever the xids are.
#[test]
fn clickhouses_trace_contexts_are_passed_over() {
    for wide in [false, true] {
        let mut world = World::new(1);
        let mut peer = world.dial(0);
        let hello = body(|out| {
            out.i32(44).i32(12).bool(wide).bool(false).i64(0).i32(30_000).i64(0).buffer(Some(&[0; 16]));
        });
        let traced = |xid: i64, operation: i32, rest: &[u8], context: &[u8]| {
            let request = body(|out| {
                if wide {
                    out.i64(xid)
                } else {
                    out.i32(xid as i32)
                };
                out.i32(operation).raw(rest);
            });
            [&frame(&request)[..], context].concat()
        };
        let context = b"\x0161f0c404-5cb3-11e7-907b-a6006ad3dba0\n17\ncongo=t61rcWkgMzE\n1\n";
        let requests = [
            traced(1, op::SET_DATA, &set_data("/", "traced"), context),
            traced(-2, op::PING, &[], &[0]),
            traced(2, op::GET_DATA, &path_watch("/", false), context),
        ];
        for piece in [&hello[..], &requests.concat()].concat().chunks(9) {
            world.send(&peer, piece);
            world.desk.run();
        }
        let welcome = world.frame(&mut peer).unwrap();
        assert_eq!((welcome.len(), &welcome[..4]), (36, &[0, 0, 0, 12][..]));
        let frames: Vec<_> = std::iter::from_fn(|| world.frame(&mut peer)).collect();
        let xid = |frame: &Vec<u8>| match wide {
            true => i64::from_be_bytes(*frame.first_chunk().unwrap()),
            false => i64::from(i32::from_be_bytes(*frame.first_chunk().unwrap())),
        };
        assert_eq!(frames.iter().map(xid).collect::<Vec<_>>(), [1, -2, 2]);
        assert!(frames[2][if wide { 20 } else { 16 }..].starts_with(b"\0\0\0\x06traced"));
        world.send(&peer, &traced(3, op::PING, &[], &[7]));
        assert!(world.is_closed(&peer), "what is behind the request is neither");
    }
}

/// What a client of ClickHouse with `use_compression` sends and gets: the handshake plain, all else in blocks.
#[test]
fn clickhouses_compressed_streams_carry_the_same_frames() {
    let mut world = World::new(1);
    let hello = Hello { version: 10, ..Hello::default() }.frame();
    let requests =
        [request(1, op::SET_DATA, &set_data("/", "packed")), request(2, op::GET_DATA, &path_watch("/", false))];
    for together in [false, true] {
        let mut peer = world.dial(0);
        let packed: Vec<u8> = requests.iter().flat_map(|request| pack(request)).collect();
        if together {
            world.send(&peer, &[&hello[..], &packed].concat());
        } else {
            for piece in [&hello[..], &packed].concat().chunks(5) {
                world.send(&peer, piece);
                world.desk.run();
            }
        }
        world.desk.run();
        let welcome = world.frame(&mut peer).unwrap();
        assert_eq!((welcome.len(), &welcome[..4]), (37, &[0, 0, 0, 10][..]));
        let frames = unpack(&world.bytes(&mut peer));
        let mut reader = Reader::new(&frames);
        let (first, second) = (reader.buffer().unwrap().unwrap(), reader.buffer().unwrap().unwrap());
        assert_eq!((first.len(), &first[..4], &second[..4]), (16 + 68, &[0, 0, 0, 1][..], &[0, 0, 0, 2][..]));
        assert!(second[16..].starts_with(b"\0\0\0\x06packed"));
        world.send(&peer, b"a plain frame is no block, and closes the connection");
        assert!(world.is_closed(&peer));
    }
}

/// A block, as ClickHouse's Python driver makes one without compressing.
fn pack(plain: &[u8]) -> Vec<u8> {
    let mut block = vec![2];
    block.extend((plain.len() as u32 + 9).to_le_bytes());
    block.extend((plain.len() as u32).to_le_bytes());
    block.extend(plain);
    let checksum = cityhash_rs::cityhash_102_128(&block).rotate_left(64).to_le_bytes();
    [&checksum[..], &block].concat()
}

fn unpack(mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[16], 0x82);
        let size = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap()) as usize;
        let (packed, unpacked) = (size(17), size(21));
        plain.extend(lz4_flex::block::decompress(&bytes[25..16 + packed], unpacked).unwrap());
        bytes = &bytes[16 + packed..];
    }
    plain
}

/// As ZooKeeper's `nio.sessionlessCnxnTimeout`: places for connections are few.
#[test]
fn who_connects_and_says_nothing_is_shown_the_door() {
    let mut world = World::new(1);
    let (silent, slow, mut polite) = (world.dial(0), world.dial(0), world.connect(0));
    world.send(&slow, &Hello::default().frame()[..20]);
    world.desk.advance(9_000);
    assert!(!world.is_closed(&silent) && !world.is_closed(&slow));
    world.ask(&mut polite, znode_tree::wire::op::PING, &[]);
    world.desk.advance(4_000);
    assert!(world.is_closed(&silent) && world.is_closed(&slow) && !world.is_closed(&polite));
}
