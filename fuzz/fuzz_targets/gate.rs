//! Any bytes as a module, and a good module with some bytes changed: the gate answers with a refusal, or lets in what is still valid
//! after the rewrite.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    statehouse::module::fuzz::gate(bytes);
    statehouse::module::fuzz::nearly(bytes);
});
