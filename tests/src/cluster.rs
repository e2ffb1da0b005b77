//! Nodes in processes of their own.

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use serde_json::json;

use crate::http::Answer;
use crate::http::Http;
use crate::http::Request;
use crate::http::Trouble;
use crate::program;
use crate::wait;

/// How long a node may take to stop in order.
const STOP_TIME_MAX: Duration = Duration::from_secs(30);

/// An address of 127.0.0.0/8 that nobody else uses: of this process's id and a count.
pub fn own_address() -> IpAddr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // A process id has 22 bits at most; the odd multiplier spreads neighbours.
    let mixed = (std::process::id() ^ (count << 22)).wrapping_mul(0x9e37_79b1).wrapping_add(count);
    let [a, b, c, _] = mixed.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254)))
}

/// The first of 20 ports of 127.0.0.1 that are free, for programs that want that address. Not of those that
/// the system gives to connections, and another one at each call.
pub fn free_ports() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let place = (std::process::id() * 7 + COUNT.fetch_add(1, Ordering::Relaxed)) % 1000;
        let base = 10_000 + u16::try_from(place).unwrap() * 20;
        if (base..base + 20).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}

/// A node: what it is started with, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: u64,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its HTTP address.
    pub http: SocketAddr,
    /// Its peer address.
    pub peer: SocketAddr,
    /// What it prints.
    pub log: PathBuf,
    flags: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// The node's command line.
    pub fn command(&self) -> Command {
        let mut command = program::command();
        command.arg("serve");
        command.arg("--node-id").arg(self.id.to_string()).arg("--data-dir").arg(&self.data_dir);
        command.arg("--http").arg(self.http.to_string()).arg("--peer").arg(self.peer.to_string());
        command.args(&self.flags);
        command
    }

    /// Gives it more flags for its next start.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// From its next start on it joins through these nodes, whatever it was told before.
    pub fn join_through(&mut self, peers: &[SocketAddr]) {
        for flag in ["--initial-cluster", "--join"] {
            if let Some(place) = self.flags.iter().position(|given| given == flag) {
                self.flags.drain(place..place + 2);
            }
        }
        let peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
        self.flags.extend(["--join".to_owned(), peers.join(",")]);
    }

    /// Where its list of nodes is, for one that follows it.
    pub fn config(&self) -> PathBuf {
        self.log.with_extension("toml")
    }

    /// Writes its list of nodes; from its next start on the node follows that, whatever it was told before.
    pub fn list(&mut self, nodes: &[(u64, SocketAddr)]) {
        for flag in ["--initial-cluster", "--join", "--config"] {
            if let Some(place) = self.flags.iter().position(|given| given == flag) {
                self.flags.drain(place..place + 2);
            }
        }
        let nodes: String = nodes.iter().map(|(id, peer)| format!("{id} = \"{peer}\"\n")).collect();
        let text = format!("members-from-config = true\n[initial-cluster]\n{nodes}");
        std::fs::write(self.config(), text).unwrap();
        self.flags.extend(["--config".to_owned(), self.config().display().to_string()]);
    }

    /// Waits until the process has ended because the node was removed.
    #[track_caller]
    pub fn wait_removed(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        match program::wait(&mut child, wait::PATIENCE) {
            Some(status) => assert_eq!(status.code(), Some(5), "node {} ended, {status}:\n{}", self.id, self.said()),
            None => {
                drop(child.kill());
                drop(child.wait());
                panic!("node {} was removed and does not end:\n{}", self.id, self.said());
            }
        }
        assert!(self.said().contains(&format!("node {} was removed from the cluster", self.id)), "{}", self.said());
    }

    /// Removes its data directory.
    pub fn empty(&self) {
        std::fs::remove_dir_all(&self.data_dir).unwrap();
    }

    /// Starts it; it may take a while until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "node {} runs", self.id);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.command();
        command.arg("--exit-with-parent");
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Runs it, expecting that it refuses to start.
    #[track_caller]
    pub fn start_refused(&mut self) -> program::Output {
        assert!(self.child.is_none(), "node {} runs", self.id);
        program::run(&mut self.command(), b"")
    }

    /// Waits until it is ready.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let id = self.id;
        wait::until(&format!("node {id} is ready"), || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("node {id} ended, {status}. It said:\n{}", self.said());
            }
            match self.client().send(&Request::new("GET", "/readyz")) {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(trouble) => Err(format!("{trouble:?}")),
            }
        });
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks it to stop, as `kill` does, and waits until it did.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        program::signal(&child, Signal::TERM);
        match program::wait(&mut child, STOP_TIME_MAX) {
            Some(status) => assert!(status.success(), "node {} stopped with {status}:\n{}", self.id, self.said()),
            None => {
                drop(child.kill());
                drop(child.wait());
                panic!("node {} does not stop:\n{}", self.id, self.said());
            }
        }
    }

    /// Stops the process where it is, without ending it.
    pub fn freeze(&self) {
        program::signal(self.child.as_ref().expect("the node runs"), Signal::STOP);
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) {
        program::signal(self.child.as_ref().expect("the node runs"), Signal::CONT);
    }

    /// Whether its process is there.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Its process's id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// Memory of its process that is really there, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// A client of it.
    pub fn client(&self) -> Http {
        Http::new(self.http)
    }

    /// Everything it printed.
    pub fn said(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The group as this node sees it.
    #[track_caller]
    pub fn group(&self, name: &str) -> Value {
        self.client().get(&format!("/v1/groups/{name}")).expect(200).json()
    }

    /// Its state digest of a group, with the index it is of.
    #[track_caller]
    pub fn digest(&self, group: &str) -> (u64, String) {
        let view = self.client().get(&format!("/v1/groups/{group}/digest")).expect(200).json();
        (view["applied"].as_u64().unwrap(), view["digest"].as_str().unwrap().to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let said = self.said();
            let lines: Vec<&str> = said.lines().collect();
            let tail = lines.len().saturating_sub(60);
            eprintln!("--- the end of what node {} said:\n{}", self.id, lines[tail..].join("\n"));
        }
    }
}

fn at(ip: IpAddr, base: u16, id: u64) -> SocketAddr {
    SocketAddr::new(ip, base + u16::try_from(id).unwrap())
}

fn node(folder: &tempfile::TempDir, ip: IpAddr, id: u64, flags: Vec<String>) -> Node {
    Node {
        id,
        data_dir: folder.path().join(format!("node-{id}")),
        http: at(ip, 7070, id),
        peer: at(ip, 7170, id),
        log: folder.path().join(format!("node-{id}.log")),
        flags,
        child: None,
    }
}

/// Nodes that know each other, and the folder they live in. Indexed by node id.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, in the order of their ids.
    pub nodes: Vec<Node>,
    folder: tempfile::TempDir,
    ip: IpAddr,
    /// What a node that joins is started with, but for how it joins.
    flags: Vec<String>,
}

impl Cluster {
    /// A new cluster of nodes 1 to `count` that are not started yet, each with these flags.
    pub fn prepare(count: u64, flags: &[&str]) -> Self {
        Self::prepare_in(tempfile::tempdir().unwrap(), count, flags)
    }

    /// The same in a folder of one's own.
    pub fn prepare_in(folder: tempfile::TempDir, count: u64, flags: &[&str]) -> Self {
        let ip = own_address();
        let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        // Small segments, so that a test's many nodes do not write gigabytes of zeros; patience, because three nodes
        // that compile a module at the same time on a busy machine take seconds for it.
        for (flag, value) in [("--log-segment-bytes", "4MiB"), ("--request-timeout-ms", "20000")] {
            if !flags.iter().any(|given| given == flag) {
                flags.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        let joining = flags.clone();
        if count > 1 {
            let members: Vec<String> = (1..=count).map(|id| format!("{id}={}", at(ip, 7170, id))).collect();
            flags.extend(["--initial-cluster".to_owned(), members.join(",")]);
        }
        let nodes = (1..=count).map(|id| node(&folder, ip, id, flags.clone())).collect();
        Self { nodes, folder, ip, flags: joining }
    }

    /// A second machine with a copy of what a node has on its disk now; not started yet.
    pub fn copy(&self, id: u64) -> Node {
        let original = self.node(id);
        let ip = own_address();
        let mut flags = original.flags.clone();
        // As the others know it.
        flags.extend(["--advertise-peer".to_owned(), original.peer.to_string()]);
        let copy = Node {
            id,
            data_dir: self.folder().join(format!("copy-of-{id}")),
            http: at(ip, 7070, id),
            peer: at(ip, 7170, id),
            log: self.folder().join(format!("copy-of-{id}.log")),
            flags,
            child: None,
        };
        let copied = Command::new("cp").arg("-r").arg(&original.data_dir).arg(&copy.data_dir).status().unwrap();
        assert!(copied.success(), "{copied}");
        copy
    }

    /// `count` more nodes, which join through the nodes that are there; not started yet.
    pub fn prepare_joining(&mut self, count: u64) {
        let peers: Vec<SocketAddr> = self.nodes.iter().map(|node| node.peer).collect();
        for _ in 0..count {
            let id = self.nodes.len() as u64 + 1;
            let mut node = node(&self.folder, self.ip, id, self.flags.clone());
            node.join_through(&peers);
            self.nodes.push(node);
        }
    }

    /// The files of these nodes list those ones.
    pub fn list(&mut self, of: &[u64], listed: &[u64]) {
        let listed: Vec<_> = listed.iter().map(|id| (*id, self.node(*id).peer)).collect();
        of.iter().for_each(|id| self.node_mut(*id).list(&listed));
    }

    /// Waits until these are the voters of the group, asked of one of them.
    #[track_caller]
    pub fn until_voters(&self, group: &str, voters: &[u64]) {
        wait::until(&format!("{voters:?} vote in group {group}"), || {
            let answer =
                self.node(voters[0]).client().send(&Request::new("GET", format!("/v1/groups/{group}/members")));
            let view = answer.map_err(|trouble| format!("{trouble:?}"))?;
            let text = view.text();
            let members = view.json();
            let members = members["members"].as_array().ok_or_else(|| text.clone())?.iter();
            let now = members.filter(|member| member["role"] == "voter").filter_map(|member| member["id"].as_u64());
            if now.eq(voters.iter().copied()) { Ok(()) } else { Err(text) }
        });
    }

    /// The ids of the nodes that run.
    pub fn running(&mut self) -> Vec<u64> {
        self.nodes.iter_mut().filter_map(|node| node.is_running().then_some(node.id)).collect()
    }

    /// Begins a change of membership through a node and waits for its end, at whichever node answers; its record.
    #[track_caller]
    pub fn change(&mut self, through: u64, method: &str, path: &str, body: &str) -> Value {
        let begun = self.node(through).client().send(&Request::new(method, path).body(body.as_bytes()));
        let begun = begun.unwrap_or_else(|trouble| panic!("{method} {path}: {trouble:?}")).expect(202).json();
        let record = format!("/v1/changes/{}?wait_ms=500", begun["id"]);
        wait::until(&format!("{}", begun["change"]), || {
            let servers: Vec<SocketAddr> = self.running().iter().map(|id| self.node(*id).http).collect();
            let change = ask_any(&servers, &Request::new("GET", &record)).expect(200).json();
            assert_ne!(change["state"], "failed", "{change}");
            if change["state"] == "done" { Ok(change) } else { Err(change.to_string()) }
        })
    }

    /// Starts a node that joins, and makes it a full one.
    #[track_caller]
    pub fn add(&mut self, through: u64, id: u64) {
        self.node_mut(id).start();
        self.node_mut(id).wait_ready();
        self.change(through, "POST", "/v1/nodes", &json!({ "node": id }).to_string());
        self.node_mut(id).wait_ready();
    }

    /// Removes a node, whose process ends then.
    #[track_caller]
    pub fn remove(&mut self, through: u64, id: u64) {
        self.change(through, "DELETE", &format!("/v1/nodes/{id}"), "");
        self.node_mut(id).wait_removed();
    }

    /// The voters of a group, as its leader sees them.
    #[track_caller]
    pub fn voters(&self, through: u64, group: &str) -> Vec<u64> {
        let view = self.node(through).client().get(&format!("/v1/groups/{group}/members")).expect(200).json();
        let members = view["members"].as_array().unwrap().iter();
        members.filter(|member| member["role"] == "voter").map(|member| member["id"].as_u64().unwrap()).collect()
    }

    /// A new cluster, started and ready.
    #[track_caller]
    pub fn start(count: u64, flags: &[&str]) -> Self {
        let mut cluster = Self::prepare(count, flags);
        cluster.start_all();
        cluster
    }

    /// Starts all nodes that do not run and waits until all are ready.
    #[track_caller]
    pub fn start_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.child.is_none()) {
            node.start();
        }
        self.wait_ready();
    }

    /// Waits until all nodes are ready.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.nodes.iter_mut().for_each(Node::wait_ready);
    }

    /// `kill -9` of all nodes.
    pub fn kill_all(&mut self) {
        // All get the signal before any is waited for.
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            drop(child.kill());
        }
        self.nodes.iter_mut().for_each(Node::kill);
    }

    /// The cluster's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Node `id`.
    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[usize::try_from(id).unwrap() - 1]
    }

    /// Node `id`.
    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[usize::try_from(id).unwrap() - 1]
    }

    /// The HTTP addresses of all nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.http).collect()
    }

    /// Waits until the running nodes agree on a leader of the group that runs too; its id.
    #[track_caller]
    pub fn leader(&mut self, group: &str) -> u64 {
        let path = format!("/v1/groups/{group}");
        wait::until(&format!("a leader of {group}"), || {
            let mut seen = Vec::new();
            let running = self.running();
            for &id in &running {
                let answer = match self.node(id).client().send(&Request::new("GET", &path)) {
                    Ok(answer) if answer.status == 200 => answer.json(),
                    other => return Err(format!("node {id}: {other:?}")),
                };
                // It has no replica, and knows no term.
                if answer["state"] == "elsewhere" {
                    continue;
                }
                seen.push((answer["term"].as_u64(), answer["leader"].as_u64()));
            }
            let first = seen.first().copied().and_then(|(_, leader)| leader);
            match first {
                Some(leader) if running.contains(&leader) && seen.iter().all(|other| *other == seen[0]) => Ok(leader),
                _ => Err(format!("{seen:?}")),
            }
        })
    }

    /// A node that does not lead the group.
    #[track_caller]
    pub fn follower(&mut self, group: &str) -> u64 {
        let leader = self.leader(group);
        self.nodes.iter().map(|node| node.id).find(|id| *id != leader).expect("more than one node")
    }

    /// Uploads a module through node `id`.
    #[track_caller]
    pub fn upload(&self, id: u64, name: &str, wasm: &[u8]) -> Answer {
        self.node(id).client().post(&format!("/v1/modules?name={name}"), wasm)
    }

    /// Creates a group through node `id`.
    #[track_caller]
    pub fn create(&self, id: u64, group: &str, module: &str) -> Answer {
        let body = json!({ "name": group, "module": module }).to_string();
        self.node(id).client().post("/v1/groups", body)
    }

    /// Uploads a module and creates a group of the same name on it.
    #[track_caller]
    pub fn deploy(&self, name: &str, wasm: &[u8]) {
        self.upload(1, name, wasm).expect(201);
        self.create(1, name, name).expect(201);
    }

    /// Waits until all nodes that run have applied the same entries of the group, and checks that their state is the
    /// same; the index and the digest.
    #[track_caller]
    pub fn assert_equal_state(&self, group: &str) -> (u64, String) {
        let digests = wait::until(&format!("equal indexes of {group}"), || {
            let mut digests = Vec::new();
            for node in self.nodes.iter().filter(|node| node.child.is_some()) {
                match node.client().send(&Request::new("GET", format!("/v1/groups/{group}/digest"))) {
                    Ok(answer) if answer.status == 200 => {
                        let view = answer.json();
                        digests.push((view["applied"].as_u64().unwrap(), view["digest"].as_str().unwrap().to_owned()));
                    }
                    other => return Err(format!("node {}: {other:?}", node.id)),
                }
            }
            if digests.iter().all(|(index, _)| *index == digests[0].0) {
                Ok(digests)
            } else {
                Err(format!("{digests:?}"))
            }
        });
        assert!(digests.iter().all(|digest| *digest == digests[0]), "the replicas of {group} differ: {digests:?}");
        digests[0].clone()
    }
}

/// Asks the nodes one after the other until one answers below 500; what must not act twice has to be in a session.
#[track_caller]
pub fn ask_any(servers: &[SocketAddr], request: &Request<'_>) -> Answer {
    let mut turn = 0;
    wait::until("an answer", || {
        turn += 1;
        match Http::new(servers[turn % servers.len()]).send(request) {
            Ok(answer) if answer.status < 500 => Ok(answer),
            Ok(answer) => Err(answer.to_string()),
            Err(Trouble::NotSent(error) | Trouble::Unclear(error)) => Err(error.to_string()),
        }
    })
}
