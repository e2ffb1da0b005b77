//! What is left when files are damaged or most of a cluster is gone for good: looked at from outside, and made to go on.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::cluster::ask_any;
use statehouse_tests::http::Request;
use statehouse_tests::load::Load;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::program;
use statehouse_tests::report;
use statehouse_tests::wait;

fn offline(verbs: &[&str], data_dir: &Path) -> Command {
    let mut command = program::command();
    command.args(verbs).arg("--data-dir").arg(data_dir);
    command
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Flips one bit of a byte.
fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

/// Damages all snapshots of a group on a node that is stopped.
fn flip_snapshots(data_dir: &Path, group: &str) {
    let shown = program::run(&mut offline(&["snapshot", "inspect", "-o", "json"], data_dir), b"").ok();
    for one in json_of(&shown).as_array().unwrap().iter().filter(|one| one["head"]["group"] == group) {
        flip(Path::new(one["file"].as_str().unwrap()), one["bytes"].as_u64().unwrap() - 100);
    }
}

/// Every file below a directory, with its bytes.
fn bytes_below(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(bytes_below(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

/// Two of three machines burn. The third has all that was acknowledged, becomes a cluster of its own, serves, and is joined by new
/// nodes; what is left of the old ones is refused.
#[test]
fn a_survivor_becomes_a_cluster_with_all_it_had_and_others_join_it() {
    let mut cluster = Cluster::start(3, &["--snapshot-entries", "200"]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.upload(1, "counter", modules::bundled("counter")).expect(201);
    // A group of which the survivor has no replica: who holds one fewer gets it.
    let placed = |cluster: &Cluster, name: &str, replicas: u64| {
        let body = json!({ "name": name, "module": "counter", "replicas": replicas }).to_string();
        cluster.node(1).client().post("/v1/groups", body).expect(201);
        wait::until("the group's members", || {
            let view = cluster.node(1).client().get(&format!("/v1/groups/{name}/members"));
            if view.status != 200 {
                return Err(view.to_string());
            }
            let members = view.json();
            Ok(members["members"].as_array().unwrap().iter().map(|one| one["id"].as_u64().unwrap()).collect::<Vec<_>>())
        })
    };
    let single = placed(&cluster, "single", 1);
    let survivor = (1..=3).find(|id| !single.contains(id)).unwrap();
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(500);
    let told = load.stop();
    cluster.assert_equal_state("kv");
    wait::until("the survivor's log begins behind a snapshot", || {
        let group = cluster.node(survivor).group("kv");
        if group["purged"].as_u64() > Some(0) { Ok(()) } else { Err(group) }
    });
    cluster.kill_all();

    let data_dir = cluster.node(survivor).data_dir.clone();
    let before = bytes_below(&data_dir);
    let log = json_of(&program::run(&mut offline(&["log", "inspect", "-o", "json"], &data_dir), b"").ok());
    assert_eq!(log["damage"], json!([]), "{log}");
    let kv = log["groups"].as_array().unwrap().iter().find(|group| group["group"] == "kv").unwrap().clone();
    assert!(kv["last"]["index"].as_u64() > Some(500) && kv["purged"]["index"].as_u64() > Some(0), "{kv}");
    program::run(&mut offline(&["recover"], &data_dir), b"").fails(2, &["--unsafe-force-new-cluster"]);
    let recover = ["recover", "--unsafe-force-new-cluster"];
    program::run(&mut offline(&recover, &data_dir), b"lose what is not here\n")
        .fails(2, &["--yes-lose-what-is-not-here"]);
    let dry = program::run(offline(&recover, &data_dir).args(["--dry-run", "-o", "json"]), b"");
    let old = ["must never be started again", "Group single (module counter) is lost", "acknowledged"];
    dry.fails(0, &old);
    let plan = json_of(&dry.out);
    assert_eq!((&plan["cluster"], &plan["lost"][0]["group"]), (&Value::Null, &json!("single")));
    let after = bytes_below(&data_dir);
    let but_lock = |files: Vec<(PathBuf, Vec<u8>)>| {
        files.into_iter().filter(|(path, _)| !path.ends_with("LOCK")).collect::<Vec<_>>()
    };
    assert!(but_lock(before) == but_lock(after), "who only asks changes nothing");

    let done = program::run(offline(&recover, &data_dir).args(["--yes-lose-what-is-not-here", "-o", "json"]), b"").ok();
    assert_ne!(json_of(&done)["cluster"], plan["old_cluster"]);
    // With the flags it always had.
    cluster.node_mut(survivor).start();
    cluster.node_mut(survivor).wait_ready();
    assert_exactly_once(&[cluster.node(survivor).http], "kv", &told);
    assert_eq!(cluster.voters(survivor, "kv"), [survivor]);
    assert_eq!(cluster.voters(survivor, "catalog"), [survivor]);
    let gone = cluster.node(survivor).client().get("/v1/groups/single");
    assert_eq!(gone.status, 404, "{gone}");

    // An old node that someone starts all the same.
    let stale = if survivor == 1 { 2 } else { 1 };
    cluster.node_mut(stale).start();
    wait::until("the old node is refused", || {
        let said = cluster.node(stale).said();
        if said.contains("belongs to cluster") { Ok(()) } else { Err(said) }
    });
    cluster.node_mut(stale).kill();

    // New ones join, and one under an id and an address that was used before.
    cluster.prepare_joining(1);
    let peers = [cluster.node(survivor).peer];
    cluster.node_mut(4).join_through(&peers);
    cluster.add(survivor, 4);
    cluster.node(stale).empty();
    cluster.node_mut(stale).join_through(&peers);
    cluster.add(4, stale);
    let mut voters = vec![survivor, stale, 4];
    voters.sort_unstable();
    assert_eq!(cluster.voters(4, "kv"), voters);
    let servers: Vec<_> = voters.iter().map(|id| cluster.node(*id).http).collect();
    assert_exactly_once(&servers, "kv", &told);
    // They count: it goes on without the survivor.
    cluster.node_mut(survivor).kill();
    let put = Request::new("POST", "/v1/groups/kv/apply").body(br#"{"Put":{"key":"later","value":"1"}}"#);
    ask_any(&[cluster.node(stale).http, cluster.node(4).http], &put).expect(200);
    cluster.assert_equal_state("kv");
}

/// Whoever types anything but the words changes nothing; whoever types them has meant it.
#[test]
fn a_recovery_is_confirmed_by_typing_what_is_lost() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.node(1).client().post("/v1/groups/counter/apply", r#"{"Add":5}"#).expect(200);
    cluster.node_mut(1).stop();
    let data_dir = cluster.node(1).data_dir.clone();
    let identity = || std::fs::read(data_dir.join("identity.json")).unwrap();
    let before = identity();
    let recover =
        format!("{} recover --unsafe-force-new-cluster --data-dir {}", program::path().display(), data_dir.display());
    // Util-linux's: what it is given is typed at a terminal, and all that is printed there comes out.
    let typed = |words: &str| {
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &recover, "/dev/null"]);
        program::run(&mut script, words.as_bytes())
    };
    if !Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success()) {
        report("SKIPPED: a_recovery_is_confirmed_by_typing_what_is_lost: there is no `script` of util-linux here");
        return;
    }
    for words in ["yes\n", "\n", "Lose what is not here!\n"] {
        let refused = typed(words);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.out.contains("it was not confirmed; nothing was changed"), "{refused:?}");
        assert!(identity() == before, "{words:?}");
    }
    let done = typed("lose what is not here\n").ok();
    assert!(done.contains("What may be lost") && done.contains("is a cluster of its own now"), "{done}");
    assert!(identity() != before);
    cluster.start_all();
    assert_eq!(cluster.node(1).client().post("/v1/groups/counter/query", "\"Get\"").expect(200).text(), "5");
}

/// The cluster that a recovery which was cut short had begun.
const BEGUN: &str = "00112233445566778899aabbccddeeff";

/// Three nodes that are down, with a counter at 5. The first one's recovery ended after its first write, with these marks.
fn cut_short(marks: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":5}").expect(200);
    cluster.assert_equal_state("counter");
    cluster.kill_all();
    let path = cluster.node(1).data_dir.join("identity.json");
    let mut identity = json_of(&std::fs::read_to_string(&path).unwrap());
    for mark in marks {
        identity[*mark] = json!(true);
    }
    identity["cluster"] = json!(BEGUN);
    std::fs::write(&path, identity.to_string()).unwrap();
    cluster
}

/// A recovery that was cut short after its first write: the node says so and does not start until it is finished.
#[test]
fn a_node_whose_recovery_was_cut_short_does_not_start_until_it_is_finished() {
    let mut cluster = cut_short(&["recovering", "joined"]);
    let refused = cluster.node_mut(1).start_refused();
    refused.fails(1, &["did not finish", "statehouse recover --unsafe-force-new-cluster"]);
    let data_dir = cluster.node(1).data_dir.clone();
    let mut recover = offline(&["recover", "--unsafe-force-new-cluster", "--yes-lose-what-is-not-here"], &data_dir);
    program::run(&mut recover, b"").fails(0, &["was cut short; this finishes it"]);
    cluster.node_mut(1).start();
    cluster.node_mut(1).wait_ready();
    let value = cluster.node(1).client().post("/v1/groups/counter/query", "\"Get\"").expect(200);
    assert_eq!(value.text(), "5");
}

/// The same where it was asked of the running node: it has been given up by whoever asked, and nobody waits to run a command. The node
/// finishes it by itself.
#[test]
fn a_node_that_was_cut_short_while_it_gave_up_the_others_finishes_that_at_its_next_start() {
    let mut cluster = cut_short(&["recovering", "resumes", "joined"]);
    cluster.node_mut(1).start();
    cluster.node_mut(1).wait_ready();
    let value = cluster.node(1).client().post("/v1/groups/counter/query", "\"Get\"").expect(200);
    assert_eq!(value.text(), "5");
    assert_eq!(cluster.voters(1, "counter"), [1]);
    let said = cluster.node(1).said();
    assert!(said.contains("was cut short; this finishes it") && said.contains("What may be lost"), "{said}");
    let path = cluster.node(1).data_dir.join("identity.json");
    let finished = json_of(&std::fs::read_to_string(path).unwrap());
    assert_eq!(finished["cluster"], BEGUN);
    assert!(finished.get("recovering").is_none() && finished.get("resumes").is_none(), "{finished}");
}

/// One bit flips in a segment of the log, and one in a snapshot: what looks at the files names file and place, tells the rest, and changes
/// nothing.
#[test]
fn one_flipped_bit_in_a_segment_and_in_a_snapshot_is_named_and_the_rest_is_told() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    for number in 0..20 {
        let put = json!({ "Put": { "key": format!("key-{number}"), "value": "v" } }).to_string();
        cluster.node(1).client().post("/v1/groups/kv/apply", put).expect(200);
    }
    cluster.node(1).client().post("/v1/groups/kv/snapshot", "").expect(200);
    let data_dir = cluster.node(1).data_dir.clone();
    // Also while the node runs.
    let running = program::run(&mut offline(&["log", "inspect"], &data_dir), b"");
    running.fails(0, &["uses this directory"]);
    assert!(running.out.contains("kv"), "{running:?}");
    cluster.node_mut(1).stop();

    let inspected = program::run(&mut offline(&["log", "inspect"], &data_dir), b"").ok();
    for word in ["closed in order", "0000000000000001.seg", "catalog", "kv", "whole"] {
        assert!(inspected.contains(word), "{word:?} is not in {inspected}");
    }
    let dump = |more: &[&str]| {
        let output = program::run(offline(&["log", "dump", "-o", "json"], &data_dir).args(more), b"");
        let lines: Vec<Value> = output.out.lines().map(json_of).collect();
        (output, lines)
    };
    let (whole, entries) = dump(&["--group", "kv"]);
    whole.ok();
    let puts: Vec<&Value> = entries.iter().filter(|entry| entry["kind"] == "command").collect();
    assert_eq!(puts.len(), 20);
    assert_eq!(puts[3]["data"]["Put"]["key"], "key-3");
    let index = puts[3]["index"].as_u64().unwrap().to_string();
    assert_eq!(dump(&["--group", "kv", "--from", &index, "--to", &index]).1.len(), 1);
    let table = program::run(&mut offline(&["log", "dump"], &data_dir), b"").ok();
    assert!(table.contains("create group kv of module kv") && table.contains("membership 1="), "{table}");

    let verified = program::run(&mut offline(&["snapshot", "verify"], &data_dir), b"").ok();
    assert!(verified.contains("kv") && !verified.contains("damaged"), "{verified}");
    let shown = json_of(&program::run(&mut offline(&["snapshot", "inspect", "-o", "json"], &data_dir), b"").ok());
    let of_kv = shown.as_array().unwrap().iter().find(|one| one["head"]["group"] == "kv").unwrap().clone();

    // In the payload of the fourth command, and in the last chunk of the state.
    let (file, offset) = (puts[3]["file"].as_str().unwrap(), puts[3]["offset"].as_u64().unwrap());
    let segment = data_dir.join("log").join(file);
    flip(&segment, offset + puts[3]["bytes"].as_u64().unwrap() - 2);
    let snapshot = PathBuf::from(of_kv["file"].as_str().unwrap());
    flip(&snapshot, of_kv["bytes"].as_u64().unwrap() - 100);
    let before = bytes_below(&data_dir);

    let damaged = program::run(&mut offline(&["log", "inspect"], &data_dir), b"");
    damaged.fails(6, &[file, "damaged at byte offset", "damaged in"]);
    assert!(damaged.out.contains("kv"), "{damaged:?}");
    let (some, rest) = dump(&["--group", "kv"]);
    some.fails(6, &["damaged at byte offset"]);
    assert_eq!(rest.iter().filter(|entry| entry["kind"] == "command").count(), 19, "one bit costs one entry");
    let damaged = program::run(&mut offline(&["snapshot", "verify"], &data_dir), b"");
    damaged.fails(6, &[snapshot.to_str().unwrap(), "is damaged at byte", "1 of"]);
    let shown = program::run(program::command().args(["snapshot", "inspect"]).arg(&snapshot), b"");
    shown.fails(6, &["is damaged at byte"]);
    assert!(shown.out.contains("members"), "{shown:?}");
    assert!(before == bytes_below(&data_dir), "who looks changes nothing");

    cluster.node_mut(1).start_refused().fails(1, &["is damaged at byte offset", file]);
    let mut recover = offline(&["recover", "--unsafe-force-new-cluster", "--yes-lose-what-is-not-here"], &data_dir);
    program::run(&mut recover, b"").fails(1, &["the log is damaged", file]);
    program::run(&mut offline(&["log", "inspect"], &data_dir.join("nothing")), b"").fails(1, &["is no data directory"]);
}

/// One bit flips in the log of one node of three, while clients write to the others: the node sets its log aside, gets everything
/// again, and counts as before; what was acknowledged is there, once.
#[test]
fn a_node_with_a_damaged_log_repairs_itself_from_its_peers() {
    let mut cluster = Cluster::start(3, &["--snapshot-entries", "300"]);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(200);
    let damaged = cluster.follower("kv");
    cluster.node_mut(damaged).kill();
    load.wait_for(100);
    let data_dir = cluster.node(damaged).data_dir.clone();
    flip_first_entry(&data_dir, "kv");

    // Told not to, it does not start.
    let mut told_not_to = cluster.node(damaged).command();
    told_not_to.arg("--repair-from-peers=false");
    program::run(&mut told_not_to, b"").fails(1, &["is damaged at byte offset", "try: ", "--repair-from-peers"]);
    assert!(data_dir.join("log").exists());

    cluster.node_mut(damaged).start();
    cluster.node_mut(damaged).wait_ready();
    wait::until("the repair is told", || {
        let said = cluster.node(damaged).said();
        if said.contains("repaired itself from its peers") { Ok(()) } else { Err(said) }
    });
    let set_aside =
        std::fs::read_dir(&data_dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let set_aside: Vec<String> = set_aside.filter(|name| name.starts_with("log.damaged-")).collect();
    assert_eq!(set_aside.len(), 1, "the damaged log is kept");
    assert!(!data_dir.join("repairing.json").exists() && !data_dir.join("unsettled").exists());
    load.wait_for(50);
    // It counts: without it there is no majority now.
    let other = (1..=3).find(|id| *id != damaged).unwrap();
    cluster.node_mut(other).kill();
    load.wait_for(50);
    cluster.start_all();
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

/// The log's files are gone and nothing else is: the node would have begun an empty log and voted at once, though it had helped to
/// acknowledge what was in the old one. It gets everything again like a node with a damaged log.
#[test]
fn a_node_whose_log_is_gone_does_not_begin_a_new_one_but_repairs_itself_from_its_peers() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(100);
    let lost = cluster.follower("kv");
    cluster.node_mut(lost).kill();
    let data_dir = cluster.node(lost).data_dir.clone();
    std::fs::remove_dir_all(data_dir.join("log")).unwrap();

    let mut told_not_to = cluster.node(lost).command();
    told_not_to.arg("--repair-from-peers=false");
    program::run(&mut told_not_to, b"").fails(1, &["holds no log, although this node has written one there"]);

    cluster.node_mut(lost).start();
    cluster.node_mut(lost).wait_ready();
    wait::until("the repair is told", || {
        let said = cluster.node(lost).said();
        if said.contains("repaired itself from its peers") { Ok(()) } else { Err(said) }
    });
    load.wait_for(50);
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

/// A node of its own whose log is gone began a new cluster of the same name in its directory, without a word, and its next group
/// found the snapshots of an old one there and took them for its own. One whose newest segment is gone served what the others held. Both were
/// told, if anything, to join again from nodes that there are not.
#[test]
fn a_node_of_its_own_whose_log_or_its_newest_file_is_gone_does_not_start() {
    let mut cluster = Cluster::start(1, &["--log-segment-bytes", "256KiB", "--command-bytes-max", "64KiB"]);
    cluster.deploy("kv", modules::bundled("kv"));
    for key in 0..12 {
        let put = json!({ "Put": { "key": format!("key-{key}"), "value": "x".repeat(50_000) } }).to_string();
        cluster.node(1).client().post("/v1/groups/kv/apply", put).expect(200);
    }
    cluster.node_mut(1).kill();
    let log = cluster.node(1).data_dir.join("log");
    let segments = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path());
    let newest = segments.filter(|path| path.extension().is_some_and(|end| end == "seg")).max().unwrap();
    let copy = log.with_file_name("copy");
    std::fs::rename(&newest, &copy).unwrap();
    let name = newest.to_str().unwrap();
    for _ in 0..2 {
        let refused = program::run(&mut cluster.node(1).command(), b"");
        refused.fails(1, &[name, "is missing, although", "the only one of its cluster", "try: put the files back"]);
    }
    program::run(&mut offline(&["log", "inspect"], &cluster.node(1).data_dir), b"").fails(6, &[name, "is missing"]);
    std::fs::rename(&copy, &newest).unwrap();
    cluster.node_mut(1).start();
    cluster.node_mut(1).wait_ready();
    let last = cluster.node(1).client().post("/v1/groups/kv/query", r#"{"Get":{"key":"key-11"}}"#).expect(200);
    assert!(last.text().len() > 50_000);
    cluster.node_mut(1).kill();

    let away = log.with_file_name("away");
    std::fs::rename(&log, &away).unwrap();
    for _ in 0..2 {
        program::run(&mut cluster.node(1).command(), b"")
            .fails(1, &["holds no log, although", "the only one of its cluster", "try: put the files back"]);
    }
    // Nor does it become a cluster of its own of its snapshots, as if there had been nothing behind them.
    let data_dir = cluster.node(1).data_dir.clone();
    program::run(&mut offline(&["log", "inspect"], &data_dir), b"").fails(6, &["holds no log, although"]);
    let mut recover = offline(&["recover", "--unsafe-force-new-cluster", "--yes-lose-what-is-not-here"], &data_dir);
    program::run(&mut recover, b"").fails(1, &["the log is damaged", "holds no log, although"]);
    assert!(!log.exists(), "who looks makes no directory");
    std::fs::rename(&away, &log).unwrap();
    cluster.node_mut(1).start();
    cluster.node_mut(1).wait_ready();
    assert_eq!(cluster.node(1).group("kv")["state"], "leader");
}

/// Log and identity are gone, and snapshots and modules are not: a new node began there, and its first group took the old one's state
/// for its own.
#[test]
fn a_directory_in_which_only_snapshots_are_left_is_no_new_one() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.node(1).client().post("/v1/groups/kv/snapshot", "").expect(200);
    cluster.node_mut(1).kill();
    let data_dir = cluster.node(1).data_dir.clone();
    let kept = ["log", "identity.json"].map(|name| (data_dir.join(name), data_dir.with_file_name(name)));
    kept.iter().for_each(|(from, to)| std::fs::rename(from, to).unwrap());
    for what in ["groups", "modules"] {
        let before = bytes_below(&data_dir.join(what));
        let refused = program::run(&mut cluster.node(1).command(), b"");
        refused.fails(1, &[&format!("has {what}/ but no identity.json"), "try: restore identity.json from a copy"]);
        assert!(before == bytes_below(&data_dir.join(what)), "who is refused changes nothing");
        std::fs::rename(data_dir.join(what), data_dir.with_file_name(what)).unwrap();
    }
    for what in ["groups", "modules"] {
        std::fs::rename(data_dir.with_file_name(what), data_dir.join(what)).unwrap();
    }
    kept.iter().for_each(|(from, to)| std::fs::rename(to, from).unwrap());
    cluster.node_mut(1).start();
    cluster.node_mut(1).wait_ready();
    assert_eq!(cluster.node(1).group("kv")["state"], "leader");
}

/// The same of a group's snapshots: the node serves what else it has, and says of this group what its operator can do.
#[test]
fn a_node_of_its_own_says_what_to_do_about_a_group_whose_snapshots_are_damaged() {
    let mut cluster = Cluster::start(1, &["--snapshot-entries", "100"]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.deploy("counter", modules::bundled("counter"));
    let load = Load::start(&cluster.addresses(), "kv", 4);
    wait::until("the node needs its snapshot", || {
        let view = cluster.node(1).group("kv");
        if view["purged"].as_u64() > Some(0) { Ok(()) } else { Err(view.to_string()) }
    });
    let _told = load.stop();
    cluster.node_mut(1).kill();
    let data_dir = cluster.node(1).data_dir.clone();
    let shown = program::run(&mut offline(&["snapshot", "inspect", "-o", "json"], &data_dir), b"").ok();
    for one in json_of(&shown).as_array().unwrap().iter().filter(|one| one["head"]["group"] == "kv") {
        flip(Path::new(one["file"].as_str().unwrap()), one["bytes"].as_u64().unwrap() - 100);
    }
    cluster.node_mut(1).start();
    wait::until("it says what can be done", || match cluster.node(1).said() {
        said if said.contains("the only one of its cluster") && said.contains("put the files back from a copy") => {
            Ok(())
        }
        said => Err(said),
    });
    let said = cluster.node(1).said();
    assert!(!said.contains("join again"), "{said}");
    wait::until("the other group is served", || {
        let answer = cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":1}");
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
}

/// While the others have no majority without it, what is damaged here may be nowhere else: the node refuses, says why, and leaves
/// everything as it is.
#[test]
fn a_node_with_a_damaged_log_is_not_repaired_while_the_others_have_no_majority() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    // Of several the first is damaged: the last batch of a log may be torn.
    for key in ["a", "b", "c", "d"] {
        let put = json!({ "Put": { "key": key, "value": "1" } }).to_string();
        cluster.node(1).client().post("/v1/groups/kv/apply", put).expect(200);
    }
    cluster.assert_equal_state("kv");
    cluster.kill_all();
    let data_dir = cluster.node(1).data_dir.clone();
    flip_first_entry(&data_dir, "kv");
    cluster.node_mut(2).start();
    let refused = cluster.node_mut(1).start_refused();
    refused.fails(1, &["is damaged at byte offset", "only while a majority of the other nodes"]);
    assert!(data_dir.join("log").exists() && !data_dir.join("repairing.json").exists());
    // When they have one, it is.
    cluster.node_mut(3).start();
    cluster.node_mut(2).wait_ready();
    cluster.node_mut(1).start();
    cluster.wait_ready();
    let got = cluster.node(1).client().post("/v1/groups/kv/query", r#"{"Get":{"key":"a"}}"#).expect(200);
    assert!(got.text().contains('1'), "{got}");
    cluster.assert_equal_state("kv");
}

/// Flips a bit in a group's first command that the log of a stopped node still has.
#[track_caller]
fn flip_first_entry(data_dir: &Path, group: &str) {
    let dump = program::run(&mut offline(&["log", "dump", "-o", "json", "--group", group], data_dir), b"").ok();
    let commands = dump.lines().map(json_of).filter(|entry| entry["kind"] == "command");
    let entry = commands.take(1).next().expect("a command in the log");
    let segment = data_dir.join("log").join(entry["file"].as_str().unwrap());
    flip(&segment, entry["offset"].as_u64().unwrap() + entry["bytes"].as_u64().unwrap() - 2);
}

/// All snapshots of a group are damaged on one node, and its log begins behind what they covered: the group comes again from its other
/// nodes, and what else runs there goes on.
#[test]
fn a_group_whose_snapshots_are_damaged_comes_again_from_its_peers() {
    let mut cluster = Cluster::start(3, &["--snapshot-entries", "200"]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":5}").expect(200);
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(800);
    let damaged = cluster.follower("kv");
    wait::until("the node needs its snapshot", || {
        let view = cluster.node(damaged).group("kv");
        if view["purged"].as_u64() > Some(0) { Ok(()) } else { Err(view.to_string()) }
    });
    cluster.node_mut(damaged).kill();
    let data_dir = cluster.node(damaged).data_dir.clone();
    flip_snapshots(&data_dir, "kv");
    load.wait_for(50);
    cluster.node_mut(damaged).start();
    cluster.node_mut(damaged).wait_ready();
    let said = cluster.node(damaged).said();
    assert!(said.contains("this replica is given up") && said.contains("repaired itself from its peers"), "{said}");
    let other = (1..=3).find(|id| *id != damaged).unwrap();
    cluster.node_mut(other).kill();
    load.wait_for(50);
    cluster.start_all();
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
    cluster.assert_equal_state("counter");
}

/// A node of its own cannot open a group whose snapshots are damaged, and tries it twice a second. Each time it wrote that the snapshot is
/// damaged into its log; and whoever asked for the group waited for as long as a request may take, and was told of a timeout.
#[test]
fn why_a_group_cannot_be_opened_is_said_once_in_the_log_and_at_once_to_whoever_asks() {
    // Who waits for as long as a request may take has no answer.
    let mut cluster = Cluster::start(1, &["--snapshot-entries", "100", "--request-timeout-ms", "600000"]);
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(400);
    wait::until("the log is purged", || {
        let view = cluster.node(1).group("kv");
        if view["purged"].as_u64() > Some(0) { Ok(()) } else { Err(view.to_string()) }
    });
    load.stop();
    cluster.node_mut(1).stop();
    flip_snapshots(&cluster.node(1).data_dir, "kv");
    cluster.node_mut(1).start();
    let why = "the log begins after index";
    wait::until("the node says that it is not ready", || {
        let answer = cluster.node(1).client().send(&Request::new("GET", "/readyz?verbose"));
        match answer {
            Ok(answer) if answer.text().contains(why) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let asked =
        [("apply", r#"{"Delete":{"key":"k"}}"#), ("query", r#""Status""#), ("query?consistency=local", r#""Status""#)];
    for (what, body) in asked {
        let path = format!("/v1/groups/kv/{what}");
        let answer = cluster.node(1).client().post(&path, body);
        answer.expect_problem(503, "unavailable", &["group kv", why]);
    }
    wait::until("it has tried it a number of times", || {
        let node = cluster.node(1).client().get("/v1/node").expect(200).json();
        if node["uptime_s"].as_u64() >= Some(4) { Ok(()) } else { Err(node.to_string()) }
    });
    let said = cluster.node(1).said();
    for line in ["this snapshot is not used", "the group cannot be opened here"] {
        let times = said.matches(line).count();
        assert!((1..=2).contains(&times), "{line}: {times} times in\n{said}");
    }
}
