//! Segments: files of fixed size that hold the log's batches. Drawn in `docs/formats.md`.
//!
//! Invariants:
//!
//! - A batch is written only after the batch before it was synced. So at any time at most one batch,
//!   the last, can be incomplete on disk; and *any* valid batch header behind a damaged batch proves
//!   that the damaged one had been synced. That is how torn and corrupt are told apart.
//! - A batch counts wholly or not at all: its header's checksum covers the header, and the header
//!   carries the checksum of the body.
//! - Both checksums start from the log's salt, the segment's sequence and the batch's offset, so
//!   neither the leftovers of a recycled file nor bytes that a client chose are taken for a batch.
//! - Batches start at sector boundaries: writing one never rewrites bytes that were synced before.
//! - A segment's header is synced before the file gets its name, and says where the segment before
//!   it ended: only the last segment of a log has a tail that may be torn.
//! - The segment before says by its end mark, synced before anything in the next one is acknowledged, that
//!   there is a next one: a last segment with an end mark is not the last one.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Disk;
use crate::disk::DiskFile;

use super::error::LogError;
use super::record::PREFIX_BYTES;
use super::record::Record;
use super::record::u32_at;
use super::record::u64_at;

/// What a device writes whole or not at all; batches start at multiples of it.
pub const SECTOR_BYTES: u64 = 512;
/// Where the first batch of a segment starts.
pub const FIRST_BATCH: u64 = 4096;
/// The length of a batch's header.
pub const BATCH_HEADER_BYTES: usize = 32;
/// The version of the format, in each segment's header.
pub const VERSION: u32 = 1;

/// In an end mark, where other batches have a zero.
const GOES_ON: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"SHLOGSEG";
const BATCH_MAGIC: [u8; 4] = *b"SHB1";
const SEGMENT_HEADER_BYTES: usize = 72;
/// How much is read at once when a segment is scanned.
const WINDOW_BYTES: usize = 1 << 20;

/// The first bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Counts the segments of the log from 1; also the file's name. No number is used twice.
    pub sequence: u64,
    /// Drawn once per log and secret to clients: it makes batches unforgeable by payloads.
    pub salt: u64,
    /// The file's size, bytes.
    pub size: u64,
    /// The first segment that belonged to the log when this one was made.
    pub start: u64,
    /// Where the batches of the segment before this one end; 0 in the first.
    pub previous_end: u64,
    /// The number of this segment's first batch.
    pub first_batch: u64,
}

impl SegmentHeader {
    /// The header's sector.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SECTOR_BYTES as usize);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(SEGMENT_HEADER_BYTES as u32).to_le_bytes());
        for number in [self.sequence, self.salt, self.size, self.start, self.previous_end, self.first_batch] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.resize(SECTOR_BYTES as usize, 0);
        out
    }

    /// The header at the start of `bytes`, which are those of `path`.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self, LogError> {
        let damaged = |what: &str| LogError::corrupt(path, 0, what);
        let header = bytes.get(..SEGMENT_HEADER_BYTES).ok_or_else(|| damaged("the file is shorter than its header"))?;
        if header.get(..8) != Some(&SEGMENT_MAGIC) {
            return Err(damaged("this is no segment of a log"));
        }
        let version = u32_at(header, 8).unwrap_or(0);
        let checksum_matches = header.get(..68).map(crc32c::crc32c) == u32_at(header, 68);
        // A newer version may lay out its header differently, so its word is taken as it is.
        if version != VERSION && (version > VERSION || checksum_matches) {
            return Err(LogError::Version { path: path.to_owned(), found: version, known: VERSION });
        }
        if !checksum_matches {
            return Err(damaged("the checksum of the segment's header does not match"));
        }
        let number = |place: usize| u64_at(header, 16 + place * 8).ok_or_else(|| damaged("short header"));
        Ok(Self {
            sequence: number(0)?,
            salt: number(1)?,
            size: number(2)?,
            start: number(3)?,
            previous_end: number(4)?,
            first_batch: number(5)?,
        })
    }
}

/// The name of a segment's file.
pub fn segment_name(sequence: u64) -> String {
    format!("{sequence:016x}.seg")
}

/// The sequence in a segment file's name.
pub fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// An open segment.
pub(super) struct SegmentFile {
    pub(super) header: SegmentHeader,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn DiskFile>,
}

impl SegmentFile {
    pub(super) fn open(disk: &dyn Disk, dir: &Path, sequence: u64) -> Result<Arc<Self>, LogError> {
        let path = dir.join(segment_name(sequence));
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(LogError::Missing { path }),
            Err(error) => return Err(LogError::io("open", &path, error)),
        };
        let mut sector = [0; SECTOR_BYTES as usize];
        let read = file.read_at(0, &mut sector).map_err(|error| unreadable(&path, 0, &error))?;
        let header = SegmentHeader::decode(sector.get(..read).unwrap_or_default(), &path)?;
        if header.sequence != sequence {
            let what = format!("its header says that it is segment {:016x}", header.sequence);
            return Err(LogError::corrupt(&path, 0, what));
        }
        let len = file.len().map_err(|error| LogError::io("measure", &path, error))?;
        if len < header.size {
            let what = format!("the file ends here, but was made with {} bytes", header.size);
            return Err(LogError::corrupt(&path, len, what));
        }
        Ok(Arc::new(Self { header, path, file }))
    }

    /// Opens a segment whose header is damaged, or whose file is too short, as far as it can be read: with one of the
    /// `salts` of the segments beside it, or with what is left of its own.
    pub(super) fn open_damaged(disk: &dyn Disk, dir: &Path, sequence: u64, salts: &[u64]) -> Option<Arc<Self>> {
        let path = dir.join(segment_name(sequence));
        let file = disk.open(&path).ok()?;
        let size = file.len().ok()?;
        let mut sector = [0; SECTOR_BYTES as usize];
        let read = file.read_at(0, &mut sector).unwrap_or(0);
        if let Ok(header) = SegmentHeader::decode(sector.get(..read)?, &path) {
            return Some(Arc::new(Self { header: SegmentHeader { sequence, size, ..header }, path, file }));
        }
        let header = SegmentHeader { sequence, salt: 0, size, start: 0, previous_end: 0, first_batch: 0 };
        let mut segment = Self { header, path, file };
        for salt in u64_at(&sector, 24).iter().chain(salts) {
            segment.header.salt = *salt;
            if let Some((_, number)) = find_batch(&segment, FIRST_BATCH) {
                segment.header.first_batch = number;
                return Some(Arc::new(segment));
            }
        }
        None
    }

    fn seed(&self, offset: u64) -> u32 {
        batch_seed(&self.header, offset)
    }
}

fn unreadable(path: &Path, offset: u64, error: &std::io::Error) -> LogError {
    LogError::corrupt(path, offset, format!("it cannot be read: {error}"))
}

fn batch_seed(segment: &SegmentHeader, offset: u64) -> u32 {
    [segment.salt, segment.sequence, offset]
        .iter()
        .fold(0, |seed, number| crc32c::crc32c_append(seed, &number.to_le_bytes()))
}

/// Rounds up to the next sector.
pub(super) fn to_sector(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR_BYTES)
}

/// Makes a batch of `buffer`, whose first [`BATCH_HEADER_BYTES`] are free for the header and whose rest
/// is `records` records: fills in the header for its place and pads the buffer to whole sectors.
pub(super) fn seal_batch(buffer: &mut Vec<u8>, segment: &SegmentHeader, offset: u64, number: u64, records: u32) {
    seal(buffer, segment, offset, number, records, 0);
}

/// The mark behind the last batch of a segment, in the place of batch `number`: the log goes on in the next segment.
pub(super) fn end_mark(segment: &SegmentHeader, offset: u64, number: u64) -> Vec<u8> {
    let mut mark = vec![0; BATCH_HEADER_BYTES];
    seal(&mut mark, segment, offset, number, 0, GOES_ON);
    mark
}

fn seal(buffer: &mut Vec<u8>, segment: &SegmentHeader, offset: u64, number: u64, records: u32, goes_on: u32) {
    let seed = batch_seed(segment, offset);
    let body = buffer.get(BATCH_HEADER_BYTES..).unwrap_or_default();
    let mut header = Vec::with_capacity(BATCH_HEADER_BYTES);
    header.extend_from_slice(&BATCH_MAGIC);
    header.extend_from_slice(&(body.len() as u32).to_le_bytes());
    header.extend_from_slice(&number.to_le_bytes());
    header.extend_from_slice(&records.to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c_append(seed, body).to_le_bytes());
    header.extend_from_slice(&goes_on.to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c_append(seed, &header).to_le_bytes());
    if let Some(place) = buffer.get_mut(..BATCH_HEADER_BYTES) {
        place.copy_from_slice(&header);
    }
    buffer.resize(to_sector(buffer.len() as u64) as usize, 0);
}

struct BatchHeader {
    body_length: u32,
    number: u64,
    records: u32,
    body_checksum: u32,
    goes_on: bool,
}

impl BatchHeader {
    /// The header at the start of `bytes`, if there is a valid one for this place.
    fn decode(bytes: &[u8], seed: u32) -> Option<Self> {
        let header = bytes.get(..BATCH_HEADER_BYTES)?;
        if header.get(..4) != Some(&BATCH_MAGIC)
            || u32_at(header, 28)? != crc32c::crc32c_append(seed, header.get(..28)?)
        {
            return None;
        }
        Some(Self {
            body_length: u32_at(header, 4)?,
            number: u64_at(header, 8)?,
            records: u32_at(header, 16)?,
            body_checksum: u32_at(header, 20)?,
            goes_on: u32_at(header, 24)? == GOES_ON,
        })
    }
}

/// Where the batches of a segment end, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScanEnd {
    /// Where the next batch is to be written.
    pub(super) end: u64,
    /// The number it is to have.
    pub(super) next_batch: u64,
    /// Offset and length of the last batch, if there is one.
    pub(super) last_batch: Option<(u64, u64)>,
    /// Whether something written after the last batch proves that it was synced.
    pub(super) proven: bool,
    /// Whether the end mark is there.
    pub(super) has_end_mark: bool,
    /// Bytes of an incomplete batch at `end`.
    pub(super) torn_bytes: u64,
    /// How many batches and records were read.
    pub(super) batches: u64,
    pub(super) records: u64,
}

/// Where a scan has to end.
#[derive(Clone, Copy)]
pub(super) enum Until {
    /// Exactly here, at this batch number: the next segment says so.
    Known { end: u64, next_batch: u64 },
    /// At the first place without a complete batch: the segment is the log's last. If an end mark is there, the next
    /// segment is missing.
    Tail,
}

/// What `scan` hands out: the record, the offset of its bytes in the segment, and their number.
pub(super) type Visit<'v> = &'v mut dyn FnMut(Record<'_>, u64, u32) -> Result<(), LogError>;

impl ScanEnd {
    /// Where a scan begins.
    pub(super) fn beginning(header: &SegmentHeader) -> Self {
        Self {
            end: FIRST_BATCH,
            next_batch: header.first_batch,
            last_batch: None,
            proven: false,
            has_end_mark: false,
            torn_bytes: 0,
            batches: 0,
            records: 0,
        }
    }
}

/// Reads a segment's batches in order and gives each record to `visit`.
pub(super) fn scan(segment: &SegmentFile, until: Until, visit: Visit<'_>) -> Result<ScanEnd, LogError> {
    let mut scan = ScanEnd::beginning(&segment.header);
    scan_on(segment, &mut scan, until, visit)?;
    Ok(scan)
}

/// The same from where `scan` stands. After an error it stands at the batch that is damaged.
pub(super) fn scan_on(
    segment: &SegmentFile,
    scan: &mut ScanEnd,
    until: Until,
    visit: Visit<'_>,
) -> Result<(), LogError> {
    let mut window = Window { segment, start: 0, bytes: Vec::new() };
    loop {
        let at = scan.end;
        if let Until::Known { end, next_batch } = until
            && at >= end
        {
            if at == end && scan.next_batch == next_batch && later_batch(&mut window, at, next_batch)?.is_none() {
                let mark = BatchHeader::decode(window.at(at, BATCH_HEADER_BYTES)?, segment.seed(at));
                scan.has_end_mark = mark.is_some_and(|mark| mark.goes_on && mark.number == next_batch);
                scan.proven = true;
                return Ok(());
            }
            return Err(LogError::corrupt(&segment.path, at, "its end is not the one that the next segment names"));
        }
        let seed = segment.seed(at);
        let header = BatchHeader::decode(window.at(at, BATCH_HEADER_BYTES)?, seed);
        let Some(header) = header.filter(|header| header.number == scan.next_batch) else {
            return end_of(segment, &mut window, until, scan, at + SECTOR_BYTES, "there is no batch where one must be");
        };
        if header.records == 0 && header.body_length == 0 && header.goes_on {
            scan.has_end_mark = true;
            let next = segment_name(segment.header.sequence.saturating_add(1));
            return Err(LogError::Missing { path: segment.path.with_file_name(next) });
        }
        if header.records == 0 && header.body_length == 0 {
            // The tail mark: what lies before it was synced, and the next batch takes its place.
            scan.proven = true;
            return end_of(segment, &mut window, until, scan, at + SECTOR_BYTES, "the log goes on after its tail mark");
        }
        let length = BATCH_HEADER_BYTES + header.body_length as usize;
        let whole = window.at(at, length)?;
        let body = whole
            .get(BATCH_HEADER_BYTES..length)
            .filter(|body| crc32c::crc32c_append(seed, body) == header.body_checksum);
        let Some(body) = body else {
            let after = at.saturating_add(to_sector(length as u64));
            scan.torn_bytes = to_sector(length as u64);
            return end_of(segment, &mut window, until, scan, after, "the checksum of a batch does not match");
        };
        let mut done = 0;
        for _ in 0..header.records {
            let offset = at + (BATCH_HEADER_BYTES + done) as u64;
            let (record, length) = Record::decode(body.get(done..).unwrap_or_default())
                .map_err(|error| LogError::corrupt(&segment.path, offset, error.to_string()))?;
            visit(record, offset, length as u32)?;
            done += length;
        }
        if done != body.len() {
            return Err(LogError::corrupt(&segment.path, at, "a batch does not consist of whole records"));
        }
        scan.last_batch = Some((at, to_sector(length as u64)));
        scan.end = at + to_sector(length as u64);
        scan.next_batch += 1;
        scan.batches += 1;
        scan.records += u64::from(header.records);
    }
}

/// Decides what it means that no complete batch is at `scan.end`: the end of the log, or damage. A valid
/// batch header anywhere from `behind` on is of a later batch, and a later batch is only written
/// once the ones before it are synced.
fn end_of(
    segment: &SegmentFile,
    window: &mut Window<'_>,
    until: Until,
    scan: &ScanEnd,
    behind: u64,
    what: &str,
) -> Result<(), LogError> {
    if matches!(until, Until::Known { .. }) {
        return Err(LogError::corrupt(&segment.path, scan.end, format!("{what}, and later segments follow")));
    }
    match later_batch(window, behind, scan.next_batch)? {
        None => Ok(()),
        Some((at, number)) => {
            let what = format!("{what}, but it was synced: batch {number} follows at byte offset {at}");
            Err(LogError::corrupt(&segment.path, scan.end, what))
        }
    }
}

/// Looks from `at` on for the header of a batch with this number or a later one, tail marks of this number
/// aside. Returns its offset and number.
fn later_batch(window: &mut Window<'_>, mut at: u64, number: u64) -> Result<Option<(u64, u64)>, LogError> {
    loop {
        let segment = window.segment;
        let sector = window.at(at, BATCH_HEADER_BYTES)?;
        if sector.len() < BATCH_HEADER_BYTES {
            return Ok(None);
        }
        // The checksum's seed is costly against a look at the magic, and nearly all sectors fail that.
        if sector.starts_with(&BATCH_MAGIC)
            && let Some(found) = BatchHeader::decode(sector, segment.seed(at))
            && (found.number > number || (found.number == number && found.records > 0))
        {
            return Ok(Some((at, found.number)));
        }
        at += SECTOR_BYTES;
    }
}

/// The place and number of the first batch from `at` on that has a valid header, passing over what cannot be read.
pub(super) fn find_batch(segment: &SegmentFile, at: u64) -> Option<(u64, u64)> {
    let mut window = Window { segment, start: 0, bytes: Vec::new() };
    let mut at = to_sector(at);
    while at < segment.header.size {
        match later_batch(&mut window, at, 0) {
            Ok(found) => return found,
            Err(LogError::Corrupt { offset, .. }) => at = to_sector(offset.max(at) + 1),
            Err(_) => return None,
        }
    }
    None
}

/// Gives those records of the batch at `at` to `visit` whose own checksums hold, though the batch's does not. There are none when
/// its header is damaged: then nothing says whose the bytes are.
pub(super) fn salvage(segment: &SegmentFile, at: u64, visit: Visit<'_>) -> Result<(), LogError> {
    let mut window = Window { segment, start: 0, bytes: Vec::new() };
    let header = window.at(at, BATCH_HEADER_BYTES).ok().and_then(|bytes| BatchHeader::decode(bytes, segment.seed(at)));
    let Some(header) = header else { return Ok(()) };
    let whole = window.at(at, BATCH_HEADER_BYTES + header.body_length as usize)?;
    let mut body = whole.get(BATCH_HEADER_BYTES..).unwrap_or_default();
    let mut offset = at + BATCH_HEADER_BYTES as u64;
    while !body.is_empty() {
        let length = match Record::decode(body) {
            Ok((record, length)) => {
                visit(record, offset, length as u32)?;
                length
            }
            // Its length may be right all the same: the next record's checksum tells.
            Err(_) => PREFIX_BYTES + u32_at(body, 0).unwrap_or(0) as usize,
        };
        offset += length as u64;
        body = body.get(length..).unwrap_or_default();
    }
    Ok(())
}

/// Reads a segment front to back in large steps.
struct Window<'a> {
    segment: &'a SegmentFile,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Up to `length` bytes at `offset`: fewer only at the end of the segment.
    fn at(&mut self, offset: u64, length: usize) -> Result<&[u8], LogError> {
        let size = self.segment.header.size;
        let length = length.min(size.saturating_sub(offset) as usize);
        let inside = |start: u64, held: usize| offset >= start && offset + length as u64 <= start + held as u64;
        if !inside(self.start, self.bytes.len()) {
            let want = length.max(WINDOW_BYTES).min(size.saturating_sub(offset) as usize);
            self.bytes.resize(want, 0);
            self.start = offset;
            let mut read = self.segment.file.read_at(offset, &mut self.bytes);
            if read.is_err() && length < want {
                // What is far behind may be what cannot be read.
                self.bytes.truncate(length);
                read = self.segment.file.read_at(offset, &mut self.bytes);
            }
            // Or a later call would take the zeros for what was read.
            self.bytes.truncate(read.as_ref().copied().unwrap_or(0));
            read.map_err(|error| unreadable(&self.segment.path, offset, &error))?;
        }
        let from = (offset - self.start) as usize;
        let to = (from + length).min(self.bytes.len());
        Ok(self.bytes.get(from..to).unwrap_or_default())
    }
}
