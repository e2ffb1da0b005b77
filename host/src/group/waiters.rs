//! Who on this node waits for which entry.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::oneshot;

use super::state::Answer;
use crate::types::NodeId;

/// How a proposal ended, as far as this node can know.
#[derive(Debug)]
pub enum Delivered {
    /// The entry was applied here.
    Applied {
        /// Its index.
        index: u64,
        /// What it gave.
        answer: Answer,
    },
    /// It never reached a log. The leader is named where the refuser knows one.
    Refused(Option<NodeId>),
    /// It may or may not be in the log. Told only to those who can safely propose it again.
    Unknown,
}

#[derive(Debug)]
struct Waiter {
    retry_safe: bool,
    sender: oneshot::Sender<Delivered>,
}

/// The waiting proposals of one group on this node.
#[derive(Debug, Default)]
pub struct Waiters {
    inner: Mutex<(u64, BTreeMap<u64, Waiter>)>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Waiter>)> {
        // No code that can panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new waiter and its number. `retry_safe`: proposing the same again cannot apply it twice.
    pub fn register(&self, retry_safe: bool) -> (u64, oneshot::Receiver<Delivered>) {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.lock();
        inner.0 += 1;
        let number = inner.0;
        inner.1.insert(number, Waiter { retry_safe, sender });
        (number, receiver)
    }

    /// Forgets a waiter that gave up.
    pub fn forget(&self, number: u64) {
        self.lock().1.remove(&number);
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.lock().1.len()
    }

    /// The entry of `number` was applied.
    pub fn applied(&self, number: u64, index: u64, answer: Answer) {
        let waiter = self.lock().1.remove(&number);
        if let Some(waiter) = waiter {
            // A receiver that is gone has given up; nothing is lost by it.
            let _gone = waiter.sender.send(Delivered::Applied { index, answer });
        }
    }

    /// The proposal of `number` was refused before it reached a log.
    pub fn refused(&self, number: u64, leader: Option<NodeId>) {
        let waiter = self.lock().1.remove(&number);
        if let Some(waiter) = waiter {
            let _gone = waiter.sender.send(Delivered::Refused(leader));
        }
    }

    /// What became of the proposal of `number` is not known. Who cannot retry goes on waiting: it may
    /// still be applied.
    pub fn unknown(&self, number: u64) {
        let mut inner = self.lock();
        if inner.1.get(&number).is_some_and(|waiter| waiter.retry_safe)
            && let Some(waiter) = inner.1.remove(&number)
        {
            let _gone = waiter.sender.send(Delivered::Unknown);
        }
    }
}
