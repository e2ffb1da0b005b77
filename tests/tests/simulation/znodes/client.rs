//! One client of ZooKeeper's: a session that goes from node to node, requests many at once, watches; and what it holds
//! its servers to while it goes on:
//! - answers come in the order of the requests, and know more and more: no zxid is lower than one before, on no node;
//! - the notification of a change comes before any answer that knows of the change, also after the session was taken to
//!   another node;
//! - nothing is notified that is not watched.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;

use statehouse::sim::SimRandom;
use znode_tree::wire::ErrorCode;
use znode_tree::wire::EventType;
use znode_tree::wire::Stat;

use super::ADDRESS;
use super::history::Ephemeral;
use super::history::History;
use super::wire::Body;
use super::wire::Frame;
use super::wire::Greeting;
use super::wire::Request;
use super::wire::SET_WATCHES_XID;
use super::wire::Wire;
use super::wire::flags;
use crate::clients::Placed;
use crate::register::Action;
use crate::register::Operation;
use crate::register::Seen;
use crate::world::Shared;
use crate::world::now;
use crate::world::sleep_ms;

/// Nodes that are always there.
pub const REGISTERS: [&str; 3] = ["/registers/0", "/registers/1", "/registers/2"];
/// Two nodes that are set together.
pub const PAIR: [&str; 2] = ["/pair/left", "/pair/right"];
/// Nodes that come and go.
const COMING: [&str; 3] = ["/coming/0", "/coming/1", "/coming/2"];
pub const SEQUENCE: &str = "/sequence";
pub const EPHEMERALS: &str = "/ephemerals";
/// Requests of one client that are under way.
const UNDER_WAY_MAX: usize = 24;

pub type SharedHistory = Arc<Mutex<History>>;

/// A request under way.
struct Asked {
    xid: i32,
    request: Request,
    called: u64,
    /// The end of a sync just before it, which makes a read as good as a write.
    synced: Option<u64>,
    /// Of a set with a version: the value that has it.
    expected: Option<u64>,
}

/// See the file's head.
pub struct Client {
    world: Shared,
    history: SharedHistory,
    random: SimRandom,
    number: u64,
    written: u64,
    pub session: Option<(u64, [u8; 16])>,
    timeout_ms: u64,
    /// The newest zxid that it was told.
    pub zxid: i64,
    /// The newest zxid that it was told by an answer.
    answered_zxid: i64,
    /// What is watched: creation and last change of a node that is there, none of one that is not.
    watched: BTreeMap<String, Option<(i64, i64)>>,
    /// Nodes whose children are watched, and the last change of these.
    watched_children: BTreeMap<String, i64>,
    /// What it last saw of registers: version and value.
    known: BTreeMap<String, (i32, u64)>,
    /// The ephemeral nodes of its session.
    own: Vec<String>,
    node: u64,
}

impl Client {
    pub fn new(world: Shared, history: SharedHistory, random: SimRandom, number: u64) -> Self {
        Self {
            world,
            history,
            random,
            number,
            written: 0,
            session: None,
            timeout_ms: 0,
            zxid: 0,
            answered_zxid: 0,
            watched: BTreeMap::new(),
            watched_children: BTreeMap::new(),
            known: BTreeMap::new(),
            own: Vec::new(),
            node: 0,
        }
    }

    fn problem(&self, what: String) {
        let session = self.session.map_or(0, |(id, _)| id);
        self.world.problem(format!("client {} at node {}, session {session:#x}: {what}", self.number, self.node));
    }

    fn next_value(&mut self) -> u64 {
        self.written += 1;
        self.number * 1_000_000 + self.written
    }

    /// Lives until the world stops.
    pub async fn run(mut self) -> Self {
        while !self.world.stopped() {
            let node = self.world.any_node(&mut self.random);
            match self.connect(node).await {
                Some(wire) => self.serve(wire).await,
                None => sleep_ms(self.random.between(20, 300)).await,
            }
        }
        self
    }

    /// A connection to a node, with the session in it; a new one if the old is over.
    pub async fn connect(&mut self, node: u64) -> Option<Wire> {
        let mut wire = Wire::new(self.world.cluster.connect(node, ADDRESS)?);
        let timeout_ms = i32::try_from(self.random.between(1_500, 4_000)).unwrap();
        match wire.greet(self.zxid, timeout_ms, self.session).await {
            Greeting::Session { id, password, timeout_ms } => {
                match self.session {
                    Some((known, secret)) if known != id || secret != password => {
                        self.problem(format!("asked for session {known:#x}, given {id:#x}"));
                    }
                    Some(_) if self.node != node => self.world.count("sessions taken to another node"),
                    Some(_) => self.world.count("sessions taken up again"),
                    None => self.world.count("sessions opened"),
                }
                self.node = node;
                self.timeout_ms = u64::try_from(timeout_ms).unwrap();
                self.session = Some((id, password));
                Some(wire)
            }
            Greeting::Over => {
                self.world.count("sessions that were over");
                self.lose_session(None);
                None
            }
            Greeting::Nothing => {
                self.world.count("handshakes refused");
                None
            }
        }
    }

    fn lose_session(&mut self, at: Option<i64>) {
        let Some((id, _)) = self.session.take() else {
            return self.problem("a new session is over at once".to_owned());
        };
        self.world.note(format!("client {} lost session {id:#x}", self.number));
        self.history.lock().unwrap().over.insert(id, at);
        self.watched.clear();
        self.watched_children.clear();
        self.own.clear();
    }

    /// One connection, until it ends or the client has enough of it.
    async fn serve(&mut self, mut wire: Wire) {
        let mut asked = VecDeque::new();
        let mut xid = 0;
        if !self.watched.is_empty() || !self.watched_children.is_empty() {
            let there = |is: bool| self.watched.iter().filter(move |(_, node)| node.is_some() == is);
            let paths = |is| there(is).map(|(path, _)| path.clone()).collect();
            let (data, exist, child) = (paths(true), paths(false), self.watched_children.keys().cloned().collect());
            self.send(&wire, &mut asked, SET_WATCHES_XID, Request::SetWatches { zxid: self.zxid, data, exist, child });
            // Until it is answered nothing else is asked, so that the answers know what the server was told.
            if !self.receive_all(&mut wire, &mut asked).await {
                return;
            }
        }
        let mut left = self.random.between(3, 30);
        while left > 0 && !self.world.stopped() {
            left -= 1;
            if left == 0 && self.random.chance(200) {
                xid += 1;
                self.send(&wire, &mut asked, xid, Request::CloseSession);
                break;
            }
            for request in self.batch() {
                xid += 1;
                self.send(&wire, &mut asked, xid, request);
            }
            if asked.len() > UNDER_WAY_MAX || self.random.chance(600) {
                if !self.receive_all(&mut wire, &mut asked).await {
                    return;
                }
                sleep_ms(self.random.between(0, 300)).await;
            }
        }
        if !self.receive_all(&mut wire, &mut asked).await {
            return;
        }
        if self.session.is_some() && self.random.chance(60) {
            drop(wire);
            // So long that the session may be over.
            self.world.count("clients that went silent");
            sleep_ms(self.timeout_ms + self.random.between(0, 3_000)).await;
        }
    }

    /// Some requests that are sent together.
    fn batch(&mut self) -> Vec<Request> {
        let random = &mut self.random;
        let watch = random.chance(300);
        let path = |from: &[&str], random: &mut SimRandom| (*random.pick(from).unwrap()).to_owned();
        match random.between(0, 99) {
            0..18 => {
                let path = path(&REGISTERS, random);
                let value = self.next_value();
                let known = self.known.get(&path).map_or(-1, |(version, _)| *version);
                let version = if self.random.chance(400) { known } else { -1 };
                vec![Request::Set { path, value, version }]
            }
            18..32 => {
                let path = path(&REGISTERS, random);
                vec![Request::Sync { path: path.clone() }, Request::Get { path, watch }]
            }
            32..40 => vec![Request::Get { path: path(&REGISTERS, random), watch }],
            40..50 => {
                let path = path(&COMING, random);
                vec![Request::Create { path, value: self.next_value(), flags: flags::PERSISTENT }]
            }
            50..55 => vec![Request::Delete { path: path(&COMING, random), version: -1 }],
            55..60 => {
                let path = path(&COMING, random);
                vec![Request::Set { path, value: self.next_value(), version: -1 }]
            }
            60..66 => vec![Request::Exists { path: path(&COMING, random), watch }],
            66..70 => vec![Request::Get { path: path(&COMING, random), watch }],
            70..76 => {
                let flags = if random.chance(200) { flags::EPHEMERAL_SEQUENTIAL } else { flags::SEQUENTIAL };
                vec![Request::Create { path: format!("{SEQUENCE}/n-"), value: self.next_value(), flags }]
            }
            76..82 => {
                let value = self.next_value();
                vec![Request::Create { path: format!("{EPHEMERALS}/e{value}"), value, flags: flags::EPHEMERAL }]
            }
            82..87 => match random.pick(&self.own).cloned() {
                Some(path) => vec![Request::Get { path, watch: false }],
                None => Vec::new(),
            },
            87..92 => vec![Request::Children { path: path(&["/coming", EPHEMERALS], random), watch }],
            92..96 => {
                let value = self.next_value();
                // A check that holds seldom: then none of it may be done.
                let check = self.random.chance(300).then(|| (PAIR[0].to_owned(), 3));
                vec![Request::Multi { check, sets: PAIR.iter().map(|path| ((*path).to_owned(), value)).collect() }]
            }
            _ => PAIR.iter().map(|path| Request::Get { path: (*path).to_owned(), watch: false }).collect(),
        }
    }

    fn send(&mut self, wire: &Wire, asked: &mut VecDeque<Asked>, xid: i32, request: Request) {
        wire.send(&request.frame(xid));
        let called = now();
        let synced = match asked.back() {
            Some(Asked { request: Request::Sync { .. }, called, .. }) => Some(*called),
            _ => None,
        };
        let expected = match &request {
            Request::Set { path, version, .. } if *version >= 0 => {
                self.known.get(path).filter(|(known, _)| known == version).map(|(_, value)| *value)
            }
            _ => None,
        };
        asked.push_back(Asked { xid, request, called, synced, expected });
    }

    /// Receives until nothing is under way; false when the connection is over.
    async fn receive_all(&mut self, wire: &mut Wire, asked: &mut VecDeque<Asked>) -> bool {
        while !asked.is_empty() {
            let goes_on = match wire.frame().await {
                Some(Ok(Frame::Event { zxid, event, path })) => {
                    self.notified(zxid, event, &path);
                    true
                }
                Some(Ok(Frame::Reply { xid, zxid, error, body })) => {
                    let first = asked.pop_front().unwrap();
                    if first.xid != xid {
                        self.problem(format!("the answer to {xid} comes before that to {}", first.xid));
                    }
                    self.answered(first, zxid, error, &body)
                }
                Some(Err(_)) => {
                    self.problem("a frame that cannot be read".to_owned());
                    false
                }
                None => false,
            };
            if !goes_on {
                asked.drain(..).for_each(|asked| self.unknown(&asked));
                return false;
            }
        }
        true
    }

    /// Nobody will say what became of a request.
    fn unknown(&mut self, asked: &Asked) {
        if asked.request.is_write() {
            self.world.count("writes of unknown outcome");
        }
        if let Request::Create { path, value, .. } = &asked.request
            && path.starts_with(SEQUENCE)
        {
            self.history.lock().unwrap().maybe_sequential.insert(*value);
        }
        self.register(asked, u64::MAX, Seen::Unknown);
    }

    /// Remembers what was asked of a register, if it was one.
    fn register(&self, asked: &Asked, returned: u64, seen: Seen) {
        let (path, action, called) = match &asked.request {
            Request::Set { path, value, version: -1 } => (path, Action::Put(*value), asked.called),
            Request::Set { path, value, .. } => {
                (path, Action::Swap { expected: asked.expected, value: *value }, asked.called)
            }
            Request::Get { path, .. } => match asked.synced {
                Some(synced) => (path, Action::Get, synced),
                None => return,
            },
            _ => return,
        };
        if REGISTERS.contains(&path.as_str()) {
            let operation = Operation { client: self.number, action, called, returned, seen };
            self.history.lock().unwrap().registers.entry(path.clone()).or_default().push(operation);
        }
    }

    /// The answer to a request; false when the connection is of no more use.
    fn answered(&mut self, asked: Asked, zxid: i64, error: i32, body: &[u8]) -> bool {
        let is = |code: ErrorCode| error == code.number();
        self.world.note(format!("client {} {zxid:#x} {error} {:?}", self.number, asked.request));
        if is(ErrorCode::SessionExpired) {
            self.unknown(&asked);
            self.lose_session(None);
            return false;
        }
        if zxid < self.zxid {
            self.problem(format!("{:?} is answered as of {zxid:#x}, after {:#x}", asked.request, self.zxid));
        }
        self.zxid = self.zxid.max(zxid);
        self.answered_zxid = self.answered_zxid.max(zxid);
        if is(ErrorCode::ThrottledOp) {
            return true;
        }
        let index = u64::try_from(zxid).unwrap();
        let (is_write, returned) = (asked.request.is_write(), now());
        if is_write || asked.synced.is_some() {
            let called = asked.synced.unwrap_or(asked.called);
            self.history.lock().unwrap().placed.push(Placed { called, returned, index, is_write });
        }
        if is_write && let Some((session, _)) = self.session {
            self.history.lock().unwrap().lives(session, zxid);
        }
        if error != 0 {
            self.refused(&asked, zxid, error);
            return true;
        }
        match asked.request.read(body) {
            Ok(body) => self.told(&asked, zxid, body),
            Err(_) => {
                self.problem(format!("the answer to {:?} cannot be read: {body:x?}", asked.request));
                false
            }
        }
    }

    fn refused(&mut self, asked: &Asked, zxid: i64, error: i32) {
        let code = [ErrorCode::NoNode, ErrorCode::NodeExists, ErrorCode::BadVersion, ErrorCode::RuntimeInconsistency];
        let code = code.into_iter().find(|code| code.number() == error);
        match (&asked.request, code) {
            (Request::Create { path, value, .. }, Some(ErrorCode::NodeExists)) if path.starts_with("/coming") => {
                self.history.lock().unwrap().was_refused(path, *value);
            }
            (Request::Set { path, value, .. }, Some(ErrorCode::NoNode)) if path.starts_with("/coming") => {
                self.history.lock().unwrap().was_refused(path, *value);
                self.saw(path, None, false);
            }
            (Request::Set { path, value, version: 0.. }, Some(ErrorCode::BadVersion)) => {
                self.world.count("sets with another version");
                self.history.lock().unwrap().was_refused(path, *value);
                self.register(asked, now(), Seen::Refused);
                self.known.remove(path);
            }
            (Request::Delete { path, .. }, Some(ErrorCode::NoNode)) => self.saw(path, None, false),
            (Request::Exists { path, watch }, Some(ErrorCode::NoNode)) => self.saw(path, None, *watch),
            (Request::Get { path, .. }, Some(ErrorCode::NoNode)) if path.starts_with(EPHEMERALS) => {
                self.history.lock().unwrap().missed(path, zxid);
            }
            (Request::Get { path, .. }, Some(ErrorCode::NoNode)) if path.starts_with("/coming") => {
                self.saw(path, None, false);
            }
            (request, _) => self.problem(format!("{request:?} is answered with {error}")),
        }
    }

    /// What an answer without an error says; false when the session is over.
    fn told(&mut self, asked: &Asked, zxid: i64, body: Body) -> bool {
        match (&asked.request, body) {
            (Request::Create { path: wanted, value, flags }, Body::Created { path, stat }) => {
                self.created(wanted, &path, *value, *flags, zxid, &stat);
            }
            (Request::Set { path, value, version }, Body::Stat(stat)) => {
                self.wrote(path, *value, zxid, &stat);
                let now_is = u64::try_from(stat.version).unwrap();
                let seen = match version {
                    -1 => Seen::Put { version: now_is + 1, previous: Some(now_is) },
                    _ => Seen::Swapped(now_is + 1),
                };
                self.register(asked, now(), seen);
            }
            (Request::Multi { sets, .. }, Body::Multi(Ok(stats))) if stats.len() == sets.len() => {
                self.world.count("multis that were done");
                for ((path, value), stat) in sets.iter().zip(&stats) {
                    self.wrote(path, *value, zxid, stat);
                }
            }
            (Request::Multi { sets, .. }, Body::Multi(Err(_))) => {
                self.world.count("multis that were refused");
                let mut history = self.history.lock().unwrap();
                sets.iter().for_each(|(path, value)| history.was_refused(path, *value));
            }
            (Request::Delete { path, .. }, Body::Nothing) => self.changed(path),
            (Request::Get { path, watch }, Body::Data { value: Some(value), stat }) => {
                self.history.lock().unwrap().saw(path, &stat, value, zxid);
                self.saw(path, Some((stat.czxid, stat.mzxid)), *watch);
                self.known.insert(path.clone(), (stat.version, value));
                let version = u64::try_from(stat.version).unwrap() + 1;
                self.register(asked, now(), Seen::Got(Some((value, version))));
            }
            (Request::Exists { path, watch }, Body::Stat(stat)) => {
                self.saw(path, Some((stat.czxid, stat.mzxid)), *watch);
            }
            (Request::Children { path, watch }, Body::Children { names, stat }) => {
                if usize::try_from(stat.num_children).ok() != Some(names.len()) {
                    self.problem(format!("{path}: {stat:?} with {names:?}"));
                }
                if let Some(known) = self.watched_children.get(path).filter(|known| **known != stat.pzxid) {
                    self.problem(format!("the children of {path} changed from {known:#x} to {stat:?} in silence"));
                }
                if *watch {
                    self.watched_children.insert(path.clone(), stat.pzxid);
                }
            }
            (Request::CloseSession, _) => {
                self.world.count("sessions that were closed");
                self.lose_session(Some(zxid));
                return false;
            }
            (Request::Sync { .. }, Body::Nothing) => self.world.count("syncs"),
            (Request::SetWatches { .. }, Body::Nothing) => self.world.count("watches that were taken along"),
            (request, body) => self.problem(format!("{request:?} is answered with {body:?}")),
        }
        true
    }

    fn created(&mut self, wanted: &str, path: &str, value: u64, flags: i32, zxid: i64, stat: &Stat) {
        let session = self.session.map_or(0, |(id, _)| id);
        let is_sequential = flags & flags::SEQUENTIAL != 0;
        let is_ephemeral = flags & flags::EPHEMERAL != 0;
        let owner = if is_ephemeral { session } else { 0 };
        let is_named =
            if is_sequential { path.strip_prefix(wanted).is_some_and(|n| n.len() == 10) } else { path == wanted };
        if !is_named || (stat.czxid, stat.version, stat.ephemeral_owner) != (zxid, 0, owner as i64) {
            self.problem(format!("{wanted} was made as {path} at {zxid:#x}, with {stat:?}"));
        }
        self.wrote(path, value, zxid, stat);
        let mut history = self.history.lock().unwrap();
        if is_sequential {
            history.sequential.insert(zxid, (path.to_owned(), value));
        }
        if is_ephemeral {
            history.ephemerals.insert(path.to_owned(), Ephemeral { session, czxid: zxid });
            self.own.extend((!is_sequential).then(|| path.to_owned()));
        }
        self.world.count("creates acknowledged");
    }

    /// An own write took effect.
    fn wrote(&mut self, path: &str, value: u64, zxid: i64, stat: &Stat) {
        if stat.mzxid != zxid {
            self.problem(format!("{path} was written at {zxid:#x}, and has {stat:?}"));
        }
        self.history.lock().unwrap().saw(path, stat, value, zxid);
        self.changed(path);
        self.known.insert(path.to_owned(), (stat.version, value));
    }

    /// An own change is acknowledged: its notification came before.
    fn changed(&mut self, path: &str) {
        if let Some(known) = self.watched.remove(path) {
            self.problem(format!("{path} was {known:x?} and is changed, and nothing was notified"));
        }
    }

    /// A node is seen: its creation and last change, or that it is not there.
    fn saw(&mut self, path: &str, node: Option<(i64, i64)>, watch: bool) {
        if let Some(known) = self.watched.get(path).filter(|known| **known != node) {
            self.problem(format!("{path} was {known:x?} and is {node:x?}, and nothing was notified"));
            self.watched.remove(path);
        }
        if watch {
            self.watched.insert(path.to_owned(), node);
        }
    }

    fn notified(&mut self, zxid: i64, event: EventType, path: &str) {
        self.world.note(format!("client {} {zxid:#x} {event:?} {path}", self.number));
        if zxid < 0 {
            self.world.count("notifications of what was missed");
        } else {
            self.world.count("notifications");
            if zxid <= self.answered_zxid || zxid < self.zxid {
                let known = self.zxid;
                self.problem(format!("{event:?} of {path} at {zxid:#x} is notified after an answer as of {known:#x}"));
            }
            self.zxid = self.zxid.max(zxid);
        }
        let was_watched = match event {
            EventType::NodeCreated => self.watched.remove(path).is_some_and(|node| node.is_none()),
            EventType::NodeDataChanged => self.watched.remove(path).is_some_and(|node| node.is_some()),
            EventType::NodeDeleted => self.watched.remove(path).is_some_and(|node| node.is_some()),
            EventType::NodeChildrenChanged => self.watched_children.remove(path).is_some(),
        };
        if !was_watched {
            self.problem(format!("{event:?} of {path} at {zxid:#x} was not asked for"));
        }
    }

    /// After all faults: everything that is watched is looked at once more, in the old session if it is there still,
    /// and then the session is closed. `None` when this did not come to an end.
    pub async fn last_look(&mut self, node: u64) -> Option<()> {
        let mut wire = self.connect(node).await?;
        let mut asked = VecDeque::new();
        let there = |is: bool| self.watched.iter().filter(move |(_, node)| node.is_some() == is);
        let paths = |is| there(is).map(|(path, _)| path.clone()).collect();
        let (data, exist, child) = (paths(true), paths(false), self.watched_children.keys().cloned().collect());
        self.send(&wire, &mut asked, SET_WATCHES_XID, Request::SetWatches { zxid: self.zxid, data, exist, child });
        if !self.receive_all(&mut wire, &mut asked).await {
            return None;
        }
        let mut requests = vec![Request::Sync { path: "/".to_owned() }];
        let watched = self.watched.keys().cloned().collect::<Vec<_>>();
        requests.extend(watched.into_iter().map(|path| Request::Exists { path, watch: false }));
        let children = self.watched_children.keys().cloned().collect::<Vec<_>>();
        requests.extend(children.into_iter().map(|path| Request::Children { path, watch: false }));
        let own = self.own.clone();
        requests.extend(own.into_iter().map(|path| Request::Get { path, watch: false }));
        // A sign of life behind it all, and the end.
        requests.push(Request::Set { path: REGISTERS[0].to_owned(), value: self.next_value(), version: -1 });
        requests.push(Request::CloseSession);
        for (xid, request) in (1..).zip(requests) {
            self.send(&wire, &mut asked, xid, request);
        }
        self.receive_all(&mut wire, &mut asked).await;
        self.session.is_none().then_some(())
    }

    /// Asks one thing after another, all of it on one connection to a node; `None` when that failed.
    pub async fn ask(&mut self, wire: &mut Wire, request: Request) -> Option<Body> {
        wire.send(&request.frame(1));
        match wire.frame().await {
            Some(Ok(Frame::Reply { error: 0, body, .. })) => request.read(&body).ok(),
            _ => None,
        }
    }
}
