//! The disk as the core sees it: a few synchronous calls, so that the same code runs on a real
//! directory ([`RealDisk`]) and on the simulated one ([`sim::SimDisk`]).
//!
//! What callers may rely on, and must not forget:
//!
//! - Written bytes are durable only after [`DiskFile::sync_data`] returned `Ok`.
//! - A created, renamed or removed name is durable only after [`Disk::sync_dir`] of its directory.
//! - A failed sync is final: the kernel may have dropped the dirty pages, so a second sync that
//!   succeeds proves nothing. Whoever owns the file ends the process (rule 2 of the design).
//! - A failed write may have written a part.

pub mod read_only;
pub mod sim;

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An open file, readable and writable at any offset from any thread.
pub trait DiskFile: Send + Sync {
    /// Reads at `offset` into `buffer` and returns how many bytes were there: fewer than asked for
    /// only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`, growing the file when it ends before that.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reserves space up to `len` bytes and makes the file at least that long; what is new reads as
    /// zeros. Later writes inside that range do not run out of space.
    fn preallocate(&self, len: u64) -> io::Result<()>;

    /// Cuts the file to `len` bytes, or lengthens it with a hole.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the file's bytes, and its length if that changed, durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// The file's length, bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset`; an error of kind `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.read_at(offset, buffer)? == buffer.len() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the file ends before byte {}", offset.saturating_add(buffer.len() as u64)),
        ))
    }
}

/// A place for files.
pub trait Disk: Send + Sync + 'static {
    /// Creates a file that does not exist yet (`AlreadyExists` if it does).
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading and writing (`NotFound` if there is none).
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Whether there is a file or directory of this name.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// The names in a directory, sorted; `NotFound` when it does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory and its parents, and makes them durable.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Gives a file another name, replacing what had that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Handles that are open on it keep working.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all in it.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names of a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that may still be written to the file system that holds `path`.
    fn free_space(&self, path: &Path) -> io::Result<u64>;

    /// All bytes of the file system that holds `path`.
    fn total_space(&self, path: &Path) -> io::Result<u64>;

    /// When the file was last written to, Unix milliseconds; `None` on a disk without a clock. For people: nothing is
    /// decided by it.
    fn written_ms(&self, _path: &Path) -> Option<u64> {
        None
    }
}

/// The machine's own disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            // Some file systems cannot reserve; there the length alone is set and a write may still
            // meet a full disk, which every writer has to handle anyway.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                if self.len()? < len {
                    self.0.set_len(len)?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        // Each new name must become durable in its parent, or a crash loses the whole tree with it.
        let mut missing = Vec::new();
        let mut at = Some(dir);
        while let Some(path) = at.filter(|path| !path.as_os_str().is_empty() && !path.is_dir()) {
            missing.push(path);
            at = path.parent();
        }
        fs::create_dir_all(dir)?;
        for path in missing.into_iter().rev() {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            self.sync_dir(parent.unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn total_space(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    fn written_ms(&self, path: &Path) -> Option<u64> {
        let written = fs::metadata(path).ok()?.modified().ok()?;
        let since = written.duration_since(std::time::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    }
}
