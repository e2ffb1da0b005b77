//! Where a replica's newest snapshot and its log meet, before consensus looks at them.
//!
//! Invariants (DESIGN section 5, step 3):
//! - The log begins where the snapshot ends, or before.
//! - An entry at the index where the snapshot ends is the one that it covers. A snapshot that was received from a leader
//!   replaces entries of an earlier one; it may be durable, and the crash come, before their removal from the log is. What is left of
//!   them was never committed, or is covered.

use std::io;

use openraft::RaftLogReader;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::RaftLogStorage;

use crate::log::GroupLog;
use crate::types::LogId;

/// The replica's snapshots do not reach to where its log begins: one is damaged, or gone.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unjoined(String);

impl Unjoined {
    /// Whether this is why a group could not be opened.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// Refuses a log that begins behind what the snapshot covers, and removes entries that the snapshot has replaced. `whose` names the
/// replica in messages.
pub(super) async fn settle<RT: AsyncRuntime>(
    mut log: GroupLog<RT>,
    snapshot: Option<LogId>,
    whose: impl FnOnce() -> String,
) -> io::Result<()> {
    let state = log.get_log_state().await?;
    let purged = state.last_purged_log_id.map_or(0, |log_id| log_id.index);
    let covered = snapshot.map_or(0, |snapshot| snapshot.index);
    if purged > covered {
        let reason = format!(
            "{}: the log begins after index {purged}, but the newest readable one covers only up to {covered}: entries \
             between are missing. The snapshot file may be restored from a copy of this node's directory",
            whose()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, Unjoined(reason)));
    }
    let Some(snapshot) = snapshot else { return Ok(()) };
    let here = log.try_get_log_entries(snapshot.index..=snapshot.index).await?;
    // Entries that end before it and are of a later term than it: consensus takes such a log for one that goes beyond it.
    let ends_before = state.last_log_id.is_some_and(|last| last.index < snapshot.index && last > snapshot);
    if ends_before || here.first().is_some_and(|entry| entry.log_id != snapshot) {
        tracing::warn!(replica = whose(), %snapshot, "entries that the snapshot has replaced are removed from the log");
        log.truncate_after(state.last_purged_log_id).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;
    use std::sync::Arc;

    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::log::Addition;
    use crate::log::LogOptions;
    use crate::log::NodeLog;
    use crate::log::log_id;
    use crate::sim::LifeRuntime;
    use crate::types::Entry;
    use crate::types::LeaderId;
    use crate::types::Payload;
    use crate::types::Vote;

    /// A log with entries 1 to 10 of term 4.
    fn log() -> GroupLog<LifeRuntime> {
        let options = LogOptions { segment_bytes: 16 << 10, salt: 5, ..LogOptions::default() };
        let (log, _) = NodeLog::open(Arc::new(SimDisk::new()), Path::new("/log"), options, Arc::new(|_| {})).unwrap();
        let entries = (1..=10).map(|index| Entry { log_id: log_id(4, index), payload: Payload::Blank }).collect();
        let vote = Vote { leader_id: LeaderId::new(4, 1), committed: true };
        log.write_at_once(vec![Addition { group: 7, covered: None, vote, entries }]).unwrap();
        log.group(7)
    }

    fn settled(log: &GroupLog<LifeRuntime>, snapshot: Option<LogId>) -> Option<LogId> {
        let mut log = log.clone();
        LifeRuntime::with_seed(1).block_on(async move {
            settle(log.clone(), snapshot, String::new).await.unwrap();
            log.get_log_state().await.unwrap().last_log_id
        })
    }

    #[test]
    fn entries_that_the_snapshot_covers_or_that_follow_it_stay() {
        let log = log();
        assert_eq!(settled(&log, None), Some(log_id(4, 10)));
        assert_eq!(settled(&log, Some(log_id(4, 8))), Some(log_id(4, 10)));
        assert_eq!(settled(&log, Some(log_id(5, 12))), Some(log_id(4, 10)), "the hole is consensus's to close");
    }

    /// The entries are of a term that nobody was elected in by those who have the snapshot, and there are fewer of them: the leader's next
    /// entry never followed, and the replica stopped at each start.
    #[test]
    fn entries_of_a_later_term_that_end_before_a_received_snapshot_are_cut() {
        let log = log();
        assert_eq!(settled(&log, Some(log_id(3, 12))), None);
    }

    /// A leader of term 5 sent its snapshot up to 8 to a follower with entries of term 4 up to 10. The snapshot was durable when the
    /// power failed, and that the entries were cut was not: openraft found the log "inverted", and the replica never opened again.
    #[test]
    fn entries_that_a_received_snapshot_replaced_are_cut_also_after_a_crash_between() {
        let log = log();
        assert_eq!(settled(&log, Some(log_id(5, 8))), None);
        assert_eq!(settled(&log, Some(log_id(5, 8))), None);
    }
}
