//! Redis's protocol, RESP2 and RESP3: `redis-cli`, `redis-benchmark` and client libraries work against
//! a group of this module that was created with `--listen`.
//!
//! HTTP and Redis clients see the same keys. A write is one entry of the log, or part of one: requests
//! of many connections that come together share an entry, each with its own reply. A transaction is
//! one entry or part of one, so it is atomic. A reply means what it means everywhere in Statehouse: the
//! write is durable at a majority.
//!
//! * [`parse`], [`reply`]: RESP; [`glob`]: patterns;
//! * [`command`]: the commands and their arguments; [`op`]: what they are for the state machine;
//! * `apply`: what the state machine does with it;
//! * [`lane`]: batches; [`connection`]: one client; [`cursors`], [`channels`]; [`server`]: what a client
//!   asks about the server; [`adapter`]: all of it together, with `requests`, `transactions`, `replies`.
//!
//! `fuzz` is what fuzzers do with it. Settings, and what differs from Redis: `docs/redis.md`.

pub mod adapter;
mod apply;
pub mod channels;
pub mod command;
pub mod connection;
pub mod cursors;
#[cfg(not(target_family = "wasm"))]
pub mod fuzz;
pub mod glob;
pub mod lane;
pub mod op;
pub mod parse;
mod replies;
pub mod reply;
mod requests;
pub mod server;
mod transactions;

use statehouse_sdk::Reject;
use statehouse_sdk::codec::Decode;
use statehouse_sdk::codec::Encode;
use statehouse_sdk::codec::Json;

pub use adapter::Resp;

use crate::api::Answer;
use crate::api::Command;
use crate::api::Query;
use crate::api::Reply;

/// JSON, as over HTTP; bytes that begin with [`op::MARK`], which no JSON does, are a batch.
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl Decode<Command> for Codec {
    fn decode(bytes: &[u8]) -> Result<Command, Reject> {
        if bytes.first() == Some(&op::MARK) { Ok(Command::Batch(bytes.to_vec())) } else { Json::decode(bytes) }
    }
}

impl Encode<Reply> for Codec {
    fn encode(reply: &Reply, out: &mut Vec<u8>) -> Result<(), Reject> {
        match reply {
            Reply::Batch(frames) => {
                out.extend_from_slice(frames);
                Ok(())
            }
            reply => Json::encode(reply, out),
        }
    }
}

impl Decode<Query> for Codec {
    fn decode(bytes: &[u8]) -> Result<Query, Reject> {
        if bytes.first() == Some(&op::MARK) { Ok(Query::Batch(bytes.to_vec())) } else { Json::decode(bytes) }
    }
}

impl Encode<Answer> for Codec {
    fn encode(answer: &Answer, out: &mut Vec<u8>) -> Result<(), Reject> {
        match answer {
            Answer::Batch(frames) => {
                out.extend_from_slice(frames);
                Ok(())
            }
            answer => Json::encode(answer, out),
        }
    }
}
