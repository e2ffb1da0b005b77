//! The words of consensus as this project uses them: ids, log entries, and openraft's type
//! configuration, generic over the runtime so that the same code runs on tokio and in the simulator.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft::impls::leader_id_std;
use serde::Deserialize;
use serde::Serialize;

/// A node's id, chosen by the operator, never 0.
pub type NodeId = u64;

/// A group's id, given by the catalog and never given twice.
pub type GroupId = u64;

/// The catalog's own group: every node belongs to it.
pub const CATALOG: GroupId = 0;

/// What it is called; no other group is called so.
pub const CATALOG_NAME: &str = "catalog";

/// Who proposed an entry, so that this node, when it applies the entry, finds who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The node whose client sent the command.
    pub node: NodeId,
    /// A number drawn when the replica there was opened: replies of an earlier life find nobody.
    pub incarnation: u64,
    /// Counts that replica's proposals in this life.
    pub number: u64,
}

/// The session and sequence number that make a command's retry safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionUse {
    /// The session's id.
    pub id: u64,
    /// The session's secret, 16 bytes.
    pub secret: [u8; 16],
    /// The command's number within the session, counted up by the client from 1; `None` for a
    /// command that is in the session but whose retry need not be recognised.
    pub sequence: Option<u64>,
    /// Which attachment sends it; `None` for a session that is not attached.
    pub attachment: Option<Attachment>,
}

/// How a gateway holds a session. Sequence numbers restart at 1 with each attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The entry that attached it.
    pub index: u64,
    /// Replies up to this sequence number have arrived and need not be kept.
    pub answered: u64,
}

/// What an entry asks of the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Bytes for the module's `apply` (or for the catalog's own state machine).
    Command {
        /// The session it is sent in, if any.
        session: Option<SessionUse>,
        /// The command, as the client sent it.
        payload: Bytes,
    },
    /// Opens a session; its id is the entry's index.
    OpenSession {
        /// 16 random bytes, drawn by the proposing node.
        secret: [u8; 16],
        /// How long the session lives without a sign of life, milliseconds.
        timeout_ms: u64,
        /// Whether a gateway holds it from the start: then the entry is its first attachment.
        attached: bool,
    },
    /// Ends a session, by its client's wish or because it timed out.
    CloseSession {
        /// The session.
        id: u64,
        /// The client's secret; `None` when the leader found it dead.
        secret: Option<[u8; 16]>,
        /// Only while this is the session's attachment, if it is given.
        attachment: Option<u64>,
    },
    /// The time of these timers has come.
    Timers {
        /// `(timer id, the time it was set for)`: a timer moved meanwhile is not due and is skipped.
        due: Vec<(u64, u64)>,
    },
    /// A gateway takes a session, from wherever it was; the entry's index is the attachment.
    AttachSession {
        /// The session.
        id: u64,
        /// Its secret.
        secret: [u8; 16],
    },
    /// From this entry on the group runs another module, which takes its state over from the one before.
    ChangeModule {
        /// The catalog's change that asks for it. A number that is not higher than one before has no effect any more.
        change: u64,
        /// The module's digest.
        module: [u8; 32],
        /// What the catalog calls it.
        name: String,
    },
}

/// The application data of a log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The leader's wall clock when it proposed, Unix milliseconds. Applying never lets it go back.
    pub time_ms: u64,
    /// Who waits for the reply.
    pub origin: Origin,
    /// What is asked.
    pub kind: EntryKind,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            EntryKind::Command { .. } => "command",
            EntryKind::OpenSession { .. } => "open-session",
            EntryKind::CloseSession { .. } => "close-session",
            EntryKind::Timers { .. } => "timers",
            EntryKind::AttachSession { .. } => "attach-session",
            EntryKind::ChangeModule { .. } => "change-module",
        };
        write!(f, "{kind} from node {} #{}", self.origin.node, self.origin.number)
    }
}

/// openraft's type configuration on the runtime `RT`.
pub struct Types<RT>(PhantomData<fn() -> RT>);

impl<RT> Clone for Types<RT> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<RT> Copy for Types<RT> {}
impl<RT> Default for Types<RT> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<RT> fmt::Debug for Types<RT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}
impl<RT> PartialEq for Types<RT> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<RT> Eq for Types<RT> {}
impl<RT> PartialOrd for Types<RT> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<RT> Ord for Types<RT> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

/// Standard Raft: one leader a term, so an entry's id is `(term, index)`.
pub type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
/// Term, voted-for, and whether a majority granted it.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// What a log entry carries: blank, a proposal, or a membership.
pub type Payload = openraft::EntryPayload<Proposal, NodeId, openraft::BasicNode>;
/// `(term, index)` of a log entry.
pub type LogId = openraft::LogId<<LeaderId as openraft::vote::RaftLeaderId>::Committed>;
/// One log entry.
pub type Entry = openraft::Entry<<LeaderId as openraft::vote::RaftLeaderId>::Committed, Payload>;

impl<RT: AsyncRuntime> openraft::RaftTypeConfig for Types<RT> {
    type D = Proposal;
    /// Replies do not travel through openraft: each node answers its own clients from its own apply
    /// (see [`Origin`]), so this is empty.
    type R = ();
    type NodeId = NodeId;
    type Node = openraft::BasicNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = RT;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}
