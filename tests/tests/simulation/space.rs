//! Disks that run full: writes stop with a word, the log survives, and all goes on by itself.

use std::path::Path;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use statehouse::disk::Disk;
use statehouse::service::ApplyRequest;
use statehouse::service::ErrorCode;
use statehouse::service::Service;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimCluster;
use statehouse::sim::SimRandom;

use crate::modules::modules;
use crate::nemesis;
use crate::on_guest_thread;
use crate::scenario;
use crate::scenario::Plan;
use crate::world::Sabotage;
use crate::world::Shared;
use crate::world::World;
use crate::world::now_ms;
use crate::world::sleep_ms;

const RESERVE_BYTES: u64 = 8 << 20;

fn add() -> ApplyRequest {
    let command = Bytes::from_static(br#"{"Add":1}"#);
    ApplyRequest { group: "counter".to_string(), session: None, sequence: None, command, timeout_ms: Some(2000) }
}

fn set_space(world: &Shared, nodes: &[u64], bytes: Option<u64>) {
    for id in nodes {
        world.cluster.disk(*id).unwrap().set_space(bytes);
    }
}

/// Sends to every node until all answer with `wanted`; `None` is success.
async fn all_answer(world: &Shared, wanted: Option<ErrorCode>) {
    let began_ms = now_ms();
    for id in world.cluster.ids() {
        loop {
            let answer = world.cluster.call(id, |node| async move { node.apply(add()).await }).await.unwrap();
            if answer.as_ref().err().map(|error| error.code) == wanted {
                break;
            }
            assert!(now_ms() < began_ms + 30_000, "node {id} answers {answer:?} and not {wanted:?}");
            sleep_ms(50).await;
        }
    }
}

async fn story(seed: u64) {
    let mut random = SimRandom::new(seed);
    let mut plan = Plan::draw(&mut random);
    plan.nodes = 3;
    let mut options = scenario::options(seed, &mut random, &plan);
    options.settings.disk_reserve_bytes = RESERVE_BYTES;
    let cluster = SimCluster::new(options, modules().host.clone());
    let world = World::new(cluster.clone(), false, Sabotage::Nothing);
    for id in cluster.ids() {
        nemesis::start(&world, id).await;
    }
    scenario::set_up(&world, &mut random).await;

    // One of three is short, the leader: another leads, and the group goes on.
    let group = |id: u64| cluster.node(id).unwrap().group_by_id(2).unwrap();
    let leader = loop {
        match group(1).leader() {
            Some(leader) => break leader,
            None => sleep_ms(20).await,
        }
    };
    set_space(&world, &[leader], Some(RESERVE_BYTES / 4 * 3));
    let began_ms = now_ms();
    while group(leader).leads() || group(leader).leader().is_none() {
        assert!(now_ms() < began_ms + 30_000, "node {leader} leads on without disk space");
        sleep_ms(50).await;
    }
    all_answer(&world, None).await;

    // Two of three: nobody can be sure of a majority's logs. Every node says so, reads go on.
    let other = leader % 3 + 1;
    set_space(&world, &[other], Some(RESERVE_BYTES / 4 * 3));
    all_answer(&world, Some(ErrorCode::DiskFull)).await;
    let total = world.query_surely(&mut random, "counter", br#""Get""#).await.unwrap();

    // Less than half the reserve is the log's alone: a snapshot fails, and leaves nothing behind.
    set_space(&world, &[other], Some(RESERVE_BYTES / 4));
    let taken = cluster.call(other, |node| async move { node.group_snapshot("counter".to_string()).await }).await;
    let index = group(other).standing().applied;
    if group(other).standing().snapshot < index {
        assert_eq!(taken.unwrap().unwrap_err().code, ErrorCode::DiskFull);
    }
    let files = cluster.disk(other).unwrap().list(Path::new("/data/groups/2")).unwrap();
    assert!(files.iter().all(|name| name.ends_with(".snap")), "{files:?}");

    set_space(&world, &[leader, other], None);
    all_answer(&world, None).await;
    let after = world.query_surely(&mut random, "counter", br#""Get""#).await.unwrap();
    let number = |reply: &[u8]| String::from_utf8_lossy(reply).parse::<u64>().unwrap();
    assert!(number(&after.reply) >= number(&total.reply) + 3, "{after:?} after {total:?}");
    scenario::become_ready(&world, now_ms()).await;
    assert_eq!(world.problems(), Vec::<String>::new());
    assert_eq!(cluster.complaints(), Vec::<String>::new());
}

#[test]
fn a_group_without_disk_space_says_so_keeps_its_log_and_goes_on_when_there_is_some() {
    if crate::number("SEED").is_some() {
        return;
    }
    on_guest_thread(|| {
        statehouse::module::mark_guest_thread();
        for seed in 1..=6 {
            println!("seed {seed}");
            LifeRuntime::with_seed(seed).block_on(story(seed));
        }
    });
}
