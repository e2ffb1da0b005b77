//! `statehouse local`: a cluster for a desk, as child processes of this one.
//!
//! What holds: no node outlives this process, even if it is killed: each child watches its standard
//! input, which is a pipe that only this process holds open. A node that ends by itself is reported
//! and not started again.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use clap::Args;
use serde::Deserialize;
use serde::Serialize;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use super::Call;
use super::Client;
use super::Failure;
use super::Output;
use super::module;
use super::output;
use super::serve::cannot_listen;
use crate::api::schema::Group;
use crate::node::identity::is_of_a_node;

/// How long the nodes may take until all are ready.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// How long they may take to stop before they are killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// How much of a failed node's log is shown.
const LOG_TAIL_BYTES: u64 = 2048;
/// `--code-cache` of the nodes, which one who calls this may set for other nodes too.
const CODE_CACHE: &str = "STATEHOUSE_CODE_CACHE";
/// What the data directory was made for.
const MARK: &str = "local.json";

/// Whether `local` keeps its nodes in the directory.
pub(super) fn is_in(dir: &Path) -> bool {
    dir.join(MARK).exists()
}

/// Run a cluster on this machine, for trying things out
///
/// Starts the nodes as child processes, waits until they are ready, uploads the modules that came with
/// this program, and says what to try. Ctrl-C stops all. The data is kept for the next time.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse local                              three nodes: http://127.0.0.1:7070 to 7072
  statehouse local --nodes 5 --data-dir five --http-base 8070 --peer-base 8170
  statehouse local --keeper                     for ZooKeeper's clients: 127.0.0.1:2181 to 2183
  STATEHOUSE_HEARTBEAT_MS=100 statehouse local  settings of `serve` come by variable or --config")]
pub(super) struct Local {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Where they keep their data and logs: DIR/node-1, DIR/node-1.log, …; not the directory of a node of `serve`
    #[arg(long, value_name = "DIR", default_value = "./statehouse-data")]
    data_dir: PathBuf,
    /// The first node's HTTP port; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 7070)]
    http_base: u16,
    /// The first node's peer port; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 7170)]
    peer_base: u16,
    /// Run `statehouse keeper` on each: nodes that ZooKeeper's clients take for ZooKeeper
    #[arg(long)]
    keeper: bool,
    /// With --keeper, the first node's port for ZooKeeper's clients; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 2181)]
    client_base: u16,
    /// The form of the data on standard output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// What must not change between two runs on the same data.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    nodes: u16,
    peer_base: u16,
}

struct Node {
    id: u16,
    http: SocketAddr,
    /// Where ZooKeeper's clients connect, if they may.
    client: Option<SocketAddr>,
    log: PathBuf,
    child: Child,
    /// Whether its end was reported.
    ended: bool,
}

/// The nodes that run. Dropping them stops them.
struct Cluster(Vec<Node>);

impl Drop for Cluster {
    fn drop(&mut self) {
        // A closed pipe is the wish to stop.
        self.0.iter_mut().for_each(|node| drop(node.child.stdin.take()));
        let deadline = Instant::now() + STOP_TIME_MAX;
        for node in &mut self.0 {
            while let Ok(None) = node.child.try_wait() {
                if Instant::now() > deadline {
                    output::note(format!("node {} does not stop: killing it", node.id));
                    // It may have ended just now.
                    let _ = node.child.kill();
                    let _ = node.child.wait();
                    break;
                }
                std::thread::sleep(POLL);
            }
        }
    }
}

pub(super) async fn run(local: Local, config: Option<PathBuf>) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    prepare(&local)?;
    output::note(format!("starting {} nodes in {}", local.nodes, local.data_dir.display()));
    let mut cluster = Cluster(Vec::new());
    for id in 1..=local.nodes {
        cluster.0.push(start(&local, id, config.as_deref())?);
    }
    let told = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let result = tokio::select! {
        () = told => Ok(()),
        result = tend(&local, &mut cluster) => result,
    };
    output::note("stopping the nodes");
    drop(cluster);
    result
}

fn no_signals(error: std::io::Error) -> Failure {
    Failure::here(format!("cannot listen for signals: {error}"), "run it outside of what forbids that")
}

fn address(base: u16, id: u16) -> Result<SocketAddr, Failure> {
    let port = base
        .checked_add(id - 1)
        .ok_or_else(|| Failure::usage(format!("the ports from {base} on are over 65535"), "give lower ones"))?;
    Ok(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// The first ports that are used, with their flags.
fn bases(local: &Local) -> Vec<(&'static str, u16)> {
    let client = local.keeper.then_some(("--client-base", local.client_base));
    [("--http-base", local.http_base), ("--peer-base", local.peer_base)].into_iter().chain(client).collect()
}

/// Everything that would make a node fail later, with a better message than it could give.
fn prepare(local: &Local) -> Result<(), Failure> {
    let bases = bases(local);
    for (number, (flag, base)) in bases.iter().enumerate() {
        for (other_flag, other) in bases.iter().skip(number + 1) {
            if base.abs_diff(*other) < local.nodes {
                return Err(Failure::usage(
                    format!("{flag} {base} and {other_flag} {other} are closer than --nodes {}", local.nodes),
                    "give them at least so many ports of room",
                ));
            }
        }
    }
    let cannot = |what: &str, path: &Path, error: std::io::Error| {
        Failure::here(format!("cannot {what} {}: {error}", path.display()), "give a --data-dir that can be written")
    };
    fs::create_dir_all(&local.data_dir).map_err(|error| cannot("create", &local.data_dir, error))?;
    let path = local.data_dir.join(MARK);
    let mark = Mark { nodes: local.nodes, peer_base: local.peer_base };
    match fs::read(&path) {
        Ok(text) => {
            let before: Mark = serde_json::from_slice(&text).map_err(|error| {
                Failure::here(format!("{} is damaged: {error}", path.display()), "remove this file")
            })?;
            if before != mark {
                return Err(Failure::usage(
                    format!(
                        "{} holds a cluster of {} nodes with peer ports from {}",
                        local.data_dir.display(),
                        before.nodes,
                        before.peer_base
                    ),
                    format!(
                        "say --nodes {} --peer-base {}, or give another --data-dir",
                        before.nodes, before.peer_base
                    ),
                ));
            }
        }
        // The nodes' directories would lie among its files, and whoever looks for its groups would find none.
        Err(_) if is_of_a_node(&local.data_dir) => {
            return Err(Failure::usage(
                format!("{} is the data directory of a node of `statehouse serve`", local.data_dir.display()),
                "go on with `statehouse serve`, or give another --data-dir",
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::write(&path, serde_json::to_vec(&mark).unwrap_or_default())
                .map_err(|error| cannot("write", &path, error))?;
        }
        Err(error) => return Err(cannot("read", &path, error)),
    }
    for id in 1..=local.nodes {
        for (flag, base) in &bases {
            let address = address(*base, id)?;
            TcpListener::bind(address).map_err(|error| cannot_listen(flag, &address.to_string(), &error))?;
        }
    }
    Ok(())
}

fn start(local: &Local, id: u16, config: Option<&Path>) -> Result<Node, Failure> {
    let (http, peer) = (address(local.http_base, id)?, address(local.peer_base, id)?);
    let peers = (1..=local.nodes)
        .map(|id| Ok(format!("{id}={}", address(local.peer_base, id)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let cannot = |what: String, error: std::io::Error| {
        Failure::here(format!("cannot {what}: {error}"), "check --data-dir and the limits on open files and processes")
    };
    let log = local.data_dir.join(format!("node-{id}.log"));
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(|error| cannot(format!("open {}", log.display()), error))?;
    let to_log = |file: &File| file.try_clone().map_err(|error| cannot(format!("open {}", log.display()), error));
    let program = std::env::current_exe().map_err(|error| cannot("find this program's own file".into(), error))?;
    let mut command = Command::new(program);
    let client = local.keeper.then(|| address(local.client_base, id)).transpose()?;
    command.arg(if local.keeper { "keeper" } else { "serve" });
    if let Some(client) = client {
        command.arg("--client").arg(client.to_string());
    }
    command.arg("--exit-with-parent").arg("--node-id").arg(id.to_string());
    command.arg("--data-dir").arg(local.data_dir.join(format!("node-{id}")));
    // One node compiles for all.
    if std::env::var_os(CODE_CACHE).is_none() {
        command.env(CODE_CACHE, local.data_dir.join("cache"));
    }
    command
        .arg("--http")
        .arg(http.to_string())
        .arg("--peer")
        .arg(peer.to_string())
        .arg("--listen-port-offset")
        .arg((id - 1).to_string())
        .arg("--initial-cluster")
        .arg(peers.join(","));
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    // In a process group of its own: Ctrl-C reaches this process only, which stops the nodes in order.
    command.process_group(0).stdin(Stdio::piped()).stdout(to_log(&file)?).stderr(file);
    let child = command.spawn().map_err(|error| cannot(format!("start node {id}"), error))?;
    Ok(Node { id, http, client, log, child, ended: false })
}

/// Brings the cluster up and watches it until nothing is left to watch.
async fn tend(local: &Local, cluster: &mut Cluster) -> Result<(), Failure> {
    until_ready(cluster).await?;
    let servers: Vec<String> = cluster.0.iter().map(|node| format!("http://{}", node.http)).collect();
    let client = Client::new(&servers)?;
    for (name, wasm) in crate::bundled::all() {
        match module::push(&client, name, bytes::Bytes::from_static(wasm)).await {
            Ok(_) => {}
            // Of an earlier version of this program: its groups run on.
            Err(Failure::Refused { code: Some(code), what, .. }) if code == "already_exists" => {
                output::note(format!("keeping the module {name} that is there: {what}"))
            }
            Err(failure) => return Err(failure),
        }
    }
    announce(local, cluster, &servers)?;
    loop {
        tokio::time::sleep(POLL).await;
        for node in &mut cluster.0 {
            if let (false, Some(how)) = (node.ended, ended(node)) {
                node.ended = true;
                output::note(format!(
                    "node {} ended ({how}); it is not started again. Its log: {}",
                    node.id,
                    node.log.display()
                ));
            }
        }
        if cluster.0.iter().all(|node| node.ended) {
            return Err(Failure::here(
                "all nodes have ended",
                format!("look at the logs in {}", local.data_dir.display()),
            ));
        }
    }
}

fn ended(node: &mut Node) -> Option<String> {
    match node.child.try_wait() {
        Ok(status) => status.map(|status| status.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

async fn until_ready(cluster: &mut Cluster) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_TIME_MAX;
    for number in 0..cluster.0.len() {
        let Some(http) = cluster.0.get(number).map(|node| node.http) else { break };
        let client = Client::new(&[http.to_string()])?;
        loop {
            let Err(failure) = look(&client, cluster.0.get(number).and_then(|node| node.client)).await else { break };
            for node in &mut cluster.0 {
                if let Some(how) = ended(node) {
                    return Err(Failure::here(
                        format!(
                            "node {} ended ({how}). The end of {}:\n{}",
                            node.id,
                            node.log.display(),
                            tail(&node.log)
                        ),
                        "correct what it says and run this again",
                    ));
                }
            }
            if Instant::now() > deadline {
                let why = failure.to_string();
                return Err(Failure::here(
                    format!("the node at {http} is not ready after {} s: {why}", READY_TIME_MAX.as_secs()),
                    "look at the logs in the data directory",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// Whether a node is ready, and listens for ZooKeeper's clients if it is to.
async fn look(client: &Client, listens: Option<SocketAddr>) -> Result<(), Failure> {
    client.send(Call::get("/readyz").within(Duration::from_secs(2))).await?;
    let Some(address) = listens else { return Ok(()) };
    let path = format!("/v1/groups/{}", crate::keeper::settings::GROUP);
    let group: Group = client.send(Call::get(path).within(Duration::from_secs(2))).await?.json()?;
    match group.listeners.iter().find(|listener| listener.address == address.to_string()) {
        Some(listener) if listener.state == "listening" => Ok(()),
        Some(listener) => Err(Failure::here(listener.state.clone(), "wait")),
        None => Err(Failure::here("the group is being opened", "wait")),
    }
}

/// The end of a log, whole lines.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(if start > 0 { text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()) } else { text })
    };
    read()
        .unwrap_or_else(|error| format!("({error})"))
        .trim_end()
        .lines()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn announce(local: &Local, cluster: &Cluster, servers: &[String]) -> Result<(), Failure> {
    if local.output == Output::Json {
        let node = |node: &Node| {
            let mut about = serde_json::json!({ "node": node.id, "http": format!("http://{}", node.http), "pid": node.child.id(), "log": node.log });
            if let (Some(client), Some(about)) = (node.client, about.as_object_mut()) {
                about.insert("client".to_owned(), client.to_string().into());
            }
            about
        };
        return output::json_line(&serde_json::json!({ "nodes": cluster.0.iter().map(node).collect::<Vec<_>>() }));
    }
    let row = |node: &Node| {
        let client = node.client.map(|client| client.to_string());
        let first = [Some(node.id.to_string()), Some(format!("http://{}", node.http)), client];
        let last = [Some(node.child.id().to_string()), Some(node.log.display().to_string())];
        first.into_iter().chain(last).flatten().collect()
    };
    let heading: &[&str] =
        if local.keeper { &["node", "http", "client", "pid", "log"] } else { &["node", "http", "pid", "log"] };
    output::table(heading, cluster.0.iter().map(row).collect())?;
    let modules: Vec<&str> = crate::bundled::all().iter().map(|(name, _)| *name).collect();
    let server = match local.http_base {
        7070 => String::new(),
        _ => format!(" --server {}", servers.first().map_or("", String::as_str)),
    };
    let clients: Vec<String> = cluster.0.iter().filter_map(|node| Some(node.client?.to_string())).collect();
    let try_it = if local.keeper {
        format!(
            "ZooKeeper's clients connect to\n\n  {}\n\nIn another terminal:\n\n  \
             echo srvr | nc {}\n  \
             statehouse group status keeper{server}",
            clients.join(","),
            clients.first().map_or(String::new(), |client| client.replace(':', " ")),
        )
    } else {
        format!(
            "In another terminal:\n\n  \
             statehouse group create c1 --module counter{server}\n  \
             statehouse apply c1 '{{\"Add\":5}}'{server}\n  \
             statehouse query c1 '\"Get\"'{server}\n  \
             curl {}/v1/groups/c1",
            servers.first().map_or("", String::as_str),
        )
    };
    output::note(format!(
        "\nAll {} nodes are ready; the modules {} are loaded. {try_it}\n\nCtrl-C stops all nodes; the data stays in {}.",
        local.nodes,
        listed(&modules),
        local.data_dir.display(),
    ));
    Ok(())
}

/// `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, first)) => format!("{} and {last}", first.join(", ")),
        None => String::new(),
    }
}
