//! Stories of machines, told with a guest written by hand so that each byte it touches is known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::disallowed_methods)]

use std::sync::LazyLock;

use super::*;

mod adapter;
mod calls;
pub(super) mod code;
mod gate;
mod machine;
mod meter;

/// A guest that does what the command's first byte says, with the second byte as its argument; its state
/// is a counter in a mutable global and whatever it writes to memory.
pub(super) const SCRIPT: &str = include_str!("tests/script.wat");

pub(super) static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().unwrap());
pub(super) static MODULE: LazyLock<Module> = LazyLock::new(|| load(SCRIPT));

pub(super) const ADD: u8 = 0;
pub(super) const WRITE_AND_TRAP: u8 = 1;
pub(super) const LOOP: u8 = 2;
pub(super) const RECURSE: u8 = 3;
pub(super) const GROW: u8 = 4;
pub(super) const EMIT: u8 = 5;
pub(super) const FAIL: u8 = 6;
pub(super) const LONG_REPLY: u8 = 7;
pub(super) const FILL_PAGES: u8 = 8;
pub(super) const NAN: u8 = 9;
pub(super) const REJECT: u8 = 10;
pub(super) const GROW_AND_TRAP: u8 = 11;
pub(super) const SET_TIMER: u8 = 12;
pub(super) const OUT_OF_BOUNDS: u8 = 13;
pub(super) const DIVIDE: u8 = 14;
pub(super) const RECURSE_WIDE: u8 = 15;
pub(super) const HEADER: u8 = 16;
pub(super) const BAD_POINTER: u8 = 17;

pub(super) const ASK: u8 = 0;
pub(super) const ASK_AND_WRITE: u8 = 1;
pub(super) const ASK_AND_TRAP: u8 = 2;
pub(super) const ASK_AND_EMIT: u8 = 3;

pub(super) fn load(wat: &str) -> Module {
    ENGINE.load(&wat::parse_str(wat).unwrap(), None).unwrap()
}

/// Limits small enough that tests meet them soon.
pub(super) fn limits() -> Limits {
    Limits {
        memory_bytes_max: 4 << 20,
        fuel_per_entry: 1_000_000,
        fuel_init: 10_000_000,
        reply_bytes_max: 1000,
        events_max: 10,
        timers_max: 3,
        ..Limits::default()
    }
}

pub(super) fn new_machine() -> Machine {
    Machine::init(&MODULE, &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap()
}

pub(super) fn at(index: u64) -> Context {
    Context { index, time_ms: 1000 + index, seed: index * 7, session: 0 }
}

/// Tells a story of many calls on one guest stack, where each call alone would start a thread.
pub(super) fn story(told: impl FnOnce() + Send) {
    on_guest_stack(told).unwrap();
}

/// Applies `command` as entry `index`, without looking at its effects.
pub(super) fn apply(machine: &mut Machine, index: u64, command: &[u8]) -> Outcome {
    machine.apply(&at(index), command, &mut Effects::default()).unwrap()
}

pub(super) fn number(outcome: &Outcome) -> u64 {
    let Outcome::Reply(bytes) = outcome else { panic!("no reply: {outcome:?}") };
    u64::from_le_bytes(bytes.as_slice().try_into().unwrap())
}

pub(super) fn code(outcome: &Outcome) -> TrapCode {
    let Outcome::Trapped(trap) = outcome else { panic!("no trap: {outcome:?}") };
    trap.code
}

pub(super) fn snapshot(machine: &mut Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    machine.freeze().unwrap().snapshot(&mut bytes).unwrap();
    bytes
}
