//! The load generator for ZooKeeper's protocol, against a server that is as small as one can be: it keeps a
//! tree, answers the handshake and the requests that the generator sends, and can be told to misbehave.

use std::collections::BTreeMap;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;

use serde_json::Value;
use statehouse_tests::program;
use statehouse_tests::program::Output;
use statehouse_tests::program::run;

/// How the fake server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// As ZooKeeper does.
    Well,
    /// Every session is expired.
    RefuseSessions,
    /// Every set fails with NoAuth (-102).
    ForbidSets,
    /// The handshake is answered, then come bytes that are nothing.
    Babble,
    /// The connection ends after so many requests.
    HangUp(u32),
}

struct FakeServer {
    address: String,
    /// Paths of the nodes that are there, with their values.
    tree: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// How often which opcode came.
    requests: Arc<Mutex<BTreeMap<i32, u64>>>,
}

impl FakeServer {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let this = Self {
            address: listener.local_addr().unwrap().to_string(),
            tree: Arc::default(),
            requests: Arc::default(),
        };
        let (tree, requests) = (this.tree.clone(), this.requests.clone());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let client = FakeClient { stream, tree: tree.clone(), requests: requests.clone(), manner };
                std::thread::spawn(move || client.serve());
            }
        });
        this
    }

    fn bench(&self, args: &[&str]) -> Output {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = program::command();
        command.args(["bench", "keeper", "--server", &self.address, "--warmup-s", "0", "--duration-s", "1"]);
        command.arg("--bench-dir").arg(scratch.path()).args(args);
        run(&mut command, b"")
    }

    fn requests(&self, opcode: i32) -> u64 {
        self.requests.lock().unwrap().get(&opcode).copied().unwrap_or(0)
    }
}

/// Reads big-endian fields; the load generator is trusted to send whole ones.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn raw(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(length);
        self.0 = rest;
        head
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.raw(4).try_into().unwrap())
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = self.i32();
        self.raw(usize::try_from(length).unwrap())
    }

    fn path(&mut self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as i32).to_be_bytes());
    out.extend(bytes);
}

const STAT: [u8; 68] = [0; 68];
const MULTI: i32 = 14;

struct FakeClient {
    stream: TcpStream,
    tree: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    requests: Arc<Mutex<BTreeMap<i32, u64>>>,
    manner: Manner,
}

impl FakeClient {
    fn frame(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut frame = vec![0; i32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut frame).ok()?;
        Some(frame)
    }

    /// A client that has gone away shows at the next frame.
    fn answer(&mut self, frame: &[u8]) {
        let mut out = Vec::new();
        put(&mut out, frame);
        drop(self.stream.write_all(&out));
    }

    fn serve(mut self) {
        let Some(handshake) = self.frame() else { return };
        let timeout = if self.manner == Manner::RefuseSessions { &[0; 4] } else { &handshake[12..16] };
        self.answer(&[&[0; 4], timeout, &[1; 8], &[0, 0, 0, 16], &[2; 16], &[0]].concat());
        let mut answered = 0;
        while let Some(frame) = self.frame() {
            if self.manner == Manner::Babble {
                drop(self.stream.write_all(b"this is no frame at all"));
                return;
            }
            let mut fields = Fields(&frame);
            let (xid, opcode) = (fields.i32(), fields.i32());
            *self.requests.lock().unwrap().entry(opcode).or_default() += 1;
            let tree = self.tree.clone();
            let mut tree = tree.lock().unwrap();
            let (error, body) = match opcode {
                MULTI | 22 => (0, self.multi(&mut tree, &mut fields)),
                _ => {
                    self.one(&mut tree, opcode, &mut fields).map_or_else(|error| (error, Vec::new()), |body| (0, body))
                }
            };
            drop(tree);
            let header = [&xid.to_be_bytes()[..], &[0; 8], &error.to_be_bytes()].concat();
            self.answer(&[header, body].concat());
            answered += 1;
            if opcode == -11 || matches!(self.manner, Manner::HangUp(after) if answered > after) {
                return;
            }
        }
    }

    fn one(&self, tree: &mut BTreeMap<String, Vec<u8>>, opcode: i32, fields: &mut Fields<'_>) -> Result<Vec<u8>, i32> {
        const NO_NODE: i32 = -101;
        if [11, -11].contains(&opcode) {
            return Ok(Vec::new());
        }
        let path = fields.path();
        let mut out = Vec::new();
        let children = |tree: &BTreeMap<String, Vec<u8>>| -> Vec<String> {
            let below = format!("{path}/");
            let others = tree.range(below.clone()..).map_while(|(other, _)| other.strip_prefix(&below));
            others.filter(|name| !name.contains('/')).map(str::to_owned).collect()
        };
        match opcode {
            1 => {
                let value = fields.bytes().to_vec();
                assert_eq!(fields.i32(), 1, "one ACL");
                fields.i32();
                assert_eq!((fields.bytes(), fields.bytes(), fields.i32()), (&b"world"[..], &b"anyone"[..], 0));
                let parent = path.rsplit_once('/').unwrap().0;
                if tree.contains_key(&path) {
                    return Err(-110);
                }
                if !parent.is_empty() && !tree.contains_key(parent) {
                    return Err(NO_NODE);
                }
                put(&mut out, path.as_bytes());
                tree.insert(path, value);
            }
            2 => {
                fields.i32();
                if !children(tree).is_empty() {
                    return Err(-111);
                }
                tree.remove(&path).ok_or(NO_NODE)?;
            }
            3 => {
                fields.raw(1);
                tree.get(&path).ok_or(NO_NODE)?;
                out.extend(STAT);
            }
            4 => {
                fields.raw(1);
                put(&mut out, tree.get(&path).ok_or(NO_NODE)?);
                out.extend(STAT);
            }
            5 => {
                let value = fields.bytes().to_vec();
                fields.i32();
                if self.manner == Manner::ForbidSets {
                    return Err(-102);
                }
                *tree.get_mut(&path).ok_or(NO_NODE)? = value;
                out.extend(STAT);
            }
            8 | 12 => {
                fields.raw(1);
                tree.get(&path).ok_or(NO_NODE)?;
                let names = children(tree);
                out.extend((names.len() as i32).to_be_bytes());
                names.iter().for_each(|name| put(&mut out, name.as_bytes()));
                if opcode == 12 {
                    out.extend(STAT);
                }
            }
            9 => put(&mut out, path.as_bytes()),
            13 => {
                fields.i32();
                tree.get(&path).ok_or(NO_NODE)?;
            }
            other => panic!("opcode {other} was not expected"),
        }
        Ok(out)
    }

    /// All or nothing, with the errors in place of the results.
    fn multi(&self, tree: &mut BTreeMap<String, Vec<u8>>, fields: &mut Fields<'_>) -> Vec<u8> {
        let (mut results, mut before) = (Vec::new(), Vec::new());
        loop {
            let opcode = fields.i32();
            let done = fields.raw(1) == [1];
            fields.i32();
            if done {
                break;
            }
            let path = Fields(fields.0).path();
            before.push((path.clone(), tree.get(&path).cloned()));
            results.push((opcode, self.one(tree, opcode, fields)));
        }
        let failed = results.iter().position(|(_, result)| result.is_err());
        let mut out = Vec::new();
        for (place, (opcode, result)) in results.into_iter().enumerate() {
            match (failed, result) {
                (None, Ok(body)) => out.extend([&opcode.to_be_bytes()[..], &[0; 5], &body].concat()),
                (_, result) => {
                    let error = match result {
                        Err(error) => error,
                        Ok(_) if Some(place) < failed => 0,
                        Ok(_) => -2,
                    };
                    let error = error.to_be_bytes();
                    out.extend([&(-1_i32).to_be_bytes()[..], &[0], &error, &error].concat());
                }
            }
        }
        out.extend([0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff]);
        for (path, value) in before.into_iter().rev().filter(|_| failed.is_some()) {
            match value {
                Some(value) => drop(tree.insert(path, value)),
                None => drop(tree.remove(&path)),
            }
        }
        out
    }
}

fn json_of(output: Output) -> Value {
    let text = output.ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What is sent is answered without one error, and afterwards the server is as it was.
#[test]
fn every_workload_runs_without_an_error_and_leaves_nothing_behind() {
    let workloads = [
        "prod-mix",
        "read",
        "write",
        "read-multi",
        "write-multi",
        "list-heavy",
        "churn",
        "large-payload",
        "single-hot-get",
        "multi-large",
    ];
    let runs = workloads.map(|workload| {
        std::thread::spawn(move || {
            let server = FakeServer::start(Manner::Well);
            let args = ["--workload", workload, "--sessions", "3", "--pipeline", "2", "--prefix", "/a/b", "-o", "json"];
            let report = json_of(server.bench(&args));
            assert_eq!((&report["errors"], &report["first_error"]), (&0.into(), &Value::Null), "{workload}: {report}");
            let answers = report["answers"].as_u64().unwrap();
            let kinds = report["kinds"].as_object().unwrap();
            assert_eq!(kinds.values().map(|kind| kind["answers"].as_u64().unwrap()).sum::<u64>(), answers);
            assert!(answers > 0, "{workload}");
            assert_eq!(*server.tree.lock().unwrap(), BTreeMap::new(), "{workload}");
            // The session of the preparations, the three, and the one that cleaned up.
            assert_eq!(server.requests(-11), 5, "{workload}: every session is closed");
        })
    });
    for run in runs {
        run.join().unwrap();
    }
}

#[test]
fn a_file_says_what_is_sent_and_what_it_says_wrong_is_told() {
    let server = FakeServer::start(Manner::Well);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let name = file.to_str().unwrap();
    std::fs::write(&file, "keys = 7\nvalue-bytes = 5\n[exists]\nat = [\"pool/*\"]\n[sync]\n").unwrap();
    let table = server.bench(&["--workload", name, "--sessions", "2", "--keep"]).ok();
    for words in ["KIND", "P99.9 MS", "exists", "sync", "7 keys, values of 5 bytes", "errors        none"] {
        assert!(table.contains(words), "{words:?} is not in {table}");
    }
    let tree = server.tree.lock().unwrap().clone();
    assert_eq!(tree.keys().filter(|path| path.starts_with("/statehouse-bench/pool/key-")).count(), 7);
    assert!(tree["/statehouse-bench/hot"].len() == 5);
    // It was kept, so it is in the way.
    server.bench(&["--workload", "read"]).fails(1, &["/statehouse-bench", "NodeExists", "another --prefix"]);

    std::fs::write(&file, "[get]\nat = [\"hot\"]\nwieght = 3\n").unwrap();
    server.bench(&["--workload", name]).fails(2, &["mine.toml", "unknown field `wieght`", "docs/cli.md"]);
    server.bench(&["--workload", "/no/such/file"]).fails(2, &["/no/such/file", "try: "]);
}

#[test]
fn errors_are_counted_by_name_and_a_run_of_nothing_but_errors_fails() {
    let server = FakeServer::start(Manner::ForbidSets);
    let report = json_of(server.bench(&["--workload", "write", "--sessions", "4", "-o", "json"]));
    let errors = report["errors"].as_u64().unwrap();
    assert!(errors > 0 && report["errors_by_code"]["NoAuth"] == errors, "{report}");
    assert_eq!((&report["kinds"]["set"]["answers"], &report["kinds"]["create"]["errors"]), (&0.into(), &0.into()));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sets.toml");
    std::fs::write(&file, "[set]\nat = [\"hot\"]\n").unwrap();
    let output = server.bench(&["--workload", file.to_str().unwrap(), "--sessions", "1"]);
    output.fails(1, &["not one answer was a success", "NoAuth"]);
}

#[test]
fn a_server_that_refuses_or_babbles_is_named() {
    let server = FakeServer::start(Manner::RefuseSessions);
    server.bench(&[]).fails(1, &[&server.address, "refused a session"]);
    let server = FakeServer::start(Manner::Babble);
    server.bench(&[]).fails(1, &[&server.address, "not ZooKeeper's", "this is no fram"]);
    let nobody = FakeServer { address: "127.0.0.1:1".into(), tree: Arc::default(), requests: Arc::default() };
    nobody.bench(&[]).fails(3, &["127.0.0.1:1", "cannot connect"]);
}

/// What was under way is lost and counted; the session is opened again and goes on.
#[test]
fn a_connection_that_breaks_is_opened_again() {
    let server = FakeServer::start(Manner::HangUp(50));
    let report = json_of(server.bench(&["--workload", "single-hot-get", "--sessions", "2", "-o", "json", "--keep"]));
    assert!(report["sessions_reopened"].as_u64().unwrap() > 0, "{report}");
    assert!(report["errors_by_code"]["ConnectionLoss"].as_u64().unwrap() > 0, "{report}");
    assert!(report["answers"].as_u64().unwrap() >= 90, "{report}");
}
