//! The network between simulated nodes: the bytes of real messages, at times that the seed chooses.
//!
//! It is what TCP gives, no more and no less. Requests of a lane arrive in order as long as its connection
//! lasts. A connection can break at any moment; then of the requests under way some still arrive and some do
//! not, none is answered, and those that arrive late may come after requests of the next connection. A
//! partition swallows what crosses it.
//!
//! Invariant: a call fails as `NotSent` only when the peer cannot have seen it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimInstant;
use tokio::sync::oneshot;

use super::life::Life;
use super::life::lock;
use super::random::SimRandom;
use super::runtime::LifeRuntime;
use crate::codec;
use crate::peer::CallError;
use crate::peer::Handler;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::types::GroupId;
use crate::types::NodeId;

/// How bad the network is.
#[derive(Clone, Copy, Debug)]
pub struct NetworkFaults {
    /// The least time of a message, microseconds.
    pub delay_min_micros: u64,
    /// The most, but for the slow ones.
    pub delay_max_micros: u64,
    /// Of 1000 messages, how many take up to `slow_max_micros`.
    pub slow_per_mille: u64,
    /// How slow a slow message is at most.
    pub slow_max_micros: u64,
    /// Of 1000 requests, on how many the connection breaks.
    pub break_per_mille: u64,
}

impl NetworkFaults {
    /// A good local network.
    pub fn calm() -> Self {
        Self { delay_min_micros: 50, delay_max_micros: 400, slow_per_mille: 0, slow_max_micros: 0, break_per_mille: 0 }
    }
}

#[derive(Default)]
struct Connection {
    /// Counts the times it broke.
    epoch: u64,
    request_due: Option<SimInstant>,
    response_due: Option<SimInstant>,
}

struct Endpoint {
    life: Arc<Life>,
    /// The node holds the network through its transport: were it held from here too, neither would ever go.
    handler: Weak<dyn Handler>,
}

struct Inner {
    random: SimRandom,
    faults: NetworkFaults,
    endpoints: BTreeMap<NodeId, Endpoint>,
    connections: BTreeMap<(NodeId, NodeId, Lane), Connection>,
    /// `(from, to)`: nothing gets from the one to the other.
    cut: BTreeSet<(NodeId, NodeId)>,
    trace: u64,
    messages: u64,
    snapshots: u64,
    /// Transfers that were begun and have sent nothing yet.
    begun: BTreeSet<(NodeId, NodeId, GroupId)>,
    resumed: u64,
}

/// The network; clones are the same one.
#[derive(Clone)]
pub struct SimNetwork {
    inner: Arc<Mutex<Inner>>,
}

impl Inner {
    fn delay(&mut self) -> Duration {
        let faults = self.faults;
        let mut micros = self.random.between(faults.delay_min_micros, faults.delay_max_micros);
        if self.random.chance(faults.slow_per_mille) {
            micros = self.random.between(faults.delay_max_micros, faults.slow_max_micros.max(faults.delay_max_micros));
        }
        Duration::from_micros(micros)
    }

    /// When something sent now arrives, behind what was sent before it on the same way.
    fn due(
        &mut self,
        before: impl Fn(&mut Connection) -> &mut Option<SimInstant>,
        key: (NodeId, NodeId, Lane),
    ) -> SimInstant {
        let due = SimInstant::now() + self.delay();
        let connection = self.connections.entry(key).or_default();
        let before = before(connection);
        let due = before.map_or(due, |before| before.max(due));
        *before = Some(due);
        due
    }

    /// What is under way is on its own from here on.
    fn break_connection(&mut self, from: NodeId, to: NodeId, lane: Lane) {
        let connection = self.connections.entry((from, to, lane)).or_default();
        *connection = Connection { epoch: connection.epoch + 1, ..Connection::default() };
    }

    /// Notes what a message says of a snapshot's transfer.
    fn count_transfer(&mut self, from: NodeId, to: NodeId, bytes: &[u8]) {
        match codec::decode(bytes) {
            Ok(PeerRequest::<LifeRuntime>::SnapshotBegin(offer)) => {
                self.begun.insert((from, to, offer.group));
            }
            Ok(PeerRequest::SnapshotChunk { group, offset, .. }) if self.begun.remove(&(from, to, group)) => {
                self.resumed += u64::from(offset > 0);
            }
            Ok(PeerRequest::SnapshotEnd { .. }) => self.snapshots += 1,
            _ => {}
        }
    }

    fn note(&mut self, words: &[u64], bytes: &[u8]) {
        let now = SimInstant::now().elapsed_since_start().as_nanos() as u64;
        for word in [now, u64::from(crc32c::crc32c(bytes))].iter().chain(words) {
            self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
        self.messages += 1;
    }
}

/// How a request goes on after it was sent.
enum Sending {
    /// Nobody is there.
    NotSent(String),
    /// The request is swallowed.
    Swallowed,
    /// It arrives then, in that epoch, at that life.
    Due(SimInstant, u64, u64),
}

impl SimNetwork {
    /// A calm network.
    pub fn new(random: SimRandom) -> Self {
        let inner = Inner {
            random,
            faults: NetworkFaults::calm(),
            endpoints: BTreeMap::new(),
            connections: BTreeMap::new(),
            cut: BTreeSet::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            messages: 0,
            snapshots: 0,
            begun: BTreeSet::new(),
            resumed: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The transport of one life of a node.
    pub fn transport(&self, life: Arc<Life>) -> SimTransport {
        SimTransport { network: self.clone(), life }
    }

    /// From now on requests to the node are handled by `handler`, as long as somebody else holds it.
    pub fn listen(&self, life: Arc<Life>, handler: &Arc<dyn Handler>) {
        let handler = Arc::downgrade(handler);
        lock(&self.inner).endpoints.insert(life.node, Endpoint { life, handler });
    }

    /// Nobody listens at the node any more, and all its connections are broken.
    pub fn unlisten(&self, node: NodeId) {
        let mut inner = lock(&self.inner);
        inner.endpoints.remove(&node);
        for ((from, to, _), connection) in &mut inner.connections {
            if *from == node || *to == node {
                *connection = Connection { epoch: connection.epoch + 1, ..Connection::default() };
            }
        }
    }

    /// How bad the network is from now on.
    pub fn set_faults(&self, faults: NetworkFaults) {
        lock(&self.inner).faults = faults;
    }

    /// Nothing gets from `from` to `to` until [`SimNetwork::mend`].
    pub fn cut(&self, from: NodeId, to: NodeId) {
        lock(&self.inner).cut.insert((from, to));
    }

    /// Ends all partitions.
    pub fn mend(&self) {
        lock(&self.inner).cut.clear();
    }

    /// A hash over all messages and when they arrived, and how many there were.
    pub fn trace(&self) -> (u64, u64) {
        let inner = lock(&self.inner);
        (inner.trace, inner.messages)
    }

    /// How many transfers of snapshots went on behind their beginning after a cut.
    pub fn resumed(&self) -> u64 {
        lock(&self.inner).resumed
    }

    /// How many whole snapshots reached a node.
    pub fn snapshots(&self) -> u64 {
        lock(&self.inner).snapshots
    }

    fn send(&self, from: NodeId, to: NodeId, lane: Lane) -> Sending {
        let mut inner = lock(&self.inner);
        let way = (inner.cut.contains(&(from, to)), inner.cut.contains(&(to, from)));
        // An old connection goes on taking bytes for a while; a new one cannot be made.
        let lasts = match way {
            (false, false) => true,
            _ => inner.random.chance(600),
        };
        if !lasts {
            inner.break_connection(from, to, lane);
            return Sending::NotSent("it cannot be connected to".to_string());
        }
        if way.0 {
            return Sending::Swallowed;
        }
        let endpoint = inner.endpoints.get(&to).filter(|endpoint| endpoint.life.is_alive());
        let Some(life) = endpoint.map(|endpoint| endpoint.life.number) else {
            return Sending::NotSent("the connection was refused".to_string());
        };
        let breaks = inner.faults.break_per_mille;
        if inner.random.chance(breaks) {
            inner.break_connection(from, to, lane);
        }
        let due = inner.due(|connection| &mut connection.request_due, (from, to, lane));
        let epoch = inner.connections.get(&(from, to, lane)).map_or(0, |connection| connection.epoch);
        Sending::Due(due, epoch, life)
    }

    /// The request's bytes reach the other end: who handles them, unless they are lost on the way.
    fn arrive(
        &self,
        from: NodeId,
        to: NodeId,
        lane: Lane,
        epoch: u64,
        life: u64,
        bytes: &[u8],
    ) -> Option<(Arc<Life>, Arc<dyn Handler>)> {
        let mut inner = lock(&self.inner);
        if inner.cut.contains(&(from, to)) {
            return None;
        }
        let broken = inner.connections.get(&(from, to, lane)).is_none_or(|connection| connection.epoch != epoch);
        if broken && inner.random.chance(500) {
            return None;
        }
        let endpoint =
            inner.endpoints.get(&to).filter(|endpoint| endpoint.life.number == life && endpoint.life.is_alive())?;
        let found = (endpoint.life.clone(), endpoint.handler.upgrade()?);
        inner.note(&[from, to, lane as u64, 0], bytes);
        if lane == Lane::Bulk {
            inner.count_transfer(from, to, bytes);
        }
        Some(found)
    }

    /// When the answer gets back; `None` when it does not.
    fn answer(&self, from: NodeId, to: NodeId, lane: Lane, epoch: u64) -> Option<SimInstant> {
        let mut inner = lock(&self.inner);
        let whole = inner.connections.get(&(from, to, lane)).is_some_and(|connection| connection.epoch == epoch);
        if !whole || inner.cut.contains(&(to, from)) {
            return None;
        }
        Some(inner.due(|connection| &mut connection.response_due, (from, to, lane)))
    }

    /// Whether an answer that was due now came through.
    fn answered(&self, from: NodeId, to: NodeId, lane: Lane, epoch: u64, bytes: &[u8]) -> bool {
        let mut inner = lock(&self.inner);
        let whole = inner.connections.get(&(from, to, lane)).is_some_and(|connection| connection.epoch == epoch);
        let came = whole && !inner.cut.contains(&(to, from));
        if came {
            inner.note(&[from, to, lane as u64, 1], bytes);
        }
        came
    }

    /// How long until a caller notices that its connection is dead.
    fn notice(&self) -> Duration {
        Duration::from_millis(lock(&self.inner).random.between(1, 1500))
    }
}

/// One life's way to other nodes.
#[derive(Clone)]
pub struct SimTransport {
    network: SimNetwork,
    life: Arc<Life>,
}

impl Transport for SimTransport {
    fn learn(&self, _: NodeId, _: &str) {
        // A simulated node is found by its id.
    }

    fn call(&self, to: NodeId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let from = self.life.node;
        if !self.life.is_alive() {
            return Box::pin(std::future::pending());
        }
        let network = self.network.clone();
        let lost = move |reason: &str| CallError::Lost { node: to, reason: reason.to_string() };
        match network.send(from, to, lane) {
            Sending::NotSent(reason) => Box::pin(async move {
                let pause = network.notice().min(Duration::from_millis(20));
                LifeRuntime::sleep(pause).await;
                Err(CallError::NotSent { node: to, reason })
            }),
            Sending::Swallowed => Box::pin(async move {
                LifeRuntime::sleep(network.notice()).await;
                Err(lost("the connection timed out"))
            }),
            Sending::Due(due, epoch, life) => {
                let (sender, receiver) = oneshot::channel();
                // A task of nobody: bytes on the wire do not die with their sender.
                super::life::outside(|| {
                    drop(LifeRuntime::spawn(carry(
                        network.clone(),
                        (from, to, lane),
                        (due, epoch, life),
                        request,
                        sender,
                    )));
                });
                Box::pin(async move {
                    match receiver.await {
                        Ok(answer) => answer.map_err(|reason| CallError::Refused { node: to, reason }),
                        Err(_) => {
                            LifeRuntime::sleep(network.notice()).await;
                            Err(lost("the connection broke"))
                        }
                    }
                })
            }
        }
    }

    fn address(&self, node: NodeId) -> Option<String> {
        Some(address_of(node))
    }
}

/// The peer address of a simulated node.
pub(super) fn address_of(node: NodeId) -> String {
    format!("10.0.0.{node}:7170")
}

type Answer = Result<Bytes, String>;

/// Brings one request to its node and the answer back.
async fn carry(
    network: SimNetwork,
    (from, to, lane): (NodeId, NodeId, Lane),
    (due, epoch, life): (SimInstant, u64, u64),
    request: Bytes,
    sender: oneshot::Sender<Answer>,
) {
    LifeRuntime::sleep_until(due).await;
    let Some((life, handler)) = network.arrive(from, to, lane, epoch, life, &request) else { return };
    // The executor polls tasks in the order of their spawning, so requests begin in the order of the lane.
    let handled = LifeRuntime::spawn_in(&life, async move { handler.handle(from, lane, request).await });
    let Some(answer) = handled.await else { return };
    let Some(due) = network.answer(from, to, lane, epoch) else { return };
    LifeRuntime::sleep_until(due).await;
    let bytes: &[u8] = match &answer {
        Ok(bytes) => bytes,
        Err(text) => text.as_bytes(),
    };
    if network.answered(from, to, lane, epoch, bytes) {
        let _gone = sender.send(answer);
    }
}
