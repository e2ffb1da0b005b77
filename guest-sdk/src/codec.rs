//! How commands, replies, queries and answers are bytes.
//!
//! Chosen in [`export!`](crate::export!): JSON unless said otherwise, so that `curl` is a client.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::binary;
use crate::machine::StateMachine;
use crate::reject;
use crate::reject::Reject;
use crate::shape;

/// Reads a `T` from the bytes a client sent.
pub trait Decode<T> {
    /// The value, or what is wrong with the bytes, for the client.
    fn decode(bytes: &[u8]) -> Result<T, Reject>;
}

/// Writes a `T` as a client will read it.
pub trait Encode<T> {
    /// Appends the value's bytes to `out`. An `Err` is a bug of the module (the value cannot be
    /// written at all) and becomes a panic, since the command has been applied by then.
    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), Reject>;
}

/// A codec for all four types of a machine. Implemented for whatever has the parts.
pub trait Codec<M: StateMachine>:
    Decode<M::Command> + Encode<M::Reply> + Decode<M::Query> + Encode<M::Answer> + 'static
{
}

impl<M, C> Codec<M> for C
where
    M: StateMachine,
    C: Decode<M::Command> + Encode<M::Reply> + Decode<M::Query> + Encode<M::Answer> + 'static,
{
}

/// JSON by `serde_json`. Empty bytes read as `null`, so a unit query needs no body.
#[derive(Clone, Copy, Debug)]
pub struct Json;

impl<T: DeserializeOwned> Decode<T> for Json {
    fn decode(bytes: &[u8]) -> Result<T, Reject> {
        let bytes = if bytes.is_empty() { b"null" } else { bytes };
        serde_json::from_slice(bytes).map_err(|error| reject!("{error}; expected {}", shape::of::<T>()))
    }
}

impl<T: Serialize> Encode<T> for Json {
    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), Reject> {
        serde_json::to_writer(out, value).map_err(|error| reject!("{error}"))
    }
}

/// `bincode` 2 with `config::standard()`: small and quick, for clients written in Rust against the
/// same types.
#[derive(Clone, Copy, Debug)]
pub struct Bincode;

impl<T: DeserializeOwned> Decode<T> for Bincode {
    fn decode(bytes: &[u8]) -> Result<T, Reject> {
        binary::read_exactly(bytes).map_err(|why| reject!("{why}; expected, in bincode, {}", shape::of::<T>()))
    }
}

impl<T: Serialize> Encode<T> for Bincode {
    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), Reject> {
        Ok(binary::write(value, out)?)
    }
}

/// The bytes themselves: for a machine with its own format. Commands and queries are anything made
/// from `Vec<u8>`, replies and answers anything that is bytes (`Vec<u8>`, `String`, `&'static
/// str`).
#[derive(Clone, Copy, Debug)]
pub struct Raw;

impl<T: From<Vec<u8>>> Decode<T> for Raw {
    fn decode(bytes: &[u8]) -> Result<T, Reject> {
        Ok(T::from(bytes.to_vec()))
    }
}

impl<T: AsRef<[u8]>> Encode<T> for Raw {
    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), Reject> {
        out.extend_from_slice(value.as_ref());
        Ok(())
    }
}
