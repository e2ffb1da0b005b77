//! A disk in memory that forgets as a real one does.
//!
//! Invariants:
//!
//! - `live` is what the running process reads; `durable` is what a crash leaves at least.
//! - Every change since the last sync waits in `pending`, in order. A sync applies the file's (or
//!   directory's) own changes to `durable`; a crash keeps, loses or tears each of the rest.
//! - A failed sync throws the file's pending changes away and leaves them readable in `live`: that
//!   is what Linux does, and why a sync must never be tried again.
//! - Handles opened before a crash are dead after it, so a task that outlived its node writes
//!   nothing.
//!
//! Directories themselves are durable at once; only names of files in them are not.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::Disk;
use super::DiskFile;

/// What a device writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;
const PAGE_BYTES: u64 = 4096;
const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

type Inode = u64;

/// A simulated disk. Clones share it; [`SimDisk::fork`] makes an independent one.
#[derive(Clone, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone, Default)]
struct Inner {
    live: Tree,
    durable: Tree,
    dirs: BTreeSet<PathBuf>,
    pending: Vec<Change>,
    next_inode: Inode,
    /// How many handles each file has: one without a name lives until its last handle is dropped.
    handles: BTreeMap<Inode, u64>,
    crashes: u64,
    faults: Faults,
    counts: Counts,
}

/// Names and contents; cloning shares the pages.
#[derive(Clone, Default)]
struct Tree {
    names: BTreeMap<PathBuf, Inode>,
    files: BTreeMap<Inode, Content>,
}

#[derive(Clone, Default)]
struct Content {
    len: u64,
    /// How far space is reserved, bytes: what `len` ever was, or what was preallocated.
    reserved: u64,
    /// Pages that were written; the others are zeros.
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES as usize]>>,
}

#[derive(Clone)]
enum Change {
    Write { inode: Inode, offset: u64, bytes: Arc<[u8]> },
    Length { inode: Inode, len: u64, reserved: u64 },
    Create { path: PathBuf, inode: Inode },
    Remove { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
}

#[derive(Clone, Default)]
struct Faults {
    /// Bytes that may still be reserved; `None` is without limit.
    space: Option<u64>,
    /// Fails this sync (0 = the next one), then none.
    sync_in: Option<u64>,
    /// After so many more changes and syncs all of them fail: the power is about to go.
    power_in: Option<u64>,
    /// Reads of these byte ranges fail with an I/O error.
    unreadable: Vec<(Inode, u64, u64)>,
}

/// What was done to the disk so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of `sync_data`.
    pub syncs: u64,
    /// Calls of `write_all_at`.
    pub writes: u64,
    /// Bytes given to `write_all_at`.
    pub written_bytes: u64,
    /// Calls of `read_at`.
    pub reads: u64,
}

impl Content {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let wanted = (buffer.len() as u64).min(self.len.saturating_sub(offset));
        let mut done = 0;
        while done < wanted {
            let at = offset + done;
            let within = at % PAGE_BYTES;
            let step = (PAGE_BYTES - within).min(wanted - done);
            let page = self.pages.get(&(at / PAGE_BYTES)).map_or(&ZEROS, |page| &**page);
            if let (Some(to), Some(from)) = (
                buffer.get_mut(done as usize..(done + step) as usize),
                page.get(within as usize..(within + step) as usize),
            ) {
                to.copy_from_slice(from);
            }
            done += step;
        }
        done as usize
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() as u64 {
            let at = offset + done;
            let within = at % PAGE_BYTES;
            let step = (PAGE_BYTES - within).min(bytes.len() as u64 - done);
            let piece = bytes.get(done as usize..(done + step) as usize).unwrap_or_default();
            done += step;
            // A page that was never written is zeros already: a file filled with zeros costs nothing.
            if piece.iter().all(|byte| *byte == 0) && !self.pages.contains_key(&(at / PAGE_BYTES)) {
                continue;
            }
            let page = self.pages.entry(at / PAGE_BYTES).or_insert_with(|| Arc::new(ZEROS));
            if let Some(to) = Arc::make_mut(page).get_mut(within as usize..(within + step) as usize) {
                to.copy_from_slice(piece);
            }
        }
        self.len = self.len.max(offset + bytes.len() as u64);
        self.reserved = self.reserved.max(self.len);
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let first_gone = len.div_ceil(PAGE_BYTES);
            self.pages.split_off(&first_gone);
            let within = len % PAGE_BYTES;
            if within != 0
                && let Some(page) = self.pages.get_mut(&(len / PAGE_BYTES))
                && let Some(rest) = Arc::make_mut(page).get_mut(within as usize..)
            {
                rest.fill(0);
            }
            self.reserved = len;
        }
        self.len = len;
    }
}

impl Tree {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { inode, offset, bytes } => self.files.entry(*inode).or_default().write(*offset, bytes),
            Change::Length { inode, len, reserved } => {
                let content = self.files.entry(*inode).or_default();
                content.set_len(*len);
                content.reserved = *reserved;
            }
            Change::Create { path, inode } => {
                self.names.insert(path.clone(), *inode);
                self.files.entry(*inode).or_default();
            }
            Change::Remove { path } => {
                self.names.remove(path);
            }
            Change::Rename { from, to } => {
                let moved = |path: &PathBuf| Some((path.clone(), to.join(path.strip_prefix(from).ok()?)));
                for (old, new) in self.names.keys().filter_map(moved).collect::<Vec<_>>() {
                    // `join` with nothing, for the file itself, would end in a slash.
                    let new = if old == *from { to.clone() } else { new };
                    if let Some(inode) = self.names.remove(&old) {
                        self.names.insert(new, inode);
                    }
                }
            }
        }
    }
}

impl Change {
    fn is_of_file(&self, file: Inode) -> bool {
        matches!(self, Change::Write { inode, .. } | Change::Length { inode, .. } if *inode == file)
    }

    fn is_in_dir(&self, dir: &Path) -> bool {
        match self {
            Change::Write { .. } | Change::Length { .. } => false,
            Change::Create { path, .. } | Change::Remove { path } => path.parent() == Some(dir),
            Change::Rename { from, to } => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }
}

impl Inner {
    fn push(&mut self, change: Change) {
        self.live.apply(&change);
        self.pending.push(change);
    }

    /// To be asked before every change and sync: whether there still is power.
    fn powered(&mut self) -> io::Result<()> {
        match &mut self.faults.power_in {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Drops files that nobody can reach any more.
    fn collect(&mut self) {
        let mut reachable: BTreeSet<Inode> = self.handles.keys().copied().collect();
        reachable.extend(self.live.names.values().chain(self.durable.names.values()));
        reachable.extend(self.pending.iter().filter_map(|change| match change {
            Change::Create { inode, .. } => Some(*inode),
            _ => None,
        }));
        self.live.files.retain(|inode, _| reachable.contains(inode));
        self.durable.files.retain(|inode, _| reachable.contains(inode));
    }

    fn handle(&mut self, disk: &SimDisk, inode: Inode) -> Box<dyn DiskFile> {
        *self.handles.entry(inode).or_default() += 1;
        Box::new(SimFile { disk: disk.clone(), inode, born: self.crashes })
    }

    /// Applies the pending changes that `which` picks to the durable tree, in order.
    fn settle(&mut self, which: impl Fn(&Change) -> bool) {
        let (settled, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().partition(which);
        for change in &settled {
            self.durable.apply(change);
        }
        self.pending = rest;
    }

    /// The machine is gone and back: only what is durable is there.
    fn restart(&mut self) {
        self.pending.clear();
        self.durable.files.retain(|inode, _| self.durable.names.values().any(|named| named == inode));
        self.live = self.durable.clone();
        // One that was removed is there again with the files whose removal did not last.
        let parents = self.durable.names.keys().filter_map(|name| name.parent());
        self.dirs.extend(parents.map(Path::to_owned));
        self.faults.power_in = None;
        self.crashes += 1;
    }

    /// Takes `bytes` from the space that is left, or says how many there are.
    fn take_space(&mut self, bytes: u64) -> Result<(), u64> {
        match &mut self.faults.space {
            Some(left) if *left < bytes => Err(*left),
            Some(left) => {
                *left -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An independent copy, unsynced changes and faults included, without handles.
    pub fn fork(&self) -> Self {
        let mut inner = self.lock().clone();
        inner.handles.clear();
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// How many changes wait for a sync.
    pub fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// The lengths of the changes that wait for a sync, in order: bytes of a write, 0 of any other.
    pub fn pending_bytes(&self) -> Vec<usize> {
        let bytes = |change: &Change| match change {
            Change::Write { bytes, .. } => bytes.len(),
            _ => 0,
        };
        self.lock().pending.iter().map(bytes).collect()
    }

    /// The power fails: each unsynced change is kept, lost, or (a write) torn into kept and lost
    /// sectors, as `random` says.
    pub fn crash(&self, random: &mut dyn FnMut() -> u64) {
        let mut inner = self.lock();
        for change in std::mem::take(&mut inner.pending) {
            match (random() % 3, &change) {
                (0, _) => inner.durable.apply(&change),
                (1, Change::Write { inode, offset, bytes }) => {
                    let mut at = 0;
                    while at < bytes.len() as u64 {
                        let to_edge = SECTOR_BYTES - (offset + at) % SECTOR_BYTES;
                        let end = (at + to_edge).min(bytes.len() as u64);
                        if random().is_multiple_of(2)
                            && let Some(sector) = bytes.get(at as usize..end as usize)
                        {
                            inner.durable.files.entry(*inode).or_default().write(offset + at, sector);
                        }
                        at = end;
                    }
                }
                _ => {}
            }
        }
        inner.restart();
    }

    /// The power fails after exactly the first `whole` unsynced changes, and `bytes_of_next` bytes
    /// of the one after them if that is a write, reached the device.
    pub fn crash_after(&self, whole: usize, bytes_of_next: usize) {
        let mut inner = self.lock();
        let pending = std::mem::take(&mut inner.pending);
        for change in pending.iter().take(whole) {
            inner.durable.apply(change);
        }
        if let Some(Change::Write { inode, offset, bytes }) = pending.get(whole)
            && let Some(part) = bytes.get(..bytes_of_next.min(bytes.len()))
        {
            inner.durable.apply(&Change::Write { inode: *inode, offset: *offset, bytes: part.into() });
        }
        inner.restart();
    }

    /// The power fails, and of the only unsynced write all sectors but the first reached the device.
    pub fn crash_without_first_sector(&self) {
        let mut inner = self.lock();
        if let Some(Change::Write { inode, offset, bytes }) = inner.pending.first().cloned()
            && let Some(rest) = bytes.get(SECTOR_BYTES as usize..)
        {
            inner.durable.apply(&Change::Write { inode, offset: offset + SECTOR_BYTES, bytes: rest.into() });
        }
        inner.restart();
    }

    /// The process dies and the machine does not: nothing is lost, nothing becomes durable, and the
    /// handles of the dead process are of no use to the next one.
    pub fn kill_process(&self) {
        self.lock().crashes += 1;
    }

    /// From now on only `bytes` more can be reserved; `None` lifts the limit.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.lock().faults.space = bytes;
    }

    /// Lets the sync after `skip` good ones fail, and drop what it should have made durable.
    pub fn fail_sync(&self, skip: u64) {
        self.lock().faults.sync_in = Some(skip);
    }

    /// Lets all changes and syncs after the next `changes` fail, until the crash that this announces.
    pub fn cut_power_after(&self, changes: u64) {
        self.lock().faults.power_in = Some(changes);
    }

    /// Lets every read that touches `len` bytes at `offset` of `path` fail, whatever the file is called later.
    pub fn fail_reads(&self, path: &Path, offset: u64, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        let inode = *inner.live.names.get(path).ok_or_else(|| not_found(path))?;
        inner.faults.unreadable.push((inode, offset, len));
        Ok(())
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.lock().faults = Faults::default();
    }

    /// Flips one bit (0 to 7) of the byte at `offset`, as decay does: without anyone noticing.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        self.at_rest(path, offset, |content| {
            let mut byte = [0];
            content.read(offset, &mut byte);
            content.write(offset, &byte.map(|byte| byte ^ (1 << (bit % 8))));
        })
    }

    /// Replaces bytes of a file, as a write does that went astray: without anyone noticing.
    pub fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.at_rest(path, offset, |content| content.write(offset, bytes))
    }

    /// Changes what the device and the system's cache have of a file, where they have anything at `offset`.
    fn at_rest(&self, path: &Path, offset: u64, change: impl Fn(&mut Content)) -> io::Result<()> {
        let mut inner = self.lock();
        let inode = *inner.live.names.get(path).ok_or_else(|| not_found(path))?;
        let inner = &mut *inner;
        for tree in [&mut inner.live, &mut inner.durable] {
            if let Some(content) = tree.files.get_mut(&inode).filter(|content| offset < content.len) {
                change(content);
            }
        }
        Ok(())
    }

    /// All bytes of a file as the running process sees them.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inner = self.lock();
        let inode = inner.live.names.get(path).ok_or_else(|| not_found(path))?;
        let content = inner.live.files.get(inode).ok_or_else(|| not_found(path))?;
        let mut bytes = vec![0; content.len as usize];
        content.read(0, &mut bytes);
        Ok(bytes)
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }
}

struct SimFile {
    disk: SimDisk,
    inode: Inode,
    /// The number of crashes when it was opened.
    born: u64,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut inner = self.disk.lock();
        if let Some(handles) = inner.handles.get_mut(&self.inode) {
            *handles -= 1;
            if *handles == 0 {
                inner.handles.remove(&self.inode);
                inner.collect();
            }
        }
    }
}

impl SimFile {
    fn lock(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.lock();
        if inner.crashes == self.born {
            return Ok(inner);
        }
        Err(io::Error::other("the file was opened before the machine crashed"))
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.lock()?;
        inner.counts.reads += 1;
        let end = offset + buffer.len() as u64;
        let unreadable = inner.faults.unreadable.iter();
        if unreadable.clone().any(|(bad, from, len)| *bad == self.inode && *from < end && offset < from + len) {
            return Err(broken());
        }
        Ok(inner.live.files.get(&self.inode).map_or(0, |content| content.read(offset, buffer)))
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.lock()?;
        inner.powered()?;
        inner.counts.writes += 1;
        inner.counts.written_bytes += bytes.len() as u64;
        let reserved = inner.live.files.get(&self.inode).map_or(0, |content| content.reserved);
        let more = (offset + bytes.len() as u64).saturating_sub(reserved);
        let (bytes, result) = match inner.take_space(more) {
            Ok(()) => (bytes, Ok(())),
            // As a real disk does: what fits is written before the error is known.
            Err(left) => {
                let fits = (reserved + left).saturating_sub(offset).min(bytes.len() as u64);
                inner.faults.space = Some(0);
                (bytes.get(..fits as usize).unwrap_or_default(), Err(full()))
            }
        };
        if !bytes.is_empty() {
            inner.push(Change::Write { inode: self.inode, offset, bytes: bytes.into() });
        }
        result
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut inner = self.lock()?;
        inner.powered()?;
        let (old, reserved) =
            inner.live.files.get(&self.inode).map_or((0, 0), |content| (content.len, content.reserved));
        inner.take_space(len.saturating_sub(reserved)).map_err(|_| full())?;
        inner.push(Change::Length { inode: self.inode, len: old.max(len), reserved: reserved.max(len) });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.lock()?;
        inner.powered()?;
        let reserved = inner.live.files.get(&self.inode).map_or(0, |content| content.reserved);
        inner.push(Change::Length { inode: self.inode, len, reserved: reserved.min(len) });
        if let Some(left) = &mut inner.faults.space {
            *left += reserved.saturating_sub(len);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.lock()?;
        inner.powered()?;
        inner.counts.syncs += 1;
        match inner.faults.sync_in {
            Some(0) => {
                inner.faults.sync_in = None;
                let inode = self.inode;
                inner.pending.retain(|change| !change.is_of_file(inode));
                return Err(broken());
            }
            Some(skip) => inner.faults.sync_in = Some(skip - 1),
            None => {}
        }
        let inode = self.inode;
        inner.settle(|change| change.is_of_file(inode));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock()?.live.files.get(&self.inode).map_or(0, |content| content.len))
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.lock();
        if inner.live.names.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", path.display())));
        }
        match path.parent() {
            Some(dir) if inner.dirs.contains(dir) || dir.as_os_str().is_empty() => {}
            _ => return Err(not_found(path)),
        }
        inner.powered()?;
        inner.next_inode += 1;
        let inode = inner.next_inode;
        inner.push(Change::Create { path: path.to_owned(), inode });
        Ok(inner.handle(self, inode))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.lock();
        let inode = *inner.live.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(inner.handle(self, inode))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let inner = self.lock();
        Ok(inner.live.names.contains_key(path) || inner.dirs.contains(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.lock();
        if !inner.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let in_dir = |path: &&PathBuf| path.parent() == Some(dir);
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        let names = inner.live.names.keys().chain(&inner.dirs).filter(in_dir).filter_map(name);
        Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.lock().dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        let directory = inner.dirs.contains(from);
        if !directory && !inner.live.names.contains_key(from) {
            return Err(not_found(from));
        }
        inner.powered()?;
        if directory {
            // Directories come into being at once and stay: only their files are ever lost.
            inner.dirs.insert(to.to_owned());
        }
        inner.push(Change::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        let inode = *inner.live.names.get(path).ok_or_else(|| not_found(path))?;
        inner.powered()?;
        let freed = inner.live.files.get(&inode).map_or(0, |content| content.reserved);
        inner.push(Change::Remove { path: path.to_owned() });
        if let Some(left) = &mut inner.faults.space {
            *left += freed;
        }
        Ok(())
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let below = |path: &&PathBuf| path.starts_with(dir);
        let files: Vec<PathBuf> = self.lock().live.names.keys().filter(below).cloned().collect();
        for path in files {
            self.remove(&path)?;
        }
        self.lock().dirs.retain(|path| !path.starts_with(dir));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.powered()?;
        inner.settle(|change| change.is_in_dir(dir));
        inner.collect();
        Ok(())
    }

    fn free_space(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.lock().faults.space.unwrap_or(u64::MAX))
    }

    fn total_space(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
