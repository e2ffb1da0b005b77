//! Four-letter words at real nodes: what they say of consensus and of disks.

use std::collections::BTreeMap;

use statehouse_tests::keeper::Connection;
use statehouse_tests::keeper::Ensemble;
use statehouse_tests::keeper::Hello;
use statehouse_tests::keeper::four_letters;

/// A client must not lose its session because three nodes share a busy machine.
const HELLO_MS: i32 = 60_000;
const FLAGS: [&str; 2] = ["--session-timeout-max-ms", "60000"];

/// What `mntr` says of keys in which `part` is.
fn mntr(ensemble: &Ensemble, number: usize, part: &str) -> BTreeMap<String, f64> {
    let said = four_letters(ensemble.client(number), "mntr").unwrap();
    let values = said.lines().filter_map(|line| line.split_once('\t')).filter(|(key, _)| key.contains(part));
    values.map(|(key, value)| (key.to_owned(), value.parse().unwrap())).collect()
}

/// ZooKeeper's leader tells how many proposals it made and how large they were; ours said nothing, and -1 in `srvr`.
#[test]
fn a_leader_tells_how_large_its_proposals_are_until_they_are_counted_anew() {
    let ensemble = Ensemble::start(3, &FLAGS);
    let leader = ensemble.leader();
    let (mut client, _) = Connection::until_open(ensemble.client((leader + 1) % 3), &Hello::new(HELLO_MS));
    assert_eq!(client.create("/small", b"1", 0).unwrap().error, 0);
    assert_eq!(client.create("/large", &[7; 50_000], 0).unwrap().error, 0);
    let said = mntr(&ensemble, leader, "proposal");
    assert!((50_000.0..51_000.0).contains(&said["zk_max_proposal_size"]), "{said:?}");
    assert!(said["zk_last_proposal_size"] > 0.0 && said["zk_min_proposal_size"] > 0.0, "{said:?}");
    assert!(said["zk_min_proposal_size"] < 500.0 && said["zk_proposal_count"] >= 3.0, "{said:?}");
    let srvr = four_letters(ensemble.client(leader), "srvr").unwrap();
    let sizes = srvr.lines().find_map(|line| line.strip_prefix("Proposal sizes last/min/max: ")).unwrap();
    assert_eq!(sizes.rsplit_once('/').unwrap().1, said["zk_max_proposal_size"].to_string());
    assert_eq!(mntr(&ensemble, (leader + 1) % 3, "proposal"), BTreeMap::new(), "a follower proposes nothing");

    assert_eq!(four_letters(ensemble.client(leader), "srst").unwrap(), "Server stats reset.\n");
    assert_eq!(client.create("/medium", &[7; 2_000], 0).unwrap().error, 0);
    let anew = mntr(&ensemble, leader, "proposal");
    assert!((2_000.0..3_000.0).contains(&anew["zk_max_proposal_size"]), "{anew:?}");
    assert!((1.0..said["zk_proposal_count"]).contains(&anew["zk_proposal_count"]), "{anew:?} after {said:?}");
}

/// They were in `/metrics` alone.
#[test]
fn every_node_tells_how_long_its_syncs_and_snapshots_took() {
    let ensemble = Ensemble::start(1, &FLAGS);
    let (mut client, _) = Connection::until_open(ensemble.client(0), &Hello::new(HELLO_MS));
    assert_eq!(client.create("/a", b"1", 0).unwrap().error, 0);
    let snapshots = |said: BTreeMap<String, f64>| said["zk_cnt_snapshottime"];
    let before = snapshots(mntr(&ensemble, 0, "snapshottime"));
    let index: u64 = four_letters(ensemble.client(0), "csnp").unwrap().trim().parse().unwrap();
    assert!(index > 0);
    assert_eq!(snapshots(mntr(&ensemble, 0, "snapshottime")), before + 1.0);
    let syncs = mntr(&ensemble, 0, "fsynctime");
    assert!(syncs["zk_cnt_fsynctime"] >= 1.0 && syncs["zk_avg_fsynctime"] > 0.0, "{syncs:?}");
    assert!(syncs["zk_min_fsynctime"] <= syncs["zk_avg_fsynctime"], "{syncs:?}");
    assert!(syncs["zk_avg_fsynctime"] < syncs["zk_max_fsynctime"] + 1.0, "whole milliseconds: {syncs:?}");
    assert_eq!(four_letters(ensemble.client(0), "srst").unwrap(), "Server stats reset.\n");
    assert_eq!(snapshots(mntr(&ensemble, 0, "snapshottime")), 0.0);
}
