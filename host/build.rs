//! Compiles the bundled modules to WebAssembly with a cargo of its own, for `src/bundled.rs` to embed.
//!
//! The nested cargo must not see what the outer one runs under: its flags, profile and wrappers (clippy,
//! coverage, another target) are for the host. It builds into one folder beside the outer profiles' folders, so debug,
//! release, clippy and doc builds compile the modules once.
#![allow(clippy::print_stdout)]

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;

const MODULES: [&str; 3] = ["counter", "kv", "znode-tree"];
const TARGET: &str = "wasm32-unknown-unknown";
const ADD_TARGET: &str = "rustup target add wasm32-unknown-unknown";

/// The bundled modules' profile, whatever the workspace's says: they are run much more often than they are built.
const PROFILE: [&str; 6] =
    ["opt-level=3", "lto=\"fat\"", "codegen-units=1", "panic=\"abort\"", "strip=true", "debug=false"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let workspace = workspace
        .canonicalize()
        .map_err(|error| format!("cannot find the workspace {}: {error}", workspace.display()))?;
    for watched in ["examples", "guest-sdk", "Cargo.toml", "Cargo.lock", "host/build.rs"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=RUSTUP_TOOLCHAIN");
    ensure_target()?;
    let target_dir = shared_target_dir(&out);
    for module in MODULES {
        compile(module, &workspace, &target_dir)?;
        let from = target_dir.join(TARGET).join("release").join(format!("{}.wasm", module.replace('-', "_")));
        let to = out.join(format!("{module}.wasm"));
        fs::copy(&from, &to).map_err(|error| format!("cannot copy {} to {}: {error}", from.display(), to.display()))?;
    }
    Ok(())
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

/// `target/bundled`, from `target/PROFILE/build/PACKAGE/out`; or a folder in there if the shape is another.
fn shared_target_dir(out: &Path) -> PathBuf {
    let build = out.ancestors().find(|path| path.file_name().is_some_and(|name| name == "build"));
    build.and_then(Path::parent).and_then(Path::parent).unwrap_or(out).join("bundled")
}

/// Adds the WebAssembly target to the toolchain if it is not there.
fn ensure_target() -> Result<(), String> {
    if has_target()? {
        return Ok(());
    }
    let added = Command::new("rustup").args(["target", "add", TARGET]).output();
    let why = match added {
        Ok(output) if output.status.success() && has_target()? => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("rustup cannot be started: {error}"),
    };
    Err(format!(
        "the bundled modules need the {TARGET} target of this toolchain, and adding it failed:\n{why}\nType: {ADD_TARGET}"
    ))
}

fn has_target() -> Result<bool, String> {
    let output = Command::new(variable("RUSTC")?).args(["--print", "target-libdir", "--target", TARGET]).output();
    let output = output.map_err(|error| format!("rustc cannot be started: {error}"))?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    Ok(entries.any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
}

/// Builds one module. As a cdylib alone: a crate that is also to be an rlib gets no link-time optimisation.
fn compile(module: &str, workspace: &Path, target_dir: &Path) -> Result<(), String> {
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(workspace)
        .args([
            "rustc",
            "--release",
            "-p",
            module,
            "--lib",
            "--crate-type",
            "cdylib",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target_dir);
    for setting in PROFILE {
        cargo.arg("--config").arg(format!("profile.release.{setting}"));
    }
    for (name, _) in env::vars_os() {
        if is_of_outer_build(&name.to_string_lossy()) {
            cargo.env_remove(name);
        }
    }
    // Panic texts carry file names: without the paths of this machine, the same source is the same module everywhere.
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags: Vec<String> =
        home.iter().map(|home| remap(home, "cargo")).chain([remap(workspace, "statehouse")]).collect();
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let output = cargo.output().map_err(|error| format!("cargo cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("the bundled module {module} does not compile:\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// Whether a variable describes the outer build. Where cargo keeps and gets its crates, and the tokens that
/// bound how much runs at once, are shared.
fn is_of_outer_build(name: &str) -> bool {
    let shared = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_TERM_"];
    let outer = [
        "CARGO_",
        "RUSTFLAGS",
        "RUSTC",
        "RUSTDOC",
        "CLIPPY_",
        "TARGET",
        "HOST",
        "OUT_DIR",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "LLVM_PROFILE_FILE",
        "__CARGO",
    ];
    outer.iter().any(|prefix| name.starts_with(prefix)) && !shared.iter().any(|prefix| name.starts_with(prefix))
}
