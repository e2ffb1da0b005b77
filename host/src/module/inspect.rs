//! Reads a module once, validates it, holds it to the limits and the ABI, and gathers what the rewrite
//! needs. Decides from the file and the limits alone, so every node decides alike.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Range;

use sha2::Digest;
use sha2::Sha256;
use wasmparser::CompositeInnerType;
use wasmparser::ExternalKind;
use wasmparser::FuncToValidate;
use wasmparser::FunctionBody;
use wasmparser::Operator;
use wasmparser::Parser;
use wasmparser::Payload;
use wasmparser::TypeRef;
use wasmparser::ValType;
use wasmparser::ValidPayload;
use wasmparser::Validator;
use wasmparser::ValidatorResources;
use wasmparser::WasmFeatures;

use super::GateCode;
use super::GateError;
use super::Limits;
use super::ModuleInfo;
use super::SelfTest;
use super::gate::refuse;
use super::rewrite::RESERVED_PREFIX;
use super::rewrite::frame_weight;

/// What [`inspect`] learns for the rewrite, beside what it tells the user.
#[derive(Debug)]
pub(super) struct Analysis {
    pub(super) info: ModuleInfo,
    /// Mutable globals, by index.
    pub(super) mutable_globals: Vec<u32>,
    /// Globals, imported ones cannot be there.
    pub(super) globals: u32,
    /// Function types, by type index: parameters and results.
    pub(super) types: Vec<(Vec<ValType>, Vec<ValType>)>,
    /// The start function.
    pub(super) start: Option<u32>,
    /// Functions that are imported; defined ones follow them in the index space.
    pub(super) imported_functions: u32,
    /// The defined functions, in order.
    pub(super) functions: Vec<Function>,
    /// Functions whose reference is taken: what an indirect call may reach.
    pub(super) referenced: BTreeSet<u32>,
    /// Where in linear memory the initial data lies.
    pub(super) data: Vec<Range<usize>>,
}

/// A defined function, as the stack bound sees it.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) type_index: u32,
    /// Logical bytes of its frame.
    pub(super) weight: u32,
    /// Defined functions it calls, by number among the defined ones.
    pub(super) calls: BTreeSet<u32>,
    /// Types of its indirect calls.
    pub(super) indirect: BTreeSet<u32>,
}

const I32: ValType = ValType::I32;
const I64: ValType = ValType::I64;

/// The ABI's imports, all of module `statehouse`: name, parameters, results.
const IMPORTS: &[(&str, &[ValType], &[ValType])] = &[
    ("clear_timer", &[I64], &[]),
    ("emit", &[I32, I32], &[]),
    ("fail", &[I32, I32], &[]),
    ("log", &[I32, I32, I32], &[]),
    ("read", &[I32, I32], &[I32]),
    ("set_timer", &[I64, I64], &[]),
    ("write", &[I32, I32], &[]),
];

/// The ABI's exports: name, parameters, results, whether it must be there.
const EXPORTS: &[(&str, &[ValType], &[ValType], bool)] = &[
    ("alloc", &[I32], &[I32], true),
    ("init", &[I32, I32], &[I64], true),
    ("apply", &[I32, I32], &[I64], true),
    ("query", &[I32, I32], &[I64], true),
    ("snapshot", &[], &[I64], true),
    ("restore", &[], &[I64], true),
    ("session_end", &[I32, I32], &[I64], false),
    ("timer", &[I32, I32], &[I64], false),
    ("migrate", &[I32, I32], &[I64], false),
    ("adapter_open", &[I32, I32], &[I64], false),
    ("adapter_step", &[I32, I32], &[I64], false),
];

/// The export that says which ABI the module is made for.
pub(super) const MARKER: &str = "statehouse_abi_1";

/// The proposals a module may use: those whose outcome is fixed by the standard and that the ABI needs.
const ALLOWED: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::CALL_INDIRECT_OVERLONG)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::BULK_MEMORY_OPT)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::FLOATS);

/// The proposals that are off, by the names users know, and how to build without them. One that needs
/// another comes before it, so that the first that cannot be missed is the one the module wants.
const SWITCHED_OFF: &[(WasmFeatures, &str, &str)] = &[
    (WasmFeatures::THREADS, "threads and shared memory", "build without `-C target-feature=+atomics`"),
    (WasmFeatures::RELAXED_SIMD, "relaxed SIMD", "its results differ between CPUs: build without `+relaxed-simd`"),
    (WasmFeatures::TAIL_CALL, "tail calls", "build without `+tail-call`"),
    (WasmFeatures::EXCEPTIONS, "exceptions", "build with `panic = \"abort\"` (C++: `-fno-exceptions`)"),
    (WasmFeatures::LEGACY_EXCEPTIONS, "legacy exceptions", "build with `panic = \"abort\"` (C++: `-fno-exceptions`)"),
    (WasmFeatures::MEMORY64, "64-bit memory", "build for wasm32, not wasm64"),
    (WasmFeatures::MULTI_MEMORY, "several memories", "use one memory"),
    (WasmFeatures::GC, "garbage collection", "use a language that compiles to linear memory"),
    (WasmFeatures::GC_TYPES, "references other than functions", "build without externref"),
    (WasmFeatures::FUNCTION_REFERENCES, "typed function references", "build without them"),
    (WasmFeatures::CUSTOM_PAGE_SIZES, "custom page sizes", "use pages of 64 KiB"),
    (WasmFeatures::WIDE_ARITHMETIC, "wide arithmetic", "build without `+wide-arithmetic`"),
    (WasmFeatures::STACK_SWITCHING, "stack switching", "build without it"),
    (WasmFeatures::SHARED_EVERYTHING_THREADS, "shared-everything threads", "build without it"),
    (WasmFeatures::MEMORY_CONTROL, "memory control", "build without it"),
];

/// The number that a constant expression of type `i32` gives. The validator has let it in, so that only these are in it:
/// there is no imported global that it could ask for.
fn constant(expression: &wasmparser::ConstExpr<'_>) -> Result<u32, wasmparser::BinaryReaderError> {
    let mut stack: Vec<i32> = Vec::new();
    for operator in expression.get_operators_reader() {
        let combine = match operator? {
            Operator::I32Const { value } => {
                stack.push(value);
                continue;
            }
            Operator::I32Add => i32::wrapping_add,
            Operator::I32Sub => i32::wrapping_sub,
            Operator::I32Mul => i32::wrapping_mul,
            _ => continue,
        };
        let (right, left) = (stack.pop().unwrap_or(0), stack.pop().unwrap_or(0));
        stack.push(combine(left, right));
    }
    Ok(stack.pop().unwrap_or(0).cast_unsigned())
}

/// The refusal for bytes that do not validate: a proposal that is off, by name, or not WebAssembly.
fn invalid(wasm: &[u8], error: &wasmparser::BinaryReaderError) -> GateError {
    let others = SWITCHED_OFF.iter().fold(WasmFeatures::empty(), |all, (feature, ..)| all.union(*feature));
    let valid_with = |features: WasmFeatures| Validator::new_with_features(features).validate_all(wasm).is_ok();
    if valid_with(ALLOWED.union(others)) {
        // Which one? Take each away from all: what cannot be missed is what the module uses.
        for (feature, name, remedy) in SWITCHED_OFF {
            if !valid_with(ALLOWED.union(others).difference(*feature)) {
                return GateError {
                    code: GateCode::FeatureOff,
                    what: format!("the module uses {name}, which is switched off ({error})"),
                    remedy: (*remedy).to_string(),
                };
            }
        }
        return GateError {
            code: GateCode::FeatureOff,
            what: format!("the module uses a WebAssembly proposal that is switched off ({error})"),
            remedy: "build for wasm32-unknown-unknown without extra target features".to_string(),
        };
    }
    GateError {
        code: GateCode::NotWasm,
        what: format!("the bytes are not a valid WebAssembly module: {error}"),
        remedy: "upload the .wasm file that the compiler wrote, whole and unchanged".to_string(),
    }
}

/// Holds `wasm` to the ABI and to `limits`, without running it.
pub(super) fn inspect(wasm: &[u8], limits: &Limits) -> Result<Analysis, GateError> {
    if wasm.len() as u64 > limits.wasm_bytes_max {
        return refuse(
            GateCode::TooLarge,
            format!("the module is {} bytes, over the limit of {} (wasm_bytes_max)", wasm.len(), limits.wasm_bytes_max),
            "build with `opt-level = \"s\"`, `lto = true` and `strip = true`, or raise the nodes' --module-bytes-max",
        );
    }
    if Parser::is_component(wasm) {
        return refuse(
            GateCode::ComponentNotCore,
            "the file is a WebAssembly component",
            "upload the core module: build for wasm32-unknown-unknown, without wasm-tools component or cargo-component",
        );
    }
    if !Parser::is_core_wasm(wasm) {
        return refuse(
            GateCode::NotWasm,
            "the file does not begin like a WebAssembly module",
            "upload the .wasm file that the compiler wrote; text (.wat) must be assembled first",
        );
    }
    let mut inspector = Inspector::new(wasm, limits);
    inspector.read(wasm)?;
    inspector.finish()
}

/// What is gathered while the sections go by.
struct Inspector<'a> {
    limits: &'a Limits,
    analysis: Analysis,
    exports: BTreeMap<String, (ExternalKind, u32)>,
    function_types: Vec<u32>,
    tables: u64,
    table_elements: u64,
    has_memory: bool,
}

impl<'a> Inspector<'a> {
    fn new(wasm: &[u8], limits: &'a Limits) -> Self {
        let info = ModuleInfo {
            digest: Sha256::digest(wasm).into(),
            wasm_bytes: wasm.len() as u64,
            memory_min_bytes: 0,
            memory_max_bytes: None,
            has_timer: false,
            has_session_end: false,
            has_migrate: false,
            has_adapter: false,
            imports: Vec::new(),
            functions: 0,
            self_test: SelfTest::NotRun,
        };
        let analysis = Analysis {
            info,
            mutable_globals: Vec::new(),
            globals: 0,
            types: Vec::new(),
            start: None,
            imported_functions: 0,
            functions: Vec::new(),
            referenced: BTreeSet::new(),
            data: Vec::new(),
        };
        Inspector {
            limits,
            analysis,
            exports: BTreeMap::new(),
            function_types: Vec::new(),
            tables: 0,
            table_elements: 0,
            has_memory: false,
        }
    }

    fn read(&mut self, wasm: &[u8]) -> Result<(), GateError> {
        let mut validator = Validator::new_with_features(ALLOWED);
        let mut allocations = wasmparser::FuncValidatorAllocations::default();
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload.map_err(|error| invalid(wasm, &error))?;
            // Our own limits speak before the validator's: they know what to change.
            self.section(&payload, wasm)?;
            match validator.payload(&payload).map_err(|error| invalid(wasm, &error))? {
                ValidPayload::Func(function, body) => {
                    allocations = self.function(function, &body, allocations, wasm)?;
                }
                ValidPayload::Ok | ValidPayload::Parser(_) | ValidPayload::End(_) => {}
            }
        }
        Ok(())
    }

    fn section(&mut self, payload: &Payload<'_>, wasm: &[u8]) -> Result<(), GateError> {
        let bad = |error: wasmparser::BinaryReaderError| invalid(wasm, &error);
        match payload {
            Payload::TypeSection(types) => {
                for group in types.clone() {
                    for sub_type in group.map_err(bad)?.into_types() {
                        let CompositeInnerType::Func(function) = &sub_type.composite_type.inner else {
                            continue; // The validator refuses it right after.
                        };
                        self.analysis.types.push((function.params().to_vec(), function.results().to_vec()));
                    }
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    let import = import.map_err(bad)?;
                    self.import(import.module, import.name, import.ty)?;
                }
            }
            Payload::FunctionSection(functions) => {
                let count = functions.count();
                self.analysis.info.functions = count;
                if count > self.limits.functions_max {
                    return refuse(
                        GateCode::TooManyFunctions,
                        format!(
                            "the module defines {count} functions, over the limit of {} (functions_max)",
                            self.limits.functions_max
                        ),
                        "leave out unused dependencies, build with `lto = true`, or raise the limit",
                    );
                }
                for type_index in functions.clone() {
                    self.function_types.push(type_index.map_err(bad)?);
                }
            }
            Payload::TableSection(tables) => {
                for table in tables.clone() {
                    self.tables += 1;
                    self.table_elements = self.table_elements.saturating_add(table.map_err(bad)?.ty.initial);
                }
                self.check_tables()?;
            }
            Payload::MemorySection(memories) => {
                for memory in memories.clone() {
                    self.memory(memory.map_err(bad)?)?;
                }
            }
            Payload::GlobalSection(globals) => {
                if globals.count() > self.limits.globals_max {
                    return refuse(
                        GateCode::TooManyGlobals,
                        format!(
                            "the module has {} globals, over the limit of {} (globals_max)",
                            globals.count(),
                            self.limits.globals_max
                        ),
                        "keep state in linear memory, or raise the limit",
                    );
                }
                for (index, global) in globals.clone().into_iter().enumerate() {
                    let global = global.map_err(bad)?;
                    let index = u32::try_from(index).unwrap_or(u32::MAX);
                    self.analysis.globals = index.saturating_add(1);
                    self.references(global.init_expr.get_operators_reader()).map_err(bad)?;
                    if global.ty.mutable {
                        if matches!(global.ty.content_type, ValType::Ref(_)) {
                            return refuse(
                                GateCode::ReferenceGlobal,
                                format!(
                                    "global {index} is mutable and holds a reference, which a snapshot of memory does not cover"
                                ),
                                "make it immutable, or keep a table index in it instead",
                            );
                        }
                        self.analysis.mutable_globals.push(index);
                    }
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports.clone() {
                    let export = export.map_err(bad)?;
                    self.export(export.name, export.kind, export.index)?;
                }
            }
            Payload::StartSection { func, .. } => self.analysis.start = Some(*func),
            Payload::ElementSection(elements) => {
                for element in elements.clone() {
                    let element = element.map_err(bad)?;
                    if let wasmparser::ElementKind::Active { offset_expr, .. } = &element.kind {
                        self.references(offset_expr.get_operators_reader()).map_err(bad)?;
                    }
                    match element.items {
                        wasmparser::ElementItems::Functions(functions) => {
                            for function in functions {
                                self.analysis.referenced.insert(function.map_err(bad)?);
                            }
                        }
                        wasmparser::ElementItems::Expressions(_, expressions) => {
                            for expression in expressions {
                                self.references(expression.map_err(bad)?.get_operators_reader()).map_err(bad)?;
                            }
                        }
                    }
                }
            }
            Payload::DataSection(segments) => {
                for segment in segments.clone() {
                    let segment = segment.map_err(bad)?;
                    if let wasmparser::DataKind::Active { offset_expr, .. } = &segment.kind {
                        let start = constant(offset_expr).map_err(bad)? as usize;
                        self.analysis.data.push(start..start.saturating_add(segment.data.len()));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, module: &str, name: &str, ty: TypeRef) -> Result<(), GateError> {
        let full = format!("import {module:?}.{name:?}");
        let known = IMPORTS.iter().find(|(known, ..)| module == "statehouse" && *known == name);
        let Some((_, params, results)) = known else {
            let remedy = match (module, ty) {
                (_, TypeRef::Memory(_)) => {
                    "define the memory in the module and export it as `memory`: build without `--import-memory`"
                }
                ("wasi_snapshot_preview1" | "wasi_unstable", _) => {
                    "build for wasm32-unknown-unknown and without libraries that use files, clocks or sockets: time, randomness and input come with each entry"
                }
                ("__wbindgen_placeholder__" | "__wbindgen_externref_xform__" | "wbg", _) => {
                    "a dependency expects a browser (wasm-bindgen): switch off its `js` features"
                }
                ("env", _) => "a function was declared but not linked in: define it in the module",
                _ => "use only the imports of docs/abi.md",
            };
            return refuse(GateCode::ForbiddenImport, format!("{full} is outside the ABI"), remedy);
        };
        let TypeRef::Func(type_index) = ty else {
            return refuse(
                GateCode::WrongImportType,
                format!("{full} is not imported as a function"),
                "declare it as in docs/abi.md",
            );
        };
        self.check_type(&full, type_index, params, results, GateCode::WrongImportType)?;
        self.analysis.imported_functions += 1;
        self.function_types.push(type_index);
        if !self.analysis.info.imports.iter().any(|known| known == name) {
            self.analysis.info.imports.push(name.to_string());
            self.analysis.info.imports.sort();
        }
        Ok(())
    }

    fn memory(&mut self, memory: wasmparser::MemoryType) -> Result<(), GateError> {
        self.has_memory = true;
        let bytes = memory.initial.saturating_mul(1 << 16);
        self.analysis.info.memory_min_bytes = bytes;
        self.analysis.info.memory_max_bytes = memory.maximum.map(|pages| pages.saturating_mul(1 << 16));
        if bytes > self.limits.memory_bytes() as u64 {
            return refuse(
                GateCode::TooMuchMemory,
                format!(
                    "the module starts with {bytes} bytes of memory, over the limit of {} (memory_bytes_max)",
                    self.limits.memory_bytes()
                ),
                "use smaller statics or a smaller `--initial-memory`, or raise the nodes' --group-memory-bytes-max",
            );
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), GateError> {
        if self.tables > u64::from(self.limits.tables_max)
            || self.table_elements > u64::from(self.limits.table_elements_max)
        {
            return refuse(
                GateCode::TooManyTables,
                format!(
                    "the module has {} tables with {} elements, over the limits of {} (tables_max) and {} (table_elements_max)",
                    self.tables, self.table_elements, self.limits.tables_max, self.limits.table_elements_max
                ),
                "leave out unused code with `lto = true`, or raise the limits",
            );
        }
        Ok(())
    }

    fn export(&mut self, name: &str, kind: ExternalKind, index: u32) -> Result<(), GateError> {
        if name.starts_with(RESERVED_PREFIX) {
            return refuse(
                GateCode::ReservedName,
                format!("export {name:?} begins with {RESERVED_PREFIX:?}, which the host keeps for itself"),
                "give it another name",
            );
        }
        // An exported table is harmless here, where only the host could change it, and rustc's
        // `--export-table` is common; it is the guest's own table instructions that are refused.
        self.exports.insert(name.to_string(), (kind, index));
        Ok(())
    }

    /// Notes the functions that a constant expression takes references of.
    fn references(&mut self, operators: wasmparser::OperatorsReader<'_>) -> Result<(), wasmparser::BinaryReaderError> {
        for operator in operators {
            if let Operator::RefFunc { function_index } = operator? {
                self.analysis.referenced.insert(function_index);
            }
        }
        Ok(())
    }

    fn function(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
        allocations: wasmparser::FuncValidatorAllocations,
        wasm: &[u8],
    ) -> Result<wasmparser::FuncValidatorAllocations, GateError> {
        let bad = |error: wasmparser::BinaryReaderError| invalid(wasm, &error);
        let index = function.index;
        let type_index = function.ty;
        let bytes = body.range().len();
        if bytes as u64 > u64::from(self.limits.function_bytes_max) {
            return refuse(
                GateCode::FunctionTooLarge,
                format!(
                    "function {index} is {bytes} bytes, over the limit of {} (function_bytes_max)",
                    self.limits.function_bytes_max
                ),
                "split it (compile time grows faster than a function's size), or raise the limit",
            );
        }
        let mut validator = function.into_validator(allocations);
        let mut locals = body.get_locals_reader().map_err(bad)?;
        let params = self.analysis.types.get(type_index as usize).map_or(0, |(params, _)| params.len() as u64);
        let mut count = params;
        let mut wide = false;
        for _ in 0..locals.get_count() {
            let offset = locals.original_position();
            let (number, ty) = locals.read().map_err(bad)?;
            count = count.saturating_add(u64::from(number));
            wide |= ty == ValType::V128;
            if count > u64::from(self.limits.locals_max) {
                return refuse(
                    GateCode::TooManyLocals,
                    format!(
                        "function {index} has {count} or more locals, over the limit of {} (locals_max)",
                        self.limits.locals_max
                    ),
                    "split the function, or raise the limit",
                );
            }
            validator.define_locals(offset, number, ty).map_err(bad)?;
        }
        let mut calls = BTreeSet::new();
        let mut indirect = BTreeSet::new();
        let mut height = 0;
        let mut operators = body.get_operators_reader().map_err(bad)?;
        while !operators.eof() {
            let offset = operators.original_position();
            let operator = operators.read().map_err(bad)?;
            match &operator {
                Operator::Call { function_index } => {
                    if let Some(defined) = function_index.checked_sub(self.analysis.imported_functions) {
                        calls.insert(defined);
                    }
                }
                Operator::CallIndirect { type_index, .. } => {
                    indirect.insert(*type_index);
                }
                Operator::RefFunc { function_index } => {
                    self.analysis.referenced.insert(*function_index);
                }
                other => self.forbidden(index, other)?,
            }
            validator.op(offset, &operator).map_err(bad)?;
            wide |= validator.get_operand_type(0).flatten() == Some(ValType::V128);
            height = height.max(validator.operand_stack_height());
        }
        operators.finish().map_err(bad)?;
        let weight = frame_weight(count, u64::from(height), bytes as u64, wide);
        self.analysis.functions.push(Function { type_index, weight, calls, indirect });
        Ok(validator.into_allocations())
    }

    /// Refuses the instructions that change what a roll-back does not cover.
    fn forbidden(&self, function: u32, operator: &Operator<'_>) -> Result<(), GateError> {
        let (code, name) = match operator {
            Operator::TableSet { .. } => (GateCode::MutableTable, "table.set"),
            Operator::TableGrow { .. } => (GateCode::MutableTable, "table.grow"),
            Operator::TableFill { .. } => (GateCode::MutableTable, "table.fill"),
            Operator::TableCopy { .. } => (GateCode::MutableTable, "table.copy"),
            Operator::TableInit { .. } => (GateCode::MutableTable, "table.init"),
            Operator::ElemDrop { .. } => (GateCode::DroppedSegment, "elem.drop"),
            Operator::DataDrop { .. } => (GateCode::DroppedSegment, "data.drop"),
            _ => return Ok(()),
        };
        refuse(
            code,
            format!(
                "function {function} uses {name}: tables and segments are not state, so a trapped entry could not be undone"
            ),
            "fill tables by active element segments, data by active data segments, and change neither while running",
        )
    }

    fn check_type(
        &self,
        name: &str,
        type_index: u32,
        params: &[ValType],
        results: &[ValType],
        code: GateCode,
    ) -> Result<(), GateError> {
        let found = self.analysis.types.get(type_index as usize);
        if found.is_some_and(|(p, r)| p == params && r == results) {
            return Ok(());
        }
        let found = found.map_or("no function type".to_string(), |(p, r)| signature(p, r));
        refuse(
            code,
            format!("{name} has type {found}, the ABI says {}", signature(params, results)),
            "declare it as in docs/abi.md",
        )
    }

    fn finish(mut self) -> Result<Analysis, GateError> {
        let marker = self.exports.keys().find(|name| name.starts_with("statehouse_abi_")).cloned();
        match marker.as_deref() {
            Some(MARKER) => {}
            Some(other) => {
                return refuse(
                    GateCode::MissingAbiMarker,
                    format!("the module is made for {other}, this host knows {MARKER}"),
                    "build it with the SDK of this host's version, or upgrade the host",
                );
            }
            None => {
                return refuse(
                    GateCode::MissingAbiMarker,
                    format!("the module does not export {MARKER}, so it is not made for Statehouse"),
                    format!(
                        "build it with statehouse-sdk, or export a function {MARKER} without parameters and results"
                    ),
                );
            }
        }
        self.function_export(MARKER, &[], &[])?;
        match self.exports.get("memory") {
            Some((ExternalKind::Memory, _)) if self.has_memory => {}
            Some(_) => {
                return refuse(
                    GateCode::WrongExportType,
                    "export \"memory\" is not a memory",
                    "export the linear memory by this name",
                );
            }
            None => {
                return refuse(
                    GateCode::MissingExport,
                    "export \"memory\" is not there",
                    "export the linear memory by this name",
                );
            }
        }
        for (name, params, results, required) in EXPORTS {
            if *required && !self.exports.contains_key(*name) {
                let remedy = "use the SDK's export macro, or write the function as docs/abi.md says";
                return refuse(GateCode::MissingExport, format!("export {name:?} is not there"), remedy);
            }
            self.function_export(name, params, results)?;
        }
        let has = |name: &str| self.exports.contains_key(name);
        let info = &mut self.analysis.info;
        info.has_timer = has("timer");
        info.has_session_end = has("session_end");
        info.has_migrate = has("migrate");
        info.has_adapter = has("adapter_open");
        if has("adapter_open") != has("adapter_step") {
            let (there, missing) =
                if info.has_adapter { ("adapter_open", "adapter_step") } else { ("adapter_step", "adapter_open") };
            return refuse(
                GateCode::MissingExport,
                format!("the module exports {there:?} but not {missing:?}"),
                "an adapter has both: use the SDK's export macro, or write the functions as docs/abi.md says",
            );
        }
        if info.imports.iter().any(|name| name == "set_timer") && !info.has_timer {
            return refuse(
                GateCode::MissingExport,
                "the module imports set_timer but has no export \"timer\" to be called when one is due",
                "export `timer`, or do not use set_timer",
            );
        }
        Ok(self.analysis)
    }

    fn function_export(&self, name: &str, params: &[ValType], results: &[ValType]) -> Result<(), GateError> {
        match self.exports.get(name) {
            None => Ok(()),
            Some((ExternalKind::Func, index)) => {
                let type_index = self.function_types.get(*index as usize).copied().unwrap_or(u32::MAX);
                self.check_type(&format!("export {name:?}"), type_index, params, results, GateCode::WrongExportType)
            }
            Some(_) => refuse(
                GateCode::WrongExportType,
                format!("export {name:?} is not a function"),
                "declare it as in docs/abi.md",
            ),
        }
    }
}

/// A function type as people write it.
fn signature(params: &[ValType], results: &[ValType]) -> String {
    let list = |types: &[ValType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("({}) -> ({})", list(params), list(results))
}
