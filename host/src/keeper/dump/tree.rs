//! The nodes of a dump, and what ZooKeeper's transactions do to them.
//!
//! A snapshot is taken while the tree changes, so transactions are applied again to a tree that has some of them
//! already. What they do to nodes that are there already, or are no longer, is therefore no error but what
//! `DataTree.processTxn` makes of it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use flate2::Crc;

use super::jute::Acl;

/// The owner of a container.
const CONTAINER: i64 = i64::MIN;
/// The first two bytes of the owner of a node with a time to live.
const TTL: i64 = 0xff00;

/// A node's numbers, as ZooKeeper stores them: `cversion` counts the children that were created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The transaction that created it.
    pub czxid: i64,
    /// The transaction that last set its data.
    pub mzxid: i64,
    /// When it was created, Unix milliseconds.
    pub ctime: i64,
    /// When its data was last set, Unix milliseconds.
    pub mtime: i64,
    /// How often its data was set.
    pub version: i32,
    /// How many children were created.
    pub cversion: i32,
    /// How often its ACL was set.
    pub aversion: i32,
    /// A session, `CONTAINER`, a time to live, or 0.
    pub owner: i64,
    /// The transaction that last created or removed a child.
    pub pzxid: i64,
}

impl Stored {
    /// Whether the node has a time to live.
    pub fn is_ttl(&self) -> bool {
        is_ttl(self.owner)
    }
}

/// A list of ACL entries, by its place in [`Tree::acl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclList(u32);

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its data; `None` is null.
    pub data: Option<Box<[u8]>>,
    /// Its ACL.
    pub acl: AclList,
    /// Its numbers.
    pub stored: Stored,
}

impl Node {
    fn digest(&self, path: &str) -> u64 {
        let Stored { czxid, mzxid, ctime, mtime, version, cversion, aversion, owner, pzxid } = self.stored;
        let mut sum = Crc::new();
        sum.update(path.as_bytes());
        sum.update(self.data.as_deref().unwrap_or_default());
        for number in [czxid, mzxid, pzxid, ctime, mtime] {
            sum.update(&number.to_be_bytes());
        }
        for number in [version, cversion, aversion] {
            sum.update(&number.to_be_bytes());
        }
        sum.update(&owner.to_be_bytes());
        sum.sum().into()
    }
}

/// All nodes by path; the root's is empty, as in the files. In the order of paths a node comes before its children.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<Box<str>, Node>,
    lists: Vec<Vec<Acl>>,
    places: BTreeMap<Vec<Acl>, u32>,
    /// The nodes that go with a session.
    sessions: BTreeMap<i64, BTreeSet<Box<str>>>,
}

/// A node that is to be created.
#[derive(Debug)]
pub struct Creation<'a> {
    /// Its path.
    pub path: &'a str,
    /// Its data.
    pub data: Option<Vec<u8>>,
    /// Its ACL.
    pub acl: Vec<Acl>,
    /// Its owner.
    pub owner: i64,
    /// What the parent's `cversion` becomes; -1: one more.
    pub parent_cversion: i32,
}

fn parent_of(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

fn is_ttl(owner: i64) -> bool {
    (owner >> 48) & 0xffff == TTL
}

/// The session of an owner, if it is one.
fn session(owner: i64) -> Option<i64> {
    (owner != 0 && owner != CONTAINER && !is_ttl(owner)).then_some(owner)
}

impl Tree {
    /// What a server without snapshot begins with.
    pub fn new() -> Self {
        let mut tree = Self::default();
        let open = tree.acl_list(vec![Acl { perms: 31, scheme: "world".to_owned(), id: "anyone".to_owned() }]);
        for path in ["", "/zookeeper", "/zookeeper/quota"] {
            let node = Node { data: Some(Box::default()), acl: open, stored: Stored::default() };
            tree.nodes.insert(path.into(), node);
        }
        tree
    }

    /// The digest that servers since 3.6 keep of all nodes but those below `/zookeeper`: the sum of a CRC-32 each.
    pub fn digest(&self) -> u64 {
        let counted = self.nodes.iter().filter(|(path, _)| !path.starts_with("/zookeeper/"));
        counted.fold(0, |sum: u64, (path, node)| sum.wrapping_add(node.digest(path)))
    }

    /// All nodes, each before its children.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (&**path, node))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none, not even a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The node at a path.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The entries of a list.
    pub fn acl(&self, list: AclList) -> &[Acl] {
        usize::try_from(list.0).ok().and_then(|place| self.lists.get(place)).map_or(&[], Vec::as_slice)
    }

    /// The list of these entries: equal ones are kept once.
    pub fn acl_list(&mut self, entries: Vec<Acl>) -> AclList {
        let next = u32::try_from(self.lists.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.places.get(&entries) {
            return AclList(*place);
        }
        self.lists.push(entries.clone());
        self.places.insert(entries, next);
        AclList(next)
    }

    /// Puts a node of a snapshot in; false when its parent is not there, or the node is there already.
    pub fn restore(&mut self, path: &str, node: Node) -> bool {
        let fits = match parent_of(path) {
            Some(parent) => self.nodes.contains_key(parent) && !path.ends_with('/'),
            None => path.is_empty(),
        };
        if !fits || self.nodes.contains_key(path) {
            return false;
        }
        self.own(path, node.stored.owner);
        self.nodes.insert(path.into(), node);
        true
    }

    fn own(&mut self, path: &str, owner: i64) {
        if let Some(session) = session(owner) {
            self.sessions.entry(session).or_default().insert(path.into());
        }
    }

    /// Creates a node. One that is there stays; its parent's numbers are brought up to date.
    pub fn create(&mut self, creation: Creation<'_>, zxid: i64, time_ms: i64) {
        let Creation { path, data, acl, owner, parent_cversion } = creation;
        let Some(parent) = parent_of(path).and_then(|parent| self.nodes.get_mut(parent)) else { return };
        let cversion = if parent_cversion == -1 { parent.stored.cversion.wrapping_add(1) } else { parent_cversion };
        // A later creation may be in the snapshot already.
        if cversion > parent.stored.cversion {
            parent.stored.cversion = cversion;
            parent.stored.pzxid = zxid;
        }
        if self.nodes.contains_key(path) {
            return;
        }
        let acl = self.acl_list(acl);
        let stored = Stored {
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime: time_ms,
            mtime: time_ms,
            owner,
            ..Stored::default()
        };
        self.own(path, owner);
        self.nodes.insert(path.into(), Node { data: data.map(Into::into), acl, stored });
    }

    /// Removes a node.
    pub fn delete(&mut self, path: &str, zxid: i64) {
        if path.is_empty() {
            return;
        }
        if let Some(parent) = parent_of(path).and_then(|parent| self.nodes.get_mut(parent)) {
            parent.stored.pzxid = parent.stored.pzxid.max(zxid);
        }
        let Some(node) = self.nodes.remove(path) else { return };
        if let Some(session) = session(node.stored.owner)
            && let Some(owned) = self.sessions.get_mut(&session)
        {
            owned.remove(path);
        }
    }

    /// Replaces a node's data.
    pub fn set_data(&mut self, path: &str, data: Option<Vec<u8>>, version: i32, zxid: i64, time_ms: i64) {
        if let Some(node) = self.nodes.get_mut(path) {
            node.data = data.map(Into::into);
            node.stored = Stored { version, mzxid: zxid, mtime: time_ms, ..node.stored };
        }
    }

    /// Replaces a node's ACL.
    pub fn set_acl(&mut self, path: &str, acl: Vec<Acl>, version: i32) {
        let acl = self.acl_list(acl);
        if let Some(node) = self.nodes.get_mut(path) {
            node.acl = acl;
            node.stored.aversion = version;
        }
    }

    /// Removes the nodes of a session.
    pub fn close_session(&mut self, session: i64, zxid: i64) {
        for path in self.sessions.remove(&session).unwrap_or_default() {
            self.delete(&path, zxid);
        }
    }

    /// Removes the nodes of all sessions, which do not outlive their ensemble; how many.
    pub(super) fn drop_ephemerals(&mut self) -> u64 {
        let mut count = 0;
        for path in std::mem::take(&mut self.sessions).into_values().flatten() {
            count += u64::from(self.nodes.remove(&path).is_some());
        }
        count
    }
}
