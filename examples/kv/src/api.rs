//! What clients send and get, in JSON. A command or query is an object with one name:
//! `{"Put":{"key":"a","value":"b"}}`.

use serde::Deserialize;
use serde::Serialize;

use crate::data::Data;
use crate::store::Entry;
use crate::store::Expect;
use crate::store::Lifetime;

/// What changes the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Command {
    /// Sets a key. `ttl_ms`: the key expires that long after; `ephemeral`: it goes with the
    /// client's session. At most one of them; with neither it stays. Answers [`Reply::Put`].
    Put {
        /// The key, not empty.
        key: Data,
        /// Its new value.
        value: Data,
        /// How long the key stays, milliseconds.
        #[serde(default)]
        ttl_ms: Option<u64>,
        /// Whether the key goes when the session does.
        #[serde(default)]
        ephemeral: bool,
    },
    /// Removes a key. Answers [`Reply::Delete`].
    Delete {
        /// The key.
        key: Data,
    },
    /// Sets a key if it is as expected. Answers [`Reply::CompareAndSwap`].
    CompareAndSwap {
        /// The key, not empty.
        key: Data,
        /// `"Absent"`, `{"Version":3}` or `{"Value":"old"}`.
        expect: Expect,
        /// Its new value.
        value: Data,
        /// As in `Put`.
        #[serde(default)]
        ttl_ms: Option<u64>,
        /// As in `Put`.
        #[serde(default)]
        ephemeral: bool,
    },
    /// Lets a key expire `ttl_ms` from now, or, without it, stay. Its version does not change.
    /// Answers [`Reply::Expire`].
    Expire {
        /// The key.
        key: Data,
        /// How long the key stays, milliseconds.
        #[serde(default)]
        ttl_ms: Option<u64>,
    },
    /// Operations of the [Redis adapter](crate::resp), in the bytes of [`op`](crate::resp::op); not in
    /// JSON. Answers [`Reply::Batch`].
    #[serde(skip)]
    Batch(Vec<u8>),
}

/// What a command answers; its fields are the JSON object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// `{"version":2,"previous_version":1}`
    Put {
        /// The version of this change.
        version: u64,
        /// The version of the value that was replaced; null if the key is new.
        previous_version: Option<u64>,
    },
    /// `{"deleted":true,"version":3}`
    Delete {
        /// Whether there was such a key.
        deleted: bool,
        /// The version of the deletion; null if nothing was deleted.
        version: Option<u64>,
    },
    /// `{"swapped":true,"version":4}`, `{"swapped":false,"found":{…}}`
    CompareAndSwap {
        /// Whether the key was as expected and is set.
        swapped: bool,
        /// The version of the change, if there was one.
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
        /// What was there instead; left out after a swap and for a missing key.
        #[serde(skip_serializing_if = "Option::is_none")]
        found: Option<Item>,
    },
    /// `{"found":true}`
    Expire {
        /// Whether there is such a key.
        found: bool,
    },
    /// The Redis adapter's frames.
    #[serde(skip)]
    Batch(Vec<u8>),
}

/// What asks the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Query {
    /// One key. Answers [`Answer::Item`].
    Get {
        /// The key.
        key: Data,
    },
    /// The keys in order that start with `prefix`, from `start` (with it) to `end` (without it),
    /// each of which may be left out. Answers [`Answer::Range`].
    Range {
        /// What the keys start with.
        #[serde(default)]
        prefix: Option<Data>,
        /// The least key; an answer's `next`, to go on.
        #[serde(default)]
        start: Option<Data>,
        /// The key to stop before.
        #[serde(default)]
        end: Option<Data>,
        /// At most so many keys: 100 if left out, never over 10 000.
        #[serde(default)]
        limit: Option<u64>,
        /// Leave the values out.
        #[serde(default)]
        keys_only: bool,
    },
    /// The store's figures. Answers [`Answer::Status`].
    Status,
    /// Reads of the [Redis adapter](crate::resp). Answers [`Answer::Batch`].
    #[serde(skip)]
    Batch(Vec<u8>),
}

/// What a query answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The item, or null.
    Item(Option<Item>),
    /// `{"items":[…],"next":"k"}`
    Range {
        /// The items, in key order.
        items: Vec<Item>,
        /// Where to go on; null at the end.
        next: Option<Data>,
    },
    /// `{"keys":3,"version":17}`
    Status {
        /// How many keys there are.
        keys: u64,
        /// The version of the last change.
        version: u64,
    },
    /// The Redis adapter's frames.
    #[serde(skip)]
    Batch(Vec<u8>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// The key.
    pub key: Data,
    /// The value; left out if only keys were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Data>,
    /// The version of the key's last change.
    pub version: u64,
    /// When the key expires, Unix milliseconds; left out if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// The session the key goes with; left out if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
}

impl Item {
    /// The item of this entry.
    pub fn new(key: &Data, entry: &Entry, with_value: bool) -> Self {
        let (expires_at_ms, session) = match entry.lifetime {
            Lifetime::Forever | Lifetime::SessionEnded(_) => (None, None),
            Lifetime::Until(at_ms) => (Some(at_ms), None),
            Lifetime::Session(session) => (None, Some(session)),
        };
        let value = with_value.then(|| entry.value.clone());
        Self { key: key.clone(), value, version: entry.version, expires_at_ms, session }
    }
}

/// An event: one change of one key. `{"change":"put","key":"a","value":"b","version":1}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change<'a> {
    /// What happened.
    pub change: ChangeKind,
    /// To which key.
    pub key: &'a Data,
    /// The new value; left out unless it was put.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<&'a Data>,
    /// The version of the change.
    pub version: u64,
}

/// An event: all keys were deleted, as one change. `{"change":"clear","version":9}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cleared {
    /// [`ChangeKind::Clear`].
    pub change: ChangeKind,
    /// The version of the change.
    pub version: u64,
}

/// An event: a message to whoever listens to its channel, which changed nothing.
/// `{"change":"publish","channel":"c","message":"m"}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// [`ChangeKind::Publish`].
    pub change: ChangeKind,
    /// To whom.
    pub channel: Data,
    /// What.
    pub message: Data,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It was set.
    Put,
    /// It was deleted.
    Delete,
    /// Its time came.
    Expire,
    /// Its session ended.
    SessionEnd,
    /// All keys were deleted.
    Clear,
    /// Nothing: a message was published.
    Publish,
}
