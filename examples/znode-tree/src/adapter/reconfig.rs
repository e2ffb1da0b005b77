//! A reconfiguration under way: the tree says whether the client may, the host who the members are and, when it has
//! changed them, who they are now; the tree is told, and its configuration is the answer.
//!
//! The client's other requests wait behind it, as behind a sync; only a ping is answered before, so that the client does not
//! take a node that catches up for a server that is gone.

use std::fmt::Write;

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Outcome;

use super::Purpose;
use super::Shared;
use super::config;
use super::words::Facts;
use crate::call::error_reply;
use crate::call::split_reply;
use crate::jute::Reader;
use crate::reconfig::Plan;
use crate::reconfig::ReconfigRequest;
use crate::reconfig::Servers;
use crate::wire::ErrorCode;

/// How long the members may take to change, milliseconds: what is behind waits as long.
const PATIENCE_MS: u64 = 60_000;

/// A reconfiguration.
#[derive(Debug, PartialEq, Eq)]
pub struct Reconfiguration {
    body: Box<[u8]>,
    waits_for: Step,
}

/// Whose answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The tree's: whether the client may.
    Leave,
    /// The host's: who the members are.
    Members,
    /// The host's: that they have changed.
    Change,
    /// The log's: what the configuration is now.
    Configuration,
}

/// What follows from an answer.
pub enum Next {
    /// Another one is waited for.
    Waits,
    /// This is the client's.
    Reply(Vec<u8>),
    /// The answer itself is.
    Answer,
}

impl Reconfiguration {
    /// One that the tree is asked for leave of.
    pub fn new(body: &[u8]) -> Self {
        Self { body: body.into(), waits_for: Step::Leave }
    }

    /// Whether the client may: from then on it may take its time. What is refused is answered at once, and in order.
    pub fn has_begun(&self) -> bool {
        self.waits_for != Step::Leave
    }

    /// Goes on by an answer that is for the request `slot` of `connection`.
    pub fn go_on(
        &mut self,
        shared: &mut Shared,
        io: &mut Io<'_>,
        (connection, slot): (ConnectionId, u64),
        outcome: &Outcome<'_>,
    ) -> Next {
        let token = |shared: &mut Shared| shared.pending.keep(Purpose::Request { connection, slot });
        match (self.waits_for, outcome) {
            (Step::Leave, Outcome::Ok(reply)) if split_reply(reply).is_ok_and(|(error, _)| error == 0) => {
                io.ask(token(shared), "status");
                self.waits_for = Step::Members;
            }
            (Step::Members, Outcome::Ok(json)) => match self.plan(json) {
                Ok(plan) => {
                    io.ask(token(shared), &change(&plan));
                    self.waits_for = Step::Change;
                }
                Err(code) => return Next::Reply(error_reply(code)),
            },
            (Step::Change, Outcome::Ok(json)) => {
                let Some(facts) = Facts::parse(json) else { return Next::Reply(error_reply(ErrorCode::SystemError)) };
                let token = token(shared);
                config::propose(shared, io, token, &config::zookeeper(&facts));
                self.waits_for = Step::Configuration;
            }
            (Step::Members | Step::Change, Outcome::Failed { code, detail }) => {
                // The client gets a number; whoever looks into it wants to know more.
                statehouse_sdk::warn!("a reconfiguration failed: {code}: {detail}");
                return Next::Reply(error_reply(error(code)));
            }
            (Step::Members | Step::Change, _) => return Next::Reply(error_reply(ErrorCode::SystemError)),
            (Step::Leave | Step::Configuration, _) => return Next::Answer,
        }
        Next::Waits
    }

    fn plan(&self, json: &[u8]) -> Result<Plan, ErrorCode> {
        let facts = Facts::parse(json).ok_or(ErrorCode::SystemError)?;
        let now: Servers = facts.members.iter().map(|member| (member.id, member.votes())).collect();
        ReconfigRequest::read(&mut Reader::new(&self.body))?.wish()?.plan(&now)
    }
}

/// What the host is asked. Of a plan without anything to do as well: it tells the members as they are.
fn change(plan: &Plan) -> String {
    let mut add = String::new();
    for (node, votes) in &plan.add {
        let comma = if add.is_empty() { "" } else { "," };
        let _ = write!(add, r#"{comma}{{"node":{node},"learner":{}}}"#, !votes);
    }
    format!(r#"change {{"add":[{add}],"remove":{:?},"wait_ms":{PATIENCE_MS}}}"#, plan.remove)
}

/// ZooKeeper's word for one of the host's.
fn error(code: &str) -> ErrorCode {
    match code {
        "change_in_progress" => ErrorCode::ReconfigInProgress,
        // The group lets its clients, the operator of this node does not.
        "forbidden" => ErrorCode::ReconfigDisabled,
        "bad_request" | "last_voter" => ErrorCode::BadArguments,
        // It has not joined, is not there, has not caught up; or there are too few to decide.
        "node_not_found" | "not_caught_up" | "timeout" | "no_leader" | "cancelled" => ErrorCode::NewConfigNoQuorum,
        _ => ErrorCode::SystemError,
    }
}
