//! Bincode behind two functions, with errors a person can read. (Bincode's own are `Debug` output,
//! and formatting them would drag the printing of floats and durations into every module.)

use std::io;
use std::io::Read;
use std::io::Write;

use bincode::config::Configuration;
use bincode::error::DecodeError;
use bincode::error::EncodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Little-endian, variable-length integers, no limit: bincode's `standard()`.
const CONFIGURATION: Configuration = bincode::config::standard();

/// What serde attributes bincode cannot follow, since its bytes do not describe themselves.
const NEEDS_NAMES: &str = "the type uses a serde attribute that needs self-describing bytes (untagged, flatten, skip_serializing_if, or an internal tag)";

/// Streams the value's bytes to `out`.
pub(crate) fn write<T: Serialize>(value: &T, mut out: &mut dyn Write) -> Result<(), String> {
    match bincode::serde::encode_into_std_write(value, &mut out, CONFIGURATION) {
        Ok(_) => Ok(()),
        Err(EncodeError::Io { inner, .. }) => Err(inner.to_string()),
        Err(EncodeError::OtherString(text)) => Err(text),
        Err(EncodeError::Other(text)) => Err(text.to_owned()),
        Err(EncodeError::Serde(_)) => Err(NEEDS_NAMES.to_owned()),
        Err(_) => Err("the value cannot be encoded".to_owned()),
    }
}

/// Streams a value out of `input`, which may hold more.
pub(crate) fn read<T: DeserializeOwned>(mut input: &mut dyn Read) -> Result<T, String> {
    bincode::serde::decode_from_std_read(&mut input, CONFIGURATION).map_err(explain)
}

/// Reads a value that `bytes` must hold exactly.
pub(crate) fn read_exactly<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let (value, read) = bincode::serde::decode_from_slice(bytes, CONFIGURATION).map_err(explain)?;
    match bytes.len().saturating_sub(read) {
        0 => Ok(value),
        left => Err(format!("{left} bytes are left over after the {read} it takes")),
    }
}

fn explain(error: DecodeError) -> String {
    let fixed = match error {
        DecodeError::UnexpectedEnd { .. } => "the bytes end too early",
        DecodeError::Io { inner, .. } if inner.kind() == io::ErrorKind::UnexpectedEof => "the bytes end too early",
        DecodeError::Io { inner, .. } => return inner.to_string(),
        DecodeError::OtherString(text) => return text,
        DecodeError::Other(text) => text,
        DecodeError::UnexpectedVariant { found, .. } => {
            return format!("there is no variant number {found}");
        }
        DecodeError::InvalidIntegerType { .. } | DecodeError::OutsideUsizeRange(_) => {
            "an integer is too large for its field"
        }
        DecodeError::InvalidBooleanValue(byte) => return format!("{byte} is no boolean"),
        DecodeError::Utf8 { .. } | DecodeError::InvalidCharEncoding(_) => "a text is not UTF-8",
        DecodeError::Serde(_) => NEEDS_NAMES,
        _ => "the bytes hold something else",
    };
    fixed.to_owned()
}
