//! What goes wrong in a run.

use std::collections::BTreeSet;

use statehouse::service::Service;
use statehouse::sim::Crash;
use statehouse::sim::NOT_REPAIRED;
use statehouse::sim::NetworkFaults;
use statehouse::sim::SimRandom;
use statehouse::types::NodeId;

use crate::world::Shared;
use crate::world::now_ms;
use crate::world::sleep_ms;

fn bad_network(random: &mut SimRandom) -> NetworkFaults {
    NetworkFaults {
        delay_min_micros: 50,
        delay_max_micros: *random.pick(&[400, 3_000, 20_000]).unwrap(),
        slow_per_mille: random.between(0, 50),
        slow_max_micros: random.between(20_000, 400_000),
        break_per_mille: random.between(0, 30),
    }
}

/// Starts a node; that it does not start is a problem.
pub async fn start(world: &Shared, id: NodeId) {
    world.note(format!("start {id}"));
    for _ in 0..3 {
        match world.cluster.start(id).await {
            Ok(()) => return,
            // A sync that was made to fail ends a node while it starts, too; whoever runs it starts it again.
            Err(error) if error.raw_os_error() == Some(5) || error.to_string().contains("(os error 5)") => {
                world.note(format!("{id} ended while it started: {error}"));
                sleep_ms(100).await;
            }
            // The others must be well first; whoever runs it starts it again.
            Err(error) if error.to_string().contains(NOT_REPAIRED) => {
                world.note(format!("{id} does not start yet: {error}"));
                world.count("repairs that had to wait");
                return;
            }
            Err(error) => return world.problem(format!("node {id} does not start: {error}")),
        }
    }
    world.problem(format!("node {id} does not start, three times"));
}

fn crash(world: &Shared, random: &mut SimRandom, id: NodeId) {
    let how = if random.chance(600) { Crash::Power } else { Crash::Process };
    world.note(format!("crash {id} {how:?}"));
    world.count("crashes");
    world.cluster.crash(id, how);
}

/// Starts a node after a while, while other things happen.
pub fn start_later(world: &Shared, id: NodeId, after_ms: u64) {
    let world = world.clone();
    drop(<statehouse::sim::LifeRuntime as openraft::async_runtime::AsyncRuntime>::spawn(async move {
        sleep_ms(after_ms).await;
        start(&world, id).await;
    }));
}

fn leader(world: &Shared) -> Option<NodeId> {
    let ids = world.cluster.ids();
    ids.into_iter().find(|id| {
        let group = world.cluster.node(*id).and_then(|node| node.group_by_id(1));
        group.is_some_and(|group| group.leads())
    })
}

/// What disks do.
#[derive(Clone, Copy, Default)]
pub struct DiskFaults {
    /// Syncs fail.
    pub syncs: bool,
    /// What is on them changes while their node is down.
    pub decay: bool,
}

/// Injects faults until `until_ms`; leaves them in place.
pub async fn run(world: Shared, mut random: SimRandom, until_ms: u64, disks: DiskFaults) {
    // Draws of its own: the other faults of a seed are the same with and without it.
    let mut decaying = random.fork(1);
    let network = world.cluster.network().clone();
    while now_ms() < until_ms {
        sleep_ms(random.between(50, 2500)).await;
        let ids = world.cluster.ids();
        let victim = *random.pick(&ids).unwrap();
        match random.between(0, 99) {
            0..22 => {
                // As with a lost disk: one of several, and one at a time.
                let decays = disks.decay && ids.len() > 2 && world.cluster.is_settled();
                crash(&world, &mut random, victim);
                if decays && let Some(damage) = world.cluster.decay(victim, &mut decaying) {
                    world.note(format!("decay at {victim}: {damage}"));
                    world.count("files that decayed");
                }
                start_later(&world, victim, random.between(0, 3000));
            }
            22..34 => {
                let victim = leader(&world).unwrap_or(victim);
                crash(&world, &mut random, victim);
                start_later(&world, victim, random.between(0, 2000));
            }
            34..40 => {
                for id in &ids {
                    crash(&world, &mut random, *id);
                    start_later(&world, *id, random.between(0, 1500));
                }
                world.count("crashes of all");
            }
            // One of several, and one at a time: what a majority acknowledged is lost with a majority's disks.
            40..42 if ids.len() > 2 && world.cluster.is_settled() => {
                world.note(format!("lose the disk of {victim}"));
                world.count("lost disks");
                world.cluster.lose_disk(victim);
                start_later(&world, victim, random.between(0, 3000));
            }
            40..46 => {
                // Away so long that others may have purged what it lacks.
                crash(&world, &mut random, victim);
                start_later(&world, victim, random.between(4000, 9000));
            }
            46..66 => {
                let side: BTreeSet<NodeId> = match random.between(0, 3) {
                    0 => ids.iter().copied().filter(|_| random.chance(500)).collect(),
                    1 => leader(&world).into_iter().collect(),
                    _ => [victim].into(),
                };
                let way = random.between(0, 3);
                world.note(format!("partition {side:?} way {way}"));
                world.count("partitions");
                for a in &side {
                    for b in ids.iter().filter(|id| !side.contains(id)) {
                        if way != 1 {
                            network.cut(*a, *b);
                        }
                        if way != 2 {
                            network.cut(*b, *a);
                        }
                    }
                }
            }
            66..78 => {
                world.note("mend".to_string());
                network.mend();
            }
            78..86 => network.set_faults(bad_network(&mut random)),
            86..92 => network.set_faults(NetworkFaults::calm()),
            92..96 => {
                let group = *random.pick(&["kv", "counter", "brittle"]).unwrap();
                let name = group.to_string();
                let taken =
                    world.cluster.call(victim, move |node| async move { node.group_snapshot(name).await }).await;
                world.note(format!("snapshot of {group} at {victim}: {taken:?}"));
            }
            _ if disks.syncs => {
                if let Some(disk) = world.cluster.disk(victim) {
                    world.note(format!("a sync fails at {victim}"));
                    world.count("failed syncs");
                    disk.fail_sync(random.between(0, 5));
                }
            }
            _ => {}
        }
        for id in world.cluster.down() {
            // Nodes that ended themselves are started again by whoever runs them.
            if (disks.syncs || disks.decay) && random.chance(200) {
                start_later(&world, id, random.between(0, 500));
            }
        }
    }
}

/// Ends all faults and starts every node.
pub async fn heal(world: &Shared) {
    world.note("heal".to_string());
    let network = world.cluster.network();
    network.mend();
    network.set_faults(NetworkFaults::calm());
    for id in world.cluster.ids() {
        if let Some(disk) = world.cluster.disk(id) {
            disk.heal();
        }
    }
    // All at once: one that joins waits for the others.
    for id in world.cluster.down() {
        start_later(world, id, 0);
    }
}
