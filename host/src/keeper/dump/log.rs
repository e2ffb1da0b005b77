//! A transaction log.
//!
//! ```text
//! "ZKLG" | version i32 = 2 | database i64
//! records: Adler-32 of the transaction i64 | transaction (length i32, bytes) | 'B'
//! zeros, to the length that was allocated in advance
//! ```

use std::path::Path;
use std::path::PathBuf;

use super::Damage;
use super::jute::Input;
use super::tree::Creation;
use super::tree::Tree;

const HEAD_BYTES: usize = 16;
const VERSION: i32 = 2;
/// How servers since 3.6 count a tree's digest: see [`Tree::digest`].
const DIGEST_VERSION: i32 = 2;
/// What closes a record.
const END: u8 = b'B';

/// The kinds of transactions, by ZooKeeper's numbers.
mod kind {
    pub const ERROR: i32 = -1;
    pub const CREATE_SESSION: i32 = -10;
    pub const CLOSE_SESSION: i32 = -11;
    pub const CREATE: i32 = 1;
    pub const DELETE: i32 = 2;
    pub const SET_DATA: i32 = 5;
    pub const SET_ACL: i32 = 7;
    pub const CHECK: i32 = 13;
    pub const MULTI: i32 = 14;
    pub const CREATE2: i32 = 15;
    pub const RECONFIG: i32 = 16;
    pub const CREATE_CONTAINER: i32 = 19;
    pub const DELETE_CONTAINER: i32 = 20;
    pub const CREATE_TTL: i32 = 21;
}

/// The owner of a container; and the first byte of one with a time to live.
const CONTAINER: i64 = i64::MIN;
const TTL_MARK: i64 = 0xff00_0000_0000_0000_u64 as i64;

/// One transaction.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    /// Who asked.
    pub session: i64,
    /// Its number.
    pub zxid: i64,
    /// When, Unix milliseconds.
    pub time_ms: i64,
    /// Its kind.
    pub kind: i32,
    body: &'a [u8],
}

/// The records of a file.
#[derive(Debug)]
pub struct Records<'a> {
    path: PathBuf,
    bytes: &'a [u8],
    offset: usize,
    last_offset: usize,
    torn: Option<usize>,
}

/// What stands at a place.
enum Record<'a> {
    /// A transaction's bytes, and where the next record begins.
    Whole(&'a [u8], usize),
    /// Nothing was written there yet.
    Nothing,
    /// It is not finished.
    Unfinished,
    /// It is finished and is not what was written.
    Wrong(&'static str),
}

fn record(bytes: &[u8], offset: usize) -> Record<'_> {
    let rest = bytes.get(offset..).unwrap_or_default();
    if rest.is_empty() {
        return Record::Nothing;
    }
    let Some((head, rest)) = rest.split_first_chunk::<12>() else { return Record::Unfinished };
    let [checksum @ .., a, b, c, d] = *head;
    let checksum = i64::from_be_bytes(checksum);
    let length = match i32::from_be_bytes([a, b, c, d]) {
        0 => return Record::Nothing,
        length => match usize::try_from(length) {
            Ok(length) => length,
            Err(_) => return Record::Wrong("a record of a length that cannot be"),
        },
    };
    let Some((transaction, rest)) = rest.split_at_checked(length) else { return Record::Unfinished };
    match rest.first() {
        Some(&END) if i64::from(adler2::adler32_slice(transaction)) == checksum => {
            Record::Whole(transaction, offset + head.len() + length + 1)
        }
        Some(&END) => Record::Wrong("a record whose checksum is another one"),
        _ => Record::Unfinished,
    }
}

impl<'a> Records<'a> {
    /// The records in the bytes of the file at `path`.
    pub fn new(path: &Path, bytes: &'a [u8]) -> Result<Self, Damage> {
        let records = Self { path: path.to_owned(), bytes, offset: HEAD_BYTES, last_offset: 0, torn: None };
        // A server that died before it had written anything.
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Self { offset: bytes.len(), ..records });
        }
        // Or while it wrote the head.
        if bytes.len() < HEAD_BYTES && b"ZKLG\0\0\0\x02".iter().zip(bytes).all(|(wanted, is)| wanted == is) {
            return Ok(Self { offset: bytes.len(), torn: Some(0), ..records });
        }
        let version = VERSION.to_be_bytes();
        if !bytes.starts_with(b"ZKLG") {
            return Err(records.damage("it does not begin as a transaction log"));
        }
        if bytes.get(4..8) != Some(&version) {
            return Err(records.damage("a version of the format that ZooKeeper 3.4 to 3.9 do not write"));
        }
        Ok(records)
    }

    /// The next transaction; `None` behind the last.
    #[expect(clippy::should_implement_trait, reason = "an iterator does not fail")]
    pub fn next(&mut self) -> Result<Option<Transaction<'a>>, Damage> {
        self.last_offset = self.offset;
        match record(self.bytes, self.offset) {
            Record::Whole(bytes, next) => {
                let transaction = Transaction::read(bytes)
                    .ok_or_else(|| self.damage("a transaction without a head, although its checksum is right"))?;
                self.offset = next;
                Ok(Some(transaction))
            }
            Record::Nothing => match self.goes_on() {
                true => Err(self.damage("nothing, and records behind it")),
                false => Ok(None),
            },
            Record::Unfinished => match self.goes_on() {
                true => Err(self.damage("a record that is not finished, and others behind it")),
                false => {
                    self.torn = Some(self.offset);
                    self.offset = self.bytes.len();
                    Ok(None)
                }
            },
            Record::Wrong(what) => Err(self.damage(what)),
        }
    }

    /// Whether a whole record stands anywhere behind this place: then what is wrong here is not the trace of a crash.
    fn goes_on(&self) -> bool {
        let behind = self.bytes.get(self.offset..).unwrap_or_default();
        let Some(first) = behind.iter().position(|byte| *byte != 0) else { return false };
        // A checksum has four bytes of zero in front.
        let from = self.offset + first.saturating_sub(7).max(1);
        (from..self.bytes.len()).any(|offset| match record(self.bytes, offset) {
            Record::Whole(bytes, _) => Transaction::read(bytes).is_some(),
            _ => false,
        })
    }

    /// Where the record begins that was being written when the server ended, if there is one.
    pub fn torn(&self) -> Option<usize> {
        self.torn
    }

    /// Damage at the record that was read last.
    pub fn damage(&self, what: &str) -> Damage {
        Damage { file: self.path.clone(), offset: self.last_offset as u64, what: what.to_owned() }
    }
}

impl<'a> Transaction<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut input = Input::new(bytes);
        let session = input.i64().ok()?;
        input.i32().ok()?;
        let (zxid, time_ms, kind) = (input.i64().ok()?, input.i64().ok()?, input.i32().ok()?);
        Some(Self { session, zxid, time_ms, kind, body: bytes.get(32..)? })
    }
}

/// Does to the tree what a transaction did. Answers the digest that the tree has then, if the server wrote it.
pub fn apply(transaction: &Transaction<'_>, tree: &mut Tree) -> std::io::Result<Option<u64>> {
    let Transaction { session, zxid, time_ms, kind, body } = *transaction;
    let mut input = Input::new(body);
    let mut create = |path: &str, data, acl, owner, parent_cversion| {
        tree.create(Creation { path, data, acl, owner, parent_cversion }, zxid, time_ms);
    };
    match kind {
        kind::CREATE | kind::CREATE2 => {
            let (path, data, acl) = (input.text()?, input.buffer()?, input.acl()?);
            let is_ephemeral = input.bool()?;
            // Servers before 3.4 did not write it.
            let parent_cversion = input.i32().unwrap_or(-1);
            create(&path, data, acl, if is_ephemeral { session } else { 0 }, parent_cversion);
        }
        kind::CREATE_CONTAINER => {
            let (path, data, acl) = (input.text()?, input.buffer()?, input.acl()?);
            create(&path, data, acl, CONTAINER, input.i32()?);
        }
        kind::CREATE_TTL => {
            let (path, data, acl) = (input.text()?, input.buffer()?, input.acl()?);
            let (parent_cversion, ttl_ms) = (input.i32()?, input.i64()?);
            create(&path, data, acl, TTL_MARK | ttl_ms, parent_cversion);
        }
        kind::DELETE | kind::DELETE_CONTAINER => tree.delete(&input.text()?, zxid),
        kind::SET_DATA | kind::RECONFIG => {
            let (path, data, version) = (input.text()?, input.buffer()?, input.i32()?);
            tree.set_data(&path, data, version, zxid, time_ms);
        }
        kind::SET_ACL => {
            let (path, acl, version) = (input.text()?, input.acl()?, input.i32()?);
            tree.set_acl(&path, acl, version);
        }
        kind::CLOSE_SESSION => {
            // Its nodes, which servers since 3.6 name.
            if !body.is_empty() {
                for _ in 0..input.count()? {
                    input.text()?;
                }
            }
            tree.close_session(session, zxid);
        }
        kind::MULTI => {
            let mut parts = Vec::new();
            for _ in 0..input.count()? {
                parts.push((input.i32()?, input.buffer()?.unwrap_or_default()));
            }
            // One that failed did nothing.
            if parts.iter().all(|(kind, _)| *kind != kind::ERROR) {
                for (kind, body) in &parts {
                    if *kind == kind::MULTI {
                        return Err(super::jute::wrong("a multi within a multi"));
                    }
                    apply(&Transaction { kind: *kind, body, ..*transaction }, tree)?;
                }
            }
        }
        // A timeout, an error's number.
        kind::CREATE_SESSION | kind::ERROR => drop(input.i32()?),
        kind::CHECK => {}
        _ => return Err(super::jute::wrong("a transaction of a kind that ZooKeeper 3.4 to 3.9 do not write")),
    }
    Ok(digest(input))
}

/// What servers since 3.6 write behind a transaction: the way in which they count, and the tree's digest.
fn digest(mut input: Input<&[u8]>) -> Option<u64> {
    let (version, digest) = (input.i32().ok()?, input.i64().ok()?);
    let is_known = version == DIGEST_VERSION && input.rest(1).is_ok_and(|rest| rest.is_empty());
    is_known.then_some(digest as u64)
}
