//! Any records, with any damage, as a segment of the node's log: opening it answers with a log or an error, and
//! what an opened log shows, it shows again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| statehouse::log::fuzz::segment(bytes));
