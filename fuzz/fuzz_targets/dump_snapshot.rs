//! Any bytes as a ZooKeeper snapshot, packed or not, with and without a valid checksum: a tree or an error with its place;
//! no panic, and what is read can be loaded.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| statehouse::keeper::dump::fuzz::snapshot(bytes));
