//! Nodes that are started, crashed and started again.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::BoxFuture;
use openraft::async_runtime::AsyncRuntime;

use crate::disk::Disk;
use crate::disk::DiskFile;
use crate::disk::sim::SimDisk;
use crate::log::LogError;
use crate::log::LogOptions;
use crate::log::NodeLog;
use crate::node::ModuleHost;
use crate::node::Node;
use crate::node::Settings;
use crate::node::Setup;
use crate::node::identity;
use crate::node::identity::Identity;
use crate::node::removal;
use crate::node::repair;
use crate::node::settle;
use crate::peer::Handler;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::types::NodeId;

use super::clients::SimClient;
use super::clients::SimNet;
use super::decay::decay;
use super::life::Life;
use super::life::lock;
use super::network::SimNetwork;
use super::network::SimTransport;
use super::network::address_of;
use super::platform::SimPlatform;
use super::platform::WeakPlatform;
use super::random::SimRandom;
use super::runtime::LifeRuntime;

/// A node of the simulated cluster.
pub type SimNode = Node<SimPlatform, SimTransport>;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// How many nodes begin the cluster: 1 to `nodes`.
    pub nodes: u64,
    /// How many more there may be, numbered on: they are out until they are let in, and join then.
    pub joiners: u64,
    /// Everything random comes from it.
    pub seed: u64,
    /// What an operator may set.
    pub settings: Settings,
    /// How the log behaves; its salt is drawn.
    pub log: LogOptions,
    /// A sync of the log takes between these, microseconds.
    pub sync_micros: (u64, u64),
    /// A node's wall clock is at most so far ahead of the true time, milliseconds.
    pub skew_max_ms: u64,
    /// In how many of 1000 guest jobs other tasks get to run first.
    pub slow_jobs_per_mille: u64,
    /// Syncs do nothing and say that all is well: to see whether the checks of a scenario can fail.
    pub syncs_lie: bool,
}

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The power fails: unsynced writes are kept, lost or torn.
    Power,
    /// The process is killed: what it wrote stays with the operating system.
    Process,
}

/// Why a call at a node has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The node is down; nothing was done.
    Down,
    /// The node crashed during the call.
    Crashed,
}

struct Slot {
    disk: SimDisk,
    ahead_ms: u64,
    life: Option<Arc<Life>>,
    node: Option<SimNode>,
    /// The node as the network knows it.
    handler: Option<Arc<dyn Handler>>,
    net: Option<SimNet>,
    log: Option<NodeLog>,
    /// It comes to a cluster that is there.
    joins: bool,
    /// It does not belong to the cluster, and does not start.
    out: bool,
}

struct Inner {
    options: SimOptions,
    members: BTreeMap<NodeId, String>,
    network: SimNetwork,
    modules: Arc<ModuleHost>,
    random: Mutex<SimRandom>,
    slots: Mutex<BTreeMap<NodeId, Slot>>,
    lives: Mutex<Vec<Arc<Life>>>,
    platforms: Remains,
    repairs: Mutex<Vec<NodeId>>,
}

/// How the error of a start begins when the log is damaged and the other nodes cannot do without the node just now.
pub const NOT_REPAIRED: &str = "it is not repaired from the other nodes";

/// What must be gone once a cluster and its runtime are: thousands of runs in one process would fill the memory
/// with the guests of ended ones.
#[derive(Clone, Debug, Default)]
pub struct Remains(Arc<Mutex<Vec<WeakPlatform>>>);

impl Remains {
    /// A sentence for each life of which something is still held.
    pub fn held(&self) -> Vec<String> {
        let lives = lock(&self.0).iter().filter_map(WeakPlatform::life).collect::<Vec<_>>();
        lives.iter().map(|life| format!("{life:?} is still held after its run")).collect()
    }
}

/// The cluster; clones are the same one. To be used inside [`LifeRuntime`]'s `block_on`.
#[derive(Clone)]
pub struct SimCluster(Arc<Inner>);

fn data_dir() -> PathBuf {
    PathBuf::from("/data")
}

/// Where a node's log lies on its disk.
fn log_dir() -> PathBuf {
    data_dir().join("log")
}

impl SimCluster {
    /// A cluster none of whose nodes has started yet. `modules` can be shared by many clusters: it compiles
    /// each module once.
    pub fn new(options: SimOptions, modules: Arc<ModuleHost>) -> Self {
        let mut random = SimRandom::new(options.seed);
        let members: BTreeMap<NodeId, String> = (1..=options.nodes).map(|id| (id, address_of(id))).collect();
        let slots = (1..=options.nodes + options.joiners).map(|id| {
            let ahead_ms = random.between(0, options.skew_max_ms);
            let later = id > options.nodes;
            let slot = Slot {
                disk: SimDisk::new(),
                ahead_ms,
                life: None,
                node: None,
                handler: None,
                net: None,
                log: None,
                joins: later,
                out: later,
            };
            (id, slot)
        });
        let slots = slots.collect();
        let network = SimNetwork::new(random.fork(1));
        let inner = Inner {
            options,
            members,
            network,
            modules,
            random: Mutex::new(random.fork(2)),
            slots: Mutex::new(slots),
            lives: Mutex::default(),
            platforms: Remains::default(),
            repairs: Mutex::default(),
        };
        Self(Arc::new(inner))
    }

    /// The network.
    pub fn network(&self) -> &SimNetwork {
        &self.0.network
    }

    /// The ids of all nodes that belong to the cluster, or are about to.
    pub fn ids(&self) -> Vec<NodeId> {
        lock(&self.0.slots).iter().filter(|(_, slot)| !slot.out).map(|(id, _)| *id).collect()
    }

    /// The ids of those that do not.
    pub fn out(&self) -> Vec<NodeId> {
        lock(&self.0.slots).iter().filter(|(_, slot)| slot.out).map(|(id, _)| *id).collect()
    }

    /// From its next start on the node joins the cluster.
    pub fn let_in(&self, id: NodeId) {
        if let Some(slot) = lock(&self.0.slots).get_mut(&id) {
            slot.out = false;
        }
    }

    /// The node was removed: it ends, and its disk is emptied. It may be let in again.
    pub fn retire(&self, id: NodeId) {
        self.lose_disk(id);
        if let Some(slot) = lock(&self.0.slots).get_mut(&id) {
            (slot.joins, slot.out) = (true, true);
        }
    }

    /// The node's disk.
    pub fn disk(&self, id: NodeId) -> Option<SimDisk> {
        lock(&self.0.slots).get(&id).map(|slot| slot.disk.clone())
    }

    /// The node, if it is up.
    pub fn node(&self, id: NodeId) -> Option<SimNode> {
        let slots = lock(&self.0.slots);
        let slot = slots.get(&id)?;
        slot.life.as_ref().filter(|life| life.is_alive())?;
        slot.node.clone()
    }

    /// Connects to an address that the node listens on for clients; `None` when it is down or does not listen there.
    pub fn connect(&self, id: NodeId, address: &str) -> Option<SimClient> {
        lock(&self.0.slots).get(&id)?.net.clone()?.connect(address)
    }

    /// The node's log, if it is up.
    pub fn log(&self, id: NodeId) -> Option<NodeLog> {
        self.node(id)?;
        lock(&self.0.slots).get(&id)?.log.clone()
    }

    /// The nodes that neither run nor are being started.
    pub fn down(&self) -> Vec<NodeId> {
        let slots = lock(&self.0.slots);
        let down =
            slots.iter().filter(|(_, slot)| !slot.out && !slot.life.as_ref().is_some_and(|life| life.is_alive()));
        down.map(|(id, _)| *id).collect()
    }

    /// What nodes said when they ended themselves, and how often their tasks panicked; nothing in a good run
    /// without disk faults.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        for life in lock(&self.0.lives).iter() {
            if let Some(words) = life.last_words() {
                found.push(format!("node {} ended itself: {words}", life.node));
            }
            if life.panics() > 0 {
                found.push(format!("{} tasks of node {} panicked", life.panics(), life.node));
            }
        }
        found
    }

    /// What is left of the lives that there were so far; to be asked when cluster and runtime were dropped.
    pub fn remains(&self) -> Remains {
        self.0.platforms.clone()
    }

    /// Starts a node that is down, on what its disk holds. `Ok` too when it was crashed meanwhile, or is out. A node that
    /// has yet to join is started when it has.
    pub async fn start(&self, id: NodeId) -> io::Result<()> {
        if self.disk(id).is_some_and(|disk| removal::is_marked(&disk, &data_dir()).unwrap_or(false)) {
            self.retire(id);
        }
        let (life, disk, platform) = {
            let mut slots = lock(&self.0.slots);
            let Some(slot) = slots.get_mut(&id) else { return Err(io::ErrorKind::NotFound.into()) };
            if slot.out || slot.life.as_ref().is_some_and(|life| life.is_alive()) {
                return Ok(());
            }
            // Also after the node ended itself.
            slot.disk.kill_process();
            let mut lives = lock(&self.0.lives);
            let life = Life::new(id, lives.len() as u64 + 1);
            lives.push(life.clone());
            let mut random = lock(&self.0.random);
            let seed = random.draw();
            let random = SimRandom::new(seed);
            let platform = SimPlatform::new(life.clone(), random, slot.ahead_ms, self.0.options.slow_jobs_per_mille);
            lock(&self.0.platforms.0).push(platform.downgrade());
            slot.life = Some(life.clone());
            slot.net = Some(platform.net());
            slot.node = None;
            slot.handler = None;
            (life, slot.disk.clone(), platform)
        };
        self.0.network.unlisten(id);
        let cluster = self.clone();
        let opening = {
            let life = life.clone();
            LifeRuntime::spawn_in(&life.clone(), async move {
                let setup = cluster.set_up(life, disk, platform).await?;
                if let Some(slot) = lock(&cluster.0.slots).get_mut(&id) {
                    slot.log = Some(setup.log.clone());
                }
                open_node(setup).await
            })
        };
        let node = match opening.await {
            // It was crashed while it started.
            None => return Ok(()),
            Some(Err(error)) => {
                life.end();
                return Err(error);
            }
            Some(Ok(node)) => node,
        };
        if life.is_alive() {
            let handler: Arc<dyn Handler> = Arc::new(node.clone());
            self.0.network.listen(life, &handler);
            if let Some(slot) = lock(&self.0.slots).get_mut(&id) {
                slot.node = Some(node);
                slot.handler = Some(handler);
            }
        }
        Ok(())
    }

    async fn set_up(
        &self,
        life: Arc<Life>,
        disk: SimDisk,
        platform: SimPlatform,
    ) -> io::Result<Setup<SimPlatform, SimTransport>> {
        let disk: Arc<dyn Disk> = if self.0.options.syncs_lie { Arc::new(LyingDisk(disk)) } else { Arc::new(disk) };
        let options = &self.0.options;
        disk.create_dir_all(&data_dir())?;
        let (joined, joined_index) = self.find_place(&*disk, &life).await?;
        let log_options = LogOptions { salt: crate::platform::random_u64(&platform), ..options.log.clone() };
        let fatal = {
            let platform = platform.clone();
            Arc::new(move |error: &crate::log::LogError| platform.die(&error.to_string()))
        };
        let open = || NodeLog::open(disk.clone(), &log_dir(), log_options.clone(), fatal.clone());
        let (log, _) = match open() {
            Err(damage) if damage.is_damage() && options.settings.repair_from_peers => {
                self.give_up_log(&disk, &life, platform.wall_ms(), &damage).await?;
                open()?
            }
            opened => opened?,
        };
        let mut random = SimRandom::new(crate::platform::random_u64(&platform));
        let (low, high) = options.sync_micros;
        let latency = move || Duration::from_micros(random.between(low, high));
        drop(<LifeRuntime as openraft::async_runtime::AsyncRuntime>::spawn(log.drive::<LifeRuntime>(latency)));
        Ok(Setup {
            id: life.node,
            cluster: CLUSTER,
            members: if joined { BTreeMap::new() } else { self.0.members.clone() },
            known: self.ids().into_iter().map(|id| (id, address_of(id))).collect(),
            joined_index,
            platform,
            transport: self.0.network.transport(life),
            disk,
            data_dir: data_dir(),
            log,
            modules: self.0.modules.clone(),
            settings: options.settings.clone(),
        })
    }

    /// What `node::start` does in production with a damaged log.
    async fn give_up_log(
        &self,
        disk: &Arc<dyn Disk>,
        life: &Arc<Life>,
        now_ms: u64,
        damage: &LogError,
    ) -> io::Result<()> {
        let transport = self.0.network.transport(life.clone());
        let peers = repair::look(disk.clone(), &data_dir(), life.node, &self.0.members).map_err(io::Error::other)?;
        let others = match repair::is_safe::<LifeRuntime, _>(&transport, life.node, peers).await {
            Ok(others) => others,
            Err(why) => return Err(io::Error::other(format!("{NOT_REPAIRED}: {damage}: {why}"))),
        };
        repair::set_aside(&**disk, &data_dir(), damage, others, now_ms)?;
        lock(&self.0.repairs).push(life.node);
        Ok(())
    }

    /// What a node does before anything else, as `node::start` does it in production: whether it came later, and the index of
    /// the membership that names it if it has joined just now.
    async fn find_place(&self, disk: &dyn Disk, life: &Arc<Life>) -> io::Result<(bool, u64)> {
        let found = identity::read(disk, &data_dir())?;
        let joins = lock(&self.0.slots).get(&life.node).is_some_and(|slot| slot.joins);
        let joined = found.as_ref().map_or(joins, |found| found.joined);
        if let Some(found) = &found {
            identity::check(found, &data_dir(), life.node, Some(CLUSTER)).map_err(io::Error::other)?;
            if !joined || !settle::is_marked(disk, &data_dir())? {
                return Ok((joined, 0));
            }
        }
        let index = if joined { self.join(life).await } else { 0 };
        if found.is_none() {
            settle::mark(disk, &data_dir())?;
            let cluster = hex::encode(CLUSTER);
            let new = Identity { format: identity::FORMAT, node: life.node, cluster, joined, ..Identity::default() };
            identity::write(disk, &data_dir(), &new)?;
        }
        Ok((joined, index))
    }

    /// Asks one node after the other to be let in, until one does.
    async fn join(&self, life: &Arc<Life>) -> u64 {
        let transport = self.0.network.transport(life.clone());
        let request = PeerRequest::Join { node: life.node, address: address_of(life.node) };
        loop {
            for peer in self.ids().into_iter().filter(|id| *id != life.node) {
                let asked = call::<LifeRuntime, SimTransport>(&transport, peer, Lane::Join, &request);
                if let Ok(Ok(PeerResponse::Joined { index, .. })) =
                    LifeRuntime::timeout(Duration::from_secs(15), asked).await
                {
                    return index;
                }
            }
            LifeRuntime::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Ends a node. Its disk stays.
    pub fn crash(&self, id: NodeId, how: Crash) {
        let (life, disk) = {
            let mut slots = lock(&self.0.slots);
            let Some(slot) = slots.get_mut(&id) else { return };
            slot.node = None;
            slot.handler = None;
            (slot.life.take(), slot.disk.clone())
        };
        self.0.network.unlisten(id);
        // The disk first: whatever the dying tasks' destructors do reaches nothing.
        match how {
            Crash::Power => {
                let mut random = lock(&self.0.random);
                disk.crash(&mut || random.draw());
            }
            Crash::Process => disk.kill_process(),
        }
        if let Some(life) = life {
            life.end();
        }
    }

    /// The node loses its disk with all that is on it, and is down.
    pub fn lose_disk(&self, id: NodeId) {
        self.crash(id, Crash::Process);
        if let Some(slot) = lock(&self.0.slots).get_mut(&id) {
            slot.disk = SimDisk::new();
            slot.log = None;
        }
    }

    /// Damages a stopped node's files, without its noticing: what was done, if there was something to damage.
    pub fn decay(&self, id: NodeId, random: &mut SimRandom) -> Option<String> {
        decay(&self.disk(id)?, &data_dir(), &self.0.options.log, random)
    }

    /// The nodes that have set a damaged log aside, in order.
    pub fn repairs(&self) -> Vec<NodeId> {
        lock(&self.0.repairs).clone()
    }

    /// Whether all nodes are up and none is still recovering from an empty directory.
    pub fn is_settled(&self) -> bool {
        let up = self.ids().into_iter().all(|id| self.node(id).is_some());
        let slots = lock(&self.0.slots);
        up && slots.values().all(|slot| settle::is_marked(&slot.disk, &data_dir()).is_ok_and(|marked| !marked))
    }

    /// Makes a call at a node, as a client that is connected to it.
    pub async fn call<T, F, W>(&self, id: NodeId, work: W) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
        W: FnOnce(SimNode) -> F + Send + 'static,
    {
        let (life, node) = {
            let slots = lock(&self.0.slots);
            let slot = slots.get(&id).ok_or(CallError::Down)?;
            let life = slot.life.clone().filter(|life| life.is_alive()).ok_or(CallError::Down)?;
            (life, slot.node.clone().ok_or(CallError::Down)?)
        };
        LifeRuntime::spawn_in(&life, async move { work(node).await }).await.ok_or(CallError::Crashed)
    }
}

/// Boxed where the types are still parameters: with the real ones the compiler does not see that it is `Send`.
fn open_node<P: Platform, T: Transport>(setup: Setup<P, T>) -> BoxFuture<'static, io::Result<Node<P, T>>> {
    Box::pin(Node::open(setup))
}

/// A disk with a volatile cache that it does not admit to.
struct LyingDisk(SimDisk);

struct LyingFile(Box<dyn DiskFile>);

impl DiskFile for LyingFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, bytes)
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.0.preallocate(len)?;
        // What is there before any entry is; only entries and snapshots get lost.
        self.0.sync_data()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

impl Disk for LyingDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(LyingFile(self.0.create(path)?)))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(LyingFile(self.0.open(path)?)))
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.remove_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.0.free_space(path)
    }
    fn total_space(&self, path: &Path) -> io::Result<u64> {
        self.0.total_space(path)
    }
}

const CLUSTER: [u8; 16] = *b"simulated clustr";
