//! What users ask of a node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::copies::FILE_TIME_MAX;
use super::following::ids;
use super::forward::Replica;
use super::gateways::with_offset;
use super::lock;
use super::modules::exports_of;
use crate::catalog::Catalog;
use crate::catalog::CatalogAnswer;
use crate::catalog::CatalogCommand;
use crate::catalog::GroupEntry;
use crate::catalog::ModuleEntry;
use crate::catalog::ModuleUse;
use crate::catalog::no_group;
use crate::catalog::no_module;
use crate::codec;
use crate::group::Group;
use crate::group::model::ModelFactory;
use crate::group::model::WasmFactory;
use crate::membership::Change;
use crate::membership::ChangeKind;
use crate::membership::ChangeState;
use crate::membership::Roster;
use crate::membership::RosterMember;
use crate::module::Context;
use crate::peer::CallError;
use crate::peer::Transport;
use crate::peer::message::GroupCall;
use crate::peer::message::PeerRequest;
use crate::platform::Platform;
use crate::service::Applied;
use crate::service::ApplyRequest;
use crate::service::ClusterNodeView;
use crate::service::Consistency;
use crate::service::DigestView;
use crate::service::ErrorCode;
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
use crate::types::CATALOG;
use crate::types::CATALOG_NAME;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::SessionUse;

/// Between two looks at what is waited for.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

fn error(code: ErrorCode, detail: impl Into<String>) -> ServiceError {
    ServiceError::new(code, detail)
}

fn module_view(name: &str, entry: &ModuleEntry, catalog: &Catalog) -> ModuleView {
    ModuleView {
        name: name.to_string(),
        digest: hex::encode(entry.digest),
        size: entry.size,
        created_ms: entry.created_ms,
        exports: entry.exports.clone(),
        groups: catalog.users(name),
    }
}

fn module_use_view(used: &ModuleUse) -> ModuleUseView {
    let ModuleUse { name, digest, index, since_ms } = used;
    ModuleUseView { name: name.clone(), digest: hex::encode(digest), index: *index, since_ms: *since_ms }
}

/// Params as the catalog keeps them.
pub(super) fn object(value: &serde_json::Value) -> Vec<u8> {
    match value {
        serde_json::Value::Null => b"{}".to_vec(),
        other => other.to_string().into_bytes(),
    }
}

fn check_group(name: &str, listen: &[String]) -> ServiceResult<()> {
    if name == CATALOG_NAME {
        return Err(error(ErrorCode::AlreadyExists, "the cluster's own group is called catalog"));
    }
    for address in listen {
        if let Err(why) = with_offset(address, 0) {
            return Err(error(ErrorCode::BadRequest, format!("`listen` has {address:?}: {why}")));
        }
    }
    Ok(())
}

/// How long a new group may take until it has a leader, at least: every node compiles its module first, which takes seconds where
/// the processor has other work.
const FIRST_LEADER_PATIENCE: Duration = Duration::from_secs(30);

impl<P: Platform, T: Transport> Node<P, T> {
    pub(super) fn timeout(&self, asked_ms: Option<u64>) -> Duration {
        asked_ms.map_or(self.0.setup.settings.request_timeout, Duration::from_millis)
    }

    /// The catalog as of now, not of some time ago: whatever was acknowledged before is in it.
    pub(super) async fn fresh_catalog(&self) -> ServiceResult<Arc<Catalog>> {
        let limit = self.timeout(None);
        match P::Runtime::timeout(limit, self.0.catalog.wait_read_index(false)).await {
            Ok(waited) => waited?,
            Err(_) => return Err(error(ErrorCode::NoLeader, "the catalog has no leader that answers")),
        }
        Ok(self.0.view.get())
    }

    /// Where the group of this name has a replica: here, once it is opened, or else there.
    pub(super) async fn replica(&self, name: &str) -> ServiceResult<Replica<P, T>> {
        let mut catalog = self.0.view.get();
        if !catalog.groups.contains_key(name) {
            // This node may be behind.
            catalog = self.fresh_catalog().await?;
        }
        let entry = catalog.groups.get(name).ok_or_else(|| no_group(name))?;
        if !entry.hosts.contains(&self.id()) {
            return Ok(Replica::There(entry.id, entry.hosts.clone()));
        }
        Ok(Replica::Here(self.opened(name, entry.id).await?))
    }

    /// The replica of the group that is here.
    async fn group(&self, name: &str) -> ServiceResult<Arc<Group<P, T>>> {
        match self.replica(name).await? {
            Replica::Here(group) => Ok(group),
            Replica::There(_, hosts) => {
                let detail =
                    format!("group {name} has no replica on node {}; nodes that have one: {}", self.id(), ids(&hosts));
                Err(error(ErrorCode::Unavailable, detail))
            }
        }
    }

    async fn opened(&self, name: &str, id: GroupId) -> ServiceResult<Arc<Group<P, T>>> {
        let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + self.timeout(None);
        loop {
            if let Some(group) = self.group_by_id(id) {
                return Ok(group);
            }
            let failed = lock(&self.0.failures).get(&id).cloned();
            // What failed is tried again; whoever asks may know another node.
            if failed.is_some() || <P::Runtime as AsyncRuntime>::Instant::now() >= deadline || self.is_stopping() {
                let why = failed.unwrap_or_else(|| "it is still being opened".to_string());
                return Err(error(
                    ErrorCode::Unavailable,
                    format!("group {name} does not run on node {}: {why}", self.id()),
                ));
            }
            P::Runtime::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn change_catalog(&self, command: &CatalogCommand) -> ServiceResult<GroupId> {
        let payload = codec::encode(command).map_err(|failed| error(ErrorCode::Internal, failed.to_string()))?;
        let kind = EntryKind::Command { session: None, payload: payload.into() };
        let (_, answer) = self.0.catalog.propose(kind, self.timeout(None)).await?;
        let answer: CatalogAnswer =
            codec::decode(&answer?).map_err(|failed| error(ErrorCode::Internal, failed.to_string()))?;
        answer
    }

    async fn add_module(&self, name: String, wasm: Bytes) -> ServiceResult<ModuleView> {
        let info = self.gate(wasm.clone()).await?;
        // Where nobody can name it, its file is not spread first.
        let catalog = self.fresh_catalog().await?;
        if let Some(known) = catalog.modules.get(&name).filter(|known| known.digest != info.digest) {
            let detail = format!("module {name} exists, with digest {}", hex::encode(known.digest));
            return Err(error(ErrorCode::AlreadyExists, detail));
        }
        let size = wasm.len() as u64;
        self.spread(info.digest, wasm.clone()).await?;
        let exports = exports_of(&info);
        let command = CatalogCommand::AddModule { name: name.clone(), digest: info.digest, size, exports };
        self.change_catalog(&command).await?;
        // Again, now that it is named: if all this took long, the others may have removed what nobody named. See `tidy_modules`.
        self.spread(info.digest, wasm).await.map_err(|failed| {
            let detail = format!(
                "module {name} is in the catalog, but whether a majority of the nodes holds its file is not known: {}; push the same file \
                 again",
                failed.detail
            );
            error(ErrorCode::OutcomeUnknown, detail)
        })?;
        let catalog = self.0.view.get();
        match catalog.modules.get(&name) {
            Some(entry) => Ok(module_view(&name, entry, &catalog)),
            None => Err(no_module(&name)),
        }
    }

    /// Tries the params on the module before anyone else has to: a group that cannot begin is not created.
    async fn try_params(&self, module: &str, entry: &ModuleEntry, params: &[u8]) -> ServiceResult<()> {
        let wasm = self.module_bytes(&entry.digest).await.map_err(|failed| error(ErrorCode::Unavailable, failed))?;
        let modules = self.0.setup.modules.clone();
        let (limits, params) = (self.0.setup.settings.limits.clone(), params.to_vec());
        let context = Context { index: 0, time_ms: self.0.setup.platform.wall_ms(), seed: 0, session: 0 };
        let turn = self.0.gates.clone().acquire_owned().await;
        let tried = self.0.setup.platform.run_guest(move || {
            let _turn = turn;
            let module = modules.load(&wasm).map_err(|failed| failed.to_string())?;
            let factory = WasmFactory::trial(module, limits, params, context);
            factory.create().map(|_| ()).map_err(|failed| failed.to_string())
        });
        match tried.await {
            Some(Ok(())) => Ok(()),
            Some(Err(text)) => {
                Err(error(ErrorCode::BadRequest, format!("module {module} does not begin with these params: {text}")))
            }
            None => Err(error(ErrorCode::Internal, "trying the params failed")),
        }
    }

    async fn create_group(&self, request: GroupRequest) -> ServiceResult<GroupView> {
        let GroupRequest { name, module, params, replicas, listen, listen_params } = request;
        let (params, listen_params) = (object(&params), object(&listen_params));
        check_group(&name, &listen)?;
        let mut catalog = self.0.view.get();
        if !catalog.modules.contains_key(&module) {
            catalog = self.fresh_catalog().await?;
        }
        let entry = catalog.modules.get(&module).ok_or_else(|| no_module(&module))?;
        entry.check_listens(&module, &listen)?;
        self.try_params(&module, entry, &params).await?;
        let command = CatalogCommand::CreateGroup {
            name: name.clone(),
            module,
            digest: entry.digest,
            params,
            limits: self.0.setup.settings.limits.clone(),
            members: self.first_members(&catalog, replicas)?,
            replicas,
            listen,
            listen_params,
            base: None,
        };
        let id = self.change_catalog(&command).await?;
        self.wait_until_led(&name, id, self.timeout(None).max(FIRST_LEADER_PATIENCE)).await?;
        self.view_of(&name).await
    }

    /// Whether a group of this name can be made.
    pub(super) fn check_new_group(&self, name: &str, listen: &[String], catalog: &Catalog) -> ServiceResult<()> {
        check_group(name, listen)?;
        match catalog.groups.get(name) {
            Some(known) => {
                let detail = format!("group {name} exists, with module {}", known.module);
                Err(error(ErrorCode::AlreadyExists, detail))
            }
            None => Ok(()),
        }
    }

    /// Waits until a new group is ready: it has a leader, and the replica here, if there is to be one, has seen the leader's first
    /// entry.
    pub(super) async fn wait_until_led(&self, name: &str, id: GroupId, patience: Duration) -> ServiceResult<()> {
        let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + patience;
        while let Err(failed) = self.is_led(name, id).await {
            if <P::Runtime as AsyncRuntime>::Instant::now() >= deadline || self.is_stopping() {
                // Not `no_leader` or `unavailable`, which say that nothing was done, so that a client asks another node to do it
                // again and is told that the name is taken: the group is there.
                let detail = format!("group {name} is created, but has not answered yet: {}", failed.detail);
                return Err(error(ErrorCode::OutcomeUnknown, detail));
            }
            P::Runtime::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Who holds a new group: all full nodes, or of them those that hold the fewest replicas.
    pub(super) fn first_members(
        &self,
        catalog: &Catalog,
        replicas: Option<u64>,
    ) -> ServiceResult<BTreeMap<u64, String>> {
        let nodes = self.full_nodes();
        let Some(replicas) = replicas else { return Ok(nodes) };
        if replicas == 0 || replicas > nodes.len() as u64 {
            let detail = format!("`replicas` is {replicas}; the cluster has {} full nodes", nodes.len());
            return Err(error(ErrorCode::BadRequest, detail));
        }
        let mut nodes: Vec<(u64, String)> = nodes.into_iter().collect();
        nodes.sort_by_key(|(id, _)| (catalog.replicas_on(*id), *id));
        nodes.truncate(usize::try_from(replicas).unwrap_or(usize::MAX));
        Ok(nodes.into_iter().collect())
    }

    async fn is_led(&self, name: &str, id: GroupId) -> ServiceResult<()> {
        match self.replica(name).await? {
            Replica::Here(group) => group.wait_read_index(false).await,
            Replica::There(..) => {
                self.leaders_roster(id).await.map(|_| ()).map_err(|why| error(ErrorCode::NoLeader, why))
            }
        }
    }

    /// The nodes that vote in the catalog, with their peer addresses: those that hold the groups that are on all nodes.
    pub(super) fn full_nodes(&self) -> BTreeMap<u64, String> {
        let members = self.0.catalog.standing().members;
        if members.is_empty() {
            return self.0.setup.members.clone();
        }
        let voters = members.into_iter().filter(|member| member.role == "voter");
        voters.map(|member| (member.id, member.address)).collect()
    }

    pub(super) async fn view_of(&self, name: &str) -> ServiceResult<GroupView> {
        let mut catalog = self.0.view.get();
        if !catalog.groups.contains_key(name) {
            catalog = self.fresh_catalog().await?;
        }
        let entry = catalog.groups.get(name).ok_or_else(|| no_group(name))?;
        Ok(self.group_view(name, entry).await)
    }

    async fn group_view(&self, name: &str, entry: &GroupEntry) -> GroupView {
        let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or(serde_json::Value::Null);
        let mut view = GroupView {
            name: name.to_string(),
            id: entry.id,
            module: entry.module.clone(),
            digest: hex::encode(entry.digest),
            modules: entry.modules.iter().map(module_use_view).collect(),
            params: json(&entry.params),
            listen: entry.listen.clone(),
            listen_params: json(&entry.listen_params),
            replicas: entry.replicas,
            node: self.id(),
            term: 0,
            leader: None,
            commit: 0,
            applied: 0,
            snapshot: 0,
            last: 0,
            purged: 0,
            state: String::new(),
            sessions: 0,
            timers: 0,
            members: Vec::new(),
            listeners: Vec::new(),
            connections: 0,
        };
        let Some(group) = self.group_by_id(entry.id) else {
            if !entry.hosts.contains(&self.id()) {
                view.state = "elsewhere".to_string();
                return self.view_from_afar(entry, view).await;
            }
            let why = lock(&self.0.failures).get(&entry.id).cloned();
            view.state = why.map_or("opening".to_string(), |why| format!("stopped: {why}"));
            return view;
        };
        if let Some(gateway) = lock(&self.0.gateways).get(&entry.id) {
            view.listeners = gateway.listeners();
            view.connections = gateway.connections();
        }
        let standing = group.standing();
        let module = group.module_ref();
        (view.module, view.digest) = (module.name, hex::encode(module.digest));
        (view.sessions, view.timers) = group.tables();
        GroupView {
            term: standing.term,
            leader: standing.leader,
            commit: standing.commit,
            applied: standing.applied,
            snapshot: standing.snapshot,
            last: standing.last,
            purged: standing.purged,
            state: standing.state,
            members: standing.members,
            ..view
        }
    }

    /// The part of a group's view that its leader knows, for a node without a replica.
    async fn view_from_afar(&self, entry: &GroupEntry, view: GroupView) -> GroupView {
        match self.leaders_roster(entry.id).await {
            Ok(roster) => {
                let members = roster.views();
                GroupView { term: roster.term, leader: roster.leader, last: roster.last, members, ..view }
            }
            Err(_) => view,
        }
    }

    fn check_size(&self, what: &str, length: usize) -> ServiceResult<()> {
        let limit = self.0.setup.settings.command_bytes_max;
        if length as u64 <= limit {
            return Ok(());
        }
        Err(error(ErrorCode::TooLarge, format!("the {what} is {length} bytes; --command-bytes-max is {limit}")))
    }

    pub(super) async fn begin_change(&self, kind: ChangeKind) -> ServiceResult<Change> {
        self.check_change(&kind).await?;
        let id = self.change_catalog(&CatalogCommand::BeginChange(kind)).await?;
        self.change(id)
    }

    /// The change as applied here.
    fn change(&self, id: u64) -> ServiceResult<Change> {
        let change = self.0.view.get().changes.get(&id).cloned();
        change.ok_or_else(|| error(ErrorCode::ChangeNotFound, format!("no change {id}, or it ended long ago")))
    }

    /// The id of a group by its name, the catalog's too.
    async fn group_id(&self, name: &str) -> ServiceResult<GroupId> {
        if name == CATALOG_NAME {
            return Ok(CATALOG);
        }
        let known = self.0.view.get().groups.get(name).map(|entry| entry.id);
        match known {
            Some(id) => Ok(id),
            None => self.fresh_catalog().await?.groups.get(name).map(|entry| entry.id).ok_or_else(|| no_group(name)),
        }
    }

    /// The members of a group as its leader sees them; waits for a leader as long as a request may take.
    async fn roster_of(&self, name: &str) -> ServiceResult<Roster> {
        let id = self.group_id(name).await?;
        self.wait_leaders_roster(id, name).await
    }

    /// The roster of a group as its leader sees it; waits for one.
    pub(super) async fn wait_leaders_roster(&self, id: GroupId, name: &str) -> ServiceResult<Roster> {
        let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + self.timeout(None);
        loop {
            match self.leaders_roster(id).await {
                Ok(roster) => return Ok(roster),
                Err(why) if <P::Runtime as AsyncRuntime>::Instant::now() >= deadline || self.is_stopping() => {
                    return Err(error(ErrorCode::NoLeader, format!("group {name} has no leader that answers: {why}")));
                }
                Err(_) => P::Runtime::sleep(LOOK_PAUSE).await,
            }
        }
    }

    pub(super) async fn transfer_leader(&self, name: String, to: Option<NodeId>) -> ServiceResult<NodeId> {
        let roster = self.roster_of(&name).await?;
        match to {
            Some(to) if to == roster.node => return Ok(to),
            Some(to) if !roster.voters().contains(&to) => {
                let detail = format!("node {to} is no voter of group {name}");
                return Err(error(ErrorCode::MemberNotFound, detail));
            }
            None if roster.voters().len() < 2 => {
                return Err(error(ErrorCode::LastVoter, format!("group {name} has no other voter to lead it")));
            }
            _ => {}
        }
        let request = PeerRequest::HandOver { group: self.group_id(&name).await?, to };
        let unclear = |why: String| {
            let detail =
                format!("group {name} was asked to change its leader, and whether it does is not known: {why}");
            error(ErrorCode::OutcomeUnknown, detail)
        };
        match self.ask_once(roster.node, request, self.timeout(None)).await {
            Ok(_) => {}
            Err(why @ CallError::Lost { .. }) => return Err(unclear(why.to_string())),
            Err(why) => {
                let detail = format!("leadership of group {name} has not moved: {why}");
                return Err(error(ErrorCode::Timeout, detail));
            }
        }
        let now = self.roster_of(&name).await.map_err(|seen| unclear(seen.detail))?.node;
        match to {
            Some(to) if to != now => Err(unclear(format!("node {now} leads now"))),
            None if now == roster.node => Err(unclear(format!("node {now} leads still"))),
            _ => Ok(now),
        }
    }

    async fn apply_command(&self, request: ApplyRequest) -> ServiceResult<Applied> {
        self.check_size("command", request.command.len())?;
        if request.sequence.is_some() && request.session.is_none() {
            return Err(error(ErrorCode::BadSequence, "a sequence number needs a session"));
        }
        let session =
            request.session.map(|(id, secret)| SessionUse { id, secret, sequence: request.sequence, attachment: None });
        let kind = EntryKind::Command { session, payload: request.command };
        let timeout = self.timeout(request.timeout_ms);
        self.call_anywhere(&request.group, GroupCall::Propose(kind), timeout).await
    }
}

impl<P: Platform, T: Transport> Service for Node<P, T> {
    fn module_add(&self, name: String, wasm: Bytes) -> BoxFuture<'_, ServiceResult<ModuleView>> {
        Box::pin(self.add_module(name, wasm))
    }

    fn module_list(&self) -> BoxFuture<'_, ServiceResult<Vec<ModuleView>>> {
        Box::pin(async {
            let catalog = self.fresh_catalog().await?;
            Ok(catalog.modules.iter().map(|(name, entry)| module_view(name, entry, &catalog)).collect())
        })
    }

    fn module_get(&self, name: String) -> BoxFuture<'_, ServiceResult<ModuleView>> {
        Box::pin(async move {
            let catalog = self.fresh_catalog().await?;
            let entry = catalog.modules.get(&name).ok_or_else(|| no_module(&name))?;
            Ok(module_view(&name, entry, &catalog))
        })
    }

    fn module_file(&self, name: String) -> BoxFuture<'_, ServiceResult<Bytes>> {
        Box::pin(async move {
            let catalog = self.fresh_catalog().await?;
            let entry = catalog.modules.get(&name).ok_or_else(|| no_module(&name))?;
            self.module_bytes(&entry.digest).await.map_err(|why| error(ErrorCode::Unavailable, why))
        })
    }

    fn module_remove(&self, name: String) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move { self.change_catalog(&CatalogCommand::RemoveModule { name }).await.map(|_| ()) })
    }

    fn module_check(&self, wasm: Bytes) -> BoxFuture<'_, ServiceResult<ModuleView>> {
        Box::pin(async move {
            let size = wasm.len() as u64;
            let info = self.gate(wasm).await?;
            Ok(ModuleView {
                name: String::new(),
                digest: hex::encode(info.digest),
                size,
                created_ms: 0,
                exports: exports_of(&info),
                groups: Vec::new(),
            })
        })
    }

    fn group_create(&self, request: GroupRequest) -> BoxFuture<'_, ServiceResult<GroupView>> {
        Box::pin(self.create_group(request))
    }

    fn group_list(&self) -> BoxFuture<'_, ServiceResult<Vec<GroupView>>> {
        Box::pin(async {
            let catalog = self.fresh_catalog().await?;
            let mut views = Vec::new();
            for (name, entry) in &catalog.groups {
                views.push(self.group_view(name, entry).await);
            }
            Ok(views)
        })
    }

    fn group_get(&self, name: String) -> BoxFuture<'_, ServiceResult<GroupView>> {
        Box::pin(async move { self.view_of(&name).await })
    }

    fn group_remove(&self, name: String) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move { self.change_catalog(&CatalogCommand::RemoveGroup { name }).await.map(|_| ()) })
    }

    fn group_digest(&self, name: String) -> BoxFuture<'_, ServiceResult<DigestView>> {
        Box::pin(async move {
            let (applied, digest) = self.group(&name).await?.digest().await?;
            Ok(DigestView { node: self.id(), applied, digest: hex::encode(digest) })
        })
    }

    fn group_snapshot(&self, name: String) -> BoxFuture<'_, ServiceResult<u64>> {
        Box::pin(async move { Ok(self.call_anywhere(&name, GroupCall::Snapshot, FILE_TIME_MAX).await?.index) })
    }

    fn module_change(&self, group: String, module: String) -> BoxFuture<'_, ServiceResult<Change>> {
        Box::pin(async move {
            let (kind, _) = self.try_module(&group, &module).await?;
            let id = self.change_catalog(&CatalogCommand::BeginChange(kind)).await?;
            self.change(id)
        })
    }

    fn module_try(&self, group: String, module: String) -> BoxFuture<'_, ServiceResult<Vec<TriedView>>> {
        Box::pin(async move { Ok(self.try_module(&group, &module).await?.1) })
    }

    fn group_save(&self, name: String) -> BoxFuture<'_, ServiceResult<SavedGroup>> {
        Box::pin(async move { self.save_group(&name).await })
    }

    fn group_restore(&self, request: RestoreRequest, file: FileStream) -> BoxFuture<'_, ServiceResult<GroupView>> {
        Box::pin(self.restore_group(request, file))
    }

    fn apply(&self, request: ApplyRequest) -> BoxFuture<'_, ServiceResult<Applied>> {
        Box::pin(self.apply_command(request))
    }

    fn query(
        &self,
        group: String,
        consistency: Consistency,
        query: Bytes,
        session: Option<(u64, [u8; 16])>,
    ) -> BoxFuture<'_, ServiceResult<Applied>> {
        Box::pin(async move {
            self.check_size("query", query.len())?;
            let asked = GroupCall::Query { consistency, query, session };
            self.call_anywhere(&group, asked, self.timeout(None)).await
        })
    }

    fn session_open(&self, group: String, timeout_ms: u64) -> BoxFuture<'_, ServiceResult<SessionView>> {
        Box::pin(async move { self.open_session(&group, timeout_ms).await })
    }

    fn session_touch(&self, group: String, id: u64, secret: [u8; 16]) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            self.call_anywhere(&group, GroupCall::Touch { id, secret }, self.timeout(None)).await.map(|_| ())
        })
    }

    fn session_close(&self, group: String, id: u64, secret: [u8; 16]) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let kind = EntryKind::CloseSession { id, secret: Some(secret), attachment: None };
            self.call_anywhere(&group, GroupCall::Propose(kind), self.timeout(None)).await.map(|_| ())
        })
    }

    fn events(&self, group: String, from: Option<u64>) -> BoxFuture<'_, ServiceResult<BoxStream<'static, EventItem>>> {
        Box::pin(async move { Ok(self.group(&group).await?.events().subscribe(from)) })
    }

    fn change_begin(&self, kind: ChangeKind) -> BoxFuture<'_, ServiceResult<Change>> {
        Box::pin(async move {
            self.check_not_followed(&kind)?;
            self.begin_change(kind).await
        })
    }

    fn change_list(&self) -> BoxFuture<'_, ServiceResult<Vec<Change>>> {
        Box::pin(async { Ok(self.fresh_catalog().await?.changes.values().cloned().collect()) })
    }

    fn change_get(&self, id: u64, wait_ms: u64) -> BoxFuture<'_, ServiceResult<Change>> {
        Box::pin(async move {
            self.fresh_catalog().await?;
            let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + Duration::from_millis(wait_ms);
            loop {
                let change = self.change(id)?;
                if !change.is_running()
                    || <P::Runtime as AsyncRuntime>::Instant::now() >= deadline
                    || self.is_stopping()
                {
                    return Ok(change);
                }
                P::Runtime::sleep(LOOK_PAUSE).await;
            }
        })
    }

    fn change_cancel(&self, id: u64) -> BoxFuture<'_, ServiceResult<Change>> {
        Box::pin(async move {
            let state = ChangeState::Failed(error(ErrorCode::Cancelled, "it was cancelled"));
            self.change_catalog(&CatalogCommand::NoteChange { id, state }).await?;
            self.change(id)
        })
    }

    fn node_list(&self) -> BoxFuture<'_, ServiceResult<Vec<ClusterNodeView>>> {
        Box::pin(async move {
            let roster = self.roster_of(CATALOG_NAME).await?;
            let view = |(id, member): (NodeId, RosterMember)| {
                let (leader, lag) = (roster.leader == Some(id), roster.lag(id));
                async move {
                    let condition = self.condition_of(id).await;
                    ClusterNodeView {
                        id,
                        address: member.address,
                        role: if member.voter { "voter" } else { "learner" }.to_string(),
                        leader,
                        lag,
                        groups: condition.as_ref().ok().map(|condition| condition.groups),
                        leads: condition.as_ref().ok().map(|condition| condition.leads),
                        state: match condition {
                            Ok(condition) if condition.reasons.is_empty() => "ready".to_string(),
                            Ok(condition) => format!("not ready: {}", condition.reasons.join("; ")),
                            Err(why) => format!("unreachable: {why}"),
                        },
                    }
                }
            };
            Ok(futures_util::future::join_all(roster.members.clone().into_iter().map(view)).await)
        })
    }

    fn member_list(&self, group: String) -> BoxFuture<'_, ServiceResult<Vec<MemberView>>> {
        Box::pin(async move { Ok(self.roster_of(&group).await?.views()) })
    }

    fn leader_transfer(&self, group: String, to: Option<NodeId>) -> BoxFuture<'_, ServiceResult<NodeId>> {
        Box::pin(self.transfer_leader(group, to))
    }

    fn node_priority(&self, node: NodeId, priority: Option<u8>) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(self.set_priority(node, priority))
    }

    fn status(&self) -> BoxFuture<'_, ClusterStatus> {
        Box::pin(self.cluster_status())
    }

    fn doctor(&self) -> BoxFuture<'_, Diagnosis> {
        Box::pin(self.diagnosis())
    }

    fn node(&self) -> BoxFuture<'_, NodeView> {
        Box::pin(async {
            let reasons = self.not_ready();
            let uptime = <P::Runtime as AsyncRuntime>::Instant::now() - self.0.started;
            NodeView {
                node: self.id(),
                cluster: hex::encode(self.0.setup.cluster),
                ready: reasons.is_empty(),
                reasons,
                uptime_s: uptime.as_secs(),
            }
        })
    }

    fn metrics(&self) -> BoxFuture<'_, String> {
        Box::pin(std::future::ready(self.metrics_page()))
    }

    fn counters(&self) -> BoxFuture<'_, BTreeMap<String, u64>> {
        Box::pin(std::future::ready(self.counter_map()))
    }
}
