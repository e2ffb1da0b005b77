//! A ZooKeeper data directory, as its servers of 3.4 to 3.9 leave it: the newest snapshot that is whole, and the
//! transactions since.
//!
//! What holds:
//! - What was acknowledged and provably is not there is refused, with file and offset: a damaged record; a transaction
//!   between two others of an epoch, whose numbers have no gaps; one that the name of a snapshot tells of.
//!   Only a record that was being written when the server died, at the very end, is passed over, as ZooKeeper does.
//! - The end of an epoch cannot be seen in the numbers: the next leader counts from 1 again whatever came before, and
//!   leaders that wrote nothing leave no trace. Servers since 3.6 write a digest of the tree into each transaction: if
//!   the tree that was read has another one, or if the logs begin late and there is no snapshot, that is a [doubt].
//! - Nothing in the directory is changed.
//!
//! [doubt]: Dump::doubts
//!
//! * `fuzz`: what fuzzers do with it; [`jute`]: the encoding; [`snapshot`] and [`log`]: the two kinds of files; [`tree`]: what they add up to.

pub mod fuzz;
pub mod jute;
pub mod log;
pub mod snapshot;
pub mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
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
    #[error("the transactions from {} to {} are missing, and {} comes after them", Zxid(*.from), Zxid(*.to), file.display())]
    Gap {
        /// The first that is missing.
        from: i64,
        /// The last.
        to: i64,
        /// Where the log goes on, or begins; or the snapshot that had them.
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
    /// What speaks, without proof, for transactions that are missing; one sentence each.
    pub doubts: Vec<String>,
    /// Whether the tree is, by its digest, the one that the servers had after `zxid`.
    pub verified: bool,
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
    let mut damaged = BTreeMap::new();
    let mut begun = None;
    for snapshot in snapshots.iter().rev() {
        match snapshot::read(&snapshot.path, progress) {
            Ok(tree) => {
                begun = Some((snapshot, tree));
                break;
            }
            Err(DumpError::Damaged(damage)) => {
                damages.push(damage);
                damaged.insert(snapshot.zxid, snapshot.path.clone());
            }
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
    let logs = logs_since(logs, last);
    let late = logs.first().filter(|log| snapshot.is_none() && epoch(log.zxid) > 1);
    let late = late.map(|log| {
        format!(
            "there is no snapshot, and {} is of epoch {}: what came before it may be missing",
            log.path.display(),
            epoch(log.zxid)
        )
    });
    let mut replay =
        Replay { tree, last, transactions: 0, notes, doubts: Vec::from_iter(late), covered: damaged, digest: None };
    for log in &logs {
        replay.take(&log.path, progress)?;
    }
    replay.reaches(i64::MAX)?;
    let verified = replay.compare();
    let Replay { mut tree, last, transactions, notes, doubts, .. } = replay;
    let ephemerals = tree.drop_ephemerals();
    Ok(Dump { tree, zxid: last, snapshot, transactions, ephemerals, notes, doubts, verified })
}

struct Replay {
    tree: Tree,
    /// The newest transaction that the tree has.
    last: i64,
    transactions: u64,
    notes: Vec<String>,
    doubts: Vec<String>,
    /// The snapshots that could not be used, by the transaction up to which each reached.
    covered: BTreeMap<i64, PathBuf>,
    /// The digest of the tree after the newest transaction, if the server wrote one.
    digest: Option<u64>,
}

impl Replay {
    fn take(&mut self, path: &Path, progress: &dyn Fn(u64)) -> Result<(), DumpError> {
        let bytes = std::fs::read(path).map_err(|source| DumpError::Unreadable { path: path.to_owned(), source })?;
        self.take_bytes(path, &bytes)?;
        progress(bytes.len() as u64);
        Ok(())
    }

    /// Takes what a log of this path holds.
    fn take_bytes(&mut self, path: &Path, bytes: &[u8]) -> Result<(), DumpError> {
        let mut records = log::Records::new(path, bytes)?;
        while let Some(transaction) = records.next()? {
            let zxid = transaction.zxid;
            if zxid <= self.last {
                continue;
            }
            if !follows(self.last, zxid) {
                let (from, to) = (self.last.saturating_add(1), zxid.saturating_sub(1));
                return Err(DumpError::Gap { from, to, file: path.to_owned() });
            }
            self.reaches(zxid)?;
            self.digest = log::apply(&transaction, &mut self.tree)
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
        Ok(())
    }

    /// Checks that no snapshot tells of a transaction after the newest one and before `next`.
    fn reaches(&self, next: i64) -> Result<(), DumpError> {
        let behind = (Bound::Excluded(self.last), Bound::Excluded(next));
        // A leader's first snapshot may be called after the beginning of its epoch, which is no transaction.
        let told = self.covered.range(behind).find(|(zxid, _)| counter(**zxid) > 0);
        told.map_or(Ok(()), |(zxid, path)| {
            Err(DumpError::Gap { from: self.last.saturating_add(1), to: *zxid, file: path.clone() })
        })
    }

    /// Whether the tree is by its digest what the servers had; if it is not, that is a doubt.
    fn compare(&mut self) -> bool {
        // A server that has just begun has not counted the nodes that it began with.
        let Some(digest) = self.digest.filter(|digest| *digest != 0) else { return false };
        let is = self.tree.digest();
        if is != digest {
            self.doubts.push(format!(
                "after {} the servers had another tree: its digest was {digest:x}, and what was read has {is:x}. \
                 Transactions may be missing at the end of an epoch",
                Zxid(self.last)
            ));
        }
        is == digest
    }
}

/// Which leader a transaction is of.
fn epoch(zxid: i64) -> i64 {
    zxid >> 32
}

/// Which of its leader's transactions it is, from 1.
fn counter(zxid: i64) -> i64 {
    zxid & 0xffff_ffff
}

/// Whether `next` can be the transaction after `last`: the next number of the same epoch, or the first of a later one.
fn follows(last: i64, next: i64) -> bool {
    next == last.saturating_add(1) || (epoch(next) > epoch(last) && counter(next) == 1)
}

#[cfg(test)]
mod tests;
