//! One client's connection: what was read and waits for the adapter, what the adapter sent and waits for the client.
//!
//! Invariants:
//! - Bytes of a client come to the adapter in order, and bytes for it are written in the order they were sent.
//! - A client that does not read, or sends faster than the adapter takes it, is not read from: what waits is bounded
//!   both ways. One whose output passes the hard limit is cut off.
//! - [`Arrival::Closed`] is the last word about a connection, and comes once.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use tokio::sync::Notify;

use super::records::ConnectionId;
use super::records::Token;
use crate::group::state::Answer;
use crate::net::Connection;

/// Bytes of one client that wait for the adapter before it is read from no more.
const UNREAD_BYTES_MAX: usize = 256 << 10;
/// Bytes that wait for one client before it is read from no more.
const QUEUED_BYTES_SOFT: usize = 256 << 10;
/// Parts of one write.
const PARTS_MAX: usize = 64;
/// How long a client that is to be closed may take none of what was sent to it before.
const LEAVING: Duration = Duration::from_secs(10);

/// After the last byte for a client: how long it may still send, which is read and forgotten. Without that the system
/// would throw away what the client has not yet received.
const LINGER: Duration = Duration::from_secs(1);

/// What comes to the adapter's driver from its connections.
#[derive(Debug)]
pub enum Arrival<C> {
    /// A client connected.
    Opened(Arc<Client<C>>),
    /// It sent this.
    Data(ConnectionId, Bytes),
    /// It is gone.
    Closed(ConnectionId),
    /// What the adapter asked about the host.
    Told(Token, Answer),
}

/// Where arrivals wait for the driver.
#[derive(Debug)]
pub struct Mailbox<C> {
    arrivals: Mutex<VecDeque<Arrival<C>>>,
    /// Told when there is something.
    pub wake: Arc<Notify>,
}

impl<C> Mailbox<C> {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { arrivals: Mutex::default(), wake: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arrival<C>>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one.
    pub fn push(&self, arrival: Arrival<C>) {
        self.lock().push_back(arrival);
        self.wake.notify_one();
    }

    /// Takes the oldest ones whose data is at most about `bytes`.
    pub fn take(&self, bytes: usize) -> Vec<Arrival<C>> {
        let mut arrivals = self.lock();
        let mut taken = 0;
        let count = arrivals.iter().take_while(|arrival| {
            let room = taken < bytes;
            if let Arrival::Data(_, data) = arrival {
                taken += data.len();
            }
            taken += 16;
            room
        });
        let count = count.count();
        if count < arrivals.len() {
            self.wake.notify_one();
        }
        arrivals.drain(..count).collect()
    }
}

/// Counts of one gateway.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is a metric with the text beside it in `Gateway::counters`")]
pub struct Counts {
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    pub cut_off: AtomicU64,
    pub received_bytes: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub steps: AtomicU64,
    pub failures: AtomicU64,
    pub proposals: AtomicU64,
    pub queries: AtomicU64,
    pub resent: AtomicU64,
    pub events: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Bytes>,
    /// The first so many parts of the queue are copies of their own.
    own: usize,
    queued: usize,
    unread: usize,
    hold: bool,
    /// The client sent something since it was last sent anything.
    asks: bool,
    /// Close when the queue is written.
    closing: bool,
    /// Close now.
    cut: bool,
}

impl State {
    /// What was sent shares the bytes of all that the adapter asked in one step. A client that reads slowly would keep
    /// those of many steps for a few small notifications: what is left for it is copied.
    fn keep_own(&mut self) {
        for part in self.queue.iter_mut().skip(self.own) {
            *part = Bytes::copy_from_slice(part);
        }
        self.own = self.queue.len();
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct Client<C> {
    /// Its number.
    pub id: ConnectionId,
    /// Where it is from.
    pub peer: String,
    connection: C,
    state: Mutex<State>,
    wake: Notify,
    counts: Arc<Counts>,
    queued_max: usize,
}

impl<C: Connection> Client<C> {
    /// A client that has just connected.
    pub fn new(id: ConnectionId, peer: String, connection: C, counts: Arc<Counts>, queued_max: usize) -> Self {
        Self { id, peer, connection, state: Mutex::default(), wake: Notify::new(), counts, queued_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes for the client; [`Self::flush`] is to follow.
    pub fn send(&self, bytes: Bytes) {
        let mut state = self.lock();
        if !state.closing && !state.cut && !bytes.is_empty() {
            state.queued += bytes.len();
            state.queue.push_back(bytes);
            state.asks = false;
        }
    }

    /// Writes what the client takes now; the rest is written as it takes it, or cuts it off if that is too much.
    pub fn flush(&self) {
        let mut state = self.lock();
        if state.cut || state.queue.is_empty() {
            return;
        }
        if self.write(&mut state).is_err() {
            state.cut = true;
        }
        if state.queued > self.queued_max {
            tracing::debug!(connection = self.id, peer = self.peer, "a client that does not read is cut off");
            add(&self.counts.cut_off, 1);
            state.cut = true;
        }
        if !state.cut {
            state.keep_own();
        }
        if state.cut || !state.queue.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Closes the connection when everything is written.
    pub fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// Closes the connection at once.
    pub fn cut(&self) {
        self.lock().cut = true;
        self.wake.notify_one();
    }

    /// Stops reading, or goes on.
    pub fn hold(&self, hold: bool) {
        self.lock().hold = hold;
        self.wake.notify_one();
    }

    /// The adapter has taken so many bytes.
    pub fn taken(&self, bytes: usize) {
        let mut state = self.lock();
        let full = state.unread >= UNREAD_BYTES_MAX;
        state.unread = state.unread.saturating_sub(bytes);
        if full && state.unread < UNREAD_BYTES_MAX {
            self.wake.notify_one();
        }
    }

    /// Writes until all is written or the system takes no more.
    fn write(&self, state: &mut State) -> io::Result<()> {
        while !state.queue.is_empty() {
            let parts: Vec<IoSlice<'_>> = state.queue.iter().take(PARTS_MAX).map(|part| IoSlice::new(part)).collect();
            let mut written = match self.connection.write(&parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            add(&self.counts.writes, 1);
            add(&self.counts.sent_bytes, written as u64);
            state.queued = state.queued.saturating_sub(written);
            while let Some(front) = state.queue.front_mut() {
                if front.len() > written {
                    front.advance(written);
                    break;
                }
                written -= front.len();
                state.queue.pop_front();
                state.own = state.own.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Serves the connection until it is closed.
    pub async fn run<RT: AsyncRuntime>(self: Arc<Self>, mailbox: Arc<Mailbox<C>>, idle: Option<Duration>) {
        let finished = self.serve::<RT>(&mailbox, idle).await;
        mailbox.push(Arrival::Closed(self.id));
        if finished {
            self.connection.finish();
            let rest = async { while self.connection.readable().await.is_ok() && !self.ended() {} };
            // Whether it went quietly does not matter.
            let _late = RT::timeout(LINGER, rest).await;
        }
    }

    fn ended(&self) -> bool {
        match self.connection.read() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Whether the connection ended by the adapter's wish, with everything written.
    async fn serve<RT: AsyncRuntime>(&self, mailbox: &Mailbox<C>, idle: Option<Duration>) -> bool {
        loop {
            let (reads, writes, leaves) = {
                let state = self.lock();
                if state.cut {
                    return false;
                }
                if state.closing && state.queue.is_empty() {
                    return true;
                }
                let full = state.unread >= UNREAD_BYTES_MAX || state.queued >= QUEUED_BYTES_SOFT;
                (!state.hold && !state.closing && !full, !state.queue.is_empty(), state.closing)
            };
            let patience = if leaves { Some(LEAVING) } else { idle };
            let silent = async {
                match patience {
                    Some(patience) => RT::sleep(patience).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // In one order, so that a simulated run is the same every time; no branch is ready for ever.
                biased;
                () = self.wake.notified() => {}
                ready = self.connection.readable(), if reads => {
                    if ready.is_err() {
                        return false;
                    }
                    if !self.read(mailbox) {
                        return self.last_words::<RT>().await;
                    }
                }
                ready = self.connection.writable(), if writes => {
                    let mut state = self.lock();
                    if ready.is_err() || self.write(&mut state).is_err() {
                        return false;
                    }
                }
                // Every byte that is read or written begins the wait anew: one that takes nothing of what is for it is idle too.
                () = silent, if reads || writes => {
                    tracing::debug!(connection = self.id, peer = self.peer, "an idle connection is closed");
                    return false;
                }
            }
        }
    }

    /// The client sends no more. One that has just asked something may wait for the answer, as `echo ruok | nc` does:
    /// it has a moment for it. Whether the adapter has closed the connection, with everything written.
    async fn last_words<RT: AsyncRuntime>(&self) -> bool {
        if !self.lock().asks {
            return false;
        }
        let answered = async {
            loop {
                let writes = {
                    let state = self.lock();
                    if state.cut {
                        return false;
                    }
                    if state.closing && state.queue.is_empty() {
                        return true;
                    }
                    !state.queue.is_empty()
                };
                tokio::select! {
                    biased;
                    () = self.wake.notified() => {}
                    ready = self.connection.writable(), if writes => {
                        let mut state = self.lock();
                        if ready.is_err() || self.write(&mut state).is_err() {
                            return false;
                        }
                    }
                }
            }
        };
        RT::timeout(LINGER, answered).await.unwrap_or(false)
    }

    /// Reads what is there, within the limit. False at the end.
    fn read(&self, mailbox: &Mailbox<C>) -> bool {
        match self.connection.read() {
            Ok(bytes) if bytes.is_empty() => false,
            Ok(bytes) => {
                add(&self.counts.reads, 1);
                add(&self.counts.received_bytes, bytes.len() as u64);
                {
                    let mut state = self.lock();
                    state.unread += bytes.len();
                    state.asks = true;
                }
                mailbox.push(Arrival::Data(self.id, bytes));
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    /// A client that takes so many bytes and then no more.
    #[derive(Debug)]
    struct Slow(Mutex<usize>);

    impl Connection for Slow {
        async fn readable(&self) -> io::Result<()> {
            std::future::pending().await
        }
        fn read(&self) -> io::Result<Bytes> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        async fn writable(&self) -> io::Result<()> {
            std::future::pending().await
        }
        fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            let mut room = self.0.lock().unwrap();
            let written = parts.iter().map(|part| part.len()).sum::<usize>().min(*room);
            *room -= written;
            if written == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(written) }
        }
        fn finish(&self) {}
    }

    /// A notification of a few bytes kept the whole output of the step that sent it, for each step a client was behind.
    #[test]
    fn what_waits_for_a_slow_client_keeps_nothing_of_the_step_that_sent_it() {
        let client = Client::new(1, String::new(), Slow(Mutex::new(15)), Arc::default(), 1 << 20);
        let step = Bytes::from(vec![7; 100_000]);
        for at in [0, 10, 20] {
            client.send(step.slice(at..at + 10));
        }
        client.flush();
        assert!(step.is_unique(), "nobody else keeps the step's output");
        let first: Vec<*const u8> = client.lock().queue.iter().map(|part| part.as_ptr()).collect();
        assert_eq!(first.len(), 2);

        let next = Bytes::from(vec![9; 100_000]);
        client.send(next.slice(..10));
        client.flush();
        assert!(next.is_unique());
        let queue = client.lock().queue.clone();
        assert_eq!(queue.iter().map(|part| part.as_ptr()).take(2).collect::<Vec<_>>(), first, "copied once");
        assert_eq!(queue.iter().flatten().copied().collect::<Vec<u8>>(), [vec![7; 15], vec![9; 10]].concat());

        *client.connection.0.lock().unwrap() = usize::MAX;
        client.flush();
        let state = client.lock();
        assert_eq!((state.queue.len(), state.own, state.queued), (0, 0, 0));
    }
}
