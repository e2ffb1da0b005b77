//! Module files of the cluster: gate, compile, keep, spread, fetch, remove.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use sha2::Digest;
use sha2::Sha256;

use super::Inner;
use super::Node;
use super::SWEEP_PATIENCE;
use super::lock;
use crate::catalog::Catalog;
use crate::group::model::ModuleSource;
use crate::module::CodeCache;
use crate::module::Engine;
use crate::module::Limits;
use crate::module::Module;
use crate::module::ModuleError;
use crate::module::ModuleInfo;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::service::ServiceResult;

/// How long a peer may take to store a module.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);
/// A file that the catalog does not name stays so long after it was stored: so long an upload may take to name it.
const UNNAMED_TIME_MAX: Duration = Duration::from_secs(600);

/// The module files that are here, how often each was stored, and since when it was not stored again: as far as this life of the node
/// knows, so at the longest since its start.
pub(super) type Stored<P> = BTreeMap<[u8; 32], (u64, <<P as Platform>::Runtime as AsyncRuntime>::Instant)>;

/// Compiles each module once.
pub struct ModuleHost {
    engine: Engine,
    cache: Option<Box<dyn CodeCache>>,
    loaded: Mutex<BTreeMap<[u8; 32], Module>>,
}

impl ModuleHost {
    /// Compiled code is kept in `cache` when there is one.
    pub fn new(cache: Option<Box<dyn CodeCache>>) -> Result<Self, ModuleError> {
        Ok(Self { engine: Engine::new()?, cache, loaded: Mutex::default() })
    }

    /// The upload gate.
    pub fn gate(&self, wasm: &[u8], limits: &Limits) -> ServiceResult<ModuleInfo> {
        let digest: [u8; 32] = Sha256::digest(wasm).into();
        let loaded = lock(&self.loaded).get(&digest).cloned();
        self.engine.admit(wasm, limits, loaded, self.cache.as_deref()).map_err(|refused| ServiceError {
            reason: Some(refused.code.as_str().to_string()),
            ..ServiceError::new(ErrorCode::ModuleRefused, format!("{}: {}", refused.what, refused.remedy))
        })
    }

    /// The compiled module.
    pub fn load(&self, wasm: &[u8]) -> Result<Module, ModuleError> {
        let digest: [u8; 32] = Sha256::digest(wasm).into();
        if let Some(module) = lock(&self.loaded).get(&digest) {
            return Ok(module.clone());
        }
        let module = self.engine.load(wasm, self.cache.as_deref())?;
        lock(&self.loaded).insert(digest, module.clone());
        Ok(module)
    }

    /// Whoever runs it goes on; who needs it again loads it anew.
    fn forget(&self, digest: &[u8; 32]) {
        lock(&self.loaded).remove(digest);
    }

    /// Compiled code of other modules is not needed here.
    fn keep_code(&self, needed: impl Fn(&[u8; 32]) -> bool) {
        if let Some(cache) = &self.cache {
            cache.retain(&needed);
        }
    }
}

/// The modules whose files must stay: those that the catalog has a name for, those that its groups ran or are to run, and those that
/// replicas here run, which may be ahead of the catalog here.
fn needed(catalog: &Catalog, replicas: impl IntoIterator<Item = [u8; 32]>) -> BTreeSet<[u8; 32]> {
    catalog.modules_needed().into_iter().chain(replicas).collect()
}

/// The node as its groups' source of modules. It does not keep the node.
struct Source<P: Platform, T: Transport>(Weak<Inner<P, T>>);

impl<P: Platform, T: Transport> ModuleSource for Source<P, T> {
    fn module(&self, digest: [u8; 32]) -> BoxFuture<'static, Result<Module, String>> {
        let node = self.0.upgrade().map(Node);
        Box::pin(async move {
            let node = node.ok_or_else(|| "the node stops".to_string())?;
            node.compiled(digest).await
        })
    }
}

/// The optional exports of a module, as the catalog keeps them.
pub fn exports_of(info: &ModuleInfo) -> Vec<String> {
    let all = [
        (info.has_timer, "timer"),
        (info.has_session_end, "session_end"),
        (info.has_migrate, "migrate"),
        (info.has_adapter, "adapter"),
    ];
    all.iter().filter(|(has, _)| *has).map(|(_, name)| name.to_string()).collect()
}

impl<P: Platform, T: Transport> Node<P, T> {
    pub(super) fn module_source(&self) -> impl ModuleSource {
        Source(Arc::downgrade(&self.0))
    }

    /// The compiled module, from here or from a peer.
    pub(super) async fn compiled(&self, digest: [u8; 32]) -> Result<Module, String> {
        let wasm = self.module_bytes(&digest).await?;
        let modules = self.0.setup.modules.clone();
        let module = self.0.setup.platform.run_guest(move || modules.load(&wasm)).await;
        module.ok_or_else(|| "compiling the module failed".to_string())?.map_err(|error| error.to_string())
    }

    /// Runs the gate where guest code may run.
    pub(super) async fn gate(&self, wasm: Bytes) -> ServiceResult<ModuleInfo> {
        let (modules, limits) = (self.0.setup.modules.clone(), self.0.setup.settings.limits.clone());
        // It goes with the job, which goes on when nobody waits for it any more.
        let turn = self.0.gates.clone().acquire_owned().await;
        let job = move || {
            let _turn = turn;
            modules.gate(&wasm, &limits)
        };
        let checked = self.0.setup.platform.run_guest(job).await;
        checked.unwrap_or_else(|| Err(ServiceError::new(ErrorCode::Internal, "the upload gate failed")))
    }

    /// Keeps the file here and at enough other nodes that a majority holds it durably.
    pub(super) async fn spread(&self, digest: [u8; 32], wasm: Bytes) -> ServiceResult<()> {
        let files = self.0.files.clone();
        let bytes = wasm.clone();
        let kept = self.0.setup.platform.run_guest(move || files.write(&digest, &bytes)).await;
        match kept {
            Some(Ok(())) => {}
            Some(Err(error)) if error.kind() == std::io::ErrorKind::StorageFull => {
                return Err(ServiceError::new(ErrorCode::DiskFull, format!("the module cannot be kept: {error}")));
            }
            Some(Err(error)) => {
                return Err(ServiceError::new(ErrorCode::Internal, format!("the module cannot be kept: {error}")));
            }
            None => return Err(ServiceError::new(ErrorCode::Internal, "the module cannot be kept")),
        }
        let members = self.members();
        let majority = members.len() / 2 + 1;
        let mut holders = 1;
        let mut failed = Vec::new();
        let request = PeerRequest::ModuleStore { digest, data: wasm };
        let mut answers: FuturesUnordered<_> = members
            .into_iter()
            .filter(|id| *id != self.id())
            .map(|id| {
                let sent = call::<P::Runtime, T>(&self.0.setup.transport, id, Lane::Bulk, &request);
                async move { (id, P::Runtime::timeout(STORE_TIMEOUT, sent).await) }
            })
            .collect();
        while holders < majority {
            match answers.next().await {
                Some((_, Ok(Ok(PeerResponse::Done)))) => holders += 1,
                Some((_, Ok(Err(error)))) => failed.push(error.to_string()),
                Some((id, Ok(Ok(other)))) => failed.push(format!("node {id} answered {other:?}")),
                Some((id, Err(_))) => {
                    failed.push(format!("node {id} has not stored it within {} s", STORE_TIMEOUT.as_secs()));
                }
                None => {
                    let detail =
                        format!("{holders} of {majority} necessary nodes hold the module: {}", failed.join("; "));
                    return Err(ServiceError::new(ErrorCode::Unavailable, detail));
                }
            }
        }
        // The others are told too, but not waited for; whoever misses it fetches it later.
        drop(P::Runtime::spawn(async move { while answers.next().await.is_some() {} }));
        Ok(())
    }

    fn members(&self) -> Vec<u64> {
        let known: Vec<u64> = self.0.catalog.standing().members.iter().map(|member| member.id).collect();
        if known.is_empty() { self.0.setup.members.keys().copied().collect() } else { known }
    }

    /// The file's bytes: from here, else from a peer, and then kept here.
    pub(super) async fn module_bytes(&self, digest: &[u8; 32]) -> Result<Bytes, String> {
        let digest = *digest;
        let files = self.0.files.clone();
        let here = self.0.setup.platform.run_guest(move || files.read(&digest)).await;
        match here {
            Some(Ok(Some(bytes))) => return Ok(Bytes::from(bytes)),
            Some(Ok(None)) => {}
            Some(Err(error)) => {
                let now = <P::Runtime as AsyncRuntime>::Instant::now();
                if let Some(times) = self.0.common.repeats.came(&error.to_string(), now) {
                    tracing::warn!(%error, times, "a module file cannot be read; it is fetched from a peer");
                }
            }
            None => return Err("reading a module file failed".to_string()),
        }
        let mut failed = Vec::new();
        for id in self.members().into_iter().filter(|id| *id != self.id()) {
            let request = PeerRequest::ModuleFetch { digest };
            let sent = call::<P::Runtime, T>(&self.0.setup.transport, id, Lane::Bulk, &request);
            match P::Runtime::timeout(STORE_TIMEOUT, sent).await {
                Ok(Ok(PeerResponse::Module(Some(bytes)))) if <[u8; 32]>::from(Sha256::digest(&bytes)) == digest => {
                    let (files, copy) = (self.0.files.clone(), bytes.clone());
                    if let Some(Err(error)) = self.0.setup.platform.run_guest(move || files.write(&digest, &copy)).await
                    {
                        tracing::warn!(%error, "a fetched module file cannot be kept");
                    }
                    return Ok(bytes);
                }
                Ok(Ok(_)) => failed.push(format!("node {id} does not have it")),
                Ok(Err(error)) => failed.push(error.to_string()),
                Err(_) => failed.push(format!("node {id} did not answer")),
            }
        }
        if failed.is_empty() {
            failed.push("there is no other node to ask; push its file again".to_owned());
        }
        Err(format!("the module {} is not here, and {}", hex::encode(digest), failed.join("; ")))
    }

    /// See [`needed`]. `None` while that is not known: what a group is opened with says its snapshot, once it is open, and a node that
    /// repairs itself knows a catalog of long ago.
    fn needed_modules(&self) -> Option<BTreeSet<[u8; 32]>> {
        let catalog = self.0.view.get();
        let groups = lock(&self.0.groups);
        let mut here = catalog.groups.values().filter(|entry| entry.hosts.contains(&self.id()));
        if self.repair().is_some() || here.any(|entry| !groups.contains_key(&entry.id)) {
            return None;
        }
        Some(needed(&catalog, groups.values().flat_map(|group| group.modules())))
    }

    /// Removes the files of modules that are needed no more: the bytes, what is loaded, and the compiled code.
    ///
    /// An upload that is acknowledged is not lost by that, whatever time it took. It is stored at a majority, then named by the catalog,
    /// then stored at a majority again, and only then acknowledged. A node takes note how often a file was stored, *then* asks for the
    /// catalog of now, and removes the file only if it was not stored since. Either the second storing came after the note, and the
    /// file stays; or the module was named before the catalog was asked for, and the file stays as long as it is named.
    /// [`UNNAMED_TIME_MAX`] is not what this rests on: it keeps uploads under way from being disturbed.
    ///
    /// Nothing says what was about to be removed: whatever a crash leaves is found again, as any file that nobody names.
    pub(super) async fn tidy_modules(&self, stored: &mut Stored<P>) {
        let platform = &self.0.setup.platform;
        let files = self.0.files.clone();
        let Some(Ok(mut all)) = platform.run_guest(move || files.all()).await else { return };
        let now = <P::Runtime as AsyncRuntime>::Instant::now();
        stored.retain(|digest, (writes, _)| all.get(digest) == Some(writes));
        for (digest, writes) in &all {
            stored.entry(*digest).or_insert((*writes, now));
        }
        let old = |digest: &[u8; 32]| stored.get(digest).is_some_and(|(_, since)| now - *since >= UNNAMED_TIME_MAX);
        let Some(mut needed) = self.needed_modules() else { return };
        if all.keys().any(|digest| old(digest) && !needed.contains(digest)) {
            // What is applied here may be of a time before it was named.
            let asked = P::Runtime::timeout(SWEEP_PATIENCE, self.0.catalog.wait_read_index(false));
            if !matches!(asked.await, Ok(Ok(()))) {
                return;
            }
            let Some(now_needed) = self.needed_modules() else { return };
            needed = now_needed;
            let unneeded: BTreeMap<[u8; 32], u64> =
                all.extract_if(.., |digest, _| old(digest) && !needed.contains(digest)).collect();
            let (files, modules) = (self.0.files.clone(), self.0.setup.modules.clone());
            let remove = move || {
                for (digest, writes) in unneeded {
                    let module = hex::encode(digest);
                    modules.forget(&digest);
                    match files.remove(&digest, writes) {
                        Ok(true) => {
                            tracing::info!(module, "no module of the cluster has this file any more: it is removed")
                        }
                        Ok(false) => {}
                        Err(error) => tracing::warn!(module, %error, "the file of a removed module is still there"),
                    }
                }
            };
            platform.run_guest(remove).await.unwrap_or_default();
        }
        // Also of modules that were only tried.
        let modules = self.0.setup.modules.clone();
        let keep = move || modules.keep_code(|digest| needed.contains(digest) || all.contains_key(digest));
        platform.run_guest(keep).await.unwrap_or_default();
    }

    pub(super) async fn answer_module(
        &self,
        request: PeerRequest<P::Runtime>,
    ) -> Result<PeerResponse<P::Runtime>, String> {
        let files: crate::catalog::files::ModuleFiles = self.0.files.clone();
        let failed = || "a file job failed".to_string();
        match request {
            PeerRequest::ModuleStore { digest, data } => {
                let stored = self.0.setup.platform.run_guest(move || {
                    if <[u8; 32]>::from(Sha256::digest(&data)) != digest {
                        return Err("the module's bytes do not have its digest".to_string());
                    }
                    files.write(&digest, &data).map_err(|error| error.to_string())
                });
                stored.await.ok_or_else(failed)?.map(|()| PeerResponse::Done)
            }
            PeerRequest::ModuleFetch { digest } => {
                let found = self.0.setup.platform.run_guest(move || files.read(&digest)).await.ok_or_else(failed)?;
                let found = found.map_err(|error| error.to_string())?;
                Ok(PeerResponse::Module(found.map(Bytes::from)))
            }
            other => Err(format!("{other:?} is not about modules")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::ModuleEntry;

    /// The same file under two names, and one that only a replica here would be opened with.
    #[test]
    fn a_file_is_needed_as_long_as_anything_names_it() {
        let entry = |digest| ModuleEntry { digest, size: 1, created_ms: 0, exports: Vec::new() };
        let mut catalog = Catalog::default();
        catalog.modules.insert("a".to_owned(), entry([1; 32]));
        catalog.modules.insert("b".to_owned(), entry([1; 32]));
        assert_eq!(needed(&catalog, [[2; 32], [2; 32]]), BTreeSet::from([[1; 32], [2; 32]]));
        catalog.modules.remove("a");
        assert_eq!(needed(&catalog, []), BTreeSet::from([[1; 32]]));
        catalog.modules.remove("b");
        assert_eq!(needed(&catalog, []), BTreeSet::new());
    }
}
