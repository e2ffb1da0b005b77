//! What the tests of this crate share: requests as a client writes them, and a group to send them to.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use statehouse_sdk::Context;
use statehouse_sdk::Effects;
use statehouse_sdk::Header;
use statehouse_sdk::Params;
use statehouse_sdk::QueryContext;
use statehouse_sdk::Snapshot;
use statehouse_sdk::StateMachine;
use statehouse_sdk::codec::Raw;
use statehouse_sdk::testing::Harness;
use znode_tree::ZnodeTree;
use znode_tree::call::Call;
use znode_tree::call::Changes;
use znode_tree::call::Identity;
use znode_tree::call::Readers;
use znode_tree::call::split_reply;
use znode_tree::jute::Reader;
use znode_tree::jute::Writer;
use znode_tree::wire::EventType;
use znode_tree::wire::MultiHeader;
use znode_tree::wire::Stat;
use znode_tree::wire::op;

pub const OPEN: &[(i32, &str, &str)] = &[(31, "world", "anyone")];
pub const EPHEMERAL: i32 = 1;
pub const SEQUENTIAL: i32 = 2;

/// A record's bytes.
pub fn record(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Writer::new(&mut bytes));
    bytes
}

/// A request: its operation and its body.
pub type Request = (i32, Vec<u8>);

pub fn acl(out: &mut Writer<'_>, list: &[(i32, &str, &str)]) {
    out.count(list.len());
    for (perms, scheme, id) in list {
        out.i32(*perms).text(scheme).text(id);
    }
}

pub fn create_as(operation: i32, path: &str, data: &[u8], flags: i32) -> Request {
    let body = record(|out| {
        out.text(path).buffer(Some(data));
        acl(out, OPEN);
        out.i32(flags);
    });
    (operation, body)
}

pub fn create(path: &str, data: &[u8], flags: i32) -> Request {
    create_as(op::CREATE, path, data, flags)
}

pub fn create_with(path: &str, list: &[(i32, &str, &str)]) -> Request {
    let body = record(|out| {
        out.text(path).buffer(Some(b""));
        acl(out, list);
        out.i32(0);
    });
    (op::CREATE, body)
}

pub fn create_ttl(path: &str, flags: i32, ttl: i64) -> Request {
    let (_, mut body) = create_as(op::CREATE_TTL, path, b"", flags);
    Writer::new(&mut body).i64(ttl);
    (op::CREATE_TTL, body)
}

pub fn versioned(operation: i32, path: &str, version: i32) -> Request {
    (operation, record(|out| _ = out.text(path).i32(version)))
}

pub fn delete(path: &str, version: i32) -> Request {
    versioned(op::DELETE, path, version)
}

pub fn check(path: &str, version: i32) -> Request {
    versioned(op::CHECK, path, version)
}

pub fn set_data(path: &str, data: &[u8], version: i32) -> Request {
    (op::SET_DATA, record(|out| _ = out.text(path).buffer(Some(data)).i32(version)))
}

pub fn set_acl(path: &str, list: &[(i32, &str, &str)], version: i32) -> Request {
    let body = record(|out| {
        out.text(path);
        acl(out, list);
        out.i32(version);
    });
    (op::SET_ACL, body)
}

pub fn read(operation: i32, path: &str) -> Request {
    (operation, record(|out| _ = out.text(path).bool(false)))
}

pub fn framed(operation: i32, requests: &[Request]) -> Request {
    let body = record(|out| {
        for (operation, body) in requests {
            MultiHeader { op: *operation, done: false, err: -1 }.write(out);
            out.raw(body);
        }
        MultiHeader::END.write(out);
    });
    (operation, body)
}

pub fn multi(requests: &[Request]) -> Request {
    framed(op::MULTI, requests)
}

pub fn call((operation, body): &Request, identities: &[(&str, &str)]) -> Vec<u8> {
    let identities = identities.iter().map(|(scheme, id)| Identity { scheme, id }).collect();
    let mut bytes = Vec::new();
    Call { operation: *operation, identities, body }.encode(&mut bytes);
    bytes
}

/// An event as `created /a`, with ` (u:h)` behind it for each reader when not everybody may know.
pub fn describe(events: &[Vec<u8>]) -> Vec<String> {
    let mut all = Vec::new();
    for change in events.iter().flat_map(|event| Changes::decode(event).unwrap()) {
        let change = change.unwrap();
        let what = match change.event {
            EventType::NodeCreated => "created",
            EventType::NodeDeleted => "deleted",
            EventType::NodeDataChanged => "data",
            EventType::NodeChildrenChanged => "children",
        };
        let readers: Vec<_> = match change.readers {
            Readers::All => Vec::new(),
            Readers::Some(readers) => readers.iter().map(|reader| format!(" ({})", reader.id)).collect(),
        };
        all.push(format!("{what} {}{}", change.path, readers.concat()));
    }
    all
}

/// Reads a stat from a reply's body, behind `skip`.
pub fn stat_in(body: &[u8], skip: impl FnOnce(&mut Reader<'_>)) -> Stat {
    let mut reader = Reader::new(body);
    skip(&mut reader);
    Stat::read(&mut reader).unwrap()
}

/// A group as the harness plays it: three replicas, compared on every step.
pub struct Group {
    pub harness: Harness<ZnodeTree, Raw>,
}

impl Group {
    pub fn new(params: &str) -> Self {
        Self { harness: Harness::with_params(params) }
    }

    /// Sends a write; gives the error and the body.
    #[track_caller]
    pub fn write_as(&mut self, session: u64, identities: &[(&str, &str)], request: &Request) -> (i32, Vec<u8>) {
        let reply = self.harness.apply_bytes(session, &call(request, identities)).unwrap();
        let (code, body) = split_reply(&reply).unwrap();
        (code, body.to_vec())
    }

    /// Sends a write of nobody in session 1; gives the error.
    #[track_caller]
    pub fn write(&mut self, request: &Request) -> i32 {
        self.write_as(1, &[], request).0
    }

    /// Sends a write that must succeed; gives its body.
    #[track_caller]
    pub fn ok(&mut self, request: &Request) -> Vec<u8> {
        let (code, body) = self.write_as(1, &[], request);
        assert_eq!(code, 0);
        body
    }

    #[track_caller]
    pub fn read_as(&mut self, identities: &[(&str, &str)], request: &Request) -> (i32, Vec<u8>) {
        let answer = self.harness.query_bytes(&call(request, identities)).unwrap();
        let (code, body) = split_reply(&answer).unwrap();
        (code, body.to_vec())
    }

    #[track_caller]
    pub fn read(&mut self, request: &Request) -> (i32, Vec<u8>) {
        self.read_as(&[], request)
    }

    #[track_caller]
    pub fn stat(&mut self, path: &str) -> Stat {
        let (code, body) = self.read(&read(op::EXISTS, path));
        assert_eq!(code, 0, "{path}");
        stat_in(&body, |_| {})
    }

    #[track_caller]
    pub fn children(&mut self, path: &str) -> Vec<String> {
        let (code, body) = self.read(&read(op::GET_CHILDREN, path));
        assert_eq!(code, 0, "{path}");
        Reader::new(&body).texts().unwrap().into_iter().map(str::to_owned).collect()
    }

    #[track_caller]
    pub fn data(&mut self, path: &str) -> String {
        let (code, body) = self.read(&read(op::GET_DATA, path));
        assert_eq!(code, 0, "{path}");
        String::from_utf8(Reader::new(&body).buffer().unwrap().unwrap().to_vec()).unwrap()
    }

    #[track_caller]
    pub fn exists(&mut self, path: &str) -> bool {
        self.read(&read(op::EXISTS, path)).0 == 0
    }

    pub fn events(&mut self) -> Vec<String> {
        describe(&self.harness.take_events().iter().map(|event| event.0.clone()).collect::<Vec<_>>())
    }
}

/// The path in a create's reply.
pub fn path_in(body: &[u8]) -> String {
    Reader::new(body).text().unwrap().unwrap().to_owned()
}

/// The machine as a plain Rust type, without replicas beside it: for many operations.
pub struct Plain {
    pub machine: ZnodeTree,
    pub header: Header,
    pub effects: Effects,
}

impl Plain {
    pub fn new(params: &str) -> Self {
        let mut machine = ZnodeTree::default();
        let header = Header { index: 1, time_ms: 1_000, seed: (1, 2), session: 0 };
        let mut effects = Effects::default();
        machine.init(&mut Context::new(header, &mut effects), Params::new(params.as_bytes())).unwrap();
        Self { machine, header, effects }
    }

    pub fn write(&mut self, session: u64, identities: &[(&str, &str)], request: &Request) -> (i32, Vec<u8>) {
        self.header.index += 1;
        self.header.session = session;
        self.effects = Effects::default();
        let mut ctx = Context::new(self.header, &mut self.effects);
        let reply = self.machine.apply(&mut ctx, call(request, identities)).unwrap();
        let (code, body) = split_reply(&reply).unwrap();
        (code, body.to_vec())
    }

    pub fn read(&mut self, session: u64, identities: &[(&str, &str)], request: &Request) -> (i32, Vec<u8>) {
        let ctx = QueryContext::new(Header { session, ..self.header });
        let reply = self.machine.query(&ctx, call(request, identities)).unwrap();
        let (code, body) = split_reply(&reply).unwrap();
        (code, body.to_vec())
    }

    pub fn end_session(&mut self, session: u64) {
        self.header.index += 1;
        self.header.session = session;
        self.effects = Effects::default();
        self.machine.on_session_end(&mut Context::new(self.header, &mut self.effects), session);
    }

    pub fn fire(&mut self, timer: u64) {
        self.header.index += 1;
        self.header.session = 0;
        self.effects = Effects::default();
        self.machine.on_timer(&mut Context::new(self.header, &mut self.effects), timer);
    }

    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.machine.snapshot(&mut bytes).unwrap();
        bytes
    }

    pub fn events(&self) -> Vec<String> {
        describe(&self.effects.events)
    }
}
