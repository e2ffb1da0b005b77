//! Who leads, as this replica knows it.
//!
//! Invariant: a leader that a quorum has not answered for longer than its lease does not take itself for one, and a follower
//! that has not heard of its leader for longer than an election waits has none. openraft keeps its word in both cases: the
//! leader refuses commands and is called leader, and where there is a pre-vote, who cannot win keeps whom it had. Clients,
//! adapters and operators would go on hoping for it, and be served of the past without an end.

use std::sync::PoisonError;
use std::time::Duration;

use openraft::Instant;
use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver;

use super::*;

/// When the leader was last known to be there.
#[derive(Debug)]
pub(super) struct Hearing<I> {
    /// The term and the leader that were seen first then.
    known: Option<(u64, NodeId, I)>,
    /// When it last sent something.
    heard: Option<I>,
}

impl<I> Default for Hearing<I> {
    fn default() -> Self {
        Self { known: None, heard: None }
    }
}

impl<P: Platform, T: Transport> Group<P, T> {
    /// The leader this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader_and_term().0
    }

    /// Whether this node leads.
    pub fn leads(&self) -> bool {
        self.leader() == Some(self.node)
    }

    /// Whether this leader's openraft takes entries: it refuses them while no majority has answered for an election timeout, and before one
    /// has answered at all.
    pub(super) fn takes_entries(&self) -> bool {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow_watched();
        let lease = Duration::from_millis(self.timing.election_range_ms().1);
        let acked = metrics.last_quorum_acked.as_deref().copied();
        metrics.membership_config.membership().voter_ids().all(|voter| voter == self.node)
            || acked.is_some_and(|acked| InstantOf::<P>::now() - acked < lease)
    }

    pub(super) fn leader_and_term(&self) -> (Option<NodeId>, u64) {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow_watched();
        (self.leader_of(&metrics), metrics.current_term)
    }

    /// A node sent what only leaders send.
    pub(super) fn hear_of(&self, from: NodeId) {
        // Not one that was replaced.
        if self.raft.metrics().borrow_watched().current_leader == Some(from) {
            self.hearing.lock().unwrap_or_else(PoisonError::into_inner).heard = Some(InstantOf::<P>::now());
        }
    }

    pub(super) fn leader_of(&self, metrics: &RaftMetrics<Types<RtOf<P>>>) -> Option<NodeId> {
        metrics.current_leader.filter(|leader| self.is_there(*leader, metrics))
    }

    fn is_there(&self, leader: NodeId, metrics: &RaftMetrics<Types<RtOf<P>>>) -> bool {
        let leads = leader == self.node;
        if leads && metrics.membership_config.membership().voter_ids().all(|voter| voter == self.node) {
            return true;
        }
        let now = InstantOf::<P>::now();
        let (since, heard) = {
            let mut hearing = self.hearing.lock().unwrap_or_else(PoisonError::into_inner);
            let since = match hearing.known {
                Some((term, known, since)) if (term, known) == (metrics.current_term, leader) => since,
                _ => now,
            };
            hearing.known = Some((metrics.current_term, leader, since));
            (since, hearing.heard)
        };
        // A new leader has been elected by a quorum, even if nothing else has been heard of it, or of the quorum, yet.
        let heard = if leads { metrics.last_quorum_acked.as_deref().copied() } else { heard };
        let last = heard.map_or(since, |heard| since.max(heard));
        let election_ms = self.timing.election_timeout_ms;
        // A follower waits for up to half as long again before it stands for election.
        let patience_ms = if leads { election_ms } else { election_ms.saturating_add(election_ms / 2) };
        // What is heard is heard by heartbeats, at the latest.
        now - last < Duration::from_millis(patience_ms.saturating_add(self.timing.heartbeat_ms))
    }
}
