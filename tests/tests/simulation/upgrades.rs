//! Groups go over to other modules, and back, while everything else goes wrong.

use statehouse::membership::ChangeKind;
use statehouse::membership::ChangeState;
use statehouse::service::Service;
use statehouse::sim::SimRandom;

use crate::membership::ended_changes;
use crate::membership::someone;
use crate::modules::modules;
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
