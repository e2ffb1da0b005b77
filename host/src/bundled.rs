//! The modules that come with the program; `build.rs` compiled them.

/// Name and bytes of each bundled module.
pub fn all() -> &'static [(&'static str, &'static [u8])] {
    const ALL: &[(&str, &[u8])] = &[
        ("counter", include_bytes!(concat!(env!("OUT_DIR"), "/counter.wasm"))),
        ("kv", include_bytes!(concat!(env!("OUT_DIR"), "/kv.wasm"))),
        ("znode-tree", include_bytes!(concat!(env!("OUT_DIR"), "/znode-tree.wasm"))),
    ];
    ALL
}

/// The bytes of the bundled module of this name.
pub fn get(name: &str) -> Option<&'static [u8]> {
    all().iter().find(|(known, _)| *known == name).map(|(_, wasm)| *wasm)
}
