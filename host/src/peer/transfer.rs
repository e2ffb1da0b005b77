//! What all snapshots that a node sends share: how many go out at once, how fast they are together, what they counted.
//!
//! Invariants:
//! - Whoever waits for its turn or for its bytes' time waits in a task of its own: no heartbeat, no entry and no question of
//!   another lane is behind it.
//! - A follower that does not answer, or is slow to, keeps nobody's turn from coming: only who is being answered has one, and
//!   gives it back after a while of waiting.
//! - A snapshot that a follower found damaged is not sent again before it was looked at, and written anew if it is.
//! - What is sent is read where the disk may be waited for (`Platform::run_guest`), from a file that stays open: a newer
//!   snapshot may take its name's place meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;

use crate::membership::Receives;
use crate::platform::Platform;
use crate::snapshot::HeldSnapshot;
use crate::types::GroupId;
use crate::types::NodeId;

/// How snapshots go out.
#[derive(Clone, Copy, Debug)]
pub struct TransferSettings {
    /// Bytes a second of all of them together; 0: as fast as it goes.
    pub bytes_per_second: u64,
    /// How many at once; the others wait. At least 1.
    pub at_once: usize,
    /// Bytes of a file in one message.
    pub part_bytes: usize,
    /// A transfer that was cut is expected to go on within this time, and a follower that got its snapshot to need the log
    /// behind it: so long the group's next snapshot is put off.
    pub linger: Duration,
}

impl Default for TransferSettings {
    fn default() -> Self {
        Self { bytes_per_second: 32 << 20, at_once: 2, part_bytes: 256 << 10, linger: Duration::from_secs(60) }
    }
}

/// So long a transfer may wait for its follower's answers before others have their turn.
const TURN_WAITS_MAX: Duration = Duration::from_secs(5);

/// Counts of transfers since the node started.
#[derive(Debug, Default)]
pub struct TransferCounts {
    /// Transfers that were begun, those that went on where another was cut among them.
    pub begun: AtomicU64,
    /// Of these, how many went on.
    pub resumed: AtomicU64,
    /// Installed by the follower.
    pub finished: AtomicU64,
    /// Cut, refused or given up.
    pub failed: AtomicU64,
    /// Bytes of files that were sent.
    pub sent_bytes: AtomicU64,
    /// Bytes that were not sent again, because a cut transfer had brought them.
    pub resumed_bytes: AtomicU64,
    /// Time for which the limits held transfers up, microseconds.
    pub throttled_micros: AtomicU64,
    /// Transfers that run or wait for their turn.
    pub under_way: AtomicU64,
    /// Bytes of files that were received.
    pub received_bytes: AtomicU64,
    /// Incoming transfers that went on with what was here already, also since before a restart.
    pub received_resumed: AtomicU64,
    /// Parts that did not check out and were refused.
    pub refused_parts: AtomicU64,
}

/// Adds to a count.
pub fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

type InstantOf<P> = <<P as Platform>::Runtime as AsyncRuntime>::Instant;

/// What is known of a group's snapshot that is on its way to a node.
struct Sending<I> {
    /// The index that it covers.
    index: u64,
    /// Transfers that are taken, or wait for their turn to go on.
    now: u32,
    progress: Receives,
    /// When something of one was taken last.
    last: I,
}

type Followers<T> = BTreeMap<(GroupId, NodeId), T>;

struct Inner<P: Platform> {
    platform: P,
    settings: TransferSettings,
    turns: Semaphore,
    /// From when on the next bytes may go.
    free_at: Mutex<Option<InstantOf<P>>>,
    sending: Mutex<Followers<Sending<InstantOf<P>>>>,
    /// Snapshots that may be damaged on this node's disk, by digest.
    doubted: Mutex<BTreeMap<GroupId, [u8; 32]>>,
    counts: TransferCounts,
}

/// The snapshots that a node sends. Clones are the same.
pub struct Transfers<P: Platform>(Arc<Inner<P>>);

impl<P: Platform> Clone for Transfers<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl<P: Platform> Transfers<P> {
    /// Nothing is sent yet.
    pub fn new(platform: P, settings: TransferSettings) -> Self {
        let turns = Semaphore::new(settings.at_once.clamp(1, Semaphore::MAX_PERMITS));
        Self(Arc::new(Inner {
            platform,
            settings,
            turns,
            free_at: Mutex::new(None),
            sending: Mutex::default(),
            doubted: Mutex::default(),
            counts: TransferCounts::default(),
        }))
    }

    /// What was counted.
    pub fn counts(&self) -> &TransferCounts {
        &self.0.counts
    }

    /// Bytes of a file in one message.
    pub fn part_bytes(&self) -> usize {
        self.0.settings.part_bytes.max(1)
    }

    /// A transfer of the group's snapshot that covers `index` wants to begin. It has no turn yet.
    pub fn transfer(&self, group: GroupId, to: NodeId, index: u64) -> Transfer<'_, P> {
        count(&self.0.counts.under_way, 1);
        Transfer { transfers: self, group, to, index, done: false, taken: false, turn: None, waited: Duration::ZERO }
    }

    /// Waits until so many bytes may go.
    pub async fn pace(&self, bytes: usize) {
        let rate = self.0.settings.bytes_per_second;
        if rate == 0 {
            return;
        }
        let now = InstantOf::<P>::now();
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let begins = {
            let mut free_at = lock(&self.0.free_at);
            let begins = free_at.map_or(now, |free_at| free_at.max(now));
            *free_at = Some(begins + takes);
            begins
        };
        if begins > now {
            count(&self.0.counts.throttled_micros, micros(begins - now));
            P::Runtime::sleep_until(begins).await;
        }
    }

    /// Reads from a snapshot, where the disk may be waited for.
    pub async fn read(&self, file: &HeldSnapshot, offset: u64) -> io::Result<Vec<u8>> {
        let (file, length) = (file.clone(), self.part_bytes());
        let read = self.0.platform.run_guest(move || file.read(offset, length)).await;
        read.unwrap_or_else(|| Err(io::Error::other("a file job failed")))
    }

    /// Whether the group's snapshot is on its way to a follower that takes it, or was a moment ago.
    pub fn is_sending(&self, group: GroupId) -> bool {
        !self.sent_to(group).is_empty()
    }

    /// The followers that take the group's snapshot, and how far they have come.
    pub fn under_way(&self, group: GroupId) -> BTreeMap<NodeId, Receives> {
        let sending = lock(&self.0.sending);
        let of = sending.range((group, NodeId::MIN)..=(group, NodeId::MAX)).filter(|(_, sending)| sending.now > 0);
        of.map(|((_, to), sending)| (*to, sending.progress)).collect()
    }

    /// The followers that the group's snapshot is on its way to, or was a moment ago, and the index that it covers.
    pub fn sent_to(&self, group: GroupId) -> BTreeMap<NodeId, u64> {
        let (now, linger) = (InstantOf::<P>::now(), self.0.settings.linger);
        let mut sending = lock(&self.0.sending);
        sending.retain(|_, sending| sending.now > 0 || now - sending.last < linger);
        let of = sending.range((group, NodeId::MIN)..=(group, NodeId::MAX));
        of.map(|((_, to), sending)| (*to, sending.index)).collect()
    }

    /// The group's snapshot of this digest could not be read, or a follower found it damaged. It is not sent until the group has
    /// looked at it.
    pub fn doubt(&self, group: GroupId, digest: [u8; 32]) {
        lock(&self.0.doubted).insert(group, digest);
    }

    /// The snapshot that the group is to look at.
    pub fn doubted(&self, group: GroupId) -> Option<[u8; 32]> {
        lock(&self.0.doubted).get(&group).copied()
    }

    /// The group's newest snapshot is what was written.
    pub fn trust(&self, group: GroupId) {
        lock(&self.0.doubted).remove(&group);
    }
}

/// A snapshot on its way to one follower; it ends when this is dropped, also with the task that sends.
pub struct Transfer<'a, P: Platform> {
    transfers: &'a Transfers<P>,
    group: GroupId,
    to: NodeId,
    index: u64,
    done: bool,
    /// Whether the follower has said that it takes it.
    taken: bool,
    turn: Option<SemaphorePermit<'a>>,
    /// How long it has waited for its follower in this turn.
    waited: Duration,
}

impl<P: Platform> Transfer<'_, P> {
    /// Waits for its turn. Who has one, and has waited long for its follower in it, gives it to those who wait, and comes after.
    pub async fn turn(&mut self) {
        if self.turn.is_some() && self.waited < TURN_WAITS_MAX {
            return;
        }
        self.turn = None;
        self.waited = Duration::ZERO;
        let asked = InstantOf::<P>::now();
        // Never closed; whoever asked before is first.
        self.turn = self.transfers.0.turns.acquire().await.ok();
        count(&self.transfers.0.counts.throttled_micros, micros(InstantOf::<P>::now() - asked));
    }

    /// So long the follower took to answer.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// The follower has so much of it, bytes.
    pub fn has(&mut self, bytes: u64, of: u64) {
        self.seen();
        if let Some(sending) = lock(&self.transfers.0.sending).get_mut(&(self.group, self.to)) {
            sending.progress = Receives { bytes, of };
        }
    }

    /// The follower takes it, and goes on taking it.
    pub fn seen(&mut self) {
        let now = InstantOf::<P>::now();
        let mut sending = lock(&self.transfers.0.sending);
        let begun = Sending { index: self.index, now: 0, last: now, progress: Receives { bytes: 0, of: 0 } };
        let sending = sending.entry((self.group, self.to)).or_insert(begun);
        sending.index = self.index;
        sending.now += u32::from(!std::mem::replace(&mut self.taken, true));
        sending.last = now;
    }

    /// All bytes are sent: others may have their turn while the follower installs them.
    pub fn all_sent(&mut self) {
        self.seen();
        self.turn = None;
    }

    /// The follower has installed it.
    pub fn finished(mut self) {
        self.seen();
        self.done = true;
    }
}

impl<P: Platform> Drop for Transfer<'_, P> {
    fn drop(&mut self) {
        if self.taken
            && let Some(sending) = lock(&self.transfers.0.sending).get_mut(&(self.group, self.to))
        {
            sending.now = sending.now.saturating_sub(1);
            // The follower may have been silent for long when it is given up; the time to come back begins here.
            sending.last = InstantOf::<P>::now();
        }
        let counts = &self.transfers.0.counts;
        counts.under_way.fetch_sub(1, Ordering::Relaxed);
        count(if self.done { &counts.finished } else { &counts.failed }, 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::sim::Life;
    use crate::sim::LifeRuntime;
    use crate::sim::SimPlatform;
    use crate::sim::SimRandom;

    fn transfers(bytes_per_second: u64, at_once: usize) -> Transfers<SimPlatform> {
        let platform = SimPlatform::new(Life::new(1, 1), SimRandom::new(1), 0, 0);
        let linger = Duration::from_secs(3);
        Transfers::new(platform, TransferSettings { bytes_per_second, at_once, linger, ..TransferSettings::default() })
    }

    fn now() -> InstantOf<SimPlatform> {
        InstantOf::<SimPlatform>::now()
    }

    fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Two transfers together are as fast as one alone: the limit is the node's.
    #[test]
    fn all_transfers_together_keep_to_the_rate() {
        LifeRuntime::with_seed(1).block_on(async {
            let transfers = transfers(1000, 2);
            let began = now();
            let send = |transfers: Transfers<SimPlatform>| async move {
                for _ in 0..5 {
                    transfers.pace(500).await;
                }
            };
            let tasks = [LifeRuntime::spawn(send(transfers.clone())), LifeRuntime::spawn(send(transfers.clone()))];
            for task in tasks {
                task.await.unwrap();
            }
            // The tenth part of half a second each may go after nine of them.
            assert_eq!(now() - began, Duration::from_millis(4500));
            assert!(read(&transfers.counts().throttled_micros) >= 4_500_000);
            // What was not used is not saved up.
            LifeRuntime::sleep(Duration::from_secs(100)).await;
            let began = now();
            transfers.pace(500).await;
            transfers.pace(500).await;
            assert_eq!(now() - began, Duration::from_millis(500));
        });
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        LifeRuntime::with_seed(1).block_on(async {
            let (transfers, began) = (transfers(0, 1), now());
            transfers.pace(1 << 30).await;
            assert_eq!((now(), read(&transfers.counts().throttled_micros)), (began, 0));
        });
    }

    /// Whether the transfer has to wait for its turn.
    async fn waits(transfer: &mut Transfer<'_, SimPlatform>) -> bool {
        let turn = std::pin::pin!(transfer.turn());
        LifeRuntime::timeout(Duration::from_secs(1), turn).await.is_err()
    }

    /// So many at once and no more; who has sent all, or gave up, makes room for the next.
    #[test]
    fn a_transfer_has_its_turn_when_another_has_sent_all_or_gave_up() {
        LifeRuntime::with_seed(1).block_on(async {
            let transfers = transfers(0, 1);
            let (mut first, mut second) = (transfers.transfer(7, 2, 5), transfers.transfer(8, 2, 5));
            first.turn().await;
            assert!(waits(&mut second).await);
            first.all_sent();
            assert!(!waits(&mut second).await, "the follower installs the first one meanwhile");
            first.finished();
            let mut third = transfers.transfer(9, 2, 5);
            assert!(waits(&mut third).await);
            drop(second);
            assert!(!waits(&mut third).await);
            drop(third);
            let counts = transfers.counts();
            assert_eq!((read(&counts.finished), read(&counts.failed), read(&counts.under_way)), (1, 2, 0));
        });
    }

    /// Two followers took a part in nine seconds each, and for hours no other one was sent anything: each had one of the two
    /// turns to the end of its file.
    #[test]
    fn who_waits_long_for_its_follower_lets_others_go_first_and_who_does_not_stays() {
        LifeRuntime::with_seed(1).block_on(async {
            let transfers = transfers(0, 1);
            let order = Arc::new(Mutex::new(Vec::new()));
            let send = |name: &'static str, begins_s: u64, answer_s: u64| {
                let (transfers, order) = (transfers.clone(), order.clone());
                LifeRuntime::spawn(async move {
                    LifeRuntime::sleep(Duration::from_secs(begins_s)).await;
                    let mut transfer = transfers.transfer(begins_s, 2, 5);
                    for _ in 0..3 {
                        transfer.turn().await;
                        order.lock().unwrap().push(name);
                        LifeRuntime::sleep(Duration::from_secs(answer_s)).await;
                        transfer.waited(Duration::from_secs(answer_s));
                    }
                })
            };
            for sent in [send("slow", 0, 9), send("quick", 1, 1)] {
                sent.await.unwrap();
            }
            assert_eq!(*order.lock().unwrap(), ["slow", "quick", "quick", "quick", "slow", "slow"]);
        });
    }

    #[test]
    fn a_group_is_sending_while_one_is_taken_and_until_a_while_after() {
        LifeRuntime::with_seed(1).block_on(async {
            let transfers = transfers(0, 2);
            let mut transfer = transfers.transfer(7, 2, 5);
            transfer.turn().await;
            assert!(!transfers.is_sending(7), "nobody has taken anything");
            transfer.seen();
            // It may wait for its turn for longer than a follower that is gone is waited for.
            LifeRuntime::sleep(Duration::from_secs(30)).await;
            assert!(transfers.is_sending(7) && !transfers.is_sending(8));
            assert_eq!(transfers.sent_to(7), BTreeMap::from([(2, 5)]));
            transfer.seen();
            LifeRuntime::sleep(Duration::from_secs(10)).await;
            drop(transfer);
            assert!(transfers.is_sending(7), "it was given up only now");
            LifeRuntime::sleep(Duration::from_secs(3)).await;
            assert!(!transfers.is_sending(7));
        });
    }
}
