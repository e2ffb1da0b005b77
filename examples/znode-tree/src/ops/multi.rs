//! multi: all of its writes or none; and multiRead, whose entries stand alone.
//!
//! The results are framed as the requests are: a header before each, and one that says `done` after
//! the last. Of a multi that fails every result is an error: 0 for those before the one that failed,
//! that one's, and `RuntimeInconsistency` for those after it; the reply itself has no error.
//!
//! An entry of a multiRead that fails is such an error too. ClickHouse Keeper's keeps its operation, and has its code in the header
//! alone: ClickHouse takes an error for an answer of another kind than it asked for.

use crate::ZnodeTree;
use crate::call::ANSWER_BYTES_MAX;
use crate::call::ChangeWriter;
use crate::call::Identity;
use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::ops::Txn;
use crate::ops::Write;
use crate::ops::check_length;
use crate::ops::create::has_stat;
use crate::wire::CreateMode;
use crate::wire::ErrorCode;
use crate::wire::MultiHeader;
use crate::wire::op;

impl ZnodeTree {
    /// Does a multi and appends its results.
    pub(crate) fn multi(&mut self, txn: &mut Txn<'_>, body: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorCode> {
        let writes = self.read_multi(body)?;
        self.check_room(writes.iter().map(|(_, write)| write.growth_bytes()).sum())?;
        let start = out.len();
        self.tree.begin();
        for (position, (operation, write)) in writes.iter().enumerate() {
            let operation = result_operation(*operation);
            let writer = &mut Writer::new(out);
            MultiHeader { op: operation, done: false, err: 0 }.write(writer);
            if let Err(code) = self.write(txn, write, writer) {
                self.tree.roll_back();
                txn.changes = ChangeWriter::default();
                out.truncate(start);
                // What ZooKeeper trips over is no result of one entry.
                if code == ErrorCode::MarshallingError {
                    return Err(code);
                }
                write_failure(position, code, writes.len(), &mut Writer::new(out));
                return Ok(());
            }
        }
        MultiHeader::END.write(&mut Writer::new(out));
        if out.len() > ANSWER_BYTES_MAX {
            // Of a frame far longer than ZooKeeper's default. Nobody could be told what it did.
            self.tree.roll_back();
            txn.changes = ChangeWriter::default();
            return Err(ErrorCode::SystemError);
        }
        self.tree.commit();
        Ok(())
    }

    /// The writes of a multi, each with its operation. One that is malformed, or of a kind that a
    /// multi cannot have, spoils it before anything is done.
    fn read_multi<'b>(&self, body: &'b [u8]) -> Result<Vec<(i32, Write<'b>)>, ErrorCode> {
        let mut reader = Reader::new(body);
        let mut writes = Vec::new();
        loop {
            let header = MultiHeader::read(&mut reader)?;
            if header.done {
                return Ok(writes);
            }
            if !self.is_in_multi(header.op) {
                return Err(ErrorCode::MarshallingError);
            }
            let write = Write::read(header.op, &mut reader)?.ok_or(Malformed)?;
            writes.push(match write {
                Write::Create(operation, request) => {
                    // Flags that are none fail that one write, as in ZooKeeper 3.8.
                    let mode = CreateMode::from_flags(request.flags).unwrap_or(CreateMode::Persistent);
                    // In a multi the flags say more than the operation.
                    let operation = match mode {
                        CreateMode::Container => op::CREATE_CONTAINER,
                        _ if mode.is_ttl() && operation != op::CREATE_TTL => return Err(ErrorCode::MarshallingError),
                        _ if !mode.is_ttl() && operation == op::CREATE_TTL => op::CREATE,
                        _ => operation,
                    };
                    let ttl = if operation == op::CREATE_TTL { request.ttl } else { -1 };
                    (operation, Write::Create(operation, crate::wire::CreateRequest { ttl, ..request }))
                }
                other => (header.op, other),
            });
        }
    }

    fn is_in_multi(&self, operation: i32) -> bool {
        match operation {
            op::CREATE
            | op::CREATE2
            | op::CREATE_CONTAINER
            | op::CREATE_TTL
            | op::DELETE
            | op::SET_DATA
            | op::CHECK => true,
            op::CHECK_NOT_EXISTS
            | op::CREATE_IF_NOT_EXISTS
            | op::REMOVE_RECURSIVE
            | op::CHECK_STAT
            | op::TRY_REMOVE => self.is_clickhouse(),
            _ => false,
        }
    }

    /// Answers a multiRead and appends its results.
    pub(crate) fn multi_read(
        &self,
        identities: &[Identity<'_>],
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorCode> {
        let mut reader = Reader::new(body);
        loop {
            let header = MultiHeader::read(&mut reader)?;
            if header.done {
                MultiHeader::END.write(&mut Writer::new(out));
                return Ok(());
            }
            let is_read = match header.op {
                op::GET_DATA | op::GET_CHILDREN => true,
                op::EXISTS
                | op::GET_CHILDREN2
                | op::FILTERED_LIST
                | op::FILTERED_LIST_WITH_STATS_AND_DATA
                | op::LIST_RECURSIVE => self.is_clickhouse(),
                _ => false,
            };
            if !is_read {
                return Err(ErrorCode::MarshallingError);
            }
            let start = out.len();
            let writer = &mut Writer::new(out);
            // ClickHouse Keeper answers a filtered list as a list.
            let is_filtered = header.op == op::FILTERED_LIST;
            let operation = if is_filtered { op::GET_CHILDREN2 } else { header.op };
            MultiHeader { op: operation, done: false, err: 0 }.write(writer);
            match self.read_one(header.op, identities, &mut reader, writer) {
                Ok(()) => {}
                Err(ErrorCode::MarshallingError) => return Err(ErrorCode::MarshallingError),
                Err(code) => {
                    out.truncate(start);
                    let writer = &mut Writer::new(out);
                    if self.is_clickhouse() {
                        MultiHeader { op: operation, done: false, err: code.number() }.write(writer);
                    } else {
                        write_error(code, writer);
                    }
                }
            }
            check_length(&Writer::new(out))?;
        }
    }
}

/// The operation that a result is headed with: a reply with a stat is create2's.
fn result_operation(operation: i32) -> i32 {
    match operation {
        operation if has_stat(operation) => op::CREATE2,
        operation => operation,
    }
}

/// The results of a multi of `count` writes whose write at `position` failed.
fn write_failure(position: usize, code: ErrorCode, count: usize, out: &mut Writer<'_>) {
    for other in 0..count {
        let code = match other.cmp(&position) {
            std::cmp::Ordering::Less => ErrorCode::Ok,
            std::cmp::Ordering::Equal => code,
            std::cmp::Ordering::Greater => ErrorCode::RuntimeInconsistency,
        };
        write_error(code, out);
    }
    MultiHeader::END.write(out);
}

/// A result that is an error has its code in the header and behind it.
fn write_error(code: ErrorCode, out: &mut Writer<'_>) {
    MultiHeader { op: op::ERROR, done: false, err: code.number() }.write(out);
    out.i32(code.number());
}
