//! To whom a data directory belongs: format, cluster, node. Written once, checked at every start.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use super::small_files;
use crate::disk::Disk;
use crate::types::NodeId;

/// The format of everything in a data directory.
pub const FORMAT: u32 = 1;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The directory's format.
    pub format: u32,
    /// The node.
    pub node: NodeId,
    /// The cluster, 32 hexadecimal digits.
    pub cluster: String,
    /// Whether the node came to a cluster that was there: then it never begins one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joined: bool,
    /// Of a node that follows its configuration file: with whom it began its cluster, whatever the file says since.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub founders: BTreeMap<NodeId, String>,
    /// Whether a recovery has begun and not finished: then no node starts here. From this mark on the directory is the new
    /// cluster's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovering: bool,
    /// Whether the next start finishes that: it was asked of a running node, and nobody waits at a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumes: bool,
    /// Whether the node began its cluster by a recovery: then the nodes that it once joined through need not be of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovered: bool,
    /// Whether the node has had a log here, which then does not begin anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub logged: bool,
}

const NAME: &str = "identity.json";

/// The directory is not this node's.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It was written by another version.
    #[error("data directory {} has format {found}, this program knows {FORMAT}", path.display())]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is another node's.
    #[error("data directory {} belongs to node {found}, not to node {node}", path.display())]
    Node {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asks.
        node: NodeId,
    },
    /// It is of another cluster.
    #[error(
        "data directory {} belongs to cluster {found}, but the flags (--initial-cluster, --cluster-name, --join) lead to cluster {told}",
        path.display()
    )]
    Cluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: String,
        /// The cluster the flags describe.
        told: String,
    },
    /// Its node was removed from its cluster.
    #[error("node {node}, to which data directory {} belongs, was removed from its cluster", path.display())]
    Removed {
        /// The directory.
        path: PathBuf,
        /// The node.
        node: NodeId,
    },
    /// It is half of one cluster and half of another.
    #[error("data directory {} was being made a new cluster by `statehouse recover`, which did not finish", .0.display())]
    Recovering(PathBuf),
    /// The list does not have it, and its directory is of no cluster.
    #[error("the file {} lists the nodes {listed}, but not this one, node {node}", file.display())]
    NotListed {
        /// The file.
        file: PathBuf,
        /// The listed nodes.
        listed: String,
        /// The node.
        node: NodeId,
    },
    /// What says whose it is cannot be read.
    #[error("data directory {}: {NAME} is damaged: {what}", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong with the file.
        what: String,
    },
    /// Something of a node is there, but nothing says whose.
    #[error("data directory {} has {what}/ but no {NAME}", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        what: &'static str,
    },
}

impl IdentityError {
    /// What to do about it, one sentence.
    pub fn remedy(&self) -> String {
        match self {
            Self::Format { .. } => "use the program that wrote it, or give another --data-dir".to_string(),
            Self::Node { found, .. } => format!("start with --node-id {found}, or give another --data-dir"),
            Self::Cluster { .. } => {
                "start with the ones it was created with, or give another --data-dir; where the list was edited for \
                                     the cluster to follow it, start with --members-from-config"
                    .to_string()
            }
            Self::Removed { path, .. } => {
                format!(
                    "to bring the node back, empty {} and start it with --join (or list it again where files are followed)",
                    path.display()
                )
            }
            Self::Recovering(path) => format!(
                "run `statehouse recover --unsafe-force-new-cluster --data-dir {}` again: it goes on where it stopped",
                path.display()
            ),
            Self::NotListed { .. } => "add it to the files of all nodes, or correct --node-id".to_string(),
            Self::Damaged { path, .. } => start_empty(path),
            Self::Missing { .. } => format!("restore {NAME} from a copy, or give another --data-dir"),
        }
    }
}

/// Whether the directory is a node's own.
pub fn is_of_a_node(data_dir: &Path) -> bool {
    data_dir.join(NAME).exists()
}

/// What to do about a damaged small file: its node is one of several, or there is a copy.
pub fn start_empty(path: &Path) -> String {
    format!(
        "restore the file from a copy; without one, and while all other nodes are up, move {} away and start the node with an empty \
         directory (docs/operations.md)",
        path.display()
    )
}

/// Reads the identity; `None` when the directory is new.
pub fn read(disk: &dyn Disk, data_dir: &Path) -> io::Result<Option<Identity>> {
    small_files::read(disk, data_dir, NAME)
}

/// The directory's cluster; refuses a directory of another node, cluster or format. `told` is `None` when the
/// node was not told its cluster.
pub fn check(
    identity: &Identity,
    data_dir: &Path,
    node: NodeId,
    told: Option<[u8; 16]>,
) -> Result<[u8; 16], IdentityError> {
    let path = data_dir.to_owned();
    if identity.format != FORMAT {
        return Err(IdentityError::Format { path, found: identity.format });
    }
    if identity.node != node {
        return Err(IdentityError::Node { path, found: identity.node, node });
    }
    if identity.recovering {
        return Err(IdentityError::Recovering(path));
    }
    let mut cluster = [0; 16];
    if let Err(error) = hex::decode_to_slice(&identity.cluster, &mut cluster) {
        return Err(IdentityError::Damaged { path, what: format!("its `cluster`: {error}") });
    }
    match told {
        Some(told) if told != cluster => {
            Err(IdentityError::Cluster { path, found: identity.cluster.clone(), told: hex::encode(told) })
        }
        _ => Ok(cluster),
    }
}

/// From now on a directory without a log is one that has lost it.
pub fn note_log(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    match read(disk, data_dir)? {
        Some(identity) if !identity.logged => write(disk, data_dir, &Identity { logged: true, ..identity }),
        _ => Ok(()),
    }
}

/// Writes the identity of a new directory, durably.
pub fn write(disk: &dyn Disk, data_dir: &Path, identity: &Identity) -> io::Result<()> {
    small_files::write(disk, data_dir, NAME, identity)
}
