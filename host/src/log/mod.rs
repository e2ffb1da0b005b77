//! The node's log: one log on disk for all Raft groups of a node, so that one sync serves them all.
//!
//! How a write goes: [`GroupLog`] (what openraft calls) changes the visible state, encodes the
//! records on the caller's thread and queues them. The one *writer* takes all that is queued, of
//! whatever groups, as one batch: one write, one sync, then everyone in it is told. What is queued
//! while a sync is under way is the next batch, so batches grow with the load.
//!
//! Invariants of the parts, each at the head of its file:
//!
//! - `record`: what a batch consists of. `segment`: batches and files; torn against corrupt.
//! - `state`: the visible state. `writer`: what is written, in which order. `recovery`: reading it
//!   back. `driver`: who runs the writer. `group`: openraft's storage traits on top.
//!
//! Nothing here knows a clock, a thread (but for [`ThreadDriver`]) or random numbers: the salt of a
//! new log comes with the options.

mod at_once;
mod driver;
mod error;
mod files;
pub mod fuzz;
mod group;
mod inspect;
mod read;
mod record;
mod recovery;
mod segment;
mod state;
mod stats;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use openraft::async_runtime::AsyncRuntime;

use crate::disk::Disk;
use crate::tally::Summary;
use crate::types::GroupId;

pub use at_once::Addition;
pub use driver::ThreadDriver;
pub use error::LogError;
pub use group::GroupLog;
pub use inspect::EntryPlace;
pub use inspect::EntryReader;
pub use inspect::InspectedGroup;
pub use inspect::InspectedRecord;
pub use inspect::InspectedSegment;
pub use inspect::Inspection;
pub use inspect::inspect;
pub use inspect::inspect_records;
pub use record::MAX_PAYLOAD_BYTES;
pub use record::Record;
pub use record::RecordError;
pub use record::log_id;
pub use recovery::Cut;
pub use recovery::RecoveryReport;
pub use recovery::is_there;
pub use segment::SegmentHeader;
pub use segment::segment_name;
pub use stats::LogStats;
pub use stats::RECENT_SYNCS;
pub use stats::SYNC_BUCKETS_MICROS;

use state::Done;
use state::State;
use writer::Writer;

/// Called once, at the first error after which the log does nothing more. In production it tells the
/// operator and ends the process ([`LogError::Sync`] must never be outlived).
pub type FatalHook = Arc<dyn Fn(&LogError) + Send + Sync>;

/// How a log behaves. None of it is part of the format: a log may be opened with other options later.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Size of new segments, bytes; a multiple of 4096 from 16 KiB to 2 GiB. Default 64 MiB.
    pub segment_bytes: u64,
    /// Memory for recent entries of all groups, bytes. Default 64 MiB. Entries that are not synced yet
    /// are kept beyond it.
    pub cache_bytes: usize,
    /// How much is written with one sync, bytes; a single larger entry is still written. Default 8 MiB.
    pub max_batch_bytes: usize,
    /// How many segments there may be before old entries of slow groups are copied forward so that
    /// their segments can be given up. Default 8. Beyond it the files hold at most about twice the live
    /// entries.
    pub keep_segments: usize,
    /// How many unused segments are kept for later. Default 2.
    pub spare_segments: usize,
    /// Fill new segments with zeros instead of only reserving their space: a write into a filled one
    /// changes no file system metadata, so its sync is about twice as fast. Default true.
    pub zero_new_segments: bool,
    /// How much one read of entries returns at most where openraft lets the log choose, bytes.
    /// Default 1 MiB.
    pub read_bytes: usize,
    /// Syncs longer than this are counted and warned of, microseconds. Default one second.
    pub slow_sync_micros: u64,
    /// A random number for a new log; an existing one keeps its own. It must not be known to clients.
    pub salt: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            max_batch_bytes: 8 << 20,
            keep_segments: 8,
            spare_segments: 2,
            zero_new_segments: true,
            read_bytes: 1 << 20,
            slow_sync_micros: 1_000_000,
            salt: 0,
        }
    }
}

impl LogOptions {
    fn check(&self) -> Result<(), LogError> {
        let segment = self.segment_bytes;
        if !(16 << 10..=2 << 30).contains(&segment) || !segment.is_multiple_of(4096) {
            let what = format!("segment_bytes is {segment}, it must be a multiple of 4096 from 16 KiB to 2 GiB");
            return Err(LogError::Options(what));
        }
        Ok(())
    }
}

/// The log of a node. Clones are the same log.
#[derive(Clone)]
pub struct NodeLog {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: LogOptions,
    fatal: FatalHook,
    state: Mutex<State>,
    /// Told when the queue has something, for a driver that waits as a thread.
    queued: Condvar,
    /// Until a driver takes it.
    writer: Mutex<Option<Writer>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the driver; called after something was queued.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        state.wake();
        drop(state);
        self.queued.notify_one();
    }

    /// Ends the log at its first fatal error: everyone who waits, and everyone who comes, is told.
    fn stop(&self, error: &LogError, in_flight: Vec<Done>) {
        let mut state = self.lock();
        let first = state.stopped.is_none();
        if first {
            state.stopped = Some(error.clone());
        }
        // What a leaving node has no room for it has promised to nobody.
        let harmless =
            matches!(error, LogError::Closed) || (state.leaving && matches!(error, LogError::DiskFull { .. }));
        let queue = std::mem::take(&mut state.queue);
        state.queued_bytes = 0;
        state.wake();
        drop(state);
        self.queued.notify_all();
        // The hook first: it ends the process after a failed sync, before anyone can act on an answer.
        if first && !harmless {
            (self.fatal)(error);
        }
        for done in in_flight.into_iter().chain(queue.into_iter().filter_map(|operation| operation.done)) {
            done(Err(error.clone()));
        }
    }
}

impl NodeLog {
    /// Opens the log in `dir`, which is created if it does not exist: reads all segments, cuts a torn
    /// tail, and refuses damage before the tail with file and offset. Afterwards everything that the
    /// log shows is durable.
    ///
    /// Blocks while it reads. Nothing is written until a driver runs: see [`NodeLog::start_thread`] and
    /// [`NodeLog::drive`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
        fatal: FatalHook,
    ) -> Result<(NodeLog, RecoveryReport), LogError> {
        options.check()?;
        let recovered = recovery::open(&disk, dir, &options)?;
        let shared = Shared {
            disk,
            dir: dir.to_owned(),
            options,
            fatal,
            state: Mutex::new(recovered.state),
            queued: Condvar::new(),
            writer: Mutex::new(Some(recovered.writer)),
        };
        Ok((NodeLog { shared: Arc::new(shared) }, recovered.report))
    }

    /// The part of the log that is `group`'s. A group that the log does not know is empty.
    pub fn group<RT: AsyncRuntime>(&self, group: GroupId) -> GroupLog<RT> {
        GroupLog::new(self.clone(), group)
    }

    /// The groups that the log knows, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared.lock().groups.keys().copied().collect()
    }

    /// Forgets a group and all its entries. Returns once that is durable.
    pub async fn remove_group<RT: AsyncRuntime>(&self, group: GroupId) -> Result<(), LogError> {
        group::remove::<RT>(self, group).await
    }

    /// What the log counted so far and what it holds.
    pub fn stats(&self) -> LogStats {
        let state = self.shared.lock();
        LogStats {
            segments: state.segments.len() as u64,
            segment_bytes: state.segments.values().map(|segment| segment.file.header.size).sum(),
            live_bytes: state.live_bytes(),
            live_entries: state.groups.values().map(|group| group.slots.len() as u64).sum(),
            groups: state.groups.len() as u64,
            cached_bytes: state.cached_bytes as u64,
            queued_bytes: state.queued_bytes as u64,
            ..state.stats.clone()
        }
    }

    /// How long syncs took, microseconds, as `reader` counts them.
    pub fn sync_times(&self, reader: u64) -> Summary {
        self.shared.lock().sync_times.of(reader)
    }

    /// `reader` counts syncs from here.
    pub fn count_anew(&self, reader: u64) {
        self.shared.lock().sync_times.begin(reader);
    }

    /// `reader` does not look any more.
    pub fn forget_reader(&self, reader: u64) {
        self.shared.lock().sync_times.forget(reader);
    }

    /// What it was opened with.
    pub fn options(&self) -> &LogOptions {
        &self.shared.options
    }

    /// The error at which the log stopped, if it did.
    pub fn stopped(&self) -> Option<LogError> {
        self.shared.lock().stopped.clone()
    }

    /// From now on the log stops where it would wait for disk space, and all who wait are told so: consensus waits for its
    /// votes, and a node that cannot write one could not be stopped in order.
    pub fn wait_no_more(&self) {
        self.shared.lock().leaving = true;
    }

    /// Accepts nothing more. The driver writes what is queued, marks the log as closed in order, and ends.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.leaving = true;
        self.shared.wake(state);
    }
}
