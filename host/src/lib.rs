//! Statehouse runs a WebAssembly state machine as a replicated service.
//!
//! A stranger's map is in `docs/architecture.md`; the short one: [`node`] starts and stops everything, a
//! [`group`] is one replicated state machine, the [`catalog`] says which there are, [`log`] and
//! [`snapshot`] keep them, [`module`] runs guest code and knows nothing of Raft, [`peer`] carries messages
//! between nodes, [`service`] is what a node offers and the HTTP API serves.

pub mod api;
pub mod bundled;
pub mod catalog;
pub mod cli;
pub mod codec;
pub mod config;
pub mod disk;
pub mod gateway;
pub mod group;
pub mod keeper;
pub mod log;
pub mod membership;
pub mod module;
pub mod net;
pub mod node;
pub mod observe;
pub mod offline;
pub mod peer;
pub mod platform;
pub mod repeats;
pub mod service;
pub mod sim;
pub mod snapshot;
pub mod status;
pub mod tally;
pub mod types;
