//! The traits an author implements.

use std::io;
use std::io::Read;
use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::binary;
use crate::context::Context;
use crate::context::QueryContext;
use crate::reject;
use crate::reject::Reject;

/// A replicated state machine.
///
/// The host runs one instance on every replica of a group and calls it one call at a time, never
/// from two threads. Whatever a method does must follow from the state and its arguments alone: the
/// same calls in the same order give the same state, replies, events and timers everywhere, today
/// and when a log is replayed next year. [`testing`](crate::testing) checks that.
///
/// * A **rejection** (`Err`) is an answer to the caller and must have changed nothing.
/// * A **panic** is a trap: the host puts the state back as it was before the entry and gives the
///   caller the panic's text. A bug in one command therefore breaks that command and nothing else.
pub trait StateMachine: Default + Snapshot + 'static {
    /// What goes through the log to [`apply`](Self::apply).
    type Command;
    /// What `apply` answers.
    type Reply;
    /// What is asked of local state.
    type Query;
    /// What [`query`](Self::query) answers.
    type Answer;

    /// Sets up a new group's state, once in the group's life, on `Self::default()`. `params` is the
    /// JSON object the group was created with. An `Err` makes the creation fail with its text.
    ///
    /// The default takes no params.
    fn init(&mut self, ctx: &mut Context<'_>, params: Params<'_>) -> Result<(), Reject> {
        let _ = ctx;
        params.none()
    }

    /// Applies one command.
    fn apply(&mut self, ctx: &mut Context<'_>, command: Self::Command) -> Result<Self::Reply, Reject>;

    /// Answers one query from the state as it is.
    fn query(&self, ctx: &QueryContext, query: Self::Query) -> Result<Self::Answer, Reject>;

    /// Timer `id`, set by [`Context::set_timer`], has come: its time is at or before
    /// `ctx.time_ms()`. It is no longer set; set it again for a next time.
    ///
    /// There is nobody to answer. A panic here is logged by the host, changes nothing, and the
    /// timer is gone: keep the work of one call bounded (see *Timers* in
    /// `docs/writing-modules.md`).
    fn on_timer(&mut self, ctx: &mut Context<'_>, id: u64) {
        let _ = (ctx, id);
    }

    /// Client session `session` is over, closed or timed out: drop what it owned. It is called for
    /// every session of the group, also those this machine never saw a command of.
    fn on_session_end(&mut self, ctx: &mut Context<'_>, session: u64) {
        let _ = (ctx, session);
    }
}

/// How the state becomes bytes and comes back.
///
/// **Derived**: every type with serde's `Serialize` and `Deserialize` has it, streamed with bincode
/// (`config::standard()`), so that a snapshot never needs a second copy of the state in memory.
///
/// **By hand**: leave serde's derives off the state and implement this. (A type with both is a
/// conflict the compiler reports.) `out` and `input` are buffered by the SDK; write small pieces
/// freely.
///
/// Two replicas with equal state must write equal bytes. That is where a `HashMap` in the state
/// breaks: its order differs between replicas. Use `BTreeMap` and `BTreeSet`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written to a snapshot",
    note = "derive serde's `Serialize` and `Deserialize` on it, or implement `statehouse_sdk::Snapshot` by hand"
)]
pub trait Snapshot: Sized {
    /// Writes the whole state.
    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()>;

    /// Builds the state from what [`snapshot`](Self::snapshot) wrote. The stream ends where it
    /// ended.
    fn restore(input: &mut dyn Read) -> io::Result<Self>;
}

impl<T: Serialize + DeserializeOwned> Snapshot for T {
    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        binary::write(self, out).map_err(|why| io::Error::other(format!("the state cannot be written: {why}")))
    }

    fn restore(input: &mut dyn Read) -> io::Result<Self> {
        binary::read(input).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

/// Takes over the state of an older version of the module, whose snapshot this one's
/// [`restore`](Snapshot::restore) would not understand. Exported by `export!(Machine, …, migrate)`.
///
/// The host calls it when a group goes over to this module (`statehouse group upgrade`), in place of `restore`.
///
/// ```
/// # use serde::{Serialize, Deserialize};
/// use std::io::{self, Read};
/// use statehouse_sdk::{Migrate, Snapshot};
///
/// #[derive(Serialize, Deserialize)]
/// struct CounterV1 { value: u32 }
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Counter { value: i64, changes: u64 }
///
/// impl Migrate for Counter {
///     fn migrate(input: &mut dyn Read) -> io::Result<Self> {
///         let old = CounterV1::restore(input)?;
///         Ok(Counter { value: old.value.into(), changes: 0 })
///     }
/// }
/// ```
pub trait Migrate: Snapshot {
    /// Builds the state from what the old module's `snapshot` wrote.
    fn migrate(input: &mut dyn Read) -> io::Result<Self>;
}

/// The JSON object a group was created with.
#[derive(Clone, Copy, Debug)]
pub struct Params<'call> {
    json: &'call [u8],
}

impl<'call> Params<'call> {
    /// Params of these JSON bytes.
    pub fn new(json: &'call [u8]) -> Self {
        Self { json }
    }

    /// The JSON, as it came.
    pub fn as_bytes(&self) -> &'call [u8] {
        self.json
    }

    /// Reads the params; no params are an empty object. Give `T` `#[serde(default,
    /// deny_unknown_fields)]`, so that each may be left out and a mistyped name is told.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Reject> {
        let json = if self.json.is_empty() { b"{}" } else { self.json };
        serde_json::from_slice(json).map_err(|error| reject!("params: {error}"))
    }

    /// Refuses any params.
    pub fn none(&self) -> Result<(), Reject> {
        match self.json.trim_ascii() {
            b"" | b"{}" | b"null" => Ok(()),
            other => Err(reject!("this module takes no params, but got {}", String::from_utf8_lossy(other))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_type_without_serde_writes_its_snapshot_by_hand() {
        struct Hand(u8);
        impl Snapshot for Hand {
            fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
                out.write_all(&[self.0])
            }
            fn restore(input: &mut dyn Read) -> io::Result<Self> {
                let mut byte = [0];
                input.read_exact(&mut byte).map(|()| Self(byte[0]))
            }
        }
        let mut bytes = Vec::new();
        Hand(9).snapshot(&mut bytes).unwrap();
        assert_eq!(Hand::restore(&mut &bytes[..]).unwrap().0, 9);
    }

    #[test]
    fn params_nobody_asked_for_are_refused() {
        assert!(Params::new(b" {} ").none().is_ok());
        assert!(Params::new(b"").none().is_ok());
        let text = Params::new(br#"{"size":3}"#).none().unwrap_err();
        assert_eq!(text.text(), r#"this module takes no params, but got {"size":3}"#);
    }
}
