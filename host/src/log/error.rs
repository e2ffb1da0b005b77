//! What can go wrong with the node's log, told so that an operator can act on it.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::types::GroupId;

/// An error of the node's log. Cloned to everyone who waits for the same write.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A sync failed. What it should have made durable may be lost although it still reads back, so
    /// nothing may be built on it and the process has to end.
    #[error(
        "sync of {} failed: {source}. The kernel may have dropped what was written, so this process must end; \
         check the device (dmesg, smartctl) before starting it again", path.display()
    )]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// There is no room for the log. Where it is the next segment's, the log waits for it; nothing is acknowledged meanwhile.
    /// Elsewhere it ends the log, and what was written of the batch is cut at the next start.
    #[error(
        "the disk is full: {} needs {needed} bytes and the file system has {free}. \
         Free space or enlarge it; nothing acknowledged is lost", path.display()
    )]
    DiskFull {
        /// The file that was to be written.
        path: PathBuf,
        /// Bytes it needs.
        needed: u64,
        /// Bytes the file system has left.
        free: u64,
    },
    /// Bytes that were synced before are not what was written.
    #[error(
        "{} is damaged at byte offset {offset}: {what}. Entries that were acknowledged may be lost, so the node does not \
         start on it", path.display()
    )]
    Corrupt {
        /// The segment file.
        path: PathBuf,
        /// Where in it, bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A segment that another one speaks of is not there.
    #[error(
        "{} is missing, although the log needs it. Entries that were acknowledged may be lost, so the node does not start \
         without it", path.display()
    )]
    Missing {
        /// The file that should exist.
        path: PathBuf,
    },
    /// A directory whose log was in use has no segment at all.
    #[error(
        "{} holds no log, although this node has written one there. Entries that were acknowledged may be lost, so the node does not \
         begin a new one", path.display()
    )]
    Lost {
        /// The log's directory.
        path: PathBuf,
    },
    /// Entries of a group are missing between others, although no segment is.
    #[error(
        "{}: group {group} has no entry {expected}, but has entry {found}, although no file is missing. Please report this",
        path.display()
    )]
    Hole {
        /// The log's directory.
        path: PathBuf,
        /// The group.
        group: GroupId,
        /// The index that is missing.
        expected: u64,
        /// The next index that is there.
        found: u64,
    },
    /// A file of another version of this program.
    #[error("{} has format version {found}; this program reads version {known}. Use the program that wrote it", path.display())]
    Version {
        /// The segment file.
        path: PathBuf,
        /// The version in it.
        found: u32,
        /// The version known here.
        known: u32,
    },
    /// An entry that does not follow the one before it.
    #[error("group {group}: entry {found} cannot follow, the next index is {expected}")]
    Gap {
        /// The group.
        group: GroupId,
        /// The index that must come.
        expected: u64,
        /// The index that came.
        found: u64,
    },
    /// An entry too large to be written.
    #[error("group {group}: entry {index} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The group.
        group: GroupId,
        /// The entry.
        index: u64,
        /// Its encoded size.
        bytes: usize,
        /// The largest size, bytes.
        limit: usize,
    },
    /// A value has no bytes, or the bytes are no such value.
    #[error("group {group}: {what}")]
    Codec {
        /// The group.
        group: GroupId,
        /// Which value, and what the codec said.
        what: String,
    },
    /// The options contradict each other or the directory.
    #[error("log options: {0}")]
    Options(String),
    /// What writes the log panicked: a bug.
    #[error("the writer of the log panicked; nothing more is written, restart the node and report this")]
    Panicked,
    /// The log was closed, or what drives it is gone.
    #[error("the log is closed")]
    Closed,
    /// The log stopped at an earlier error; that one is told.
    #[error("the log has stopped: {0}")]
    Stopped(Arc<LogError>),
}

impl LogError {
    /// Whether files are not what was written to them, as against a machine that cannot read or write now, or a program that is not
    /// the right one.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Missing { .. } | Self::Lost { .. } | Self::Hole { .. })
    }

    /// What to do about it, one sentence, where no other node is to replace the log.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::DiskFull { .. } => {
                "docs/operations/snapshots.md says what may be removed; start it again when there is room"
            }
            Self::Version { .. } => "start the program that wrote it",
            Self::Io { .. } => {
                "see that the directory can be read and written, and its device is well, and start again"
            }
            error if error.is_damage() => {
                "put the files back from a copy, or let the other nodes replace them: --repair-from-peers; \
                 docs/operations/disaster.md says more"
            }
            _ => "see the message; docs/operations/disaster.md says what can be done",
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    pub(super) fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), offset, what: what.into() }
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::DiskFull { .. } => io::ErrorKind::StorageFull,
            LogError::Corrupt { .. } | LogError::Hole { .. } | LogError::Codec { .. } | LogError::Version { .. } => {
                io::ErrorKind::InvalidData
            }
            LogError::Missing { .. } | LogError::Lost { .. } => io::ErrorKind::NotFound,
            LogError::Gap { .. } | LogError::TooLarge { .. } | LogError::Options(_) => io::ErrorKind::InvalidInput,
            LogError::Io { source, .. } => source.kind(),
            LogError::Sync { .. } | LogError::Panicked | LogError::Closed | LogError::Stopped(_) => {
                io::ErrorKind::Other
            }
        };
        io::Error::new(kind, error)
    }
}
