//! What happens to a machine's state.

use super::*;

#[test]
fn a_counter_counts_and_is_asked() {
    let mut machine = new_machine();
    assert_eq!(number(&apply(&mut machine, 1, &[ADD, 5])), 5);
    assert_eq!(number(&apply(&mut machine, 2, &[ADD, 7])), 12);
    assert_eq!(number(&machine.query(&at(2), &[ASK]).unwrap()), 12);
    assert_eq!(number(&apply(&mut machine, 3, &[ADD, 1])), 13);
    assert_eq!(number(&machine.query(&at(3), &[ASK]).unwrap()), 13);
}

#[test]
fn a_snapshot_carries_the_state_to_another_machine() {
    let mut machine = new_machine();
    apply(&mut machine, 1, &[ADD, 200]);
    let bytes = snapshot(&mut machine);
    assert_eq!(bytes, 200_u64.to_le_bytes());
    let mut restored = Machine::restore(&MODULE, &limits(), &mut bytes.as_slice()).unwrap();
    assert_eq!(number(&restored.query(&at(1), &[ASK]).unwrap()), 200);
}

#[test]
fn an_entry_that_traps_after_writing_everywhere_leaves_no_trace() {
    story(|| {
        let mut machine = new_machine();
        let mut twin = new_machine();
        let trapping = [WRITE_AND_TRAP, FAIL, OUT_OF_BOUNDS, DIVIDE, GROW_AND_TRAP, LOOP, RECURSE, RECURSE_WIDE];
        let mut index = 0;
        // Entry 1, entries in the middle, right before and after a checkpoint (a full redo list makes one).
        for count in [0, 1, 10, 4095, 4096, 1000] {
            for _ in 0..count {
                index += 1;
                apply(&mut machine, index, &[ADD, 3]);
                apply(&mut twin, index, &[ADD, 3]);
            }
            for op in trapping {
                index += 1;
                let mut effects = Effects::default();
                let outcome = machine.apply(&at(index), &[op, 9], &mut effects).unwrap();
                assert!(matches!(outcome, Outcome::Trapped(_)), "{op}: {outcome:?}");
                assert!(effects.events.is_empty() && effects.timers.is_empty());
                assert_eq!(machine.memory_bytes(), twin.memory_bytes());
            }
            assert_eq!(machine.image_digest().unwrap(), twin.image_digest().unwrap(), "after {index}");
        }
        assert_eq!(snapshot(&mut machine), snapshot(&mut twin));
        assert_eq!(number(&apply(&mut machine, 99_999, &[ADD, 1])), 9202 * 3 + 1);
    });
}

#[test]
fn growth_in_a_trapped_entry_is_undone_with_it() {
    let mut machine = new_machine();
    apply(&mut machine, 1, &[FILL_PAGES, 60]);
    let (size, digest) = (machine.memory_bytes(), machine.image_digest().unwrap());
    assert_eq!(size, 40 << 16);
    assert_eq!(code(&apply(&mut machine, 2, &[GROW_AND_TRAP])), TrapCode::Unreachable);
    assert_eq!((machine.memory_bytes(), machine.image_digest().unwrap()), (size, digest));
}

#[test]
fn growth_that_was_applied_survives_the_roll_back_of_a_later_entry() {
    let mut machine = new_machine();
    apply(&mut machine, 1, &[ADD, 1]);
    // Grown after the last checkpoint: only the redo list knows of it.
    assert_eq!(number(&apply(&mut machine, 2, &[GROW, 4])), 3);
    assert_eq!(code(&apply(&mut machine, 3, &[GROW_AND_TRAP])), TrapCode::Unreachable);
    assert_eq!(machine.memory_bytes(), 7 << 16);
    assert_eq!(number(&apply(&mut machine, 4, &[GROW, 0])), 7);
}

#[test]
fn growth_over_the_limit_fails_and_under_it_does_not() {
    let mut machine = new_machine();
    assert_eq!(number(&apply(&mut machine, 1, &[GROW, 62])), u64::MAX, "62 + 3 pages, 64 are allowed");
    assert_eq!(number(&apply(&mut machine, 2, &[GROW, 61])), 3);
    assert_eq!(number(&apply(&mut machine, 3, &[GROW, 1])), u64::MAX);
    assert_eq!(machine.memory_bytes(), 4 << 20);
    // A guest that gives up after memory was refused is told so, and not that it gave up.
    assert_eq!(code(&apply(&mut machine, 4, &[GROW_AND_TRAP])), TrapCode::MemoryLimit);
}

#[test]
fn an_endless_loop_takes_the_same_fuel_each_time() {
    let mut machine = new_machine();
    let mut run = |index| {
        let mut effects = Effects::default();
        let outcome = machine.apply(&at(index), &[LOOP], &mut effects).unwrap();
        (outcome, effects.fuel_used)
    };
    let first = run(1);
    assert_eq!(code(&first.0), TrapCode::OutOfFuel);
    assert_eq!(first, run(2));
}

#[test]
fn deep_recursion_ends_at_the_same_depth_each_time_however_wide_its_frames_are() {
    for op in [RECURSE, RECURSE_WIDE] {
        let mut first = None;
        for _ in 0..2 {
            let mut machine = new_machine();
            apply(&mut machine, 1, &[ADD, 1]);
            let mut effects = Effects::default();
            let outcome = machine.apply(&at(2), &[op], &mut effects).unwrap();
            assert_eq!(code(&outcome), TrapCode::StackOverflow, "{outcome:?}");
            // Fuel counts the calls, so equal fuel is equal depth.
            assert_eq!(*first.get_or_insert(effects.fuel_used), effects.fuel_used);
            assert!(effects.fuel_used > 10_000, "a thousand calls deep at least: {}", effects.fuel_used);
            // The next call starts from an empty stack.
            assert_eq!(number(&apply(&mut machine, 3, &[ADD, 1])), 2);
        }
    }
}

#[test]
fn queries_that_write_grow_or_trap_change_nothing() {
    story(|| {
        let mut machine = new_machine();
        let mut twin = new_machine();
        for index in 1..200 {
            apply(&mut machine, index, &[ADD, 1]);
            apply(&mut twin, index, &[ADD, 1]);
            match index % 5 {
                0 => assert_eq!(number(&machine.query(&at(index), &[ASK_AND_WRITE]).unwrap()), 99999),
                1 => assert_eq!(code(&machine.query(&at(index), &[ASK_AND_TRAP]).unwrap()), TrapCode::Unreachable),
                2 => assert_eq!(code(&machine.query(&at(index), &[ASK_AND_EMIT]).unwrap()), TrapCode::ForbiddenCall),
                _ => {}
            }
            // Nor does one show in an answer after the next entry.
            if index % 7 == 0 {
                apply(&mut machine, index, &[ADD, 0]);
                apply(&mut twin, index, &[ADD, 0]);
                assert_eq!(number(&machine.query(&at(index), &[ASK]).unwrap()), index);
            }
        }
        assert_eq!(machine.memory_bytes(), twin.memory_bytes());
        assert_eq!(machine.image_digest().unwrap(), twin.image_digest().unwrap());
    });
}

/// Its queries grow the memory by three pages, answer how many it had and what the new ones hold, and write there; its entries grow
/// it by one, and write to it.
const GROWS: &str = r#"(module
  (memory (export "memory") 2)
  (func (export "statehouse_abi_1"))
  (func (export "alloc") (param i32) (result i32) (i32.const 8))
  (func (export "init") (param i32 i32) (result i64) (i64.const 0))
  (func (export "apply") (param i32 i32) (result i64)
    (i64.store (i32.mul (memory.grow (i32.const 1)) (i32.const 65536)) (i64.const 5))
    (i64.const 0))
  (func (export "query") (param i32 i32) (result i64)
    (local $pages i32) (local $at i32)
    (local.set $pages (memory.grow (i32.const 3)))
    (local.set $at (i32.mul (local.get $pages) (i32.const 65536)))
    (i64.store (i32.const 1024) (i64.extend_i32_u (local.get $pages)))
    (i64.store (i32.const 1032) (i64.or (i64.load (local.get $at)) (i64.load offset=131072 (local.get $at))))
    (memory.fill (local.get $at) (i32.const 255) (i32.const 196608))
    (i64.const 0x40000000010))
  (func (export "restore") (result i64) (i64.const 0))
  (func (export "snapshot") (result i64) (i64.const 0)))"#;

/// Each query that needed memory of its own made the next one, after an entry, begin with a new instance, which had to find all its
/// pages again: a fifth of a node's processor time under reads and writes of large values.
#[test]
fn memory_that_a_query_grows_is_taken_back() {
    story(|| {
        let module = load(GROWS);
        let mut machine =
            Machine::init(&module, &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
        for index in 0..20 {
            let Outcome::Reply(answer) = machine.query(&at(index), b"").unwrap() else { panic!("it answers") };
            let (pages, found) = answer.split_at(8);
            assert_eq!(pages, (2 + index).to_le_bytes(), "a query finds the state's size, at entry {index}");
            assert_eq!(found, [0; 8], "what it grows by is zeros, at entry {index}");
            apply(&mut machine, index, b"");
            assert_eq!(machine.memory_bytes(), (3 + index) << 16);
        }
    });
}

#[test]
fn a_query_after_a_trapping_one_sees_the_state_and_not_its_ruins() {
    let mut machine = new_machine();
    apply(&mut machine, 1, &[ADD, 8]);
    assert_eq!(code(&machine.query(&at(1), &[ASK_AND_TRAP]).unwrap()), TrapCode::Unreachable);
    assert_eq!(number(&machine.query(&at(1), &[ASK]).unwrap()), 8);
}

#[test]
fn a_frozen_state_does_not_move_while_the_machine_does() {
    story(|| {
        let mut machine = new_machine();
        apply(&mut machine, 1, &[ADD, 1]);
        let first = machine.freeze().unwrap();
        apply(&mut machine, 2, &[ADD, 10]);
        machine.query(&at(2), &[ASK]).unwrap(); // A checkpoint that overwrites what the first has not copied.
        let second = machine.freeze().unwrap();
        let dropped = machine.freeze().unwrap();
        for index in 3..5000 {
            apply(&mut machine, index, &[ADD, 1]);
        }
        drop(dropped);
        apply(&mut machine, 5000, &[FILL_PAGES, 90]);
        machine.image_digest().unwrap();
        let bytes = |frozen: Frozen| {
            // On another thread, as hosts do.
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                frozen.snapshot(&mut bytes).unwrap();
                bytes
            })
        };
        let (second, first) = (bytes(second), bytes(first));
        assert_eq!(first.join().unwrap(), 1_u64.to_le_bytes());
        assert_eq!(second.join().unwrap(), 11_u64.to_le_bytes());
        assert_eq!(snapshot(&mut machine), (11 + 4997_u64).to_le_bytes());
    });
}

#[test]
fn a_cut_or_too_long_snapshot_is_refused_and_a_failing_reader_is_no_trap() {
    let mut machine = new_machine();
    apply(&mut machine, 1, &[ADD, 1]);
    let mut bytes = snapshot(&mut machine);
    let restore = |bytes: &[u8]| Machine::restore(&MODULE, &limits(), &mut &*bytes).map(|_| ());
    assert!(matches!(restore(&bytes[..5]), Err(RestoreError::Rejected(text)) if text == "out of cheese"));
    bytes.push(0);
    assert!(matches!(restore(&bytes), Err(RestoreError::Rejected(text)) if text.contains("1 bytes were left unread")));

    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is gone"))
        }
    }
    assert!(matches!(Machine::restore(&MODULE, &limits(), &mut Broken), Err(RestoreError::Unreadable(_))));
}

#[test]
fn a_writer_that_fails_ends_the_snapshot_and_not_the_machine() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("no space"))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut machine = new_machine();
    assert!(matches!(machine.freeze().unwrap().snapshot(&mut Full), Err(SnapshotError::Unwritable(_))));
    assert_eq!(number(&apply(&mut machine, 1, &[ADD, 1])), 1);
}

#[test]
fn queries_between_entries_leave_two_machines_with_equal_images() {
    story(|| {
        let mut busy = new_machine();
        let mut quiet = new_machine();
        for index in 1..500_u64 {
            let command =
                [[ADD, FILL_PAGES, GROW, WRITE_AND_TRAP, EMIT, REJECT][index as usize % 6], (index % 11) as u8];
            let (mut left, mut right) = (Effects::default(), Effects::default());
            let outcome = busy.apply(&at(index), &command, &mut left).unwrap();
            assert_eq!(outcome, quiet.apply(&at(index), &command, &mut right).unwrap());
            assert_eq!(left, right, "fuel too");
            for _ in 0..index % 3 {
                busy.query(&at(index), &[ASK_AND_WRITE]).unwrap();
            }
            if index % 50 == 0 {
                snapshot(&mut busy);
            }
        }
        assert_eq!(busy.image_digest().unwrap(), quiet.image_digest().unwrap());
    });
}

/// A guest whose entry writes in one of all the ways there are, at the address that its second number says and that its
/// code gets by `address`.
fn writer(address: &str) -> crate::module::Module {
    let cases = [
        "(i32.store (local.get $at) (i32.const -1))",
        "(i32.store8 (local.get $at) (i32.const -1))",
        "(i32.store16 (local.get $at) (i32.const -1))",
        "(i64.store (local.get $at) (i64.const -1))",
        "(i64.store8 (local.get $at) (i64.const -1))",
        "(i64.store16 (local.get $at) (i64.const -1))",
        "(i64.store32 (local.get $at) (i64.const -1))",
        "(f32.store (local.get $at) (f32.const 1.5))",
        "(f64.store (local.get $at) (f64.const 1.5))",
        "(v128.store (local.get $at) (v128.const i64x2 -1 -1))",
        "(v128.store8_lane 3 (local.get $at) (v128.const i64x2 -1 -1))",
        "(v128.store16_lane 3 (local.get $at) (v128.const i64x2 -1 -1))",
        "(v128.store32_lane 3 (local.get $at) (v128.const i64x2 -1 -1))",
        "(v128.store64_lane 1 (local.get $at) (v128.const i64x2 -1 -1))",
        "(i32.store offset=4080 (local.get $at) (i32.const -1))",
        "(i64.store offset=4081 (local.get $at) (i64.const -1))",
        "(v128.store offset=70001 (local.get $at) (v128.const i64x2 -1 -1))",
        "(i64.store8 offset=200000 (local.get $at) (i64.const -1))",
        "(memory.fill (local.get $at) (i32.const 7) (i32.const 40))",
        "(memory.fill (local.get $at) (i32.const 7) (i32.const 4096))",
        "(memory.fill (local.get $at) (i32.const 7) (i32.const 20000))",
        "(memory.fill (local.get $at) (i32.const 7) (local.get $length))",
        "(memory.copy (local.get $at) (i32.const 300000) (i32.const 40))",
        "(memory.copy (local.get $at) (i32.const 300000) (i32.const 9000))",
        "(memory.copy (local.get $at) (i32.const 300000) (local.get $length))",
        "(memory.init $words (local.get $at) (i32.const 0) (i32.const 9))",
        "(memory.init $words (local.get $at) (i32.const 0) (i32.rem_u (local.get $length) (i32.const 10)))",
    ];
    let mut body = String::new();
    for (number, case) in cases.iter().enumerate() {
        let case = case.replace("(local.get $at)", address);
        body += &format!("(if (i32.eq (local.get $case) (i32.const {number})) (then {case}))\n");
    }
    let text = format!(
        r#"(module
          (memory (export "memory") 8)
          (data $words "a passive")
          (data (i32.const 290000) "begins before the page that is copied from")
          (func (export "statehouse_abi_1"))
          (func (export "alloc") (param i32) (result i32) (i32.const 1024))
          (func (export "init") (param i32 i32) (result i64)
            (memory.fill (i32.const 300000) (i32.const 66) (i32.const 30000))
            (i64.const 0))
          (func (export "apply") (param $ptr i32) (param $len i32) (result i64)
            (local $case i32) (local $at i32) (local $length i32)
            (local.set $case (i32.load offset=48 (local.get $ptr)))
            (local.set $at (i32.load offset=52 (local.get $ptr)))
            (local.set $length (i32.load offset=56 (local.get $ptr)))
            {body}
            (if (i32.load offset=60 (local.get $ptr)) (then (unreachable)))
            (i64.const 0))
          (func (export "query") (param i32 i32) (result i64) (i64.const 0))
          (func (export "snapshot") (result i64) (i64.const 0))
          (func (export "restore") (result i64) (i64.const 0)))"#
    );
    crate::module::Engine::new().unwrap().load(&wat::parse_str(text).unwrap(), None).unwrap()
}

/// If one kind of store went unmarked, a checkpoint would leave it out of the image and a roll-back would leave it in
/// memory. (Both are compared byte for byte after every checkpoint where debug assertions are on.)
#[test]
fn whatever_way_a_guest_writes_the_image_gets_it_and_a_trap_undoes_it() {
    // A local that covers the stores at it, and an address that each store must mark itself.
    for address in ["(local.get $at)", "(i32.sub (local.get $at) (i32.const 0))"] {
        every_way(address);
    }
}

fn every_way(address: &str) {
    story(|| {
        let module = writer(address);
        let new = || Machine::init(&module, &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
        for case in 0..27_u32 {
            // Within a page, at its very end, across its end, and behind that.
            for at in [100_000_u32, 102_399, 102_395, 106_496, 110_591] {
                for length in [0_u32, 1, 5, 40, 64, 65, 4097, 9000] {
                    let command = |trap: u32| [case, at, length, trap].map(u32::to_le_bytes).concat();
                    let (mut calm, mut shaken) = (new(), new());
                    let before = shaken.image_digest().unwrap();
                    assert!(matches!(apply(&mut shaken, 1, &command(1)), Outcome::Trapped(_)));
                    assert_eq!(shaken.image_digest().unwrap(), before, "case {case} at {at}, {length} bytes");
                    assert!(matches!(apply(&mut shaken, 2, &command(0)), Outcome::Reply(_)));
                    assert!(matches!(apply(&mut calm, 2, &command(0)), Outcome::Reply(_)));
                    let written = calm.image_digest().unwrap();
                    assert_eq!(shaken.image_digest().unwrap(), written);
                    // A frozen state is made from the image alone.
                    let mut bytes = Vec::new();
                    calm.freeze().unwrap().write(&mut bytes).unwrap();
                    let mut restored = Machine::restore_image(&module, &limits(), &mut &bytes[..]).unwrap();
                    assert_eq!(restored.image_digest().unwrap(), written, "case {case} at {at}, {length} bytes");
                }
            }
        }
    });
}

/// A guest whose entry fills 20 MiB with its command's first byte, and then traps if the second is 1.
const FILLS: &str = r#"(module
  (memory (export "memory") 400)
  (func (export "statehouse_abi_1"))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "init") (param i32 i32) (result i64) (i64.const 0))
  (func (export "apply") (param $ptr i32) (param $len i32) (result i64)
    (memory.fill (i32.const 65536) (i32.load8_u offset=48 (local.get $ptr)) (i32.const 20971520))
    (if (i32.load8_u offset=49 (local.get $ptr)) (then (unreachable)))
    (i64.const 0))
  (func (export "query") (param i32 i32) (result i64)
    (i64.store (i32.const 8) (i64.add (i64.load (i32.const 65536)) (i64.load (i32.const 21037048))))
    (i64.const 0x800000008))
  (func (export "snapshot") (result i64) (i64.const 0))
  (func (export "restore") (result i64) (i64.const 0)))"#;

/// So many pages are given back after a checkpoint, in the instance and in the image's own mapping.
#[test]
fn a_state_whose_pages_were_given_back_is_the_same_state() {
    story(|| {
        let module = crate::module::Engine::new().unwrap().load(&wat::parse_str(FILLS).unwrap(), None).unwrap();
        let limits = Limits { memory_bytes_max: 64 << 20, ..Limits::default() };
        let mut machine = Machine::init(&module, &limits, &Context::default(), b"{}", &mut Effects::default()).unwrap();
        let ask = |machine: &mut Machine, index| number(&machine.query(&at(index), &[]).unwrap());
        let word = |byte: u8| u64::from_le_bytes([byte; 8]).wrapping_mul(2);
        for index in 1..5 {
            apply(&mut machine, index, &[index as u8, 0]);
            assert_eq!(ask(&mut machine, index), word(index as u8));
            assert!(matches!(apply(&mut machine, index, &[77, 1]), Outcome::Trapped(_)));
            assert_eq!(ask(&mut machine, index), word(index as u8), "after a trap");
        }
    });
}

#[test]
fn after_init_is_rejected_there_is_no_machine() {
    let result = Machine::init(&MODULE, &limits(), &Context::default(), b"X", &mut Effects::default());
    assert!(matches!(result.map(|_| ()), Err(InitError::Rejected(text)) if text == "out of cheese"));
}

/// A guest whose entry writes its index to each of 400 pages, and whose snapshot reads them back slowly, in
/// memory that it grows for the purpose.
const STRIPES: &str = r#"(module
  (import "statehouse" "write" (func $write (param i32 i32)))
  (memory (export "memory") 26)
  (func (export "statehouse_abi_1"))
  (func (export "alloc") (param i32) (result i32) (i32.const 8))
  (func (export "init") (param i32 i32) (result i64) (i64.const 0))
  (func (export "apply") (param $ptr i32) (param $len i32) (result i64)
    (local $page i32)
    (if (i32.eq (local.get $len) (i32.const 49)) (then ;; a byte: grow, and write there
      (drop (memory.grow (i32.const 1)))
      (memory.fill (i32.const 1703936) (i32.const 255) (i32.const 65536))))
    (loop $next
      (i64.store (i32.add (i32.const 64) (i32.mul (local.get $page) (i32.const 4096))) (i64.load offset=8 (local.get $ptr)))
      (br_if $next (i32.lt_u (local.tee $page (i32.add (local.get $page) (i32.const 1))) (i32.const 400))))
    (i64.const 0))
  (func (export "query") (param i32 i32) (result i64) (i64.const 0))
  (func (export "restore") (result i64) (i64.const 0))
  (func (export "snapshot") (result i64)
    (local $page i32) (local $at i32)
    (local.set $at (i32.mul (memory.grow (i32.const 1)) (i32.const 65536)))
    (call $write (local.get $at) (i32.const 8)) ;; zeros
    (loop $next
      (i64.store (local.get $at) (i64.load (i32.add (i32.const 64) (i32.mul (local.get $page) (i32.const 4096)))))
      (call $write (local.get $at) (i32.const 8))
      (br_if $next (i32.lt_u (local.tee $page (i32.add (local.get $page) (i32.const 1))) (i32.const 400))))
    (i64.const 0)))"#;

#[test]
fn snapshots_run_while_checkpoints_overwrite_the_image_they_share() {
    story(|| {
        let module = load(STRIPES);
        let mut machine =
            Machine::init(&module, &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
        let mut snapshots = Vec::new();
        for index in 1..200 {
            // Once the live memory grows to where the frozen ones grow too, and writes there.
            apply(&mut machine, index, if index == 50 { b"x" } else { b"" });
            machine.query(&at(index), b"").unwrap(); // A checkpoint.
            if index % 4 == 0 {
                let frozen = machine.freeze().unwrap();
                snapshots.push(std::thread::spawn(move || {
                    let mut bytes = Vec::new();
                    frozen.snapshot(&mut bytes).unwrap();
                    (index, bytes)
                }));
            }
        }
        for snapshot in snapshots {
            let (index, bytes) = snapshot.join().unwrap();
            let (grown, stripes) = bytes.split_at(8);
            assert_eq!(grown, [0; 8], "what the frozen memory grows by is zeros, at entry {index}");
            assert_eq!(stripes, index.to_le_bytes().repeat(400), "one moment's state and no other");
        }
    });
}

#[test]
fn kernels_that_cannot_hold_pages_copy_the_image() {
    let image = crate::module::memory::Image::new(10 << 20).unwrap();
    image.write_at(5000, b"near").unwrap();
    image.write_at(9 << 20, b"far").unwrap();
    let copy = image.duplicate().unwrap();
    image.write_at(5000, b"gone").unwrap();
    let mut near = [0; 6];
    copy.read_at(4999, &mut near).unwrap();
    assert_eq!(&near, b"\0near\0");
    let mut far = [0; 3];
    copy.read_at(9 << 20, &mut far).unwrap();
    assert_eq!(&far, b"far");
}
