//! DESIGN section 5 on a real machine: lock and check the data directory, open the log, open the node,
//! accept peers. And the way down.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use sha2::Digest;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::ListenSettings;
use super::ModuleHost;
use super::Node;
use super::Settings;
use super::Setup;
use super::founding;
use super::identity;
use super::identity::Identity;
use super::identity::IdentityError;
use super::join::NOT_NOW;
use super::recovery;
use super::removal;
use super::repair;
use super::repair::NotRepaired;
use super::settle;
use crate::codec;
use crate::config::ServeConfig;
use crate::disk::Disk;
use crate::disk::RealDisk;
use crate::group::Timing;

use crate::log::LogError;
use crate::log::LogOptions;
use crate::log::NodeLog;
use crate::log::RecoveryReport;
use crate::log::ThreadDriver;
use crate::module::DirCache;
use crate::module::Limits;
use crate::net;
use crate::offline::recover::RecoverError;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::tcp;
use crate::peer::tcp::StrangerError;
use crate::peer::tcp::TcpTransport;
use crate::peer::transfer::TransferSettings;
use crate::platform::Platform;
use crate::platform::RealPlatform;
use crate::platform::random_u64;
use crate::types::NodeId;

/// The node of production.
pub type RealNode = Node<RealPlatform, TcpTransport>;

/// A node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("data directory {}: {source}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Compiled modules cannot be kept where they are to be.
    #[error("--code-cache {}: {source}", path.display())]
    CodeCache {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is another node's, another cluster's, or of another format.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another process uses the directory.
    #[error("data directory {} is used by another process, {holder}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process's id, as far as it is known.
        holder: String,
    },
    /// The peer address cannot be listened on.
    #[error("cannot listen on --peer {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It was being made a cluster of its own, and that cannot be finished.
    #[error("its recovery cannot be finished: {0}")]
    Recovery(#[from] RecoverError),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log is damaged, and the other nodes cannot replace it.
    #[error("{damage}. It is not repaired from the other nodes: {why}")]
    NotRepaired {
        /// What is damaged.
        damage: LogError,
        /// Why not.
        why: NotRepaired,
    },
    /// Modules cannot be compiled on this machine.
    #[error("{0}")]
    Modules(String),
    /// The cluster that it was to join says no.
    #[error("cannot join: {0}")]
    Refused(String),
    /// No node of the cluster that it was to join let it in for a while.
    #[error("cannot join yet: {0}")]
    NotJoined(String),
    /// The catalog cannot be opened.
    #[error("{0}")]
    Node(#[source] io::Error),
}

impl StartError {
    /// What to do about it, one sentence.
    pub fn remedy(&self) -> String {
        match self {
            Self::DataDir { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free space on its file system; nothing was lost".to_string()
            }
            // Of what is read there, a small file that is not what was written.
            Self::DataDir { path, source } if source.kind() == io::ErrorKind::InvalidData => {
                identity::start_empty(path)
            }
            Self::DataDir { path, .. } => {
                format!("see that {} exists and can be written, or give another --data-dir", path.display())
            }
            Self::CodeCache { path, .. } => {
                format!("see that {} can be written, or leave --code-cache out", path.display())
            }
            Self::Identity(error) => error.remedy(),
            Self::Locked { .. } => "stop that process, or give another --data-dir".to_string(),
            Self::Listen { .. } => "stop what listens there, or give another --peer".to_string(),
            Self::NotRepaired { why, .. } => why.remedy().to_string(),
            Self::Recovery(error) => error.remedy(),
            Self::Log(error) => error.remedy().to_string(),
            Self::Refused(_) => "the message says what is in the way".to_string(),
            Self::NotJoined(_) => {
                "see that --join names nodes that run and have a leader, by their --peer addresses, and start again"
                    .to_string()
            }
            Self::Modules(_) => "Linux on x86-64 or aarch64 is needed".to_string(),
            Self::Node(_) => "see the message; docs/operations.md says what can be done".to_string(),
        }
    }
}

/// A started node.
pub struct Running {
    /// The node.
    pub node: RealNode,
    peers: JoinHandle<()>,
    writer: ThreadDriver,
    /// Held as long as the node runs.
    lock: File,
}

/// What the node is in its cluster.
pub(super) struct Place {
    pub(super) cluster: [u8; 16],
    /// Those that begin the cluster; empty when it came later.
    pub(super) founders: BTreeMap<NodeId, String>,
    /// The nodes it knows.
    pub(super) known: BTreeMap<NodeId, String>,
    /// When it has joined just now: the index of the membership that names it.
    pub(super) joined_index: u64,
}

/// The cluster's id: of the initial cluster's text, so that nodes started alike agree without talking.
pub(super) fn cluster_id(config: &ServeConfig) -> [u8; 16] {
    let mut digest = Sha256::new();
    digest.update(b"statehouse cluster 1\n");
    digest.update(config.cluster_name.as_bytes());
    for (id, address) in &config.initial_cluster {
        digest.update(format!("\n{id}={address}"));
    }
    let digest: [u8; 32] = digest.finalize().into();
    digest.first_chunk().copied().unwrap_or_default()
}

/// Takes the directory for this process alone. The file says which process holds it: who wants to end it need
/// not search.
pub(crate) fn lock(data_dir: &Path) -> Result<File, StartError> {
    let fail = |source| StartError::DataDir { path: data_dir.to_owned(), source };
    // Its name is durable before anything in it is.
    RealDisk.create_dir_all(data_dir).map_err(fail)?;
    let path = data_dir.join("LOCK");
    let mut file = File::options().create(true).write(true).truncate(false).open(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            return Err(StartError::Locked { path: data_dir.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(fail(source)),
    }
    // A full disk is no reason not to start.
    let _for_people = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Who still does not let a node in is told of again so often.
pub(super) const JOIN_REMINDER: Duration = Duration::from_secs(30);
/// One attempt at one address.
pub(super) const JOIN_ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
const JOIN_PAUSE: Duration = Duration::from_millis(250);

/// A cluster that let this node in, its nodes, and the index of the membership that names this one.
pub(super) type Joined = ([u8; 16], BTreeMap<NodeId, String>, u64);

type Runtime = <RealPlatform as Platform>::Runtime;

/// Asks one thing of the node at `address`, without a cluster's word for this one. The inner error passes.
pub(super) async fn ask_as_stranger(
    config: &ServeConfig,
    address: &str,
    own: Option<[u8; 16]>,
    request: &PeerRequest<Runtime>,
    patience: Duration,
) -> Result<Result<PeerResponse<Runtime>, String>, StartError> {
    let broken = |error: codec::CodecError| StartError::Refused(error.to_string());
    let request = Bytes::from(codec::encode(request).map_err(broken)?);
    match tcp::ask_as_stranger(address, config.node_id, own, request, patience).await {
        Ok(answer) => Ok(Ok(codec::decode(&answer).map_err(broken)?)),
        Err(StrangerError::Refused(words)) if !words.contains(NOT_NOW) => Err(StartError::Refused(words)),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// Asks the node at `address` to be let in.
pub(super) async fn ask_to_join(
    config: &ServeConfig,
    address: &str,
    own: Option<[u8; 16]>,
    own_address: String,
) -> Result<Result<Joined, String>, StartError> {
    let request = PeerRequest::Join { node: config.node_id, address: own_address };
    match ask_as_stranger(config, address, own, &request, JOIN_ANSWER_TIME_MAX).await? {
        Ok(PeerResponse::Joined { cluster, members, index }) => Ok(Ok((cluster, members, index))),
        Ok(other) => Err(StartError::Refused(format!("{address} answered {other:?}"))),
        Err(reason) => Ok(Err(reason)),
    }
}

/// Asks the nodes at --join, one after the other, to be let in.
async fn join(config: &ServeConfig, own: Option<[u8; 16]>) -> Result<Joined, StartError> {
    type Now = <Runtime as AsyncRuntime>::Instant;
    let mut failed = String::new();
    let tried = async {
        // What was said of each.
        let mut said: BTreeMap<&str, String> = BTreeMap::new();
        let mut reminded = Now::now();
        loop {
            if reminded.elapsed() >= JOIN_REMINDER {
                reminded = Now::now();
                said.clear();
            }
            for address in &config.join {
                let reason = match ask_to_join(config, address, own, config.peer_address()).await? {
                    Ok(joined) => return Ok(joined),
                    Err(reason) => reason,
                };
                if said.insert(address, reason.clone()).as_ref() != Some(&reason) {
                    tracing::warn!(%reason, "cannot join yet");
                }
                failed = reason;
            }
            pause(JOIN_PAUSE).await;
        }
    };
    let patience = if config.join_seconds == 0 { Duration::MAX } else { Duration::from_secs(config.join_seconds) };
    let tried = tokio::time::timeout(patience, tried).await;
    tried.unwrap_or(Err(StartError::NotJoined(failed)))
}

#[expect(clippy::disallowed_methods, reason = "production's own start, on tokio")]
pub(super) async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn find_place(config: &ServeConfig, disk: &dyn Disk, listener: &Arc<TcpListener>) -> Result<Place, StartError> {
    let in_data_dir = |source| StartError::DataDir { path: config.data_dir.clone(), source };
    let found = identity::read(disk, &config.data_dir).map_err(in_data_dir)?;
    if removal::is_marked(disk, &config.data_dir).map_err(in_data_dir)? {
        let path = config.data_dir.clone();
        return Err(IdentityError::Removed { path, node: config.node_id }.into());
    }
    // An observer comes to those that vote, and never begins a cluster.
    if let Some(followed) = config.followed.as_ref().filter(|_| config.join.is_empty()) {
        return founding::find_place(config, followed, disk, found, listener).await;
    }
    let joined_before = found.as_ref().is_some_and(|found| found.joined);
    if config.join.is_empty() && !joined_before {
        let cluster = settle_identity(config, disk, found)?;
        let mut founders = config.initial_cluster.clone();
        if founders.is_empty() {
            founders = BTreeMap::from([(config.node_id, config.peer_address())]);
        }
        return Ok(Place { cluster, known: founders.clone(), founders, joined_index: 0 });
    }
    let own = match &found {
        Some(found) => Some(identity::check(found, &config.data_dir, config.node_id, None)?),
        None => {
            see_that_it_is_new(disk, &config.data_dir)?;
            None
        }
    };
    // Once it has caught up it is a node like any other: the membership in its log says who the others are.
    let settled = own.is_some() && !settle::is_marked(disk, &config.data_dir).map_err(in_data_dir)?;
    if let (Some(cluster), true) = (own, settled || config.join.is_empty()) {
        greet(&config.join, config.node_id, cluster, found.as_ref()).await?;
        return Ok(Place { cluster, founders: BTreeMap::new(), known: BTreeMap::new(), joined_index: 0 });
    }
    let joined = join(config, own).await?;
    arrive(config, disk, found.as_ref(), joined)
}

/// Greets the nodes at these addresses. Not to depend on the others for a restart: only a "no" counts.
pub(super) async fn greet(
    addresses: &[String],
    node: NodeId,
    cluster: [u8; 16],
    found: Option<&Identity>,
) -> Result<(), StartError> {
    let greeted = addresses.iter().map(|address| tcp::greet_as_stranger(address, node, cluster));
    let recovered = found.is_some_and(|found| found.recovered);
    for answer in futures_util::future::join_all(greeted).await {
        match answer {
            // It began its own cluster since it was of theirs.
            Err(StrangerError::Refused(words)) if recovered => {
                tracing::warn!(
                    words,
                    "a node that this one was told of is not of this cluster, which began by a recovery"
                );
            }
            Err(StrangerError::Refused(words)) => return Err(StartError::Refused(words)),
            _ => {}
        }
    }
    Ok(())
}

/// The node was let in; a directory without an identity gets it now.
pub(super) fn arrive(
    config: &ServeConfig,
    disk: &dyn Disk,
    found: Option<&Identity>,
    (cluster, known, joined_index): Joined,
) -> Result<Place, StartError> {
    let in_data_dir = |source| StartError::DataDir { path: config.data_dir.clone(), source };
    if let Some(found) = found {
        identity::check(found, &config.data_dir, config.node_id, Some(cluster))?;
    } else {
        settle::mark(disk, &config.data_dir).map_err(in_data_dir)?;
        write_identity(config, disk, cluster, true, BTreeMap::new())?;
    }
    tracing::info!(cluster = hex::encode(cluster), nodes = ?known.keys(), "this node has joined, as a learner");
    Ok(Place { cluster, founders: BTreeMap::new(), known, joined_index })
}

pub(super) fn write_identity(
    config: &ServeConfig,
    disk: &dyn Disk,
    cluster: [u8; 16],
    joined: bool,
    founders: BTreeMap<NodeId, String>,
) -> Result<(), StartError> {
    let cluster = hex::encode(cluster);
    let new =
        Identity { format: identity::FORMAT, node: config.node_id, cluster, joined, founders, ..Identity::default() };
    let written = identity::write(disk, &config.data_dir, &new);
    written.map_err(|source| StartError::DataDir { path: config.data_dir.clone(), source })
}

/// Refuses a directory without identity that has something of a node in it: a new node would take a group's old snapshots for its own.
pub(super) fn see_that_it_is_new(disk: &dyn Disk, data_dir: &Path) -> Result<(), StartError> {
    let fail = |source| StartError::DataDir { path: data_dir.to_owned(), source };
    let has = |what: &str| {
        let dir = data_dir.join(what);
        // These may have been made for a node and never used; a log has its first segment as soon as it is there.
        Ok(disk.exists(&dir)? && (what == "log" || !disk.list(&dir)?.is_empty()))
    };
    for what in ["log", "groups", "modules"] {
        if has(what).map_err(fail)? {
            return Err(IdentityError::Missing { path: data_dir.to_owned(), what }.into());
        }
    }
    Ok(())
}

fn settle_identity(config: &ServeConfig, disk: &dyn Disk, found: Option<Identity>) -> Result<[u8; 16], StartError> {
    let in_data_dir = |source| StartError::DataDir { path: config.data_dir.clone(), source };
    let told = (!config.initial_cluster.is_empty()).then(|| cluster_id(config));
    if let Some(found) = found {
        return Ok(identity::check(&found, &config.data_dir, config.node_id, told)?);
    }
    see_that_it_is_new(disk, &config.data_dir)?;
    // A node of its own draws its cluster: two such clusters never mix.
    let cluster = told.unwrap_or_else(|| {
        let mut drawn = [0; 16];
        RealPlatform.fill_random(&mut drawn);
        drawn
    });
    if config.initial_cluster.len() > 1 {
        settle::mark(disk, &config.data_dir).map_err(in_data_dir)?;
    }
    write_identity(config, disk, cluster, false, BTreeMap::new())?;
    Ok(cluster)
}

/// The number that names this process to other nodes.
fn life() -> u64 {
    static LIFE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *LIFE.get_or_init(|| crate::platform::random_u64(&RealPlatform))
}

/// Sets a damaged log aside, if the other nodes can do without this one: see [`repair`].
async fn give_up_log(
    config: &ServeConfig,
    disk: &Arc<dyn Disk>,
    cluster: [u8; 16],
    known: &BTreeMap<NodeId, String>,
    damage: LogError,
) -> Result<(), StartError> {
    let data_dir = &config.data_dir;
    tracing::error!(%damage, "the log is damaged; the other nodes are asked whether they can do without it");
    let peers = match repair::look(disk.clone(), data_dir, config.node_id, known) {
        Ok(peers) => peers,
        Err(why) => return Err(StartError::NotRepaired { damage, why: NotRepaired::NotNow(why) }),
    };
    let transport = TcpTransport::new(config.node_id, cluster, life(), peers.clone());
    let others = match repair::is_safe::<Runtime, _>(&transport, config.node_id, peers).await {
        Ok(others) => others,
        Err(why) => return Err(StartError::NotRepaired { damage, why }),
    };
    let set_aside = repair::set_aside(&**disk, data_dir, &damage, others, RealPlatform.wall_ms());
    let repair = set_aside.map_err(|source| StartError::DataDir { path: data_dir.clone(), source })?;
    tracing::warn!(set_aside = ?repair.set_aside, "the damaged log is set aside, and nothing of it was removed");
    Ok(())
}

fn settings(config: &ServeConfig) -> Settings {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Settings {
        timing: Timing {
            heartbeat_ms: config.heartbeat_ms,
            election_timeout_ms: config.election_timeout_ms,
            snapshot_entries: config.snapshot_entries,
            snapshot_bytes: config.snapshot_bytes,
            snapshot_interval_ms: config.snapshot_interval_s.saturating_mul(1000),
            log_entries_kept: (config.snapshot_entries / 10).max(64),
            log_bytes_kept: config.snapshot_bytes / 4,
            log_bytes_held: config.follower_log_bytes,
        },
        snapshots_kept: size(config.snapshots_kept),
        events_kept: size(config.events_kept),
        command_bytes_max: config.command_bytes_max,
        limits: Limits {
            memory_bytes_max: config.group_memory_bytes_max,
            wasm_bytes_max: config.module_bytes_max,
            ..Limits::default()
        },
        request_timeout: Duration::from_millis(config.request_timeout_ms),
        session_timeout_min_ms: config.session_timeout_min_ms,
        session_timeout_max_ms: config.session_timeout_max_ms,
        repair_from_peers: config.repair_from_peers,
        listen: ListenSettings {
            addresses: config.listen_addresses(),
            params: config.listen_params.clone(),
            port_offset: config.listen_port_offset,
            insecure: config.insecure,
            connections_max: size(config.client_connections_max),
            connections_per_address_max: size(config.client_connections_per_address_max),
            queued_bytes_max: size(config.client_queue_bytes_max),
            adapters_change_nodes: config.adapters_change_nodes,
            recovered_by: config.recovered_by.clone(),
            idle: (config.client_idle_ms > 0).then(|| Duration::from_millis(config.client_idle_ms)),
        },
        transfers: TransferSettings {
            bytes_per_second: config.transfer_bytes_per_second,
            at_once: size(config.transfers_max),
            ..TransferSettings::default()
        },
        election_priority: config.election_priority,
        never_lead: config.never_lead,
        disk_reserve_bytes: config.disk_reserve_bytes(),
    }
}

/// Starts a node; it serves its peers when this returns.
pub async fn start(config: &ServeConfig) -> Result<Running, StartError> {
    let data_dir = &config.data_dir;
    let in_data_dir = |source| StartError::DataDir { path: data_dir.clone(), source };
    let held = lock(data_dir)?;
    recovery::resume(&held, data_dir)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    // Bound before anything is opened, so that a port in use is said at once; accepted from last.
    let listener = net::listen_at(&config.peer.to_string()).await;
    let listener = Arc::new(listener.map_err(|source| StartError::Listen { address: config.peer, source })?);
    let Place { cluster, founders, known, joined_index } = find_place(config, &*disk, &listener).await?;

    let platform = RealPlatform;
    let options = LogOptions {
        segment_bytes: config.log_segment_bytes,
        cache_bytes: usize::try_from(config.log_cache_bytes).unwrap_or(usize::MAX),
        salt: random_u64(&platform),
        ..LogOptions::default()
    };
    let fatal = Arc::new(move |error: &LogError| platform.die(&error.to_string()));
    let open = || NodeLog::open(disk.clone(), &data_dir.join("log"), options.clone(), fatal.clone());
    let identity = identity::read(&*disk, data_dir).map_err(in_data_dir)?;
    let opened = match repair::lost_log(&*disk, data_dir, identity.as_ref()).map_err(in_data_dir)? {
        Some(lost) => Err(lost),
        None => open(),
    };
    let (log, report) = match opened {
        Err(damage) if damage.is_damage() && config.repair_from_peers => {
            give_up_log(config, &disk, cluster, &known, damage).await?;
            open()?
        }
        opened => opened?,
    };
    identity::note_log(&*disk, data_dir).map_err(in_data_dir)?;
    let RecoveryReport { segments, batches, records, groups, entries, closed, cut } = &report;
    let cut = cut.as_ref().map(|cut| format!("{} bytes at {} of {}", cut.bytes, cut.offset, cut.path.display()));
    tracing::info!(segments, batches, records, groups, entries, closed_in_order = closed, cut, "the log is open");
    let writer = log.start_thread().map_err(in_data_dir)?;

    let directory = config.code_cache.clone().unwrap_or_else(|| data_dir.join("cache"));
    let cache = DirCache::open(&directory).map_err(|source| StartError::CodeCache { path: directory, source })?;
    let cache = if config.code_cache.is_some() { cache } else { cache.of_one_node() };
    let modules = ModuleHost::new(Some(Box::new(cache))).map_err(|error| StartError::Modules(error.to_string()))?;
    let transport = TcpTransport::new(config.node_id, cluster, life(), known.clone());
    let node = Node::open(Setup {
        id: config.node_id,
        cluster,
        members: founders,
        known,
        joined_index,
        platform,
        transport,
        disk,
        data_dir: data_dir.clone(),
        log: log.clone(),
        modules: Arc::new(modules),
        settings: settings(config),
    });
    let node = node.await.map_err(StartError::Node)?;
    if let Some(followed) = &config.followed {
        node.follow(&followed.path.display().to_string(), followed.list.clone());
    }
    #[expect(clippy::disallowed_methods, reason = "production's own start, on tokio")]
    let peers = tokio::spawn(tcp::serve(listener, config.node_id, Some(cluster), Arc::new(node.clone())));
    Ok(Running { node, peers, writer, lock: held })
}

impl Running {
    /// Hands leadership over, stops the groups, syncs what is written, lets the peers go. The directory is free once its lock, which
    /// is given back, is dropped.
    pub async fn shutdown(self) -> File {
        self.node.shutdown().await;
        self.peers.abort();
        self.writer.close();
        self.lock
    }
}
