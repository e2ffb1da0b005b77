//! Batches on the store: what the adapter's operations do, and what they answer.
//!
//! Invariants:
//! * A batch is read whole before anything changes, so one that is malformed changes nothing.
//! * An operation answers an error or does all of its work.
//! * What one entry answers and tells stays below the host's limits: units beyond [`Spent::is_enough`]
//!   are left for the next entry, and an operation whose answer is too large is an error.

use statehouse_sdk::Context;
use statehouse_sdk::QueryContext;
use statehouse_sdk::Reject;

use super::glob;
use super::op::Condition;
use super::op::Expiry;
use super::op::Fields;
use super::op::MARK;
use super::op::Op;
use super::op::SPECIAL;
use super::op::Stamp;
use super::op::TimeUnit;
use super::op::Unit;
use super::op::Work;
use super::op::put_bytes;
use super::op::put_number;
use super::parse::integer;
use super::reply::Protocol;
use super::reply::Reply;
use super::reply::decimal;
use crate::Kv;
use crate::api::Change;
use crate::api::ChangeKind;
use crate::api::Cleared;
use crate::api::Published;
use crate::data::Data;
use crate::store::Entry;
use crate::store::Lifetime;
use crate::store::Span;

/// The largest reply of one unit, bytes: below the host's limit for all of an entry (4 MiB).
const REPLY_BYTES_MAX: usize = 3 << 20;
/// When replies, or the bytes or the number of changes, are over this, the other units wait for the
/// next entry. A unit has at most [`super::command::KEYS_MAX`] changes, a host takes 10 000 events.
const ENOUGH_BYTES: usize = 1 << 20;
const ENOUGH_CHANGES: usize = 1_000;

const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
const TOO_LARGE: &str = "ERR the answer would be larger than 3145728 bytes: ask for less at once";
const NOT_INTEGER: &str = "ERR value is not an integer or out of range";

/// What a batch has cost so far.
#[derive(Debug, Default)]
struct Spent {
    changes: usize,
    changed_bytes: usize,
    messages: u64,
}

impl Spent {
    fn is_enough(&self, out: &[u8]) -> bool {
        self.changes > ENOUGH_CHANGES || self.changed_bytes > ENOUGH_BYTES || out.len() > ENOUGH_BYTES
    }
}

/// A frame under way: its length comes before it, once it is known.
fn framed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start..).and_then(|frame| frame.first_chunk_mut()) {
        *place = length.to_le_bytes();
    }
}

fn units(bytes: &[u8]) -> Result<Vec<Unit<'_>>, Reject> {
    Fields(bytes).units().ok_or_else(|| Reject::new("the batch is malformed"))
}

impl Unit<'_> {
    fn protocol(&self) -> Protocol {
        if self.resp3 { Protocol::Resp3 } else { Protocol::Resp2 }
    }
}

impl Kv {
    /// Applies the units of a batch; answers with a frame for each that was done, which are all or
    /// the first ones.
    pub(crate) fn apply_batch(&mut self, ctx: &mut Context<'_>, batch: &[u8]) -> Result<Vec<u8>, Reject> {
        let units = units(batch.strip_prefix(&[MARK]).ok_or("not a batch")?)?;
        let now_ms = ctx.time_ms();
        let mut spent = Spent::default();
        let mut out = Vec::new();
        for unit in &units {
            if spent.is_enough(&out) {
                break;
            }
            let protocol = unit.protocol();
            framed(&mut out, |out| match &unit.work {
                Work::One(op) => self.apply_op(ctx, op, &mut spent, &mut Reply::new(out, protocol)),
                Work::All { watched, .. } if !self.are_unchanged(now_ms, watched) => out.push(0),
                Work::All { ops, .. } => {
                    out.push(1);
                    for op in ops {
                        framed(out, |out| self.apply_op(ctx, op, &mut spent, &mut Reply::new(out, protocol)));
                    }
                }
            });
        }
        Ok(out)
    }

    /// Answers the units of a batch of reads, all or the first ones.
    pub(crate) fn query_batch(&self, ctx: &QueryContext, batch: &[u8]) -> Result<Vec<u8>, Reject> {
        let mut fields = Fields(batch.strip_prefix(&[MARK]).ok_or("not a batch")?);
        let visible_ms = fields.number().ok_or("the batch has no time")?;
        let clock_ms = fields.number().ok_or("the batch has no time")?;
        let units = units(fields.0)?;
        let is_read = |unit: &Unit<'_>| match &unit.work {
            Work::One(op) => op.is_read(),
            Work::All { ops, .. } => ops.iter().all(Op::is_read),
        };
        if !units.iter().all(is_read) {
            return Err(Reject::new("the batch would change the store, so it is no query"));
        }
        let at = At { now_ms: visible_ms.max(ctx.time_ms()), clock_ms: clock_ms.max(ctx.time_ms()) };
        let mut out = Vec::new();
        for unit in &units {
            if out.len() > ENOUGH_BYTES {
                break;
            }
            let protocol = unit.protocol();
            framed(&mut out, |out| match &unit.work {
                Work::One(op) => self.read(at, op, &mut Reply::new(out, protocol)),
                Work::All { watched, .. } if !self.are_unchanged(at.now_ms, watched) => out.push(0),
                Work::All { ops, .. } => {
                    out.push(1);
                    for op in ops {
                        framed(out, |out| self.read(at, op, &mut Reply::new(out, protocol)));
                    }
                }
            });
        }
        Ok(out)
    }

    fn are_unchanged(&self, now_ms: u64, watched: &[Stamp<'_>]) -> bool {
        watched.iter().all(|stamp| {
            let (version, expires_at_ms) = stamp_of(self.store.get(now_ms, stamp.key));
            (version, expires_at_ms) == (stamp.version, stamp.expires_at_ms)
        })
    }

    /// What changes the store; the rest is [`read`](Self::read).
    fn apply_op(&mut self, ctx: &mut Context<'_>, op: &Op<'_>, spent: &mut Spent, reply: &mut Reply<'_>) {
        let now_ms = ctx.time_ms();
        if let Err(error) = self.try_apply(ctx, now_ms, op, spent, reply) {
            reply.error(error);
        }
    }

    fn try_apply(
        &mut self,
        ctx: &mut Context<'_>,
        now_ms: u64,
        op: &Op<'_>,
        spent: &mut Spent,
        reply: &mut Reply<'_>,
    ) -> Result<(), &'static str> {
        match op {
            Op::Set { key, value, expiry, condition, get } => {
                self.check(key, value.len())?;
                // Most ask for nothing that depends on what is there.
                let asks = *condition != Condition::Always || *expiry == Expiry::Keep || *get;
                let before = if asks { self.store.get(now_ms, key) } else { None };
                let is_set = match condition {
                    Condition::Absent => before.is_none(),
                    Condition::Present => before.is_some(),
                    _ => true,
                };
                let lifetime = lifetime(*expiry, now_ms, before);
                if *get {
                    let found = before.map(|entry| entry.value.as_bytes());
                    has_room(reply, found)?;
                    reply.maybe(found);
                } else if is_set {
                    reply.ok();
                } else {
                    reply.null();
                }
                if is_set {
                    self.set(ctx, spent, key, (*value).into(), lifetime);
                }
            }
            Op::SetNx(key, value) => {
                self.check(key, value.len())?;
                let is_new = self.store.get(now_ms, key).is_none();
                if is_new {
                    self.set(ctx, spent, key, (*value).into(), Lifetime::Forever);
                }
                reply.integer(is_new.into());
            }
            Op::GetEx(key, expiry) => {
                let before = self.store.get(now_ms, key);
                let found = before.map(|entry| entry.value.as_bytes());
                has_room(reply, found)?;
                reply.maybe(found);
                let lifetime = lifetime(*expiry, now_ms, before);
                if before.is_some_and(|entry| entry.lifetime != lifetime) {
                    self.set_lifetime(ctx, spent, now_ms, key, lifetime);
                }
            }
            Op::GetDel(key) => {
                let found = self.store.get(now_ms, key).map(|entry| entry.value.as_bytes());
                has_room(reply, found)?;
                reply.maybe(found);
                self.delete(ctx, spent, now_ms, key);
            }
            Op::Del(keys) => {
                let deleted = keys.iter().filter(|key| self.delete(ctx, spent, now_ms, key)).count();
                reply.count(deleted);
            }
            Op::MSet(pairs, only_new) => {
                for (key, value) in pairs {
                    self.check(key, value.len())?;
                }
                let is_set = !only_new || pairs.iter().all(|(key, _)| self.store.get(now_ms, key).is_none());
                for (key, value) in pairs.iter().filter(|_| is_set) {
                    self.set(ctx, spent, key, (*value).into(), Lifetime::Forever);
                }
                if *only_new {
                    reply.integer(is_set.into());
                } else {
                    reply.ok();
                }
            }
            Op::IncrBy(key, by) => {
                let before = self.store.get(now_ms, key);
                let number = before.map_or(Some(0), |entry| integer(entry.value.as_bytes())).ok_or(NOT_INTEGER)?;
                let lifetime = before.map_or(Lifetime::Forever, |entry| entry.lifetime);
                let sum = number.checked_add(*by).ok_or("ERR increment or decrement would overflow")?;
                let mut digits = [0; 20];
                let value = decimal(sum, &mut digits);
                self.check(key, value.len())?;
                self.set(ctx, spent, key, value.into(), lifetime);
                reply.integer(sum);
            }
            Op::Append(key, more) => {
                let before = self.store.get(now_ms, key);
                let lifetime = before.map_or(Lifetime::Forever, |entry| entry.lifetime);
                let value = before.map(|entry| entry.value.as_bytes()).unwrap_or_default();
                self.check(key, value.len().saturating_add(more.len()))?;
                let value = [value, more].concat();
                reply.count(value.len());
                self.set(ctx, spent, key, value.into(), lifetime);
            }
            Op::SetRange(key, at, more) => {
                let before = self.store.get(now_ms, key);
                let lifetime = before.map_or(Lifetime::Forever, |entry| entry.lifetime);
                let mut value = before.map(|entry| entry.value.as_bytes()).unwrap_or_default().to_vec();
                if more.is_empty() {
                    reply.count(value.len());
                    return Ok(());
                }
                let end = usize::try_from(*at).unwrap_or(usize::MAX).saturating_add(more.len());
                self.check(key, end.max(value.len()))?;
                if value.len() < end {
                    value.resize(end, 0);
                }
                if let Some(place) = value.get_mut(end - more.len()..end) {
                    place.copy_from_slice(more);
                }
                reply.count(value.len());
                self.set(ctx, spent, key, value.into(), lifetime);
            }
            Op::Expire(key, expiry, condition) => {
                let before = self.store.get(now_ms, key);
                let end_ms = |lifetime| match lifetime {
                    Lifetime::Until(at_ms) => Some(at_ms),
                    _ => None,
                };
                let lifetime = lifetime(*expiry, now_ms, before);
                let is_set = before.is_some_and(|entry| match (condition, end_ms(entry.lifetime), end_ms(lifetime)) {
                    (Condition::Always, ..) | (Condition::Absent, None, _) | (Condition::Present, Some(_), _) => true,
                    (Condition::Later, Some(old), Some(new)) => new > old,
                    (Condition::Earlier | Condition::PresentEarlier, Some(old), Some(new)) => new < old,
                    (Condition::Earlier, None, Some(_)) => true,
                    _ => false,
                });
                if is_set {
                    self.set_lifetime(ctx, spent, now_ms, key, lifetime);
                }
                reply.integer(is_set.into());
            }
            Op::Persist(key) => {
                let entry = self.store.get(now_ms, key);
                let has_expiry = entry.is_some_and(|entry| matches!(entry.lifetime, Lifetime::Until(_)));
                if has_expiry {
                    self.store.set_lifetime(now_ms, key, Lifetime::Forever);
                }
                reply.integer(has_expiry.into());
            }
            Op::Rename(from, to, only_new) => {
                self.check(to, 0)?;
                let entry = self.store.get(now_ms, from).ok_or("ERR no such key")?;
                let (value, lifetime) = (entry.value.clone(), entry.lifetime);
                let is_renamed = !only_new || self.store.get(now_ms, to).is_none();
                if is_renamed && from != to {
                    self.delete(ctx, spent, now_ms, from);
                    self.set(ctx, spent, to, value, lifetime);
                }
                if *only_new {
                    reply.integer(is_renamed.into());
                } else {
                    reply.ok();
                }
            }
            Op::Flush => {
                if let Some(version) = self.store.clear() {
                    spent.changes += 1;
                    ctx.emit_json(&Cleared { change: ChangeKind::Clear, version });
                }
                reply.ok();
            }
            Op::Publish(channel, message) => {
                self.check(channel, message.len())?;
                let (channel, message) = (Data::from(*channel), Data::from(*message));
                spent.changes += 1;
                spent.changed_bytes += channel.len().saturating_add(message.len());
                reply.out.push(SPECIAL);
                put_number(reply.out, spent.messages);
                spent.messages += 1;
                ctx.emit_json(&Published { change: ChangeKind::Publish, channel, message });
            }
            read => self.read(At { now_ms, clock_ms: now_ms }, read, reply),
        }
        Ok(())
    }

    /// Whether key and value are small enough.
    fn check(&self, key: &[u8], value_bytes: usize) -> Result<(), &'static str> {
        if key.len() as u64 > self.limits.max_key_bytes {
            return Err("ERR the key is longer than this group takes (max_key_bytes)");
        }
        if value_bytes as u64 > self.limits.max_value_bytes {
            return Err(TOO_LONG);
        }
        Ok(())
    }

    fn set(&mut self, ctx: &mut Context<'_>, spent: &mut Spent, key: &[u8], value: Data, lifetime: Lifetime) {
        spent.changes += 1;
        spent.changed_bytes += key.len().saturating_add(value.len());
        self.put(ctx, key.into(), value, lifetime);
    }

    fn delete(&mut self, ctx: &mut Context<'_>, spent: &mut Spent, now_ms: u64, key: &[u8]) -> bool {
        let Some((version, _)) = self.store.delete(now_ms, key) else { return false };
        spent.changes += 1;
        spent.changed_bytes += key.len();
        ctx.emit_json(&Change { change: ChangeKind::Delete, key: &key.into(), value: None, version });
        true
    }

    /// Gives the key another lifetime; deletes it when that is over.
    fn set_lifetime(&mut self, ctx: &mut Context<'_>, spent: &mut Spent, now_ms: u64, key: &[u8], lifetime: Lifetime) {
        match lifetime {
            Lifetime::Until(at_ms) if at_ms <= now_ms => drop(self.delete(ctx, spent, now_ms, key)),
            lifetime => drop(self.store.set_lifetime(now_ms, key, lifetime)),
        }
    }

    fn read(&self, at: At, op: &Op<'_>, reply: &mut Reply<'_>) {
        let start = reply.out.len();
        self.write_read(at, op, reply);
        if reply.out.len() > REPLY_BYTES_MAX {
            reply.out.truncate(start);
            reply.error(TOO_LARGE);
        }
    }

    fn write_read(&self, at: At, op: &Op<'_>, reply: &mut Reply<'_>) {
        let At { now_ms, clock_ms } = at;
        let value = |key: &[u8]| self.store.get(now_ms, key).map(|entry| entry.value.as_bytes());
        match op {
            Op::Get(key) => reply.maybe(value(key)),
            Op::MGet(keys) => {
                reply.array(keys.len());
                for key in keys.iter() {
                    reply.maybe(value(key));
                    if reply.out.len() > REPLY_BYTES_MAX {
                        break;
                    }
                }
            }
            Op::Exists(keys) => reply.count(keys.iter().filter(|key| value(key).is_some()).count()),
            Op::Type(key) => reply.simple(if value(key).is_some() { "string" } else { "none" }),
            Op::StrLen(key) => reply.count(value(key).map_or(0, <[u8]>::len)),
            Op::Ttl(key, unit) => {
                let answer = match self.store.get(now_ms, key).map(|entry| entry.lifetime) {
                    None => -2,
                    Some(Lifetime::Until(at_ms)) => told(at_ms, clock_ms, *unit),
                    Some(_) => -1,
                };
                reply.integer(answer);
            }
            Op::GetRange(key, start, end) => {
                let value = value(key).unwrap_or_default();
                reply.bulk(part(value, *start, *end));
            }
            Op::Scan { start, pattern, count } => self.scan(now_ms, start, pattern, *count, reply),
            Op::Keys(pattern) => self.keys(now_ms, pattern, reply),
            Op::DbSize => reply.count(self.store.count(now_ms)),
            Op::RandomKey(number) => {
                let span = Span::default();
                let mut all = self.store.range(now_ms, &span);
                let nth = number.checked_rem(self.store.count(now_ms) as u64);
                let found = nth.and_then(|nth| all.nth(usize::try_from(nth).ok()?));
                reply.maybe(found.map(|(key, _)| key.as_bytes()));
            }
            Op::Stamps(keys) => {
                reply.out.push(SPECIAL);
                for key in keys {
                    let (version, expires_at_ms) = stamp_of(self.store.get(now_ms, key));
                    put_number(reply.out, version);
                    put_number(reply.out, expires_at_ms);
                }
            }
            Op::Status => {
                reply.out.push(SPECIAL);
                put_number(reply.out, self.store.count(now_ms) as u64);
                put_number(reply.out, self.store.expiring() as u64);
                put_number(reply.out, self.store.version());
            }
            _ => reply.error("ERR the operation changes the store"),
        }
    }

    /// The keys from `start` on, as many as `count` says to look at.
    fn scan(&self, now_ms: u64, start: &[u8], pattern: &[u8], count: u64, reply: &mut Reply<'_>) {
        let mut span = prefix_span(pattern);
        span.start = span.start.max(Some(start.into()));
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        let mut next: Option<&[u8]> = None;
        for (seen, (key, _)) in self.store.range(now_ms, &span).enumerate() {
            if seen as u64 >= count || bytes > ENOUGH_BYTES {
                next = Some(key.as_bytes());
                break;
            }
            if glob::is_match(pattern, key.as_bytes()) {
                bytes += key.len();
                found.push(key.as_bytes());
            }
        }
        reply.out.push(SPECIAL);
        put_bytes(reply.out, next.unwrap_or_default());
        reply.array(found.len());
        found.iter().for_each(|key| reply.bulk(key));
    }

    fn keys(&self, now_ms: u64, pattern: &[u8], reply: &mut Reply<'_>) {
        let mut bytes = 0_usize;
        let mut found = Vec::new();
        for (key, _) in self.store.range(now_ms, &prefix_span(pattern)) {
            if glob::is_match(pattern, key.as_bytes()) {
                bytes += key.len() + 6;
                if bytes > REPLY_BYTES_MAX {
                    return reply.error("ERR the keys are more than 3145728 bytes: use SCAN");
                }
                found.push(key.as_bytes());
            }
        }
        reply.array(found.len());
        found.iter().for_each(|key| reply.bulk(key));
    }
}

/// When something is read.
#[derive(Clone, Copy, Debug)]
struct At {
    /// What decides whether a key is there: the last entry's time, or a later one.
    now_ms: u64,
    /// The asking node's clock, if it is ahead: what the time that is left is counted from. In an idle
    /// group the last entry's time stands still.
    clock_ms: u64,
}

fn has_room(reply: &Reply<'_>, value: Option<&[u8]>) -> Result<(), &'static str> {
    let bytes = reply.out.len().saturating_add(value.map_or(0, <[u8]>::len));
    if bytes > REPLY_BYTES_MAX { Err(TOO_LARGE) } else { Ok(()) }
}

/// What tells whether a key was touched.
fn stamp_of(entry: Option<&Entry>) -> (u64, u64) {
    match entry {
        None => (0, 0),
        Some(Entry { version, lifetime: Lifetime::Until(at_ms), .. }) => (*version, *at_ms),
        Some(entry) => (entry.version, 0),
    }
}

/// Redis has times as signed numbers.
const LATEST_MS: u64 = i64::MAX as u64;

fn lifetime(expiry: Expiry, now_ms: u64, before: Option<&Entry>) -> Lifetime {
    match expiry {
        Expiry::Forever => Lifetime::Forever,
        Expiry::Keep => before.map_or(Lifetime::Forever, |entry| entry.lifetime),
        Expiry::After(ms) => Lifetime::Until(now_ms.saturating_add(ms).min(LATEST_MS)),
        Expiry::At(at_ms) => Lifetime::Until(at_ms.min(LATEST_MS)),
    }
}

/// A key's time as the client asked for it; seconds are rounded.
fn told(at_ms: u64, clock_ms: u64, unit: TimeUnit) -> i64 {
    let left_ms = at_ms.saturating_sub(clock_ms);
    let told = match unit {
        TimeUnit::SecondsLeft => left_ms.saturating_add(500) / 1_000,
        TimeUnit::MillisLeft => left_ms,
        TimeUnit::UnixSeconds => at_ms.saturating_add(500) / 1_000,
        TimeUnit::UnixMillis => at_ms,
    };
    i64::try_from(told).unwrap_or(i64::MAX)
}

/// The bytes from `start` to `end`, both in it; negative ones count from behind.
fn part(value: &[u8], start: i64, end: i64) -> &[u8] {
    let length = i64::try_from(value.len()).unwrap_or(i64::MAX);
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let place = |at: i64| if at < 0 { length.saturating_add(at).max(0) } else { at };
    let (start, end) = (place(start), place(end).min(length - 1));
    let range = usize::try_from(start).unwrap_or(0)..usize::try_from(end.saturating_add(1)).unwrap_or(0);
    value.get(range).unwrap_or_default()
}

/// The keys that start as all that match do.
fn prefix_span(pattern: &[u8]) -> Span {
    let prefix = Data::from(glob::prefix(pattern));
    Span { end: prefix.end_of_prefix(), start: Some(prefix) }
}
