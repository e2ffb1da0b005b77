//! The imports of the ABI: what the guest may ask of the host within a call, and how a call ends early.
//!
//! Invariants:
//! - An import touches guest memory only after its pointer and length were checked.
//! - Work that an import does for the guest costs fuel like the guest's own.
//! - How a call ends is decided by the guest's code, its input and the limits; all that is the host's
//!   doing ends as [`Stop::Fault`].

#![allow(unsafe_code)]

use std::fmt;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;

use wasmtime::Caller;
use wasmtime::Global;
use wasmtime::Linker;
use wasmtime::Memory;
use wasmtime::ResourceLimiter;
use wasmtime::Val;

use super::Effects;
use super::Fault;
use super::Limits;
use super::LogLevel;
use super::TimerChange;
use super::Trap;
use super::TrapCode;
use super::marks;

/// What the guest is being asked; decides which imports it may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Start,
    Init,
    Apply,
    Timer,
    SessionEnd,
    Query,
    Snapshot,
    Restore,
    Migrate,
    AdapterOpen,
    AdapterStep,
}

impl Call {
    /// The export's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Call::Start => "start",
            Call::Init => "init",
            Call::Apply => "apply",
            Call::Timer => "timer",
            Call::SessionEnd => "session_end",
            Call::Query => "query",
            Call::Snapshot => "snapshot",
            Call::Restore => "restore",
            Call::Migrate => "migrate",
            Call::AdapterOpen => "adapter_open",
            Call::AdapterStep => "adapter_step",
        }
    }

    fn has_effects(self) -> bool {
        matches!(self, Call::Init | Call::Apply | Call::Timer | Call::SessionEnd)
    }
}

/// What ended a call before the guest answered.
#[derive(Debug)]
pub(super) enum Stop {
    Trap(Trap),
    Fault(Fault),
    /// The snapshot stream failed.
    Stream(std::io::Error),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Trap(trap) => trap.fmt(f),
            Stop::Fault(fault) => fault.fmt(f),
            Stop::Stream(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Stop {}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

pub(super) fn trap(code: TrapCode, message: impl Into<String>) -> Stop {
    Stop::Trap(Trap { code, message: message.into() })
}

/// Log lines kept of one call, and bytes of one line; the rest is dropped, as the ABI allows.
const LOG_LINES_MAX: usize = 256;
const LOG_LINE_BYTES_MAX: usize = 4096;

/// Fuel of an import call beside its bytes: about what the crossing takes.
const IMPORT_FUEL: u64 = 50;

/// The stream a snapshot is written to or read from, for the length of one call.
pub(super) enum Stream {
    None,
    Out(*mut (dyn Write + Send)),
    In(*mut (dyn Read + Send)),
}

// SAFETY: the pointers are to `Send` streams and are used only by the thread that runs the call, between
// `Instance::stream_call`'s beginning and its end, while its caller's exclusive borrow lives.
unsafe impl Send for Stream {}

/// What the store holds for the imports.
pub(super) struct HostState {
    /// Whether the guest's own memory is made, which is the first of an instance.
    has_memory: bool,
    pub(super) memory: Option<Memory>,
    pub(super) marks: Option<Memory>,
    pub(super) fuel: Option<Global>,
    pub(super) limits: Arc<Limits>,
    call: Call,
    pub(super) effects: Effects,
    events_bytes: u64,
    pub(super) stream: Stream,
    pub(super) streamed: u64,
    /// The guest asked for memory over the limit in this call and did not get it.
    pub(super) growth_refused: bool,
    /// The limit let the growth under way pass, so its failure is this host's.
    growth_allowed: bool,
}

impl ResourceLimiter for HostState {
    fn memory_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // The one after it is the host's own (`marks.rs`), and never grows.
        if self.memory.is_none() && std::mem::replace(&mut self.has_memory, true) {
            return Ok(true);
        }
        let most = self.limits.memory_bytes().min(maximum.unwrap_or(usize::MAX));
        self.growth_allowed = desired <= most;
        self.growth_refused |= !self.growth_allowed;
        Ok(self.growth_allowed)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        if std::mem::take(&mut self.growth_allowed) {
            return Err(Stop::Fault(Fault::because("cannot grow linear memory", error)).into());
        }
        self.growth_refused = true;
        Ok(())
    }

    fn table_growing(&mut self, _: usize, _: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        // Called for the tables at instantiation; the gate has counted them and refuses `table.grow`.
        Ok(true)
    }
}

/// Takes fuel for what an import does; ends the call when there is not enough.
fn charge(caller: &mut Caller<'_, HostState>, bytes: u64) -> wasmtime::Result<()> {
    let fuel = caller.data().fuel.ok_or_else(|| Fault::new("an import was called before the instance was ready"))?;
    let left = fuel.get(&mut *caller).i64().unwrap_or(0);
    let cost = i64::try_from(bytes.saturating_add(IMPORT_FUEL)).unwrap_or(i64::MAX);
    let left = left.saturating_sub(cost);
    fuel.set(&mut *caller, Val::I64(left))?;
    if left < 0 { Err(wasmtime::Trap::OutOfFuel.into()) } else { Ok(()) }
}

/// The guest's bytes at `pointer`, and the host's state.
fn bytes_at<'a>(
    caller: &'a mut Caller<'_, HostState>,
    import: &str,
    pointer: i32,
    length: i32,
) -> Result<(&'a mut [u8], &'a mut HostState), Stop> {
    let memory =
        caller.data().memory.ok_or_else(|| Fault::new("an import was called before the instance was ready"))?;
    let (memory, state) = memory.data_and_store_mut(caller);
    let size = memory.len();
    let (start, length) = (pointer.cast_unsigned() as usize, length.cast_unsigned() as usize);
    match memory.get_mut(start..start.saturating_add(length)) {
        Some(bytes) => Ok((bytes, state)),
        None => {
            Err(trap(TrapCode::BadPointer, format!("{import} was given {length} bytes at {start}, memory has {size}")))
        }
    }
}

fn forbidden(import: &str, call: Call) -> Stop {
    trap(TrapCode::ForbiddenCall, format!("{import} must not be called in {}", call.name()))
}

/// Defines the ABI's imports.
pub(super) fn define_imports(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    const MODULE: &str = "statehouse";
    linker.func_wrap(
        MODULE,
        "emit",
        |mut caller: Caller<'_, HostState>, pointer: i32, length: i32| -> wasmtime::Result<()> {
            charge(&mut caller, u64::from(length.cast_unsigned()))?;
            let (bytes, state) = bytes_at(&mut caller, "emit", pointer, length)?;
            Ok(state.emit(bytes)?)
        },
    )?;
    linker.func_wrap(
        MODULE,
        "set_timer",
        |mut caller: Caller<'_, HostState>, id: i64, at_ms: i64| -> wasmtime::Result<()> {
            charge(&mut caller, 0)?;
            Ok(caller.data_mut().change_timer("set_timer", id, Some(at_ms.cast_unsigned()))?)
        },
    )?;
    linker.func_wrap(MODULE, "clear_timer", |mut caller: Caller<'_, HostState>, id: i64| -> wasmtime::Result<()> {
        charge(&mut caller, 0)?;
        Ok(caller.data_mut().change_timer("clear_timer", id, None)?)
    })?;
    linker.func_wrap(
        MODULE,
        "log",
        |mut caller: Caller<'_, HostState>, level: i32, pointer: i32, length: i32| -> wasmtime::Result<()> {
            charge(&mut caller, u64::from(length.cast_unsigned()))?;
            let (bytes, state) = bytes_at(&mut caller, "log", pointer, length)?;
            state.log(level, bytes);
            Ok(())
        },
    )?;
    linker.func_wrap(
        MODULE,
        "fail",
        |mut caller: Caller<'_, HostState>, pointer: i32, length: i32| -> wasmtime::Result<()> {
            charge(&mut caller, u64::from(length.cast_unsigned()))?;
            let (bytes, _) = bytes_at(&mut caller, "fail", pointer, length)?;
            Err(trap(TrapCode::Panic, text(bytes, 16 << 10)).into())
        },
    )?;
    linker.func_wrap(
        MODULE,
        "write",
        |mut caller: Caller<'_, HostState>, pointer: i32, length: i32| -> wasmtime::Result<()> {
            charge(&mut caller, u64::from(length.cast_unsigned()))?;
            let (bytes, state) = bytes_at(&mut caller, "write", pointer, length)?;
            Ok(state.write(bytes)?)
        },
    )?;
    linker.func_wrap(
        MODULE,
        "read",
        |mut caller: Caller<'_, HostState>, pointer: i32, length: i32| -> wasmtime::Result<i32> {
            let (bytes, state) = bytes_at(&mut caller, "read", pointer, length)?;
            let read = state.read(bytes)?;
            if let Some(marks) = state.marks {
                marks::set(marks.data_mut(&mut caller), pointer.cast_unsigned() as usize, read as usize);
            }
            charge(&mut caller, u64::from(read))?;
            Ok(read.cast_signed())
        },
    )?;
    Ok(())
}

/// A guest's text, cut to `most` bytes; what is not UTF-8 is replaced.
fn text(bytes: &[u8], most: usize) -> String {
    let cut = bytes.get(..most).unwrap_or(bytes);
    String::from_utf8_lossy(cut).into_owned()
}

impl HostState {
    pub(super) fn new(limits: &Arc<Limits>) -> HostState {
        HostState {
            has_memory: false,
            memory: None,
            marks: None,
            fuel: None,
            limits: limits.clone(),
            call: Call::Start,
            effects: Effects::default(),
            events_bytes: 0,
            stream: Stream::None,
            streamed: 0,
            growth_refused: false,
            growth_allowed: false,
        }
    }

    /// Forgets the last call.
    pub(super) fn begin(&mut self, call: Call) {
        self.call = call;
        self.effects.clear();
        self.events_bytes = 0;
        self.streamed = 0;
        self.growth_refused = false;
    }

    fn emit(&mut self, event: &[u8]) -> Result<(), Stop> {
        let limits = &self.limits;
        if !self.call.has_effects() {
            return Err(forbidden("emit", self.call));
        }
        if self.effects.events.len() >= limits.events_max as usize {
            return Err(trap(
                TrapCode::TooManyEvents,
                format!("more than {} events in one call (events_max)", limits.events_max),
            ));
        }
        if event.len() as u64 > u64::from(limits.event_bytes_max) {
            let message = format!(
                "an event of {} bytes, over the limit of {} (event_bytes_max)",
                event.len(),
                limits.event_bytes_max
            );
            return Err(trap(TrapCode::EventTooLarge, message));
        }
        self.events_bytes += event.len() as u64;
        if self.events_bytes > u64::from(limits.events_bytes_max) {
            let message =
                format!("events of more than {} bytes in one call (events_bytes_max)", limits.events_bytes_max);
            return Err(trap(TrapCode::EventTooLarge, message));
        }
        self.effects.events.push(event.to_vec());
        Ok(())
    }

    fn change_timer(&mut self, import: &str, id: i64, at_ms: Option<u64>) -> Result<(), Stop> {
        if !self.call.has_effects() {
            return Err(forbidden(import, self.call));
        }
        if self.effects.timers.len() >= self.limits.timers_max as usize {
            let message = format!("more than {} timer changes in one call (timers_max)", self.limits.timers_max);
            return Err(trap(TrapCode::TooManyTimers, message));
        }
        if at_ms.is_some() && self.effects.timers_full {
            return Err(trap(TrapCode::TooManyTimers, "the group has as many armed timers as it may have".to_owned()));
        }
        self.effects.timers.push(TimerChange { id: id.cast_unsigned(), at_ms });
        Ok(())
    }

    fn log(&mut self, level: i32, bytes: &[u8]) {
        if self.effects.logs.len() < LOG_LINES_MAX {
            let level = match level {
                1 => LogLevel::Error,
                2 => LogLevel::Warn,
                3 => LogLevel::Info,
                _ => LogLevel::Debug,
            };
            self.effects.logs.push((level, text(bytes, LOG_LINE_BYTES_MAX)));
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let Stream::Out(out) = self.stream else {
            return Err(forbidden("write", self.call));
        };
        self.streamed = self.streamed.saturating_add(bytes.len() as u64);
        if self.streamed > self.limits.snapshot_bytes_max {
            let message =
                format!("a snapshot of more than {} bytes (snapshot_bytes_max)", self.limits.snapshot_bytes_max);
            return Err(trap(TrapCode::SnapshotTooLarge, message));
        }
        // SAFETY: `stream_call` set the pointer from an exclusive borrow that lives until it returns, and
        // takes it away before that; only this thread runs the call.
        unsafe { &mut *out }.write_all(bytes).map_err(Stop::Stream)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<u32, Stop> {
        let Stream::In(input) = self.stream else {
            return Err(forbidden("read", self.call));
        };
        // As much as asked for unless the stream ends: how a reader cuts its pieces must not show.
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
            // SAFETY: as in `write`.
            match unsafe { &mut *input }.read(rest) {
                Ok(0) => break,
                Ok(count) => read += count.min(rest.len()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Stop::Stream(error)),
            }
        }
        Ok(u32::try_from(read).unwrap_or(u32::MAX))
    }
}
