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

A group that exists and was never written to is made anew, with the same params and listeners. If the import ends halfway, clients
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
    /// Load what is there even if something speaks for transactions that are missing
    #[arg(long)]
    accept_doubts: bool,
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
    if !dump.doubts.is_empty() && !import.accept_doubts {
        return Err(Failure::here(
            dump.doubts.join("; "),
            "name the dataLogDir with --log-dir if the logs are there; else take the directory of another member, or \
             load what is here with --accept-doubts",
        ));
    }
    for doubt in &dump.doubts {
        output::note(format!("doubt: {doubt}"));
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
    let mut again = None;
    if let Some(group) = &before {
        if group.module != MODULE {
            return Err(Failure::here(
                format!("group {name} runs module {}, not {MODULE}", group.module),
                "name another group with --group",
            ));
        }
        // From here on no client writes to it: it may go.
        begin(client, name).await?;
        // What it was made with is nowhere else while it is gone.
        let command = create_command(group);
        output::note(format!("group {name} is made anew; should this end halfway, it was made by\n  {command}"));
        client.send(Call::delete(&path)).await?;
        again = Some(command);
    }
    let new = NewGroup {
        name: name.to_owned(),
        module: MODULE.to_owned(),
        params: params.clone(),
        replicas: before.as_ref().and_then(|group| group.replicas),
        listen: before.as_ref().map(|group| group.listen.clone()).unwrap_or_default(),
        listen_params: before.map_or_else(|| Value::Object(serde_json::Map::new()), |group| group.listen_params),
    };
    match (create(client, &new).await, again) {
        (Err(failure), Some(command)) => Err(removed(failure, name, &command)),
        (made, _) => made.map(|()| params),
    }
}

async fn create(client: &Client, new: &NewGroup) -> Result<(), Failure> {
    ensure_module(client).await?;
    let body = serde_json::to_vec(new).unwrap_or_default();
    match client.send(Call::post("/v1/groups", body, Repeat::Never)).await {
        // It is there and has no leader yet.
        Err(failure) if is(&failure, ErrorCode::Unavailable) => Ok(()),
        made => made.map(drop),
    }
}

/// The command line that makes a group like this one.
fn create_command(group: &Group) -> String {
    let mut words = vec![format!("statehouse group create {} --module {}", group.name, group.module)];
    let settings = |flag: &str, settings: &Value| {
        let settings = settings.as_object().into_iter().flatten();
        settings.map(|(key, value)| format!("{flag} {}", quoted(&format!("{key}={value}")))).collect::<Vec<_>>()
    };
    words.extend(settings("--param", &group.params));
    words.extend(group.replicas.map(|replicas| format!("--replicas {replicas}")));
    words.extend(group.listen.iter().map(|address| format!("--listen {address}")));
    words.extend(settings("--listen-param", &group.listen_params));
    words.join(" ")
}

/// One word of a shell's command line.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A failure after the group was removed, and before it was made again.
fn removed(failure: Failure, name: &str, command: &str) -> Failure {
    let told = |what| format!("group {name} was removed to be made anew, and is not made yet: {what}");
    let remedy = format!("if `statehouse group ls` has no {name}: `{command}`; then run this again");
    match failure {
        Failure::OutcomeUnknown { what, .. } => Failure::OutcomeUnknown { what: told(what), remedy },
        Failure::Refused { what, code, .. } => Failure::Refused { what: told(what), code, remedy },
        Failure::Usage { what, .. }
        | Failure::Unreachable { what }
        | Failure::Removed { what, .. }
        | Failure::Damaged { what, .. } => Failure::here(told(what), remedy),
    }
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
            "doubts": dump.doubts, "verified": dump.verified,
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
        ("digest", if dump.verified { "the servers' own" } else { "none to compare with" }.to_owned()),
    ];
    if loaded.is_some() {
        rows.insert(0, ("group", import.group.clone()));
    }
    output::pairs(&rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use std::path::Path;

    use serde_json::json;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::api::problem;
    use crate::api::problem::Problem;

    fn group() -> Group {
        serde_json::from_value(json!({
            "name": "keeper", "id": 1, "module": MODULE, "digest": "00", "node": 1, "term": 1, "leader": 1,
            "params": {"super_digest": "super:it's", "skip_acl": true},
            "listen": ["127.0.0.1:2181", "[::1]:2181"], "listen_params": {"tick_time_ms": 500},
            "commit": 1, "applied": 1, "snapshot": 0, "last": 1, "purged": 0, "state": "leader", "sessions": 0,
            "timers": 0, "members": [], "listeners": [], "connections": 0,
        }))
        .unwrap()
    }

    /// A server that gives these answers in order, a connection each; the first lines of what it was asked.
    async fn server(answers: Vec<(u16, Vec<u8>)>) -> (String, JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..read]).into_owned();
                asked.push(text.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned());
                let (kind, length) = (problem::CONTENT_TYPE, body.len());
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
                );
                stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
                // Until the client has read it: what it still sends must not reset the connection.
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
            }
            asked
        });
        (address, asked)
    }

    fn dump() -> Dump {
        let plain = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/keeper/plain"));
        dump::read(plain, plain, &|_| {}).unwrap()
    }

    /// The group is removed, and then the servers can do no more: how to have it again is said.
    #[tokio::test]
    async fn what_a_group_was_made_with_survives_its_removal() {
        let view = serde_json::to_vec(&group()).unwrap();
        for (code, exit) in [(ErrorCode::DiskFull, 1), (ErrorCode::OutcomeUnknown, 4)] {
            let refusal = serde_json::to_vec(&Problem::new(code, "what went wrong")).unwrap();
            let done = (200, b"{}".to_vec());
            let answers = vec![(200, view.clone()), (200, vec![0; 12]), done.clone(), done, (503, refusal)];
            let (address, asked) = server(answers).await;
            let client = Client::new(&[address]).unwrap();
            let failure = make_group(&client, "keeper", &dump()).await.unwrap_err();
            let said = failure.to_string();
            assert!(said.contains("was removed to be made anew, and is not made yet: what went wrong"), "{said}");
            assert!(said.contains(&create_command(&group())), "{said}");
            assert_eq!(failure.code(), exit);
            let asked = asked.await.unwrap();
            assert_eq!(asked[2..], ["DELETE /v1/groups/keeper", "GET /v1/modules/znode-tree", "POST /v1/groups"]);
        }
    }

    #[test]
    fn the_command_that_makes_a_group_makes_the_same_group() {
        assert_eq!(
            create_command(&group()),
            r#"statehouse group create keeper --module znode-tree --param 'skip_acl=true' --param 'super_digest="super:it'\''s"' --listen 127.0.0.1:2181 --listen [::1]:2181 --listen-param 'tick_time_ms=500'"#
        );
    }
}
