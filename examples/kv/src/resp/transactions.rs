//! `MULTI` and `EXEC`: requests gather at the connection and become one unit, which the state machine does as a
//! whole or, if a watched key changed, not at all.

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Io;

use super::adapter::Shared;
use super::command::Action;
use super::command::Command;
use super::command::KEYS_MAX;
use super::command::Own;
use super::command::Refusal;
use super::connection::Connection;
use super::connection::Item;
use super::connection::Kind;
use super::connection::Slot;
use super::connection::Transaction;
use super::connection::Watched;
use super::connection::Way;
use super::op::Stamp;
use super::op::put_transaction;
use super::parse::Arguments;
use super::reply::Protocol;
use super::reply::Reply;
use super::requests::Access;
use super::requests::Begun;

/// What a transaction's operations and known replies may take.
const TRANSACTION_BYTES_MAX: usize = 900 << 10;

impl Shared {
    /// Puts a request into the connection's transaction.
    pub(super) fn queue(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        command: &Command,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let Some(mut transaction) = connection.transaction.take() else { return Ok(()) };
        let queued = self.try_queue(io, connection, id, command, arguments, &mut transaction);
        transaction.is_broken |= queued.is_err();
        connection.transaction = Some(transaction);
        queued?;
        connection.reply(out).simple("QUEUED");
        Ok(())
    }

    /// As in Redis, an option that is wrong is told by `EXEC`, as this request's reply.
    fn try_queue(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        command: &Command,
        arguments: &Arguments<'_>,
        transaction: &mut Transaction,
    ) -> Result<(), Refusal> {
        self.op.clear();
        let built = match command.action {
            Action::Write(build) => build(arguments, io.time_ms(), &mut self.op).map(|()| (Access::Write, Kind::Plain)),
            Action::Read(build) | Action::Scan(build) => {
                build(arguments, io.time_ms(), &mut self.op).map(|()| (Access::Read, Kind::Plain))
            }
            Action::Own(own) => match self.own_op(io, own, arguments) {
                Ok(Some(op)) => Ok(op),
                Ok(None) if is_refused_in_transactions(own) => {
                    return Err("ERR Command not allowed inside a transaction".into());
                }
                Ok(None) => {
                    // Its reply goes beside those that are owed, into the transaction.
                    let mut ready = Vec::new();
                    let slots = std::mem::take(&mut connection.slots);
                    let told = self.tell(io, connection, id, own, arguments, &mut ready);
                    connection.slots = slots;
                    if let Err(refusal) = told {
                        Reply::new(&mut ready, connection.protocol).error(&refusal);
                    }
                    transaction.ready_bytes += ready.len();
                    transaction.items.push(Item::Ready(ready));
                    return check_size(transaction);
                }
                Err(refusal) => Err(refusal),
            },
        };
        match built {
            Ok((access, kind)) => {
                transaction.ops.extend_from_slice(&self.op);
                transaction.count += 1;
                transaction.only_reads &= access != Access::Write;
                transaction.keys += arguments.len();
                transaction.items.push(Item::Op(kind));
            }
            Err(refusal) => {
                let mut ready = Vec::new();
                Reply::new(&mut ready, connection.protocol).error(&refusal);
                transaction.ready_bytes += ready.len();
                transaction.items.push(Item::Ready(ready));
            }
        }
        check_size(transaction)
    }

    /// `EXEC`
    pub(super) fn exec(
        &mut self,
        connection: &mut Connection,
        id: ConnectionId,
        out: &mut Vec<u8>,
    ) -> Result<Begun, Refusal> {
        let transaction = connection.transaction.as_ref().ok_or("ERR EXEC without MULTI")?;
        let is_known = transaction.count == 0 && connection.watched.is_empty();
        let is_only_asked = transaction.only_reads && connection.watched.is_empty();
        let access = if is_only_asked { Access::Scan } else { Access::Write };
        let way = if transaction.is_broken || is_known { None } else { Some(access.way(connection)) };
        if way == Some(None) {
            return Ok(Begun::No);
        }
        let Some(transaction) = connection.transaction.take() else { return Ok(Begun::Yes) };
        let watched = std::mem::take(&mut connection.watched);
        let Some(way) = way.flatten() else {
            if transaction.is_broken {
                return Err("EXECABORT Transaction discarded because of previous errors.".into());
            }
            let mut reply = connection.reply(out);
            reply.array(transaction.items.len());
            for item in &transaction.items {
                if let Item::Ready(bytes) = item {
                    reply.out.extend_from_slice(bytes);
                }
            }
            return Ok(Begun::Yes);
        };
        let resp3 = connection.protocol == Protocol::Resp3;
        let stamps: Vec<Stamp<'_>> = watched.iter().map(Watched::stamp).collect();
        let lane = if way == Way::Write { &mut self.writes } else { &mut self.reads };
        let token = lane.add(id, &mut self.tokens, |out| {
            put_transaction(out, resp3, &stamps, transaction.count, &transaction.ops);
        });
        connection.way = Some((way, token));
        connection.slots.push_back(Slot::Transaction(transaction.items));
        Ok(Begun::Yes)
    }
}

fn check_size(transaction: &Transaction) -> Result<(), Refusal> {
    let bytes = transaction.ops.len().saturating_add(transaction.ready_bytes);
    if bytes > TRANSACTION_BYTES_MAX || transaction.keys.max(transaction.items.len()) > KEYS_MAX {
        return Err(format!("ERR the transaction is too large: {TRANSACTION_BYTES_MAX} bytes, {KEYS_MAX} keys").into());
    }
    Ok(())
}

fn is_refused_in_transactions(own: Own) -> bool {
    use Own::{Auth, Hello, PSubscribe, PUnsubscribe, Subscribe, Unsubscribe};
    matches!(own, Auth | Hello | PSubscribe | PUnsubscribe | Subscribe | Unsubscribe)
}
