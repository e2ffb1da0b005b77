//! `statehouse keeper` and `keeper-import`, as an operator uses them who comes from ZooKeeper.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use statehouse_tests::cluster::free_ports;
use statehouse_tests::http::Http;
use statehouse_tests::keeper::Connection;
use statehouse_tests::keeper::Hello;
use statehouse_tests::keeper::Keeper;
use statehouse_tests::keeper::connect;
use statehouse_tests::keeper::four_letters;
use statehouse_tests::keeper::record;
use statehouse_tests::program;
use statehouse_tests::program::run;
use statehouse_tests::wait;
use znode_tree::wire::op;

/// What Debian's ZooKeeper 3.8 wrote: `tests/keeper/make.py`.
fn dump() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/keeper/plain")).to_owned()
}

/// A client of ZooKeeper, by hand.
struct Client {
    stream: TcpStream,
    xid: i32,
}

fn buffer(bytes: &[u8]) -> Vec<u8> {
    [&i32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A path and whether to watch it: what most reads ask.
fn path(path: &str) -> Vec<u8> {
    [buffer(path.as_bytes()), vec![0]].concat()
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Client {
    /// A new session; the client has seen `zxid` elsewhere.
    fn open(address: SocketAddr, zxid: i64) -> io::Result<Self> {
        let mut stream = connect(address)?;
        let request = [&0_i32.to_be_bytes()[..], &zxid.to_be_bytes(), &10_000_i32.to_be_bytes(), &0_i64.to_be_bytes()];
        let request = [request.concat(), buffer(&[0; 16]), vec![0]].concat();
        stream.write_all(&buffer(&request))?;
        let mut client = Self { stream, xid: 0 };
        let answer = client.frame()?;
        assert_eq!((i32_at(&answer, 4), answer.len()), (10_000, 37), "the timeout, and a whole answer");
        assert_ne!(i64_at(&answer, 8), 0, "a session");
        Ok(client)
    }

    fn until_open(address: SocketAddr, zxid: i64) -> Self {
        wait::until("a session", || Self::open(address, zxid))
    }

    fn frame(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut bytes = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The transaction's number, the error, the body.
    fn ask(&mut self, operation: i32, body: &[u8]) -> (i64, i32, Vec<u8>) {
        self.xid += 1;
        let request = [&self.xid.to_be_bytes()[..], &operation.to_be_bytes(), body].concat();
        self.stream.write_all(&buffer(&request)).unwrap();
        let answer = self.frame().unwrap();
        assert_eq!(i32_at(&answer, 0), self.xid);
        (i64_at(&answer, 4), i32_at(&answer, 12), answer[16..].to_vec())
    }

    fn create(&mut self, path: &str, data: &[u8]) -> (i64, i32) {
        let acl = [&1_i32.to_be_bytes()[..], &31_i32.to_be_bytes(), &buffer(b"world"), &buffer(b"anyone")].concat();
        let body = [buffer(path.as_bytes()), buffer(data), acl, vec![0; 4]].concat();
        let (zxid, error, _) = self.ask(1, &body);
        (zxid, error)
    }

    /// A node's data, after what was acknowledged anywhere; or the error.
    fn data(&mut self, at: &str) -> Result<Vec<u8>, i32> {
        assert_eq!(self.ask(9, &buffer(b"/")).1, 0, "sync");
        match self.ask(4, &path(at)) {
            (_, 0, body) => Ok(body[4..4 + usize::try_from(i32_at(&body, 0)).unwrap()].to_vec()),
            (_, error, _) => Err(error),
        }
    }
}

const NO_NODE: i32 = -101;
const NODE_EXISTS: i32 = -110;

/// Three machines of an ensemble, each with its own file, on one: each starts from nothing but that file.
/// Three members' files of an ensemble, by ZooKeeper's names.
struct Ensemble {
    folder: tempfile::TempDir,
    base: u16,
}

impl Ensemble {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), base: free_ports() }
    }

    fn port(&self, what: u16, id: u16) -> u16 {
        self.base + what * 5 + id
    }

    fn client(&self, id: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port(0, id)))
    }

    fn start(&self, id: u16, words: &str, more: &[&str]) -> Keeper {
        self.start_of(&["participant"; 3], id, words, more)
    }

    /// Starts the member `id` of servers with these roles, the first of which is number 1.
    fn start_of(&self, roles: &[&str], id: u16, words: &str, more: &[&str]) -> Keeper {
        let cfg = self.write(roles, id, words);
        let mut args = vec!["--zoo-cfg", cfg.to_str().unwrap()];
        args.extend(more);
        Keeper::start(&self.data(id).join("log"), &args)
    }

    fn data(&self, id: u16) -> PathBuf {
        self.folder.path().join(format!("zk{id}"))
    }

    /// Writes the file of the member `id`; a server without a role is not listed.
    fn write(&self, roles: &[&str], id: u16, words: &str) -> PathBuf {
        let port = |what: u16, id: u16| self.port(what, id);
        let server = |(id, role): (u16, &&str)| {
            format!("server.{id}=127.0.0.1:{}:{}:{role};127.0.0.1:{}\n", port(1, id), port(2, id), port(0, id))
        };
        let servers: String = (1..).zip(roles).filter(|(_, role)| !role.is_empty()).map(server).collect();
        let data = self.data(id);
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("myid"), format!("{id}\n")).unwrap();
        let cfg = data.join("zoo.cfg");
        let text = format!(
            "tickTime=1000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nadmin.serverPort={}\n\
             4lw.commands.whitelist={words}\nfoo.bar=1\n{servers}",
            data.display(),
            port(3, id)
        );
        std::fs::write(&cfg, text).unwrap();
        cfg
    }
}

/// ClickHouse's words at real members: who leads gives it up when told to, and the sizes on disk are the node's.
#[test]
fn a_leader_that_is_told_to_yield_goes_back_among_the_others() {
    let ensemble = Ensemble::new();
    let start = |id| ensemble.start(id, "srvr,dirs,ydld", &["--compatibility", "clickhouse"]);
    let _keepers: Vec<Keeper> = (1..=3).map(start).collect();
    let leader = || {
        let leads =
            |id: &u16| four_letters(ensemble.client(*id), "srvr").is_ok_and(|said| said.contains("Mode: leader"));
        (1..=3).find(leads).ok_or("nobody leads")
    };
    let before = wait::until("somebody leads", leader);
    assert_eq!(Client::until_open(ensemble.client(before), 0).create("/a", b"").1, 0);
    let dirs = four_letters(ensemble.client(before), "dirs").unwrap();
    let log = dirs.lines().find_map(|line| line.strip_prefix("log_dir_size: "));
    assert!(log.unwrap().parse::<u64>().unwrap() > 0, "{dirs}");
    let said = four_letters(ensemble.client(before), "ydld").unwrap();
    assert_eq!(said.trim_end(), "Sent yield leadership request to leader.");
    wait::until("another leads", || leader().and_then(|now| if now == before { Err("the same") } else { Ok(now) }));
}

#[test]
fn an_ensembles_files_start_its_members() {
    let ensemble = Ensemble::new();
    let (folder, port) = (&ensemble.folder, |what, id| ensemble.port(what, id));
    let client = |id| ensemble.client(id);
    let start = |id| ensemble.start(id, "ruok,srvr,conf", &[]);
    let mut keepers: Vec<Keeper> = (1..=3).map(start).collect();
    for (keeper, id) in keepers.iter().zip(1..) {
        keeper.until_it_serves(client(id));
        assert_eq!(four_letters(client(id), "ruok").unwrap(), "imok");
        let conf = four_letters(client(id), "conf").unwrap();
        for line in [format!("clientPort={}\n", port(0, id)), "tickTime=1000\n".into(), format!("serverId={id}\n")] {
            assert!(conf.contains(&line), "{line} is not in {conf}");
        }
        assert!(keeper.said().contains("zoo.cfg:7: foo.bar is not honoured"), "{}", keeper.said());
    }
    let mut first = Client::until_open(client(1), 0);
    assert_eq!(first.create("/a", b"from the first").1, 0);
    assert_eq!(Client::until_open(client(3), 0).data("/a").unwrap(), b"from the first");

    // One goes and comes back, from the same file.
    keepers.remove(1).stop();
    assert_eq!(first.create("/b", b"without the second").1, 0);
    let second = start(2);
    second.until_it_serves(client(2));
    assert_eq!(Client::until_open(client(2), 0).data("/b").unwrap(), b"without the second");
    assert!(folder.path().join("zk2/statehouse/log").is_dir(), "our data is below dataDir");
}

/// It was fixed when the group was made, and a restart with another value only said so. Nobody may read the node but who knows a password;
/// the server is told not to ask, and to ask again.
#[test]
fn a_restart_switches_the_checks_of_acls_off_and_on_again() {
    const NO_AUTH: i32 = -102;
    let folder = tempfile::tempdir().unwrap();
    let base = free_ports();
    let [client, http, peer] = [0, 1, 2].map(|at| format!("127.0.0.1:{}", base + at));
    let data = folder.path().join("data");
    let fixed = ["--data-dir", data.to_str().unwrap(), "--client", &client, "--http", &http, "--peer", &peer];
    let log = folder.path().join("log");
    let address: SocketAddr = client.parse().unwrap();
    let secret = record(|out| {
        out.text("/secret").buffer(Some(b"1")).count(1).i32(31).text("digest").text("anna:unknown").i32(0);
    });
    let mut is_there = false;
    for skip in [false, true, false, true] {
        let flag = format!("--skip-acl={skip}");
        let keeper = Keeper::start(&log, &[&fixed[..], &[&flag]].concat());
        keeper.until_it_serves(address);
        let (mut connection, _) = Connection::until_open(address, &Hello::new(10_000));
        if !std::mem::replace(&mut is_there, true) {
            assert_eq!(connection.ask(op::CREATE, &secret).unwrap().error, 0);
        }
        let read = record(|out| _ = out.text("/secret").bool(false));
        let expected = if skip { 0 } else { NO_AUTH };
        assert_eq!(connection.ask(op::GET_DATA, &read).unwrap().error, expected, "skip-acl={skip}");
        let acl = connection.ask(op::GET_ACL, &record(|out| _ = out.text("/secret"))).unwrap();
        assert_eq!(acl.error, expected);
        assert!(!skip || String::from_utf8_lossy(&acl.body).contains("anna"), "it is kept");
        assert!(!keeper.said().contains("as the group was made with"), "{}", keeper.said());
        keeper.stop();
    }
}

/// A member whose line says `:observer` was refused, and had to be started and added by hand. It is started first here: it asks until the
/// others are up.
#[test]
fn an_ensembles_file_starts_an_observer_that_no_majority_counts() {
    const ROLES: [&str; 4] = ["participant", "participant", "participant", "observer"];
    let ensemble = Ensemble::new();
    let start = |id| ensemble.start_of(&ROLES, id, "srvr,mntr", &[]);
    let observer = start(4);
    wait::until("it says for whom it waits", || match observer.said() {
        said if said.contains("cannot join yet") => Ok(()),
        said => Err(said),
    });
    let mut keepers: Vec<Keeper> = (1..=3).map(start).collect();
    let client = |id| ensemble.client(id);
    observer.until_it_serves(client(4));
    assert!(four_letters(client(4), "srvr").unwrap().contains("Mode: observer\n"));
    let mut at_it = Client::until_open(client(4), 0);
    assert_eq!(at_it.create("/a", b"of the observer").1, 0);
    let mut first = Client::until_open(client(1), 0);
    assert_eq!(first.data("/a").unwrap(), b"of the observer");
    assert_eq!(first.create("/b", b"of the first").1, 0);
    assert_eq!(at_it.data("/b").unwrap(), b"of the first");
    let config = wait::until("a configuration of four", || {
        let config = String::from_utf8(at_it.data("/zookeeper/config").unwrap()).unwrap();
        let roles = (config.matches(":participant").count(), config.matches(":observer").count());
        if roles == (3, 1) { Ok(config) } else { Err(config) }
    });
    assert!(config.contains(&format!("server.4=127.0.0.1:{}:", ensemble.port(1, 4))), "{config}");

    // Were it counted, two of four would be no majority.
    observer.kill();
    keepers.pop().unwrap().kill();
    let mut first = wait::until("two of three go on", || {
        let (mut client, _) = Connection::open(client(1), &Hello::new(10_000))?;
        match client.create("/c", b"without it", 0)?.error {
            0 | NODE_EXISTS => Ok(client),
            error => Err(io::Error::other(format!("error {error}"))),
        }
    });
    // It comes back by itself, and nobody has to be asked: it is a member.
    let observer = start(4);
    observer.until_it_serves(client(4));
    assert_eq!(Client::until_open(client(4), 0).data("/c").unwrap(), b"without it");
    assert_eq!(first.create("/d", b"", 0).unwrap().error, 0);
    let said = observer.said();
    assert_eq!(said.matches("this node has joined").count(), 1, "{said}");
}

/// An ensemble's files were read at the first start, and an edited one kept the member from starting again. A server comes as an observer,
/// then votes, and another one goes, by nothing but edited files.
#[test]
fn an_ensemble_becomes_what_its_edited_files_say() {
    const VOTES: &str = "participant";
    let ensemble = Ensemble::new();
    let write = |roles: &[&str], all: &[u16]| all.iter().for_each(|id| _ = ensemble.write(roles, *id, "srvr"));
    let start = |roles: &[&str], id| ensemble.start_of(roles, id, "srvr", &["--members-from-config"]);
    let client = |id| ensemble.client(id);
    let until_mode = |id, modes: &[&str]| {
        wait::until(&format!("server {id} is {modes:?}"), || match four_letters(client(id), "srvr") {
            Ok(said) if modes.iter().any(|mode| said.contains(&format!("Mode: {mode}\n"))) => Ok(()),
            said => Err(said),
        });
    };
    // Leaders come and go meanwhile: clients come again.
    let create = |id, path: &str| {
        wait::until(&format!("{path} is made at server {id}"), || {
            let (mut connection, _) = Connection::open(client(id), &Hello::new(10_000))?;
            match connection.create(path, b"", 0)?.error {
                0 | NODE_EXISTS => Ok(()),
                error => Err(io::Error::other(format!("error {error}"))),
            }
        });
    };
    let read = |id, path: &str| {
        let (mut connection, _) = Connection::open(client(id), &Hello::new(10_000))?;
        connection.ask(op::SYNC, &record(|out| _ = out.text("/")))?;
        let reply = connection.ask(op::GET_DATA, &record(|out| _ = out.text(path).bool(false)))?;
        match reply.error {
            0 => Ok(String::from_utf8_lossy(&reply.body).into_owned()),
            error => Err(io::Error::other(format!("error {error}"))),
        }
    };
    let mut keepers: Vec<Keeper> = (1..=2).map(|id| start(&[VOTES; 2], id)).collect();
    keepers[0].until_it_serves(client(1));
    create(1, "/a");

    let roles = [VOTES, VOTES, "observer"];
    write(&roles, &[1, 2]);
    keepers.push(start(&roles, 3));
    keepers[2].until_it_serves(client(3));
    until_mode(3, &["observer"]);
    wait::until("what was made at another one", || read(3, "/a"));

    write(&[VOTES; 3], &[1, 2, 3]);
    until_mode(3, &["follower", "leader"]);
    // Of three, one may be away; and it comes back with the file as it is now.
    keepers.remove(1).stop();
    create(3, "/b");
    keepers.push(start(&[VOTES; 3], 2));
    keepers[2].until_it_serves(client(2));

    write(&["", VOTES, VOTES], &[1, 2, 3]);
    wait::until_true("server 1 is gone", || keepers[0].said().contains("node 1 was removed from the cluster"));
    wait::until("two servers are left", || match read(2, "/zookeeper/config") {
        Ok(config) if config.matches(":participant").count() == 2 && !config.contains("server.1=") => Ok(()),
        said => Err(said),
    });
    wait::until("all that was made", || read(2, "/a").and_then(|_| read(2, "/b")));
}

#[test]
fn what_a_file_contradicts_is_said_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let cfg = folder.path().join("zoo.cfg");
    let data = folder.path().join("data");
    std::fs::write(&cfg, format!("dataDir={}\nclientPort=2182\nserver.1=127.0.0.1:1:2;2181\n", data.display()))
        .unwrap();
    let refused = run(program::command().arg("keeper").arg("--zoo-cfg").arg(&cfg), b"");
    refused.fails(2, &["zoo.cfg:2: clientPort is 2182, but server.1 on line 3", "try: "]);
    assert!(!data.exists());
    // A port that somebody has, before the data directory is made.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(&cfg, format!("dataDir={}\nclientPort={}\n", data.display(), taken.local_addr().unwrap().port()))
        .unwrap();
    let refused = run(program::command().arg("keeper").arg("--zoo-cfg").arg(&cfg).args(["--http", "127.0.0.1:0"]), b"");
    refused.fails(1, &["--client", "another process listens there"]);
    assert!(!data.exists());
}

/// The move from ZooKeeper, with a client that stays up through it.
#[test]
fn a_servers_data_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let base = free_ports();
    let (http, peer, address) = (base, base + 1, SocketAddr::from(([127, 0, 0, 1], base + 2)));
    let http_address = SocketAddr::from(([127, 0, 0, 1], http));
    let server = format!("http://127.0.0.1:{http}");
    let import = |dir: &Path, more: &[&str]| {
        let mut command = program::command();
        command.arg("keeper-import").arg(dir).args(["--server", &server]).args(more);
        run(&mut command, b"")
    };
    // Without a server the directory can still be looked at.
    let dry = import(&dump(), &["--dry-run", "-o", "json"]).ok();
    let dry: serde_json::Value = serde_json::from_str(&dry).unwrap();
    let zxid = i64::from_str_radix(dry["zxid"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(dry["ephemerals_left_out"], 1);

    let data = folder.path().join("data");
    let (http, peer, client) = (format!("127.0.0.1:{http}"), format!("127.0.0.1:{peer}"), address.to_string());
    let data = data.to_str().unwrap();
    let args = ["--data-dir", data, "--http", &http, "--peer", &peer, "--client", &client, "--tick-time-ms", "1000"];
    let keeper = Keeper::start(&folder.path().join("log"), &args);
    keeper.until_it_serves(address);

    // A damaged dump is refused with its place, and nothing happens.
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for name in ["snapshot.3a", "log.3b"] {
        let mut bytes = std::fs::read(dump().join(name)).unwrap();
        if name == "log.3b" {
            bytes[100] ^= 1;
        }
        std::fs::write(broken.join(name), bytes).unwrap();
    }
    import(&broken, &[]).fails(1, &["log.3b is damaged at offset 77", "another member", "try: "]);

    // A client of the old ensemble has seen more than an empty group can know.
    assert!(Client::open(address, zxid).is_err(), "it is turned away: its time must not go back");
    let said = import(&dump(), &[]).ok();
    assert!(said.contains("counted and all there"), "{said}");
    let mut stayed = Client::until_open(address, zxid);
    assert_eq!(stayed.data("/app").unwrap(), b"root, changed");
    assert_eq!(stayed.data("/multi/a").unwrap(), b"1");
    assert_eq!(stayed.data("/live/eph"), Err(NO_NODE));
    let (_, error, stat) = stayed.ask(3, &path("/app"));
    // czxid, mzxid, …, version, cversion: as in tests/keeper/plain/tree.json.
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dump().join("tree.json")).unwrap()).unwrap();
    let wanted: Vec<i64> =
        json["/app"]["stat"].as_array().unwrap().iter().map(|field| field.as_i64().unwrap()).collect();
    assert_eq!(error, 0);
    assert_eq!((i64_at(&stat, 0), i64_at(&stat, 8), i64_at(&stat, 60)), (wanted[0], wanted[1], wanted[10]));
    assert_eq!(i64::from(i32_at(&stat, 32)), wanted[4], "version");
    assert_eq!(i64::from(i32_at(&stat, 36)), wanted[5], "cversion");
    let (next, error) = stayed.create("/after", b"");
    assert_eq!(error, 0);
    assert!(next > zxid, "transactions count on: {next:x} after {zxid:x}");

    // A group that was made by hand is made anew as it was made.
    let by_hand = SocketAddr::from(([127, 0, 0, 1], base + 3)).to_string();
    let mut create = program::command();
    create.args([
        "group",
        "create",
        "by-hand",
        "--module",
        "znode-tree",
        "--param",
        "skip_acl=true",
        "--server",
        &server,
    ]);
    run(create.args(["--listen", &by_hand, "--listen-param", "tick_time_ms=700"]), b"").ok();
    let said = {
        let mut command = program::command();
        command.arg("keeper-import").arg(dump()).args(["--server", &server, "--group", "by-hand"]);
        run(&mut command, b"")
    };
    assert!(
        said.err.contains("statehouse group create by-hand --module znode-tree --param 'skip_acl=true'"),
        "{said:?}"
    );
    said.ok();
    let view = Http::new(http_address).get("/v1/groups/by-hand").expect(200).json();
    assert_eq!((&view["listen"][0], &view["params"]["skip_acl"]), (&by_hand.clone().into(), &true.into()));
    assert_eq!(view["listen_params"], serde_json::json!({"tick_time_ms": 700}));
    assert_eq!(Client::until_open(by_hand.parse().unwrap(), zxid).data("/app").unwrap(), b"root, changed");

    // Now that clients write, a second import would destroy what they wrote.
    import(&dump(), &[]).fails(1, &["clients have written", "statehouse group rm keeper"]);
    keeper.stop();
    let keeper = Keeper::start(&folder.path().join("log"), &args);
    keeper.until_it_serves(address);
    assert_eq!(Client::until_open(address, next).data("/app").unwrap(), b"root, changed");
}

#[test]
fn local_starts_three_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let base = free_ports();
    let mut command = program::command();
    command.args(["local", "--nodes", "3", "--keeper", "-o", "json", "--data-dir"]).arg(folder.path());
    for (flag, port) in [("--http-base", base), ("--peer-base", base + 5), ("--client-base", base + 10)] {
        command.args([flag, &port.to_string()]);
    }
    let out = folder.path().join("out");
    let file = File::create(&out).unwrap();
    let err = File::create(folder.path().join("err")).unwrap();
    let child = command.stdin(Stdio::null()).stdout(file).stderr(err).spawn().unwrap();
    let local = Keeper::of(child, &folder.path().join("err"));
    let said = wait::until("the nodes are announced", || {
        let text = std::fs::read_to_string(&out).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).map_err(|error| format!("{error}: {text}\n{}", local.said()))
    });
    for (number, node) in said["nodes"].as_array().unwrap().iter().enumerate() {
        let client: SocketAddr = node["client"].as_str().unwrap().parse().unwrap();
        assert_eq!(usize::from(client.port()), usize::from(base) + 10 + number);
        Client::until_open(client, 0);
    }
    local.stop();
}
