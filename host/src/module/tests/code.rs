//! What is compiled, what is kept, and that the rewrite changes nothing but what it says.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::module::inspect::inspect;
use crate::module::rewrite;

/// A cache that counts what is asked of it.
#[derive(Default)]
struct Shelf {
    kept: Mutex<BTreeMap<String, Vec<u8>>>,
    hits: Mutex<u32>,
}

impl CodeCache for Shelf {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let found = self.kept.lock().unwrap().get(key).cloned();
        *self.hits.lock().unwrap() += u32::from(found.is_some());
        found
    }
    fn put(&self, key: &str, bytes: &[u8]) {
        self.kept.lock().unwrap().insert(key.to_string(), bytes.to_vec());
    }
}

fn history(module: &Module) -> (Vec<Outcome>, [u8; 32]) {
    let mut machine = Machine::init(module, &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
    let outcomes = (0..17).map(|op| apply(&mut machine, 1, &[op, 3])).collect();
    (outcomes, machine.image_digest().unwrap())
}

#[test]
fn code_from_the_cache_does_what_compiled_code_does() {
    let shelf = Shelf::default();
    let wasm = wat::parse_str(SCRIPT).unwrap();
    let compiled = ENGINE.load(&wasm, Some(&shelf)).unwrap();
    assert_eq!(*shelf.hits.lock().unwrap(), 0);
    let cached = ENGINE.load(&wasm, Some(&shelf)).unwrap();
    assert_eq!(*shelf.hits.lock().unwrap(), 1);
    assert_eq!(history(&compiled), history(&cached));
    // Another engine with the same settings finds the same key: a restart uses the cache.
    Engine::new().unwrap().load(&wasm, Some(&shelf)).unwrap();
    assert_eq!(*shelf.hits.lock().unwrap(), 2);
}

#[test]
fn a_damaged_file_in_the_cache_is_compiled_again_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let cache = DirCache::open(directory.path()).unwrap();
    let wasm = wat::parse_str(SCRIPT).unwrap();
    ENGINE.load(&wasm, Some(&cache)).unwrap();
    let file = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| !path.ends_with("key"))
        .unwrap();
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    std::fs::write(&file, damaged).unwrap();
    history(&ENGINE.load(&wasm, Some(&cache)).unwrap());
    assert_eq!(std::fs::read(&file).unwrap(), whole);
}

/// The rewritten module, validated, as text.
fn rewritten(wat: &str) -> String {
    let wasm = wat::parse_str(wat).unwrap();
    let analysis = inspect(&wasm, &Limits::ceiling()).unwrap();
    let bytes = rewrite::rewrite(&wasm, &analysis).unwrap();
    wasmparser::validate(&bytes).unwrap();
    // How often the depth, the last global, is set in each function.
    let mut sets = String::new();
    for payload in wasmparser::Parser::new(0).parse_all(&bytes) {
        if let wasmparser::Payload::CodeSectionEntry(body) = payload.unwrap() {
            let depth = analysis.globals;
            let count = body
                .get_operators_reader()
                .unwrap()
                .into_iter()
                .filter(|operator| matches!(operator, Ok(wasmparser::Operator::GlobalSet { global_index }) if *global_index == depth))
                .count();
            sets.push_str(&count.to_string());
        }
    }
    // The last two are none of the module's own: one copies, one marks.
    sets.strip_suffix("00").unwrap().to_owned()
}

/// A module whose functions after the ABI's seven are `functions`.
pub(in crate::module) fn with(functions: &str) -> String {
    format!(
        r#"(module (memory (export "memory") 1) (table $t 4 4 funcref)
        (type $unary (func (param i32) (result i32)))
        (func (export "statehouse_abi_1"))
        (func (export "alloc") (param i32) (result i32) (i32.const 1024))
        (func (export "init") (param i32 i32) (result i64) (i64.const 0))
        (func (export "apply") (param i32 i32) (result i64) (i64.const 0))
        (func (export "query") (param i32 i32) (result i64) (i64.const 0))
        (func (export "snapshot") (result i64) (i64.const 0))
        (func (export "restore") (result i64) (i64.const 0))
        {functions})"#
    )
}

#[test]
fn only_functions_that_can_recurse_count_their_frames() {
    let counted = |functions: &str| rewritten(&with(functions))[7..].to_string();
    assert_eq!(counted("(func $a (call $b)) (func $b)"), "00", "a chain");
    assert_eq!(counted("(func $a (call $a)) (func $b (call $a))"), "20", "itself");
    assert_eq!(
        counted("(func $a (call $b)) (func $b (call $c)) (func $c (call $a)) (func $d (call $a))"),
        "2220",
        "a circle"
    );
    let indirect = "(func $a (param i32) (result i32) (call_indirect (type $unary) (i32.const 0) (i32.const 0)))";
    assert_eq!(counted(indirect), "0", "nobody's reference is taken");
    assert_eq!(counted(&format!("{indirect} (elem (i32.const 0) $a)")), "2", "its own may be in the table");
    assert_eq!(counted(&format!("{indirect} (func $b) (elem (i32.const 0) $b)")), "00", "another type");
    assert_eq!(
        counted(&format!(
            "{indirect} (func $b (param i32) (result i32) (call $a (i32.const 0))) (elem (i32.const 0) $b)"
        )),
        "22",
        "through the table and back"
    );
}

#[test]
fn a_chain_deeper_than_the_stack_counts_without_recursion() {
    let mut functions = String::new();
    for number in 0..400 {
        functions.push_str(&format!("(func $f{number} (local{}) (call $f{}))", " i64".repeat(400), number + 1));
    }
    functions.push_str("(func $f400)");
    let counted = rewritten(&with(&functions));
    assert_eq!(counted[7..], format!("{}0", "2".repeat(400)));
}

#[test]
fn a_counting_function_gives_back_what_it_took_on_every_way_out() {
    // Ways out of a recursive function: its end, `return` at several depths, branches to its own label,
    // with none, one and several results. What stays would sum up to an overflow within 20000 rounds.
    let module = load(
        &with(
            r#"
        (func $several (param i32) (result i32 i64)
          (if (i32.eq (local.get 0) (i32.const 1)) (then (block (loop (return (i32.const 1) (i64.const 2))))))
          (if (i32.eq (local.get 0) (i32.const 2)) (then (br 1 (i32.const 3) (i64.const 4))))
          (if (i32.eq (local.get 0) (i32.const 9)) (then (call $none (i32.const 0))))
          (i32.const 5) (i64.const 6))
        (func $one (param i32) (result f32)
          (if (i32.eq (local.get 0) (i32.const 1)) (then (return (f32.const 1))))
          (if (i32.eq (local.get 0) (i32.const 9)) (then (drop (call $one (i32.const 0)))))
          (block (result f32) (f32.const 2) (br_table 0 1 0 (local.get 0))))
        (func $none (param i32)
          (if (i32.eq (local.get 0) (i32.const 1)) (then (return)))
          (br_if 0 (i32.eq (local.get 0) (i32.const 2)))
          (if (i32.eq (local.get 0) (i32.const 9)) (then (drop (drop (call $several (i32.const 0))))))
          (block (br_table 0 1 (local.get 0))))
        "#,
        )
        .replace(
            r#"(export "apply") (param i32 i32) (result i64) (i64.const 0))"#,
            r#"(export "apply") (param i32 i32) (result i64) (local $n i32)
          (loop $again
            (call $none (i32.and (local.get $n) (i32.const 3)))
            (drop (call $one (i32.and (local.get $n) (i32.const 3))))
            (call $several (i32.and (local.get $n) (i32.const 3))) (drop) (drop)
            (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 20000))))
          (i64.const 0))"#,
        ),
    );
    let limits = Limits { fuel_per_entry: 1 << 40, ..limits() };
    let mut machine = Machine::init(&module, &limits, &Context::default(), b"{}", &mut Effects::default()).unwrap();
    assert_eq!(apply(&mut machine, 1, b""), Outcome::Reply(Vec::new()));
}

#[test]
fn frames_far_larger_than_the_source_shows_still_meet_the_logical_limit_first() {
    // Many values that the compiler may keep in its frame across a recursive call, few of them locals.
    let mut body = String::from("(local.get 0)");
    for number in 1..2000 {
        body.push_str(&format!("(i64.load offset={} (i32.const 0))", number * 8));
    }
    body.push_str("(call $deep (i64.add (local.get 0) (i64.const 1)))");
    for _ in 1..2000 {
        body.push_str("(i64.add)");
    }
    let module = load(&with(&format!("(func $deep (param i64) (result i64) {body} (i64.add))")).replace(
        r#"(export "apply") (param i32 i32) (result i64) (i64.const 0))"#,
        r#"(export "apply") (param i32 i32) (result i64) (call $deep (i64.const 0)))"#,
    ));
    let mut machine = Machine::init(&module, &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
    assert_eq!(code(&apply(&mut machine, 1, b"")), TrapCode::StackOverflow);
}

#[test]
fn a_start_function_runs_once_in_a_machines_life() {
    let module = load(
        &with(
            r#"(global $starts (mut i32) (i32.const 0))
        (func $start (global.set $starts (i32.add (global.get $starts) (i32.const 1))))
        (start $start)"#,
        )
        .replace(
            r#"(export "query") (param i32 i32) (result i64) (i64.const 0))"#,
            r#"(export "query") (param i32 i32) (result i64) (i64.extend_i32_u (global.get $starts)))"#,
        ),
    );
    let mut machine = Machine::init(&module, &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
    // A result of length 1: the start function has run once, also on the view made later.
    assert!(matches!(machine.query(&at(1), b"").unwrap(), Outcome::Reply(bytes) if bytes.len() == 1));
}

#[test]
fn short_copies_do_what_the_instruction_does() {
    // `apply` copies as three numbers after the header say, and answers with the memory's first 256 bytes.
    let module = load(
        &with("(data (i32.const 0) \"@BYTES@\")")
            .replace("@BYTES@", &(0..=255).map(|byte| format!("\\{byte:02x}")).collect::<String>())
            .replace(
                r#"(export "apply") (param i32 i32) (result i64) (i64.const 0))"#,
                r#"(export "apply") (param i32 i32) (result i64)
          (memory.copy (i32.load offset=48 (local.get 0)) (i32.load offset=52 (local.get 0)) (i32.load offset=56 (local.get 0)))
          (i64.const 256))"#,
            ),
    );
    let numbers = |to: u32, from: u32, length: u32| [to, from, length].map(u32::to_le_bytes).concat();
    let fresh = || Machine::init(&module, &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
    story(|| {
        let mut machine = fresh();
        let mut memory: Vec<u8> = (0..=255).collect();
        // Apart, overlapping in both directions, and onto itself.
        for length in 0..=100 {
            for (to, from) in [(128, 0), (3, 0), (0, 3), (40, 20), (20, 40), (7, 7)] {
                memory.copy_within(from as usize..(from + length) as usize, to as usize);
                let outcome = apply(&mut machine, 1, &numbers(to, from, length));
                assert_eq!(outcome, Outcome::Reply(memory.clone()), "{length} bytes from {from} to {to}");
            }
        }
        // The last bytes of memory, and past them: nothing of it stays.
        let end = 1 << 16;
        for length in 0..=100 {
            assert_eq!(apply(&mut machine, 1, &numbers(0, end - length, length)), {
                memory[..length as usize].fill(0);
                Outcome::Reply(memory.clone())
            });
            for (to, from) in [(0, end - length + 1), (end - length + 1, 0), (0, u32::MAX), (u32::MAX - 2, 0)] {
                let outcome = apply(&mut machine, 1, &numbers(to, from, length));
                assert_eq!(code(&outcome), TrapCode::OutOfBounds, "{length} bytes from {from} to {to}");
            }
            assert_eq!(apply(&mut machine, 1, &numbers(0, 0, 0)), Outcome::Reply(memory.clone()));
        }
    });
}
