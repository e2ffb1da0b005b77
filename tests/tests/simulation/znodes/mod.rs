//! ZooKeeper's clients in the simulated cluster: the module `znode-tree` with its adapter, as WebAssembly, behind the
//! gateways of all nodes; clients that speak ZooKeeper's protocol over connections in memory, and everything that
//! the nemesis does. What must hold is written where it is checked: [`client`] for one client as it goes on, [`history`]
//! for all of them together, and here for what is there in the end.

mod client;
mod history;
mod wire;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use statehouse::service::GroupRequest;
use statehouse::service::Service;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimCluster;
use statehouse::sim::SimRandom;

use self::client::Client;
use self::client::EPHEMERALS;
use self::client::PAIR;
use self::client::REGISTERS;
use self::client::SEQUENCE;
use self::client::SharedHistory;
use self::history::History;
use self::wire::Body;
use self::wire::Greeting;
use self::wire::Request;
use self::wire::Wire;
use self::wire::flags;
use crate::modules::modules;
use crate::nemesis;
use crate::number;
use crate::on_guest_thread;
use crate::register;
use crate::register::Action;
use crate::register::Operation;
use crate::register::Seen;
use crate::register::Verdict;
use crate::scenario;
use crate::scenario::Plan;
use crate::scenario::options;
use crate::world::Sabotage;
use crate::world::Shared;
use crate::world::World;
use crate::world::now;
use crate::world::now_ms;
use crate::world::sleep_ms;

const ADDRESS: &str = "127.0.0.1:2181";
const CLIENTS: u64 = 4;
const SEEDS_DEFAULT: u64 = 24;
/// A client with this number writes what is there at the beginning and looks at what is there in the end.
const AUDITOR: u64 = 99;

/// What must have happened at least once in the ordinary test run.
const MUST_HAPPEN: [&str; 16] = [
    "clients that went silent",
    "crashes",
    "creates acknowledged",
    "handshakes refused",
    "multis that were done",
    "multis that were refused",
    "notifications",
    "notifications of what was missed",
    "partitions",
    "registers checked",
    "sessions taken to another node",
    "sessions that were closed",
    "sessions that were over",
    "sets with another version",
    "watches that were taken along",
    "writes of unknown outcome",
];

/// The group, and the nodes that are always there.
async fn set_up(world: &Shared, random: &mut SimRandom, history: &SharedHistory) {
    let wasm = modules().znode_tree.clone();
    let added = world.surely(random, "module_add", |node| {
        let wasm = wasm.clone();
        async move { node.module_add("znode-tree".to_owned(), wasm).await }
    });
    added.await;
    let made = world.surely(random, "group_create", |node| async move {
        let request = GroupRequest {
            name: "keeper".to_owned(),
            module: "znode-tree".to_owned(),
            listen: vec![ADDRESS.to_owned()],
            listen_params: serde_json::json!({"tick_time_ms": 500}),
            ..GroupRequest::default()
        };
        node.group_create(request).await
    });
    made.await;
    let mut value = AUDITOR * 1_000_000;
    let parents = ["/registers", "/pair", "/coming", SEQUENCE, EPHEMERALS];
    for path in parents.iter().chain(&REGISTERS).chain(&PAIR) {
        value += 1;
        // A pair begins with the same value.
        let value = if *path == PAIR[1] { value - 1 } else { value };
        let make = Request::Create { path: (*path).to_owned(), value, flags: flags::PERSISTENT };
        let stat = loop {
            let Some((mut client, mut wire)) = visitor(world, random, history, None).await else { continue };
            if let Some(Body::Created { stat, .. }) = client.ask(&mut wire, make.clone()).await {
                break stat;
            }
            // The answer to an earlier attempt may have been lost.
            let get = Request::Get { path: (*path).to_owned(), watch: false };
            if let Some(Body::Data { stat, .. }) = client.ask(&mut wire, get).await {
                break stat;
            }
            sleep_ms(50).await;
        };
        let mut history = history.lock().unwrap();
        history.saw(path, &stat, value, stat.czxid);
        if REGISTERS.contains(path) {
            let (action, seen) = (Action::Put(value), Seen::Put { version: 1, previous: None });
            let operation = Operation { client: AUDITOR, action, called: 0, returned: 1, seen };
            history.registers.entry((*path).to_owned()).or_default().push(operation);
        }
    }
}

/// A client that comes once, with a session of its own, to any node or to this one.
async fn visitor(
    world: &Shared,
    random: &mut SimRandom,
    history: &SharedHistory,
    node: Option<u64>,
) -> Option<(Client, Wire)> {
    let node = node.unwrap_or_else(|| world.any_node(random));
    let mut client = Client::new(world.clone(), history.clone(), random.fork(AUDITOR), AUDITOR);
    match client.connect(node).await {
        Some(wire) => Some((client, wire)),
        None => {
            sleep_ms(50).await;
            None
        }
    }
}

async fn story(world: &Shared, random: &mut SimRandom) {
    for id in world.cluster.ids() {
        nemesis::start(world, id).await;
    }
    let history = SharedHistory::default();
    set_up(world, random, &history).await;
    let clients =
        (0..CLIENTS).map(|number| Client::new(world.clone(), history.clone(), random.fork(100 + number), number));
    let running: Vec<_> = clients.map(|client| LifeRuntime::spawn(client.run())).collect();
    let watching = LifeRuntime::spawn(scenario::watch_replicas(world.clone()));
    let until_ms = now_ms() + random.between(4_000, 9_000);
    nemesis::run(world.clone(), random.fork(7), until_ms, nemesis::DiskFaults::default()).await;
    nemesis::heal(world).await;
    scenario::become_ready(world, now_ms()).await;
    // A little of peace with everything at work.
    sleep_ms(1_500).await;
    world.stop();
    watching.await.unwrap();
    for client in running {
        let mut client = client.await.unwrap();
        // In peace: a session that is over is found to be so by the first attempt. A node that is being sent a snapshot, which may be
        // slow, turns away who has seen more.
        let mut looked = None;
        for _ in 0..30 {
            let node = world.any_node(random);
            looked = client.last_look(node).await;
            if looked.is_some() {
                break;
            }
            sleep_ms(50).await;
        }
        if looked.is_none() {
            world.problem("a client cannot end its session in peace");
        }
    }
    // Sessions whose client never heard of them end by themselves.
    sleep_ms(5_000).await;
    let mut trees = Vec::new();
    for node in world.cluster.ids() {
        match audit(world, random, &history, node).await {
            Some(tree) => trees.push(tree),
            None => world.problem(format!("node {node} does not answer in peace")),
        }
    }
    judge(world, &history, &trees);
    replicas_are_equal(world).await;
}

/// What is there in the end, as one node answers after a sync: values by path.
async fn audit(
    world: &Shared,
    random: &mut SimRandom,
    history: &SharedHistory,
    node: u64,
) -> Option<BTreeMap<String, u64>> {
    let (mut client, mut wire) = visitor(world, random, history, Some(node)).await?;
    let called = now();
    client.ask(&mut wire, Request::Sync { path: "/".to_owned() }).await?;
    let mut paths: Vec<String> = REGISTERS.iter().chain(&PAIR).map(|path| (*path).to_owned()).collect();
    for parent in [EPHEMERALS, SEQUENCE] {
        let children = Request::Children { path: parent.to_owned(), watch: false };
        let Body::Children { names, .. } = client.ask(&mut wire, children).await? else { return None };
        paths.extend(names.iter().map(|name| format!("{parent}/{name}")));
    }
    let mut values = BTreeMap::new();
    for path in paths {
        let get = Request::Get { path: path.clone(), watch: false };
        let Body::Data { value: Some(value), stat } = client.ask(&mut wire, get).await? else { return None };
        let mut history = history.lock().unwrap();
        history.saw(&path, &stat, value, i64::MAX);
        if stat.ephemeral_owner != 0 {
            world.problem(format!("{path} is there when all sessions are over: {stat:?}"));
        }
        if let Some(operations) = history.registers.get_mut(&path) {
            let seen = Seen::Got(Some((value, u64::try_from(stat.version).unwrap() + 1)));
            operations.push(Operation { client: AUDITOR, action: Action::Get, called, returned: now(), seen });
        }
        values.insert(path, value);
    }
    // Who has seen what no node can know is not served.
    let mut ahead = Wire::new(world.cluster.connect(node, ADDRESS)?);
    let greeting = ahead.greet(i64::MAX / 2, 4_000, None).await;
    if greeting != Greeting::Nothing {
        world.problem(format!("a client from the future is greeted with {greeting:?}"));
    }
    Some(values)
}

/// What clients saw, all of it together.
fn judge(world: &Shared, history: &SharedHistory, trees: &[BTreeMap<String, u64>]) {
    let mut history = std::mem::take(&mut *history.lock().unwrap());
    history.check();
    std::mem::take(&mut history.problems).into_iter().for_each(|problem| world.problem(problem));
    for (path, operations) in &history.registers {
        match register::check(operations) {
            Verdict::Linearizable => world.count("registers checked"),
            Verdict::Undecided => world.count("registers undecided"),
            Verdict::Impossible(explained) => {
                let told: Vec<_> = operations.iter().map(|operation| format!("\n    {operation:?}")).collect();
                world.problem(format!("{path} is not linearizable; {explained} can be explained:{}", told.concat()));
            }
        }
    }
    scenario::order_is_real_time(world, "keeper", &history.placed);
    let Some(tree) = trees.first() else { return };
    if trees.iter().any(|other| other != tree) {
        world.problem(format!("the nodes answer with different trees: {trees:?}"));
    }
    if PAIR.map(|path| tree.get(path)).windows(2).any(|pair| pair[0] != pair[1]) {
        world.problem("one of a pair was written without the other".to_owned());
    }
    exactly_once(world, &history, tree);
}

/// Every acknowledged sequential node is there, one whose making has no known outcome at most once, and no other.
fn exactly_once(world: &Shared, history: &History, tree: &BTreeMap<String, u64>) {
    let kept = history.sequential.values().filter(|(path, _)| !history.ephemerals.contains_key(path));
    let mut acknowledged: BTreeMap<&str, u64> = kept.map(|(path, value)| (path.as_str(), *value)).collect();
    let mut maybe = history.maybe_sequential.clone();
    for (path, value) in tree.iter().filter(|(path, _)| path.starts_with(SEQUENCE)) {
        match acknowledged.remove(path.as_str()) {
            Some(known) if known == *value => {}
            None if maybe.remove(value) => world.count("creates of unknown outcome that were done"),
            known => world.problem(format!("{path} has {value}; it was acknowledged with {known:?}")),
        }
    }
    for (path, value) in acknowledged {
        world.problem(format!("{path} with {value} was acknowledged and is not there"));
    }
}

/// All replicas come to the same index, and have the same state there.
async fn replicas_are_equal(world: &Shared) {
    let began_ms = now_ms();
    loop {
        let mut digests: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        for id in world.cluster.ids() {
            let Some(group) = world.cluster.node(id).and_then(|node| node.group_by_id(1)) else { continue };
            match group.digest().await {
                Ok((index, digest)) => digests.entry(index).or_default().push((digest, id)),
                Err(error) => return world.problem(format!("node {id} has no digest: {error}")),
            }
        }
        for (index, digests) in &digests {
            if digests.iter().any(|(digest, _)| *digest != digests[0].0) {
                return world.problem(format!("the replicas differ at index {index}"));
            }
        }
        if digests.values().any(|digests| digests.len() == world.cluster.ids().len()) {
            return;
        }
        if now_ms() > began_ms + 10_000 {
            return world.problem("the replicas do not come to the same index".to_owned());
        }
        sleep_ms(100).await;
    }
}

fn run(seed: u64, verbose: bool) -> (Vec<String>, BTreeMap<&'static str, u64>, u64) {
    statehouse::module::mark_guest_thread();
    let ((mut problems, counts, trace), remains) = LifeRuntime::with_seed(seed).block_on(async move {
        let mut random = SimRandom::new(seed ^ 0x2181);
        let plan = Plan::draw(&mut random);
        let mut options = options(seed, &mut random, &plan);
        options.settings.limits.memory_bytes_max = 64 << 20;
        options.settings.limits.fuel_per_entry = 1_000_000_000;
        let cluster = SimCluster::new(options, modules().host.clone());
        let world = World::new(cluster, verbose, Sabotage::Nothing);
        world.note(format!("seed {seed}: {} nodes", plan.nodes));
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

fn tell(seed: u64, problems: &[String]) -> String {
    format!(
        "ZNODES_SEED={seed}:\n  {}\nrepeat it with\n  ZNODES_SEED={seed} cargo test -p statehouse-tests --test \
         simulation zookeepers_clients -- --nocapture",
        problems.join("\n  ")
    )
}

#[test]
fn zookeepers_clients_see_one_tree_whatever_fails() {
    if let Some(seed) = number("ZNODES_SEED") {
        let (problems, counts, _) = on_guest_thread(|| run(seed, true));
        println!("{counts:#?}");
        assert!(problems.is_empty(), "{}", tell(seed, &problems));
        return;
    }
    if number("SEED").is_some() {
        return;
    }
    let first = number("FIRST_SEED").unwrap_or(1);
    let seeds = number("ZNODES_SEEDS").or(number("SEEDS")).unwrap_or(SEEDS_DEFAULT);
    let next = AtomicU64::new(first);
    let counts: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let thread = std::thread::Builder::new().stack_size(statehouse::module::GUEST_STACK_BYTES);
            let running = thread.spawn_scoped(scope, || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_enough = !failed.lock().unwrap().is_empty() && number("KEEP_GOING").is_none();
                    if seed >= first + seeds || is_enough {
                        return;
                    }
                    let (problems, happened, _) = run(seed, false);
                    for (name, count) in happened {
                        *counts.lock().unwrap().entry(name).or_default() += count;
                    }
                    if !problems.is_empty() {
                        eprintln!("{}", tell(seed, &problems));
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
            running.unwrap();
        }
    });
    let (counts, failed) = (counts.into_inner().unwrap(), failed.into_inner().unwrap());
    println!("{counts:#?}");
    assert!(failed.is_empty(), "seeds {failed:?} failed; the command that repeats each is above");
    if seeds >= SEEDS_DEFAULT {
        let missing: Vec<_> = MUST_HAPPEN.iter().filter(|name| !counts.contains_key(*name)).collect();
        assert!(missing.is_empty(), "the runs prove less than they should: {missing:?} never happened");
    }
}

#[test]
fn a_seed_with_zookeepers_clients_is_the_same_run_every_time() {
    on_guest_thread(|| assert_eq!(run(3, false), run(3, false)));
}
