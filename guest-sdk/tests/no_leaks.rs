//! A module lives for years: what a call allocates must be gone when the next one begins.

#![allow(unsafe_code)] // A global allocator cannot be written without.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::cell::Cell;

use serde::Deserialize;
use serde::Serialize;
use statehouse_sdk::Context;
use statehouse_sdk::Effects;
use statehouse_sdk::Guest;
use statehouse_sdk::Header;
use statehouse_sdk::QueryContext;
use statehouse_sdk::Reject;
use statehouse_sdk::StateMachine;
use statehouse_sdk::codec::Json;

/// The system's allocator, counting the bytes that are out.
struct Counting;

thread_local! {
    /// Of this thread: the test runner's own threads allocate when they like.
    static BYTES_OUT: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES_OUT.set(BYTES_OUT.get() + layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        BYTES_OUT.set(BYTES_OUT.get() - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Keeps the last text.
#[derive(Default, Serialize, Deserialize)]
struct Last(String);

impl StateMachine for Last {
    type Command = String;
    type Reply = String;
    type Query = ();
    type Answer = String;

    fn apply(&mut self, ctx: &mut Context<'_>, command: String) -> Result<String, Reject> {
        if command.is_empty() {
            return Err(Reject::new("empty"));
        }
        ctx.set_timer_after(ctx.index(), 1);
        Ok(std::mem::replace(&mut self.0, command))
    }

    fn query(&self, _: &QueryContext, (): ()) -> Result<String, Reject> {
        Ok(self.0.clone())
    }
}

#[test]
fn a_million_calls_leave_no_byte_behind() {
    let mut guest = Guest::<Last, Json>::default();
    let mut host = Effects::default();
    let mut reply = Vec::with_capacity(1 << 10);
    let call = |payload: &[u8]| [&Header::default().to_bytes(), payload].concat();
    let calls = [call(br#""some words""#), call(br#""words again""#), call(br#""""#), call(b"no JSON")];
    let question = call(b"");
    let mut round = || {
        for argument in &calls {
            reply.clear();
            let _ = guest.apply(&mut host, argument, &mut reply);
            host = Effects::default();
        }
        reply.clear();
        let _ = guest.query(&question, &mut reply);
    };
    round();
    let before = BYTES_OUT.get();
    for _ in 0..200_000 {
        round();
    }
    assert_eq!(BYTES_OUT.get(), before);
}
