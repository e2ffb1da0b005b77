//! What requests do to the watch tables, and what events make of them.

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Io;

use super::Shared;
use super::compression::send;
use super::handshake::Format;
use super::reconfig::Reconfiguration;
use super::requests::head;
use super::settings::Settings;
use super::watches::CHILD;
use super::watches::DATA;
use super::watches::Kinds;
use super::watches::PERSISTENT;
use super::watches::RECURSIVE;
use super::watches::Watches;
use crate::call::read_missed;
use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::wire;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::MultiHeader;
use crate::wire::PathWatch;
use crate::wire::SetWatches;
use crate::wire::Stat;
use crate::wire::op;

/// The xid of a notification.
const NOTIFICATION_XID: i64 = -1;
/// The zxid of a notification that no single entry stands behind.
pub const NO_ZXID: i64 = -1;
/// The state in a notification: `SyncConnected`, the only one that servers send.
const SYNC_CONNECTED: i32 = 3;

/// What a request leaves behind when its answer comes.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    Nothing,
    /// Watches of these kinds, if the node is there; or of those, if it is not.
    Path {
        path: Box<str>,
        found: Kinds,
        missing: Kinds,
    },
    /// The watches of a setWatches, but for those that fire.
    Set {
        operation: i32,
        body: Box<[u8]>,
    },
    /// The watches of a multiRead's entries (ClickHouse).
    Many(Box<[u8]>),
    /// No watch: what is written to the log of who changed what.
    Audited(Vec<String>),
    /// No watch: other members, which take several answers.
    Members(Reconfiguration),
    /// No watch: the body of the answer, whatever the host says it is.
    Body(Box<[u8]>),
}

impl Wanted {
    /// By a read with this body.
    pub fn by(operation: i32, body: &[u8], settings: &Settings) -> Self {
        let mut reader = Reader::new(body);
        let path = |found, missing| match PathWatch::read(&mut Reader::new(body)) {
            Ok(PathWatch { path, watch: true }) => Self::Path { path: path.into(), found, missing },
            _ => Self::Nothing,
        };
        match operation {
            op::EXISTS => path(DATA, DATA),
            op::GET_DATA => path(DATA, 0),
            op::GET_CHILDREN | op::GET_CHILDREN2 | op::FILTERED_LIST | op::FILTERED_LIST_WITH_STATS_AND_DATA => {
                path(CHILD, 0)
            }
            op::ADD_WATCH => match (wire::path(&mut reader), reader.i32()) {
                (Ok(path), Ok(0)) => Self::Path { path: path.into(), found: PERSISTENT, missing: 0 },
                (Ok(path), Ok(1)) => Self::Path { path: path.into(), found: RECURSIVE, missing: 0 },
                _ => Self::Nothing,
            },
            op::SET_WATCHES | op::SET_WATCHES2 => Self::Set { operation, body: body.into() },
            op::MULTI_READ if settings.is_clickhouse() => Self::Many(body.into()),
            // The answer names the path that was asked for; what else the client sent is not repeated.
            op::SYNC => match wire::path(&mut reader) {
                Ok(_) => Self::Body(body.get(..body.len() - reader.rest().len()).unwrap_or_default().into()),
                Err(Malformed) => Self::Nothing,
            },
            op::RECONFIG => Self::Members(Reconfiguration::new(body)),
            _ => Self::Nothing,
        }
    }
}

/// The answer to a request came: registers what it wanted to watch, sends what fires at once. Gives
/// another answer, if the client is to get another.
pub fn watch(
    shared: &mut Shared,
    io: &mut Io<'_>,
    (connection, format): (ConnectionId, Format),
    wanted: Wanted,
    error: i32,
    body: &[u8],
) -> Option<(i32, Vec<u8>)> {
    match wanted {
        Wanted::Nothing | Wanted::Audited(_) | Wanted::Members(_) => {}
        Wanted::Path { path, found, missing } => match error {
            0 => shared.watches.add(connection, &path, found),
            _ if error == ErrorCode::NoNode.number() => shared.watches.add(connection, &path, missing),
            _ => {}
        },
        Wanted::Set { operation, body: request } if error == 0 => {
            let missed = read_missed(body).unwrap_or_default();
            if let Ok(request) = SetWatches::read(operation, &mut Reader::new(&request)) {
                set_watches(&mut shared.watches, connection, &request, &missed);
            }
            for (event, path) in missed {
                shared.frame.clear();
                notification(&mut shared.frame, format, event, path, NO_ZXID);
                // What a request is answered with is in proportion to it: this always fits.
                shared.outlet.takes(shared.frame.len());
                send(io, connection, format, &shared.frame);
                shared.stats.sent += 1;
                shared.stats.watch_bytes += shared.frame.len() as u64;
            }
            return Some((0, Vec::new()));
        }
        Wanted::Set { .. } => {}
        Wanted::Many(request) => {
            // As far as both can be read: an answer of ours can.
            let _ = watch_many(&mut shared.watches, connection, &request, body);
        }
        Wanted::Body(body) if error == 0 => return Some((0, body.into())),
        Wanted::Body(_) => return Some((error, Vec::new())),
    }
    None
}

/// Of each list's paths those stay watched that have not fired. `missed` is in the order of the lists; which list
/// an event belongs to follows from its type: a path that is gone is missed by a data watch before it is
/// by a child watch, and the list of the first comes first.
fn set_watches(
    watches: &mut Watches,
    connection: ConnectionId,
    request: &SetWatches<'_>,
    missed: &[(EventType, &str)],
) {
    let mut missed = missed.iter().peekable();
    let mut has_fired = |path: &str, events: [EventType; 2]| {
        missed.next_if(|(event, fired)| *fired == path && events.contains(event)).is_some()
    };
    for path in &request.data {
        if !has_fired(path, [EventType::NodeDataChanged, EventType::NodeDeleted]) {
            watches.add(connection, path, DATA);
        }
    }
    for path in &request.exist {
        if !has_fired(path, [EventType::NodeCreated; 2]) {
            watches.add(connection, path, DATA);
        }
    }
    for path in &request.child {
        if !has_fired(path, [EventType::NodeChildrenChanged, EventType::NodeDeleted]) {
            watches.add(connection, path, CHILD);
        }
    }
    for path in &request.persistent {
        watches.add(connection, path, PERSISTENT);
    }
    for path in &request.persistent_recursive {
        watches.add(connection, path, RECURSIVE);
    }
}

/// A multiRead with watches (ClickHouse's): walks request and answer side by side.
fn watch_many(watches: &mut Watches, connection: ConnectionId, request: &[u8], answer: &[u8]) -> Result<(), Malformed> {
    let (mut request, mut answer) = (Reader::new(request), Reader::new(answer));
    loop {
        let asked = MultiHeader::read(&mut request)?;
        let answered = MultiHeader::read(&mut answer)?;
        if asked.done || answered.done {
            return Ok(());
        }
        let path = wire::path(&mut request)?;
        let mut found = 0;
        let mut missing = 0;
        if asked.op == op::LIST_RECURSIVE {
            request.i32()?;
        } else if request.bool()? {
            match asked.op {
                op::EXISTS => (found, missing) = (DATA, DATA),
                op::GET_DATA => found = DATA,
                _ => found = CHILD,
            }
        }
        let (has_stat, has_data) = match asked.op {
            op::FILTERED_LIST => (request.u8().map(|_| false)?, false),
            op::FILTERED_LIST_WITH_STATS_AND_DATA => {
                request.u8()?;
                (request.bool()?, request.bool()?)
            }
            _ => (false, false),
        };
        if answered.err != 0 {
            if answered.err == ErrorCode::NoNode.number() {
                watches.add(connection, path, missing);
            }
            continue;
        }
        watches.add(connection, path, found);
        match asked.op {
            op::EXISTS => drop(Stat::read(&mut answer)?),
            op::GET_DATA => {
                answer.buffer()?;
                Stat::read(&mut answer)?;
            }
            op::GET_CHILDREN | op::LIST_RECURSIVE => drop(answer.texts()?),
            _ => {
                answer.texts()?;
                Stat::read(&mut answer)?;
                if asked.op == op::FILTERED_LIST_WITH_STATS_AND_DATA {
                    for _ in 0..if has_stat { answer.count()?.unwrap_or(0) } else { 0 } {
                        Stat::read(&mut answer)?;
                    }
                    for _ in 0..if has_data { answer.count()?.unwrap_or(0) } else { 0 } {
                        answer.buffer()?;
                    }
                }
            }
        }
    }
}

/// checkWatches and removeWatches: `{path, type}`.
pub fn look_up(watches: &mut Watches, connection: ConnectionId, operation: i32, body: &[u8]) -> Result<(), ErrorCode> {
    let mut reader = Reader::new(body);
    let (path, kind) = (wire::path(&mut reader)?, reader.i32()?);
    let kinds = match kind {
        1 => CHILD,
        2 => DATA,
        3 => DATA | CHILD | PERSISTENT | RECURSIVE,
        4 => PERSISTENT,
        5 => RECURSIVE,
        _ => return Err(ErrorCode::MarshallingError),
    };
    let is_there = if operation == op::REMOVE_WATCHES {
        watches.remove(connection, path, kinds)
    } else {
        watches.kinds(connection, path) & kinds != 0
    };
    if is_there { Ok(()) } else { Err(ErrorCode::NoWatcher) }
}

/// Appends the frame of a notification.
pub fn notification(out: &mut Vec<u8>, format: Format, event: EventType, path: &str, zxid: i64) {
    let mut writer = Writer::new(out);
    head(&mut writer, format, NOTIFICATION_XID, zxid, 0, 12 + path.len());
    writer.i32(event as i32).i32(SYNC_CONNECTED).text(path);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    /// What ZooKeeper 3.8 sent for `setData /a` to a watcher.
    #[test]
    fn a_notification_is_zookeepers_to_the_byte() {
        let mut bytes = Vec::new();
        notification(&mut bytes, Format::default(), EventType::NodeDataChanged, "/a", NO_ZXID);
        let expected =
            b"\0\0\0\x1e\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\x03\0\0\0\x03\0\0\0\x02/a";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_has_fired_is_watched_no_more_and_the_rest_is() {
        let mut watches = Watches::new(1);
        let request = SetWatches {
            data: vec!["/gone", "/same", "/new"],
            exist: vec!["/new", "/none"],
            child: vec!["/gone", "/same"],
            persistent: vec!["/p"],
            persistent_recursive: vec!["/r"],
            ..SetWatches::default()
        };
        let missed = [
            (EventType::NodeDeleted, "/gone"),
            (EventType::NodeDataChanged, "/new"),
            (EventType::NodeCreated, "/new"),
            (EventType::NodeDeleted, "/gone"),
        ];
        set_watches(&mut watches, 1, &request, &missed);
        let left = ["/gone", "/same", "/new", "/none", "/p", "/r"].map(|path| watches.kinds(1, path));
        assert_eq!(left, [0, DATA | CHILD, 0, DATA, PERSISTENT, RECURSIVE]);
    }

    #[test]
    fn types_of_watches_are_told_apart() {
        let mut watches = Watches::new(1);
        watches.add(1, "/a", DATA | PERSISTENT);
        let mut look_up = |operation, kind: i32| {
            let mut body = Vec::new();
            Writer::new(&mut body).text("/a").i32(kind);
            super::look_up(&mut watches, 1, operation, &body)
        };
        assert_eq!(look_up(op::CHECK_WATCHES, 1), Err(ErrorCode::NoWatcher));
        assert_eq!([2, 3, 4].map(|kind| look_up(op::CHECK_WATCHES, kind)), [Ok(()); 3]);
        assert_eq!([0, 6, -1].map(|kind| look_up(op::REMOVE_WATCHES, kind)), [Err(ErrorCode::MarshallingError); 3]);
        assert_eq!(look_up(op::REMOVE_WATCHES, 2), Ok(()));
        assert_eq!(look_up(op::REMOVE_WATCHES, 2), Err(ErrorCode::NoWatcher));
        assert_eq!(look_up(op::REMOVE_WATCHES, 3), Ok(()));
        assert_eq!(look_up(op::CHECK_WATCHES, 3), Err(ErrorCode::NoWatcher));
    }
}
