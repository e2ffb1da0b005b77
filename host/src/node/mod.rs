//! One node: its log, its catalog, the groups placed here, and what it answers to peers and users.
//!
//! Invariants:
//! - A group runs here exactly while the catalog, as applied here, names it; its files go only when the
//!   catalog of now says that it was removed: what is applied here may be of long ago. The log, which has the vote, goes
//!   last of them.
//! - A module named by the catalog was durable at a majority before it was named.

mod asked_changes;
mod changes;
mod copies;
mod fitness;
mod following;
mod forward;
mod founding;
mod gateways;
pub mod identity;
mod join;
mod metrics;
mod module_changes;
mod modules;
pub mod recovery;
pub mod removal;
pub mod repair;
mod roster;
mod service;
pub mod settle;
mod small_files;
pub mod start;
mod status;
mod whom_to_follow;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use tokio::sync::oneshot;

use crate::catalog::CatalogFactory;
use crate::catalog::GroupEntry;
use crate::catalog::View;
use crate::catalog::files::ModuleFiles;
use crate::codec;
use crate::disk::Disk;
use crate::group::Common;
use crate::group::Group;
use crate::group::GroupOptions;
use crate::group::Lacking;
use crate::group::Timing;
use crate::group::Unjoined;
use crate::group::model::ModelFactory;
use crate::group::model::ModuleRef;
use crate::group::model::WasmFactory;
use crate::group::priority;
use crate::group::priority::Priorities;
use crate::group::space::Space;
use crate::log::NodeLog;
use crate::module::Context;
use crate::module::Limits;
use crate::peer::Handler;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::message::PeerStatus;
use crate::peer::transfer::TransferSettings;
use crate::peer::transfer::Transfers;
use crate::platform::Platform;
use crate::platform::random_u64;
use crate::snapshot::Bases;
use crate::snapshot::Made;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotStore;
use crate::types::CATALOG;
use crate::types::CATALOG_NAME;
use crate::types::GroupId;
use crate::types::NodeId;

pub use gateways::ListenSettings;
pub use modules::ModuleHost;

/// What an operator may set, as far as the core cares.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Clocks and thresholds of every group.
    pub timing: Timing,
    /// Snapshots kept a group.
    pub snapshots_kept: usize,
    /// Events kept a group.
    pub events_kept: usize,
    /// The largest command, query or params, bytes.
    pub command_bytes_max: u64,
    /// What a new group's module may use.
    pub limits: Limits,
    /// How long a request may wait when it does not say.
    pub request_timeout: Duration,
    /// The shortest session timeout granted, milliseconds.
    pub session_timeout_min_ms: u64,
    /// The longest.
    pub session_timeout_max_ms: u64,
    /// Whether what is damaged here may be given up when the other nodes have it.
    pub repair_from_peers: bool,
    /// Client listeners.
    pub listen: ListenSettings,
    /// How snapshots go to other nodes.
    pub transfers: TransferSettings,
    /// How much this node is to lead, against others; 0: not where another one can.
    pub election_priority: u8,
    /// It does not lead even where nobody else can, unless it is the only voter.
    pub never_lead: bool,
    /// Below so many free bytes of disk no commands are taken; 0: never mind.
    pub disk_reserve_bytes: u64,
}

/// What a node is made of.
pub struct Setup<P: Platform, T: Transport> {
    /// Its id.
    pub id: NodeId,
    /// Its cluster.
    pub cluster: [u8; 16],
    /// The nodes that begin the cluster: id to peer address; with this one. Empty for a node that came later.
    pub members: BTreeMap<NodeId, String>,
    /// The nodes that it knows of at its start: id to peer address.
    pub known: BTreeMap<NodeId, String>,
    /// For a node that has just joined: the index of the catalog's membership that names it.
    pub joined_index: u64,
    /// The machine underneath.
    pub platform: P,
    /// The way to other nodes.
    pub transport: T,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The opened log.
    pub log: NodeLog,
    /// Compiles modules.
    pub modules: Arc<ModuleHost>,
    /// What an operator may set.
    pub settings: Settings,
}

struct Inner<P: Platform, T: Transport> {
    setup: Setup<P, T>,
    started: <P::Runtime as AsyncRuntime>::Instant,
    view: Arc<View>,
    catalog: Arc<Group<P, T>>,
    files: ModuleFiles,
    groups: Mutex<BTreeMap<GroupId, Arc<Group<P, T>>>>,
    gateways: Mutex<BTreeMap<GroupId, gateways::Running<P, T>>>,
    /// Why a group that should run here does not.
    failures: Mutex<BTreeMap<GroupId, String>>,
    /// Of those, the module that one could not be opened without.
    lacking: Mutex<BTreeMap<GroupId, [u8; 32]>>,
    stopping: Mutex<bool>,
    common: Common<P>,
    /// See [`settle`].
    may_vote: Mutex<bool>,
    /// The groups in which it votes although it does not in all.
    settled: Mutex<settle::Settled>,
    /// See [`repair`].
    repair: Mutex<Option<repair::Repair>>,
    /// See [`removal`].
    removed: removal::Removed,
    /// See [`recovery`].
    lost_others: recovery::LostOthers,
    /// See [`following`].
    following: Mutex<following::Following>,
    copies: copies::Copies<P>,
    /// Who may try a module: each takes a thread for seconds, of those that groups apply entries on.
    gates: Arc<tokio::sync::Semaphore>,
}

/// A running node. Cheap to clone.
pub struct Node<P: Platform, T: Transport>(Arc<Inner<P, T>>);

impl<P: Platform, T: Transport> Clone for Node<P, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the node votes in a group although it does not in all: nothing of it was given up, or it has caught up since.
fn votes(repair: Option<&repair::Repair>, settled: &settle::Settled, group: GroupId) -> bool {
    repair.is_some_and(|repair| !repair.has_given_up(group)) || settled.votes(group)
}

/// Modules that are tried at once.
const GATES_MAX: usize = 2;

/// After a group could not be opened, how long until the next try.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

/// So long a start waits for its groups to be opened; the others are opened while the node serves what it has.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks for what is not needed.
const TIDY_PAUSE: Duration = Duration::from_secs(60);

/// So long the catalog's leader is waited for before files are removed; then groups are opened and closed again.
const SWEEP_PATIENCE: Duration = Duration::from_millis(500);

impl<P: Platform, T: Transport> Node<P, T> {
    /// DESIGN section 5, steps 3 and 4: the catalog, then every group placed here.
    pub async fn open(setup: Setup<P, T>) -> io::Result<Self> {
        let incarnation = random_u64(&setup.platform);
        let files = ModuleFiles::open(setup.disk.clone(), setup.data_dir.join("modules"))?;
        let view = Arc::new(View::default());
        let transfers = Transfers::new(setup.platform.clone(), setup.settings.transfers);
        let space = Arc::new(Space::new(setup.settings.disk_reserve_bytes));
        let bases = Bases::open(setup.disk.clone(), setup.data_dir.join("bases"), space.floor_bytes())?;
        let priorities = Arc::new(Priorities::new(setup.id, setup.settings.election_priority));
        priorities.told_never(setup.id, setup.settings.never_lead);
        let common = Common { transfers, space, priorities, repeats: Arc::default() };
        let mut may_vote = !settle::is_marked(&*setup.disk, &setup.data_dir)?;
        // Without the mark of who must not vote, nothing is being repaired any more.
        let mut repair = if may_vote { None } else { repair::read(&*setup.disk, &setup.data_dir)? };
        let mut settled = settle::Settled::default();
        if !may_vote {
            settled = settle::Settled::read(&*setup.disk, &setup.data_dir)?;
        }
        for (id, address) in repair.iter().flat_map(|repair| &repair.peers) {
            setup.transport.learn(*id, address);
        }
        let nobody = BTreeSet::new();
        Self::renew_promise(&setup, repair.as_ref(), CATALOG, &nobody, repair::START_PATIENCE).await?;
        let catalog_votes = may_vote || votes(repair.as_ref(), &settled, CATALOG);
        let catalog = match Self::open_catalog(&setup, incarnation, view.clone(), &common, catalog_votes).await {
            Err(error) if Unjoined::is(&error) && setup.settings.repair_from_peers => {
                repair = Some(Self::give_up_catalog(&setup, repair, &error, !may_vote, &mut settled).await?);
                may_vote = false;
                Self::renew_promise(&setup, repair.as_ref(), CATALOG, &nobody, repair::START_PATIENCE).await?;
                Self::open_catalog(&setup, incarnation, view.clone(), &common, false).await
            }
            opened => opened,
        };
        let catalog =
            catalog.map_err(|error| io::Error::new(error.kind(), format!("the catalog cannot be opened: {error}")))?;
        let node = Self(Arc::new(Inner {
            setup,
            started: <P::Runtime as AsyncRuntime>::Instant::now(),
            view,
            catalog,
            files,
            groups: Mutex::default(),
            gateways: Mutex::default(),
            failures: Mutex::default(),
            lacking: Mutex::default(),
            stopping: Mutex::new(false),
            common,
            may_vote: Mutex::new(may_vote),
            settled: Mutex::new(settled),
            repair: Mutex::new(repair),
            removed: removal::Removed::default(),
            lost_others: recovery::LostOthers::default(),
            following: Mutex::default(),
            copies: copies::Copies::new(bases),
            gates: Arc::new(tokio::sync::Semaphore::new(GATES_MAX)),
        }));
        let transport = node.0.setup.transport.clone();
        drop(P::Runtime::spawn(node.catalog().clone().watch_members(move |members| {
            members.iter().for_each(|(id, address)| transport.learn(*id, address));
        })));
        node.ask_whom_to_follow(node.catalog(), &nobody);
        let (follower, (tried, all_tried)) = (node.clone(), oneshot::channel());
        drop(P::Runtime::spawn(async move { follower.follow_catalog(tried).await }));
        // Not for longer: what a group here waits for may be at nodes that wait for this one.
        let _in_time = P::Runtime::timeout(OPEN_PATIENCE, all_tried).await;
        if !may_vote {
            drop(P::Runtime::spawn(node.clone().settle()));
        }
        drop(P::Runtime::spawn(node.clone().drive_changes()));
        drop(P::Runtime::spawn(node.clone().look_for_removal()));
        drop(P::Runtime::spawn(node.clone().tidy()));
        drop(P::Runtime::spawn(node.clone().stay_fit()));
        Ok(node)
    }

    async fn open_catalog(
        setup: &Setup<P, T>,
        incarnation: u64,
        view: Arc<View>,
        common: &Common<P>,
        may_vote: bool,
    ) -> io::Result<Arc<Group<P, T>>> {
        let options = GroupOptions {
            id: CATALOG,
            name: CATALOG_NAME.to_string(),
            node: setup.id,
            incarnation,
            seed: u64::from_le_bytes(setup.cluster.first_chunk().copied().unwrap_or_default()),
            members: setup.members.clone(),
            from_file: false,
            may_vote,
            stands_first: false,
            factory: Arc::new(CatalogFactory(view)),
            log: setup.log.group(CATALOG),
            disk: setup.disk.clone(),
            directory: group_directory(&setup.data_dir, CATALOG),
            snapshots_kept: setup.settings.snapshots_kept,
            events_kept: 1,
            timing: setup.settings.timing,
            platform: setup.platform.clone(),
            transport: setup.transport.clone(),
            common: common.clone(),
        };
        Group::open(options).await
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.0.setup.id
    }

    /// The catalog's group.
    pub fn catalog(&self) -> &Arc<Group<P, T>> {
        &self.0.catalog
    }

    /// A group that runs here.
    pub fn group_by_id(&self, id: GroupId) -> Option<Arc<Group<P, T>>> {
        if id == CATALOG { Some(self.0.catalog.clone()) } else { lock(&self.0.groups).get(&id).cloned() }
    }

    fn may_vote(&self) -> bool {
        *lock(&self.0.may_vote)
    }

    fn may_vote_in(&self, group: GroupId) -> bool {
        self.may_vote() || votes(self.repair().as_ref(), &lock(&self.0.settled), group)
    }

    /// The repair that is under way.
    pub fn repair(&self) -> Option<repair::Repair> {
        lock(&self.0.repair).clone()
    }

    fn is_stopping(&self) -> bool {
        *lock(&self.0.stopping)
    }

    /// Opens and closes groups as the catalog changes. Tells when it has tried to open each of them once.
    async fn follow_catalog(self, tried: oneshot::Sender<()>) {
        self.reconcile().await;
        // Nobody waits any more: it took long.
        tried.send(()).ok();
        let mut swept = self.sweep().await;
        while !self.is_stopping() {
            let changed = self.0.view.changed.notified();
            if swept && lock(&self.0.failures).is_empty() {
                changed.await;
            } else {
                P::Runtime::select2(changed, P::Runtime::sleep(REOPEN_PAUSE)).await;
            }
            self.reconcile().await;
            swept = self.sweep().await;
        }
    }

    async fn reconcile(&self) {
        let catalog = self.0.view.get();
        self.heed_priorities();
        let here = catalog.groups.iter().filter(|(_, entry)| entry.hosts.contains(&self.id()));
        let wanted: BTreeMap<GroupId, (&String, &GroupEntry)> =
            here.map(|(name, entry)| (entry.id, (name, entry))).collect();
        // While the node repairs itself the catalog here may be of a time before a group came, and this the only node that has it.
        if self.repair().is_none() {
            let gone: Vec<_> = lock(&self.0.groups).keys().filter(|id| !wanted.contains_key(id)).copied().collect();
            for id in gone {
                self.close_group(id).await;
            }
        }
        for (id, (name, entry)) in wanted {
            if self.is_stopping() {
                return;
            }
            if lock(&self.0.groups).contains_key(&id) {
                continue;
            }
            match self.open_group(name, entry).await {
                Ok(group) => {
                    lock(&self.0.groups).insert(id, group.clone());
                    if self.is_stopping() {
                        return group.shutdown().await;
                    }
                    self.ask_whom_to_follow(&group, &entry.hosts);
                    self.open_gateway(name, entry, &group);
                    lock(&self.0.failures).remove(&id);
                    // It may have been opened while the node came to vote.
                    if self.may_vote_in(id)
                        && let Err(error) = group.begin_voting().await
                    {
                        tracing::error!(group = name, %error, "the group cannot begin to vote");
                    }
                }
                Err(error) => {
                    if let Some(module) = Lacking::of(&error) {
                        lock(&self.0.lacking).insert(id, module);
                    }
                    let text = error.to_string();
                    let now = <P::Runtime as AsyncRuntime>::Instant::now();
                    if let Some(times) = self.0.common.repeats.came(&format!("{id}: {text}"), now) {
                        tracing::error!(group = name, %error, times, "the group cannot be opened here");
                    }
                    lock(&self.0.failures).insert(id, text);
                }
            }
        }
        let hosted =
            |id: GroupId| catalog.groups.values().any(|entry| entry.id == id && entry.hosts.contains(&self.id()));
        lock(&self.0.failures).retain(|id, _| hosted(*id));
        lock(&self.0.lacking).retain(|id, _| hosted(*id));
        self.fetch_modules(&catalog).await;
    }

    async fn open_group(&self, name: &str, entry: &GroupEntry) -> io::Result<Arc<Group<P, T>>> {
        let setup = &self.0.setup;
        let first = entry.modules.first();
        let first = first.map_or((entry.digest, &entry.module), |first| (first.digest, &first.name));
        let factory = WasmFactory {
            first: ModuleRef { digest: first.0, name: first.1.clone() },
            limits: entry.limits.clone(),
            params: entry.params.clone(),
            made: Some(Made {
                group: name.to_string(),
                module: first.1.clone(),
                params: serde_json::from_slice(&entry.params).unwrap_or_default(),
                limits: entry.limits.clone(),
            }),
            context: Context { index: 0, time_ms: entry.created_ms, seed: entry.seed, session: 0 },
            source: Some(Arc::new(self.module_source())),
            loaded: Arc::default(),
        };
        // Before all of its state is read once more.
        let lacking = lock(&self.0.lacking).get(&entry.id).copied();
        if let Some(module) = lacking {
            self.compiled(module).await.map_err(io::Error::other)?;
            lock(&self.0.lacking).remove(&entry.id);
        }
        if let Some(base) = entry.base {
            self.begin_from(base, entry, factory.made(first.1)).await?;
        }
        // Nothing that was promised in a group in which it has settled was given up.
        let repair = self.repair().filter(|_| !lock(&self.0.settled).votes(entry.id));
        Self::renew_promise(setup, repair.as_ref(), entry.id, &entry.hosts, Duration::ZERO).await?;
        let may_vote = self.may_vote_in(entry.id);
        let group = Group::open(GroupOptions {
            id: entry.id,
            name: name.to_string(),
            node: setup.id,
            // Not the node's: a replica that is opened again finds in the log what the one before proposed.
            incarnation: random_u64(&setup.platform),
            seed: entry.seed,
            members: entry.members.clone(),
            from_file: entry.base.is_some(),
            may_vote,
            stands_first: self.stands_first(entry),
            factory: Arc::new(factory),
            log: setup.log.group(entry.id),
            disk: setup.disk.clone(),
            directory: group_directory(&setup.data_dir, entry.id),
            snapshots_kept: setup.settings.snapshots_kept,
            events_kept: setup.settings.events_kept,
            timing: setup.settings.timing,
            platform: setup.platform.clone(),
            transport: setup.transport.clone(),
            common: self.0.common.clone(),
        });
        match group.await {
            Err(error) if Unjoined::is(&error) && setup.settings.repair_from_peers => {
                // It is opened again as a group that could not be opened is.
                Err(self.give_up_group(entry.id, &error).await)
            }
            opened => opened,
        }
    }

    /// Of a new group's members, the catalog's leader is the first to see it created, and known to be well. Where it is
    /// none of them, one is as good as the other.
    fn stands_first(&self, entry: &GroupEntry) -> bool {
        match self.0.catalog.leader().filter(|leader| entry.hosts.contains(leader)) {
            Some(leader) => leader == self.id(),
            None => entry.hosts.first() == Some(&self.id()),
        }
    }

    async fn close_group(&self, id: GroupId) {
        let Some(group) = lock(&self.0.groups).remove(&id) else { return };
        self.close_gateway(id);
        group.shutdown().await;
        tracing::info!(group = group.name(), "the group does not run here any more");
    }

    /// Removes the files of groups that were removed, or taken from this node, be it while it was away. Whether that is done.
    ///
    /// Only when the catalog here has caught up: after a start it may be of a time before a group came, and a group that was
    /// taken from this node may have been given back since. What is removed was closed before that was asked, so no
    /// replica here has promised anything since.
    async fn sweep(&self) -> bool {
        if self.repair().is_some() || self.left_over().is_empty() {
            return true;
        }
        let asked = P::Runtime::timeout(SWEEP_PATIENCE, self.0.catalog.wait_read_index(false));
        if !matches!(asked.await, Ok(Ok(()))) {
            return false;
        }
        for id in self.left_over() {
            self.remove_files(id).await;
        }
        true
    }

    /// The groups of which there are files, though the catalog, as applied here, does not place them here: ids below its next
    /// one, since those from there on came later.
    fn left_over(&self) -> BTreeSet<GroupId> {
        let catalog = self.0.view.get();
        let names = self.0.setup.disk.list(&self.0.setup.data_dir.join("groups")).unwrap_or_default();
        let groups = lock(&self.0.groups);
        let placed =
            |id: GroupId| catalog.groups.values().any(|entry| entry.id == id && entry.hosts.contains(&self.id()));
        let mut ids: BTreeSet<GroupId> =
            names.iter().filter_map(|name| GroupId::from_str_radix(name, 16).ok()).collect();
        // What a removal that was cut short left.
        ids.extend(self.0.setup.log.groups());
        ids.retain(|id| *id != CATALOG && *id < catalog.next_group && !groups.contains_key(id) && !placed(*id));
        ids
    }

    /// Removes files that nobody needs, now and then.
    async fn tidy(self) {
        let mut stored = modules::Stored::<P>::default();
        while !self.is_stopping() {
            self.tidy_copies().await;
            self.tidy_modules(&mut stored).await;
            // In short steps: a node that stops is not held for long.
            for _ in 0..TIDY_PAUSE.as_secs() {
                if self.is_stopping() {
                    return;
                }
                P::Runtime::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn remove_files(&self, id: GroupId) {
        let setup = &self.0.setup;
        let directory = group_directory(&setup.data_dir, id);
        // The log last: it has the vote. Of a replica that was taken from this node and is given back later, a snapshot without it
        // would name members of long ago, this node among them, and let it vote as if it had promised nothing.
        let removed = match SnapshotStore::remove(&*setup.disk, &directory) {
            Ok(()) => setup.log.remove_group::<P::Runtime>(id).await.map_err(io::Error::from),
            Err(error) => {
                if matches!(error, SnapshotError::Sync { .. }) {
                    setup.platform.die(&error.to_string());
                }
                Err(error.into())
            }
        };
        if let Err(error) = removed {
            tracing::warn!(group = id, %error, "the files of a removed group are still there");
        }
    }

    /// Why the node is not ready, one sentence each; nothing when it is.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(why) = self.removal() {
            reasons.push(why);
        } else if let Some(repair) = self.repair() {
            reasons.push(format!(
                "the node does not vote until it has from its peers what was damaged here: {}",
                repair.damage
            ));
        } else if !self.may_vote() && self.may_vote_in(CATALOG) {
            reasons.extend(self.unsettled_groups());
        } else if !self.may_vote() {
            reasons.push("the node began with an empty directory and does not vote until it has caught up".to_string());
        }
        let mut check = |group: &Group<P, T>| {
            let standing = group.standing();
            if standing.state.starts_with("stopped") {
                reasons.push(format!("group {} is {}", group.name(), standing.state));
            } else if standing.leader.is_none() {
                reasons.push(format!("group {} has no leader", group.name()));
            } else if standing.applied < standing.commit {
                reasons.push(format!("group {} has applied {} of {}", group.name(), standing.applied, standing.commit));
            }
        };
        check(&self.0.catalog);
        let groups: Vec<_> = lock(&self.0.groups).values().cloned().collect();
        groups.iter().for_each(|group| check(group));
        let catalog = self.0.view.get();
        let failures = lock(&self.0.failures);
        for (name, entry) in catalog.groups.iter().filter(|(_, entry)| entry.hosts.contains(&self.id())) {
            if !groups.iter().any(|group| group.id() == entry.id) {
                let why = failures.get(&entry.id).map_or("it is being opened", String::as_str);
                reasons.push(format!("group {name} does not run here: {why}"));
            }
        }
        reasons
    }

    fn all_groups(&self) -> Vec<Arc<Group<P, T>>> {
        let mut groups: Vec<_> = lock(&self.0.groups).values().cloned().collect();
        groups.push(self.0.catalog.clone());
        groups
    }

    /// Hands over the leadership of every group that this node leads. It goes on serving as a follower.
    pub async fn hand_over(&self) {
        futures_util::future::join_all(self.all_groups().iter().map(|group| group.hand_over())).await;
    }

    /// Hands leadership over, stops every group, syncs the log.
    pub async fn shutdown(&self) {
        *lock(&self.0.stopping) = true;
        self.0.view.changed.notify_one();
        self.close_gateways();
        self.hand_over().await;
        // Consensus that waits for its vote to be written, and the log for disk space, would never hear that it is to stop.
        self.0.setup.log.wait_no_more();
        for group in self.all_groups() {
            group.shutdown().await;
        }
    }

    async fn answer(&self, from: NodeId, request: PeerRequest<P::Runtime>) -> Result<PeerResponse<P::Runtime>, String> {
        let id = match &request {
            PeerRequest::Append(id, _)
            | PeerRequest::Vote(id, _)
            | PeerRequest::PreVote(id, _)
            | PeerRequest::TransferLeader(id, _)
            | PeerRequest::Propose { group: id, .. }
            | PeerRequest::ReadIndex { group: id, .. }
            | PeerRequest::Touch(id, _)
            | PeerRequest::Lead(id)
            | PeerRequest::Roster(id)
            | PeerRequest::LeadersRoster(id)
            | PeerRequest::ChangeMembers { group: id, .. }
            | PeerRequest::HandOver { group: id, .. }
            | PeerRequest::SnapshotChunk { group: id, .. }
            | PeerRequest::SnapshotEnd { group: id, .. } => *id,
            PeerRequest::SnapshotBegin(offer) => offer.group,
            PeerRequest::ModuleStore { .. } | PeerRequest::ModuleFetch { .. } => {
                return self.answer_module(request).await;
            }
            PeerRequest::Join { node, address } => return self.answer_join(*node, address.clone()).await,
            PeerRequest::Serve { group, call, timeout_ms } => {
                return Ok(PeerResponse::Served(self.serve_call(*group, call.clone(), *timeout_ms).await));
            }
            PeerRequest::Copy(step) => return Ok(PeerResponse::Copied(self.answer_copy(step.clone()).await)),
            PeerRequest::Condition => return Ok(PeerResponse::Condition(self.condition().await)),
            PeerRequest::Catalog => {
                let catalog = self.fresh_catalog().await.map_err(|error| error.to_string())?;
                let bytes = codec::encode(&*catalog).map_err(|error| error.to_string())?;
                return Ok(PeerResponse::Catalog(Bytes::from(bytes)));
            }
            PeerRequest::Fitness(told) => {
                let common = &self.0.common;
                priority::heed(&common.space, &common.priorities, from, *told);
                return Ok(PeerResponse::Fitness(priority::fitness(&common.space, &common.priorities)));
            }
            PeerRequest::Origin => return Ok(PeerResponse::Origin(self.origin().await?)),
            PeerRequest::Listed => return Ok(PeerResponse::Listed(self.listed())),
            PeerRequest::Report => return Ok(PeerResponse::Report(Box::new(self.report().await))),
            PeerRequest::Status => {
                // Index 0 is the membership that every node writes by itself; index 1 is a leader's.
                return Ok(PeerResponse::Status(PeerStatus { formed: self.0.catalog.last_index().await? > 0 }));
            }
        };
        match self.group_by_id(id) {
            Some(group) => group.handle(from, request).await,
            None => Err(format!("group {id} does not run on node {} (yet)", self.id())),
        }
    }
}

impl<P: Platform, T: Transport> Handler for Node<P, T> {
    fn handle(&self, from: NodeId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let node = self.clone();
        Box::pin(async move {
            let request = codec::decode(&request).map_err(|error| error.to_string())?;
            // Who has not shown that it belongs to the cluster may ask to, and which one it is.
            if lane == Lane::Join && !matches!(&request, PeerRequest::Join { .. } | PeerRequest::Origin) {
                return Err("a node that has not joined may only ask to join".to_string());
            }
            let response = node.answer(from, request).await?;
            Ok(Bytes::from(codec::encode(&response).map_err(|error| error.to_string())?))
        })
    }
}

fn group_directory(data_dir: &std::path::Path, id: GroupId) -> PathBuf {
    data_dir.join("groups").join(format!("{id:x}"))
}
