//! Reads share rounds: those that come while a round is under way wait for the next one, together.

use std::sync::Mutex;
use std::sync::PoisonError;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::service::ServiceResult;

#[derive(Default)]
struct Inner {
    waiting: Vec<oneshot::Sender<ServiceResult<u64>>>,
    running: bool,
}

/// The waiting reads of one group and one policy.
#[derive(Default)]
pub struct ReadBarrier {
    inner: Mutex<Inner>,
}

/// What the caller has to do.
pub enum Entered {
    /// A round is under way: wait for the next.
    Wait(oneshot::Receiver<ServiceResult<u64>>),
    /// Start the rounds (on a task) and wait.
    Drive(oneshot::Receiver<ServiceResult<u64>>),
}

impl ReadBarrier {
    /// Joins the next round.
    pub fn enter(&self) -> Entered {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.waiting.push(sender);
        if std::mem::replace(&mut inner.running, true) { Entered::Wait(receiver) } else { Entered::Drive(receiver) }
    }

    /// Runs rounds until nobody waits. A round answers only those who came before it began.
    pub async fn drive(&self, round: impl Fn() -> BoxFuture<'static, ServiceResult<u64>>) {
        loop {
            let waiting = {
                let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                if inner.waiting.is_empty() {
                    inner.running = false;
                    return;
                }
                std::mem::take(&mut inner.waiting)
            };
            let answer = round().await;
            for sender in waiting {
                let _gave_up = sender.send(answer.clone());
            }
        }
    }
}
