//! A function that the rewrite adds to every module, to copy a few bytes without a call into the host, which takes longer than
//! they do: most strings and keys are that short. It marks what it writes (`marks.rs`).
//!
//! It does what `memory.copy` does, traps included: all that is read is read before anything is written, and lengths of 0
//! and over [`LENGTH_MAX`] are left to the instruction. A copy that reaches past the end may have written some of its
//! bytes when it traps; the entry is undone all the same.

use wasm_encoder::BlockType;
use wasm_encoder::Function;
use wasm_encoder::InstructionSink;
use wasm_encoder::MemArg;
use wasm_encoder::ValType;

use super::marks;

/// Its type: to, from, length, all `i32`.
pub(super) const TYPE: [u8; 6] = [0x60, 3, 0x7f, 0x7f, 0x7f, 0];

const LENGTH_MAX: i32 = 64;

const TO: u32 = 0;
const FROM: u32 = 1;
const LENGTH: u32 = 2;
/// Locals for what is read.
const BYTES: u32 = 3;
const WORDS: u32 = 6;
const VECTORS: u32 = 8;

fn at(offset: u64) -> MemArg {
    MemArg { offset, align: 0, memory_index: 0 }
}

/// The function's body; `mark` is the index of the one that marks.
pub(super) fn function(mark: u32) -> Function {
    let mut function = Function::new([(3, ValType::I32), (2, ValType::I64), (4, ValType::V128)]);
    let mut code = function.instructions();
    code.local_get(LENGTH).i32_const(16).i32_gt_u().if_(BlockType::Empty);
    {
        code.local_get(LENGTH).i32_const(LENGTH_MAX).i32_gt_u().if_(BlockType::Empty);
        instruction(&mut code);
        code.local_get(TO).local_get(FROM).local_get(LENGTH).call(mark);
        code.return_().end();
        marks::mark(&mut code, TO, 0);
        code.local_get(LENGTH).i32_const(32).i32_gt_u().if_(BlockType::Empty);
        code.local_get(FROM).v128_load(at(0)).local_set(VECTORS);
        code.local_get(FROM).v128_load(at(16)).local_set(VECTORS + 1);
        from_end(&mut code, FROM, 32).v128_load(at(0)).local_set(VECTORS + 2);
        from_end(&mut code, FROM, 32).v128_load(at(16)).local_set(VECTORS + 3);
        code.local_get(TO).local_get(VECTORS).v128_store(at(0));
        code.local_get(TO).local_get(VECTORS + 1).v128_store(at(16));
        from_end(&mut code, TO, 32).local_get(VECTORS + 2).v128_store(at(0));
        from_end(&mut code, TO, 32).local_get(VECTORS + 3).v128_store(at(16));
        code.return_().end();
        code.local_get(FROM).v128_load(at(0)).local_set(VECTORS);
        from_end(&mut code, FROM, 16).v128_load(at(0)).local_set(VECTORS + 1);
        code.local_get(TO).local_get(VECTORS).v128_store(at(0));
        from_end(&mut code, TO, 16).local_get(VECTORS + 1).v128_store(at(0));
        code.return_().end();
    }
    marks::mark(&mut code, TO, 0);
    code.local_get(LENGTH).i32_const(8).i32_ge_u().if_(BlockType::Empty);
    code.local_get(FROM).i64_load(at(0)).local_set(WORDS);
    from_end(&mut code, FROM, 8).i64_load(at(0)).local_set(WORDS + 1);
    code.local_get(TO).local_get(WORDS).i64_store(at(0));
    from_end(&mut code, TO, 8).local_get(WORDS + 1).i64_store(at(0));
    code.return_().end();
    code.local_get(LENGTH).i32_const(4).i32_ge_u().if_(BlockType::Empty);
    code.local_get(FROM).i32_load(at(0)).local_set(BYTES);
    from_end(&mut code, FROM, 4).i32_load(at(0)).local_set(BYTES + 1);
    code.local_get(TO).local_get(BYTES).i32_store(at(0));
    from_end(&mut code, TO, 4).local_get(BYTES + 1).i32_store(at(0));
    code.return_().end();
    // The first, the middle and the last byte are all of three or fewer.
    code.local_get(LENGTH).if_(BlockType::Empty);
    code.local_get(FROM).i32_load8_u(at(0)).local_set(BYTES);
    middle(&mut code, FROM).i32_load8_u(at(0)).local_set(BYTES + 1);
    from_end(&mut code, FROM, 1).i32_load8_u(at(0)).local_set(BYTES + 2);
    code.local_get(TO).local_get(BYTES).i32_store8(at(0));
    middle(&mut code, TO).local_get(BYTES + 1).i32_store8(at(0));
    from_end(&mut code, TO, 1).local_get(BYTES + 2).i32_store8(at(0));
    code.return_().end();
    // Even a copy of nothing traps outside memory.
    instruction(&mut code);
    code.end();
    function
}

fn instruction(code: &mut InstructionSink<'_>) {
    code.local_get(TO).local_get(FROM).local_get(LENGTH).memory_copy(0, 0);
}

/// The address `bytes` before the end of what begins at `start`.
fn from_end<'a, 'b>(code: &'a mut InstructionSink<'b>, start: u32, bytes: i32) -> &'a mut InstructionSink<'b> {
    code.local_get(start).local_get(LENGTH).i32_add().i32_const(bytes).i32_sub()
}

fn middle<'a, 'b>(code: &'a mut InstructionSink<'b>, start: u32) -> &'a mut InstructionSink<'b> {
    code.local_get(start).local_get(LENGTH).i32_const(1).i32_shr_u().i32_add()
}
