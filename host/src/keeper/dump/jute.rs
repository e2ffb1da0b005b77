//! ZooKeeper's encoding, read from a stream that knows where it is and what it has seen.

use std::io;
use std::io::Read;

use adler2::Adler32;

/// No buffer of ZooKeeper's is longer: its own limit is below.
const BUFFER_BYTES_MAX: u64 = 1 << 30;

/// An entry of an ACL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acl {
    /// The permission bits.
    pub perms: i32,
    /// The scheme.
    pub scheme: String,
    /// Who.
    pub id: String,
}

/// A stream of fields. Every error is a place where the bytes are not what they should be, or cannot be read.
#[derive(Debug)]
pub struct Input<R> {
    from: R,
    offset: u64,
    checksum: Adler32,
}

impl<R: Read> Input<R> {
    /// Reads from the beginning of `from`.
    pub fn new(from: R) -> Self {
        Self { from, offset: 0, checksum: Adler32::new() }
    }

    /// How many bytes were read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Adler-32 of all that was read.
    pub fn checksum(&self) -> i64 {
        self.checksum.checksum().into()
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.from.read_exact(bytes)?;
        self.offset += bytes.len() as u64;
        self.checksum.write_slice(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// A number.
    pub fn i32(&mut self) -> io::Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    /// A number.
    pub fn i64(&mut self) -> io::Result<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// A truth.
    pub fn bool(&mut self) -> io::Result<bool> {
        self.array().map(|[byte]| byte != 0)
    }

    /// Bytes, or null. A length that is a lie costs no more memory than there are bytes.
    pub fn buffer(&mut self) -> io::Result<Option<Vec<u8>>> {
        let length = match self.i32()? {
            -1 => return Ok(None),
            length => u64::try_from(length).ok().filter(|length| *length <= BUFFER_BYTES_MAX),
        };
        let length = length.ok_or_else(|| wrong("a length that cannot be"))?;
        let mut bytes = Vec::with_capacity(usize::try_from(length.min(64 << 10)).unwrap_or(0));
        (&mut self.from).take(length).read_to_end(&mut bytes)?;
        self.offset += bytes.len() as u64;
        self.checksum.write_slice(&bytes);
        if (bytes.len() as u64) < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Some(bytes)) }
    }

    /// Text; null is none.
    pub fn text(&mut self) -> io::Result<String> {
        let bytes = self.buffer()?.ok_or_else(|| wrong("null where there should be text"))?;
        String::from_utf8(bytes).map_err(|_| wrong("text that is not UTF-8"))
    }

    /// How many elements a vector has.
    pub fn count(&mut self) -> io::Result<u32> {
        match self.i32()? {
            -1 => Ok(0),
            count => u32::try_from(count).map_err(|_| wrong("a count that cannot be")),
        }
    }

    /// A list of ACL entries.
    pub fn acl(&mut self) -> io::Result<Vec<Acl>> {
        let mut list = Vec::new();
        for _ in 0..self.count()? {
            list.push(Acl { perms: self.i32()?, scheme: self.text()?, id: self.text()? });
        }
        Ok(list)
    }

    /// What is left, at most `max` bytes; the checksum does not count it.
    pub fn rest(&mut self, max: usize) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        (&mut self.from).take(max as u64).read_to_end(&mut rest)?;
        self.offset += rest.len() as u64;
        Ok(rest)
    }

    /// Adler-32 of all that was read, and of `bytes` behind it.
    pub fn checksum_with(&self, bytes: &[u8]) -> i64 {
        let mut checksum = self.checksum;
        checksum.write_slice(bytes);
        checksum.checksum().into()
    }
}

/// Bytes that are not what they should be.
pub fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What to say of an error of these functions.
pub fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    }
}
