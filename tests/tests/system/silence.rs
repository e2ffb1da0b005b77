//! Who is there and does not answer: a machine that is paused, and a peer that accepts and stays silent.

use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use statehouse_tests::cluster::Cluster;
use statehouse_tests::http::Request;
use statehouse_tests::load::Load;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::proxy::BlackHole;
use statehouse_tests::wait;

const PAUSE: Duration = Duration::from_secs(60);

/// The machine of a leader is paused, and resumed when another has long led in its place. It took itself for the leader the moment
/// before; whatever it is asked as it comes to, nobody is told of the past, by lease or otherwise.
#[test]
fn a_leader_whose_machine_was_paused_does_not_tell_of_the_past_when_it_is_resumed() {
    let mut cluster = Cluster::start(3, &["--election-timeout-ms", "300", "--heartbeat-ms", "60"]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.deploy("counter", modules::bundled("counter"));
    let add = |cluster: &Cluster, id: u64| {
        cluster.node(id).client().post("/v1/groups/counter/apply", r#"{"Add":1}"#).expect(200);
    };
    add(&cluster, 1);
    let paused = cluster.leader("counter");
    let others: Vec<u64> = (1..=3).filter(|id| *id != paused).collect();
    let servers: Vec<SocketAddr> = others.iter().map(|id| cluster.node(*id).http).collect();
    // Its lease is fresh.
    cluster.node(paused).client().post("/v1/groups/counter/query?consistency=lease", r#""Get""#).expect(200);
    cluster.node(paused).freeze();
    let frozen = Instant::now();
    let load = Load::start(&servers, "kv", 4);
    wait::until("the others have a leader and count on", || {
        let answer = cluster.node(others[0]).client().post("/v1/groups/counter/query", r#""Get""#);
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    add(&cluster, others[0]);
    load.wait_for(500);
    // Other tests run beside this one.
    load.pace(Duration::from_millis(200));
    while frozen.elapsed() < PAUSE {
        load.wait_for(20);
    }
    load.pace(Duration::ZERO);
    cluster.node(paused).thaw();
    let mut told = 0;
    wait::until("the one that was paused serves again", || {
        for consistency in ["lease", "linearizable"] {
            let path = format!("/v1/groups/counter/query?consistency={consistency}");
            let request = Request::new("POST", &path).header("statehouse-timeout-ms", 2000).body(br#""Get""#).clone();
            let answer = cluster.node(paused).client().send(&request).map_err(|trouble| format!("{trouble:?}"))?;
            if answer.status != 200 {
                return Err(answer.to_string());
            }
            assert_eq!(answer.text(), "2", "an answer from before the pause, {consistency}");
            told += 1;
        }
        if told >= 40 { Ok(()) } else { Err(format!("{told} answers")) }
    });
    cluster.wait_ready();
    load.wait_for(50);
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
    cluster.assert_equal_state("counter");
}

/// What a host does to all its virtual machines when it is suspended.
#[test]
fn all_machines_are_paused_at_once_and_go_on_where_they_were() {
    let mut cluster = Cluster::start(3, &["--election-timeout-ms", "300", "--heartbeat-ms", "60"]);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 4);
    for _ in 0..3 {
        load.wait_for(100);
        for id in 1..=3 {
            cluster.node(id).freeze();
        }
        let count = load.count();
        let frozen = Instant::now();
        wait::until_true("longer than all timers", || frozen.elapsed() > Duration::from_secs(3));
        assert!(load.count() <= count + 4, "somebody answered for machines that stand still");
        for id in 1..=3 {
            cluster.node(id).thaw();
        }
    }
    load.wait_for(100);
    cluster.wait_ready();
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

/// In the place of the third node something accepts every connection and never says a word: its process hangs, or its address
/// belongs to another program by now. The other two form the cluster, take modules and commands, say who is missing, hand over when
/// one of them is stopped, and take the third in when it is itself again.
#[test]
fn a_peer_that_accepts_and_never_answers_holds_nobody_up() {
    let mut cluster = Cluster::prepare(3, &[]);
    let hole = BlackHole::open(cluster.node(3).peer);
    for id in [1, 2] {
        cluster.node_mut(id).start();
    }
    for id in [1, 2] {
        cluster.node_mut(id).wait_ready();
    }
    cluster.upload(1, "kv", modules::bundled("kv")).expect(201);
    cluster.create(2, "kv", "kv").expect(201);
    let servers: Vec<SocketAddr> = [1, 2].iter().map(|id| cluster.node(*id).http).collect();
    let load = Load::start(&servers, "kv", 4);
    load.wait_for(100);
    let status = cluster.node(1).client().get("/v1/status").expect(200).json();
    assert_eq!(status["nodes"][2]["state"], "unreachable", "{status}");
    let refused = cluster.node(1).client().post("/v1/groups/kv/leader", r#"{"to":3}"#);
    assert!(refused.status >= 400, "the leadership cannot have gone there: {refused}");
    load.wait_for(100);
    let leader = cluster.leader("kv");
    cluster.node_mut(leader).stop();
    cluster.node_mut(leader).start();
    cluster.node_mut(leader).wait_ready();
    load.wait_for(100);
    assert!(hole.count() > 0, "nobody has tried to talk to it");
    drop(hole);
    cluster.node_mut(3).start();
    cluster.wait_ready();
    load.wait_for(50);
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}
