//! What a node offers to whoever faces users: the HTTP API today, gateways later. The node implements
//! [`Service`]; the API knows nothing below it.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use serde::Serialize;

use crate::membership::Change;
use crate::membership::ChangeKind;
use crate::status::ClusterStatus;
use crate::status::Diagnosis;
use crate::types::NodeId;

/// How fresh a query's answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Sees every command that was acknowledged before the query was sent: one quorum round, shared
    /// by all queries that wait for one.
    #[default]
    Linearizable,
    /// The same under the assumption that clocks run at nearly one speed: the leader's lease, no round.
    Lease,
    /// This node's state as it is, perhaps behind.
    Local,
}

/// What went wrong, as a stable word that programs may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The request itself is malformed.
    BadRequest,
    /// The module said that the command or query is no such thing (`Outcome::Rejected`).
    Rejected,
    /// The module trapped; nothing changed.
    Trapped,
    /// The upload gate refused the module; `reason` in the problem names the gate's code.
    ModuleRefused,
    /// The body is larger than the limit.
    TooLarge,
    /// No such module.
    ModuleNotFound,
    /// No such group.
    GroupNotFound,
    /// A module or group of this name exists and is another.
    AlreadyExists,
    /// The module is used by a group.
    ModuleInUse,
    /// No such session: never opened, closed, or timed out.
    SessionNotFound,
    /// Another gateway connection has attached to the session; its earlier holder is refused.
    SessionMoved,
    /// The session's secret is wrong.
    WrongSecret,
    /// The sequence number was used long ago and its reply is no longer kept.
    SequenceTooOld,
    /// The sequence number leaves a gap, or comes without a session.
    BadSequence,
    /// No leader is known or reachable; nothing was done. Try again.
    NoLeader,
    /// The node is overloaded; nothing was done. Try again later.
    Overloaded,
    /// Whether the command took effect is not known. Retry only inside a session.
    OutcomeUnknown,
    /// The deadline passed and nothing was done.
    Timeout,
    /// The disk is full; nothing was done.
    DiskFull,
    /// The group stopped on this node; its log names why.
    GroupStopped,
    /// The node is starting or stopping.
    Unavailable,
    /// A fault of the host itself.
    Internal,
    /// No such node in the cluster.
    NodeNotFound,
    /// The node holds no replica of the group.
    MemberNotFound,
    /// No such change, or it is too long ago.
    ChangeNotFound,
    /// A change of the same members is running.
    ChangeInProgress,
    /// The group's last voter cannot go.
    LastVoter,
    /// The learner lags too far behind to vote.
    NotCaughtUp,
    /// The change was cancelled.
    Cancelled,
    /// This node's operator does not let that be done in this way.
    Forbidden,
    /// A file is not what was saved.
    FileDamaged,
}

impl ErrorCode {
    /// Whether it says of a command in a session what became of it, also when an earlier try may have been applied: what it says of
    /// this try holds for that one too.
    pub fn settles_earlier_tries(self) -> bool {
        matches!(self, Self::Rejected | Self::Trapped | Self::WrongSecret | Self::BadSequence | Self::SequenceTooOld)
    }

    /// Whether it says that who asked does not hold the session.
    pub fn refuses_session(self) -> bool {
        matches!(self, Self::SessionNotFound | Self::SessionMoved | Self::WrongSecret)
    }

    /// The word in the problem document's `code`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Rejected => "rejected",
            Self::Trapped => "trapped",
            Self::ModuleRefused => "module_refused",
            Self::TooLarge => "too_large",
            Self::ModuleNotFound => "module_not_found",
            Self::GroupNotFound => "group_not_found",
            Self::AlreadyExists => "already_exists",
            Self::ModuleInUse => "module_in_use",
            Self::SessionNotFound => "session_not_found",
            Self::SessionMoved => "session_moved",
            Self::WrongSecret => "wrong_secret",
            Self::SequenceTooOld => "sequence_too_old",
            Self::BadSequence => "bad_sequence",
            Self::NoLeader => "no_leader",
            Self::Overloaded => "overloaded",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Timeout => "timeout",
            Self::DiskFull => "disk_full",
            Self::GroupStopped => "group_stopped",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::NodeNotFound => "node_not_found",
            Self::MemberNotFound => "member_not_found",
            Self::ChangeNotFound => "change_not_found",
            Self::ChangeInProgress => "change_in_progress",
            Self::LastVoter => "last_voter",
            Self::NotCaughtUp => "not_caught_up",
            Self::Cancelled => "cancelled",
            Self::Forbidden => "forbidden",
            Self::FileDamaged => "file_damaged",
        }
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::BadSequence => 400,
            Self::WrongSecret | Self::Forbidden => 403,
            Self::ModuleNotFound
            | Self::GroupNotFound
            | Self::SessionNotFound
            | Self::NodeNotFound
            | Self::MemberNotFound
            | Self::ChangeNotFound => 404,
            Self::AlreadyExists
            | Self::ModuleInUse
            | Self::SequenceTooOld
            | Self::SessionMoved
            | Self::ChangeInProgress
            | Self::LastVoter
            | Self::NotCaughtUp
            | Self::Cancelled => 409,
            Self::TooLarge => 413,
            Self::Rejected | Self::Trapped | Self::ModuleRefused | Self::FileDamaged => 422,
            Self::Internal | Self::GroupStopped => 500,
            Self::NoLeader | Self::Overloaded | Self::Unavailable => 503,
            Self::Timeout | Self::OutcomeUnknown => 504,
            Self::DiskFull => 507,
        }
    }

    /// What the caller can do about it, one sentence.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::BadRequest => {
                "correct what the detail names; /openapi.json describes the request, and a module's author its params"
            }
            Self::Rejected => "send what the module understands; nothing was changed",
            Self::Trapped => "nothing was changed; the detail carries the module's own text",
            Self::ModuleRefused => "change the module as the detail says and upload it again",
            Self::TooLarge => "send less, or raise the node's limit",
            Self::ModuleNotFound => "`statehouse module ls` lists the modules",
            Self::GroupNotFound => "`statehouse group ls` lists the groups",
            Self::AlreadyExists => "choose another name, or remove the existing one first",
            Self::ModuleInUse => "remove the groups that run it first",
            Self::SessionNotFound => "open a new session",
            Self::SessionMoved => "attach to the session again, or open a new one",
            Self::WrongSecret => "send the secret that opening the session answered",
            Self::SequenceTooOld => "the command was applied; its reply is no longer kept",
            Self::BadSequence => "count the session's commands up from 1, one by one",
            Self::NoLeader => "nothing was done: try again; `statehouse group status` shows the leader",
            Self::Overloaded => "nothing was done: try again later",
            Self::OutcomeUnknown => {
                "the command may or may not be applied: retry it inside a session, or look with a query"
            }
            Self::Timeout => "nothing was done: try again",
            Self::DiskFull => "nothing was done: free space on the node's data directory",
            Self::GroupStopped => "see the node's log for the reason",
            Self::Unavailable => "try again, or another node",
            Self::Internal => "see the node's log; this is a fault of the host",
            Self::NodeNotFound => "`statehouse node ls` lists the nodes; a new one starts with `serve --join`",
            Self::MemberNotFound => "`statehouse member ls GROUP` lists the members",
            Self::ChangeNotFound => "`statehouse change ls` lists the changes that are still known",
            Self::ChangeInProgress => {
                "wait for it (`statehouse change ls`), or cancel it (`statehouse change cancel ID`)"
            }
            Self::LastVoter => "add another voter first, or remove the group",
            Self::NotCaughtUp => "wait until it has caught up: `statehouse member ls GROUP` shows how far it is",
            Self::Cancelled => "what it had done by then stays; ask for what you want instead",
            Self::Forbidden => "the detail names the node's flag that decides it",
            Self::FileDamaged => "nothing was made: take another copy of the file",
        }
    }
}

/// An error as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceError {
    /// The stable word.
    pub code: ErrorCode,
    /// What happened, to which module, group or index.
    pub detail: String,
    /// A finer stable word where there is one: the gate's code, the trap's code.
    pub reason: Option<String>,
    /// The log index the outcome belongs to, where there is one (a trap or rejection is an entry's outcome).
    pub index: Option<u64>,
}

impl ServiceError {
    /// An error with only code and detail.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), reason: None, index: None }
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}
impl std::error::Error for ServiceError {}

/// The result of every service call.
pub type ServiceResult<T> = Result<T, ServiceError>;

/// A module as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleView {
    /// Its name, unique in the cluster.
    pub name: String,
    /// SHA-256 of the file, hexadecimal.
    pub digest: String,
    /// The file's size, bytes.
    pub size: u64,
    /// When it was added, Unix milliseconds.
    pub created_ms: u64,
    /// The optional exports it has (`timer`, `session_end`, `migrate`, …).
    pub exports: Vec<String>,
    /// The groups that run it.
    pub groups: Vec<String>,
}

/// A module that a group runs or ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleUseView {
    /// Its name then.
    pub name: String,
    /// SHA-256 of the file, hexadecimal.
    pub digest: String,
    /// The entry of the group's log from which on; 0: from its beginning.
    pub index: u64,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
}

/// What a replica says of a module that it tried on a copy of its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedView {
    /// The node.
    pub node: NodeId,
    /// The last entry in the state that it tried it on.
    pub index: Option<u64>,
    /// Why it could not try; none when the state goes over.
    pub failure: Option<String>,
}

/// One replica of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The node.
    pub id: NodeId,
    /// Its peer address.
    pub address: String,
    /// `voter` or `learner`.
    pub role: String,
    /// The index this member is known to hold, as the leader sees it; only the leader knows.
    pub matched: Option<u64>,
}

/// A group that is to be made.
#[derive(Clone, Debug, Default)]
pub struct GroupRequest {
    /// Its name.
    pub name: String,
    /// The module's name.
    pub module: String,
    /// The params of `init`: an object, or null for an empty one.
    pub params: serde_json::Value,
    /// How many replicas it is to have; `None`: one on every full node.
    pub replicas: Option<u64>,
    /// The addresses its adapter listens on, on every node.
    pub listen: Vec<String>,
    /// What the adapter is told as `listen`: an object, or null for an empty one.
    pub listen_params: serde_json::Value,
}

/// A group that is to begin from a file.
#[derive(Clone, Debug, Default)]
pub struct RestoreRequest {
    /// Its name.
    pub name: String,
    /// The module's name; `None`: whichever has the digest that the file names.
    pub module: Option<String>,
    /// As for [`GroupRequest`].
    pub replicas: Option<u64>,
    /// As for [`GroupRequest`].
    pub listen: Vec<String>,
    /// As for [`GroupRequest`].
    pub listen_params: serde_json::Value,
}

/// A file's bytes as they come.
pub type FileStream = BoxStream<'static, std::io::Result<Bytes>>;

/// A snapshot on its way out of the cluster.
pub struct SavedGroup {
    /// The index it covers.
    pub index: u64,
    /// Its size, bytes.
    pub size: u64,
    /// SHA-256 over all but its last 32 bytes, which repeat it; hexadecimal.
    pub digest: String,
    /// The file.
    pub file: FileStream,
}

impl fmt::Debug for SavedGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a snapshot of {} bytes that covers {}", self.size, self.index)
    }
}

/// Where clients of a group's adapter are listened for on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerView {
    /// The address.
    pub address: String,
    /// `listening`, or why not.
    pub state: String,
}

/// A group as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// The name of the module that it runs.
    pub module: String,
    /// That module's digest, hexadecimal.
    pub digest: String,
    /// All modules that it ran, oldest first, as the catalog knows them.
    pub modules: Vec<ModuleUseView>,
    /// The params it was created with.
    pub params: serde_json::Value,
    /// The addresses it was created with: where its adapter listens on every node that does not say otherwise.
    pub listen: Vec<String>,
    /// What its adapter is told of its listener, as it was created.
    pub listen_params: serde_json::Value,
    /// How many replicas it is to have; `None`: one on every full node.
    pub replicas: Option<u64>,
    /// The node that answers.
    pub node: NodeId,
    /// Its current term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Its commit index.
    pub commit: u64,
    /// Its applied index.
    pub applied: u64,
    /// The index its newest snapshot covers, 0 when there is none.
    pub snapshot: u64,
    /// The last index in its log.
    pub last: u64,
    /// Everything up to here is purged from its log.
    pub purged: u64,
    /// `leader`, `follower`, `candidate`, `learner`, `stopped: why`.
    pub state: String,
    /// Live sessions.
    pub sessions: u64,
    /// Armed timers.
    pub timers: u64,
    /// The replicas.
    pub members: Vec<MemberView>,
    /// Where this node listens for clients of its adapter.
    pub listeners: Vec<ListenerView>,
    /// Client connections of this node's listeners.
    pub connections: u64,
}

/// A digest of a replica's state at an index; equal on all replicas at equal indexes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestView {
    /// The node that answers.
    pub node: NodeId,
    /// The applied index the digest is of.
    pub applied: u64,
    /// SHA-256 over the snapshot the replica would write at that index, hexadecimal.
    pub digest: String,
}

/// A command for a group.
#[derive(Clone, Debug)]
pub struct ApplyRequest {
    /// The group's name.
    pub group: String,
    /// Session id and secret.
    pub session: Option<(u64, [u8; 16])>,
    /// The command's number in the session.
    pub sequence: Option<u64>,
    /// The command.
    pub command: Bytes,
    /// How long the caller waits, milliseconds; `None` takes the node's default.
    pub timeout_ms: Option<u64>,
}

/// What `apply` answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The entry's index.
    pub index: u64,
    /// The module's reply.
    pub reply: Bytes,
}

/// A fresh session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id.
    pub id: u64,
    /// Its secret, 32 hexadecimal digits.
    pub secret: String,
    /// The timeout that was granted, milliseconds.
    pub timeout_ms: u64,
}

/// One emitted event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The index of the entry that emitted it.
    pub index: u64,
    /// Its place among the events of that entry, from 0.
    pub number: u32,
    /// The bytes.
    pub data: Bytes,
}

/// What an event subscriber receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventItem {
    /// An event.
    Event(Event),
    /// Events from `from` up to before `next` are no longer (or not) kept on this node: the
    /// subscriber must look at the state by a query and goes on from `next`.
    Gap {
        /// The first index that is missing.
        from: u64,
        /// The index the stream goes on from.
        next: u64,
    },
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNodeView {
    /// Its id.
    pub id: NodeId,
    /// Its peer address.
    pub address: String,
    /// Its part in the catalog: `voter` or `learner`.
    pub role: String,
    /// Whether it leads the catalog.
    pub leader: bool,
    /// `ready`, `not ready: why`, or `unreachable: why`.
    pub state: String,
    /// How many entries of the catalog it lacks, as the leader sees it.
    pub lag: Option<u64>,
    /// Replicas it holds.
    pub groups: Option<u64>,
    /// Of these, how many lead.
    pub leads: Option<u64>,
}

/// The node's own condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub node: NodeId,
    /// The cluster's id, hexadecimal.
    pub cluster: String,
    /// Whether it is ready: the catalog and all local groups have a leader and have caught up.
    pub ready: bool,
    /// What is not ready, one sentence each.
    pub reasons: Vec<String>,
    /// Seconds since start.
    pub uptime_s: u64,
}

/// Everything a node does for users. Every call can be made at any node.
pub trait Service: Send + Sync + 'static {
    /// Adds a module; returns when a majority of the nodes holds the bytes durably and the catalog names them.
    /// Adding the same bytes under the same name again is a success.
    fn module_add(&self, name: String, wasm: Bytes) -> BoxFuture<'_, ServiceResult<ModuleView>>;
    /// All modules, by name.
    fn module_list(&self) -> BoxFuture<'_, ServiceResult<Vec<ModuleView>>>;
    /// One module.
    fn module_get(&self, name: String) -> BoxFuture<'_, ServiceResult<ModuleView>>;
    /// A module's file.
    fn module_file(&self, name: String) -> BoxFuture<'_, ServiceResult<Bytes>>;
    /// Removes a module that no group runs.
    fn module_remove(&self, name: String) -> BoxFuture<'_, ServiceResult<()>>;
    /// Runs the upload gate on this node and adds nothing.
    fn module_check(&self, wasm: Bytes) -> BoxFuture<'_, ServiceResult<ModuleView>>;

    /// Creates a group and waits until it has a leader and its module is initialised.
    fn group_create(&self, request: GroupRequest) -> BoxFuture<'_, ServiceResult<GroupView>>;
    /// All groups, by name.
    fn group_list(&self) -> BoxFuture<'_, ServiceResult<Vec<GroupView>>>;
    /// One group, as this node sees it.
    fn group_get(&self, name: String) -> BoxFuture<'_, ServiceResult<GroupView>>;
    /// Removes a group and its state from all nodes.
    fn group_remove(&self, name: String) -> BoxFuture<'_, ServiceResult<()>>;
    /// Begins a group's change of module and answers its record, once a majority of its voters has tried the module on a copy of
    /// their state and nobody found that it does not fit.
    fn module_change(&self, group: String, module: String) -> BoxFuture<'_, ServiceResult<Change>>;
    /// Only tries it; what each replica says.
    fn module_try(&self, group: String, module: String) -> BoxFuture<'_, ServiceResult<Vec<TriedView>>>;
    /// This node's state digest of the group.
    fn group_digest(&self, name: String) -> BoxFuture<'_, ServiceResult<DigestView>>;
    /// Takes a snapshot of the group on this node now; answers the index it covers.
    fn group_snapshot(&self, name: String) -> BoxFuture<'_, ServiceResult<u64>>;
    /// A snapshot file that holds everything acknowledged before the call.
    fn group_save(&self, name: String) -> BoxFuture<'_, ServiceResult<SavedGroup>>;
    /// Creates a group that begins from a snapshot file, and waits until it has a leader. Nothing is made before the whole
    /// file was seen and verified, and a majority of the group's members holds it durably.
    fn group_restore(&self, request: RestoreRequest, file: FileStream) -> BoxFuture<'_, ServiceResult<GroupView>>;

    /// Applies a command.
    fn apply(&self, request: ApplyRequest) -> BoxFuture<'_, ServiceResult<Applied>>;
    /// Answers a query; the index is the applied index it was answered at. A session, by its id and secret, is touched.
    fn query(
        &self,
        group: String,
        consistency: Consistency,
        query: Bytes,
        session: Option<(u64, [u8; 16])>,
    ) -> BoxFuture<'_, ServiceResult<Applied>>;

    /// Opens a session.
    fn session_open(&self, group: String, timeout_ms: u64) -> BoxFuture<'_, ServiceResult<SessionView>>;
    /// A sign of life; returns when the group's leader has heard of it.
    fn session_touch(&self, group: String, id: u64, secret: [u8; 16]) -> BoxFuture<'_, ServiceResult<()>>;
    /// Ends a session.
    fn session_close(&self, group: String, id: u64, secret: [u8; 16]) -> BoxFuture<'_, ServiceResult<()>>;

    /// The group's events from index `from` (the next one when `None`), in log order, as this node applies them.
    fn events(&self, group: String, from: Option<u64>) -> BoxFuture<'_, ServiceResult<BoxStream<'static, EventItem>>>;

    /// Begins a change of membership and answers its record; it goes on by itself, whichever node fails. What makes no
    /// sense is refused at once.
    fn change_begin(&self, kind: ChangeKind) -> BoxFuture<'_, ServiceResult<Change>>;
    /// The changes that run, and those that ended last, by number.
    fn change_list(&self) -> BoxFuture<'_, ServiceResult<Vec<Change>>>;
    /// One change; waits up to `wait_ms` for its end.
    fn change_get(&self, id: u64, wait_ms: u64) -> BoxFuture<'_, ServiceResult<Change>>;
    /// Gives up a running change; what it has done by then stays.
    fn change_cancel(&self, id: u64) -> BoxFuture<'_, ServiceResult<Change>>;
    /// The cluster's nodes, by id.
    fn node_list(&self) -> BoxFuture<'_, ServiceResult<Vec<ClusterNodeView>>>;
    /// A group's members, as its leader sees them. The group `catalog` is the cluster's own.
    fn member_list(&self, group: String) -> BoxFuture<'_, ServiceResult<Vec<MemberView>>>;
    /// Hands a group's leadership to a node, or to whoever is furthest ahead; who leads then.
    fn leader_transfer(&self, group: String, to: Option<NodeId>) -> BoxFuture<'_, ServiceResult<NodeId>>;

    /// How much a node is to lead from now on, whatever it was started with; `None`: what it was started with counts again.
    fn node_priority(&self, node: NodeId, priority: Option<u8>) -> BoxFuture<'_, ServiceResult<()>>;

    /// How the cluster stands, as far as this node can see. Needs no leader: whoever does not answer is shown as such.
    fn status(&self) -> BoxFuture<'_, ClusterStatus>;
    /// What is wrong with the cluster, by two looks at it a second apart.
    fn doctor(&self) -> BoxFuture<'_, Diagnosis>;

    /// Readiness.
    fn node(&self) -> BoxFuture<'_, NodeView>;
    /// The metrics page, Prometheus text format.
    fn metrics(&self) -> BoxFuture<'_, String>;
    /// A machine-readable set of counters for tests and `bench` (name to value).
    fn counters(&self) -> BoxFuture<'_, BTreeMap<String, u64>>;
}
