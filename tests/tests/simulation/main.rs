//! The simulated cluster: hundreds of seeds, each a run with faults whose outcome an oracle judges.
//!
//! - `cargo test -p statehouse-tests --test simulation` runs [`SEEDS_DEFAULT`] seeds,
//! - `SEEDS=100000 cargo test …` as many more,
//! - `SEED=17 cargo test …` that one, and tells everything that happens.
//!
//! `docs/simulation.md` says what is simulated and what is checked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout
)]

mod clients;
mod gateway;
mod leading;
mod membership;
mod modules;
mod nemesis;
mod register;
mod repair;
mod scenario;
mod space;
mod upgrades;
mod world;
mod znodes;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use scenario::Report;
use world::Sabotage;

/// Seeds of the ordinary test run.
const SEEDS_DEFAULT: u64 = 200;

/// What must have happened at least once in the ordinary test run.
const MUST_HAPPEN: [&str; 25] = [
    "answers kept for a retry",
    "crashes",
    "crashes of all",
    "events seen",
    "files that decayed",
    "gaps in events",
    "keys checked",
    "keys that went in time",
    "leaders moved",
    "logs of several segments",
    "logs set aside",
    "logs that were purged",
    "looks at consensus",
    "outcomes learned by a retry",
    "partitions",
    "lost disks",
    "modules changed",
    "nodes that came",
    "nodes that left",
    "requests without effect",
    "sessions that ended early",
    "snapshots sent to a node",
    "transfers resumed",
    "traps",
    "unknown outcomes",
];

/// What must have happened in the seeds that are run twice.
const MUST_REPEAT: [&str; 8] = [
    "changes begun",
    "crashes",
    "files that decayed",
    "logs set aside",
    "modules changed",
    "nodes that came",
    "partitions",
    "snapshots sent to a node",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs `work` on a thread on which guest code may run.
fn on_guest_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(statehouse::module::GUEST_STACK_BYTES);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

fn run(seed: u64, verbose: bool, executor_trace: bool, sabotage: Sabotage) -> Report {
    match std::panic::catch_unwind(|| scenario::run(seed, verbose, executor_trace, sabotage)) {
        Ok(report) => report,
        Err(_) => Report {
            problems: vec!["the run panicked; its words are above".to_string()],
            counts: BTreeMap::new(),
            fingerprint: 0,
            executor: Vec::new(),
            virtual_ms: 0,
        },
    }
}

fn tell(seed: u64, report: &Report) -> String {
    format!(
        "seed {seed}:\n  {}\nrepeat it with\n  SEED={seed} cargo test -p statehouse-tests --test simulation -- --nocapture",
        report.problems.join("\n  ")
    )
}

#[test]
fn whatever_fails_nothing_acknowledged_is_lost() {
    if let Some(seed) = number("SEED") {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .without_time()
            .init();
        let report = on_guest_thread(|| run(seed, true, false, Sabotage::Nothing));
        println!("{:#?}", report.counts);
        assert!(report.problems.is_empty(), "{}", tell(seed, &report));
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS_DEFAULT);
    let first = number("FIRST_SEED").unwrap_or(1);
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let failures = Mutex::new(Vec::new());
    let counts: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let thread = std::thread::Builder::new().stack_size(statehouse::module::GUEST_STACK_BYTES);
            let running = thread.spawn_scoped(scope, || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failed.load(Ordering::Relaxed) && number("KEEP_GOING").is_none() {
                        return;
                    }
                    let report = run(seed, false, false, Sabotage::Nothing);
                    let mut counts = counts.lock().unwrap();
                    for (name, count) in &report.counts {
                        *counts.entry(name).or_default() += count;
                    }
                    *counts.entry("virtual seconds").or_default() += report.virtual_ms / 1000;
                    *counts.entry("seeds").or_default() += 1;
                    if !report.problems.is_empty() {
                        failed.store(true, Ordering::Relaxed);
                        eprintln!("{}", tell(seed, &report));
                        failures.lock().unwrap().push(seed);
                    }
                }
            });
            running.unwrap();
        }
    });
    println!("{:#?}", counts.lock().unwrap());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "seeds {failures:?} failed; the command that repeats each is above");
    if seeds >= SEEDS_DEFAULT {
        let counts = counts.lock().unwrap();
        let missing: Vec<_> = MUST_HAPPEN.iter().filter(|name| !counts.contains_key(*name)).collect();
        assert!(missing.is_empty(), "the runs prove less than they should: {missing:?} never happened");
    }
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    if number("SEED").is_some() {
        return;
    }
    on_guest_thread(|| {
        let mut lacks: BTreeSet<&str> = MUST_REPEAT.into();
        for seed in 1..=30 {
            let one = run(seed, false, true, Sabotage::Nothing);
            let lacked = lacks.len();
            lacks.retain(|name| !one.counts.contains_key(name));
            if lacks.len() == lacked {
                continue;
            }
            let two = run(seed, false, true, Sabotage::Nothing);
            if let Some(at) = one.executor.iter().zip(&two.executor).position(|(a, b)| a != b) {
                let near = at.saturating_sub(5)..(at + 1).min(one.executor.len());
                panic!(
                    "seed {seed} parts at step {at}: {:#?} and {:#?}",
                    &one.executor[near.clone()],
                    &two.executor[near]
                );
            }
            assert_eq!(one.executor.len(), two.executor.len());
            assert_eq!(one.fingerprint, two.fingerprint);
            assert_eq!(one.counts, two.counts);
            if lacks.is_empty() {
                return;
            }
        }
        panic!("the seeds prove less than they should: {lacks:?} never happened");
    });
}

/// Runs seeds on a cluster that is broken on purpose until the checks say so.
fn must_be_found(sabotage: Sabotage) {
    if number("SEED").is_some() {
        return;
    }
    on_guest_thread(|| {
        let found = (1..=30).find_map(|seed| {
            let report = run(seed, false, false, sabotage);
            report.problems.first().map(|problem| (seed, problem.clone()))
        });
        let (seed, problem) = found.unwrap_or_else(|| panic!("nobody noticed {sabotage:?} in 30 seeds"));
        println!("{sabotage:?} was noticed in seed {seed}: {problem}");
    });
}

#[test]
fn a_disk_that_lies_is_found() {
    must_be_found(Sabotage::SyncsLie);
}

#[test]
fn a_retry_that_applies_twice_is_found() {
    must_be_found(Sabotage::RetriesAreUnsafe);
}

#[test]
fn reads_from_a_follower_that_is_behind_are_found() {
    must_be_found(Sabotage::ReadsAreLocal);
}
