//! How fast the node's log appends and syncs, against the disk's own speed: a synced 4 KiB write into a
//! file that was filled before. All in one directory, so that both see the same device; set
//! `STATEHOUSE_BENCH_DIR` to choose it (a directory in memory measures the code alone).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::IOFlushed;
use openraft::storage::RaftLogStorage;
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use openraft_rt_tokio::TokioRuntime;
use statehouse::disk::Disk;
use statehouse::disk::RealDisk;
use statehouse::log::GroupLog;
use statehouse::log::LogOptions;
use statehouse::log::NodeLog;
use statehouse::types::Entry;
use statehouse::types::EntryKind;
use statehouse::types::LeaderId;
use statehouse::types::LogId;
use statehouse::types::Origin;
use statehouse::types::Payload;
use statehouse::types::Proposal;
use statehouse::types::Types;

const ENTRY_BYTES: usize = 100;

fn directory() -> tempfile::TempDir {
    let base = std::env::var_os("STATEHOUSE_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(base).unwrap()
}

fn entry(index: u64) -> Entry {
    let kind = EntryKind::Command { session: None, payload: vec![7; ENTRY_BYTES].into() };
    let proposal = Proposal { time_ms: 0, origin: Origin { node: 1, incarnation: 2, number: index }, kind };
    Entry { log_id: LogId { leader_id: LeaderId::new(1, 1).to_committed(), index }, payload: Payload::Normal(proposal) }
}

/// Appends `entries` entries and waits until they are synced, `rounds` times. Purges as a node would, so
/// that segments are recycled.
async fn append(group: &mut GroupLog<TokioRuntime>, next: &mut u64, entries: u64, rounds: u64) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let batch: Vec<Entry> = (*next..*next + entries).map(entry).collect();
        let last = batch.last().unwrap().log_id;
        *next += entries;
        let (flushed, synced) = Types::<TokioRuntime>::oneshot();
        let begun = Instant::now();
        group.append(batch, IOFlushed::signal(flushed)).await.unwrap();
        synced.await.unwrap().unwrap();
        spent += begun.elapsed();
        if *next % 65_536 < entries {
            group.purge(last).await.unwrap();
        }
    }
    spent
}

fn bare_write(criterion: &mut Criterion) {
    let dir = directory();
    let file = RealDisk.create(&dir.path().join("file")).unwrap();
    let size: u64 = 64 << 20;
    for at in (0..size).step_by(1 << 20) {
        file.write_all_at(at, &[0; 1 << 20]).unwrap();
    }
    file.sync_data().unwrap();
    let mut at = 0;
    criterion.bench_function("bare synced 4 KiB write, filled file", |bencher| {
        bencher.iter(|| {
            file.write_all_at(at, &[1; 4096]).unwrap();
            file.sync_data().unwrap();
            at = (at + 4096) % size;
        });
    });
    let growing = RealDisk.create(&dir.path().join("growing")).unwrap();
    let mut at = 0;
    criterion.bench_function("bare synced 4 KiB write, growing file", |bencher| {
        bencher.iter(|| {
            growing.write_all_at(at, &[1; 4096]).unwrap();
            growing.sync_data().unwrap();
            at += 4096;
        });
    });
}

fn appends(criterion: &mut Criterion) {
    let dir = directory();
    let options = LogOptions { salt: 1, ..LogOptions::default() };
    let fatal = Arc::new(|error: &statehouse::log::LogError| panic!("{error}"));
    let (log, _) = NodeLog::open(Arc::new(RealDisk), dir.path(), options, fatal).unwrap();
    let driver = log.start_thread().unwrap();
    let mut runtime = TokioRuntime::new(1);
    let mut measured = criterion.benchmark_group("append and sync");
    for (id, entries) in [(1, 1), (2, 16), (3, 256)] {
        let mut group = log.group::<TokioRuntime>(id);
        let mut next = 0;
        measured.throughput(Throughput::Elements(entries));
        measured.bench_function(BenchmarkId::from_parameter(format!("{entries} entries")), |bencher| {
            bencher.iter_custom(|rounds| runtime.block_on(append(&mut group, &mut next, entries, rounds)));
        });
    }
    let mut groups: Vec<_> = (100..164).map(|id| (log.group::<TokioRuntime>(id), 0)).collect();
    measured.throughput(Throughput::Elements(groups.len() as u64));
    measured.bench_function("64 groups, 1 entry each", |bencher| {
        bencher.iter_custom(|rounds| {
            let all = groups.iter_mut().map(|(group, next)| append(group, next, 1, rounds));
            let begun = Instant::now();
            runtime.block_on(futures_util::future::join_all(all));
            begun.elapsed()
        });
    });
    measured.finish();
    let stats = log.stats();
    eprintln!(
        "{} operations in {} batches, {} recycled segments",
        stats.operations, stats.batches, stats.recycled_segments
    );
    driver.close();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = bare_write, appends
}
criterion_main!(benches);
