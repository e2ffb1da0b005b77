//! One client connection: bytes into frames, the handshake, the session, the way out.
//!
//! Invariants:
//! * `buffer` holds what was received and not yet taken: less than one frame of the allowed size, or, while nothing is
//!   taken (the session is being opened, too much is under way), what the host had read before it was told to hold;
//! * `held` says whether the host was told to stop reading;
//! * what is kept of all clients' bytes together is bounded: whoever passes the bound with more than a little is closed;
//! * once `phase` is `Closing` the host was asked to close, and nothing the client sent before is looked at any more.
//!
//! What happens to requests is in [`requests`](super::requests).

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Outcome;
use statehouse_sdk::adapter::Session;

use super::Purpose;
use super::Shared;
use super::auth::Identities;
use super::compression::Unpacker;
use super::handshake::ConnectRequest;
use super::handshake::ConnectResponse;
use super::handshake::Format;
use super::handshake::REFUSED_VERSION;
use super::requests::Requests;
use super::stats::ConnectionStats;
use super::trace;
use super::trace::Trailer;
use super::words;
use crate::jute::Malformed;

/// Bytes kept of all clients together, about: parts of frames, requests that are not answered.
pub const KEPT_BYTES_MAX: usize = 128 << 20;
/// A connection that keeps less does not count: beyond the bound too, all can go on with small requests.
const KEPT_BYTES_FREE: usize = 64 << 10;

/// Where a connection stands.
#[derive(Debug)]
pub enum Phase {
    /// Nothing whole was received: a handshake or a four-letter word is to come.
    New,
    /// The session is being opened or attached.
    Opening { has_read_only: bool },
    /// Requests are taken.
    Open,
    /// A four-letter word is being answered.
    Word,
    /// The host closes it; what comes is not looked at.
    Closing,
}

/// The session of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub id: u64,
    pub attachment: u64,
    pub timeout_ms: u64,
}

/// A connection without a session of the cluster: there is no leader, and the client would read all the same.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly {
    pub timeout_ms: u64,
    /// Unix milliseconds.
    pub heard_ms: u64,
}

/// A client.
#[derive(Debug)]
pub struct Connection {
    pub id: ConnectionId,
    pub peer: Box<str>,
    pub opened_ms: u64,
    pub phase: Phase,
    pub session: Option<Held>,
    pub read_only: Option<ReadOnly>,
    pub identities: Identities,
    pub format: Format,
    pub requests: Requests,
    pub stats: ConnectionStats,
    buffer: Vec<u8>,
    held: bool,
    /// What `Shared::kept_bytes` counts of this connection.
    kept_bytes: usize,
    /// Of a client that sends compressed: the box is for all the others.
    unpacker: Option<Box<Unpacker>>,
}

/// What came of looking at the front of the received bytes.
enum Taken {
    /// So many bytes were used up; look again.
    Bytes(usize),
    /// More is needed, or nothing is taken now.
    Nothing,
    /// This is no client of ours.
    Garbage,
}

impl Connection {
    pub fn new(id: ConnectionId, peer: &str, now_ms: u64, trusted: bool) -> Self {
        Self {
            id,
            peer: peer.into(),
            opened_ms: now_ms,
            phase: Phase::New,
            session: None,
            read_only: None,
            identities: Identities::new(peer, trusted),
            format: Format::default(),
            requests: Requests::default(),
            stats: ConnectionStats::default(),
            buffer: Vec::new(),
            held: false,
            kept_bytes: 0,
            unpacker: None,
        }
    }

    /// Bytes came in.
    pub fn receive(&mut self, shared: &mut Shared, io: &mut Io<'_>, bytes: &[u8]) {
        shared.stats.received_bytes += bytes.len() as u64;
        match self.phase {
            Phase::Closing | Phase::Word => return,
            Phase::Open => {
                if let Some(session) = self.session {
                    io.touch(session.id);
                }
                if let Some(read_only) = &mut self.read_only {
                    read_only.heard_ms = io.time_ms();
                }
            }
            Phase::New | Phase::Opening { .. } => {}
        }
        let mut plain = Vec::new();
        let bytes = match &mut self.unpacker {
            None => bytes,
            Some(unpacker) => match unpacker.unpack(bytes, block_limit(shared), &mut plain) {
                Ok(()) => &plain,
                Err(Malformed) => return self.close(shared, io),
            },
        };
        if self.buffer.is_empty() {
            // The usual case: whole frames, taken where they lie.
            let used = self.take_all(shared, io, bytes);
            self.keep(shared, io, bytes.get(used..).unwrap_or_default().to_vec());
        } else {
            self.buffer.extend_from_slice(bytes);
            self.resume(shared, io);
        }
    }

    /// Takes what was received, after something that may have kept it from being taken has changed.
    pub fn resume(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        if !self.buffer.is_empty() && self.takes_more(shared) {
            let mut buffer = std::mem::take(&mut self.buffer);
            let used = self.take_all(shared, io, &buffer);
            if used == buffer.len() {
                // An idle connection keeps no buffer.
                buffer = Vec::new();
            } else {
                buffer.drain(..used);
            }
            self.keep(shared, io, buffer);
        } else {
            self.hold_if_stopped(shared, io);
        }
    }

    /// Keeps what could not be taken yet.
    fn keep(&mut self, shared: &mut Shared, io: &mut Io<'_>, mut rest: Vec<u8>) {
        if matches!(self.phase, Phase::Closing) {
            return;
        }
        if self.format.is_compressed && self.unpacker.is_none() {
            // The handshake was among what was taken: what follows it is packed.
            let mut unpacker = Box::<Unpacker>::default();
            let packed = std::mem::take(&mut rest);
            if unpacker.unpack(&packed, block_limit(shared), &mut rest).is_err() {
                return self.close(shared, io);
            }
            self.unpacker = Some(unpacker);
        }
        self.buffer = rest;
        self.hold_if_stopped(shared, io);
    }

    fn takes_more(&self, shared: &Shared) -> bool {
        match self.phase {
            Phase::New => true,
            Phase::Open => self.requests.takes_more(&shared.settings, self.held),
            Phase::Opening { .. } | Phase::Word | Phase::Closing => false,
        }
    }

    fn hold_if_stopped(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        if matches!(self.phase, Phase::Closing | Phase::Word) {
            self.buffer = Vec::new();
            return self.account(shared);
        }
        self.account(shared);
        if shared.kept_bytes > KEPT_BYTES_MAX && self.kept_bytes > KEPT_BYTES_FREE {
            return self.close(shared, io);
        }
        let hold = !self.takes_more(shared) && !self.buffer.is_empty();
        if hold != self.held {
            self.held = hold;
            io.hold(self.id, hold);
        }
    }

    /// Brings the sum of what is kept of all clients up to date.
    fn account(&mut self, shared: &mut Shared) {
        let packed = self.unpacker.as_ref().map_or(0, |unpacker| unpacker.len());
        let now = self.buffer.len() + packed + self.requests.bytes();
        shared.kept_bytes = shared.kept_bytes.saturating_sub(self.kept_bytes) + now;
        self.kept_bytes = now;
    }

    /// Takes frames from the front of `bytes` until one is not whole; how many bytes were used up.
    fn take_all(&mut self, shared: &mut Shared, io: &mut Io<'_>, bytes: &[u8]) -> usize {
        let mut used = 0;
        loop {
            match self.take(shared, io, bytes.get(used..).unwrap_or_default()) {
                Taken::Bytes(count) => used += count,
                Taken::Nothing => return used,
                Taken::Garbage => {
                    self.close(shared, io);
                    return bytes.len();
                }
            }
        }
    }

    fn take(&mut self, shared: &mut Shared, io: &mut Io<'_>, bytes: &[u8]) -> Taken {
        if !self.takes_more(shared) {
            return Taken::Nothing;
        }
        let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return Taken::Nothing };
        if matches!(self.phase, Phase::New) && words::is_known(shared, *head) {
            let Some(argument) = words::argument(shared, *head, rest) else { return Taken::Nothing };
            self.count_received(shared);
            self.phase = Phase::Word;
            words::start(self.id, *head, argument, shared, io);
            return Taken::Bytes(4);
        }
        let Ok(length) = usize::try_from(i32::from_be_bytes(*head)) else { return Taken::Garbage };
        if length > shared.settings.jute_maxbuffer {
            return Taken::Garbage;
        }
        let length = match self.phase {
            Phase::New => ConnectRequest::length(length, rest),
            _ => length,
        };
        let Some((frame, behind)) = rest.split_at_checked(length) else { return Taken::Nothing };
        let trailer = match self.format.is_traced.then(|| trace::read(behind)) {
            None => 0,
            Some(Trailer::Bytes(count)) => count,
            Some(Trailer::More) => return Taken::Nothing,
            Some(Trailer::Garbage) => return Taken::Garbage,
        };
        self.count_received(shared);
        let is_ours = match self.phase {
            Phase::New => self.greet(shared, io, frame),
            _ => self.request(shared, io, frame),
        };
        if is_ours { Taken::Bytes(4 + length + trailer) } else { Taken::Garbage }
    }

    fn count_received(&mut self, shared: &mut Shared) {
        self.stats.received += 1;
        shared.stats.received += 1;
    }

    /// The handshake's frame; false when the connection is to be closed without an answer.
    fn greet(&mut self, shared: &mut Shared, io: &mut Io<'_>, frame: &[u8]) -> bool {
        let Ok(request) = ConnectRequest::read(frame) else { return false };
        shared.stats.connection_requests += 1;
        let has_read_only = request.has_read_only;
        self.format = request.format;
        // This node lags behind what the client has seen: to serve it would be to turn back its time.
        let is_behind = request.last_zxid_seen > shared.settings.zxid(io.applied());
        if !io.has_leader() {
            if shared.settings.read_only_mode && request.takes_read_only && !is_behind {
                self.serve_read_only(shared, io, &request);
            } else {
                self.refuse_without_leader(shared, io, has_read_only);
            }
            return true;
        }
        if is_behind {
            return false;
        }
        self.phase = Phase::Opening { has_read_only };
        let token = shared.pending.keep(Purpose::Session(self.id));
        match (request.session, request.password) {
            (0, _) => io.open_session(token, shared.settings.negotiate(request.timeout_ms)),
            (session, password) => {
                shared.stats.revalidations += 1;
                io.attach_session(token, session, &password.unwrap_or_default());
            }
        }
        true
    }

    /// The client gets no session, only what looks like one: nobody could agree to it now. What it shows of its own it gets
    /// back, so that it goes on with it when there is a leader.
    fn serve_read_only(&mut self, shared: &mut Shared, io: &mut Io<'_>, request: &ConnectRequest) {
        let timeout_ms = shared.settings.negotiate(request.timeout_ms);
        self.phase = Phase::Open;
        self.read_only = Some(ReadOnly { timeout_ms, heard_ms: io.time_ms() });
        let response = ConnectResponse {
            protocol_version: self.format.version(),
            timeout_ms: i32::try_from(timeout_ms).unwrap_or(i32::MAX),
            // A client that never met a leader asks the next server for a new session.
            session: if request.session == 0 { io.random_u64() >> 1 | 1 } else { request.session },
            password: request.password.unwrap_or_default(),
            has_read_only: true,
            is_read_only: true,
        };
        self.answer_handshake(shared, io, &response);
    }

    /// Whether it is to be closed: there is a leader again, or the client was not heard of for long. Only of a connection
    /// without a session, which nobody else looks after.
    pub fn is_read_only_no_more(&self, has_leader: bool, now_ms: u64) -> bool {
        let is_over = |of: ReadOnly| has_leader || now_ms.saturating_sub(of.heard_ms) > of.timeout_ms;
        self.read_only.is_some_and(is_over)
    }

    /// The session is there, or is not.
    pub fn opened(&mut self, shared: &mut Shared, io: &mut Io<'_>, session: Result<Session, Outcome<'_>>) {
        let Phase::Opening { has_read_only } = self.phase else { return };
        match session {
            Ok(Session { id, attachment, timeout_ms, secret }) => {
                self.session = Some(Held { id, attachment, timeout_ms });
                self.phase = Phase::Open;
                let timeout_ms = i32::try_from(timeout_ms).unwrap_or(i32::MAX);
                let protocol_version = self.format.version();
                let is_read_only = false;
                let response = ConnectResponse {
                    protocol_version,
                    timeout_ms,
                    session: id,
                    password: secret,
                    has_read_only,
                    is_read_only,
                };
                self.answer_handshake(shared, io, &response);
                self.stats.answered("SESS", -1, shared.settings.zxid(shared.told), 0, io.time_ms());
                self.resume(shared, io);
            }
            // A client without its session must learn so from somebody: a closed connection would only make it try again.
            Err(Outcome::Failed { code: "session_not_found" | "wrong_secret", .. }) => {
                shared.stats.unsuccessful_handshakes += 1;
                self.answer_handshake(shared, io, &ConnectResponse { has_read_only, ..ConnectResponse::default() });
                self.close(shared, io);
            }
            Err(_) => self.refuse_without_leader(shared, io, has_read_only),
        }
    }

    /// ZooKeeper closes; ClickHouse Keeper says so, which its client turns into a clear message.
    fn refuse_without_leader(&mut self, shared: &mut Shared, io: &mut Io<'_>, has_read_only: bool) {
        shared.stats.connections_rejected += 1;
        if shared.settings.is_clickhouse() {
            let protocol_version = REFUSED_VERSION;
            let response = ConnectResponse { protocol_version, has_read_only, ..ConnectResponse::default() };
            self.answer_handshake(shared, io, &response);
        }
        self.close(shared, io);
    }

    fn answer_handshake(&mut self, shared: &mut Shared, io: &mut Io<'_>, response: &ConnectResponse) {
        shared.frame.clear();
        response.write(&mut shared.frame);
        io.send(self.id, &shared.frame);
        self.stats.sent += 1;
        shared.stats.sent += 1;
    }

    /// Forgets all that was received and is not answered.
    pub fn give_up(&mut self, shared: &mut Shared) {
        self.buffer = Vec::new();
        self.unpacker = None;
        shared.long.forget(self.id);
        self.abandon(shared);
        self.account(shared);
    }

    /// Asks the host to close, after what was sent.
    pub fn close(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        if !matches!(self.phase, Phase::Closing) {
            self.phase = Phase::Closing;
            self.give_up(shared);
            shared.watches.forget(self.id);
            io.close(self.id);
        }
    }
}

/// The largest compressed block that is taken: ClickHouse packs what it has to send in pieces of 1 MiB.
fn block_limit(shared: &Shared) -> usize {
    shared.settings.jute_maxbuffer.saturating_add(1 << 20)
}
