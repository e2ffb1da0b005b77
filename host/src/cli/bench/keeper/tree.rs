//! The nodes that the load goes to: `PREFIX/hot`, `PREFIX/pool` with its keys, `PREFIX/churn`.

use std::io::Write;

use super::random::Random;
use super::workload::Place;
use super::workload::Span;

/// How the tree is laid out. Paths are put together when they are needed: a million keys take no memory here.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Absolute, without a slash at the end.
    pub prefix: String,
    pub keys: u32,
    pub name_bytes: Span,
}

/// A node that is there from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Hot,
    Pool,
    Churn,
    Key(u32),
}

impl Tree {
    pub(super) fn put_path(&self, out: &mut Vec<u8>, node: Node) {
        out.extend_from_slice(self.prefix.as_bytes());
        match node {
            Node::Hot => out.extend_from_slice(b"/hot"),
            Node::Pool => out.extend_from_slice(b"/pool"),
            Node::Churn => out.extend_from_slice(b"/churn"),
            Node::Key(number) => {
                // Writing to memory does not fail.
                let _ = write!(out, "/pool/key-{number:08}");
            }
        }
    }

    pub(super) fn path(&self, node: Node) -> String {
        let mut out = Vec::new();
        self.put_path(&mut out, node);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// The path of a node that the load creates: its name follows from a number.
    pub(super) fn put_created(&self, out: &mut Vec<u8>, parent: Node, name: u64) {
        const LETTERS: [u8; 32] = *b"abcdefghijklmnopqrstuvwxyz234567";
        self.put_path(out, parent);
        out.push(b'/');
        let mut random = Random::new(name);
        let mut bits = 0_u64;
        for position in 0..random.within(self.name_bytes) {
            if position % 12 == 0 {
                bits = random.next();
            }
            out.push(LETTERS.get((bits % 32) as usize).copied().unwrap_or(b'a'));
            bits /= 32;
        }
    }
}

/// Places to choose from, each as likely as every other.
#[derive(Clone, Debug)]
pub(super) struct Places {
    places: Vec<Place>,
    keys: u32,
    count: u64,
}

impl Places {
    pub(super) fn new(places: &[Place], keys: u32) -> Self {
        let count = places.iter().map(|place| if *place == Place::Keys { u64::from(keys) } else { 1 }).sum();
        Self { places: places.to_vec(), keys, count }
    }

    pub(super) fn pick(&self, random: &mut Random) -> Node {
        let mut rank = random.below(self.count);
        for place in &self.places {
            let node = match place {
                Place::Hot => Node::Hot,
                Place::Pool => Node::Pool,
                Place::Churn => Node::Churn,
                Place::Keys if rank < u64::from(self.keys) => return Node::Key(rank as u32),
                Place::Keys => {
                    rank -= u64::from(self.keys);
                    continue;
                }
            };
            if rank == 0 {
                return node;
            }
            rank -= 1;
        }
        Node::Hot
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::collections::BTreeMap;

    use super::*;

    fn tree() -> Tree {
        Tree { prefix: "/bench".into(), keys: 3, name_bytes: Span { least: 8, most: 16 } }
    }

    #[test]
    fn paths_are_where_the_tree_says() {
        let tree = tree();
        assert_eq!(
            [Node::Hot, Node::Pool, Node::Churn, Node::Key(17)].map(|node| tree.path(node)),
            ["/bench/hot", "/bench/pool", "/bench/churn", "/bench/pool/key-00000017"]
        );
    }

    #[test]
    fn a_created_name_follows_from_its_number_and_has_a_length_that_was_asked_for() {
        let tree = tree();
        let mut lengths = BTreeMap::new();
        for number in 0..1000 {
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            tree.put_created(&mut once, Node::Churn, number);
            tree.put_created(&mut twice, Node::Churn, number);
            assert_eq!(once, twice);
            let name = String::from_utf8(once).unwrap().strip_prefix("/bench/churn/").unwrap().to_owned();
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
            *lengths.entry(name.len()).or_insert(0) += 1;
        }
        assert_eq!(lengths.keys().copied().collect::<Vec<_>>(), (8..=16).collect::<Vec<_>>());
    }

    #[test]
    fn every_key_is_a_place_of_its_own() {
        let places = Places::new(&[Place::Hot, Place::Keys, Place::Churn], 3);
        let mut random = Random::new(1);
        let mut seen = BTreeMap::new();
        for _ in 0..5000 {
            *seen.entry(format!("{:?}", places.pick(&mut random))).or_insert(0) += 1;
        }
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["Churn", "Hot", "Key(0)", "Key(1)", "Key(2)"]);
        assert!(seen.values().all(|count| (850..1150).contains(count)), "{seen:?}");
    }
}
