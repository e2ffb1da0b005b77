//! The clients of a run, and what each of them holds the cluster to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::StreamExt;
use openraft::async_runtime::AsyncRuntime;
use serde_json::Value;
use serde_json::json;
use statehouse::service::Applied;
use statehouse::service::ApplyRequest;
use statehouse::service::Consistency;
use statehouse::service::ErrorCode;
use statehouse::service::EventItem;
use statehouse::service::Service;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimRandom;

use crate::modules::TRAPS;
use crate::register::Action;
use crate::register::Item;
use crate::register::Operation;
use crate::register::Seen;
use crate::world::Session;
use crate::world::Shared;
use crate::world::Told;
use crate::world::now;
use crate::world::now_ms;
use crate::world::sleep_ms;

/// A session that outlives the run.
pub const FOR_EVER_MS: u64 = 600_000;

/// What an acknowledged operation of a group says about the log: for the check that the log's order is the
/// order of real time.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub called: u64,
    pub returned: u64,
    pub index: u64,
    pub is_write: bool,
}

/// What the clients of the key-value store saw.
#[derive(Default)]
pub struct KvHistory {
    pub keys: BTreeMap<String, Vec<Operation>>,
    pub placed: Vec<Placed>,
    next_value: u64,
}

pub type SharedKv = Arc<Mutex<KvHistory>>;

fn item(value: &Value) -> Option<Item> {
    if value.is_null() {
        return None;
    }
    Some((value["value"].as_str()?.parse().ok()?, value["version"].as_u64()?))
}

fn seen(action: &Action, reply: &[u8]) -> Option<Seen> {
    let reply: Value = serde_json::from_slice(reply).ok()?;
    Some(match action {
        Action::Get => Seen::Got(item(&reply)),
        Action::Put(_) => {
            Seen::Put { version: reply["version"].as_u64()?, previous: reply["previous_version"].as_u64() }
        }
        Action::Delete => Seen::Deleted(reply["version"].as_u64()),
        Action::Swap { .. } => match reply["swapped"].as_bool()? {
            true => Seen::Swapped(reply["version"].as_u64()?),
            false => Seen::NotSwapped(item(&reply["found"])),
        },
    })
}

fn request(key: &str, action: &Action) -> Vec<u8> {
    let text = |value: &u64| value.to_string();
    let request = match action {
        Action::Get => json!({"Get": {"key": key}}),
        Action::Put(value) => json!({"Put": {"key": key, "value": text(value)}}),
        Action::Delete => json!({"Delete": {"key": key}}),
        Action::Swap { expected: None, value } => {
            json!({"CompareAndSwap": {"key": key, "expect": "Absent", "value": text(value)}})
        }
        Action::Swap { expected: Some(expected), value } => {
            json!({"CompareAndSwap": {"key": key, "expect": {"Value": text(expected)}, "value": text(value)}})
        }
    };
    request.to_string().into_bytes()
}

/// Reads and writes a few keys through any node; with a session, every write's outcome gets known.
pub async fn kv(
    world: Shared,
    history: SharedKv,
    mut random: SimRandom,
    client: u64,
    with_session: bool,
    keys: u64,
    pause_ms: u64,
) {
    let mut session = if with_session { Some(world.open_session(&mut random, "kv", FOR_EVER_MS).await) } else { None };
    let mut last_seen: BTreeMap<String, Option<u64>> = BTreeMap::new();
    while !world.stopped() {
        sleep_ms(random.between(0, pause_ms)).await;
        let key = format!("key-{}", random.between(1, keys));
        let fresh = || {
            let mut history = history.lock().unwrap();
            history.next_value += 1;
            history.next_value
        };
        let action = match random.between(0, 99) {
            0..35 => Action::Get,
            35..65 => Action::Put(fresh()),
            65..75 => Action::Delete,
            _ => Action::Swap { expected: last_seen.get(&key).copied().flatten(), value: fresh() },
        };
        let called = now();
        let told = perform(&world, &mut random, &key, &action, session.as_mut()).await;
        let returned = now();
        world.note(format!("client {client} {key} {action:?}: {told:?}"));
        let mut operation =
            Operation { client, action: action.clone(), called, returned: u64::MAX, seen: Seen::Unknown };
        match told {
            Told::Done(Applied { index, reply }) => {
                let Some(seen) = seen(&action, &reply) else {
                    world.problem(format!("{key} {action:?} was answered {:?}", String::from_utf8_lossy(&reply)));
                    continue;
                };
                match (&seen, &action) {
                    (Seen::Got(item) | Seen::NotSwapped(item), _) => {
                        last_seen.insert(key.clone(), item.map(|item| item.0))
                    }
                    (Seen::Put { .. }, Action::Put(value)) | (Seen::Swapped(_), Action::Swap { value, .. }) => {
                        last_seen.insert(key.clone(), Some(*value))
                    }
                    _ => last_seen.insert(key.clone(), None),
                };
                operation.returned = returned;
                operation.seen = seen;
                let mut history = history.lock().unwrap();
                history.keys.entry(key).or_default().push(operation);
                history.placed.push(Placed { called, returned, index, is_write: action != Action::Get });
            }
            Told::Answered(error) => world.problem(format!("{key} {action:?}: {error}")),
            // It did not happen; if it did, someone sees a value that nobody wrote.
            Told::Nothing(_) => world.count("requests without effect"),
            Told::Unknown(_) => {
                world.count("unknown outcomes");
                if action != Action::Get {
                    history.lock().unwrap().keys.entry(key).or_default().push(operation);
                }
            }
        }
    }
}

async fn perform(
    world: &Shared,
    random: &mut SimRandom,
    key: &str,
    action: &Action,
    session: Option<&mut Session>,
) -> Told {
    let bytes = request(key, action);
    let node = world.any_node(random);
    if *action == Action::Get {
        let consistency = if random.chance(250) { Consistency::Lease } else { Consistency::Linearizable };
        return world.query_once(node, "kv", consistency, &bytes).await;
    }
    match session {
        Some(session) => match world.apply_surely(random, "kv", session, &bytes).await {
            Ok(applied) => Told::Done(applied),
            Err(error) => Told::Answered(error),
        },
        None => {
            let request = ApplyRequest {
                group: "kv".to_string(),
                session: None,
                sequence: None,
                command: Bytes::from(bytes),
                timeout_ms: Some(random.between(300, 4000)),
            };
            let patience = random.chance(30).then(|| random.between(1, 50));
            world.apply_once(node, request, patience).await
        }
    }
}

/// What the clients of the counter were told.
#[derive(Default)]
pub struct Increments {
    /// The counter after each acknowledged increment, and its index.
    pub acknowledged: Vec<(i64, u64)>,
    pub placed: Vec<Placed>,
}

pub type SharedIncrements = Arc<Mutex<Increments>>;

/// Adds one, again and again, each time until it is acknowledged; sometimes two at once.
pub async fn counter(world: Shared, increments: SharedIncrements, mut random: SimRandom, pause_ms: u64) {
    let mut session = world.open_session(&mut random, "counter", FOR_EVER_MS).await;
    let note = |world: &Shared, called: u64, outcome: Result<Applied, statehouse::service::ServiceError>| match outcome
    {
        Ok(Applied { index, reply }) => match std::str::from_utf8(&reply).unwrap_or_default().parse() {
            Ok(value) => {
                let mut increments = increments.lock().unwrap();
                increments.acknowledged.push((value, index));
                increments.placed.push(Placed { called, returned: now(), index, is_write: true });
            }
            Err(_) => world.problem(format!("the counter answered {reply:?}")),
        },
        Err(error) => world.problem(format!("an increment was answered {error}")),
    };
    while !world.stopped() {
        sleep_ms(random.between(0, pause_ms)).await;
        let called = now();
        if random.chance(200) {
            let (first, second) = (session.sequence + 1, session.sequence + 2);
            session.sequence = second;
            let mut one = random.fork(1);
            let mut two = random.fork(2);
            random.draw();
            let both = futures_util::future::join(
                world.apply_numbered(&mut one, "counter", &session, first, br#"{"Add":1}"#, false),
                world.apply_numbered(&mut two, "counter", &session, second, br#"{"Add":1}"#, true),
            );
            let (one, two) = both.await;
            note(&world, called, one);
            note(&world, called, two);
        } else {
            let outcome = world.apply_surely(&mut random, "counter", &mut session, br#"{"Add":1}"#).await;
            // A retry of what was applied long ago finds the same answer.
            if let (Ok(applied), true) = (&outcome, random.chance(50)) {
                let sequence = session.sequence;
                match world.apply_numbered(&mut random, "counter", &session, sequence, br#"{"Add":1}"#, false).await {
                    Ok(again) if again == *applied => world.count("answers kept for a retry"),
                    again => world.problem(format!("increment {sequence} was {applied:?}, and at a retry {again:?}")),
                }
            }
            note(&world, called, outcome);
        }
    }
}

/// Makes the brittle module trap, and counts what must have been counted.
pub async fn brittle(world: Shared, counted: Arc<Mutex<u64>>, mut random: SimRandom, pause_ms: u64) {
    let mut session = world.open_session(&mut random, "brittle", FOR_EVER_MS).await;
    while !world.stopped() {
        sleep_ms(random.between(0, pause_ms)).await;
        if random.chance(500) {
            match world.apply_surely(&mut random, "brittle", &mut session, b"+").await {
                Ok(applied) => {
                    let mut counted = counted.lock().unwrap();
                    *counted += 1;
                    if applied.reply[..] != counted.to_le_bytes() {
                        world.problem(format!("brittle counted {:?}, not {counted}", applied.reply));
                    }
                }
                Err(error) => world.problem(format!("brittle's `+` was answered {error}")),
            }
            continue;
        }
        let trap: &[u8] = random.pick(&TRAPS).unwrap();
        let told = if random.chance(500) {
            match world.apply_surely(&mut random, "brittle", &mut session, trap).await {
                Ok(applied) => Told::Done(applied),
                Err(error) => Told::Answered(error),
            }
        } else {
            let request = ApplyRequest {
                group: "brittle".to_string(),
                session: None,
                sequence: None,
                command: Bytes::copy_from_slice(trap),
                timeout_ms: Some(2000),
            };
            let node = world.any_node(&mut random);
            world.apply_once(node, request, None).await
        };
        match told {
            Told::Answered(error) if error.code == ErrorCode::Trapped => world.count("traps"),
            Told::Nothing(_) | Told::Unknown(_) => {}
            other => world.problem(format!("a command that traps was answered {other:?}")),
        }
    }
}

/// Puts keys that expire; looks that they stay as long as they must.
pub async fn expiry(world: Shared, mut random: SimRandom, skew_max_ms: u64) -> Vec<String> {
    let mut session = world.open_session(&mut random, "kv", FOR_EVER_MS).await;
    let mut keys = Vec::new();
    while !world.stopped() {
        sleep_ms(random.between(0, 1500)).await;
        let key = format!("ttl-{}", keys.len());
        let ttl_ms = random.between(200, 2000);
        let command = json!({"Put": {"key": key, "value": "v", "ttl_ms": ttl_ms}}).to_string();
        let called_ms = now_ms();
        if let Err(error) = world.apply_surely(&mut random, "kv", &mut session, command.as_bytes()).await {
            world.problem(format!("{command}: {error}"));
        }
        keys.push(key.clone());
        sleep_ms(random.between(0, ttl_ms)).await;
        let node = world.any_node(&mut random);
        let query = json!({"Get": {"key": key}}).to_string();
        if let Told::Done(applied) = world.query_once(node, "kv", Consistency::Linearizable, query.as_bytes()).await
            && &applied.reply[..] == b"null"
            && now_ms() + skew_max_ms < called_ms + ttl_ms
        {
            world.problem(format!("{key} lives {ttl_ms} ms from {called_ms} ms and was gone at {} ms", now_ms()));
        }
    }
    keys
}

/// Opens short sessions with a key each and leaves them: sessions and keys must go.
pub async fn forgetful(world: Shared, mut random: SimRandom) -> Vec<String> {
    let mut keys = Vec::new();
    while !world.stopped() {
        sleep_ms(random.between(200, 2000)).await;
        let mut session = world.open_session(&mut random, "kv", 1000).await;
        let key = format!("ephemeral-{}", keys.len());
        let command = json!({"Put": {"key": key, "value": "v", "ephemeral": true}}).to_string();
        match world.apply_surely(&mut random, "kv", &mut session, command.as_bytes()).await {
            Ok(_) => {}
            // It took so long that the session is over.
            Err(error) if error.code == ErrorCode::SessionNotFound => world.count("sessions that ended early"),
            Err(error) => world.problem(format!("{command}: {error}")),
        }
        keys.push(key);
    }
    keys
}

/// What one subscription gave without a gap: the first index it covers, and its events.
pub struct Stretch {
    pub from: u64,
    pub events: Vec<(u64, u32, Bytes)>,
}

pub type Stretches = Arc<Mutex<Vec<Stretch>>>;

/// Follows the events of a group through whichever node is there, from where it was.
pub async fn subscriber(world: Shared, stretches: Stretches, group: &'static str, mut random: SimRandom) {
    let next = Arc::new(Mutex::new(1));
    while !world.stopped() {
        let node = world.any_node(&mut random);
        let from = *next.lock().unwrap();
        let (stretches, next, inner) = (stretches.clone(), next.clone(), world.clone());
        let following = world.cluster.call(node, move |node| async move {
            let Ok(mut items) = node.events(group.to_string(), Some(from)).await else { return };
            let mut current = Stretch { from, events: Vec::new() };
            let mut last = None;
            // What was seen before a crash counts.
            while let Ok(Some(item)) = LifeRuntime::timeout(std::time::Duration::from_millis(700), items.next()).await {
                match item {
                    EventItem::Gap { next: to, .. } => {
                        inner.count("gaps in events");
                        stretches
                            .lock()
                            .unwrap()
                            .push(std::mem::replace(&mut current, Stretch { from: to, events: Vec::new() }));
                        *next.lock().unwrap() = to;
                    }
                    EventItem::Event(event) => {
                        if last >= Some((event.index, event.number)) || event.index < current.from {
                            inner.problem(format!("event {}.{} came after {last:?}", event.index, event.number));
                        }
                        last = Some((event.index, event.number));
                        current.events.push((event.index, event.number, event.data));
                        // Entries may emit several: begin again with this one.
                        *next.lock().unwrap() = event.index;
                    }
                }
            }
            stretches.lock().unwrap().push(current);
        });
        let _crashed = following.await;
        sleep_ms(random.between(10, 300)).await;
    }
}
