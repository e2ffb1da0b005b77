//! Records: what a batch of the log consists of. Drawn in `docs/formats.md`.
//!
//! Invariants:
//!
//! - A record's bytes depend on its content alone, not on where it lies, so that they can be made
//!   before their place is known and moved to another segment as they are.
//! - What ties a record to its place, and keeps the leftovers of a recycled segment from being read
//!   as current, is the checksum of the batch around it (`segment.rs`).

use openraft::vote::RaftLeaderId;

use crate::codec;
use crate::types::Entry;
use crate::types::GroupId;
use crate::types::LeaderId;
use crate::types::LogId;
use crate::types::Payload;

use super::error::LogError;

/// The largest encoded payload of an entry, bytes. Half of what the codec would read back.
pub const MAX_PAYLOAD_BYTES: usize = 128 << 20;

/// Length and checksum, which come before a record's body.
pub const PREFIX_BYTES: usize = 8;

const KIND_ENTRY: u8 = 1;
const KIND_MOVED: u8 = 2;
const KIND_VOTE: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;
const KIND_COMMITTED: u8 = 6;
const KIND_REMOVED: u8 = 7;
const KIND_START: u8 = 8;
const KIND_OPENED: u8 = 9;
const KIND_CLOSED: u8 = 10;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A log entry, the next of its group; or, if `moved`, a copy of an older one whose segment is
    /// given up.
    Entry {
        /// The group.
        group: GroupId,
        /// The entry's index.
        index: u64,
        /// The entry's term.
        term: u64,
        /// Whether it is a copy.
        moved: bool,
        /// [`Payload`], encoded.
        payload: &'a [u8],
    },
    /// The group's vote, encoded.
    Vote {
        /// The group.
        group: GroupId,
        /// [`crate::types::Vote`], encoded.
        vote: &'a [u8],
    },
    /// The group's entries from `from` on are gone.
    Truncate {
        /// The group.
        group: GroupId,
        /// The first index that is gone.
        from: u64,
    },
    /// The group's entries up to and including this one are gone: a snapshot covers them.
    Purge {
        /// The group.
        group: GroupId,
        /// The last index that is gone.
        index: u64,
        /// Its term.
        term: u64,
    },
    /// The group's entries up to and including this one are committed.
    Committed {
        /// The group.
        group: GroupId,
        /// The last committed index.
        index: u64,
        /// Its term.
        term: u64,
    },
    /// The group is gone, with all that was said of it before.
    Removed {
        /// The group.
        group: GroupId,
    },
    /// Segments before this one are not part of the log any more.
    Start {
        /// The first segment that is.
        sequence: u64,
    },
    /// The log was opened here.
    Opened,
    /// The log was closed in order: all before was synced.
    Closed,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end inside it.
    #[error("the record is cut short")]
    Short,
    /// The checksum does not match.
    #[error("the record's checksum does not match")]
    Checksum,
    /// A kind this program does not know.
    #[error("record kind {0} is unknown; a newer program wrote it")]
    Kind(u8),
    /// The body has the wrong length for its kind.
    #[error("a record of kind {0} has the wrong length")]
    Body(u8),
}

/// The little-endian number at `at`, if the bytes reach that far.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// The little-endian number at `at`, if the bytes reach that far.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

/// Appends length, checksum and what `body` appends. Returns the record's whole length.
fn frame(
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), codec::CodecError>,
) -> Result<usize, codec::CodecError> {
    let at = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    if let Err(error) = body(out) {
        out.truncate(at);
        return Err(error);
    }
    let length = out.len() - at;
    // The checksum covers the length too, or a damaged length could frame another body.
    let body_length = (length - PREFIX_BYTES) as u32;
    let checksum = checksum_of(body_length, out.get(at + PREFIX_BYTES..).unwrap_or_default());
    if let Some(prefix) = out.get_mut(at..at + PREFIX_BYTES) {
        let (first, second) = prefix.split_at_mut(4);
        first.copy_from_slice(&body_length.to_le_bytes());
        second.copy_from_slice(&checksum.to_le_bytes());
    }
    Ok(length)
}

fn checksum_of(body_length: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&body_length.to_le_bytes()), body)
}

impl<'a> Record<'a> {
    /// Appends the record's bytes and returns their number.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> usize {
        let body = |out: &mut Vec<u8>| {
            let mut numbers = |kind: u8, numbers: &[u64]| {
                out.push(kind);
                for number in numbers {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            };
            match *self {
                Record::Entry { group, index, term, moved, payload } => {
                    numbers(if moved { KIND_MOVED } else { KIND_ENTRY }, &[group, index, term]);
                    out.extend_from_slice(payload);
                }
                Record::Vote { group, vote } => {
                    numbers(KIND_VOTE, &[group]);
                    out.extend_from_slice(vote);
                }
                Record::Truncate { group, from } => numbers(KIND_TRUNCATE, &[group, from]),
                Record::Purge { group, index, term } => numbers(KIND_PURGE, &[group, index, term]),
                Record::Committed { group, index, term } => numbers(KIND_COMMITTED, &[group, index, term]),
                Record::Removed { group } => numbers(KIND_REMOVED, &[group]),
                Record::Start { sequence } => numbers(KIND_START, &[sequence]),
                Record::Opened => numbers(KIND_OPENED, &[]),
                Record::Closed => numbers(KIND_CLOSED, &[]),
            }
            Ok(())
        };
        frame(out, body).unwrap_or(0)
    }

    /// The record at the start of `bytes`, and how many bytes it has.
    pub fn decode(bytes: &'a [u8]) -> Result<(Record<'a>, usize), RecordError> {
        let body_length = u32_at(bytes, 0).ok_or(RecordError::Short)?;
        let checksum = u32_at(bytes, 4).ok_or(RecordError::Short)?;
        let length = PREFIX_BYTES.checked_add(body_length as usize).ok_or(RecordError::Short)?;
        let body = bytes.get(PREFIX_BYTES..length).ok_or(RecordError::Short)?;
        if checksum_of(body_length, body) != checksum {
            return Err(RecordError::Checksum);
        }
        let (&kind, body) = body.split_first().ok_or(RecordError::Body(0))?;
        let wrong = || RecordError::Body(kind);
        let number = |place: usize| u64_at(body, place * 8).ok_or_else(wrong);
        let exactly = |numbers: usize| if body.len() == numbers * 8 { Ok(()) } else { Err(wrong()) };
        let after = |numbers: usize| body.get(numbers * 8..).ok_or_else(wrong);
        let record = match kind {
            KIND_ENTRY | KIND_MOVED => Record::Entry {
                group: number(0)?,
                index: number(1)?,
                term: number(2)?,
                moved: kind == KIND_MOVED,
                payload: after(3)?,
            },
            KIND_VOTE => Record::Vote { group: number(0)?, vote: after(1)? },
            KIND_TRUNCATE => exactly(2).and(Ok(Record::Truncate { group: number(0)?, from: number(1)? }))?,
            KIND_PURGE => {
                exactly(3).and(Ok(Record::Purge { group: number(0)?, index: number(1)?, term: number(2)? }))?
            }
            KIND_COMMITTED => {
                exactly(3).and(Ok(Record::Committed { group: number(0)?, index: number(1)?, term: number(2)? }))?
            }
            KIND_REMOVED => exactly(1).and(Ok(Record::Removed { group: number(0)? }))?,
            KIND_START => exactly(1).and(Ok(Record::Start { sequence: number(0)? }))?,
            KIND_OPENED => exactly(0).and(Ok(Record::Opened))?,
            KIND_CLOSED => exactly(0).and(Ok(Record::Closed))?,
            unknown => return Err(RecordError::Kind(unknown)),
        };
        Ok((record, length))
    }
}

/// Appends the record of `entry` without copying its payload first. Returns the record's length.
pub(super) fn encode_entry(group: GroupId, entry: &Entry, out: &mut Vec<u8>) -> Result<usize, LogError> {
    let index = entry.log_id.index;
    let at = out.len();
    let length = frame(out, |out| {
        out.push(KIND_ENTRY);
        for number in [group, index, entry.log_id.leader_id.term] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        codec::encode_into(&entry.payload, out)
    })
    .map_err(|error| LogError::Codec { group, what: format!("entry {index}: {error}") })?;
    if length > MAX_PAYLOAD_BYTES {
        out.truncate(at);
        return Err(LogError::TooLarge { group, index, bytes: length, limit: MAX_PAYLOAD_BYTES });
    }
    Ok(length)
}

/// The entry of a record's parts.
pub(super) fn decode_entry(group: GroupId, index: u64, term: u64, payload: &[u8]) -> Result<Entry, LogError> {
    let payload: Payload =
        codec::decode(payload).map_err(|error| LogError::Codec { group, what: format!("entry {index}: {error}") })?;
    Ok(Entry { log_id: log_id(term, index), payload })
}

/// `(term, index)`.
pub fn log_id(term: u64, index: u64) -> LogId {
    // Of a leader's id only the term stays in a log id, so the node given here is not kept.
    LogId { leader_id: LeaderId::new(term, 0).to_committed(), index }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn one_of_each() -> Vec<Record<'static>> {
        vec![
            Record::Entry { group: 1, index: 2, term: 3, moved: false, payload: b"payload" },
            Record::Entry { group: 1, index: 2, term: 3, moved: true, payload: b"" },
            Record::Vote { group: u64::MAX, vote: b"vote" },
            Record::Truncate { group: 4, from: 0 },
            Record::Purge { group: 5, index: 6, term: 7 },
            Record::Committed { group: 8, index: 9, term: 10 },
            Record::Removed { group: 11 },
            Record::Start { sequence: 12 },
            Record::Opened,
            Record::Closed,
        ]
    }

    #[test]
    fn every_kind_reads_back_as_it_was_written() {
        let mut bytes = Vec::new();
        for record in one_of_each() {
            let at = bytes.len();
            let length = record.encode_into(&mut bytes);
            assert_eq!(Record::decode(&bytes[at..]), Ok((record, length)));
        }
    }

    #[test]
    fn no_flipped_bit_and_no_shortening_goes_unseen() {
        for record in one_of_each() {
            let mut bytes = Vec::new();
            record.encode_into(&mut bytes);
            for cut in 0..bytes.len() {
                assert!(Record::decode(&bytes[..cut]).is_err(), "{record:?} cut to {cut} bytes");
            }
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(&damaged).is_err(), "{record:?} with bit {bit} flipped");
            }
        }
    }

    #[test]
    fn an_entry_is_the_same_bytes_whichever_way_it_is_written() {
        let entry = Entry { log_id: log_id(3, 2), payload: Payload::Blank };
        let mut direct = Vec::new();
        encode_entry(1, &entry, &mut direct).unwrap();
        let (record, _) = Record::decode(&direct).unwrap();
        let Record::Entry { group, index, term, moved: false, payload } = record else { panic!("{record:?}") };
        let mut again = Vec::new();
        record.encode_into(&mut again);
        assert_eq!(direct, again);
        assert_eq!(decode_entry(group, index, term, payload).unwrap(), entry);
    }
}
