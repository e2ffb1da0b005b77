//! What must be equal in two answers, and what is mapped: zxids and session ids one to one and in order, times by whether
//! there is one.

use std::collections::BTreeMap;

use statehouse_tests::keeper::Reply;
use znode_tree::jute::Malformed;
use znode_tree::jute::Reader;
use znode_tree::wire::MultiHeader;
use znode_tree::wire::op;

use super::dice::is_secret;

/// What two answers differ in.
pub type Difference = String;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Number(i64),
    /// Of a transaction.
    Zxid(i64),
    /// Unix milliseconds; 0 for none.
    Time(i64),
    /// The owner of an ephemeral node, or 0.
    Session(i64),
    Bytes(Option<Vec<u8>>),
    Unordered(Vec<String>),
    /// What follows the parts that were expected.
    Rest(Vec<u8>),
}

/// Which numbers of ours stand for which of ZooKeeper's.
#[derive(Debug)]
pub struct Maps {
    /// zxids of transactions, ZooKeeper's first: as one grows, so does the other.
    zxids: BTreeMap<i64, i64>,
    sessions: BTreeMap<i64, i64>,
}

impl Maps {
    pub fn new() -> Self {
        Self { zxids: BTreeMap::from([(0, 0)]), sessions: BTreeMap::from([(0, 0)]) }
    }

    /// A session that was opened at both.
    pub fn session(&mut self, theirs: i64, ours: i64) {
        assert_eq!(self.sessions.insert(theirs, ours), None, "ZooKeeper gave a session twice");
    }

    /// The same transaction at both.
    fn zxid(&mut self, theirs: i64, ours: i64) -> Result<(), Difference> {
        if let Some(known) = self.zxids.get(&theirs) {
            return same("the zxid", known, &ours);
        }
        let before = self.zxids.range(..theirs).next_back();
        let after = self.zxids.range(theirs..).next();
        let fits = before.is_none_or(|(_, known)| *known < ours) && after.is_none_or(|(_, known)| ours < *known);
        if !fits {
            return Err(format!(
                "zxid {theirs:#x} is {ours:#x} here, which does not go with {before:x?} and {after:x?}"
            ));
        }
        self.zxids.insert(theirs, ours);
        Ok(())
    }

    /// What each knew to be the newest: no transaction may lie between them.
    fn seen(&self, theirs: i64, ours: i64) -> Result<(), Difference> {
        let before = self.zxids.range(..=theirs).next_back();
        let after = self.zxids.range(theirs.saturating_add(1)..).next();
        let fits = before.is_none_or(|(_, known)| *known <= ours) && after.is_none_or(|(_, known)| ours < *known);
        if fits {
            return Ok(());
        }
        Err(format!(
            "the newest zxid was {theirs:#x} and {ours:#x} here, which do not go with {before:x?} and {after:x?}"
        ))
    }

    /// A zxid from which `back` transactions are missing, for each.
    pub fn some_time_ago(&self, back: usize) -> (i64, i64) {
        self.zxids.iter().rev().nth(back).map_or((0, 0), |(theirs, ours)| (*theirs, *ours))
    }
}

fn same<T: std::fmt::Debug + PartialEq>(what: &str, theirs: &T, ours: &T) -> Result<(), Difference> {
    if theirs == ours { Ok(()) } else { Err(format!("{what}: {theirs:?} by ZooKeeper, {ours:?} here")) }
}

/// What was sent, as far as its answer depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub operation: i32,
    /// Whether it is about what not everybody may read.
    is_secret: bool,
}

impl Asked {
    pub fn of(operation: i32, body: &[u8]) -> Self {
        let path = Reader::new(body).text().ok().flatten().unwrap_or_default();
        Self { operation, is_secret: is_secret(path) }
    }
}

/// Compares the replies to a request.
pub fn replies(maps: &mut Maps, asked: Asked, theirs: &Reply, ours: &Reply) -> Result<(), Difference> {
    same("the xid", &theirs.xid, &ours.xid)?;
    let is_listed = match asked.operation {
        op::CHECK_WATCHES => theirs.error == 0 && ours.error == NO_WATCHER,
        op::EXISTS => asked.is_secret && ours.error == NO_AUTH,
        _ => false,
    };
    if is_listed {
        return maps.seen(theirs.zxid, ours.zxid);
    }
    same("the error", &theirs.error, &ours.error)?;
    if is_write(asked.operation) {
        maps.zxid(theirs.zxid, ours.zxid)?;
    } else if theirs.zxid > 0 {
        maps.seen(theirs.zxid, ours.zxid)?;
    } else {
        same("the zxid", &theirs.zxid, &ours.zxid)?;
    }
    let parts = |body: &[u8]| {
        let mut reader = Reader::new(body);
        let mut parts = Vec::new();
        if !body.is_empty() && read_parts(asked.operation, &mut reader, &mut parts).is_err() {
            parts.push(Part::Number(-1));
        }
        if !reader.rest().is_empty() {
            parts.push(Part::Rest(reader.rest().to_vec()));
        }
        parts
    };
    compare_parts(maps, &parts(&theirs.body), &parts(&ours.body))
}

const NO_AUTH: i32 = -102;
const NO_WATCHER: i32 = -121;

fn is_write(operation: i32) -> bool {
    matches!(
        operation,
        op::CREATE
            | op::CREATE2
            | op::CREATE_CONTAINER
            | op::CREATE_TTL
            | op::DELETE
            | op::SET_DATA
            | op::SET_ACL
            | op::MULTI
            | op::CLOSE_SESSION
    )
}

fn compare_parts(maps: &mut Maps, theirs: &[Part], ours: &[Part]) -> Result<(), Difference> {
    let differ = || Err(format!("the bodies:\n  {theirs:?} by ZooKeeper\n  {ours:?} here"));
    if theirs.len() != ours.len() {
        return differ();
    }
    for pair in theirs.iter().zip(ours) {
        match pair {
            (Part::Zxid(theirs), Part::Zxid(ours)) => maps.zxid(*theirs, *ours)?,
            (Part::Time(theirs), Part::Time(ours)) if (*theirs == 0) == (*ours == 0) => {}
            (Part::Session(theirs), Part::Session(ours)) => {
                // The marks of a container and of a time to live are no sessions.
                let expected = maps.sessions.get(theirs).unwrap_or(theirs);
                same("the ephemeral owner", expected, ours)?;
            }
            (theirs, ours) if theirs == ours => {}
            _ => return differ(),
        }
    }
    Ok(())
}

fn read_parts(operation: i32, reader: &mut Reader<'_>, parts: &mut Vec<Part>) -> Result<(), Malformed> {
    match operation {
        op::MULTI | op::MULTI_READ => loop {
            let header = MultiHeader::read(reader)?;
            let numbers = [header.op, i32::from(header.done), header.err];
            parts.extend(numbers.map(|number| Part::Number(number.into())));
            if header.done {
                return Ok(());
            }
            read_parts(header.op, reader, parts)?;
        },
        op::CREATE | op::SYNC => bytes(reader, parts),
        op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL | op::GET_DATA => {
            bytes(reader, parts)?;
            stat(reader, parts)
        }
        op::SET_DATA | op::SET_ACL | op::EXISTS => stat(reader, parts),
        op::GET_ACL => {
            let count = reader.i32()?;
            parts.push(Part::Number(count.into()));
            let entry = |_| Ok(format!("{} {:?} {:?}", reader.i32()?, reader.text()?, reader.text()?));
            unordered((0..count).map(entry).collect::<Result<_, Malformed>>()?, parts);
            stat(reader, parts)
        }
        op::GET_CHILDREN | op::GET_EPHEMERALS => names(reader, parts),
        op::GET_CHILDREN2 => {
            names(reader, parts)?;
            stat(reader, parts)
        }
        op::GET_ALL_CHILDREN_NUMBER | op::ERROR => {
            parts.push(Part::Number(reader.i32()?.into()));
            Ok(())
        }
        op::WHO_AM_I => {
            let users = (0..reader.i32()?).map(|_| Ok(format!("{:?} {:?}", reader.text()?, reader.text()?)));
            unordered(users.collect::<Result<_, Malformed>>()?, parts);
            Ok(())
        }
        // Whatever else there is stays what it is.
        _ => Ok(()),
    }
}

fn bytes(reader: &mut Reader<'_>, parts: &mut Vec<Part>) -> Result<(), Malformed> {
    parts.push(Part::Bytes(reader.buffer()?.map(<[u8]>::to_vec)));
    Ok(())
}

fn names(reader: &mut Reader<'_>, parts: &mut Vec<Part>) -> Result<(), Malformed> {
    unordered(reader.texts()?.into_iter().map(str::to_owned).collect(), parts);
    Ok(())
}

/// What ZooKeeper gives in the order of a hash table.
fn unordered(mut texts: Vec<String>, parts: &mut Vec<Part>) {
    texts.sort_unstable();
    parts.push(Part::Unordered(texts));
}

fn stat(reader: &mut Reader<'_>, parts: &mut Vec<Part>) -> Result<(), Malformed> {
    let zxids = [reader.i64()?, reader.i64()?];
    let times = [reader.i64()?, reader.i64()?];
    let versions = [reader.i32()?, reader.i32()?, reader.i32()?];
    let owner = reader.i64()?;
    let sizes = [reader.i32()?, reader.i32()?];
    parts.extend(zxids.map(Part::Zxid));
    parts.extend(times.map(Part::Time));
    parts.extend(versions.into_iter().chain(sizes).map(|number| Part::Number(number.into())));
    parts.extend([Part::Session(owner), Part::Zxid(reader.i64()?)]);
    Ok(())
}

/// What notifications tell, without those of what not everybody may read.
pub fn told(events: &[Reply]) -> Vec<(i32, i32, i32, String)> {
    let all = events.iter().map(|event| {
        let mut reader = Reader::new(&event.body);
        let (kind, state) = (reader.i32().unwrap(), reader.i32().unwrap());
        let path = String::from_utf8_lossy(reader.buffer().unwrap().unwrap()).into_owned();
        assert!(reader.rest().is_empty(), "{event:?}");
        (event.error, kind, state, path)
    });
    all.filter(|(_, _, _, path)| !is_secret(path)).collect()
}

/// Compares notifications.
pub fn events(theirs: &[Reply], ours: &[Reply], in_order: bool) -> Result<(), Difference> {
    let (mut theirs, mut ours) = (told(theirs), told(ours));
    if !in_order {
        theirs.sort_unstable();
        ours.sort_unstable();
    }
    same("the notifications (error, type, state, path)", &theirs, &ours)
}
