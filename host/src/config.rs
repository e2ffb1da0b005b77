//! What a node is told: [`ServeConfig`], and the one way in which a flag, an environment variable and
//! a key of the TOML file are the same thing.
//!
//! There is one set of names and one parser. The flag `--heartbeat-ms` is the variable
//! `STATEHOUSE_HEARTBEAT_MS` and the file's key `heartbeat-ms` (or `heartbeat_ms`). Flags win over
//! variables, variables over the file, the file over the defaults: [`prepare`] gives every flag its
//! variable, and turns the file's values into the flags' default values before anything is parsed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use clap::Command;
use clap::FromArgMatches;
use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use thiserror::Error;

use crate::membership::ListedNode;
use crate::membership::NodeList;

/// What a node is started with. Every field is a flag of `statehouse serve`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// This node's id: a number from 1, never used by another node of the cluster
    #[arg(long, value_name = "ID", default_value_t = 1, help_heading = "Node")]
    pub node_id: u64,

    /// Where the log, snapshots and modules live; created when it is not there. Not the directory of `statehouse local`
    #[arg(long, value_name = "DIR", default_value = "./statehouse-data", help_heading = "Node")]
    pub data_dir: PathBuf,

    /// Where compiled modules are kept; nodes of one user on one machine may share it, and each module is compiled
    /// once [default: `cache` in the data directory]
    #[arg(long, value_name = "DIR", help_heading = "Node")]
    pub code_cache: Option<PathBuf>,

    /// The address of the HTTP API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070", help_heading = "Node")]
    pub http: SocketAddr,

    /// The address other nodes reach this one at
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7170", help_heading = "Node")]
    pub peer: SocketAddr,

    /// The URL that clients reach this node's HTTP API at, when it is not `http://` and `--http`
    #[arg(long, value_name = "URL", help_heading = "Node")]
    pub advertise_http: Option<String>,

    /// Listen on addresses other than loopback although there is neither TLS nor a password
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "Node")]
    pub insecure: bool,

    /// Exit when standard input closes: for a parent that must not leave nodes behind
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "Node")]
    pub exit_with_parent: bool,

    /// All nodes of a new cluster, this one too: `1=HOST:PORT,2=HOST:PORT,…` (peer addresses); empty
    /// for a single node. Read on the first start only
    #[arg(long, value_name = "ID=ADDR,…", default_value = "", value_parser = parse_cluster,
          hide_default_value = true, help_heading = "Cluster")]
    pub initial_cluster: BTreeMap<u64, String>,

    /// Follow the list of nodes in the configuration file (`initial-cluster` in --config, `server.N` in --zoo-cfg): when it is edited
    /// on a majority of the nodes, the cluster gets the nodes that it lists. On all nodes or none; docs/operations/membership.md
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true,
          help_heading = "Cluster")]
    pub members_from_config: bool,

    /// The file and its list, with --members-from-config: whoever reads the command line reads it
    #[arg(skip)]
    pub followed: Option<Followed>,

    /// Join a cluster that is there, instead of --initial-cluster: the peer addresses of some of its nodes. Read
    /// until the node has joined
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',', value_parser = parse_address, help_heading = "Cluster")]
    pub join: Vec<String>,

    /// How long the nodes at --join are asked to let this one in before it gives up; 0: until they do
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Cluster")]
    pub join_seconds: u64,

    /// The address that other nodes reach --peer at, when it is another: what --join tells them
    #[arg(long, value_name = "ADDR", value_parser = parse_address, help_heading = "Cluster")]
    pub advertise_peer: Option<String>,

    /// When this node's log is damaged, and a majority of the other nodes is well: set it aside and get everything
    /// again from them. `false`: do not start
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, help_heading = "Cluster")]
    pub repair_from_peers: bool,

    /// The cluster's name; nodes of another name are refused
    #[arg(long, value_name = "NAME", default_value = "statehouse", help_heading = "Cluster")]
    pub cluster_name: String,

    /// How often a leader tells its followers that it is there, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 200, help_heading = "Cluster")]
    pub heartbeat_ms: u64,

    /// How long a follower waits for a leader before it stands for election, milliseconds: a random
    /// time from this to half as much again
    #[arg(long, value_name = "MS", default_value_t = 1000, help_heading = "Cluster")]
    pub election_timeout_ms: u64,

    /// How much this node is to lead, 1 to 255: a leader hands over to a voter of a higher priority that lacks little. 0: it
    /// votes and holds everything, and leads only while nobody else can
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Cluster")]
    pub election_priority: u8,

    /// This node never leads a group that has another voter, whatever priorities say: it votes and holds everything, and where
    /// it alone could lead, nobody does until others are back
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true,
          help_heading = "Cluster")]
    pub never_lead: bool,

    /// Take a snapshot of a group after this many entries
    #[arg(long, value_name = "N", default_value_t = 100_000, help_heading = "Log and snapshots")]
    pub snapshot_entries: u64,

    /// … or after this many bytes of log
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = parse_bytes, help_heading = "Log and snapshots")]
    pub snapshot_bytes: u64,

    /// … or after this many seconds, if anything changed; 0 for never
    #[arg(long, value_name = "S", default_value_t = 3600, help_heading = "Log and snapshots")]
    pub snapshot_interval_s: u64,

    /// How much log a leader keeps behind its snapshot for members that still need it, so that they need no snapshot; as much
    /// as the snapshot has, if that is more. 0 for none
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = parse_bytes, help_heading = "Log and snapshots")]
    pub follower_log_bytes: u64,

    /// How many snapshots of a group are kept
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Log and snapshots")]
    pub snapshots_kept: u64,

    /// The size of a log segment's file
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = parse_bytes, help_heading = "Log and snapshots")]
    pub log_segment_bytes: u64,

    /// How much of the newest log is kept in memory, over all groups
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = parse_bytes, help_heading = "Log and snapshots")]
    pub log_cache_bytes: u64,

    /// How fast snapshots go out to other nodes, all of them together, bytes a second; 0 for as fast as it goes. They have a
    /// connection of their own, but share network, disks and processors with what clients wait for
    #[arg(long, value_name = "BYTES", default_value = "32MiB", value_parser = parse_bytes, help_heading = "Log and snapshots")]
    pub transfer_bytes_per_second: u64,

    /// How many snapshots go out at once; others wait for their turn
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Log and snapshots")]
    pub transfers_max: u64,

    /// With less than this free on the disk the node takes no commands (disk_full), so that its log survives; snapshots leave
    /// half of it. 0 for never mind [default: four log segments]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Log and snapshots")]
    pub disk_reserve: Option<u64>,

    /// Threads for consensus and connections; 0 for one a two cores. Syncs and guest code have threads of their own
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1024), help_heading = "Limits")]
    pub worker_threads: u64,

    /// The largest command or query
    #[arg(long, value_name = "BYTES", default_value = "1MiB", value_parser = parse_bytes, help_heading = "Limits")]
    pub command_bytes_max: u64,

    /// The largest module
    #[arg(long, value_name = "BYTES", default_value = "32MiB", value_parser = parse_bytes, help_heading = "Limits")]
    pub module_bytes_max: u64,

    /// The most linear memory a group's module may have. The value of the node that creates a group
    /// becomes the group's, on all nodes
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = parse_bytes, help_heading = "Limits")]
    pub group_memory_bytes_max: u64,

    /// How long a request may take when it does not say so itself (`Statehouse-Timeout-Ms`)
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub request_timeout_ms: u64,

    /// How many events of a group are kept for subscribers that come back, and never more than 8 MiB
    #[arg(long, value_name = "N", default_value_t = 10_000, help_heading = "Limits")]
    pub events_kept: u64,

    /// The shortest session timeout that is granted
    #[arg(long, value_name = "MS", default_value_t = 1_000, help_heading = "Limits")]
    pub session_timeout_min_ms: u64,

    /// The longest session timeout that is granted
    #[arg(long, value_name = "MS", default_value_t = 86_400_000, help_heading = "Limits")]
    pub session_timeout_max_ms: u64,

    /// How many HTTP connections are served at once; further ones wait
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub http_connections_max: u64,

    /// How long an HTTP connection may be idle, or take to send a request's headers
    #[arg(long, value_name = "MS", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub http_header_timeout_ms: u64,

    /// Where this node listens for clients of a group's adapter, instead of where `group create --listen`
    /// says: `GROUP=HOST:PORT` (repeatable, or a list with commas), `GROUP=off` for nowhere
    #[arg(long, value_name = "GROUP=ADDR", action = clap::ArgAction::Append, value_delimiter = ',',
          value_parser = parse_listen, help_heading = "Clients of adapters")]
    pub listen: Vec<(String, Option<String>)>,

    /// What this node's listeners are told over what the groups' own say, by group: for verbs that are built on `serve`
    #[arg(skip)]
    pub listen_params: BTreeMap<String, serde_json::Value>,

    /// The groups whose adapters may have this node go on without the others: for verbs that are built on `serve`
    #[arg(skip)]
    pub recovered_by: BTreeSet<String>,

    /// Added to the ports that `group create --listen` says, so that several nodes find room on one machine
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Clients of adapters")]
    pub listen_port_offset: u16,

    /// How many client connections a group's listeners have at once; further ones are closed
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Clients of adapters")]
    pub client_connections_max: u64,

    /// How many of these may come from one address
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Clients of adapters")]
    pub client_connections_per_address_max: u64,

    /// How much may wait for a client that does not read before it is disconnected
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = parse_bytes, help_heading = "Clients of adapters")]
    pub client_queue_bytes_max: u64,

    /// How long a client connection may be silent; 0 for ever
    #[arg(long, value_name = "MS", default_value_t = 0, help_heading = "Clients of adapters")]
    pub client_idle_ms: u64,

    /// Let adapters add and remove the cluster's nodes for clients whom they trust
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true,
          help_heading = "Clients of adapters")]
    pub adapters_change_nodes: bool,

    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter as `info,statehouse::log=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", help_heading = "Observation")]
    pub log_level: String,

    /// How it is logged
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text, help_heading = "Observation")]
    pub log_format: LogFormat,
}

/// A configuration file whose list of nodes is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The file.
    pub path: PathBuf,
    /// Its syntax.
    pub syntax: ListSyntax,
    /// What it listed when the node was started.
    pub list: NodeList,
}

/// How a file lists nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListSyntax {
    /// `initial-cluster` of a TOML file.
    Toml,
    /// `server.N` of a `zoo.cfg`.
    ZooCfg,
}

/// The nodes that a TOML file lists as `initial-cluster`: all are to vote.
///
/// # Errors
/// Why there is no such list, in words.
pub fn listed_in(path: &Path) -> Result<NodeList, String> {
    let file = ConfigFile::read(path).map_err(|error| error.to_string())?;
    let text = file.value("initial-cluster").ok_or_else(|| format!("{} sets no initial-cluster", path.display()))?;
    let nodes = parse_cluster(&text).map_err(|error| format!("{}: initial-cluster: {error}", path.display()))?;
    if nodes.is_empty() {
        return Err(format!("{}: initial-cluster lists no node", path.display()));
    }
    Ok(nodes.into_iter().map(|(id, address)| (id, ListedNode { address, voter: true })).collect())
}

/// The form of the process's own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

impl Default for ServeConfig {
    /// The defaults of the command line, without a look at environment or file.
    fn default() -> Self {
        let matches =
            Self::augment_args(Command::new("serve").no_binary_name(true)).get_matches_from(Vec::<OsString>::new());
        match Self::from_arg_matches(&matches) {
            Ok(config) => config,
            Err(error) => error.exit(),
        }
    }
}

impl ServeConfig {
    /// Checks what single flags cannot know of each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |detail: String, remedy: &str| Err(ConfigError::Refused { detail, remedy: remedy.into() });
        if self.node_id == 0 {
            return refuse("--node-id is 0".into(), "number the nodes from 1");
        }
        if self.heartbeat_ms == 0 {
            return refuse("--heartbeat-ms is 0".into(), "200 suits most networks");
        }
        if self.election_timeout_ms < self.heartbeat_ms.saturating_mul(2) {
            return refuse(
                format!(
                    "--election-timeout-ms {} is less than twice --heartbeat-ms {}",
                    self.election_timeout_ms, self.heartbeat_ms
                ),
                "five times the heartbeat keeps one lost message from costing the leader its office",
            );
        }
        // A node that its followed file does not list any more starts, and learns that it was removed.
        let must_be_listed = !self.initial_cluster.is_empty() && !self.members_from_config;
        if must_be_listed && !self.initial_cluster.contains_key(&self.node_id) {
            return refuse(
                format!(
                    "--initial-cluster names the nodes {}, but not this one, --node-id {}",
                    list(self.initial_cluster.keys()),
                    self.node_id
                ),
                "give all nodes the same --initial-cluster, with every node in it",
            );
        }
        if !self.join.is_empty() && !self.initial_cluster.is_empty() {
            return refuse(
                "--join and --initial-cluster are both given".into(),
                "--initial-cluster begins a cluster, --join comes to one: give one of them",
            );
        }
        if !self.join.is_empty() && self.advertise_peer.is_none() && self.peer.ip().is_unspecified() {
            return refuse(
                format!(
                    "--join tells the others to reach this node at --peer {}, which is no address of it",
                    self.peer
                ),
                "give the address they reach it at with --advertise-peer",
            );
        }
        if self.cluster_name.is_empty() {
            return refuse("--cluster-name is empty".into(), "leave it out, or give the same name to all nodes");
        }
        if self.session_timeout_min_ms == 0 || self.session_timeout_min_ms > self.session_timeout_max_ms {
            return refuse(
                format!(
                    "--session-timeout-min-ms {} and --session-timeout-max-ms {} leave no timeout to grant",
                    self.session_timeout_min_ms, self.session_timeout_max_ms
                ),
                "give a minimum of at least 1 that is not over the maximum",
            );
        }
        if self.command_bytes_max == 0 || self.command_bytes_max > self.log_segment_bytes / 4 {
            return refuse(
                format!(
                    "--command-bytes-max {} is not between 1 and a quarter of --log-segment-bytes {}",
                    self.command_bytes_max, self.log_segment_bytes
                ),
                "a command must fit into a log segment with room to spare: make it smaller or the segments larger",
            );
        }
        for (flag, address) in [("--http", self.http), ("--peer", self.peer)] {
            if !address.ip().is_loopback() && !self.insecure {
                return refuse(
                    format!(
                        "{flag} {address} is reachable from other machines, and this version has neither TLS nor passwords"
                    ),
                    "bind a loopback address, or say --insecure if the network itself is closed",
                );
            }
        }
        Ok(())
    }

    /// What looks like a mistake, and may be right: the others are told an address that this node does not listen at. Where one
    /// forwards to the other, --advertise-peer says so.
    pub fn doubt(&self) -> Option<String> {
        let told = self.initial_cluster.get(&self.node_id)?;
        let remedy = match &self.advertise_peer {
            Some(advertised) if advertised == told => return None,
            Some(_) => "give both the same address",
            None => "make the two the same, or say --advertise-peer with the one in --initial-cluster",
        };
        let (host, port) = told.rsplit_once(':')?;
        let other_port = port.parse() != Ok(self.peer.port());
        // A name may be any address; listening on all of them is listening on this one.
        let host = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let other_host = host.is_ok_and(|host| host != self.peer.ip() && !self.peer.ip().is_unspecified());
        let own = match &self.advertise_peer {
            Some(advertised) => format!("--advertise-peer says {advertised}"),
            None if other_port || other_host => format!("it listens at --peer {}", self.peer),
            None => return None,
        };
        Some(format!("--initial-cluster tells the others to reach this node at {told}, but {own}: {remedy}"))
    }

    /// The addresses of `--listen` by group; an empty list for `off`.
    pub fn listen_addresses(&self) -> BTreeMap<String, Vec<String>> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (group, address) in &self.listen {
            all.entry(group.clone()).or_default().extend(address.clone());
        }
        all
    }

    /// With less than this free on the disk no commands are taken. The log may need as much as two segments at a moment's
    /// notice, and the other half is a margin for what else writes to the disk.
    pub fn disk_reserve_bytes(&self) -> u64 {
        self.disk_reserve.unwrap_or(self.log_segment_bytes.saturating_mul(4))
    }

    /// The address that other nodes reach this one at.
    pub fn peer_address(&self) -> String {
        self.advertise_peer.clone().unwrap_or_else(|| self.peer.to_string())
    }

    /// The URL that clients reach this node's HTTP API at.
    pub fn http_url(&self) -> String {
        self.advertise_http.clone().unwrap_or_else(|| format!("http://{}", self.http))
    }
}

fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Reads `HOST:PORT`.
fn parse_address(text: &str) -> Result<String, String> {
    let text = text.trim();
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not HOST:PORT")),
    }
}

/// Reads `1=HOST:PORT,2=HOST:PORT`.
fn parse_cluster(text: &str) -> Result<BTreeMap<u64, String>, String> {
    let mut nodes: BTreeMap<u64, String> = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (id, address) = part.split_once('=').ok_or_else(|| format!("`{part}` is not ID=HOST:PORT"))?;
        let id: u64 = id
            .trim()
            .parse()
            .ok()
            .filter(|id| *id > 0)
            .ok_or_else(|| format!("`{id}` in `{part}` is not a node id from 1"))?;
        let address = parse_address(address).map_err(|error| format!("in `{part}`, {error}"))?;
        if nodes.values().any(|other| *other == address) {
            return Err(format!("the address {address} is given to two nodes"));
        }
        if nodes.insert(id, address).is_some() {
            return Err(format!("node {id} is named twice"));
        }
    }
    Ok(nodes)
}

/// Reads `GROUP=HOST:PORT` or `GROUP=off`.
fn parse_listen(text: &str) -> Result<(String, Option<String>), String> {
    let (group, address) =
        text.split_once('=').filter(|(group, _)| !group.is_empty()).ok_or("it is not GROUP=HOST:PORT")?;
    if address == "off" {
        return Ok((group.to_owned(), None));
    }
    Ok((group.to_owned(), Some(parse_address(address)?)))
}

/// Reads a size: bytes, or with a suffix `KiB`, `MiB`, `GiB` (or `K`, `M`, `G`: the same powers of two).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        other => return Err(format!("`{other}` is no unit; write bytes, or a number with KiB, MiB or GiB")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is no size; write bytes, or a number with KiB, MiB or GiB"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is more than 64 bits hold"))
}

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not TOML: {detail}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// The parser's text, with line and column.
        detail: String,
    },
    /// The file has a key that is no flag.
    #[error("{} has the key `{key}`, which is no setting", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key as written.
        key: String,
        /// The nearest key that is a setting.
        nearest: Option<String>,
    },
    /// The file gives a setting twice, as `a-b` and as `a_b`.
    #[error("{} sets `{key}` twice", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A value of a kind that no flag takes.
    #[error("{}: the value of `{key}` is a {kind}", path.display())]
    BadKind {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What TOML calls the value.
        kind: &'static str,
    },
    /// Values that do not go together.
    #[error("{detail}")]
    Refused {
        /// Which flags, with their values.
        detail: String,
        /// What to do.
        remedy: String,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unreadable { .. } => "check the path given to --config or STATEHOUSE_CONFIG".into(),
            Self::NotToml { .. } => "write one `name = value` a line".into(),
            Self::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Self::UnknownKey { nearest: None, .. } => {
                "`statehouse serve --help` lists the settings; the keys are the flags without the dashes in front"
                    .into()
            }
            Self::Twice { .. } => "keep one of the two lines".into(),
            Self::BadKind { .. } => {
                "write a string, a number, true or false, a list of these, or a table of strings".into()
            }
            Self::Refused { remedy, .. } => remedy.clone(),
        }
    }
}

/// The values of a TOML file, by flag name (without the dashes in front), as a command line would give them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFile {
    path: PathBuf,
    /// Flag name to (key as written, values).
    values: BTreeMap<String, (String, Vec<String>)>,
}

impl ConfigFile {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::NotToml {
            path: path.into(),
            detail: error.to_string().trim().to_owned(),
        })?;
        let mut values = BTreeMap::new();
        for (key, value) in table {
            let given = match value {
                toml::Value::Array(items) => items
                    .into_iter()
                    .map(scalar)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|kind| ConfigError::BadKind { path: path.into(), key: key.clone(), kind })?,
                toml::Value::Table(pairs) => pairs
                    .into_iter()
                    .map(|(name, value)| scalar(value).map(|value| format!("{name}={value}")))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|kind| ConfigError::BadKind { path: path.into(), key: key.clone(), kind })?,
                other => vec![scalar(other).map_err(|kind| ConfigError::BadKind {
                    path: path.into(),
                    key: key.clone(),
                    kind,
                })?],
            };
            let name = key.replace('_', "-");
            if values.insert(name, (key.clone(), given)).is_some() {
                return Err(ConfigError::Twice { path: path.into(), key });
            }
        }
        Ok(Self { path: path.into(), values })
    }

    /// The values of a file in another syntax, by flag name, each with the key as written there.
    pub fn translated(path: PathBuf, values: impl IntoIterator<Item = (String, (String, String))>) -> Self {
        let values = values.into_iter().map(|(flag, (key, value))| (flag, (key, vec![value]))).collect();
        Self { path, values }
    }

    /// Whether the file sets this flag.
    pub fn sets(&self, flag: &str) -> bool {
        self.values.contains_key(flag)
    }

    /// What the file sets this flag to, as a command line would say it.
    pub fn value(&self, flag: &str) -> Option<String> {
        self.values.get(flag).map(|(_, values)| values.join(","))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn scalar(value: toml::Value) -> Result<String, &'static str> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(yes) => Ok(yes.to_string()),
        toml::Value::Datetime(_) => Err("date"),
        toml::Value::Array(_) => Err("list inside a list or table"),
        toml::Value::Table(_) => Err("table inside a list or table"),
    }
}

/// The environment variable of a flag: `--data-dir` is `STATEHOUSE_DATA_DIR`.
pub fn variable(flag: &str) -> String {
    format!("STATEHOUSE_{}", flag.replace('-', "_").to_ascii_uppercase())
}

/// The file that the command line (`FLAG FILE`, `FLAG=FILE`; the flag is `--config` or its like) or else `variable` names.
pub fn file_named_by(args: &[OsString], flag: &str, variable: Option<OsString>) -> Option<PathBuf> {
    let mut rest = args.iter().skip(1);
    while let Some(arg) = rest.next() {
        if arg == "--" {
            break;
        }
        if arg == flag {
            return rest.next().map(PathBuf::from);
        }
        let value = arg.to_str().and_then(|arg| arg.strip_prefix(flag)?.strip_prefix('='));
        if let Some(path) = value {
            return Some(PathBuf::from(path));
        }
    }
    variable.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Gives every flag of `command` and of the verbs below it its environment variable, and the file's
/// value as its default. A key of the file that is no flag of any verb is an error.
pub fn prepare(command: Command, file: Option<&ConfigFile>) -> Result<Command, ConfigError> {
    let mut known = BTreeSet::new();
    collect_flags(&command, &mut known);
    if let Some(file) = file {
        for (name, (key, _)) in &file.values {
            if !known.contains(name) || name == "config" {
                let nearest = nearest(name, &known);
                return Err(ConfigError::UnknownKey { path: file.path.clone(), key: key.clone(), nearest });
            }
        }
    }
    Ok(with_sources(command, file))
}

fn collect_flags(command: &Command, known: &mut BTreeSet<String>) {
    known.extend(command.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned));
    command.get_subcommands().for_each(|verb| collect_flags(verb, known));
}

/// Gives every flag of `command` and of the verbs below it its environment variable, and the file's value as its
/// default; a file that is put in later wins.
pub fn with_sources(command: Command, file: Option<&ConfigFile>) -> Command {
    let command = command.mut_args(|arg| {
        let Some(flag) = arg.get_long().map(str::to_owned) else { return arg };
        if matches!(
            arg.get_action(),
            clap::ArgAction::Help | clap::ArgAction::HelpLong | clap::ArgAction::HelpShort | clap::ArgAction::Version
        ) {
            return arg;
        }
        let list = matches!(arg.get_action(), clap::ArgAction::Append);
        let arg = arg.env(variable(&flag)).hide_env(true);
        let Some((_, values)) = file.and_then(|file| file.values.get(&flag)) else { return arg };
        let arg = arg.required(false);
        if list { arg.default_values(values.clone()) } else { arg.default_value(values.join(",")) }
    });
    command.mut_subcommands(|verb| with_sources(verb, file))
}

/// The known name that is fewest edits away from `name`, if it is at all like it.
fn nearest(name: &str, known: &BTreeSet<String>) -> Option<String> {
    let (distance, best) =
        known.iter().filter(|other| *other != "config").map(|other| (edits(name, other), other)).min()?;
    (distance <= 1 + name.len() / 3).then(|| best.clone())
}

/// How many characters must be put in, taken out or changed to make `a` of `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.iter().zip(row.iter().skip(1)) {
            let change = diagonal + usize::from(x != *y);
            diagonal = *above;
            left = change.min(left + 1).min(above + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
