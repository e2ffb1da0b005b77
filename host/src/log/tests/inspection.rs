//! Looking at the files of a log without opening it: it says what opening says, and more of what is damaged.

use std::path::Path;
use std::sync::Arc;

use super::harness::*;
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::log::EntryReader;
use crate::log::Inspection;
use crate::log::LogError;
use crate::log::inspect;
use crate::log::inspect_records;

fn look(disk: &SimDisk) -> Inspection {
    let before = disk.pending();
    let found = inspect(disk, Path::new(DIR)).unwrap();
    assert_eq!(disk.pending(), before, "who looks changes nothing");
    found
}

/// What an inspection says, in the words of the model.
fn groups_of(disk: &SimDisk, found: &Inspection) -> Groups {
    let mut groups = Groups::new();
    for (&id, of) in &found.groups {
        let mut reader = EntryReader::new(Arc::new(disk.clone()), Path::new(DIR));
        let read = |(&index, place)| reader.read(id, index, place).unwrap();
        let entries = of.entries.iter().map(read).collect();
        let group = Group { vote: of.vote, purged: of.purged, entries };
        if group != Group::default() {
            groups.insert(id, group);
        }
    }
    groups
}

/// Three segments, closed in order.
fn closed_log() -> Harness {
    let mut harness = Harness::new(SimDisk::new());
    for _ in 0..12 {
        harness.run(&[
            Step::Append { group: 1, entries: 3, bytes: 500, term: 1 },
            Step::Vote { group: 2, term: 3 },
            Step::Append { group: 2, entries: 2, bytes: 100, term: 2 },
        ]);
    }
    harness.close().unwrap();
    harness
}

#[test]
fn an_inspection_says_what_opening_says() {
    let mut segments = 0;
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut harness = Harness::new(SimDisk::new());
        for _ in 0..300 {
            harness.step(&random.step(4)).unwrap();
            harness.flush().unwrap();
            harness.rest();
        }
        let found = look(&harness.disk);
        assert_eq!(found.damage.len(), 0, "seed {seed}: {:?}", found.damage);
        assert_eq!((&found.torn, found.closed), (&None, false), "seed {seed}");
        segments += found.segments.len();
        assert_eq!(groups_of(&harness.disk, &found), harness.model, "seed {seed}");
        harness.close().unwrap();
        assert!(look(&harness.disk).closed);
    }
    assert!(segments > 60, "{segments} segments in 40 logs");
}

#[test]
fn a_torn_tail_is_told_as_one_and_stays() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[Step::Append { group: 1, entries: 2, bytes: 300, term: 1 }]);
    harness.step(&Step::Append { group: 1, entries: 1, bytes: 2000, term: 1 }).unwrap();
    harness.write().unwrap();
    let disk = harness.disk.fork();
    disk.crash_after(0, 700);
    let found = look(&disk);
    let torn = found.torn.expect("a torn batch");
    assert!(found.damage.is_empty() && torn.bytes > 2000 && torn.path == segment_path(1));
    assert_eq!(found.groups[&1].ranges(), [(0, 1)]);
    assert_eq!(look(&disk).torn, Some(torn), "it is still there");
}

/// One bit costs one record: what is behind it, and in the same batch, is read.
#[test]
fn one_flipped_bit_costs_one_record() {
    let harness = closed_log();
    let mut places = Vec::new();
    let whole = inspect_records(&harness.disk, Path::new(DIR), &mut |found| {
        places.push((found.sequence, found.offset, found.length));
    });
    let whole = whole.unwrap();
    assert!(whole.damage.is_empty() && whole.closed && whole.segments.len() == 3);
    let mut damaged = 0;
    for (sequence, offset, length) in places.iter().copied() {
        let disk = harness.disk.fork();
        disk.flip_bit(&segment_path(sequence), offset + u64::from(length) - 1, 3).unwrap();
        let mut seen = 0;
        let found = inspect_records(&disk, Path::new(DIR), &mut |_| seen += 1).unwrap();
        if found.damage.is_empty() {
            // The record that closes the log: torn, as far as anyone can tell.
            assert!(found.torn.is_some() && seen == places.len() - 1);
            continue;
        }
        damaged += 1;
        assert_eq!(seen, places.len() - 1, "segment {sequence}, offset {offset}");
        assert!(matches!(&found.damage[0], LogError::Corrupt { path, offset: at, .. }
            if *path == segment_path(sequence) && *at <= offset));
        assert!(open(&disk).is_err(), "what is told as damage is refused");
    }
    assert_eq!(damaged, places.len() - 1);
}

#[test]
fn behind_a_damaged_header_an_unreadable_sector_and_a_missing_segment_reading_goes_on() {
    let harness = closed_log();
    let entries = |found: &Inspection| found.groups.values().map(|of| of.entries.len()).sum::<usize>();
    let all = entries(&look(&harness.disk));
    for sequence in 1..=3 {
        let disk = harness.disk.fork();
        disk.flip_bit(&segment_path(sequence), 40, 0).unwrap();
        let found = look(&disk);
        assert_eq!(entries(&found), all, "the header of segment {sequence}");
        assert!(!found.damage.is_empty() && found.segments[sequence as usize - 1].damaged > 0);

        let disk = harness.disk.fork();
        disk.fail_reads(&segment_path(sequence), 5000, 10).unwrap();
        let found = look(&disk);
        assert!(entries(&found) > all - 10, "a sector of segment {sequence}: {} of {all}", entries(&found));
        assert!(!found.damage.is_empty());
    }
    let disk = harness.disk.fork();
    disk.remove(&segment_path(2)).unwrap();
    let found = look(&disk);
    assert!(found.damage.iter().any(|error| matches!(error, LogError::Missing { .. })));
    assert!(found.damage.iter().any(|error| matches!(error, LogError::Hole { group: 1, .. })), "{:?}", found.damage);
    assert_eq!(found.groups[&1].ranges().len(), 2);
    // Alone, and without a header: its own salt is left.
    let disk = harness.disk.fork();
    disk.remove(&segment_path(2)).unwrap();
    disk.remove(&segment_path(3)).unwrap();
    disk.flip_bit(&segment_path(1), 70, 0).unwrap();
    assert!(entries(&look(&disk)) > 10);
}
