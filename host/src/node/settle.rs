//! A node whose data directory is empty although its cluster is running: it has forgotten what it voted and
//! what it acknowledged. If it voted now, a candidate without entries that it once helped to commit could win, and
//! they would be lost. So a node that begins with an empty directory votes only when it has learnt that the
//! cluster is new, or when it has caught up with a leader that others elected.
//!
//! A node that joins a cluster does the same: that cluster is never new. Whom it may follow until then is the subject of
//! `node/whom_to_follow.rs`.
//!
//! What is left of the danger: the only peer that answers has itself never received an entry, and the one that
//! has them is down.

use std::io;
use std::path::Path;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::Setup;
use super::lock;
use super::repair;
use super::repair::Repair;
use super::small_files;
use crate::catalog::GroupEntry;
use crate::disk::Disk;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;

/// There while the node must not vote, across restarts.
const MARK: &str = "unsettled";
const PAUSE: Duration = Duration::from_millis(100);
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

/// Marks a new directory, durably.
pub fn mark(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    small_files::mark(disk, data_dir, MARK)
}

/// Whether the directory is marked.
pub fn is_marked(disk: &dyn Disk, data_dir: &Path) -> io::Result<bool> {
    small_files::is_marked(disk, data_dir, MARK)
}

pub(crate) fn unmark(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    small_files::remove(disk, data_dir, MARK)
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
                Cluster::Formed if self.has_caught_up().await => break,
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
        // Who repairs itself had a log.
        if members.is_empty() || self.repair().is_some() {
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

    /// Whether all that was committed before now, in every group, is applied here.
    async fn has_caught_up(&self) -> bool {
        if self.0.catalog.follows_nobody() || self.0.catalog.wait_read_index(false).await.is_err() {
            return false;
        }
        let repair = self.repair();
        let is_awaited = |entry: &&GroupEntry| {
            entry.hosts.contains(&self.id()) && repair.as_ref().is_none_or(|repair| repair.has_given_up(entry.id))
        };
        for entry in self.0.view.get().groups.values().filter(is_awaited) {
            match self.group_by_id(entry.id) {
                // It does not wait for what the replica may not take yet.
                Some(group) if !group.follows_nobody() && group.wait_read_index(false).await.is_ok() => {}
                _ => return false,
            }
        }
        true
    }
}
