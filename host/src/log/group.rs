//! A group's part of the node's log, as openraft's storage traits want it.
//!
//! Invariants:
//!
//! - Everything takes effect in the visible state and enters the queue under one lock, so votes,
//!   appends, truncations and purges of a group reach disk in the order they were called.
//! - `append` returns once its entries can be read; its callback comes when they are synced. `save_vote`
//!   and `remove_group` return only when synced. A truncation or a purge needs no sync of its own:
//!   what is appended after it cannot be durable without it.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::Bound;
use std::ops::RangeBounds;

use futures_util::Stream;
use futures_util::stream;
use openraft::LogState;
use openraft::OptionalSend;
use openraft::RaftLogReader;
use openraft::async_runtime::AsyncRuntime;
use openraft::async_runtime::Oneshot;
use openraft::async_runtime::OneshotSender;
use openraft::errors::LeaderChanged;
use openraft::storage::IOFlushed;
use openraft::storage::LeaderBoundedStreamError;
use openraft::storage::LeaderBoundedStreamResult;
use openraft::storage::RaftLogStorage;

use crate::codec;
use crate::types::Entry;
use crate::types::GroupId;
use crate::types::LeaderId;
use crate::types::LogId;
use crate::types::Types;
use crate::types::Vote;

use super::NodeLog;
use super::error::LogError;
use super::record::Record;
use super::record::encode_entry;
use super::state::Done;
use super::state::Effect;
use super::state::Operation;
use super::state::State;

/// See the module. Clones are the same log.
pub struct GroupLog<RT> {
    log: NodeLog,
    group: GroupId,
    runtime: PhantomData<fn() -> RT>,
}

impl<RT> Clone for GroupLog<RT> {
    fn clone(&self) -> Self {
        Self { log: self.log.clone(), group: self.group, runtime: PhantomData }
    }
}

fn operation(group: GroupId, record: &Record<'_>, effect: Effect, done: Option<Done>) -> Operation {
    let mut bytes = Vec::new();
    record.encode_into(&mut bytes);
    Operation { group, bytes, records: 1, effect, done }
}

/// Entries of one append that are written with one batch.
struct Part {
    /// The index of the first.
    first: u64,
    /// The lengths of their records.
    lengths: Vec<u32>,
    bytes: Vec<u8>,
}

/// Encodes entries, in parts that reach `limit` bytes at most by their last entry.
fn encode_parts(group: GroupId, entries: &[Entry], limit: usize) -> Result<Vec<Part>, LogError> {
    let mut parts: Vec<Part> = Vec::new();
    for entry in entries {
        if parts.last().is_none_or(|part| part.bytes.len() >= limit) {
            parts.push(Part { first: entry.log_id.index, lengths: Vec::new(), bytes: Vec::new() });
        }
        if let Some(part) = parts.last_mut() {
            part.lengths.push(encode_entry(group, entry, &mut part.bytes)? as u32);
        }
    }
    Ok(parts)
}

/// Calls `change`, which alters the visible state and returns the operation for disk, queues that, and
/// waits until it is durable.
async fn submit_and_wait<RT: AsyncRuntime>(
    log: &NodeLog,
    change: impl FnOnce(&mut State, Done) -> Operation,
) -> Result<(), LogError> {
    let (sender, receiver) = RT::Oneshot::channel::<Result<(), LogError>>();
    let done: Done = Box::new(move |result| {
        // Nobody waits any more: the operation is done all the same.
        sender.send(result).ok();
    });
    {
        let mut state = log.shared.lock();
        state.check()?;
        let operation = change(&mut state, done);
        state.push(operation);
        log.shared.wake(state);
    }
    receiver.await.unwrap_or(Err(LogError::Closed))
}

pub(super) async fn remove<RT: AsyncRuntime>(log: &NodeLog, group: GroupId) -> Result<(), LogError> {
    submit_and_wait::<RT>(log, |state, done| {
        state.remove(group);
        operation(group, &Record::Removed { group }, Effect::Nothing, Some(done))
    })
    .await
}

impl<RT: AsyncRuntime> GroupLog<RT> {
    pub(super) fn new(log: NodeLog, group: GroupId) -> Self {
        Self { log, group, runtime: PhantomData }
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// What was purged last and what is the last entry, without waiting.
    pub fn state(&self) -> Result<LogState<Types<RT>>, LogError> {
        let state = self.log.shared.lock();
        state.check()?;
        let group = state.groups.get(&self.group);
        Ok(LogState {
            last_purged_log_id: group.and_then(|group| group.purged),
            last_log_id: group.and_then(|group| group.last()),
        })
    }

    /// The last entry that has to go if of those up to `upto` no more than `kept` bytes, the newest, are to stay; `None` if none has.
    pub fn too_much(&self, upto: u64, kept: u64) -> Option<u64> {
        self.log.shared.lock().groups.get(&self.group)?.too_much(upto, kept)
    }

    /// The terms of the oldest and of the newest entry, without waiting; of what was purged last when there are none.
    pub fn terms(&self) -> Option<(u64, u64)> {
        self.log.shared.lock().groups.get(&self.group)?.terms()
    }

    /// The vote, without waiting.
    pub fn vote(&self) -> Result<Option<Vote>, LogError> {
        let state = self.log.shared.lock();
        state.check()?;
        Ok(state.groups.get(&self.group).and_then(|group| group.vote))
    }

    /// The last saved committed mark, without waiting. Not newer than the last entry.
    pub fn committed(&self) -> Result<Option<LogId>, LogError> {
        let state = self.log.shared.lock();
        state.check()?;
        Ok(state.groups.get(&self.group).and_then(|group| group.committed))
    }

    fn read(&self, start: u64, end: u64, limit: usize) -> Result<Vec<Entry>, LogError> {
        self.log.shared.lock().check()?;
        self.log.read_entries(self.group, start, end, limit)
    }

    /// The next part of a stream of entries that has come to `next`; an error if the log has a hole there
    /// by now, because what a stream has not handed out yet was purged.
    fn read_on(&self, next: u64, end: u64, begun: bool) -> Result<Vec<Entry>, LogError> {
        let entries = self.read(next, end, self.log.shared.options.read_bytes)?;
        match entries.first() {
            Some(first) if begun && first.log_id.index != next => {
                Err(LogError::Gap { group: self.group, expected: next, found: first.log_id.index })
            }
            _ => Ok(entries),
        }
    }

    /// Whether the vote says that `leader` leads; if not, what it says.
    fn is_led_by(&self, leader: &LeaderId) -> Result<Result<(), Option<Vote>>, LogError> {
        let vote = self.vote()?;
        Ok(match vote {
            Some(vote) if vote.leader_id == *leader && vote.committed => Ok(()),
            other => Err(other),
        })
    }

    fn read_led(
        &self,
        leader: &LeaderId,
        next: u64,
        end: u64,
        begun: bool,
    ) -> Result<Vec<Entry>, LeaderBoundedStreamError<Types<RT>>> {
        // Before and after: what was read in between is of this leader's log.
        let check = || match self.is_led_by(leader) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(vote)) => Err(LeaderBoundedStreamError::LeaderChanged(LeaderChanged::new(*leader, vote))),
            Err(error) => Err(LeaderBoundedStreamError::IoError(error.into())),
        };
        check()?;
        let entries =
            self.read_on(next, end, begun).map_err(|error| LeaderBoundedStreamError::IoError(error.into()))?;
        check()?;
        Ok(entries)
    }
}

/// The range as `start..end`.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

/// Hands out entries from `start` to before `end` as `read(next, begun)` returns them, part by part, so
/// that a long range is not in memory at once. Ends at the first error, or where the log ends.
fn in_parts<E>(
    start: u64,
    end: u64,
    mut read: impl FnMut(u64, bool) -> Result<Vec<Entry>, E> + Send,
) -> impl Stream<Item = Result<Entry, E>> + Send
where
    E: Send,
{
    let mut next = start;
    let mut begun = false;
    let mut part = Vec::new().into_iter();
    let mut over = false;
    stream::iter(std::iter::from_fn(move || {
        if over {
            return None;
        }
        if part.len() == 0 {
            if begun && next >= end {
                return None;
            }
            match read(next, begun) {
                Ok(entries) => part = entries.into_iter(),
                Err(error) => {
                    over = true;
                    return Some(Err(error));
                }
            }
            begun = true;
        }
        let entry = part.next();
        match &entry {
            Some(entry) => next = entry.log_id.index + 1,
            None => over = true,
        }
        entry.map(Ok)
    }))
}

impl<RT: AsyncRuntime> RaftLogReader<Types<RT>> for GroupLog<RT> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        Ok(self.read(start, end, usize::MAX)?)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let entries = self.read(start, end, self.log.shared.options.read_bytes)?;
        // A replication that goes on from before a purge (its follower lost its log meanwhile) must not be given what
        // comes after the hole as if it followed. Nothing is what openraft takes for "not now".
        Ok(if entries.first().is_some_and(|first| first.log_id.index == start) { entries } else { Vec::new() })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.vote()?)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let log = self.clone();
        in_parts(start, end, move |next, begun| log.read_on(next, end, begun).map_err(io::Error::from))
    }

    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderId,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<Types<RT>>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let log = self.clone();
        in_parts(start, end, move |next, begun| log.read_led(&leader, next, end, begun))
    }
}

impl<RT: AsyncRuntime> RaftLogStorage<Types<RT>> for GroupLog<RT> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<RT>>, io::Error> {
        Ok(self.state()?)
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (group, vote) = (self.group, *vote);
        let bytes = codec::encode(&vote)?;
        let saved = submit_and_wait::<RT>(&self.log, |state, done| {
            state.groups.entry(group).or_default().vote = Some(vote);
            operation(group, &Record::Vote { group, vote: &bytes }, Effect::Vote, Some(done))
        });
        Ok(saved.await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        let mut state = self.log.shared.lock();
        state.check()?;
        state.groups.entry(self.group).or_default().committed = Some(committed);
        // No wake: it goes to disk with the next batch that is written for another reason.
        state.committed_waiting.insert(self.group);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.committed()?)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<RT>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let group = self.group;
        let entries: Vec<Entry> = entries.into_iter().collect();
        let parts = encode_parts(group, &entries, self.log.shared.options.max_batch_bytes)?;
        let done: Done = Box::new(move |result| callback.io_completed(result.map_err(io::Error::from)));
        if parts.is_empty() {
            done(Ok(()));
            return Ok(());
        }
        let mut state = self.log.shared.lock();
        state.check()?;
        let mut stamp = state.next_stamp;
        state.append(group, entries, parts.iter().flat_map(|part| part.lengths.iter().copied()))?;
        let mut done = Some(done);
        let last = parts.len() - 1;
        for (place, Part { first, lengths, bytes }) in parts.into_iter().enumerate() {
            let records = lengths.len() as u32;
            let effect = Effect::Entries { first, stamp, lengths };
            stamp += u64::from(records);
            // Parts are written in order, so the last one is durable when all are.
            let done = if place == last { done.take() } else { None };
            state.push(Operation { group, bytes, records, effect, done });
        }
        self.log.shared.wake(state);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let group = self.group;
        let from = last.map_or(0, |last| last.index + 1);
        let mut state = self.log.shared.lock();
        state.check()?;
        state.truncate(group, from);
        state.push(operation(group, &Record::Truncate { group, from }, Effect::Nothing, None));
        self.log.shared.wake(state);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let group = self.group;
        let mut state = self.log.shared.lock();
        state.check()?;
        if state.groups.get(&group).is_some_and(|of| of.purged >= Some(upto)) {
            return Ok(());
        }
        state.purge(group, upto);
        let record = Record::Purge { group, index: upto.index, term: upto.leader_id.term };
        state.push(operation(group, &record, Effect::Purge, None));
        self.log.shared.wake(state);
        Ok(())
    }
}
