//! Module files on this node's disk, by digest: written aside, synced, renamed.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use sha2::Digest;
use sha2::Sha256;

use crate::disk::Disk;

/// The directory of module files.
#[derive(Clone)]
pub struct ModuleFiles {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    /// One file is written at a time: a module may come from a client and from a peer at once, and both would write the
    /// same unfinished file. How often each was written since the directory was opened.
    writing: Arc<Mutex<BTreeMap<[u8; 32], u64>>>,
}

/// What a module's file is called.
pub fn file_name(digest: &[u8; 32]) -> String {
    format!("{}.wasm", hex::encode(digest))
}

impl std::fmt::Debug for ModuleFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "modules in {}", self.directory.display())
    }
}

impl ModuleFiles {
    /// Opens the directory, makes durable what is in it, and removes what a crash left unfinished.
    pub fn open(disk: Arc<dyn Disk>, directory: PathBuf) -> io::Result<Self> {
        disk.create_dir_all(&directory)?;
        // Or a file that an earlier process named, and did not live to sync the name of, counts as here and goes with the power.
        disk.sync_dir(&directory)?;
        for name in disk.list(&directory)? {
            if name.ends_with(".part") {
                disk.remove(&directory.join(name))?;
            }
        }
        Ok(Self { disk, directory, writing: Arc::default() })
    }

    fn path(&self, digest: &[u8; 32]) -> PathBuf {
        self.directory.join(file_name(digest))
    }

    /// Whether the file is here. Whether it is whole shows when it is read.
    pub fn exists(&self, digest: &[u8; 32]) -> bool {
        self.disk.exists(&self.path(digest)).unwrap_or(false)
    }

    /// The file's bytes, if it is here and whole. A damaged file counts as not here: peers have it.
    pub fn read(&self, digest: &[u8; 32]) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(digest);
        if !self.disk.exists(&path)? {
            return Ok(None);
        }
        let file = self.disk.open(&path)?;
        let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(0, &mut bytes)?;
        if <[u8; 32]>::from(Sha256::digest(&bytes)) != *digest {
            tracing::error!(path = %path.display(), "this module file is damaged; it is fetched again from a peer");
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// Keeps the bytes, durably when this returns.
    pub fn write(&self, digest: &[u8; 32], bytes: &[u8]) -> io::Result<()> {
        // What a writer that panicked left is an unfinished file, which the next one removes.
        let mut writes = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        *writes.entry(*digest).or_default() += 1;
        let path = self.path(digest);
        let part = path.with_extension("part");
        if self.disk.exists(&part)? {
            self.disk.remove(&part)?;
        }
        let file = self.disk.create(&part)?;
        file.write_all_at(0, bytes)?;
        file.sync_data()?;
        self.disk.rename(&part, &path)?;
        self.disk.sync_dir(&self.directory)
    }

    /// The files that are here, and how often each was written since the directory was opened.
    pub fn all(&self) -> io::Result<BTreeMap<[u8; 32], u64>> {
        let writes = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.disk.list(&self.directory)?;
        let digests = names.iter().filter_map(|name| {
            let mut digest = [0; 32];
            hex::decode_to_slice(name.strip_suffix(".wasm")?, &mut digest).ok().map(|()| digest)
        });
        Ok(digests.map(|digest| (digest, writes.get(&digest).copied().unwrap_or(0))).collect())
    }

    /// Removes a file, unless it was written again since [`Self::all`] said how often it was. Whether it is gone.
    ///
    /// Not durably: a file that comes back after a power cut is as little needed as before, and is found again.
    pub fn remove(&self, digest: &[u8; 32], writes: u64) -> io::Result<bool> {
        let now = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if now.get(digest).copied().unwrap_or(0) != writes {
            return Ok(false);
        }
        self.disk.remove(&self.path(digest)).map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::RealDisk;

    /// A process was killed between the rename of a module's file and the sync of its directory. The next start said that it has the
    /// module, and the catalog named it; then the power failed.
    #[test]
    fn a_module_that_a_start_finds_is_there_at_the_next_one() {
        let disk = crate::disk::sim::SimDisk::new();
        let open = || ModuleFiles::open(Arc::new(disk.clone()), "/node/modules".into()).unwrap();
        let digest: [u8; 32] = Sha256::digest(b"wasm").into();
        let files = open();
        // The file, its bytes, their sync, and the rename.
        disk.cut_power_after(4);
        files.write(&digest, b"wasm").unwrap_err();
        disk.heal();
        disk.kill_process();
        assert!(open().exists(&digest));
        disk.crash_after(0, 0);
        assert_eq!(open().read(&digest).unwrap(), Some(b"wasm".to_vec()));
    }

    /// A module was removed from the cluster, and uploaded again while its file was about to be removed: the upload was acknowledged, and
    /// nobody had the bytes.
    #[test]
    fn a_file_that_was_written_again_since_is_not_removed() {
        let disk = crate::disk::sim::SimDisk::new();
        let open = || ModuleFiles::open(Arc::new(disk.clone()), "/node/modules".into()).unwrap();
        let (one, two): ([u8; 32], [u8; 32]) = (Sha256::digest(b"one").into(), Sha256::digest(b"two").into());
        open().write(&one, b"one").unwrap();
        let files = open();
        files.write(&two, b"two").unwrap();
        let seen = files.all().unwrap();
        assert_eq!(seen, BTreeMap::from([(one, 0), (two, 1)]));
        files.write(&one, b"one").unwrap();
        assert!(!files.remove(&one, 0).unwrap());
        assert_eq!(files.read(&one).unwrap(), Some(b"one".to_vec()));
        assert!(files.remove(&two, 1).unwrap());
        // The power takes the removal back: what is found again can be removed again.
        disk.crash_after(0, 0);
        let files = open();
        for (digest, writes) in files.all().unwrap() {
            assert!(files.remove(&digest, writes).unwrap());
        }
        assert!(files.all().unwrap().is_empty());
    }

    /// Each of three nodes that started together uploaded the same module and gave it to the others; one found its
    /// unfinished file gone, and did not start.
    #[test]
    fn a_module_that_comes_from_several_at_once_is_kept_for_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let files = ModuleFiles::open(Arc::new(RealDisk), folder.path().join("modules")).unwrap();
        let bytes = vec![7; 300_000];
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| files.write(&digest, &bytes).unwrap()));
            }
        });
        assert_eq!(files.read(&digest).unwrap(), Some(bytes));
    }
}
