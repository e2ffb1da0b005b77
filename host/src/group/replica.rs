//! One replica's state and openraft's view of it.
//!
//! Invariants:
//! - [`Core`] changes only by applying the log in order or by installing a snapshot, both under its lock, both
//!   where guest code may run (`Platform::run_guest`), never on a consensus thread.
//! - What entry *i* emitted is published before the answer of entry *i* is delivered.
//! - Whoever asks for sessions or counts does not wait for guest code ([`Facts`]); of those who need the state itself no more than a
//!   few of each group wait, since each takes a thread, of those that other groups apply entries on.
//! - A [`Fault`] is this machine's trouble: the replica stops and nothing of the entry is answered. A panic of the host while it works on
//!   the state is one too. A state that may be half changed is neither written to a snapshot nor asked.

mod change;
mod facts;
mod machine;
mod queries;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::EntryResponder;
use sha2::Digest;
use sha2::Sha256;
use tokio::sync::Notify;
use tokio::sync::oneshot;

use self::change::InForce;
pub use self::change::Lacking;
use self::facts::Facts;
pub use self::machine::StateMachine;
use self::queries::Queries;
use super::events::Events;
use super::inbox::Inbox;
use super::inbox::Note;
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these locks is a bug whose state is still whole: each holder changes it in one step,
    // except `Core`, whose panics `Shared::core` turns into a fault.
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
                let host = HostState::new(factory.created_ms(), &effects);
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
        self.core.lock().unwrap_or_else(|panicked| {
            let mut core = panicked.into_inner();
            self.core.clear_poison();
            let what = "the host panicked while it worked on the state, which may be half changed".to_owned();
            core.stop(self, self.applied(), Fault { what });
            core
        })
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
        lock(&self.queries).give_up_parked_of(inbox);
    }

    /// Applies what of `batch` comes before its fuel is burnt.
    fn apply_turn<C: AsyncRuntime>(
        &self,
        factory: &dyn ModelFactory,
        batch: &mut impl Iterator<Item = EntryResponder<Types<C>>>,
        loud: &mut usize,
    ) -> Result<(), Fault> {
        // Consensus stops by itself then; whoever asks why need not wait until the state is asked for again.
        struct Turn<'a>(&'a Shared);
        impl Drop for Turn<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    drop(self.0.core());
                }
            }
        }
        let _turn = Turn(self);
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
            core.sound().map_err(io::Error::other)?;
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
            core.sound().map_err(io::Error::other)?;
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
    /// Nothing is applied to this state any more, and nothing asked of it.
    fn stop(&mut self, shared: &Shared, index: u64, fault: Fault) {
        *lock(&shared.fault) = Some(fault.to_string());
        self.fault = Some(fault);
        for inbox in &self.inboxes {
            inbox.jump(index);
            inbox.wake();
        }
    }

    /// Whether the state is that of the applied index: why not, once the replica stopped.
    fn sound(&self) -> Result<(), Fault> {
        self.fault.clone().map_or(Ok(()), Err)
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
        self.sound()?;
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
                let applied = applied.inspect_err(|fault| self.stop(shared, index, fault.clone()))?;
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

fn payload_bytes(payload: &Payload) -> u64 {
    match payload {
        Payload::Normal(proposal) => match &proposal.kind {
            crate::types::EntryKind::Command { payload, .. } => payload.len() as u64 + 64,
            _ => 64,
        },
        _ => 64,
    }
}

#[cfg(test)]
mod tests;
