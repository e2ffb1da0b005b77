//! What the gate answers: its codes, its refusals, and what it found in a module. The checks are in
//! `inspect.rs`, the self-test in `engine.rs`.

use serde::Deserialize;
use serde::Serialize;

macro_rules! gate_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The stable code of a refusal; `as_str` is what clients see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum GateCode { $($(#[$doc])* $name,)* }
        impl GateCode {
            /// Every code.
            pub const ALL: &[GateCode] = &[$(GateCode::$name,)*];
            /// The code as clients see it: a contract, never renamed.
            pub const fn as_str(self) -> &'static str {
                match self { $(GateCode::$name => $text,)* }
            }
        }
    };
}

gate_codes! {
    /// The bytes are not WebAssembly, or not valid.
    NotWasm = "not_wasm",
    /// A component, where a core module is wanted.
    ComponentNotCore = "component_not_core",
    /// The file is larger than `wasm_bytes_max`.
    TooLarge = "too_large",
    /// An import outside the ABI.
    ForbiddenImport = "forbidden_import",
    /// An import of the ABI with another type.
    WrongImportType = "wrong_import_type",
    /// A required export is not there.
    MissingExport = "missing_export",
    /// An export of the ABI with another type.
    WrongExportType = "wrong_export_type",
    /// The module does not say that it is made for this ABI.
    MissingAbiMarker = "missing_abi_marker",
    /// An export whose name the host keeps for itself.
    ReservedName = "reserved_name",
    /// It needs a WebAssembly proposal that is switched off.
    FeatureOff = "feature_off",
    /// More linear memory at the start than `memory_bytes_max`.
    TooMuchMemory = "too_much_memory",
    /// More functions than `functions_max`.
    TooManyFunctions = "too_many_functions",
    /// A function with more locals than `locals_max`.
    TooManyLocals = "too_many_locals",
    /// A function larger than `function_bytes_max`.
    FunctionTooLarge = "function_too_large",
    /// More tables than `tables_max`, or more elements than `table_elements_max`.
    TooManyTables = "too_many_tables",
    /// More globals than `globals_max`.
    TooManyGlobals = "too_many_globals",
    /// A mutable global that holds a reference.
    ReferenceGlobal = "reference_global",
    /// An instruction that changes a table while the module runs. That a table is exported lets nobody change it: the host does not.
    MutableTable = "mutable_table",
    /// `data.drop` or `elem.drop`: hidden state that a roll-back could not undo.
    DroppedSegment = "dropped_segment",
    /// The compiler refused it.
    CannotCompile = "cannot_compile",
    /// A call of the self-test trapped.
    SelfTestTrapped = "self_test_trapped",
    /// The self-test's `snapshot` or `restore` rejected its own state.
    SelfTestRejected = "self_test_rejected",
    /// Not the module: this host could not run the self-test.
    HostFailure = "host_failure",
}

/// Why a module is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {what}: {remedy}", code.as_str())]
pub struct GateError {
    /// The stable code.
    pub code: GateCode,
    /// What is wrong, with the offending name and numbers.
    pub what: String,
    /// What to change.
    pub remedy: String,
}

/// How the self-test went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelfTest {
    /// Not run: the module was only loaded.
    NotRun,
    /// `init` with `{}`, `snapshot` and `restore` all went well.
    Passed {
        /// Bytes of the empty machine's snapshot.
        snapshot_bytes: u64,
        /// Fuel `init` took.
        init_fuel: u64,
        /// The restored machine's snapshot has the same bytes.
        snapshot_stable: bool,
    },
    /// `init` rejected `{}` with this text: the module needs parameters, the rest was not tested.
    ParamsNeeded(String),
}

/// What the gate found in a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// SHA-256 of the file.
    pub digest: [u8; 32],
    /// The file's size.
    pub wasm_bytes: u64,
    /// Memory declared at the start, bytes.
    pub memory_min_bytes: u64,
    /// Memory declared as the most, bytes; `None` when the module leaves it to the limits.
    pub memory_max_bytes: Option<u64>,
    /// Has `timer`.
    pub has_timer: bool,
    /// Has `session_end`.
    pub has_session_end: bool,
    /// Has `migrate`.
    pub has_migrate: bool,
    /// Has `adapter_open` and `adapter_step`.
    pub has_adapter: bool,
    /// The ABI imports it uses, sorted.
    pub imports: Vec<String>,
    /// Functions it defines.
    pub functions: u32,
    /// How the self-test went.
    pub self_test: SelfTest,
}

pub(super) fn refusal(code: GateCode, what: impl Into<String>, remedy: impl Into<String>) -> GateError {
    GateError { code, what: what.into(), remedy: remedy.into() }
}

pub(super) fn refuse<T>(code: GateCode, what: impl Into<String>, remedy: impl Into<String>) -> Result<T, GateError> {
    Err(refusal(code, what, remedy))
}
