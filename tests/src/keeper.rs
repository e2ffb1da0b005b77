//! `statehouse keeper` in a process of its own, and a client of ZooKeeper that hides nothing: it sends the frames that it
//! is given.

use std::fs::OpenOptions;
use std::io;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use znode_tree::jute::Reader;
use znode_tree::jute::Writer;
use znode_tree::wire::Stat;
use znode_tree::wire::op;

use crate::cluster::own_address;
use crate::http::Http;
use crate::http::Request;
use crate::program;
use crate::wait;

/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// How long an answer to a word may take that is asked again.
const WORD_TIME_MAX: Duration = Duration::from_secs(2);

/// A node; it ends with this value.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    log: PathBuf,
}

impl Keeper {
    /// Starts `statehouse keeper` with `args`; what it prints goes behind what `log` holds.
    pub fn start(log: &Path, args: &[&str]) -> Self {
        let mut command = program::command();
        command.arg("keeper").arg("--exit-with-parent").args(args);
        Self::spawn(log, command)
    }

    /// Any other program, started and ended in the same way.
    pub fn spawn(log: &Path, mut command: std::process::Command) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self::of(child, log)
    }

    /// What was started already.
    pub fn of(child: Child, log: &Path) -> Self {
        Self { child, log: log.to_owned() }
    }

    /// Everything it printed.
    pub fn said(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Asks it to stop, and waits until it did.
    #[track_caller]
    pub fn stop(mut self) {
        program::signal(&self.child, Signal::TERM);
        let ended = program::wait(&mut self.child, Duration::from_secs(30));
        assert!(ended.is_some_and(|status| status.success()), "{}", self.said());
    }

    /// `kill -9`.
    pub fn kill(self) {
        drop(self);
    }

    /// Waits until it gives sessions at `address`.
    #[track_caller]
    pub fn until_it_serves(&self, address: SocketAddr) {
        wait::until(&format!("{address} serves ZooKeeper's clients"), || {
            // ZooKeeper forgets a word that it was asked while it started.
            match word_within(address, "srvr", WORD_TIME_MAX) {
                Ok(answer) if answer.contains("Zxid") => Ok(()),
                other => Err(format!("{other:?}; it said:\n{}", self.said())),
            }
        });
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects, with patience for answers but not without end.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The answer to a four-letter word.
pub fn four_letters(address: SocketAddr, word: &str) -> io::Result<String> {
    word_within(address, word, ANSWER_TIME_MAX)
}

fn word_within(address: SocketAddr, word: &str, patience: Duration) -> io::Result<String> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(word.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A record's bytes.
pub fn record(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Writer::new(&mut bytes));
    bytes
}

/// A frame: the record with its length before it.
pub fn frame(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let record = record(write);
    let mut bytes = u32::try_from(record.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&record);
    bytes
}

/// What a client says first.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The newest zxid that it has seen.
    pub zxid: i64,
    /// The session timeout that it wants, milliseconds.
    pub timeout_ms: i32,
    /// The session that it has; 0 for none.
    pub session: i64,
    /// That session's password.
    pub password: Vec<u8>,
    /// Whether it ends with the byte that clients before 3.4 do not send.
    pub has_read_only: bool,
}

impl Hello {
    /// For a new session.
    pub fn new(timeout_ms: i32) -> Self {
        Self { zxid: 0, timeout_ms, session: 0, password: vec![0; 16], has_read_only: true }
    }

    /// For this session again.
    pub fn again(welcome: &Welcome) -> Self {
        let (session, password) = (welcome.session, welcome.password.clone());
        Self { session, password, ..Self::new(welcome.timeout_ms) }
    }

    /// Its frame.
    pub fn frame(&self) -> Vec<u8> {
        frame(|out| {
            out.i32(0).i64(self.zxid).i32(self.timeout_ms).i64(self.session).buffer(Some(&self.password));
            if self.has_read_only {
                out.bool(false);
            }
        })
    }
}

/// What a server says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The timeout that it grants, milliseconds; 0 when there is no such session.
    pub timeout_ms: i32,
    /// The session; 0 when there is no such session.
    pub session: i64,
    /// What shows at another node that the session is this client's.
    pub password: Vec<u8>,
    /// The last byte, for those that sent one.
    pub read_only: Option<u8>,
}

impl Welcome {
    /// Reads the record.
    pub fn read(record: &[u8]) -> Self {
        let mut reader = Reader::new(record);
        assert_eq!(reader.i32().unwrap(), 0, "the protocol's version");
        let (timeout_ms, session) = (reader.i32().unwrap(), reader.i64().unwrap());
        let password = reader.buffer().unwrap().unwrap().to_vec();
        let read_only = reader.u8().ok();
        assert!(reader.rest().is_empty(), "{:?}", reader.rest());
        Self { timeout_ms, session, password, read_only }
    }
}

/// A frame from the server: a reply, or with the xid -1 a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of the request.
    pub xid: i32,
    /// Of the transaction, or the newest known.
    pub zxid: i64,
    /// ZooKeeper's number of an error; 0 for none.
    pub error: i32,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Reply {
    /// Whether it is a notification.
    pub fn is_event(&self) -> bool {
        self.xid == NOTIFICATION_XID
    }

    /// The body as a stat, behind `skip`.
    pub fn stat(&self, skip: impl FnOnce(&mut Reader<'_>)) -> Stat {
        let mut reader = Reader::new(&self.body);
        skip(&mut reader);
        Stat::read(&mut reader).unwrap()
    }

    /// The type and path of a notification.
    pub fn event(&self) -> (i32, String) {
        assert!(self.is_event(), "{self:?}");
        let mut reader = Reader::new(&self.body);
        let (kind, _state) = (reader.i32().unwrap(), reader.i32().unwrap());
        (kind, String::from_utf8_lossy(reader.buffer().unwrap().unwrap()).into_owned())
    }
}

/// The xid of notifications.
pub const NOTIFICATION_XID: i32 = -1;
/// The xid of pings.
pub const PING_XID: i32 = -2;
/// The xid of auth packets.
pub const AUTH_XID: i32 = -4;
/// In an ACL that lets everybody do everything.
const ALL: i32 = 31;

/// A connection to a server.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    xid: i32,
}

impl Connection {
    /// Connects and says hello. A refusal (`Welcome::timeout_ms` is 0) is an answer too.
    pub fn open(address: SocketAddr, hello: &Hello) -> io::Result<(Self, Welcome)> {
        let mut connection = Self { stream: BufReader::new(connect(address)?), xid: 0 };
        connection.send(&hello.frame())?;
        let welcome = Welcome::read(&connection.receive()?);
        Ok((connection, welcome))
    }

    /// A new session, as soon as the server gives one.
    #[track_caller]
    pub fn until_open(address: SocketAddr, hello: &Hello) -> (Self, Welcome) {
        wait::until("a session", || match Self::open(address, hello) {
            Ok((connection, welcome)) if welcome.timeout_ms > 0 => Ok((connection, welcome)),
            other => Err(format!("{other:?}")),
        })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// How long answers may take from now on.
    pub fn be_patient(&mut self, patience: Duration) -> io::Result<()> {
        self.stream.get_mut().set_read_timeout(Some(patience))
    }

    /// Sends a ping and waits for the answer; the notifications before it are lost.
    pub fn ping(&mut self) -> io::Result<()> {
        self.send(&frame(|out| _ = out.i32(PING_XID).i32(op::PING)))?;
        while self.reply()?.xid != PING_XID {}
        Ok(())
    }

    /// Tells the server that no more will come.
    pub fn end(&mut self) -> io::Result<()> {
        self.stream.get_mut().shutdown(std::net::Shutdown::Write)
    }

    /// The next frame's record.
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut record = vec![0; usize::try_from(i32::from_be_bytes(length)).map_err(io::Error::other)?];
        self.stream.read_exact(&mut record)?;
        Ok(record)
    }

    /// The next reply or notification.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let record = self.receive()?;
        let mut reader = Reader::new(&record);
        let mut head = || -> Result<Reply, znode_tree::jute::Malformed> {
            let (xid, zxid, error) = (reader.i32()?, reader.i64()?, reader.i32()?);
            Ok(Reply { xid, zxid, error, body: reader.rest().to_vec() })
        };
        head().map_err(|_| io::Error::other(format!("{} bytes are no reply", record.len())))
    }

    /// Sends a request, and gives its xid.
    pub fn post(&mut self, operation: i32, body: &[u8]) -> io::Result<i32> {
        self.xid += 1;
        let xid = self.xid;
        self.send(&frame(|out| _ = out.i32(xid).i32(operation).raw(body)))?;
        Ok(xid)
    }

    /// Sends a request and waits for the reply; the notifications before it are lost.
    pub fn ask(&mut self, operation: i32, body: &[u8]) -> io::Result<Reply> {
        let xid = self.post(operation, body)?;
        loop {
            let reply = self.reply()?;
            if !reply.is_event() {
                assert_eq!(reply.xid, xid, "the reply to another request");
                return Ok(reply);
            }
        }
    }

    /// Creates a node that is open to all.
    pub fn create(&mut self, path: &str, data: &[u8], flags: i32) -> io::Result<Reply> {
        let body = record(|out| {
            out.text(path).buffer(Some(data)).count(1).i32(ALL).text("world").text("anyone").i32(flags);
        });
        self.ask(op::CREATE, &body)
    }

    /// A node's stat, after all that was acknowledged anywhere; or the error.
    pub fn stat(&mut self, path: &str) -> io::Result<Result<Stat, i32>> {
        self.ask(op::SYNC, &record(|out| _ = out.text("/")))?;
        let reply = self.ask(op::EXISTS, &record(|out| _ = out.text(path).bool(false)))?;
        Ok(if reply.error == 0 { Ok(reply.stat(|_| {})) } else { Err(reply.error) })
    }
}

/// Keepers that are one cluster, at an address of their own.
#[derive(Debug)]
pub struct Ensemble {
    nodes: Vec<Option<Keeper>>,
    /// How many of them began the cluster; the others joined.
    founders: usize,
    address: IpAddr,
    flags: Vec<String>,
    folder: tempfile::TempDir,
}

impl Ensemble {
    /// So many nodes that serve.
    #[track_caller]
    pub fn start(count: usize, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut ensemble = Self { nodes: Vec::new(), founders: count, address: own_address(), flags, folder };
        ensemble.nodes.resize_with(count, || None);
        for number in 0..count {
            ensemble.spawn(number);
        }
        for number in 0..count {
            ensemble.until_serving(number);
        }
        ensemble
    }

    /// Where the clients of node `number`, from 0, connect.
    pub fn client(&self, number: usize) -> SocketAddr {
        self.port(2181, number)
    }

    /// The same of all.
    pub fn clients(&self) -> Vec<SocketAddr> {
        (0..self.nodes.len()).map(|number| self.client(number)).collect()
    }

    fn port(&self, base: u16, number: usize) -> SocketAddr {
        SocketAddr::new(self.address, base + u16::try_from(number).unwrap())
    }

    fn spawn(&mut self, number: usize) {
        let peers: Vec<_> =
            (0..self.founders).map(|number| format!("{}={}", number + 1, self.port(7170, number))).collect();
        let id = (number + 1).to_string();
        let data = self.folder.path().join(format!("node-{id}"));
        let (client, http) = (self.client(number).to_string(), self.port(7070, number).to_string());
        let (peer, peers) = (self.port(7170, number).to_string(), peers.join(","));
        let mut args = vec!["--node-id", &id, "--data-dir", data.to_str().unwrap(), "--log-segment-bytes", "8MiB"];
        args.extend(["--client", &client, "--http", &http, "--peer", &peer]);
        if !self.flags.iter().any(|flag| flag == "--four-letter-words") {
            args.extend(["--four-letter-words", "*"]);
        }
        let through = self.port(7170, 0).to_string();
        match number {
            joins if joins >= self.founders => args.extend(["--join", &through]),
            _ if self.founders > 1 => args.extend(["--initial-cluster", &peers]),
            _ => {}
        }
        args.extend(self.flags.iter().map(String::as_str));
        let log = self.folder.path().join(format!("node-{id}.log"));
        self.nodes[number] = Some(Keeper::start(&log, &args));
    }

    fn node(&self, number: usize) -> &Keeper {
        self.nodes[number].as_ref().expect("the node runs")
    }

    /// Waits until the node serves clients.
    #[track_caller]
    pub fn until_serving(&self, number: usize) {
        self.node(number).until_it_serves(self.client(number));
    }

    /// The node that leads, when there is one.
    #[track_caller]
    pub fn leader(&self) -> usize {
        wait::until("a keeper that leads", || {
            let running = (0..self.nodes.len()).filter(|number| self.nodes[*number].is_some());
            let answers: Vec<_> =
                running.map(|number| (number, word_within(self.client(number), "srvr", WORD_TIME_MAX))).collect();
            let leads = |answer: &io::Result<String>| answer.as_ref().is_ok_and(|said| said.contains("Mode: leader"));
            answers.iter().find(|(_, answer)| leads(answer)).map(|(number, _)| *number).ok_or(answers)
        })
    }

    /// Starts a node that was killed, with its directory and its flags; whether it will serve is another matter.
    pub fn start_again(&mut self, number: usize) {
        self.spawn(number);
    }

    /// Everything that a running node printed.
    pub fn said(&self, number: usize) -> String {
        self.node(number).said()
    }

    /// Makes a node that has joined a full one, asked at another.
    #[track_caller]
    pub fn add(&self, through: usize, number: usize) {
        let server = format!("http://{}", self.port(7070, through));
        let id = (number + 1).to_string();
        program::run(program::command().args(["node", "add", &id, "--server", &server]), b"").ok();
    }

    /// The nodes that vote in a group, by number, as `through` knows it.
    #[track_caller]
    pub fn voters(&self, through: usize, group: &str) -> Vec<usize> {
        let path = format!("/v1/groups/{group}/members");
        let view = self.http(through).send(&Request::new("GET", &path)).unwrap().expect(200).json();
        let members = view["members"].as_array().unwrap().iter().filter(|member| member["role"] == "voter");
        members.map(|member| usize::try_from(member["id"].as_u64().unwrap()).unwrap() - 1).collect()
    }

    /// Starts a node that joins through the first one, and waits until it has; its number. It gets no clients yet.
    #[track_caller]
    pub fn join(&mut self) -> usize {
        let number = self.nodes.len();
        self.nodes.push(None);
        self.spawn(number);
        let mut ready = self.http(number);
        wait::until(&format!("node {} has joined", number + 1), || match ready.send(&Request::new("GET", "/readyz")) {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}; it said:\n{}", self.node(number).said())),
        });
        number
    }

    /// The HTTP API of a node.
    pub fn http(&self, number: usize) -> Http {
        Http::new(self.port(7070, number))
    }

    /// Waits until a node has ended because it was removed.
    #[track_caller]
    pub fn until_removed(&mut self, number: usize) {
        let mut node = self.nodes[number].take().expect("the node runs");
        let ended = program::wait(&mut node.child, wait::PATIENCE);
        assert_eq!(ended.and_then(|status| status.code()), Some(5), "{}", node.said());
    }

    /// `kill -9`.
    pub fn kill(&mut self, number: usize) {
        self.nodes[number].take().expect("the node runs").kill();
    }

    /// Stops a node in order, starts it again, and waits until it serves.
    #[track_caller]
    pub fn restart(&mut self, number: usize) {
        self.nodes[number].take().expect("the node runs").stop();
        self.spawn(number);
        self.until_serving(number);
    }
}
