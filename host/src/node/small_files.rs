//! Small files of a data directory: marks, which say something by being there, and JSON, which is replaced as a whole.
//!
//! Invariant: when a function here returns, what it did is durable, also when an earlier process did the first half of it.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk::Disk;

/// No such file is longer, unless it is damaged.
const BYTES_MAX: u64 = 1 << 20;

/// Whether the mark is there.
pub(super) fn is_marked(disk: &dyn Disk, data_dir: &Path, name: &str) -> io::Result<bool> {
    disk.exists(&data_dir.join(name))
}

pub(super) fn mark(disk: &dyn Disk, data_dir: &Path, name: &str) -> io::Result<()> {
    let path = data_dir.join(name);
    if !disk.exists(&path)? {
        disk.create(&path)?.sync_data()?;
    }
    // Also where it is there: who created it may have ended before its name was durable.
    disk.sync_dir(data_dir)
}

/// Removes a file, if it is there, and makes it durable that it is not.
pub(super) fn remove(disk: &dyn Disk, data_dir: &Path, name: &str) -> io::Result<()> {
    let path = data_dir.join(name);
    if disk.exists(&path)? {
        disk.remove(&path)?;
    }
    // Also where it is gone, as in `mark`: it could be there again.
    disk.sync_dir(data_dir)
}

/// What the file says; `None` when there is none.
pub(super) fn read<T: DeserializeOwned>(disk: &dyn Disk, data_dir: &Path, name: &str) -> io::Result<Option<T>> {
    let path = data_dir.join(name);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{name} is damaged: {why}"));
    let file = disk.open(&path)?;
    let length = file.len()?;
    if length > BYTES_MAX {
        return Err(damaged(format!("it has {length} bytes")));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(0, &mut bytes)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(error.to_string()))
}

pub(super) fn write<T: Serialize>(disk: &dyn Disk, data_dir: &Path, name: &str, value: &T) -> io::Result<()> {
    let part = data_dir.join(format!("{name}.part"));
    if disk.exists(&part)? {
        disk.remove(&part)?;
    }
    let file = disk.create(&part)?;
    file.write_all_at(0, serde_json::to_string(value)?.as_bytes())?;
    file.sync_data()?;
    disk.rename(&part, &data_dir.join(name))?;
    disk.sync_dir(data_dir)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::sim::SimDisk;

    /// A node was killed between the creation of a mark and the sync of its directory. The next start found the mark and built upon
    /// it; then the power failed, and what had been built was there without it.
    #[test]
    fn a_mark_that_an_earlier_process_left_half_done_is_durable_too() {
        let (disk, dir) = (SimDisk::new(), Path::new("/node"));
        disk.create_dir_all(dir).unwrap();
        disk.create(&dir.join("mark")).unwrap().sync_data().unwrap();
        disk.kill_process();
        mark(&disk, dir, "mark").unwrap();
        disk.crash_after(0, 0);
        assert!(is_marked(&disk, dir, "mark").unwrap());
        remove(&disk, dir, "mark").unwrap();
        disk.crash_after(0, 0);
        assert!(!is_marked(&disk, dir, "mark").unwrap());

        mark(&disk, dir, "mark").unwrap();
        disk.remove(&dir.join("mark")).unwrap();
        disk.kill_process();
        remove(&disk, dir, "mark").unwrap();
        disk.crash_after(0, 0);
        assert!(!is_marked(&disk, dir, "mark").unwrap(), "it does not come back either");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_its_damage_is_told_by_name() {
        let (disk, dir) = (SimDisk::new(), Path::new("/node"));
        disk.create_dir_all(dir).unwrap();
        assert_eq!(read::<Vec<u8>>(&disk, dir, "a.json").unwrap(), None);
        for value in [vec![1, 2], vec![3]] {
            write(&disk, dir, "a.json", &value).unwrap();
            disk.crash_after(0, 0);
            assert_eq!(read(&disk, dir, "a.json").unwrap(), Some(value));
        }
        disk.overwrite(&dir.join("a.json"), 0, b"{").unwrap();
        assert!(read::<Vec<u8>>(&disk, dir, "a.json").unwrap_err().to_string().starts_with("a.json is damaged"));
        disk.open(&dir.join("a.json")).unwrap().set_len(BYTES_MAX + 1).unwrap();
        assert!(read::<Vec<u8>>(&disk, dir, "a.json").unwrap_err().to_string().contains("1048577 bytes"));
    }
}
