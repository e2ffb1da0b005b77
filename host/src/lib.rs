//! Statehouse runs a WebAssembly state machine as a replicated service.

pub mod codec;
pub mod service;
pub mod types;
