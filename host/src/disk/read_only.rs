//! The machine's disk for who only looks: files are opened for reading, and whatever would change something is refused. So a
//! directory of another user, on a file system that is mounted read-only, or under a running node can be looked at, and stays
//! as it is whatever the code above does.

use std::fs;
use std::io;
use std::path::Path;

use super::Disk;
use super::DiskFile;
use super::RealDisk;
use super::RealFile;

/// See the file's head.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnlyDisk;

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "this is only looked at"))
}

impl Disk for ReadOnlyDisk {
    fn create(&self, _: &Path) -> io::Result<Box<dyn DiskFile>> {
        refused()
    }

    /// The handle's own writes are refused by the system.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(fs::File::open(path)?)))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove_dir_all(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        RealDisk.free_space(path)
    }

    fn total_space(&self, path: &Path) -> io::Result<u64> {
        RealDisk.total_space(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_only_looked_at_cannot_be_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"as it was").unwrap();
        let file = ReadOnlyDisk.open(&path).unwrap();
        let mut bytes = [0; 9];
        file.read_exact_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"as it was");
        assert!(file.write_all_at(0, b"changed").is_err() && file.set_len(0).is_err() && file.preallocate(99).is_err());
        let other = folder.path().join("other");
        assert!(ReadOnlyDisk.create(&other).is_err() && ReadOnlyDisk.remove(&path).is_err());
        assert!(ReadOnlyDisk.rename(&path, &other).is_err() && ReadOnlyDisk.remove_dir_all(folder.path()).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"as it was");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
