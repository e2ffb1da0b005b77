//! The bytes of a peer connection: a handshake, then frames. Little-endian; see `docs/formats.md`.

use std::io;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

use super::Lane;
use crate::group::state::HOST_RULES;
use crate::module::RUNTIME_VERSION;
use crate::types::NodeId;

const MAGIC: &[u8; 8] = b"STHSPEER";
/// The protocol's version: peers of another are refused.
pub const PROTOCOL: u16 = 3;
/// By which rules this program applies entries: peers of others are refused too, for their states would come to differ. What modules are
/// given and charged, then what the host itself does.
pub const RULES: (u16, u16) = (RUNTIME_VERSION as u16, HOST_RULES);
/// length, checksum, id, kind.
const HEAD_BYTES: usize = 4 + 4 + 8 + 1;
/// No frame is longer.
const FRAME_BYTES_MAX: usize = 256 << 20;

/// What the one who connects says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster it belongs to; zero while it belongs to none, which only [`Lane::Join`] allows.
    pub cluster: [u8; 16],
    /// Who it is.
    pub from: NodeId,
    /// Whom it means to reach; 0 on [`Lane::Join`], where it knows only the address.
    pub to: NodeId,
    /// What the connection is for.
    pub lane: Lane,
    /// Its process, by a number drawn at its start: two that run on copies of one data directory are told apart by it.
    pub life: u64,
}

impl Hello {
    /// Magic and version.
    pub const VERSION_BYTES: usize = 8 + 2;
    /// magic, version, rules, cluster, from, to, lane, life, checksum of all before.
    pub const BYTES: usize = Self::VERSION_BYTES + 4 + 16 + 8 + 8 + 1 + 8 + 4;

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&PROTOCOL.to_le_bytes());
        out.extend_from_slice(&RULES.0.to_le_bytes());
        out.extend_from_slice(&RULES.1.to_le_bytes());
        out.extend_from_slice(&self.cluster);
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.to.to_le_bytes());
        out.push(match self.lane {
            Lane::Consensus => 0,
            Lane::Bulk => 1,
            Lane::Join => 2,
            Lane::Control => 3,
        });
        out.extend_from_slice(&self.life.to_le_bytes());
        let checksum = crc32c::crc32c(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Whether the rest of it is as this program says it: magic and version stay where they are. `Err` is the refusal in words.
    pub fn check_version(bytes: &[u8; Self::VERSION_BYTES]) -> Result<(), String> {
        let mut rest = &bytes[..];
        if &rest.copy_to_bytes(8)[..] != MAGIC {
            return Err("this is the peer port of a statehouse node; clients connect to its HTTP port".to_string());
        }
        let version = rest.get_u16_le();
        if version != PROTOCOL {
            return Err(format!("protocol version {version} is not {PROTOCOL}: upgrade the older node"));
        }
        Ok(())
    }

    /// Reads it; `Err` is the refusal in words.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, String> {
        let mut rest = &bytes[..];
        bytes.first_chunk().map_or(Ok(()), Self::check_version)?;
        rest.advance(Self::VERSION_BYTES);
        let body = bytes.split_last_chunk::<4>();
        if body.is_none_or(|(body, checksum)| crc32c::crc32c(body) != u32::from_le_bytes(*checksum)) {
            return Err("the handshake's checksum does not match".to_string());
        }
        let rules = (rest.get_u16_le(), rest.get_u16_le());
        if rules != RULES {
            return Err(format!(
                "it applies entries by rules {}.{}, and this program by {}.{}, so that their states would differ: stop all nodes, and start \
                 them with one program",
                rules.0, rules.1, RULES.0, RULES.1
            ));
        }
        let mut cluster = [0; 16];
        rest.copy_to_slice(&mut cluster);
        let (from, to) = (rest.get_u64_le(), rest.get_u64_le());
        let lane = match rest.get_u8() {
            0 => Lane::Consensus,
            1 => Lane::Bulk,
            2 => Lane::Join,
            3 => Lane::Control,
            other => return Err(format!("no lane {other}")),
        };
        Ok(Self { cluster, from, to, lane, life: rest.get_u64_le() })
    }

    /// Whether node `node` of `cluster` may talk to the sender; `Err` is the refusal in words. A node without a cluster refuses nobody for
    /// theirs.
    pub fn check(self, node: NodeId, cluster: Option<&[u8; 16]>) -> Result<Self, String> {
        let joins = self.lane == Lane::Join;
        if let Some(cluster) = cluster
            && self.cluster != *cluster
            && !(joins && self.cluster == [0; 16])
        {
            return Err(format!(
                "node {} belongs to cluster {}, node {node} to cluster {}: check --initial-cluster, --cluster-name and \
                 --data-dir of both",
                self.from,
                hex::encode(self.cluster),
                hex::encode(cluster)
            ));
        }
        if self.to != node && !(joins && self.to == 0) {
            return Err(format!(
                "this is node {node}, not node {}: check --initial-cluster of node {}",
                self.to, self.from
            ));
        }
        if self.from == node {
            return Err(format!("two nodes have the id {node}: give each its own --node-id"));
        }
        Ok(self)
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Asks.
    Request,
    /// Answers the request of the same id.
    Response,
    /// The request of the same id failed; the payload is text.
    Failure,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Matches a response to its request, within a connection.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// The message.
    pub payload: Bytes,
}

/// Appends a frame's bytes to `out`.
pub fn encode(id: u64, kind: Kind, payload: &[u8], out: &mut BytesMut) {
    let kind = match kind {
        Kind::Request => 0u8,
        Kind::Response => 1,
        Kind::Failure => 2,
    };
    let mut checksum = crc32c::crc32c(&id.to_le_bytes());
    checksum = crc32c::crc32c_append(checksum, &[kind]);
    checksum = crc32c::crc32c_append(checksum, payload);
    out.reserve(HEAD_BYTES + payload.len());
    // A payload over the limit is refused by the receiver's decode, in words.
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&[kind]);
    out.extend_from_slice(payload);
}

fn broken(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Takes the next whole frame off `buffer`; `None` when it has yet to arrive.
pub fn decode(buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
    let Some(mut head) = buffer.get(..HEAD_BYTES) else { return Ok(None) };
    let length = head.get_u32_le() as usize;
    let checksum = head.get_u32_le();
    let id = head.get_u64_le();
    let kind_byte = head.get_u8();
    if length > FRAME_BYTES_MAX {
        return Err(broken(format!("a frame claims {length} bytes, {FRAME_BYTES_MAX} are allowed")));
    }
    let whole = HEAD_BYTES + length;
    if buffer.len() < whole {
        buffer.reserve(whole - buffer.len());
        return Ok(None);
    }
    let mut frame = buffer.split_to(whole).freeze();
    frame.advance(HEAD_BYTES);
    let mut computed = crc32c::crc32c(&id.to_le_bytes());
    computed = crc32c::crc32c_append(computed, &[kind_byte]);
    computed = crc32c::crc32c_append(computed, &frame);
    if computed != checksum {
        return Err(broken(format!("the checksum of frame {id} does not match")));
    }
    let kind = match kind_byte {
        0 => Kind::Request,
        1 => Kind::Response,
        2 => Kind::Failure,
        other => return Err(broken(format!("no kind of frame {other}"))),
    };
    Ok(Some(Frame { id, kind, payload: frame }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn frames_arrive_byte_by_byte_and_in_bunches() {
        let mut wire = BytesMut::new();
        encode(1, Kind::Request, b"one", &mut wire);
        encode(2, Kind::Failure, b"", &mut wire);
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for byte in &wire[..] {
            buffer.extend_from_slice(&[*byte]);
            while let Some(frame) = decode(&mut buffer).unwrap() {
                seen.push((frame.id, frame.kind, frame.payload.to_vec()));
            }
        }
        assert_eq!(seen, [(1, Kind::Request, b"one".to_vec()), (2, Kind::Failure, Vec::new())]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_found_or_leaves_it_unfinished() {
        let mut wire = BytesMut::new();
        encode(7, Kind::Response, b"payload", &mut wire);
        for bit in 0..wire.len() * 8 {
            let mut damaged = wire.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            match decode(&mut damaged) {
                Err(_) | Ok(None) => {}
                Ok(Some(frame)) => panic!("bit {bit} went unnoticed: {frame:?}"),
            }
        }
    }

    #[test]
    fn a_stranger_is_refused_in_words() {
        let hello = Hello { cluster: [1; 16], from: 2, to: 1, lane: Lane::Bulk, life: 5 };
        let bytes: [u8; Hello::BYTES] = hello.encode().try_into().unwrap();
        assert_eq!(Hello::decode(&bytes).unwrap().check(1, Some(&[1; 16])), Ok(hello));
        assert!(hello.check(1, Some(&[9; 16])).unwrap_err().contains("--initial-cluster"));
        // Who joins knows neither the cluster nor whom it speaks to; nobody else may say so.
        let joins = Hello { cluster: [0; 16], from: 2, to: 0, lane: Lane::Join, life: 5 };
        assert_eq!(joins.check(1, Some(&[9; 16])), Ok(joins));
        assert!(
            Hello { cluster: [1; 16], ..joins }.check(1, Some(&[9; 16])).unwrap_err().contains("belongs to cluster")
        );
        assert!(Hello { lane: Lane::Bulk, ..joins }.check(1, Some(&[9; 16])).is_err());
        assert!(Hello { from: 1, ..joins }.check(1, Some(&[9; 16])).unwrap_err().contains("two nodes"));
        assert!(hello.check(3, Some(&[1; 16])).unwrap_err().contains("this is node 3, not node 1"));
        assert!(Hello { from: 1, ..hello }.check(1, Some(&[1; 16])).unwrap_err().contains("two nodes"));
        // Who belongs to nothing yet is no stranger to anybody.
        assert_eq!(hello.check(1, None), Ok(hello));
        assert!(hello.check(3, None).unwrap_err().contains("this is node 3"));
        // Nothing told two programs apart whose modules pay other fuel: one replica ran out of it where the others did not.
        let mut other = hello.encode();
        other[10] ^= 1;
        let end = other.len() - 4;
        let checksum = crc32c::crc32c(&other[..end]).to_le_bytes();
        other[end..].copy_from_slice(&checksum);
        let refused = Hello::decode(&other.try_into().unwrap()).unwrap_err();
        assert!(refused.contains("start them with one program"), "{refused}");
        let mut http = [b' '; Hello::BYTES];
        http[..16].copy_from_slice(b"GET / HTTP/1.1\r\n");
        assert!(Hello::decode(&http).unwrap_err().contains("HTTP port"));
    }
}
