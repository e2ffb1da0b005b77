//! How a cluster stands: what every node reports of itself, put together by whichever node is asked.
//!
//! [`NodeReport`] is what nodes tell each other; [`ClusterStatus`] and [`Diagnosis`] are the documents of `/v1/status` and
//! `/v1/doctor`. Nothing in the node keeps them, so they are their own contract and are not spelled out a second time.
//!
//! Invariant: a node or a replica that should be there is in the document, whether it answers or not.

mod assemble;
mod balance;
mod doctor;

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::membership::Roster;
use crate::types::GroupId;
use crate::types::NodeId;

pub use assemble::Known;
pub use assemble::KnownNode;
pub use balance::Moved;
pub use balance::moves;
pub use doctor::Diagnosis;
pub use doctor::Finding;
pub use doctor::diagnose;

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// The program's version.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Why it is not ready, one sentence each.
    pub reasons: Vec<String>,
    /// How much it is to lead; 0: not where another one can.
    pub priority: u8,
    /// Its disk.
    pub disk: DiskStatus,
    /// Its replicas.
    pub groups: Vec<ReplicaReport>,
}

/// What a node says of one of its replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The group's id.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// Who belongs to the group, as this replica knows it.
    pub roster: Roster,
    /// `leader`, `follower`, `candidate`, `learner`, `stopped: why`.
    pub state: String,
    /// Its term.
    pub term: u64,
    /// Its commit index.
    pub commit: u64,
    /// Its applied index.
    pub applied: u64,
    /// Purged up to here.
    pub purged: u64,
    /// What its newest snapshot covers; `None` when it has none.
    pub snapshot: Option<SnapshotStatus>,
}

/// A replica's newest snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotStatus {
    /// It covers the log up to here.
    pub index: u64,
    /// The file's size, bytes.
    pub bytes: u64,
    /// When it was written, Unix milliseconds; where the disk can tell.
    pub written_ms: Option<u64>,
}

/// A node's disk, and how the log fares on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskStatus {
    /// Bytes that may still be written to the data directory's file system.
    pub free_bytes: u64,
    /// Bytes of that file system.
    pub total_bytes: u64,
    /// Below so many free bytes the node takes no commands (`--disk-reserve`).
    pub reserve_bytes: u64,
    /// Bytes of the log's files.
    pub log_bytes: u64,
    /// Of these, bytes of entries that are still needed.
    pub log_live_bytes: u64,
    /// How many of the newest syncs were measured.
    pub syncs_measured: u64,
    /// Half of these syncs took at most so long, microseconds.
    pub sync_p50_micros: u64,
    /// 99 of 100 took at most so long, microseconds.
    pub sync_p99_micros: u64,
}

impl DiskStatus {
    /// Whether the node takes no commands for want of space.
    pub fn is_short(&self) -> bool {
        self.free_bytes < self.reserve_bytes
    }
}

/// How the cluster stands, as far as the node that was asked can see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// The cluster's id, hexadecimal.
    pub cluster: String,
    /// The node that was asked.
    pub node: u64,
    /// When, by its clock, Unix milliseconds.
    pub at_ms: u64,
    /// All nodes, by id.
    pub nodes: Vec<NodeStatus>,
    /// All groups, the catalog first.
    pub groups: Vec<GroupStatus>,
    /// The changes of membership that run.
    pub changes: Vec<ChangeStatus>,
    /// The last one that ended.
    pub last_change: Option<ChangeStatus>,
    /// Where the nodes are those of the configuration files (`--members-from-config`): what is waited for until they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// Its id.
    pub id: u64,
    /// Its peer address.
    pub address: String,
    /// Its part in the catalog: `voter`, `learner`, or `unknown` while the catalog's members are.
    pub role: String,
    /// `ready`, `not ready` or `unreachable`.
    pub state: String,
    /// Why it is not ready, or not reachable, one sentence each.
    pub reasons: Vec<String>,
    /// Its version; it and what follows are unknown of a node that does not answer.
    pub version: Option<String>,
    /// Seconds since it started.
    pub uptime_s: Option<u64>,
    /// Replicas it runs.
    pub replicas: Option<u64>,
    /// Of these, how many lead.
    pub leads: Option<u64>,
    /// How much it is to lead (`--election-priority`); 0: not where another one can.
    pub priority: Option<u8>,
    /// Its disk.
    pub disk: Option<DiskStatus>,
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// The module it runs; none for the catalog.
    pub module: Option<String>,
    /// The node that leads it, by its own account; none when no node that answers does.
    pub leader: Option<u64>,
    /// The leader's term, or the highest that a replica knows.
    pub term: u64,
    /// The leader's commit index, or the highest that a replica knows.
    pub commit: u64,
    /// The index of the entry that made the members what they are.
    pub membership_index: u64,
    /// Whether a change of the voters is half done.
    pub joint: bool,
    /// The nodes that vote.
    #[schema(value_type = Vec<u64>)]
    pub voters: BTreeSet<u64>,
    /// The nodes that receive the log and do not vote.
    #[schema(value_type = Vec<u64>)]
    pub learners: BTreeSet<u64>,
    /// Its replicas, by node.
    pub replicas: Vec<ReplicaStatus>,
}

/// One replica of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaStatus {
    /// Its node.
    pub node: u64,
    /// `voter`, `learner`, or `none`: the node holds a replica and is no member, or is to become one.
    pub role: String,
    /// `leader`, `follower`, `candidate`, `learner`, `stopped: why`, `missing` when the node answers and does not run it, or
    /// `unreachable`.
    pub state: String,
    /// The leader it knows.
    pub leader: Option<u64>,
    /// Its term.
    pub term: Option<u64>,
    /// Its commit index.
    pub commit: Option<u64>,
    /// Its applied index.
    pub applied: Option<u64>,
    /// Entries that the leader has committed and this replica has not applied; of one that does not answer, not received
    /// as far as the leader knows.
    pub lag: Option<u64>,
    /// The last index in its log.
    pub last: Option<u64>,
    /// Entries in its log.
    pub log_entries: Option<u64>,
    /// Its newest snapshot.
    pub snapshot: Option<SnapshotStatus>,
    /// The index of the entry that it has its members from.
    pub membership_index: Option<u64>,
}

/// A change of membership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeStatus {
    /// Its number.
    pub id: u64,
    /// What it is, in words.
    pub change: String,
    /// `running`, `done`, or `failed`.
    pub state: String,
    /// What it waits for, or why it failed.
    pub detail: String,
    /// When it was last heard of, Unix milliseconds.
    pub changed_ms: u64,
}
