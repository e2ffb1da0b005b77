//! `statehouse log`: what the files of a node's log say, without a server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;
use serde_json::Value;
use serde_json::json;

use super::Failure;
use super::Output;
use super::output;
use crate::catalog::CatalogCommand;
use crate::codec;
use crate::log;
use crate::log::Inspection;
use crate::log::Record;
use crate::offline::Directory;
use crate::offline::NoDirectory;
use crate::offline::OfflineCatalog;
use crate::types::CATALOG;
use crate::types::Entry;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::LogId;
use crate::types::Payload;
use crate::types::Vote;

/// Look at the files of a node's log
///
/// Needs no server and changes nothing, whatever the files look like: it may be used on a damaged directory, on a copy, and on
/// a file system that is mounted read-only. Damage is told with file and offset, what is behind it is read all the same, and the exit code is
/// 6. While a node runs on the directory, what is read may be of different moments.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse log inspect --data-dir /var/lib/statehouse      segments, groups, votes, marks; and what is damaged
  statehouse log dump --data-dir d1 --group c1 --from 100 --to 120
  statehouse log dump --data-dir d1 -o json | jq -r 'select(.kind == \"command\") | .data'
  statehouse log dump --data-dir d1 --records                every record as it lies in the files")]
pub(super) struct LogVerbs {
    #[command(subcommand)]
    verb: LogVerb,
    #[command(flatten)]
    form: OfflineArgs,
}

/// What every verb takes that looks at files.
#[derive(Args, Debug)]
pub(super) struct OfflineArgs {
    /// The node's data directory
    #[arg(long, value_name = "DIR", default_value = "./statehouse-data", global = true)]
    pub(super) data_dir: PathBuf,

    /// The form of the data on standard output
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true, display_order = 801)]
    pub(super) output: Output,
}

#[derive(Debug, Subcommand)]
enum LogVerb {
    /// Tell what the log holds: its segments, of each group the entries, the vote and the marks, and what is damaged
    Inspect,
    /// Print entries, one a line: those that the log holds, in the order of groups and indexes
    ///
    /// Entries behind the mark `committed` may be committed too; this node had not written that down yet.
    Dump(Dump),
}

#[derive(Args, Debug)]
struct Dump {
    /// Only this group's, by name or id
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// From this index on
    #[arg(long, value_name = "INDEX", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Up to this index, with it
    #[arg(long, value_name = "INDEX", default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// Every record in the order in which the files have it, entries that were replaced or purged since, votes and marks included
    #[arg(long)]
    records: bool,
}

impl From<NoDirectory> for Failure {
    fn from(error: NoDirectory) -> Self {
        Self::here(error.to_string(), "name the directory that the node is started with: --data-dir")
    }
}

impl From<log::LogError> for Failure {
    fn from(error: log::LogError) -> Self {
        Self::here(error.to_string(), "the message names the file; `statehouse log inspect` tells what can be read")
    }
}

/// Opens a directory, and says what speaks against what is told of it.
pub(super) fn open(args: &OfflineArgs) -> Result<Directory, Failure> {
    let (directory, damaged) = Directory::open(&args.data_dir)?;
    if let Some(error) = damaged {
        output::note(format!("note: {error}"));
    }
    if let Some(holder) = &directory.holder {
        let who = if holder.is_empty() { String::new() } else { format!(", {holder},") };
        output::note(format!(
            "note: a process{who} uses this directory: what is told may be of different moments, and a torn end may be a write \
             that is under way"
        ));
    }
    Ok(directory)
}

pub(super) fn run(verbs: LogVerbs) -> Result<(), Failure> {
    let directory = open(&verbs.form)?;
    let log = directory.inspect_log()?;
    let catalog = OfflineCatalog::read(&directory, &log);
    match verbs.verb {
        LogVerb::Inspect => inspect(verbs.form.output, &directory, &log, &catalog)?,
        LogVerb::Dump(dump) => {
            Dumper { form: verbs.form.output, directory: &directory, dump: &dump }.run(&log, &catalog)?
        }
    }
    if log.damage.is_empty() {
        return Ok(());
    }
    for error in &log.damage {
        output::note(format!("damage: {error}"));
    }
    Err(Failure::damaged(
        format!("the log in {} is damaged in {} places", directory.path.display(), log.damage.len()),
        "docs/operations/disaster.md says what can be done; while the other nodes are well, nothing is lost",
    ))
}

pub(super) fn name_of(names: &BTreeMap<GroupId, String>, group: GroupId) -> String {
    names.get(&group).cloned().unwrap_or_else(|| "-".to_owned())
}

fn id_text(id: Option<LogId>) -> String {
    id.map_or("-".to_owned(), |id| format!("{} (term {})", id.index, id.leader_id.term))
}

fn id_json(id: Option<LogId>) -> Value {
    id.map_or(Value::Null, |id| json!({ "index": id.index, "term": id.leader_id.term }))
}

fn vote_text(vote: Option<&Vote>) -> String {
    let granted = |vote: &Vote| if vote.committed { ", elected" } else { "" };
    vote.map_or("-".to_owned(), |vote| {
        format!("term {} for node {}{}", vote.leader_id.term, vote.leader_id.voted_for, granted(vote))
    })
}

fn vote_json(vote: Option<&Vote>) -> Value {
    vote.map_or(
        Value::Null,
        |vote| json!({ "term": vote.leader_id.term, "node": vote.leader_id.voted_for, "elected": vote.committed }),
    )
}

fn range_text((first, last): &(u64, u64)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn inspect(form: Output, directory: &Directory, log: &Inspection, catalog: &OfflineCatalog) -> Result<(), Failure> {
    let names = catalog.names();
    if form == Output::Json {
        return output::json(&inspection_json(directory, log, &names));
    }
    let held: u64 = log.segments.iter().filter(|one| !one.leftover).map(|one| one.file_bytes).sum();
    let end = match (&log.torn, log.closed, log.damage.is_empty()) {
        (_, _, false) => format!("damaged in {} places, see below", log.damage.len()),
        (Some(cut), _, _) => format!(
            "torn: {} at {} of {} were never acknowledged and are cut at the next start",
            output::size(cut.bytes),
            cut.offset,
            cut.path.display()
        ),
        (None, true, _) => "closed in order".to_owned(),
        (None, false, _) => "whole; the node was not stopped in order, or runs".to_owned(),
    };
    let identity = directory.identity.as_ref();
    output::pairs(&[
        ("node", identity.map_or("unknown".to_owned(), |identity| identity.node.to_string())),
        ("cluster", identity.map_or("unknown".to_owned(), |identity| identity.cluster.clone())),
        ("log", format!("{}, {} in segments", directory.log_dir().display(), output::size(held))),
        ("end", end),
    ])?;
    output::line("")?;
    let segments = log.segments.iter().map(|one| {
        let state = match (one.leftover, one.damaged) {
            (true, _) => "given up".to_owned(),
            (_, 0) => "whole".to_owned(),
            (_, damaged) => format!("damaged in {damaged} places"),
        };
        vec![
            log::segment_name(one.sequence),
            output::size(one.file_bytes),
            one.used_bytes.to_string(),
            one.batches.to_string(),
            one.records.to_string(),
            state,
        ]
    });
    let others = log.others.iter().map(|(name, bytes)| {
        let dash = || "-".to_owned();
        vec![name.clone(), output::size(*bytes), dash(), dash(), dash(), "unused".to_owned()]
    });
    output::table(&["segment", "size", "used", "batches", "records", "state"], segments.chain(others).collect())?;
    output::line("")?;
    let groups = log.groups.iter().map(|(id, of)| {
        let ranges: Vec<String> = of.ranges().iter().map(range_text).collect();
        vec![
            name_of(&names, *id),
            id.to_string(),
            if ranges.is_empty() { "-".to_owned() } else { ranges.join(",") },
            output::size(of.bytes()),
            id_text(of.last()),
            id_text(of.committed),
            id_text(of.purged),
            vote_text(of.vote.as_ref()),
        ]
    });
    let heading = ["group", "id", "entries", "size", "last", "committed", "purged", "vote"];
    output::table(&heading, groups.collect())?;
    if let Some(doubt) = &catalog.doubt {
        output::note(format!("note: names are as of entry {} of the catalog: {doubt}", catalog.applied));
    }
    Ok(())
}

fn inspection_json(directory: &Directory, log: &Inspection, names: &BTreeMap<GroupId, String>) -> Value {
    let segments = log.segments.iter().map(|one| {
        json!({
            "file": log::segment_name(one.sequence), "file_bytes": one.file_bytes, "used_bytes": one.used_bytes,
            "batches": one.batches, "records": one.records, "damaged": one.damaged, "leftover": one.leftover,
        })
    });
    let groups = log.groups.iter().map(|(id, of)| {
        json!({
            "group": names.get(id), "id": id, "entries": of.entries.len(), "ranges": of.ranges(), "bytes": of.bytes(),
            "last": id_json(of.last()), "committed": id_json(of.committed), "purged": id_json(of.purged),
            "vote": vote_json(of.vote.as_ref()),
        })
    });
    let torn = log.torn.as_ref().map(|cut| json!({ "file": cut.path, "offset": cut.offset, "bytes": cut.bytes }));
    let others = log.others.iter().map(|(name, bytes)| json!({ "file": name, "file_bytes": bytes }));
    json!({
        "node": directory.identity.as_ref().map(|identity| identity.node),
        "cluster": directory.identity.as_ref().map(|identity| identity.cluster.clone()),
        "in_use": directory.holder.is_some(), "log": directory.log_dir(), "start": log.start, "closed": log.closed,
        "torn": torn, "segments": segments.collect::<Vec<_>>(), "unused": others.collect::<Vec<_>>(),
        "groups": groups.collect::<Vec<_>>(),
        "damage": log.damage.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Prints entries or records.
struct Dumper<'a> {
    form: Output,
    directory: &'a Directory,
    dump: &'a Dump,
}

impl Dumper<'_> {
    fn run(&self, log: &Inspection, catalog: &OfflineCatalog) -> Result<(), Failure> {
        let names = catalog.names();
        let group = self.dump.group.as_ref().map(|wanted| find_group(wanted, log, &names)).transpose()?;
        if self.dump.from > self.dump.to {
            return Err(Failure::usage("--from is behind --to", "give the smaller index to --from"));
        }
        if self.dump.records {
            return self.records(group, &names);
        }
        let mut reader = self.directory.entries();
        for (&id, of) in log.groups.iter().filter(|(id, _)| group.is_none_or(|wanted| wanted == **id)) {
            for (&index, place) in of.entries.range(self.dump.from..=self.dump.to) {
                let committed = of.committed.is_some_and(|committed| committed.index >= index);
                let place_json = json!({ "file": log::segment_name(place.segment), "offset": place.offset,
                    "bytes": place.length, "salvaged": place.salvaged, "committed": committed });
                match reader.read(id, index, place) {
                    Ok(entry) => self.entry(id, &names, &entry, place_json)?,
                    Err(error) => output::note(format!("damage: {error}")),
                }
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        id: GroupId,
        names: &BTreeMap<GroupId, String>,
        entry: &Entry,
        place: Value,
    ) -> Result<(), Failure> {
        let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
        let (kind, text, mut fields) = describe(id, &entry.payload);
        if self.form == Output::Table {
            let mark = if place.get("committed") == Some(&Value::Bool(true)) { ' ' } else { '?' };
            let length = place.get("bytes").cloned().unwrap_or_default();
            return output::line(
                format!("{} {index}{mark} term {term} {length} B {kind} {text}", name_or_id(names, id)).trim_end(),
            );
        }
        let known = json!({ "group": names.get(&id), "id": id, "index": index, "term": term, "kind": kind });
        for part in [known, place] {
            if let Value::Object(part) = part {
                fields.extend(part);
            }
        }
        output::json_line(&fields)
    }

    fn records(&self, group: Option<GroupId>, names: &BTreeMap<GroupId, String>) -> Result<(), Failure> {
        let mut result = Ok(());
        let disk = self.directory.disk();
        // Damage was told of when the log was read the first time.
        log::inspect_records(&**disk, &self.directory.log_dir(), &mut |found| {
            let of = group_of(&found.record);
            let other = group.is_some() && of != group;
            let outside = matches!(found.record, Record::Entry { index, .. }
                if !(self.dump.from..=self.dump.to).contains(&index));
            if result.is_err() || other || outside {
                return;
            }
            let place = format!("{}:{}", log::segment_name(found.sequence), found.offset);
            let text = record_text(&found.record, names);
            let salvaged = if found.salvaged { " (of a damaged batch)" } else { "" };
            result = if self.form == Output::Json {
                output::json_line(&json!({ "file": log::segment_name(found.sequence), "offset": found.offset,
                    "bytes": found.length, "salvaged": found.salvaged, "id": of,
                    "group": of.and_then(|id| names.get(&id)), "record": text }))
            } else {
                output::line(format!("{place} {} B {text}{salvaged}", found.length))
            };
        })?;
        result
    }
}

fn name_or_id(names: &BTreeMap<GroupId, String>, id: GroupId) -> String {
    names.get(&id).cloned().unwrap_or_else(|| format!("#{id}"))
}

/// A group by name or id.
fn find_group(wanted: &str, log: &Inspection, names: &BTreeMap<GroupId, String>) -> Result<GroupId, Failure> {
    let named = names.iter().find(|(_, name)| *name == wanted).map(|(id, _)| *id);
    let by_id = || wanted.parse().ok().filter(|id| log.groups.contains_key(id));
    named.or_else(by_id).ok_or_else(|| {
        let known: Vec<String> = log.groups.keys().map(|id| name_or_id(names, *id)).collect();
        Failure::here(format!("the log has no group {wanted:?}"), format!("it has {}", known.join(", ")))
    })
}

fn group_of(record: &Record<'_>) -> Option<GroupId> {
    match record {
        Record::Entry { group, .. }
        | Record::Vote { group, .. }
        | Record::Truncate { group, .. }
        | Record::Purge { group, .. }
        | Record::Committed { group, .. }
        | Record::Removed { group } => Some(*group),
        Record::Start { .. } | Record::Opened | Record::Closed => None,
    }
}

fn record_text(record: &Record<'_>, names: &BTreeMap<GroupId, String>) -> String {
    let name = |id: &GroupId| name_or_id(names, *id);
    match record {
        Record::Entry { group, index, term, moved, .. } => {
            let copy = if *moved { "copy of " } else { "" };
            format!("{copy}entry {index} term {term} of {}", name(group))
        }
        Record::Vote { group, vote } => {
            let vote = codec::decode::<Vote>(vote).map_or("unreadable".to_owned(), |vote| vote_text(Some(&vote)));
            format!("vote of {}: {vote}", name(group))
        }
        Record::Truncate { group, from } => format!("truncate {} from {from} on", name(group)),
        Record::Purge { group, index, term } => format!("purge {} up to {index} (term {term})", name(group)),
        Record::Committed { group, index, term } => format!("committed {} up to {index} (term {term})", name(group)),
        Record::Removed { group } => format!("removed {}", name(group)),
        Record::Start { sequence } => format!("the log starts at {}", log::segment_name(*sequence)),
        Record::Opened => "opened".to_owned(),
        Record::Closed => "closed".to_owned(),
    }
}

type Fields = serde_json::Map<String, Value>;

/// An entry's kind, what it says in a few words, and its fields. Secrets of sessions are left out.
fn describe(group: GroupId, payload: &Payload) -> (&'static str, String, Fields) {
    let mut fields = Fields::new();
    let proposal = match payload {
        Payload::Blank => return ("blank", String::new(), fields),
        Payload::Membership(membership) => {
            let voters: Vec<u64> = membership.voter_ids().collect();
            let addresses: BTreeMap<u64, String> =
                membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect();
            let each = addresses
                .iter()
                .map(|(id, address)| format!("{id}={address}{}", if voters.contains(id) { "" } else { " (learner)" }));
            let text = each.collect::<Vec<_>>().join(" ");
            fields.insert("voters".to_owned(), json!(voters));
            fields.insert("nodes".to_owned(), json!(addresses));
            return ("membership", text, fields);
        }
        Payload::Normal(proposal) => proposal,
    };
    fields.insert("time_ms".to_owned(), json!(proposal.time_ms));
    fields.insert("origin".to_owned(), json!({ "node": proposal.origin.node, "number": proposal.origin.number }));
    match &proposal.kind {
        EntryKind::Command { session, payload } => {
            if let Some(session) = session {
                fields.insert("session".to_owned(), json!(session.id));
                fields.insert("sequence".to_owned(), json!(session.sequence));
            }
            if group == CATALOG {
                let text = match codec::decode::<CatalogCommand>(payload) {
                    Ok(command) => catalog_text(&command),
                    Err(error) => format!("unreadable: {error}"),
                };
                fields.insert("data".to_owned(), json!(text));
                return ("command", text, fields);
            }
            fields.insert("data".to_owned(), output::bytes_as_json(payload));
            ("command", excerpt(payload), fields)
        }
        EntryKind::OpenSession { timeout_ms, attached, .. } => {
            fields.insert("timeout_ms".to_owned(), json!(timeout_ms));
            fields.insert("attached".to_owned(), json!(attached));
            ("open-session", format!("timeout {timeout_ms} ms"), fields)
        }
        EntryKind::CloseSession { id, secret, .. } => {
            let why = if secret.is_some() { "its client" } else { "it timed out" };
            fields.insert("session".to_owned(), json!(id));
            fields.insert("timed_out".to_owned(), json!(secret.is_none()));
            ("close-session", format!("{id}, {why}"), fields)
        }
        EntryKind::Timers { due } => {
            fields.insert("due".to_owned(), json!(due));
            ("timers", format!("{} due", due.len()), fields)
        }
        EntryKind::AttachSession { id, .. } => {
            fields.insert("session".to_owned(), json!(id));
            ("attach-session", id.to_string(), fields)
        }
        EntryKind::ChangeModule { change, module, name } => {
            fields.insert("change".to_owned(), json!(change));
            fields.insert("module".to_owned(), json!(name));
            fields.insert("digest".to_owned(), json!(hex::encode(module)));
            ("change-module", format!("to {name}, change {change}"), fields)
        }
    }
}

fn catalog_text(command: &CatalogCommand) -> String {
    match command {
        CatalogCommand::AddModule { name, digest, size, .. } => {
            format!("add module {name} {} ({size} B)", hex::encode(digest))
        }
        CatalogCommand::RemoveModule { name } => format!("remove module {name}"),
        CatalogCommand::CreateGroup { name, module, members, .. } => {
            format!("create group {name} of module {module} on nodes {:?}", members.keys().collect::<Vec<_>>())
        }
        CatalogCommand::RemoveGroup { name } => format!("remove group {name}"),
        CatalogCommand::Place { change, group, node, hosts } => {
            let what = if *hosts { "gets a replica" } else { "gives its replica up" };
            format!("change {change}: node {node} {what} of group #{group}")
        }
        CatalogCommand::BeginChange(kind) => format!("begin to {kind}"),
        CatalogCommand::NoteChange { id, state } => format!("change {id}: {state:?}"),
        CatalogCommand::SetPriority { node, priority: Some(priority) } => {
            format!("node {node} has priority {priority}")
        }
        CatalogCommand::SetPriority { node, priority: None } => {
            format!("node {node} has the priority it is started with")
        }
        CatalogCommand::NoteModule { id, came: Ok(index) } => {
            format!("change {id}: it runs the module from entry {index} on")
        }
        CatalogCommand::NoteModule { id, came: Err(error) } => format!("change {id}: {error}"),
        CatalogCommand::Recover { node, lost } => format!("node {node} is a new cluster, without groups {lost:?}"),
    }
}

/// The beginning of a command, for people.
fn excerpt(bytes: &[u8]) -> String {
    const CHARACTERS_MAX: usize = 100;
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => hex::encode(bytes.get(..CHARACTERS_MAX.min(bytes.len())).unwrap_or_default()),
    };
    if text.chars().count() <= CHARACTERS_MAX {
        return text;
    }
    let start: String = text.chars().take(CHARACTERS_MAX).collect();
    format!("{start}…")
}
