//! The first frame of a connection, and its answer.

use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;

/// ClickHouse's protocol with compressed frames.
const COMPRESSED_VERSION: i32 = 10;
/// ClickHouse's protocol with xids of 64 bits. Its handshake says whether frames are compressed in a byte that the
/// frame's length does not count.
const WIDE_XID_VERSION: i32 = 11;
/// ClickHouse's protocol whose requests may each carry a [trace context](super::trace). Its handshake says in two bytes that
/// the length does not count whether xids have 64 bits, and whether frames are compressed.
const TRACED_VERSION: i32 = 12;
/// ClickHouse's answer to a handshake when there is no leader: a protocol version that says no.
pub const REFUSED_VERSION: i32 = 42;

/// How the frames of a connection are written, after its handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// Xids have 64 bits.
    pub has_wide_xids: bool,
    /// See [`compression`](super::compression).
    pub is_compressed: bool,
    /// Behind each request of the client there is what [`trace`](super::trace) reads.
    pub is_traced: bool,
}

impl Format {
    /// The protocol version that says so.
    pub fn version(self) -> i32 {
        match self {
            Self { is_traced: true, .. } => TRACED_VERSION,
            Self { has_wide_xids: true, .. } => WIDE_XID_VERSION,
            Self { is_compressed: true, .. } => COMPRESSED_VERSION,
            _ => 0,
        }
    }
}

/// What a client asks for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// How the client would have its frames: by the protocol's version, of which ZooKeeper has but 0.
    pub format: Format,
    /// The newest zxid it has seen anywhere.
    pub last_zxid_seen: i64,
    pub timeout_ms: i32,
    /// 0 for a new session.
    pub session: u64,
    /// What the server gave out with the session; another length than 16 is no password of ours.
    pub password: Option<[u8; 16]>,
    /// Whether it sent the byte that says whether it would take a server that cannot write. Clients
    /// before 3.4, and ClickHouse, do not; then the answer has no such byte either.
    pub has_read_only: bool,
    /// Whether it would.
    pub takes_read_only: bool,
}

impl ConnectRequest {
    /// How long the frame is whose length the client says is `length`, if what it is can be told from its front.
    pub fn length(length: usize, front: &[u8]) -> usize {
        let uncounted = match front.first_chunk().map(|version| i32::from_be_bytes(*version)) {
            Some(TRACED_VERSION) => 2,
            Some(WIDE_XID_VERSION) => 1,
            _ => 0,
        };
        length + uncounted
    }

    /// Reads the frame. What follows the record is not looked at, as ZooKeeper does.
    pub fn read(frame: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(frame);
        let version = reader.i32()?;
        let format = match version {
            TRACED_VERSION => Format { is_traced: true, has_wide_xids: reader.bool()?, is_compressed: reader.bool()? },
            WIDE_XID_VERSION => Format { has_wide_xids: true, is_compressed: reader.bool()?, is_traced: false },
            version => Format { is_compressed: version == COMPRESSED_VERSION, ..Format::default() },
        };
        let last_zxid_seen = reader.i64()?;
        let timeout_ms = reader.i32()?;
        let session = reader.i64()? as u64;
        let password = reader.buffer()?.unwrap_or_default().try_into().ok();
        let read_only = reader.bool();
        let (has_read_only, takes_read_only) = (read_only.is_ok(), read_only == Ok(true));
        Ok(Self { format, last_zxid_seen, timeout_ms, session, password, has_read_only, takes_read_only })
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectResponse {
    pub protocol_version: i32,
    /// 0 when there is no such session.
    pub timeout_ms: i32,
    /// 0 when there is no such session.
    pub session: u64,
    pub password: [u8; 16],
    pub has_read_only: bool,
    /// This server cannot write.
    pub is_read_only: bool,
}

impl ConnectResponse {
    /// Appends the whole frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.i32(if self.has_read_only { 37 } else { 36 });
        writer.i32(self.protocol_version).i32(self.timeout_ms).i64(self.session as i64).buffer(Some(&self.password));
        if self.has_read_only {
            writer.bool(self.is_read_only);
        }
    }
}
