//! Finds the pages of a private mapping that were written since they were last dropped: the machine's
//! dirty pages.
//!
//! Invariants:
//! - Every page whose bytes differ from the image is found; a page that is found may be equal to it.
//! - All ways give the same memory after a checkpoint; they differ in time alone.
//!
//! Three ways, the first that this kernel has: the `PAGEMAP_SCAN` ioctl (Linux 6.7) walks the page table
//! inside the kernel; `/proc/self/pagemap` is read entry by entry; where neither is allowed (some
//! sandboxes), memory is compared with the image.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::ioctl::Ioctl;
use rustix::ioctl::IoctlOutput;
use rustix::ioctl::Opcode;
use rustix::ioctl::opcode;

use super::memory::Image;

/// How dirty pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `PAGEMAP_SCAN`.
    Scan,
    /// Reading `/proc/self/pagemap`.
    Pagemap,
    /// Comparing with the image.
    Compare,
}

/// The best way this host has, found out once.
pub(super) fn best_way() -> Way {
    static WAY: OnceLock<Way> = OnceLock::new();
    *WAY.get_or_init(|| {
        let Ok(pagemap) = pagemap() else { return Way::Compare };
        // An empty range is a valid question and finds nothing; old kernels answer ENOTTY.
        let page = rustix::param::page_size();
        let here = &raw const WAY as usize / page * page;
        match scan(pagemap, here, here + page, &mut [Region::default()]) {
            Ok(_) => Way::Scan,
            Err(_) => Way::Pagemap,
        }
    })
}

/// `/proc/self/pagemap`, opened once. It stays bound to this process's memory.
fn pagemap() -> io::Result<&'static File> {
    static PAGEMAP: OnceLock<Result<File, io::ErrorKind>> = OnceLock::new();
    PAGEMAP
        .get_or_init(|| File::open("/proc/self/pagemap").map_err(|error| error.kind()))
        .as_ref()
        .map_err(|kind| (*kind).into())
}

/// The size of this host's pages.
pub(super) fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// The dirty ranges of `memory`, a private mapping over `image` from its first byte on: byte offsets,
/// ascending, apart, whole pages.
pub(super) fn dirty_ranges(way: Way, memory: &[u8], image: &Image) -> io::Result<Vec<Range<usize>>> {
    match way {
        Way::Scan => by_scan(memory),
        Way::Pagemap => by_pagemap(memory),
        Way::Compare => by_compare(memory, image),
    }
}

/// Adds a range that begins at or after the last one's end.
pub(super) fn push(ranges: &mut Vec<Range<usize>>, found: Range<usize>) {
    match ranges.last_mut() {
        Some(last) if last.end == found.start => last.end = found.end,
        _ => ranges.push(found),
    }
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    pages_max: u64,
    inverted: u64,
    mask_all: u64,
    mask_any: u64,
    mask_returned: u64,
}

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

struct Scan<'a>(ScanArgument, &'a mut [Region]);

// SAFETY: the argument is `struct pm_scan_arg` as the kernel defines it, with its own size in the first
// field; the kernel writes `walk_end` in it and at most `regions_length` entries to `regions`, which
// points at a slice that this value borrows for as long as it lives. Without flags the ioctl changes
// no page.
unsafe impl Ioctl for Scan<'_> {
    /// Regions filled, and the address up to which the walk came.
    type Output = (usize, usize);
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<ScanArgument>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.regions = self.1.as_mut_ptr() as u64;
        self.0.regions_length = self.1.len() as u64;
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, argument: *mut c_void) -> rustix::io::Result<Self::Output> {
        // SAFETY: `argument` is what `as_ptr` gave: our own argument, which the kernel has filled in.
        let walk_end = unsafe { (*argument.cast::<ScanArgument>()).walk_end };
        Ok((out as usize, walk_end as usize))
    }
}

/// One step of the walk from `start` to `end`: private pages only, which are those that are not the
/// file's own (a page of the image is, its private copy is not), present or swapped out.
fn scan(pagemap: &File, start: usize, end: usize, regions: &mut [Region]) -> rustix::io::Result<(usize, usize)> {
    let argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        flags: 0,
        start: start as u64,
        end: end as u64,
        walk_end: 0,
        regions: 0,
        regions_length: 0,
        pages_max: 0,
        inverted: PAGE_IS_FILE,
        mask_all: PAGE_IS_FILE,
        mask_any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        mask_returned: PAGE_IS_PRESENT,
    };
    // SAFETY: see `Scan`'s own reason; the file is this process's pagemap, which takes this ioctl.
    unsafe { rustix::ioctl::ioctl(pagemap, Scan(argument, regions)) }
}

fn by_scan(memory: &[u8]) -> io::Result<Vec<Range<usize>>> {
    let pagemap = pagemap()?;
    let base = memory.as_ptr() as usize;
    let end = base + memory.len();
    let mut found = Vec::new();
    let mut regions = [Region::default(); 256];
    let mut at = base;
    while at < end {
        let (count, walk_end) = scan(pagemap, at, end, &mut regions)?;
        for region in regions.iter().take(count) {
            push(&mut found, region.start as usize - base..region.end as usize - base);
        }
        if walk_end <= at {
            return Err(io::Error::other("PAGEMAP_SCAN makes no progress"));
        }
        at = walk_end;
    }
    Ok(found)
}

/// Bit 63 of a pagemap entry: in memory. Bit 62: swapped out. Bit 61: the file's own page.
const ENTRY_PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
const ENTRY_FILE: u64 = 1 << 61;

fn by_pagemap(memory: &[u8]) -> io::Result<Vec<Range<usize>>> {
    let pagemap = pagemap()?;
    let page = rustix::param::page_size();
    let first = memory.as_ptr() as usize / page;
    let pages = memory.len() / page;
    let mut found = Vec::new();
    let mut buffer = [0u8; 4096];
    let mut at = 0;
    while at < pages {
        let count = (pages - at).min(buffer.len() / 8);
        let Some(entries) = buffer.get_mut(..count * 8) else { break };
        pagemap.read_exact_at(entries, (first + at) as u64 * 8)?;
        for (number, entry) in entries.as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_ne_bytes(*entry);
            if entry & ENTRY_PRESENT_OR_SWAPPED != 0 && entry & ENTRY_FILE == 0 {
                push(&mut found, (at + number) * page..(at + number + 1) * page);
            }
        }
        at += count;
    }
    Ok(found)
}

fn by_compare(memory: &[u8], image: &Image) -> io::Result<Vec<Range<usize>>> {
    let page = rustix::param::page_size();
    let mut found = Vec::new();
    let mut buffer = vec![0u8; 1 << 20];
    for (number, chunk) in memory.chunks(buffer.len()).enumerate() {
        let offset = number * buffer.len();
        let Some(saved) = buffer.get_mut(..chunk.len()) else { break };
        image.read_at(offset, saved)?;
        for (number, (now, before)) in chunk.chunks(page).zip(saved.chunks(page)).enumerate() {
            if now != before {
                let start = offset + number * page;
                push(&mut found, start..start + now.len());
            }
        }
    }
    Ok(found)
}
