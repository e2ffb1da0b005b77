//! Numbers that only look random: the same seed sends the same requests.

use super::workload::Span;

/// SplitMix64: eight bytes of state, and good enough for choosing nodes.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The seed of one of many generators. Seeds that are a multiple of the step apart would give the same
    /// numbers, only later: so it is drawn, not added up.
    pub(super) fn seed_of(seed: u64, session: u32, attempt: u32) -> u64 {
        let mut random = Self::new(seed);
        let mut random = Self::new(random.next() ^ (u64::from(session) << 32 | u64::from(attempt)));
        random.next()
    }

    /// A number below `bound`; 0 when that is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of the span, both ends included.
    pub(super) fn within(&mut self, span: Span) -> u32 {
        span.least + self.below(u64::from(span.most.saturating_sub(span.least)) + 1) as u32
    }

    /// True in a share of all cases from 0 to 1.
    pub(super) fn happens(&mut self, share: f64) -> bool {
        ((self.next() >> 11) as f64) < share * (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the published generator for the seed 1234567.
    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = Random::new(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    /// Sessions once drew each other's numbers, a few places later, and created each other's nodes.
    #[test]
    fn no_session_draws_what_another_one_draws() {
        let mut seen = std::collections::BTreeSet::new();
        for session in 0..100 {
            let mut random = Random::new(Random::seed_of(1, session, 0));
            assert!((0..1000).all(|_| seen.insert(random.next())), "session {session}");
        }
    }

    #[test]
    fn bounds_are_kept() {
        let mut random = Random::new(7);
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert!((0..1000).all(|_| (5..=6).contains(&random.within(Span { least: 5, most: 6 }))));
        assert!((0..1000).all(|_| random.happens(1.0) && !random.happens(0.0)));
        assert_eq!(random.below(0), 0);
    }
}
