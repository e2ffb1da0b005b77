//! Modules the tests run: the bundled ones, and small ones in WebAssembly's text form, each with one habit.

/// The bundled module of this name.
pub fn bundled(name: &str) -> &'static [u8] {
    let found = statehouse::bundled::all().iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no bundled module {name}")).1
}

/// `tests/modules/accumulator.wat`: adds up decimal numbers, panics when the sum would overflow 64 bits.
pub fn accumulator() -> Vec<u8> {
    wat::parse_str(include_str!("../modules/accumulator.wat")).unwrap()
}

/// The parts every module has. `body` adds functions or replaces what `without` leaves out, by export name.
fn module(without: &[&str], body: &str) -> Vec<u8> {
    let parts = [
        ("memory", r#"(memory (export "memory") 1)"#),
        ("statehouse_abi_1", r#"(func (export "statehouse_abi_1"))"#),
        ("alloc", r#"(func (export "alloc") (param i32) (result i32) (i32.const 1024))"#),
        ("init", r#"(func (export "init") (param i32 i32) (result i64) (i64.const 0))"#),
        ("apply", r#"(func (export "apply") (param i32 i32) (result i64) (i64.const 0))"#),
        ("query", r#"(func (export "query") (param i32 i32) (result i64) (i64.const 0))"#),
        ("snapshot", r#"(func (export "snapshot") (result i64) (i64.const 0))"#),
        ("restore", r#"(func (export "restore") (result i64) (i64.const 0))"#),
    ];
    let kept: Vec<&str> = parts.iter().filter(|(name, _)| !without.contains(name)).map(|(_, text)| *text).collect();
    wat::parse_str(format!("(module {body} {})", kept.join(" "))).unwrap()
}

/// Lacks one export.
pub fn lacking(export: &str) -> Vec<u8> {
    module(&[export], "")
}

/// Imports what is not in the ABI.
pub fn importing(from: &str, name: &str) -> Vec<u8> {
    module(&[], &format!(r#"(import "{from}" "{name}" (func))"#))
}

/// Never returns from `init`.
pub fn looping_in_init() -> Vec<u8> {
    module(
        &["init"],
        r#"(func (export "init") (param i32 i32) (result i64) (loop $for_ever (br $for_ever)) (i64.const 0))"#,
    )
}

/// Never returns from `apply`; its queries answer at once.
pub fn burning_all_fuel() -> Vec<u8> {
    module(
        &["apply"],
        r#"(func (export "apply") (param i32 i32) (result i64) (loop $for_ever (br $for_ever)) (i64.const 0))"#,
    )
}

/// As good as any, and larger than `bytes`.
pub fn larger_than(bytes: usize) -> Vec<u8> {
    padded(module(&[], ""), bytes)
}

/// Another file than `wasm`, and so another module, which does the same.
pub fn twin(wasm: &[u8]) -> Vec<u8> {
    padded(wasm.to_vec(), 1)
}

/// The module with a custom section, which no engine looks at: id 0, length, name, content.
fn padded(mut wasm: Vec<u8>, bytes: usize) -> Vec<u8> {
    let mut length = bytes + 2;
    wasm.push(0);
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        wasm.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    wasm.extend([1, b'x']);
    wasm.resize(wasm.len() + bytes, 0);
    wasm
}

/// `tests/modules/counter-2`: the next version of `examples/counter`, which takes over the state of the first.
pub fn counter_2() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/counter_2.wasm"))
}

/// `tests/modules/lines`: a module with an adapter, spoken to in lines.
pub fn lines() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/lines.wasm"))
}
