//! ZooKeeper's client protocol: what a listener of a group of this module speaks.
//!
//! * `connection`: one client: frames, handshake, session; `requests`: its requests in order;
//! * `watching` and `watches`: who hears of what;
//! * `long`: answers that come in pieces; `outlet`: how much may be sent at once;
//! * `words`: four-letter words; `config`: `/zookeeper/config`; `reconfig`, `rcfg`: other members;
//! * `audit`: who changed what, for the log;
//! * `auth`, `handshake`, `compression`, `settings`, `stats`, `pending`: as they are called;
//! * this file: the listener as a whole, which gives what happens to whom it concerns.
//!
//! Invariants:
//! * a connection that holds a session stands in `sessions` under it, with the attachment it was given, unless another
//!   connection attached to the session since;
//! * watches belong to connections in `connections` only;
//! * `told` is an index of which every event was sent to its watchers: no answer that is not an
//!   entry's or a query's own tells a later one. A client that connects elsewhere names the latest zxid it was told,
//!   and gets no events up to it.

mod audit;
mod auth;
mod compression;
mod config;
mod connection;
mod handshake;
mod long;
mod outlet;
mod pending;
mod rcfg;
mod reconfig;
mod requests;
mod settings;
mod stats;
mod trace;
mod watches;
mod watching;
mod words;

use std::collections::BTreeMap;

use statehouse_sdk::Reject;
use statehouse_sdk::adapter::Adapter;
use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Consistency;
use statehouse_sdk::adapter::Input;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Lost;
use statehouse_sdk::adapter::Outcome;
use statehouse_sdk::adapter::Session;

use self::connection::Connection;
use self::connection::Phase;
use self::long::Gathered;
use self::long::LongAnswers;
use self::outlet::Outlet;
use self::pending::Pending;
use self::settings::Settings;
use self::stats::ServerStats;
use self::watches::Watches;
use crate::acl;
use crate::call;
use crate::call::Changes;
use crate::call::Identity;
use crate::call::Readers;
use crate::call::call_head;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::path;
use crate::wire::op;

/// The one timer.
const TICK: u64 = 1;
/// How long a connection may be without a handshake: ZooKeeper's `nio.sessionlessCnxnTimeout`.
const GREETING_MS_MAX: u64 = 10_000;

/// What an answer of the host is for.
#[derive(Debug)]
enum Purpose {
    /// A connection's session.
    Session(ConnectionId),
    /// A connection's request with this number.
    Request { connection: ConnectionId, slot: u64 },
    /// A piece of a long answer.
    Piece { round: u64, place: usize },
    /// A four-letter word.
    Word { connection: ConnectionId, part: words::Part },
    /// A connection's plan.
    Rcfg { connection: ConnectionId },
    /// The members, for `/zookeeper/config`.
    Members,
    /// That was written.
    Config,
    /// What was written before, when there is one member alone.
    LoneConfig,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    watches: Watches,
    pending: Pending<Purpose>,
    long: LongAnswers,
    outlet: Outlet,
    stats: ServerStats,
    words: words::Words,
    /// A word may have all it needs.
    words_ready: bool,
    /// The plan that is carried out.
    rcfg: Option<rcfg::Running>,
    /// Requests that are not answered, of all connections.
    outstanding: u64,
    /// Bytes that are kept of all clients: parts of frames, requests that wait for their turn.
    kept_bytes: usize,
    /// See the [module](self).
    told: u64,
    /// Since when this node leads, Unix milliseconds.
    leading_since_ms: Option<u64>,
    /// Since when there has been no leader, Unix milliseconds.
    leaderless_since_ms: Option<u64>,
    /// Who changed what in this call of the host's.
    audit: String,
    /// Counts the host's calls: what is asked in one of them is answered in order.
    step: u64,
    /// Where frames and calls are written before they are handed to the host.
    frame: Vec<u8>,
}

impl Shared {
    /// As seen at the host's calls, of which there is one a tick at least.
    fn count_elections(&mut self, io: &Io<'_>) {
        if !io.has_leader() {
            self.leaderless_since_ms.get_or_insert_with(|| io.time_ms());
        } else if let Some(since_ms) = self.leaderless_since_ms.take() {
            let took_ms = io.time_ms().saturating_sub(since_ms);
            self.stats.leaderless.add(took_ms);
            if io.leads() {
                self.stats.elections.add(took_ms);
            }
        }
    }
}

/// Who holds a session.
#[derive(Clone, Copy, Debug)]
struct Holder {
    connection: ConnectionId,
    attachment: u64,
}

/// A listener.
#[derive(Debug)]
pub struct ZooKeeper {
    connections: BTreeMap<ConnectionId, Connection>,
    sessions: BTreeMap<u64, Holder>,
    shared: Shared,
    hearers: Vec<ConnectionId>,
    /// Since when no leader is known, Unix milliseconds.
    leaderless_since_ms: Option<u64>,
    /// What was last written to `/zookeeper/config`.
    config: String,
}

impl Adapter for ZooKeeper {
    fn open(settings: &[u8], io: &mut Io<'_>) -> Result<Self, Reject> {
        let shared = Shared {
            settings: Settings::parse(settings)?,
            watches: Watches::new(io.random_u64()),
            pending: Pending::default(),
            long: LongAnswers::default(),
            outlet: Outlet::default(),
            stats: ServerStats::default(),
            words: words::Words::default(),
            words_ready: false,
            rcfg: None,
            outstanding: 0,
            kept_bytes: 0,
            told: io.applied(),
            leading_since_ms: None,
            leaderless_since_ms: None,
            audit: String::new(),
            step: 0,
            frame: Vec::new(),
        };
        io.set_timer(TICK, io.time_ms() + shared.settings.tick_time_ms);
        Ok(Self {
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            shared,
            hearers: Vec::new(),
            leaderless_since_ms: None,
            config: String::new(),
        })
    }

    fn input(&mut self, io: &mut Io<'_>, input: Input<'_>) {
        let shared = &mut self.shared;
        match input {
            Input::Opened { connection, peer } => {
                self.connections
                    .insert(connection, Connection::new(connection, peer, io.time_ms(), self.shared.settings.skip_acl));
            }
            Input::Data { connection, bytes } => {
                if let Some(connection) = self.connections.get_mut(&connection) {
                    connection.receive(shared, io, bytes);
                }
            }
            Input::Closed { connection } => self.closed(connection),
            Input::Applied { token, index, outcome } | Input::Answered { token, index, outcome } => {
                shared.told = shared.told.max(index);
                self.answered(io, token, index, &outcome);
            }
            Input::Event { index, time_ms: _, bytes } => {
                self.event(io, index, bytes);
                // Another event of the same entry may follow.
                self.shared.told = self.shared.told.max(index.saturating_sub(1));
            }
            Input::Session { token, index, session } => {
                shared.told = shared.told.max(index);
                self.session(io, token, session);
            }
            Input::SessionLost { session, attachment, index: _, why } => self.lost(io, session, attachment, why),
            Input::Timer { id: _ } => self.tick(io),
            Input::Told { token, outcome } => match shared.pending.take(token) {
                Some(Purpose::Word { connection, part }) => words::gathered(shared, connection, part, &outcome),
                Some(Purpose::Rcfg { connection }) => rcfg::told(shared, io, connection, &outcome),
                Some(Purpose::Members) => self.members(io, &outcome),
                Some(Purpose::Request { connection, slot }) => {
                    if let Some(connection) = self.connections.get_mut(&connection) {
                        connection.answered(shared, io, slot, 0, &outcome);
                    }
                }
                _ => {}
            },
        }
    }

    fn flush(&mut self, io: &mut Io<'_>) {
        let leading_since_ms = self.shared.leading_since_ms.unwrap_or_else(|| io.time_ms());
        self.shared.leading_since_ms = io.leads().then_some(leading_since_ms);
        self.shared.count_elections(io);
        words::step(&mut self.connections, &mut self.shared, io);
        long::step(&mut self.shared, io);
        audit::flush(&mut self.shared.audit);
        self.shared.outlet.clear();
        self.shared.step += 1;
        self.shared.told = self.shared.told.max(io.applied());
        if self.shared.frame.capacity() > 1 << 20 {
            self.shared.frame = Vec::new();
        }
    }
}

/// What is kept of clients and of what was asked: for tests, which see that it is nothing when nobody is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    connections: usize,
    sessions: usize,
    watches: watches::Summary,
    pending: usize,
    words: usize,
    has_plan: bool,
    long: usize,
    outstanding: u64,
    bytes: usize,
}

impl ZooKeeper {
    /// What is kept now.
    pub fn kept(&self) -> Kept {
        Kept {
            connections: self.connections.len(),
            sessions: self.sessions.len(),
            watches: self.shared.watches.summary(false),
            pending: self.shared.pending.len(),
            words: self.shared.words.len(),
            has_plan: self.shared.rcfg.is_some(),
            long: self.shared.long.len(),
            outstanding: self.shared.outstanding,
            bytes: self.shared.kept_bytes,
        }
    }

    fn closed(&mut self, id: ConnectionId) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        connection.give_up(&mut self.shared);
        self.shared.watches.forget(id);
        self.shared.words.forget(id);
        rcfg::forget(&mut self.shared, id);
        if let Some(session) = connection.session {
            self.let_go(session.id, id);
        }
    }

    /// A connection no longer holds its session.
    fn let_go(&mut self, session: u64, connection: ConnectionId) {
        if self.sessions.get(&session).is_some_and(|holder| holder.connection == connection) {
            self.sessions.remove(&session);
        }
    }

    fn answered(&mut self, io: &mut Io<'_>, token: u64, index: u64, outcome: &Outcome<'_>) {
        match self.shared.pending.take(token) {
            Some(Purpose::Request { connection, slot }) => {
                if let Some(connection) = self.connections.get_mut(&connection) {
                    connection.answered(&mut self.shared, io, slot, index, outcome);
                }
            }
            Some(Purpose::Piece { round, place }) => {
                let Gathered::Whole { connection, slot, index, reply } =
                    self.shared.long.take(round, place, index, outcome)
                else {
                    return;
                };
                let reply = reply.unwrap_or_else(call::error_reply);
                if let Some(connection) = self.connections.get_mut(&connection) {
                    connection.answered(&mut self.shared, io, slot, index, &Outcome::Ok(&reply));
                }
            }
            Some(Purpose::Word { connection, part }) => {
                words::gathered(&mut self.shared, connection, part, outcome);
            }
            Some(Purpose::Rcfg { connection }) => rcfg::told(&mut self.shared, io, connection, outcome),
            Some(Purpose::LoneConfig) => match *outcome {
                Outcome::Ok(reply) => {
                    let before = call::split_reply(reply).and_then(|(_, body)| Reader::new(body).buffer());
                    if before.is_ok_and(|before| before.is_some_and(|data| !data.is_empty())) {
                        self.propose_config(io);
                    }
                }
                _ => self.config.clear(),
            },
            // Whatever went wrong, the next tick tries again.
            Some(Purpose::Config) if !matches!(outcome, Outcome::Ok(_)) => self.config.clear(),
            _ => {}
        }
    }

    fn session(&mut self, io: &mut Io<'_>, token: u64, session: Result<Session, Outcome<'_>>) {
        let Some(Purpose::Session(id)) = self.shared.pending.take(token) else { return };
        // The client may have gone meanwhile; then the session runs out by itself, unless the client comes back for it.
        if !self.connections.contains_key(&id) {
            return;
        }
        if let Ok(session) = session {
            let holder = Holder { connection: id, attachment: session.attachment };
            let before = self.sessions.insert(session.id, holder);
            if let Some(before) = before.and_then(|before| self.connections.get_mut(&before.connection))
                && before.id != id
            {
                before.close(&mut self.shared, io);
            }
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.opened(&mut self.shared, io, session);
        }
    }

    fn lost(&mut self, io: &mut Io<'_>, session: u64, attachment: u64, why: Lost) {
        let Some(holder) = self.sessions.get(&session).copied() else { return };
        // A later attachment, of a connection that has taken over, is not concerned.
        if holder.attachment != attachment {
            return;
        }
        self.sessions.remove(&session);
        if let Some(connection) = self.connections.get_mut(&holder.connection) {
            // A client that asked for the end is told first.
            if why == Lost::Moved || !connection.requests.closes_session() {
                connection.close(&mut self.shared, io);
            }
        }
    }

    /// Tells watchers what an entry changed.
    fn event(&mut self, io: &mut Io<'_>, index: u64, bytes: &[u8]) {
        let Ok(changes) = Changes::decode(bytes) else { return };
        let zxid =
            if self.shared.settings.is_clickhouse() { watching::NO_ZXID } else { self.shared.settings.zxid(index) };
        for change in changes {
            // The state machine of this very module wrote them.
            let Ok(change) = change else { return };
            self.shared.watches.fire(change.event, change.path, &mut self.hearers);
            if self.hearers.is_empty() {
                continue;
            }
            // What the frame is written for: nearly always the same for all.
            let mut written_for = None;
            for hearer in &self.hearers {
                let Some(connection) = self.connections.get_mut(hearer) else { continue };
                let format = connection.format;
                if written_for != Some(format) {
                    self.shared.frame.clear();
                    watching::notification(&mut self.shared.frame, format, change.event, change.path, zxid);
                    if format.is_compressed {
                        self.shared.frame = compression::pack(&self.shared.frame);
                    }
                    written_for = Some(format);
                }
                if let Readers::Some(readers) = &change.readers {
                    let identities: Vec<Identity<'_>> = connection.identities.iter().collect();
                    if !acl::is_one_of(&identities, readers) {
                        continue;
                    }
                }
                if !self.shared.outlet.takes(self.shared.frame.len()) {
                    connection.close(&mut self.shared, io);
                    continue;
                }
                io.send(*hearer, &self.shared.frame);
                connection.stats.sent += 1;
                self.shared.stats.sent += 1;
                self.shared.stats.watch_bytes += self.shared.frame.len() as u64;
            }
        }
    }

    /// Once in a while: is there a leader still, or again, does anybody stand in the door and say nothing, and are the
    /// members who `/zookeeper/config` says?
    fn tick(&mut self, io: &mut Io<'_>) {
        let now_ms = io.time_ms();
        io.set_timer(TICK, now_ms + self.shared.settings.tick_time_ms);
        if io.has_leader() {
            self.leaderless_since_ms = None;
        } else {
            let since_ms = *self.leaderless_since_ms.get_or_insert(now_ms);
            if now_ms.saturating_sub(since_ms) >= self.shared.settings.sync_limit_ms {
                let is_stale = |held: &&mut Connection| matches!(held.phase, Phase::Open) && held.read_only.is_none();
                for connection in self.connections.values_mut().filter(is_stale) {
                    connection.close(&mut self.shared, io);
                }
            }
        }
        rcfg::tick(&mut self.shared, io);
        let has_leader = io.has_leader();
        let is_over = |held: &&mut Connection| {
            let is_silent =
                matches!(held.phase, Phase::New) && now_ms.saturating_sub(held.opened_ms) >= GREETING_MS_MAX;
            is_silent || held.is_read_only_no_more(has_leader, now_ms)
        };
        for connection in self.connections.values_mut().filter(is_over) {
            connection.close(&mut self.shared, io);
        }
        if io.leads() {
            let token = self.shared.pending.keep(Purpose::Members);
            io.ask(token, "status");
        } else {
            self.config.clear();
        }
    }

    fn members(&mut self, io: &mut Io<'_>, outcome: &Outcome<'_>) {
        let Outcome::Ok(json) = *outcome else { return };
        let Some(facts) = words::Facts::parse(json) else { return };
        let is_clickhouse = self.shared.settings.is_clickhouse();
        let text = if is_clickhouse { config::clickhouse(&facts) } else { config::zookeeper(&facts) };
        if text == self.config {
            return;
        }
        self.config = text;
        if facts.members.len() > 1 || is_clickhouse {
            return self.propose_config(io);
        }
        // A server that was always by itself has an empty one, as ZooKeeper's.
        let token = self.shared.pending.keep(Purpose::LoneConfig);
        self.shared.frame.clear();
        call_head(op::GET_DATA, std::iter::empty(), &mut self.shared.frame);
        Writer::new(&mut self.shared.frame).text(path::CONFIG).bool(false);
        io.query(token, Consistency::Local, None, &self.shared.frame);
    }

    fn propose_config(&mut self, io: &mut Io<'_>) {
        let token = self.shared.pending.keep(Purpose::Config);
        config::propose(&mut self.shared, io, token, &self.config);
    }
}
