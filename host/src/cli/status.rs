//! `statehouse status` and `statehouse doctor`: the cluster on one screen, and what is wrong with it.

use std::time::Duration;

use clap::Args;

use super::Call;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::output;
use super::output::or_dash;
use crate::status::ChangeStatus;
use crate::status::ClusterStatus;
use crate::status::Diagnosis;
use crate::status::GroupStatus;
use crate::status::NodeStatus;
use crate::status::ReplicaStatus;

/// Show the cluster on one screen: nodes, groups, replicas
///
/// Any node can be asked; it asks the others, and shows those that do not answer as unreachable. No leader is needed.
///
/// LAG is how many entries a replica has yet to apply of what its leader has committed. SYNC is how long half of the newest
/// syncs of the log took at most, and 99 of 100: what every write waits for. LOG is how large the log's files are, and for a
/// replica how many entries it has there. MEMBERS AT is the entry a replica has its members from.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse status
  statehouse status -o json | jq '.groups[] | {name, leader, voters}'
  watch -n 1 statehouse status --server http://10.0.0.1:7070,http://10.0.0.2:7070")]
pub(super) struct Status {
    #[command(flatten)]
    client: ClientArgs,
}

/// Say what is wrong with the cluster, and what to do about it
///
/// Looks twice, a second apart. It finds nodes that do not answer, groups without a leader, with an even number of voters or
/// with just enough of them, replicas that lag or have stopped, forgotten learners, catalog and groups that disagree about
/// members, disks that are slow, nearly full or full, and versions that differ. Exit code 0 says that nothing is wrong.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse doctor
  statehouse doctor -o json | jq -r '.findings[].code'
  statehouse doctor || mail -s 'statehouse' admin@example.org")]
pub(super) struct Doctor {
    #[command(flatten)]
    client: ClientArgs,
}

/// The node gives each of its two looks a second, and there is one between.
const DOCTOR_TIME_MAX: Duration = Duration::from_secs(30);

pub(super) async fn run_status(verb: Status) -> Result<(), Failure> {
    let status: ClusterStatus = verb.client.client()?.send(Call::get("/v1/status")).await?.json()?;
    if verb.client.output == Output::Json {
        return output::json(&status);
    }
    output::line(format!("cluster {}, seen from node {}", status.cluster, status.node))?;
    output::line("")?;
    let heading = ["node", "peer", "role", "state", "leads", "disk free", "log", "sync p50, p99", "up"];
    output::table(&heading, status.nodes.iter().map(node_row).collect())?;
    output::line("")?;
    let heading =
        ["group", "node", "role", "state", "term", "commit", "applied", "lag", "log", "snapshot", "members at"];
    output::table(&heading, status.groups.iter().flat_map(|group| rows(group, status.at_ms)).collect())?;
    let changes: Vec<String> =
        status.changes.iter().chain(&status.last_change).map(|change| said(change, status.at_ms)).collect();
    if !changes.is_empty() {
        output::line("")?;
        output::line(changes.join("\n"))?;
    }
    if let Some(waits) = &status.files {
        output::line("")?;
        output::line(format!("configuration files: {waits}"))?;
    }
    Ok(())
}

pub(super) async fn run_doctor(verb: Doctor) -> Result<(), Failure> {
    let call = Call::get("/v1/doctor").within(DOCTOR_TIME_MAX);
    let Diagnosis { healthy, findings } = verb.client.client()?.send(call).await?.json()?;
    if verb.client.output == Output::Json {
        output::json(&Diagnosis { healthy, findings: findings.clone() })?;
    } else if healthy {
        output::line("nothing is wrong")?;
    } else {
        for finding in &findings {
            output::line(format!("{}\n  try: {}", finding.what, finding.remedy))?;
        }
    }
    if healthy {
        return Ok(());
    }
    let found = match findings.len() {
        1 => "one thing is wrong".to_owned(),
        count => format!("{count} things are wrong"),
    };
    Err(Failure::here(found, "what stands behind each"))
}

/// A span of time for people, in its largest unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn ago(at_ms: u64, then_ms: u64) -> String {
    format!("{} ago", span(at_ms.saturating_sub(then_ms) / 1000))
}

fn node_row(node: &NodeStatus) -> Vec<String> {
    let state = match node.reasons.as_slice() {
        [] => node.state.clone(),
        reasons => format!("{}: {}", node.state, reasons.join("; ")),
    };
    let leads = node.leads.zip(node.replicas).map(|(leads, replicas)| match node.priority {
        Some(0) => format!("{leads} of {replicas} (stands back)"),
        _ => format!("{leads} of {replicas}"),
    });
    let disk = node.disk.as_ref();
    let millis = |micros: u64| format!("{:.1}", micros as f64 / 1000.0);
    let syncs = disk.map(|disk| format!("{}, {} ms", millis(disk.sync_p50_micros), millis(disk.sync_p99_micros)));
    vec![
        node.id.to_string(),
        node.address.clone(),
        node.role.clone(),
        state,
        or_dash(leads),
        or_dash(disk.map(|disk| output::size(disk.free_bytes))),
        or_dash(disk.map(|disk| output::size(disk.log_bytes))),
        or_dash(syncs),
        or_dash(node.uptime_s.map(span)),
    ]
}

fn rows(group: &GroupStatus, at_ms: u64) -> Vec<Vec<String>> {
    let row = |(place, replica): (usize, &ReplicaStatus)| {
        let snapshot = replica.snapshot.as_ref().map(|snapshot| {
            let written = snapshot.written_ms.map_or(String::new(), |then_ms| format!(", {}", ago(at_ms, then_ms)));
            format!("{} ({}{written})", snapshot.index, output::size(snapshot.bytes))
        });
        vec![
            if place == 0 { group.name.clone() } else { String::new() },
            replica.node.to_string(),
            replica.role.clone(),
            replica.state.clone(),
            or_dash(replica.term),
            or_dash(replica.commit),
            or_dash(replica.applied),
            or_dash(replica.lag),
            or_dash(replica.log_entries),
            or_dash(snapshot),
            or_dash(replica.membership_index),
        ]
    };
    group.replicas.iter().enumerate().map(row).collect()
}

fn said(change: &ChangeStatus, at_ms: u64) -> String {
    let detail = if change.detail.is_empty() { String::new() } else { format!(": {}", change.detail) };
    let when = if change.state == "running" { String::new() } else { format!(", {}", ago(at_ms, change.changed_ms)) };
    format!("change {}, {}: {}{when}{detail}", change.id, change.change, change.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_and_changes_are_told_in_a_line() {
        assert_eq!([span(3), span(119), span(120), span(7200)], ["3 s", "119 s", "2 min", "2 h"]);
        let mut change = ChangeStatus {
            id: 7,
            change: "add node 4".into(),
            state: "running".into(),
            detail: "it catches up".into(),
            changed_ms: 5_000,
        };
        assert_eq!(said(&change, 9_000), "change 7, add node 4: running: it catches up");
        change.state = "done".into();
        change.detail.clear();
        assert_eq!(said(&change, 9_000), "change 7, add node 4: done, 4 s ago");
    }

    /// Who does not answer keeps its line.
    #[test]
    fn an_unreachable_node_has_a_row_with_dashes() {
        let reasons = vec!["connection refused".to_owned()];
        let node = NodeStatus { id: 3, state: "unreachable".into(), reasons, ..NodeStatus::default() };
        let row = node_row(&node);
        assert_eq!((row.len(), row.last().map(String::as_str)), (9, Some("-")));
        assert!(row.contains(&"unreachable: connection refused".to_owned()), "{row:?}");
    }
}
