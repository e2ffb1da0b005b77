//! A snapshot file: plain, or compressed with gzip or snappy (3.6 and later).
//!
//! ```text
//! "ZKSN" | version i32 = 2 | database i64
//! sessions i32, each: id i64, timeout i32
//! ACL lists i32, each: number i64, list
//! nodes, a node before its children: path, data, ACL's number i64 (-1: everything for everybody), numbers; then "/"
//! Adler-32 of all before it i64 | "/"
//! since 3.6 more (digest, last transaction), each part closed by a checksum and "/" again
//! ```

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::Read;
use std::path::Path;

use super::Damage;
use super::DumpError;
use super::jute::Acl;
use super::jute::Input;
use super::jute::describe;
use super::jute::wrong;
use super::tree::Node;
use super::tree::Stored;
use super::tree::Tree;

const MAGIC: i32 = i32::from_be_bytes(*b"ZKSN");
const VERSION: i32 = 2;
/// What stands for "everything for everybody" where a list's number is expected.
const OPEN: i64 = -1;
/// A checksum, and the mark behind it.
const SEAL_BYTES: usize = 13;
/// What is added is some fifty bytes.
const ADDED_BYTES_MAX: usize = 4096;
/// How many bytes are read between two words of progress.
const STEP_BYTES: u64 = 1 << 20;

/// Counts what is read of a file.
struct Counted<'a, R> {
    from: R,
    untold: Cell<u64>,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(bytes)?;
        let untold = self.untold.get() + read as u64;
        let tell = untold >= STEP_BYTES || read == 0;
        if tell {
            (self.progress)(untold);
        }
        self.untold.set(if tell { 0 } else { untold });
        Ok(read)
    }
}

/// Reads the snapshot at a path.
pub fn read(path: &Path, progress: &dyn Fn(u64)) -> Result<Tree, DumpError> {
    let unreadable = |source| DumpError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let file = BufReader::with_capacity(256 << 10, Counted { from: file, untold: Cell::new(0), progress });
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut input = Input::new(unpacked(&name, file));
    parse(&mut input).map_err(|error| {
        // Anything that is not the file's content is the disk's or the system's.
        if error.raw_os_error().is_some() {
            return DumpError::Unreadable { path: path.to_owned(), source: error };
        }
        Damage { file: path.to_owned(), offset: input.offset(), what: describe(&error) }.into()
    })
}

/// What a file of this name holds.
pub(super) fn unpacked<'a>(name: &str, file: impl Read + 'a) -> Box<dyn Read + 'a> {
    if name.ends_with(".gz") {
        Box::new(BufReader::new(flate2::read::GzDecoder::new(file)))
    } else if name.ends_with(".snappy") {
        Box::new(BufReader::new(Snappy::new(file)))
    } else {
        Box::new(file)
    }
}

/// Reads what a snapshot holds, and checks that it is whole.
pub(super) fn parse<R: Read>(input: &mut Input<R>) -> io::Result<Tree> {
    if input.i32()? != MAGIC {
        return Err(wrong("it does not begin as a snapshot"));
    }
    if input.i32()? != VERSION {
        return Err(wrong("a version of the format that ZooKeeper 3.4 to 3.9 do not write"));
    }
    input.i64()?;
    for _ in 0..input.count()? {
        input.i64()?;
        input.i32()?;
    }
    let mut tree = Tree::default();
    let mut lists = BTreeMap::new();
    for _ in 0..input.count()? {
        let number = input.i64()?;
        let list = input.acl()?;
        lists.insert(number, tree.acl_list(list));
    }
    let open = vec![Acl { perms: 31, scheme: "world".to_owned(), id: "anyone".to_owned() }];
    lists.insert(OPEN, tree.acl_list(open));
    loop {
        let path = input.text()?;
        if path == "/" {
            break;
        }
        let data = input.buffer()?.map(Into::into);
        let acl = input.i64()?;
        let acl = *lists.get(&acl).ok_or_else(|| wrong("a node with an ACL list that is not there"))?;
        let stored = Stored {
            czxid: input.i64()?,
            mzxid: input.i64()?,
            ctime: input.i64()?,
            mtime: input.i64()?,
            version: input.i32()?,
            cversion: input.i32()?,
            aversion: input.i32()?,
            owner: input.i64()?,
            pzxid: input.i64()?,
        };
        if !tree.restore(&path, Node { data, acl, stored }) {
            return Err(wrong(&format!("the node {path:?} has no parent, or is there twice")));
        }
    }
    if tree.is_empty() {
        return Err(wrong("there is no root"));
    }
    seal(input)?;
    added(input)?;
    Ok(tree)
}

/// What 3.6 and later add behind the first seal tells nothing new, but must be whole: it ends in a seal of its own.
fn added<R: Read>(input: &mut Input<R>) -> io::Result<()> {
    let rest = input.rest(ADDED_BYTES_MAX)?;
    if rest.is_empty() {
        return Ok(());
    }
    let sealed = rest.split_last_chunk::<SEAL_BYTES>().filter(|(before, seal)| {
        let sum = input.checksum_with(before).to_be_bytes();
        seal.starts_with(&sum) && seal.ends_with(b"\0\0\0\x01/")
    });
    match sealed {
        Some(_) if rest.len() < ADDED_BYTES_MAX => Ok(()),
        _ => Err(wrong("the checksum at the end is another one")),
    }
}

/// The checksum of all before it, and the mark behind it.
fn seal<R: Read>(input: &mut Input<R>) -> io::Result<()> {
    let is = input.checksum();
    if input.i64()? != is {
        return Err(wrong("the checksum is another one"));
    }
    if input.text()? != "/" {
        return Err(wrong("the mark behind the checksum is missing"));
    }
    Ok(())
}

/// Snappy as xerial's Java library frames it: a head, then blocks, each with its length in front.
struct Snappy<R> {
    from: R,
    begun: bool,
    block: Vec<u8>,
    place: usize,
}

impl<R: Read> Snappy<R> {
    const HEAD: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
    /// The library's blocks hold 32 KiB.
    const BLOCK_BYTES_MAX: usize = 64 << 20;

    fn new(from: R) -> Self {
        Self { from, begun: false, block: Vec::new(), place: 0 }
    }

    /// Reads the next block; false at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        if !self.begun {
            // The head, and two versions of the format.
            let mut head = [0; 16];
            self.from.read_exact(&mut head)?;
            if !head.starts_with(&Self::HEAD) {
                return Err(wrong("it is not compressed with snappy"));
            }
            self.begun = true;
        }
        let mut length = [0; 4];
        let mut have = 0;
        while let Some(missing) = length.get_mut(have..).filter(|missing| !missing.is_empty()) {
            match self.from.read(missing)? {
                0 if have == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => have += read,
            }
        }
        let length = usize::try_from(i32::from_be_bytes(length)).ok().filter(|length| *length <= Self::BLOCK_BYTES_MAX);
        let length = length.ok_or_else(|| wrong("a compressed block of a length that cannot be"))?;
        let mut packed = Vec::new();
        (&mut self.from).take(length as u64).read_to_end(&mut packed)?;
        if packed.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let holds = snap::raw::decompress_len(&packed).map_err(|_| wrong("a compressed block that is broken"))?;
        if holds > Self::BLOCK_BYTES_MAX {
            return Err(wrong("a compressed block that holds more than can be"));
        }
        self.block = snap::raw::Decoder::new()
            .decompress_vec(&packed)
            .map_err(|_| wrong("a compressed block that is broken"))?;
        self.place = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Snappy<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.place >= self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let rest = self.block.get(self.place..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(rest) {
            *to = *from;
        }
        self.place += count;
        Ok(count)
    }
}
