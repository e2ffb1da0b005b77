//! What nodes say to each other: [`PeerRequest`] and [`PeerResponse`], encoded by [`crate::codec`].

use std::collections::BTreeMap;

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

use crate::membership::Condition;
use crate::membership::MemberChange;
use crate::membership::NodeList;
use crate::membership::Roster;
use crate::service::Applied;
use crate::service::Consistency;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::snapshot::BaseId;
use crate::status::NodeReport;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::LogId;
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
    /// Sessions of the sender's clients that gave a sign of life; answered by [`PeerResponse::Done`] by the leader.
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
        /// CRC-32C over offset and bytes, taken where they were read.
        checksum: u32,
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
    /// A node without a cluster wants to belong to this one, as a learner of the catalog; answered by
    /// [`PeerResponse::Joined`].
    Join {
        /// The node.
        node: NodeId,
        /// Where its peers reach it.
        address: String,
    },
    /// Asks who the members of a group are, as the receiver knows it; answered by [`PeerResponse::Roster`].
    Roster(GroupId),
    /// The same of the group's leader, which first has a quorum agree that it is; answered by [`PeerResponse::Roster`].
    LeadersRoster(GroupId),
    /// Asks the group's leader to change its members; answered by [`PeerResponse::Done`] when that is committed.
    ChangeMembers {
        /// The group.
        group: GroupId,
        /// The membership that the change starts from; on another one it is refused.
        seen: Option<LogId>,
        /// The change.
        change: MemberChange,
    },
    /// Asks the group's leader to hand over; answered by [`PeerResponse::Done`] when it tried.
    HandOver {
        /// The group.
        group: GroupId,
        /// To whom; `None`: to whoever is furthest ahead.
        to: Option<NodeId>,
    },
    /// Asks what a node holds; answered by [`PeerResponse::Condition`].
    Condition,
    /// What a client asked of a group that has no replica at the sender; answered by [`PeerResponse::Served`].
    Serve {
        /// The group.
        group: GroupId,
        /// What is asked.
        call: GroupCall,
        /// How long the client waits, milliseconds.
        timeout_ms: u64,
    },
    /// Asks how a node and its replicas stand; answered by [`PeerResponse::Report`].
    Report,
    /// How fit the sender is; answered by [`PeerResponse::Fitness`].
    Fitness(Fitness),
    /// A step of a group's state on its way into a file or out of one; answered by [`PeerResponse::Copied`].
    Copy(CopyStep),
    /// Asks for all that the catalog says, of no earlier moment than this; answered by [`PeerResponse::Catalog`].
    Catalog,
    /// A node without a cluster asks which one the receiver is of, or would begin; answered by [`PeerResponse::Origin`].
    Origin,
    /// Asks which nodes the receiver's configuration file lists; answered by [`PeerResponse::Listed`].
    Listed,
}

/// Which cluster a node is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The node.
    pub node: NodeId,
    /// Its cluster; without one, the one that it would begin.
    pub cluster: [u8; 16],
    /// Whether that cluster is there: whether anybody can have been promised anything in it.
    pub formed: bool,
    /// The nodes that begin it, or began it, as far as that is known: id to peer address.
    pub founders: BTreeMap<NodeId, String>,
}

/// Which nodes a node's configuration file lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The nodes; `None` where the node does not follow its file.
    pub list: Option<NodeList>,
    /// What the node, where it leads the catalog, waits for until the cluster has them as members.
    pub waits: Option<String>,
}

/// How fit a node is to take commands and to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fitness {
    /// Whether its disk is full but for its reserve.
    pub short: bool,
    /// The priority that it was started with; 0: it is not to lead.
    pub priority: u8,
    /// Whether it never leads.
    pub never_leads: bool,
}

/// A step of a group's state on its way into a file that a client takes away, or out of one that a new group begins from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CopyStep {
    /// Writes a snapshot of the group that covers everything acknowledged before, and holds it open.
    Take(GroupId),
    /// Bytes of a snapshot that is held open.
    Read {
        /// Its number at the holder.
        number: u64,
        /// From where on.
        offset: u64,
    },
    /// A file is to come.
    Begin(BaseId),
    /// The next bytes of a file.
    Part {
        /// The file.
        base: BaseId,
        /// Where in the file these bytes belong.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// All bytes are sent: verify the file and hold it durably.
    Finish {
        /// The file.
        base: BaseId,
        /// The digest it must have.
        digest: [u8; 32],
    },
    /// Asks whether the file is held, and that it be held on.
    Hold(BaseId),
    /// The file is not needed.
    Drop(BaseId),
}

/// The answer to a [`CopyStep`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CopyAnswer {
    /// To `Take`.
    Taken {
        /// What to call it in `Read`.
        number: u64,
        /// The index it covers.
        index: u64,
        /// The file's size, bytes.
        size: u64,
        /// The file's digest.
        digest: [u8; 32],
    },
    /// To `Read`.
    Bytes(Bytes),
    /// To `Part`: where the next bytes begin.
    Offset(u64),
    /// To the others.
    Done,
    /// It failed.
    Failed(ServiceError),
}

/// What is asked of a group's replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum GroupCall {
    /// Proposes an entry.
    Propose(EntryKind),
    /// Answers a query.
    Query {
        /// How fresh.
        consistency: Consistency,
        /// The query.
        query: Bytes,
        /// The session it is sent in, by id and secret.
        session: Option<(u64, [u8; 16])>,
    },
    /// A session's sign of life.
    Touch {
        /// The session.
        id: u64,
        /// Its secret.
        secret: [u8; 16],
    },
    /// Writes a snapshot; the index it covers.
    Snapshot,
    /// Tries whether the state here would go over to the module of this digest; the index of that state.
    TryModule([u8; 32]),
}

impl GroupCall {
    /// Whether a second time changes nothing that the first did not.
    pub fn may_be_repeated(&self) -> bool {
        match self {
            Self::Propose(EntryKind::Command { session, .. }) => session.is_some_and(|used| used.sequence.is_some()),
            Self::Propose(_) => false,
            Self::Query { .. } | Self::Touch { .. } | Self::Snapshot | Self::TryModule(_) => true,
        }
    }
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
    /// To `ReadIndex` and `Touch` when the node does not lead.
    NotLeader(Option<NodeId>),
    /// To `SnapshotBegin`: send on from here. The size itself means: nothing is missing.
    SnapshotOffset(u64),
    /// To `SnapshotEnd`: the follower's vote.
    SnapshotInstalled(Vote),
    /// To `Fitness`: the answering node's.
    Fitness(Fitness),
    /// To `ModuleFetch`: the file, if it is here.
    Module(Option<Bytes>),
    /// To `Status`.
    Status(PeerStatus),
    /// To `Join`: the node is a learner of the catalog.
    Joined {
        /// The cluster's id.
        cluster: [u8; 16],
        /// Its nodes: id to peer address; with the new one.
        members: BTreeMap<NodeId, String>,
        /// The index of the membership that names the new node.
        index: u64,
    },
    /// To `Roster` and `LeadersRoster`.
    Roster(Roster),
    /// To `Condition`.
    Condition(Condition),
    /// To `Serve`.
    Served(ServiceResult<Applied>),
    /// To `Report`.
    Report(Box<NodeReport>),
    /// To `Copy`.
    Copied(CopyAnswer),
    /// To `Catalog`: its state, as its snapshots carry it.
    Catalog(Bytes),
    /// To `SnapshotChunk` and `SnapshotEnd`: what the sender read is no snapshot; why.
    SnapshotDamaged(String),
    /// To `Origin`.
    Origin(Origin),
    /// To `Listed`.
    Listed(Listed),
}

/// How a node stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Whether its log shows that the cluster has had a leader.
    pub formed: bool,
}
