//! A file that appears under its name only when it is whole and on disk.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::Failure;

/// Takes what comes, piece by piece.
pub(super) trait Sink: Send {
    /// Takes the next piece.
    fn write(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), Failure>>;
}

impl Sink for WholeFile {
    fn write(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(std::future::ready(self.put(&piece)))
    }
}

/// A file that is being written, under another name. Dropped before [`Self::finish`], it is removed.
#[derive(Debug)]
pub(super) struct WholeFile {
    target: PathBuf,
    part: PathBuf,
    file: File,
    finished: bool,
}

/// The directory that a file is in.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull => "free space there, or name another place",
        io::ErrorKind::NotFound => "make the directory first",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "name a place that can be written to",
        _ => "name another place",
    };
    Failure::here(format!("cannot {what} {}: {error}", path.display()), remedy)
}

impl WholeFile {
    /// Begins a file at `target`. One that is there is left alone unless `overwrite` says otherwise.
    pub(super) fn create(target: &Path, overwrite: bool) -> Result<Self, Failure> {
        if !overwrite && target.symlink_metadata().is_ok() {
            let what = format!("{} is there already", target.display());
            return Err(Failure::here(what, "name another file, or give --overwrite"));
        }
        let Some(name) = target.file_name() else {
            return Err(Failure::usage(format!("{} names no file", target.display()), "name a file"));
        };
        // The process's id: two that write the same file do not write into each other's.
        let part = directory_of(target).join(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        let file = File::create(&part).map_err(|error| cannot("write", &part, &error))?;
        Ok(Self { target: target.to_owned(), part, file, finished: false })
    }

    /// Writes the next bytes.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| cannot("write", &self.target, &error))
    }

    /// Syncs the file, gives it its name, and syncs the directory.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| cannot("sync", &self.target, &error))?;
        fs::rename(&self.part, &self.target).map_err(|error| cannot("write", &self.target, &error))?;
        self.finished = true;
        sync_directory(directory_of(&self.target))
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), Failure> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| cannot("sync", directory, &error))
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.finished {
            // The name says what it is to whoever finds it.
            let _gone = fs::remove_file(&self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("c1.snap");
        let names = || fs::read_dir(folder.path()).unwrap().count();
        let mut broken = WholeFile::create(&target, false).unwrap();
        broken.put(b"half").unwrap();
        drop(broken);
        assert_eq!(names(), 0);
        let mut whole = WholeFile::create(&target, false).unwrap();
        whole.put(b"whole").unwrap();
        assert!(!target.exists());
        whole.finish().unwrap();
        assert_eq!((names(), fs::read(&target).unwrap()), (1, b"whole".to_vec()));
        assert!(WholeFile::create(&target, false).unwrap_err().to_string().contains("--overwrite"));
        WholeFile::create(&target, true).unwrap().finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"");
    }
}
