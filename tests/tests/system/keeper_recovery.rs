//! ClickHouse Keeper's `rcvr`: a server whose others are lost for good is told so on its client port, and goes on alone.

use serde_json::json;
use statehouse_tests::http::Request;
use statehouse_tests::keeper::Connection;
use statehouse_tests::keeper::Ensemble;
use statehouse_tests::keeper::Hello;
use statehouse_tests::keeper::Reply;
use statehouse_tests::keeper::four_letters;
use statehouse_tests::keeper::record;
use statehouse_tests::wait;
use znode_tree::jute::Reader;
use znode_tree::wire::op;

const EPHEMERAL: i32 = 1;
/// A client must not lose its session because four nodes share a busy machine.
const TIMEOUT_MS: i32 = 200_000;
const FLAGS: [&str; 4] = ["--session-timeout-max-ms", "200000", "--four-letter-words", "*,rcvr"];
const NOT_SERVING: &str = "not currently serving requests";

fn word(ensemble: &Ensemble, number: usize, word: &str) -> String {
    four_letters(ensemble.client(number), word).unwrap()
}

fn data(reply: &Reply) -> &[u8] {
    assert_eq!(reply.error, 0, "{reply:?}");
    Reader::new(&reply.body).buffer().unwrap().unwrap_or_default()
}

fn get(client: &mut Connection, path: &str) -> Reply {
    client.ask(op::GET_DATA, &record(|out| _ = out.text(path).bool(false))).unwrap()
}

#[track_caller]
fn until_it_serves_nobody(ensemble: &Ensemble, number: usize) {
    wait::until("the node knows that it has no leader", || match four_letters(ensemble.client(number), "mntr") {
        Ok(said) if said.contains(NOT_SERVING) => Ok(()),
        other => Err(other),
    });
}

/// Each group learns for itself that it has no leader: until the last has, the node says which one still has.
#[track_caller]
fn give_up_the_others(ensemble: &Ensemble, number: usize) {
    until_it_serves_nobody(ensemble, number);
    wait::until("the node gives up the others", || {
        let said = word(ensemble, number, "rcvr");
        if said == "ok" { Ok(()) } else { Err(said) }
    });
}

/// Two of three machines burn. The third is told so by its operator, and has all that was acknowledged to it: data, sessions, their
/// ephemeral nodes. It serves at once, and takes new ones in; an old one that turns up again is a stranger to it.
#[test]
fn a_server_that_is_told_that_the_others_are_lost_serves_alone_with_all_it_had() {
    let mut ensemble = Ensemble::start(3, &FLAGS);
    let (mut client, welcome) = Connection::until_open(ensemble.client(0), &Hello::new(TIMEOUT_MS));
    assert_eq!(client.create("/kept", b"before", 0).unwrap().error, 0);
    assert_eq!(client.create("/mine", b"", EPHEMERAL).unwrap().error, 0);

    // With a majority there is nothing to recover from, whoever is asked.
    for number in 0..3 {
        let refused = word(&ensemble, number, "rcvr");
        assert!(refused.contains("is led by node") && refused.contains("Nothing was changed"), "{refused}");
    }
    ensemble.kill(1);
    let refused = word(&ensemble, 0, "rcvr");
    assert!(
        refused.contains("is led by node") || refused.contains("a majority, which will have a leader"),
        "{refused}"
    );
    assert_eq!(ensemble.voters(0, "keeper"), [0, 1, 2]);
    ensemble.kill(2);
    give_up_the_others(&ensemble, 0);
    ensemble.until_serving(0);
    let (mut client, again) = Connection::until_open(ensemble.client(0), &Hello::again(&welcome));
    assert_eq!((again.session, &again.password), (welcome.session, &welcome.password));
    assert_eq!(data(&get(&mut client, "/kept")), b"before");
    let mine = client.stat("/mine").unwrap().unwrap();
    assert_eq!(mine.ephemeral_owner, welcome.session);
    assert_eq!(client.create("/later", b"after", 0).unwrap().error, 0);
    assert_eq!((ensemble.voters(0, "keeper"), ensemble.voters(0, "catalog")), (vec![0], vec![0]));
    let said = ensemble.said(0);
    assert!(said.contains("What may be lost") && said.contains("must never be started again"), "{said}");
    // It is a cluster of its own, and as well as one can be.
    let refused = word(&ensemble, 0, "rcvr");
    assert!(refused.contains("Group catalog is led by node 1"), "{refused}");

    // With its old flags, which name three.
    ensemble.restart(0);
    let (mut client, _) = Connection::until_open(ensemble.client(0), &Hello::again(&welcome));
    assert_eq!(data(&get(&mut client, "/later")), b"after");

    ensemble.start_again(1);
    wait::until("the old node is refused", || {
        let said = ensemble.said(1);
        if said.contains("belongs to cluster") { Ok(()) } else { Err(said) }
    });
    until_it_serves_nobody(&ensemble, 1);
    assert_eq!(client.create("/undisturbed", b"", 0).unwrap().error, 0);
    assert_eq!((ensemble.voters(0, "keeper"), ensemble.voters(0, "catalog")), (vec![0], vec![0]));
    ensemble.kill(1);

    let joined = ensemble.join();
    ensemble.add(0, joined);
    ensemble.until_serving(joined);
    assert_eq!(ensemble.voters(joined, "keeper"), [0, joined]);
    let (mut other, _) = Connection::until_open(ensemble.client(joined), &Hello::new(TIMEOUT_MS));
    assert_eq!(other.stat("/mine").unwrap().unwrap().ephemeral_owner, welcome.session);
    assert_eq!(data(&get(&mut other, "/later")), b"after");
}

/// A server that once joined another has that one in its flags. When it has given it up, and that one is there all the same, it is not
/// held up by it at its next start.
#[test]
fn a_server_that_gave_up_the_one_it_joined_through_starts_although_that_one_refuses_it() {
    let mut flags = FLAGS.to_vec();
    flags.extend(["--compatibility", "clickhouse"]);
    let mut ensemble = Ensemble::start(1, &flags);
    let joined = ensemble.join();
    ensemble.add(0, joined);
    ensemble.until_serving(joined);
    let (mut client, welcome) = Connection::until_open(ensemble.client(joined), &Hello::new(TIMEOUT_MS));
    assert_eq!(client.create("/kept", b"before", 0).unwrap().error, 0);
    ensemble.kill(0);
    give_up_the_others(&ensemble, joined);
    ensemble.until_serving(joined);

    ensemble.start_again(0);
    until_it_serves_nobody(&ensemble, 0);
    ensemble.restart(joined);
    assert!(ensemble.said(joined).contains("is not of this cluster, which began by a recovery"));
    let (mut client, _) = Connection::until_open(ensemble.client(joined), &Hello::again(&welcome));
    assert_eq!(data(&get(&mut client, "/kept")), b"before");
}

/// Whoever reaches the port may say it, so it is let in by its name alone, and by who starts the node, not by who makes a group; and of a
/// server that is the only one there is nobody to be given up.
#[test]
fn the_word_that_gives_up_the_others_is_not_let_in_by_a_star_and_refused_where_there_are_none() {
    let ensemble = Ensemble::start(1, &[]);
    assert_eq!(word(&ensemble, 0, "rcvr"), "rcvr is not executed because it is not in the whitelist.\n");
    let ensemble = Ensemble::start(1, &FLAGS);
    let refused = word(&ensemble, 0, "rcvr");
    assert!(refused.contains("Group catalog is led by node 1"), "{refused}");
    assert!(word(&ensemble, 0, "srvr").contains("Mode: standalone"));

    let by_hand = ensemble.client(1);
    let settings = json!({ "four_letter_words": "rcvr" });
    let group = json!({ "name": "by-hand", "module": "znode-tree", "listen": [by_hand], "listen_params": settings });
    let group = group.to_string();
    let create = Request::new("POST", "/v1/groups").body(group.as_bytes());
    ensemble.http(0).send(&create).unwrap().expect(201);
    let refused = wait::until("the group made by hand answers", || four_letters(by_hand, "rcvr"));
    assert!(refused.contains("was not started to be recovered by clients of group by-hand"), "{refused}");
}
