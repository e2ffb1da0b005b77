//! The files of the log's directory: segments, and spares that will become segments.
//!
//! Invariants:
//!
//! - A file gets a segment's name only after its header was synced, and is used only after the name
//!   was. So a `.seg` file always has a whole header, unless it was damaged.
//! - A segment that is given up loses its name, durably, before its file is used again.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Disk;
use crate::disk::DiskFile;

use super::LogOptions;
use super::Shared;
use super::error::LogError;
use super::segment::FIRST_BATCH;
use super::segment::SegmentFile;
use super::segment::SegmentHeader;
use super::segment::segment_name;

const ZEROS_BYTES: usize = 1 << 20;
const SPARE_PREFIX: &str = "spare-";
/// The name of a file that is not whole yet.
const NEW_PREFIX: &str = "new-";

/// The directory, with what is needed to work in it.
pub(super) struct Files<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) dir: &'a Path,
    pub(super) options: &'a LogOptions,
}

/// Syncs a file; an error is the fatal one.
pub(super) fn sync(file: &dyn DiskFile, path: &Path) -> Result<(), LogError> {
    file.sync_data().map_err(|error| LogError::Sync { path: path.to_owned(), source: Arc::new(error) })
}

/// Tells a full disk from other errors of a write.
pub(super) fn write_error(disk: &dyn Disk, path: &Path, needed: u64, error: io::Error) -> LogError {
    if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return LogError::io("write", path, error);
    }
    let free = disk.free_space(path.parent().unwrap_or(path)).unwrap_or(0);
    LogError::DiskFull { path: path.to_owned(), needed, free }
}

/// Whether this is the name of an unused file.
pub(super) fn is_spare(name: &str) -> bool {
    name.starts_with(SPARE_PREFIX)
}

/// Whether this is the name of a file whose making a crash cut short.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.starts_with(NEW_PREFIX)
}

impl<'a> Files<'a> {
    pub(super) fn of(shared: &'a Shared) -> Self {
        Self { disk: &*shared.disk, dir: &shared.dir, options: &shared.options }
    }

    /// The size of a segment that is to have room for `bytes` of batches.
    pub(super) fn size_for(&self, bytes: u64) -> u64 {
        self.options.segment_bytes.max((FIRST_BATCH + bytes).next_multiple_of(4096))
    }

    pub(super) fn sync_dir(&self) -> Result<(), LogError> {
        let synced = self.disk.sync_dir(self.dir);
        synced.map_err(|error| LogError::Sync { path: self.dir.to_owned(), source: Arc::new(error) })
    }

    /// Makes a file of `size` bytes whose space is reserved. If that fails there is no file.
    fn make(&self, name: &str, size: u64) -> Result<(PathBuf, Box<dyn DiskFile>), LogError> {
        let path = self.dir.join(format!("{NEW_PREFIX}{name}"));
        let failed = |error| write_error(self.disk, &path, size, error);
        if self.disk.exists(&path).map_err(failed)? {
            self.disk.remove(&path).map_err(failed)?;
        }
        let file = self.disk.create(&path).map_err(failed)?;
        if let Err(error) = self.reserve(&*file, size) {
            let error = failed(error);
            // Half a file is of no use, and its space is what the operator is short of.
            drop(file);
            self.disk.remove(&path).ok();
            return Err(error);
        }
        Ok((path, file))
    }

    fn reserve(&self, file: &dyn DiskFile, size: u64) -> io::Result<()> {
        file.preallocate(size)?;
        if self.options.zero_new_segments {
            let zeros = vec![0; ZEROS_BYTES.min(size as usize)];
            let mut at = 0;
            while at < size {
                let step = (size - at).min(zeros.len() as u64);
                file.write_all_at(at, zeros.get(..step as usize).unwrap_or_default())?;
                at += step;
            }
        }
        // Also the reason why no batch ever shares its sync with the making of a file.
        file.sync_data()
    }

    /// Makes an unused file of the usual size, named after the segment it may become. May run beside
    /// the writer.
    pub(super) fn make_spare(&self, sequence: u64) -> Result<PathBuf, LogError> {
        // Not the name that segment will have when it is given up itself.
        let name = format!("{SPARE_PREFIX}for-{sequence:016x}");
        let (path, _) = self.make(&name, self.options.segment_bytes)?;
        let spare = self.dir.join(name);
        self.disk.rename(&path, &spare).map_err(|error| LogError::io("rename", &path, error))?;
        Ok(spare)
    }

    /// Makes a segment, of a spare if there is one of the right size.
    pub(super) fn make_segment(
        &self,
        header: SegmentHeader,
        spares: &mut Vec<PathBuf>,
    ) -> Result<Arc<SegmentFile>, LogError> {
        let usual = header.size == self.options.segment_bytes;
        let recycled = usual.then(|| spares.last().cloned()).flatten();
        let (spare, file) = match recycled.clone() {
            Some(path) => {
                let file = self.disk.open(&path).map_err(|error| LogError::io("open", &path, error))?;
                (path, file)
            }
            None => self.make(&segment_name(header.sequence), header.size)?,
        };
        // On a file system that copies on write even this may find no room: the spare stays one, and is tried again.
        file.write_all_at(0, &header.encode()).map_err(|error| write_error(self.disk, &spare, 512, error))?;
        if recycled.is_some() {
            spares.pop();
        }
        sync(&*file, &spare)?;
        let path = self.dir.join(segment_name(header.sequence));
        self.disk.rename(&spare, &path).map_err(|error| LogError::io("rename", &spare, error))?;
        self.sync_dir()?;
        Ok(Arc::new(SegmentFile { header, path, file }))
    }

    /// Takes a segment's name away: its file becomes a spare if it can be one and one is wanted. The
    /// caller syncs the directory before it uses a spare.
    pub(super) fn discard(&self, path: &Path, reusable: bool, spares: &mut Vec<PathBuf>) -> Result<(), LogError> {
        if !reusable || spares.len() >= self.options.spare_segments {
            return self.disk.remove(path).map_err(|error| LogError::io("remove", path, error));
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let spare = self.dir.join(format!("{SPARE_PREFIX}{name}"));
        self.disk.rename(path, &spare).map_err(|error| LogError::io("rename", path, error))?;
        spares.push(spare);
        Ok(())
    }
}
