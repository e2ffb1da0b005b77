//! What is printed at the end.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::histogram::Histogram;
use super::super::machine::Machine;
use super::stats::KindStats;
use super::stats::Stats;
use crate::cli::Failure;
use crate::cli::output;

/// Everything about one run; times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub workload: String,
    pub servers: Vec<String>,
    pub sessions: u32,
    pub pipeline: u32,
    pub keys: u32,
    pub value_bytes: String,
    pub seed: u64,
    pub duration_s: f64,
    /// All kinds together.
    #[serde(flatten)]
    pub all: Line,
    /// The fewest answers within one second.
    pub slowest_second: u64,
    pub errors_by_code: BTreeMap<String, u64>,
    pub first_error: Option<String>,
    pub sessions_reopened: u64,
    pub sessions_lost: u64,
    pub kinds: BTreeMap<&'static str, Line>,
    /// The median of a 4 KiB write and fdatasync into a preallocated file.
    pub synced_write_us: f64,
    /// The median of one byte there and back over loopback TCP.
    pub round_trip_us: f64,
}

/// One kind of request, or all.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Line {
    pub answers: u64,
    pub errors: u64,
    pub per_second: f64,
    pub p50_us: f64,
    pub p95_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Line {
    fn of(stats: &KindStats, duration_s: f64) -> Self {
        let latencies: &Histogram = &stats.latencies;
        let at = |share: f64| latencies.quantile_ns(share) as f64 / 1000.0;
        Self {
            answers: latencies.count(),
            errors: stats.errors,
            per_second: latencies.count() as f64 / duration_s,
            p50_us: at(0.5),
            p95_us: at(0.95),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
        }
    }
}

impl Report {
    /// Takes what was measured into a report that knows how it was.
    pub(super) fn with(mut self, stats: &Stats, machine: &Machine) -> Self {
        self.all = Line::of(&stats.all(), self.duration_s);
        self.kinds = stats.kinds.iter().map(|(kind, stats)| (kind.name(), Line::of(stats, self.duration_s))).collect();
        // A second in which nothing was answered leaves no trace of its own.
        let seconds = self.duration_s as usize;
        self.slowest_second =
            (0..seconds).map(|second| stats.seconds.get(second).copied().unwrap_or(0)).min().unwrap_or(0);
        self.errors_by_code = stats.errors.clone();
        self.first_error = stats.first_error.clone();
        (self.sessions_reopened, self.sessions_lost) = (stats.sessions_reopened, stats.sessions_lost);
        self.synced_write_us = machine.synced_write().as_secs_f64() * 1e6;
        self.round_trip_us = machine.round_trip().as_secs_f64() * 1e6;
        self
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        let ms = |us: f64| format!("{:.3}", us / 1000.0);
        let row = |name: &str, line: &Line| {
            let times = [line.p50_us, line.p95_us, line.p99_us, line.p999_us, line.max_us].map(ms);
            let head = [name.to_owned(), line.answers.to_string(), line.errors.to_string()];
            head.into_iter().chain([format!("{:.0}", line.per_second)]).chain(times).collect::<Vec<_>>()
        };
        let kinds = self.kinds.iter().map(|(name, line)| row(name, line));
        let rows = kinds.chain([row("all", &self.all)]).collect();
        output::table(
            &["kind", "answers", "errors", "per second", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms"],
            rows,
        )?;
        output::line("")?;
        let errors: Vec<String> = self.errors_by_code.iter().map(|(code, count)| format!("{count} {code}")).collect();
        let mut pairs = vec![
            ("workload", format!("{}, {} keys, values of {} bytes", self.workload, self.keys, self.value_bytes)),
            ("servers", self.servers.join(", ")),
            ("sessions", format!("{}, each with {} under way", self.sessions, self.pipeline)),
            ("measured", format!("{} s, {} answers in the slowest second", self.duration_s, self.slowest_second)),
            ("errors", if errors.is_empty() { "none".into() } else { errors.join(", ") }),
        ];
        if let Some(first) = &self.first_error {
            pairs.push(("the first", first.clone()));
        }
        if self.sessions_reopened + self.sessions_lost > 0 {
            let text = format!("{} opened again, {} not", self.sessions_reopened, self.sessions_lost);
            pairs.push(("connections lost", text));
        }
        pairs.push(("synced write", format!("{} ms (4 KiB, preallocated file)", ms(self.synced_write_us))));
        pairs.push(("round trip", format!("{} ms (loopback)", ms(self.round_trip_us))));
        output::pairs(&pairs)
    }
}
