//! Is what clients saw of one key possible? A black-box linearizability check after Wing, Gong and Lowe: a
//! search for an order of the operations that respects real time and in which each answer is right.
//!
//! Operations whose outcome is unknown may take effect at any time after their call, or never.

use std::collections::BTreeSet;

/// What a client asked of the key. Every written value is written once in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Get,
    Put(u64),
    Delete,
    /// Writes `value` if the key has the value `expected` (or is absent).
    Swap {
        expected: Option<u64>,
        value: u64,
    },
}

/// A value and the version of its writing.
pub type Item = (u64, u64);

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: the outcome is unknown.
    Unknown,
    Got(Option<Item>),
    Put {
        version: u64,
        previous: Option<u64>,
    },
    Deleted(Option<u64>),
    Swapped(u64),
    NotSwapped(Option<Item>),
    /// A swap was refused because the key had another value; which one was not told.
    Refused,
}

/// One operation of the history of a key.
#[derive(Clone, Debug)]
pub struct Operation {
    #[expect(dead_code, reason = "for the reader of a failed history")]
    pub client: u64,
    pub action: Action,
    /// Nanoseconds of virtual time.
    pub called: u64,
    /// `u64::MAX` when the outcome is unknown.
    pub returned: u64,
    pub seen: Seen,
}

/// The key: its value, and the value's version unless nobody was told it; and the highest version known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
struct State {
    item: Option<(u64, Option<u64>)>,
    floor: u64,
}

impl State {
    fn written(&self, value: u64, version: u64) -> Option<State> {
        (version > self.floor).then_some(State { item: Some((value, Some(version))), floor: version })
    }

    /// Whether the key can be seen as `seen`; the state with what was learned from it.
    fn matches(&self, seen: &Option<Item>) -> Option<State> {
        match (self.item, seen) {
            (None, None) => Some(self.clone()),
            (Some((value, version)), Some((seen_value, seen_version))) if value == *seen_value => match version {
                Some(version) => (version == *seen_version).then(|| self.clone()),
                None => self.written(value, *seen_version),
            },
            _ => None,
        }
    }

    /// The state after `operation`, if its answer is right in this one.
    fn step(&self, operation: &Operation) -> Option<State> {
        let unversioned = |item| Some(State { item, floor: self.floor });
        match (&operation.action, &operation.seen) {
            (Action::Get, Seen::Got(seen)) => self.matches(seen),
            (Action::Get, Seen::Unknown) => Some(self.clone()),
            (Action::Put(value), Seen::Put { version, previous }) => {
                let right = match (self.item, previous) {
                    (None, None) | (Some((_, None)), Some(_)) => true,
                    (Some((_, Some(known))), Some(previous)) => known == *previous,
                    _ => false,
                };
                if right { self.written(*value, *version) } else { None }
            }
            (Action::Put(value), Seen::Unknown) => unversioned(Some((*value, None))),
            (Action::Delete, Seen::Deleted(Some(version))) if self.item.is_some() => {
                (*version > self.floor).then_some(State { item: None, floor: *version })
            }
            (Action::Delete, Seen::Deleted(None)) if self.item.is_none() => Some(self.clone()),
            (Action::Delete, Seen::Unknown) => unversioned(None),
            (Action::Swap { expected, value }, Seen::Swapped(version)) => {
                if self.item.map(|(value, _)| value) == *expected { self.written(*value, *version) } else { None }
            }
            (Action::Swap { expected, .. }, Seen::NotSwapped(found)) => {
                if self.item.map(|(value, _)| value) == *expected { None } else { self.matches(found) }
            }
            (Action::Swap { expected, .. }, Seen::Refused) => {
                (self.item.map(|(value, _)| value) != *expected).then(|| self.clone())
            }
            (Action::Swap { expected, value }, Seen::Unknown) => {
                if self.item.map(|(value, _)| value) == *expected {
                    unversioned(Some((*value, None)))
                } else {
                    Some(self.clone())
                }
            }
            _ => None,
        }
    }
}

/// The result of a check.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains the history; how many operations the best order could explain.
    Impossible(usize),
    /// The search was given up.
    Undecided,
}

const STEPS_MAX: u64 = 3_000_000;

/// Looks for an order.
pub fn check(history: &[Operation]) -> Verdict {
    let mut operations = history.to_vec();
    operations.sort_by_key(|operation| (operation.called, operation.returned));
    let known = operations.iter().filter(|operation| operation.returned != u64::MAX).count();
    let mut search = Search {
        operations: &operations,
        known,
        done: vec![0; operations.len().div_ceil(64)],
        visited: BTreeSet::new(),
        steps: 0,
        best: 0,
    };
    match search.from(&State::default(), 0, 0) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Impossible(search.best),
        None => Verdict::Undecided,
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    /// Operations with a known outcome.
    known: usize,
    done: Vec<u64>,
    visited: BTreeSet<(Vec<u64>, State)>,
    steps: u64,
    best: usize,
}

impl Search<'_> {
    fn is_done(&self, at: usize) -> bool {
        self.done[at / 64] >> (at % 64) & 1 == 1
    }

    /// `first`: everything before it is done. `known`: how many known outcomes are explained.
    fn from(&mut self, state: &State, first: usize, known: usize) -> Option<bool> {
        self.best = self.best.max(known);
        if known == self.known {
            return Some(true);
        }
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return None;
        }
        if !self.visited.insert((self.done.clone(), state.clone())) {
            return Some(false);
        }
        let first = (first..self.operations.len()).find(|at| !self.is_done(*at)).unwrap_or(self.operations.len());
        // An operation can be next if nothing that is left returned before it was called.
        let mut first_return = u64::MAX;
        for at in first..self.operations.len() {
            if self.operations[at].called > first_return {
                break;
            }
            if !self.is_done(at) {
                first_return = first_return.min(self.operations[at].returned);
            }
        }
        let mut next = Vec::new();
        for at in first..self.operations.len() {
            if self.operations[at].called > first_return {
                break;
            }
            if !self.is_done(at) {
                next.push(at);
            }
        }
        // What is known first: unknown outcomes are tried only where they are needed.
        next.sort_by_key(|at| self.operations[*at].returned == u64::MAX);
        for at in next {
            let operation = &self.operations[at];
            let is_known = operation.returned != u64::MAX;
            let Some(after) = state.step(operation) else { continue };
            if !is_known && after == *state {
                continue;
            }
            self.done[at / 64] |= 1 << (at % 64);
            let found = self.from(&after, first, known + usize::from(is_known));
            self.done[at / 64] &= !(1 << (at % 64));
            if found != Some(false) {
                return found;
            }
        }
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(client: u64, called: u64, returned: u64, action: Action, seen: Seen) -> Operation {
        Operation { client, action, called, returned, seen }
    }

    fn put(client: u64, called: u64, returned: u64, value: u64, version: u64, previous: Option<u64>) -> Operation {
        operation(client, called, returned, Action::Put(value), Seen::Put { version, previous })
    }

    fn get(client: u64, called: u64, returned: u64, seen: Option<Item>) -> Operation {
        operation(client, called, returned, Action::Get, Seen::Got(seen))
    }

    #[test]
    fn a_read_that_overlaps_a_write_may_see_either() {
        let write = put(1, 10, 20, 7, 1, None);
        assert_eq!(check(&[write.clone(), get(2, 12, 18, None)]), Verdict::Linearizable);
        assert_eq!(check(&[write, get(2, 12, 18, Some((7, 1)))]), Verdict::Linearizable);
    }

    #[test]
    fn a_read_after_an_acknowledged_write_must_see_it() {
        assert_eq!(check(&[put(1, 10, 20, 7, 1, None), get(2, 21, 30, None)]), Verdict::Impossible(1));
    }

    #[test]
    fn reads_cannot_go_back() {
        let history = [put(1, 10, 50, 7, 1, None), get(2, 12, 18, Some((7, 1))), get(3, 20, 25, None)];
        assert_eq!(check(&history), Verdict::Impossible(2));
    }

    #[test]
    fn an_unknown_write_may_have_happened_late_or_never() {
        let lost = operation(1, 10, u64::MAX, Action::Put(7), Seen::Unknown);
        assert_eq!(check(&[lost.clone(), get(2, 20, 30, None)]), Verdict::Linearizable);
        assert_eq!(check(&[lost.clone(), get(2, 20, 30, None), get(2, 40, 50, Some((7, 3)))]), Verdict::Linearizable);
        let back = [lost, get(2, 20, 30, Some((7, 3))), get(2, 40, 50, None)];
        assert_eq!(check(&back), Verdict::Impossible(1));
    }

    #[test]
    fn a_refused_write_must_not_be_seen() {
        // It was answered "nothing was done", so it is not in the history: nobody wrote 7.
        assert_eq!(check(&[get(2, 20, 30, Some((7, 1)))]), Verdict::Impossible(0));
    }

    #[test]
    fn two_swaps_cannot_both_win() {
        let swap = |client, value, version| {
            operation(client, 10, 30, Action::Swap { expected: None, value }, Seen::Swapped(version))
        };
        assert_eq!(check(&[swap(1, 7, 1), swap(2, 8, 2)]), Verdict::Impossible(1));
    }

    #[test]
    fn a_write_that_was_applied_twice_is_found() {
        // The retry of an unsafe put came after another put and replaced it.
        let history = [put(1, 10, 20, 7, 1, None), put(2, 30, 40, 8, 2, Some(1)), get(3, 50, 60, Some((7, 3)))];
        assert_eq!(check(&history), Verdict::Impossible(2));
    }
}
