//! `statehouse module`: the WebAssembly files that groups run.

use std::io::IsTerminal;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use clap::Subcommand;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use super::Call;
use super::Client;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::Repeat;
use super::client::encode;
use super::output;
use crate::api::schema::Module;
use crate::api::schema::ModuleList;
use crate::config::parse_bytes;
use crate::module;

/// From this size on a person sees how far the upload is.
const PROGRESS_BYTES_MIN: usize = 256 << 10;

/// Upload, look at, check and remove modules
///
/// A module is a state machine as a WebAssembly file. `docs/tutorial.md` shows how to write one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse module check target/wasm32-unknown-unknown/release/counter.wasm
  statehouse module push target/wasm32-unknown-unknown/release/counter.wasm --name counter
  statehouse module push --bundled kv")]
pub(super) struct ModuleVerbs {
    #[command(subcommand)]
    verb: ModuleVerb,
}

#[derive(Debug, Subcommand)]
enum ModuleVerb {
    /// Upload a module: done when a majority of the nodes holds it durably
    #[command(after_help = "\
Examples:
  statehouse module push target/wasm32-unknown-unknown/release/counter.wasm --name counter
  statehouse module push counter.wasm                        its name is counter
  statehouse module push --bundled kv")]
    Push {
        /// The .wasm file
        #[arg(required_unless_present = "bundled")]
        file: Option<PathBuf>,
        /// The name groups will use; the file's name without .wasm when left out
        #[arg(long)]
        name: Option<String>,
        /// Upload a module that came with this program instead of a file
        #[arg(long, value_name = "NAME", conflicts_with = "file")]
        bundled: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the modules
    Ls {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one module
    Show {
        /// The module
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a module that no group runs
    Rm {
        /// The module
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Check a file as an upload would, without a server
    Check(Check),
}

#[derive(Args, Debug)]
struct Check {
    /// The .wasm file
    file: PathBuf,
    /// The largest module, as the nodes are told
    #[arg(long, value_name = "BYTES", default_value = "32MiB", value_parser = parse_bytes)]
    module_bytes_max: u64,
    /// The most linear memory a group's module may have, as the nodes are told
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = parse_bytes)]
    group_memory_bytes_max: u64,
    /// The form of the data on standard output
    #[arg(short, long, value_enum, default_value_t = Output::Table, display_order = 801)]
    output: Output,
}

pub(super) async fn run(verbs: ModuleVerbs) -> Result<(), Failure> {
    match verbs.verb {
        ModuleVerb::Push { file, name, bundled, client: args } => {
            let client = args.client()?;
            let (wasm, own_name) = match (file, bundled) {
                (_, Some(bundled)) => (bundled_module(&bundled)?, bundled),
                (Some(file), None) => {
                    (read(&file)?, file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default())
                }
                (None, None) => return Err(Failure::usage("there is no FILE", "name the .wasm file")),
            };
            show(args.output, &push(&client, &name.unwrap_or(own_name), wasm).await?)
        }
        ModuleVerb::Ls { client } => {
            let list: ModuleList = client.client()?.send(Call::get("/v1/modules")).await?.json()?;
            match client.output {
                Output::Json => output::json(&list.modules),
                Output::Table => {
                    let row = |module: &Module| {
                        vec![
                            module.name.clone(),
                            short(&module.digest),
                            output::size(module.size),
                            module.groups.join(" "),
                        ]
                    };
                    output::table(&["name", "digest", "size", "groups"], list.modules.iter().map(row).collect())
                }
            }
        }
        ModuleVerb::Show { name, client } => {
            let answer = client.client()?.send(Call::get(format!("/v1/modules/{}", encode(&name)))).await?;
            show(client.output, &answer.json()?)
        }
        ModuleVerb::Rm { name, client } => {
            client.client()?.send(Call::delete(format!("/v1/modules/{}", encode(&name)))).await.map(drop)
        }
        ModuleVerb::Check(wish) => check(&wish),
    }
}

/// Uploads a module; the same bytes under the same name again are a success.
pub(super) async fn push(client: &Client, name: &str, wasm: Bytes) -> Result<Module, Failure> {
    let watched = wasm.len() >= PROGRESS_BYTES_MIN && std::io::stderr().is_terminal();
    let length = wasm.len() as u64;
    let mut call = Call::post(format!("/v1/modules?name={}", encode(name)), wasm, Repeat::Harmless)
        .header("content-type", "application/wasm");
    let bar = if watched { progress_bar(length) } else { ProgressBar::hidden() };
    if watched {
        let bar = bar.clone();
        call = call.with_progress(Arc::new(move |bytes| {
            bar.inc(bytes);
            if bar.position() >= length {
                bar.set_message("sent; waiting for a majority to hold it");
            }
        }));
    }
    let answer = client.send(call).await;
    bar.finish_and_clear();
    answer?.json()
}

fn progress_bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// The bytes of a module that came with this program.
pub(super) fn bundled_module(name: &str) -> Result<Bytes, Failure> {
    let all = crate::bundled::all();
    match all.iter().find(|(known, _)| *known == name) {
        Some((_, wasm)) => Ok(Bytes::from_static(wasm)),
        None => {
            let names: Vec<&str> = all.iter().map(|(known, _)| *known).collect();
            Err(Failure::usage(
                format!("no module {name:?} came with this program"),
                format!("it has {}", names.join(" and ")),
            ))
        }
    }
}

fn read(file: &Path) -> Result<Bytes, Failure> {
    let remedy = "name a .wasm file, such as target/wasm32-unknown-unknown/release/NAME.wasm";
    std::fs::read(file)
        .map(Bytes::from)
        .map_err(|error| Failure::here(format!("cannot read {}: {error}", file.display()), remedy))
}

fn check(wish: &Check) -> Result<(), Failure> {
    let wasm = read(&wish.file)?;
    let limits = module::Limits {
        wasm_bytes_max: wish.module_bytes_max,
        memory_bytes_max: wish.group_memory_bytes_max,
        ..module::Limits::default()
    };
    let engine = module::Engine::new().map_err(|error| {
        Failure::here(format!("cannot start the WebAssembly engine: {error}"), "check the limits on memory")
    })?;
    let info = engine.gate(&wasm, &limits).map_err(|refusal| Failure::Refused {
        what: format!("{}: {}", wish.file.display(), refusal.what),
        code: Some(format!("module_refused, {}", refusal.code.as_str())),
        remedy: refusal.remedy,
    })?;
    let exports = [
        ("timer", info.has_timer),
        ("session_end", info.has_session_end),
        ("migrate", info.has_migrate),
        ("adapter", info.has_adapter),
    ];
    let exports: Vec<&str> = exports.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    let test = match &info.self_test {
        module::SelfTest::Passed { snapshot_bytes, init_fuel, .. } => {
            format!("passed: init takes {init_fuel} fuel, the empty snapshot {snapshot_bytes} bytes")
        }
        module::SelfTest::ParamsNeeded(text) => format!("not run: init needs params ({text})"),
        module::SelfTest::NotRun => "not run".to_owned(),
    };
    match wish.output {
        Output::Json => output::json(&serde_json::json!({
            "digest": hex::encode(info.digest), "size": info.wasm_bytes, "exports": exports, "imports": info.imports,
            "functions": info.functions, "memory_min_bytes": info.memory_min_bytes, "memory_max_bytes": info.memory_max_bytes, "self_test": test,
        })),
        Output::Table => output::pairs(&[
            ("digest", hex::encode(info.digest)),
            ("size", output::size(info.wasm_bytes)),
            ("functions", info.functions.to_string()),
            (
                "memory",
                match info.memory_max_bytes {
                    Some(max) => format!("{} to {}", output::size(info.memory_min_bytes), output::size(max)),
                    None => format!("from {}", output::size(info.memory_min_bytes)),
                },
            ),
            ("exports", exports.join(" ")),
            ("imports", info.imports.join(" ")),
            ("self-test", test),
        ]),
    }
}

fn short(digest: &str) -> String {
    digest.get(..12).unwrap_or(digest).to_owned()
}

fn show(form: Output, module: &Module) -> Result<(), Failure> {
    match form {
        Output::Json => output::json(module),
        Output::Table => output::pairs(&[
            ("name", module.name.clone()),
            ("digest", module.digest.clone()),
            ("size", output::size(module.size)),
            ("exports", module.exports.join(" ")),
            ("groups", module.groups.join(" ")),
        ]),
    }
}
