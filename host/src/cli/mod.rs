//! The command line: one file a verb. Client verbs speak HTTP and nothing else; what they have to
//! say besides data goes to standard error. Exit codes are in `failure.rs`.
//!
//! This is the edge of the program, where clocks, sockets and tasks are the machine's own.
#![allow(clippy::disallowed_methods)]

mod apply;
mod backup;
mod bench;
mod client;
mod completions;
mod failure;
mod follow;
mod group;
mod keeper;
mod keeper_import;
mod local;
mod log;
mod membership;
mod module;
mod output;
mod progress;
mod query;
mod recover;
mod serve;
mod session;
mod snapshot;
mod snapshot_files;
mod state_file;
mod status;
#[cfg(test)]
mod tests;
mod watch;
mod whole_file;

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::Subcommand;

pub use self::client::Call;
pub use self::client::Client;
pub use self::client::Repeat;
pub use self::failure::Failure;
pub use self::output::Output;
use crate::config;
use crate::config::ConfigFile;
use crate::config::ServeConfig;

const AFTER_HELP: &str = "\
Try it:
  statehouse local --nodes 3                           three nodes on this machine
  statehouse module push counter.wasm --name counter   your state machine, as WebAssembly
  statehouse group create c1 --module counter          replicated from here on
  statehouse apply c1 '{\"Add\":5}'                      a command
  statehouse query c1 '\"Get\"'                          a query
  statehouse keeper                                    a ZooKeeper replacement at 127.0.0.1:2181
  statehouse backup create backups                     all modules and groups, into a folder

Every flag is also an environment variable (--data-dir is STATEHOUSE_DATA_DIR) and a key of the
TOML file that --config names (data-dir). Flags win over variables, variables over the file.

Exit codes: 0 ok, 1 refused, 2 usage, 3 no server reached, 4 the outcome is unknown, 5 this node was
removed from its cluster, 6 what was looked at is damaged, 74 this node's disk failed.";

/// Runs your WebAssembly state machine as a replicated service
#[derive(Debug, Parser)]
#[command(name = "statehouse", version, after_help = AFTER_HELP, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// A TOML file with settings; its keys are the flags' names
    #[arg(long, value_name = "FILE", global = true, display_order = 900)]
    config: Option<PathBuf>,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(Box<ServeConfig>),
    Keeper(Box<keeper::Keeper>),
    KeeperImport(keeper_import::KeeperImport),
    Local(local::Local),
    Module(module::ModuleVerbs),
    Group(group::GroupVerbs),
    Node(membership::NodeVerbs),
    Member(membership::MemberVerbs),
    Leader(membership::LeaderVerbs),
    Change(membership::ChangeVerbs),
    Status(status::Status),
    Doctor(status::Doctor),
    Session(session::SessionVerbs),
    Snapshot(snapshot::SnapshotVerbs),
    Backup(backup::BackupVerbs),
    Log(log::LogVerbs),
    Recover(recover::Recover),
    Apply(apply::Apply),
    Query(query::Query),
    Watch(watch::Watch),
    Bench(bench::BenchVerbs),
    Completions(completions::Completions),
}

/// What every client verb takes.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// The server; of several, separated by commas, the next is tried when one does not answer
    #[arg(long, value_name = "URL,…", default_value = "http://127.0.0.1:7070", global = true, display_order = 800)]
    server: String,

    /// The form of the data on standard output
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true, display_order = 801)]
    output: Output,
}

impl ClientArgs {
    /// The servers' addresses.
    pub fn servers(&self) -> Vec<String> {
        self.server.split(',').map(str::trim).filter(|server| !server.is_empty()).map(str::to_owned).collect()
    }

    fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.servers())
    }
}

/// The whole command line, with variables and the file's values in place.
fn command(file: Option<&ConfigFile>) -> Result<clap::Command, Failure> {
    command_with(file, None)
}

/// The same, with an ensemble's values below those of the file.
fn command_with(file: Option<&ConfigFile>, ensemble: Option<&ConfigFile>) -> Result<clap::Command, Failure> {
    let command = Cli::command()
        .mut_subcommand("serve", |serve| serve.about(serve::ABOUT).after_help(serve::AFTER_HELP))
        .mut_subcommand("keeper", |verb| config::with_sources(keeper::describe(verb), ensemble));
    Ok(config::prepare(command, file)?)
}

/// The `zoo.cfg` of a `keeper` verb.
fn ensemble(args: &[OsString], file: Option<&ConfigFile>) -> Result<Option<keeper::Ensemble>, Failure> {
    const FLAG: &str = "zoo-cfg";
    let is_help = |arg: &OsString| arg == "--help" || arg == "-h" || arg == "help";
    if !args.iter().skip(1).any(|arg| arg == "keeper") || args.iter().any(is_help) {
        return Ok(None);
    }
    let told = std::env::var_os(config::variable(FLAG)).filter(|path| !path.is_empty());
    let told = told.or_else(|| file.and_then(|file| file.value(FLAG)).map(OsString::from));
    let path = config::file_named_by(args, "--zoo-cfg", told);
    path.map(|path| keeper::read_ensemble(&path)).transpose()
}

/// Reads the process's arguments, does what they say, and answers the exit code.
pub fn main() -> ExitCode {
    match run(std::env::args_os().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(failure.to_string());
            failure.into()
        }
    }
}

fn run(args: Vec<OsString>) -> Result<(), Failure> {
    let file = config::file_named_by(&args, "--config", std::env::var_os("STATEHOUSE_CONFIG"));
    let file = file.map(|path| ConfigFile::read(&path)).transpose()?;
    let ensemble = ensemble(&args, file.as_ref())?;
    let mut command = command_with(file.as_ref(), ensemble.as_ref().map(|ensemble| &ensemble.values))?;
    let matches = command
        .try_get_matches_from_mut(args)
        .unwrap_or_else(|error| exit_with(with_usage(error, &command), file.as_ref()));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| exit_with(error, file.as_ref()));
    match cli.verb {
        Verb::Serve(mut config) => {
            follow::attach(&mut config, file.as_ref(), None, false)?;
            serve::run(*config)
        }
        Verb::Keeper(keeper) => keeper::run(*keeper, file.as_ref(), ensemble),
        Verb::KeeperImport(import) => block_on(keeper_import::run(import)),
        Verb::Local(local) => block_on(local::run(local, cli.config)),
        Verb::Module(verbs) => block_on(module::run(verbs)),
        Verb::Group(verbs) => block_on(group::run(verbs)),
        Verb::Node(verbs) => block_on(membership::run_node(verbs)),
        Verb::Member(verbs) => block_on(membership::run_member(verbs)),
        Verb::Leader(verbs) => block_on(membership::run_leader(verbs)),
        Verb::Change(verbs) => block_on(membership::run_change(verbs)),
        Verb::Status(verb) => block_on(status::run_status(verb)),
        Verb::Doctor(verb) => block_on(status::run_doctor(verb)),
        Verb::Session(verbs) => block_on(session::run(verbs)),
        Verb::Snapshot(verbs) => snapshot::run(verbs),
        Verb::Backup(verbs) => block_on(backup::run(verbs)),
        Verb::Log(verbs) => log::run(verbs),
        Verb::Recover(recover) => recover::run(&recover),
        Verb::Apply(apply) => block_on(apply::run(apply)),
        Verb::Query(query) => block_on(query::run(query)),
        Verb::Watch(watch) => block_on(watch::run(watch)),
        Verb::Bench(verbs) => block_on(bench::run(verbs)),
        Verb::Completions(completions) => completions::run(completions),
    }
}

/// An error shows how its verb is used. What clap writes there of the flags that were given counts variables among them, and
/// shows these as if they were needed.
fn with_usage(mut error: clap::Error, command: &clap::Command) -> clap::Error {
    use clap::error::ContextKind;
    use clap::error::ContextValue;
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return error };
    let usage = usage.to_string();
    let mut verb = command;
    for word in usage.split_whitespace().skip_while(|word| *word != "Usage:").skip(2) {
        let Some(below) = verb.find_subcommand(word) else { break };
        verb = below;
    }
    let usage = verb.clone().render_usage();
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error
}

/// Help and version go out as clap writes them; so do its errors, with a word on where a value came from.
fn exit_with(error: clap::Error, file: Option<&ConfigFile>) -> ! {
    use clap::error::ContextKind;
    use clap::error::ContextValue;
    // Failing to print to a closed pipe changes nothing about the exit.
    let _ = error.print();
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) {
        let flag = flag.trim_start_matches('-').split([' ', '[', '=']).next().unwrap_or_default();
        if std::env::var_os(config::variable(flag)).is_some() {
            output::note(format!("note: {} is set in the environment", config::variable(flag)));
        } else if let Some(file) = file.filter(|file| file.sets(flag)) {
            output::note(format!("note: {} sets `{flag}`", file.path().display()));
        }
    }
    std::process::exit(error.exit_code())
}

/// Client verbs need one thread; it costs less to start than it takes to print.
fn block_on<F: Future<Output = Result<(), Failure>>>(verb: F) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| {
            Failure::here(format!("cannot start: {error}"), "check the limits on open files and processes")
        })?
        .block_on(verb)
}

/// A command's or query's bytes: the argument, or standard input when it is `-` or left out.
fn data(argument: Option<String>) -> Result<Bytes, Failure> {
    match argument {
        Some(text) if text != "-" => Ok(text.into_bytes().into()),
        argument => {
            if argument.is_none() && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
                return Err(Failure::usage("there is no DATA", "give it as the last argument, or pipe it in"));
            }
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|error| {
                Failure::here(format!("cannot read standard input: {error}"), "give the data as an argument")
            })?;
            Ok(bytes.into())
        }
    }
}

/// A session as the command line carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SessionArg {
    id: u64,
    text: String,
}

fn parse_session(text: &str) -> Result<SessionArg, String> {
    match crate::api::request::parse_session(text) {
        Some((id, _)) => Ok(SessionArg { id, text: text.trim().to_owned() }),
        None => Err("it is not ID:SECRET as `statehouse session open` prints it".to_owned()),
    }
}
