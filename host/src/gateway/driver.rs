//! Drives one adapter: gathers what happened, calls it, carries out what it asks.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::ConnectionOf;
use super::Phase;
use super::Shared;
use super::client::Arrival;
use super::client::Client;
use super::client::add;
use super::lock;
use super::records::Asked;
use super::records::ConnectionId;
use super::records::Inputs;
use super::records::Lost;
use super::records::Session;
use super::records::Token;
use super::records::read_asked;
use super::sessions::Next;
use super::sessions::Sessions;
use super::whole_ms;
use crate::group::inbox::Inbox;
use crate::group::inbox::Note;
use crate::group::inbox::Ticket;
use crate::group::state::Answer;
use crate::module::AdapterCall;
use crate::module::AdapterError;
use crate::module::AdapterInstance;
use crate::module::Fault;
use crate::module::LogLevel;
use crate::peer::Transport;
use crate::platform::Platform;
use crate::platform::random_u64;
use crate::service::Consistency;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::types::EntryKind;

/// Bytes of one step's input, about.
const STEP_BYTES: usize = 1 << 20;
/// After an adapter failed, how long until the next instance: doubled each time it fails soon again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// An adapter that has run this long was well.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// Between a doubt and the next attempt.
const RESEND_PAUSE: Duration = Duration::from_millis(5);
const RESEND_PAUSE_MAX: Duration = Duration::from_millis(100);
/// How often a gateway with nothing to do looks whether its group still lives.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Timers an adapter may have set.
const TIMERS_MAX: usize = 1 << 20;

type InstantOf<P> = <<P as Platform>::Runtime as AsyncRuntime>::Instant;

/// Runs adapter after adapter until the gateway stops.
pub(super) async fn run<P: Platform, T: Transport>(shared: Arc<Shared<P, T>>) {
    let mut pause = RESTART_PAUSE;
    while !shared.is_stopped() {
        let began = InstantOf::<P>::now();
        let ended = Driver::live(&shared).await;
        shared.phase.send_if_modified(|phase| {
            let was_up = *phase == Phase::Up;
            if was_up {
                *phase = Phase::Down;
            }
            was_up
        });
        shared.sessions.store(0, Ordering::Relaxed);
        // Connections that nobody has taken over yet.
        for arrival in shared.mailbox.take(usize::MAX) {
            if let Arrival::Opened(client) = arrival {
                client.cut();
            }
        }
        let Some(ended) = ended else { continue };
        if shared.is_stopped() {
            return;
        }
        let failure = match ended {
            Ended::Jumped { clients } => {
                tracing::info!(
                    group = shared.name(),
                    clients,
                    "this replica's state jumped over entries (by a snapshot, or more than the adapter could take): \
                     clients come again, and the adapter begins anew"
                );
                P::Runtime::sleep(RESTART_PAUSE).await;
                continue;
            }
            Ended::Failed(failure) => failure,
        };
        add(&shared.counts.failures, 1);
        let said = lock(&shared.failure).replace(failure.clone());
        // One that cannot even begin says the same each time.
        if said.as_ref() != Some(&failure) {
            tracing::error!(group = shared.name(), "{failure}; its connections are closed and it is started anew");
        }
        if InstantOf::<P>::now() - began > WELL_AFTER {
            pause = RESTART_PAUSE;
        }
        P::Runtime::sleep(pause).await;
        pause = (pause * 2).min(RESTART_PAUSE_MAX);
    }
}

/// Why the life of an adapter's instance ended.
enum Ended {
    /// Events were not seen here: what it told its so many clients could have a gap. Nobody's fault.
    Jumped { clients: usize },
    /// What it did, or what was done to it.
    Failed(String),
}

impl From<String> for Ended {
    fn from(failure: String) -> Self {
        Self::Failed(failure)
    }
}

/// What a ticket stands for.
#[derive(Debug)]
enum Pending<P: Platform> {
    /// A command of a session.
    InSession { session: u64, attachment: u64, sequence: u64 },
    /// A session's end.
    End { session: u64, attachment: u64 },
    /// What is proposed outside of a session, and when patience ends.
    Single { what: Single, kind: EntryKind, deadline: InstantOf<P> },
    /// A query.
    Query { token: Token },
}

#[derive(Clone, Copy, Debug)]
enum Single {
    Command { token: Token },
    Open { token: Token, secret: [u8; 16], timeout_ms: u64 },
    Attach { token: Token, session: u64, secret: [u8; 16] },
}

struct Driver<P: Platform, T: Transport> {
    shared: Arc<Shared<P, T>>,
    inbox: Arc<Inbox>,
    clients: BTreeMap<ConnectionId, Arc<Client<ConnectionOf<P>>>>,
    sessions: Sessions,
    last_ticket: Ticket,
    pending: BTreeMap<Ticket, Pending<P>>,
    /// The waiters behind the tickets of [`Pending::Single`] that are proposed.
    numbers: BTreeMap<Ticket, u64>,
    /// Single proposals that reached no log, to be proposed again.
    again: BTreeSet<Ticket>,
    deadlines: BTreeSet<(InstantOf<P>, Ticket)>,
    resend_at: Option<InstantOf<P>>,
    resend_pause: Duration,
    /// Armed timers, by time and by id.
    due: BTreeSet<(u64, u64)>,
    timers: BTreeMap<u64, u64>,
    /// What the next step brings.
    inputs: Inputs,
    told: u64,
    /// Queries were held up until there is room for their answers.
    queries_wait: bool,
}

type DriverOf<P, T> = Arc<Mutex<Driver<P, T>>>;

impl<P: Platform, T: Transport> Driver<P, T> {
    /// The life of one instance: why it ended, or nothing when the gateway stops.
    async fn live(shared: &Arc<Shared<P, T>>) -> Option<Ended> {
        let inbox = Inbox::new(shared.mailbox.wake.clone());
        let group = &shared.options.group;
        let Some(told) = group.listen(inbox.clone()).await else {
            return Some(Ended::Failed("the group's state cannot be reached".to_owned()));
        };
        let driver = Self {
            shared: shared.clone(),
            inbox: inbox.clone(),
            clients: BTreeMap::new(),
            sessions: Sessions::default(),
            last_ticket: 0,
            pending: BTreeMap::new(),
            numbers: BTreeMap::new(),
            again: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            resend_at: None,
            resend_pause: RESEND_PAUSE,
            due: BTreeSet::new(),
            timers: BTreeMap::new(),
            inputs: Inputs::default(),
            told,
            queries_wait: false,
        };
        let driver = Arc::new(Mutex::new(driver));
        let ended = Self::drive(shared, &driver).await;
        {
            let driver = lock(&driver);
            driver.clients.values().for_each(|client| client.cut());
            driver.sessions.attempts().for_each(|(_, number)| group.forget(number));
            driver.numbers.values().for_each(|number| group.forget(*number));
        }
        group.unlisten(inbox).await;
        ended.err()
    }

    /// The driver is behind a lock so that what it holds can be given back when a guest job is lost.
    async fn drive(shared: &Arc<Shared<P, T>>, driver: &DriverOf<P, T>) -> Result<(), Ended> {
        let lost = || Fault { what: "a call of the adapter was lost".to_owned() }.to_string();
        let platform = &shared.options.platform;
        let own = driver.clone();
        let opened = platform.run_guest(move || lock(&own).open());
        let mut instance = opened.await.ok_or_else(lost)??;
        *lock(&shared.failure) = None;
        shared.phase.send_if_modified(|phase| {
            let was_down = *phase == Phase::Down;
            if was_down {
                *phase = Phase::Up;
            }
            was_down
        });
        while !shared.is_stopped() {
            let pause = {
                let mut driver = lock(driver);
                driver.gather()?;
                if driver.has_work() { None } else { Some(driver.pause()) }
            };
            if let Some(pause) = pause {
                let woken = shared.mailbox.wake.notified();
                tokio::select! {
                    biased;
                    () = woken => {}
                    () = P::Runtime::sleep(pause) => {}
                }
                continue;
            }
            let own = driver.clone();
            let ran = platform.run_guest(move || lock(&own).run(&mut instance).map(|()| instance));
            instance = ran.await.ok_or_else(lost)??;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<AdapterInstance, String> {
        let options = &self.shared.options;
        let mut logs = Vec::new();
        let module = options.group.module().ok_or("the group's module is not here")?;
        let opened = AdapterInstance::open(&module, &options.limits, &self.call(), &options.settings, &mut logs);
        let (instance, asked) = match opened {
            Ok((instance, asked)) => (Some(instance), Ok(asked)),
            Err(error) => (None, Err(error)),
        };
        self.finish(asked, logs)?;
        instance.ok_or_else(|| "the adapter was lost".to_owned())
    }

    /// Steps the adapter until there is nothing to tell it, on a thread for guest code: what it asks of this replica's state is
    /// answered here as well, as handing each step and each query to another thread takes longer than they do.
    fn run(&mut self, instance: &mut AdapterInstance) -> Result<(), Ended> {
        while self.has_work() && !self.shared.is_stopped() {
            if std::mem::take(&mut self.queries_wait) {
                self.shared.options.group.query_here(&self.inbox, Vec::new());
            }
            let records = std::mem::take(&mut self.inputs);
            if !records.is_empty() {
                let mut logs = Vec::new();
                let asked = instance.step(&self.call(), &records.into_bytes(), &mut logs);
                self.finish(asked, logs)?;
            }
            self.gather()?;
        }
        Ok(())
    }

    fn has_work(&self) -> bool {
        self.queries_wait || !self.inputs.is_empty()
    }

    fn call(&self) -> AdapterCall {
        let group = &self.shared.options.group;
        let leader = group.leader();
        AdapterCall {
            index: self.told,
            time_ms: self.shared.options.platform.wall_ms(),
            seed: random_u64(&self.shared.options.platform),
            flags: u32::from(leader.is_some()) | u32::from(group.leads()) << 1,
        }
    }

    /// Takes a call's results in.
    fn finish(&mut self, asked: Result<Vec<u8>, AdapterError>, logs: Vec<(LogLevel, String)>) -> Result<(), String> {
        add(&self.shared.counts.steps, 1);
        for (level, text) in logs {
            let group = self.shared.name();
            match level {
                LogLevel::Error => tracing::error!(group, "adapter: {text}"),
                LogLevel::Warn => tracing::warn!(group, "adapter: {text}"),
                LogLevel::Info => tracing::info!(group, "adapter: {text}"),
                LogLevel::Debug => tracing::debug!(group, "adapter: {text}"),
            }
        }
        let asked = asked.map_err(|error| error.to_string())?;
        let asked = read_asked(Bytes::from(asked))
            .map_err(|place| format!("the adapter asked for something malformed, at byte {place} of its answer"))?;
        self.carry_out(asked);
        Ok(())
    }

    /// How long there is nothing to do, unless something comes.
    fn pause(&self) -> Duration {
        let now = InstantOf::<P>::now();
        let wall_ms = self.shared.options.platform.wall_ms();
        let timer = self.due.first().map(|(at_ms, _)| Duration::from_millis(at_ms.saturating_sub(wall_ms)));
        let until = |at: &InstantOf<P>| if *at > now { *at - now } else { Duration::ZERO };
        let resend = self.resend_at.as_ref().map(until);
        let deadline = self.deadlines.first().map(|(at, _)| until(at));
        [timer, resend, deadline].into_iter().flatten().fold(LOOK_PAUSE, Duration::min)
    }

    /// Puts what happened into the next step's input.
    fn gather(&mut self) -> Result<(), Ended> {
        // What would be read from a replica that gets no more entries is old without saying so.
        if let Some(why) = self.shared.options.group.failure() {
            return Err(Ended::Failed(format!("the group has stopped on this node: {why}")));
        }
        self.expire();
        self.resend();
        let (notes, applied) = self.inbox.take(STEP_BYTES.saturating_sub(self.inputs.len()));
        self.queries_wait |= self.inbox.has_room_again();
        for note in notes {
            self.note(note)?;
        }
        self.told = self.told.max(applied);
        for arrival in self.shared.mailbox.take(STEP_BYTES.saturating_sub(self.inputs.len())) {
            self.arrival(arrival);
        }
        let wall_ms = self.shared.options.platform.wall_ms();
        while let Some((at_ms, id)) = self.due.first().copied().filter(|(at_ms, _)| *at_ms <= wall_ms) {
            self.due.remove(&(at_ms, id));
            self.timers.remove(&id);
            self.inputs.timer(id);
        }
        self.shared.sessions.store(self.sessions.count() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn arrival(&mut self, arrival: Arrival<ConnectionOf<P>>) {
        match arrival {
            Arrival::Opened(client) => {
                self.inputs.opened(client.id, &client.peer);
                self.clients.insert(client.id, client);
            }
            Arrival::Data(id, bytes) => {
                if let Some(client) = self.clients.get(&id) {
                    self.inputs.data(id, &bytes);
                    client.taken(bytes.len());
                }
            }
            Arrival::Closed(id) => {
                if self.clients.remove(&id).is_some() {
                    self.inputs.closed(id);
                }
            }
            Arrival::Told(token, answer) => self.inputs.told(token, &answer),
        }
    }

    fn note(&mut self, note: Note) -> Result<(), Ended> {
        match note {
            Note::Event { index, time_ms, bytes } => {
                add(&self.shared.counts.events, 1);
                self.inputs.event(index, time_ms, &bytes);
            }
            Note::Applied { ticket, index, answer } => self.applied(ticket, index, answer),
            Note::Undone { ticket, certain } => self.undone(ticket, certain),
            Note::Answered { ticket, index, answer } => {
                if let Some(Pending::Query { token }) = self.pending.remove(&ticket) {
                    self.inputs.answered(token, index, &answer);
                }
            }
            Note::SessionEnded { session, index } => {
                if self.sessions.has(session) {
                    self.lose(session, index, Lost::Ended);
                }
            }
            Note::SessionMoved { session, index } => {
                if self.sessions.has(session) {
                    self.lose(session, index, Lost::Moved);
                }
            }
            Note::Jumped => return Err(Ended::Jumped { clients: self.clients.len() }),
        }
        Ok(())
    }

    fn applied(&mut self, ticket: Ticket, index: u64, answer: Answer) {
        match self.pending.remove(&ticket) {
            Some(Pending::InSession { session, attachment, sequence }) => {
                if answer.as_ref().is_err_and(|error| error.code == ErrorCode::BadSequence) {
                    // It overtook one that did not come through.
                    self.stall(session, attachment);
                    return;
                }
                if let Some((token, attempts)) = self.sessions.answered(session, attachment, sequence) {
                    self.forget(attempts);
                    self.inputs.applied(token, index, &answer);
                    self.resend_pause = RESEND_PAUSE;
                    self.pump(session);
                }
            }
            Some(Pending::End { session, attachment }) => {
                if let Some((token, attempts)) = self.sessions.ended(session, attachment) {
                    self.forget(attempts);
                    self.inputs.applied(token, index, &answer);
                }
            }
            Some(Pending::Single { what, deadline, .. }) => {
                self.deadlines.remove(&(deadline, ticket));
                self.numbers.remove(&ticket);
                self.single_done(what, index, answer);
            }
            Some(Pending::Query { .. }) | None => {}
        }
    }

    fn single_done(&mut self, what: Single, index: u64, answer: Answer) {
        match what {
            Single::Command { token } => self.inputs.applied(token, index, &answer),
            Single::Open { token, secret, timeout_ms } => match answer {
                Ok(_) => self.hold(token, Session { id: index, attachment: index, timeout_ms, secret }),
                Err(error) => self.inputs.session(token, index, Err(&error)),
            },
            Single::Attach { token, session, secret } => match answer {
                Ok(bytes) => {
                    let timeout_ms = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                    self.hold(token, Session { id: session, attachment: index, timeout_ms, secret });
                }
                Err(error) => self.inputs.session(token, index, Err(&error)),
            },
        }
    }

    fn hold(&mut self, token: Token, session: Session) {
        self.sessions.hold(session);
        self.inputs.session(token, session.attachment, Ok(session));
    }

    fn undone(&mut self, ticket: Ticket, certain: bool) {
        match self.pending.get(&ticket) {
            Some(Pending::InSession { session, attachment, .. } | Pending::End { session, attachment }) => {
                let (session, attachment) = (*session, *attachment);
                if certain {
                    self.pending.remove(&ticket);
                }
                self.stall(session, attachment);
            }
            Some(Pending::Single { .. }) if certain => {
                self.numbers.remove(&ticket);
                self.again.insert(ticket);
                self.resend_soon();
            }
            _ => {}
        }
    }

    fn stall(&mut self, session: u64, attachment: u64) {
        self.sessions.stall(session, attachment);
        self.resend_soon();
    }

    fn resend_soon(&mut self) {
        if self.resend_at.is_none() {
            self.resend_at = Some(InstantOf::<P>::now() + self.resend_pause);
        }
    }

    /// Proposes again what did not come through, when its time has come and somebody leads.
    fn resend(&mut self) {
        if self.resend_at.is_none_or(|at| at > InstantOf::<P>::now()) {
            return;
        }
        self.resend_at = None;
        self.resend_pause = (self.resend_pause * 2).min(RESEND_PAUSE_MAX);
        if self.shared.options.group.leader().is_none() {
            return self.resend_soon();
        }
        for ticket in std::mem::take(&mut self.again) {
            self.propose_single(ticket);
        }
        let (sessions, again) = self.sessions.resume();
        add(&self.shared.counts.resent, again);
        for session in sessions {
            self.pump(session);
        }
    }

    /// Gives up on what has waited too long.
    fn expire(&mut self) {
        let now = InstantOf::<P>::now();
        while let Some((_, ticket)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.pop_first();
            let Some(Pending::Single { what, .. }) = self.pending.remove(&ticket) else { continue };
            let limit = whole_ms(self.shared.options.clients.request_timeout);
            let name = self.shared.name();
            let error = match self.numbers.remove(&ticket) {
                Some(number) => {
                    self.shared.options.group.forget(number);
                    let detail = format!("group {name}: it was proposed and not seen applied within {limit} ms");
                    ServiceError::new(ErrorCode::OutcomeUnknown, detail)
                }
                None => {
                    self.again.remove(&ticket);
                    let detail = format!("group {name}: no leader took it within {limit} ms");
                    ServiceError::new(ErrorCode::NoLeader, detail)
                }
            };
            self.single_done(what, 0, Err(error));
        }
    }

    fn forget(&mut self, attempts: Vec<(Ticket, u64)>) {
        for (ticket, number) in attempts {
            // The attempt that was answered is gone already.
            if self.pending.remove(&ticket).is_some() {
                self.shared.options.group.forget(number);
            }
        }
    }

    /// A session is no longer ours. Nothing of it that is unanswered by now was or will be applied.
    fn lose(&mut self, session: u64, index: u64, why: Lost) {
        let Some(remains) = self.sessions.lose(session) else { return };
        self.forget(remains.attempts);
        let error = match why {
            Lost::Ended => ServiceError::new(ErrorCode::SessionNotFound, format!("session {session} has ended")),
            Lost::Moved => {
                ServiceError::new(ErrorCode::SessionMoved, format!("session {session} was attached elsewhere"))
            }
        };
        for token in remains.tokens {
            self.inputs.applied(token, 0, &Err(error.clone()));
        }
        self.inputs.session_lost(session, remains.session.attachment, index, why);
    }

    fn ticket(&mut self, pending: Pending<P>) -> Ticket {
        self.last_ticket += 1;
        self.pending.insert(self.last_ticket, pending);
        self.last_ticket
    }

    /// Proposes what a session may propose now.
    fn pump(&mut self, session: u64) {
        let group = self.shared.options.group.clone();
        while let Some((attachment, next)) = self.sessions.next(session) {
            let (pending, kind) = match next {
                Next::Command(sequence, kind) => (Pending::InSession { session, attachment, sequence }, kind),
                Next::End(kind) => (Pending::End { session, attachment }, kind),
            };
            let ticket = self.ticket(pending);
            match group.propose_to(&self.inbox, ticket, true, kind) {
                Ok(number) => self.sessions.sent(session, (ticket, number)),
                Err(_) => {
                    self.pending.remove(&ticket);
                    return self.stall(session, attachment);
                }
            }
        }
    }

    /// Begins something outside of a session.
    fn single(&mut self, what: Single, kind: EntryKind) {
        let deadline = InstantOf::<P>::now() + self.shared.options.clients.request_timeout;
        let ticket = self.ticket(Pending::Single { what, kind, deadline });
        self.deadlines.insert((deadline, ticket));
        self.propose_single(ticket);
    }

    fn propose_single(&mut self, ticket: Ticket) {
        let Some(Pending::Single { kind, .. }) = self.pending.get(&ticket) else { return };
        match self.shared.options.group.propose_to(&self.inbox, ticket, false, kind.clone()) {
            Ok(number) => {
                self.numbers.insert(ticket, number);
            }
            Err(_) => {
                self.again.insert(ticket);
                self.resend_soon();
            }
        }
    }

    /// Does what the adapter asks, in its order. On a thread for guest code.
    fn carry_out(&mut self, asked: Vec<Asked>) {
        let mut written: BTreeSet<ConnectionId> = BTreeSet::new();
        let mut queries: BTreeMap<Consistency, Vec<(Ticket, u64, Bytes)>> = BTreeMap::new();
        let mut touched = Vec::new();
        for asked in asked {
            match asked {
                Asked::Send { connection, bytes } => {
                    if let Some(client) = self.clients.get(&connection) {
                        client.send(bytes);
                        written.insert(connection);
                    }
                }
                Asked::Close { connection } => {
                    if let Some(client) = self.clients.get(&connection) {
                        client.flush();
                        client.close();
                    }
                }
                Asked::Hold { connection, hold } => {
                    if let Some(client) = self.clients.get(&connection) {
                        client.hold(hold);
                    }
                }
                Asked::Propose { token, session, command } => self.propose(token, session, command),
                Asked::Query { token, session, consistency, query } => {
                    add(&self.shared.counts.queries, 1);
                    if let Err(error) = self.check_size("query", query.len()) {
                        self.inputs.answered(token, 0, &Err(error));
                        continue;
                    }
                    let ticket = self.ticket(Pending::Query { token });
                    queries.entry(consistency).or_default().push((ticket, session, query));
                }
                Asked::OpenSession { token, timeout_ms } => {
                    let limits = &self.shared.options.clients;
                    let timeout_ms = timeout_ms.clamp(limits.session_timeout_min_ms, limits.session_timeout_max_ms);
                    let mut secret = [0; 16];
                    self.shared.options.platform.fill_random(&mut secret);
                    let kind = EntryKind::OpenSession { secret, timeout_ms, attached: true };
                    self.single(Single::Open { token, secret, timeout_ms }, kind);
                }
                Asked::AttachSession { token, session, secret } => {
                    let kind = EntryKind::AttachSession { id: session, secret };
                    self.single(Single::Attach { token, session, secret }, kind);
                }
                Asked::Touch { session } => touched.push(session),
                Asked::CloseSession { token, session } => match self.sessions.end(session, token) {
                    Ok(()) => self.pump(session),
                    Err(error) => self.inputs.applied(token, 0, &Err(error)),
                },
                Asked::SetTimer { id, at_ms } => self.set_timer(id, at_ms),
                Asked::ClearTimer { id } => self.clear_timer(id),
                Asked::Ask { token, what } => self.ask(token, what),
            }
        }
        for connection in written {
            if let Some(client) = self.clients.get(&connection) {
                client.flush();
            }
        }
        if !touched.is_empty() {
            self.shared.options.group.hear(touched);
        }
        for (consistency, asked) in queries {
            self.query(consistency, asked);
        }
    }

    fn query(&self, consistency: Consistency, asked: Vec<(Ticket, u64, Bytes)>) {
        if consistency == Consistency::Local {
            return self.shared.options.group.query_here(&self.inbox, asked);
        }
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        drop(P::Runtime::spawn(async move {
            let limit = shared.options.clients.request_timeout;
            shared.options.group.query_to(&inbox, consistency, asked, limit).await;
        }));
    }

    fn check_size(&self, what: &str, length: usize) -> Result<(), ServiceError> {
        let limit = self.shared.options.clients.command_bytes_max;
        if length as u64 <= limit {
            return Ok(());
        }
        let detail = format!("the {what} is {length} bytes; --command-bytes-max is {limit}");
        Err(ServiceError::new(ErrorCode::TooLarge, detail))
    }

    fn propose(&mut self, token: Token, session: u64, command: Bytes) {
        add(&self.shared.counts.proposals, 1);
        let taken = self.check_size("command", command.len()).and_then(|()| self.shared.options.group.check_space());
        if let Err(error) = taken {
            return self.inputs.applied(token, 0, &Err(error));
        }
        if session == 0 {
            let kind = EntryKind::Command { session: None, payload: command };
            return self.single(Single::Command { token }, kind);
        }
        match self.sessions.propose(session, token, command) {
            Ok(()) => self.pump(session),
            Err(error) => self.inputs.applied(token, 0, &Err(error)),
        }
    }

    fn set_timer(&mut self, id: u64, at_ms: u64) {
        self.clear_timer(id);
        if self.timers.len() >= TIMERS_MAX {
            tracing::warn!(group = self.shared.name(), "the adapter has {TIMERS_MAX} timers; this one is not set");
            return;
        }
        self.timers.insert(id, at_ms);
        self.due.insert((at_ms, id));
    }

    fn clear_timer(&mut self, id: u64) {
        if let Some(at_ms) = self.timers.remove(&id) {
            self.due.remove(&(at_ms, id));
        }
    }

    /// Answers a question about the host, by itself.
    fn ask(&mut self, token: Token, what: String) {
        let shared = self.shared.clone();
        drop(P::Runtime::spawn(async move {
            let answer = shared.tell(&what).await;
            shared.mailbox.push(Arrival::Told(token, answer));
        }));
    }
}
