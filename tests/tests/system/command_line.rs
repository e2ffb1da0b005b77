//! The verbs, as a person and a script use them, over `statehouse local`.

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::cluster::free_ports;
use statehouse_tests::modules;
use statehouse_tests::program;
use statehouse_tests::program::Output;
use statehouse_tests::program::run;
use statehouse_tests::wait;

/// A client verb against `server`.
fn client(server: &str, args: &[&str]) -> Output {
    client_with_input(server, args, b"")
}

fn client_with_input(server: &str, args: &[&str], input: &[u8]) -> Output {
    run(program::command().args(args).env("STATEHOUSE_SERVER", server), input)
}

fn json_of(output: Output) -> Value {
    let text = output.ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn the_verbs_do_what_the_api_does() {
    let cluster = Cluster::start(3, &[]);
    let server = format!("http://{}", cluster.node(2).http);
    let file = cluster.folder().join("counter.wasm");
    std::fs::write(&file, modules::bundled("counter")).unwrap();
    let file = file.to_str().unwrap();

    let checked = json_of(client("http://127.0.0.1:9", &["module", "check", file, "-o", "json"]));
    let pushed = json_of(client(&server, &["module", "push", file, "--name", "count", "-o", "json"]));
    assert_eq!((&pushed["name"], &pushed["digest"]), (&json!("count"), &checked["digest"]));
    assert!(client(&server, &["module", "ls"]).ok().contains("count"));
    let shown = json_of(client(&server, &["module", "show", "count", "-o", "json"]));
    assert_eq!(shown["size"], modules::bundled("counter").len());

    let created = json_of(client(&server, &["group", "create", "c1", "--module", "count", "-o", "json"]));
    assert_eq!((&created["name"], &created["module"]), (&json!("c1"), &json!("count")));
    assert!(client(&server, &["group", "ls"]).ok().contains("c1"));
    let status = json_of(client(&server, &["group", "status", "c1", "-o", "json"]));
    assert_eq!(status["members"].as_array().unwrap().len(), 3);
    assert!(client(&server, &["group", "status", "c1"]).ok().contains("leader"));

    assert_eq!(client(&server, &["apply", "c1", "{\"Add\":5}"]).ok(), "5");
    assert_eq!(client_with_input(&server, &["apply", "c1", "-"], b"{\"Add\":-2}").ok(), "3");
    assert_eq!(client_with_input(&server, &["apply", "c1"], b"{\"Add\":1}").ok(), "4");
    assert_eq!(json_of(client(&server, &["apply", "c1", "{\"Add\":1}", "-o", "json"]))["reply"], 5);
    for consistency in ["linearizable", "lease", "local"] {
        assert_eq!(client(&server, &["query", "c1", "\"Get\"", "--consistency", consistency]).ok(), "5");
    }
    let session = client(&server, &["session", "open", "c1"]).ok();
    let session = session.trim();
    for _ in 0..2 {
        let sent = client(&server, &["apply", "c1", "{\"Add\":10}", "--session", session, "--sequence", "1"]);
        assert_eq!(sent.ok(), "15");
    }
    client(&server, &["session", "touch", "c1", session]).ok();
    client(&server, &["session", "close", "c1", session]).ok();
    let short = client(&server, &["session", "open", "c1", "--timeout-ms", "1"]);
    assert!(short.err.contains("it lives 1000 ms"), "{short:?}");
    client(&server, &["session", "touch", "c1", session]).fails(1, &["session_not_found", "try: "]);
    let index = client(&server, &["group", "snapshot", "c1"]).ok();
    assert!(index.trim().parse::<u64>().unwrap() > 5, "{index}");
    let digest = json_of(client(&server, &["group", "digest", "c1", "-o", "json"]));
    assert_eq!(digest["digest"].as_str().unwrap().len(), 64);

    client(&server, &["module", "rm", "count"]).fails(1, &["module_in_use", "c1", "try: "]);
    client(&server, &["group", "rm", "c1"]).ok();
    client(&server, &["module", "rm", "count"]).ok();
    client(&server, &["apply", "c1", "{}"]).fails(1, &["group_not_found", "c1", "group ls"]);
}

#[test]
fn failures_have_exit_codes_and_say_what_to_do() {
    let nobody = Cluster::prepare(1, &[]);
    let server = format!("http://{}", nobody.node(1).http);
    client(&server, &["apply", "c1", "x"]).fails(3, &[&server, "try: ", "statehouse serve"]);
    client(&server, &["group", "status"]).fails(2, &["NAME"]);
    client(&server, &["no-such-verb"]).fails(2, &["no-such-verb"]);
    client(&server, &["apply", "c1", "x", "--sequence", "1"]).fails(2, &["--session"]);
    client(&server, &["module", "push", "/nowhere/at-all.wasm"]).fails(1, &["/nowhere/at-all.wasm"]);
    run(program::command().args(["serve", "--node-id", "0"]), b"").fails(2, &["--node-id", "try: "]);
    run(program::command().args(["serve", "--http", "0.0.0.0:0"]), b"").fails(2, &["--insecure"]);
    let mut elsewhere = program::command();
    elsewhere.args(["serve", "--peer", "127.0.0.1:0", "--http", "127.0.0.1:0", "--code-cache", "/dev/null/x"]);
    run(elsewhere.arg("--data-dir").arg(nobody.folder().join("d")), b"")
        .fails(1, &["/dev/null/x", "leave --code-cache out"]);
    run(program::command().args(["serve", "--heartbeat-ms", "soon"]), b"").fails(2, &["--heartbeat-ms", "soon"]);
    run(program::command().arg("serve").env("STATEHOUSE_HEARTBEAT_MS", "soon"), b"")
        .fails(2, &["soon", "STATEHOUSE_HEARTBEAT_MS"]);
    let config = nobody.folder().join("node.toml");
    std::fs::write(&config, "hearbeat-ms = 50\n").unwrap();
    run(program::command().arg("serve").arg("--config").arg(&config), b"")
        .fails(2, &["hearbeat-ms", "did you mean `heartbeat-ms`"]);
}

#[test]
fn help_and_completions_know_every_verb() {
    const VERBS: [&str; 23] = [
        "serve",
        "keeper",
        "keeper-import",
        "local",
        "module",
        "group",
        "node",
        "member",
        "leader",
        "change",
        "status",
        "doctor",
        "session",
        "snapshot",
        "backup",
        "log",
        "recover",
        "apply",
        "query",
        "watch",
        "bench",
        "completions",
        "help",
    ];
    let help = run(program::command().arg("--help"), b"").ok();
    let (_, listed) = help.split_once("Commands:\n").unwrap();
    let listed = listed.lines().take_while(|line| !line.is_empty());
    let listed: Vec<&str> = listed.map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(listed, VERBS);
    for verb in VERBS.into_iter().filter(|verb| *verb != "help") {
        let help = run(program::command().args([verb, "--help"]), b"").ok();
        let usage = help.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap();
        assert_eq!(usage.split_whitespace().nth(1), Some(verb), "{help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let completions = run(program::command().args(["completions", shell]), b"").ok();
        for verb in VERBS {
            let word = match shell {
                "bash" => format!("statehouse,{verb})"),
                "zsh" => format!("({verb})"),
                _ => format!("-a \"{verb}\""),
            };
            assert!(completions.contains(&word), "{verb} is not completed in {shell}");
        }
    }
    assert!(run(program::command().arg("--version"), b"").ok().starts_with("statehouse "));
}

/// A node told by a file and the environment what others are told by flags.
#[test]
fn settings_come_from_file_and_environment_too() {
    let cluster = Cluster::prepare(1, &[]);
    let node = cluster.node(1);
    let config = cluster.folder().join("node.toml");
    let text = format!(
        "data-dir = {:?}\nhttp = \"127.0.0.1:1\"\npeer = \"{}\"\nlog-segment-bytes = \"4MiB\"\n",
        node.data_dir, node.peer
    );
    std::fs::write(&config, text).unwrap();
    let log = File::create(&node.log).unwrap();
    let mut command = program::command();
    command
        .args(["serve", "--exit-with-parent"])
        .env("STATEHOUSE_CONFIG", &config)
        .env("STATEHOUSE_HTTP", node.http.to_string());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let server = format!("http://{}", node.http);
    wait::until("it serves", || {
        let listed = client(&server, &["module", "ls"]);
        if listed.code == 0 { Ok(()) } else { Err(format!("{listed:?} {}", node.said())) }
    });
    // The parent's end is the node's.
    drop(child.stdin.take());
    let ended = program::wait(&mut child, Duration::from_secs(30));
    drop(child.kill());
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}

/// `statehouse local`, with everything it started.
struct Local {
    child: Child,
    nodes: Vec<Value>,
    folder: tempfile::TempDir,
}

impl Local {
    fn start(count: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = free_ports();
        let mut command = program::command();
        command.args(["local", "-o", "json", "--nodes", &count.to_string()]).arg("--data-dir").arg(folder.path());
        command.args(["--http-base", &base.to_string(), "--peer-base", &(base + 10).to_string()]);
        let err = File::create(folder.path().join("err")).unwrap();
        let mut child =
            command.env("STATEHOUSE_LOG_SEGMENT_BYTES", "4MiB").stdout(Stdio::piped()).stderr(err).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let nodes = serde_json::from_str::<Value>(&line).ok().and_then(|line| line["nodes"].as_array().cloned());
        let nodes = nodes
            .unwrap_or_else(|| panic!("{line:?}: {}", std::fs::read_to_string(folder.path().join("err")).unwrap()));
        Self { child, nodes, folder }
    }

    fn server(&self, node: usize) -> String {
        self.nodes[node]["http"].as_str().unwrap().to_owned()
    }

    fn pids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node["pid"].as_u64().unwrap()).collect()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        program::signal(&self.child, Signal::TERM);
        if program::wait(&mut self.child, Duration::from_secs(30)).is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn is_alive(pid: u64) -> bool {
    // A process that ended but was not waited for has no command line any more.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
fn one_command_starts_a_cluster_and_ctrl_c_stops_all_of_it() {
    let mut local = Local::start(3);
    assert_eq!(local.nodes.len(), 3);
    let modules = json_of(client(&local.server(0), &["module", "ls", "-o", "json"]));
    let names: Vec<&str> = modules.as_array().unwrap().iter().map(|module| module["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["counter", "kv", "znode-tree"]);
    client(&local.server(1), &["group", "create", "c1", "--module", "counter"]).ok();
    assert_eq!(client(&local.server(2), &["apply", "c1", "{\"Add\":5}"]).ok(), "5");

    let mut watch = program::command();
    watch.args(["watch", "kv1", "-o", "json", "--from", "1"]).env("STATEHOUSE_SERVER", local.server(0));
    client(&local.server(1), &["group", "create", "kv1", "--module", "kv"]).ok();
    let mut watch = watch.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    for key in ["a", "b"] {
        client(&local.server(2), &["apply", "kv1", &json!({ "Put": { "key": key, "value": "1" } }).to_string()]).ok();
    }
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let seen: Vec<Value> = lines.by_ref().take(2).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    drop(watch.kill());
    drop(watch.wait());
    assert_eq!((&seen[0]["data"]["key"], &seen[1]["data"]["key"]), (&json!("a"), &json!("b")));

    // A second cluster in the same place is told so.
    let mut second = program::command();
    second.args(["local", "--nodes", "3"]).arg("--data-dir").arg(local.folder.path().join("other"));
    second.args(["--http-base", local.server(0).rsplit(':').next().unwrap(), "--peer-base", "9000"]);
    run(&mut second, b"").fails(1, &["cannot listen on", "--http-base"]);

    let pids = local.pids();
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    program::signal(&local.child, Signal::INT);
    let ended = program::wait(&mut local.child, Duration::from_secs(40)).expect("Ctrl-C ends it");
    assert!(ended.success(), "{ended}");
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "a node outlived it");
}

/// Killed outright, it can stop nothing any more; its nodes notice.
#[test]
fn no_node_outlives_a_killed_local() {
    let mut local = Local::start(1);
    let pids = local.pids();
    local.child.kill().unwrap();
    local.child.wait().unwrap();
    wait::until_true("the node is gone", || !pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn bench_reports_what_the_machine_can_do() {
    let cluster = Cluster::start(1, &[]);
    cluster.deploy("counter", modules::bundled("counter"));
    let server = format!("http://{}", cluster.node(1).http);
    let mut bench = Command::new(program::path());
    bench.args([
        "bench",
        "apply",
        "counter",
        "--connections",
        "4",
        "--duration-s",
        "1",
        "--warmup-s",
        "0",
        "-o",
        "json",
    ]);
    bench.arg("--bench-dir").arg(cluster.folder()).env("STATEHOUSE_SERVER", &server);
    let report = json_of(run(&mut bench, b""));
    assert_eq!(report["errors"], 0);
    let answers = report["answers"].as_u64().unwrap();
    assert!(answers > 0 && report["synced_write_us"].as_f64().unwrap() > 0.0, "{report}");
    // Every answered command is in the state.
    let value = client(&server, &["query", "counter", "\"Get\""]).ok().parse::<u64>().unwrap();
    assert!(value >= answers, "{value} < {answers}");
}
