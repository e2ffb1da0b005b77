//! How a node learns that it was removed: nobody sends it entries any more, so it asks.
//!
//! Invariant: what a peer says is believed when it is committed and later than what this node knows. A node that was
//! removed does not come back by itself: its directory says so from then on.

use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use tokio::sync::Notify;

use super::Node;
use super::lock;
use super::small_files;
use crate::disk::Disk;
use crate::membership::Roster;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::types::CATALOG;
use crate::types::NodeId;

/// There once the node was removed.
const MARK: &str = "removed";
const PAUSE: Duration = Duration::from_millis(1000);
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1000);

/// Whether the directory's node was removed from its cluster.
pub fn is_marked(disk: &dyn Disk, data_dir: &Path) -> io::Result<bool> {
    small_files::is_marked(disk, data_dir, MARK)
}

fn mark(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    small_files::mark(disk, data_dir, MARK)
}

/// The directory is to be used again.
pub(crate) fn unmark(disk: &dyn Disk, data_dir: &Path) -> io::Result<()> {
    small_files::remove(disk, data_dir, MARK)
}

/// Whether and why this node belongs to its cluster no more.
#[derive(Debug, Default)]
pub(super) struct Removed {
    why: Mutex<Option<String>>,
    told: Notify,
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// Why this node belongs to the cluster no more, once it does not.
    pub fn removal(&self) -> Option<String> {
        lock(&self.0.removed.why).clone()
    }

    /// Waits until this node has learnt that it was removed; why.
    pub async fn removed(&self) -> String {
        loop {
            let told = self.0.removed.told.notified();
            if let Some(why) = self.removal() {
                return why;
            }
            told.await;
        }
    }

    /// Asks one peer after the other whether this node is still a member, until it is not.
    pub(super) async fn look_for_removal(self) {
        let mut turn = 0;
        while !self.is_stopping() {
            P::Runtime::sleep(PAUSE).await;
            // A leader that removed itself hears of no other.
            if self.catalog().leads() && self.catalog().is_member() {
                continue;
            }
            let Some(peer) = self.next_peer(&mut turn) else { continue };
            let asked =
                call::<P::Runtime, T>(&self.0.setup.transport, peer, Lane::Control, &PeerRequest::Roster(CATALOG));
            let Ok(Ok(PeerResponse::Roster(theirs))) = P::Runtime::timeout(ANSWER_TIME_MAX, asked).await else {
                continue;
            };
            match self.catalog().roster().await {
                Ok(own) if self.is_out(&own, &theirs) => break,
                _ => {}
            }
        }
        if self.is_stopping() {
            return;
        }
        let why = format!("node {} was removed from the cluster", self.id());
        tracing::error!("{why}: it stops");
        if let Err(error) = mark(&*self.0.setup.disk, &self.0.setup.data_dir) {
            tracing::warn!(%error, "that cannot be written down; the next start asks again");
        }
        *lock(&self.0.removed.why) = Some(why);
        self.0.removed.told.notify_waiters();
    }

    fn next_peer(&self, turn: &mut usize) -> Option<NodeId> {
        let mut peers: Vec<NodeId> = self.catalog().standing().members.iter().map(|member| member.id).collect();
        peers.extend(self.0.setup.members.keys());
        peers.sort_unstable();
        peers.dedup();
        peers.retain(|id| *id != self.id());
        *turn = turn.wrapping_add(1);
        peers.get(turn.checked_rem(peers.len())?).copied()
    }

    fn is_out(&self, own: &Roster, theirs: &Roster) -> bool {
        let index = |roster: &Roster| roster.membership.map_or(0, |membership| membership.index);
        let known = index(own).max(self.0.setup.joined_index);
        let out = |roster: &Roster, known: u64| {
            roster.committed && index(roster) > known && !roster.members.contains_key(&self.id())
        };
        // The entry that removed it may have been the last that the leader sent.
        out(theirs, known) || out(own, self.0.setup.joined_index)
    }
}
