//! One replica's state and openraft's view of it.
//!
//! Invariants:
//! - [`Core`] changes only by applying the log in order or by installing a snapshot, both under its lock, both
//!   where guest code may run (`Platform::run_guest`), never on a consensus thread.
//! - What entry *i* emitted is published before the answer of entry *i* is delivered.
//! - Whoever asks for sessions or counts does not wait for guest code ([`Facts`]); of those who need the state itself no more than a
//!   few of each group wait, since each takes a thread, of those that other groups apply entries on.
//! - A [`Fault`] is this machine's trouble: the replica stops and nothing of the entry is answered.

mod change;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::StreamExt;
use openraft::Instant;
use openraft::OptionalSend;
use openraft::RaftSnapshotBuilder;
use openraft::alias::SnapshotMetaOf;
use openraft::alias::SnapshotOf;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::EntryResponder;
use openraft::storage::RaftStateMachine;
use sha2::Digest;
use sha2::Sha256;
use tokio::sync::Notify;
use tokio::sync::oneshot;

use self::change::InForce;
use self::change::modules_of;
use self::change::wait_for_module;
use super::events::Events;
use super::inbox::Inbox;
use super::inbox::Note;
use super::inbox::Ticket;
use super::model::Model;
use super::model::ModelFactory;
use super::model::ModuleRef;
use super::state;
use super::state::Answer;
use super::state::Applied;
use super::state::HostState;
use super::waiters::Waiters;
use crate::codec;
use crate::module::Context;
use crate::module::Effects;
use crate::module::Fault;
use crate::module::LogLevel;
use crate::platform::Platform;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::snapshot::Head;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotFile;
use crate::snapshot::SnapshotStore;
use crate::tally::Tally;
use crate::types::Entry;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::LogId;
use crate::types::NodeId;
use crate::types::Payload;
use crate::types::Proposal;
use crate::types::SessionUse;
use crate::types::Types;

type StoredMembership = openraft::StoredMembership<
    <crate::types::LeaderId as openraft::vote::RaftLeaderId>::Committed,
    u64,
    openraft::BasicNode,
>;

/// Entries applied in one go, before queries get their turn,
const BATCH_ENTRIES: usize = 256;
/// and fuel burnt, a tenth of a second's: entries that burn all that they may take their turn one by one.
const TURN_FUEL: u64 = 100_000_000;
/// Lines of a batch that a module may have shown to whoever watches over the node.
const LOUD_LINES_MAX: usize = 16;

/// The replicated state and how far it has come.
pub struct Core {
    model: Box<dyn Model>,
    /// The host's part.
    pub host: HostState,
    /// The last applied entry.
    pub applied: Option<LogId>,
    membership: StoredMembership,
    effects: Effects,
    /// The term of the last entry applied since this state was made.
    term: u64,
    /// Why this replica stopped, once it did.
    fault: Option<Fault>,
    /// The gateways that listen.
    inboxes: Vec<Arc<Inbox>>,
}

/// What of [`HostState`] is asked for at any moment and as often as clients like. Changed with it, and its lock is never held while
/// guest code runs.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    /// Open sessions and what their clients must show.
    secrets: BTreeMap<u64, [u8; 16]>,
    /// Armed timers.
    timers: usize,
}

impl Facts {
    fn of(host: &HostState) -> Self {
        let secrets = host.sessions.iter().map(|(id, session)| (*id, session.secret));
        Self { secrets: secrets.collect(), timers: host.timers.len() }
    }

    /// Entry `index` was applied, and this was its outcome.
    fn follow(&mut self, index: u64, kind: &EntryKind, answer: &Answer, host: &HostState) {
        self.timers = host.timers.len();
        match (kind, answer) {
            (EntryKind::OpenSession { secret, .. }, Ok(_)) => drop(self.secrets.insert(index, *secret)),
            (EntryKind::CloseSession { id, .. }, Ok(_)) => drop(self.secrets.remove(id)),
            _ => {}
        }
    }
}

/// What the node's other parts share with the state machine.
pub struct Shared {
    /// The group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// This life of this node; see `Origin`.
    pub incarnation: u64,
    /// Mixed into every entry's seed.
    pub seed: u64,
    /// Who waits for an answer.
    pub waiters: Waiters,
    /// Who listens.
    pub events: Arc<Events>,
    core: Mutex<Core>,
    facts: Mutex<Facts>,
    progress: Mutex<Progress>,
    queries: Mutex<Queries>,
    /// Sessions whose commands were applied here lately: signs of life for the leader.
    heard: Mutex<Vec<u64>>,
    current: Mutex<Option<(Head, SnapshotFile)>>,
    /// Changes only under the lock of [`Core`]; read also without.
    in_force: Mutex<InForce>,
    closed: Mutex<bool>,
    /// Why the replica stopped, once it did: the same as in [`Core`], without its lock.
    fault: Mutex<Option<String>>,
    /// How long writing a snapshot took, microseconds.
    snapshot_times: Mutex<Tally>,
    /// Held while a snapshot is written: two at the same index would write the same file.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Held while a digest is taken: those who ask for the next one wait without a thread.
    digesting: Arc<tokio::sync::Mutex<()>>,
    /// Timers or sessions changed: the leader's duties look again.
    pub wake: Notify,
}

#[derive(Default)]
struct Progress {
    applied: u64,
    /// Payload bytes applied since the last snapshot.
    bytes: u64,
    waiting: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
}

#[derive(Default)]
struct Queries {
    waiting: Vec<Query>,
    /// Whose reader has enough to read: they wait until it has read.
    parked: Vec<Query>,
    running: bool,
}

struct Query {
    session: u64,
    query: Bytes,
    to: AnswerTo,
}

enum AnswerTo {
    Caller(oneshot::Sender<(u64, Answer)>),
    Inbox(Arc<Inbox>, Ticket),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these locks is a bug whose state is still whole: each holder changes it in one step,
    // except `Core`, whose panics are turned into a fault by `Core::poison`.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Builds the state from the newest snapshot, or anew.
    pub fn open(
        group: GroupId,
        node: NodeId,
        incarnation: u64,
        seed: u64,
        events_kept: usize,
        factory: &dyn ModelFactory,
        newest: Option<(Head, SnapshotFile)>,
    ) -> io::Result<Self> {
        let (mut core, in_force) = match &newest {
            Some((_, file)) => restore(factory, file)?,
            None => {
                let (model, effects) = factory.create().map_err(io::Error::other)?;
                let mut host = HostState::default();
                host.take_timers(&effects);
                let core = Core {
                    model,
                    host,
                    applied: None,
                    membership: StoredMembership::default(),
                    effects,
                    term: 0,
                    fault: None,
                    inboxes: Vec::new(),
                };
                (core, InForce { module: factory.first(), change: 0 })
            }
        };
        core.effects.clear();
        let applied = core.applied.map_or(0, |log_id| log_id.index);
        let events = Arc::new(Events::new(events_kept));
        events.jump(core.applied.map_or(0, |log_id| log_id.index + 1));
        Ok(Self {
            group,
            node,
            incarnation,
            seed,
            waiters: Waiters::default(),
            events,
            in_force: Mutex::new(in_force),
            closed: Mutex::default(),
            facts: Mutex::new(Facts::of(&core.host)),
            core: Mutex::new(core),
            progress: Mutex::new(Progress { applied, ..Progress::default() }),
            queries: Mutex::default(),
            heard: Mutex::default(),
            current: Mutex::new(newest),
            fault: Mutex::default(),
            snapshot_times: Mutex::default(),
            writing: Arc::default(),
            digesting: Arc::default(),
            wake: Notify::new(),
        })
    }

    /// The replica's state. Held while guest code runs: never lock it on a consensus thread.
    pub fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    /// What the client of an open session must show.
    pub fn secret(&self, session: u64) -> Option<[u8; 16]> {
        lock(&self.facts).secrets.get(&session).copied()
    }

    /// Open sessions and armed timers.
    pub fn counts(&self) -> (u64, u64) {
        let facts = lock(&self.facts);
        (facts.secrets.len() as u64, facts.timers as u64)
    }

    /// The applied index.
    pub fn applied(&self) -> u64 {
        lock(&self.progress).applied
    }

    /// The applied index and the payload bytes applied since the last snapshot.
    pub fn growth(&self) -> (u64, u64) {
        let progress = lock(&self.progress);
        (progress.applied, progress.bytes)
    }

    /// The index the newest snapshot covers, 0 when there is none.
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot_log_id().map_or(0, |log_id| log_id.index)
    }

    /// The last entry that the newest snapshot covers.
    pub fn snapshot_log_id(&self) -> Option<LogId> {
        lock(&self.current).as_ref().map(|(head, _)| head.last_log_id)
    }

    /// The newest snapshot's file and the index it covers.
    pub fn current_snapshot(&self) -> Option<(u64, SnapshotFile)> {
        lock(&self.current).as_ref().map(|(head, file)| (head.last_log_id.index, file.clone()))
    }

    /// The module that the newest snapshot is of.
    pub fn snapshot_module(&self) -> Option<[u8; 32]> {
        lock(&self.current).as_ref().map(|(head, _)| head.module)
    }

    /// Bytes of the newest snapshot's file, 0 when there is none.
    pub fn snapshot_bytes(&self) -> u64 {
        lock(&self.current).as_ref().map_or(0, |(_, file)| file.size())
    }

    /// How long writing a snapshot took, microseconds.
    pub fn snapshot_times(&self) -> MutexGuard<'_, Tally> {
        lock(&self.snapshot_times)
    }

    /// The newest snapshot.
    pub fn newest_snapshot(&self) -> Option<(Head, SnapshotFile)> {
        lock(&self.current).clone()
    }

    /// Ready once entry `index` is applied; an error when the replica goes away first.
    pub fn wait_applied(&self, index: u64) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut progress = lock(&self.progress);
        if progress.applied >= index {
            let _receiver_is_here = sender.send(());
        } else {
            let waiting = progress.waiting.entry(index).or_default();
            // Those that gave up: where nothing is applied, for want of disk space perhaps, nobody else would take them away.
            if waiting.len().is_power_of_two() {
                waiting.retain(|waiter| !waiter.is_closed());
            }
            waiting.push(sender);
        }
        receiver
    }

    /// Sessions whose commands were applied since the last call.
    pub fn take_heard(&self) -> Vec<u64> {
        std::mem::take(&mut lock(&self.heard))
    }

    fn advance(&self, applied: u64, bytes: u64) {
        let due = {
            let mut progress = lock(&self.progress);
            progress.applied = progress.applied.max(applied);
            progress.bytes += bytes;
            let later = progress.waiting.split_off(&(applied.saturating_add(1)));
            std::mem::replace(&mut progress.waiting, later)
        };
        for sender in due.into_values().flatten() {
            let _gave_up = sender.send(());
        }
    }

    /// Answers `query` from this replica's state as it is now. Queries that come while others run are
    /// answered in one go.
    pub async fn query<P: Platform>(self: &Arc<Self>, platform: &P, session: u64, query: Bytes) -> (u64, Answer) {
        let (sender, receiver) = oneshot::channel();
        let start = {
            let mut queries = lock(&self.queries);
            queries.waiting.push(Query { session, query, to: AnswerTo::Caller(sender) });
            !std::mem::replace(&mut queries.running, true)
        };
        if start {
            self.start_queries(platform).await;
        }
        receiver.await.unwrap_or_else(|_| {
            let detail = format!("the query of group {} was not answered: a guest job failed", self.group);
            (0, Err(ServiceError::new(ErrorCode::Internal, detail)))
        })
    }

    /// Answers queries by notes, from this replica's state as it is when their turn comes.
    pub async fn query_to<P: Platform>(
        self: &Arc<Self>,
        platform: &P,
        inbox: &Arc<Inbox>,
        asked: impl IntoIterator<Item = (Ticket, u64, Bytes)>,
    ) {
        if self.enqueue(inbox, asked) {
            self.start_queries(platform).await;
        }
    }

    /// As [`Self::query_to`], on this thread, which is one for guest code.
    pub fn query_here(&self, inbox: &Arc<Inbox>, asked: impl IntoIterator<Item = (Ticket, u64, Bytes)>) {
        if self.enqueue(inbox, asked) {
            self.run_queries();
        }
    }

    /// Adds queries, and those that were held up. Whether the caller has to run them.
    fn enqueue(&self, inbox: &Arc<Inbox>, asked: impl IntoIterator<Item = (Ticket, u64, Bytes)>) -> bool {
        let mut queries = lock(&self.queries);
        let to = |ticket| AnswerTo::Inbox(inbox.clone(), ticket);
        let parked = std::mem::take(&mut queries.parked);
        queries.waiting.extend(parked);
        let asked = asked.into_iter().map(|(ticket, session, query)| Query { session, query, to: to(ticket) });
        queries.waiting.extend(asked);
        !queries.waiting.is_empty() && !std::mem::replace(&mut queries.running, true)
    }

    async fn start_queries<P: Platform>(self: &Arc<Self>, platform: &P) {
        let shared = self.clone();
        // One that is lost gives up for itself; one that was never begun belongs to a node that stops.
        let _lost = platform.run_guest(move || shared.run_queries()).await;
    }

    /// A job that ran queries ended before its time.
    fn give_up_queries(&self) {
        let core = self.core();
        let mut queries = lock(&self.queries);
        queries.running = false;
        queries.waiting.clear();
        // Whose queries went with the job is not known: all readers begin anew.
        for inbox in &core.inboxes {
            inbox.jump(self.applied());
            inbox.wake();
        }
    }

    /// Why the replica stopped, once it did.
    pub fn fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// Lets a gateway listen; the last applied entry, which it is not told of.
    pub fn listen(&self, inbox: Arc<Inbox>) -> u64 {
        let mut core = self.core();
        let applied = core.applied.map_or(0, |log_id| log_id.index);
        inbox.set_applied(applied);
        core.inboxes.push(inbox);
        applied
    }

    /// The gateway listens no more.
    pub fn unlisten(&self, inbox: &Arc<Inbox>) {
        self.core().inboxes.retain(|other| !Arc::ptr_eq(other, inbox));
        let others = |query: &Query| !matches!(&query.to, AnswerTo::Inbox(other, _) if Arc::ptr_eq(other, inbox));
        lock(&self.queries).parked.retain(others);
    }

    fn run_queries(&self) {
        struct Running<'a>(&'a Shared);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.give_up_queries();
                }
            }
        }
        let _running = Running(self);
        loop {
            let batch = {
                let mut queries = lock(&self.queries);
                if queries.waiting.is_empty() {
                    queries.running = false;
                    return;
                }
                std::mem::take(&mut queries.waiting)
            };
            let mut parked = Vec::new();
            let mut core = self.core();
            for Query { session, query, to } in batch {
                if let AnswerTo::Inbox(inbox, _) = &to {
                    // Its gateway listens no more: parked, it would hold up all that come after it, for ever.
                    if !core.inboxes.iter().any(|other| Arc::ptr_eq(other, inbox)) {
                        continue;
                    }
                    if !parked.is_empty() || inbox.is_full() {
                        parked.push(Query { session, query, to });
                        continue;
                    }
                }
                let (index, answer) = core.query(self.seed, session, &query);
                match to {
                    AnswerTo::Caller(sender) => drop(sender.send((index, answer))),
                    AnswerTo::Inbox(inbox, ticket) => inbox.push(Note::Answered { ticket, index, answer }),
                }
            }
            // Still under the core's lock, so that `unlisten` finds them; and before the readers are told to look, or one
            // could have room again and nobody would know of what waits for it.
            if !parked.is_empty() {
                lock(&self.queries).parked.append(&mut parked);
                core.inboxes.iter().for_each(|inbox| inbox.hold_up());
            }
            core.inboxes.iter().for_each(|inbox| inbox.wake());
        }
    }

    /// Applies what of `batch` comes before its fuel is burnt.
    fn apply_turn<C: AsyncRuntime>(
        &self,
        factory: &dyn ModelFactory,
        batch: &mut impl Iterator<Item = EntryResponder<Types<C>>>,
        loud: &mut usize,
    ) -> Result<(), Fault> {
        let (mut last, mut bytes, mut fuel) = (0, 0, 0_u64);
        {
            let mut core = self.core();
            while fuel < TURN_FUEL
                && let Some((entry, responder)) = batch.next()
            {
                last = entry.log_id.index;
                bytes += payload_bytes(&entry.payload);
                core.apply(self, factory, entry, loud)?;
                if let Some(responder) = responder {
                    responder.send(());
                }
                fuel = fuel.saturating_add(core.effects.fuel_used);
            }
            core.inboxes.iter().for_each(|inbox| inbox.wake());
        }
        self.advance(last, bytes);
        Ok(())
    }

    /// Writes a snapshot of what is applied now, when it is this one's turn. The index it covers, none when nothing was applied
    /// yet; `None` when the job was lost. The one of digest `damaged` does not count as written.
    pub async fn take_snapshot<P: Platform>(
        self: &Arc<Self>,
        platform: &P,
        store: &SnapshotStore,
        factory: &Arc<dyn ModelFactory>,
        damaged: Option<[u8; 32]>,
    ) -> Option<io::Result<Option<u64>>> {
        // The turn goes with the job, which ends also when nobody waits for it any more.
        let turn = self.writing.clone().lock_owned().await;
        let (shared, store, factory) = (self.clone(), store.clone(), factory.clone());
        let job = move || {
            let _turn = turn;
            shared.write_snapshot::<P>(&store, &*factory, damaged)
        };
        let written = platform.run_guest(job).await;
        written.map(|written| written.inspect_err(|error| die_of_inner_sync(platform, error)))
    }

    /// Freezes the state under its lock, writes while entries go on being applied.
    fn write_snapshot<P: Platform>(
        &self,
        store: &SnapshotStore,
        factory: &dyn ModelFactory,
        damaged: Option<[u8; 32]>,
    ) -> io::Result<Option<u64>> {
        let begun = <P::Runtime as AsyncRuntime>::Instant::now();
        let (head, frozen, bytes) = {
            let mut core = self.core();
            let Some(last_log_id) = core.applied else { return Ok(None) };
            let written =
                |(head, file): &(Head, SnapshotFile)| head.last_log_id == last_log_id && Some(file.digest()) != damaged;
            if lock(&self.current).as_ref().is_some_and(written) {
                return Ok(Some(last_log_id.index));
            }
            let InForce { module, change } = lock(&self.in_force).clone();
            let head = Head {
                group: self.group,
                last_log_id,
                membership: core.membership.clone(),
                module: module.digest,
                host_state: codec::encode(&core.host)?,
                made: factory.made(&module.name),
                change,
            };
            let frozen = core.model.freeze().map_err(io::Error::other)?;
            (head, frozen, lock(&self.progress).bytes)
        };
        let mut writer = store.write(&head)?;
        if let Err(error) = frozen.write(&mut writer) {
            writer.abandon();
            return Err(error);
        }
        let file = writer.finish(&head)?;
        let took = <P::Runtime as AsyncRuntime>::Instant::now() - begun;
        self.snapshot_times().add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let index = head.last_log_id.index;
        tracing::info!(group = self.group, index, bytes = file.size(), "snapshot written");
        let mut current = lock(&self.current);
        // A snapshot of the leader may have been installed meanwhile.
        if current.as_ref().is_none_or(|(newer, _)| newer.last_log_id <= head.last_log_id) {
            *current = Some((head, file));
        }
        drop(current);
        let mut progress = lock(&self.progress);
        progress.bytes = progress.bytes.saturating_sub(bytes);
        Ok(Some(index))
    }

    /// SHA-256 over what a snapshot at the applied index would say, and that index, when it is this one's turn; `None` when the job
    /// was lost.
    pub async fn digest<P: Platform>(self: &Arc<Self>, platform: &P) -> Option<io::Result<(u64, [u8; 32])>> {
        // It goes with the job, as that of a snapshot.
        let turn = self.digesting.clone().lock_owned().await;
        let shared = self.clone();
        let job = move || {
            let _turn = turn;
            shared.digest_here()
        };
        platform.run_guest(job).await
    }

    fn digest_here(&self) -> io::Result<(u64, [u8; 32])> {
        let (index, mut digest, frozen) = {
            let mut core = self.core();
            let mut digest = Sha256::new();
            digest.update(codec::encode(&core.host)?);
            (core.applied.map_or(0, |log_id| log_id.index), digest, core.model.freeze().map_err(io::Error::other)?)
        };
        frozen.write(&mut digest)?;
        Ok((index, digest.finalize().into()))
    }
}

fn restore(factory: &dyn ModelFactory, file: &SnapshotFile) -> io::Result<(Core, InForce)> {
    let (head, mut payload) = file.reader()?;
    let host = codec::decode(&head.host_state)?;
    let model = factory
        .restore(head.module, &mut payload)
        .map_err(|error| io::Error::other(format!("snapshot {}: {error}", file.path().display())))?;
    let made = head.made().map_err(|error| io::Error::other(format!("snapshot {}: {error}", file.path().display())))?;
    let name = made.map_or_else(|| factory.first().name, |made| made.module);
    let core = Core {
        model,
        host,
        applied: Some(head.last_log_id),
        membership: head.membership,
        effects: Effects::default(),
        term: 0,
        fault: None,
        inboxes: Vec::new(),
    };
    Ok((core, InForce { module: ModuleRef { digest: head.module, name }, change: head.change }))
}

impl Core {
    fn query(&mut self, seed: u64, session: u64, query: &[u8]) -> (u64, Answer) {
        let context = Context { session, ..self.context(seed) };
        let index = context.index;
        let answer = match &self.fault {
            Some(fault) => Err(stopped(fault)),
            None => match self.model.query(&context, query) {
                Ok(outcome) => state::answer_of(outcome, index),
                Err(fault) => Err(stopped(&fault)),
            },
        };
        (index, answer)
    }

    fn apply_proposal(
        &mut self,
        shared: &Shared,
        factory: &dyn ModelFactory,
        index: u64,
        proposal: &Proposal,
    ) -> Result<Applied, Fault> {
        let Self { model, host, effects, .. } = self;
        let mut applied = host.apply(&mut **model, shared.seed, index, proposal, effects)?;
        if let EntryKind::ChangeModule { change, module, name } = &proposal.kind {
            let module = ModuleRef { digest: *module, name: name.clone() };
            applied.answer = self.change_module(shared, factory, index, *change, module)?;
        }
        Ok(applied)
    }

    /// Applies one entry; the answer to deliver when it is a proposal.
    ///
    /// `loud`: how many more lines of the module may be shown.
    fn apply(
        &mut self,
        shared: &Shared,
        factory: &dyn ModelFactory,
        entry: Entry,
        loud: &mut usize,
    ) -> Result<(), Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let index = entry.log_id.index;
        let term = entry.log_id.committed_leader_id().term;
        match entry.payload {
            Payload::Blank => shared.events.push(index, Vec::new()),
            Payload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                shared.events.push(index, Vec::new());
            }
            Payload::Normal(proposal) => {
                self.effects.fuel_used = 0;
                let applied = self.apply_proposal(shared, factory, index, &proposal);
                let applied = applied.inspect_err(|fault| {
                    self.fault = Some(fault.clone());
                    *lock(&shared.fault) = Some(fault.to_string());
                    for inbox in &self.inboxes {
                        inbox.jump(index);
                        inbox.wake();
                    }
                })?;
                // Before anyone is told.
                lock(&shared.facts).follow(index, &proposal.kind, &applied.answer, &self.host);
                // Every replica has the same lines. One shows them: the one that proposed the entry, and only as it lives now.
                let is_own = proposal.origin.node == shared.node && proposal.origin.incarnation == shared.incarnation;
                for (level, text) in self.effects.logs.drain(..) {
                    let group = shared.group;
                    let is_loud = is_own && *loud > 0 && matches!(level, LogLevel::Error | LogLevel::Warn);
                    *loud -= usize::from(is_loud);
                    match level {
                        LogLevel::Error if is_loud => tracing::error!(group, index, "module: {text}"),
                        LogLevel::Warn if is_loud => tracing::warn!(group, index, "module: {text}"),
                        _ => tracing::debug!(group, index, ?level, "module: {text}"),
                    }
                }
                match &proposal.kind {
                    // Whoever does not hold the session does not keep it alive.
                    EntryKind::Command { session: Some(SessionUse { id, .. }), .. }
                    | EntryKind::AttachSession { id, .. }
                        if applied.answer.as_ref().err().is_none_or(|error| !error.code.refuses_session()) =>
                    {
                        lock(&shared.heard).push(*id);
                    }
                    _ => {}
                }
                if !self.inboxes.is_empty() {
                    let time_ms = self.host.time_ms;
                    for inbox in &self.inboxes {
                        for bytes in applied.events.iter().cloned() {
                            inbox.push(Note::Event { index, time_ms, bytes });
                        }
                        if let (EntryKind::AttachSession { id, .. }, Ok(_)) = (&proposal.kind, &applied.answer) {
                            inbox.push(Note::SessionMoved { session: *id, index });
                        }
                    }
                }
                if applied.wakes {
                    shared.wake.notify_one();
                }
                let ended = match (&proposal.kind, &applied.answer) {
                    (EntryKind::CloseSession { id, .. }, Ok(_)) => Some(*id),
                    _ => None,
                };
                shared.events.push(index, applied.events);
                if is_own {
                    shared.waiters.applied(proposal.origin.number, applied.index, applied.answer);
                }
                // After the answer to whoever asked for the end.
                if let Some(session) = ended {
                    self.inboxes.iter().for_each(|inbox| inbox.push(Note::SessionEnded { session, index }));
                }
            }
        }
        self.applied = Some(entry.log_id);
        if self.term != term {
            self.term = term;
            shared.waiters.term_applied(term);
        }
        self.inboxes.iter().for_each(|inbox| inbox.set_applied(index));
        Ok(())
    }
}

fn stopped(fault: &Fault) -> ServiceError {
    ServiceError::new(ErrorCode::GroupStopped, fault.to_string())
}

/// openraft's handle on the replica.
pub struct StateMachine<P: Platform> {
    shared: Arc<Shared>,
    factory: Arc<dyn ModelFactory>,
    store: SnapshotStore,
    platform: P,
}

impl<P: Platform> StateMachine<P> {
    /// Applies to `shared`, keeps snapshots in `store`.
    pub fn new(shared: Arc<Shared>, factory: Arc<dyn ModelFactory>, store: SnapshotStore, platform: P) -> Self {
        Self { shared, factory, store, platform }
    }
}

/// A sync that failed ends the process (rule 2): the kernel may have dropped the pages.
pub fn die_of_sync<P: Platform>(platform: &P, error: &SnapshotError) {
    if matches!(error, SnapshotError::Sync { .. }) {
        platform.die(&error.to_string());
    }
}

/// The same for one that went through what knows only I/O errors.
fn die_of_inner_sync<P: Platform>(platform: &P, error: &io::Error) {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        die_of_sync(platform, error);
    }
}

fn job_failed() -> io::Error {
    io::Error::other("a guest job panicked or the node is stopping")
}

impl<P: Platform> RaftStateMachine<Types<P::Runtime>> for StateMachine<P> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder<P>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let shared = self.shared.clone();
        let state = self.platform.run_guest(move || {
            let core = shared.core();
            (core.applied, core.membership.clone())
        });
        state.await.ok_or_else(job_failed)
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types<P::Runtime>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(batch) = batches.next().await {
            let batch = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
            let modules = modules_of(&batch);
            for module in modules {
                wait_for_module::<P>(self.shared.clone(), self.factory.clone(), module).await?;
            }
            let (mut batch, mut loud) = (batch.into_iter(), LOUD_LINES_MAX);
            while batch.len() > 0 {
                let job = turn::<P>(self.shared.clone(), self.factory.clone(), batch, loud);
                match self.platform.run_guest(job).await.ok_or_else(job_failed)? {
                    Ok(rest) => (batch, loud) = rest,
                    Err(fault) => {
                        tracing::error!(group = self.shared.group, %fault, "this replica stops");
                        return Err(io::Error::other(fault));
                    }
                }
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self::SnapshotBuilder> {
        let (shared, store) = (self.shared.clone(), self.store.clone());
        Some(Builder { shared, store, factory: self.factory.clone(), platform: self.platform.clone() })
    }

    #[expect(clippy::unreachable, reason = "openraft calls it only from the default of try_create_snapshot_builder")]
    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        unreachable!("try_create_snapshot_builder is implemented")
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<Types<P::Runtime>>,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let (shared, factory, store) = (self.shared.clone(), self.factory.clone(), self.store.clone());
        let head = {
            let snapshot = snapshot.clone();
            self.platform.run_guest(move || snapshot.reader().map(|(head, _)| head)).await.ok_or_else(job_failed)??
        };
        wait_for_module::<P>(self.shared.clone(), self.factory.clone(), head.module).await?;
        let installed = self.platform.run_guest(move || -> io::Result<()> {
            let (new, in_force) = restore(&*factory, &snapshot)?;
            let file = store.adopt(&snapshot, &head)?;
            let index = head.last_log_id.index;
            {
                let mut core = shared.core();
                let inboxes = std::mem::take(&mut core.inboxes);
                *core = new;
                *lock(&shared.in_force) = in_force;
                *lock(&shared.facts) = Facts::of(&core.host);
                for inbox in &inboxes {
                    inbox.jump(index);
                    inbox.wake();
                }
            }
            shared.waiters.snapshot_installed(head.last_log_id.committed_leader_id().term);
            shared.events.jump(index.saturating_add(1));
            *lock(&shared.current) = Some((head, file));
            lock(&shared.progress).bytes = 0;
            shared.advance(index, 0);
            Ok(())
        });
        let installed = installed.await.ok_or_else(job_failed)?;
        installed.inspect_err(|error| die_of_inner_sync(&self.platform, error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types<P::Runtime>, SnapshotFile>>, io::Error> {
        Ok(lock(&self.shared.current).clone().map(|(head, file)| snapshot_of::<P>(&head, file)))
    }
}

/// Entries that are yet to be applied.
type Batch<P> = std::vec::IntoIter<EntryResponder<Types<<P as Platform>::Runtime>>>;

/// The job of one turn of a batch; what is left of it. (A function, since the compiler does not see of a closure in the middle of
/// [`StateMachine::apply`] that it can go to another thread.)
fn turn<P: Platform>(
    shared: Arc<Shared>,
    factory: Arc<dyn ModelFactory>,
    mut batch: Batch<P>,
    mut loud: usize,
) -> impl FnOnce() -> Result<(Batch<P>, usize), Fault> + Send + 'static {
    move || {
        shared.apply_turn(&*factory, &mut batch, &mut loud)?;
        Ok((batch, loud))
    }
}

fn payload_bytes(payload: &Payload) -> u64 {
    match payload {
        Payload::Normal(proposal) => match &proposal.kind {
            crate::types::EntryKind::Command { payload, .. } => payload.len() as u64 + 64,
            _ => 64,
        },
        _ => 64,
    }
}

fn snapshot_of<P: Platform>(head: &Head, file: SnapshotFile) -> SnapshotOf<Types<P::Runtime>, SnapshotFile> {
    let meta = SnapshotMetaOf::<Types<P::Runtime>> {
        last_log_id: Some(head.last_log_id),
        last_membership: head.membership.clone(),
    };
    SnapshotOf::<Types<P::Runtime>, SnapshotFile> { meta, snapshot: file }
}

/// Gives openraft the group's newest snapshot. The duties write it first and tell openraft then
/// ([`Shared::take_snapshot`]), so that a disk that is full does not stop the group.
pub struct Builder<P: Platform> {
    shared: Arc<Shared>,
    store: SnapshotStore,
    factory: Arc<dyn ModelFactory>,
    platform: P,
}

impl<P: Platform> RaftSnapshotBuilder<Types<P::Runtime>> for Builder<P> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types<P::Runtime>, SnapshotFile>, io::Error> {
        let current = lock(&self.shared.current).clone();
        if let Some((head, file)) = current {
            return Ok(snapshot_of::<P>(&head, file));
        }
        let written = self.shared.take_snapshot(&self.platform, &self.store, &self.factory, None).await;
        written.ok_or_else(job_failed)??;
        let current = lock(&self.shared.current).clone();
        let (head, file) =
            current.ok_or_else(|| io::Error::other("nothing was applied that a snapshot could cover"))?;
        Ok(snapshot_of::<P>(&head, file))
    }
}

#[cfg(test)]
mod tests;
