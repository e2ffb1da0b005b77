//! Who runs the writer: a thread of its own in production, a task of the simulator otherwise.

use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use openraft::async_runtime::AsyncRuntime;

use super::NodeLog;
use super::Shared;
use super::error::LogError;
use super::files::Files;
use super::writer::Writer;
use super::writer::Wrote;

/// With nothing queued for this long, the tail mark is written.
const REST_AFTER: Duration = Duration::from_millis(10);

/// Between two tries when there is no room for the next segment.
const ROOM_PAUSE: Duration = Duration::from_millis(200);

/// What a driver does next.
enum Turn {
    /// Something is queued.
    Write,
    /// Nothing is queued and nothing will be.
    Finish,
    /// The log stopped.
    Stopped,
}

/// The writer, while someone drives it. Dropped early, it tells all who wait that nobody writes for
/// them any more.
struct Driver {
    shared: Arc<Shared>,
    writer: Writer,
    /// Whether the log was told its end.
    done: bool,
}

impl Driver {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let writer = shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Self { shared: shared.clone(), writer, done: false })
    }

    /// What to do now, or `None`: nothing yet.
    fn turn(state: &super::state::State) -> Option<Turn> {
        if state.stopped.is_some() {
            Some(Turn::Stopped)
        } else if !state.queue.is_empty() {
            Some(Turn::Write)
        } else if state.closing {
            Some(Turn::Finish)
        } else {
            None
        }
    }

    /// Leaves the tail mark, and makes a spare segment, while there is nothing else to do.
    fn rest(&mut self) {
        self.writer.rest(&self.shared);
        if let Some(sequence) = self.writer.wants_spare(&self.shared) {
            let spare = Files::of(&self.shared).make_spare(sequence);
            self.writer.add_spare(&self.shared, spare);
        }
    }

    /// Waits as a task until there is something to do.
    async fn turn_async(&mut self) -> Turn {
        if let Some(turn) = Self::turn(&self.shared.lock()) {
            return turn;
        }
        self.rest();
        poll_fn(|context| {
            let mut state = self.shared.lock();
            match Self::turn(&state) {
                Some(turn) => Poll::Ready(turn),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn finished(&mut self) {
        self.done = true;
        self.shared.stop(&LogError::Closed, Vec::new());
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.done {
            let error = if std::thread::panicking() { LogError::Panicked } else { LogError::Closed };
            let in_flight = self.writer.abandon();
            self.shared.stop(&error, in_flight);
        }
    }
}

/// A thread that writes the log. Dropping it closes the log and waits for the thread.
pub struct ThreadDriver {
    log: NodeLog,
    thread: Option<JoinHandle<()>>,
}

impl ThreadDriver {
    /// Closes the log: writes and syncs what is queued, marks the log as closed in order, ends the thread.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.log.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was told to everyone who waits when its driver was dropped.
            thread.join().ok();
        }
    }
}

impl Drop for ThreadDriver {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes spare segments on a thread of its own: filling one with zeros takes longer than anyone who
/// appends should wait.
#[derive(Default)]
struct SpareMaker(Option<JoinHandle<Result<PathBuf, LogError>>>);

impl SpareMaker {
    fn turn(&mut self, driver: &mut Driver) {
        match self.0.take_if(|thread| thread.is_finished()) {
            Some(made) => driver.writer.add_spare(&driver.shared, made.join().unwrap_or(Err(LogError::Panicked))),
            None if self.0.is_none() => {
                if let Some(sequence) = driver.writer.wants_spare(&driver.shared) {
                    let shared = driver.shared.clone();
                    let make = move || Files::of(&shared).make_spare(sequence);
                    // Without a thread the segment is made when it is needed.
                    self.0 = std::thread::Builder::new().name("log-spare".to_owned()).spawn(make).ok();
                }
            }
            None => {}
        }
    }
}

impl Drop for SpareMaker {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // Nothing writes to the directory any more when the log is closed.
            thread.join().ok();
        }
    }
}

/// Blocks until there is something to do.
fn wait(driver: &mut Driver) -> Turn {
    if let Some(turn) = Driver::turn(&driver.shared.lock()) {
        return turn;
    }
    let mut state = driver.shared.lock();
    // A log that is written to again at once needs no mark, and no write for one.
    let mut rested = false;
    loop {
        if let Some(turn) = Driver::turn(&state) {
            return turn;
        }
        state = if rested {
            driver.shared.queued.wait(state).unwrap_or_else(PoisonError::into_inner)
        } else {
            let waited = driver.shared.queued.wait_timeout(state, REST_AFTER);
            let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            if !waited.timed_out() {
                state
            } else {
                drop(state);
                driver.writer.rest(&driver.shared);
                rested = true;
                driver.shared.lock()
            }
        };
    }
}

#[allow(clippy::disallowed_methods, reason = "production's driver is the one place of the log that knows a clock")]
fn run_thread(mut driver: Driver) {
    let shared = driver.shared.clone();
    let mut spare = SpareMaker::default();
    loop {
        spare.turn(&mut driver);
        let last = match wait(&mut driver) {
            Turn::Write => false,
            Turn::Finish => true,
            Turn::Stopped => break,
        };
        match driver.writer.write(&shared, last) {
            Ok(Wrote::Batch) => {
                let begun = Instant::now();
                let synced = driver.writer.sync();
                let micros = begun.elapsed().as_micros() as u64;
                if micros > shared.options.slow_sync_micros {
                    tracing::warn!(micros, dir = %shared.dir.display(), "a sync of the log was slow");
                }
                if driver.writer.complete(&shared, synced, micros).is_err() {
                    break;
                }
            }
            Ok(Wrote::Nothing) => {}
            Ok(Wrote::NoRoom(_)) => std::thread::sleep(ROOM_PAUSE),
            Err(_) => break,
        }
        if last {
            break;
        }
    }
    drop(spare);
    driver.finished();
}

impl NodeLog {
    /// Starts the thread that writes this log. Production's way.
    pub fn start_thread(&self) -> io::Result<ThreadDriver> {
        let driver = Driver::take(&self.shared).ok_or_else(|| io::Error::other("the log is already driven"))?;
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || run_thread(driver))?;
        Ok(ThreadDriver { log: self.clone(), thread: Some(thread) })
    }

    /// Writes this log as a task of the runtime `RT`, each sync taking what `latency` says: the
    /// simulator's way. Ends when the log is closed or stops. Returns at once if the log is driven already.
    pub fn drive<RT: AsyncRuntime>(
        &self,
        mut latency: impl FnMut() -> Duration + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let driver = Driver::take(&self.shared);
        async move {
            let Some(mut driver) = driver else { return };
            let shared = driver.shared.clone();
            loop {
                let last = match driver.turn_async().await {
                    Turn::Write => false,
                    Turn::Finish => true,
                    Turn::Stopped => break,
                };
                match driver.writer.write(&shared, last) {
                    Ok(Wrote::Batch) => {
                        let takes = latency();
                        RT::sleep(takes).await;
                        let synced = driver.writer.sync();
                        if driver.writer.complete(&shared, synced, takes.as_micros() as u64).is_err() {
                            break;
                        }
                    }
                    Ok(Wrote::Nothing) => {}
                    Ok(Wrote::NoRoom(_)) => RT::sleep(ROOM_PAUSE).await,
                    Err(_) => break,
                }
                if last {
                    break;
                }
            }
            driver.finished();
        }
    }

    /// Writes and syncs what is queued now, on the caller's thread: for tests that go step by step.
    /// Returns whether there was anything. Does nothing while a driver has the log. That there is no room is an error here,
    /// and as with a driver none that ends the log.
    pub fn flush(&self) -> Result<bool, LogError> {
        let mut writer = self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writer) = writer.as_mut() else { return Ok(false) };
        let mut any = false;
        loop {
            match writer.write(&self.shared, false)? {
                Wrote::Nothing => return Ok(any),
                Wrote::NoRoom(error) => return Err(error),
                Wrote::Batch => {}
            }
            let synced = writer.sync();
            writer.complete(&self.shared, synced, 0)?;
            any = true;
        }
    }
}
