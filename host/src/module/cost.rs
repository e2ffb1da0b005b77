//! stub
/// Counts up whenever the same module could give another fuel or stack outcome than before: the cost
/// table, the stack rewrite, wasmtime's own accounting. Part of the cluster's version.
pub const RUNTIME_VERSION: u32 = 1;
