//! Write a replicated service as a plain Rust type.
//!
//! Statehouse runs *your* state machine on every replica of a group, with consensus, a durable log,
//! snapshots, sessions, timers and events around it. This crate is what you write it against:
//! implement [`StateMachine`], [`export!`] it, compile to wasm32, upload.
//!
//! # A complete module
//!
//! `Cargo.toml`:
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib", "rlib"] # the module; the library its tests use
//!
//! [dependencies]
//! serde = { version = "1", features = ["derive"] }
//! statehouse-sdk = "0.1"
//!
//! [profile.release] # a third smaller
//! lto = true
//! codegen-units = 1
//! strip = true
//! ```
//!
//! `src/lib.rs`: tickets, numbered in the order of the log.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use serde::{Deserialize, Serialize};
//! use statehouse_sdk::{Context, QueryContext, Reject, StateMachine, ensure};
//!
//! /// The state. The serde derives also make its snapshot.
//! #[derive(Default, Serialize, Deserialize)]
//! pub struct Tickets {
//!     next: u64,
//!     holders: BTreeMap<u64, String>, // never a HashMap: its order differs between replicas
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! pub enum Command {
//!     Take { name: String },
//!     Return { ticket: u64 },
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! pub enum Query {
//!     Holder { ticket: u64 },
//! }
//!
//! impl StateMachine for Tickets {
//!     type Command = Command;
//!     type Reply = u64;
//!     type Query = Query;
//!     type Answer = Option<String>;
//!
//!     fn apply(&mut self, ctx: &mut Context<'_>, command: Command) -> Result<u64, Reject> {
//!         match command {
//!             Command::Take { name } => {
//!                 ensure!(!name.is_empty(), "a holder needs a name"); // first check...
//!                 self.next += 1; // ...then change
//!                 ctx.emit_json(&("taken", self.next, &name));
//!                 self.holders.insert(self.next, name);
//!                 Ok(self.next)
//!             }
//!             Command::Return { ticket } => {
//!                 self.holders.remove(&ticket).ok_or("nobody holds that ticket")?;
//!                 Ok(ticket)
//!             }
//!         }
//!     }
//!
//!     fn query(&self, _: &QueryContext, query: Query) -> Result<Option<String>, Reject> {
//!         let Query::Holder { ticket } = query;
//!         Ok(self.holders.get(&ticket).cloned())
//!     }
//! }
//!
//! statehouse_sdk::export!(Tickets);
//!
//! # fn main() -> Result<(), Reject> {
//! // A test, with `cargo test`: three replicas, checked against each other on every step.
//! let mut harness = statehouse_sdk::testing::Harness::<Tickets>::new();
//! assert_eq!(harness.apply(Command::Take { name: "Ada".to_owned() })?, 1);
//! assert_eq!(harness.take_events(), [r#"["taken",1,"Ada"]"#]);
//! assert_eq!(harness.query_text(r#"{"Holder":{"ticket":1}}"#)?, r#""Ada""#);
//! assert_eq!(harness.apply(Command::Return { ticket: 7 }).unwrap_err().text(), "nobody holds that ticket");
//! # Ok(())
//! # }
//! ```
//!
//! ```sh
//! cargo build --release --target wasm32-unknown-unknown
//! ```
//!
//! # What must hold
//!
//! * **Deterministic.** Time, randomness and the caller come from [`Context`] alone. The state
//!   holds no `HashMap`. [`testing::Harness`] finds violations natively.
//! * **A rejection changes nothing**; a panic is rolled back by the host, and its text is the
//!   answer.
//! * **Bounded.** Each entry has fuel, and limits for its reply, events and timers. Work that can
//!   grow with the state is cut into pieces, by a timer set for now.
//!
//! `docs/writing-modules.md` tells all this at length, `docs/abi.md` what lies below, for other
//! languages.
//!
//! # Unsafe code
//!
//! There is some in `src/wasm.rs`, which calls the host, and in `src/compare.rs`, which compares bytes faster than
//! Rust's own on wasm32, and nowhere else.

pub mod adapter;
mod binary;
pub mod codec;
#[cfg(target_arch = "wasm32")]
mod compare;
mod context;
mod export;
mod guest;
pub mod log;
mod machine;
mod random;
mod reject;
mod shape;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing_adapter;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod wasm;

pub use context::Context;
pub use context::Effects;
pub use context::Header;
pub use context::Host;
pub use context::QueryContext;
pub use guest::Guest;
pub use machine::Migrate;
pub use machine::Params;
pub use machine::Snapshot;
pub use machine::StateMachine;
pub use reject::Reject;

/// The author's guide: its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/writing-modules.md")]
struct WritingModules;
