//! ClickHouse Keeper's `rcfg`: a plan of who leads, who leaves and who is to lead how much, sent to a running ensemble.

use std::io::Read;
use std::io::Write;

use serde_json::Value;
use serde_json::json;
use statehouse_tests::keeper::Connection;
use statehouse_tests::keeper::Ensemble;
use statehouse_tests::keeper::Hello;
use statehouse_tests::keeper::connect;
use statehouse_tests::keeper::record;
use statehouse_tests::wait;
use znode_tree::jute::Reader;
use znode_tree::wire::op;

/// A client must not lose its session because four nodes share a busy machine.
const TIMEOUT_MS: i32 = 100_000;

/// Sends a plan to node `number`, from 0; status and message.
fn rcfg(ensemble: &Ensemble, number: usize, plan: &Value) -> (String, String) {
    let plan = plan.to_string();
    let mut stream = connect(ensemble.client(number)).unwrap();
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let length = u32::try_from(plan.len()).unwrap().to_be_bytes();
    stream.write_all(&[b"rcfg", &length[..], plan.as_bytes()].concat()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let field = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    (field("status"), field("message"))
}

/// What node `number` tells of the members: number, role and priority of each.
fn config(ensemble: &Ensemble, number: usize) -> Vec<(usize, String)> {
    let (mut client, _) = Connection::until_open(ensemble.client(number), &Hello::new(TIMEOUT_MS));
    let reply = client.ask(op::GET_DATA, &record(|out| _ = out.text("/keeper/config").bool(false))).unwrap();
    let data = Reader::new(&reply.body).buffer().unwrap().unwrap_or_default();
    let text = String::from_utf8_lossy(data).into_owned();
    let member = |line: &str| {
        let (number, rest) = line.strip_prefix("server.")?.split_once('=')?;
        Some((number.parse::<usize>().ok()? - 1, rest.split_once(';')?.1.to_owned()))
    };
    text.lines().filter_map(member).collect()
}

/// Four servers become three, another one leads, and one is never to lead again: by one plan, to which all must agree at first.
#[test]
fn a_plan_moves_leadership_removes_the_former_leader_and_sets_priorities() {
    let mut ensemble = Ensemble::start(4, &["--compatibility", "clickhouse", "--reconfig-enabled"]);
    let leader = ensemble.leader();
    let [asked, next, third] = *(0..4).filter(|node| *node != leader).collect::<Vec<_>>() else { unreachable!() };
    let all: Vec<_> = (0..4).map(|node| (node, "participant;100".to_owned())).collect();
    wait::until("a configuration of four", || {
        let said = config(&ensemble, asked);
        if said == all { Ok(()) } else { Err(said) }
    });

    // What does not hold changes nothing; nor does what cannot be read.
    let actions = json!([
        { "transfer_leadership": [asked + 1] },
        { "remove_members": [leader + 1] },
        { "set_priority": [{ "id": next + 1, "priority": 200 }] },
        { "transfer_leadership": [next + 1] },
        { "set_priority": [{ "id": asked + 1, "priority": 0 }] },
    ]);
    for (preconditions, word) in [
        (json!({ "leaders": [asked + 1] }), "expected leader id"),
        (json!({ "members": [1, 2, 3] }), "found in cluster, but precondition"),
        (json!({ "leader": [leader + 1] }), "cannot be read"),
    ] {
        let (status, message) = rcfg(&ensemble, asked, &json!({ "preconditions": preconditions, "actions": actions }));
        assert!(status == "error" && message.contains(word), "{status}: {message}");
    }
    assert_eq!((ensemble.leader(), config(&ensemble, asked)), (leader, all));

    let preconditions = json!({ "leaders": [leader + 1], "members": [1, 2, 3, 4] });
    let plan = json!({ "preconditions": preconditions, "actions": actions });
    assert_eq!(rcfg(&ensemble, asked, &plan), ("ok".to_owned(), "Reconfiguration successfully applied".to_owned()));
    let mut three: Vec<_> = [(asked, "participant;0"), (next, "participant;200"), (third, "participant;100")]
        .map(|(n, t)| (n, t.to_owned()))
        .into();
    three.sort();
    assert_eq!(config(&ensemble, asked), three, "as soon as it is answered");
    ensemble.until_removed(leader);
    assert_eq!(ensemble.leader(), next);

    // A priority is the cluster's: whoever starts again has it.
    ensemble.restart(asked);
    ensemble.kill(next);
    assert_eq!(ensemble.leader(), third, "node {} is not to lead", asked + 1);
    assert_eq!(config(&ensemble, asked), three);
}
