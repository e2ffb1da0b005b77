//! Compiled code on disk, by module digest and engine hash.
//!
//! Compiled code runs with this process's rights, so a file counts only if the directory's own key
//! signs it: each file is `HMAC-SHA-256(key, name ‖ bytes) ‖ bytes`, and the key is 32 random bytes in
//! `key`, readable by the owner alone. That finds damage and files that were copied in; someone who can
//! read the key can also replace the program.
//!
//! Nodes of one machine may share a directory: `NAME.lock` is locked by the one that compiles, and the
//! others wait for what it makes.

use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sha2::Digest;
use sha2::Sha256;

/// Keeps compiled code by key. Losing it costs a compile, no more.
///
/// Must return only bytes that were put under that very key: they are run as machine code.
pub trait CodeCache: Send + Sync {
    /// The bytes put under `key`, if they are there whole.
    fn get(&self, key: &str) -> Option<Vec<u8>>;
    /// Keeps `bytes` under `key`; a failure is logged and forgotten.
    fn put(&self, key: &str, bytes: &[u8]);
    /// The right to make what belongs under `key`, for as long as it is held. May wait for who has it, and
    /// then it is likely to be there. `None`: nobody else would make it, or it cannot be known.
    fn turn(&self, key: &str) -> Option<Turn> {
        let _ = key;
        None
    }
    /// Whoever keeps this needs code of these modules, by digest, and of no others. Where others may need it, it stays.
    fn retain(&self, needed: &dyn Fn(&[u8; 32]) -> bool) {
        let _ = needed;
    }
}

/// A [`CodeCache`] in a directory, for the nodes of one machine and one user.
#[derive(Debug)]
pub struct DirCache {
    directory: PathBuf,
    secret: [u8; 32],
    /// Whether other nodes may keep theirs here.
    is_shared: bool,
}

const TAG_BYTES: usize = 32;
/// How long a process may compile while others wait for it; one that was paused shall not pause them.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
const TURN_POLL: Duration = Duration::from_millis(20);

/// The right to make one file of a [`DirCache`]: a lock that ends with it, or with the process.
#[derive(Debug)]
pub struct Turn {
    path: PathBuf,
    _locked: fs::File,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Who has it open already locks a file without a name, and finds what was made here.
        let _ = fs::remove_file(&self.path);
    }
}

impl DirCache {
    /// A cache in `directory`, which is made if it is not there. A `key` that is not 32 bytes, or that somebody
    /// else made or may read, is replaced, which empties the cache.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<DirCache> {
        let directory = directory.into();
        fs::create_dir_all(&directory)?;
        let path = directory.join("key");
        // Of two nodes that start, one makes the key of both.
        let _turn = turn(&path);
        remove_unfinished(&directory)?;
        let secret = match read_secret(&path)? {
            Some(secret) => secret,
            None => {
                let mut secret = [0; 32];
                getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
                write_aside(&path, &[&secret])?;
                secret
            }
        };
        Ok(DirCache { directory, secret, is_shared: true })
    }

    /// The directory is one node's alone: what it needs no more is removed.
    pub fn of_one_node(self) -> DirCache {
        DirCache { is_shared: false, ..self }
    }

    fn tag(&self, name: &str, bytes: &[u8]) -> [u8; TAG_BYTES] {
        hmac(&self.secret, &[name.as_bytes(), &[0], bytes])
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut file = match fs::File::open(self.directory.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut tag = [0; TAG_BYTES];
        let mut bytes = Vec::new();
        file.read_exact(&mut tag)?;
        file.read_to_end(&mut bytes)?;
        if same(&tag, &self.tag(name, &bytes)) {
            Ok(Some(bytes))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged, or was not written here"))
        }
    }
}

impl CodeCache for DirCache {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        match self.read(key) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(file = %self.directory.join(key).display(), "compiled code is made anew: {error}");
                None
            }
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let path = self.directory.join(key);
        if let Err(error) = write_aside(&path, &[&self.tag(key, bytes), bytes]) {
            tracing::warn!(file = %path.display(), "compiled code is not kept: {error}");
        }
    }

    fn turn(&self, key: &str) -> Option<Turn> {
        turn(&self.directory.join(key))
    }

    fn retain(&self, needed: &dyn Fn(&[u8; 32]) -> bool) {
        // Nobody knows what the other nodes need.
        if self.is_shared {
            return;
        }
        let removed = fs::read_dir(&self.directory).and_then(|names| {
            for name in names {
                let name = name?.file_name();
                if name.to_str().and_then(module_of).is_some_and(|digest| !needed(&digest)) {
                    fs::remove_file(self.directory.join(name))?;
                }
            }
            Ok(())
        });
        if let Err(error) = removed {
            tracing::warn!(directory = %self.directory.display(), "compiled code that nobody needs is still there: {error}");
        }
    }
}

/// The digest of the module whose code is kept under this name; `None` for the key, and for what is being written.
fn module_of(name: &str) -> Option<[u8; 32]> {
    let (module, engine) = name.split_once('-')?;
    let mut digest = [0; 32];
    hex::decode_to_slice(module, &mut digest).ok()?;
    engine.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(digest)
}

fn read_secret(path: &Path) -> io::Result<Option<[u8; 32]>> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let of = file.metadata()?;
    if of.uid() != rustix::process::geteuid().as_raw() || of.mode() & 0o077 != 0 {
        tracing::warn!(file = %path.display(), "another user may know this key: it is replaced, and all is compiled anew");
        return Ok(None);
    }
    let mut secret = Vec::new();
    file.read_to_end(&mut secret)?;
    Ok(secret.as_slice().try_into().ok())
}

fn turn(path: &Path) -> Option<Turn> {
    let path = path.with_extension("lock");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.inspect_err(|error| tracing::warn!(file = %path.display(), "cannot be locked: {error}")).ok()?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Some(Turn { path, _locked: file }),
            Err(fs::TryLockError::WouldBlock) if waited < TURN_WAIT_MAX => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "another process has it; the thread is one for guest code"
                )]
                std::thread::sleep(TURN_POLL);
                waited += TURN_POLL;
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), "cannot be locked: {error}");
                return None;
            }
        }
    }
}

/// Removes what processes were writing when they ended: who still writes holds a lock.
fn remove_unfinished(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "tmp")
            && fs::File::open(&path).is_ok_and(|file| file.try_lock().is_ok())
        {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Writes beside `path` and renames, so that no reader sees half a file. Not synced: a file that a crash
/// tore fails its check and is made anew.
fn write_aside(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let aside = path.with_extension(format!("{}-{}.tmp", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        // Where nothing can be locked, nothing is removed either.
        let _ = file.try_lock();
        for part in parts {
            file.write_all(part)?;
        }
        fs::rename(&aside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

/// HMAC (RFC 2104) with SHA-256 and a key of 32 bytes.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let block = |pad: u8| {
        let mut block = [pad; 64];
        for (place, byte) in block.iter_mut().zip(key) {
            *place ^= byte;
        }
        block
    };
    let mut inner = Sha256::new();
    inner.update(block(0x36));
    for part in parts {
        inner.update(part);
    }
    let mut outer = Sha256::new();
    outer.update(block(0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

/// Equality in a time that does not depend on where the first difference is.
fn same(left: &[u8; TAG_BYTES], right: &[u8; TAG_BYTES]) -> bool {
    left.iter().zip(right).fold(0, |differences, (l, r)| differences | (l ^ r)) == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn hmac_is_the_one_of_rfc_4231() {
        // Test case 2 pads its key "Jefe" with zeros, as a 32-byte key of our kind would be.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let tag = hmac(&key, &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(hex::encode(tag), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn what_is_put_comes_back_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        DirCache::open(directory.path()).unwrap().put("a", b"code");
        assert_eq!(DirCache::open(directory.path()).unwrap().get("a").as_deref(), Some(b"code".as_slice()));
    }

    #[test]
    fn nodes_that_start_together_have_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let open = || DirCache::open(directory.path()).unwrap();
        let caches: Vec<_> =
            std::thread::scope(|scope| [(); 8].map(|()| scope.spawn(open)).map(|cache| cache.join().unwrap()).into());
        for (number, cache) in caches.iter().enumerate() {
            cache.put(&number.to_string(), b"code");
        }
        for number in 0..8 {
            assert!(caches.iter().all(|cache| cache.get(&number.to_string()).is_some()), "what {number} put");
        }
    }

    #[test]
    fn a_key_that_others_may_read_signs_nothing() {
        let directory = tempfile::tempdir().unwrap();
        DirCache::open(directory.path()).unwrap().put("a", b"code");
        let key = directory.path().join("key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(DirCache::open(directory.path()).unwrap().get("a"), None);
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn one_makes_what_others_wait_for() {
        let directory = tempfile::tempdir().unwrap();
        let made = AtomicU64::new(0);
        let work = || {
            // As another process would: with a cache of its own.
            let cache = DirCache::open(directory.path()).unwrap();
            let turn = cache.turn("a");
            assert!(turn.is_some());
            if cache.get("a").is_none() {
                made.fetch_add(1, Ordering::Relaxed);
                cache.put("a", b"code");
            }
        };
        std::thread::scope(|scope| drop([(); 8].map(|()| scope.spawn(work))));
        assert_eq!(made.into_inner(), 1);
        let files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files.len(), 2, "the key and the code, no locks: {files:?}");
    }

    /// Nodes that were killed while they wrote left files of megabytes behind, one each time, and nobody removed them.
    #[test]
    fn what_a_killed_process_was_writing_is_removed_and_what_is_being_written_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (left, written) = (directory.path().join("a.1-0.tmp"), directory.path().join("b.1-0.tmp"));
        fs::write(&left, b"half").unwrap();
        let writer = fs::File::create(&written).unwrap();
        writer.lock().unwrap();
        DirCache::open(directory.path()).unwrap();
        assert!(!left.exists() && written.exists());
        drop(writer);
        DirCache::open(directory.path()).unwrap();
        assert!(!written.exists());
    }

    /// A node kept the code of all modules that there ever were. Several nodes share a directory, and none knows what the others run.
    #[test]
    fn code_that_is_needed_no_more_is_removed_by_who_has_the_directory_alone() {
        let directory = tempfile::tempdir().unwrap();
        let shared = DirCache::open(directory.path()).unwrap();
        let key = |module: u8, engine: &str| format!("{}-{engine}", hex::encode([module; 32]));
        for kept in [key(1, "aa"), key(2, "aa"), key(2, "bb"), key(3, "aa")] {
            shared.put(&kept, b"code");
        }
        let unfinished = directory.path().join(format!("{}.1-0.tmp", key(2, "cc")));
        let writer = fs::File::create(&unfinished).unwrap();
        writer.lock().unwrap();
        let left = || [key(1, "aa"), key(2, "aa"), key(2, "bb"), key(3, "aa")].map(|kept| shared.get(&kept).is_some());
        shared.retain(&|_| false);
        assert_eq!(left(), [true; 4]);
        let alone = DirCache::open(directory.path()).unwrap().of_one_node();
        alone.retain(&|digest| *digest != [2; 32]);
        assert_eq!(left(), [true, false, false, true]);
        assert!(unfinished.exists(), "somebody writes it");
    }

    #[test]
    fn a_damaged_foreign_or_renamed_file_is_not_returned() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DirCache::open(directory.path()).unwrap();
        cache.put("a", b"code");
        fs::copy(directory.path().join("a"), directory.path().join("b")).unwrap();
        assert_eq!(cache.get("b"), None, "code of one module under the name of another");

        let mut bytes = fs::read(directory.path().join("a")).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(directory.path().join("a"), bytes).unwrap();
        assert_eq!(cache.get("a"), None, "one bit is wrong");

        let other = tempfile::tempdir().unwrap();
        DirCache::open(other.path()).unwrap().put("c", b"code");
        fs::copy(other.path().join("c"), directory.path().join("c")).unwrap();
        assert_eq!(cache.get("c"), None, "another node's file");
        fs::write(directory.path().join("d"), b"short").unwrap();
        assert_eq!(cache.get("d"), None, "a torn file");
    }
}
