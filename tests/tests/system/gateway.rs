//! Clients of an adapter, over TCP.

use std::net::SocketAddr;

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::lines::Lines;
use statehouse_tests::modules;
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
    let mut cluster = Cluster::prepare(nodes, flags);
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
