//! `statehouse query`: a question to a group.

use std::time::Duration;

use clap::Args;
use clap::ValueEnum;

use super::Call;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::Repeat;
use super::SessionArg;
use super::apply::MARGIN;
use super::client::encode;
use super::data;
use super::output;
use super::parse_session;
use crate::api::request;

/// How fresh the answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Freshness {
    /// Sees every command that was acknowledged before
    Linearizable,
    /// The same, if clocks run at nearly one speed; no round between nodes
    Lease,
    /// The answering node's state as it is, perhaps behind
    Local,
}

impl Freshness {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Local => "local",
        }
    }
}

/// Ask a group something and print its answer
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse query c1 '\"Get\"'
  statehouse query c1 '\"Get\"' --consistency local")]
pub(super) struct Query {
    /// The group
    group: String,
    /// The query; `-` or nothing reads standard input
    #[arg(allow_hyphen_values = true)]
    data: Option<String>,
    /// How fresh the answer must be
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    consistency: Freshness,
    /// Ask it in this session
    #[arg(long, value_name = "ID:SECRET", value_parser = parse_session)]
    session: Option<SessionArg>,
    /// How long to wait for the answer
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(query: Query) -> Result<(), Failure> {
    let path = format!("/v1/groups/{}/query?consistency={}", encode(&query.group), query.consistency.as_str());
    let mut call = Call::post(path, data(query.data)?, Repeat::Reads);
    if let Some(session) = &query.session {
        call = call.header(request::SESSION, &session.text);
    }
    if let Some(timeout_ms) = query.timeout_ms {
        call = call.header(request::TIMEOUT, timeout_ms).within(Duration::from_millis(timeout_ms) + MARGIN);
    }
    let answer = query.client.client()?.send(call).await?;
    match query.client.output {
        Output::Table => output::reply(&answer.body),
        Output::Json => {
            output::json(&serde_json::json!({ "index": answer.index, "reply": output::bytes_as_json(&answer.body) }))
        }
    }
}
