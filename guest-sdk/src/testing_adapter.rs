//! Native tests of an adapter: `cargo test`, no host, no sockets, no WebAssembly.
//!
//! A [`Desk`] is a small cluster in one process: nodes that share one log, each with an instance of
//! the state machine and one of the adapter, and clients whose connections are bytes in memory. It
//! keeps the order that [`adapter`](crate::adapter) promises, and nothing happens but in
//! [`Desk::run`], so a test tells a story step by step:
//!
//! * [`connect`](Desk::connect), [`send`](Desk::send), [`take`](Desk::take), [`hang_up`](Desk::hang_up): clients;
//! * [`advance`](Desk::advance): time, with timers and the end of sessions;
//! * [`lag`](Desk::lag): a node that does not apply; [`lead`](Desk::lead): who leads, or nobody;
//! * [`restart`](Desk::restart): an adapter that is lost with its connections;
//! * [`tell`](Desk::tell), [`change_by`](Desk::change_by), [`hold_told`](Desk::hold_told): what the host says when it is asked.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use crate::adapter::Adapter;
use crate::adapter::Asked;
use crate::adapter::ConnectionId;
use crate::adapter::Consistency;
use crate::adapter::Input;
use crate::adapter::Io;
use crate::adapter::Lost;
use crate::adapter::Outcome;
use crate::adapter::Session;
use crate::adapter::Token;
use crate::codec::Codec;
use crate::context::Effects;
use crate::context::Header;
use crate::guest::Guest;
use crate::machine::StateMachine;
use crate::testing::START_MS;

/// Answers a `change`: with JSON, or an error's code and its detail.
type Changer = Box<dyn FnMut(&str) -> Result<String, (&'static str, &'static str)>>;

/// A client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    /// The node it is connected to, from 0.
    pub node: usize,
    /// Its number there.
    pub connection: ConnectionId,
}

/// What became of a client's bytes.
#[derive(Debug, Default)]
struct Line {
    sent: Vec<u8>,
    held: VecDeque<Vec<u8>>,
    is_held: bool,
    is_closed: bool,
}

/// An entry of the log.
#[derive(Clone, Debug)]
enum Entry {
    Init(Vec<u8>),
    Command { session: u64, command: Vec<u8> },
    Open { timeout_ms: u64, secret: [u8; 16] },
    Attach { session: u64, secret: [u8; 16] },
    Close { session: u64 },
    Timer { id: u64 },
}

/// Who proposed an entry.
#[derive(Clone, Copy, Debug)]
struct Origin {
    node: usize,
    token: Token,
    attachment: u64,
}

#[derive(Clone, Debug)]
struct Logged {
    entry: Entry,
    time_ms: u64,
    origin: Option<Origin>,
}

/// A session as the log tells of it.
#[derive(Clone, Copy, Debug)]
struct Known {
    session: Session,
    node: usize,
}

struct Node<M, C, A> {
    guest: Guest<M, C>,
    adapter: A,
    applied: u64,
    lags: bool,
    sessions: BTreeMap<u64, Known>,
    lines: BTreeMap<ConnectionId, Line>,
    inputs: Vec<u8>,
    has_inputs: bool,
    timers: BTreeMap<u64, u64>,
    /// Linearizable queries that wait until the node has the log up to this index.
    waiting: Vec<(u64, Token, u64, Vec<u8>)>,
}

/// A cluster for native tests of an adapter; see the [module](self).
pub struct Desk<M, C, A> {
    nodes: Vec<Node<M, C, A>>,
    log: Vec<Logged>,
    leader: Option<usize>,
    time_ms: u64,
    settings: Vec<u8>,
    connections: u64,
    random: u64,
    /// When each session was last heard of.
    heard_ms: BTreeMap<u64, u64>,
    machine_timers: BTreeMap<u64, u64>,
    /// What `Io::ask` is told, by what was asked.
    told: BTreeMap<String, String>,
    /// Who answers a `change`.
    changer: Option<Changer>,
    /// Answers to what was asked, that wait; by node.
    held_told: Option<Vec<(usize, Vec<u8>)>>,
    /// What the adapters asked, since the last look: to be counted by tests.
    asked: Vec<(usize, Asked)>,
    keeps_asked: bool,
}

impl<M: StateMachine, C: Codec<M>, A: Adapter> Desk<M, C, A> {
    /// So many nodes, the first of them leading. `params`: the group's, a JSON object; `settings`: what the adapters are
    /// opened with.
    ///
    /// # Panics
    /// If the machine or the adapter refuses them; as every method here, if the adapter breaks the ABI.
    #[track_caller]
    pub fn new(nodes: usize, params: &str, settings: &str) -> Self {
        let mut desk = Self {
            nodes: Vec::new(),
            log: Vec::new(),
            leader: Some(0),
            time_ms: START_MS,
            settings: settings.as_bytes().to_vec(),
            connections: 0,
            random: 1,
            heard_ms: BTreeMap::new(),
            machine_timers: BTreeMap::new(),
            told: BTreeMap::new(),
            changer: None,
            held_told: None,
            asked: Vec::new(),
            keeps_asked: false,
        };
        desk.append(Entry::Init(params.as_bytes().to_vec()), None);
        for node in 0..nodes {
            let mut asked = Vec::new();
            let adapter = desk.open_adapter(node, 0, &mut asked);
            desk.nodes.push(Node {
                guest: Guest::default(),
                adapter,
                applied: 0,
                lags: false,
                sessions: BTreeMap::new(),
                lines: BTreeMap::new(),
                inputs: Vec::new(),
                has_inputs: false,
                timers: BTreeMap::new(),
                waiting: Vec::new(),
            });
            desk.carry_out(node, &asked);
        }
        desk.run();
        desk
    }

    /// A client connects from `peer`.
    pub fn connect(&mut self, node: usize, peer: &str) -> Client {
        self.connections += 1;
        let connection = self.connections;
        if let Some(at) = self.nodes.get_mut(node) {
            at.lines.insert(connection, Line::default());
            at.push(&Input::Opened { connection, peer });
        }
        Client { node, connection }
    }

    /// A client sends; as one piece.
    pub fn send(&mut self, client: Client, bytes: &[u8]) {
        let Some(node) = self.nodes.get_mut(client.node) else { return };
        let Some(line) = node.lines.get_mut(&client.connection) else { return };
        if line.is_held {
            line.held.push_back(bytes.to_vec());
        } else if !line.is_closed && !bytes.is_empty() {
            node.push(&Input::Data { connection: client.connection, bytes });
        }
    }

    /// What the client received since the last look.
    pub fn take(&mut self, client: Client) -> Vec<u8> {
        let line = self.nodes.get_mut(client.node).and_then(|node| node.lines.get_mut(&client.connection));
        line.map(|line| std::mem::take(&mut line.sent)).unwrap_or_default()
    }

    /// Whether the adapter closed the connection.
    pub fn is_closed(&self, client: Client) -> bool {
        let line = self.nodes.get(client.node).and_then(|node| node.lines.get(&client.connection));
        line.is_none_or(|line| line.is_closed)
    }

    /// Whether the adapter wants nothing more from the client for now.
    pub fn is_held(&self, client: Client) -> bool {
        let line = self.nodes.get(client.node).and_then(|node| node.lines.get(&client.connection));
        line.is_some_and(|line| line.is_held)
    }

    /// A client goes away, without a word.
    pub fn hang_up(&mut self, client: Client) {
        if let Some(node) = self.nodes.get_mut(client.node)
            && node.lines.remove(&client.connection).is_some_and(|line| !line.is_closed)
        {
            node.push(&Input::Closed { connection: client.connection });
        }
    }

    /// A node applies nothing until told otherwise.
    pub fn lag(&mut self, node: usize, lags: bool) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.lags = lags;
        }
    }

    /// Who leads. Without a leader nothing is proposed: it fails with `no_leader`.
    pub fn lead(&mut self, leader: Option<usize>) {
        self.leader = leader;
        // A new leader gives every session its whole time.
        self.heard_ms.values_mut().for_each(|heard_ms| *heard_ms = self.time_ms);
    }

    /// A node's adapter, as it is now.
    pub fn adapter(&self, node: usize) -> Option<&A> {
        self.nodes.get(node).map(|node| &node.adapter)
    }

    /// A node's adapter is lost, with its connections; a new one is opened.
    #[track_caller]
    pub fn restart(&mut self, node: usize) {
        let mut asked = Vec::new();
        let applied = self.nodes.get(node).map_or(0, |node| node.applied);
        let adapter = self.open_adapter(node, applied, &mut asked);
        if let Some(node) = self.nodes.get_mut(node) {
            node.adapter = adapter;
            node.lines.values_mut().for_each(|line| line.is_closed = true);
            node.inputs.clear();
            node.has_inputs = false;
            node.timers.clear();
            node.waiting.clear();
        }
        self.log.iter_mut().for_each(|logged| logged.origin = logged.origin.filter(|origin| origin.node != node));
        self.carry_out(node, &asked);
        self.run();
    }

    /// What the adapters are told when they ask `what`.
    pub fn tell(&mut self, what: &str, json: &str) {
        self.told.insert(what.to_owned(), json.to_owned());
    }

    /// The adapters may change members, as at a host that allows it: `changer` is given what stands behind `change`, and says
    /// what it is answered, JSON or an error's code and its detail. Without it a `change` is `forbidden`.
    pub fn change_by(&mut self, changer: impl FnMut(&str) -> Result<String, (&'static str, &'static str)> + 'static) {
        self.changer = Some(Box::new(changer));
    }

    /// What the adapters asked is answered later, when this is told otherwise.
    pub fn hold_told(&mut self, hold: bool) {
        for (node, input) in std::mem::replace(&mut self.held_told, hold.then(Vec::new)).into_iter().flatten() {
            if let Some(node) = self.nodes.get_mut(node) {
                node.inputs.extend_from_slice(&input);
                node.has_inputs = true;
            }
        }
    }

    fn told(&mut self, at: usize, token: Token, what: &str) {
        let answer = match (self.told.get(what), what.strip_prefix("change ")) {
            (Some(json), _) => Ok(json.clone()),
            (None, Some(wish)) => match &mut self.changer {
                Some(changer) => changer(wish),
                None => Err(("forbidden", "this node's adapters may not change members")),
            },
            (None, None) => Err(("bad_request", "this desk knows no answer")),
        };
        let outcome = match &answer {
            Ok(json) => Outcome::Ok(json.as_bytes()),
            Err((code, detail)) => Outcome::Failed { code, detail },
        };
        let mut input = Vec::new();
        Input::Told { token, outcome }.encode(&mut input);
        match (&mut self.held_told, self.nodes.get_mut(at)) {
            (Some(held), _) => held.push((at, input)),
            (None, Some(node)) => {
                node.inputs.extend_from_slice(&input);
                node.has_inputs = true;
            }
            (None, None) => {}
        }
    }

    /// Time passes; what is due happens.
    #[track_caller]
    pub fn advance(&mut self, ms: u64) {
        let until = self.time_ms + ms;
        self.run();
        while let Some(due) = self.next_due().filter(|due| *due <= until) {
            self.time_ms = self.time_ms.max(due);
            self.fire();
            self.run();
        }
        self.time_ms = until;
    }

    /// When the next timer fires or session ends. Without a leader only adapters' timers do.
    fn next_due(&self) -> Option<u64> {
        let adapters = self.nodes.iter().flat_map(|node| node.timers.values().copied());
        let sessions = self.sessions().into_iter().map(|(id, timeout_ms)| self.heard_ms(id) + timeout_ms);
        let replicated = self.machine_timers.values().copied().chain(sessions);
        adapters.chain(replicated.filter(|_| self.leader.is_some())).min()
    }

    fn heard_ms(&self, session: u64) -> u64 {
        self.heard_ms.get(&session).copied().unwrap_or(START_MS)
    }

    /// Lets everything happen that can, until nothing is left.
    #[track_caller]
    pub fn run(&mut self) {
        loop {
            let mut is_idle = true;
            for node in 0..self.nodes.len() {
                is_idle &= !self.apply_one(node) & !self.answer_waiting(node) & !self.step(node);
            }
            if is_idle {
                return;
            }
        }
    }

    /// From now on what adapters ask is kept for [`take_asked`](Self::take_asked).
    pub fn keep_asked(&mut self) {
        self.keeps_asked = true;
    }

    /// What adapters asked, with their nodes, since the last look.
    pub fn take_asked(&mut self) -> Vec<(usize, Asked)> {
        std::mem::take(&mut self.asked)
    }

    /// The index of the log's last entry.
    pub fn last(&self) -> u64 {
        self.log.len() as u64
    }

    /// This desk's clock, Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn open_adapter(&mut self, node: usize, applied: u64, asked: &mut Vec<u8>) -> A {
        self.random += 1;
        let header = Header { index: applied, time_ms: self.time_ms, seed: (self.random, 0), session: 0 };
        match A::open(&self.settings, &mut Io::new(header, self.flags(node), asked)) {
            Ok(adapter) => adapter,
            Err(reject) => panic!("the adapter refused its settings: {reject}"),
        }
    }

    fn flags(&self, node: usize) -> u32 {
        u32::from(self.leader.is_some()) | u32::from(self.leader == Some(node)) << 1
    }

    fn append(&mut self, entry: Entry, origin: Option<Origin>) {
        self.log.push(Logged { entry, time_ms: self.time_ms, origin });
    }

    /// The sessions of the whole log, with their timeouts.
    fn sessions(&self) -> Vec<(u64, u64)> {
        let Some(ahead) = self.nodes.iter().max_by_key(|node| node.applied) else { return Vec::new() };
        ahead.sessions.values().map(|known| (known.session.id, known.session.timeout_ms)).collect()
    }

    /// Fires what is due now.
    fn fire(&mut self) {
        let now_ms = self.time_ms;
        for node in &mut self.nodes {
            let due: Vec<u64> = node.timers.extract_if(.., |_, at_ms| *at_ms <= now_ms).map(|(id, _)| id).collect();
            due.into_iter().for_each(|id| node.push(&Input::Timer { id }));
        }
        if self.leader.is_none() {
            return;
        }
        let due: Vec<u64> = self.machine_timers.extract_if(.., |_, at_ms| *at_ms <= now_ms).map(|(id, _)| id).collect();
        due.into_iter().for_each(|id| self.append(Entry::Timer { id }, None));
        for (session, timeout_ms) in self.sessions() {
            if self.heard_ms(session) + timeout_ms <= now_ms {
                // Once: should a lagging node still have it, it is not ended again and again.
                self.heard_ms.insert(session, now_ms);
                self.append(Entry::Close { session }, None);
            }
        }
    }

    /// Applies the next entry on a node; whether there was one.
    fn apply_one(&mut self, at: usize) -> bool {
        let (now_ms, first) = (self.time_ms, at == 0);
        let Some(node) = self.nodes.get_mut(at) else { return false };
        let Some(logged) = self.log.get(node.applied as usize).filter(|_| !node.lags) else { return false };
        node.applied += 1;
        let index = node.applied;
        let origin = logged.origin.filter(|origin| origin.node == at);
        let mut header = Header { index, time_ms: logged.time_ms, seed: (index, 7), session: 0 };
        let mut effects = Effects::default();
        let mut reply = Vec::new();
        let ok = |reply: Vec<u8>| Ok::<Vec<u8>, (u8, String)>(reply);
        let failed = |code: &str| Err((3, format!("{code}: as the log says")));
        let outcome = match &logged.entry {
            Entry::Init(params) => {
                if let Err(reject) = node.guest.init(&mut effects, &with(header, params)) {
                    panic!("the machine refused its params: {reject}");
                }
                // They reach nobody.
                effects.events.clear();
                ok(reply)
            }
            Entry::Command { session, command } => {
                header.session = *session;
                let is_attached = logged.origin.is_none_or(|origin| node.is_attached(*session, origin.attachment));
                if *session != 0 && !node.sessions.contains_key(session) {
                    failed("session_not_found")
                } else if *session != 0 && !is_attached {
                    failed("session_moved")
                } else {
                    match node.guest.apply(&mut effects, &with(header, command), &mut reply) {
                        Ok(()) => ok(reply),
                        Err(reject) => Err((1, reject.to_string())),
                    }
                }
            }
            Entry::Open { timeout_ms, secret } => {
                let session = Session { id: index, attachment: index, timeout_ms: *timeout_ms, secret: *secret };
                let owner = logged.origin.map_or(usize::MAX, |origin| origin.node);
                node.sessions.insert(index, Known { session, node: owner });
                self.heard_ms.insert(index, now_ms);
                if let Some(origin) = origin {
                    node.push(&Input::Session { token: origin.token, index, session: Ok(session) });
                }
                ok(reply)
            }
            Entry::Attach { session: id, secret } => {
                let known = node.sessions.get(id).copied();
                let outcome = match known {
                    None => Err(Outcome::Failed { code: "session_not_found", detail: "there is none" }),
                    Some(known) if known.session.secret != *secret => {
                        Err(Outcome::Failed { code: "wrong_secret", detail: "another one" })
                    }
                    Some(known) => {
                        let session = Session { attachment: index, ..known.session };
                        let owner = logged.origin.map_or(usize::MAX, |origin| origin.node);
                        node.sessions.insert(*id, Known { session, node: owner });
                        self.heard_ms.insert(*id, now_ms);
                        if known.node == at {
                            let attachment = known.session.attachment;
                            node.push(&Input::SessionLost { session: *id, attachment, index, why: Lost::Moved });
                        }
                        Ok(session)
                    }
                };
                if let Some(origin) = origin {
                    node.push(&Input::Session { token: origin.token, index, session: outcome });
                }
                ok(reply)
            }
            Entry::Close { session } => {
                header.session = *session;
                match node.sessions.remove(session) {
                    None => failed("session_not_found"),
                    Some(known) => {
                        if let Err(reject) = node.guest.session_end(&mut effects, &with(header, &[])) {
                            panic!("the machine refused the end of a session: {reject}");
                        }
                        if known.node == at && origin.is_none() {
                            let attachment = known.session.attachment;
                            for event in std::mem::take(&mut effects.events) {
                                node.push(&Input::Event { index, time_ms: logged.time_ms, bytes: &event });
                            }
                            node.push(&Input::SessionLost { session: *session, attachment, index, why: Lost::Ended });
                        }
                        ok(reply)
                    }
                }
            }
            Entry::Timer { id } => {
                if let Err(reject) = node.guest.timer(&mut effects, &with(header, &id.to_le_bytes())) {
                    panic!("the machine refused a timer: {reject}");
                }
                ok(reply)
            }
        };
        for event in &effects.events {
            node.push(&Input::Event { index, time_ms: logged.time_ms, bytes: event });
        }
        if first {
            for (id, at_ms) in effects.timers {
                match at_ms {
                    Some(at_ms) => drop(self.machine_timers.insert(id, at_ms)),
                    None => drop(self.machine_timers.remove(&id)),
                }
            }
        }
        let is_answered = matches!(logged.entry, Entry::Command { .. } | Entry::Close { .. });
        if let Some(origin) = origin.filter(|_| is_answered) {
            let (index, outcome) = match &outcome {
                Ok(reply) => (index, Outcome::Ok(reply)),
                Err((1, text)) => (index, Outcome::Rejected(text)),
                Err((_, text)) => {
                    let (code, detail) = text.split_once(": ").unwrap_or((text, ""));
                    (0, Outcome::Failed { code, detail })
                }
            };
            node.push(&Input::Applied { token: origin.token, index, outcome });
        }
        true
    }

    /// Answers what waited for the node to be far enough; whether there was anything.
    fn answer_waiting(&mut self, at: usize) -> bool {
        let Some(node) = self.nodes.get_mut(at) else { return false };
        let applied = node.applied;
        let ready: Vec<_> = node.waiting.extract_if(.., |(index, ..)| *index <= applied).collect();
        for (_, token, session, query) in &ready {
            node.answer(*token, *session, query, self.time_ms);
        }
        !ready.is_empty()
    }

    /// Gives a node's adapter what happened; whether anything did.
    fn step(&mut self, at: usize) -> bool {
        let flags = self.flags(at);
        self.random += 1;
        let Some(node) = self.nodes.get_mut(at).filter(|node| node.has_inputs) else { return false };
        let header = Header { index: node.applied, time_ms: self.time_ms, seed: (self.random, 1), session: 0 };
        let mut argument = with(header, &std::mem::take(&mut node.inputs));
        node.has_inputs = false;
        for (place, byte) in argument.iter_mut().skip(4).zip(flags.to_le_bytes()) {
            *place = byte;
        }
        let mut asked = Vec::new();
        if let Err(reject) = node.adapter.step(&argument, &mut asked) {
            panic!("the adapter refused a step: {reject}");
        }
        self.carry_out(at, &asked);
        true
    }

    fn carry_out(&mut self, at: usize, asked: &[u8]) {
        let Some(all) = Asked::decode_all(asked) else { panic!("the adapter asked for something malformed") };
        for asked in all {
            if self.keeps_asked {
                self.asked.push((at, asked.clone()));
            }
            self.carry_out_one(at, asked);
        }
    }

    fn carry_out_one(&mut self, at: usize, asked: Asked) {
        let (leader, last, now_ms) = (self.leader, self.last(), self.time_ms);
        let Some(node) = self.nodes.get_mut(at) else { return };
        let no_leader = Outcome::Failed { code: "no_leader", detail: "nobody leads" };
        let has = |node: &Node<M, C, A>, session: u64| {
            let known = node.sessions.get(&session).filter(|known| known.node == at);
            known.map(|known| known.session.attachment)
        };
        let (token, entry, attachment) = match asked {
            Asked::Send { connection, bytes } => {
                if let Some(line) = node.lines.get_mut(&connection).filter(|line| !line.is_closed) {
                    line.sent.extend_from_slice(&bytes);
                }
                return;
            }
            Asked::Close { connection } => {
                if let Some(line) = node.lines.get_mut(&connection).filter(|line| !line.is_closed) {
                    line.is_closed = true;
                    node.push(&Input::Closed { connection });
                }
                return;
            }
            Asked::Hold { connection, hold } => {
                let Some(line) = node.lines.get_mut(&connection) else { return };
                line.is_held = hold;
                while let Some(bytes) =
                    node.lines.get_mut(&connection).filter(|_| !hold).and_then(|line| line.held.pop_front())
                {
                    node.push(&Input::Data { connection, bytes: &bytes });
                }
                return;
            }
            Asked::Query { token, consistency, session, query } => {
                match consistency {
                    Consistency::Local => node.answer(token, session, &query, now_ms),
                    _ if leader.is_none() => node.push(&Input::Answered { token, index: 0, outcome: no_leader }),
                    _ => node.waiting.push((last, token, session, query)),
                }
                return;
            }
            Asked::Touch { session } => {
                self.heard_ms.insert(session, now_ms);
                return;
            }
            Asked::SetTimer { id, at_ms } => {
                node.timers.insert(id, at_ms);
                return;
            }
            Asked::ClearTimer { id } => {
                node.timers.remove(&id);
                return;
            }
            Asked::Ask { token, what } => return self.told(at, token, &what),
            Asked::Propose { token, session, command } => {
                let attachment = has(node, session);
                if session != 0 && attachment.is_none() {
                    let outcome = Outcome::Failed { code: "session_moved", detail: "not held here" };
                    return node.push(&Input::Applied { token, index: 0, outcome });
                }
                self.heard_ms.insert(session, now_ms);
                (token, Entry::Command { session, command }, attachment.unwrap_or(0))
            }
            Asked::OpenSession { token, timeout_ms } => {
                self.random += 1;
                let mut secret = [0x5a; 16];
                secret.iter_mut().zip(self.random.to_le_bytes()).for_each(|(to, from)| *to = from);
                (token, Entry::Open { timeout_ms, secret }, 0)
            }
            Asked::AttachSession { token, session, secret } => (token, Entry::Attach { session, secret }, 0),
            Asked::CloseSession { token, session } => {
                let attachment = has(node, session).unwrap_or(0);
                (token, Entry::Close { session }, attachment)
            }
        };
        if leader.is_none() {
            let input = match entry {
                Entry::Open { .. } | Entry::Attach { .. } => {
                    Input::Session { token, index: 0, session: Err(no_leader) }
                }
                _ => Input::Applied { token, index: 0, outcome: no_leader },
            };
            return node.push(&input);
        }
        self.append(entry, Some(Origin { node: at, token, attachment }));
    }
}

impl<M: StateMachine, C: Codec<M>, A: Adapter> Node<M, C, A> {
    fn push(&mut self, input: &Input<'_>) {
        input.encode(&mut self.inputs);
        self.has_inputs = true;
    }

    /// Whether the session was attached so, last.
    fn is_attached(&self, session: u64, attachment: u64) -> bool {
        session == 0 || self.sessions.get(&session).is_some_and(|known| known.session.attachment == attachment)
    }

    fn answer(&mut self, token: Token, session: u64, query: &[u8], time_ms: u64) {
        let index = self.applied;
        let header = Header { index, time_ms, seed: (0, 0), session };
        let mut answer = Vec::new();
        match self.guest.query(&with(header, query), &mut answer) {
            Ok(()) => self.push(&Input::Answered { token, index, outcome: Outcome::Ok(&answer) }),
            Err(reject) => {
                let text = reject.to_string();
                self.push(&Input::Answered { token, index, outcome: Outcome::Rejected(&text) });
            }
        }
    }
}

fn with(header: Header, payload: &[u8]) -> Vec<u8> {
    let mut argument = header.to_bytes().to_vec();
    argument.extend_from_slice(payload);
    argument
}
