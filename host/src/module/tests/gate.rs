//! What the gate refuses, each with its code, its name for the culprit and a remedy.

use super::*;

/// A small module that passes; each test changes one line of it.
const GOOD: &str = r#"(module
  (import "statehouse" "read" (func (param i32 i32) (result i32)))
  (memory (export "memory") 1 2)
  (table 1 funcref)
  (global (mut i32) (i32.const 0))
  (func (export "statehouse_abi_1"))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "init") (param i32 i32) (result i64) (i64.const 0))
  (func (export "apply") (param i32 i32) (result i64) (i64.const 0))
  (func (export "query") (param i32 i32) (result i64) (i64.const 0))
  (func (export "snapshot") (result i64) (i64.const 0))
  (func (export "restore") (result i64) (i64.const 0))
)"#;

fn gate(wat: &str) -> Result<ModuleInfo, GateError> {
    ENGINE.gate(&wat::parse_str(wat).unwrap(), &limits())
}

/// `GOOD` with `part` replaced is refused with `code`, and the text names `culprit`.
fn refused(part: &str, by: &str, code: GateCode, culprit: &str) {
    assert!(GOOD.contains(part), "{part}");
    let error = gate(&GOOD.replace(part, by)).expect_err(by);
    assert_eq!(error.code, code, "{error}");
    assert!(error.what.contains(culprit), "{error}");
    assert!(!error.remedy.is_empty());
}

/// `GOOD` with `line` added.
fn refused_with(line: &str, code: GateCode, culprit: &str) {
    refused("(table 1 funcref)", &format!("(table 1 funcref) {line}"), code, culprit);
}

#[test]
fn a_good_module_passes_and_is_described() {
    let info = gate(GOOD).unwrap();
    assert_eq!(info.imports, ["read"]);
    assert_eq!((info.memory_min_bytes, info.memory_max_bytes), (1 << 16, Some(2 << 16)));
    assert!(!info.has_timer && !info.has_session_end && !info.has_migrate && !info.has_adapter);
    assert!(matches!(info.self_test, SelfTest::Passed { snapshot_bytes: 0, snapshot_stable: true, .. }));
    let script = gate(SCRIPT).unwrap();
    assert!(script.has_timer);
    assert!(matches!(script.self_test, SelfTest::Passed { snapshot_bytes: 8, .. }));
}

#[test]
fn what_is_not_a_core_module() {
    let code = |bytes: &[u8]| ENGINE.gate(bytes, &limits()).unwrap_err().code;
    assert_eq!(code(b""), GateCode::NotWasm);
    assert_eq!(code(b"(module)"), GateCode::NotWasm);
    assert_eq!(code(b"\0asm\x0d\0\x01\0"), GateCode::ComponentNotCore);
    let wasm = wat::parse_str(GOOD).unwrap();
    assert_eq!(code(&wasm[..wasm.len() - 3]), GateCode::NotWasm);
    let small = Limits { wasm_bytes_max: 10, ..limits() };
    assert_eq!(ENGINE.gate(&wasm, &small).unwrap_err().code, GateCode::TooLarge);
}

#[test]
fn imports_outside_the_abi() {
    let read = r#"(import "statehouse" "read" (func (param i32 i32) (result i32)))"#;
    refused(
        read,
        r#"(import "wasi_snapshot_preview1" "fd_write" (func))"#,
        GateCode::ForbiddenImport,
        r#""wasi_snapshot_preview1"."fd_write""#,
    );
    refused(read, r#"(import "statehouse" "open" (func))"#, GateCode::ForbiddenImport, r#""statehouse"."open""#);
    refused(read, r#"(import "env" "memory" (memory 1))"#, GateCode::ForbiddenImport, "memory");
    refused(read, r#"(import "statehouse" "read" (func))"#, GateCode::WrongImportType, "() -> ()");
    refused(read, r#"(import "statehouse" "read" (global i32))"#, GateCode::WrongImportType, "read");
    refused(read, r#"(import "statehouse" "set_timer" (func (param i64 i64)))"#, GateCode::MissingExport, "timer");
}

#[test]
fn exports_that_lack_or_have_another_type() {
    for name in ["alloc", "init", "apply", "query", "snapshot", "restore", "memory"] {
        refused(&format!("(export \"{name}\")"), "", GateCode::MissingExport, name);
    }
    refused(r#"(export "statehouse_abi_1")"#, "", GateCode::MissingAbiMarker, "statehouse_abi_1");
    refused("statehouse_abi_1", "statehouse_abi_2", GateCode::MissingAbiMarker, "statehouse_abi_2");
    refused(
        r#"(export "snapshot") (result i64) (i64.const 0)"#,
        r#"(export "snapshot")"#,
        GateCode::WrongExportType,
        "snapshot",
    );
    refused(
        r#"(func (export "restore") (result i64) (i64.const 0))"#,
        r#"(global (export "restore") i32 (i32.const 0))"#,
        GateCode::WrongExportType,
        "restore",
    );
    refused_with(r#"(func (export "timer"))"#, GateCode::WrongExportType, "timer");
    refused_with(r#"(func (export "statehouse:g0"))"#, GateCode::ReservedName, "statehouse:g0");
}

#[test]
fn proposals_that_are_off_are_named() {
    refused_with("(func (drop (i32.atomic.load (i32.const 0))))", GateCode::FeatureOff, "threads");
    refused_with(
        "(func (drop (i32x4.relaxed_trunc_f32x4_s (v128.const i32x4 0 0 0 0))))",
        GateCode::FeatureOff,
        "relaxed SIMD",
    );
    refused_with("(func $f (return_call $f))", GateCode::FeatureOff, "tail calls");
    refused_with("(memory 1)", GateCode::FeatureOff, "several memories");
    refused_with("(func (param externref))", GateCode::FeatureOff, "references other than functions");
    refused_with("(tag)", GateCode::FeatureOff, "exceptions");
    refused_with("(type (struct))", GateCode::FeatureOff, "garbage collection");
    refused(
        r#"(memory (export "memory") 1 2)"#,
        r#"(memory (export "memory") i64 1 2)"#,
        GateCode::FeatureOff,
        "64-bit memory",
    );
    refused(
        r#"(memory (export "memory") 1 2)"#,
        r#"(memory (export "memory") 1 2 shared)"#,
        GateCode::FeatureOff,
        "shared",
    );
}

#[test]
fn state_that_a_roll_back_would_miss() {
    refused_with("(global (mut funcref) (ref.null func))", GateCode::ReferenceGlobal, "global 0");
    refused_with("(func (table.set (i32.const 0) (ref.null func)))", GateCode::MutableTable, "table.set");
    refused_with("(func (drop (table.grow (ref.null func) (i32.const 1))))", GateCode::MutableTable, "table.grow");
    refused_with(
        "(func (table.fill (i32.const 0) (ref.null func) (i32.const 1)))",
        GateCode::MutableTable,
        "table.fill",
    );
    refused_with("(func (table.copy (i32.const 0) (i32.const 0) (i32.const 1)))", GateCode::MutableTable, "table.copy");
    refused_with(
        "(elem $e func) (func (table.init $e (i32.const 0) (i32.const 0) (i32.const 0)))",
        GateCode::MutableTable,
        "table.init",
    );
    refused_with("(elem $e func) (func (elem.drop $e))", GateCode::DroppedSegment, "elem.drop");
    refused_with("(data $d \"x\") (func (data.drop $d))", GateCode::DroppedSegment, "data.drop");
}

/// `docs/abi.md` said that it is refused. rustc's linker exports one when it is asked to, and nobody outside of the module changes it.
#[test]
fn an_exported_table_that_nothing_changes_is_let_in() {
    gate(&GOOD.replace("(table 1 funcref)", r#"(table (export "t") 1 funcref)"#)).unwrap();
}

#[test]
fn sizes_over_the_limits() {
    let tight = Limits {
        functions_max: 8,
        locals_max: 10,
        function_bytes_max: 100,
        tables_max: 2,
        table_elements_max: 5,
        globals_max: 2,
        ..limits()
    };
    let refused_with = |line: &str, code: GateCode| {
        let wat = GOOD.replace("(table 1 funcref)", &format!("(table 1 funcref) {line}"));
        assert_eq!(ENGINE.gate(&wat::parse_str(wat).unwrap(), &tight).unwrap_err().code, code, "{line}");
    };
    refused_with("(func) (func)", GateCode::TooManyFunctions);
    refused_with(&format!("(func (local{}))", " i32".repeat(11)), GateCode::TooManyLocals);
    refused_with(&format!("(func {})", "nop ".repeat(101)), GateCode::FunctionTooLarge);
    refused_with("(table 1 funcref) (table 1 funcref)", GateCode::TooManyTables);
    refused_with("(table 5 funcref)", GateCode::TooManyTables);
    refused_with("(global i32 (i32.const 0)) (global i32 (i32.const 0))", GateCode::TooManyGlobals);
    refused(
        r#"(memory (export "memory") 1 2)"#,
        r#"(memory (export "memory") 65 100)"#,
        GateCode::TooMuchMemory,
        "memory_bytes_max",
    );
}

#[test]
fn the_self_test_finds_what_only_running_shows() {
    let init = r#"(func (export "init") (param i32 i32) (result i64) (i64.const 0))"#;
    let looping = r#"(func (export "init") (param i32 i32) (result i64) (loop (br 0)) (unreachable))"#;
    refused(init, looping, GateCode::SelfTestTrapped, "out_of_fuel");
    let looping_start = format!("{init} (func $start (loop (br 0))) (start $start)");
    refused(init, &looping_start, GateCode::SelfTestTrapped, "out_of_fuel");
    let data_outside = format!("{init} (data (i32.const 65536) \"x\")");
    refused(init, &data_outside, GateCode::SelfTestTrapped, "out_of_bounds");
    let restore = r#"(func (export "restore") (result i64) (i64.const 0))"#;
    refused(
        restore,
        r#"(func (export "restore") (result i64) (i64.const 0x80000000))"#,
        GateCode::SelfTestRejected,
        "restore",
    );
    // Rejecting `{}` is no fault: the module wants parameters.
    let info =
        gate(&GOOD.replace(init, r#"(func (export "init") (param i32 i32) (result i64) (i64.const 0x80000000))"#))
            .unwrap();
    assert_eq!(info.self_test, SelfTest::ParamsNeeded(String::new()));
}

#[test]
fn every_code_and_trap_has_its_own_name() {
    let codes: std::collections::BTreeSet<_> = GateCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(codes.len(), GateCode::ALL.len());
    let codes: std::collections::BTreeSet<_> = TrapCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(codes.len(), TrapCode::ALL.len());
}

#[test]
fn simd_is_let_in() {
    // Needs the parser's own `simd` feature in Cargo.toml.
    let simd = r#"(func (param v128) (result i32) (i32x4.extract_lane 1 (i32x4.add (local.get 0) (local.get 0))))"#;
    gate(&GOOD.replace("(table 1 funcref)", &format!("(table 1 funcref) {simd}"))).unwrap();
}

/// The snapshot of a new machine was kept in memory, twice, however long it was: a kilobyte of module took a node's memory.
#[test]
fn a_new_machine_that_writes_a_long_snapshot_is_refused() {
    let long = r#"(func (export "snapshot") (result i64) (local $left i32)
        (local.set $left (i32.const 1100))
        (loop $more
            (call $write (i32.const 0) (i32.const 65536))
            (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
        (i64.const 0))"#;
    let import = r#"(import "statehouse" "read" (func (param i32 i32) (result i32)))"#;
    let both = format!(r#"{import} (import "statehouse" "write" (func $write (param i32 i32)))"#);
    let module = GOOD.replace(import, &both).replace(r#"(func (export "snapshot") (result i64) (i64.const 0))"#, long);
    let error = gate(&module).expect_err("70 MiB");
    assert_eq!(error.code, GateCode::SelfTestTrapped, "{error}");
    assert!(error.what.contains("snapshot_bytes_max"), "{error}");
    gate(&module.replace("1100", "900")).expect_err("which restore does not read");
}

/// Each type was compared with all before it: a file of 12 MB took hours.
#[test]
fn many_types_are_told_apart_in_no_more_time_than_they_take_to_read() {
    let kinds = ["i32", "i64", "f32", "f64", "v128"];
    let types: String = (0..60_000_usize)
        .map(|number| {
            let params: Vec<&str> = (0..7).map(|place| kinds[number / 5_usize.pow(place) % 5]).collect();
            format!("(type (func (param {})))", params.join(" "))
        })
        .collect();
    gate(&GOOD.replace("(table 1 funcref)", &format!("{types} (table 1 funcref)"))).unwrap();
}

/// An address that wraps round has passed the last page, which no memory has.
#[test]
fn no_memory_has_the_last_page_of_32_bits() {
    let limits = Limits { memory_bytes_max: u64::MAX, ..Limits::default() };
    assert_eq!(limits.memory_bytes(), (1 << 32) - (1 << 16));
}
