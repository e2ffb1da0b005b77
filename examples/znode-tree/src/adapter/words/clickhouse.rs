//! The words as ClickHouse Keeper answers them, where it does so differently from ZooKeeper or alone.

use std::fmt::Display;
use std::fmt::Write;

use super::View;
use super::zookeeper::by_connection;
use super::zookeeper::by_path;
use crate::REAPED_PER_ENTRY;
use crate::adapter::connection::Connection;
use crate::adapter::connection::KEPT_BYTES_MAX;
use crate::keeper;

const NOT_SERVING: &str = "This instance is not currently serving requests";
const VERSION: &str = concat!("statehouse-", env!("CARGO_PKG_VERSION"));

/// The text; `None` when it is ZooKeeper's.
pub fn answer(word: &[u8; 4], view: &View<'_>) -> Option<String> {
    let facts = &view.known.facts;
    let is_clickhouse = view.shared.settings.is_clickhouse();
    let text = match word {
        b"apiv" => String::from_utf8_lossy(keeper::API_VERSION_DATA).into_owned(),
        b"isro" if is_clickhouse => if facts.role == "learner" { "ro" } else { "rw" }.to_owned(),
        b"ftfl" => feature_flags(view),
        b"csnp" => deed(view, "index").unwrap_or_else(|| "Failed to schedule snapshot creation task.".to_owned()),
        b"rqld" => match view.known.deed {
            Some(_) => "Sent leadership request to leader.".to_owned(),
            None => "Failed to send leadership request to leader.".to_owned(),
        },
        b"ydld" => match view.known.deed {
            Some(_) => "Sent yield leadership request to leader.".to_owned(),
            None => "Failed to send yield leadership request to leader.".to_owned(),
        },
        b"rcfg" if is_clickhouse => view.known.deed.clone().unwrap_or_default(),
        b"rclc" | b"clrs" => "ok".to_owned(),
        b"lgif" => lgif(view),
        // What they switch is not there: no jemalloc, no profile events.
        b"lgrq" | b"pfev" | b"jmst" | b"jmfp" | b"jmep" | b"jmdp" => "not supported by this server\n".to_owned(),
        _ if !is_clickhouse => return None,
        b"ruok" | b"gtmk" | b"stmk" | b"hash" => return None,
        b"envi" => {
            let host = facts.host.as_deref().unwrap_or("");
            format!("Environment:\nclickhouse.keeper.version={VERSION}\nhost.name={host}\n")
        }
        _ if !view.is_serving() => NOT_SERVING.to_owned(),
        b"mntr" => mntr(view),
        b"srvr" => srvr(view, false),
        b"stat" => srvr(view, true),
        b"cons" => view.connections.values().map(|connection| line(connection, false)).collect(),
        b"dirs" => {
            let (snapshots, log) = (facts.snapshot_bytes.unwrap_or(0), facts.log_bytes.unwrap_or(0));
            format!("snapshot_dir_size: {snapshots}\nlog_dir_size: {log}\n")
        }
        b"wchs" => {
            let summary = view.shared.watches.summary(false);
            let (connections, paths, watches) = (summary.connections, summary.paths, summary.watches);
            format!("{connections} connections watching {paths} paths\nTotal watches:{watches}\n")
        }
        b"wchp" => by_path(view, false),
        b"wchc" => by_connection(view, false),
        b"dump" => dump(view),
        b"conf" => conf(view),
        _ => return None,
    };
    Some(text)
}

/// A number out of what the host said it did: `{"index": 7}`.
fn deed(view: &View<'_>, key: &str) -> Option<String> {
    let (_, rest) = view.known.deed.as_deref()?.split_once(&format!("\"{key}\":"))?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    Some(digits).filter(|digits| !digits.is_empty())
}

fn line(connection: &Connection, is_brief: bool) -> String {
    let stats = &connection.stats;
    let mut text = format!(" {}(recved={},sent={}", connection.peer, stats.received, stats.sent);
    if let Some(session) = connection.session.filter(|_| !is_brief) {
        let (id, last, est, to) = (session.id, stats.last_operation, connection.opened_ms, session.timeout_ms);
        let _ = write!(text, ",sid=0x{id:016x},lop={last},est={est},to={to}");
        if stats.last_xid >= 0 {
            let _ = write!(text, ",lcxid=0x{:016x}", stats.last_xid);
        }
        let (min, avg, max) = (stats.latency.min_ms(), stats.latency.whole_average_ms(), stats.latency.max_ms);
        let (zxid, response, latency) = (stats.last_zxid, stats.last_response_ms, stats.last_latency_ms);
        let _ = write!(text, ",lzxid=0x{zxid:016x},lresp={response},llat={latency}");
        let _ = write!(text, ",minlat={min},avglat={avg},maxlat={max}");
    }
    text.push_str(")\n");
    text
}

fn srvr(view: &View<'_>, with_clients: bool) -> String {
    let mut text = format!("ClickHouse Keeper version: {VERSION}\n");
    if with_clients {
        text.push_str("Clients:\n");
        text.extend(view.connections.values().map(|connection| line(connection, true)));
        text.push('\n');
    }
    let stats = &view.shared.stats;
    let latency = &stats.latency;
    let (min, avg, max) = (latency.min_ms(), latency.whole_average_ms(), latency.max_ms);
    let _ = writeln!(text, "Latency min/avg/max: {min}/{avg}/{max}");
    let _ = writeln!(text, "Received: {}\nSent: {}", stats.received, stats.sent);
    let _ = writeln!(text, "Connections: {}\nOutstanding: {}", view.connections.len(), view.shared.outstanding);
    let _ = writeln!(text, "Zxid: 0x{:x}\nMode: {}", view.zxid, view.mode());
    let _ = writeln!(text, "Node count: {}", view.known.counts.nodes);
    text
}

fn mntr(view: &View<'_>) -> String {
    let (stats, facts, counts) = (&view.shared.stats, &view.known.facts, &view.known.counts);
    let latency = &stats.latency;
    let watches = view.shared.watches.summary(false);
    let mut text = String::new();
    let mut say = |key: &str, value: &dyn Display| {
        let _ = writeln!(text, "zk_{key}\t{value}");
    };
    say("version", &VERSION);
    say("avg_latency", &latency.whole_average_ms());
    say("max_latency", &latency.max_ms);
    say("min_latency", &latency.min_ms());
    say("packets_received", &stats.received);
    say("packets_sent", &stats.sent);
    say("num_alive_connections", &view.connections.len());
    say("outstanding_requests", &view.shared.outstanding);
    say("server_state", &view.mode());
    say("znode_count", &counts.nodes);
    say("watch_count", &watches.watches);
    say("ephemerals_count", &counts.ephemerals);
    say("approximate_data_size", &counts.size());
    say("key_arena_size", &0);
    say("latest_snapshot_size", &facts.snapshot_bytes.unwrap_or(0));
    let files = |count: Option<u64>| count.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX));
    say("open_file_descriptor_count", &files(facts.open_files));
    say("max_file_descriptor_count", &files(facts.max_files));
    for (name, times) in [("election_time", &stats.elections), ("leader_unavailable_time", &stats.leaderless)] {
        say(&format!("sum_{name}"), &times.total_ms);
        say(&format!("cnt_{name}"), &times.count);
    }
    if view.mode() == "leader" {
        // Here, unlike in ZooKeeper, learners are counted among them.
        say("followers", &facts.others().count());
        say("synced_followers", &facts.synced().count());
        say("leader_uptime", &view.leader_uptime_ms());
    }
    text
}

fn lgif(view: &View<'_>) -> String {
    let facts = &view.known.facts;
    let mut text = String::new();
    let mut say = |key: &str, value: u64| {
        let _ = writeln!(text, "{key}\t{value}");
    };
    say("first_log_idx", facts.purged.map_or(1, |purged| purged + 1));
    say("first_log_term", facts.first_term.unwrap_or(facts.term));
    say("last_log_idx", facts.last);
    say("last_log_term", facts.last_term.unwrap_or(facts.term));
    say("last_committed_log_idx", facts.applied);
    say("leader_committed_log_idx", facts.commit);
    say("target_committed_log_idx", facts.commit);
    say("last_snapshot_idx", facts.snapshot.unwrap_or(0));
    for cache in ["latest_logs", "commit_logs"] {
        say(&format!("{cache}_cache_entries"), 0);
        say(&format!("{cache}_cache_size"), 0);
    }
    text
}

fn feature_flags(view: &View<'_>) -> String {
    let switched = &view.shared.settings.feature_flags;
    let mut text = String::new();
    for flag in &keeper::FLAGS {
        let _ = writeln!(text, "{}\t{}", flag.0, u8::from(keeper::is_on(flag, switched)));
    }
    text
}

fn dump(view: &View<'_>) -> String {
    let held: Vec<_> = view.connections.values().filter_map(|connection| connection.session).collect();
    let mut text = format!("Sessions dump ({}):\n", held.len());
    for session in held {
        let _ = writeln!(text, "0x{:016x}", session.id);
    }
    let ephemerals = &view.known.ephemerals;
    let _ = writeln!(text, "Sessions with Ephemerals ({}):", ephemerals.len());
    for (session, paths) in ephemerals {
        let _ = writeln!(text, "0x{session:016x}");
        for path in paths {
            let _ = writeln!(text, "\t{path}");
        }
    }
    text
}

/// A setting's value.
#[derive(Clone, Copy)]
enum Said {
    Number(u64),
    Flag(bool),
}

/// What is a setting of ClickHouse Keeper and has a meaning here, under its name and in its order, with the value that holds. What
/// has none (its threads, its caches, its own Raft's limits) is left out: whoever reads it shall not take it for set.
fn conf(view: &View<'_>) -> String {
    let (settings, facts) = (&view.shared.settings, &view.known.facts);
    let host = &facts.settings;
    let mut text = String::new();
    let mut say = |key: &str, value: &dyn Display| {
        let _ = writeln!(text, "{key}={value}");
    };
    say("server_id", &settings.node);
    say("enable_ipv6", &true);
    say("tcp_port", &settings.client_port);
    say("four_letter_word_allow_list", &settings.words.text());
    let longest_election_ms = host.election_timeout_ms.map(|shortest_ms| shortest_ms.saturating_add(shortest_ms / 2));
    let leadership_ms = host.election_timeout_ms.zip(host.heartbeat_ms).map(|(one, other)| one.saturating_add(other));
    let number = |value: u64| Some(Said::Number(value));
    let flag = |value: bool| Some(Said::Flag(value));
    let host_said = |value: Option<u64>| value.map(Said::Number);
    let reaped = number(REAPED_PER_ENTRY as u64);
    let coordination_settings = [
        ("min_session_timeout_ms", number(settings.min_session_timeout_ms)),
        ("session_timeout_ms", number(settings.max_session_timeout_ms)),
        ("operation_timeout_ms", host_said(host.request_timeout_ms)),
        ("dead_session_check_period_ms", host_said(host.session_check_ms)),
        ("ttl_gc_period_ms", number(settings.container_check_interval_ms)),
        ("ttl_gc_batch_size", reaped),
        ("container_gc_period_ms", number(settings.container_check_interval_ms)),
        ("container_gc_batch_size", reaped),
        ("heart_beat_interval_ms", host_said(host.heartbeat_ms)),
        ("election_timeout_lower_bound_ms", host_said(host.election_timeout_ms)),
        ("election_timeout_upper_bound_ms", host_said(longest_election_ms)),
        ("leadership_expiry_ms", host_said(leadership_ms)),
        ("reserved_log_items", host_said(host.log_entries_kept)),
        ("snapshot_distance", host_said(host.snapshot_entries)),
        ("auto_forwarding", flag(true)),
        // A leader that is removed hands over before, and nothing waits.
        ("sleep_before_leader_change_ms", number(0)),
        ("snapshots_to_keep", host_said(host.snapshots_kept)),
        ("fresh_log_gap", host_said(host.caught_up_entries)),
        ("max_request_queue_size", host_said(host.commands_waiting_max)),
        ("max_requests_batch_size", host_said(host.commands_batch_max)),
        ("max_requests_batch_bytes_size", host_said(host.commands_batch_bytes_max)),
        // 0 is "disabled" here and below.
        ("parallel_read_threads", number(0)),
        ("max_request_size", number(settings.jute_maxbuffer as u64)),
        ("max_requests_append_size", host_said(host.append_entries_max)),
        ("quorum_reads", flag(settings.quorum_reads)),
        ("force_sync", flag(true)),
        ("compress_logs", flag(false)),
        ("compress_snapshots_with_zstd_format", flag(false)),
        ("max_log_file_size", host_said(host.log_segment_bytes)),
        ("log_file_overallocate_size", number(0)),
        ("min_request_size_for_cache", number(0)),
        ("async_replication", flag(true)),
        ("latest_logs_cache_size_threshold", host_said(host.log_cache_bytes)),
        ("use_xid_64", flag(true)),
        ("check_node_acl_on_remove", flag(false)),
        ("snapshot_transfer_chunk_size", host_said(host.transfer_part_bytes)),
        ("max_request_queue_bytes_size", number(KEPT_BYTES_MAX as u64)),
        ("optimize_read_order", flag(false)),
        ("log_readahead_enabled", flag(false)),
        ("log_readahead_commit_window_bytes", number(0)),
    ];
    for (key, value) in coordination_settings {
        match value {
            Some(Said::Number(number)) => say(key, &number),
            Some(Said::Flag(flag)) => say(key, &flag),
            // An older host does not say it.
            None => {}
        }
    }
    if let Some(data_dir) = &facts.data_dir {
        say("log_storage_path", &format_args!("{data_dir}/log"));
        say("log_storage_disk", &"LocalLogDisk");
        say("snapshot_storage_path", &format_args!("{data_dir}/groups"));
        say("snapshot_storage_disk", &"LocalSnapshotDisk");
    }
    text
}
