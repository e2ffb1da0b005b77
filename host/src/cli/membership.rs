//! `statehouse node`, `member`, `leader`, `change`: who belongs to what, and how that changes.

use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use serde::Serialize;

use super::Call;
use super::Client;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::Repeat;
use super::client::encode;
use super::output;
use super::output::or_dash;
use crate::api::schema::Balanced;
use crate::api::schema::Change;
use crate::api::schema::ChangeList;
use crate::api::schema::ClusterNode;
use crate::api::schema::Leader;
use crate::api::schema::Member;
use crate::api::schema::MemberList;
use crate::api::schema::Move;
use crate::api::schema::NewMember;
use crate::api::schema::NodeList;
use crate::api::schema::Priority;
use crate::api::schema::Transfer;
use crate::api::schema::Voters;
use crate::status::Moved;

/// One request waits for a change so long; then it is asked for again.
const WAIT_MS: u64 = 1_000;
/// For the leaders of all groups to be spread.
const BALANCE_TIME_MAX: Duration = Duration::from_secs(600);

/// Look at, add and remove the cluster's nodes
///
/// A new node starts with `serve --join`: it belongs to the cluster then, votes nowhere and holds nothing. `node add` makes it a
/// full one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse serve --node-id 4 --data-dir d4 --http 127.0.0.1:7073 --peer 127.0.0.1:7173 --join 127.0.0.1:7170
  statehouse node add 4          votes, and holds a replica of every group that is on all nodes
  statehouse node demote 4       keeps its replicas, and votes nowhere
  statehouse node rm 2           its replicas go first; the process ends by itself
  statehouse node priority 3 0   leads only while nobody else can
  statehouse node ls")]
pub(super) struct NodeVerbs {
    #[command(subcommand)]
    verb: NodeVerb,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// Make a node that has joined a full one: it catches up, then votes
    Add {
        /// The node's id
        node: u64,
        /// It receives everything and votes nowhere: more readers, and a spare
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a full node vote nowhere any more: it keeps its replicas, and `node add` makes it a full one again
    Demote {
        /// The node's id
        node: u64,
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove a node, its replicas first
    Rm {
        /// The node's id
        node: u64,
        #[command(flatten)]
        wait: Wait,
    },
    /// Say how much a node is to lead, whatever it was started with
    Priority {
        /// The node's id
        node: u64,
        /// 1 to 255, as --election-priority; 0: never where another node can; `default`: as it was started
        #[arg(value_name = "N", value_parser = parse_priority)]
        priority: Wanted,
    },
    /// List the nodes
    Ls,
}

/// How much a node is to lead; `None`: as it was started.
#[derive(Clone, Copy, Debug)]
struct Wanted(Option<u8>);

fn parse_priority(text: &str) -> Result<Wanted, String> {
    match text {
        "default" => Ok(Wanted(None)),
        text => {
            text.parse().map(|priority| Wanted(Some(priority))).map_err(|_| "not `default`, nor 0 to 255".to_owned())
        }
    }
}

/// Look at, add, promote, demote and remove a group's members
///
/// The group `catalog` is the cluster's own: its members are the nodes (`statehouse node`).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse member ls c1
  statehouse member add c1 4                catches up as a learner, then votes
  statehouse member add c1 4 --learner      stays a learner
  statehouse member promote c1 4            lets it vote, if it has caught up
  statehouse member demote c1 4             keeps its replica, and does not vote
  statehouse member rm c1 4
  statehouse member set c1 4 5 6            these vote and no others, in one step")]
pub(super) struct MemberVerbs {
    #[command(subcommand)]
    verb: MemberVerb,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum MemberVerb {
    /// Give a node a replica of a group
    Add {
        /// The group
        group: String,
        /// The node's id
        node: u64,
        /// It receives the log and does not vote
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a learner vote that has caught up
    Promote {
        /// The group
        group: String,
        /// The node's id
        node: u64,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a voter receive the log only: it keeps its replica
    Demote {
        /// The group
        group: String,
        /// The node's id
        node: u64,
        #[command(flatten)]
        wait: Wait,
    },
    /// Say which nodes vote in a group: others come and catch up first, and who is not named loses its replica
    Set {
        /// The group
        group: String,
        /// The nodes' ids
        #[arg(required = true)]
        voters: Vec<u64>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove a node's replica of a group, with its files
    Rm {
        /// The group
        group: String,
        /// The node's id
        node: u64,
        #[command(flatten)]
        wait: Wait,
    },
    /// List a group's members, as its leader sees them
    Ls {
        /// The group
        group: String,
    },
}

/// Move leadership
///
/// The group `catalog` is the cluster's own.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse leader transfer c1            to the voter that is furthest ahead
  statehouse leader transfer c1 --to 3
  statehouse leader balance                every node leads about as many groups as any other")]
pub(super) struct LeaderVerbs {
    #[command(subcommand)]
    verb: LeaderVerb,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum LeaderVerb {
    /// Hand a group's leadership over, and print who leads then
    Transfer {
        /// The group
        group: String,
        /// To this node
        #[arg(long, value_name = "ID")]
        to: Option<u64>,
    },
    /// Spread the leaders over the nodes, and print what moved
    Balance,
}

/// Look at changes of membership, and give them up
///
/// A change goes on by itself, whichever node fails; the last hundred that ended can still be asked for.
#[derive(Args, Debug)]
pub(super) struct ChangeVerbs {
    #[command(subcommand)]
    verb: ChangeVerb,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum ChangeVerb {
    /// List the changes that run and the last that ended
    Ls,
    /// Show one change, or wait for its end
    Show {
        /// Its number
        id: u64,
        /// Wait until it ended
        #[arg(long)]
        wait: bool,
    },
    /// Give up a running change; what it has done by then stays
    Cancel {
        /// Its number
        id: u64,
    },
}

/// Whether to wait for a change.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Wait {
    /// Print the change's number and leave it to go on
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run_node(verbs: NodeVerbs) -> Result<(), Failure> {
    let (client, form) = (verbs.client.client()?, verbs.client.output);
    match verbs.verb {
        NodeVerb::Add { node, learner, wait } => {
            change(&client, form, wait, post("/v1/nodes", &NewMember { node, learner })).await
        }
        NodeVerb::Demote { node, wait } => {
            change(&client, form, wait, Call::post(format!("/v1/nodes/{node}/demote"), "", Repeat::Never)).await
        }
        NodeVerb::Rm { node, wait } => change(&client, form, wait, Call::delete(format!("/v1/nodes/{node}"))).await,
        NodeVerb::Priority { node, priority: Wanted(priority) } => {
            let call = post(&format!("/v1/nodes/{node}/priority"), &Priority { priority });
            let said: Priority = client.send(call).await?.json()?;
            match said.priority {
                _ if form == Output::Json => output::json(&said),
                Some(priority) => output::line(format!("node {node} has priority {priority} to lead")),
                None => output::line(format!("node {node} has the priority that it was started with")),
            }
        }
        NodeVerb::Ls => {
            let list: NodeList = client.send(Call::get("/v1/nodes")).await?.json()?;
            if form == Output::Json {
                return output::json(&list.nodes);
            }
            let row = |node: &ClusterNode| {
                let role = if node.leader { format!("{}, leader", node.role) } else { node.role.clone() };
                let groups = node.groups.zip(node.leads).map(|(groups, leads)| format!("{groups} ({leads} lead)"));
                vec![
                    node.id.to_string(),
                    node.address.clone(),
                    role,
                    or_dash(groups),
                    or_dash(node.lag),
                    node.state.clone(),
                ]
            };
            output::table(&["node", "peer", "role", "groups", "lag", "state"], list.nodes.iter().map(row).collect())
        }
    }
}

pub(super) async fn run_member(verbs: MemberVerbs) -> Result<(), Failure> {
    let (client, form) = (verbs.client.client()?, verbs.client.output);
    let path = |group: &str| format!("/v1/groups/{}/members", encode(group));
    match verbs.verb {
        MemberVerb::Add { group, node, learner, wait } => {
            change(&client, form, wait, post(&path(&group), &NewMember { node, learner })).await
        }
        MemberVerb::Promote { group, node, wait } => {
            let call = Call::post(format!("{}/{node}/promote", path(&group)), "", Repeat::Never);
            change(&client, form, wait, call).await
        }
        MemberVerb::Demote { group, node, wait } => {
            let call = Call::post(format!("{}/{node}/demote", path(&group)), "", Repeat::Never);
            change(&client, form, wait, call).await
        }
        MemberVerb::Set { group, voters, wait } => {
            let body = serde_json::to_vec(&Voters { voters }).unwrap_or_default();
            change(&client, form, wait, Call::put(path(&group), body, Repeat::Never)).await
        }
        MemberVerb::Rm { group, node, wait } => {
            change(&client, form, wait, Call::delete(format!("{}/{node}", path(&group)))).await
        }
        MemberVerb::Ls { group } => {
            let list: MemberList = client.send(Call::get(path(&group))).await?.json()?;
            if form == Output::Json {
                return output::json(&list.members);
            }
            let row = |member: &Member| {
                vec![member.id.to_string(), member.address.clone(), member.role.clone(), or_dash(member.matched)]
            };
            output::table(&["node", "peer", "role", "holds"], list.members.iter().map(row).collect())
        }
    }
}

pub(super) async fn run_leader(verbs: LeaderVerbs) -> Result<(), Failure> {
    let (client, form) = (verbs.client.client()?, verbs.client.output);
    match verbs.verb {
        LeaderVerb::Transfer { group, to } => {
            let leader = transfer(&client, &group, to).await?;
            if form == Output::Json { output::json(&leader) } else { output::line(leader.leader.to_string()) }
        }
        LeaderVerb::Balance => balance(&client, form).await,
    }
}

async fn transfer(client: &Client, group: &str, to: Option<u64>) -> Result<Leader, Failure> {
    let body = serde_json::to_vec(&Transfer { to }).unwrap_or_default();
    let call = Call::post(format!("/v1/groups/{}/leader", encode(group)), body, Repeat::Never);
    client.send(call).await?.json()
}

async fn balance(client: &Client, form: Output) -> Result<(), Failure> {
    // As long as all the groups' hand-overs take.
    let call = Call::post("/v1/leaders/balance", "", Repeat::Never).within(BALANCE_TIME_MAX);
    let balanced: Balanced = client.send(call).await?.json()?;
    if form == Output::Json {
        return output::json(&balanced.moved);
    }
    if balanced.moved.is_empty() {
        output::note("the leaders are spread evenly already");
        return Ok(());
    }
    let row = |one: &Moved| vec![one.group.clone(), one.from.to_string(), one.to.to_string()];
    output::table(&["group", "from", "to"], balanced.moved.iter().map(row).collect())
}

pub(super) async fn run_change(verbs: ChangeVerbs) -> Result<(), Failure> {
    let (client, form) = (verbs.client.client()?, verbs.client.output);
    match verbs.verb {
        ChangeVerb::Ls => {
            let list: ChangeList = client.send(Call::get("/v1/changes")).await?.json()?;
            if form == Output::Json {
                return output::json(&list.changes);
            }
            let row =
                |one: &Change| vec![one.id.to_string(), one.change.clone(), one.state.clone(), one.detail.clone()];
            output::table(&["id", "change", "state", "detail"], list.changes.iter().map(row).collect())
        }
        ChangeVerb::Show { id, wait: true } => {
            let change = look(&client, id, 0).await?;
            end_of(&client, form, change).await
        }
        ChangeVerb::Show { id, wait: false } => show(form, &look(&client, id, 0).await?),
        ChangeVerb::Cancel { id } => {
            let change = client.send(Call::delete(format!("/v1/changes/{id}"))).await?.json()?;
            show(form, &change)
        }
    }
}

pub(super) async fn move_group(
    client: &Client,
    form: Output,
    wait: Wait,
    group: &str,
    body: &Move,
) -> Result<(), Failure> {
    change(client, form, wait, post(&format!("/v1/groups/{}/move", encode(group)), body)).await
}

fn post(path: &str, body: &impl Serialize) -> Call {
    // A second change would be refused while the first runs, which is not what happened to the first.
    Call::post(path, serde_json::to_vec(body).unwrap_or_default(), Repeat::Never)
}

async fn look(client: &Client, id: u64, wait_ms: u64) -> Result<Change, Failure> {
    let time_max = Duration::from_millis(wait_ms) + Duration::from_secs(30);
    client.send(Call::get(format!("/v1/changes/{id}?wait_ms={wait_ms}")).within(time_max)).await?.json()
}

fn show(form: Output, change: &Change) -> Result<(), Failure> {
    if form == Output::Json {
        return output::json(change);
    }
    let mut state = change.state.clone();
    if let Some(code) = &change.code {
        state.push_str(&format!(" ({code})"));
    }
    let took_ms = change.changed_ms.saturating_sub(change.began_ms);
    output::pairs(&[
        ("id", change.id.to_string()),
        ("change", change.change.clone()),
        ("state", state),
        ("detail", change.detail.clone()),
        ("took", format!("{:.1} s", took_ms as f64 / 1000.0)),
    ])
}

/// Begins a change and follows it to its end.
pub(super) async fn change(client: &Client, form: Output, wait: Wait, call: Call) -> Result<(), Failure> {
    let begun: Change = client.send(call).await?.json()?;
    if wait.no_wait {
        return if form == Output::Json { output::json(&begun) } else { output::line(begun.id.to_string()) };
    }
    end_of(client, form, begun).await
}

async fn end_of(client: &Client, form: Output, mut change: Change) -> Result<(), Failure> {
    let mut said = String::new();
    while change.state == "running" {
        if change.detail != said {
            output::note(format!("change {}, {}: {}", change.id, change.change, change.detail));
            said.clone_from(&change.detail);
        }
        change = match look(client, change.id, WAIT_MS).await {
            Ok(change) => change,
            Err(Failure::Refused { code: Some(code), .. }) if code == "no_leader" || code == "unavailable" => {
                // A node that leads may be the one that leaves.
                tokio::time::sleep(Duration::from_millis(WAIT_MS)).await;
                continue;
            }
            Err(Failure::Unreachable { what }) => {
                let remedy = format!("it goes on: `statehouse change show {} --wait` at another --server", change.id);
                return Err(Failure::OutcomeUnknown { what, remedy });
            }
            Err(other) => return Err(other),
        };
    }
    if change.state == "failed" {
        let Change { change, detail, code, .. } = change;
        let remedy = "`statehouse change ls` keeps the record; what was done by then stays".to_owned();
        return Err(Failure::Refused { what: format!("{change}: {detail}"), code, remedy });
    }
    show(form, &change)
}
