//! openraft's simulated runtime, with one thing added: a task belongs to the node that spawned it, and ends
//! with it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use super::life;
use super::life::Life;

/// [`SimRuntime`] whose tasks end with their [`super::Life`]. What is spawned outside of any life (by the
/// scenario itself) lives on.
#[derive(Debug)]
pub struct LifeRuntime(SimRuntime);

impl LifeRuntime {
    /// A runtime whose randomness derives from `seed`.
    pub fn with_seed(seed: u64) -> Self {
        Self(SimRuntime::with_seed(seed))
    }

    /// Runs `future` as a task of `life`; `None` when the life ends first.
    pub fn spawn_in<T>(life: &Arc<Life>, future: T) -> impl Future<Output = Option<T::Output>> + Send + use<T>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let task = life.task(async move {
            let _gave_up = sender.send(future.await);
        });
        drop(SimRuntime::spawn(task));
        async move { receiver.await.ok() }
    }

    /// See [`SimRuntime::record_trace`].
    pub fn record_trace(&mut self, record: bool) {
        self.0.record_trace(record);
    }

    /// See [`SimRuntime::take_trace`].
    pub fn take_trace(&self) -> Vec<String> {
        self.0.take_trace()
    }
}

impl AsyncRuntime for LifeRuntime {
    type JoinError = <SimRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = <SimRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match life::current() {
            Some(life) => SimRuntime::spawn(life.task(future)),
            None => SimRuntime::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        SimRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        SimRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        SimRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn new(threads: usize) -> Self {
        Self(SimRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(job: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        SimRuntime::spawn_blocking(job)
    }
}
