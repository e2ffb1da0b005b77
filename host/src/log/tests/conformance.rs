//! openraft's own suite for log stores, on the simulated disk and runtime and on real ones.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::Stream;
use futures_util::TryStreamExt;
use openraft::EntryPayload;
use openraft::OptionalSend;
use openraft::RaftSnapshotBuilder;
use openraft::StorageError;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::EntryResponder;
use openraft::storage::RaftStateMachine;
use openraft::testing::log::StoreBuilder;
use openraft::testing::log::Suite;
use openraft::type_config::alias::SnapshotMetaOf;
use openraft::type_config::alias::SnapshotOf;
use openraft::type_config::alias::StoredMembershipOf;
use openraft_rt_sim::SimRuntime;
use openraft_rt_tokio::TokioRuntime;

use crate::disk::RealDisk;
use crate::disk::sim::SimDisk;
use crate::log::GroupLog;
use crate::log::LogOptions;
use crate::log::NodeLog;
use crate::log::ThreadDriver;
use crate::types::LogId;
use crate::types::Types;

/// The least state machine that the suite accepts: it knows what was applied last.
struct Machine<RT: AsyncRuntime>(Arc<Mutex<Applied<RT>>>);

struct Applied<RT: AsyncRuntime> {
    last: Option<LogId>,
    membership: StoredMembershipOf<Types<RT>>,
    snapshot: Option<SnapshotMetaOf<Types<RT>>>,
}

impl<RT: AsyncRuntime> Machine<RT> {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Applied { last: None, membership: Default::default(), snapshot: None })))
    }
}

impl<RT: AsyncRuntime> RaftSnapshotBuilder<Types<RT>> for Machine<RT> {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types<RT>, ()>, io::Error> {
        let mut applied = self.0.lock().unwrap();
        let meta =
            SnapshotMetaOf::<Types<RT>> { last_log_id: applied.last, last_membership: applied.membership.clone() };
        applied.snapshot = Some(meta.clone());
        Ok(SnapshotOf::<Types<RT>, ()> { meta, snapshot: () })
    }
}

impl<RT: AsyncRuntime> RaftStateMachine<Types<RT>> for Machine<RT> {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembershipOf<Types<RT>>), io::Error> {
        let applied = self.0.lock().unwrap();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types<RT>>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, _)) = entries.try_next().await? {
            let mut applied = self.0.lock().unwrap();
            applied.last = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                applied.membership = StoredMembershipOf::<Types<RT>>::new(Some(entry.log_id), membership);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        Self(self.0.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types<RT>>, _: ()) -> Result<(), io::Error> {
        let mut applied = self.0.lock().unwrap();
        applied.last = meta.last_log_id;
        applied.membership = meta.last_membership.clone();
        applied.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types<RT>, ()>>, io::Error> {
        let snapshot = self.0.lock().unwrap().snapshot.clone();
        Ok(snapshot.map(|meta| SnapshotOf::<Types<RT>, ()> { meta, snapshot: () }))
    }
}

/// A small cache, so that the suite also reads from segments.
fn options() -> LogOptions {
    LogOptions { segment_bytes: 16 << 10, cache_bytes: 2000, salt: 7, ..LogOptions::default() }
}

struct Simulated;

impl StoreBuilder<Types<SimRuntime>, GroupLog<SimRuntime>, Machine<SimRuntime>> for Simulated {
    async fn build(&self) -> Result<((), GroupLog<SimRuntime>, Machine<SimRuntime>), StorageError<Types<SimRuntime>>> {
        let hook = Arc::new(|error: &crate::log::LogError| panic!("{error}"));
        let (log, _) = NodeLog::open(Arc::new(SimDisk::new()), Path::new("/log"), options(), hook).unwrap();
        SimRuntime::spawn(log.drive::<SimRuntime>(|| Duration::from_micros(700)));
        Ok(((), log.group(3), Machine::new()))
    }
}

#[test]
fn openraft_accepts_the_log_on_the_simulated_disk() {
    SimRuntime::with_seed(1).block_on(Suite::test_all(Simulated)).unwrap();
}

struct Real;

impl StoreBuilder<Types<TokioRuntime>, GroupLog<TokioRuntime>, Machine<TokioRuntime>, (ThreadDriver, tempfile::TempDir)>
    for Real
{
    async fn build(
        &self,
    ) -> Result<
        ((ThreadDriver, tempfile::TempDir), GroupLog<TokioRuntime>, Machine<TokioRuntime>),
        StorageError<Types<TokioRuntime>>,
    > {
        // In memory where that is possible: the suite makes a thousand syncs, one after the other.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let hook = Arc::new(|error: &crate::log::LogError| panic!("{error}"));
        let (log, _) = NodeLog::open(Arc::new(RealDisk), &dir.path().join("log"), options(), hook).unwrap();
        let driver = log.start_thread().unwrap();
        Ok(((driver, dir), log.group(3), Machine::new()))
    }
}

#[test]
fn openraft_accepts_the_log_on_the_real_disk() {
    TokioRuntime::new(1).block_on(Suite::test_all(Real)).unwrap();
}
