//! One run of one simulated node, from its start to its death.
//!
//! Invariants:
//! - Every task that a task of a life spawns belongs to that life; which life runs now is known to the
//!   thread ([`current`]).
//! - After [`Life::end`] no task of the life is polled again: its futures are dropped there and then, the
//!   one that runs at that moment as soon as it yields. So a dead node does nothing, as after `kill -9`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::task::Context;
use std::task::Poll;

use crate::types::NodeId;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Life>>> = const { RefCell::new(None) };
}

/// The life whose task runs on this thread now.
pub(super) fn current() -> Option<Arc<Life>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Runs `work` as if it belonged to no life.
pub(super) fn outside<T>(work: impl FnOnce() -> T) -> T {
    let outer = CURRENT.with(|current| current.replace(None));
    let done = work();
    CURRENT.with(|current| current.replace(outer));
    done
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // One thread and no panics under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the file's head.
pub struct Life {
    /// The node that lives.
    pub node: NodeId,
    /// Which of the cluster's lives this is.
    pub number: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    over: bool,
    /// What the node said when it ended itself.
    last_words: Option<String>,
    /// Tasks and guest jobs that panicked.
    panics: u64,
    next_task: u64,
    tasks: BTreeMap<u64, Weak<dyn Killable>>,
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "life {} of node {}", self.number, self.node)
    }
}

impl Life {
    /// A life that begins.
    pub fn new(node: NodeId, number: u64) -> Arc<Self> {
        Arc::new(Self { node, number, state: Mutex::default() })
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        !lock(&self.state).over
    }

    /// The node ends itself, for this reason: nothing it does from here on has an effect.
    pub fn die(self: &Arc<Self>, why: &str) {
        let first = {
            let mut state = lock(&self.state);
            state.last_words.get_or_insert_with(|| why.to_string());
            !std::mem::replace(&mut state.over, true)
        };
        if first {
            self.drop_tasks();
        }
    }

    /// What the node said when it ended itself, if it did.
    pub fn last_words(&self) -> Option<String> {
        lock(&self.state).last_words.clone()
    }

    /// How many of its tasks and guest jobs panicked.
    pub fn panics(&self) -> u64 {
        lock(&self.state).panics
    }

    pub(super) fn count_panic(&self) {
        lock(&self.state).panics += 1;
    }

    /// Ends it.
    pub fn end(self: &Arc<Self>) {
        lock(&self.state).over = true;
        self.drop_tasks();
    }

    fn drop_tasks(self: &Arc<Self>) {
        // Dropping a task may spawn or drop others of this life.
        let _running = Running::new(self);
        loop {
            let tasks = std::mem::take(&mut lock(&self.state).tasks);
            if tasks.is_empty() {
                return;
            }
            for task in tasks.into_values().filter_map(|task| task.upgrade()) {
                task.kill();
            }
        }
    }

    /// `future` as a task of this life. It stays pending for ever once the life is over.
    pub(super) fn task<F>(self: &Arc<Self>, future: F) -> LifeTask<F>
    where
        F: Future + Send + 'static,
    {
        let cell = Arc::new(Cell(Mutex::new(Some(Box::pin(future)))));
        let mut state = lock(&self.state);
        let id = state.next_task;
        state.next_task += 1;
        let killable: Weak<dyn Killable> = Arc::downgrade(&(cell.clone() as Arc<dyn Killable>));
        state.tasks.insert(id, killable);
        LifeTask { life: self.clone(), id, cell }
    }
}

/// While it is there, what runs on this thread belongs to the life.
struct Running {
    life: Arc<Life>,
    outer: Option<Arc<Life>>,
}

impl Running {
    fn new(life: &Arc<Life>) -> Self {
        let outer = CURRENT.with(|current| current.replace(Some(life.clone())));
        Self { life: life.clone(), outer }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT.with(|current| current.replace(self.outer.take()));
        if std::thread::panicking() {
            // The executor catches it; nobody would hear of it otherwise.
            self.life.count_panic();
        }
    }
}

trait Killable: Send + Sync {
    fn kill(&self);
}

struct Cell<F>(Mutex<Option<Pin<Box<F>>>>);

impl<F: Send> Killable for Cell<F> {
    fn kill(&self) {
        // Dropped outside the lock: dropping may run code that ends other tasks.
        let future = lock(&self.0).take();
        drop(future);
    }
}

/// A future that is polled only while its life lasts.
pub(super) struct LifeTask<F> {
    life: Arc<Life>,
    id: u64,
    cell: Arc<Cell<F>>,
}

impl<F: Future> Future for LifeTask<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !self.life.is_alive() {
            let future = lock(&self.cell.0).take();
            drop(future);
            return Poll::Pending;
        }
        // Taken out while it runs, so that its own node's death finds no lock held.
        let Some(mut future) = lock(&self.cell.0).take() else { return Poll::Pending };
        let running = Running::new(&self.life);
        let polled = future.as_mut().poll(cx);
        drop(running);
        if polled.is_pending() && self.life.is_alive() {
            *lock(&self.cell.0) = Some(future);
        }
        match polled {
            Poll::Ready(_) if !self.life.is_alive() => Poll::Pending,
            polled => polled,
        }
    }
}

impl<F> Drop for LifeTask<F> {
    fn drop(&mut self) {
        lock(&self.life.state).tasks.remove(&self.id);
    }
}
