//! The receiving end of a snapshot transfer: parts are checked and written where they belong, a cut transfer goes on where
//! it stopped, and the whole is verified before anyone believes it.
//!
//! Invariants:
//! - What is counted as received has the checksum that its sender took where it read it, and follows the format of a snapshot
//!   file up to the last whole chunk: damage on the sender's disk is found in its chunk.
//! - What has arrived outlives this process. It need not be synced: whoever goes on with it reads it again, and goes on from
//!   the last chunk that is whole. And writes it again: after a failed sync the page cache may show what the device never got,
//!   and no later sync would write it.
//! - A file that is being installed is left alone, whatever else is offered meanwhile: consensus has been promised it, and a
//!   replica that does not find it stops.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Weak;

use super::Head;
use super::SnapshotError;
use super::SnapshotFile;
use super::SnapshotStore;
use super::store::RECEIVED_SUFFIX;
use super::store::Unsynced;
use super::store::verify;
use super::verifier::Verifier;
use crate::disk::DiskFile;

/// How much of a file that is there is read at once, bytes.
const READ_BYTES: usize = 256 << 10;

/// The checksum of a part on its way: CRC-32C over where it belongs and what it is.
pub fn part_checksum(offset: u64, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&offset.to_le_bytes()), data)
}

/// One group's incoming snapshot. At most one transfer at a time: a newer offer replaces an older one.
pub struct Receiver {
    store: SnapshotStore,
    current: Option<Transfer>,
    /// Whether what came last is being installed: its [`Received`] is there.
    installing: Weak<()>,
}

/// A snapshot that came whole. As long as this is there, its file is.
#[derive(Debug)]
pub struct Received {
    /// Its head.
    pub head: Head,
    /// Its file.
    pub file: SnapshotFile,
    _kept: Arc<()>,
}

struct Transfer {
    digest: [u8; 32],
    size: u64,
    /// Knows how much has been received.
    verifier: Verifier,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    unsynced: Unsynced,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.current {
            None => f.write_str("no transfer"),
            Some(transfer) => {
                let received = transfer.verifier.offset();
                write!(f, "{}: {received} of {} bytes", transfer.path.display(), transfer.size)
            }
        }
    }
}

impl Receiver {
    /// Receives into `store`'s directory.
    pub fn new(store: SnapshotStore) -> Self {
        Self { store, current: None, installing: Weak::new() }
    }

    fn io(path: &Path) -> impl Fn(std::io::Error) -> SnapshotError {
        let path = path.to_owned();
        move |source| SnapshotError::Io { path: path.clone(), source }
    }

    /// Begins a transfer, or finds the one that was cut, be it before a restart; answers the offset to go on from. When there
    /// is no room for what is missing, nothing is begun.
    pub fn begin(&mut self, digest: [u8; 32], size: u64) -> Result<u64, SnapshotError> {
        if let Some(transfer) = self.current.as_ref().filter(|t| t.digest == digest && t.size == size) {
            return Ok(transfer.verifier.offset());
        }
        self.check_installed()?;
        self.current = None;
        let name = format!("{}{RECEIVED_SUFFIX}", hex::encode(digest));
        let path = self.store.directory.join(&name);
        self.remove_received(Some(&name))?;
        let disk = &self.store.disk;
        let mut unsynced = Unsynced::default();
        let (file, verifier) = if disk.exists(&path).map_err(Self::io(&path))? {
            let file = disk.open(&path).map_err(Self::io(&path))?;
            let verifier = verified_part(&*file, &path, size, &mut unsynced)?;
            (file, verifier)
        } else {
            (disk.create(&path).map_err(Self::io(&path))?, Verifier::default())
        };
        self.store.check_space(size.saturating_sub(verifier.offset())).map_err(Self::io(&path))?;
        let offset = verifier.offset();
        self.current = Some(Transfer { digest, size, verifier, path, file, unsynced });
        Ok(offset)
    }

    /// Takes one part; answers the offset the next one begins at. A part that is already there, or that leaves
    /// a gap, changes nothing. After one that does not check out the transfer stands at the last whole chunk.
    pub fn part(&mut self, digest: [u8; 32], offset: u64, checksum: u32, data: &[u8]) -> Result<u64, SnapshotError> {
        let Some(transfer) = self.current.as_mut().filter(|transfer| transfer.digest == digest) else {
            return Err(self.unknown(digest));
        };
        if part_checksum(offset, data) != checksum {
            let (path, reason) = (transfer.path.clone(), "a part changed on its way".to_owned());
            return Err(SnapshotError::Damaged { path, offset, reason });
        }
        let end = offset.saturating_add(data.len() as u64);
        if offset != transfer.verifier.offset() || end > transfer.size {
            return Ok(transfer.verifier.offset());
        }
        let io = Self::io(&transfer.path);
        self.store.check_space(data.len() as u64).map_err(&io)?;
        transfer.file.write_all_at(offset, data).map_err(&io)?;
        transfer.unsynced.add(data.len() as u64, &*transfer.file, &transfer.path)?;
        match transfer.verifier.push(data) {
            Ok(()) => Ok(end),
            Err(wrong) => {
                let reason = format!("{}: the sender's own file is damaged", wrong.reason);
                Err(SnapshotError::SentDamaged { offset: wrong.offset, reason })
            }
        }
    }

    /// All parts are here: syncs and verifies the file. One that is not what was offered goes.
    pub fn end(&mut self, digest: [u8; 32]) -> Result<Received, SnapshotError> {
        self.check_installed()?;
        let Some(transfer) = self.current.take_if(|transfer| transfer.digest == digest) else {
            return Err(self.unknown(digest));
        };
        transfer.file.sync_data().map_err(|source| SnapshotError::Sync { path: transfer.path.clone(), source })?;
        let verified = verify(&self.store.disk, &transfer.path).and_then(|(head, file)| {
            if file.digest() == digest && file.size() == transfer.size {
                return Ok((head, file));
            }
            let reason = "what arrived is not the file that was offered".to_string();
            Err(SnapshotError::Damaged { path: transfer.path.clone(), offset: transfer.size, reason })
        });
        if verified.is_err() {
            self.store.disk.remove(&transfer.path).map_err(Self::io(&transfer.path))?;
        }
        let (head, file) = verified.map_err(|error| match error {
            // Every part came as it was read there. What is left is the digest over the whole, or damage on this disk, which the
            // sender finds to be none on its own.
            SnapshotError::Damaged { offset, reason, .. } => SnapshotError::SentDamaged { offset, reason },
            error => error,
        })?;
        let kept = Arc::new(());
        self.installing = Arc::downgrade(&kept);
        Ok(Received { head, file, _kept: kept })
    }

    fn check_installed(&self) -> Result<(), SnapshotError> {
        if self.installing.strong_count() == 0 {
            return Ok(());
        }
        let source =
            std::io::Error::new(std::io::ErrorKind::WouldBlock, "a snapshot is being installed; offer it again");
        Err(SnapshotError::Io { path: self.store.directory.clone(), source })
    }

    /// Removes what has arrived: nobody goes on with it.
    pub fn forget(&mut self) -> Result<(), SnapshotError> {
        self.check_installed()?;
        self.current = None;
        self.remove_received(None)
    }

    fn remove_received(&self, except: Option<&str>) -> Result<(), SnapshotError> {
        let (disk, directory) = (&self.store.disk, &self.store.directory);
        for name in disk.list(directory).map_err(Self::io(directory))? {
            if name.ends_with(RECEIVED_SUFFIX) && except != Some(&name) {
                let path = directory.join(name);
                disk.remove(&path).map_err(Self::io(&path))?;
            }
        }
        Ok(())
    }

    fn unknown(&self, digest: [u8; 32]) -> SnapshotError {
        let path = self.store.directory.join(hex::encode(digest));
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such transfer is under way");
        SnapshotError::Io { path, source }
    }
}

/// Reads what is there of a file of `size` bytes, and writes it again; the verifier stands behind the last chunk that is whole.
fn verified_part(
    file: &dyn DiskFile,
    path: &Path,
    size: u64,
    unsynced: &mut Unsynced,
) -> Result<Verifier, SnapshotError> {
    let io = Receiver::io(path);
    let mut verifier = Verifier::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let left = usize::try_from(size.saturating_sub(verifier.offset())).unwrap_or(usize::MAX).min(READ_BYTES);
        let Some(room) = buffer.get_mut(..left).filter(|room| !room.is_empty()) else { break };
        let offset = verifier.offset();
        let got = file.read_at(offset, room).map_err(&io)?;
        let read = room.get(..got).unwrap_or_default();
        if read.is_empty() || verifier.push(read).is_err() {
            break;
        }
        file.write_all_at(offset, read).map_err(&io)?;
        unsynced.add(got as u64, file, path)?;
    }
    verifier.rewind();
    Ok(verifier)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::io::Write;
    use std::sync::Arc;

    use openraft::vote::leader_id_std::CommittedLeaderId;

    use super::*;
    use crate::disk::Disk;
    use crate::disk::sim::SimDisk;
    use crate::types::LogId;

    fn head() -> Head {
        Head {
            group: 7,
            last_log_id: LogId::new(CommittedLeaderId::new(3), 100),
            membership: Default::default(),
            module: [1; 32],
            host_state: vec![2; 1000],
            made: Vec::new(),
            change: 0,
        }
    }

    /// A snapshot of several chunks on another node's disk, as bytes.
    fn offered() -> (SnapshotFile, Vec<u8>) {
        let (store, head) = (store(&SimDisk::new(), 0), head());
        let mut writer = store.write(&head).unwrap();
        writer.write_all(&(0..700_000u32).map(|at| at as u8).collect::<Vec<u8>>()).unwrap();
        let file = writer.finish(&head).unwrap();
        let bytes = file.hold().unwrap().read(0, usize::MAX).unwrap();
        assert_eq!(bytes.len() as u64, file.size());
        (file, bytes)
    }

    fn store(disk: &SimDisk, floor_bytes: u64) -> SnapshotStore {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        SnapshotStore::open(disk, "/node/groups/7".into(), 2, floor_bytes).unwrap()
    }

    /// Sends from `offset` in parts of `length` up to `upto`; the offset that was answered last.
    fn send(
        receiver: &mut Receiver,
        file: &SnapshotFile,
        bytes: &[u8],
        mut offset: u64,
        length: usize,
        upto: u64,
    ) -> u64 {
        while offset < upto {
            let part = &bytes[offset as usize..bytes.len().min(offset as usize + length)];
            offset = receiver.part(file.digest(), offset, part_checksum(offset, part), part).unwrap();
        }
        offset
    }

    /// A large file is synced as it grows. Whoever is told that the disk failed in the middle of it must end the process, as at the end.
    #[test]
    fn a_sync_that_fails_before_a_large_file_is_finished_is_known_for_what_it_is() {
        let (disk, bytes) = (SimDisk::new(), vec![7; 9 << 20]);
        let head = head();
        disk.fail_sync(0);
        let mut writer = store(&disk, 0).write(&head).unwrap();
        let error = writer.write_all(&bytes).unwrap_err();
        let error = SnapshotError::of_writing(Path::new("/elsewhere"), error);
        assert!(matches!(&error, SnapshotError::Sync { path, .. } if path.starts_with("/node/groups/7")), "{error}");

        let mut writer = store(&SimDisk::new(), 0).write(&head).unwrap();
        writer.write_all(&bytes).unwrap();
        let file = writer.finish(&head).unwrap();
        let bytes = file.hold().unwrap().read(0, usize::MAX).unwrap();
        let disk = SimDisk::new();
        let mut receiver = Receiver::new(store(&disk, 0));
        receiver.begin(file.digest(), file.size()).unwrap();
        disk.fail_sync(0);
        let half = 4 << 20;
        receiver.part(file.digest(), 0, part_checksum(0, &bytes[..half]), &bytes[..half]).unwrap();
        let rest = &bytes[half..];
        let error = receiver.part(file.digest(), half as u64, part_checksum(half as u64, rest), rest).unwrap_err();
        assert!(matches!(error, SnapshotError::Sync { .. }), "{error}");
    }

    #[test]
    fn a_cut_transfer_goes_on_where_it_stopped() {
        let (file, bytes) = offered();
        let mut receiver = Receiver::new(store(&SimDisk::new(), 0));
        assert_eq!(receiver.begin(file.digest(), file.size()).unwrap(), 0);
        let came = send(&mut receiver, &file, &bytes, 0, 10_000, 100_000);
        assert_eq!(receiver.begin(file.digest(), file.size()).unwrap(), came);
        send(&mut receiver, &file, &bytes, came, 10_000, file.size());
        let received = receiver.end(file.digest()).unwrap();
        assert_eq!((received.head.last_log_id.index, received.file.digest()), (100, file.digest()));
        let newest = receiver.store.adopt(&received.file, &received.head).unwrap();
        assert_eq!(newest.hold().unwrap().read(0, usize::MAX).unwrap(), bytes);
    }

    /// The process is killed, or the power fails: what is whole of what is there is kept, what is not is sent again.
    #[test]
    fn after_a_restart_a_transfer_goes_on_from_the_last_chunk_that_is_whole() {
        let (file, bytes) = offered();
        let disk = SimDisk::new();
        let mut receiver = Receiver::new(store(&disk, 0));
        receiver.begin(file.digest(), file.size()).unwrap();
        let came = send(&mut receiver, &file, &bytes, 0, 10_000, 400_000);
        disk.kill_process();
        let mut receiver = Receiver::new(store(&disk, 0));
        let again = receiver.begin(file.digest(), file.size()).unwrap();
        assert!(again > 200_000 && again < came, "{again} of {came}: one whole chunk");
        send(&mut receiver, &file, &bytes, again, 10_000, file.size());
        disk.kill_process();
        // All of it was there, and nobody had said so yet.
        let mut receiver = Receiver::new(store(&disk, 0));
        assert_eq!(receiver.begin(file.digest(), file.size()).unwrap(), file.size());
        assert_eq!(receiver.end(file.digest()).unwrap().file.digest(), file.digest());
        disk.crash_after(0, 0);
        assert_eq!(Receiver::new(store(&disk, 0)).begin([9; 32], 50).unwrap(), 0);
    }

    /// The sync of what had arrived failed, and the process ended as it must. The next one found all of it in the page cache, whose
    /// pages the kernel took for written, and its own sync succeeded: the snapshot was installed, and the device had none of it.
    #[test]
    fn what_a_failed_sync_left_in_the_page_cache_is_written_again_before_it_counts() {
        let (file, bytes) = offered();
        let disk = SimDisk::new();
        let mut receiver = Receiver::new(store(&disk, 0));
        receiver.begin(file.digest(), file.size()).unwrap();
        send(&mut receiver, &file, &bytes, 0, 10_000, file.size());
        disk.fail_sync(0);
        let error = receiver.end(file.digest()).unwrap_err();
        assert!(matches!(error, SnapshotError::Sync { .. }), "{error}");
        disk.kill_process();
        let mut receiver = Receiver::new(store(&disk, 0));
        let came = receiver.begin(file.digest(), file.size()).unwrap();
        assert_eq!(came, file.size(), "nothing is sent again");
        let received = receiver.end(file.digest()).unwrap();
        receiver.store.adopt(&received.file, &received.head).unwrap();
        disk.crash_after(0, 0);
        let (_, newest) = store(&disk, 0).newest().unwrap().found.unwrap();
        assert_eq!(newest.hold().unwrap().read(0, usize::MAX).unwrap(), bytes);
    }

    #[test]
    fn a_part_that_changed_on_its_way_is_refused_and_sent_again() {
        let (file, bytes) = offered();
        let mut receiver = Receiver::new(store(&SimDisk::new(), 0));
        receiver.begin(file.digest(), file.size()).unwrap();
        let error = receiver.part(file.digest(), 0, part_checksum(0, &bytes[..100]), &bytes[1..101]).unwrap_err();
        assert!(error.to_string().contains("changed on its way"), "{error}");
        send(&mut receiver, &file, &bytes, 0, 300_000, file.size());
        receiver.end(file.digest()).unwrap();
    }

    /// The sender's disk lies: that is found in the chunk, and what came before is not lost.
    #[test]
    fn a_chunk_that_the_sender_read_wrong_is_found_before_the_end() {
        let (file, bytes) = offered();
        let mut receiver = Receiver::new(store(&SimDisk::new(), 0));
        receiver.begin(file.digest(), file.size()).unwrap();
        let came = send(&mut receiver, &file, &bytes, 0, 290_000, 290_000);
        let mut wrong = bytes[came as usize..].to_vec();
        wrong[5] ^= 1;
        let error = receiver.part(file.digest(), came, part_checksum(came, &wrong), &wrong).unwrap_err();
        assert!(error.to_string().contains("the sender's own file is damaged"), "{error}");
        let again = receiver.begin(file.digest(), file.size()).unwrap();
        assert!(again > 200_000 && again < came);
        send(&mut receiver, &file, &bytes, again, 290_000, file.size());
        receiver.end(file.digest()).unwrap();
    }

    #[test]
    fn another_offer_takes_the_place_of_one_that_was_not_finished() {
        let (file, bytes) = offered();
        let disk = SimDisk::new();
        let mut receiver = Receiver::new(store(&disk, 0));
        receiver.begin(file.digest(), file.size()).unwrap();
        send(&mut receiver, &file, &bytes, 0, 10_000, 100_000);
        assert_eq!(receiver.begin([5; 32], 10).unwrap(), 0);
        assert_eq!(disk.list("/node/groups/7".as_ref()).unwrap().len(), 1);
        let late = receiver.part(file.digest(), 100_000, 0, b"");
        assert!(late.unwrap_err().to_string().contains("no such transfer"));
        receiver.forget().unwrap();
        assert!(disk.list("/node/groups/7".as_ref()).unwrap().is_empty());
    }

    /// The leader died while its snapshot was being restored, and its successor offered another one: that removed the file from
    /// under the replica, which stopped for good.
    #[test]
    fn what_is_being_installed_is_left_alone() {
        let (file, bytes) = offered();
        let mut receiver = Receiver::new(store(&SimDisk::new(), 0));
        receiver.begin(file.digest(), file.size()).unwrap();
        send(&mut receiver, &file, &bytes, 0, 100_000, file.size());
        let received = receiver.end(file.digest()).unwrap();
        assert!(receiver.begin([5; 32], 10).unwrap_err().to_string().contains("being installed"));
        assert!(receiver.begin(file.digest(), file.size()).is_err() && receiver.forget().is_err());
        receiver.store.adopt(&received.file, &received.head).unwrap();
        drop(received);
        assert_eq!(receiver.begin([5; 32], 10).unwrap(), 0);
    }

    #[test]
    fn a_snapshot_is_not_taken_when_it_would_eat_what_is_kept_for_the_log() {
        let (file, bytes) = offered();
        let disk = SimDisk::new();
        disk.set_space(Some(1_000_000));
        let mut receiver = Receiver::new(store(&disk, 500_000));
        let error = receiver.begin(file.digest(), file.size()).unwrap_err();
        assert!(error.to_string().contains("the disk is full"), "{error}");
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::StorageFull);
        disk.set_space(Some(2_000_000));
        receiver.begin(file.digest(), file.size()).unwrap();
        send(&mut receiver, &file, &bytes, 0, 100_000, file.size());
        receiver.end(file.digest()).unwrap();
    }
}
