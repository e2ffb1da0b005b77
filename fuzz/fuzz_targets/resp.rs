//! Any bytes from a Redis client at the adapter of `kv`: replies that are RESP, nodes that agree, and other clients that
//! notice nothing.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kv::resp::fuzz::bytes(bytes));
