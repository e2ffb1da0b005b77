//! Client listeners of one group on this node, and the adapter behind them (DESIGN section 7, "Adapter").
//!
//! Invariants:
//! - One adapter instance at a time, called by one task; everything it asks is carried out in the order it asked.
//! - An adapter that fails costs its connections, nothing else: it is started anew, after a pause, in a new instance
//!   that holds no session.
//! - A listener accepts only while an adapter runs behind it.

mod asks;
mod client;
mod driver;
mod records;
mod sessions;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use tokio::sync::watch;

use self::client::Arrival;
use self::client::Client;
use self::client::Counts;
use self::client::Mailbox;
use self::client::add;
use crate::group::Group;
use crate::log::NodeLog;
use crate::membership::NodeChanges;
use crate::membership::Roster;
use crate::module::Limits;
use crate::net::Listener;
use crate::net::Net;
use crate::peer::Transport;
use crate::platform::Platform;
use crate::service::ServiceResult;

type ListenerOf<P> = <<P as Platform>::Net as Net>::Listener;
type ConnectionOf<P> = <ListenerOf<P> as Listener>::Connection;

/// What clients may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections in all.
    pub connections_max: usize,
    /// Connections of one address.
    pub connections_per_address_max: usize,
    /// Bytes that wait for one client; who has more is cut off.
    pub queued_bytes_max: usize,
    /// How long a connection may be silent; `None`: for ever.
    pub idle: Option<Duration>,
    /// How long a command outside of a session, a query or a session's opening may take.
    pub request_timeout: Duration,
    /// The shortest session timeout granted, milliseconds.
    pub session_timeout_min_ms: u64,
    /// The longest.
    pub session_timeout_max_ms: u64,
    /// The largest command or query, bytes.
    pub command_bytes_max: u64,
}

/// Changes the cluster's nodes; the members of the gateway's group afterwards, as its leader sees them.
pub type MemberChanger = Arc<dyn Fn(NodeChanges) -> BoxFuture<'static, ServiceResult<Roster>> + Send + Sync>;

/// Has this node go on without the others, who are lost for good; told `true` it only says whether it would.
pub type Recoverer = Arc<dyn Fn(bool) -> BoxFuture<'static, ServiceResult<()>> + Send + Sync>;

/// What a gateway is made of.
pub struct GatewayOptions<P: Platform, T: Transport> {
    /// The group. Its module has an adapter, and so has each that it comes to run.
    pub group: Arc<Group<P, T>>,
    /// What the adapter may use.
    pub limits: Limits,
    /// The addresses to listen on.
    pub addresses: Vec<String>,
    /// What `adapter_open` is given: a JSON object.
    pub settings: Vec<u8>,
    /// What clients may use.
    pub clients: ClientLimits,
    /// The machine underneath.
    pub platform: P,
    /// The node's log, for what an adapter asks of it.
    pub log: NodeLog,
    /// Where the node's data is.
    pub data_dir: PathBuf,
    /// How the adapter changes the cluster's nodes, if it may.
    pub changer: Option<MemberChanger>,
    /// How the adapter has the node go on without the others, if it may.
    pub recoverer: Option<Recoverer>,
}

/// How one listener stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Where it listens, or should.
    pub address: String,
    /// `listening`, or why it does not.
    pub state: String,
}

/// Whether an adapter runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Down,
    Up,
    Stopped,
}

/// What the gateway's tasks share.
struct Shared<P: Platform, T: Transport> {
    options: GatewayOptions<P, T>,
    mailbox: Arc<Mailbox<ConnectionOf<P>>>,
    phase: watch::Sender<Phase>,
    counts: Arc<Counts>,
    started: <P::Runtime as AsyncRuntime>::Instant,
    /// Gives connections their numbers.
    connections: AtomicU64,
    /// Connections that are open, by the address they are from.
    open: Mutex<BTreeMap<String, usize>>,
    listeners: Mutex<BTreeMap<String, ListenerStatus>>,
    /// Why the adapter does not run.
    failure: Mutex<Option<String>>,
    /// Sessions that the adapter holds.
    sessions: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks, but for the driver's, which then only gives back what it holds.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running gateway.
pub struct Gateway<P: Platform, T: Transport>(Arc<Shared<P, T>>);

/// After a listener could not be bound, how long until the next try.
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// After a connection could not be accepted (no file descriptors are left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl<P: Platform, T: Transport> Gateway<P, T> {
    /// Starts it: the adapter, then the listeners.
    pub fn start(options: GatewayOptions<P, T>) -> Self {
        let shared = Arc::new(Shared {
            mailbox: Mailbox::new(),
            phase: watch::Sender::new(Phase::Down),
            counts: Arc::default(),
            started: <P::Runtime as AsyncRuntime>::Instant::now(),
            connections: AtomicU64::new(0),
            open: Mutex::default(),
            listeners: Mutex::default(),
            failure: Mutex::default(),
            sessions: AtomicU64::new(0),
            options,
        });
        drop(P::Runtime::spawn(driver::run(shared.clone())));
        for address in shared.options.addresses.clone() {
            drop(P::Runtime::spawn(listen(shared.clone(), address)));
        }
        Self(shared)
    }

    /// Closes the listeners and the connections.
    pub fn stop(&self) {
        self.0.phase.send_replace(Phase::Stopped);
        self.0.mailbox.wake.notify_one();
        self.0.options.log.forget_reader(self.0.options.group.id());
    }

    /// The addresses it was asked to listen on.
    pub fn addresses(&self) -> &[String] {
        &self.0.options.addresses
    }

    /// How its listeners stand.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        let failure = lock(&self.0.failure).clone();
        let listeners = lock(&self.0.listeners);
        let status = |address: &String| {
            let bound = listeners.get(address).cloned();
            let mut status =
                bound.unwrap_or_else(|| ListenerStatus { address: address.clone(), state: "starting".to_owned() });
            if let Some(failure) = &failure {
                status.state = format!("not accepting: {failure}");
            }
            status
        };
        self.0.options.addresses.iter().map(status).collect()
    }

    /// Connections that are open.
    pub fn connections(&self) -> u64 {
        self.0.open_connections()
    }

    /// Sessions that its adapter holds.
    pub fn sessions(&self) -> u64 {
        self.0.sessions.load(Ordering::Relaxed)
    }

    /// Its counters: a metric's name, what it counts, the count.
    pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let counts = &self.0.counts;
        let all: [(_, _, &AtomicU64); 13] = [
            ("statehouse_gateway_accepted_connections", "Connections accepted", &counts.accepted),
            ("statehouse_gateway_refused_connections", "Connections over a limit", &counts.refused),
            ("statehouse_gateway_cut_off_connections", "Connections of clients that did not read", &counts.cut_off),
            ("statehouse_gateway_received_bytes", "Bytes of clients", &counts.received_bytes),
            ("statehouse_gateway_sent_bytes", "Bytes for clients", &counts.sent_bytes),
            ("statehouse_gateway_reads", "Reads from client sockets", &counts.reads),
            ("statehouse_gateway_writes", "Writes to client sockets", &counts.writes),
            ("statehouse_gateway_steps", "Calls of the adapter", &counts.steps),
            ("statehouse_gateway_failures", "Adapter instances that failed", &counts.failures),
            ("statehouse_gateway_proposals", "Commands the adapter proposed", &counts.proposals),
            ("statehouse_gateway_queries", "Queries the adapter asked", &counts.queries),
            ("statehouse_gateway_resent_proposals", "Commands proposed again after a doubt", &counts.resent),
            ("statehouse_gateway_events", "Events told to the adapter", &counts.events),
        ];
        all.into_iter().map(|(name, help, count)| (name, help, count.load(Ordering::Relaxed))).collect()
    }
}

impl<P: Platform, T: Transport> Drop for Gateway<P, T> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<P: Platform, T: Transport> Shared<P, T> {
    fn name(&self) -> &str {
        self.options.group.name()
    }

    fn open_connections(&self) -> u64 {
        lock(&self.open).values().sum::<usize>() as u64
    }

    fn is_stopped(&self) -> bool {
        *self.phase.borrow() == Phase::Stopped
    }

    fn say(&self, asked: &str, status: ListenerStatus) {
        let before = lock(&self.listeners).insert(asked.to_owned(), status.clone());
        if before.as_ref() == Some(&status) {
            return;
        }
        if status.state == "listening" {
            tracing::info!(group = self.name(), address = status.address, "listening for clients");
        } else {
            tracing::error!(group = self.name(), address = status.address, "{}", status.state);
        }
    }

    /// Counts a connection in, if the limits let it.
    fn admit(&self, host: &str) -> bool {
        let limits = &self.options.clients;
        let mut open = lock(&self.open);
        let all: usize = open.values().sum();
        let same = open.get(host).copied().unwrap_or(0);
        let admitted = all < limits.connections_max && same < limits.connections_per_address_max;
        if admitted {
            *open.entry(host.to_owned()).or_default() += 1;
        }
        admitted
    }

    fn dismiss(&self, host: &str) {
        let mut open = lock(&self.open);
        if let Some(count) = open.get_mut(host) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(host);
            }
        }
    }
}

/// The address without the port.
fn host_of(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(host, _)| host)
}

/// Binds, and binds again when it could not, until the gateway stops.
async fn listen<P: Platform, T: Transport>(shared: Arc<Shared<P, T>>, address: String) {
    let mut phase = shared.phase.subscribe();
    loop {
        // A port is taken only when somebody answers behind it.
        if phase.wait_for(|phase| *phase != Phase::Down).await.is_err() || shared.is_stopped() {
            return;
        }
        match shared.options.platform.net().listen(&address).await {
            Ok(listener) => {
                let bound = listener.address();
                shared.say(&address, ListenerStatus { address: bound, state: "listening".to_owned() });
                return accept(shared, listener).await;
            }
            Err(error) => {
                let state = format!("cannot listen: {error}; tried again every second");
                shared.say(&address, ListenerStatus { address: address.clone(), state });
                P::Runtime::sleep(BIND_PAUSE).await;
            }
        }
    }
}

async fn accept<P: Platform, T: Transport>(shared: Arc<Shared<P, T>>, mut listener: ListenerOf<P>) {
    let mut phase = shared.phase.subscribe();
    loop {
        if phase.wait_for(|phase| *phase != Phase::Down).await.is_err() || shared.is_stopped() {
            return;
        }
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| *phase != Phase::Up) => continue,
        };
        match accepted {
            Ok((connection, peer)) => admit(&shared, connection, peer),
            Err(error) => {
                tracing::warn!(group = shared.name(), %error, "a connection cannot be accepted");
                P::Runtime::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit<P: Platform, T: Transport>(shared: &Arc<Shared<P, T>>, connection: ConnectionOf<P>, peer: String) {
    if !shared.admit(host_of(&peer)) {
        add(&shared.counts.refused, 1);
        tracing::debug!(group = shared.name(), peer, "a connection over the limit is closed");
        return;
    }
    add(&shared.counts.accepted, 1);
    let id = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
    let limits = &shared.options.clients;
    let client = Client::new(id, peer, connection, shared.counts.clone(), limits.queued_bytes_max);
    let client = Arc::new(client);
    shared.mailbox.push(Arrival::Opened(client.clone()));
    // The driver may have looked into the mailbox for the last time.
    if shared.is_stopped() {
        client.cut();
    }
    let (shared, idle) = (shared.clone(), limits.idle);
    drop(P::Runtime::spawn(async move {
        let mailbox = shared.mailbox.clone();
        let counted = Counted { shared, client: client.clone() };
        client.run::<P::Runtime>(mailbox, idle).await;
        drop(counted);
    }));
}

/// Counts a connection out when its task ends, however it does.
struct Counted<P: Platform, T: Transport> {
    shared: Arc<Shared<P, T>>,
    client: Arc<Client<ConnectionOf<P>>>,
}

impl<P: Platform, T: Transport> Drop for Counted<P, T> {
    fn drop(&mut self) {
        self.shared.dismiss(host_of(&self.client.peer));
    }
}

/// How long a time is, in whole milliseconds.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
