//! Linear memory that the host owns: the committed image of a machine and the private mappings over it.
//!
//! Invariants:
//! - An [`Image`] is a sparse memory file as large as the memory limit. Only a checkpoint writes to it.
//! - A [`Mapping`] shows an image privately: what guest code writes stays in this mapping's own pages,
//!   until `forget` drops them and the image shows through again. What a checkpoint is about to
//!   overwrite in the image can be held in a mapping by `hold`: so a frozen state stays as it was.
//! - Bytes from the memory's size up to the end of the reservation and its guard are never accessible,
//!   so compiled code needs no bounds checks.
//! - A mapping lives as long as the wasmtime memory made from it (both hold the same `Arc`).

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use rustix::fs::SeekFrom;
use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::MprotectFlags;
use rustix::mm::ProtFlags;
use wasmtime::LinearMemory;
use wasmtime::MemoryCreator;
use wasmtime::MemoryType;

/// The committed bytes of a memory, as a file that lives in memory only.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    capacity: usize,
    /// The whole file, mapped shared: a checkpoint compares and copies thousands of pages, and a system
    /// call for each would take longer than the copy.
    shared: NonNull<u8>,
}

// SAFETY: the pointer is to a mapping that this value owns alone; see `Image::update` for who may touch it.
unsafe impl Send for Image {}
// SAFETY: as for `Send`.
unsafe impl Sync for Image {}

impl Image {
    /// An image of zeros, `capacity` bytes, taking room only for what is written.
    pub(super) fn new(capacity: usize) -> io::Result<Image> {
        let file = File::from(rustix::fs::memfd_create(c"statehouse-memory", MemfdFlags::CLOEXEC)?);
        rustix::fs::ftruncate(&file, capacity as u64)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // A mapping cannot be empty; the bytes past a file's end are never touched.
        let length = capacity.max(1);
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing from anyone.
        let shared = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, &file, 0)? };
        let shared = NonNull::new(shared.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Image { file, capacity, shared })
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn write_at(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset as u64)
    }

    /// Whether the image has other bytes than `bytes` at `offset`. False for what lies outside.
    ///
    /// # Safety
    ///
    /// As for [`Image::update`].
    pub(super) unsafe fn differs(&self, offset: usize, bytes: &[u8]) -> bool {
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.capacity) {
            return false;
        }
        // SAFETY: the range lies within the mapping, and by the contract nobody writes to it meanwhile.
        let own = unsafe { std::slice::from_raw_parts(self.shared.as_ptr().add(offset), bytes.len()) };
        own != bytes
    }

    /// Copies `bytes` to `offset`; what lies outside is left out.
    ///
    /// # Safety
    ///
    /// Only the machine that owns the image may call it, from one thread at a time, while its instances run
    /// no guest code; `bytes` must be private pages, so that they are not the image's own. Frozen states
    /// on other threads must hold the range.
    pub(super) unsafe fn update(&self, offset: usize, bytes: &[u8]) {
        if offset.checked_add(bytes.len()).is_some_and(|end| end <= self.capacity) {
            // SAFETY: the range lies within the mapping, no reference to it exists but in `differs`,
            // which by its contract is not running, and `bytes` is other memory.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.shared.as_ptr().add(offset), bytes.len()) };
        }
    }

    /// Takes what checkpoints have touched out of this process's page table, where each of its pages counts as
    /// resident once more for every mapping that shows it. The bytes stay in the file.
    pub(super) fn unmap_pages(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping's own, and of a shared mapping of a file this call changes no byte.
        unsafe { rustix::mm::madvise(self.shared.as_ptr().cast(), self.capacity.max(1), Advice::LinuxDontNeed)? };
        Ok(())
    }

    /// Fills `bytes` from `offset`.
    pub(super) fn read_at(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset as u64)
    }

    /// The next range at or after `from` and before `end` that may hold other bytes than zeros. What is not
    /// in such a range must not be read through a mapping either: that would make a page of zeros of it.
    pub(super) fn next_data(&self, from: usize, end: usize) -> io::Result<Option<Range<usize>>> {
        if from >= end {
            return Ok(None);
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from as u64)) {
            Ok(start) => start as usize,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if start >= end {
            return Ok(None);
        }
        let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(start as u64))? as usize;
        Ok(Some(start..hole.min(end)))
    }

    /// Another image with the same bytes.
    pub(super) fn duplicate(&self) -> io::Result<Image> {
        let copy = Image::new(self.capacity)?;
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while let Some(data) = self.next_data(at, self.capacity)? {
            at = data.start;
            while at < data.end {
                let length = buffer.len().min(data.end - at);
                let Some(part) = buffer.get_mut(..length) else { break };
                self.read_at(at, part)?;
                copy.write_at(at, part)?;
                at += length;
            }
        }
        Ok(copy)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no pointer into it outlives it.
        let _ = unsafe { rustix::mm::munmap(self.shared.as_ptr().cast(), self.capacity.max(1)) };
    }
}

/// Address space that shows an image privately.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    /// Everything that was reserved: room for the largest memory, and the guard.
    reserved: usize,
    /// The most the memory can grow to, bytes.
    capacity: usize,
    /// Bytes of the image that are shown; what grows beyond them starts as zeros.
    shown: usize,
    /// Bytes accessible now.
    size: AtomicUsize,
    /// Keeps the file open, though the kernel would keep the mapping without it.
    _image: Arc<Image>,
}

// SAFETY: the pointer is to address space that this value owns alone, and no method gives out a
// reference into it; wasmtime synchronises what is reached through `as_ptr` by its store.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; the methods that change the mapping are atomic system calls.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(image: Arc<Image>, shown: usize, reserved: usize, size: usize) -> io::Result<Mapping> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing from anyone.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags)? };
        let capacity = image.capacity.min(reserved);
        let shown = shown.min(capacity);
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        // From here on dropping unmaps it.
        let mapping = Mapping { base, reserved, capacity, shown, size: AtomicUsize::new(0), _image: image.clone() };
        if shown > 0 {
            // SAFETY: the fixed address range lies within the reservation made above, which nothing
            // else uses yet, so only our own empty pages are replaced.
            unsafe {
                rustix::mm::mmap(
                    base.as_ptr().cast(),
                    shown,
                    ProtFlags::empty(),
                    flags | MapFlags::FIXED,
                    &image.file,
                    0,
                )?;
            }
        }
        mapping.grow(size)?;
        Ok(mapping)
    }

    fn address(&self, offset: usize) -> *mut c_void {
        self.base.as_ptr().wrapping_add(offset).cast()
    }

    fn grow(&self, size: usize) -> io::Result<()> {
        let before = self.size.load(Ordering::Acquire);
        if size > self.capacity {
            return Err(io::Error::other("memory grows past the image behind it"));
        }
        if size > before {
            // SAFETY: the range lies within this mapping; making more of it accessible invalidates
            // no reference, as none can exist to inaccessible pages.
            unsafe {
                rustix::mm::mprotect(self.address(before), size - before, MprotectFlags::READ | MprotectFlags::WRITE)?
            };
            self.size.store(size, Ordering::Release);
        }
        Ok(())
    }

    /// Takes what lies beyond `size` bytes, whole pages, out of reach again; what was written there is gone.
    ///
    /// # Safety
    ///
    /// As for [`Mapping::forget`]; and whoever knows the size must be told of the new one before the memory is used.
    pub(super) unsafe fn shrink(&self, size: usize) -> io::Result<()> {
        let before = self.size.load(Ordering::Acquire);
        if size < before {
            // SAFETY: passed on to the caller.
            unsafe { self.forget(size..before)? };
            // SAFETY: the range lies within this mapping, and by this function's contract nobody holds a reference to it.
            unsafe { rustix::mm::mprotect(self.address(size), before - size, MprotectFlags::empty())? };
            self.size.store(size, Ordering::Release);
        }
        Ok(())
    }

    /// Drops the private pages of `range`, whole pages: it shows the image again.
    ///
    /// # Safety
    ///
    /// No reference into the memory may be alive: its bytes change.
    pub(super) unsafe fn forget(&self, range: Range<usize>) -> io::Result<()> {
        let end = range.end.min(self.capacity);
        if range.start < end {
            // SAFETY: the range lies within this mapping, and by this function's contract nobody holds
            // a reference to its bytes.
            unsafe { rustix::mm::madvise(self.address(range.start), end - range.start, Advice::LinuxDontNeed)? };
        }
        Ok(())
    }

    /// Makes the pages of `range` that the image still shows this mapping's own, so that the image may
    /// be overwritten there. Their bytes do not change, so guest code may run on them meanwhile.
    pub(super) fn hold(&self, range: &Range<usize>) -> io::Result<()> {
        let end = range.end.min(self.shown);
        if range.start < end {
            // SAFETY: the range lies within this mapping, and the call changes no byte that can be read.
            unsafe { rustix::mm::madvise(self.address(range.start), end - range.start, Advice::LinuxPopulateWrite)? };
        }
        Ok(())
    }

    /// Drops all private pages.
    ///
    /// # Safety
    ///
    /// As for [`Mapping::forget`].
    pub(super) unsafe fn forget_all(&self) -> io::Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.forget(0..self.capacity) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the reservation is this value's own, made in `new`, and wasmtime's memory, which
        // holds an `Arc` of this value, is gone. A failure would leave address space behind, no more.
        let _ = unsafe { rustix::mm::munmap(self.address(0), self.reserved) };
    }
}

/// A memory that shows no image, for what the rewrite adds.
struct PlainMemory {
    base: NonNull<u8>,
    reserved: usize,
    size: usize,
}

// SAFETY: the pointer is to address space that this value owns alone and gives to wasmtime only, which synchronises.
unsafe impl Send for PlainMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for PlainMemory {}

impl PlainMemory {
    fn new(size: usize, reserved: usize) -> io::Result<PlainMemory> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing from anyone.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags)? };
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        // From here on dropping unmaps it.
        let memory = PlainMemory { base, reserved, size: size.min(reserved) };
        // SAFETY: the range lies within the mapping made above, to which no reference exists yet.
        unsafe { rustix::mm::mprotect(base.as_ptr().cast(), memory.size, MprotectFlags::READ | MprotectFlags::WRITE)? };
        Ok(memory)
    }
}

impl Drop for PlainMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and wasmtime drops it when nothing uses the memory any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.reserved) };
    }
}

// SAFETY: `as_ptr` is stable for the value's life, `byte_size` bytes from it are accessible, the memory never grows, and
// everything behind it up to the end of the guard stays inaccessible.
unsafe impl LinearMemory for PlainMemory {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        self.size
    }

    fn grow_to(&mut self, _: usize) -> wasmtime::Result<()> {
        Err(wasmtime::Error::msg("the host's own memory does not grow"))
    }

    fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

/// What wasmtime owns of a memory.
struct HostMemory(Arc<Mapping>);

// SAFETY: `as_ptr` is stable for the value's life, `byte_size` bytes from it are accessible, growth never
// moves it (the whole reservation is made up front), and everything behind it up to the end of
// the guard stays inaccessible. Bytes and size are changed outside of wasmtime only through `Mapping::forget` and
// `Mapping::shrink`, while no guest code runs.
unsafe impl LinearMemory for HostMemory {
    fn byte_size(&self) -> usize {
        self.0.size.load(Ordering::Acquire)
    }

    fn byte_capacity(&self) -> usize {
        self.0.capacity
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        Ok(self.0.grow(new_size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.0.base.as_ptr()
    }
}

/// Whether this kernel can do what [`Mapping::hold`] asks (Linux 5.14); where it cannot, a frozen state
/// gets an image of its own.
pub(super) fn can_hold() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let page = rustix::param::page_size();
        let tried =
            Image::new(page).and_then(|image| Mapping::new(Arc::new(image), page, page, page)?.hold(&(0..page)));
        tried.is_ok()
    })
}

/// What passes between [`with_image`] and the creator that wasmtime calls on the same thread.
enum Handover {
    Empty,
    Asked(Arc<Image>, usize),
    Made(Arc<Mapping>),
}

thread_local! {
    static HANDOVER: RefCell<Handover> = const { RefCell::new(Handover::Empty) };
}

/// Runs `instantiate`; the first memory it makes shows the first `shown` bytes of `image` and its mapping is returned
/// beside the result.
pub(super) fn with_image<R>(
    image: Arc<Image>,
    shown: usize,
    instantiate: impl FnOnce() -> R,
) -> (R, Option<Arc<Mapping>>) {
    HANDOVER.with(|handover| handover.replace(Handover::Asked(image, shown)));
    let result = instantiate();
    match HANDOVER.with(|handover| handover.replace(Handover::Empty)) {
        Handover::Made(mapping) => (result, Some(mapping)),
        Handover::Empty | Handover::Asked(..) => (result, None),
    }
}

/// Makes the memory of every instance over the image that [`with_image`] named.
pub(super) struct Creator;

// SAFETY: the memory is zero-filled or shows a machine's image, has the reservation and guard wasmtime
// asks for, and is not touched by anyone but wasmtime while guest code runs.
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        _: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let reserved = reserved_size_in_bytes.unwrap_or(0) + guard_size_in_bytes;
        let (image, shown) = match HANDOVER.with(|handover| handover.replace(Handover::Empty)) {
            Handover::Asked(image, shown) => (image, shown),
            // Memories are made in their order: the guest's own is there, this is the one the rewrite added.
            Handover::Made(mapping) => {
                HANDOVER.with(|handover| handover.replace(Handover::Made(mapping)));
                let memory = PlainMemory::new(minimum, reserved);
                return Ok(Box::new(memory.map_err(|error| format!("cannot map memory: {error}"))?));
            }
            Handover::Empty => return Err("a memory was made that no image was named for".to_string()),
        };
        let mapping = Mapping::new(image, shown, reserved, minimum)
            .map_err(|error| format!("cannot map linear memory: {error}"))?;
        let mapping = Arc::new(mapping);
        HANDOVER.with(|handover| handover.replace(Handover::Made(mapping.clone())));
        Ok(Box::new(HostMemory(mapping)))
    }
}
