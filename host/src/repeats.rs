//! What goes wrong again and again: it is said when it begins, and from then on now and then, with how often it came.

use std::collections::BTreeMap;
use std::ops::Sub;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

/// What goes on is said again after so long.
pub const REMINDER: Duration = Duration::from_secs(600);
/// So many things are told apart: who causes them may choose their words.
const THINGS_MAX: usize = 64;

#[derive(Debug)]
struct Thing<I> {
    said: I,
    came: I,
    /// Since it was last said.
    times: u64,
}

/// What was said lately.
#[derive(Debug)]
pub struct Repeats<I>(Mutex<BTreeMap<String, Thing<I>>>);

impl<I> Default for Repeats<I> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<I: Copy + Sub<Output = Duration>> Repeats<I> {
    /// It came once more. If it is to be said now: how often it came since it was last said, this time included.
    pub fn came(&self, what: &str, now: I) -> Option<u64> {
        let mut things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Had it gone on, it would have come meanwhile.
        things.retain(|_, thing| now - thing.came < REMINDER);
        // The others are one thing.
        let what = if things.len() < THINGS_MAX || things.contains_key(what) { what } else { "" };
        let Some(thing) = things.get_mut(what) else {
            things.insert(what.to_owned(), Thing { said: now, came: now, times: 0 });
            return Some(1);
        };
        thing.came = now;
        thing.times += 1;
        if now - thing.said < REMINDER {
            return None;
        }
        thing.said = now;
        Some(std::mem::take(&mut thing.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds.
    #[derive(Clone, Copy)]
    struct At(u64);

    impl Sub for At {
        type Output = Duration;
        fn sub(self, other: Self) -> Duration {
            Duration::from_secs(self.0.saturating_sub(other.0))
        }
    }

    #[test]
    fn what_goes_on_is_said_at_once_and_then_rarely_with_how_often_it_came() {
        let repeats = Repeats::default();
        let said: Vec<(u64, u64)> =
            (0..1500).filter_map(|second| Some((second, repeats.came("refused", At(second))?))).collect();
        assert_eq!(said, [(0, 1), (600, 600), (1200, 600)]);
        // Another thing is news, and does not make the first one so.
        assert_eq!(repeats.came("two processes", At(1500)), Some(1));
        assert_eq!(repeats.came("refused", At(1501)), None);
        // It ended, and begins again.
        assert_eq!(repeats.came("refused", At(9000)), Some(1));
    }

    #[test]
    fn who_chooses_other_words_each_time_costs_no_more() {
        let repeats = Repeats::default();
        let said = (0..1000).filter_map(|number| repeats.came(&format!("node {number}"), At(0))).count();
        assert_eq!(said, THINGS_MAX + 1);
        assert_eq!(repeats.0.lock().unwrap_or_else(PoisonError::into_inner).len(), THINGS_MAX + 1);
    }
}
