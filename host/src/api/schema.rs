//! The JSON documents of the API. They are the service's views, spelled out a second time on purpose:
//! what clients see is a contract and must not move because a view inside the node does. Each
//! conversion takes its view apart field by field, so a field that is added there asks here what to
//! do with it.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::membership;
use crate::membership::ChangeState;
use crate::service::ClusterNodeView;
use crate::service::DigestView;
use crate::service::GroupView;
use crate::service::ListenerView;
use crate::service::MemberView;
use crate::service::ModuleUseView;
use crate::service::ModuleView;
use crate::service::NodeView;
use crate::service::SessionView;
use crate::service::TriedView;

// Of `Vec<u8>` the document would say that it is an array of numbers.
/// Bytes as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct Binary(pub Vec<u8>);

/// A module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Module {
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

impl From<ModuleView> for Module {
    fn from(view: ModuleView) -> Self {
        let ModuleView { name, digest, size, created_ms, exports, groups } = view;
        Self { name, digest, size, created_ms, exports, groups }
    }
}

/// All modules, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModuleList {
    /// The modules.
    pub modules: Vec<Module>,
}

/// What to create a group of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGroup {
    /// Its name: 1 to 63 of `a-z 0-9 . _ -`, the first a letter or digit.
    pub name: String,
    /// The name of the module it runs.
    pub module: String,
    /// What the module's `init` receives; an object, `{}` when left out.
    #[serde(default = "no_params")]
    #[schema(value_type = Object)]
    pub params: serde_json::Value,
    /// How many replicas it is to have, spread evenly over the nodes; left out: one on every full node.
    #[serde(default)]
    pub replicas: Option<u64>,
    /// The addresses its module's adapter listens on, `HOST:PORT`, on every node that does not say otherwise.
    #[serde(default)]
    pub listen: Vec<String>,
    /// What the adapter is told of its listener; an object, `{}` when left out.
    #[serde(default = "no_params")]
    #[schema(value_type = Object)]
    pub listen_params: serde_json::Value,
}

fn no_params() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

/// A group, as the node that answers sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// The name of the module that it runs.
    pub module: String,
    /// That module's digest, hexadecimal.
    pub digest: String,
    /// All modules that it ran, oldest first, as the catalog knows them.
    #[serde(default)]
    pub modules: Vec<ModuleUse>,
    /// The params it was created with.
    #[schema(value_type = Object)]
    pub params: serde_json::Value,
    /// The addresses it was created with: where its adapter listens on every node that does not say otherwise.
    #[serde(default)]
    pub listen: Vec<String>,
    /// What its adapter is told of its listener, as it was created.
    #[serde(default = "no_params")]
    #[schema(value_type = Object)]
    pub listen_params: serde_json::Value,
    /// How many replicas it is to have; null: one on every full node.
    pub replicas: Option<u64>,
    /// The node that answers.
    pub node: u64,
    /// Its current term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<u64>,
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
    /// `leader`, `follower`, `candidate`, `learner`, or `stopped: ` and why.
    pub state: String,
    /// Live sessions.
    pub sessions: u64,
    /// Armed timers.
    pub timers: u64,
    /// The replicas.
    pub members: Vec<Member>,
    /// Where the node that answers listens for clients of the module's adapter.
    pub listeners: Vec<Listener>,
    /// Client connections of these listeners.
    pub connections: u64,
}

/// An address that a node listens on for clients of a group's adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listener {
    /// The address.
    pub address: String,
    /// `listening`, or why not.
    pub state: String,
}

impl From<ListenerView> for Listener {
    fn from(view: ListenerView) -> Self {
        let ListenerView { address, state } = view;
        Self { address, state }
    }
}

impl From<GroupView> for Group {
    fn from(view: GroupView) -> Self {
        let GroupView {
            name,
            id,
            module,
            digest,
            modules,
            params,
            listen,
            listen_params,
            replicas,
            node,
            term,
            leader,
            commit,
            applied,
            snapshot,
            last,
            purged,
            state,
            sessions,
            timers,
            members,
            listeners,
            connections,
        } = view;
        let modules = modules.into_iter().map(ModuleUse::from).collect();
        let listeners = listeners.into_iter().map(Listener::from).collect();
        let members = members.into_iter().map(Member::from).collect();
        Self {
            name,
            id,
            module,
            digest,
            modules,
            params,
            listen,
            listen_params,
            replicas,
            node,
            term,
            leader,
            commit,
            applied,
            snapshot,
            last,
            purged,
            state,
            sessions,
            timers,
            members,
            listeners,
            connections,
        }
    }
}

/// A module that a group runs or ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModuleUse {
    /// Its name then.
    pub name: String,
    /// SHA-256 of the file, hexadecimal.
    pub digest: String,
    /// The entry of the group's log from which on; 0: from its beginning.
    pub index: u64,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
}

impl From<ModuleUseView> for ModuleUse {
    fn from(view: ModuleUseView) -> Self {
        let ModuleUseView { name, digest, index, since_ms } = view;
        Self { name, digest, index, since_ms }
    }
}

/// The module that a group is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WantedModule {
    /// Its name.
    pub module: String,
}

/// What the replicas say of a module that they tried on copies of their state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TriedList {
    /// One each.
    pub tried: Vec<Tried>,
}

/// What one replica says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tried {
    /// The node.
    pub node: u64,
    /// The last entry in the state that it tried it on; null when it could not try.
    pub index: Option<u64>,
    /// Why it could not try; null when the state goes over.
    pub failure: Option<String>,
}

impl From<TriedView> for Tried {
    fn from(view: TriedView) -> Self {
        let TriedView { node, index, failure } = view;
        Self { node, index, failure }
    }
}

/// One replica of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The node.
    pub id: u64,
    /// Its peer address.
    pub address: String,
    /// `voter` or `learner`.
    pub role: String,
    /// The index this member is known to hold; only the leader knows.
    pub matched: Option<u64>,
}

impl From<MemberView> for Member {
    fn from(view: MemberView) -> Self {
        let MemberView { id, address, role, matched } = view;
        Self { id, address, role, matched }
    }
}

/// All groups, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupList {
    /// The groups.
    pub groups: Vec<Group>,
}

/// A digest of the answering node's state; equal on all replicas at equal indexes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Digest {
    /// The node that answers.
    pub node: u64,
    /// The applied index the digest is of.
    pub applied: u64,
    /// SHA-256, hexadecimal.
    pub digest: String,
}

impl From<DigestView> for Digest {
    fn from(view: DigestView) -> Self {
        let DigestView { node, applied, digest } = view;
        Self { node, applied, digest }
    }
}

/// A snapshot that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// The index it covers.
    pub index: u64,
}

/// What session to open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// How long it lives without a sign of life, milliseconds; the node keeps it within its limits.
    pub timeout_ms: u64,
}

/// A fresh session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Its id.
    pub id: u64,
    /// Its secret, 32 hexadecimal digits.
    pub secret: String,
    /// The timeout that was granted, milliseconds.
    pub timeout_ms: u64,
}

impl From<SessionView> for Session {
    fn from(view: SessionView) -> Self {
        let SessionView { id, secret, timeout_ms } = view;
        Self { id, secret, timeout_ms }
    }
}

/// The answering node's own condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its id.
    pub node: u64,
    /// The cluster's id, hexadecimal.
    pub cluster: String,
    /// The program's version.
    pub version: String,
    /// Whether it is ready: the catalog and all local groups have a leader and have caught up.
    pub ready: bool,
    /// What is not ready, one sentence each.
    pub reasons: Vec<String>,
    /// Seconds since start.
    pub uptime_s: u64,
}

impl From<NodeView> for Node {
    fn from(view: NodeView) -> Self {
        let NodeView { node, cluster, ready, reasons, uptime_s } = view;
        Self { node, cluster, version: env!("CARGO_PKG_VERSION").to_owned(), ready, reasons, uptime_s }
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNode {
    /// Its id.
    pub id: u64,
    /// Its peer address.
    pub address: String,
    /// Its part in the catalog: `voter` or `learner`.
    pub role: String,
    /// Whether it leads the catalog.
    pub leader: bool,
    /// `ready`, `not ready: ` and why, or `unreachable: ` and why.
    pub state: String,
    /// How many entries of the catalog it lacks, as the leader sees it.
    pub lag: Option<u64>,
    /// Replicas it holds.
    pub groups: Option<u64>,
    /// How many of these lead.
    pub leads: Option<u64>,
}

impl From<ClusterNodeView> for ClusterNode {
    fn from(view: ClusterNodeView) -> Self {
        let ClusterNodeView { id, address, role, leader, state, lag, groups, leads } = view;
        Self { id, address, role, leader, state, lag, groups, leads }
    }
}

/// The nodes of the cluster, by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// The nodes.
    pub nodes: Vec<ClusterNode>,
}

/// A group's members, by node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberList {
    /// The members.
    pub members: Vec<Member>,
}

/// Which node becomes a member, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMember {
    /// The node.
    pub node: u64,
    /// It receives the log and does not vote.
    #[serde(default)]
    pub learner: bool,
}

/// Who votes in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Voters {
    /// The nodes.
    pub voters: Vec<u64>,
}

/// From where to where a replica moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The node that has it.
    pub from: u64,
    /// The node that gets it.
    pub to: u64,
}

/// How much a node is to lead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Priority {
    /// As `--election-priority`, 0 to 255; null: what the node was started with counts.
    pub priority: Option<u8>,
}

/// Who is to lead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The node; left out: the voter that is furthest ahead.
    #[serde(default)]
    pub to: Option<u64>,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leader {
    /// The node.
    pub leader: u64,
}

/// What it took to spread the leaders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Balanced {
    /// Each group whose leadership has moved.
    pub moved: Vec<crate::status::Moved>,
}

/// A change of membership and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// Its number.
    pub id: u64,
    /// What it is, in words.
    pub change: String,
    /// The group it is about; none when it is about a node.
    pub group: Option<String>,
    /// `running`, `done` or `failed`.
    pub state: String,
    /// What it waits for, or why it failed.
    pub detail: String,
    /// The stable word for why it failed.
    pub code: Option<String>,
    /// When it began, Unix milliseconds.
    pub began_ms: u64,
    /// When it was last heard of: its end, when it ended. Unix milliseconds.
    pub changed_ms: u64,
}

impl From<membership::Change> for Change {
    fn from(change: membership::Change) -> Self {
        let membership::Change { id, kind, state, began_ms, changed_ms } = change;
        let (state, detail, code) = match state {
            ChangeState::Running(text) => ("running", text, None),
            ChangeState::Done => ("done", String::new(), None),
            ChangeState::Failed(error) => ("failed", error.detail, Some(error.code.as_str().to_owned())),
        };
        let group = kind.group().map(str::to_owned);
        Self { id, change: kind.to_string(), group, state: state.to_owned(), detail, code, began_ms, changed_ms }
    }
}

/// The changes that run, and the last that ended, by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeList {
    /// The changes.
    pub changes: Vec<Change>,
}
