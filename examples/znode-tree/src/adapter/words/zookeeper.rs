//! The words as ZooKeeper 3.8 answers them: fields, order and layout.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write;

use statehouse_sdk::adapter::ConnectionId;

use super::View;
use crate::adapter::connection::Connection;
use crate::adapter::stats::Latency;
use crate::adapter::stats::decimal;

const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests\n";

/// The version that is shown: clients and monitors read from it what a server can do. Behind it ours.
pub const VERSION: &str = concat!("3.9.0-statehouse-", env!("CARGO_PKG_VERSION"));

/// The text for a word that is allowed.
pub fn answer(word: &[u8; 4], view: &View<'_>) -> String {
    match word {
        b"ruok" => return "imok".to_owned(),
        b"isro" => {
            let answers = [(view.has_leader, "rw"), (view.is_serving(), "ro"), (true, "null")];
            return answers.iter().find(|(holds, _)| *holds).map_or("", |(_, answer)| answer).to_owned();
        }
        b"envi" => return envi(view),
        b"gtmk" | b"stmk" => return "0".to_owned(),
        _ if !view.is_serving() => return NOT_SERVING.to_owned(),
        _ => {}
    }
    match word {
        b"srvr" => srvr(view, false),
        b"stat" => srvr(view, true),
        b"mntr" => mntr(view),
        b"conf" => conf(view),
        b"cons" => {
            let mut text = String::new();
            for connection in view.connections.values() {
                line(&mut text, connection, false);
                text.push('\n');
            }
            text.push('\n');
            text
        }
        b"crst" => "Connection stats reset.\n".to_owned(),
        b"srst" => "Server stats reset.\n".to_owned(),
        b"dirs" => {
            let facts = &view.known.facts;
            let (data, log) = (facts.snapshot_bytes.unwrap_or(0), facts.log_bytes.unwrap_or(0));
            format!("datadir_size: {data}\nlogdir_size: {log}\n")
        }
        b"dump" => dump(view),
        b"wchs" => {
            let summary = view.shared.watches.summary(true);
            let (connections, paths, watches) = (summary.connections, summary.paths, summary.watches);
            format!("{connections} connections watching {paths} paths\nTotal watches:{watches}\n")
        }
        b"wchp" => by_path(view, true),
        b"wchc" => by_connection(view, true),
        // No digest is kept of each zxid.
        b"hash" => String::new(),
        _ => super::clickhouse::answer(word, view).unwrap_or_default(),
    }
}

/// Paths with the sessions that watch them.
pub fn by_path(view: &View<'_>, data_only: bool) -> String {
    let mut text = String::new();
    for (path, watchers) in view.shared.watches.by_path(data_only) {
        let _ = writeln!(text, "{path}");
        for watcher in watchers {
            let _ = writeln!(text, "\t0x{:x}", session_of(view.connections, watcher));
        }
    }
    text.push('\n');
    text
}

/// Sessions with the paths they watch.
pub fn by_connection(view: &View<'_>, data_only: bool) -> String {
    let mut all: BTreeMap<ConnectionId, BTreeSet<&str>> = BTreeMap::new();
    for (path, watchers) in view.shared.watches.by_path(data_only) {
        for watcher in watchers {
            all.entry(watcher).or_default().insert(path);
        }
    }
    let mut text = String::new();
    for (watcher, paths) in all {
        let _ = writeln!(text, "0x{:x}", session_of(view.connections, watcher));
        for path in paths {
            let _ = writeln!(text, "\t{path}");
        }
    }
    text.push('\n');
    text
}

fn session_of(connections: &BTreeMap<ConnectionId, Connection>, id: ConnectionId) -> u64 {
    connections.get(&id).and_then(|connection| connection.session).map_or(0, |session| session.id)
}

/// One connection, as `stat` (brief) and `cons` show it.
fn line(text: &mut String, connection: &Connection, is_brief: bool) {
    let stats = &connection.stats;
    // What the selector waits for: 1 is "to read".
    let interest = u8::from(connection.session.is_some());
    let (peer, queued) = (&connection.peer, connection.requests.len());
    let _ = write!(text, " /{peer}[{interest}](queued={queued},recved={},sent={}", stats.received, stats.sent);
    if let Some(session) = connection.session.filter(|_| !is_brief) {
        let (id, last, est, to) = (session.id, stats.last_operation, connection.opened_ms, session.timeout_ms);
        let _ = write!(text, ",sid=0x{id:x},lop={last},est={est},to={to}");
        if stats.last_xid >= 0 {
            let _ = write!(text, ",lcxid=0x{:x}", stats.last_xid);
        }
        let (min, avg, max) = (stats.latency.min_ms(), stats.latency.whole_average_ms(), stats.latency.max_ms);
        let (zxid, response, latency) = (stats.last_zxid, stats.last_response_ms, stats.last_latency_ms);
        let _ = write!(text, ",lzxid=0x{zxid:x},lresp={response},llat={latency}");
        let _ = write!(text, ",minlat={min},avglat={avg},maxlat={max}");
    }
    text.push(')');
}

fn srvr(view: &View<'_>, with_clients: bool) -> String {
    let mut text = format!("Zookeeper version: {VERSION}\n");
    if with_clients {
        text.push_str("Clients:\n");
        for connection in view.connections.values() {
            line(&mut text, connection, true);
            text.push('\n');
        }
        text.push('\n');
    }
    let stats = &view.shared.stats;
    let latency = &stats.latency;
    let (min, avg, max) = (latency.min_ms(), latency.average_text(), latency.max_ms);
    let _ = writeln!(text, "Latency min/avg/max: {min}/{avg}/{max}");
    let _ = writeln!(text, "Received: {}\nSent: {}", stats.received, stats.sent);
    let _ = writeln!(text, "Connections: {}\nOutstanding: {}", view.connections.len(), view.shared.outstanding);
    let _ = writeln!(text, "Zxid: 0x{:x}\nMode: {}", view.zxid, view.mode());
    let _ = writeln!(text, "Node count: {}", view.known.counts.nodes);
    if view.mode() == "leader" {
        let [last, min, max] = view.known.facts.proposed.sizes();
        let _ = writeln!(text, "Proposal sizes last/min/max: {last}/{min}/{max}");
    }
    text
}

fn mntr(view: &View<'_>) -> String {
    let (stats, facts, counts) = (&view.shared.stats, &view.known.facts, &view.known.counts);
    let watches = view.shared.watches.counts();
    let mut text = String::new();
    let mut say = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "zk_{key}\t{value}");
    };
    let latency = &stats.latency;
    say("version", &VERSION);
    say("server_state", &view.mode());
    if view.mode() != "standalone" {
        say(
            "peer_state",
            &match view.mode() {
                "leader" => "leading - broadcast",
                "observer" => "observing - broadcast",
                _ => "following - broadcast",
            },
        );
    }
    say("ephemerals_count", &counts.ephemerals);
    say("num_alive_connections", &view.connections.len());
    say("avg_latency", &latency.average_text());
    say("outstanding_requests", &view.shared.outstanding);
    say("znode_count", &counts.nodes);
    say("global_sessions", &facts.sessions);
    say("local_sessions", &0);
    let (last, min, max) = stats.response_bytes.map_or((-1, -1, -1), |(last, min, max)| {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        (signed(last), signed(min), signed(max))
    });
    say("last_client_response_size", &last);
    say("packets_sent", &stats.sent);
    say("packets_received", &stats.received);
    say("max_client_response_size", &max);
    say("min_client_response_size", &min);
    say("connection_drop_probability", &"0.0");
    say("watch_count", &(watches.data + watches.child));
    say("auth_failed_count", &stats.auth_failed);
    say("min_latency", &latency.min_ms());
    say("max_latency", &latency.max_ms);
    let files = |count: Option<u64>| count.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX));
    say("max_file_descriptor_count", &files(facts.max_files));
    say("open_file_descriptor_count", &files(facts.open_files));
    say("approximate_data_size", &counts.size());
    say("uptime", &(facts.uptime_s * 1_000));
    say("outstanding_tls_handshake", &0);
    say("bytes_received_count", &stats.received_bytes);
    say("connection_request_count", &stats.connection_requests);
    say("connection_revalidate_count", &stats.revalidations);
    say("connection_rejected", &stats.connections_rejected);
    say("unsuccessful_handshake", &stats.unsuccessful_handshakes);
    say("stale_replies", &stats.stale_replies);
    say("throttled_ops", &stats.throttled);
    say("watch_bytes", &stats.watch_bytes);
    say("last_zxid", &view.zxid);
    if view.mode() == "leader" {
        // In ZooKeeper's words followers and observers are both learners.
        say("quorum_size", &facts.members.iter().filter(|member| member.votes()).count());
        say("learners", &facts.others().count());
        say("followers", &facts.others().filter(|member| member.votes()).count());
        say("synced_followers", &facts.synced().filter(|member| member.votes()).count());
        say("synced_observers", &facts.synced().filter(|member| !member.votes()).count());
        say("synced_non_voting_followers", &0);
        say("pending_syncs", &0);
        let [last, min, max] = facts.proposed.sizes();
        say("last_proposal_size", &last);
        say("max_proposal_size", &max);
        say("min_proposal_size", &min);
        say("proposal_count", &facts.proposed.count);
        say("leader_uptime", &view.leader_uptime_ms());
    }
    for (name, latency) in [("election_time", &stats.elections), ("leader_unavailable_time", &stats.leaderless)] {
        summary(&mut text, name, latency);
    }
    for (name, percentiles) in [("readlatency", &stats.read_latency), ("updatelatency", &stats.update_latency)] {
        summary(&mut text, name, &percentiles.all);
        for (digits, of_thousand) in [("50", 500), ("95", 950), ("99", 990), ("999", 999)] {
            let _ = writeln!(text, "zk_p{digits}_{name}\t{}", percentiles.at(of_thousand));
        }
    }
    for (name, micros) in [("fsynctime", &facts.sync_micros), ("snapshottime", &facts.snapshot_micros)] {
        let ms = |micros: Option<u64>| micros.unwrap_or(0) / 1_000;
        let average = decimal(micros.sum, micros.count.saturating_mul(1_000));
        let _ = writeln!(text, "zk_avg_{name}\t{average}");
        let _ = writeln!(text, "zk_min_{name}\t{}\nzk_max_{name}\t{}", ms(micros.min), ms(micros.max));
        let _ = writeln!(text, "zk_cnt_{name}\t{}\nzk_sum_{name}\t{}", micros.count, micros.sum / 1_000);
    }
    text
}

/// Times in the fields of ZooKeeper's summaries.
fn summary(text: &mut String, name: &str, latency: &Latency) {
    let (total, count) = (latency.total_ms, latency.count);
    let _ = writeln!(text, "zk_avg_{name}\t{}", decimal(total, count));
    let _ = writeln!(text, "zk_min_{name}\t{}\nzk_max_{name}\t{}", latency.min_ms(), latency.max_ms);
    let _ = writeln!(text, "zk_cnt_{name}\t{count}\nzk_sum_{name}\t{total}");
}

fn conf(view: &View<'_>) -> String {
    let (settings, facts) = (&view.shared.settings, &view.known.facts);
    let data_dir = facts.data_dir.as_deref().unwrap_or("");
    let (data, log) = (facts.snapshot_bytes.unwrap_or(0), facts.log_bytes.unwrap_or(0));
    let mut text = format!("clientPort={}\nsecureClientPort=-1\n", settings.client_port);
    let _ = writeln!(text, "dataDir={data_dir}\ndataDirSize={data}\ndataLogDir={data_dir}\ndataLogSize={log}");
    let most = facts.settings.connections_per_address_max.unwrap_or(0);
    let _ = writeln!(text, "tickTime={}\nmaxClientCnxns={most}", settings.tick_time_ms);
    let _ = writeln!(text, "minSessionTimeout={}", settings.min_session_timeout_ms);
    let _ = writeln!(text, "maxSessionTimeout={}", settings.max_session_timeout_ms);
    let _ = writeln!(text, "clientPortListenBacklog=-1\nserverId={}", settings.node);
    if view.mode() != "standalone" {
        let sync_limit = settings.sync_limit_ms / settings.tick_time_ms.max(1);
        let _ = writeln!(text, "initLimit={sync_limit}\nsyncLimit={sync_limit}\nelectionAlg=3");
        let port = |member: &super::Member| member.address.rsplit(':').next().unwrap_or("0").to_owned();
        let own = facts.members.iter().find(|member| member.id == facts.node).map(port).unwrap_or_default();
        let _ =
            writeln!(text, "electionPort={own}\nquorumPort={own}\npeerType={}", u8::from(view.mode() == "observer"));
        let _ = write!(text, "membership: \n{}", crate::adapter::config::zookeeper(facts));
    }
    text
}

fn envi(view: &View<'_>) -> String {
    let host = view.known.facts.host.as_deref().unwrap_or("<NA>");
    let version = &view.known.facts.version;
    format!("Environment:\nzookeeper.version={VERSION}\nhost.name={host}\nstatehouse.version={version}\n")
}

fn dump(view: &View<'_>) -> String {
    let mut text = "SessionTracker dump:\n".to_owned();
    // The leader alone knows when a session would expire; here is which ones are connected to this node.
    let mut by_timeout: BTreeMap<u64, Vec<&Connection>> = BTreeMap::new();
    for connection in view.connections.values() {
        by_timeout.entry(connection.session.map_or(0, |session| session.timeout_ms)).or_default().push(connection);
    }
    let with_session = || by_timeout.iter().filter(|(timeout, _)| **timeout > 0);
    let count: usize = with_session().map(|(_, held)| held.len()).sum();
    let _ = writeln!(text, "Session Sets ({})/({count}):", with_session().count());
    for (timeout_ms, held) in with_session() {
        let _ = writeln!(text, "{} expire {timeout_ms} ms after their last sign of life:", held.len());
        for session in held.iter().filter_map(|connection| connection.session) {
            let _ = writeln!(text, "\t0x{:x}", session.id);
        }
    }
    let ephemerals = &view.known.ephemerals;
    let _ = writeln!(text, "ephemeral nodes dump:\nSessions with Ephemerals ({}):", ephemerals.len());
    for (session, paths) in ephemerals {
        let _ = writeln!(text, "0x{session:x}:");
        for path in paths {
            let _ = writeln!(text, "\t{path}");
        }
    }
    let _ = writeln!(text, "Connections dump:\nConnections Sets ({})/({}):", by_timeout.len(), view.connections.len());
    for (timeout_ms, held) in &by_timeout {
        let _ = writeln!(text, "{} with a session timeout of {timeout_ms} ms:", held.len());
        for connection in held {
            let session = connection.session.map_or(0, |session| session.id);
            let _ = writeln!(text, "\tip: /{} sessionId: 0x{session:x}", connection.peer);
        }
    }
    text
}
