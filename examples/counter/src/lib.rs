//! The smallest useful state machine: a number.

use serde::{Deserialize, Serialize};
use statehouse_sdk::{Context, QueryContext, Reject, StateMachine};

#[derive(Default, Serialize, Deserialize)]
pub struct Counter(i64);

#[derive(Serialize, Deserialize)]
pub enum Command {
    Add(i64),
    Set(i64),
}

#[derive(Serialize, Deserialize)]
pub enum Query {
    Get,
}

impl StateMachine for Counter {
    type Command = Command;
    type Reply = i64;
    type Query = Query;
    type Answer = i64;

    fn apply(&mut self, _: &mut Context<'_>, command: Command) -> Result<i64, Reject> {
        self.0 = match command {
            Command::Add(n) => self.0.checked_add(n).ok_or("the counter would overflow")?,
            Command::Set(value) => value,
        };
        Ok(self.0)
    }

    fn query(&self, _: &QueryContext, Query::Get: Query) -> Result<i64, Reject> {
        Ok(self.0)
    }
}

statehouse_sdk::export!(Counter);
