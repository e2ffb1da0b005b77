//! What the fuzzers do with bytes. Here and not in the targets, because it needs to make valid checksums: a
//! fuzzer would not find them, and everything behind them would stay untested.

use std::path::Path;
use std::sync::Arc;

use crate::codec;
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::types::LeaderId;
use crate::types::Payload;
use crate::types::Vote;

use openraft::vote::RaftLeaderId;

use super::LogOptions;
use super::NodeLog;
use super::error::LogError;
use super::record::Record;
use super::segment::BATCH_HEADER_BYTES;
use super::segment::FIRST_BATCH;
use super::segment::SegmentHeader;
use super::segment::seal_batch;
use super::segment::segment_name;

const DIR: &str = "/log";
const SIZE: u64 = 16 << 10;

/// Reads `bytes` as a record. What is read must be written as the same bytes.
pub fn record(bytes: &[u8]) {
    if let Ok((record, length)) = Record::decode(bytes) {
        let mut again = Vec::new();
        record.encode_into(&mut again);
        assert_eq!(bytes.get(..length), Some(again.as_slice()), "{record:?} has two encodings");
    }
}

/// Opens a log of one segment that holds records as `bytes` say, with valid checksums, and then some
/// damage. The answer is a log or an error, never a panic; and what an opened log shows, it shows again.
pub fn segment(bytes: &[u8]) {
    let disk = SimDisk::new();
    let _ = Disk::create_dir_all(&disk, Path::new(DIR));
    if let Ok(file) = disk.create(&Path::new(DIR).join(segment_name(1))) {
        let _ = file.write_all_at(0, &segment_of(bytes));
    }
    let shown = show(&disk);
    if shown.is_ok() {
        assert_eq!(shown.ok(), show(&disk).ok(), "opening the log again shows something else");
    }
}

/// A line for each group.
fn show(disk: &SimDisk) -> Result<Vec<String>, LogError> {
    let options = LogOptions { segment_bytes: SIZE, ..Default::default() };
    let (log, _) = NodeLog::open(Arc::new(disk.clone()), Path::new(DIR), options, Arc::new(|_| {}))?;
    let line = |group| {
        let entries = log.read_entries(group, 0, u64::MAX, usize::MAX);
        let state = log.shared.lock();
        let of = state.groups.get(&group);
        let marks = of.map(|of| (of.vote, of.purged, of.committed, of.first, of.slots.len()));
        format!("{group}: {marks:?} {:?}", entries.map_err(|error| error.to_string()))
    };
    Ok(log.groups().into_iter().map(line).collect())
}

/// Takes small numbers off the front of the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Mostly small, sometimes at the edges of the range.
    fn number(&mut self) -> Option<u64> {
        Some(match self.byte()? {
            255 => u64::MAX,
            254 => u64::MAX / 2,
            253 => u64::from(u32::MAX),
            small => u64::from(small % 16),
        })
    }
}

fn segment_of(bytes: &[u8]) -> Vec<u8> {
    let mut input = Input(bytes);
    let header = SegmentHeader { sequence: 1, salt: 3, size: SIZE, start: 1, previous_end: 0, first_batch: 1 };
    let mut segment = header.encode();
    segment.resize(FIRST_BATCH as usize, 0);
    let damage: Vec<(u8, u8, u8)> = (0..input.byte().unwrap_or(0) % 3)
        .filter_map(|_| Some((input.byte()?, input.byte()?, input.byte()?)))
        .collect();
    for number in 1.. {
        let offset = segment.len() as u64;
        let mut batch = vec![0; BATCH_HEADER_BYTES];
        let mut records = 0;
        let wanted = input.byte().unwrap_or(0) % 5;
        while records < u32::from(wanted) && put_record(&mut input, &mut batch).is_some() {
            records += 1;
        }
        seal_batch(&mut batch, &header, offset, number, records);
        if wanted == 0 || segment.len() + batch.len() > SIZE as usize {
            break;
        }
        segment.append(&mut batch);
    }
    segment.resize(SIZE as usize, 0);
    for (high, low, with) in damage {
        let at = usize::from(high) * 64 + usize::from(low) % 64;
        if let Some(byte) = segment.get_mut(at) {
            *byte ^= with;
        }
    }
    segment
}

fn put_record(input: &mut Input<'_>, out: &mut Vec<u8>) -> Option<()> {
    let kind = input.byte()?;
    let group = u64::from(input.byte()? % 3);
    let blank = codec::encode(&Payload::Blank).ok()?;
    let vote = codec::encode(&Vote { leader_id: LeaderId::new(1, 1), committed: false }).ok()?;
    let record = match kind % 11 {
        0..=2 => Record::Entry { group, index: input.number()?, term: input.number()?, moved: false, payload: &blank },
        3 => Record::Entry { group, index: input.number()?, term: input.number()?, moved: true, payload: &blank },
        4 => Record::Vote { group, vote: vote.get(..usize::from(input.byte()?).min(vote.len()))? },
        5 => Record::Truncate { group, from: input.number()? },
        6 => Record::Purge { group, index: input.number()?, term: input.number()? },
        7 => Record::Committed { group, index: input.number()?, term: input.number()? },
        8 => Record::Removed { group },
        9 => Record::Start { sequence: input.number()? },
        _ => Record::Closed,
    };
    record.encode_into(out);
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    /// A first round of fuzzing on every test run: enough to notice a panic that is easy to reach.
    #[test]
    fn random_records_and_damage_never_panic() {
        let rounds = std::env::var("STATEHOUSE_SEEDS").map_or(4000, |seeds| seeds.parse().unwrap());
        let mut state = 1_u64;
        for _ in 0..rounds {
            let mut byte = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            let bytes: Vec<u8> = (0..200).map(|_| byte()).collect();
            super::segment(&bytes);
            super::record(&bytes);
        }
    }
}
