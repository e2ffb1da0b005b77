//! Between peers: proxies that cut connections, slow them down and break them, and what accepts and never answers.

use std::collections::BTreeSet;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use statehouse::peer::Lane;
use statehouse::peer::frame::Hello;

use crate::cluster::Cluster;

/// How much is passed on at once, bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// How often a connection that is cut looks whether it still is.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Between the port that the others know and the one where the node listens.
const PORTS_APART: u16 = 100;

#[derive(Debug, Default)]
struct Shared {
    /// Whose requests to whom do not get through, nor their answers.
    cuts: Mutex<BTreeSet<(u64, u64)>>,
    /// What every piece takes on its way, milliseconds.
    delay_ms: AtomicU64,
    /// Bytes a second towards nodes on the bulk lane; 0: as fast as it goes.
    bulk_rate: AtomicU64,
    /// Bytes that went to nodes on the bulk lane.
    bulk_passed: AtomicU64,
    /// Open connections, both ends.
    open: Mutex<Vec<(Lane, TcpStream)>>,
    stopped: AtomicBool,
}

/// Proxies before the peer ports of one node or several.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    nodes: Vec<u64>,
}

impl Proxy {
    /// Listens at `address` for what is meant for `node`.
    pub fn start(address: SocketAddr, node: SocketAddr) -> Self {
        let mut proxy = Self { shared: Arc::default(), addresses: Vec::new(), nodes: Vec::new() };
        proxy.listen(address, node);
        proxy
    }

    /// Puts itself before all nodes of a cluster that was prepared and not started yet.
    pub fn before(cluster: &mut Cluster) -> Self {
        let nodes = cluster.nodes.iter().map(|node| node.id).collect();
        let mut proxy = Self { shared: Arc::default(), addresses: Vec::new(), nodes };
        for node in &mut cluster.nodes {
            let known = node.peer;
            node.peer.set_port(known.port() + PORTS_APART);
            proxy.listen(known, node.peer);
        }
        proxy
    }

    fn listen(&mut self, address: SocketAddr, node: SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        self.addresses.push(listener.local_addr().unwrap());
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = shared.clone();
                // A connection that breaks is what a proxy is for.
                std::thread::spawn(move || drop(pass(stream, node, &shared)));
            }
        });
    }

    /// Where it listens, before the first node.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Nothing of what one node asks the other arrives, and nothing is lost of it: as packets that are dropped until they get through.
    pub fn cut(&self, from: u64, to: u64) {
        self.shared.cuts.lock().unwrap().insert((from, to));
    }

    /// Nothing gets from the node to the others, or to it from them.
    pub fn isolate(&self, node: u64) {
        for &other in self.nodes.iter().filter(|other| **other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Everything gets through again.
    pub fn mend(&self) {
        self.shared.cuts.lock().unwrap().clear();
    }

    /// From now on every piece takes so long.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// From now on so many bytes a second go to each node on the bulk lane; 0: as fast as it goes.
    pub fn slow_down_bulk(&self, bytes_per_second: u64) {
        self.shared.bulk_rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Bytes that went to nodes on the bulk lane so far.
    pub fn bulk_passed(&self) -> u64 {
        self.shared.bulk_passed.load(Ordering::Relaxed)
    }

    /// Breaks all connections in the middle of whatever they carry.
    pub fn break_all(&self) {
        self.break_if(|_| true);
    }

    /// Breaks those of the bulk lane.
    pub fn break_bulk(&self) {
        self.break_if(|lane| lane == Lane::Bulk);
    }

    fn break_if(&self, which: impl Fn(Lane) -> bool) {
        self.shared.open.lock().unwrap().retain(|(lane, stream)| {
            if which(*lane) {
                // It may be gone already.
                drop(stream.shutdown(Shutdown::Both));
            }
            !which(*lane)
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.mend();
        self.break_all();
        for address in &self.addresses {
            // Wakes the one who accepts.
            drop(TcpStream::connect(address));
        }
    }
}

fn pass(mut from: TcpStream, node: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    let mut bytes = [0; Hello::BYTES];
    from.read_exact(&mut bytes)?;
    let Ok(hello) = Hello::decode(&bytes) else { return Ok(()) };
    let mut to = TcpStream::connect(node)?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    to.write_all(&bytes)?;
    shared.open.lock().unwrap().extend([(hello.lane, from.try_clone()?), (hello.lane, to.try_clone()?)]);
    let (back_from, back_to, back_shared) = (to.try_clone()?, from.try_clone()?, shared.clone());
    let way = (hello.from, hello.to);
    std::thread::spawn(move || copy(back_from, back_to, way, false, &back_shared));
    copy(from, to, way, hello.lane == Lane::Bulk, shared);
    Ok(())
}

/// Passes on what comes until one end is gone. `bulk`: it is what goes to a node on the bulk lane.
fn copy(mut from: TcpStream, mut to: TcpStream, way: (u64, u64), bulk: bool, shared: &Shared) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        std::thread::sleep(Duration::from_millis(shared.delay_ms.load(Ordering::Relaxed)));
        let rate = shared.bulk_rate.load(Ordering::Relaxed);
        if bulk && rate > 0 {
            std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        while shared.cuts.lock().unwrap().contains(&way) {
            std::thread::sleep(LOOK_PAUSE);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        if bulk {
            shared.bulk_passed.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

/// Listens where a node should, accepts every connection, and never reads or answers.
#[derive(Debug)]
pub struct BlackHole {
    address: SocketAddr,
    held: Arc<Mutex<Vec<TcpStream>>>,
    stopped: Arc<AtomicBool>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl BlackHole {
    /// Listens at `address`.
    pub fn open(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (held, stopped) = (Arc::<Mutex<Vec<TcpStream>>>::default(), Arc::<AtomicBool>::default());
        let (into, until) = (held.clone(), stopped.clone());
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().take_while(|_| !until.load(Ordering::Relaxed)) {
                into.lock().unwrap().extend(stream);
            }
        });
        Self { address, held, stopped, accepting: Some(accepting) }
    }

    /// How many connections were accepted.
    pub fn count(&self) -> usize {
        self.held.lock().unwrap().len()
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the one who accepts; the port is free when it has ended.
        drop(TcpStream::connect(self.address));
        drop(self.accepting.take().map(std::thread::JoinHandle::join));
    }
}
