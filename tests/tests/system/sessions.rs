//! Sessions: an identity that outlives connections and leaders, but not its client.

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::http::Request;
use statehouse_tests::load::Session;
use statehouse_tests::modules;
use statehouse_tests::wait;

#[test]
fn a_retry_is_answered_as_the_first_time_at_every_node_and_after_the_leader_is_gone() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    let mut session = Session::open(&cluster.addresses(), "counter");
    let first = session.apply(b"{\"Add\":5}").expect(200);
    assert_eq!(first.text(), "5");
    // Round the nodes: every attempt of `Session` after an answer starts at the same node, so name each.
    let retry = |cluster: &Cluster, node: u64, token: &str| {
        let request = Request::new("POST", "/v1/groups/counter/apply").header("statehouse-session", token);
        cluster.node(node).client().ask(&request.header("statehouse-sequence", 1).body(b"{\"Add\":5}"))
    };
    for node in 1..=3 {
        let again = retry(&cluster, node, &session.token).expect(200);
        assert_eq!((again.text().as_str(), again.index()), ("5", first.index()), "at node {node}");
    }
    let leader = cluster.leader("counter");
    cluster.node_mut(leader).kill();
    let next = cluster.leader("counter");
    let again = retry(&cluster, next, &session.token).expect(200);
    assert_eq!((again.text().as_str(), again.index()), ("5", first.index()));
    cluster.start_all();
    cluster.kill_all();
    cluster.start_all();
    for node in 1..=3 {
        let again = retry(&cluster, node, &session.token).expect(200);
        assert_eq!((again.text().as_str(), again.index()), ("5", first.index()), "after a restart, at node {node}");
    }
    assert_eq!(session.apply(b"{\"Add\":1}").expect(200).text(), "6");
}

/// Two sessions hold a key each. One falls silent: its end comes through the log, at all nodes, and its key
/// goes. The other is touched, at changing nodes, and stays.
#[test]
fn a_silent_session_ends_and_a_touched_one_stays() {
    let cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let put = |session: &mut Session, key: &str| {
        session
            .apply(json!({ "Put": { "key": key, "value": "x", "ephemeral": true } }).to_string().as_bytes())
            .expect(200);
    };
    let mut silent = Session::open_for(&cluster.addresses(), "kv", 4_000);
    let mut lively = Session::open_for(&cluster.addresses(), "kv", 4_000);
    put(&mut silent, "silent");
    put(&mut lively, "lively");
    let held = |node: u64| {
        let answer = cluster
            .node(node)
            .client()
            .post("/v1/groups/kv/query?consistency=local", "{\"Range\":{\"keys_only\":true}}")
            .expect(200);
        let items = answer.json()["items"].as_array().unwrap().clone();
        items.iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut turn = 0;
    let mut touch = || {
        turn += 1;
        let path = format!("/v1/groups/kv/sessions/{}/touch", lively.id());
        let request = Request::new("POST", path).header("statehouse-session", &lively.token);
        cluster.node(1 + turn % 3).client().ask(&request).expect(204);
    };
    wait::until_true("both keys are seen at all nodes", || (1..=3).all(|node| held(node).len() == 2));
    wait::until("the silent session's key goes, and only that", || {
        touch();
        let all: Vec<_> = (1..=3).map(held).collect();
        assert!(all.iter().all(|keys| keys.contains(&"lively".to_owned())), "{all:?}");
        if all.iter().all(|keys| keys == &["lively"]) { Ok(()) } else { Err(all) }
    });
    // Several times its timeout has to pass: count the other's end as the clock.
    for _ in 0..2 {
        Session::open_for(&cluster.addresses(), "kv", 4_000);
        wait::until_true("another session's end", || {
            touch();
            cluster.node(1).group("kv")["sessions"] == 1
        });
    }
    put(&mut lively, "still");
    let request = Request::new("POST", "/v1/groups/kv/apply").header("statehouse-session", &silent.token);
    let late = cluster
        .node(2)
        .client()
        .ask(&request.header("statehouse-sequence", 2).body(b"{\"Delete\":{\"key\":\"lively\"}}"));
    late.expect_problem(404, "session_not_found", &[&silent.id().to_string()]);

    let close = Request::new("DELETE", format!("/v1/groups/kv/sessions/{}", lively.id()));
    let wrong = close.clone().header("statehouse-session", format!("{}:{}", lively.id(), "1".repeat(32)));
    cluster.node(1).client().ask(&wrong).expect_problem(403, "wrong_secret", &[]);
    cluster.node(3).client().ask(&close.header("statehouse-session", &lively.token)).expect(204);
    wait::until_true("the closed session's keys go", || (1..=3).all(|node| held(node).is_empty()));
}

/// A node that has lost sight of all others said 204 to a client's signs of life, though nobody could hear of them.
#[test]
fn a_touch_without_a_majority_is_answered_with_no_leader() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    let session = Session::open_for(&cluster.addresses(), "counter", 60_000);
    let path = format!("/v1/groups/counter/sessions/{}/touch", session.id());
    let touch = Request::new("POST", path).header("statehouse-session", &session.token);
    for node in 1..=3 {
        cluster.node(node).client().ask(&touch).expect(204);
    }
    cluster.node_mut(1).kill();
    cluster.node_mut(2).kill();
    wait::until("the node that is left knows that nobody leads", || {
        let view = cluster.node(3).group("counter");
        if view["leader"].is_null() { Ok(()) } else { Err(view) }
    });
    cluster.node(3).client().ask(&touch).expect_problem(503, "no_leader", &["counter", "no leader"]);
}

/// Keys expire by replicated timers, also when the leader that should fire them is new.
#[test]
fn timers_fire_under_the_next_leader() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let command = json!({ "Put": { "key": "k", "value": "v", "ttl_ms": 3_000 } }).to_string();
    cluster.node(1).client().post("/v1/groups/kv/apply", command).expect(200);
    let leader = cluster.leader("kv");
    cluster.node_mut(leader).kill();
    let next = cluster.leader("kv");
    wait::until_true("the key expires", || {
        let status = cluster.node(next).client().post("/v1/groups/kv/query", "\"Status\"").expect(200).json();
        status["keys"] == 0
    });
    cluster.start_all();
    cluster.assert_equal_state("kv");
}
