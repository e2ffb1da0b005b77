//! A proxy between peers: passes bytes on, slowly if it is told to, and cuts connections.

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

/// How much is passed on at once, bytes.
const CHUNK_BYTES: usize = 16 << 10;

#[derive(Debug, Default)]
struct Shared {
    /// Bytes a second towards the node on the bulk lane; 0: as fast as it goes.
    rate: AtomicU64,
    /// Bytes that went to the node on the bulk lane.
    passed: AtomicU64,
    /// Connections of the bulk lane that are open, both ends.
    bulk: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

/// Stands before one node's peer port.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens at `address` for what is meant for `node`.
    pub fn start(address: SocketAddr, node: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, accepting.clone()) else { continue };
                std::thread::spawn(move || {
                    // A connection that breaks is what a proxy is for.
                    drop(pass(stream, node, &shared));
                });
            }
        });
        Self { address, shared }
    }

    /// From now on so many bytes a second go to the node on the bulk lane; 0: as fast as it goes.
    pub fn slow_down(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Bytes that went to the node on the bulk lane so far.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// Cuts all connections of the bulk lane.
    pub fn cut(&self) {
        for stream in self.shared.bulk.lock().unwrap().drain(..) {
            // It may be gone already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the one who accepts.
        drop(TcpStream::connect(self.address));
    }
}

fn pass(mut from: TcpStream, node: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    let mut hello = [0; Hello::BYTES];
    from.read_exact(&mut hello)?;
    let bulk = Hello::decode(&hello).is_ok_and(|hello| hello.lane == Lane::Bulk);
    let mut to = TcpStream::connect(node)?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    to.write_all(&hello)?;
    if bulk {
        shared.bulk.lock().unwrap().extend([from.try_clone()?, to.try_clone()?]);
    }
    let (mut back_from, mut back_to) = (to.try_clone()?, from.try_clone()?);
    std::thread::spawn(move || {
        drop(io::copy(&mut back_from, &mut back_to));
        drop(back_to.shutdown(Shutdown::Both));
    });
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.shutdown(Shutdown::Both);
        }
        let rate = shared.rate.load(Ordering::Relaxed);
        if bulk && rate > 0 {
            std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        to.write_all(&buffer[..count])?;
        if bulk {
            shared.passed.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
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
