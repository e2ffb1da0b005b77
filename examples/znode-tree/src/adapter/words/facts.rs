//! What the host and the tree tell of themselves.

use serde::Deserialize;

use crate::jute::Malformed;
use crate::jute::Reader;

/// What `Io::ask("status")` tells. All of it may be missing: from an older host, or in a test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub node: u64,
    /// `leader`, `follower`, `learner`, `candidate`, `standalone`.
    pub role: String,
    pub term: u64,
    /// Of the oldest entry in the log, and of the newest.
    pub first_term: Option<u64>,
    pub last_term: Option<u64>,
    pub leader: Option<u64>,
    pub applied: u64,
    pub commit: u64,
    pub last: u64,
    pub snapshot: Option<u64>,
    pub purged: Option<u64>,
    pub members: Vec<Member>,
    pub sessions: u64,
    pub connections: Option<u64>,
    pub uptime_s: u64,
    pub version: String,
    pub log_bytes: Option<u64>,
    /// Entries that the node put into the log as leader: how many since `srst`, and their bytes, the single ones in this term.
    pub proposed: Summary,
    /// How long syncs of the log took, and writing snapshots, since `srst`: microseconds.
    pub sync_micros: Summary,
    pub snapshot_micros: Summary,
    pub snapshot_bytes: Option<u64>,
    pub open_files: Option<u64>,
    pub max_files: Option<u64>,
    pub data_dir: Option<String>,
    pub settings: HostSettings,
    pub host: Option<String>,
}

/// What the node's operator has set, and what is built into it. Times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HostSettings {
    pub heartbeat_ms: Option<u64>,
    pub election_timeout_ms: Option<u64>,
    pub snapshot_entries: Option<u64>,
    pub snapshots_kept: Option<u64>,
    pub log_entries_kept: Option<u64>,
    pub log_segment_bytes: Option<u64>,
    pub log_cache_bytes: Option<u64>,
    pub append_entries_max: Option<u64>,
    pub commands_batch_max: Option<u64>,
    pub commands_batch_bytes_max: Option<u64>,
    pub caught_up_entries: Option<u64>,
    pub commands_waiting_max: Option<u64>,
    pub session_check_ms: Option<u64>,
    pub request_timeout_ms: Option<u64>,
    pub connections_per_address_max: Option<u64>,
    pub transfer_part_bytes: Option<u64>,
}

/// Values that the host has summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Summary {
    pub count: u64,
    pub sum: u64,
    pub last: Option<u64>,
    pub min: Option<u64>,
    pub max: Option<u64>,
}

impl Summary {
    /// The last, the smallest and the largest; -1 where there is none, as ZooKeeper's `BufferStats` say it.
    pub fn sizes(&self) -> [i64; 3] {
        [self.last, self.min, self.max].map(|bytes| bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)))
    }
}

/// A node of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    pub id: u64,
    /// `host:port`, for other nodes.
    pub address: String,
    /// `voter` or `learner`.
    pub role: String,
    /// Where clients connect, if the host knows.
    pub client_address: Option<String>,
    /// How far its log is known to agree with the leader's, at the leader.
    pub matched: Option<u64>,
    /// How much it is to lead.
    pub priority: Option<u64>,
}

impl Member {
    /// Whether it takes part in elections: ZooKeeper's participants, as opposed to its observers.
    pub fn votes(&self) -> bool {
        self.role != "learner"
    }
}

impl Facts {
    /// Reads the JSON.
    pub fn parse(json: &[u8]) -> Option<Self> {
        statehouse_sdk::Params::new(json).parse().ok()
    }

    /// The role in ZooKeeper's words.
    pub fn mode(&self) -> &str {
        match self.role.as_str() {
            "learner" => "observer",
            "" => "follower",
            role => role,
        }
    }

    /// Followers and learners, at the leader.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.id != self.node)
    }

    /// Those of the others that hold nearly all of the leader's log.
    pub fn synced(&self) -> impl Iterator<Item = &Member> {
        // As many entries as one round of replication may be behind.
        const CLOSE: u64 = 1_000;
        let is_close = |matched: u64| matched.saturating_add(CLOSE) >= self.commit;
        self.others().filter(move |member| member.matched.is_some_and(is_close))
    }
}

/// What the tree counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeCounts {
    pub nodes: i64,
    pub ephemerals: i64,
    pub sessions_with_ephemerals: i64,
    pub data_bytes: i64,
    pub path_bytes: i64,
}

impl TreeCounts {
    /// Reads the answer of [`own::STATUS`](crate::call::own::STATUS).
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            nodes: reader.i64()?,
            ephemerals: reader.i64()?,
            sessions_with_ephemerals: reader.i64()?,
            data_bytes: reader.i64()?,
            path_bytes: reader.i64()?,
        })
    }

    /// What ZooKeeper calls the approximate size of the data: paths and data.
    pub fn size(&self) -> i64 {
        self.data_bytes + self.path_bytes
    }
}
