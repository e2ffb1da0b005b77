//! When a follower is told of a commit.
//!
//! A message that carries entries carries the commit index too. One that has nothing else to say can wait a moment for
//! the next entries to take it along: on a busy group it is never sent, on an idle one it spares the leader and both
//! followers a round at the very moment the leader answers. Only a node whose own clients wait for its apply needs it at
//! once.
//!
//! Invariant: a message that waited is answered as the later one that took its place was, and not before: openraft
//! takes the time of a message that was answered for a sign that this leader was followed then.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use openraft::async_runtime::Select2;
use tokio::sync::oneshot;

use crate::types::NodeId;

/// How long a commit may wait for company. The timer's grain makes it up to twice that.
const HOLD: Duration = Duration::from_millis(1);

/// A node that forwarded a command, or asked for a read index, is taken to have clients that wait for this long.
const HURRY: Duration = Duration::from_millis(100);

/// The nodes whose clients wait for commits of this group.
#[derive(Debug)]
pub struct Hurry<RT: AsyncRuntime>(Arc<Mutex<BTreeMap<NodeId, RT::Instant>>>);

impl<RT: AsyncRuntime> Clone for Hurry<RT> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<RT: AsyncRuntime> Default for Hurry<RT> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<RT: AsyncRuntime> Hurry<RT> {
    /// A client of `node` waits.
    pub fn mark(&self, node: NodeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, RT::Instant::now());
    }

    /// Whether `node` is to be told at once.
    pub fn has(&self, node: NodeId) -> bool {
        let marked = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied();
        marked.is_some_and(|marked| RT::Instant::now() - marked < HURRY)
    }
}

/// Messages that wait for the next one of their stream.
#[derive(Debug, Default)]
pub struct Held(Vec<oneshot::Sender<oneshot::Receiver<()>>>);

/// Tells those that waited that the message that took their place was accepted. Dropped, it tells that it was not.
#[derive(Debug)]
pub struct Passengers(Vec<oneshot::Sender<()>>);

impl Passengers {
    /// The message was accepted.
    pub fn arrived(self) {
        for passenger in self.0 {
            // One that is gone went with its stream.
            let _gone = passenger.send(());
        }
    }
}

/// How a message's wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A later message took its place and was accepted.
    Carried,
    /// A later message took its place and was not accepted.
    Failed,
    /// None came: it must be sent.
    Alone,
}

impl Held {
    /// One more waits.
    pub fn hold<RT: AsyncRuntime>(&mut self) -> impl Future<Output = Wait> + Send + use<RT> {
        let (sender, boarding) = oneshot::channel();
        self.0.push(sender);
        async move {
            match RT::select2(pin!(boarding), pin!(RT::sleep(HOLD))).await {
                Select2::First(Ok(arrival)) => match arrival.await {
                    Ok(()) => Wait::Carried,
                    Err(_) => Wait::Failed,
                },
                Select2::First(Err(_)) | Select2::Second(()) => Wait::Alone,
            }
        }
    }

    /// The next message, which takes along all that wait.
    pub fn board(&mut self) -> Passengers {
        let boarding = self.0.drain(..).filter_map(|held| {
            let (sender, receiver) = oneshot::channel();
            held.send(receiver).ok().map(|()| sender)
        });
        Passengers(boarding.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft_rt_tokio::TokioRuntime;

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_waits_is_answered_as_the_message_that_took_it_along() {
        let mut held = Held::default();
        let carried = held.hold::<TokioRuntime>();
        let too = held.hold::<TokioRuntime>();
        held.board().arrived();
        assert_eq!((carried.await, too.await), (Wait::Carried, Wait::Carried));

        let lost = held.hold::<TokioRuntime>();
        drop(held.board());
        assert_eq!(lost.await, Wait::Failed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_nothing_follows_is_sent_alone_and_not_twice() {
        let mut held = Held::default();
        let alone = held.hold::<TokioRuntime>();
        assert_eq!(alone.await, Wait::Alone);
        assert!(held.board().0.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_with_waiting_clients_is_told_at_once_for_a_while() {
        let hurry = Hurry::<TokioRuntime>::default();
        assert!(!hurry.has(2));
        hurry.mark(2);
        assert!(hurry.has(2) && !hurry.has(3));
        tokio::time::advance(HURRY).await;
        assert!(!hurry.has(2));
    }
}
