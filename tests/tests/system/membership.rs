//! Clusters that grow, shrink, and change every node they have, while clients are served.

use std::time::Duration;
use std::time::Instant;

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::http::Request;
use statehouse_tests::load::Load;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::program;
use statehouse_tests::report;
use statehouse_tests::wait;

/// The default of `--election-timeout-ms`.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// One node becomes three, three become five, five survive the loss of two and become three again; nobody who writes
/// meanwhile notices more than a retry. In the end all start anew with the flags they had.
#[test]
fn a_cluster_grows_to_five_and_shrinks_to_three_under_load() {
    let mut cluster = Cluster::prepare(1, &["--snapshot-entries", "200"]);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    // Nobody runs this one: a node that comes later must have it all the same.
    cluster.upload(1, "counter", modules::bundled("counter")).expect(201);
    cluster.prepare_joining(4);
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(300);
    for id in 2..=5 {
        cluster.add(1, id);
        load.wait_for(30);
        if id == 3 {
            assert_eq!(cluster.voters(1, "kv"), [1, 2, 3]);
        }
    }
    assert_eq!(cluster.voters(5, "kv"), [1, 2, 3, 4, 5]);
    assert_eq!(cluster.voters(5, "catalog"), [1, 2, 3, 4, 5]);
    // The new ones count: without the first two there is still a majority.
    cluster.node_mut(1).kill();
    cluster.node_mut(2).kill();
    load.wait_for(50);
    cluster.node(4).client().post("/v1/groups", r#"{"name":"counter","module":"counter"}"#).expect(201);
    cluster.node_mut(1).start();
    cluster.node_mut(2).start();
    cluster.wait_ready();
    assert_eq!(cluster.voters(5, "counter"), [1, 2, 3, 4, 5]);

    cluster.remove(3, 1);
    load.wait_for(30);
    let leader = cluster.leader("kv");
    let asked = cluster.running().into_iter().find(|id| *id != leader).unwrap();
    cluster.remove(asked, leader);
    load.wait_for(50);
    let left = cluster.running();
    assert_eq!(left.len(), 3);
    assert_eq!(cluster.voters(left[0], "kv"), left);
    let told = load.stop();
    let servers: Vec<_> = left.iter().map(|id| cluster.node(*id).http).collect();
    assert_exactly_once(&servers, "kv", &told);
    cluster.assert_equal_state("kv");

    for id in &left {
        cluster.node_mut(*id).kill();
    }
    for id in &left {
        cluster.node_mut(*id).start();
    }
    for id in &left {
        cluster.node_mut(*id).wait_ready();
    }
    assert_exactly_once(&servers, "kv", &told);
    cluster.assert_equal_state("kv");
}

/// Stops the leader in order and starts it again, three times; how long nobody was served, each time. A leader that stops hands
/// over before: nobody waits for an election timeout. The bounds are wide because other tests run beside this one.
#[track_caller]
fn restart_leaders(cluster: &mut Cluster, load: &Load) -> Vec<Duration> {
    let mut outages = Vec::new();
    for _ in 0..3 {
        let leader = cluster.leader("kv");
        let before = Instant::now();
        cluster.node_mut(leader).stop();
        load.wait_for(50);
        cluster.node_mut(leader).start();
        cluster.node_mut(leader).wait_ready();
        load.wait_for(50);
        outages.push(load.longest_outage(before));
    }
    let (least, most) = (outages.iter().min().unwrap(), outages.iter().max().unwrap());
    assert!(*least < ELECTION_TIMEOUT && *most < Duration::from_secs(5), "{outages:?}");
    outages
}

/// None of the machines that a cluster began on is left, and nothing is lost.
#[test]
fn all_three_nodes_are_replaced_one_by_one_under_load() {
    let mut cluster = Cluster::start(3, &["--snapshot-entries", "300"]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.prepare_joining(3);
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(200);
    for old in 1..=3 {
        cluster.add(old, old + 3);
        load.wait_for(30);
        // Asked of the new one, which must be as good as any.
        cluster.remove(old + 3, old);
        load.wait_for(30);
    }
    assert_eq!(cluster.running(), [4, 5, 6]);
    assert_eq!(cluster.voters(4, "kv"), [4, 5, 6]);
    assert_eq!(cluster.voters(4, "catalog"), [4, 5, 6]);
    let outages = restart_leaders(&mut cluster, &load);
    report(format_args!("a leader was stopped in order and started again: the longest outages were {outages:?}"));
    let told = load.stop();
    let servers: Vec<_> = (4..=6).map(|id| cluster.node(id).http).collect();
    assert_exactly_once(&servers, "kv", &told);
    cluster.assert_equal_state("kv");
}

/// A removed node says so, does not start again on what it had, and comes back under its id with an empty directory.
#[test]
fn a_removed_node_stays_away_until_it_comes_back_empty() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 2);
    load.wait_for(50);
    // The leader removes itself.
    let leader = cluster.leader("kv");
    cluster.remove(leader, leader);
    load.wait_for(50);
    let refused = cluster.node_mut(leader).start_refused();
    refused.fails(5, &["was removed from its cluster", "--join"]);

    // One that was down when it was removed learns it when it comes back.
    let others = cluster.running();
    let (away, stays) = (others[0], others[1]);
    let peers = [cluster.node(stays).peer];
    let node = cluster.node_mut(leader);
    node.empty();
    node.join_through(&peers);
    cluster.add(stays, leader);
    load.wait_for(50);
    cluster.node_mut(away).kill();
    cluster.change(stays, "DELETE", &format!("/v1/nodes/{away}"), "");
    load.wait_for(20);
    cluster.node_mut(away).start();
    cluster.node_mut(away).wait_removed();

    // And so it goes on: with an empty directory it is a new node of the old id.
    let node = cluster.node_mut(away);
    node.empty();
    node.join_through(&peers);
    cluster.add(stays, away);
    load.wait_for(20);
    assert_eq!(cluster.voters(away, "kv"), [1, 2, 3]);
    // All three count.
    cluster.node_mut(stays).kill();
    load.wait_for(20);
    cluster.start_all();
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

/// A node that does not belong is told why, on both sides where there are two.
#[test]
fn strangers_and_doubles_are_refused_in_words() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.prepare_joining(1);
    // Another cluster's directory.
    let mut other = Cluster::prepare(1, &[]);
    other.nodes[0].id = 4;
    other.start_all();
    other.node_mut(1).stop();
    let peers: Vec<_> = (1..=3).map(|id| cluster.node(id).peer).collect();
    let stranger = other.node_mut(1);
    stranger.join_through(&peers);
    stranger.start_refused().fails(1, &["belongs to cluster", "--data-dir"]);

    // An id that is taken, asked of its owner and of another node; an address that is taken.
    let http = cluster.node(4).http.to_string();
    let data_dir = cluster.folder().join("nobody");
    let peer = cluster.node(4).peer.to_string();
    let start = |id: &str, peer: &str, through: u64| {
        let join = cluster.node(through).peer.to_string();
        let mut command = program::command();
        command.args(["serve", "--node-id", id, "--http", &http, "--peer", peer, "--join", &join]);
        command.arg("--data-dir").arg(&data_dir);
        program::run(&mut command, b"")
    };
    start("2", &peer, 2).fails(1, &["two nodes have the id 2"]);
    start("2", &peer, 1).fails(1, &["node 2 is a member already", "statehouse node rm 2"]);
    let taken = cluster.node(3).peer.to_string();
    let advertised = ["--advertise-peer", taken.as_str()];
    let join = cluster.node(1).peer.to_string();
    let mut command = program::command();
    command.args(["serve", "--node-id", "4", "--http", &http, "--peer", &peer, "--join", &join]).args(advertised);
    command.arg("--data-dir").arg(&data_dir);
    program::run(&mut command, b"").fails(1, &["is the address of node 3"]);
    assert!(!data_dir.join("identity.json").exists(), "a node that was refused belongs nowhere");
    // None of them left a trace.
    assert_eq!(cluster.voters(1, "catalog"), [1, 2, 3]);
    cluster.add(2, 4);
}

/// What makes no sense is refused at once, with a code; what is running can be asked for, and given up.
#[test]
fn changes_that_cannot_be_are_refused_and_a_second_one_waits_its_turn() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let send = |cluster: &Cluster, method: &str, path: &str, body: &str| {
        cluster.node(1).client().send(&Request::new(method, path).body(body.as_bytes())).unwrap()
    };
    for (method, path, body, code) in [
        ("DELETE", "/v1/nodes/1", "", "last_voter"),
        ("DELETE", "/v1/groups/kv/members/1", "", "last_voter"),
        ("DELETE", "/v1/nodes/9", "", "node_not_found"),
        ("POST", "/v1/nodes", r#"{"node":9}"#, "node_not_found"),
        ("POST", "/v1/groups/kv/members", r#"{"node":9}"#, "node_not_found"),
        ("POST", "/v1/groups/kv/members", r#"{"node":1}"#, "already_exists"),
        ("POST", "/v1/groups/kv/members/1/promote", "", "already_exists"),
        ("POST", "/v1/groups/kv/members/9/promote", "", "member_not_found"),
        ("DELETE", "/v1/groups/kv/members/9", "", "member_not_found"),
        ("POST", "/v1/groups/none/members", r#"{"node":1}"#, "group_not_found"),
        ("POST", "/v1/groups/kv/move", r#"{"from":1,"to":9}"#, "node_not_found"),
        ("POST", "/v1/groups/kv/leader", r#"{"to":9}"#, "member_not_found"),
        ("POST", "/v1/groups/kv/leader", "{}", "last_voter"),
        ("GET", "/v1/changes/77", "", "change_not_found"),
        ("DELETE", "/v1/changes/77", "", "change_not_found"),
    ] {
        assert_eq!(send(&cluster, method, path, body).code(), code, "{method} {path}");
    }

    // A learner that cannot catch up: its node is frozen before it has anything.
    cluster.prepare_joining(1);
    cluster.node_mut(2).start();
    cluster.node_mut(2).wait_ready();
    cluster.node(2).freeze();
    let begun = send(&cluster, "POST", "/v1/groups/kv/members", r#"{"node":2}"#).expect(202).json();
    wait::until("the learner is a member", || {
        let members = send(&cluster, "GET", "/v1/groups/kv/members", "").expect(200).json();
        if members["members"][1]["role"] == "learner" { Ok(()) } else { Err(members.to_string()) }
    });
    let refused = send(&cluster, "DELETE", "/v1/groups/kv/members/2", "");
    assert_eq!((refused.status, refused.code().as_str()), (409, "change_in_progress"));
    let running = send(&cluster, "GET", &format!("/v1/changes/{}", begun["id"]), "").expect(200).json();
    assert_eq!(running["state"], "running", "{running}");
    let given_up = send(&cluster, "DELETE", &format!("/v1/changes/{}", begun["id"]), "").expect(200).json();
    assert_eq!((&given_up["state"], &given_up["code"]), (&json!("failed"), &json!("cancelled")));
    assert_eq!(send(&cluster, "POST", "/v1/groups/kv/members/2/promote", "").code(), "not_caught_up");

    // Now it can, and the same is asked for again.
    cluster.node(2).thaw();
    wait::until("it has caught up", || {
        let answer = send(&cluster, "POST", "/v1/groups/kv/members/2/promote", "");
        if answer.status == 202 { Ok(()) } else { Err(answer.to_string()) }
    });
    wait::until("the promotion is done", || {
        let list = send(&cluster, "GET", "/v1/changes", "").expect(200).json();
        assert_eq!(list["changes"].as_array().unwrap().len(), 2, "{list}");
        if list["changes"][1]["state"] == "done" { Ok(()) } else { Err(list.to_string()) }
    });
    assert_eq!(cluster.voters(1, "kv"), [1, 2]);
    // The leader steps down from the group, whose only voter is then the other node.
    cluster.change(1, "DELETE", "/v1/groups/kv/members/1", "");
    assert_eq!(cluster.voters(1, "kv"), [2]);
    cluster.change(1, "POST", "/v1/groups/kv/move", r#"{"from":2,"to":1}"#);
    assert_eq!(cluster.voters(1, "kv"), [1]);
    cluster.node(1).client().post("/v1/groups/kv/apply", r#"{"Put":{"key":"a","value":"1"}}"#).expect(200);
}

/// The same by command line: what an operator types.
#[test]
fn the_command_line_adds_removes_and_moves() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.prepare_joining(1);
    cluster.node_mut(4).start();
    cluster.node_mut(4).wait_ready();
    let servers: Vec<String> = cluster.addresses().iter().map(|address| format!("http://{address}")).collect();
    let run = |line: &str| {
        let mut command = program::command();
        command.args(line.split(' ')).env("STATEHOUSE_SERVER", servers.join(","));
        program::run(&mut command, b"")
    };
    let listed = run("node ls").ok();
    assert!(listed.contains("learner") && listed.contains("voter, leader"), "{listed}");
    let added = run("node add 4").ok();
    assert!(added.contains("done") && added.contains("add node 4"), "{added}");
    run("node add 9").fails(1, &["node_not_found", "serve --join"]);
    let listed = run("member ls kv").ok();
    assert_eq!(listed.matches("voter").count(), 4, "{listed}");
    run("member rm kv 1").ok();
    run("member rm kv 1").fails(1, &["member_not_found"]);
    run("member add kv 1 --learner").ok();
    run("member promote kv 1").ok();
    // Both ways.
    run("member demote kv 1").ok();
    assert_eq!(cluster.voters(1, "kv"), [2, 3, 4]);
    assert_eq!(run("member ls kv").ok().matches("learner").count(), 1);
    run("member demote kv 1").fails(1, &["already_exists", "learner"]);
    run("node add 1 --learner").fails(1, &["already_exists", "node demote 1"]);
    run("member promote kv 1").ok();
    // In all groups and in the catalog, and back.
    run("node demote 1").ok();
    assert_eq!((cluster.voters(2, "kv"), cluster.voters(2, "catalog")), (vec![2, 3, 4], vec![2, 3, 4]));
    run("node demote 1").fails(1, &["already_exists", "a learner already"]);
    run("node add 1").ok();
    assert_eq!((cluster.voters(2, "kv"), cluster.voters(2, "catalog")), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
    run("member rm kv 2").ok();
    run("group move kv --from 1 --to 2").ok();
    assert_eq!(cluster.voters(1, "kv"), [2, 3, 4]);
    for to in ["2", "3", "4"] {
        assert_eq!(run(&format!("leader transfer kv --to {to}")).ok(), format!("{to}\n"));
        assert_eq!(cluster.leader("kv").to_string(), to);
    }
    run("leader transfer kv --to 1").fails(1, &["member_not_found"]);
    // Any set of voters, also one of which nobody votes now, with the leader among those who go.
    for (sets, voters) in [("1 2", [1, 2]), ("3 4", [3, 4]), ("4 1 4", [1, 4])] {
        run(&format!(r#"apply kv {{"Put":{{"key":"k","value":"{sets}"}}}}"#).replace(' ', "_").replacen('_', " ", 2))
            .ok();
        let done = run(&format!("member set kv {sets}")).ok();
        assert!(done.contains("the voters of group kv"), "{done}");
        assert_eq!(cluster.voters(2, "kv"), voters);
        assert!(run(r#"query kv {"Get":{"key":"k"}}"#).ok().contains(&sets.replace(' ', "_")));
    }
    run("member set kv 1 9").fails(1, &["node_not_found"]);
    run("member set kv 2 3 4").ok();
    // All lead at one node; then each leads one.
    let groups = ["kv", "kv-2", "kv-3", "kv-4"];
    for group in &groups[1..] {
        run(&format!("group create {group} --module kv")).ok();
    }
    for group in groups {
        run(&format!("leader transfer {group} --to 4")).ok();
    }
    run("leader balance").ok();
    let leaders: std::collections::BTreeSet<u64> = groups.iter().map(|group| cluster.leader(group)).collect();
    assert_eq!(leaders.len(), 4, "each on a node of its own: {leaders:?}");
    run("leader balance").fails(0, &["spread evenly already"]);
    let changes = run("change ls").ok();
    assert!(changes.contains("move group kv from node 1 to node 2"), "{changes}");
    run("node rm 4").ok();
    cluster.node_mut(4).wait_removed();
    assert_eq!(cluster.voters(2, "kv"), [2, 3]);
}

/// A virtual machine is copied with all it has, and both run. What the copy says counts for nothing: it knows nothing of what the other one
/// has promised since.
#[test]
fn of_two_processes_that_run_as_one_node_the_second_is_not_listened_to() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let copied = cluster.follower("kv");
    let mut copy = cluster.copy(copied);
    copy.start();
    wait::until("the copy is told why", || {
        let said = copy.said();
        if said.contains(&format!("another process speaks for node {copied}")) { Ok(()) } else { Err(said) }
    });
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(200);
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    wait::until("the copy is not ready", || {
        let ready = copy.client().get("/readyz");
        if ready.status == 503 { Ok(()) } else { Err(ready.to_string()) }
    });
    copy.kill();
    // One that is started again is not taken for a copy of itself.
    cluster.node_mut(copied).kill();
    cluster.node_mut(copied).start();
    cluster.node_mut(copied).wait_ready();
    cluster.assert_equal_state("kv");
}

/// Groups of one and of three replicas on four nodes: spread evenly, served at every node, and given a new node when theirs
/// leaves.
#[test]
fn groups_on_some_of_the_nodes_are_spread_served_everywhere_and_moved() {
    let mut cluster = Cluster::start(4, &[]);
    cluster.upload(1, "kv", modules::bundled("kv")).expect(201);
    let create = |cluster: &Cluster, name: &str, replicas: u64| {
        let body = json!({ "name": name, "module": "kv", "replicas": replicas }).to_string();
        cluster.node(2).client().post("/v1/groups", body)
    };
    for name in ["one", "two", "three", "four"] {
        create(&cluster, name, 1).expect(201);
    }
    create(&cluster, "wide", 3).expect(201);
    assert_eq!(create(&cluster, "five", 5).code(), "bad_request");
    let nodes = cluster.node(1).client().get("/v1/nodes").expect(200).json();
    let held: u64 = nodes["nodes"].as_array().unwrap().iter().map(|node| node["groups"].as_u64().unwrap()).sum();
    assert_eq!(held, 7, "{nodes}");
    for name in ["one", "two", "three", "four"] {
        let voters = cluster.voters(1, name);
        assert_eq!(voters.len(), 1, "{name}");
        // Every node answers, in a session that was opened at another.
        let mut session = statehouse_tests::load::Session::open(&cluster.addresses(), name);
        for number in 0..8 {
            let put = json!({ "Put": { "key": format!("k{number}"), "value": "v" } }).to_string();
            session.apply(put.as_bytes()).expect(200);
        }
        assert_eq!(session.retries, 0, "nobody refused");
        let elsewhere = (1..=4).find(|id| *id != voters[0]).unwrap();
        let status = cluster.node(elsewhere).client().post(&format!("/v1/groups/{name}/query"), "\"Status\"");
        assert_eq!(status.expect(200).json()["keys"], 8);
        let view = cluster.node(elsewhere).group(name);
        assert_eq!((&view["state"], &view["leader"]), (&json!("elsewhere"), &json!(voters[0])));
    }
    let spread: std::collections::BTreeSet<u64> =
        ["one", "two", "three", "four"].iter().flat_map(|name| cluster.voters(1, name)).collect();
    assert_eq!(spread.len(), 4, "each on a node of its own: {spread:?}");

    // A node leaves: what only it held is on another one then.
    let (leaves, asked) = (cluster.voters(1, "one")[0], 1 + cluster.voters(1, "one")[0] % 4);
    cluster.remove(asked, leaves);
    assert_ne!(cluster.voters(asked, "one"), [leaves]);
    assert_eq!(cluster.voters(asked, "wide").len(), 3);
    assert!(!cluster.voters(asked, "wide").contains(&leaves));
    let status = cluster.node(asked).client().post("/v1/groups/one/query", "\"Status\"").expect(200).json();
    assert_eq!(status["keys"], 8);
}

/// Two of three never lead. While the third is away nobody does, however long; nor can an operator or a priority make them. Only where a
/// node is the one voter of a group it leads that, since nobody else ever will.
#[test]
fn nodes_that_never_lead_do_not_even_where_nobody_else_can() {
    let mut cluster = Cluster::prepare(3, &["--election-timeout-ms", "300", "--heartbeat-ms", "60"]);
    for id in [2, 3] {
        cluster.node_mut(id).add_flags(&["--never-lead"]);
    }
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    assert_eq!(cluster.leader("kv"), 1);
    let put = json!({"Put": {"key": "k", "value": "v"}}).to_string();
    cluster.node(2).client().post("/v1/groups/kv/apply", &put).expect(200);
    let refused = cluster.node(1).client().post("/v1/groups/kv/leader", r#"{"to":2}"#);
    assert!(refused.status >= 400 && refused.text().contains("--never-lead"), "{refused}");
    wait::until("node 1 has heard it of node 2", || {
        let refused = cluster.node(1).client().post("/v1/nodes/2/priority", r#"{"priority":200}"#);
        if refused.text().contains("--never-lead") { Ok(()) } else { Err(refused.to_string()) }
    });

    // In order, so that it looks for whom it could hand over to.
    cluster.node_mut(1).stop();
    let refused = cluster.node(2).client().post("/v1/groups/kv/apply", &put);
    // It is asked for five seconds: more than three times as long as a node that is only not wanted waits before it stands in.
    assert!(["no_leader", "outcome_unknown"].contains(&refused.code().as_str()), "{refused}");
    for id in [2, 3] {
        let group = cluster.node(id).group("kv");
        assert!(group["leader"].is_null(), "{group}");
    }
    cluster.node_mut(1).start();
    cluster.node_mut(1).wait_ready();
    cluster.node(3).client().post("/v1/groups/kv/apply", &put).expect(200);
    assert_eq!(cluster.leader("kv"), 1);

    for id in 1..=3 {
        let alone = json!({"name": format!("alone-{id}"), "module": "kv", "replicas": 1}).to_string();
        cluster.node(1).client().post("/v1/groups", &alone).expect(201);
    }
}

/// Node 1 is never to lead, node 3 before all others: that is how it is, whoever stops, fails and comes back, and from the first
/// moment on.
#[test]
fn leadership_goes_where_it_is_wanted_and_never_where_it_is_not() {
    let mut cluster = Cluster::prepare(3, &[]);
    cluster.node_mut(1).add_flags(&["--election-priority", "0"]);
    cluster.node_mut(3).add_flags(&["--election-priority", "200"]);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    let leads = |cluster: &mut Cluster, node: u64| {
        wait::until(&format!("node {node} leads"), || {
            let asked = cluster.running()[0];
            let status = cluster.node(asked).client().get("/v1/status").expect(200).json();
            let leaders: Vec<_> =
                status["groups"].as_array().unwrap().iter().map(|group| group["leader"].clone()).collect();
            if leaders == [node, node] { Ok(()) } else { Err(leaders) }
        });
    };
    leads(&mut cluster, 3);
    let refused = cluster.node(2).client().post("/v1/groups/kv/leader", r#"{"to":1}"#);
    assert!(refused.status >= 400 && refused.text().contains("--election-priority 0"), "{refused}");
    cluster.node_mut(3).kill();
    leads(&mut cluster, 2);
    // It would cost the group an election timeout.
    let refused = cluster.node(2).client().post("/v1/groups/kv/leader", r#"{"to":3}"#);
    assert!(refused.status >= 400 && refused.text().contains("node 3 does not answer"), "{refused}");
    cluster.node_mut(3).start();
    cluster.node_mut(3).wait_ready();
    leads(&mut cluster, 3);
    cluster.node_mut(3).stop();
    leads(&mut cluster, 2);

    // While they run it is said otherwise, of one that is away too; and taken back.
    let said = |cluster: &Cluster, node: u64, priority: &str| {
        let path = format!("/v1/nodes/{node}/priority");
        cluster.node(2).client().post(&path, format!(r#"{{"priority":{priority}}}"#)).expect(200);
    };
    said(&cluster, 3, "50");
    said(&cluster, 1, "120");
    leads(&mut cluster, 1);
    cluster.node_mut(3).start();
    cluster.node_mut(3).wait_ready();
    said(&cluster, 1, "null");
    leads(&mut cluster, 2);
    said(&cluster, 3, "null");
    leads(&mut cluster, 3);
}
