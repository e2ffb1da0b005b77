//! Who watches what: the tables behind one-shot, persistent and recursive watches.
//!
//! Invariants:
//! * an entry exists exactly while somebody watches its path: `index` finds it by its text, `free`
//!   lists the slots without one;
//! * a connection is among an entry's watchers, with at least one kind, exactly when the entry's slot is in
//!   the connection's set;
//! * `recursive`, `counts` are the sums over all entries, `bytes` what all entries and watchers count for, and a
//!   connection's `bytes` what it would if it were the only one.
//!
//! A million watches must be affordable: a path is stored once however many watch it, and a path
//! with one watcher (nearly all of them) needs no allocation but its text.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::hash::Hasher;

use hashbrown::HashTable;
use statehouse_sdk::adapter::ConnectionId;

use crate::wire::EventType;

/// What a connection wants to hear of a path: a set of bits.
pub type Kinds = u8;
/// Once: creation, deletion, new data. What `exists` and `getData` leave.
pub const DATA: Kinds = 1;
/// Once: a change of the list of children, deletion. What `getChildren` leaves.
pub const CHILD: Kinds = 2;
/// As both above, until removed.
pub const PERSISTENT: Kinds = 4;
/// As [`DATA`], until removed, for the path and all below it.
pub const RECURSIVE: Kinds = 8;
/// Those that one event uses up.
const ONE_SHOT: Kinds = DATA | CHILD;
/// Those that ZooKeeper keeps in its table of data watches, and in its table of child watches.
const DATA_TABLE: Kinds = DATA | PERSISTENT | RECURSIVE;
const CHILD_TABLE: Kinds = CHILD | PERSISTENT;

/// What a watch counts for beside its path: its part of an entry, of the index and of its connection's set.
const WATCH_BYTES: usize = 64;
/// What the watches of one connection may count for: some 300,000 of paths of 150 bytes, and a ClickHouse server that
/// looks after very many tables has 100,000.
const BYTES_MAX: usize = 64 << 20;
/// What all watches may count for, half of the memory that an adapter has if nothing else is said. A path counts once.
const ALL_BYTES_MAX: usize = 512 << 20;
/// A connection whose watches count for less may go on when there are too many in all.
const BYTES_FREE: usize = 1 << 20;

/// The kinds that hear of an event on the path itself.
fn heard_by(event: EventType) -> Kinds {
    match event {
        EventType::NodeCreated | EventType::NodeDataChanged => DATA_TABLE,
        EventType::NodeDeleted => DATA_TABLE | CHILD_TABLE,
        EventType::NodeChildrenChanged => CHILD_TABLE,
    }
}

/// The watchers of one path.
#[derive(Debug)]
enum Watchers {
    One(ConnectionId, Kinds),
    /// More than one. A box, so that the common case takes 16 bytes and not 32.
    #[allow(clippy::box_collection)]
    Many(Box<BTreeMap<ConnectionId, Kinds>>),
}

impl Watchers {
    fn get(&self, connection: ConnectionId) -> Kinds {
        match self {
            Self::One(watcher, kinds) if *watcher == connection => *kinds,
            Self::One(..) => 0,
            Self::Many(all) => all.get(&connection).copied().unwrap_or(0),
        }
    }

    /// Sets what a connection watches; false when nobody is left.
    fn set(&mut self, connection: ConnectionId, kinds: Kinds) -> bool {
        match self {
            Self::One(watcher, old) if *watcher == connection => {
                *old = kinds;
                kinds != 0
            }
            Self::One(watcher, old) => {
                if kinds != 0 {
                    *self = Self::Many(Box::new(BTreeMap::from([(*watcher, *old), (connection, kinds)])));
                }
                true
            }
            Self::Many(all) => {
                if kinds == 0 {
                    all.remove(&connection);
                } else {
                    all.insert(connection, kinds);
                }
                match all.pop_first() {
                    Some((watcher, kinds)) if all.is_empty() => *self = Self::One(watcher, kinds),
                    Some((watcher, kinds)) => drop(all.insert(watcher, kinds)),
                    None => return false,
                }
                true
            }
        }
    }

    fn each(&self, mut visit: impl FnMut(ConnectionId, Kinds)) {
        match self {
            Self::One(watcher, kinds) => visit(*watcher, *kinds),
            Self::Many(all) => all.iter().for_each(|(watcher, kinds)| visit(*watcher, *kinds)),
        }
    }
}

/// A watched path.
#[derive(Debug)]
struct Entry {
    path: Box<str>,
    watchers: Watchers,
}

/// A keyed hasher, so that clients cannot make their paths collide; the same everywhere for the
/// same key, so that the simulator can repeat a run.
#[derive(Debug)]
struct Keyed(u64);

impl BuildHasher for Keyed {
    type Hasher = std::hash::DefaultHasher;

    fn build_hasher(&self) -> Self::Hasher {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

/// How many watches there are, as ZooKeeper counts: a persistent watch is in both of its tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub data: u64,
    pub child: u64,
}

/// For four-letter words: how many connections watch how many paths with how many watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub connections: u64,
    pub paths: u64,
    pub watches: u64,
}

/// What one connection watches.
#[derive(Debug, Default)]
struct Watching {
    slots: BTreeSet<u32>,
    bytes: usize,
}

/// All watches of a listener.
#[derive(Debug)]
pub struct Watches {
    hasher: Keyed,
    index: HashTable<u32>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_connection: BTreeMap<ConnectionId, Watching>,
    bytes: usize,
    /// How many watches are recursive: without any, no event looks at a path's ancestors.
    recursive: u64,
    counts: Counts,
}

impl Watches {
    /// Without any watch. `key`: something that clients cannot know.
    pub fn new(key: u64) -> Self {
        Self {
            hasher: Keyed(key),
            index: HashTable::new(),
            entries: Vec::new(),
            free: Vec::new(),
            by_connection: BTreeMap::new(),
            bytes: 0,
            recursive: 0,
            counts: Counts::default(),
        }
    }

    /// Adds kinds to what a connection watches of a path.
    pub fn add(&mut self, connection: ConnectionId, path: &str, kinds: Kinds) {
        if kinds == 0 {
            return;
        }
        let slot = match self.find(path) {
            Some(slot) => slot,
            None => match self.insert(path, Watchers::One(connection, 0)) {
                Some(slot) => slot,
                // Four thousand million watched paths: none is affordable beyond them.
                None => return,
            },
        };
        let old = self.kinds_at(slot, connection);
        self.set(slot, connection, old | kinds);
    }

    /// Takes kinds away from what a connection watches of a path; whether there was one of them.
    pub fn remove(&mut self, connection: ConnectionId, path: &str, kinds: Kinds) -> bool {
        let Some(slot) = self.find(path) else { return false };
        let old = self.kinds_at(slot, connection);
        if old & kinds == 0 {
            return false;
        }
        self.set(slot, connection, old & !kinds);
        true
    }

    /// What a connection watches of a path.
    pub fn kinds(&self, connection: ConnectionId, path: &str) -> Kinds {
        self.find(path).map_or(0, |slot| self.kinds_at(slot, connection))
    }

    /// Forgets a connection and all its watches.
    pub fn forget(&mut self, connection: ConnectionId) {
        for slot in self.by_connection.remove(&connection).unwrap_or_default().slots {
            self.set(slot, connection, 0);
        }
    }

    /// Whether a connection watches more than there is room for: by itself, or among all others with more than a little.
    pub fn is_too_much(&self, connection: ConnectionId) -> bool {
        is_too_much(self.bytes_of(connection), self.bytes)
    }

    /// What the watches of a connection count for.
    pub fn bytes_of(&self, connection: ConnectionId) -> usize {
        self.by_connection.get(&connection).map_or(0, |held| held.bytes)
    }

    /// What all watches count for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Something happened to `path`: who hears of it, each once, in the order of their numbers. One-shot watches that
    /// hear of it are gone.
    pub fn fire(&mut self, event: EventType, path: &str, hearers: &mut Vec<ConnectionId>) {
        hearers.clear();
        if self.entries.is_empty() {
            return;
        }
        let heard_by = heard_by(event);
        if let Some(slot) = self.find(path) {
            self.each_at(slot, |watcher, kinds| {
                if kinds & heard_by != 0 {
                    hearers.push(watcher);
                }
            });
            for watcher in hearers.iter() {
                let kinds = self.kinds_at(slot, *watcher);
                if kinds & heard_by & ONE_SHOT != 0 {
                    self.set(slot, *watcher, kinds & !(heard_by & ONE_SHOT));
                }
            }
        }
        // A recursive watch tells of a new or a gone child by that child's own event.
        if self.recursive > 0 && event != EventType::NodeChildrenChanged {
            let on_the_path = hearers.len();
            let mut below = path;
            while let Some(parent) = parent(below) {
                if let Some(slot) = self.find(parent) {
                    self.each_at(slot, |watcher, kinds| {
                        if kinds & RECURSIVE != 0 {
                            hearers.push(watcher);
                        }
                    });
                }
                below = parent;
            }
            if hearers.len() > on_the_path {
                hearers.sort_unstable();
                hearers.dedup();
            }
        }
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Who watches how much. `data_only`: without child watches, as ZooKeeper's four-letter words count.
    pub fn summary(&self, data_only: bool) -> Summary {
        let wanted = if data_only { DATA_TABLE } else { DATA_TABLE | CHILD_TABLE };
        let mut summary = Summary::default();
        let mut watching = BTreeSet::new();
        for entry in self.entries.iter().flatten() {
            let before = summary.watches;
            entry.watchers.each(|watcher, kinds| {
                if kinds & wanted != 0 {
                    summary.watches += 1;
                    watching.insert(watcher);
                }
            });
            summary.paths += u64::from(summary.watches > before);
        }
        summary.connections = watching.len() as u64;
        summary
    }

    /// Every watched path with its watchers, in the order of the paths' texts.
    pub fn by_path(&self, data_only: bool) -> BTreeMap<&str, Vec<ConnectionId>> {
        let wanted = if data_only { DATA_TABLE } else { DATA_TABLE | CHILD_TABLE };
        let mut all = BTreeMap::new();
        for entry in self.entries.iter().flatten() {
            let mut watchers = Vec::new();
            entry.watchers.each(|watcher, kinds| {
                if kinds & wanted != 0 {
                    watchers.push(watcher);
                }
            });
            if !watchers.is_empty() {
                all.insert(&*entry.path, watchers);
            }
        }
        all
    }

    fn find(&self, path: &str) -> Option<u32> {
        self.index.find(self.hasher.hash_one(path), |slot| self.text(*slot) == Some(path)).copied()
    }

    fn text(&self, slot: u32) -> Option<&str> {
        self.entries.get(slot as usize)?.as_ref().map(|entry| &*entry.path)
    }

    fn kinds_at(&self, slot: u32, connection: ConnectionId) -> Kinds {
        let entry = self.entries.get(slot as usize).and_then(Option::as_ref);
        entry.map_or(0, |entry| entry.watchers.get(connection))
    }

    fn each_at(&self, slot: u32, visit: impl FnMut(ConnectionId, Kinds)) {
        if let Some(entry) = self.entries.get(slot as usize).and_then(Option::as_ref) {
            entry.watchers.each(visit);
        }
    }

    fn insert(&mut self, path: &str, watchers: Watchers) -> Option<u32> {
        let entry = Some(Entry { path: path.into(), watchers });
        let slot = match self.free.pop() {
            Some(slot) => {
                *self.entries.get_mut(slot as usize)? = entry;
                slot
            }
            None => {
                let slot = u32::try_from(self.entries.len()).ok()?;
                self.entries.push(entry);
                slot
            }
        };
        self.bytes += path.len();
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.insert_unique(hasher.hash_one(path), slot, |slot| {
            let text = entries.get(*slot as usize).and_then(Option::as_ref).map_or("", |entry| &*entry.path);
            hasher.hash_one(text)
        });
        Some(slot)
    }

    /// The one place where an entry changes: everything that hangs on it follows.
    fn set(&mut self, slot: u32, connection: ConnectionId, kinds: Kinds) {
        let Some(place) = self.entries.get_mut(slot as usize) else { return };
        let Some(entry) = place.as_mut() else { return };
        let old = entry.watchers.get(connection);
        let anybody_left = entry.watchers.set(connection, kinds);
        let moved = |count: &mut u64, table: Kinds| match (old & table != 0, kinds & table != 0) {
            (false, true) => *count += 1,
            (true, false) => *count -= 1,
            _ => {}
        };
        moved(&mut self.recursive, RECURSIVE);
        moved(&mut self.counts.data, DATA_TABLE);
        moved(&mut self.counts.child, CHILD_TABLE);
        let (path_bytes, cost) = (entry.path.len(), entry.path.len() + WATCH_BYTES);
        if !anybody_left {
            self.bytes = self.bytes.saturating_sub(path_bytes);
            let hash = self.hasher.hash_one(&*entry.path);
            if let Ok(found) = self.index.find_entry(hash, |at| *at == slot) {
                found.remove();
            }
            *place = None;
            self.free.push(slot);
            if self.index.is_empty() {
                // What a burst of watches took is given back.
                self.index = HashTable::new();
                self.entries = Vec::new();
                self.free = Vec::new();
            }
        }
        match (old != 0, kinds != 0) {
            (false, true) => {
                self.bytes += WATCH_BYTES;
                let held = self.by_connection.entry(connection).or_default();
                held.bytes += cost;
                held.slots.insert(slot);
            }
            (true, false) => {
                self.bytes = self.bytes.saturating_sub(WATCH_BYTES);
                // One that is forgotten is not there any more.
                if let Some(held) = self.by_connection.get_mut(&connection) {
                    held.bytes = held.bytes.saturating_sub(cost);
                    held.slots.remove(&slot);
                    if held.slots.is_empty() {
                        self.by_connection.remove(&connection);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether a connection whose watches count for `own` goes, when those of all count for `all`.
fn is_too_much(own: usize, all: usize) -> bool {
    own > BYTES_MAX || (own > BYTES_FREE && all > ALL_BYTES_MAX)
}

/// The path one level up; `None` above the root.
fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 if path.len() == 1 => None,
        0 => path.get(..1),
        at => path.get(..at),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    impl Watches {
        fn fired(&mut self, event: EventType, path: &str) -> Vec<ConnectionId> {
            let mut hearers = Vec::new();
            self.fire(event, path, &mut hearers);
            hearers
        }
    }

    #[test]
    fn a_one_shot_watch_hears_one_event_and_is_gone() {
        let mut watches = Watches::new(1);
        watches.add(7, "/a", DATA);
        watches.add(7, "/a", DATA);
        assert!(watches.fired(EventType::NodeChildrenChanged, "/a").is_empty());
        assert_eq!(watches.fired(EventType::NodeDataChanged, "/a"), [7]);
        assert!(watches.fired(EventType::NodeDataChanged, "/a").is_empty());
        assert_eq!(watches.summary(false), Summary::default());
    }

    #[test]
    fn a_deletion_is_told_once_to_whoever_watches_data_and_children() {
        let mut watches = Watches::new(1);
        watches.add(7, "/a", DATA | CHILD);
        watches.add(8, "/a", CHILD);
        assert_eq!(watches.counts(), Counts { data: 1, child: 2 });
        assert_eq!(watches.fired(EventType::NodeDeleted, "/a"), [7, 8]);
        assert_eq!(watches.counts(), Counts::default());
    }

    #[test]
    fn new_data_leaves_the_child_watch_of_the_same_connection() {
        let mut watches = Watches::new(1);
        watches.add(7, "/a", DATA | CHILD);
        assert_eq!(watches.fired(EventType::NodeDataChanged, "/a"), [7]);
        assert_eq!(watches.kinds(7, "/a"), CHILD);
        assert_eq!(watches.fired(EventType::NodeChildrenChanged, "/a"), [7]);
    }

    #[test]
    fn a_persistent_watch_stays_and_a_recursive_one_hears_the_whole_subtree() {
        let mut watches = Watches::new(1);
        watches.add(1, "/a", PERSISTENT);
        watches.add(2, "/a", RECURSIVE);
        watches.add(3, "/", RECURSIVE);
        watches.add(2, "/a/b/c", DATA);
        for _ in 0..2 {
            assert_eq!(watches.fired(EventType::NodeChildrenChanged, "/a"), [1]);
            assert_eq!(watches.fired(EventType::NodeDataChanged, "/a"), [1, 2, 3]);
            assert_eq!(watches.fired(EventType::NodeCreated, "/a/b/c"), [2, 3]);
            assert_eq!(watches.fired(EventType::NodeCreated, "/ab"), [3]);
            assert_eq!(watches.fired(EventType::NodeDataChanged, "/"), [3]);
        }
        assert!(watches.remove(2, "/a", RECURSIVE) && !watches.remove(2, "/a", RECURSIVE));
        assert_eq!(watches.fired(EventType::NodeCreated, "/a/b/c"), [3]);
    }

    #[test]
    fn a_connection_that_ends_takes_its_watches_along_and_nothing_else() {
        let mut watches = Watches::new(1);
        for at in 0..100 {
            watches.add(1, &format!("/{at}"), DATA | RECURSIVE);
            watches.add(2, &format!("/{}", at / 2), CHILD);
        }
        watches.forget(1);
        assert_eq!(watches.summary(false), Summary { connections: 1, paths: 50, watches: 50 });
        assert_eq!(watches.summary(true), Summary::default());
        assert_eq!(watches.recursive, 0);
        watches.forget(2);
        assert_eq!((watches.counts(), watches.entries.len(), watches.bytes), (Counts::default(), 0, 0));
    }

    #[test]
    fn a_connection_watches_too_much_by_itself_or_with_more_than_a_little_when_there_is_too_much_in_all() {
        let (one, all, free) = (BYTES_MAX, ALL_BYTES_MAX, BYTES_FREE);
        for (own, sum, expected) in [
            (one, all, false),
            (one + 1, one + 1, true),
            (free, all + 1, false),
            (free + 1, all + 1, true),
            (free + 1, all, false),
        ] {
            assert_eq!(is_too_much(own, sum), expected, "{own} {sum}");
        }
    }

    /// The tables against the plainest model there is.
    #[test]
    fn random_watches_agree_with_a_plain_list() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let mut watches = Watches::new(3);
        let mut model: BTreeMap<(String, ConnectionId), Kinds> = BTreeMap::new();
        let paths = ["/", "/a", "/a/b", "/a/b/c", "/ab", "/a/d"];
        for _ in 0..20_000 {
            let path = paths[random() as usize % paths.len()];
            let connection = random() % 4;
            let kinds = 1 << (random() % 4);
            match random() % 8 {
                0..4 => {
                    watches.add(connection, path, kinds);
                    *model.entry((path.to_owned(), connection)).or_default() |= kinds;
                }
                4 => {
                    let had = model.get_mut(&(path.to_owned(), connection));
                    let expected = had.as_ref().is_some_and(|had| **had & kinds != 0);
                    if let Some(had) = had {
                        *had &= !kinds;
                    }
                    assert_eq!(watches.remove(connection, path, kinds), expected);
                }
                5 => {
                    watches.forget(connection);
                    model.retain(|(_, watcher), _| *watcher != connection);
                }
                _ => {
                    let event = EventType::from_number(1 + (random() % 4) as u8).unwrap();
                    let mut hearers = BTreeSet::new();
                    for ((watched, watcher), kinds) in &mut model {
                        if watched == path && *kinds & heard_by(event) != 0 {
                            hearers.insert(*watcher);
                            *kinds &= !(heard_by(event) & ONE_SHOT);
                        }
                        let above = watched == "/" || path.starts_with(&format!("{watched}/"));
                        if above && *kinds & RECURSIVE != 0 && event != EventType::NodeChildrenChanged {
                            hearers.insert(*watcher);
                        }
                    }
                    assert_eq!(watches.fired(event, path), Vec::from_iter(hearers));
                }
            }
            model.retain(|_, kinds| *kinds != 0);
            assert_eq!(watches.summary(false).watches, model.len() as u64);
            let kept: BTreeSet<&String> = model.keys().map(|(path, _)| path).collect();
            let bytes = |paths: &mut dyn Iterator<Item = &String>| paths.map(String::len).sum::<usize>();
            assert_eq!(watches.bytes(), bytes(&mut kept.into_iter()) + model.len() * WATCH_BYTES);
            for connection in 0..4 {
                let own = || model.keys().filter(|(_, watcher)| *watcher == connection).map(|(path, _)| path);
                assert_eq!(watches.bytes_of(connection), bytes(&mut own()) + own().count() * WATCH_BYTES);
            }
        }
    }
}
