//! Client connections in memory: what gateways of simulated nodes listen on, and the clients that connect.
//!
//! Bytes arrive in order and at once; where a read is cut is up to the writer. When a node dies, its
//! connections break as they do when a process is killed.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;

use bytes::Bytes;
use tokio::sync::Notify;

use super::life::Life;
use super::life::lock;
use crate::net::Connection;
use crate::net::Listener;
use crate::net::Net;

/// Bytes on their way to a client that does not read.
const SOCKET_BYTES_MAX: usize = 64 << 10;

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
}

#[derive(Debug, Default)]
struct Wire {
    to_node: Mutex<Pipe>,
    to_client: Mutex<Pipe>,
    /// Bytes for the node.
    node_wake: Notify,
    /// Room for bytes of the node.
    room_wake: Notify,
    client_wake: Notify,
}

impl Wire {
    fn cut(&self) {
        lock(&self.to_node).ended = true;
        lock(&self.to_client).ended = true;
        self.node_wake.notify_one();
        self.room_wake.notify_one();
        self.client_wake.notify_one();
    }
}

/// The client's end.
#[derive(Debug)]
pub struct SimClient {
    wire: Arc<Wire>,
    life: Arc<Life>,
}

impl SimClient {
    /// Sends.
    pub fn send(&self, bytes: &[u8]) {
        lock(&self.wire.to_node).chunks.push_back(Bytes::copy_from_slice(bytes));
        self.wire.node_wake.notify_one();
    }

    /// What has arrived; `None` when the node closed the connection or died.
    pub async fn receive(&self) -> Option<Bytes> {
        loop {
            {
                let mut pipe = lock(&self.wire.to_client);
                if let Some(chunk) = pipe.chunks.pop_front() {
                    pipe.bytes -= chunk.len();
                    self.wire.room_wake.notify_one();
                    return Some(chunk);
                }
                if pipe.ended || !self.life.is_alive() {
                    return None;
                }
            }
            self.wire.client_wake.notified().await;
        }
    }
}

impl Drop for SimClient {
    fn drop(&mut self) {
        self.wire.cut();
    }
}

#[derive(Debug, Default)]
struct Queue {
    arrived: Mutex<VecDeque<(SimConnection, String)>>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    listeners: Mutex<BTreeMap<String, Weak<Queue>>>,
    clients: Mutex<u64>,
}

/// The addresses of one life of a node.
#[derive(Clone, Debug)]
pub struct SimNet {
    life: Arc<Life>,
    inner: Arc<Inner>,
}

impl SimNet {
    /// Nobody listens yet.
    pub fn new(life: Arc<Life>) -> Self {
        Self { life, inner: Arc::default() }
    }

    /// Connects to `address` of this node; `None` when nobody listens there.
    pub fn connect(&self, address: &str) -> Option<SimClient> {
        let queue = lock(&self.inner.listeners).get(address)?.upgrade()?;
        if !self.life.is_alive() {
            return None;
        }
        let number = {
            let mut clients = lock(&self.inner.clients);
            *clients += 1;
            *clients
        };
        let wire = Arc::<Wire>::default();
        lock(&queue.arrived).push_back((SimConnection(wire.clone()), format!("192.0.2.1:{number}")));
        queue.wake.notify_one();
        Some(SimClient { wire, life: self.life.clone() })
    }
}

impl Net for SimNet {
    type Listener = SimListener;

    async fn listen(&self, address: &str) -> io::Result<SimListener> {
        let queue = Arc::<Queue>::default();
        let mut listeners = lock(&self.inner.listeners);
        if listeners.get(address).is_some_and(|other| other.strong_count() > 0) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        listeners.insert(address.to_owned(), Arc::downgrade(&queue));
        Ok(SimListener { address: address.to_owned(), queue })
    }
}

/// A bound address.
#[derive(Debug)]
pub struct SimListener {
    address: String,
    queue: Arc<Queue>,
}

impl Listener for SimListener {
    type Connection = SimConnection;

    fn address(&self) -> String {
        self.address.clone()
    }

    async fn accept(&mut self) -> io::Result<(SimConnection, String)> {
        loop {
            let next = lock(&self.queue.arrived).pop_front();
            if let Some(next) = next {
                return Ok(next);
            }
            self.queue.wake.notified().await;
        }
    }
}

/// The node's end.
#[derive(Debug)]
pub struct SimConnection(Arc<Wire>);

impl Drop for SimConnection {
    fn drop(&mut self) {
        self.0.cut();
    }
}

impl Connection for SimConnection {
    async fn readable(&self) -> io::Result<()> {
        loop {
            {
                let pipe = lock(&self.0.to_node);
                if pipe.ended || !pipe.chunks.is_empty() {
                    return Ok(());
                }
            }
            self.0.node_wake.notified().await;
        }
    }

    fn read(&self) -> io::Result<Bytes> {
        let mut pipe = lock(&self.0.to_node);
        match pipe.chunks.pop_front() {
            Some(chunk) => Ok(chunk),
            None if pipe.ended => Ok(Bytes::new()),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        loop {
            {
                let pipe = lock(&self.0.to_client);
                if pipe.ended || pipe.bytes < SOCKET_BYTES_MAX {
                    return Ok(());
                }
            }
            self.0.room_wake.notified().await;
        }
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = lock(&self.0.to_client);
        if pipe.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if pipe.bytes >= SOCKET_BYTES_MAX {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut written = 0;
        for part in parts {
            written += part.len();
            pipe.chunks.push_back(Bytes::copy_from_slice(part));
        }
        pipe.bytes += written;
        drop(pipe);
        self.0.client_wake.notify_one();
        Ok(written)
    }

    fn finish(&self) {
        lock(&self.0.to_client).ended = true;
        self.0.client_wake.notify_one();
    }
}
