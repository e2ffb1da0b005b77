//! `statehouse bench`: how fast a cluster answers, and against what this machine can do at all.

mod histogram;
mod keeper;
mod load;
mod machine;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use clap::Subcommand;
use serde::Serialize;

use self::load::Load;
use self::machine::Machine;
use super::Call;
use super::Client;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::Repeat;
use super::client::base_url;
use super::client::encode;
use super::output;
use super::query::Freshness;

/// Measure a group: each connection sends one request after the other
///
/// Also measures a synced 4 KiB write and a loopback round trip of this machine, and prints the median
/// latency as a multiple of them: that ratio can be compared between machines.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse bench apply c1 --connections 64 --duration-s 10
  statehouse bench query c1 --consistency local -o json
  statehouse bench apply c1 --server http://127.0.0.1:7070,http://127.0.0.1:7071,http://127.0.0.1:7072")]
pub(super) struct BenchVerbs {
    #[command(subcommand)]
    verb: BenchVerb,
}

#[derive(Debug, Subcommand)]
enum BenchVerb {
    /// Measure commands
    #[command(after_help = "\
Examples:
  statehouse bench apply c1                      a group of `counter`, one connection
  statehouse bench apply c1 --connections 64 --duration-s 30 --bench-dir /var/lib/statehouse
  statehouse bench apply kv --command '{\"Put\":{\"key\":\"a\",\"value\":\"1\",\"ttl_ms\":null}}'")]
    Apply {
        /// The group
        group: String,
        /// The command that is sent again and again
        #[arg(long, value_name = "DATA", default_value = "{\"Add\":1}", allow_hyphen_values = true)]
        command: String,
        #[command(flatten)]
        shape: Shape,
    },
    /// Measure queries
    Query {
        /// The group
        group: String,
        /// The query that is sent again and again
        #[arg(long, value_name = "DATA", default_value = "\"Get\"", allow_hyphen_values = true)]
        query: String,
        /// How fresh the answers must be
        #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
        consistency: Freshness,
        #[command(flatten)]
        shape: Shape,
    },
    Keeper(Box<keeper::KeeperArgs>),
}

#[derive(Args, Clone, Debug)]
struct Shape {
    /// How many connections, spread over all --server
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// How long is measured
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    duration_s: u64,
    /// How long is run before that without measuring
    #[arg(long, value_name = "S", default_value_t = 1)]
    warmup_s: u64,
    /// Where the synced write is measured: best on the disk of the nodes' data
    #[arg(long, value_name = "DIR", default_value = ".")]
    bench_dir: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

/// What was measured; times in microseconds.
#[derive(Clone, Debug, Serialize)]
struct Report {
    operation: &'static str,
    connections: u32,
    duration_s: f64,
    answers: u64,
    errors: u64,
    first_error: Option<String>,
    per_second: f64,
    p50_us: f64,
    p95_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    /// The median of a 4 KiB write and fdatasync into a preallocated file.
    synced_write_us: f64,
    /// The median of one byte there and back over loopback TCP.
    round_trip_us: f64,
    /// `p50 / (synced write + 2 round trips)`.
    p50_ratio: f64,
}

pub(super) async fn run(verbs: BenchVerbs) -> Result<(), Failure> {
    let (operation, path, body, shape) = match verbs.verb {
        BenchVerb::Apply { group, command, shape } => {
            ("apply", format!("/v1/groups/{}/apply", encode(&group)), command, shape)
        }
        BenchVerb::Query { group, query, consistency, shape } => {
            ("query", format!("/v1/groups/{}/query?consistency={}", encode(&group), consistency.as_str()), query, shape)
        }
        BenchVerb::Keeper(args) => return keeper::run(*args).await,
    };
    let servers = shape.client.servers().iter().map(|server| base_url(server)).collect::<Result<Vec<_>, _>>()?;
    // One first: what is wrong with it is wrong with all, and said at once.
    let client = Client::new(&servers)?;
    client.send(Call::post(path.clone(), body.clone(), Repeat::Never)).await?;
    let mut machine = Machine::default();
    machine.measure(&shape.bench_dir).await?;
    output::note(format!(
        "{operation}: {} connections, {} s and {} s before that",
        shape.connections, shape.duration_s, shape.warmup_s
    ));
    let load = Load {
        servers,
        path,
        body: Bytes::from(body),
        connections: shape.connections,
        warmup: Duration::from_secs(shape.warmup_s),
        duration: Duration::from_secs(shape.duration_s),
    };
    let result = load.run().await?;
    machine.measure(&shape.bench_dir).await?;
    let (synced_write, round_trip) = (machine.synced_write(), machine.round_trip());
    if result.latencies.count() == 0 {
        let why = result.first_error.unwrap_or_else(|| "no answer came in time".into());
        return Err(Failure::here(
            format!("not one answer was a success: {why}"),
            "try the same with `statehouse apply` or `query` first",
        ));
    }
    let at = |share: f64| result.latencies.quantile_ns(share) as f64 / 1000.0;
    let unit = synced_write.as_secs_f64() * 1e6 + 2.0 * round_trip.as_secs_f64() * 1e6;
    let report = Report {
        operation,
        connections: shape.connections,
        duration_s: result.took.as_secs_f64(),
        answers: result.latencies.count(),
        errors: result.errors,
        first_error: result.first_error,
        per_second: result.latencies.count() as f64 / result.took.as_secs_f64(),
        p50_us: at(0.5),
        p95_us: at(0.95),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: at(1.0),
        synced_write_us: synced_write.as_secs_f64() * 1e6,
        round_trip_us: round_trip.as_secs_f64() * 1e6,
        p50_ratio: at(0.5) / unit,
    };
    match shape.client.output {
        Output::Json => output::json(&report),
        Output::Table => print(&report),
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let ms = |us: f64| format!("{:.3} ms", us / 1000.0);
    let mut errors = report.errors.to_string();
    if let Some(first) = &report.first_error {
        errors.push_str(&format!(" (the first: {first})"));
    }
    output::pairs(&[
        ("operation", report.operation.into()),
        ("connections", report.connections.to_string()),
        ("answers", format!("{} in {:.1} s", report.answers, report.duration_s)),
        ("errors", errors),
        ("throughput", format!("{:.0} /s", report.per_second)),
        ("p50", ms(report.p50_us)),
        ("p95", ms(report.p95_us)),
        ("p99", ms(report.p99_us)),
        ("p99.9", ms(report.p999_us)),
        ("max", ms(report.max_us)),
        ("synced write", format!("{} (4 KiB, preallocated file)", ms(report.synced_write_us))),
        ("round trip", format!("{} (loopback)", ms(report.round_trip_us))),
        ("p50 ratio", format!("{:.2} x (synced write + 2 round trips)", report.p50_ratio)),
    ])
}
