//! What one call can do and what it is told.

use super::*;

#[test]
fn the_guest_sees_the_header_of_abi_1() {
    let mut machine = new_machine();
    let context = Context { index: 3, time_ms: 4, seed: 5, session: 6 };
    let Outcome::Reply(bytes) = machine.apply(&context, &[HEADER], &mut Effects::default()).unwrap() else { panic!() };
    let words: Vec<u64> = bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    // The seed's expansion is a contract: replays on later versions must see the same bits.
    let (low, high) = (words[3], words[4]);
    assert_eq!(words, [48, 3, 4, low, high, 6]);
    assert_eq!((low, high), (0x6303_3b0c_a389_c35a, 0xc097_314d_9397_36f8));
}

#[test]
fn a_panic_carries_the_guests_text_and_keeps_its_log_lines() {
    let mut machine = new_machine();
    let mut effects = Effects::default();
    let outcome = machine.apply(&at(1), &[FAIL, 1], &mut effects).unwrap();
    assert_eq!(outcome, Outcome::Trapped(Trap { code: TrapCode::Panic, message: "out of cheese".into() }));
    assert_eq!(effects.logs, [(LogLevel::Error, "out of".to_string())]);
}

#[test]
fn each_breach_has_its_code() {
    let mut machine = new_machine();
    let mut code_of = |command: &[u8]| code(&apply(&mut machine, 1, command));
    assert_eq!(code_of(&[WRITE_AND_TRAP]), TrapCode::Unreachable);
    assert_eq!(code_of(&[OUT_OF_BOUNDS]), TrapCode::OutOfBounds);
    assert_eq!(code_of(&[DIVIDE]), TrapCode::IntegerDivideByZero);
    assert_eq!(code_of(&[LONG_REPLY, 11]), TrapCode::ReplyTooLarge);
    assert_eq!(code_of(&[EMIT, 11]), TrapCode::TooManyEvents);
    assert_eq!(code_of(&[SET_TIMER, 4]), TrapCode::TooManyTimers);
    assert_eq!(code_of(&[BAD_POINTER]), TrapCode::BadPointer);
    assert_eq!(code_of(&[ADD; 60_000]), TrapCode::MemoryLimit, "alloc answers 0");
}

#[test]
fn up_to_each_limit_all_is_well_and_effects_come_in_order() {
    let mut machine = new_machine();
    let mut effects = Effects::default();
    assert!(
        matches!(machine.apply(&at(1), &[LONG_REPLY, 10], &mut effects).unwrap(), Outcome::Reply(bytes) if bytes.len() == 1000)
    );
    machine.apply(&at(2), &[EMIT, 10], &mut effects).unwrap();
    let letters: Vec<u8> = effects.events.concat();
    assert_eq!(letters, b"out of che");
    machine.apply(&at(3), &[SET_TIMER, 3], &mut effects).unwrap();
    assert!(effects.events.is_empty(), "each call begins with none");
    assert_eq!(effects.timers, [0, 1, 2].map(|id| TimerChange { id, at_ms: Some(5000) }));
}

#[test]
fn a_rejection_is_an_answer_with_text() {
    assert_eq!(apply(&mut new_machine(), 1, &[REJECT]), Outcome::Rejected("out of cheese".into()));
}

#[test]
fn a_timer_reaches_the_guest_and_a_missing_export_is_an_empty_reply() {
    let mut machine = new_machine();
    assert_eq!(number(&machine.timer(&at(1), 41, &mut Effects::default()).unwrap()), 41);
    assert_eq!(machine.session_end(&at(2), &mut Effects::default()).unwrap(), Outcome::Reply(Vec::new()));
}

#[test]
fn a_nan_has_the_same_bits_on_every_cpu() {
    // x86 makes 0/0 with the sign bit set, ARM without: the canonical one has no sign.
    assert_eq!(number(&apply(&mut new_machine(), 1, &[NAN, 0])), 0x7ff8_0000_0000_0000);
}

#[test]
fn wasmtime_still_tells_where_memory_was_missed() {
    // `fault_lies_outside` reads this text; when wasmtime words it otherwise, it must learn the new one.
    let engine = wasmtime::Engine::default();
    let wat = r#"(module (memory 1) (func (export "f") (drop (i32.load (i32.const 0x7fff0000)))))"#;
    let module = wasmtime::Module::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
    let mut store = wasmtime::Store::new(&engine, ());
    let instance = wasmtime::Instance::new(&mut store, &module, &[]).unwrap();
    let error = instance.get_typed_func::<(), ()>(&mut store, "f").unwrap().call(&mut store, ()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("memory fault at wasm address 0x7fff0000 in linear memory of size 0x10000"), "{text}");
}
