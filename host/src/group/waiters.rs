//! Who on this node waits for which entry.
//!
//! Invariants:
//! - A proposal is sent with a term, and no leader of another term puts it into its log. So once an entry of a
//!   later term is applied here and the proposal was not, it never will be: the first entry that a leader
//!   of that later term committed settled everything before it. Then it is refused, and can be proposed again.
//! - An installed snapshot may contain the effect of anything that waited: nothing that waits then is refused.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use std::sync::Arc;

use tokio::sync::oneshot;

use super::inbox::Inbox;
use super::inbox::Note;
use super::inbox::Ticket;
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
    /// It may or may not have been applied, and this node will not learn of it.
    Unknown,
}

#[derive(Debug)]
struct Waiter {
    retry_safe: bool,
    /// The term it was sent with, once it was.
    term: Option<u64>,
    to: To,
}

/// Who is told.
#[derive(Debug)]
enum To {
    Caller(oneshot::Sender<Delivered>),
    Inbox(Arc<Inbox>, Ticket),
}

impl To {
    fn tell(self, delivered: Delivered) {
        match (self, delivered) {
            // A receiver that is gone has given up; nothing is lost by it.
            (Self::Caller(sender), delivered) => drop(sender.send(delivered)),
            (Self::Inbox(inbox, ticket), Delivered::Applied { index, answer }) => {
                // Woken with the whole batch.
                inbox.push(Note::Applied { ticket, index, answer });
            }
            (Self::Inbox(inbox, ticket), delivered) => {
                inbox.push(Note::Undone { ticket, certain: matches!(delivered, Delivered::Refused(_)) });
                inbox.wake();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    last_number: u64,
    /// The term of the last applied entry.
    applied_term: u64,
    waiting: BTreeMap<u64, Waiter>,
}

/// The waiting proposals of one group on this node.
#[derive(Debug, Default)]
pub struct Waiters {
    inner: Mutex<Inner>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new waiter and its number. `retry_safe`: proposing the same again cannot apply it twice.
    pub fn register(&self, retry_safe: bool) -> (u64, oneshot::Receiver<Delivered>) {
        let (sender, receiver) = oneshot::channel();
        (self.insert(retry_safe, To::Caller(sender)), receiver)
    }

    /// A new waiter that is told by a note, and its number. One whose proposal can be repeated safely stays when it is
    /// told that its fate is not known: its entry may still be applied here, and then it is told that too.
    pub fn register_inbox(&self, retry_safe: bool, inbox: Arc<Inbox>, ticket: Ticket) -> u64 {
        self.insert(retry_safe, To::Inbox(inbox, ticket))
    }

    fn insert(&self, retry_safe: bool, to: To) -> u64 {
        let mut inner = self.lock();
        inner.last_number += 1;
        let number = inner.last_number;
        inner.waiting.insert(number, Waiter { retry_safe, term: None, to });
        number
    }

    /// These are about to be sent with `term`. False when an entry of a later term was applied already: then
    /// they must not be sent, and are refused.
    pub fn sending(&self, numbers: &[u64], term: u64) -> bool {
        let mut inner = self.lock();
        if term < inner.applied_term {
            return false;
        }
        for number in numbers {
            if let Some(waiter) = inner.waiting.get_mut(number) {
                waiter.term = Some(term);
            }
        }
        true
    }

    /// An entry of `term` was applied; whatever was sent with an earlier one and is not answered is refused.
    pub fn term_applied(&self, term: u64) {
        let refused: Vec<Waiter> = {
            let mut inner = self.lock();
            if term <= inner.applied_term {
                return;
            }
            inner.applied_term = term;
            let late = inner.waiting.extract_if(.., |_, waiter| waiter.term.is_some_and(|sent| sent < term));
            late.map(|(_, waiter)| waiter).collect()
        };
        for waiter in refused {
            waiter.to.tell(Delivered::Refused(None));
        }
    }

    /// The state jumped to a snapshot whose last entry is of `term`.
    pub fn snapshot_installed(&self, term: u64) {
        let waiting = {
            let mut inner = self.lock();
            inner.applied_term = inner.applied_term.max(term);
            let sent = inner.waiting.extract_if(.., |_, waiter| waiter.term.is_some());
            sent.map(|(_, waiter)| waiter).collect::<Vec<_>>()
        };
        for waiter in waiting {
            waiter.to.tell(Delivered::Unknown);
        }
    }

    /// Forgets a waiter that gave up.
    pub fn forget(&self, number: u64) {
        self.lock().waiting.remove(&number);
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.lock().waiting.len()
    }

    /// The entry of `number` was applied.
    pub fn applied(&self, number: u64, index: u64, answer: Answer) {
        let waiter = self.lock().waiting.remove(&number);
        if let Some(waiter) = waiter {
            waiter.to.tell(Delivered::Applied { index, answer });
        }
    }

    /// The proposal of `number` was refused before it reached a log.
    pub fn refused(&self, number: u64, leader: Option<NodeId>) {
        let waiter = self.lock().waiting.remove(&number);
        if let Some(waiter) = waiter {
            waiter.to.tell(Delivered::Refused(leader));
        }
    }

    /// What became of the proposal of `number` is not known yet. Who can safely propose it again is told;
    /// who cannot goes on waiting: it may still be applied, or be refused by a later term.
    pub fn unknown(&self, number: u64) {
        let mut inner = self.lock();
        match inner.waiting.get(&number) {
            Some(Waiter { retry_safe: true, to: To::Inbox(inbox, ticket), .. }) => {
                To::Inbox(inbox.clone(), *ticket).tell(Delivered::Unknown);
            }
            Some(Waiter { retry_safe: true, .. }) => {
                if let Some(waiter) = inner.waiting.remove(&number) {
                    waiter.to.tell(Delivered::Unknown);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_proposal_of_a_deposed_leader_is_refused_by_the_first_entry_of_a_later_term() {
        let waiters = Waiters::default();
        let (lost, mut lost_answer) = waiters.register(false);
        let (unsent, mut unsent_answer) = waiters.register(false);
        assert!(waiters.sending(&[lost], 3));
        waiters.unknown(lost);
        assert!(lost_answer.try_recv().is_err(), "it may still be applied");
        waiters.term_applied(3);
        assert!(lost_answer.try_recv().is_err());
        waiters.term_applied(4);
        assert!(matches!(lost_answer.try_recv(), Ok(Delivered::Refused(None))));
        assert!(unsent_answer.try_recv().is_err(), "what was not sent is not settled by a term");
        assert!(!waiters.sending(&[unsent], 3), "too late for term 3");
        assert!(waiters.sending(&[unsent], 4));
    }

    #[test]
    fn a_snapshot_may_hide_what_was_sent_so_nothing_of_it_is_refused() {
        let waiters = Waiters::default();
        let (number, mut answer) = waiters.register(false);
        assert!(waiters.sending(&[number], 3));
        waiters.snapshot_installed(7);
        assert!(matches!(answer.try_recv(), Ok(Delivered::Unknown)));
    }
}
