//! Clients of an adapter, over TCP.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::lines::Lines;
use statehouse_tests::modules;
use statehouse_tests::proxy::Proxy;
use statehouse_tests::wait;

/// Where the adapters of a cluster's nodes listen: each node at its own port, as `statehouse local` does it.
const PORT: u16 = 7300;

fn address(cluster: &Cluster, node: u64) -> SocketAddr {
    let port = PORT + u16::try_from(node).unwrap();
    SocketAddr::new(cluster.node(1).http.ip(), port)
}

/// A cluster whose group `lines` listens at every node.
#[track_caller]
fn start(nodes: u64, flags: &[&str]) -> Cluster {
    start_prepared(Cluster::prepare(nodes, flags))
}

#[track_caller]
fn start_prepared(mut cluster: Cluster) -> Cluster {
    for node in &mut cluster.nodes {
        let offset = node.id.to_string();
        node.add_flags(&["--listen-port-offset", &offset]);
    }
    cluster.start_all();
    cluster.upload(1, "lines", modules::lines()).expect(201);
    let listen = SocketAddr::new(cluster.node(1).http.ip(), PORT).to_string();
    let body = json!({ "name": "lines", "module": "lines", "listen": [listen] }).to_string();
    cluster.node(1).client().post("/v1/groups", body).expect(201);
    cluster
}

/// Connects, as soon as the node listens.
#[track_caller]
fn connect(cluster: &Cluster, node: u64) -> Lines {
    wait::until(&format!("a listener at node {node}"), || {
        Lines::connect(address(cluster, node)).map_err(|error| error.to_string())
    })
}

#[test]
fn a_client_speaks_the_modules_own_protocol() {
    let cluster = start(1, &[]);
    let mut client = connect(&cluster, 1);
    assert_eq!(client.ask("echo hello"), "hello");
    assert!(client.ask("add a one").starts_with("added 1 @"));
    let session = client.open(10_000);
    assert_eq!(session.id, session.attachment);
    assert!(client.ask("add a two").starts_with("added 2 @"));
    assert!(client.ask("get a").starts_with("list one,two @"));
    assert!(client.ask("get! a").starts_with("list one,two @"));
    assert_eq!(client.ask("add a trap"), "error trapped");
    assert_eq!(client.ask("add a"), "error rejected");
    assert_eq!(client.ask("watch"), "watching");
    client.send("add a three\n").unwrap();
    assert!(client.receive().unwrap().starts_with("event a three @"), "the event comes before the reply");
    assert!(client.receive().unwrap().contains("added 3 @"));
    client.send("close\n").unwrap();
    assert_eq!(client.receive().unwrap().split(" @").next().unwrap(), format!("event ended {}", session.id));
    assert!(client.receive().unwrap().contains(": closed @"));
    assert!(client.receive().unwrap().starts_with("lost ended @"));
    let status: serde_json::Value = serde_json::from_str(&client.ask("status")).unwrap();
    assert_eq!((status["role"].as_str(), status["connections"].as_u64()), (Some("standalone"), Some(1)));
    let view = cluster.node(1).group("lines");
    assert_eq!(view["listeners"][0], json!({ "address": address(&cluster, 1).to_string(), "state": "listening" }));
    assert_eq!(view["connections"], 1);
    assert_eq!(client.ask("later 50"), "now");
    assert_eq!(client.ask("bye"), "bye");
    assert_eq!(client.receive().unwrap(), "", "closed after its last word");
}

/// `echo question | nc` says no more after its question, and still wants the answer.
#[test]
fn a_client_that_says_no_more_still_gets_its_answer() {
    let cluster = start(1, &[]);
    assert!(connect(&cluster, 1).ask("add a one").starts_with("added 1 @"));
    let mut client = TcpStream::connect(address(&cluster, 1)).unwrap();
    client.write_all(b"get! a\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("1: list one @"), "{text:?}");
}

/// A client at a follower sends on while the leader is killed: every command is applied once, in the order it was
/// sent, and answered in that order, without the client doing anything.
#[test]
fn commands_of_a_session_come_once_and_in_order_through_a_change_of_leader() {
    const COMMANDS: u64 = 3_000;
    let mut cluster = start(3, &[]);
    let leader = cluster.leader("lines");
    let follower = cluster.follower("lines");
    let mut client = connect(&cluster, follower);
    client.open(20_000);
    let mut sender = client.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        for number in 1..=COMMANDS {
            sender.send(&format!("add a {number}\n")).unwrap();
            if number % 20 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    });
    let mut last_index = 0;
    for number in 1..=COMMANDS {
        let line = client.receive().unwrap();
        let (request, index) =
            line.split_once(&format!(": added {number} @")).unwrap_or_else(|| panic!("{line:?} for {number}"));
        let index: u64 = index.parse().unwrap();
        // The first request was `open`.
        assert_eq!(request, (number + 1).to_string());
        assert!(index > last_index, "{line:?} after @{last_index}");
        last_index = index;
        if number == COMMANDS / 4 {
            cluster.node_mut(leader).kill();
        }
    }
    sending.join().unwrap();
    let expected: Vec<String> = (1..=COMMANDS).map(|number| number.to_string()).collect();
    let list = client.ask("get a");
    assert_eq!(list.split(' ').nth(1).unwrap(), expected.join(","));
    cluster.start_all();
    cluster.assert_equal_state("lines");
}

/// The node that a client is connected to dies. The client takes its session to another node: what it holds stays,
/// what it had under way was applied once or never, in order, and nothing of it comes later.
#[test]
fn a_session_moves_with_its_client_to_another_node() {
    let mut cluster = start(3, &[]);
    let leader = cluster.leader("lines");
    let mut client = connect(&cluster, leader);
    let session = client.open(20_000);
    let follower = cluster.follower("lines");
    let mut watcher = connect(&cluster, follower);
    watcher.ask("watch");
    assert!(client.ask("add a 1").starts_with("added 1 @"));
    let pipelined: String = (2..=200).map(|number| format!("add a {number}\n")).collect();
    client.send(&pipelined).unwrap();
    cluster.node_mut(leader).kill();
    let next = (1..=3).find(|id| ![leader, follower].contains(id)).unwrap();
    let mut client = connect(&cluster, next);
    let moved = client.attach(&session);
    assert_eq!(moved.id, session.id);
    assert!(moved.attachment > session.attachment);
    assert!(client.ask("add a last").starts_with("added "));
    let list = client.ask("get a");
    let words: Vec<&str> = list.split(' ').nth(1).unwrap().split(',').collect();
    let (last, before) = words.split_last().unwrap();
    let expected: Vec<String> = (1..=before.len()).map(|number| number.to_string()).collect();
    assert_eq!((before, *last), (&expected.iter().map(String::as_str).collect::<Vec<_>>()[..], "last"));
    // The watcher, at another node, saw the same in the same order, and no end of the session.
    for word in words {
        let line = watcher.receive().unwrap();
        assert!(line.starts_with(&format!("event a {word} @")), "{line}");
    }
    let mut other = connect(&cluster, next);
    assert_eq!(other.ask(&format!("attach {} {}", session.id, "0".repeat(32))), "error wrong_secret");
    other.attach(&session);
    assert!(client.receive().unwrap().starts_with("lost moved @"));
}

#[test]
fn an_adapter_that_panics_costs_its_connections_and_nothing_else() {
    let cluster = start(1, &[]);
    let mut client = connect(&cluster, 1);
    let mut other = connect(&cluster, 1);
    let session = other.open(20_000);
    assert!(other.ask("add a 1").starts_with("added 1 @"));
    client.send("boom\n").unwrap();
    assert_eq!(
        (client.receive().unwrap_or_default(), other.receive().unwrap_or_default()),
        (String::new(), String::new())
    );
    let mut again = connect(&cluster, 1);
    again.attach(&session);
    assert!(again.ask("add a 2").starts_with("added 2 @"), "the group goes on, and so does the session");
    let said = cluster.node(1).said();
    assert!(said.contains("the adapter trapped: panic: boom (at "), "{said}");
    let metrics = cluster.node(1).client().get("/metrics").expect(200).text();
    assert!(metrics.contains("statehouse_gateway_failures_total{group=\"lines\"} 1"), "{metrics}");
    assert!(metrics.contains("statehouse_gateway_connections{group=\"lines\"} 1"), "{metrics}");
}

/// A node was away for so long that only a snapshot brings it back: its adapter has missed events, so its clients have to come
/// again. That is nobody's failure.
#[test]
fn a_replica_that_jumps_by_a_snapshot_sends_its_clients_away_once() {
    let mut cluster = Cluster::prepare(3, &["--snapshot-entries", "50", "--follower-log-bytes", "0"]);
    let network = Proxy::before(&mut cluster);
    let cluster = start_prepared(cluster);
    let mut here = connect(&cluster, 1);
    let mut there = connect(&cluster, 3);
    assert_eq!(there.ask("watch"), "watching");
    // Not frozen: it would find in its sockets what it was sent before anyone noticed.
    network.isolate(3);
    wait::until("a leader besides node 3", || {
        let leader = cluster.node(1).group("lines")["leader"].as_u64();
        if matches!(leader, Some(1 | 2)) { Ok(()) } else { Err(leader) }
    });
    here.open(20_000);
    // Enough for a snapshot behind 165, wherever the last one came: 64 entries stay behind it.
    for number in 0..300 {
        assert!(here.ask(&format!("add a {number}")).starts_with(&format!("added {} @", number + 1)));
    }
    wait::until("what node 3 lacks is gone", || {
        let status = cluster.node(1).group("lines");
        if status["purged"].as_u64() > Some(100) { Ok(()) } else { Err(status) }
    });
    // With all that is on its way.
    network.break_all();
    network.mend();
    wait::until("the client of node 3 is sent away", || match there.receive() {
        Ok(word) if !word.is_empty() => Err(word),
        _ => Ok(()),
    });
    let mut again = connect(&cluster, 3);
    wait::until("node 3 has it all", || {
        let list = again.ask("get a");
        if list.contains(",299 @") { Ok(()) } else { Err(list) }
    });
    let said = cluster.node(3).said();
    assert!(said.contains("jumped over entries") && !said.contains(" ERROR "), "{said}");
    let metrics = cluster.node(3).client().get("/metrics").expect(200).text();
    assert!(metrics.contains("statehouse_gateway_failures_total{group=\"lines\"} 0"), "{metrics}");
}

/// One client asks for megabytes and reads nothing: it is cut off, and what it asked for is not kept. Others are
/// served meanwhile, one that reads slowly too.
#[test]
fn a_client_that_does_not_read_is_cut_off_and_others_are_served() {
    let cluster = start(1, &["--client-queue-bytes-max", "4MiB"]);
    let mut idle = connect(&cluster, 1);
    let mut slow = connect(&cluster, 1);
    slow.send("flood 3000000\n").unwrap();
    // Asked one by one they would be a load that waits: it is not read from while it does not read.
    idle.send(&"flood 1000000\n".repeat(40)).unwrap();
    wait::until_true("it is cut off", || {
        let mut third = connect(&cluster, 1);
        assert_eq!(third.ask("echo here"), "here");
        idle.send("echo\n").is_err()
    });
    assert_eq!(slow.receive().unwrap().len(), 3 + 3_000_000);
    let metrics = cluster.node(1).client().get("/metrics").expect(200).text();
    assert!(metrics.contains("statehouse_gateway_cut_off_connections_total{group=\"lines\"} 1"), "{metrics}");
}

#[test]
fn two_thousand_idle_connections_cost_memory_of_kilobytes_each() {
    let cluster = start(1, &["--client-connections-max", "2001"]);
    let mut first = connect(&cluster, 1);
    first.open(20_000);
    let before = cluster.node(1).resident_bytes();
    let mut idle: Vec<Lines> = (0..2_000).map(|_| connect(&cluster, 1)).collect();
    assert_eq!(idle[1_999].ask("echo last"), "last");
    let each = cluster.node(1).resident_bytes().saturating_sub(before) / 2_000;
    statehouse_tests::report(format_args!("an idle connection takes {each} bytes of the node"));
    assert!(each < 16 << 10, "{each} bytes a connection");
    assert!(first.ask("add a 1").starts_with("added 1 @"));
    let mut over = connect(&cluster, 1);
    assert_eq!(over.receive().unwrap_or_default(), "", "one too many");
    drop(idle);
    wait::until_true("they are gone", || cluster.node(1).group("lines")["connections"] == 1);
}

#[test]
fn a_port_in_use_is_said_and_tried_again() {
    let mut cluster = Cluster::prepare(1, &[]);
    let address = SocketAddr::new(cluster.node(1).http.ip(), PORT);
    let holder = std::net::TcpListener::bind(address).unwrap();
    cluster.node_mut(1).add_flags(&["--listen", &format!("lines={address}")]);
    cluster.start_all();
    cluster.deploy("lines", modules::lines());
    wait::until("the reason", || {
        let listeners = cluster.node(1).group("lines")["listeners"].clone();
        let state = listeners[0]["state"].as_str().unwrap_or_default().to_owned();
        if state.starts_with("cannot listen: Address already in use") { Ok(()) } else { Err(listeners) }
    });
    assert!(cluster.node(1).said().contains("cannot listen: Address already in use"));
    drop(holder);
    let mut client = wait::until("a listener", || Lines::connect(address).map_err(|error| error.to_string()));
    assert_eq!(client.ask("echo at last"), "at last");
}

#[test]
fn what_cannot_be_listened_on_is_refused_in_words() {
    let cluster = Cluster::start(1, &["--listen", "open=0.0.0.0:7399"]);
    cluster.upload(1, "lines", modules::lines()).expect(201);
    cluster.upload(1, "counter", modules::bundled("counter")).expect(201);
    let create = |body: serde_json::Value| cluster.node(1).client().post("/v1/groups", body.to_string());
    let answer = create(json!({ "name": "c", "module": "counter", "listen": ["127.0.0.1:7399"] })).expect(400);
    assert!(answer.text().contains("no adapter"), "{}", answer.text());
    let answer = create(json!({ "name": "l", "module": "lines", "listen": ["7399"] })).expect(400);
    assert!(answer.text().contains("HOST:PORT"), "{}", answer.text());
    create(json!({ "name": "open", "module": "lines" })).expect(201);
    let state = cluster.node(1).group("open")["listeners"][0]["state"].as_str().unwrap().to_owned();
    assert!(state.starts_with("refused") && state.contains("--insecure"), "{state}");
    create(json!({ "name": "no", "module": "lines", "listen": ["127.0.0.1:7398"], "listen_params": { "refuse": 1 } }))
        .expect(201);
    wait::until_true("its own word", || {
        let state = cluster.node(1).group("no")["listeners"][0]["state"].as_str().unwrap().to_owned();
        state.contains("told to refuse: 1")
    });
}
