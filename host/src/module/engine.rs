//! The compiler with its pinned settings, and compiled modules.

#![allow(unsafe_code)]

use std::hash::Hash;
use std::hash::Hasher;
use std::num::NonZeroUsize;
use std::sync::Arc;

use sha2::Digest;
use sha2::Sha256;
use wasmtime::Config;
use wasmtime::Inlining;
use wasmtime::InstancePre;
use wasmtime::Linker;
use wasmtime::OptLevel;
use wasmtime::Strategy;

use super::CodeCache;
use super::Context;
use super::Effects;
use super::GateCode;
use super::GateError;
use super::InitError;
use super::Limits;
use super::Machine;
use super::ModuleError;
use super::ModuleInfo;
use super::RUNTIME_VERSION;
use super::RestoreError;
use super::SelfTest;
use super::SnapshotError;
use super::Trap;
use super::Turn;
use super::gate;
use super::imports::HostState;
use super::imports::define_imports;
use super::inspect::Analysis;
use super::inspect::inspect;
use super::memory::Creator;
use super::rewrite;
use super::rewrite::REWRITE_VERSION;
use super::stack;

/// Address space of a memory: all that 32 bits reach, so that compiled code needs no bounds checks.
const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Fuel of each call of the self-test, whatever the limits allow: an uploader should not wait minutes to
/// hear that a module loops. Takes some seconds.
const SELF_TEST_FUEL_MAX: u64 = 2_000_000_000;
/// The snapshot of a new machine is no longer, in the self-test.
const SELF_TEST_SNAPSHOT_BYTES_MAX: u64 = 64 << 20;

/// Frames wasmtime walks to name the place of a trap.
const TRAP_FRAMES_MAX: usize = 4;

/// The compiler and its settings; cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<EngineInner>);

struct EngineInner {
    engine: wasmtime::Engine,
    linker: Linker<HostState>,
    /// Hex of a hash of everything that compiled code depends on but the module itself.
    hash: String,
}

/// A compiled module; cheap to clone.
#[derive(Clone)]
pub struct Module(Arc<ModuleInner>);

struct ModuleInner {
    engine: Engine,
    pre: InstancePre<HostState>,
    info: ModuleInfo,
    saved_globals: usize,
    has_start: bool,
    data: Vec<std::ops::Range<usize>>,
}

/// The settings that decide outcomes, each for [determinism](super): see `docs/modules.md`.
fn config() -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        // Frames would be as wide as all that is inlined in them, and the host's stack is made for those of one function.
        .compiler_inlining(Inlining::No)
        // The rewrite counts fuel, for half the price; and nothing else ends a call.
        .consume_fuel(false)
        .epoch_interruption(false)
        .cranelift_nan_canonicalization(true)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_relaxed_simd(false)
        .wasm_tail_call(false)
        // Not the uploader's, which the gate refuses: the rewrite adds one.
        .wasm_multi_memory(true)
        .wasm_memory64(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        // wasmtime wants the second no smaller than the first; no such stack is ever made.
        .max_wasm_stack(stack::WASM_STACK_BYTES)
        .async_stack_size(stack::WASM_STACK_BYTES)
        .with_host_memory(Arc::new(Creator))
        .memory_reservation(MEMORY_RESERVATION_BYTES)
        .memory_may_move(false)
        // The image is ours: wasmtime must not lay its own over a memory it did not make.
        .memory_init_cow(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(TRAP_FRAMES_MAX))
        .generate_address_map(false);
    config
}

impl Engine {
    /// An engine with this project's pinned settings.
    pub fn new() -> Result<Engine, ModuleError> {
        let host = |error: wasmtime::Error| ModuleError::Host(format!("{error:#}"));
        let engine = wasmtime::Engine::new(&config()).map_err(host)?;
        let mut linker = Linker::new(&engine);
        define_imports(&mut linker).map_err(host)?;
        let mut hasher = DigestHasher(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        RUNTIME_VERSION.hash(&mut hasher);
        REWRITE_VERSION.hash(&mut hasher);
        let hash = hex::encode(hasher.0.finalize());
        Ok(Engine(Arc::new(EngineInner { engine, linker, hash })))
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    /// Refuses a module with a reason, or says what is in it: static checks, then a fuelled
    /// `init`–`snapshot`–`restore` self-test with params `{}`.
    ///
    /// Compiles the module, which takes up to a second for each few MiB; not for a thread in a hurry.
    pub fn gate(&self, wasm: &[u8], limits: &Limits) -> Result<ModuleInfo, GateError> {
        self.admit(wasm, limits, None, None)
    }

    /// As [`gate`](Engine::gate), but compiles only what is neither `loaded` (this very file) nor in `cache`, and
    /// keeps the code of a module that passed there.
    pub fn admit(
        &self,
        wasm: &[u8],
        limits: &Limits,
        loaded: Option<Module>,
        cache: Option<&dyn CodeCache>,
    ) -> Result<ModuleInfo, GateError> {
        let analysis = inspect(wasm, limits)?;
        let limits = Limits {
            fuel_init: limits.fuel_init.min(SELF_TEST_FUEL_MAX),
            fuel_snapshot: limits.fuel_snapshot.min(SELF_TEST_FUEL_MAX),
            fuel_restore: limits.fuel_restore.min(SELF_TEST_FUEL_MAX),
            // Two of them are compared, in memory.
            snapshot_bytes_max: limits.snapshot_bytes_max.min(SELF_TEST_SNAPSHOT_BYTES_MAX),
            ..limits.clone()
        };
        let tested = |module: Module| {
            let self_test = self_test(&module, &limits)?;
            Ok(ModuleInfo { self_test, ..module.info().clone() })
        };
        if let Some(module) = loaded {
            return tested(module);
        }
        let made = match self.make(wasm, analysis, cache) {
            Ok(made) => made,
            Err(ModuleError::Refused(error)) => return Err(error),
            Err(ModuleError::Compile(text)) => {
                return gate::refuse(
                    GateCode::CannotCompile,
                    format!("the compiler says: {text}"),
                    "report it with the module: the gate should have known",
                );
            }
            Err(error @ ModuleError::Host(_)) => return Err(host_failure(&error)),
        };
        let info = tested(made.module.clone())?;
        made.keep(cache);
        Ok(info)
    }

    /// Compiles a module that passed the gate, or takes the compiled code from `cache`.
    ///
    /// Holds it to the ABI again, but not to a group's limits: those are the gate's.
    pub fn load(&self, wasm: &[u8], cache: Option<&dyn CodeCache>) -> Result<Module, ModuleError> {
        let made = self.make(wasm, inspect(wasm, &Limits::ceiling())?, cache)?;
        made.keep(cache);
        Ok(made.module)
    }

    fn make(&self, wasm: &[u8], analysis: Analysis, cache: Option<&dyn CodeCache>) -> Result<Made, ModuleError> {
        let key = format!("{}-{}", hex::encode(analysis.info.digest), self.0.hash);
        let mut turn = None;
        let mut found = cache.and_then(|cache| self.cached(cache, &key));
        if let (None, Some(cache)) = (&found, cache) {
            turn = cache.turn(&key);
            // Somebody else may have made it meanwhile.
            found = turn.is_some().then(|| self.cached(cache, &key)).flatten();
        }
        let (compiled, new) = match found {
            Some(compiled) => (compiled, None),
            None => {
                let rewritten =
                    rewrite::rewrite(wasm, &analysis).map_err(|error| ModuleError::Compile(error.to_string()))?;
                let compiled = wasmtime::Module::new(self.wasmtime(), rewritten)
                    .map_err(|error| ModuleError::Compile(format!("{error:#}")))?;
                (compiled, Some((key, turn)))
            }
        };
        let pre =
            self.0.linker.instantiate_pre(&compiled).map_err(|error| ModuleError::Compile(format!("{error:#}")))?;
        let saved_globals = analysis.mutable_globals.len() + 1;
        let has_start = analysis.start.is_some();
        let Analysis { info, data, .. } = analysis;
        let module = Module(Arc::new(ModuleInner { engine: self.clone(), pre, info, saved_globals, has_start, data }));
        Ok(Made { module, new })
    }

    fn cached(&self, cache: &dyn CodeCache, key: &str) -> Option<wasmtime::Module> {
        let bytes = cache.get(key)?;
        // SAFETY: the bytes are code that will run with this process's rights, so they must be what this
        // engine's `serialize` made. A `CodeCache` promises to return only what was put under the key
        // (`DirCache` holds the bytes to an HMAC with a key of its directory, so a damaged or
        // foreign file is not returned); wasmtime refuses other versions and settings itself.
        let module = unsafe { wasmtime::Module::deserialize(self.wasmtime(), bytes) };
        module.map_err(|error| tracing::warn!(key, "compiled code in the cache is not used: {error:#}")).ok()
    }
}

/// A module that was loaded.
struct Made {
    module: Module,
    /// Where its code belongs in the cache, if it is not there, and the right to put it there.
    new: Option<(String, Option<Turn>)>,
}

impl Made {
    fn keep(&self, cache: Option<&dyn CodeCache>) {
        if let (Some((key, _turn)), Some(cache)) = (&self.new, cache)
            && let Ok(bytes) = self.module.pre().module().serialize()
        {
            cache.put(key, &bytes);
        }
    }
}

impl Module {
    /// What is in it; its self-test reads `NotRun`.
    pub fn info(&self) -> &ModuleInfo {
        &self.0.info
    }

    /// SHA-256 of the uploaded file.
    pub fn digest(&self) -> [u8; 32] {
        self.0.info.digest
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(super) fn pre(&self) -> &InstancePre<HostState> {
        &self.0.pre
    }

    pub(super) fn saved_globals(&self) -> usize {
        self.0.saved_globals
    }

    /// Where in linear memory the initial data lies.
    pub(super) fn data(&self) -> &[std::ops::Range<usize>] {
        &self.0.data
    }

    pub(super) fn has_start(&self) -> bool {
        self.0.has_start
    }
}

/// Feeds what is hashed to SHA-256: the standard library's hasher may change between Rust versions.
struct DigestHasher(Sha256);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// `init` with `{}`, `snapshot`, `restore` of that, and `snapshot` again.
fn self_test(module: &Module, limits: &Limits) -> Result<SelfTest, GateError> {
    let mut effects = Effects::default();
    let mut machine = match Machine::init(module, limits, &Context::default(), b"{}", &mut effects) {
        Ok(machine) => machine,
        Err(InitError::Rejected(text)) => return Ok(SelfTest::ParamsNeeded(text)),
        Err(InitError::Trapped(trap)) => return Err(trapped("init", &trap)),
        Err(InitError::Fault(fault)) => return Err(host_failure(&fault)),
    };
    let init_fuel = effects.fuel_used;
    let first = test_snapshot(&mut machine)?;
    let mut restored = match Machine::restore(module, limits, &mut first.as_slice()) {
        Ok(machine) => machine,
        Err(RestoreError::Rejected(text)) => return Err(rejected("restore", &text)),
        Err(RestoreError::Trapped(trap)) => return Err(trapped("restore", &trap)),
        Err(error @ (RestoreError::Unreadable(_) | RestoreError::Fault(_))) => return Err(host_failure(&error)),
    };
    let second = test_snapshot(&mut restored)?;
    Ok(SelfTest::Passed { snapshot_bytes: first.len() as u64, init_fuel, snapshot_stable: first == second })
}

fn test_snapshot(machine: &mut Machine) -> Result<Vec<u8>, GateError> {
    let mut bytes = Vec::new();
    match machine.freeze().map_err(SnapshotError::from).and_then(|frozen| frozen.snapshot(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(SnapshotError::Rejected(text)) => Err(rejected("snapshot", &text)),
        Err(SnapshotError::Trapped(trap)) => Err(trapped("snapshot", &trap)),
        Err(error @ (SnapshotError::Unwritable(_) | SnapshotError::Fault(_))) => Err(host_failure(&error)),
    }
}

fn trapped(call: &str, trap: &Trap) -> GateError {
    gate::refusal(
        GateCode::SelfTestTrapped,
        format!("the self-test's {call} trapped: {trap}"),
        "init with params {} must answer or reject, and snapshot and restore must work on the new state, within the limits' fuel and memory",
    )
}

fn rejected(call: &str, text: &str) -> GateError {
    gate::refusal(
        GateCode::SelfTestRejected,
        format!("the self-test's {call} rejected the state of a new machine: {text}"),
        "restore must take, to the last byte, what snapshot wrote",
    )
}

fn host_failure(error: &dyn std::fmt::Display) -> GateError {
    gate::refusal(
        GateCode::HostFailure,
        format!("this host could not test the module: {error}"),
        "upload it again, here or at another node",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not said is what wasmtime's next version makes of it. Nodes of two versions apply the same entries while a cluster is upgraded.
    #[test]
    fn the_settings_that_decide_outcomes_are_said_and_not_left_to_wasmtime() {
        let said = format!("{:?}", config());
        for setting in [
            "strategy: Some(Cranelift)",
            r#""enable_nan_canonicalization": ("true""#,
            r#""opt_level": ("speed""#,
            "inlining: No",
            "consume_fuel: false",
            "epoch_interruption: false",
            "memory_reservation: 4294967296",
            "memory_may_move: false",
            "memory_init_cow: false",
            "generate_address_map: false",
            "wasm_relaxed_simd: false",
            "wasm_tail_call: false",
            "wasm_memory64: false",
            "wasm_custom_page_sizes: false",
            "wasm_wide_arithmetic: false",
        ] {
            assert!(said.contains(setting), "{setting} is not in {said}");
        }
    }
}
