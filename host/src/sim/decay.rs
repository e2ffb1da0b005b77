//! What disks do to files at rest, and nobody notices: a bit flips, a write never arrives, a write arrives in another place, a
//! sector cannot be read any more.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Disk;
use crate::disk::sim::SECTOR_BYTES;
use crate::disk::sim::SimDisk;
use crate::log::LogOptions;
use crate::log::NodeLog;
use crate::log::RecoveryReport;

use super::random::SimRandom;

/// Damages the log, or a snapshot, of a node that is stopped. What was done and where; `None` when there is nothing to damage, or
/// when the damage would be taken for the trace of a crash: what becomes of the last batch alone cannot be told from one, and is no
/// damage that a log could be blamed for.
pub(super) fn decay(disk: &SimDisk, data_dir: &Path, options: &LogOptions, random: &mut SimRandom) -> Option<String> {
    let log_dir = data_dir.join("log");
    let in_log = random.chance(700);
    let files = if in_log { files_in(disk, &log_dir, ".seg") } else { snapshots(disk, data_dir) };
    let path = random.pick(&files)?.clone();
    let bytes = disk.read(&path).ok()?;
    let written: Vec<usize> = (0..bytes.len() / SECTOR)
        .filter(|sector| bytes.chunks(SECTOR).nth(*sector).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0)))
        .collect();
    let sector = *random.pick(&written)?;
    let other = *random.pick(&written)?;
    let at = (sector * SECTOR) as u64;
    let damage = match random.between(0, 3) {
        0 => Damage::Flipped(random.between(0, SECTOR_BYTES - 1), random.between(0, 7) as u8),
        1 => Damage::Overwritten("a write never arrived", vec![0; SECTOR]),
        2 => Damage::Overwritten("another write arrived here", bytes.chunks(SECTOR).nth(other)?.to_vec()),
        _ => Damage::Unreadable,
    };
    if in_log {
        let tried = disk.fork();
        let before = open(&tried, &log_dir, options)?;
        let tried = disk.fork();
        damage.strike(&tried, &path, at)?;
        if open(&tried, &log_dir, options).is_some_and(|after| after != before) {
            return None;
        }
    }
    damage.strike(disk, &path, at)?;
    Some(format!("{damage:?} at {at} of {}", path.display()))
}

const SECTOR: usize = SECTOR_BYTES as usize;

enum Damage {
    /// This bit of that byte.
    Flipped(u64, u8),
    Overwritten(&'static str, Vec<u8>),
    Unreadable,
}

impl std::fmt::Debug for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flipped(byte, bit) => write!(f, "bit {bit} of byte {byte} flipped"),
            Self::Overwritten(what, _) => f.write_str(what),
            Self::Unreadable => f.write_str("a sector cannot be read"),
        }
    }
}

impl Damage {
    fn strike(&self, disk: &SimDisk, path: &Path, sector: u64) -> Option<()> {
        match self {
            Self::Flipped(byte, bit) => disk.flip_bit(path, sector + byte, *bit),
            Self::Overwritten(_, bytes) => disk.overwrite(path, sector, bytes),
            Self::Unreadable => disk.fail_reads(path, sector, SECTOR_BYTES),
        }
        .ok()
    }
}

/// What a start would find; `None` when it finds damage.
fn open(disk: &SimDisk, log_dir: &Path, options: &LogOptions) -> Option<RecoveryReport> {
    NodeLog::open(Arc::new(disk.clone()), log_dir, options.clone(), Arc::new(|_| {})).ok().map(|(_, report)| report)
}

fn files_in(disk: &SimDisk, directory: &Path, ending: &str) -> Vec<PathBuf> {
    let names = disk.list(directory).unwrap_or_default();
    names.into_iter().filter(|name| name.ends_with(ending)).map(|name| directory.join(name)).collect()
}

fn snapshots(disk: &SimDisk, data_dir: &Path) -> Vec<PathBuf> {
    let groups = data_dir.join("groups");
    let names = disk.list(&groups).unwrap_or_default();
    names.into_iter().flat_map(|group| files_in(disk, &groups.join(group), ".snap")).collect()
}
