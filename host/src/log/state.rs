//! What the log knows in memory: per group its vote, marks and entry index, the cache of recent
//! entries, and the operations that wait to be written.
//!
//! Invariants:
//!
//! - This is the *visible* state: an operation takes effect here as it is submitted, and in the same
//!   order it goes to the queue and to disk. Visible is therefore what disk will say once the
//!   queue is written.
//! - The entries of a group are contiguous: index `first + n` is at place `n` of `slots`.
//! - The cache of a group is a suffix of its entries. An entry without a place on disk, or with one that
//!   is not synced yet, is in the cache and is not evicted.
//! - `live_bytes` of a segment is the sum of the lengths of the slots that point into it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use crate::tally::Tally;
use crate::types::Entry;
use crate::types::GroupId;
use crate::types::LogId;
use crate::types::Vote;

use super::error::LogError;
use super::record::log_id;
use super::segment::SegmentFile;
use super::stats::LogStats;

/// A segment's sequence as the index keeps it: 2^32 segments of 64 MiB are 256 PiB written.
pub(super) type Sequence = u32;

/// Where an entry lies. 24 bytes, the log's memory for each entry that is not purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) term: u64,
    /// 0 until the entry has a place.
    pub(super) segment: Sequence,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// A recent entry, kept decoded.
pub(super) struct Cached {
    /// Counts the appended entries of the node; tells an entry from one that replaced it.
    stamp: u64,
    entry: Entry,
    bytes: usize,
}

/// A group's part of the log.
#[derive(Default)]
pub(super) struct GroupState {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    /// The segments that hold the newest record of each of the three; 0 while there is none.
    pub(super) vote_in: Sequence,
    pub(super) purged_in: Sequence,
    pub(super) committed_in: Sequence,
    /// The index of the first slot.
    pub(super) first: u64,
    pub(super) slots: VecDeque<Slot>,
    cache: VecDeque<Cached>,
}

/// Who is told when an operation is durable.
pub(super) type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// An operation in the queue: its encoded records and what happens when it is written.
pub(super) struct Operation {
    pub(super) group: GroupId,
    pub(super) bytes: Vec<u8>,
    pub(super) records: u32,
    pub(super) effect: Effect,
    pub(super) done: Option<Done>,
}

/// What getting a place on disk means for the visible state.
pub(super) enum Effect {
    /// The entries from this index on, with stamps counting from `stamp`, get their slots.
    Entries {
        first: u64,
        stamp: u64,
        lengths: Vec<u32>,
    },
    Vote,
    Purge,
    /// Nothing refers to where a truncation or a removal lies.
    Nothing,
}

/// A segment that belongs to the log.
pub(super) struct SegmentState {
    pub(super) file: Arc<SegmentFile>,
    pub(super) live_bytes: u64,
}

/// See the module.
pub(super) struct State {
    pub(super) groups: BTreeMap<GroupId, GroupState>,
    pub(super) segments: BTreeMap<Sequence, SegmentState>,
    pub(super) queue: VecDeque<Operation>,
    pub(super) queued_bytes: usize,
    /// Groups whose committed mark is newer than the one on disk.
    pub(super) committed_waiting: BTreeSet<GroupId>,
    /// The next entry's stamp; entries with stamps below `durable_stamp` are synced.
    pub(super) next_stamp: u64,
    pub(super) durable_stamp: u64,
    /// Groups by the stamp of their oldest cached entry: the eviction order.
    cache_order: BTreeMap<u64, GroupId>,
    pub(super) cached_bytes: usize,
    cache_limit: usize,
    /// Set once, at the first fatal error.
    pub(super) stopped: Option<LogError>,
    pub(super) closing: bool,
    /// Whether its node is leaving: no write waits for room any more.
    pub(super) leaving: bool,
    pub(super) waker: Option<Waker>,
    pub(super) stats: LogStats,
    /// How long syncs took, microseconds, for whoever looks at it.
    pub(super) sync_times: Tally,
}

/// What a cached entry occupies besides its payload, roughly.
const CACHED_OVERHEAD_BYTES: usize = 160;

impl GroupState {
    /// One past the last index.
    pub(super) fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The index that the next appended entry must have; any will do in a group that never had one.
    pub(super) fn expected(&self) -> Option<u64> {
        match self.slots.is_empty() {
            true => self.purged.map(|purged| purged.index + 1),
            false => Some(self.next()),
        }
    }

    /// The last entry, or what was purged last when there is none.
    pub(super) fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(log_id(slot.term, self.next() - 1)),
            None => self.purged,
        }
    }

    /// See [`GroupLog::terms`](super::GroupLog::terms).
    pub(super) fn terms(&self) -> Option<(u64, u64)> {
        let last = self.last()?.leader_id.term;
        Some((self.slots.front().map_or(last, |slot| slot.term), last))
    }

    /// See [`GroupLog::too_much`](super::GroupLog::too_much).
    pub(super) fn too_much(&self, upto: u64, kept: u64) -> Option<u64> {
        let until = usize::try_from(upto.checked_sub(self.first)?.saturating_add(1)).ok()?;
        let mut bytes = 0;
        let too_much = self.slots.iter().enumerate().take(until).rev().find(|(_, slot)| {
            bytes += u64::from(slot.length);
            bytes > kept
        });
        too_much.map(|(position, _)| self.first.saturating_add(position as u64))
    }

    pub(super) fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// Whether what follows `covered` is to be appended to this log: it has that entry, or had it when it was purged.
    pub(super) fn joins(&self, covered: &LogId) -> bool {
        let purged = self.purged.is_some_and(|purged| purged.index >= covered.index);
        purged || self.slot(covered.index).is_some_and(|slot| slot.term == covered.leader_id.term)
    }

    /// Whether the entry that the committed mark is about was written, be it with the batch that is being made.
    pub(super) fn has_placed_committed(&self) -> bool {
        self.committed.and_then(|committed| self.slot(committed.index)).is_some_and(|slot| slot.segment != 0)
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    fn cache_first(&self) -> u64 {
        self.next() - self.cache.len() as u64
    }

    pub(super) fn cached(&self, index: u64) -> Option<&Entry> {
        let place = usize::try_from(index.checked_sub(self.cache_first())?).ok()?;
        self.cache.get(place).map(|cached| &cached.entry)
    }

    fn stamp_of(&self, index: u64) -> Option<u64> {
        let place = usize::try_from(index.checked_sub(self.cache_first())?).ok()?;
        self.cache.get(place).map(|cached| cached.stamp)
    }
}

impl State {
    pub(super) fn new(cache_limit: usize) -> Self {
        Self {
            groups: BTreeMap::new(),
            segments: BTreeMap::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            committed_waiting: BTreeSet::new(),
            next_stamp: 1,
            durable_stamp: 1,
            cache_order: BTreeMap::new(),
            cached_bytes: 0,
            cache_limit,
            stopped: None,
            closing: false,
            leaving: false,
            waker: None,
            stats: LogStats::default(),
            sync_times: Tally::default(),
        }
    }

    /// Whether operations are accepted, or the error that says why not.
    pub(super) fn check(&self) -> Result<(), LogError> {
        match &self.stopped {
            Some(LogError::Closed) => Err(LogError::Closed),
            Some(error) => Err(LogError::Stopped(Arc::new(error.clone()))),
            None if self.closing => Err(LogError::Closed),
            None => Ok(()),
        }
    }

    /// Adds entries to a group. `lengths` are those of their encoded records.
    pub(super) fn append(
        &mut self,
        group: GroupId,
        entries: Vec<Entry>,
        lengths: impl Iterator<Item = u32>,
    ) -> Result<(), LogError> {
        let state = self.groups.entry(group).or_default();
        let mut expected = state.expected();
        for entry in &entries {
            let found = entry.log_id.index;
            match expected {
                Some(expected) if expected != found => return Err(LogError::Gap { group, expected, found }),
                _ => expected = Some(found + 1),
            }
        }
        for (entry, length) in entries.into_iter().zip(lengths) {
            if state.slots.is_empty() {
                state.first = entry.log_id.index;
            }
            let stamp = self.next_stamp;
            self.next_stamp += 1;
            if state.cache.is_empty() {
                self.cache_order.insert(stamp, group);
            }
            let bytes = length as usize + CACHED_OVERHEAD_BYTES;
            self.cached_bytes += bytes;
            state.slots.push_back(Slot { term: entry.log_id.leader_id.term, segment: 0, offset: 0, length });
            state.cache.push_back(Cached { stamp, entry, bytes });
        }
        Ok(())
    }

    /// Drops the group's entries from index `from` on.
    pub(super) fn truncate(&mut self, group: GroupId, from: u64) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        while state.next() > from {
            let Some(slot) = state.slots.pop_back() else { return };
            release(&mut self.segments, slot);
            if let Some(cached) = state.cache.pop_back() {
                self.cached_bytes -= cached.bytes;
                if state.cache.is_empty() {
                    self.cache_order.remove(&cached.stamp);
                }
            }
        }
    }

    /// Drops the group's entries up to `upto`, and remembers that.
    pub(super) fn purge(&mut self, group: GroupId, upto: LogId) {
        let state = self.groups.entry(group).or_default();
        while state.first <= upto.index {
            let Some(slot) = state.slots.pop_front() else { break };
            release(&mut self.segments, slot);
            state.first += 1;
            if state.cache.len() > state.slots.len()
                && let Some(cached) = state.cache.pop_front()
            {
                self.cached_bytes -= cached.bytes;
                self.cache_order.remove(&cached.stamp);
                if let Some(front) = state.cache.front() {
                    self.cache_order.insert(front.stamp, group);
                }
            }
        }
        if state.slots.is_empty() {
            state.first = upto.index + 1;
        }
        state.purged = state.purged.max(Some(upto));
    }

    /// Forgets a group.
    pub(super) fn remove(&mut self, group: GroupId) {
        self.truncate(group, 0);
        self.groups.remove(&group);
        self.committed_waiting.remove(&group);
    }

    /// Puts an operation in the queue.
    pub(super) fn push(&mut self, operation: Operation) {
        self.queued_bytes += operation.bytes.len();
        self.queue.push_back(operation);
    }

    /// Gives an entry that was just written its place, unless it was truncated or purged meanwhile.
    pub(super) fn place(&mut self, group: GroupId, index: u64, stamp: u64, segment: Sequence, offset: u32) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        if state.stamp_of(index) != Some(stamp) {
            return;
        }
        if let Some(slot) = state.slot_mut(index) {
            slot.segment = segment;
            slot.offset = offset;
            if let Some(segment) = self.segments.get_mut(&segment) {
                segment.live_bytes += u64::from(slot.length);
            }
        }
    }

    /// Gives an entry another place, if it is still the one that was at `old`.
    pub(super) fn move_slot(&mut self, group: GroupId, index: u64, old: Slot, segment: Sequence, offset: u32) -> bool {
        let Some(slot) = self.groups.get_mut(&group).and_then(|state| state.slot_mut(index)) else { return false };
        if *slot != old {
            return false;
        }
        slot.segment = segment;
        slot.offset = offset;
        release(&mut self.segments, old);
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live_bytes += u64::from(old.length);
        }
        true
    }

    /// Shrinks the cache to its limit, oldest entries of the node first, sparing what is not synced.
    pub(super) fn evict(&mut self) {
        while self.cached_bytes > self.cache_limit {
            let Some((&stamp, &group)) = self.cache_order.first_key_value() else { return };
            if stamp >= self.durable_stamp {
                return;
            }
            self.cache_order.remove(&stamp);
            let Some(state) = self.groups.get_mut(&group) else { continue };
            if let Some(cached) = state.cache.pop_front() {
                self.cached_bytes -= cached.bytes;
            }
            if let Some(front) = state.cache.front() {
                self.cache_order.insert(front.stamp, group);
            }
        }
    }

    /// The oldest segment that the log still needs, were it only for entries.
    pub(super) fn first_needed(&self) -> Option<Sequence> {
        let last = self.segments.last_key_value().map(|(sequence, _)| *sequence)?;
        let live = self.segments.iter().find(|(_, segment)| segment.live_bytes > 0);
        Some(live.map_or(last, |(sequence, _)| *sequence))
    }

    /// Bytes of entries that are not purged or replaced, in all segments.
    pub(super) fn live_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.live_bytes).sum()
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

fn release(segments: &mut BTreeMap<Sequence, SegmentState>, slot: Slot) {
    if let Some(segment) = segments.get_mut(&slot.segment) {
        segment.live_bytes = segment.live_bytes.saturating_sub(u64::from(slot.length));
    }
}
