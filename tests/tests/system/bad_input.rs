//! What people get wrong: each with the words they get, and nothing half done.

use std::fs::OpenOptions;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::json;
use statehouse::peer::frame::Hello;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::disk::SmallDisk;
use statehouse_tests::http::Request;
use statehouse_tests::load::Session;
use statehouse_tests::modules;
use statehouse_tests::program;

/// Uploads through a follower and a leader alike; `check` says the same without adding, and so does the command
/// line without a server.
#[test]
fn modules_that_are_none_are_refused_with_what_to_change() {
    let cluster = Cluster::start(3, &[]);
    let refused = [
        (b"no WebAssembly at all".to_vec(), "not_wasm", ""),
        (b"\0asm\x01\0\0\0 and then garbage".to_vec(), "not_wasm", ""),
        (modules::importing("wasi_snapshot_preview1", "proc_exit"), "forbidden_import", "proc_exit"),
        (modules::importing("statehouse", "read_the_clock"), "forbidden_import", "read_the_clock"),
        (modules::lacking("restore"), "missing_export", "restore"),
        (modules::lacking("memory"), "missing_export", "memory"),
        (modules::lacking("statehouse_abi_1"), "missing_abi_marker", "statehouse_abi_1"),
        (modules::looping_in_init(), "self_test_trapped", "init"),
    ];
    for (number, (wasm, reason, name)) in refused.iter().enumerate() {
        let node = 1 + number as u64 % 3;
        let answers = [cluster.upload(node, "bad", wasm), cluster.node(node).client().post("/v1/modules/check", wasm)];
        for answer in answers {
            answer.expect_problem(422, "module_refused", &[name]);
            assert_eq!(answer.json()["reason"], *reason, "{answer}");
        }
        let file = cluster.folder().join("bad.wasm");
        std::fs::write(&file, wasm).unwrap();
        let checked = program::run(program::command().arg("module").arg("check").arg(&file), b"");
        checked.fails(1, &["error: ", "bad.wasm", reason, name, "try: "]);
    }
    cluster.upload(1, "bad", b"").expect_problem(422, "module_refused", &[]);
    let list = cluster.node(1).client().get("/v1/modules").expect(200).json();
    assert_eq!(list, json!({ "modules": [] }), "something was half added");
}

#[test]
fn bodies_over_the_limits_are_refused_and_the_connection_goes_on() {
    let cluster = Cluster::start(1, &["--module-bytes-max", "64KiB", "--command-bytes-max", "1000"]);
    let mut client = cluster.node(1).client();
    let big = modules::larger_than(64 << 10);
    client.post("/v1/modules?name=big", &big).expect_problem(413, "too_large", &["65536"]);
    client.post("/v1/modules?name=small", modules::larger_than(10)).expect(201);
    client.post("/v1/groups", json!({ "name": "small", "module": "small" }).to_string()).expect(201);
    for path in ["/v1/groups/small/apply", "/v1/groups/small/query"] {
        client.post(path, [b'x'; 1000]).expect(200);
        client.post(path, [b'x'; 1001]).expect_problem(413, "too_large", &["1000"]);
    }
    client.get("/healthz").expect(200);
}

#[test]
fn requests_that_name_what_is_not_there_or_make_no_sense() {
    let cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    for node in &cluster.nodes {
        let mut client = node.client();
        for path in ["apply", "query", "sessions"] {
            let body = if path == "sessions" { "{\"timeout_ms\":5000}" } else { "{}" };
            client.post(&format!("/v1/groups/nowhere/{path}"), body).expect_problem(
                404,
                "group_not_found",
                &["nowhere"],
            );
        }
        for path in ["", "/events", "/digest"] {
            client.get(&format!("/v1/groups/nowhere{path}")).expect_problem(404, "group_not_found", &["nowhere"]);
        }
        client.get("/v1/modules/nothing").expect_problem(404, "module_not_found", &["nothing"]);
        client.delete("/v1/modules/nothing").expect_problem(404, "module_not_found", &["nothing"]);
        let no_module = json!({ "name": "g", "module": "nothing" }).to_string();
        client.post("/v1/groups", no_module).expect_problem(404, "module_not_found", &["nothing"]);
        client.post("/v1/groups", "{\"name\":").expect_problem(400, "bad_request", &["JSON"]);
        client.post("/v1/groups", json!({ "name": "No Name", "module": "counter" }).to_string()).expect_problem(
            400,
            "bad_request",
            &["No Name"],
        );
        client.post("/v1/groups/counter/query?consistency=maybe", "\"Get\"").expect_problem(
            400,
            "bad_request",
            &["maybe"],
        );
        client.get("/v1/nothing").expect_problem(404, "route_not_found", &["/v1/nothing"]);
        client.delete("/v1/groups").expect_problem(405, "method_not_allowed", &["DELETE"]);
        // The module's own refusals carry its own words.
        client.post("/v1/groups/counter/apply", "add five").expect_problem(422, "rejected", &["Add"]);
        client.post("/v1/groups/counter/query", "{\"Got\":1}").expect_problem(422, "rejected", &["Get"]);
    }
    assert_eq!(cluster.node(1).client().post("/v1/groups/counter/query", "\"Get\"").expect(200).text(), "0");
}

/// The second one's address to listen at was quietly another: the answer spoke of a module and its state, and said to choose another name. And
/// who sent params that the module does not take was sent to the API's description.
#[test]
fn what_is_wrong_with_a_group_that_is_asked_for_is_named() {
    let cluster = Cluster::start(1, &[]);
    cluster.deploy("kv", modules::bundled("kv"));
    let client = || cluster.node(1).client();
    let listening = json!({ "name": "kv", "module": "kv", "listen": ["127.0.0.1:0"] }).to_string();
    client().post("/v1/groups", listening).expect_problem(409, "already_exists", &["what differs", ": listen"]);
    let params = json!({ "name": "k2", "module": "kv", "params": { "no_such_param": 1 } }).to_string();
    let refused = client().post("/v1/groups", params);
    refused.expect_problem(400, "bad_request", &["module kv does not begin with these params", "no_such_param"]);
    let remedy = refused.json()["remedy"].to_string();
    assert!(remedy.contains("author its params"), "{remedy}");
}

/// A node of its own that was restarted warned that it knows no leader, the moment before it led, and printed how its log was found as
/// the program's own data.
#[test]
fn a_lone_node_that_is_restarted_warns_of_nothing() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.node_mut(1).kill();
    cluster.node_mut(1).start();
    cluster.node_mut(1).wait_ready();
    let said = cluster.node(1).said();
    assert!(!said.contains("WARN") && !said.contains("RecoveryReport") && said.contains("the log is open"), "{said}");
}

#[test]
fn sessions_used_wrongly_change_nothing() {
    let cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    let mut session = Session::open(&cluster.addresses(), "counter");
    session.apply(b"{\"Add\":1}").expect(200);
    let id = session.id();
    let apply = |node: u64, token: &str, sequence: &str| {
        let mut request = Request::new("POST", "/v1/groups/counter/apply").body(b"{\"Add\":1}");
        if !token.is_empty() {
            request = request.header("statehouse-session", token);
        }
        if !sequence.is_empty() {
            request = request.header("statehouse-sequence", sequence);
        }
        cluster.node(node).client().ask(&request)
    };
    for node in 1..=3 {
        let forged = format!("{id}:{}", "0".repeat(32));
        apply(node, &forged, "2").expect_problem(403, "wrong_secret", &[&id.to_string()]);
        apply(node, &forged, "").expect_problem(403, "wrong_secret", &[&id.to_string()]);
        apply(node, &format!("999999:{}", "0".repeat(32)), "1").expect_problem(404, "session_not_found", &["999999"]);
        apply(node, "", "1").expect_problem(400, "bad_sequence", &["session"]);
        apply(node, &session.token, "0").expect_problem(400, "bad_sequence", &["expects sequence 2"]);
        apply(node, &session.token, "3").expect_problem(400, "bad_sequence", &["expects sequence 2"]);
        apply(node, &session.token, "two").expect_problem(400, "bad_request", &["two"]);
        apply(node, "not a session", "1").expect_problem(400, "bad_request", &["ID:SECRET"]);
    }
    // Of the replies only the last ones are kept.
    for _ in 0..200 {
        session.apply(b"{\"Add\":1}").expect(200);
    }
    apply(2, &session.token, "1").expect_problem(409, "sequence_too_old", &["sequence 1"]);
    assert_eq!(cluster.node(3).client().post("/v1/groups/counter/query", "\"Get\"").expect(200).text(), "201");
}

#[test]
fn a_data_directory_of_another_node_is_refused() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.kill_all();
    let dir_of_1 = cluster.node(1).data_dir.clone();
    let dir_of_2 = std::mem::replace(&mut cluster.node_mut(2).data_dir, dir_of_1.clone());
    let refused = cluster.node_mut(2).start_refused();
    refused.fails(1, &[dir_of_1.to_str().unwrap(), "belongs to node 1", "--node-id 1", "--data-dir"]);
    cluster.node_mut(2).data_dir = dir_of_2;
    // Nothing happened to it.
    cluster.start_all();
    cluster.assert_equal_state("counter");
}

#[test]
fn a_data_directory_in_use_and_ports_in_use_are_refused() {
    let mut cluster = Cluster::start(1, &[]);
    let mut other = Cluster::prepare(1, &[]);
    other.node_mut(1).data_dir = cluster.node(1).data_dir.clone();
    other.node_mut(1).start_refused().fails(1, &["is used by another process", "--data-dir"]);

    let mut third = Cluster::prepare(1, &[]);
    let taken = TcpListener::bind(third.node(1).http).unwrap();
    third.node_mut(1).start_refused().fails(1, &["cannot listen on", &third.node(1).http.to_string(), "--http"]);
    drop(taken);
    let taken = TcpListener::bind(third.node(1).peer).unwrap();
    third.node_mut(1).start_refused().fails(1, &["cannot listen on", &third.node(1).peer.to_string(), "--peer"]);
    drop(taken);
    third.start_all();
    assert!(cluster.node_mut(1).is_running());
}

/// Node 3 is told of other peers than the rest: neither side takes the other for its own, and both say why.
#[test]
fn nodes_of_different_clusters_refuse_each_other() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    cluster.node_mut(3).kill();
    // With its old data directory it is refused at once …
    let mut command = cluster.node(3).command();
    command.args(["--cluster-name", "another"]);
    program::run(&mut command, b"").fails(1, &["node-3", "belongs to cluster", "--cluster-name"]);
    // … and with an empty one it gets no word from the others.
    let fresh = cluster.folder().join("fresh");
    cluster.node_mut(3).data_dir = fresh;
    cluster.node_mut(3).add_flags(&["--cluster-name", "another"]);
    cluster.node_mut(3).start();
    statehouse_tests::wait::until_true("node 3 says who it is not", || {
        cluster.node(3).said().contains("belongs to cluster") && cluster.node(3).said().contains("--initial-cluster")
    });
    assert_eq!(cluster.node(3).client().get("/readyz").status, 503);
    assert_eq!(cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":1}").expect(200).text(), "1");
}

/// Someone configured a stranger as a peer, which dialled on: the node wrote the same line into its log ten times a second.
#[test]
fn who_is_refused_again_and_again_is_said_once() {
    let cluster = Cluster::start(1, &[]);
    let words = "this is the peer port of a statehouse node";
    let refused = |hello: &[u8]| {
        let mut stranger = std::net::TcpStream::connect(cluster.node(1).peer).unwrap();
        stranger.write_all(hello).unwrap();
        let mut told = Vec::new();
        stranger.read_to_end(&mut told).unwrap();
        String::from_utf8_lossy(&told).into_owned()
    };
    for _ in 0..30 {
        let told = refused(&[b'x'; Hello::BYTES]);
        assert!(told.contains(words), "{told}");
    }
    // What a node of an earlier version says is shorter, and was waited for.
    let told = refused(&[&b"STHSPEER\x02\0"[..], &[0; 45]].concat());
    assert!(told.contains("protocol version 2 is not 3"), "{told}");
    // Another one is news; when that is written, so was what came before.
    let mut other = std::net::TcpStream::connect(cluster.node(1).peer).unwrap();
    other.write_all(b"short").unwrap();
    drop(other);
    statehouse_tests::wait::until_true("the other one is said", || cluster.node(1).said().contains("early eof"));
    let said = cluster.node(1).said();
    assert_eq!(said.matches(words).count(), 1, "{said}");
}

#[test]
fn a_damaged_log_is_refused_with_file_and_offset_and_left_as_it_is() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    for _ in 0..20 {
        cluster.node(1).client().post("/v1/groups/counter/apply", "{\"Add\":1}").expect(200);
    }
    cluster.kill_all();
    let log = cluster.node(1).data_dir.join("log");
    let mut segments: Vec<_> = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|end| end == "seg"));
    segments.sort();
    let segment = &segments[0];
    let bytes = std::fs::read(segment).unwrap();
    // The first command is long before the tail.
    let at = bytes.windows(9).position(|window| window == b"{\"Add\":1}").expect("commands are in the log as they came")
        as u64;
    let file = OpenOptions::new().write(true).open(segment).unwrap();
    file.write_all_at(b"[", at).unwrap();
    let damaged = std::fs::read(segment).unwrap();

    let refused = cluster.node_mut(1).start_refused();
    refused.fails(1, &[segment.to_str().unwrap(), "is damaged at byte offset", "try: "]);
    assert!(std::fs::read(segment).unwrap() == damaged, "a node that does not start changed the log");
    // With the byte as it was, all is there.
    file.write_all_at(b"{", at).unwrap();
    cluster.start_all();
    assert_eq!(cluster.node(1).client().post("/v1/groups/counter/query", "\"Get\"").expect(200).text(), "20");
}

/// The default of both is one directory. `serve` began a cluster of its own, an empty one, among the files of the cluster that `local`
/// kept there, and whoever looked for the groups found none; and the other way round.
#[test]
fn a_directory_of_local_is_none_of_a_node_and_the_other_way_round() {
    let mut cluster = Cluster::prepare(1, &[]);
    let data_dir = cluster.node(1).data_dir.clone();
    std::fs::create_dir_all(&data_dir).unwrap();
    let mark = data_dir.join("local.json");
    std::fs::write(&mark, "{\"nodes\":3,\"peer_base\":7170}").unwrap();
    let refused = cluster.node_mut(1).start_refused();
    refused.fails(1, &[data_dir.to_str().unwrap(), "`statehouse local`", "another --data-dir"]);
    assert!(!data_dir.join("LOCK").exists(), "something was begun there");
    std::fs::remove_file(&mark).unwrap();
    cluster.start_all();
    cluster.kill_all();
    let refused = program::run(program::command().arg("local").arg("--data-dir").arg(&data_dir), b"");
    refused.fails(2, &[data_dir.to_str().unwrap(), "`statehouse serve`", "another --data-dir"]);
    assert!(!mark.exists());
    cluster.start_all();
}

/// The remedies were those of a directory that cannot be written, and of a file that is not there.
#[test]
fn a_damaged_identity_is_told_with_what_helps() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.kill_all();
    let file = cluster.node(1).data_dir.join("identity.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    let no_digits = whole.replace("\"cluster\":\"", "\"cluster\":\"z");
    for damaged in ["", "{\"format\":1", &no_digits] {
        std::fs::write(&file, damaged).unwrap();
        let refused = cluster.node_mut(1).start_refused();
        refused.fails(1, &["identity.json is damaged: ", "try: restore the file from a copy", "docs/operations.md"]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), damaged, "it is left as it was found");
        // What it says can still be looked at, now more than ever.
        let mut inspect = program::command();
        inspect.args(["log", "inspect", "--data-dir"]).arg(&cluster.node(1).data_dir);
        assert!(program::run(&mut inspect, b"").ok().contains("catalog"));
    }
    std::fs::write(&file, whole).unwrap();
    cluster.start_all();
}

/// It was told of "the message names file and offset", of which there was neither.
#[test]
fn a_disk_without_room_for_a_first_segment_is_told_with_what_helps() {
    let Some(disk) = SmallDisk::mount(1) else { return };
    let mut cluster = Cluster::prepare(1, &[]);
    cluster.node_mut(1).data_dir = disk.path().join("node-1");
    let refused = cluster.node_mut(1).start_refused();
    refused.fails(1, &["the disk is full", "try: docs/operations/snapshots.md says what may be removed"]);
    disk.remount("size=400m");
    cluster.start_all();
}

/// One disk of three is full: that node says so and where, the other two go on, and with room it is back.
#[test]
fn a_full_disk_stops_no_cluster_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount(40) else { return };
    let mut cluster = Cluster::prepare(3, &["--snapshot-entries", "1000000"]);
    cluster.node_mut(3).data_dir = disk.path().join("node-3");
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    // What else is on the disk leaves no room for another segment.
    let filler = disk.path().join("filler");
    drop(Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", filler.display())).output().unwrap());
    let load = statehouse_tests::load::Load::start(&cluster.addresses()[..2], "kv", 4);
    let value = "v".repeat(100_000);
    for number in 0..120 {
        let command = json!({ "Put": { "key": "ballast", "value": value, "ttl_ms": null } }).to_string();
        let answer = statehouse_tests::cluster::ask_any(
            &cluster.addresses()[..2],
            &Request::new("POST", "/v1/groups/kv/apply").body(command.as_bytes()),
        );
        assert_eq!(answer.status, 200, "{number}: {answer}");
    }
    load.wait_for(50);
    drop(load.stop());
    statehouse_tests::wait::until_true("node 3 says that its disk is full", || {
        cluster.node(3).said().contains("disk is full")
    });
    std::fs::remove_file(&filler).unwrap();
    drop(Command::new("mount").args(["-o", "remount,size=400m"]).arg(disk.path()).output().unwrap());
    cluster.node_mut(3).kill();
    cluster.start_all();
    cluster.assert_equal_state("kv");
}
