//! Node to node.
//!
//! [`Transport`] carries one request's bytes to a node and its response's bytes back; [`message`] says what
//! the bytes mean; [`tcp`] is the transport of production, the simulator has its own; [`raft`] makes it
//! openraft's network.
//!
//! Invariants:
//! - Requests of one lane to one node arrive in the order in which `call` was called, as long as the
//!   connection lasts. Replication pipelines on this.
//! - A request fails as [`CallError::NotSent`] only when the peer cannot have seen it.

pub mod commit;
pub mod frame;
pub mod fuzz;
mod guests;
pub mod message;
pub mod raft;
pub mod tcp;
pub mod transfer;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::types::NodeId;

/// What a connection is for. Bulk transfers never stand before a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Votes, entries, heartbeats, forwarded commands, read indexes.
    Consensus,
    /// Snapshots and module files: what may take long, and is throttled.
    Bulk,
    /// A node that wants to join a cluster, whose id it need not know yet; nothing else is asked there.
    Join,
    /// Questions about how a node stands and who belongs to what, and changes of that: short, and never behind a file.
    Control,
}

/// Why a call has no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer cannot have seen the request.
    #[error("node {node} is not reachable: {reason}")]
    NotSent {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// The request was sent; whether the peer acted on it is not known.
    #[error("the connection to node {node} was lost while waiting for its answer: {reason}")]
    Lost {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// The peer answered that it cannot serve the request.
    #[error("node {node} refused: {reason}")]
    Refused {
        /// The peer.
        node: NodeId,
        /// Its words.
        reason: String,
    },
}

/// Carries requests to other nodes.
pub trait Transport: Clone + Send + Sync + 'static {
    /// Sends `request` to node `to` and waits for the response. The request has its place in the lane's
    /// order when this returns, before the future is polled. It does not time out by itself.
    fn call(&self, to: NodeId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// The address of a node, for messages to people.
    fn address(&self, node: NodeId) -> Option<String>;

    /// From now on the node is reached there: the replicated membership says so.
    fn learn(&self, node: NodeId, address: &str);
}

/// Answers requests of other nodes.
pub trait Handler: Send + Sync + 'static {
    /// Handles one request of node `from`. The transport polls the future once before it takes the
    /// lane's next request. `Err` is text for the peer's log.
    fn handle(&self, from: NodeId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;
}
