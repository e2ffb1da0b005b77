//! A state machine as the group drives it: the WebAssembly [`Machine`], or the catalog's native one.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use futures_util::future::BoxFuture;

use crate::module::Context;
use crate::module::Effects;
use crate::module::Fault;
use crate::module::Limits;
use crate::module::Machine;
use crate::module::Module;
use crate::module::Outcome;
use crate::module::RestoreError;
use crate::module::SnapshotError;
use crate::module::Trap;
use crate::snapshot::Made;

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
    /// Writes the portable snapshot alone, for another module to read.
    fn export(self: Box<Self>, out: &mut (dyn Write + Send)) -> Result<(), Refusal>;
}

/// A module as the catalog calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleRef {
    /// Its digest; all zero for the catalog.
    pub digest: [u8; 32],
    /// Its name.
    pub name: String,
}

/// Makes a group's state: the first one, one from a snapshot, or another module's from the one before.
pub trait ModelFactory: Send + Sync + 'static {
    /// The module that the group began with.
    fn first(&self) -> ModuleRef;
    /// What the group was made with, as its snapshots carry it while it runs this module: [`Made`] as JSON.
    fn made(&self, _module: &str) -> Vec<u8> {
        Vec::new()
    }
    /// Sees to it that states of this module can be made here, which may have to be fetched and compiled first.
    fn prepare(&self, _module: [u8; 32]) -> BoxFuture<'static, Result<(), ModelError>> {
        Box::pin(std::future::ready(Ok(())))
    }
    /// The compiled module, once it is prepared.
    fn module(&self, _digest: [u8; 32]) -> Option<Module> {
        None
    }
    /// The time of a state before its first entry, Unix milliseconds: entries' times never lie before it.
    fn created_ms(&self) -> u64 {
        0
    }
    /// The state before the first entry, and what making it did (events, timers).
    fn create(&self) -> Result<(Box<dyn Model>, Effects), ModelError>;
    /// The state a snapshot's payload describes, which was written by this module.
    fn restore(&self, module: [u8; 32], payload: &mut (dyn Read + Send)) -> Result<Box<dyn Model>, ModelError>;
    /// This module's state, from what the module before says of its own.
    fn succeed(
        &self,
        module: [u8; 32],
        context: &Context,
        old: Box<dyn FrozenModel>,
    ) -> Result<Box<dyn Model>, Refusal>;
}

/// A state could not be made; the words say whether module or host is at fault.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ModelError(pub String);

/// A state does not go over to another module.
#[derive(Debug)]
pub enum Refusal {
    /// One of the two modules does not take part, on every replica alike: never [`Outcome::Reply`].
    Outcome(Outcome),
    /// This machine failed.
    Fault(Fault),
}

impl Refusal {
    fn rejected(what: &str, text: impl std::fmt::Display) -> Self {
        Self::Outcome(Outcome::Rejected(format!("{what}: {text}")))
    }

    fn trapped(what: &str, Trap { code, message }: Trap) -> Self {
        Self::Outcome(Outcome::Trapped(Trap { code, message: format!("{what}: {message}") }))
    }
}

/// Where compiled modules come from: this node's files, or a peer's.
pub trait ModuleSource: Send + Sync + 'static {
    /// The module, or why it cannot be had now.
    fn module(&self, digest: [u8; 32]) -> BoxFuture<'static, Result<Module, String>>;
}

/// Makes [`Machine`]s.
pub struct WasmFactory {
    /// The module that the group begins with.
    pub first: ModuleRef,
    /// The group's limits.
    pub limits: Limits,
    /// The params of `init`, JSON.
    pub params: Vec<u8>,
    /// What the group was made with but for the module's name, which may change. `None` for a trial, which writes no snapshot.
    pub made: Option<Made>,
    /// Index 0, the group's creation time, its seed.
    pub context: Context,
    /// Where modules come from; `None` for a trial, which has what it needs.
    pub source: Option<Arc<dyn ModuleSource>>,
    /// Those that were prepared.
    pub loaded: Arc<Mutex<BTreeMap<[u8; 32], Module>>>,
}

impl WasmFactory {
    /// One that tries a module on something, for no group.
    pub fn trial(module: Module, limits: Limits, params: Vec<u8>, context: Context) -> Self {
        let digest = module.info().digest;
        let first = ModuleRef { digest, name: String::new() };
        let loaded = Arc::new(Mutex::new(BTreeMap::from([(digest, module)])));
        Self { first, limits, params, made: None, context, source: None, loaded }
    }

    fn loaded(&self, digest: [u8; 32]) -> Result<Module, String> {
        self.module(digest).ok_or_else(|| format!("the module {} is not loaded here", hex::encode(digest)))
    }
}

impl ModelFactory for WasmFactory {
    fn first(&self) -> ModuleRef {
        self.first.clone()
    }

    fn made(&self, module: &str) -> Vec<u8> {
        let made = self.made.as_ref().map(|made| Made { module: module.to_owned(), ..made.clone() });
        made.and_then(|made| serde_json::to_vec(&made).ok()).unwrap_or_default()
    }

    fn prepare(&self, module: [u8; 32]) -> BoxFuture<'static, Result<(), ModelError>> {
        let (loaded, source) = (self.loaded.clone(), self.source.clone());
        Box::pin(async move {
            let here = loaded.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&module);
            if here {
                return Ok(());
            }
            let not_here = || ModelError(format!("the module {} is not here", hex::encode(module)));
            let found = source.ok_or_else(not_here)?.module(module).await.map_err(ModelError)?;
            loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(module, found);
            Ok(())
        })
    }

    fn module(&self, digest: [u8; 32]) -> Option<Module> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned()
    }

    fn created_ms(&self) -> u64 {
        self.context.time_ms
    }

    fn create(&self) -> Result<(Box<dyn Model>, Effects), ModelError> {
        let module = self.loaded(self.first.digest).map_err(ModelError)?;
        let mut effects = Effects::default();
        match Machine::init(&module, &self.limits, &self.context, &self.params, &mut effects) {
            Ok(machine) => Ok((Box::new(machine), effects)),
            Err(error) => Err(ModelError(error.to_string())),
        }
    }

    fn restore(&self, module: [u8; 32], payload: &mut (dyn Read + Send)) -> Result<Box<dyn Model>, ModelError> {
        let module = self.loaded(module).map_err(ModelError)?;
        match Machine::restore_image(&module, &self.limits, payload) {
            Ok(machine) => Ok(Box::new(machine)),
            Err(error) => Err(ModelError(error.to_string())),
        }
    }

    fn succeed(
        &self,
        module: [u8; 32],
        context: &Context,
        old: Box<dyn FrozenModel>,
    ) -> Result<Box<dyn Model>, Refusal> {
        let module = self.loaded(module).map_err(|what| Refusal::Fault(Fault { what }))?;
        let mut carried = Carried::of((self.limits.memory_bytes() as u64).saturating_mul(CARRIED_MEMORIES));
        old.export(&mut carried)?;
        let new = "the new module";
        match Machine::migrate(&module, &self.limits, context, &mut carried) {
            Ok(machine) => Ok(Box::new(machine)),
            Err(RestoreError::Rejected(text)) => Err(Refusal::rejected(new, text)),
            Err(RestoreError::Trapped(trap)) => Err(Refusal::trapped(new, trap)),
            // Memory does not fail to be read.
            Err(RestoreError::Unreadable(error)) => Err(Refusal::Fault(Fault { what: error.to_string() })),
            Err(RestoreError::Fault(fault)) => Err(Refusal::Fault(fault)),
        }
    }
}

/// A portable snapshot on its way from one module to the next. What is read is given back, as the next state grows meanwhile.
struct Carried {
    pieces: VecDeque<Vec<u8>>,
    /// Read of the first piece.
    read: usize,
    /// Bytes that may still be written.
    room: u64,
}

/// Bytes of one piece, about.
const PIECE_BYTES: usize = 1 << 20;
/// A state's own words for it may be so many times as long as the memory that it may have: both are held in memory here.
const CARRIED_MEMORIES: u64 = 2;

impl Carried {
    fn of(room: u64) -> Self {
        Self { pieces: VecDeque::new(), read: 0, room }
    }
}

impl Write for Carried {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "it is too long to be carried over");
        self.room = self.room.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
        match self.pieces.back_mut().filter(|piece| piece.len() < PIECE_BYTES) {
            Some(piece) => piece.extend_from_slice(bytes),
            None => self.pieces.push_back(bytes.to_vec()),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Carried {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.pieces.front() {
            let mut rest = piece.get(self.read..).unwrap_or(&[]);
            if rest.is_empty() {
                self.pieces.pop_front();
                self.read = 0;
                continue;
            }
            let count = rest.read(to)?;
            self.read += count;
            return Ok(count);
        }
        Ok(0)
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

    fn export(self: Box<Self>, out: &mut (dyn Write + Send)) -> Result<(), Refusal> {
        let old = "the module that runs now";
        match crate::module::Frozen::snapshot(*self, out) {
            Ok(_) => Ok(()),
            Err(SnapshotError::Rejected(text)) => Err(Refusal::rejected(old, text)),
            Err(SnapshotError::Trapped(trap)) => Err(Refusal::trapped(old, trap)),
            // The same on every replica, and of the module's doing.
            Err(SnapshotError::Unwritable(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(Refusal::rejected(old, format_args!("its snapshot: {error}")))
            }
            Err(SnapshotError::Unwritable(error)) => Err(Refusal::Fault(Fault { what: error.to_string() })),
            Err(SnapshotError::Fault(fault)) => Err(Refusal::Fault(fault)),
        }
    }
}
