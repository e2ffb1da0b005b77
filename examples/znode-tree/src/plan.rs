//! rcfg: a plan of who leads, who leaves, who comes and who is to lead how much, as ClickHouse Keeper's clients write it.
//!
//! Everything that can be said before the first step is said then: the plan is played on the members as they are.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// Unless the plan says otherwise: how long one try of a step may take, and all of them together, milliseconds.
const WAIT_MS: u64 = 60_000;
const TOTAL_WAIT_MS: u64 = 300_000;
/// After a try that came to nothing, so many more.
const RETRIES: i64 = 1;

/// A plan, as it was sent. A name that is not known is refused: a precondition that nobody looks at is none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    #[serde(default)]
    preconditions: Preconditions,
    actions: Option<Vec<Action>>,
    #[serde(default = "wait_ms")]
    max_action_wait_time_ms: u64,
    #[serde(default = "total_wait_ms")]
    max_total_wait_time_ms: u64,
    /// Of actions that do not say so themselves.
    retry: Option<i64>,
}

fn wait_ms() -> u64 {
    WAIT_MS
}

fn total_wait_ms() -> u64 {
    TOTAL_WAIT_MS
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Preconditions {
    /// One of these leads.
    leaders: Option<Vec<u64>>,
    /// These are the members, and no others.
    members: Option<Vec<u64>>,
}

/// One of the four.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Action {
    transfer_leadership: Option<Vec<u64>>,
    remove_members: Option<Vec<u64>>,
    add_members: Option<Vec<NewMember>>,
    set_priority: Option<Vec<Priority>>,
    retry: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    id: u64,
    /// Where it listens for the others. It has told them itself when it joined.
    #[serde(rename = "endpoint")]
    _endpoint: Option<String>,
    #[serde(default)]
    learner: bool,
    priority: Option<u8>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Priority {
    id: u64,
    priority: u8,
}

/// What is to be done for one name in an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// One of these leads.
    Lead(Vec<u64>),
    /// This one is no member.
    Remove(u64),
    /// This one is a member.
    Add {
        /// The node.
        node: u64,
        /// It does not vote.
        learner: bool,
    },
    /// This one is to lead so much.
    Priority {
        /// The node.
        node: u64,
        /// 0: not where another one can.
        priority: u8,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lead(nodes) => write!(f, "transfer leadership to one of {nodes:?}"),
            Self::Remove(node) => write!(f, "remove server {node}"),
            Self::Add { node, .. } => write!(f, "add server {node}"),
            Self::Priority { node, priority } => write!(f, "set priority {priority} for server {node}"),
        }
    }
}

/// A step with how often it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What is to be done.
    pub step: Step,
    /// Tries after the first.
    pub retries: u64,
}

/// The members, as the leader sees them: whether each votes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// By number.
    pub votes: BTreeMap<u64, bool>,
    /// Who leads.
    pub leader: Option<u64>,
    /// Who was asked.
    pub own: u64,
}

impl Plan {
    /// Reads one.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| format!("Reconfigure command cannot be read: {error}"))
    }

    /// How long one try of a step may take, milliseconds.
    pub fn wait_ms(&self) -> u64 {
        self.max_action_wait_time_ms
    }

    /// How long all of it may take, milliseconds.
    pub fn total_wait_ms(&self) -> u64 {
        self.max_total_wait_time_ms
    }

    /// What is to be done, one after the other, if the preconditions hold and every action makes sense where it stands.
    pub fn tasks(&self, now: &Members) -> Result<Vec<Task>, String> {
        let leader = now.leader.ok_or("Cannot reconfigure cluster because there is no active leader")?;
        self.preconditions.check(now, leader)?;
        let actions = self.actions.as_ref().ok_or("Reconfigure command must have 'actions' field")?;
        let mut model = Model::new(now, leader);
        let mut tasks = Vec::new();
        for action in actions {
            let retry = action.retry.or(self.retry).unwrap_or(RETRIES);
            let retries = u64::try_from(retry)
                .map_err(|_| format!("Reconfigure command 'retry' must be non-negative, got {retry}"))?;
            for step in action.steps()? {
                model.play(&step)?;
                tasks.push(Task { step, retries });
            }
        }
        Ok(tasks)
    }
}

impl Preconditions {
    fn check(&self, now: &Members, leader: u64) -> Result<(), String> {
        if let Some(members) = &self.members {
            if let Some(other) = now.votes.keys().find(|member| !members.contains(member)) {
                return Err(format!(
                    "Precondition failed: member with id {other} found in cluster, but precondition members are {members:?}"
                ));
            }
            if let Some(missing) = members.iter().find(|member| !now.votes.contains_key(member)) {
                return Err(format!("Precondition failed: expected member with id {missing}, not found in cluster"));
            }
        }
        match &self.leaders {
            Some(leaders) if !leaders.contains(&leader) => Err(format!(
                "Precondition failed: expected leader id one of {leaders:?} does not match actual leader id {leader}"
            )),
            _ => Ok(()),
        }
    }
}

impl Action {
    fn steps(&self) -> Result<Vec<Step>, String> {
        let mut kinds: Vec<Vec<Step>> = Vec::new();
        kinds.extend(self.transfer_leadership.iter().map(|nodes| vec![Step::Lead(nodes.clone())]));
        kinds.extend(self.remove_members.iter().map(|nodes| nodes.iter().copied().map(Step::Remove).collect()));
        kinds.extend(self.add_members.iter().map(|nodes| nodes.iter().flat_map(NewMember::steps).collect()));
        let priority = |of: &Priority| Step::Priority { node: of.id, priority: of.priority };
        kinds.extend(self.set_priority.iter().map(|nodes| nodes.iter().map(priority).collect()));
        match <[Vec<Step>; 1]>::try_from(kinds) {
            Ok([steps]) => Ok(steps),
            Err(kinds) if kinds.is_empty() => Err("Unknown action in reconfigure command".to_owned()),
            Err(_) => Err("Reconfigure command has an action that is several at once".to_owned()),
        }
    }
}

impl NewMember {
    fn steps(&self) -> impl Iterator<Item = Step> {
        let node = self.id;
        let priority = self.priority.map(|priority| Step::Priority { node, priority });
        [Step::Add { node, learner: self.learner }].into_iter().chain(priority)
    }
}

/// The cluster as it will be, as far as that can be known.
struct Model {
    own: u64,
    votes: BTreeMap<u64, bool>,
    /// Who may lead then.
    leaders: Vec<u64>,
}

impl Model {
    fn new(now: &Members, leader: u64) -> Self {
        Self { own: now.own, votes: now.votes.clone(), leaders: vec![leader] }
    }

    fn play(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Lead(nodes) => {
                let leaders: Vec<u64> =
                    nodes.iter().copied().filter(|node| self.votes.get(node) == Some(&true)).collect();
                if leaders.is_empty() {
                    return Err(format!(
                        "Reconfigure command cannot transfer leadership to any of server ids {nodes:?}: none of them votes"
                    ));
                }
                self.leaders = leaders;
            }
            Step::Remove(node) if *node == self.own => {
                return Err(format!(
                    "Reconfigure command cannot remove current server id {node}: it would not be there to answer; ask another"
                ));
            }
            Step::Remove(node) if self.leaders.contains(node) => {
                return Err(format!(
                    "Reconfigure command cannot remove leader server id {node}: transfer leadership first"
                ));
            }
            Step::Remove(node) => drop(self.votes.remove(node)),
            Step::Add { node, learner } => {
                if *learner && self.votes.get(node) == Some(&true) {
                    return Err(format!("Reconfigure command cannot make server {node} a learner: it votes"));
                }
                self.votes.insert(*node, !learner);
            }
            Step::Priority { node, .. } if !self.votes.contains_key(node) => {
                return Err(format!("Reconfigure command cannot set priority for server {node}: it is no member"));
            }
            Step::Priority { node, priority: 0 } if self.leaders.contains(node) => {
                return Err(format!(
                    "Reconfigure command cannot set priority 0 for server {node}, because it can be a leader then"
                ));
            }
            Step::Priority { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn members() -> Members {
        let votes = (1..=5).map(|node| (node, true)).chain([(7, false)]).collect();
        Members { votes, leader: Some(2), own: 3 }
    }

    fn tasks(json: &str) -> Result<Vec<Task>, String> {
        Plan::parse(json.as_bytes())?.tasks(&members())
    }

    /// ClickHouse's own example: from five servers to three, of which two are to lead.
    #[test]
    fn a_plan_becomes_steps_in_its_order() {
        let tasks = tasks(
            r#"{"preconditions":{"leaders":[1,2],"members":[7,1,2,3,4,5]},"max_action_wait_time_ms":180000,"actions":[
                {"transfer_leadership":[3]},{"remove_members":[1,2],"retry":0},
                {"set_priority":[{"id":4,"priority":100},{"id":5,"priority":100}]},
                {"transfer_leadership":[4,5],"retry":3},{"set_priority":[{"id":3,"priority":0}]},
                {"add_members":[{"id":6,"endpoint":"node6:9234","priority":50}]}]}"#,
        )
        .unwrap();
        let expected = [
            (Step::Lead(vec![3]), 1),
            (Step::Remove(1), 0),
            (Step::Remove(2), 0),
            (Step::Priority { node: 4, priority: 100 }, 1),
            (Step::Priority { node: 5, priority: 100 }, 1),
            (Step::Lead(vec![4, 5]), 3),
            (Step::Priority { node: 3, priority: 0 }, 1),
            (Step::Add { node: 6, learner: false }, 1),
            (Step::Priority { node: 6, priority: 50 }, 1),
        ];
        assert_eq!(tasks, expected.map(|(step, retries)| Task { step, retries }));
    }

    #[test]
    fn what_is_not_said_has_clickhouses_defaults() {
        let plan = Plan::parse(br#"{"actions":[]}"#).unwrap();
        assert_eq!((plan.wait_ms(), plan.total_wait_ms()), (60_000, 300_000));
        assert_eq!(plan.tasks(&members()), Ok(Vec::new()));
        assert!(plan.tasks(&Members { leader: None, ..members() }).unwrap_err().contains("no active leader"));
    }

    #[test]
    fn a_plan_is_refused_whole_for_what_is_wrong_with_any_part_of_it() {
        for (json, word) in [
            ("", "cannot be read"),
            ("[]", "cannot be read"),
            (r#"{"actions":[]"#, "cannot be read"),
            (r#"{"actions":[],"precondition":{}}"#, "precondition"),
            (r#"{"actions":[],"preconditions":{"leader":[1]}}"#, "unknown field"),
            (r#"{"actions":[{"remove_members":[-1]}]}"#, "cannot be read"),
            (r#"{"actions":[{"remove_members":["1"]}]}"#, "cannot be read"),
            (r#"{"actions":[{"set_priority":[{"id":4,"priority":256}]}]}"#, "cannot be read"),
            (r#"{"actions":[{"set_priority":[{"id":4}]}]}"#, "cannot be read"),
            ("{}", "must have 'actions'"),
            (r#"{"preconditions":{"leaders":[3]}}"#, "expected leader id"),
            (r#"{"preconditions":{"members":[5,6,7,8,9]}}"#, "found in cluster, but precondition"),
            (r#"{"preconditions":{"members":[1,2,3,4,5,7,8]},"actions":[]}"#, "expected member with id 8"),
            (r#"{"actions":[{"retry":1}]}"#, "Unknown action"),
            (r#"{"actions":[{"remove_members":[1],"add_members":[]}]}"#, "several at once"),
            (
                r#"{"actions":[{"remove_members":[1]},{"remove_members":[4],"retry":-1}]}"#,
                "must be non-negative, got -1",
            ),
            (r#"{"actions":[],"retry":-1}"#, ""),
            (r#"{"actions":[{"remove_members":[3]}]}"#, "cannot remove current server id 3"),
            (r#"{"actions":[{"remove_members":[2]}]}"#, "cannot remove leader server id 2"),
            (r#"{"actions":[{"transfer_leadership":[4,5]},{"remove_members":[5]}]}"#, "cannot remove leader"),
            (r#"{"actions":[{"transfer_leadership":[]}]}"#, "cannot transfer leadership"),
            (r#"{"actions":[{"transfer_leadership":[7,9]}]}"#, "none of them votes"),
            (r#"{"actions":[{"remove_members":[4]},{"transfer_leadership":[4]}]}"#, "none of them votes"),
            (r#"{"actions":[{"set_priority":[{"id":2,"priority":0}]}]}"#, "cannot set priority 0"),
            (r#"{"actions":[{"set_priority":[{"id":9,"priority":5}]}]}"#, "no member"),
            (r#"{"actions":[{"add_members":[{"id":4,"learner":true}]}]}"#, "a learner: it votes"),
        ] {
            match tasks(json) {
                Err(error) => assert!(!word.is_empty() && error.contains(word), "{json}: {error}"),
                // Without an action, nobody asks how often.
                Ok(tasks) => assert!(word.is_empty() && tasks.is_empty(), "{json}"),
            }
        }
    }

    #[test]
    fn leadership_that_moves_first_lets_the_former_leader_go() {
        let json = r#"{"actions":[{"transfer_leadership":[4,9]},{"remove_members":[2,8]},{"set_priority":[{"id":3,"priority":0}]}]}"#;
        let steps: Vec<_> = tasks(json).unwrap().into_iter().map(|task| task.step).collect();
        assert_eq!(steps[..3], [Step::Lead(vec![4, 9]), Step::Remove(2), Step::Remove(8)]);
    }
}
