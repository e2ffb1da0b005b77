//! What a group does by itself as time passes: the leader ends silent sessions and fires timers, every node
//! reports touches and takes snapshots. Everything that changes state goes through the log.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::*;

/// The longest the duties sleep; the snapshot policy is looked at this often.
pub(super) const IDLE: Duration = Duration::from_millis(500);
/// While a leader's entries are refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// The shortest, so that a crowd of deadlines costs one round.
const BUSY: Duration = Duration::from_millis(20);
/// After a snapshot that could not be written, or was refused although it is whole.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(5);
/// A snapshot that is due by time while one is sent is looked at again so much later.
const SENDING_PAUSE: Duration = Duration::from_secs(5);
/// While one is sent, the next is taken only after so many times as much as otherwise.
const SENDING_TIMES: u64 = 8;
/// See [`size_times`].
const SIZE_TIMES_MAX: u64 = 4;
/// Timers and sessions settled in one round.
const ROUND_MAX: usize = 1024;

struct Duties<P: Platform> {
    /// The term in which this node began to lead and count; 0 when it does not lead.
    counting_term: u64,
    /// When each session was last heard of, as this leader counts.
    heard: BTreeMap<u64, InstantOf<P>>,
    /// When to take the next snapshot by time.
    snapshot_due: InstantOf<P>,
    /// The applied index the last snapshot was asked for at.
    snapshot_asked: u64,
    /// Whether the last one could not be written, and it is time to try again.
    snapshot_again: Arc<AtomicBool>,
    /// Whether a snapshot is being written.
    writing: Arc<AtomicBool>,
    /// What of the log may go.
    cut: retention::Cut,
    /// Sessions and timers already proposed to end or fire, until they are gone.
    pending_timers: BTreeMap<(u64, u64), InstantOf<P>>,
    /// Leader and term, as last told to the operator.
    told: (Option<NodeId>, u64),
    /// When this replica was opened.
    opened: InstantOf<P>,
}

/// Runs until the group is gone or stopped.
pub async fn run<P: Platform, T: Transport>(group: Weak<Group<P, T>>) {
    let mut duties: Option<Duties<P>> = None;
    loop {
        let (sleep, shared) = {
            let Some(group) = group.upgrade() else { return };
            if group.is_stopped() {
                return;
            }
            let duties = duties.get_or_insert_with(|| Duties {
                counting_term: 0,
                heard: BTreeMap::new(),
                snapshot_due: InstantOf::<P>::now() + snapshot_interval(&group),
                snapshot_asked: 0,
                snapshot_again: Arc::default(),
                writing: Arc::default(),
                cut: retention::Cut::default(),
                pending_timers: BTreeMap::new(),
                told: (None, 0),
                opened: InstantOf::<P>::now(),
            });
            duties.tell(&group);
            duties.mend(&group);
            duties.snapshots(&group);
            group.trim(&mut duties.cut).await;
            duties.touches(&group);
            group.forget_stale_transfer().await;
            (duties.lead(&group).await, group.shared.clone())
        };
        RtOf::<P>::sleep(BUSY).await;
        RtOf::<P>::select2(RtOf::<P>::sleep(sleep.saturating_sub(BUSY)), shared.wake.notified()).await;
    }
}

/// A snapshot is being written; also when its task panics, it is not any more.
struct Writing(Arc<AtomicBool>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn snapshot_interval<P: Platform, T: Transport>(group: &Group<P, T>) -> Duration {
    let base = group.timing.snapshot_interval_ms;
    if base == 0 {
        return Duration::from_secs(u64::from(u32::MAX));
    }
    let jitter = crate::platform::random_u64(&group.platform) % (base / 4).max(1);
    Duration::from_millis(base.saturating_add(jitter))
}

/// How long a replica that was opened may wait until it knows a leader: it stands for election after one and a half times the timeout.
fn first_election<P: Platform, T: Transport>(group: &Group<P, T>) -> Duration {
    Duration::from_millis(group.timing.election_timeout_ms.saturating_mul(2))
}

/// How many times more log than usual is kept until the next snapshot: a large state costs as much to write as it is large, however
/// little of it has changed. At most so many times: a restart applies that log again.
fn size_times(newest_bytes: u64, snapshot_bytes: u64) -> u64 {
    newest_bytes.checked_div(snapshot_bytes).unwrap_or(1).clamp(1, SIZE_TIMES_MAX)
}

impl<P: Platform> Duties<P> {
    /// Says who leads, when that changed: at most once a round, so that a stormy night does not fill the log.
    fn tell<T: Transport>(&mut self, group: &Group<P, T>) {
        let now = group.leader_and_term();
        if now == self.told {
            return;
        }
        match now {
            (Some(leader), term) if leader == group.node => {
                tracing::info!(group = group.name, term, "this node leads");
            }
            (Some(leader), term) => tracing::info!(group = group.name, term, leader, "following"),
            // Nobody was lost: at a start a leader is elected first.
            (None, _) if self.told.0.is_none() && InstantOf::<P>::now() - self.opened < first_election(group) => return,
            (None, term) => tracing::warn!(group = group.name, term, "no leader is known"),
        }
        self.told = now;
    }

    fn snapshots<T: Transport>(&mut self, group: &Arc<Group<P, T>>) {
        // There is no state any more that one could be of.
        if group.shared.fault().is_some() {
            return;
        }
        let (applied, bytes) = group.shared.growth();
        let again = self.snapshot_again.swap(false, Ordering::Relaxed);
        let covered = group.shared.snapshot_index().max(if again { 0 } else { self.snapshot_asked });
        let now = InstantOf::<P>::now();
        // A newer one would make a follower that is being sent this one begin again, and the log behind this one go that it
        // needs next. Up to a bound: a follower that takes for ever must not keep the log for ever.
        let sending = group.transfers.is_sending(group.id);
        if sending && now >= self.snapshot_due {
            self.snapshot_due = now + SENDING_PAUSE;
        }
        let times = if sending {
            SENDING_TIMES
        } else {
            size_times(group.shared.snapshot_bytes(), group.timing.snapshot_bytes)
        };
        let by_time = now >= self.snapshot_due && applied > covered;
        let by_size = applied.saturating_sub(covered) >= group.timing.snapshot_entries.saturating_mul(times)
            || (bytes >= group.timing.snapshot_bytes.saturating_mul(times) && applied > covered);
        if (by_time || by_size || again && applied > covered) && !self.writing.load(Ordering::Relaxed) {
            self.snapshot_asked = applied;
            let (group, writing, again) = (group.clone(), Writing(self.writing.clone()), self.snapshot_again.clone());
            writing.0.store(true, Ordering::Relaxed);
            // Beside the other duties: sessions and timers do not wait for a large state to be written.
            drop(P::Runtime::spawn(async move {
                let written = group.snapshot().await;
                let (id, repeats) = (group.id, group.repeats.clone());
                drop((group, writing));
                if let Err(error) = written {
                    // Its words may have other numbers each time.
                    if let Some(times) =
                        repeats.came(&format!("{id}: no snapshot, {}", error.code.as_str()), InstantOf::<P>::now())
                    {
                        tracing::error!(%error, times, "the log cannot be shortened until a snapshot is written");
                    }
                    // Also when nothing more comes in: the disk may have space by then.
                    RtOf::<P>::sleep(SNAPSHOT_RETRY).await;
                    again.store(true, Ordering::Relaxed);
                }
            }));
        }
        if now >= self.snapshot_due || by_size {
            self.snapshot_due = now + snapshot_interval(group);
        }
    }

    /// Has a snapshot looked at that a follower refused, however much of it is on its way.
    fn mend<T: Transport>(&mut self, group: &Arc<Group<P, T>>) {
        let Some(digest) = group.transfers.doubted(group.id) else { return };
        if self.writing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (group, writing) = (group.clone(), Writing(self.writing.clone()));
        drop(P::Runtime::spawn(async move {
            let (transfers, id) = (group.transfers.clone(), group.id);
            let mended = group.mend_snapshot(digest).await;
            if matches!(mended, Ok(false)) {
                tracing::warn!(group = group.name, "the snapshot that a follower refused is whole here");
            }
            drop(group);
            if let Err(error) = &mended {
                tracing::error!(%error, "followers that need a snapshot wait until one is written");
            }
            // A whole one may be refused again, and would be read again for that.
            if !matches!(mended, Ok(true)) {
                RtOf::<P>::sleep(SNAPSHOT_RETRY).await;
            }
            if mended.is_ok() {
                transfers.trust(id);
            }
            drop(writing);
        }));
    }

    /// Tells the leader of the touches that reached this node.
    fn touches<T: Transport>(&mut self, group: &Arc<Group<P, T>>) {
        let Some(leader) = group.leader().filter(|leader| *leader != group.node) else { return };
        let mut sessions = std::mem::take(&mut *group.touched.lock().unwrap_or_else(PoisonError::into_inner));
        // The leader hears of applied commands by itself.
        drop(group.shared.take_heard());
        if sessions.is_empty() {
            return;
        }
        sessions.sort_unstable();
        sessions.dedup();
        let request = PeerRequest::Touch(group.id, sessions.clone());
        let sent = call::<RtOf<P>, T>(&group.transport, leader, Lane::Consensus, &request);
        let group = group.clone();
        drop(P::Runtime::spawn(async move {
            if sent.await.is_err() {
                // For the next leader, or the next try.
                group.hear(sessions);
            }
        }));
    }

    /// The leader's part; how long to sleep until the next.
    async fn lead<T: Transport>(&mut self, group: &Arc<Group<P, T>>) -> Duration {
        let standing_term = group.raft.metrics().borrow_watched().current_term;
        if !group.leads() {
            self.counting_term = 0;
            self.heard.clear();
            self.pending_timers.clear();
            return self.until_touches(group);
        }
        let now = InstantOf::<P>::now();
        if self.counting_term != standing_term {
            // A new leader knows nothing of what its predecessor heard.
            self.counting_term = standing_term;
            self.heard.clear();
            self.pending_timers.clear();
        }
        let mut touched = std::mem::take(&mut *group.touched.lock().unwrap_or_else(PoisonError::into_inner));
        touched.append(&mut group.shared.take_heard());
        for id in touched {
            self.heard.insert(id, now);
        }
        let shared = group.shared.clone();
        let tables = group.platform.run_guest(move || {
            let core = shared.core();
            let sessions = core.host.sessions.iter();
            let sessions: Vec<_> = sessions.map(|(id, of)| (*id, of.timeout_ms, of.attachment)).collect();
            let mut timers: Vec<(u64, u64)> = core.host.timers.iter().map(|(id, at_ms)| (*id, *at_ms)).collect();
            timers.sort_unstable_by_key(|(id, at_ms)| (*at_ms, *id));
            timers.truncate(ROUND_MAX);
            (sessions, timers, core.host.time_ms)
        });
        let Some((sessions, timers, time_ms)) = tables.await else { return IDLE };
        if !group.takes_entries() {
            return REFUSED_PAUSE;
        }
        let mut next = IDLE;
        let mut kinds = Vec::new();
        self.silent_sessions(now, &sessions, &mut next, &mut kinds);
        // The log's time, where this node's clock is behind that of an earlier leader.
        let time_ms = time_ms.max(group.platform.wall_ms());
        self.due_timers(group, now, time_ms, &timers, &mut next, &mut kinds);
        if !kinds.is_empty() {
            // Only as the leader that has counted: the next one gives every session its time again. Not waited for: what comes of it shows in
            // the tables at the next round.
            let (group, term) = (group.clone(), self.counting_term);
            drop(P::Runtime::spawn(async move { group.propose_in(term, kinds).await }));
        }
        next
    }

    fn until_touches<T: Transport>(&self, group: &Group<P, T>) -> Duration {
        let waiting = !group.touched.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if waiting { Duration::from_millis(100) } else { IDLE }
    }

    fn silent_sessions(
        &mut self,
        now: InstantOf<P>,
        sessions: &[(u64, u64, u64)],
        next: &mut Duration,
        kinds: &mut Vec<EntryKind>,
    ) {
        let known: std::collections::BTreeSet<u64> = sessions.iter().map(|(id, ..)| *id).collect();
        self.heard.retain(|id, _| known.contains(id));
        for (id, timeout_ms, attachment) in sessions {
            let timeout = Duration::from_millis(*timeout_ms);
            let heard = *self.heard.entry(*id).or_insert(now);
            let silent = now - heard;
            if silent < timeout {
                *next = (*next).min(timeout - silent);
            } else if kinds.len() < ROUND_MAX {
                // Not of one that was attached to a moment ago, by an entry that is not applied here yet.
                kinds.push(EntryKind::CloseSession { id: *id, secret: None, attachment: Some(*attachment) });
                // Asked once; if the entry is lost, again after another timeout.
                self.heard.insert(*id, now);
            }
        }
    }

    fn due_timers<T: Transport>(
        &mut self,
        group: &Group<P, T>,
        now: InstantOf<P>,
        time_ms: u64,
        timers: &[(u64, u64)],
        next: &mut Duration,
        kinds: &mut Vec<EntryKind>,
    ) {
        let retry = Duration::from_millis(group.timing.election_timeout_ms.saturating_mul(4));
        self.pending_timers.retain(|timer, asked| timers.contains(timer) && now - *asked < retry);
        let mut due = Vec::new();
        for (id, at_ms) in timers {
            if *at_ms > time_ms {
                *next = (*next).min(Duration::from_millis(at_ms - time_ms));
                break;
            }
            if let std::collections::btree_map::Entry::Vacant(pending) = self.pending_timers.entry((*id, *at_ms)) {
                pending.insert(now);
                due.push((*id, *at_ms));
            }
        }
        if !due.is_empty() {
            kinds.push(EntryKind::Timers { due });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 64 MiB of log a state of hundreds was written anew, on all nodes at the same time: clients with large values waited for it.
    #[test]
    fn a_snapshot_is_not_written_for_a_fraction_of_its_size_in_log() {
        assert_eq!([0, 63, 64, 200, 10_000].map(|newest| size_times(newest, 64)), [1, 1, 1, 3, 4]);
        assert_eq!(size_times(1 << 30, 0), 1, "every entry's snapshot was asked for");
    }
}
