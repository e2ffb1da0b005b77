//! ZooKeeper's client protocol, as much of it as a load generator speaks: requests are appended to a buffer,
//! replies are walked to their last byte and judged.
//!
//! A path is written by a closure, so that it is put together in place from its parts.

use super::jute::Malformed;
use super::jute::Reader;
use super::jute::put_bool;
use super::jute::put_bytes;
use super::jute::put_i32;
use super::jute::put_i64;
use super::jute::put_prefixed;

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const EXISTS: i32 = 3;
const GET_DATA: i32 = 4;
const SET_DATA: i32 = 5;
const GET_CHILDREN: i32 = 8;
const SYNC: i32 = 9;
const PING: i32 = 11;
const GET_CHILDREN_2: i32 = 12;
const CHECK: i32 = 13;
const MULTI: i32 = 14;
const MULTI_READ: i32 = 22;
const CLOSE_SESSION: i32 = -11;
/// The type of a failed operation's result within a multi, and of the record that ends it.
const ERROR: i32 = -1;

/// Replies that answer no request have these in place of its number.
pub(super) const WATCH_XID: i32 = -1;
pub(super) const PING_XID: i32 = -2;

/// A Stat: four longs (czxid, mzxid, ctime, mtime), three ints (version, cversion, aversion), a long
/// (ephemeralOwner), two ints (dataLength, numChildren), a long (pzxid).
const STAT_BYTES: usize = 6 * 8 + 5 * 4;
const PASSWORD_BYTES: usize = 16;
const ALL_PERMISSIONS: i32 = 31;
const ANY_VERSION: i32 = -1;

/// What is told apart in the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Get,
    Exists,
    List,
    Sync,
    Set,
    Create,
    Remove,
    /// Changes in one transaction.
    Multi,
    /// Reads in one request.
    MultiRead,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Exists => "exists",
            Kind::List => "list",
            Kind::Sync => "sync",
            Kind::Set => "set",
            Kind::Create => "create",
            Kind::Remove => "remove",
            Kind::Multi => "multi",
            Kind::MultiRead => "multi-read",
        }
    }

    fn opcode(self) -> i32 {
        match self {
            Kind::Get => GET_DATA,
            Kind::Exists => EXISTS,
            Kind::List => GET_CHILDREN_2,
            Kind::Sync => SYNC,
            Kind::Set => SET_DATA,
            Kind::Create => CREATE,
            Kind::Remove => DELETE,
            Kind::Multi => MULTI,
            Kind::MultiRead => MULTI_READ,
        }
    }
}

/// The first frame of a connection: a new session is asked for.
pub(super) fn put_connect(out: &mut Vec<u8>, timeout_ms: i32) {
    put_prefixed(out, |out| {
        put_i32(out, 0); // protocol version
        put_i64(out, 0); // the last zxid that this client saw
        put_i32(out, timeout_ms);
        put_i64(out, 0); // no session yet
        put_bytes(out, &[0; PASSWORD_BYTES]);
        put_bool(out, false); // not content with a server that is cut off
    });
}

pub(super) fn put_ping(out: &mut Vec<u8>) {
    put_prefixed(out, |out| {
        put_i32(out, PING_XID);
        put_i32(out, PING);
    });
}

pub(super) fn put_close(out: &mut Vec<u8>, xid: i32) {
    put_prefixed(out, |out| {
        put_i32(out, xid);
        put_i32(out, CLOSE_SESSION);
    });
}

/// A request with the record that `body` appends: one of the `put_…_body` functions, of the same kind.
pub(super) fn put_request(out: &mut Vec<u8>, xid: i32, kind: Kind, body: impl FnOnce(&mut Vec<u8>)) {
    put_prefixed(out, |out| {
        put_i32(out, xid);
        put_i32(out, kind.opcode());
        body(out);
    });
}

/// Of get, exists and list: no watch is set.
pub(super) fn put_read_body(out: &mut Vec<u8>, path: impl FnOnce(&mut Vec<u8>)) {
    put_prefixed(out, path);
    put_bool(out, false);
}

pub(super) fn put_sync_body(out: &mut Vec<u8>, path: impl FnOnce(&mut Vec<u8>)) {
    put_prefixed(out, path);
}

pub(super) fn put_set_body(out: &mut Vec<u8>, path: impl FnOnce(&mut Vec<u8>), data: &[u8]) {
    put_prefixed(out, path);
    put_bytes(out, data);
    put_i32(out, ANY_VERSION);
}

/// A persistent node that everybody may do everything with.
pub(super) fn put_create_body(out: &mut Vec<u8>, path: impl FnOnce(&mut Vec<u8>), data: &[u8]) {
    put_prefixed(out, path);
    put_bytes(out, data);
    put_i32(out, 1); // one ACL
    put_i32(out, ALL_PERMISSIONS);
    put_bytes(out, b"world");
    put_bytes(out, b"anyone");
    put_i32(out, 0); // persistent
}

pub(super) fn put_remove_body(out: &mut Vec<u8>, path: impl FnOnce(&mut Vec<u8>)) {
    put_prefixed(out, path);
    put_i32(out, ANY_VERSION);
}

/// What may stand inside a multi.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Get,
    List,
    Set,
    Create,
    Remove,
    Check,
}

/// One operation of a multi; its record follows, as `put_…_body` writes it (a check's is a removal's).
pub(super) fn put_part(out: &mut Vec<u8>, part: Part) {
    put_multi_header(
        out,
        match part {
            Part::Get => GET_DATA,
            Part::List => GET_CHILDREN,
            Part::Set => SET_DATA,
            Part::Create => CREATE,
            Part::Remove => DELETE,
            Part::Check => CHECK,
        },
        false,
    );
}

/// What ends a multi.
pub(super) fn put_multi_end(out: &mut Vec<u8>) {
    put_multi_header(out, ERROR, true);
}

fn put_multi_header(out: &mut Vec<u8>, opcode: i32, done: bool) {
    put_i32(out, opcode);
    put_bool(out, done);
    put_i32(out, -1);
}

/// The answer to the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connected {
    /// What was granted; 0 or less when the server refuses a session.
    pub timeout_ms: i32,
}

impl Connected {
    pub(super) fn read(frame: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(frame);
        let _protocol_version = reader.i32()?;
        let timeout_ms = reader.i32()?;
        let _session_id = reader.i64()?;
        let _password = reader.bytes()?;
        // Servers before 3.4 end here; others say whether they are read-only.
        if !reader.is_empty() {
            reader.bool()?;
        }
        Ok(Self { timeout_ms })
    }
}

/// What every reply begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyHeader {
    pub xid: i32,
    pub error: i32,
}

impl ReplyHeader {
    /// The header, and the record behind it.
    pub(super) fn read(frame: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut reader = Reader::new(frame);
        let xid = reader.i32()?;
        let _zxid = reader.i64()?;
        let header = Self { xid, error: reader.i32()? };
        Ok((header, reader.rest()))
    }
}

/// Walks a reply's record to its end. Answers 0, or the error of the multi's first operation that has one: a
/// multi that failed has no error in its header.
pub(super) fn judge(kind: Kind, body: &[u8]) -> Result<i32, Malformed> {
    let mut reader = Reader::new(body);
    let error = match kind {
        Kind::Get => {
            reader.bytes()?;
            stat(&mut reader)?
        }
        Kind::Exists | Kind::Set => stat(&mut reader)?,
        Kind::List => {
            children(&mut reader)?;
            stat(&mut reader)?
        }
        Kind::Sync | Kind::Create => {
            reader.bytes()?;
            0
        }
        Kind::Remove => 0,
        Kind::Multi | Kind::MultiRead => parts(&mut reader)?,
    };
    if reader.is_empty() { Ok(error) } else { Err(Malformed) }
}

fn stat(reader: &mut Reader<'_>) -> Result<i32, Malformed> {
    reader.raw(STAT_BYTES).map(|_| 0)
}

fn children(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    for _ in 0..reader.i32()?.max(0) {
        reader.bytes()?;
    }
    Ok(())
}

fn parts(reader: &mut Reader<'_>) -> Result<i32, Malformed> {
    let mut first_error = 0;
    loop {
        let opcode = reader.i32()?;
        let done = reader.bool()?;
        let _error = reader.i32()?;
        if done {
            return Ok(first_error);
        }
        match opcode {
            ERROR => {
                let error = reader.i32()?;
                if first_error == 0 {
                    first_error = error;
                }
            }
            CREATE => {
                reader.bytes()?;
            }
            SET_DATA => {
                stat(reader)?;
            }
            DELETE | CHECK => {}
            GET_DATA => {
                reader.bytes()?;
                stat(reader)?;
            }
            GET_CHILDREN => children(reader)?,
            _ => return Err(Malformed),
        }
    }
}

/// The names in the answer to a list.
pub(super) fn read_children(body: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut reader = Reader::new(body);
    // The count is only believed as far as the bytes go.
    let count = reader.i32()?.max(0);
    let mut names = Vec::new();
    for _ in 0..count {
        let name = std::str::from_utf8(reader.bytes()?).map_err(|_| Malformed)?;
        names.push(name.to_owned());
    }
    stat(&mut reader)?;
    Ok(names)
}

pub(super) const NO_NODE: i32 = -101;
pub(super) const NODE_EXISTS: i32 = -110;

/// An error code's name, as ZooKeeper's documentation has it.
pub(super) fn error_name(code: i32) -> String {
    let name = match code {
        -1 => "SystemError",
        -2 => "RuntimeInconsistency",
        -3 => "DataInconsistency",
        -4 => "ConnectionLoss",
        -5 => "MarshallingError",
        -6 => "Unimplemented",
        -7 => "OperationTimeout",
        -8 => "BadArguments",
        -13 => "NewConfigNoQuorum",
        -14 => "ReconfigInProgress",
        -15 => "UnknownSession",
        -100 => "APIError",
        -101 => "NoNode",
        -102 => "NoAuth",
        -103 => "BadVersion",
        -108 => "NoChildrenForEphemerals",
        -110 => "NodeExists",
        -111 => "NotEmpty",
        -112 => "SessionExpired",
        -113 => "InvalidCallback",
        -114 => "InvalidACL",
        -115 => "AuthFailed",
        -118 => "SessionMoved",
        -119 => "NotReadOnly",
        -120 => "EphemeralOnLocalSession",
        -121 => "NoWatcher",
        -123 => "ReconfigDisabled",
        -124 => "SessionClosedRequireSaslAuth",
        -125 => "QuotaExceeded",
        -127 => "Throttled",
        other => return format!("error {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn path(path: &str) -> impl FnOnce(&mut Vec<u8>) {
        move |out: &mut Vec<u8>| out.extend_from_slice(path.as_bytes())
    }

    fn put(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        hex::encode(out)
    }

    fn hex(text: &str) -> Vec<u8> {
        hex::decode(text.replace([' ', '\n'], "")).unwrap()
    }

    /// The bytes as ZooKeeper's own client sends them.
    #[test]
    fn requests_are_the_bytes_that_zookeeper_reads() {
        let golden = [
            (
                put(|out| put_connect(out, 30_000)),
                "0000002d 00000000 0000000000000000 00007530 0000000000000000 00000010
                 00000000000000000000000000000000 00",
            ),
            (put(put_ping), "00000008 fffffffe 0000000b"),
            (put(|out| put_close(out, 7)), "00000008 00000007 fffffff5"),
            (
                put(|out| put_request(out, 1, Kind::Get, |out| put_read_body(out, path("/a")))),
                "0000000f 00000001 00000004 00000002 2f61 00",
            ),
            (
                put(|out| put_request(out, 1, Kind::Exists, |out| put_read_body(out, path("/a")))),
                "0000000f 00000001 00000003 00000002 2f61 00",
            ),
            (
                put(|out| put_request(out, 1, Kind::List, |out| put_read_body(out, path("/a")))),
                "0000000f 00000001 0000000c 00000002 2f61 00",
            ),
            (
                put(|out| put_request(out, 1, Kind::Sync, |out| put_sync_body(out, path("/a")))),
                "0000000e 00000001 00000009 00000002 2f61",
            ),
            (
                put(|out| put_request(out, 2, Kind::Set, |out| put_set_body(out, path("/a"), b"xyz"))),
                "00000019 00000002 00000005 00000002 2f61 00000003 78797a ffffffff",
            ),
            (
                put(|out| put_request(out, 3, Kind::Create, |out| put_create_body(out, path("/a"), b""))),
                "00000031 00000003 00000001 00000002 2f61 00000000
                 00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 00000000",
            ),
            (
                put(|out| put_request(out, 4, Kind::Remove, |out| put_remove_body(out, path("/a")))),
                "00000012 00000004 00000002 00000002 2f61 ffffffff",
            ),
            (
                put(|out| {
                    put_request(out, 5, Kind::Multi, |out| {
                        put_part(out, Part::Check);
                        put_remove_body(out, path("/a"));
                        put_part(out, Part::Set);
                        put_set_body(out, path("/a"), b"");
                        put_multi_end(out);
                    });
                }),
                "0000003b 00000005 0000000e
                 0000000d 00 ffffffff 00000002 2f61 ffffffff
                 00000005 00 ffffffff 00000002 2f61 00000000 ffffffff
                 ffffffff 01 ffffffff",
            ),
            (
                put(|out| {
                    put_request(out, 6, Kind::MultiRead, |out| {
                        put_part(out, Part::Get);
                        put_read_body(out, path("/a"));
                        put_part(out, Part::List);
                        put_read_body(out, path("/b"));
                        put_multi_end(out);
                    });
                }),
                "00000031 00000006 00000016
                 00000004 00 ffffffff 00000002 2f61 00
                 00000008 00 ffffffff 00000002 2f62 00
                 ffffffff 01 ffffffff",
            ),
        ];
        for (got, expected) in golden {
            assert_eq!(got, expected.replace([' ', '\n'], ""));
        }
    }

    #[test]
    fn the_handshake_s_answer_is_read_with_and_without_its_last_byte() {
        let with = hex("00000000 00007530 0100000000000001 00000010 000102030405060708090a0b0c0d0e0f 00");
        assert_eq!(Connected::read(&with), Ok(Connected { timeout_ms: 30_000 }));
        assert_eq!(Connected::read(&with[..with.len() - 1]), Ok(Connected { timeout_ms: 30_000 }));
        assert_eq!(Connected::read(&with[..10]), Err(Malformed));
    }

    const STAT: [u8; STAT_BYTES] = [7; STAT_BYTES];

    #[test]
    fn replies_are_walked_to_their_last_byte() {
        let get = [&hex("00000003 78797a"), &STAT[..]].concat();
        let list = [&hex("00000002 00000001 61 00000002 6162"), &STAT[..]].concat();
        let multi =
            [&hex("00000001 00 00000000 00000002 2f61 00000005 00 00000000")[..], &STAT, &hex("ffffffff 01 ffffffff")];
        let multi_read = [
            &hex("00000004 00 00000000 ffffffff")[..],
            &STAT,
            &hex("00000008 00 00000000 00000001 00000001 61 ffffffff 01 ffffffff"),
        ];
        for (kind, body) in [
            (Kind::Get, get),
            (Kind::Exists, STAT.to_vec()),
            (Kind::Set, STAT.to_vec()),
            (Kind::List, list.clone()),
            (Kind::Create, hex("00000002 2f61")),
            (Kind::Sync, hex("00000002 2f61")),
            (Kind::Remove, Vec::new()),
            (Kind::Multi, multi.concat()),
            (Kind::MultiRead, multi_read.concat()),
        ] {
            assert_eq!(judge(kind, &body), Ok(0), "{kind:?}");
            for length in 0..body.len() {
                assert_eq!(judge(kind, &body[..length]), Err(Malformed), "{kind:?} cut to {length}");
            }
            assert_eq!(judge(kind, &[&body[..], &[0]].concat()), Err(Malformed), "{kind:?} and a byte more");
        }
        assert_eq!(read_children(&list), Ok(vec!["a".to_owned(), "ab".to_owned()]));
        assert_eq!(read_children(&hex("7fffffff 00000001 61")), Err(Malformed));
    }

    /// Its header says that all is well; the operation that failed says why, those before it 0, those after it -2.
    #[test]
    fn a_multi_that_failed_is_told_by_its_first_error() {
        let body = hex("ffffffff 00 00000000 00000000
             ffffffff 00 ffffff9b ffffff9b
             ffffffff 00 fffffffe fffffffe
             ffffffff 01 ffffffff");
        assert_eq!(judge(Kind::Multi, &body), Ok(NO_NODE));
        assert_eq!((error_name(NO_NODE), error_name(NODE_EXISTS)), ("NoNode".into(), "NodeExists".into()));
        assert_eq!(error_name(-999), "error -999");
    }
}
