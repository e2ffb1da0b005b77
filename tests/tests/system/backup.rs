//! State that is carried out of a cluster and into another one: whole, or not at all.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::cluster::ask_any;
use statehouse_tests::disk::SmallDisk;
use statehouse_tests::http::Request;
use statehouse_tests::load::Load;
use statehouse_tests::load::Session;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::program;
use statehouse_tests::program::Output;
use statehouse_tests::report;
use statehouse_tests::s3;
use statehouse_tests::s3::S3;
use statehouse_tests::wait;

/// Runs the command line against a node.
#[track_caller]
fn run(cluster: &Cluster, node: u64, args: &[&str]) -> Output {
    let mut command = program::command();
    command.args(args).args(["--server", &format!("http://{}", cluster.node(node).http)]);
    program::run(&mut command, b"")
}

#[track_caller]
fn save(cluster: &Cluster, node: u64, group: &str, file: &Path) -> Value {
    let told = run(cluster, node, &["snapshot", "save", group, file.to_str().unwrap(), "-o", "json"]).ok();
    serde_json::from_str(&told).unwrap()
}

#[track_caller]
fn restore(cluster: &Cluster, node: u64, group: &str, file: &Path, more: &[&str]) -> Value {
    let args = [&["group", "restore", group, file.to_str().unwrap(), "-o", "json"], more].concat();
    serde_json::from_str(&run(cluster, node, &args).ok()).unwrap()
}

fn put(cluster: &Cluster, group: &str, key: &str, value: &str) {
    let command = json!({ "Put": { "key": key, "value": value } }).to_string();
    let request = Request::new("POST", format!("/v1/groups/{group}/apply")).body(command.as_bytes()).clone();
    let answer = ask_any(&cluster.addresses(), &request);
    assert_eq!(answer.status, 200, "{answer}");
}

/// Waits until a node has nothing of a file that a group was to begin from.
fn assert_no_leftovers(cluster: &Cluster) {
    for node in &cluster.nodes {
        wait::until(&format!("node {} has no file left over", node.id), || {
            let names: Vec<_> =
                std::fs::read_dir(node.data_dir.join("bases")).unwrap().map(|name| name.unwrap().file_name()).collect();
            if names.is_empty() { Ok(()) } else { Err(format!("{names:?}")) }
        });
    }
}

/// Three nodes serve writers while a follower saves their group. The file holds exactly what was acknowledged up to its index,
/// in the same cluster, on a single node, and there again after `kill -9`.
#[test]
fn a_group_saved_under_load_is_restored_as_it_was_at_one_index() {
    let mut cluster = Cluster::start(3, &["--snapshot-entries", "150"]);
    cluster.deploy("kv", modules::bundled("kv"));
    let follower = cluster.follower("kv");
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(200);
    let file = cluster.folder().join("kv.snap");
    let sure = load.count();
    let saved = save(&cluster, follower, "kv", &file);
    load.wait_for(100);
    let told = load.stop();
    let index = saved["index"].as_u64().unwrap();
    assert_eq!(saved["size"], std::fs::metadata(&file).unwrap().len());
    let before = |(_, _, at): &&(String, u64, u64)| *at <= index;
    let inside: BTreeSet<&str> =
        told.iter().flat_map(|client| &client.puts).filter(before).map(|(key, _, _)| key.as_str()).collect();
    assert!(inside.len() >= sure, "{sure} were acknowledged before, and {} are in the file", inside.len());

    let mut small = Cluster::start(1, &[]);
    small.upload(1, "store", modules::bundled("kv")).expect(201);
    let here = restore(&cluster, follower, "copy", &file, &[]);
    let there = restore(&small, 1, "copy", &file, &[]);
    assert_eq!((&here["module"], &there["module"]), (&json!("kv"), &json!("store")), "found by its digest");
    for cluster in [&mut cluster, &mut small] {
        cluster.leader("copy");
        let query = |body: Value| {
            let body = body.to_string();
            let request = Request::new("POST", "/v1/groups/copy/query").body(body.as_bytes()).clone();
            ask_any(&cluster.addresses(), &request).expect(200).json()
        };
        assert_eq!(query(json!("Status"))["keys"], inside.len());
        let page = query(json!({ "Range": { "start": null, "limit": 10_000, "keys_only": true } }));
        let held: BTreeSet<&str> =
            page["items"].as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap()).collect();
        assert_eq!(held, inside);
        assert_no_leftovers(cluster);
    }
    let (_, here) = cluster.assert_equal_state("copy");
    assert_eq!(here, small.assert_equal_state("copy").1, "the same state in both clusters");
    // The original went on undisturbed.
    assert_exactly_once(&cluster.addresses(), "kv", &told);

    // The copies are groups like any other: they take commands, and keep them.
    for cluster in [&mut cluster, &mut small] {
        put(cluster, "copy", "after", "x");
        cluster.kill_all();
        cluster.start_all();
        put(cluster, "copy", "later", "x");
    }
    let view = cluster.node(1).group("copy");
    assert!(view["applied"].as_u64().unwrap() > index, "{view}");
    assert_eq!(cluster.assert_equal_state("copy").1.len(), 64);
    assert_eq!(cluster.voters(1, "copy"), [1, 2, 3]);
}

/// From one node to three: the state is the same, sessions and their kept replies are there, and a node without a replica
/// saves and restores as well as any other. A member that comes later, or lost its disk, learns everything.
#[test]
fn a_group_moves_from_one_node_to_three_with_its_sessions() {
    let small = Cluster::start(1, &[]);
    small.deploy("kv", modules::bundled("kv"));
    let mut session = Session::open(&small.addresses(), "kv");
    let first = session.apply(br#"{"Put":{"key":"a","value":"1"}}"#).expect(200);
    let (_, original) = small.assert_equal_state("kv");
    let file = small.folder().join("kv.snap");
    save(&small, 1, "kv", &file);

    let mut cluster = Cluster::start(3, &["--snapshot-entries", "100"]);
    cluster.upload(2, "kv", modules::bundled("kv")).expect(201);
    restore(&cluster, 2, "kv", &file, &[]);
    let (index, here) = cluster.assert_equal_state("kv");
    assert_eq!(here, original);
    assert!(index > first.index().unwrap(), "indexes go on where they were");
    let again = Request::new("POST", "/v1/groups/kv/apply")
        .header("statehouse-session", &session.token)
        .header("statehouse-sequence", 1)
        .body(br#"{"Put":{"key":"a","value":"1"}}"#);
    let again = ask_any(&cluster.addresses(), &again);
    assert_eq!((again.index(), &again.body), (first.index(), &first.body), "answered, not applied again");

    // On one node of the three, asked of the others.
    let one = restore(&cluster, 3, "one", &file, &["--replicas", "1"]);
    let hosts = cluster.voters(1, "one");
    assert_eq!((hosts.len(), &one["replicas"]), (1, &json!(1)));
    let elsewhere = (1..=3).find(|id| !hosts.contains(id)).unwrap();
    let second = cluster.folder().join("one.snap");
    let saved = save(&cluster, elsewhere, "one", &second);
    assert!(saved["index"].as_u64().unwrap() >= index - 1, "{saved}");
    run(&cluster, elsewhere, &["group", "restore", "two", second.to_str().unwrap(), "--replicas", "2"]).ok();
    assert_eq!(cluster.voters(2, "two").len(), 2);
    assert_no_leftovers(&cluster);

    // A disk is lost, a node comes. (What had no majority without that disk would be lost with it.)
    for group in ["one", "two"] {
        run(&cluster, 1, &["group", "rm", group]).ok();
    }
    put(&cluster, "kv", "b", "2");
    let lost = cluster.follower("kv");
    cluster.node_mut(lost).kill();
    cluster.node(lost).empty();
    put(&cluster, "kv", "c", "3");
    cluster.start_all();
    cluster.prepare_joining(1);
    cluster.add(1, 4);
    cluster.assert_equal_state("kv");
    assert_eq!(cluster.voters(4, "kv"), [1, 2, 3, 4]);
}

/// What is not the file that was saved makes nothing; nor does a file whose module is not there, a name that is taken.
#[test]
fn a_file_with_one_flipped_bit_makes_nothing() {
    let cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    put(&cluster, "kv", "a", "1");
    let file = cluster.folder().join("kv.snap");
    save(&cluster, 1, "kv", &file);
    let bytes = std::fs::read(&file).unwrap();
    let damaged = cluster.folder().join("damaged.snap");
    for place in [0, 9, 14, 30, bytes.len() / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[place] ^= 4;
        std::fs::write(&damaged, &changed).unwrap();
        let refused = run(&cluster, 1, &["group", "restore", "copy", damaged.to_str().unwrap()]);
        refused.fails(1, &["damaged.snap is no whole snapshot", "file_damaged", "nothing was made"]);
        // Whoever does not look before sending is told the same.
        let sent = cluster.node(2).client().post("/v1/groups/copy/restore", &changed);
        sent.expect_problem(422, "file_damaged", &["at byte"]);
    }
    let cut = cluster.node(2).client().post("/v1/groups/copy/restore", &bytes[..bytes.len() - 40]);
    cut.expect_problem(422, "file_damaged", &[]);
    // A client that dies in the middle of it.
    let mut half = std::net::TcpStream::connect(cluster.node(2).http).unwrap();
    let head = format!("POST /v1/groups/copy/restore HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", bytes.len());
    half.write_all(head.as_bytes()).unwrap();
    half.write_all(&bytes[..bytes.len() / 2]).unwrap();
    drop(half);

    let taken = run(&cluster, 1, &["group", "restore", "kv", file.to_str().unwrap()]);
    taken.fails(1, &["group kv exists", "already_exists"]);
    let many = run(&cluster, 1, &["group", "restore", "copy", file.to_str().unwrap(), "--replicas", "4"]);
    many.fails(1, &["`replicas` is 4; the cluster has 3 full nodes"]);
    let empty = Cluster::start(1, &[]);
    let missing = run(&empty, 1, &["group", "restore", "kv", file.to_str().unwrap()]);
    missing.fails(1, &["the module kv with the digest", "module push FILE.wasm --name kv", "module_not_found"]);
    let sent = empty.node(1).client().post("/v1/groups/kv/restore", &bytes);
    sent.expect_problem(404, "module_not_found", &["\"kv\" with the digest"]);
    empty.upload(1, "other", modules::bundled("counter")).expect(201);
    let other = run(&empty, 1, &["group", "restore", "kv", file.to_str().unwrap(), "--module", "other"]);
    other.fails(1, &["the file was written by a module with the digest", "module other has"]);

    for cluster in [&cluster, &empty] {
        assert_no_leftovers(cluster);
        let groups = cluster.node(1).client().get("/v1/groups").expect(200).json();
        assert!(groups["groups"].as_array().unwrap().iter().all(|group| group["name"] == "kv"), "{groups}");
    }
}

/// A destination that cannot take the file gets none, and says why; what was there stays.
#[test]
fn a_full_or_read_only_destination_gets_no_file() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    for number in 0..40 {
        put(&cluster, "kv", &format!("ballast-{number}"), &"v".repeat(100_000));
    }
    cluster.leader("kv");
    let gone = cluster.folder().join("no/such/folder/kv.snap");
    run(&cluster, 1, &["snapshot", "save", "kv", gone.to_str().unwrap()])
        .fails(1, &["cannot write", "make the directory first"]);
    let nobody = run(&cluster, 1, &["snapshot", "save", "none", "none.snap"]);
    nobody.fails(1, &["no group \"none\"", "group_not_found"]);
    assert!(!Path::new("none.snap").exists());
    let Some(disk) = SmallDisk::mount(2) else { return };
    let target = disk.path().join("kv.snap");
    let save = || run(&cluster, 1, &["snapshot", "save", "kv", target.to_str().unwrap()]);
    save().fails(1, &["cannot write", "No space left", "free space there"]);
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0, "half a file was left");
    disk.remount("size=100m");
    save().ok();
    save().fails(1, &["is there already", "--overwrite"]);
    disk.remount("ro");
    let refused = run(&cluster, 1, &["snapshot", "save", "kv", target.to_str().unwrap(), "--overwrite"]);
    refused.fails(1, &["Read-only file system", "name a place that can be written to"]);
    restore(&cluster, 1, "copy", &target, &[]);
}

/// The node that restores is killed, early and late, at some fifteen moments. Whatever group is there afterwards is whole, and
/// what a client was told is true.
#[test]
fn a_restore_that_is_killed_leaves_a_whole_group_or_none() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    for number in 0..30 {
        put(&cluster, "kv", &format!("ballast-{number}"), &"v".repeat(100_000));
    }
    let file = cluster.folder().join("kv.snap");
    save(&cluster, 1, "kv", &file);
    let (_, original) = cluster.assert_equal_state("kv");
    let (mut whole, mut none) = (0, 0);
    for round in 0..15u64 {
        let name = format!("copy-{round}");
        let mut command = program::command();
        command.args(["group", "restore", &name, file.to_str().unwrap()]);
        command.args(["--server", &format!("http://{}", cluster.node(2).http)]);
        let mut child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // The moments are spread over what a restore takes here; which of them hits what does not matter.
        let told = program::wait(&mut child, Duration::from_millis(40 * round));
        cluster.node_mut(2).kill();
        if round % 3 == 2 {
            cluster.node_mut(3).kill();
        }
        let told = told.or_else(|| program::wait(&mut child, wait::PATIENCE)).expect("the command ends");
        cluster.start_all();
        let groups = cluster.node(1).client().get("/v1/groups").expect(200).json();
        let there = groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == name);
        assert!(there || !told.success(), "success was told, and there is no group");
        if there {
            cluster.leader(&name);
            assert_eq!(cluster.assert_equal_state(&name).1, original, "round {round}");
            whole += 1;
        } else {
            none += 1;
        }
    }
    report(format!("{whole} restores came through, {none} left nothing"));
    // After all this the same still works.
    restore(&cluster, 2, "last", &file, &[]);
    assert_eq!(cluster.assert_equal_state("last").1, original);
}

/// A member that was away when its group was restored did not vote before it was sent the state. When one of the two that had it was
/// away too, nobody led who could have sent it, although the state was there and two of three were.
#[test]
fn a_member_that_never_had_the_file_votes_for_one_that_has_it() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    put(&cluster, "kv", "a", "1");
    let file = cluster.folder().join("kv.snap");
    save(&cluster, 1, "kv", &file);
    cluster.node_mut(3).kill();
    restore(&cluster, 1, "copy", &file, &[]);
    put(&cluster, "copy", "b", "2");
    cluster.kill_all();
    // Either has all that was acknowledged: there was no third.
    cluster.node_mut(2).start();
    cluster.node_mut(3).start();
    put(&cluster, "copy", "c", "3");
    cluster.start_all();
    cluster.assert_equal_state("copy");
    let status = cluster.node(3).client().post("/v1/groups/copy/query", "\"Status\"").expect(200).json();
    assert_eq!(status["keys"], 3);
    assert_no_leftovers(&cluster);
}

/// A log never comes to the last index there is: a file that says so was taken, and no node that began from it could go on, or
/// start again.
#[test]
fn a_file_that_covers_an_index_that_no_log_has_is_refused() {
    let cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let file = cluster.folder().join("kv.snap");
    save(&cluster, 1, "kv", &file);
    let disk: std::sync::Arc<dyn statehouse::disk::Disk> = std::sync::Arc::new(statehouse::disk::RealDisk);
    let folder = cluster.folder().join("crafted");
    let store = statehouse::snapshot::SnapshotStore::open(disk, folder, 2, 0).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let (mut head, mut payload) = statehouse::snapshot::SnapshotReader::open(bytes.as_slice()).unwrap();
    head.last_log_id.index = u64::MAX;
    let mut writer = store.write(&head).unwrap();
    std::io::copy(&mut payload, &mut writer).unwrap();
    let crafted = writer.finish(&head).unwrap();
    let told = run(&cluster, 1, &["group", "restore", "copy", crafted.path().to_str().unwrap()]);
    told.fails(1, &["covers index 18446744073709551615", "file_damaged"]);
    assert_no_leftovers(&cluster);
}

/// Three groups with modules and listeners' settings, from three nodes to one: into a directory, and only when nothing is wrong.
#[test]
fn a_whole_cluster_is_backed_up_and_restored_on_one_node() {
    let cluster = Cluster::start(3, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    cluster.upload(1, "counter", modules::bundled("counter")).expect(201);
    let body = r#"{"name":"c1","module":"kv","params":{"max_value_bytes":9},"replicas":2}"#;
    cluster.node(2).client().post("/v1/groups", body).expect(201);
    put(&cluster, "kv", "a", "1");
    let dest = cluster.folder().join("backups");
    let dest = dest.to_str().unwrap();
    let backup = |node: u64, args: &[&str]| run(&cluster, node, &[&["backup"], args].concat());
    backup(1, &["verify", dest]).fails(1, &["has no whole backup"]);
    let first: Value = serde_json::from_str(&backup(3, &["create", dest, "-o", "json"]).ok()).unwrap();
    assert_eq!((&first["groups"], &first["modules"]), (&json!(2), &json!(2)));
    put(&cluster, "kv", "b", "2");
    let second: Value = serde_json::from_str(&backup(1, &["create", dest, "-o", "json"]).ok()).unwrap();
    let name = |backup: &Value| backup["name"].as_str().unwrap().to_owned();
    assert!(name(&first) < name(&second));
    backup(1, &["verify", dest]).ok();

    // One that was cut short is none, whatever else is there.
    let unfinished = Path::new(dest).join("20991231T235959.999Z");
    std::fs::create_dir_all(unfinished.join("groups")).unwrap();
    std::fs::copy(Path::new(dest).join(name(&second)).join("groups/kv.snap"), unfinished.join("groups/kv.snap"))
        .unwrap();
    let listed: Value = serde_json::from_str(&backup(1, &["ls", dest, "-o", "json"]).ok()).unwrap();
    let states: Vec<_> = listed.as_array().unwrap().iter().map(|backup| backup["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["whole", "whole", "unfinished"]);
    backup(1, &["restore", dest, "20991231T235959.999Z"]).fails(1, &["has no manifest", "never finished"]);
    backup(1, &["restore", dest]).fails(1, &["groups of the same names: c1, kv", "Nothing was restored"]);

    let small = Cluster::start(1, &[]);
    let restore = |small: &Cluster, args: &[&str]| run(small, 1, &[&["backup", "restore", dest], args].concat());
    let groups = |small: &Cluster| {
        let groups = small.node(1).client().get("/v1/groups").expect(200).json();
        groups["groups"].as_array().unwrap().iter().map(|group| group["name"].clone()).collect::<Vec<_>>()
    };
    // A flipped bit in any file of it.
    let whole = Path::new(dest).join(name(&second));
    let wasm = std::fs::read_dir(whole.join("modules")).unwrap().next().unwrap().unwrap().path();
    for file in [whole.join("groups/kv.snap"), wasm, whole.join("manifest.json")] {
        let bytes = std::fs::read(&file).unwrap();
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        std::fs::write(&file, &changed).unwrap();
        restore(&small, &[&name(&second)]).fails(1, &["is damaged", "file_damaged"]);
        assert_eq!(groups(&small), Vec::<Value>::new());
        std::fs::write(&file, &bytes).unwrap();
    }
    // An older one by its name, one group of it.
    restore(&small, &[&name(&first), "--group", "kv"]).ok();
    let status = |small: &Cluster| small.node(1).client().post("/v1/groups/kv/query", "\"Status\"").expect(200).json();
    assert_eq!(status(&small)["keys"], 1);
    restore(&small, &[]).fails(1, &["groups of the same names: kv"]);
    small.node(1).client().delete("/v1/groups/kv").expect(204);
    let told = restore(&small, &[]);
    assert!(told.err.contains("c1 gets 1 replicas"), "{told:?}");
    told.ok();
    assert_eq!(groups(&small), ["c1", "kv"]);
    assert_eq!(status(&small)["keys"], 2);
    assert_eq!(small.node(1).group("c1")["params"], json!({ "max_value_bytes": 9 }));
    let long = small.node(1).client().post("/v1/groups/c1/apply", r#"{"Put":{"key":"a","value":"0123456789"}}"#);
    long.expect_problem(422, "rejected", &["takes 9"]);
    assert_eq!(small.assert_equal_state("kv").1, cluster.assert_equal_state("kv").1);
}

/// A schedule goes on after a backup that failed, keeps as many as it is told, and never removes one for one that failed.
#[test]
fn a_schedule_keeps_the_newest_and_survives_a_cluster_that_is_away() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let dest = cluster.folder().join("backups");
    let once = run(&cluster, 1, &["backup", "create", dest.to_str().unwrap()]);
    once.ok();
    cluster.node_mut(1).kill();
    let away = run(&cluster, 1, &["backup", "create", dest.to_str().unwrap(), "--keep", "1"]);
    away.fails(3, &["no server answers"]);
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(&dest).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let first = names();
    assert_eq!(first.len(), 1, "what failed left a folder behind, or took one along");

    let told = cluster.folder().join("told");
    let mut schedule = program::command();
    schedule.args(["backup", "create", dest.to_str().unwrap(), "--every", "1s", "--keep", "2"]);
    schedule.args(["--server", &format!("http://{}", cluster.node(1).http)]);
    schedule.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&told).unwrap());
    let mut schedule = schedule.spawn().unwrap();
    wait::until_true("a backup that failed is told", || {
        std::fs::read_to_string(&told).unwrap().contains("the next backup is tried in 1 s")
    });
    assert_eq!(names(), first);
    cluster.start_all();
    wait::until("two newer backups, and the first is gone", || {
        let names = names();
        let whole = |name: &std::ffi::OsString| dest.join(name).join("manifest.json").exists();
        if names.iter().filter(|name| whole(name)).count() == 2 && !names.contains(&first[0]) {
            Ok(())
        } else {
            Err(names)
        }
    });
    program::signal(&schedule, rustix::process::Signal::TERM);
    let ended = program::wait(&mut schedule, wait::PATIENCE).expect("it ends when told to");
    assert!(ended.success(), "{ended}");
    run(&cluster, 1, &["backup", "verify", dest.to_str().unwrap()]).ok();
}

/// The same against a bucket: signed requests, a large group in parts, and nothing that looks whole after a failure.
#[test]
fn a_cluster_is_backed_up_into_a_bucket_and_restored_from_it() {
    let server = S3::start();
    let cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    // More than two parts of an upload.
    for number in 0..150 {
        put(&cluster, "kv", &format!("ballast-{number}"), &"v".repeat(120_000));
    }
    let backup = |cluster: &Cluster, args: &[&str], secret: &str| {
        let mut command = program::command();
        command.args(["backup"]).args(args);
        command.args(["--s3-endpoint", &format!("http://{}", server.address)]);
        if args[0] == "create" || args[0] == "restore" {
            command.args(["--server", &format!("http://{}", cluster.node(1).http)]);
        }
        command.env("AWS_ACCESS_KEY_ID", s3::KEY.0).env("AWS_SECRET_ACCESS_KEY", secret).env("AWS_REGION", s3::REGION);
        program::run(&mut command, b"")
    };
    let dest = format!("s3://{}/some/folder", s3::BUCKET);
    let secret = s3::KEY.1;
    backup(&cluster, &["create", &dest], "wrong").fails(1, &["s3://bucket/some/folder", "AWS_SECRET_ACCESS_KEY"]);
    assert!(server.refused_signatures() > 0);
    let said = backup(&cluster, &["create", &dest, "-o", "json"], secret).ok();
    let name = serde_json::from_str::<Value>(&said).unwrap()["name"].as_str().unwrap().to_owned();
    assert_eq!(server.uploads(), (1, 0), "the large group went in parts");
    backup(&cluster, &["verify", &dest], secret).ok();
    let listed = backup(&cluster, &["ls", &dest], secret).ok();
    assert!(listed.contains(&name) && listed.contains("whole"), "{listed}");

    server.refuse_writes(Some(403));
    backup(&cluster, &["create", &dest, "--keep", "1"], secret).fails(1, &["cannot write"]);
    server.refuse_writes(None);
    assert!(
        server.names().iter().all(|object| object.starts_with(&format!("some/folder/{name}/"))),
        "{:?}",
        server.names()
    );
    backup(&cluster, &["create", &dest, "--keep", "1"], secret).ok();
    assert!(!server.names().iter().any(|object| object.contains(&name)), "the older one was to go");

    let mut other = Cluster::start(1, &[]);
    backup(&other, &["restore", &dest], secret).ok();
    other.leader("kv");
    assert_eq!(other.assert_equal_state("kv").1, cluster.assert_equal_state("kv").1);
    let file = server.names().into_iter().find(|object| object.ends_with("groups/kv.snap")).unwrap();
    server.damage(&file);
    backup(&cluster, &["verify", &dest], secret).fails(1, &["groups/kv.snap is damaged", "file_damaged"]);
    let tls = ["backup", "ls", "s3://bucket", "--s3-endpoint", "https://s3.example"];
    program::run(program::command().args(tls).env_remove("AWS_ACCESS_KEY_ID"), b"")
        .fails(2, &["AWS_ACCESS_KEY_ID is not set"]);
    let keys = [("AWS_ACCESS_KEY_ID", s3::KEY.0), ("AWS_SECRET_ACCESS_KEY", secret)];
    program::run(program::command().args(tls).envs(keys), b"")
        .fails(2, &["https://s3.example", "does not speak TLS", "a local proxy"]);
}
