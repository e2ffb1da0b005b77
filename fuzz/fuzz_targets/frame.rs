//! Any bytes as a peer's connection: a handshake, then frames that arrive in any pieces. No panic, no allocation
//! by a forged length, the same frames however the bytes are cut, and each frame has one encoding.
#![no_main]

use bytes::BytesMut;
use statehouse::peer::frame;
use statehouse::peer::frame::Frame;
use statehouse::peer::frame::Hello;

/// All frames up to the first error, when the bytes arrive `piece` at a time.
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

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
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
    assert!(bytes.starts_with(&written));
});
