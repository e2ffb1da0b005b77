//! A [`Service`] in memory, for the tests of API and command line: groups that count, sessions that
//! remember, and a command `fail CODE` that answers any error.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use futures_util::stream::BoxStream;
use sha2::Digest;
use sha2::Sha256;

use crate::membership::Change;
use crate::membership::ChangeKind;
use crate::membership::ChangeState;
use crate::service::Applied;
use crate::service::ApplyRequest;
use crate::service::ClusterNodeView;
use crate::service::Consistency;
use crate::service::DigestView;
use crate::service::ErrorCode;
use crate::service::Event;
use crate::service::EventItem;
use crate::service::FileStream;
use crate::service::GroupRequest;
use crate::service::GroupView;
use crate::service::MemberView;
use crate::service::ModuleUseView;
use crate::service::ModuleView;
use crate::service::NodeView;
use crate::service::RestoreRequest;
use crate::service::SavedGroup;
use crate::service::Service;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::service::SessionView;
use crate::service::TriedView;
use crate::status::ClusterStatus;
use crate::status::Diagnosis;
use crate::status::Finding;
use crate::status::NodeStatus;

/// Every code, so that tests can go through them.
pub const CODES: [ErrorCode; 31] = [
    ErrorCode::BadRequest,
    ErrorCode::Rejected,
    ErrorCode::Trapped,
    ErrorCode::ModuleRefused,
    ErrorCode::TooLarge,
    ErrorCode::ModuleNotFound,
    ErrorCode::GroupNotFound,
    ErrorCode::AlreadyExists,
    ErrorCode::ModuleInUse,
    ErrorCode::SessionNotFound,
    ErrorCode::SessionMoved,
    ErrorCode::WrongSecret,
    ErrorCode::SequenceTooOld,
    ErrorCode::BadSequence,
    ErrorCode::NoLeader,
    ErrorCode::Overloaded,
    ErrorCode::OutcomeUnknown,
    ErrorCode::Timeout,
    ErrorCode::DiskFull,
    ErrorCode::GroupStopped,
    ErrorCode::Unavailable,
    ErrorCode::Internal,
    ErrorCode::NodeNotFound,
    ErrorCode::MemberNotFound,
    ErrorCode::ChangeNotFound,
    ErrorCode::ChangeInProgress,
    ErrorCode::LastVoter,
    ErrorCode::NotCaughtUp,
    ErrorCode::Cancelled,
    ErrorCode::Forbidden,
    ErrorCode::FileDamaged,
];

const SECRET: [u8; 16] = [0xab; 16];

#[derive(Default)]
struct State {
    modules: BTreeMap<String, Bytes>,
    groups: BTreeMap<String, Group>,
    ready: bool,
    changes: BTreeMap<u64, Change>,
}

struct Group {
    module: String,
    /// The one that it began with.
    first: String,
    params: serde_json::Value,
    listen: Vec<String>,
    listen_params: serde_json::Value,
    applied: u64,
    sum: i64,
    sessions: BTreeMap<u64, BTreeMap<u64, Applied>>,
    /// What a subscriber receives, before the stream stays open and silent.
    events: Vec<EventItem>,
}

/// The service.
pub struct Fake {
    node: u64,
    state: Mutex<State>,
    /// What the command `wait` waits for.
    release: tokio::sync::Notify,
}

fn error(code: ErrorCode, detail: impl Into<String>) -> ServiceError {
    ServiceError::new(code, detail)
}

impl Fake {
    /// A ready node with nothing in it.
    pub fn new(node: u64) -> Self {
        Self { node, state: Mutex::new(State { ready: true, ..State::default() }), release: tokio::sync::Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes the node ready or not.
    pub fn set_ready(&self, ready: bool) {
        self.state().ready = ready;
    }

    /// Lets one command `wait` go on.
    pub fn release(&self) {
        self.release.notify_one();
    }

    /// Adds what a subscriber of `group` receives.
    pub fn add_event(&self, group: &str, item: EventItem) {
        if let Some(group) = self.state().groups.get_mut(group) {
            group.events.push(item);
        }
    }

    fn module_view(state: &State, name: &str) -> ServiceResult<ModuleView> {
        let wasm =
            state.modules.get(name).ok_or_else(|| error(ErrorCode::ModuleNotFound, format!("no module {name:?}")))?;
        let groups =
            state.groups.iter().filter(|(_, group)| group.module == name).map(|(name, _)| name.clone()).collect();
        Ok(ModuleView {
            name: name.into(),
            digest: format!("{:064x}", wasm.len()),
            size: wasm.len() as u64,
            created_ms: 1,
            exports: vec!["timer".into()],
            groups,
        })
    }

    fn group_view(&self, name: &str, group: &Group) -> GroupView {
        let applied = group.applied;
        let used = |name: &String| ModuleUseView { name: name.clone(), digest: "00".repeat(32), index: 0, since_ms: 0 };
        GroupView {
            name: name.into(),
            id: 1,
            module: group.module.clone(),
            digest: "00".repeat(32),
            params: group.params.clone(),
            listen: group.listen.clone(),
            listen_params: group.listen_params.clone(),
            replicas: None,
            node: self.node,
            term: 3,
            leader: Some(self.node),
            commit: applied,
            applied,
            snapshot: 0,
            last: applied,
            purged: 0,
            state: "leader".into(),
            sessions: group.sessions.len() as u64,
            timers: 0,
            members: vec![MemberView {
                id: self.node,
                address: "127.0.0.1:7170".into(),
                role: "voter".into(),
                matched: Some(applied),
            }],
            listeners: Vec::new(),
            connections: 0,
            modules: [&group.first, &group.module].into_iter().map(used).collect(),
        }
    }

    fn with_group<T>(&self, name: &str, act: impl FnOnce(&mut Group) -> ServiceResult<T>) -> ServiceResult<T> {
        match self.state().groups.get_mut(name) {
            Some(group) => act(group),
            None => Err(error(ErrorCode::GroupNotFound, format!("no group {name:?}"))),
        }
    }

    fn with_session<T>(
        &self,
        group: &str,
        id: u64,
        secret: [u8; 16],
        act: impl FnOnce(&mut Group) -> T,
    ) -> ServiceResult<T> {
        self.with_group(group, |group| {
            if !group.sessions.contains_key(&id) {
                return Err(error(ErrorCode::SessionNotFound, format!("no session {id}")));
            }
            if secret != SECRET {
                return Err(error(ErrorCode::WrongSecret, format!("the secret of session {id} is another")));
            }
            Ok(act(group))
        })
    }

    fn apply_now(&self, request: ApplyRequest) -> ServiceResult<Applied> {
        let text = String::from_utf8_lossy(&request.command).into_owned();
        if let Some(code) = text.strip_prefix("fail ") {
            let code = CODES.into_iter().find(|known| known.as_str() == code).unwrap_or(ErrorCode::Internal);
            return Err(ServiceError { reason: Some("why".into()), index: Some(9), ..error(code, "asked for") });
        }
        let act = |group: &mut Group| {
            let kept = request
                .session
                .zip(request.sequence)
                .and_then(|((id, _), sequence)| group.sessions.get(&id)?.get(&sequence).cloned());
            if let Some(kept) = kept {
                return kept;
            }
            group.applied += 1;
            group.sum += text.parse::<i64>().unwrap_or(0);
            let reply = if text == "echo" || text.parse::<i64>().is_ok() {
                Bytes::from(group.sum.to_string())
            } else {
                request.command.clone()
            };
            let applied = Applied { index: group.applied, reply };
            if let Some(((id, _), sequence)) = request.session.zip(request.sequence)
                && let Some(replies) = group.sessions.get_mut(&id)
            {
                replies.insert(sequence, applied.clone());
            }
            applied
        };
        match request.session {
            Some((id, secret)) => self.with_session(&request.group, id, secret, act),
            None => self.with_group(&request.group, |group| Ok(act(group))),
        }
    }
}

/// An answer that is there at once.
fn now<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    std::future::ready(value).boxed()
}

impl Service for Fake {
    fn module_add(&self, name: String, wasm: Bytes) -> BoxFuture<'_, ServiceResult<ModuleView>> {
        let mut state = self.state();
        if !wasm.starts_with(b"\0asm") {
            return now(Err(ServiceError {
                reason: Some("not_wasm".into()),
                ..error(ErrorCode::ModuleRefused, "the file is no WebAssembly")
            }));
        }
        if state.modules.get(&name).is_some_and(|known| *known != wasm) {
            return now(Err(error(ErrorCode::AlreadyExists, format!("the module {name:?} has other bytes"))));
        }
        state.modules.insert(name.clone(), wasm);
        now(Self::module_view(&state, &name))
    }
    fn module_list(&self) -> BoxFuture<'_, ServiceResult<Vec<ModuleView>>> {
        let state = self.state();
        now(state.modules.keys().map(|name| Self::module_view(&state, name)).collect())
    }
    fn module_get(&self, name: String) -> BoxFuture<'_, ServiceResult<ModuleView>> {
        now(Self::module_view(&self.state(), &name))
    }
    fn module_file(&self, name: String) -> BoxFuture<'_, ServiceResult<Bytes>> {
        let found = self.state().modules.get(&name).cloned();
        now(found.ok_or_else(|| error(ErrorCode::ModuleNotFound, format!("no module {name:?}"))))
    }
    fn module_remove(&self, name: String) -> BoxFuture<'_, ServiceResult<()>> {
        let mut state = self.state();
        match Self::module_view(&state, &name) {
            Ok(view) if view.groups.is_empty() => {
                state.modules.remove(&name);
                now(Ok(()))
            }
            Ok(view) => {
                now(Err(error(ErrorCode::ModuleInUse, format!("{name:?} is run by {}", view.groups.join(", ")))))
            }
            Err(error) => now(Err(error)),
        }
    }
    fn module_check(&self, wasm: Bytes) -> BoxFuture<'_, ServiceResult<ModuleView>> {
        let view = ModuleView {
            name: String::new(),
            digest: "00".repeat(32),
            size: wasm.len() as u64,
            created_ms: 0,
            exports: vec![],
            groups: vec![],
        };
        now(if wasm.starts_with(b"\0asm") {
            Ok(view)
        } else {
            Err(error(ErrorCode::ModuleRefused, "the file is no WebAssembly"))
        })
    }
    fn group_create(&self, request: GroupRequest) -> BoxFuture<'_, ServiceResult<GroupView>> {
        let GroupRequest { name, module, params, replicas: _, listen, listen_params } = request;
        let mut state = self.state();
        if !state.modules.contains_key(&module) {
            return now(Err(error(ErrorCode::ModuleNotFound, format!("no module {module:?}"))));
        }
        if state.groups.contains_key(&name) {
            return now(Err(error(ErrorCode::AlreadyExists, format!("there is a group {name:?}"))));
        }
        let (sessions, events) = (BTreeMap::new(), Vec::new());
        let group = Group {
            first: module.clone(),
            module,
            params,
            listen,
            listen_params,
            applied: 1,
            sum: 0,
            sessions,
            events,
        };
        let view = self.group_view(&name, &group);
        state.groups.insert(name, group);
        now(Ok(view))
    }
    fn group_list(&self) -> BoxFuture<'_, ServiceResult<Vec<GroupView>>> {
        now(Ok(self.state().groups.iter().map(|(name, group)| self.group_view(name, group)).collect()))
    }
    fn group_get(&self, name: String) -> BoxFuture<'_, ServiceResult<GroupView>> {
        now(self.with_group(&name.clone(), |group| Ok(self.group_view(&name, group))))
    }
    /// The file is the sum, in words.
    fn group_save(&self, name: String) -> BoxFuture<'_, ServiceResult<SavedGroup>> {
        now(self.with_group(&name, |group| {
            let file = Bytes::from(format!("sum {}", group.sum));
            let (size, digest) = (file.len() as u64, hex::encode(Sha256::digest(&file)));
            let pieces: Vec<_> = file.chunks(2).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            Ok(SavedGroup { index: group.applied, size, digest, file: stream::iter(pieces).boxed() })
        }))
    }
    fn group_restore(&self, request: RestoreRequest, file: FileStream) -> BoxFuture<'_, ServiceResult<GroupView>> {
        Box::pin(async move {
            let mut bytes = Vec::new();
            let mut file = file;
            while let Some(piece) = file.next().await {
                let piece = piece.map_err(|why| error(ErrorCode::BadRequest, format!("the file broke off: {why}")))?;
                bytes.extend_from_slice(&piece);
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let sum = text.strip_prefix("sum ").and_then(|sum| sum.parse().ok());
            let sum = sum.ok_or_else(|| error(ErrorCode::FileDamaged, format!("{text:?} is no sum")))?;
            let RestoreRequest { name, module, listen, listen_params, .. } = request;
            let module = module.unwrap_or_else(|| "counter".into());
            let create = GroupRequest { name: name.clone(), module, listen, listen_params, ..GroupRequest::default() };
            self.group_create(create).await?;
            self.with_group(&name, |group| {
                group.sum = sum;
                Ok(self.group_view(&name, group))
            })
        })
    }
    fn group_remove(&self, name: String) -> BoxFuture<'_, ServiceResult<()>> {
        let removed = self.state().groups.remove(&name);
        now(removed.map(drop).ok_or_else(|| error(ErrorCode::GroupNotFound, format!("no group {name:?}"))))
    }
    fn group_digest(&self, name: String) -> BoxFuture<'_, ServiceResult<DigestView>> {
        now(self.with_group(&name, |group| {
            Ok(DigestView { node: self.node, applied: group.applied, digest: format!("{:064x}", group.sum) })
        }))
    }
    fn group_snapshot(&self, name: String) -> BoxFuture<'_, ServiceResult<u64>> {
        now(self.with_group(&name, |group| Ok(group.applied)))
    }
    fn apply(&self, request: ApplyRequest) -> BoxFuture<'_, ServiceResult<Applied>> {
        if request.command == "wait" {
            return async {
                self.release.notified().await;
                Ok(Applied { index: 1, reply: Bytes::from_static(b"waited") })
            }
            .boxed();
        }
        now(self.apply_now(request))
    }
    fn query(
        &self,
        group: String,
        consistency: Consistency,
        query: Bytes,
        session: Option<(u64, [u8; 16])>,
    ) -> BoxFuture<'_, ServiceResult<Applied>> {
        if query == "never" {
            return std::future::pending().boxed();
        }
        now(self.with_group(&group, |group| {
            let reply = format!("{} {consistency:?} {session:?}", group.sum);
            Ok(Applied { index: group.applied, reply: reply.into() })
        }))
    }
    fn session_open(&self, group: String, timeout_ms: u64) -> BoxFuture<'_, ServiceResult<SessionView>> {
        now(self.with_group(&group, |group| {
            group.applied += 1;
            group.sessions.insert(group.applied, BTreeMap::new());
            Ok(SessionView { id: group.applied, secret: hex::encode(SECRET), timeout_ms })
        }))
    }
    fn session_touch(&self, group: String, id: u64, secret: [u8; 16]) -> BoxFuture<'_, ServiceResult<()>> {
        now(self.with_session(&group, id, secret, |_| ()))
    }
    fn session_close(&self, group: String, id: u64, secret: [u8; 16]) -> BoxFuture<'_, ServiceResult<()>> {
        now(self.with_session(&group, id, secret, |group| {
            group.sessions.remove(&id);
        }))
    }
    fn events(&self, group: String, from: Option<u64>) -> BoxFuture<'_, ServiceResult<BoxStream<'static, EventItem>>> {
        now(self.with_group(&group, |group| {
            let from = from.unwrap_or(group.applied + 1);
            let wanted = |item: &EventItem| match item {
                EventItem::Event(Event { index, .. }) => *index >= from,
                EventItem::Gap { next, .. } => *next > from,
            };
            let items: Vec<EventItem> = group.events.iter().filter(|item| wanted(item)).cloned().collect();
            Ok(stream::iter(items).chain(stream::pending()).boxed())
        }))
    }
    fn change_begin(&self, kind: ChangeKind) -> BoxFuture<'_, ServiceResult<Change>> {
        let mut state = self.state();
        let id = state.changes.len() as u64 + 1;
        if let ChangeKind::NodeRemove { node: 1 } = kind {
            return now(Err(error(ErrorCode::LastVoter, "node 1 is the last voter")));
        }
        let running = ChangeState::Running("it begins".into());
        let change = Change { id, kind, state: running, began_ms: 10, changed_ms: 11 };
        state.changes.insert(id, change.clone());
        now(Ok(change))
    }
    fn change_list(&self) -> BoxFuture<'_, ServiceResult<Vec<Change>>> {
        now(Ok(self.state().changes.values().cloned().collect()))
    }
    fn change_get(&self, id: u64, wait_ms: u64) -> BoxFuture<'_, ServiceResult<Change>> {
        let mut state = self.state();
        let found = state.changes.get_mut(&id).ok_or_else(|| error(ErrorCode::ChangeNotFound, "no such change"));
        now(found.map(|change| {
            if wait_ms > 0 && change.is_running() {
                change.state = ChangeState::Done;
            }
            change.clone()
        }))
    }
    fn change_cancel(&self, id: u64) -> BoxFuture<'_, ServiceResult<Change>> {
        let mut state = self.state();
        let found = state.changes.get_mut(&id).filter(|change| change.is_running());
        now(found.ok_or_else(|| error(ErrorCode::ChangeNotFound, "no such change runs")).map(|change| {
            change.state = ChangeState::Failed(error(ErrorCode::Cancelled, "it was cancelled"));
            change.clone()
        }))
    }
    fn node_list(&self) -> BoxFuture<'_, ServiceResult<Vec<ClusterNodeView>>> {
        let node = |id: u64, role: &str| ClusterNodeView {
            id,
            address: format!("127.0.0.1:{}", 7169 + id),
            role: role.into(),
            leader: id == 1,
            state: "ready".into(),
            lag: Some(0),
            groups: Some(1),
            leads: Some(0),
        };
        now(Ok(vec![node(1, "voter"), node(2, "learner")]))
    }
    fn module_change(&self, group: String, module: String) -> BoxFuture<'_, ServiceResult<Change>> {
        let kind = self.with_group(&group.clone(), |found| {
            found.module.clone_from(&module);
            Ok(ChangeKind::GroupModule { group, module, digest: [0; 32] })
        });
        Box::pin(async move { self.change_begin(kind?).await })
    }
    fn module_try(&self, group: String, _: String) -> BoxFuture<'_, ServiceResult<Vec<TriedView>>> {
        let tried = TriedView { node: self.node, index: Some(7), failure: None };
        now(self.with_group(&group, |_| Ok(vec![tried])))
    }
    fn member_list(&self, group: String) -> BoxFuture<'_, ServiceResult<Vec<MemberView>>> {
        now(self.with_group(&group.clone(), |found| Ok(self.group_view(&group, found).members)))
    }
    fn leader_transfer(&self, group: String, to: Option<u64>) -> BoxFuture<'_, ServiceResult<u64>> {
        now(self.with_group(&group, |_| Ok(to.unwrap_or(self.node))))
    }
    fn node_priority(&self, node: u64, _: Option<u8>) -> BoxFuture<'_, ServiceResult<()>> {
        now(if node <= 2 { Ok(()) } else { Err(crate::membership::no_node(node)) })
    }
    fn status(&self) -> BoxFuture<'_, ClusterStatus> {
        let state = if self.state().ready { "ready" } else { "unreachable" };
        let node = NodeStatus { id: 1, state: state.into(), ..NodeStatus::default() };
        now(ClusterStatus { node: self.node, nodes: vec![node], ..ClusterStatus::default() })
    }
    fn doctor(&self) -> BoxFuture<'_, Diagnosis> {
        let healthy = self.state().ready;
        let finding = Finding {
            code: "no_leader".into(),
            node: None,
            group: Some("c1".into()),
            what: "group c1 has no leader".into(),
            remedy: "look again".into(),
        };
        now(Diagnosis { healthy, findings: if healthy { vec![] } else { vec![finding] } })
    }
    fn node(&self) -> BoxFuture<'_, NodeView> {
        let ready = self.state().ready;
        let reasons =
            if ready { vec![] } else { vec!["group c1 has no leader".into(), "the catalog catches up".into()] };
        now(NodeView { node: self.node, cluster: "c0ffee".into(), ready, reasons, uptime_s: 5 })
    }
    fn metrics(&self) -> BoxFuture<'_, String> {
        now("# TYPE fake gauge\nfake 1\n# EOF\n".into())
    }
    fn counters(&self) -> BoxFuture<'_, BTreeMap<String, u64>> {
        now(BTreeMap::from([("syncs".into(), 7)]))
    }
}
