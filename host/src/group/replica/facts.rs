//! What of a replica is asked for at any moment and as often as clients like.

use std::collections::BTreeMap;

use crate::group::state::Answer;
use crate::group::state::HostState;
use crate::types::EntryKind;

/// That part of [`HostState`]. Changed with it, and its lock is never held while guest code runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Open sessions and what their clients must show.
    pub(super) secrets: BTreeMap<u64, [u8; 16]>,
    /// Armed timers.
    pub(super) timers: usize,
}

impl Facts {
    pub(super) fn of(host: &HostState) -> Self {
        let secrets = host.sessions.iter().map(|(id, session)| (*id, session.secret));
        Self { secrets: secrets.collect(), timers: host.timers.len() }
    }

    /// Entry `index` was applied, and this was its outcome.
    pub(super) fn follow(&mut self, index: u64, kind: &EntryKind, answer: &Answer, host: &HostState) {
        self.timers = host.timers.len();
        match (kind, answer) {
            (EntryKind::OpenSession { secret, .. }, Ok(_)) => drop(self.secrets.insert(index, *secret)),
            (EntryKind::CloseSession { id, .. }, Ok(_)) => drop(self.secrets.remove(id)),
            _ => {}
        }
    }
}
