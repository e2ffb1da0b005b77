//! A node whose log is damaged sets it aside and gets everything again from its peers, where that is safe. A group whose snapshots are
//! damaged, so that its log does not reach back to the newest readable one, is given up and comes again in the same way, alone.
//!
//! What is damaged may have been acknowledged and may have been promised: an entry that a majority has only with this node, a
//! vote, a term below which no leader is followed any more. Nothing here guesses which. It is given up, and the node goes on so that
//! it does not matter what it was.
//!
//! Invariants:
//! - Before this node takes part in a group again, the group's leader has committed an entry that was made after the log was
//!   given up, without this node: its peers are not answered until then. So a majority of the others has that entry, and what the
//!   node had helped to acknowledge lies before it.
//! - From then on it follows nobody of an earlier term: it begins with that leader's vote. A leader that was replaced with this node's
//!   help cannot use it to commit or confirm anything.
//! - It votes only when it has applied that entry ([`super::settle`]). A candidate for whom it had voted before needs another
//!   vote, of one of those who have the entry that the candidate lacks.
//! - A log is never removed: it is renamed. The marks are durable before it is.
//! - What only this node has is not given up: its groups are those that the others' catalog names after this node stopped, not
//!   those that its own damaged files name.
//! - Until the repair is done nothing is removed because the catalog that is applied here does not name it: that catalog may be of a
//!   time before a group came here.
//! - A group of which nothing was given up ([`Repair::has_given_up`], [`settle::Settled`]) votes all the while: it may be this node's alone,
//!   and would wait for the repair as the repair waits for it.
//!
//! Several nodes may repair themselves at once. One that has no such entry yet answers nobody, so a majority that has one is of
//! nodes that know what they promised. And where k of n nodes have forgotten it, a majority among the others meets every majority
//! of all in one that has not: what the k helped to acknowledge, or whom they helped to elect, is known to it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::RaftLogStorage;
use openraft::vote::RaftLeaderId;
use serde::Deserialize;
use serde::Serialize;

use super::Node;
use super::Setup;
use super::identity::Identity;
use super::lock;
use super::settle;
use super::small_files;
use crate::catalog::Catalog;
use crate::codec;
use crate::disk::Disk;
use crate::log;
use crate::log::LogError;
use crate::membership::Roster;
use crate::offline::Directory;
use crate::offline::members_of;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::types::CATALOG;
use crate::types::CATALOG_NAME;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::LeaderId;
use crate::types::NodeId;
use crate::types::Origin;
use crate::types::Proposal;
use crate::types::Vote;

/// There while the node repairs itself: what was damaged, where it is now, and who the others are.
const MARK: &str = "repairing.json";
/// How long the others may take until it is known whether they have a majority without this node.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);
/// One question.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1000);
/// One entry, committed.
const COMMIT_TIME_MAX: Duration = Duration::from_millis(5000);

/// A repair that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// What was found.
    pub damage: String,
    /// The name of the damaged log in the data directory; `None` when it was one group's snapshots that were damaged.
    pub set_aside: Option<String>,
    /// The other nodes, as far as they are known.
    pub peers: BTreeMap<NodeId, String>,
    /// Groups from this id on are younger than the repair: nothing of them can have been given up.
    pub next_group: GroupId,
    /// The groups that were given up, the catalog among them; `None`: all.
    pub groups: Option<BTreeSet<GroupId>>,
}

impl Repair {
    /// Whether something of this group may have been given up.
    pub fn has_given_up(&self, group: GroupId) -> bool {
        group < self.next_group && self.groups.as_ref().is_none_or(|groups| groups.contains(&group))
    }
}

/// The repair that is under way in this directory.
pub fn read(disk: &dyn Disk, data_dir: &Path) -> io::Result<Option<Repair>> {
    small_files::read(disk, data_dir, MARK)
}

fn write(disk: &dyn Disk, data_dir: &Path, repair: &Repair) -> io::Result<()> {
    small_files::write(disk, data_dir, MARK, repair)
}

/// The repair is done.
pub(crate) fn unmark(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    small_files::remove(disk, data_dir, MARK)
}

/// Whether a log was here that is not here any more: with a new one in its place the node would vote as if it had promised nothing, and
/// alone it would begin from nothing.
pub fn lost_log(disk: &dyn Disk, data_dir: &Path, identity: Option<&Identity>) -> io::Result<Option<LogError>> {
    let path = data_dir.join("log");
    if !identity.is_some_and(|identity| identity.logged) || log::is_there(disk, &path)? {
        return Ok(None);
    }
    // A repair that was cut short has set it aside; one of a single group's snapshots leaves it where it is. What is left of one that
    // ended says nothing: the other mark goes first.
    let set_aside = read(disk, data_dir)?.is_some_and(|repair| repair.set_aside.is_some());
    if set_aside && settle::is_marked(disk, data_dir)? {
        return Ok(None);
    }
    Ok(Some(LogError::Lost { path }))
}

/// Who the others are, as far as `known` and what can be read of a damaged directory say.
pub fn look(
    disk: Arc<dyn Disk>,
    data_dir: &Path,
    node: NodeId,
    known: &BTreeMap<NodeId, String>,
) -> Result<BTreeMap<NodeId, String>, String> {
    let mut peers = known.clone();
    // An earlier repair may not have come so far that the new log names them.
    let earlier = read(&*disk, data_dir).map_err(|error| error.to_string())?;
    peers.extend(earlier.map(|repair| repair.peers).unwrap_or_default());
    let (mut directory, _) = Directory::on(disk, data_dir).map_err(|error| error.to_string())?;
    // It is held by this very node, which does not write.
    directory.holder = None;
    let log = directory.inspect_log().map_err(|error| error.to_string())?;
    peers.extend(members_of(&directory, &log, CATALOG));
    peers.remove(&node);
    Ok(peers)
}

/// Why the other nodes do not replace what is damaged here.
#[derive(Debug, thiserror::Error)]
pub enum NotRepaired {
    /// There are none.
    #[error("this node is the only one of its cluster, so nobody else has what is damaged")]
    Alone,
    /// What cannot be read here, or what is in their way.
    #[error("{0}")]
    NotNow(String),
}

impl NotRepaired {
    /// What to do about it, one sentence.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Alone => {
                "put the files back from a copy of the data directory, or restore a backup into a new one; `statehouse log inspect` and \
                 `statehouse snapshot verify` show what can still be read"
            }
            Self::NotNow(_) => {
                "start it again when the others are well; docs/operations/disaster.md says what else can be done"
            }
        }
    }
}

/// What the others say, who have a majority without this node.
pub struct Others {
    /// Who they are.
    peers: BTreeMap<NodeId, String>,
    /// See [`Repair::next_group`].
    next_group: GroupId,
}

/// Makes sure that the others have a majority without this node in all its groups; says why not.
pub async fn is_safe<RT: AsyncRuntime, T: Transport>(
    transport: &T,
    node: NodeId,
    peers: BTreeMap<NodeId, String>,
) -> Result<Others, NotRepaired> {
    let deadline = RT::Instant::now() + PATIENCE;
    let (mut peers, catalog) = catalog_of_others::<RT, T>(transport, node, peers, deadline).await?;
    for (name, entry) in catalog.groups.iter().filter(|(_, entry)| entry.hosts.contains(&node)) {
        for host in entry.hosts.iter().filter(|host| **host != node) {
            peers.entry(*host).or_default();
        }
        wait_for_promise::<RT, T>(transport, node, (entry.id, name), &mut peers, deadline).await?;
    }
    Ok(Others { peers, next_group: catalog.next_group })
}

/// Makes sure that the others have a majority of the catalog, and asks for it.
async fn catalog_of_others<RT: AsyncRuntime, T: Transport>(
    transport: &T,
    node: NodeId,
    mut peers: BTreeMap<NodeId, String>,
    deadline: RT::Instant,
) -> Result<(BTreeMap<NodeId, String>, Catalog), NotRepaired> {
    if peers.is_empty() {
        return Err(NotRepaired::Alone);
    }
    loop {
        wait_for_promise::<RT, T>(transport, node, (CATALOG, CATALOG_NAME), &mut peers, deadline).await?;
        let mut failed = String::new();
        for peer in peers.keys() {
            let asked = call::<RT, T>(transport, *peer, Lane::Control, &PeerRequest::Catalog);
            match RT::timeout(COMMIT_TIME_MAX, asked).await {
                Ok(Ok(PeerResponse::Catalog(bytes))) => match codec::decode(&bytes) {
                    Ok(catalog) => return Ok((peers, catalog)),
                    Err(error) => failed = error.to_string(),
                },
                Ok(Ok(other)) => failed = format!("node {peer} answered {other:?}"),
                Ok(Err(error)) => failed = error.to_string(),
                Err(_) => failed = format!("node {peer} did not answer"),
            }
        }
        if RT::Instant::now() >= deadline {
            let why = format!("none of the other nodes says which groups this node holds: {failed}");
            return Err(NotRepaired::NotNow(why));
        }
        RT::sleep(PAUSE).await;
    }
}

async fn wait_for_promise<RT: AsyncRuntime, T: Transport>(
    transport: &T,
    node: NodeId,
    (group, name): (GroupId, &str),
    peers: &mut BTreeMap<NodeId, String>,
    deadline: RT::Instant,
) -> Result<(), NotRepaired> {
    while let Err(why) = promise::<RT, T>(transport, node, group, peers).await {
        if RT::Instant::now() >= deadline {
            return Err(NotRepaired::NotNow(format!(
                "it is safe only while a majority of the other nodes holds and serves all groups, and group {name} is not: {why}"
            )));
        }
        RT::sleep(PAUSE).await;
    }
    Ok(())
}

/// Gives the damaged log up: from here on the node has promised nothing that it knows of, and does not vote.
pub fn set_aside(
    disk: &dyn Disk,
    data_dir: &Path,
    damage: &LogError,
    others: Others,
    now_ms: u64,
) -> io::Result<Repair> {
    let name = format!("log.damaged-{}", date(now_ms));
    let Others { peers, next_group } = others;
    let repair = Repair { damage: damage.to_string(), set_aside: Some(name.clone()), peers, next_group, groups: None };
    settle::mark(disk, data_dir)?;
    write(disk, data_dir, &repair)?;
    // It may be the directory that is gone.
    disk.create_dir_all(&data_dir.join("log"))?;
    disk.rename(&data_dir.join("log"), &data_dir.join(name))?;
    disk.sync_dir(data_dir)?;
    Ok(repair)
}

/// A time as `20260131-235959`, in UTC.
fn date(now_ms: u64) -> String {
    let seconds = now_ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that a leap day is the last of one; 400 of them have 146,097 days.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + later;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day_of_month:02}-{hour:02}{minute:02}{second:02}")
}

/// Has the group's leader commit an entry, and answers with the leader's vote. Only while this node does not answer for the
/// group: then a majority of the others has the entry.
pub(super) async fn promise<RT: AsyncRuntime, T: Transport>(
    transport: &T,
    node: NodeId,
    group: GroupId,
    peers: &mut BTreeMap<NodeId, String>,
) -> Result<Vote, String> {
    let mut asked = BTreeSet::new();
    let mut leader: Option<Roster> = None;
    let mut failed = "none of the other nodes leads it".to_owned();
    loop {
        // Whom they name is asked as well: all that this node knew of may have been replaced.
        let next: Vec<NodeId> = peers.keys().copied().filter(|peer| asked.insert(*peer)).collect();
        if next.is_empty() {
            break;
        }
        let answers = next.into_iter().map(|peer| {
            let sent = call::<RT, T>(transport, peer, Lane::Control, &PeerRequest::Roster(group));
            RT::timeout(ANSWER_TIME_MAX, sent)
        });
        for answer in futures_util::future::join_all(answers).await {
            let roster = match answer {
                Ok(Ok(PeerResponse::Roster(roster))) => roster,
                Ok(Err(error)) => {
                    failed = error.to_string();
                    continue;
                }
                _ => continue,
            };
            for (id, member) in roster.members.iter().filter(|(id, _)| **id != node) {
                let known = peers.entry(*id).or_default();
                if known.is_empty() {
                    transport.learn(*id, &member.address);
                    known.clone_from(&member.address);
                }
            }
            if roster.leader == Some(roster.node) && leader.as_ref().is_none_or(|known| known.term < roster.term) {
                leader = Some(roster);
            }
        }
    }
    let Some(Roster { node: leader, term, .. }) = leader else { return Err(failed) };
    // Nobody waits for it, and no timer is due: it changes nothing.
    let origin = Origin { node, incarnation: 0, number: 0 };
    let nothing = Proposal { time_ms: 0, origin, kind: EntryKind::Timers { due: Vec::new() } };
    let request = PeerRequest::Propose { group, term, proposals: vec![nothing] };
    let sent = call::<RT, T>(transport, leader, Lane::Consensus, &request);
    match RT::timeout(COMMIT_TIME_MAX, sent).await {
        Ok(Ok(PeerResponse::Proposed { refused, unknown, .. })) if refused.is_empty() && unknown.is_empty() => {
            Ok(Vote { leader_id: LeaderId::new(term, leader), committed: true })
        }
        Ok(Ok(_)) => Err(format!("node {leader} leads it no more")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("node {leader} finds no majority of the others to agree with it")),
    }
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// Before a group is opened here: while the node repairs itself, and the group has no vote yet, it gets that of a leader
    /// who has committed something without this node.
    pub(super) async fn renew_promise(
        setup: &Setup<P, T>,
        repair: Option<&Repair>,
        group: GroupId,
        hosts: &BTreeSet<NodeId>,
        patience: Duration,
    ) -> io::Result<()> {
        let Some(repair) = repair.filter(|repair| repair.has_given_up(group)) else { return Ok(()) };
        let mut log = setup.log.group::<P::Runtime>(group);
        if log.vote()?.is_some() {
            return Ok(());
        }
        // Where the others have moved meanwhile, the transport has learnt from the catalog.
        let mut peers = repair.peers.clone();
        for host in hosts.iter().filter(|host| **host != setup.id) {
            peers.entry(*host).or_default();
        }
        let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + patience;
        loop {
            match promise::<P::Runtime, T>(&setup.transport, setup.id, group, &mut peers).await {
                Ok(vote) => return log.save_vote(&vote).await,
                Err(why) if <P::Runtime as AsyncRuntime>::Instant::now() >= deadline => {
                    return Err(io::Error::other(format!(
                        "it was given up ({}) and is not taken up again before a majority of the others serves it: {why}",
                        repair.damage
                    )));
                }
                Err(_) => P::Runtime::sleep(PAUSE).await,
            }
        }
    }
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// The catalog's snapshots are damaged, and its log does not reach back far enough: its replica is given up.
    pub(super) async fn give_up_catalog(
        setup: &Setup<P, T>,
        earlier: Option<Repair>,
        damage: &io::Error,
        marked: bool,
        settled: &mut settle::Settled,
    ) -> io::Result<Repair> {
        let peers = look(setup.disk.clone(), &setup.data_dir, setup.id, &setup.members).map_err(io::Error::other)?;
        peers.iter().for_each(|(id, address)| setup.transport.learn(*id, address));
        let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + PATIENCE;
        let asked = catalog_of_others::<P::Runtime, T>(&setup.transport, setup.id, peers, deadline).await;
        let (peers, catalog) = asked.map_err(|why| not_repaired(damage, &why))?;
        let others = Others { peers, next_group: catalog.next_group };
        settled.take_out(&*setup.disk, &setup.data_dir, CATALOG, marked)?;
        Self::give_up_replica(setup, CATALOG, damage, others, earlier, marked).await
    }

    /// The same of another group, while the node runs; what to say of it.
    pub(super) async fn give_up_group(&self, group: GroupId, damage: &io::Error) -> io::Error {
        let setup = &self.0.setup;
        let members = self.catalog().standing().members;
        let mut peers: BTreeMap<NodeId, String> =
            members.into_iter().filter(|one| one.id != setup.id).map(|one| (one.id, one.address)).collect();
        if peers.is_empty() {
            return not_repaired(damage, &NotRepaired::Alone);
        }
        if let Err(why) = promise::<P::Runtime, T>(&setup.transport, setup.id, group, &mut peers).await {
            return not_repaired(damage, &NotRepaired::NotNow(why));
        }
        // Before anything is forgotten. Groups that vote already go on.
        let voted = std::mem::replace(&mut *lock(&self.0.may_vote), false);
        let taken_out = lock(&self.0.settled).take_out(&*setup.disk, &setup.data_dir, group, !voted);
        if let Err(error) = taken_out {
            *lock(&self.0.may_vote) = voted;
            return io::Error::other(format!("{damage}. It cannot be given up: {error}"));
        }
        // What the catalog has not named here yet was never opened here.
        let others = Others { peers, next_group: self.0.view.get().next_group };
        let given_up = Self::give_up_replica(setup, group, damage, others, self.repair(), !voted).await;
        let answer = match &given_up {
            Ok(_) => io::Error::other(format!("{damage}. It is given up, and comes again from the other nodes")),
            Err(error) => io::Error::other(format!("{damage}. It cannot be given up: {error}")),
        };
        if let Ok(repair) = given_up {
            *lock(&self.0.repair) = Some(repair);
        }
        if voted {
            drop(P::Runtime::spawn(self.clone().settle()));
        }
        answer
    }

    async fn give_up_replica(
        setup: &Setup<P, T>,
        group: GroupId,
        damage: &io::Error,
        others: Others,
        earlier: Option<Repair>,
        marked: bool,
    ) -> io::Result<Repair> {
        tracing::warn!(group, %damage, "this replica is given up: the other nodes have all of it");
        let Others { mut peers, mut next_group } = others;
        let mut set_aside = None;
        // Who began with an empty directory votes in those groups only in which it has caught up since.
        let mut groups = (!marked || earlier.is_some()).then(|| BTreeSet::from([group]));
        if let Some(earlier) = earlier {
            // It goes on: what it gave up may have been of groups that this node has not heard of again.
            next_group = next_group.max(earlier.next_group);
            for (id, address) in earlier.peers {
                peers.entry(id).or_insert(address);
            }
            set_aside = earlier.set_aside;
            groups = groups.zip(earlier.groups).map(|(mut groups, earlier)| {
                groups.extend(earlier);
                groups
            });
        }
        let repair = Repair { damage: damage.to_string(), set_aside, peers, next_group, groups };
        // In this order: the mark of who must not vote, alone, would be that of a node that began with an empty directory.
        write(&*setup.disk, &setup.data_dir, &repair)?;
        if !marked {
            settle::mark(&*setup.disk, &setup.data_dir)?;
        }
        // Its snapshots stay: the older one may be whole, and is a good beginning then.
        setup.log.remove_group::<P::Runtime>(group).await?;
        Ok(repair)
    }
}

fn not_repaired(damage: &io::Error, why: &NotRepaired) -> io::Error {
    io::Error::other(format!("{damage}. It is not repaired from the other nodes: {why}; try: {}", why.remedy()))
}

/// How long a start waits for the catalog's other nodes.
pub(super) const START_PATIENCE: Duration = PATIENCE;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::node::identity;

    /// The second mark of a repair was left behind by a crash, and years later the log was gone: the repair had set it aside, it said,
    /// and the node began a new one.
    #[test]
    fn what_is_left_of_a_repair_that_ended_does_not_hide_that_the_log_is_gone() {
        let (disk, dir) = (SimDisk::new(), Path::new("/node"));
        disk.create_dir_all(dir).unwrap();
        let new = Identity { format: identity::FORMAT, node: 3, ..Identity::default() };
        identity::write(&disk, dir, &new).unwrap();
        let lost = || {
            let identity = identity::read(&disk, dir).unwrap();
            lost_log(&disk, dir, identity.as_ref()).unwrap().is_some()
        };
        assert!(!lost(), "no log was there yet");
        identity::write(&disk, dir, &Identity { logged: true, ..new }).unwrap();
        assert!(lost());
        let others = Others { peers: BTreeMap::new(), next_group: 9 };
        set_aside(&disk, dir, &LogError::Lost { path: dir.join("log") }, others, 0).unwrap();
        assert!(!lost(), "it is set aside, and the next one begins");
        settle::unmark(&disk, dir).unwrap();
        assert!(read(&disk, dir).unwrap().is_some() && lost());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "19700101-000000");
        assert_eq!(date(951_827_696_000), "20000229-123456");
        assert_eq!(date(1_767_225_599_000), "20251231-235959");
        assert_eq!(date(1_795_334_400_999), "20261122-080000");
    }
}
