//! The adapter and the state machine together, as clients see them: stories over connections in
//! memory. What is expected here was seen of Apache ZooKeeper 3.8 (Debian's package), asked the same
//! bytes, where not said otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod fuzz;
mod handshakes;
mod limits;
mod order;
mod rcfg;
mod readonly;
mod reconfig;
mod sessions;
mod watches;
mod words;
mod world;
