//! `statehouse apply`: a command for a group.

use std::time::Duration;

use clap::Args;

use super::Call;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::Repeat;
use super::SessionArg;
use super::client::encode;
use super::data;
use super::output;
use super::parse_session;
use crate::api::request;

/// Send a command to a group and print its reply
///
/// The reply means that the command is on disk at a majority of the nodes and applied.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse apply c1 '{\"Add\":5}'
  echo -n '{\"Add\":5}' | statehouse apply c1 -

A retry that cannot count twice: the second line answers the reply of the first.
  s=$(statehouse session open c1)
  statehouse apply c1 '{\"Add\":5}' --session \"$s\" --sequence 1
  statehouse apply c1 '{\"Add\":5}' --session \"$s\" --sequence 1")]
pub(super) struct Apply {
    /// The group
    group: String,
    /// The command; `-` or nothing reads standard input
    #[arg(allow_hyphen_values = true)]
    data: Option<String>,
    /// Send it in this session
    #[arg(long, value_name = "ID:SECRET", value_parser = parse_session)]
    session: Option<SessionArg>,
    /// The command's number in the session, counted up from 1: makes a retry safe
    #[arg(long, value_name = "N", requires = "session")]
    sequence: Option<u64>,
    /// How long to wait for the reply
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

/// What is waited on top of what the server was told to wait.
pub(super) const MARGIN: Duration = Duration::from_secs(5);

pub(super) async fn run(apply: Apply) -> Result<(), Failure> {
    let command = data(apply.data)?;
    // With its number in a session a command is applied once however often it is sent.
    let repeat = if apply.sequence.is_some() { Repeat::Harmless } else { Repeat::Never };
    let mut call = Call::post(format!("/v1/groups/{}/apply", encode(&apply.group)), command, repeat);
    if let Some(session) = &apply.session {
        call = call.header(request::SESSION, &session.text);
    }
    if let Some(sequence) = apply.sequence {
        call = call.header(request::SEQUENCE, sequence);
    }
    if let Some(timeout_ms) = apply.timeout_ms {
        call = call.header(request::TIMEOUT, timeout_ms).within(Duration::from_millis(timeout_ms) + MARGIN);
    }
    let answer = apply.client.client()?.send(call).await?;
    match apply.client.output {
        Output::Table => output::reply(&answer.body),
        Output::Json => {
            output::json(&serde_json::json!({ "index": answer.index, "reply": output::bytes_as_json(&answer.body) }))
        }
    }
}
