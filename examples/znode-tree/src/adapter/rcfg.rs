//! A plan under way (`rcfg`): the host is asked for one step after the other, a listener carries out one plan at a time.
//!
//! Nothing is asked for before all of the plan was checked against the members as the leader sees them. A step that came to
//! nothing is asked for again at the next tick, until its time is over; what was done by then stays, and is said. The plan is its
//! client's: with the connection it ends, after the step that is under way.

use std::collections::VecDeque;

use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Outcome;

use super::Purpose;
use super::Shared;
use super::config;
use super::words;
use super::words::Facts;
use crate::plan::Members;
use crate::plan::Plan;
use crate::plan::Step;
use crate::plan::Task;

/// What is more than a plan of thousands of steps is none.
pub const PLAN_BYTES_MAX: usize = 64 << 10;

/// What the host is asked to learn who the members are: a change of nothing, which says so as of now, and by the leader.
const LOOK: &str = "change {}";

/// A plan.
#[derive(Debug)]
pub struct Running {
    connection: ConnectionId,
    plan: Plan,
    /// As the leader saw them last.
    facts: Facts,
    tasks: VecDeque<Task>,
    done: usize,
    /// How often the first task was tried.
    tries: usize,
    /// When it is given up, and when all of it is; Unix milliseconds.
    task_until_ms: u64,
    until_ms: u64,
    waits_for: Wait,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// The host's answer: who the members are.
    Members,
    /// The host's answer: that the first task is done.
    Step,
    /// The next tick, to try again.
    Tick,
    /// The log's: `/keeper/config`.
    Configuration,
}

/// Why the plan ends.
type Failure = String;

/// A plan came.
pub fn start(shared: &mut Shared, io: &mut Io<'_>, connection: ConnectionId, argument: Result<&[u8], String>) {
    let plan = match argument.and_then(Plan::parse) {
        Ok(_) if shared.rcfg.is_some() => Err("Another reconfigure command is running at this server".to_owned()),
        plan => plan,
    };
    let plan = match plan {
        Ok(plan) => plan,
        Err(why) => return answer(shared, connection, Err(why)),
    };
    let until_ms = io.time_ms().saturating_add(plan.total_wait_ms());
    let (facts, tasks, waits_for) = (Facts::default(), VecDeque::new(), Wait::Members);
    shared.rcfg =
        Some(Running { connection, plan, facts, tasks, done: 0, tries: 0, task_until_ms: 0, until_ms, waits_for });
    ask(shared, io, connection, LOOK);
}

/// Nobody waits for it any more.
pub fn forget(shared: &mut Shared, connection: ConnectionId) {
    if let Some(gone) = shared.rcfg.take_if(|running| running.connection == connection) {
        let (done, left) = (gone.done, gone.tasks.len());
        statehouse_sdk::warn!("rcfg: its client is gone after {done} steps; {left} are not asked for any more");
    }
}

/// The host, or the log, answered.
pub fn told(shared: &mut Shared, io: &mut Io<'_>, connection: ConnectionId, outcome: &Outcome<'_>) {
    let Some(mut running) = shared.rcfg.take_if(|running| running.connection == connection) else { return };
    match running.go_on(shared, io, outcome) {
        Ok(true) => answer(shared, connection, Ok(running.done)),
        Ok(false) => shared.rcfg = Some(running),
        Err(why) => {
            let done = running.done;
            answer(shared, connection, Err(if done == 0 { why } else { format!("{why}. Steps done before: {done}") }));
        }
    }
}

/// Time passes.
pub fn tick(shared: &mut Shared, io: &mut Io<'_>) {
    let Some(mut running) = shared.rcfg.take_if(|running| running.waits_for == Wait::Tick) else { return };
    running.try_first(shared, io);
    shared.rcfg = Some(running);
}

impl Running {
    /// Whether all of it is done.
    fn go_on(&mut self, shared: &mut Shared, io: &mut Io<'_>, outcome: &Outcome<'_>) -> Result<bool, Failure> {
        match (self.waits_for, outcome) {
            (Wait::Configuration, _) => return Ok(true),
            (Wait::Members | Wait::Step, Outcome::Ok(json)) => {
                self.facts = Facts::parse(json).ok_or("the host's answer cannot be read")?;
            }
            (Wait::Members, Outcome::Failed { code, detail }) => return Err(why(code, detail)),
            (Wait::Step, Outcome::Failed { code, detail }) => {
                let Some(task) = self.tasks.front() else { return Err("no step is under way".to_owned()) };
                match becomes(&task.step, code) {
                    Becomes::Done => {}
                    Becomes::Tried if io.time_ms() < self.task_until_ms => {
                        self.waits_for = Wait::Tick;
                        return Ok(false);
                    }
                    Becomes::Tried | Becomes::Nothing => {
                        let (step, tries, why) = (&task.step, self.tries, why(code, detail));
                        return Err(format!("Cannot {step} (retries count {}, tried {tries}): {why}", task.retries));
                    }
                }
            }
            (_, _) => return Err("the host gave an answer that is none".to_owned()),
        }
        match self.waits_for {
            Wait::Members => self.tasks = self.plan.tasks(&members(shared, &self.facts))?.into(),
            _ => {
                self.tasks.pop_front();
                self.done += 1;
            }
        }
        self.next(shared, io)?;
        Ok(false)
    }

    /// Begins the first task; without one, everybody shall read of what was done before its client does.
    fn next(&mut self, shared: &mut Shared, io: &mut Io<'_>) -> Result<(), Failure> {
        let Some(task) = self.tasks.front() else {
            self.waits_for = Wait::Configuration;
            let token = shared.pending.keep(Purpose::Rcfg { connection: self.connection });
            config::propose(shared, io, token, &config::clickhouse(&self.facts));
            return Ok(());
        };
        let now_ms = io.time_ms();
        if now_ms >= self.until_ms {
            let (step, total) = (&task.step, self.plan.total_wait_ms());
            return Err(format!("Cannot {step}: the {total} ms for the whole plan are over"));
        }
        let time_ms = self.plan.wait_ms().saturating_mul(task.retries.saturating_add(1));
        self.task_until_ms = now_ms.saturating_add(time_ms).min(self.until_ms);
        self.tries = 0;
        self.try_first(shared, io);
        Ok(())
    }

    fn try_first(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        let Some(task) = self.tasks.front() else { return };
        let left_ms = self.task_until_ms.saturating_sub(io.time_ms());
        let wait_ms = self.plan.wait_ms().min(left_ms).max(1);
        let what = wish(&task.step, &self.facts, self.tries, wait_ms);
        self.tries += 1;
        self.waits_for = Wait::Step;
        statehouse_sdk::info!("rcfg: {}", task.step);
        ask(shared, io, self.connection, &what);
    }
}

fn ask(shared: &mut Shared, io: &mut Io<'_>, connection: ConnectionId, what: &str) {
    let token = shared.pending.keep(Purpose::Rcfg { connection });
    io.ask(token, what);
}

fn members(shared: &Shared, facts: &Facts) -> Members {
    let votes = facts.members.iter().map(|member| (member.id, member.votes())).collect();
    Members { votes, leader: facts.leader, own: shared.settings.node }
}

/// What the host is asked for.
fn wish(step: &Step, facts: &Facts, tries: usize, wait_ms: u64) -> String {
    let mut wish = match step {
        Step::Lead(nodes) => serde_json::json!({ "lead": next_leader(nodes, facts, tries) }),
        Step::Remove(node) => serde_json::json!({ "remove": [node] }),
        Step::Add { node, learner } => serde_json::json!({ "add": [{ "node": node, "learner": learner }] }),
        Step::Priority { node, priority } => {
            serde_json::json!({ "priorities": [{ "node": node, "priority": priority }] })
        }
    };
    if let Some(wish) = wish.as_object_mut() {
        wish.insert("wait_ms".to_owned(), wait_ms.into());
    }
    format!("change {wish}")
}

/// Who is asked to lead: whoever of them leads already, else one that votes, may lead, and holds the most; another one with every try.
fn next_leader(nodes: &[u64], facts: &Facts, tries: usize) -> Option<u64> {
    let named = facts.members.iter().filter(|member| nodes.contains(&member.id) && member.votes());
    let mut able: Vec<_> = named.filter(|member| member.priority != Some(0)).collect();
    able.sort_by_key(|member| (facts.leader != Some(member.id), std::cmp::Reverse(member.matched), member.id));
    let place = tries.checked_rem(able.len()).unwrap_or(0);
    // With nobody who is able the host says why the first cannot.
    able.get(place).map(|member| member.id).or_else(|| nodes.first().copied())
}

/// What an error makes of a try.
enum Becomes {
    /// It is as wanted.
    Done,
    /// Another try may do it.
    Tried,
    /// No try will.
    Nothing,
}

fn becomes(step: &Step, code: &str) -> Becomes {
    match (code, step) {
        ("node_not_found", Step::Remove(_)) => Becomes::Done,
        // It may be about to join.
        ("node_not_found", Step::Add { .. }) => Becomes::Tried,
        ("forbidden" | "bad_request" | "last_voter" | "node_not_found" | "group_not_found", _) => Becomes::Nothing,
        _ => Becomes::Tried,
    }
}

fn why(code: &str, detail: &str) -> String {
    format!("{code}: {detail}")
}

/// The client's, as JSON.
fn answer(shared: &mut Shared, connection: ConnectionId, ended: Result<usize, Failure>) {
    let (status, message) = match ended {
        Ok(done) => {
            statehouse_sdk::info!("rcfg: all {done} steps are done");
            ("ok", "Reconfiguration successfully applied".to_owned())
        }
        Err(why) => {
            statehouse_sdk::warn!("rcfg: {why}");
            ("error", why)
        }
    };
    let text = serde_json::json!({ "status": status, "message": message }).to_string();
    words::planned(shared, connection, text);
}
