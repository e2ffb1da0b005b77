//! A state machine as the group drives it: the WebAssembly [`Machine`], or the catalog's native one.

use std::io::Read;
use std::io::Write;

use crate::module::Context;
use crate::module::Effects;
use crate::module::Fault;
use crate::module::Limits;
use crate::module::Machine;
use crate::module::Module;
use crate::module::Outcome;

/// One live state.
pub trait Model: Send {
    /// Applies a command. A trap or rejection is an outcome; a [`Fault`] stops the replica.
    fn apply(&mut self, context: &Context, command: &[u8], effects: &mut Effects) -> Result<Outcome, Fault>;
    /// The timer `id` has come due and is no longer armed.
    fn timer(&mut self, context: &Context, id: u64, effects: &mut Effects) -> Result<Outcome, Fault>;
    /// The session in `context` has ended.
    fn session_end(&mut self, context: &Context, effects: &mut Effects) -> Result<Outcome, Fault>;
    /// Answers a query; cannot change the replicated state.
    fn query(&mut self, context: &Context, query: &[u8]) -> Result<Outcome, Fault>;
    /// A frozen copy of the state, to be written elsewhere while entries are applied here.
    fn freeze(&mut self) -> Result<Box<dyn FrozenModel>, Fault>;
}

/// A state that no longer moves.
pub trait FrozenModel: Send {
    /// Writes the state: for a module its raw image and its portable snapshot.
    fn write(self: Box<Self>, out: &mut (dyn Write + Send)) -> std::io::Result<()>;
}

/// Makes a group's state: the first one, or one from a snapshot.
pub trait ModelFactory: Send + Sync + 'static {
    /// The module's digest; all zero for the catalog.
    fn module(&self) -> [u8; 32];
    /// What the group was made with, as its snapshots carry it: [`crate::snapshot::Made`] as JSON.
    fn made(&self) -> Vec<u8> {
        Vec::new()
    }
    /// The state before the first entry, and what making it did (events, timers).
    fn create(&self) -> Result<(Box<dyn Model>, Effects), ModelError>;
    /// The state a snapshot's payload describes.
    fn restore(&self, payload: &mut (dyn Read + Send)) -> Result<Box<dyn Model>, ModelError>;
}

/// A state could not be made; the words say whether module or host is at fault.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ModelError(pub String);

/// Makes [`Machine`]s of one module.
pub struct WasmFactory {
    /// The compiled module.
    pub module: Module,
    /// The group's limits.
    pub limits: Limits,
    /// The params of `init`, JSON.
    pub params: Vec<u8>,
    /// See [`ModelFactory::made`].
    pub made: Vec<u8>,
    /// Index 0, the group's creation time, its seed.
    pub context: Context,
}

impl ModelFactory for WasmFactory {
    fn module(&self) -> [u8; 32] {
        self.module.info().digest
    }

    fn made(&self) -> Vec<u8> {
        self.made.clone()
    }

    fn create(&self) -> Result<(Box<dyn Model>, Effects), ModelError> {
        let mut effects = Effects::default();
        match Machine::init(&self.module, &self.limits, &self.context, &self.params, &mut effects) {
            Ok(machine) => Ok((Box::new(machine), effects)),
            Err(error) => Err(ModelError(error.to_string())),
        }
    }

    fn restore(&self, payload: &mut (dyn Read + Send)) -> Result<Box<dyn Model>, ModelError> {
        match Machine::restore_image(&self.module, &self.limits, payload) {
            Ok(machine) => Ok(Box::new(machine)),
            Err(error) => Err(ModelError(error.to_string())),
        }
    }
}

impl Model for Machine {
    fn apply(&mut self, context: &Context, command: &[u8], effects: &mut Effects) -> Result<Outcome, Fault> {
        Machine::apply(self, context, command, effects)
    }

    fn timer(&mut self, context: &Context, id: u64, effects: &mut Effects) -> Result<Outcome, Fault> {
        Machine::timer(self, context, id, effects)
    }

    fn session_end(&mut self, context: &Context, effects: &mut Effects) -> Result<Outcome, Fault> {
        Machine::session_end(self, context, effects)
    }

    fn query(&mut self, context: &Context, query: &[u8]) -> Result<Outcome, Fault> {
        Machine::query(self, context, query)
    }

    fn freeze(&mut self) -> Result<Box<dyn FrozenModel>, Fault> {
        Ok(Box::new(Machine::freeze(self)?))
    }
}

impl FrozenModel for crate::module::Frozen {
    fn write(self: Box<Self>, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
        match crate::module::Frozen::write(*self, out) {
            Ok(_) => Ok(()),
            Err(crate::module::SnapshotError::Unwritable(error)) => Err(error),
            Err(error) => Err(std::io::Error::other(error)),
        }
    }
}
