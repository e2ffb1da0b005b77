//! ZooKeeper's numbers and records, as `zookeeper.jute` and `ZooDefs.java` (3.9) and ClickHouse's
//! `ZooKeeperConstants.h` give them.

use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;

/// Operation codes.
pub mod op {
    #![allow(missing_docs)]
    pub const CREATE: i32 = 1;
    pub const DELETE: i32 = 2;
    pub const EXISTS: i32 = 3;
    pub const GET_DATA: i32 = 4;
    pub const SET_DATA: i32 = 5;
    pub const GET_ACL: i32 = 6;
    pub const SET_ACL: i32 = 7;
    pub const GET_CHILDREN: i32 = 8;
    pub const SYNC: i32 = 9;
    pub const PING: i32 = 11;
    pub const GET_CHILDREN2: i32 = 12;
    pub const CHECK: i32 = 13;
    pub const MULTI: i32 = 14;
    pub const CREATE2: i32 = 15;
    pub const RECONFIG: i32 = 16;
    pub const CHECK_WATCHES: i32 = 17;
    pub const REMOVE_WATCHES: i32 = 18;
    pub const CREATE_CONTAINER: i32 = 19;
    pub const DELETE_CONTAINER: i32 = 20;
    pub const CREATE_TTL: i32 = 21;
    pub const MULTI_READ: i32 = 22;
    pub const AUTH: i32 = 100;
    pub const SET_WATCHES: i32 = 101;
    pub const SASL: i32 = 102;
    pub const GET_EPHEMERALS: i32 = 103;
    pub const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    pub const SET_WATCHES2: i32 = 105;
    pub const ADD_WATCH: i32 = 106;
    pub const WHO_AM_I: i32 = 107;
    pub const CREATE_SESSION: i32 = -10;
    pub const CLOSE_SESSION: i32 = -11;
    /// In a multi's reply: this entry is an error.
    pub const ERROR: i32 = -1;

    // ClickHouse's own.
    pub const FILTERED_LIST: i32 = 500;
    pub const CHECK_NOT_EXISTS: i32 = 501;
    pub const CREATE_IF_NOT_EXISTS: i32 = 502;
    pub const REMOVE_RECURSIVE: i32 = 503;
    pub const CHECK_STAT: i32 = 504;
    pub const TRY_REMOVE: i32 = 505;
    pub const FILTERED_LIST_WITH_STATS_AND_DATA: i32 = 506;
    pub const LIST_RECURSIVE: i32 = 507;
}

/// What a request ended with: ZooKeeper's `KeeperException.Code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum ErrorCode {
    Ok = 0,
    SystemError = -1,
    RuntimeInconsistency = -2,
    DataInconsistency = -3,
    ConnectionLoss = -4,
    MarshallingError = -5,
    Unimplemented = -6,
    OperationTimeout = -7,
    BadArguments = -8,
    /// ClickHouse's.
    OutOfMemory = -10,
    NewConfigNoQuorum = -13,
    ReconfigInProgress = -14,
    NoNode = -101,
    NoAuth = -102,
    BadVersion = -103,
    NoChildrenForEphemerals = -108,
    NodeExists = -110,
    NotEmpty = -111,
    SessionExpired = -112,
    InvalidAcl = -114,
    AuthFailed = -115,
    SessionMoved = -118,
    NotReadOnly = -119,
    EphemeralOnLocalSession = -120,
    NoWatcher = -121,
    ReconfigDisabled = -123,
    QuotaExceeded = -125,
    ThrottledOp = -127,
}

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> i32 {
        self as i32
    }
}

impl From<Malformed> for ErrorCode {
    fn from(Malformed: Malformed) -> Self {
        Self::MarshallingError
    }
}

/// What a watch event tells: ZooKeeper's `Watcher.Event.EventType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum EventType {
    NodeCreated = 1,
    NodeDeleted = 2,
    NodeDataChanged = 3,
    NodeChildrenChanged = 4,
}

impl EventType {
    /// The type of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::NodeCreated,
            2 => Self::NodeDeleted,
            3 => Self::NodeDataChanged,
            4 => Self::NodeChildrenChanged,
            _ => return None,
        })
    }
}

/// Permission bits of an [`AclEntry`].
pub mod perms {
    #![allow(missing_docs)]
    pub const READ: i32 = 1;
    pub const WRITE: i32 = 2;
    pub const CREATE: i32 = 4;
    pub const DELETE: i32 = 8;
    pub const ADMIN: i32 = 16;
    pub const ALL: i32 = 31;
}

/// How a node is created: ZooKeeper's `CreateMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CreateMode {
    Persistent,
    Ephemeral,
    PersistentSequential,
    EphemeralSequential,
    Container,
    PersistentWithTtl,
    PersistentSequentialWithTtl,
}

impl CreateMode {
    /// The mode of these flags.
    pub fn from_flags(flags: i32) -> Option<Self> {
        Some(match flags {
            0 => Self::Persistent,
            1 => Self::Ephemeral,
            2 => Self::PersistentSequential,
            3 => Self::EphemeralSequential,
            4 => Self::Container,
            5 => Self::PersistentWithTtl,
            6 => Self::PersistentSequentialWithTtl,
            _ => return None,
        })
    }

    /// Whether the server appends a number to the name.
    pub fn is_sequential(self) -> bool {
        matches!(self, Self::PersistentSequential | Self::EphemeralSequential | Self::PersistentSequentialWithTtl)
    }

    /// Whether the node goes with its session.
    pub fn is_ephemeral(self) -> bool {
        matches!(self, Self::Ephemeral | Self::EphemeralSequential)
    }

    /// Whether the node goes when it was left alone for a time.
    pub fn is_ttl(self) -> bool {
        matches!(self, Self::PersistentWithTtl | Self::PersistentSequentialWithTtl)
    }
}

/// A node's numbers as a client sees them: 68 bytes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The zxid of its creation.
    pub czxid: i64,
    /// The zxid of its last setData.
    pub mzxid: i64,
    /// When it was created, Unix milliseconds.
    pub ctime: i64,
    /// When its data was last set, Unix milliseconds.
    pub mtime: i64,
    /// How often its data was set.
    pub version: i32,
    /// How often its children came or went.
    pub cversion: i32,
    /// How often its ACL was set.
    pub aversion: i32,
    /// The session it goes with; or the marks of a container and a TTL; or 0.
    pub ephemeral_owner: i64,
    /// Bytes of its data.
    pub data_length: i32,
    /// How many children it has.
    pub num_children: i32,
    /// The zxid at which its list of children last changed.
    pub pzxid: i64,
}

impl Stat {
    /// Its length on the wire, bytes.
    pub const LENGTH: usize = 68;

    /// Appends it.
    pub fn write(&self, out: &mut Writer<'_>) {
        out.i64(self.czxid).i64(self.mzxid).i64(self.ctime).i64(self.mtime);
        out.i32(self.version).i32(self.cversion).i32(self.aversion).i64(self.ephemeral_owner);
        out.i32(self.data_length).i32(self.num_children).i64(self.pzxid);
    }

    /// Reads one.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            czxid: reader.i64()?,
            mzxid: reader.i64()?,
            ctime: reader.i64()?,
            mtime: reader.i64()?,
            version: reader.i32()?,
            cversion: reader.i32()?,
            aversion: reader.i32()?,
            ephemeral_owner: reader.i64()?,
            data_length: reader.i32()?,
            num_children: reader.i32()?,
            pzxid: reader.i64()?,
        })
    }
}

/// Who may do what: one entry of an ACL list as a request carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AclEntry<'a> {
    /// Bits of [`perms`].
    pub perms: i32,
    /// `world`, `auth`, `digest`, `ip`; `None` is null.
    pub scheme: Option<&'a str>,
    /// Whom of the scheme; `None` is null.
    pub id: Option<&'a str>,
}

impl<'a> AclEntry<'a> {
    /// Everything for everybody, by which most nodes are made.
    pub const OPEN: Self = Self { perms: perms::ALL, scheme: Some("world"), id: Some("anyone") };

    /// Reads a vector of them; a null vector is an empty one.
    pub fn read_all(reader: &mut Reader<'a>) -> Result<Vec<Self>, Malformed> {
        let mut entries = Vec::new();
        for _ in 0..reader.count()?.unwrap_or(0) {
            entries.push(Self { perms: reader.i32()?, scheme: reader.text()?, id: reader.text()? });
        }
        Ok(entries)
    }
}

/// create, create2, createContainer, createTTL, and ClickHouse's createIfNotExists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateRequest<'a> {
    /// The path.
    pub path: &'a str,
    /// The data; `None` is null.
    pub data: Option<&'a [u8]>,
    /// The ACL list as given.
    pub acl: Vec<AclEntry<'a>>,
    /// See [`CreateMode::from_flags`].
    pub flags: i32,
    /// Milliseconds; -1 in all but createTTL.
    pub ttl: i64,
}

impl<'a> CreateRequest<'a> {
    /// Reads the body of operation `op`.
    pub fn read(op: i32, reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            path: path(reader)?,
            data: reader.buffer()?,
            acl: AclEntry::read_all(reader)?,
            flags: reader.i32()?,
            ttl: if op == op::CREATE_TTL { reader.i64()? } else { -1 },
        })
    }
}

/// `{path, version}`: delete, check, and ClickHouse's checkNotExists and tryRemove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathVersion<'a> {
    /// The path.
    pub path: &'a str,
    /// The version that it must have; -1 for any.
    pub version: i32,
}

impl<'a> PathVersion<'a> {
    /// Reads one.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self { path: path(reader)?, version: reader.i32()? })
    }
}

/// setData.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetDataRequest<'a> {
    /// The path.
    pub path: &'a str,
    /// The data; `None` is null.
    pub data: Option<&'a [u8]>,
    /// The version that the node must have; -1 for any.
    pub version: i32,
}

impl<'a> SetDataRequest<'a> {
    /// Reads one.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self { path: path(reader)?, data: reader.buffer()?, version: reader.i32()? })
    }
}

/// setACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAclRequest<'a> {
    /// The path.
    pub path: &'a str,
    /// The new list as given.
    pub acl: Vec<AclEntry<'a>>,
    /// The ACL version that the node must have; -1 for any.
    pub version: i32,
}

impl<'a> SetAclRequest<'a> {
    /// Reads one.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self { path: path(reader)?, acl: AclEntry::read_all(reader)?, version: reader.i32()? })
    }
}

/// `{path, watch}`: getData, exists, getChildren, getChildren2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathWatch<'a> {
    /// The path.
    pub path: &'a str,
    /// Whether a watch is wanted, which is the adapter's business.
    pub watch: bool,
}

impl<'a> PathWatch<'a> {
    /// Reads one.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self { path: path(reader)?, watch: reader.bool()? })
    }
}

/// setWatches and setWatches2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetWatches<'a> {
    /// The last zxid that the client has seen.
    pub relative_zxid: i64,
    /// Paths with a getData watch.
    pub data: Vec<&'a str>,
    /// Paths with a watch set by an exists that found nothing.
    pub exist: Vec<&'a str>,
    /// Paths with a getChildren watch.
    pub child: Vec<&'a str>,
    /// Paths with a persistent watch (setWatches2).
    pub persistent: Vec<&'a str>,
    /// Paths with a persistent recursive watch (setWatches2).
    pub persistent_recursive: Vec<&'a str>,
}

impl<'a> SetWatches<'a> {
    /// Reads the body of operation `op`.
    pub fn read(op: i32, reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let mut request = Self {
            relative_zxid: reader.i64()?,
            data: reader.texts()?,
            exist: reader.texts()?,
            child: reader.texts()?,
            ..Self::default()
        };
        if op == op::SET_WATCHES2 {
            request.persistent = reader.texts()?;
            request.persistent_recursive = reader.texts()?;
        }
        Ok(request)
    }
}

/// The header of each entry of a multi, and of the end after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiHeader {
    /// The operation.
    pub op: i32,
    /// Whether this is the end.
    pub done: bool,
    /// In a reply: the entry's error.
    pub err: i32,
}

impl MultiHeader {
    /// What stands after the last entry.
    pub const END: Self = Self { op: -1, done: true, err: -1 };

    /// Reads one.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { op: reader.i32()?, done: reader.bool()?, err: reader.i32()? })
    }

    /// Appends it.
    pub fn write(self, out: &mut Writer<'_>) {
        out.i32(self.op).bool(self.done).i32(self.err);
    }
}

/// What a path stands for here that is not UTF-8. ZooKeeper puts U+FFFD where it cannot read, which no node's name may have:
/// such a path is an argument that is bad, or a node that is not there.
const UNREADABLE: &str = "/\u{fffd}";

/// A path: text that ZooKeeper does not take null for.
pub fn path<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    let bytes = reader.buffer()?.ok_or(Malformed)?;
    Ok(std::str::from_utf8(bytes).unwrap_or(UNREADABLE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_stat_is_68_bytes_in_zookeepers_order() {
        let stat = Stat {
            czxid: 1,
            mzxid: 2,
            ctime: 3,
            mtime: 4,
            version: 5,
            cversion: 6,
            aversion: 7,
            ephemeral_owner: 8,
            data_length: 9,
            num_children: 10,
            pzxid: 11,
        };
        let mut bytes = Vec::new();
        stat.write(&mut Writer::new(&mut bytes));
        let mut expected = [0; Stat::LENGTH];
        for (last_byte_at, value) in
            [(7, 1), (15, 2), (23, 3), (31, 4), (35, 5), (39, 6), (43, 7), (51, 8), (55, 9), (59, 10), (67, 11)]
        {
            expected[last_byte_at] = value;
        }
        assert_eq!(bytes, expected);
        assert_eq!(Stat::read(&mut Reader::new(&bytes)), Ok(stat));
    }
}
