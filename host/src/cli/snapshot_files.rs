//! `statehouse snapshot inspect` and `verify`: what snapshot files say, without a server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use serde_json::json;

use super::Failure;
use super::Output;
use super::log::OfflineArgs;
use super::log::name_of;
use super::log::open;
use super::output;
use crate::codec;
use crate::disk::read_only::ReadOnlyDisk;
use crate::group::state::HostState;
use crate::offline::OfflineCatalog;
use crate::snapshot;
use crate::snapshot::Head;
use crate::snapshot::Survey;
use crate::types::GroupId;

/// Which files.
#[derive(Args, Debug)]
pub(super) struct SnapshotFiles {
    /// Snapshot files; without any: all of --data-dir
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    form: OfflineArgs,
}

/// The files, read to their ends, and the groups' names as far as they are known.
fn read(args: &SnapshotFiles) -> Result<(Vec<Survey>, BTreeMap<GroupId, String>), Failure> {
    if !args.files.is_empty() {
        let surveys = args.files.iter().map(|path| snapshot::survey(&ReadOnlyDisk, path)).collect();
        return Ok((surveys, BTreeMap::new()));
    }
    let directory = open(&args.form)?;
    let cannot = |error: std::io::Error| {
        Failure::here(format!("{}: {error}", directory.path.display()), "see that its files can be read")
    };
    let mut surveys = Vec::new();
    for group in directory.snapshot_groups().map_err(cannot)? {
        for path in directory.snapshot_files(group).map_err(cannot)? {
            let survey = directory.survey(&path);
            // The node that runs has removed it meanwhile.
            if directory.holder.is_none() || path.exists() {
                surveys.push(survey);
            }
        }
    }
    // Names are a help; that the log cannot be read is nothing to stop for.
    let names = directory.inspect_log().map(|log| OfflineCatalog::read(&directory, &log).names());
    Ok((surveys, names.unwrap_or_default()))
}

/// What the damage amounts to.
fn judge(surveys: &[Survey]) -> Result<(), Failure> {
    for error in surveys.iter().flat_map(|survey| &survey.damage) {
        output::note(format!("damage: {error}"));
    }
    let damaged = surveys.iter().filter(|survey| !survey.damage.is_empty()).count();
    if damaged == 0 {
        return Ok(());
    }
    Err(Failure::damaged(
        format!("{damaged} of {} snapshot files are damaged", surveys.len()),
        "docs/operations/disaster.md says what can be done; the older file of a group is used as long as the log still joins it",
    ))
}

pub(super) fn verify(args: &SnapshotFiles) -> Result<(), Failure> {
    let (surveys, names) = read(args)?;
    if args.form.output == Output::Json {
        output::json(&surveys.iter().map(|survey| survey_json(survey, &names)).collect::<Vec<_>>())?;
        return judge(&surveys);
    }
    let rows = surveys.iter().map(|survey| {
        let head = survey.head.as_ref();
        vec![
            survey.path.display().to_string(),
            head.map_or("-".to_owned(), |head| group_text(head, &names)),
            head.map_or("-".to_owned(), |head| head.last_log_id.index.to_string()),
            output::size(survey.bytes),
            if survey.damage.is_empty() { "whole" } else { "damaged" }.to_owned(),
        ]
    });
    output::table(&["file", "group", "index", "size", "state"], rows.collect())?;
    judge(&surveys)
}

pub(super) fn inspect(args: &SnapshotFiles) -> Result<(), Failure> {
    let (surveys, names) = read(args)?;
    if args.form.output == Output::Json {
        output::json(&surveys.iter().map(|survey| survey_json(survey, &names)).collect::<Vec<_>>())?;
        return judge(&surveys);
    }
    for (place, survey) in surveys.iter().enumerate() {
        if place > 0 {
            output::line("")?;
        }
        show(survey, &names)?;
    }
    judge(&surveys)
}

fn group_text(head: &Head, names: &BTreeMap<GroupId, String>) -> String {
    match names.get(&head.group) {
        Some(_) => name_of(names, head.group),
        None => format!("#{}", head.group),
    }
}

fn show(survey: &Survey, names: &BTreeMap<GroupId, String>) -> Result<(), Failure> {
    let state = if survey.damage.is_empty() { "whole".to_owned() } else { "damaged, see below".to_owned() };
    let digest = survey.digest.map_or("-".to_owned(), hex::encode);
    let size = format!("{} B: {} B of state in {} chunks", survey.bytes, survey.payload_bytes, survey.chunks);
    let mut rows =
        vec![("file", survey.path.display().to_string()), ("state", state), ("size", size), ("digest", digest)];
    if let Some(head) = &survey.head {
        let last = head.last_log_id;
        let membership = head.membership.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let members = membership
            .nodes()
            .map(|(id, node)| format!("{id}={}{}", node.addr, if voters.contains(id) { "" } else { " (learner)" }));
        rows.push(("group", format!("{} (id {})", group_text(head, names), head.group)));
        rows.push(("covers", format!("entries up to {} (term {})", last.index, last.leader_id.term)));
        rows.push(("members", members.collect::<Vec<_>>().join(" ")));
        rows.push(("module", if head.module == [0; 32] { "-".to_owned() } else { hex::encode(head.module) }));
        rows.push(("host", host_text(head)));
    }
    output::pairs(&rows)
}

fn host_text(head: &Head) -> String {
    match codec::decode::<HostState>(&head.host_state) {
        Ok(host) => {
            format!("{} sessions, {} timers, time {} ms", host.sessions.len(), host.timers.len(), host.time_ms)
        }
        Err(error) => format!("unreadable: {error}"),
    }
}

fn survey_json(survey: &Survey, names: &BTreeMap<GroupId, String>) -> Value {
    let head = survey.head.as_ref().map(|head| {
        let membership = head.membership.membership();
        let members: BTreeMap<u64, &str> = membership.nodes().map(|(id, node)| (*id, node.addr.as_str())).collect();
        let host = codec::decode::<HostState>(&head.host_state).ok();
        json!({
            "group": names.get(&head.group), "id": head.group, "index": head.last_log_id.index,
            "term": head.last_log_id.leader_id.term, "voters": membership.voter_ids().collect::<Vec<_>>(), "members": members,
            "module": hex::encode(head.module), "sessions": host.as_ref().map(|host| host.sessions.len()),
            "timers": host.as_ref().map(|host| host.timers.len()), "time_ms": host.as_ref().map(|host| host.time_ms),
        })
    });
    json!({
        "file": survey.path, "bytes": survey.bytes, "payload_bytes": survey.payload_bytes, "chunks": survey.chunks,
        "digest": survey.digest.map(hex::encode), "head": head,
        "damage": survey.damage.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
