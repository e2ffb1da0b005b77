//! Clients of an adapter, through whatever happens: each appends its own numbers to its own list, in a session that it
//! takes from node to node, many at once, and never sends a number twice.
//!
//! What must hold:
//! - a list has its numbers in the order they were sent, none twice, and every one that was acknowledged;
//! - on one connection, replies come in the order of the requests;
//! - what entry *i* emitted comes before the reply of entry *i*, and an answer shows exactly the events before it.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use statehouse::service::GroupRequest;
use statehouse::service::Service;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimClient;
use statehouse::sim::SimCluster;
use statehouse::sim::SimRandom;

use crate::modules::modules;
use crate::nemesis;
use crate::number;
use crate::on_guest_thread;
use crate::scenario::Plan;
use crate::scenario::options;
use crate::world::Sabotage;
use crate::world::Shared;
use crate::world::World;
use crate::world::now_ms;
use crate::world::sleep_ms;

const ADDRESS: &str = "127.0.0.1:7000";
const CLIENTS: u64 = 3;
const SEEDS_DEFAULT: u64 = 16;

/// What must have happened at least once in the ordinary test run.
const MUST_HAPPEN: [&str; 7] = [
    "additions acknowledged",
    "adapters that were made to panic",
    "answers compared with events",
    "commands proposed again",
    "crashes",
    "sessions taken to another connection",
    "sessions that were lost",
];

/// A connection, cut into lines.
struct Wire {
    client: SimClient,
    unread: Vec<u8>,
}

impl Wire {
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.unread.extend_from_slice(&self.client.receive().await?);
        }
    }

    /// The next line, unless it takes too long: then the client gives the connection up.
    async fn soon(&mut self) -> Option<String> {
        LifeRuntime::timeout(Duration::from_secs(4), self.line()).await.ok().flatten()
    }
}

/// One client and what it knows.
struct Client {
    world: Shared,
    random: SimRandom,
    list: String,
    session: Option<(u64, String)>,
    /// The last number that was sent.
    sent: u64,
    acknowledged: Vec<u64>,
}

/// `text @index`, parted.
fn parted(text: &str) -> Option<(&str, u64)> {
    let (text, index) = text.rsplit_once(" @")?;
    Some((text, index.parse().ok()?))
}

impl Client {
    async fn run(mut self) -> (String, Vec<u64>, u64) {
        while !self.world.stopped() {
            let ids = self.world.cluster.ids();
            let id = *self.random.pick(&ids).unwrap();
            match self.world.cluster.connect(id, ADDRESS) {
                Some(client) => self.serve(Wire { client, unread: Vec::new() }).await,
                None => sleep_ms(self.random.between(20, 300)).await,
            }
        }
        (self.list, self.acknowledged, self.sent)
    }

    /// Another connection takes the session, while commands are under way in it.
    async fn steal(&mut self) {
        let ids = self.world.cluster.ids();
        let id = *self.random.pick(&ids).unwrap();
        if let (Some((session, secret)), Some(client)) = (&self.session, self.world.cluster.connect(id, ADDRESS)) {
            client.send(format!("attach {session} {secret}\n").as_bytes());
            let _whatever = Wire { client, unread: Vec::new() }.soon().await;
        }
    }

    /// One connection, until it ends or the client has enough of it.
    async fn serve(&mut self, mut wire: Wire) {
        wire.client.send(b"watch\n");
        if wire.soon().await.as_deref() != Some("1: watching") {
            return;
        }
        match &self.session {
            Some((id, secret)) => wire.client.send(format!("attach {id} {secret}\n").as_bytes()),
            None => wire.client.send(b"open 5000\n"),
        }
        let mut requests = 2;
        // Numbers under way, by request.
        let mut asked: BTreeMap<u64, u64> = BTreeMap::new();
        let mut queries: BTreeMap<u64, ()> = BTreeMap::new();
        // Events of the own list: number to index.
        let mut events: Vec<(u64, u64)> = Vec::new();
        let mut attached = false;
        let mut last_index = 0;
        let mut left = self.random.between(5, 30);
        loop {
            if attached && left > 0 && asked.len() < 40 && !self.world.stopped() {
                left -= 1;
                let mut batch = String::new();
                for _ in 0..self.random.between(1, 12) {
                    requests += 1;
                    if self.random.chance(150) {
                        queries.insert(requests, ());
                        let verb = if self.random.chance(500) { "get" } else { "get!" };
                        batch.push_str(&format!("{verb} {}\n", self.list));
                    } else {
                        self.sent += 1;
                        asked.insert(requests, self.sent);
                        batch.push_str(&format!("add {} {}\n", self.list, self.sent));
                    }
                }
                if self.random.chance(10) {
                    self.world.count("adapters that were made to panic");
                    batch.push_str("boom\n");
                }
                wire.client.send(batch.as_bytes());
                if self.random.chance(30) {
                    self.steal().await;
                }
                sleep_ms(self.random.between(0, 400)).await;
            }
            if attached && asked.is_empty() && queries.is_empty() && (left == 0 || self.world.stopped()) {
                return;
            }
            let Some(line) = wire.soon().await else { return };
            if let Some(event) = line.strip_prefix("event ") {
                let Some((text, index)) = parted(event) else { continue };
                if index < last_index {
                    self.world.problem(format!("{line} after something of @{last_index}"));
                }
                last_index = last_index.max(index);
                if let Some(number) = text.strip_prefix(&format!("{} ", self.list)) {
                    let number: u64 = number.parse().unwrap();
                    if events.last().is_some_and(|(before, _)| *before >= number) {
                        self.world.problem(format!("{line} after {:?}", events.last()));
                    }
                    events.push((number, index));
                }
                continue;
            }
            if let Some(why) = line.strip_prefix("lost ") {
                self.world.count("sessions that were lost");
                if why.starts_with("ended") {
                    self.session = None;
                }
                return;
            }
            let Some((request, answer)) = line.split_once(": ") else {
                return self.world.problem(format!("{line:?} is no answer"));
            };
            let request: u64 = request.parse().unwrap();
            if let Some(session) = answer.strip_prefix("session ") {
                let words: Vec<&str> = session.split(' ').collect();
                let id = words[0].parse().unwrap();
                if self.session.as_ref().is_some_and(|(known, _)| *known == id) {
                    self.world.count("sessions taken to another connection");
                }
                self.session = Some((id, words[1].to_owned()));
                attached = true;
            } else if answer.starts_with("error ") {
                if answer == "error session_not_found" {
                    self.session = None;
                }
                // Whatever is under way now is not known.
                return;
            } else if let Some(added) = answer.strip_prefix("added ") {
                let (_, index) = parted(added).unwrap();
                let Some((first, number)) = asked.pop_first() else {
                    return self.world.problem(format!("{line} was not asked"));
                };
                if first != request {
                    self.world.problem(format!("{line} comes before the answer of request {first}"));
                }
                if events.iter().all(|event| *event != (number, index)) {
                    self.world.problem(format!("{line} of {number} comes before its event: {:?}", events.last()));
                }
                self.world.count("additions acknowledged");
                self.acknowledged.push(number);
            } else if let Some(listed) = answer.strip_prefix("list ") {
                queries.remove(&request);
                let (text, index) = parted(listed).unwrap();
                if index < last_index {
                    self.world.problem(format!("{line} has not seen @{last_index}, which was told"));
                }
                last_index = last_index.max(index);
                let words: Vec<u64> = text.split(',').filter_map(|word| word.parse().ok()).collect();
                // What was in the list before this connection watched has no events here.
                let Some((first, _)) = events.first() else { continue };
                let seen: Vec<u64> = words.iter().copied().filter(|number| number >= first).collect();
                let told: Vec<u64> = events.iter().map(|(number, _)| *number).collect();
                self.world.count("answers compared with events");
                if seen != told {
                    self.world.problem(format!("{line} after the events {told:?}"));
                }
            } else {
                return self.world.problem(format!("{line:?} is no answer"));
            }
        }
    }
}

async fn story(world: &Shared, random: &mut SimRandom) {
    for id in world.cluster.ids() {
        nemesis::start(world, id).await;
    }
    let wasm = modules().lines.clone();
    world
        .surely(random, "module_add", |node| {
            let wasm = wasm.clone();
            async move { node.module_add("lines".to_string(), wasm).await }
        })
        .await;
    world
        .surely(random, "group_create", |node| async move {
            let (name, module, listen) = ("lines".to_string(), "lines".to_string(), vec![ADDRESS.to_string()]);
            node.group_create(GroupRequest { name, module, listen, ..GroupRequest::default() }).await
        })
        .await;
    let clients = (0..CLIENTS).map(|number| Client {
        world: world.clone(),
        random: random.fork(100 + number),
        list: format!("c{number}"),
        session: None,
        sent: 0,
        acknowledged: Vec::new(),
    });
    let running: Vec<_> = clients.map(|client| LifeRuntime::spawn(client.run())).collect();
    let until_ms = now_ms() + random.between(4_000, 9_000);
    nemesis::run(world.clone(), random.fork(7), until_ms, nemesis::DiskFaults::default()).await;
    world.cluster.network().mend();
    sleep_ms(3_000).await;
    for id in world.cluster.down() {
        nemesis::start(world, id).await;
    }
    sleep_ms(4_000).await;
    world.stop();
    for client in running {
        let (list, acknowledged, sent) = client.await.unwrap();
        let applied = world.query_surely(random, "lines", list.as_bytes()).await;
        let text = String::from_utf8_lossy(&applied.unwrap().reply).into_owned();
        let words: Vec<u64> = text.split(',').filter_map(|word| word.parse().ok()).collect();
        if let Some(pair) = words.windows(2).find(|pair| pair[0] >= pair[1]) {
            world.problem(format!("list {list} has {} before {}: {text}", pair[0], pair[1]));
        }
        if let Some(lost) = acknowledged.iter().find(|number| words.binary_search(number).is_err()) {
            world.problem(format!("list {list} lacks {lost}, which was acknowledged"));
        }
        world.note(format!("{list}: {sent} sent, {} acknowledged, {} there", acknowledged.len(), words.len()));
        if acknowledged.is_empty() {
            world.problem(format!("list {list} got nowhere"));
        }
    }
    let mut again = 0;
    for id in world.cluster.ids() {
        let Some(node) = world.cluster.node(id) else { continue };
        let metrics = node.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with("statehouse_gateway_resent_proposals_total{"));
        again += line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).unwrap_or(0);
    }
    if again > 0 {
        world.count("commands proposed again");
    }
}

fn run(seed: u64, verbose: bool) -> (Vec<String>, BTreeMap<&'static str, u64>, u64) {
    statehouse::module::mark_guest_thread();
    let ((mut problems, counts, trace), remains) = LifeRuntime::with_seed(seed).block_on(async move {
        let mut random = SimRandom::new(seed ^ 0x6a7e);
        let mut plan = Plan::draw(&mut random);
        plan.nodes = 3;
        let mut options = options(seed, &mut random, &plan);
        options.settings.limits.memory_bytes_max = 64 << 20;
        options.settings.limits.fuel_per_entry = 1_000_000_000;
        let cluster = SimCluster::new(options, modules().host.clone());
        let world = World::new(cluster, verbose, Sabotage::Nothing);
        if LifeRuntime::timeout(Duration::from_secs(600), story(&world, &mut random)).await.is_err() {
            world.problem("the run did not end");
        }
        world.cluster.complaints().into_iter().for_each(|complaint| world.problem(complaint));
        let told = (world.problems(), world.counts(), world.trace().0 ^ world.cluster.network().trace().0);
        (told, world.cluster.remains())
    });
    problems.extend(remains.held());
    (problems, counts, trace)
}

#[test]
fn a_session_keeps_its_order_whatever_fails() {
    on_guest_thread(|| {
        if let Some(seed) = number("GATEWAY_SEED") {
            let (problems, counts, _) = run(seed, true);
            println!("{counts:#?}");
            assert!(problems.is_empty(), "{problems:#?}");
            return;
        }
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for seed in 1..=number("GATEWAY_SEEDS").unwrap_or(SEEDS_DEFAULT) {
            let (problems, happened, _) = run(seed, false);
            assert!(problems.is_empty(), "GATEWAY_SEED={seed}: {}", problems.join("\n  "));
            for (name, count) in happened {
                *counts.entry(name).or_default() += count;
            }
        }
        println!("{counts:#?}");
        let missing: Vec<_> = MUST_HAPPEN.iter().filter(|name| !counts.contains_key(*name)).collect();
        assert!(missing.is_empty(), "the runs prove less than they should: {missing:?} never happened");
    });
}

#[test]
fn a_gateway_does_the_same_every_time() {
    on_guest_thread(|| assert_eq!(run(3, false), run(3, false)));
}
