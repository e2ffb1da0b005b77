//! Events: in log order, at every node, across reconnects.

use serde_json::Value;
use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::http::EventStream;
use statehouse_tests::modules;

fn put(cluster: &Cluster, node: u64, number: u64) -> u64 {
    let command = json!({ "Put": { "key": format!("k{number:03}"), "value": "v" } }).to_string();
    cluster.node(node).client().post("/v1/groups/kv/apply", command).expect(200).index().unwrap()
}

/// Reads `count` events and gives their keys; each has its entry's index as the first half of its id.
fn keys(stream: &mut EventStream, count: u64) -> Vec<String> {
    (0..count)
        .map(|_| {
            let event = stream.receive().unwrap();
            assert_eq!(event.kind, "", "{event:?}");
            let change: Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!(change["change"], "put");
            change["key"].as_str().unwrap().to_owned()
        })
        .collect()
}

fn expected(from: u64, to: u64) -> Vec<String> {
    (from..to).map(|number| format!("k{number:03}")).collect()
}

#[test]
fn a_listener_sees_every_change_once_and_in_order_across_nodes_and_leaders() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let mut at_1 = EventStream::open(cluster.node(1).http, "/v1/groups/kv/events", "");
    let mut at_2 = EventStream::open(cluster.node(2).http, "/v1/groups/kv/events", "");
    let first_index = put(&cluster, 1, 0);
    for number in 1..20 {
        put(&cluster, 1 + number % 3, number);
    }
    assert_eq!(keys(&mut at_1, 20), expected(0, 20));
    assert_eq!(keys(&mut at_2, 10), expected(0, 10));
    // The connection is lost in the middle; the listener goes on at another node, after the last event it saw.
    let seen = at_2.last_id().to_owned();
    drop(at_2);
    for number in 20..30 {
        put(&cluster, 1, number);
    }
    let mut at_3 = EventStream::open(cluster.node(3).http, "/v1/groups/kv/events", &seen);
    assert_eq!(keys(&mut at_3, 20), expected(10, 30));
    // Or from an index on, as often as one likes.
    let path = format!("/v1/groups/kv/events?from={first_index}");
    assert_eq!(keys(&mut EventStream::open(cluster.node(2).http, &path, ""), 30), expected(0, 30));

    let leader = cluster.leader("kv");
    let listener = cluster.follower("kv");
    let seen = at_3.last_id().to_owned();
    let mut stream = EventStream::open(cluster.node(listener).http, "/v1/groups/kv/events", &seen);
    cluster.node_mut(leader).kill();
    cluster.leader("kv");
    for number in 30..40 {
        put(&cluster, listener, number);
    }
    assert_eq!(keys(&mut stream, 10), expected(30, 40));
    cluster.start_all();
}

/// What is no longer kept is not silently left out: the stream says from where to where.
#[test]
fn a_listener_that_comes_too_late_is_told_what_it_missed() {
    let cluster = Cluster::start(1, &["--events-kept", "10"]);
    cluster.deploy("kv", modules::bundled("kv"));
    let first = put(&cluster, 1, 0);
    for number in 1..50 {
        put(&cluster, 1, number);
    }
    let mut stream = EventStream::open(cluster.node(1).http, &format!("/v1/groups/kv/events?from={first}"), "");
    let gap = stream.receive().unwrap();
    assert_eq!(gap.kind, "gap");
    let gap: Value = serde_json::from_str(&gap.data).unwrap();
    assert_eq!(gap["from"], first);
    let next = gap["next"].as_u64().unwrap();
    assert!(next > first && next <= first + 40, "{gap}");
    let rest = keys(&mut stream, first + 50 - next);
    assert_eq!(rest.last().unwrap(), "k049");
}
