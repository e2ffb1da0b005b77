//! The clients of `keeper` at the adapter of `znode-tree` inside WebAssembly: no trap, memory below a bound, and what the
//! native adapter answers, byte for byte.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| statehouse_tests::fuzz::adapter(bytes));
