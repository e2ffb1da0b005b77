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
    /// What its newest snapshot covers: a log that ends before is brought there first.
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
                let last = state.groups.get(&group).and_then(|of| of.last());
                if let Some(covered) = covered.filter(|covered| last.is_none_or(|last| last.index < covered.index)) {
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
