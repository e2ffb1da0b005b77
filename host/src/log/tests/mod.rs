//! Tests of the log as a whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod conformance;
mod crash;
mod damage;
mod faults;
mod golden;
mod harness;
mod inspection;
mod segments;
