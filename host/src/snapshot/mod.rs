//! Snapshot files of one group: written aside, synced, renamed; verified before they are believed.
//!
//! Invariants:
//! - A file named `*.snap` was synced whole before it got its name; the directory is synced before anyone
//!   hears of it. So damage inside one is damage, never a crash's trace.
//! - The newest file is never removed; as many older ones as the store keeps stay as a fallback.
//! - The bytes depend on the replicated state alone: replicas write equal files at equal indexes.
//!
//! The format is drawn in `docs/formats.md`.

mod base;
mod format;
pub mod fuzz;
mod receive;
mod store;
mod survey;
#[cfg(test)]
mod tests;
mod verifier;

pub use base::BaseId;
pub use base::Bases;
pub use base::begin;
pub use format::HEAD_BYTES_MAX;
pub use format::Head;
pub use format::SnapshotReader;
pub use format::decode_head;
pub use receive::Received;
pub use receive::Receiver;
pub use receive::part_checksum;
pub use store::HeldSnapshot;
pub use store::SnapshotFile;
pub use store::SnapshotStore;
pub use store::SnapshotWriter;
pub use survey::Survey;
pub use survey::read_payload;
pub use survey::survey;

use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::module::Limits;

/// What a group was made with. A snapshot carries it, so that the file alone is enough to make the group anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The group's name.
    pub group: String,
    /// The module's name.
    pub module: String,
    /// The params of `init`.
    pub params: serde_json::Value,
    /// What its module may use: a part of the state's history, since they decide outcomes.
    pub limits: Limits,
}

/// A snapshot could not be written, read or believed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The disk failed.
    #[error("snapshot {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The disk's words.
        source: std::io::Error,
    },
    /// What was written may not be on disk: whoever sees this ends the process.
    #[error("snapshot {} could not be synced: {source}", path.display())]
    Sync {
        /// The file or directory.
        path: PathBuf,
        /// The disk's words.
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("snapshot {} is damaged at byte {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// What another node sends came as that read it, and is no snapshot.
    #[error("the snapshot that is sent is damaged at byte {offset}: {reason}")]
    SentDamaged {
        /// Where.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
}

impl SnapshotError {
    /// What a writer's error says: a failed sync went through it as it is.
    fn of_writing(path: &Path, source: io::Error) -> Self {
        source.downcast::<Self>().unwrap_or_else(|source| Self::Io { path: path.to_owned(), source })
    }
}

impl From<SnapshotError> for std::io::Error {
    fn from(error: SnapshotError) -> Self {
        let kind = match &error {
            SnapshotError::Io { source, .. } | SnapshotError::Sync { source, .. } => source.kind(),
            SnapshotError::Damaged { .. } | SnapshotError::SentDamaged { .. } => std::io::ErrorKind::InvalidData,
        };
        std::io::Error::new(kind, error)
    }
}
