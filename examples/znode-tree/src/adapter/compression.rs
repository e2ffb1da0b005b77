//! ClickHouse's compressed streams: after the handshake each direction is a row of blocks.
//!
//! ```text
//! checksum 16 bytes (CityHash 1.0.2, 128 bits: low half, high half, of all that follows)
//! method u8 (0x82: LZ4, 0x02: none) | size u32, with these nine bytes | size when unpacked u32 | data
//! ```
//!
//! All numbers are little-endian. Frames lie in the unpacked stream as they would in a plain one, cut anywhere.

use cityhash_rs::cityhash_102_128;
use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Io;

use super::handshake::Format;
use crate::jute::Malformed;

const CHECKSUM: usize = 16;
const HEAD: usize = 9;
const LZ4: u8 = 0x82;
const NONE: u8 = 0x02;
/// LZ4 makes of one byte 255 at most: who claims more lies, and nothing is allocated for it.
const RATIO_MAX: usize = 255;

/// The blocks of a client, until they are whole.
#[derive(Debug, Default)]
pub struct Unpacker(Vec<u8>);

impl Unpacker {
    /// Bytes kept until their block is whole.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes bytes in; appends what they unpack to. `limit`: the largest block taken, packed or not.
    pub fn unpack(&mut self, bytes: &[u8], limit: usize, plain: &mut Vec<u8>) -> Result<(), Malformed> {
        self.0.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(length) = unpack_block(self.0.get(used..).unwrap_or_default(), limit, plain)? {
            used += length;
        }
        self.0.drain(..used);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        Ok(())
    }
}

/// Unpacks the block in front; its length, or `None` when it is not whole.
fn unpack_block(bytes: &[u8], limit: usize, plain: &mut Vec<u8>) -> Result<Option<usize>, Malformed> {
    let Some((checksum, rest)) = bytes.split_first_chunk::<CHECKSUM>() else { return Ok(None) };
    let Some(head) = rest.first_chunk::<HEAD>() else { return Ok(None) };
    let [method, p0, p1, p2, p3, u0, u1, u2, u3] = *head;
    let packed = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
    let unpacked = u32::from_le_bytes([u0, u1, u2, u3]) as usize;
    if packed < HEAD || packed > limit || unpacked > limit {
        return Err(Malformed);
    }
    let Some(block) = rest.get(..packed) else { return Ok(None) };
    let data = block.get(HEAD..).unwrap_or_default();
    if checksum_of(block) != *checksum || unpacked > data.len().saturating_mul(RATIO_MAX) {
        return Err(Malformed);
    }
    match method {
        LZ4 => {
            let at = plain.len();
            plain.resize(at + unpacked, 0);
            let written = lz4_flex::block::decompress_into(data, plain.get_mut(at..).unwrap_or_default());
            if !written.is_ok_and(|written| written == unpacked) {
                return Err(Malformed);
            }
        }
        NONE if data.len() == unpacked => plain.extend_from_slice(data),
        _ => return Err(Malformed),
    }
    Ok(Some(CHECKSUM + packed))
}

fn checksum_of(block: &[u8]) -> [u8; CHECKSUM] {
    // The crate gives the low half above the high one.
    cityhash_102_128(block).rotate_left(64).to_le_bytes()
}

/// One block of these bytes.
pub fn pack(plain: &[u8]) -> Vec<u8> {
    let data = lz4_flex::block::compress(plain);
    let mut block = vec![0; CHECKSUM];
    block.push(LZ4);
    // Frames are far below 4 GiB.
    for size in [HEAD + data.len(), plain.len()] {
        block.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    }
    block.extend_from_slice(&data);
    let checksum = checksum_of(block.get(CHECKSUM..).unwrap_or_default());
    block.iter_mut().zip(checksum).for_each(|(to, from)| *to = from);
    block
}

/// Sends a frame to a client, as it wants its frames.
pub fn send(io: &mut Io<'_>, connection: ConnectionId, format: Format, frame: &[u8]) {
    if format.is_compressed {
        io.send(connection, &pack(frame));
    } else {
        io.send(connection, frame);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    /// Made by ClickHouse's Python driver's parts (`lz4`, `clickhouse-cityhash`).
    const BLOCK: &str = "0bc74768456df9be7d8d0290e178bd4882180000001d0000006e68656c6c6f2006005068656c6c6f";

    fn unpacked(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut plain = Vec::new();
        Unpacker::default().unpack(bytes, 1 << 20, &mut plain).map(|()| plain)
    }

    fn block() -> Vec<u8> {
        (0..BLOCK.len()).step_by(2).map(|at| u8::from_str_radix(&BLOCK[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_block_of_clickhouse_is_read() {
        assert_eq!(unpacked(&block()), Ok(b"hello hello hello hello hello".to_vec()));
    }

    #[test]
    fn blocks_cut_anywhere_come_out_whole() {
        let texts: Vec<Vec<u8>> = (0..20_u32).map(|at| at.to_string().repeat(at as usize * 50).into_bytes()).collect();
        let packed: Vec<u8> = texts.iter().flat_map(|text| pack(text)).collect();
        let (mut unpacker, mut plain) = (Unpacker::default(), Vec::new());
        for piece in packed.chunks(7) {
            unpacker.unpack(piece, 1 << 20, &mut plain).unwrap();
        }
        assert_eq!(plain, texts.concat());
    }

    #[test]
    fn no_byte_of_a_block_can_change_and_no_size_is_believed() {
        let whole = block();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            assert_ne!(unpacked(&broken), Ok(b"hello hello hello hello hello".to_vec()), "{at}");
        }
        let claim = |packed: u32, unpacked: u32| {
            let mut bytes = vec![0; CHECKSUM];
            bytes.push(LZ4);
            bytes.extend(packed.to_le_bytes());
            bytes.extend(unpacked.to_le_bytes());
            bytes.extend([0; 20]);
            let checksum = checksum_of(&bytes[CHECKSUM..]);
            bytes[..CHECKSUM].copy_from_slice(&checksum);
            bytes
        };
        for (packed, size) in [(0, 1), (8, 1), (29, 1 << 19), (29, u32::MAX), (u32::MAX, 1), (29, 3)] {
            assert_eq!(unpacked(&claim(packed, size)), Err(Malformed), "{packed} {size}");
        }
    }
}
