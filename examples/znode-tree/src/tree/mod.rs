//! The tree itself: znodes, and the few ways in which they change. It knows nothing of requests,
//! permissions or watches.
//!
//! Invariants:
//! * Each node but the root hangs in its parent's list of children, in the order of creation, which
//!   is the same on all replicas; and is in the index under the hash of its path.
//! * `sessions` holds exactly the nodes that go with a session; `reaping` exactly those that go by
//!   themselves ([`due_ms`](Tree::due_ms)); `quotas` exactly the paths that have a limit node. They
//!   follow from the nodes and are in no snapshot.
//! * While a journal is open ([`begin`](Tree::begin)), every change can be taken back, to the last
//!   place in the list of children.

pub mod arena;
pub mod index;
pub mod node;
pub mod packed;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::acl::Acl;
use crate::acl::AclId;
use crate::acl::AclTable;
use crate::quota;
use crate::tree::arena::Arena;
use crate::tree::arena::NodeId;
use crate::tree::index::Index;
use crate::tree::node::Change;
use crate::tree::node::Family;
use crate::tree::node::Fields;
use crate::tree::node::Node;
use crate::tree::node::Numbers;
use crate::tree::node::Owner;
use crate::tree::packed::Packed;

/// How to take a change back.
#[derive(Debug)]
enum Undo {
    Created(NodeId),
    /// The node keeps its place until the journal is closed.
    Removed(NodeId),
    Fields(NodeId, Box<Fields>),
    Change(NodeId, Change),
    Family(NodeId, Family),
    /// The data is that of these bytes, whatever else they say.
    Data(NodeId, Packed),
    Acl(NodeId, AclId),
}

/// When something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The entry's index.
    pub zxid: i64,
    /// The entry's time, Unix milliseconds.
    pub time_ms: i64,
}

/// All znodes.
#[derive(Debug)]
pub struct Tree {
    arena: Arena,
    index: Index,
    root: NodeId,
    seed: u64,
    acls: AclTable,
    /// Each session's nodes by the hashes of their paths, which are the same on all replicas.
    sessions: BTreeMap<u64, BTreeSet<(u32, NodeId)>>,
    ephemerals: usize,
    data_bytes: u64,
    path_bytes: u64,
    quotas: BTreeSet<Box<str>>,
    reaping: BTreeSet<(u64, Box<str>)>,
    /// A container that never had a child goes after this time; 0: never.
    never_used_ms: u64,
    journal: Option<Vec<Undo>>,
}

impl Tree {
    /// A tree of a root. `seed`: see [`index::hash`].
    pub fn new(seed: u64, never_used_ms: u64) -> Self {
        let mut tree = Self {
            arena: Arena::default(),
            index: Index::default(),
            root: NodeId::NONE,
            seed,
            acls: AclTable::default(),
            sessions: BTreeMap::new(),
            ephemerals: 0,
            data_bytes: 0,
            path_bytes: 0,
            quotas: BTreeSet::new(),
            reaping: BTreeSet::new(),
            never_used_ms,
            journal: None,
        };
        let hash = index::hash(seed, b"");
        let packed = Packed::new(b"", &Fields::new(Numbers::default(), AclId::OPEN), Some(b""));
        tree.root = tree.arena.insert(Node { hash, packed, ..Node::default() });
        tree.index.insert(&mut tree.arena, tree.root);
        tree.acls.acquire_again(AclId::OPEN);
        tree.path_bytes = 1;
        tree
    }

    /// The seed of the index.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The root.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// The node at a path. Like ZooKeeper's, the root is at `/` and at the empty path.
    pub fn find(&self, path: &str) -> Option<NodeId> {
        let path = if path == "/" { "" } else { path };
        let hash = index::hash(self.seed, path.as_bytes());
        let mut at = self.index.first(hash);
        while let Some(id) = at.some() {
            let node = self.arena.get(id);
            if node.hash == hash && self.is_at(node, path.as_bytes()) {
                return Some(id);
            }
            at = node.next_in_chain;
        }
        None
    }

    /// Whether the names from `node` up to the root are those of `path`.
    fn is_at<'t>(&'t self, mut node: &'t Node, mut path: &[u8]) -> bool {
        while let Some(parent) = node.parent.some() {
            let rest = path.strip_suffix(node.packed.name()).and_then(|rest| rest.strip_suffix(b"/"));
            let Some(rest) = rest else { return false };
            path = rest;
            node = self.arena.get(parent);
        }
        path.is_empty()
    }

    /// A node.
    pub fn get(&self, id: NodeId) -> &Node {
        self.arena.get(id)
    }

    /// A node's ACL list.
    pub fn acl(&self, id: NodeId) -> &[Acl] {
        self.acls.get(self.arena.get(id).packed.acl())
    }

    /// The lists of all nodes.
    pub fn acls(&self) -> &AclTable {
        &self.acls
    }

    /// A node's children, oldest first.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &Node)> {
        let first = self.arena.get(id).packed.family().first_child.some();
        let ids = std::iter::successors(first, |id| self.arena.get(*id).next.some());
        ids.map(|id| (id, self.arena.get(id)))
    }

    /// The nodes below a node, each before its children.
    pub fn descendants(&self, top: NodeId) -> impl Iterator<Item = NodeId> {
        std::iter::successors(Some(top), move |id| self.next_in(top, *id)).skip(1)
    }

    /// The node behind `id` in the walk of `top` that goes down first.
    fn next_in(&self, top: NodeId, id: NodeId) -> Option<NodeId> {
        if let Some(child) = self.arena.get(id).packed.family().first_child.some() {
            return Some(child);
        }
        let mut at = id;
        while at != top {
            let node = self.arena.get(at);
            if let Some(next) = node.next.some() {
                return Some(next);
            }
            at = node.parent;
        }
        None
    }

    /// A node's path.
    pub fn path_of(&self, id: NodeId) -> String {
        let mut names = Vec::new();
        let mut node = self.arena.get(id);
        while let Some(parent) = node.parent.some() {
            names.push(node.name());
            node = self.arena.get(parent);
        }
        if names.is_empty() {
            return "/".to_owned();
        }
        let mut path = String::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        path
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.index.node_count()
    }

    /// How many of them go with a session.
    pub fn ephemerals(&self) -> usize {
        self.ephemerals
    }

    /// Bytes of all data.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Bytes of all paths.
    pub fn path_bytes(&self) -> u64 {
        self.path_bytes
    }

    /// About what all nodes and their ACL lists take, bytes: a little more where most were changed at most once, since a node
    /// keeps only its name of its path.
    /// The same on every replica, unlike what the allocator would say.
    pub fn memory_bytes(&self) -> u64 {
        const NODE_BYTES: u64 = 80;
        let lists = self.acls.bytes() as u64;
        self.data_bytes + self.path_bytes + lists + self.node_count() as u64 * NODE_BYTES
    }

    /// The sessions that own nodes.
    pub fn sessions(&self) -> impl ExactSizeIterator<Item = u64> {
        self.sessions.keys().copied()
    }

    /// Whether a session owns nodes.
    pub fn owns_nodes(&self, session: u64) -> bool {
        self.sessions.contains_key(&session)
    }

    /// The paths of a session's nodes, in order.
    pub fn paths_of_session(&self, session: u64) -> Vec<String> {
        let nodes = self.sessions.get(&session).into_iter().flatten();
        let mut paths: Vec<_> = nodes.map(|(_, id)| self.path_of(*id)).collect();
        paths.sort_unstable();
        paths
    }

    /// About `count` of a session's nodes, the same and in the same order on every replica: of these the oldest first.
    /// Takes the time of as many, however many more the session has.
    pub fn some_of_session(&self, session: u64, count: usize) -> Vec<NodeId> {
        let mut some: Vec<(u32, NodeId)> = Vec::new();
        for (hash, id) in self.sessions.get(&session).into_iter().flatten() {
            // Paths of one hash stay together: which of them comes first depends on the replica.
            if some.len() >= count && some.last().is_none_or(|(last, _)| last != hash) {
                break;
            }
            some.push((*hash, *id));
        }
        for equal in some.chunk_by_mut(|(one, _), (other, _)| one == other).filter(|equal| equal.len() > 1) {
            equal.sort_by_cached_key(|(_, id)| self.path_of(*id));
        }
        some.sort_by_cached_key(|(_, id)| self.arena.get(*id).packed.czxid());
        some.into_iter().map(|(_, id)| id).collect()
    }

    /// The paths that have a quota.
    pub fn quotas(&self) -> &BTreeSet<Box<str>> {
        &self.quotas
    }

    /// The first time at which a node goes by itself, and its path.
    pub fn first_due(&self) -> Option<(u64, &str)> {
        self.reaping.first().map(|(due_ms, path)| (*due_ms, &**path))
    }

    /// The first `count` paths of nodes whose time to go by themselves has come.
    pub fn due_paths(&self, now_ms: u64, count: usize) -> Vec<Box<str>> {
        let due = self.reaping.iter().take_while(|(due_ms, _)| *due_ms <= now_ms);
        due.take(count).map(|(_, path)| path.clone()).collect()
    }
}

/// Changes.
impl Tree {
    /// From now on changes can be taken back.
    pub fn begin(&mut self) {
        self.journal = Some(Vec::new());
    }

    /// The changes since [`begin`](Self::begin) stay.
    pub fn commit(&mut self) {
        for undo in self.journal.take().into_iter().flatten() {
            match undo {
                Undo::Removed(id) => self.free(id),
                Undo::Acl(_, acl) => self.acls.release(acl),
                Undo::Created(_) | Undo::Fields(..) | Undo::Change(..) | Undo::Family(..) | Undo::Data(..) => {}
            }
        }
    }

    /// The changes since [`begin`](Self::begin) never were.
    pub fn roll_back(&mut self) {
        for undo in self.journal.take().into_iter().flatten().rev() {
            match undo {
                Undo::Created(id) => {
                    let path = self.path_of(id);
                    self.detach(id, &path);
                    self.free(id);
                }
                Undo::Removed(id) => {
                    let path = self.path_of(id);
                    self.attach(id, &path);
                }
                Undo::Fields(id, fields) => self.edit(id, |packed| packed.set_fields(&fields)),
                Undo::Change(id, change) => self.edit(id, |packed| packed.set_change(change)),
                Undo::Family(id, family) => self.edit(id, |packed| packed.set_family(family)),
                Undo::Data(id, before) => self.put_data(id, before.data()),
                Undo::Acl(id, acl) => {
                    let now = self.swap_acl(id, acl);
                    self.acls.release(now);
                }
            }
        }
    }

    /// Adds a node that is not there: `path` is that of `parent`, `/` and a name. The parent's own
    /// numbers are [`touch_parent`](Self::touch_parent)'s.
    pub fn create(&mut self, parent: NodeId, path: &str, data: Option<&[u8]>, acl: &[Acl], numbers: Numbers) -> NodeId {
        let name = path.rsplit_once('/').map_or("", |(_, name)| name);
        let fields = Fields::new(numbers, self.acls.acquire(acl));
        let id = self.arena.insert(Node {
            packed: Packed::new(name.as_bytes(), &fields, data),
            parent,
            previous: self.arena.get(parent).packed.family().last_child,
            hash: index::hash(self.seed, path.as_bytes()),
            ..Node::default()
        });
        self.attach(id, path);
        self.note(|| Undo::Created(id));
        id
    }

    /// Removes a node without children that is not the root.
    pub fn remove(&mut self, id: NodeId, path: &str) {
        self.detach(id, path);
        match &mut self.journal {
            Some(journal) => journal.push(Undo::Removed(id)),
            None => self.free(id),
        }
    }

    /// Gives a node other numbers, all of them.
    pub fn renumber(&mut self, id: NodeId, numbers: Numbers) {
        let before = self.arena.get(id).packed.fields();
        self.note(|| Undo::Fields(id, Box::new(before)));
        self.edit(id, |packed| packed.set_fields(&before.with(numbers)));
    }

    /// Changes the numbers that tell of a node's last change.
    pub fn touch(&mut self, id: NodeId, touch: impl FnOnce(&mut Change)) {
        let mut change = self.arena.get(id).packed.change();
        let before = change;
        self.note(|| Undo::Change(id, before));
        touch(&mut change);
        self.edit(id, |packed| packed.set_change(change));
    }

    /// A child of `parent` has come (`created`) or gone.
    pub fn touch_parent(&mut self, parent: NodeId, zxid: i64, created: bool) {
        self.note_family(parent);
        self.edit_family(parent, |family| {
            family.created = family.created.wrapping_add(i32::from(created));
            family.child_changes = family.child_changes.wrapping_add(1);
            family.pzxid = zxid;
            family.child_went = 0;
        });
    }

    /// A child of `parent` has gone and the pzxid stays, as in ClickHouse Keeper. Who comes back with a watch is told all the
    /// same.
    pub fn lose_child(&mut self, parent: NodeId, zxid: i64) {
        self.note_family(parent);
        self.edit_family(parent, |family| {
            family.child_changes = family.child_changes.wrapping_add(1);
            let later = zxid.saturating_sub(family.pzxid).max(0);
            family.child_went = u32::try_from(later).unwrap_or(u32::MAX);
        });
    }

    /// A child of `parent` has other data, which ClickHouse Keeper counts there.
    pub fn count_child_change(&mut self, parent: NodeId) {
        self.note_family(parent);
        self.edit_family(parent, |family| family.child_changes = family.child_changes.wrapping_add(1));
    }

    /// See [`Family::child_went`].
    pub fn set_child_went(&mut self, id: NodeId, later: u32) {
        if self.arena.get(id).packed.family().child_went != later {
            self.note_family(id);
            self.edit_family(id, |family| family.child_went = later);
        }
    }

    /// Replaces a node's data and nothing else.
    pub fn replace_data(&mut self, id: NodeId, data: Option<&[u8]>) {
        if let Some(journal) = &mut self.journal {
            let packed = &mut self.arena.get_mut(id).packed;
            let (length, other) = (content_length(packed.data()), packed.with_data(data));
            journal.push(Undo::Data(id, std::mem::replace(packed, other)));
            self.count_data(length, content_length(data));
        } else {
            self.put_data(id, data);
        }
    }

    /// Replaces a node's ACL list and nothing else.
    pub fn replace_acl(&mut self, id: NodeId, acl: &[Acl]) {
        let acl = self.acls.acquire(acl);
        let before = self.swap_acl(id, acl);
        match &mut self.journal {
            Some(journal) => journal.push(Undo::Acl(id, before)),
            None => self.acls.release(before),
        }
    }

    fn note(&mut self, undo: impl FnOnce() -> Undo) {
        if let Some(journal) = &mut self.journal {
            journal.push(undo());
        }
    }

    fn note_family(&mut self, id: NodeId) {
        if self.journal.is_some() {
            let before = self.arena.get(id).packed.family();
            self.note(|| Undo::Family(id, before));
        }
    }

    fn free(&mut self, id: NodeId) {
        let node = self.arena.remove(id);
        self.acls.release(node.packed.acl());
    }

    fn put_data(&mut self, id: NodeId, data: Option<&[u8]>) {
        let packed = &mut self.arena.get_mut(id).packed;
        let before = content_length(packed.data());
        packed.set_data(data);
        self.count_data(before, content_length(data));
    }

    fn count_data(&mut self, before: u64, now: u64) {
        self.data_bytes = self.data_bytes.saturating_sub(before).saturating_add(now);
    }

    fn swap_acl(&mut self, id: NodeId, acl: AclId) -> AclId {
        let before = self.arena.get(id).packed.acl();
        self.edit(id, |packed| packed.set_acl(acl));
        before
    }

    /// Hangs a node into the tree, between its `previous` and its `next`.
    fn attach(&mut self, id: NodeId, path: &str) {
        self.index.insert(&mut self.arena, id);
        let node = self.arena.get(id);
        let (parent, previous, next, owner, hash) = (node.parent, node.previous, node.next, node.owner(), node.hash);
        self.data_bytes += node.data_length() as u64;
        self.path_bytes += path.len() as u64;
        self.edit_family(parent, |family| {
            family.children += 1;
            if previous == NodeId::NONE {
                family.first_child = id;
            }
            if next == NodeId::NONE {
                family.last_child = id;
            }
        });
        if previous != NodeId::NONE {
            self.arena.get_mut(previous).next = id;
        }
        if next != NodeId::NONE {
            self.arena.get_mut(next).previous = id;
        }
        if let Owner::Session(session) = owner {
            self.sessions.entry(session).or_default().insert((hash, id));
            self.ephemerals += 1;
        }
        if let Some(quota) = quota::path_of_limit(path) {
            self.quotas.insert(quota.into());
        }
        self.mark(id, path);
    }

    /// Takes a node out of the tree; it remembers its place.
    fn detach(&mut self, id: NodeId, path: &str) {
        self.unmark(id, path);
        if let Some(quota) = quota::path_of_limit(path) {
            self.quotas.remove(quota);
        }
        let node = self.arena.get(id);
        let (parent, previous, next, owner, hash) = (node.parent, node.previous, node.next, node.owner(), node.hash);
        self.data_bytes = self.data_bytes.saturating_sub(node.data_length() as u64);
        self.path_bytes = self.path_bytes.saturating_sub(path.len() as u64);
        if let Owner::Session(session) = owner
            && let Some(nodes) = self.sessions.get_mut(&session)
        {
            nodes.remove(&(hash, id));
            self.ephemerals = self.ephemerals.saturating_sub(1);
            if nodes.is_empty() {
                self.sessions.remove(&session);
            }
        }
        if previous != NodeId::NONE {
            self.arena.get_mut(previous).next = next;
        }
        if next != NodeId::NONE {
            self.arena.get_mut(next).previous = previous;
        }
        self.edit_family(parent, |family| {
            family.children = family.children.saturating_sub(1);
            if previous == NodeId::NONE {
                family.first_child = next;
            }
            if next == NodeId::NONE {
                family.last_child = previous;
            }
        });
        self.index.remove(&mut self.arena, id);
    }

    /// Changes the numbers and links of a node's children.
    fn edit_family(&mut self, id: NodeId, change: impl FnOnce(&mut Family)) {
        self.edit(id, |packed| {
            let mut family = packed.family();
            change(&mut family);
            packed.set_family(family);
        });
    }

    /// Changes a node in a way that may change when it goes by itself.
    fn edit(&mut self, id: NodeId, change: impl FnOnce(&mut Packed)) {
        if matches!(self.arena.get(id).owner(), Owner::Container | Owner::Ttl(_)) {
            let path = self.path_of(id);
            self.unmark(id, &path);
            change(&mut self.arena.get_mut(id).packed);
            self.mark(id, &path);
        } else {
            change(&mut self.arena.get_mut(id).packed);
        }
    }

    fn mark(&mut self, id: NodeId, path: &str) {
        if let Some(due_ms) = self.due_ms(id) {
            self.reaping.insert((due_ms, path.into()));
        }
    }

    fn unmark(&mut self, id: NodeId, path: &str) {
        if let Some(due_ms) = self.due_ms(id) {
            self.reaping.remove(&(due_ms, path.into()));
        }
    }

    /// When a node goes by itself, Unix milliseconds (0: as soon as somebody looks): a container
    /// that had children and has none, or never had one for long; a node with a TTL that has no
    /// children and no new data for longer than that.
    pub fn due_ms(&self, id: NodeId) -> Option<u64> {
        let node = self.arena.get(id);
        let owner = node.owner();
        if !matches!(owner, Owner::Container | Owner::Ttl(_)) {
            return None;
        }
        let Fields { change, family, .. } = node.packed.fields();
        if family.children > 0 {
            return None;
        }
        let after = |delay_ms: u64| (change.mtime as u64).saturating_add(delay_ms).saturating_add(1);
        match owner {
            Owner::Container if family.created > 0 => Some(0),
            Owner::Container if self.never_used_ms > 0 => Some(after(self.never_used_ms)),
            Owner::Ttl(ttl_ms) if ttl_ms > 0 => Some(after(ttl_ms)),
            _ => None,
        }
    }
}

fn content_length(data: Option<&[u8]>) -> u64 {
    data.map_or(0, <[u8]>::len) as u64
}
