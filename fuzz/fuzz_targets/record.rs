//! Any bytes as a record of the node's log: no panic, and no record with two encodings.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| statehouse::log::fuzz::record(bytes));
