//! How much of its log a group keeps behind its newest snapshot. openraft's own policy counts entries only and knows no
//! followers, so it is off, and everything that is purged is asked for here.
//!
//! Invariants:
//! - Nothing goes that the newest snapshot does not cover (openraft sees to that).
//! - Behind it stay at most [`Timing::log_entries_kept`] entries and [`Timing::log_bytes_kept`], for a follower that is a little
//!   behind.
//! - A leader keeps more for a member that can still be brought up to date by the log, and for one that is sent a snapshot: all
//!   that comes after it. Else a follower whose snapshot takes long to send needs the next one as soon as it has it, for ever.
//! - That too has a bound ([`Timing::log_bytes_held`], or the newest snapshot's bytes if they are more: so much log takes as
//!   long to send as the snapshot), and ends where the disk has no space for it.

use openraft::async_runtime::watch::WatchReceiver;

use super::*;
use crate::types::LogId;

/// What was worked out for a snapshot, since it means to look at many entries.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// The index that the snapshot covers.
    covered: u64,
    /// What may go if no follower needs it.
    spare: u64,
    /// What has to go whoever needs it; worked out when somebody does.
    surplus: Option<u64>,
}

/// The last entry to go: all that is spare, but nothing that comes after the `places` of those who can go on from the log.
/// `surplus` is what goes all the same.
fn last_to_go(purged: u64, spare: u64, places: impl Iterator<Item = u64>, surplus: impl FnOnce() -> u64) -> u64 {
    let needed = places.filter(|place| *place >= purged).min();
    match needed.filter(|place| *place < spare) {
        Some(place) => surplus().max(place),
        None => spare,
    }
}

impl<P: Platform, T: Transport> Group<P, T> {
    /// Purges what need not be kept. `cut` is what an earlier call worked out.
    pub(super) async fn trim(&self, cut: &mut Cut) {
        let receiver = self.raft.metrics();
        let (covered, purged) = {
            let metrics = receiver.borrow_watched();
            // What openraft does not know of yet it would not cut, and would not be asked for again.
            let covered = metrics.snapshot.as_ref().map(|log_id| log_id.index);
            let purged = metrics.purged.as_ref().map_or(0, |log_id| log_id.index);
            (covered.min(metrics.last_log_index), purged)
        };
        let Some(covered) = covered.filter(|covered| *covered > purged) else { return };
        if cut.covered != covered {
            let by_entries = covered.saturating_sub(self.timing.log_entries_kept);
            let kept = self.timing.log_bytes_kept.max(self.shared.snapshot_bytes() / 4);
            let by_bytes = self.log.too_much(covered, kept).unwrap_or(0);
            *cut = Cut { covered, spare: by_entries.max(by_bytes), surplus: None };
        }
        if cut.spare <= purged {
            return;
        }
        let held = match self.timing.log_bytes_held {
            0 => 0,
            _ if self.space.is_short() => 0,
            held => held.max(self.shared.snapshot_bytes()),
        };
        let sent = self.transfers.sent_to(self.id);
        let matched = receiver.borrow_watched().replication.clone().unwrap_or_default();
        let place = |(node, matched): (NodeId, Option<LogId>)| {
            let matched = matched.map(|log_id| log_id.index).filter(|_| node != self.node);
            matched.max(sent.get(&node).copied())
        };
        let places = matched.into_iter().filter_map(place).filter(|_| held > 0);
        let surplus = &mut cut.surplus;
        let upto = last_to_go(purged, cut.spare, places, || {
            *surplus.get_or_insert_with(|| self.log.too_much(covered, held).unwrap_or(0))
        });
        if upto > purged {
            // It fails when the group is stopped.
            let _stopped = self.raft.trigger().purge_log(upto).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state of 1 GiB was sent to a new member while others wrote. When it had it, the log behind it was gone, and it was sent the
    /// next one, and so on without an end (found by `tests/keeper/grow`).
    #[test]
    fn what_a_follower_needs_next_stays_until_it_is_too_much() {
        let go = |purged, places: &[u64], surplus| last_to_go(purged, 900, places.iter().copied(), || surplus);
        assert_eq!(go(0, &[], 0), 900);
        assert_eq!(go(0, &[1000, 990], 0), 900, "who is near is served by what is kept for all");
        assert_eq!(go(100, &[1000, 500], 0), 500);
        assert_eq!(go(100, &[100, 500], 0), 100, "it needs the first that is there");
        assert_eq!(go(100, &[1000, 50], 0), 900, "it needs a snapshot whatever is kept");
        assert_eq!(go(100, &[50, 600], 0), 600);
        assert_eq!(go(100, &[500], 700), 700, "so much is not kept for anyone");
    }
}
