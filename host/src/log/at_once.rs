//! Writing to several groups in one step, while no consensus runs: a node that is made a cluster of its own.
//!
//! Invariant: it is one batch, so a crash leaves all of it or nothing.

use crate::codec;
use crate::types::Entry;
use crate::types::GroupId;
use crate::types::LogId;
use crate::types::Vote;

use super::NodeLog;
use super::error::LogError;
use super::record::MAX_PAYLOAD_BYTES;
use super::record::Record;
use super::record::encode_entry;
use super::state::Effect;
use super::state::Operation;

/// What a group's log gets.
#[derive(Clone, Debug)]
pub struct Addition {
    /// The group.
    pub group: GroupId,
    /// What its newest snapshot covers: a log that does not have that entry, be it that it ends before or that the snapshot
    /// replaced what it has there, is brought to begin behind it first.
    pub covered: Option<LogId>,
    /// Its new vote.
    pub vote: Vote,
    /// What follows the last entry.
    pub entries: Vec<Entry>,
}

impl NodeLog {
    /// Writes all additions with one sync, on the caller's thread; nothing may drive the log.
    pub fn write_at_once(&self, additions: Vec<Addition>) -> Result<(), LogError> {
        {
            let mut state = self.shared.lock();
            state.check()?;
            let mut bytes = 0;
            let mut operations = Vec::new();
            for Addition { group, covered, vote, entries } in additions {
                let mut push = |record: &Record<'_>, effect: Effect| {
                    let mut encoded = Vec::new();
                    record.encode_into(&mut encoded);
                    bytes += encoded.len();
                    operations.push(Operation { group, bytes: encoded, records: 1, effect, done: None });
                };
                let joins = |covered: &LogId| state.groups.get(&group).is_some_and(|of| of.joins(covered));
                if let Some(covered) = covered.filter(|covered| !joins(covered)) {
                    // Nothing that may follow there follows the snapshot.
                    state.truncate(group, 0);
                    push(&Record::Truncate { group, from: 0 }, Effect::Nothing);
                    state.purge(group, covered);
                    push(&Record::Purge { group, index: covered.index, term: covered.leader_id.term }, Effect::Purge);
                }
                state.groups.entry(group).or_default().vote = Some(vote);
                let encoded = codec::encode(&vote)
                    .map_err(|error| LogError::Codec { group, what: format!("its vote: {error}") })?;
                push(&Record::Vote { group, vote: &encoded }, Effect::Vote);
                let Some(first) = entries.first().map(|entry| entry.log_id.index) else { continue };
                let mut encoded = Vec::new();
                let mut lengths = Vec::new();
                for entry in &entries {
                    lengths.push(encode_entry(group, entry, &mut encoded)? as u32);
                }
                bytes += encoded.len();
                let (stamp, records) = (state.next_stamp, lengths.len() as u32);
                state.append(group, entries, lengths.iter().copied())?;
                let effect = Effect::Entries { first, stamp, lengths };
                operations.push(Operation { group, bytes: encoded, records, effect, done: None });
            }
            // Or the writer would make several batches of it.
            let limit = self.shared.options.max_batch_bytes.min(MAX_PAYLOAD_BYTES);
            if bytes > limit {
                let what = format!("{bytes} bytes are to be written at once, max_batch_bytes is {limit}");
                return Err(LogError::Options(what));
            }
            operations.into_iter().for_each(|operation| state.push(operation));
        }
        if self.flush()? { Ok(()) } else { Err(LogError::Closed) }
    }
}
