//! The modules that come with the program; `build.rs` compiled them.

/// Name and bytes of each bundled module.
pub fn all() -> &'static [(&'static str, &'static [u8])] {
    const ALL: &[(&str, &[u8])] = &[
        ("counter", include_bytes!(concat!(env!("OUT_DIR"), "/counter.wasm"))),
        ("kv", include_bytes!(concat!(env!("OUT_DIR"), "/kv.wasm"))),
    ];
    ALL
}
