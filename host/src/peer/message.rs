//! What nodes say to each other: [`PeerRequest`] and [`PeerResponse`], encoded by [`crate::codec`].

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft::raft::AppendEntriesRequest;
use openraft::raft::AppendEntriesResponse;
use openraft::raft::TransferLeaderRequest;
use openraft::raft::TransferLeaderResponse;
use openraft::raft::VoteRequest;
use openraft::raft::VoteResponse;
use serde::Deserialize;
use serde::Serialize;

use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::Proposal;
use crate::types::Types;
use crate::types::Vote;

/// A request from one node to another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub enum PeerRequest<RT: AsyncRuntime> {
    /// Raft's AppendEntries.
    Append(GroupId, AppendEntriesRequest<Types<RT>>),
    /// Raft's RequestVote.
    Vote(GroupId, VoteRequest<Types<RT>>),
    /// Raft's PreVote.
    PreVote(GroupId, VoteRequest<Types<RT>>),
    /// Asks a node to take over leadership.
    TransferLeader(GroupId, TransferLeaderRequest<Types<RT>>),
    /// Commands of the sender's clients, for the group's leader.
    Propose {
        /// The group.
        group: GroupId,
        /// The term whose leader may take them; no other may.
        term: u64,
        /// The commands.
        proposals: Vec<Proposal>,
    },
    /// Asks the leader up to which index a read must wait.
    ReadIndex {
        /// The group.
        group: GroupId,
        /// Whether the leader's lease suffices.
        lease: bool,
    },
    /// Sessions of the sender's clients that gave a sign of life.
    Touch(GroupId, Vec<u64>),
    /// Begins or resumes a snapshot transfer; answered by [`PeerResponse::SnapshotOffset`].
    SnapshotBegin(SnapshotOffer),
    /// The next bytes of a snapshot file.
    SnapshotChunk {
        /// The transfer's group.
        group: GroupId,
        /// The file's digest, as offered.
        digest: [u8; 32],
        /// Where in the file these bytes belong.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// All bytes are sent: verify and install.
    SnapshotEnd {
        /// The transfer's group.
        group: GroupId,
        /// The file's digest.
        digest: [u8; 32],
        /// The leader's vote.
        vote: Vote,
    },
    /// A module file that the receiver is to keep durably; answered by [`PeerResponse::Done`] when it does.
    ModuleStore {
        /// SHA-256 of the file.
        digest: [u8; 32],
        /// The file.
        data: Bytes,
    },
    /// Asks for a module file.
    ModuleFetch {
        /// SHA-256 of the file.
        digest: [u8; 32],
    },
    /// Asks how the peer stands.
    Status,
    /// Asks the leader to hand its office to the sender; answered by [`PeerResponse::Done`] when it tries.
    Lead(GroupId),
}

/// A snapshot that the leader offers to a follower.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotOffer {
    /// The group.
    pub group: GroupId,
    /// SHA-256 of the file: names the transfer, so that a cut one can be resumed.
    pub digest: [u8; 32],
    /// The file's size, bytes.
    pub size: u64,
}

/// The answer to a [`PeerRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub enum PeerResponse<RT: AsyncRuntime> {
    /// To `Append`.
    Append(AppendEntriesResponse<Types<RT>>),
    /// To `Vote` and `PreVote`.
    Vote(VoteResponse<Types<RT>>),
    /// To `TransferLeader`.
    TransferLeader(TransferLeaderResponse<Types<RT>>),
    /// To requests that need no more than success.
    Done,
    /// To `Propose`: for each command that was refused before it reached the log, its place in the request.
    Proposed {
        /// Positions of refused commands.
        refused: Vec<u32>,
        /// Positions of commands that may or may not still be committed.
        unknown: Vec<u32>,
        /// The leader the refusing node knows.
        leader: Option<NodeId>,
    },
    /// To `ReadIndex`: apply up to here, then read.
    ReadIndex(u64),
    /// To `ReadIndex` when the node does not lead.
    NotLeader(Option<NodeId>),
    /// To `SnapshotBegin`: send on from here. The size itself means: nothing is missing.
    SnapshotOffset(u64),
    /// To `SnapshotEnd`: the follower's vote.
    SnapshotInstalled(Vote),
    /// To `ModuleFetch`: the file, if it is here.
    Module(Option<Bytes>),
    /// To `Status`.
    Status(PeerStatus),
}

/// How a node stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Whether its log shows that the cluster has had a leader.
    pub formed: bool,
}
