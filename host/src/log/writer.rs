//! The writer: takes what is queued, writes it as one batch, syncs it, tells everyone in it.
//!
//! Invariants:
//!
//! - Batches go to disk in the order of the queue, one at a time: the next is written after the one
//!   before it was synced. `segment.rs` builds on that.
//! - The start of the log moves only in a batch that empties the queue. Then the visible state, from which
//!   it is computed what old segments are still needed for, is exactly what this batch makes durable.
//! - A segment is given up only after the batch that moved the start past it was synced. What was still
//!   current in it (votes, marks) is in that batch again; its entries are purged, replaced or moved.
//! - After an error nothing is written any more. That there is no room for the next segment is not one: nothing of a batch
//!   was taken by then, so what is queued waits until there is.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use crate::codec;
use crate::types::GroupId;

use super::LogOptions;
use super::Shared;
use super::error::LogError;
use super::files::Files;
use super::files::sync;
use super::files::write_error;
use super::record::Record;
use super::segment::BATCH_HEADER_BYTES;
use super::segment::FIRST_BATCH;
use super::segment::SECTOR_BYTES;
use super::segment::SegmentFile;
use super::segment::SegmentHeader;
use super::segment::end_mark;
use super::segment::seal_batch;
use super::state::Done;
use super::state::Effect;
use super::state::GroupState;
use super::state::Operation;
use super::state::SegmentState;
use super::state::Sequence;
use super::state::Slot;
use super::state::State;

/// How much of an old segment is copied forward with one batch, bytes.
const MOVE_BYTES: usize = 256 << 10;

/// What a batch leaves of its segment, bytes: the record that closes the log, and a sector for the end mark.
const KEPT_BYTES: u64 = 16 + SECTOR_BYTES;

/// How many batches pass before the making of a spare is tried again.
const SPARE_RETRY_BATCHES: u64 = 8;

/// See the module.
pub(super) struct Writer {
    pub(super) current: Arc<SegmentFile>,
    /// Where the next batch goes.
    pub(super) position: u64,
    pub(super) next_batch: u64,
    /// The first segment of the log, as disk knows it.
    pub(super) start: u64,
    /// Unused files of the usual size.
    pub(super) spares: Vec<PathBuf>,
    pub(super) buffer: Vec<u8>,
    pub(super) in_flight: Option<InFlight>,
    /// Whether the tail mark is at `position`.
    pub(super) marked: bool,
    /// When the making of a spare that failed is tried again, as a batch number.
    pub(super) spare_retry_batch: u64,
    /// Entries of the oldest segment that are still to be copied forward.
    pub(super) to_move: VecDeque<(GroupId, u64, Slot)>,
}

/// What came of a try to write.
pub(super) enum Wrote {
    /// A batch: [`Writer::sync`] and [`Writer::complete`] must follow before the next one.
    Batch,
    /// There was nothing to write.
    Nothing,
    /// There is no room for the next segment. All that is queued is as before.
    NoRoom(LogError),
}

/// A batch that is written and not synced.
pub(super) struct InFlight {
    bytes: u64,
    operations: u64,
    done: Vec<Done>,
    stamp: u64,
    start: Option<u64>,
    /// Entries of which the batch has copies, and where those lie. Readers go on with the originals
    /// until the copies are synced.
    moved: Vec<(GroupId, u64, Slot, u32)>,
}

/// An entry that is to be copied out of an old segment.
struct Move {
    group: GroupId,
    index: u64,
    slot: Slot,
    record: Vec<u8>,
}

/// What goes into a batch.
#[derive(Default)]
struct Batch {
    operations: Vec<Operation>,
    operation_bytes: usize,
    /// Records that come after those of the operations.
    extra: Vec<u8>,
    records: u32,
    start: Option<u64>,
    stamp: u64,
    moved: Vec<(GroupId, u64, Slot, u32)>,
}

impl Batch {
    fn bytes(&self) -> usize {
        BATCH_HEADER_BYTES + self.operation_bytes + self.extra.len()
    }

    fn add(&mut self, record: &Record<'_>) {
        record.encode_into(&mut self.extra);
        self.records += 1;
    }
}

impl Writer {
    fn sequence(&self) -> Sequence {
        self.current.header.sequence as Sequence
    }

    fn room(&self) -> u64 {
        self.current.header.size.saturating_sub(self.position)
    }

    /// Writes a batch of what is queued; `last`: and the record that closes the log, which does not wait for room.
    pub(super) fn write(&mut self, shared: &Shared, last: bool) -> Result<Wrote, LogError> {
        // Recovery builds on it: of two batches that are not synced, the first might look damaged.
        assert!(self.in_flight.is_none(), "a batch is written before the one before it was synced");
        let mut batch = Batch::default();
        let result = self.try_write(shared, last, &mut batch);
        if let Err(error) = &result {
            let done = batch.operations.into_iter().filter_map(|operation| operation.done).collect();
            shared.stop(error, done);
        }
        result
    }

    /// Whether to wait: not when the node leaves.
    fn wait_for_room(&self, shared: &Shared, error: &LogError) -> bool {
        let mut state = shared.lock();
        if state.leaving {
            return false;
        }
        if !std::mem::replace(&mut state.stats.waits_for_room, true) {
            tracing::error!(%error, "the log waits for disk space, and all writes with it; nothing is lost");
        }
        true
    }

    fn try_write(&mut self, shared: &Shared, last: bool, batch: &mut Batch) -> Result<Wrote, LogError> {
        let wanted = {
            let state = shared.lock();
            if state.stopped.is_some() || (state.queue.is_empty() && !last) {
                return Ok(Wrote::Nothing);
            }
            let first = state.queue.front().map_or(0, |operation| operation.bytes.len());
            let limit = shared.options.max_batch_bytes.max(first);
            state.queued_bytes.min(limit) + BATCH_HEADER_BYTES + KEPT_BYTES as usize
        };
        if self.room() < wanted as u64 {
            match self.rotate(shared, wanted as u64) {
                Err(error @ LogError::DiskFull { .. }) if !last && self.wait_for_room(shared, &error) => {
                    return Ok(Wrote::NoRoom(error));
                }
                rotated => rotated?,
            }
        }
        let moves = self.read_moves(shared)?;
        {
            let mut state = shared.lock();
            self.take_operations(&mut state, &shared.options, batch);
            self.add_committed(&mut state, batch);
            self.add_moves(&state, moves, batch);
            if state.queue.is_empty() {
                self.add_start(&mut state, batch);
            }
            if last {
                batch.add(&Record::Closed);
            }
            batch.stamp = batch.stamp.max(state.durable_stamp);
        }
        if batch.records == 0 {
            return Ok(Wrote::Nothing);
        }
        self.buffer.clear();
        self.buffer.resize(BATCH_HEADER_BYTES, 0);
        for operation in &batch.operations {
            self.buffer.extend_from_slice(&operation.bytes);
        }
        self.buffer.extend_from_slice(&batch.extra);
        seal_batch(&mut self.buffer, &self.current.header, self.position, self.next_batch, batch.records);
        self.marked = false;
        let written = self.current.file.write_all_at(self.position, &self.buffer);
        written.map_err(|error| write_error(&*shared.disk, &self.current.path, self.buffer.len() as u64, error))?;
        let operations = std::mem::take(&mut batch.operations);
        self.in_flight = Some(InFlight {
            bytes: self.buffer.len() as u64,
            operations: operations.len() as u64,
            done: operations.into_iter().filter_map(|operation| operation.done).collect(),
            stamp: batch.stamp,
            start: batch.start,
            moved: std::mem::take(&mut batch.moved),
        });
        Ok(Wrote::Batch)
    }

    /// Takes operations off the queue while they fit, and gives their entries places.
    fn take_operations(&self, state: &mut State, options: &LogOptions, batch: &mut Batch) {
        let room = self.room().saturating_sub(BATCH_HEADER_BYTES as u64 + KEPT_BYTES) as usize;
        while let Some(operation) = state.queue.front() {
            let bytes = batch.operation_bytes + operation.bytes.len();
            if bytes > room || (bytes > options.max_batch_bytes && !batch.operations.is_empty()) {
                return;
            }
            let Some(operation) = state.queue.pop_front() else { return };
            state.queued_bytes -= operation.bytes.len();
            let offset = self.position + (BATCH_HEADER_BYTES + batch.operation_bytes) as u64;
            self.take_effect(state, &operation, offset as u32, batch);
            batch.operation_bytes = bytes;
            batch.records += operation.records;
            batch.operations.push(operation);
        }
    }

    fn take_effect(&self, state: &mut State, operation: &Operation, offset: u32, batch: &mut Batch) {
        let segment = self.sequence();
        match &operation.effect {
            Effect::Entries { first, stamp, lengths } => {
                let mut offset = offset;
                for (place, length) in (0..).zip(lengths) {
                    state.place(operation.group, first + place, stamp + place, segment, offset);
                    offset += length;
                    batch.stamp = stamp + place + 1;
                }
            }
            Effect::Vote => {
                if let Some(group) = state.groups.get_mut(&operation.group) {
                    group.vote_in = segment;
                }
            }
            Effect::Purge => {
                if let Some(group) = state.groups.get_mut(&operation.group) {
                    group.purged_in = segment;
                }
            }
            Effect::Nothing => {}
        }
    }

    fn fits(&self, batch: &Batch, more: usize) -> bool {
        (batch.bytes() + more) as u64 + KEPT_BYTES <= self.room()
    }

    /// Adds the committed marks that changed. They ride along: no sync is made for them alone. No mark is
    /// on disk before the entry it is about: that has its place, or else the queue is empty. A log that is
    /// always busy has no empty queue, and without its marks a start knows less than the one before.
    fn add_committed(&self, state: &mut State, batch: &mut Batch) {
        let all = state.queue.is_empty();
        for group in std::mem::take(&mut state.committed_waiting) {
            let may_go = all || state.groups.get(&group).is_some_and(GroupState::has_placed_committed);
            if may_go && self.fits(batch, 64) {
                self.add_committed_of(state, group, batch);
            } else {
                state.committed_waiting.insert(group);
            }
        }
    }

    fn add_committed_of(&self, state: &mut State, group: GroupId, batch: &mut Batch) {
        let Some(of) = state.groups.get_mut(&group) else { return };
        if let Some(committed) = of.committed {
            of.committed_in = self.sequence();
            batch.add(&Record::Committed { group, index: committed.index, term: committed.leader_id.term });
        }
    }

    /// Moves the start of the log to the first segment that is still needed, and repeats what is still
    /// current of those before it.
    fn add_start(&self, state: &mut State, batch: &mut Batch) {
        let Some(needed) = state.first_needed().filter(|needed| u64::from(*needed) > self.start) else { return };
        let old = |segment: Sequence| segment != 0 && segment < needed;
        let carried = state.groups.values().map(|group| {
            usize::from(old(group.vote_in)) + usize::from(old(group.purged_in)) + usize::from(old(group.committed_in))
        });
        if !self.fits(batch, 64 + carried.sum::<usize>() * 64) {
            return;
        }
        let here = self.sequence();
        let mut committed = Vec::new();
        for (&group, of) in &mut state.groups {
            if old(of.vote_in)
                && let Some(Ok(vote)) = of.vote.as_ref().map(codec::encode)
            {
                of.vote_in = here;
                batch.add(&Record::Vote { group, vote: &vote });
            }
            if old(of.purged_in)
                && let Some(purged) = of.purged
            {
                of.purged_in = here;
                batch.add(&Record::Purge { group, index: purged.index, term: purged.leader_id.term });
            }
            if old(of.committed_in) {
                committed.push(group);
            }
        }
        for group in committed {
            self.add_committed_of(state, group, batch);
        }
        batch.add(&Record::Start { sequence: u64::from(needed) });
        batch.start = Some(u64::from(needed));
    }

    /// Reads entries of the oldest segment that are to be copied forward, if the log is so long, and so
    /// much of it dead, that this is worth it. Not all at once, so that no batch is late by much.
    fn read_moves(&mut self, shared: &Shared) -> Result<Vec<Move>, LogError> {
        let file = {
            let state = shared.lock();
            let Some((&oldest, segment)) = state.segments.first_key_value() else { return Ok(Vec::new()) };
            if state.segments.len() <= shared.options.keep_segments || oldest == self.sequence() {
                return Ok(Vec::new());
            }
            self.to_move.retain(|(_, _, slot)| slot.segment == oldest);
            if self.to_move.is_empty() {
                let total: u64 = state.segments.values().map(|segment| segment.file.header.size).sum();
                if state.live_bytes() * 2 >= total {
                    return Ok(Vec::new());
                }
                self.to_move = entries_in(&state, oldest);
            }
            segment.file.clone()
        };
        let mut moves = Vec::new();
        let mut bytes = 0;
        while bytes < MOVE_BYTES
            && let Some((group, index, slot)) = self.to_move.pop_front()
        {
            let record = super::read::read_record(&file, group, index, &slot)?;
            bytes += record.len();
            moves.push(Move { group, index, slot, record });
        }
        Ok(moves)
    }

    fn add_moves(&self, state: &State, moves: Vec<Move>, batch: &mut Batch) {
        for Move { group, index, slot, record } in moves {
            // It may have been truncated or purged while it was read.
            let is_there = state.groups.get(&group).and_then(|of| of.slot(index)) == Some(&slot);
            if !is_there || !self.fits(batch, record.len()) {
                continue;
            }
            if let Ok((Record::Entry { term, payload, .. }, _)) = Record::decode(&record) {
                let offset = self.position + batch.bytes() as u64;
                batch.add(&Record::Entry { group, index, term, moved: true, payload });
                batch.moved.push((group, index, slot, offset as u32));
            }
        }
    }

    /// Makes the written batch durable. An error here is final: see [`LogError::Sync`].
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        sync(&*self.current.file, &self.current.path)
    }

    /// Tells everyone in the written batch how its sync, which took `micros`, went.
    pub(super) fn complete(
        &mut self,
        shared: &Shared,
        synced: Result<(), LogError>,
        micros: u64,
    ) -> Result<(), LogError> {
        let Some(in_flight) = self.in_flight.take() else { return synced };
        if let Err(error) = synced {
            shared.stop(&error, in_flight.done);
            return Err(error);
        }
        self.position += in_flight.bytes;
        self.next_batch += 1;
        {
            let mut state = shared.lock();
            state.durable_stamp = in_flight.stamp;
            state.evict();
            for (group, index, old, offset) in in_flight.moved {
                state.stats.moved_entries += u64::from(state.move_slot(group, index, old, self.sequence(), offset));
            }
            state.stats.batches += 1;
            state.stats.operations += in_flight.operations;
            state.stats.written_bytes += in_flight.bytes;
            state.stats.count_sync(micros, shared.options.slow_sync_micros);
            state.sync_times.add(micros);
        }
        for done in in_flight.done {
            done(Ok(()));
        }
        let given_up = in_flight.start.map_or(Ok(()), |start| self.give_up(shared, start));
        given_up.inspect_err(|error| shared.stop(error, Vec::new()))
    }

    /// Gives back those who wait for a batch that will not be synced.
    pub(super) fn abandon(&mut self) -> Vec<Done> {
        self.in_flight.take().map(|in_flight| in_flight.done).unwrap_or_default()
    }

    /// Done when nothing is queued: the tail mark proves at the next start that the last batch was synced,
    /// so that damage of it is not taken for a torn write. It need not be durable, the next batch
    /// takes its place, and if it cannot be written nothing is lost.
    pub(super) fn rest(&mut self, shared: &Shared) {
        if !self.marked && self.in_flight.is_none() && self.room() >= SECTOR_BYTES && shared.lock().stopped.is_none() {
            let mut mark = vec![0; BATCH_HEADER_BYTES];
            seal_batch(&mut mark, &self.current.header, self.position, self.next_batch, 0);
            self.marked = self.current.file.write_all_at(self.position, &mark).is_ok();
        }
    }

    /// Whether the next segment's file should be made now, before it is needed; and if so, what segment
    /// it may become.
    pub(super) fn wants_spare(&self, shared: &Shared) -> Option<u64> {
        let half_full = self.position > self.current.header.size / 2;
        let wanted = half_full && self.spares.is_empty() && shared.options.spare_segments > 0;
        let may_try = self.next_batch >= self.spare_retry_batch;
        (wanted && may_try).then_some(self.current.header.sequence + 1)
    }

    /// Takes a file that was made for [`Writer::wants_spare`]. If there was no room for one, that is told
    /// early and harms nobody yet; it is tried again some batches later.
    pub(super) fn add_spare(&mut self, shared: &Shared, spare: Result<PathBuf, LogError>) {
        let mut state = shared.lock();
        if let Err(error) = &spare {
            if !state.stats.short_of_space {
                tracing::warn!(%error, "there is no room for the log's next segment");
            }
            self.spare_retry_batch = self.next_batch + SPARE_RETRY_BATCHES;
        }
        state.stats.short_of_space = spare.is_err();
        self.spares.extend(spare.ok());
        state.stats.spare_segments = self.spares.len() as u64;
    }

    /// Goes on in a new segment with room for at least `bytes`.
    pub(super) fn rotate(&mut self, shared: &Shared, bytes: u64) -> Result<(), LogError> {
        let files = Files::of(shared);
        let header = SegmentHeader {
            sequence: self.current.header.sequence + 1,
            salt: self.current.header.salt,
            size: files.size_for(bytes),
            start: self.start,
            previous_end: self.position,
            first_batch: self.next_batch,
        };
        let spares = self.spares.len();
        let full = std::mem::replace(&mut self.current, files.make_segment(header, &mut self.spares)?);
        self.position = FIRST_BATCH;
        self.marked = false;
        mark_end(&full, &header)?;
        let mut state = shared.lock();
        state.segments.insert(self.sequence(), SegmentState { file: self.current.clone(), live_bytes: 0 });
        state.stats.recycled_segments += u64::from(self.spares.len() < spares);
        state.stats.short_of_space = false;
        if std::mem::take(&mut state.stats.waits_for_room) {
            tracing::info!("there is disk space again: the log goes on");
        }
        state.stats.spare_segments = self.spares.len() as u64;
        Ok(())
    }

    /// Gives up the segments before `start`: some become spares, the others are removed.
    fn give_up(&mut self, shared: &Shared, start: u64) -> Result<(), LogError> {
        self.start = start;
        let old = {
            let mut state = shared.lock();
            let kept = state.segments.split_off(&(start as Sequence));
            std::mem::replace(&mut state.segments, kept)
        };
        let files = Files::of(shared);
        for (_, segment) in old {
            let (path, size) = (segment.file.path.clone(), segment.file.header.size);
            // A reader may still hold the file: then its bytes must stay, and only its name goes.
            let unread = Arc::into_inner(segment.file).is_some();
            files.discard(&path, unread && size == shared.options.segment_bytes, &mut self.spares)?;
        }
        files.sync_dir()?;
        shared.lock().stats.spare_segments = self.spares.len() as u64;
        Ok(())
    }
}

/// Says in `full` that the log goes on in the segment with the header `next`, whose name is durable. Before anything in that one
/// is acknowledged: without it, the loss of that file would look like the end of the log.
pub(super) fn mark_end(full: &SegmentFile, next: &SegmentHeader) -> Result<(), LogError> {
    // A log of an earlier build may have filled its segment to the last sector.
    if full.header.size.saturating_sub(next.previous_end) < SECTOR_BYTES {
        return Ok(());
    }
    let mark = end_mark(&full.header, next.previous_end, next.first_batch);
    let written = full.file.write_all_at(next.previous_end, &mark);
    // Its space was reserved when the file was made: also a full disk is no reason to wait here.
    written.map_err(|error| LogError::io("write", &full.path, error))?;
    sync(&*full.file, &full.path)
}

/// The entries that lie in a segment.
fn entries_in(state: &State, segment: Sequence) -> VecDeque<(GroupId, u64, Slot)> {
    let mut found = VecDeque::new();
    for (&group, of) in &state.groups {
        let here = (of.first..).zip(&of.slots).filter(|(_, slot)| slot.segment == segment);
        found.extend(here.map(|(index, slot)| (group, index, *slot)));
    }
    found
}
