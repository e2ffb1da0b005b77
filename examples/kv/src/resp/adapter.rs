//! The adapter: takes clients' requests, sends them to the state machine in batches, and answers in
//! each connection's order.
//!
//! Invariants (with those of [`lane`](super::lane) and [`connection`](super::connection)):
//! * A connection's requests are begun in order, and one that asks the state machine is begun only if
//!   all before it that are not answered are in the same batch: so a read sees the writes before it.
//! * What a client can make the adapter keep is bounded: `input` by the host's reading being held, one
//!   request by its limit, a transaction by `TRANSACTION_BYTES_MAX`, what is owed by `SLOTS_MAX`.

use std::collections::BTreeMap;

use serde::Deserialize;
use statehouse_sdk::Reject;
use statehouse_sdk::adapter::Adapter;
use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Consistency;
use statehouse_sdk::adapter::Input;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Outcome;
use statehouse_sdk::adapter::Token;
use statehouse_sdk::codec::Decode;
use statehouse_sdk::codec::Json;

use super::channels::Channels;
use super::connection::Connection;
use super::connection::Way;
use super::cursors::Cursors;
use super::lane::Batch;
use super::lane::Lane;
use super::op::Fields;
use super::op::MARK;
use super::op::put_number;
use super::parse::Parsed;
use super::reply::Reply;
use super::requests::Begun;
use crate::Limits;
use crate::api::Published;

/// The largest request, bytes, unless the group takes larger keys and values: below the host's limit
/// of a command (1 MiB).
const REQUEST_BYTES_MAX: usize = 900 << 10;
/// While so much of a connection waits behind its own requests, nothing more is read from it.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// What all connections' unread bytes may take together, before large requests are refused.
const INPUT_BYTES_MAX: usize = 128 << 20;
/// Buffers of idle connections larger than this are given back.
const KEPT_BYTES: usize = 1 << 10;
/// How many entries are under way at a time: with one on its way to disk and one gathering behind it,
/// neither waits for the other, and each carries what came meanwhile.
const ENTRIES_UNDER_WAY: usize = 4;
/// How many queries.
const QUERIES_UNDER_WAY: usize = 16;

/// What the host says when it opens an adapter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    params: Limits,
    listen: Listen,
    node: u64,
}

/// The listener's own settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Listen {
    read_consistency: ReadConsistency,
}

/// How fresh reads are.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReadConsistency {
    #[default]
    Local,
    Lease,
    Linearizable,
}

/// Redis's protocol on a listener of a group.
#[derive(Debug)]
pub struct Resp {
    connections: BTreeMap<ConnectionId, Connection>,
    shared: Shared,
    /// Where bytes for one connection gather; empty between calls.
    out: Vec<u8>,
    /// What all connections have not read yet.
    input_bytes: usize,
}

/// All that is not one connection's.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) consistency: Consistency,
    pub(super) request_bytes_max: usize,
    pub(super) node: u64,
    pub(super) since_ms: u64,
    /// The latest time this node's clock showed: it may go back, and what is over stays over.
    pub(super) clock_ms: u64,
    pub(super) connections: usize,
    pub(super) requests: u64,
    pub(super) tokens: Token,
    pub(super) writes: Lane,
    pub(super) reads: Lane,
    pub(super) channels: Channels,
    pub(super) cursors: Cursors,
    /// How many heard the messages of this entry, in their order.
    pub(super) heard: (u64, Vec<usize>),
    /// An operation under way; empty between requests.
    pub(super) op: Vec<u8>,
}

impl Adapter for Resp {
    fn open(settings: &[u8], io: &mut Io<'_>) -> Result<Self, Reject> {
        let settings: Settings = Json::decode(settings)?;
        let largest = settings.params.max_key_bytes.saturating_add(settings.params.max_value_bytes);
        let largest = usize::try_from(largest.saturating_add(1 << 10)).unwrap_or(usize::MAX);
        let mut tokens = 0;
        let shared = Shared {
            consistency: match settings.listen.read_consistency {
                ReadConsistency::Local => Consistency::Local,
                ReadConsistency::Lease => Consistency::Lease,
                ReadConsistency::Linearizable => Consistency::Linearizable,
            },
            request_bytes_max: largest.clamp(REQUEST_BYTES_MAX, 64 << 20),
            node: settings.node,
            since_ms: io.time_ms(),
            clock_ms: io.time_ms(),
            connections: 0,
            requests: 0,
            writes: Lane::new(ENTRIES_UNDER_WAY, &mut tokens),
            reads: Lane::new(QUERIES_UNDER_WAY, &mut tokens),
            tokens,
            channels: Channels::default(),
            cursors: Cursors::default(),
            heard: (0, Vec::new()),
            op: Vec::new(),
        };
        Ok(Self { connections: BTreeMap::new(), shared, out: Vec::new(), input_bytes: 0 })
    }

    fn input(&mut self, io: &mut Io<'_>, input: Input<'_>) {
        match input {
            Input::Opened { connection, peer } => {
                let opened = Connection { peer: peer.to_owned(), ..Connection::default() };
                self.connections.insert(connection, opened);
                self.shared.connections = self.connections.len();
            }
            Input::Data { connection, bytes } => self.data(io, connection, bytes),
            Input::Closed { connection } => self.closed(connection),
            Input::Applied { token, outcome, .. } => self.done(io, Way::Write, token, outcome),
            Input::Answered { token, outcome, .. } => self.done(io, Way::Read, token, outcome),
            Input::Event { index, bytes, .. } => self.event(io, index, bytes),
            // No sessions are opened, no timers set, nothing is asked of the host.
            Input::Session { .. } | Input::SessionLost { .. } | Input::Timer { .. } | Input::Told { .. } => {}
        }
    }

    fn flush(&mut self, io: &mut Io<'_>) {
        let Shared { writes, reads, tokens, consistency, clock_ms, .. } = &mut self.shared;
        *clock_ms = io.time_ms().max(*clock_ms);
        // A local read hides what is over by this node's clock, though its entry may still be to come. One that must
        // agree with other nodes' goes by the log alone.
        let visible_ms = if *consistency == Consistency::Local { *clock_ms } else { 0 };
        let mut command = Vec::new();
        while let Some(batch) = writes.send(tokens) {
            command.clear();
            command.push(MARK);
            command.extend_from_slice(&batch.bytes);
            io.propose(batch.token, None, &command);
        }
        while let Some(batch) = reads.send(tokens) {
            command.clear();
            command.push(MARK);
            put_number(&mut command, visible_ms);
            put_number(&mut command, *clock_ms);
            command.extend_from_slice(&batch.bytes);
            io.query(batch.token, *consistency, None, &command);
        }
    }
}

impl Resp {
    fn data(&mut self, io: &mut Io<'_>, id: ConnectionId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id).filter(|connection| !connection.is_closing) else {
            return;
        };
        connection.input.extend_from_slice(bytes);
        self.input_bytes += bytes.len();
        let mut out = std::mem::take(&mut self.out);
        self.pump(io, id, &mut out);
        self.hand_over(io, id, out);
    }

    fn closed(&mut self, id: ConnectionId) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        self.input_bytes = self.input_bytes.saturating_sub(connection.input.len());
        if let Some(own) = &mut connection.subscriptions {
            self.shared.channels.remove_all(id, own);
        }
        self.shared.connections = self.connections.len();
    }

    /// Begins as many requests of a connection as can be.
    fn pump(&mut self, io: &mut Io<'_>, id: ConnectionId, out: &mut Vec<u8>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        // Apart, since requests borrow from both while the connection changes.
        let mut input = std::mem::take(&mut connection.input);
        let mut parser = std::mem::take(&mut connection.parser);
        let before = input.len();
        let mut at = 0;
        while self.shared.may_begin(connection) {
            let rest = input.get(at..).unwrap_or_default();
            match parser.parse(rest, self.shared.request_bytes_max) {
                Parsed::More => break,
                Parsed::Nothing(length) => at += length,
                Parsed::Request(arguments, length) => {
                    if self.shared.begin(io, connection, id, &arguments, out) == Begun::No {
                        connection.is_stopped = true;
                        break;
                    }
                    at += length;
                }
                Parsed::Refused(why) => {
                    connection.reply(out).error(&format!("ERR Protocol error: {why}"));
                    connection.is_closing = true;
                }
            }
        }
        if connection.is_closing || at == input.len() {
            input.clear();
            if input.capacity() > KEPT_BYTES {
                input = Vec::new();
            }
        } else {
            input.drain(..at);
        }
        self.input_bytes = (self.input_bytes + input.len()).saturating_sub(before);
        if self.input_bytes > INPUT_BYTES_MAX && input.len() > WAITING_BYTES_MAX {
            self.input_bytes -= input.len();
            input = Vec::new();
            connection.reply(out).error("ERR Protocol error: too many large requests at once");
            connection.is_closing = true;
        }
        connection.input = input;
        connection.parser = parser;
        let hold = !connection.slots.is_empty() && connection.input.len() > WAITING_BYTES_MAX;
        if hold != connection.is_held {
            connection.is_held = hold;
            io.hold(id, hold);
        }
    }

    /// Sends what gathered for a connection, and closes it if that was its last.
    fn hand_over(&mut self, io: &mut Io<'_>, id: ConnectionId, mut out: Vec<u8>) {
        if !out.is_empty() {
            io.send(id, &out);
            out.clear();
        }
        self.out = out;
        if self.connections.get(&id).is_some_and(|connection| connection.is_closing && connection.slots.is_empty()) {
            io.close(id);
            self.closed(id);
        }
    }

    /// A batch was done, or not.
    fn done(&mut self, io: &mut Io<'_>, way: Way, token: Token, outcome: Outcome<'_>) {
        let Shared { writes, reads, tokens, .. } = &mut self.shared;
        let lane = if way == Way::Write { writes } else { reads };
        let Some(batch) = lane.take(token) else { return };
        let failure = match outcome {
            Outcome::Ok(frames) => return self.answered(io, way, &batch, frames),
            Outcome::Trapped(_) if batch.units.len() > 1 => return lane.separate(&batch, tokens),
            Outcome::Trapped(why) => format!("ERR the module trapped, and nothing changed: {why}"),
            Outcome::Rejected(why) => format!("ERR {why}"),
            Outcome::Failed { code: "no_leader", detail } => format!("CLUSTERDOWN {detail}"),
            Outcome::Failed { code, detail } => format!("ERR {code}: {detail}"),
        };
        for units in batch.units.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((id, _)) = units.first() else { continue };
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let mut out = std::mem::take(&mut self.out);
            for _ in units {
                if connection.slots.pop_front().is_some() {
                    Reply::new(&mut out, connection.protocol).error(&failure);
                }
                connection.drain(&mut out);
            }
            self.go_on(io, *id, out);
        }
    }

    /// The units of a batch were done, all or the first ones.
    fn answered(&mut self, io: &mut Io<'_>, way: Way, batch: &Batch, frames: &[u8]) {
        let mut frames = Fields(frames);
        let mut done = 0;
        for units in batch.units.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((id, _)) = units.first() else { continue };
            let mut out = std::mem::take(&mut self.out);
            let mut connection = self.connections.get_mut(id);
            for _ in units {
                let Some(frame) = frames.frame() else { break };
                done += 1;
                // The frames of one that is gone are passed over.
                if let Some(connection) = &mut connection {
                    self.shared.settle(io, connection, frame, &mut out);
                    connection.drain(&mut out);
                }
            }
            self.go_on(io, *id, out);
        }
        if done < batch.units.len() {
            let Shared { writes, reads, tokens, .. } = &mut self.shared;
            let lane = if way == Way::Write { writes } else { reads };
            lane.put_back(batch.pieces().skip(done), tokens);
        }
    }

    /// Begins what waited behind the replies in `out`, and sends.
    fn go_on(&mut self, io: &mut Io<'_>, id: ConnectionId, mut out: Vec<u8>) {
        let waits = |connection: &Connection| connection.slots.is_empty() && !connection.input.is_empty();
        if self.connections.get(&id).is_some_and(waits) {
            self.pump(io, id, &mut out);
        }
        self.hand_over(io, id, out);
    }

    /// The state machine told something: the messages are for us.
    fn event(&mut self, io: &mut Io<'_>, index: u64, bytes: &[u8]) {
        if !bytes.starts_with(br#"{"change":"publish""#) {
            return;
        }
        let (entry, heard) = &mut self.shared.heard;
        if *entry != index {
            *entry = index;
            heard.clear();
        }
        let mut count = 0;
        if !self.shared.channels.is_empty()
            && let Ok(Published { channel, message, .. }) = Json::decode(bytes)
        {
            for (id, pattern) in self.shared.channels.listeners(channel.as_bytes()) {
                let Some(connection) = self.connections.get(&id) else { continue };
                let mut reply = Reply::new(&mut self.out, connection.protocol);
                match pattern {
                    None => {
                        reply.push(3);
                        reply.bulk(b"message");
                    }
                    Some(pattern) => {
                        reply.push(4);
                        reply.bulk(b"pmessage");
                        reply.bulk(pattern);
                    }
                }
                reply.bulk(channel.as_bytes());
                reply.bulk(message.as_bytes());
                io.send(id, &self.out);
                self.out.clear();
                count += 1;
            }
        }
        heard.push(count);
    }
}
