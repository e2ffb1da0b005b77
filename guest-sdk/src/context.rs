//! What a call brings along (index, time, seed, session) and what it may ask of the host (events,
//! timers).

use serde::Serialize;

use crate::random::Random;
use crate::reject;
use crate::reject::Reject;

/// The bytes before every payload: what the host knows of the entry. See `docs/abi.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The entry's index in the group's log.
    pub index: u64,
    /// The entry's time, Unix milliseconds, stamped by the leader; never goes back.
    pub time_ms: u64,
    /// 128 random bits of the entry.
    pub seed: (u64, u64),
    /// The client session the command came in, or that ended; 0 for none.
    pub session: u64,
}

impl Header {
    /// The length of the header in ABI 1, bytes.
    pub const LENGTH: usize = 48;

    /// Splits a call's argument into header and payload. A longer header, from a newer host, is
    /// read as far as this SDK knows it.
    pub fn split(argument: &[u8]) -> Result<(Self, &[u8]), Reject> {
        let length = argument.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
        let (header, payload) = match argument.split_at_checked(length) {
            Some(parts) if length >= Self::LENGTH => parts,
            _ => {
                let found = argument.len();
                return Err(reject!("the host's call header is {length} bytes in {found}; this module needs 48"));
            }
        };
        let word = |at: usize| {
            let bytes = header.get(at..).and_then(|rest| rest.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        Ok((Self { index: word(8), time_ms: word(16), seed: (word(24), word(32)), session: word(40) }, payload))
    }

    /// The header's bytes, as the host writes them.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let words = [Self::LENGTH as u64, self.index, self.time_ms, self.seed.0, self.seed.1, self.session];
        let mut bytes = [0; Self::LENGTH];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// What the host does for a call that changes state. The SDK implements it over the ABI's imports
/// and, for native tests and benches, over plain vectors ([`Effects`]).
pub trait Host {
    /// An event of this entry.
    fn emit(&mut self, event: &[u8]);
    /// Sets or moves timer `id`.
    fn set_timer(&mut self, id: u64, at_ms: u64);
    /// Forgets timer `id`.
    fn clear_timer(&mut self, id: u64);
}

/// A [`Host`] that writes down what it is asked: for tests and benches that call a state machine as
/// a plain Rust type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The events, in order.
    pub events: Vec<Vec<u8>>,
    /// `(id, Some(at_ms))` for a timer set, `(id, None)` for one cleared, in order.
    pub timers: Vec<(u64, Option<u64>)>,
}

impl Effects {
    /// Whether nothing was asked.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.timers.is_empty()
    }
}

impl Host for Effects {
    fn emit(&mut self, event: &[u8]) {
        self.events.push(event.to_vec());
    }

    fn set_timer(&mut self, id: u64, at_ms: u64) {
        self.timers.push((id, Some(at_ms)));
    }

    fn clear_timer(&mut self, id: u64) {
        self.timers.push((id, None));
    }
}

/// The entry being applied, and what it may ask of the host.
///
/// All that a state machine may learn of the world is here, and it is equal on every replica and at
/// every replay: there is no other clock and no other randomness.
pub struct Context<'host> {
    header: Header,
    random: Option<Random>,
    host: &'host mut dyn Host,
}

impl<'host> Context<'host> {
    /// A context for calling a state machine as a plain Rust type, outside of a module.
    ///
    /// ```
    /// use statehouse_sdk::{Context, Effects, Header};
    /// let mut effects = Effects::default();
    /// let mut ctx = Context::new(Header { index: 7, time_ms: 1_000, ..Header::default() }, &mut effects);
    /// ctx.emit(b"hello");
    /// assert_eq!(ctx.index(), 7);
    /// assert_eq!(effects.events, [b"hello"]);
    /// ```
    pub fn new(header: Header, host: &'host mut dyn Host) -> Self {
        Self { header, random: None, host }
    }

    /// The entry's index in the group's log: unique, growing, with gaps (other kinds of entries).
    pub fn index(&self) -> u64 {
        self.header.index
    }

    /// The entry's time, Unix milliseconds: the leader's clock when it proposed, never going back.
    pub fn time_ms(&self) -> u64 {
        self.header.time_ms
    }

    /// The client session that sent the command (or whose end this is), if any.
    pub fn session(&self) -> Option<u64> {
        (self.header.session != 0).then_some(self.header.session)
    }

    /// 64 random bits. Equal on all replicas and known to whoever reads the log: good for ids and
    /// jitter, **never for secrets**.
    pub fn random_u64(&mut self) -> u64 {
        self.random().next_u64()
    }

    /// A random number below `bound`, each equally likely; 0 when `bound` is 0.
    pub fn random_below(&mut self, bound: u64) -> u64 {
        self.random().below(bound)
    }

    /// Fills `bytes` with random ones.
    pub fn fill_random(&mut self, bytes: &mut [u8]) {
        self.random().fill(bytes);
    }

    fn random(&mut self) -> &mut Random {
        let (low, high) = self.header.seed;
        self.random.get_or_insert_with(|| Random::new(low, high))
    }

    /// Tells an event to whoever listens to the group. Events of an entry keep their order. Those of
    /// [`init`](crate::StateMachine::init) reach nobody: the group has no entries yet.
    pub fn emit(&mut self, event: impl AsRef<[u8]>) {
        self.host.emit(event.as_ref());
    }

    /// [`emit`](Self::emit)s the value as JSON.
    ///
    /// # Panics
    /// If JSON cannot hold the value (a map whose keys are not text), which rolls the entry back.
    pub fn emit_json(&mut self, event: &impl Serialize) {
        match serde_json::to_vec(event) {
            Ok(bytes) => self.host.emit(&bytes),
            Err(error) => panic!("an event that JSON cannot hold: {error}"),
        }
    }

    /// Sets timer `id`, or moves it: [`on_timer`](crate::StateMachine::on_timer) is called with
    /// it once, by an entry whose time is `at_ms` (Unix milliseconds) or later. A time already past
    /// fires as soon as the leader can propose. Timers survive restarts and leader changes.
    pub fn set_timer(&mut self, id: u64, at_ms: u64) {
        self.host.set_timer(id, at_ms);
    }

    /// [`set_timer`](Self::set_timer), `delay_ms` after this entry's time.
    pub fn set_timer_after(&mut self, id: u64, delay_ms: u64) {
        self.host.set_timer(id, self.header.time_ms.saturating_add(delay_ms));
    }

    /// Forgets timer `id`; nothing happens if it is not set.
    pub fn clear_timer(&mut self, id: u64) {
        self.host.clear_timer(id);
    }
}

/// What a query may know: the last applied entry's index and time.
#[derive(Clone, Copy, Debug)]
pub struct QueryContext {
    header: Header,
}

impl QueryContext {
    /// A context for querying a state machine as a plain Rust type.
    pub fn new(header: Header) -> Self {
        Self { header }
    }

    /// The index of the last entry applied before this query.
    pub fn index(&self) -> u64 {
        self.header.index
    }

    /// The time of the last entry applied before this query, Unix milliseconds. **Not now**: in an
    /// idle group it stands still.
    pub fn time_ms(&self) -> u64 {
        self.header.time_ms
    }

    /// The client session that asks, if any.
    pub fn session(&self) -> Option<u64> {
        (self.header.session != 0).then_some(self.header.session)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_header_is_the_bytes_the_abi_says() {
        let header = Header { index: 1, time_ms: 2, seed: (3, 4), session: 5 };
        let bytes = header.to_bytes();
        let mut expected = [0_u8; 48];
        for (at, byte) in [(0, 48), (8, 1), (16, 2), (24, 3), (32, 4), (40, 5)] {
            expected[at] = byte;
        }
        assert_eq!(bytes, expected);
        assert_eq!(Header::split(&bytes).unwrap(), (header, &[][..]));
    }

    #[test]
    fn a_newer_hosts_longer_header_is_skipped_whole() {
        let header = Header { index: 9, ..Header::default() };
        let mut argument = header.to_bytes().to_vec();
        argument[0] = 56;
        argument.extend_from_slice(b"new word");
        argument.extend_from_slice(b"payload");
        assert_eq!(Header::split(&argument).unwrap(), (header, &b"payload"[..]));
    }

    #[test]
    fn a_header_that_is_short_or_longer_than_its_buffer_is_refused() {
        assert!(Header::split(&[]).is_err());
        let mut argument = Header::default().to_bytes();
        argument[0] = 40;
        assert!(Header::split(&argument).is_err());
        argument[0] = 49;
        assert!(Header::split(&argument).unwrap_err().text().contains("49 bytes in 48"));
    }
}
