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
use super::gateways::with_offset;
use super::lock;
use super::modules::exports_of;
use crate::catalog::Catalog;
use crate::catalog::CatalogAnswer;
use crate::catalog::CatalogCommand;
use crate::catalog::GroupEntry;
use crate::catalog::ModuleEntry;
use crate::catalog::no_group;
use crate::catalog::no_module;
use crate::codec;
use crate::group::Group;
use crate::group::model::ModelFactory;
use crate::group::model::WasmFactory;
use crate::module::Context;
use crate::peer::Transport;
use crate::platform::Platform;
use crate::service::Applied;
use crate::service::ApplyRequest;
use crate::service::Consistency;
use crate::service::DigestView;
use crate::service::ErrorCode;
use crate::service::EventItem;
use crate::service::GroupRequest;
use crate::service::GroupView;
use crate::service::ModuleView;
use crate::service::NodeView;
use crate::service::Service;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::service::SessionView;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::SessionUse;

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

impl<P: Platform, T: Transport> Node<P, T> {
    fn timeout(&self, asked_ms: Option<u64>) -> Duration {
        asked_ms.map_or(self.0.setup.settings.request_timeout, Duration::from_millis)
    }

    /// The catalog as of now, not of some time ago: whatever was acknowledged before is in it.
    async fn fresh_catalog(&self) -> ServiceResult<Arc<Catalog>> {
        let limit = self.timeout(None);
        match P::Runtime::timeout(limit, self.0.catalog.wait_read_index(false)).await {
            Ok(waited) => waited?,
            Err(_) => return Err(error(ErrorCode::NoLeader, "the catalog has no leader that answers")),
        }
        Ok(self.0.view.get())
    }

    /// The group of this name, waiting for it to be opened here when it is only just created.
    async fn group(&self, name: &str) -> ServiceResult<Arc<Group<P, T>>> {
        let id = match self.0.view.get().groups.get(name) {
            Some(entry) => entry.id,
            // This node may be behind.
            None => match self.fresh_catalog().await?.groups.get(name) {
                Some(entry) => entry.id,
                None => return Err(no_group(name)),
            },
        };
        self.opened(name, id).await
    }

    async fn opened(&self, name: &str, id: GroupId) -> ServiceResult<Arc<Group<P, T>>> {
        let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + self.timeout(None);
        loop {
            if let Some(group) = self.group_by_id(id) {
                return Ok(group);
            }
            if <P::Runtime as AsyncRuntime>::Instant::now() >= deadline || self.is_stopping() {
                let why =
                    lock(&self.0.failures).get(&id).cloned().unwrap_or_else(|| "it is still being opened".to_string());
                return Err(error(
                    ErrorCode::Unavailable,
                    format!("group {name} does not run on node {}: {why}", self.id()),
                ));
            }
            P::Runtime::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn change_catalog(&self, command: &CatalogCommand) -> ServiceResult<GroupId> {
        let payload = codec::encode(command).map_err(|failed| error(ErrorCode::Internal, failed.to_string()))?;
        let kind = EntryKind::Command { session: None, payload: payload.into() };
        let (_, answer) = self.0.catalog.propose(kind, self.timeout(None)).await?;
        let answer: CatalogAnswer =
            codec::decode(&answer?).map_err(|failed| error(ErrorCode::Internal, failed.to_string()))?;
        answer
    }

    async fn add_module(&self, name: String, wasm: Bytes) -> ServiceResult<ModuleView> {
        let info = self.gate(wasm.clone()).await?;
        if let Some(known) = self.0.view.get().modules.get(&name).filter(|known| known.digest != info.digest) {
            let detail = format!("module {name} exists, with digest {}", hex::encode(known.digest));
            return Err(error(ErrorCode::AlreadyExists, detail));
        }
        let size = wasm.len() as u64;
        self.spread(info.digest, wasm).await?;
        let exports = exports_of(&info);
        let command = CatalogCommand::AddModule { name: name.clone(), digest: info.digest, size, exports };
        self.change_catalog(&command).await?;
        let catalog = self.0.view.get();
        match catalog.modules.get(&name) {
            Some(entry) => Ok(module_view(&name, entry, &catalog)),
            None => Err(no_module(&name)),
        }
    }

    /// Tries the params on the module before anyone else has to: a group that cannot begin is not created.
    async fn try_params(&self, entry: &ModuleEntry, params: &[u8]) -> ServiceResult<()> {
        let wasm = self.module_bytes(&entry.digest).await.map_err(|failed| error(ErrorCode::Unavailable, failed))?;
        let modules = self.0.setup.modules.clone();
        let (limits, params) = (self.0.setup.settings.limits.clone(), params.to_vec());
        let context = Context { index: 0, time_ms: self.0.setup.platform.wall_ms(), seed: 0, session: 0 };
        let tried = self.0.setup.platform.run_guest(move || {
            let module = modules.load(&wasm).map_err(|failed| failed.to_string())?;
            let factory = WasmFactory { module, limits, params, context };
            factory.create().map(|_| ()).map_err(|failed| failed.to_string())
        });
        match tried.await {
            Some(Ok(())) => Ok(()),
            Some(Err(text)) => Err(error(ErrorCode::BadRequest, text)),
            None => Err(error(ErrorCode::Internal, "trying the params failed")),
        }
    }

    async fn create_group(&self, request: GroupRequest) -> ServiceResult<GroupView> {
        let GroupRequest { name, module, params, listen, listen_params } = request;
        let object = |value: serde_json::Value| match value {
            serde_json::Value::Null => b"{}".to_vec(),
            other => other.to_string().into_bytes(),
        };
        let (params, listen_params) = (object(params), object(listen_params));
        for address in &listen {
            if let Err(why) = with_offset(address, 0) {
                return Err(error(ErrorCode::BadRequest, format!("`listen` has {address:?}: {why}")));
            }
        }
        let mut catalog = self.0.view.get();
        if !catalog.modules.contains_key(&module) {
            catalog = self.fresh_catalog().await?;
        }
        let entry = catalog.modules.get(&module).ok_or_else(|| no_module(&module))?;
        if !listen.is_empty() && !entry.exports.iter().any(|export| export == "adapter") {
            let detail = format!("module {module} has no adapter (adapter_open, adapter_step) to listen with");
            return Err(error(ErrorCode::BadRequest, detail));
        }
        self.try_params(entry, &params).await?;
        let command = CatalogCommand::CreateGroup {
            name: name.clone(),
            module,
            digest: entry.digest,
            params,
            limits: self.0.setup.settings.limits.clone(),
            members: self.catalog_members(),
            listen,
            listen_params,
        };
        let id = self.change_catalog(&command).await?;
        let deadline = <P::Runtime as AsyncRuntime>::Instant::now() + self.timeout(None);
        let group = self.opened(&name, id).await?;
        // Ready means: it has a leader, and this node has seen the leader's first entry.
        while let Err(failed) = group.wait_read_index(false).await {
            if <P::Runtime as AsyncRuntime>::Instant::now() >= deadline || self.is_stopping() {
                // Not `no_leader`, which says that nothing was done: the group is there.
                let detail = format!("group {name} is created, but has not answered yet: {}", failed.detail);
                return Err(error(ErrorCode::Unavailable, detail));
            }
            P::Runtime::sleep(Duration::from_millis(5)).await;
        }
        self.view_of(&name).await
    }

    fn catalog_members(&self) -> BTreeMap<u64, String> {
        let members = self.0.catalog.standing().members;
        if members.is_empty() {
            return self.0.setup.members.clone();
        }
        members.into_iter().map(|member| (member.id, member.address)).collect()
    }

    async fn view_of(&self, name: &str) -> ServiceResult<GroupView> {
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
            params: json(&entry.params),
            listen: entry.listen.clone(),
            listen_params: json(&entry.listen_params),
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
            let why = lock(&self.0.failures).get(&entry.id).cloned();
            view.state = why.map_or("opening".to_string(), |why| format!("stopped: {why}"));
            return view;
        };
        if let Some(gateway) = lock(&self.0.gateways).get(&entry.id) {
            view.listeners = gateway.listeners();
            view.connections = gateway.connections();
        }
        let standing = group.standing();
        (view.sessions, view.timers) = group.tables().await;
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

    fn check_size(&self, what: &str, length: usize) -> ServiceResult<()> {
        let limit = self.0.setup.settings.command_bytes_max;
        if length as u64 <= limit {
            return Ok(());
        }
        Err(error(ErrorCode::TooLarge, format!("the {what} is {length} bytes; --command-bytes-max is {limit}")))
    }

    async fn apply_command(&self, request: ApplyRequest) -> ServiceResult<Applied> {
        self.check_size("command", request.command.len())?;
        if request.sequence.is_some() && request.session.is_none() {
            return Err(error(ErrorCode::BadSequence, "a sequence number needs a session"));
        }
        let group = self.group(&request.group).await?;
        let session =
            request.session.map(|(id, secret)| SessionUse { id, secret, sequence: request.sequence, attachment: None });
        let kind = EntryKind::Command { session, payload: request.command };
        let (index, answer) = group.propose(kind, self.timeout(request.timeout_ms)).await?;
        Ok(Applied { index, reply: answer? })
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
        Box::pin(async move { self.group(&name).await?.snapshot().await })
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
            let group = self.group(&group).await?;
            let id = session.map_or(0, |(id, _)| id);
            let (index, answer) = group.query(consistency, query, id, self.timeout(None)).await;
            // Not before: by now this replica has come as far as `consistency` asks, and knows the session.
            if let Some((id, secret)) = session {
                group.touch(id, secret).await?;
            }
            Ok(Applied { index, reply: answer? })
        })
    }

    fn session_open(&self, group: String, timeout_ms: u64) -> BoxFuture<'_, ServiceResult<SessionView>> {
        Box::pin(async move {
            let settings = &self.0.setup.settings;
            let timeout_ms = timeout_ms.clamp(settings.session_timeout_min_ms, settings.session_timeout_max_ms);
            let mut secret = [0; 16];
            self.0.setup.platform.fill_random(&mut secret);
            let group = self.group(&group).await?;
            let kind = EntryKind::OpenSession { secret, timeout_ms, attached: false };
            let (id, answer) = group.propose(kind, self.timeout(None)).await?;
            answer?;
            Ok(SessionView { id, secret: hex::encode(secret), timeout_ms })
        })
    }

    fn session_touch(&self, group: String, id: u64, secret: [u8; 16]) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move { self.group(&group).await?.touch(id, secret).await })
    }

    fn session_close(&self, group: String, id: u64, secret: [u8; 16]) -> BoxFuture<'_, ServiceResult<()>> {
        Box::pin(async move {
            let group = self.group(&group).await?;
            let (_, answer) = group
                .propose(EntryKind::CloseSession { id, secret: Some(secret), attachment: None }, self.timeout(None))
                .await?;
            answer.map(|_| ())
        })
    }

    fn events(&self, group: String, from: Option<u64>) -> BoxFuture<'_, ServiceResult<BoxStream<'static, EventItem>>> {
        Box::pin(async move { Ok(self.group(&group).await?.events().subscribe(from)) })
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
