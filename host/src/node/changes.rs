//! Changes of membership, one step after the other, until each is done.
//!
//! A change is a record in the catalog. Whoever leads the catalog looks at how things stand and takes the next step towards
//! what the record asks for; so it goes on when any node fails, this one too.
//!
//! Invariants:
//! - A step depends on nothing but how things stand: taking it twice, or by two leaders at once, does no harm. What changes a
//!   group names the membership it starts from; what changes the catalog names its change, which must be running.
//! - A node opens its replica before the group counts on it, and removes it after the group no longer does.
//! - Voters are taken away only while a majority of those that stay answers.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use crate::catalog::Catalog;
use crate::catalog::CatalogCommand;
use crate::catalog::GroupEntry;
use crate::catalog::no_group;
use crate::group::priority::PRIORITY_DEFAULT;
use crate::group::priority::PRIORITY_NEVER;
use crate::membership::Change;
use crate::membership::ChangeKind;
use crate::membership::ChangeState;
use crate::membership::MemberChange;
use crate::membership::Roster;
use crate::membership::last_voter;
use crate::membership::no_member;
use crate::membership::no_node;
use crate::membership::not_caught_up;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::platform::Platform;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::types::CATALOG;
use crate::types::CATALOG_NAME;
use crate::types::GroupId;
use crate::types::NodeId;

/// Between two looks at what runs.
const PAUSE: Duration = Duration::from_millis(100);
/// A change that has come no further for so long is given up.
const PATIENCE: Duration = Duration::from_secs(600);
/// How a change goes is written down no more often, unless it has come further.
const NOTE_PAUSE: Duration = Duration::from_secs(1);
/// One step of a group's leader may take so long.
const STEP_TIME_MAX: Duration = Duration::from_secs(30);

/// What a look at a change gave.
#[derive(Debug)]
pub(super) enum Step {
    /// There is more to do, or to wait for.
    Waits(Waiting),
    /// All is as it should be.
    Done,
    /// It cannot be.
    Fails(ServiceError),
    /// What came of it is written down.
    Noted,
}

/// What is waited for.
#[derive(Debug)]
pub(super) struct Waiting {
    /// In words.
    text: String,
    /// While this stays the same the change comes no further.
    mark: String,
}

impl From<String> for Waiting {
    fn from(text: String) -> Self {
        Self { mark: text.clone(), text }
    }
}

/// A group whose members change.
struct Target<'a> {
    change: u64,
    id: GroupId,
    name: &'a str,
    /// Who the catalog says holds a replica; `None` for the catalog itself.
    hosts: Option<&'a BTreeSet<NodeId>>,
    /// What becomes of those whose vote a step took that was left half done: they stay as learners, and go by a step of their own where
    /// they are to go. Where that step could not tell them from other learners they go at once.
    keeps: bool,
}

pub(super) type Stepped = Result<Step, String>;

pub(super) fn waits(text: impl Into<String>) -> Stepped {
    Ok(Step::Waits(text.into().into()))
}

/// That the node has the group's log.
fn waits_for_log(group: &str, roster: &Roster, node: NodeId) -> Stepped {
    let text = format!("{group}: {}", roster.progress(node));
    // That the log grows meanwhile is no step forward.
    Ok(Step::Waits(Waiting { text, mark: format!("{group}: {:?}", roster.members.get(&node)) }))
}

/// How far a change has come.
struct Heard<I> {
    mark: String,
    /// Since when that is so.
    since: I,
    /// When it was last written down.
    noted: I,
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// Runs as long as the node does; works while this node leads the catalog.
    pub(super) async fn drive_changes(self) {
        let mut heard: BTreeMap<u64, Heard<<P::Runtime as AsyncRuntime>::Instant>> = BTreeMap::new();
        while !self.is_stopping() {
            P::Runtime::sleep(PAUSE).await;
            let runs = |catalog: &Catalog| catalog.changes.values().any(Change::is_running);
            if !self.catalog().leads() || !runs(&self.0.view.get()) {
                heard.clear();
                continue;
            }
            // A leader that is new may not have applied what ended a change.
            let Ok(catalog) = self.fresh_catalog().await else { continue };
            for change in catalog.changes.values().filter(|change| change.is_running()) {
                let state = match self.step(&catalog, change).await {
                    Ok(Step::Done) => ChangeState::Done,
                    Ok(Step::Fails(error)) => ChangeState::Failed(error),
                    Ok(Step::Noted) => continue,
                    waits => {
                        let Waiting { text, mark } = match waits {
                            Ok(Step::Waits(waiting)) => waiting,
                            Err(text) => text.into(),
                            Ok(Step::Done | Step::Fails(_) | Step::Noted) => continue,
                        };
                        let now = <P::Runtime as AsyncRuntime>::Instant::now();
                        let begun = || Heard { mark: String::new(), since: now, noted: now };
                        let last = heard.entry(change.id).or_insert_with(begun);
                        let further = last.mark != mark;
                        if further {
                            (last.mark, last.since) = (mark, now);
                        }
                        // Of a change of module only the group's log can say that it came to nothing.
                        if now - last.since > PATIENCE && !change.kind.is_of_module() {
                            let detail = format!("it came no further for {} s: {text}", PATIENCE.as_secs());
                            ChangeState::Failed(ServiceError::new(ErrorCode::Timeout, detail))
                        } else if !further && now - last.noted < NOTE_PAUSE {
                            // Each note is an entry of the catalog, and may be what the next text differs in.
                            continue;
                        } else {
                            last.noted = now;
                            ChangeState::Running(text)
                        }
                    }
                };
                if state != change.state {
                    self.note(change, state).await;
                }
                // What follows starts from what this one changed.
                if self.is_stopping() || !self.catalog().leads() {
                    break;
                }
            }
        }
    }

    async fn note(&self, change: &Change, state: ChangeState) {
        match &state {
            ChangeState::Running(text) => tracing::debug!(change = change.id, kind = %change.kind, text, "change"),
            ChangeState::Done => tracing::info!(change = change.id, kind = %change.kind, "change done"),
            ChangeState::Failed(error) => {
                tracing::warn!(change = change.id, kind = %change.kind, %error, "change failed");
            }
        }
        // What is not written down is found again at the next look.
        let _again = self.change_catalog(&CatalogCommand::NoteChange { id: change.id, state }).await;
    }

    async fn step(&self, catalog: &Catalog, change: &Change) -> Stepped {
        let target = match change.kind.group() {
            None => Target { change: change.id, id: CATALOG, name: CATALOG_NAME, hosts: None, keeps: true },
            Some(name) => match catalog.groups.get(name) {
                Some(entry) => {
                    let keeps = !matches!(&change.kind, ChangeKind::MemberSet { .. });
                    Target { change: change.id, id: entry.id, name, hosts: Some(&entry.hosts), keeps }
                }
                None => return Ok(Step::Fails(no_group(name))),
            },
        };
        match &change.kind {
            ChangeKind::NodeAdd { node, learner } => self.node_in(catalog, &target, *node, *learner).await,
            ChangeKind::NodeRemove { node } => self.node_out(catalog, &target, *node).await,
            ChangeKind::NodeDemote { node } => self.node_listens(catalog, &target, *node).await,
            ChangeKind::MemberAdd { node, learner, .. } => self.member_in(&target, *node, *learner).await,
            ChangeKind::MemberRemove { node, .. } => self.member_out(&target, *node).await,
            ChangeKind::MemberPromote { node, .. } => {
                let roster = self.whole_roster(&target).await?;
                match roster.members.get(node) {
                    None => Ok(Step::Fails(no_member(target.name, *node))),
                    Some(member) if !member.voter && !roster.has_caught_up(*node) => {
                        Ok(Step::Fails(not_caught_up(target.name, *node, &roster)))
                    }
                    Some(_) => self.member_in(&target, *node, false).await,
                }
            }
            ChangeKind::MemberDemote { node, .. } => self.member_listens(&target, *node).await,
            ChangeKind::MemberSet { voters, .. } => self.members_become(&target, voters).await,
            ChangeKind::GroupModule { group, module, digest } => self.step_module(change, group, module, *digest).await,
            ChangeKind::GroupMove { from, to, .. } => self.member_moves(&target, *from, *to).await,
        }
    }

    /// The roster as the leader sees it, when no change of it is half done.
    async fn whole_roster(&self, target: &Target<'_>) -> Result<Roster, String> {
        let roster = self.leaders_roster(target.id).await.map_err(|error| format!("group {}: {error}", target.name))?;
        if !roster.committed {
            return Err(format!("the last change of group {} is not committed yet", target.name));
        }
        if roster.joint {
            self.change_group(target, &roster, MemberChange::Finish { keeps: target.keeps }).await?;
            return Err(format!("the voters of group {} are changing", target.name));
        }
        Ok(roster)
    }

    async fn change_group(&self, target: &Target<'_>, roster: &Roster, change: MemberChange) -> Result<(), String> {
        let request = PeerRequest::ChangeMembers { group: target.id, seen: roster.membership, change };
        self.ask(roster.node, request, STEP_TIME_MAX).await.map(|_| ())
    }

    async fn place(&self, target: &Target<'_>, node: NodeId, hosts: bool) -> Result<(), String> {
        if target.hosts.is_none_or(|known| known.contains(&node) == hosts) {
            return Ok(());
        }
        let command = CatalogCommand::Place { change: target.change, group: target.id, node, hosts };
        self.change_catalog(&command).await.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn hand_over_group(&self, target: &Target<'_>, roster: &Roster, to: Option<NodeId>) -> Stepped {
        let request = PeerRequest::HandOver { group: target.id, to };
        self.ask(roster.node, request, STEP_TIME_MAX).await?;
        waits(format!("node {} hands group {} over", roster.node, target.name))
    }

    /// The voter becomes a learner.
    async fn member_listens(&self, target: &Target<'_>, node: NodeId) -> Stepped {
        let roster = self.whole_roster(target).await?;
        let voters = roster.voters();
        match roster.members.get(&node) {
            None => Ok(Step::Fails(no_member(target.name, node))),
            Some(member) if !member.voter => Ok(Step::Done),
            Some(_) if voters.len() == 1 => Ok(Step::Fails(last_voter(target.name, node))),
            Some(_) if roster.node == node => self.hand_over_group(target, &roster, None).await,
            Some(_) => {
                let voters = voters.into_iter().filter(|voter| *voter != node).collect();
                self.set_members(target, &roster, MemberChange::VotersAmong(voters)).await
            }
        }
    }

    /// These are the voters and no others.
    async fn members_become(&self, target: &Target<'_>, wanted: &BTreeSet<NodeId>) -> Stepped {
        // All that come catch up at the same time, and none votes before all have.
        let mut waiting = None;
        for node in wanted {
            match self.member_in(target, *node, true).await? {
                Step::Done => {}
                Step::Waits(text) => waiting = waiting.or(Some(text)),
                fails => return Ok(fails),
            }
        }
        if let Some(waiting) = waiting {
            return Ok(Step::Waits(waiting));
        }
        let roster = self.whole_roster(target).await?;
        let voters = roster.voters();
        if voters == *wanted {
            let gone = target.hosts.into_iter().flatten().filter(|host| !roster.members.contains_key(host));
            for node in gone {
                self.place(target, *node, false).await?;
            }
            return Ok(Step::Done);
        }
        // The leader goes last, when another one leads: else the group would be without one for an election.
        if voters.contains(&roster.node) && !wanted.contains(&roster.node) && voters.len() > 1 {
            if let Some(next) = self.fit_to_lead(target, &roster, wanted).await {
                return self.hand_over_group(target, &roster, Some(next)).await;
            }
            let both: BTreeSet<NodeId> = voters.union(wanted).copied().collect();
            if both != voters {
                return self.set_voters(target, &roster, both).await;
            }
        }
        self.set_voters(target, &roster, wanted.clone()).await
    }

    /// The voter of these that is best to take over: one that answers, votes, lacks little and is to lead.
    async fn fit_to_lead(&self, target: &Target<'_>, roster: &Roster, among: &BTreeSet<NodeId>) -> Option<NodeId> {
        let priority = |node: NodeId| self.0.common.priorities.of(node).unwrap_or(PRIORITY_DEFAULT);
        let voters = roster.voters();
        let near = voters.intersection(among).copied().filter(|node| roster.has_caught_up(*node));
        let asked = near
            .filter(|node| priority(*node) != PRIORITY_NEVER)
            .map(async |node| self.roster_at(node, target.id).await.is_ok_and(|roster| roster.votes).then_some(node));
        let fit = futures_util::future::join_all(asked).await;
        fit.into_iter()
            .flatten()
            .max_by_key(|node| (priority(*node), roster.members.get(node).and_then(|member| member.matched)))
    }

    /// Makes these the voters, if enough of them are there to go on; others are no members any more.
    async fn set_voters(&self, target: &Target<'_>, roster: &Roster, voters: BTreeSet<NodeId>) -> Stepped {
        self.set_members(target, roster, MemberChange::Voters(voters)).await
    }

    async fn set_members(&self, target: &Target<'_>, roster: &Roster, change: MemberChange) -> Stepped {
        let (MemberChange::Voters(voters) | MemberChange::VotersAmong(voters)) = &change else {
            return Err(format!("{change:?} is no change of voters"));
        };
        let there = self.answering(target.id, voters).await;
        if there.len() <= voters.len() / 2 {
            return waits(format!(
                "of the voters {voters:?} that group {} is to have, only {there:?} answer: no majority",
                target.name
            ));
        }
        let text = format!("group {} gets the voters {voters:?}", target.name);
        self.change_group(target, roster, change).await?;
        waits(text)
    }

    /// The node becomes a member, and a voter once it has caught up.
    async fn member_in(&self, target: &Target<'_>, node: NodeId, learner: bool) -> Stepped {
        let roster = self.whole_roster(target).await?;
        match roster.members.get(&node) {
            Some(member) if member.voter => Ok(Step::Done),
            Some(_) if !roster.has_caught_up(node) => waits_for_log(&format!("group {}", target.name), &roster, node),
            Some(_) if learner => Ok(Step::Done),
            Some(_) => {
                let mut voters = roster.voters();
                voters.insert(node);
                self.set_voters(target, &roster, voters).await
            }
            None => {
                let nodes = self.leaders_roster(CATALOG).await?;
                let Some(known) = nodes.members.get(&node) else { return Ok(Step::Fails(no_node(node))) };
                self.place(target, node, true).await?;
                let change = MemberChange::AddLearner { node, address: known.address.clone() };
                self.change_group(target, &roster, change).await?;
                waits(format!("group {}: node {node} is a learner", target.name))
            }
        }
    }

    /// The node is no member any more, and its files go.
    async fn member_out(&self, target: &Target<'_>, node: NodeId) -> Stepped {
        let roster = self.whole_roster(target).await?;
        let voters = roster.voters();
        match roster.members.get(&node) {
            None => {
                self.place(target, node, false).await?;
                Ok(Step::Done)
            }
            Some(member) if !member.voter => {
                self.change_group(target, &roster, MemberChange::RemoveLearner(node)).await?;
                waits(format!("group {}: node {node} is no learner any more", target.name))
            }
            Some(_) if voters.len() == 1 => Ok(Step::Fails(last_voter(target.name, node))),
            Some(_) if roster.node == node => self.hand_over_group(target, &roster, None).await,
            Some(_) => {
                let voters = voters.into_iter().filter(|voter| *voter != node).collect();
                self.set_voters(target, &roster, voters).await
            }
        }
    }

    async fn member_moves(&self, target: &Target<'_>, from: NodeId, to: NodeId) -> Stepped {
        let roster = self.whole_roster(target).await?;
        let voters = roster.voters();
        if !voters.contains(&from) {
            // It was a learner that moves, or its vote has moved already.
            return match self.member_in(target, to, !voters.contains(&to)).await? {
                Step::Done => self.member_out(target, from).await,
                step => Ok(step),
            };
        }
        if !voters.contains(&to) {
            match self.member_in(target, to, true).await? {
                Step::Done => {}
                step => return Ok(step),
            }
        }
        // With one voter there is nobody else to lead: it steps down when the other one votes.
        if roster.node == from && voters.len() > 1 {
            return self.hand_over_group(target, &roster, None).await;
        }
        let voters = voters.into_iter().filter(|voter| *voter != from).chain([to]).collect();
        self.set_voters(target, &roster, voters).await
    }

    /// The node becomes a full one.
    async fn node_in(&self, catalog: &Catalog, nodes: &Target<'_>, node: NodeId, learner: bool) -> Stepped {
        let roster = self.whole_roster(nodes).await?;
        let Some(member) = roster.members.get(&node) else { return Ok(Step::Fails(no_node(node))) };
        if !member.voter {
            if !roster.has_caught_up(node) {
                return waits_for_log(CATALOG_NAME, &roster, node);
            }
            let condition = self.condition_of(node).await?;
            if !condition.votes {
                return waits(format!("node {node} has not yet caught up"));
            }
            if condition.modules_missing > 0 {
                return waits(format!("node {node} has yet to fetch {} modules", condition.modules_missing));
            }
            if !learner {
                return self.member_in(nodes, node, false).await;
            }
        }
        for (name, entry) in catalog.groups.iter().filter(|(_, entry)| entry.replicas.is_none()) {
            let target = Target { change: nodes.change, id: entry.id, name, hosts: Some(&entry.hosts), keeps: true };
            match self.member_in(&target, node, learner).await? {
                Step::Done => {}
                step => return Ok(step),
            }
        }
        Ok(Step::Done)
    }

    /// The node votes nowhere any more. The catalog goes last: while it votes there, new groups count on it.
    async fn node_listens(&self, catalog: &Catalog, nodes: &Target<'_>, node: NodeId) -> Stepped {
        let full = self.whole_roster(nodes).await?.voters();
        for (name, entry) in catalog.groups.iter().filter(|(_, entry)| entry.hosts.contains(&node)) {
            let target = Target { change: nodes.change, id: entry.id, name, hosts: Some(&entry.hosts), keeps: true };
            let voters = self.whole_roster(&target).await?.voters();
            if !voters.contains(&node) {
                continue;
            }
            return match substitute(catalog, &full, entry, &voters, node) {
                Some(to) => match self.member_in(&target, to, false).await? {
                    Step::Done => waits(format!("group {name}: node {to} votes for node {node}")),
                    step => Ok(step),
                },
                None => self.member_listens(&target, node).await,
            };
        }
        self.member_listens(nodes, node).await
    }

    /// The node leaves.
    async fn node_out(&self, catalog: &Catalog, nodes: &Target<'_>, node: NodeId) -> Stepped {
        let full = self.whole_roster(nodes).await?.voters();
        for (name, entry) in catalog.groups.iter().filter(|(_, entry)| entry.hosts.contains(&node)) {
            let target = Target { change: nodes.change, id: entry.id, name, hosts: Some(&entry.hosts), keeps: true };
            let voters = self.whole_roster(&target).await?.voters();
            let step = match substitute(catalog, &full, entry, &voters, node) {
                Some(to) => self.member_moves(&target, node, to).await?,
                None => self.member_out(&target, node).await?,
            };
            match step {
                Step::Done => {}
                step => return Ok(step),
            }
        }
        self.member_out(nodes, node).await
    }

    /// What can be said at once: whether the change makes sense as things stand.
    pub(super) async fn check_change(&self, kind: &ChangeKind) -> Result<(), ServiceError> {
        let catalog = self.fresh_catalog().await?;
        let nodes = self.wait_leaders_roster(CATALOG, CATALOG_NAME).await?;
        let known = |node: &NodeId| nodes.members.contains_key(node);
        let Some(name) = kind.group() else {
            let (ChangeKind::NodeAdd { node, .. } | ChangeKind::NodeRemove { node } | ChangeKind::NodeDemote { node }) =
                kind
            else {
                return Ok(());
            };
            if !known(node) {
                return Err(no_node(*node));
            }
            if let ChangeKind::NodeAdd { learner, .. } = kind {
                return match nodes.voters().contains(node) && *learner {
                    true => Err(full_node(*node)),
                    false => Ok(()),
                };
            }
            if matches!(kind, ChangeKind::NodeDemote { .. }) && !nodes.voters().contains(node) {
                return Err(ServiceError::new(ErrorCode::AlreadyExists, format!("node {node} is a learner already")));
            }
            if nodes.voters() == BTreeSet::from([*node]) {
                return Err(last_voter(CATALOG_NAME, *node));
            }
            for (name, entry) in catalog.groups.iter().filter(|(_, entry)| entry.hosts.contains(node)) {
                let roster = self.wait_leaders_roster(entry.id, name).await?;
                let voters = roster.voters();
                if voters == BTreeSet::from([*node])
                    && substitute(&catalog, &nodes.voters(), entry, &voters, *node).is_none()
                {
                    return Err(last_voter(name, *node));
                }
            }
            return Ok(());
        };
        let entry = catalog.groups.get(name).ok_or_else(|| no_group(name))?;
        let roster = self.wait_leaders_roster(entry.id, name).await?;
        let member = |node: &NodeId| roster.members.get(node);
        let already = |node: &NodeId, what: &str| {
            let detail = format!("node {node} is a {what} of group {name} already");
            Err(ServiceError::new(ErrorCode::AlreadyExists, detail))
        };
        match kind {
            // Of a module the catalog checks it, and the replicas have tried it.
            ChangeKind::NodeAdd { .. }
            | ChangeKind::NodeRemove { .. }
            | ChangeKind::NodeDemote { .. }
            | ChangeKind::GroupModule { .. } => Ok(()),
            ChangeKind::MemberAdd { node, learner, .. } => match member(node) {
                _ if !known(node) => Err(no_node(*node)),
                Some(member) if member.voter => already(node, "voter"),
                Some(_) if *learner => already(node, "learner"),
                _ => Ok(()),
            },
            ChangeKind::MemberPromote { node, .. } => match member(node) {
                None => Err(no_member(name, *node)),
                Some(member) if member.voter => already(node, "voter"),
                Some(_) if !roster.has_caught_up(*node) => Err(not_caught_up(name, *node, &roster)),
                Some(_) => Ok(()),
            },
            ChangeKind::MemberDemote { node, .. } => match member(node) {
                None => Err(no_member(name, *node)),
                Some(member) if !member.voter => already(node, "learner"),
                Some(_) if roster.voters() == BTreeSet::from([*node]) => Err(last_voter(name, *node)),
                Some(_) => Ok(()),
            },
            ChangeKind::MemberSet { voters, .. } => match voters.iter().find(|node| !known(node)) {
                Some(node) => Err(no_node(*node)),
                None if voters.is_empty() => {
                    let detail = format!("group {name} needs a voter: nobody would hold its state");
                    Err(ServiceError::new(ErrorCode::LastVoter, detail))
                }
                None => Ok(()),
            },
            ChangeKind::MemberRemove { node, .. } => match member(node) {
                None if !entry.hosts.contains(node) => Err(no_member(name, *node)),
                Some(_) if roster.voters() == BTreeSet::from([*node]) => Err(last_voter(name, *node)),
                _ => Ok(()),
            },
            ChangeKind::GroupMove { from, to, .. } => match (member(from), member(to)) {
                _ if !known(to) => Err(no_node(*to)),
                (None, _) => Err(no_member(name, *from)),
                (_, Some(_)) => already(to, "member"),
                _ => Ok(()),
            },
        }
    }
}

fn full_node(node: NodeId) -> ServiceError {
    let detail = format!("node {node} votes already: `node demote {node}` makes it a learner");
    ServiceError::new(ErrorCode::AlreadyExists, detail)
}

/// Who takes over the replica of a node that leaves a group of a number of replicas: a host that does not vote yet, else, of the
/// full nodes without one, the one with the fewest. `None` when enough voters stay, or there is nobody.
fn substitute(
    catalog: &Catalog,
    full: &BTreeSet<NodeId>,
    entry: &GroupEntry,
    voters: &BTreeSet<NodeId>,
    leaving: NodeId,
) -> Option<NodeId> {
    let staying = voters.iter().filter(|voter| **voter != leaving).count() as u64;
    if staying >= entry.replicas? {
        return None;
    }
    let others = |node: &&NodeId| **node != leaving && !voters.contains(node);
    let begun = entry.hosts.iter().find(others);
    begun
        .copied()
        .or_else(|| full.iter().filter(others).copied().min_by_key(|node| (catalog.replicas_on(*node), *node)))
}
