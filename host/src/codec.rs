//! The one way serde values become bytes between nodes and inside log payloads: bincode 2.0.1,
//! little-endian, variable-length integers. Its bytes are held by golden tests; it is never the outer
//! frame of a file (`docs/formats.md`).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value's bytes could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value has a shape that cannot be encoded.
    #[error("cannot encode: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// The bytes are not such a value: cut short, of another version, or damaged.
    #[error("cannot decode: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// There are more bytes than any value has.
    #[error("cannot decode: {0} bytes are more than a value may have")]
    TooLarge(usize),
    /// Bytes are left over after the value.
    #[error("cannot decode: {0} bytes are left over after the value")]
    Trailing(usize),
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// No single value is larger than this.
const LIMIT: usize = 256 << 20;
/// What the decoder counts for a byte, at most: for each integer and length as much as it has decoded, which is 8 bytes for one.
/// (No value here has integers of 128 bits.)
const CLAIMED: usize = 8;
/// So few bytes are within [`LIMIT`] whatever is counted for them.
const FEW: usize = LIMIT / CLAIMED;

/// The limit is for decoding: encoding knows none.
fn config() -> bincode::config::Configuration {
    bincode::config::standard()
}

/// The bytes of `value`.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    Ok(bincode::serde::encode_to_vec(value, config())?)
}

/// Appends the bytes of `value` to `out`.
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(value, out, config())?;
    Ok(())
}

/// How many bytes `value` takes. None are kept.
pub fn size<T: Serialize>(value: &T) -> Result<u64, CodecError> {
    struct Count(u64);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len() as u64);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    bincode::serde::encode_into_std_write(value, &mut count, config())?;
    Ok(count.0)
}

/// The value whose bytes are exactly `bytes`. A forged length cannot make the decoder allocate without bound; whatever
/// was encoded, and is not larger than a value may be, is within it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = if bytes.len() <= FEW {
        bincode::serde::decode_from_slice(bytes, config().with_limit::<LIMIT>())?
    } else if bytes.len() <= LIMIT {
        bincode::serde::decode_from_slice(bytes, config().with_limit::<{ LIMIT * CLAIMED }>())?
    } else {
        return Err(CodecError::TooLarge(bytes.len()));
    };
    match bytes.len().checked_sub(used) {
        Some(0) => Ok(value),
        left => Err(CodecError::Trailing(left.unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decoder counts eight bytes for an integer that takes one: the replies kept for half a million sessions were written to a
    /// snapshot that nobody could read, and the group opened nowhere any more.
    #[test]
    fn whatever_is_encoded_can_be_decoded() {
        let small = vec![1_u64; FEW + 1];
        let bytes = encode(&small).unwrap_or_default();
        assert!(bytes.len() < LIMIT / 4);
        assert!(decode::<Vec<u64>>(&bytes).is_ok_and(|decoded| decoded == small));
        assert!(matches!(decode::<u64>(&vec![0; LIMIT + 1]), Err(CodecError::TooLarge(_))));
    }
}
