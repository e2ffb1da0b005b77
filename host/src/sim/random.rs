//! Random numbers that are a function of the seed.

/// A stream of random numbers (SplitMix64). Not for secrets of real nodes.
#[derive(Clone, Debug)]
pub struct SimRandom {
    state: u64,
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl SimRandom {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) }
    }

    /// Another stream: draws from it do not move this one, so that more draws in one part of a run do not
    /// change what happens in all the others.
    pub fn fork(&self, purpose: u64) -> Self {
        Self::new(mix(self.state ^ mix(purpose.wrapping_add(1))))
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        low.saturating_add(self.draw() % span)
    }

    /// `true` in `per_mille` of 1000 draws.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.draw() % 1000 < per_mille
    }

    /// One of `items`; `None` when there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let at = self.draw() % (items.len().max(1) as u64);
        items.get(usize::try_from(at).unwrap_or(0))
    }
}
