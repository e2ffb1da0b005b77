//! Nodes that repair themselves, and what must not be given up for it.

use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use openraft::async_runtime::AsyncRuntime;
use statehouse::disk::Disk;
use statehouse::disk::sim::SimDisk;
use statehouse::group::Group;
use statehouse::membership::ChangeKind;
use statehouse::peer::Transport;
use statehouse::platform::Platform;
use statehouse::service::ApplyRequest;
use statehouse::service::ErrorCode;
use statehouse::service::GroupRequest;
use statehouse::service::Service;
use statehouse::service::ServiceResult;
use statehouse::sim::Crash;
use statehouse::sim::LifeRuntime;
use statehouse::sim::NOT_REPAIRED;
use statehouse::sim::SimCluster;
use statehouse::sim::SimNode;
use statehouse::sim::SimRandom;
use statehouse::types::CATALOG;
use statehouse::types::GroupId;
use statehouse::types::NodeId;

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

/// Three nodes, whose groups write a snapshot when the story says so.
pub async fn three_nodes(seed: u64, random: &mut SimRandom) -> Shared {
    let mut plan = Plan::draw(random);
    plan.nodes = 3;
    let mut options = scenario::options(seed, random, &plan);
    options.joiners = 0;
    let settings = &mut options.settings;
    // The log is purged behind them.
    (settings.timing.snapshot_entries, settings.timing.snapshot_interval_ms) = (1 << 30, 0);
    (settings.timing.log_entries_kept, settings.timing.log_bytes_held, settings.snapshots_kept) = (0, 0, 2);
    let world = World::new(SimCluster::new(options, modules().host.clone()), false, Sabotage::Nothing);
    for id in world.cluster.ids() {
        nemesis::start(&world, id).await;
    }
    scenario::set_up(&world, random).await;
    world
}

/// Plays a story with a few seeds, unless one seed of the scenario was asked for.
pub fn play(story: impl Fn(u64) + Send) {
    play_seeds(1..=4, story);
}

/// The same with these seeds: a long story takes its time.
pub fn play_seeds(seeds: RangeInclusive<u64>, story: impl Fn(u64) + Send) {
    if crate::number("SEED").is_some() {
        return;
    }
    on_guest_thread(move || {
        statehouse::module::mark_guest_thread();
        for seed in seeds {
            println!("seed {seed}");
            story(seed);
        }
    });
}

/// Three nodes, and a group that only one of them holds: the node.
pub async fn with_a_single(seed: u64, random: &mut SimRandom) -> (Shared, NodeId) {
    let world = three_nodes(seed, random).await;
    let created = world.surely(random, "group_create", |node| async move {
        let (name, module) = ("single".to_string(), "counter".to_string());
        node.group_create(GroupRequest { name, module, replicas: Some(1), ..GroupRequest::default() }).await
    });
    let id = created.await.id;
    let holder = loop {
        let holds = |id: &NodeId, group| world.cluster.node(*id).is_some_and(|node| node.group_by_id(group).is_some());
        match world.cluster.ids().into_iter().find(|node| holds(node, id)) {
            Some(holder) => break holder,
            None => sleep_ms(20).await,
        }
    };
    (world, holder)
}

pub async fn add_seven(world: &Shared, random: &mut SimRandom, group: &'static str) {
    let applied = world.surely(random, "apply", |node| async move {
        let command = Bytes::from_static(br#"{"Add":7}"#);
        let timeout_ms = Some(2000);
        node.apply(ApplyRequest { group: group.to_string(), session: None, sequence: None, command, timeout_ms }).await
    });
    applied.await;
}

async fn assert_seven(world: &Shared, random: &mut SimRandom) {
    let got = LifeRuntime::timeout(Duration::from_secs(30), world.query_surely(random, "single", br#""Get""#)).await;
    let got = got.expect("the group is served").expect("the group is there");
    assert_eq!(got.reply, Bytes::from_static(b"7"));
}

/// Boxed where the types are still parameters: with the real ones the compiler does not see that it is `Send`.
fn snapshot_of<P: Platform, T: Transport>(group: Arc<Group<P, T>>) -> BoxFuture<'static, ServiceResult<u64>> {
    Box::pin(async move { group.snapshot().await })
}

/// Writes a snapshot of a group at a node, and lets its log begin behind it: the index it covers.
pub async fn shorten_the_log(world: &Shared, at: NodeId, group: GroupId) -> u64 {
    let node = world.cluster.node(at).unwrap();
    // Who proposed through another node may have heard of it sooner.
    while node.group_by_id(group).unwrap().standing().applied < node.group_by_id(group).unwrap().standing().last {
        sleep_ms(20).await;
    }
    let taken = world.cluster.call(at, move |node| snapshot_of(node.group_by_id(group).unwrap()));
    let index = taken.await.unwrap().unwrap();
    let began_ms = now_ms();
    while node.group_by_id(group).unwrap().standing().purged < index {
        assert!(now_ms() < began_ms + 30_000, "the log of group {group} at {at} is not purged");
        sleep_ms(20).await;
    }
    index
}

fn newest_snapshot(disk: &SimDisk, group: GroupId) -> PathBuf {
    let directory = PathBuf::from(format!("/data/groups/{group}"));
    let names = disk.list(&directory).unwrap();
    directory.join(names.into_iter().filter(|name| name.ends_with(".snap")).max().unwrap())
}

/// A node's newest snapshot of the catalog is damaged, and the one before is of a time when a group that it alone holds was
/// elsewhere. What the node removed, when it began again with the old one, was nowhere else.
async fn an_old_catalog(seed: u64) {
    let mut random = SimRandom::new(seed);
    let (world, from) = with_a_single(seed, &mut random).await;
    add_seven(&world, &mut random, "single").await;
    let to = from % 3 + 1;
    shorten_the_log(&world, to, CATALOG).await;
    let group = || "single".to_string();
    let begun = world.surely(&mut random, "group_move", move |node| async move {
        node.change_begin(ChangeKind::GroupMove { group: group(), from, to }).await
    });
    let change = begun.await.id;
    loop {
        let listed = world.surely(&mut random, "change_list", |node| async move { node.change_list().await }).await;
        if listed.iter().any(|one| one.id == change && !one.is_running()) {
            break;
        }
        sleep_ms(50).await;
    }
    assert_seven(&world, &mut random).await;
    shorten_the_log(&world, to, CATALOG).await;
    world.cluster.crash(to, Crash::Process);
    let disk = world.cluster.disk(to).unwrap();
    let newest = newest_snapshot(&disk, CATALOG);
    disk.flip_bit(&newest, disk.read(&newest).unwrap().len() as u64 - 100, 3).unwrap();
    nemesis::start(&world, to).await;
    assert!(world.cluster.node(to).unwrap().repair().is_some(), "it repairs its catalog");
    assert_seven(&world, &mut random).await;
    scenario::become_ready(&world, now_ms()).await;
    assert!(world.cluster.node(to).unwrap().repair().is_none());
    assert_seven(&world, &mut random).await;
    assert_eq!(world.problems(), Vec::<String>::new());
}

/// The leader's newest snapshot is damaged, and a follower needs it. The follower refused it for ever, a snapshot that was on its
/// way put off the next, and in a group where nothing happens none was due.
async fn a_damaged_offer(seed: u64) {
    const COUNTER: GroupId = 2;
    let mut random = SimRandom::new(seed);
    let world = three_nodes(seed, &mut random).await;
    scenario::become_ready(&world, now_ms()).await;
    let group = |id: NodeId| world.cluster.node(id).unwrap().group_by_id(COUNTER).unwrap();
    let leader = group(1).leader().unwrap();
    let follower = leader % 3 + 1;
    world.cluster.crash(follower, Crash::Process);
    add_seven(&world, &mut random, "counter").await;
    assert!(group(leader).leads());
    let index = shorten_the_log(&world, leader, COUNTER).await;
    let disk = world.cluster.disk(leader).unwrap();
    let newest = newest_snapshot(&disk, COUNTER);
    let whole = disk.read(&newest).unwrap();
    // In the state, in the digest over all, in the head, and in the first bytes of all.
    let places = [whole.len() - 49, whole.len() - 1, 30, 0];
    disk.flip_bit(&newest, places[seed as usize % places.len()] as u64, 3).unwrap();
    nemesis::start(&world, follower).await;
    let began_ms = now_ms();
    while world.cluster.node(follower).is_none() || group(follower).standing().applied < index {
        assert!(now_ms() < began_ms + 30_000, "the follower does not get the snapshot: {:?}", group(leader).standing());
        sleep_ms(20).await;
    }
    assert_eq!(group(follower).standing().snapshot, index, "it came by the snapshot");
    assert_eq!(disk.read(&newest).unwrap(), whole, "the file is what it was");
    scenario::become_ready(&world, now_ms()).await;
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn a_snapshot_that_is_damaged_at_the_leader_is_written_anew_for_the_follower_that_needs_it() {
    play(|seed| LifeRuntime::with_seed(seed).block_on(a_damaged_offer(seed)));
}

/// A node's damaged log cannot be read where it says that the node alone holds a group. The node took what it could read for all that it
/// holds, found all of that with the others, and gave the group up with the log.
async fn an_unnamed_group(seed: u64) {
    let mut random = SimRandom::new(seed);
    let (world, holder) = with_a_single(seed, &mut random).await;
    add_seven(&world, &mut random, "single").await;
    scenario::become_ready(&world, now_ms()).await;
    world.cluster.crash(holder, Crash::Process);
    let disk = world.cluster.disk(holder).unwrap();
    let names = || {
        let log = Path::new("/data/log");
        let files: Vec<PathBuf> = disk.list(log).unwrap().into_iter().map(|name| log.join(name)).collect();
        let mut places = Vec::new();
        for file in files {
            let bytes = disk.read(&file).unwrap();
            let found = bytes.windows(6).enumerate().filter(|(_, window)| *window == b"single");
            places.extend(found.map(|(at, _)| (file.clone(), at as u64)));
        }
        places
    };
    let places = names();
    let flip = || places.iter().for_each(|(file, at)| disk.flip_bit(file, *at, 1).unwrap());
    assert!(!places.is_empty(), "the log names the group");
    flip();
    let refused = world.cluster.start(holder).await.expect_err("it does not start").to_string();
    assert!(refused.contains(NOT_REPAIRED) && refused.contains("group single"), "{refused}");
    flip();
    nemesis::start(&world, holder).await;
    scenario::become_ready(&world, now_ms()).await;
    assert_seven(&world, &mut random).await;
    assert_eq!(world.problems(), Vec::<String>::new());
}

/// A node loses its disk, and with it the only replica of a group. It waited for that group for ever before it voted in any, the catalog
/// among them. Now it votes where it has caught up; the lost group is told by name, and begins nowhere anew.
async fn a_lost_single(seed: u64) {
    let mut random = SimRandom::new(seed);
    let (world, holder) = with_a_single(seed, &mut random).await;
    add_seven(&world, &mut random, "single").await;
    scenario::become_ready(&world, now_ms()).await;
    world.cluster.lose_disk(holder);
    nemesis::start(&world, holder).await;
    let other = holder % 3 + 1;
    for again in [false, true] {
        let began_ms = now_ms();
        let lost = |why: &String| why.contains("the only replica of group single was here");
        while !world.cluster.node(holder).is_some_and(|node| node.not_ready().iter().any(lost)) {
            assert!(now_ms() < began_ms + 30_000, "{:?}", world.cluster.node(holder).map(|node| node.not_ready()));
            sleep_ms(20).await;
        }
        // Without the node's vote there is no majority.
        let voting = LifeRuntime::timeout(Duration::from_secs(30), async {
            while !world.cluster.node(holder).unwrap().not_ready().iter().all(|why| why.contains("single")) {
                sleep_ms(20).await;
            }
            world.cluster.crash(other, Crash::Process);
            add_seven(&world, &mut random, "counter").await;
        });
        voting.await.expect("the node votes in the group that it has again");
        let at = world.cluster.call(holder, |node| async move {
            let command = Bytes::from_static(br#"{"Add":1}"#);
            let (group, timeout_ms) = ("single".to_string(), Some(1000));
            node.apply(ApplyRequest { group, session: None, sequence: None, command, timeout_ms }).await
        });
        let refused = at.await.unwrap().unwrap_err();
        assert_eq!(refused.code, ErrorCode::NoLeader, "{refused}");
        nemesis::start(&world, other).await;
        if !again {
            world.cluster.crash(holder, Crash::Process);
            nemesis::start(&world, holder).await;
        }
    }
    assert!(!world.cluster.is_settled());
    world
        .surely(&mut random, "group_remove", |node| async move { node.group_remove("single".to_string()).await })
        .await;
    scenario::become_ready(&world, now_ms()).await;
    let began_ms = now_ms();
    while !world.cluster.is_settled() {
        assert!(now_ms() < began_ms + 30_000, "the node votes in all groups that there are");
        sleep_ms(20).await;
    }
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn a_node_that_lost_the_only_replica_of_a_group_votes_in_the_others() {
    play(|seed| LifeRuntime::with_seed(seed).block_on(a_lost_single(seed)));
}

/// A node lost its disk, and with it the only replica of a group, so that it never settled in all of them. Then it found another group's
/// snapshots damaged, and voted in none any more: one that it alone holds had no leader for ever.
async fn two_losses(seed: u64) {
    const COUNTER: GroupId = 2;
    let mut random = SimRandom::new(seed);
    let (world, holder) = with_a_single(seed, &mut random).await;
    scenario::become_ready(&world, now_ms()).await;
    world.cluster.lose_disk(holder);
    nemesis::start(&world, holder).await;
    let settle = async || {
        let began_ms = now_ms();
        let lost = |why: &String| why.contains("the only replica of group single was here");
        let is_settled = |whys: Vec<String>| whys.iter().any(lost) && whys.iter().all(|why| why.contains("single"));
        while !world.cluster.node(holder).is_some_and(|node| is_settled(node.not_ready())) {
            let whys = world.cluster.node(holder).map(|node| node.not_ready());
            assert!(now_ms() < began_ms + 60_000, "the node does not settle: {whys:?}");
            sleep_ms(20).await;
        }
    };
    settle().await;
    let node = || world.cluster.node(holder).unwrap();
    // They go where there are the fewest.
    let mut own = None;
    for name in ["own", "own 2", "own 3"] {
        let created = world.surely(&mut random, "group_create", |node| async move {
            let (name, module) = (name.to_string(), "counter".to_string());
            node.group_create(GroupRequest { name, module, replicas: Some(1), ..GroupRequest::default() }).await
        });
        let id = created.await.id;
        while world.cluster.ids().iter().all(|at| world.cluster.node(*at).unwrap().group_by_id(id).is_none()) {
            sleep_ms(20).await;
        }
        own = own.or(node().group_by_id(id).map(|_| name));
    }
    let own = own.expect("one of them is here");
    add_seven(&world, &mut random, own).await;
    let mut newest = 0;
    for _ in 0..2 {
        add_seven(&world, &mut random, "counter").await;
        newest = shorten_the_log(&world, holder, COUNTER).await.max(newest);
    }
    world.cluster.crash(holder, Crash::Process);
    let disk = world.cluster.disk(holder).unwrap();
    let directory = PathBuf::from(format!("/data/groups/{COUNTER}"));
    for name in disk.list(&directory).unwrap().into_iter().filter(|name| name.ends_with(".snap")) {
        let path = directory.join(name);
        disk.flip_bit(&path, disk.read(&path).unwrap().len() as u64 - 100, 3).unwrap();
    }
    for _ in 0..2 {
        nemesis::start(&world, holder).await;
        let began_ms = now_ms();
        while node().repair().is_none() {
            assert!(now_ms() < began_ms + 30_000, "the group is given up: {:?}", node().not_ready());
            sleep_ms(20).await;
        }
        let got =
            LifeRuntime::timeout(Duration::from_secs(30), world.query_surely(&mut random, own, br#""Get""#)).await;
        let got = got.expect("the group that is here alone is served").expect("the group is there");
        assert_eq!(got.reply, Bytes::from_static(b"7"));
        world.cluster.crash(holder, Crash::Process);
    }
    nemesis::start(&world, holder).await;
    let began_ms = now_ms();
    while node().group_by_id(COUNTER).is_none_or(|group| group.standing().applied < newest) {
        assert!(now_ms() < began_ms + 30_000, "the group comes again: {:?}", node().not_ready());
        sleep_ms(20).await;
    }
    let remove = |node: SimNode| async move { node.group_remove("single".to_string()).await };
    world.surely(&mut random, "group_remove", remove).await;
    scenario::become_ready(&world, now_ms()).await;
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn a_group_that_is_given_up_does_not_unsettle_the_others() {
    play(|seed| LifeRuntime::with_seed(seed).block_on(two_losses(seed)));
}

/// The newest snapshot is damaged on the disk, and nothing happens in the group. Whoever saved it was given the damaged file, again and
/// again.
async fn a_damaged_save(seed: u64) {
    const COUNTER: GroupId = 2;
    let mut random = SimRandom::new(seed);
    let world = three_nodes(seed, &mut random).await;
    scenario::become_ready(&world, now_ms()).await;
    add_seven(&world, &mut random, "counter").await;
    shorten_the_log(&world, 1, COUNTER).await;
    let disk = world.cluster.disk(1).unwrap();
    let newest = newest_snapshot(&disk, COUNTER);
    let whole = disk.read(&newest).unwrap();
    disk.flip_bit(&newest, whole.len() as u64 - 49, 3).unwrap();
    let saved = world.cluster.call(1, |node| async move { node.group_save("counter".to_string()).await });
    let saved = saved.await.unwrap().unwrap();
    let parts: Vec<_> = saved.file.map(|part| part.unwrap()).collect().await;
    assert!(parts.concat() == whole, "what is saved is what the snapshot was");
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn a_snapshot_that_is_damaged_on_the_disk_is_written_anew_for_who_saves_it() {
    play(|seed| LifeRuntime::with_seed(seed).block_on(a_damaged_save(seed)));
}

/// What a start knows of the catalog may be of long ago: of a time when a group was taken from the node that has been given back to
/// it since. The node removed the group's files before it had heard of anyone, votes and acknowledged entries with them.
async fn a_catalog_of_long_ago(seed: u64) {
    let mut random = SimRandom::new(seed);
    let (world, holder) = with_a_single(seed, &mut random).await;
    scenario::become_ready(&world, now_ms()).await;
    let away = holder % 3 + 1;
    let known = shorten_the_log(&world, away, CATALOG).await;
    world.cluster.crash(away, Crash::Process);
    let groups = Path::new("/data/groups");
    let of = |id| world.cluster.disk(id).unwrap().list(groups).unwrap();
    let single = of(holder).into_iter().find(|name| !of(away).contains(name)).unwrap();
    let (disk, directory) = (world.cluster.disk(away).unwrap(), groups.join(single));
    disk.create_dir_all(&directory).unwrap();
    for id in world.cluster.ids() {
        world.cluster.network().cut(away, id);
        world.cluster.network().cut(id, away);
    }
    nemesis::start(&world, away).await;
    sleep_ms(20_000).await;
    assert!(world.cluster.node(away).unwrap().group_by_id(CATALOG).unwrap().standing().applied >= known);
    assert!(disk.exists(&directory).unwrap(), "nobody has told the node that the group is not its own");
    world.cluster.network().mend();
    let began_ms = now_ms();
    while disk.exists(&directory).unwrap() {
        assert!(now_ms() < began_ms + 30_000, "what the node does not hold any more stays");
        sleep_ms(20).await;
    }
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn files_go_only_when_the_catalog_of_now_says_so() {
    play(|seed| LifeRuntime::with_seed(seed).block_on(a_catalog_of_long_ago(seed)));
}

#[test]
fn what_only_a_damaged_node_holds_is_not_given_up() {
    play(|seed| {
        LifeRuntime::with_seed(seed).block_on(an_old_catalog(seed));
        LifeRuntime::with_seed(seed).block_on(an_unnamed_group(seed));
    });
}

/// Lets node 3, which has a snapshot of `counter`, give its replica back, and ends it as soon as `until` says so of its files: the names
/// of its snapshots, and whether its log knows the group. The power fails, and nothing lasts that was not synced.
async fn cut_a_removal_short(world: &Shared, random: &mut SimRandom, until: impl Fn(&[String], bool) -> bool) {
    let begun = world.surely(random, "change_begin", |node| async move {
        let group = "counter".to_string();
        node.change_begin(ChangeKind::MemberRemove { group, node: 3 }).await
    });
    begun.await;
    let log = world.cluster.log(3).unwrap();
    while !until(&snapshots(world, 3), log.groups().contains(&2)) {
        LifeRuntime::sleep(Duration::from_micros(10)).await;
    }
    world.cluster.crash(3, Crash::Process);
    world.cluster.disk(3).unwrap().crash_after(0, 0);
}

/// A node's snapshots of `counter`.
fn snapshots(world: &Shared, at: NodeId) -> Vec<String> {
    world.cluster.disk(at).unwrap().list(Path::new("/data/groups/2")).unwrap_or_default()
}

/// A replica was taken from a node. Its log went first, with its vote; then the power failed, and the snapshots were there again. The
/// node was given a replica anew while it was down: by the old snapshot it belonged to the group as it had been, and it could elect a
/// second leader with one who knew of nothing else, although it had forgotten whom it had voted for.
async fn a_removal_cut_short(seed: u64) {
    const COUNTER: GroupId = 2;
    let mut random = SimRandom::new(seed);
    let world = three_nodes(seed, &mut random).await;
    add_seven(&world, &mut random, "counter").await;
    shorten_the_log(&world, 3, COUNTER).await;
    cut_a_removal_short(&world, &mut random, |snapshots, logged| snapshots.is_empty() && !logged).await;
    assert_eq!(snapshots(&world, 3), Vec::<String>::new(), "the vote goes last");
    let begun = world.surely(&mut random, "change_begin", |node| async move {
        let group = "counter".to_string();
        node.change_begin(ChangeKind::MemberAdd { group, node: 3, learner: false }).await
    });
    let id = begun.await.id;
    nemesis::start(&world, 3).await;
    while world
        .surely(&mut random, "change_get", |node| async move { node.change_get(id, 100).await })
        .await
        .is_running()
    {}
    scenario::become_ready(&world, now_ms()).await;
    let began_ms = now_ms();
    let votes = async || world.cluster.node(3)?.group_by_id(COUNTER)?.roster().await.ok().filter(|roster| roster.votes);
    while votes().await.is_none() {
        assert!(now_ms() < began_ms + 30_000, "it votes again once it is a member again");
        sleep_ms(20).await;
    }
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn whoever_has_forgotten_its_vote_has_forgotten_the_members_too() {
    play(|seed| LifeRuntime::with_seed(seed).block_on(a_removal_cut_short(seed)));
}

/// Of a replica that was taken from a node only the log is left: it goes at the next start.
async fn a_removal_half_done(seed: u64) {
    const COUNTER: GroupId = 2;
    let mut random = SimRandom::new(seed);
    let world = three_nodes(seed, &mut random).await;
    add_seven(&world, &mut random, "counter").await;
    shorten_the_log(&world, 3, COUNTER).await;
    cut_a_removal_short(&world, &mut random, |snapshots, _| snapshots.is_empty()).await;
    nemesis::start(&world, 3).await;
    let began_ms = now_ms();
    while world.cluster.log(3).unwrap().groups().contains(&COUNTER) {
        assert!(now_ms() < began_ms + 30_000, "the group's log is still there");
        sleep_ms(20).await;
    }
    assert_eq!(snapshots(&world, 3), Vec::<String>::new());
    scenario::become_ready(&world, now_ms()).await;
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn a_removal_that_was_cut_short_is_finished_at_the_next_start() {
    play(|seed| LifeRuntime::with_seed(seed).block_on(a_removal_half_done(seed)));
}
