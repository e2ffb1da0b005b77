//! WebAssembly state machines: what is refused at the gate, how a module is compiled, and the live
//! [`Machine`] whose memory the host owns. This folder knows nothing of Raft, and is the only one
//! with `unsafe`.
//!
//! What holds for every [`Machine`], and what each file adds to it:
//!
//! - An entry that traps leaves memory, globals and memory size byte for byte as they were before it
//!   (`machine.rs`: checkpoint and redo; `memory.rs`: private copy-on-write pages over the committed image).
//! - A query never touches the live instance: it runs on another one over the same image (`machine.rs`).
//! - The same entries give the same state, replies, events and fuel on every host: fuel (`cost.rs`, `meter.rs`) and
//!   stack bound in the guest's own code (`rewrite.rs`), NaN canonicalisation and features (`engine.rs`),
//!   memory growth decided by [`Limits`] alone (`imports.rs`).
//! - What is this host's trouble is a [`Fault`], never an [`Outcome`].

mod adapter;
mod cache;
mod copy;
mod cost;
mod engine;
pub mod fuzz;
mod gate;
mod image_file;
mod imports;
mod inspect;
mod instance;
mod limits;
mod machine;
mod marks;
mod memory;
mod meter;
mod rewrite;
mod stack;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde::Serialize;

pub use adapter::AdapterCall;
pub use adapter::AdapterError;
pub use adapter::AdapterInstance;
pub use cache::CodeCache;
pub use cache::DirCache;
pub use cache::Turn;
pub use cost::RUNTIME_VERSION;
pub use engine::Engine;
pub use engine::Module;
pub use gate::GateCode;
pub use gate::GateError;
pub use gate::ModuleInfo;
pub use gate::SelfTest;
pub use limits::Limits;
pub use machine::Frozen;
pub use machine::Machine;
pub use stack::GUEST_STACK_BYTES;
pub use stack::mark_guest_thread;
pub use stack::on_guest_stack;

/// What an entry brings besides its bytes: all that a guest may know of the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The entry's log index.
    pub index: u64,
    /// The entry's time, Unix milliseconds; never goes back from entry to entry.
    pub time_ms: u64,
    /// From the entry; expanded to the 128 bits the guest sees by a fixed function.
    pub seed: u64,
    /// The session the command came in; 0 for none.
    pub session: u64,
}

/// A timer that a call set, moved or cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerChange {
    /// The guest's own number for the timer.
    pub id: u64,
    /// Fires at the first entry time at or after this, Unix milliseconds; `None` clears it.
    pub at_ms: Option<u64>,
}

/// How grave a guest's log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LogLevel {
    /// Level 1 of the ABI.
    Error,
    /// Level 2.
    Warn,
    /// Level 3.
    Info,
    /// Level 4 and all others.
    Debug,
}

/// What a call did besides its reply. Each call clears it first, so one value can be used for many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Events in the order of emission. Empty when the call trapped.
    pub events: Vec<Vec<u8>>,
    /// Told by the caller: the group has as many armed timers as it may have, and arming one more traps.
    pub timers_full: bool,
    /// Timer changes in order; a later one of the same id wins. Empty when the call trapped.
    pub timers: Vec<TimerChange>,
    /// Log lines, also those of a call that trapped. Not part of the replicated outcome.
    pub logs: Vec<(LogLevel, String)>,
    /// Fuel that the call took, the same on every replica.
    pub fuel_used: u64,
}

impl Effects {
    /// Forgets everything, keeps the room.
    pub fn clear(&mut self) {
        self.events.clear();
        self.timers.clear();
        self.logs.clear();
        self.fuel_used = 0;
    }
}

/// How a guest call ended; the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The guest's answer.
    Reply(Vec<u8>),
    /// The guest refused the input with this text: an ordinary outcome, its state may have moved.
    Rejected(String),
    /// The guest was stopped; its state is as before the call and it had no effects.
    Trapped(Trap),
}

/// Why a guest was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Trap {
    /// The stable code.
    pub code: TrapCode,
    /// The guest's own text for a panic; else what happened, and in which function if that is known.
    pub message: String,
}

macro_rules! trap_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The stable code of a trap; `as_str` is what clients see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum TrapCode { $($(#[$doc])* $name,)* }
        impl TrapCode {
            /// Every code.
            pub const ALL: &[TrapCode] = &[$(TrapCode::$name,)*];
            /// The code as clients see it: a contract, never renamed.
            pub const fn as_str(self) -> &'static str {
                match self { $(TrapCode::$name => $text,)* }
            }
        }
    };
}

trap_codes! {
    /// The guest called `fail`: its panic text is the message.
    Panic = "panic",
    /// The call's fuel ran out.
    OutOfFuel = "out_of_fuel",
    /// The guest gave up (or its `alloc` returned 0) after memory growth over the limit was refused.
    MemoryLimit = "memory_limit",
    /// Calls nested deeper than the logical stack allows.
    StackOverflow = "stack_overflow",
    /// A load, store or bulk operation outside linear memory.
    OutOfBounds = "out_of_bounds",
    /// A table index out of range.
    TableOutOfBounds = "table_out_of_bounds",
    /// An indirect call through an empty table slot.
    IndirectCallToNull = "indirect_call_to_null",
    /// An indirect call of a function of another type.
    BadSignature = "bad_signature",
    /// Division overflow.
    IntegerOverflow = "integer_overflow",
    /// Division by zero.
    IntegerDivideByZero = "integer_divide_by_zero",
    /// A float that does not fit the integer.
    BadConversionToInteger = "bad_conversion_to_integer",
    /// The `unreachable` instruction: an abort without a text.
    Unreachable = "unreachable",
    /// The result's bytes are more than `reply_bytes_max`.
    ReplyTooLarge = "reply_too_large",
    /// The result's pointer and length lie outside memory, or a rejection text is not UTF-8.
    BadResult = "bad_result",
    /// A pointer and length given to an import lie outside memory, or its text is not UTF-8.
    BadPointer = "bad_pointer",
    /// More events than `events_max`.
    TooManyEvents = "too_many_events",
    /// An event, or all events of the call together, are more than their limit in bytes.
    EventTooLarge = "event_too_large",
    /// More timer changes than `timers_max`.
    TooManyTimers = "too_many_timers",
    /// An import was called where the ABI forbids it, such as `emit` in a query.
    ForbiddenCall = "forbidden_call",
    /// The guest's `snapshot` wrote more than `snapshot_bytes_max`.
    SnapshotTooLarge = "snapshot_too_large",
    /// A trap this list has no word for; the message has wasmtime's.
    Other = "other",
}

/// This machine (the host, not the guest) failed: the replica must stop. Never a replicated outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this replica's machine failed and must stop: {what}")]
pub struct Fault {
    /// What was tried, what the system said, and what to do if that is known.
    pub what: String,
}

impl Fault {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Fault { what: what.into() }
    }

    /// A fault from a failed system call or wasmtime call, with what was being done.
    pub(crate) fn because(doing: &str, error: impl std::fmt::Display) -> Self {
        Fault { what: format!("{doing}: {error}") }
    }
}

/// A module could not be compiled or loaded on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The bytes are not a module the gate lets in.
    #[error(transparent)]
    Refused(#[from] GateError),
    /// The compiler refused what the gate let in.
    #[error("cannot compile the module: {0}")]
    Compile(String),
    /// This host cannot run modules.
    #[error("this host cannot run modules: {0}")]
    Host(String),
}

/// A machine did not come to life by `init`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// The guest refused the params, with this text.
    #[error("the module rejected its parameters: {0}")]
    Rejected(String),
    /// The guest trapped.
    #[error("the module trapped in init: {0}")]
    Trapped(Trap),
    /// This host failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A machine did not come to life from a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The guest refused the snapshot, or left bytes of it unread.
    #[error("the module rejected the snapshot: {0}")]
    Rejected(String),
    /// The guest trapped.
    #[error("the module trapped in restore: {0}")]
    Trapped(Trap),
    /// The snapshot's bytes could not be read.
    #[error("cannot read the snapshot: {0}")]
    Unreadable(std::io::Error),
    /// This host failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A snapshot was not taken. The machine itself is unharmed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The guest refused.
    #[error("the module refused to take a snapshot: {0}")]
    Rejected(String),
    /// The guest trapped.
    #[error("the module trapped in snapshot: {0}")]
    Trapped(Trap),
    /// The snapshot's bytes could not be written.
    #[error("cannot write the snapshot: {0}")]
    Unwritable(std::io::Error),
    /// This host failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}
