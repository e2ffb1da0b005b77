//! ZooKeeper clients that mean no good, as any bytes say, through the adapter of `znode-tree`: no panic, whole answers in
//! order for those that behave, and nothing is kept of those that are gone.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| znode_tree::fuzz::adapter(bytes));
