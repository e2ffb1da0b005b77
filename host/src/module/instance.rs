//! One instance of a module in a store of its own: guest calls and what came of them.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io::Read;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use wasmtime::Extern;
use wasmtime::Global;
use wasmtime::Memory;
use wasmtime::Store;
use wasmtime::TypedFunc;
use wasmtime::Val;
use wasmtime::WasmBacktrace;

use super::Context;
use super::Effects;
use super::Fault;
use super::Limits;
use super::Module;
use super::TrapCode;
use super::imports::Call;
use super::imports::HostState;
use super::imports::Stop;
use super::imports::Stream;
use super::imports::trap;
use super::inspect::MARKER;
use super::marks;
use super::memory::Image;
use super::memory::Mapping;
use super::memory::with_image;
use super::rewrite::FUEL;
use super::rewrite::STACK_BYTES_MAX;
use super::rewrite::START;
use super::rewrite::global_name;
use super::stack;

/// What the guest answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Reply(Vec<u8>),
    Rejected(String),
}

/// Saved mutable globals and memory size: with the image, all of a state.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    pub(super) globals: Vec<Val>,
    pub(super) memory_bytes: usize,
}

type Answering = TypedFunc<(i32, i32), i64>;
type Bare = TypedFunc<(), i64>;

/// Pages of its own that an instance keeps where the image has the same, because they are likely to be written again soon and
/// a page fault costs more than all the rest of a small entry. 16 MiB at most.
const PRIVATE_PAGES_MAX: usize = 4096;

/// A module's instance, its memory and its functions.
pub(super) struct Instance {
    store: Store<HostState>,
    memory: Memory,
    /// What of the memory was written: `marks.rs`.
    marks: Memory,
    /// Pages, by number, that may be this instance's own since [`Instance::commit`] brought the image up to them.
    private: BTreeSet<usize>,
    mapping: Arc<Mapping>,
    globals: Vec<Global>,
    /// The `flags` of the header of every call.
    flags: u32,
    /// What is left of the call's fuel.
    fuel: Global,
    /// Behind an `Arc` because a call borrows one beside the store, and cloning the function itself is slower.
    functions: Arc<Functions>,
}

struct Functions {
    alloc: TypedFunc<i32, i32>,
    init: Answering,
    apply: Answering,
    query: Answering,
    timer: Option<Answering>,
    session_end: Option<Answering>,
    migrate: Option<Answering>,
    adapter: Option<(Answering, Answering)>,
    snapshot: Bare,
    restore: Bare,
    start: Option<TypedFunc<(), ()>>,
    marker: TypedFunc<(), ()>,
}

impl Functions {
    /// The export of a call that takes a header and a payload.
    fn of(&self, call: Call) -> Option<&Answering> {
        match call {
            Call::Init => Some(&self.init),
            Call::Apply => Some(&self.apply),
            Call::Query => Some(&self.query),
            Call::Timer => self.timer.as_ref(),
            Call::SessionEnd => self.session_end.as_ref(),
            Call::Migrate => self.migrate.as_ref(),
            Call::AdapterOpen => self.adapter.as_ref().map(|(open, _)| open),
            Call::AdapterStep => self.adapter.as_ref().map(|(_, step)| step),
            Call::Start | Call::Snapshot | Call::Restore => None,
        }
    }
}

const OUT_OF_FUEL: &str = "the call's fuel ran out";

/// Bytes of the call header of ABI 1.
pub(super) const HEADER_BYTES: usize = 48;

impl Instance {
    /// An instance whose memory shows the first `shown` bytes of `image` under the module's initial data.
    fn new(module: &Module, limits: &Arc<Limits>, image: &Arc<Image>, shown: usize) -> Result<Instance, Stop> {
        let mut store = Store::new(module.engine().wasmtime(), HostState::new(limits));
        store.limiter(|state| state);
        let cannot = |error: wasmtime::Error| Fault::because("cannot make an instance", format!("{error:#}"));
        let (instance, mapping) = with_image(image.clone(), shown, || module.pre().instantiate(&mut store));
        let instance = instance.map_err(|error| match error.downcast_ref::<wasmtime::Trap>() {
            Some(wasmtime::Trap::MemoryOutOfBounds) => {
                trap(TrapCode::OutOfBounds, "a data segment does not fit the initial memory")
            }
            Some(wasmtime::Trap::TableOutOfBounds) => {
                trap(TrapCode::TableOutOfBounds, "an element segment does not fit its table")
            }
            _ => cannot(error).into(),
        })?;
        let mapping = mapping.ok_or_else(|| Fault::new("an instance was made without its memory"))?;
        let memory =
            instance.get_memory(&mut store, "memory").ok_or_else(|| Fault::new("the instance has no memory"))?;
        let fuel =
            instance.get_global(&mut store, FUEL).ok_or_else(|| Fault::new("the instance lacks the fuel global"))?;
        let marks = instance.get_memory(&mut store, marks::NAME);
        let marks = marks.ok_or_else(|| Fault::new("the instance lacks the memory of its marks"))?;
        store.data_mut().memory = Some(memory);
        store.data_mut().marks = Some(marks);
        store.data_mut().fuel = Some(fuel);
        let mut globals = Vec::with_capacity(module.saved_globals());
        for number in 0..module.saved_globals() {
            let global = instance.get_export(&mut store, &global_name(number)).and_then(Extern::into_global);
            globals.push(global.ok_or_else(|| Fault::new("the instance lacks a saved global"))?);
        }
        let info = module.info();
        let mut answering = |name: &str| instance.get_typed_func::<(i32, i32), i64>(&mut store, name).map_err(cannot);
        let init = answering("init")?;
        let apply = answering("apply")?;
        let query = answering("query")?;
        let timer = info.has_timer.then(|| answering("timer")).transpose()?;
        let session_end = info.has_session_end.then(|| answering("session_end")).transpose()?;
        let migrate = info.has_migrate.then(|| answering("migrate")).transpose()?;
        let adapter =
            if info.has_adapter { Some((answering("adapter_open")?, answering("adapter_step")?)) } else { None };
        let snapshot = instance.get_typed_func(&mut store, "snapshot").map_err(cannot)?;
        let restore = instance.get_typed_func(&mut store, "restore").map_err(cannot)?;
        let alloc = instance.get_typed_func(&mut store, "alloc").map_err(cannot)?;
        let marker = instance.get_typed_func(&mut store, MARKER).map_err(cannot)?;
        let start =
            if module.has_start() { Some(instance.get_typed_func(&mut store, START).map_err(cannot)?) } else { None };
        let functions = Functions {
            alloc,
            init,
            apply,
            query,
            timer,
            session_end,
            migrate,
            adapter,
            snapshot,
            restore,
            start,
            marker,
        };
        let private = BTreeSet::new();
        Ok(Instance { store, memory, marks, private, mapping, globals, flags: 0, fuel, functions: Arc::new(functions) })
    }

    /// A new state: the start function and the marker have run. Returns the fuel left of `fuel`.
    pub(super) fn fresh(
        module: &Module,
        limits: &Arc<Limits>,
        image: &Arc<Image>,
        fuel: u64,
    ) -> Result<(Instance, u64), Stop> {
        let mut instance = Instance::new(module, limits, image, usize::MAX)?;
        for range in module.data() {
            instance.mark(range.start, range.len());
        }
        instance.begin(Call::Start, fuel)?;
        let result = stack::on_guest_stack(|| {
            let functions = instance.functions.clone();
            if let Some(start) = &functions.start {
                start.call(&mut instance.store, ())?;
            }
            functions.marker.call(&mut instance.store, ())
        });
        match result.map_err(no_stack)? {
            Ok(()) => {
                let left = instance.fuel_left();
                Ok((instance, left))
            }
            Err(error) => Err(instance.stop(error)),
        }
    }

    /// An instance that continues the state in `image` and `registers`. With `frozen`, what grows beyond
    /// that state's size never shows what the image gets there later.
    pub(super) fn over(
        module: &Module,
        limits: &Arc<Limits>,
        image: &Arc<Image>,
        registers: &Registers,
        frozen: bool,
    ) -> Result<Instance, Fault> {
        let shown = if frozen { registers.memory_bytes } else { usize::MAX };
        let cannot = |stop: Stop| Fault::because("cannot make an instance again", stop);
        let mut instance = Instance::new(module, limits, image, shown).map_err(cannot)?;
        let size = instance.memory().len();
        let Some(missing) = registers.memory_bytes.checked_sub(size) else {
            return Err(Fault::new("a new instance is larger than the state it should continue"));
        };
        let grown = instance.memory.grow(&mut instance.store, (missing >> 16) as u64);
        grown.map_err(|error| Fault::because("cannot grow linear memory", error))?;
        // SAFETY: this instance is ours alone and no guest code runs, so nobody holds a reference into
        // its memory. What goes is the initial data.
        unsafe { instance.mapping.forget_all() }.map_err(io_fault("cannot drop written pages"))?;
        instance.set_globals(registers)?;
        Ok(instance)
    }

    /// Goes back to `image` and `registers`, dropping everything written since.
    pub(super) fn reset(&mut self, registers: &Registers) -> Result<(), Fault> {
        // Only what was written: whatever else is mapped is read again soon, and mapping it costs.
        let written = self.written();
        self.forget(&written)?;
        let size = self.memory().len();
        if registers.memory_bytes < size {
            // SAFETY: this instance is borrowed exclusively and no guest code runs, so nobody holds a reference into its
            // memory; `grow` below makes wasmtime take the size anew before any does.
            unsafe { self.mapping.shrink(registers.memory_bytes) }.map_err(io_fault("cannot take memory back"))?;
        }
        // Also by nothing: that is when wasmtime looks at the size.
        let missing = registers.memory_bytes.saturating_sub(size);
        let grown = self.memory.grow(&mut self.store, (missing >> 16) as u64);
        grown.map_err(|error| Fault::because("cannot grow linear memory", error))?;
        if self.memory().len() != registers.memory_bytes {
            return Err(Fault::new("linear memory did not get the size that it had"));
        }
        self.set_globals(registers)
    }

    fn set_globals(&mut self, registers: &Registers) -> Result<(), Fault> {
        for (global, value) in self.globals.iter().zip(&registers.globals) {
            global.set(&mut self.store, *value).map_err(|error| Fault::because("cannot set a global", error))?;
        }
        Ok(())
    }

    /// The address space of its memory.
    pub(super) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Where linear memory may have been written since the last time.
    fn written(&mut self) -> Vec<Range<usize>> {
        let memory_bytes = self.memory.data_size(&self.store);
        marks::take(self.marks.data_mut(&mut self.store), memory_bytes)
    }

    /// The host wrote there.
    fn mark(&mut self, start: usize, length: usize) {
        marks::set(self.marks.data_mut(&mut self.store), start, length);
    }

    /// Drops the private pages of `ranges`: the image shows there.
    fn forget(&mut self, ranges: &[Range<usize>]) -> Result<(), Fault> {
        for range in ranges {
            // SAFETY: this instance is borrowed exclusively and no guest code runs, so nobody holds a
            // reference into its memory.
            unsafe { self.mapping.forget(range.clone()) }.map_err(io_fault("cannot drop written pages"))?;
        }
        Ok(())
    }

    /// Brings `image` up to this instance's memory. `before_writing` is told the ranges that are about to
    /// change. Returns how many pages changed.
    ///
    /// Pages that were written stay private, up to [`PRIVATE_PAGES_MAX`]; then all are given back.
    pub(super) fn commit(
        &mut self,
        image: &Image,
        before_writing: impl FnOnce(&[Range<usize>]) -> Result<(), Fault>,
    ) -> Result<usize, Fault> {
        let page = marks::host_page_bytes();
        let written = self.written();
        let memory = self.memory.data(&self.store);
        let mut changed = Vec::new();
        for range in written {
            let bytes = memory.get(range.clone()).unwrap_or(&[]);
            for (start, bytes) in range.step_by(page).zip(bytes.chunks(page)) {
                self.private.insert(start / page);
                // SAFETY: `self` is borrowed and its machine is the image's only writer, so no guest code of
                // it runs and nobody updates the image.
                if unsafe { image.differs(start, bytes) } {
                    marks::push(&mut changed, start..start + bytes.len());
                }
            }
        }
        before_writing(&changed)?;
        for range in &changed {
            // SAFETY: as above; the pages are private, and frozen states hold them by now.
            unsafe { image.update(range.start, memory.get(range.clone()).unwrap_or(&[])) };
        }
        #[cfg(debug_assertions)]
        self.check_marks(image)?;
        if self.private.len() > PRIVATE_PAGES_MAX {
            let mut ranges = Vec::new();
            for number in std::mem::take(&mut self.private) {
                marks::push(&mut ranges, number * page..(number + 1) * page);
            }
            self.forget(&ranges)?;
            image.unmap_pages().map_err(io_fault("cannot give back pages of a memory file"))?;
        }
        Ok(changed.iter().map(|range| range.len() / page).sum())
    }

    /// That no written page went unmarked: after a commit, memory and image are the same. Not for large memories, where it
    /// takes long.
    #[cfg(debug_assertions)]
    fn check_marks(&self, image: &Image) -> Result<(), Fault> {
        const CHECKED_BYTES_MAX: usize = 8 << 20;
        let memory = self.memory();
        // SAFETY: as in `commit`.
        if memory.len() <= CHECKED_BYTES_MAX && unsafe { image.differs(0, memory) } {
            return Err(Fault::new("a page of linear memory was written and not marked: an error of this host"));
        }
        Ok(())
    }

    /// Linear memory as it is.
    pub(super) fn memory(&self) -> &[u8] {
        self.memory.data(&self.store)
    }

    /// Globals and memory size as they are.
    pub(super) fn registers(&mut self) -> Registers {
        let globals = self.globals.iter().map(|global| global.get(&mut self.store)).collect();
        Registers { globals, memory_bytes: self.memory.data_size(&self.store) }
    }

    fn begin(&mut self, call: Call, fuel: u64) -> Result<(), Fault> {
        self.store.data_mut().begin(call);
        let fuel = Val::I64(i64::try_from(fuel).unwrap_or(i64::MAX));
        self.fuel.set(&mut self.store, fuel).map_err(|error| Fault::because("cannot set fuel", error))
    }

    /// What the header's `flags` say from the next call on.
    pub(super) fn set_flags(&mut self, flags: u32) {
        self.flags = flags;
    }

    /// Below 0: it did not last.
    fn fuel(&mut self) -> i64 {
        self.fuel.get(&mut self.store).i64().unwrap_or(0)
    }

    fn fuel_left(&mut self) -> u64 {
        u64::try_from(self.fuel()).unwrap_or(0)
    }

    /// Whether the module has this call.
    pub(super) fn has(&self, call: Call) -> bool {
        self.functions.of(call).is_some()
    }

    /// Calls an export that takes a header and a payload. `effects` gets what the call did.
    pub(super) fn call(
        &mut self,
        call: Call,
        context: &Context,
        payload: &[u8],
        fuel: u64,
        effects: &mut Effects,
    ) -> Result<Answer, Stop> {
        let functions = self.functions.clone();
        let Some(function) = functions.of(call) else {
            return Err(Fault::new(format!("the module has no {}", call.name())).into());
        };
        self.begin(call, fuel)?;
        self.store.data_mut().effects.timers_full = effects.timers_full;
        let answer =
            stack::on_guest_stack(|| self.enter(&functions.alloc, function, context, payload)).map_err(no_stack)?;
        let answer = match answer {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.stop(error)),
        };
        self.take_effects(fuel, effects, answer.is_err());
        answer
    }

    /// Swaps the call's effects out, so that the room both sides have is used again.
    fn take_effects(&mut self, fuel: u64, effects: &mut Effects, stopped: bool) {
        let used = fuel.saturating_sub(self.fuel_left());
        let own = &mut self.store.data_mut().effects;
        std::mem::swap(own, effects);
        own.clear();
        effects.fuel_used = used;
        if stopped {
            effects.events.clear();
            effects.timers.clear();
        }
    }

    fn enter(
        &mut self,
        alloc: &TypedFunc<i32, i32>,
        function: &Answering,
        context: &Context,
        payload: &[u8],
    ) -> wasmtime::Result<Answer> {
        let length = HEADER_BYTES + payload.len();
        let argument =
            i32::try_from(length).map_err(|_| trap(TrapCode::MemoryLimit, format!("an input of {length} bytes")))?;
        let pointer = alloc.call(&mut self.store, argument)?;
        if pointer == 0 {
            return Err(trap(TrapCode::MemoryLimit, format!("alloc has no room for {length} bytes of input")).into());
        }
        let start = pointer.cast_unsigned() as usize;
        let room = self.memory.data_mut(&mut self.store).get_mut(start..start.saturating_add(length));
        let Some((header, rest)) = room.and_then(|room| room.split_at_mut_checked(HEADER_BYTES)) else {
            return Err(trap(
                TrapCode::BadResult,
                format!("alloc answered {start}, where {length} bytes do not lie in memory"),
            )
            .into());
        };
        header.copy_from_slice(&header_bytes(context, self.flags));
        rest.copy_from_slice(payload);
        self.mark(start, length);
        let result = function.call(&mut self.store, (pointer, argument))?;
        Ok(self.answer(result)?)
    }

    /// Reads the bytes a result points at.
    fn answer(&mut self, result: i64) -> Result<Answer, Stop> {
        if self.fuel() < 0 {
            // Guest code looks at its fuel now and then; what it used since it looked last counts too.
            return Err(trap(TrapCode::OutOfFuel, OUT_OF_FUEL));
        }
        let result = result.cast_unsigned();
        let start = (result >> 32) as usize;
        let rejected = result & (1 << 31) != 0;
        let length = (result & 0x7fff_ffff) as usize;
        let limits = &self.store.data().limits;
        if length as u64 > u64::from(limits.reply_bytes_max) {
            let message =
                format!("a reply of {length} bytes, over the limit of {} (reply_bytes_max)", limits.reply_bytes_max);
            return Err(trap(TrapCode::ReplyTooLarge, message));
        }
        let memory = self.memory();
        let bytes = if length == 0 { Some([].as_slice()) } else { memory.get(start..start.saturating_add(length)) };
        let Some(bytes) = bytes else {
            return Err(trap(
                TrapCode::BadResult,
                format!("a result of {length} bytes at {start}, memory has {}", memory.len()),
            ));
        };
        if !rejected {
            return Ok(Answer::Reply(bytes.to_vec()));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Answer::Rejected(text.to_string())),
            Err(_) => Err(trap(TrapCode::BadResult, "a rejection whose text is not UTF-8")),
        }
    }

    /// Calls `snapshot` with its bytes going to `out`; returns the answer and how many bytes went.
    pub(super) fn write_snapshot(&mut self, fuel: u64, out: &mut (dyn Write + Send)) -> Result<(Answer, u64), Stop> {
        // SAFETY: the same pointer type, its borrow's length apart, which `stream_call` does not outlive.
        let out =
            unsafe { std::mem::transmute::<*mut (dyn Write + Send + '_), *mut (dyn Write + Send + 'static)>(out) };
        let functions = self.functions.clone();
        let answer = self.stream_call(Call::Snapshot, fuel, Stream::Out(out), |instance| {
            let result = functions.snapshot.call(&mut instance.store, ())?;
            Ok(instance.answer(result)?)
        })?;
        Ok((answer, self.store.data().streamed))
    }

    /// Calls `restore`, or `migrate` with `context`, with the stream's bytes coming from `input`.
    pub(super) fn read_snapshot(
        &mut self,
        migrate: Option<&Context>,
        fuel: u64,
        input: &mut (dyn Read + Send),
    ) -> Result<Answer, Stop> {
        // SAFETY: as in `write_snapshot`.
        let input =
            unsafe { std::mem::transmute::<*mut (dyn Read + Send + '_), *mut (dyn Read + Send + 'static)>(input) };
        let functions = self.functions.clone();
        let migrate = migrate.zip(functions.migrate.as_ref());
        let call = if migrate.is_some() { Call::Migrate } else { Call::Restore };
        self.stream_call(call, fuel, Stream::In(input), |instance| match migrate {
            Some((context, migrate)) => instance.enter(&functions.alloc, migrate, context, &[]),
            None => {
                let result = functions.restore.call(&mut instance.store, ())?;
                Ok(instance.answer(result)?)
            }
        })
    }

    fn stream_call(
        &mut self,
        call: Call,
        fuel: u64,
        stream: Stream,
        run: impl FnOnce(&mut Instance) -> wasmtime::Result<Answer> + Send,
    ) -> Result<Answer, Stop> {
        /// Takes the stream away on every way out, a panic of the stream included.
        struct Streaming<'a>(&'a mut Instance);
        impl Drop for Streaming<'_> {
            fn drop(&mut self) {
                self.0.store.data_mut().stream = Stream::None;
            }
        }
        self.begin(call, fuel)?;
        self.store.data_mut().stream = stream;
        let streaming = Streaming(self);
        let result = stack::on_guest_stack(|| run(&mut *streaming.0)).map_err(no_stack)?;
        drop(streaming);
        result.map_err(|error| self.stop(error))
    }

    /// What an error out of guest code is: the guest's doing or this host's.
    fn stop(&mut self, error: wasmtime::Error) -> Stop {
        let place = place(&error);
        let fault_text = format!("{error:#}");
        let code = match error.downcast::<Stop>() {
            Ok(stop) => return stop,
            Err(error) => error.downcast_ref::<wasmtime::Trap>().copied(),
        };
        let refused = self.store.data().growth_refused;
        let (code, what) = match code {
            Some(wasmtime::Trap::OutOfFuel) => (TrapCode::OutOfFuel, OUT_OF_FUEL),
            Some(wasmtime::Trap::UnreachableCodeReached) if self.fuel() < 0 => (TrapCode::OutOfFuel, OUT_OF_FUEL),
            Some(wasmtime::Trap::UnreachableCodeReached) if self.depth() > STACK_BYTES_MAX => {
                (TrapCode::StackOverflow, "calls are nested too deep")
            }
            Some(wasmtime::Trap::UnreachableCodeReached) if refused => {
                (TrapCode::MemoryLimit, "the guest gave up after memory over the limit was refused (memory_bytes_max)")
            }
            Some(wasmtime::Trap::UnreachableCodeReached) => (TrapCode::Unreachable, "the guest gave up without a text"),
            // A page that lies within memory and yet cannot be had is this host's trouble.
            Some(wasmtime::Trap::MemoryOutOfBounds) if !fault_lies_outside(&fault_text) => {
                return Fault::because("a page of linear memory could not be had", fault_text).into();
            }
            Some(wasmtime::Trap::MemoryOutOfBounds) => (TrapCode::OutOfBounds, "access outside linear memory"),
            Some(wasmtime::Trap::TableOutOfBounds) => (TrapCode::TableOutOfBounds, "table index out of range"),
            Some(wasmtime::Trap::IndirectCallToNull) => {
                (TrapCode::IndirectCallToNull, "indirect call through an empty slot")
            }
            Some(wasmtime::Trap::BadSignature) => {
                (TrapCode::BadSignature, "indirect call of a function of another type")
            }
            Some(wasmtime::Trap::IntegerOverflow) => (TrapCode::IntegerOverflow, "integer overflow"),
            Some(wasmtime::Trap::IntegerDivisionByZero) => (TrapCode::IntegerDivideByZero, "integer division by zero"),
            Some(wasmtime::Trap::BadConversionToInteger) => {
                (TrapCode::BadConversionToInteger, "a float that does not fit an integer")
            }
            // The host's own stack ended before the guest's logical one, or wasmtime has a trap this
            // version knows nothing of: nothing says that other replicas would see the same.
            _ => return Fault::because("guest code stopped for a reason that is not the guest's", fault_text).into(),
        };
        let message = if place.is_empty() { what.to_string() } else { format!("{what}, {place}") };
        trap(code, message)
    }

    /// Logical bytes of stack that were in use.
    fn depth(&mut self) -> u32 {
        let depth = self.globals.last().map(|global| global.get(&mut self.store));
        depth.and_then(|value| value.i32()).map_or(0, i32::cast_unsigned)
    }
}

pub(super) fn io_fault(doing: &str) -> impl Fn(std::io::Error) -> Fault {
    move |error| Fault::because(doing, error)
}

fn no_stack(error: std::io::Error) -> Fault {
    Fault::because("cannot start a thread with the stack that guest code needs", error)
}

/// The functions a trap came from, innermost first, as far as the module names them.
fn place(error: &wasmtime::Error) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else { return String::new() };
    let mut names = backtrace.frames().iter().take(3).map(|frame| match frame.func_name() {
        Some(name) => name.chars().take(120).collect(),
        None => format!("function {}", frame.func_index()),
    });
    let Some(first) = names.next() else { return String::new() };
    names.fold(format!("in {first}"), |text, name| format!("{text}, called by {name}"))
}

/// Whether wasmtime's report of a memory fault names an address outside memory. A report without an
/// address comes from an explicit check (of `memory.copy` and the like), which is always the guest's.
fn fault_lies_outside(report: &str) -> bool {
    let number = |after: &str| {
        let (_, rest) = report.split_once(after)?;
        let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
        u64::from_str_radix(digits, 16).ok()
    };
    match (number("memory fault at wasm address 0x"), number("in linear memory of size 0x")) {
        (Some(address), Some(size)) => address >= size,
        _ => true,
    }
}

/// The call header of ABI 1.
pub(super) fn header_bytes(context: &Context, flags: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let (seed_low, seed_high) = expand_seed(context.seed);
    let size_and_flags = HEADER_BYTES as u64 | u64::from(flags) << 32;
    let fields = [size_and_flags, context.index, context.time_ms, seed_low, seed_high, context.session];
    for (place, field) in header.as_chunks_mut::<8>().0.iter_mut().zip(fields) {
        *place = field.to_le_bytes();
    }
    header
}

/// 128 bits from 64 by two steps of SplitMix64 (Steele, Lea, Flood 2014): part of the ABI, as replays
/// must see the same bits.
pub(super) fn expand_seed(seed: u64) -> (u64, u64) {
    let step = |state: u64| {
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let first = seed.wrapping_add(GOLDEN);
    (step(first), step(first.wrapping_add(GOLDEN)))
}

#[cfg(test)]
mod tests {
    use super::fault_lies_outside;

    /// A page that the kernel could not give (its memory file's space has run out) reaches us as the same signal as
    /// an access past the end. Taking it for the guest's would let one replica's lack of memory decide an outcome.
    #[test]
    fn a_fault_within_memory_is_not_the_guests() {
        let report = |address: &str| {
            format!("wasm trap: memory fault at wasm address {address} in linear memory of size 0x20000: out of bounds")
        };
        assert!(fault_lies_outside(&report("0x20000")));
        assert!(fault_lies_outside(&report("0xffffffff")));
        assert!(!fault_lies_outside(&report("0x1ffff")));
        assert!(fault_lies_outside("wasm trap: out of bounds memory access"), "an explicit check");
    }
}
