//! To whom a data directory belongs: format, cluster, node. Written once, checked at every start.

use std::io;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::disk::Disk;
use crate::types::NodeId;

/// The format of everything in a data directory.
pub const FORMAT: u32 = 1;

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The directory's format.
    pub format: u32,
    /// The node.
    pub node: NodeId,
    /// The cluster, 32 hexadecimal digits.
    pub cluster: String,
}

const NAME: &str = "identity.json";

fn refuse(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// Reads the identity; `None` when the directory is new.
pub fn read(disk: &dyn Disk, data_dir: &Path) -> io::Result<Option<Identity>> {
    let path = data_dir.join(NAME);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let file = disk.open(&path)?;
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    file.read_exact_at(0, &mut bytes)?;
    let identity: Identity = serde_json::from_slice(&bytes).map_err(|error| {
        refuse(format!("{} is damaged ({error}): restore it from a copy, or take another --data-dir", path.display()))
    })?;
    Ok(Some(identity))
}

/// Refuses a directory of another node, cluster or format; `cluster` is `None` when the node was not told one.
pub fn check(identity: &Identity, data_dir: &Path, node: NodeId, cluster: Option<&str>) -> io::Result<()> {
    let directory = data_dir.display();
    if identity.format != FORMAT {
        return Err(refuse(format!(
            "data directory {directory} has format {}, this program knows {FORMAT}: use the program that wrote it",
            identity.format
        )));
    }
    if identity.node != node {
        return Err(refuse(format!(
            "data directory {directory} belongs to node {}, not to node {node}: start with --node-id {} or with another --data-dir",
            identity.node, identity.node
        )));
    }
    if let Some(cluster) = cluster.filter(|cluster| *cluster != identity.cluster) {
        return Err(refuse(format!(
            "data directory {directory} belongs to cluster {}, but --initial-cluster and --cluster-name describe cluster {cluster}: \
             start with the ones it was created with, or with another --data-dir",
            identity.cluster
        )));
    }
    Ok(())
}

/// Writes the identity of a new directory, durably.
pub fn write(disk: &dyn Disk, data_dir: &Path, identity: &Identity) -> io::Result<()> {
    let path = data_dir.join(NAME);
    let part = data_dir.join("identity.json.part");
    if disk.exists(&part)? {
        disk.remove(&part)?;
    }
    let file = disk.create(&part)?;
    file.write_all_at(0, serde_json::to_string(identity)?.as_bytes())?;
    file.sync_data()?;
    disk.rename(&part, &path)?;
    disk.sync_dir(data_dir)
}
