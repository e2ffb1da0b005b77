//! Requests: what each is for, and where it goes.

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Io;

use super::adapter::Shared;
use super::channels::By;
use super::channels::SUBSCRIPTION_BYTES_MAX;
use super::channels::SUBSCRIPTIONS_MAX;
use super::channels::Subscriptions;
use super::command::Action;
use super::command::Build;
use super::command::Command;
use super::command::NOT_INTEGER;
use super::command::Own;
use super::command::Refusal;
use super::command::SYNTAX;
use super::command::find;
use super::command::is;
use super::command::keys;
use super::command::number;
use super::command::wrong_number;
use super::connection::Connection;
use super::connection::Kind;
use super::connection::Slot;
use super::connection::Transaction;
use super::connection::Way;
use super::glob;
use super::op::Op;
use super::op::put_one;
use super::parse::Arguments;
use super::parse::integer;
use super::reply::Protocol;
use super::reply::Reply;
use super::server;

/// How many replies may be owed to a connection.
const SLOTS_MAX: usize = 1_024;
/// While so many bytes of replies wait behind one that is owed, no request is begun.
const READY_BYTES_MAX: usize = 1 << 20;
/// How many keys a connection may watch, and how many bytes they may take together.
const WATCHED_MAX: usize = 1_000;
const WATCHED_BYTES_MAX: usize = 1 << 20;
/// How many keys a `SCAN` looks at, at most.
const SCAN_COUNT_MAX: u64 = 10_000;

/// Whether a request was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    Yes,
    /// Not before those before it are answered.
    No,
}

impl Shared {
    /// Whether a connection's next request may be looked at.
    pub(super) fn may_begin(&self, connection: &Connection) -> bool {
        let takes_more = match connection.way {
            None => true,
            Some((Way::Write, token)) => self.writes.takes_more(token),
            Some((Way::Read, token)) => self.reads.takes_more(token),
        };
        let is_full = connection.slots.len() >= SLOTS_MAX || connection.ready_bytes >= READY_BYTES_MAX;
        takes_more && !connection.is_stopped && !connection.is_closing && !is_full
    }

    /// Begins a request, if those before it let it.
    pub(super) fn begin(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Begun {
        let begun = match self.try_begin(io, connection, id, arguments, out) {
            Ok(begun) => begun,
            Err(refusal) => {
                connection.reply(out).error(&refusal);
                Begun::Yes
            }
        };
        self.requests += u64::from(begun == Begun::Yes);
        connection.count_ready();
        begun
    }

    fn try_begin(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Begun, Refusal> {
        let name = arguments.get(0);
        let command = match find(name) {
            Some(command) if command.takes(arguments.len()) => command,
            found => {
                if is(name, "POST") || is(name, "HOST:") {
                    // A browser that a page made speak HTTP to us.
                    connection.is_closing = true;
                    return Ok(Begun::Yes);
                }
                if let Some(transaction) = &mut connection.transaction {
                    transaction.is_broken = true;
                }
                return Err(found.map_or_else(|| unknown(arguments), |command| wrong_number(command.name)));
            }
        };
        if connection.is_listening() && !is_allowed_while_listening(command) {
            let name = command.name.to_ascii_lowercase();
            return Err(format!(
                "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are \
                 allowed in this context"
            )
            .into());
        }
        if connection.transaction.is_some() && !is_done_at_once(command) {
            return self.queue(io, connection, id, command, arguments, out).map(|()| Begun::Yes);
        }
        match command.action {
            Action::Write(build) => self.build_and_add(io, connection, id, Access::Write, build, arguments),
            Action::Read(build) => self.build_and_add(io, connection, id, Access::Read, build, arguments),
            Action::Scan(build) => self.build_and_add(io, connection, id, Access::Scan, build, arguments),
            Action::Own(own) => self.own(io, connection, id, own, arguments, out),
        }
    }

    fn build_and_add(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        access: Access,
        build: Build,
        arguments: &Arguments<'_>,
    ) -> Result<Begun, Refusal> {
        let Some(way) = access.way(connection) else { return Ok(Begun::No) };
        self.op.clear();
        build(arguments, io.time_ms(), &mut self.op)?;
        Ok(self.add_one(connection, id, way, Kind::Plain))
    }

    /// Sends `self.op` on its way.
    fn add_one(&mut self, connection: &mut Connection, id: ConnectionId, way: Way, kind: Kind) -> Begun {
        let resp3 = connection.protocol == Protocol::Resp3;
        let lane = if way == Way::Write { &mut self.writes } else { &mut self.reads };
        let op = &self.op;
        let token = lane.add(id, &mut self.tokens, |out| put_one(out, resp3, op));
        connection.way = Some((way, token));
        connection.slots.push_back(Slot::Unit(kind));
        Begun::Yes
    }

    /// Own commands that are operations: `self.op` is it.
    pub(super) fn own_op(
        &mut self,
        io: &mut Io<'_>,
        own: Own,
        arguments: &Arguments<'_>,
    ) -> Result<Option<(Access, Kind)>, Refusal> {
        self.op.clear();
        let (access, kind, op) = match own {
            Own::Publish => (Access::Write, Kind::Publish, Op::Publish(arguments.get(1), arguments.get(2))),
            Own::RandomKey => (Access::Scan, Kind::Plain, Op::RandomKey(io.random_u64())),
            Own::Info => (Access::Scan, Kind::Info(arguments.from(1).map(<[u8]>::to_vec).collect()), Op::Status),
            Own::Scan => {
                let mut op = std::mem::take(&mut self.op);
                let scan = self.scan(arguments).map(|scan| scan.encode(&mut op));
                self.op = op;
                scan?;
                return Ok(Some((Access::Scan, Kind::Scan)));
            }
            _ => return Ok(None),
        };
        op.encode(&mut self.op);
        Ok(Some((access, kind)))
    }

    /// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
    fn scan<'a>(&'a self, arguments: &Arguments<'a>) -> Result<Op<'a>, Refusal> {
        let cursor = std::str::from_utf8(arguments.get(1)).ok().and_then(|text| text.parse().ok());
        let cursor: u64 = cursor.ok_or("ERR invalid cursor")?;
        let (mut pattern, mut count, mut is_typed_else) = (&b"*"[..], 10, false);
        if arguments.len() % 2 == 1 {
            return Err(SYNTAX.into());
        }
        for at in (2..arguments.len()).step_by(2) {
            let (option, value) = (arguments.get(at), arguments.get(at + 1));
            if is(option, "MATCH") {
                pattern = value;
            } else if is(option, "COUNT") {
                count = u64::try_from(number(value)?).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
            } else if is(option, "TYPE") {
                is_typed_else = !is(value, "string");
            } else {
                return Err(SYNTAX.into());
            }
        }
        // One that no key can be behind: there are only strings.
        let nowhere = &[0xff; 16];
        let start = match self.cursors.get(cursor) {
            _ if is_typed_else => nowhere,
            Some(start) => start,
            None => return Err("ERR invalid cursor: not one of this node's last; begin again with 0".into()),
        };
        let pattern = if is_typed_else { nowhere } else { pattern };
        Ok(Op::Scan { start, pattern, count: count.min(SCAN_COUNT_MAX) })
    }

    /// What the adapter does itself.
    fn own(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        own: Own,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Begun, Refusal> {
        if let Some((access, kind)) = self.own_op(io, own, arguments)? {
            return Ok(match access.way(connection) {
                Some(way) => self.add_one(connection, id, way, kind),
                None => Begun::No,
            });
        }
        // What others see, or what depends on an answer that is still to come.
        let is_apart = matches!(
            own,
            Own::Subscribe
                | Own::PSubscribe
                | Own::Unsubscribe
                | Own::PUnsubscribe
                | Own::Watch
                | Own::Unwatch
                | Own::Discard
                | Own::Reset
                | Own::Hello
        );
        if is_apart && !connection.slots.is_empty() {
            return Ok(Begun::No);
        }
        match own {
            Own::Multi if connection.transaction.is_some() => return Err("ERR MULTI calls can not be nested".into()),
            Own::Multi => {
                connection.transaction = Some(Box::new(Transaction { only_reads: true, ..Transaction::default() }));
                connection.reply(out).ok();
            }
            Own::Exec => return self.exec(connection, id, out),
            Own::Discard => {
                if connection.transaction.take().is_none() {
                    return Err("ERR DISCARD without MULTI".into());
                }
                connection.watched = Vec::new();
                connection.reply(out).ok();
            }
            Own::Watch => {
                if connection.transaction.is_some() {
                    return Err("ERR WATCH inside MULTI is not allowed".into());
                }
                let keys = keys(arguments)?;
                let bytes = connection.watched.iter().map(|watched| watched.key.len()).sum::<usize>()
                    + keys.iter().map(|key| key.len()).sum::<usize>();
                if connection.watched.len().saturating_add(keys.len()) > WATCHED_MAX || bytes > WATCHED_BYTES_MAX {
                    return Err(format!(
                        "ERR too many keys are watched: at most {WATCHED_MAX}, of {WATCHED_BYTES_MAX} bytes"
                    )
                    .into());
                }
                let watched = keys.iter().map(|key| key.to_vec()).collect();
                self.op.clear();
                Op::Stamps(keys).encode(&mut self.op);
                return Ok(self.add_one(connection, id, Way::Read, Kind::Watch(watched)));
            }
            Own::Unwatch => {
                connection.watched = Vec::new();
                connection.reply(out).ok();
            }
            Own::Subscribe => self.subscribe(connection, id, By::Name, arguments, out)?,
            Own::PSubscribe => self.subscribe(connection, id, By::Pattern, arguments, out)?,
            Own::Unsubscribe => self.unsubscribe(connection, id, By::Name, arguments, out),
            Own::PUnsubscribe => self.unsubscribe(connection, id, By::Pattern, arguments, out),
            Own::Reset => {
                if let Some(mut own) = connection.subscriptions.take() {
                    self.channels.remove_all(id, &mut own);
                }
                connection.reset();
                connection.reply(out).simple("RESET");
            }
            Own::Quit => {
                connection.reply(out).ok();
                connection.is_closing = true;
            }
            Own::Hello => server::hello(connection, id, arguments, out)?,
            own => self.tell(io, connection, id, own, arguments, out)?,
        }
        Ok(Begun::Yes)
    }

    /// What is answered at once and changes nothing but the connection.
    pub(super) fn tell(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        id: ConnectionId,
        own: Own,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let is_listening = connection.is_listening();
        if own == Own::Client {
            return server::client(connection, id, arguments, out);
        }
        let mut reply = connection.reply(out);
        match own {
            Own::Auth => server::auth(arguments, &mut reply)?,
            Own::CommandList => server::command(arguments, &mut reply)?,
            Own::Config => server::config(arguments, &mut reply)?,
            Own::Echo => reply.bulk(arguments.get(1)),
            Own::Ping if arguments.len() > 2 => return Err(wrong_number("ping")),
            Own::Ping if is_listening => {
                reply.array(2);
                reply.bulk(b"pong");
                reply.bulk(arguments.get(1));
            }
            Own::Ping if arguments.len() == 2 => reply.bulk(arguments.get(1)),
            Own::Ping => reply.simple("PONG"),
            Own::PubSub => self.pubsub(arguments, &mut reply)?,
            Own::Select => match number(arguments.get(1))? {
                0 => reply.ok(),
                _ => return Err("ERR DB index is out of range".into()),
            },
            // In a transaction only, whose `EXEC` forgets what is watched anyway.
            Own::Unwatch => reply.ok(),
            Own::Time => {
                let now_ms = io.time_ms();
                reply.array(2);
                reply.bulk((now_ms / 1_000).to_string().as_bytes());
                reply.bulk((now_ms % 1_000 * 1_000).to_string().as_bytes());
            }
            // What was answered is at a majority already; there are no replicas beside it to wait for.
            Own::Wait => {
                integer(arguments.get(1)).ok_or(NOT_INTEGER)?;
                match integer(arguments.get(2)) {
                    None => return Err("ERR timeout is not an integer or out of range".into()),
                    Some(..0) => return Err("ERR timeout is negative".into()),
                    Some(_) => reply.integer(0),
                }
            }
            _ => return Err(SYNTAX.into()),
        }
        Ok(())
    }

    /// `PUBSUB CHANNELS [pattern]`, `NUMSUB [channel …]`, `NUMPAT`: of this node.
    fn pubsub(&self, arguments: &Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Refusal> {
        let subcommand = arguments.get(1);
        if is(subcommand, "CHANNELS") && arguments.len() <= 3 {
            let pattern = if arguments.len() == 3 { arguments.get(2) } else { b"*" };
            let found: Vec<_> = self.channels.names().filter(|name| glob::is_match(pattern, name)).collect();
            reply.array(found.len());
            found.iter().for_each(|name| reply.bulk(name));
        } else if is(subcommand, "NUMSUB") {
            reply.array((arguments.len() - 2) * 2);
            for channel in arguments.from(2) {
                reply.bulk(channel);
                reply.count(self.channels.listening(channel));
            }
        } else if is(subcommand, "NUMPAT") && arguments.len() == 2 {
            reply.count(self.channels.patterns());
        } else {
            let subcommand = String::from_utf8_lossy(subcommand);
            return Err(format!("ERR unknown subcommand '{subcommand}'. Try PUBSUB HELP.").into());
        }
        Ok(())
    }

    fn subscribe(
        &mut self,
        connection: &mut Connection,
        id: ConnectionId,
        by: By,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let own = connection.subscriptions.get_or_insert_default();
        let bytes = arguments.from(1).map(<[u8]>::len).sum();
        if !self.channels.has_room(own, arguments.len(), bytes) {
            return Err(format!(
                "ERR too many subscriptions: at most {SUBSCRIPTIONS_MAX} a connection, of {SUBSCRIPTION_BYTES_MAX} bytes"
            )
            .into());
        }
        for channel in arguments.from(1) {
            self.channels.add(id, own, by, channel);
            let mut reply = Reply::new(out, connection.protocol);
            reply.push(3);
            reply.bulk(if by == By::Name { b"subscribe" } else { b"psubscribe" });
            reply.bulk(channel);
            reply.count(own.len());
        }
        Ok(())
    }

    fn unsubscribe(
        &mut self,
        connection: &mut Connection,
        id: ConnectionId,
        by: By,
        arguments: &Arguments<'_>,
        out: &mut Vec<u8>,
    ) {
        let own: &mut Subscriptions = connection.subscriptions.get_or_insert_default();
        let channels: Vec<Vec<u8>> = match arguments.len() {
            1 => own.all(by).iter().cloned().collect(),
            _ => arguments.from(1).map(<[u8]>::to_vec).collect(),
        };
        let word: &[u8] = if by == By::Name { b"unsubscribe" } else { b"punsubscribe" };
        let mut reply = Reply::new(out, connection.protocol);
        if channels.is_empty() {
            reply.push(3);
            reply.bulk(word);
            reply.null();
            reply.count(own.len());
        }
        for channel in channels {
            self.channels.remove(id, own, by, &channel);
            reply.push(3);
            reply.bulk(word);
            reply.bulk(&channel);
            reply.count(own.len());
        }
    }
}

/// What a request does to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    Read,
    Scan,
}

impl Access {
    /// The way to go beside what the connection has under way; `None` if it has to wait. A read behind
    /// a write goes with it, unless it may be large.
    pub(super) fn way(self, connection: &Connection) -> Option<Way> {
        match (self, connection.way.map(|(way, _)| way)) {
            (Self::Write, None | Some(Way::Write)) | (Self::Read, Some(Way::Write)) => Some(Way::Write),
            (Self::Read | Self::Scan, None | Some(Way::Read)) => Some(Way::Read),
            (Self::Write, Some(Way::Read)) | (Self::Scan, Some(Way::Write)) => None,
        }
    }
}

fn is_done_at_once(command: &Command) -> bool {
    let Action::Own(own) = command.action else { return false };
    matches!(own, Own::Exec | Own::Discard | Own::Multi | Own::Watch | Own::Quit | Own::Reset)
}

fn is_allowed_while_listening(command: &Command) -> bool {
    use Own::{PSubscribe, PUnsubscribe, Ping, Quit, Reset, Subscribe, Unsubscribe};
    let Action::Own(own) = command.action else { return false };
    matches!(own, PSubscribe | PUnsubscribe | Ping | Quit | Reset | Subscribe | Unsubscribe)
}

/// What Redis says of a name it does not know: with the beginning of the arguments.
fn unknown(arguments: &Arguments<'_>) -> Refusal {
    let cut = |bytes: &[u8], length: usize| {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text.get(..length).unwrap_or(text)).into_owned()
    };
    let mut shown = String::new();
    for argument in arguments.from(1) {
        let Some(room) = 128_usize.checked_sub(shown.len()).filter(|room| *room > 0) else { break };
        shown.push_str(&format!("'{}' ", cut(argument, room)));
    }
    format!("ERR unknown command '{}', with args beginning with: {shown}", cut(arguments.get(0), 128)).into()
}
