//! Clusters whose nodes are those of the configuration files (`--members-from-config`): files are edited, and nobody says `node add`.

use statehouse_tests::cluster::Cluster;
use statehouse_tests::http::Request;
use statehouse_tests::load::Load;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::wait;

/// Nodes 1 to `count`, of which the first `old` are a cluster that runs; all files list these.
fn following(old: u64, count: u64) -> Cluster {
    let mut cluster = Cluster::prepare(old, &["--snapshot-entries", "200"]);
    cluster.prepare_joining(count - old);
    let listed: Vec<u64> = (1..=old).collect();
    cluster.list(&(1..=count).collect::<Vec<_>>(), &listed);
    for id in 1..=old {
        cluster.node_mut(id).start();
    }
    for id in 1..=old {
        cluster.node_mut(id).wait_ready();
    }
    cluster
}

/// What `status` says that the cluster waits for, asked of a node.
fn files(cluster: &Cluster, node: u64) -> Result<String, String> {
    let answer = cluster.node(node).client().send(&Request::new("GET", "/v1/status"));
    let status = answer.map_err(|trouble| format!("{trouble:?}"))?;
    status.json()["files"].as_str().map(str::to_owned).ok_or_else(|| status.text())
}

#[track_caller]
fn until_files(cluster: &Cluster, node: u64, words: &str) {
    wait::until(&format!("node {node} says: {words}"), || {
        let said = files(cluster, node)?;
        if said.contains(words) { Ok(()) } else { Err(said) }
    });
}

/// A node more in the files, and one less: a node with an edited list was refused, and nothing looked at the files.
#[test]
fn a_cluster_gets_the_nodes_that_its_files_list_and_nobody_is_restarted() {
    let mut cluster = following(3, 4);
    cluster.deploy("kv", modules::bundled("kv"));
    let servers: Vec<_> = (1..=4).map(|id| cluster.node(id).http).collect();
    let load = Load::start(&servers[..3], "kv", 4);
    load.wait_for(100);
    cluster.list(&[1, 2, 3, 4], &[1, 2, 3, 4]);
    until_files(&cluster, 2, "the files list node 4");
    cluster.node_mut(4).start();
    cluster.until_voters("kv", &[1, 2, 3, 4]);
    cluster.until_voters("catalog", &[1, 2, 3, 4]);
    load.wait_for(50);
    assert_eq!(cluster.running(), [1, 2, 3, 4]);

    // The files are the law.
    let refused = cluster.node(2).client().send(&Request::new("DELETE", "/v1/nodes/3")).unwrap();
    refused.expect_problem(403, "forbidden", &["--members-from-config", "node-2.toml"]);

    cluster.list(&[1, 2, 3, 4], &[2, 3, 4]);
    cluster.node_mut(1).wait_removed();
    cluster.until_voters("kv", &[2, 3, 4]);
    load.wait_for(50);
    // It is not listed any more, and says the same to whoever starts it again.
    cluster.node_mut(1).start_refused().fails(5, &["was removed from its cluster"]);
    // The list has changed since it began.
    for id in [2, 4] {
        cluster.node_mut(id).stop();
        cluster.node_mut(id).start();
        cluster.node_mut(id).wait_ready();
    }
    load.wait_for(50);
    let told = load.stop();
    assert_exactly_once(&servers[1..], "kv", &told);
    wait::until("nothing is waited for", || match files(&cluster, 3) {
        Ok(waits) => Err(waits),
        Err(status) if status.starts_with('{') => Ok(()),
        Err(trouble) => Err(trouble),
    });
}

/// Files are edited one after the other, and a node may be started before they are.
#[test]
fn one_edited_file_of_three_changes_nothing() {
    let mut cluster = following(3, 4);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.list(&[2, 4], &[1, 2, 3, 4]);
    cluster.node_mut(4).start();
    until_files(
        &cluster,
        1,
        "node 4 has joined, and the files of a majority do not list it: 1 of 3 files list nodes 1, 2, 3, 4 (by node 2)",
    );
    assert_eq!(cluster.voters(1, "catalog"), [1, 2, 3]);
    let changes = cluster.node(1).client().get("/v1/changes").expect(200).json();
    assert_eq!(changes["changes"].as_array().map(Vec::len), Some(0), "{changes}");
    // What cannot be read changes nothing, and is said.
    std::fs::write(cluster.node(1).config(), "[initial-cluster]\n1 = \"nowhere\"\n").unwrap();
    wait::until_true("node 1 says that it keeps its list", || {
        cluster.node(1).said().contains("the last good one stays")
    });
    until_files(&cluster, 3, "1 of 3 files list nodes 1, 2, 3, 4 (by node 2)");
    cluster.list(&[3], &[1, 2, 3, 4]);
    cluster.until_voters("kv", &[1, 2, 3, 4]);
    cluster.list(&[1], &[1, 2, 3, 4]);
    wait::until_true("all is as listed", || files(&cluster, 2).is_err());
}

/// A majority of the listed nodes is new and they could begin a cluster; the one that has everything is away.
#[test]
fn newcomers_begin_no_cluster_beside_one_that_does_not_answer() {
    let mut cluster = following(1, 3);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses()[..1], "kv", 1);
    load.wait_for(20);
    let told = load.stop();
    cluster.node(1).freeze();
    cluster.list(&[1, 2, 3], &[1, 2, 3]);
    for id in [2, 3] {
        cluster.node_mut(id).start();
    }
    for id in [2, 3] {
        // They have heard each other.
        wait::until_true("it waits for node 1 alone", || {
            let said = cluster.node(id).said();
            said.lines()
                .rfind(|line| line.contains("of no cluster yet"))
                .is_some_and(|line| line.contains("node 1 says nothing") && line.matches("says nothing").count() == 1)
        });
    }
    cluster.node(1).thaw();
    cluster.until_voters("kv", &[1, 2, 3]);
    cluster.wait_ready();
    for id in [2, 3] {
        assert!(!cluster.node(id).said().contains("this is a new cluster"), "{}", cluster.node(id).said());
    }
    assert_exactly_once(&cluster.addresses(), "kv", &told);
}

/// A list that mixes nodes of two clusters up leads to neither.
#[test]
fn nodes_of_another_cluster_are_refused() {
    let mut cluster = following(1, 3);
    cluster.list(&[2], &[2]);
    cluster.node_mut(2).start();
    cluster.node_mut(2).wait_ready();
    cluster.list(&[3], &[1, 2, 3]);
    cluster.node_mut(3).start_refused().fails(1, &["node 1 belongs to cluster", "node 2 to cluster"]);
    cluster.node_mut(1).stop();
    cluster.list(&[1], &[1, 2]);
    cluster.node_mut(1).start_refused().fails(1, &["node 1 belongs to cluster"]);
    // Nobody asked for it by a list that does not have it.
    cluster.list(&[3], &[1, 2]);
    cluster.node_mut(3).start_refused().fails(1, &["lists the nodes 1, 2, but not this one, node 3"]);
}

/// Who founds a cluster writes down with whom: the file may have changed before the next start.
#[test]
fn an_edited_list_and_a_lost_disk_are_no_reason_not_to_start() {
    let mut cluster = following(3, 4);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses()[..3], "kv", 2);
    load.wait_for(30);
    let told = load.stop();
    cluster.kill_all();
    cluster.list(&[1, 2, 3, 4], &[1, 2, 3, 4]);
    // A member's id with an empty directory: it comes back as what it was.
    cluster.node(3).empty();
    cluster.start_all();
    cluster.until_voters("kv", &[1, 2, 3, 4]);
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    assert!(!cluster.node(4).said().contains("this is a new cluster"));
}
