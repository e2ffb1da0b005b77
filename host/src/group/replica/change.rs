//! A group's change of module: by an entry of its log, so that every replica goes over between the same two commands.
//!
//! Invariants:
//! - What becomes of it depends on the log alone: the state before goes through the old module's own snapshot into the new
//!   module's `migrate` or `restore`. If either traps or refuses, all replicas stay with the old one, and the caller is told.
//! - A number counts once, whatever came of it: an entry that was proposed twice, or comes late, changes nothing more.
//! - An entry is applied only where its module is prepared: a replica that has yet to fetch it waits. One that is being opened
//!   does not: it cannot be opened yet, and is tried again.

use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;

use super::*;
use crate::group::model::ModelError;
use crate::group::model::ModuleRef;
use crate::group::model::Refusal;

/// Between two tries to get a module, and two looks whether the group stops.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// The module whose state a replica has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The module.
    pub module: ModuleRef,
    /// The last change of it, 0 for none.
    pub change: u64,
}

/// A replica that cannot be opened: its log names a module that is nowhere to be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub struct Lacking {
    /// The module.
    pub module: [u8; 32],
    why: String,
}

impl Lacking {
    /// The module for lack of which a group could not be opened.
    pub fn of(error: &io::Error) -> Option<[u8; 32]> {
        error.get_ref()?.downcast_ref::<Self>().map(|lacking| lacking.module)
    }
}

/// What a replica that is being opened lacks: openraft hands on no more of an error than its text.
#[derive(Debug, Default)]
pub struct Opening(Mutex<(bool, Option<Lacking>)>);

impl Opening {
    /// From now on the replica waits for the modules that it lacks; what it lacked until now.
    pub fn end(&self) -> Option<Lacking> {
        let mut state = lock(&self.0);
        state.0 = false;
        state.1.take()
    }

    pub(super) fn begin(&self) {
        lock(&self.0).0 = true;
    }

    /// The error of a replica that is being opened; `None` for one that is open.
    fn lacks(&self, module: [u8; 32], why: &str) -> Option<io::Error> {
        let mut state = lock(&self.0);
        state.0.then(|| {
            let lacking = Lacking { module, why: why.to_owned() };
            state.1 = Some(lacking.clone());
            io::Error::other(lacking)
        })
    }
}

/// Waits until the module is prepared: nothing behind the entry that names it can be applied before. An error when the group stops, or
/// is only being opened: whoever opens it has others to open.
pub(super) async fn wait_for_module<P: Platform>(
    shared: Arc<Shared>,
    factory: Arc<dyn ModelFactory>,
    opening: &Opening,
    module: [u8; 32],
) -> io::Result<()> {
    let mut said = String::new();
    loop {
        let mut prepared = factory.prepare(module);
        let failed = loop {
            tokio::select! {
                biased;
                prepared = &mut prepared => match prepared {
                    Ok(()) => return Ok(()),
                    Err(ModelError(why)) => break why,
                },
                // Fetching takes as long as a peer may need to say that it has nothing.
                () = P::Runtime::sleep(LOOK_PAUSE) => {}
            }
            if shared.is_closed() {
                return Err(io::Error::other("the group stops"));
            }
        };
        if let Some(error) = opening.lacks(module, &failed) {
            return Err(error);
        }
        if said != failed {
            tracing::error!(group = shared.group, why = failed, "this replica applies nothing until it has the module");
            said = failed;
        }
        P::Runtime::sleep(LOOK_PAUSE).await;
        if shared.is_closed() {
            return Err(io::Error::other("the group stops"));
        }
    }
}

/// The modules that a batch needs.
pub(super) fn modules_of<R>(batch: &[(Entry, R)]) -> Vec<[u8; 32]> {
    let module = |(entry, _): &(Entry, R)| match &entry.payload {
        Payload::Normal(proposal) => match &proposal.kind {
            EntryKind::ChangeModule { module, .. } => Some(*module),
            _ => None,
        },
        _ => None,
    };
    batch.iter().filter_map(module).collect()
}

impl Shared {
    /// The module whose state this is now.
    pub fn module(&self) -> ModuleRef {
        lock(&self.in_force).module.clone()
    }

    /// The replica takes no more entries.
    pub fn close(&self) {
        *lock(&self.closed) = true;
    }

    fn is_closed(&self) -> bool {
        *lock(&self.closed)
    }

    /// Tries whether a copy of the state as it is now goes over to the module that `factory` begins with; the index of that state,
    /// `None` when the job was lost.
    pub async fn try_module<P: Platform>(
        self: &Arc<Self>,
        platform: &P,
        factory: impl ModelFactory,
        turn: impl Send + 'static,
    ) -> Option<(u64, Answer)> {
        let shared = self.clone();
        let job = move || {
            // It goes with the job, which ends also when nobody waits for it any more.
            let _turn = turn;
            shared.try_module_here(&factory)
        };
        platform.run_guest(job).await
    }

    fn try_module_here(&self, factory: &dyn ModelFactory) -> (u64, Answer) {
        let (context, frozen) = {
            let mut core = self.core();
            let context = core.context(self.seed);
            match core.sound().and_then(|()| core.model.freeze()) {
                Ok(frozen) => (context, frozen),
                Err(fault) => return (context.index, Err(stopped(&fault))),
            }
        };
        let answer = match factory.succeed(factory.first().digest, &context, frozen) {
            Ok(_) => Ok(Bytes::new()),
            Err(Refusal::Outcome(outcome)) => state::answer_of(outcome, context.index),
            // Of the trial, not of the state.
            Err(Refusal::Fault(fault)) => Err(ServiceError::new(ErrorCode::Internal, fault.to_string())),
        };
        (context.index, answer)
    }
}

impl Core {
    /// The context of a call that belongs to no entry of its own.
    pub(super) fn context(&self, seed: u64) -> Context {
        let index = self.applied.map_or(0, |log_id| log_id.index);
        Context { index, time_ms: self.host.time_ms, seed: state::entry_seed(seed, index), session: 0 }
    }

    /// Goes over to another module at entry `index`.
    pub(super) fn change_module(
        &mut self,
        shared: &Shared,
        factory: &dyn ModelFactory,
        index: u64,
        change: u64,
        module: ModuleRef,
    ) -> Result<Answer, Fault> {
        let InForce { module: old, change: last } = lock(&shared.in_force).clone();
        if change <= last {
            let detail = format!(
                "change {change} of the module came to this group before, or one after it did; it runs module {} now",
                old.name
            );
            let known = change == last && module.digest == old.digest;
            let answer = if known { Ok(Bytes::new()) } else { Err(ServiceError::new(ErrorCode::Rejected, detail)) };
            return Ok(answer.map_err(|error| ServiceError { index: Some(index), ..error }));
        }
        if module.digest != old.digest {
            let context = Context { index, ..self.context(shared.seed) };
            let context = Context { seed: state::entry_seed(shared.seed, index), ..context };
            match factory.succeed(module.digest, &context, self.model.freeze()?) {
                Ok(model) => self.model = model,
                Err(Refusal::Fault(fault)) => return Err(fault),
                Err(Refusal::Outcome(outcome)) => {
                    lock(&shared.in_force).change = change;
                    return Ok(state::answer_of(outcome, index));
                }
            }
        }
        tracing::info!(
            group = shared.group,
            index,
            from = old.name,
            to = module.name,
            "the group goes over to another module"
        );
        *lock(&shared.in_force) = InForce { module, change };
        // What the old module's adapter knows of the state is the old module's: it begins anew, as the new one's.
        for inbox in &self.inboxes {
            inbox.jump(index);
        }
        Ok(Ok(Bytes::new()))
    }
}

#[cfg(test)]
mod tests;
