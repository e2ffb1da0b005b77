//! Verifies a snapshot file that comes in parts, as it comes: what arrived and checks out need not be sent again, and what
//! does not is found where it is and not at the end.

use super::format::CHUNK_BYTES;
use super::format::CHUNK_HEAD_BYTES;
use super::format::FIXED_BYTES;
use super::format::FOOT_BYTES;
use super::format::HEAD_BYTES_MAX;
use super::format::MAGIC;
use super::format::VERSION;
use super::format::Wrong;
use super::format::array;

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// The head's fixed part.
    Fixed,
    /// So many more bytes of the head or of a chunk, which have this checksum with what came before.
    Body { left: u64, expected: u32, computed: u32, last: bool },
    /// A chunk's head.
    ChunkHead,
    /// The foot, so many more bytes of it: only the digest of the whole says whether it is right.
    Foot { left: u64 },
}

/// Follows a file from its beginning. What has come is as it was written, up to the digest over the whole, which whoever has all
/// of it checks.
#[derive(Clone, Debug)]
pub struct Verifier {
    next: Next,
    /// Bytes of a fixed part or a chunk's head that have come so far.
    small: Vec<u8>,
    offset: u64,
    /// The file is known to be right up to here, the end of its head or of a chunk.
    verified: u64,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { next: Next::Fixed, small: Vec::new(), offset: 0, verified: 0 }
    }
}

impl Verifier {
    /// Bytes that it was given.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes. After an error it stands behind the last chunk that is right, and can be given other bytes from there.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        let pushed = self.try_push(bytes);
        if pushed.is_err() {
            self.rewind();
        }
        pushed
    }

    /// Forgets what came behind the last chunk that is right.
    pub fn rewind(&mut self) {
        self.next = if self.verified == 0 { Next::Fixed } else { Next::ChunkHead };
        self.small.clear();
        self.offset = self.verified;
    }

    fn try_push(&mut self, mut bytes: &[u8]) -> Result<(), Wrong> {
        while !bytes.is_empty() {
            let wanted = match self.next {
                Next::Fixed => (FIXED_BYTES - self.small.len()) as u64,
                Next::ChunkHead => (CHUNK_HEAD_BYTES - self.small.len()) as u64,
                Next::Body { left, .. } | Next::Foot { left } => left,
            };
            if wanted == 0 {
                return Err(Wrong::new(self.offset, "bytes follow the end"));
            }
            let (taken, rest) = bytes.split_at(usize::try_from(wanted).unwrap_or(usize::MAX).min(bytes.len()));
            bytes = rest;
            self.offset += taken.len() as u64;
            self.take(taken)?;
        }
        Ok(())
    }

    fn take(&mut self, taken: &[u8]) -> Result<(), Wrong> {
        let count = taken.len() as u64;
        self.next = match self.next {
            Next::Fixed => {
                self.small.extend_from_slice(taken);
                if self.small.len() < FIXED_BYTES {
                    return Ok(());
                }
                let fixed = std::mem::take(&mut self.small);
                let word = |at| array(&fixed, at).map_or(0, u32::from_le_bytes);
                if array::<8>(&fixed, 0).as_ref() != Some(MAGIC) || word(8) != VERSION {
                    return Err(Wrong::new(0, "it is no snapshot file of this version"));
                }
                if word(12) > HEAD_BYTES_MAX {
                    return Err(Wrong::new(12, format!("its head claims {} bytes", word(12))));
                }
                Next::Body { left: u64::from(word(12)), expected: word(16), computed: 0, last: false }
            }
            Next::ChunkHead => {
                self.small.extend_from_slice(taken);
                if self.small.len() < CHUNK_HEAD_BYTES {
                    return Ok(());
                }
                let head = std::mem::take(&mut self.small);
                let word = |at| array(&head, at).map_or(0, u32::from_le_bytes);
                let length = word(0);
                if length as usize > CHUNK_BYTES {
                    return Err(Wrong::new(self.verified, format!("a chunk claims {length} bytes")));
                }
                let computed = crc32c::crc32c(&length.to_le_bytes());
                Next::Body { left: u64::from(length), expected: word(4), computed, last: length == 0 }
            }
            Next::Body { left, expected, computed, last } => {
                let computed = crc32c::crc32c_append(computed, taken);
                Next::Body { left: left.saturating_sub(count), expected, computed, last }
            }
            Next::Foot { left } => Next::Foot { left: left.saturating_sub(count) },
        };
        if let Next::Body { left: 0, expected, computed, last } = self.next {
            if computed != expected {
                return Err(Wrong::new(self.verified, "a checksum does not match"));
            }
            // The foot belongs to the chunk before it: without that one it says nothing.
            self.next = if last { Next::Foot { left: FOOT_BYTES } } else { Next::ChunkHead };
            if !last {
                self.verified = self.offset;
            }
        }
        if let Next::Foot { left: 0 } = self.next {
            self.verified = self.offset;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::super::format::chunk_head;
    use super::*;

    /// A file of three chunks, and where its parts end that can be verified.
    fn file() -> (Vec<u8>, Vec<u64>) {
        let body = b"the head";
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        bytes.extend_from_slice(body);
        let mut ends = vec![bytes.len() as u64];
        for chunk in [&b"first chunk"[..], b"second", b""] {
            bytes.extend_from_slice(&chunk_head(chunk));
            bytes.extend_from_slice(chunk);
            ends.push(bytes.len() as u64);
        }
        bytes.extend_from_slice(&[7; FOOT_BYTES as usize]);
        *ends.last_mut().unwrap() = bytes.len() as u64;
        (bytes, ends)
    }

    #[test]
    fn however_the_parts_are_cut_what_is_whole_is_verified() {
        let (bytes, ends) = file();
        for part in [1, 3, 7, bytes.len()] {
            let mut verifier = Verifier::default();
            for taken in bytes.chunks(part) {
                verifier.push(taken).unwrap();
                let whole = ends.iter().rev().find(|end| **end <= verifier.offset()).copied().unwrap_or(0);
                assert_eq!(verifier.verified, whole, "in parts of {part}");
            }
            assert_eq!(verifier.verified, bytes.len() as u64);
            assert!(verifier.push(b"x").unwrap_err().reason.contains("follow the end"));
        }
    }

    /// Every flipped bit before the foot is found by the end of the chunk that it is in; then the right bytes are taken from
    /// where that chunk begins.
    #[test]
    fn damage_is_found_in_its_chunk_and_only_that_is_sent_again() {
        let (bytes, ends) = file();
        let foot = bytes.len() - FOOT_BYTES as usize;
        for bit in 0..foot * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut verifier = Verifier::default();
            let mut at = 0;
            let found = loop {
                match damaged.get(at..at + 1) {
                    Some(byte) => match verifier.push(byte) {
                        Ok(()) => at += 1,
                        Err(_) => break true,
                    },
                    None => break false,
                }
            };
            // A length that grew makes the chunk wait for bytes that do not come: it is not verified either.
            let before = ends.iter().rev().find(|end| **end <= bit as u64 / 8).copied().unwrap_or(0);
            assert_eq!(verifier.verified, before, "bit {bit}");
            if found {
                verifier.push(&bytes[before as usize..]).unwrap();
                assert_eq!(verifier.verified, bytes.len() as u64, "bit {bit}");
            }
        }
    }
}
