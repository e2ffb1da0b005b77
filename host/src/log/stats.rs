//! What the log counts, for metrics.

use std::collections::VecDeque;

/// Upper bounds of the sync duration buckets, microseconds; a last bucket holds the rest.
pub const SYNC_BUCKETS_MICROS: [u64; 14] =
    [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000];

/// Counters of a log since it was opened, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Segments that belong to the log now.
    pub segments: u64,
    /// Bytes of their files.
    pub segment_bytes: u64,
    /// Segments that are ready to be used next.
    pub spare_segments: u64,
    /// Whether there was no room for the next segment when it was made ahead of need. The log goes on
    /// until the current one is full, up to half a segment; a node should take no more commands.
    pub short_of_space: bool,
    /// Whether all writes wait because there is no room for the next segment.
    pub waits_for_room: bool,
    /// Bytes of entries that are not purged.
    pub live_bytes: u64,
    /// Entries that are not purged.
    pub live_entries: u64,
    /// Groups.
    pub groups: u64,
    /// Bytes of the entry cache.
    pub cached_bytes: u64,
    /// Bytes that wait to be written.
    pub queued_bytes: u64,
    /// Batches written, each with one sync.
    pub batches: u64,
    /// Operations in them: `operations / batches` is how many share a sync.
    pub operations: u64,
    /// Bytes written, with headers and padding.
    pub written_bytes: u64,
    /// Segments that were used again instead of made anew.
    pub recycled_segments: u64,
    /// Entries copied so that an old segment could be given up.
    pub moved_entries: u64,
    /// Entries read back from segments because they were not in the cache.
    pub entries_read: u64,
    /// Counts of syncs by duration, see [`SYNC_BUCKETS_MICROS`].
    pub sync_buckets: [u64; SYNC_BUCKETS_MICROS.len() + 1],
    /// Sum of all sync durations, microseconds.
    pub sync_micros: u64,
    /// Syncs that took longer than `slow_sync_micros`.
    pub slow_syncs: u64,
    /// How long each of the newest syncs took, microseconds, oldest first: at most [`RECENT_SYNCS`].
    pub recent_syncs_micros: VecDeque<u64>,
}

/// Syncs that are remembered one by one: a disk that was slow yesterday is not slow.
pub const RECENT_SYNCS: usize = 256;

impl LogStats {
    pub(super) fn count_sync(&mut self, micros: u64, slow_sync_micros: u64) {
        let bucket = SYNC_BUCKETS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(count) = self.sync_buckets.get_mut(bucket) {
            *count += 1;
        }
        self.sync_micros += micros;
        self.slow_syncs += u64::from(micros > slow_sync_micros);
        if self.recent_syncs_micros.len() == RECENT_SYNCS {
            self.recent_syncs_micros.pop_front();
        }
        self.recent_syncs_micros.push_back(micros);
    }

    /// So long at most took `percent` of 100 of the newest syncs, microseconds; 0 before the first.
    pub fn recent_sync_micros(&self, percent: usize) -> u64 {
        let mut sorted: Vec<u64> = self.recent_syncs_micros.iter().copied().collect();
        sorted.sort_unstable();
        let place = (sorted.len() * percent.min(100)).div_ceil(100).saturating_sub(1);
        sorted.get(place).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_sync_is_forgotten_when_enough_fast_ones_came_after_it() {
        let mut stats = LogStats::default();
        assert_eq!(stats.recent_sync_micros(99), 0);
        (0..8).for_each(|_| stats.count_sync(90_000, 1_000_000));
        (0..92).for_each(|_| stats.count_sync(1_000, 1_000_000));
        assert_eq!((stats.recent_sync_micros(50), stats.recent_sync_micros(99)), (1_000, 90_000));
        (0..RECENT_SYNCS).for_each(|_| stats.count_sync(2_000, 1_000_000));
        assert_eq!((stats.recent_sync_micros(50), stats.recent_sync_micros(100)), (2_000, 2_000));
        assert_eq!(stats.recent_syncs_micros.len(), RECENT_SYNCS);
    }
}
