//! What a machine costs: the crossing, an entry, a query between entries, a freeze by state size, a
//! roll-back, making instances. `cargo bench --bench module`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::hint::black_box;
use std::time::Duration;

use criterion::BatchSize;
use criterion::BenchmarkId;
use criterion::Criterion;
use statehouse::module::Context;
use statehouse::module::Effects;
use statehouse::module::Engine;
use statehouse::module::GUEST_STACK_BYTES;
use statehouse::module::Limits;
use statehouse::module::Machine;
use statehouse::module::Outcome;
use statehouse::module::mark_guest_thread;

/// A guest whose `apply` does what the first byte says: 0 nothing, 1 adds to a counter, 2 traps after
/// writing, 3 touches one page of 4 KiB after the other (as many as the next four bytes say), 4 sums up
/// to a million, 5 looks up and stores at a place that a hash picks (of as many MiB as the next byte says). A query with the
/// payload of 3 reads those pages.
const GUEST: &str = r#"(module
  (import "statehouse" "write" (func $write (param i32 i32)))
  (memory (export "memory") 2)
  (global $counter (mut i64) (i64.const 0))
  (global $random (mut i64) (i64.const 88172645463325252))
  (func (export "statehouse_abi_1"))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "init") (param i32 i32) (result i64) (i64.const 0))
  (func (export "query") (param $ptr i32) (param $len i32) (result i64)
    (local $count i32) (local $i i32) (local $sum i32)
    (if (i32.gt_u (local.get $len) (i32.const 48)) (then
      (local.set $count (i32.load (i32.add (local.get $ptr) (i32.const 49))))
      (loop $again
        (if (i32.lt_u (local.get $i) (local.get $count)) (then
          (local.set $sum (i32.add (local.get $sum)
            (i32.load (i32.add (i32.const 131072) (i32.mul (local.get $i) (i32.const 4096))))))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $again))))))
    (i64.store (i32.const 8) (i64.add (global.get $counter) (i64.extend_i32_u (local.get $sum))))
    (i64.const 0x800000008))
  (func (export "snapshot") (result i64)
    (call $write (i32.const 0) (i32.mul (memory.size) (i32.const 65536)))
    (i64.const 0))
  (func (export "restore") (result i64) (i64.const 0))
  (func (export "apply") (param $ptr i32) (param $len i32) (result i64)
    (local $op i32) (local $count i32) (local $i i32) (local $sum i64) (local $at i32)
    (local.set $op (i32.load8_u (i32.add (local.get $ptr) (i32.const 48))))
    (block $5 (block $4 (block $3 (block $2 (block $1 (block $0
      (br_table $0 $1 $2 $3 $4 $5 (local.get $op)))
      (return (i64.const 0)))
      (global.set $counter (i64.add (global.get $counter) (i64.const 1)))
      (i64.store (i32.const 8) (global.get $counter))
      (return (i64.const 0x800000008)))
      (i64.store (i32.const 70000) (i64.const 1))
      (unreachable))
      (local.set $count (i32.load (i32.add (local.get $ptr) (i32.const 49))))
      (drop (memory.grow (i32.sub (i32.add (i32.div_u (local.get $count) (i32.const 16)) (i32.const 3)) (memory.size))))
      (loop $again
        (if (i32.lt_u (local.get $i) (local.get $count)) (then
          (i32.store (i32.add (i32.const 131072) (i32.mul (local.get $i) (i32.const 4096))) (i32.const 7))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $again))))
      (return (i64.const 0)))
      (loop $again
        (local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 31)) (i64.extend_i32_u (local.get $i))))
        (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000000))))
      (i64.store (i32.const 8) (local.get $sum))
      (return (i64.const 0x800000008)))
    (global.set $random (i64.xor (global.get $random) (i64.shl (global.get $random) (i64.const 13))))
    (global.set $random (i64.xor (global.get $random) (i64.shr_u (global.get $random) (i64.const 7))))
    (global.set $random (i64.xor (global.get $random) (i64.shl (global.get $random) (i64.const 17))))
    (local.set $at (i32.add (i32.const 131072) (i32.and
      (i32.wrap_i64 (global.get $random))
      (i32.sub (i32.shl (i32.load8_u (i32.add (local.get $ptr) (i32.const 49))) (i32.const 20)) (i32.const 8)))))
    (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (i64.const 1)))
    (i64.const 0)))"#;

const PAGE_BYTES: usize = 4096;

fn touch(mebibytes: usize) -> Vec<u8> {
    let mut command = vec![3];
    command.extend(u32::try_from((mebibytes << 20) / PAGE_BYTES).unwrap().to_le_bytes());
    command
}

struct Bed {
    machine: Machine,
    effects: Effects,
    index: u64,
}

impl Bed {
    fn new(engine: &Engine) -> Bed {
        let module = engine.load(&wat::parse_str(GUEST).unwrap(), None).unwrap();
        let machine =
            Machine::init(&module, &Limits::default(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
        Bed { machine, effects: Effects::default(), index: 0 }
    }

    fn apply(&mut self, command: &[u8]) -> Outcome {
        self.index += 1;
        let context = Context { index: self.index, ..Context::default() };
        self.machine.apply(&context, command, &mut self.effects).unwrap()
    }
}

fn benches(criterion: &mut Criterion) {
    let engine = Engine::new().unwrap();

    let mut bed = Bed::new(&engine);
    criterion.bench_function("apply/nothing", |b| b.iter(|| black_box(bed.apply(&[0]))));
    criterion.bench_function("apply/counter", |b| b.iter(|| black_box(bed.apply(&[1]))));
    criterion.bench_function("apply/a million rounds", |b| b.iter(|| black_box(bed.apply(&[4]))));
    criterion.bench_function("a million rounds, native", |b| {
        b.iter(|| (0..black_box(1_000_000_u64)).fold(0_u64, |sum, i| black_box(sum.wrapping_mul(31).wrapping_add(i))))
    });
    criterion
        .bench_function("query/alone", |b| b.iter(|| black_box(bed.machine.query(&Context::default(), &[]).unwrap())));
    criterion.bench_function("trap and roll-back, empty redo list", |b| b.iter(|| black_box(bed.apply(&[2]))));

    let mut group = criterion.benchmark_group("state of MiB");
    for mebibytes in [1, 64, 512] {
        let mut bed = Bed::new(&engine);
        bed.apply(&touch(mebibytes));
        let size = u8::try_from(mebibytes.min(128)).unwrap();
        group.bench_function(BenchmarkId::new("apply at random places", mebibytes), |b| {
            b.iter(|| black_box(bed.apply(&[5, size])))
        });
        group.bench_function(BenchmarkId::new("apply then query", mebibytes), |b| {
            b.iter(|| {
                bed.apply(&[1]);
                black_box(bed.machine.query(&Context::default(), &[]).unwrap())
            });
        });
        // A machine whose queries have been everywhere: the pages they read are in the page table.
        bed.machine.query(&Context::default(), &touch(mebibytes)).unwrap();
        group.bench_function(BenchmarkId::new("apply then query, all was read", mebibytes), |b| {
            b.iter(|| {
                bed.apply(&[1]);
                black_box(bed.machine.query(&Context::default(), &[]).unwrap())
            });
        });
        group.bench_function(BenchmarkId::new("freeze after one entry", mebibytes), |b| {
            b.iter(|| {
                bed.apply(&[1]);
                black_box(bed.machine.freeze().unwrap())
            });
        });
        group.bench_function(BenchmarkId::new("freeze after all was written", mebibytes), |b| {
            b.iter_custom(|rounds| {
                let mut pause = Duration::ZERO;
                for _ in 0..rounds {
                    bed.apply(&touch(mebibytes));
                    let start = std::time::Instant::now();
                    black_box(bed.machine.freeze().unwrap());
                    pause += start.elapsed();
                }
                pause
            });
        });
        group.bench_function(BenchmarkId::new("snapshot of a frozen state", mebibytes), |b| {
            b.iter_batched(
                || bed.machine.freeze().unwrap(),
                |frozen| frozen.snapshot(&mut std::io::sink()).unwrap(),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("trap and roll-back after 1000 entries", mebibytes), |b| {
            b.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    for _ in 0..1000 {
                        bed.apply(&[1]);
                    }
                    let start = std::time::Instant::now();
                    bed.apply(&[2]);
                    time += start.elapsed();
                }
                time
            });
        });
    }
    group.finish();

    let module = engine.load(&wat::parse_str(GUEST).unwrap(), None).unwrap();
    criterion.bench_function("init of a machine", |b| {
        b.iter(|| {
            Machine::init(&module, &Limits::default(), &Context::default(), b"{}", &mut Effects::default()).unwrap()
        });
    });
}

/// Guest code wants its stack: criterion runs on a thread that has it.
fn main() {
    let run = || {
        mark_guest_thread();
        let mut criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1))
            .sample_size(10)
            .configure_from_args();
        benches(&mut criterion);
        criterion.final_summary();
    };
    std::thread::Builder::new().stack_size(GUEST_STACK_BYTES).spawn(run).unwrap().join().unwrap();
}
