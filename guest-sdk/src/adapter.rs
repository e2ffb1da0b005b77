//! Adapters: a module that speaks its own wire protocol on its own TCP port.
//!
//! The host owns the sockets. It hands an adapter what happened ([`Input`]) in batches and carries
//! out what the adapter asks ([`Io`]). An adapter is **not** replicated: each node that listens for
//! a group runs one instance, beside the state machine and without its state, and may lose it at any
//! time, with its connections. What must last goes through [`Io::propose`].
//!
//! # Order
//!
//! Inputs come in the order of the log: what entry *i* emitted ([`Input::Event`]) comes before the
//! reply of entry *i* ([`Input::Applied`]) and before every answer that saw entry *i*
//! ([`Input::Answered`]), and no answer that did not see entry *i* comes after either. So an adapter
//! that keeps watches may register one when its answer comes: nothing is missed between.
//!
//! Commands of one session are applied in the order they were proposed, also when leaders change;
//! commands without one usually are.
//!
//! An adapter is called on one node only, so it need not be deterministic; time and randomness come
//! from [`Io`] all the same, so that it runs in the simulator.

use crate::context::Header;
use crate::random::Random;
use crate::reject;
use crate::reject::Reject;

/// A client connection, unique in the life of an adapter.
pub type ConnectionId = u64;
/// The adapter's own number for something it asked; comes back with the outcome.
pub type Token = u64;

/// How fresh the answer of a query must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Consistency {
    /// This node's state as it is: no network. It holds all that was answered on this node before.
    Local = 0,
    /// All that was acknowledged anywhere before, if clocks run at nearly one speed: no round.
    Lease = 1,
    /// All that was acknowledged anywhere before: a quorum round, shared by all that wait for one.
    Linearizable = 2,
}

/// How something that was asked ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// The reply, the answer.
    Ok(&'a [u8]),
    /// The module refused, with this text.
    Rejected(&'a str),
    /// The module trapped: nothing changed.
    Trapped(&'a str),
    /// The host could not do it.
    Failed {
        /// A stable word, as in the HTTP API's problem documents: `no_leader`, `outcome_unknown`,
        /// `session_not_found`, `session_moved`, `wrong_secret`, `overloaded`, …
        code: &'a str,
        /// What happened.
        detail: &'a str,
    },
}

/// A client session this adapter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id, unique in the group.
    pub id: u64,
    /// Counts its attachments: whoever attached last holds it. What an earlier holder still proposes in
    /// it is refused (`session_moved`).
    pub attachment: u64,
    /// How long it lives without a sign of life, milliseconds: as granted.
    pub timeout_ms: u64,
    /// What a client must show to attach to it.
    pub secret: [u8; 16],
}

/// Why a session is no longer this adapter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was closed, or timed out.
    Ended,
    /// Somebody attached to it elsewhere, or here by another connection.
    Moved,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A client connected.
    Opened {
        /// Its number.
        connection: ConnectionId,
        /// From where: `127.0.0.1:50123`, `[::1]:50123`.
        peer: &'a str,
    },
    /// Bytes of a client, cut anywhere.
    Data {
        /// Whose.
        connection: ConnectionId,
        /// At least one.
        bytes: &'a [u8],
    },
    /// A connection is gone: the client closed it, a limit was passed, or [`Io::close`] is done.
    Closed {
        /// Which. The number is not used again.
        connection: ConnectionId,
    },
    /// A command ([`Io::propose`]) or the end of a session ([`Io::close_session`]) was applied on this node, or will
    /// not be.
    Applied {
        /// As proposed.
        token: Token,
        /// The entry's index; 0 when there is none.
        index: u64,
        /// The module's reply.
        outcome: Outcome<'a>,
    },
    /// A query was answered.
    Answered {
        /// As asked.
        token: Token,
        /// The last entry the answer saw.
        index: u64,
        /// The module's answer.
        outcome: Outcome<'a>,
    },
    /// The state machine emitted an event.
    Event {
        /// The entry that did.
        index: u64,
        /// That entry's time, Unix milliseconds.
        time_ms: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A session was opened or attached to, or could not be.
    Session {
        /// As asked.
        token: Token,
        /// The entry's index; 0 when there is none.
        index: u64,
        /// The session, or why not (`session_not_found`, `wrong_secret`, `overloaded`, …).
        session: Result<Session, Outcome<'a>>,
    },
    /// A session that this adapter holds is no longer its.
    SessionLost {
        /// Its id.
        session: u64,
        /// The attachment that ended.
        attachment: u64,
        /// The index of the entry that did it.
        index: u64,
        /// Why.
        why: Lost,
    },
    /// A timer of [`Io::set_timer`] is due.
    Timer {
        /// Its number.
        id: u64,
    },
    /// What [`Io::ask`] asked.
    Told {
        /// As asked.
        token: Token,
        /// JSON, or why not.
        outcome: Outcome<'a>,
    },
}

const OPENED: u8 = 1;
const DATA: u8 = 2;
const CLOSED: u8 = 3;
const APPLIED: u8 = 4;
const ANSWERED: u8 = 5;
const EVENT: u8 = 6;
const SESSION: u8 = 7;
const SESSION_LOST: u8 = 8;
const TIMER: u8 = 9;
const TOLD: u8 = 10;

const SEND: u8 = 1;
const CLOSE: u8 = 2;
const PROPOSE: u8 = 3;
const QUERY: u8 = 4;
const OPEN_SESSION: u8 = 5;
const ATTACH_SESSION: u8 = 6;
const TOUCH: u8 = 7;
const CLOSE_SESSION: u8 = 8;
const SET_TIMER: u8 = 9;
const CLEAR_TIMER: u8 = 10;
const ASK: u8 = 11;
const HOLD: u8 = 12;

/// Bytes read from the front, field by field.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.0).ok()
    }

    fn outcome(&mut self) -> Option<Outcome<'a>> {
        Some(match self.u8()? {
            0 => Outcome::Ok(self.0),
            1 => Outcome::Rejected(self.text()?),
            2 => Outcome::Trapped(self.text()?),
            3 => {
                let (code, detail) = self.text()?.split_once(": ")?;
                Outcome::Failed { code, detail }
            }
            _ => return None,
        })
    }
}

/// Appends one record: `length u32, kind u8, words, bytes`; the length counts what follows it.
fn record(out: &mut Vec<u8>, kind: u8, words: &[u64], tail: &[&[u8]]) {
    let length = 1 + words.len() * 8 + tail.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(4 + length);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    out.push(kind);
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for part in tail {
        out.extend_from_slice(part);
    }
}

/// The next record's kind and body.
fn next_record<'a>(bytes: &mut Fields<'a>) -> Option<(u8, Fields<'a>)> {
    let length = bytes.u32()? as usize;
    let mut body = Fields(bytes.bytes(length)?);
    Some((body.u8()?, body))
}

impl<'a> Input<'a> {
    /// Reads the record in front of `bytes` and takes it off. `None` when it is not whole, or of a
    /// kind that this SDK does not know.
    fn decode(kind: u8, mut body: Fields<'a>) -> Option<Self> {
        Some(match kind {
            OPENED => Self::Opened { connection: body.u64()?, peer: body.text()? },
            DATA => Self::Data { connection: body.u64()?, bytes: body.0 },
            CLOSED => Self::Closed { connection: body.u64()? },
            APPLIED => Self::Applied { token: body.u64()?, index: body.u64()?, outcome: body.outcome()? },
            ANSWERED => Self::Answered { token: body.u64()?, index: body.u64()?, outcome: body.outcome()? },
            EVENT => Self::Event { index: body.u64()?, time_ms: body.u64()?, bytes: body.0 },
            SESSION => {
                let (token, index) = (body.u64()?, body.u64()?);
                let session = match body.outcome()? {
                    Outcome::Ok(bytes) => {
                        let mut fields = Fields(bytes);
                        let (id, attachment, timeout_ms) = (fields.u64()?, fields.u64()?, fields.u64()?);
                        Ok(Session { id, attachment, timeout_ms, secret: fields.array()? })
                    }
                    refused => Err(refused),
                };
                Self::Session { token, index, session }
            }
            SESSION_LOST => {
                let (session, attachment, index) = (body.u64()?, body.u64()?, body.u64()?);
                let why = if body.u8()? == 1 { Lost::Ended } else { Lost::Moved };
                Self::SessionLost { session, attachment, index, why }
            }
            TIMER => Self::Timer { id: body.u64()? },
            TOLD => Self::Told { token: body.u64()?, outcome: body.outcome()? },
            _ => return None,
        })
    }

    /// Appends the record, as the host writes it: for tests and fuzzing.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let outcome = |outcome: &Outcome<'_>| match *outcome {
            Outcome::Ok(bytes) => (0, bytes.to_vec()),
            Outcome::Rejected(text) => (1, text.as_bytes().to_vec()),
            Outcome::Trapped(text) => (2, text.as_bytes().to_vec()),
            Outcome::Failed { code, detail } => (3, format!("{code}: {detail}").into_bytes()),
        };
        match self {
            Self::Opened { connection, peer } => record(out, OPENED, &[*connection], &[peer.as_bytes()]),
            Self::Data { connection, bytes } => record(out, DATA, &[*connection], &[bytes]),
            Self::Closed { connection } => record(out, CLOSED, &[*connection], &[]),
            Self::Applied { token, index, outcome: ended } => {
                let (flag, bytes) = outcome(ended);
                record(out, APPLIED, &[*token, *index], &[&[flag], &bytes]);
            }
            Self::Answered { token, index, outcome: ended } => {
                let (flag, bytes) = outcome(ended);
                record(out, ANSWERED, &[*token, *index], &[&[flag], &bytes]);
            }
            Self::Event { index, time_ms, bytes } => record(out, EVENT, &[*index, *time_ms], &[bytes]),
            Self::Session { token, index, session: Ok(session) } => {
                let words = [session.id, session.attachment, session.timeout_ms].map(u64::to_le_bytes);
                record(out, SESSION, &[*token, *index], &[&[0], words.as_flattened(), &session.secret]);
            }
            Self::Session { token, index, session: Err(refused) } => {
                let (flag, bytes) = outcome(refused);
                record(out, SESSION, &[*token, *index], &[&[flag], &bytes]);
            }
            Self::SessionLost { session, attachment, index, why } => {
                let why = if *why == Lost::Ended { 1 } else { 2 };
                record(out, SESSION_LOST, &[*session, *attachment, *index], &[&[why]]);
            }
            Self::Timer { id } => record(out, TIMER, &[*id], &[]),
            Self::Told { token, outcome: ended } => {
                let (flag, bytes) = outcome(ended);
                record(out, TOLD, &[*token], &[&[flag], &bytes]);
            }
        }
    }
}

/// What an adapter asked for, as the host reads it: for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Asked {
    Send { connection: ConnectionId, bytes: Vec<u8> },
    Close { connection: ConnectionId },
    Propose { token: Token, session: u64, command: Vec<u8> },
    Query { token: Token, consistency: Consistency, session: u64, query: Vec<u8> },
    OpenSession { token: Token, timeout_ms: u64 },
    AttachSession { token: Token, session: u64, secret: [u8; 16] },
    Touch { session: u64 },
    CloseSession { token: Token, session: u64 },
    SetTimer { id: u64, at_ms: u64 },
    ClearTimer { id: u64 },
    Ask { token: Token, what: String },
    Hold { connection: ConnectionId, hold: bool },
}

impl Asked {
    /// Reads all records; `None` when one is malformed.
    pub fn decode_all(bytes: &[u8]) -> Option<Vec<Self>> {
        let mut rest = Fields(bytes);
        let mut all = Vec::new();
        while !rest.0.is_empty() {
            let (kind, mut body) = next_record(&mut rest)?;
            all.push(match kind {
                SEND => Self::Send { connection: body.u64()?, bytes: body.0.to_vec() },
                CLOSE => Self::Close { connection: body.u64()? },
                PROPOSE => Self::Propose { token: body.u64()?, session: body.u64()?, command: body.0.to_vec() },
                QUERY => {
                    let (token, session) = (body.u64()?, body.u64()?);
                    let consistency = match body.u8()? {
                        0 => Consistency::Local,
                        1 => Consistency::Lease,
                        _ => Consistency::Linearizable,
                    };
                    Self::Query { token, consistency, session, query: body.0.to_vec() }
                }
                OPEN_SESSION => Self::OpenSession { token: body.u64()?, timeout_ms: body.u64()? },
                ATTACH_SESSION => {
                    Self::AttachSession { token: body.u64()?, session: body.u64()?, secret: body.array()? }
                }
                TOUCH => Self::Touch { session: body.u64()? },
                CLOSE_SESSION => Self::CloseSession { token: body.u64()?, session: body.u64()? },
                SET_TIMER => Self::SetTimer { id: body.u64()?, at_ms: body.u64()? },
                CLEAR_TIMER => Self::ClearTimer { id: body.u64()? },
                ASK => Self::Ask { token: body.u64()?, what: body.text()?.to_owned() },
                HOLD => Self::Hold { connection: body.u64()?, hold: body.u8()? != 0 },
                _ => return None,
            });
        }
        Some(all)
    }
}

/// What an adapter knows of its node, and what it may ask of it. Everything is carried out after the
/// call, in the order it was asked.
#[derive(Debug)]
pub struct Io<'call> {
    header: Header,
    flags: u32,
    random: Option<Random>,
    out: &'call mut Vec<u8>,
}

impl<'call> Io<'call> {
    /// For calling an adapter as a plain Rust type. `flags`: 1 when the group has a leader, 2 when it is this node.
    pub fn new(header: Header, flags: u32, out: &'call mut Vec<u8>) -> Self {
        Self { header, flags, random: None, out }
    }

    /// The last entry applied on this node that the inputs so far tell of.
    pub fn applied(&self) -> u64 {
        self.header.index
    }

    /// This node's clock, Unix milliseconds. It may go back.
    pub fn time_ms(&self) -> u64 {
        self.header.time_ms
    }

    /// 64 random bits of this node; not for secrets.
    pub fn random_u64(&mut self) -> u64 {
        let (low, high) = self.header.seed;
        self.random.get_or_insert_with(|| Random::new(low, high)).next_u64()
    }

    /// Whether the group has a leader, as far as this node knows.
    pub fn has_leader(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Whether this node leads the group.
    pub fn leads(&self) -> bool {
        self.flags & 2 != 0
    }

    /// Sends bytes to a client. A client that does not read is disconnected when too much waits for it.
    pub fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        record(self.out, SEND, &[connection], &[bytes]);
    }

    /// Closes a connection after what was sent before is written.
    pub fn close(&mut self, connection: ConnectionId) {
        record(self.out, CLOSE, &[connection], &[]);
    }

    /// Stops reading from a connection, or goes on: while a client has too much under way.
    pub fn hold(&mut self, connection: ConnectionId, hold: bool) {
        record(self.out, HOLD, &[connection], &[&[u8::from(hold)]]);
    }

    /// Proposes a command, in a session that this adapter holds or in none.
    pub fn propose(&mut self, token: Token, session: Option<u64>, command: &[u8]) {
        record(self.out, PROPOSE, &[token, session.unwrap_or(0)], &[command]);
    }

    /// Asks the state machine.
    pub fn query(&mut self, token: Token, consistency: Consistency, session: Option<u64>, query: &[u8]) {
        record(self.out, QUERY, &[token, session.unwrap_or(0)], &[&[consistency as u8], query]);
    }

    /// Opens a session, attached here.
    pub fn open_session(&mut self, token: Token, timeout_ms: u64) {
        record(self.out, OPEN_SESSION, &[token, timeout_ms], &[]);
    }

    /// Attaches a session here, from wherever it was.
    pub fn attach_session(&mut self, token: Token, session: u64, secret: &[u8; 16]) {
        record(self.out, ATTACH_SESSION, &[token, session], &[secret]);
    }

    /// A sign of life of a session; cheap. Its commands are one too.
    pub fn touch(&mut self, session: u64) {
        record(self.out, TOUCH, &[session], &[]);
    }

    /// Ends a session, after what was proposed in it before; [`Input::Applied`] comes with `token`.
    pub fn close_session(&mut self, token: Token, session: u64) {
        record(self.out, CLOSE_SESSION, &[token, session], &[]);
    }

    /// [`Input::Timer`] when this node's clock has passed `at_ms`. Setting a timer that is set moves it.
    pub fn set_timer(&mut self, id: u64, at_ms: u64) {
        record(self.out, SET_TIMER, &[id, at_ms], &[]);
    }

    /// Forgets a timer.
    pub fn clear_timer(&mut self, id: u64) {
        record(self.out, CLEAR_TIMER, &[id], &[]);
    }

    /// Asks the host about itself or for a service; [`Input::Told`] brings JSON. `status`: node, role,
    /// term, indexes, members, traffic (docs/abi.md lists the fields); `reset`: what it sums up begins anew; `snapshot`: takes one now;
    /// `lead`: asks that this node becomes leader; `yield`: that it hands over; `change {…}`: nodes come and go, lead and
    /// are to lead; `recover`: this node goes on without the others, who are lost for good: both where the operator lets adapters
    /// ask for it.
    pub fn ask(&mut self, token: Token, what: &str) {
        record(self.out, ASK, &[token], &[what.as_bytes()]);
    }
}

/// A wire protocol. Exported with `export!(Machine, …, adapter = MyAdapter)`.
pub trait Adapter: Sized + 'static {
    /// A new instance. `settings` is a JSON object: `params` the group's, `listen` the listener's own
    /// (`group create --listen-param`), `node` this node's id.
    fn open(settings: &[u8], io: &mut Io<'_>) -> Result<Self, Reject>;

    /// Something happened.
    fn input(&mut self, io: &mut Io<'_>, input: Input<'_>);

    /// All inputs of a batch were given: a place to ask in bulk for what they need together.
    fn flush(&mut self, io: &mut Io<'_>) {
        let _ = io;
    }

    /// One call of the host: a header and the records of a batch; what is asked is appended to `out`.
    #[doc(hidden)]
    fn step(&mut self, argument: &[u8], out: &mut Vec<u8>) -> Result<(), Reject> {
        let (header, payload) = Header::split(argument)?;
        let mut io = Io::new(header, flags_of(argument), out);
        let mut rest = Fields(payload);
        while !rest.0.is_empty() {
            let (kind, body) = next_record(&mut rest).ok_or_else(|| reject!("a record of the host is cut off"))?;
            // One of a newer host that this adapter knows nothing of.
            if kind == 0 || kind > TOLD {
                continue;
            }
            let input = Input::decode(kind, body).ok_or_else(|| reject!("a record of kind {kind} is malformed"))?;
            self.input(&mut io, input);
        }
        self.flush(&mut io);
        Ok(())
    }
}

/// The flags of a call's header.
pub(crate) fn flags_of(argument: &[u8]) -> u32 {
    argument.get(4..8).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The adapter of a module that has none.
#[doc(hidden)]
#[derive(Debug)]
pub struct NoAdapter;

impl Adapter for NoAdapter {
    fn open(_: &[u8], _: &mut Io<'_>) -> Result<Self, Reject> {
        Err(Reject::new("this module has no adapter"))
    }

    fn input(&mut self, _: &mut Io<'_>, _: Input<'_>) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn every_input_comes_out_as_it_went_in() {
        let session = Session { id: 7, attachment: 9, timeout_ms: 10_000, secret: [3; 16] };
        let failed = Outcome::Failed { code: "no_leader", detail: "nobody: leads" };
        let all = [
            Input::Opened { connection: 1, peer: "[::1]:7" },
            Input::Data { connection: 1, bytes: b"\0\xff" },
            Input::Closed { connection: 1 },
            Input::Applied { token: 2, index: 3, outcome: Outcome::Ok(b"") },
            Input::Applied { token: 2, index: 3, outcome: Outcome::Rejected("no") },
            Input::Answered { token: 2, index: 3, outcome: Outcome::Trapped("oh") },
            Input::Answered { token: 2, index: 0, outcome: failed },
            Input::Event { index: 4, time_ms: 5, bytes: b"event" },
            Input::Session { token: 6, index: 7, session: Ok(session) },
            Input::Session { token: 6, index: 7, session: Err(failed) },
            Input::SessionLost { session: 7, attachment: 9, index: 11, why: Lost::Ended },
            Input::SessionLost { session: 7, attachment: 9, index: 11, why: Lost::Moved },
            Input::Timer { id: u64::MAX },
            Input::Told { token: 1, outcome: Outcome::Ok(b"{}") },
        ];
        for input in all {
            let mut bytes = Vec::new();
            input.encode(&mut bytes);
            let mut fields = Fields(&bytes);
            let (kind, body) = next_record(&mut fields).unwrap();
            assert_eq!(Input::decode(kind, body), Some(input));
            assert!(fields.0.is_empty());
            for cut in 0..bytes.len() {
                assert!(next_record(&mut Fields(&bytes[..cut])).is_none(), "a cut record is not one");
            }
        }
    }

    #[test]
    fn everything_asked_reaches_the_host_in_order() {
        let mut out = Vec::new();
        let mut io = Io::new(Header { index: 5, time_ms: 6, ..Header::default() }, 3, &mut out);
        assert!(io.has_leader() && io.leads());
        io.send(1, b"hello");
        io.propose(2, Some(7), b"command");
        io.query(3, Consistency::Linearizable, None, b"query");
        io.attach_session(4, 7, &[9; 16]);
        io.hold(1, true);
        io.ask(5, "status");
        io.close(1);
        let asked = Asked::decode_all(&out).unwrap();
        assert_eq!(asked.len(), 7);
        assert_eq!(asked[1], Asked::Propose { token: 2, session: 7, command: b"command".to_vec() });
        assert_eq!(asked[3], Asked::AttachSession { token: 4, session: 7, secret: [9; 16] });
        assert_eq!(asked[6], Asked::Close { connection: 1 });
        assert_eq!(Asked::decode_all(&out[..out.len() - 1]), None);
    }
}
