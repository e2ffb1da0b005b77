//! Opening the log: which files belong to it, what they say, where its end is.
//!
//! Invariants:
//!
//! - The last segment's header, or a later mark in its batches, names the first segment of the log.
//!   From there to the last no segment may be missing; files before are leftovers.
//! - A last segment with an end mark is followed by one that is missing. A crash between the making of a segment
//!   and the end mark of the one before leaves one without; the next start makes up for it.
//! - A torn batch may only be at the end of the last segment. It was never acknowledged.
//! - Before anything is shown, all that was read is durable: the last batch is written again (after a
//!   failed sync the page cache may hold what the device does not) and synced, and only then a record
//!   that says "opened" is written behind it, in the place of a torn batch if there is one, and synced.
//!   So what one start shows, every later start shows, and damage of it is told from a torn write.
//! - Until that sync, nothing on disk is changed that another start would miss.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::codec;
use crate::disk::Disk;
use crate::types::GroupId;

use super::LogOptions;
use super::error::LogError;
use super::files::Files;
use super::files::is_spare;
use super::files::is_unfinished;
use super::files::sync;
use super::files::write_error;
use super::record::Record;
use super::record::log_id;
use super::segment::BATCH_HEADER_BYTES;
use super::segment::FIRST_BATCH;
use super::segment::SECTOR_BYTES;
use super::segment::ScanEnd;
use super::segment::SegmentFile;
use super::segment::SegmentHeader;
use super::segment::Until;
use super::segment::scan;
use super::segment::seal_batch;
use super::segment::segment_name;
use super::segment::sequence_of;
use super::state::GroupState;
use super::state::SegmentState;
use super::state::Sequence;
use super::state::Slot;
use super::state::State;
use super::writer::Writer;
use super::writer::mark_end;

/// An incomplete batch at the end of the log: the trace of a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The last segment.
    pub path: PathBuf,
    /// Where the batch began.
    pub offset: u64,
    /// How long it should have been, bytes.
    pub bytes: u64,
}

/// What opening the log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segments read.
    pub segments: u64,
    /// Batches read.
    pub batches: u64,
    /// Records read.
    pub records: u64,
    /// Groups found.
    pub groups: u64,
    /// Entries found that are not purged.
    pub entries: u64,
    /// Whether the log was closed in order last time.
    pub closed: bool,
    /// What was cut off the end.
    pub cut: Option<Cut>,
}

/// The opened log.
pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) writer: Writer,
    pub(super) report: RecoveryReport,
}

/// Whether there is a segment in `dir`; not where the directory itself is not there.
pub fn is_there(disk: &dyn Disk, dir: &Path) -> std::io::Result<bool> {
    Ok(disk.exists(dir)? && disk.list(dir)?.iter().any(|name| sequence_of(name).is_some()))
}

pub(super) fn open(disk: &Arc<dyn Disk>, dir: &Path, options: &LogOptions) -> Result<Recovered, LogError> {
    let files = Files { disk: &**disk, dir, options };
    disk.create_dir_all(dir).map_err(|error| LogError::io("create", dir, error))?;
    let names = disk.list(dir).map_err(|error| LogError::io("list", dir, error))?;
    let mut spares = Vec::new();
    let Some(newest) = names.iter().filter_map(|name| sequence_of(name)).max() else {
        return create(&files, options, &names);
    };
    let last = SegmentFile::open(&**disk, dir, newest)?;
    let start = find_start(&last)?;

    let mut replay = Replay::new(options);
    let mut report = RecoveryReport::default();
    let mut segments = Vec::new();
    for sequence in start..newest {
        segments.push(SegmentFile::open(&**disk, dir, sequence)?);
    }
    segments.push(last.clone());
    let mut end = None;
    let mut unmarked = Vec::new();
    for (place, segment) in segments.iter().enumerate() {
        let until = segments.get(place + 1).map_or(Until::Tail, |next| Until::Known {
            end: next.header.previous_end,
            next_batch: next.header.first_batch,
        });
        let scanned = replay.segment(segment, until)?;
        if let Some(next) = segments.get(place + 1)
            && !scanned.has_end_mark
        {
            unmarked.push((segment.clone(), next.header));
        }
        report.segments += 1;
        report.batches += scanned.batches;
        report.records += scanned.records;
        end = Some(scanned);
    }
    let Some(end) = end else { return Err(LogError::Missing { path: dir.join(segment_name(start)) }) };
    if end.torn_bytes > 0 {
        report.cut = Some(Cut { path: last.path.clone(), offset: end.end, bytes: end.torn_bytes });
    }
    report.closed = replay.closed && report.cut.is_none();
    let state = replay.finish(dir)?;
    report.groups = state.groups.len() as u64;
    report.entries = state.groups.values().map(|group| group.slots.len() as u64).sum();

    let mut recovered = Recovered { state, writer: writer(last, &end, start), report };
    make_durable(&files, &mut recovered, &end)?;
    if !unmarked.is_empty() {
        // The process may have ended between the name of the next segment and the sync of it.
        files.sync_dir()?;
    }
    for (full, next) in unmarked {
        mark_end(&full, &next)?;
    }
    clean_up(&files, &names, start, &mut spares)?;
    recovered.state.stats.spare_segments = spares.len() as u64;
    recovered.writer.spares = spares;
    Ok(recovered)
}

fn writer(current: Arc<SegmentFile>, end: &ScanEnd, start: u64) -> Writer {
    Writer {
        current,
        position: end.end,
        next_batch: end.next_batch,
        start,
        spares: Vec::new(),
        buffer: Vec::new(),
        in_flight: None,
        marked: false,
        spare_retry_batch: 0,
        to_move: VecDeque::new(),
    }
}

/// Makes the first segment of a new log.
fn create(files: &Files<'_>, options: &LogOptions, names: &[String]) -> Result<Recovered, LogError> {
    // Leftovers of a first start that was cut short.
    for name in names.iter().filter(|name| is_spare(name) || is_unfinished(name)) {
        let path = files.dir.join(name);
        files.disk.remove(&path).map_err(|error| LogError::io("remove", &path, error))?;
    }
    let header = SegmentHeader {
        sequence: 1,
        salt: options.salt,
        size: options.segment_bytes,
        start: 1,
        previous_end: 0,
        first_batch: 1,
    };
    let segment = files.make_segment(header, &mut Vec::new())?;
    let mut state = State::new(options.cache_bytes);
    state.segments.insert(1, SegmentState { file: segment.clone(), live_bytes: 0 });
    let end = ScanEnd { proven: true, ..ScanEnd::beginning(&header) };
    let mut recovered = Recovered { state, writer: writer(segment, &end, 1), report: RecoveryReport::default() };
    make_durable(files, &mut recovered, &end)?;
    recovered.report.closed = true;
    Ok(recovered)
}

/// The first segment of the log: what the last segment says, in its header or since.
fn find_start(last: &SegmentFile) -> Result<u64, LogError> {
    let newest = last.header.sequence;
    let mut start = last.header.start;
    scan(last, Until::Tail, &mut |record, _, _| {
        if let Record::Start { sequence } = record {
            start = start.max(sequence);
        }
        Ok(())
    })?;
    if start == 0 || start > newest || newest > u64::from(Sequence::MAX) {
        let what = format!("it names segment {start} as the first, which cannot be");
        return Err(LogError::corrupt(&last.path, 0, what));
    }
    Ok(start)
}

/// See the invariants: the last batch is written again, and the opening is synced behind it.
fn make_durable(files: &Files<'_>, recovered: &mut Recovered, end: &ScanEnd) -> Result<(), LogError> {
    let Recovered { state, writer, .. } = recovered;
    let segment = writer.current.clone();
    if !end.proven
        && let Some((offset, length)) = end.last_batch
    {
        let mut bytes = vec![0; length as usize];
        let read = segment.file.read_exact_at(offset, &mut bytes);
        read.map_err(|error| LogError::corrupt(&segment.path, offset, format!("it cannot be read: {error}")))?;
        let written = segment.file.write_all_at(offset, &bytes);
        written.map_err(|error| write_error(files.disk, &segment.path, length, error))?;
        // What follows, a batch or a segment, says that this one was synced.
        sync(&*segment.file, &segment.path)?;
    }
    // One for what follows here, one for the end mark.
    if segment.header.size.saturating_sub(writer.position) < 2 * SECTOR_BYTES {
        let header = SegmentHeader {
            sequence: segment.header.sequence + 1,
            size: files.options.segment_bytes,
            start: writer.start,
            previous_end: writer.position,
            first_batch: writer.next_batch,
            ..segment.header
        };
        writer.current = files.make_segment(header, &mut Vec::new())?;
        mark_end(&segment, &header)?;
        writer.position = FIRST_BATCH;
        let sequence = header.sequence as Sequence;
        state.segments.insert(sequence, SegmentState { file: writer.current.clone(), live_bytes: 0 });
    }
    let mut batch = vec![0; BATCH_HEADER_BYTES];
    Record::Opened.encode_into(&mut batch);
    let segment = writer.current.clone();
    seal_batch(&mut batch, &segment.header, writer.position, writer.next_batch, 1);
    let written = segment.file.write_all_at(writer.position, &batch);
    written.map_err(|error| write_error(files.disk, &segment.path, batch.len() as u64, error))?;
    sync(&*segment.file, &segment.path)?;
    writer.position += batch.len() as u64;
    writer.next_batch += 1;
    Ok(())
}

/// Makes spares of segments before the start, keeps good spares, removes the rest.
fn clean_up(files: &Files<'_>, names: &[String], start: u64, spares: &mut Vec<PathBuf>) -> Result<(), LogError> {
    for name in names {
        let path = files.dir.join(name);
        let usual = || {
            let len = files.disk.open(&path).and_then(|file| file.len());
            len.is_ok_and(|len| len == files.options.segment_bytes)
        };
        if is_spare(name) {
            // Another size: the options changed.
            if usual() && spares.len() < files.options.spare_segments {
                spares.push(path);
            } else {
                files.disk.remove(&path).map_err(|error| LogError::io("remove", &path, error))?;
            }
        } else if is_unfinished(name) {
            // The segment that was opened last may have been made under such a name just now.
            if files.disk.exists(&path).unwrap_or(false) {
                files.disk.remove(&path).map_err(|error| LogError::io("remove", &path, error))?;
            }
        } else if sequence_of(name).is_some_and(|sequence| sequence < start) {
            files.discard(&path, usual(), spares)?;
        }
    }
    files.sync_dir()
}

/// The state as the records build it up.
struct Replay {
    state: State,
    /// Copies of entries whose originals are not in the log any more.
    moved: BTreeMap<GroupId, BTreeMap<u64, Slot>>,
    closed: bool,
}

impl Replay {
    fn new(options: &LogOptions) -> Self {
        Self { state: State::new(options.cache_bytes), moved: BTreeMap::new(), closed: false }
    }

    fn segment(&mut self, segment: &Arc<SegmentFile>, until: Until) -> Result<ScanEnd, LogError> {
        let sequence = segment.header.sequence as Sequence;
        self.state.segments.insert(sequence, SegmentState { file: segment.clone(), live_bytes: 0 });
        scan(segment, until, &mut |record, offset, length| {
            let slot = Slot { term: 0, segment: sequence, offset: offset as u32, length };
            self.record(record, slot).map_err(|what| LogError::corrupt(&segment.path, offset, what))
        })
    }

    fn record(&mut self, record: Record<'_>, slot: Slot) -> Result<(), String> {
        self.closed = matches!(record, Record::Closed);
        let state = &mut self.state;
        match record {
            Record::Entry { index, .. } if index > u64::MAX / 2 => return Err(format!("index {index} cannot be")),
            Record::Entry { group, index, term, moved: false, .. } => {
                let of = state.groups.entry(group).or_default();
                if of.slots.is_empty() {
                    of.first = index;
                } else if of.next() != index {
                    return Err(format!("entry {index} of group {group} follows entry {}", of.next() - 1));
                }
                of.slots.push_back(Slot { term, ..slot });
                add_live(state, &slot);
            }
            Record::Entry { group, index, term, moved: true, .. } => {
                let slot = Slot { term, ..slot };
                match state.groups.entry(group).or_default().slot(index).copied() {
                    Some(old) => {
                        state.move_slot(group, index, old, slot.segment, slot.offset);
                    }
                    None => {
                        if let Some(old) = self.moved.entry(group).or_default().insert(index, slot) {
                            drop_live(state, &old);
                        }
                        add_live(state, &slot);
                    }
                }
            }
            Record::Vote { group, vote } => {
                let vote = codec::decode(vote).map_err(|error| format!("vote of group {group}: {error}"))?;
                let of = state.groups.entry(group).or_default();
                of.vote = Some(vote);
                of.vote_in = slot.segment;
            }
            Record::Truncate { group, from } => {
                state.truncate(group, from);
                let gone = self.moved.get_mut(&group).map(|moved| moved.split_off(&from));
                gone.into_iter().flatten().for_each(|(_, slot)| drop_live(state, &slot));
            }
            Record::Purge { index, .. } if index > u64::MAX / 2 => return Err(format!("index {index} cannot be")),
            Record::Purge { group, index, term } => {
                state.purge(group, log_id(term, index));
                if let Some(of) = state.groups.get_mut(&group) {
                    of.purged_in = slot.segment;
                }
                if let Some(moved) = self.moved.get_mut(&group) {
                    let kept = moved.split_off(&(index + 1));
                    let gone = std::mem::replace(moved, kept);
                    gone.values().for_each(|slot| drop_live(state, slot));
                }
            }
            Record::Committed { group, index, term } => {
                let of = state.groups.entry(group).or_default();
                of.committed = Some(log_id(term, index));
                of.committed_in = slot.segment;
            }
            Record::Removed { group } => {
                state.remove(group);
                let gone = self.moved.remove(&group);
                gone.into_iter().flatten().for_each(|(_, slot)| drop_live(state, &slot));
            }
            Record::Start { .. } | Record::Opened | Record::Closed => {}
        }
        Ok(())
    }

    /// Joins the moved entries to the others and checks that no group has a hole.
    fn finish(mut self, dir: &Path) -> Result<State, LogError> {
        for (group, moved) in std::mem::take(&mut self.moved) {
            let of = self.state.groups.entry(group).or_default();
            for (index, slot) in moved.into_iter().rev() {
                if of.slots.is_empty() {
                    of.first = index + 1;
                }
                if index + 1 != of.first {
                    return Err(LogError::Hole { path: dir.to_owned(), group, expected: index + 1, found: of.first });
                }
                of.slots.push_front(slot);
                of.first = index;
            }
        }
        for (&group, of) in &mut self.state.groups {
            check_group(dir, group, of)?;
        }
        Ok(self.state)
    }
}

fn check_group(dir: &Path, group: GroupId, of: &mut GroupState) -> Result<(), LogError> {
    if let Some(purged) = of.purged
        && !of.slots.is_empty()
        && of.first != purged.index + 1
    {
        return Err(LogError::Hole { path: dir.to_owned(), group, expected: purged.index + 1, found: of.first });
    }
    // A mark is written after the entries it is about, so it is not beyond them, unless it was carried
    // over a purge that a snapshot caused; then the last entry is committed too.
    of.committed = of.committed.min(of.last());
    Ok(())
}

fn add_live(state: &mut State, slot: &Slot) {
    if let Some(segment) = state.segments.get_mut(&slot.segment) {
        segment.live_bytes += u64::from(slot.length);
    }
}

fn drop_live(state: &mut State, slot: &Slot) {
    if let Some(segment) = state.segments.get_mut(&slot.segment) {
        segment.live_bytes = segment.live_bytes.saturating_sub(u64::from(slot.length));
    }
}
