//! Any bytes as a snapshot file: an error or a head and a payload, no panic, no allocation by a forged length; and
//! what verifies reads whole.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| statehouse::snapshot::fuzz::file(bytes));
