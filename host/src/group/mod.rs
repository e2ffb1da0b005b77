//! One replicated group on this node: consensus, apply, read, sessions, timers, snapshot policy.
//!
//! Invariants:
//! - A client's command is answered by this node's own apply of its entry, whoever led when it was proposed.
//! - A command is proposed again only when the first attempt cannot have reached a log, or when its session
//!   and sequence number make a second entry harmless.
//! - Only the leader counts sessions' silence, and a new leader gives every session its full timeout again.

mod barrier;
mod duties;
pub mod events;
pub mod inbox;
mod joins;
mod lead;
pub mod members;
mod mend;
pub mod model;
pub mod priority;
mod propose;
mod read;
mod replica;
mod requests;
mod retention;
pub mod space;
pub mod state;
mod touch;
mod trust;
mod waiters;

pub use joins::Unjoined;
pub use replica::Lacking;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use openraft::Instant;
use openraft::ServerState;
use openraft::async_runtime::AsyncRuntime;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::mpsc;

use self::barrier::ReadBarrier;
use self::inbox::Inbox;
use self::inbox::Ticket;
use self::model::ModelFactory;
use self::model::ModuleRef;
use self::priority::Priorities;
use self::replica::Shared;
use self::replica::StateMachine;
use self::space::Space;
use self::state::Answer;
use self::waiters::Delivered;
use crate::disk::Disk;
use crate::log::GroupLog;
use crate::module::Module;
use crate::peer::CallError;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::commit::Hurry;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::GroupNetwork;
use crate::peer::raft::call;
use crate::peer::transfer::Transfers;
use crate::platform::Platform;
use crate::repeats::Repeats;
use crate::service::Consistency;
use crate::service::ErrorCode;
use crate::service::MemberView;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::snapshot::HeldSnapshot;
use crate::snapshot::Receiver;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotStore;
use crate::status::SnapshotStatus;
use crate::tally::Summary;
use crate::tally::Tally;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::Origin;
use crate::types::Proposal;
use crate::types::Types;
use crate::types::Vote;

/// The clocks and thresholds of a group (DESIGN section 5, step 4).
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A leader's sign of life, every so often.
    pub heartbeat_ms: u64,
    /// *election*: a follower that hears no leader for a time drawn between this and one and a half times this
    /// stands for election. *vote* (a candidacy without a majority) and *step-down* (a leader without its quorum)
    /// follow from it.
    pub election_timeout_ms: u64,
    /// *snapshot*: by entries since the last one,
    pub snapshot_entries: u64,
    /// by bytes of commands since the last one,
    pub snapshot_bytes: u64,
    /// or by time, jittered by a quarter so that replicas do not write together; 0 turns it off.
    pub snapshot_interval_ms: u64,
    /// Entries that stay in the log behind a snapshot, so that a follower that is a little behind needs none,
    pub log_entries_kept: u64,
    /// and their bytes at most, or a quarter of the snapshot's if that is more: so much log is sooner sent than the snapshot.
    pub log_bytes_kept: u64,
    /// Bytes of log that a leader keeps at most for members that need them (or the snapshot's bytes, if they are more); 0:
    /// nothing is kept for them.
    pub log_bytes_held: u64,
}

impl Timing {
    /// openraft's shortest and longest election timeout. It waits the longest as the leader's lease and after that
    /// a time drawn between the two: these make it a time from [`Self::election_timeout_ms`] to half as much again.
    fn election_range_ms(&self) -> (u64, u64) {
        let shortest = (self.election_timeout_ms / 4).max(self.heartbeat_ms.saturating_add(1));
        let longest = self.election_timeout_ms.saturating_sub(shortest).max(shortest.saturating_add(shortest / 4 + 1));
        (shortest, longest)
    }
}

/// What a group needs to run.
pub struct GroupOptions<P: Platform, T: Transport> {
    /// Its id.
    pub id: GroupId,
    /// Its name, for messages.
    pub name: String,
    /// This node.
    pub node: NodeId,
    /// This life of this node.
    pub incarnation: u64,
    /// Mixed into every entry's seed; the same on all replicas.
    pub seed: u64,
    /// The members to begin with: id to peer address. Empty when the group is there already: this replica learns them.
    pub members: BTreeMap<NodeId, String>,
    /// Whether they begin from a file, as their first snapshot. A replica without one waits until it is sent the state: it
    /// votes, since it never had anything that it could have forgotten, and never begins anew.
    pub from_file: bool,
    /// Whether this node may vote from the start (see `node::settle`).
    pub may_vote: bool,
    /// Whether this node stands for election at once if the group is new. One of the members should: if all wait
    /// for their election clocks, a new group has no leader for as long, and longer if they stand together.
    pub stands_first: bool,
    /// Makes the state.
    pub factory: Arc<dyn ModelFactory>,
    /// Its part of the node's log.
    pub log: GroupLog<P::Runtime>,
    /// Where snapshots lie.
    pub disk: Arc<dyn Disk>,
    /// The directory for them.
    pub directory: PathBuf,
    /// Snapshots kept.
    pub snapshots_kept: usize,
    /// Events kept for subscribers.
    pub events_kept: usize,
    /// Clocks and thresholds.
    pub timing: Timing,
    /// The machine underneath.
    pub platform: P,
    /// The way to other nodes.
    pub transport: T,
    /// What the node's groups share.
    pub common: Common<P>,
}

/// What all groups of a node share.
pub struct Common<P: Platform> {
    /// Snapshots on their way to others.
    pub transfers: Transfers<P>,
    /// Disk space.
    pub space: Arc<Space>,
    /// Who is to lead.
    pub priorities: Arc<Priorities>,
    /// What was said already of groups that are tried to be opened again and again.
    pub repeats: Arc<Repeats<InstantOf<P>>>,
}

impl<P: Platform> Clone for Common<P> {
    fn clone(&self) -> Self {
        Self {
            transfers: self.transfers.clone(),
            space: self.space.clone(),
            priorities: self.priorities.clone(),
            repeats: self.repeats.clone(),
        }
    }
}

type Raft<P> = openraft::Raft<Types<<P as Platform>::Runtime>, StateMachine<P>>;
type RtOf<P> = <P as Platform>::Runtime;
type InstantOf<P> = <RtOf<P> as AsyncRuntime>::Instant;

/// A running group.
pub struct Group<P: Platform, T: Transport> {
    id: GroupId,
    name: String,
    node: NodeId,
    incarnation: u64,
    raft: Raft<P>,
    log: GroupLog<P::Runtime>,
    shared: Arc<Shared>,
    platform: P,
    transport: T,
    timing: Timing,
    proposals: mpsc::Sender<Proposal>,
    linearizable: ReadBarrier,
    lease: ReadBarrier,
    receiver: Arc<Mutex<Receiver>>,
    /// When something of an incoming snapshot last came, while there is something of one.
    received_at: Mutex<Option<InstantOf<P>>>,
    transfers: Transfers<P>,
    space: Arc<Space>,
    priorities: Arc<Priorities>,
    repeats: Arc<Repeats<InstantOf<P>>>,
    store: SnapshotStore,
    factory: Arc<dyn ModelFactory>,
    /// Touched sessions this node has yet to tell the leader of.
    touched: Mutex<Vec<u64>>,
    stopped: Mutex<bool>,
    /// Whether this node votes.
    votes: Mutex<bool>,
    /// Whom it follows.
    trust: Mutex<trust::Trust>,
    /// What this node proposed as leader: bytes of each entry, and the term of the newest.
    proposed: Mutex<(u64, Tally)>,
    /// See [`lead`].
    hearing: Mutex<lead::Hearing<InstantOf<P>>>,
    /// The members to begin with, and whether this one stands for election first.
    members: BTreeMap<NodeId, String>,
    from_file: bool,
    stands_first: bool,
    /// The nodes that must hear of commits at once.
    hurry: Hurry<RtOf<P>>,
    /// Places for messages of leaders that are being taken.
    appends: tokio::sync::Semaphore,
    /// When this leader last tried to let a better one lead.
    yielded_at: Mutex<Option<InstantOf<P>>>,
    /// Since when this replica, which is not to lead, has known no leader.
    leaderless_since: Mutex<Option<InstantOf<P>>>,
    /// Read while entries of the leader are taken, written while openraft is given a snapshot.
    taking: tokio::sync::RwLock<()>,
}

/// Entries that go to a follower at once.
const APPEND_ENTRIES_MAX: u64 = 1024;
/// Proposals a node may have under way in one group.
const PROPOSALS_MAX: usize = 16 << 10;

/// How a group stands, for views and readiness.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Current term.
    pub term: u64,
    /// The leader this node knows.
    pub leader: Option<NodeId>,
    /// `leader`, `follower`, `candidate`, `learner`, `stopped: why`.
    pub state: String,
    /// Commit index.
    pub commit: u64,
    /// Applied index.
    pub applied: u64,
    /// Last index in the log.
    pub last: u64,
    /// Purged up to here.
    pub purged: u64,
    /// Covered by the newest snapshot.
    pub snapshot: u64,
    /// The replicas.
    pub members: Vec<MemberView>,
}

impl<P: Platform, T: Transport> Group<P, T> {
    /// Opens the group: newest snapshot that verifies, log behind it, module, membership; then starts
    /// consensus as a follower. A group whose only voter is this node elects itself at once.
    pub async fn open(options: GroupOptions<P, T>) -> io::Result<Arc<Self>> {
        let (id, node, timing, platform) = (options.id, options.node, options.timing, options.platform.clone());
        let store = SnapshotStore::open(
            options.disk.clone(),
            options.directory.clone(),
            options.snapshots_kept,
            options.common.space.floor_bytes(),
        );
        let store = store.inspect_err(|error| replica::die_of_sync(&platform, error))?;
        let factory = options.factory.clone();
        let failed = || io::Error::other("opening the group's state failed");
        let newest = {
            let store = store.clone();
            options.platform.run_guest(move || store.newest()).await.ok_or_else(failed)??
        };
        for error in newest.refused {
            if let Some(times) = options.common.repeats.came(&format!("{id} {error}"), InstantOf::<P>::now()) {
                tracing::error!(group = id, %error, times, "this snapshot is not used; an older one is, if there is one");
            }
        }
        let module = newest.found.as_ref().map_or_else(|| factory.first().digest, |(head, _)| head.module);
        factory.prepare(module).await.map_err(io::Error::other)?;
        let opened = {
            let factory = factory.clone();
            let (incarnation, seed, events_kept) = (options.incarnation, options.seed, options.events_kept);
            options
                .platform
                .run_guest(move || Shared::open(id, node, incarnation, seed, events_kept, &*factory, newest.found))
        };
        let shared = Arc::new(opened.await.ok_or_else(failed)??);
        let whose = || format!("group {} ({id}), snapshots in {}", options.name, options.directory.display());
        // It begins empty in a group that others have begun, or on a node that does not know whether they have.
        let forgetful = (!options.may_vote || options.members.is_empty()) && options.log.vote()?.is_none();
        let trust = if forgetful { trust::Trust::Nobody } else { trust::Trust::All };
        joins::settle(options.log.clone(), shared.snapshot_log_id(), whose).await?;

        let (election_timeout_min, election_timeout_max) = timing.election_range_ms();
        let config = openraft::Config {
            cluster_name: options.name.clone(),
            heartbeat_interval: timing.heartbeat_ms,
            election_timeout_min,
            election_timeout_max,
            enable_pre_vote: Some(true),
            // A leader that comes back stands for election like anyone. Restored, it would lead its old term on with
            // the commit index it last wrote down, and answer linearizable reads from before what it acknowledged; and
            // what it sent to followers before its own sync and lost, it would number again (found by the simulator).
            enable_leader_restore: Some(false),
            enable_elect: options.may_vote && options.common.priorities.own() != priority::PRIORITY_NEVER,
            // A follower that lost its disk is sent everything again. (openraft's default ends the leader instead.)
            // What makes it safe is that such a node does not vote before: see `node::settle`.
            allow_log_reversion: Some(true),
            // Check quorum: a leader that lost its majority stops its heartbeats so that others may elect.
            quorum_loss_probe_interval: Some(timing.election_timeout_ms.saturating_mul(4)),
            // Followers are sent entries as soon as they are in memory here, beside this node's own sync.
            broadcast_submitted_on_append: Some(true),
            max_payload_entries: APPEND_ENTRIES_MAX,
            snapshot_policy: openraft::SnapshotPolicy::Never,
            // See `retention`.
            max_in_snapshot_log_to_keep: u64::MAX,
            replication_lag_threshold: timing.log_entries_kept.saturating_mul(2).max(4096),
            install_snapshot_timeout: 600_000,
            backoff: "50ms 100ms 200ms ..1s".to_string(),
            ..openraft::Config::default()
        };
        let config = Arc::new(config.validate().map_err(io::Error::other)?);
        let machine = StateMachine::new(shared.clone(), factory.clone(), store.clone(), platform.clone());
        let hurry = Hurry::default();
        let network = GroupNetwork::new(id, options.transport.clone(), hurry.clone(), options.common.transfers.clone());
        let log = options.log.clone();
        let opening = machine.opening();
        let raft = Raft::<P>::build(node, config, network, options.log, machine).await;
        let lacking = opening.end();
        let raft = raft.map_err(|error| lacking.map_or_else(|| io::Error::other(error), io::Error::other))?;
        raft.run();
        let (proposals, queue) = mpsc::channel(PROPOSALS_MAX);
        let group = Arc::new(Self {
            id,
            name: options.name,
            node,
            incarnation: options.incarnation,
            raft,
            log,
            shared,
            platform,
            transport: options.transport,
            timing,
            proposals,
            linearizable: ReadBarrier::default(),
            lease: ReadBarrier::default(),
            receiver: Arc::new(Mutex::new(Receiver::new(store.clone()))),
            // Something may be there of before a restart.
            received_at: Mutex::new(Some(InstantOf::<P>::now())),
            transfers: options.common.transfers,
            space: options.common.space,
            priorities: options.common.priorities,
            repeats: options.common.repeats,
            store,
            factory,
            touched: Mutex::default(),
            stopped: Mutex::new(false),
            votes: Mutex::new(false),
            trust: Mutex::new(trust),
            proposed: Mutex::default(),
            hearing: Mutex::default(),
            members: options.members,
            from_file: options.from_file,
            stands_first: options.stands_first,
            hurry,
            appends: tokio::sync::Semaphore::new(requests::APPENDS_MAX),
            yielded_at: Mutex::default(),
            leaderless_since: Mutex::default(),
            taking: tokio::sync::RwLock::new(()),
        });
        if options.may_vote {
            group.begin_voting().await?;
        }
        drop(P::Runtime::spawn(propose::run(Arc::downgrade(&group), queue)));
        drop(P::Runtime::spawn(duties::run(Arc::downgrade(&group))));
        Ok(group)
    }

    /// From now on this node votes and stands for election. The initial membership is written, only when log and
    /// snapshot have none; a sole voter, or the member that is to stand first, stands at once.
    pub async fn begin_voting(&self) -> io::Result<()> {
        if std::mem::replace(&mut *self.votes.lock().unwrap_or_else(PoisonError::into_inner), true) {
            return Ok(());
        }
        // Those who came later have to be told by the others all the same.
        if !self.members.is_empty() {
            self.follow_all();
        }
        self.raft.runtime_config().elect(!self.never_leads());
        let members = self.members.clone();
        if !self.raft.is_initialized().await.map_err(io::Error::other)? {
            if members.is_empty() || self.from_file {
                return Ok(());
            }
            let alone = members.len() == 1;
            let members: BTreeMap<NodeId, openraft::BasicNode> =
                members.into_iter().map(|(id, address)| (id, openraft::BasicNode { addr: address })).collect();
            // Every member does this with the same list; whoever is late finds it done by replication.
            if let Err(error) = self.raft.initialize(members).await {
                tracing::info!(group = self.id, %error, "the group has its members already");
            } else if alone || self.stands_first && !self.never_leads() {
                self.raft.trigger().elect(false).await.map_err(io::Error::other)?;
            }
            return Ok(());
        }
        let voters: Vec<NodeId> = self.raft.voter_ids().collect();
        // A group that begins from a file has its members, and nobody has led it yet.
        let is_new = self.raft.with_raft_state(|state| state.vote_ref().leader_id.term == 0).await;
        let is_new = is_new.map_err(io::Error::other)?;
        if voters == [self.node] || (is_new && self.stands_first && voters.contains(&self.node)) {
            self.raft.trigger().elect(false).await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What an operator has set of it, and what is built in, for those who watch over it: JSON. Times in milliseconds.
    pub fn settings(&self) -> serde_json::Value {
        let timing = &self.timing;
        serde_json::json!({
            "heartbeat_ms": timing.heartbeat_ms,
            "election_timeout_ms": timing.election_timeout_ms,
            "snapshot_entries": timing.snapshot_entries,
            "snapshot_bytes": timing.snapshot_bytes,
            "snapshots_kept": self.store.kept(),
            "log_entries_kept": timing.log_entries_kept,
            "log_bytes_kept": timing.log_bytes_kept,
            "log_bytes_held": timing.log_bytes_held,
            "append_entries_max": APPEND_ENTRIES_MAX,
            "commands_batch_max": propose::BATCH_PROPOSALS,
            "commands_batch_bytes_max": propose::BATCH_BYTES,
            "caught_up_entries": crate::membership::LAG_MAX,
            "commands_waiting_max": PROPOSALS_MAX,
            "session_check_ms": u64::try_from(duties::IDLE.as_millis()).unwrap_or(u64::MAX),
            "transfer_part_bytes": self.transfers.part_bytes(),
        })
    }

    /// The applied index.
    pub fn applied(&self) -> u64 {
        self.shared.applied()
    }

    /// The modules that this replica runs, and would be opened with after a restart.
    pub fn modules(&self) -> impl Iterator<Item = [u8; 32]> + use<P, T> {
        [self.shared.module().digest].into_iter().chain(self.shared.snapshot_module())
    }

    /// The last index in the log: from consensus itself, because metrics say nothing yet right after a start.
    pub async fn last_index(&self) -> Result<u64, String> {
        let last = self.raft.with_raft_state(|state| state.log_ids.last().map_or(0, |last| last.index));
        last.await.map_err(|error| error.to_string())
    }

    /// Commands of this node's clients that are under way.
    pub fn waiting(&self) -> usize {
        self.shared.waiters.count()
    }

    /// How the group stands.
    pub fn standing(&self) -> Standing {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow_watched();
        let leader = self.leader_of(&metrics);
        let membership = metrics.membership_config.membership();
        let voters = members::counted(membership);
        let state = match (&metrics.running_state, metrics.state) {
            (Err(fatal), _) => format!("stopped: {fatal}"),
            (Ok(()), ServerState::Leader) if leader == Some(self.node) => "leader".to_string(),
            // Nobody is led any more, and it takes no commands: openraft only keeps its word for the state.
            (Ok(()), ServerState::Leader) => "follower".to_string(),
            (Ok(()), ServerState::Follower | ServerState::Candidate)
                if !voters.contains(&self.node) && membership.get_node(&self.node).is_some() =>
            {
                "learner".to_string()
            }
            (Ok(()), ServerState::Follower) => "follower".to_string(),
            (Ok(()), ServerState::Candidate) => "candidate".to_string(),
            (Ok(()), ServerState::Learner) => "learner".to_string(),
            (Ok(()), ServerState::Shutdown) => "stopped: shut down".to_string(),
        };
        let index = |log_id: &Option<crate::types::LogId>| log_id.as_ref().map_or(0, |log_id| log_id.index);
        let members = membership.nodes().map(|(id, node)| MemberView {
            id: *id,
            address: node.addr.clone(),
            role: if voters.contains(id) { "voter" } else { "learner" }.to_string(),
            matched: metrics.replication.as_ref().and_then(|all| all.get(id)).map(index),
        });
        Standing {
            term: metrics.current_term,
            leader,
            state,
            commit: index(&metrics.local_committed),
            applied: self.shared.applied(),
            last: metrics.last_log_index.unwrap_or(0),
            purged: index(&metrics.purged),
            snapshot: self.shared.snapshot_index(),
            members: members.collect(),
        }
    }

    /// The terms of the oldest and of the newest entry in the log.
    pub fn log_terms(&self) -> Option<(u64, u64)> {
        self.log.terms()
    }

    /// What this node put into the group's log as its leader, bytes of each entry. The single ones are those of the term it leads in.
    pub fn proposed(&self, reader: u64) -> Summary {
        let (_, now) = self.leader_and_term();
        let proposed = self.proposed.lock().unwrap_or_else(PoisonError::into_inner);
        let (term, summary) = (proposed.0, proposed.1.of(reader));
        if term == now { summary } else { summary.without_values() }
    }

    /// How long writing a snapshot took here, microseconds.
    pub fn snapshot_times(&self, reader: u64) -> Summary {
        self.shared.snapshot_times().of(reader)
    }

    /// `reader` counts from here what this node proposes, and its snapshots.
    pub fn count_anew(&self, reader: u64) {
        self.proposed.lock().unwrap_or_else(PoisonError::into_inner).1.begin(reader);
        self.shared.snapshot_times().begin(reader);
    }

    /// Open sessions and armed timers, as applied here.
    pub fn tables(&self) -> (u64, u64) {
        self.shared.counts()
    }

    /// The group's events on this node.
    pub fn events(&self) -> &Arc<events::Events> {
        &self.shared.events
    }

    /// SHA-256 over the state at the applied index.
    pub async fn digest(&self) -> ServiceResult<(u64, [u8; 32])> {
        match self.shared.digest(&self.platform).await {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err(self.error(ErrorCode::GroupStopped, format!("no digest: {error}"))),
            None => Err(self.error(ErrorCode::Internal, "a guest job failed")),
        }
    }

    /// Writes a snapshot of what is applied now and lets the log be purged behind it; the index it covers.
    /// When it cannot be written (a full disk), nothing changes: the log stays as long as it must.
    pub async fn snapshot(&self) -> ServiceResult<u64> {
        self.snapshot_but(None).await
    }

    /// The same; the one of digest `damaged` does not count as written.
    async fn snapshot_but(&self, damaged: Option<[u8; 32]>) -> ServiceResult<u64> {
        let written = self.shared.take_snapshot(&self.platform, &self.store, &self.factory, damaged).await;
        let index = match written {
            Some(Ok(Some(index))) => index,
            Some(Ok(None)) => return Ok(0),
            Some(Err(error)) => {
                let full = error.kind() == io::ErrorKind::StorageFull;
                let code = if full { ErrorCode::DiskFull } else { ErrorCode::Internal };
                return Err(self.error(code, format!("no snapshot was written: {error}")));
            }
            None => return Err(self.error(ErrorCode::Internal, "a guest job failed")),
        };
        let stopped = |error: openraft::errors::Fatal<Types<P::Runtime>>| self.error(ErrorCode::GroupStopped, error);
        self.raft.trigger().snapshot().await.map_err(stopped)?;
        // The log behind it can go.
        self.shared.wake.notify_one();
        Ok(index)
    }

    /// A snapshot that covers everything that was acknowledged before now, held open: the index it covers, and the file.
    /// This replica may take so long to have all that, and the writing as long as it takes.
    pub async fn save(self: &Arc<Self>, patience: Duration) -> ServiceResult<(u64, HeldSnapshot)> {
        let late = || format!("this replica does not have all that was acknowledged within {} s", patience.as_secs());
        let waited = RtOf::<P>::timeout(patience, self.wait_read_index(false)).await;
        waited.unwrap_or_else(|_| Err(self.error(ErrorCode::Unavailable, late())))?;
        let newest = || self.shared.current_snapshot().map(|(_, file)| file.digest());
        let before = newest();
        self.snapshot().await?;
        // In an idle group it is the one that was there already, and nobody knows whether it is whole still.
        if let Some(digest) = newest().filter(|digest| before == Some(*digest)) {
            self.mend_snapshot(digest).await?;
        }
        let shared = self.shared.clone();
        let held = self.platform.run_guest(move || {
            let (index, file) = shared.current_snapshot()?;
            Some(file.hold().map(|held| (index, held)))
        });
        match held.await.flatten() {
            Some(Ok(held)) => Ok(held),
            // Two newer ones were written in this moment.
            Some(Err(error)) => Err(self.error(ErrorCode::Unavailable, error)),
            None => Err(self.error(ErrorCode::Internal, "there is no snapshot although one was written")),
        }
    }

    fn error(&self, code: ErrorCode, detail: impl std::fmt::Display) -> ServiceError {
        ServiceError::new(code, format!("group {}: {detail}", self.name))
    }

    /// Lets a gateway listen from now on; the last applied entry, which it is not told of.
    pub async fn listen(&self, inbox: Arc<Inbox>) -> Option<u64> {
        let shared = self.shared.clone();
        self.platform.run_guest(move || shared.listen(inbox)).await
    }

    /// The gateway listens no more.
    pub async fn unlisten(&self, inbox: Arc<Inbox>) {
        let shared = self.shared.clone();
        self.platform.run_guest(move || shared.unlisten(&inbox)).await.unwrap_or_default();
    }

    /// The module that it runs, as applied here.
    pub fn module_ref(&self) -> ModuleRef {
        self.shared.module()
    }

    /// The same, compiled; `None` for the catalog.
    pub fn module(&self) -> Option<Module> {
        self.factory.module(self.shared.module().digest)
    }

    /// Tries whether the state as it is here would go over to the module that `factory` begins with; nothing of it is kept. The index
    /// of the state. `turn` is held as long as it is tried.
    pub async fn try_module(
        &self,
        factory: impl ModelFactory,
        turn: impl Send + 'static,
    ) -> ServiceResult<(u64, Answer)> {
        let tried = self.shared.try_module(&self.platform, factory, turn).await;
        tried.ok_or_else(|| self.error(ErrorCode::Internal, "a guest job failed"))
    }

    /// openraft's handle.
    pub fn raft(&self) -> &Raft<P> {
        &self.raft
    }

    /// Whether it was stopped on this node.
    pub fn is_stopped(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the group on this node; its files stay.
    pub async fn shutdown(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.close();
        self.shared.wake.notify_one();
        self.shared.events.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = self.id, %error, "the group did not stop in order");
        }
    }

    /// Asks that this node lead: the leader is asked to hand over; where there is none, this node stands for election.
    pub async fn take_lead(&self) -> ServiceResult<()> {
        let leader = match self.leader() {
            Some(leader) if leader == self.node => return Ok(()),
            _ if self.never_leads() => {
                let detail = format!(
                    "node {} is not to lead (--election-priority 0, --never-lead, or `node priority`)",
                    self.node
                );
                return Err(self.error(ErrorCode::Unavailable, detail));
            }
            _ if !self.may_vote() => {
                let detail = "this replica does not vote until it has caught up";
                return Err(self.error(ErrorCode::Unavailable, detail));
            }
            _ if !self.raft.voter_ids().any(|voter| voter == self.node) => {
                let detail = format!("node {} is a learner of the group", self.node);
                return Err(self.error(ErrorCode::Unavailable, detail));
            }
            Some(leader) => leader,
            None => {
                let elected = self.raft.trigger().elect(true).await;
                return elected.map_err(|error| self.error(ErrorCode::GroupStopped, error));
            }
        };
        let limit = Duration::from_millis(self.timing.election_timeout_ms);
        let asked = call::<RtOf<P>, T>(&self.transport, leader, Lane::Consensus, &PeerRequest::Lead(self.id));
        let Ok(asked) = RtOf::<P>::timeout(limit, asked).await else {
            let detail = format!("node {leader} did not answer within {} ms", limit.as_millis());
            return Err(self.error(ErrorCode::Timeout, detail));
        };
        match asked {
            Ok(PeerResponse::Done) => {}
            Ok(other) => return Err(self.error(ErrorCode::Internal, format!("node {leader} answered {other:?}"))),
            Err(error) => return Err(self.error(ErrorCode::NoLeader, error)),
        }
        let waiting = self.raft.wait(Some(limit));
        // The asker looks at what came of it.
        let _in_time = waiting.metrics(|metrics| metrics.current_leader == Some(metrics.id), "take the lead").await;
        Ok(())
    }

    /// Why this replica runs no more, once it does not.
    pub fn failure(&self) -> Option<String> {
        let receiver = self.raft.metrics();
        let failed = receiver.borrow_watched().running_state.as_ref().err().map(ToString::to_string);
        failed.or_else(|| self.shared.fault())
    }

    /// Bytes of the newest snapshot's file on this node, 0 when there is none.
    pub fn snapshot_bytes(&self) -> u64 {
        self.shared.snapshot_bytes()
    }

    /// Looks at the newest snapshot's file, where the disk may be waited for.
    pub fn snapshot_status(&self) -> impl FnOnce() -> Option<SnapshotStatus> + Send + 'static {
        let current = self.shared.current_snapshot();
        move || {
            let (index, file) = current?;
            Some(SnapshotStatus { index, bytes: file.size(), written_ms: file.written_ms() })
        }
    }

    /// Hands leadership over to the member that is furthest ahead, if this node leads and there is one.
    pub async fn hand_over(&self) {
        let alone = || !self.standing().members.iter().any(|member| member.id != self.node && member.role == "voter");
        if !self.leads() || alone() {
            return;
        }
        if let Err(error) = self.hand_over_to(None).await {
            tracing::warn!(group = self.id, %error, "leadership was not handed over");
        }
    }
}
