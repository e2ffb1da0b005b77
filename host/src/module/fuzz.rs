//! What the fuzzers do with bytes, and what a test does with random ones.

use wasm_encoder::BlockType;
use wasm_encoder::CodeSection;
use wasm_encoder::ConstExpr;
use wasm_encoder::ElementSection;
use wasm_encoder::Elements;
use wasm_encoder::EntityType;
use wasm_encoder::ExportKind;
use wasm_encoder::ExportSection;
use wasm_encoder::Function;
use wasm_encoder::FunctionSection;
use wasm_encoder::GlobalSection;
use wasm_encoder::GlobalType;
use wasm_encoder::ImportSection;
use wasm_encoder::InstructionSink;
use wasm_encoder::MemArg;
use wasm_encoder::MemorySection;
use wasm_encoder::MemoryType;
use wasm_encoder::RefType;
use wasm_encoder::TableSection;
use wasm_encoder::TableType;
use wasm_encoder::TypeSection;
use wasm_encoder::ValType;

use super::Context;
use super::Effects;
use super::Engine;
use super::Limits;
use super::Machine;
use super::Outcome;
use super::inspect::inspect;
use super::rewrite;
use super::stack::on_guest_stack;

/// The gate answers any bytes, and what it lets in is still valid after the rewrite.
pub fn gate(bytes: &[u8]) {
    if let Ok(analysis) = inspect(bytes, &Limits::default()) {
        let rewritten = rewrite::rewrite(bytes, &analysis);
        assert!(rewritten.is_ok_and(|module| wasmparser::validate(&module).is_ok()), "the rewrite broke a good module");
    }
}

/// The same of a module that was good before a few of its bytes became others: what is nearly right gets further into the gate.
pub fn nearly(bytes: &[u8]) {
    let (count, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let (edits, rest) = rest.split_at_checked(usize::from(count % 8) * 3).unwrap_or((rest, &[]));
    let mut wasm = Generator { bytes: rest, at: 0 }.module();
    for [low, high, value] in edits.as_chunks::<3>().0 {
        let place = usize::from(u16::from_le_bytes([*low, *high])).checked_rem(wasm.len());
        if let Some(byte) = place.and_then(|place| wasm.get_mut(place)) {
            *byte = *value;
        }
    }
    gate(&wasm);
}

/// A guest made from `bytes`, which loops, recurses, traps, grows, and calls imports and answers with any
/// numbers: two machines agree on every entry, though one of them answers queries and is frozen between; and
/// an entry that traps leaves nothing.
pub fn abi(bytes: &[u8]) {
    #[allow(clippy::expect_used, reason = "a fuzzer reports by panicking")]
    on_guest_stack(|| run(bytes)).expect("a thread for guest code");
}

#[allow(clippy::expect_used, reason = "a fuzzer reports by panicking")]
fn run(bytes: &[u8]) {
    let wasm = Generator { bytes, at: 0 }.module();
    gate(&wasm);
    let limits = Limits {
        memory_bytes_max: 1 << 20,
        fuel_per_entry: 200_000,
        fuel_snapshot: 200_000,
        reply_bytes_max: 1 << 10,
        events_max: 20,
        timers_max: 20,
        ..Limits::default()
    };
    let engine = Engine::new().expect("an engine");
    let module = engine.load(&wasm, None).expect("a generated module passes");
    let init = || {
        Machine::init(&module, &limits, &Context::default(), b"{}", &mut Effects::default()).expect("init does nothing")
    };
    let (mut quiet, mut busy) = (init(), init());
    for index in 1..12_u64 {
        let context = Context { index, seed: index, ..Context::default() };
        let command = (index * 0x0101_0307).to_le_bytes();
        let before = quiet.image_digest().expect("no fault");
        let (mut left, mut right) = (Effects::default(), Effects::default());
        let outcome = quiet.apply(&context, &command, &mut left).expect("no fault");
        assert_eq!(outcome, busy.apply(&context, &command, &mut right).expect("no fault"), "entry {index}");
        assert_eq!(left, right, "entry {index}");
        if matches!(outcome, Outcome::Trapped(_)) {
            assert_eq!(before, quiet.image_digest().expect("no fault"), "a trap left something");
            assert!(left.events.is_empty() && left.timers.is_empty());
        }
        if index % 3 != 0 {
            busy.query(&context, &command).expect("no fault");
        }
        if index % 4 == 0 {
            let _ = busy.freeze().expect("no fault").snapshot(&mut std::io::sink());
        }
    }
    assert_eq!(quiet.image_digest().expect("no fault"), busy.image_digest().expect("no fault"));
}

/// Parameters and results of every type in a generated module.
const TYPES: &[(&[ValType], &[ValType])] = &[
    (&[ValType::I32, ValType::I32], &[ValType::I64]),
    (&[], &[ValType::I64]),
    (&[ValType::I32], &[ValType::I32]),
    (&[], &[]),
    (&[ValType::I32, ValType::I32], &[]),
    (&[ValType::I64, ValType::I64], &[]),
    // The generated functions' own.
    (&[ValType::I32], &[]),
    (&[ValType::I32], &[ValType::I64]),
    (&[ValType::I32], &[ValType::I32, ValType::I64]),
];

const EMIT: u32 = 0;
const SET_TIMER: u32 = 1;
const FAIL: u32 = 2;
const WRITE: u32 = 3;
/// The first of the generated functions, one of each of the last three types.
const GENERATED: u32 = 4;
const GENERATED_COUNT: u32 = 3;
const FIRST_GENERATED_TYPE: u32 = 6;
/// Locals of a generated function: the parameter and three more.
const LOCALS: u32 = 4;
const HEADER_BYTES: u64 = 48;

/// Makes valid code of any bytes; where they end, zeros follow.
struct Generator<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Generator<'_> {
    fn next(&mut self) -> u32 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        u32::from(byte)
    }

    fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn module(mut self) -> Vec<u8> {
        let mut types = TypeSection::new();
        for (params, results) in TYPES {
            types.ty().function(params.iter().copied(), results.iter().copied());
        }
        let mut imports = ImportSection::new();
        for (name, ty) in [("emit", 4), ("set_timer", 5), ("fail", 4), ("write", 4)] {
            imports.import("statehouse", name, EntityType::Function(ty));
        }
        let mut functions = FunctionSection::new();
        for number in 0..GENERATED_COUNT {
            functions.function(FIRST_GENERATED_TYPE + number);
        }
        let named = [
            ("statehouse_abi_1", 3),
            ("alloc", 2),
            ("init", 0),
            ("apply", 0),
            ("query", 0),
            ("timer", 0),
            ("snapshot", 1),
            ("restore", 1),
        ];
        let mut exports = ExportSection::new();
        exports.export("memory", ExportKind::Memory, 0);
        for (number, (name, ty)) in (0..).zip(named) {
            functions.function(ty);
            exports.export(name, ExportKind::Func, GENERATED + GENERATED_COUNT + number);
        }
        let mut tables = TableSection::new();
        tables.table(TableType {
            element_type: RefType::FUNCREF,
            table64: false,
            minimum: 4,
            maximum: None,
            shared: false,
        });
        let mut memories = MemorySection::new();
        memories.memory(MemoryType { minimum: 2, maximum: None, memory64: false, shared: false, page_size_log2: None });
        let mut globals = GlobalSection::new();
        globals.global(GlobalType { val_type: ValType::I32, mutable: true, shared: false }, &ConstExpr::i32_const(1));
        globals.global(GlobalType { val_type: ValType::I64, mutable: true, shared: false }, &ConstExpr::i64_const(2));
        let mut elements = ElementSection::new();
        let referenced: Vec<u32> = (GENERATED..GENERATED + GENERATED_COUNT).collect();
        elements.active(None, &ConstExpr::i32_const(0), Elements::Functions(referenced.into()));

        let mut code = CodeSection::new();
        for number in 0..GENERATED_COUNT {
            let mut function = Function::new([(LOCALS - 1, ValType::I32)]);
            self.statements(&mut function.instructions(), 0, number);
            results(&mut function.instructions(), number);
            function.instructions().end();
            code.function(&function);
        }
        for (name, _) in named {
            let mut function = Function::new([]);
            let mut sink = function.instructions();
            match name {
                "alloc" => drop(sink.i32_const(1024)),
                "apply" | "query" => {
                    // The command's first four bytes are the argument.
                    sink.local_get(0)
                        .i32_load(MemArg { offset: HEADER_BYTES, align: 0, memory_index: 0 })
                        .call(GENERATED + 2);
                    sink.global_set(1).drop().global_get(1);
                }
                "snapshot" => drop(sink.i32_const(1).call(GENERATED).i64_const(0)),
                "statehouse_abi_1" => {}
                _ => drop(sink.i64_const(0)),
            }
            sink.end();
            code.function(&function);
        }
        let mut module = wasm_encoder::Module::new();
        module.section(&types).section(&imports).section(&functions).section(&tables).section(&memories);
        module.section(&globals).section(&exports).section(&elements).section(&code);
        module.finish()
    }

    /// Some statements, each leaving the stack as it was, inside of `labels` blocks of function `own`.
    fn statements(&mut self, sink: &mut InstructionSink<'_>, labels: u32, own: u32) {
        let count = 1 + self.next() % 6;
        for _ in 0..count {
            if !self.is_empty() && labels < 8 {
                self.statement(sink, labels, own);
            }
        }
    }

    fn local(&mut self) -> u32 {
        self.next() % LOCALS
    }

    fn statement(&mut self, sink: &mut InstructionSink<'_>, labels: u32, own: u32) {
        let memory = MemArg { offset: u64::from(self.next()), align: 0, memory_index: 0 };
        let (left, right) = (self.local(), self.local());
        match self.next() % 20 {
            0 => drop(sink.i32_const(self.next().cast_signed() << (self.next() % 24)).local_set(left)),
            1 => drop(sink.local_get(left).local_get(right).i32_add().local_set(left)),
            2 => drop(sink.local_get(left).i32_const(0x3ffff).i32_and().local_get(right).i32_store(memory)),
            3 => drop(sink.local_get(left).i32_const(0x1ffff).i32_and().i32_load(memory).local_set(right)),
            4 => {
                sink.block(BlockType::Empty);
                self.statements(sink, labels + 1, own);
                sink.end();
            }
            5 => {
                sink.loop_(BlockType::Empty);
                self.statements(sink, labels + 1, own);
                sink.local_get(left).i32_const(1).i32_sub().local_tee(left).i32_const(7).i32_and().br_if(0).end();
            }
            6 => {
                sink.local_get(left).if_(BlockType::Empty);
                self.statements(sink, labels + 1, own);
                sink.else_();
                self.statements(sink, labels + 1, own);
                sink.end();
            }
            7 if labels > 0 => drop(sink.local_get(left).br_if(right % labels)),
            8 => {
                sink.local_get(left).i32_const(3).i32_and().if_(BlockType::Empty).else_();
                results(sink, own);
                sink.return_().end();
            }
            9 => {
                sink.local_get(left).i32_const(3).i32_and().if_(BlockType::Empty).else_();
                results(sink, own);
                sink.br(labels + 1).end();
            }
            10 | 11 => {
                let callee = self.next() % GENERATED_COUNT;
                sink.local_get(left).call(GENERATED + callee);
                drop_results(sink, callee);
            }
            12 => {
                let callee = self.next() % GENERATED_COUNT;
                sink.local_get(left)
                    .local_get(right)
                    .i32_const(3)
                    .i32_and()
                    .call_indirect(0, FIRST_GENERATED_TYPE + callee);
                drop_results(sink, callee);
            }
            13 => drop(sink.local_get(left).i32_const(3).i32_and().memory_grow(0).local_set(right)),
            14 => drop(sink.local_get(left).global_set(0).global_get(0).i32_const(1).i32_add().local_set(right)),
            15 => drop(sink.local_get(left).local_get(right).i32_const(0x1ff).i32_and().call(EMIT)),
            16 => drop(sink.local_get(left).i64_extend_i32_s().global_get(1).call(SET_TIMER)),
            17 => {
                sink.local_get(left).i32_const(15).i32_and().if_(BlockType::Empty).else_();
                match self.next() % 3 {
                    0 => drop(sink.local_get(left).local_get(right).call(FAIL)),
                    1 => drop(sink.local_get(left).local_get(right).call(WRITE)),
                    _ => drop(sink.unreachable()),
                }
                sink.end();
            }
            18 if labels > 0 => {
                sink.block(BlockType::Empty).local_get(left).br_table([0, right % labels], labels - 1).end();
            }
            _ => {
                sink.local_get(left).i32_const(0x1ffff).i32_and().local_get(right);
                sink.local_get(right).i32_const(0xfff).i32_and().memory_fill(0);
            }
        }
    }
}

/// Pushes the results of generated function `own`.
fn results(sink: &mut InstructionSink<'_>, own: u32) {
    match own {
        1 => drop(sink.local_get(1).i64_extend_i32_s()),
        2 => drop(
            sink.local_get(1)
                .local_get(2)
                .i64_extend_i32_u()
                .local_get(3)
                .i64_extend_i32_u()
                .i64_const(32)
                .i64_shl()
                .i64_or(),
        ),
        _ => {}
    }
}

fn drop_results(sink: &mut InstructionSink<'_>, callee: u32) {
    match callee {
        1 => drop(sink.drop()),
        2 => drop(sink.drop().drop()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    /// The same numbers in every run.
    fn random(mut state: u64) -> impl FnMut(usize) -> Vec<u8> {
        move |length| {
            let byte = |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            };
            (0..length).map(byte).collect()
        }
    }

    #[test]
    fn random_guests_keep_the_promises() {
        let mut random = random(0x9e37_79b9_7f4a_7c15);
        (0..100).for_each(|_| super::abi(&random(300)));
    }

    /// `STATEHOUSE_SEEDS` of them.
    #[test]
    fn guests_of_which_some_bytes_are_others_are_refused_or_good() {
        let mut random = random(0x2545_f491_4f6c_dd1d);
        let count = std::env::var("STATEHOUSE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1_000);
        (0..count).for_each(|_| super::nearly(&random(200)));
    }
}
