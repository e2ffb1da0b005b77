//! The next version of `examples/counter`: it knows how often its number changed since it took over, and understands the
//! commands of the first one. It does not take the number 13.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use statehouse_sdk::{Context, Migrate, QueryContext, Reject, Snapshot, StateMachine};

/// The state of the first version.
#[derive(Serialize, Deserialize)]
struct CounterV1(i64);

/// The state of this one.
#[derive(Default, Serialize, Deserialize)]
pub struct Counter {
    value: i64,
    changes: u64,
}

/// Those of the first version; `Double` is new.
#[derive(Serialize, Deserialize)]
pub enum Command {
    /// Adds.
    Add(i64),
    /// Sets.
    Set(i64),
    /// Doubles.
    Double,
}

/// That of the first version; `Changes` is new.
#[derive(Serialize, Deserialize)]
pub enum Query {
    /// The number.
    Get,
    /// How often it changed.
    Changes,
}

impl Migrate for Counter {
    fn migrate(input: &mut dyn Read) -> io::Result<Self> {
        match CounterV1::restore(input)?.0 {
            13 => Err(io::Error::other("13 brings bad luck")),
            value => Ok(Self { value, changes: 0 }),
        }
    }
}

impl StateMachine for Counter {
    type Command = Command;
    type Reply = i64;
    type Query = Query;
    type Answer = i64;

    fn apply(&mut self, _: &mut Context<'_>, command: Command) -> Result<i64, Reject> {
        let next = match command {
            Command::Add(n) => self.value.checked_add(n),
            Command::Set(value) => Some(value),
            Command::Double => self.value.checked_mul(2),
        };
        self.value = next.ok_or("the counter would overflow")?;
        self.changes += 1;
        Ok(self.value)
    }

    fn query(&self, _: &QueryContext, query: Query) -> Result<i64, Reject> {
        match query {
            Query::Get => Ok(self.value),
            Query::Changes => i64::try_from(self.changes).map_err(|_| "too many changes".into()),
        }
    }
}

statehouse_sdk::export!(Counter, migrate);
