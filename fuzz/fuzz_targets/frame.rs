//! Any bytes as a peer's connection: a handshake, then frames that arrive in any pieces. No panic, no allocation
//! by a forged length, the same frames however the bytes are cut, and each frame has one encoding.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| statehouse::peer::fuzz::connection(bytes));
