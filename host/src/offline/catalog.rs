//! The catalog of a stopped node: its newest snapshot that verifies, and the entries of the log behind it.

use std::collections::BTreeMap;

use super::Directory;
use crate::catalog::Catalog;
use crate::codec;
use crate::log::InspectedGroup;
use crate::log::Inspection;
use crate::module::Context;
use crate::snapshot::read_payload;
use crate::types::CATALOG;
use crate::types::CATALOG_NAME;
use crate::types::EntryKind;
use crate::types::GroupId;
use crate::types::Payload;

/// The catalog as far as this directory says, entries that may not be committed included.
#[derive(Clone, Debug, Default)]
pub struct OfflineCatalog {
    /// What it says.
    pub catalog: Catalog,
    /// The last entry that was applied to it; 0: none was found.
    pub applied: u64,
    /// Why it is not further, when something is in the way.
    pub doubt: Option<String>,
}

impl OfflineCatalog {
    /// Reads it.
    pub fn read(directory: &Directory, log: &Inspection) -> Self {
        let mut read = Self::default();
        let mut covered = None;
        for path in directory.snapshot_files(CATALOG).unwrap_or_default() {
            let found = read_payload(&**directory.disk(), &path).map_err(|error| error.to_string());
            match found.and_then(|(head, bytes)| match codec::decode(&bytes) {
                Ok(catalog) => Ok((head.last_log_id, catalog)),
                Err(error) => Err(error.to_string()),
            }) {
                Ok((log_id, catalog)) => {
                    (read.applied, read.catalog, read.doubt) = (log_id.index, catalog, None);
                    covered = Some(log_id);
                    break;
                }
                Err(why) => read.doubt = Some(why),
            }
        }
        let valid = |of: &&InspectedGroup| covered.is_none_or(|covered| !of.is_replaced_by(covered));
        let Some(of) = log.groups.get(&CATALOG).filter(valid) else { return read };
        let mut reader = directory.entries();
        let mut next = read.applied.saturating_add(1);
        for (&index, place) in of.entries.range(next..) {
            if index != next {
                break;
            }
            match reader.read(CATALOG, index, place) {
                Ok(entry) => read.apply(index, entry.payload),
                Err(error) => {
                    read.doubt = Some(error.to_string());
                    return read;
                }
            }
            next = index.saturating_add(1);
        }
        if of.last().is_some_and(|last| last.index >= next) {
            read.doubt = Some(format!("the catalog's entry {next} is missing"));
        }
        read
    }

    fn apply(&mut self, index: u64, payload: Payload) {
        if let Payload::Normal(proposal) = payload
            && let EntryKind::Command { payload, .. } = proposal.kind
        {
            // Only the seed differs from what a node makes of it; nothing here shows it.
            let context = Context { index, time_ms: proposal.time_ms, seed: 0, session: 0 };
            self.catalog.replay(&context, &payload);
        }
        self.applied = index;
    }

    /// The groups' names by id.
    pub fn names(&self) -> BTreeMap<GroupId, String> {
        let named = self.catalog.groups.iter().map(|(name, entry)| (entry.id, name.clone()));
        named.chain([(CATALOG, CATALOG_NAME.to_owned())]).collect()
    }
}
