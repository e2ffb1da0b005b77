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
//! * [`apply`]: what the state machine does with it;
//! * [`lane`]: batches; [`connection`]: one client; [`cursors`], [`channels`]; [`server`]: what a client
//!   asks about the server; [`adapter`]: all of it together, with `requests`, `transactions`, `replies`.
//!
//! # Settings
//!
//! `group create … --listen-param read_consistency=…` says how reads are answered: `local` (the default)
//! from this node's state, with no network: a client sees its own writes, all that was answered on this
//! node before, and never goes back in time as long as it stays on one node; `lease` and `linearizable`
//! see all that was acknowledged on any node.
//!
//! # What differs from Redis
//!
//! * Strings only, one database. No scripts, streams, keyspace notifications, tracking, blocking commands.
//! * A request has at most 900 KiB, 8 000 keys; keys and values are limited by the group's
//!   `max_key_bytes` and `max_value_bytes` (4 KiB, 128 KiB). Answers are limited to 3 MiB.
//! * Expiry is counted in the group's time, which entries carry and the leader's clock gives. A local read also hides
//!   what is over by its node's clock; `lease` and `linearizable` ones wait for the entry. An ephemeral key of an HTTP client has no
//!   expiry here; `SET` without `KEEPTTL` makes it an ordinary one.
//! * A read behind a write in one pipeline goes through the log with it.
//! * `WATCH` compares versions: a key that was absent, was set and deleted again counts as untouched.
//! * A `SCAN` cursor is known on its node only; one that is 4 096 cursors old is an error.
//! * `PUBLISH` reaches subscribers on all nodes, in the order of the log; it answers how many heard it on
//!   this node.
//! * `FLUSHALL` is one change, and so one event (`{"change":"clear",…}`).
//! * `CLUSTERDOWN` is the error of a write while the group has no leader; `ERR outcome_unknown: …` when it
//!   is not known whether a write will be applied.

pub mod adapter;
mod apply;
pub mod channels;
pub mod command;
pub mod connection;
pub mod cursors;
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
