//! A node of a cluster that lost its majority for good becomes a cluster of its own.
//!
//! Invariants:
//! - Everything is decided from what is on disk before anything is written: [`Plan::make`] only reads.
//! - From the first write on, the directory belongs to the new cluster, and no node starts on it until the last one: `identity.json`
//!   names the new cluster and says `recovering`. So a crash leaves the old cluster's node, or one that must be recovered again;
//!   never one that talks to its old peers with votes and members that they know nothing of.
//! - Votes and memberships of all groups, and what the catalog says of them, change in one batch of the log.
//! - Making a plan again finds what was done, and adds only what is missing.
//!
//! Each group gets an entry of a term that is higher than any it has seen, whose membership is this node alone; so when it
//! elects itself, it commits that entry and all before it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use openraft::BasicNode;
use openraft::Membership;
use openraft::vote::RaftLeaderId;

use super::Directory;
use super::NoDirectory;
use super::OfflineCatalog;
use crate::catalog::CatalogCommand;
use crate::catalog::GroupEntry;
use crate::catalog::files;
use crate::codec;
use crate::disk::Disk;
use crate::log::Addition;
use crate::log::Inspection;
use crate::log::LogError;
use crate::log::LogOptions;
use crate::log::NodeLog;
use crate::log::log_id;
use crate::node::identity;
use crate::node::identity::Identity;
use crate::node::removal;
use crate::node::repair;
use crate::node::settle;
use crate::platform::RealPlatform;
use crate::platform::random_u64;
use crate::types::CATALOG;
use crate::types::Entry;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::LeaderId;
use crate::types::LogId;
use crate::types::NodeId;
use crate::types::Origin;
use crate::types::Payload;
use crate::types::Proposal;
use crate::types::Vote;

/// Why a directory cannot be made a cluster.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Something is missing that nothing can replace.
    #[error("{what}")]
    Refused {
        /// What.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// It is none.
    #[error(transparent)]
    NoDirectory(#[from] NoDirectory),
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A file cannot be read or written.
    #[error("cannot {action} in {}: {source}", path.display())]
    Io {
        /// What was tried, a verb and its object.
        action: &'static str,
        /// The data directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RecoverError {
    /// What to do about it, one sentence.
    pub fn remedy(&self) -> String {
        match self {
            Self::Refused { remedy, .. } => remedy.clone(),
            Self::NoDirectory(_) => "see that the directory is there and can be read".to_owned(),
            Self::Log(_) | Self::Io { .. } => {
                "put right what the message names and run the same again: it goes on where it stopped".to_owned()
            }
        }
    }
}

/// The membership as a group's log or snapshot has it.
type Members = Membership<NodeId, BasicNode>;

/// A group that goes on.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// Its last entry here.
    pub last: LogId,
    /// Up to here this node knew that entries were committed.
    pub committed: u64,
    /// Its members so far, by the last membership here.
    pub members: BTreeMap<NodeId, String>,
    /// The voters among them.
    pub voters: BTreeSet<NodeId>,
    /// The new membership's entry; `None` when this node is its only member already.
    alone: Option<LogId>,
    /// What its newest snapshot covers.
    covered: Option<LogId>,
}

/// A group of which this node has no replica that could go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// The module it runs.
    pub module: String,
    /// The nodes that held it.
    pub hosts: BTreeSet<NodeId>,
    /// Why it cannot go on, when there is something of it here.
    pub unreadable: Option<String>,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory's owner.
    pub identity: Identity,
    /// The address other nodes reach it at.
    pub address: String,
    /// The other nodes of the old cluster.
    pub others: BTreeMap<NodeId, String>,
    /// The groups that go on, the catalog first.
    pub kept: Vec<Kept>,
    /// The groups that do not.
    pub lost: Vec<Lost>,
    /// What else speaks against this node as a survivor, one sentence each.
    pub doubts: Vec<String>,
    /// The entry that tells the catalog, with its place; `None` when it knows.
    told: Option<Entry>,
}

/// A group's replica as it is on disk.
struct Replica {
    last: LogId,
    committed: u64,
    membership: Members,
    covered: Option<LogId>,
    /// Higher than any term it has seen.
    next_term: u64,
}

fn refused<T>(what: impl Into<String>, remedy: impl Into<String>) -> Result<T, RecoverError> {
    Err(RecoverError::Refused { what: what.into(), remedy: remedy.into() })
}

impl Plan {
    /// Reads the directory. `address` overrides the one that the catalog knows of this node; `time_ms` is now, Unix
    /// milliseconds.
    pub fn make(directory: &Directory, address: Option<String>, time_ms: u64) -> Result<Self, RecoverError> {
        let Some(identity) = directory.identity.clone() else {
            return refused(
                format!("{} has no readable identity.json: nothing says whose it is", directory.path.display()),
                "restore identity.json from a copy",
            );
        };
        if identity.format != identity::FORMAT {
            return refused(
                format!(
                    "{} has format {}, this program knows {}",
                    directory.path.display(),
                    identity.format,
                    identity::FORMAT
                ),
                "use the program that wrote it",
            );
        }
        let log = directory.inspect_log()?;
        if let Some(error) = log.damage.first() {
            return refused(
                format!("the log is damaged: {error}"),
                "take another survivor, or restore the file from a copy; `statehouse log inspect` tells all that is damaged",
            );
        }
        let known = OfflineCatalog::read(directory, &log);
        if let Some(doubt) = &known.doubt {
            return refused(
                format!("the catalog cannot be read: {doubt}"),
                "take another survivor, or restore the file from a copy",
            );
        }
        let node = identity.node;
        let catalog = match replica(directory, &log, CATALOG)? {
            Ok(Some(catalog)) => catalog,
            Ok(None) => {
                return refused(
                    format!("{} holds no catalog: the node never heard from its cluster", directory.path.display()),
                    "take another survivor",
                );
            }
            Err(why) => return refused(format!("the catalog cannot go on: {why}"), "take another survivor"),
        };
        let nodes = addresses(&catalog.membership);
        let Some(address) = address.or_else(|| nodes.get(&node).cloned()) else {
            return refused(
                format!("the catalog does not know the address of node {node}"),
                "give the one that other nodes will reach it at: --advertise-peer HOST:PORT",
            );
        };
        let mut plan = Self {
            doubts: doubts(directory, &catalog, node)?,
            others: nodes.into_iter().filter(|(id, _)| *id != node).collect(),
            kept: Vec::new(),
            lost: Vec::new(),
            told: None,
            identity,
            address,
        };
        let term = catalog.next_term;
        plan.keep(CATALOG, crate::types::CATALOG_NAME, catalog);
        for (name, entry) in &known.catalog.groups {
            let lost = |unreadable| Lost {
                id: entry.id,
                name: name.clone(),
                module: entry.module.clone(),
                hosts: entry.hosts.clone(),
                unreadable,
            };
            match replica(directory, &log, entry.id)? {
                Ok(Some(replica)) => {
                    plan.keep(entry.id, name, replica);
                    plan.doubts.extend(module_doubt(directory, name, entry)?);
                }
                Ok(None) => plan.lost.push(lost(None)),
                Err(why) => plan.lost.push(lost(Some(why))),
            }
        }
        if !plan.lost.is_empty() || !known.catalog.is_alone(node) {
            plan.tell_catalog(term, time_ms)?;
        }
        Ok(plan)
    }

    fn keep(&mut self, id: GroupId, name: &str, replica: Replica) {
        let node = self.identity.node;
        let wanted = alone(node, &self.address);
        let next = replica.last.index.saturating_add(1);
        self.kept.push(Kept {
            id,
            name: name.to_owned(),
            last: replica.last,
            committed: replica.committed,
            members: addresses(&replica.membership),
            voters: replica.membership.voter_ids().collect(),
            alone: (replica.membership != wanted).then(|| log_id(replica.next_term, next)),
            covered: replica.covered,
        });
    }

    fn tell_catalog(&mut self, term: u64, time_ms: u64) -> Result<(), RecoverError> {
        let lost = self.lost.iter().map(|lost| lost.id).collect();
        let command = CatalogCommand::Recover { node: self.identity.node, lost };
        let payload = match codec::encode(&command) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => return refused(format!("the catalog's command: {error}"), "report this"),
        };
        let Some(catalog) = self.kept.first() else { return Ok(()) };
        let index = catalog.alone.map_or(catalog.last.index, |alone| alone.index).saturating_add(1);
        let origin = Origin { node: self.identity.node, incarnation: 0, number: 0 };
        let kind = EntryKind::Command { session: None, payload };
        self.told =
            Some(Entry { log_id: log_id(term, index), payload: Payload::Normal(Proposal { time_ms, origin, kind }) });
        Ok(())
    }

    /// Entries that this node did not know to be committed, and that are from now on: of how many groups, how many.
    pub fn undecided(&self) -> (usize, u64) {
        let of = |kept: &&Kept| kept.last.index.saturating_sub(kept.committed);
        let some = self.kept.iter().filter(|kept| kept.alone.is_some() && of(kept) > 0);
        some.fold((0, 0), |(groups, entries), kept| (groups + 1, entries + of(&kept)))
    }

    /// Whether an earlier attempt was cut short.
    pub fn goes_on(&self) -> bool {
        self.identity.recovering
    }

    /// What is about to happen, for people.
    pub fn words(&self) -> String {
        let node = self.identity.node;
        let mut text = Vec::new();
        if self.goes_on() {
            text.push(format!("An earlier recovery of node {node} was cut short; this finishes it.\n"));
        }
        let others: Vec<String> = self.others.iter().map(|(id, address)| format!("{id} ({address})")).collect();
        text.push(format!(
            "Node {node} of cluster {} becomes a cluster of its own, with {} groups besides the catalog.",
            self.identity.cluster,
            self.kept.len().saturating_sub(1)
        ));
        text.push("\nWhat may be lost:".to_owned());
        text.push(format!(
            "- Commands that were acknowledged to clients and had not reached node {node}: nobody can tell from here whether there are any."
        ));
        let (groups, entries) = self.undecided();
        text.push(match entries {
            0 => "- Every entry here was known to be committed.".to_owned(),
            _ => format!(
                "- {entries} entries of {groups} groups are here and were not known to be committed. They become so: among them may be commands \
                 whose clients were told that they failed, or were told nothing."
            ),
        });
        for doubt in &self.doubts {
            text.push(format!("- {doubt}."));
        }
        for lost in &self.lost {
            let why = match &lost.unreadable {
                Some(why) => format!("cannot go on: {why} Its files are set aside in groups/{:x}.unreadable", lost.id),
                None => format!("has no replica here, it was on nodes {:?}", lost.hosts),
            };
            text.push(format!("- Group {} (module {}) is lost: it {why}.", lost.name, lost.module));
        }
        if !others.is_empty() {
            text.push(format!(
                "\nThe other nodes, {}, must never be started again on their old directories: two of them may make a majority, and \
                 would serve the old state beside this one. They are refused by this node. Empty their directories before they join it.",
                others.join(", ")
            ));
        }
        text.join("\n")
    }

    /// Does it. The caller holds the directory's lock, from before [`Self::make`]. `drawn` is the new cluster's id, unless an
    /// earlier attempt has drawn one; the id that the cluster has in the end.
    pub fn carry_out(&self, disk: &Arc<dyn Disk>, path: &Path, drawn: [u8; 16]) -> Result<String, RecoverError> {
        let io = |action| move |source| RecoverError::Io { action, path: path.to_owned(), source };
        let cluster = if self.goes_on() { self.identity.cluster.clone() } else { hex::encode(drawn) };
        let begun = Identity {
            cluster: cluster.clone(),
            joined: true,
            founders: BTreeMap::new(),
            recovering: true,
            ..self.identity.clone()
        };
        let finished = Identity { recovering: false, resumes: false, recovered: true, ..begun.clone() };
        if !self.goes_on() {
            identity::write(&**disk, path, &begun).map_err(io("write identity.json"))?;
        }
        // The node sweeps what the catalog does not name; what could not be read may still be of use to someone.
        for lost in self.lost.iter().filter(|lost| lost.unreadable.is_some()) {
            set_aside(&**disk, &path.join("groups").join(format!("{:x}", lost.id)))
                .map_err(io("set a group's files aside"))?;
        }
        let additions = self.additions();
        if !additions.is_empty() {
            // Where there is none yet, it is a new one.
            let options = LogOptions { salt: random_u64(&RealPlatform), ..LogOptions::default() };
            let (log, _) = NodeLog::open(disk.clone(), &path.join("log"), options, Arc::new(|_| {}))?;
            log.write_at_once(additions)?;
        }
        repair::unmark(&**disk, path).map_err(io("remove the mark of a repair"))?;
        settle::unmark(&**disk, path).map_err(io("remove the mark of an empty start"))?;
        removal::unmark(&**disk, path).map_err(io("remove the mark of a removal"))?;
        identity::write(&**disk, path, &finished).map_err(io("write identity.json"))?;
        Ok(cluster)
    }

    fn additions(&self) -> Vec<Addition> {
        let mut additions = Vec::new();
        for kept in &self.kept {
            let membership = kept
                .alone
                .map(|log_id| Entry { log_id, payload: Payload::Membership(alone(self.identity.node, &self.address)) });
            let told = self.told.clone().filter(|_| kept.id == CATALOG);
            let entries: Vec<Entry> = membership.into_iter().chain(told).collect();
            if let Some(last) = entries.last() {
                let leader_id = LeaderId::new(last.log_id.leader_id.term, self.identity.node);
                let vote = Vote { leader_id, committed: true };
                additions.push(Addition { group: kept.id, covered: kept.covered, vote, entries });
            }
        }
        additions
    }
}

/// Moves the files of a directory `NAME` to `NAME.unreadable`.
fn set_aside(disk: &dyn Disk, from: &Path) -> io::Result<()> {
    if !disk.exists(from)? {
        return Ok(());
    }
    let to = from.with_extension("unreadable");
    disk.create_dir_all(&to)?;
    for name in disk.list(from)? {
        disk.rename(&from.join(&name), &to.join(&name))?;
    }
    disk.sync_dir(&to)?;
    disk.sync_dir(from)
}

fn alone(node: NodeId, address: &str) -> Members {
    Membership::from(BTreeMap::from([(node, BasicNode { addr: address.to_owned() })]))
}

/// What speaks against the node as a survivor.
fn doubts(directory: &Directory, catalog: &Replica, node: NodeId) -> Result<Vec<String>, RecoverError> {
    let io = |source| RecoverError::Io { action: "look for marks", path: directory.path.clone(), source };
    let mut doubts = Vec::new();
    if settle::is_marked(&**directory.disk(), &directory.path).map_err(io)? {
        doubts.push(format!("node {node} began with an empty directory and had not caught up with its cluster yet"));
    }
    if removal::is_marked(&**directory.disk(), &directory.path).map_err(io)? {
        doubts.push(format!("node {node} was removed from its cluster: it has nothing of what was acknowledged since"));
    }
    if !catalog.membership.voter_ids().any(|voter| voter == node) {
        doubts.push(format!("node {node} was no voter of the catalog: what was acknowledged need not be here"));
    }
    Ok(doubts)
}

/// A majority of the old nodes had the module's file; this one need not be among them, and there is nobody left to ask.
fn module_doubt(directory: &Directory, group: &str, entry: &GroupEntry) -> Result<Option<String>, RecoverError> {
    let path = directory.path.join("modules").join(files::file_name(&entry.digest));
    let io = |source| RecoverError::Io { action: "look for a module's file", path: directory.path.clone(), source };
    let is_here = directory.disk().exists(&path).map_err(io)?;
    Ok((!is_here).then(|| {
        let module = &entry.module;
        format!(
            "the file of module {module} is not here: group {group} keeps its state, and is served when the same file has been \
             pushed again (`statehouse module push`)"
        )
    }))
}

/// The members of a group, by the last membership that can be read here.
pub fn members_of(directory: &Directory, log: &Inspection, group: GroupId) -> BTreeMap<NodeId, String> {
    let mut members = BTreeMap::new();
    for path in directory.snapshot_files(group).unwrap_or_default() {
        if let Some(head) = directory.survey(&path).head {
            members = addresses(head.membership.membership());
            break;
        }
    }
    let mut reader = directory.entries();
    for (&index, place) in log.groups.get(&group).iter().flat_map(|of| of.entries.iter().rev()) {
        if let Ok(Entry { payload: Payload::Membership(found), .. }) = reader.read(group, index, place) {
            return addresses(&found);
        }
    }
    members
}

fn addresses(membership: &Members) -> BTreeMap<NodeId, String> {
    membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect()
}

/// The replica of a group, if there is one; the inner error says why it cannot go on.
fn replica(
    directory: &Directory,
    log: &Inspection,
    group: GroupId,
) -> Result<Result<Option<Replica>, String>, RecoverError> {
    let io = |source| RecoverError::Io { action: "read snapshots", path: directory.path.clone(), source };
    let mut damaged = Vec::new();
    let mut head = None;
    let files = match directory.snapshot_files(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        files => files.map_err(io)?,
    };
    for file in files {
        let survey = directory.survey(&file);
        match (survey.damage.first(), survey.head) {
            (None, Some(found)) => {
                head = Some(found);
                break;
            }
            (error, _) => damaged.extend(error.map(ToString::to_string)),
        }
    }
    let of = log.groups.get(&group);
    let covered = head.as_ref().map(|head| head.last_log_id);
    let purged = of.and_then(|of| of.purged);
    if purged.map(|purged| purged.index) > covered.map(|covered| covered.index) {
        let what = format!(
            "its log begins behind entry {}, and no snapshot that can be read covers so much. {}",
            purged.map_or(0, |purged| purged.index),
            damaged.join("; ")
        );
        return Ok(Err(what.trim_end().to_owned()));
    }
    let Some(last) = of.and_then(|of| of.last()).max(covered) else { return Ok(Ok(None)) };
    let mut membership = head.map(|head| head.membership.membership().clone());
    let mut reader = directory.entries();
    let valid = of.filter(|of| covered.is_none_or(|covered| !of.is_replaced_by(covered)));
    for (&index, place) in valid.iter().flat_map(|of| of.entries.iter().rev()) {
        if covered.is_some_and(|covered| covered.index >= index) {
            break;
        }
        if let Payload::Membership(found) = reader.read(group, index, place)?.payload {
            membership = Some(found);
            break;
        }
    }
    let voted = of.and_then(|of| of.vote).map_or(0, |vote| vote.leader_id.term);
    let committed = of.and_then(|of| of.committed).max(covered).map_or(0, |committed| committed.index);
    Ok(Ok(Some(Replica {
        last,
        committed,
        membership: membership.unwrap_or_default(),
        covered,
        next_term: voted.max(last.leader_id.term).saturating_add(1),
    })))
}
