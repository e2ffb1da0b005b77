//! Snapshots between nodes, over a connection that is slow and breaks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::load::Load;
use statehouse_tests::load::Session;
use statehouse_tests::modules;
use statehouse_tests::proxy::Proxy;
use statehouse_tests::wait;

fn counters(cluster: &Cluster, id: u64) -> BTreeMap<String, u64> {
    let answer = cluster.node(id).client().get("/v1/node/counters").expect(200).json();
    answer.as_object().unwrap().iter().map(|(name, value)| (name.clone(), value.as_u64().unwrap())).collect()
}

/// Bytes of the kv group's newest snapshot on a node.
fn snapshot_bytes(cluster: &Cluster, id: u64) -> u64 {
    let status = cluster.node(id).client().get("/v1/status").expect(200).json();
    let group = status["groups"].as_array().unwrap().iter().find(|group| group["name"] == "kv").unwrap();
    let replica = group["replicas"].as_array().unwrap().iter().find(|replica| replica["node"] == id).unwrap();
    replica["snapshot"]["bytes"].as_u64().unwrap()
}

/// 8 MB of state.
fn put_large(session: &mut Session) {
    let large = "x".repeat(100_000);
    for key in 0..80 {
        session.apply(json!({"Put": {"key": format!("k{key}"), "value": large}}).to_string().as_bytes()).expect(200);
    }
}

/// More entries than a node keeps in its log behind a snapshot, so that what is before them is purged.
fn put_small(session: &mut Session) {
    for key in 0..200 {
        session.apply(json!({"Put": {"key": format!("s{key}"), "value": "small"}}).to_string().as_bytes()).expect(200);
    }
}

/// A node whose log begins behind a snapshot of 8 MB, so that a new node needs that.
fn one_node_with_a_snapshot(flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::prepare(1, flags);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    let mut session = Session::open(&cluster.addresses(), "kv");
    put_large(&mut session);
    put_small(&mut session);
    cluster.node(1).client().post("/v1/groups/kv/snapshot", "").expect(200);
    wait::until("the log alone brings no new node up to date", || {
        let group = cluster.node(1).group("kv");
        if group["purged"].as_u64() > Some(0) { Ok(()) } else { Err(group) }
    });
    cluster
}

/// A node joins behind a slow link that is cut in the middle of its snapshot, again and again. What had arrived is not sent
/// again, the node itself is killed once meanwhile, and the cluster commits all the time under one leader and one term.
#[test]
fn a_snapshot_over_a_slow_link_that_breaks_goes_on_where_it_stopped_and_delays_nobody() {
    let mut cluster = Cluster::prepare(3, &["--snapshot-entries", "40", "--transfer-bytes-per-second", "0"]);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    let servers: Vec<SocketAddr> = cluster.addresses();
    let mut session = Session::open(&servers, "kv");
    put_large(&mut session);
    for id in 1..=3 {
        cluster.node(id).client().post("/v1/groups/kv/snapshot", "").expect(200);
    }
    put_small(&mut session);
    let leader = cluster.leader("kv");
    cluster.node(leader).client().post("/v1/groups/kv/snapshot", "").expect(200);
    wait::until("the log alone brings no new node up to date", || {
        let group = cluster.node(leader).group("kv");
        if group["purged"].as_u64() > Some(10) { Ok(()) } else { Err(group) }
    });
    let term = cluster.node(leader).group("kv")["term"].clone();

    cluster.prepare_joining(1);
    let node = cluster.node(4).peer;
    let proxy = Proxy::start(SocketAddr::new(node.ip(), 0), node);
    proxy.slow_down_bulk(3 << 20);
    cluster.node_mut(4).add_flags(&["--advertise-peer", &proxy.address().to_string()]);
    cluster.node_mut(4).start();
    cluster.node_mut(4).wait_ready();
    let size = snapshot_bytes(&cluster, leader);
    cluster.node(leader).client().post("/v1/nodes", r#"{"node":4}"#).expect(202);

    let mut cut_at = proxy.bulk_passed();
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    let sent_again = session.retries;
    for round in 0..3 {
        wait::until_true("a good part of the snapshot has gone", || proxy.bulk_passed() > cut_at + (2 << 20));
        cut_at = proxy.bulk_passed();
        if round == 1 {
            cluster.node_mut(4).kill();
            cluster.node_mut(4).start();
        } else {
            proxy.break_bulk();
        }
        // So slow now that it is still on its way when the commands are answered.
        proxy.slow_down_bulk(128 << 10);
        for number in 0..5 {
            let sent = Instant::now();
            let put = json!({"Put": {"key": format!("m{round}-{number}"), "value": "v"}}).to_string();
            session.apply(put.as_bytes()).expect(200);
            slowest = slowest.max(sent.elapsed());
        }
        assert_eq!(cluster.node(leader).group("kv")["leader"], leader);
        assert_eq!(cluster.voters(leader, "kv"), [1, 2, 3], "the transfer was over before the commands");
        proxy.slow_down_bulk(3 << 20);
    }
    proxy.slow_down_bulk(0);
    // Whoever writes meanwhile waits for no transfer: each command is answered the first time, and long before so much has gone.
    assert_eq!(session.retries, sent_again, "commands were sent again");
    assert!(slowest < began.elapsed() / 3, "a command took {slowest:?} of {:?}", began.elapsed());
    wait::until("node 4 votes", || {
        let voters = cluster.voters(leader, "kv");
        if voters == [1, 2, 3, 4] { Ok(()) } else { Err(voters) }
    });
    assert_eq!(cluster.node(leader).group("kv")["term"], term, "nobody lost its leader over it");
    let (sent, received) = (counters(&cluster, leader), counters(&cluster, 4));
    assert!(sent["transfers_resumed"] >= 2 && sent["transfers_finished"] >= 1, "{sent:?}");
    assert!(sent["transfer_resumed_bytes"] > 2 << 20, "{sent:?}");
    assert!(received["transfers_received_resumed"] >= 1, "also after its restart: {received:?}");
    // What was taken once does not go twice, but for the last chunk before the restart; the catalog's own is small.
    assert!(sent["transfer_sent_bytes"] < size + (1 << 20), "{size} bytes, {sent:?}");
    let page = cluster.node(leader).client().get("/metrics").expect(200).text();
    for name in ["statehouse_transfers_resumed_total", "statehouse_transfer_throttled_microseconds_total"] {
        assert!(page.contains(name), "{name} is not in\n{page}");
    }
    cluster.assert_equal_state("kv");
}

/// A node joins while others write more, in the time that its snapshot takes, than a snapshot is taken for. The log that it needs
/// next is kept for it: one snapshot is enough. (It was sent one after the other, for ever, as soon as the state was large.)
#[test]
fn a_node_that_joins_under_load_needs_one_snapshot() {
    let flags = ["--snapshot-entries", "20", "--transfer-bytes-per-second", "2MiB"];
    let mut cluster = one_node_with_a_snapshot(&flags);
    let load = Load::start(&cluster.addresses(), "kv", 4);
    cluster.prepare_joining(1);
    let before = cluster.node(1).group("kv")["snapshot"].as_u64().unwrap();
    cluster.add(1, 2);
    load.stop();
    let sent = counters(&cluster, 1);
    assert_eq!((sent["transfers_begun"], sent["transfers_finished"]), (1, 1), "{sent:?}");
    let group = cluster.node(1).group("kv");
    assert!(
        group["snapshot"].as_u64() > Some(before + 64),
        "the log behind the one that was sent was worth cutting: {group}"
    );
    cluster.assert_equal_state("kv");
    wait::until("nobody needs the log any more", || {
        let group = cluster.node(1).group("kv");
        if group["purged"].as_u64() > Some(before) { Ok(()) } else { Err(group) }
    });
}

/// The limit holds: what is sent waits for its bytes' time, and the metrics say so.
#[test]
fn a_throttled_transfer_takes_its_time_and_is_counted() {
    let flags = ["--snapshot-entries", "40", "--transfer-bytes-per-second", "2MiB", "--transfers-max", "1"];
    let mut cluster = one_node_with_a_snapshot(&flags);
    cluster.prepare_joining(1);
    cluster.add(1, 2);
    let sent = counters(&cluster, 1);
    assert!(sent["transfer_sent_bytes"] > 6_000_000, "{sent:?}");
    // Less than the bytes take: the first part goes at once.
    assert!(sent["transfer_throttled_microseconds"] > 1_500_000, "{sent:?}");
    assert_eq!(sent["transfers_failed"], 0, "{sent:?}");
}
