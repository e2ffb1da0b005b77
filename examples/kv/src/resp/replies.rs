//! Replies out of the state machine's frames.

use statehouse_sdk::adapter::Io;

use super::adapter::Shared;
use super::connection::Connection;
use super::connection::Item;
use super::connection::Kind;
use super::connection::Slot;
use super::connection::Watched;
use super::op::Fields;
use super::op::SPECIAL;
use super::reply::Reply;
use super::server;

impl Shared {
    /// The frame of a connection's first unit came.
    pub(super) fn settle(&mut self, io: &mut Io<'_>, connection: &mut Connection, frame: &[u8], out: &mut Vec<u8>) {
        match connection.slots.pop_front() {
            Some(Slot::Unit(kind)) => self.settle_one(io, connection, kind, frame, out),
            Some(Slot::Transaction(items)) => match frame.split_first() {
                Some((1, frames)) => {
                    Reply::new(out, connection.protocol).array(items.len());
                    let mut frames = Fields(frames);
                    for item in items {
                        match item {
                            Item::Ready(bytes) => out.extend_from_slice(&bytes),
                            Item::Op(kind) => {
                                let frame = frames.frame().unwrap_or_default();
                                self.settle_one(io, connection, kind, frame, out);
                            }
                        }
                    }
                }
                _ => Reply::new(out, connection.protocol).null_array(),
            },
            // `drain` leaves a unit in front.
            Some(Slot::Ready(_)) | None => {}
        }
    }

    /// Turns an operation's frame into its reply.
    fn settle_one(
        &mut self,
        io: &mut Io<'_>,
        connection: &mut Connection,
        kind: Kind,
        frame: &[u8],
        out: &mut Vec<u8>,
    ) {
        let Some(special) = frame.strip_prefix(&[SPECIAL]) else {
            out.extend_from_slice(frame);
            return;
        };
        let mut fields = Fields(special);
        let mut number = || fields.number().unwrap_or_default();
        let mut reply = Reply::new(out, connection.protocol);
        match kind {
            Kind::Plain => {}
            Kind::Publish => {
                let message = usize::try_from(number()).unwrap_or(usize::MAX);
                reply.count(self.heard.1.get(message).copied().unwrap_or_default());
            }
            Kind::Scan => {
                let next = fields.bytes().unwrap_or_default();
                let cursor = if next.is_empty() { 0 } else { self.cursors.add(next, io.random_u64()) };
                reply.array(2);
                reply.bulk(cursor.to_string().as_bytes());
                reply.out.extend_from_slice(fields.0);
            }
            Kind::Watch(keys) => {
                for key in keys {
                    connection.watched.push(Watched { key, version: number(), expires_at_ms: number() });
                }
                reply.ok();
            }
            Kind::Info(sections) => {
                let figures = server::Figures { keys: number(), expiring: number(), version: number() };
                let node = server::Node {
                    id: self.node,
                    connections: self.connections,
                    requests: self.requests,
                    since_ms: self.since_ms,
                    now_ms: io.time_ms(),
                    leader: (io.has_leader(), io.leads()),
                    channels: (self.channels.names().count(), self.channels.patterns()),
                };
                server::info(&node, &figures, &sections, &mut reply);
            }
        }
    }
}
