//! ABI 1 on wasm32: the imports, the exports' inside, the panic hook. The only unsafe code of the
//! SDK: calls of imported functions.
//!
//! Invariants:
//! * The argument of a call is the buffer the `alloc` before it gave out, or the call is refused.
//! * A result's bytes stay untouched until the next call into the module: they live in `output`,
//!   which only a next call writes.
//! * Buffers are kept between calls, so calls allocate no new ones; one that a huge call left
//!   behind is given back at the next.

#![allow(unsafe_code)]

use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;

use crate::adapter::Adapter;
use crate::adapter::Io;
use crate::adapter::flags_of;
use crate::codec::Codec;
use crate::context::Header;
use crate::context::Host;
use crate::guest::Guest;
use crate::log::Level;
use crate::machine::Migrate;
use crate::machine::StateMachine;
use crate::reject::Reject;

/// The functions of the host, as `docs/abi.md` lists them.
mod import {
    #[link(wasm_import_module = "statehouse")]
    unsafe extern "C" {
        pub(super) fn emit(bytes: *const u8, length: usize);
        // Numbers only, so there is nothing to get wrong.
        pub(super) safe fn set_timer(id: u64, at_ms: u64);
        pub(super) safe fn clear_timer(id: u64);
        pub(super) fn log(level: i32, text: *const u8, length: usize);
        pub(super) fn fail(text: *const u8, length: usize) -> !;
        pub(super) fn write(bytes: *const u8, length: usize);
        pub(super) fn read(bytes: *mut u8, length: usize) -> usize;
    }
}

/// Buffers larger than this are not kept for the next call.
const KEPT_BYTES: usize = 1 << 20;

/// How much of a snapshot goes over in one import call.
const SNAPSHOT_CHUNK_BYTES: usize = 64 << 10;

/// The bit of a result that says "rejected".
const REJECTED: u64 = 1 << 31;

/// The host behind the imports.
struct Imports;

impl Host for Imports {
    fn emit(&mut self, event: &[u8]) {
        // SAFETY: pointer and length are those of a live slice; the host only reads it, during the
        // call.
        unsafe { import::emit(event.as_ptr(), event.len()) }
    }

    fn set_timer(&mut self, id: u64, at_ms: u64) {
        import::set_timer(id, at_ms);
    }

    fn clear_timer(&mut self, id: u64) {
        import::clear_timer(id);
    }
}

/// The snapshot stream, while one is written.
struct SnapshotSink;

impl Write for SnapshotSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are those of a live slice; the host only reads it, during the
        // call.
        unsafe { import::write(bytes.as_ptr(), bytes.len()) }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The snapshot stream, while one is read.
struct SnapshotSource;

impl Read for SnapshotSource {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are those of a live slice that is ours alone; the host writes
        // at most `length` bytes there, during the call.
        let read = unsafe { import::read(bytes.as_mut_ptr(), bytes.len()) };
        Ok(read.min(bytes.len()))
    }
}

/// Writes a line to the host's log.
pub(crate) fn log(level: Level, text: fmt::Arguments<'_>) {
    let mut line = String::new();
    // A `Display` that fails has written what it could.
    let _ = line.write_fmt(text);
    // SAFETY: pointer and length are those of a live string; the host only reads it, during the
    // call.
    unsafe { import::log(level as i32, line.as_ptr(), line.len()) }
}

/// Makes a panic's text and place reach the caller: without this a panic would be a bare
/// `unreachable`.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let mut text = info.payload_as_str().unwrap_or("panic").to_owned();
        if let Some(place) = info.location() {
            let _ = write!(text, " (at {}:{})", place.file(), place.line());
        }
        // SAFETY: pointer and length are those of a live string; the host reads it and ends the
        // call.
        unsafe { import::fail(text.as_ptr(), text.len()) }
    }));
}

/// A module's whole inside: the instance and the buffers of the call in progress.
/// [`export!`](crate::export!) keeps one.
#[derive(Debug)]
pub struct Module<M, C, A> {
    guest: Guest<M, C>,
    /// In an instance that serves connections.
    adapter: Option<A>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl<M: Default, C, A> Default for Module<M, C, A> {
    fn default() -> Self {
        Self { guest: Guest::default(), adapter: None, input: Vec::new(), output: Vec::new() }
    }
}

impl<M: StateMachine, C: Codec<M>, A: Adapter> Module<M, C, A> {
    /// The export `statehouse_abi_1`.
    pub fn start(&mut self) {
        install_panic_hook();
    }

    /// The export `alloc`. One argument is under way at a time: a second `alloc` takes the first
    /// one's room.
    pub fn alloc(&mut self, length: usize) -> *mut u8 {
        if self.input.capacity() > KEPT_BYTES {
            self.input = Vec::new();
        }
        // It never gets shorter: the host writes over all that it asked for, so there is nothing to clear.
        if let Some(more) = length.checked_sub(self.input.len()) {
            if self.input.try_reserve_exact(more).is_err() {
                return std::ptr::null_mut();
            }
            self.input.resize(length, 0);
        }
        self.input.as_mut_ptr()
    }

    /// The export `init`.
    pub fn init(&mut self, argument: *const u8, length: usize) -> u64 {
        self.call(argument, length, |guest, argument, _| guest.init(&mut Imports, argument))
    }

    /// The export `apply`.
    pub fn apply(&mut self, argument: *const u8, length: usize) -> u64 {
        self.call(argument, length, |guest, argument, reply| guest.apply(&mut Imports, argument, reply))
    }

    /// The export `query`.
    pub fn query(&mut self, argument: *const u8, length: usize) -> u64 {
        self.call(argument, length, |guest, argument, answer| guest.query(argument, answer))
    }

    /// The export `timer`.
    pub fn timer(&mut self, argument: *const u8, length: usize) -> u64 {
        self.call(argument, length, |guest, argument, _| guest.timer(&mut Imports, argument))
    }

    /// The export `session_end`.
    pub fn session_end(&mut self, argument: *const u8, length: usize) -> u64 {
        self.call(argument, length, |guest, argument, _| guest.session_end(&mut Imports, argument))
    }

    /// The export `snapshot`.
    pub fn snapshot(&mut self) -> u64 {
        self.output.clear();
        let mut out = BufWriter::with_capacity(SNAPSHOT_CHUNK_BYTES, SnapshotSink);
        let outcome = self.guest.snapshot(&mut out).and_then(|()| Ok(out.flush()?));
        self.finish(outcome)
    }

    /// The export `restore`.
    pub fn restore(&mut self) -> u64 {
        self.output.clear();
        let outcome = self.guest.restore(&mut BufReader::with_capacity(SNAPSHOT_CHUNK_BYTES, SnapshotSource));
        self.finish(outcome)
    }

    /// The export `migrate`.
    pub fn migrate(&mut self) -> u64
    where
        M: Migrate,
    {
        self.output.clear();
        let outcome = self.guest.migrate(&mut BufReader::with_capacity(SNAPSHOT_CHUNK_BYTES, SnapshotSource));
        self.finish(outcome)
    }

    /// The export `adapter_open`.
    pub fn adapter_open(&mut self, argument: *const u8, length: usize) -> u64 {
        self.with_argument(argument, length, |module, argument, out| {
            let (header, settings) = Header::split(argument)?;
            module.adapter = Some(A::open(settings, &mut Io::new(header, flags_of(argument), out))?);
            Ok(())
        })
    }

    /// The export `adapter_step`.
    pub fn adapter_step(&mut self, argument: *const u8, length: usize) -> u64 {
        self.with_argument(argument, length, |module, argument, out| match &mut module.adapter {
            Some(adapter) => adapter.step(argument, out),
            None => Err(Reject::new("adapter_step before adapter_open")),
        })
    }

    /// Runs one call on the argument the host left in `input`. Reading it there, and not through
    /// the pointer, is what keeps this safe code.
    fn call(
        &mut self,
        argument: *const u8,
        length: usize,
        run: impl FnOnce(&mut Guest<M, C>, &[u8], &mut Vec<u8>) -> Result<(), Reject>,
    ) -> u64 {
        self.with_argument(argument, length, |module, argument, out| run(&mut module.guest, argument, out))
    }

    fn with_argument(
        &mut self,
        argument: *const u8,
        length: usize,
        run: impl FnOnce(&mut Self, &[u8], &mut Vec<u8>) -> Result<(), Reject>,
    ) -> u64 {
        if self.output.capacity() > KEPT_BYTES {
            self.output = Vec::new();
        }
        self.output.clear();
        let input = std::mem::take(&mut self.input);
        let mut output = std::mem::take(&mut self.output);
        let outcome = match input.get(..length) {
            Some(bytes) if argument == bytes.as_ptr() => run(self, bytes, &mut output),
            _ => Err(Reject::new("the host called with bytes that are not the last `alloc`'s")),
        };
        (self.input, self.output) = (input, output);
        self.finish(outcome)
    }

    /// The result word: where the bytes are, how many, and whether they are a rejection.
    fn finish(&mut self, outcome: Result<(), Reject>) -> u64 {
        let mut flag = 0;
        if let Err(reject) = outcome {
            self.output.clear();
            self.output.extend_from_slice(reject.text().as_bytes());
            flag = REJECTED;
        }
        let length = self.output.len() as u64;
        assert!(length < REJECTED, "a result of {length} bytes");
        (self.output.as_ptr() as u64) << 32 | flag | length
    }
}
