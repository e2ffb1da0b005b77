//! An instance of a module that serves connections: the module's adapter, in memory of its own, with none
//! of the replicated state.
//!
//! Invariants:
//! - It shares nothing with a [`super::Machine`] of the same module but the compiled code.
//! - After an error it is not called again: a trap may have left its memory half changed, and nothing is rolled back.

use std::sync::Arc;

use super::Context;
use super::Effects;
use super::Fault;
use super::Limits;
use super::LogLevel;
use super::Module;
use super::Trap;
use super::imports::Call;
use super::imports::Stop;
use super::instance::Answer;
use super::instance::HEADER_BYTES;
use super::instance::Instance;
use super::instance::header_bytes;
use super::instance::io_fault;
use super::memory::Image;

/// Fuel of `adapter_open` with instantiation, and of each `adapter_step`: some seconds.
const FUEL: u64 = 10_000_000_000;
/// Bytes that one call may ask for.
const OUTPUT_BYTES_MAX: u32 = 64 << 20;

/// What a call of an adapter is told of the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterCall {
    /// The last applied entry that the calls so far tell of.
    pub index: u64,
    /// This node's clock, Unix milliseconds.
    pub time_ms: u64,
    /// Random; expanded to the 128 bits the guest sees.
    pub seed: u64,
    /// 1: the group has a leader. 2: it is this node.
    pub flags: u32,
}

impl AdapterCall {
    /// The header before a call's payload, as the guest finds it.
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        header_bytes(&self.context(), self.flags)
    }

    fn context(&self) -> Context {
        Context { index: self.index, time_ms: self.time_ms, seed: self.seed, session: 0 }
    }
}

/// Why an adapter is no longer to be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// It refused, with this text.
    #[error("the adapter rejected its {call}: {text}", call = if *.open { "settings" } else { "input" })]
    Rejected {
        /// Whether it was `adapter_open`.
        open: bool,
        /// Its words.
        text: String,
    },
    /// It trapped.
    #[error("the adapter trapped: {0}")]
    Trapped(Trap),
    /// This host failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// See the file's head. `Send`, used by one thread at a time.
pub struct AdapterInstance {
    instance: Instance,
    effects: Effects,
}

impl AdapterInstance {
    /// Instantiates the module and calls `adapter_open`; what it asks for lies behind. Log lines go to `logs`.
    pub fn open(
        module: &Module,
        limits: &Limits,
        call: &AdapterCall,
        settings: &[u8],
        logs: &mut Vec<(LogLevel, String)>,
    ) -> Result<(Self, Vec<u8>), AdapterError> {
        if !module.info().has_adapter {
            return Err(Fault::new("the module has no adapter").into());
        }
        let limits = Arc::new(Limits { reply_bytes_max: OUTPUT_BYTES_MAX, ..limits.clone() });
        let image = Image::new(limits.memory_bytes()).map_err(io_fault("cannot make a memory file"))?;
        let (instance, fuel) = Instance::fresh(module, &limits, &Arc::new(image), FUEL).map_err(stopped)?;
        let mut adapter = Self { instance, effects: Effects::default() };
        let asked = adapter.call(Call::AdapterOpen, call, settings, fuel, logs)?;
        Ok((adapter, asked))
    }

    /// Calls `adapter_step` with a batch of records; the records it answers.
    pub fn step(
        &mut self,
        call: &AdapterCall,
        records: &[u8],
        logs: &mut Vec<(LogLevel, String)>,
    ) -> Result<Vec<u8>, AdapterError> {
        self.call(Call::AdapterStep, call, records, FUEL, logs)
    }

    /// Linear memory's size now, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.instance.memory().len() as u64
    }

    fn call(
        &mut self,
        kind: Call,
        call: &AdapterCall,
        payload: &[u8],
        fuel: u64,
        logs: &mut Vec<(LogLevel, String)>,
    ) -> Result<Vec<u8>, AdapterError> {
        self.instance.set_flags(call.flags);
        let answer = self.instance.call(kind, &call.context(), payload, fuel, &mut self.effects);
        logs.append(&mut self.effects.logs);
        match answer.map_err(stopped)? {
            Answer::Reply(asked) => Ok(asked),
            Answer::Rejected(text) => Err(AdapterError::Rejected { open: kind == Call::AdapterOpen, text }),
        }
    }
}

fn stopped(stop: Stop) -> AdapterError {
    match stop {
        Stop::Trap(trap) => AdapterError::Trapped(trap),
        Stop::Fault(fault) => AdapterError::Fault(fault),
        Stop::Stream(error) => AdapterError::Fault(Fault::because("a stream was used by an adapter", error)),
    }
}
