//! The store itself: plain Rust that knows no host. Time is an argument, changes are a return
//! value.
//!
//! Invariants:
//! * `marks.expiries` holds `(time, key)` for exactly the entries that end at a time, and `marks.owned`
//!   holds exactly the entries that belong to a session: both are rebuilt from `entries`, never stored.
//! * `version` only grows and each change takes the next one, so a version names one change of one
//!   key for ever: comparing it cannot be fooled by a key deleted and made again.
//! * An entry whose time has come is gone for every reader at once, even while it still waits to be
//!   removed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry as Place;
use std::ops::Bound;

use serde::Deserialize;
use serde::Serialize;

use crate::data::Data;

/// Keys and values in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Store {
    version: u64,
    entries: BTreeMap<Data, Entry>,
    #[serde(skip)]
    marks: Marks,
}

/// Which entries end when, and which belong to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Marks {
    expiries: BTreeSet<(u64, Data)>,
    owned: BTreeMap<u64, BTreeSet<Data>>,
}

/// What of a [`Store`] is in a snapshot.
#[derive(Deserialize)]
struct Stored {
    version: u64,
    entries: BTreeMap<Data, Entry>,
}

/// A key's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The value.
    pub value: Data,
    /// The store's version when this value was written.
    pub version: u64,
    /// How long the entry stays.
    pub lifetime: Lifetime,
}

/// How long an entry stays, when nobody deletes or replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// For ever.
    Forever,
    /// Until this time, Unix milliseconds.
    Until(u64),
    /// As long as this session.
    Session(u64),
    /// Its session has ended at this time, Unix milliseconds.
    SessionEnded(u64),
}

impl Lifetime {
    /// When it is over, if that is known.
    fn end_ms(self) -> Option<u64> {
        match self {
            Self::Until(at_ms) | Self::SessionEnded(at_ms) => Some(at_ms),
            Self::Forever | Self::Session(_) => None,
        }
    }
}

impl Entry {
    fn is_over(&self, now_ms: u64) -> bool {
        self.lifetime.end_ms().is_some_and(|at_ms| at_ms <= now_ms)
    }
}

/// What a compare-and-swap finds to be so, or does not swap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// The key was last written at this version.
    Version(u64),
    /// The key has this value.
    Value(Data),
}

/// Why a removed entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its time came.
    Expired,
    /// Its session ended.
    Session,
}

/// A part of the keys, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first key that may be in it.
    pub start: Option<Data>,
    /// The first key behind it.
    pub end: Option<Data>,
}

impl From<Stored> for Store {
    fn from(stored: Stored) -> Self {
        let mut store = Self { version: stored.version, ..Self::default() };
        for (key, entry) in &stored.entries {
            store.marks.add(key, entry.lifetime);
        }
        store.entries = stored.entries;
        store
    }
}

impl Store {
    /// The version of the last change; 0 before the first.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many keys there are, with those whose time has come but that are not removed yet.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many keys there are, without those whose time has come.
    pub fn count(&self, now_ms: u64) -> usize {
        let over = self.marks.expiries.iter().take_while(|(at_ms, _)| *at_ms <= now_ms).count();
        self.entries.len().saturating_sub(over)
    }

    /// How many keys have a time that will come.
    pub fn expiring(&self) -> usize {
        self.marks.expiries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The key's entry.
    pub fn get(&self, now_ms: u64, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| !entry.is_over(now_ms))
    }

    /// Whether the key is as expected.
    pub fn is_as_expected(&self, now_ms: u64, key: &[u8], expect: &Expect) -> bool {
        match (expect, self.get(now_ms, key)) {
            (Expect::Absent, found) => found.is_none(),
            (Expect::Version(version), Some(entry)) => entry.version == *version,
            (Expect::Value(value), Some(entry)) => entry.value == *value,
            (Expect::Version(_) | Expect::Value(_), None) => false,
        }
    }

    /// Sets the key's value; gives its new version and what was there before.
    pub fn put(&mut self, now_ms: u64, key: Data, value: Data, lifetime: Lifetime) -> (u64, Option<Entry>) {
        let version = self.next_version();
        let entry = Entry { value, version, lifetime };
        // One search of the tree, which is most of what a put costs.
        let previous = match self.entries.entry(key) {
            Place::Vacant(place) => {
                self.marks.add(place.key(), lifetime);
                place.insert(entry);
                None
            }
            Place::Occupied(mut place) => {
                let before = place.insert(entry);
                self.marks.change(place.key(), before.lifetime, lifetime);
                Some(before)
            }
        };
        (version, previous.filter(|entry| !entry.is_over(now_ms)))
    }

    /// Removes the key; gives the version of that change and what was there.
    pub fn delete(&mut self, now_ms: u64, key: &[u8]) -> Option<(u64, Entry)> {
        self.get(now_ms, key)?;
        let entry = self.take(key)?;
        Some((self.next_version(), entry))
    }

    /// Removes all keys; gives the version of that one change, if there were any.
    pub fn clear(&mut self) -> Option<u64> {
        if self.entries.is_empty() {
            return None;
        }
        *self = Self { version: self.version, ..Self::default() };
        Some(self.next_version())
    }

    /// Gives a key that is there another lifetime, which is no change of its value; whether it is
    /// there.
    pub fn set_lifetime(&mut self, now_ms: u64, key: &[u8], lifetime: Lifetime) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| !entry.is_over(now_ms)) else {
            return false;
        };
        let before = std::mem::replace(&mut entry.lifetime, lifetime);
        self.marks.change(&key.into(), before, lifetime);
        true
    }

    /// The keys of `span` in order, with their entries.
    pub fn range(&self, now_ms: u64, span: &Span) -> impl Iterator<Item = (&Data, &Entry)> {
        let start = span.start.as_ref().map_or(Bound::Unbounded, Bound::Included);
        let end = span.end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        // A range that ends before it starts holds nothing; BTreeMap would panic.
        let empty = matches!((&span.start, &span.end), (Some(start), Some(end)) if start >= end);
        let range = (!empty).then(|| self.entries.range::<Data, _>((start, end)));
        range.into_iter().flatten().filter(move |(_, entry)| !entry.is_over(now_ms))
    }

    /// When the next entry's time comes, Unix milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.marks.expiries.first().map(|(at_ms, _)| *at_ms)
    }

    /// Removes one entry whose time has come; gives it, why it went, and the version of the change.
    pub fn expire_one(&mut self, now_ms: u64) -> Option<(Data, Ended, u64)> {
        let key = self.marks.expiries.first().filter(|(at_ms, _)| *at_ms <= now_ms).map(|(_, key)| key.clone())?;
        let entry = self.take(key.as_bytes())?;
        let why = match entry.lifetime {
            Lifetime::SessionEnded(_) => Ended::Session,
            _ => Ended::Expired,
        };
        Some((key, why, self.next_version()))
    }

    /// How many keys belong to the session.
    pub fn owned_by(&self, session: u64) -> usize {
        self.marks.owned.get(&session).map_or(0, BTreeSet::len)
    }

    /// Lets the time of all that the session owns come now.
    pub fn end_session(&mut self, now_ms: u64, session: u64) {
        for key in self.marks.owned.remove(&session).unwrap_or_default() {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.lifetime = Lifetime::SessionEnded(now_ms);
                self.marks.expiries.insert((now_ms, key));
            }
        }
    }

    fn next_version(&mut self) -> u64 {
        self.version = self.version.saturating_add(1);
        self.version
    }

    /// Takes an entry out, with its marks in the indexes.
    fn take(&mut self, key: &[u8]) -> Option<Entry> {
        let (key, entry) = self.entries.remove_entry(key)?;
        self.marks.remove(&key, entry.lifetime);
        Some(entry)
    }
}

impl Marks {
    /// Marks what was marked as `before` as `after`.
    fn change(&mut self, key: &Data, before: Lifetime, after: Lifetime) {
        if before != after {
            self.remove(key, before);
            self.add(key, after);
        }
    }

    /// Forgets an entry.
    fn remove(&mut self, key: &Data, lifetime: Lifetime) {
        match lifetime {
            Lifetime::Forever => {}
            Lifetime::Until(at_ms) | Lifetime::SessionEnded(at_ms) => {
                self.expiries.remove(&(at_ms, key.clone()));
            }
            Lifetime::Session(session) => {
                if let Some(keys) = self.owned.get_mut(&session) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.owned.remove(&session);
                    }
                }
            }
        }
    }

    /// Marks an entry.
    fn add(&mut self, key: &Data, lifetime: Lifetime) {
        match lifetime {
            Lifetime::Forever => {}
            Lifetime::Until(at_ms) | Lifetime::SessionEnded(at_ms) => {
                self.expiries.insert((at_ms, key.clone()));
            }
            Lifetime::Session(session) => {
                self.owned.entry(session).or_default().insert(key.clone());
            }
        }
    }
}
