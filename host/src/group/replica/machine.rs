//! The replica as openraft sees it.

use futures_util::Stream;
use futures_util::StreamExt;
use openraft::OptionalSend;
use openraft::RaftSnapshotBuilder;
use openraft::alias::SnapshotMetaOf;
use openraft::alias::SnapshotOf;
use openraft::storage::RaftStateMachine;

use super::change::Opening;
use super::change::modules_of;
use super::change::wait_for_module;
use super::*;

/// openraft's handle on the replica.
pub struct StateMachine<P: Platform> {
    shared: Arc<Shared>,
    factory: Arc<dyn ModelFactory>,
    store: SnapshotStore,
    platform: P,
    opening: Arc<Opening>,
}

impl<P: Platform> StateMachine<P> {
    /// Applies to `shared`, keeps snapshots in `store`.
    pub fn new(shared: Arc<Shared>, factory: Arc<dyn ModelFactory>, store: SnapshotStore, platform: P) -> Self {
        Self { shared, factory, store, platform, opening: Arc::default() }
    }

    /// Until the end of it the replica is being opened.
    pub fn opening(&self) -> Arc<Opening> {
        self.opening.begin();
        self.opening.clone()
    }
}

fn job_failed() -> io::Error {
    io::Error::other("a guest job panicked or the node is stopping")
}

impl<P: Platform> RaftStateMachine<Types<P::Runtime>> for StateMachine<P> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder<P>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let shared = self.shared.clone();
        let state = self.platform.run_guest(move || {
            let core = shared.core();
            (core.applied, core.membership.clone())
        });
        state.await.ok_or_else(job_failed)
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types<P::Runtime>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(batch) = batches.next().await {
            let batch = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
            let modules = modules_of(&batch);
            for module in modules {
                wait_for_module::<P>(self.shared.clone(), self.factory.clone(), &self.opening, module).await?;
            }
            let (mut batch, mut loud) = (batch.into_iter(), LOUD_LINES_MAX);
            while batch.len() > 0 {
                let job = turn::<P>(self.shared.clone(), self.factory.clone(), batch, loud);
                match self.platform.run_guest(job).await.ok_or_else(job_failed)? {
                    Ok(rest) => (batch, loud) = rest,
                    Err(fault) => {
                        tracing::error!(group = self.shared.group, %fault, "this replica stops");
                        return Err(io::Error::other(fault));
                    }
                }
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self::SnapshotBuilder> {
        let (shared, store) = (self.shared.clone(), self.store.clone());
        Some(Builder { shared, store, factory: self.factory.clone(), platform: self.platform.clone() })
    }

    #[expect(clippy::unreachable, reason = "openraft calls it only from the default of try_create_snapshot_builder")]
    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        unreachable!("try_create_snapshot_builder is implemented")
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<Types<P::Runtime>>,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let (shared, factory, store) = (self.shared.clone(), self.factory.clone(), self.store.clone());
        let head = {
            let snapshot = snapshot.clone();
            self.platform.run_guest(move || snapshot.reader().map(|(head, _)| head)).await.ok_or_else(job_failed)??
        };
        wait_for_module::<P>(self.shared.clone(), self.factory.clone(), &self.opening, head.module).await?;
        let installed = self.platform.run_guest(move || -> io::Result<()> {
            let (new, in_force) = restore(&*factory, &snapshot)?;
            let file = store.adopt(&snapshot, &head)?;
            let index = head.last_log_id.index;
            {
                let mut core = shared.core();
                let inboxes = std::mem::take(&mut core.inboxes);
                *core = new;
                *lock(&shared.fault) = None;
                *lock(&shared.in_force) = in_force;
                *lock(&shared.facts) = Facts::of(&core.host);
                for inbox in &inboxes {
                    inbox.jump(index);
                    inbox.wake();
                }
            }
            shared.waiters.snapshot_installed(head.last_log_id.committed_leader_id().term);
            shared.events.jump(index.saturating_add(1));
            *lock(&shared.current) = Some((head, file));
            lock(&shared.progress).bytes = 0;
            shared.advance(index, 0);
            Ok(())
        });
        let installed = installed.await.ok_or_else(job_failed)?;
        installed.inspect_err(|error| die_of_inner_sync(&self.platform, error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types<P::Runtime>, SnapshotFile>>, io::Error> {
        Ok(lock(&self.shared.current).clone().map(|(head, file)| snapshot_of::<P>(&head, file)))
    }
}

/// Entries that are yet to be applied.
type Batch<P> = std::vec::IntoIter<EntryResponder<Types<<P as Platform>::Runtime>>>;

/// The job of one turn of a batch; what is left of it. (A function, since the compiler does not see of a closure in the middle of
/// [`StateMachine::apply`] that it can go to another thread.)
fn turn<P: Platform>(
    shared: Arc<Shared>,
    factory: Arc<dyn ModelFactory>,
    mut batch: Batch<P>,
    mut loud: usize,
) -> impl FnOnce() -> Result<(Batch<P>, usize), Fault> + Send + 'static {
    move || {
        shared.apply_turn(&*factory, &mut batch, &mut loud)?;
        Ok((batch, loud))
    }
}

fn snapshot_of<P: Platform>(head: &Head, file: SnapshotFile) -> SnapshotOf<Types<P::Runtime>, SnapshotFile> {
    let meta = SnapshotMetaOf::<Types<P::Runtime>> {
        last_log_id: Some(head.last_log_id),
        last_membership: head.membership.clone(),
    };
    SnapshotOf::<Types<P::Runtime>, SnapshotFile> { meta, snapshot: file }
}

/// Gives openraft the group's newest snapshot. The duties write it first and tell openraft then
/// ([`Shared::take_snapshot`]), so that a disk that is full does not stop the group.
pub struct Builder<P: Platform> {
    shared: Arc<Shared>,
    store: SnapshotStore,
    factory: Arc<dyn ModelFactory>,
    platform: P,
}

impl<P: Platform> RaftSnapshotBuilder<Types<P::Runtime>> for Builder<P> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types<P::Runtime>, SnapshotFile>, io::Error> {
        let current = lock(&self.shared.current).clone();
        if let Some((head, file)) = current {
            return Ok(snapshot_of::<P>(&head, file));
        }
        let written = self.shared.take_snapshot(&self.platform, &self.store, &self.factory, None).await;
        written.ok_or_else(job_failed)??;
        let current = lock(&self.shared.current).clone();
        let (head, file) =
            current.ok_or_else(|| io::Error::other("nothing was applied that a snapshot could cover"))?;
        Ok(snapshot_of::<P>(&head, file))
    }
}
