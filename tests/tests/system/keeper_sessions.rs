//! Sessions of ZooKeeper's clients through what happens to servers: they live, keep their ids, and keep their nodes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use statehouse_tests::keeper::Connection;
use statehouse_tests::keeper::Ensemble;
use statehouse_tests::keeper::Hello;
use statehouse_tests::keeper::Welcome;
use statehouse_tests::keeper::record;
use statehouse_tests::report;
use statehouse_tests::wait;
use znode_tree::jute::Reader;
use znode_tree::wire::op;

const TIMEOUT_MS: i32 = 10_000;
/// Of the clients: each tends its share of the sessions.
const THREADS: usize = 16;
/// Between two pings of a session, about.
const PAUSE: Duration = Duration::from_millis(500);
/// A server that does not answer for so long is left.
const PATIENCE: Duration = Duration::from_secs(3);
const EPHEMERAL: i32 = 1;

/// A session with an ephemeral node, as a client keeps it: with pings, and at another server when this one is gone.
struct Kept {
    welcome: Welcome,
    connection: Option<Connection>,
    /// The server, by number.
    at: usize,
}

/// What the clients and the test tell each other.
#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// How often each thread has seen all of its sessions alive.
    rounds: [AtomicU64; THREADS],
    moves: AtomicU64,
    /// What must not happen.
    lost: Mutex<Vec<String>>,
}

/// Sessions, and those who keep them.
struct Flock {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The owner of each node.
    owners: BTreeMap<String, i64>,
}

impl Kept {
    fn open(servers: &[SocketAddr], number: usize) -> (Self, String) {
        let at = number % servers.len();
        let (mut connection, welcome) = Connection::until_open(servers[at], &Hello::new(TIMEOUT_MS));
        assert_eq!(welcome.timeout_ms, TIMEOUT_MS);
        let path = format!("/live/{number:04}");
        assert_eq!(connection.create(&path, b"", EPHEMERAL).unwrap().error, 0);
        connection.be_patient(PATIENCE).unwrap();
        (Self { welcome, connection: Some(connection), at }, path)
    }

    /// Whether it is alive now.
    fn tend(&mut self, servers: &[SocketAddr], shared: &Shared) -> bool {
        if let Some(connection) = &mut self.connection {
            if connection.ping().is_ok() {
                return true;
            }
            self.connection = None;
        }
        self.at = (self.at + 1) % servers.len();
        let Ok((mut connection, welcome)) = Connection::open(servers[self.at], &Hello::again(&self.welcome)) else {
            return false;
        };
        if welcome != self.welcome {
            shared.lost.lock().unwrap().push(format!("{welcome:?} for {:?}", self.welcome));
        }
        shared.moves.fetch_add(1, Ordering::Relaxed);
        connection.be_patient(PATIENCE).unwrap();
        self.connection = Some(connection);
        true
    }
}

impl Flock {
    fn open(servers: &[SocketAddr], count: usize) -> Self {
        let (mut first, _) = Connection::until_open(servers[0], &Hello::new(TIMEOUT_MS));
        assert_eq!(first.create("/live", b"", 0).unwrap().error, 0);
        let shared = Arc::new(Shared::default());
        let opened: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (servers, shared) = (servers.to_vec(), shared.clone());
                let (told, names) = std::sync::mpsc::channel();
                let tending = std::thread::spawn(move || {
                    let mut sessions = Vec::new();
                    for number in (thread..count).step_by(THREADS) {
                        let (kept, path) = Kept::open(&servers, number);
                        told.send((path, kept.welcome.session)).unwrap();
                        sessions.push(kept);
                        if sessions.len().is_multiple_of(10) {
                            // They want to live while the others are opened.
                            sessions.iter_mut().for_each(|kept: &mut Kept| assert!(kept.tend(&servers, &shared)));
                        }
                    }
                    drop(told);
                    while !shared.is_over.load(Ordering::Relaxed) {
                        let alive = sessions.iter_mut().filter_map(|kept| kept.tend(&servers, &shared).then_some(()));
                        if alive.count() == sessions.len() {
                            shared.rounds[thread].fetch_add(1, Ordering::Relaxed);
                        }
                        std::thread::sleep(PAUSE);
                    }
                });
                (tending, names)
            })
            .collect();
        let (threads, names): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let owners: BTreeMap<_, _> = names.into_iter().flatten().collect();
        assert_eq!(owners.len(), count);
        Self { shared, threads, owners }
    }

    /// Waits until each session was seen alive, after now.
    #[track_caller]
    fn until_all_live(&self) {
        let rounds = || self.shared.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed));
        // The round that is under way has begun before.
        let wanted: Vec<u64> = rounds().map(|rounds| rounds + 2).collect();
        wait::until("all sessions have a server", || {
            let is_seen = rounds().zip(&wanted).all(|(now, wanted)| now >= *wanted);
            if is_seen { Ok(()) } else { Err(rounds().collect::<Vec<u64>>()) }
        });
        assert_eq!(*self.shared.lost.lock().unwrap(), Vec::<String>::new());
    }

    /// Who owns which node, as this server knows after all that was acknowledged; and when each was made.
    fn nodes(&self, server: SocketAddr) -> BTreeMap<String, (i64, i64)> {
        let (mut connection, _) = Connection::until_open(server, &Hello::new(TIMEOUT_MS));
        connection.ask(op::SYNC, &record(|out| _ = out.text("/"))).unwrap();
        let children = connection.ask(op::GET_CHILDREN, &record(|out| _ = out.text("/live").bool(false))).unwrap();
        let names = Reader::new(&children.body).texts().unwrap().into_iter();
        names
            .map(|name| {
                let path = format!("/live/{name}");
                let reply = connection.ask(op::EXISTS, &record(|out| _ = out.text(&path).bool(false))).unwrap();
                assert_eq!(reply.error, 0, "{path}");
                let stat = reply.stat(|_| {});
                (path, (stat.ephemeral_owner, stat.czxid))
            })
            .collect()
    }

    /// All nodes are there, each its session's.
    #[track_caller]
    fn assert_whole(&self, server: SocketAddr) -> BTreeMap<String, (i64, i64)> {
        let nodes = self.nodes(server);
        let owners: BTreeMap<_, _> = nodes.iter().map(|(path, (owner, _))| (path.clone(), *owner)).collect();
        assert!(owners == self.owners, "{} of {} nodes are there with their owners", owners.len(), self.owners.len());
        nodes
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[test]
fn the_leader_is_killed_under_a_thousand_sessions_and_none_expires() {
    let mut keepers = Ensemble::start(3, &[]);
    let servers = keepers.clients();
    let flock = Flock::open(&servers, 1_000);
    flock.until_all_live();
    let before = flock.assert_whole(servers[0]);

    let leader = keepers.leader();
    keepers.kill(leader);
    flock.until_all_live();
    let moves = flock.shared.moves.load(Ordering::Relaxed);
    assert!(moves >= 333, "the sessions of the server that was killed go to others: {moves}");

    // One that is kept by nobody is over when its time is: then so would be the others'.
    let alive = servers[keepers.leader()];
    let (mut idle, _) = Connection::until_open(alive, &Hello::new(TIMEOUT_MS));
    assert_eq!(idle.create("/idle", b"", EPHEMERAL).unwrap().error, 0);
    drop(idle);
    let (mut watching, _) = Connection::until_open(alive, &Hello::new(TIMEOUT_MS));
    wait::until("the end of a session that nobody keeps", || match watching.stat("/idle").unwrap() {
        Err(_) => Ok(()),
        Ok(stat) => Err(stat),
    });
    flock.until_all_live();
    assert!(flock.assert_whole(alive) == before, "each node is the one that it was");
    report(format_args!("1,000 sessions of 10 s: the leader was killed, {moves} moved, none expired"));
}

#[test]
fn a_rolling_restart_takes_no_session_and_no_ephemeral_node() {
    let mut keepers = Ensemble::start(3, &[]);
    let servers = keepers.clients();
    let flock = Flock::open(&servers, 100);
    flock.until_all_live();
    let before = flock.assert_whole(servers[0]);
    for (number, server) in servers.iter().enumerate() {
        keepers.restart(number);
        flock.until_all_live();
        assert!(flock.assert_whole(*server) == before, "each node is the one that it was");
    }
    assert!(flock.shared.moves.load(Ordering::Relaxed) >= 100, "each session has moved");
}
