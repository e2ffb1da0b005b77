//! `statehouse serve`: this process becomes a node.

use std::fs::File;
use std::io;
use std::io::Read;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::Failure;
use super::follow;
use super::local;
use crate::api;
use crate::api::ApiOptions;
use crate::config::ServeConfig;
use crate::module;
use crate::net;
use crate::node::identity::IdentityError;
use crate::node::identity::is_of_a_node;
use crate::node::recovery;
use crate::node::start;
use crate::node::start::RealNode;
use crate::node::start::StartError;
use crate::observe;

pub(super) const ABOUT: &str = "Run a node";
pub(super) const AFTER_HELP: &str = "\
Examples:
  statehouse serve                                   one node, ./statehouse-data, http://127.0.0.1:7070
  statehouse serve --config node.toml                the same names as keys: heartbeat-ms = 100
  statehouse serve --node-id 1 --data-dir d1 --http 127.0.0.1:7070 --peer 127.0.0.1:7170 \\
    --initial-cluster \"1=127.0.0.1:7170,2=127.0.0.1:7270,3=127.0.0.1:7370\"

SIGTERM and Ctrl-C stop the node in order; a second one stops it at once. After `kill -9` it starts as
after SIGTERM: nothing that was acknowledged is lost.";

/// How long running requests may take once the node is told to stop.
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn run(config: ServeConfig) -> Result<(), Failure> {
    observe::init_logs(&config.log_level, config.log_format)?;
    config.validate()?;
    run_with(config, Vec::new(), |_| std::future::ready(Ok(())))
}

/// Runs a node of a checked configuration, and `duty` beside it: a failure of it ends the node. `addresses` are those
/// that the node will bind later, each with its flag: one in use is said before the disk is touched.
pub(super) fn run_with<F, D>(
    config: ServeConfig,
    addresses: Vec<(&'static str, String)>,
    duty: F,
) -> Result<(), Failure>
where
    F: Fn(RealNode) -> D,
    D: Future<Output = Result<(), Failure>>,
{
    if let Some(doubt) = config.doubt() {
        tracing::warn!("{doubt}");
    }
    raise_open_files();
    let told = Told::listen(config.exit_with_parent)?;
    loop {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(worker_threads(&config))
            // The blocking pool runs guest code; these stacks are address space, not memory.
            .thread_stack_size(module::GUEST_STACK_BYTES)
            .on_thread_start(module::mark_guest_thread)
            .build();
        let runtime = runtime.map_err(cannot_run)?;
        let served = runtime.block_on(serve(&config, &addresses, &duty, told.clone()));
        // What still blocks in the background has nothing left to say. Nor has any task of a node that is to live again.
        runtime.shutdown_timeout(Duration::from_secs(1));
        let Some(held) = served? else { return Ok(()) };
        if let Some(why) = told.why() {
            tracing::warn!(why, "stopped before it was recovered; nothing was changed");
            return Ok(());
        }
        // Before the first write it starts as what it was; after it, the start finishes this or says why it cannot.
        if let Err(error) = recovery::recover(&held, &config.data_dir) {
            tracing::error!(%error, remedy = error.remedy(), "the node cannot be recovered");
        }
        tracing::info!("starting again");
    }
}

fn cannot_run(error: io::Error) -> Failure {
    Failure::here(format!("cannot start: {error}"), "check the limits on open files and processes")
}

/// Every client connection is an open file. The limit that shells and service managers set is a soft one, made for
/// programs that use `select`; the system's own lies far above it.
fn raise_open_files() {
    use rustix::process::Resource;
    use rustix::process::Rlimit;
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, ?current, "the limit on open files stays, and with it the one on connections");
    }
}

/// Not one a core: the log's thread and guest code need some of them, and workers that share what little there is to do
/// wake each other for it.
fn worker_threads(config: &ServeConfig) -> usize {
    match usize::try_from(config.worker_threads) {
        Ok(threads) if threads > 0 => threads,
        _ => (std::thread::available_parallelism().map_or(1, NonZero::get) / 2).max(1),
    }
}

/// One life of the node. Its directory's lock, when it ended to be recovered.
async fn serve<F, D>(
    config: &ServeConfig,
    addresses: &[(&'static str, String)],
    duty: &F,
    told: Told,
) -> Result<Option<File>, Failure>
where
    F: Fn(RealNode) -> D,
    D: Future<Output = Result<(), Failure>>,
{
    // Before the disk is touched: a port in use is the commonest mistake.
    let listener = bind("--http", &config.http.to_string()).await?;
    for (flag, address) in addresses {
        drop(bind(flag, address).await?);
    }
    // What it began there would be another cluster, among the files of that one.
    if local::is_in(&config.data_dir) && !is_of_a_node(&config.data_dir) {
        return Err(Failure::here(
            format!("{} holds the nodes of `statehouse local`", config.data_dir.display()),
            "go on with `statehouse local`, or give another --data-dir",
        ));
    }
    let told = told.wait();
    tokio::pin!(told);
    let started = tokio::select! {
        started = start::start(config) => started,
        // A log without room for its next segment waits for it also here, and nobody answers yet who could say so.
        why = &mut told => {
            tracing::info!(why, "stopping before it was started");
            return Ok(None);
        }
    };
    let running = started.map_err(|error| match &error {
        StartError::Identity(IdentityError::Removed { .. }) => {
            Failure::Removed { what: error.to_string(), remedy: error.remedy() }
        }
        _ => Failure::here(error.to_string(), error.remedy()),
    })?;
    let api = api::serve(listener, Arc::new(running.node.clone()), ApiOptions::from(config))
        .map_err(|error| cannot_listen("--http", &config.http.to_string(), &error))?;
    tracing::info!(node = config.node_id, http = %api.address(), peer = %config.peer, data_dir = %config.data_dir.display(), "serving");
    if let Some(followed) = config.followed.clone() {
        tokio::spawn(follow::follow(followed, running.node.clone()));
    }
    let duty = duty(running.node.clone());
    let failed = async {
        match duty.await {
            Ok(()) => std::future::pending().await,
            Err(failure) => failure,
        }
    };
    let (why, result) = tokio::select! {
        why = &mut told => (why, Ok(())),
        failure = failed => ("it cannot do what it is for", Err(failure)),
        what = running.node.removed() => {
            let how = if config.followed.is_some() { "list it again and start it" } else { "start it with --join" };
            let remedy = format!("to bring the node back, empty {} and {how}", config.data_dir.display());
            ("it was removed from the cluster", Err(Failure::Removed { what, remedy }))
        }
        () = running.node.asked_to_recover() => {
            tracing::warn!("stopping, to go on without the other nodes");
            // At once: until it is down the others may come back.
            let held = running.shutdown().await;
            api.shutdown(GRACE).await;
            return Ok(Some(held));
        }
    };
    tracing::info!(why, "stopping");
    // First, and while clients are still served: they wait for the next leader to begin, not for this node to end.
    running.node.hand_over().await;
    api.shutdown(GRACE).await;
    running.shutdown().await;
    tracing::info!("stopped");
    result.map(|()| None)
}

async fn bind(flag: &str, address: &str) -> Result<TcpListener, Failure> {
    net::listen_at(address).await.map_err(|error| cannot_listen(flag, address, &error))
}

pub(super) fn cannot_listen(flag: &str, address: &str, error: &io::Error) -> Failure {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process listens there (`ss -ltnp 'sport = :{port}'` names it): stop it, or give another {flag}"
        ),
        io::ErrorKind::PermissionDenied => format!("ports below 1024 are the system's: give another {flag}"),
        io::ErrorKind::AddrNotAvailable => {
            format!("{host} is not an address of this machine: give another {flag}")
        }
        _ => format!("give another {flag}"),
    };
    Failure::here(format!("cannot listen on {flag} {address}: {error}"), remedy)
}

/// The wish to stop, listened for from before the node starts until the process ends: on a thread of its own, so that none is lost
/// between two lives of the node.
#[derive(Clone)]
struct Told(watch::Receiver<Option<&'static str>>);

impl Told {
    fn listen(exit_with_parent: bool) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(cannot_run)?;
        let entered = runtime.enter();
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::here(format!("cannot listen for signals: {error}"), "run it outside of what forbids that")
            })
        };
        let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        drop(entered);
        let (gone, mut parent_gone) = oneshot::channel();
        if exit_with_parent {
            std::thread::spawn(move || {
                // The parent never writes: whatever ends the reading is its end.
                let _ = io::stdin().lock().read_to_end(&mut Vec::new());
                let _ = gone.send(());
            });
        } else {
            // Kept open for ever: this source never speaks.
            std::mem::forget(gone);
        }
        let (tell, told) = watch::channel(None);
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let why = tokio::select! {
                    _ = interrupt.recv() => "interrupted (SIGINT)",
                    _ = terminate.recv() => "told to (SIGTERM)",
                    _ = &mut parent_gone => "the parent process is gone",
                };
                tell.send_replace(Some(why));
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                tracing::warn!("told a second time: stopping at once");
                std::process::exit(1);
            });
        });
        thread.map_err(cannot_run)?;
        Ok(Self(told))
    }

    /// Why to stop, once that is so. From then on a second wish ends the process at once.
    fn why(&self) -> Option<&'static str> {
        *self.0.borrow()
    }

    /// Waits until it is so.
    async fn wait(mut self) -> &'static str {
        match self.0.wait_for(Option::is_some).await.map(|why| *why) {
            Ok(Some(why)) => why,
            // Nobody listens any more.
            _ => std::future::pending().await,
        }
    }
}
