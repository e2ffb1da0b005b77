//! stub
use serde::{Deserialize, Serialize};

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
    /// Has exports that begin with `adapter_`.
    pub has_adapter: bool,
    /// The ABI imports it uses, sorted.
    pub imports: Vec<String>,
    /// Functions it defines.
    pub functions: u32,
    /// How the self-test went.
    pub self_test: SelfTest,
}
