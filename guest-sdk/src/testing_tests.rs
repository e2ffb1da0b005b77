//! Each test is a machine with one of the mistakes the harness is there to find.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_types)] // A HashSet is the mistake.

use std::cell::Cell;
use std::collections::HashSet;

use serde::Deserialize;
use serde::Serialize;

use super::*;
use crate::Params;
use crate::context::Context;
use crate::context::QueryContext;
use crate::ensure;

/// The mistakes, one variant each, and the good deeds beside them.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Command {
    /// Keeps text in a `HashSet`, which the snapshot writes in its own order.
    Hash(Vec<String>),
    /// Counts in a field that the snapshot leaves out.
    Skip,
    /// Changes the state, then rejects.
    LateReject,
    /// Emits, then rejects.
    EmitAndReject,
    /// Sets a timer which sets itself for the same time, for ever.
    Restless,
    /// Nothing wrong: sets timer `id`.
    Timer { id: u64, after_ms: u64 },
    /// Nothing wrong: draws a number.
    Draw,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Flawed {
    hashed: HashSet<String>,
    #[serde(skip)]
    skipped: u64,
    changes: u64,
    looked: Cell<u64>,
}

impl StateMachine for Flawed {
    type Command = Command;
    type Reply = u64;
    type Query = bool;
    type Answer = u64;

    fn init(&mut self, ctx: &mut Context<'_>, params: Params<'_>) -> Result<(), Reject> {
        ctx.emit("the group begins");
        params.none()
    }

    fn apply(&mut self, ctx: &mut Context<'_>, command: Command) -> Result<u64, Reject> {
        match command {
            Command::Hash(words) => self.hashed.extend(words),
            Command::Skip => {
                self.skipped += 1;
                return Ok(self.skipped);
            }
            Command::LateReject => {
                self.changes += 1;
                ensure!(self.changes == 0, "too late");
            }
            Command::EmitAndReject => {
                ctx.emit("said");
                return Err(Reject::new("and taken back"));
            }
            Command::Restless => ctx.set_timer_after(0, 0),
            Command::Timer { id, after_ms } => ctx.set_timer_after(id, after_ms),
            Command::Draw => return Ok(ctx.random_u64()),
        }
        Ok(0)
    }

    /// Looks, and with `true` leaves a trace of it.
    fn query(&self, _: &QueryContext, trace: bool) -> Result<u64, Reject> {
        self.looked.set(self.looked.get() + u64::from(trace));
        Ok(self.looked.get())
    }

    fn on_timer(&mut self, ctx: &mut Context<'_>, id: u64) {
        match id {
            0 => ctx.set_timer_after(0, 0),
            _ => ctx.emit_json(&(id, ctx.time_ms() - START_MS)),
        }
    }
}

#[test]
#[should_panic(expected = "HashMap or HashSet")]
fn hash_order_in_the_state_is_found() {
    let words = (0..64).map(|n| n.to_string()).collect();
    let _ = Harness::<Flawed>::new().apply(Command::Hash(words));
}

#[test]
#[should_panic(expected = "gives two replicas other replies: 2 and 1. A replica that restarts would go on differently")]
fn a_field_missing_in_the_snapshot_is_found() {
    let mut harness = Harness::<Flawed>::new();
    assert_eq!(harness.apply(Command::Skip).expect("the first is still equal"), 1);
    let _ = harness.apply(Command::Skip);
}

#[test]
#[should_panic(expected = "was rejected, but changed the state")]
fn a_rejection_that_changed_something_is_found() {
    let _ = Harness::<Flawed>::new().apply(Command::LateReject);
}

#[test]
#[should_panic(expected = "was rejected, but emitted 1 events")]
fn a_rejection_that_emitted_something_is_found() {
    let _ = Harness::<Flawed>::new().apply(Command::EmitAndReject);
}

#[test]
#[should_panic(expected = "is there a Cell")]
fn a_query_that_changes_the_state_is_found() {
    let mut harness = Harness::<Flawed>::new();
    assert_eq!(harness.query(false).expect("looking is fine"), 0);
    let _ = harness.query(true);
}

#[test]
#[should_panic(expected = "timer 0 keeps being set")]
fn timers_that_never_rest_are_found() {
    let mut harness = Harness::<Flawed>::new();
    harness.apply(Command::Restless).expect("setting it is fine");
    harness.advance(1);
}

#[test]
fn timers_fire_in_the_order_of_their_times_and_once() {
    let mut harness = Harness::<Flawed>::new();
    for (id, after_ms) in [(3, 20), (1, 30), (2, 20), (1, 10)] {
        harness.apply(Command::Timer { id, after_ms }).unwrap();
    }
    assert_eq!(harness.advance(9), 0);
    assert_eq!(harness.advance(100), 3, "timer 1 was moved, not set twice");
    assert_eq!(harness.take_events(), ["[1,10]", "[2,20]", "[3,20]"]);
    assert_eq!(harness.now_ms(), START_MS + 109);
    assert!(harness.timers().is_empty());
}

#[test]
fn each_entry_draws_other_numbers_and_every_harness_the_same() {
    let draw = || {
        let mut harness = Harness::<Flawed>::new();
        [harness.apply(Command::Draw).unwrap(), harness.apply(Command::Draw).unwrap()]
    };
    let [first, second] = draw();
    assert_ne!(first, second);
    assert_eq!(draw(), [first, second]);
}

#[test]
fn rarer_checks_still_find_the_mistake() {
    let result = std::panic::catch_unwind(|| {
        let mut harness = Harness::<Flawed>::new().check_every(3);
        for step in 0..3 {
            let words = (0..64).map(|n| format!("{step} {n}")).collect();
            harness.apply(Command::Hash(words)).unwrap();
        }
    });
    assert!(result.is_err());
}

/// A test saw what `init` emitted, and no listener ever did.
#[test]
fn what_init_emits_reaches_nobody() {
    assert_eq!(Harness::<Flawed>::new().take_events(), [""; 0]);
}
