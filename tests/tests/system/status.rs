//! What the cluster says of itself, asked of any node, also when most of it is gone.

use statehouse_tests::cluster::Cluster;
use statehouse_tests::modules;
use statehouse_tests::program;
use statehouse_tests::program::Output;
use statehouse_tests::proxy::Proxy;
use statehouse_tests::wait;

fn run(cluster: &Cluster, through: u64, words: &[&str]) -> Output {
    let mut command = program::command();
    command.args(words).arg("--server").arg(format!("http://{}", cluster.node(through).http));
    program::run(&mut command, b"")
}

/// The codes of what the doctor finds, once they are these.
#[track_caller]
fn wait_for_findings(cluster: &Cluster, through: u64, expected: &[&str]) -> serde_json::Value {
    wait::until(&format!("the doctor finds {expected:?}"), || {
        let diagnosis = cluster.node(through).client().get("/v1/doctor").expect(200).json();
        let findings = diagnosis["findings"].as_array().unwrap();
        let found: Vec<&str> = findings.iter().map(|finding| finding["code"].as_str().unwrap()).collect();
        if expected.iter().all(|code| found.contains(code)) && expected.is_empty() == found.is_empty() {
            Ok(diagnosis)
        } else {
            Err(diagnosis)
        }
    })
}

#[test]
fn the_whole_cluster_is_on_one_screen_whichever_node_is_asked() {
    let cluster = Cluster::start(3, &["--snapshot-entries", "20"]);
    cluster.deploy("kv", modules::bundled("kv"));
    let mut client = cluster.node(2).client();
    for key in 0..30 {
        client.post("/v1/groups/kv/apply", format!(r#"{{"Put":{{"key":"k{key}","value":"v"}}}}"#)).expect(200);
    }
    let status = wait::until("every replica has its snapshot, and all see one leader", || {
        let status = cluster.node(3).client().get("/v1/status").expect(200).json();
        let group = status["groups"].as_array().unwrap().iter().find(|group| group["name"] == "kv").unwrap().clone();
        let replicas = group["replicas"].as_array().unwrap();
        let whole = replicas.len() == 3
            && replicas.iter().all(|one| {
                one["snapshot"]["written_ms"].is_u64() && one["leader"] == group["leader"] && one["lag"] == 0
            });
        if whole && group["leader"].is_u64() { Ok(status) } else { Err(status) }
    });
    assert_eq!(status["node"], 3);
    assert_eq!(status["groups"][0]["name"], "catalog");
    assert_eq!(status["groups"][1]["voters"], serde_json::json!([1, 2, 3]));
    for node in status["nodes"].as_array().unwrap() {
        assert_eq!((node["state"].as_str(), node["role"].as_str()), (Some("ready"), Some("voter")), "{node}");
        let disk = &node["disk"];
        assert!(disk["free_bytes"].as_u64() > Some(0) && disk["total_bytes"].as_u64() > disk["free_bytes"].as_u64());
        assert!(disk["syncs_measured"].as_u64() > Some(0) && disk["sync_p99_micros"].as_u64() > Some(0), "{disk}");
    }
    let text = run(&cluster, 1, &["status"]).ok();
    for word in ["NODE", "ready", "GROUP", "catalog", "kv", "leader", "follower", "MEMBERS AT"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    wait_for_findings(&cluster, 1, &[]);
    assert_eq!(run(&cluster, 2, &["doctor"]).ok(), "nothing is wrong\n");
}

/// A node that is down keeps its place on the screen; with two of three down there is no leader, and whoever is left says so.
#[test]
fn who_does_not_answer_is_shown_and_named_by_the_doctor() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.node_mut(3).kill();
    wait_for_findings(&cluster, 1, &["node_unreachable", "majority_at_risk"]);
    let status = cluster.node(1).client().get("/v1/status").expect(200).json();
    assert_eq!(status["nodes"][2]["state"], "unreachable");
    assert_eq!(status["groups"][1]["replicas"][2]["state"], "unreachable");
    let text = run(&cluster, 1, &["status"]).ok();
    assert!(text.contains("unreachable"), "{text}");
    // It accepts and never answers.
    cluster.node(2).freeze();
    let diagnosis = wait_for_findings(&cluster, 1, &["node_unreachable", "no_leader"]);
    let said = diagnosis["findings"].to_string();
    assert!(said.contains("group kv has no leader: of its voters 1, 2, 3 only 1 run, and 2 are needed"), "{said}");
    let output = run(&cluster, 1, &["doctor"]);
    output.fails(1, &["things are wrong"]);
    let ready = cluster.node(1).client().get("/readyz?verbose");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("group kv has no leader"), "{}", ready.text());
    cluster.node(2).thaw();
    cluster.node_mut(3).start();
    cluster.wait_ready();
    wait_for_findings(&cluster, 3, &[]);
}

/// The leader reaches a follower no more, and all the others do: it answers them, and does not get what is committed. The doctor
/// names the replica, also when that very node is asked, and is content when it has caught up.
#[test]
fn a_replica_that_does_not_get_what_is_committed_is_named_by_the_doctor() {
    let mut cluster = Cluster::prepare(3, &[]);
    let network = Proxy::before(&mut cluster);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    let leader = cluster.leader("kv");
    let (behind, other) = if leader == 1 { (2, 3) } else { (1, if leader == 2 { 3 } else { 2 }) };
    network.cut(leader, behind);
    let put = r#"{"Put":{"key":"a","value":"1"}}"#;
    cluster.node(leader).client().post("/v1/groups/kv/apply", put).expect(200);
    for asked in [other, behind] {
        let diagnosis = wait_for_findings(&cluster, asked, &["replica_lags"]);
        let findings = diagnosis["findings"].as_array().unwrap();
        let lags: Vec<_> = findings.iter().filter(|finding| finding["code"] == "replica_lags").collect();
        assert!(lags.iter().all(|finding| finding["node"] == behind), "{diagnosis}");
        assert!(lags.iter().any(|finding| finding["group"] == "kv"), "{diagnosis}");
    }
    network.mend();
    wait_for_findings(&cluster, other, &[]);
}

/// A node that joined and was forgotten, and four voters: both are found, and gone when they are put right.
#[test]
fn the_doctor_finds_a_forgotten_learner_and_an_even_number_of_voters() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.prepare_joining(1);
    cluster.node_mut(4).start();
    let diagnosis = wait_for_findings(&cluster, 2, &["learner_forgotten"]);
    assert!(diagnosis["findings"].to_string().contains("`statehouse node add 4`"), "{diagnosis}");
    cluster.change(1, "POST", "/v1/nodes", r#"{"node":4}"#);
    wait_for_findings(&cluster, 2, &["even_voters"]);
    cluster.remove(1, 4);
    wait_for_findings(&cluster, 2, &[]);
}
