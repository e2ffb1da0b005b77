//! Reading a log's files without opening it: for the command line, and for whoever must know what a stopped node holds.
//!
//! Invariants:
//!
//! - Nothing is created, cut or changed, whatever the files look like.
//! - What opening the log would refuse is told as damage, with file and offset, and reading goes on behind it: at the next batch
//!   whose header is valid, and inside a damaged batch with the records whose own checksums hold.
//! - What opening the log would cut as torn is told as that, and not as damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::codec;
use crate::disk::Disk;
use crate::disk::DiskFile;
use crate::types::Entry;
use crate::types::GroupId;
use crate::types::LogId;
use crate::types::Vote;

use super::error::LogError;
use super::files::is_spare;
use super::files::is_unfinished;
use super::record::Record;
use super::record::decode_entry;
use super::record::log_id;
use super::recovery::Cut;
use super::segment::ScanEnd;
use super::segment::SegmentFile;
use super::segment::Until;
use super::segment::find_batch;
use super::segment::salvage;
use super::segment::scan_on;
use super::segment::segment_name;
use super::segment::sequence_of;

/// A record with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedRecord<'a> {
    /// The segment file.
    pub path: PathBuf,
    /// The segment.
    pub sequence: u64,
    /// Where the record starts in it, bytes.
    pub offset: u64,
    /// How long it is, bytes.
    pub length: u32,
    /// Whether it lies in a damaged batch, so that only its own checksum speaks for it.
    pub salvaged: bool,
    /// What it says.
    pub record: Record<'a>,
}

/// A segment's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedSegment {
    /// Its sequence.
    pub sequence: u64,
    /// The file's size, bytes.
    pub file_bytes: u64,
    /// Where its batches end, bytes.
    pub used_bytes: u64,
    /// Whole batches in it.
    pub batches: u64,
    /// Records that can be read.
    pub records: u64,
    /// Places in it that are damaged.
    pub damaged: u64,
    /// Whether the log has given it up, and only the file is still there.
    pub leftover: bool,
}

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPlace {
    /// Its term.
    pub term: u64,
    /// The segment.
    pub segment: u64,
    /// Where its record starts, bytes.
    pub offset: u64,
    /// How long its record is, bytes.
    pub length: u32,
    /// See [`InspectedRecord::salvaged`].
    pub salvaged: bool,
}

/// What the log holds of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InspectedGroup {
    /// Its vote.
    pub vote: Option<Vote>,
    /// The last entry that a snapshot covers and that is gone.
    pub purged: Option<LogId>,
    /// The last entry that is known to be committed. More may be.
    pub committed: Option<LogId>,
    /// The entries that are neither purged nor replaced, by index.
    pub entries: BTreeMap<u64, EntryPlace>,
}

impl InspectedGroup {
    /// The last entry, or what was purged last when there is none.
    pub fn last(&self) -> Option<LogId> {
        let last = self.entries.last_key_value().map(|(index, place)| log_id(place.term, *index));
        last.max(self.purged)
    }

    /// Whether a snapshot that covers up to `covered` replaced entries that are still here: those of an earlier leader, when it is
    /// durable that a later one's snapshot came and not yet that they went.
    pub fn is_replaced_by(&self, covered: LogId) -> bool {
        match self.entries.get(&covered.index) {
            Some(place) => place.term != covered.leader_id.term,
            None => self
                .entries
                .last_key_value()
                .is_some_and(|(index, place)| *index < covered.index && place.term > covered.leader_id.term),
        }
    }

    /// The entries' indexes as ranges without holes, first and last of each.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for &index in self.entries.keys() {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(index) => *last = index,
                _ => ranges.push((index, index)),
            }
        }
        ranges
    }

    /// Bytes of its entries' records.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|place| u64::from(place.length)).sum()
    }
}

/// What the files of a log say.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// The segments, in order.
    pub segments: Vec<InspectedSegment>,
    /// The first segment of the log.
    pub start: u64,
    /// Other files in the directory that are the log's: name and bytes.
    pub others: Vec<(String, u64)>,
    /// What opening the log would refuse, in order.
    pub damage: Vec<LogError>,
    /// What opening the log would cut.
    pub torn: Option<Cut>,
    /// Whether the log was closed in order.
    pub closed: bool,
    /// The groups.
    pub groups: BTreeMap<GroupId, InspectedGroup>,
}

/// Reads a log's directory. Fails only when the directory itself cannot be listed.
pub fn inspect(disk: &dyn Disk, dir: &Path) -> Result<Inspection, LogError> {
    inspect_records(disk, dir, &mut |_| {})
}

/// The same, and gives every record that can be read to `visit`, segment by segment.
pub fn inspect_records(
    disk: &dyn Disk,
    dir: &Path,
    visit: &mut dyn FnMut(&InspectedRecord<'_>),
) -> Result<Inspection, LogError> {
    let names = disk.list(dir).map_err(|error| LogError::io("list", dir, error))?;
    let bytes_of = |name: &str| disk.open(&dir.join(name)).and_then(|file| file.len()).unwrap_or(0);
    let mut found = Inspection::default();
    let others = names.iter().filter(|name| is_spare(name) || is_unfinished(name));
    found.others = others.map(|name| (name.clone(), bytes_of(name))).collect();
    let sequences: Vec<u64> = names.iter().filter_map(|name| sequence_of(name)).collect();
    let segments = open_all(disk, dir, &sequences, &mut found.damage);
    found.start = start_of(&segments);
    let newest = sequences.iter().max().copied().unwrap_or(0);
    let mut entered = Entered::default();
    let mut expected = found.start;
    for &sequence in sequences.iter().filter(|sequence| **sequence >= found.start) {
        if sequence != expected {
            found.damage.push(LogError::Missing { path: dir.join(segment_name(expected)) });
        }
        expected = sequence.saturating_add(1);
    }
    for &sequence in &sequences {
        let mut view = InspectedSegment {
            sequence,
            file_bytes: bytes_of(&segment_name(sequence)),
            used_bytes: 0,
            batches: 0,
            records: 0,
            damaged: 0,
            leftover: sequence < found.start,
        };
        if view.leftover {
            found.segments.push(view);
            continue;
        }
        let is_of = |error: &&LogError| matches!(error, LogError::Corrupt { path, .. } if *path == dir.join(segment_name(sequence)));
        view.damaged = found.damage.iter().filter(is_of).count() as u64;
        if let Some(segment) = segments.get(&sequence) {
            let next = sequence.checked_add(1).and_then(|next| segments.get(&next));
            let place = Read { segment, next: next.map(|next| &**next), is_last: sequence == newest };
            place.read(&mut view, &mut found, &mut |record| {
                entered.enter(record);
                visit(record);
            });
        }
        found.segments.push(view);
    }
    found.closed = entered.closed && found.torn.is_none();
    found.damage.append(&mut entered.contradictions);
    found.groups = entered.groups;
    for (&group, of) in &mut found.groups {
        of.committed = of.committed.min(of.last());
        found.damage.extend(holes(dir, group, of));
    }
    Ok(found)
}

/// The segments that can be read, those with a damaged header included.
fn open_all(
    disk: &dyn Disk,
    dir: &Path,
    sequences: &[u64],
    damage: &mut Vec<LogError>,
) -> BTreeMap<u64, Arc<SegmentFile>> {
    let mut segments = BTreeMap::new();
    let mut damaged = Vec::new();
    for &sequence in sequences {
        match SegmentFile::open(disk, dir, sequence) {
            Ok(segment) => drop(segments.insert(sequence, segment)),
            Err(error) => {
                damaged.push(sequence);
                damage.push(error);
            }
        }
    }
    let salts: Vec<u64> = segments.values().next().map(|segment| segment.header.salt).into_iter().collect();
    for sequence in damaged {
        if let Some(segment) = SegmentFile::open_damaged(disk, dir, sequence, &salts) {
            segments.insert(sequence, segment);
        }
    }
    segments
}

/// The first segment of the log: it only ever goes up, so the highest that any header or record names.
fn start_of(segments: &BTreeMap<u64, Arc<SegmentFile>>) -> u64 {
    let newest = segments.keys().next_back().copied().unwrap_or(1);
    let mut start = segments.values().map(|segment| segment.header.start).max().unwrap_or(1).max(1);
    if let Some(last) = segments.get(&newest) {
        let mut scan = ScanEnd::beginning(&last.header);
        // Damage is told when the segment itself is read.
        let _damage = scan_on(last, &mut scan, Until::Tail, &mut |record, _, _| {
            if let Record::Start { sequence } = record {
                start = start.max(sequence);
            }
            Ok(())
        });
    }
    start.min(newest)
}

/// One segment that is read.
struct Read<'a> {
    segment: &'a SegmentFile,
    next: Option<&'a SegmentFile>,
    is_last: bool,
}

impl Read<'_> {
    fn read(&self, view: &mut InspectedSegment, found: &mut Inspection, visit: &mut dyn FnMut(&InspectedRecord<'_>)) {
        let segment = self.segment;
        // A header that is damaged says nothing of the segment before it.
        let until = self.next.filter(|next| next.header.previous_end > 0).map_or(Until::Tail, |next| Until::Known {
            end: next.header.previous_end,
            next_batch: next.header.first_batch,
        });
        let mut scan = ScanEnd::beginning(&segment.header);
        let mut records = 0;
        loop {
            let mut each = |record: Record<'_>, offset: u64, length: u32, salvaged: bool| {
                records += 1;
                let path = segment.path.clone();
                let sequence = segment.header.sequence;
                visit(&InspectedRecord { path, sequence, offset, length, salvaged, record });
                Ok(())
            };
            let whole = &mut |record: Record<'_>, offset: u64, length: u32| each(record, offset, length, false);
            match scan_on(segment, &mut scan, until, whole) {
                Ok(()) => break,
                Err(error @ LogError::Missing { .. }) => {
                    // A file in between is told as missing already, and one whose header is damaged is there.
                    found.damage.extend(self.is_last.then_some(error));
                    break;
                }
                Err(error) => {
                    let at = scan.end;
                    // Behind a record that makes no sense, those before it were told already.
                    let untold = matches!(&error, LogError::Corrupt { offset, .. } if *offset == at);
                    view.damaged += 1;
                    found.damage.push(error);
                    if untold {
                        let alone =
                            &mut |record: Record<'_>, offset: u64, length: u32| each(record, offset, length, true);
                        // What cannot be read is told already.
                        salvage(segment, at, alone).ok();
                    }
                    scan.torn_bytes = 0;
                    let Some((behind, number)) = find_batch(segment, at + 1) else { break };
                    (scan.end, scan.next_batch) = (behind, number);
                }
            }
        }
        if scan.torn_bytes > 0 {
            if self.is_last {
                found.torn = Some(Cut { path: segment.path.clone(), offset: scan.end, bytes: scan.torn_bytes });
            } else {
                view.damaged += 1;
                let what = "the checksum of a batch does not match, and later segments follow";
                found.damage.push(LogError::corrupt(&segment.path, scan.end, what));
            }
        }
        (view.used_bytes, view.batches, view.records) = (scan.end, scan.batches, records);
    }
}

/// What the records add up to.
#[derive(Default)]
struct Entered {
    groups: BTreeMap<GroupId, InspectedGroup>,
    contradictions: Vec<LogError>,
    closed: bool,
}

impl Entered {
    fn enter(&mut self, found: &InspectedRecord<'_>) {
        self.closed = matches!(found.record, Record::Closed);
        let Self { groups, contradictions, .. } = self;
        let mut contradicts = |what: String| {
            contradictions.push(LogError::corrupt(&found.path, found.offset, what));
        };
        match found.record {
            Record::Entry { group: id, index, term, moved, .. } => {
                let of = groups.entry(id).or_default();
                let (segment, offset, length) = (found.sequence, found.offset, found.length);
                if !moved && of.entries.range(index..).next().is_some() {
                    contradicts(format!(
                        "entry {index} of group {id} comes again, and nothing says that the first is gone"
                    ));
                    drop(of.entries.split_off(&index));
                }
                of.entries.insert(index, EntryPlace { term, segment, offset, length, salvaged: found.salvaged });
            }
            Record::Vote { group: id, vote } => match codec::decode(vote) {
                Ok(vote) => groups.entry(id).or_default().vote = Some(vote),
                Err(error) => contradicts(format!("the vote of group {id}: {error}")),
            },
            Record::Truncate { group: id, from } => drop(groups.entry(id).or_default().entries.split_off(&from)),
            Record::Purge { group: id, index, term } => {
                let of = groups.entry(id).or_default();
                of.entries = of.entries.split_off(&index.saturating_add(1));
                of.purged = of.purged.max(Some(log_id(term, index)));
            }
            Record::Committed { group: id, index, term } => {
                groups.entry(id).or_default().committed = Some(log_id(term, index));
            }
            Record::Removed { group: id } => drop(groups.remove(&id)),
            Record::Start { .. } | Record::Opened | Record::Closed => {}
        }
    }
}

/// Where entries are missing between others.
fn holes(dir: &Path, group: GroupId, of: &InspectedGroup) -> Vec<LogError> {
    let mut expected = of.purged.map(|purged| purged.index.saturating_add(1));
    let mut holes = Vec::new();
    for (first, last) in of.ranges() {
        if let Some(expected) = expected.filter(|expected| *expected != first) {
            holes.push(LogError::Hole { path: dir.to_owned(), group, expected, found: first });
        }
        expected = Some(last.saturating_add(1));
    }
    holes
}

/// Reads entries from their places.
pub struct EntryReader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// The segment that was read last.
    open: Option<(u64, Box<dyn DiskFile>)>,
}

impl EntryReader {
    /// For the log in `dir`.
    pub fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self { disk, dir: dir.to_owned(), open: None }
    }

    /// The entry of `group` with this index.
    pub fn read(&mut self, group: GroupId, index: u64, place: &EntryPlace) -> Result<Entry, LogError> {
        let path = self.dir.join(segment_name(place.segment));
        let file = match self.open.take() {
            Some((segment, file)) if segment == place.segment => file,
            _ => self.disk.open(&path).map_err(|error| LogError::io("open", &path, error))?,
        };
        let mut bytes = vec![0; place.length as usize];
        let read = file.read_exact_at(place.offset, &mut bytes);
        self.open = Some((place.segment, file));
        read.map_err(|error| LogError::corrupt(&path, place.offset, format!("it cannot be read: {error}")))?;
        match Record::decode(&bytes) {
            Ok((Record::Entry { group: of, index: at, term, payload, .. }, _))
                if (of, at, term) == (group, index, place.term) =>
            {
                decode_entry(group, index, term, payload)
            }
            other => {
                let what = format!("entry {index} of group {group} was here; now there is {other:?}");
                Err(LogError::corrupt(&path, place.offset, what))
            }
        }
    }
}
