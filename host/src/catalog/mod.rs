//! The cluster's own state machine: which modules there are and which groups run them. Native, but a
//! [`Model`] like any other, so that it is replicated, snapshotted and simulated by the same code.
//!
//! Invariants:
//! - A group id is given once; an id below [`Catalog::next_group`] that names no group was removed for good.
//! - A module that a group runs cannot be removed.
//! - [`View`] shows each state the catalog went through no earlier than it was applied here.

pub mod files;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use serde::Deserialize;
use serde::Serialize;
use tokio::sync::Notify;

use crate::codec;
use crate::group::model::FrozenModel;
use crate::group::model::Model;
use crate::group::model::ModelError;
use crate::group::model::ModelFactory;
use crate::group::model::ModuleRef;
use crate::group::model::Refusal;
use crate::membership::Change;
use crate::membership::ChangeKind;
use crate::membership::ChangeState;
use crate::module::Context;
use crate::module::Effects;
use crate::module::Fault;
use crate::module::Limits;
use crate::module::Outcome;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::snapshot::BaseId;
use crate::types::GroupId;
use crate::types::NodeId;

/// A module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleEntry {
    /// SHA-256 of the file.
    pub digest: [u8; 32],
    /// The file's size, bytes.
    pub size: u64,
    /// When it was added, Unix milliseconds.
    pub created_ms: u64,
    /// Its optional exports.
    pub exports: Vec<String>,
}

impl ModuleEntry {
    /// Whether a group of this module, called `name`, can listen for clients, if it is to.
    pub fn check_listens(&self, name: &str, listen: &[String]) -> ServiceResult<()> {
        if listen.is_empty() || self.exports.iter().any(|export| export == "adapter") {
            return Ok(());
        }
        let detail = format!("module {name} has no adapter (adapter_open, adapter_step) to listen with");
        Err(ServiceError::new(ErrorCode::BadRequest, detail))
    }
}

/// A module that a group has run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleUse {
    /// Its name then.
    pub name: String,
    /// Its digest.
    pub digest: [u8; 32],
    /// The entry of the group's log from which on; 0: from its beginning.
    pub index: u64,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEntry {
    /// Its id.
    pub id: GroupId,
    /// The name of the module that it runs.
    pub module: String,
    /// That module's digest.
    pub digest: [u8; 32],
    /// All that it ran, oldest first; that one is the last.
    pub modules: Vec<ModuleUse>,
    /// The params of `init`, JSON.
    pub params: Vec<u8>,
    /// What its module may use.
    pub limits: Limits,
    /// Mixed into every entry's seed.
    pub seed: u64,
    /// When it was created, Unix milliseconds.
    pub created_ms: u64,
    /// Its first members: id to peer address. Empty once [`Self::hosts`] was changed: that takes a leader, and where there
    /// was one nobody begins anew.
    pub members: BTreeMap<NodeId, String>,
    /// The nodes that hold a replica, or are about to.
    pub hosts: BTreeSet<NodeId>,
    /// How many replicas it is to have; `None`: one on every node.
    pub replicas: Option<u64>,
    /// The addresses its adapter listens on, on every node that does not say otherwise.
    pub listen: Vec<String>,
    /// What the adapter is told as `listen`, JSON.
    pub listen_params: Vec<u8>,
    /// The file that its first members begin from, which a majority of them holds; `None`: from what the module's `init` makes.
    pub base: Option<BaseId>,
}

/// A change of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on its way to the log or from it")]
pub enum CatalogCommand {
    /// Names a module whose bytes a majority holds.
    AddModule {
        /// Its name.
        name: String,
        /// SHA-256 of the file.
        digest: [u8; 32],
        /// The file's size, bytes.
        size: u64,
        /// Its optional exports.
        exports: Vec<String>,
    },
    /// Forgets a module.
    RemoveModule {
        /// Its name.
        name: String,
    },
    /// Creates a group.
    CreateGroup {
        /// Its name.
        name: String,
        /// The module's name.
        module: String,
        /// The digest the params were tried on.
        digest: [u8; 32],
        /// The params of `init`, JSON.
        params: Vec<u8>,
        /// What its module may use.
        limits: Limits,
        /// Its first members: id to peer address.
        members: BTreeMap<NodeId, String>,
        /// How many replicas it is to have; `None`: one on every node.
        replicas: Option<u64>,
        /// The addresses its adapter listens on.
        listen: Vec<String>,
        /// What the adapter is told as `listen`, JSON.
        listen_params: Vec<u8>,
        /// The file that its members begin from.
        base: Option<BaseId>,
    },
    /// Removes a group and its state.
    RemoveGroup {
        /// Its name.
        name: String,
    },
    /// A node is to hold a replica of a group, or no longer. Refused when the change that wants it runs no more: a leader
    /// that was replaced may still be at work on it.
    Place {
        /// The change's number.
        change: u64,
        /// The group's id.
        group: GroupId,
        /// The node.
        node: NodeId,
        /// Whether it holds one.
        hosts: bool,
    },
    /// Begins a change of membership; answers its number.
    BeginChange(ChangeKind),
    /// A running change came to this. Without effect when it runs no more.
    NoteChange {
        /// Its number.
        id: u64,
        /// How far it is.
        state: ChangeState,
    },
    /// The cluster lost its majority, and this node is a new one on its own (`statehouse recover`): it holds the groups that are
    /// not lost, and nobody else holds anything.
    Recover {
        /// The node.
        node: NodeId,
        /// The groups of which it has no replica.
        lost: BTreeSet<GroupId>,
    },
    /// What became of a change of module, as the group's log says.
    NoteModule {
        /// The change's number.
        id: u64,
        /// The entry from which on the group runs the module, or why it does not.
        came: ServiceResult<u64>,
    },
    /// How much a node is to lead, whatever it was started with.
    SetPriority {
        /// The node.
        node: NodeId,
        /// As `--election-priority`; `None`: what it was started with counts again.
        priority: Option<u8>,
    },
}

/// The catalog's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// Modules by name.
    pub modules: BTreeMap<String, ModuleEntry>,
    /// Groups by name.
    pub groups: BTreeMap<String, GroupEntry>,
    /// The next group's id.
    pub next_group: GroupId,
    /// Changes of membership by number: those that run, and the last that ended.
    pub changes: BTreeMap<u64, Change>,
    /// The next change's number.
    pub next_change: u64,
    /// How much nodes are to lead, of those of which it was said while they ran. It counts before what they were started with.
    pub priorities: BTreeMap<NodeId, u8>,
}

/// Changes that have ended and can still be asked for, beside those of [`Catalog::failed_modules`].
const CHANGES_KEPT: usize = 100;
/// Modules that a group may have run, or failed to. All their files are kept as long as the group is there: a replica that begins with an old
/// snapshot, or with none, goes through them.
const MODULES_MAX: usize = 1000;

impl Default for Catalog {
    fn default() -> Self {
        Self {
            modules: BTreeMap::new(),
            groups: BTreeMap::new(),
            next_group: crate::types::CATALOG + 1,
            changes: BTreeMap::new(),
            next_change: 1,
            priorities: BTreeMap::new(),
        }
    }
}

/// What the node sees of its replica of the catalog.
#[derive(Debug, Default)]
pub struct View {
    state: Mutex<Arc<Catalog>>,
    /// Told when it changed.
    pub changed: Notify,
}

impl View {
    /// The catalog as applied here.
    pub fn get(&self) -> Arc<Catalog> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, catalog: Catalog) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        self.changed.notify_one();
    }
}

/// Makes the catalog's model.
pub struct CatalogFactory(pub Arc<View>);

impl ModelFactory for CatalogFactory {
    fn first(&self) -> ModuleRef {
        ModuleRef { digest: [0; 32], name: String::new() }
    }

    fn create(&self) -> Result<(Box<dyn Model>, Effects), ModelError> {
        Ok((Box::new(Live { catalog: Catalog::default(), view: self.0.clone() }), Effects::default()))
    }

    fn restore(&self, module: [u8; 32], payload: &mut (dyn Read + Send)) -> Result<Box<dyn Model>, ModelError> {
        if module != self.first().digest {
            return Err(ModelError(format!("it is of module {}, not of the catalog", hex::encode(module))));
        }
        let mut bytes = Vec::new();
        payload.read_to_end(&mut bytes).map_err(|error| ModelError(error.to_string()))?;
        let catalog: Catalog = codec::decode(&bytes).map_err(|error| ModelError(error.to_string()))?;
        self.0.set(catalog.clone());
        Ok(Box::new(Live { catalog, view: self.0.clone() }))
    }

    fn succeed(&self, _: [u8; 32], _: &Context, old: Box<dyn FrozenModel>) -> Result<Box<dyn Model>, Refusal> {
        old.export(&mut std::io::sink())?;
        Err(Refusal::Fault(Fault { what: "the catalog has no module".to_string() }))
    }
}

struct Live {
    catalog: Catalog,
    view: Arc<View>,
}

struct Frozen(Catalog);

impl FrozenModel for Frozen {
    fn write(self: Box<Self>, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
        out.write_all(&codec::encode(&self.0)?)
    }

    fn export(self: Box<Self>, _: &mut (dyn Write + Send)) -> Result<(), Refusal> {
        Err(Refusal::Outcome(Outcome::Rejected("the catalog is no module's".to_string())))
    }
}

/// What a catalog command answers, as bytes of [`codec`]: the number of the group or change.
pub type CatalogAnswer = ServiceResult<GroupId>;

impl Model for Live {
    fn apply(&mut self, context: &Context, command: &[u8], effects: &mut Effects) -> Result<Outcome, Fault> {
        effects.clear();
        let answer: CatalogAnswer = match codec::decode(command) {
            Ok(command) => self.catalog.apply(context, command),
            Err(error) => Err(ServiceError::new(ErrorCode::BadRequest, format!("no catalog command: {error}"))),
        };
        if answer.is_ok() {
            self.view.set(self.catalog.clone());
        }
        match codec::encode(&answer) {
            Ok(bytes) => Ok(Outcome::Reply(bytes)),
            Err(error) => Ok(Outcome::Rejected(error.to_string())),
        }
    }

    fn timer(&mut self, _: &Context, _: u64, effects: &mut Effects) -> Result<Outcome, Fault> {
        effects.clear();
        Ok(Outcome::Reply(Vec::new()))
    }

    fn session_end(&mut self, _: &Context, effects: &mut Effects) -> Result<Outcome, Fault> {
        effects.clear();
        Ok(Outcome::Reply(Vec::new()))
    }

    fn query(&mut self, _: &Context, _: &[u8]) -> Result<Outcome, Fault> {
        Ok(Outcome::Rejected("the catalog is read through the API".to_string()))
    }

    fn freeze(&mut self) -> Result<Box<dyn FrozenModel>, Fault> {
        Ok(Box::new(Frozen(self.catalog.clone())))
    }
}

impl Catalog {
    /// The groups that run a module, or are about to.
    pub fn users(&self, module: &str) -> Vec<String> {
        let coming = |name: &str| {
            self.changes.values().filter(|change| change.is_running()).any(|change| {
                matches!(&change.kind, ChangeKind::GroupModule { group, module: to, .. } if group == name && to == module)
            })
        };
        let users = self.groups.iter().filter(|(name, group)| group.module == module || coming(name));
        users.map(|(name, _)| name.clone()).collect()
    }

    /// Whether no other node holds anything, and nothing is under way.
    pub fn is_alone(&self, node: NodeId) -> bool {
        let alone = BTreeSet::from([node]);
        self.groups.values().all(|entry| entry.hosts == alone) && !self.changes.values().any(Change::is_running)
    }

    /// How many replicas a node holds.
    pub fn replicas_on(&self, node: NodeId) -> usize {
        self.groups.values().filter(|group| group.hosts.contains(&node)).count()
    }

    /// Applies what an entry of the catalog's log carries, without anyone being told: for who reads a log from outside.
    pub fn replay(&mut self, context: &Context, command: &[u8]) {
        if let Ok(command) = codec::decode(command) {
            // A refusal changed nothing when it was applied, either.
            let _refused = self.apply(context, command);
        }
    }

    fn apply(&mut self, context: &Context, command: CatalogCommand) -> CatalogAnswer {
        match command {
            CatalogCommand::AddModule { name, digest, size, exports } => {
                if let Some(known) = self.modules.get(&name) {
                    // The same file again is a retry, not a conflict.
                    return if known.digest == digest { Ok(0) } else { Err(other_module(&name, known)) };
                }
                self.modules.insert(name, ModuleEntry { digest, size, created_ms: context.time_ms, exports });
                Ok(0)
            }
            CatalogCommand::RemoveModule { name } => {
                let users = self.users(&name);
                if !users.is_empty() {
                    let detail = format!("module {name} is run by {}", users.join(", "));
                    return Err(ServiceError::new(ErrorCode::ModuleInUse, detail));
                }
                match self.modules.remove(&name) {
                    Some(_) => Ok(0),
                    None => Err(no_module(&name)),
                }
            }
            CatalogCommand::CreateGroup {
                name,
                module,
                digest,
                params,
                limits,
                members,
                replicas,
                listen,
                listen_params,
                base,
            } => {
                let Some(entry) = self.modules.get(&module) else { return Err(no_module(&module)) };
                if entry.digest != digest {
                    return Err(other_module(&module, entry));
                }
                if let Some(known) = self.groups.get(&name) {
                    let compared = [
                        (known.digest == digest, "module"),
                        (known.replicas == replicas, "replicas"),
                        (known.params == params, "params"),
                        (known.listen == listen, "listen"),
                        (known.listen_params == listen_params, "listen_params"),
                        (known.base == base, "snapshot that it begins from"),
                    ];
                    let other: Vec<&str> = compared.iter().filter(|(same, _)| !same).map(|(_, what)| *what).collect();
                    if other.is_empty() {
                        return Ok(known.id);
                    }
                    let detail = format!(
                        "group {name} exists, with module {} and its own state; what differs from what is asked for: {}",
                        known.module,
                        other.join(", ")
                    );
                    return Err(ServiceError::new(ErrorCode::AlreadyExists, detail));
                }
                let id = self.next_group;
                self.next_group += 1;
                let (seed, created_ms) = (context.seed, context.time_ms);
                let hosts = members.keys().copied().collect();
                let first = ModuleUse { name: module.clone(), digest, index: 0, since_ms: created_ms };
                let entry = GroupEntry {
                    id,
                    module,
                    digest,
                    modules: vec![first],
                    params,
                    limits,
                    seed,
                    created_ms,
                    members,
                    hosts,
                    replicas,
                    listen,
                    listen_params,
                    base,
                };
                self.groups.insert(name, entry);
                Ok(id)
            }
            CatalogCommand::RemoveGroup { name } => match self.groups.remove(&name) {
                Some(group) => Ok(group.id),
                None => Err(no_group(&name)),
            },
            CatalogCommand::Place { change, group, node, hosts } => {
                if !self.changes.get(&change).is_some_and(Change::is_running) {
                    return Err(no_change(change));
                }
                let Some(entry) = self.groups.values_mut().find(|entry| entry.id == group) else {
                    return Err(no_group(&group.to_string()));
                };
                let changed = if hosts { entry.hosts.insert(node) } else { entry.hosts.remove(&node) };
                if changed {
                    entry.members.clear();
                }
                Ok(group)
            }
            CatalogCommand::BeginChange(kind) => self.begin_change(context, kind),
            CatalogCommand::NoteChange { id, state } => {
                let running = self.changes.get_mut(&id).filter(|change| change.is_running());
                let Some(change) = running else { return Err(no_change(id)) };
                // The entry may be in the group's log already, or come there late: only that log can say that it did not.
                if let (ChangeKind::GroupModule { group, .. }, ChangeState::Failed(_)) = (&change.kind, &state)
                    && self.groups.contains_key(group)
                {
                    let detail =
                        format!("change {id} cannot be taken back: it ends when the group's log says what came of it");
                    return Err(ServiceError::new(ErrorCode::ChangeInProgress, detail));
                }
                change.state = state;
                change.changed_ms = context.time_ms;
                if let (ChangeKind::NodeRemove { node }, ChangeState::Done) = (&change.kind, &change.state) {
                    // Who comes back under its id begins as it is started.
                    self.priorities.remove(node);
                }
                Ok(id)
            }
            CatalogCommand::NoteModule { id, came } => {
                let running = self.changes.get_mut(&id).filter(|change| change.is_running());
                let Some(change) = running else { return Err(no_change(id)) };
                let ChangeKind::GroupModule { group, module, digest } = &change.kind else { return Err(no_change(id)) };
                change.changed_ms = context.time_ms;
                if let (Ok(index), Some(entry)) = (&came, self.groups.get_mut(group)) {
                    let (name, digest) = (module.clone(), *digest);
                    (entry.module, entry.digest) = (name.clone(), digest);
                    entry.modules.push(ModuleUse { name, digest, index: *index, since_ms: context.time_ms });
                }
                change.state = came.map_or_else(ChangeState::Failed, |_| ChangeState::Done);
                Ok(id)
            }
            CatalogCommand::Recover { node, lost } => {
                self.groups.retain(|_, entry| !lost.contains(&entry.id));
                for entry in self.groups.values_mut() {
                    entry.hosts = BTreeSet::from([node]);
                    entry.members.clear();
                }
                self.priorities.clear();
                let given_up = ServiceError::new(
                    ErrorCode::Cancelled,
                    format!("the cluster lost its majority, and node {node} was made a new one"),
                );
                let groups = &self.groups;
                // One of a module goes on in the new cluster: the group's log, which is there still, may have it.
                let goes_on = |kind: &ChangeKind| matches!(kind, ChangeKind::GroupModule { group, .. } if groups.contains_key(group));
                let ended = |change: &&mut Change| change.is_running() && !goes_on(&change.kind);
                for change in self.changes.values_mut().filter(ended) {
                    change.state = ChangeState::Failed(given_up.clone());
                    change.changed_ms = context.time_ms;
                }
                Ok(0)
            }
            CatalogCommand::SetPriority { node, priority } => {
                match priority {
                    Some(priority) => self.priorities.insert(node, priority),
                    None => self.priorities.remove(&node),
                };
                Ok(0)
            }
        }
    }

    fn begin_change(&mut self, context: &Context, kind: ChangeKind) -> CatalogAnswer {
        let in_the_way = self.changes.values().find(|change| change.is_running() && change.kind.overlaps(&kind));
        if let Some(other) = in_the_way {
            let detail = format!("change {} is running: {}", other.id, other.kind);
            return Err(ServiceError::new(ErrorCode::ChangeInProgress, detail));
        }
        if let ChangeKind::GroupModule { group, module, digest } = &kind {
            self.check_module_change(group, module, Some(*digest))?;
        }
        let kept: BTreeSet<u64> = self.failed_modules().into_values().collect();
        let ended = self.changes.values().filter(|change| !change.is_running() && !kept.contains(&change.id));
        let ended: Vec<u64> = ended.map(|one| one.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(CHANGES_KEPT - 1)) {
            self.changes.remove(id);
        }
        let id = self.next_change;
        self.next_change += 1;
        let state = ChangeState::Running("it begins".to_owned());
        let (began_ms, changed_ms) = (context.time_ms, context.time_ms);
        self.changes.insert(id, Change { id, kind, state, began_ms, changed_ms });
        Ok(id)
    }

    /// Whether a group may go over to a module, as far as the catalog knows; what is known of the module.
    pub fn check_module_change(
        &self,
        group: &str,
        module: &str,
        digest: Option<[u8; 32]>,
    ) -> ServiceResult<&ModuleEntry> {
        let entry = self.groups.get(group).ok_or_else(|| no_group(group))?;
        let known = self.modules.get(module).ok_or_else(|| no_module(module))?;
        if digest.is_some_and(|digest| known.digest != digest) {
            return Err(other_module(module, known));
        }
        known.check_listens(module, &entry.listen)?;
        if entry.digest == known.digest {
            let detail = format!("group {group} runs module {} already, which is the same file", entry.module);
            return Err(ServiceError::new(ErrorCode::AlreadyExists, detail));
        }
        let failed = self.failed_modules().keys().filter(|(name, _)| *name == group).count();
        if entry.modules.len() + failed >= MODULES_MAX {
            let detail = format!(
                "group {group} has run {MODULES_MAX} modules, or failed to, and keeps them all: save it (`snapshot save`) and restore it as a new group"
            );
            return Err(ServiceError::new(ErrorCode::TooLarge, detail));
        }
        Ok(known)
    }

    /// The modules that a group was to run and does not, because they trapped or refused at their entry; for each the last change that
    /// came to that. The entry is in the group's log, and who goes through it must have the module, to fail as the others did. The
    /// catalog keeps the changes as long as the group is there: nothing else says which modules those are.
    fn failed_modules(&self) -> BTreeMap<(&str, [u8; 32]), u64> {
        let failed = |change: &Change| matches!(change.state, ChangeState::Failed(_));
        let mut found = BTreeMap::new();
        for change in self.changes.values().filter(|change| failed(change)) {
            let ChangeKind::GroupModule { group, digest, .. } = &change.kind else { continue };
            let Some(entry) = self.groups.get(group) else { continue };
            // Not one of an earlier group of this name, nor of a module that is kept already.
            if change.began_ms >= entry.created_ms && entry.modules.iter().all(|used| used.digest != *digest) {
                found.insert((group.as_str(), *digest), change.id);
            }
        }
        found
    }

    /// The digests of all modules whose files a node must have: those that have a name, and those that a group ran, or failed to,
    /// since a replica that begins with an old snapshot, or with none, goes through them.
    pub fn modules_needed(&self) -> BTreeSet<[u8; 32]> {
        let named = self.modules.values().map(|module| module.digest);
        let ran = self.groups.values().flat_map(|group| group.modules.iter().map(|module| module.digest));
        let coming =
            self.changes.values().filter(|change| change.is_running()).filter_map(|change| match &change.kind {
                ChangeKind::GroupModule { digest, .. } => Some(*digest),
                _ => None,
            });
        let failed = self.failed_modules().into_keys().map(|(_, digest)| digest);
        named.chain(ran).chain(coming).chain(failed).collect()
    }
}

/// The error for a change that is not there, or has ended.
pub fn no_change(id: u64) -> ServiceError {
    ServiceError::new(ErrorCode::ChangeNotFound, format!("no change {id} is running"))
}

/// The error for a module that is not there.
pub fn no_module(name: &str) -> ServiceError {
    ServiceError::new(ErrorCode::ModuleNotFound, format!("no module {name:?}"))
}

/// The error for a group that is not there.
pub fn no_group(name: &str) -> ServiceError {
    ServiceError::new(ErrorCode::GroupNotFound, format!("no group {name:?}"))
}

fn other_module(name: &str, known: &ModuleEntry) -> ServiceError {
    let detail = format!("module {name} exists, with digest {}", hex::encode(known.digest));
    ServiceError::new(ErrorCode::AlreadyExists, detail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    const CONTEXT: Context = Context { index: 1, time_ms: 1000, seed: 0, session: 0 };

    fn with_group() -> Catalog {
        let mut catalog = Catalog::default();
        for (name, digest) in [("one", 1), ("two", 2), ("three", 3)] {
            let (digest, exports) = ([digest; 32], Vec::new());
            let add = CatalogCommand::AddModule { name: name.to_owned(), digest, size: 1, exports };
            catalog.apply(&CONTEXT, add).unwrap();
        }
        let create = CatalogCommand::CreateGroup {
            name: "g".to_owned(),
            module: "one".to_owned(),
            digest: [1; 32],
            params: Vec::new(),
            limits: Limits::default(),
            members: BTreeMap::new(),
            replicas: None,
            listen: Vec::new(),
            listen_params: Vec::new(),
            base: None,
        };
        catalog.apply(&CONTEXT, create).unwrap();
        catalog
    }

    /// Whoever asked for a group that was there, with another address to listen at, was told that there is one of this module.
    #[test]
    fn who_asks_for_a_group_that_is_there_is_told_what_of_it_is_other() {
        let mut catalog = with_group();
        let mut create = |params: &[u8], listen: &[&str]| {
            let create = CatalogCommand::CreateGroup {
                name: "g".to_owned(),
                module: "one".to_owned(),
                digest: [1; 32],
                params: params.to_vec(),
                limits: Limits::default(),
                members: BTreeMap::new(),
                replicas: None,
                listen: listen.iter().map(|address| (*address).to_owned()).collect(),
                listen_params: Vec::new(),
                base: None,
            };
            catalog.apply(&CONTEXT, create)
        };
        create(b"", &[]).unwrap();
        let refused = create(b"", &["127.0.0.1:1"]).unwrap_err();
        assert!(refused.detail.ends_with("asked for: listen"), "{refused}");
        let refused = create(b"{}", &["127.0.0.1:1"]).unwrap_err();
        assert!(refused.detail.ends_with("asked for: params, listen"), "{refused}");
    }

    fn begin(catalog: &mut Catalog, module: &str, digest: u8) -> CatalogAnswer {
        let kind = ChangeKind::GroupModule { group: "g".to_owned(), module: module.to_owned(), digest: [digest; 32] };
        catalog.apply(&CONTEXT, CatalogCommand::BeginChange(kind))
    }

    fn remove(catalog: &mut Catalog, module: &str) -> CatalogAnswer {
        catalog.apply(&CONTEXT, CatalogCommand::RemoveModule { name: module.to_owned() })
    }

    /// A module that trapped at its entry was run by no group, so its file went once its name was removed. The entry stayed in the log,
    /// and whoever came to it again waited for the module for ever.
    #[test]
    fn the_file_of_a_module_that_failed_at_its_entry_stays_as_long_as_the_group() {
        let mut catalog = with_group();
        let fail = |catalog: &mut Catalog| {
            let id = begin(catalog, "two", 2).unwrap();
            let why = ServiceError::new(ErrorCode::Trapped, "no");
            catalog.apply(&CONTEXT, CatalogCommand::NoteModule { id, came: Err(why) }).unwrap();
            id
        };
        let first = fail(&mut catalog);
        let second = fail(&mut catalog);
        remove(&mut catalog, "two").unwrap();
        assert!(catalog.modules_needed().contains(&[2; 32]));
        // Many changes later it is still known; of two that failed alike one is enough.
        for _ in 0..2 * CHANGES_KEPT {
            let kind = ChangeKind::NodeDemote { node: 1 };
            let id = catalog.apply(&CONTEXT, CatalogCommand::BeginChange(kind)).unwrap();
            catalog.apply(&CONTEXT, CatalogCommand::NoteChange { id, state: ChangeState::Done }).unwrap();
        }
        assert_eq!((catalog.changes.contains_key(&first), catalog.changes.contains_key(&second)), (false, true));
        assert_eq!(catalog.changes.len(), CHANGES_KEPT + 1);
        assert!(catalog.modules_needed().contains(&[2; 32]));
        // A later group of the name never came to that entry.
        let again = catalog.groups["g"].clone();
        catalog.apply(&CONTEXT, CatalogCommand::RemoveGroup { name: "g".to_owned() }).unwrap();
        assert!(!catalog.modules_needed().contains(&[2; 32]));
        catalog.groups.insert("g".to_owned(), GroupEntry { created_ms: CONTEXT.time_ms + 1, ..again });
        assert!(!catalog.modules_needed().contains(&[2; 32]));
    }

    /// Its entry may be on its way to the group's log, or in it: who was told that nothing comes of it could remove the module.
    #[test]
    fn a_change_of_module_ends_only_by_what_the_groups_log_says() {
        let mut catalog = with_group();
        let id = begin(&mut catalog, "two", 2).unwrap();
        let cancel = || CatalogCommand::NoteChange {
            id,
            state: ChangeState::Failed(ServiceError::new(ErrorCode::Cancelled, "it was cancelled")),
        };
        assert_eq!(catalog.apply(&CONTEXT, cancel()).unwrap_err().code, ErrorCode::ChangeInProgress);
        assert_eq!(begin(&mut catalog, "three", 3).unwrap_err().code, ErrorCode::ChangeInProgress);
        assert_eq!(remove(&mut catalog, "two").unwrap_err().code, ErrorCode::ModuleInUse);
        assert_eq!(catalog.groups["g"].module, "one", "not yet");
        catalog.apply(&CONTEXT, CatalogCommand::NoteModule { id, came: Ok(77) }).unwrap();
        assert_eq!(catalog.changes[&id].state, ChangeState::Done);
        assert_eq!((&*catalog.groups["g"].module, catalog.groups["g"].digest), ("two", [2; 32]));
        assert_eq!(catalog.groups["g"].modules.iter().map(|used| used.index).collect::<Vec<_>>(), [0, 77]);
        let again = catalog.apply(&CONTEXT, CatalogCommand::NoteModule { id, came: Ok(78) });
        assert_eq!(again.unwrap_err().code, ErrorCode::ChangeNotFound, "two leaders of the catalog wrote it down");
        // The first one's name can go, its file cannot.
        remove(&mut catalog, "one").unwrap();
        assert!(catalog.modules_needed().contains(&[1; 32]));

        let id = begin(&mut catalog, "three", 3).unwrap();
        let why = ServiceError::new(ErrorCode::Trapped, "no");
        catalog.apply(&CONTEXT, CatalogCommand::NoteModule { id, came: Err(why.clone()) }).unwrap();
        assert_eq!(
            (catalog.changes[&id].state.clone(), &*catalog.groups["g"].module),
            (ChangeState::Failed(why), "two")
        );
        remove(&mut catalog, "three").unwrap();

        let id = begin(&mut catalog, "three", 3).unwrap_err();
        assert_eq!(id.code, ErrorCode::ModuleNotFound);
        assert_eq!(begin(&mut catalog, "two", 2).unwrap_err().code, ErrorCode::AlreadyExists);
        let digest = [1; 32];
        let add = CatalogCommand::AddModule { name: "one".to_owned(), digest, size: 1, exports: Vec::new() };
        catalog.apply(&CONTEXT, add).unwrap();
        let id = begin(&mut catalog, "one", 1).unwrap();
        catalog.apply(&CONTEXT, CatalogCommand::Recover { node: 1, lost: BTreeSet::new() }).unwrap();
        assert!(catalog.changes[&id].is_running(), "the log that may have it is there still");
        // A group that is gone has no log that could say anything.
        catalog.apply(&CONTEXT, CatalogCommand::RemoveGroup { name: "g".to_owned() }).unwrap();
        let gone = ChangeState::Failed(no_group("g"));
        catalog.apply(&CONTEXT, CatalogCommand::NoteChange { id, state: gone }).unwrap();
        assert!(!catalog.changes[&id].is_running());
        remove(&mut catalog, "one").unwrap();
    }
}
