//! Which nodes are to lead, as far as that can be chosen: this node's priority, those that others told, and, before both, what the
//! catalog says since an operator changed it.
//!
//! A leader hands over to a voter that is nearer to its liking: one with disk space when it has none, one of a higher
//! priority. It is a preference and no promise: who is the only one that can lead, leads. A node of priority 0 does not stand for
//! election as long as others may; but its log may be the only one that wins, and then nobody would ever lead. Who wants that all the
//! same starts it as one that never leads: then it does not where there is another voter, and no priority counts.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::space::Space;
use super::*;
use crate::membership::LAG_MAX;
use crate::peer::message::Fitness;

/// The priority of a node that was told none.
pub const PRIORITY_DEFAULT: u8 = 100;
/// The priority of a node that never leads where another one can.
pub const PRIORITY_NEVER: u8 = 0;

/// A leader that tried to let a better one lead does not try again for so many election timeouts, whatever came of it: each try
/// costs the group a moment without a leader, and two nodes that know different things of each other would hand over to and fro.
const YIELD_PAUSE_ELECTIONS: u32 = 10;

/// A node of priority 0 stands for election when there has been no leader for so many election timeouts.
const STAND_IN_ELECTIONS: u32 = 5;

/// Shared by the groups of a node.
#[derive(Debug)]
pub struct Priorities {
    node: NodeId,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// What the nodes were started with, of those that have told; of this one in any case.
    told: BTreeMap<NodeId, u8>,
    /// As the catalog says.
    set: BTreeMap<NodeId, u8>,
    /// Those that never lead, of those that have told, and this one if so.
    never: BTreeSet<NodeId>,
}

impl Priorities {
    /// Of this node, started with that; nothing is known of others yet.
    pub fn new(node: NodeId, own: u8) -> Self {
        let told = BTreeMap::from([(node, own)]);
        Self { node, known: Mutex::new(Known { told, set: BTreeMap::new(), never: BTreeSet::new() }) }
    }

    /// A node says whether it never leads, whatever anyone wants.
    pub fn told_never(&self, node: NodeId, never: bool) {
        let mut known = self.known();
        match never {
            true => known.never.insert(node),
            false => known.never.remove(&node),
        };
    }

    /// Whether a node has said so.
    pub fn is_never(&self, node: NodeId) -> bool {
        self.known().never.contains(&node)
    }

    /// This node's.
    pub fn own(&self) -> u8 {
        self.of(self.node).unwrap_or(PRIORITY_DEFAULT)
    }

    /// What this node was started with.
    pub fn started_with(&self) -> u8 {
        self.known().told.get(&self.node).copied().unwrap_or(PRIORITY_DEFAULT)
    }

    /// Another node says what it was started with. Of this one nobody else can.
    pub fn told(&self, node: NodeId, priority: u8) {
        if node != self.node {
            self.known().told.insert(node, priority);
        }
    }

    /// The catalog says these, and of no others. Whether that changed this node's.
    pub fn set(&self, set: &BTreeMap<NodeId, u8>) -> bool {
        let before = self.own();
        let mut known = self.known();
        if known.set != *set {
            known.set.clone_from(set);
        }
        drop(known);
        before != self.own()
    }

    /// A node's, once it is known.
    pub fn of(&self, node: NodeId) -> Option<u8> {
        let known = self.known();
        if known.never.contains(&node) {
            return Some(PRIORITY_NEVER);
        }
        known.set.get(&node).or_else(|| known.told.get(&node)).copied()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a node tells others of itself.
pub fn fitness(space: &Space, priorities: &Priorities) -> Fitness {
    Fitness {
        short: space.is_short(),
        priority: priorities.started_with(),
        never_leads: priorities.is_never(priorities.node),
    }
}

/// Remembers what another node says of itself.
pub fn heed(space: &Space, priorities: &Priorities, from: NodeId, told: Fitness) {
    space.told(from, told.short);
    priorities.told(from, told.priority);
    priorities.told_never(from, told.never_leads);
}

/// Tells a node how fit this one is and hears how fit that one is. Whether it has answered in time.
pub async fn exchange<RT: AsyncRuntime, T: Transport>(
    transport: &T,
    space: &Space,
    priorities: &Priorities,
    with: NodeId,
    time_max: Duration,
) -> bool {
    let request = PeerRequest::<RT>::Fitness(fitness(space, priorities));
    let told = call::<RT, T>(transport, with, Lane::Control, &request);
    let Ok(Ok(PeerResponse::Fitness(told))) = RT::timeout(time_max, told).await else {
        return false;
    };
    heed(space, priorities, with, told);
    true
}

/// The voter that the leader `node` is to hand over to: of those that lack little the one that is best to lead, and of these the one
/// that is furthest ahead. With `better`, only one that is better than the leader itself. `answering` are the nodes that have
/// answered the leader lately.
fn successor(
    standing: &Standing,
    node: NodeId,
    answering: &BTreeSet<NodeId>,
    space: &Space,
    priorities: &Priorities,
    better: bool,
) -> Option<NodeId> {
    let short = space.short_nodes(node);
    // What is not known of a node is taken for usual.
    let priority = |id: NodeId| priorities.of(id).unwrap_or(PRIORITY_DEFAULT);
    let own = (!short.contains(&node), priorities.own());
    // One that lags could not win; one that is dead lacks nothing where nothing is written.
    let near = |member: &&MemberView| {
        let lacks_little = member.matched.is_some_and(|at| at.saturating_add(LAG_MAX) >= standing.last);
        lacks_little && answering.contains(&member.id)
    };
    let others = standing.members.iter().filter(|member| member.id != node && member.role == "voter").filter(near);
    let rank = |member: &MemberView| (!short.contains(&member.id), priority(member.id));
    let others = others.filter(|member| priority(member.id) != PRIORITY_NEVER);
    let others = others.filter(|member| !better || rank(member) > own);
    others.max_by_key(|member| (rank(member), member.matched)).map(|member| member.id)
}

impl<P: Platform, T: Transport> Group<P, T> {
    /// Whether this node leaves it to others to lead.
    pub(super) fn never_leads(&self) -> bool {
        self.priorities.own() == PRIORITY_NEVER
    }

    /// Whether it does also where nobody else can: never as the only voter.
    pub(super) fn never_stands_in(&self) -> bool {
        self.priorities.is_never(self.node) && self.raft.voter_ids().any(|voter| voter != self.node)
    }

    /// Lets a replica that is not to lead stand for election while nobody else leads. To be called every now and then.
    pub fn stand_in(&self) {
        if !self.never_leads() || self.never_stands_in() || !self.may_vote() {
            return;
        }
        let mut since = self.leaderless_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.leader().is_some() {
            if since.take().is_some() {
                self.raft.runtime_config().elect(false);
            }
            return;
        }
        let now = InstantOf::<P>::now();
        let limit = Duration::from_millis(self.timing.election_timeout_ms).saturating_mul(STAND_IN_ELECTIONS);
        if now - *since.get_or_insert(now) >= limit {
            self.raft.runtime_config().elect(true);
        }
    }

    /// The nodes that have answered this leader within an election timeout.
    fn answering(&self) -> BTreeSet<NodeId> {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow_watched();
        let (now, limit) = (InstantOf::<P>::now(), Duration::from_millis(self.timing.election_timeout_ms));
        let lately = |heard: &Option<openraft::metrics::SerdeInstant<InstantOf<P>>>| {
            heard.as_deref().is_some_and(|heard| now - *heard < limit)
        };
        let heard = metrics.heartbeat.iter().flatten().filter(|(_, heard)| lately(heard));
        heard.map(|(id, _)| *id).collect()
    }

    /// How much a node is to lead; what is not known of it is taken for usual.
    pub fn priority_of(&self, node: NodeId) -> u8 {
        self.priorities.of(node).unwrap_or(PRIORITY_DEFAULT)
    }

    /// Stands for election from now on, or no longer, as this node's priority says.
    pub fn stand_by_priority(&self) {
        let votes = *self.votes.lock().unwrap_or_else(PoisonError::into_inner);
        self.raft.runtime_config().elect(votes && !self.never_leads());
    }

    /// Whoever this leader hands over to when nobody is named, and not to those who cannot.
    pub(super) fn best_successor(&self, silent: &BTreeSet<NodeId>) -> Option<NodeId> {
        let standing = self.standing();
        let answering = &self.answering() - silent;
        let best = successor(&standing, self.node, &answering, &self.space, &self.priorities, false);
        // Better one that nobody wants than none.
        let may = |member: &&MemberView| {
            member.id != self.node && !silent.contains(&member.id) && !self.priorities.is_never(member.id)
        };
        let voters = standing.members.iter().filter(|member| member.role == "voter").filter(may);
        best.or_else(|| voters.max_by_key(|member| member.matched).map(|member| member.id))
    }

    /// A leader lets a voter lead that is better to.
    pub async fn yield_lead(&self) {
        if !self.leads() {
            return;
        }
        let pause = Duration::from_millis(self.timing.election_timeout_ms).saturating_mul(YIELD_PAUSE_ELECTIONS);
        let now = InstantOf::<P>::now();
        if self.yielded_at.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| now - at < pause) {
            return;
        }
        let better = successor(&self.standing(), self.node, &self.answering(), &self.space, &self.priorities, true);
        let Some(next) = better else { return };
        *self.yielded_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        match self.hand_over_to(Some(next)).await {
            Ok(true) => {
                tracing::info!(group = self.name, next, "leadership handed over to a node that is better to lead")
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(group = self.name, %error, "leadership was not handed over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ALL: std::sync::LazyLock<BTreeSet<NodeId>> = std::sync::LazyLock::new(|| (1..=4).collect());

    fn standing(matched: &[(NodeId, &str, u64)]) -> Standing {
        let member = |(id, role, matched): &(NodeId, &str, u64)| MemberView {
            id: *id,
            address: String::new(),
            role: (*role).to_owned(),
            matched: Some(*matched),
        };
        Standing {
            term: 1,
            leader: Some(1),
            state: "leader".into(),
            commit: 5000,
            applied: 5000,
            last: 5000,
            purged: 0,
            snapshot: 0,
            members: matched.iter().map(member).collect(),
        }
    }

    #[test]
    fn a_leader_yields_to_a_higher_priority_that_lacks_little_and_to_nobody_else() {
        let (space, priorities) = (Space::new(0), Priorities::new(1, 100));
        let all = standing(&[(1, "voter", 5000), (2, "voter", 4990), (3, "voter", 5000), (4, "learner", 5000)]);
        let next = |standing: &Standing, better| successor(standing, 1, &ALL, &space, &priorities, better);
        assert_eq!((next(&all, true), next(&all, false)), (None, Some(3)), "all are alike");
        priorities.told(2, 200);
        priorities.told(4, 250);
        assert_eq!(next(&all, true), Some(2), "a learner is none, however high");
        let behind = standing(&[(1, "voter", 5000), (2, "voter", 3000), (3, "voter", 5000)]);
        assert_eq!((next(&behind, true), next(&behind, false)), (None, Some(3)));
        priorities.told(3, PRIORITY_NEVER);
        assert_eq!(next(&behind, false), None);
    }

    /// Where nothing is written a node that is gone lacks nothing, and a leader that handed over to it left the group without one:
    /// openraft takes no commands from then on until an election is won.
    #[test]
    fn a_leader_hands_over_to_nobody_that_does_not_answer() {
        let (space, priorities) = (Space::new(0), Priorities::new(1, 100));
        let all = standing(&[(1, "voter", 5000), (2, "voter", 5000), (3, "voter", 5000)]);
        priorities.told(3, 200);
        let next = |answering: &[NodeId], better| {
            let answering = answering.iter().copied().collect();
            successor(&all, 1, &answering, &space, &priorities, better)
        };
        assert_eq!((next(&[2, 3], true), next(&[2, 3], false)), (Some(3), Some(3)));
        assert_eq!((next(&[2], true), next(&[2], false)), (None, Some(2)));
        assert_eq!((next(&[], true), next(&[], false)), (None, None));
    }

    #[test]
    fn disk_space_comes_before_priority() {
        let (space, priorities) = (Space::new(800), Priorities::new(1, 200));
        let all = standing(&[(1, "voter", 5000), (2, "voter", 5000), (3, "voter", 5000)]);
        space.look(10, false);
        space.told(3, true);
        assert_eq!(successor(&all, 1, &ALL, &space, &priorities, true), Some(2));
        priorities.told(2, PRIORITY_NEVER);
        assert_eq!(successor(&all, 1, &ALL, &space, &priorities, true), None, "node 3 is short as well");
    }

    #[test]
    fn a_node_that_should_not_lead_yields_to_any_other() {
        let (space, priorities) = (Space::new(0), Priorities::new(1, PRIORITY_NEVER));
        let all = standing(&[(1, "voter", 5000), (2, "voter", 5000)]);
        assert_eq!(successor(&all, 1, &ALL, &space, &priorities, true), Some(2));
    }

    #[test]
    fn what_the_catalog_says_counts_before_what_a_node_was_started_with() {
        let priorities = Priorities::new(1, 100);
        priorities.told(2, 50);
        priorities.told(1, 7);
        assert_eq!((priorities.own(), priorities.of(2), priorities.of(3)), (100, Some(50), None));
        assert!(priorities.set(&BTreeMap::from([(1, PRIORITY_NEVER), (2, 200)])));
        priorities.told(2, 60);
        assert_eq!((priorities.own(), priorities.of(2)), (PRIORITY_NEVER, Some(200)));
        assert!(!priorities.set(&BTreeMap::from([(1, PRIORITY_NEVER), (3, 1)])), "this node's is the same");
        assert_eq!((priorities.of(2), priorities.of(3)), (Some(60), Some(1)));
        assert!(priorities.set(&BTreeMap::new()));
        assert_eq!((priorities.own(), priorities.of(3)), (100, None));
    }

    #[test]
    fn no_priority_makes_a_node_lead_that_never_does() {
        let priorities = Priorities::new(1, 100);
        priorities.told(2, 50);
        priorities.told_never(2, true);
        priorities.set(&BTreeMap::from([(2, 200)]));
        assert_eq!((priorities.of(2), priorities.is_never(2)), (Some(PRIORITY_NEVER), true));
        // It was started anew.
        priorities.told_never(2, false);
        assert_eq!((priorities.of(2), priorities.is_never(2)), (Some(200), false));
        priorities.told_never(1, true);
        assert_eq!(priorities.own(), PRIORITY_NEVER);
    }
}
