//! A group's change of module, from the wish to what the group's log says of it.
//!
//! Invariants:
//! - Nothing begins before a majority of the group's voters has the module compiled and has tried it on a copy of its state, and
//!   no replica that answers has found that it does not fit.
//! - Once it has begun it is the group's log that decides. The change's record runs until that is known, whoever leads the catalog;
//!   so no entry comes late into a group of which the catalog believes something else.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::changes::Step;
use super::changes::Stepped;
use super::changes::waits;
use super::copies::FILE_TIME_MAX;
use crate::catalog::CatalogCommand;
use crate::catalog::no_group;
use crate::group::model::WasmFactory;
use crate::membership::Change;
use crate::membership::ChangeKind;
use crate::module::Context;
use crate::peer::Transport;
use crate::peer::message::GroupCall;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::platform::Platform;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::service::TriedView;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::NodeId;

/// One try to propose it. A large state takes longer to go over: the next try is told what came of the first.
const PROPOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// Once a majority has tried it, the others are waited for no longer between two answers.
const LATE_TIME_MAX: Duration = Duration::from_secs(10);

impl<P: Platform, T: Transport> Node<P, T> {
    /// Tries the module on a copy of the state at every replica of the group. An error when one refuses it, or fewer than a
    /// majority of the voters answer.
    pub(super) async fn try_module(&self, group: &str, module: &str) -> ServiceResult<(ChangeKind, Vec<TriedView>)> {
        let catalog = self.fresh_catalog().await?;
        let digest = catalog.check_module_change(group, module, None)?.digest;
        let Some(entry) = catalog.groups.get(group) else { return Err(no_group(group)) };
        let voters = self.wait_leaders_roster(entry.id, group).await?.voters();
        let mut asked: FuturesUnordered<_> =
            entry.hosts.iter().map(|node| self.try_module_at(*node, entry.id, digest)).collect();
        let mut tried: BTreeMap<NodeId, TriedView> = BTreeMap::new();
        let fit = |tried: &BTreeMap<NodeId, TriedView>| {
            let fits = |voter: &&NodeId| tried.get(voter).is_some_and(|one| one.failure.is_none());
            voters.iter().filter(fits).count()
        };
        let is_majority = |count: usize| count > voters.len() / 2;
        loop {
            // Who hangs is not waited for as long as a large state may take.
            let patience = if is_majority(fit(&tried)) { LATE_TIME_MAX } else { FILE_TIME_MAX };
            match P::Runtime::timeout(patience, asked.next()).await {
                Ok(Some(one)) => {
                    let one = one?;
                    tried.insert(one.node, one);
                }
                Ok(None) => break,
                Err(_) => {
                    let failure = Some("it has not answered yet".to_string());
                    for node in entry.hosts.iter().copied() {
                        tried.entry(node).or_insert(TriedView { node, index: None, failure: failure.clone() });
                    }
                    break;
                }
            }
        }
        let count = fit(&tried);
        let tried: Vec<TriedView> = tried.into_values().collect();
        if !is_majority(count) {
            let why =
                tried.iter().filter_map(|one| one.failure.as_ref().map(|why| format!("node {}: {why}", one.node)));
            let detail = format!(
                "group {group}: module {module} was tried by {count} of its voters {voters:?}, which is no majority; {}",
                why.collect::<Vec<_>>().join("; ")
            );
            return Err(ServiceError::new(ErrorCode::Unavailable, detail));
        }
        let kind = ChangeKind::GroupModule { group: group.to_owned(), module: module.to_owned(), digest };
        Ok((kind, tried))
    }

    /// A factory that has the module, with the group's limits, and is not the group's: nothing of a trial stays.
    pub(super) async fn trial_of(&self, group: GroupId, digest: [u8; 32]) -> ServiceResult<WasmFactory> {
        let module = self.compiled(digest).await.map_err(|why| ServiceError::new(ErrorCode::Unavailable, why))?;
        let catalog = self.0.view.get();
        let entry = catalog.groups.values().find(|entry| entry.id == group);
        let entry = entry.ok_or_else(|| no_group(&group.to_string()))?;
        let context = Context { index: 0, time_ms: entry.created_ms, seed: entry.seed, session: 0 };
        Ok(WasmFactory::trial(module, entry.limits.clone(), entry.params.clone(), context))
    }

    /// What a replica says. An error only when it found that its state does not go over.
    async fn try_module_at(&self, node: NodeId, group: GroupId, digest: [u8; 32]) -> ServiceResult<TriedView> {
        let timeout_ms = u64::try_from(FILE_TIME_MAX.as_millis()).unwrap_or(u64::MAX);
        let request = PeerRequest::Serve { group, call: GroupCall::TryModule(digest), timeout_ms };
        let view = |index, failure| Ok(TriedView { node, index, failure });
        match self.ask(node, request, FILE_TIME_MAX).await {
            Ok(PeerResponse::Served(Ok(tried))) => view(Some(tried.index), None),
            Ok(PeerResponse::Served(Err(error))) if matches!(error.code, ErrorCode::Trapped | ErrorCode::Rejected) => {
                let detail = format!("at node {node} the state does not go over: {}", error.detail);
                Err(ServiceError { detail, ..error })
            }
            Ok(PeerResponse::Served(Err(error))) => view(None, Some(error.to_string())),
            Ok(other) => view(None, Some(format!("it answered {other:?}"))),
            Err(why) => view(None, Some(why)),
        }
    }

    /// Lets the group's log decide, and writes down what it says.
    pub(super) async fn step_module(&self, change: &Change, group: &str, module: &str, digest: [u8; 32]) -> Stepped {
        let kind = EntryKind::ChangeModule { change: change.id, module: digest, name: module.to_owned() };
        let came = match self.call_anywhere(group, GroupCall::Propose(kind), PROPOSE_TIME_MAX).await {
            Ok(applied) => Ok(applied.index),
            // An entry's own outcome; all else says nothing of what the log holds, or will.
            Err(error) if error.index.is_some() => Err(error),
            Err(error) => return waits(error.to_string()),
        };
        match &came {
            Ok(index) => tracing::info!(change = change.id, kind = %change.kind, index, "change done"),
            Err(error) => tracing::warn!(change = change.id, kind = %change.kind, %error, "change failed"),
        }
        let noted = self.change_catalog(&CatalogCommand::NoteModule { id: change.id, came }).await;
        noted.map(|_| Step::Noted).map_err(|error| error.to_string())
    }
}
