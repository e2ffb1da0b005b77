//! What is asked: requests from a seed, in [`Step`]s that can be played again, in part too.

use std::fmt;

use statehouse_tests::keeper::record;
use znode_tree::jute::Writer;
use znode_tree::wire::MultiHeader;
use znode_tree::wire::op;

/// How many clients there are at a time.
pub const ACTORS: usize = 6;
/// What they prove to be when they connect.
pub const PROOFS: [&[&str]; ACTORS] = [&[], &["anna:pw"], &["super:pw"], &["anna:pw", "bob:pw"], &[], &["bob:pw"]];
/// The client that sees and may do everything.
pub const SUPER: usize = 2;

const ANNA: &str = "anna:OgzzOYOLDrpKJ2oz1HsdOuyz86Q=";
/// The folder in which permissions to read are taken away. (What ZooKeeper 3.8 tells of a node that one may not read is
/// on the list.)
const SECRET: &str = "s";
/// Times to live that no test lives to see, and some that are none.
const TTLS: [i64; 6] = [1_000_000_000, 1_000_000_000, 0xFF_FFFF_FFFF, 0, -1, 1 << 40];

/// Whether a path is where not everybody may read.
pub fn is_secret(path: &str) -> bool {
    path.split('/').any(|name| name == SECRET)
}

/// How a path may be watched: in 3.8 a client has one mode a path, and the last one counts. (See the list.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    Once,
    Persistently,
    Recursively,
}

fn watched(path: &str) -> Watched {
    match path.as_bytes().last() {
        Some(b'c') => Watched::Persistently,
        Some(b'd') => Watched::Recursively,
        _ => Watched::Once,
    }
}

/// One thing that is done at both servers.
#[derive(Clone, PartialEq, Eq)]
pub enum Step {
    /// A request. Those of one client that stand together are sent together.
    Ask { actor: usize, operation: i32, body: Vec<u8> },
    /// setWatches or setWatches2, by one that has seen everything but the last `back` writes.
    SetWatches { actor: usize, operation: i32, back: usize, lists: Vec<Vec<String>> },
    /// A request whose reply may end the connection.
    Last { actor: usize, xid: i32, operation: i32, body: Vec<u8> },
    /// The connection is lost, and the client comes back for its session.
    Return { actor: usize, how: Return },
    /// The client ends its session and starts another one.
    Renew { actor: usize },
    /// Somebody makes these nodes, goes away, and is waited for until its session is over.
    Expire { ephemerals: Vec<String> },
    /// Somebody says hello so, and sends this, and no more.
    Stranger { timeout_ms: i32, has_read_only: bool, bytes: Vec<u8> },
    /// Somebody sends this without a hello.
    Garbage(Vec<u8>),
    /// All that the super user sees is compared.
    Trees,
}

/// How a client comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    Properly,
    /// While the old connection is still open.
    WhileThere,
    /// With a wrong password first.
    WrongPassword,
    /// With a password of another length first.
    ShortPassword,
    /// As one that has seen what is yet to come, first.
    FromTheFuture,
}

impl Step {
    /// The same, below another folder with a name of the same length.
    pub fn below(&self, old: &str, new: &str) -> Self {
        let moved = |bytes: &[u8]| -> Vec<u8> {
            let mut bytes = bytes.to_vec();
            for at in 0..bytes.len() {
                if bytes[at..].starts_with(old.as_bytes()) {
                    bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
                }
            }
            bytes
        };
        let mut step = self.clone();
        match &mut step {
            Self::Ask { body, .. } | Self::Last { body, .. } => *body = moved(body),
            Self::SetWatches { lists, .. } => {
                lists.iter_mut().flatten().for_each(|path| *path = path.replace(old, new));
            }
            Self::Expire { ephemerals } => ephemerals.iter_mut().for_each(|path| *path = path.replace(old, new)),
            Self::Stranger { .. } | Self::Garbage(_) | Self::Return { .. } | Self::Renew { .. } | Self::Trees => {}
        }
        step
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask { actor, operation, body } => {
                write!(f, "client {actor} asks operation {operation} with {}", body.escape_ascii())
            }
            Self::SetWatches { actor, operation, back, lists } => {
                write!(f, "client {actor} sets watches by {operation}, {back} writes back: {lists:?}")
            }
            Self::Last { actor, xid, operation, body } => {
                write!(f, "client {actor} asks at last, as {xid}, operation {operation} with {}", body.escape_ascii())
            }
            Self::Return { actor, how } => write!(f, "client {actor} returns {how:?}"),
            Self::Renew { actor } => write!(f, "client {actor} takes a new session"),
            Self::Expire { ephemerals } => write!(f, "a session expires that has {ephemerals:?}"),
            Self::Stranger { timeout_ms, has_read_only, bytes } => {
                write!(f, "a stranger wants {timeout_ms} ms ({has_read_only}) and sends {}", bytes.escape_ascii())
            }
            Self::Garbage(bytes) => write!(f, "garbage: {}", bytes.escape_ascii()),
            Self::Trees => write!(f, "the trees are compared"),
        }
    }
}

type Request = (i32, Vec<u8>);
type AclList = &'static [(i32, &'static str, &'static str)];

const OPEN: AclList = &[(31, "world", "anyone")];
/// Lists that let everybody read, and lists that are refused.
const READABLE: [AclList; 15] = [
    &[(1, "world", "anyone")],
    &[(31, "auth", ""), (1, "world", "anyone")],
    &[(31, "auth", "whatever"), (1, "world", "anyone"), (1, "world", "anyone")],
    &[(31, "digest", ANNA), (5, "world", "anyone")],
    &[(31, "ip", "127.0.0.1"), (1, "world", "anyone")],
    &[(3, "world", "anyone"), (8, "ip", "127.0.0.0/8"), (1, "digest", "a:b")],
    &[],
    &[(31, "world", "nobody")],
    &[(31, "digest", "nocolon")],
    &[(31, "digest", "a:b:c")],
    &[(31, "digest", "b:")],
    &[(31, "ip", "1.2.3")],
    &[(31, "ip", "1.2.3.4/99")],
    &[(31, "none", "x")],
    &[(-1, "world", "anyone")],
];
/// Lists that do not let everybody read.
const CLOSED: [AclList; 7] = [
    &[(31, "auth", "")],
    &[(31, "digest", ANNA), (4, "world", "anyone")],
    &[(31, "ip", "10.0.0.0/8")],
    &[(0, "world", "anyone")],
    &[(30, "world", "anyone"), (1, "digest", ANNA)],
    &[(16, "ip", "127.0.0.1")],
    &[(31, "digest", ":b")],
];

fn write_acl(out: &mut Writer<'_>, list: AclList) {
    out.count(list.len());
    for (perms, scheme, id) in list {
        out.i32(*perms).text(scheme).text(id);
    }
}

fn framed(operation: i32, requests: &[Request]) -> Request {
    let body = record(|out| {
        for (operation, body) in requests {
            MultiHeader { op: *operation, done: false, err: -1 }.write(out);
            out.raw(body);
        }
        MultiHeader::END.write(out);
    });
    (operation, body)
}

/// Steps, from one seed.
pub struct Dice {
    state: u64,
    top: String,
    /// Each request waits for the one before it: so quotas can be enforced. (See the list.)
    one_by_one: bool,
}

impl Dice {
    /// `top`: the folder in which most is done.
    pub fn new(seed: u64, one_by_one: bool, top: &str) -> Self {
        let state = seed.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(1);
        Self { state, top: top.to_owned(), one_by_one }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (bits ^ (bits >> 31)) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.roll(from.len() as u64)).unwrap()]
    }

    fn actor(&mut self) -> usize {
        usize::try_from(self.roll(ACTORS as u64)).unwrap()
    }

    /// Steps with about `operations` requests among them, after those that make the folder.
    pub fn steps(&mut self, operations: usize) -> Vec<Step> {
        let made = record(|out| {
            out.text(&self.top).buffer(Some(b""));
            write_acl(out, OPEN);
            out.i32(0);
        });
        let mut steps = vec![Step::Ask { actor: SUPER, operation: op::CREATE, body: made }];
        let mut left = operations;
        while left > 0 {
            let actor = self.actor();
            match self.roll(24) {
                0 => steps.push(self.last(actor)),
                1 => steps.push(self.come_back(actor)),
                2 if self.one_in(2) => steps.push(Step::Renew { actor }),
                3 => steps.push(self.stranger()),
                4 => steps.push(Step::Garbage(self.garbage())),
                5 | 6 => steps.push(self.set_watches(actor)),
                7 if self.one_in(8) => steps.push(Step::Trees),
                _ => {
                    let most = if self.one_by_one { 1 } else { 60 };
                    let together = usize::try_from(1 + self.roll(most)).unwrap().min(left);
                    for _ in 0..together {
                        let (operation, body) = self.request();
                        steps.push(Step::Ask { actor, operation, body });
                    }
                    left -= together;
                }
            }
        }
        steps.push(Step::Trees);
        steps
    }

    /// Nodes for a session that is to expire.
    pub fn expiry(&mut self) -> Step {
        Step::Expire { ephemerals: (0..=self.roll(6)).map(|at| format!("{}/e{at}", self.top)).collect() }
    }

    fn request(&mut self) -> Request {
        match self.roll(40) {
            0..=14 => self.write(),
            15..=18 => self.multi(),
            19 | 20 => self.quota(),
            21 | 22 => self.watch_table(),
            23 => (op::SYNC, record(|out| _ = out.text(&self.open_path()))),
            24 => (op::WHO_AM_I, Vec::new()),
            25 if self.one_in(4) => self.reconfig(),
            26 if self.one_in(4) => (op::PING, Vec::new()),
            27 => self.odd(),
            _ => self.read(),
        }
    }

    /// Whose path a request is about does not hold: bytes are missing, too many, or an absurd length.
    fn odd(&mut self) -> Request {
        let (operation, mut body) = match self.roll(4) {
            0 => self.read(),
            1 => self.multi(),
            2 => self.watch_table(),
            _ => self.write(),
        };
        match self.roll(4) {
            0 => body.truncate(usize::try_from(self.roll(body.len() as u64 + 1)).unwrap()),
            1 => body.truncate(body.len().saturating_sub(1)),
            2 => body.extend_from_slice(&[0; 9][..usize::try_from(self.roll(9)).unwrap()]),
            _ => {
                let absurd = self.pick(&[-1, -2, i32::MIN, i32::MAX, 1 << 24, 1_048_575]);
                // The length of the path; or of what comes behind it.
                let behind = body.first_chunk().map_or(0, |length| 4 + i32::from_be_bytes(*length));
                // (In a multi that is somewhere in a path. See the list: text that is none.)
                let is_one = !matches!(operation, op::MULTI | op::MULTI_READ);
                let at = if is_one && self.one_in(2) { usize::try_from(behind).unwrap_or(0) } else { 0 };
                if let Some(place) = body.get_mut(at..at + 4) {
                    place.copy_from_slice(&absurd.to_be_bytes());
                }
            }
        }
        (operation, body)
    }

    fn path(&mut self) -> String {
        if self.one_in(25) {
            let bad = ["", "/", "//", "x", "/zookeeper", "/zookeeper/quota", "/\0", "/a/./b", "/a/", "/zookeeper/x"];
            return self.pick(&bad).to_owned();
        }
        let mut path = self.top.clone();
        if self.one_in(6) {
            path = path + "/" + SECRET;
        }
        for _ in 0..=self.roll(4) {
            path += "/";
            path += self.pick(&["a", "b", "c", "d"]);
        }
        if self.one_in(40) {
            path += self.pick(&["/", "/.", "/..", "//x", "/\u{1}", "/\u{1f600}", "/é", "\0", "/\u{7f}", "/\u{e000}"]);
        }
        path
    }

    /// A path that everybody may read, and that both servers write alike.
    fn open_path(&mut self) -> String {
        loop {
            let path = self.path();
            if !is_secret(&path) && path.chars().all(|character| character <= '\u{ffff}') {
                return path;
            }
        }
    }

    fn data(&mut self) -> Option<Vec<u8>> {
        if self.one_in(300) {
            return Some(vec![b'y'; usize::try_from(self.roll(40_000)).unwrap()]);
        }
        (!self.one_in(10)).then(|| vec![b'x'; usize::try_from(self.roll(30)).unwrap()])
    }

    fn version(&mut self) -> i32 {
        self.pick(&[-1, -1, -1, 0, 0, 1, 2, -2, i32::MIN])
    }

    fn acl(&mut self, path: &str) -> AclList {
        match self.roll(8) {
            0 => self.pick(&READABLE),
            1..=3 if is_secret(path) => self.pick(&CLOSED),
            _ => OPEN,
        }
    }

    fn create(&mut self) -> Request {
        let operation = self.pick(&[op::CREATE, op::CREATE, op::CREATE2, op::CREATE_CONTAINER, op::CREATE_TTL]);
        let usual = match operation {
            op::CREATE_TTL => self.pick(&[5, 6]),
            op::CREATE_CONTAINER => 4,
            _ => self.pick(&[0, 0, 0, 1, 2, 3]),
        };
        let (path, data) = (self.path(), self.data());
        let list = self.acl(&path);
        // See the list: createTTL with other flags.
        let is_odd = operation != op::CREATE_TTL && self.one_in(20);
        let flags = if is_odd { self.pick(&[0, 1, 2, 3, 7, -1]) } else { usual };
        let body = record(|out| {
            out.text(&path).buffer(data.as_deref());
            write_acl(out, list);
            out.i32(flags);
            if operation == op::CREATE_TTL {
                out.i64(self.pick(&TTLS));
            }
        });
        (operation, body)
    }

    fn write(&mut self) -> Request {
        match self.roll(20) {
            0..=9 => self.create(),
            10..=13 => (op::DELETE, record(|out| _ = out.text(&self.path()).i32(self.version()))),
            14 | 15 => {
                let path = self.path();
                let list = self.acl(&path);
                let body = record(|out| {
                    out.text(&path);
                    write_acl(out, list);
                    out.i32(self.version());
                });
                (op::SET_ACL, body)
            }
            _ => {
                let (path, data) = (self.path(), self.data());
                (op::SET_DATA, record(|out| _ = out.text(&path).buffer(data.as_deref()).i32(self.version())))
            }
        }
    }

    fn part_of_multi(&mut self) -> Request {
        loop {
            let request = match self.roll(30) {
                0 => self.read(),
                1..=6 => (op::CHECK, record(|out| _ = out.text(&self.path()).i32(self.version()))),
                _ => self.write(),
            };
            let (operation, body) = &request;
            // See the list: create2 and odd containers in a multi.
            let is_odd_container = *operation == op::CREATE_CONTAINER && !body.ends_with(&[0, 0, 0, 4]);
            if *operation != op::CREATE2 && !is_odd_container && (*operation != op::SET_ACL || self.one_in(50)) {
                return request;
            }
        }
    }

    fn multi(&mut self) -> Request {
        let parts: Vec<_> = (0..self.roll(5)).map(|_| self.part_of_multi()).collect();
        framed(op::MULTI, &parts)
    }

    fn quota(&mut self) -> Request {
        let top = format!("/zookeeper/quota{}", self.top);
        let soft = ["count=5,bytes=10", "count=-1,bytes=-1", "count=1000,bytes=100000"];
        let is_hard = self.one_by_one && self.one_in(2);
        let hard = "count=9,bytes=90=;byteHardLimit=200;countHardLimit=12";
        let limits = if is_hard { hard } else { self.pick(&soft) };
        let create = |path: &str, data: &str| {
            let body = record(|out| {
                out.text(path).buffer(Some(data.as_bytes()));
                write_acl(out, OPEN);
                out.i32(0);
            });
            (op::CREATE, body)
        };
        match self.roll(6) {
            0 => create(&top, ""),
            1 => create(&format!("{top}/zookeeper_limits"), limits),
            2 => {
                let path = format!("{top}/zookeeper_limits");
                (op::SET_DATA, record(|out| _ = out.text(&path).buffer(Some(limits.as_bytes())).i32(-1)))
            }
            3 => create(&format!("{top}/zookeeper_stats"), "count=0,bytes=0"),
            _ => {
                let path = format!("{top}/zookeeper_{}", self.pick(&["limits", "limits", "limits", "stats"]));
                (op::DELETE, record(|out| _ = out.text(&path).i32(-1)))
            }
        }
    }

    fn read(&mut self) -> Request {
        let path = self.path();
        let may_watch = !is_secret(&path) && watched(&path) == Watched::Once;
        match self.roll(9) {
            0 => (op::GET_ACL, record(|out| _ = out.text(&path))),
            1 => (op::GET_EPHEMERALS, record(|out| _ = out.text(if self.one_in(3) { "/" } else { &path }))),
            2 => (op::GET_ALL_CHILDREN_NUMBER, record(|out| _ = out.text(&path))),
            3 => {
                let parts: Vec<_> = (0..self.roll(4))
                    .map(|_| {
                        let operation = self.pick(&[op::GET_DATA, op::GET_CHILDREN]);
                        (operation, record(|out| _ = out.text(&self.path()).bool(false)))
                    })
                    .collect();
                framed(op::MULTI_READ, &parts)
            }
            _ => {
                let operation = self.pick(&[op::GET_DATA, op::EXISTS, op::GET_CHILDREN, op::GET_CHILDREN2]);
                (operation, record(|out| _ = out.text(&path).bool(may_watch && self.one_in(3))))
            }
        }
    }

    /// addWatch, removeWatches, checkWatches.
    fn watch_table(&mut self) -> Request {
        let path = loop {
            let path = self.open_path();
            // See the list: checkWatches of a path that is none.
            if path.starts_with('/') {
                break path;
            }
        };
        let (operation, kind) = match self.roll(4) {
            0 => {
                let kind = match watched(&path) {
                    Watched::Once => self.pick(&[2, -1]),
                    Watched::Persistently => 0,
                    Watched::Recursively => 1,
                };
                (op::ADD_WATCH, kind)
            }
            1 => (op::CHECK_WATCHES, self.pick(&[1, 2, 3, 3, 0])),
            _ if watched(&path) != Watched::Once => (op::REMOVE_WATCHES, self.pick(&[3, 3, 0])),
            _ => (op::REMOVE_WATCHES, self.pick(&[1, 2, 3, 3, 0])),
        };
        (operation, record(|out| _ = out.text(&path).i32(kind)))
    }

    fn set_watches(&mut self, actor: usize) -> Step {
        let (operation, count) = self.pick(&[(op::SET_WATCHES, 3), (op::SET_WATCHES2, 5)]);
        let lists = (0..count)
            .map(|list| {
                let wanted = match list {
                    0..=2 => Watched::Once,
                    3 => Watched::Persistently,
                    _ => Watched::Recursively,
                };
                let paths: Vec<_> = (0..self.roll(6)).map(|_| self.open_path()).collect();
                paths.into_iter().filter(|path| watched(path) == wanted).collect()
            })
            .collect();
        Step::SetWatches { actor, operation, back: usize::try_from(self.roll(30)).unwrap(), lists }
    }

    fn reconfig(&mut self) -> Request {
        let body = record(|out| {
            out.text("server.9=127.0.0.1:1:2;3").buffer(None).buffer(None).i64(self.pick(&[-1, 0]));
        });
        (op::RECONFIG, body)
    }

    /// What ends a connection, or goes past the other requests.
    fn last(&mut self, actor: usize) -> Step {
        let step = |xid, operation, body| Step::Last { actor, xid, operation, body };
        match self.roll(4) {
            0 => {
                let unknown = [0, 10, 23, 99, 108, -1, 500, 503, 507, 1 << 30, i32::MIN];
                step(1_000_000, self.pick(&unknown), record(|out| _ = out.text(&self.path()).bool(false)))
            }
            _ => {
                let scheme = self.pick(&["digest", "digest", "digest", "ip", "world", "super", "x509", "none", ""]);
                let proof = self.pick(&[&b"bob:pw"[..], b"anna:pw", b"nocolon", b"", b":", b"a:b:c"]);
                let kind = self.pick(&[0, 0, 1]);
                let body = record(|out| _ = out.i32(kind).text(scheme).buffer(Some(proof)));
                step(self.pick(&[-4, -4, 7]), op::AUTH, body)
            }
        }
    }

    fn come_back(&mut self, actor: usize) -> Step {
        let how = self.pick(&[
            Return::Properly,
            Return::Properly,
            Return::WhileThere,
            Return::WrongPassword,
            Return::ShortPassword,
            Return::FromTheFuture,
        ]);
        Step::Return { actor, how }
    }

    fn stranger(&mut self) -> Step {
        let timeout_ms = self.pick(&[0, -1, 1, 999, 1_000, 1_001, 30_000, 600_000, 600_001, i32::MAX, i32::MIN]);
        let bytes = match self.roll(3) {
            0 => record(|out| _ = out.i32(8).i32(1).i32(op::CLOSE_SESSION)),
            1 => {
                let length = self.pick(&[-1, i32::MIN, i32::MAX, 1_048_576, 0, 1, 3, 4, 7]);
                record(|out| _ = out.i32(length).raw(&[0; 7][..usize::try_from(length.clamp(0, 7)).unwrap()]))
            }
            // Half a request.
            _ => record(|out| _ = out.i32(30).i32(1).u16(0)),
        };
        Step::Stranger { timeout_ms, has_read_only: self.one_in(2), bytes }
    }

    /// Handshakes that are none.
    fn garbage(&mut self) -> Vec<u8> {
        let mut hello = record(|out| _ = out.i32(0).i64(0).i32(30_000).i64(0).buffer(Some(&[0; 16])).bool(false));
        match self.roll(4) {
            0 => hello.truncate(usize::try_from(self.roll(43)).unwrap()),
            1 => {
                let password = self.pick(&[-2, i32::MIN, i32::MAX, 1 << 24, 18, 100]);
                hello[24..28].copy_from_slice(&i32::to_be_bytes(password));
            }
            _ => {
                let length = self.pick(&[-1, i32::MIN, i32::MAX, 1_048_576, 3, 0]);
                let mut bytes = length.to_be_bytes().to_vec();
                bytes.extend_from_slice(&hello[..usize::try_from(length.clamp(0, 44)).unwrap()]);
                return bytes;
            }
        }
        let mut bytes = u32::try_from(hello.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&hello);
        bytes
    }
}
