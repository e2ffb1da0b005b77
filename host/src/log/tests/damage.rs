//! Damage: found and refused with file and offset where it may have hit what was acknowledged.

use super::harness::*;
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::log::LogError;
use crate::log::LogOptions;
use crate::log::Record;
use crate::log::inspect;
use crate::log::inspect_records;
use crate::log::segment::BATCH_HEADER_BYTES;
use crate::log::segment::FIRST_BATCH;
use crate::log::segment::SegmentHeader;
use crate::log::segment::seal_batch;
use crate::log::state::Effect;
use crate::log::state::Operation;
use openraft::storage::IOFlushed;
use openraft::storage::RaftLogStorage;
use std::path::Path;

/// A log of two segments, closed in order.
fn closed_log() -> Harness {
    let mut harness = Harness::new(SimDisk::new());
    for _ in 0..6 {
        harness.run(&[
            Step::Append { group: 1, entries: 3, bytes: 500, term: 1 },
            Step::Vote { group: 2, term: 3 },
            Step::Append { group: 2, entries: 2, bytes: 100, term: 2 },
        ]);
    }
    harness.close().unwrap();
    harness
}

/// A segment's sequence, and a range of its bytes.
type Range = (u64, u64, u64);

/// Where the bytes are that mean something, and the segment in which the log was closed.
fn meaningful(disk: &SimDisk) -> (Vec<Range>, u64) {
    let mut ranges: Vec<Range> = vec![(1, 0, 72), (2, 0, 72)];
    let mut closed = 0;
    let found = inspect_records(disk, Path::new(DIR), &mut |found| {
        let sequence = if found.path == segment_path(1) { 1 } else { 2 };
        let header = if found.offset % 512 == BATCH_HEADER_BYTES as u64 { BATCH_HEADER_BYTES as u64 } else { 0 };
        if found.record == Record::Closed {
            closed = sequence;
        } else {
            ranges.push((sequence, found.offset - header, found.offset + u64::from(found.length)));
        }
    });
    assert!(found.unwrap().damage.is_empty());
    (ranges, closed)
}

/// Flips the bits that `bits` names, one at a time, in every byte of the log that means something and in some
/// that do not. Returns how often that was refused and how often it was harmless.
fn flip_each(harness: &Harness, segments: u64, mut bits: impl FnMut() -> Vec<u8>) -> (u64, u64) {
    let (ranges, closed) = meaningful(&harness.disk);
    assert_eq!(closed, segments);
    let (mut refused, mut harmless) = (0, 0);
    for sequence in 1..=segments {
        let path = segment_path(sequence);
        let size = harness.disk.open(&path).unwrap().len().unwrap();
        let mut at = 0;
        while at < size {
            let means = ranges.iter().any(|(of, from, to)| *of == sequence && (*from..*to).contains(&at));
            for bit in bits() {
                let disk = harness.disk.fork();
                disk.flip_bit(&path, at, bit).unwrap();
                match open(&disk) {
                    Err(LogError::Corrupt { path: named, offset, .. }) if means => {
                        assert!(
                            named == path && offset <= at,
                            "byte {at} of segment {sequence}: {named:?} at {offset}"
                        );
                        refused += 1;
                    }
                    // A damaged version may look like that of a newer program: refused all the same.
                    Err(LogError::Version { path: named, .. }) if means && (8..12).contains(&at) => {
                        assert_eq!(named, path)
                    }
                    Ok((log, _)) if !means => {
                        assert_eq!(observe(&log), harness.model, "byte {at} of segment {sequence}");
                        harmless += 1;
                    }
                    Ok(_) => panic!("bit {bit} of byte {at} of segment {sequence}: the damage was not seen"),
                    Err(error) => panic!("bit {bit} of byte {at} of segment {sequence}: {error}"),
                }
            }
            at += if means { 1 } else { 37 };
        }
    }
    (refused, harmless)
}

#[test]
fn damage_of_any_byte_in_a_closed_log_is_refused_and_outside_of_it_is_harmless() {
    let mut random = Random(3);
    let (refused, harmless) = flip_each(&closed_log(), 2, || vec![random.below(8) as u8]);
    assert!(refused > 9000 && harmless > 100, "{refused} refused, {harmless} harmless");
}

#[test]
fn damage_of_any_bit_is_refused() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Vote { group: 2, term: 3 }, Step::Append { group: 1, entries: 1, bytes: 3, term: 1 }]);
    harness.close().unwrap();
    let (refused, _) = flip_each(&harness, 1, || (0..8).collect());
    assert!(refused > 1500, "{refused} refused");
}

/// The node was killed, not closed. Before the tail mark existed, damage of the very last batch was cut as a
/// torn write, and with it an acknowledged entry.
#[test]
fn damage_of_the_last_batch_is_told_from_a_torn_write_once_the_log_rested() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 1, bytes: 10, term: 1 }]);
    let last = FIRST_BATCH + 512;

    let unrested = harness.disk.fork();
    unrested.flip_bit(&segment_path(1), last + 40, 0).unwrap();
    let (_, report) = open(&unrested).unwrap();
    assert!(report.cut.is_some(), "without a mark it cannot be told from a torn write");

    harness.rest();
    harness.disk.kill_process();
    harness.disk.flip_bit(&segment_path(1), last + 40, 0).unwrap();
    match open(&harness.disk).err().expect("it is refused") {
        LogError::Corrupt { path, offset, .. } => assert_eq!((path, offset), (segment_path(1), last)),
        error => panic!("{error}"),
    }
}

/// Also the newest: the highest file was once taken for the end of the log, whatever had been acknowledged behind it.
#[test]
fn a_missing_segment_is_refused_by_name() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, LogOptions { keep_segments: 99, ..options() }).unwrap();
    let mut harness = Harness::on(disk, log);
    for _ in 0..12 {
        harness.run(&[Step::Append { group: 1, entries: 3, bytes: 900, term: 1 }]);
    }
    let newest = newest_segment(&harness.disk);
    assert!(newest >= 3, "{newest} segments");
    for first in 1..=newest {
        for last in first..=newest {
            if (first, last) == (1, newest) {
                continue;
            }
            let disk = harness.disk.fork();
            (first..=last).for_each(|sequence| disk.remove(&segment_path(sequence)).unwrap());
            match open(&disk).err().expect("it is refused") {
                LogError::Missing { path } => assert_eq!(path, segment_path(first)),
                error => panic!("{error}"),
            }
            let damage = inspect(&disk, Path::new(DIR)).unwrap().damage;
            let told = damage.iter().filter(|error| matches!(error, LogError::Missing { .. })).count();
            assert_eq!((told, damage.first().map(|error| error.is_damage())), (1, Some(true)), "{damage:?}");
        }
    }
}

/// A segment was full to its last sector, so there was no place in it to say that there is a next one.
#[test]
fn every_segment_has_room_for_its_end_mark() {
    for bytes in (200..1800).step_by(37) {
        let mut harness = Harness::new(SimDisk::new());
        for _ in 0..14 {
            harness.run(&[Step::Append { group: 1, entries: 2, bytes, term: 1 }, Step::Committed { group: 1 }]);
        }
        // Each start writes a batch of its own.
        while newest_segment(&harness.disk) < 4 {
            harness.close().unwrap();
            let disk = harness.disk.fork();
            let (log, _) = harness.check_recovers(&disk, "it starts again");
            harness = Harness::on(disk, log);
            harness.run(&[Step::Append { group: 2, entries: 1, bytes: 100, term: 1 }]);
        }
        let newest = newest_segment(&harness.disk);
        let lost = harness.disk.fork();
        lost.remove(&segment_path(newest)).unwrap();
        let error = open(&lost).err().expect("it is refused");
        assert!(matches!(&error, LogError::Missing { path } if *path == segment_path(newest)), "{bytes}: {error}");
    }
}

/// An operator puts one segment back from a copy of the directory, and the copy is of another day.
#[test]
fn segments_of_two_days_do_not_make_a_log() {
    let mut yesterday = Harness::new(SimDisk::new());
    yesterday.run(&[Step::Append { group: 1, entries: 2, bytes: 1000, term: 1 }]);
    let disk = yesterday.disk.fork();
    let (log, _) = open(&disk).unwrap();
    let mut today = Harness::on(disk, log);
    today.run(&[Step::Append { group: 1, entries: 2, bytes: 1000, term: 1 }]);
    for harness in [&mut yesterday, &mut today] {
        harness.run(&[Step::Append { group: 1, entries: 1, bytes: 11_000, term: 1 }]);
    }
    let (old, new) = (yesterday.disk.read(&segment_path(2)).unwrap(), today.disk.read(&segment_path(2)).unwrap());
    assert_ne!(old, new);
    today.disk.open(&segment_path(2)).unwrap().write_all_at(0, &old).unwrap();
    match open(&today.disk).err().expect("it is refused") {
        LogError::Corrupt { path, what, .. } => {
            assert_eq!(path, segment_path(1));
            assert!(what.contains("its end is not the one that the next segment names"), "{what}");
        }
        error => panic!("{error}"),
    }
}

#[test]
fn a_shortened_segment_is_refused() {
    let harness = closed_log();
    for sequence in [1, 2] {
        let disk = harness.disk.fork();
        disk.open(&segment_path(sequence)).unwrap().set_len(6000).unwrap();
        match open(&disk).err().expect("it is refused") {
            LogError::Corrupt { path, offset, .. } => assert_eq!((path, offset), (segment_path(sequence), 6000)),
            error => panic!("{error}"),
        }
    }
}

#[test]
fn an_unreadable_sector_is_refused_with_its_file() {
    let harness = closed_log();
    harness.disk.fail_reads(&segment_path(1), 5000, 1).unwrap();
    match open(&harness.disk).err().expect("it is refused") {
        LogError::Corrupt { path, .. } => assert_eq!(path, segment_path(1)),
        error => panic!("{error}"),
    }
}

/// Damage that comes while the node runs is met by a reader, which must not hand out other bytes.
#[test]
fn an_entry_damaged_under_a_running_log_is_an_error_to_its_reader() {
    use openraft::RaftLogReader;
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 1, bytes: 3000, term: 1 }]);
    harness.run(&[Step::Append { group: 1, entries: 2, bytes: 3000, term: 1 }]);
    harness.disk.flip_bit(&segment_path(1), FIRST_BATCH + 512 + 1000, 3).unwrap();
    let error = now(harness.group(1).try_get_log_entries(0..1)).unwrap_err();
    assert!(error.to_string().contains("entry 0 of group 1"), "{error}");
    assert_eq!(now(harness.group(1).try_get_log_entries(1..3)).unwrap().len(), 2);
}

/// A client stores bytes that look like a batch of this very log, placed so that they begin at a sector, and
/// the batch around them is torn. Were they taken for a later batch, they would prove that the torn one had been
/// synced, and the node would not start. What the client cannot know is the log's salt.
#[test]
fn batches_inside_a_payload_prove_nothing_to_those_who_do_not_know_the_salt() {
    let refusals = |guessed_salt: u64| {
        let refused = |shift: &usize| {
            let harness = Harness::new(SimDisk::new());
            let position = harness.log.shared.writer.lock().unwrap().as_ref().unwrap().position;
            let of = harness.log.shared.lock().segments[&1].file.header;
            let mut forged = vec![0; BATCH_HEADER_BYTES];
            seal_batch(&mut forged, &SegmentHeader { salt: guessed_salt, ..of }, position + 1024, 1000, 0);
            let mut payload = vec![0; *shift];
            payload.extend_from_slice(&forged);
            let mut group = harness.group(1);
            now(group.append([entry(1, 0, &payload)], IOFlushed::noop())).unwrap();
            harness.write().unwrap();
            harness.disk.crash_without_first_sector();
            open(&harness.disk).is_err()
        };
        (800..1000).filter(refused).count()
    };
    assert_eq!(refusals(options().salt), 1, "one shift puts it at the sector");
    assert_eq!(refusals(options().salt + 1), 0);
}

/// No crash makes such a log; a bug in what gives segments up could. It must not start as if nothing were missing.
#[test]
fn missing_entries_of_a_group_are_refused() {
    for records in [
        vec![Record::Purge { group: 1, index: 2, term: 1 }, of_group_1(4, false)],
        vec![of_group_1(7, false), of_group_1(5, true)],
        vec![of_group_1(5, true), of_group_1(3, true)],
    ] {
        let harness = Harness::new(SimDisk::new());
        {
            let mut state = harness.log.shared.lock();
            for record in &records {
                let mut bytes = Vec::new();
                record.encode_into(&mut bytes);
                state.push(Operation { group: 1, bytes, records: 1, effect: Effect::Nothing, done: None });
            }
        }
        harness.log.flush().unwrap();
        let error = open(&harness.disk).err().expect("it is refused");
        assert!(matches!(error, LogError::Hole { group: 1, .. }), "{records:?}: {error}");
        assert!(error.to_string().starts_with("/node/log: group 1 has no entry"), "{error}");
    }
}

fn of_group_1(index: u64, moved: bool) -> Record<'static> {
    Record::Entry { group: 1, index, term: 1, moved, payload: b"" }
}
