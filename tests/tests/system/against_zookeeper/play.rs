//! Does a step at both servers and compares what comes back.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;

use statehouse_tests::keeper::AUTH_XID;
use statehouse_tests::keeper::Connection;
use statehouse_tests::keeper::Hello;
use statehouse_tests::keeper::PING_XID;
use statehouse_tests::keeper::Reply;
use statehouse_tests::keeper::Welcome;
use statehouse_tests::keeper::connect;
use statehouse_tests::keeper::frame;
use statehouse_tests::keeper::record;
use statehouse_tests::wait;
use znode_tree::jute::Reader;
use znode_tree::wire::op;

use super::compare;
use super::compare::Asked;
use super::compare::Difference;
use super::compare::Maps;
use super::dice::ACTORS;
use super::dice::PROOFS;
use super::dice::Return;
use super::dice::SUPER;
use super::dice::Step;

/// Longer than a round takes on a machine that is busy.
const TIMEOUT_MS: i32 = 600_000;
/// The shortest that both grant.
const SHORT_TIMEOUT_MS: i32 = 1_000;
/// So many pings are not answered by a server that is closing the connection.
const PINGS_BEFORE_CLOSING: usize = 100;

/// A client's connection to one server.
struct End {
    address: SocketAddr,
    connection: Connection,
    welcome: Welcome,
    /// Notifications that came since they were last compared.
    events: Vec<Reply>,
}

impl End {
    fn open(address: SocketAddr, hello: &Hello) -> io::Result<Self> {
        let (connection, welcome) = Connection::open(address, hello)?;
        Ok(Self { address, connection, welcome, events: Vec::new() })
    }

    /// The next reply; `None` when the connection is closed.
    fn reply(&mut self) -> Option<Reply> {
        loop {
            let reply = match self.connection.reply() {
                Ok(reply) => reply,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Some(Reply { xid: i32::MIN, zxid: 0, error: 0, body: b"no answer in time".to_vec() });
                }
                // Java closes with a reset what it did not read.
                Err(_) => return None,
            };
            if reply.is_event() {
                self.events.push(reply);
            } else {
                return Some(reply);
            }
        }
    }
}

/// A client: one connection to each server. ZooKeeper's comes first in every pair.
type Ends = [End; 2];

/// What is played on, with what both servers were found to agree in.
pub struct Board {
    addresses: [SocketAddr; 2],
    maps: Maps,
    /// Requests so far.
    pub asked: usize,
}

/// A round: its own clients.
struct Players<'a> {
    board: &'a mut Board,
    clients: Vec<Ends>,
}

/// What went wrong at which step.
#[derive(Debug)]
pub struct Failure {
    pub at: usize,
    pub difference: Difference,
}

impl Board {
    pub fn new(addresses: [SocketAddr; 2]) -> Self {
        Self { addresses, maps: Maps::new(), asked: 0 }
    }

    /// Plays all steps with clients that are made for it.
    pub fn play(&mut self, steps: &[Step]) -> Result<(), Failure> {
        let failure = |at| move |difference| Failure { at, difference };
        let mut players = Players { board: self, clients: Vec::new() };
        for actor in 0..ACTORS {
            let ends = players.new_session(TIMEOUT_MS).and_then(|ends| players.prove(actor, ends));
            players.clients.push(ends.map_err(failure(0))?);
        }
        let mut at = 0;
        while let Some(step) = steps.get(at) {
            let together = match step {
                Step::Ask { actor, .. } => {
                    let is_same = |other: &&Step| matches!(other, Step::Ask { actor: next, .. } if next == actor);
                    let same = steps[at..].iter().take_while(is_same).count();
                    // See the list of differences.
                    let is_set_acl = |step: &Step| matches!(step, Step::Ask { operation: op::SET_ACL, .. });
                    steps[at..at + same].iter().position(is_set_acl).map_or(same, |set| set + 1)
                }
                _ => 1,
            };
            let in_order = !matches!(step, Step::Expire { .. } | Step::Renew { .. });
            players
                .step(&steps[at..at + together])
                .map_err(|(place, difference)| Failure { at: at + place, difference })?;
            players.settle(in_order).map_err(failure(at + together - 1))?;
            at += together;
        }
        for actor in 0..ACTORS {
            players.close(actor).map_err(failure(at))?;
            // Of the others, which still watch.
            (actor + 1..ACTORS).try_for_each(|other| players.settle_one(other, false)).map_err(failure(at))?;
        }
        Ok(())
    }
}

fn both<T>(mut one: impl FnMut(usize) -> T) -> [T; 2] {
    [one(0), one(1)]
}

fn differ<T>(what: &str, theirs: &T, ours: &T) -> Result<(), Difference>
where
    T: std::fmt::Debug + PartialEq,
{
    if theirs == ours { Ok(()) } else { Err(format!("{what}: {theirs:?} by ZooKeeper, {ours:?} here")) }
}

/// What is equal in two welcomes.
fn shape(welcome: &Welcome) -> (i32, bool, usize, bool, Option<u8>) {
    let secret = welcome.password.iter().any(|byte| *byte != 0);
    (welcome.timeout_ms, welcome.session != 0, welcome.password.len(), secret, welcome.read_only)
}

impl Players<'_> {
    fn new_session(&mut self, timeout_ms: i32) -> Result<Ends, Difference> {
        let hello = Hello::new(timeout_ms);
        let ends = both(|side| End::open(self.board.addresses[side], &hello).unwrap());
        differ("the welcome", &shape(&ends[0].welcome), &shape(&ends[1].welcome))?;
        self.board.maps.session(ends[0].welcome.session, ends[1].welcome.session);
        Ok(ends)
    }

    /// Says again who this client is, over connections that are new.
    fn prove(&mut self, actor: usize, mut ends: Ends) -> Result<Ends, Difference> {
        for proof in PROOFS[actor] {
            let body = record(|out| _ = out.i32(0).text("digest").buffer(Some(proof.as_bytes())));
            self.last(&mut ends, AUTH_XID, op::AUTH, &body)?;
        }
        Ok(ends)
    }

    /// Steps that go together: several if they are requests of one client.
    fn step(&mut self, steps: &[Step]) -> Result<(), (usize, Difference)> {
        match &steps[0] {
            Step::Ask { actor, .. } => return self.ask(*actor, steps),
            Step::SetWatches { actor, operation, back, lists } => self.set_watches(*actor, *operation, *back, lists),
            Step::Last { actor, xid, operation, body } => self.ask_at_last(*actor, *xid, *operation, body),
            Step::Return { actor, how } => self.come_back(*actor, *how),
            Step::Renew { actor } => self.renew(*actor),
            Step::Expire { ephemerals } => self.expire(ephemerals),
            Step::Stranger { timeout_ms, has_read_only, bytes } => self.stranger(*timeout_ms, *has_read_only, bytes),
            Step::Garbage(bytes) => self.garbage(bytes),
            Step::Trees => self.compare_trees(),
        }
        .map_err(|difference| (0, difference))
    }

    fn ask(&mut self, actor: usize, steps: &[Step]) -> Result<(), (usize, Difference)> {
        let requests: Vec<(i32, &[u8])> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Ask { operation, body, .. } => Some((*operation, body.as_slice())),
                _ => None,
            })
            .collect();
        let ends = &mut self.clients[actor];
        let mut bytes = Vec::new();
        for (xid, (operation, body)) in (1..).zip(&requests) {
            let xid = if *operation == op::PING { PING_XID } else { xid };
            bytes.extend(frame(|out| _ = out.i32(xid).i32(*operation).raw(body)));
        }
        for end in ends.iter_mut() {
            end.connection.send(&bytes).map_err(|error| (0, format!("{}: {error}", end.address)))?;
        }
        for (place, (operation, body)) in requests.iter().enumerate() {
            self.board.asked += 1;
            let replies = both(|side| ends[side].reply());
            compare_replies(&mut self.board.maps, Asked::of(*operation, body), &replies)
                .and_then(|()| compare_events(ends, true))
                .map_err(|difference| {
                    // The others were sent too: both shall have done them before anything else is tried.
                    ends.iter_mut().for_each(|end| (place + 1..requests.len()).for_each(|_| drop(end.reply())));
                    (place, difference)
                })?;
            if replies[0].is_none() {
                return self.reattach(actor).map_err(|difference| (place, difference));
            }
        }
        Ok(())
    }

    fn set_watches(
        &mut self,
        actor: usize,
        operation: i32,
        back: usize,
        lists: &[Vec<String>],
    ) -> Result<(), Difference> {
        let (theirs, ours) = self.board.maps.some_time_ago(back);
        self.board.asked += 1;
        let ends = &mut self.clients[actor];
        for (end, zxid) in ends.iter_mut().zip([theirs, ours]) {
            let body = record(|out| {
                out.i64(zxid);
                for list in lists {
                    out.texts(list.iter());
                }
            });
            end.connection.post(operation, &body).unwrap();
        }
        let mut replies = both(|side| ends[side].reply());
        replies.iter_mut().flatten().for_each(|reply| reply.xid = 0);
        compare_replies(&mut self.board.maps, Asked::of(operation, &[]), &replies)?;
        compare_events(ends, true)
    }

    fn ask_at_last(&mut self, actor: usize, xid: i32, operation: i32, body: &[u8]) -> Result<(), Difference> {
        self.board.asked += 1;
        let mut clients = std::mem::take(&mut self.clients);
        let result = self.last(&mut clients[actor], xid, operation, body);
        self.clients = clients;
        if result? { Ok(()) } else { self.reattach(actor) }
    }

    /// A request after which the connection may be closed; whether it is not.
    fn last(&mut self, ends: &mut Ends, xid: i32, operation: i32, body: &[u8]) -> Result<bool, Difference> {
        let request = frame(|out| _ = out.i32(xid).i32(operation).raw(body));
        let ping = frame(|out| _ = out.i32(PING_XID).i32(op::PING));
        ends.iter_mut().for_each(|end| end.connection.send(&request).unwrap());
        loop {
            let mut replies = both(|side| ends[side].reply());
            let asked = Asked::of(operation, body);
            let is_pong = |reply: &Option<Reply>| reply.as_ref().is_some_and(|reply| reply.xid == PING_XID);
            // ZooKeeper's last word and its closing are two things: a ping that comes between them is answered.
            for _ in 0..PINGS_BEFORE_CLOSING {
                let late = replies.iter().position(is_pong).filter(|_| replies.iter().any(Option::is_none));
                let Some(late) = late else { break };
                drop(ends[late].connection.send(&ping));
                replies[late] = ends[late].reply();
            }
            if is_pong(&replies[0]) && is_pong(&replies[1]) {
                return Ok(true);
            }
            compare_replies(&mut self.board.maps, asked, &replies)?;
            if replies[0].is_none() {
                return Ok(false);
            }
            // It may be gone already.
            ends.iter_mut().for_each(|end| drop(end.connection.send(&ping)));
        }
    }

    /// Comes back for the session of a connection that was closed.
    fn reattach(&mut self, actor: usize) -> Result<(), Difference> {
        compare_events(&mut self.clients[actor], true)?;
        self.come_back(actor, Return::Properly)
    }

    fn come_back(&mut self, actor: usize, how: Return) -> Result<(), Difference> {
        let welcomes = both(|side| self.clients[actor][side].welcome.clone());
        let hello = |side: usize| Hello::again(&welcomes[side]);
        if how != Return::WhileThere {
            for end in &mut self.clients[actor] {
                // It may have been closed by the server.
                drop(end.connection.end());
                while end.reply().is_some() {}
            }
        }
        let tries = match how {
            Return::Properly | Return::WhileThere => None,
            Return::WrongPassword => Some(both(|side| Hello { password: vec![7; 16], ..hello(side) })),
            Return::ShortPassword => Some(both(|side| Hello { password: vec![7; 5], ..hello(side) })),
            Return::FromTheFuture => Some(both(|side| Hello { zxid: i64::MAX, ..hello(side) })),
        };
        if let Some(tries) = tries {
            let answers = both(|side| greet(self.board.addresses[side], &tries[side].frame()));
            differ("the answer", &answers[0], &answers[1])?;
        }
        let ends = both(|side| End::open(self.board.addresses[side], &hello(side)).unwrap());
        differ("the welcome", &shape(&ends[0].welcome), &shape(&ends[1].welcome))?;
        for (end, welcome) in ends.iter().zip(&welcomes) {
            if end.welcome.session != welcome.session || end.welcome.password != welcome.password {
                return Err(format!("{} gave {:?} to who came back for {welcome:?}", end.address, end.welcome));
            }
        }
        let ends = self.prove(actor, ends)?;
        let mut old = std::mem::replace(&mut self.clients[actor], ends);
        if how == Return::WhileThere {
            let closed = both(|side| old[side].reply());
            differ("what the old connection says", &closed[0], &closed[1])?;
        }
        Ok(())
    }

    fn close(&mut self, actor: usize) -> Result<(), Difference> {
        let ends = &mut self.clients[actor];
        compare_events(ends, true)?;
        let request = frame(|out| _ = out.i32(1).i32(op::CLOSE_SESSION));
        ends.iter_mut().for_each(|end| end.connection.send(&request).unwrap());
        let replies = both(|side| ends[side].reply());
        compare_replies(&mut self.board.maps, Asked::of(op::CLOSE_SESSION, &[]), &replies)?;
        let closed = both(|side| ends[side].reply());
        differ("what follows the end of a session", &closed[0], &closed[1])?;
        compare_events(ends, false)
    }

    fn renew(&mut self, actor: usize) -> Result<(), Difference> {
        self.close(actor)?;
        let answers = both(|side| {
            let old = &self.clients[actor][side];
            greet(old.address, &Hello::again(&old.welcome).frame())
        });
        differ("the answer to who comes back for a session that is over", &answers[0], &answers[1])?;
        let ends = self.new_session(TIMEOUT_MS).and_then(|ends| self.prove(actor, ends))?;
        self.clients[actor] = ends;
        Ok(())
    }

    fn expire(&mut self, ephemerals: &[String]) -> Result<(), Difference> {
        let mut ends = self.new_session(SHORT_TIMEOUT_MS)?;
        let requests: Vec<Vec<u8>> = ephemerals
            .iter()
            .map(|path| {
                record(|out| {
                    out.text(path).buffer(None).count(1).i32(31).text("world").text("anyone").i32(1);
                })
            })
            .collect();
        for (xid, body) in (1..).zip(&requests) {
            let request = frame(|out| _ = out.i32(xid).i32(op::CREATE).raw(body));
            ends.iter_mut().for_each(|end| end.connection.send(&request).unwrap());
            let replies = both(|side| ends[side].reply());
            compare_replies(&mut self.board.maps, Asked::of(op::CREATE, body), &replies)?;
        }
        let sessions = both(|side| ends[side].welcome.session);
        drop(ends);
        for (end, session) in self.clients[SUPER].iter_mut().zip(sessions) {
            wait::until("the end of a session that nobody keeps", || {
                let dump = statehouse_tests::keeper::four_letters(end.address, "dump").unwrap();
                let is_there = dump.contains(&format!("{session:#x}"));
                // The others want to live.
                end.connection.send(&frame(|out| _ = out.i32(PING_XID).i32(op::PING))).unwrap();
                assert_eq!(end.reply().map(|reply| reply.xid), Some(PING_XID));
                if is_there { Err(dump) } else { Ok(()) }
            });
            let path = ephemerals.first().cloned().unwrap_or_default();
            wait::until("the end of its nodes", || {
                let body = record(|out| _ = out.text(&path).bool(false));
                end.connection.post(op::EXISTS, &body).unwrap();
                match end.reply() {
                    Some(reply) if reply.error != 0 => Ok(()),
                    other => Err(other),
                }
            });
        }
        Ok(())
    }

    fn stranger(&mut self, timeout_ms: i32, has_read_only: bool, bytes: &[u8]) -> Result<(), Difference> {
        let hello = Hello { has_read_only, ..Hello::new(timeout_ms) };
        let answers = both(|side| {
            let (mut connection, welcome) = Connection::open(self.board.addresses[side], &hello).unwrap();
            drop(connection.send(bytes));
            // Who has asked for the end of the session waits for it.
            if bytes.len() < 12 {
                drop(connection.end());
            }
            let mut rest = Vec::new();
            while let Ok(reply) = connection.reply() {
                // Its zxid is compared where requests are.
                rest.push((reply.xid, reply.error, reply.body));
            }
            (shape(&welcome), rest)
        });
        differ("what a stranger is told", &answers[0], &answers[1])
    }

    fn garbage(&mut self, bytes: &[u8]) -> Result<(), Difference> {
        let answers = both(|side| greet(self.board.addresses[side], bytes));
        differ("the answer to garbage", &answers[0], &answers[1])
    }

    /// Everything that there is, as the super user sees it.
    fn compare_trees(&mut self) -> Result<(), Difference> {
        let mut paths = vec!["/".to_owned()];
        while let Some(path) = paths.pop() {
            let body = record(|out| _ = out.text(&path).bool(false));
            let operations = [op::GET_CHILDREN2, op::GET_DATA, op::GET_ACL];
            // On the list: what a server says of the cluster.
            let steps: Vec<_> = operations
                .into_iter()
                .filter(|_| path != "/zookeeper/config")
                .map(|operation| Step::Ask { actor: SUPER, operation, body: body.clone() })
                .collect();
            if steps.is_empty() {
                continue;
            }
            self.ask(SUPER, &steps).map_err(|(_, difference)| format!("{path}: {difference}"))?;
            self.board.asked -= steps.len();
            let end = &mut self.clients[SUPER][0];
            end.connection.post(op::GET_CHILDREN, &body).unwrap();
            let children = end.reply().unwrap();
            let names = Reader::new(&children.body).texts().unwrap_or_default().into_iter();
            let parent = path.trim_end_matches('/');
            paths.extend(names.map(|name| format!("{parent}/{name}")));
        }
        Ok(())
    }

    /// Waits until each client has all its notifications, and compares them.
    fn settle(&mut self, in_order: bool) -> Result<(), Difference> {
        for ends in &mut self.clients {
            let ping = frame(|out| _ = out.i32(PING_XID).i32(op::PING));
            ends.iter_mut().for_each(|end| end.connection.send(&ping).unwrap());
        }
        (0..self.clients.len()).try_for_each(|actor| {
            let replies = both(|side| self.clients[actor][side].reply());
            compare_replies(&mut self.board.maps, Asked::of(op::PING, &[]), &replies)
                .and_then(|()| compare_events(&mut self.clients[actor], in_order))
                .map_err(|difference| format!("client {actor}: {difference}"))
        })
    }

    fn settle_one(&mut self, actor: usize, in_order: bool) -> Result<(), Difference> {
        let ends = &mut self.clients[actor];
        let ping = frame(|out| _ = out.i32(PING_XID).i32(op::PING));
        ends.iter_mut().for_each(|end| end.connection.send(&ping).unwrap());
        let replies = both(|side| ends[side].reply());
        compare_replies(&mut self.board.maps, Asked::of(op::PING, &[]), &replies)?;
        compare_events(ends, in_order)
    }
}

fn compare_replies(maps: &mut Maps, asked: Asked, replies: &[Option<Reply>; 2]) -> Result<(), Difference> {
    match replies {
        [Some(theirs), Some(ours)] => compare::replies(maps, asked, theirs, ours),
        [None, None] => Ok(()),
        [theirs, ours] => Err(format!("{theirs:?} by ZooKeeper, {ours:?} here")),
    }
}

fn compare_events(ends: &mut Ends, in_order: bool) -> Result<(), Difference> {
    let [theirs, ours] = both(|side| std::mem::take(&mut ends[side].events));
    compare::events(&theirs, &ours, in_order)
}

/// What comes back until the connection is closed; a welcome without what is random in it.
fn greet(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address).unwrap();
    drop(stream.write_all(bytes));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("{address} neither answers nor closes"),
            // Java closes with a reset what it did not read.
            Err(_) => break,
        }
    }
    answer
}
