//! From a file to a replicated service, over HTTP; and where modules go.

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::http::Request;
use statehouse_tests::modules;
use statehouse_tests::wait;

/// The first sentence: upload through one node, create through another, use at any.
#[test]
fn an_uploaded_module_becomes_a_service_at_every_node() {
    let mut cluster = Cluster::start(3, &[]);
    let catalog_follower = 2;
    let module = cluster.upload(catalog_follower, "counter", modules::bundled("counter")).expect(201).json();
    assert_eq!(module["name"], "counter");
    assert_eq!(module["size"], modules::bundled("counter").len());
    // The same upload again is a success: whoever lost the answer may repeat it.
    assert_eq!(
        cluster.upload(3, "counter", modules::bundled("counter")).expect(201).json()["digest"],
        module["digest"]
    );

    let group = cluster.create(3, "c1", "counter").expect(201).json();
    assert_eq!(
        (&group["name"], &group["module"], &group["digest"]),
        (&json!("c1"), &json!("counter"), &module["digest"])
    );
    assert_eq!(group["members"].as_array().unwrap().len(), 3);

    let mut sum = 0;
    for (number, node) in [1, 2, 3, 1].into_iter().enumerate() {
        let mut client = cluster.node(node).client();
        let amount = number + 5;
        sum += amount;
        let reply = client.post("/v1/groups/c1/apply", json!({ "Add": amount }).to_string()).expect(200);
        assert_eq!(reply.text(), sum.to_string());
        // The node that answered a command has applied it: even its own state shows it.
        let local = client.post("/v1/groups/c1/query?consistency=local", "\"Get\"").expect(200);
        assert_eq!(local.text(), sum.to_string());
        assert!(local.index() >= reply.index());
        for other in &cluster.nodes {
            for consistency in ["linearizable", "lease"] {
                let path = format!("/v1/groups/c1/query?consistency={consistency}");
                assert_eq!(other.client().post(&path, "\"Get\"").expect(200).text(), sum.to_string());
            }
        }
    }
    let leader = cluster.leader("c1");
    for node in &cluster.nodes {
        let view = node.group("c1");
        assert_eq!(view["leader"], leader);
        assert_eq!(view["state"], if node.id == leader { "leader" } else { "follower" });
        assert_eq!(view["node"], node.id);
        assert!(view["term"].as_u64() >= Some(1) && view["commit"].as_u64() >= Some(4), "{view}");
    }
    cluster.assert_equal_state("c1");
}

#[test]
fn modules_and_groups_are_listed_shown_and_removed_at_any_node() {
    let cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.upload(2, "kv", modules::bundled("kv")).expect(201);
    let names = |node: u64, what: &str| -> Vec<String> {
        let list = cluster.node(node).client().get(&format!("/v1/{what}")).expect(200).json();
        list[what].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    for node in 1..=3 {
        assert_eq!(
            (names(node, "modules"), names(node, "groups")),
            (vec!["counter".into(), "kv".into()], vec!["counter".into()])
        );
    }
    let shown = cluster.node(3).client().get("/v1/modules/counter").expect(200).json();
    assert_eq!(shown["groups"], json!(["counter"]));

    cluster.node(2).client().delete("/v1/modules/counter").expect_problem(409, "module_in_use", &["counter"]);
    let other = cluster.upload(3, "counter", modules::bundled("kv"));
    other.expect_problem(409, "already_exists", &["counter"]);
    cluster.create(2, "counter", "kv").expect_problem(409, "already_exists", &["counter"]);

    cluster.node(3).client().delete("/v1/groups/counter").expect(204);
    cluster.node(2).client().delete("/v1/groups/counter").expect_problem(404, "group_not_found", &["counter"]);
    cluster.node(2).client().delete("/v1/modules/counter").expect(204);
    for node in 1..=3 {
        assert_eq!((names(node, "modules"), names(node, "groups")), (vec!["kv".into()], vec![]));
        let gone = cluster.node(node).client().post("/v1/groups/counter/apply", "{\"Add\":1}");
        gone.expect_problem(404, "group_not_found", &["counter"]);
    }
    // A group of the same name begins anew.
    cluster.upload(1, "counter", modules::bundled("counter")).expect(201);
    cluster.create(1, "counter", "counter").expect(201);
    assert_eq!(cluster.node(2).client().post("/v1/groups/counter/query", "\"Get\"").expect(200).text(), "0");
}

/// A node that is down during an upload has the catalog's word for the module but not its bytes: it fetches
/// them by digest from a peer when it is back.
#[test]
fn a_node_that_missed_an_upload_fetches_the_module_later() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.node_mut(3).kill();
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":7}").expect(200);
    cluster.node_mut(3).start();
    cluster.node_mut(3).wait_ready();
    let path = "/v1/groups/counter/query?consistency=local";
    wait::until("node 3 has the group's state", || {
        match cluster.node(3).client().send(&Request::new("POST", path).body(b"\"Get\"")) {
            Ok(answer) if answer.status == 200 && answer.text() == "7" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.assert_equal_state("counter");
}

/// What a majority does not hold is not acknowledged.
#[test]
fn an_upload_without_a_majority_is_refused() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.node_mut(2).kill();
    cluster.node_mut(3).kill();
    let upload = Request::new("POST", "/v1/modules?name=counter").body(modules::bundled("counter"));
    let answer = cluster.node(1).client().ask(&upload);
    assert!(answer.status == 503 || answer.status == 504, "{answer}");
    cluster.node_mut(2).start();
    cluster.node_mut(2).wait_ready();
    cluster.upload(2, "counter", modules::bundled("counter")).expect(201);
}

/// Other sizes than the usual one, from the beginning on: all nodes serve, and all come to the same state.
#[test]
fn clusters_of_two_and_of_five_serve_through_every_node() {
    for count in [2, 5] {
        let mut cluster = Cluster::start(count, &[]);
        cluster.deploy("counter", modules::bundled("counter"));
        for id in 1..=count {
            let reply = cluster.node(id).client().post("/v1/groups/counter/apply", "{\"Add\":1}").expect(200);
            assert_eq!(reply.text(), id.to_string(), "through node {id} of {count}");
        }
        let voters: Vec<u64> = (1..=count).collect();
        assert_eq!(cluster.voters(1, "counter"), voters);
        assert_eq!(cluster.voters(count, "catalog"), voters);
        cluster.leader("counter");
        cluster.assert_equal_state("counter");
    }
}

/// `statehouse serve` alone: a cluster of one, which leads at once and keeps what it was told.
#[test]
fn a_single_node_is_a_service_too_and_keeps_its_state() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":5}").expect(200);
    cluster.node_mut(1).stop();
    cluster.start_all();
    assert_eq!(cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":5}").expect(200).text(), "10");
    cluster.kill_all();
    cluster.start_all();
    assert_eq!(cluster.node(1).client().post("/v1/groups/counter/query", "\"Get\"").expect(200).text(), "10");
}
