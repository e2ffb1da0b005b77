//! A snapshot file read to its end whatever is damaged in it, for people: where, and what can still be read.

use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use sha2::Digest;
use sha2::Sha256;

use super::Head;
use super::SnapshotError;
use super::format;
use super::format::CHUNK_BYTES;
use super::format::CHUNK_HEAD_BYTES;
use super::format::FIXED_BYTES;
use super::store::damaged;
use super::store::file_reader;
use super::store::reader;
use crate::disk::Disk;

/// What a snapshot file says.
#[derive(Debug)]
pub struct Survey {
    /// The file.
    pub path: PathBuf,
    /// Its size, bytes.
    pub bytes: u64,
    /// Its head, if that is whole.
    pub head: Option<Head>,
    /// Chunks of the payload, damaged ones included.
    pub chunks: u64,
    /// Bytes of the payload, as far as its chunks go.
    pub payload_bytes: u64,
    /// The digest in its foot, if it was reached.
    pub digest: Option<[u8; 32]>,
    /// What is wrong with it, in order; empty: it is whole.
    pub damage: Vec<SnapshotError>,
}

/// Reads a snapshot file to its end, or to where nothing tells any more what is what.
pub fn survey(disk: &dyn Disk, path: &Path) -> Survey {
    let mut survey = Survey {
        path: path.to_owned(),
        bytes: 0,
        head: None,
        chunks: 0,
        payload_bytes: 0,
        digest: None,
        damage: Vec::new(),
    };
    let opened = disk.open(path).and_then(|file| Ok((file.len()?, file_reader(file))));
    match opened {
        Ok((bytes, source)) => {
            survey.bytes = bytes;
            let mut walk = Walk { source, digest: Sha256::new(), offset: 0 };
            if let Err(wrong) = walk.read(&mut survey) {
                survey.damage.push(damaged(path, wrong));
            }
        }
        Err(source) => survey.damage.push(SnapshotError::Io { path: path.to_owned(), source }),
    }
    survey
}

struct Walk<R> {
    source: R,
    digest: Sha256,
    offset: u64,
}

impl<R: Read> Walk<R> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], format::Wrong> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), format::Wrong> {
        let read = self.source.read_exact(bytes);
        read.map_err(|error| self.wrong(format!("the file ends or cannot be read here: {error}")))?;
        self.digest.update(&*bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn wrong(&self, reason: impl Into<String>) -> format::Wrong {
        format::Wrong { offset: self.offset, reason: reason.into() }
    }

    /// Tells what can be passed over as damage; an error is what ends the reading.
    fn read(&mut self, survey: &mut Survey) -> Result<(), format::Wrong> {
        self.read_head(survey)?;
        loop {
            let at = self.offset;
            let head: [u8; CHUNK_HEAD_BYTES] = self.take()?;
            let length = head.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
            if length > CHUNK_BYTES {
                let reason = format!("a chunk claims {length} bytes: what is behind it cannot be told apart");
                return Err(format::Wrong { offset: at, reason });
            }
            let mut payload = vec![0; length];
            self.fill(&mut payload)?;
            if format::chunk_head(&payload) != head {
                let reason = "a chunk's checksum does not match".to_owned();
                survey.damage.push(damaged(&survey.path, format::Wrong { offset: at, reason }));
            }
            if length == 0 {
                break;
            }
            survey.chunks += 1;
            survey.payload_bytes += length as u64;
        }
        if u64::from_le_bytes(self.take()?) != survey.payload_bytes {
            survey.damage.push(damaged(&survey.path, self.wrong("the payload's length does not match")));
        }
        let computed: [u8; 32] = self.digest.clone().finalize().into();
        let at = self.offset;
        let digest = self.take()?;
        survey.digest = Some(digest);
        // After other damage it says nothing new.
        if digest != computed && survey.damage.is_empty() {
            let reason = "the digest does not match".to_owned();
            survey.damage.push(damaged(&survey.path, format::Wrong { offset: at, reason }));
        }
        if self.offset != survey.bytes {
            survey.damage.push(damaged(&survey.path, self.wrong("bytes follow the end")));
        }
        Ok(())
    }

    /// A head whose bytes are damaged still says how long it is.
    fn read_head(&mut self, survey: &mut Survey) -> Result<(), format::Wrong> {
        let mut bytes = self.take::<FIXED_BYTES>()?.to_vec();
        let length = bytes.get(12..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let fits = self.offset.saturating_add(u64::from(length)) <= survey.bytes;
        if bytes.first_chunk() == Some(format::MAGIC) && fits {
            let mut body = vec![0; length as usize];
            self.fill(&mut body)?;
            bytes.append(&mut body);
        }
        match format::decode_head(&mut bytes.as_slice()) {
            Ok((head, _)) => survey.head = Some(head),
            // Without its first words nothing tells what the rest is.
            Err(wrong) if wrong.offset < FIXED_BYTES as u64 || !fits => return Err(wrong),
            Err(wrong) => survey.damage.push(damaged(&survey.path, wrong)),
        }
        Ok(())
    }
}

/// Reads a snapshot that must be whole: its head and its payload.
pub fn read_payload(disk: &dyn Disk, path: &Path) -> Result<(Head, Vec<u8>), SnapshotError> {
    let (head, mut payload) = reader(disk, path)?;
    let mut bytes = Vec::new();
    let read = payload.read_to_end(&mut bytes);
    read.map_err(|source| SnapshotError::Io { path: path.to_owned(), source })?;
    Ok((head, bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::io::Write;
    use std::sync::Arc;

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::snapshot::SnapshotStore;
    use crate::types::LogId;

    /// A snapshot of three chunks, and where it lies.
    fn snapshot() -> (SimDisk, PathBuf) {
        let disk = SimDisk::new();
        let store = SnapshotStore::open(Arc::new(disk.clone()), PathBuf::from("/node/groups/5"), 2, 0).unwrap();
        let leader = openraft::vote::leader_id_std::CommittedLeaderId::new(3);
        let head = Head {
            group: 5,
            last_log_id: LogId::new(leader, 1000),
            membership: Default::default(),
            module: [7; 32],
            host_state: b"host".to_vec(),
            made: Vec::new(),
            change: 0,
        };
        let mut writer = store.write(&head).unwrap();
        writer.write_all(&vec![1; 2 * CHUNK_BYTES + 10]).unwrap();
        let path = writer.finish(&head).unwrap().path().to_owned();
        (disk, path)
    }

    #[test]
    fn a_whole_file_is_told_as_whole() {
        let (disk, path) = snapshot();
        let found = survey(&disk, &path);
        assert!(found.damage.is_empty(), "{:?}", found.damage);
        assert_eq!((found.chunks, found.payload_bytes), (3, 2 * CHUNK_BYTES as u64 + 10));
        assert_eq!(found.head.unwrap().last_log_id.index, 1000);
        assert_eq!(found.bytes, disk.read(&path).unwrap().len() as u64);
    }

    /// All damaged chunks are named, not only the first; and a damaged head does not hide the rest.
    #[test]
    fn every_damaged_place_is_named() {
        let (disk, path) = snapshot();
        for at in [5000, CHUNK_BYTES as u64 + 5000] {
            disk.flip_bit(&path, at, 0).unwrap();
        }
        let found = survey(&disk, &path);
        assert!(found.head.is_some());
        assert_eq!((found.damage.len(), found.chunks), (2, 3), "{:?}", found.damage);
        disk.flip_bit(&path, 21, 0).unwrap();
        let found = survey(&disk, &path);
        assert!(found.head.is_none());
        assert_eq!((found.damage.len(), found.chunks), (3, 3), "{:?}", found.damage);
    }

    #[test]
    fn no_flipped_bit_goes_unseen() {
        let (disk, path) = snapshot();
        let bytes = disk.read(&path).unwrap().len();
        for at in (0..100).chain((100..bytes).step_by(9973)).chain(bytes - 60..bytes) {
            let disk = disk.fork();
            disk.flip_bit(&path, at as u64, 5).unwrap();
            assert!(!survey(&disk, &path).damage.is_empty(), "byte {at}");
        }
    }
}
