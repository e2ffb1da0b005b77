//! The host's part of a group's replicated state: entry time, sessions with their kept replies, timers.
//!
//! Invariants:
//! - Everything here is a function of the log alone. Who leads, what the clock says, who is connected is
//!   kept elsewhere.
//! - Tables are bounded: sessions by [`SESSIONS_MAX`], kept replies by [`REPLIES_KEPT`] and [`REPLY_BYTES_KEPT`] a session and
//!   by [`KEPT_BYTES_MAX`] a group, timers by [`TIMERS_MAX`]. So all of it fits into a snapshot's head ([`ENCODED_BYTES_MAX`]).
//! - Sequence numbers count within an attachment; the commands of another one change nothing.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use super::model::Model;
use crate::module::Context;
use crate::module::Effects;
use crate::module::Fault;
use crate::module::Outcome;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::types::EntryKind;
use crate::types::Proposal;
use crate::types::SessionUse;

/// Counts up whenever the same entries could leave another state of the host's own, or get another answer, than before: nodes of
/// different numbers refuse each other.
pub const HOST_RULES: u16 = 1;
/// Sessions a group may have open.
pub const SESSIONS_MAX: usize = 1 << 20;
/// Replies kept a session, so that a client may have that many commands under way when it must retry.
pub const REPLIES_KEPT: usize = 16;
/// Commands that a gateway may have under way in one session: so many replies are kept if it has not said that they
/// arrived.
pub const ATTACHED_WINDOW: usize = 256;
/// Bytes of the replies kept a session, but for the newest, which is kept whatever its size. As long as the longest reply
/// that a module may give if nothing else is set: 256 commands under way have 16 KiB each, which writes' replies stay far
/// below.
pub const REPLY_BYTES_KEPT: usize = 4 << 20;
/// Bytes of the replies kept a group, each with [`KEPT_OVERHEAD`]: the oldest go first, whichever session they are of. All of them
/// are in the head of every snapshot.
pub const KEPT_BYTES_MAX: usize = 128 << 20;
/// What a kept reply counts beside its own bytes, so that two million of the shortest are kept a group: more than its numbers and
/// lengths take encoded.
pub const KEPT_OVERHEAD: usize = 64;
/// Timers a group may have armed.
pub const TIMERS_MAX: usize = 1 << 20;
/// The most that all of this takes encoded: a session without its replies has 61 bytes at most, a timer 18. The last call that finds
/// room for a timer may set as many as one call may set at all, which is far below a sixteenth of them.
pub const ENCODED_BYTES_MAX: usize = SESSIONS_MAX * 61 + KEPT_BYTES_MAX + (TIMERS_MAX + TIMERS_MAX / 16) * 18 + 64;
/// What else a snapshot's head says: the membership, and what the group was made with.
const HEAD_REST_BYTES: usize = 32 << 20;
const _: () = assert!(ENCODED_BYTES_MAX + HEAD_REST_BYTES <= crate::snapshot::HEAD_BYTES_MAX as usize);

/// What an entry's proposer is told.
pub type Answer = Result<Bytes, ServiceError>;

/// A replicated session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// What its client must show.
    pub secret: [u8; 16],
    /// How long it lives without a sign of life, milliseconds.
    pub timeout_ms: u64,
    /// The highest sequence number that was applied, 0 for none.
    pub last_sequence: u64,
    /// The entry that attached it to the gateway that holds it; 0 when none does.
    pub attachment: u64,
    /// The last answers: `(sequence, index, answer)`, oldest first.
    kept: VecDeque<(u64, u64, Answer)>,
}

/// See the file's head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Encoded")]
pub struct HostState {
    /// The time of the last entry, or of the group's creation before the first, Unix milliseconds.
    pub time_ms: u64,
    /// Open sessions by id.
    pub sessions: BTreeMap<u64, Session>,
    /// Armed timers: id to the time they fire at.
    pub timers: BTreeMap<u64, u64>,
    #[serde(skip)]
    ages: Ages,
}

/// What is encoded of [`HostState`].
#[derive(Deserialize)]
struct Encoded {
    time_ms: u64,
    sessions: BTreeMap<u64, Session>,
    timers: BTreeMap<u64, u64>,
}

impl From<Encoded> for HostState {
    fn from(Encoded { time_ms, sessions, timers }: Encoded) -> Self {
        let mut ages = Ages::default();
        for (id, session) in &sessions {
            session.kept.iter().for_each(|(_, index, answer)| ages.add(*index, *id, answer));
        }
        Self { time_ms, sessions, timers, ages }
    }
}

/// The kept replies of all sessions by their age. It follows from the sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ages {
    /// The reply's index to its session.
    sessions: BTreeMap<u64, u64>,
    /// What they count together.
    bytes: usize,
}

impl Ages {
    fn add(&mut self, index: u64, session: u64, answer: &Answer) {
        self.sessions.insert(index, session);
        self.bytes = self.bytes.saturating_add(bytes_of(answer) + KEPT_OVERHEAD);
    }

    fn remove(&mut self, index: u64, answer: &Answer) {
        self.sessions.remove(&index);
        self.bytes = self.bytes.saturating_sub(bytes_of(answer) + KEPT_OVERHEAD);
    }
}

/// What applying an entry gave.
#[derive(Debug)]
pub struct Applied {
    /// The index the answer belongs to: the entry's own, or the earlier one whose kept answer this is.
    pub index: u64,
    /// For the proposer.
    pub answer: Answer,
    /// Events in order.
    pub events: Vec<Vec<u8>>,
    /// Timers or sessions changed, so the leader's next duty may come earlier.
    pub wakes: bool,
}

fn error(code: ErrorCode, index: u64, detail: impl Into<String>) -> ServiceError {
    ServiceError { index: Some(index), ..ServiceError::new(code, detail) }
}

fn no_session(index: u64, id: u64) -> ServiceError {
    error(ErrorCode::SessionNotFound, index, format!("no session {id}: never opened here, closed, or timed out"))
}

fn moved(index: u64, id: u64, attachment: u64) -> ServiceError {
    error(ErrorCode::SessionMoved, index, format!("session {id} is held by another, since entry {attachment}"))
}

fn wrong_secret(index: u64, id: u64) -> ServiceError {
    error(ErrorCode::WrongSecret, index, format!("the secret of session {id} is another"))
}

/// A module's outcome as its caller sees it.
pub fn answer_of(outcome: Outcome, index: u64) -> Answer {
    match outcome {
        Outcome::Reply(bytes) => Ok(Bytes::from(bytes)),
        Outcome::Rejected(text) => Err(error(ErrorCode::Rejected, index, text)),
        Outcome::Trapped(trap) => {
            let reason = Some(trap.code.as_str().to_string());
            Err(ServiceError { reason, ..error(ErrorCode::Trapped, index, trap.message) })
        }
    }
}

/// What a kept answer counts, beside its place in the list.
fn bytes_of(answer: &Answer) -> usize {
    match answer {
        Ok(reply) => reply.len(),
        Err(error) => error.detail.len() + error.reason.as_ref().map_or(0, String::len),
    }
}

/// Mixes the group's seed with an index (SplitMix64's finaliser).
pub fn entry_seed(group_seed: u64, index: u64) -> u64 {
    let mut z = group_seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl HostState {
    /// A new group's, whose making had these effects.
    pub fn new(created_ms: u64, effects: &Effects) -> Self {
        let mut new = Self { time_ms: created_ms, ..Self::default() };
        new.take_timers(effects);
        new
    }

    /// Arms, moves and clears the timers a call asked for. [`TIMERS_MAX`] was told to the call, which may pass it by
    /// no more than its own limit.
    fn take_timers(&mut self, effects: &Effects) {
        for change in &effects.timers {
            match change.at_ms {
                None => self.timers.remove(&change.id),
                Some(at_ms) => self.timers.insert(change.id, at_ms),
            };
        }
    }

    /// Applies one proposal to `model` and to this.
    pub fn apply(
        &mut self,
        model: &mut dyn Model,
        group_seed: u64,
        index: u64,
        proposal: &Proposal,
        effects: &mut Effects,
    ) -> Result<Applied, Fault> {
        self.time_ms = self.time_ms.max(proposal.time_ms);
        let mut context = Context { index, time_ms: self.time_ms, seed: entry_seed(group_seed, index), session: 0 };
        let mut events = Vec::new();
        effects.timers_full = self.timers.len() >= TIMERS_MAX;
        let mut wakes = matches!(proposal.kind, EntryKind::OpenSession { .. });
        let mut answer_index = index;
        let answer = match &proposal.kind {
            EntryKind::Command { session: None, payload } => {
                let outcome = model.apply(&context, payload, effects)?;
                wakes |= self.collect(effects, &mut events);
                answer_of(outcome, index)
            }
            EntryKind::Command { session: Some(used), payload } => match self.admit(index, used) {
                Admission::Apply => {
                    context.session = used.id;
                    let outcome = model.apply(&context, payload, effects)?;
                    wakes |= self.collect(effects, &mut events);
                    let answer = answer_of(outcome, index);
                    self.keep(used, index, &answer);
                    answer
                }
                Admission::Known(at, answer) => {
                    answer_index = at;
                    answer
                }
                Admission::Refuse(error) => Err(error),
            },
            EntryKind::OpenSession { secret, timeout_ms, attached } => {
                if self.sessions.len() >= SESSIONS_MAX {
                    Err(error(ErrorCode::Overloaded, index, format!("the group has {SESSIONS_MAX} sessions")))
                } else {
                    let session = Session {
                        secret: *secret,
                        timeout_ms: *timeout_ms,
                        last_sequence: 0,
                        attachment: if *attached { index } else { 0 },
                        kept: VecDeque::new(),
                    };
                    self.sessions.insert(index, session);
                    Ok(Bytes::copy_from_slice(&index.to_le_bytes()))
                }
            }
            EntryKind::CloseSession { id, secret, attachment } => match self.sessions.get(id) {
                None => Err(no_session(index, *id)),
                Some(session) if secret.is_some_and(|secret| secret != session.secret) => Err(wrong_secret(index, *id)),
                Some(session) if attachment.is_some_and(|attachment| attachment != session.attachment) => {
                    Err(moved(index, *id, session.attachment))
                }
                Some(_) => {
                    if let Some(mut session) = self.sessions.remove(id) {
                        forget_replies(&mut session, &mut self.ages);
                    }
                    context.session = *id;
                    if let Outcome::Trapped(trap) = model.session_end(&context, effects)? {
                        tracing::warn!(session = id, index, %trap, "the module trapped at the session's end");
                    }
                    wakes |= self.collect(effects, &mut events);
                    Ok(Bytes::new())
                }
            },
            EntryKind::AttachSession { id, secret } => match self.sessions.get_mut(id) {
                None => Err(no_session(index, *id)),
                Some(session) if *secret != session.secret => Err(wrong_secret(index, *id)),
                Some(session) => {
                    session.attachment = index;
                    session.last_sequence = 0;
                    forget_replies(session, &mut self.ages);
                    Ok(Bytes::copy_from_slice(&session.timeout_ms.to_le_bytes()))
                }
            },
            // Whose state it is, is the replica's affair: sessions and timers stay.
            EntryKind::ChangeModule { .. } => Ok(Bytes::new()),
            EntryKind::Timers { due } => {
                for (id, at_ms) in due {
                    // Moved, cleared or fired since the leader looked: not due.
                    if *at_ms > self.time_ms || self.timers.get(id) != Some(at_ms) {
                        continue;
                    }
                    self.timers.remove(id);
                    effects.timers_full = self.timers.len() >= TIMERS_MAX;
                    if let Outcome::Trapped(trap) = model.timer(&context, *id, effects)? {
                        tracing::warn!(timer = id, index, %trap, "the module trapped in a timer");
                    }
                    wakes |= self.collect(effects, &mut events);
                }
                Ok(Bytes::new())
            }
        };
        Ok(Applied { index: answer_index, answer, events, wakes })
    }

    fn collect(&mut self, effects: &mut Effects, events: &mut Vec<Vec<u8>>) -> bool {
        self.take_timers(effects);
        events.append(&mut effects.events);
        !effects.timers.is_empty()
    }

    fn admit(&self, index: u64, used: &SessionUse) -> Admission {
        let Some(session) = self.sessions.get(&used.id) else {
            return Admission::Refuse(no_session(index, used.id));
        };
        if session.secret != used.secret {
            return Admission::Refuse(wrong_secret(index, used.id));
        }
        let attachment = used.attachment.map_or(0, |attachment| attachment.index);
        // Whoever does not number its commands needs no attachment: there is no order to disturb.
        if session.attachment != attachment && (used.sequence.is_some() || used.attachment.is_some()) {
            return Admission::Refuse(moved(index, used.id, session.attachment));
        }
        let Some(sequence) = used.sequence else {
            return Admission::Apply;
        };
        let expected = session.last_sequence.saturating_add(1);
        if sequence == expected {
            return Admission::Apply;
        }
        if sequence > expected || sequence == 0 {
            let detail = format!("session {} expects sequence {expected}, not {sequence}", used.id);
            return Admission::Refuse(error(ErrorCode::BadSequence, index, detail));
        }
        match session.kept.iter().find(|(kept, _, _)| *kept == sequence) {
            Some((_, at, answer)) => Admission::Known(*at, answer.clone()),
            None => {
                let kept = match session.kept.len() {
                    0 => "neither its reply nor a later one is kept any more".to_owned(),
                    kept => format!("the last {kept} replies are kept, up to {}", session.last_sequence),
                };
                let detail = format!("sequence {sequence} of session {} was applied; {kept}", used.id);
                Admission::Refuse(error(ErrorCode::SequenceTooOld, index, detail))
            }
        }
    }

    fn keep(&mut self, used: &SessionUse, index: u64, answer: &Answer) {
        let Self { sessions, ages, .. } = self;
        let (Some(sequence), Some(session)) = (used.sequence, sessions.get_mut(&used.id)) else {
            return;
        };
        session.last_sequence = sequence;
        session.kept.push_back((sequence, index, answer.clone()));
        ages.add(index, used.id, answer);
        let (answered, most) = match used.attachment {
            Some(attachment) => (attachment.answered, ATTACHED_WINDOW),
            None => (0, REPLIES_KEPT),
        };
        let mut bytes: usize = session.kept.iter().map(|(_, _, answer)| bytes_of(answer)).sum();
        while let Some((sequence, at, oldest)) = session.kept.front() {
            let is_too_much = session.kept.len() > most || (bytes > REPLY_BYTES_KEPT && session.kept.len() > 1);
            if *sequence > answered && !is_too_much {
                break;
            }
            bytes -= bytes_of(oldest);
            ages.remove(*at, oldest);
            session.kept.pop_front();
        }
        // The one just given is the last to go, and goes only if it alone is too much.
        while ages.bytes > KEPT_BYTES_MAX
            && let Some((oldest, id)) = ages.sessions.pop_first()
        {
            let kept = sessions.get_mut(&id).map(|session| &mut session.kept);
            if let Some((_, _, answer)) = kept.and_then(|kept| kept.pop_front_if(|(_, at, _)| *at == oldest)) {
                ages.remove(oldest, &answer);
            }
        }
    }
}

/// Its replies are kept no more.
fn forget_replies(session: &mut Session, ages: &mut Ages) {
    for (_, index, answer) in std::mem::take(&mut session.kept) {
        ages.remove(index, &answer);
    }
}

enum Admission {
    Apply,
    Known(u64, Answer),
    Refuse(ServiceError),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::codec;
    use crate::group::model::FrozenModel;
    use crate::module::TimerChange;
    use crate::module::Trap;
    use crate::module::TrapCode;
    use crate::types::Origin;

    /// Counts what it applied; `trap` traps, `timer ID AT` arms a timer, `reply N` answers N bytes.
    #[derive(Default)]
    struct Counting {
        applied: u64,
        ended: Vec<u64>,
        fired: Vec<(u64, u64)>,
        /// Whether a timer that fired was told that there is no room for others.
        full: Vec<bool>,
        /// A timer that fires sets so many others.
        sets: u64,
    }

    impl Model for Counting {
        fn apply(&mut self, _: &Context, command: &[u8], effects: &mut Effects) -> Result<Outcome, Fault> {
            effects.clear();
            let text = std::str::from_utf8(command).unwrap();
            if text == "trap" {
                return Ok(Outcome::Trapped(Trap { code: TrapCode::Panic, message: "asked to".into() }));
            }
            if let Some(timer) = text.strip_prefix("timer ") {
                let (id, at_ms) = timer.split_once(' ').unwrap();
                effects.timers.push(TimerChange { id: id.parse().unwrap(), at_ms: at_ms.parse().ok() });
            }
            self.applied += 1;
            if let Some(length) = text.strip_prefix("reply ") {
                return Ok(Outcome::Reply(vec![b'x'; length.parse().unwrap()]));
            }
            effects.events.push(command.to_vec());
            Ok(Outcome::Reply(self.applied.to_string().into_bytes()))
        }
        fn timer(&mut self, context: &Context, id: u64, effects: &mut Effects) -> Result<Outcome, Fault> {
            effects.clear();
            self.fired.push((id, context.time_ms));
            self.full.push(effects.timers_full);
            let others = (0..self.sets).map(|other| TimerChange { id: id << 32 | other, at_ms: Some(u64::MAX) });
            effects.timers.extend(others);
            Ok(Outcome::Reply(Vec::new()))
        }
        fn session_end(&mut self, context: &Context, effects: &mut Effects) -> Result<Outcome, Fault> {
            effects.clear();
            self.ended.push(context.session);
            Ok(Outcome::Reply(Vec::new()))
        }
        fn query(&mut self, _: &Context, _: &[u8]) -> Result<Outcome, Fault> {
            Ok(Outcome::Reply(Vec::new()))
        }
        fn freeze(&mut self) -> Result<Box<dyn FrozenModel>, Fault> {
            Err(Fault { what: "not needed here".into() })
        }
    }

    #[derive(Default)]
    struct Replica {
        host: HostState,
        model: Counting,
        index: u64,
    }

    impl Replica {
        fn entry(&mut self, time_ms: u64, kind: EntryKind) -> Applied {
            self.index += 1;
            let proposal = Proposal { time_ms, origin: Origin { node: 1, incarnation: 1, number: self.index }, kind };
            self.host.apply(&mut self.model, 7, self.index, &proposal, &mut Effects::default()).unwrap()
        }

        fn command(&mut self, session: Option<SessionUse>, text: &str) -> Applied {
            self.entry(0, EntryKind::Command { session, payload: Bytes::copy_from_slice(text.as_bytes()) })
        }

        fn open(&mut self) -> u64 {
            self.entry(0, EntryKind::OpenSession { secret: [5; 16], timeout_ms: 1000, attached: false }).index
        }
    }

    fn used(id: u64, sequence: u64) -> Option<SessionUse> {
        Some(SessionUse { id, secret: [5; 16], sequence: Some(sequence), attachment: None })
    }

    #[test]
    fn a_retried_command_is_answered_and_not_applied_again() {
        let mut replica = Replica::default();
        let id = replica.open();
        let first = replica.command(used(id, 1), "add");
        let again = replica.command(used(id, 1), "add");
        assert_eq!((first.index, first.answer.clone().unwrap()), (again.index, again.answer.unwrap()));
        assert!(again.events.is_empty(), "the event was emitted the first time");
        assert_eq!(replica.model.applied, 1);
    }

    #[test]
    fn a_trap_uses_its_sequence_number_and_is_answered_again_as_a_trap() {
        let mut replica = Replica::default();
        let id = replica.open();
        let first = replica.command(used(id, 1), "trap").answer.unwrap_err();
        assert_eq!((first.code, first.reason.as_deref()), (ErrorCode::Trapped, Some("panic")));
        assert_eq!(replica.command(used(id, 1), "trap").answer.unwrap_err(), first);
        assert_eq!(replica.command(used(id, 2), "add").answer.unwrap(), Bytes::from_static(b"1"));
    }

    #[test]
    fn gaps_old_numbers_wrong_secrets_and_strangers_change_nothing() {
        let mut replica = Replica::default();
        let id = replica.open();
        for sequence in 1..=REPLIES_KEPT as u64 + 1 {
            replica.command(used(id, sequence), "add").answer.unwrap();
        }
        let before = replica.host.clone();
        let mut refuse = |session, code| {
            assert_eq!(replica.command(session, "add").answer.unwrap_err().code, code);
        };
        refuse(used(id, 1), ErrorCode::SequenceTooOld);
        refuse(used(id, 0), ErrorCode::BadSequence);
        refuse(used(id, 99), ErrorCode::BadSequence);
        refuse(Some(SessionUse { id, secret: [6; 16], sequence: Some(18), attachment: None }), ErrorCode::WrongSecret);
        refuse(used(id + 1000, 1), ErrorCode::SessionNotFound);
        assert_eq!(replica.host, before);
        assert_eq!(replica.model.applied, REPLIES_KEPT as u64 + 1);
    }

    fn attached(id: u64, attachment: u64, sequence: u64, answered: u64) -> Option<SessionUse> {
        let attachment = Some(crate::types::Attachment { index: attachment, answered });
        Some(SessionUse { id, secret: [5; 16], sequence: Some(sequence), attachment })
    }

    #[test]
    fn who_attaches_to_a_session_counts_anew_and_what_its_last_holder_sends_is_refused() {
        let mut replica = Replica::default();
        let id = replica.entry(0, EntryKind::OpenSession { secret: [5; 16], timeout_ms: 1000, attached: true }).index;
        replica.command(attached(id, id, 1, 0), "add").answer.unwrap();
        let attach = |secret| EntryKind::AttachSession { id, secret };
        assert_eq!(replica.entry(0, attach([6; 16])).answer.unwrap_err().code, ErrorCode::WrongSecret);
        let taken = replica.entry(0, attach([5; 16]));
        assert_eq!(taken.answer.unwrap(), Bytes::copy_from_slice(&1000u64.to_le_bytes()));
        let late = replica.command(attached(id, id, 2, 0), "add").answer.unwrap_err();
        assert_eq!((late.code, replica.model.applied), (ErrorCode::SessionMoved, 1));
        assert_eq!(replica.command(used(id, 1), "add").answer.unwrap_err().code, ErrorCode::SessionMoved);
        assert_eq!(replica.command(attached(id, taken.index, 1, 0), "add").answer.unwrap(), Bytes::from_static(b"2"));
        let again = replica.command(attached(id, taken.index, 1, 0), "add").answer.unwrap();
        assert_eq!(again, Bytes::from_static(b"2"), "its own reply, not the one of the earlier holder's number 1");
    }

    #[test]
    fn replies_that_arrived_are_not_kept_and_a_full_window_is() {
        let mut replica = Replica::default();
        let id = replica.entry(0, EntryKind::OpenSession { secret: [5; 16], timeout_ms: 1000, attached: true }).index;
        let window = ATTACHED_WINDOW as u64;
        for sequence in 1..=window {
            replica.command(attached(id, id, sequence, 0), "add").answer.unwrap();
        }
        assert_eq!(replica.command(attached(id, id, 1, 0), "add").answer.unwrap(), Bytes::from_static(b"1"));
        replica.command(attached(id, id, window + 1, window), "add").answer.unwrap();
        assert_eq!(replica.host.sessions[&id].kept.len(), 1);
    }

    /// 256 replies were kept a session however long they were: a client of one that does not say that they arrived made
    /// every replica keep a gigabyte, and every snapshot carry it.
    #[test]
    fn long_replies_are_kept_up_to_so_many_bytes_and_the_newest_always() {
        let mut replica = Replica::default();
        let id = replica.entry(0, EntryKind::OpenSession { secret: [5; 16], timeout_ms: 1000, attached: true }).index;
        let quarter = format!("reply {}", REPLY_BYTES_KEPT / 4);
        for sequence in 1..=5 {
            replica.command(attached(id, id, sequence, 0), &quarter).answer.unwrap();
        }
        let again = |replica: &mut Replica, sequence| replica.command(attached(id, id, sequence, 0), "add").answer;
        let dropped = again(&mut replica, 1).unwrap_err();
        assert_eq!(dropped.code, ErrorCode::SequenceTooOld);
        assert!(dropped.detail.ends_with("the last 4 replies are kept, up to 5"), "{}", dropped.detail);
        for sequence in 2..=5 {
            assert_eq!(again(&mut replica, sequence).unwrap().len(), REPLY_BYTES_KEPT / 4);
        }
        replica.command(attached(id, id, 6, 0), &format!("reply {}", REPLY_BYTES_KEPT + 1)).answer.unwrap();
        assert_eq!(again(&mut replica, 5).unwrap_err().code, ErrorCode::SequenceTooOld);
        assert_eq!(again(&mut replica, 6).unwrap().len(), REPLY_BYTES_KEPT + 1);
        replica.command(attached(id, id, 7, 0), "add").answer.unwrap();
        assert_eq!(again(&mut replica, 6).unwrap_err().code, ErrorCode::SequenceTooOld);
        assert_eq!(again(&mut replica, 7).unwrap(), Bytes::from_static(b"7"));
        assert_eq!(replica.model.applied, 7, "nothing was applied twice");
    }

    /// What is beside the sessions follows from them.
    fn assert_rebuilt(host: &HostState) {
        assert_eq!(codec::decode::<HostState>(&codec::encode(host).unwrap()).unwrap(), *host);
        assert!(host.ages.bytes <= KEPT_BYTES_MAX);
    }

    /// Replies were bounded a session and not a group: 130 sessions with sixteen of 128 KiB were more than a snapshot's head may
    /// have. No snapshot was written any more, and the log grew until the disk was full.
    #[test]
    fn the_oldest_replies_of_a_group_go_first_whichever_session_they_are_of() {
        const LONG: usize = 1 << 20;
        let mut replica = Replica::default();
        let sessions: Vec<u64> = (0..50).map(|_| replica.open()).collect();
        let long = format!("reply {LONG}");
        for sequence in 1..=3 {
            for id in &sessions {
                replica.command(used(*id, sequence), &long).answer.unwrap();
            }
            assert_rebuilt(&replica.host);
        }
        let kept = KEPT_BYTES_MAX / (LONG + KEPT_OVERHEAD);
        let lengths = |host: &HostState| host.sessions.values().map(|session| session.kept.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&replica.host), [vec![2; 150 - kept], vec![3; kept - 100]].concat());
        assert!(codec::encode(&replica.host).unwrap().len() <= ENCODED_BYTES_MAX);

        let dropped = replica.command(used(sessions[0], 1), "add").answer.unwrap_err();
        assert_eq!(dropped.code, ErrorCode::SequenceTooOld);
        let told = "sequence 1 of session 1 was applied; the last 2 replies are kept, up to 3";
        assert_eq!(dropped.detail, told);
        assert_eq!(replica.command(used(sessions[0], 2), "add").answer.unwrap().len(), LONG);
        assert_eq!(replica.command(used(sessions[49], 1), "add").answer.unwrap().len(), LONG);

        // A replica that began with a snapshot drops the same ones.
        let host = codec::decode(&codec::encode(&replica.host).unwrap()).unwrap();
        let mut late = Replica { host, model: Counting::default(), index: replica.index };
        for replica in [&mut replica, &mut late] {
            replica
                .entry(0, EntryKind::CloseSession { id: sessions[1], secret: None, attachment: None })
                .answer
                .unwrap();
            replica.entry(0, EntryKind::AttachSession { id: sessions[2], secret: [5; 16] }).answer.unwrap();
            for sequence in 4..=100 {
                replica.command(used(sessions[3], sequence), &long).answer.unwrap();
                replica.command(used(sessions[4], sequence), &long).answer.unwrap();
            }
        }
        assert_eq!(codec::encode(&replica.host).unwrap(), codec::encode(&late.host).unwrap());
        assert_rebuilt(&replica.host);
        assert_rebuilt(&late.host);
    }

    /// The same where none is left of a session, and one reply alone is too much.
    #[test]
    fn a_command_whose_session_has_no_reply_left_is_not_applied_again() {
        let mut replica = Replica::default();
        let (first, second) = (replica.open(), replica.open());
        replica.command(used(first, 1), "add").answer.unwrap();
        replica.command(used(first, 2), "add").answer.unwrap();
        let whole = format!("reply {}", KEPT_BYTES_MAX - KEPT_OVERHEAD);
        replica.command(used(second, 1), &whole).answer.unwrap();
        for sequence in [1, 2] {
            let dropped = replica.command(used(first, sequence), "add").answer.unwrap_err();
            assert_eq!(dropped.code, ErrorCode::SequenceTooOld);
            let told = format!(
                "sequence {sequence} of session 1 was applied; neither its reply nor a later one is kept any more"
            );
            assert_eq!(dropped.detail, told);
        }
        assert_eq!(replica.command(used(second, 1), "add").answer.unwrap().len(), KEPT_BYTES_MAX - KEPT_OVERHEAD);
        assert_eq!(replica.model.applied, 3, "nothing was applied twice");
        assert_eq!(replica.command(used(first, 3), "add").answer.unwrap(), Bytes::from_static(b"4"));

        let too_much = format!("reply {}", KEPT_BYTES_MAX);
        assert_eq!(replica.command(used(second, 2), &too_much).answer.unwrap().len(), KEPT_BYTES_MAX);
        let dropped = replica.command(used(second, 2), "add").answer.unwrap_err();
        assert_eq!((dropped.code, replica.model.applied), (ErrorCode::SequenceTooOld, 5));
        assert_rebuilt(&replica.host);
    }

    /// The head of a snapshot was said to have room for all of this, and had none.
    #[test]
    fn what_each_part_may_take_in_a_snapshot_is_as_much_as_it_is_counted_for() {
        const MOST: u64 = u64::MAX;
        let size = |host: &HostState| usize::try_from(codec::size(host).unwrap()).unwrap();
        let session = |kept| {
            let session = Session { secret: [255; 16], timeout_ms: MOST, last_sequence: MOST, attachment: MOST, kept };
            HostState { sessions: BTreeMap::from([(MOST, session)]), ..HostState::default() }
        };
        let none = size(&HostState::default());
        assert_eq!(size(&HostState { timers: BTreeMap::from([(MOST, MOST)]), ..HostState::default() }) - none, 18);
        let long = "x".repeat(1 << 17);
        let error = ServiceError { reason: Some(long.clone()), ..error(ErrorCode::Rejected, MOST, long.clone()) };
        for answer in [Ok(Bytes::from(long)), Ok(Bytes::new()), Err(error)] {
            let counted = bytes_of(&answer) + KEPT_OVERHEAD;
            let kept = VecDeque::from(vec![(MOST, MOST, answer); 300]);
            // Three bytes for the list's length, where the session's own size has nine.
            assert!(size(&session(kept)) - size(&session(VecDeque::new())) <= 300 * counted);
        }
        assert!(size(&session(VecDeque::new())) - none + 8 <= 61, "and a list's length of nine bytes");
    }

    #[test]
    fn a_session_ends_once_and_only_with_its_secret_or_by_the_leader() {
        let mut replica = Replica::default();
        let (first, second) = (replica.open(), replica.open());
        let close = |id, secret| EntryKind::CloseSession { id, secret, attachment: None };
        assert_eq!(replica.entry(0, close(first, Some([9; 16]))).answer.unwrap_err().code, ErrorCode::WrongSecret);
        replica.entry(0, close(first, Some([5; 16]))).answer.unwrap();
        replica.entry(0, close(second, None)).answer.unwrap();
        assert_eq!(replica.entry(0, close(second, None)).answer.unwrap_err().code, ErrorCode::SessionNotFound);
        assert_eq!(replica.model.ended, [first, second]);
    }

    #[test]
    fn a_timer_fires_once_at_an_entry_time_that_never_goes_back() {
        let mut replica = Replica::default();
        replica.command(None, "timer 3 500");
        let due = |at_ms| EntryKind::Timers { due: vec![(3, at_ms)] };
        replica.entry(499, due(500));
        assert_eq!(replica.model.fired, [], "not yet");
        replica.entry(700, due(500));
        // A new leader's clock is behind: the entry's time stays where it was.
        replica.entry(100, due(500));
        assert_eq!(replica.model.fired, [(3, 700)]);
        assert_eq!(replica.host.time_ms, 700);
    }

    /// Whether there is room for timers was found out once an entry, and each of the hundreds that fire by one may set ten thousand.
    #[test]
    fn timers_that_fire_together_find_no_more_room_than_there_is() {
        let mut replica = Replica::default();
        replica.model.sets = 10;
        replica.host.timers = (1..TIMERS_MAX as u64).map(|id| (id, 0)).collect();
        replica.entry(1, EntryKind::Timers { due: vec![(1, 0), (2, 0)] });
        assert_eq!(replica.model.full, [false, true]);
    }

    #[test]
    fn a_timer_that_was_moved_meanwhile_is_not_due() {
        let mut replica = Replica::default();
        replica.command(None, "timer 3 500");
        replica.command(None, "timer 3 900");
        replica.entry(600, EntryKind::Timers { due: vec![(3, 500)] });
        assert_eq!(replica.model.fired, []);
        replica.command(None, "timer 3 never");
        replica.entry(2000, EntryKind::Timers { due: vec![(3, 900)] });
        assert_eq!(replica.model.fired, [], "cleared");
    }
}
