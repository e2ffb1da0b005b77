//! The sessions that an adapter holds, and their commands on the way.
//!
//! Invariants:
//! - A session's commands are numbered from 1 in the order they were asked, and proposed in that order. After a doubt
//!   everything unanswered is proposed again with the same numbers, in order: a number that was applied already is
//!   answered from the replies that the group keeps, one that comes too early is refused and changes nothing.
//! - At most [`ATTACHED_WINDOW`] commands of a session are under way, so the reply to each is still kept, unless all
//!   together are longer than the group keeps: then the adapter is told that the reply is gone.
//! - A session's end is proposed when all its commands are answered, and nothing is behind it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;

use bytes::Bytes;

use super::records::Session;
use super::records::Token;
use crate::group::inbox::Ticket;
use crate::group::state::ATTACHED_WINDOW;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::types::Attachment;
use crate::types::EntryKind;
use crate::types::SessionUse;

/// Commands of one session that wait or are under way.
const COMMANDS_MAX: usize = 10_000;

/// A proposal of one command: who is told of it, and how it is forgotten.
pub type Attempt = (Ticket, u64);

#[derive(Debug)]
struct Command {
    sequence: u64,
    token: Token,
    payload: Bytes,
    attempts: Vec<Attempt>,
}

#[derive(Debug)]
struct Held {
    session: Session,
    last_sequence: u64,
    answered: u64,
    /// All unanswered ones; the first `sent` of them are under way.
    commands: VecDeque<Command>,
    sent: usize,
    end: Option<End>,
}

/// A session's end that is asked for.
#[derive(Debug)]
struct End {
    token: Token,
    /// Whether it is under way.
    sent: bool,
    attempts: Vec<Attempt>,
}

/// What may be proposed now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The command of this number.
    Command(u64, EntryKind),
    /// The session's end.
    End(EntryKind),
}

/// What is left of a session that was lost.
#[derive(Debug)]
pub struct Remains {
    /// The session.
    pub session: Session,
    /// Tokens that will not be answered otherwise.
    pub tokens: Vec<Token>,
    /// Proposals nobody waits for any more.
    pub attempts: Vec<Attempt>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct Sessions {
    held: BTreeMap<u64, Held>,
    stalled: BTreeSet<u64>,
}

fn not_held(session: u64) -> ServiceError {
    ServiceError::new(ErrorCode::SessionNotFound, format!("the adapter does not hold session {session}"))
}

impl Sessions {
    /// How many are held.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Begins to hold a session.
    pub fn hold(&mut self, session: Session) {
        let held = Held { session, last_sequence: 0, answered: 0, commands: VecDeque::new(), sent: 0, end: None };
        self.held.insert(session.id, held);
    }

    /// Whether this attachment is held.
    pub fn holds(&self, session: u64, attachment: u64) -> bool {
        self.held.get(&session).is_some_and(|held| held.session.attachment == attachment)
    }

    /// Whether a session is held.
    pub fn has(&self, session: u64) -> bool {
        self.held.contains_key(&session)
    }

    /// Adds a command; [`Self::next`] gives it when its turn comes.
    pub fn propose(&mut self, session: u64, token: Token, payload: Bytes) -> Result<(), ServiceError> {
        let held = self.held.get_mut(&session).ok_or_else(|| not_held(session))?;
        if held.end.is_some() {
            let detail = format!("the end of session {session} is asked already");
            return Err(ServiceError::new(ErrorCode::SessionNotFound, detail));
        }
        if held.commands.len() >= COMMANDS_MAX {
            let detail = format!("{COMMANDS_MAX} commands of session {session} wait already");
            return Err(ServiceError::new(ErrorCode::Overloaded, detail));
        }
        held.last_sequence += 1;
        held.commands.push_back(Command { sequence: held.last_sequence, token, payload, attempts: Vec::new() });
        Ok(())
    }

    /// Asks for the session's end, behind its commands.
    pub fn end(&mut self, session: u64, token: Token) -> Result<(), ServiceError> {
        let held = self.held.get_mut(&session).ok_or_else(|| not_held(session))?;
        if held.end.is_some() {
            let detail = format!("the end of session {session} is asked already");
            return Err(ServiceError::new(ErrorCode::SessionNotFound, detail));
        }
        held.end = Some(End { token, sent: false, attempts: Vec::new() });
        Ok(())
    }

    /// What is to be proposed for this session now; [`Self::sent`] or [`Self::stall`] follows.
    pub fn next(&mut self, session: u64) -> Option<(u64, Next)> {
        if self.stalled.contains(&session) {
            return None;
        }
        let held = self.held.get_mut(&session)?;
        let Session { id, attachment, secret, .. } = held.session;
        if held.sent < ATTACHED_WINDOW
            && let Some(command) = held.commands.get(held.sent)
        {
            let used = SessionUse {
                id,
                secret,
                sequence: Some(command.sequence),
                attachment: Some(Attachment { index: attachment, answered: held.answered }),
            };
            let kind = EntryKind::Command { session: Some(used), payload: command.payload.clone() };
            return Some((attachment, Next::Command(command.sequence, kind)));
        }
        if held.commands.is_empty() && held.end.as_ref().is_some_and(|end| !end.sent) {
            let kind = EntryKind::CloseSession { id, secret: Some(secret), attachment: Some(attachment) };
            return Some((attachment, Next::End(kind)));
        }
        None
    }

    /// What [`Self::next`] gave is proposed.
    pub fn sent(&mut self, session: u64, attempt: Attempt) {
        let Some(held) = self.held.get_mut(&session) else { return };
        if let Some(command) = held.commands.get_mut(held.sent) {
            command.attempts.push(attempt);
            held.sent += 1;
        } else if let Some(end) = &mut held.end {
            end.attempts.push(attempt);
            end.sent = true;
        }
    }

    /// The command is answered: its token, and all its attempts. `None` when it was answered before.
    pub fn answered(&mut self, session: u64, attachment: u64, sequence: u64) -> Option<(Token, Vec<Attempt>)> {
        let held = self.held.get_mut(&session).filter(|held| held.session.attachment == attachment)?;
        let place = held.commands.iter().position(|command| command.sequence == sequence)?;
        let command = held.commands.remove(place)?;
        if place < held.sent {
            held.sent -= 1;
        }
        held.answered = held.answered.max(sequence);
        Some((command.token, command.attempts))
    }

    /// Something of the session did not come through: nothing more of it is proposed until [`Self::resume`].
    pub fn stall(&mut self, session: u64, attachment: u64) {
        if self.holds(session, attachment) {
            self.stalled.insert(session);
        }
    }

    /// Everything unanswered is to be proposed again: the sessions, and how many commands that are.
    pub fn resume(&mut self) -> (Vec<u64>, u64) {
        let mut again = 0;
        let stalled: Vec<u64> = std::mem::take(&mut self.stalled).into_iter().collect();
        for session in &stalled {
            if let Some(held) = self.held.get_mut(session) {
                again += held.sent as u64;
                held.sent = 0;
                if let Some(end) = &mut held.end {
                    end.sent = false;
                }
            }
        }
        (stalled, again)
    }

    /// The session is no longer held.
    pub fn lose(&mut self, session: u64) -> Option<Remains> {
        let held = self.held.remove(&session)?;
        self.stalled.remove(&session);
        let mut tokens: Vec<Token> = held.commands.iter().map(|command| command.token).collect();
        let mut attempts: Vec<Attempt> = held.commands.into_iter().flat_map(|command| command.attempts).collect();
        if let Some(end) = held.end {
            tokens.push(end.token);
            attempts.extend(end.attempts);
        }
        Some(Remains { session: held.session, tokens, attempts })
    }

    /// The session's end is answered: its token and all its attempts, unless it was told already.
    pub fn ended(&mut self, session: u64, attachment: u64) -> Option<(Token, Vec<Attempt>)> {
        let held = self.held.get_mut(&session).filter(|held| held.session.attachment == attachment)?;
        held.end.take().map(|end| (end.token, end.attempts))
    }

    /// All attempts of all sessions: for a gateway that gives up.
    pub fn attempts(&self) -> impl Iterator<Item = Attempt> + '_ {
        self.held.values().flat_map(|held| {
            let commands = held.commands.iter().flat_map(|command| &command.attempts);
            commands.chain(held.end.iter().flat_map(|end| &end.attempts)).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn book() -> Sessions {
        let mut sessions = Sessions::default();
        sessions.hold(Session { id: 5, attachment: 5, timeout_ms: 1000, secret: [1; 16] });
        sessions
    }

    /// Proposes all that may be; the sequence numbers.
    fn pump(sessions: &mut Sessions, ticket: &mut Ticket) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some((_, Next::Command(sequence, _))) = sessions.next(5) {
            *ticket += 1;
            sessions.sent(5, (*ticket, *ticket));
            sent.push(sequence);
        }
        sent
    }

    #[test]
    fn after_a_doubt_everything_unanswered_goes_again_in_order_with_its_numbers() {
        let (mut sessions, mut ticket) = (book(), 0);
        for token in 10..14 {
            sessions.propose(5, token, Bytes::new()).unwrap();
        }
        assert_eq!(pump(&mut sessions, &mut ticket), [1, 2, 3, 4]);
        assert_eq!(sessions.answered(5, 5, 1), Some((10, vec![(1, 1)])));
        sessions.stall(5, 5);
        sessions.propose(5, 14, Bytes::new()).unwrap();
        assert_eq!(pump(&mut sessions, &mut ticket), Vec::<u64>::new(), "what comes behind a doubt waits");
        // The doubtful one was applied after all.
        assert_eq!(sessions.answered(5, 5, 2).unwrap().0, 11);
        assert_eq!(sessions.resume(), (vec![5], 2));
        assert_eq!(pump(&mut sessions, &mut ticket), [3, 4, 5]);
        assert_eq!(sessions.answered(5, 5, 3).unwrap(), (12, vec![(3, 3), (5, 5)]), "both attempts are known");
        assert_eq!(sessions.answered(5, 5, 3), None, "answered once");
    }

    #[test]
    fn the_window_bounds_what_is_under_way() {
        let (mut sessions, mut ticket) = (book(), 0);
        for token in 0..ATTACHED_WINDOW as u64 + 2 {
            sessions.propose(5, token, Bytes::new()).unwrap();
        }
        assert_eq!(pump(&mut sessions, &mut ticket).len(), ATTACHED_WINDOW);
        sessions.answered(5, 5, 1).unwrap();
        assert_eq!(pump(&mut sessions, &mut ticket), [ATTACHED_WINDOW as u64 + 1]);
    }

    #[test]
    fn the_end_waits_for_the_commands_before_it() {
        let (mut sessions, mut ticket) = (book(), 0);
        sessions.propose(5, 1, Bytes::new()).unwrap();
        sessions.end(5, 2).unwrap();
        assert_eq!(sessions.propose(5, 3, Bytes::new()).unwrap_err().code, ErrorCode::SessionNotFound);
        assert_eq!(pump(&mut sessions, &mut ticket), [1]);
        assert_eq!(sessions.next(5), None);
        sessions.answered(5, 5, 1).unwrap();
        let the_end =
            |next| matches!(next, Some((5, Next::End(EntryKind::CloseSession { id: 5, attachment: Some(5), .. }))));
        assert!(the_end(sessions.next(5)));
        sessions.sent(5, (7, 70));
        assert_eq!(sessions.next(5), None, "once");
        sessions.stall(5, 5);
        assert_eq!(sessions.resume(), (vec![5], 0));
        assert!(the_end(sessions.next(5)), "and again after a doubt");
        sessions.sent(5, (8, 80));
        assert_eq!(sessions.attempts().collect::<Vec<_>>(), [(7, 70), (8, 80)]);
        assert_eq!(sessions.ended(5, 5), Some((2, vec![(7, 70), (8, 80)])), "nobody waits for either any more");
        assert_eq!(sessions.ended(5, 5), None);
    }

    #[test]
    fn a_lost_session_names_all_that_is_unanswered() {
        let (mut sessions, mut ticket) = (book(), 0);
        sessions.propose(5, 1, Bytes::new()).unwrap();
        pump(&mut sessions, &mut ticket);
        sessions.propose(5, 2, Bytes::new()).unwrap();
        sessions.end(5, 3).unwrap();
        let remains = sessions.lose(5).unwrap();
        assert_eq!((remains.tokens, remains.attempts), (vec![1, 2, 3], vec![(1, 1)]));
        let mut sessions = book();
        sessions.end(5, 3).unwrap();
        sessions.sent(5, (1, 10));
        let remains = sessions.lose(5).unwrap();
        assert_eq!((remains.tokens, remains.attempts), (vec![3], vec![(1, 10)]), "its end under way, too");
        assert_eq!(sessions.propose(5, 4, Bytes::new()).unwrap_err().code, ErrorCode::SessionNotFound);
    }
}
