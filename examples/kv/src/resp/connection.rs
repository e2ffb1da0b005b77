//! One client's connection.
//!
//! Invariants:
//! * What is not read yet stays in `input` as it came: that is the queue of requests, and there is no
//!   other.
//! * `slots` are the replies still owed, in order; while there are any, nothing is sent past them. `way`
//!   is `Some` exactly while one of them waits for the state machine.
//! * `ready_bytes` is what the `Slot::Ready` among them hold, as of the last request that was begun.

use std::collections::VecDeque;

use statehouse_sdk::adapter::Token;

use super::channels::Subscriptions;
use super::op::Stamp;
use super::parse::Parser;
use super::reply::Protocol;
use super::reply::Reply;

/// The way to the state machine that a connection's units are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In an entry.
    Write,
    /// In a query.
    Read,
}

/// What becomes of an operation's frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is the reply.
    Plain,
    /// It is the number of a message: the reply is how many heard it here.
    Publish,
    /// Where the scan goes on becomes a cursor.
    Scan,
    /// These keys are watched from now on.
    Watch(Box<[Vec<u8>]>),
    /// Figures for `INFO`, of these sections.
    Info(Box<[Vec<u8>]>),
}

/// A reply that is owed.
#[derive(Debug)]
pub enum Slot {
    /// Ready, behind one that is not.
    Ready(Vec<u8>),
    /// Comes with the next frame.
    Unit(Kind),
    /// Comes with the next frame, as an array.
    Transaction(Vec<Item>),
}

/// One reply of a transaction.
#[derive(Debug)]
pub enum Item {
    /// Known since the request was queued.
    Ready(Vec<u8>),
    /// Of an operation.
    Op(Kind),
}

/// A transaction that is being queued.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Its replies.
    pub items: Vec<Item>,
    /// Its operations, in bytes.
    pub ops: Vec<u8>,
    /// How many operations.
    pub count: usize,
    /// Whether all of them only read.
    pub only_reads: bool,
    /// How many keys they may change.
    pub keys: usize,
    /// How many bytes the replies that are known take.
    pub ready_bytes: usize,
    /// Whether a request could not be queued: nothing will be done.
    pub is_broken: bool,
}

/// A key that is watched.
#[derive(Debug)]
pub struct Watched {
    /// The key.
    pub key: Vec<u8>,
    /// As it was.
    pub version: u64,
    /// As it was.
    pub expires_at_ms: u64,
}

impl Watched {
    /// As the state machine is told.
    pub fn stamp(&self) -> Stamp<'_> {
        Stamp { key: &self.key, version: self.version, expires_at_ms: self.expires_at_ms }
    }
}

/// A client's connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// From where.
    pub peer: String,
    /// Bytes that came and are not done with.
    pub input: Vec<u8>,
    /// Where their reader stands.
    pub parser: Parser,
    /// What is spoken.
    pub protocol: Protocol,
    /// The replies owed, in order.
    pub slots: VecDeque<Slot>,
    /// Bytes of those that are ready.
    pub ready_bytes: usize,
    /// How many of these are the last one's, which may still grow.
    pub last_ready_bytes: usize,
    /// Where its units are: the way and the batch.
    pub way: Option<(Way, Token)>,
    /// The next request cannot be begun before all replies that are owed were sent.
    pub is_stopped: bool,
    /// The host reads nothing more from it for now.
    pub is_held: bool,
    /// It is closed as soon as nothing is owed.
    pub is_closing: bool,
    /// Between `MULTI` and `EXEC`.
    pub transaction: Option<Box<Transaction>>,
    /// What `EXEC` depends on.
    pub watched: Vec<Watched>,
    /// What it listens to.
    pub subscriptions: Option<Box<Subscriptions>>,
    /// `CLIENT SETNAME`
    pub name: Vec<u8>,
    /// `CLIENT SETINFO`: the library's name and version.
    pub library: (Vec<u8>, Vec<u8>),
}

impl Connection {
    /// Where an immediate reply goes: to `out`, or behind those that are owed.
    pub fn reply<'a>(&'a mut self, out: &'a mut Vec<u8>) -> Reply<'a> {
        let protocol = self.protocol;
        if self.slots.is_empty() {
            return Reply::new(out, protocol);
        }
        if !matches!(self.slots.back(), Some(Slot::Ready(_))) {
            self.last_ready_bytes = 0;
            self.slots.push_back(Slot::Ready(Vec::new()));
        }
        match self.slots.back_mut() {
            Some(Slot::Ready(bytes)) => Reply::new(bytes, protocol),
            _ => Reply::new(out, protocol),
        }
    }

    /// Brings the count of ready bytes up to date, after a request whose reply may be among them.
    pub fn count_ready(&mut self) {
        if let Some(Slot::Ready(bytes)) = self.slots.back() {
            self.ready_bytes += bytes.len().saturating_sub(self.last_ready_bytes);
            self.last_ready_bytes = bytes.len();
        }
    }

    /// Moves what is ready and first in line to `out`.
    pub fn drain(&mut self, out: &mut Vec<u8>) {
        while let Some(Slot::Ready(bytes)) = self.slots.pop_front_if(|slot| matches!(slot, Slot::Ready(_))) {
            self.ready_bytes = self.ready_bytes.saturating_sub(bytes.len());
            out.extend_from_slice(&bytes);
        }
        if self.slots.is_empty() {
            self.ready_bytes = 0;
            self.way = None;
            self.is_stopped = false;
        }
    }

    /// Whether it listens to channels and speaks RESP2, in which messages cannot be told from replies:
    /// then little else is allowed.
    pub fn is_listening(&self) -> bool {
        self.protocol == Protocol::Resp2 && self.subscriptions.as_ref().is_some_and(|own| !own.is_empty())
    }

    /// Back to how it began, but for its subscriptions.
    pub fn reset(&mut self) {
        self.transaction = None;
        self.watched = Vec::new();
        self.protocol = Protocol::Resp2;
        self.name = Vec::new();
    }
}
