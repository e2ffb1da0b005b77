//! Compiled code on disk, by module digest and engine hash.
//!
//! Compiled code runs with this process's rights, so a file counts only if this data directory's own key
//! signs it: each file is `HMAC-SHA-256(key, name ‖ bytes) ‖ bytes`, and the key is 32 random bytes in
//! `key`, readable by the owner alone. That finds damage and files that were copied in; someone who can
//! read the key can also replace the program.

use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

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
}

/// A [`CodeCache`] in a directory of this node's data directory.
#[derive(Debug)]
pub struct DirCache {
    directory: PathBuf,
    secret: [u8; 32],
}

const TAG_BYTES: usize = 32;

impl DirCache {
    /// A cache in `directory`, which is made if it is not there. A `key` file that is not 32 bytes is
    /// replaced, which empties the cache.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<DirCache> {
        let directory = directory.into();
        fs::create_dir_all(&directory)?;
        let path = directory.join("key");
        let secret = match fs::read(&path).map(|bytes| <[u8; 32]>::try_from(bytes.as_slice())) {
            Ok(Ok(secret)) => secret,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(Err(_)) | Err(_) => {
                let mut secret = [0; 32];
                getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
                write_aside(&path, &[&secret])?;
                secret
            }
        };
        Ok(DirCache { directory, secret })
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
            Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged, or was not written by this node"))
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
}

/// Writes beside `path` and renames, so that no reader sees half a file. Not synced: a file that a crash
/// tore fails its check and is made anew.
fn write_aside(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let aside = path.with_extension(format!("{}-{}.tmp", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
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
