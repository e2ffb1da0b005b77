//! What a module may use. A group's limits are part of its definition: they decide outcomes, so every
//! replica must have the same ones. Reasons for the defaults are in `docs/modules.md`.

use serde::Deserialize;
use serde::Serialize;

/// What a module may use; each limit's breach is a gate refusal or a trap with its own code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Size of the module file, bytes (gate).
    pub wasm_bytes_max: u64,
    /// Functions the module defines (gate).
    pub functions_max: u32,
    /// Locals of one function, parameters included (gate).
    pub locals_max: u32,
    /// Bytes of one function's body (gate).
    pub function_bytes_max: u32,
    /// Tables (gate).
    pub tables_max: u32,
    /// Elements of all tables together (gate).
    pub table_elements_max: u32,
    /// Globals (gate).
    pub globals_max: u32,
    /// Linear memory, bytes, rounded down to 64 KiB (gate for the declared minimum, else growth fails).
    pub memory_bytes_max: u64,
    /// Fuel of one command, timer, session end or query, `alloc` included.
    pub fuel_per_entry: u64,
    /// Fuel of instantiation and `init` together.
    pub fuel_init: u64,
    /// Fuel of one `snapshot`.
    pub fuel_snapshot: u64,
    /// Fuel of instantiation and `restore` (or `migrate`) together.
    pub fuel_restore: u64,
    /// Bytes of one reply or rejection text.
    pub reply_bytes_max: u32,
    /// Events of one call.
    pub events_max: u32,
    /// Bytes of one event.
    pub event_bytes_max: u32,
    /// Bytes of all events of one call.
    pub events_bytes_max: u32,
    /// Timer changes of one call.
    pub timers_max: u32,
    /// Bytes of one snapshot.
    pub snapshot_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            wasm_bytes_max: 32 << 20,
            functions_max: 50_000,
            locals_max: 10_000,
            function_bytes_max: 1 << 20,
            tables_max: 4,
            table_elements_max: 100_000,
            globals_max: 1_000,
            memory_bytes_max: 1 << 30,
            fuel_per_entry: 1_000_000_000,
            fuel_init: 10_000_000_000,
            fuel_snapshot: 1_000_000_000_000,
            fuel_restore: 1_000_000_000_000,
            reply_bytes_max: 4 << 20,
            events_max: 10_000,
            event_bytes_max: 1 << 20,
            events_bytes_max: 16 << 20,
            timers_max: 10_000,
            snapshot_bytes_max: 1 << 40,
        }
    }
}

/// The most a memory can have: a page less than 32 bits can name. So an address that wraps round has passed a byte that is not there, and the
/// short copies that the rewrite makes (`copy.rs`) trap before they could.
const MEMORY_CEILING_BYTES: u64 = (1 << 32) - (1 << 16);

impl Limits {
    /// The memory limit in whole 64 KiB pages, as the guest's `memory.grow` meets it, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let bytes = self.memory_bytes_max.min(MEMORY_CEILING_BYTES) & !0xffff;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// The widest a module can be at all: what [`Engine::load`](super::Engine::load) holds a module to,
    /// which knows of no group.
    pub(crate) fn ceiling() -> Self {
        Limits {
            wasm_bytes_max: 1 << 30,
            functions_max: 1_000_000,
            locals_max: 50_000,
            function_bytes_max: 7_654_321,
            tables_max: 100,
            table_elements_max: 10_000_000,
            globals_max: 1_000_000,
            memory_bytes_max: MEMORY_CEILING_BYTES,
            ..Limits::default()
        }
    }
}
