//! Files that new groups begin from: a snapshot of another group, or of another cluster's.
//!
//! Invariants:
//! - A file is *held* only after it was verified whole, synced, renamed, and the directory synced. Nobody counts on one
//!   before, and a group is made only when enough of its members hold its file.
//! - A file is named by a number drawn for one restore, so that two restores of the same bytes never share one.
//! - What a group begins with is a function of the file and of the group's definition alone: all members that hold the file
//!   write equal first snapshots.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use openraft::Membership;
use openraft::StoredMembership;
use openraft::vote::leader_id_std::CommittedLeaderId;

use super::Head;
use super::SnapshotError;
use super::SnapshotFile;
use super::SnapshotReader;
use super::SnapshotStore;
use super::store;
use super::store::FileReader;
use super::store::create_anew;
use crate::disk::Disk;
use crate::disk::DiskFile;
use crate::types::GroupId;
use crate::types::LogId;
use crate::types::NodeId;

/// Names the file of one restore: 16 random bytes.
pub type BaseId = [u8; 16];

const SUFFIX: &str = ".base";
/// What is still being received.
const UNFINISHED_SUFFIX: &str = ".part";

/// The directory of such files.
pub struct Bases {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    /// Free bytes of the disk that no file may use.
    floor_bytes: u64,
    incoming: Mutex<BTreeMap<BaseId, Incoming>>,
}

#[derive(Clone)]
struct Incoming {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    received: u64,
}

impl std::fmt::Debug for Bases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "files to begin from in {}", self.directory.display())
    }
}

impl Bases {
    /// Opens the directory, makes durable what is in it, and removes what a crash left unfinished. `floor_bytes` of the disk stay free.
    pub fn open(disk: Arc<dyn Disk>, directory: PathBuf, floor_bytes: u64) -> io::Result<Self> {
        disk.create_dir_all(&directory)?;
        // Or a file that an earlier process named, and did not live to sync the name of, counts as held and goes with the power.
        disk.sync_dir(&directory)?;
        for name in disk.list(&directory)? {
            if name.ends_with(UNFINISHED_SUFFIX) {
                disk.remove(&directory.join(name))?;
            }
        }
        Ok(Self { disk, directory, floor_bytes, incoming: Mutex::default() })
    }

    fn path(&self, id: &BaseId) -> PathBuf {
        self.directory.join(format!("{}{SUFFIX}", hex::encode(id)))
    }

    fn incoming(&self) -> MutexGuard<'_, BTreeMap<BaseId, Incoming>> {
        // No code that can panic or waits for the disk runs under it.
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to receive a file.
    pub fn begin(&self, id: BaseId) -> Result<(), SnapshotError> {
        let path = self.directory.join(format!("{}{UNFINISHED_SUFFIX}", hex::encode(id)));
        let file = create_anew(&*self.disk, &path);
        let file = file.map_err(|source| SnapshotError::Io { path: path.clone(), source })?;
        self.incoming().insert(id, Incoming { path, file: file.into(), received: 0 });
        Ok(())
    }

    /// Takes the bytes at `offset`; where the next ones begin. What is there already, or leaves a gap, changes nothing.
    pub fn part(&self, id: BaseId, offset: u64, bytes: &[u8]) -> Result<u64, SnapshotError> {
        let found = self.incoming().get(&id).cloned();
        let Some(Incoming { path, file, received }) = found else { return Err(self.unknown(&id)) };
        if offset != received {
            return Ok(received);
        }
        let more = bytes.len() as u64;
        let room = store::check_space(&*self.disk, &self.directory, self.floor_bytes, more);
        let wrote = room.and_then(|()| file.write_all_at(offset, bytes));
        wrote.map_err(|source| SnapshotError::Io { path, source })?;
        match self.incoming().get_mut(&id) {
            Some(file) => {
                // The same part may have come twice at once.
                file.received = file.received.max(offset.saturating_add(more));
                Ok(file.received)
            }
            None => Err(self.unknown(&id)),
        }
    }

    /// All bytes are here: verifies them and makes them durable. From now on the file is held.
    pub fn finish(&self, id: BaseId) -> Result<(Head, SnapshotFile), SnapshotError> {
        let removed = self.incoming().remove(&id);
        let Some(incoming) = removed else { return Err(self.unknown(&id)) };
        let path = self.path(&id);
        let named = store::verify(&self.disk, &incoming.path).and_then(|verified| {
            let failed = |source| SnapshotError::Sync { path: incoming.path.clone(), source };
            incoming.file.sync_data().map_err(failed)?;
            let io = |source| SnapshotError::Io { path: incoming.path.clone(), source };
            self.disk.rename(&incoming.path, &path).map_err(io)?;
            Ok(verified)
        });
        let (head, file) = named.inspect_err(|_| {
            // It is found and removed at the next start otherwise.
            let _gone = self.disk.remove(&incoming.path);
        })?;
        let failed = |source| SnapshotError::Sync { path: self.directory.clone(), source };
        self.disk.sync_dir(&self.directory).map_err(failed)?;
        Ok((head, file.moved_to(path)))
    }

    fn unknown(&self, id: &BaseId) -> SnapshotError {
        let source = io::Error::new(io::ErrorKind::NotFound, "no such file is being received");
        SnapshotError::Io { path: self.path(id), source }
    }

    /// Whether the file is held.
    pub fn is_held(&self, id: &BaseId) -> bool {
        self.disk.exists(&self.path(id)).unwrap_or(false)
    }

    /// The files that are held or being received.
    pub fn all(&self) -> io::Result<BTreeSet<BaseId>> {
        let mut all: BTreeSet<BaseId> = self.incoming().keys().copied().collect();
        for name in self.disk.list(&self.directory)? {
            let mut id = BaseId::default();
            if name.strip_suffix(SUFFIX).is_some_and(|text| hex::decode_to_slice(text, &mut id).is_ok()) {
                all.insert(id);
            }
        }
        Ok(all)
    }

    /// Head and payload of a held file; `None` when it is not held.
    pub fn reader(&self, id: &BaseId) -> Result<Option<(Head, SnapshotReader<FileReader>)>, SnapshotError> {
        if self.is_held(id) { store::reader(&*self.disk, &self.path(id)).map(Some) } else { Ok(None) }
    }

    /// Forgets a file, whether it is held, on its way, or neither.
    pub fn remove(&self, id: &BaseId) -> io::Result<()> {
        let removed = self.incoming().remove(id);
        if let Some(incoming) = removed {
            self.disk.remove(&incoming.path)?;
        }
        let path = self.path(id);
        if self.disk.exists(&path)? {
            self.disk.remove(&path)?;
        }
        Ok(())
    }
}

/// Writes the snapshot that a group begins with: the state of `base`, at the index that it covers, with `members` as the first
/// voters.
///
/// The index is kept, not begun anew at 0: session ids are indexes, modules see indexes as time (ZooKeeper's zxids are made of
/// them), and neither may come again or go back. The term is 0, that of the entry by which any new group gets its members: so
/// it contradicts no vote, and every leader's entries are newer.
pub fn begin(
    store: &SnapshotStore,
    (head, mut payload): (Head, SnapshotReader<FileReader>),
    group: GroupId,
    members: &BTreeMap<NodeId, String>,
    made: Vec<u8>,
) -> Result<SnapshotFile, SnapshotError> {
    let failed = |source| SnapshotError::Io { path: store.directory.clone(), source };
    let last_log_id = LogId::new(CommittedLeaderId::new(0), head.last_log_id.index);
    let nodes: BTreeMap<NodeId, openraft::BasicNode> =
        members.iter().map(|(id, address)| (*id, openraft::BasicNode { addr: address.clone() })).collect();
    let membership = Membership::new(vec![members.keys().copied().collect()], nodes);
    let membership = membership.map_err(|error| failed(io::Error::other(error)))?;
    let membership = StoredMembership::new(Some(last_log_id), membership);
    // Changes of the module are numbered by the cluster that the group is in now.
    let head = Head { group, last_log_id, membership, made, change: 0, ..head };
    let mut writer = store.write(&head)?;
    if let Err(error) = io::copy(&mut payload, &mut writer) {
        writer.abandon();
        return Err(match error.kind() {
            io::ErrorKind::InvalidData => {
                let (path, offset) = (store.directory.clone(), payload.offset());
                SnapshotError::Damaged { path, offset, reason: format!("the file to begin from: {error}") }
            }
            _ => SnapshotError::of_writing(&store.directory, error),
        });
    }
    writer.finish(&head)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use std::io::Read;
    use std::io::Write;

    use super::*;
    use crate::disk::RealDisk;

    fn stores(folder: &std::path::Path) -> (SnapshotStore, Bases) {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let store = SnapshotStore::open(disk.clone(), folder.join("group"), 2, 0).unwrap();
        (store, Bases::open(disk, folder.join("bases"), 0).unwrap())
    }

    fn saved(store: &SnapshotStore) -> Vec<u8> {
        let head = Head {
            group: 3,
            last_log_id: LogId::new(CommittedLeaderId::new(6), 77),
            membership: StoredMembership::default(),
            module: [9; 32],
            host_state: b"sessions".to_vec(),
            made: b"{}".to_vec(),
            change: 4,
        };
        let mut writer = store.write(&head).unwrap();
        writer.write_all(&[5; 300_000]).unwrap();
        let file = writer.finish(&head).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        std::fs::remove_file(file.path()).unwrap();
        bytes
    }

    fn receive(bases: &Bases, id: BaseId, bytes: &[u8]) -> Result<(Head, SnapshotFile), SnapshotError> {
        bases.begin(id).unwrap();
        let (first, second) = bytes.split_at(bytes.len() / 2);
        assert_eq!(bases.part(id, 0, first).unwrap(), first.len() as u64);
        assert_eq!(bases.part(id, 0, first).unwrap(), first.len() as u64, "a part that came twice");
        bases.part(id, first.len() as u64, second).unwrap();
        bases.finish(id)
    }

    #[test]
    fn no_flipped_bit_of_a_file_gets_past_the_door() {
        let folder = tempfile::tempdir().unwrap();
        let (store, bases) = stores(folder.path());
        let bytes = saved(&store);
        receive(&bases, [1; 16], &bytes).unwrap();
        // All of the head and the foot, and a part of what is between.
        let places = (0..600).chain((600..bytes.len() - 100).step_by(7_001)).chain(bytes.len() - 100..bytes.len());
        for place in places {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << (place % 8);
            assert!(receive(&bases, [2; 16], &damaged).is_err(), "byte {place}");
            assert!(!bases.is_held(&[2; 16]));
        }
        for length in [0, 7, 20, 100, bytes.len() - 1] {
            assert!(receive(&bases, [2; 16], &bytes[..length]).is_err(), "cut at {length}");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(receive(&bases, [2; 16], &longer).is_err());
        assert_eq!(bases.all().unwrap().into_iter().collect::<Vec<_>>(), [[1; 16]]);
    }

    #[test]
    fn a_group_begins_at_the_index_of_its_file_with_members_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (store, bases) = stores(folder.path());
        let bytes = saved(&store);
        receive(&bases, [1; 16], &bytes).unwrap();
        let members = BTreeMap::from([(4, "a:1".to_string()), (5, "b:1".to_string())]);
        let made = b"{\"new\":1}".to_vec();
        let base = bases.reader(&[1; 16]).unwrap().expect("it is held");
        let first = begin(&store, base, 8, &members, made.clone()).unwrap();
        let (head, mut payload) = first.reader().unwrap();
        assert_eq!((head.group, head.last_log_id.index, head.made), (8, 77, made));
        assert_eq!(head.membership.voter_ids().collect::<Vec<_>>(), [4, 5]);
        assert_eq!((head.module, head.host_state.as_slice()), ([9; 32], b"sessions".as_slice()));
        let mut read = Vec::new();
        payload.read_to_end(&mut read).unwrap();
        assert_eq!(read, vec![5; 300_000]);
        bases.remove(&[1; 16]).unwrap();
        assert!(bases.reader(&[1; 16]).unwrap().is_none());
    }

    /// What was left of a restore that a crash cut short stayed for ever: it had not the suffix that the sweep looked for.
    #[test]
    fn what_was_on_its_way_is_gone_after_a_restart_and_what_is_held_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (store, bases) = stores(folder.path());
        let bytes = saved(&store);
        receive(&bases, [1; 16], &bytes).unwrap();
        bases.begin([2; 16]).unwrap();
        bases.part([2; 16], 0, &bytes[..100]).unwrap();
        drop(bases);
        let (_, bases) = stores(folder.path());
        assert_eq!(bases.all().unwrap().into_iter().collect::<Vec<_>>(), [[1; 16]]);
        assert_eq!(std::fs::read_dir(folder.path().join("bases")).unwrap().count(), 1);
    }

    /// A process was killed between the rename of a file and the sync of its directory. The next start said that it holds the file,
    /// the group was made, and then the power failed.
    #[test]
    fn a_file_that_a_start_finds_held_is_held_at_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = saved(&stores(folder.path()).0);
        let disk = crate::disk::sim::SimDisk::new();
        let open = || Bases::open(Arc::new(disk.clone()), "/node/bases".into(), 0).unwrap();
        let bases = open();
        bases.begin([1; 16]).unwrap();
        bases.part([1; 16], 0, &bytes).unwrap();
        // The sync of the file, and the rename.
        disk.cut_power_after(2);
        bases.finish([1; 16]).unwrap_err();
        disk.heal();
        disk.kill_process();
        assert!(open().is_held(&[1; 16]));
        disk.crash_after(0, 0);
        assert!(open().is_held(&[1; 16]));
    }

    /// A large file could use the space that is kept for the log, and end the node.
    #[test]
    fn a_file_leaves_the_log_its_space() {
        let disk = crate::disk::sim::SimDisk::new();
        let bases = Bases::open(Arc::new(disk.clone()), "/node/bases".into(), 10_000).unwrap();
        disk.set_space(Some(30_000));
        bases.begin([1; 16]).unwrap();
        let mut offset = 0;
        let full = loop {
            match bases.part([1; 16], offset, &[7; 4_000]) {
                Ok(next) => offset = next,
                Err(error) => break error,
            }
        };
        assert!(full.to_string().contains("kept for the log"), "{full}");
        assert!(disk.free_space(std::path::Path::new("/node")).unwrap() >= 10_000);
    }

    /// A byte that goes bad after the file was verified: the first snapshot is not written of it.
    #[test]
    fn a_file_that_was_damaged_since_begins_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (store, bases) = stores(folder.path());
        let bytes = saved(&store);
        receive(&bases, [1; 16], &bytes).unwrap();
        let held = std::fs::read_dir(folder.path().join("bases")).unwrap().next().unwrap().unwrap().path();
        let mut changed = bytes.clone();
        changed[bytes.len() - 1000] ^= 1;
        std::fs::write(held, changed).unwrap();
        let members = BTreeMap::from([(4, "a:1".to_string())]);
        let base = bases.reader(&[1; 16]).unwrap().expect("it is held");
        let error = begin(&store, base, 8, &members, Vec::new()).unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { .. }), "{error}");
        assert!(store.is_empty().unwrap());
    }
}
