//! The bytes of a snapshot file: a head, the module's own bytes in checksummed chunks, a foot with the
//! digest of everything before it.

use std::io;
use std::io::Read;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use super::Made;
use crate::codec;
use crate::types::GroupId;
use crate::types::LogId;

/// The first eight bytes of every snapshot file.
pub const MAGIC: &[u8; 8] = b"STHSNAP\0";
/// The version this code writes. It reads version 2 too, whose head does not say which change of the module came last, and
/// version 1, which does not say what the group was made with either.
pub const VERSION: u32 = 3;
/// The versions that it reads. What other nodes send is of the one above: a flipped bit must not turn one into another there.
pub const KNOWN: RangeInclusive<u32> = 1..=VERSION;
/// magic, version, head length, head checksum.
pub const FIXED_BYTES: usize = 8 + 4 + 4 + 4;
/// A chunk's payload is at most this long.
pub const CHUNK_BYTES: usize = 256 << 10;
/// A chunk's length and checksum.
pub const CHUNK_HEAD_BYTES: usize = 8;
/// Behind the last chunk: the payload's length and the digest.
pub const FOOT_BYTES: u64 = 8 + 32;
/// A head is never longer: what the host keeps for a group is bounded below that (`group/state.rs`).
pub const HEAD_BYTES_MAX: u32 = 256 << 20;

/// The membership as openraft keeps it.
pub type StoredMembership = openraft::StoredMembership<
    <crate::types::LeaderId as openraft::vote::RaftLeaderId>::Committed,
    u64,
    openraft::BasicNode,
>;

/// What a snapshot says of itself before the module's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The group it is of.
    pub group: GroupId,
    /// The last entry it covers.
    pub last_log_id: LogId,
    /// The membership in force at that entry.
    pub membership: StoredMembership,
    /// The module that wrote the payload; all zero for the catalog.
    pub module: [u8; 32],
    /// The host's part of the replicated state (sessions, kept replies, timers), as the group encodes it.
    pub host_state: Vec<u8>,
    /// What the group was made with: a [`Made`] as JSON, so that it can grow. Empty for the catalog.
    pub made: Vec<u8>,
    /// The last change of the group's module, by its number in the catalog; 0 for none.
    pub change: u64,
}

impl Head {
    /// What the group was made with; `None` when the file does not say so.
    ///
    /// # Errors
    /// It says it in a way that this version does not know.
    pub fn made(&self) -> Result<Option<Made>, serde_json::Error> {
        if self.made.is_empty() { Ok(None) } else { serde_json::from_slice(&self.made).map(Some) }
    }
}

/// The head of version 1.
#[derive(Deserialize)]
struct Head1 {
    group: GroupId,
    last_log_id: LogId,
    membership: StoredMembership,
    module: [u8; 32],
    host_state: Vec<u8>,
}

/// The head of version 2.
#[derive(Deserialize)]
struct Head2 {
    first: Head1,
    made: Vec<u8>,
}

impl From<Head2> for Head {
    fn from(head: Head2) -> Self {
        let Head1 { group, last_log_id, membership, module, host_state } = head.first;
        Self { group, last_log_id, membership, module, host_state, made: head.made, change: 0 }
    }
}

impl From<Head1> for Head {
    fn from(first: Head1) -> Self {
        Head2 { first, made: Vec::new() }.into()
    }
}

/// The file's first bytes for `head`.
pub fn encode_head(head: &Head) -> io::Result<Vec<u8>> {
    let body = codec::encode(head)?;
    let length = u32::try_from(body.len()).ok().filter(|&length| length <= HEAD_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("the snapshot's head is too large"))?;
    let mut bytes = Vec::with_capacity(FIXED_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// A chunk's head: length and checksum over length and payload.
pub fn chunk_head(payload: &[u8]) -> [u8; CHUNK_HEAD_BYTES] {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&length), payload);
    let mut head = [0; CHUNK_HEAD_BYTES];
    let (first, second) = head.split_at_mut(4);
    first.copy_from_slice(&length);
    second.copy_from_slice(&checksum.to_le_bytes());
    head
}

/// What is wrong, and where.
#[derive(Debug)]
pub struct Wrong {
    /// Byte offset in the file.
    pub offset: u64,
    /// In words.
    pub reason: String,
}

impl Wrong {
    pub(super) fn new(offset: u64, reason: impl Into<String>) -> Self {
        Self { offset, reason: reason.into() }
    }
}

pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// Reads the head from `source`, which stands at the file's beginning; returns it and the bytes it took.
pub fn decode_head(source: &mut dyn Read) -> Result<(Head, u64), Wrong> {
    let mut fixed = [0; FIXED_BYTES];
    source.read_exact(&mut fixed).map_err(|error| Wrong::new(0, format!("the head cannot be read: {error}")))?;
    if array::<8>(&fixed, 0).as_ref() != Some(MAGIC) {
        return Err(Wrong::new(0, "it is no snapshot file"));
    }
    let version = array(&fixed, 8).map_or(0, u32::from_le_bytes);
    if !KNOWN.contains(&version) {
        return Err(Wrong::new(8, format!("its version is {version}, this program knows 1 to {VERSION}")));
    }
    let length = array(&fixed, 12).map_or(0, u32::from_le_bytes);
    let checksum = array(&fixed, 16).map_or(0, u32::from_le_bytes);
    if length > HEAD_BYTES_MAX {
        return Err(Wrong::new(12, format!("its head claims {length} bytes")));
    }
    let mut body = Vec::new();
    let got = source.take(u64::from(length)).read_to_end(&mut body);
    let at = FIXED_BYTES as u64;
    match got {
        Ok(got) if got as u64 == u64::from(length) => {}
        Ok(got) => return Err(Wrong::new(at, format!("its head ends after {got} of {length} bytes"))),
        Err(error) => return Err(Wrong::new(at, format!("its head cannot be read: {error}"))),
    }
    if crc32c::crc32c(&body) != checksum {
        return Err(Wrong::new(at, "its head's checksum does not match"));
    }
    let head = match version {
        1 => codec::decode::<Head1>(&body).map(Head::from),
        2 => codec::decode::<Head2>(&body).map(Head::from),
        _ => codec::decode(&body),
    };
    let head = head.map_err(|error| Wrong::new(at, error.to_string()))?;
    Ok((head, at + u64::from(length)))
}

/// Reads the payload chunk by chunk and believes no byte whose checksum it has not seen. The stream ends
/// with the foot; a file that ends before it is an error.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    source: R,
    digest: Sha256,
    offset: u64,
    payload: u64,
    chunk: Vec<u8>,
    taken: usize,
    done: Option<[u8; 32]>,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads the head of `source`, which stands at the file's beginning.
    pub fn open(source: R) -> Result<(Head, Self), Wrong> {
        let mut reader =
            Self { source, digest: Sha256::new(), offset: 0, payload: 0, chunk: Vec::new(), taken: 0, done: None };
        let mut hashed = Hashed { source: &mut reader.source, digest: &mut reader.digest };
        let (head, used) = decode_head(&mut hashed)?;
        reader.offset = used;
        Ok((head, reader))
    }

    /// The file's digest, once the end was reached.
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.done
    }

    /// Where in the file the reader stands.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn next_chunk(&mut self) -> Result<(), Wrong> {
        let at = self.offset;
        let cut = |error: io::Error| Wrong::new(at, format!("the file ends or cannot be read here: {error}"));
        let mut head = [0; CHUNK_HEAD_BYTES];
        self.source.read_exact(&mut head).map_err(cut)?;
        self.digest.update(head);
        let length = array(&head, 0).map_or(0, u32::from_le_bytes) as usize;
        if length > CHUNK_BYTES {
            return Err(Wrong::new(at, format!("a chunk claims {length} bytes")));
        }
        self.chunk.resize(length, 0);
        self.taken = 0;
        self.source.read_exact(&mut self.chunk).map_err(cut)?;
        if chunk_head(&self.chunk) != head {
            return Err(Wrong::new(at, "a chunk's checksum does not match"));
        }
        self.digest.update(&self.chunk);
        self.offset += (CHUNK_HEAD_BYTES + length) as u64;
        self.payload += length as u64;
        if length == 0 {
            let mut total = [0; 8];
            self.source.read_exact(&mut total).map_err(cut)?;
            self.digest.update(total);
            if u64::from_le_bytes(total) != self.payload {
                return Err(Wrong::new(self.offset, "the payload's length does not match"));
            }
            let mut digest = [0; 32];
            self.source.read_exact(&mut digest).map_err(cut)?;
            let computed: [u8; 32] = self.digest.clone().finalize().into();
            if digest != computed {
                return Err(Wrong::new(self.offset + 8, "the digest does not match"));
            }
            self.offset += 40;
            if self.source.read(&mut [0; 1]).map_err(cut)? != 0 {
                return Err(Wrong::new(self.offset, "bytes follow the end"));
            }
            self.done = Some(digest);
        }
        Ok(())
    }

    /// Reads to the end; the digest when all is well.
    pub fn verify(mut self) -> Result<[u8; 32], Wrong> {
        loop {
            match self.done {
                Some(digest) => return Ok(digest),
                None => self.next_chunk()?,
            }
        }
    }
}

impl<R: Read> Read for SnapshotReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.chunk.len() && self.done.is_none() {
            self.next_chunk().map_err(|wrong| {
                io::Error::new(io::ErrorKind::InvalidData, format!("at byte {}: {}", wrong.offset, wrong.reason))
            })?;
        }
        let rest = self.chunk.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.taken += count;
        Ok(count)
    }
}

struct Hashed<'a, R> {
    source: &'a mut R,
    digest: &'a mut Sha256,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(out)?;
        self.digest.update(out.get(..count).unwrap_or_default());
        Ok(count)
    }
}
