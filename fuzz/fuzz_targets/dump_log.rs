//! Any bytes as a ZooKeeper transaction log, and any transactions with valid checksums: a tree or an error with its place, no
//! panic, and the same tree twice.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| statehouse::keeper::dump::fuzz::log(bytes));
