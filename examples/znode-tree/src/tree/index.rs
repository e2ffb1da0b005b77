//! From the hash of a path to its node: chains through the nodes themselves, and a table of their
//! heads that grows by one chain at a time (linear hashing), so that no single create pays for
//! hashing a million nodes again and the table is never there twice.
//!
//! Invariants:
//! * With `n` chains, `2^k <= n < 2^(k+1)`, a hash `h` is in chain `h mod 2^(k+1)` if that is below
//!   `n`, else in chain `h mod 2^k`.
//! * There is a chain for each node at least: a chain is two nodes long on average, and a lookup
//!   compares one path, since chains are searched by hash first.
//! * The table does not shrink: what was room once will be again.

use crate::tree::arena::Arena;
use crate::tree::arena::NodeId;

/// Heads in a chunk; a power of two.
const CHUNK: usize = 1 << 12;

/// The chains' heads.
#[derive(Debug, Default)]
pub struct Index {
    heads: Vec<Vec<NodeId>>,
    chains: usize,
    nodes: usize,
}

impl Index {
    /// The first node in the chain of `hash`.
    pub fn first(&self, hash: u32) -> NodeId {
        match self.chain_of(hash) {
            Some(chain) => self.head(chain),
            None => NodeId::NONE,
        }
    }

    /// How many nodes are in.
    pub fn node_count(&self) -> usize {
        self.nodes
    }

    /// Puts a node in, by its hash.
    pub fn insert(&mut self, arena: &mut Arena, id: NodeId) {
        self.nodes += 1;
        if self.nodes > self.chains {
            self.grow(arena);
        }
        self.link(arena, id);
    }

    /// Takes a node out that is in.
    pub fn remove(&mut self, arena: &mut Arena, id: NodeId) {
        let (hash, next) = (arena.get(id).hash, arena.get(id).next_in_chain);
        let Some(chain) = self.chain_of(hash) else { return };
        let mut at = self.head(chain);
        if at == id {
            self.set_head(chain, next);
        } else {
            // A chain that ends without it would be a bug, which `Arena::get` answers.
            while arena.get(at).next_in_chain != id {
                at = arena.get(at).next_in_chain;
            }
            arena.get_mut(at).next_in_chain = next;
        }
        arena.get_mut(id).next_in_chain = NodeId::NONE;
        self.nodes = self.nodes.saturating_sub(1);
    }

    fn chain_of(&self, hash: u32) -> Option<usize> {
        let low = 1_usize << self.chains.checked_ilog2()?;
        let chain = hash as usize & (low * 2 - 1);
        Some(if chain < self.chains { chain } else { chain & (low - 1) })
    }

    /// Adds a chain, and moves there what belongs there from the chain that has held it.
    fn grow(&mut self, arena: &mut Arena) {
        let new = self.chains;
        if new.is_multiple_of(CHUNK) {
            self.heads.push(Vec::with_capacity(CHUNK.min(new.max(16))));
        }
        if let Some(chunk) = self.heads.last_mut() {
            chunk.push(NodeId::NONE);
        }
        self.chains = new + 1;
        let Some(bit) = new.checked_ilog2() else { return };
        let old = new & !(1 << bit);
        // Only links that change are written: nodes lie all over the memory, and the host pays for each
        // page of it that an entry has written to.
        let (mut stays, mut moves) = (NodeId::NONE, NodeId::NONE);
        let mut at = self.head(old);
        while let Some(id) = at.some() {
            let node = arena.get(id);
            at = node.next_in_chain;
            let (chain, last) = match self.chain_of(node.hash) == Some(new) {
                true => (new, &mut moves),
                false => (old, &mut stays),
            };
            let before = std::mem::replace(last, id);
            self.join(arena, chain, before, id);
        }
        self.join(arena, old, stays, NodeId::NONE);
        self.join(arena, new, moves, NodeId::NONE);
    }

    /// Makes `next` follow `before` in a chain (be its head if that is none).
    fn join(&mut self, arena: &mut Arena, chain: usize, before: NodeId, next: NodeId) {
        match before.some() {
            None if self.head(chain) != next => self.set_head(chain, next),
            Some(before) if arena.get(before).next_in_chain != next => arena.get_mut(before).next_in_chain = next,
            _ => {}
        }
    }

    fn link(&mut self, arena: &mut Arena, id: NodeId) {
        let node = arena.get_mut(id);
        if let Some(chain) = self.chain_of(node.hash) {
            node.next_in_chain = self.head(chain);
            self.set_head(chain, id);
        }
    }

    fn head(&self, chain: usize) -> NodeId {
        self.heads.get(chain / CHUNK).and_then(|chunk| chunk.get(chain % CHUNK)).copied().unwrap_or(NodeId::NONE)
    }

    fn set_head(&mut self, chain: usize, id: NodeId) {
        if let Some(head) = self.heads.get_mut(chain / CHUNK).and_then(|chunk| chunk.get_mut(chain % CHUNK)) {
            *head = id;
        }
    }
}

/// A path's hash. `seed` is the group's own (drawn when it was made), so that nobody who has not
/// read its log can make paths that fall into one chain.
pub fn hash(seed: u64, path: &[u8]) -> u32 {
    (digest(seed, path) >> 32) as u32
}

/// 64 bits of any bytes, by which two texts that differ are told apart by whoever does not know the seed.
pub fn digest(seed: u64, bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state = seed ^ (bytes.len() as u64).wrapping_mul(ODD);
    let mut mix = |word: u64| {
        state = (state ^ word).wrapping_mul(ODD);
        state ^= state >> 29;
    };
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        mix(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    mix(u64::from_le_bytes(last));
    mix(seed.rotate_left(32));
    state
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::tree::node::Node;

    fn chain_length(index: &Index, arena: &Arena, hash: u32) -> usize {
        let mut at = index.first(hash);
        let mut length = 0;
        while let Some(id) = at.some() {
            length += 1;
            at = arena.get(id).next_in_chain;
        }
        length
    }

    fn holds(index: &Index, arena: &Arena, id: NodeId) -> bool {
        let mut at = index.first(arena.get(id).hash);
        while let Some(found) = at.some() {
            if found == id {
                return true;
            }
            at = arena.get(found).next_in_chain;
        }
        false
    }

    #[test]
    fn every_node_is_found_while_the_table_grows_and_gone_when_removed() {
        let (mut index, mut arena) = (Index::default(), Arena::default());
        let mut ids = Vec::new();
        for number in 0..10_000_u32 {
            let hash = hash(7, format!("/a/b/{number:010}").as_bytes());
            let id = arena.insert(Node { hash, ..Node::default() });
            index.insert(&mut arena, id);
            ids.push(id);
            if number.is_power_of_two() {
                assert!(ids.iter().all(|id| holds(&index, &arena, *id)), "{number}");
            }
        }
        for pair in ids.chunks(2) {
            index.remove(&mut arena, pair[0]);
        }
        assert_eq!(index.node_count(), 5_000);
        for pair in ids.chunks(2) {
            assert!(!holds(&index, &arena, pair[0]) && holds(&index, &arena, pair[1]));
        }
    }

    #[test]
    fn paths_that_differ_little_are_spread_well() {
        let (mut index, mut arena) = (Index::default(), Arena::default());
        for number in 0..50_000_u32 {
            let hash = hash(0, format!("/clickhouse/tables/01/parts/all_{number}_{number}_0").as_bytes());
            let id = arena.insert(Node { hash, ..Node::default() });
            index.insert(&mut arena, id);
        }
        let longest = (0..65_536).map(|hash| chain_length(&index, &arena, hash)).max().unwrap();
        assert!(longest < 14, "{longest}");
    }
}
