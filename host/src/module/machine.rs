//! stub
use super::*;
use std::io::{Read, Write};

/// One live state machine. `Send`, used by one thread at a time.
pub struct Machine(());

/// A state as it was at one moment; `Send`, to be written out on another thread while the machine goes on.
pub struct Frozen(());

fn unsupported() -> Fault {
    Fault::new("not built yet")
}

impl Machine {
    /// A new machine: instantiates and calls `init` with `params`.
    pub fn init(_: &Module, _: &Limits, _: &Context, _params: &[u8], _: &mut Effects) -> Result<Machine, InitError> {
        Err(unsupported().into())
    }
    /// A machine from a snapshot stream.
    pub fn restore(_: &Module, _: &Limits, _snapshot: &mut (dyn Read + Send)) -> Result<Machine, RestoreError> {
        Err(unsupported().into())
    }
    /// A machine of a new module from the old module's snapshot stream: `migrate` if exported, else `restore`.
    pub fn migrate(_: &Module, _: &Limits, _: &Context, _snapshot: &mut (dyn Read + Send)) -> Result<Machine, RestoreError> {
        Err(unsupported().into())
    }
    /// Applies a command.
    pub fn apply(&mut self, _: &Context, _command: &[u8], _: &mut Effects) -> Result<Outcome, Fault> {
        Err(unsupported())
    }
    /// Tells the guest that timer `id` is due. A guest without `timer` answers with an empty reply.
    pub fn timer(&mut self, _: &Context, _id: u64, _: &mut Effects) -> Result<Outcome, Fault> {
        Err(unsupported())
    }
    /// Tells the guest that session `context.session` ended. A guest without `session_end` answers with an empty reply.
    pub fn session_end(&mut self, _: &Context, _: &mut Effects) -> Result<Outcome, Fault> {
        Err(unsupported())
    }
    /// Answers a query; cannot change the replicated state.
    pub fn query(&mut self, _: &Context, _query: &[u8]) -> Result<Outcome, Fault> {
        Err(unsupported())
    }
    /// The state as it is now, to be written out elsewhere.
    pub fn freeze(&mut self) -> Result<Frozen, Fault> {
        Err(unsupported())
    }
    /// SHA-256 over memory and globals: equal for machines that began the same way and applied the
    /// same entries. A machine restored from a snapshot may lay its memory out otherwise.
    pub fn image_digest(&mut self) -> Result<[u8; 32], Fault> {
        Err(unsupported())
    }
    /// Linear memory's size now, bytes.
    pub fn memory_bytes(&self) -> u64 {
        0
    }
    /// The module it runs.
    pub fn module(&self) -> &Module {
        unimplemented!()
    }
}

impl Frozen {
    /// Runs the guest's `snapshot` on the frozen state and writes its bytes to `out`; returns how many.
    pub fn snapshot(self, _out: &mut (dyn Write + Send)) -> Result<u64, SnapshotError> {
        Err(SnapshotError::Fault(unsupported()))
    }
}
