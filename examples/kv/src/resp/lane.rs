//! Units on their way to the state machine, many connections' in one batch: one lane for writes
//! (entries), one for reads (queries).
//!
//! Invariants:
//! * A connection has units in one batch at a time, and in their order; so its requests are done in
//!   their order although entries without a session may overtake each other.
//! * What was trapped with others is tried again alone, one after the other: nobody pays for a
//!   stranger's request, and order is kept.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Token;

/// A batch grows to about this many bytes; only a single unit may be larger.
const BATCH_BYTES: usize = 256 << 10;
/// And to this many units.
const BATCH_UNITS: usize = 4_096;

/// Units that go together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Its number, which comes back with the outcome.
    pub token: Token,
    /// The units, one behind the other.
    pub bytes: Vec<u8>,
    /// Whose each unit is, and where it ends.
    pub units: Vec<(ConnectionId, usize)>,
}

impl Batch {
    /// Each unit's connection and bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (ConnectionId, &[u8])> {
        let mut start = 0;
        self.units.iter().map(move |(connection, end)| {
            let piece = self.bytes.get(start..*end).unwrap_or_default();
            start = *end;
            (*connection, piece)
        })
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.units.len() >= BATCH_UNITS
    }
}

/// One way to the state machine.
#[derive(Debug)]
pub struct Lane {
    /// How many batches may be under way. What comes meanwhile gathers, so that the next batch is
    /// larger.
    limit: usize,
    open: Batch,
    full: VecDeque<Batch>,
    /// Single units to be done one after the other, and whether one is under way.
    alone: VecDeque<Batch>,
    alone_under_way: Option<Token>,
    under_way: BTreeMap<Token, Batch>,
}

impl Lane {
    /// A lane for so many batches at once, which takes its first number from `tokens`.
    pub fn new(limit: usize, tokens: &mut Token) -> Self {
        Self {
            limit,
            open: Batch { token: next(tokens), ..Batch::default() },
            full: VecDeque::new(),
            alone: VecDeque::new(),
            alone_under_way: None,
            under_way: BTreeMap::new(),
        }
    }

    /// The batch that still takes units, if a connection with units in batch `token` may add more.
    pub fn takes_more(&self, token: Token) -> bool {
        self.open.token == token && !self.open.is_full()
    }

    /// Adds a unit to the open batch; `write` appends it. Gives the batch's number.
    pub fn add(&mut self, connection: ConnectionId, tokens: &mut Token, write: impl FnOnce(&mut Vec<u8>)) -> Token {
        if self.open.is_full() {
            let open = Batch { token: next(tokens), ..Batch::default() };
            self.full.push_back(std::mem::replace(&mut self.open, open));
        }
        write(&mut self.open.bytes);
        self.open.units.push((connection, self.open.bytes.len()));
        self.open.token
    }

    /// The next batch that may be sent. It counts as under way until [`take`](Self::take).
    pub fn send(&mut self, tokens: &mut Token) -> Option<&Batch> {
        let batch = if let Some(batch) = self.alone.pop_front_if(|_| self.alone_under_way.is_none()) {
            self.alone_under_way = Some(batch.token);
            batch
        } else if self.under_way.len() >= self.limit {
            return None;
        } else if let Some(batch) = self.full.pop_front() {
            batch
        } else if self.open.units.is_empty() {
            return None;
        } else {
            std::mem::replace(&mut self.open, Batch { token: next(tokens), ..Batch::default() })
        };
        let token = batch.token;
        Some(self.under_way.entry(token).or_insert(batch))
    }

    /// Takes a batch whose outcome has come.
    pub fn take(&mut self, token: Token) -> Option<Batch> {
        if self.alone_under_way == Some(token) {
            self.alone_under_way = None;
        }
        self.under_way.remove(&token)
    }

    /// Puts units that were not done back, before all others.
    pub fn put_back<'a>(&mut self, pieces: impl Iterator<Item = (ConnectionId, &'a [u8])>, tokens: &mut Token) {
        let mut batch = Batch { token: next(tokens), ..Batch::default() };
        for (connection, piece) in pieces {
            batch.bytes.extend_from_slice(piece);
            batch.units.push((connection, batch.bytes.len()));
        }
        self.full.push_front(batch);
    }

    /// Lets the units of a batch be done one by one.
    pub fn separate(&mut self, batch: &Batch, tokens: &mut Token) {
        for (connection, piece) in batch.pieces() {
            let units = vec![(connection, piece.len())];
            self.alone.push_back(Batch { token: next(tokens), bytes: piece.to_vec(), units });
        }
    }
}

/// A number that was not there before.
pub fn next(tokens: &mut Token) -> Token {
    *tokens = tokens.wrapping_add(1);
    *tokens
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_comes_while_batches_are_under_way_gathers() {
        let mut tokens = 0;
        let mut lane = Lane::new(1, &mut tokens);
        assert!(lane.send(&mut tokens).is_none());
        let first = lane.add(1, &mut tokens, |out| out.push(b'a'));
        assert_eq!(lane.send(&mut tokens).unwrap().token, first);
        assert!(!lane.takes_more(first));
        let second = lane.add(2, &mut tokens, |out| out.push(b'b'));
        assert_eq!(lane.add(3, &mut tokens, |out| out.push(b'c')), second);
        assert!(lane.takes_more(second));
        assert!(lane.send(&mut tokens).is_none());
        lane.take(first).unwrap();
        let batch = lane.send(&mut tokens).unwrap();
        assert_eq!(batch.pieces().collect::<Vec<_>>(), [(2, &b"b"[..]), (3, &b"c"[..])]);
    }

    #[test]
    fn what_trapped_is_done_again_one_by_one() {
        let mut tokens = 0;
        let mut lane = Lane::new(1, &mut tokens);
        for piece in [b'a', b'b'] {
            lane.add(1, &mut tokens, |out| out.push(piece));
        }
        let token = lane.send(&mut tokens).unwrap().token;
        let batch = lane.take(token).unwrap();
        lane.separate(&batch, &mut tokens);
        let first = lane.send(&mut tokens).unwrap();
        assert_eq!((first.bytes.as_slice(), first.units.len()), (&b"a"[..], 1));
        let first = first.token;
        assert!(lane.send(&mut tokens).is_none(), "not before the first is done");
        lane.take(first);
        assert_eq!(lane.send(&mut tokens).unwrap().bytes, b"b");
    }
}
