//! `kv` speaks Redis's protocol: clients of three nodes, over TCP.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::modules;
use statehouse_tests::redis::Redis;
use statehouse_tests::report;
use statehouse_tests::wait;

/// Where the nodes listen: each adds its number.
const PORT: u16 = 7400;

fn address(cluster: &Cluster, node: u64) -> SocketAddr {
    SocketAddr::new(cluster.node(1).http.ip(), PORT + u16::try_from(node).unwrap())
}

#[track_caller]
fn start(nodes: u64, listen_params: serde_json::Value) -> Cluster {
    let mut cluster = Cluster::prepare(nodes, &[]);
    for node in &mut cluster.nodes {
        let offset = node.id.to_string();
        node.add_flags(&["--listen-port-offset", &offset]);
    }
    cluster.start_all();
    cluster.upload(1, "kv", modules::bundled("kv")).expect(201);
    let listen = SocketAddr::new(cluster.node(1).http.ip(), PORT).to_string();
    let body = json!({ "name": "r", "module": "kv", "listen": [listen], "listen_params": listen_params }).to_string();
    cluster.node(1).client().post("/v1/groups", body).expect(201);
    cluster
}

#[track_caller]
fn connect(cluster: &Cluster, node: u64) -> Redis {
    wait::until(&format!("a listener at node {node}"), || {
        Redis::connect(address(cluster, node)).map_err(|error| error.to_string())
    })
}

/// Asks until there is a leader to write.
#[track_caller]
fn ask_in_the_end(cluster: &Cluster, node: u64, line: &str) -> String {
    wait::until(line, || {
        let reply = Redis::connect(address(cluster, node)).and_then(|mut client| client.try_ask(line));
        match reply {
            Ok(reply) if !reply.starts_with("-CLUSTERDOWN") && !reply.starts_with("-ERR outcome_unknown") => Ok(reply),
            other => Err(format!("{other:?}")),
        }
    })
}

#[test]
fn redis_clients_of_three_nodes_share_keys_messages_and_transactions() {
    let mut cluster = start(3, json!({ "read_consistency": "linearizable" }));
    assert_eq!(ask_in_the_end(&cluster, 1, "SET a 1"), "+OK");
    let (mut one, mut two, mut three) = (connect(&cluster, 1), connect(&cluster, 2), connect(&cluster, 3));
    assert_eq!(two.ask("GET a"), "1");
    assert_eq!(three.ask("INCR a"), ":2");
    assert_eq!(one.ask("GET a"), "2");

    // A listener on one node hears what another publishes, in order.
    assert_eq!(two.ask("SUBSCRIBE news"), "subscribe news :1");
    for number in 0..20 {
        three.send(&format!("PUBLISH news {number}")).unwrap();
    }
    let heard: Vec<String> = (0..20).map(|_| two.receive().unwrap()).collect();
    let expected: Vec<String> = (0..20).map(|number| format!("message news {number}")).collect();
    assert_eq!(heard, expected);
    (0..20).for_each(|_| assert_eq!(three.receive().unwrap(), ":0", "nobody listens at node 3"));

    // A watched key that changed elsewhere.
    assert_eq!(one.ask("WATCH a"), "+OK");
    assert_eq!(three.ask("SET a 5"), "+OK");
    one.send("MULTI\r\nSET a 9\r\nEXEC").unwrap();
    let replies: Vec<String> = (0..3).map(|_| one.receive().unwrap()).collect();
    assert_eq!(replies, ["+OK", "+QUEUED", "nil"]);

    // HTTP sees the same keys.
    let query = json!({ "Get": { "key": "a" } }).to_string();
    let answer = cluster.node(2).client().post("/v1/groups/r/query", query).expect(200);
    assert_eq!(answer.json()["value"], "5");

    // Expiry, without anybody writing meanwhile.
    assert_eq!(one.ask("SET soon 1 PX 200"), "+OK");
    wait::until_true("the key's end", || one.ask("GET soon") == "nil");

    // What was answered is there when the leader is gone.
    for number in 0..50 {
        assert_eq!(one.ask(&format!("SET k{number} {number}")), "+OK");
    }
    let leader = cluster.leader("r");
    cluster.node_mut(leader).kill();
    let other = if leader == 1 { 2 } else { 1 };
    assert_eq!(ask_in_the_end(&cluster, other, "SET after 1"), "+OK");
    let mut client = connect(&cluster, other);
    for number in 0..50 {
        assert_eq!(client.ask(&format!("GET k{number}")), number.to_string());
    }
    cluster.node_mut(leader).start();
    cluster.wait_ready();
    cluster.assert_equal_state("r");
}

/// Redis's own programs, where they are installed.
#[test]
fn redis_cli_and_redis_benchmark_work() {
    let cluster = start(1, json!({}));
    drop(connect(&cluster, 1));
    let address = address(&cluster, 1);
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let program = |name: &str, arguments: &[&str]| {
        let output = Command::new(name).args(["-h", &host, "-p", &port]).args(arguments).output();
        output.ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(set) = program("redis-cli", &["SET", "a", "1"]) else {
        report("skipped: there is no redis-cli");
        return;
    };
    assert_eq!(set, "OK\n");
    assert_eq!(program("redis-cli", &["-3", "GET", "nothing"]).unwrap(), "\n");
    assert_eq!(program("redis-cli", &["--scan", "--pattern", "a*"]).unwrap(), "a\n");
    assert!(program("redis-cli", &["INFO", "keyspace"]).unwrap().contains("db0:keys=1"));
    let benchmark = ["-t", "ping,set,get,incr,mset", "-n", "2000", "-c", "20", "-P", "4", "--csv"];
    let Some(table) = program("redis-benchmark", &benchmark) else {
        report("skipped: there is no redis-benchmark");
        return;
    };
    for test in ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)"] {
        assert!(table.contains(&format!("\"{test}\"")), "{table}");
    }
    assert_eq!(program("redis-cli", &["GET", "counter:__rand_int__"]).unwrap(), "2000\n");
}
