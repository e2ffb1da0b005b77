//! Jute, ZooKeeper's serialisation: big-endian numbers, and lengths of four bytes before text, buffers
//! and vectors, where -1 stands for null.
//!
//! Invariants:
//! * [`Reader`] never panics and never allocates by a length it was told: a length that the bytes do
//!   not cover is [`Malformed`], a vector's count is only a count until its items were read.
//! * What [`Writer`] wrote, [`Reader`] reads back.

/// The bytes are not the record that was expected: cut off, a negative or absurd length, text that
/// is not UTF-8. ZooKeeper's answer to it is [`ErrorCode::MarshallingError`](crate::wire::ErrorCode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads a record field by field.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*head)
    }

    /// `length` bytes as they are, without a length before them.
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    /// A byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    /// A boolean: a byte that is not 0.
    pub fn bool(&mut self) -> Result<bool, Malformed> {
        Ok(self.u8()? != 0)
    }

    /// Two bytes (not a Jute type; our own layouts have it).
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// An int without its sign.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// An int.
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    /// A long.
    pub fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    /// A buffer; `None` for null.
    pub fn buffer(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.i32()? {
            -1 => Ok(None),
            length => self.raw(usize::try_from(length).map_err(|_| Malformed)?).map(Some),
        }
    }

    /// Text; `None` for null.
    pub fn text(&mut self) -> Result<Option<&'a str>, Malformed> {
        let bytes = self.buffer()?;
        bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| Malformed)).transpose()
    }

    /// A vector's count; `None` for null. As in ZooKeeper, every other negative count is an empty
    /// vector. The count is what the sender says: reserve nothing by it.
    pub fn count(&mut self) -> Result<Option<u32>, Malformed> {
        match self.i32()? {
            -1 => Ok(None),
            count => Ok(Some(u32::try_from(count).unwrap_or(0))),
        }
    }

    /// A vector of text; null entries and a null vector are left out.
    pub fn texts(&mut self) -> Result<Vec<&'a str>, Malformed> {
        let mut texts = Vec::new();
        for _ in 0..self.count()?.unwrap_or(0) {
            texts.extend(self.text()?);
        }
        Ok(texts)
    }
}

/// Appends fields to bytes.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// How many bytes there are by now.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Bytes as they are, without a length before them.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// A byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.out.push(value);
        self
    }

    /// A boolean.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// Two bytes (not a Jute type).
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// An int without its sign.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// An int.
    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// A long.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// A vector's count. What is in memory here is far below 2³¹.
    pub fn count(&mut self, count: usize) -> &mut Self {
        self.i32(i32::try_from(count).unwrap_or(i32::MAX))
    }

    /// A buffer; `None` is null.
    pub fn buffer(&mut self, bytes: Option<&[u8]>) -> &mut Self {
        match bytes {
            None => self.i32(-1),
            Some(bytes) => self.count(bytes.len()).raw(bytes),
        }
    }

    /// Text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.buffer(Some(text.as_bytes()))
    }

    /// A vector of text.
    pub fn texts<T: AsRef<str>>(&mut self, texts: impl ExactSizeIterator<Item = T>) -> &mut Self {
        self.count(texts.len());
        for text in texts {
            self.text(text.as_ref());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_every_cut_is_malformed() {
        let mut bytes = Vec::new();
        let mut out = Writer::new(&mut bytes);
        out.bool(true).i32(-7).i64(1 << 40).buffer(None).buffer(Some(b"\0\xff")).text("/a");
        out.texts(["x", "y"].iter());
        let read = |bytes: &[u8]| -> Result<(), Malformed> {
            let mut reader = Reader::new(bytes);
            assert!(reader.bool()?);
            assert_eq!(reader.i32()?, -7);
            assert_eq!(reader.i64()?, 1 << 40);
            assert_eq!(reader.buffer()?, None);
            assert_eq!(reader.buffer()?, Some(&b"\0\xff"[..]));
            assert_eq!(reader.text()?, Some("/a"));
            assert_eq!(reader.texts()?, ["x", "y"]);
            assert!(reader.rest().is_empty());
            Ok(())
        };
        assert_eq!(read(&bytes), Ok(()));
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Err(Malformed));
        }
    }

    #[test]
    fn an_absurd_length_is_malformed_and_allocates_nothing() {
        for length in [i32::MIN, -2, 3, i32::MAX] {
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.extend_from_slice(b"ab");
            assert_eq!(Reader::new(&bytes).buffer(), Err(Malformed), "{length}");
            assert_eq!(Reader::new(&bytes).text(), Err(Malformed), "{length}");
        }
        assert_eq!(Reader::new(&i32::MAX.to_be_bytes()).texts(), Err(Malformed));
        assert_eq!(Reader::new(&(-1_i32).to_be_bytes()).texts(), Ok(vec![]));
        assert_eq!(Reader::new(&(-9_i32).to_be_bytes()).texts(), Ok(vec![]));
    }

    #[test]
    fn text_that_is_not_utf8_is_malformed() {
        assert_eq!(Reader::new(b"\0\0\0\x02\xff\xfe").text(), Err(Malformed));
    }
}
