//! `zoo.cfg`, the configuration of an existing ZooKeeper ensemble's member, as settings of `statehouse keeper`.
//!
//! What holds:
//! - Each line either becomes a setting, or is said not to be honoured and why. None is passed over in silence.
//! - What contradicts itself is refused with file and line; of a key that comes twice the last one counts, as in
//!   ZooKeeper, and the others are said not to.
//! - All members read the same cluster out of the same server lines: nothing of this machine enters it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use thiserror::Error;

use super::properties;
use super::properties::Property;
use crate::membership::ListedNode;
use crate::membership::NodeList;

/// Our data is kept here, below `dataDir`.
pub const DATA_FOLDER: &str = "statehouse";
/// ZooKeeper's `tickTime` where the file has none.
const DEFAULT_TICK_TIME_MS: u64 = 3000;
/// ZooKeeper's `maxClientCnxns` where the file has none: who migrates keeps the protection that they had.
const DEFAULT_MAX_CLIENT_CNXNS: u64 = 60;
/// More client connections than any machine has.
const UNLIMITED: u64 = 10_000_000;

/// What a `zoo.cfg` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZooCfg {
    /// The file.
    pub path: PathBuf,
    /// The values by the name of our flag (without the dashes), each with the key that it comes from.
    pub settings: BTreeMap<&'static str, (String, String)>,
    /// The lines that are not honoured.
    pub ignored: Vec<Ignored>,
    /// What the operator should know besides, one sentence each.
    pub notes: Vec<String>,
}

/// A line that is not honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The key.
    pub key: String,
    /// Why not.
    pub reason: String,
}

impl std::fmt::Display for Ignored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {} is not honoured: {}", self.file.display(), self.line, self.key, self.reason)
    }
}

/// A file that cannot be followed.
#[derive(Debug, Error)]
pub enum ZooCfgError {
    /// A file is not there, or not to be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        remedy: String,
    },
    /// A line that makes no sense, alone or with another.
    #[error("{}:{line}: {detail}", file.display())]
    Refused {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        detail: String,
        /// What to do.
        remedy: String,
    },
    /// The file as a whole lacks something.
    #[error("{}: {detail}", file.display())]
    Lacking {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        detail: String,
        /// What to do.
        remedy: String,
    },
}

impl ZooCfgError {
    /// What to do about it.
    pub fn remedy(&self) -> &str {
        match self {
            Self::Unreadable { remedy, .. } | Self::Refused { remedy, .. } | Self::Lacking { remedy, .. } => remedy,
        }
    }
}

/// How a host's name becomes an address of this machine: the system's resolver, or a test's.
pub type Resolve<'a> = &'a dyn Fn(&str, u16) -> std::io::Result<SocketAddr>;

/// The system's resolver; an IPv4 address if there is one, as Java prefers it.
pub fn resolve(host: &str, port: u16) -> std::io::Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    let all: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    let first = all.iter().find(|address| address.is_ipv4()).or(all.first());
    first.copied().ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "it has no address"))
}

/// A property and the file it is from.
#[derive(Clone, Debug)]
struct Line {
    file: PathBuf,
    property: Property,
}

impl Line {
    fn refuse(&self, detail: impl Into<String>, remedy: impl Into<String>) -> ZooCfgError {
        ZooCfgError::Refused {
            file: self.file.clone(),
            line: self.property.line,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }

    fn value(&self) -> &str {
        &self.property.value
    }

    /// A whole number of at least `min`; ZooKeeper's `-1` for "the default" is `None`.
    fn number(&self, min: i64) -> Result<Option<u64>, ZooCfgError> {
        let (key, value) = (&self.property.key, self.value());
        let number = value.parse::<i64>().ok().filter(|number| *number == -1 || *number >= min);
        let number = number.ok_or_else(|| {
            self.refuse(format!("{key} is `{value}`"), format!("write a whole number, at least {min}"))
        })?;
        Ok(u64::try_from(number).ok())
    }

    fn port(&self) -> Result<u16, ZooCfgError> {
        let port = self.number(1)?.and_then(|port| u16::try_from(port).ok());
        port.ok_or_else(|| self.refuse(format!("{} is no port", self.value()), "write a number from 1 to 65535"))
    }

    /// ZooKeeper says `true`, `yes` or nothing like it.
    fn flag(&self) -> Result<bool, ZooCfgError> {
        match self.value().to_ascii_lowercase().as_str() {
            "true" | "yes" => Ok(true),
            "false" | "no" => Ok(false),
            _ => Err(self.refuse(format!("{} is `{}`", self.property.key, self.value()), "write true or false")),
        }
    }
}

/// A `server.N` line.
#[derive(Clone, Debug)]
struct Server {
    line: Line,
    /// Its name in the other members' files, an IPv6 address in brackets.
    host: String,
    /// The quorum port, which becomes our peer port.
    port: u16,
    is_observer: bool,
    /// Where its clients connect: host, if it is given, and port.
    client: Option<(Option<String>, u16)>,
}

impl Server {
    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What single server lines cannot know of each other.
fn check_together(servers: &BTreeMap<u64, Server>) -> Result<(), ZooCfgError> {
    if let Some(server) = servers.values().next_back().filter(|_| servers.values().all(|server| server.is_observer)) {
        return Err(server
            .line
            .refuse("all servers are observers, and nobody votes", "make one of them a participant"));
    }
    let is_wildcard = |server: &Server| bare(&server.host).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    if let Some((id, server)) = servers.iter().find(|(_, server)| servers.len() > 1 && is_wildcard(server)) {
        return Err(server.line.refuse(
            format!("server.{id} is {}, which is a different place for each reader of this file", server.host),
            "write the name by which the other members reach it; quorumListenOnAllIPs=true listens on all addresses",
        ));
    }
    Ok(())
}

/// Reads `path`, the dynamic file that it may name, and `myid`.
pub fn read(path: &Path, resolve: Resolve<'_>) -> Result<ZooCfg, ZooCfgError> {
    Reading::of(path)?.understand(resolve)
}

/// The members that `path`, or the dynamic file that it names, lists: the same for whoever reads it.
pub fn listed_in(path: &Path) -> Result<NodeList, ZooCfgError> {
    let mut reading = Reading::of(path)?;
    reading.check_repeated()?;
    let servers = reading.servers()?;
    if servers.is_empty() {
        return Err(reading.lacking("there is no server.N line", "list the members, as in server.1=host:2888:3888"));
    }
    check_together(&servers)?;
    let node = |server: &Server| ListedNode { address: server.address(), voter: !server.is_observer };
    Ok(servers.iter().map(|(id, server)| (*id, node(server))).collect())
}

fn read_lines(path: &Path, remedy: &str) -> Result<Vec<Line>, ZooCfgError> {
    let bytes = std::fs::read(path).map_err(|source| ZooCfgError::Unreadable {
        path: path.to_owned(),
        source,
        remedy: remedy.to_owned(),
    })?;
    let properties = properties::parse(&bytes).map_err(|(line, detail)| ZooCfgError::Refused {
        file: path.to_owned(),
        line,
        detail,
        remedy: "write a character as itself, or as four hexadecimal digits behind \\u".to_owned(),
    })?;
    Ok(properties.into_iter().map(|property| Line { file: path.to_owned(), property }).collect())
}

struct Reading {
    cfg: ZooCfg,
    /// By key, without `zookeeper.` in front.
    lines: BTreeMap<String, Line>,
    /// `server.N` lines twice are a contradiction, not a habit.
    repeated: Vec<Line>,
}

impl Reading {
    fn new(path: &Path) -> Self {
        let cfg = ZooCfg { path: path.to_owned(), settings: BTreeMap::new(), ignored: Vec::new(), notes: Vec::new() };
        Self { cfg, lines: BTreeMap::new(), repeated: Vec::new() }
    }

    fn of(path: &Path) -> Result<Self, ZooCfgError> {
        let lines = read_lines(path, "check the path given to --zoo-cfg or STATEHOUSE_ZOO_CFG")?;
        let mut reading = Self::new(path);
        reading.take(lines);
        if let Some(line) = reading.last("dynamicConfigFile") {
            let dynamic = PathBuf::from(line.value());
            reading.take(read_lines(&dynamic, &format!("{} names it as dynamicConfigFile", path.display()))?);
        }
        Ok(reading)
    }

    fn take(&mut self, lines: Vec<Line>) {
        for line in lines {
            let key = line.property.key.strip_prefix("zookeeper.").unwrap_or(&line.property.key).to_owned();
            let (file, number) = (line.file.clone(), line.property.line);
            let Some(before) = self.lines.insert(key.clone(), line) else { continue };
            if before.value() == self.lines.get(&key).map_or("", Line::value) {
                continue;
            }
            if key.starts_with("server.") {
                self.repeated.push(before);
            } else {
                self.ignore(&before, format!("{}:{number} sets it again", file.display()));
            }
        }
    }

    fn last(&self, key: &str) -> Option<Line> {
        self.lines.get(key).cloned()
    }

    fn ignore(&mut self, line: &Line, reason: impl Into<String>) {
        self.cfg.ignored.push(Ignored {
            file: line.file.clone(),
            line: line.property.line,
            key: line.property.key.clone(),
            reason: reason.into(),
        });
    }

    fn set(&mut self, flag: &'static str, key: &str, value: impl ToString) {
        self.cfg.settings.insert(flag, (key.to_owned(), value.to_string()));
    }

    fn lacking(&self, detail: impl Into<String>, remedy: impl Into<String>) -> ZooCfgError {
        ZooCfgError::Lacking { file: self.cfg.path.clone(), detail: detail.into(), remedy: remedy.into() }
    }

    fn check_repeated(&self) -> Result<(), ZooCfgError> {
        let Some(before) = self.repeated.first() else { return Ok(()) };
        let key = &before.property.key;
        let again = self.lines.get(key).map_or(0, |line| line.property.line);
        Err(before.refuse(
            format!("{key} is said here and, differently, on line {again}"),
            "keep the line that the other members have too",
        ))
    }

    fn understand(mut self, resolve: Resolve<'_>) -> Result<ZooCfg, ZooCfgError> {
        self.check_repeated()?;
        let data_dir = self.data_dir()?;
        let servers = self.servers()?;
        let own = self.member(&servers, &data_dir, resolve)?;
        self.client(own.as_ref())?;
        self.times()?;
        self.set("client-connections-per-address-max", "maxClientCnxns", DEFAULT_MAX_CLIENT_CNXNS);
        for (key, line) in self.lines.clone() {
            self.single(&key, &line)?;
        }
        self.cfg.ignored.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        Ok(self.cfg)
    }

    fn data_dir(&mut self) -> Result<PathBuf, ZooCfgError> {
        let Some(line) = self.lines.get("dataDir").filter(|line| !line.value().is_empty()) else {
            return Err(self.lacking("dataDir is not set", "name the directory, as in dataDir=/var/lib/zookeeper"));
        };
        let data_dir = PathBuf::from(line.value());
        let ours = data_dir.join(DATA_FOLDER);
        self.set("data-dir", "dataDir", ours.display());
        let theirs = data_dir.join("version-2");
        if theirs.exists() && !ours.exists() {
            self.cfg.notes.push(format!(
                "{} holds ZooKeeper's data, which a node does not read: `statehouse keeper-import {}` takes it over into \
                 the running cluster",
                theirs.display(),
                data_dir.display()
            ));
        }
        Ok(data_dir)
    }

    fn servers(&mut self) -> Result<BTreeMap<u64, Server>, ZooCfgError> {
        let mut servers: BTreeMap<u64, Server> = BTreeMap::new();
        for (key, line) in self.lines.clone() {
            let Some(id) = key.strip_prefix("server.") else { continue };
            let id: u64 = id.parse().ok().filter(|id| *id > 0).ok_or_else(|| {
                line.refuse(
                    format!("`{id}` in {key} is no node id"),
                    "number the members from 1, in their myid files too",
                )
            })?;
            let server = self.server(&line)?;
            let same = servers.iter().find(|(_, other)| (&other.host, other.port) == (&server.host, server.port));
            if let Some((other, _)) = same {
                return Err(line.refuse(
                    format!("server.{id} has the address of server.{other}"),
                    "give each member a host and port of its own",
                ));
            }
            servers.insert(id, server);
        }
        Ok(servers)
    }

    /// `host:port:port[:role][;[address:]client port]`, several addresses with `|` between.
    fn server(&mut self, line: &Line) -> Result<Server, ZooCfgError> {
        let wrong = |what: &str| {
            line.refuse(
                format!("{} is `{}`: {what}", line.property.key, line.value()),
                "write host:port:port, with :participant or :observer and ;clientPort behind it if you like",
            )
        };
        let (addresses, client) = match line.value().split_once(';') {
            Some((addresses, client)) => (addresses.trim(), Some(client.trim())),
            None => (line.value(), None),
        };
        let mut all = addresses.split('|');
        let (host, ports) = host_and_rest(all.next().unwrap_or_default()).ok_or_else(|| wrong("there is no host"))?;
        if all.next().is_some() {
            self.ignore(line, "of several addresses the first is used");
        }
        let mut ports = ports.split(':').map(str::trim);
        let port = ports.next().and_then(|port| port.parse().ok()).filter(|port: &u16| *port > 0);
        let port = port.ok_or_else(|| wrong("the first port is none"))?;
        // ZooKeeper's election port, which nothing here needs.
        let mut role = ports.next();
        if role.is_some_and(|text| text.parse::<u16>().is_ok()) {
            role = ports.next();
        }
        let is_observer = match role.map(str::to_ascii_lowercase).as_deref() {
            None | Some("participant") => false,
            Some("observer") => true,
            Some(other) => return Err(wrong(&format!("`{other}` is no role"))),
        };
        if ports.next().is_some() {
            return Err(wrong("there is too much in it"));
        }
        let client = match client {
            None => None,
            Some(text) => {
                let (host, port) = host_and_rest(text).map_or((None, text), |(host, port)| (Some(host), port));
                let port = port.parse().ok().filter(|port: &u16| *port > 0);
                Some((host, port.ok_or_else(|| wrong("the client port is none"))?))
            }
        };
        Ok(Server { line: line.clone(), host, port, is_observer, client })
    }

    /// Which member this is, who the others are, and where it listens for them.
    fn member(
        &mut self,
        servers: &BTreeMap<u64, Server>,
        data_dir: &Path,
        resolve: Resolve<'_>,
    ) -> Result<Option<Server>, ZooCfgError> {
        let myid = data_dir.join("myid");
        if servers.is_empty() {
            return Ok(None);
        }
        let (id, from) = match (std::fs::read_to_string(&myid), servers.keys().next()) {
            (Ok(text), _) => (self.own_id(&myid, &text)?, "myid"),
            (Err(error), Some(only)) if error.kind() == std::io::ErrorKind::NotFound && servers.len() == 1 => {
                (*only, "server.N")
            }
            (Err(source), _) => {
                let remedy = format!("write this member's number N of its server.N line into {}", myid.display());
                return Err(ZooCfgError::Unreadable { path: myid, source, remedy });
            }
        };
        let Some(own) = servers.get(&id) else {
            return Err(self.lacking(
                format!("there is no server.{id}, but {} says {id}", myid.display()),
                "correct myid, or add the server line in all members' files",
            ));
        };
        self.set("node-id", from, id);
        if let Some(line) = self.last("peerType").filter(|line| is_observer(line.value()) != own.is_observer) {
            self.ignore(&line, format!("server.{id} says which it is, for the other members too"));
        }
        // An observer is no member from the start: it joins those that vote.
        let voters: BTreeMap<u64, &Server> =
            servers.iter().filter(|(_, server)| !server.is_observer).map(|(id, server)| (*id, server)).collect();
        check_together(servers)?;
        let own_key = format!("server.{id}");
        let address = Server::address;
        if own.is_observer {
            let voters: Vec<String> = voters.values().map(|server| address(server)).collect();
            self.set("observer", &own_key, true);
            self.set("join", "server.N", voters.join(","));
            // In whichever order the members are started.
            self.set("join-seconds", "server.N", 0);
            self.set("advertise-peer", &own_key, address(own));
        } else {
            let voters: Vec<String> = voters.iter().map(|(id, server)| format!("{id}={}", address(server))).collect();
            self.set("initial-cluster", "server.N", voters.join(","));
        }
        let on_all = match self.last("quorumListenOnAllIPs") {
            Some(line) => line.flag()?,
            None => false,
        };
        let peer = if on_all {
            SocketAddr::from(([0, 0, 0, 0], own.port))
        } else {
            resolve(bare(&own.host), own.port).map_err(|error| {
                own.line.refuse(
                    format!("the address of this member's host {} is not known: {error}", own.host),
                    "correct the name, or listen on all addresses with quorumListenOnAllIPs=true",
                )
            })?
        };
        self.set("peer", &own_key, peer);
        Ok(Some(own.clone()))
    }

    fn own_id(&self, myid: &Path, text: &str) -> Result<u64, ZooCfgError> {
        text.trim().parse().ok().filter(|id| *id > 0).ok_or_else(|| ZooCfgError::Refused {
            file: myid.to_owned(),
            line: 1,
            detail: format!("`{}` is no number of a member", text.trim()),
            remedy: "write the N of this member's server.N line, from 1".to_owned(),
        })
    }

    /// Where clients connect: `clientPort` and `clientPortAddress`, or what stands behind `;` in the own server line.
    fn client(&mut self, own: Option<&Server>) -> Result<(), ZooCfgError> {
        let port_line = self.last("clientPort").filter(|line| !line.value().is_empty() && line.value() != "-1");
        let address_line = self.last("clientPortAddress").filter(|line| !line.value().is_empty());
        let port = port_line.as_ref().map(Line::port).transpose()?;
        let address = address_line.as_ref().map(|line| bracketed(line.value()));
        if let (None, Some(line)) = (&port_line, &address_line) {
            return Err(line.refuse("clientPortAddress is set, but no clientPort", "add the clientPort"));
        }
        let (host, port, key) = match (own.and_then(|own| Some((own, own.client.clone()?))), port) {
            (Some((own, (host, own_port))), port) => {
                let other_port = port.is_some_and(|port| port != own_port);
                let other_host = matches!((&host, &address), (Some(host), Some(address)) if host != address);
                if other_port || other_host {
                    let line = if other_port { port_line.as_ref() } else { address_line.as_ref() };
                    let line = line.unwrap_or(&own.line);
                    return Err(line.refuse(
                        format!(
                            "{} is {}, but {} on line {} ends in ;{}",
                            line.property.key,
                            line.value(),
                            own.line.property.key,
                            own.line.property.line,
                            own.line.value().split_once(';').map_or("", |(_, client)| client)
                        ),
                        "say the clients' address once",
                    ));
                }
                (host.or(address), own_port, own.line.property.key.clone())
            }
            (None, Some(port)) => (address, port, "clientPort".to_owned()),
            (None, None) => {
                self.cfg.notes.push("no clientPort is set: --client says where clients connect".to_owned());
                return Ok(());
            }
        };
        let host = host.unwrap_or_else(|| "0.0.0.0".to_owned());
        self.set("client", &key, format!("{host}:{port}"));
        Ok(())
    }

    /// What has to do with `tickTime`.
    fn times(&mut self) -> Result<(), ZooCfgError> {
        let number = |line: Option<Line>, min| line.map_or(Ok(None), |line| line.number(min));
        let tick = number(self.last("tickTime"), 1)?.unwrap_or(DEFAULT_TICK_TIME_MS);
        self.set("tick-time-ms", "tickTime", tick);
        let min = number(self.last("minSessionTimeout"), 1)?;
        let max = number(self.last("maxSessionTimeout"), 1)?;
        let (least, most) = (min.unwrap_or(tick.saturating_mul(2)), max.unwrap_or(tick.saturating_mul(20)));
        if let Some(line) = self.last("minSessionTimeout").or_else(|| self.last("maxSessionTimeout"))
            && least > most
        {
            return Err(line.refuse(
                format!("the shortest session timeout, {least} ms, is over the longest, {most} ms"),
                "give a minSessionTimeout that is not over maxSessionTimeout (20 ticks when it is not set)",
            ));
        }
        if let Some(min) = min {
            self.set("session-timeout-min-ms", "minSessionTimeout", min);
        }
        if let Some(max) = max {
            self.set("session-timeout-max-ms", "maxSessionTimeout", max);
        }
        Ok(())
    }

    /// A line that stands for itself.
    fn single(&mut self, key: &str, line: &Line) -> Result<(), ZooCfgError> {
        let limit = |line: &Line| line.number(0).map(|limit| limit.filter(|limit| *limit > 0).unwrap_or(UNLIMITED));
        match key {
            "maxClientCnxns" => self.set("client-connections-per-address-max", key, limit(line)?),
            "maxCnxns" => self.set("client-connections-max", key, limit(line)?),
            "4lw.commands.whitelist" => self.set("four-letter-words", key, line.value()),
            "jute.maxbuffer" => {
                // Java reads 0x… as well.
                let value = line.value();
                let hex = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"));
                let number = hex.map_or_else(|| value.parse().ok(), |digits| u32::from_str_radix(digits, 16).ok());
                let number = number.filter(|bytes: &u32| *bytes >= 1024);
                let number = number.ok_or_else(|| {
                    line.refuse(format!("{key} is `{value}`"), "write a number of bytes, at least 1024")
                })?;
                self.set("jute-max-buffer", key, number);
            }
            "extendedTypesEnabled" => self.set("extended-types", key, line.flag()?),
            "DigestAuthenticationProvider.superDigest" => self.set("super-digest", key, line.value()),
            "DigestAuthenticationProvider.enabled" => self.set("digest-auth", key, line.flag()?),
            "znode.container.checkIntervalMs" => {
                if let Some(interval) = line.number(1)? {
                    self.set("container-check-interval-ms", key, interval);
                }
            }
            "znode.container.maxNeverUsedIntervalMs" => {
                if let Some(interval) = line.number(0)? {
                    self.set("container-max-never-used-ms", key, interval);
                }
            }
            "enforceQuota" | "enforce.quota" => self.set("enforce-quota", key, line.flag()?),
            "readonlymode.enabled" => self.set("read-only-mode", key, line.flag()?),
            "audit.enable" => self.set("audit", key, line.flag()?),
            "skipACL" => self.set("skip-acl", key, line.flag()?),
            "reconfigEnabled" => self.set("reconfig-enabled", key, line.flag()?),
            "syncLimit" => {
                if let Some(ticks) = line.number(1)? {
                    self.set("sync-limit-ticks", key, ticks);
                }
            }
            "snapCount" => {
                if let Some(entries) = line.number(2)? {
                    self.set("snapshot-entries", key, entries);
                }
            }
            "autopurge.snapRetainCount" => {
                if let Some(count) = line.number(1)? {
                    self.set("snapshots-kept", key, count);
                }
            }
            "admin.serverPort" => {
                let host = match self.last("admin.serverAddress") {
                    Some(line) if line.value().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) => {
                        bracketed(line.value())
                    }
                    _ => "127.0.0.1".to_owned(),
                };
                let port = line.port()?;
                self.set("http", key, format!("{host}:{port}"));
            }
            "admin.serverAddress" => {
                if !line.value().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
                    self.ignore(line, "the HTTP API can do everything, so it stays on loopback; --http says otherwise");
                }
            }
            "peerType" => {
                if !line.value().eq_ignore_ascii_case("participant") && !is_observer(line.value()) {
                    return Err(line.refuse(format!("peerType is `{}`", line.value()), "write participant or observer"));
                }
            }
            "dataDir"
            | "clientPort"
            | "clientPortAddress"
            | "tickTime"
            | "minSessionTimeout"
            | "maxSessionTimeout"
            | "dynamicConfigFile"
            | "quorumListenOnAllIPs" => {}
            _ if key.starts_with("server.") => {}
            _ => {
                let reason = not_honoured(key);
                // What is switched off here and there alike needs no word.
                let is_off = matches!(line.value().to_ascii_lowercase().as_str(), "false" | "no");
                if !(is_off && reason.is_some_and(|(_, off_is_ours)| off_is_ours)) {
                    self.ignore(line, reason.map_or("it is not known here", |(reason, _)| reason));
                }
            }
        }
        Ok(())
    }
}

/// Host, and what stands behind it and its colon. An IPv6 address is in brackets.
fn host_and_rest(text: &str) -> Option<(String, &str)> {
    let text = text.trim();
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => {
            let (ip, rest) = inner.split_once(']')?;
            (format!("[{ip}]"), rest.strip_prefix(':')?)
        }
        None => {
            let (host, rest) = text.split_once(':')?;
            (host.trim().to_owned(), rest)
        }
    };
    (!host.is_empty() && host != "[]").then_some((host, rest))
}

fn is_observer(role: &str) -> bool {
    role.eq_ignore_ascii_case("observer")
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

/// Why a known key is not honoured, and whether `false` would be what is done here anyway.
fn not_honoured(key: &str) -> Option<(&'static str, bool)> {
    const NO_TLS: &str = "this version has no TLS";
    const NO_SASL: &str = "this version has no SASL";
    Some(match key {
        "dataLogDir" => ("log and snapshots are together below dataDir", false),
        "initLimit" => ("a member that comes back takes the time it needs", false),
        "connectToLearnerMasterLimit" => ("a member that comes back takes the time it needs", false),
        "electionAlg" | "electionPortBindRetry" | "cnxTimeout" | "quorum.cnxn.threads.size" => {
            ("elections are Raft's: --election-timeout-ms, --heartbeat-ms", false)
        }
        "preAllocSize" => ("--log-segment-bytes says how large a log file is", false),
        "autopurge.purgeInterval" => ("old snapshots and logs go as soon as they are not needed", false),
        "standaloneEnabled" => ("a single member is a cluster of one, and stays one", true),
        "secureClientPort"
        | "secureClientPortAddress"
        | "sslQuorum"
        | "portUnification"
        | "sslQuorumReloadCertFiles"
        | "client.portUnification"
        | "client.certReload" => (NO_TLS, true),
        "localSessionsEnabled" | "localSessionsUpgradingEnabled" => ("every session is the cluster's", true),
        "leaderServes" => ("every member serves clients", false),
        "syncEnabled" => ("observers write their log as every member does", false),
        "forceSync" => ("nothing is acknowledged before it is synced, whatever a file says", false),
        "observerMasterPort" => ("observers follow the leader itself", false),
        "clientPortListenBacklog" => ("the system's own limit holds", false),
        "globalOutstandingLimit" => ("requests are bounded a connection, by --outstanding-limit", false),
        "admin.enableServer" => ("the HTTP API on --http is how the node is driven", false),
        "admin.idleTimeout" | "admin.commandURL" | "admin.portUnification" | "admin.needClientAuth" => {
            ("the HTTP API is another one: /openapi.json", true)
        }
        "version" => ("the cluster keeps its members itself", false),
        "snapSizeLimitInKb" => ("--snapshot-bytes says how much log calls for a snapshot", false),
        "maxResponseCacheSize" | "maxGetChildrenResponseCacheSize" => ("replies are made anew", false),
        "fsync.warningthresholdms" | "requestTimeout" => ("the times of syncs and requests are metrics", false),
        "digest.enabled" => ("`statehouse group digest` compares the members' states", true),
        "commitProcessor.numWorkerThreads" | "nioserver.numSelectorThreads" | "nioserver.numWorkerThreads" => {
            ("--worker-threads says how many threads there are", false)
        }
        _ if key.starts_with("ssl.") => (NO_TLS, true),
        _ if key.starts_with("authProvider.") || key.starts_with("quorum.auth.") => (NO_SASL, true),
        _ if key.starts_with("sasl.") || key.starts_with("kerberos.") || key.contains("Login") => (NO_SASL, true),
        _ if key.starts_with("metricsProvider.") => ("metrics are at /metrics of --http, in Prometheus's form", false),
        _ if key.starts_with("weight.") || key.starts_with("group.") => ("every member has one vote", false),
        _ if key.starts_with("jvm.") => ("there is no JVM", true),
        _ if key.starts_with("netty.") || key == "serverCnxnFactory" || key == "clientCnxnSocket" => {
            ("there is no Netty", true)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
