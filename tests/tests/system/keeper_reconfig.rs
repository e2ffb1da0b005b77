//! ZooKeeper's clients change the servers of a running ensemble by `reconfig`.

use statehouse_tests::http::Request;
use statehouse_tests::keeper::AUTH_XID;
use statehouse_tests::keeper::Connection;
use statehouse_tests::keeper::Ensemble;
use statehouse_tests::keeper::Hello;
use statehouse_tests::keeper::Reply;
use statehouse_tests::keeper::four_letters;
use statehouse_tests::keeper::frame;
use statehouse_tests::keeper::record;
use statehouse_tests::wait;
use znode_tree::jute::Reader;
use znode_tree::wire::op;

const CONFIG: &str = "/zookeeper/config";
const EPHEMERAL: i32 = 1;
/// The digest of `super:test`.
const FLAGS: [&str; 5] = [
    "--reconfig-enabled",
    "--super-digest",
    "super:D/InIHSb7yEEbrWz8b9l71RjZJU=",
    "--session-timeout-max-ms",
    "200000",
];
/// A client must not lose its session because three nodes share a busy machine.
const TIMEOUT_MS: i32 = 200_000;

fn reconfig(joining: Option<&str>, leaving: Option<&str>, version: i64) -> Vec<u8> {
    record(|out| {
        out.buffer(joining.map(str::as_bytes)).buffer(leaving.map(str::as_bytes)).buffer(None).i64(version);
    })
}

fn server(number: usize) -> String {
    format!("server.{0}=127.0.0.1:2888:3888;127.0.0.1:2181", number + 1)
}

/// The lines of a configuration without its version, and that.
fn config(reply: &Reply) -> (Vec<String>, i64) {
    assert_eq!(reply.error, 0, "{reply:?}");
    let data = Reader::new(&reply.body).buffer().unwrap().unwrap_or_default();
    let mut lines: Vec<String> = String::from_utf8_lossy(data).lines().map(str::to_owned).collect();
    let version = lines.pop().unwrap_or_default();
    (lines, i64::from_str_radix(version.strip_prefix("version=").unwrap(), 16).unwrap())
}

/// The numbers of the participants, from 0.
fn participants(reply: &Reply) -> Vec<usize> {
    let number = |line: &String| line.strip_prefix("server.")?.split_once('=')?.0.parse::<usize>().ok();
    let votes = |line: &&String| line.ends_with(":participant");
    config(reply).0.iter().filter(votes).filter_map(number).map(|id| id - 1).collect()
}

fn read_config(client: &mut Connection, watch: bool) -> Reply {
    client.ask(op::SYNC, &record(|out| _ = out.text("/"))).unwrap();
    client.ask(op::GET_DATA, &record(|out| _ = out.text(CONFIG).bool(watch))).unwrap()
}

/// Waits for a change of the configuration that is watched.
fn hear(watcher: &mut Connection) {
    while watcher.reply().unwrap().event() != (3, CONFIG.to_owned()) {}
}

/// Three servers; a fourth joins, and in the same breath the one that leads goes. Sessions, their ephemeral nodes and those who
/// watch the configuration go through all of it. Then the same by an operator's word, which clients hear of as well.
#[test]
fn a_client_adds_a_server_and_removes_the_leader() {
    let mut ensemble = Ensemble::start(3, &FLAGS);
    let fourth = ensemble.join();
    let leader = ensemble.leader();
    let stays: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
    let (mut keeps, welcome) = Connection::until_open(ensemble.client(stays[0]), &Hello::new(TIMEOUT_MS));
    assert_eq!(keeps.create("/alive", b"", EPHEMERAL).unwrap().error, 0);
    let before = wait::until("a configuration of three", || {
        let reply = read_config(&mut keeps, false);
        let is_whole = reply.body.len() > 80 && participants(&reply) == [0, 1, 2];
        if is_whole { Ok(reply) } else { Err(format!("{reply:?}")) }
    });
    let (_, version) = config(&before);
    let (mut watcher, _) = Connection::until_open(ensemble.client(stays[1]), &Hello::new(TIMEOUT_MS));
    read_config(&mut watcher, true);

    let (mut client, _) = Connection::until_open(ensemble.client(stays[1]), &Hello::new(TIMEOUT_MS));
    let change = (server(fourth), (leader + 1).to_string());
    let both = |version| reconfig(Some(&change.0), Some(&change.1), version);
    assert_eq!(client.ask(op::RECONFIG, &both(-1)).unwrap().error, -102, "it has proved nothing");
    let proof = frame(|out| _ = out.i32(AUTH_XID).i32(op::AUTH).i32(0).text("digest").text("super:test"));
    client.send(&proof).unwrap();
    assert_eq!(client.reply().unwrap().error, 0);
    assert_eq!(client.ask(op::RECONFIG, &both(version + 1)).unwrap().error, -103);
    assert_eq!(client.ask(op::RECONFIG, &reconfig(Some("server.4=nowhere"), None, -1)).unwrap().error, -8);
    let stranger = reconfig(Some(&server(8)), None, -1);
    assert_eq!(client.ask(op::RECONFIG, &stranger).unwrap().error, -13, "node 9 has not joined");
    assert_eq!(config(&read_config(&mut client, false)).1, version, "all that changed nothing");

    let reply = client.ask(op::RECONFIG, &both(version)).unwrap();
    let now: Vec<usize> = stays.iter().copied().chain([fourth]).collect();
    assert_eq!(participants(&reply), now);
    assert!(config(&reply).1 > version);
    hear(&mut watcher);
    ensemble.until_removed(leader);
    ensemble.until_serving(fourth);
    assert!(now.contains(&ensemble.leader()));
    assert_eq!(participants(&read_config(&mut keeps, false)), now);
    let (mut at_fourth, _) = Connection::until_open(ensemble.client(fourth), &Hello::new(TIMEOUT_MS));
    let alive = at_fourth.stat("/alive").unwrap().unwrap();
    assert_eq!(alive.ephemeral_owner, welcome.session);
    assert_eq!(keeps.stat("/alive").unwrap(), Ok(alive), "of the connection that it always had");

    // An operator's word.
    read_config(&mut watcher, true);
    let rest: Vec<usize> = now.into_iter().filter(|number| *number != stays[0]).collect();
    let path = format!("/v1/nodes/{}", stays[0] + 1);
    ensemble.http(fourth).send(&Request::new("DELETE", &path)).unwrap().expect(202);
    hear(&mut watcher);
    ensemble.until_removed(stays[0]);
    wait::until("a configuration of two", || {
        let said = participants(&read_config(&mut watcher, false));
        if said == rest { Ok(()) } else { Err(format!("{said:?}")) }
    });
    // A new configuration needs a majority that is there.
    let (mut again, same) = Connection::until_open(ensemble.client(fourth), &Hello::again(&welcome));
    assert_eq!(same.session, welcome.session);
    assert_eq!(again.stat("/alive").unwrap(), Ok(alive));
}

/// It had to leave, and to come back with an empty directory. The one that leads becomes an observer, with its clients; then it votes again,
/// and one of the other two is not needed.
#[test]
fn a_participant_becomes_an_observer_and_votes_again() {
    let mut ensemble = Ensemble::start(3, &FLAGS);
    let changes = ensemble.leader();
    let others: Vec<usize> = (0..3).filter(|number| *number != changes).collect();
    let (mut keeps, welcome) = Connection::until_open(ensemble.client(changes), &Hello::new(TIMEOUT_MS));
    assert_eq!(keeps.create("/alive", b"", EPHEMERAL).unwrap().error, 0);
    let (mut client, _) = Connection::until_open(ensemble.client(others[0]), &Hello::new(TIMEOUT_MS));
    let proof = frame(|out| _ = out.i32(AUTH_XID).i32(op::AUTH).i32(0).text("digest").text("super:test"));
    client.send(&proof).unwrap();
    assert_eq!(client.reply().unwrap().error, 0);
    let role = |role: &str| format!("server.{0}=127.0.0.1:2888:3888:{role};127.0.0.1:2181", changes + 1);

    let reply = client.ask(op::RECONFIG, &reconfig(Some(&role("observer")), None, -1)).unwrap();
    assert_eq!(participants(&reply), others);
    let line = config(&reply).0.into_iter().find(|line| line.starts_with(&format!("server.{}=", changes + 1)));
    assert!(line.as_ref().is_some_and(|line| line.ends_with(":observer")), "{line:?}");
    assert!(others.contains(&ensemble.leader()));
    wait::until("it says that it observes", || {
        let said = four_letters(ensemble.client(changes), "srvr").unwrap();
        if said.contains("Mode: observer\n") { Ok(()) } else { Err(said) }
    });
    assert_eq!(keeps.create("/through-the-observer", b"", 0).unwrap().error, 0, "of the session that it always had");
    let only =
        ensemble.http(others[0]).send(&Request::new("GET", "/v1/groups/catalog/members")).unwrap().expect(200).json();
    assert_eq!(only["members"][changes]["role"], "learner", "{only}");
    ensemble.restart(changes);
    assert_eq!(participants(&read_config(&mut client, false)), others, "it is none after a restart, too");

    let reply = client.ask(op::RECONFIG, &reconfig(Some(&role("participant")), None, -1)).unwrap();
    assert_eq!(participants(&reply), [0, 1, 2]);
    ensemble.kill(others[1]);
    let (mut again, same) = Connection::until_open(ensemble.client(changes), &Hello::again(&welcome));
    assert_eq!(same.session, welcome.session);
    wait::until("two of three are enough", || match again.create("/with-its-vote", b"", 0) {
        Ok(reply) if [0, -110].contains(&reply.error) => Ok(()),
        other => {
            (again, _) = Connection::until_open(ensemble.client(changes), &Hello::again(&welcome));
            Err(format!("{other:?}"))
        }
    });
}
