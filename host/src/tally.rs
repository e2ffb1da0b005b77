//! What is measured again and again (times, sizes), summed up for those who look at it: each since it last began anew.

use std::collections::BTreeMap;

use serde::Serialize;

/// Values so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// All together.
    pub sum: u64,
    /// The newest.
    pub last: Option<u64>,
    /// The smallest.
    pub min: Option<u64>,
    /// The largest.
    pub max: Option<u64>,
}

impl Summary {
    fn add(&mut self, value: u64) {
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.saturating_add(value);
        self.last = Some(value);
        self.min = Some(self.min.map_or(value, |min| min.min(value)));
        self.max = Some(self.max.map_or(value, |max| max.max(value)));
    }

    /// How many and how much, and no single values.
    pub fn without_values(self) -> Self {
        Self { last: None, min: None, max: None, ..self }
    }
}

/// Sums values up for several readers. One that never began anew is told of all since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    all: Summary,
    readers: BTreeMap<u64, Summary>,
}

impl Tally {
    /// One more value.
    pub fn add(&mut self, value: u64) {
        self.summaries().for_each(|summary| summary.add(value));
    }

    /// What `reader` is told.
    pub fn of(&self, reader: u64) -> Summary {
        self.readers.get(&reader).copied().unwrap_or(self.all)
    }

    /// `reader` counts from here.
    pub fn begin(&mut self, reader: u64) {
        self.readers.insert(reader, Summary::default());
    }

    /// `reader` does not look any more.
    pub fn forget(&mut self, reader: u64) {
        self.readers.remove(&reader);
    }

    /// The single values so far are of the past: the counts go on, the newest, the smallest and the largest begin anew.
    pub fn forget_values(&mut self) {
        self.summaries().for_each(|summary| *summary = summary.without_values());
    }

    fn summaries(&mut self) -> impl Iterator<Item = &mut Summary> {
        self.readers.values_mut().chain([&mut self.all])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_begins_anew_does_so_for_itself_alone() {
        let mut tally = Tally::default();
        assert_eq!(tally.of(1), Summary::default());
        [5, 3, 4].into_iter().for_each(|value| tally.add(value));
        let three = Summary { count: 3, sum: 12, last: Some(4), min: Some(3), max: Some(5) };
        assert_eq!((tally.of(1), tally.of(2)), (three, three));
        tally.begin(1);
        assert_eq!((tally.of(1), tally.of(2)), (Summary::default(), three));
        tally.add(9);
        assert_eq!(tally.of(1), Summary { count: 1, sum: 9, last: Some(9), min: Some(9), max: Some(9) });
        assert_eq!(tally.of(2), Summary { count: 4, sum: 21, last: Some(9), min: Some(3), max: Some(9) });
        tally.forget_values();
        tally.add(6);
        assert_eq!(tally.of(2), Summary { count: 5, sum: 27, last: Some(6), min: Some(6), max: Some(6) });
        tally.forget(1);
        assert_eq!(tally.of(1), tally.of(2));
    }
}
