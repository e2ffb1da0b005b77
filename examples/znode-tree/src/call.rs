//! The bytes between the adapter and the state machine: calls, replies, events.
//!
//! All numbers are big-endian, as everywhere in ZooKeeper's protocol.
//!
//! **Call** (a command or a query):
//!
//! ```text
//! version u8 = 1 | operation i32 | identities u16, each: scheme (u16 + text), id (u32 + text) | body
//! ```
//!
//! The body is the request record exactly as the client sent it, without the request header. The
//! session is the host's (`ctx.session()`), so it is not repeated here.
//!
//! **Reply** (to a command, or the answer to a query):
//!
//! ```text
//! error i32 | body
//! ```
//!
//! (an answer that the host would find too long is a [`LongAnswer`] instead),
//! ready to be put behind a reply header's `xid` and `zxid`. With an error there is no body; a multi
//! that failed is error 0 with the results of its entries. The zxid is the index that comes with the
//! reply: it grows with each entry of the group's log, with gaps where an entry is none of ours
//! (sessions, timers), and has no epoch half. An error is an ordinary reply: a call is *rejected*
//! only when its bytes are no call, which no adapter sends.
//!
//! **Event** (what a command, a timer or the end of a session changed, for the watches): as
//! [`Changes`] says. An entry that changes much emits several; together they are its changes in
//! order.
//!
//! **Which operations go where** is [`route`]. Beyond ZooKeeper's and ClickHouse's numbers there are
//! a few of our own, [`own`], which the adapter must never let a client send: it asks `route` with
//! the client's number.

use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::tree::index;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::op;

/// The version byte of calls and events.
const VERSION: u8 = 1;

/// Operations that no client may send. Their bodies and answers are Jute as well.
pub mod own {
    /// Query, no body: `{nodes i64, ephemerals i64, sessions with ephemerals i64, data bytes i64,
    /// paths' bytes i64}`, for `mntr` and `srvr`.
    pub const STATUS: i32 = 10_000;
    /// Query, no body: a vector of `{session i64, paths vector}`, sessions and paths in order, for
    /// `dump`.
    pub const EPHEMERALS: i32 = 10_001;
    /// Command, `{members buffer}`: becomes the data of `/zookeeper/config`, with the entry's zxid as its version behind it
    /// (of `/keeper/config`, which has none), if the members differ; answered as a getData of it.
    pub const SET_CONFIG: i32 = 10_002;
    /// Query, `{paths vector}`: for each path whether the caller may read it, as a byte (1, 0; 2 when
    /// there is no such node).
    pub const MAY_READ: i32 = 10_003;
    /// Command, no body: the import of another server's tree begins; see [`ops::load`](crate::ops::load). Answer:
    /// `{nodes i64}`, how many there are.
    pub const LOAD_BEGIN: i32 = 10_004;
    /// Command, `{nodes loaded before i64, vector of nodes}`, a node `{path, data buffer, acl vector, czxid i64, mzxid
    /// i64, pzxid i64, ctime i64, mtime i64, owner i64, version i32, aversion i32, children created i32, child changes
    /// i32}`, after its parent. Answer: `{nodes loaded i64}`.
    pub const LOAD: i32 = 10_005;
    /// Command, `{nodes loaded i64}`: the import is over. Answer: `{nodes i64}`, how many there are.
    pub const LOAD_END: i32 = 10_006;
    /// Query, `{from i64, a call to the end}`: part of the answer to that call; see [`Piece`](super::Piece).
    pub const PIECE: i32 = 10_007;
}

/// The longest reply and answer that the host takes, bytes.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How much of an answer is in one piece of it, bytes.
pub const PIECE_BYTES: usize = ANSWER_BYTES_MAX - 64;
/// The longest answer that is given at all, bytes: what an adapter hands to the host in one call is at most 64 MiB.
pub const LONG_ANSWER_BYTES_MAX: usize = 40 << 20;
/// In the place of an error: the answer would be too long. No client ever sees it.
const TOO_LONG: i32 = 10_000;

/// What is answered when the answer would be longer than [`ANSWER_BYTES_MAX`]:
///
/// ```text
/// error i32 = 10000 | the answer's length u64 | the call that was asked
/// ```
///
/// It can be had by [`own::PIECE`], piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongAnswer<'a> {
    /// Bytes of the whole answer, its error number included.
    pub length: u64,
    /// The call.
    pub call: &'a [u8],
}

impl<'a> LongAnswer<'a> {
    /// Reads one; `None` when it is an answer itself.
    pub fn decode(answer: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(answer);
        if reader.i32() != Ok(TOO_LONG) {
            return None;
        }
        Some(Self { length: reader.i64().ok()? as u64, call: reader.rest() })
    }

    /// Instead of an answer that is too long. A call that is long itself gets none.
    pub fn encode(&self) -> Vec<u8> {
        if self.call.len() > PIECE_BYTES / 2 {
            return error_reply(ErrorCode::SystemError);
        }
        let mut bytes = Vec::with_capacity(12 + self.call.len());
        Writer::new(&mut bytes).i32(TOO_LONG).i64(self.length as i64).raw(self.call);
        bytes
    }
}

/// Part of an answer: the whole one's length u64 and digest u64, and the bytes from where it was asked, [`PIECE_BYTES`] at
/// most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which answer it is a piece of: pieces of equal answers fit together, whenever they were asked for.
    pub of: Whole,
    /// Those of this piece; none when it begins behind the end.
    pub bytes: &'a [u8],
}

/// What an answer is known by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// Bytes.
    pub length: u64,
    /// Of all of them, with a seed that no client knows.
    pub digest: u64,
}

impl<'a> Piece<'a> {
    /// The piece of `answer` that begins at `from`.
    pub fn of(answer: &'a [u8], seed: u64, from: u64) -> Self {
        let rest = usize::try_from(from).ok().and_then(|from| answer.get(from..)).unwrap_or_default();
        let of = Whole { length: answer.len() as u64, digest: index::digest(seed, answer) };
        Self { of, bytes: rest.get(..PIECE_BYTES).unwrap_or(rest) }
    }

    /// Reads one.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let of = Whole { length: reader.i64()? as u64, digest: reader.i64()? as u64 };
        Ok(Self { of, bytes: reader.rest() })
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + self.bytes.len());
        Writer::new(&mut bytes).i64(self.of.length as i64).i64(self.of.digest as i64).raw(self.bytes);
        bytes
    }
}

/// Where a client's operation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Through the log, to `apply`.
    Command,
    /// To `query`.
    Query,
    /// The adapter's own: ping, auth, sync, whoAmI, the watch tables, the session. A reconfig too, which it asks the state
    /// machine leave for by a query of the same body.
    Adapter,
    /// Nobody's: `Unimplemented`.
    Unknown,
}

/// Where a client's operation goes. [`own`] operations are `Unknown` here.
pub fn route(operation: i32) -> Route {
    match operation {
        op::CREATE
        | op::CREATE2
        | op::CREATE_CONTAINER
        | op::CREATE_TTL
        | op::DELETE
        | op::DELETE_CONTAINER
        | op::SET_DATA
        | op::SET_ACL
        | op::CHECK
        | op::MULTI
        | op::CREATE_IF_NOT_EXISTS
        | op::REMOVE_RECURSIVE
        | op::TRY_REMOVE
        | op::CHECK_NOT_EXISTS
        | op::CHECK_STAT => Route::Command,
        op::EXISTS
        | op::GET_DATA
        | op::GET_ACL
        | op::GET_CHILDREN
        | op::GET_CHILDREN2
        | op::MULTI_READ
        | op::GET_EPHEMERALS
        | op::GET_ALL_CHILDREN_NUMBER
        | op::SET_WATCHES
        | op::SET_WATCHES2
        | op::ADD_WATCH
        | op::FILTERED_LIST
        | op::FILTERED_LIST_WITH_STATS_AND_DATA
        | op::LIST_RECURSIVE => Route::Query,
        op::SYNC
        | op::RECONFIG
        | op::PING
        | op::CHECK_WATCHES
        | op::REMOVE_WATCHES
        | op::AUTH
        | op::SASL
        | op::WHO_AM_I
        | op::CLOSE_SESSION => Route::Adapter,
        _ => Route::Unknown,
    }
}

/// Whom a client has proved to be: `digest` with `user:base64`, `ip` with its address, `super`.
/// ([`acl`](crate::acl) says what each may do.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The scheme.
    pub scheme: &'a str,
    /// Who, in the words of the scheme.
    pub id: &'a str,
}

/// A command or a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// ZooKeeper's operation code.
    pub operation: i32,
    /// The caller's identities, in the order they were added.
    pub identities: Vec<Identity<'a>>,
    /// The request record.
    pub body: &'a [u8],
}

impl<'a> Call<'a> {
    /// Reads one.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(Malformed);
        }
        let operation = reader.i32()?;
        let mut identities = Vec::new();
        for _ in 0..reader.u16()? {
            identities.push(read_identity(&mut reader)?);
        }
        Ok(Self { operation, identities, body: reader.rest() })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        call_head(self.operation, self.identities.iter().copied(), out);
        out.extend_from_slice(self.body);
    }
}

/// Appends all of a call but the body, which the caller appends as it came: for an adapter that has
/// the identities' bytes in hand and copies each request once.
pub fn call_head<'i>(operation: i32, identities: impl ExactSizeIterator<Item = Identity<'i>>, out: &mut Vec<u8>) {
    let mut writer = Writer::new(out);
    writer.u8(VERSION).i32(operation).u16(u16::try_from(identities.len()).unwrap_or(u16::MAX));
    for identity in identities.take(usize::from(u16::MAX)) {
        write_identity(identity, &mut writer);
    }
}

fn read_identity<'a>(reader: &mut Reader<'a>) -> Result<Identity<'a>, Malformed> {
    let scheme_length = usize::from(reader.u16()?);
    let scheme = std::str::from_utf8(reader.raw(scheme_length)?).map_err(|_| Malformed)?;
    let id_length = usize::try_from(reader.u32()?).map_err(|_| Malformed)?;
    let id = std::str::from_utf8(reader.raw(id_length)?).map_err(|_| Malformed)?;
    Ok(Identity { scheme, id })
}

/// A scheme longer than 65,535 bytes, which is none of ours, is written as an empty one.
fn write_identity(identity: Identity<'_>, out: &mut Writer<'_>) {
    let scheme = if identity.scheme.len() > usize::from(u16::MAX) { "" } else { identity.scheme };
    out.u16(u16::try_from(scheme.len()).unwrap_or(0)).raw(scheme.as_bytes());
    out.count(identity.id.len()).raw(identity.id.as_bytes());
}

/// Splits a reply or an answer into error number and body.
pub fn split_reply(bytes: &[u8]) -> Result<(i32, &[u8]), Malformed> {
    let mut reader = Reader::new(bytes);
    Ok((reader.i32()?, reader.rest()))
}

/// A reply without a body.
pub fn error_reply(code: ErrorCode) -> Vec<u8> {
    code.number().to_be_bytes().to_vec()
}

/// Who may see a change: ZooKeeper sends no event about a node to a client without READ on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readers<'a> {
    /// Everybody.
    All,
    /// Whoever has one of these entries of the node's ACL (or is `super`): ask
    /// [`acl::is_one_of`](crate::acl::is_one_of).
    Some(Vec<Identity<'a>>),
}

/// One thing that watches wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// What happened.
    pub event: EventType,
    /// To which node.
    pub path: &'a str,
    /// Who may know.
    pub readers: Readers<'a>,
}

/// The count of readers that stands for everybody.
const ALL_READERS: u16 = u16::MAX;

/// Reads the changes of an event, in ZooKeeper's order: a node's creation or deletion before
/// `NodeChildrenChanged` of its parent, the entries of a multi one after the other.
///
/// ```text
/// version u8 = 1 | then to the end, each:
///   event u8 (1 created, 2 deleted, 3 data changed, 4 children changed)
///   readers u16 (0xffff: everybody), each: scheme (u16 + text), id (u32 + text)
///   path (u32 + text)
/// ```
///
/// The iterator ends after the first malformed change, which it gives as an error.
#[derive(Clone, Debug)]
pub struct Changes<'a> {
    reader: Reader<'a>,
    is_broken: bool,
}

impl<'a> Changes<'a> {
    /// The changes in an event's bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(Malformed);
        }
        Ok(Self { reader, is_broken: false })
    }

    fn change(&mut self) -> Result<Change<'a>, Malformed> {
        let event = EventType::from_number(self.reader.u8()?).ok_or(Malformed)?;
        let readers = match self.reader.u16()? {
            ALL_READERS => Readers::All,
            count => {
                let mut some = Vec::new();
                for _ in 0..count {
                    some.push(read_identity(&mut self.reader)?);
                }
                Readers::Some(some)
            }
        };
        let length = usize::try_from(self.reader.u32()?).map_err(|_| Malformed)?;
        let path = std::str::from_utf8(self.reader.raw(length)?).map_err(|_| Malformed)?;
        Ok(Change { event, path, readers })
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = Result<Change<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_broken || self.reader.rest().is_empty() {
            return None;
        }
        let change = self.change();
        self.is_broken = change.is_err();
        Some(change)
    }
}

/// Collects an entry's changes into the bytes of events.
#[derive(Debug, Default)]
pub struct ChangeWriter {
    full: Vec<Vec<u8>>,
    bytes: Vec<u8>,
}

impl ChangeWriter {
    /// No event is longer, unless one change is. And that is below the host's limit of 1 MiB: its path is at most
    /// [`BYTES_MAX`](crate::path::BYTES_MAX) long, its readers take no more than
    /// [`LIST_BYTES_MAX`](crate::acl::LIST_BYTES_MAX).
    const EVENT_BYTES: usize = 256 << 10;

    /// Appends a change. `readers` as in [`Readers`]: `None` is everybody.
    pub fn push<'i>(
        &mut self,
        event: EventType,
        path: &[u8],
        readers: Option<impl ExactSizeIterator<Item = Identity<'i>>>,
    ) {
        let before = self.bytes.len();
        if self.bytes.is_empty() {
            // Room for what most writes change.
            self.bytes.reserve(2 * (path.len() + 16));
            self.bytes.push(VERSION);
        }
        let mut out = Writer::new(&mut self.bytes);
        out.u8(event as u8);
        match readers {
            None => {
                out.u16(ALL_READERS);
            }
            Some(readers) => {
                // A list of more entries than that is longer than lists can be.
                let count = u16::try_from(readers.len()).unwrap_or(ALL_READERS - 1).min(ALL_READERS - 1);
                out.u16(count);
                for identity in readers.take(usize::from(count)) {
                    write_identity(identity, &mut out);
                }
            }
        }
        out.count(path.len()).raw(path);
        if before > 0 && self.bytes.len() > Self::EVENT_BYTES {
            let mut next = vec![VERSION];
            next.extend(self.bytes.drain(before..));
            self.full.push(std::mem::replace(&mut self.bytes, next));
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.full.is_empty() && self.bytes.is_empty()
    }

    /// Bytes of all changes so far.
    pub fn len(&self) -> usize {
        self.full.iter().map(Vec::len).sum::<usize>() + self.bytes.len()
    }

    /// The events' bytes, in order.
    pub fn events(&self) -> impl Iterator<Item = &[u8]> {
        let last = (!self.bytes.is_empty()).then_some(self.bytes.as_slice());
        self.full.iter().map(Vec::as_slice).chain(last)
    }
}

/// What setWatches and setWatches2 answer here (ZooKeeper's reply has no body, so the adapter sends
/// none): the events that the client has missed and that fire at once, `vector of {event i32, path}`.
/// Of the paths not in it the adapter keeps the watch; of the others it does not.
pub fn read_missed(body: &[u8]) -> Result<Vec<(EventType, &str)>, Malformed> {
    let mut reader = Reader::new(body);
    let mut missed = Vec::new();
    for _ in 0..reader.count()?.unwrap_or(0) {
        let event = u8::try_from(reader.i32()?).ok().and_then(EventType::from_number).ok_or(Malformed)?;
        missed.push((event, reader.text()?.ok_or(Malformed)?));
    }
    Ok(missed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_call_is_the_bytes_this_page_says() {
        let identities = vec![Identity { scheme: "ip", id: "10.0.0.1" }];
        let call = Call { operation: op::GET_DATA, identities, body: b"body" };
        let mut bytes = Vec::new();
        call.encode(&mut bytes);
        assert_eq!(bytes, b"\x01\0\0\0\x04\0\x01\0\x02ip\0\0\0\x0810.0.0.1body");
        assert_eq!(Call::decode(&bytes), Ok(call));
        for cut in 0..bytes.len() - 4 {
            assert_eq!(Call::decode(&bytes[..cut]), Err(Malformed), "{cut}");
        }
    }

    #[test]
    fn changes_come_out_in_order_with_their_readers() {
        let mut writer = ChangeWriter::default();
        assert!(writer.is_empty());
        let readers = [Identity { scheme: "digest", id: "u:h" }];
        writer.push(EventType::NodeCreated, b"/a/b", Some(readers.into_iter()));
        writer.push(EventType::NodeChildrenChanged, b"/a", None::<std::iter::Empty<_>>);
        let events: Vec<_> = writer.events().collect();
        assert_eq!(events, [b"\x01\x01\0\x01\0\x06digest\0\0\0\x03u:h\0\0\0\x04/a/b\x04\xff\xff\0\0\0\x02/a"]);
        let changes: Vec<_> = Changes::decode(events[0]).unwrap().map(Result::unwrap).collect();
        assert_eq!(changes[0].readers, Readers::Some(readers.to_vec()));
        assert_eq!(changes[1], Change { event: EventType::NodeChildrenChanged, path: "/a", readers: Readers::All });
        let cut: Vec<_> = Changes::decode(&events[0][..20]).unwrap().collect();
        assert_eq!(cut, [Err(Malformed)]);
    }

    #[test]
    fn the_longest_change_is_below_the_hosts_limit() {
        let path = format!("/{}", "p".repeat(crate::path::BYTES_MAX - 1));
        let id = "i".repeat(1_000);
        let most = crate::acl::LIST_BYTES_MAX / (12 + "digest".len() + id.len());
        let readers = vec![Identity { scheme: "digest", id: &id }; most];
        let mut writer = ChangeWriter::default();
        for _ in 0..2 {
            writer.push(EventType::NodeDataChanged, b"/short", None::<std::iter::Empty<_>>);
            writer.push(EventType::NodeDataChanged, path.as_bytes(), Some(readers.iter().copied()));
        }
        let events: Vec<_> = writer.events().collect();
        assert!(events.iter().all(|event| event.len() < 1 << 20), "{}", writer.len());
        let changes: Vec<_> = events.iter().flat_map(|event| Changes::decode(event).unwrap()).collect();
        assert_eq!(changes.len(), 4);
        assert!(changes.iter().all(Result::is_ok));
    }

    #[test]
    fn many_changes_are_several_events_each_below_the_hosts_limit() {
        let mut writer = ChangeWriter::default();
        for number in 0..20_000 {
            let path = format!("/sessions/of/a/busy/client/{number:010}");
            writer.push(EventType::NodeDeleted, path.as_bytes(), None::<std::iter::Empty<_>>);
        }
        let events: Vec<_> = writer.events().collect();
        assert!(events.len() > 1 && events.iter().all(|event| event.len() < 1 << 20));
        let paths = events.iter().flat_map(|event| Changes::decode(event).unwrap()).map(|change| change.unwrap().path);
        assert!(paths.enumerate().all(|(number, path)| path == format!("/sessions/of/a/busy/client/{number:010}")));
    }
}
