//! The requests of a connection: in which order they are asked, and answered.
//!
//! ZooKeeper promises a client that its requests take effect, and are answered, in the order sent.
//! Writes go through the log and come back when they are applied; reads are answered from this
//! node's tree at once. So:
//!
//! * a read waits for the writes before it, a write for the reads before it; writes go together, and so do reads
//!   that came together (what is asked of the host in one call is answered in order);
//! * a *lonely* request (sync, the watch tables, reconfig) waits for everything before it, and everything after waits for
//!   it;
//! * answers leave in the order of the requests, but for a ping's while members change.
//!
//! The host applies a session's writes in the order they were proposed. So an answer is never kept back for long, and a
//! watch is registered when its answer comes: no event slips between them.
//!
//! Invariants:
//! * the first `asked` requests of `queue` were asked or need no asking, the others still have their bodies;
//! * `reads`, `writes`, `lonely` count what is asked and not answered;
//! * `bytes` is the sum of what the requests count for, each from when it comes until it is answered;
//! * the first request of the queue is not answered: answered ones in front have left.

use std::collections::VecDeque;

use statehouse_sdk::adapter::Consistency;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Outcome;
use statehouse_sdk::adapter::Token;

use super::Purpose;
use super::Shared;
use super::audit;
use super::compression::send;
use super::connection::Connection;
use super::connection::Phase;
use super::handshake::Format;
use super::reconfig::Next;
use super::settings::Settings;
use super::watching;
use super::watching::Wanted;
use crate::call;
use crate::call::LongAnswer;
use crate::call::Route;
use crate::call::call_head;
use crate::call::own;
use crate::call::split_reply;
use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::keeper;
use crate::wire;
use crate::wire::ErrorCode;
use crate::wire::op;

/// Bodies of one connection that wait for their turn or for their answer: no more is taken beyond.
const WAITING_BYTES: usize = 4 << 20;
/// The xid of every answer to a ping, whatever the request's was.
const PING_XID: i64 = -2;

/// What a request must wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Read,
    Write,
    Lonely,
    /// Nothing: its answer is known, and only has to leave in order.
    Any,
}

#[derive(Debug)]
enum State {
    /// Not asked yet.
    Waiting(Box<[u8]>),
    /// Under way; what is to be watched when the answer comes. Of a read behind others also its body, since it is asked
    /// again should one of those take longer.
    Asked(Wanted, Option<Box<[u8]>>),
    Answered(Answer<Vec<u8>>),
}

#[derive(Debug)]
struct Answer<Body> {
    /// `None`: the last entry that the client may know of when it leaves.
    zxid: Option<i64>,
    error: i32,
    body: Body,
    then_close: bool,
}

impl Answer<Vec<u8>> {
    fn error(error: ErrorCode) -> Self {
        Self { zxid: None, error: error.number(), body: Vec::new(), then_close: false }
    }
}

#[derive(Debug)]
struct Request {
    xid: i64,
    operation: i32,
    received_ms: u64,
    turn: Turn,
    /// What it counts for until it is answered: its body, which is kept here or on its way through the log.
    bytes: usize,
    state: State,
}

/// The requests of a connection that are not answered yet.
#[derive(Debug, Default)]
pub struct Requests {
    queue: VecDeque<Request>,
    /// The number of the first one in the queue: requests are numbered from 0.
    first: u64,
    asked: usize,
    reads: u32,
    /// In which call of the host they were asked.
    reads_step: u64,
    writes: u32,
    lonely: u32,
    bytes: usize,
    /// The number of the one whose answer is long and comes in pieces: of a later state than the answers that came
    /// behind it, which would turn back the client's time. So those are asked again.
    long: Option<u64>,
    /// No more requests are taken: the connection ends with the last one in the queue.
    is_over: bool,
}

impl Requests {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Bytes of the requests that are not answered.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether another request may be taken from the connection. One that was held goes on when half of what it had under
    /// way is answered, so that it is not held and let go for every single one.
    pub fn takes_more(&self, settings: &Settings, was_held: bool) -> bool {
        let limit = if was_held { settings.outstanding_limit.div_ceil(2) } else { settings.outstanding_limit };
        !self.is_over && self.queue.len() < limit && self.bytes < WAITING_BYTES
    }

    /// Whether the one that all others wait for asks for other members.
    fn change_members(&self) -> bool {
        self.queue.front().is_some_and(
            |first| matches!(&first.state, State::Asked(Wanted::Members(members), _) if members.has_begun()),
        )
    }

    /// Whether the client has asked to end its session.
    pub fn closes_session(&self) -> bool {
        self.queue.back().is_some_and(|request| request.operation == op::CLOSE_SESSION)
    }

    fn may_go(&self, turn: Turn, step: u64) -> bool {
        match turn {
            Turn::Read => self.writes == 0 && self.lonely == 0 && (self.reads == 0 || self.reads_step == step),
            Turn::Write => self.reads == 0 && self.lonely == 0,
            Turn::Lonely => self.reads == 0 && self.writes == 0 && self.lonely == 0,
            Turn::Any => true,
        }
    }

    fn count(&mut self, turn: Turn) -> &mut u32 {
        match turn {
            Turn::Read => &mut self.reads,
            Turn::Write => &mut self.writes,
            Turn::Lonely | Turn::Any => &mut self.lonely,
        }
    }
}

impl Connection {
    /// One frame of an open connection; false when the connection is to be closed without an answer.
    pub(super) fn request(&mut self, shared: &mut Shared, io: &mut Io<'_>, frame: &[u8]) -> bool {
        let mut reader = Reader::new(frame);
        let xid = if self.format.has_wide_xids { reader.i64() } else { reader.i32().map(i64::from) };
        let (Ok(xid), Ok(operation)) = (xid, reader.i32()) else { return false };
        let body = reader.rest();
        if operation == op::PING && self.requests.change_members() {
            let (received_ms, turn, state) = (io.time_ms(), Turn::Any, State::Asked(Wanted::Nothing, None));
            let ping = Request { xid: PING_XID, operation, received_ms, turn, bytes: 0, state };
            self.reply(shared, io, &ping, &Answer::error(ErrorCode::Ok));
            return true;
        }
        let (turn, state) = match self.arrange(shared, operation, body) {
            Ok(arranged) => arranged,
            Err(Malformed) => return false,
        };
        let can_go = self.requests.asked == self.requests.queue.len() && self.requests.may_go(turn, shared.step);
        let state = match state {
            Some(answered) => answered,
            None if can_go => self.ask(shared, io, operation, turn, body, self.requests.len() as u64),
            None => State::Waiting(body.into()),
        };
        if can_go {
            self.requests.asked += 1;
        }
        let bytes = if matches!(state, State::Answered(_)) { 0 } else { body.len() };
        self.requests.bytes += bytes;
        let xid = if operation == op::PING { PING_XID } else { xid };
        self.requests.queue.push_back(Request { xid, operation, received_ms: io.time_ms(), turn, bytes, state });
        shared.outstanding += 1;
        if can_go {
            self.advance(shared, io);
        }
        true
    }

    /// What a request waits for, and its answer if that is known already. An error closes the connection.
    fn arrange(
        &mut self,
        shared: &mut Shared,
        operation: i32,
        body: &[u8],
    ) -> Result<(Turn, Option<State>), Malformed> {
        let known = |error: ErrorCode, zxid, body, then_close| {
            let answer = Answer { zxid, error: error.number(), body, then_close };
            Ok((Turn::Any, Some(State::Answered(answer))))
        };
        // A check by itself is ClickHouse's too: ZooKeeper knows it in a multi alone (3.8 never answers one that holds).
        let is_clickhouses = (op::FILTERED_LIST..=op::LIST_RECURSIVE).contains(&operation) || operation == op::CHECK;
        let is_off = keeper::has_switched_off(operation, body, &shared.settings.feature_flags);
        let route = match call::route(operation) {
            _ if is_off || (is_clickhouses && !shared.settings.is_clickhouse()) => Route::Unknown,
            route => route,
        };
        if self.read_only.is_some() {
            match (route, operation) {
                (Route::Command, _) | (_, op::SYNC | op::RECONFIG) => {
                    return known(ErrorCode::NotReadOnly, None, Vec::new(), false);
                }
                (_, op::CLOSE_SESSION) => {
                    self.requests.is_over = true;
                    return known(ErrorCode::Ok, None, Vec::new(), true);
                }
                _ => {}
            }
        }
        match (route, operation) {
            (Route::Command, _) => Ok((Turn::Write, None)),
            (Route::Query, _) => Ok((Turn::Read, None)),
            (Route::Adapter, op::PING) => known(ErrorCode::Ok, None, Vec::new(), false),
            (Route::Adapter, op::SYNC | op::CHECK_WATCHES | op::REMOVE_WATCHES | op::RECONFIG) => {
                Ok((Turn::Lonely, None))
            }
            (Route::Adapter, op::CLOSE_SESSION) => {
                self.requests.is_over = true;
                Ok((Turn::Write, None))
            }
            (Route::Adapter, op::WHO_AM_I) => {
                let mut users = Vec::new();
                let mut writer = Writer::new(&mut users);
                writer.count(self.identities.users().len());
                for (scheme, user) in self.identities.users() {
                    writer.text(scheme).text(user);
                }
                known(ErrorCode::Ok, None, users, false)
            }
            (Route::Adapter, op::AUTH) => {
                // Counts for every request behind it, though its answer waits for those before it.
                let mut reader = Reader::new(body);
                let _type = reader.i32()?;
                let (scheme, proof) = (reader.text()?.unwrap_or_default(), reader.buffer()?);
                if proof.is_some_and(|proof| self.identities.prove(&shared.settings, scheme, proof)) {
                    return known(ErrorCode::Ok, Some(0), Vec::new(), false);
                }
                shared.stats.auth_failed += 1;
                self.requests.is_over = true;
                known(ErrorCode::AuthFailed, Some(0), Vec::new(), true)
            }
            (Route::Adapter | Route::Unknown, _) => {
                self.requests.is_over = true;
                known(ErrorCode::Unimplemented, Some(-1), Vec::new(), true)
            }
        }
    }

    /// Asks the host. `place`: the request's in the queue.
    fn ask(
        &mut self,
        shared: &mut Shared,
        io: &mut Io<'_>,
        operation: i32,
        turn: Turn,
        body: &[u8],
        place: u64,
    ) -> State {
        if matches!(operation, op::CHECK_WATCHES | op::REMOVE_WATCHES) {
            let found = watching::look_up(&mut shared.watches, self.id, operation, body);
            return State::Answered(Answer::error(found.err().unwrap_or(ErrorCode::Ok)));
        }
        let is_sync = operation == op::SYNC;
        if is_sync && wire::path(&mut Reader::new(body)).is_err() {
            return State::Answered(Answer::error(ErrorCode::MarshallingError));
        }
        let session = self.session.map(|held| held.id);
        let slot = self.requests.first + place;
        let token: Token = shared.pending.keep(Purpose::Request { connection: self.id, slot });
        *self.requests.count(turn) += 1;
        self.requests.reads_step = shared.step;
        if operation == op::CLOSE_SESSION {
            io.close_session(token, session.unwrap_or_default());
            return State::Asked(Wanted::Nothing, None);
        }
        shared.frame.clear();
        if is_sync {
            // Any query will do: when a linearizable one is answered here, this node has all that was acknowledged before.
            call_head(own::STATUS, std::iter::empty(), &mut shared.frame);
        } else {
            call_head(operation, self.identities.iter(), &mut shared.frame);
            shared.frame.extend_from_slice(body);
        }
        if turn == Turn::Write {
            io.propose(token, session, &shared.frame);
            let deeds = if shared.settings.audit { audit::deeds(operation, body) } else { Vec::new() };
            return State::Asked(if deeds.is_empty() { Wanted::Nothing } else { Wanted::Audited(deeds) }, None);
        }
        let consistency = match self.read_only {
            _ if is_sync || operation == op::RECONFIG => Consistency::Linearizable,
            Some(_) => Consistency::Local,
            None => shared.settings.consistency(),
        };
        io.query(token, consistency, session, &shared.frame);
        let again = (turn == Turn::Read && place > 0).then(|| body.into());
        State::Asked(Wanted::by(operation, body, &shared.settings), again)
    }

    /// An answer came for the request with this number.
    pub(super) fn answered(
        &mut self,
        shared: &mut Shared,
        io: &mut Io<'_>,
        slot: u64,
        index: u64,
        outcome: &Outcome<'_>,
    ) {
        let place = slot.wrapping_sub(self.requests.first) as usize;
        let Some(request) = self.requests.queue.get_mut(place) else { return };
        let (operation, turn) = (request.operation, request.turn);
        if self.requests.long.is_some_and(|long| long < slot)
            && let State::Asked(_, Some(again)) = &mut request.state
        {
            request.state = State::Waiting(std::mem::take(again));
            self.requests.reads = self.requests.reads.saturating_sub(1);
            self.requests.asked = self.requests.asked.min(place);
            return;
        }
        let mut outcome = *outcome;
        let (refused, told);
        if let State::Asked(Wanted::Members(members), _) = &mut request.state {
            match members.go_on(shared, io, (self.id, slot), &outcome) {
                Next::Waits => return,
                Next::Answer => {}
                Next::Reply(reply) => {
                    told = reply;
                    outcome = Outcome::Ok(&told);
                }
            }
        }
        if let Outcome::Ok(bytes) = outcome
            && let Some(long) = LongAnswer::decode(bytes)
        {
            let Err(code) = shared.long.enter((self.id, slot, self.session.map(|held| held.id)), &long) else {
                self.requests.long = Some(slot);
                return;
            };
            refused = call::error_reply(code);
            outcome = Outcome::Ok(&refused);
        }
        self.requests.long = self.requests.long.filter(|long| *long != slot);
        let State::Asked(wanted, _) = std::mem::replace(&mut request.state, State::Waiting(Box::default())) else {
            return;
        };
        let bytes = std::mem::take(&mut request.bytes);
        self.requests.bytes = self.requests.bytes.saturating_sub(bytes);
        let count = self.requests.count(turn);
        *count = count.saturating_sub(1);
        let closes = operation == op::CLOSE_SESSION;
        let zxid = shared.settings.zxid(if index == 0 { shared.told } else { index });
        let (error, body): (i32, &[u8]) = match outcome {
            Outcome::Ok(_) if closes => (0, &[]),
            Outcome::Ok(bytes) => split_reply(bytes).unwrap_or((ErrorCode::SystemError.number(), &[])),
            Outcome::Rejected(_) => (ErrorCode::MarshallingError.number(), &[]),
            Outcome::Trapped(_) => (ErrorCode::SystemError.number(), &[]),
            Outcome::Failed { code: "session_not_found", .. } if closes => (0, &[]),
            Outcome::Failed { code: "session_not_found", .. } => (ErrorCode::SessionExpired.number(), &[]),
            // It was not proposed: the client may send it again.
            Outcome::Failed { code: "overloaded", .. } => {
                shared.stats.throttled += 1;
                (ErrorCode::ThrottledOp.number(), &[])
            }
            // Longer than this node's host takes, though ZooKeeper would: to try again is useless.
            Outcome::Failed { code: "too_large", .. } => (ErrorCode::BadArguments.number(), &[]),
            // Somebody else speaks for the session; or nobody knows what became of the request. ZooKeeper
            // tells neither: the client connects again and finds out.
            Outcome::Failed { .. } => {
                shared.stats.stale_replies += 1;
                return self.close(shared, io);
            }
        };
        match &wanted {
            Wanted::Audited(deeds) => self.audit(shared, deeds, error, body),
            Wanted::Members(_) if shared.settings.audit => {
                self.audit(shared, &[audit::RECONFIG.to_owned()], error, body);
            }
            _ => {}
        }
        let then_close = closes || error == ErrorCode::SessionExpired.number();
        let is_watch = matches!(wanted, Wanted::Path { .. } | Wanted::Set { .. } | Wanted::Many(_));
        let changed = watching::watch(shared, io, (self.id, self.format), wanted, error, body);
        if is_watch && shared.watches.is_too_much(self.id) {
            let (own, all) = (shared.watches.bytes_of(self.id), shared.watches.bytes());
            statehouse_sdk::warn!("{} is disconnected: it watches {own} bytes, and all clients {all}", self.peer);
            return self.close(shared, io);
        }
        let (error, body) = changed.as_ref().map_or((error, body), |(error, body)| (*error, body.as_slice()));
        if place == 0 {
            // The usual case: it leaves at once, and is copied once.
            if let Some(request) = self.requests.queue.pop_front() {
                self.left(shared);
                self.reply(shared, io, &request, &Answer { zxid: Some(zxid), error, body, then_close });
            }
        } else if let Some(request) = self.requests.queue.get_mut(place) {
            request.state = State::Answered(Answer { zxid: Some(zxid), error, body: body.to_vec(), then_close });
        }
        self.advance(shared, io);
        self.resume(shared, io);
    }

    /// Writes down what a request changed, or would have.
    fn audit(&self, shared: &mut Shared, deeds: &[String], error: i32, body: &[u8]) {
        let who = audit::Who { session: self.session.map_or(0, |held| held.id), identities: &self.identities };
        audit::write(&mut shared.audit, &who, deeds, error, body);
    }

    /// The first request of the queue has left it.
    fn left(&mut self, shared: &mut Shared) {
        self.requests.first += 1;
        self.requests.asked = self.requests.asked.saturating_sub(1);
        shared.outstanding = shared.outstanding.saturating_sub(1);
    }

    /// Forgets all requests: nobody waits for their answers.
    pub(super) fn abandon(&mut self, shared: &mut Shared) {
        shared.outstanding = shared.outstanding.saturating_sub(self.requests.queue.len() as u64);
        self.requests =
            Requests { first: self.requests.first + self.requests.queue.len() as u64, ..Requests::default() };
    }

    /// Lets answers leave and asks what may go, until neither changes anything.
    fn advance(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        loop {
            if matches!(self.phase, Phase::Closing) {
                return self.abandon(shared);
            }
            if let Some(Request { state: State::Answered(_), .. }) = self.requests.queue.front() {
                if let Some(mut request) = self.requests.queue.pop_front() {
                    self.left(shared);
                    let state = std::mem::replace(&mut request.state, State::Asked(Wanted::Nothing, None));
                    if let State::Answered(answer) = state {
                        self.reply(shared, io, &request, &answer);
                    }
                }
                continue;
            }
            let place = self.requests.asked;
            let Some(next) = self.requests.queue.get_mut(place) else { break };
            let (operation, turn) = (next.operation, next.turn);
            if !self.requests.may_go(turn, shared.step) {
                break;
            }
            if let Some(next) = self.requests.queue.get_mut(place)
                && let State::Waiting(body) = &mut next.state
            {
                let body = std::mem::take(body);
                let state = self.ask(shared, io, operation, turn, &body, place as u64);
                if let Some(next) = self.requests.queue.get_mut(place) {
                    if matches!(state, State::Answered(_)) {
                        let bytes = std::mem::take(&mut next.bytes);
                        self.requests.bytes = self.requests.bytes.saturating_sub(bytes);
                    }
                    next.state = state;
                }
            }
            self.requests.asked += 1;
        }
        if self.requests.queue.is_empty() && self.requests.queue.capacity() > 64 {
            self.requests.queue = VecDeque::new();
        }
    }

    fn reply(&mut self, shared: &mut Shared, io: &mut Io<'_>, request: &Request, answer: &Answer<impl AsRef<[u8]>>) {
        let zxid = answer.zxid.unwrap_or_else(|| shared.settings.zxid(shared.told));
        let body = answer.body.as_ref();
        shared.frame.clear();
        let mut writer = Writer::new(&mut shared.frame);
        head(&mut writer, self.format, request.xid, zxid, answer.error, body.len());
        writer.raw(body);
        if !shared.outlet.takes(shared.frame.len()) {
            return self.close(shared, io);
        }
        send(io, self.id, self.format, &shared.frame);
        let now_ms = io.time_ms();
        let took_ms = now_ms.saturating_sub(request.received_ms);
        self.stats.sent += 1;
        shared.stats.replied(16 + body.len());
        let name = name(request.operation);
        self.stats.answered(name, request.xid, zxid, took_ms, now_ms);
        shared.stats.latency.add(took_ms);
        match request.turn {
            Turn::Write => shared.stats.update_latency.add(took_ms),
            Turn::Read => shared.stats.read_latency.add(took_ms),
            Turn::Lonely | Turn::Any => {}
        }
        *shared.stats.operations.entry(name).or_default() += 1;
        if answer.then_close {
            self.close(shared, io);
        }
    }
}

/// Writes the length of a frame and the header of the reply in it.
pub fn head(out: &mut Writer<'_>, format: Format, xid: i64, zxid: i64, error: i32, body_bytes: usize) {
    if format.has_wide_xids {
        out.count(20 + body_bytes).i64(xid);
    } else {
        // It came as one of 32 bits.
        out.count(16 + body_bytes).i32(xid as i32);
    }
    out.i64(zxid).i32(error);
}

/// An operation's name in `cons`.
fn name(operation: i32) -> &'static str {
    match operation {
        op::PING => "PING",
        op::MULTI => "MULT",
        op::MULTI_READ => "MLTR",
        op::CREATE | op::CREATE2 | op::CREATE_TTL | op::CREATE_CONTAINER | op::CREATE_IF_NOT_EXISTS => "CREA",
        op::DELETE | op::DELETE_CONTAINER | op::REMOVE_RECURSIVE | op::TRY_REMOVE => "DELE",
        op::SET_DATA => "SETD",
        op::RECONFIG => "RECO",
        op::SET_ACL => "SETA",
        op::CLOSE_SESSION => "CLOS",
        op::SYNC => "SYNC",
        op::CHECK | op::CHECK_NOT_EXISTS | op::CHECK_STAT => "CHEC",
        op::EXISTS => "EXIS",
        op::GET_DATA => "GETD",
        op::SET_WATCHES => "SETW",
        op::SET_WATCHES2 => "STW2",
        op::ADD_WATCH => "ADDW",
        op::GET_ACL => "GETA",
        op::GET_CHILDREN
        | op::GET_CHILDREN2
        | op::FILTERED_LIST
        | op::FILTERED_LIST_WITH_STATS_AND_DATA
        | op::LIST_RECURSIVE => "GETC",
        op::GET_ALL_CHILDREN_NUMBER => "GETACN",
        op::CHECK_WATCHES => "CHKW",
        op::REMOVE_WATCHES => "REMW",
        op::WHO_AM_I => "HOMI",
        op::GET_EPHEMERALS => "GETE",
        op::AUTH => "AUTH",
        _ => "NA",
    }
}
