//! Load whose every command can be accounted for: sessions and sequence numbers, retried until there is an answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::cluster::ask_any;
use crate::http::Answer;
use crate::http::Http;
use crate::http::Request;
use crate::wait;

/// A client in a session: counts its commands, and repeats each under its number until the outcome is known.
#[derive(Debug)]
pub struct Session {
    group: String,
    /// `ID:SECRET`.
    pub token: String,
    /// The number of the last command.
    pub sequence: u64,
    servers: Vec<Http>,
    turn: usize,
    /// How often a command was sent again.
    pub retries: u64,
}

impl Session {
    /// Opens a session that lasts for the whole test.
    #[track_caller]
    pub fn open(servers: &[SocketAddr], group: &str) -> Self {
        Self::open_for(servers, group, 3_600_000)
    }

    /// Opens a session.
    #[track_caller]
    pub fn open_for(servers: &[SocketAddr], group: &str, timeout_ms: u64) -> Self {
        let body = json!({ "timeout_ms": timeout_ms }).to_string();
        let request = Request::new("POST", format!("/v1/groups/{group}/sessions")).body(body.as_bytes());
        let session = ask_any(servers, &request).expect(201).json();
        let token = format!("{}:{}", session["id"], session["secret"].as_str().unwrap());
        let servers = servers.iter().map(|server| Http::new(*server)).collect();
        Self { group: group.to_owned(), token, sequence: 0, servers, turn: 0, retries: 0 }
    }

    /// Its id.
    pub fn id(&self) -> u64 {
        self.token.split(':').next().unwrap().parse().unwrap()
    }

    /// Sends one command with this number to whichever server's turn it is, until one answers for good.
    #[track_caller]
    pub fn send(&mut self, sequence: u64, command: &[u8]) -> Answer {
        let deadline = Instant::now() + wait::PATIENCE;
        loop {
            let request = Request::new("POST", format!("/v1/groups/{}/apply", self.group))
                .header("statehouse-session", &self.token)
                .header("statehouse-sequence", sequence)
                .header("statehouse-timeout-ms", 1500)
                .patience(Duration::from_secs(4))
                .body(command);
            let count = self.servers.len();
            let server = &mut self.servers[self.turn % count];
            let why = match server.send(&request) {
                Ok(answer) if answer.status < 500 => return answer,
                Ok(answer) => answer.to_string(),
                Err(trouble) => format!("{trouble:?}"),
            };
            assert!(Instant::now() < deadline, "command {sequence} of session {} has no answer: {why}", self.id());
            self.retries += 1;
            self.turn += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends the next command until it is answered.
    #[track_caller]
    pub fn apply(&mut self, command: &[u8]) -> Answer {
        self.sequence += 1;
        self.send(self.sequence, command)
    }
}

/// Clients that put keys of their own into a kv group, as fast as they are answered.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    /// How long a client waits between two commands, milliseconds.
    pause_ms: Arc<AtomicU64>,
    /// When each acknowledgement came.
    acknowledged: Arc<Mutex<Vec<Instant>>>,
    clients: Vec<JoinHandle<Acknowledged>>,
}

/// What one client was told.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// Each key with the version and the index it was acknowledged with.
    pub puts: Vec<(String, u64, u64)>,
    /// How often a command was sent again.
    pub retries: u64,
}

impl Load {
    /// Starts `clients` clients on the kv group `group`.
    pub fn start(servers: &[SocketAddr], group: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pause_ms = Arc::new(AtomicU64::new(0));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let client = |number: usize| {
            let (stop, pause_ms, acknowledged) = (stop.clone(), pause_ms.clone(), acknowledged.clone());
            let mut session = Session::open(servers, group);
            // So that not all go to the same node.
            session.turn = number;
            std::thread::spawn(move || {
                let mut told = Acknowledged::default();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("client-{number}-{}", told.puts.len());
                    let command = json!({ "Put": { "key": key, "value": "x" } }).to_string();
                    let answer = session.apply(command.as_bytes()).expect(200);
                    let reply = answer.json();
                    // A key is put once: whoever finds it already there applied a command twice.
                    assert!(reply["previous_version"].is_null(), "{key} was put before: {reply}");
                    told.puts.push((key, reply["version"].as_u64().unwrap(), answer.index().unwrap()));
                    acknowledged.lock().unwrap().push(Instant::now());
                    std::thread::sleep(Duration::from_millis(pause_ms.load(Ordering::Relaxed)));
                }
                told.retries = session.retries;
                told
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, pause_ms, acknowledged, clients }
    }

    /// From now on each client waits so long between two commands.
    pub fn pace(&self, pause: Duration) {
        self.pause_ms.store(pause.as_millis() as u64, Ordering::Relaxed);
    }

    /// How many commands were acknowledged so far.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until `more` further commands are acknowledged.
    #[track_caller]
    pub fn wait_for(&self, more: usize) {
        let goal = self.count() + more;
        wait::until_true("progress of the load", || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client gave up");
            self.count() >= goal
        });
    }

    /// The longest time without any acknowledgement after `since`, up to the latest one.
    pub fn longest_outage(&self, since: Instant) -> Duration {
        let acknowledged = self.acknowledged.lock().unwrap();
        let mut before = since;
        let mut longest = Duration::ZERO;
        for &at in acknowledged.iter().filter(|at| **at > since) {
            longest = longest.max(at.saturating_duration_since(before));
            before = before.max(at);
        }
        longest
    }

    /// Lets every client finish its command; what each was told.
    pub fn stop(self) -> Vec<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().unwrap()).collect()
    }
}

/// Checks that the kv group holds exactly what was acknowledged, each once: every key is there with the
/// version it was acknowledged with, and there are no others.
#[track_caller]
pub fn assert_exactly_once(servers: &[SocketAddr], group: &str, told: &[Acknowledged]) {
    let query = |body: String| {
        let request = Request::new("POST", format!("/v1/groups/{group}/query")).body(body.as_bytes()).clone();
        ask_any(servers, &request).expect(200).json()
    };
    let total: usize = told.iter().map(|client| client.puts.len()).sum();
    let status = query(json!("Status").to_string());
    assert_eq!(status, json!({ "keys": total, "version": total }), "keys and changes are not what was acknowledged");
    let mut held = std::collections::BTreeMap::new();
    let mut start = json!(null);
    loop {
        let page = query(json!({ "Range": { "start": start, "limit": 10_000, "keys_only": true } }).to_string());
        for item in page["items"].as_array().unwrap() {
            held.insert(item["key"].as_str().unwrap().to_owned(), item["version"].as_u64().unwrap());
        }
        start = page["next"].clone();
        if start.is_null() {
            break;
        }
    }
    for (key, version, _) in told.iter().flat_map(|client| &client.puts) {
        assert_eq!(held.get(key), Some(version), "{key} was acknowledged with version {version}");
    }
    assert_eq!(held.len(), total);
}
