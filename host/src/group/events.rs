//! The events a group emitted lately, and who listens. Kept on every node as it applies; not replicated
//! state, so a restart begins anew with what it replays.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::stream::StreamExt;
use tokio::sync::oneshot;

use crate::service::Event;
use crate::service::EventItem;

/// Bytes of events kept a group, besides the bound on their number: what a subscriber is sent who comes back after seconds. Not what was
/// emitted for hours, when nobody listens at all.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// What an event occupies besides its bytes, roughly.
const EVENT_OVERHEAD_BYTES: usize = 96;

fn occupied(event: &Event) -> usize {
    event.data.len().saturating_add(EVENT_OVERHEAD_BYTES)
}

#[derive(Debug, Default)]
struct Inner {
    ring: VecDeque<Event>,
    bytes: usize,
    /// Events of entries before this index are not all here.
    complete_from: u64,
    /// The next entry to be applied.
    next: u64,
    waiting: Vec<oneshot::Sender<()>>,
    closed: bool,
}

/// One group's events on this node.
#[derive(Debug)]
pub struct Events {
    inner: Mutex<Inner>,
    keep: usize,
}

impl Events {
    /// Keeps the last `keep` events.
    pub fn new(keep: usize) -> Self {
        Self { inner: Mutex::default(), keep: keep.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state now stands before entry `next` without the entries before it having been applied here: after
    /// a start or an installed snapshot.
    pub fn jump(&self, next: u64) {
        let mut inner = self.lock();
        inner.ring.clear();
        inner.bytes = 0;
        inner.complete_from = next;
        inner.next = next;
        inner.waiting.clear();
    }

    /// Entry `index` was applied and emitted `events`.
    pub fn push(&self, index: u64, events: Vec<Vec<u8>>) {
        let mut inner = self.lock();
        inner.next = index.saturating_add(1);
        if events.is_empty() {
            return;
        }
        for (number, data) in events.into_iter().enumerate() {
            let event = Event { index, number: u32::try_from(number).unwrap_or(u32::MAX), data: data.into() };
            inner.bytes = inner.bytes.saturating_add(occupied(&event));
            inner.ring.push_back(event);
        }
        // What was emitted just now is for those who wait, however much it is.
        let older = |inner: &Inner| inner.ring.front().is_some_and(|event| event.index < index);
        while inner.ring.len() > self.keep || inner.bytes > KEPT_BYTES_MAX && older(&inner) {
            let Some(old) = inner.ring.pop_front() else { break };
            inner.bytes = inner.bytes.saturating_sub(occupied(&old));
            inner.complete_from = old.index.saturating_add(1);
        }
        // Dropping the senders wakes the subscribers.
        inner.waiting.clear();
    }

    /// Ends all subscriptions.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.waiting.clear();
    }

    /// The events from entry `from` on; from the next one when `None`.
    pub fn subscribe(self: &Arc<Self>, from: Option<u64>) -> BoxStream<'static, EventItem> {
        let start = from.unwrap_or_else(|| self.lock().next);
        let cursor = Cursor { events: self.clone(), index: start, number: 0 };
        futures_util::stream::unfold(cursor, |mut cursor| async move {
            loop {
                match cursor.step() {
                    Step::Item(item) => return Some((item, cursor)),
                    Step::Wait(wait) => {
                        let _woken_by_drop = wait.await;
                    }
                    Step::End => return None,
                }
            }
        })
        .boxed()
    }
}

struct Cursor {
    events: Arc<Events>,
    index: u64,
    number: u32,
}

enum Step {
    Item(EventItem),
    Wait(oneshot::Receiver<()>),
    End,
}

impl Cursor {
    fn step(&mut self) -> Step {
        let mut inner = self.events.lock();
        if inner.closed {
            return Step::End;
        }
        if self.index < inner.complete_from {
            let from = self.index;
            self.index = inner.complete_from;
            self.number = 0;
            return Step::Item(EventItem::Gap { from, next: self.index });
        }
        let at = inner.ring.partition_point(|event| (event.index, event.number) < (self.index, self.number));
        if let Some(event) = inner.ring.get(at) {
            let event: Event = Event { data: Bytes::clone(&event.data), ..*event };
            self.index = event.index;
            self.number = event.number.saturating_add(1);
            return Step::Item(EventItem::Event(event));
        }
        // All before `next` was seen: whatever of it is dropped now is no gap.
        if self.index < inner.next {
            (self.index, self.number) = (inner.next, 0);
        }
        let (sender, receiver) = oneshot::channel();
        inner.waiting.retain(|waiting| !waiting.is_closed());
        inner.waiting.push(sender);
        Step::Wait(receiver)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::FutureExt;

    fn ready(stream: &mut BoxStream<'static, EventItem>) -> Option<EventItem> {
        stream.next().now_or_never().flatten()
    }

    fn event(index: u64, number: u32, data: &'static [u8]) -> EventItem {
        EventItem::Event(Event { index, number, data: Bytes::from_static(data) })
    }

    #[test]
    fn a_subscriber_sees_every_event_once_in_log_order() {
        let events = Arc::new(Events::new(100));
        events.push(1, vec![b"a".to_vec(), b"b".to_vec()]);
        let mut stream = events.subscribe(Some(1));
        assert_eq!(ready(&mut stream), Some(event(1, 0, b"a")));
        assert_eq!(ready(&mut stream), Some(event(1, 1, b"b")));
        assert_eq!(ready(&mut stream), None);
        events.push(2, Vec::new());
        events.push(3, vec![b"c".to_vec()]);
        assert_eq!(ready(&mut stream), Some(event(3, 0, b"c")));
        events.close();
        assert_eq!(stream.next().now_or_never(), Some(None));
    }

    #[test]
    fn what_is_no_longer_kept_is_told_as_a_gap() {
        let events = Arc::new(Events::new(2));
        for index in 1..=5 {
            events.push(index, vec![b"x".to_vec()]);
        }
        let mut stream = events.subscribe(Some(1));
        assert_eq!(ready(&mut stream), Some(EventItem::Gap { from: 1, next: 4 }));
        assert_eq!(ready(&mut stream), Some(event(4, 0, b"x")));
        let mut late = events.subscribe(None);
        assert_eq!(ready(&mut late), None);
        events.jump(100);
        assert_eq!(ready(&mut late), Some(EventItem::Gap { from: 6, next: 100 }));
    }

    /// A million creates, some hundred an entry, left 60 MiB of events in each node, which nobody had asked for.
    #[test]
    fn large_events_are_kept_by_their_bytes() {
        let events = Arc::new(Events::new(10_000));
        for index in 1..=100 {
            events.push(index, vec![vec![b'x'; 1 << 20]]);
        }
        let mut stream = events.subscribe(Some(1));
        assert_eq!(ready(&mut stream), Some(EventItem::Gap { from: 1, next: 94 }));
        assert_eq!(std::iter::from_fn(|| ready(&mut stream)).count(), 7);
        // One that is larger than all that is kept reaches those who wait for it.
        events.push(101, vec![vec![b'x'; 9 << 20]]);
        assert!(matches!(ready(&mut stream), Some(EventItem::Event(event)) if event.index == 101));
        events.push(102, vec![b"y".to_vec()]);
        assert_eq!(ready(&mut events.subscribe(Some(1))), Some(EventItem::Gap { from: 1, next: 102 }));
    }
}
