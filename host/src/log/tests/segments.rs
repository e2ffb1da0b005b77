//! Segments come and go: rotation, recycling, slow groups, memory.

use openraft::RaftLogReader;
use openraft::storage::IOFlushed;
use openraft::storage::RaftLogStorage;

use super::harness::*;
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::log::LogOptions;
use crate::log::state::Slot;
use std::path::Path;

fn files(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new(DIR)).unwrap()
}

#[test]
fn an_index_entry_is_24_bytes() {
    assert_eq!(size_of::<Slot>(), 24);
}

#[test]
fn purged_segments_are_used_again_and_no_more_files_are_made() {
    let mut harness = Harness::new(SimDisk::new());
    for _ in 0..100 {
        harness.run(&[Step::Append { group: 1, entries: 4, bytes: 1000, term: 1 }]);
        harness.run(&[Step::Purge { group: 1, entries: 4 }]);
        harness.rest();
    }
    let stats = harness.log.stats();
    assert!(stats.recycled_segments > 20, "{stats:?}");
    assert!(files(&harness.disk).len() <= 4, "{:?}", files(&harness.disk));
    harness.disk.crash_after(0, 0);
    let (log, _) = harness.check_recovers(&harness.disk, "after a crash");
    assert_eq!(log.stats().live_entries, 0);
}

/// A vote was saved once, long ago, in a segment whose entries are all purged. It is the one thing there that
/// must not be given up with it: it is written again first.
#[test]
fn votes_and_marks_survive_the_segment_they_were_written_in() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[
        Step::Vote { group: 7, term: 42 },
        Step::Append { group: 8, entries: 2, bytes: 10, term: 3 },
        Step::Committed { group: 8 },
        Step::Purge { group: 8, entries: 2 },
    ]);
    for _ in 0..30 {
        harness.run(&[Step::Append { group: 1, entries: 4, bytes: 1000, term: 1 }]);
        harness.run(&[Step::Purge { group: 1, entries: 4 }]);
    }
    assert!(!files(&harness.disk).contains(&"0000000000000001.seg".to_owned()));
    harness.disk.crash_after(0, 0);
    let (log, _) = harness.check_recovers(&harness.disk, "after a crash");
    assert_eq!(observe(&log)[&7].vote, Some(vote(42)));
    assert_eq!(
        log.group::<openraft_rt_sim::SimRuntime>(8).committed().unwrap(),
        Some(crate::log::record::log_id(3, 1))
    );
}

/// Group 7 wrote three entries and went to sleep. Its segment would stay for ever, and with it every segment
/// after it, since a log has no gaps.
#[test]
fn a_slow_group_does_not_keep_old_segments_for_ever() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 7, entries: 3, bytes: 500, term: 1 }]);
    for round in 0..60 {
        harness.run(&[Step::Append { group: 1, entries: 4, bytes: 1000, term: 1 }]);
        harness.run(&[Step::Purge { group: 1, entries: 4 }]);
        if round % 10 == 0 {
            // It wakes up now and then, so that copied and original entries mix.
            harness.run(&[Step::Append { group: 7, entries: 1, bytes: 50, term: 2 }]);
        }
    }
    let stats = harness.log.stats();
    assert!(stats.moved_entries >= 3, "{stats:?}");
    assert!(stats.segments <= 6, "{stats:?}");
    harness.disk.crash_after(0, 0);
    let (log, _) = harness.check_recovers(&harness.disk, "after a crash");
    let mut again = Harness::on(harness.disk.fork(), log);
    again.log = open(&again.disk).unwrap().0;
    again.run(&[Step::Truncate { group: 7, entries: 7 }, Step::Append { group: 7, entries: 1, bytes: 5, term: 3 }]);
    again.disk.crash_after(0, 0);
    again.check_recovers(&again.disk, "truncated into the copied entries");
}

#[test]
fn entries_that_left_the_cache_are_read_from_the_segments() {
    let mut harness = Harness::new(SimDisk::new());
    for _ in 0..20 {
        harness.run(&[
            Step::Append { group: 1, entries: 2, bytes: 800, term: 1 },
            Step::Append { group: 2, entries: 1, bytes: 800, term: 1 },
        ]);
    }
    let stats = harness.log.stats();
    assert!(stats.cached_bytes <= 4000 && stats.entries_read == 0, "{stats:?}");
    assert_eq!(observe(&harness.log), harness.model);
    assert!(harness.log.stats().entries_read > 50);
    let some = now(harness.group(1).try_get_log_entries(7..=9)).unwrap();
    assert_eq!(some, harness.model[&1].entries[7..=9]);
}

/// The cache is full of entries that are not synced: none of them may leave it, there is no other place
/// to read them from.
#[test]
fn entries_that_are_not_synced_stay_in_memory() {
    let mut harness = Harness::new(SimDisk::new());
    for _ in 0..10 {
        harness.step(&Step::Append { group: 1, entries: 1, bytes: 1000, term: 1 }).unwrap();
    }
    assert!(harness.log.stats().cached_bytes > 4000);
    assert_eq!(observe(&harness.log), harness.model);
    harness.flush().unwrap();
    assert!(harness.log.stats().cached_bytes <= 4000);
    assert_eq!(observe(&harness.log), harness.model);
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_segment_of_its_size() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 1, bytes: 100_000, term: 1 }]);
    harness.run(&[Step::Append { group: 1, entries: 1, bytes: 10, term: 1 }]);
    harness.disk.crash_after(0, 0);
    let (log, _) = harness.check_recovers(&harness.disk, "after a crash");
    let mut again = Harness::on(harness.disk.clone(), log);
    for _ in 0..4 {
        again.run(&[Step::Purge { group: 1, entries: 4 }, Step::Append { group: 1, entries: 4, bytes: 1000, term: 1 }]);
    }
    let large = files(&again.disk)
        .into_iter()
        .find(|name| again.disk.open(&Path::new(DIR).join(name)).unwrap().len().unwrap() > options().segment_bytes);
    assert_eq!(large, None, "it is not kept as a spare");
}

/// A reader planned its read, then the segment was purged and its file used again for new entries.
#[test]
fn a_file_that_a_reader_holds_is_not_used_again() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 8, bytes: 1000, term: 1 }]);
    harness.run(&[Step::Append { group: 1, entries: 8, bytes: 1000, term: 1 }]);
    let held = harness.log.shared.lock().segments[&1].file.clone();
    let slot = *harness.log.shared.lock().groups[&1].slot(0).unwrap();
    harness.run(&[Step::Purge { group: 1, entries: 15 }]);
    for _ in 0..20 {
        harness.run(&[Step::Append { group: 1, entries: 8, bytes: 1000, term: 1 }]);
        harness.run(&[Step::Purge { group: 1, entries: 8 }]);
    }
    assert!(!files(&harness.disk).contains(&"0000000000000001.seg".to_owned()));
    crate::log::read::read_record(&held, 1, 0, &slot).unwrap();
}

#[test]
fn a_batch_is_not_larger_than_asked_for() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, LogOptions { max_batch_bytes: 3000, ..options() }).unwrap();
    let mut harness = Harness::on(disk, log);
    for _ in 0..9 {
        harness.step(&Step::Append { group: 1, entries: 1, bytes: 900, term: 1 }).unwrap();
    }
    harness.step(&Step::Append { group: 1, entries: 1, bytes: 5000, term: 1 }).unwrap();
    harness.flush().unwrap();
    assert_eq!(harness.log.stats().batches, 4);
}

#[test]
fn committed_marks_ride_along_and_cost_no_sync() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 3, bytes: 10, term: 1 }]);
    let syncs = harness.disk.counts().syncs;
    harness.run(&[Step::Committed { group: 1 }]);
    assert_eq!(harness.disk.counts().syncs, syncs);
    let marked = harness.group(1).committed().unwrap();
    harness.run(&[Step::Vote { group: 2, term: 1 }]);
    assert_eq!(harness.disk.counts().syncs, syncs + 1);
    harness.disk.crash_after(0, 0);
    let (log, _) = open(&harness.disk).unwrap();
    assert_eq!(log.group::<openraft_rt_sim::SimRuntime>(1).committed().unwrap(), marked);
}

#[test]
fn long_ranges_are_streamed_in_parts() {
    use futures_util::StreamExt;
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, LogOptions { read_bytes: 2000, ..options() }).unwrap();
    let mut harness = Harness::on(disk, log);
    harness.run(&[Step::Append { group: 1, entries: 10, bytes: 900, term: 1 }]);
    let mut group = harness.group(1);
    assert_eq!(now(group.limited_get_log_entries(0, 10)).unwrap().len(), 2);
    let mut stream = Box::pin(now(group.entries_stream(3..)));
    assert_eq!(now(stream.next()).unwrap().unwrap().log_id.index, 3);
    let rest: Vec<_> = now(stream.collect());
    assert_eq!(rest.len(), 6);

    // What a stream has not handed out yet is purged: it says so, and does not skip it.
    let mut other = harness.group(1);
    let mut stream = Box::pin(now(group.entries_stream(..)));
    now(stream.next()).unwrap().unwrap();
    now(other.purge(crate::log::record::log_id(1, 7))).unwrap();
    now(stream.next()).unwrap().unwrap();
    assert!(now(stream.next()).unwrap().is_err());
    assert!(now(stream.next()).is_none());
}

#[test]
fn a_leaders_stream_ends_when_the_vote_changes() {
    use crate::types::LeaderId;
    use futures_util::StreamExt;
    use openraft::vote::RaftLeaderId;
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, LogOptions { read_bytes: 1, ..options() }).unwrap();
    let mut group = log.group::<openraft_rt_sim::SimRuntime>(1);
    now(group.append((0..3).map(|index| entry(1, index, b"x")), IOFlushed::noop())).unwrap();
    let leader = LeaderId::new(1, 1);
    let set = |committed, term| {
        log.shared.lock().groups.get_mut(&1).unwrap().vote = Some(crate::types::Vote { committed, ..vote(term) })
    };

    set(false, 1);
    assert!(now(Box::pin(now(group.leader_bounded_stream(leader, ..))).next()).unwrap().is_err());
    set(true, 1);
    let mut stream = Box::pin(now(group.leader_bounded_stream(leader, ..)));
    now(stream.next()).unwrap().unwrap();
    set(false, 2);
    assert!(now(stream.next()).unwrap().is_err());
    assert!(now(stream.next()).is_none());
}

/// openraft hands over a thousand large entries at once: they are split, and called back when all are durable.
#[test]
fn a_large_append_is_written_in_parts_and_called_back_after_the_last() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, LogOptions { max_batch_bytes: 3000, ..options() }).unwrap();
    let harness = Harness::on(disk, log);
    let (flushed, mut came) = callback();
    let entries: Vec<_> = (0..10).map(|index| entry(1, index, &[7; 900])).collect();
    now(harness.group(1).append(entries.clone(), flushed)).unwrap();
    let mut harness = harness;
    let mut batches = 0;
    while harness.write().unwrap() {
        assert!(came().is_none());
        harness.sync().unwrap();
        batches += 1;
    }
    assert!(batches >= 3);
    came().expect("the callback came").unwrap();
    harness.disk.crash_after(0, 0);
    assert_eq!(observe(&open(&harness.disk).unwrap().0)[&1].entries, entries);
}

/// Two spares lay ready, one made for segment 3 and one that had been segment 1; segment 3 was made of the
/// latter. When segment 3 was given up, its file took the name, and with it the place, of the former.
#[test]
fn a_segment_that_becomes_a_spare_does_not_take_the_place_of_another() {
    let mut harness = Harness::new(SimDisk::new());
    let current = |harness: &Harness| *harness.log.shared.lock().segments.last_key_value().unwrap().0;
    while current(&harness) < 2 || harness.log.stats().spare_segments == 0 {
        harness.run(&[Step::Append { group: 1, entries: 1, bytes: 900, term: 1 }]);
        if current(&harness) == 2 {
            harness.rest();
        }
    }
    for _ in 0..4 {
        harness.run(&[Step::Purge { group: 1, entries: 99 }]);
        let spares = files(&harness.disk).into_iter().filter(|name| name.starts_with("spare-"));
        assert_eq!(spares.count(), 2, "segment {}", current(&harness));
        let next = current(&harness) + 1;
        while current(&harness) < next {
            harness.run(&[Step::Append { group: 1, entries: 1, bytes: 900, term: 1 }]);
        }
    }
}

/// A reader looked up an entry just when its copy was in a batch that was not written yet, and read what was
/// there before. So the index points to the original until the copy is synced.
#[test]
fn a_copied_entry_is_read_at_its_old_place_until_the_copy_is_synced() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 7, entries: 1, bytes: 500, term: 1 }]);
    let place = |harness: &Harness| *harness.log.shared.lock().groups[&7].slot(0).unwrap();
    let first = place(&harness);
    for _ in 0..60 {
        harness.step(&Step::Append { group: 1, entries: 4, bytes: 1000, term: 1 }).unwrap();
        harness.step(&Step::Purge { group: 1, entries: 4 }).unwrap();
        let mut before = place(&harness);
        while harness.write().unwrap() {
            assert_eq!(place(&harness), before);
            harness.sync().unwrap();
            before = place(&harness);
        }
    }
    assert!(place(&harness).segment > first.segment);
}

/// A late purge, of less than was purged before, was written too. When the segment of the earlier one was given
/// up, the late one was taken for the newest, and the log was refused for a hole.
#[test]
fn an_older_purge_does_not_hide_a_newer_one() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 2, entries: 9, bytes: 10, term: 1 }, Step::Purge { group: 2, entries: 6 }]);
    let mut group = harness.group(2);
    for round in 0..40 {
        harness.run(&[
            Step::Append { group: 1, entries: 4, bytes: 1000, term: 1 },
            Step::Append { group: 2, entries: 1, bytes: 9, term: 1 },
        ]);
        harness.run(&[Step::Purge { group: 1, entries: 4 }]);
        if round < 30 {
            now(group.purge(crate::log::record::log_id(1, 2))).unwrap();
        }
    }
    harness.disk.crash_after(0, 0);
    harness.check_recovers(&harness.disk, "after a crash");
}

/// A follower lost its log while it was sent entries; what it lacked was purged; and the entries behind the hole were
/// given to it as if they followed (found by the simulator).
#[test]
fn replication_is_not_given_what_comes_after_a_purge_as_if_it_followed() {
    use openraft::storage::RaftLogReader;
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 9, bytes: 10, term: 1 }, Step::Purge { group: 1, entries: 6 }]);
    let mut group = harness.group(1);
    let first = group.state().unwrap().last_purged_log_id.unwrap().index + 1;
    assert_eq!(now(group.limited_get_log_entries(first, first + 2)).unwrap().len(), 2);
    assert!(now(group.limited_get_log_entries(first - 1, first + 2)).unwrap().is_empty());
}

#[test]
fn the_oldest_and_the_newest_entry_have_their_own_terms() {
    let mut harness = Harness::new(SimDisk::new());
    assert_eq!(harness.group(1).terms(), None);
    let append = |term| Step::Append { group: 1, entries: 3, bytes: 10, term };
    harness.run(&[append(1), append(2), append(4)]);
    assert_eq!(harness.group(1).terms(), Some((1, 4)));
    harness.run(&[Step::Purge { group: 1, entries: 4 }]);
    assert_eq!(harness.group(1).terms(), Some((2, 4)));
    harness.run(&[Step::Purge { group: 1, entries: 5 }]);
    assert_eq!(harness.group(1).terms(), Some((4, 4)), "of what was purged last");
}

/// What is kept of a group behind its snapshot is bounded in bytes too: a few large entries are as much as many small ones.
#[test]
fn what_is_too_much_is_told_by_the_bytes_of_the_newest() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 10, bytes: 1000, term: 1 }, Step::Purge { group: 1, entries: 2 }]);
    let group = harness.group(1);
    let state = group.state().unwrap();
    let (purged, last) = (state.last_purged_log_id.unwrap().index, state.last_log_id.unwrap().index);
    assert_eq!(group.too_much(last, 0), Some(last));
    assert_eq!(group.too_much(last, 3500), Some(last - 3), "an entry is a little more than its payload");
    assert_eq!(group.too_much(last - 1, 3500), Some(last - 4), "what is newer than the snapshot does not count");
    assert_eq!(group.too_much(last, 9000), None);
    assert_eq!(group.too_much(last + 5, 3500), Some(last - 3), "a snapshot may have come that is newer than the log");
    assert_eq!(group.too_much(purged, 0), None);
    assert_eq!(harness.group(2).too_much(last, 0), None);
}

#[test]
fn a_log_may_be_opened_with_other_options() {
    let mut harness = Harness::new(SimDisk::new());
    for _ in 0..8 {
        harness.run(&[Step::Append { group: 1, entries: 4, bytes: 1000, term: 1 }]);
        harness.run(&[Step::Purge { group: 1, entries: 3 }]);
        harness.rest();
    }
    assert!(harness.log.stats().spare_segments > 0);
    harness.close().unwrap();
    let larger = LogOptions { segment_bytes: 32 << 10, cache_bytes: 0, salt: 99, ..options() };
    let (log, _) = open_with(&harness.disk, larger.clone()).unwrap();
    assert_eq!(log.stats().spare_segments, 0, "the spares have the old size");
    let mut harness = Harness::on(harness.disk.clone(), log);
    for _ in 0..12 {
        harness.run(&[Step::Append { group: 1, entries: 4, bytes: 1000, term: 1 }]);
        harness.run(&[Step::Purge { group: 1, entries: 4 }]);
    }
    harness.disk.crash_after(0, 0);
    let (log, _) = open_with(&harness.disk, larger).unwrap();
    assert_eq!(observe(&log), harness.model);
    // The salt of the log stays the one it was made with.
    let salts = log.shared.lock().segments.values().map(|segment| segment.file.header.salt).collect::<Vec<_>>();
    assert!(salts.iter().all(|salt| *salt == 7), "{salts:?}");
}

/// Where more was always queued than one batch takes, no committed mark was ever written. After a power cut the node had
/// applied less than it had before the last start, and took what it was told long ago for the present.
#[test]
fn a_committed_mark_is_written_though_the_queue_is_never_empty() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 2, bytes: 10, term: 1 }]);
    let busy = Step::Append { group: 5, entries: 3, bytes: 1000, term: 1 };
    for step in [
        Step::Committed { group: 1 },
        Step::Append { group: 2, entries: 1, bytes: 10, term: 1 },
        Step::Committed { group: 2 },
    ] {
        harness.step(&step).unwrap();
    }
    for _ in 0..4 {
        harness.step(&busy).unwrap();
    }
    for step in [Step::Append { group: 3, entries: 1, bytes: 10, term: 1 }, Step::Committed { group: 3 }] {
        harness.step(&step).unwrap();
    }
    for _ in 0..3 {
        harness.write().unwrap();
        harness.sync().unwrap();
        assert!(!harness.log.shared.lock().queue.is_empty());
        let disk = harness.disk.fork();
        disk.crash_after(0, 0);
        let (log, _) = harness.check_recovers(&disk, "the queue was never empty");
        let committed = |id| log.group::<openraft_rt_sim::SimRuntime>(id).committed().unwrap();
        assert_eq!(committed(1), Some(crate::log::record::log_id(1, 1)));
        assert_eq!(committed(2), Some(crate::log::record::log_id(1, 0)));
        assert!(!log.groups().contains(&3), "a mark before its entry");
    }
    harness.flush().unwrap();
    harness.disk.crash_after(0, 0);
    let (log, _) = harness.check_recovers(&harness.disk, "all is written");
    let last = log.group::<openraft_rt_sim::SimRuntime>(3).committed().unwrap();
    assert_eq!(last, Some(crate::log::record::log_id(1, 0)));
}
