//! The commands: their names, how many arguments they take, and how those that ask the store become
//! operations.

use std::borrow::Cow;

use super::op::Condition;
use super::op::Expiry;
use super::op::Op;
use super::op::TimeUnit;
use super::parse::Arguments;
use super::parse::integer;

/// How many keys a request may name: each that changes is an event, of which a host takes 10 000 an
/// entry.
pub const KEYS_MAX: usize = 8_000;

/// What Redis says when an option is not as it should be.
pub const SYNTAX: &str = "ERR syntax error";
/// What it says of a number.
pub const NOT_INTEGER: &str = "ERR value is not an integer or out of range";

/// An error's text.
pub type Refusal = Cow<'static, str>;

/// Turns arguments into an operation's bytes.
pub type Build = fn(&Arguments<'_>, u64, &mut Vec<u8>) -> Result<(), Refusal>;

/// A command.
#[derive(Debug)]
pub struct Command {
    /// In capitals.
    pub name: &'static str,
    /// How many arguments, with the name; at least so many if negative.
    pub arity: i32,
    /// Which arguments are keys: the first, the last (negative from behind), in steps of.
    pub keys: (i32, i32, i32),
    /// What it does.
    pub action: Action,
}

/// What a command does.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Changes the store. Gets the arguments, this node's clock, and where the operation goes.
    Write(Build),
    /// Asks it, for little.
    Read(Build),
    /// Asks for what may be much: never part of an entry unless in a transaction.
    Scan(Build),
    /// Something else.
    Own(Own),
}

/// What the adapter does itself, or not alone by arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Own {
    Auth,
    Client,
    CommandList,
    Config,
    Discard,
    Echo,
    Exec,
    Hello,
    Info,
    Multi,
    PSubscribe,
    PUnsubscribe,
    Ping,
    PubSub,
    Publish,
    Quit,
    RandomKey,
    Reset,
    Scan,
    Select,
    Subscribe,
    Time,
    Unsubscribe,
    Unwatch,
    Wait,
    Watch,
}

const NO_KEYS: (i32, i32, i32) = (0, 0, 0);
const ONE_KEY: (i32, i32, i32) = (1, 1, 1);
const ALL_KEYS: (i32, i32, i32) = (1, -1, 1);

const fn own(name: &'static str, arity: i32, own: Own) -> Command {
    Command { name, arity, keys: NO_KEYS, action: Action::Own(own) }
}

const fn write(name: &'static str, arity: i32, keys: (i32, i32, i32), build: Build) -> Command {
    Command { name, arity, keys, action: Action::Write(build) }
}

const fn read(name: &'static str, arity: i32, keys: (i32, i32, i32), build: Build) -> Command {
    Command { name, arity, keys, action: Action::Read(build) }
}

/// All commands, by name.
pub const COMMANDS: &[Command] = &[
    write("APPEND", 3, ONE_KEY, |a, _, out| put(out, &Op::Append(a.get(1), a.get(2)))),
    own("AUTH", -2, Own::Auth),
    own("CLIENT", -2, Own::Client),
    own("COMMAND", -1, Own::CommandList),
    own("CONFIG", -2, Own::Config),
    read("DBSIZE", 1, NO_KEYS, |_, _, out| put(out, &Op::DbSize)),
    write("DECR", 2, ONE_KEY, |a, _, out| put(out, &Op::IncrBy(a.get(1), -1))),
    write("DECRBY", 3, ONE_KEY, |a, _, out| {
        let by = number(a.get(2))?.checked_neg().ok_or("ERR decrement would overflow")?;
        put(out, &Op::IncrBy(a.get(1), by))
    }),
    write("DEL", -2, ALL_KEYS, |a, _, out| put(out, &Op::Del(keys(a)?))),
    own("DISCARD", 1, Own::Discard),
    own("ECHO", 2, Own::Echo),
    own("EXEC", 1, Own::Exec),
    read("EXISTS", -2, ALL_KEYS, |a, _, out| put(out, &Op::Exists(keys(a)?))),
    write("EXPIRE", -3, ONE_KEY, |a, now_ms, out| expire(a, Unit::Seconds, false, "expire", now_ms, out)),
    write("EXPIREAT", -3, ONE_KEY, |a, now_ms, out| expire(a, Unit::Seconds, true, "expireat", now_ms, out)),
    read("EXPIRETIME", 2, ONE_KEY, |a, _, out| put(out, &Op::Ttl(a.get(1), TimeUnit::UnixSeconds))),
    write("FLUSHALL", -1, NO_KEYS, |a, _, out| flush(a, out)),
    write("FLUSHDB", -1, NO_KEYS, |a, _, out| flush(a, out)),
    read("GET", 2, ONE_KEY, |a, _, out| put(out, &Op::Get(a.get(1)))),
    write("GETDEL", 2, ONE_KEY, |a, _, out| put(out, &Op::GetDel(a.get(1)))),
    write("GETEX", -2, ONE_KEY, get_ex),
    read("GETRANGE", 4, ONE_KEY, |a, _, out| put(out, &Op::GetRange(a.get(1), number(a.get(2))?, number(a.get(3))?))),
    write("GETSET", 3, ONE_KEY, |a, _, out| set(out, a.get(1), a.get(2), Expiry::Forever, true)),
    own("HELLO", -1, Own::Hello),
    write("INCR", 2, ONE_KEY, |a, _, out| put(out, &Op::IncrBy(a.get(1), 1))),
    write("INCRBY", 3, ONE_KEY, |a, _, out| put(out, &Op::IncrBy(a.get(1), number(a.get(2))?))),
    own("INFO", -1, Own::Info),
    Command { name: "KEYS", arity: 2, keys: NO_KEYS, action: Action::Scan(|a, _, out| put(out, &Op::Keys(a.get(1)))) },
    Command {
        name: "MGET",
        arity: -2,
        keys: ALL_KEYS,
        action: Action::Scan(|a, _, out| put(out, &Op::MGet(keys(a)?))),
    },
    write("MSET", -3, (1, -1, 2), |a, _, out| set_all(a, "mset", false, out)),
    write("MSETNX", -3, (1, -1, 2), |a, _, out| set_all(a, "msetnx", true, out)),
    own("MULTI", 1, Own::Multi),
    write("PERSIST", 2, ONE_KEY, |a, _, out| put(out, &Op::Persist(a.get(1)))),
    write("PEXPIRE", -3, ONE_KEY, |a, now_ms, out| expire(a, Unit::Millis, false, "pexpire", now_ms, out)),
    write("PEXPIREAT", -3, ONE_KEY, |a, now_ms, out| expire(a, Unit::Millis, true, "pexpireat", now_ms, out)),
    read("PEXPIRETIME", 2, ONE_KEY, |a, _, out| put(out, &Op::Ttl(a.get(1), TimeUnit::UnixMillis))),
    own("PING", -1, Own::Ping),
    write("PSETEX", 4, ONE_KEY, |a, now_ms, out| {
        let expiry = Expiry::After(time(a.get(2), Unit::Millis, false, "psetex", now_ms)?);
        set(out, a.get(1), a.get(3), expiry, false)
    }),
    own("PSUBSCRIBE", -2, Own::PSubscribe),
    read("PTTL", 2, ONE_KEY, |a, _, out| put(out, &Op::Ttl(a.get(1), TimeUnit::MillisLeft))),
    own("PUBLISH", 3, Own::Publish),
    own("PUBSUB", -2, Own::PubSub),
    own("PUNSUBSCRIBE", -1, Own::PUnsubscribe),
    own("QUIT", -1, Own::Quit),
    own("RANDOMKEY", 1, Own::RandomKey),
    write("RENAME", 3, (1, 2, 1), |a, _, out| put(out, &Op::Rename(a.get(1), a.get(2), false))),
    write("RENAMENX", 3, (1, 2, 1), |a, _, out| put(out, &Op::Rename(a.get(1), a.get(2), true))),
    own("RESET", 1, Own::Reset),
    own("SCAN", -2, Own::Scan),
    own("SELECT", 2, Own::Select),
    write("SET", -3, ONE_KEY, set_command),
    write("SETEX", 4, ONE_KEY, |a, now_ms, out| {
        let expiry = Expiry::After(time(a.get(2), Unit::Seconds, false, "setex", now_ms)?);
        set(out, a.get(1), a.get(3), expiry, false)
    }),
    write("SETNX", 3, ONE_KEY, |a, _, out| put(out, &Op::SetNx(a.get(1), a.get(2)))),
    write("SETRANGE", 4, ONE_KEY, |a, _, out| {
        let at = u64::try_from(number(a.get(2))?).map_err(|_| "ERR offset is out of range")?;
        put(out, &Op::SetRange(a.get(1), at, a.get(3)))
    }),
    read("STRLEN", 2, ONE_KEY, |a, _, out| put(out, &Op::StrLen(a.get(1)))),
    own("SUBSCRIBE", -2, Own::Subscribe),
    read("SUBSTR", 4, ONE_KEY, |a, _, out| put(out, &Op::GetRange(a.get(1), number(a.get(2))?, number(a.get(3))?))),
    own("TIME", 1, Own::Time),
    read("TOUCH", -2, ALL_KEYS, |a, _, out| put(out, &Op::Exists(keys(a)?))),
    read("TTL", 2, ONE_KEY, |a, _, out| put(out, &Op::Ttl(a.get(1), TimeUnit::SecondsLeft))),
    read("TYPE", 2, ONE_KEY, |a, _, out| put(out, &Op::Type(a.get(1)))),
    write("UNLINK", -2, ALL_KEYS, |a, _, out| put(out, &Op::Del(keys(a)?))),
    own("UNSUBSCRIBE", -1, Own::Unsubscribe),
    own("UNWATCH", 1, Own::Unwatch),
    own("WAIT", 3, Own::Wait),
    own("WATCH", -2, Own::Watch),
];

/// The command of this name, in any case.
pub fn find(name: &[u8]) -> Option<&'static Command> {
    let mut capitals = [0; 16];
    let capitals = capitals.get_mut(..name.len())?;
    capitals.copy_from_slice(name);
    capitals.make_ascii_uppercase();
    let at = COMMANDS.binary_search_by(|command| command.name.as_bytes().cmp(capitals)).ok()?;
    COMMANDS.get(at)
}

impl Command {
    /// Whether it takes so many arguments, with its name.
    pub fn takes(&self, count: usize) -> bool {
        let arity = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { count >= arity } else { count == arity }
    }
}

/// What Redis says of a wrong number of arguments.
pub fn wrong_number(name: &str) -> Refusal {
    format!("ERR wrong number of arguments for '{}' command", name.to_ascii_lowercase()).into()
}

fn put(out: &mut Vec<u8>, op: &Op<'_>) -> Result<(), Refusal> {
    op.encode(out);
    Ok(())
}

fn set(out: &mut Vec<u8>, key: &[u8], value: &[u8], expiry: Expiry, get: bool) -> Result<(), Refusal> {
    put(out, &Op::Set { key, value, expiry, condition: Condition::Always, get })
}

/// A number, or Redis's words.
pub fn number(text: &[u8]) -> Result<i64, Refusal> {
    integer(text).ok_or(Refusal::Borrowed(NOT_INTEGER))
}

/// All arguments behind the name.
pub fn keys<'a>(arguments: &Arguments<'a>) -> Result<Vec<&'a [u8]>, Refusal> {
    if arguments.len() > KEYS_MAX {
        return Err(format!("ERR too many keys: at most {} in one request", KEYS_MAX - 1).into());
    }
    Ok(arguments.from(1).collect())
}

fn set_all(arguments: &Arguments<'_>, name: &str, only_new: bool, out: &mut Vec<u8>) -> Result<(), Refusal> {
    if arguments.len().is_multiple_of(2) {
        return Err(wrong_number(name));
    }
    if arguments.len() / 2 > KEYS_MAX {
        return Err(format!("ERR too many keys: at most {KEYS_MAX} in one request").into());
    }
    let pairs = (1..arguments.len()).step_by(2).map(|at| (arguments.get(at), arguments.get(at + 1)));
    put(out, &Op::MSet(pairs.collect(), only_new))
}

fn flush(arguments: &Arguments<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
    match arguments.len() {
        1 => put(out, &Op::Flush),
        2 if is(arguments.get(1), "SYNC") || is(arguments.get(1), "ASYNC") => put(out, &Op::Flush),
        _ => Err(SYNTAX.into()),
    }
}

/// Whether the argument is this word, in any case.
pub fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Seconds,
    Millis,
}

/// An option's time in milliseconds, above 0; `name` is the command's.
fn time(text: &[u8], unit: Unit, is_absolute: bool, name: &str, now_ms: u64) -> Result<u64, Refusal> {
    let time = number(text)?;
    let ms = if time > 0 { millis(time, unit, is_absolute, now_ms) } else { None };
    ms.and_then(|ms| u64::try_from(ms).ok()).ok_or_else(|| invalid_time(name))
}

fn invalid_time(name: &str) -> Refusal {
    format!("ERR invalid expire time in '{name}' command").into()
}

/// Milliseconds, if a Unix time that far can still be counted.
fn millis(time: i64, unit: Unit, is_absolute: bool, now_ms: u64) -> Option<i64> {
    let ms = if unit == Unit::Seconds { time.checked_mul(1_000)? } else { time };
    if !is_absolute {
        ms.checked_add(i64::try_from(now_ms).ok()?)?;
    }
    Some(ms)
}

/// `EX`, `PX`, `EXAT`, `PXAT`: the unit and whether the time is absolute.
fn time_option(word: &[u8]) -> Option<(Unit, bool)> {
    let options = [
        ("EX", (Unit::Seconds, false)),
        ("PX", (Unit::Millis, false)),
        ("EXAT", (Unit::Seconds, true)),
        ("PXAT", (Unit::Millis, true)),
    ];
    options.iter().find(|(name, _)| is(word, name)).map(|(_, option)| *option)
}

fn expiry_of(ms: u64, is_absolute: bool) -> Expiry {
    if is_absolute { Expiry::At(ms) } else { Expiry::After(ms) }
}

fn set_command(arguments: &Arguments<'_>, now_ms: u64, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let (mut condition, mut get) = (Condition::Always, false);
    // Redis reads all options before it looks at the time.
    let (mut keeps, mut timed) = (false, None);
    let mut options = arguments.from(3);
    while let Some(word) = options.next() {
        let has_expiry = keeps || timed.is_some();
        if is(word, "NX") && condition != Condition::Present {
            condition = Condition::Absent;
        } else if is(word, "XX") && condition != Condition::Absent {
            condition = Condition::Present;
        } else if is(word, "GET") {
            get = true;
        } else if is(word, "KEEPTTL") && timed.is_none() {
            keeps = true;
        } else if let (Some(option), false) = (time_option(word), has_expiry) {
            timed = Some((option, options.next().ok_or(SYNTAX)?));
        } else {
            return Err(SYNTAX.into());
        }
    }
    let expiry = match timed {
        Some(((unit, is_absolute), text)) => expiry_of(time(text, unit, is_absolute, "set", now_ms)?, is_absolute),
        None if keeps => Expiry::Keep,
        None => Expiry::Forever,
    };
    put(out, &Op::Set { key: arguments.get(1), value: arguments.get(2), expiry, condition, get })
}

fn get_ex(arguments: &Arguments<'_>, now_ms: u64, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let expiry = match (arguments.len(), arguments.get(2), arguments.get(3)) {
        (2, ..) => Expiry::Keep,
        (3, word, _) if is(word, "PERSIST") => Expiry::Forever,
        (4, word, text) => {
            let (unit, is_absolute) = time_option(word).ok_or(SYNTAX)?;
            expiry_of(time(text, unit, is_absolute, "getex", now_ms)?, is_absolute)
        }
        _ => return Err(SYNTAX.into()),
    };
    put(out, &Op::GetEx(arguments.get(1), expiry))
}

fn expire(
    arguments: &Arguments<'_>,
    unit: Unit,
    is_absolute: bool,
    name: &str,
    now_ms: u64,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let [mut absent, mut present, mut later, mut earlier] = [false; 4];
    for word in arguments.from(3) {
        let flags = [("NX", &mut absent), ("XX", &mut present), ("GT", &mut later), ("LT", &mut earlier)];
        match flags.into_iter().find(|(flag, _)| is(word, flag)) {
            Some((_, flag)) => *flag = true,
            None => return Err(format!("ERR Unsupported option {}", String::from_utf8_lossy(word)).into()),
        }
    }
    if absent && (present || later || earlier) {
        return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
    }
    let condition = match (absent, present, later, earlier) {
        (_, _, true, true) => return Err("ERR GT and LT options at the same time are not compatible".into()),
        (true, ..) => Condition::Absent,
        (_, _, true, _) => Condition::Later,
        (_, true, _, true) => Condition::PresentEarlier,
        (_, _, _, true) => Condition::Earlier,
        (_, true, ..) => Condition::Present,
        _ => Condition::Always,
    };
    let ms = millis(number(arguments.get(2))?, unit, is_absolute, now_ms).ok_or_else(|| invalid_time(name))?;
    let expiry = expiry_of(u64::try_from(ms).unwrap_or(0), is_absolute);
    put(out, &Op::Expire(arguments.get(1), expiry, condition))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn commands_are_found_in_any_case() {
        assert!(COMMANDS.is_sorted_by(|one, other| one.name < other.name), "the search is binary");
        for command in COMMANDS {
            assert_eq!(find(command.name.to_ascii_lowercase().as_bytes()).unwrap().name, command.name);
        }
        assert!(find(b"").is_none() && find(b"GETS").is_none() && find(&[b'A'; 100]).is_none());
    }
}
