//! Clients that speak ZooKeeper's protocol by hand.

use std::collections::VecDeque;

use statehouse_sdk::codec::Raw;
use statehouse_sdk::testing_adapter::Client;
use statehouse_sdk::testing_adapter::Desk;
use znode_tree::ZnodeTree;
use znode_tree::adapter::ZooKeeper;
use znode_tree::jute::Reader;
use znode_tree::jute::Writer;
use znode_tree::wire::Stat;
use znode_tree::wire::op;

/// A body, field by field.
pub fn body(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Writer::new(&mut bytes));
    bytes
}

pub fn path_watch(path: &str, watch: bool) -> Vec<u8> {
    body(|out| {
        out.text(path).bool(watch);
    })
}

pub fn create(path: &str, data: &str, flags: i32) -> Vec<u8> {
    body(|out| {
        out.text(path).text(data).count(1).i32(31).text("world").text("anyone").i32(flags);
    })
}

pub fn set_data(path: &str, data: &str) -> Vec<u8> {
    body(|out| {
        out.text(path).text(data).i32(-1);
    })
}

pub fn delete(path: &str) -> Vec<u8> {
    body(|out| {
        out.text(path).i32(-1);
    })
}

/// A frame around bytes.
pub fn frame(bytes: &[u8]) -> Vec<u8> {
    body(|out| {
        out.buffer(Some(bytes));
    })
}

/// A request's frame.
pub fn request(xid: i32, operation: i32, rest: &[u8]) -> Vec<u8> {
    frame(&body(|out| {
        out.i32(xid).i32(operation).raw(rest);
    }))
}

/// What a client asks for first.
#[derive(Clone, Copy)]
pub struct Hello {
    pub version: i32,
    pub zxid: i64,
    pub timeout_ms: i32,
    pub session: i64,
    pub password: [u8; 16],
    pub read_only: Option<bool>,
}

impl Default for Hello {
    fn default() -> Self {
        Self { version: 0, zxid: 0, timeout_ms: 10_000, session: 0, password: [0; 16], read_only: Some(false) }
    }
}

impl Hello {
    pub fn frame(&self) -> Vec<u8> {
        frame(&body(|out| {
            out.i32(self.version).i64(self.zxid).i32(self.timeout_ms).i64(self.session).buffer(Some(&self.password));
            if let Some(flag) = self.read_only {
                out.bool(flag);
            }
        }))
    }
}

/// What a client is answered first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub version: i32,
    pub timeout_ms: i32,
    pub session: i64,
    pub password: [u8; 16],
    pub is_read_only: bool,
    pub length: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub xid: i32,
    pub zxid: i64,
    pub error: i32,
    pub body: Vec<u8>,
}

impl Reply {
    /// As a notification: type, state, path.
    pub fn event(&self) -> (i32, i32, String) {
        let mut reader = Reader::new(&self.body);
        assert_eq!((self.xid, self.error), (-1, 0), "a notification: {self:?}");
        (reader.i32().unwrap(), reader.i32().unwrap(), reader.text().unwrap().unwrap().to_owned())
    }

    /// Data and stat of a getData.
    pub fn data(&self) -> (Vec<u8>, Stat) {
        assert_eq!(self.error, 0);
        let mut reader = Reader::new(&self.body);
        (reader.buffer().unwrap().unwrap_or_default().to_vec(), Stat::read(&mut reader).unwrap())
    }
}

/// A connection with what came over it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub client: Client,
    pub welcome: Option<Welcome>,
    received: Vec<u8>,
    xid: i32,
    /// Notifications that came while something else was waited for.
    pub events: VecDeque<Reply>,
}

impl Peer {
    pub fn session(&self) -> i64 {
        self.welcome.as_ref().unwrap().session
    }
}

pub struct World {
    pub desk: Desk<ZnodeTree, Raw, ZooKeeper>,
}

impl World {
    pub fn new(nodes: usize) -> Self {
        Self::with(nodes, "{}", r#"{"listen":{"four_letter_words":"*","client_port":2181},"node":1}"#)
    }

    pub fn with(nodes: usize, params: &str, settings: &str) -> Self {
        Self { desk: Desk::new(nodes, params, settings) }
    }

    /// A connection that has said nothing.
    pub fn dial(&mut self, node: usize) -> Peer {
        let client = self.desk.connect(node, "10.1.2.3:50000");
        Peer { client, welcome: None, received: Vec::new(), xid: 0, events: VecDeque::new() }
    }

    /// A connection with a new session.
    pub fn connect(&mut self, node: usize) -> Peer {
        let peer = self.greet(node, &Hello::default());
        assert_ne!(peer.session(), 0);
        peer
    }

    /// A connection after its handshake; without a welcome when it was closed.
    pub fn greet(&mut self, node: usize, hello: &Hello) -> Peer {
        let mut peer = self.dial(node);
        self.send(&peer, &hello.frame());
        self.desk.run();
        if let Some(frame) = self.frame(&mut peer) {
            let mut reader = Reader::new(&frame);
            peer.welcome = Some(Welcome {
                version: reader.i32().unwrap(),
                timeout_ms: reader.i32().unwrap(),
                session: reader.i64().unwrap(),
                password: reader.buffer().unwrap().unwrap().try_into().unwrap(),
                is_read_only: reader.bool() == Ok(true),
                length: frame.len(),
            });
        }
        peer
    }

    /// A connection that attaches to another's session.
    pub fn reattach(&mut self, node: usize, peer: &Peer, zxid: i64) -> Peer {
        let welcome = peer.welcome.as_ref().unwrap();
        let hello = Hello { session: welcome.session, password: welcome.password, zxid, ..Hello::default() };
        self.greet(node, &hello)
    }

    pub fn send(&mut self, peer: &Peer, bytes: &[u8]) {
        self.desk.send(peer.client, bytes);
    }

    /// The next whole frame that was received.
    pub fn frame(&mut self, peer: &mut Peer) -> Option<Vec<u8>> {
        peer.received.extend(self.desk.take(peer.client));
        let length = i32::from_be_bytes(*peer.received.first_chunk()?) as usize;
        let frame = peer.received.get(4..4 + length)?.to_vec();
        peer.received.drain(..4 + length);
        Some(frame)
    }

    /// Everything that was received, whatever it is.
    pub fn bytes(&mut self, peer: &mut Peer) -> Vec<u8> {
        peer.received.extend(self.desk.take(peer.client));
        std::mem::take(&mut peer.received)
    }

    /// Everything that was received, as text.
    pub fn text(&mut self, peer: &mut Peer) -> String {
        String::from_utf8(self.bytes(peer)).unwrap()
    }

    /// The next reply or notification that was received.
    pub fn next(&mut self, peer: &mut Peer) -> Option<Reply> {
        self.desk.run();
        if let Some(event) = peer.events.pop_front() {
            return Some(event);
        }
        let frame = self.frame(peer)?;
        let mut reader = Reader::new(&frame);
        let (xid, zxid, error) = (reader.i32().unwrap(), reader.i64().unwrap(), reader.i32().unwrap());
        Some(Reply { xid, zxid, error, body: reader.rest().to_vec() })
    }

    /// All replies and notifications that were received.
    pub fn all(&mut self, peer: &mut Peer) -> Vec<Reply> {
        std::iter::from_fn(|| self.next(peer)).collect()
    }

    /// Types and paths of all notifications that were received; there must be nothing else.
    pub fn events(&mut self, peer: &mut Peer) -> Vec<(i32, String)> {
        self.all(peer).iter().map(|reply| (reply.event().0, reply.event().2)).collect()
    }

    /// Sends a request, waits for its reply. Notifications before it are kept.
    pub fn ask(&mut self, peer: &mut Peer, operation: i32, rest: &[u8]) -> Reply {
        peer.xid += 1;
        let xid = match operation {
            op::PING => -2,
            op::AUTH => -4,
            op::SET_WATCHES | op::SET_WATCHES2 => -8,
            _ => peer.xid,
        };
        self.send(peer, &request(xid, operation, rest));
        let mut events = std::mem::take(&mut peer.events);
        let reply = loop {
            let reply = self.next(peer).unwrap_or_else(|| panic!("no reply to operation {operation}"));
            if reply.xid != -1 {
                break reply;
            }
            events.push_back(reply);
        };
        peer.events = events;
        assert_eq!(reply.xid, xid);
        reply
    }

    /// The error number of a request's reply.
    pub fn error(&mut self, peer: &mut Peer, operation: i32, rest: &[u8]) -> i32 {
        self.ask(peer, operation, rest).error
    }

    pub fn create(&mut self, peer: &mut Peer, path: &str) {
        assert_eq!(self.error(peer, op::CREATE, &create(path, "", 0)), 0, "create {path}");
    }

    pub fn is_closed(&mut self, peer: &Peer) -> bool {
        self.desk.run();
        self.desk.is_closed(peer.client)
    }

    /// A four-letter word's answer.
    pub fn word(&mut self, node: usize, word: &str) -> String {
        let mut peer = self.dial(node);
        self.send(&peer, word.as_bytes());
        assert!(self.is_closed(&peer), "{word} ends the connection");
        self.text(&mut peer)
    }
}
