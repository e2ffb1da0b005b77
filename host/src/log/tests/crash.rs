//! The power fails: what was acknowledged is there, what was not is there up to some point or not at all.

use super::harness::*;
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::log::LogError;
use crate::log::segment::BATCH_HEADER_BYTES;

/// Several groups, all kinds of steps, a few batches, segments given up and used again.
fn script() -> Vec<Vec<Step>> {
    let mut batches = vec![
        vec![
            Step::Vote { group: 1, term: 1 },
            Step::Append { group: 1, entries: 3, bytes: 100, term: 1 },
            Step::Append { group: 2, entries: 1, bytes: 700, term: 1 },
        ],
        vec![Step::Append { group: 1, entries: 1, bytes: 10, term: 2 }, Step::Truncate { group: 1, entries: 2 }],
        vec![Step::Append { group: 1, entries: 2, bytes: 30, term: 3 }, Step::Vote { group: 2, term: 4 }],
    ];
    for round in 0..8 {
        batches.push(vec![
            Step::Append { group: 1, entries: 8, bytes: 600, term: 4 },
            Step::Committed { group: 1 },
            Step::Append { group: 5 + round, entries: 1, bytes: 5, term: 1 },
        ]);
        batches
            .push(vec![Step::Purge { group: 1, entries: 7 }, Step::Append { group: 2, entries: 1, bytes: 5, term: 4 }]);
    }
    batches.push(vec![Step::Remove { group: 6 }, Step::Install { group: 2, beyond: 5, term: 5 }]);
    batches.push(vec![Step::Append { group: 2, entries: 4, bytes: 2000, term: 5 }]);
    batches
}

/// Runs the script until the power goes. Returns whether it went.
fn run_until_dark(harness: &mut Harness) -> bool {
    for steps in script() {
        for step in steps {
            if harness.step(&step).is_err() {
                return true;
            }
        }
        if harness.flush().is_err() {
            return true;
        }
        harness.rest();
    }
    harness.disk.cut_power_after(u64::MAX);
    false
}

/// Crashes a copy of the harness's disk in every way that matters, and calls `then` with each.
fn each_crash(harness: &Harness, mut then: impl FnMut(SimDisk, &str)) {
    let pending = harness.disk.pending_bytes();
    for whole in 0..=pending.len() {
        let disk = harness.disk.fork();
        disk.crash_after(whole, 0);
        then(disk, &format!("{whole} of {} unsynced changes reached the device", pending.len()));
    }
    for seed in 0..4 {
        let disk = harness.disk.fork();
        let mut random = Random(seed);
        disk.crash(&mut || random.next());
        then(disk, &format!("seed {seed}"));
    }
}

#[test]
fn after_a_power_cut_at_any_call_all_that_was_acknowledged_is_there() {
    let mut calls = 0;
    loop {
        let mut harness = Harness::new(SimDisk::new());
        harness.disk.cut_power_after(calls);
        let dark = run_until_dark(&mut harness);
        each_crash(&harness, |disk, story| {
            let story = format!("power cut after {calls} calls, {story}");
            let (log, _) = harness.check_recovers(&disk, &story);
            // And it goes on from there.
            let mut after = Harness::on(disk, log);
            after.run(&[Step::Append { group: 1, entries: 2, bytes: 50, term: 9 }]);
            let disk = after.disk.fork();
            disk.crash_after(0, 0);
            after.check_recovers(&disk, &story);
            // And the loss of its newest file would be seen.
            let newest = newest_segment(&disk);
            disk.remove(&segment_path(newest)).unwrap();
            let is_seen = newest == 1 || matches!(open(&disk), Err(LogError::Missing { .. }));
            assert!(is_seen, "{story}: segment {newest} is gone, and nothing says so");
        });
        calls += 1;
        if !dark {
            break;
        }
    }
    assert!(calls > 100, "the script has to make more than {calls} calls for this to mean anything");
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_either() {
    // Every 7th call of the script, then every call of the recovery.
    for calls in (0..).step_by(7) {
        let mut harness = Harness::new(SimDisk::new());
        harness.disk.cut_power_after(calls);
        let dark = run_until_dark(&mut harness);
        each_crash(&harness, |disk, story| {
            for recovery_calls in 0.. {
                let again = disk.fork();
                again.cut_power_after(recovery_calls);
                let opened = open(&again);
                let shown = opened.as_ref().ok().map(|(log, _)| observe(log));
                let mut random = Random(recovery_calls);
                again.crash(&mut || random.next());
                let story = format!("power cut after {calls} calls, {story}, then after {recovery_calls} of recovery");
                let (log, _) = harness.check_recovers(&again, &story);
                if let Some(shown) = shown {
                    assert_eq!(shown, observe(&log), "{story}: what one start showed, the next one does not");
                    break;
                }
            }
        });
        if !dark {
            break;
        }
    }
}

/// The process ended and the machine did not: what the next one finds need not be on the device. It wrote behind a full segment that
/// there is a next one, whose name was lost when the power failed then: the log was called damaged, and nothing was.
#[test]
fn a_power_cut_during_the_start_after_a_kill_at_any_call_loses_nothing() {
    for calls in 0.. {
        let mut harness = Harness::new(SimDisk::new());
        harness.disk.cut_power_after(calls);
        let dark = run_until_dark(&mut harness);
        harness.disk.kill_process();
        harness.disk.heal();
        for start_calls in 0.. {
            let disk = harness.disk.fork();
            disk.cut_power_after(start_calls);
            let is_open = open(&disk).is_ok();
            disk.crash_after(0, 0);
            harness.check_recovers(
                &disk,
                &format!("killed after {calls} calls, the power cut after {start_calls} of a start"),
            );
            if is_open {
                break;
            }
        }
        if !dark {
            break;
        }
    }
}

#[test]
fn a_batch_torn_at_any_byte_counts_wholly_or_not_at_all() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 2, bytes: 100, term: 1 }]);
    for step in [
        Step::Vote { group: 2, term: 7 },
        Step::Append { group: 1, entries: 3, bytes: 300, term: 1 },
        Step::Append { group: 2, entries: 1, bytes: 20, term: 1 },
    ] {
        harness.step(&step).unwrap();
    }
    let (before, after) = (harness.possible[0].clone(), harness.model.clone());
    harness.write().unwrap();
    let [batch] = harness.disk.pending_bytes()[..] else { panic!("one write is one batch") };
    let mut kept = 0;
    let mut reported = 0;
    for torn in 0..=batch {
        let disk = harness.disk.fork();
        disk.crash_after(0, torn);
        let (log, report) = open(&disk).unwrap();
        let said = observe(&log);
        assert!(said == before || said == after, "{torn} of {batch} bytes");
        kept += usize::from(said == after);
        reported += usize::from(report.cut.is_some());
        assert!(said == after || torn < batch);
    }
    // Only the padding may be missing, and a cut batch is reported once its header is there.
    assert!((1..=512).contains(&kept), "{kept}");
    assert_eq!(reported, batch + 1 - kept - BATCH_HEADER_BYTES);
}

#[test]
fn a_batch_torn_into_any_sectors_counts_wholly_or_not_at_all() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 2, bytes: 100, term: 1 }]);
    harness.step(&Step::Append { group: 1, entries: 8, bytes: 400, term: 1 }).unwrap();
    harness.write().unwrap();
    let mut random = Random(1);
    for round in 0..500 {
        let disk = harness.disk.fork();
        disk.crash(&mut || random.next());
        let (log, _) = open(&disk).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let said = observe(&log);
        assert!(said == harness.possible[0] || said == harness.model, "round {round}");
    }
}

/// Batch *k* was torn: its first sector was lost, its second reached the disk. The node started, cut it, and
/// wrote a shorter batch in its place, which was torn too, into its first sector. Had recovery only cut in
/// memory, new first and old second sector together might be read as a batch some day. So the cut is written
/// and synced before anything else: a record that says "opened" takes the torn batch's place.
#[test]
fn the_pieces_of_two_torn_batches_never_make_a_whole_one() {
    let mut harness = Harness::new(SimDisk::new());
    harness.step(&Step::Append { group: 1, entries: 1, bytes: 700, term: 1 }).unwrap();
    harness.write().unwrap();
    harness.disk.crash_after(0, 600);
    let (log, report) = open(&harness.disk).unwrap();
    assert!(report.cut.is_some());
    // The same entry again: the same bytes at the same place, were it not for the opened record.
    let mut again = Harness::on(harness.disk.fork(), log);
    again.step(&Step::Append { group: 1, entries: 1, bytes: 700, term: 1 }).unwrap();
    again.write().unwrap();
    again.disk.crash_after(0, 100);
    let (log, _) = open(&again.disk).unwrap();
    assert_eq!(observe(&log), Groups::new());
}

/// A sync failed, the process ended as it must, and the machine went on. The page cache still shows the batch,
/// so the next process finds it whole, and its own sync succeeds because the kernel thinks the pages are
/// clean. Without writing the batch again the log would show an entry that the device never got.
#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_written_again_before_it_is_shown() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 1, bytes: 10, term: 1 }]);
    harness.step(&Step::Append { group: 1, entries: 1, bytes: 10, term: 1 }).unwrap();
    harness.write().unwrap();
    harness.disk.fail_sync(0);
    harness.sync().unwrap_err();
    harness.disk.kill_process();
    let (log, _) = open(&harness.disk).unwrap();
    let shown = observe(&log);
    assert_eq!(shown[&1].entries.len(), 2);
    harness.disk.crash_after(0, 0);
    let (log, _) = open(&harness.disk).unwrap();
    assert_eq!(observe(&log), shown);
}

/// Crashes a copy of the disk for each set of unsynced changes that may have reached the device.
fn each_subset(disk: &SimDisk, mut then: impl FnMut(SimDisk, &str)) {
    let pending = disk.pending();
    assert!(pending <= 8, "{pending} unsynced changes have too many subsets");
    for kept in 0..1_u64 << pending {
        let crashed = disk.fork();
        let mut bits = (0..pending).map(|bit| if kept >> bit & 1 == 1 { 0 } else { 2 });
        crashed.crash(&mut || bits.next().unwrap_or(2));
        then(crashed, &format!("of {pending} unsynced changes the set {kept:b} reached the device"));
    }
}

/// A process was killed before its last batch was synced. The next start wrote the batch again and the record that
/// says "opened" behind it, under one sync. The power failed in it: the second was on the device, the first was not,
/// and every start after that said that the log was damaged.
#[test]
fn a_power_cut_while_the_last_batch_is_written_again_is_no_damage() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 1, bytes: 10, term: 1 }]);
    harness.step(&Step::Append { group: 1, entries: 1, bytes: 700, term: 1 }).unwrap();
    harness.write().unwrap();
    harness.disk.kill_process();
    for calls in 0.. {
        let disk = harness.disk.fork();
        disk.cut_power_after(calls);
        let shown = open(&disk).ok().map(|(log, _)| observe(&log));
        each_subset(&disk, |crashed, story| {
            let story = format!("power cut after {calls} calls, {story}");
            let (log, _) = harness.check_recovers(&crashed, &story);
            assert!(shown.iter().all(|shown| *shown == observe(&log)), "{story}: what was shown is gone");
        });
        if shown.is_some() {
            assert!(calls >= 4, "two writes, each with its sync");
            return;
        }
    }
}

/// The sync of a batch failed, and so did those of the next two starts. The first of these wrote the batch again with
/// "opened" behind it, the second found both in the page cache and wrote only the last: the batch before counted as
/// synced, and the device never got it.
#[test]
fn a_start_whose_own_sync_fails_proves_nothing_to_the_next_one() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 1, bytes: 10, term: 1 }]);
    harness.step(&Step::Append { group: 1, entries: 1, bytes: 700, term: 1 }).unwrap();
    harness.write().unwrap();
    harness.disk.fail_sync(0);
    harness.sync().unwrap_err();
    // Each number: which sync of a start fails.
    for fails in [[0, 0], [0, 1], [1, 0], [1, 1]] {
        let disk = harness.disk.fork();
        for skip in fails {
            disk.kill_process();
            disk.fail_sync(skip);
            assert!(open(&disk).is_err(), "{fails:?}");
        }
        disk.kill_process();
        let (log, _) = harness.check_recovers(&disk, &format!("{fails:?}"));
        let shown = observe(&log);
        disk.crash_after(0, 0);
        let (log, _) = harness.check_recovers(&disk, &format!("{fails:?}, then the power fails"));
        assert_eq!(observe(&log), shown, "{fails:?}: what one start showed, the next one does not");
    }
}

/// A life of a node, as long as the power lasts.
fn work(harness: &mut Harness, random: &mut Random) -> Result<(), std::io::Error> {
    for _ in 0..random.below(120) {
        harness.step(&random.step(5))?;
        match random.below(6) {
            0 => harness.flush()?,
            1 => harness.rest(),
            _ => {}
        }
    }
    if random.below(2) == 0 {
        harness.write()?;
    }
    Ok(())
}

/// `STATEHOUSE_SEEDS=100000` for a night of it.
#[test]
fn random_work_with_random_crashes_never_loses_what_was_acknowledged() {
    let seeds = std::env::var("STATEHOUSE_SEEDS").map_or(60, |seeds| seeds.parse().unwrap());
    let mut given_up = 0;
    for seed in 0..seeds {
        let mut random = Random(seed);
        let mut harness = Harness::new(SimDisk::new());
        for life in 0..8 {
            // In some lives the power goes in the middle of whatever is being done.
            let dark = random.below(3) == 0;
            if dark {
                harness.disk.cut_power_after(random.below(200));
            }
            let worked = work(&mut harness, &mut random);
            if worked.is_ok() && random.below(3) == 0 {
                harness.close().unwrap_or_else(|error| assert!(dark, "{error}"));
            }
            match random.below(4) {
                0 if !dark => harness.disk.kill_process(),
                _ => harness.disk.crash(&mut || random.next()),
            }
            assert!(worked.is_ok() || dark, "seed {seed}, life {life}: {worked:?}");
            let (log, _) = harness.check_recovers(&harness.disk, &format!("seed {seed}, life {life}"));
            given_up += log.shared.lock().segments.first_key_value().map_or(0, |(first, _)| *first - 1);
            harness = Harness::on(harness.disk.fork(), log);
            // The fork has no handles, so the log is opened again, which must say the same.
            let (log, _) = harness.check_recovers(&harness.disk, &format!("seed {seed}, life {life}, opened twice"));
            harness.log = log;
        }
    }
    assert!(given_up > 100, "segments were given up {given_up} times only");
}
