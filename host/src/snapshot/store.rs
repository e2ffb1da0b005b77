//! The directory of one group's snapshots.

use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::Digest;
use sha2::Sha256;

use super::SnapshotError;
use super::format;
use super::format::Head;
use super::format::SnapshotReader;
use crate::disk::Disk;
use crate::disk::DiskFile;

/// A complete snapshot file.
#[derive(Clone)]
pub struct SnapshotFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    size: u64,
    digest: [u8; 32],
}

impl std::fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.size)
    }
}

impl SnapshotFile {
    /// SHA-256 over the file, as its foot says.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The file's size, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn moved_to(self, path: PathBuf) -> Self {
        Self { path, ..self }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When it was written, Unix milliseconds; where the disk can tell.
    pub fn written_ms(&self) -> Option<u64> {
        self.disk.written_ms(&self.path)
    }

    /// The file held open: it can be read to its end even when newer snapshots take its place.
    pub fn hold(&self) -> Result<HeldSnapshot, SnapshotError> {
        let file = self.disk.open(&self.path);
        let file = file.map_err(|source| SnapshotError::Io { path: self.path.clone(), source })?;
        Ok(HeldSnapshot { file: file.into(), size: self.size, digest: self.digest })
    }

    /// Reads it all again: whether it is what was written.
    pub fn check(&self) -> Result<(), SnapshotError> {
        let (_, file) = verify(&self.disk, &self.path)?;
        if file.digest == self.digest && file.size == self.size {
            return Ok(());
        }
        let reason = "it is another file than the one that was written".to_owned();
        Err(SnapshotError::Damaged { path: self.path.clone(), offset: 0, reason })
    }

    /// Head and payload.
    pub fn reader(&self) -> Result<(Head, SnapshotReader<FileReader>), SnapshotError> {
        reader(&*self.disk, &self.path)
    }
}

/// A snapshot file that is held open. Clones are the same.
#[derive(Clone)]
pub struct HeldSnapshot {
    file: Arc<dyn DiskFile>,
    size: u64,
    digest: [u8; 32],
}

impl std::fmt::Debug for HeldSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a snapshot of {} bytes", self.size)
    }
}

impl HeldSnapshot {
    /// SHA-256 over the file, as its foot says.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The file's size, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Up to `length` bytes from `offset`; fewer only at the end.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(left)];
        self.file.read_exact_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// Creates an unfinished file, in place of one that an earlier attempt left.
pub(super) fn create_anew(disk: &dyn Disk, path: &Path) -> io::Result<Box<dyn DiskFile>> {
    if disk.exists(path)? {
        disk.remove(path)?;
    }
    disk.create(path)
}

/// Reads a [`DiskFile`] from its beginning.
pub struct FileReader {
    file: Box<dyn DiskFile>,
    offset: u64,
}

impl Read for FileReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(self.offset, out)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileReader at {}", self.offset)
    }
}

pub(super) fn file_reader(file: Box<dyn DiskFile>) -> FileReader {
    FileReader { file, offset: 0 }
}

pub(super) fn reader(disk: &dyn Disk, path: &Path) -> Result<(Head, SnapshotReader<FileReader>), SnapshotError> {
    let file = disk.open(path).map_err(|source| SnapshotError::Io { path: path.to_owned(), source })?;
    SnapshotReader::open(file_reader(file)).map_err(|wrong| damaged(path, wrong))
}

pub(super) fn damaged(path: &Path, wrong: format::Wrong) -> SnapshotError {
    SnapshotError::Damaged { path: path.to_owned(), offset: wrong.offset, reason: wrong.reason }
}

/// Reads a whole file; its head and itself when every checksum holds.
pub(super) fn verify(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Head, SnapshotFile), SnapshotError> {
    let (head, payload) = reader(&**disk, path)?;
    let digest = payload.verify().map_err(|wrong| damaged(path, wrong))?;
    let size = disk.open(path).and_then(|file| file.len());
    let size = size.map_err(|source| SnapshotError::Io { path: path.to_owned(), source })?;
    Ok((head, SnapshotFile { disk: disk.clone(), path: path.to_owned(), size, digest }))
}

/// What a search for the newest snapshot found.
#[derive(Debug)]
pub struct Newest {
    /// The newest that verifies.
    pub found: Option<(Head, SnapshotFile)>,
    /// Why newer ones are not used.
    pub refused: Vec<SnapshotError>,
}

/// One group's snapshots.
#[derive(Clone)]
pub struct SnapshotStore {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    keep: usize,
    /// Free bytes of the disk that no snapshot may use.
    floor_bytes: u64,
}

impl std::fmt::Debug for SnapshotStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "snapshots in {}", self.directory.display())
    }
}

const SUFFIX: &str = ".snap";
/// Files a crash may leave behind, removed at the next start.
const UNFINISHED_SUFFIX: &str = ".writing.part";
/// What has arrived of another node's snapshot: kept, also across a restart, to go on from (see [`super::Receiver`]).
pub(super) const RECEIVED_SUFFIX: &str = ".received.part";

/// Whether `more` bytes in the directory leave `floor_bytes` of the disk free.
pub(super) fn check_space(disk: &dyn Disk, directory: &Path, floor_bytes: u64, more: u64) -> io::Result<()> {
    if floor_bytes == 0 {
        return Ok(());
    }
    let free = disk.free_space(directory)?;
    if free.saturating_sub(more) >= floor_bytes {
        return Ok(());
    }
    let reason = format!(
        "the disk is full: {more} more bytes of {free} would leave less than the {floor_bytes} that are kept for the log"
    );
    Err(io::Error::new(io::ErrorKind::StorageFull, reason))
}

impl SnapshotStore {
    /// Opens the directory, makes it when it is not there, makes durable what is in it, and removes what a crash left unfinished.
    /// `keep` complete files stay, at least one; `floor_bytes` of the disk stay free.
    pub fn open(disk: Arc<dyn Disk>, directory: PathBuf, keep: usize, floor_bytes: u64) -> Result<Self, SnapshotError> {
        let store = Self { disk, directory, keep: keep.max(1), floor_bytes };
        let io = |source| SnapshotError::Io { path: store.directory.clone(), source };
        store.disk.create_dir_all(&store.directory).map_err(io)?;
        // An earlier process may have ended between a file's name and the sync of it: what is believed here must stay.
        let sync = |source| SnapshotError::Sync { path: store.directory.clone(), source };
        store.disk.sync_dir(&store.directory).map_err(sync)?;
        for name in store.disk.list(&store.directory).map_err(io)? {
            if name.ends_with(UNFINISHED_SUFFIX) {
                store.disk.remove(&store.directory.join(name)).map_err(io)?;
            }
        }
        Ok(store)
    }

    fn io(&self, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
        let path = path.to_owned();
        move |source| SnapshotError::Io { path: path.clone(), source }
    }

    /// Whether `more` bytes leave the log the space that is its own. A full disk is one that has not.
    pub(super) fn check_space(&self, more: u64) -> io::Result<()> {
        check_space(&*self.disk, &self.directory, self.floor_bytes, more)
    }

    /// The names of complete files, newest first: the name begins with the index, in hexadecimal of one width.
    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let mut names = self.disk.list(&self.directory).map_err(self.io(&self.directory))?;
        names.retain(|name| name.ends_with(SUFFIX));
        names.sort();
        names.reverse();
        Ok(names)
    }

    /// Whether there is no snapshot, not even a damaged one.
    pub fn is_empty(&self) -> Result<bool, SnapshotError> {
        Ok(self.names()?.is_empty())
    }

    /// The newest snapshot that verifies, and the errors of newer ones that do not.
    pub fn newest(&self) -> Result<Newest, SnapshotError> {
        let mut refused = Vec::new();
        for name in self.names()? {
            match verify(&self.disk, &self.directory.join(&name)) {
                Ok(found) => return Ok(Newest { found: Some(found), refused }),
                Err(error) => refused.push(error),
            }
        }
        Ok(Newest { found: None, refused })
    }

    fn name_of(head: &Head) -> String {
        format!("{:016x}-{:x}{SUFFIX}", head.last_log_id.index, head.last_log_id.committed_leader_id().term)
    }

    /// Begins to write a snapshot.
    pub fn write(&self, head: &Head) -> Result<SnapshotWriter, SnapshotError> {
        let name = Self::name_of(head);
        let path = self.directory.join(format!("{name}{UNFINISHED_SUFFIX}"));
        let file = create_anew(&*self.disk, &path).map_err(self.io(&path))?;
        let mut writer = SnapshotWriter {
            store: self.clone(),
            target: self.directory.join(name),
            path,
            file,
            digest: Sha256::new(),
            offset: 0,
            unsynced: Unsynced::default(),
            payload: 0,
            chunk: Vec::with_capacity(format::CHUNK_BYTES),
        };
        let begun = format::encode_head(head).and_then(|bytes| writer.put(&bytes));
        if let Err(source) = begun {
            let error = SnapshotError::of_writing(&writer.path, source);
            writer.abandon();
            return Err(error);
        }
        Ok(writer)
    }

    /// How many complete files stay.
    pub fn kept(&self) -> usize {
        self.keep
    }

    /// Gives a verified, synced file its name, syncs the directory, and removes files beyond `keep` if they let it.
    pub(super) fn publish(&self, from: &Path, head: &Head) -> Result<PathBuf, SnapshotError> {
        let target = self.directory.join(Self::name_of(head));
        self.disk.rename(from, &target).map_err(self.io(from))?;
        let sync = |source| SnapshotError::Sync { path: self.directory.clone(), source };
        self.disk.sync_dir(&self.directory).map_err(sync)?;
        self.remove_old(&target);
        Ok(target)
    }

    /// Removes files beyond `keep`, and never `newest`: damaged ones may have higher indexes than it. What cannot be removed
    /// stays until the next one is written; the newest is as good with it.
    fn remove_old(&self, newest: &Path) {
        let names = self.names().unwrap_or_else(|error| {
            tracing::warn!(%error, "older snapshots are still there");
            Vec::new()
        });
        for old in names.into_iter().skip(self.keep).map(|name| self.directory.join(name)).filter(|old| old != newest) {
            if let Err(error) = self.disk.remove(&old) {
                tracing::warn!(path = %old.display(), %error, "an older snapshot is still there");
            }
        }
    }

    /// Takes a received file (see [`super::Receiver`]) among the snapshots.
    pub fn adopt(&self, file: &SnapshotFile, head: &Head) -> Result<SnapshotFile, SnapshotError> {
        if file.path.extension().is_some_and(|end| end == "snap") {
            return Ok(file.clone());
        }
        let path = self.publish(&file.path, head)?;
        Ok(SnapshotFile { path, ..file.clone() })
    }

    /// Removes a group's directory, if it is there. What was in it is durably gone when this returns.
    pub fn remove(disk: &dyn Disk, directory: &Path) -> Result<(), SnapshotError> {
        let io = |source| SnapshotError::Io { path: directory.to_owned(), source };
        if !disk.exists(directory).map_err(io)? {
            return Ok(());
        }
        for name in disk.list(directory).map_err(io)? {
            disk.remove(&directory.join(name)).map_err(io)?;
        }
        let sync = |source| SnapshotError::Sync { path: directory.to_owned(), source };
        disk.sync_dir(directory).map_err(sync)?;
        disk.remove_dir_all(directory).map_err(io)
    }
}

/// A large file goes to the disk as it is written. All at once, when it is finished, it would be more than the log's syncs can
/// wait behind.
#[derive(Debug, Default)]
pub(super) struct Unsynced(u64);

impl Unsynced {
    /// So much may wait in memory.
    const BYTES_MAX: u64 = 8 << 20;

    /// So many bytes more were written.
    pub(super) fn add(&mut self, bytes: u64, file: &dyn DiskFile, path: &Path) -> Result<(), SnapshotError> {
        self.0 = self.0.saturating_add(bytes);
        if self.0 >= Self::BYTES_MAX {
            self.0 = 0;
            file.sync_data().map_err(|source| SnapshotError::Sync { path: path.to_owned(), source })?;
        }
        Ok(())
    }
}

/// Writes one snapshot; what is written to it is the payload.
pub struct SnapshotWriter {
    store: SnapshotStore,
    target: PathBuf,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    digest: Sha256,
    offset: u64,
    unsynced: Unsynced,
    payload: u64,
    chunk: Vec<u8>,
}

impl std::fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.path.display(), self.offset)
    }
}

impl SnapshotWriter {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.store.check_space(bytes.len() as u64)?;
        self.file.write_all_at(self.offset, bytes)?;
        self.digest.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(self.unsynced.add(bytes.len() as u64, &*self.file, &self.path)?)
    }

    fn put_chunk(&mut self) -> io::Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        self.put(&format::chunk_head(&chunk))?;
        self.put(&chunk)?;
        self.payload += chunk.len() as u64;
        self.chunk = chunk;
        self.chunk.clear();
        Ok(())
    }

    /// Writes the foot, syncs, gives the file its name, syncs the directory.
    pub fn finish(mut self, head: &Head) -> Result<SnapshotFile, SnapshotError> {
        let written = (|| {
            if !self.chunk.is_empty() {
                self.put_chunk()?;
            }
            self.put_chunk()?;
            self.put(&self.payload.to_le_bytes())?;
            let digest: [u8; 32] = self.digest.clone().finalize().into();
            self.file.write_all_at(self.offset, &digest)?;
            Ok(digest)
        })();
        let digest = match written {
            Ok(digest) => digest,
            Err(source) => {
                let error = SnapshotError::of_writing(&self.path, source);
                self.abandon();
                return Err(error);
            }
        };
        self.file.sync_data().map_err(|source| SnapshotError::Sync { path: self.path.clone(), source })?;
        let path = match self.store.publish(&self.path, head) {
            Ok(path) => path,
            Err(error) => {
                self.abandon();
                return Err(error);
            }
        };
        debug_assert_eq!(path, self.target);
        Ok(SnapshotFile { disk: self.store.disk.clone(), path, size: self.offset + 32, digest })
    }

    /// Removes the unfinished file.
    pub fn abandon(self) {
        let _gone_at_next_start_otherwise = self.store.disk.remove(&self.path);
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = format::CHUNK_BYTES.saturating_sub(self.chunk.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.chunk.extend_from_slice(taken);
        if self.chunk.len() == format::CHUNK_BYTES {
            self.put_chunk()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::vote::leader_id_std::CommittedLeaderId;

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::types::LogId;

    const DIR: &str = "/node/groups/7";

    fn open(disk: &SimDisk) -> SnapshotStore {
        SnapshotStore::open(Arc::new(disk.clone()), DIR.into(), 1, 0).unwrap()
    }

    fn write(store: &SnapshotStore, index: u64) -> Result<SnapshotFile, SnapshotError> {
        let head = Head {
            group: 7,
            last_log_id: LogId::new(CommittedLeaderId::new(3), index),
            membership: Default::default(),
            module: [1; 32],
            host_state: vec![2; 100],
            made: Vec::new(),
            change: 0,
        };
        let mut writer = store.write(&head)?;
        writer.write_all(&[3; 1000]).map_err(|error| SnapshotError::of_writing(Path::new(DIR), error))?;
        writer.finish(&head)
    }

    fn newest(disk: &SimDisk) -> Option<u64> {
        let newest = open(disk).newest().unwrap();
        assert!(newest.refused.is_empty(), "{newest:?}");
        newest.found.map(|(head, _)| head.last_log_id.index)
    }

    /// A process was killed between the rename of a snapshot and the sync of its directory. The next start went on from it, and let
    /// the log be purged behind it; then the power failed, and the snapshot was gone.
    #[test]
    fn the_snapshot_that_a_start_goes_on_from_is_there_at_the_next_one() {
        for calls in 0.. {
            let disk = SimDisk::new();
            write(&open(&disk), 5).unwrap();
            disk.cut_power_after(calls);
            let store = SnapshotStore::open(Arc::new(disk.clone()), DIR.into(), 1, 0);
            let written = store.and_then(|store| write(&store, 9));
            disk.heal();
            disk.kill_process();
            let believed = newest(&disk);
            disk.crash_after(0, 0);
            assert_eq!(newest(&disk), believed, "killed after {calls} calls");
            if written.is_ok() {
                assert_eq!(believed, Some(9));
                return;
            }
        }
    }

    /// An older file could not be removed, and the new one, whole and synced, counted as not written; a replica that had received it
    /// stopped.
    #[test]
    fn a_snapshot_is_written_though_an_older_one_cannot_be_removed() {
        let disk = SimDisk::new();
        // What cannot be removed as a file.
        disk.create_dir_all(&Path::new(DIR).join("0000000000000001-1.snap")).unwrap();
        write(&open(&disk), 9).unwrap();
        assert_eq!(newest(&disk), Some(9));
    }

    /// A leader sent its snapshot to a replica whose own, of higher indexes, were damaged. They counted as newer, and what was just
    /// received was removed as the oldest one.
    #[test]
    fn a_snapshot_is_not_removed_for_damaged_ones_of_higher_indexes() {
        let disk = SimDisk::new();
        let store = open(&disk);
        for index in [20, 30] {
            let file = write(&store, index).unwrap();
            disk.flip_bit(file.path(), 300, 1).unwrap();
        }
        let written = write(&store, 9).unwrap();
        written.check().unwrap();
        assert_eq!(store.newest().unwrap().found.unwrap().0.last_log_id.index, 9);
    }
}
