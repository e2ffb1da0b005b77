//! Rewrites a module before it is compiled, so that its mutable globals can be saved, it counts its fuel, and its
//! recursion is bounded by itself and not by the host's stack.
//!
//! What the compiled module has beyond the file, all under [`RESERVED_PREFIX`]:
//! - `statehouse:g0`, `g1`, ...: every mutable global, and last the depth, a hidden `i32` global that
//!   holds the logical bytes of the frames now on the stack, 0 between calls;
//! - `statehouse:start`: the start function, which the host calls itself, once in a machine's life:
//!   instances made over an existing image must not run it;
//! - `statehouse:fuel`: what is left of the call's fuel, a hidden `i64` global; below 0 where it did not last;
//! - `statehouse:marks`: a memory of its own that says what of linear memory was written (`marks.rs`).
//!
//! Every function pays fuel where `meter.rs` says, and traps where none is left; every store marks its page. `memory.copy` of
//! a length that is not a small constant becomes a call of a function that is added behind the module's own (`copy.rs`).
//!
//! Functions that can be on the stack more than once (those in a cycle of the call graph, indirect calls
//! reaching whatever has the type and whose reference is taken) add their weight to the depth when they
//! begin and trap when it passes [`STACK_BYTES_MAX`]; the others can add up to no more than what
//! [`recursive`] allows without counting. All this is a function of the file alone.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use wasm_encoder::Encode;
use wasm_encoder::InstructionSink;
use wasm_encoder::RawSection;
use wasmparser::BinaryReaderError;
use wasmparser::FunctionBody;
use wasmparser::Operator;
use wasmparser::Parser;
use wasmparser::Payload;
use wasmparser::ValType;

use super::copy;
use super::inspect::Analysis;
use super::marks;
use super::marks::Writes;
use super::meter;
use super::meter::What;

/// Counts up whenever the rewrite makes other code than before: compiled code in caches is of one version.
pub(super) const REWRITE_VERSION: u32 = 1;

/// Exports of this prefix are the host's own.
pub(super) const RESERVED_PREFIX: &str = "statehouse:";

/// The start function's new name.
pub(super) const START: &str = "statehouse:start";

/// The global that holds the fuel left.
pub(super) const FUEL: &str = "statehouse:fuel";

/// Logical bytes of stack that a call may use. The host's stack is many times larger (`stack.rs`), as the
/// compiler's frames may be larger than a function's weight.
pub(super) const STACK_BYTES_MAX: u32 = 1 << 20;

/// Name of the `number`th saved global.
pub(super) fn global_name(number: usize) -> String {
    format!("{RESERVED_PREFIX}g{number}")
}

/// Logical bytes of a frame: return address and saved registers, a slot for each local and operand, and a
/// share of the code, as the compiler may keep values across it that the source does not name.
pub(super) fn frame_weight(locals: u64, operands: u64, body_bytes: u64, wide: bool) -> u32 {
    let slot = if wide { 16 } else { 8 };
    let weight = 64 + (locals + operands) * slot + body_bytes / 4;
    u32::try_from(weight).unwrap_or(u32::MAX).min(STACK_BYTES_MAX)
}

/// Which defined functions must count their frames.
fn recursive(analysis: &Analysis) -> BTreeSet<u32> {
    let graph = CallGraph::new(analysis);
    let components = graph.components();
    let mut counted = BTreeSet::new();
    // The longest way through functions that do not count, per component. Components come callees first.
    let mut longest: BTreeMap<usize, u64> = BTreeMap::new();
    let mut component_of = vec![0; graph.edges.len()];
    for (number, component) in components.iter().enumerate() {
        for node in component {
            if let Some(place) = component_of.get_mut(*node) {
                *place = number;
            }
        }
    }
    let mut most = 0;
    for (number, component) in components.iter().enumerate() {
        let cyclic = component.len() > 1 || component.iter().any(|node| graph.calls(*node).contains(node));
        let mut below = 0;
        let mut own = 0;
        for node in component {
            for callee in graph.calls(*node) {
                let other = component_of.get(*callee).copied().unwrap_or(number);
                below = below.max(longest.get(&other).copied().unwrap_or(0));
            }
            if let Some(function) = analysis.functions.get(*node) {
                if cyclic {
                    counted.insert(u32::try_from(*node).unwrap_or(u32::MAX));
                } else {
                    own = u64::from(function.weight);
                }
            }
        }
        longest.insert(number, below + own);
        most = most.max(below + own);
    }
    if most > u64::from(STACK_BYTES_MAX) {
        // So deep without recursion: then everything that calls anything counts.
        counted = analysis
            .functions
            .iter()
            .enumerate()
            .filter(|(_, function)| !function.calls.is_empty() || !function.indirect.is_empty())
            .map(|(number, _)| u32::try_from(number).unwrap_or(u32::MAX))
            .collect();
    }
    counted
}

/// Numbers distinct things in the order in which they come. A file has tens of thousands of types: none is compared with all before it.
struct Numbers<K> {
    number_of: BTreeMap<K, usize>,
    all: Vec<K>,
}

impl<K: Ord + Clone> Numbers<K> {
    fn new() -> Self {
        Self { number_of: BTreeMap::new(), all: Vec::new() }
    }

    /// The thing's number, a new one if it has none.
    fn number(&mut self, thing: K) -> usize {
        let next = self.all.len();
        *self.number_of.entry(thing).or_insert_with_key(|thing| {
            self.all.push(thing.clone());
            next
        })
    }

    fn get<Q: Ord + ?Sized>(&self, thing: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        self.number_of.get(thing).copied()
    }
}

/// Nodes are the defined functions, then one node for each distinct function type: an indirect call
/// goes to its type's node, which goes on to all functions it may reach.
struct CallGraph {
    edges: Vec<Vec<usize>>,
}

impl CallGraph {
    fn new(analysis: &Analysis) -> CallGraph {
        let functions = analysis.functions.len();
        // Equal types count as one, whatever their index: indirect calls compare them by structure.
        let mut distinct = Numbers::new();
        let node_of_type: Vec<_> = analysis.types.iter().map(|ty| functions + distinct.number(ty)).collect();
        let mut edges = vec![Vec::new(); functions + distinct.all.len()];
        for (function, list) in analysis.functions.iter().zip(&mut edges) {
            list.extend(function.calls.iter().map(|callee| *callee as usize));
            list.extend(function.indirect.iter().filter_map(|ty| node_of_type.get(*ty as usize)));
        }
        for index in &analysis.referenced {
            let Some(number) = index.checked_sub(analysis.imported_functions) else { continue };
            let number = number as usize;
            let Some(node) =
                analysis.functions.get(number).and_then(|function| node_of_type.get(function.type_index as usize))
            else {
                continue;
            };
            if let Some(list) = edges.get_mut(*node) {
                list.push(number);
            }
        }
        CallGraph { edges }
    }

    fn calls(&self, node: usize) -> &[usize] {
        self.edges.get(node).map_or(&[], Vec::as_slice)
    }

    /// The strongly connected components, callees before callers: Tarjan's algorithm without recursion,
    /// as a module may have a call chain longer than our own stack.
    fn components(&self) -> Vec<Vec<usize>> {
        let mut search = Search { order: vec![None; self.edges.len()], ..Search::default() };
        for root in 0..self.edges.len() {
            if search.order_of(root).is_none() {
                search.visit(self, root);
            }
        }
        search.components
    }
}

#[derive(Default)]
struct Search {
    order: Vec<Option<usize>>,
    low: BTreeMap<usize, usize>,
    next: usize,
    open: Vec<usize>,
    is_open: BTreeSet<usize>,
    components: Vec<Vec<usize>>,
}

impl Search {
    fn order_of(&self, node: usize) -> Option<usize> {
        self.order.get(node).copied().flatten()
    }

    fn enter(&mut self, node: usize) {
        if let Some(place) = self.order.get_mut(node) {
            *place = Some(self.next);
        }
        self.low.insert(node, self.next);
        self.next += 1;
        self.open.push(node);
        self.is_open.insert(node);
    }

    fn lower(&mut self, node: usize, to: usize) {
        if let Some(low) = self.low.get_mut(&node) {
            *low = (*low).min(to);
        }
    }

    fn visit(&mut self, graph: &CallGraph, root: usize) {
        self.enter(root);
        let mut way = vec![(root, 0)];
        while let Some((node, next)) = way.pop() {
            if let Some(callee) = graph.calls(node).get(next).copied() {
                way.push((node, next + 1));
                match self.order_of(callee) {
                    None => {
                        self.enter(callee);
                        way.push((callee, 0));
                    }
                    Some(order) if self.is_open.contains(&callee) => self.lower(node, order),
                    Some(_) => {}
                }
                continue;
            }
            let low = self.low.get(&node).copied().unwrap_or(0);
            if Some(low) == self.order_of(node) {
                self.close(node);
            }
            if let Some((caller, _)) = way.last() {
                self.lower(*caller, low);
            }
        }
    }

    fn close(&mut self, node: usize) {
        let mut component = Vec::new();
        while let Some(member) = self.open.pop() {
            self.is_open.remove(&member);
            component.push(member);
            if member == node {
                break;
            }
        }
        self.components.push(component);
    }
}

/// The module to compile in place of `wasm`, which [`inspect`](super::inspect::inspect) has let in.
pub(super) fn rewrite(wasm: &[u8], analysis: &Analysis) -> Result<Vec<u8>, BinaryReaderError> {
    let counted = recursive(analysis);
    let functions = analysis.imported_functions + u32::try_from(analysis.functions.len()).unwrap_or(u32::MAX);
    let mut rewriter = Rewriter {
        wasm,
        analysis,
        counted,
        depth: analysis.globals,
        fuel: analysis.globals + 1,
        copy: functions,
        mark: functions + 1,
        out: wasm_encoder::Module::new(),
        result_types: Numbers::new(),
    };
    rewriter.run()?;
    Ok(rewriter.out.finish())
}

const TYPE_SECTION: u8 = 1;
const FUNCTION_SECTION: u8 = 3;
const MEMORY_SECTION: u8 = 5;
const GLOBAL_SECTION: u8 = 6;
const EXPORT_SECTION: u8 = 7;
const CODE_SECTION: u8 = 10;

struct Rewriter<'a> {
    wasm: &'a [u8],
    analysis: &'a Analysis,
    counted: BTreeSet<u32>,
    /// Index of the depth global.
    depth: u32,
    /// Index of the fuel global.
    fuel: u32,
    /// Index of the function that copies.
    copy: u32,
    /// Index of the function that marks what a bulk instruction wrote.
    mark: u32,
    out: wasm_encoder::Module,
    /// Result lists of more than one value that counted functions have, in the order of the types
    /// `() -> results` that are added for them after the module's own.
    result_types: Numbers<&'a [ValType]>,
}

impl<'a> Rewriter<'a> {
    fn run(&mut self) -> Result<(), BinaryReaderError> {
        let mut globals_written = false;
        let mut bodies = Vec::new();
        let payloads = Parser::new(0).parse_all(self.wasm).collect::<Result<Vec<_>, _>>()?;
        for payload in &payloads {
            if let Payload::CodeSectionEntry(body) = payload {
                bodies.push(body.clone());
            }
        }
        for payload in payloads {
            // The export section always is there, so the depth global finds its place before it.
            if let Payload::ExportSection(_) = &payload
                && !globals_written
            {
                self.globals(&[0])?;
                globals_written = true;
            }
            let Some((id, range)) = payload.as_section() else { continue };
            let data = self.wasm.get(range).unwrap_or(&[]);
            match payload {
                Payload::TypeSection(_) => self.types(data)?,
                Payload::FunctionSection(_) => {
                    let mut ty = Vec::new();
                    for _ in [self.copy, self.mark] {
                        (self.analysis.types.len() + self.result_types.all.len()).encode(&mut ty);
                    }
                    self.extended(FUNCTION_SECTION, data, 2, &ty)?;
                }
                Payload::MemorySection(_) => {
                    let mut memory = vec![0x01];
                    marks::MEMORY_PAGES.encode(&mut memory);
                    marks::MEMORY_PAGES.encode(&mut memory);
                    self.extended(MEMORY_SECTION, data, 1, &memory)?;
                }
                Payload::GlobalSection(_) => {
                    self.globals(data)?;
                    globals_written = true;
                }
                Payload::ExportSection(_) => self.exports(data)?,
                Payload::StartSection { .. } => {}
                Payload::CodeSectionStart { .. } => self.code(&bodies)?,
                // Names make traps readable; debug sections and hints would speak of code that moved.
                Payload::CustomSection(custom) if custom.name() != "name" => {}
                _ => {
                    self.out.section(&RawSection { id, data });
                }
            }
        }
        Ok(())
    }

    /// Writes section `id` with `data` as it was, and `count` more entries.
    fn extended(&mut self, id: u8, data: &[u8], count: u32, entries: &[u8]) -> Result<(), BinaryReaderError> {
        let mut reader = wasmparser::BinaryReader::new(data, 0);
        let before = reader.read_var_u32()?;
        let rest = reader.read_bytes(reader.bytes_remaining())?;
        let mut section = Vec::with_capacity(data.len() + entries.len() + 5);
        (before + count).encode(&mut section);
        section.extend_from_slice(rest);
        section.extend_from_slice(entries);
        self.out.section(&RawSection { id, data: &section });
        Ok(())
    }

    fn types(&mut self, data: &[u8]) -> Result<(), BinaryReaderError> {
        for number in &self.counted {
            let results = self.results(*number);
            if results.len() > 1 {
                self.result_types.number(results);
            }
        }
        let mut entries = Vec::new();
        for results in &self.result_types.all {
            entries.push(0x60);
            entries.push(0);
            results.len().encode(&mut entries);
            entries.extend(results.iter().map(|ty| type_byte(*ty)));
        }
        entries.extend(copy::TYPE);
        let count = u32::try_from(self.result_types.all.len() + 1).unwrap_or(u32::MAX);
        self.extended(TYPE_SECTION, data, count, &entries)
    }

    fn results(&self, number: u32) -> &'a [ValType] {
        let function = self.analysis.functions.get(number as usize);
        let ty = function.and_then(|function| self.analysis.types.get(function.type_index as usize));
        ty.map_or(&[], |(_, results)| results)
    }

    /// `(global (mut i32) (i32.const 0))` and `(global (mut i64) (i64.const 0))` after the module's own.
    fn globals(&mut self, data: &[u8]) -> Result<(), BinaryReaderError> {
        self.extended(GLOBAL_SECTION, data, 2, &[0x7f, 0x01, 0x41, 0x00, 0x0b, 0x7e, 0x01, 0x42, 0x00, 0x0b])
    }

    fn exports(&mut self, data: &[u8]) -> Result<(), BinaryReaderError> {
        let mut entries = Vec::new();
        let saved = self.analysis.mutable_globals.iter().copied().chain([self.depth]);
        let mut count = 0;
        for (number, index) in saved.enumerate() {
            global_name(number).as_str().encode(&mut entries);
            entries.push(3);
            index.encode(&mut entries);
            count += 1;
        }
        FUEL.encode(&mut entries);
        entries.push(3);
        self.fuel.encode(&mut entries);
        marks::NAME.encode(&mut entries);
        entries.push(2);
        marks::MEMORY.encode(&mut entries);
        count += 2;
        if let Some(start) = self.analysis.start {
            START.encode(&mut entries);
            entries.push(0);
            start.encode(&mut entries);
            count += 1;
        }
        self.extended(EXPORT_SECTION, data, count, &entries)
    }

    fn code(&mut self, bodies: &[FunctionBody<'_>]) -> Result<(), BinaryReaderError> {
        let mut section = Vec::with_capacity(self.wasm.len());
        (bodies.len() + 2).encode(&mut section);
        for (number, body) in bodies.iter().enumerate() {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            self.body(number, body)?.encode(&mut section);
        }
        copy::function(self.mark).encode(&mut section);
        marks::function().encode(&mut section);
        self.out.section(&RawSection { id: CODE_SECTION, data: &section });
        Ok(())
    }

    /// The function's body with its payments. If it counts its frame, its own code becomes a block, so that each way
    /// out of it, `return` too, comes past the code that takes the weight off again.
    fn body(&self, number: u32, body: &FunctionBody<'_>) -> Result<Vec<u8>, BinaryReaderError> {
        let function = self.analysis.functions.get(number as usize);
        let weight = function.map_or(0, |function| function.weight).cast_signed();
        let counts = self.counted.contains(&number);
        let plan = meter::plan(body)?;
        let mut operators = body.get_operators_reader()?;
        let code_start = operators.original_position();
        let mut out = Vec::with_capacity(body.range().len() * 2);
        let locals = self.locals(number, body, &mut out)?;
        let cell = locals.fuel;
        let parameters = locals.parameters;
        let marked = marks::plan(body, parameters, self.analysis)?;
        for parameter in &marked.parameters {
            marks::mark(&mut InstructionSink::new(&mut out), *parameter, 0);
        }
        self.reload(cell, &mut out);
        self.pay(cell, plan.entry, true, &mut out);
        if counts {
            // depth += weight; if depth > max (unsigned) unreachable
            self.add_to_depth(weight, &mut out);
            out.push(0x23);
            self.depth.encode(&mut out);
            out.push(0x41);
            STACK_BYTES_MAX.cast_signed().encode(&mut out);
            out.extend([0x4b, 0x04, 0x40, 0x00, 0x0b]);
            out.push(0x02);
            self.block_type(self.results(number), &mut out);
        }
        let mut copied = code_start;
        let mut nesting = 0_u32;
        let mut constant = None;
        let mut insertions = plan.insertions.iter().peekable();
        while !operators.eof() {
            let at = operators.original_position();
            while let Some(insertion) = insertions.next_if(|insertion| insertion.at <= at) {
                out.extend_from_slice(self.wasm.get(copied..at).unwrap_or(&[]));
                copied = at;
                self.insert(insertion.what, &locals, &mut out);
            }
            if let Some(local) = marked.assigned.get(&at) {
                out.extend_from_slice(self.wasm.get(copied..at).unwrap_or(&[]));
                copied = at;
                marks::mark(&mut InstructionSink::new(&mut out), *local, 0);
            }
            let operator = operators.read()?;
            match operator {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => nesting += 1,
                Operator::End => nesting = nesting.saturating_sub(1),
                Operator::Return if counts => {
                    out.extend_from_slice(self.wasm.get(copied..at).unwrap_or(&[]));
                    out.push(0x0c);
                    nesting.encode(&mut out);
                    copied = operators.original_position();
                }
                _ => {}
            }
            if let Some(writes) = marks::writes(&operator).filter(|_| !marked.covered.contains(&at)) {
                out.extend_from_slice(self.wasm.get(copied..at).unwrap_or(&[]));
                copied = operators.original_position();
                let instruction = self.wasm.get(at..copied).unwrap_or(&[]);
                self.write(&operator, instruction, writes, constant, &locals, &mut out);
            }
            constant = match operator {
                Operator::I32Const { value } => Some(value),
                _ => None,
            };
        }
        // The function's own `end` is now the block's, if there is one.
        out.extend_from_slice(self.wasm.get(copied..body.range().end).unwrap_or(&[]));
        if counts {
            self.add_to_depth(-weight, &mut out);
            out.push(0x0b);
        }
        Ok(out)
    }

    /// Writes an instruction that writes to linear memory, and marks what it writes. `constant`: what is on top of the stack.
    fn write(
        &self,
        operator: &Operator<'_>,
        instruction: &[u8],
        writes: Writes,
        constant: Option<i32>,
        locals: &Locals,
        out: &mut Vec<u8>,
    ) {
        let [address, second, length] = locals.numbers;
        let small = constant.filter(|length| (0..=marks::COVERED_BYTES.cast_signed()).contains(length));
        match (writes, small) {
            (Writes::Value { ty, offset }, _) => {
                let value = locals.value(ty);
                let mut code = InstructionSink::new(out);
                code.local_set(value).local_set(address);
                marks::mark(&mut code, address, offset);
                code.local_get(address).local_get(value);
                out.extend_from_slice(instruction);
            }
            // The compiler does small constant lengths in place.
            (Writes::Bytes, Some(bytes)) => {
                let mut code = InstructionSink::new(out);
                code.drop().local_set(second).local_set(address);
                if bytes > 0 {
                    marks::mark(&mut code, address, 0);
                }
                code.local_get(address).local_get(second).i32_const(bytes);
                out.extend_from_slice(instruction);
            }
            // That function marks, too.
            (Writes::Bytes, None) if matches!(operator, Operator::MemoryCopy { .. }) => {
                InstructionSink::new(out).call(self.copy);
            }
            (Writes::Bytes, None) => {
                let mut code = InstructionSink::new(out);
                code.local_set(length).local_set(second).local_set(address);
                code.local_get(address).local_get(second).local_get(length);
                out.extend_from_slice(instruction);
                let mut code = InstructionSink::new(out);
                code.local_get(address).local_get(second).local_get(length).call(self.mark);
            }
        }
    }

    /// Writes the function's locals and those that the rewrite needs, which are returned.
    fn locals(&self, number: u32, body: &FunctionBody<'_>, out: &mut Vec<u8>) -> Result<Locals, BinaryReaderError> {
        let function = self.analysis.functions.get(number as usize);
        let ty = function.and_then(|function| self.analysis.types.get(function.type_index as usize));
        let parameters = ty.map_or(0, |(params, _)| u32::try_from(params.len()).unwrap_or(u32::MAX));
        let mut index = parameters;
        let mut locals = body.get_locals_reader()?;
        let groups = locals.get_count();
        let start = locals.original_position();
        for _ in 0..groups {
            index = index.saturating_add(locals.read()?.0);
        }
        (groups + 5).encode(out);
        out.extend_from_slice(self.wasm.get(start..locals.original_position()).unwrap_or(&[]));
        out.extend([2, 0x7e, 3, 0x7f, 1, 0x7d, 1, 0x7c, 1, 0x7b]);
        let at = |place: u32| index.saturating_add(place);
        Ok(Locals {
            parameters,
            fuel: index,
            i64: at(1),
            numbers: [at(2), at(3), at(4)],
            f32: at(5),
            f64: at(6),
            v128: at(7),
        })
    }

    fn insert(&self, what: What, locals: &Locals, out: &mut Vec<u8>) {
        let cell = locals.fuel;
        match what {
            What::Reload => self.reload(cell, out),
            What::Pay(fuel) => self.pay(cell, fuel, false, out),
            What::PayAndCheck(fuel) => self.pay(cell, fuel, true, out),
            What::PayEach(fuel) => {
                let [count, ..] = locals.numbers;
                out.push(0x21);
                count.encode(out);
                out.push(0x20);
                cell.encode(out);
                // The count is unsigned: `i64.extend_i32_u`.
                out.push(0x20);
                count.encode(out);
                out.extend([0xad, 0x42]);
                i64::from(fuel).encode(out);
                out.extend([0x7e, 0x7d]);
                self.keep(cell, out);
                self.check(cell, out);
                out.push(0x20);
                count.encode(out);
            }
        }
    }

    /// The local gets what the global has.
    fn reload(&self, cell: u32, out: &mut Vec<u8>) {
        out.push(0x23);
        self.fuel.encode(out);
        out.push(0x21);
        cell.encode(out);
    }

    /// Takes `fuel` from the local, which has what the global has, and stores it in both. With `check` it traps if there was
    /// less than none before: asking before and not after is what lets the compiler subtract in place.
    fn pay(&self, cell: u32, fuel: u32, check: bool, out: &mut Vec<u8>) {
        if check {
            self.check(cell, out);
        }
        out.push(0x20);
        cell.encode(out);
        out.push(0x42);
        i64::from(fuel).encode(out);
        out.push(0x7d);
        self.keep(cell, out);
    }

    /// Stores the fuel that is on the stack.
    fn keep(&self, cell: u32, out: &mut Vec<u8>) {
        out.push(0x22);
        cell.encode(out);
        out.push(0x24);
        self.fuel.encode(out);
    }

    /// if fuel < 0 unreachable
    fn check(&self, cell: u32, out: &mut Vec<u8>) {
        out.push(0x20);
        cell.encode(out);
        out.extend([0x42, 0x00, 0x53, 0x04, 0x40, 0x00, 0x0b]);
    }

    fn add_to_depth(&self, weight: i32, out: &mut Vec<u8>) {
        out.push(0x23);
        self.depth.encode(out);
        out.push(0x41);
        weight.encode(out);
        out.push(0x6a);
        out.push(0x24);
        self.depth.encode(out);
    }

    fn block_type(&self, results: &[ValType], out: &mut Vec<u8>) {
        match results {
            [] => out.push(0x40),
            [one] => out.push(type_byte(*one)),
            several => {
                let number = self.result_types.get(several).unwrap_or(0);
                let index = self.analysis.types.len() + number;
                i64::try_from(index).unwrap_or(i64::MAX).encode(out);
            }
        }
    }
}

/// The locals that a function gets from the rewrite. Those it does not use cost it nothing.
struct Locals {
    /// How many of the function's own come as arguments.
    parameters: u32,
    /// What is left of the fuel.
    fuel: u32,
    i64: u32,
    /// Three `i32`.
    numbers: [u32; 3],
    f32: u32,
    f64: u32,
    v128: u32,
}

impl Locals {
    /// Where a value that is to be stored waits; another place than the first of `numbers`.
    fn value(&self, ty: wasm_encoder::ValType) -> u32 {
        let [_, second, _] = self.numbers;
        match ty {
            wasm_encoder::ValType::I64 => self.i64,
            wasm_encoder::ValType::F32 => self.f32,
            wasm_encoder::ValType::F64 => self.f64,
            wasm_encoder::ValType::V128 => self.v128,
            wasm_encoder::ValType::I32 | wasm_encoder::ValType::Ref(_) => second,
        }
    }
}

/// The one-byte form of the types that the gate lets in.
fn type_byte(ty: ValType) -> u8 {
    match ty {
        ValType::I32 => 0x7f,
        ValType::I64 => 0x7e,
        ValType::F32 => 0x7d,
        ValType::F64 => 0x7c,
        ValType::V128 => 0x7b,
        ValType::Ref(_) => 0x70,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Ordering;

    use super::*;

    thread_local! {
        static LOOKS: Cell<u64> = const { Cell::new(0) };
    }

    /// Counts how often it is compared.
    #[derive(Clone)]
    struct Watched(u64);

    impl Ord for Watched {
        fn cmp(&self, other: &Self) -> Ordering {
            LOOKS.set(LOOKS.get() + 1);
            self.0.cmp(&other.0)
        }
    }
    impl PartialOrd for Watched {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }
    impl PartialEq for Watched {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }
    impl Eq for Watched {}

    /// The results of each function that calls itself were compared with those of all before it: a file with tens of thousands of them
    /// kept the gate busy for long.
    #[test]
    fn a_thing_is_compared_with_few_of_those_that_have_a_number() {
        const THINGS: u64 = 10_000;
        let things = || (0..THINGS).map(|thing| Watched(thing.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let mut numbers = Numbers::new();
        for _ in 0..2 {
            for (thing, wanted) in things().zip(0..) {
                assert_eq!(numbers.number(thing), wanted);
            }
        }
        assert!(things().zip(0..).all(|(thing, number)| numbers.get(&thing) == Some(number)));
        assert_eq!(numbers.all.len() as u64, THINGS);
        let looks = LOOKS.get() / THINGS / 3;
        assert!(looks < 100, "{looks} for each");
    }
}
