//! A node's data directory, looked at from outside while no node runs on it: what its log and its snapshots say, and by which
//! names.
//!
//! Invariants:
//! - Looking changes nothing: it is done through [`ReadOnlyDisk`].
//! - What is damaged is told and passed over; it never hides what can still be read.

mod catalog;
pub mod recover;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Disk;
use crate::disk::read_only::ReadOnlyDisk;
use crate::log;
use crate::log::EntryReader;
use crate::log::Inspection;
use crate::log::LogError;
use crate::node::identity;
use crate::node::identity::Identity;
use crate::node::repair;
use crate::snapshot;
use crate::snapshot::Survey;
use crate::types::GroupId;

pub use catalog::OfflineCatalog;
pub use recover::members_of;

/// A data directory.
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    disk: Arc<dyn Disk>,
    /// Whose it is; `None` when nothing says so.
    pub identity: Option<Identity>,
    /// The process that uses it, as far as it is known, when one does: what is read may then be of different moments.
    pub holder: Option<String>,
}

/// How often the files of a running node are read again when they seem damaged: a segment may have been given up meanwhile.
const TRIES_WHILE_HELD: usize = 5;

/// Why this is no data directory.
#[derive(Debug, thiserror::Error)]
#[error("{} is no data directory of a node: {why}", path.display())]
pub struct NoDirectory {
    /// What was named.
    pub path: PathBuf,
    why: String,
}

impl Directory {
    /// Opens it to be looked at. That its identity is damaged is told and no reason to stop.
    pub fn open(path: &Path) -> Result<(Self, Option<io::Error>), NoDirectory> {
        Self::on(Arc::new(ReadOnlyDisk), path)
    }

    /// Opens it for who holds its lock: no other process uses it.
    pub fn open_held(_held: &File, path: &Path) -> Result<(Self, Option<io::Error>), NoDirectory> {
        let (directory, damaged) = Self::open(path)?;
        Ok((Self { holder: None, ..directory }, damaged))
    }

    /// The same on any disk.
    pub fn on(disk: Arc<dyn Disk>, path: &Path) -> Result<(Self, Option<io::Error>), NoDirectory> {
        let refused = |why: String| NoDirectory { path: path.to_owned(), why };
        let names = disk.list(path).map_err(|error| refused(error.to_string()))?;
        if !names.iter().any(|name| name == "log" || name == "groups" || name == "identity.json") {
            return Err(refused("it has neither log, groups nor identity.json".to_owned()));
        }
        let (identity, damaged) = match identity::read(&*disk, path) {
            Ok(identity) => (identity, None),
            Err(error) => (None, Some(error)),
        };
        let holder = holder(path);
        Ok((Self { path: path.to_owned(), disk, identity, holder }, damaged))
    }

    /// Where the log is.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    /// What the log's files say.
    pub fn inspect_log(&self) -> Result<Inspection, LogError> {
        let lost = repair::lost_log(&*self.disk, &self.path, self.identity.as_ref());
        if let Some(lost) = lost.map_err(|error| LogError::io("look for", &self.log_dir(), error))? {
            return Ok(Inspection { damage: vec![lost], ..Inspection::default() });
        }
        for _ in 1..TRIES_WHILE_HELD {
            let found = log::inspect(&*self.disk, &self.log_dir())?;
            if self.holder.is_none() || found.damage.is_empty() {
                return Ok(found);
            }
        }
        log::inspect(&*self.disk, &self.log_dir())
    }

    /// Reads the log's entries.
    pub fn entries(&self) -> EntryReader {
        EntryReader::new(self.disk.clone(), &self.log_dir())
    }

    /// The disk it is read through.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The groups that have a directory for snapshots.
    pub fn snapshot_groups(&self) -> io::Result<Vec<GroupId>> {
        let groups = self.path.join("groups");
        if !self.disk.exists(&groups)? {
            return Ok(Vec::new());
        }
        let mut ids: Vec<GroupId> =
            self.disk.list(&groups)?.iter().filter_map(|name| GroupId::from_str_radix(name, 16).ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The snapshot files of a group, newest first.
    pub fn snapshot_files(&self, group: GroupId) -> io::Result<Vec<PathBuf>> {
        let directory = self.path.join("groups").join(format!("{group:x}"));
        let mut names = self.disk.list(&directory)?;
        names.retain(|name| name.ends_with(".snap"));
        names.sort();
        names.reverse();
        Ok(names.into_iter().map(|name| directory.join(name)).collect())
    }

    /// Reads a snapshot file to its end.
    pub fn survey(&self, path: &Path) -> Survey {
        snapshot::survey(&*self.disk, path)
    }
}

/// The process that holds the directory. Asking takes nothing away for longer than the asking.
fn holder(path: &Path) -> Option<String> {
    let path = path.join("LOCK");
    let file = File::open(&path).ok()?;
    match file.try_lock_shared() {
        Err(std::fs::TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            Some(holder.trim().to_owned())
        }
        _ => None,
    }
}
