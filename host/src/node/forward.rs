//! Requests for groups that have no replica here, passed to a node that has.
//!
//! Invariant: a request goes to a second node only when the first one cannot have acted on it, or acting twice does the same
//! as acting once. And in the second case nobody is told that nothing was done, unless the second node knows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::following::ids;
use crate::group::Group;
use crate::peer::CallError;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::GroupCall;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::service::Applied;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::service::SessionView;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::NodeId;

/// Where a group's replica is.
pub(super) enum Replica<P: Platform, T: Transport> {
    /// On this node.
    Here(Arc<Group<P, T>>),
    /// On these.
    There(GroupId, BTreeSet<NodeId>),
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// Does what is asked on the replica that is here; the index and what came of it.
    pub(super) async fn call_group(
        &self,
        group: &Arc<Group<P, T>>,
        asked: GroupCall,
        timeout: Duration,
    ) -> ServiceResult<Applied> {
        match asked {
            GroupCall::Propose(kind) => {
                let (index, answer) = group.propose(kind, timeout).await?;
                Ok(Applied { index, reply: answer? })
            }
            GroupCall::Query { consistency, query, session } => {
                let id = session.map_or(0, |(id, _)| id);
                let (index, answer) = group.query(consistency, query, id, timeout).await;
                // Not before: by now this replica has come as far as `consistency` asks, and knows the session.
                if let Some((id, secret)) = session {
                    group.touch(id, secret)?;
                }
                Ok(Applied { index, reply: answer? })
            }
            GroupCall::Touch { id, secret } => {
                group.touch_at_leader(id, secret, timeout).await?;
                Ok(Applied { index: 0, reply: Bytes::new() })
            }
            GroupCall::TryModule(digest) => {
                // It compiles, and takes the memory of two states: as many at once as modules are tried at the door.
                let turn = self.0.gates.clone().acquire_owned().await;
                let (index, answer) = group.try_module(self.trial_of(group.id(), digest).await?, turn).await?;
                Ok(Applied { index, reply: answer? })
            }
            GroupCall::Snapshot => Ok(Applied { index: group.snapshot().await?, reply: Bytes::new() }),
        }
    }

    /// The same wherever the group has a replica.
    pub(super) async fn call_anywhere(
        &self,
        name: &str,
        asked: GroupCall,
        timeout: Duration,
    ) -> ServiceResult<Applied> {
        match self.replica(name).await? {
            Replica::Here(group) => self.call_group(&group, asked, timeout).await,
            Replica::There(id, hosts) => self.pass_on(name, id, hosts, asked, timeout).await,
        }
    }

    async fn pass_on(
        &self,
        name: &str,
        group: GroupId,
        hosts: BTreeSet<NodeId>,
        asked: GroupCall,
        timeout: Duration,
    ) -> ServiceResult<Applied> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let repeatable = asked.may_be_repeated();
        let proposes = matches!(&asked, GroupCall::Propose(_));
        let request = PeerRequest::Serve { group, call: asked, timeout_ms };
        // Each node begins at another one, so that no host does all the work of those that are none.
        let (before, after): (Vec<NodeId>, Vec<NodeId>) = hosts.iter().partition(|host| **host < self.id());
        let mut failed = Vec::new();
        // The host that may have acted on a command and did not say so.
        let mut lost = None;
        let not_done = |lost: &Option<NodeId>, error: ServiceError| match lost {
            Some(host) if !error.code.settles_earlier_tries() => {
                let detail =
                    format!("group {name}: it was passed to node {host}, which was lost; then: {}", error.detail);
                ServiceError::new(ErrorCode::OutcomeUnknown, detail)
            }
            _ => error,
        };
        let tried = async {
            for host in after.into_iter().chain(before) {
                let error = match call::<P::Runtime, T>(&self.0.setup.transport, host, Lane::Consensus, &request).await
                {
                    Ok(PeerResponse::Served(Err(error))) if error.code == ErrorCode::Unavailable => error.detail,
                    Ok(PeerResponse::Served(served)) => return served.map_err(|error| not_done(&lost, error)),
                    Err(error @ (CallError::NotSent { .. } | CallError::Refused { .. })) => error.to_string(),
                    Err(error) if repeatable => {
                        lost = lost.or(proposes.then_some(host));
                        error.to_string()
                    }
                    Err(error) => {
                        let detail = format!("group {name}: it was passed to node {host}, and {error}");
                        return Err(ServiceError::new(ErrorCode::OutcomeUnknown, detail));
                    }
                    Ok(other) => format!("node {host} answered {other:?}"),
                };
                failed.push(error);
            }
            let detail = format!("group {name} has replicas on nodes {}, and {}", ids(&hosts), failed.join("; "));
            Err(not_done(&lost, ServiceError::new(ErrorCode::Unavailable, detail)))
        };
        // The host keeps the time; this is for one that says nothing at all.
        let limit = timeout.saturating_add(Duration::from_secs(1));
        P::Runtime::timeout(limit, tried).await.unwrap_or_else(|_| {
            let code = if proposes { ErrorCode::OutcomeUnknown } else { ErrorCode::Timeout };
            Err(ServiceError::new(code, format!("group {name}: no answer within {} ms", limit.as_millis())))
        })
    }

    /// Answers another node's [`PeerRequest::Serve`].
    pub(super) async fn serve_call(&self, group: GroupId, asked: GroupCall, timeout_ms: u64) -> ServiceResult<Applied> {
        match self.group_by_id(group) {
            Some(group) => self.call_group(&group, asked, Duration::from_millis(timeout_ms)).await,
            None => {
                let detail = format!("group {group} does not run on node {}", self.id());
                Err(ServiceError::new(ErrorCode::Unavailable, detail))
            }
        }
    }

    /// Opens a session wherever the group has a replica.
    pub(super) async fn open_session(&self, name: &str, timeout_ms: u64) -> ServiceResult<SessionView> {
        let settings = &self.0.setup.settings;
        let timeout_ms = timeout_ms.clamp(settings.session_timeout_min_ms, settings.session_timeout_max_ms);
        let mut secret = [0; 16];
        self.0.setup.platform.fill_random(&mut secret);
        let kind = EntryKind::OpenSession { secret, timeout_ms, attached: false };
        let opened = self.call_anywhere(name, GroupCall::Propose(kind), settings.request_timeout).await?;
        Ok(SessionView { id: opened.index, secret: hex::encode(secret), timeout_ms })
    }
}
