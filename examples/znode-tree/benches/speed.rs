//! How long operations take, natively: a note, not a judgement.
//!
//! ```sh
//! cargo bench -p znode-tree
//! ```
//!
//! What the same takes in WebAssembly, with fuel, is another question: see `docs/performance.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

#[path = "../tests/support/mod.rs"]
mod support;

use statehouse_sdk::Snapshot;
use support::*;
use znode_tree::ZnodeTree;
use znode_tree::wire::op;

const NODES: usize = 1_000_000;

/// What this thread has computed so far, nanoseconds: on a machine that does something else as well,
/// the clock tells little.
fn computed_ns() -> usize {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    schedule.split(' ').next().unwrap().parse().unwrap()
}

/// What this process has of the machine's memory, bytes.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn main() {
    // `cargo test --all-targets` runs benches, too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut plain = Plain::new("{}");
    for top in 0..100 {
        plain.write(1, &[], &create(&format!("/d{top}"), b"", 0));
    }
    let path = |number: usize| format!("/d{}/node{number:07}", number % 100);
    let scattered = |number: usize| path(number * 7_919 % NODES);
    let time = |what: &str, count: usize, run: &mut dyn FnMut(usize)| {
        let start = computed_ns();
        (0..count).for_each(run);
        println!("{what}: {} ns", (computed_ns() - start) / count);
    };
    time("the request alone", NODES, &mut |number| _ = call(&create(&path(number), &[7; 100], 0), &[("ip", "::1")]));
    let before = resident_bytes();
    time("create", NODES, &mut |number| _ = plain.write(1, &[], &create(&path(number), &[7; 100], 0)));
    // In WebAssembly pointers are half as long: see the host's bench `znodes`.
    let beyond = (resident_bytes() - before) / NODES - path(0).len() - 100;
    println!("memory: {beyond} bytes a node, beyond path and data");
    time("get", NODES, &mut |number| _ = plain.read(1, &[], &read(op::GET_DATA, &scattered(number))));
    time("set", NODES, &mut |number| _ = plain.write(1, &[], &set_data(&scattered(number), &[8; 100], -1)));
    let start = computed_ns();
    let bytes = plain.snapshot();
    println!("snapshot: {} ms, {} MiB", (computed_ns() - start) / 1_000_000, bytes.len() >> 20);
    let start = computed_ns();
    let restored = ZnodeTree::restore(&mut &bytes[..]).unwrap();
    println!("restore: {} ms", (computed_ns() - start) / 1_000_000);
    assert_eq!(restored.tree().node_count(), plain.machine.tree().node_count());
    time("delete", NODES, &mut |number| _ = plain.write(1, &[], &delete(&scattered(number), -1)));
}
