//! A group goes over to another module, with its state, its sessions and its clients.

use std::net::SocketAddr;

use serde_json::Value;
use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::http::Answer;
use statehouse_tests::http::Request;
use statehouse_tests::keeper::Connection;
use statehouse_tests::keeper::Ensemble;
use statehouse_tests::keeper::Hello;
use statehouse_tests::load::Load;
use statehouse_tests::load::Session;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::program;
use statehouse_tests::redis::Redis;
use statehouse_tests::wait;

fn query(cluster: &Cluster, node: u64, group: &str, query: &str) -> Value {
    cluster.node(node).client().post(&format!("/v1/groups/{group}/query"), query).expect(200).json()
}

fn put(cluster: &Cluster, node: u64, group: &str, module: &str) -> Answer {
    let body = json!({ "module": module }).to_string();
    let path = format!("/v1/groups/{group}/module");
    cluster.node(node).client().ask(&Request::new("PUT", path).body(body.as_bytes()))
}

#[track_caller]
fn upgrade(cluster: &mut Cluster, through: u64, group: &str, module: &str) {
    let body = json!({ "module": module }).to_string();
    cluster.change(through, "PUT", &format!("/v1/groups/{group}/module"), &body);
}

/// The number, the session with the replies that it may ask for again, and the index go over; so do replicas that were away,
/// that start anew, and that come later.
#[test]
fn a_group_goes_over_to_the_next_version_of_its_module_and_loses_nothing() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.upload(2, "counter-2", modules::counter_2()).expect(201);
    let mut session = Session::open(&cluster.addresses(), "counter");
    let first = session.send(1, br#"{"Add":20}"#).expect(200);
    let away = cluster.follower("counter");
    cluster.node_mut(away).kill();
    let here = cluster.running()[0];

    upgrade(&mut cluster, here, "counter", "counter-2");
    assert_eq!(session.send(1, br#"{"Add":20}"#).index(), first.index(), "a retry is answered as before");
    assert_eq!(session.send(2, br#"{"Add":1}"#).expect(200).text(), "21");
    assert_eq!(session.send(3, br#""Double""#).expect(200).text(), "42");
    cluster.node_mut(away).start();
    cluster.node_mut(away).wait_ready();
    cluster.assert_equal_state("counter");
    let view = cluster.node(away).group("counter");
    assert_eq!((&view["module"], &view["modules"][0]["name"]), (&json!("counter-2"), &json!("counter")));
    // The catalog there may be behind the group.
    wait::until("the catalog's word", || {
        let view = cluster.node(away).group("counter");
        if view["modules"][1]["index"].as_u64() > first.index() { Ok(()) } else { Err(view.to_string()) }
    });

    // From the log, through both modules; then from a snapshot of the second.
    for snapshot in [false, true] {
        if snapshot {
            for node in &cluster.nodes {
                node.client().post("/v1/groups/counter/snapshot", "").expect(200);
            }
        }
        cluster.kill_all();
        cluster.start_all();
        for node in 1..=3 {
            assert_eq!(query(&cluster, node, "counter", r#""Get""#), 42);
            assert_eq!(query(&cluster, node, "counter", r#""Changes""#), 2);
        }
        cluster.assert_equal_state("counter");
    }
    // Who comes later never saw the first.
    cluster.prepare_joining(1);
    cluster.add(1, 4);
    assert_eq!(query(&cluster, 4, "counter", r#""Changes""#), 2);
    cluster.assert_equal_state("counter");
}

/// A node that comes while the log reaches back to the group's beginning goes the whole way, by the module that the group began
/// with: its name is gone, its file is not.
#[test]
fn a_node_that_comes_later_goes_through_the_modules_of_the_past() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.upload(1, "counter-2", modules::counter_2()).expect(201);
    cluster.node(1).client().post("/v1/groups/counter/apply", r#"{"Add":5}"#).expect(200);
    upgrade(&mut cluster, 1, "counter", "counter-2");
    cluster.node(1).client().delete("/v1/modules/counter").expect(204);
    cluster.prepare_joining(1);
    cluster.add(1, 2);
    assert_eq!(cluster.node(2).group("counter")["purged"], 0, "it was sent the log, not a snapshot");
    assert_eq!(query(&cluster, 2, "counter", r#""Get""#), 5);
    cluster.assert_equal_state("counter");
}

/// There and back again while clients write: none of them notices more than a pause.
#[test]
fn modules_change_under_load_and_every_write_is_there_once() {
    let mut cluster = Cluster::start(3, &["--snapshot-entries", "300"]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.upload(1, "kv-twin", &modules::twin(modules::bundled("kv"))).expect(201);
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(200);
    for (turn, module) in ["kv-twin", "kv", "kv-twin"].into_iter().enumerate() {
        upgrade(&mut cluster, turn as u64 + 1, "kv", module);
        load.wait_for(100);
        let leader = cluster.leader("kv");
        cluster.node_mut(leader).kill();
        load.wait_for(50);
        cluster.node_mut(leader).start();
        cluster.node_mut(leader).wait_ready();
    }
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
    let view = cluster.node(1).group("kv");
    let names: Vec<&str> =
        view["modules"].as_array().unwrap().iter().map(|used| used["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["kv", "kv-twin", "kv", "kv-twin"]);
}

/// Redis's clients of a group are cut off, as if the node had been restarted, and find their keys when they are back.
#[test]
fn clients_of_the_old_modules_adapter_come_back_to_the_new_ones() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.upload(1, "kv", modules::bundled("kv")).expect(201);
    cluster.upload(1, "kv-twin", &modules::twin(modules::bundled("kv"))).expect(201);
    cluster.upload(1, "deaf", modules::bundled("counter")).expect(201);
    let listen = SocketAddr::new(cluster.node(1).http.ip(), 7500);
    // One machine, one address: the first node to bind it serves.
    let body = json!({ "name": "r", "module": "kv", "listen": [listen.to_string()], "replicas": 1 }).to_string();
    cluster.node(1).client().post("/v1/groups", body).expect(201);
    let connect = || wait::until("the listener", || Redis::connect(listen).map_err(|error| error.to_string()));
    let mut client = connect();
    assert_eq!(client.ask("SET a 1"), "+OK");
    put(&cluster, 1, "r", "deaf").expect_problem(400, "bad_request", &["deaf has no adapter"]);
    upgrade(&mut cluster, 2, "r", "kv-twin");
    wait::until("the old connection to be cut", || match client.try_ask("GET a") {
        Ok(reply) => Err(format!("it answered {reply}")),
        Err(_) => Ok(()),
    });
    let reply =
        wait::until("an answer of the new adapter", || connect().try_ask("GET a").map_err(|why| why.to_string()));
    assert_eq!(reply, "1");
}

/// What does not fit is refused before anything begins, with the module's own words, and the group goes on as it was.
#[test]
fn a_module_that_does_not_fit_is_refused_and_the_group_stays_with_its_own() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.upload(1, "counter-2", modules::counter_2()).expect(201);
    cluster.upload(1, "accumulator", &modules::accumulator()).expect(201);
    cluster.node(1).client().post("/v1/groups/counter/apply", r#"{"Set":13}"#).expect(200);

    let refused = put(&cluster, 2, "counter", "counter-2");
    refused.expect_problem(422, "rejected", &["13 brings bad luck", "the new module"]);
    assert!(refused.json()["remedy"].as_str().unwrap().contains("a version of the module that"), "{refused}");
    put(&cluster, 2, "counter", "none").expect_problem(404, "module_not_found", &["none"]);
    put(&cluster, 2, "none", "counter-2").expect_problem(404, "group_not_found", &["none"]);
    put(&cluster, 2, "counter", "counter").expect_problem(409, "already_exists", &["runs module counter already"]);
    put(&cluster, 2, "catalog", "counter").expect_problem(404, "group_not_found", &["catalog"]);
    let changes = cluster.node(1).client().get("/v1/changes").expect(200).json();
    assert_eq!(changes["changes"], json!([]), "nothing began");
    cluster.assert_equal_state("counter");
    assert_eq!(query(&cluster, 3, "counter", r#""Get""#), 13);

    let try_it = |module: &str| {
        let server = format!("http://{}", cluster.node(3).http);
        let args = ["group", "upgrade", "counter", "--module", module, "--dry-run"];
        program::run(program::command().args(args).env("STATEHOUSE_SERVER", server), b"")
    };
    try_it("counter-2").fails(1, &["13 brings bad luck"]);
    cluster.node(1).client().post("/v1/groups/counter/apply", r#"{"Set":14}"#).expect(200);
    let said = try_it("counter-2").ok();
    assert_eq!(said.matches("its state goes over").count(), 3, "{said}");
    assert_eq!(cluster.node(1).group("counter")["module"], "counter", "it was only tried");
    upgrade(&mut cluster, 1, "counter", "counter-2");
    // The way back would need a first version that reads what the second writes.
    put(&cluster, 1, "counter", "counter").expect_problem(422, "rejected", &["the new module"]);
    cluster.node(1).client().delete("/v1/modules/counter-2").expect_problem(409, "module_in_use", &["counter"]);
}

/// Nobody knows whether it fits: a wish is refused while a majority of the voters cannot try it, and nothing comes of it later.
#[test]
fn without_a_majority_that_has_tried_it_no_module_changes() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.upload(1, "counter-2", modules::counter_2()).expect(201);
    cluster.node_mut(2).kill();
    cluster.node_mut(3).kill();
    let refused = put(&cluster, 1, "counter", "counter-2");
    assert!(refused.status >= 500, "{refused}");
    cluster.node_mut(2).start();
    cluster.node_mut(3).start();
    cluster.wait_ready();
    assert_eq!(cluster.node(1).client().get("/v1/changes").expect(200).json()["changes"], json!([]));
    assert_eq!(cluster.node(1).group("counter")["module"], "counter");
    // One that hangs holds up nobody for long, and goes over when it is back.
    cluster.node(3).freeze();
    upgrade(&mut cluster, 1, "counter", "counter-2");
    cluster.node(3).thaw();
    cluster.assert_equal_state("counter");
}

/// Saved after a change and restored into a new group, it goes on with the second module, and can change again: changes are
/// counted anew there.
#[test]
fn a_group_that_changed_its_module_is_saved_restored_and_changed_again() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.upload(1, "kv-twin", &modules::twin(modules::bundled("kv"))).expect(201);
    cluster.node(1).client().post("/v1/groups/kv/apply", r#"{"Put":{"key":"a","value":"1"}}"#).expect(200);
    upgrade(&mut cluster, 1, "kv", "kv-twin");
    upgrade(&mut cluster, 1, "kv", "kv");
    upgrade(&mut cluster, 1, "kv", "kv-twin");
    let server = format!("http://{}", cluster.node(1).http);
    let file = cluster.folder().join("kv.snap");
    let run = |server: &str, args: &[&str]| {
        program::run(program::command().args(args).env("STATEHOUSE_SERVER", server), b"").ok()
    };
    run(&server, &["snapshot", "save", "kv", file.to_str().unwrap()]);

    let mut other = Cluster::start(1, &[]);
    other.upload(1, "kv", modules::bundled("kv")).expect(201);
    other.upload(1, "twin", &modules::twin(modules::bundled("kv"))).expect(201);
    let there = format!("http://{}", other.node(1).http);
    run(&there, &["group", "restore", "again", file.to_str().unwrap()]);
    let get = r#"{"Get":{"key":"a"}}"#;
    let before = query(&other, 1, "again", get);
    assert_eq!(before, query(&cluster, 1, "kv", get));
    assert_eq!(other.node(1).group("again")["module"], "twin", "as it is called here");
    upgrade(&mut other, 1, "again", "kv");
    other.kill_all();
    other.start_all();
    assert_eq!(query(&other, 1, "again", get), before);
    assert_eq!(other.node(1).group("again")["module"], "kv");
}

/// A keeper's clients take up their sessions at the new module's adapter, with their ephemeral nodes; and nodes that start again later
/// take the group for theirs, though its module has another name.
#[test]
fn a_keepers_tree_goes_over_with_its_sessions_and_ephemeral_nodes() {
    let mut keepers = Ensemble::start(3, &[]);
    let (mut client, welcome) = Connection::until_open(keepers.client(0), &Hello::new(20_000));
    assert_eq!(client.create("/lasting", b"1", 0).unwrap().error, 0);
    assert_eq!(client.create("/lock", b"mine", 1).unwrap().error, 0);
    let mut http = keepers.http(1);
    let twin = modules::twin(modules::bundled("znode-tree"));
    http.post("/v1/modules?name=znode-tree-2", twin).expect(201);
    let body = br#"{"module":"znode-tree-2"}"#;
    let begun = http.ask(&Request::new("PUT", "/v1/groups/keeper/module").body(body)).expect(202).json();
    wait::until("the change", || {
        let change = http.get(&format!("/v1/changes/{}", begun["id"])).expect(200).json();
        if change["state"] == "done" { Ok(()) } else { Err(change) }
    });
    wait::until("the old connection to be cut", || match client.ping().and_then(|()| client.reply()) {
        Ok(reply) => Err(format!("{reply:?}")),
        Err(_) => Ok(()),
    });
    let look = |address| {
        let (mut client, again) = Connection::until_open(address, &Hello::again(&welcome));
        assert_eq!(again.session, welcome.session);
        assert_eq!(client.stat("/lock").unwrap().unwrap().ephemeral_owner, welcome.session);
        assert_eq!(client.stat("/lasting").unwrap().unwrap().ephemeral_owner, 0);
    };
    look(keepers.client(2));
    for number in 0..3 {
        keepers.restart(number);
        look(keepers.client(number));
    }
}
