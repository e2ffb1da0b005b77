//! What the whole-system tests are made of: real nodes in processes of their own, and clients.
//!
//! A node never outlives its test: it is killed when its handle is dropped, and if the test's process itself
//! dies, it sees its standard input close. Every cluster has a loopback address of its own, so tests neither
//! share nor race for ports.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::disallowed_methods)]

pub mod cluster;
pub mod disk;
pub mod fuzz;
pub mod http;
pub mod keeper;
pub mod lines;
pub mod load;
pub mod modules;
pub mod program;
pub mod proxy;
pub mod redis;
pub mod s3;
pub mod wait;

/// Says something even if the test passes: the test runner keeps what those `println!` to itself.
pub fn report(text: impl std::fmt::Display) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{text}"));
}
