//! `statehouse bench keeper`: a load generator for any server that speaks ZooKeeper's protocol. The same
//! program measures Apache ZooKeeper and this one.
//!
//! What happens, in order: the tree is made over a session of its own; all sessions are opened, on a few
//! threads, each of which runs its sessions' tasks ([`session`]); all begin at the same moment; the tree is
//! removed. The load itself shares nothing between threads but two counters for the progress bar.

mod connection;
mod control;
mod generator;
mod jute;
mod random;
mod report;
mod session;
mod stats;
mod tree;
mod wire;
mod workload;

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::task::LocalSet;

use self::connection::ClientError;
use self::control::Control;
use self::generator::Material;
use self::report::Line;
use self::report::Report;
use self::session::Load;
use self::session::Session;
use self::session::Thread;
use self::session::Watched;
use self::session::Window;
use self::stats::Stats;
use self::workload::Place;
use self::workload::Span;
use self::workload::Workload;
use super::machine::Machine;
use crate::cli::Failure;
use crate::cli::Output;
use crate::cli::output;

/// Measure any server that speaks ZooKeeper's protocol
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse bench keeper --server 127.0.0.1:2181 --workload prod-mix
  statehouse bench keeper --server zk1:2181,zk2:2181,zk3:2181 --workload write --sessions 640 -o json
  statehouse bench keeper --workload mine.toml --pipeline 8 --keys 100000")]
pub(super) struct KeeperArgs {
    /// The servers' client ports; the sessions are spread over them
    #[arg(long, value_name = "HOST:PORT,…", default_value = "127.0.0.1:2181", value_delimiter = ',', value_parser = parse_server)]
    server: Vec<String>,

    /// What is sent: prod-mix, read, write, read-multi, write-multi, list-heavy, churn, large-payload, single-hot-get,
    /// multi-large, or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "prod-mix")]
    workload: String,

    /// How many sessions
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,

    /// How many requests each session has under way
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pipeline: u32,

    /// How long is measured
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    duration_s: u64,

    /// How long is run before that without measuring
    #[arg(long, alias = "warm-up-s", value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    warmup_s: u64,

    /// How many nodes are in the pool, in place of the workload's number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(workload::KEYS_MAX)))]
    keys: Option<u32>,

    /// How long values are, in place of the workload's lengths
    #[arg(long, value_name = "N|LEAST-MOST", value_parser = workload::parse_span)]
    value_bytes: Option<Span>,

    /// The session timeout that is asked for
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    session_timeout_ms: u32,

    /// The same seed sends the same requests
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// The tree that is made for the load and removed after it; it must not be there
    #[arg(long, value_name = "PATH", default_value = "/statehouse-bench", value_parser = parse_prefix)]
    prefix: String,

    /// Leave the tree where it is
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    keep: bool,

    /// How many threads send; 0 for one a four cores
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024))]
    threads: u32,

    /// Where the synced write is measured: best on the disk of the servers' data
    #[arg(long, value_name = "DIR", default_value = ".")]
    bench_dir: PathBuf,

    /// The form of the data on standard output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

fn parse_server(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains('/'));
    match port.and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("`{text}` is not HOST:PORT of a client port, as 127.0.0.1:2181")),
    }
}

fn parse_prefix(text: &str) -> Result<String, String> {
    let sound = |part: &str| !["", ".", ".."].contains(&part) && !part.contains(char::is_control);
    match text.strip_prefix('/') {
        Some(rest) if rest.split('/').all(sound) && rest.split('/').next() != Some("zookeeper") => Ok(text.to_owned()),
        _ => Err("it is not the path of a node, as /bench".to_owned()),
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let remedy = match &error {
            ClientError::Unreachable { .. } => return Self::Unreachable { what: error.to_string() },
            ClientError::Failed { code, .. } if code == "NodeExists" => {
                "give another --prefix, or remove that tree, if a run that was killed has left it there"
            }
            ClientError::Failed { .. } => "look into the server's log",
            ClientError::NotZooKeeper { .. } => "check that the port is the one for ZooKeeper clients",
            ClientError::Refused { .. } | ClientError::Closed { .. } => {
                "look into the server's log: it may have no leader, or a limit on connections (ZooKeeper: maxClientCnxns, 60 an address)"
            }
            ClientError::Silent { .. } | ClientError::Broken { .. } => {
                "look whether the server still runs, and at its log"
            }
        };
        Self::here(error.to_string(), remedy)
    }
}

pub(super) async fn run(args: KeeperArgs) -> Result<(), Failure> {
    let workload = workload_of(&args)?;
    let servers: Vec<Arc<str>> = args.server.iter().map(|server| Arc::from(server.as_str())).collect();
    let material = Material::new(&args.prefix, &workload, args.seed);
    let mut machine = Machine::default();
    machine.measure(&args.bench_dir).await?;

    let mut control = Control::open(&servers, args.session_timeout_ms).await?;
    let bar = Bar::counting("creating nodes", u64::from(workload.keys) + 3);
    let made = control.make(&material, args.seed, |nodes| bar.inc(nodes)).await;
    control.close().await;
    bar.finish();
    let made = made?;

    let load = Arc::new(Load {
        servers: servers.clone(),
        workload: workload.clone(),
        prefix: args.prefix.clone(),
        sessions: args.sessions,
        pipeline: args.pipeline,
        session_timeout_ms: args.session_timeout_ms,
        seed: args.seed,
        watched: Watched::default(),
    });
    let warmup_s = args.warmup_s;
    output::note(format!(
        "{}: {} sessions, {} s and {warmup_s} s before that",
        args.workload, args.sessions, args.duration_s
    ));
    let mut driving = std::pin::pin!(drive(load.clone(), &args));
    let loaded = tokio::select! {
        loaded = &mut driving => loaded,
        _ = tokio::signal::ctrl_c() => {
            // The tree is removed all the same, when nobody adds to it any more.
            load.watched.stop.store(true, Ordering::Relaxed);
            drop(driving.await);
            Err(Failure::here("stopped before the end, so nothing was measured", "let it run, or give a shorter --duration-s"))
        }
    };
    if !args.keep {
        let removed = remove(&servers, &args, &workload, &material, &made).await;
        if let Err(failure) = removed {
            output::note(format!("note: {} is still there: {failure}", args.prefix));
        }
    }
    let stats = loaded?;
    machine.measure(&args.bench_dir).await?;
    let report = blank_report(&args, &workload).with(&stats, &machine);
    if report.all.answers == 0 {
        let why = report.first_error.unwrap_or_else(|| "no answer came in time".into());
        return Err(Failure::here(
            format!("not one answer was a success: {why}"),
            "look into the servers' logs, or try the workload single-hot-get",
        ));
    }
    match args.output {
        Output::Json => output::json(&report)?,
        Output::Table => report.print()?,
    }
    match report.sessions_lost {
        0 => Ok(()),
        lost => Err(Failure::here(
            format!("{lost} sessions lost their server: {}", report.first_error.unwrap_or_default()),
            "look into the servers' logs",
        )),
    }
}

fn workload_of(args: &KeeperArgs) -> Result<Workload, Failure> {
    const REMEDY: &str =
        "take one of the names in `statehouse bench keeper --help`, or a file as docs/cli.md describes";
    let mut workload = Workload::find(&args.workload).map_err(|error| Failure::usage(error.to_string(), REMEDY))?;
    workload.keys = args.keys.unwrap_or(workload.keys);
    workload.value_bytes = args.value_bytes.unwrap_or(workload.value_bytes);
    workload.check().map_err(|detail| Failure::usage(detail, "choose other numbers"))?;
    Ok(workload)
}

/// Opens the sessions, loads, and waits for the end.
async fn drive(load: Arc<Load>, args: &KeeperArgs) -> Result<Stats, Failure> {
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(4) as u32),
        threads => threads,
    };
    let threads = threads.min(load.sessions);
    let (opened, mut openings) = mpsc::unbounded_channel();
    let (begin, window) = watch::channel(None);
    let mut ends = JoinSet::new();
    for first in 0..threads {
        let (load, opened, window) = (load.clone(), opened.clone(), window.clone());
        let numbers = (first..load.sessions).step_by(threads as usize);
        let (done, end) = oneshot::channel();
        let body = move || {
            // Nobody waits any more: another thread has failed before.
            let _ = done.send(thread(load, numbers, opened, window));
        };
        std::thread::Builder::new().name(format!("load-{first}")).spawn(body).map_err(cannot_start)?;
        ends.spawn(end);
    }
    drop((opened, window));

    let bar = Bar::counting("opening sessions", load.sessions.into());
    let mut open = 0;
    while open < load.sessions {
        match openings.recv().await {
            Some(Ok(())) => open += 1,
            Some(Err(error)) => {
                load.watched.stop.store(true, Ordering::Relaxed);
                bar.finish();
                return Err(error.into());
            }
            None => break,
        }
        bar.inc(1);
    }
    bar.finish();

    let now = Instant::now();
    let start = now + Duration::from_secs(args.warmup_s);
    let end = start + Duration::from_secs(args.duration_s);
    begin.send_replace(Some(Window { begin: start, end }));
    let mut all = Stats::default();
    let bar = Bar::counting("seconds", args.warmup_s + args.duration_s);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut answers_before = 0;
    loop {
        tokio::select! {
            biased;
            ended = ends.join_next() => match ended {
                Some(Ok(Ok(stats))) => all.merge(stats?),
                Some(_) => return Err(cannot_start("a thread has ended early")),
                None => break,
            },
            _ = tick.tick() => {
                let answers = load.watched.answers.load(Ordering::Relaxed);
                bar.at(now.elapsed().as_secs(), || {
                    let errors = load.watched.errors.load(Ordering::Relaxed);
                    format!("{} /s, {errors} errors", answers - answers_before)
                });
                answers_before = answers;
            }
        }
    }
    bar.finish();
    Ok(all)
}

/// One thread's sessions, from their opening to their end.
fn thread(
    load: Arc<Load>,
    numbers: impl Iterator<Item = u32>,
    opened: mpsc::UnboundedSender<Result<(), ClientError>>,
    window: watch::Receiver<Option<Window>>,
) -> Result<Stats, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    let material = Rc::new(Material::new(&load.prefix, &load.workload, load.seed));
    let (stats, opening) = (RefCell::default(), Semaphore::new(session::OPENING_AT_ONCE));
    let thread = Rc::new(Thread { load, material, stats, opening, opened, window });
    let sessions = LocalSet::new();
    for number in numbers {
        sessions.spawn_local(Session::run(number, thread.clone()));
    }
    runtime.block_on(sessions);
    Ok(thread.stats.take())
}

fn cannot_start(error: impl std::fmt::Display) -> Failure {
    Failure::here(format!("cannot run the load: {error}"), "check the limits on threads and open files")
}

async fn remove(
    servers: &[Arc<str>],
    args: &KeeperArgs,
    workload: &Workload,
    material: &Material,
    made: &[String],
) -> Result<(), Failure> {
    let creates = [&workload.create, workload.multi.as_ref().map_or(&None, |multi| &multi.create)];
    let under_keys = creates.into_iter().flatten().any(|create| create.under.contains(&Place::Keys));
    let mut control = Control::open(servers, args.session_timeout_ms).await?;
    let bar = Bar::counting("nodes removed", 0);
    let removed = control.remove(material, under_keys, made, |nodes| bar.inc(nodes)).await;
    control.close().await;
    bar.finish();
    Ok(removed?)
}

fn blank_report(args: &KeeperArgs, workload: &Workload) -> Report {
    Report {
        workload: args.workload.clone(),
        servers: args.server.clone(),
        sessions: args.sessions,
        pipeline: args.pipeline,
        keys: workload.keys,
        value_bytes: workload.value_bytes.to_string(),
        seed: args.seed,
        duration_s: args.duration_s as f64,
        all: Line::default(),
        slowest_second: 0,
        errors_by_code: Default::default(),
        first_error: None,
        sessions_reopened: 0,
        sessions_lost: 0,
        kinds: Default::default(),
        synced_write_us: 0.0,
        round_trip_us: 0.0,
    }
}

/// How far it is, on a terminal; nothing elsewhere.
struct Bar(ProgressBar);

impl Bar {
    fn counting(what: &'static str, length: u64) -> Self {
        use std::io::IsTerminal;
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let (bar, template) = match length {
            0 => (ProgressBar::no_length(), "{prefix} {pos} {msg}"),
            length => (ProgressBar::new(length), "{prefix} [{bar:30}] {pos}/{len} {msg}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(bar.with_style(style).with_prefix(what))
    }

    fn inc(&self, count: u64) {
        self.0.inc(count);
    }

    fn at(&self, position: u64, message: impl FnOnce() -> String) {
        self.0.set_position(position);
        self.0.set_message(message());
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
