//! The adapter: takes clients' requests, sends them to the state machine in batches, and answers in
//! each connection's order.
//!
//! Invariants (with those of [`lane`](super::lane) and [`connection`](super::connection)):
//! * A connection's requests are begun in order, and one that asks the state machine is begun only if
//!   all before it that are not answered are in the same batch: so a read sees the writes before it.
//! * What a client can make the adapter keep is bounded: `input` by the host's reading being held, one
//!   request by its limit, a transaction by [`TRANSACTION_BYTES_MAX`], what is owed by [`SLOTS_MAX`].

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

use super::channels::By;
use super::channels::Channels;
use super::channels::SUBSCRIPTIONS_MAX;
use super::channels::Subscriptions;
use super::command::Action;
use super::command::Build;
use super::command::Command;
use super::command::KEYS_MAX;
use super::command::NOT_INTEGER;
use super::command::Own;
use super::command::Refusal;
use super::command::SYNTAX;
use super::command::find;
use super::command::is;
use super::command::keys;
use super::command::number;
use super::command::wrong_number;
use super::connection::Connection;
use super::connection::Item;
use super::connection::Kind;
use super::connection::Slot;
use super::connection::Transaction;
use super::connection::Watched;
use super::connection::Way;
use super::cursors::Cursors;
use super::glob;
use super::lane::Batch;
use super::lane::Lane;
use super::op::Fields;
use super::op::MARK;
use super::op::Op;
use super::op::SPECIAL;
use super::op::Stamp;
use super::op::put_number;
use super::op::put_one;
use super::op::put_transaction;
use super::parse::Arguments;
use super::parse::Parsed;
use super::parse::integer;
use super::reply::Protocol;
use super::reply::Reply;
use super::server;
use crate::Limits;
use crate::api::Published;

/// The largest request, bytes, unless the group takes larger keys and values: below the host's limit
/// of a command (1 MiB).
const REQUEST_BYTES_MAX: usize = 900 << 10;
/// What a transaction's operations and known replies may take.
const TRANSACTION_BYTES_MAX: usize = 900 << 10;
/// While so much of a connection waits behind its own requests, nothing more is read from it.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// What all connections' unread bytes may take together, before large requests are refused.
const INPUT_BYTES_MAX: usize = 128 << 20;
/// How many replies may be owed to a connection.
const SLOTS_MAX: usize = 1_024;
/// How many keys a connection may watch.
const WATCHED_MAX: usize = 1_000;
/// How many keys a `SCAN` looks at, at most.
const SCAN_COUNT_MAX: u64 = 10_000;
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
struct Shared {
    consistency: Consistency,
    request_bytes_max: usize,
    node: u64,
    since_ms: u64,
    connections: usize,
    requests: u64,
    tokens: Token,
    writes: Lane,
    reads: Lane,
    channels: Channels,
    cursors: Cursors,
    /// How many heard the messages of this entry, in their order.
    heard: (u64, Vec<usize>),
    /// An operation under way; empty between requests.
    op: Vec<u8>,
}

/// Whether a request was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Yes,
    /// Not before those before it are answered.
    No,
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
        let Shared { writes, reads, tokens, consistency, .. } = &mut self.shared;
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
            put_number(&mut command, io.time_ms());
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

impl Shared {
    /// Whether a connection's next request may be looked at.
    fn may_begin(&self, connection: &Connection) -> bool {
        let takes_more = match connection.way {
            None => true,
            Some((Way::Write, token)) => self.writes.takes_more(token),
            Some((Way::Read, token)) => self.reads.takes_more(token),
        };
        takes_more && !connection.is_stopped && !connection.is_closing && connection.slots.len() < SLOTS_MAX
    }

    /// Begins a request, if those before it let it.
    fn begin(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Begun {
        self.requests += 1;
        match self.try_begin(io, connection, id, arguments, out) {
            Ok(begun) => begun,
            Err(refusal) => {
                connection.reply(out).error(&refusal);
                Begun::Yes
            }
        }
    }

    fn try_begin(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Begun, Refusal> {
        let name = arguments.get(0);
        let command = match find(name) {
            Some(command) if command.takes(arguments.len()) => command,
            found => {
                if is(name, "POST") || is(name, "HOST:") {
                    // A browser that a page made speak HTTP to us.
                    connection.is_closing = true;
                    return Ok(Begun::Yes);
                }
                if let Some(transaction) = &mut connection.transaction {
                    transaction.is_broken = true;
                }
                return Err(found.map_or_else(|| unknown(arguments), |command| wrong_number(command.name)));
            }
        };
        if connection.is_listening() && !is_allowed_while_listening(command) {
            let name = command.name.to_ascii_lowercase();
            return Err(format!(
                "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are \
                 allowed in this context"
            )
            .into());
        }
        if connection.transaction.is_some() && !is_done_at_once(command) {
            return self.queue(io, connection, id, command, arguments, out).map(|()| Begun::Yes);
        }
        match command.action {
            Action::Write(build) => self.build_and_add(io, connection, id, Access::Write, build, arguments),
            Action::Read(build) => self.build_and_add(io, connection, id, Access::Read, build, arguments),
            Action::Scan(build) => self.build_and_add(io, connection, id, Access::Scan, build, arguments),
            Action::Own(own) => self.own(io, connection, id, own, arguments, out),
        }
    }

    fn build_and_add(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        access: Access,
        build: Build,
        arguments: &Arguments<'_>,
    ) -> Result<Begun, Refusal> {
        let Some(way) = access.way(connection) else { return Ok(Begun::No) };
        self.op.clear();
        build(arguments, io.time_ms(), &mut self.op)?;
        Ok(self.add_one(connection, id, way, Kind::Plain))
    }

    /// Sends `self.op` on its way.
    fn add_one(&mut self, connection: &mut Connection, id: ConnectionId, way: Way, kind: Kind) -> Begun {
        let resp3 = connection.protocol == Protocol::Resp3;
        let lane = if way == Way::Write { &mut self.writes } else { &mut self.reads };
        let op = &self.op;
        let token = lane.add(id, &mut self.tokens, |out| put_one(out, resp3, op));
        connection.way = Some((way, token));
        connection.slots.push_back(Slot::Unit(kind));
        Begun::Yes
    }

    /// Own commands that are operations: `self.op` is it.
    fn own_op(
        &mut self,
        io: &mut Io<'_>,
        own: Own,
        arguments: &Arguments<'_>,
    ) -> Result<Option<(Access, Kind)>, Refusal> {
        self.op.clear();
        let (access, kind, op) = match own {
            Own::Publish => (Access::Write, Kind::Publish, Op::Publish(arguments.get(1), arguments.get(2))),
            Own::RandomKey => (Access::Scan, Kind::Plain, Op::RandomKey(io.random_u64())),
            Own::Info => (Access::Scan, Kind::Info(arguments.from(1).map(<[u8]>::to_vec).collect()), Op::Status),
            Own::Scan => {
                let mut op = std::mem::take(&mut self.op);
                let scan = self.scan(arguments).map(|scan| scan.encode(&mut op));
                self.op = op;
                scan?;
                return Ok(Some((Access::Scan, Kind::Scan)));
            }
            _ => return Ok(None),
        };
        op.encode(&mut self.op);
        Ok(Some((access, kind)))
    }

    /// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
    fn scan<'a>(&'a self, arguments: &Arguments<'a>) -> Result<Op<'a>, Refusal> {
        let cursor = std::str::from_utf8(arguments.get(1)).ok().and_then(|text| text.parse().ok());
        let cursor: u64 = cursor.ok_or("ERR invalid cursor")?;
        let (mut pattern, mut count, mut is_typed_else) = (&b"*"[..], 10, false);
        if arguments.len() % 2 == 1 {
            return Err(SYNTAX.into());
        }
        for at in (2..arguments.len()).step_by(2) {
            let (option, value) = (arguments.get(at), arguments.get(at + 1));
            if is(option, "MATCH") {
                pattern = value;
            } else if is(option, "COUNT") {
                count = u64::try_from(number(value)?).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
            } else if is(option, "TYPE") {
                is_typed_else = !is(value, "string");
            } else {
                return Err(SYNTAX.into());
            }
        }
        // One that no key can be behind: there are only strings.
        let nowhere = &[0xff; 16];
        let start = match self.cursors.get(cursor) {
            _ if is_typed_else => nowhere,
            Some(start) => start,
            None => return Err("ERR invalid cursor: not one of this node's last; begin again with 0".into()),
        };
        let pattern = if is_typed_else { nowhere } else { pattern };
        Ok(Op::Scan { start, pattern, count: count.min(SCAN_COUNT_MAX) })
    }

    /// What the adapter does itself.
    fn own(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        own: Own,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Begun, Refusal> {
        if let Some((access, kind)) = self.own_op(io, own, arguments)? {
            return Ok(match access.way(connection) {
                Some(way) => self.add_one(connection, id, way, kind),
                None => Begun::No,
            });
        }
        // What others see, or what depends on an answer that is still to come.
        let is_apart = matches!(
            own,
            Own::Subscribe
                | Own::PSubscribe
                | Own::Unsubscribe
                | Own::PUnsubscribe
                | Own::Watch
                | Own::Unwatch
                | Own::Discard
                | Own::Reset
                | Own::Hello
        );
        if is_apart && !connection.slots.is_empty() {
            return Ok(Begun::No);
        }
        match own {
            Own::Multi if connection.transaction.is_some() => return Err("ERR MULTI calls can not be nested".into()),
            Own::Multi => {
                connection.transaction = Some(Box::new(Transaction { only_reads: true, ..Transaction::default() }));
                connection.reply(out).ok();
            }
            Own::Exec => return self.exec(connection, id, out),
            Own::Discard => {
                if connection.transaction.take().is_none() {
                    return Err("ERR DISCARD without MULTI".into());
                }
                connection.watched = Vec::new();
                connection.reply(out).ok();
            }
            Own::Watch => {
                if connection.transaction.is_some() {
                    return Err("ERR WATCH inside MULTI is not allowed".into());
                }
                let keys = keys(arguments)?;
                if connection.watched.len().saturating_add(keys.len()) > WATCHED_MAX {
                    return Err(format!("ERR too many keys are watched: at most {WATCHED_MAX}").into());
                }
                let watched = keys.iter().map(|key| key.to_vec()).collect();
                self.op.clear();
                Op::Stamps(keys).encode(&mut self.op);
                return Ok(self.add_one(connection, id, Way::Read, Kind::Watch(watched)));
            }
            Own::Unwatch => {
                connection.watched = Vec::new();
                connection.reply(out).ok();
            }
            Own::Subscribe => self.subscribe(connection, id, By::Name, arguments, out)?,
            Own::PSubscribe => self.subscribe(connection, id, By::Pattern, arguments, out)?,
            Own::Unsubscribe => self.unsubscribe(connection, id, By::Name, arguments, out),
            Own::PUnsubscribe => self.unsubscribe(connection, id, By::Pattern, arguments, out),
            Own::Reset => {
                if let Some(mut own) = connection.subscriptions.take() {
                    self.channels.remove_all(id, &mut own);
                }
                connection.reset();
                connection.reply(out).simple("RESET");
            }
            Own::Quit => {
                connection.reply(out).ok();
                connection.is_closing = true;
            }
            Own::Hello => server::hello(connection, id, arguments, out)?,
            own => self.tell(io, connection, id, own, arguments, out)?,
        }
        Ok(Begun::Yes)
    }

    /// What is answered at once and changes nothing but the connection.
    fn tell(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        own: Own,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let is_listening = connection.is_listening();
        if own == Own::Client {
            return server::client(connection, id, arguments, out);
        }
        let mut reply = connection.reply(out);
        match own {
            Own::Auth => server::auth(arguments, &mut reply)?,
            Own::CommandList => server::command(arguments, &mut reply)?,
            Own::Config => server::config(arguments, &mut reply)?,
            Own::Echo => reply.bulk(arguments.get(1)),
            Own::Ping if arguments.len() > 2 => return Err(wrong_number("ping")),
            Own::Ping if is_listening => {
                reply.array(2);
                reply.bulk(b"pong");
                reply.bulk(arguments.get(1));
            }
            Own::Ping if arguments.len() == 2 => reply.bulk(arguments.get(1)),
            Own::Ping => reply.simple("PONG"),
            Own::PubSub => self.pubsub(arguments, &mut reply)?,
            Own::Select => match number(arguments.get(1))? {
                0 => reply.ok(),
                _ => return Err("ERR DB index is out of range".into()),
            },
            // In a transaction only, whose `EXEC` forgets what is watched anyway.
            Own::Unwatch => reply.ok(),
            Own::Time => {
                let now_ms = io.time_ms();
                reply.array(2);
                reply.bulk((now_ms / 1_000).to_string().as_bytes());
                reply.bulk((now_ms % 1_000 * 1_000).to_string().as_bytes());
            }
            // What was answered is at a majority already; there are no replicas beside it to wait for.
            Own::Wait => {
                integer(arguments.get(1)).ok_or(NOT_INTEGER)?;
                match integer(arguments.get(2)) {
                    None => return Err("ERR timeout is not an integer or out of range".into()),
                    Some(..0) => return Err("ERR timeout is negative".into()),
                    Some(_) => reply.integer(0),
                }
            }
            _ => return Err(SYNTAX.into()),
        }
        Ok(())
    }

    /// `PUBSUB CHANNELS [pattern]`, `NUMSUB [channel …]`, `NUMPAT`: of this node.
    fn pubsub(&self, arguments: &Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Refusal> {
        let subcommand = arguments.get(1);
        if is(subcommand, "CHANNELS") && arguments.len() <= 3 {
            let pattern = if arguments.len() == 3 { arguments.get(2) } else { b"*" };
            let found: Vec<_> = self.channels.names().filter(|name| glob::is_match(pattern, name)).collect();
            reply.array(found.len());
            found.iter().for_each(|name| reply.bulk(name));
        } else if is(subcommand, "NUMSUB") {
            reply.array((arguments.len() - 2) * 2);
            for channel in arguments.from(2) {
                reply.bulk(channel);
                reply.count(self.channels.listening(channel));
            }
        } else if is(subcommand, "NUMPAT") && arguments.len() == 2 {
            reply.count(self.channels.patterns());
        } else {
            let subcommand = String::from_utf8_lossy(subcommand);
            return Err(format!("ERR unknown subcommand '{subcommand}'. Try PUBSUB HELP.").into());
        }
        Ok(())
    }

    fn subscribe(
        &mut self,
        connection: &mut Connection,
        id: ConnectionId,
        by: By,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let own = connection.subscriptions.get_or_insert_default();
        if own.len().saturating_add(arguments.len()) > SUBSCRIPTIONS_MAX {
            return Err(format!("ERR too many subscriptions: at most {SUBSCRIPTIONS_MAX} a connection").into());
        }
        for channel in arguments.from(1) {
            self.channels.add(id, own, by, channel);
            let mut reply = Reply::new(out, connection.protocol);
            reply.push(3);
            reply.bulk(if by == By::Name { b"subscribe" } else { b"psubscribe" });
            reply.bulk(channel);
            reply.count(own.len());
        }
        Ok(())
    }

    fn unsubscribe(
        &mut self,
        connection: &mut Connection,
        id: ConnectionId,
        by: By,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) {
        let own: &mut Subscriptions = connection.subscriptions.get_or_insert_default();
        let channels: Vec<Vec<u8>> = match arguments.len() {
            1 => own.all(by).iter().cloned().collect(),
            _ => arguments.from(1).map(<[u8]>::to_vec).collect(),
        };
        let word: &[u8] = if by == By::Name { b"unsubscribe" } else { b"punsubscribe" };
        let mut reply = Reply::new(out, connection.protocol);
        if channels.is_empty() {
            reply.push(3);
            reply.bulk(word);
            reply.null();
            reply.count(own.len());
        }
        for channel in channels {
            self.channels.remove(id, own, by, &channel);
            reply.push(3);
            reply.bulk(word);
            reply.bulk(&channel);
            reply.count(own.len());
        }
    }

    /// Puts a request into the connection's transaction.
    fn queue(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        command: &Command,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let Some(mut transaction) = connection.transaction.take() else { return Ok(()) };
        let queued = self.try_queue(io, connection, id, command, arguments, &mut transaction);
        transaction.is_broken |= queued.is_err();
        connection.transaction = Some(transaction);
        queued?;
        connection.reply(out).simple("QUEUED");
        Ok(())
    }

    /// As in Redis, an option that is wrong is told by `EXEC`, as this request's reply.
    fn try_queue(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        command: &Command,
        arguments: &Arguments<'_>,
        transaction: &mut Transaction,
    ) -> Result<(), Refusal> {
        self.op.clear();
        let built = match command.action {
            Action::Write(build) => build(arguments, io.time_ms(), &mut self.op).map(|()| (Access::Write, Kind::Plain)),
            Action::Read(build) | Action::Scan(build) => {
                build(arguments, io.time_ms(), &mut self.op).map(|()| (Access::Read, Kind::Plain))
            }
            Action::Own(own) => match self.own_op(io, own, arguments) {
                Ok(Some(op)) => Ok(op),
                Ok(None) if is_refused_in_transactions(own) => {
                    return Err("ERR Command not allowed inside a transaction".into());
                }
                Ok(None) => {
                    // Its reply goes beside those that are owed, into the transaction.
                    let mut ready = Vec::new();
                    let slots = std::mem::take(&mut connection.slots);
                    let told = self.tell(io, connection, id, own, arguments, &mut ready);
                    connection.slots = slots;
                    if let Err(refusal) = told {
                        Reply::new(&mut ready, connection.protocol).error(&refusal);
                    }
                    transaction.ready_bytes += ready.len();
                    transaction.items.push(Item::Ready(ready));
                    return check_size(transaction);
                }
                Err(refusal) => Err(refusal),
            },
        };
        match built {
            Ok((access, kind)) => {
                transaction.ops.extend_from_slice(&self.op);
                transaction.count += 1;
                transaction.only_reads &= access != Access::Write;
                transaction.keys += arguments.len();
                transaction.items.push(Item::Op(kind));
            }
            Err(refusal) => {
                let mut ready = Vec::new();
                Reply::new(&mut ready, connection.protocol).error(&refusal);
                transaction.ready_bytes += ready.len();
                transaction.items.push(Item::Ready(ready));
            }
        }
        check_size(transaction)
    }

    /// `EXEC`
    fn exec(&mut self, connection: &mut Connection, id: ConnectionId, out: &mut Vec<u8>) -> Result<Begun, Refusal> {
        let transaction = connection.transaction.as_ref().ok_or("ERR EXEC without MULTI")?;
        let is_known = transaction.count == 0 && connection.watched.is_empty();
        let is_only_asked = transaction.only_reads && connection.watched.is_empty();
        let access = if is_only_asked { Access::Scan } else { Access::Write };
        let way = if transaction.is_broken || is_known { None } else { Some(access.way(connection)) };
        if way == Some(None) {
            return Ok(Begun::No);
        }
        let Some(transaction) = connection.transaction.take() else { return Ok(Begun::Yes) };
        let watched = std::mem::take(&mut connection.watched);
        let Some(way) = way.flatten() else {
            if transaction.is_broken {
                return Err("EXECABORT Transaction discarded because of previous errors.".into());
            }
            let mut reply = connection.reply(out);
            reply.array(transaction.items.len());
            for item in &transaction.items {
                if let Item::Ready(bytes) = item {
                    reply.out.extend_from_slice(bytes);
                }
            }
            return Ok(Begun::Yes);
        };
        let resp3 = connection.protocol == Protocol::Resp3;
        let stamps: Vec<Stamp<'_>> = watched.iter().map(Watched::stamp).collect();
        let lane = if way == Way::Write { &mut self.writes } else { &mut self.reads };
        let token = lane.add(id, &mut self.tokens, |out| {
            put_transaction(out, resp3, &stamps, transaction.count, &transaction.ops);
        });
        connection.way = Some((way, token));
        connection.slots.push_back(Slot::Transaction(transaction.items));
        Ok(Begun::Yes)
    }

    /// The frame of a connection's first unit came.
    fn settle(&mut self, io: &mut Io<'_>, connection: &mut Connection, frame: &[u8], out: &mut Vec<u8>) {
        match connection.slots.pop_front() {
            Some(Slot::Unit(kind)) => self.settle_one(io, connection, kind, frame, out),
            Some(Slot::Transaction(items)) => match frame.split_first() {
                Some((1, frames)) => {
                    Reply::new(out, connection.protocol).array(items.len());
                    let mut frames = Fields(frames);
                    for item in items {
                        match item {
                            Item::Ready(bytes) => out.extend_from_slice(&bytes),
                            Item::Op(kind) => {
                                let frame = frames.frame().unwrap_or_default();
                                self.settle_one(io, connection, kind, frame, out);
                            }
                        }
                    }
                }
                _ => Reply::new(out, connection.protocol).null_array(),
            },
            // `drain` leaves a unit in front.
            Some(Slot::Ready(_)) | None => {}
        }
    }

    /// Turns an operation's frame into its reply.
    fn settle_one(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        kind: Kind,
        frame: &[u8],
        out: &mut Vec<u8>,
    ) {
        let Some(special) = frame.strip_prefix(&[SPECIAL]) else {
            out.extend_from_slice(frame);
            return;
        };
        let mut fields = Fields(special);
        let mut number = || fields.number().unwrap_or_default();
        let mut reply = Reply::new(out, connection.protocol);
        match kind {
            Kind::Plain => {}
            Kind::Publish => {
                let message = usize::try_from(number()).unwrap_or(usize::MAX);
                reply.count(self.heard.1.get(message).copied().unwrap_or_default());
            }
            Kind::Scan => {
                let next = fields.bytes().unwrap_or_default();
                let cursor = if next.is_empty() { 0 } else { self.cursors.add(next, io.random_u64()) };
                reply.array(2);
                reply.bulk(cursor.to_string().as_bytes());
                reply.out.extend_from_slice(fields.0);
            }
            Kind::Watch(keys) => {
                for key in keys {
                    connection.watched.push(Watched { key, version: number(), expires_at_ms: number() });
                }
                reply.ok();
            }
            Kind::Info(sections) => {
                let figures = server::Figures { keys: number(), expiring: number(), version: number() };
                let node = server::Node {
                    id: self.node,
                    connections: self.connections,
                    requests: self.requests,
                    since_ms: self.since_ms,
                    now_ms: io.time_ms(),
                    leader: (io.has_leader(), io.leads()),
                    channels: (self.channels.names().count(), self.channels.patterns()),
                };
                server::info(&node, &figures, &sections, &mut reply);
            }
        }
    }
}

/// What a request does to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Write,
    Read,
    Scan,
}

impl Access {
    /// The way to go beside what the connection has under way; `None` if it has to wait. A read behind
    /// a write goes with it, unless it may be large.
    fn way(self, connection: &Connection) -> Option<Way> {
        match (self, connection.way.map(|(way, _)| way)) {
            (Self::Write, None | Some(Way::Write)) | (Self::Read, Some(Way::Write)) => Some(Way::Write),
            (Self::Read | Self::Scan, None | Some(Way::Read)) => Some(Way::Read),
            (Self::Write, Some(Way::Read)) | (Self::Scan, Some(Way::Write)) => None,
        }
    }
}

fn check_size(transaction: &Transaction) -> Result<(), Refusal> {
    let bytes = transaction.ops.len().saturating_add(transaction.ready_bytes);
    if bytes > TRANSACTION_BYTES_MAX || transaction.keys.max(transaction.items.len()) > KEYS_MAX {
        return Err(format!("ERR the transaction is too large: {TRANSACTION_BYTES_MAX} bytes, {KEYS_MAX} keys").into());
    }
    Ok(())
}

fn is_done_at_once(command: &Command) -> bool {
    let Action::Own(own) = command.action else { return false };
    matches!(own, Own::Exec | Own::Discard | Own::Multi | Own::Watch | Own::Quit | Own::Reset)
}

fn is_refused_in_transactions(own: Own) -> bool {
    use Own::{Auth, Hello, PSubscribe, PUnsubscribe, Subscribe, Unsubscribe};
    matches!(own, Auth | Hello | PSubscribe | PUnsubscribe | Subscribe | Unsubscribe)
}

fn is_allowed_while_listening(command: &Command) -> bool {
    use Own::{PSubscribe, PUnsubscribe, Ping, Quit, Reset, Subscribe, Unsubscribe};
    let Action::Own(own) = command.action else { return false };
    matches!(own, PSubscribe | PUnsubscribe | Ping | Quit | Reset | Subscribe | Unsubscribe)
}

/// What Redis says of a name it does not know: with the beginning of the arguments.
fn unknown(arguments: &Arguments<'_>) -> Refusal {
    let cut = |bytes: &[u8], length: usize| {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text.get(..length).unwrap_or(text)).into_owned()
    };
    let mut shown = String::new();
    for argument in arguments.from(1) {
        let Some(room) = 128_usize.checked_sub(shown.len()).filter(|room| *room > 0) else { break };
        shown.push_str(&format!("'{}' ", cut(argument, room)));
    }
    format!("ERR unknown command '{}', with args beginning with: {shown}", cut(arguments.get(0), 128)).into()
}
