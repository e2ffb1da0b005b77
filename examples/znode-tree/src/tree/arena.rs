//! Where nodes lie: chunks that never move, so that a growing tree is never copied.
//!
//! Invariants:
//! * An id that was given out and not freed names one node, at one place.
//! * Ids are this replica's own: they depend on what was freed before, which a replica made from a
//!   snapshot does not know. Nothing that leaves the tree may depend on them.

use crate::tree::node::Node;

/// Nodes in a chunk.
const CHUNK: usize = 1 << 10;

/// A node's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// No node.
    pub const NONE: Self = Self(u32::MAX);

    /// The id of this number.
    pub(super) fn of(number: u32) -> Self {
        Self(number)
    }

    /// As a number.
    pub(super) fn number(self) -> u32 {
        self.0
    }

    /// The id, unless it is none.
    pub fn some(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

impl Default for NodeId {
    fn default() -> Self {
        Self::NONE
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Arena {
    chunks: Vec<Vec<Node>>,
    /// The place that was freed last; its `next` is the one before.
    free: NodeId,
}

impl Arena {
    /// Puts a node in.
    pub fn insert(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.free.some() {
            self.free = std::mem::replace(self.get_mut(id), node).next;
            return id;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let full = self.chunks.len().saturating_sub(1) * CHUNK;
        let Some(chunk) = self.chunks.last_mut() else { dangling() };
        let id = u32::try_from(full + chunk.len()).unwrap_or(u32::MAX);
        chunk.push(node);
        NodeId(id)
    }

    /// Takes a node out.
    pub fn remove(&mut self, id: NodeId) -> Node {
        let freed = Node { next: self.free, ..Node::default() };
        self.free = id;
        std::mem::replace(self.get_mut(id), freed)
    }

    /// A node.
    pub fn get(&self, id: NodeId) -> &Node {
        let place = id.0 as usize;
        match self.chunks.get(place / CHUNK).and_then(|chunk| chunk.get(place % CHUNK)) {
            Some(node) => node,
            None => dangling(),
        }
    }

    /// A node, to change.
    pub fn get_mut(&mut self, id: NodeId) -> &mut Node {
        let place = id.0 as usize;
        match self.chunks.get_mut(place / CHUNK).and_then(|chunk| chunk.get_mut(place % CHUNK)) {
            Some(node) => node,
            None => dangling(),
        }
    }
}

/// An id of no node would be a bug of this crate, and the entry that meets it is rolled back.
#[cold]
fn dangling() -> ! {
    panic!("a node id that names no node: a bug in the tree")
}
