//! A ZooKeeper data directory, as its servers of 3.4 to 3.9 leave it: the newest snapshot that is whole, and the
//! transactions since.
//!
//! What holds:
//! - What may have been acknowledged and is not there is refused, with file and offset: a damaged record, a missing log.
//!   Only a record that was being written when the server died, at the very end, is passed over, as ZooKeeper does.
//! - Nothing in the directory is changed.
//!
//! * [`jute`]: the encoding; [`snapshot`] and [`log`]: the two kinds of files; [`tree`]: what they add up to.

pub mod jute;
pub mod log;
pub mod snapshot;
pub mod tree;

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use thiserror::Error;

use self::tree::Tree;

/// Why a directory is not taken.
#[derive(Debug, Error)]
pub enum DumpError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is neither snapshot nor log.
    #[error("{} holds no data of ZooKeeper: no snapshot.* and no log.*, also not in version-2", .0.display())]
    Nothing(PathBuf),
    /// A file is damaged where it may have been acknowledged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// No snapshot can be used.
    #[error("no snapshot is whole: {}", list(.0))]
    NoSnapshot(Vec<Damage>),
    /// Transactions are missing.
    #[error("the transactions from {} to {} are missing: {} begins after them", Zxid(*.from), Zxid(*.to), file.display())]
    Gap {
        /// The first that is missing.
        from: i64,
        /// The last.
        to: i64,
        /// Where the log goes on, or begins.
        file: PathBuf,
    },
}

impl DumpError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "check the path and the permissions; the directory is only read",
            Self::Nothing(_) => "name the server's dataDir, and with --log-dir its dataLogDir if it has one",
            Self::Damaged(_) | Self::NoSnapshot(_) => "take the directory of another member of the ensemble",
            Self::Gap { .. } => {
                "name the dataLogDir with --log-dir if the logs are there; else take the directory of another member"
            }
        }
    }
}

/// What is wrong with a file, and where.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{} is damaged at offset {offset}: {what}", file.display())]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where, in bytes from its beginning; of a compressed file, of what it holds.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

fn list(damages: &[Damage]) -> String {
    damages.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A transaction's number, as ZooKeeper prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zxid(pub i64);

impl fmt::Display for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:x}", self.0)
    }
}

/// What was read.
#[derive(Debug)]
pub struct Dump {
    /// The nodes; ephemerals are gone.
    pub tree: Tree,
    /// The newest transaction that is in it.
    pub zxid: i64,
    /// The snapshot that it began with.
    pub snapshot: Option<PathBuf>,
    /// How many transactions came on top.
    pub transactions: u64,
    /// How many nodes went with their sessions.
    pub ephemerals: u64,
    /// What the operator should know, one sentence each.
    pub notes: Vec<String>,
}

/// A file by the transaction in its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    zxid: i64,
    path: PathBuf,
    bytes: u64,
}

/// The files of a directory that begin with `prefix`, or of its `version-2`, oldest first.
fn files(directory: &Path, prefix: &str) -> Result<Vec<Named>, DumpError> {
    let inner = directory.join("version-2");
    let directory = if inner.is_dir() { inner.as_path() } else { directory };
    let unreadable = |path: &Path, source| DumpError::Unreadable { path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|source| unreadable(directory, source))? {
        let entry = entry.map_err(|source| unreadable(directory, source))?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let number = rest.strip_suffix(".gz").or_else(|| rest.strip_suffix(".snappy")).unwrap_or(rest);
        let Ok(zxid) = u64::from_str_radix(number, 16) else { continue };
        let bytes = entry.metadata().map_err(|source| unreadable(&entry.path(), source))?.len();
        found.push(Named { zxid: zxid as i64, path: entry.path(), bytes });
    }
    found.sort();
    Ok(found)
}

/// How many bytes the files of a directory have that will be read at most: for a progress bar.
pub fn size(data_dir: &Path, log_dir: &Path) -> Result<u64, DumpError> {
    let snapshots = files(data_dir, "snapshot.")?;
    let from = snapshots.last().map_or(0, |snapshot| snapshot.zxid);
    let logs = logs_since(files(log_dir, "log.")?, from);
    Ok(snapshots.last().map_or(0, |snapshot| snapshot.bytes) + logs.iter().map(|log| log.bytes).sum::<u64>())
}

/// The logs that hold the transactions after `zxid`.
fn logs_since(logs: Vec<Named>, zxid: i64) -> Vec<Named> {
    let first = logs.iter().rposition(|log| log.zxid <= zxid.saturating_add(1)).unwrap_or(0);
    logs.into_iter().skip(first).collect()
}

/// Reads the directory. `progress` is told how many bytes of the files were read since it was last told.
pub fn read(data_dir: &Path, log_dir: &Path, progress: &dyn Fn(u64)) -> Result<Dump, DumpError> {
    let snapshots = files(data_dir, "snapshot.")?;
    let logs = files(log_dir, "log.")?;
    if snapshots.is_empty() && logs.is_empty() {
        return Err(DumpError::Nothing(data_dir.to_owned()));
    }
    let mut notes = Vec::new();
    let mut damages = Vec::new();
    let mut begun = None;
    for snapshot in snapshots.iter().rev() {
        match snapshot::read(&snapshot.path, progress) {
            Ok(tree) => {
                begun = Some((snapshot, tree));
                break;
            }
            Err(DumpError::Damaged(damage)) => damages.push(damage),
            Err(error) => return Err(error),
        }
    }
    if begun.is_none() && !damages.is_empty() {
        return Err(DumpError::NoSnapshot(damages));
    }
    if let Some((used, _)) = &begun {
        let older = damages.iter().map(|damage| format!("{damage}; the older {} is used", used.path.display()));
        notes.extend(older);
    }
    let snapshot = begun.as_ref().map(|(snapshot, _)| snapshot.path.clone());
    let (last, tree) = begun.map_or((0, Tree::new()), |(snapshot, tree)| (snapshot.zxid, tree));
    let mut replay = Replay { tree, last, transactions: 0, notes };
    for log in logs_since(logs, last) {
        replay.take(&log.path, progress)?;
    }
    let Replay { mut tree, last, transactions, notes } = replay;
    let ephemerals = tree.drop_ephemerals();
    Ok(Dump { tree, zxid: last, snapshot, transactions, ephemerals, notes })
}

struct Replay {
    tree: Tree,
    /// The newest transaction that the tree has.
    last: i64,
    transactions: u64,
    notes: Vec<String>,
}

impl Replay {
    fn take(&mut self, path: &Path, progress: &dyn Fn(u64)) -> Result<(), DumpError> {
        let bytes = std::fs::read(path).map_err(|source| DumpError::Unreadable { path: path.to_owned(), source })?;
        let mut records = log::Records::new(path, &bytes)?;
        while let Some(transaction) = records.next()? {
            let zxid = transaction.zxid;
            if zxid <= self.last {
                continue;
            }
            if !follows(self.last, zxid) {
                let (from, to) = (self.last.saturating_add(1), zxid.saturating_sub(1));
                return Err(DumpError::Gap { from, to, file: path.to_owned() });
            }
            log::apply(&transaction, &mut self.tree)
                .map_err(|_| records.damage("a transaction that cannot be read, although its checksum is right"))?;
            self.last = zxid;
            self.transactions += 1;
        }
        if let Some(offset) = records.torn() {
            self.notes.push(format!(
                "{}: the record at offset {offset} was being written when the server ended, and is left out",
                path.display()
            ));
        }
        progress(bytes.len() as u64);
        Ok(())
    }
}

/// Whether `next` is the transaction after `last`: the next number of the same epoch, or the first of a later one.
fn follows(last: i64, next: i64) -> bool {
    let epoch = |zxid: i64| zxid >> 32;
    next == last.saturating_add(1) || (epoch(next) > epoch(last) && next & 0xffff_ffff == 1)
}

#[cfg(test)]
mod tests;
