//! `statehouse keeper-import`: a ZooKeeper server's data becomes a group's.

use std::cell::Cell;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use serde_json::Value;

use super::Call;
use super::Client;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::Repeat;
use super::client::encode;
use super::module;
use super::output;
use crate::api::schema::Group;
use crate::api::schema::NewGroup;
use crate::keeper::dump;
use crate::keeper::dump::Dump;
use crate::keeper::dump::DumpError;
use crate::keeper::dump::Zxid;
use crate::keeper::load;
use crate::keeper::load::Load;
use crate::keeper::settings::GROUP;
use crate::keeper::settings::MODULE;
use crate::service::ErrorCode;

/// How long a new group may take until it has a leader.
const LEADER_TIME_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Take over the data of a ZooKeeper server
///
/// Reads the newest snapshot that is whole and the transaction logs since, as ZooKeeper 3.4 to 3.9 write them, and loads
/// the nodes with their data, ACLs and all numbers into a group that no client has written to. Stop the server first.
/// Ephemeral nodes are left out: their sessions end with their servers. Nothing in DIR is changed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse keeper-import /var/lib/zookeeper                  into the group `keeper` of the nodes that run
  statehouse keeper-import /var/lib/zookeeper --dry-run        only read and check it; no server is needed
  statehouse keeper-import /data --log-dir /datalog            a server with a dataLogDir

Clients of the old servers may connect at once: they find their data, are told that their sessions are over, and begin
new ones. Transactions are counted on from the last one, so that no client has seen anything newer.

A group that exists and was never written to is made anew, with the same params. If the import ends halfway, clients
are kept out of the group: run it again.")]
pub(super) struct KeeperImport {
    /// The server's dataDir (or its version-2)
    dir: PathBuf,
    /// Its dataLogDir, if it has one
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// The group
    #[arg(long, value_name = "NAME", default_value = GROUP)]
    group: String,
    /// Read and check the directory, and load nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Self {
        Self::here(error.to_string(), error.remedy())
    }
}

pub(super) async fn run(import: KeeperImport) -> Result<(), Failure> {
    let dump = read(&import)?;
    if import.dry_run {
        return report(&import, &dump, None);
    }
    let client = import.client.client()?;
    let params = make_group(&client, &import.group, &dump).await?;
    let load = Load::new(&dump, &params);
    if load.left_out() > 0 {
        output::note(format!("{} nodes that are each server's own are left out", load.left_out()));
    }
    fill(&client, &import.group, &load).await?;
    report(&import, &dump, Some(load.count()))
}

fn progress_bar(length: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn read(import: &KeeperImport) -> Result<Dump, Failure> {
    let log_dir = import.log_dir.as_ref().unwrap_or(&import.dir);
    let bar = progress_bar(dump::size(&import.dir, log_dir)?, "reading {bar:30} {bytes}/{total_bytes}");
    let dump = dump::read(&import.dir, log_dir, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let dump = dump?;
    for note in &dump.notes {
        output::note(format!("note: {note}"));
    }
    if dump.ephemerals > 0 {
        output::note(format!("{} ephemeral nodes are left out: their sessions are over", dump.ephemerals));
    }
    Ok(dump)
}

/// Makes the group, new and ready to be loaded; its params.
async fn make_group(client: &Client, name: &str, dump: &Dump) -> Result<Value, Failure> {
    let path = format!("/v1/groups/{}", encode(name));
    let before = match client.send(Call::get(&path)).await {
        Ok(answer) => Some(answer.json::<Group>()?),
        Err(failure) if is(&failure, ErrorCode::GroupNotFound) => None,
        Err(failure) => return Err(failure),
    };
    let params = load::params(before.as_ref().map_or(&Value::Null, |group| &group.params), dump);
    if let Some(group) = &before {
        if group.module != MODULE {
            return Err(Failure::here(
                format!("group {name} runs module {}, not {MODULE}", group.module),
                "name another group with --group",
            ));
        }
        // From here on no client writes to it: it may go.
        begin(client, name).await?;
        client.send(Call::delete(&path)).await?;
    }
    ensure_module(client).await?;
    let new = NewGroup {
        name: name.to_owned(),
        module: MODULE.to_owned(),
        params: params.clone(),
        listen: Vec::new(),
        listen_params: Value::Object(serde_json::Map::new()),
    };
    let body = serde_json::to_vec(&new).unwrap_or_default();
    match client.send(Call::post("/v1/groups", body, Repeat::Never)).await {
        // It is there and has no leader yet.
        Err(failure) if is(&failure, ErrorCode::Unavailable) => {}
        made => drop(made?),
    }
    Ok(params)
}

fn is(failure: &Failure, code: ErrorCode) -> bool {
    matches!(failure, Failure::Refused { code: Some(is), .. } if is == code.as_str())
}

async fn ensure_module(client: &Client) -> Result<(), Failure> {
    match client.send(Call::get(format!("/v1/modules/{}", encode(MODULE)))).await {
        Err(failure) if is(&failure, ErrorCode::ModuleNotFound) => {
            module::push(client, MODULE, module::bundled_module(MODULE)?).await.map(drop)
        }
        known => known.map(drop),
    }
}

async fn apply(client: &Client, group: &str, call: Vec<u8>, repeat: Repeat) -> Result<u64, Failure> {
    let answer = client.send(Call::post(format!("/v1/groups/{}/apply", encode(group)), call, repeat)).await?;
    load::number(&answer.body)
        .map_err(|what| Failure::here(format!("group {group} answered {what}"), "use the same version on both sides"))
}

/// Begins; how many nodes the group has of its own.
async fn begin(client: &Client, group: &str) -> Result<u64, Failure> {
    let begun = apply(client, group, load::begin(), Repeat::Harmless).await;
    begun.map_err(|failure| match failure {
        Failure::Refused { what, code: Some(code), .. } if code.starts_with(ErrorCode::Rejected.as_str()) => {
            let what = format!("group {group} cannot take the data over: {what}");
            let remedy = format!("name a new one with --group, or remove it first: `statehouse group rm {group}`");
            Failure::Refused { what, code: Some(code), remedy }
        }
        other => other,
    })
}

/// Sends the nodes and checks that all are there.
async fn fill(client: &Client, group: &str, load: &Load<'_>) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + LEADER_TIME_MAX;
    let own = loop {
        match begin(client, group).await {
            Err(failure)
                if tokio::time::Instant::now() < deadline
                    && (is(&failure, ErrorCode::NoLeader) || is(&failure, ErrorCode::Unavailable)) =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            begun => break begun?,
        }
    };
    let bar = progress_bar(load.count(), "loading {bar:30} {pos}/{len} nodes, {per_sec}");
    let sent = Cell::new(0);
    for batch in load.batches() {
        // A batch that is sent again is known.
        let loaded = apply(client, group, batch.call, Repeat::Harmless).await.map_err(|failure| match failure {
            Failure::Refused { what, code, remedy } => Failure::Refused {
                what: format!("the nodes from {} on were not taken: {what}", batch.first),
                code,
                remedy: format!("{remedy}; then run this again"),
            },
            other => other,
        })?;
        sent.set(sent.get() + u64::from(batch.nodes));
        check("nodes are loaded", loaded, sent.get())?;
        bar.inc(batch.nodes.into());
    }
    bar.finish_and_clear();
    let there = apply(client, group, load::end(sent.get()), Repeat::Never).await?;
    check("nodes are there", there, own + load.new_count())
}

fn check(what: &str, is: u64, should: u64) -> Result<(), Failure> {
    if is == should {
        return Ok(());
    }
    Err(Failure::here(
        format!("{is} {what}, and there should be {should}"),
        "remove the group and run this again; if it happens again, this is a fault of the program",
    ))
}

fn report(import: &KeeperImport, dump: &Dump, loaded: Option<u64>) -> Result<(), Failure> {
    let snapshot = dump.snapshot.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
    if import.client.output == Output::Json {
        return output::json(&serde_json::json!({
            "group": loaded.map(|_| &import.group), "nodes": loaded.unwrap_or(dump.tree.len() as u64),
            "ephemerals_left_out": dump.ephemerals, "snapshot": dump.snapshot, "transactions": dump.transactions,
            "zxid": Zxid(dump.zxid).to_string(), "notes": dump.notes,
        }));
    }
    let nodes = match loaded {
        Some(nodes) => format!("{nodes}, counted and all there"),
        None => format!("{}, nothing was loaded", dump.tree.len()),
    };
    let mut rows = vec![
        ("nodes", nodes),
        ("snapshot", snapshot),
        ("transactions", format!("{} on top of it, up to {}", dump.transactions, Zxid(dump.zxid))),
    ];
    if loaded.is_some() {
        rows.insert(0, ("group", import.group.clone()));
    }
    output::pairs(&rows)
}
