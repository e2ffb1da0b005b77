//! A trap is an answer (rule 5), and a module cannot hurt the house (rule 4).

use std::time::Duration;
use std::time::Instant;

use statehouse_tests::cluster::Cluster;
use statehouse_tests::cluster::ask_any;
use statehouse_tests::http::Answer;
use statehouse_tests::http::Request;
use statehouse_tests::load::Session;
use statehouse_tests::modules;
use statehouse_tests::report;

fn apply(cluster: &Cluster, node: u64, group: &str, command: &[u8]) -> Answer {
    let path = format!("/v1/groups/{group}/apply");
    cluster.node(node).client().ask(&Request::new("POST", path).body(command).patience(Duration::from_secs(60)))
}

/// The accumulator is hand-written WAT, after docs/abi.md alone. It panics when its sum would overflow.
#[test]
fn a_panic_reaches_the_caller_and_changes_nothing_also_after_restarts() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("accumulator", &modules::accumulator());
    assert_eq!(apply(&cluster, 1, "accumulator", b"18446744073709551610").expect(200).text(), "18446744073709551610");
    let (before, _) = cluster.assert_equal_state("accumulator");
    let assert_sum = |cluster: &Cluster| {
        for node in &cluster.nodes {
            let sum = node.client().post("/v1/groups/accumulator/query", "").expect(200).text();
            assert_eq!(sum, "18446744073709551610", "a trapped command changed the state");
        }
    };

    let mut last = before;
    for node in 1..=3 {
        let trapped = apply(&cluster, node, "accumulator", b"6");
        trapped.expect_problem(422, "trapped", &["the sum would overflow"]);
        // It is an entry like any other: it has its place in the log.
        let index = trapped.index().expect("a trap is the outcome of an entry");
        assert!(index > last, "{index} after {last}");
        last = index;
    }
    assert_sum(&cluster);
    cluster.assert_equal_state("accumulator");

    // The poisoned entries are in the log; the restart applies them again, to the same end.
    for _ in 0..2 {
        cluster.kill_all();
        cluster.start_all();
        assert_sum(&cluster);
        cluster.assert_equal_state("accumulator");
    }
    assert_eq!(apply(&cluster, 2, "accumulator", b"5").expect(200).text(), "18446744073709551615");
    // In a session, the retry of a trapped command is told the same, and is not run again.
    let mut session = Session::open(&cluster.addresses(), "accumulator");
    let first = session.send(1, b"1");
    first.expect_problem(422, "trapped", &["the sum would overflow"]);
    let again = session.send(1, b"1");
    again.expect_problem(422, "trapped", &["the sum would overflow"]);
    assert_eq!(again.index(), first.index());
}

/// A bug in a Rust module: the kv store refuses what is no command with its own words, and goes on.
#[test]
fn a_rejection_is_no_trap() {
    let cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    apply(&cluster, 1, "kv", b"{\"Put\":{\"key\":\"\",\"value\":\"x\"}}").expect_problem(422, "rejected", &["key"]);
    apply(&cluster, 1, "kv", b"\xff\xfe").expect_problem(422, "rejected", &[]);
    apply(&cluster, 1, "kv", b"{\"Put\":{\"key\":\"a\",\"value\":\"x\"}}").expect(200);
}

/// One group's module loops until its fuel is gone, over and over. Its caller is told; the other group answers
/// all the while, and nobody loses the leadership: no heartbeat was late.
#[test]
fn a_module_that_burns_all_its_fuel_delays_no_one() {
    let mut cluster = Cluster::start(3, &["--heartbeat-ms", "100", "--election-timeout-ms", "2000"]);
    cluster.deploy("burner", &modules::burning_all_fuel());
    cluster.deploy("counter", modules::bundled("counter"));
    let standing = |cluster: &mut Cluster, group: &str| {
        let leader = cluster.leader(group);
        (leader, cluster.node(leader).group(group)["term"].as_u64().unwrap())
    };
    let before = [standing(&mut cluster, "burner"), standing(&mut cluster, "counter")];

    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut answered = 0;
    std::thread::scope(|scope| {
        let cluster = &cluster;
        let burners: Vec<_> = (1..=3)
            .map(|node| {
                scope.spawn(move || {
                    for _ in 0..4 {
                        let burned = apply(cluster, node, "burner", b"burn");
                        // Behind so many others it may also run out of time, with an honest word.
                        if burned.code() != "outcome_unknown" && burned.code() != "timeout" {
                            burned.expect_problem(422, "trapped", &["fuel"]);
                        }
                    }
                })
            })
            .collect();
        let mut turn = 0;
        while burners.iter().any(|burner| !burner.is_finished()) {
            turn += 1;
            let asked = Instant::now();
            apply(cluster, 1 + turn % 3, "counter", b"{\"Add\":1}").expect(200);
            slowest = slowest.max(asked.elapsed());
            answered += 1;
        }
    });
    report(format!(
        "{answered} commands of another group were answered in {:?} of burning, the slowest in {slowest:?}",
        started.elapsed()
    ));
    assert!(answered > 10, "the other group got {answered} answers in {:?}", started.elapsed());
    let after = [standing(&mut cluster, "burner"), standing(&mut cluster, "counter")];
    assert_eq!(after, before, "a leader was lost");
    // Queries of the same group come through once the last of its commands has burned out.
    ask_any(&cluster.addresses(), &Request::new("POST", "/v1/groups/burner/query")).expect(200);
    cluster.assert_equal_state("counter");
    cluster.assert_equal_state("burner");
}
