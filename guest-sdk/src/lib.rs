//! x
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod wasm;
mod binary;
pub mod codec;
mod context;
mod export;
mod guest;
pub mod log;
mod machine;
mod random;
mod reject;
pub use context::{Context, Effects, Header, Host, QueryContext};
pub use guest::Guest;
pub use machine::{Migrate, Params, Snapshot, StateMachine};
pub use reject::Reject;
