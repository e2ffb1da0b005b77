//! One run: a cluster, clients, faults, peace, and what must be true then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use statehouse::group::Timing;
use statehouse::log::LogOptions;
use statehouse::module::Limits;
use statehouse::node::Settings;
use statehouse::peer::transfer::TransferSettings;
use statehouse::service::GroupRequest;
use statehouse::service::Service;
use statehouse::sim::LifeRuntime;
use statehouse::sim::Remains;
use statehouse::sim::SimCluster;
use statehouse::sim::SimOptions;
use statehouse::sim::SimRandom;
use validit::Validate;

use crate::clients;
use crate::clients::Increments;
use crate::clients::KvHistory;
use crate::clients::Placed;
use crate::clients::Stretch;
use crate::membership;
use crate::modules::modules;
use crate::nemesis;
use crate::nemesis::DiskFaults;
use crate::register;
use crate::register::Verdict;
use crate::upgrades;
use crate::world::Sabotage;
use crate::world::Shared;
use crate::world::World;
use crate::world::now_ms;
use crate::world::sleep_ms;

/// What a run gave.
pub struct Report {
    pub problems: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
    /// A hash over everything clients and nemesis saw and all messages between nodes.
    pub fingerprint: u64,
    /// The executor's own trace, when asked for.
    pub executor: Vec<String>,
    pub virtual_ms: u64,
}

/// What the seed decides before anything runs.
pub struct Plan {
    pub nodes: u64,
    fault_ms: u64,
    faults_during_setup: bool,
    disks: DiskFaults,
    skew_max_ms: u64,
    kv_clients: u64,
    keys: u64,
    pause_ms: u64,
    /// Nodes come and go.
    membership: bool,
    /// Groups run other modules.
    upgrades: bool,
}

impl Plan {
    pub fn draw(random: &mut SimRandom) -> Self {
        let (mut decaying, mut upgrading) = (random.fork(1), random.fork(2));
        let nodes = match random.between(0, 99) {
            0..8 => 1,
            8..20 => 5,
            _ => 3,
        };
        Self {
            nodes,
            fault_ms: random.between(4_000, 10_000),
            faults_during_setup: random.chance(250),
            disks: DiskFaults { syncs: random.chance(200), decay: decaying.chance(400) },
            skew_max_ms: *random.pick(&[0, 30, 250]).unwrap(),
            kv_clients: random.between(2, 4),
            keys: random.between(1, 3),
            pause_ms: random.between(80, 400),
            membership: nodes == 3 && random.chance(350),
            upgrades: upgrading.chance(350),
        }
    }
}

pub fn options(seed: u64, random: &mut SimRandom, plan: &Plan) -> SimOptions {
    let election_timeout_ms = random.between(200, 600);
    SimOptions {
        nodes: plan.nodes,
        joiners: if plan.membership { 2 } else { 0 },
        seed,
        settings: Settings {
            timing: Timing {
                heartbeat_ms: election_timeout_ms / 4,
                election_timeout_ms,
                snapshot_entries: random.between(10, 120),
                snapshot_bytes: 1 << 20,
                snapshot_interval_ms: *random.pick(&[0, 2_000, 10_000]).unwrap(),
                log_entries_kept: random.between(0, 30),
                log_bytes_kept: *random.pick(&[0, 500, 1 << 20]).unwrap(),
                log_bytes_held: *random.pick(&[0, 0, 1]).unwrap(),
            },
            snapshots_kept: usize::try_from(random.between(1, 3)).unwrap(),
            events_kept: usize::try_from(random.between(5, 2000)).unwrap(),
            command_bytes_max: 1 << 20,
            limits: Limits { fuel_per_entry: 3_000_000, memory_bytes_max: 4 << 20, ..Limits::default() },
            request_timeout: Duration::from_secs(3),
            session_timeout_min_ms: 100,
            session_timeout_max_ms: clients::FOR_EVER_MS,
            repair_from_peers: true,
            listen: Default::default(),
            transfers: TransferSettings {
                // Of some 50 KiB. So slow that faults come while one is on its way, in parts so small that there is something to
                // resume.
                bytes_per_second: *random.pick(&[0, 32 << 10, 256 << 10]).unwrap(),
                at_once: usize::try_from(random.between(1, 2)).unwrap(),
                part_bytes: *random.pick(&[2 << 10, 8 << 10, 256 << 10]).unwrap(),
                linger: Duration::from_millis(random.between(0, 12_000)),
            },
            election_priority: 100,
            never_lead: false,
            disk_reserve_bytes: 0,
        },
        log: LogOptions {
            segment_bytes: *random.pick(&[16 << 10, 32 << 10, 128 << 10]).unwrap(),
            cache_bytes: *random.pick(&[0, 4 << 10, 1 << 20]).unwrap(),
            keep_segments: usize::try_from(random.between(1, 4)).unwrap(),
            spare_segments: usize::try_from(random.between(0, 2)).unwrap(),
            zero_new_segments: random.chance(300),
            ..LogOptions::default()
        },
        sync_micros: (random.between(50, 300), random.between(300, 8_000)),
        skew_max_ms: plan.skew_max_ms,
        slow_jobs_per_mille: *random.pick(&[0, 100, 500]).unwrap(),
        syncs_lie: false,
    }
}

/// How long after the last fault everything must be well again, virtual milliseconds.
const RECOVERY_MS: u64 = 30_000;

/// Runs one seed.
pub fn run(seed: u64, verbose: bool, executor_trace: bool, sabotage: Sabotage) -> Report {
    statehouse::module::mark_guest_thread();
    let mut runtime = LifeRuntime::with_seed(seed);
    runtime.record_trace(executor_trace);
    let (mut report, remains) = runtime.block_on(whole_run(seed, verbose, sabotage));
    report.executor = runtime.take_trace();
    drop(runtime);
    report.problems.extend(remains.held());
    report
}

async fn whole_run(seed: u64, verbose: bool, sabotage: Sabotage) -> (Report, Remains) {
    let mut random = SimRandom::new(seed ^ 0x5eed);
    let plan = Plan::draw(&mut random);
    let mut options = options(seed, &mut random, &plan);
    options.syncs_lie = sabotage == Sabotage::SyncsLie;
    let cluster = SimCluster::new(options, modules().host.clone());
    let world = World::new(cluster.clone(), verbose, sabotage);
    world.note(format!("seed {seed}: {} nodes", plan.nodes));
    match LifeRuntime::timeout(Duration::from_secs(600), body(&world, &mut random, &plan)).await {
        Ok(()) => {}
        Err(_) => world.problem(format!("the run did not end: {}", standing(&world))),
    }
    for complaint in cluster.complaints() {
        if !(plan.disks.syncs && complaint.contains("ended itself")) {
            world.problem(complaint);
        }
    }
    let (messages_hash, messages) = cluster.network().trace();
    world.note(format!("{messages} messages, {messages_hash:x}"));
    for _ in 0..cluster.network().snapshots() {
        world.count("snapshots sent to a node");
    }
    for _ in 0..cluster.network().resumed() {
        world.count("transfers resumed");
    }
    for _ in cluster.repairs() {
        world.count("logs set aside");
    }
    let (trace, _) = world.trace();
    let report = Report {
        problems: world.problems(),
        counts: world.counts(),
        fingerprint: trace ^ messages_hash,
        executor: Vec::new(),
        virtual_ms: now_ms(),
    };
    (report, cluster.remains())
}

/// How every group stands on every node, for messages.
fn standing(world: &Shared) -> String {
    let mut text = String::new();
    for id in world.cluster.ids() {
        match world.cluster.node(id) {
            None => text.push_str(&format!("\n  node {id}: down")),
            Some(node) => {
                for group in (0..5).filter_map(|group| node.group_by_id(group)) {
                    let s = group.standing();
                    text.push_str(&format!(
                        "\n  node {id} {}: {} term {} leader {:?} commit {} applied {} last {} snapshot {} purged {}",
                        group.name(),
                        s.state,
                        s.term,
                        s.leader,
                        s.commit,
                        s.applied,
                        s.last,
                        s.snapshot,
                        s.purged
                    ));
                }
            }
        }
    }
    text
}

pub async fn set_up(world: &Shared, random: &mut SimRandom) {
    let modules = modules();
    for (name, wasm) in [("kv", &modules.kv), ("counter", &modules.counter), ("brittle", &modules.brittle)] {
        let view = world.surely(random, "module_add", |node| {
            let wasm = wasm.clone();
            async move { node.module_add(name.to_string(), wasm).await }
        });
        let view = view.await;
        world.note(format!("module {name} added, {} bytes", view.size));
        let view = world.surely(random, "group_create", |node| async move {
            let (name, module) = (name.to_string(), name.to_string());
            node.group_create(GroupRequest { name, module, ..GroupRequest::default() }).await
        });
        let view = view.await;
        world.note(format!("group {name} created, id {}", view.id));
    }
}

async fn body(world: &Shared, random: &mut SimRandom, plan: &Plan) {
    for id in world.cluster.ids() {
        nemesis::start(world, id).await;
    }
    let mut tasks = Vec::new();
    let nemesis = |random: &SimRandom| {
        let until_ms = now_ms() + plan.fault_ms;
        let (world, random, disks) = (world.clone(), random.fork(100), plan.disks);
        LifeRuntime::spawn(async move {
            nemesis::run(world.clone(), random, until_ms, disks).await;
            // Here and not later: what is being set up waits for it, if no majority can be reached.
            nemesis::heal(&world).await;
        })
    };
    let mut fault = plan.faults_during_setup.then(|| nemesis(random));
    set_up(world, random).await;
    let set_up_ms = now_ms();
    let history = Arc::new(Mutex::new(KvHistory::default()));
    let increments = Arc::new(Mutex::new(Increments::default()));
    let counted = Arc::new(Mutex::new(0));
    let stretches = Arc::new(Mutex::new(Vec::new()));
    for client in 0..plan.kv_clients {
        let (world, history) = (world.clone(), history.clone());
        let random = random.fork(200 + client);
        let with_session = client % 2 == 0;
        tasks.push(LifeRuntime::spawn(clients::kv(
            world,
            history,
            random,
            client,
            with_session,
            plan.keys,
            plan.pause_ms,
        )));
    }
    for client in 0..2 {
        let random = random.fork(300 + client);
        tasks.push(LifeRuntime::spawn(clients::counter(world.clone(), increments.clone(), random, plan.pause_ms)));
    }
    tasks.push(LifeRuntime::spawn(clients::brittle(world.clone(), counted.clone(), random.fork(400), plan.pause_ms)));
    for follower in 0..2 {
        let random = random.fork(500 + follower);
        tasks.push(LifeRuntime::spawn(clients::subscriber(world.clone(), stretches.clone(), "kv", random)));
    }
    let removing = LifeRuntime::spawn(membership::watch_removals(world.clone()));
    let changing = plan.membership.then(|| {
        let until_ms = now_ms() + plan.fault_ms;
        LifeRuntime::spawn(membership::run(world.clone(), random.fork(800), until_ms))
    });
    let upgrading = plan.upgrades.then(|| {
        let until_ms = now_ms() + plan.fault_ms;
        LifeRuntime::spawn(upgrades::run(world.clone(), random.fork(900), until_ms))
    });
    let watching = LifeRuntime::spawn(watch_replicas(world.clone()));
    let expiring = LifeRuntime::spawn(clients::expiry(world.clone(), random.fork(600), plan.skew_max_ms));
    let forgetful = LifeRuntime::spawn(clients::forgetful(world.clone(), random.fork(700)));

    if fault.is_none() {
        sleep_ms(random.between(0, 1000)).await;
        fault = Some(nemesis(random));
    }
    if let Some(fault) = fault {
        joined(world, fault).await;
    }
    let healed_ms = now_ms();
    if let Some(changing) = changing {
        joined(world, changing).await;
        membership::finish(world, healed_ms + RECOVERY_MS).await;
    }
    if let Some(upgrading) = upgrading {
        joined(world, upgrading).await;
        upgrades::finish(world, healed_ms + RECOVERY_MS).await;
    }
    become_ready(world, healed_ms).await;
    // A little of peace with everything at work.
    sleep_ms(1000).await;
    world.stop();
    for task in tasks {
        joined(world, task).await;
    }
    joined(world, watching).await;
    joined(world, removing).await;
    let expiring = joined(world, expiring).await.unwrap_or_default();
    let forgotten = joined(world, forgetful).await.unwrap_or_default();
    world.note(format!("set up at {set_up_ms} ms, healed at {healed_ms} ms, clients done at {} ms", now_ms()));
    if now_ms() > healed_ms + RECOVERY_MS {
        world.problem(format!("clients needed {} ms after the last fault", now_ms() - healed_ms));
    }

    if random.chance(300) {
        a_touched_session_lives(world, random).await;
    }
    // The longest time to live is 2 s, a forgotten session's is 1 s, each plus the leader's rounds.
    sleep_ms(3500 + plan.skew_max_ms).await;
    all_keys_are_gone(world, random, expiring.iter().chain(&forgotten)).await;
    replicas_are_equal(world).await;
    count_purges(world);

    let history = std::mem::take(&mut *history.lock().unwrap());
    for (key, operations) in &history.keys {
        match register::check(operations) {
            Verdict::Linearizable => world.count("keys checked"),
            Verdict::Undecided => world.count("keys undecided"),
            Verdict::Impossible(explained) => {
                let mut text =
                    format!("the history of {key} is not linearizable; {explained} operations can be explained:");
                for operation in operations {
                    text.push_str(&format!("\n    {operation:?}"));
                }
                world.problem(text);
            }
        }
    }
    order_is_real_time(world, "kv", &history.placed);
    let counted = *counted.lock().unwrap();
    exactly_once(world, random, &increments, counted).await;
    events_agree(world, &stretches.lock().unwrap());
}

async fn joined<T>(world: &Shared, task: impl Future<Output = Result<T, impl std::fmt::Display>>) -> Option<T> {
    match task.await {
        Ok(done) => Some(done),
        Err(error) => {
            world.problem(format!("a client failed: {error}"));
            None
        }
    }
}

/// Every node must say that it is ready, and hold all that is committed.
pub async fn become_ready(world: &Shared, healed_ms: u64) {
    loop {
        let mut reasons = Vec::new();
        for id in world.cluster.ids() {
            match world.cluster.node(id) {
                None => {
                    reasons.push(format!("node {id} is down"));
                    // Its disk failed late: whoever runs it starts it again.
                    nemesis::start(world, id).await;
                }
                Some(node) => reasons.extend(node.not_ready().into_iter().map(|reason| format!("node {id}: {reason}"))),
            }
        }
        if reasons.is_empty() {
            return;
        }
        if now_ms() > healed_ms + RECOVERY_MS {
            world.problem(format!(
                "not well {RECOVERY_MS} ms after the last fault: {}{}",
                reasons.join("; "),
                standing(world)
            ));
            return;
        }
        sleep_ms(50).await;
    }
}

/// In peace, a session that gives signs of life stays, and its end takes its keys along.
async fn a_touched_session_lives(world: &Shared, random: &mut SimRandom) {
    let mut session = world.open_session(random, "kv", 1500).await;
    let put = br#"{"Put":{"key":"held","value":"v","ephemeral":true}}"#;
    if let Err(error) = world.apply_surely(random, "kv", &mut session, put).await {
        return world.problem(format!("a fresh session cannot put: {error}"));
    }
    for _ in 0..10 {
        sleep_ms(400).await;
        let node = world.any_node(random);
        let (id, secret) = (session.id, session.secret);
        let touched =
            world.cluster.call(node, move |node| async move { node.session_touch("kv".to_string(), id, secret).await });
        match touched.await {
            Ok(Ok(())) => {}
            other => world.problem(format!("a touch at node {node} was answered {other:?}")),
        }
    }
    let held = br#"{"Get":{"key":"held"}}"#;
    match world.query_surely(random, "kv", held).await {
        Ok(applied) if &applied.reply[..] != b"null" => {}
        other => {
            world.problem(format!("a session that was touched for 4 s lost its key: {other:?}{}", standing(world)))
        }
    }
    let (id, secret) = (session.id, session.secret);
    let node = world.any_node(random);
    let closed =
        world.cluster.call(node, move |node| async move { node.session_close("kv".to_string(), id, secret).await });
    match closed.await {
        Ok(Ok(())) => {}
        other => return world.problem(format!("closing a session was answered {other:?}")),
    }
    match world.query_surely(random, "kv", held).await {
        Ok(applied) if &applied.reply[..] == b"null" => {}
        other => world.problem(format!("a closed session's key is still there: {other:?}")),
    }
}

async fn all_keys_are_gone(world: &Shared, random: &mut SimRandom, keys: impl Iterator<Item = &String>) {
    for key in keys {
        let query = serde_json::json!({"Get": {"key": key}}).to_string();
        match world.query_surely(random, "kv", query.as_bytes()).await {
            Ok(applied) if &applied.reply[..] == b"null" => world.count("keys that went in time"),
            other => world.problem(format!("{key} should be gone: {other:?}")),
        }
    }
}

/// Compares the replicas' states as they go, so that a difference is found near its cause, and looks whether what consensus
/// knows fits together on each.
pub async fn watch_replicas(world: Shared) {
    let mut known: BTreeMap<(u64, u64), ([u8; 32], u64)> = BTreeMap::new();
    let mut looks: u64 = 0;
    while !world.stopped() {
        sleep_ms(100).await;
        looks += 1;
        for id in world.cluster.ids() {
            let Some(node) = world.cluster.node(id) else { continue };
            for group in (0..4).filter_map(|group| node.group_by_id(group)) {
                let id_of_group = group.id();
                let raft = group.raft().clone();
                let validated = world.cluster.call(id, move |_| async move {
                    raft.with_raft_state(|state| state.validate().map_err(|error| error.to_string())).await
                });
                match validated.await {
                    Ok(Ok(Ok(()))) => world.count("looks at consensus"),
                    Ok(Ok(Err(error))) => {
                        world.problem(format!(
                            "what node {id} knows of group {id_of_group} contradicts itself: {error}"
                        ));
                        return;
                    }
                    // It is about to stop.
                    _ => {}
                }
                if id_of_group == 0 || !looks.is_multiple_of(7) {
                    continue;
                }
                let Ok(Ok((index, digest))) =
                    world.cluster.call(id, move |_| async move { group.digest().await }).await
                else {
                    continue;
                };
                let (other, by) = *known.entry((id_of_group, index)).or_insert((digest, id));
                if other != digest {
                    world.problem(format!(
                        "group {id_of_group} at index {index} is not the same on nodes {by} and {id}"
                    ));
                    for node in [by, id] {
                        world.note(log_of(&world, node, id_of_group).await);
                    }
                    return;
                }
            }
        }
    }
}

/// What a node's log says, for messages.
async fn log_of(world: &Shared, node: u64, group: u64) -> String {
    use openraft::RaftLogReader;
    use openraft::storage::RaftLogStorage;
    let Some(log) = world.cluster.log(node) else { return format!("node {node} is down") };
    let mut log = log.group::<LifeRuntime>(group);
    let state = log.get_log_state().await;
    let mut text = format!("the log of group {group} at node {node}, {state:?}:");
    for entry in log.try_get_log_entries(0..u64::MAX).await.unwrap_or_default() {
        text.push_str(&format!("\n    {} {:?}", entry.log_id, entry.payload));
    }
    text
}

/// Adds to the coverage what the nodes' logs tell at the end.
fn count_purges(world: &Shared) {
    for id in world.cluster.ids() {
        let Some(node) = world.cluster.node(id) else { continue };
        for group in (0..4).filter_map(|group| node.group_by_id(group)) {
            if group.standing().purged > 0 {
                world.count("logs that were purged");
            }
        }
        if let Some(log) = world.cluster.log(id).filter(|log| log.stats().segments > 1) {
            drop(log);
            world.count("logs of several segments");
        }
    }
}

/// All replicas have the same state at the same index, and none has a timer left.
async fn replicas_are_equal(world: &Shared) {
    let began_ms = now_ms();
    loop {
        let mut digests: BTreeMap<(u64, u64), BTreeMap<[u8; 32], Vec<u64>>> = BTreeMap::new();
        for id in world.cluster.ids() {
            let Some(node) = world.cluster.node(id) else { continue };
            for group in (0..4).filter_map(|group| node.group_by_id(group)) {
                match group.digest().await {
                    Ok((index, digest)) => {
                        digests.entry((group.id(), index)).or_default().entry(digest).or_default().push(id);
                    }
                    Err(error) => world.problem(format!("node {id} has no digest: {error}")),
                }
                let (_, timers) = group.tables();
                if timers != 0 {
                    world.problem(format!("node {id} has {timers} timers of group {} left", group.id()));
                }
            }
        }
        for ((group, index), found) in &digests {
            if found.len() > 1 {
                world.problem(format!(
                    "the replicas of group {group} differ at index {index}: nodes {:?}",
                    found.values()
                ));
            }
        }
        let groups = digests.len();
        let whole = digests.values().flat_map(BTreeMap::values).all(|nodes| nodes.len() == world.cluster.ids().len());
        if whole && groups == 4 {
            return;
        }
        if now_ms() > began_ms + 10_000 {
            world.problem(format!(
                "the replicas do not come to the same index: {:?}{}",
                digests.keys(),
                standing(world)
            ));
            return;
        }
        sleep_ms(100).await;
    }
}

/// What was acknowledged before another thing began stands before it in the log.
pub fn order_is_real_time(world: &Shared, group: &str, placed: &[Placed]) {
    let mut by_return: Vec<&Placed> = placed.iter().filter(|placed| placed.is_write).collect();
    by_return.sort_by_key(|placed| placed.returned);
    let mut by_call: Vec<&Placed> = placed.iter().collect();
    by_call.sort_by_key(|placed| placed.called);
    let (mut highest, mut next) = (0, 0);
    for placed in by_call {
        while next < by_return.len() && by_return[next].returned < placed.called {
            highest = highest.max(by_return[next].index);
            next += 1;
        }
        if placed.index < highest || placed.is_write && placed.index == highest {
            world.problem(format!("{group}: {placed:?} began after the command at index {highest} was acknowledged"));
        }
    }
}

async fn exactly_once(world: &Shared, random: &mut SimRandom, increments: &Arc<Mutex<Increments>>, brittle: u64) {
    let (mut acknowledged, placed) = {
        let increments = increments.lock().unwrap();
        (increments.acknowledged.clone(), increments.placed.clone())
    };
    order_is_real_time(world, "counter", &placed);
    acknowledged.sort_unstable();
    let mut last_index = 0;
    for (expected, (value, index)) in (1..).zip(&acknowledged) {
        if *value != expected || *index <= last_index {
            world.problem(format!(
                "increment {expected} was answered {value} at index {index}, the one before it was at {last_index}"
            ));
            break;
        }
        last_index = *index;
    }
    let total = world.query_surely(random, "counter", br#""Get""#).await;
    let expected = acknowledged.len().to_string();
    if !total.as_ref().is_ok_and(|applied| applied.reply[..] == *expected.as_bytes()) {
        world.problem(format!("{expected} increments were acknowledged, the counter says {total:?}"));
    }
    let total = world.query_surely(random, "brittle", b"").await;
    if !total.as_ref().is_ok_and(|applied| applied.reply[..] == brittle.to_le_bytes()) {
        world.problem(format!("brittle should have counted {brittle}, it says {total:?}"));
    }
}

/// Every subscriber sees the same events, in order, and all of them where it sees no gap.
fn events_agree(world: &Shared, stretches: &[Stretch]) {
    let mut known: BTreeMap<(u64, u32), &[u8]> = BTreeMap::new();
    for stretch in stretches {
        for (index, number, data) in &stretch.events {
            world.count("events seen");
            if known.insert((*index, *number), data).is_some_and(|other| other != &data[..]) {
                world.problem(format!("event {index}.{number} is not the same on all nodes"));
            }
        }
    }
    for stretch in stretches {
        let Some((last_index, last_number, _)) = stretch.events.last() else { continue };
        let expected = known.range((stretch.from, 0)..=(*last_index, *last_number)).count();
        if expected != stretch.events.len() {
            let missed = expected - stretch.events.len();
            world.problem(format!("a subscriber missed {missed} events from index {} to {last_index}", stretch.from));
        }
    }
}
