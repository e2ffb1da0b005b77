//! What the adapter tells the state machine, and what it hears back: a batch of units, each with a
//! reply of its own.
//!
//! ```text
//! command  0x01 | unit …
//! query    0x01 | visible_ms | clock_ms | unit …: keys over at the first time, or at the last entry's, are hidden;
//!          what is left of others is counted from the second
//! unit     flags u8 (1: RESP3, 2: a transaction) | op
//!          or, for a transaction: count, (key, version, expires_at_ms) … | count, op …
//! op       tag u8 | fields
//! reply    frame …: fewer than units if the rest is deferred: ask again
//! frame    length u32, little-endian | RESP, ready to be sent; or 0x00 and what the operation says
//! ```
//!
//! Numbers are LEB128, signed ones zigzag; bytes have their length before them. `0x01` begins no
//! JSON, so one codec takes both. An old log is replayed with these bytes: tags keep their meaning
//! for ever.

/// The first byte of a batch: its version.
pub const MARK: u8 = 1;

/// The first byte of a frame that is no RESP but what its operation says.
pub const SPECIAL: u8 = 0;

const RESP3: u8 = 1;
const TRANSACTION: u8 = 2;

/// When a key's time comes, as a request says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    Forever,
    /// As it was.
    Keep,
    /// So many milliseconds after the entry's time.
    After(u64),
    /// Then, Unix milliseconds.
    At(u64),
}

/// On which condition a key is set, or gets another expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Condition {
    /// On none.
    Always = 0,
    /// `NX`: there is no such key; it has no expiry.
    Absent = 1,
    /// `XX`: there is such a key; it has one.
    Present = 2,
    /// `GT`: the new expiry is later.
    Later = 3,
    /// `LT`: the new expiry is earlier, or there was none.
    Earlier = 4,
    /// `XX LT`: the new expiry is earlier, and there was one.
    PresentEarlier = 5,
}

/// How a time is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TimeUnit {
    /// Seconds left.
    SecondsLeft = 0,
    /// Milliseconds left.
    MillisLeft = 1,
    /// As a Unix time, seconds.
    UnixSeconds = 2,
    /// As a Unix time, milliseconds.
    UnixMillis = 3,
}

/// A key as `WATCH` saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The version of its last change; 0 if there was none.
    pub version: u64,
    /// When it expires, Unix milliseconds; 0 if it does not.
    pub expires_at_ms: u64,
}

/// An operation on the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op<'a> {
    Get(&'a [u8]),
    MGet(Vec<&'a [u8]>),
    Exists(Vec<&'a [u8]>),
    Type(&'a [u8]),
    StrLen(&'a [u8]),
    Ttl(&'a [u8], TimeUnit),
    GetRange(&'a [u8], i64, i64),
    /// From a key on, looking at so many keys. The frame: where to go on (bytes with their length, or
    /// nothing at the end), then the array of keys.
    Scan {
        start: &'a [u8],
        pattern: &'a [u8],
        count: u64,
    },
    Keys(&'a [u8]),
    DbSize,
    /// The key this many keys (modulo their number) from the first.
    RandomKey(u64),
    /// The frame: version and expiry (two numbers) of each key.
    Stamps(Vec<&'a [u8]>),
    /// The frame: how many keys, how many with an expiry, the store's version.
    Status,
    Set {
        key: &'a [u8],
        value: &'a [u8],
        expiry: Expiry,
        condition: Condition,
        get: bool,
    },
    GetEx(&'a [u8], Expiry),
    GetDel(&'a [u8]),
    Del(Vec<&'a [u8]>),
    /// All, or with `true` none if one of them is there.
    MSet(Vec<(&'a [u8], &'a [u8])>, bool),
    IncrBy(&'a [u8], i64),
    Append(&'a [u8], &'a [u8]),
    SetRange(&'a [u8], u64, &'a [u8]),
    Expire(&'a [u8], Expiry, Condition),
    Persist(&'a [u8]),
    /// With `true` only if there is no such key yet.
    Rename(&'a [u8], &'a [u8], bool),
    Flush,
    /// The frame: the message's number among the entry's, from 0.
    Publish(&'a [u8], &'a [u8]),
    /// `SETNX`, which answers with a number.
    SetNx(&'a [u8], &'a [u8]),
}

/// What one reply belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit<'a> {
    /// Whether replies are RESP3.
    pub resp3: bool,
    /// What is done.
    pub work: Work<'a>,
}

/// One operation or many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work<'a> {
    /// One.
    One(Op<'a>),
    /// A transaction. The frame: 0 if a key is not as watched, else 1 and a frame for each operation.
    All {
        /// What must be so.
        watched: Vec<Stamp<'a>>,
        /// What is done.
        ops: Vec<Op<'a>>,
    },
}

/// Appends a number.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends bytes with their length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_number(out, (number << 1 ^ number >> 63) as u64);
}

fn put_all(out: &mut Vec<u8>, tag: u8, all: &[&[u8]]) {
    out.push(tag);
    put_number(out, all.len() as u64);
    all.iter().for_each(|bytes| put_bytes(out, bytes));
}

fn put_expiry(out: &mut Vec<u8>, expiry: Expiry) {
    let (kind, ms) = match expiry {
        Expiry::Forever => (0, None),
        Expiry::Keep => (1, None),
        Expiry::After(ms) => (2, Some(ms)),
        Expiry::At(ms) => (3, Some(ms)),
    };
    out.push(kind);
    ms.into_iter().for_each(|ms| put_number(out, ms));
}

impl Op<'_> {
    /// Appends the operation.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut parts = |tag: u8, parts: &[&[u8]]| {
            out.push(tag);
            parts.iter().for_each(|part| put_bytes(out, part));
        };
        match self {
            Self::Get(key) => parts(1, &[key]),
            Self::MGet(keys) => put_all(out, 2, keys),
            Self::Exists(keys) => put_all(out, 3, keys),
            Self::Type(key) => parts(4, &[key]),
            Self::StrLen(key) => parts(5, &[key]),
            Self::Ttl(key, unit) => {
                parts(6, &[key]);
                out.push(*unit as u8);
            }
            Self::GetRange(key, start, end) => {
                parts(7, &[key]);
                put_signed(out, *start);
                put_signed(out, *end);
            }
            Self::Scan { start, pattern, count } => {
                parts(8, &[start, pattern]);
                put_number(out, *count);
            }
            Self::Keys(pattern) => parts(9, &[pattern]),
            Self::DbSize => parts(10, &[]),
            Self::RandomKey(number) => {
                parts(11, &[]);
                put_number(out, *number);
            }
            Self::Stamps(keys) => put_all(out, 12, keys),
            Self::Status => parts(13, &[]),
            Self::Set { key, value, expiry, condition, get } => {
                parts(32, &[key, value]);
                put_expiry(out, *expiry);
                out.push(*condition as u8);
                out.push(u8::from(*get));
            }
            Self::GetEx(key, expiry) => {
                parts(33, &[key]);
                put_expiry(out, *expiry);
            }
            Self::GetDel(key) => parts(34, &[key]),
            Self::Del(keys) => put_all(out, 35, keys),
            Self::MSet(pairs, only_new) => {
                out.push(36);
                put_number(out, pairs.len() as u64);
                for (key, value) in pairs {
                    put_bytes(out, key);
                    put_bytes(out, value);
                }
                out.push(u8::from(*only_new));
            }
            Self::IncrBy(key, by) => {
                parts(37, &[key]);
                put_signed(out, *by);
            }
            Self::Append(key, value) => parts(38, &[key, value]),
            Self::SetRange(key, at, value) => {
                parts(39, &[key, value]);
                put_number(out, *at);
            }
            Self::Expire(key, expiry, condition) => {
                parts(40, &[key]);
                put_expiry(out, *expiry);
                out.push(*condition as u8);
            }
            Self::Persist(key) => parts(41, &[key]),
            Self::Rename(from, to, only_new) => {
                parts(42, &[from, to]);
                out.push(u8::from(*only_new));
            }
            Self::Flush => parts(43, &[]),
            Self::Publish(channel, message) => parts(44, &[channel, message]),
            Self::SetNx(key, value) => parts(45, &[key, value]),
        }
    }

    /// Whether it leaves the store as it is.
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::Get(_)
                | Self::MGet(_)
                | Self::Exists(_)
                | Self::Type(_)
                | Self::StrLen(_)
                | Self::Ttl(..)
                | Self::GetRange(..)
                | Self::Scan { .. }
                | Self::Keys(_)
                | Self::DbSize
                | Self::RandomKey(_)
                | Self::Stamps(_)
                | Self::Status
        )
    }
}

/// Appends a unit of one operation, already in bytes.
pub fn put_one(out: &mut Vec<u8>, resp3: bool, op: &[u8]) {
    out.push(if resp3 { RESP3 } else { 0 });
    out.extend_from_slice(op);
}

/// Appends a unit of `count` operations, already in bytes.
pub fn put_transaction(out: &mut Vec<u8>, resp3: bool, watched: &[Stamp<'_>], count: usize, ops: &[u8]) {
    out.push(TRANSACTION | if resp3 { RESP3 } else { 0 });
    put_number(out, watched.len() as u64);
    for stamp in watched {
        put_bytes(out, stamp.key);
        put_number(out, stamp.version);
        put_number(out, stamp.expires_at_ms);
    }
    put_number(out, count as u64);
    out.extend_from_slice(ops);
}

/// Fields taken off the front. All are `None` when the bytes hold something else.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn flag(&mut self) -> Option<bool> {
        self.u8().filter(|byte| *byte <= 1).map(|byte| byte == 1)
    }

    /// A number.
    pub fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return None;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Bytes with their length.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// So many of something, each at least one byte: so a count allocates no more than came.
    fn all<T>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::try_from(self.number()?).ok().filter(|count| *count <= self.0.len())?;
        (0..count).map(|_| one(self)).collect()
    }

    fn keys(&mut self) -> Option<Vec<&'a [u8]>> {
        self.all(Self::bytes)
    }

    fn expiry(&mut self) -> Option<Expiry> {
        Some(match self.u8()? {
            0 => Expiry::Forever,
            1 => Expiry::Keep,
            2 => Expiry::After(self.number()?),
            3 => Expiry::At(self.number()?),
            _ => return None,
        })
    }

    fn condition(&mut self) -> Option<Condition> {
        Some(match self.u8()? {
            0 => Condition::Always,
            1 => Condition::Absent,
            2 => Condition::Present,
            3 => Condition::Later,
            4 => Condition::Earlier,
            5 => Condition::PresentEarlier,
            _ => return None,
        })
    }

    fn time_unit(&mut self) -> Option<TimeUnit> {
        Some(match self.u8()? {
            0 => TimeUnit::SecondsLeft,
            1 => TimeUnit::MillisLeft,
            2 => TimeUnit::UnixSeconds,
            3 => TimeUnit::UnixMillis,
            _ => return None,
        })
    }

    fn op(&mut self) -> Option<Op<'a>> {
        Some(match self.u8()? {
            1 => Op::Get(self.bytes()?),
            2 => Op::MGet(self.keys()?),
            3 => Op::Exists(self.keys()?),
            4 => Op::Type(self.bytes()?),
            5 => Op::StrLen(self.bytes()?),
            6 => Op::Ttl(self.bytes()?, self.time_unit()?),
            7 => Op::GetRange(self.bytes()?, self.signed()?, self.signed()?),
            8 => Op::Scan { start: self.bytes()?, pattern: self.bytes()?, count: self.number()? },
            9 => Op::Keys(self.bytes()?),
            10 => Op::DbSize,
            11 => Op::RandomKey(self.number()?),
            12 => Op::Stamps(self.keys()?),
            13 => Op::Status,
            32 => Op::Set {
                key: self.bytes()?,
                value: self.bytes()?,
                expiry: self.expiry()?,
                condition: self.condition()?,
                get: self.flag()?,
            },
            33 => Op::GetEx(self.bytes()?, self.expiry()?),
            34 => Op::GetDel(self.bytes()?),
            35 => Op::Del(self.keys()?),
            36 => Op::MSet(self.all(|fields| Some((fields.bytes()?, fields.bytes()?)))?, self.flag()?),
            37 => Op::IncrBy(self.bytes()?, self.signed()?),
            38 => Op::Append(self.bytes()?, self.bytes()?),
            39 => {
                let (key, value) = (self.bytes()?, self.bytes()?);
                Op::SetRange(key, self.number()?, value)
            }
            40 => Op::Expire(self.bytes()?, self.expiry()?, self.condition()?),
            41 => Op::Persist(self.bytes()?),
            42 => Op::Rename(self.bytes()?, self.bytes()?, self.flag()?),
            43 => Op::Flush,
            44 => Op::Publish(self.bytes()?, self.bytes()?),
            45 => Op::SetNx(self.bytes()?, self.bytes()?),
            _ => return None,
        })
    }

    fn unit(&mut self) -> Option<Unit<'a>> {
        let flags = self.u8().filter(|flags| *flags <= RESP3 | TRANSACTION)?;
        let resp3 = flags & RESP3 != 0;
        if flags & TRANSACTION == 0 {
            return Some(Unit { resp3, work: Work::One(self.op()?) });
        }
        let watched = self.all(|fields| {
            Some(Stamp { key: fields.bytes()?, version: fields.number()?, expires_at_ms: fields.number()? })
        })?;
        Some(Unit { resp3, work: Work::All { watched, ops: self.all(Self::op)? } })
    }

    /// All that is left, as units.
    pub fn units(mut self) -> Option<Vec<Unit<'a>>> {
        let mut units = Vec::new();
        while !self.0.is_empty() {
            units.push(self.unit()?);
        }
        Some(units)
    }

    /// The next frame of a reply.
    pub fn frame(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (frame, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        self.0 = rest;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn all() -> Vec<Op<'static>> {
        vec![
            Op::Get(b"a"),
            Op::MGet(vec![b"a", b""]),
            Op::Exists(vec![b"a"]),
            Op::Type(b"a"),
            Op::StrLen(b"a"),
            Op::Ttl(b"a", TimeUnit::MillisLeft),
            Op::GetRange(b"a", -1, i64::MIN),
            Op::Scan { start: b"a", pattern: b"*", count: 10 },
            Op::Keys(b"*"),
            Op::DbSize,
            Op::RandomKey(u64::MAX),
            Op::Stamps(vec![b"a"]),
            Op::Status,
            Op::Set { key: b"a", value: b"b", expiry: Expiry::After(300), condition: Condition::Absent, get: true },
            Op::GetEx(b"a", Expiry::At(1)),
            Op::GetDel(b"a"),
            Op::Del(vec![b"a", b"b"]),
            Op::MSet(vec![(b"a", b"1")], true),
            Op::IncrBy(b"a", -5),
            Op::Append(b"a", b"b"),
            Op::SetRange(b"a", 5, b"b"),
            Op::Expire(b"a", Expiry::After(1), Condition::Later),
            Op::Persist(b"a"),
            Op::Rename(b"a", b"b", false),
            Op::Flush,
            Op::Publish(b"c", b"m"),
            Op::SetNx(b"a", b"b"),
        ]
    }

    /// Logs on disk hold these bytes: if this fails, put the encoding back.
    #[test]
    fn golden_bytes() {
        let mut out = Vec::new();
        for op in all() {
            op.encode(&mut out);
        }
        let golden = concat!(
            r"\x01\x01a\x02\x02\x01a\x00\x03\x01\x01a\x04\x01a\x05\x01a\x06\x01a\x01",
            r"\x07\x01a\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x08\x01a\x01*\n\t\x01*\n",
            r"\x0b\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x0c\x01\x01a\r \x01a\x01b\x02\xac\x02\x01\x01",
            r"!\x01a\x03\x01\",
            "\"\\x01a#\\x02\\x01a\\x01b$\\x01\\x01a\\x011\\x01%\\x01a\\t&\\x01a\\x01b\\'\\x01a\\x01b\\x05",
            r"(\x01a\x02\x01\x03)\x01a*\x01a\x01b\x00+,\x01c\x01m-\x01a\x01b",
        );
        assert_eq!(out.escape_ascii().to_string(), golden);
    }

    #[test]
    fn what_goes_in_comes_out_and_a_cut_batch_is_none() {
        let mut bytes = Vec::new();
        let mut ops = Vec::new();
        all().iter().for_each(|op| op.encode(&mut ops));
        let watched = [Stamp { key: b"w", version: 7, expires_at_ms: 0 }];
        put_transaction(&mut bytes, true, &watched, all().len(), &ops);
        put_one(&mut bytes, false, b"\x01\x01a");
        let units = Fields(&bytes).units().unwrap();
        let expected = [
            Unit { resp3: true, work: Work::All { watched: watched.to_vec(), ops: all() } },
            Unit { resp3: false, work: Work::One(Op::Get(b"a")) },
        ];
        assert_eq!(units, expected);
        for cut in (1..bytes.len()).filter(|cut| *cut != bytes.len() - 4) {
            assert_eq!(Fields(&bytes[..cut]).units(), None, "cut at {cut}");
        }
    }

    #[test]
    fn absurd_counts_allocate_nothing() {
        assert_eq!(Fields(b"\x00\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").units(), None);
        assert_eq!(Fields(b"\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02").units(), None);
    }
}
