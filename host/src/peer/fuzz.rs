//! What the fuzzer does with bytes: a handshake, then frames that arrive in any pieces.

use bytes::BytesMut;

use super::frame;
use super::frame::Frame;
use super::frame::Hello;

/// Reads `bytes` as a peer's connection. No panic, no allocation by a forged length, the same frames however the bytes are
/// cut, and one encoding of each.
pub fn connection(bytes: &[u8]) {
    if let Some(hello) = bytes.first_chunk::<{ Hello::BYTES }>()
        && let Ok(read) = Hello::decode(hello)
    {
        assert_eq!(read.encode(), hello);
    }
    let piece = usize::from(bytes.first().copied().unwrap_or(0)) + 1;
    let (seen, whole) = frames(bytes, piece);
    assert_eq!((&seen, whole), (&frames(bytes, bytes.len().max(1)).0, whole));
    let mut written = BytesMut::new();
    for one in &seen {
        frame::encode(one.id, one.kind, &one.payload, &mut written);
    }
    assert!(bytes.starts_with(&written), "a frame has two encodings");
}

/// All frames up to the first error, when the bytes arrive `piece` at a time; whether there was none.
fn frames(bytes: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let mut buffer = BytesMut::new();
    let mut seen = Vec::new();
    for part in bytes.chunks(piece) {
        buffer.extend_from_slice(part);
        loop {
            match frame::decode(&mut buffer) {
                Ok(Some(frame)) => seen.push(frame),
                Ok(None) => break,
                Err(_) => return (seen, false),
            }
        }
    }
    (seen, true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::peer::Lane;
    use crate::peer::frame::Kind;
    use crate::sim::SimRandom;

    /// A first round of fuzzing on every test run: what peers say, with bytes altered, cut and added.
    #[test]
    fn random_connections_never_panic() {
        let rounds = std::env::var("STATEHOUSE_SEEDS").map_or(4000, |seeds| seeds.parse().unwrap());
        let mut random = SimRandom::new(1);
        let mut read = 0;
        for _ in 0..rounds {
            let mut bytes = BytesMut::new();
            for number in 0..random.between(0, 3) {
                let kind = [Kind::Request, Kind::Response, Kind::Failure][random.between(0, 2) as usize];
                let payload: Vec<u8> = (0..random.between(0, 299)).map(|_| random.between(0, 255) as u8).collect();
                frame::encode(number, kind, &payload, &mut bytes);
            }
            if random.between(0, 7) == 0 {
                bytes =
                    BytesMut::from(&Hello { cluster: [3; 16], from: 1, to: 2, lane: Lane::Bulk, life: 4 }.encode()[..]);
            }
            let mut bytes = bytes.to_vec();
            for _ in 0..random.between(0, 2) {
                let at = random.between(0, bytes.len() as u64) as usize;
                match random.between(0, 2) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, random.between(0, 255) as u8),
                    _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.between(0, 7)),
                }
            }
            connection(&bytes);
            read += frames(&bytes, 64).0.len();
        }
        assert!(read > 1000, "{read} frames were read: it is about what comes behind them too");
    }
}
