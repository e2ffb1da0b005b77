//! The records of `docs/abi.md`, "Adapters", from the host's side: what an adapter is told is written here, what it
//! asks is read.

use bytes::Bytes;

use crate::group::state::Answer;
use crate::service::Consistency;
use crate::service::ErrorCode;
use crate::service::ServiceError;

/// A client connection, unique in the life of a gateway.
pub type ConnectionId = u64;
/// The adapter's own number for what it asked.
pub type Token = u64;

/// Why a session is no longer an adapter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Closed or timed out.
    Ended,
    /// Attached elsewhere.
    Moved,
}

/// A session as its holder is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: u64,
    /// The entry that attached it.
    pub attachment: u64,
    /// As granted, milliseconds.
    pub timeout_ms: u64,
    /// What a client must show.
    pub secret: [u8; 16],
}

/// A batch of records for one call.
#[derive(Debug, Default)]
pub struct Inputs(Vec<u8>);

impl Inputs {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all records.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The records.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn record(&mut self, kind: u8, words: &[u64], tail: &[&[u8]]) {
        let length = 1 + words.len() * 8 + tail.iter().map(|part| part.len()).sum::<usize>();
        self.0.reserve(4 + length);
        self.0.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        self.0.push(kind);
        for word in words {
            self.0.extend_from_slice(&word.to_le_bytes());
        }
        for part in tail {
            self.0.extend_from_slice(part);
        }
    }

    fn outcome(&mut self, kind: u8, words: &[u64], answer: &Answer) {
        match answer {
            Ok(bytes) => self.record(kind, words, &[&[0], bytes]),
            Err(error) => {
                let (flag, code) = match error.code {
                    ErrorCode::Rejected => (1, ""),
                    ErrorCode::Trapped => (2, ""),
                    other => (3, other.as_str()),
                };
                let between = if flag == 3 { ": " } else { "" };
                self.record(kind, words, &[&[flag], code.as_bytes(), between.as_bytes(), error.detail.as_bytes()]);
            }
        }
    }

    /// A client connected.
    pub fn opened(&mut self, connection: ConnectionId, peer: &str) {
        self.record(1, &[connection], &[peer.as_bytes()]);
    }

    /// Bytes of a client.
    pub fn data(&mut self, connection: ConnectionId, bytes: &[u8]) {
        self.record(2, &[connection], &[bytes]);
    }

    /// A connection is gone.
    pub fn closed(&mut self, connection: ConnectionId) {
        self.record(3, &[connection], &[]);
    }

    /// A command, or a session's end, was applied or will not be.
    pub fn applied(&mut self, token: Token, index: u64, answer: &Answer) {
        self.outcome(4, &[token, index], answer);
    }

    /// A query was answered.
    pub fn answered(&mut self, token: Token, index: u64, answer: &Answer) {
        self.outcome(5, &[token, index], answer);
    }

    /// An entry emitted an event.
    pub fn event(&mut self, index: u64, time_ms: u64, bytes: &[u8]) {
        self.record(6, &[index, time_ms], &[bytes]);
    }

    /// A session was opened or attached to, or not.
    pub fn session(&mut self, token: Token, index: u64, session: Result<Session, &ServiceError>) {
        match session {
            Ok(session) => {
                let words = [session.id, session.attachment, session.timeout_ms].map(u64::to_le_bytes);
                self.record(7, &[token, index], &[&[0], words.as_flattened(), &session.secret]);
            }
            Err(error) => self.outcome(7, &[token, index], &Err(error.clone())),
        }
    }

    /// A session is no longer the adapter's.
    pub fn session_lost(&mut self, session: u64, attachment: u64, index: u64, why: Lost) {
        self.record(8, &[session, attachment, index], &[&[if why == Lost::Ended { 1 } else { 2 }]]);
    }

    /// A timer is due.
    pub fn timer(&mut self, id: u64) {
        self.record(9, &[id], &[]);
    }

    /// What the host was asked about itself.
    pub fn told(&mut self, token: Token, answer: &Answer) {
        self.outcome(10, &[token], answer);
    }
}

/// Something an adapter asks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/abi.md describes each record")]
pub enum Asked {
    Send { connection: ConnectionId, bytes: Bytes },
    Close { connection: ConnectionId },
    Propose { token: Token, session: u64, command: Bytes },
    Query { token: Token, session: u64, consistency: Consistency, query: Bytes },
    OpenSession { token: Token, timeout_ms: u64 },
    AttachSession { token: Token, session: u64, secret: [u8; 16] },
    Touch { session: u64 },
    CloseSession { token: Token, session: u64 },
    SetTimer { id: u64, at_ms: u64 },
    ClearTimer { id: u64 },
    Ask { token: Token, what: String },
    Hold { connection: ConnectionId, hold: bool },
}

/// Bytes that are taken from the front.
struct Fields(Bytes);

impl Fields {
    fn bytes(&mut self, length: usize) -> Option<Bytes> {
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.first_chunk().copied()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Reads all that an adapter asks; the place of the record that is none. The bytes are shared, but for commands.
pub fn read_asked(bytes: Bytes) -> Result<Vec<Asked>, usize> {
    let whole = bytes.len();
    let mut rest = Fields(bytes);
    let mut all = Vec::new();
    while !rest.0.is_empty() {
        let place = whole - rest.0.len();
        all.push(one(&mut rest).ok_or(place)?);
    }
    Ok(all)
}

fn one(rest: &mut Fields) -> Option<Asked> {
    let length = rest.array().map(u32::from_le_bytes)?;
    let mut body = Fields(rest.bytes(usize::try_from(length).ok()?)?);
    Some(match body.u8()? {
        1 => Asked::Send { connection: body.u64()?, bytes: body.0 },
        2 => Asked::Close { connection: body.u64()? },
        // It lives on in the log's cache and until it is applied: it must not keep all that was asked in one step.
        3 => Asked::Propose { token: body.u64()?, session: body.u64()?, command: Bytes::copy_from_slice(&body.0) },
        4 => {
            let (token, session) = (body.u64()?, body.u64()?);
            let consistency = match body.u8()? {
                0 => Consistency::Local,
                1 => Consistency::Lease,
                2 => Consistency::Linearizable,
                _ => return None,
            };
            Asked::Query { token, session, consistency, query: body.0 }
        }
        5 => Asked::OpenSession { token: body.u64()?, timeout_ms: body.u64()? },
        6 => Asked::AttachSession { token: body.u64()?, session: body.u64()?, secret: body.array()? },
        7 => Asked::Touch { session: body.u64()? },
        8 => Asked::CloseSession { token: body.u64()?, session: body.u64()? },
        9 => Asked::SetTimer { id: body.u64()?, at_ms: body.u64()? },
        10 => Asked::ClearTimer { id: body.u64()? },
        11 => Asked::Ask { token: body.u64()?, what: std::str::from_utf8(&body.0).ok()?.to_owned() },
        12 => Asked::Hold { connection: body.u64()?, hold: body.u8()? != 0 },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use statehouse_sdk::adapter;
    use statehouse_sdk::adapter::Input;
    use statehouse_sdk::adapter::Outcome;

    use super::*;

    /// What the host writes is what the SDK would, byte for byte.
    #[test]
    fn host_and_sdk_write_the_same_records() {
        let session = Session { id: 7, attachment: 9, timeout_ms: 10_000, secret: [3; 16] };
        let failed = ServiceError::new(ErrorCode::NoLeader, "nobody: leads");
        let mut ours = Inputs::default();
        ours.opened(1, "[::1]:7");
        ours.data(1, b"\0\xff");
        ours.closed(1);
        ours.applied(2, 3, &Ok(Bytes::from_static(b"reply")));
        ours.applied(2, 3, &Err(ServiceError::new(ErrorCode::Rejected, "no")));
        ours.answered(2, 3, &Err(ServiceError::new(ErrorCode::Trapped, "oh")));
        ours.answered(2, 0, &Err(failed.clone()));
        ours.event(4, 5, b"event");
        ours.session(6, 7, Ok(session));
        ours.session(6, 7, Err(&failed));
        ours.session_lost(7, 9, 11, Lost::Ended);
        ours.session_lost(7, 9, 11, Lost::Moved);
        ours.timer(u64::MAX);
        ours.told(1, &Ok(Bytes::from_static(b"{}")));
        let theirs = adapter::Session { id: 7, attachment: 9, timeout_ms: 10_000, secret: [3; 16] };
        let failed = Outcome::Failed { code: "no_leader", detail: "nobody: leads" };
        let all = [
            Input::Opened { connection: 1, peer: "[::1]:7" },
            Input::Data { connection: 1, bytes: b"\0\xff" },
            Input::Closed { connection: 1 },
            Input::Applied { token: 2, index: 3, outcome: Outcome::Ok(b"reply") },
            Input::Applied { token: 2, index: 3, outcome: Outcome::Rejected("no") },
            Input::Answered { token: 2, index: 3, outcome: Outcome::Trapped("oh") },
            Input::Answered { token: 2, index: 0, outcome: failed },
            Input::Event { index: 4, time_ms: 5, bytes: b"event" },
            Input::Session { token: 6, index: 7, session: Ok(theirs) },
            Input::Session { token: 6, index: 7, session: Err(failed) },
            Input::SessionLost { session: 7, attachment: 9, index: 11, why: adapter::Lost::Ended },
            Input::SessionLost { session: 7, attachment: 9, index: 11, why: adapter::Lost::Moved },
            Input::Timer { id: u64::MAX },
            Input::Told { token: 1, outcome: Outcome::Ok(b"{}") },
        ];
        let mut expected = Vec::new();
        all.iter().for_each(|input| input.encode(&mut expected));
        assert_eq!(ours.into_bytes(), expected);
    }

    #[test]
    fn the_host_reads_what_the_sdk_asks_and_nothing_that_is_cut() {
        let mut out = Vec::new();
        let mut io = adapter::Io::new(Default::default(), 0, &mut out);
        io.send(1, b"hello");
        io.propose(2, Some(7), b"command");
        io.query(3, adapter::Consistency::Lease, None, b"query");
        io.open_session(4, 5000);
        io.attach_session(5, 7, &[9; 16]);
        io.touch(7);
        io.close_session(6, 7);
        io.set_timer(8, 9);
        io.clear_timer(8);
        io.ask(10, "status");
        io.hold(1, true);
        io.close(1);
        let asked = read_asked(Bytes::from(out.clone())).unwrap();
        assert_eq!(asked.len(), 12);
        assert_eq!(asked[1], Asked::Propose { token: 2, session: 7, command: Bytes::from_static(b"command") });
        assert_eq!(asked[4], Asked::AttachSession { token: 5, session: 7, secret: [9; 16] });
        assert_eq!(asked[10], Asked::Hold { connection: 1, hold: true });
        for cut in 1..out.len() {
            // A cut between two records is none.
            if let Ok(some) = read_asked(Bytes::copy_from_slice(&out[..cut])) {
                assert_eq!(some[..], asked[..some.len()]);
            }
        }
        assert_eq!(read_asked(Bytes::from_static(b"\x01\0\0\0\x63")), Err(0));
        assert_eq!(read_asked(Bytes::from_static(b"\xff\xff\xff\xff\x01")), Err(0));
    }

    /// The log's cache counts a command's own bytes, and kept with each all that the adapter had asked in that step: up to
    /// 64 MiB that many clients were sent.
    #[test]
    fn a_command_keeps_nothing_of_the_step_that_asked_it() {
        let mut out = Vec::new();
        let mut io = adapter::Io::new(Default::default(), 0, &mut out);
        io.send(1, &[7; 100_000]);
        io.propose(2, Some(7), b"command");
        let step = out.as_ptr_range();
        let asked = read_asked(Bytes::from(out)).unwrap();
        let [Asked::Send { bytes, .. }, Asked::Propose { command, .. }] = &asked[..] else { panic!("{asked:?}") };
        assert!(step.contains(&bytes.as_ptr()), "what is sent at once is not copied");
        assert!(!step.contains(&command.as_ptr()));
        assert_eq!(command[..], *b"command");
    }
}
