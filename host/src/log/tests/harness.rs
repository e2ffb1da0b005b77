//! A log driven step by step beside a model of what it must say.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use openraft::RaftLogReader;
use openraft::storage::IOFlushed;
use openraft::storage::RaftLogStorage;
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use openraft_rt_sim::SimRuntime;

use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::log::GroupLog;
use crate::log::LogError;
use crate::log::LogOptions;
use crate::log::NodeLog;
use crate::log::RecoveryReport;
use crate::log::files::Files;
use crate::log::record::log_id;
use crate::log::segment::segment_name;
use crate::log::segment::sequence_of;
use crate::log::writer::Wrote;
use crate::types::Entry;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::LeaderId;
use crate::types::LogId;
use crate::types::Origin;
use crate::types::Payload;
use crate::types::Proposal;
use crate::types::Types;
use crate::types::Vote;

pub(super) const DIR: &str = "/node/log";

pub(super) fn segment_path(sequence: u64) -> PathBuf {
    Path::new(DIR).join(segment_name(sequence))
}

/// The highest sequence of a file.
pub(super) fn newest_segment(disk: &SimDisk) -> u64 {
    disk.list(Path::new(DIR)).unwrap().iter().filter_map(|name| sequence_of(name)).max().unwrap()
}

pub(super) fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 16 << 10,
        cache_bytes: 4000,
        max_batch_bytes: 4000,
        keep_segments: 3,
        salt: 7,
        ..LogOptions::default()
    }
}

pub(super) fn open(disk: &SimDisk) -> Result<(NodeLog, RecoveryReport), LogError> {
    open_with(disk, options())
}

pub(super) fn open_with(disk: &SimDisk, options: LogOptions) -> Result<(NodeLog, RecoveryReport), LogError> {
    NodeLog::open(Arc::new(disk.clone()), Path::new(DIR), options, Arc::new(|_| {}))
}

/// The result of a future that has it without waiting.
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("this must not wait"),
    }
}

pub(super) fn entry(term: u64, index: u64, payload: &[u8]) -> Entry {
    let kind = EntryKind::Command { session: None, payload: payload.to_vec().into() };
    let origin = Origin { node: 1, incarnation: 2, number: index };
    Entry { log_id: log_id(term, index), payload: Payload::Normal(Proposal { time_ms: 1000 + index, origin, kind }) }
}

pub(super) fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId::new(term, 1), committed: false }
}

/// One call of openraft.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// So many entries of so many bytes at the end of the group.
    Append {
        group: GroupId,
        entries: u64,
        bytes: usize,
        term: u64,
    },
    Vote {
        group: GroupId,
        term: u64,
    },
    /// Drops so many entries from the end.
    Truncate {
        group: GroupId,
        entries: u64,
    },
    /// Drops so many entries from the front.
    Purge {
        group: GroupId,
        entries: u64,
    },
    /// A snapshot came that is so much newer than the last entry.
    Install {
        group: GroupId,
        beyond: u64,
        term: u64,
    },
    /// The mark goes to the last entry.
    Committed {
        group: GroupId,
    },
    Remove {
        group: GroupId,
    },
}

/// What the log says of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Group {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) entries: Vec<Entry>,
}

impl Group {
    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.last().map(|entry| entry.log_id).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }
}

/// What the log says of all groups, but for those of which there is nothing to say.
pub(super) type Groups = BTreeMap<GroupId, Group>;

/// What the log says.
pub(super) fn observe(log: &NodeLog) -> Groups {
    let mut groups = Groups::new();
    for id in log.groups() {
        let mut group: GroupLog<SimRuntime> = log.group(id);
        let state = group.state().unwrap();
        let entries = now(group.try_get_log_entries(..)).unwrap();
        let said = Group { vote: group.vote().unwrap(), purged: state.last_purged_log_id, entries };
        assert_eq!(state.last_log_id, said.last(), "group {id}");
        assert!(group.committed().unwrap() <= said.last(), "group {id}: committed beyond the last entry");
        if said != Group::default() {
            groups.insert(id, said);
        }
    }
    groups
}

/// The log and the model side by side.
pub(super) struct Harness {
    pub(super) disk: SimDisk,
    pub(super) log: NodeLog,
    /// What the log must say now.
    pub(super) model: Groups,
    /// What it said after each submitted batch of steps that may be on disk: the first is acknowledged.
    pub(super) possible: Vec<Groups>,
}

impl Harness {
    pub(super) fn new(disk: SimDisk) -> Self {
        let (log, _) = open(&disk).unwrap();
        Self::on(disk, log)
    }

    pub(super) fn on(disk: SimDisk, log: NodeLog) -> Self {
        let model = observe(&log);
        Self { disk, log, possible: vec![model.clone()], model }
    }

    pub(super) fn group(&self, group: GroupId) -> GroupLog<SimRuntime> {
        self.log.group(group)
    }

    /// Submits a step to the log and applies it to the model. Steps that make no sense now are skipped.
    pub(super) fn step(&mut self, step: &Step) -> Result<(), std::io::Error> {
        let before = self.model.clone();
        match *step {
            Step::Append { group, entries, bytes, term } => {
                let of = self.model.entry(group).or_default();
                let (next, mut new) = (of.next(), Vec::new());
                let term = term.max(of.last().map_or(0, |last| last.leader_id.term));
                for index in next..next + entries {
                    new.push(entry(term, index, &vec![(1 + index % 251) as u8; bytes]));
                }
                // A large append is written in parts, so each of its entries may be the last on disk.
                for entry in &new {
                    self.possible.push(self.model.clone());
                    self.model.entry(group).or_default().entries.push(entry.clone());
                }
                now(self.group(group).append(new, IOFlushed::noop()))?;
            }
            Step::Vote { group, term } => {
                self.model.entry(group).or_default().vote = Some(vote(term));
                let mut log = self.group(group);
                let vote = vote(term);
                let mut future = pin!(log.save_vote(&vote));
                // It waits for the sync, which is another step; the vote is queued by then.
                if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    result?;
                }
            }
            Step::Truncate { group, entries } => {
                let of = self.model.entry(group).or_default();
                of.entries.truncate(of.entries.len().saturating_sub(entries as usize));
                let last = of.last();
                now(self.group(group).truncate_after(last))?;
            }
            Step::Purge { group, entries } => {
                let of = self.model.entry(group).or_default();
                let entries = of.entries.len().min(entries as usize);
                if entries > 0 {
                    let upto = of.entries[entries - 1].log_id;
                    of.entries.drain(..entries);
                    of.purged = Some(upto);
                    now(self.group(group).purge(upto))?;
                }
            }
            Step::Install { group, beyond, term } => {
                let of = self.model.entry(group).or_default();
                let term = term.max(of.last().map_or(0, |last| last.leader_id.term));
                let upto = log_id(term, of.next() + beyond);
                *of = Group { vote: of.vote, purged: Some(upto), entries: Vec::new() };
                now(self.group(group).purge(upto))?;
            }
            Step::Committed { group } => {
                let last = self.model.entry(group).or_default().last();
                now(self.group(group).save_committed(last))?;
            }
            Step::Remove { group } => {
                self.model.remove(&group);
                let log = self.log.clone();
                let mut future = pin!(log.remove_group::<SimRuntime>(group));
                if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    result?;
                }
            }
        }
        self.model.retain(|_, group| *group != Group::default());
        if before != self.model {
            self.possible.push(self.model.clone());
        }
        Ok(())
    }

    /// Writes what is queued, without syncing it.
    pub(super) fn write(&self) -> Result<bool, LogError> {
        match self.log.shared.writer.lock().unwrap().as_mut().unwrap().write(&self.log.shared, false)? {
            Wrote::Batch => Ok(true),
            Wrote::Nothing => Ok(false),
            Wrote::NoRoom(error) => Err(error),
        }
    }

    /// Syncs what was written: all submitted before that is acknowledged now.
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        let mut writer = self.log.shared.writer.lock().unwrap();
        let writer = writer.as_mut().unwrap();
        let synced = writer.sync();
        writer.complete(&self.log.shared, synced, 0)
    }

    /// What a driver does when nothing is queued.
    pub(super) fn rest(&self) {
        let shared = &self.log.shared;
        let mut writer = shared.writer.lock().unwrap();
        let writer = writer.as_mut().unwrap();
        writer.rest(shared);
        if let Some(sequence) = writer.wants_spare(shared) {
            writer.add_spare(shared, Files::of(shared).make_spare(sequence));
        }
    }

    /// Writes and syncs all that is queued.
    pub(super) fn flush(&mut self) -> Result<(), LogError> {
        while self.write()? {
            self.sync()?;
        }
        self.acknowledged();
        Ok(())
    }

    /// Notes that all submitted so far is durable.
    pub(super) fn acknowledged(&mut self) {
        self.possible = vec![self.model.clone()];
    }

    /// Steps and flushes.
    pub(super) fn run(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step).unwrap();
        }
        self.flush().unwrap();
    }

    /// Closes the log in order. All submitted before is acknowledged, unless this fails.
    pub(super) fn close(&mut self) -> Result<(), LogError> {
        let in_flight = self.log.shared.writer.lock().unwrap().as_ref().unwrap().in_flight.is_some();
        if in_flight {
            self.sync()?;
        }
        self.flush()?;
        let mut writer = self.log.shared.writer.lock().unwrap();
        let writer = writer.as_mut().unwrap();
        if !matches!(writer.write(&self.log.shared, true)?, Wrote::Batch) {
            return Err(LogError::Closed);
        }
        let synced = writer.sync();
        writer.complete(&self.log.shared, synced, 0)
    }

    /// Opens what `disk` holds, which must be one of the states that are possible, and returns the log.
    pub(super) fn check_recovers(&self, disk: &SimDisk, story: &str) -> (NodeLog, RecoveryReport) {
        let (log, report) = open(disk).unwrap_or_else(|error| panic!("{story}: {error}"));
        let said = observe(&log);
        assert!(
            self.possible.contains(&said),
            "{story}: the log says {said:#?}\nnot the acknowledged {:#?}\nnor one of {} later states",
            self.possible[0],
            self.possible.len() - 1
        );
        (log, report)
    }
}

/// The callback of an append, and whether it came.
pub(super) fn callback() -> (IOFlushed<Types<SimRuntime>>, impl FnMut() -> Option<Result<(), std::io::Error>>) {
    let (sender, receiver) = Types::<SimRuntime>::oneshot();
    let mut receiver = Box::pin(receiver);
    let poll = move || match receiver.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result.expect("the callback was dropped")),
        Poll::Pending => None,
    };
    (IOFlushed::signal(sender), poll)
}

/// Numbers from a seed (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A step, as openraft might take it.
    pub(super) fn step(&mut self, groups: u64) -> Step {
        let group = self.below(groups);
        let term = 1 + self.below(4);
        match self.below(40) {
            0..20 => {
                let bytes = if self.below(10) == 0 { 3000 } else { self.below(300) as usize };
                Step::Append { group, entries: 1 + self.below(5), bytes, term }
            }
            20..24 => Step::Vote { group, term },
            24..27 => Step::Truncate { group, entries: 1 + self.below(3) },
            27..33 => Step::Purge { group, entries: 1 + self.below(12) },
            33 => Step::Install { group, beyond: self.below(9), term },
            34..39 => Step::Committed { group },
            _ => Step::Remove { group },
        }
    }
}
