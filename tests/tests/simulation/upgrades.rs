//! Groups go over to other modules, and back, while everything else goes wrong.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use sha2::Digest;
use sha2::Sha256;
use statehouse::disk::Disk;
use statehouse::membership::Change;
use statehouse::membership::ChangeKind;
use statehouse::membership::ChangeState;
use statehouse::service::ApplyRequest;
use statehouse::service::Service;
use statehouse::sim::Crash;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimRandom;
use statehouse::types::NodeId;

use crate::membership::ended_changes;
use crate::membership::someone;
use crate::modules::modules;
use crate::repair;
use crate::scenario;
use crate::world::Shared;
use crate::world::now_ms;
use crate::world::sleep_ms;

const GROUPS: [&str; 3] = ["kv", "counter", "brittle"];

/// What the module that does the same as another one is called.
fn twin(name: &str) -> String {
    format!("{name}-twin")
}

/// Adds the twins of the groups' modules, then changes modules until `until_ms`.
pub async fn run(world: Shared, mut random: SimRandom, until_ms: u64) {
    let modules = modules();
    for (name, wasm) in GROUPS.into_iter().zip([&modules.kv, &modules.counter, &modules.brittle]) {
        let wasm = statehouse_tests::modules::twin(wasm);
        let added = world.surely(&mut random, "module_add", |node| {
            let (name, wasm) = (twin(name), wasm.clone().into());
            async move { node.module_add(name, wasm).await }
        });
        added.await;
    }
    while now_ms() < until_ms {
        sleep_ms(random.between(100, 1500)).await;
        let at = world.any_node(&mut random);
        let name = *random.pick(&GROUPS).unwrap();
        let module = if random.chance(600) { twin(name) } else { name.to_string() };
        let (group, to) = (name.to_string(), module.clone());
        let begun = world.cluster.call(at, move |node| async move { node.module_change(group, to).await }).await;
        world.note(format!("{name} is to run {module}, asked of {at}: {begun:?}"));
    }
}

/// After the last fault: every change that began has come to an end, all replicas run what the catalog says, and no module that fits
/// was refused.
pub async fn finish(world: &Shared, until_ms: u64) {
    let mut waits_for = String::new();
    while now_ms() < until_ms {
        sleep_ms(100).await;
        let Some(at) = someone(world) else { continue };
        let of_modules = |kind: &ChangeKind| matches!(kind, ChangeKind::GroupModule { .. });
        let changes = match ended_changes(world, at, of_modules).await {
            Ok(changes) => changes,
            Err(why) => {
                waits_for = why;
                continue;
            }
        };
        waits_for = differing(world).await;
        if !waits_for.is_empty() {
            continue;
        }
        for change in changes {
            match &change.state {
                ChangeState::Done => world.count("modules changed"),
                other => world.problem(format!("{} came to {other:?}", change.kind)),
            }
        }
        return;
    }
    world.problem(format!("the modules do not settle: {waits_for}"));
}

/// Which replicas run something else than their node's catalog says.
async fn differing(world: &Shared) -> String {
    let mut text = String::new();
    for id in world.cluster.ids() {
        let Ok(Ok(groups)) = world.cluster.call(id, |node| async move { node.group_list().await }).await else {
            text.push_str(&format!("node {id} does not answer; "));
            continue;
        };
        for group in groups {
            let last = group.modules.last().map(|used| (&used.name, &used.digest));
            if last != Some((&group.module, &group.digest)) {
                text.push_str(&format!(
                    "node {id} runs {} in {}, the catalog says {last:?}; ",
                    group.module, group.name
                ));
            }
        }
    }
    text
}

async fn add(world: &Shared, random: &mut SimRandom, name: &'static str, wasm: &Bytes) {
    let added = world.surely(random, "module_add", |node| {
        let wasm = wasm.clone();
        async move { node.module_add(name.to_string(), wasm).await }
    });
    added.await;
}

/// Begins to change the module of `counter`, without a trial, and waits until it is known what came of it.
async fn change(world: &Shared, random: &mut SimRandom, module: &'static str, digest: [u8; 32]) -> Change {
    let begun = world.surely(random, "change_begin", |node| async move {
        let (group, module) = ("counter".to_string(), module.to_string());
        node.change_begin(ChangeKind::GroupModule { group, module, digest }).await
    });
    let id = begun.await.id;
    loop {
        let looked = world.surely(random, "change_get", |node| async move { node.change_get(id, 0).await }).await;
        if !looked.is_running() {
            return looked;
        }
        sleep_ms(50).await;
    }
}

/// Starts a node, which takes no longer than a minute.
async fn start_in_time(world: &Shared, id: NodeId) {
    let started = LifeRuntime::timeout(Duration::from_secs(60), world.cluster.start(id)).await;
    started.unwrap_or_else(|_| panic!("node {id} never finishes starting")).unwrap();
}

fn digest(wasm: &Bytes) -> ([u8; 32], PathBuf) {
    let digest: [u8; 32] = Sha256::digest(wasm).into();
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    (digest, PathBuf::from(format!("/data/modules/{name}.wasm")))
}

async fn counts(world: &Shared, random: &mut SimRandom) -> Bytes {
    let asked = world.query_surely(random, "counter", br#""Get""#);
    let got = LifeRuntime::timeout(Duration::from_secs(30), asked).await;
    got.expect("the group is served").expect("the group is there").reply
}

/// A change of module failed at its entry, so no group ran the module, and it was removed: its file went too, ten minutes later. The
/// entry stayed. Whoever came to it again waited there for the module: nodes never finished starting, and a replica that began empty
/// never got further.
async fn a_failed_change(seed: u64) {
    let mut random = SimRandom::new(seed);
    let world = repair::three_nodes(seed, &mut random).await;
    let next = Bytes::from_static(statehouse_tests::modules::counter_2());
    add(&world, &mut random, "next", &next).await;
    let set = world.surely(&mut random, "apply", |node| async move {
        let (group, command) = ("counter".to_string(), Bytes::from_static(br#"{"Set":13}"#));
        node.apply(ApplyRequest { group, session: None, sequence: None, command, timeout_ms: Some(2000) }).await
    });
    set.await;
    // As if the state had moved on since it was tried.
    let came = change(&world, &mut random, "next", digest(&next).0).await;
    let ChangeState::Failed(why) = came.state else { panic!("{came:?}") };
    assert!(why.detail.contains("13 brings bad luck"), "{why}");
    let removed =
        world.surely(&mut random, "module_remove", |node| async move { node.module_remove("next".to_string()).await });
    removed.await;
    sleep_ms(12 * 60_000).await;
    for id in world.cluster.ids() {
        world.cluster.crash(id, Crash::Process);
    }
    world.cluster.lose_disk(3);
    for id in world.cluster.ids() {
        start_in_time(&world, id).await;
    }
    assert_eq!(counts(&world, &mut random).await, "13");
    scenario::become_ready(&world, now_ms()).await;
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn a_change_of_module_that_failed_is_gone_through_again_also_when_its_module_was_removed() {
    repair::play_seeds(1..=1, |seed| LifeRuntime::with_seed(seed).block_on(a_failed_change(seed)));
}

/// A group's log names a module whose file is nowhere any more. Nodes that started then waited for it before they served anything, and
/// there was nobody to push it to.
async fn a_lost_module(seed: u64) {
    let mut random = SimRandom::new(seed);
    let world = repair::three_nodes(seed, &mut random).await;
    let next = Bytes::from(statehouse_tests::modules::twin(&modules().counter));
    let (digest, path) = digest(&next);
    add(&world, &mut random, "next", &next).await;
    repair::add_seven(&world, &mut random, "counter").await;
    let came = change(&world, &mut random, "next", digest).await;
    assert_eq!(came.state, ChangeState::Done);
    scenario::become_ready(&world, now_ms()).await;
    for id in world.cluster.ids() {
        world.cluster.crash(id, Crash::Process);
        world.cluster.disk(id).unwrap().remove(&path).unwrap();
    }
    for id in world.cluster.ids() {
        start_in_time(&world, id).await;
    }
    let command = Bytes::from_static(br#"{"Put":{"key":"a","value":"1"}}"#);
    let put = world.surely(&mut random, "apply", |node| {
        let (group, command) = ("kv".to_string(), command.clone());
        let request = ApplyRequest { group, session: None, sequence: None, command, timeout_ms: Some(2000) };
        async move { node.apply(request).await }
    });
    LifeRuntime::timeout(Duration::from_secs(30), put).await.expect("the other groups are served");
    let said = || {
        let of = |id: &NodeId| world.cluster.node(*id).map(|node| node.not_ready()).unwrap_or_default();
        world.cluster.ids().iter().map(of).collect::<Vec<_>>()
    };
    let began_ms = now_ms();
    while said().iter().any(|whys| !whys.iter().any(|why| why.contains("group counter"))) {
        assert!(now_ms() < began_ms + 30_000, "a node says that it is ready: {:?}", said());
        sleep_ms(20).await;
    }
    // Those whose log did not say yet that the entry was committed have opened the group.
    let lacks =
        |why: &String| why.contains("group counter does not run here: the module") && why.contains("is not here");
    assert!(said().iter().flatten().any(lacks), "{:?}", said());
    add(&world, &mut random, "next", &next).await;
    assert_eq!(counts(&world, &mut random).await, "7");
    scenario::become_ready(&world, now_ms()).await;
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn a_group_whose_module_is_nowhere_does_not_keep_nodes_from_starting() {
    repair::play(|seed| LifeRuntime::with_seed(seed).block_on(a_lost_module(seed)));
}
