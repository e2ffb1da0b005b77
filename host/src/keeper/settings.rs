//! What a ZooKeeper replacement is told: [`KeeperConfig`], every field a flag of `statehouse keeper` beside those of
//! `serve`; and what becomes of it: the node's configuration, the group's params, the listener's settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::config::ConfigError;
use crate::config::ServeConfig;
use crate::config::parse_bytes;

/// The group that holds the znodes.
pub const GROUP: &str = "keeper";
/// The bundled module that it runs.
pub const MODULE: &str = "znode-tree";

/// The word of an operator who gives up the other servers. Whoever reaches the port may say it: only who names it lets it be said.
const RECOVER_WORD: &str = "rcvr";

/// A call carries a request's bytes, who sent it, and little more.
const CALL_OVERHEAD_BYTES: u64 = 64 << 10;

/// Five bytes: what ZooKeeper keeps of a time to live.
const TTL_MS_MAX: u64 = 0xFF_FFFF_FFFF;

/// Whose behaviour is wanted where the two differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compatibility {
    /// Apache ZooKeeper's
    #[default]
    Zookeeper,
    /// ClickHouse Keeper's: its own operations, feature flags, `/keeper` nodes
    Clickhouse,
}

impl Compatibility {
    fn name(self) -> &'static str {
        match self {
            Self::Zookeeper => "zookeeper",
            Self::Clickhouse => "clickhouse",
        }
    }
}

/// What `statehouse keeper` is started with, besides [`ServeConfig`].
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "ZooKeeper")]
pub struct KeeperConfig {
    /// Where ZooKeeper's clients connect
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2181", value_parser = parse_client)]
    pub client: String,

    /// An existing ensemble's zoo.cfg: starts this member with what it says. Flags, variables and --config win over it
    #[arg(long, value_name = "FILE")]
    pub zoo_cfg: Option<PathBuf>,

    /// Whose behaviour is wanted where the two differ. Read when the tree is made, like all that is marked *
    #[arg(long, value_name = "WHOSE", value_enum, default_value_t = Compatibility::Zookeeper)]
    pub compatibility: Compatibility,

    /// ZooKeeper's unit of time, milliseconds: session timeouts are from 2 to 20 of it unless told otherwise
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub tick_time_ms: u64,

    /// A node that knows no leader for so many ticks disconnects its clients
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub sync_limit_ticks: u64,

    /// The four-letter words that are answered, with commas between; `*` for all but `rcvr`, which gives up the other nodes. Left out:
    /// `srvr`, or ClickHouse's list without it
    #[arg(long, value_name = "WORDS")]
    pub four_letter_words: Option<String>,

    /// The longest request
    #[arg(long, value_name = "BYTES", default_value = "1048575", value_parser = parse_jute)]
    pub jute_max_buffer: u64,

    /// `super:BASE64(SHA1(super:PASSWORD))`: who proves to be this may do everything
    #[arg(long, value_name = "DIGEST", value_parser = parse_super)]
    pub super_digest: Option<String>,

    /// Whether clients may prove who they are by name and password
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true)]
    pub digest_auth: bool,

    /// Without a leader, let clients in that would read what this node has, however old (`canBeReadOnly`)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub read_only_mode: bool,

    /// Log who asked for each change at this node, and how it ended
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub audit: bool,

    /// Requests of one connection that may be under way before no more are read from it
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub outstanding_limit: u64,

    /// Every read sees all that was acknowledged anywhere before, for a round of the network
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub quorum_reads: bool,

    /// Ask the clients of this node for no permission
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub skip_acl: bool,

    /// * Refuse a write that exceeds a quota, instead of only logging it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub enforce_quota: bool,

    /// * Allow nodes with a time to live
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub extended_types: bool,

    /// * Let clients that may write `/zookeeper/config` add and remove the cluster's nodes (`reconfig`); at this node too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub reconfig_enabled: bool,

    /// This node serves clients and never votes, as ZooKeeper's observers: it joins (--join), and adds itself as a learner
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub observer: bool,

    /// * How often containers and nodes with a time to live are looked through, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub container_check_interval_ms: u64,

    /// * A container that never had a child goes after this time, milliseconds; 0: never
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub container_max_never_used_ms: u64,

    /// * The longest time to live of a node, milliseconds
    #[arg(long, value_name = "MS", default_value_t = TTL_MS_MAX, value_parser = clap::value_parser!(u64).range(1..=TTL_MS_MAX))]
    pub max_ttl_ms: u64,

    /// * When nodes take so much memory, refuse what would add to it (ClickHouse's OutOfMemory); 0: never
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = parse_bytes)]
    pub memory_soft_limit_bytes: u64,

    /// * ClickHouse's feature flags, where they are not as usual: `try_remove=false` (repeatable, or a list with commas)
    #[arg(long, value_name = "NAME=BOOL", action = clap::ArgAction::Append, value_delimiter = ',', value_parser = parse_flag)]
    pub feature_flags: Vec<(String, bool)>,

    /// * What ClickHouse reads at `/keeper/availability_zone`
    #[arg(long, value_name = "ZONE")]
    pub availability_zone: Option<String>,
}

fn parse_client(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("it is not HOST:PORT".to_owned()),
    }
}

fn parse_flag(text: &str) -> Result<(String, bool), String> {
    match text.split_once('=').map(|(name, on)| (name.trim(), on.trim())) {
        Some((name, on @ ("true" | "false"))) if !name.is_empty() => Ok((name.to_owned(), on == "true")),
        _ => Err("it is not NAME=true or NAME=false".to_owned()),
    }
}

fn parse_jute(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if (1024..=1 << 30).contains(&bytes) { Ok(bytes) } else { Err("it must be from 1KiB to 1GiB".to_owned()) }
}

fn parse_super(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((user, digest)) if !user.is_empty() && !digest.is_empty() => Ok(text.to_owned()),
        _ => Err("it is not USER:DIGEST".to_owned()),
    }
}

impl KeeperConfig {
    /// Whether a four-letter word is allowed by its name.
    fn names_word(&self, word: &str) -> bool {
        self.four_letter_words.iter().flat_map(|words| words.split(',')).any(|named| named.trim() == word)
    }

    /// The params that the group is made with.
    pub fn params(&self) -> Value {
        json!({
            "compatibility": self.compatibility.name(),
            "enforce_quota": self.enforce_quota,
            "extended_types": self.extended_types,
            "reconfig_enabled": self.reconfig_enabled,
            "container_check_interval_ms": self.container_check_interval_ms,
            "container_max_never_used_ms": self.container_max_never_used_ms,
            "max_ttl_ms": self.max_ttl_ms,
            "memory_soft_limit_bytes": self.memory_soft_limit_bytes,
            "feature_flags": self.feature_flags.iter().cloned().collect::<BTreeMap<_, _>>(),
            "availability_zone": self.availability_zone,
        })
    }

    /// The shortest and the longest session timeout, milliseconds; `None` where nothing was said.
    fn session_timeouts(&self, node: &ServeConfig) -> (Option<u64>, Option<u64>) {
        let said = |ms: u64| (ms > 0).then_some(ms);
        (said(node.session_timeout_min_ms), said(node.session_timeout_max_ms))
    }

    /// What this node's listener is told.
    fn listen_params(&self, node: &ServeConfig) -> Map<String, Value> {
        let (min, max) = self.session_timeouts(node);
        let port = self.client.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let all = [
            ("tick_time_ms", Some(self.tick_time_ms.into())),
            ("sync_limit_ticks", Some(self.sync_limit_ticks.into())),
            ("min_session_timeout_ms", min.map(Value::from)),
            ("max_session_timeout_ms", max.map(Value::from)),
            ("four_letter_words", self.four_letter_words.clone().map(Value::from)),
            ("jute_maxbuffer", Some(self.jute_max_buffer.into())),
            ("super_digest", self.super_digest.clone().map(Value::from)),
            ("digest_auth", Some(self.digest_auth.into())),
            ("read_only_mode", Some(self.read_only_mode.into())),
            ("skip_acl", Some(self.skip_acl.into())),
            ("audit", Some(self.audit.into())),
            ("outstanding_limit", Some(self.outstanding_limit.into())),
            ("quorum_reads", Some(self.quorum_reads.into())),
            ("client_port", port.map(Value::from)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// The node's own configuration, with what the keeper needs in it. In `node` a session timeout of 0 stands for
    /// "as the ticks say".
    pub fn node(&self, mut node: ServeConfig) -> Result<ServeConfig, ConfigError> {
        let refuse = |detail: String, remedy: &str| Err(ConfigError::Refused { detail, remedy: remedy.into() });
        if node.listen.iter().any(|(group, _)| group == GROUP) {
            return refuse(
                format!("--listen says where group {GROUP} is listened for, and so does --client"),
                "leave that --listen out",
            );
        }
        if self.observer && node.join.is_empty() {
            return refuse(
                "--observer is said, and no --join: an observer comes to those that vote".to_owned(),
                "name some of them with --join, or leave --observer out",
            );
        }
        let (min, max) = self.session_timeouts(&node);
        let ticks = |count: u64| self.tick_time_ms.saturating_mul(count);
        let shortest = min.unwrap_or_else(|| ticks(2).min(10_000));
        let longest = max.unwrap_or_else(|| ticks(20).max(100_000).max(shortest));
        if shortest > longest || longest > i32::MAX as u64 {
            return refuse(
                format!(
                    "--session-timeout-min-ms {shortest} and --session-timeout-max-ms {longest} leave no timeout to grant"
                ),
                "give a minimum that is not over the maximum, and a maximum of 2147483647 at most",
            );
        }
        let listen_params = Value::Object(self.listen_params(&node));
        node.session_timeout_min_ms = shortest.min(1_000);
        node.session_timeout_max_ms = longest.max(86_400_000);
        node.listen.push((GROUP.to_owned(), Some(self.client.clone())));
        node.listen_params.insert(GROUP.to_owned(), listen_params);
        node.adapters_change_nodes |= self.reconfig_enabled;
        if self.names_word(RECOVER_WORD) {
            node.recovered_by.insert(GROUP.to_owned());
        }
        node.command_bytes_max = node.command_bytes_max.max(self.jute_max_buffer + CALL_OVERHEAD_BYTES);
        node.log_segment_bytes = node.log_segment_bytes.max((node.command_bytes_max * 4).next_multiple_of(1 << 20));
        // A client that asked for several of the longest replies is not one that does not read.
        node.client_queue_bytes_max = node.client_queue_bytes_max.max(self.jute_max_buffer * 4);
        let host = self.client.rsplit_once(':').map_or("", |(host, _)| host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback = host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if self.zoo_cfg.is_some() && node.http.ip().is_loopback() {
            // Who wrote that file said where clients and peers connect; ZooKeeper asks no more. Of the HTTP API it
            // says nothing.
            node.insecure = true;
        } else if !is_loopback && !node.insecure {
            return refuse(
                format!("--client {} may be reachable from other machines, and this version has no TLS", self.client),
                "bind a loopback address, or say --insecure if the network itself is closed",
            );
        }
        node.validate()?;
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use clap::Command;
    use clap::FromArgMatches;

    use super::*;

    fn parse(args: &[&str]) -> KeeperConfig {
        let command = KeeperConfig::augment_args(Command::new("keeper").no_binary_name(true));
        KeeperConfig::from_arg_matches(&command.get_matches_from(args)).unwrap()
    }

    /// A node as `keeper` parses it: no session timeouts.
    fn node() -> ServeConfig {
        ServeConfig { session_timeout_min_ms: 0, session_timeout_max_ms: 0, ..ServeConfig::default() }
    }

    #[test]
    fn left_alone_the_adapters_defaults_hold() {
        let told = parse(&[]).node(node()).unwrap();
        assert_eq!(told.listen, [("keeper".to_owned(), Some("127.0.0.1:2181".to_owned()))]);
        let listen = told.listen_params["keeper"].as_object().unwrap();
        assert_eq!((&listen["tick_time_ms"], &listen["client_port"]), (&json!(2000), &json!(2181)));
        assert!(!listen.contains_key("min_session_timeout_ms") && !listen.contains_key("super_digest"), "{listen:?}");
        // What the adapter may grant, the gateway must not shorten.
        assert!(told.session_timeout_min_ms <= 1_000 && told.session_timeout_max_ms >= 40_000);
        assert!(told.command_bytes_max > 1_048_575 && told.log_segment_bytes >= 4 * told.command_bytes_max);
    }

    /// The documents called them flags, and they were none.
    #[test]
    fn what_the_tree_and_the_listener_can_be_told_has_a_flag() {
        let keeper = parse(&[
            "--max-ttl-ms=1000",
            "--memory-soft-limit-bytes=512MiB",
            "--feature-flags=try_remove=false,create_ttl=true",
            "--feature-flags=multi_read=false",
            "--availability-zone=eu-1a",
            "--outstanding-limit=50",
        ]);
        let params = keeper.params();
        assert_eq!((&params["max_ttl_ms"], &params["memory_soft_limit_bytes"]), (&json!(1000), &json!(512 << 20)));
        assert_eq!(params["feature_flags"], json!({"create_ttl": true, "multi_read": false, "try_remove": false}));
        assert_eq!(params["availability_zone"], json!("eu-1a"));
        assert_eq!(keeper.node(node()).unwrap().listen_params["keeper"]["outstanding_limit"], json!(50));
        let params = parse(&[]).params();
        assert_eq!((&params["feature_flags"], &params["availability_zone"]), (&json!({}), &Value::Null));
        assert_eq!(params["max_ttl_ms"], json!(0xFF_FFFF_FFFF_u64));
        for wrong in ["try_remove", "=true", "try_remove=no"] {
            assert!(parse_flag(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_lets_clients_reconfigure_lets_the_adapter_change_nodes() {
        assert!(!parse(&[]).node(node()).unwrap().adapters_change_nodes);
        assert!(parse(&["--reconfig-enabled"]).node(node()).unwrap().adapters_change_nodes);
        let said = ServeConfig { adapters_change_nodes: true, ..node() };
        assert!(parse(&[]).node(said).unwrap().adapters_change_nodes);
    }

    #[test]
    fn who_names_the_word_that_gives_up_the_others_lets_the_adapter_do_so_and_a_star_does_not() {
        let may = |args: &[&str]| parse(args).node(node()).unwrap().recovered_by.contains(GROUP);
        assert!(may(&["--four-letter-words", "ruok, rcvr"]) && may(&["--four-letter-words", "*,rcvr"]));
        assert!(!may(&[]) && !may(&["--four-letter-words", "*"]) && !may(&["--four-letter-words", "ruok"]));
    }

    #[test]
    fn an_observer_needs_somebody_to_observe() {
        let refused = parse(&["--observer"]).node(node()).unwrap_err();
        assert!(refused.to_string().contains("no --join"), "{refused}");
        let joining = ServeConfig { join: vec!["a:1".to_owned()], ..node() };
        assert!(parse(&["--observer"]).node(joining).is_ok());
    }

    #[test]
    fn short_ticks_and_large_requests_widen_what_the_node_allows() {
        let told = parse(&["--tick-time-ms", "100", "--jute-max-buffer", "32MiB"]).node(node()).unwrap();
        assert_eq!(told.session_timeout_min_ms, 200);
        assert!(told.command_bytes_max > 32 << 20 && told.log_segment_bytes >= 128 << 20);
        let said = ServeConfig { session_timeout_min_ms: 50, session_timeout_max_ms: 90, ..ServeConfig::default() };
        let told = parse(&[]).node(said).unwrap();
        assert_eq!(told.listen_params["keeper"]["max_session_timeout_ms"], 90);
        assert_eq!(told.session_timeout_min_ms, 50);
    }

    #[test]
    fn addresses_that_others_reach_need_a_word_or_the_ensembles_file() {
        let refused = |keeper: KeeperConfig, node| keeper.node(node).unwrap_err().to_string();
        assert!(refused(parse(&["--client", "0.0.0.0:2181"]), node()).contains("--client 0.0.0.0:2181"));
        parse(&["--client", "0.0.0.0:2181"]).node(ServeConfig { insecure: true, ..node() }).unwrap();
        let by_file = ["--client", "0.0.0.0:2181", "--zoo-cfg", "zoo.cfg"];
        parse(&by_file).node(ServeConfig { peer: ([0, 0, 0, 0], 2888).into(), ..node() }).unwrap();
        // The file says nothing of the HTTP API.
        let http = ServeConfig { http: ([0, 0, 0, 0], 7070).into(), ..node() };
        assert!(refused(parse(&by_file), http).contains("reachable from other machines"));
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let refused = |node| parse(&[]).node(node).unwrap_err().to_string();
        let twice = ServeConfig { listen: vec![("keeper".to_owned(), None)], ..node() };
        assert!(refused(twice).contains("--client"));
        let upside_down = ServeConfig { session_timeout_min_ms: 9, session_timeout_max_ms: 8, ..node() };
        assert!(refused(upside_down).contains("--session-timeout-min-ms 9"));
    }
}
