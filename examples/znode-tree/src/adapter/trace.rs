//! What ClickHouse's protocol 12 has behind each request: a byte, and if that is 1, the trace context of OpenTelemetry in four
//! lines of text (trace id, span id, state, flags). The request's length counts none of it. No spans are written here, so it
//! is passed over.

/// More than four lines of any context are; the state is bounded by its standard to 512 characters.
const BYTES_MAX: usize = 4096;
const LINES: usize = 4;

/// What the front of the bytes behind a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailer {
    /// So many bytes.
    Bytes(usize),
    /// It has not all arrived.
    More,
    /// No such thing.
    Garbage,
}

/// Finds the end of what is behind a request.
pub fn read(bytes: &[u8]) -> Trailer {
    match bytes.split_first() {
        None => Trailer::More,
        Some((0, _)) => Trailer::Bytes(1),
        Some((1, text)) => {
            let ends = text.iter().take(BYTES_MAX).enumerate().filter(|(_, byte)| **byte == b'\n');
            match ends.map(|(at, _)| at).nth(LINES - 1) {
                Some(at) => Trailer::Bytes(at + 2),
                None if text.len() < BYTES_MAX => Trailer::More,
                None => Trailer::Garbage,
            }
        }
        Some(_) => Trailer::Garbage,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_context_is_four_lines_behind_a_one() {
        let context = b"\x017c5ad0d0-5e4e-4b1f-8d7b-3f2f6a1b0c9d\n1234\nvendor=a\\nb\n1\nnext";
        let whole = context.len() - 4;
        assert_eq!(read(context), Trailer::Bytes(whole));
        for cut in 0..whole {
            assert_eq!(read(&context[..cut]), Trailer::More, "{cut}");
        }
        assert_eq!(read(&[0, 9]), Trailer::Bytes(1));
        assert_eq!(read(&[2]), Trailer::Garbage);
        assert_eq!(read(&[1; BYTES_MAX]), Trailer::More);
        assert_eq!(read(&[1; BYTES_MAX + 1]), Trailer::Garbage);
    }
}
