//! Four-letter words: four bytes instead of a handshake, text in return, and the connection is closed.

mod clickhouse;
mod facts;
mod zookeeper;

use std::collections::BTreeMap;

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Consistency;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Outcome;

pub use self::facts::Facts;
pub use self::facts::Member;
pub use self::facts::TreeCounts;
use super::Purpose;
use super::Shared;
use super::connection::Connection;
use super::connection::Phase;
use super::rcfg;
use crate::call::call_head;
use crate::call::own;
use crate::call::split_reply;
use crate::jute::Reader;

/// Every word that is one here, of ZooKeeper and of ClickHouse Keeper.
const WORDS: &[&[u8; 4]] = &[
    b"ruok", b"mntr", b"srvr", b"stat", b"conf", b"cons", b"crst", b"srst", b"dirs", b"dump", b"envi", b"isro",
    b"wchs", b"wchc", b"wchp", b"hash", b"gtmk", b"stmk", b"apiv", b"csnp", b"lgif", b"rqld", b"rclc", b"clrs",
    b"ftfl", b"ydld", b"rcvr", b"lgrq", b"pfev", b"jmst", b"jmfp", b"jmep", b"jmdp",
];

/// Instead of a text that is more than what can be handed to the host at once.
const TOO_LONG: &str = "The answer is too long to be sent.\n";

/// The word that something follows: a plan's length, and the plan. ClickHouse Keeper's alone.
const PLAN: &[u8; 4] = b"rcfg";

/// The word that gives up the other servers. It is said to whoever reaches the port, so it is allowed by its name alone.
pub const RECOVER: &[u8; 4] = b"rcvr";

/// Whether a connection's first four bytes are a word. As the length of a frame each would be absurd.
pub fn is_known(shared: &Shared, first: [u8; 4]) -> bool {
    WORDS.contains(&&first) || first == *PLAN && shared.settings.is_clickhouse()
}

/// What stands behind a word and belongs to it, if anything does: all of it, or why not; `None` while more of it is to come.
pub fn argument<'a>(shared: &Shared, word: [u8; 4], behind: &'a [u8]) -> Option<Result<&'a [u8], String>> {
    if word != *PLAN || !allows(shared, word) {
        return Some(Ok(&[]));
    }
    let (length, rest) = behind.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length);
    match usize::try_from(length) {
        Ok(length) if length <= rcfg::PLAN_BYTES_MAX => rest.get(..length).map(Ok),
        _ => Some(Err(format!("Reconfigure command has {length} bytes; {} are the most", rcfg::PLAN_BYTES_MAX))),
    }
}

/// What a word needs to know from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of the node and the group, from the host.
    Status,
    /// Of the tree.
    Counts,
    /// Of the tree: who owns which ephemeral nodes.
    Ephemerals,
    /// The host was asked to do something.
    Deed,
    /// A plan is carried out.
    Plan,
}

impl Part {
    /// In the order they are asked for.
    fn of(word: &[u8; 4]) -> &'static [Self] {
        match word {
            b"srvr" | b"stat" | b"mntr" => &[Self::Status, Self::Counts],
            b"conf" | b"lgif" | b"dirs" | b"envi" | b"isro" => &[Self::Status],
            b"dump" => &[Self::Ephemerals],
            // What the host sums up begins anew with what is counted here.
            b"csnp" | b"rqld" | b"ydld" | b"srst" | RECOVER => &[Self::Deed],
            PLAN => &[Self::Plan],
            _ => &[],
        }
    }
}

/// Words whose answers are being gathered, by connection.
#[derive(Debug, Default)]
pub struct Words(BTreeMap<ConnectionId, Gathering>);

impl Words {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nobody waits for the answer any more.
    pub fn forget(&mut self, connection: ConnectionId) {
        self.0.remove(&connection);
    }
}

#[derive(Debug)]
struct Gathering {
    word: [u8; 4],
    missing: usize,
    known: Known,
}

/// What a word's answer is made of.
#[derive(Debug, Default)]
pub struct Known {
    pub facts: Facts,
    pub counts: TreeCounts,
    /// Ephemeral nodes by session.
    pub ephemerals: BTreeMap<u64, Vec<String>>,
    /// What the host did, if it did; what became of a plan.
    pub deed: Option<String>,
    /// Why it did not.
    pub refusal: Option<String>,
}

/// A word came: asks for what it needs. [`step`] answers it.
pub fn start(
    connection: ConnectionId,
    word: [u8; 4],
    argument: Result<&[u8], String>,
    shared: &mut Shared,
    io: &mut Io<'_>,
) {
    let parts = if allows(shared, word) { Part::of(&word) } else { &[] };
    let gathering = Gathering { word, missing: parts.len(), known: Known::default() };
    shared.words.0.insert(connection, gathering);
    shared.words_ready |= parts.is_empty();
    if parts == [Part::Plan] {
        return rcfg::start(shared, io, connection, argument);
    }
    for part in parts {
        let token = shared.pending.keep(Purpose::Word { connection, part: *part });
        let operation = match part {
            Part::Status => {
                io.ask(token, "status");
                continue;
            }
            Part::Deed => {
                io.ask(
                    token,
                    match &word {
                        b"csnp" => "snapshot",
                        b"srst" => "reset",
                        // Whoever takes the lead makes the leader give it up.
                        b"ydld" if io.leads() => "yield",
                        // The host ends for it: who asked hears the answer first.
                        RECOVER => "recover check",
                        _ => "lead",
                    },
                );
                continue;
            }
            Part::Counts => own::STATUS,
            Part::Ephemerals => own::EPHEMERALS,
            Part::Plan => continue,
        };
        shared.frame.clear();
        call_head(operation, std::iter::empty(), &mut shared.frame);
        io.query(token, Consistency::Local, None, &shared.frame);
    }
}

/// A plan came to this.
pub fn planned(shared: &mut Shared, connection: ConnectionId, text: String) {
    gathered(shared, connection, Part::Plan, &Outcome::Ok(text.as_bytes()));
}

fn allows(shared: &Shared, word: [u8; 4]) -> bool {
    std::str::from_utf8(&word).is_ok_and(|word| shared.settings.words.allows(word))
}

/// Something a word waited for is there.
pub fn gathered(shared: &mut Shared, connection: ConnectionId, part: Part, outcome: &Outcome<'_>) {
    let Some(gathering) = shared.words.0.get_mut(&connection) else { return };
    gathering.missing = gathering.missing.saturating_sub(1);
    shared.words_ready |= gathering.missing == 0;
    // What is missing is left out: a word must answer when little else does.
    let bytes = match *outcome {
        Outcome::Ok(bytes) => bytes,
        Outcome::Failed { detail, .. } if part == Part::Deed => {
            gathering.known.refusal = Some(detail.to_owned());
            return;
        }
        _ => return,
    };
    match part {
        Part::Status => gathering.known.facts = Facts::parse(bytes).unwrap_or_default(),
        Part::Deed | Part::Plan => gathering.known.deed = Some(String::from_utf8_lossy(bytes).into_owned()),
        Part::Counts | Part::Ephemerals => {
            let Ok((0, body)) = split_reply(bytes) else { return };
            let mut reader = Reader::new(body);
            if part == Part::Counts {
                gathering.known.counts = TreeCounts::read(&mut reader).unwrap_or_default();
                return;
            }
            for _ in 0..reader.count().ok().flatten().unwrap_or(0) {
                let (Ok(session), Ok(paths)) = (reader.i64(), reader.texts()) else { return };
                let paths = paths.into_iter().map(str::to_owned).collect();
                gathering.known.ephemerals.insert(session as u64, paths);
            }
        }
    }
}

/// What an answer is written from.
pub struct View<'a> {
    pub connections: &'a BTreeMap<ConnectionId, Connection>,
    pub shared: &'a Shared,
    pub known: &'a Known,
    pub zxid: i64,
    /// Whether somebody leads.
    pub has_leader: bool,
    /// Unix milliseconds.
    pub now_ms: u64,
}

impl View<'_> {
    /// Whether clients are served, if only to read.
    fn is_serving(&self) -> bool {
        self.has_leader || self.shared.settings.read_only_mode
    }

    /// The node's role in ZooKeeper's words.
    fn mode(&self) -> &str {
        if self.has_leader || !self.is_serving() { self.known.facts.mode() } else { "read-only" }
    }

    /// For how long this node has led, as far as this listener saw it.
    fn leader_uptime_ms(&self) -> u64 {
        self.shared.leading_since_ms.map_or(0, |since_ms| self.now_ms.saturating_sub(since_ms))
    }
}

/// Answers the words that have all they need.
pub fn step(connections: &mut BTreeMap<ConnectionId, Connection>, shared: &mut Shared, io: &mut Io<'_>) {
    if !std::mem::take(&mut shared.words_ready) {
        return;
    }
    let ready: Vec<ConnectionId> =
        shared.words.0.iter().filter(|(_, gathering)| gathering.missing == 0).map(|(id, _)| *id).collect();
    for id in ready {
        let Some(Gathering { word, known, .. }) = shared.words.0.remove(&id) else { continue };
        let text = answer(connections, shared, io, &word, &known);
        match &word {
            b"crst" if allows(shared, word) => {
                connections.values_mut().for_each(|connection| connection.stats = Default::default());
            }
            b"srst" if allows(shared, word) => shared.stats = Default::default(),
            _ => {}
        }
        let text = if shared.outlet.takes(text.len()) { text } else { TOO_LONG.to_owned() };
        if !text.is_empty() {
            io.send(id, text.as_bytes());
            shared.stats.sent += 1;
        }
        if let Some(connection) = connections.get_mut(&id) {
            connection.phase = Phase::Word;
            connection.close(shared, io);
            if word == *RECOVER && known.deed.is_some() {
                statehouse_sdk::warn!("rcvr: {} gives up the other servers", connection.peer);
                let token = shared.pending.keep(Purpose::Word { connection: id, part: Part::Deed });
                io.ask(token, "recover");
            }
        }
    }
}

fn answer(
    connections: &BTreeMap<ConnectionId, Connection>,
    shared: &Shared,
    io: &Io<'_>,
    word: &[u8; 4],
    known: &Known,
) -> String {
    let text = String::from_utf8_lossy(word);
    let is_clickhouse = shared.settings.is_clickhouse();
    if !shared.settings.words.allows(&text) {
        // ClickHouse Keeper closes without a word.
        let refused = format!("{text} is not executed because it is not in the whitelist.\n");
        return if is_clickhouse { String::new() } else { refused };
    }
    if word == RECOVER {
        return match (&known.deed, &known.refusal) {
            (Some(_), _) => "ok".to_owned(),
            (None, Some(why)) => format!("{why}\n"),
            (None, None) => "Failed to begin the recovery.\n".to_owned(),
        };
    }
    let zxid = shared.settings.zxid(io.applied());
    let view = View { connections, shared, known, zxid, has_leader: io.has_leader(), now_ms: io.time_ms() };
    let answer = if is_clickhouse { clickhouse::answer(word, &view) } else { None };
    answer.unwrap_or_else(|| zookeeper::answer(word, &view))
}
