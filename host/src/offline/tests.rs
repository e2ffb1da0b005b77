//! Recovery of a survivor, cut short at every write.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::BasicNode;
use openraft::vote::RaftLeaderId;

use super::recover::Plan;
use super::recover::RecoverError;
use super::*;
use crate::catalog::CatalogCommand;
use crate::codec;
use crate::disk::sim::SimDisk;
use crate::log::Addition;
use crate::log::LogOptions;
use crate::log::NodeLog;
use crate::log::log_id;
use crate::membership::ChangeKind;
use crate::module::Limits;
use crate::node::repair;
use crate::node::settle;
use crate::snapshot::Head;
use crate::snapshot::SnapshotStore;
use crate::types::CATALOG;
use crate::types::Entry;
use crate::types::EntryKind;
use crate::types::LeaderId;
use crate::types::LogId;
use crate::types::NodeId;
use crate::types::Origin;
use crate::types::Payload;
use crate::types::Proposal;
use crate::types::Vote;

const DIR: &str = "/node";
const OLD: &str = "0123456789abcdef0123456789abcdef";
const NEW: [u8; 16] = [0xcd; 16];

fn members(ids: &[NodeId]) -> BTreeMap<NodeId, BasicNode> {
    ids.iter().map(|id| (*id, BasicNode { addr: format!("10.0.0.{id}:7170") })).collect()
}

fn membership(ids: &[NodeId]) -> Payload {
    Payload::Membership(openraft::Membership::from(members(ids)))
}

fn command(payload: Vec<u8>) -> Payload {
    let origin = Origin { node: 2, incarnation: 1, number: 1 };
    let kind = EntryKind::Command { session: None, payload: Bytes::from(payload) };
    Payload::Normal(Proposal { time_ms: 1000, origin, kind })
}

fn of_catalog(what: &CatalogCommand) -> Payload {
    command(codec::encode(what).unwrap())
}

fn create(name: &str, ids: &[NodeId]) -> Payload {
    of_catalog(&CatalogCommand::CreateGroup {
        name: name.to_owned(),
        module: "kv".to_owned(),
        digest: [7; 32],
        params: b"{}".to_vec(),
        limits: Limits::default(),
        members: members(ids).into_iter().map(|(id, node)| (id, node.addr)).collect(),
        replicas: None,
        listen: Vec::new(),
        listen_params: Vec::new(),
        base: None,
    })
}

/// A group's log: entries from `first` on, all of term 4.
fn log_of(group: GroupId, first: u64, payloads: Vec<Payload>) -> Addition {
    let entries = (first..).zip(payloads).map(|(index, payload)| Entry { log_id: log_id(4, index), payload }).collect();
    let vote = Vote { leader_id: LeaderId::new(6, 3), committed: false };
    Addition { group, covered: None, vote, entries }
}

fn snapshot(disk: &SimDisk, group: GroupId, covered: LogId, payload: &[u8]) {
    let directory = Path::new(DIR).join("groups").join(format!("{group:x}"));
    let store = SnapshotStore::open(Arc::new(disk.clone()), directory, 2, 0).unwrap();
    let membership = openraft::Membership::from(members(&[1, 2, 3]));
    let head = Head {
        group,
        last_log_id: covered,
        membership: openraft::StoredMembership::new(Some(log_id(3, 1)), membership),
        module: [7; 32],
        host_state: Vec::new(),
        made: Vec::new(),
        change: 0,
    };
    let mut writer = store.write(&head).unwrap();
    writer.write_all(payload).unwrap();
    writer.finish(&head).unwrap();
}

/// Node 1 of three. It has a replica of `store` in its log, of `large` in a snapshot that its log does not reach; of `broken` only a
/// log whose beginning was purged; of `elsewhere` nothing. A change of members was under way.
fn survivor() -> SimDisk {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let identity =
        Identity { format: identity::FORMAT, node: 1, cluster: OLD.to_owned(), joined: false, ..Identity::default() };
    identity::write(&disk, Path::new(DIR), &identity).unwrap();
    let (log, _) = NodeLog::open(
        shared,
        &Path::new(DIR).join("log"),
        LogOptions { segment_bytes: 16 << 10, salt: 5, ..LogOptions::default() },
        Arc::new(|_| {}),
    )
    .unwrap();
    let add_module = CatalogCommand::AddModule { name: "kv".to_owned(), digest: [7; 32], size: 1, exports: Vec::new() };
    let change = CatalogCommand::BeginChange(ChangeKind::NodeRemove { node: 3 });
    let catalog = vec![
        membership(&[1, 2, 3]),
        Payload::Blank,
        of_catalog(&add_module),
        create("store", &[1, 2, 3]),
        create("large", &[1, 2, 3]),
        create("broken", &[1, 2, 3]),
        create("elsewhere", &[2, 3]),
        of_catalog(&change),
    ];
    let store = vec![membership(&[1, 2, 3]), command(b"first".to_vec()), command(b"second".to_vec())];
    let mut broken = log_of(3, 101, vec![command(b"third".to_vec())]);
    broken.covered = Some(log_id(4, 100));
    log.write_at_once(vec![log_of(CATALOG, 0, catalog), log_of(1, 0, store), broken]).unwrap();
    snapshot(&disk, 2, log_id(3, 50), b"a large state");
    snapshot(&disk, 3, log_id(3, 40), b"too old");
    write(&disk, &module_file(), b"wasm");
    disk
}

fn module_file() -> PathBuf {
    Path::new(DIR).join("modules").join(crate::catalog::files::file_name(&[7; 32]))
}

fn write(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let directory = path.parent().unwrap();
    disk.create_dir_all(directory).unwrap();
    let file = disk.create(path).unwrap();
    file.write_all_at(0, bytes).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(directory).unwrap();
}

fn plan(disk: &SimDisk) -> Result<Plan, RecoverError> {
    let (directory, _) = Directory::on(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    Plan::make(&directory, None, 2000)
}

fn carry_out(disk: &SimDisk, drawn: [u8; 16]) -> Result<String, RecoverError> {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    plan(disk)?.carry_out(&shared, Path::new(DIR), drawn)
}

/// The directory is node 1's alone, whole, and has lost nothing that could go on.
fn assert_recovered(disk: &SimDisk, cluster: &str, story: &str) {
    let (directory, _) = Directory::on(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    let identity = directory.identity.clone().unwrap();
    assert_eq!((identity.cluster.as_str(), identity.joined, identity.recovering), (cluster, true, false), "{story}");
    assert_eq!((identity.recovered, identity.resumes), (true, false), "{story}");
    let log = directory.inspect_log().unwrap();
    assert!(log.damage.is_empty(), "{story}: {:?}", log.damage);
    let known = OfflineCatalog::read(&directory, &log);
    assert!(known.doubt.is_none() && known.catalog.is_alone(1), "{story}: {known:?}");
    let names: Vec<&str> = known.catalog.groups.keys().map(String::as_str).collect();
    assert_eq!(names, ["large", "store"], "{story}");
    let mut reader = directory.entries();
    for (group, index) in [(CATALOG, 8), (1, 3), (2, 51)] {
        let of = &log.groups[&group];
        let vote = of.vote.unwrap();
        let entry = reader.read(group, index, &of.entries[&index]).unwrap();
        assert_eq!(entry.payload, membership(&[1]), "{story}: group {group}");
        assert_eq!((vote.leader_id.term, vote.leader_id.voted_for), (entry.log_id.leader_id.term, 1), "{story}");
        assert!(entry.log_id.leader_id.term > 3, "{story}: group {group}: {entry:?}");
    }
    assert_eq!(log.groups[&1].ranges(), [(0, 3)], "{story}");
    assert_eq!(log.groups[&2].purged, Some(log_id(3, 50)), "{story}");
    let aside = disk.list(&Path::new(DIR).join("groups/3.unreadable")).unwrap();
    assert_eq!(aside.len(), 1, "{story}");
}

#[test]
fn a_plan_says_what_goes_on_what_is_lost_and_why() {
    let disk = survivor();
    let before = disk.counts().writes;
    let plan = plan(&disk).unwrap();
    let kept: Vec<_> = plan.kept.iter().map(|kept| (kept.name.as_str(), kept.last.index)).collect();
    assert_eq!(kept, [("catalog", 7), ("large", 50), ("store", 2)]);
    let lost: Vec<_> = plan.lost.iter().map(|lost| (lost.name.as_str(), lost.unreadable.is_some())).collect();
    assert_eq!(lost, [("broken", true), ("elsewhere", false)]);
    assert_eq!(plan.others.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!(plan.address, "10.0.0.1:7170");
    // Nobody had written down that they are committed; the snapshot's are.
    assert_eq!(plan.undecided(), (2, 9));
    assert!(plan.doubts.is_empty() && !plan.goes_on());
    assert_eq!(disk.counts().writes, before, "a plan changes nothing");
}

#[test]
fn a_survivor_becomes_a_cluster_and_doing_it_again_changes_nothing() {
    let disk = survivor();
    assert_eq!(carry_out(&disk, NEW).unwrap(), hex::encode(NEW));
    assert_recovered(&disk, &hex::encode(NEW), "at once");
    let before = disk.read(&Path::new(DIR).join("log/0000000000000001.seg")).unwrap();
    carry_out(&disk, [1; 16]).unwrap();
    assert_eq!(disk.read(&Path::new(DIR).join("log/0000000000000001.seg")).unwrap(), before);
}

/// A majority had the module's file, and this node was not of it: its groups went on after the recovery and could not be
/// opened, without a word before.
#[test]
fn a_module_whose_file_is_not_here_is_told() {
    let disk = survivor();
    disk.remove(&module_file()).unwrap();
    let doubts = plan(&disk).unwrap().doubts;
    let told = |group: &str| doubts.iter().any(|doubt| doubt.contains("module kv") && doubt.contains(group));
    assert!(told("group store") && told("group large"), "{doubts:?}");
}

/// The survivor had been repairing itself. The mark of that stayed: the new cluster's only node was never ready, and new groups on it
/// waited for nodes that are gone to say what it had promised.
#[test]
fn a_survivor_that_was_repairing_itself_repairs_nothing_any_more() {
    let disk = survivor();
    let mark = Path::new(DIR).join("repairing.json");
    write(
        &disk,
        &mark,
        br#"{"damage":"a bit","set_aside":null,"peers":{"2":"10.0.0.2:7170"},"next_group":5,"groups":null}"#,
    );
    settle::mark(&disk, Path::new(DIR)).unwrap();
    assert!(repair::read(&disk, Path::new(DIR)).unwrap().is_some());
    assert_eq!(plan(&disk).unwrap().doubts.len(), 1);
    carry_out(&disk, NEW).unwrap();
    assert!(repair::read(&disk, Path::new(DIR)).unwrap().is_none());
    assert!(!settle::is_marked(&disk, Path::new(DIR)).unwrap());
    assert_recovered(&disk, &hex::encode(NEW), "while it repaired itself");
}

/// The power fails between any two writes: what is left is the old cluster's node as it was, or one that says that its
/// recovery must be finished; and finishing it leads to the same as doing it at once.
#[test]
fn a_recovery_that_is_cut_short_anywhere_is_old_or_can_be_finished() {
    assert_old_or_finished(false);
}

/// The same where it was asked of a running node: then the directory says so from the first write on.
#[test]
fn a_recovery_of_a_running_node_that_is_cut_short_says_that_the_next_start_finishes_it() {
    assert_old_or_finished(true);
}

fn assert_old_or_finished(resumes: bool) {
    let begun = survivor();
    let carry_out_first = |disk: &SimDisk| {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut plan = plan(disk)?;
        plan.identity.resumes = resumes;
        plan.carry_out(&shared, Path::new(DIR), NEW)
    };
    let (mut old, mut half) = (0, 0);
    for cut in 0u64.. {
        let mut random = {
            let mut state = cut;
            move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state >> 33
            }
        };
        let story = format!("the power fails after {cut} changes");
        let disk = begun.fork();
        disk.cut_power_after(cut);
        if carry_out_first(&disk).is_ok() {
            assert!(old > 2 && half > 5, "{old} times old, {half} times half");
            return;
        }
        disk.crash(&mut random);
        let identity = identity::read(&disk, Path::new(DIR)).unwrap().unwrap();
        let cluster = if identity.recovering {
            half += 1;
            assert_eq!(identity.resumes, resumes, "{story}");
            assert!(identity::check(&identity, Path::new(DIR), 1, None).is_err(), "{story}: the node starts");
            assert_eq!(identity.cluster, hex::encode(NEW), "{story}");
            hex::encode(NEW)
        } else if identity.cluster == OLD {
            old += 1;
            let (now, before) = (plan(&disk).unwrap(), plan(&begun).unwrap());
            assert_eq!(format!("{now:?}"), format!("{before:?}"), "{story}");
            hex::encode([0xee; 16])
        } else {
            // All is there but that nobody was told.
            assert_recovered(&disk, &hex::encode(NEW), &story);
            continue;
        };
        assert_eq!(carry_out(&disk, [0xee; 16]).unwrap(), cluster, "{story}");
        assert_recovered(&disk, &cluster, &story);
    }
}

/// A survivor whose group 1 has entries of term 4 up to 10, of which `last` is the last, and the snapshot of a leader of term 5 up
/// to 8: it was durable when the power failed, and that it had replaced those entries was not. Recovered, the log has only what follows
/// the snapshot.
fn assert_recovered_behind_the_snapshot(last: Payload) {
    let disk = survivor();
    let open = || {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        NodeLog::open(shared, &Path::new(DIR).join("log"), LogOptions::default(), Arc::new(|_| {})).unwrap()
    };
    let replaced = (3..10).map(|_| Payload::Blank).chain([last]).collect();
    open().0.write_at_once(vec![log_of(1, 3, replaced)]).unwrap();
    snapshot(&disk, 1, log_id(5, 8), b"of a later leader");
    carry_out(&disk, NEW).unwrap();
    let (directory, _) = Directory::on(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    let log = directory.inspect_log().unwrap();
    let of = &log.groups[&1];
    assert_eq!((of.purged, of.ranges()), (Some(log_id(5, 8)), vec![(9, 9)]));
    let entry = directory.entries().read(1, 9, &of.entries[&9]).unwrap();
    assert_eq!(entry.payload, membership(&[1]));
    // A node that starts reads the same.
    let entries: usize = log.groups.values().map(|of| of.entries.len()).sum();
    assert_eq!(open().1.entries, entries as u64);
}

/// The recovery numbered its entry 9, the log wanted 11; and the directory, marked as being recovered by then, could be neither
/// started nor recovered.
#[test]
fn entries_that_a_received_snapshot_replaced_do_not_stop_a_recovery() {
    assert_recovered_behind_the_snapshot(command(b"replaced".to_vec()));
}

#[test]
fn members_that_a_received_snapshot_replaced_are_not_those_of_a_recovery() {
    assert_recovered_behind_the_snapshot(membership(&[1]));
}

#[test]
fn entries_of_the_catalog_that_a_received_snapshot_replaced_are_not_read() {
    let disk = survivor();
    let read = || {
        let (directory, _) = Directory::on(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
        OfflineCatalog::read(&directory, &directory.inspect_log().unwrap())
    };
    let mut known = read();
    assert_eq!((known.applied, known.catalog.changes.len()), (7, 1));
    known.catalog.changes.clear();
    snapshot(&disk, CATALOG, log_id(5, 6), &codec::encode(&known.catalog).unwrap());
    let known = read();
    assert_eq!((known.applied, known.catalog.changes.len(), known.doubt), (6, 0, None));
}

/// Nothing is built on what is not known.
#[test]
fn a_damaged_log_or_catalog_is_refused_and_left_alone() {
    let disk = survivor();
    let segment = Path::new(DIR).join("log/0000000000000001.seg");
    disk.flip_bit(&segment, 30, 0).unwrap();
    let before = disk.counts().writes;
    let error = carry_out(&disk, NEW).unwrap_err().to_string();
    assert!(error.contains("the log is damaged") && error.contains("0000000000000001.seg"), "{error}");
    let identity = identity::read(&disk, Path::new(DIR)).unwrap().unwrap();
    assert_eq!(identity.cluster, OLD);
    assert_eq!(disk.counts().writes, before);
}
