//! Latencies in a fixed amount of memory, however long the run.
//!
//! Invariants:
//! * A value lies in the one bucket whose bounds hold it; a bucket is at most 1/128 of its values wide, so a
//!   quantile is at most 0.8 % above a value that was measured.
//! * The largest value is kept as it is, and no quantile is above it.

/// Buckets of equal width in each power of two.
const STEPS: u64 = 128;
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// How often which latency was seen, nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// As long as the largest value needs.
    counts: Vec<u64>,
    count: u64,
    max_ns: u64,
}

impl Histogram {
    /// Counts one value.
    pub(super) fn record(&mut self, value_ns: u64) {
        let bucket = bucket_of(value_ns);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
        self.max_ns = self.max_ns.max(value_ns);
    }

    /// Adds what another one counted.
    pub(super) fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// How many values were counted.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The value that `share` of the values are not above, nanoseconds; 0 when there is none.
    pub(super) fn quantile_ns(&self, share: f64) -> u64 {
        let rank = ((share * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return highest_of(bucket).min(self.max_ns);
            }
        }
        self.max_ns
    }
}

fn bucket_of(value: u64) -> usize {
    // Values below two full rows of steps are their own buckets; above, each power of two has one row.
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEP_BITS + 1);
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The largest value of a bucket.
fn highest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    let step = bucket - shift * STEPS;
    // The last bucket ends where the numbers end.
    ((u128::from(step) + 1) << shift).saturating_sub(1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|value| histogram.record(value));
        histogram
    }

    #[test]
    fn small_values_are_exact() {
        let histogram = of(1..=200);
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|share| histogram.quantile_ns(share)), [100, 190, 198, 200]);
        assert_eq!(of([7]).quantile_ns(0.5), 7);
        assert_eq!(of([]).quantile_ns(0.5), 0);
    }

    #[test]
    fn large_values_are_within_a_hundredth_and_the_largest_is_exact() {
        let histogram = of((1..=1000).map(|number| number * 1_234_567));
        for share in [0.5, 0.9, 0.95, 0.99, 0.999] {
            let exact = share * 1000.0 * 1_234_567.0;
            let measured = histogram.quantile_ns(share) as f64;
            assert!((exact..exact * 1.008).contains(&measured), "{share}: {measured} for {exact}");
        }
        assert_eq!(histogram.quantile_ns(1.0), 1_234_567_000);
        assert_eq!(of([u64::MAX]).quantile_ns(1.0), u64::MAX);
    }

    /// The buckets lie side by side: where one ends, the next begins.
    #[test]
    fn every_value_is_in_the_bucket_whose_bounds_hold_it() {
        for bucket in 0..bucket_of(u64::MAX) {
            let highest = highest_of(bucket);
            assert_eq!((bucket_of(highest), bucket_of(highest + 1)), (bucket, bucket + 1), "bucket {bucket}");
        }
        assert_eq!(highest_of(bucket_of(u64::MAX)), u64::MAX);
    }

    #[test]
    fn two_merged_are_one_of_both() {
        let (mut left, right) = (of(1..=50), of(51..=5_000_000));
        left.merge(&right);
        let both = of(1..=5_000_000);
        assert_eq!((left.counts, left.count, left.max_ns), (both.counts, both.count, both.max_ns));
    }
}
