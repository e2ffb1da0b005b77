//! `statehouse group`: replicated state machines.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Subcommand;

use super::Call;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::Repeat;
use super::client::encode;
use super::membership;
use super::membership::Wait;
use super::output;
use super::output::or_dash;
use super::state_file;
use super::state_file::Restore;
use crate::api::schema::Digest;
use crate::api::schema::Group;
use crate::api::schema::GroupList;
use crate::api::schema::Listener;
use crate::api::schema::Member;
use crate::api::schema::ModuleUse;
use crate::api::schema::Move;
use crate::api::schema::NewGroup;
use crate::api::schema::Tried;
use crate::api::schema::TriedList;
use crate::api::schema::WantedModule;

/// Create, look at and remove groups
///
/// A group is one replicated state machine: it runs a module, and all nodes hold its state.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse group create c1 --module counter
  statehouse group create c2 --module counter --param start=100
  statehouse group create kv --module kv --listen 127.0.0.1:6379
  statehouse group restore c3 c1.snap                            begins from a file of `snapshot save`
  statehouse group upgrade c1 --module counter-2                 keeps the state, and runs another module
  statehouse group status c1 --server http://127.0.0.1:7071      as that node sees it")]
pub(super) struct GroupVerbs {
    #[command(subcommand)]
    verb: GroupVerb,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum GroupVerb {
    /// Create a group that runs a module
    #[command(after_help = "\
Examples:
  statehouse group create c1 --module counter
  statehouse group create c2 --module counter --param start=100
  statehouse group create c3 --module counter --replicas 3           of more nodes than three
  statehouse group create kv --module kv --listen 127.0.0.1:6379     speaks Redis's protocol there")]
    Create {
        /// Its name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit
        name: String,
        /// The module it runs
        #[arg(long, value_name = "NAME")]
        module: String,
        /// A parameter for the module's init: the value is JSON, or else text (repeatable)
        #[arg(long = "param", value_name = "KEY=VALUE", value_parser = parse_param)]
        params: Vec<(String, serde_json::Value)>,
        #[command(flatten)]
        place: Place,
    },
    /// Create a group that begins from a file of `snapshot save`
    ///
    /// It begins at the index that the file covers, with its sessions and timers, and has its own members: the cluster may
    /// be another one, of another size. The file is verified before anything is sent, and again before anything is made.
    /// The cluster must have the module that wrote the file (`module push`).
    Restore {
        /// The new group's name
        name: String,
        /// The file; a .snap file of a node's data directory will do as well
        file: PathBuf,
        /// The module's name; left out: whichever has the digest that the file names
        #[arg(long, value_name = "NAME")]
        module: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// List the groups
    Ls,
    /// Show one group as the answering node sees it
    Status {
        /// The group
        name: String,
    },
    /// Remove a group and its state from all nodes
    Rm {
        /// The group
        name: String,
    },
    /// Print a digest of the answering node's state: equal on all nodes at equal indexes
    Digest {
        /// The group
        name: String,
    },
    /// Let a group run another module, with the state that it has
    ///
    /// The way to a new version of a module, and back to the old one: both are uploaded under names of their own (`module push`). By an
    /// entry of the group's log the old module's snapshot goes into the new one, by `migrate` if it has that, else by `restore`;
    /// sessions, timers and indexes stay. Before, every replica tries that on a copy of its state: if it fails, nothing is done.
    Upgrade {
        /// The group
        name: String,
        /// The module that it is to run
        #[arg(long, value_name = "NAME")]
        module: String,
        /// Only try it on copies of the state, and print what each replica says
        #[arg(long, conflicts_with = "no_wait")]
        dry_run: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Move a replica from one node to another
    Move {
        /// The group
        name: String,
        /// The node that has it
        #[arg(long, value_name = "ID")]
        from: u64,
        /// The node that gets it
        #[arg(long, value_name = "ID")]
        to: u64,
        #[command(flatten)]
        wait: Wait,
    },
    /// The same as `snapshot take`
    Snapshot {
        /// The group
        name: String,
    },
}

/// For all replicas to try a module: a large state takes long.
const TRY_TIME_MAX: Duration = Duration::from_secs(660);

/// Where a new group is, and where its adapter listens.
#[derive(Args, Debug)]
struct Place {
    /// How many replicas it gets, spread evenly over the nodes; left out: one on every full node
    #[arg(long, value_name = "N")]
    replicas: Option<u64>,
    /// Where the module's adapter listens for its clients, on every node (each adds its
    /// --listen-port-offset to the port; its --listen says otherwise)
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    listen: Vec<String>,
    /// A setting for the adapter's listener: the value is JSON, or else text (repeatable)
    #[arg(long = "listen-param", value_name = "KEY=VALUE", value_parser = parse_param)]
    listen_params: Vec<(String, serde_json::Value)>,
}

fn parse_param(text: &str) -> Result<(String, serde_json::Value), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("it is not KEY=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((key.to_owned(), value))
}

fn object(params: Vec<(String, serde_json::Value)>) -> serde_json::Value {
    serde_json::Value::Object(params.into_iter().collect())
}

pub(super) async fn run(verbs: GroupVerbs) -> Result<(), Failure> {
    let client = verbs.client.client()?;
    let form = verbs.client.output;
    match verbs.verb {
        GroupVerb::Create { name, module, params, place: Place { replicas, listen, listen_params } } => {
            let (params, listen_params) = (object(params), object(listen_params));
            let group = NewGroup { name, module, params, replicas, listen, listen_params };
            let body = serde_json::to_vec(&group).unwrap_or_default();
            let group: Group = client.send(Call::post("/v1/groups", body, Repeat::Never)).await?.json()?;
            show(form, &group)
        }
        GroupVerb::Restore { name, file, module, place: Place { replicas, listen, listen_params } } => {
            let wanted = Restore { name, module, replicas, listen, listen_params: object(listen_params) };
            show(form, &state_file::restore(&client, &file, &wanted).await?)
        }
        GroupVerb::Ls => {
            let list: GroupList = client.send(Call::get("/v1/groups")).await?.json()?;
            match form {
                Output::Json => output::json(&list.groups),
                Output::Table => {
                    let row = |group: &Group| {
                        let leader = group.leader.map_or("-".to_owned(), |leader| leader.to_string());
                        vec![
                            group.name.clone(),
                            group.module.clone(),
                            group.state.clone(),
                            leader,
                            group.applied.to_string(),
                            group.members.len().to_string(),
                        ]
                    };
                    output::table(
                        &["name", "module", "state", "leader", "applied", "members"],
                        list.groups.iter().map(row).collect(),
                    )
                }
            }
        }
        GroupVerb::Status { name } => {
            let group: Group = client.send(Call::get(format!("/v1/groups/{}", encode(&name)))).await?.json()?;
            show(form, &group)
        }
        GroupVerb::Rm { name } => {
            client.send(Call::delete(format!("/v1/groups/{}", encode(&name)))).await?;
            Ok(())
        }
        GroupVerb::Digest { name } => {
            let digest: Digest =
                client.send(Call::get(format!("/v1/groups/{}/digest", encode(&name)))).await?.json()?;
            match form {
                Output::Json => output::json(&digest),
                Output::Table => output::table(
                    &["node", "applied", "digest"],
                    vec![vec![digest.node.to_string(), digest.applied.to_string(), digest.digest]],
                ),
            }
        }
        GroupVerb::Upgrade { name, module, dry_run: true, .. } => {
            let wanted = serde_json::to_vec(&WantedModule { module }).unwrap_or_default();
            let call = Call::post(format!("/v1/groups/{}/module/try", encode(&name)), wanted, Repeat::Reads);
            let list: TriedList = client.send(call.within(TRY_TIME_MAX)).await?.json()?;
            if form == Output::Json {
                return output::json(&list.tried);
            }
            let row = |one: &Tried| {
                let says = one.failure.clone().unwrap_or_else(|| "its state goes over".to_owned());
                vec![one.node.to_string(), or_dash(one.index), says]
            };
            output::table(&["node", "applied", "says"], list.tried.iter().map(row).collect())
        }
        GroupVerb::Upgrade { name, module, wait, .. } => {
            let wanted = serde_json::to_vec(&WantedModule { module }).unwrap_or_default();
            let call = Call::put(format!("/v1/groups/{}/module", encode(&name)), wanted, Repeat::Never);
            membership::change(&client, form, wait, call.within(TRY_TIME_MAX)).await
        }
        GroupVerb::Move { name, from, to, wait } => {
            membership::move_group(&client, form, wait, &name, &Move { from, to }).await
        }
        GroupVerb::Snapshot { name } => state_file::take(&client, form, &name).await,
    }
}

fn show(form: Output, group: &Group) -> Result<(), Failure> {
    if form == Output::Json {
        return output::json(group);
    }
    let member = |member: &Member| {
        let leader = if group.leader == Some(member.id) { ", leader" } else { "" };
        let matched = member.matched.map(|index| format!(", holds {index}")).unwrap_or_default();
        format!("{} at {} ({}{leader}{matched})", member.id, member.address, member.role)
    };
    // The last one is what it runs.
    let earlier = |(ran, next): (&ModuleUse, &ModuleUse)| format!("{} (until {})", ran.name, next.index);
    let before: Vec<String> = group.modules.iter().zip(group.modules.iter().skip(1)).map(earlier).collect();
    let before = if before.is_empty() { "no other module".to_owned() } else { before.join("; ") };
    let listener = |listener: &Listener| format!("{} ({})", listener.address, listener.state);
    let listeners = match group.listeners.iter().map(listener).collect::<Vec<_>>() {
        none if none.is_empty() => "none".to_owned(),
        some => format!("{}; {} connections", some.join("; "), group.connections),
    };
    output::pairs(&[
        ("name", group.name.clone()),
        ("module", format!("{} ({})", group.module, group.digest.get(..12).unwrap_or(&group.digest))),
        ("before", before),
        ("params", group.params.to_string()),
        ("state", format!("{} (node {}, term {})", group.state, group.node, group.term)),
        ("leader", group.leader.map_or("none known".to_owned(), |leader| format!("node {leader}"))),
        ("applied", format!("{} of {} committed, {} in the log", group.applied, group.commit, group.last)),
        ("snapshot", format!("up to {}, log purged up to {}", group.snapshot, group.purged)),
        ("sessions", group.sessions.to_string()),
        ("timers", group.timers.to_string()),
        ("members", group.members.iter().map(member).collect::<Vec<_>>().join("; ")),
        ("listeners", listeners),
    ])
}
