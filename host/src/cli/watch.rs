//! `statehouse watch`: a group's events as they come.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;

use super::Call;
use super::Client;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::client::encode;
use super::client::lines;
use super::output;

/// The pauses between attempts to connect again: the first and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A server that sends neither event nor comment for this long is gone (it comments every 15 s).
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Print a group's events as they come, until Ctrl-C
///
/// A lost connection is made again, at the next server if there are several, and goes on where it
/// broke off: no event is missed or printed twice as long as the servers keep it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse watch kv1
  statehouse watch kv1 --from 1 -o json | jq .data")]
pub(super) struct Watch {
    /// The group
    group: String,
    /// Begin at this log index instead of now
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

/// One event of the stream, as it is put together line by line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pending {
    id: Option<String>,
    kind: Option<String>,
    data: Option<String>,
}

impl Pending {
    /// Takes a line of the stream; an empty one ends the event.
    fn take_line(&mut self, line: &str) -> Option<Pending> {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Some(std::mem::take(self));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = Some(value.to_owned()),
            "event" => self.kind = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                data => *data = Some(value.to_owned()),
            },
            // A comment, or a field of a later version.
            _ => {}
        }
        None
    }
}

pub(super) async fn run(watch: Watch) -> Result<(), Failure> {
    let client = watch.client.client()?;
    let mut last: Option<String> = None;
    let mut pause = PAUSE_MIN;
    let mut connected = false;
    loop {
        match follow(&client, &watch, &mut last, &mut pause).await {
            // Refused: another attempt would be refused as well. Not reached: only if it never was.
            Err(failure @ (Failure::Refused { .. } | Failure::Usage { .. })) => return Err(failure),
            Err(failure) if !connected => return Err(failure),
            Err(failure) => output::note(format!("{failure}; trying again")),
            Ok(why) => {
                connected = true;
                output::note(format!("the connection ended ({why}); connecting again"));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Follows the stream until it ends; says why it did.
async fn follow(
    client: &Client,
    watch: &Watch,
    last: &mut Option<String>,
    pause: &mut Duration,
) -> Result<String, Failure> {
    let from = watch.from.map(|from| format!("?from={from}")).unwrap_or_default();
    let mut call = Call::get(format!("/v1/groups/{}/events{from}", encode(&watch.group)));
    if let Some(id) = last.as_ref() {
        call = call.header("last-event-id", id);
    }
    let mut lines = lines(client.open(&call).await?.into_body());
    let mut pending = Pending::default();
    loop {
        let line = match tokio::time::timeout(SILENCE_MAX, lines.next()).await {
            Err(_) => return Ok(format!("silent for {} s", SILENCE_MAX.as_secs())),
            Ok(None) => return Ok("closed by the server".into()),
            Ok(Some(Err(error))) => return Ok(error),
            Ok(Some(Ok(line))) => line,
        };
        *pause = PAUSE_MIN;
        if let Some(event) = pending.take_line(&line) {
            print(watch.client.output, &event)?;
            if event.id.is_some() {
                *last = event.id;
            }
        }
    }
}

fn print(form: Output, event: &Pending) -> Result<(), Failure> {
    let (Some(id), Some(data)) = (&event.id, &event.data) else { return Ok(()) };
    if event.kind.as_deref() == Some("gap") {
        return match form {
            Output::Table => {
                output::note(format!("events are missing, they are no longer kept: {data}"));
                Ok(())
            }
            Output::Json => output::json_line(&serde_json::json!({ "gap": output::bytes_as_json(data.as_bytes()) })),
        };
    }
    let bytes = match event.kind.as_deref() {
        Some("hex") => hex::decode(data).unwrap_or_default(),
        _ => data.clone().into_bytes(),
    };
    match form {
        Output::Table => {
            let text = if event.kind.as_deref() == Some("hex") { format!("hex:{data}") } else { data.clone() };
            output::line(format!("{id}\t{text}"))
        }
        Output::Json => {
            let (index, number) = id.split_once('.').unwrap_or((id, "0"));
            let (index, number) = (index.parse::<u64>().ok(), number.parse::<u64>().ok());
            output::json_line(
                &serde_json::json!({ "index": index, "number": number, "data": output::bytes_as_json(&bytes) }),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn an_event_is_put_together_from_its_lines() {
        let mut pending = Pending::default();
        let events: Vec<Pending> =
            ["id: 7", "", ":", "", "id: 7.0", "data: a", "data:  b", "", "id: 9", "event: gap", "data: {}", ""]
                .iter()
                .filter_map(|line| pending.take_line(line))
                .collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(events[0], Pending { id: text("7"), ..Pending::default() });
        assert_eq!(events[1], Pending::default());
        assert_eq!(events[2], Pending { id: text("7.0"), kind: None, data: text("a\n b") });
        assert_eq!(events[3], Pending { id: text("9"), kind: text("gap"), data: text("{}") });
    }
}
