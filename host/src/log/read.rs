//! Reading entries back: from the cache, or from the segments.
//!
//! A read plans under the lock and reads files outside of it. That is safe because a file that a reader
//! holds is never used again (`writer.rs`, giving up segments): its bytes stay what they were.
//!
//! Reads of files block the caller. They are for replicas that fell behind and for the replay at a
//! start; what is recent comes from the cache.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::types::Entry;
use crate::types::GroupId;

use super::NodeLog;
use super::error::LogError;
use super::record::Record;
use super::record::decode_entry;
use super::segment::SegmentFile;
use super::state::Sequence;
use super::state::Slot;

/// Entries that lie closer than this are read in one go, bytes.
const GAP_BYTES: u64 = 16 << 10;
/// The most that is read in one go, unless one entry is larger, bytes.
const SPAN_BYTES: u64 = 1 << 20;

/// Neighbours in a segment: from, to, and the entries between.
struct Span<'a> {
    file: &'a SegmentFile,
    from: u64,
    to: u64,
    entries: Vec<(u64, Slot)>,
}

impl NodeLog {
    /// The entries of `group` from index `start` to before `end`, without those that are purged or not there yet;
    /// at least one, if there is one, but no more than fit in `limit` bytes.
    pub(super) fn read_entries(
        &self,
        group: GroupId,
        start: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let mut on_disk = Vec::new();
        let mut files: BTreeMap<Sequence, Arc<SegmentFile>> = BTreeMap::new();
        let mut cached = Vec::new();
        {
            let mut state = self.shared.lock();
            let Some(of) = state.groups.get(&group) else { return Ok(Vec::new()) };
            let mut bytes = 0;
            for index in start.max(of.first)..end.min(of.next()) {
                let Some(slot) = of.slot(index) else { break };
                bytes += slot.length as usize;
                if bytes > limit && (!on_disk.is_empty() || !cached.is_empty()) {
                    break;
                }
                match of.cached(index) {
                    Some(entry) => cached.push(entry.clone()),
                    None => on_disk.push((index, *slot)),
                }
            }
            for (_, slot) in &on_disk {
                if !files.contains_key(&slot.segment)
                    && let Some(segment) = state.segments.get(&slot.segment)
                {
                    files.insert(slot.segment, segment.file.clone());
                }
            }
            state.stats.entries_read += on_disk.len() as u64;
        }
        let mut entries = Vec::with_capacity(on_disk.len() + cached.len());
        for span in spans(&on_disk, &files) {
            read_span(group, &span, &mut entries)?;
        }
        entries.append(&mut cached);
        Ok(entries)
    }
}

fn spans<'a>(slots: &[(u64, Slot)], files: &'a BTreeMap<Sequence, Arc<SegmentFile>>) -> Vec<Span<'a>> {
    let mut spans: Vec<Span<'_>> = Vec::new();
    for (index, slot) in slots {
        let Some(file) = files.get(&slot.segment) else { continue };
        let (from, to) = (u64::from(slot.offset), u64::from(slot.offset) + u64::from(slot.length));
        match spans.last_mut() {
            Some(span)
                if span.file.header.sequence == file.header.sequence
                    && (span.to..=span.to + GAP_BYTES).contains(&from)
                    && to - span.from <= SPAN_BYTES =>
            {
                span.to = to;
                span.entries.push((*index, *slot));
            }
            _ => spans.push(Span { file, from, to, entries: vec![(*index, *slot)] }),
        }
    }
    spans
}

fn read_span(group: GroupId, span: &Span<'_>, entries: &mut Vec<Entry>) -> Result<(), LogError> {
    let bytes = read_bytes(span.file, span.from, (span.to - span.from) as usize)?;
    for (index, slot) in &span.entries {
        let from = (u64::from(slot.offset) - span.from) as usize;
        let record = bytes.get(from..from + slot.length as usize).unwrap_or_default();
        let payload = check_record(span.file, group, *index, slot, record)?;
        entries.push(decode_entry(group, *index, slot.term, payload)?);
    }
    Ok(())
}

fn read_bytes(file: &SegmentFile, offset: u64, length: usize) -> Result<Vec<u8>, LogError> {
    let mut bytes = vec![0; length];
    let read = file.file.read_exact_at(offset, &mut bytes);
    read.map_err(|error| LogError::corrupt(&file.path, offset, format!("it cannot be read: {error}")))?;
    Ok(bytes)
}

/// The payload of the record, if it is the one that the index promises.
fn check_record<'a>(
    file: &SegmentFile,
    group: GroupId,
    index: u64,
    slot: &Slot,
    bytes: &'a [u8],
) -> Result<&'a [u8], LogError> {
    let damaged = |what: String| {
        let what = format!("entry {index} of group {group} was here; {what}");
        LogError::corrupt(&file.path, u64::from(slot.offset), what)
    };
    match Record::decode(bytes) {
        Ok((Record::Entry { group: of, index: at, term, payload, .. }, _))
            if (of, at, term) == (group, index, slot.term) =>
        {
            Ok(payload)
        }
        Ok((other, _)) => Err(damaged(format!("now there is {other:?}"))),
        Err(error) => Err(damaged(error.to_string())),
    }
}

/// The bytes of an entry's record.
pub(super) fn read_record(file: &SegmentFile, group: GroupId, index: u64, slot: &Slot) -> Result<Vec<u8>, LogError> {
    let bytes = read_bytes(file, u64::from(slot.offset), slot.length as usize)?;
    check_record(file, group, index, slot, &bytes)?;
    Ok(bytes)
}
