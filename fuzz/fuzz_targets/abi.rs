//! A guest made of any bytes, which loops, recurses, traps, grows and hands the host any pointers and lengths:
//! no panic and no fault, nothing left of a call that trapped, and the same outcomes on a second machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| statehouse::module::fuzz::abi(bytes));
