#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::disallowed_methods)]
use std::io::Read;
use std::io::Write;
use std::time::Duration;

use openraft::EntryPayload;
use openraft::RaftSnapshotBuilder;
use openraft::alias::SnapshotMetaOf;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::RaftStateMachine;
use openraft::vote::leader_id_std::CommittedLeaderId;

use super::*;
use crate::disk::RealDisk;
use crate::disk::sim::SimDisk;
use crate::group::model::FrozenModel;
use crate::group::model::ModelError;
use crate::group::model::Refusal;
use crate::module::Outcome;
use crate::platform::RealPlatform;
use crate::sim::Life;
use crate::sim::LifeRuntime;
use crate::sim::SimPlatform;
use crate::sim::SimRandom;
use crate::snapshot::Receiver;
use crate::snapshot::part_checksum;
use crate::types::Origin;

/// A state that takes its time to be written.
struct Slow;

impl ModelFactory for Slow {
    fn first(&self) -> ModuleRef {
        ModuleRef { digest: [7; 32], name: "slow".into() }
    }
    fn succeed(&self, _: [u8; 32], _: &Context, _: Box<dyn FrozenModel>) -> Result<Box<dyn Model>, Refusal> {
        Ok(Box::new(Slow))
    }
    fn created_ms(&self) -> u64 {
        1000
    }
    fn create(&self) -> Result<(Box<dyn Model>, Effects), ModelError> {
        Ok((Box::new(Slow), Effects::default()))
    }
    fn restore(&self, _: [u8; 32], _: &mut (dyn Read + Send)) -> Result<Box<dyn Model>, ModelError> {
        Ok(Box::new(Slow))
    }
}

impl Model for Slow {
    /// Logs its command a hundred times.
    fn apply(&mut self, _: &Context, command: &[u8], effects: &mut Effects) -> Result<Outcome, Fault> {
        assert_ne!(command, b"panic", "a bug of the host");
        let text = String::from_utf8_lossy(command);
        effects.logs.extend((0..100).map(|at| (LogLevel::Warn, format!("{text} {at}"))));
        effects.logs.push((LogLevel::Info, format!("{text} quiet")));
        Ok(Outcome::Reply(Vec::new()))
    }
    fn timer(&mut self, _: &Context, _: u64, _: &mut Effects) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(Vec::new()))
    }
    fn session_end(&mut self, _: &Context, _: &mut Effects) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(Vec::new()))
    }
    fn query(&mut self, _: &Context, _: &[u8]) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(Vec::new()))
    }
    fn freeze(&mut self) -> Result<Box<dyn FrozenModel>, Fault> {
        Ok(Box::new(Slow))
    }
}

impl FrozenModel for Slow {
    fn write(self: Box<Self>, out: &mut (dyn Write + Send)) -> io::Result<()> {
        for _ in 0..4 {
            out.write_all(&[5; 300_000])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
    fn export(self: Box<Self>, _: &mut (dyn Write + Send)) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Several clients saved a group at once, while nothing was written to it: all wrote the snapshot of the same index into the same
/// file. The first one gave the name to what another was still writing, and let the log be purged behind it; the others failed.
/// One whose client had gone away was no better: its job went on.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_are_asked_for_at_once_are_written_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(Arc::new(RealDisk), folder.path().to_owned(), 2, 0).unwrap();
    let factory: Arc<dyn ModelFactory> = Arc::new(Slow);
    let shared = Arc::new(Shared::open(3, 1, 1, 0, 1, &*factory, None).unwrap());
    shared.core().applied = Some(LogId::new(CommittedLeaderId::new(2), 77));
    let gone = shared.take_snapshot(&RealPlatform, &store, &factory, None);
    assert!(tokio::time::timeout(Duration::from_millis(10), gone).await.is_err());
    let asked = (0..4).map(|_| shared.take_snapshot(&RealPlatform, &store, &factory, None));
    for written in futures_util::future::join_all(asked).await {
        assert_eq!(written.unwrap().unwrap(), Some(77));
    }
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["000000000000004d-2.snap"]);
    let newest = store.newest().unwrap();
    assert_eq!((newest.found.unwrap().0.last_log_id.index, newest.refused.len()), (77, 0));
}

fn store_on(disk: &SimDisk) -> SnapshotStore {
    SnapshotStore::open(Arc::new(disk.clone()), "/node/groups/3".into(), 2, 0).unwrap()
}

fn covering(index: u64) -> Arc<Shared> {
    let shared = Shared::open(3, 1, 1, 0, 1, &Slow, None).unwrap();
    shared.core().applied = Some(LogId::new(CommittedLeaderId::new(2), index));
    Arc::new(shared)
}

/// A snapshot's sync failed where consensus had asked for it, or while one that was received was installed: the group stopped, and
/// the process went on, with a disk that had lost what it was given.
#[test]
fn a_sync_that_fails_for_consensus_ends_the_process_too() {
    let factory: Arc<dyn ModelFactory> = Arc::new(Slow);
    let new_platform = || {
        let life = Life::new(1, 1);
        (life.clone(), SimPlatform::new(life, SimRandom::new(1), 0, 0))
    };
    LifeRuntime::with_seed(1).block_on(async move {
        let (life, platform) = new_platform();
        let disk = SimDisk::new();
        let store = store_on(&disk);
        disk.fail_sync(0);
        let (shared, factory) = (covering(77), factory.clone());
        let mut machine = StateMachine::new(shared, factory.clone(), store, platform);
        let mut builder = machine.try_create_snapshot_builder(false).await.unwrap();
        builder.build_snapshot().await.unwrap_err();
        assert!(life.last_words().unwrap().contains("could not be synced"), "{:?}", life.last_words());

        let (_, platform) = new_platform();
        let (offered, theirs) = (store_on(&SimDisk::new()), covering(77));
        theirs.take_snapshot(&platform, &offered, &factory, None).await.unwrap().unwrap();
        let (_, file) = theirs.newest_snapshot().unwrap();
        let bytes = file.hold().unwrap().read(0, usize::MAX).unwrap();
        let store = store_on(&disk);
        let mut receiver = Receiver::new(store.clone());
        receiver.begin(file.digest(), file.size()).unwrap();
        receiver.part(file.digest(), 0, part_checksum(0, &bytes), &bytes).unwrap();
        let received = receiver.end(file.digest()).unwrap();
        let (life, platform) = new_platform();
        let mut machine = StateMachine::new(covering(5), factory, store, platform);
        let meta = SnapshotMetaOf::<Types<LifeRuntime>> {
            last_log_id: Some(received.head.last_log_id),
            last_membership: received.head.membership.clone(),
        };
        // The rename, and no sync of the directory.
        disk.cut_power_after(1);
        machine.install_snapshot(&meta, received.file.clone()).await.unwrap_err();
        assert!(life.last_words().unwrap().contains("could not be synced"), "{:?}", life.last_words());
    });
}

/// What was logged.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whatever a module had to say was for debugging: nobody was warned of a quota that is exceeded.
#[test]
fn a_modules_warnings_are_shown_where_the_command_came_from_and_not_without_end() {
    let shared = Shared::open(3, 1, 5, 0, 1, &Slow, None).unwrap();
    let shown = |nodes: &[(NodeId, u64)]| {
        let all = Shown::default();
        let writer = all.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut loud = LOUD_LINES_MAX;
            for (node, incarnation) in nodes {
                let kind = EntryKind::Command { session: None, payload: Bytes::from(format!("of {node}")) };
                let origin = Origin { node: *node, incarnation: *incarnation, number: 1 };
                let log_id = LogId::new(CommittedLeaderId::new(2), 77);
                let payload = EntryPayload::Normal(Proposal { time_ms: 0, origin, kind });
                shared.core().apply(&shared, &Slow, Entry { log_id, payload }, &mut loud).unwrap();
            }
        });
        let text = String::from_utf8(lock(&all.0).clone()).unwrap();
        text.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(shown(&[(2, 5)]), [""; 0], "the others say it");
    assert_eq!(shown(&[(1, 4)]), [""; 0], "it was said when it happened");
    let lines = shown(&[(2, 5), (1, 5), (1, 5)]);
    assert_eq!(lines.len(), LOUD_LINES_MAX, "a module cannot fill the log");
    assert!(lines.iter().zip(0..).all(|(line, at)| line.contains(&format!("module: of 1 {at} "))), "{lines:?}");
    assert_eq!(shown(&[(1, 5)]).len(), LOUD_LINES_MAX, "the next batch has its own");
}

/// A state whose entries take until the test lets go, and all their fuel.
#[derive(Clone)]
struct Held {
    entered: tokio::sync::mpsc::UnboundedSender<u64>,
    go: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
}

impl ModelFactory for Held {
    fn first(&self) -> ModuleRef {
        ModuleRef { digest: [8; 32], name: "held".into() }
    }
    fn succeed(&self, _: [u8; 32], _: &Context, _: Box<dyn FrozenModel>) -> Result<Box<dyn Model>, Refusal> {
        Ok(Box::new(self.clone()))
    }
    fn create(&self) -> Result<(Box<dyn Model>, Effects), ModelError> {
        Ok((Box::new(self.clone()), Effects::default()))
    }
    fn restore(&self, _: [u8; 32], _: &mut (dyn Read + Send)) -> Result<Box<dyn Model>, ModelError> {
        Ok(Box::new(self.clone()))
    }
}

impl Model for Held {
    fn apply(&mut self, context: &Context, _: &[u8], effects: &mut Effects) -> Result<Outcome, Fault> {
        effects.clear();
        effects.fuel_used = TURN_FUEL;
        self.entered.send(context.index).unwrap();
        // For ever, once the test has dropped the other end.
        let _let_go = lock(&self.go).recv();
        Ok(Outcome::Reply(Vec::new()))
    }
    fn timer(&mut self, _: &Context, _: u64, _: &mut Effects) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(Vec::new()))
    }
    fn session_end(&mut self, _: &Context, _: &mut Effects) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(Vec::new()))
    }
    fn query(&mut self, _: &Context, _: &[u8]) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(Vec::new()))
    }
    fn freeze(&mut self) -> Result<Box<dyn FrozenModel>, Fault> {
        Ok(Box::new(Slow))
    }
}

fn entry(index: u64, kind: EntryKind) -> io::Result<EntryResponder<Types<openraft_rt_tokio::TokioRuntime>>> {
    let origin = Origin { node: 2, incarnation: 1, number: index };
    let payload = EntryPayload::Normal(Proposal { time_ms: 0, origin, kind });
    Ok((Entry { log_id: LogId::new(CommittedLeaderId::new(2), index), payload }, None))
}

fn command() -> EntryKind {
    EntryKind::Command { session: None, payload: Bytes::new() }
}

/// The entries of one group burnt all their fuel, hundreds of them in one go. Whoever touched one of its sessions meanwhile, or asked how it
/// stands, waited for all of them on a thread of those that groups apply their entries on; hundreds of callers had them all, and the
/// other groups waited too.
#[test]
fn who_asks_of_a_group_whose_entries_take_long_takes_no_threads_from_the_others() {
    const CALLERS: usize = 100;
    let patience = Duration::from_secs(60);
    let folder = tempfile::tempdir().unwrap();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // One for the slow group's entry, one each for a query, a snapshot and a digest of it, and one for the other group.
    let runtime = runtime.worker_threads(2).max_blocking_threads(5).enable_all().build().unwrap();
    runtime.block_on(async {
        let (entered, mut entries) = tokio::sync::mpsc::unbounded_channel();
        let (go, held) = std::sync::mpsc::channel();
        let factory: Arc<dyn ModelFactory> = Arc::new(Held { entered, go: Arc::new(Mutex::new(held)) });
        let slow = Arc::new(Shared::open(3, 1, 1, 0, 1, &*factory, None).unwrap());
        let store = SnapshotStore::open(Arc::new(RealDisk), folder.path().join("3"), 2, 0).unwrap();
        let mut machine = StateMachine::new(slow.clone(), factory.clone(), store.clone(), RealPlatform);
        let session = EntryKind::OpenSession { secret: [7; 16], timeout_ms: 1000, attached: false };
        let batch = [entry(1, session), entry(2, command()), entry(3, command())];
        let applied = tokio::spawn(async move { machine.apply(futures_util::stream::iter(batch)).await });
        assert_eq!(entries.recv().await, Some(2));

        for _ in 0..CALLERS {
            let slow = slow.clone();
            let asked = tokio::task::spawn_blocking(move || (slow.secret(1), slow.secret(2), slow.counts()));
            let told = tokio::time::timeout(patience, asked).await.expect("nobody waits for the entry").unwrap();
            assert_eq!(told, (Some([7; 16]), None, (1, 0)));
        }
        // What needs the state itself waits, with one thread for all.
        let mut digests: Vec<_> = (0..CALLERS).map(|_| Box::pin(slow.digest(&RealPlatform))).collect();
        let mut queries: Vec<_> = (0..CALLERS).map(|_| Box::pin(slow.query(&RealPlatform, 0, Bytes::new()))).collect();
        let mut snapshots: Vec<_> =
            (0..CALLERS).map(|_| Box::pin(slow.take_snapshot(&RealPlatform, &store, &factory, None))).collect();
        for at in 0..CALLERS {
            assert!(futures_util::poll!(&mut digests[at]).is_pending());
            assert!(futures_util::poll!(&mut queries[at]).is_pending());
            assert!(futures_util::poll!(&mut snapshots[at]).is_pending());
        }
        let other = Arc::new(Shared::open(4, 1, 1, 0, 1, &Slow, None).unwrap());
        let store = SnapshotStore::open(Arc::new(RealDisk), folder.path().join("4"), 2, 0).unwrap();
        let mut machine = StateMachine::new(other.clone(), Arc::new(Slow), store, RealPlatform);
        let answered = machine.apply(futures_util::stream::iter([entry(1, command())]));
        tokio::time::timeout(patience, answered).await.expect("another group has its thread").unwrap();
        assert_eq!((other.applied(), slow.applied()), (1, 0));

        // An entry that burnt all its fuel has had its turn: what waits need not wait for the next one.
        go.send(()).unwrap();
        assert_eq!(entries.recv().await, Some(3));
        assert_eq!(slow.applied(), 2);
        drop(go);
        applied.await.unwrap().unwrap();
        assert_eq!(slow.applied(), 3);
        futures_util::future::join_all(queries).await;
        digests.swap_remove(0).await.unwrap().unwrap();
    });
}

/// Sessions are found, and counted, beside the state: as they are in it, also after a snapshot took its place.
#[test]
fn what_is_told_of_sessions_is_what_was_applied() {
    let platform = RealPlatform;
    let folder = tempfile::tempdir().unwrap();
    let factory: Arc<dyn ModelFactory> = Arc::new(Slow);
    let store = SnapshotStore::open(Arc::new(RealDisk), folder.path().to_owned(), 2, 0).unwrap();
    let new = || Arc::new(Shared::open(3, 1, 1, 0, 1, &*factory, None).unwrap());
    let open = |secret| EntryKind::OpenSession { secret: [secret; 16], timeout_ms: 1000, attached: false };
    let close = |id, secret: Option<u8>| {
        let secret = secret.map(|secret| [secret; 16]);
        EntryKind::CloseSession { id, secret, attachment: None }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let shared = new();
        let mut machine = StateMachine::new(shared.clone(), factory.clone(), store.clone(), platform);
        let kinds = [open(1), open(2), open(3), close(2, Some(9)), close(3, Some(3)), close(8, None), command()];
        let batch = kinds.into_iter().zip(1..).map(|(kind, index)| entry(index, kind));
        machine.apply(futures_util::stream::iter(batch)).await.unwrap();
        assert_eq!([1, 2, 3].map(|id| shared.secret(id)), [Some([1; 16]), Some([2; 16]), None]);
        assert_eq!(*lock(&shared.facts), Facts::of(&shared.core().host));
        shared.take_snapshot(&platform, &store, &factory, None).await.unwrap().unwrap();
        let (head, file) = shared.newest_snapshot().unwrap();

        let late = new();
        let mut machine = StateMachine::new(late.clone(), factory.clone(), store.clone(), platform);
        let meta = SnapshotMetaOf::<Types<openraft_rt_tokio::TokioRuntime>> {
            last_log_id: Some(head.last_log_id),
            last_membership: head.membership.clone(),
        };
        machine.apply(futures_util::stream::iter([entry(1, open(9))])).await.unwrap();
        machine.install_snapshot(&meta, file.clone()).await.unwrap();
        assert_eq!(*lock(&late.facts), Facts::of(&shared.core().host));
        let opened = Shared::open(3, 1, 1, 0, 1, &*factory, Some((head, file))).unwrap();
        assert_eq!(*lock(&opened.facts), Facts::of(&shared.core().host));
    });
}

/// The host panicked in the middle of an entry. Consensus stopped; the state that the entry had half changed was written to the next
/// snapshot all the same, as one that did not cover the entry, which was applied once more after a restart, on top of itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_the_host_panicked_over_is_neither_saved_nor_asked() {
    let folder = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(Arc::new(RealDisk), folder.path().to_owned(), 2, 0).unwrap();
    let factory: Arc<dyn ModelFactory> = Arc::new(Slow);
    let shared = Arc::new(Shared::open(3, 1, 1, 0, 1, &*factory, None).unwrap());
    let mut machine = StateMachine::new(shared.clone(), factory.clone(), store.clone(), RealPlatform);
    let bad = EntryKind::Command { session: None, payload: Bytes::from_static(b"panic") };
    machine.apply(futures_util::stream::iter([entry(1, command()), entry(2, bad)])).await.unwrap_err();

    let told = shared.fault();
    assert_eq!(shared.core().applied.map(|log_id| log_id.index), Some(1));
    let written = shared.take_snapshot(&RealPlatform, &store, &factory, None).await.unwrap().unwrap_err();
    assert!(store.newest().unwrap().found.is_none());
    let why = told.unwrap();
    assert!(why.contains("panicked"), "{why}");
    assert_eq!(written.to_string(), why);
    assert_eq!(shared.digest(&RealPlatform).await.unwrap().unwrap_err().to_string(), why);
    let (_, answer) = shared.query(&RealPlatform, 0, Bytes::new()).await;
    assert_eq!(answer.unwrap_err().code, ErrorCode::GroupStopped);
    let (_, answer) = shared.try_module(&RealPlatform, Slow, ()).await.unwrap();
    assert_eq!(answer.unwrap_err().code, ErrorCode::GroupStopped);
    machine.apply(futures_util::stream::iter([entry(2, command())])).await.unwrap_err();
}

/// `init` was told when the group was created, and the queries before the first entry that it was 1970; and where the first leader's
/// clock was behind, so were its entries.
#[tokio::test]
async fn no_call_is_told_a_time_before_that_of_init() {
    let context = Context { index: 0, time_ms: 1000, seed: 0, session: 0 };
    let factory = crate::group::model::WasmFactory {
        first: Slow.first(),
        limits: crate::module::Limits::default(),
        params: Vec::new(),
        made: None,
        context,
        source: None,
        loaded: Arc::default(),
    };
    assert_eq!(factory.created_ms(), context.time_ms);
    let folder = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(Arc::new(RealDisk), folder.path().to_owned(), 2, 0).unwrap();
    let shared = Arc::new(Shared::open(3, 1, 1, 0, 1, &Slow, None).unwrap());
    let mut machine = StateMachine::new(shared.clone(), Arc::new(Slow), store, RealPlatform);
    assert_eq!(shared.core().context(0).time_ms, 1000);
    machine.apply(futures_util::stream::iter([entry(1, command())])).await.unwrap();
    assert_eq!(shared.core().context(0).time_ms, 1000);
}
