//! The state as bytes, and back.
//!
//! Written and read node by node, from the root down, a node's children in their order before its
//! next sibling: one walk, no second copy of the state. All numbers big-endian:
//!
//! ```text
//! "ZNTR" | version u8 = 1 | params (u32 + JSON) | seed of the index u64
//! time of the next look at containers and TTLs u64 (0: none)
//! sessions that ended and still own nodes: u32, each u64
//! import u8: 0 possible, 1 running, 2 over | nodes loaded u64
//! nodes u32, each:
//!   flags u8: 1 has data, 2 was changed, 4 has or had children, 8 has an owner, 16 lost a child
//!   czxid i64, ctime i64
//!   8: owner i64
//!   2: mzxid i64, mtime i64, version i32, aversion i32   (else czxid, ctime, 0, 0)
//!   4: pzxid i64, created i32, child_changes i32, children u32   (else czxid, 0, 0, 0)
//!   16: how much later than pzxid, in a tree whose pzxid does not tell, u32   (else 0)
//!   acl u32: 0 everything for everybody, n the n-th list of this file; the first time a list is
//!     named it follows: u32, each perms i32, scheme (u32 + text), id (u32 + text)
//!   name (u32 + text)
//!   1: data (u32 + bytes)
//! "RTNZ"
//! ```
//!
//! What follows from the nodes (index, sessions' nodes, quotas, what goes by itself) is not in it.
//! Replicas with equal state write equal bytes: nothing here depends on where a replica keeps a node
//! or a list.

use std::io;
use std::io::Read;
use std::io::Write;

use statehouse_sdk::Snapshot;

use crate::ZnodeTree;
use crate::acl::Acl;
use crate::acl::AclId;
use crate::jute::Writer;
use crate::ops::load::Import;
use crate::params::Params;
use crate::tree::Tree;
use crate::tree::arena::NodeId;
use crate::tree::node::Fields;
use crate::tree::node::Node;
use crate::tree::node::Numbers;
use crate::wire::perms;

const HEAD: [u8; 4] = *b"ZNTR";
const TAIL: [u8; 4] = *b"RTNZ";
const VERSION: u8 = 1;

const HAS_DATA: u8 = 1;
const CHANGED: u8 = 2;
const HAD_CHILDREN: u8 = 4;
const OWNED: u8 = 8;
const LOST_CHILD: u8 = 16;

impl Snapshot for ZnodeTree {
    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut head = Writer::new(&mut buffer);
        head.raw(&HEAD).u8(VERSION);
        let params = serde_json::to_vec(&self.params).map_err(io::Error::other)?;
        head.buffer(Some(&params));
        head.i64(self.tree.seed() as i64).i64(self.armed_at_ms as i64).count(self.ended.len());
        for session in &self.ended {
            head.i64(*session as i64);
        }
        let (import, loaded) = match self.import {
            Import::Possible => (0, 0),
            Import::Running(loaded) => (1, loaded),
            Import::Over => (2, 0),
        };
        head.u8(import).i64(loaded as i64).count(self.tree.node_count());
        out.write_all(&buffer)?;
        let mut names = ListNames { numbers: vec![0; self.tree.acls().places()], named: 0 };
        let root = self.tree.root();
        for id in std::iter::once(root).chain(self.tree.descendants(root)) {
            buffer.clear();
            let node = self.tree.get(id);
            write_node(node, self.tree.acl(id), &mut names, &mut Writer::new(&mut buffer));
            out.write_all(&buffer)?;
            if let Some(data) = node.data() {
                out.write_all(data)?;
            }
        }
        out.write_all(&TAIL)
    }

    fn restore(input: &mut dyn Read) -> io::Result<Self> {
        Restore::new(input)?.run()
    }
}

/// The numbers that ACL lists have in a file: in the order in which it names them, whatever a
/// replica's own ids are. 0: not named yet.
struct ListNames {
    numbers: Vec<u32>,
    named: u32,
}

/// All of a node but its data, whose length is the last that is written.
fn write_node(node: &Node, acl: &[Acl], names: &mut ListNames, out: &mut Writer<'_>) {
    let fields = node.packed.fields();
    let Fields { acl: list, family, .. } = fields;
    let Numbers { czxid, mzxid, pzxid, ctime, mtime, owner, version, aversion, created, child_changes } =
        fields.numbers();
    let flag = |condition: bool, flag: u8| if condition { flag } else { 0 };
    let flags = flag(node.data().is_some(), HAS_DATA)
        | flag((mzxid, mtime, version, aversion) != (czxid, ctime, 0, 0), CHANGED)
        | flag((pzxid, created, child_changes, family.children) != (czxid, 0, 0, 0), HAD_CHILDREN)
        | flag(owner != 0, OWNED)
        | flag(family.child_went != 0, LOST_CHILD);
    out.u8(flags).i64(czxid).i64(ctime);
    if flags & OWNED != 0 {
        out.i64(owner);
    }
    if flags & CHANGED != 0 {
        out.i64(mzxid).i64(mtime).i32(version).i32(aversion);
    }
    if flags & HAD_CHILDREN != 0 {
        out.i64(pzxid).i32(created).i32(child_changes).u32(family.children);
    }
    if flags & LOST_CHILD != 0 {
        out.u32(family.child_went);
    }
    write_list(list, acl, names, out);
    out.text(node.name());
    if let Some(data) = node.data() {
        out.count(data.len());
    }
}

fn write_list(id: AclId, list: &[Acl], names: &mut ListNames, out: &mut Writer<'_>) {
    let Some(number) = names.numbers.get_mut(id.place()).filter(|_| id != AclId::OPEN) else {
        out.u32(0);
        return;
    };
    if *number != 0 {
        out.u32(*number);
        return;
    }
    names.named += 1;
    *number = names.named;
    out.u32(*number).count(list.len());
    for Acl { perms, scheme, id } in list {
        out.i32(*perms).text(scheme).text(id);
    }
}

/// A restore under way.
struct Restore<'a> {
    input: Input<'a>,
    machine: ZnodeTree,
    lists: Vec<Vec<Acl>>,
    nodes: u32,
}

/// A node as it is in the file.
struct Stored {
    numbers: Numbers,
    child_went: u32,
    children: u32,
    list: usize,
    name: String,
    data: Option<Vec<u8>>,
}

impl<'a> Restore<'a> {
    fn new(input: &'a mut dyn Read) -> io::Result<Self> {
        let mut input = Input(input);
        if input.array()? != HEAD {
            return Err(malformed("this is no snapshot of a znode tree"));
        }
        let [version] = input.array()?;
        if version != VERSION {
            return Err(malformed(format!("the snapshot has version {version}, this module reads version {VERSION}")));
        }
        let params: Params =
            serde_json::from_slice(&input.bytes()?).map_err(|error| malformed(format!("the params: {error}")))?;
        let mut machine = ZnodeTree::with_params(params, input.u64()?);
        machine.armed_at_ms = input.u64()?;
        for _ in 0..input.u32()? {
            machine.ended.insert(input.u64()?);
        }
        machine.import = match (input.array()?, input.u64()?) {
            ([0], _) => Import::Possible,
            ([1], loaded) => Import::Running(loaded),
            ([2], _) => Import::Over,
            ([other], _) => return Err(malformed(format!("an import of a kind that is not known, {other}"))),
        };
        let nodes = input.u32()?;
        Ok(Self { input, machine, lists: vec![vec![Acl::for_everybody(perms::ALL)]], nodes })
    }

    fn run(mut self) -> io::Result<ZnodeTree> {
        let root = self.read_node(0)?;
        if !root.name.is_empty() {
            return Err(malformed("the first node is no root"));
        }
        let list = self.list(&root)?.to_vec();
        self.machine.tree.restore_root(root.numbers, root.data.as_deref(), &list);
        self.machine.tree.set_child_went(self.machine.tree.root(), root.child_went);
        // The way from the root to where the next node goes: each node's children still to come.
        let mut way: Vec<(NodeId, u32, usize)> = vec![(self.machine.tree.root(), root.children, 0)];
        let mut path = String::new();
        for number in 1..self.nodes {
            while way.last().is_some_and(|(_, to_come, _)| *to_come == 0) {
                way.pop();
            }
            let Some((parent, to_come, length)) = way.last_mut() else {
                return Err(malformed(format!("node {number} of {} has no parent", self.nodes)));
            };
            *to_come -= 1;
            let parent = *parent;
            path.truncate(*length);
            let stored = self.read_node(number)?;
            path.push('/');
            path.push_str(&stored.name);
            let is_bad_name = stored.name.is_empty() || stored.name.contains('/');
            if is_bad_name || self.machine.tree.find(&path).is_some() {
                return Err(malformed(format!("node {number} of {} has a bad path, {path:?}", self.nodes)));
            }
            let list = self.lists.get(stored.list).map_or(&[][..], Vec::as_slice);
            let id = self.machine.tree.create(parent, &path, stored.data.as_deref(), list, stored.numbers);
            self.machine.tree.set_child_went(id, stored.child_went);
            way.push((id, stored.children, path.len()));
        }
        if let Some((id, ..)) = way.iter().find(|(_, to_come, _)| *to_come != 0) {
            let path = self.machine.tree.path_of(*id);
            return Err(malformed(format!("children of {path:?} are missing")));
        }
        if self.input.array()? != TAIL {
            return Err(malformed("something follows the last node"));
        }
        Ok(self.machine)
    }

    fn list(&self, stored: &Stored) -> io::Result<&[Acl]> {
        self.lists.get(stored.list).map(Vec::as_slice).ok_or_else(|| malformed("an ACL list is missing"))
    }

    fn read_node(&mut self, number: u32) -> io::Result<Stored> {
        let wrong = |what: &str| malformed(format!("node {number}: {what}"));
        let input = &mut self.input;
        let [flags] = input.array()?;
        if flags & !(HAS_DATA | CHANGED | HAD_CHILDREN | OWNED | LOST_CHILD) != 0 {
            return Err(wrong("flags of a kind that this module does not know"));
        }
        let (czxid, ctime) = (input.i64()?, input.i64()?);
        let mut numbers = Numbers { czxid, mzxid: czxid, pzxid: czxid, ctime, mtime: ctime, ..Numbers::default() };
        let mut children = 0;
        if flags & OWNED != 0 {
            numbers.owner = input.i64()?;
        }
        if flags & CHANGED != 0 {
            (numbers.mzxid, numbers.mtime) = (input.i64()?, input.i64()?);
            (numbers.version, numbers.aversion) = (input.i32()?, input.i32()?);
        }
        if flags & HAD_CHILDREN != 0 {
            numbers.pzxid = input.i64()?;
            (numbers.created, numbers.child_changes) = (input.i32()?, input.i32()?);
            children = input.u32()?;
        }
        let child_went = if flags & LOST_CHILD != 0 { input.u32()? } else { 0 };
        let list = input.u32()? as usize;
        if list == self.lists.len() {
            let mut entries = Vec::new();
            for _ in 0..input.u32()? {
                let perms = input.i32()?;
                let (scheme, id) = (input.text()?, input.text()?);
                entries.push(Acl { perms, scheme: scheme.into(), id: id.into() });
            }
            self.lists.push(entries);
        } else if list > self.lists.len() {
            return Err(wrong("an ACL list that was not given"));
        }
        let name = input.text()?;
        let data = if flags & HAS_DATA != 0 { Some(input.bytes()?) } else { None };
        Ok(Stored { numbers, child_went, children, list, name, data })
    }
}

/// The stream, field by field.
struct Input<'a>(&'a mut dyn Read);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).map_err(cut_off)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> io::Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> io::Result<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// Bytes behind their length. A length that is a lie costs no more memory than there are bytes.
    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let length = self.u32()?;
        let mut bytes = Vec::with_capacity(length.min(64 << 10) as usize);
        (&mut self.0).take(length.into()).read_to_end(&mut bytes)?;
        if bytes.len() < length as usize {
            return Err(cut_off(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }

    fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?).map_err(|_| malformed("text that is not UTF-8"))
    }
}

fn malformed(what: impl Into<String>) -> io::Error {
    let what: String = what.into();
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {what}"))
}

fn cut_off(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("it ends too early"),
        _ => error,
    }
}

impl Tree {
    /// The root as it was.
    fn restore_root(&mut self, numbers: Numbers, data: Option<&[u8]>, list: &[Acl]) {
        let root = self.root();
        self.renumber(root, numbers);
        self.replace_data(root, data);
        self.replace_acl(root, list);
    }
}
