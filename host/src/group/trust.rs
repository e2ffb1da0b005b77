//! Which leaders a replica follows that may have forgotten what it promised.
//!
//! It may have helped to elect a leader, and to acknowledge what that one wrote; then its disk was lost. An earlier leader that
//! has not heard of it takes itself for the leader still. With this replica's help it would make a majority once more, and commit
//! and answer as if its successor had never been. So a replica that begins empty in a group that has been running follows nobody,
//! until the others have told it from which term on it may (`node/whom_to_follow.rs`).
//!
//! Invariant: what was taken from a leader was taken with its vote, durably. A replica that has a vote has asked before.

use super::*;

/// Whom a replica follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Everyone: it has forgotten nothing.
    All,
    /// Leaders of this term and later ones.
    From(u64),
    /// Nobody yet.
    Nobody,
}

impl<P: Platform, T: Transport> Group<P, T> {
    fn trust(&self) -> std::sync::MutexGuard<'_, Trust> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this replica follows nobody before it is told from which term on it may.
    pub fn follows_nobody(&self) -> bool {
        *self.trust() == Trust::Nobody
    }

    /// It may follow leaders of this term and of later ones.
    pub fn follow_from(&self, term: u64) {
        let mut trust = self.trust();
        if *trust == Trust::Nobody {
            *trust = Trust::From(term);
        }
    }

    /// It may follow everyone.
    pub(super) fn follow_all(&self) {
        *self.trust() = Trust::All;
    }

    /// Refuses what a leader sends that this replica must not follow.
    pub(super) fn check_leader(&self, vote: &Vote) -> Result<(), String> {
        let term = vote.leader_id.term;
        match *self.trust() {
            Trust::Nobody => Err(format!(
                "group {}: this replica began empty, and asks the others first whom it may follow",
                self.name
            )),
            Trust::From(first) if term < first => Err(format!(
                "group {}: this replica began empty when the group was in term {first} already, and follows no leader of term {term}",
                self.name
            )),
            Trust::From(_) | Trust::All => Ok(()),
        }
    }
}
