//! Native tests of a state machine: `cargo test`, no host, no WebAssembly.
//!
//! [`Harness`] plays the host: it gives entries an index, a time and a seed, keeps the timers and
//! collects the events. It runs the machine as **three replicas**, and on every step checks what a
//! cluster would otherwise find out in production:
//!
//! | replica | what it finds |
//! |---|---|
//! | *live*: applies every entry | |
//! | *twin*: applies every entry too | what differs between two runs: `HashMap` order, a clock, an address |
//! | *restored*: made from the snapshot before every entry | what is missing in the snapshot |
//!
//! All three must give equal replies, events, timers and snapshots; a snapshot restored must write
//! the same snapshot; a query and a rejected command must leave the snapshot as it was. A violation
//! panics with what differs and what the usual cause is. Commands, queries and answers pass through
//! the machine's codec, as bytes do in a cluster.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use statehouse_sdk::testing::Harness;
//! use statehouse_sdk::{Context, QueryContext, Reject, StateMachine};
//!
//! /// Wakes people up.
//! #[derive(Default, Serialize, Deserialize)]
//! struct Alarms { rung: u64 }
//!
//! #[derive(Serialize, Deserialize)]
//! struct RingIn { ms: u64 }
//!
//! impl StateMachine for Alarms {
//!     type Command = RingIn;
//!     type Reply = ();
//!     type Query = ();
//!     type Answer = u64;
//!
//!     fn apply(&mut self, ctx: &mut Context<'_>, command: RingIn) -> Result<(), Reject> {
//!         let id = ctx.random_u64();
//!         ctx.set_timer_after(id, command.ms);
//!         Ok(())
//!     }
//!     fn query(&self, _: &QueryContext, _: ()) -> Result<u64, Reject> {
//!         Ok(self.rung)
//!     }
//!     fn on_timer(&mut self, ctx: &mut Context<'_>, _: u64) {
//!         self.rung += 1;
//!         ctx.emit("ring");
//!     }
//! }
//!
//! let mut harness = Harness::<Alarms>::new();
//! harness.apply(RingIn { ms: 500 })?;
//! assert_eq!(harness.apply_text(r#"{"ms":900}"#)?, "null");
//! harness.advance(600);
//! assert_eq!(harness.take_events(), ["ring"]);
//! assert_eq!(harness.query(())?, 1);
//! # Ok::<(), Reject>(())
//! ```

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::codec::Codec;
use crate::codec::Encode;
use crate::codec::Json;
use crate::context::Effects;
use crate::context::Header;
use crate::guest::Guest;
use crate::machine::StateMachine;
use crate::random::Random;
use crate::reject::Reject;

/// The virtual clock's first time, Unix milliseconds: a November evening of 2023.
pub const START_MS: u64 = 1_700_000_000_000;

/// So often may timers fire while the clock stands still; a real group would never come to rest
/// either.
const MAX_FIRINGS_AT_ONE_TIME: u32 = 100_000;

thread_local! {
    /// Set while the twin and the restored replica run, so that a log line is printed once.
    static MUTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether log lines are not to be printed now.
pub(crate) fn is_muted() -> bool {
    MUTED.get()
}

/// What one call gave, as the host would see it.
#[derive(Debug, PartialEq)]
struct Outcome {
    reply: Result<Vec<u8>, Reject>,
    effects: Effects,
}

/// A call into one replica: the effects, the argument, and where the reply goes.
type Call<'a, M, C, T> = &'a dyn Fn(&mut Guest<M, C>, &mut Effects, &[u8], &mut Vec<u8>) -> Result<T, Reject>;

/// A host for native tests; see the [module](self).
#[derive(Debug)]
pub struct Harness<M, C = Json> {
    live: Guest<M, C>,
    twin: Guest<M, C>,
    restored: Guest<M, C>,
    /// The live replica's, after the last checked step.
    snapshot: Vec<u8>,
    index: u64,
    time_ms: u64,
    /// Of the last applied entry: what queries see.
    header: Header,
    timers: BTreeMap<u64, u64>,
    events: Vec<Vec<u8>>,
    sessions: u64,
    check_every: u64,
    unchecked_steps: u64,
}

impl<M: StateMachine, C: Codec<M>> Default for Harness<M, C> {
    #[track_caller]
    fn default() -> Self {
        Self::new()
    }
}

impl<M: StateMachine, C: Codec<M>> Harness<M, C> {
    /// A new group without params.
    ///
    /// # Panics
    /// If the machine's `init` rejects that; like every method here, if a check fails.
    #[track_caller]
    pub fn new() -> Self {
        Self::with_params("{}")
    }

    /// A new group with these params, a JSON object.
    ///
    /// # Panics
    /// If the machine's `init` rejects them.
    #[track_caller]
    pub fn with_params(json: &str) -> Self {
        match Self::try_with_params(json) {
            Ok(harness) => harness,
            Err(reject) => panic!("init rejected {json}: {reject}"),
        }
    }

    /// A new group with these params, or the rejection of `init`.
    #[track_caller]
    pub fn try_with_params(json: &str) -> Result<Self, Reject> {
        let mut harness = Self {
            live: Guest::default(),
            twin: Guest::default(),
            restored: Guest::default(),
            snapshot: Vec::new(),
            index: 0,
            time_ms: START_MS,
            header: Header::default(),
            timers: BTreeMap::new(),
            events: Vec::new(),
            sessions: 0,
            check_every: 1,
            unchecked_steps: 0,
        };
        harness.snapshot = snapshot_of(&harness.live);
        harness.step("init", 0, json.as_bytes(), &|guest, host, argument, _| guest.init(host, argument))?;
        // Nobody can listen yet.
        harness.events.clear();
        Ok(harness)
    }

    /// Checks after every `steps`-th step only: each check writes the whole state out a few times,
    /// which a test with a large state and many commands may not want. Replies, events and timers
    /// are compared on every step all the same.
    pub fn check_every(mut self, steps: u64) -> Self {
        self.check_every = steps.max(1);
        self
    }

    /// Applies a command, outside of a session.
    #[track_caller]
    pub fn apply(&mut self, command: M::Command) -> Result<M::Reply, Reject>
    where
        C: Encode<M::Command>,
    {
        self.apply_in(0, command)
    }

    /// Applies a command sent in a session (0 for none).
    #[track_caller]
    pub fn apply_in(&mut self, session: u64, command: M::Command) -> Result<M::Reply, Reject>
    where
        C: Encode<M::Command>,
    {
        let payload = encoded::<C, _>(&command, "command");
        self.step("apply", session, &payload, &|guest, host, argument, reply| guest.apply_typed(host, argument, reply))
            .map(|(value, _)| value)
    }

    /// Applies a command as a client sends it (session 0 for none), and gives the reply's bytes.
    #[track_caller]
    pub fn apply_bytes(&mut self, session: u64, command: &[u8]) -> Result<Vec<u8>, Reject> {
        self.step("apply", session, command, &|guest, host, argument, reply| guest.apply(host, argument, reply))
            .map(|(_, reply)| reply)
    }

    /// [`apply_bytes`](Self::apply_bytes) for text both ways, outside of a session: what `curl`
    /// would show.
    #[track_caller]
    pub fn apply_text(&mut self, command: &str) -> Result<String, Reject> {
        self.apply_bytes(0, command.as_bytes()).map(text)
    }

    /// Asks a query.
    #[track_caller]
    pub fn query(&mut self, query: M::Query) -> Result<M::Answer, Reject>
    where
        C: Encode<M::Query>,
    {
        let payload = encoded::<C, _>(&query, "query");
        self.ask(&payload, &|guest, _, argument, answer| guest.query_typed(argument, answer)).map(|(value, _)| value)
    }

    /// Asks a query as a client sends it, and gives the answer's bytes.
    #[track_caller]
    pub fn query_bytes(&mut self, query: &[u8]) -> Result<Vec<u8>, Reject> {
        self.ask(query, &|guest, _, argument, answer| guest.query(argument, answer)).map(|(_, answer)| answer)
    }

    /// [`query_bytes`](Self::query_bytes) for text both ways.
    #[track_caller]
    pub fn query_text(&mut self, query: &str) -> Result<String, Reject> {
        self.query_bytes(query.as_bytes()).map(text)
    }

    /// A new session's id, for [`apply_in`](Self::apply_in). The machine is not told, as in a
    /// cluster.
    pub fn open_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// Ends a session: the machine's `on_session_end` is called.
    #[track_caller]
    pub fn end_session(&mut self, session: u64) {
        let ended =
            self.step("session_end", session, &[], &|guest, host, argument, _| guest.session_end(host, argument));
        accepted(ended, "session_end");
    }

    /// Lets time pass. Timers whose time comes fire in the order of their times (then ids), each by
    /// an entry of its own at its very time, also those set meanwhile. Gives how many fired.
    ///
    /// # Panics
    /// If timers keep setting themselves for a time that has come.
    #[track_caller]
    pub fn advance(&mut self, by_ms: u64) -> u64 {
        let until_ms = self.time_ms.saturating_add(by_ms);
        let (mut fired, mut at_this_time) = (0, 0);
        while let Some((at_ms, id)) = self.timers.iter().map(|(id, at_ms)| (*at_ms, *id)).min() {
            if at_ms > until_ms {
                break;
            }
            at_this_time = if at_ms > self.time_ms { 0 } else { at_this_time + 1 };
            assert!(
                at_this_time < MAX_FIRINGS_AT_ONE_TIME,
                "timer {id} keeps being set for a time that has come: the group would never rest"
            );
            self.time_ms = self.time_ms.max(at_ms);
            self.timers.remove(&id);
            let ended =
                self.step("timer", 0, &id.to_le_bytes(), &|guest, host, argument, _| guest.timer(host, argument));
            accepted(ended, "timer");
            fired += 1;
        }
        self.time_ms = until_ms;
        fired
    }

    /// Restarts the live replica: it goes on from its snapshot, as after a crash of its node.
    #[track_caller]
    pub fn restart(&mut self) {
        let snapshot = snapshot_of(&self.live);
        self.live = restored_from(&snapshot);
    }

    /// The events since the last time, in order. They compare with text and bytes alike.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events).into_iter().map(Event).collect()
    }

    /// The timers that are set: their times by their ids.
    pub fn timers(&self) -> &BTreeMap<u64, u64> {
        &self.timers
    }

    /// The virtual clock, Unix milliseconds; [`START_MS`] at first.
    pub fn now_ms(&self) -> u64 {
        self.time_ms
    }

    /// The last entry's index. `init` is entry 1.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The live replica's state.
    pub fn machine(&self) -> &M {
        self.live.machine()
    }

    /// The live replica's snapshot.
    #[track_caller]
    pub fn snapshot(&self) -> Vec<u8> {
        snapshot_of(&self.live)
    }

    /// Checks now that the replicas agree and that the snapshot brings the state back, whatever
    /// [`check_every`](Self::check_every) says.
    #[track_caller]
    pub fn check(&mut self) {
        self.check_snapshots("check");
    }

    /// One entry: all replicas make the same call, and must come out equal.
    #[track_caller]
    fn step<T>(
        &mut self,
        what: &str,
        session: u64,
        payload: &[u8],
        call: Call<'_, M, C, T>,
    ) -> Result<(T, Vec<u8>), Reject> {
        self.index += 1;
        let mut seeds = Random::new(self.index, 0);
        let seed = (seeds.next_u64(), seeds.next_u64());
        let header = Header { index: self.index, time_ms: self.time_ms, seed, session };
        let argument = [&header.to_bytes(), payload].concat();
        let what = format!("entry {} ({what} {})", self.index, shown(payload));

        let (value, outcome) = run(&mut self.live, &argument, call);
        MUTED.set(true);
        let (_, twin) = run(&mut self.twin, &argument, call);
        let (_, restored) = run(&mut self.restored, &argument, call);
        MUTED.set(false);
        compare_outcomes(&what, &outcome, &twin, TWIN);
        compare_outcomes(&what, &outcome, &restored, RESTORED);

        self.unchecked_steps += 1;
        let check = self.unchecked_steps >= self.check_every;
        if outcome.reply.is_err() {
            let effects = &outcome.effects;
            assert!(
                effects.is_empty(),
                "{what} was rejected, but emitted {} events and made {} timer changes. A rejection promises that nothing changed: check first, then act.",
                effects.events.len(),
                effects.timers.len()
            );
            if check && self.unchecked_steps == 1 {
                let after = snapshot_of(&self.live);
                assert!(
                    self.snapshot == after,
                    "{what} was rejected, but changed the state: {}. A rejection promises that nothing changed: check first, then change.",
                    difference(&self.snapshot, &after)
                );
            }
        }
        if check {
            self.check_snapshots(&what);
        }

        self.header = header;
        for (id, at_ms) in outcome.effects.timers {
            match at_ms {
                Some(at_ms) => self.timers.insert(id, at_ms),
                None => self.timers.remove(&id),
            };
        }
        self.events.extend(outcome.effects.events);
        Ok((value?, outcome.reply?))
    }

    /// One query: all replicas must answer alike and stay as they are.
    #[track_caller]
    fn ask<T>(&mut self, payload: &[u8], call: Call<'_, M, C, T>) -> Result<(T, Vec<u8>), Reject> {
        let argument = [&self.header.to_bytes(), payload].concat();
        let what = format!("the query {}", shown(payload));
        let before = snapshot_of(&self.live);
        let (value, outcome) = run(&mut self.live, &argument, call);
        let after = snapshot_of(&self.live);
        assert!(
            before == after,
            "{what} changed the state: {}. Queries run on one replica only, so they must not: is there a Cell or RefCell in the state?",
            difference(&before, &after)
        );
        MUTED.set(true);
        let (_, twin) = run(&mut self.twin, &argument, call);
        let (_, restored) = run(&mut self.restored, &argument, call);
        MUTED.set(false);
        compare_outcomes(&what, &outcome, &twin, TWIN);
        compare_outcomes(&what, &outcome, &restored, RESTORED);
        Ok((value?, outcome.reply?))
    }

    #[track_caller]
    fn check_snapshots(&mut self, what: &str) {
        let live = snapshot_of(&self.live);
        let twin = snapshot_of(&self.twin);
        assert!(
            live == twin,
            "after {what}, two replicas that applied the same entries write different snapshots: {}. {TWIN}",
            difference(&live, &twin)
        );
        let restored = snapshot_of(&self.restored);
        assert!(
            live == restored,
            "after {what}, a replica that was restored from an earlier snapshot writes another one: {}. {RESTORED}",
            difference(&live, &restored)
        );
        self.restored = restored_from(&live);
        let again = snapshot_of(&self.restored);
        assert!(
            live == again,
            "after {what}, the snapshot does not bring the state back: restored, it writes another one: {}. {RESTORED}",
            difference(&live, &again)
        );
        self.snapshot = live;
        self.unchecked_steps = 0;
    }
}

/// An event's bytes, which print and compare as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Event(pub Vec<u8>);

impl Event {
    /// The event as text; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.text())
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<&T> for Event {
    fn eq(&self, other: &&T) -> bool {
        self.0 == other.as_ref()
    }
}

/// Usual causes of a difference to the twin.
const TWIN: &str = "Something decides here that is not in the log. Usual causes: the order of a HashMap or HashSet (use BTreeMap, BTreeSet), a clock other than ctx.time_ms(), randomness other than ctx.random_u64(), a static or thread-local, an address.";
/// Usual causes of a difference to the restored replica.
const RESTORED: &str = "A replica that restarts would go on differently. Usual causes: a field that is not in the snapshot (#[serde(skip)]) and not rebuilt by restore, a static or thread-local, a HashMap or HashSet written in its own order (use BTreeMap, BTreeSet).";

fn run<M: StateMachine, C: Codec<M>, T>(
    guest: &mut Guest<M, C>,
    argument: &[u8],
    call: Call<'_, M, C, T>,
) -> (Result<T, Reject>, Outcome) {
    let (mut effects, mut reply) = (Effects::default(), Vec::new());
    match call(guest, &mut effects, argument, &mut reply) {
        Ok(value) => (Ok(value), Outcome { reply: Ok(reply), effects }),
        Err(reject) => (Err(reject.clone()), Outcome { reply: Err(reject), effects }),
    }
}

#[track_caller]
fn compare_outcomes(what: &str, live: &Outcome, other: &Outcome, causes: &str) {
    let replies = |outcome: &Outcome| match &outcome.reply {
        Ok(bytes) => shown(bytes),
        Err(reject) => format!("rejected: {reject}"),
    };
    let events = |outcome: &Outcome| outcome.effects.events.iter().map(|event| shown(event)).collect::<Vec<_>>();
    let found = if live.reply != other.reply {
        format!("other replies: {} and {}", replies(live), replies(other))
    } else if live.effects.events != other.effects.events {
        format!("other events: {:?} and {:?}", events(live), events(other))
    } else if live.effects.timers != other.effects.timers {
        format!("other timer changes: {:?} and {:?}", live.effects.timers, other.effects.timers)
    } else {
        return;
    };
    panic!("{what} gives two replicas {found}. {causes}");
}

#[track_caller]
fn accepted<T>(outcome: Result<T, Reject>, what: &str) {
    if let Err(reject) = outcome {
        panic!("{what} was rejected: {reject}");
    }
}

#[track_caller]
fn encoded<C: Encode<T>, T>(value: &T, what: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(why) = C::encode(value, &mut bytes) {
        panic!("the {what} cannot be encoded: {why}");
    }
    bytes
}

#[track_caller]
fn snapshot_of<M: StateMachine, C: Codec<M>>(guest: &Guest<M, C>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(reject) = guest.snapshot(&mut bytes) {
        panic!("the snapshot cannot be written: {reject}");
    }
    bytes
}

#[track_caller]
fn restored_from<M: StateMachine, C: Codec<M>>(snapshot: &[u8]) -> Guest<M, C> {
    let mut guest = Guest::default();
    let mut input = snapshot;
    if let Err(reject) = guest.restore(&mut input) {
        panic!("the machine cannot restore the snapshot it has written ({} bytes): {reject}", snapshot.len());
    }
    guest
}

/// Where two byte strings part, with some bytes of both.
fn difference(one: &[u8], other: &[u8]) -> String {
    let at = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    let around = |bytes: &[u8]| {
        let from = at.saturating_sub(8);
        let part = bytes.get(from..bytes.len().min(at.saturating_add(24))).unwrap_or_default();
        part.escape_ascii().to_string()
    };
    format!(
        "{} and {} bytes, equal up to byte {at}, there \"{}\" and \"{}\"",
        one.len(),
        other.len(),
        around(one),
        around(other)
    )
}

/// Bytes for a message: text, cut where it gets long.
fn shown(bytes: &[u8]) -> String {
    let full = String::from_utf8_lossy(bytes);
    match full.char_indices().nth(200) {
        Some((at, _)) => format!("{}… ({} bytes)", full.get(..at).unwrap_or_default(), bytes.len()),
        None => full.into_owned(),
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[path = "testing_tests.rs"]
mod tests;
