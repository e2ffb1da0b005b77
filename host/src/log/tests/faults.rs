//! The disk says no: full, or broken.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use openraft::RaftLogReader;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::IOFlushed;
use openraft::storage::RaftLogStorage;
use openraft::type_config::TypeConfigExt;
use openraft_rt_sim::SimRuntime;

use super::harness::*;
use crate::disk::sim::SimDisk;
use crate::log::GroupLog;
use crate::log::LogError;
use crate::log::LogOptions;
use crate::log::NodeLog;
use crate::types::Types;

/// A log whose fatal errors are collected.
fn open_recording(disk: &SimDisk) -> (NodeLog, Arc<Mutex<Vec<String>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let to = heard.clone();
    let hook = Arc::new(move |error: &LogError| to.lock().unwrap().push(error.to_string()));
    let (log, _) = NodeLog::open(Arc::new(disk.clone()), Path::new(DIR), options(), hook).unwrap();
    (log, heard)
}

/// A node whose disk was full could not be stopped: consensus waited for its vote, which waited for room, and the log is closed
/// only when consensus has ended. And when it was closed at last, its process ended as if the disk had lied.
#[test]
fn a_log_that_waits_for_room_lets_its_node_leave() {
    let disk = SimDisk::new();
    let (log, heard) = open_recording(&disk);
    disk.set_space(Some(10_000));
    let mut harness = Harness::on(disk, log.clone());
    while harness.flush().is_ok() {
        harness.step(&Step::Append { group: 1, entries: 2, bytes: 1000, term: 1 }).unwrap();
    }
    let mut group: GroupLog<SimRuntime> = log.group(2);
    let saved_vote = vote(1);
    let mut saved = std::pin::pin!(group.save_vote(&saved_vote));
    let mut poll = || saved.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert!(poll().is_pending() && harness.flush().is_err() && poll().is_pending());
    log.wait_no_more();
    assert!(matches!(harness.flush(), Err(LogError::DiskFull { .. })));
    assert!(matches!(poll(), std::task::Poll::Ready(Err(_))), "consensus hears that it is not written, and can end");
    assert!(matches!(log.stopped(), Some(LogError::DiskFull { .. })));
    assert!(heard.lock().unwrap().is_empty(), "nothing was acknowledged that is not on disk");
}

#[test]
fn a_failed_sync_is_fatal_once_and_nothing_works_after_it() {
    let disk = SimDisk::new();
    let (log, heard) = open_recording(&disk);
    let mut group: GroupLog<SimRuntime> = log.group(1);
    let (flushed, mut came) = callback();
    now(group.append([entry(1, 0, b"lost")], flushed)).unwrap();
    disk.fail_sync(0);
    assert!(matches!(log.flush(), Err(LogError::Sync { .. })));
    assert!(came().expect("the callback came").unwrap_err().to_string().contains("sync of /node/log"));
    assert!(now(group.append([entry(1, 1, b"")], IOFlushed::noop())).is_err());
    assert!(now(group.save_vote(&vote(1))).is_err());
    assert!(now(group.try_get_log_entries(..)).is_err());
    assert!(now(group.purge(crate::log::record::log_id(1, 0))).is_err());
    assert!(!log.flush().unwrap_or(false), "it is not tried again");
    assert_eq!(heard.lock().unwrap().len(), 1);
    assert!(matches!(log.stopped(), Some(LogError::Sync { .. })));
}

/// The disk fills up while the log runs. The operator reads which file needs how much and makes room: the log goes on with what
/// was waiting, or, if the node was killed meanwhile, starts with all that was acknowledged.
#[test]
fn a_full_disk_makes_the_log_wait_with_clear_words_and_room_lets_it_go_on() {
    let disk = SimDisk::new();
    let (log, heard) = open_recording(&disk);
    disk.set_space(Some(10_000));
    let mut harness = Harness::on(disk.clone(), log);
    let error = loop {
        harness.step(&Step::Append { group: 1, entries: 2, bytes: 1000, term: 1 }).unwrap();
        match harness.flush() {
            Ok(()) => harness.rest(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::DiskFull { needed: 16384, .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("/node/log/") && told.contains("16384 bytes") && told.contains("Free space"), "{told}");
    assert!(heard.lock().unwrap().is_empty(), "it is no reason to end the process");
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::StorageFull);
    assert!(harness.log.stats().waits_for_room && harness.log.stopped().is_none());
    assert!(matches!(harness.flush(), Err(LogError::DiskFull { .. })), "it is tried again");

    // Killed now: a start without more room shows what is there if its record still fits, or says the same again.
    let killed = disk.fork();
    if let Err(error) = open(&killed) {
        assert!(matches!(error, LogError::DiskFull { .. }), "{error}");
    }
    killed.set_space(Some(1 << 20));
    killed.kill_process();
    let (log, _) = harness.check_recovers(&killed, "killed, and started after making room");
    let mut after = Harness::on(killed, log);
    after.run(&[Step::Append { group: 1, entries: 10, bytes: 1000, term: 1 }]);
    after.disk.crash_after(0, 0);
    after.check_recovers(&after.disk, "after a crash");

    disk.set_space(Some(1 << 20));
    harness.flush().unwrap();
    assert!(!harness.log.stats().waits_for_room);
    harness.run(&[Step::Append { group: 1, entries: 10, bytes: 1000, term: 1 }]);
    disk.crash_after(0, 0);
    harness.check_recovers(&disk, "after it went on");
}

#[test]
fn a_spare_that_cannot_be_made_harms_nobody_and_shows_in_the_stats() {
    let mut harness = Harness::new(SimDisk::new());
    harness.disk.set_space(Some(0));
    while harness.log.shared.writer.lock().unwrap().as_ref().unwrap().position < 8_300 {
        harness.run(&[Step::Append { group: 1, entries: 1, bytes: 1000, term: 1 }]);
        harness.rest();
    }
    let stats = harness.log.stats();
    assert!(stats.spare_segments == 0 && stats.short_of_space, "{stats:?}");
    harness.disk.set_space(None);
    for _ in 0..8 {
        harness.run(&[Step::Append { group: 1, entries: 1, bytes: 10, term: 1 }]);
        harness.rest();
    }
    let stats = harness.log.stats();
    assert!(stats.segments == 1 && stats.spare_segments == 1 && !stats.short_of_space, "{stats:?}");
}

#[test]
fn a_write_error_that_is_not_a_full_disk_is_told_as_what_it_is() {
    let mut harness = Harness::new(SimDisk::new());
    harness.step(&Step::Append { group: 1, entries: 1, bytes: 10, term: 1 }).unwrap();
    harness.disk.cut_power_after(0);
    let error = harness.flush().unwrap_err();
    assert!(matches!(error, LogError::Io { action: "write", .. }), "{error}");
}

/// Ten groups append while a sync is under way: the next sync is for all of them.
#[test]
fn one_sync_serves_all_groups() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk).unwrap();
    let syncs = disk.counts().syncs;
    SimRuntime::with_seed(1).block_on(async {
        let driver = SimRuntime::spawn(log.drive::<SimRuntime>(|| Duration::from_millis(5)));
        let mut tasks = Vec::new();
        for group in 0..10 {
            let mut of: GroupLog<SimRuntime> = log.group(group);
            tasks.push(SimRuntime::spawn(async move {
                SimRuntime::sleep(Duration::from_millis(if group == 0 { 0 } else { 1 })).await;
                of.save_vote(&vote(group)).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        log.close();
        driver.await.unwrap();
    });
    // The first vote, the nine others, the record that closes the log.
    assert_eq!(disk.counts().syncs - syncs, 3);
    assert_eq!(log.stats().operations, 10);
    let (log, report) = open(&disk).unwrap();
    assert!(report.closed);
    assert_eq!(observe(&log).len(), 10);
}

#[test]
fn an_append_is_readable_at_once_and_called_back_only_when_synced() {
    let mut harness = Harness::new(SimDisk::new());
    let mut group = harness.group(1);
    let (flushed, mut came) = callback();
    now(group.append([entry(1, 0, b"a")], flushed)).unwrap();
    assert_eq!(now(group.try_get_log_entries(0..9)).unwrap(), [entry(1, 0, b"a")]);
    assert!(came().is_none());
    harness.write().unwrap();
    assert!(came().is_none(), "written is not synced");
    harness.sync().unwrap();
    came().expect("the callback came").unwrap();
}

/// Whoever waits when the node is torn down in the middle of a simulation gets an answer, not silence.
#[test]
fn a_dropped_driver_tells_those_who_wait() {
    let (log, _) = open(&SimDisk::new()).unwrap();
    let mut group: GroupLog<SimRuntime> = log.group(1);
    let (flushed, mut came) = callback();
    now(group.append([entry(1, 0, b"a")], flushed)).unwrap();
    drop(log.drive::<SimRuntime>(|| Duration::ZERO));
    assert_eq!(came().expect("the callback came").unwrap_err().to_string(), "the log is closed");
}

#[test]
fn a_hole_is_refused_when_it_is_appended() {
    let (log, _) = open(&SimDisk::new()).unwrap();
    let mut group: GroupLog<SimRuntime> = log.group(1);
    now(group.append([entry(1, 0, b"a")], IOFlushed::noop())).unwrap();
    let error = now(group.append([entry(1, 2, b"c")], IOFlushed::noop())).unwrap_err();
    assert_eq!(error.to_string(), "group 1: entry 2 cannot follow, the next index is 1");
    now(group.append([entry(1, 1, b"b")], IOFlushed::noop())).unwrap();
}

/// Eight groups on eight threads, as in production: each waits for its own entries, the log's thread serves all.
#[test]
fn threads_share_the_log_and_each_gets_its_own_answer() {
    use openraft_rt_tokio::TokioRuntime;
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, LogOptions { segment_bytes: 64 << 10, ..options() }).unwrap();
    let driver = log.start_thread().unwrap();
    assert!(log.start_thread().is_err(), "one driver is enough");
    std::thread::scope(|scope| {
        for id in 0..8 {
            let mut group: GroupLog<TokioRuntime> = log.group(id);
            scope.spawn(move || {
                TokioRuntime::new(1).block_on(async {
                    for index in 0..40 {
                        let (flushed, synced) = Types::<TokioRuntime>::oneshot();
                        group.append([entry(1, index, b"x")], IOFlushed::signal(flushed)).await.unwrap();
                        synced.await.unwrap().unwrap();
                        if index % 10 == 9 {
                            group.save_vote(&vote(index)).await.unwrap();
                            group.purge(crate::log::record::log_id(1, index - 5)).await.unwrap();
                        }
                    }
                });
            });
        }
    });
    driver.close();
    let said = observe(&open(&disk).unwrap().0);
    assert_eq!(said.len(), 8);
    for group in said.values() {
        assert_eq!((group.vote, group.entries.len()), (Some(vote(39)), 5));
    }
    let mut late: GroupLog<TokioRuntime> = log.group(1);
    assert_eq!(now(late.append([entry(1, 40, b"")], IOFlushed::noop())).unwrap_err().to_string(), "the log is closed");
}
