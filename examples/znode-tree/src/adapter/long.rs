//! Answers that are longer than the host lets one query answer: asked for piece by piece.
//!
//! ZooKeeper sends a list of a million children, and so must we. A query's answer has a limit
//! ([`ANSWER_BYTES_MAX`](crate::call::ANSWER_BYTES_MAX)); the tree says how long the one that was asked for would be, and
//! gives any part of it ([`own::PIECE`]), with a digest of the whole by which pieces of another state are known. Pieces are
//! asked for one after the other, so that entries are applied between them. An answer that changes all the time is asked
//! for at once: the host answers from one state what is asked together, unless it is pressed, but applies nothing until then.
//!
//! Invariants:
//! * one answer is gathered at a time, the first in `line`: so that no call of this adapter gives the host more than
//!   one of them, and no more than one lies here;
//! * what waits in line is bounded: beyond `LINE_BYTES_MAX` a client is told to ask later.

use std::collections::VecDeque;

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Outcome;

use super::Purpose;
use super::Shared;
use crate::call::LONG_ANSWER_BYTES_MAX;
use crate::call::LongAnswer;
use crate::call::PIECE_BYTES;
use crate::call::Piece;
use crate::call::Whole;
use crate::call::call_head;
use crate::call::own;
use crate::jute::Writer;
use crate::wire::ErrorCode;

/// Bytes of requests in line.
const LINE_BYTES_MAX: usize = 16 << 20;
/// How often an answer that changes meanwhile is begun anew, with its pieces one after the other; and all at once.
const PATIENT_ATTEMPTS: u32 = 2;
const ATTEMPTS: u32 = 10;

/// An answer to come.
#[derive(Debug)]
struct Long {
    connection: ConnectionId,
    slot: u64,
    session: Option<u64>,
    /// The whole call.
    call: Box<[u8]>,
    length: u64,
    attempts: u32,
}

/// The pieces of the first in line.
#[derive(Debug)]
struct Gathering {
    /// The answer that all pieces so far are of, and the entry that the last of them saw.
    of: Option<Whole>,
    index: u64,
    pieces: Vec<Option<Box<[u8]>>>,
    /// How many were asked for, and how many came.
    asked: usize,
    came: usize,
    is_spoiled: bool,
    failed: Option<ErrorCode>,
}

/// What came of a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Gathered {
    /// Others are missing, or are asked for again.
    NotYet,
    /// The request with this number of this connection is answered, with this entry's index: an error, or a whole reply.
    Whole { connection: ConnectionId, slot: u64, index: u64, reply: Result<Vec<u8>, ErrorCode> },
}

/// All long answers of a listener.
#[derive(Debug, Default)]
pub struct LongAnswers {
    line: VecDeque<Long>,
    line_bytes: usize,
    gathering: Option<Gathering>,
    /// Counts gatherings: a piece of one that was given up is nobody's.
    round: u64,
}

impl LongAnswers {
    /// How many are in line.
    pub fn len(&self) -> usize {
        self.line.len()
    }

    /// An answer is too long for one: it gets in line, unless there is no room.
    pub fn enter(
        &mut self,
        (connection, slot, session): (ConnectionId, u64, Option<u64>),
        answer: &LongAnswer<'_>,
    ) -> Result<(), ErrorCode> {
        if answer.length > LONG_ANSWER_BYTES_MAX as u64 {
            return Err(ErrorCode::SystemError);
        }
        if self.line_bytes.saturating_add(answer.call.len()) > LINE_BYTES_MAX {
            return Err(ErrorCode::ThrottledOp);
        }
        self.line_bytes += answer.call.len();
        let (call, length) = (answer.call.into(), answer.length);
        self.line.push_back(Long { connection, slot, session, call, length, attempts: 0 });
        Ok(())
    }

    /// Nobody waits for a connection's answers any more.
    pub fn forget(&mut self, connection: ConnectionId) {
        if self.line.front().is_some_and(|first| first.connection == connection) {
            self.gathering = None;
        }
        self.line.retain(|long| long.connection != connection);
        self.line_bytes = self.line.iter().map(|long| long.call.len()).sum();
    }

    /// A piece of a round came.
    pub fn take(&mut self, round: u64, place: usize, index: u64, outcome: &Outcome<'_>) -> Gathered {
        let Some(gathering) = self.gathering.as_mut().filter(|_| round == self.round) else { return Gathered::NotYet };
        gathering.came += 1;
        let piece = match *outcome {
            Outcome::Ok(bytes) => Piece::decode(bytes).map_err(|_| ErrorCode::SystemError),
            Outcome::Failed { code: "overloaded", .. } => Err(ErrorCode::ThrottledOp),
            _ => Err(ErrorCode::SystemError),
        };
        match piece {
            Ok(Piece { of, bytes }) => {
                gathering.is_spoiled |= gathering.of.replace(of).is_some_and(|before| before != of);
                gathering.index = gathering.index.max(index);
                if let Some(place) = gathering.pieces.get_mut(place) {
                    *place = Some(bytes.into());
                }
            }
            Err(code) => gathering.failed = Some(code),
        }
        let is_over = gathering.is_spoiled || gathering.failed.is_some() || gathering.came == gathering.pieces.len();
        if is_over && gathering.came == gathering.asked { self.conclude() } else { Gathered::NotYet }
    }

    /// All pieces are here, or nothing comes of them.
    fn conclude(&mut self) -> Gathered {
        let (Some(gathering), Some(first)) = (self.gathering.take(), self.line.front_mut()) else {
            return Gathered::NotYet;
        };
        let length = gathering.of.unwrap_or_default().length;
        let covered = gathering.pieces.len() as u64 * PIECE_BYTES as u64;
        first.length = length;
        let is_another = gathering.is_spoiled || length > covered;
        let reply = match gathering.failed {
            Some(code) => Err(code),
            None if length > LONG_ANSWER_BYTES_MAX as u64 => Err(ErrorCode::SystemError),
            None if is_another && first.attempts < ATTEMPTS => return Gathered::NotYet,
            None if is_another => Err(ErrorCode::ThrottledOp),
            None => Ok(gathering.pieces.into_iter().flatten().flatten().collect()),
        };
        let (connection, slot) = (first.connection, first.slot);
        self.line_bytes = self.line_bytes.saturating_sub(first.call.len());
        self.line.pop_front();
        Gathered::Whole { connection, slot, index: gathering.index, reply }
    }
}

/// Asks for pieces of the first in line that are to be asked for now.
pub fn step(shared: &mut Shared, io: &mut Io<'_>) {
    let answers = &mut shared.long;
    let Some(first) = answers.line.front_mut() else { return };
    let gathering = answers.gathering.get_or_insert_with(|| {
        first.attempts += 1;
        answers.round += 1;
        let count = first.length.max(1).div_ceil(PIECE_BYTES as u64) as usize;
        let pieces = vec![None; count];
        Gathering { of: None, index: 0, pieces, asked: 0, came: 0, is_spoiled: false, failed: None }
    });
    let until = if first.attempts > PATIENT_ATTEMPTS { gathering.pieces.len() } else { gathering.came + 1 };
    let consistency = shared.settings.consistency();
    for place in gathering.asked..until.min(gathering.pieces.len()) {
        gathering.asked += 1;
        let token = shared.pending.keep(Purpose::Piece { round: answers.round, place });
        shared.frame.clear();
        call_head(own::PIECE, std::iter::empty(), &mut shared.frame);
        Writer::new(&mut shared.frame).i64((place * PIECE_BYTES) as i64).raw(&first.call);
        io.query(token, consistency, first.session, &shared.frame);
    }
}
