//! What the fuzzer does with bytes, and what a test does with random ones: they play clients that mean no good to a
//! small cluster, through the adapter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a fuzzer reports by panicking")]

use statehouse_sdk::adapter::Adapter;
use statehouse_sdk::codec::Raw;
use statehouse_sdk::testing_adapter::Client;
use statehouse_sdk::testing_adapter::Desk;

use crate::ZnodeTree;
use crate::adapter::Kept;
use crate::adapter::ZooKeeper;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::wire::MultiHeader;
use crate::wire::op;

/// How many nodes the cluster has.
const NODES: usize = 2;
/// What was done by then is enough for one input.
const DEEDS_MAX: usize = 400;
/// When so much was sent, the adapters are called: the host gives them about so much at once.
const STEP_BYTES: usize = 1 << 20;
/// Every operation that a client may send, and some that it may not.
const OPERATIONS: [i32; 42] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 100, 101, 102, 103, 104, 105, 106, 107,
    500, 501, 502, 503, 504, 505, 506, 507, -11, -10, 997, 10_002, 10_007,
];
const PATHS: [&str; 16] = [
    "/",
    "/a",
    "/a/b",
    "/a/b/c",
    "/c",
    "",
    "a",
    "/a/",
    "//",
    "/zookeeper",
    "/zookeeper/config",
    "/zookeeper/quota/a",
    "/zookeeper/quota/a/zookeeper_limits",
    "/keeper/api_version",
    "/x\0",
    "/é/日本",
];
const SCHEMES: [(&str, &str); 8] = [
    ("world", "anyone"),
    ("auth", ""),
    ("digest", "u:h"),
    ("digest", "nobody"),
    ("ip", "10.0.0.0/8"),
    ("ip", "::1/129"),
    ("super", ""),
    ("", ""),
];
const WORDS: [&str; 14] =
    ["ruok", "mntr", "srvr", "stat", "cons", "dump", "wchs", "wchc", "wchp", "conf", "crst", "isro", "rcfg", "rcvr"];
/// What stands behind `rcfg`.
const PLANS: [&str; 6] = [
    r#"{"actions":[]}"#,
    r#"{"actions":[{"remove_members":[2,3],"retry":3}],"max_action_wait_time_ms":5000,"max_total_wait_time_ms":30000}"#,
    r#"{"actions":[{"transfer_leadership":[1,2]},{"set_priority":[{"id":2,"priority":9}]}],"max_total_wait_time_ms":9000}"#,
    r#"{"preconditions":{"leaders":[1],"members":[1,2]},"actions":[{"add_members":[{"id":4}]}],"max_total_wait_time_ms":1}"#,
    r#"{"actions":[{"remove_members":[1]}]}"#,
    "[",
];
/// What the host says of members, as their leader sees them.
const MEMBERS: &str =
    r#"{"leader":1,"members":[{"id":1,"address":"a:1","role":"voter"},{"id":2,"address":"b:1","role":"voter"}]}"#;

/// The bytes, as choices.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.below(sides) == 0
    }

    fn number(&mut self) -> i32 {
        match self.byte() {
            byte @ 0..200 => i32::from(byte % 16) - 2,
            byte => i32::from_be_bytes([byte, self.byte(), self.byte(), self.byte()]),
        }
    }

    fn bytes(&mut self, bound: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(self.below(bound).min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    /// Bytes that repeat: much, for few choices.
    fn data(&mut self) -> Vec<u8> {
        let length = if self.one_in(8) { self.below(200) * 500 } else { self.below(40) };
        vec![self.byte(); length]
    }
}

/// A body that is nearly what the operation has.
fn body(choices: &mut Choices<'_>, operation: i32, depth: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let out = &mut Writer::new(&mut bytes);
    match operation {
        op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL | op::CREATE_IF_NOT_EXISTS => {
            out.text(choices.one_of(&PATHS)).buffer(Some(&choices.data()));
            acl(choices, out);
            out.i32(choices.below(8) as i32);
            if operation == op::CREATE_TTL {
                out.i64(choices.number().into());
            }
        }
        op::SET_ACL => {
            out.text(choices.one_of(&PATHS));
            acl(choices, out);
            out.i32(choices.number());
        }
        op::SET_DATA => {
            out.text(choices.one_of(&PATHS)).buffer(Some(&choices.data())).i32(choices.number());
        }
        op::AUTH => {
            let (scheme, id) = choices.one_of(&SCHEMES);
            out.i32(0).text(scheme).text(id);
        }
        op::SET_WATCHES | op::SET_WATCHES2 => {
            out.i64(choices.number().into());
            for _ in 0..5 {
                let paths: Vec<_> = (0..choices.below(4)).map(|_| choices.one_of(&PATHS)).collect();
                out.texts(paths.iter());
            }
        }
        op::MULTI | op::MULTI_READ if depth < 2 => {
            for _ in 0..choices.below(8) {
                let operation = choices.one_of(&OPERATIONS);
                MultiHeader { op: operation, done: false, err: -1 }.write(out);
                out.raw(&body(choices, operation, depth + 1));
            }
            MultiHeader::END.write(out);
        }
        op::RECONFIG => {
            out.text("").text("").text("").i64(-1);
        }
        _ => {
            // A path, and what most operations have behind it: a flag, a number, a stat.
            out.text(choices.one_of(&PATHS));
            match choices.below(4) {
                0 => drop(out.bool(choices.one_in(2))),
                1 => drop(out.bool(choices.one_in(2)).u8(choices.byte()).bool(true).bool(choices.one_in(2))),
                2 => drop(out.i32(choices.number())),
                _ => drop(out.i32(choices.number()).raw(&[0xff; 68])),
            }
        }
    }
    bytes
}

fn acl(choices: &mut Choices<'_>, out: &mut Writer<'_>) {
    let count = choices.below(4);
    out.count(count);
    for _ in 0..count {
        let (scheme, id) = choices.one_of(&SCHEMES);
        out.i32(choices.number()).text(scheme).text(id);
    }
}

/// A connection, as its client sees it.
struct Peer {
    client: Client,
    received: Vec<u8>,
    /// The xids of its requests that are not answered, while it has behaved: in an ordinary protocol, frames whole.
    asked: Option<Vec<i32>>,
    xid: i32,
    /// Id and password of its session.
    session: Option<(i64, Vec<u8>)>,
}

/// Who is played with: the adapter, or what stands for it.
pub trait Played: Adapter {
    /// What is kept of clients now.
    fn kept(&self) -> Kept;
}

impl Played for ZooKeeper {
    fn kept(&self) -> Kept {
        Self::kept(self)
    }
}

struct Play<'a, A> {
    choices: Choices<'a>,
    desk: Desk<ZnodeTree, Raw, A>,
    peers: Vec<Peer>,
    /// Bytes that the adapters were not given yet.
    sent: usize,
}

/// One of [`rounds`], with the adapter itself.
pub fn adapter(bytes: &[u8]) {
    rounds::<ZooKeeper>(bytes, 1, |_| {});
}

/// Clients do whatever `bytes` say: connect in each of the protocols, with and without a session of their own or
/// another's; send requests that are right, nearly right or nothing of the kind, cut anywhere; go away; while the cluster
/// loses its leader, a node lags, a listener is lost, and time passes.
///
/// # Panics
/// If anything panics; if a client that behaved gets anything but whole answers in the order of its requests; if a
/// well-behaved client is not served after all that; or if something is kept of clients that are gone.
///
/// All of it so many times, by new clients at the same nodes; `look` is shown the first node's adapter after each.
pub fn rounds<A: Played>(bytes: &[u8], count: usize, mut look: impl FnMut(&A)) {
    let mut choices = Choices(bytes);
    let params = choices.one_of(&[
        "{}",
        r#"{"compatibility":"clickhouse"}"#,
        r#"{"extended_types":true,"enforce_quota":true,"container_check_interval_ms":1000}"#,
        r#"{"skip_acl":true,"memory_soft_limit_bytes":20000}"#,
    ]);
    let listen = choices.one_of(&[
        r#"{"four_letter_words":"*"}"#,
        r#"{"four_letter_words":"*,rcvr","quorum_reads":true,"outstanding_limit":3}"#,
        r#"{"four_letter_words":"*","jute_maxbuffer":1024,"tick_time_ms":1000,"read_only_mode":true,"audit":true}"#,
    ]);
    let settings = format!(r#"{{"params":{params},"listen":{listen},"node":1}}"#);
    let mut desk = Desk::new(NODES, params, &settings);
    desk.tell("recover check", r#"{"recovers":false}"#);
    let mut changes = 0;
    desk.change_by(move |_| {
        changes += 1;
        if changes % 3 == 0 { Err(("timeout", "for once")) } else { Ok(MEMBERS.to_owned()) }
    });
    let deeds = choices.0;
    let mut play = Play { choices, desk, peers: Vec::new(), sent: 0 };
    for _ in 0..count {
        play.choices = Choices(deeds);
        for _ in 0..DEEDS_MAX {
            if play.choices.0.is_empty() {
                break;
            }
            play.deed();
        }
        play.end();
        look(play.desk.adapter(0).unwrap());
    }
}

impl<A: Played> Play<'_, A> {
    fn deed(&mut self) {
        match self.choices.below(32) {
            0..=3 => self.connect(),
            4 => {
                let word = self.choices.one_of(&WORDS);
                let mut bytes = word.as_bytes().to_vec();
                if word == "rcfg" {
                    let plan = self.choices.one_of(&PLANS);
                    let length = if self.choices.one_in(8) { self.choices.number() } else { plan.len() as i32 };
                    Writer::new(&mut bytes).i32(length).raw(plan.as_bytes());
                }
                self.dial("10.1.2.3:50000", &bytes);
            }
            5 => {
                let bytes = self.choices.bytes(100);
                self.dial("not an address", &bytes);
            }
            6 => {
                if !self.peers.is_empty() {
                    let gone = self.peers.swap_remove(self.choices.below(self.peers.len()));
                    self.desk.hang_up(gone.client);
                }
            }
            7 => self.desk.lead([None, Some(0), Some(1)][self.choices.below(3)]),
            8 => self.desk.lag(1, self.choices.one_in(2)),
            9 if self.choices.one_in(4) => self.desk.restart(self.choices.below(NODES)),
            10 => self.desk.advance(self.choices.below(256) as u64 * 100),
            11..=13 => self.run(),
            _ => self.request(),
        }
    }

    /// Somebody sends that and says no more.
    fn dial(&mut self, from: &str, bytes: &[u8]) {
        let client = self.desk.connect(self.choices.below(NODES), from);
        self.send(client, bytes);
    }

    fn send(&mut self, client: Client, bytes: &[u8]) {
        self.desk.send(client, bytes);
        self.sent += bytes.len();
        if self.sent > STEP_BYTES {
            self.sent = 0;
            self.desk.run();
        }
    }

    fn connect(&mut self) {
        let node = self.choices.below(NODES);
        let version = self.choices.one_of(&[0, 0, 0, 0, 10, 11, 12]);
        let known = self.peers.iter().filter_map(|peer| peer.session.clone()).next_back();
        let (session, password) = match (self.choices.below(4), known) {
            (0, Some(known)) => known,
            (1, _) => (i64::from(self.choices.number()), vec![self.choices.byte(); self.choices.below(20)]),
            _ => (0, vec![0; 16]),
        };
        let mut hello = Vec::new();
        let out = &mut Writer::new(&mut hello);
        out.i32(version);
        if version == 11 {
            out.bool(self.choices.one_in(2));
        }
        let zxid = if self.choices.one_in(8) { i64::from(self.choices.number()) } else { 0 };
        out.i64(zxid).i32(self.choices.number()).i64(session).buffer(Some(&password));
        let has_read_only = self.choices.one_in(2);
        if has_read_only {
            out.bool(self.choices.one_in(2));
        }
        let mut frame = Vec::new();
        // Protocol 11 does not count its byte.
        Writer::new(&mut frame).count(hello.len() - usize::from(version == 11)).raw(&hello);
        let client = self.desk.connect(node, "10.1.2.3:50000");
        self.send(client, &frame);
        let asked = (version == 0).then(Vec::new);
        self.peers.push(Peer { client, received: Vec::new(), asked, xid: 0, session: None });
    }

    fn request(&mut self) {
        let Some(last) = self.peers.len().checked_sub(1) else { return self.connect() };
        let at = last - self.choices.below(self.peers.len().min(3));
        let operation = self.choices.one_of(&OPERATIONS);
        let mut rest = body(&mut self.choices, operation, 0);
        match self.choices.below(16) {
            0 => rest.truncate(self.choices.below(rest.len() + 1)),
            1 => rest.extend(self.choices.bytes(20)),
            2 if !rest.is_empty() => {
                let at = self.choices.below(rest.len());
                rest[at] = self.choices.byte();
            }
            _ => {}
        }
        let peer = &mut self.peers[at];
        peer.xid += 1;
        let xid = match operation {
            op::PING => -2,
            op::AUTH => -4,
            op::SET_WATCHES | op::SET_WATCHES2 => -8,
            _ => peer.xid,
        };
        let mut frame = Vec::new();
        let is_odd = self.choices.one_in(64);
        let length = if is_odd { self.choices.number() } else { 8 + rest.len() as i32 };
        Writer::new(&mut frame).i32(length).i32(xid).i32(operation).raw(&rest);
        match &mut peer.asked {
            _ if is_odd => peer.asked = None,
            Some(asked) => asked.push(xid),
            None => {}
        }
        let cut = if self.choices.one_in(4) { self.choices.below(frame.len()) } else { frame.len() };
        let (first, second) = frame.split_at(cut);
        let client = peer.client;
        self.send(client, first);
        if !second.is_empty() && self.choices.one_in(2) {
            self.desk.run();
        }
        self.send(client, second);
    }

    fn run(&mut self) {
        self.sent = 0;
        self.desk.run();
        for peer in &mut self.peers {
            peer.received.extend(self.desk.take(peer.client));
            peer.look();
        }
    }

    /// Everybody goes away, and all is well again.
    fn end(&mut self) {
        self.run();
        self.desk.lag(1, false);
        self.desk.lead(Some(0));
        self.run();
        for peer in self.peers.drain(..) {
            self.desk.hang_up(peer.client);
        }
        self.desk.advance(110_000);
        for node in 0..NODES {
            let kept = self.desk.adapter(node).map(A::kept);
            assert_eq!(kept, Some(Kept::default()), "of clients that are gone nothing is kept");
            self.serve(node);
        }
    }

    /// Whoever behaves is served.
    fn serve(&mut self, node: usize) {
        let client = self.desk.connect(node, "10.9.9.9:50000");
        let mut bytes = Vec::new();
        let out = &mut Writer::new(&mut bytes);
        out.i32(45).i32(0).i64(0).i32(10_000).i64(0).buffer(Some(&[0; 16])).bool(false);
        out.i32(14).i32(1).i32(op::EXISTS).text("/").bool(false);
        self.desk.send(client, &bytes);
        self.desk.run();
        let mut peer = Peer { client, received: self.desk.take(client), asked: Some(vec![1]), xid: 1, session: None };
        peer.look();
        assert_eq!(peer.asked, Some(Vec::new()));
        self.desk.hang_up(client);
        self.desk.run();
    }
}

impl Peer {
    /// Takes what was received: a welcome, then answers in the order of the requests, and notifications.
    fn look(&mut self) {
        let Some(asked) = &mut self.asked else { return self.received.clear() };
        while let Some((length, rest)) = self.received.split_first_chunk() {
            let length = i32::from_be_bytes(*length);
            let Some(frame) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
                // Nothing is cut within one call of the adapter: it is the refusal that only ClickHouse knows, or
                // nonsense.
                panic!("a frame of {length} bytes, of which there are {}", rest.len());
            };
            let mut reader = Reader::new(frame);
            if self.session.is_none() {
                let _version = reader.i32().unwrap();
                let _timeout_ms = reader.i32().unwrap();
                let session = reader.i64().unwrap();
                self.session = Some((session, reader.buffer().unwrap().unwrap().to_vec()));
            } else {
                let (xid, _zxid, _error) = (reader.i32().unwrap(), reader.i64().unwrap(), reader.i32().unwrap());
                if xid != -1 {
                    // A ping is answered while members change, which may take its time.
                    let place = if xid == -2 { asked.iter().position(|asked| *asked == xid).unwrap_or(0) } else { 0 };
                    assert_eq!(asked.get(place), Some(&xid), "answers come in the order of the requests");
                    asked.remove(place);
                }
            }
            let used = 4 + frame.len();
            self.received.drain(..used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_clients_break_nothing_and_leave_nothing() {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..random() % 3_000).map(|_| random() as u8).collect();
            adapter(&bytes);
        }
    }
}
