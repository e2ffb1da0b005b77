//! `kill -9`, again and again: what was acknowledged stays, once; the replicas stay equal.

use std::time::Instant;

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::load::Load;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::report;
use statehouse_tests::wait;

#[test]
fn the_leader_is_killed_again_and_again_and_nothing_acknowledged_is_lost_or_doubled() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 6);
    load.wait_for(50);
    for round in 1..=5 {
        let leader = cluster.leader("kv");
        let killed = Instant::now();
        cluster.node_mut(leader).kill();
        load.wait_for(50);
        report(format!(
            "round {round}: node {leader} led and was killed; the longest outage was {:?}",
            load.longest_outage(killed)
        ));
        cluster.node_mut(leader).start();
        cluster.node_mut(leader).wait_ready();
        load.wait_for(20);
    }
    let told = load.stop();
    let retries: u64 = told.iter().map(|client| client.retries).sum();
    report(format!(
        "{} commands were acknowledged, {retries} sent again",
        told.iter().map(|client| client.puts.len()).sum::<usize>()
    ));
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

#[test]
fn all_nodes_are_killed_at_once_under_load_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 6);
    for _ in 0..3 {
        load.wait_for(60);
        cluster.kill_all();
        cluster.start_all();
    }
    load.wait_for(60);
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
    // And once more at rest: what is read now was read from disk.
    cluster.kill_all();
    cluster.start_all();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

/// The log before the snapshot is purged everywhere else, so entries alone cannot help.
#[test]
fn a_follower_that_was_away_for_too_long_is_brought_back_by_a_snapshot() {
    let mut cluster = Cluster::start(3, &["--snapshot-entries", "200", "--follower-log-bytes", "0"]);
    cluster.deploy("kv", modules::bundled("kv"));
    let away = cluster.follower("kv");
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(20);
    let had = cluster.node(away).group("kv")["last"].as_u64().unwrap();
    cluster.node_mut(away).kill();
    load.wait_for(1000);
    let others: Vec<u64> = (1..=3).filter(|id| *id != away).collect();
    for &id in &others {
        wait::until(&format!("node {id} has purged what node {away} lacks"), || {
            let view = cluster.node(id).group("kv");
            if view["purged"].as_u64() > Some(had + 1) { Ok(()) } else { Err(format!("it had {had}: {view}")) }
        });
    }
    cluster.node_mut(away).start();
    cluster.node_mut(away).wait_ready();
    load.wait_for(100);
    let told = load.stop();
    cluster.assert_equal_state("kv");
    let view = cluster.node(away).group("kv");
    assert!(view["snapshot"].as_u64() > Some(had), "it has no later snapshot: {view}");
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    // Nor does it depend on what the others hold in memory.
    cluster.kill_all();
    cluster.start_all();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

/// A disk is lost, under load: the node begins again with an empty directory. It has forgotten what it acknowledged, so it must
/// not help to elect before it has it again; then it is a replica like any other.
#[test]
fn a_node_that_lost_its_disk_comes_back_and_counts_again() {
    let mut cluster = Cluster::start(3, &["--snapshot-entries", "200", "--follower-log-bytes", "0"]);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(100);
    let lost = cluster.follower("kv");
    cluster.node_mut(lost).kill();
    std::fs::remove_dir_all(&cluster.node(lost).data_dir).unwrap();
    load.wait_for(300);
    cluster.node_mut(lost).start();
    cluster.node_mut(lost).wait_ready();
    load.wait_for(50);
    // Without it there is no majority now.
    let leader = cluster.leader("kv");
    let killed = if leader == lost { cluster.follower("kv") } else { leader };
    cluster.node_mut(killed).kill();
    load.wait_for(50);
    cluster.start_all();
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

/// Two of three are gone: the third does not answer commands, and says that nothing was done or that it does not
/// know; when one is back, so is the service.
#[test]
fn without_a_majority_nothing_is_acknowledged() {
    let mut cluster = Cluster::start(3, &["--request-timeout-ms", "1500"]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":1}").expect(200);
    cluster.node_mut(2).kill();
    cluster.node_mut(3).kill();
    for path in ["/v1/groups/counter/apply", "/v1/groups/counter/query"] {
        let answer =
            cluster.node(1).client().post(path, if path.ends_with("apply") { "{\"Add\":1}" } else { "\"Get\"" });
        let code = answer.code();
        assert!(["no_leader", "timeout", "outcome_unknown"].contains(&code.as_str()), "{path}: {answer}");
    }
    let local = cluster.node(1).client().post("/v1/groups/counter/query?consistency=local", "\"Get\"").expect(200);
    assert_eq!(local.text(), "1");
    let readiness = cluster.node(1).client().get("/healthz");
    assert_eq!(readiness.status, 200);
    cluster.start_all();
    let value = cluster.node(1).client().post("/v1/groups/counter/query", "\"Get\"").expect(200).json();
    // The command whose outcome was not known may have been applied.
    assert!(value == json!(1) || value == json!(2), "{value}");
    cluster.assert_equal_state("counter");
}
