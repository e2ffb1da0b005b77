//! Which pages of its memory a guest wrote: said by its own code, which the rewrite lets mark the page at every store.
//!
//! The kernel knows it too, but can only be asked about all of a memory, which takes as long as the memory is large. A
//! mark costs a shift and a store, and finding what one entry wrote in a gigabyte takes some microseconds.
//!
//! Marks are bytes in a second memory that the compiled module has and its source does not: byte `n` is set when
//! something was written that *begins* in page `n` of linear memory, or less than a page further on (a store at an offset is
//! marked where its address is). So what was written lies in the marked pages and those behind them.
//!
//! Most stores of compiled code go to the function's frame or to what a parameter points at, so a local that is assigned once
//! is marked once, where it gets its value, and stores at it are not: half of what the marks cost.
//!
//! Invariants:
//! - Every byte that guest code, or the host on its behalf, wrote since the marks were last taken lies in a page that
//!   [`take`] names. A page that is named may be unchanged. (Builds with debug assertions hold every checkpoint to it.)
//! - Marks decide no outcome: they cost no fuel, and guest code cannot reach them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Range;

use wasm_encoder::BlockType;
use wasm_encoder::Function;
use wasm_encoder::InstructionSink;
use wasm_encoder::MemArg;
use wasm_encoder::ValType;
use wasmparser::BinaryReaderError;
use wasmparser::FunctionBody;
use wasmparser::ModuleArity;
use wasmparser::Operator;

use super::inspect::Analysis;

/// A mark stands for so many bytes of linear memory, on all hosts.
const PAGE_BYTES: usize = 1 << PAGE_SHIFT;
const PAGE_SHIFT: i32 = 12;

/// Index of the memory that holds them.
pub(super) const MEMORY: u32 = 1;

/// Its export.
pub(super) const NAME: &str = "statehouse:marks";

/// Its size in pages of 64 KiB: a mark for each page of 4 GiB, and a few behind, for marks that reach too far.
pub(super) const MEMORY_PAGES: u32 = 17;

/// What an instruction that writes has on top of the operand stack above the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// One value of a type, which goes `offset` bytes behind the address.
    Value { ty: ValType, offset: u64 },
    /// Two numbers, the second being how many bytes are written.
    Bytes,
}

/// What of linear memory the instruction writes, if anything.
pub(super) fn writes(operator: &Operator<'_>) -> Option<Writes> {
    use Operator as O;
    let (ty, memarg) = match operator {
        O::I32Store { memarg } | O::I32Store8 { memarg } | O::I32Store16 { memarg } => (ValType::I32, memarg),
        O::I64Store { memarg } | O::I64Store8 { memarg } | O::I64Store16 { memarg } | O::I64Store32 { memarg } => {
            (ValType::I64, memarg)
        }
        O::F32Store { memarg } => (ValType::F32, memarg),
        O::F64Store { memarg } => (ValType::F64, memarg),
        O::V128Store { memarg }
        | O::V128Store8Lane { memarg, .. }
        | O::V128Store16Lane { memarg, .. }
        | O::V128Store32Lane { memarg, .. }
        | O::V128Store64Lane { memarg, .. } => (ValType::V128, memarg),
        O::MemoryCopy { .. } | O::MemoryFill { .. } | O::MemoryInit { .. } => return Some(Writes::Bytes),
        _ => return None,
    };
    Some(Writes::Value { ty, offset: memarg.offset })
}

/// Bytes that one mark at their address covers.
pub(super) const COVERED_BYTES: u32 = PAGE_BYTES as u32;

/// The widest store.
const STORE_BYTES_MAX: u64 = 16;

/// A mark's place in the marks.
fn mark_at() -> MemArg {
    MemArg { offset: 0, align: 0, memory_index: MEMORY }
}

/// Writes code that marks what lies `offset` behind the address in local `address`.
pub(super) fn mark(code: &mut InstructionSink<'_>, address: u32, offset: u64) {
    code.local_get(address);
    // A store that ends in the page after its address is covered by the address's own mark.
    if !covers(offset) {
        // An address that wraps marks the wrong page; the store itself then traps.
        let offset = u32::try_from(offset).unwrap_or(u32::MAX).cast_signed();
        code.i32_const(offset).i32_add();
    }
    code.i32_const(PAGE_SHIFT).i32_shr_u().i32_const(1).i32_store8(mark_at());
}

/// Whether the mark at an address covers all stores `offset` behind it.
fn covers(offset: u64) -> bool {
    offset.saturating_add(STORE_BYTES_MAX) <= u64::from(COVERED_BYTES)
}

/// Which locals of a function are marked where they get their value, and the stores that this covers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Parameters, to be marked at the beginning.
    pub(super) parameters: Vec<u32>,
    /// Others, by the place behind their only assignment.
    pub(super) assigned: BTreeMap<usize, u32>,
    /// Places of the stores that need no mark of their own.
    pub(super) covered: BTreeSet<usize>,
}

/// A local to begin with: where it got the value that it keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Parameter,
    /// Not assigned yet, and the way from the beginning to here is the only one.
    Nowhere,
    /// Assigned outside of all blocks, before this place.
    Assigned(usize),
    /// Assigned more than once, or not on all ways.
    Unknown,
}

/// Decides what is marked where. The body has been validated; `parameters` is how many the function has.
pub(super) fn plan(body: &FunctionBody<'_>, parameters: u32, analysis: &Analysis) -> Result<Plan, BinaryReaderError> {
    let origins = origins(body, parameters)?;
    let mut stores: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    // The locals that the operands on top of the stack were read from, where they keep their value from then on; what is
    // below is not known.
    let mut operands: Vec<Option<u32>> = Vec::new();
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        let at = operators.original_position();
        let operator = operators.read()?;
        if let Some(Writes::Value { offset, .. }) = writes(&operator)
            && covers(offset)
            && let Some(Some(local)) = operands.len().checked_sub(2).and_then(|place| operands.get(place))
        {
            stores.entry(*local).or_default().push(at);
        }
        let read = match operator {
            Operator::LocalGet { local_index } | Operator::LocalTee { local_index } => Some(local_index),
            _ => None,
        };
        let read = read.filter(|local| match origins.get(local) {
            Some(Origin::Parameter) => true,
            Some(Origin::Assigned(place)) => *place <= operators.original_position(),
            _ => false,
        });
        match arity(&operator, analysis) {
            Some((popped, pushed)) => {
                operands.truncate(operands.len().saturating_sub(popped));
                operands.extend(std::iter::repeat_n(read, pushed));
            }
            None => operands.clear(),
        }
    }
    let mut plan = Plan::default();
    for (local, places) in stores {
        // One store alone is marked better where it is, if it comes at all.
        if places.len() < 2 {
            continue;
        }
        match origins.get(&local) {
            Some(Origin::Assigned(place)) => drop(plan.assigned.insert(*place, local)),
            _ => plan.parameters.push(local),
        }
        plan.covered.extend(places);
    }
    Ok(plan)
}

/// The locals that are assigned, or are parameters.
fn origins(body: &FunctionBody<'_>, parameters: u32) -> Result<BTreeMap<u32, Origin>, BinaryReaderError> {
    let mut origins: BTreeMap<u32, Origin> = (0..parameters).map(|local| (local, Origin::Parameter)).collect();
    let mut nesting = 0_u32;
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        match operators.read()? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => nesting += 1,
            Operator::End => nesting = nesting.saturating_sub(1),
            Operator::LocalSet { local_index } | Operator::LocalTee { local_index } => {
                let origin = origins.entry(local_index).or_insert(Origin::Nowhere);
                *origin = match *origin {
                    Origin::Nowhere if nesting == 0 => Origin::Assigned(operators.original_position()),
                    _ => Origin::Unknown,
                };
            }
            _ => {}
        }
    }
    Ok(origins)
}

/// How many operands the instruction takes and gives; nothing for those that move the control flow, and for some others.
fn arity(operator: &Operator<'_>, analysis: &Analysis) -> Option<(usize, usize)> {
    let of_type = |index: u32, more: usize| {
        let (parameters, results) = analysis.types.get(index as usize)?;
        Some((parameters.len() + more, results.len()))
    };
    match operator {
        Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::If { .. }
        | Operator::Else
        | Operator::End
        | Operator::Br { .. }
        | Operator::BrIf { .. }
        | Operator::BrTable { .. }
        | Operator::Return
        | Operator::Unreachable => None,
        Operator::Call { function_index } => {
            let number = function_index.checked_sub(analysis.imported_functions)?;
            of_type(analysis.functions.get(number as usize)?.type_index, 0)
        }
        Operator::CallIndirect { type_index, .. } => of_type(*type_index, 1),
        other => other.operator_arity(&NoModule).map(|(popped, pushed)| (popped as usize, pushed as usize)),
    }
}

/// Knows nothing, so that the arity of no instruction that depends on a module is known.
struct NoModule;

impl ModuleArity for NoModule {
    fn sub_type_at(&self, _: u32) -> Option<&wasmparser::SubType> {
        None
    }
    fn tag_type_arity(&self, _: u32) -> Option<(u32, u32)> {
        None
    }
    fn type_index_of_function(&self, _: u32) -> Option<u32> {
        None
    }
    fn func_type_of_cont_type(&self, _: &wasmparser::ContType) -> Option<&wasmparser::FuncType> {
        None
    }
    fn sub_type_of_ref_type(&self, _: &wasmparser::RefType) -> Option<&wasmparser::SubType> {
        None
    }
    fn control_stack_height(&self) -> u32 {
        0
    }
    fn label_block(&self, _: u32) -> Option<(wasmparser::BlockType, wasmparser::FrameKind)> {
        None
    }
}

/// A function that is added to every module: marks `length` bytes from `start` on; its parameters are `start`, a number
/// without meaning, and `length`, so that the operands of a bulk instruction can be passed as they are. They lie in memory.
pub(super) fn function() -> Function {
    const START: u32 = 0;
    const LENGTH: u32 = 2;
    let mut function = Function::new([]);
    let mut code = function.instructions();
    code.local_get(LENGTH).i32_eqz().if_(BlockType::Empty).return_().end();
    code.local_get(LENGTH).i32_const(COVERED_BYTES.cast_signed()).i32_le_u().if_(BlockType::Empty);
    mark(&mut code, START, 0);
    code.return_().end();
    code.local_get(START).i32_const(PAGE_SHIFT).i32_shr_u();
    code.i32_const(1);
    code.local_get(LENGTH).i32_const(1).i32_sub().i32_const(PAGE_SHIFT).i32_shr_u().i32_const(2).i32_add();
    code.memory_fill(MEMORY);
    code.end();
    function
}

/// Marks `length` bytes from `start` on, for what the host writes.
pub(super) fn set(marks: &mut [u8], start: usize, length: usize) {
    let Some(last) = length.checked_sub(1) else { return };
    let pages = start / PAGE_BYTES..=start.saturating_add(last) / PAGE_BYTES;
    if let Some(marks) = marks.get_mut(pages) {
        marks.fill(1);
    }
}

/// The ranges of a memory of `memory_bytes` that hold all that was written since the last time: whole pages of the host,
/// ascending, apart. Clears the marks.
pub(super) fn take(marks: &mut [u8], memory_bytes: usize) -> Vec<Range<usize>> {
    const GROUP: usize = 64;
    let mut found = Vec::new();
    let used = marks.len().min(memory_bytes.div_ceil(PAGE_BYTES));
    let Some(marks) = marks.get_mut(..used) else { return found };
    for (number, group) in marks.chunks_mut(GROUP).enumerate() {
        // Most are empty, which is seen without a look at each.
        if group.iter().fold(0, |any, mark| any | *mark) == 0 {
            continue;
        }
        for (place, mark) in group.iter_mut().enumerate() {
            if std::mem::take(mark) != 0 {
                let start = (number * GROUP + place) * PAGE_BYTES;
                push(&mut found, whole_pages(start..(start + 2 * PAGE_BYTES).min(memory_bytes)));
            }
        }
    }
    found
}

/// The size of this host's pages.
pub(super) fn host_page_bytes() -> usize {
    rustix::param::page_size()
}

/// The host's pages that `range` touches. (Linear memory is a multiple of the largest that hosts have.)
fn whole_pages(range: Range<usize>) -> Range<usize> {
    let page = host_page_bytes();
    range.start / page * page..range.end.next_multiple_of(page)
}

/// Adds a range that begins no earlier than the last one.
pub(super) fn push(ranges: &mut Vec<Range<usize>>, found: Range<usize>) {
    match ranges.last_mut() {
        Some(last) if found.start <= last.end => last.end = last.end.max(found.end),
        _ => ranges.push(found),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    /// The plan of the function `f` of a module in text, without places: parameters, assigned locals, covered stores.
    fn planned(function: &str) -> (Vec<u32>, Vec<u32>, usize) {
        let wasm = wat::parse_str(crate::module::tests::code::with(function)).unwrap();
        let analysis = crate::module::inspect::inspect(&wasm, &crate::module::Limits::ceiling()).unwrap();
        let bodies = wasmparser::Parser::new(0).parse_all(&wasm).filter_map(|payload| match payload.unwrap() {
            wasmparser::Payload::CodeSectionEntry(body) => Some(body),
            _ => None,
        });
        let parameters = analysis.types[analysis.functions.last().unwrap().type_index as usize].0.len();
        let plan = plan(&bodies.last().unwrap(), parameters as u32, &analysis).unwrap();
        (plan.parameters, plan.assigned.into_values().collect(), plan.covered.len())
    }

    /// A store that is taken for covered and is not is a page missing from a checkpoint.
    #[test]
    fn only_a_local_that_has_its_value_before_and_ever_after_covers_stores() {
        let two = |address: &str| {
            format!(
                "(i32.store {address} (i32.const 1)) (i64.store offset=4000 {address} (i64.extend_i32_u (local.get 0)))"
            )
        };
        let get = two("(local.get 0)");
        assert_eq!(planned(&format!("(func (param i32) {get})")), (vec![0], vec![], 2), "a parameter");
        assert_eq!(planned(&format!("(func (param i32) {get} (local.set 0 (i32.const 9)))")), (vec![], vec![], 0));
        assert_eq!(planned("(func (param i32) (i32.store (local.get 0) (i32.const 1)))"), (vec![], vec![], 0), "one");
        let far = "(i32.store offset=4081 (local.get 0) (i32.const 1))";
        assert_eq!(planned(&format!("(func (param i32) {far} {far})")), (vec![], vec![], 0), "too far behind it");
        let computed = two("(i32.add (local.get 0) (i32.const 8))");
        assert_eq!(planned(&format!("(func (param i32) {computed})")), (vec![], vec![], 0));

        let frame = "(local.set 1 (i32.sub (local.get 0) (i32.const 32)))";
        let own = two("(local.get 1)");
        let of = |body: &str| planned(&format!("(func (param i32) (local i32) {body})"));
        assert_eq!(of(&format!("{frame} {own}")), (vec![], vec![1], 2), "a frame");
        assert_eq!(of(&format!("{frame} (loop $l {own} (br_if $l (local.get 0)))")), (vec![], vec![1], 2));
        assert_eq!(of(&format!("{own} {frame}")), (vec![], vec![], 0), "used before");
        assert_eq!(of(&format!("(loop $l {own} {frame} (br_if $l (local.get 0)))")), (vec![], vec![], 0), "in a round");
        assert_eq!(of(&format!("(if (local.get 0) (then {frame})) {own}")), (vec![], vec![], 0), "on one way only");
        assert_eq!(of(&format!("{frame} {own} {frame}")), (vec![], vec![], 0), "assigned twice");
        let read_before = "(local.get 1) (local.set 1 (i32.const 70000)) (i32.const 1) (i32.store)";
        assert_eq!(of(&format!("{read_before} (i32.store (local.get 1) (i32.const 1))")), (vec![], vec![], 0));
        let teed = "(i32.store (local.tee 1 (i32.const 70000)) (i32.const 1))";
        assert_eq!(of(&format!("{teed} (i32.store (local.get 1) (i32.const 1))")), (vec![], vec![1], 2), "a tee");
    }

    #[test]
    fn what_lies_up_to_a_page_behind_a_mark_is_named_once_and_then_forgotten() {
        let mut marks = vec![0; 64];
        let memory = 40 * PAGE_BYTES;
        set(&mut marks, 5, 0);
        assert!(take(&mut marks, memory).is_empty(), "nothing was written");
        set(&mut marks, 2 * PAGE_BYTES + 7, 1);
        set(&mut marks, 3 * PAGE_BYTES, PAGE_BYTES + 1);
        set(&mut marks, 39 * PAGE_BYTES, PAGE_BYTES);
        let pages = |range: Range<usize>| range.start * PAGE_BYTES..range.end * PAGE_BYTES;
        assert_eq!(take(&mut marks, memory), [pages(2..6), pages(39..40)]);
        assert!(take(&mut marks, memory).is_empty());
    }
}
