//! Compiles the modules of the tests that are written in Rust to WebAssembly, with a cargo of its own, into the
//! folder that the bundled modules' build uses: the SDK is compiled once for all.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::unwrap_used)]

use std::env;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "wasm32-unknown-unknown";
const PROFILE: [&str; 6] =
    ["opt-level=3", "lto=\"fat\"", "codegen-units=1", "panic=\"abort\"", "strip=true", "debug=false"];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let workspace = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    for watched in ["tests/modules/counter-2", "tests/modules/lines", "guest-sdk", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    let build = out.ancestors().find(|path| path.file_name().is_some_and(|name| name == "build"));
    let target_dir = build.and_then(Path::parent).and_then(Path::parent).unwrap_or(&out).join("bundled");
    for (package, file) in [("lines", "lines.wasm"), ("counter-2", "counter_2.wasm")] {
        let mut command = Command::new(env::var_os("CARGO").expect("cargo sets it"));
        // What the outer cargo runs under is for the host.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            let flags = text.starts_with("CARGO_") && !matches!(&*text, "CARGO_HOME" | "CARGO_HTTP_CAINFO")
                || text.starts_with("RUST") && !matches!(&*text, "RUSTUP_HOME" | "RUSTUP_TOOLCHAIN");
            if flags {
                command.env_remove(&name);
            }
        }
        command.args(["rustc", "--package", package, "--lib", "--crate-type", "cdylib", "--release", "--locked"]);
        command.args(["--target", TARGET, "--target-dir"]).arg(&target_dir).current_dir(&workspace);
        for setting in PROFILE {
            command.args(["--config", &format!("profile.release.{setting}")]);
        }
        let done = command.output().expect("cargo can be started");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let from = target_dir.join(TARGET).join("release").join(file);
        std::fs::copy(&from, out.join(file)).expect("the module was built");
    }
}
