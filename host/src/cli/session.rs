//! `statehouse session`: identities that make retries safe.

use clap::Args;
use clap::Subcommand;

use super::Call;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::Repeat;
use super::SessionArg;
use super::client::encode;
use super::output;
use super::parse_session;
use crate::api::request;
use crate::api::schema::NewSession;
use crate::api::schema::Session;

/// Open, touch and close sessions
///
/// A session is a client's identity in a group. Commands that carry its sequence numbers can be sent
/// again, to any node, and are applied once.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  s=$(statehouse session open c1)
  statehouse apply c1 '{\"Add\":5}' --session \"$s\" --sequence 1
  statehouse session touch c1 \"$s\"
  statehouse session close c1 \"$s\"")]
pub(super) struct SessionVerbs {
    #[command(subcommand)]
    verb: SessionVerb,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum SessionVerb {
    /// Open a session and print ID:SECRET
    #[command(after_help = "\
Examples:
  s=$(statehouse session open c1)
  statehouse apply c1 '{\"Add\":5}' --session \"$s\" --sequence 1
  statehouse session open c1 --timeout-ms 600000 -o json")]
    Open {
        /// The group
        group: String,
        /// How long it lives without a sign of life
        #[arg(long, value_name = "MS", default_value_t = 30_000)]
        timeout_ms: u64,
    },
    /// Give a sign of life
    Touch {
        /// The group
        group: String,
        /// The session, ID:SECRET
        #[arg(value_parser = parse_session)]
        session: SessionArg,
    },
    /// End a session
    Close {
        /// The group
        group: String,
        /// The session, ID:SECRET
        #[arg(value_parser = parse_session)]
        session: SessionArg,
    },
}

pub(super) async fn run(verbs: SessionVerbs) -> Result<(), Failure> {
    let client = verbs.client.client()?;
    match verbs.verb {
        SessionVerb::Open { group, timeout_ms } => {
            let body = serde_json::to_vec(&NewSession { timeout_ms }).unwrap_or_default();
            // An answer that is lost leaves a session nobody knows; it times out by itself.
            let call = Call::post(format!("/v1/groups/{}/sessions", encode(&group)), body, Repeat::Harmless);
            let session: Session = client.send(call).await?.json()?;
            if session.timeout_ms != timeout_ms {
                output::note(format!(
                    "note: it lives {} ms without a sign of life, as the node's limits say",
                    session.timeout_ms
                ));
            }
            match verbs.client.output {
                Output::Table => output::line(format!("{}:{}", session.id, session.secret)),
                Output::Json => output::json(&session),
            }
        }
        SessionVerb::Touch { group, session } => {
            let call = Call::post(
                format!("/v1/groups/{}/sessions/{}/touch", encode(&group), session.id),
                "",
                Repeat::Harmless,
            );
            client.send(call.header(request::SESSION, &session.text)).await?;
            Ok(())
        }
        SessionVerb::Close { group, session } => {
            let call = Call::delete(format!("/v1/groups/{}/sessions/{}", encode(&group), session.id));
            client.send(call.header(request::SESSION, &session.text)).await?;
            Ok(())
        }
    }
}
