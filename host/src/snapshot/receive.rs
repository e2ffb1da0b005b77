//! The receiving end of a snapshot transfer: parts are written where they belong, a cut transfer goes on where
//! it stopped, and the whole is verified before anyone believes it.

use std::path::PathBuf;

use super::Head;
use super::SnapshotError;
use super::SnapshotFile;
use super::SnapshotStore;
use super::store::UNFINISHED_SUFFIX;
use super::store::create_anew;
use super::store::verify;
use crate::disk::DiskFile;

/// One group's incoming snapshot. At most one transfer at a time: a newer offer replaces an older one.
pub struct Receiver {
    store: SnapshotStore,
    current: Option<Transfer>,
}

struct Transfer {
    digest: [u8; 32],
    size: u64,
    received: u64,
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.current {
            None => f.write_str("no transfer"),
            Some(transfer) => {
                write!(f, "{}: {} of {} bytes", transfer.path.display(), transfer.received, transfer.size)
            }
        }
    }
}

impl Receiver {
    /// Receives into `store`'s directory.
    pub fn new(store: SnapshotStore) -> Self {
        Self { store, current: None }
    }

    fn io(path: &std::path::Path) -> impl Fn(std::io::Error) -> SnapshotError {
        let path = path.to_owned();
        move |source| SnapshotError::Io { path: path.clone(), source }
    }

    /// Begins a transfer, or finds the one that was cut; answers the offset to go on from.
    pub fn begin(&mut self, digest: [u8; 32], size: u64) -> Result<u64, SnapshotError> {
        if let Some(transfer) = self.current.as_ref().filter(|t| t.digest == digest && t.size == size) {
            return Ok(transfer.received);
        }
        if let Some(old) = self.current.take() {
            self.store.disk.remove(&old.path).map_err(Self::io(&old.path))?;
        }
        let path = self.store.directory.join(format!("{}{UNFINISHED_SUFFIX}", hex::encode(digest)));
        let file = create_anew(&*self.store.disk, &path).map_err(Self::io(&path))?;
        self.current = Some(Transfer { digest, size, received: 0, path, file });
        Ok(0)
    }

    /// Takes one part; answers the offset the next one begins at. A part that is already there, or that leaves
    /// a gap, changes nothing.
    pub fn part(&mut self, digest: [u8; 32], offset: u64, data: &[u8]) -> Result<u64, SnapshotError> {
        let Some(transfer) = self.current.as_mut().filter(|transfer| transfer.digest == digest) else {
            return Err(self.unknown(digest));
        };
        let end = offset.saturating_add(data.len() as u64);
        if offset == transfer.received && end <= transfer.size {
            transfer.file.write_all_at(offset, data).map_err(Self::io(&transfer.path))?;
            transfer.received = end;
        }
        Ok(transfer.received)
    }

    /// All parts are here: syncs and verifies the file.
    pub fn end(&mut self, digest: [u8; 32]) -> Result<(Head, SnapshotFile), SnapshotError> {
        let Some(transfer) = self.current.take_if(|transfer| transfer.digest == digest) else {
            return Err(self.unknown(digest));
        };
        transfer.file.sync_data().map_err(|source| SnapshotError::Sync { path: transfer.path.clone(), source })?;
        let (head, file) = verify(&self.store.disk, &transfer.path)?;
        if file.digest() != digest || file.size() != transfer.size {
            let reason = "what arrived is not the file that was offered".to_string();
            return Err(SnapshotError::Damaged { path: transfer.path, offset: transfer.size, reason });
        }
        Ok((head, file))
    }

    fn unknown(&self, digest: [u8; 32]) -> SnapshotError {
        let path = self.store.directory.join(hex::encode(digest));
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such transfer is under way");
        SnapshotError::Io { path, source }
    }
}
