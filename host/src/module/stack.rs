//! Where guest code runs: on threads whose stack is large enough that the guest's logical stack limit
//! (`rewrite.rs`) is always met first.

use std::cell::Cell;

/// Most that compiled guest code may use of a thread's stack: many times the logical limit, so that the
/// logical limit is always met first.
pub(super) const WASM_STACK_BYTES: usize = 64 << 20;

/// Stack size that threads which call into machines should have.
pub const GUEST_STACK_BYTES: usize = 72 << 20;

thread_local! {
    static MARKED: Cell<bool> = const { Cell::new(false) };
}

/// Says that this thread was made with a stack of [`GUEST_STACK_BYTES`]: calls into machines run on it
/// directly. On an unmarked thread each call moves to a thread of its own, which is right but slow.
pub fn mark_guest_thread() {
    MARKED.with(|marked| marked.set(true));
}

/// Runs `work` on a stack that guest code may use: here if the thread is marked, else on a scoped thread.
pub fn on_guest_stack<R: Send>(work: impl FnOnce() -> R + Send) -> std::io::Result<R> {
    if MARKED.with(Cell::get) {
        return Ok(work());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("guest".into()).stack_size(GUEST_STACK_BYTES).spawn_scoped(
            scope,
            || {
                mark_guest_thread();
                work()
            },
        )?;
        match thread.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
