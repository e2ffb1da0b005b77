//! A node comes to a cluster that is there: it asks a member, which makes it a learner of the catalog.
//!
//! Invariants:
//! - A joining node writes down whose it is only after a majority of the cluster knows it.
//! - An id names one node: who asks under an id that is a member at another address is refused.

use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use crate::membership::MemberChange;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::types::CATALOG;
use crate::types::NodeId;

/// How long the member that was asked tries.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// What the one who wants to join takes as "try again", not as "no": the refusals of this file begin otherwise.
pub const NOT_NOW: &str = "not now: ";

impl<P: Platform, T: Transport> Node<P, T> {
    /// Makes the node a learner of the catalog, here when this node leads it, else through the leader.
    pub(super) async fn answer_join(&self, node: NodeId, address: String) -> Result<PeerResponse<P::Runtime>, String> {
        if node == 0 || address.is_empty() {
            return Err("a node that joins says its id, from 1, and its address".to_string());
        }
        let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + PATIENCE;
        loop {
            let failed = match self.catalog().leader() {
                None => "the catalog has no leader".to_string(),
                Some(leader) if leader == self.id() => match self.admit(node, &address).await? {
                    Ok(joined) => return Ok(joined),
                    Err(failed) => failed,
                },
                Some(leader) => {
                    let request = PeerRequest::Join { node, address: address.clone() };
                    let asked = call::<P::Runtime, T>(&self.0.setup.transport, leader, Lane::Control, &request);
                    match P::Runtime::timeout(PATIENCE, asked).await {
                        Ok(Ok(joined)) => return Ok(joined),
                        Ok(Err(crate::peer::CallError::Refused { reason, .. })) => return Err(reason),
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => format!("node {leader} did not answer"),
                    }
                }
            };
            if <P::Runtime as AsyncRuntime>::Instant::now() >= deadline || self.is_stopping() {
                return Err(format!("{NOT_NOW}{failed}"));
            }
            P::Runtime::sleep(PAUSE).await;
        }
    }

    /// As the leader. The outer error is a refusal, the inner one passes.
    async fn admit(&self, node: NodeId, address: &str) -> Result<Result<PeerResponse<P::Runtime>, String>, String> {
        let roster = match self.catalog().roster().await {
            Ok(roster) => roster,
            Err(error) => return Ok(Err(error)),
        };
        if let Some((other, _)) = roster.members.iter().find(|(id, one)| **id != node && one.address == address) {
            return Err(format!("{address} is the address of node {other}: give node {node} a --peer of its own"));
        }
        match roster.members.get(&node) {
            Some(known) if known.address != address => Err(format!(
                "node {node} is a member already, at {}: give this one another --node-id, or remove that one first with \
                 `statehouse node rm {node}`",
                known.address
            )),
            Some(_) if roster.committed => Ok(Ok(PeerResponse::Joined {
                cluster: self.0.setup.cluster,
                index: roster.membership.map_or(0, |membership| membership.index),
                members: roster.members.into_iter().map(|(id, member)| (id, member.address)).collect(),
            })),
            Some(_) => Ok(Err("its membership is not committed yet".to_string())),
            None => {
                let change = MemberChange::AddLearner { node, address: address.to_string() };
                if let Err(error) = self.catalog().change_members(roster.membership, change).await {
                    return Ok(Err(error));
                }
                tracing::info!(node, address, group = CATALOG, "a node has joined, as a learner");
                // Answered at the next turn, from what is committed.
                Ok(Err("it has just joined".to_string()))
            }
        }
    }
}
