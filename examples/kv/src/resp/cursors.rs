//! What a `SCAN`'s cursor stands for: the key to go on with. So a scan goes on at its place whatever
//! is set and deleted meanwhile, and returns every key that is there throughout.
//!
//! A number of 64 bits holds no key, so the keys are kept here: on this node, as long as the adapter
//! lives, the last `CURSORS_MAX` of them. A cursor that is not known any more is an error, since a
//! scan that silently began again might never end.

use std::collections::BTreeMap;
use std::collections::VecDeque;

/// How many cursors are kept, and how many bytes of keys.
const CURSORS_MAX: usize = 4_096;
const BYTES_MAX: usize = 4 << 20;

/// The cursors this node gave out.
#[derive(Debug, Default)]
pub struct Cursors {
    keys: BTreeMap<u64, Vec<u8>>,
    /// From the oldest to the newest.
    order: VecDeque<u64>,
    bytes: usize,
}

impl Cursors {
    /// A cursor for going on with `key`. `random`: unlike a count, it is not met again after a restart
    /// or on another node, where it would stand for another key.
    pub fn add(&mut self, key: &[u8], random: u64) -> u64 {
        // Clients read cursors as signed numbers, or as doubles.
        let cursor = (random >> 12).max(1);
        if self.keys.insert(cursor, key.to_vec()).is_none() {
            self.order.push_back(cursor);
            self.bytes += key.len();
        }
        while self.order.len() > CURSORS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(self.keys.remove(&oldest).map_or(0, |key| key.len()));
        }
        cursor
    }

    /// The key to go on with; the empty one, the first, for 0.
    pub fn get(&self, cursor: u64) -> Option<&[u8]> {
        if cursor == 0 { Some(&[]) } else { self.keys.get(&cursor).map(Vec::as_slice) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_cursors_are_forgotten() {
        let mut cursors = Cursors::default();
        let first = cursors.add(b"a", 1 << 20);
        assert_eq!(cursors.get(first), Some(&b"a"[..]));
        for random in 2..=CURSORS_MAX as u64 + 1 {
            cursors.add(b"b", random << 20);
        }
        assert_eq!(cursors.get(first), None);
        assert_eq!(cursors.get(0), Some(&b""[..]));
        assert!(cursors.keys.len() == CURSORS_MAX && cursors.order.len() == CURSORS_MAX);
    }
}
