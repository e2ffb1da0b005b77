//! Reading a log's files without opening it, for the command line's `log inspect`.

use std::path::Path;
use std::path::PathBuf;

use crate::disk::Disk;

use super::error::LogError;
use super::record::Record;
use super::segment::SegmentFile;
use super::segment::Until;
use super::segment::scan;
use super::segment::sequence_of;

/// A record with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedRecord<'a> {
    /// The segment file.
    pub path: PathBuf,
    /// Where the record starts in it, bytes.
    pub offset: u64,
    /// How long it is, bytes.
    pub length: u32,
    /// What it says.
    pub record: Record<'a>,
}

/// Gives every readable record in `dir` to `visit`, segment by segment, and changes nothing. Returns what is
/// wrong with the segments, in order; an empty list is a whole log. Segments before the log's start are read
/// too, if they are still there under their names.
pub fn inspect(
    disk: &dyn Disk,
    dir: &Path,
    visit: &mut dyn FnMut(InspectedRecord<'_>),
) -> Result<Vec<LogError>, LogError> {
    let names = disk.list(dir).map_err(|error| LogError::io("list", dir, error))?;
    let sequences: Vec<u64> = names.iter().filter_map(|name| sequence_of(name)).collect();
    let mut opened = Vec::new();
    let mut wrong = Vec::new();
    for sequence in sequences {
        match SegmentFile::open(disk, dir, sequence) {
            Ok(segment) => opened.push(segment),
            Err(error) => wrong.push(error),
        }
    }
    for (place, segment) in opened.iter().enumerate() {
        let next = opened.get(place + 1).filter(|next| next.header.sequence == segment.header.sequence + 1);
        let until = next.map_or(Until::Tail, |next| Until::Known {
            end: next.header.previous_end,
            next_batch: next.header.first_batch,
        });
        let scanned = scan(segment, until, &mut |record, offset, length| {
            visit(InspectedRecord { path: segment.path.clone(), offset, length, record });
            Ok(())
        });
        wrong.extend(scanned.err());
    }
    Ok(wrong)
}
