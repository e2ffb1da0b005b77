//! Who belongs to the group: what a replica knows of it, and what its leader changes.
//!
//! Invariants:
//! - Voters change by joint consensus, one change at a time: a change names the membership it starts from, and the leader
//!   refuses it on another.
//! - A replica that did not begin with the group votes only once its own log names it as a member. It may have held a
//!   replica before and lost it with what it had promised; whoever is behind the entry that names it now cannot win its
//!   vote, and whoever is not knows all that it had acknowledged.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::Precondition;
use openraft::async_runtime::AsyncRuntime;
use openraft::async_runtime::watch::WatchReceiver;

use super::*;
use crate::membership::MemberChange;
use crate::membership::Roster;
use crate::membership::RosterMember;
use crate::types::LogId;

/// How long one step may take, in election timeouts; without a quorum it would take for ever.
const STEP_ELECTIONS: u64 = 5;
/// How many nodes a leader asks in turn, when each turns out to be away or not the best to hand over to.
const EXCHANGES_MAX: u32 = 5;

/// Who counts whatever becomes of a change that is under way: of a joint configuration, the voters of the one before it. Who comes
/// makes none of those dispensable until the change is through, so nobody is to be told that it votes and stop another one for it.
pub(super) fn counted(membership: &openraft::Membership<NodeId, openraft::BasicNode>) -> BTreeSet<NodeId> {
    membership.get_joint_config().first().cloned().unwrap_or_default()
}

impl<P: Platform, T: Transport> Group<P, T> {
    /// Who belongs to the group, as this replica knows it.
    pub async fn roster(&self) -> Result<Roster, String> {
        // Of consensus itself: metrics lag a little, and a change that starts from an older membership is refused.
        let known = self.raft.with_raft_state(|state| {
            let effective = state.membership_state.effective().clone();
            let committed = state.membership_state.committed().log_id() == effective.log_id();
            let last = state.log_ids.last().map_or(0, |last| last.index);
            (effective, committed, last)
        });
        let (membership, committed, last) = known.await.map_err(|error| error.to_string())?;
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let sent = self.transfers.under_way(self.id);
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow_watched();
        let member = |(id, node): (&NodeId, &openraft::BasicNode)| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id)).and_then(|log_id| *log_id);
            let matched = matched.map(|log_id| log_id.index);
            let receives = sent.get(id).copied();
            let member = RosterMember { address: node.addr.clone(), voter: voters.contains(id), matched, receives };
            (*id, member)
        };
        Ok(Roster {
            node: self.node,
            term: metrics.current_term,
            // A leader that was removed takes itself for the leader for as long as it hears of no other.
            leader: self.leader_of(&metrics).filter(|leader| membership.get_node(leader).is_some()),
            membership: *membership.log_id(),
            committed,
            votes: self.may_vote(),
            joint: membership.get_joint_config().len() > 1,
            last,
            members: membership.nodes().map(member).collect(),
        })
    }

    /// The same, of no earlier moment than this call's, if this node leads.
    pub async fn leaders_roster(&self) -> Result<Roster, String> {
        let leads =
            |error: String| format!("group {}: node {} cannot say that it leads: {error}", self.name, self.node);
        self.read_index_here(false).await.map_err(leads)?;
        self.roster().await
    }

    /// Whether this replica's own log names it as a member.
    pub fn is_member(&self) -> bool {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow_watched();
        metrics.membership_config.membership().get_node(&self.node).is_some()
    }

    /// Whether this replica may help to elect; see the file's head.
    pub(super) fn may_vote(&self) -> bool {
        let votes = *self.votes.lock().unwrap_or_else(PoisonError::into_inner);
        votes && (!self.members.is_empty() || self.is_member())
    }

    /// The members' addresses, whenever they changed, as long as the group runs.
    pub async fn watch_members(self: Arc<Self>, told: impl Fn(BTreeMap<NodeId, String>) + Send) {
        let mut receiver = self.raft.metrics();
        let mut seen = None;
        loop {
            let (at, members) = {
                let metrics = receiver.borrow_watched();
                let at = *metrics.membership_config.log_id();
                let nodes = metrics.membership_config.membership().nodes();
                (at, (seen != Some(at)).then(|| nodes.map(|(id, node)| (*id, node.addr.clone())).collect()))
            };
            if let Some(members) = members {
                seen = Some(at);
                told(members);
            }
            if receiver.changed().await.is_err() || self.is_stopped() {
                return;
            }
        }
    }

    /// Takes one step of a change, if this node leads and the membership is still the one that was `seen`; returns when it is
    /// committed.
    pub async fn change_members(&self, seen: Option<LogId>, change: MemberChange) -> Result<(), String> {
        let keeps = matches!(&change, MemberChange::VotersAmong(_) | MemberChange::Finish { keeps: true });
        let changes = match change.clone() {
            MemberChange::AddLearner { node, address } => {
                ChangeMembers::AddNodes(BTreeMap::from([(node, openraft::BasicNode { addr: address })]))
            }
            MemberChange::Voters(voters) | MemberChange::VotersAmong(voters) => ChangeMembers::ReplaceAllVoters(voters),
            MemberChange::RemoveLearner(node) => ChangeMembers::RemoveNodes(BTreeSet::from([node])),
            MemberChange::Finish { .. } => ChangeMembers::AddVoterIds(BTreeSet::new()),
        };
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: seen };
        let limit = Duration::from_millis(self.timing.election_timeout_ms.saturating_mul(STEP_ELECTIONS));
        let changed = RtOf::<P>::timeout(limit, self.raft.change_membership_if(changes, keeps, [unchanged])).await;
        match changed {
            Ok(Ok(_)) => {
                tracing::info!(group = self.name, ?change, "the members have changed");
                Ok(())
            }
            Ok(Err(error)) => Err(format!("group {}: {error}", self.name)),
            Err(_) => Err(format!(
                "group {}: the voters did not agree to the change within {} ms",
                self.name,
                limit.as_millis()
            )),
        }
    }

    /// Hands leadership to `to`, or to the voter that is best to lead (see [`super::priority`]), if this node leads. Whether it was taken
    /// over in time: otherwise it may yet be. After an error nothing was begun.
    pub async fn hand_over_to(&self, to: Option<NodeId>) -> Result<bool, String> {
        if !self.leads() {
            return Err(format!("node {} does not lead group {}", self.node, self.name));
        }
        if to == Some(self.node) {
            return Ok(true);
        }
        let chosen = self.willing_successor(to).await?;
        self.raft.trigger().transfer_leader(chosen).await.map_err(|error| error.to_string())?;
        let limit = Duration::from_millis(self.timing.election_timeout_ms);
        let waiting = self.raft.wait(Some(limit));
        let moved = waiting.metrics(|metrics| metrics.current_leader != Some(metrics.id), "hand over");
        let is_moved = moved.await.is_ok();
        if !is_moved {
            tracing::warn!(group = self.name, to = chosen, "who leadership is handed to did not take over in time");
        }
        Ok(is_moved)
    }

    /// Whom to hand over to, who has just answered. A transfer to a node that cannot take it ends this leader's term all the same:
    /// openraft refuses writes and reads from then on, until somebody else is elected. So one that is away is not tried, nor one that began
    /// with an empty directory, and one that began just now may not have told yet that it is not to lead.
    pub(super) async fn willing_successor(&self, to: Option<NodeId>) -> Result<NodeId, String> {
        let limit = Duration::from_millis(self.timing.election_timeout_ms / 2);
        let mut unable = BTreeMap::new();
        let mut chosen = self.successor(to, &unable)?;
        for _ in 0..EXCHANGES_MAX {
            if !priority::exchange::<RtOf<P>, T>(&self.transport, &self.space, &self.priorities, chosen, limit).await {
                unable.insert(chosen, "does not answer");
            } else if !self.is_able(chosen, limit).await {
                unable.insert(chosen, "does not vote in it, until it has caught up");
            }
            let again = self.successor(to, &unable)?;
            if again == chosen {
                return Ok(chosen);
            }
            chosen = again;
        }
        Err(format!("no voter of group {} is there to lead it", self.name))
    }

    /// Whether the node's replica says that it may vote.
    async fn is_able(&self, node: NodeId, limit: Duration) -> bool {
        let asked = call::<RtOf<P>, T>(&self.transport, node, Lane::Control, &PeerRequest::Roster(self.id));
        matches!(RtOf::<P>::timeout(limit, asked).await, Ok(Ok(PeerResponse::Roster(roster))) if roster.votes)
    }

    /// Whom to hand over to, by what is known and without those who cannot.
    fn successor(&self, to: Option<NodeId>, unable: &BTreeMap<NodeId, &str>) -> Result<NodeId, String> {
        let chosen = match to {
            Some(to) if self.priorities.of(to) == Some(priority::PRIORITY_NEVER) => {
                return Err(format!(
                    "node {to} is not to lead (--election-priority 0, --never-lead, or `node priority`)"
                ));
            }
            Some(to) if let Some(why) = unable.get(&to) => return Err(format!("node {to} {why}")),
            Some(to) => Some(to).filter(|to| self.raft.voter_ids().any(|voter| voter == *to)),
            None => self.best_successor(&unable.keys().copied().collect()),
        };
        chosen.ok_or_else(|| format!("group {} has no such voter to lead it", self.name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A server that came to an ensemble said "Mode: follower" while the change was still a joint configuration; another one was stopped for
    /// it, and the change, which needed that one, stood still for as long as it was away.
    #[test]
    fn who_comes_or_goes_is_told_as_what_it_was_until_the_change_is_through() {
        let all: BTreeSet<NodeId> = [1, 2, 3].into();
        let two: BTreeSet<NodeId> = [1, 2].into();
        let of = |configs: &[&BTreeSet<NodeId>]| {
            let configs = configs.iter().map(|config| (*config).clone()).collect();
            let nodes = all.iter().map(|id| (*id, openraft::BasicNode::default())).collect::<BTreeMap<_, _>>();
            counted(&openraft::Membership::new(configs, nodes).unwrap())
        };
        assert_eq!(of(&[&two]), two);
        assert_eq!(of(&[&two, &all]), two, "node 3 comes");
        assert_eq!(of(&[&all]), all);
        assert_eq!(of(&[&all, &two]), all, "node 3 goes");
    }
}
