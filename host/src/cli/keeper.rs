//! `statehouse keeper`: this process becomes a node that ZooKeeper's clients take for a ZooKeeper server.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::follow;
use super::serve;
use crate::bundled;
use crate::config::ConfigFile;
use crate::config::ServeConfig;
use crate::keeper::ensure;
use crate::keeper::ensure::Standing;
use crate::keeper::settings::KeeperConfig;
use crate::keeper::settings::MODULE;
use crate::keeper::zoo_cfg;
use crate::keeper::zoo_cfg::ZooCfg;
use crate::keeper::zoo_cfg::ZooCfgError;
use crate::node::start::RealNode;
use crate::observe;
use crate::service::ServiceError;

pub(super) const ABOUT: &str = "Run a node that ZooKeeper's clients take for ZooKeeper";
pub(super) const AFTER_HELP: &str = "\
Examples:
  statehouse keeper                                  one node, ./statehouse-data, clients at 127.0.0.1:2181
  statehouse keeper --zoo-cfg /etc/zookeeper/conf/zoo.cfg
                                                     a member of that ensemble: its dataDir, myid, ports and settings
  statehouse keeper --config keeper.toml             the same names as keys: tick-time-ms = 1000
  statehouse local --nodes 3 --keeper                three nodes on this machine
  echo ruok | nc 127.0.0.1 2181                      with --four-letter-words 'ruok,mntr,srvr'

The first node of a cluster makes the group `keeper` of the bundled module znode-tree. Everything that `serve`
does this node does too: `statehouse group status keeper`, /metrics, other groups.

With --zoo-cfg the data is kept in dataDir/statehouse; ZooKeeper's own files are neither read nor touched
(`statehouse keeper-import` takes them over). The lines that are not honoured are logged, each with the reason.
Peers and clients are listened for where the file says, without TLS or password, as ZooKeeper does; the HTTP API
stays on loopback unless --http says otherwise.";

/// How long between two looks at what is not there yet.
const PAUSE: Duration = Duration::from_millis(50);
/// How long something may be missing before the log says so, and says so again.
const PATIENCE: Duration = Duration::from_secs(10);

/// All that `keeper` takes.
#[derive(Args, Debug)]
pub(super) struct Keeper {
    #[command(flatten)]
    keeper: KeeperConfig,
    #[command(flatten)]
    node: ServeConfig,
}

/// The verb, with what differs from `serve` in the flags that it shares.
pub(super) fn describe(verb: clap::Command) -> clap::Command {
    verb.about(ABOUT)
        .after_help(AFTER_HELP)
        .mut_arg("session_timeout_min_ms", |arg| {
            arg.default_value("0").help("The shortest session timeout that is granted; 0 for two ticks")
        })
        .mut_arg("session_timeout_max_ms", |arg| {
            arg.default_value("0").help("The longest session timeout that is granted; 0 for twenty ticks")
        })
}

/// A `zoo.cfg` that was named, as values of our flags, and what is to be said of it.
#[derive(Debug)]
pub(super) struct Ensemble {
    pub(super) values: ConfigFile,
    cfg: ZooCfg,
}

/// Reads the `zoo.cfg` at `path`.
pub(super) fn read_ensemble(path: &Path) -> Result<Ensemble, Failure> {
    let cfg = zoo_cfg::read(path, &zoo_cfg::resolve)?;
    let values = cfg.settings.iter().map(|(flag, from)| ((*flag).to_owned(), from.clone()));
    Ok(Ensemble { values: ConfigFile::translated(PathBuf::from(path), values), cfg })
}

impl From<ZooCfgError> for Failure {
    fn from(error: ZooCfgError) -> Self {
        Self::usage(error.to_string(), error.remedy())
    }
}

pub(super) fn run(keeper: Keeper, file: Option<&ConfigFile>, ensemble: Option<Ensemble>) -> Result<(), Failure> {
    let Keeper { keeper, mut node } = keeper;
    let zoo_cfg = ensemble.as_ref().map(|ensemble| ensemble.cfg.path.as_path());
    follow::attach(&mut node, file, zoo_cfg, keeper.observer)?;
    observe::init_logs(&node.log_level, node.log_format)?;
    let node = keeper.node(node)?;
    for ignored in ensemble.iter().flat_map(|ensemble| &ensemble.cfg.ignored) {
        tracing::warn!("{ignored}");
    }
    for note in ensemble.iter().flat_map(|ensemble| &ensemble.cfg.notes) {
        tracing::warn!("{note}");
    }
    let client = keeper.client.clone();
    // Where the files are followed, the cluster makes an observer one.
    let observes = keeper.observer && node.followed.is_none();
    serve::run_with(node, vec![("--client", client)], move |node| offer(node, keeper.clone(), observes))
}

/// Sees to it that this node serves ZooKeeper's clients; ends when it does.
async fn offer(node: RealNode, keeper: KeeperConfig, observes: bool) -> Result<(), Failure> {
    let wasm = bundled::get(MODULE).ok_or_else(|| {
        Failure::here(format!("this program was built without {MODULE}"), "build it as its README says")
    })?;
    let params = keeper.params();
    let observer = observes.then(|| node.id());
    let mut since = tokio::time::Instant::now();
    loop {
        match ensure::step(&node, wasm, &params, observer).await.map_err(refused)? {
            Standing::Serving(group, notes) => {
                notes.iter().for_each(|note| tracing::warn!("{note}"));
                let at: Vec<_> = group.listeners.iter().map(|listener| listener.address.as_str()).collect();
                tracing::info!(clients = at.join(","), compatibility = ?group.params.get("compatibility").and_then(|said| said.as_str()), "serving ZooKeeper's clients");
                return Ok(());
            }
            Standing::NotYet(why) => {
                if since.elapsed() >= PATIENCE {
                    since = tokio::time::Instant::now();
                    tracing::warn!(why, "not serving ZooKeeper's clients yet");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn refused(error: ServiceError) -> Failure {
    Failure::Refused {
        what: format!("ZooKeeper's clients cannot be served: {}", error.detail),
        code: Some(error.code.as_str().to_owned()),
        remedy: error.code.remedy().to_owned(),
    }
}
