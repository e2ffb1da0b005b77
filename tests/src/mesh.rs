//! Every connection between the nodes of a cluster through a proxy: cut in one direction or both, delayed, broken.

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

use statehouse::peer::frame::Hello;

use crate::cluster::Cluster;

/// How much is passed on at once, bytes.
const CHUNK_BYTES: usize = 64 << 10;
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
    open: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

/// The proxies before all nodes of a cluster.
#[derive(Debug)]
pub struct Mesh {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    nodes: Vec<u64>,
}

impl Mesh {
    /// Puts itself before the nodes of a cluster that was prepared and not started yet.
    pub fn before(cluster: &mut Cluster) -> Self {
        let shared = Arc::<Shared>::default();
        let mut addresses = Vec::new();
        for node in &mut cluster.nodes {
            let listener = TcpListener::bind(node.peer).unwrap();
            addresses.push(node.peer);
            node.peer.set_port(node.peer.port() + PORTS_APART);
            let (at, shared) = (node.peer, shared.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if shared.stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let shared = shared.clone();
                    // A connection that breaks is what a proxy is for.
                    std::thread::spawn(move || drop(pass(stream, at, &shared)));
                }
            });
        }
        Self { shared, addresses, nodes: cluster.nodes.iter().map(|node| node.id).collect() }
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

    /// Breaks all connections in the middle of whatever they carry.
    pub fn break_all(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            // It may be gone already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Mesh {
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
    let way = (hello.from, hello.to);
    let mut to = TcpStream::connect(node)?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    to.write_all(&bytes)?;
    shared.open.lock().unwrap().extend([from.try_clone()?, to.try_clone()?]);
    let (back_from, back_to, back_shared) = (to.try_clone()?, from.try_clone()?, shared.clone());
    std::thread::spawn(move || copy(back_from, back_to, way, &back_shared));
    copy(from, to, way, shared);
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, way: (u64, u64), shared: &Shared) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        std::thread::sleep(Duration::from_millis(shared.delay_ms.load(Ordering::Relaxed)));
        while shared.cuts.lock().unwrap().contains(&way) {
            std::thread::sleep(LOOK_PAUSE);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
