//! Adapters: instances of a module that serve connections.

use super::*;

/// `adapter_open` answers its whole argument. `adapter_step` does what the first byte of its records says: answers the
/// count of steps, a byte; emits; traps; rejects; answers two megabytes of the ABI's 64; grows by a page.
const ADAPTER: &str = r#"
(module
  (import "statehouse" "emit" (func $emit (param i32 i32)))
  (import "statehouse" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 40)
  (global $steps (mut i32) (i32.const 0))
  (data (i32.const 0) "no")
  (func (export "statehouse_abi_1"))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "init") (param i32 i32) (result i64) (global.set $steps (i32.const 100)) (i64.const 0))
  (func (export "apply") (param i32 i32) (result i64) (i64.const 0))
  (func (export "query") (param i32 i32) (result i64) (i64.const 0))
  (func (export "snapshot") (result i64) (i64.const 0))
  (func (export "restore") (result i64) (i64.const 0))
  (func (export "adapter_open") (param $argument i32) (param $length i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $argument)) (i64.const 32)) (i64.extend_i32_u (local.get $length))))
  (func (export "adapter_step") (param $argument i32) (param $length i32) (result i64)
    (local $what i32)
    (local.set $what (i32.load8_u offset=48 (local.get $argument)))
    (global.set $steps (i32.add (global.get $steps) (i32.const 1)))
    (i32.store8 (i32.const 8) (global.get $steps))
    (call $log (i32.const 3) (i32.const 0) (i32.const 2))
    (if (i32.eq (local.get $what) (i32.const 1)) (then (call $emit (i32.const 0) (i32.const 2))))
    (if (i32.eq (local.get $what) (i32.const 2)) (then unreachable))
    (if (i32.eq (local.get $what) (i32.const 3)) (then (return (i64.const 0x80000002))))
    (if (i32.eq (local.get $what) (i32.const 4)) (then (return (i64.const 0x200000))))
    (i64.const 0x800000001)))
"#;

fn open(module: &Module) -> (AdapterInstance, Vec<u8>) {
    let call = AdapterCall { index: 7, time_ms: 8, seed: 5, flags: 3 };
    AdapterInstance::open(module, &limits(), &call, b"{}", &mut Vec::new()).unwrap()
}

fn step(adapter: &mut AdapterInstance, what: u8) -> Result<Vec<u8>, AdapterError> {
    adapter.step(&AdapterCall::default(), &[what], &mut Vec::new())
}

#[test]
fn an_adapter_is_told_its_settings_and_the_nodes_own_header() {
    let (_, argument) = open(&load(ADAPTER));
    let (header, settings) = argument.split_at(48);
    let words: Vec<u64> = header.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!((words[0], words[1], words[2], words[5]), (48 | 3 << 32, 7, 8, 0));
    assert_eq!(settings, b"{}");
}

#[test]
fn an_adapter_keeps_what_it_knows_from_step_to_step_and_shares_it_with_nobody() {
    let module = load(ADAPTER);
    let (mut one, _) = open(&module);
    let (mut other, _) = open(&module);
    assert_eq!(step(&mut one, 0).unwrap(), [1], "init was not called");
    let mut logs = Vec::new();
    assert_eq!(one.step(&AdapterCall::default(), &[0], &mut logs).unwrap(), [2]);
    assert_eq!(logs, [(LogLevel::Info, "no".to_string())]);
    assert_eq!(step(&mut other, 0).unwrap(), [1]);
}

#[test]
fn what_ends_an_adapter_is_told_in_words() {
    let module = load(ADAPTER);
    let ended = |what| step(&mut open(&module).0, what).unwrap_err().to_string();
    assert!(ended(1).starts_with("the adapter trapped: forbidden_call: "), "{}", ended(1));
    assert!(ended(2).starts_with("the adapter trapped: unreachable: "), "{}", ended(2));
    assert_eq!(ended(3), "the adapter rejected its input: no");
    assert_eq!(step(&mut open(&module).0, 4).unwrap().len(), 2 << 20, "an adapter may say more than a reply holds");
}

#[test]
fn one_half_of_an_adapter_is_refused() {
    let half = ADAPTER.replace("(export \"adapter_open\")", "");
    let refused = ENGINE.gate(&wat::parse_str(half).unwrap(), &limits()).unwrap_err();
    assert_eq!(refused.code, GateCode::MissingExport);
    assert!(refused.what.contains("adapter_step") && refused.what.contains("adapter_open"), "{refused}");
    assert!(ENGINE.gate(&wat::parse_str(ADAPTER).unwrap(), &limits()).unwrap().has_adapter);
}
