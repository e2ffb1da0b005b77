//! What the groups of a node know of disk space: this node's, and that of others as far as they told.
//!
//! The log must never run full: a node that cannot write it cannot vote, and its process ends. So a part of the disk is kept
//! back, the *reserve*. Below it nothing more is taken from clients; what the groups do by themselves, and elections, go on.
//! Below half of it what clients asked other leaders for is not taken either, and no snapshot is written or received: that half
//! is the log's alone. What the cluster needs for itself is taken to the end: votes, the first entries of new leaders, without which
//! nothing is committed or read, and the catalog, by which an operator makes room.
//!
//! A node whose log waits for room is short, whatever its reserve: what it took meanwhile it would have to hold in memory.
//!
//! A group goes on while a majority of its voters has space. A voter that has none falls behind, and comes after when it has
//! some again; its log survives meanwhile.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::*;
use crate::types::CATALOG;
use crate::types::Entry;
use crate::types::Payload;

/// A node that said it is short and says nothing more is believed for so many looks.
const LOOKS_BELIEVED: u32 = 10;

/// Shared by the groups of a node.
#[derive(Debug)]
pub struct Space {
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    short: AtomicBool,
    /// Other nodes that are short, and how many looks ago they said so.
    others: Mutex<BTreeMap<NodeId, u32>>,
    /// Whether anyone is: the common case costs one load.
    any: AtomicBool,
}

impl Space {
    /// All have space. A reserve of 0: always.
    pub fn new(reserve_bytes: u64) -> Self {
        Self {
            reserve_bytes,
            free_bytes: AtomicU64::new(u64::MAX),
            short: AtomicBool::new(false),
            others: Mutex::default(),
            any: AtomicBool::new(false),
        }
    }

    /// What is kept back, bytes.
    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes
    }

    /// What snapshots and other leaders' entries leave untouched, bytes.
    pub fn floor_bytes(&self) -> u64 {
        self.reserve_bytes / 2
    }

    /// So much was free just now, and the log waits for room or does not. Whether this node is short, if that changed.
    pub fn look(&self, free_bytes: u64, log_waits: bool) -> Option<bool> {
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
        let was_short = self.is_short();
        // Not to and fro at the edge.
        let edge =
            if was_short { self.reserve_bytes.saturating_add(self.reserve_bytes / 8) } else { self.reserve_bytes };
        let short = free_bytes < edge || log_waits;
        self.short.store(short, Ordering::Relaxed);
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.retain(|_, looks| {
            *looks += 1;
            *looks <= LOOKS_BELIEVED
        });
        self.any.store(short || !others.is_empty(), Ordering::Relaxed);
        (short != was_short).then_some(short)
    }

    /// Another node says whether it is short.
    pub fn told(&self, node: NodeId, short: bool) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if short {
            others.insert(node, 0);
        } else {
            others.remove(&node);
        }
        self.any.store(self.is_short() || !others.is_empty(), Ordering::Relaxed);
    }

    /// Whether this node takes nothing more from clients.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Whether this node takes no entries of other leaders either.
    pub fn is_spent(&self) -> bool {
        self.free_bytes.load(Ordering::Relaxed) < self.floor_bytes()
    }

    /// The nodes that are short, as far as is known; `own` is this one.
    pub fn short_nodes(&self, own: NodeId) -> BTreeSet<NodeId> {
        if !self.any.load(Ordering::Relaxed) {
            return BTreeSet::new();
        }
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.keys().copied().chain(self.is_short().then_some(own)).collect()
    }
}

/// Whether an entry is one that waits until there is space: what clients ask for, and what makes the state larger.
pub(super) fn waits_for_space(kind: &EntryKind) -> bool {
    match kind {
        EntryKind::Command { .. } | EntryKind::OpenSession { .. } | EntryKind::AttachSession { .. } => true,
        EntryKind::ChangeModule { .. } | EntryKind::CloseSession { .. } | EntryKind::Timers { .. } => false,
    }
}

impl<P: Platform, T: Transport> Group<P, T> {
    /// An error when this group can take no commands for want of disk space: a majority of its voters has none. The catalog
    /// takes them: what it holds is small, and it is what an operator may need to put things right.
    pub fn check_space(&self) -> ServiceResult<()> {
        let short = self.space.short_nodes(self.node);
        if short.is_empty() || self.id == CATALOG {
            return Ok(());
        }
        let voters: BTreeSet<NodeId> = self.raft.voter_ids().collect();
        let without: Vec<String> = voters.intersection(&short).map(ToString::to_string).collect();
        if without.is_empty() || (voters.len() - without.len()) * 2 > voters.len() {
            return Ok(());
        }
        let detail = format!(
            "no command is taken: of its {} voters {} have no disk space left but their reserve (node {}); reads go on",
            voters.len(),
            without.len(),
            without.join(", ")
        );
        Err(self.error(ErrorCode::DiskFull, detail))
    }

    /// Whether this node, as a follower that has nothing left but its log's own half of the reserve, takes the entries.
    pub(super) fn takes_when_spent(&self, entries: &[Entry]) -> bool {
        let waits =
            |entry: &Entry| matches!(&entry.payload, Payload::Normal(proposal) if waits_for_space(&proposal.kind));
        self.id == CATALOG || !entries.iter().any(waits)
    }

    /// Whether this node, as the leader, takes the entry into its log.
    pub(super) fn has_space_for(&self, kind: &EntryKind) -> bool {
        self.id == CATALOG || !self.space.is_short() || !waits_for_space(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_short_below_its_reserve_and_spent_below_half_of_it() {
        let space = Space::new(800);
        assert_eq!((space.look(800, false), space.is_short()), (None, false));
        assert_eq!((space.look(799, false), space.is_short(), space.is_spent()), (Some(true), true, false));
        assert_eq!((space.look(850, false), space.is_short()), (None, true), "not to and fro at the edge");
        space.look(399, false);
        assert!(space.is_spent());
        assert_eq!((space.look(900, false), space.is_short(), space.is_spent()), (Some(false), false, false));
        assert_eq!(
            (space.look(900, true), space.is_spent()),
            (Some(true), false),
            "free, but not enough for a segment"
        );
        let never = Space::new(0);
        assert_eq!((never.look(0, false), never.is_short(), never.is_spent()), (None, false, false));
    }

    #[test]
    fn what_others_say_is_believed_until_they_take_it_back_or_fall_silent() {
        let space = Space::new(800);
        assert!(space.short_nodes(1).is_empty());
        space.told(2, true);
        space.told(3, true);
        assert_eq!(space.short_nodes(1), BTreeSet::from([2, 3]));
        space.told(3, false);
        for _ in 0..LOOKS_BELIEVED {
            space.look(1000, false);
        }
        assert_eq!(space.short_nodes(1), BTreeSet::from([2]));
        space.look(10, false);
        assert_eq!(space.short_nodes(1), BTreeSet::from([1]), "node 2 says nothing more");
    }
}
