//! What clients saw of the tree, and what must be true of it.
//!
//! Every value is written once in a run, so a value names the request that wrote it. Each acknowledged write names its
//! place in the one order of all writes, its zxid; so what is seen of a node can be held against that order:
//! - a version of a node has one value and one zxid, whoever sees it, and versions grow with zxids;
//! - an acknowledged write took effect at its zxid and nowhere else, a refused one nowhere;
//! - a write that was acknowledged before another was asked has the lower zxid.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use znode_tree::wire::Stat;

use crate::clients::Placed;
use crate::register::Operation;

/// A node that its session must keep, and that must not outlive it.
#[derive(Clone, Copy, Debug)]
pub struct Ephemeral {
    pub session: u64,
    pub czxid: i64,
}

/// See the file's head.
#[derive(Default)]
pub struct History {
    /// The nodes that are always there, for the search for a linear order.
    pub registers: BTreeMap<String, Vec<Operation>>,
    /// Acknowledged writes.
    pub placed: Vec<Placed>,
    /// Acknowledged sequential nodes: by zxid, the path and the value.
    pub sequential: BTreeMap<i64, (String, u64)>,
    /// Values of sequential nodes whose making has no known outcome.
    pub maybe_sequential: BTreeSet<u64>,
    /// Acknowledged ephemeral nodes.
    pub ephemerals: BTreeMap<String, Ephemeral>,
    /// The last zxid at which each session was seen to live.
    pub alive: BTreeMap<u64, i64>,
    /// Sessions that are over; the zxid of the end where it is known.
    pub over: BTreeMap<u64, Option<i64>>,
    /// The last zxid at which a node of each session was seen.
    owning: BTreeMap<u64, i64>,
    /// Ephemeral nodes that were not there, and when.
    absent: Vec<(String, i64)>,
    /// By path, creation and version: the zxid and the value.
    versions: BTreeMap<(String, i64, i32), (i64, u64)>,
    /// By path and value: the zxid.
    places: BTreeMap<(String, u64), i64>,
    refused: BTreeSet<(String, u64)>,
    pub problems: Vec<String>,
}

/// The number at the end of a sequential node's path.
pub fn number_of(path: &str) -> Option<u64> {
    path.get(path.len().checked_sub(10)?..)?.parse().ok()
}

impl History {
    fn problem(&mut self, what: String) {
        self.problems.push(what);
    }

    /// A client saw a node with its data, in a reply that knew all up to `zxid`.
    pub fn saw(&mut self, path: &str, stat: &Stat, value: u64, zxid: i64) {
        if stat.mzxid > zxid || stat.czxid > stat.mzxid {
            self.problem(format!("{path}: {stat:?} in a reply of {zxid:#x}"));
        }
        let key = (path.to_owned(), stat.czxid, stat.version);
        let known = *self.versions.entry(key).or_insert((stat.mzxid, value));
        if known != (stat.mzxid, value) {
            self.problem(format!("{path}: {stat:?} with {value}, but others saw that version as {known:x?}"));
        }
        self.took_effect(path, value, stat.mzxid);
        if stat.ephemeral_owner != 0 {
            let last = self.owning.entry(stat.ephemeral_owner as u64).or_default();
            *last = zxid.max(*last);
        }
    }

    /// A write took effect at this place.
    pub fn took_effect(&mut self, path: &str, value: u64, zxid: i64) {
        let key = (path.to_owned(), value);
        if self.refused.contains(&key) {
            self.problem(format!("{path}: {value} was refused and is there, by {zxid:#x}"));
        }
        let known = *self.places.entry(key).or_insert(zxid);
        if known != zxid {
            self.problem(format!("{path}: {value} took effect at {known:#x} and at {zxid:#x}"));
        }
    }

    /// A write was answered with an error.
    pub fn was_refused(&mut self, path: &str, value: u64) {
        let key = (path.to_owned(), value);
        if let Some(zxid) = self.places.get(&key) {
            let zxid = *zxid;
            self.problem(format!("{path}: {value} was refused and took effect at {zxid:#x}"));
        }
        self.refused.insert(key);
    }

    /// A node was not there for a reply that knew all up to `zxid`.
    pub fn missed(&mut self, path: &str, zxid: i64) {
        self.absent.push((path.to_owned(), zxid));
    }

    /// A session gave a sign of life at this place.
    pub fn lives(&mut self, session: u64, zxid: i64) {
        let last = self.alive.entry(session).or_default();
        *last = zxid.max(*last);
    }

    /// What can only be said when all is known.
    pub fn check(&mut self) {
        let mut found = Vec::new();
        let mut last: Option<(&(String, i64, i32), i64)> = None;
        for (key, (mzxid, _)) in &self.versions {
            if let Some((before, zxid)) = last.filter(|(before, _)| before.0 == key.0)
                && (zxid >= *mzxid || before.1 < key.1 && zxid >= key.1)
            {
                found.push(format!("{key:?} was written at {mzxid:#x}, and {before:?} before it at {zxid:#x}"));
            }
            last = Some((key, *mzxid));
        }
        let mut last: Option<(i64, &str)> = None;
        for (zxid, (path, _)) in &self.sequential {
            let number = number_of(path);
            if let Some((before, other)) = last
                && number_of(other) >= number
            {
                found.push(format!("{path} was made at {zxid:#x}, after {other} at {before:#x}"));
            }
            last = Some((*zxid, path));
        }
        for (session, zxid) in &self.owning {
            if let Some(Some(end)) = self.over.get(session)
                && end <= zxid
            {
                found.push(format!("session {session:#x} ended at {end:#x}, and a node of it was seen at {zxid:#x}"));
            }
        }
        for (path, zxid) in &self.absent {
            let Some(Ephemeral { session, czxid }) = self.ephemerals.get(path) else { continue };
            let lived_until = self.alive.get(session).copied().unwrap_or(0);
            if czxid <= zxid && lived_until > *zxid {
                found.push(format!(
                    "{path} was not there at {zxid:#x}; made at {czxid:#x} by {session:#x}, which lived at {lived_until:#x}"
                ));
            }
        }
        self.problems.extend(found);
    }
}

/// The history is handed things that must not be.
mod tests {
    use super::*;

    fn stat(czxid: i64, mzxid: i64, version: i32) -> Stat {
        Stat { czxid, mzxid, version, ..Stat::default() }
    }

    fn problems(tell: impl FnOnce(&mut History)) -> usize {
        let mut history = History::default();
        tell(&mut history);
        history.check();
        history.problems.len()
    }

    #[test]
    fn what_can_be_is_no_problem() {
        let found = problems(|history| {
            history.took_effect("/a", 7, 3);
            history.saw("/a", &stat(3, 3, 0), 7, 4);
            history.saw("/a", &stat(3, 9, 2), 8, 9);
            history.saw("/a", &stat(12, 12, 0), 9, 12);
            history.was_refused("/a", 10);
            history.sequential.insert(5, ("/s0000000001".to_owned(), 1));
            history.sequential.insert(6, ("/s0000000004".to_owned(), 2));
        });
        assert_eq!(found, 0);
    }

    #[test]
    fn what_cannot_be_is_one() {
        // One version, two values.
        let two_values = |history: &mut History| {
            history.saw("/a", &stat(3, 3, 0), 7, 4);
            history.saw("/a", &stat(3, 3, 0), 8, 4);
        };
        // One request, two effects.
        let twice = |history: &mut History| {
            history.saw("/a", &stat(3, 4, 1), 7, 9);
            history.saw("/a", &stat(3, 6, 3), 7, 9);
        };
        let refused = |history: &mut History| {
            history.was_refused("/a", 7);
            history.saw("/a", &stat(3, 3, 0), 7, 4);
        };
        let backwards = |history: &mut History| {
            history.saw("/a", &stat(3, 9, 1), 7, 9);
            history.saw("/a", &stat(3, 8, 2), 8, 9);
        };
        let same_number = |history: &mut History| {
            history.sequential.insert(5, ("/s0000000004".to_owned(), 1));
            history.sequential.insert(6, ("/t0000000004".to_owned(), 2));
        };
        let early = |history: &mut History| {
            history.ephemerals.insert("/e".to_owned(), Ephemeral { session: 1, czxid: 3 });
            history.missed("/e", 5);
            history.lives(1, 6);
        };
        let late = |history: &mut History| {
            history.over.insert(1, Some(5));
            history.saw("/e", &Stat { ephemeral_owner: 1, ..stat(3, 3, 0) }, 7, 5);
        };
        let all: [&dyn Fn(&mut History); 7] = [&two_values, &twice, &refused, &backwards, &same_number, &early, &late];
        for (number, tell) in all.into_iter().enumerate() {
            assert!(problems(|history| tell(history)) > 0, "{number}");
        }
    }
}
