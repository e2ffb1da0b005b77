//! A key-value store as a Statehouse module: put, get, delete, compare-and-swap, ordered range
//! scans, keys that expire, keys that go with their session, and an event for each change.
//!
//! * [`api`]: what clients send and get;
//! * [`store`]: the store, plain Rust;
//! * [`resp`]: Redis's protocol, for `group create --listen`;
//! * this file: the store as a state machine, with the limits, events and the timer.

pub mod api;
pub mod data;
pub mod resp;
pub mod store;

use serde::Deserialize;
use serde::Serialize;
use statehouse_sdk::Context;
use statehouse_sdk::Params;
use statehouse_sdk::QueryContext;
use statehouse_sdk::Reject;
use statehouse_sdk::StateMachine;
use statehouse_sdk::ensure;

use crate::api::Answer;
use crate::api::Change;
use crate::api::ChangeKind;
use crate::api::Command;
use crate::api::Item;
use crate::api::Query;
use crate::api::Reply;
use crate::data::Data;
use crate::store::Ended;
use crate::store::Lifetime;
use crate::store::Span;
use crate::store::Store;

/// The one timer: it is set for the earliest expiry of all keys.
const EXPIRY_TIMER: u64 = 1;
/// How many keys one timer entry removes. A million keys that expire together must not be one entry
/// that runs out of fuel or events: the rest waits for the next entry, hidden meanwhile.
const EXPIRED_PER_ENTRY: usize = 1_000;
/// How many ephemeral keys a session may own, since its end marks them all in one entry.
const OWNED_PER_SESSION: usize = 10_000;
/// A range's keys when no limit is asked, and the highest that may be.
const DEFAULT_RANGE_LIMIT: u64 = 100;
const MAX_RANGE_LIMIT: u64 = 10_000;
/// A range stops before its keys and values are more, so that its answer stays below the host's
/// limit (4 MiB), even where JSON writes a byte as six.
const MAX_RANGE_BYTES: usize = 256 << 10;

/// The state machine.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Kv {
    limits: Limits,
    store: Store,
}

/// The group's params: how large things may be.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A key's largest size, bytes.
    pub max_key_bytes: u64,
    /// A value's largest size, bytes. The default leaves room in the host's limit of an event (1
    /// MiB) even for a value whose every byte JSON writes as six.
    pub max_value_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_key_bytes: 4 << 10, max_value_bytes: 128 << 10 }
    }
}

impl StateMachine for Kv {
    type Command = Command;
    type Reply = Reply;
    type Query = Query;
    type Answer = Answer;

    fn init(&mut self, _: &mut Context<'_>, params: Params<'_>) -> Result<(), Reject> {
        self.limits = params.parse()?;
        Ok(())
    }

    fn apply(&mut self, ctx: &mut Context<'_>, command: Command) -> Result<Reply, Reject> {
        let now_ms = ctx.time_ms();
        let armed = self.store.next_expiry_ms();
        let reply = match command {
            Command::Put { key, value, ttl_ms, ephemeral } => {
                let lifetime = self.check_put(ctx, &key, &value, ttl_ms, ephemeral)?;
                let (version, previous) = self.put(ctx, key, value, lifetime);
                Reply::Put { version, previous_version: previous }
            }
            Command::CompareAndSwap { key, expect, value, ttl_ms, ephemeral } => {
                let lifetime = self.check_put(ctx, &key, &value, ttl_ms, ephemeral)?;
                if self.store.is_as_expected(now_ms, key.as_bytes(), &expect) {
                    let (version, _) = self.put(ctx, key, value, lifetime);
                    Reply::CompareAndSwap { swapped: true, version: Some(version), found: None }
                } else {
                    let found = self.store.get(now_ms, key.as_bytes()).map(|entry| Item::new(&key, entry, true));
                    Reply::CompareAndSwap { swapped: false, version: None, found }
                }
            }
            Command::Delete { key } => {
                let version = self.store.delete(now_ms, key.as_bytes()).map(|(version, _)| version);
                if let Some(version) = version {
                    ctx.emit_json(&Change { change: ChangeKind::Delete, key: &key, value: None, version });
                }
                Reply::Delete { deleted: version.is_some(), version }
            }
            Command::Expire { key, ttl_ms } => {
                let lifetime = ttl_ms.map_or(Lifetime::Forever, |ttl| Lifetime::Until(now_ms.saturating_add(ttl)));
                Reply::Expire { found: self.store.set_lifetime(now_ms, key.as_bytes(), lifetime) }
            }
            Command::Batch(batch) => Reply::Batch(self.apply_batch(ctx, &batch)?),
        };
        self.arm_timer(ctx, armed);
        Ok(reply)
    }

    fn query(&self, ctx: &QueryContext, query: Query) -> Result<Answer, Reject> {
        let now_ms = ctx.time_ms();
        Ok(match query {
            Query::Get { key } => {
                Answer::Item(self.store.get(now_ms, key.as_bytes()).map(|entry| Item::new(&key, entry, true)))
            }
            Query::Range { prefix, start, end, limit, keys_only } => {
                let span = span(prefix, start, end);
                self.range(now_ms, &span, limit.unwrap_or(DEFAULT_RANGE_LIMIT).min(MAX_RANGE_LIMIT), keys_only)
            }
            Query::Status => Answer::Status { keys: self.store.len() as u64, version: self.store.version() },
            Query::Batch(batch) => Answer::Batch(self.query_batch(ctx, &batch)?),
        })
    }

    fn on_timer(&mut self, ctx: &mut Context<'_>, _: u64) {
        for _ in 0..EXPIRED_PER_ENTRY {
            let Some((key, why, version)) = self.store.expire_one(ctx.time_ms()) else {
                break;
            };
            let change = match why {
                Ended::Expired => ChangeKind::Expire,
                Ended::Session => ChangeKind::SessionEnd,
            };
            ctx.emit_json(&Change { change, key: &key, value: None, version });
        }
        // The timer that fired is no longer set.
        self.arm_timer(ctx, None);
    }

    fn on_session_end(&mut self, ctx: &mut Context<'_>, session: u64) {
        let armed = self.store.next_expiry_ms();
        self.store.end_session(ctx.time_ms(), session);
        self.arm_timer(ctx, armed);
    }
}

impl Kv {
    /// The store, for callers that use this as a plain library.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// All that can be wrong with a put, before anything changes; gives the lifetime asked for.
    fn check_put(
        &self,
        ctx: &Context<'_>,
        key: &Data,
        value: &Data,
        ttl_ms: Option<u64>,
        ephemeral: bool,
    ) -> Result<Lifetime, Reject> {
        let Limits { max_key_bytes, max_value_bytes } = self.limits;
        ensure!(!key.is_empty(), "a key must not be empty");
        ensure!(key.len() as u64 <= max_key_bytes, "the key has {} bytes; this group takes {max_key_bytes}", key.len());
        ensure!(
            value.len() as u64 <= max_value_bytes,
            "the value has {} bytes; this group takes {max_value_bytes}",
            value.len()
        );
        match (ttl_ms, ephemeral) {
            (Some(_), true) => Err(Reject::new("a key is either ephemeral or has a ttl_ms, not both")),
            (Some(ttl), false) => Ok(Lifetime::Until(ctx.time_ms().saturating_add(ttl))),
            (None, false) => Ok(Lifetime::Forever),
            (None, true) => {
                let session = ctx.session().ok_or("an ephemeral key needs a session to go with")?;
                let owned = self.store.owned_by(session);
                ensure!(owned < OWNED_PER_SESSION, "the session owns {owned} ephemeral keys, and no more are allowed");
                Ok(Lifetime::Session(session))
            }
        }
    }

    fn put(&mut self, ctx: &mut Context<'_>, key: Data, value: Data, lifetime: Lifetime) -> (u64, Option<u64>) {
        let version = self.store.version().saturating_add(1);
        ctx.emit_json(&Change { change: ChangeKind::Put, key: &key, value: Some(&value), version });
        let (version, previous) = self.store.put(ctx.time_ms(), key, value, lifetime);
        (version, previous.map(|entry| entry.version))
    }

    fn range(&self, now_ms: u64, span: &Span, limit: u64, keys_only: bool) -> Answer {
        let mut items = Vec::new();
        let mut bytes = 0_usize;
        for (key, entry) in self.store.range(now_ms, span) {
            let value_bytes = if keys_only { 0 } else { entry.value.len() };
            bytes = bytes.saturating_add(key.len()).saturating_add(value_bytes);
            let full = items.len() as u64 >= limit || (bytes > MAX_RANGE_BYTES && !items.is_empty());
            if full {
                return Answer::Range { items, next: Some(key.clone()) };
            }
            items.push(Item::new(key, entry, !keys_only));
        }
        Answer::Range { items, next: None }
    }

    /// Keeps the timer at the earliest expiry; `armed` is where it stands.
    fn arm_timer(&self, ctx: &mut Context<'_>, armed: Option<u64>) {
        match self.store.next_expiry_ms() {
            next if next == armed => {}
            Some(at_ms) => ctx.set_timer(EXPIRY_TIMER, at_ms),
            None => ctx.clear_timer(EXPIRY_TIMER),
        }
    }
}

/// The keys that start with `prefix` and lie from `start` to before `end`.
fn span(prefix: Option<Data>, start: Option<Data>, end: Option<Data>) -> Span {
    let prefix_end = prefix.as_ref().and_then(Data::end_of_prefix);
    Span {
        start: prefix.max(start),
        end: match (prefix_end, end) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        },
    }
}

statehouse_sdk::export!(Kv, codec = resp::Codec, adapter = resp::Resp);
