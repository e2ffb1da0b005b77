//! Random numbers that are equal on every replica: a generator seeded from the entry's header.

/// xoshiro256++ (Blackman and Vigna), its 256 bits of state filled by SplitMix64 from the 128 bits
/// of the header. The sequence is part of the SDK's contract: replicas replay old entries with it,
/// so it must never change for a given module. The tests hold the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: [u64; 4],
}

/// One step of SplitMix64.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Random {
    /// A generator for this seed. SplitMix64 is a bijection of its counter, so two outputs of one
    /// chain are never both zero, and the all-zero state xoshiro must avoid cannot arise.
    pub(crate) fn new(seed_low: u64, seed_high: u64) -> Self {
        let (mut low, mut high) = (seed_low, seed_high);
        Self { state: [split_mix(&mut low), split_mix(&mut high), split_mix(&mut low), split_mix(&mut high)] }
    }

    /// The next 64 bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        let [s0, s1, s2, s3] = &mut self.state;
        let result = s0.wrapping_add(*s3).rotate_left(23).wrapping_add(*s0);
        let shifted = *s1 << 17;
        *s2 ^= *s0;
        *s3 ^= *s1;
        *s1 ^= *s2;
        *s0 ^= *s3;
        *s2 ^= shifted;
        *s3 = s3.rotate_left(45);
        result
    }

    /// Fills `bytes`: little-endian words, the last one cut.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            for (byte, random) in chunk.iter_mut().zip(word) {
                *byte = random;
            }
        }
    }

    /// A number below `bound`, each equally likely; 0 when `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The high half of a 128-bit product is uniform once the few low halves that would make
        // some results likelier are drawn again (Lemire 2019).
        let rejected_below = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= rejected_below {
                return (product >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    /// Replicas replay entries with this sequence: if this test fails, restore the generator.
    #[test]
    fn the_sequence_of_a_seed_never_changes() {
        let mut random = Random::new(1, 2);
        let drawn = [random.next_u64(), random.next_u64(), random.next_u64()];
        // Computed apart from this code, from the published definitions.
        assert_eq!(drawn, [10_328_070_241_546_585_594, 6_048_562_509_348_760_126, 15_304_177_507_505_377_868]);
    }

    #[test]
    fn seeds_that_differ_in_either_half_give_other_numbers() {
        let first = Random::new(1, 2).next_u64();
        assert_ne!(first, Random::new(2, 2).next_u64());
        assert_ne!(first, Random::new(1, 3).next_u64());
        assert_ne!(Random::new(0, 0).next_u64(), 0, "even the zero seed gives a working generator");
    }

    #[test]
    fn below_reaches_each_number_and_never_the_bound() {
        let mut random = Random::new(7, 7);
        let mut seen = [0_u32; 6];
        for _ in 0..6000 {
            let drawn = random.below(6);
            seen[usize::try_from(drawn).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "uneven: {seen:?}");
        assert_eq!(random.below(1), 0);
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn filling_in_pieces_of_eight_equals_filling_at_once() {
        let (mut whole, mut pieces) = ([0_u8; 21], [0_u8; 21]);
        Random::new(3, 4).fill(&mut whole);
        let mut random = Random::new(3, 4);
        for piece in pieces.chunks_mut(8) {
            random.fill(piece);
        }
        assert_eq!(whole, pieces);
    }
}
