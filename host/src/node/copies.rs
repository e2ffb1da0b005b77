//! Groups' state on its way into files that clients take away, and out of such files into new groups.
//!
//! Invariants:
//! - A file that leaves covers everything that was acknowledged before it was asked for, at one index.
//! - Nothing of a new group exists before its whole file was verified, the module was tried on it, and a majority of the
//!   group's first members holds it durably. What makes the group is one entry of the catalog, which names the file.
//! - A member that holds the file begins from it; one that does not begins with nothing, and is sent the state by those that
//!   do. It votes for them and never stands itself, so one holder and a majority of the members are enough to begin, and no
//!   replica ever begins with another state than the file's.
//! - Files that no group came to need are removed after [`UNUSED_TIME_MAX`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::forward::Replica;
use super::group_directory;
use super::lock;
use crate::catalog::Catalog;
use crate::catalog::CatalogCommand;
use crate::catalog::GroupEntry;
use crate::catalog::ModuleEntry;
use crate::catalog::no_module;
use crate::codec;
use crate::group::model::ModelFactory;
use crate::group::model::WasmFactory;
use crate::group::state::HostState;
use crate::module::Context;
use crate::module::Limits;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::CopyAnswer;
use crate::peer::message::CopyStep;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::platform::random_u64;
use crate::service::ErrorCode;
use crate::service::FileStream;
use crate::service::GroupView;
use crate::service::RestoreRequest;
use crate::service::SavedGroup;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::snapshot;
use crate::snapshot::BaseId;
use crate::snapshot::Bases;
use crate::snapshot::Head;
use crate::snapshot::HeldSnapshot;
use crate::snapshot::Made;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotFile;
use crate::snapshot::SnapshotStore;
use crate::types::GroupId;
use crate::types::NodeId;

/// Bytes in one message or one job of the disk.
const PART_BYTES: usize = 256 << 10;
/// One part may take so long on its way.
const PART_TIME_MAX: Duration = Duration::from_secs(10);
/// Writing or verifying a whole file may take so long.
pub(super) const FILE_TIME_MAX: Duration = Duration::from_secs(600);
/// A restored group may take so long until it has a leader: each member writes its first snapshot before.
const BEGIN_TIME_MAX: Duration = Duration::from_secs(600);
/// A file that nobody asked for, and no group begins from, is removed after this time.
const UNUSED_TIME_MAX: Duration = Duration::from_secs(3600);
/// A snapshot that another node reads is held open so long after the last read.
const UNREAD_TIME_MAX: Duration = Duration::from_secs(120);
/// So many snapshots may be read by other nodes at once: each keeps a file open.
const LENT_MAX: usize = 64;
/// No log comes so far. A file that says so is nobody's, and where indexes end no node could go on, nor start again.
const INDEX_MAX: u64 = 1 << 60;

type InstantOf<P> = <<P as Platform>::Runtime as AsyncRuntime>::Instant;

/// A snapshot that another node reads, and when it last did.
type Lent<P> = (HeldSnapshot, InstantOf<P>);

/// What a node keeps of files on their way.
pub(super) struct Copies<P: Platform> {
    bases: Arc<Bases>,
    /// When each file to begin from was last asked for in this life of the node.
    asked: Mutex<BTreeMap<BaseId, InstantOf<P>>>,
    lent: Mutex<BTreeMap<u64, Lent<P>>>,
}

impl<P: Platform> Copies<P> {
    pub(super) fn new(bases: Bases) -> Self {
        Self { bases: Arc::new(bases), asked: Mutex::default(), lent: Mutex::default() }
    }

    fn touch(&self, id: BaseId) {
        lock(&self.asked).insert(id, InstantOf::<P>::now());
    }
}

/// A file that this node received from a client: gone again unless it is kept.
struct Received {
    bases: Arc<Bases>,
    id: BaseId,
    kept: bool,
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.kept {
            // Found by the next tidying otherwise.
            let _gone = self.bases.remove(&self.id);
        }
    }
}

fn error(code: ErrorCode, detail: impl Into<String>) -> ServiceError {
    ServiceError::new(code, detail)
}

fn job_failed() -> ServiceError {
    error(ErrorCode::Internal, "a file job failed")
}

/// How an error of this node's disk, or of a file that came from elsewhere, looks to who sent or asked for the file.
fn of_file(failed: &SnapshotError) -> ServiceError {
    match failed {
        SnapshotError::Damaged { offset, reason, .. } => {
            error(ErrorCode::FileDamaged, format!("the file is no whole snapshot: at byte {offset}, {reason}"))
        }
        SnapshotError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            error(ErrorCode::DiskFull, failed.to_string())
        }
        other => error(ErrorCode::Internal, other.to_string()),
    }
}

/// What a file says of the group it is of.
struct Found {
    /// The module's name here.
    module: String,
    digest: [u8; 32],
    params: Vec<u8>,
    limits: Limits,
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// Does something with files where the disk may be waited for. A sync that failed ends the process (rule 2).
    async fn with_bases<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Bases) -> Result<R, SnapshotError> + Send + 'static,
    ) -> ServiceResult<R> {
        let bases = self.0.copies.bases.clone();
        match self.0.setup.platform.run_guest(move || job(&bases)).await {
            Some(Ok(done)) => Ok(done),
            Some(Err(failed)) => {
                if matches!(failed, SnapshotError::Sync { .. }) {
                    self.0.setup.platform.die(&failed.to_string());
                }
                Err(of_file(&failed))
            }
            None => Err(job_failed()),
        }
    }

    /// A snapshot of the group, from the replica that is here or from another node's.
    pub(super) async fn save_group(&self, name: &str) -> ServiceResult<SavedGroup> {
        match self.replica(name).await? {
            Replica::Here(group) => {
                let (index, held) = group.save(self.timeout(None)).await?;
                let (size, digest) = (held.size(), hex::encode(held.digest()));
                Ok(SavedGroup { index, size, digest, file: self.read_here(held) })
            }
            Replica::There(id, hosts) => {
                let mut failed = Vec::new();
                for host in hosts {
                    match self.copy_step(host, FILE_TIME_MAX, CopyStep::Take(id)).await {
                        Ok(CopyAnswer::Taken { number, index, size, digest }) => {
                            let file = self.read_there(host, number, size);
                            return Ok(SavedGroup { index, size, digest: hex::encode(digest), file });
                        }
                        Ok(_) => failed.push(format!("node {host} answered something else")),
                        Err(why) => failed.push(why.detail),
                    }
                }
                let detail = format!("group {name} is on other nodes, and {}", failed.join("; "));
                Err(error(ErrorCode::Unavailable, detail))
            }
        }
    }

    fn read_here(&self, held: HeldSnapshot) -> FileStream {
        let platform = self.0.setup.platform.clone();
        let next = move |offset: u64| {
            let (held, platform) = (held.clone(), platform.clone());
            async move {
                if offset >= held.size() {
                    return None;
                }
                let read = platform.run_guest(move || held.read(offset, PART_BYTES)).await;
                Some(read.unwrap_or_else(|| Err(io::Error::other("a file job failed"))))
            }
        };
        pieces(next)
    }

    fn read_there(&self, host: NodeId, number: u64, size: u64) -> FileStream {
        let node = self.clone();
        let next = move |offset: u64| {
            let node = node.clone();
            async move {
                if offset >= size {
                    return None;
                }
                Some(match node.copy_step(host, PART_TIME_MAX, CopyStep::Read { number, offset }).await {
                    Ok(CopyAnswer::Bytes(bytes)) if !bytes.is_empty() => Ok(bytes.into()),
                    Ok(_) => Err(io::Error::other(format!("node {host} answered something else"))),
                    Err(why) => Err(io::Error::other(why)),
                })
            }
        };
        pieces(next)
    }

    /// One step at another node.
    async fn copy_step(&self, node: NodeId, limit: Duration, step: CopyStep) -> ServiceResult<CopyAnswer> {
        let asked = call::<P::Runtime, T>(&self.0.setup.transport, node, Lane::Bulk, &PeerRequest::Copy(step));
        let failed = match P::Runtime::timeout(limit, asked).await {
            Ok(Ok(PeerResponse::Copied(CopyAnswer::Failed(why)))) => {
                return Err(ServiceError { detail: format!("node {node}: {}", why.detail), ..why });
            }
            Ok(Ok(PeerResponse::Copied(answer))) => return Ok(answer),
            Ok(Ok(other)) => format!("node {node} answered {other:?}"),
            Ok(Err(why)) => why.to_string(),
            Err(_) => format!("node {node} did not answer within {} s", limit.as_secs()),
        };
        Err(error(ErrorCode::Unavailable, failed))
    }

    /// Answers another node's [`PeerRequest::Copy`].
    pub(super) async fn answer_copy(&self, step: CopyStep) -> CopyAnswer {
        self.take_step(step).await.unwrap_or_else(CopyAnswer::Failed)
    }

    async fn take_step(&self, step: CopyStep) -> ServiceResult<CopyAnswer> {
        match step {
            CopyStep::Take(id) => self.lend(id).await,
            CopyStep::Read { number, offset } => {
                let lent = lock(&self.0.copies.lent).get_mut(&number).map(|(held, read)| {
                    *read = InstantOf::<P>::now();
                    held.clone()
                });
                let held = lent.ok_or_else(|| {
                    error(ErrorCode::Unavailable, "that snapshot is not held open any more: ask for it again")
                })?;
                let size = held.size();
                let read = self.0.setup.platform.run_guest(move || held.read(offset, PART_BYTES)).await;
                match read.ok_or_else(job_failed)? {
                    Ok(bytes) => {
                        if offset.saturating_add(bytes.len() as u64) >= size {
                            lock(&self.0.copies.lent).remove(&number);
                        }
                        Ok(CopyAnswer::Bytes(bytes.into()))
                    }
                    Err(why) => Err(error(ErrorCode::Internal, format!("the snapshot cannot be read: {why}"))),
                }
            }
            CopyStep::Begin(base) => {
                self.0.copies.touch(base);
                self.with_bases(move |bases| bases.begin(base)).await.map(|()| CopyAnswer::Done)
            }
            CopyStep::Part { base, offset, data } => {
                self.0.copies.touch(base);
                self.with_bases(move |bases| bases.part(base, offset, &data)).await.map(CopyAnswer::Offset)
            }
            CopyStep::Finish { base, digest } => {
                self.0.copies.touch(base);
                let (_, file) = self.with_bases(move |bases| bases.finish(base)).await?;
                if file.digest() == digest {
                    return Ok(CopyAnswer::Done);
                }
                self.drop_base(base).await;
                Err(error(ErrorCode::FileDamaged, "what arrived is another file than the one that was sent"))
            }
            CopyStep::Hold(base) => {
                self.0.copies.touch(base);
                match self.with_bases(move |bases| Ok(bases.is_held(&base))).await? {
                    true => Ok(CopyAnswer::Done),
                    false => Err(error(ErrorCode::Unavailable, "the file is not held any more")),
                }
            }
            CopyStep::Drop(base) => {
                self.drop_base(base).await;
                Ok(CopyAnswer::Done)
            }
        }
    }

    /// Opens a snapshot for another node to read.
    async fn lend(&self, id: GroupId) -> ServiceResult<CopyAnswer> {
        let group = self.group_by_id(id);
        let group = group.ok_or_else(|| error(ErrorCode::Unavailable, format!("group {id} does not run here")))?;
        if lock(&self.0.copies.lent).len() >= LENT_MAX {
            return Err(error(ErrorCode::Overloaded, format!("{LENT_MAX} snapshots are being read already")));
        }
        let (index, held) = group.save(self.timeout(None)).await?;
        let (size, digest) = (held.size(), held.digest());
        let number = random_u64(&self.0.setup.platform);
        lock(&self.0.copies.lent).insert(number, (held, InstantOf::<P>::now()));
        Ok(CopyAnswer::Taken { number, index, size, digest })
    }

    async fn drop_base(&self, base: BaseId) {
        let dropped = self.with_bases(move |bases| {
            // What cannot be removed now is removed by the next tidying.
            let _gone = bases.remove(&base);
            Ok(())
        });
        let _told_in_the_log = dropped.await;
    }

    /// Removes what nobody asked for in a while. Runs as long as the node does.
    pub(super) async fn tidy_copies(&self) {
        let now = InstantOf::<P>::now();
        lock(&self.0.copies.lent).retain(|_, (_, read)| now - *read < UNREAD_TIME_MAX);
        let Ok(all) = self.with_bases(|bases| Ok(bases.all().unwrap_or_default())).await else { return };
        let unused: Vec<BaseId> = {
            let mut asked = lock(&self.0.copies.asked);
            asked.retain(|id, _| all.contains(id));
            let old = |id: &BaseId| now - *asked.entry(*id).or_insert(now) >= UNUSED_TIME_MAX;
            all.into_iter().filter(old).collect()
        };
        if !unused.is_empty() {
            self.drop_unneeded(unused).await;
        }
    }

    /// Removes those of the files that no group here is to begin from.
    async fn drop_unneeded(&self, files: Vec<BaseId>) {
        // Who was cut off may not have heard of the group yet, for however long.
        let Ok(catalog) = self.fresh_catalog().await else { return };
        let needed = |id: &BaseId| {
            let begins = |entry: &GroupEntry| entry.base == Some(*id) && entry.hosts.contains(&self.id());
            catalog.groups.values().any(|entry| begins(entry) && self.group_by_id(entry.id).is_none())
        };
        for id in files.into_iter().filter(|id| !needed(id)) {
            tracing::warn!(file = hex::encode(id), "no group came to begin from this file: it is removed");
            self.drop_base(id).await;
        }
    }

    /// See [`crate::service::Service::group_restore`].
    pub(super) async fn restore_group(&self, request: RestoreRequest, file: FileStream) -> ServiceResult<GroupView> {
        let catalog = self.fresh_catalog().await?;
        self.check_new_group(&request.name, &request.listen, &catalog)?;
        self.first_members(&catalog, request.replicas)?;
        let mut id = BaseId::default();
        self.0.setup.platform.fill_random(&mut id);
        let mut received = Received { bases: self.0.copies.bases.clone(), id, kept: false };
        let (head, file) = self.receive_base(id, file).await?;
        // The file may have taken long to come.
        let catalog = self.fresh_catalog().await?;
        self.check_new_group(&request.name, &request.listen, &catalog)?;
        let found = look_up(&catalog, &request, &head, &self.0.setup.settings.limits)?;
        let entry = catalog.modules.get(&found.module).ok_or_else(|| no_module(&found.module))?;
        entry.check_listens(&found.module, &request.listen)?;
        self.try_base(id, entry, &found).await?;
        let members = self.first_members(&catalog, request.replicas)?;
        self.spread_base(id, file, &members).await?;
        if let Err(why) = self.check_again(&request, &members).await {
            self.drop_bases(id, &members).await;
            return Err(why);
        }
        let here = members.contains_key(&self.id());
        let command = CatalogCommand::CreateGroup {
            name: request.name.clone(),
            module: found.module,
            digest: found.digest,
            params: found.params,
            limits: found.limits,
            members: members.clone(),
            replicas: request.replicas,
            listen: request.listen,
            listen_params: super::service::object(&request.listen_params),
            base: Some(id),
        };
        // From here on the group may begin from it, whatever becomes of this call; what no group needs is removed later.
        received.kept = here;
        let created = self.change_catalog(&command).await;
        if let Err(ErrorCode::AlreadyExists | ErrorCode::ModuleNotFound) = created.as_ref().map_err(|why| why.code) {
            received.kept = false;
            self.drop_bases(id, &members).await;
        }
        let group = created?;
        self.wait_until_led(&request.name, group, BEGIN_TIME_MAX).await?;
        self.view_of(&request.name).await
    }

    /// Whether all is as it was before the file was sent around, which may have taken long.
    async fn check_again(&self, request: &RestoreRequest, members: &BTreeMap<NodeId, String>) -> ServiceResult<()> {
        let catalog = self.fresh_catalog().await?;
        self.check_new_group(&request.name, &request.listen, &catalog)?;
        let nodes = self.full_nodes();
        match members.keys().find(|member| !nodes.contains_key(member)) {
            Some(gone) => {
                let detail = format!("node {gone}, which was to hold the group, left meanwhile: nothing was made");
                Err(error(ErrorCode::Unavailable, detail))
            }
            None => Ok(()),
        }
    }

    /// Takes the file in, piece by piece.
    async fn receive_base(&self, id: BaseId, mut file: FileStream) -> ServiceResult<(Head, SnapshotFile)> {
        self.0.copies.touch(id);
        self.with_bases(move |bases| bases.begin(id)).await?;
        let (mut offset, mut pending) = (0, Vec::with_capacity(PART_BYTES));
        loop {
            let piece = match file.next().await {
                Some(Ok(piece)) => piece,
                Some(Err(why)) => {
                    let got = offset + pending.len() as u64;
                    return Err(error(ErrorCode::BadRequest, format!("the file broke off after {got} bytes: {why}")));
                }
                None => break,
            };
            pending.extend_from_slice(&piece);
            if pending.len() >= PART_BYTES {
                let part = std::mem::replace(&mut pending, Vec::with_capacity(PART_BYTES));
                offset = self.with_bases(move |bases| bases.part(id, offset, &part)).await?;
            }
        }
        self.with_bases(move |bases| {
            bases.part(id, offset, &pending)?;
            bases.finish(id)
        })
        .await
    }

    /// Tries the module on the file before anyone else has to: a group that cannot begin is not created.
    async fn try_base(&self, id: BaseId, entry: &ModuleEntry, found: &Found) -> ServiceResult<()> {
        let wasm = self.module_bytes(&entry.digest).await.map_err(|why| error(ErrorCode::Unavailable, why))?;
        let (modules, bases) = (self.0.setup.modules.clone(), self.0.copies.bases.clone());
        let (limits, params, digest) = (found.limits.clone(), found.params.clone(), entry.digest);
        let tried = self.0.setup.platform.run_guest(move || {
            let module = modules.load(&wasm).map_err(|why| why.to_string())?;
            let context = Context { index: 0, time_ms: 0, seed: 0, session: 0 };
            let factory = WasmFactory::trial(module, limits, params, context);
            let base = bases.reader(&id).map_err(|why| why.to_string())?;
            let (head, mut payload) = base.ok_or("the file is gone")?;
            codec::decode::<HostState>(&head.host_state).map_err(|why| why.to_string())?;
            factory.restore(digest, &mut payload).map(drop).map_err(|why| why.to_string())
        });
        match tried.await {
            Some(Ok(())) => Ok(()),
            Some(Err(why)) => {
                let detail = format!("module {} cannot begin from the file: {why}", found.module);
                Err(error(ErrorCode::FileDamaged, detail))
            }
            None => Err(job_failed()),
        }
    }

    /// Gives the file to the other members, until a majority of all holds it.
    async fn spread_base(
        &self,
        id: BaseId,
        file: SnapshotFile,
        members: &BTreeMap<NodeId, String>,
    ) -> ServiceResult<()> {
        let held = self.with_bases(move |_| file.hold()).await?;
        let others = self.others(members);
        let sent = join_all(others.iter().map(|member| self.send_base(*member, id, held.clone()))).await;
        // Whoever was first may have waited long for whoever was last.
        let asked = others.iter().zip(sent).map(|(member, sent)| async move {
            sent?;
            self.copy_step(*member, PART_TIME_MAX, CopyStep::Hold(id)).await.map(drop)
        });
        let failed: Vec<ServiceError> = join_all(asked).await.into_iter().filter_map(Result::err).collect();
        self.0.copies.touch(id);
        let holders = members.len() - failed.len();
        let majority = members.len() / 2 + 1;
        if holders >= majority {
            for why in failed {
                tracing::warn!(%why, "a member of the group does not hold its file: it learns the state from the others");
            }
            return Ok(());
        }
        self.drop_bases(id, members).await;
        let full = failed.iter().any(|why| why.code == ErrorCode::DiskFull);
        let code = if full { ErrorCode::DiskFull } else { ErrorCode::Unavailable };
        let why: Vec<String> = failed.into_iter().map(|why| why.detail).collect();
        Err(error(code, format!("{holders} of {majority} necessary nodes hold the file: {}", why.join("; "))))
    }

    fn others(&self, members: &BTreeMap<NodeId, String>) -> Vec<NodeId> {
        members.keys().copied().filter(|member| *member != self.id()).collect()
    }

    async fn drop_bases(&self, id: BaseId, members: &BTreeMap<NodeId, String>) {
        let others = self.others(members);
        let told = others.iter().map(|member| self.copy_step(*member, PART_TIME_MAX, CopyStep::Drop(id)));
        // Who was not reached tidies up by itself.
        drop(join_all(told).await);
    }

    async fn send_base(&self, to: NodeId, base: BaseId, held: HeldSnapshot) -> ServiceResult<()> {
        let (size, digest) = (held.size(), held.digest());
        self.copy_step(to, PART_TIME_MAX, CopyStep::Begin(base)).await?;
        let mut offset = 0;
        while offset < size {
            let held = held.clone();
            let read = self.0.setup.platform.run_guest(move || held.read(offset, PART_BYTES)).await;
            let data = read.ok_or_else(job_failed)?;
            let data = data.map_err(|why| error(ErrorCode::Internal, format!("the file cannot be read: {why}")))?;
            // As snapshots on their way to followers, and with them.
            self.0.common.transfers.pace(data.len()).await;
            let part = CopyStep::Part { base, offset, data: Bytes::from(data) };
            offset = match self.copy_step(to, PART_TIME_MAX, part).await? {
                CopyAnswer::Offset(next) if next > offset => next,
                _ => return Err(error(ErrorCode::Unavailable, format!("node {to} does not take the file"))),
            };
        }
        self.copy_step(to, FILE_TIME_MAX, CopyStep::Finish { base, digest }).await.map(drop)
    }

    /// Writes the first snapshot of a group that begins from a file, if this node is one of its first members, holds the file, and
    /// has no snapshot of the group yet. If not, the replica here learns everything from the others.
    pub(super) async fn begin_from(&self, base: BaseId, entry: &GroupEntry, made: Vec<u8>) -> io::Result<()> {
        let setup = &self.0.setup;
        let (disk, keep, floor) =
            (setup.disk.clone(), setup.settings.snapshots_kept, self.0.common.space.floor_bytes());
        let directory = group_directory(&setup.data_dir, entry.id);
        let (node, group, members) = (self.id(), entry.id, entry.members.clone());
        let begun = self.with_bases(move |bases| {
            let store = SnapshotStore::open(disk, directory, keep, floor)?;
            if store.is_empty()? && members.contains_key(&node) {
                match first_snapshot(bases, base, &store, group, &members, made) {
                    Ok(Some(first)) => {
                        tracing::info!(group, file = %first.path().display(), "the group begins from a file");
                    }
                    Ok(None) => {}
                    Err(error @ SnapshotError::Damaged { .. }) if members.len() > 1 => {
                        tracing::error!(group, %error, "the group begins here with what the others have");
                    }
                    Err(error) => return Err(error),
                }
            }
            // Found by the next tidying otherwise.
            let _gone = bases.remove(&base);
            Ok(())
        });
        begun.await.map_err(io::Error::other)
    }
}

fn first_snapshot(
    bases: &Bases,
    base: BaseId,
    store: &SnapshotStore,
    group: GroupId,
    members: &BTreeMap<NodeId, String>,
    made: Vec<u8>,
) -> Result<Option<SnapshotFile>, SnapshotError> {
    match bases.reader(&base)? {
        Some(held) => snapshot::begin(store, held, group, members, made).map(Some),
        None => Ok(None),
    }
}

/// Which module here can go on with the file, and what the group was made with.
fn look_up(catalog: &Catalog, request: &RestoreRequest, head: &Head, limits: &Limits) -> ServiceResult<Found> {
    let digest = head.module;
    if digest == [0; 32] {
        return Err(error(ErrorCode::BadRequest, "the file is a snapshot of the catalog, not of a group"));
    }
    let index = head.last_log_id.index;
    if index > INDEX_MAX {
        return Err(error(
            ErrorCode::FileDamaged,
            format!("the file says that it covers index {index}: no log has it"),
        ));
    }
    let made = head.made().map_err(|why| {
        let detail =
            format!("the file says what its group was made with in a way that this version does not know: {why}");
        error(ErrorCode::BadRequest, detail)
    })?;
    let made = made.unwrap_or_else(|| Made {
        group: String::new(),
        module: String::new(),
        params: serde_json::json!({}),
        limits: limits.clone(),
    });
    let text = hex::encode(digest);
    let name = match &request.module {
        Some(name) => {
            let entry = catalog.modules.get(name).ok_or_else(|| no_module(name))?;
            if entry.digest != digest {
                let detail = format!(
                    "the file was written by a module with the digest {text}; module {name} has {}",
                    hex::encode(entry.digest)
                );
                return Err(ServiceError {
                    reason: Some("other_module".into()),
                    ..error(ErrorCode::BadRequest, detail)
                });
            }
            name.clone()
        }
        None => {
            let same = |(_, entry): &(&String, &ModuleEntry)| entry.digest == digest;
            let mut names = catalog.modules.iter().filter(same).map(|(name, _)| name.clone());
            let known = names.clone().find(|name| *name == made.module).or_else(|| names.next());
            known.ok_or_else(|| {
                let called = if made.module.is_empty() { String::new() } else { format!(" {:?}", made.module) };
                let detail = format!(
                    "the file was written by a module{called} with the digest {text}, which this cluster does not have"
                );
                error(ErrorCode::ModuleNotFound, detail)
            })?
        }
    };
    let params = super::service::object(&made.params);
    Ok(Found { module: name, digest, params, limits: made.limits })
}

/// Pieces from offset 0 on, until `next` has no more or fails.
fn pieces<F>(next: impl Fn(u64) -> F + Send + 'static) -> FileStream
where
    F: Future<Output = Option<io::Result<Vec<u8>>>> + Send + 'static,
{
    stream::unfold((Some(0), next), |(offset, next)| async move {
        match next(offset?).await? {
            Ok(piece) => {
                let end = offset?.saturating_add(piece.len() as u64);
                Some((Ok(Bytes::from(piece)), (Some(end), next)))
            }
            Err(why) => Some((Err(why), (None, next))),
        }
    })
    .boxed()
}
