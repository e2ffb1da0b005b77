//! What was measured, of one thread or of all.

use std::collections::BTreeMap;

use super::super::histogram::Histogram;
use super::wire::Kind;

/// Answers and errors of one kind of request.
#[derive(Clone, Debug, Default)]
pub(super) struct KindStats {
    pub latencies: Histogram,
    pub errors: u64,
}

/// Everything that is counted between the begin and the end of the measurement.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats {
    pub kinds: BTreeMap<Kind, KindStats>,
    /// By the error's name.
    pub errors: BTreeMap<String, u64>,
    /// The first error, whole, and the request it answered.
    pub first_error: Option<String>,
    /// Answers in each second.
    pub seconds: Vec<u64>,
    /// Sessions whose connection broke, and that had no other at the end.
    pub sessions_lost: u64,
    /// How often a session had to be opened again.
    pub sessions_reopened: u64,
}

impl Stats {
    pub(super) fn answer(&mut self, kind: Kind, latency_ns: u64, second: u64) {
        self.kinds.entry(kind).or_default().latencies.record(latency_ns);
        let second = second as usize;
        // Seconds come one after the other; at most as many as --duration-s.
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0);
        }
        if let Some(count) = self.seconds.get_mut(second) {
            *count += 1;
        }
    }

    pub(super) fn error(&mut self, kind: Kind, code: &str, what: impl FnOnce() -> String) {
        self.kinds.entry(kind).or_default().errors += 1;
        *self.errors.entry(code.to_owned()).or_default() += 1;
        self.first_error.get_or_insert_with(what);
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (kind, more) in other.kinds {
            let kind = self.kinds.entry(kind).or_default();
            kind.latencies.merge(&more.latencies);
            kind.errors += more.errors;
        }
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
        self.first_error = self.first_error.take().or(other.first_error);
        if self.seconds.len() < other.seconds.len() {
            self.seconds.resize(other.seconds.len(), 0);
        }
        for (count, more) in self.seconds.iter_mut().zip(other.seconds) {
            *count += more;
        }
        self.sessions_lost += other.sessions_lost;
        self.sessions_reopened += other.sessions_reopened;
    }

    /// All kinds together.
    pub(super) fn all(&self) -> KindStats {
        let mut all = KindStats::default();
        for kind in self.kinds.values() {
            all.latencies.merge(&kind.latencies);
            all.errors += kind.errors;
        }
        all
    }
}
