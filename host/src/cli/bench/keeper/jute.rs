//! Jute, ZooKeeper's serialisation: big-endian numbers, and a length of four bytes before text, buffers and
//! frames; -1 stands for null.
//!
//! Invariants:
//! * [`Reader`] never panics and allocates nothing; a length that the bytes do not cover is [`Malformed`].
//! * Writing appends to a buffer that is used again and again: a request costs no allocation.

use thiserror::Error;

/// The bytes are not the record that was expected.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the bytes end early or hold a length that cannot be")]
pub(super) struct Malformed;

pub(super) fn put_i32(out: &mut Vec<u8>, value: i32) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(super) fn put_i64(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(super) fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(u8::from(value));
}

/// A buffer or a text.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_prefixed(out, |out| out.extend_from_slice(bytes));
}

/// Whatever `content` appends, with its length before it: a frame, or a text made of pieces.
pub(super) fn put_prefixed(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put_i32(out, 0);
    content(out);
    // What is sent is far below 2 GiB: values and numbers of operations are limited.
    let length = (out.len() - start - 4) as i32;
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Reads a record field by field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// `length` bytes without a length before them.
    pub(super) fn raw(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    pub(super) fn bool(&mut self) -> Result<bool, Malformed> {
        self.array().map(|[byte]| byte != 0)
    }

    /// A buffer or a text; null is empty.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        match self.i32()? {
            -1 => Ok(&[]),
            length => self.raw(usize::try_from(length).map_err(|_| Malformed)?),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let mut out = b"before".to_vec();
        put_prefixed(&mut out, |out| {
            put_i32(out, -2);
            put_i64(out, 1 << 40);
            put_bool(out, true);
            put_bytes(out, b"/a");
            put_bytes(out, b"");
        });
        assert_eq!(&out[..6], b"before");
        let mut reader = Reader::new(&out[6..]);
        assert_eq!(reader.i32(), Ok(4 + 8 + 1 + 6 + 4));
        assert_eq!((reader.i32(), reader.i64(), reader.bool()), (Ok(-2), Ok(1 << 40), Ok(true)));
        assert_eq!((reader.bytes(), reader.bytes()), (Ok(&b"/a"[..]), Ok(&b""[..])));
        assert!(reader.is_empty());
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for bytes in [&[0, 0, 0, 2, 1][..], &[0xff, 0xff, 0xff, 0xfe], &[0x7f, 0xff, 0xff, 0xff, 0], &[0, 0], &[]] {
            assert_eq!(Reader::new(bytes).bytes(), Err(Malformed), "{bytes:?}");
        }
        assert_eq!(Reader::new(&[0xff; 4]).bytes(), Ok(&[][..]));
        assert_eq!((Reader::new(&[0; 7]).i64(), Reader::new(&[]).bool()), (Err(Malformed), Err(Malformed)));
    }
}
