//! What a gateway on this node is told by its group's replica, in the order of the log.
//!
//! Invariants:
//! - Notes of entries, of their answers and of queries' answers are pushed under the replica's lock: so what entry
//!   *i* emitted stands before the answer of entry *i* and before every answer that saw entry *i*, and no answer
//!   that did not see it stands behind.
//! - A reader that does not keep up costs bounded memory: beyond `BYTES_MAX` the notes are dropped and one
//!   [`Note::Jumped`] says so.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::Notify;

use super::state::Answer;

/// Bytes of notes that wait before queries are answered no more until some are read.
const FULL_BYTES: usize = 32 << 20;
/// Bytes of notes that wait at most.
const BYTES_MAX: usize = 256 << 20;
/// What a note counts beside its bytes.
const NOTE_BYTES: usize = 96;

/// The reader's own number for what it asked.
pub type Ticket = u64;

/// Something a gateway must know.
#[derive(Debug)]
pub enum Note {
    /// An entry emitted this.
    Event {
        /// The entry's index.
        index: u64,
        /// Its time, Unix milliseconds.
        time_ms: u64,
        /// The event.
        bytes: Vec<u8>,
    },
    /// An own proposal was applied.
    Applied {
        /// As proposed.
        ticket: Ticket,
        /// The index its answer belongs to.
        index: u64,
        /// What it gave.
        answer: Answer,
    },
    /// An own proposal has not come through.
    Undone {
        /// As proposed.
        ticket: Ticket,
        /// It reached no log and never will. Otherwise it is only not known to have: [`Note::Applied`] may still come.
        certain: bool,
    },
    /// An own query was answered.
    Answered {
        /// As asked.
        ticket: Ticket,
        /// The last entry the answer saw.
        index: u64,
        /// The answer.
        answer: Answer,
    },
    /// A session ended.
    SessionEnded {
        /// Its id.
        session: u64,
        /// By this entry.
        index: u64,
    },
    /// A session was attached anew; what its earlier holder still proposes is refused.
    SessionMoved {
        /// Its id.
        session: u64,
        /// By this entry, which is the new attachment.
        index: u64,
    },
    /// The notes have a gap (a snapshot was installed, or too many waited): what was under way is not known.
    Jumped,
}

impl Note {
    fn bytes(&self) -> usize {
        NOTE_BYTES
            + match self {
                Self::Event { bytes, .. } => bytes.len(),
                Self::Applied { answer, .. } | Self::Answered { answer, .. } => {
                    answer.as_ref().map_or_else(|error| error.detail.len(), |bytes| bytes.len())
                }
                _ => 0,
            }
    }
}

#[derive(Debug, Default)]
struct Inner {
    notes: Vec<Note>,
    bytes: usize,
    /// The last entry applied.
    applied: u64,
    overrun: bool,
    /// Queries wait for room.
    held_up: bool,
}

/// The notes for one gateway.
#[derive(Debug)]
pub struct Inbox {
    inner: Mutex<Inner>,
    wake: Arc<Notify>,
}

impl Inbox {
    /// An empty one; `wake` is told when there is something in it.
    pub fn new(wake: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), wake })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a note; [`Self::wake`] is to follow.
    pub(super) fn push(&self, note: Note) {
        let mut inner = self.lock();
        if inner.overrun {
            return;
        }
        inner.bytes += note.bytes();
        inner.notes.push(note);
        if inner.bytes > BYTES_MAX {
            inner.overrun = true;
            inner.notes = vec![Note::Jumped];
        }
    }

    /// The state jumped: what was noted before is void.
    pub(super) fn jump(&self, applied: u64) {
        let mut inner = self.lock();
        inner.notes = vec![Note::Jumped];
        inner.applied = applied;
        inner.overrun = true;
    }

    /// All notes of entries up to here are in.
    pub(super) fn set_applied(&self, index: u64) {
        self.lock().applied = index;
    }

    /// Whether so much waits that queries should wait too.
    pub(super) fn is_full(&self) -> bool {
        self.lock().bytes > FULL_BYTES
    }

    /// Queries wait, until [`Self::has_room_again`].
    pub(super) fn hold_up(&self) {
        self.lock().held_up = true;
    }

    /// Whether queries waited for room, and there is some now. Says so once; queries go on by
    /// [`super::Group::query_to`], with nothing new to ask if need be.
    pub fn has_room_again(&self) -> bool {
        let mut inner = self.lock();
        inner.bytes <= FULL_BYTES / 2 && std::mem::take(&mut inner.held_up)
    }

    /// Tells the reader.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Takes the notes, at most about `bytes` of them, and the last applied entry that they tell of.
    pub fn take(&self, bytes: usize) -> (Vec<Note>, u64) {
        let mut inner = self.lock();
        if inner.bytes <= bytes {
            inner.bytes = 0;
            return (std::mem::take(&mut inner.notes), inner.applied);
        }
        let mut taken = 0;
        let mut count = 0;
        for note in &inner.notes {
            count += 1;
            taken += note.bytes();
            if taken >= bytes {
                break;
            }
        }
        let rest = inner.notes.split_off(count);
        inner.bytes = inner.bytes.saturating_sub(taken);
        let notes = std::mem::replace(&mut inner.notes, rest);
        let told = notes.iter().rev().find_map(|note| match note {
            Note::Event { index, .. }
            | Note::Applied { index, .. }
            | Note::Answered { index, .. }
            | Note::SessionEnded { index, .. }
            | Note::SessionMoved { index, .. } => Some(*index),
            Note::Undone { .. } | Note::Jumped => None,
        });
        // An entry is told of when all that it emitted is: what is left may be of the same one.
        let left = inner.notes.iter().find_map(|note| match note {
            Note::Event { index, .. } | Note::SessionEnded { index, .. } | Note::SessionMoved { index, .. } => {
                Some(*index)
            }
            Note::Applied { .. } | Note::Answered { .. } | Note::Undone { .. } | Note::Jumped => None,
        });
        let most = left.map_or(u64::MAX, |left| left.saturating_sub(1)).min(inner.applied);
        let told = told.unwrap_or(0).min(most);
        self.wake.notify_one();
        (notes, told)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn event(index: u64, bytes: usize) -> Note {
        Note::Event { index, time_ms: 0, bytes: vec![0; bytes] }
    }

    #[test]
    fn notes_come_in_order_and_in_pieces() {
        let inbox = Inbox::new(Arc::default());
        for index in 1..=5 {
            inbox.push(event(index, 1000));
            inbox.set_applied(index);
        }
        let (first, told) = inbox.take(2000);
        assert_eq!((first.len(), told), (2, 2));
        let (rest, told) = inbox.take(usize::MAX);
        assert_eq!((rest.len(), told), (3, 5));
        assert!(inbox.take(1).0.is_empty());
    }

    /// The reader took the first of an entry's events and believed that it had them all: a client whose next answer
    /// carried that entry's index had not yet been sent the rest.
    #[test]
    fn an_entry_is_told_when_its_last_event_is_taken_and_not_before() {
        let inbox = Inbox::new(Arc::default());
        inbox.push(event(4, 1000));
        inbox.set_applied(4);
        for _ in 0..3 {
            inbox.push(event(5, 1000));
        }
        // Comes from elsewhere, whenever it comes.
        inbox.push(Note::Undone { ticket: 1, certain: true });
        inbox.push(event(5, 1000));
        inbox.set_applied(5);
        inbox.push(event(6, 1000));
        inbox.set_applied(6);
        let take = |bytes| {
            let (notes, told) = inbox.take(bytes);
            (notes.len(), told)
        };
        assert_eq!(take(2000), (2, 4), "three of entry 5 are left");
        assert_eq!(take(2000), (2, 4));
        assert_eq!(take(1000), (2, 5), "its last one, behind the other note");
        assert_eq!(take(1000), (1, 6));
    }

    #[test]
    fn queries_wait_while_the_reader_has_much_to_read() {
        let inbox = Inbox::new(Arc::default());
        assert!(!inbox.is_full());
        inbox.push(event(1, FULL_BYTES));
        assert!(inbox.is_full());
        inbox.hold_up();
        assert!(!inbox.has_room_again());
        inbox.take(usize::MAX);
        assert!(!inbox.is_full() && inbox.has_room_again());
        assert!(!inbox.has_room_again(), "said once");
    }

    #[test]
    fn a_reader_that_does_not_keep_up_is_told_of_the_gap_once() {
        let inbox = Inbox::new(Arc::default());
        for index in 0..10 {
            inbox.push(event(index, BYTES_MAX / 4));
        }
        let (notes, _) = inbox.take(usize::MAX);
        assert!(matches!(notes[..], [Note::Jumped]), "{notes:?}");
        inbox.push(event(11, 1));
        assert!(inbox.take(usize::MAX).0.is_empty(), "after a gap a new inbox is needed");
    }
}
