//! The live state machine: applying, undoing, asking and freezing.
//!
//! Invariants:
//! - state = image + registers (as of the last checkpoint), then the redo list applied in order.
//!   The live instance always shows exactly that state between calls.
//! - A checkpoint moves what was written since the last one into the image and empties the redo list.
//!   Checkpoints change no outcome: when they happen depends on the host's convenience alone.
//! - After a trap the live instance goes back to the image and applies the redo list again, so the
//!   trapped entry leaves no trace.
//! - Queries run on the view, an instance of its own over the same image; the image takes nothing from it.
//! - After a [`Fault`] the machine answers nothing but that fault.

use std::io::Read;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Weak;

use sha2::Digest;
use sha2::Sha256;

use super::Context;
use super::Effects;
use super::Fault;
use super::InitError;
use super::Limits;
use super::Module;
use super::Outcome;
use super::RestoreError;
use super::SnapshotError;
use super::Trap;
use super::image_file;
use super::imports::Call;
use super::imports::Stop;
use super::instance::Answer;
use super::instance::Instance;
use super::instance::Registers;
use super::instance::io_fault;
use super::memory::Image;
use super::memory::Mapping;
use super::memory::can_hold;

/// A checkpoint is made when the redo list has so many entries, this many bytes of input, or took this
/// much fuel (some tenths of a second): so much at most is applied again when an entry traps.
const REDO_BYTES_MAX: usize = 16 << 20;
const REDO_FUEL_MAX: u64 = 200_000_000;
/// How many entries is found out: as many as write some ten thousand pages, which keeps the checkpoint's own
/// pause at some tens of milliseconds, and lets it come seldom where the same pages are written again.
const REDO_ENTRIES: Range<usize> = 1024..65_536;
const REDO_ENTRIES_FIRST: usize = 4096;
const CHECKPOINT_PAGES: Range<usize> = 8192..16_384;

/// Queries one view answers before it is set back, so that what they leave allocated does not pile up.
const VIEW_QUERIES_MAX: u32 = 1024;

/// One live state machine. `Send`, used by one thread at a time.
pub struct Machine {
    module: Module,
    limits: Arc<Limits>,
    live: Instance,
    image: Arc<Image>,
    /// As of the last checkpoint.
    registers: Registers,
    redo: Redo,
    view: Option<View>,
    /// Memories of frozen states that show this machine's image.
    frozen: Vec<Weak<Mapping>>,
    fault: Option<Fault>,
}

/// Where queries run.
struct View {
    instance: Instance,
    /// The image moved on since the view was last set back, or a query trapped.
    stale: bool,
    queries: u32,
}

/// Entries applied since the last checkpoint, their bytes in one buffer.
struct Redo {
    entries: Vec<(Call, Context, Range<usize>)>,
    entries_max: usize,
    bytes: Vec<u8>,
    fuel: u64,
}

impl Redo {
    fn new() -> Redo {
        Redo { entries: Vec::new(), entries_max: REDO_ENTRIES_FIRST, bytes: Vec::new(), fuel: 0 }
    }

    /// Adapts the list's length to what the checkpoint of a full one wrote.
    fn pace(&mut self, pages: usize) {
        if pages > CHECKPOINT_PAGES.end {
            self.entries_max = (self.entries_max / 2).max(REDO_ENTRIES.start);
        } else if pages < CHECKPOINT_PAGES.start {
            self.entries_max = (self.entries_max * 2).min(REDO_ENTRIES.end);
        }
    }

    fn push(&mut self, call: Call, context: &Context, payload: &[u8], fuel: u64) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        self.entries.push((call, *context, start..self.bytes.len()));
        self.fuel = self.fuel.saturating_add(fuel);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.entries_max || self.bytes.len() >= REDO_BYTES_MAX || self.fuel >= REDO_FUEL_MAX
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        self.fuel = 0;
    }
}

/// A state as it was at one moment; `Send`, to be written out on another thread while the machine goes on.
///
/// It shares the machine's image; a checkpoint that overwrites a page of it leaves the page to the frozen
/// state first. So it costs memory only for what the machine changes while it lives.
pub struct Frozen {
    instance: Instance,
    image: Arc<Image>,
    registers: Registers,
    fuel: u64,
}

fn new_image(limits: &Limits) -> Result<Arc<Image>, Fault> {
    let image = Image::new(limits.memory_bytes()).map_err(io_fault("cannot make a memory file"))?;
    Ok(Arc::new(image))
}

impl Machine {
    /// A new machine: instantiates and calls `init` with `params`.
    pub fn init(
        module: &Module,
        limits: &Limits,
        context: &Context,
        params: &[u8],
        effects: &mut Effects,
    ) -> Result<Machine, InitError> {
        effects.clear();
        let limits = Arc::new(limits.clone());
        let image = new_image(&limits)?;
        let stopped = |stop: Stop| match stop {
            Stop::Trap(trap) => InitError::Trapped(trap),
            Stop::Fault(fault) => InitError::Fault(fault),
            Stop::Stream(error) => InitError::Fault(Fault::because("a stream was used in init", error)),
        };
        let (mut live, fuel) = Instance::fresh(module, &limits, &image, limits.fuel_init).map_err(stopped)?;
        let answer = live.call(Call::Init, context, params, fuel, effects);
        effects.fuel_used += limits.fuel_init - fuel;
        match answer.map_err(stopped)? {
            Answer::Reply(_) => Ok(Machine::begin(module, limits, image, live)?),
            Answer::Rejected(text) => Err(InitError::Rejected(text)),
        }
    }

    /// A machine from a snapshot stream. Bytes that the module leaves unread are an error: they would be
    /// state that is silently lost.
    pub fn restore(
        module: &Module,
        limits: &Limits,
        snapshot: &mut (dyn Read + Send),
    ) -> Result<Machine, RestoreError> {
        Machine::read(module, limits, None, snapshot)
    }

    /// A machine of a new module from the old module's snapshot stream: `migrate` if exported, else `restore`.
    pub fn migrate(
        module: &Module,
        limits: &Limits,
        context: &Context,
        snapshot: &mut (dyn Read + Send),
    ) -> Result<Machine, RestoreError> {
        Machine::read(module, limits, Some(context), snapshot)
    }

    fn read(
        module: &Module,
        limits: &Limits,
        migrate: Option<&Context>,
        snapshot: &mut (dyn Read + Send),
    ) -> Result<Machine, RestoreError> {
        let limits = Arc::new(limits.clone());
        let image = new_image(&limits)?;
        let stopped = |stop: Stop| match stop {
            Stop::Trap(trap) => RestoreError::Trapped(trap),
            Stop::Fault(fault) => RestoreError::Fault(fault),
            Stop::Stream(error) => RestoreError::Unreadable(error),
        };
        let (mut live, fuel) = Instance::fresh(module, &limits, &image, limits.fuel_restore).map_err(stopped)?;
        match live.read_snapshot(migrate, fuel, snapshot).map_err(stopped)? {
            Answer::Reply(_) => {}
            Answer::Rejected(text) => return Err(RestoreError::Rejected(text)),
        }
        let unread = std::io::copy(snapshot, &mut std::io::sink()).map_err(RestoreError::Unreadable)?;
        if unread > 0 {
            return Err(RestoreError::Rejected(format!("{unread} bytes were left unread")));
        }
        Ok(Machine::begin(module, limits, image, live)?)
    }

    /// A machine from what [`Frozen::write`] wrote. When the image in it is of this runtime's version, memory and
    /// globals are byte for byte what they were, so that this machine uses the same fuel and grows its memory at
    /// the same entries as one that never stopped. An image of another version is passed over, and the
    /// module's own `restore` reads the portable part behind it.
    pub fn restore_image(
        module: &Module,
        limits: &Limits,
        snapshot: &mut (dyn Read + Send),
    ) -> Result<Machine, RestoreError> {
        let image = new_image(limits)?;
        match image_file::read(snapshot, &image, limits.memory_bytes(), module.saved_globals())? {
            Some(registers) => {
                let limits = Arc::new(limits.clone());
                let live = Instance::over(module, &limits, &image, &registers, false)?;
                std::io::copy(snapshot, &mut std::io::sink()).map_err(RestoreError::Unreadable)?;
                Ok(Machine::begin(module, limits, image, live)?)
            }
            None => Machine::restore(module, limits, snapshot),
        }
    }

    fn begin(module: &Module, limits: Arc<Limits>, image: Arc<Image>, mut live: Instance) -> Result<Machine, Fault> {
        let registers = live.registers();
        let mut machine = Machine {
            module: module.clone(),
            limits,
            live,
            image,
            registers,
            redo: Redo::new(),
            view: None,
            frozen: Vec::new(),
            fault: None,
        };
        machine.checkpoint()?;
        Ok(machine)
    }

    /// Applies a command.
    pub fn apply(&mut self, context: &Context, command: &[u8], effects: &mut Effects) -> Result<Outcome, Fault> {
        self.entry(Call::Apply, context, command, effects)
    }

    /// Tells the guest that timer `id` is due. A guest without `timer` answers with an empty reply.
    pub fn timer(&mut self, context: &Context, id: u64, effects: &mut Effects) -> Result<Outcome, Fault> {
        self.entry(Call::Timer, context, &id.to_le_bytes(), effects)
    }

    /// Tells the guest that session `context.session` ended. A guest without `session_end` answers with
    /// an empty reply.
    pub fn session_end(&mut self, context: &Context, effects: &mut Effects) -> Result<Outcome, Fault> {
        self.entry(Call::SessionEnd, context, &[], effects)
    }

    /// Answers a query; cannot change the replicated state. A query that traps is only an answer.
    ///
    /// The first query after an entry makes a checkpoint, so asking many at once is cheaper than one
    /// between each two entries.
    pub fn query(&mut self, context: &Context, query: &[u8]) -> Result<Outcome, Fault> {
        self.sound()?;
        let result = self.ask(context, query);
        self.remember(result)
    }

    /// The state as it is now, to be written out elsewhere. Takes the time of a checkpoint and of making
    /// an instance, whatever the state's size; kernels older than Linux 5.14 copy the state here.
    pub fn freeze(&mut self) -> Result<Frozen, Fault> {
        self.sound()?;
        let result = self.try_freeze();
        self.remember(result)
    }

    /// SHA-256 over memory and globals: equal for machines that began the same way and applied the
    /// same entries. A machine restored from a snapshot may lay its memory out otherwise.
    pub fn image_digest(&mut self) -> Result<[u8; 32], Fault> {
        self.sound()?;
        let result = self.checkpoint().and_then(|_| self.digest());
        self.remember(result)
    }

    /// Linear memory's size now, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.live.memory().len() as u64
    }

    /// The module it runs.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The limits it runs under.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn sound(&self) -> Result<(), Fault> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    fn remember<T>(&mut self, result: Result<T, Fault>) -> Result<T, Fault> {
        if let Err(fault) = &result {
            self.fault = Some(fault.clone());
        }
        result
    }

    fn entry(
        &mut self,
        call: Call,
        context: &Context,
        payload: &[u8],
        effects: &mut Effects,
    ) -> Result<Outcome, Fault> {
        self.sound()?;
        effects.clear();
        let result = self.try_entry(call, context, payload, effects);
        self.remember(result)
    }

    fn try_entry(
        &mut self,
        call: Call,
        context: &Context,
        payload: &[u8],
        effects: &mut Effects,
    ) -> Result<Outcome, Fault> {
        if !self.live.has(call) {
            return Ok(Outcome::Reply(Vec::new()));
        }
        let outcome = match self.live.call(call, context, payload, self.limits.fuel_per_entry, effects) {
            Ok(Answer::Reply(bytes)) => Outcome::Reply(bytes),
            Ok(Answer::Rejected(text)) => Outcome::Rejected(text),
            Err(Stop::Trap(trap)) => {
                self.roll_back()?;
                return Ok(Outcome::Trapped(trap));
            }
            Err(stop) => return Err(into_fault(stop)),
        };
        self.redo.push(call, context, payload, effects.fuel_used);
        if self.redo.is_full() {
            let pages = self.checkpoint()?;
            self.redo.pace(pages);
        }
        Ok(outcome)
    }

    /// Goes back to the state before the entry that trapped.
    fn roll_back(&mut self) -> Result<(), Fault> {
        self.live.reset(&self.registers)?;
        let mut effects = Effects::default();
        for (call, context, range) in &self.redo.entries {
            let payload = self.redo.bytes.get(range.clone()).unwrap_or(&[]);
            match self.live.call(*call, context, payload, self.limits.fuel_per_entry, &mut effects) {
                Ok(_) => {}
                Err(Stop::Trap(trap)) => {
                    let what = format!(
                        "entry {} trapped when it was applied again ({trap}): this host gave two outcomes",
                        context.index
                    );
                    return Err(Fault::new(what));
                }
                Err(stop) => return Err(into_fault(stop)),
            }
        }
        // So that the next trap, often of the same client, has nothing to apply again.
        self.checkpoint_if_any()
    }

    fn checkpoint_if_any(&mut self) -> Result<(), Fault> {
        if !self.redo.entries.is_empty() {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Brings the image up to the live instance; returns how many pages it wrote.
    fn checkpoint(&mut self) -> Result<usize, Fault> {
        self.frozen.retain(|mapping| mapping.strong_count() > 0);
        let frozen = &self.frozen;
        let hold = |changed: &[Range<usize>]| {
            for mapping in frozen.iter().filter_map(Weak::upgrade) {
                for range in changed {
                    mapping.hold(range).map_err(io_fault("cannot hold pages of a frozen state"))?;
                }
            }
            Ok(())
        };
        let pages = self.live.commit(&self.image, hold)?;
        self.registers = self.live.registers();
        self.redo.clear();
        if let Some(view) = &mut self.view {
            view.stale = true;
        }
        Ok(pages)
    }

    fn ask(&mut self, context: &Context, query: &[u8]) -> Result<Outcome, Fault> {
        self.checkpoint_if_any()?;
        let mut view = match self.view.take() {
            Some(view) => view,
            None => {
                let instance = Instance::over(&self.module, &self.limits, &self.image, &self.registers, false)?;
                View { instance, stale: false, queries: 0 }
            }
        };
        if view.stale || view.queries >= VIEW_QUERIES_MAX {
            view.instance.reset(&self.registers)?;
            view.stale = false;
            view.queries = 0;
        }
        view.queries += 1;
        let mut effects = Effects::default();
        let outcome = match view.instance.call(Call::Query, context, query, self.limits.fuel_per_entry, &mut effects) {
            Ok(Answer::Reply(bytes)) => Outcome::Reply(bytes),
            Ok(Answer::Rejected(text)) => Outcome::Rejected(text),
            Err(Stop::Trap(trap)) => {
                view.stale = true;
                Outcome::Trapped(trap)
            }
            Err(stop) => return Err(into_fault(stop)),
        };
        self.view = Some(view);
        Ok(outcome)
    }

    fn try_freeze(&mut self) -> Result<Frozen, Fault> {
        self.checkpoint_if_any()?;
        let image = if can_hold() {
            self.image.clone()
        } else {
            Arc::new(self.image.duplicate().map_err(io_fault("cannot copy a memory file"))?)
        };
        let instance = Instance::over(&self.module, &self.limits, &image, &self.registers, true)?;
        if Arc::ptr_eq(&image, &self.image) {
            self.frozen.push(Arc::downgrade(instance.mapping()));
        }
        Ok(Frozen { instance, image, registers: self.registers.clone(), fuel: self.limits.fuel_snapshot })
    }

    fn digest(&self) -> Result<[u8; 32], Fault> {
        let mut digest = Sha256::new();
        digest.update((self.registers.memory_bytes as u64).to_le_bytes());
        for value in &self.registers.globals {
            digest.update(value_bits(value).to_le_bytes());
        }
        image_file::pages(self.live.memory(), &self.image, io_fault("cannot read a memory file"), |number, page| {
            digest.update((number as u64).to_le_bytes());
            digest.update(page);
            Ok(())
        })?;
        Ok(digest.finalize().into())
    }
}

pub(super) fn value_bits(value: &wasmtime::Val) -> u128 {
    match value {
        wasmtime::Val::I32(value) => u128::from(value.cast_unsigned()),
        wasmtime::Val::I64(value) => u128::from(value.cast_unsigned()),
        wasmtime::Val::F32(bits) => u128::from(*bits),
        wasmtime::Val::F64(bits) => u128::from(*bits),
        wasmtime::Val::V128(value) => value.as_u128(),
        _ => 0, // The gate lets no other mutable global in.
    }
}

fn into_fault(stop: Stop) -> Fault {
    match stop {
        Stop::Fault(fault) => fault,
        Stop::Trap(Trap { code, message }) => Fault::new(format!("an unexpected trap ({}): {message}", code.as_str())),
        Stop::Stream(error) => Fault::because("an unexpected stream error", error),
    }
}

impl Frozen {
    /// Writes the raw image of memory and globals, then the portable snapshot; returns how many bytes the
    /// portable part took.
    pub fn write(self, out: &mut (dyn Write + Send)) -> Result<u64, SnapshotError> {
        image_file::write(out, self.instance.memory(), &self.image, &self.registers)?;
        self.snapshot(out)
    }

    /// Runs the guest's `snapshot` on the frozen state and writes its bytes to `out`; returns how many.
    pub fn snapshot(mut self, out: &mut (dyn Write + Send)) -> Result<u64, SnapshotError> {
        let stopped = |stop: Stop| match stop {
            Stop::Trap(trap) => SnapshotError::Trapped(trap),
            Stop::Fault(fault) => SnapshotError::Fault(fault),
            Stop::Stream(error) => SnapshotError::Unwritable(error),
        };
        match self.instance.write_snapshot(self.fuel, out).map_err(stopped)? {
            (Answer::Reply(_), bytes) => Ok(bytes),
            (Answer::Rejected(text), _) => Err(SnapshotError::Rejected(text)),
        }
    }
}
