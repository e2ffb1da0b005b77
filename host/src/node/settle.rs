//! A node whose data directory is empty although its cluster is running: it has forgotten what it voted and
//! what it acknowledged. If it voted now, a candidate without entries that it once helped to commit could win, and
//! they would be lost. So a node that begins with an empty directory votes only when it has learnt that the
//! cluster is new, or when it has caught up with a leader that others elected.
//!
//! A node that joins a cluster does the same: that cluster is never new. Whom it may follow until then is the subject of
//! `node/whom_to_follow.rs`.
//!
//! Each group is a cluster of its own in this: the node votes in those in which it has caught up. One that can never catch up, because
//! nobody else has what it held, has no leader until it is removed; it does not keep the node from voting in the others.
//!
//! Invariant: a group is written down as one that votes here only after it has caught up, or when nothing of it can have been
//! forgotten: it was created after the catalog here had caught up.
//!
//! What is left of the danger: the only peer that answers has itself never received an entry, and the one that
//! has them is down.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use serde::Deserialize;
use serde::Serialize;

use super::Node;
use super::Setup;
use super::lock;
use super::repair;
use super::repair::Repair;
use super::small_files;
use crate::catalog::GroupEntry;
use crate::disk::Disk;
use crate::group::Group;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::types::CATALOG;
use crate::types::GroupId;

/// There while the node must not vote, across restarts.
const MARK: &str = "unsettled";
/// Beside it: the groups in which it votes all the same.
const SETTLED: &str = "settled.json";
const PAUSE: Duration = Duration::from_millis(100);
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);
/// One look at whether a group has caught up.
const CATCH_UP_LOOK: Duration = Duration::from_secs(1);

/// In which groups a node votes that does not vote in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Those that have caught up.
    groups: BTreeSet<GroupId>,
    /// And all from this id on: they were created after the catalog here had caught up.
    next_group: Option<GroupId>,
    /// But for those of which something was given up since: see [`super::repair`].
    #[serde(default)]
    given_up: BTreeSet<GroupId>,
}

impl Settled {
    /// Whether the node votes in this group.
    pub fn votes(&self, group: GroupId) -> bool {
        let is_younger = self.next_group.is_some_and(|next| group >= next) && !self.given_up.contains(&group);
        self.groups.contains(&group) || is_younger
    }

    fn add(&mut self, group: GroupId, next_group: Option<GroupId>) {
        self.groups.insert(group);
        self.given_up.remove(&group);
        // The first one counts: nothing of the groups in between is forgotten because the catalog has to catch up once more.
        self.next_group = self.next_group.or(next_group);
    }

    /// What is held of this group is about to be given up: the node votes in it no more, and in the others as before. In a marked
    /// directory that is durable when this returns.
    pub(super) fn take_out(
        &mut self,
        disk: &dyn Disk,
        data_dir: &Path,
        group: GroupId,
        marked: bool,
    ) -> io::Result<()> {
        self.groups.remove(&group);
        self.given_up.insert(group);
        if marked { small_files::write(disk, data_dir, SETTLED, self) } else { Ok(()) }
    }

    /// What was written down of a marked directory.
    pub(super) fn read(disk: &dyn Disk, data_dir: &Path) -> io::Result<Self> {
        Ok(small_files::read(disk, data_dir, SETTLED)?.unwrap_or_default())
    }
}

/// Marks a directory, durably: the node votes in no group.
pub fn mark(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    small_files::remove(disk, data_dir, SETTLED)?;
    small_files::mark(disk, data_dir, MARK)
}

/// Whether the directory is marked.
pub fn is_marked(disk: &dyn Disk, data_dir: &Path) -> io::Result<bool> {
    small_files::is_marked(disk, data_dir, MARK)
}

pub(crate) fn unmark(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    small_files::remove(disk, data_dir, MARK)?;
    small_files::remove(disk, data_dir, SETTLED)
}

/// What the peers that answered say.
enum Cluster {
    /// Too few answer to tell.
    Unknown,
    /// None of a majority, this node counted in, has ever heard a leader.
    New,
    /// It has been running.
    Formed,
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// Runs until this node may vote.
    pub(super) async fn settle(self) {
        let mut said = false;
        loop {
            match self.look_around().await {
                Cluster::New => break,
                Cluster::Formed if self.settle_groups().await => break,
                Cluster::Formed if !said => {
                    said = true;
                    if let Some(Repair { damage, .. }) = self.repair() {
                        tracing::warn!(damage, "this node votes when it has everything again from its peers");
                        continue;
                    }
                    tracing::warn!(
                        "this node's data directory was empty, but its cluster has been running: it votes when it has caught up"
                    );
                }
                Cluster::Formed | Cluster::Unknown => {}
            }
            if self.is_stopping() {
                return;
            }
            P::Runtime::sleep(PAUSE).await;
        }
        // Groups opened from here on vote; those that are open are told.
        *lock(&self.0.may_vote) = true;
        *lock(&self.0.settled) = Settled::default();
        for group in self.all_groups() {
            if let Err(error) = group.begin_voting().await {
                tracing::error!(group = group.name(), %error, "the group cannot begin to vote");
            }
        }
        let Setup { disk, data_dir, .. } = &self.0.setup;
        // The mark of the repair last: without the other one it means nothing.
        if let Err(error) = unmark(&**disk, data_dir).and_then(|()| repair::unmark(&**disk, data_dir)) {
            tracing::warn!(%error, "the mark of an empty start cannot be removed; the next start looks around again");
        }
        if let Some(done) = lock(&self.0.repair).take() {
            tracing::warn!(
                damage = done.damage,
                set_aside = done.set_aside,
                "this node has repaired itself from its peers: it holds everything again and votes"
            );
            // What it does not hold any more is removed only now.
            self.0.view.changed.notify_one();
        }
    }

    async fn look_around(&self) -> Cluster {
        let members = &self.0.setup.members;
        // Who repairs itself had a log, and who votes in the catalog has followed a leader of it.
        if members.is_empty() || self.repair().is_some() || lock(&self.0.settled).votes(CATALOG) {
            return Cluster::Formed;
        }
        let others = members.keys().filter(|id| **id != self.id());
        let asked = others.map(|id| {
            let sent = call::<P::Runtime, T>(&self.0.setup.transport, *id, Lane::Control, &PeerRequest::Status);
            P::Runtime::timeout(ANSWER_TIME_MAX, sent)
        });
        let mut fresh = 1;
        for answer in futures_util::future::join_all(asked).await {
            match answer {
                Ok(Ok(PeerResponse::Status(status))) if status.formed => return Cluster::Formed,
                Ok(Ok(PeerResponse::Status(_))) => fresh += 1,
                _ => {}
            }
        }
        if fresh > members.len() / 2 { Cluster::New } else { Cluster::Unknown }
    }

    /// Begins to vote in the groups in which all that was committed before now is applied here. Whether those are all.
    async fn settle_groups(&self) -> bool {
        // It says which others there are.
        if !self.settle_group(self.catalog()).await {
            return false;
        }
        let repair = self.repair();
        let is_awaited = |entry: &&GroupEntry| {
            entry.hosts.contains(&self.id()) && repair.as_ref().is_none_or(|repair| repair.has_given_up(entry.id))
        };
        let catalog = self.0.view.get();
        let settled = catalog.groups.values().filter(is_awaited).map(async |entry| match self.group_by_id(entry.id) {
            Some(group) => self.settle_group(&group).await,
            None => false,
        });
        futures_util::future::join_all(settled).await.into_iter().all(|settled| settled)
    }

    async fn settle_group(&self, group: &Arc<Group<P, T>>) -> bool {
        let (id, name) = (group.id(), group.name());
        if lock(&self.0.settled).votes(id) {
            return true;
        }
        // It does not wait for what the replica may not take yet, nor long for what it has yet to be sent: others may have caught up
        // meanwhile, and the group may be gone by then.
        if group.follows_nobody() {
            return false;
        }
        let caught_up = P::Runtime::timeout(CATCH_UP_LOOK, group.wait_read_index(false)).await;
        if !matches!(caught_up, Ok(Ok(()))) {
            return false;
        }
        {
            // Until it is written: a group that is given up meanwhile must not be in the file.
            let mut settled = lock(&self.0.settled);
            settled.add(id, (id == CATALOG).then(|| self.0.view.get().next_group));
            let Setup { disk, data_dir, .. } = &self.0.setup;
            if let Err(error) = small_files::write(&**disk, data_dir, SETTLED, &*settled) {
                tracing::warn!(group = name, %error, "that this node votes in the group again is not written down; the next start looks around again");
            }
        }
        if let Err(error) = group.begin_voting().await {
            tracing::error!(group = name, %error, "the group cannot begin to vote");
        }
        true
    }

    /// Of the groups here, those in which this node does not vote yet, and why, in words.
    pub(super) fn unsettled_groups(&self) -> Vec<String> {
        let settled = lock(&self.0.settled).clone();
        let catalog = self.0.view.get();
        let here = catalog.groups.iter().filter(|(_, entry)| entry.hosts.contains(&self.id()));
        let told = here.filter(|(_, entry)| !settled.votes(entry.id)).map(|(name, entry)| {
            if entry.hosts.len() == 1 {
                format!(
                    "the only replica of group {name} was here, and this node began with an empty directory: what the group held is \
                     lost. Remove it (statehouse group rm {name}), and restore it from a backup"
                )
            } else {
                format!("the node began with an empty directory and does not vote in group {name} until it has caught up there")
            }
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::sim::SimDisk;

    #[test]
    fn a_directory_that_is_marked_again_votes_in_no_group() {
        let (disk, dir) = (SimDisk::new(), Path::new("/node"));
        disk.create_dir_all(dir).unwrap();
        mark(&disk, dir).unwrap();
        let settled = Settled { groups: BTreeSet::from([CATALOG, 3]), next_group: Some(7), ..Settled::default() };
        small_files::write(&disk, dir, SETTLED, &settled).unwrap();
        disk.crash_after(0, 0);
        let read = Settled::read(&disk, dir).unwrap();
        assert_eq!([CATALOG, 2, 3, 6, 7, 8].map(|id| read.votes(id)), [true, false, true, false, true, true]);

        mark(&disk, dir).unwrap();
        disk.crash_after(0, 0);
        let read = Settled::read(&disk, dir).unwrap();
        assert!([CATALOG, 3, 7].iter().all(|id| !read.votes(*id)) && is_marked(&disk, dir).unwrap());
    }

    /// One group's snapshot was damaged, and the node voted in none any more.
    #[test]
    fn a_group_that_is_given_up_is_the_only_one_that_the_node_votes_in_no_more() {
        let (disk, dir) = (SimDisk::new(), Path::new("/node"));
        disk.create_dir_all(dir).unwrap();
        mark(&disk, dir).unwrap();
        let mut settled = Settled::default();
        settled.add(CATALOG, Some(7));
        settled.add(3, None);
        for given_up in [CATALOG, 3, 8] {
            let mut settled = settled.clone();
            settled.take_out(&disk, dir, given_up, true).unwrap();
            disk.crash_after(0, 0);
            assert_eq!(Settled::read(&disk, dir).unwrap(), settled);
            let voted = [CATALOG, 2, 3, 6, 7, 8, 9].map(|id| settled.votes(id));
            assert_eq!(voted, [CATALOG, 2, 3, 6, 7, 8, 9].map(|id| id != given_up && ![2, 6].contains(&id)));
            settled.add(given_up, (given_up == CATALOG).then_some(20));
            assert_eq!([CATALOG, 3, 7, 8].map(|id| settled.votes(id)), [true; 4], "{given_up}");
        }
    }
}
