//! What a client asks about the server, and about itself.

use statehouse_sdk::adapter::ConnectionId;

use super::command::Action;
use super::command::COMMANDS;
use super::command::Command;
use super::command::Refusal;
use super::command::SYNTAX;
use super::command::find;
use super::command::is;
use super::command::wrong_number;
use super::connection::Connection;
use super::glob;
use super::parse::Arguments;
use super::parse::integer;
use super::reply::Protocol;
use super::reply::Reply;

/// The Redis whose commands these are: libraries decide by it what they may ask.
pub const REDIS_VERSION: &str = "7.0.15";

/// What is known of the node.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Its id.
    pub id: u64,
    /// How many clients are connected.
    pub connections: usize,
    /// How many requests were taken since the adapter began.
    pub requests: u64,
    /// When it began, Unix milliseconds.
    pub since_ms: u64,
    /// Now.
    pub now_ms: u64,
    /// Whether the group has a leader, and whether it is this node.
    pub leader: (bool, bool),
    /// How many channels and patterns somebody listens to.
    pub channels: (usize, usize),
}

/// The store's figures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// How many keys.
    pub keys: u64,
    /// How many of them have an expiry.
    pub expiring: u64,
    /// The version of the last change.
    pub version: u64,
}

fn unknown_subcommand(subcommand: &[u8], command: &str) -> Refusal {
    format!("ERR unknown subcommand '{}'. Try {command} HELP.", String::from_utf8_lossy(subcommand)).into()
}

/// `HELLO [version [AUTH name password] [SETNAME name]]`
pub fn hello(
    connection: &mut Connection,
    id: ConnectionId,
    arguments: &Arguments<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let protocol = match (arguments.len(), integer(arguments.get(1))) {
        (1, _) => connection.protocol,
        (_, Some(2)) => Protocol::Resp2,
        (_, Some(3)) => Protocol::Resp3,
        (_, Some(_)) => return Err("NOPROTO unsupported protocol version".into()),
        (_, None) => return Err("ERR Protocol version is not an integer or out of range".into()),
    };
    let mut name = None;
    let mut at = 2;
    while at < arguments.len() {
        let option = arguments.get(at);
        if is(option, "AUTH") && at + 2 < arguments.len() {
            check_user(arguments.get(at + 1))?;
            at += 3;
        } else if is(option, "SETNAME") && at + 1 < arguments.len() {
            name = Some(checked_name(arguments.get(at + 1))?);
            at += 2;
        } else {
            return Err(format!("ERR Syntax error in HELLO option '{}'", String::from_utf8_lossy(option)).into());
        }
    }
    connection.protocol = protocol;
    if let Some(name) = name {
        connection.name = name.to_vec();
    }
    let mut reply = connection.reply(out);
    reply.map(7);
    for (name, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"proto");
    reply.integer(if protocol == Protocol::Resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(client_id(id));
    for (name, value) in [("mode", "standalone"), ("role", "master")] {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"modules");
    reply.array(0);
    Ok(())
}

/// `AUTH [name] password`: there are no passwords.
pub fn auth(arguments: &Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Refusal> {
    match arguments.len() {
        2 => Err("ERR AUTH <password> called without any password configured for the default user. \
                  Are you sure your configuration is correct?"
            .into()),
        3 => {
            check_user(arguments.get(1))?;
            reply.ok();
            Ok(())
        }
        _ => Err(SYNTAX.into()),
    }
}

fn check_user(name: &[u8]) -> Result<(), Refusal> {
    if name == b"default" {
        return Ok(());
    }
    Err("WRONGPASS invalid username-password pair or user is disabled.".into())
}

/// Connections are numbered from 0 by some hosts; Redis's clients expect an id above it.
fn client_id(id: ConnectionId) -> i64 {
    i64::try_from(id.saturating_add(1)).unwrap_or(i64::MAX)
}

/// Kept as long as the connection: more is no name.
const NAME_BYTES_MAX: usize = 1 << 10;

fn checked_name(name: &[u8]) -> Result<&[u8], Refusal> {
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("ERR Client names cannot be longer than {NAME_BYTES_MAX} bytes.").into());
    }
    if name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        return Ok(name);
    }
    Err("ERR Client names cannot contain spaces, newlines or special characters.".into())
}

/// `CLIENT …`
pub fn client(
    connection: &mut Connection,
    id: ConnectionId,
    arguments: &Arguments<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let subcommand = arguments.get(1);
    let expects = |count: usize, name: &str| {
        if arguments.len() == count { Ok(()) } else { Err(wrong_number(&format!("client|{name}"))) }
    };
    if is(subcommand, "ID") {
        expects(2, "id")?;
        connection.reply(out).integer(client_id(id));
    } else if is(subcommand, "GETNAME") {
        expects(2, "getname")?;
        let name = connection.name.clone();
        connection.reply(out).maybe(Some(name.as_slice()).filter(|name| !name.is_empty()));
    } else if is(subcommand, "SETNAME") {
        expects(3, "setname")?;
        connection.name = checked_name(arguments.get(2))?.to_vec();
        connection.reply(out).ok();
    } else if is(subcommand, "SETINFO") {
        expects(4, "setinfo")?;
        let value = checked_name(arguments.get(3))?.to_vec();
        match arguments.get(2) {
            option if is(option, "LIB-NAME") => connection.library.0 = value,
            option if is(option, "LIB-VER") => connection.library.1 = value,
            option => return Err(format!("ERR Unrecognized option '{}'", String::from_utf8_lossy(option)).into()),
        }
        connection.reply(out).ok();
    } else if is(subcommand, "INFO") {
        expects(2, "info")?;
        let line = format!(
            "id={} addr={} name={} db=0 sub={} multi={} resp={} lib-name={} lib-ver={}\n",
            client_id(id),
            connection.peer,
            String::from_utf8_lossy(&connection.name),
            connection.subscriptions.as_ref().map_or(0, |own| own.len()),
            connection.transaction.as_ref().map_or(-1, |transaction| transaction.items.len() as i64),
            if connection.protocol == Protocol::Resp3 { 3 } else { 2 },
            String::from_utf8_lossy(&connection.library.0),
            String::from_utf8_lossy(&connection.library.1),
        );
        connection.reply(out).text(&line);
    } else if is(subcommand, "NO-EVICT") || is(subcommand, "NO-TOUCH") {
        expects(3, &String::from_utf8_lossy(subcommand).to_ascii_lowercase())?;
        if !is(arguments.get(2), "ON") && !is(arguments.get(2), "OFF") {
            return Err(SYNTAX.into());
        }
        connection.reply(out).ok();
    } else if is(subcommand, "REPLY") && is(arguments.get(2), "ON") {
        expects(3, "reply")?;
        connection.reply(out).ok();
    } else {
        return Err(unknown_subcommand(subcommand, "CLIENT"));
    }
    Ok(())
}

/// What is configured, as far as clients ask: `redis-benchmark` wants `save` and `appendonly`.
const CONFIGURATION: [(&str, &str); 9] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("databases", "1"),
    ("maxclients", "10000"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("notify-keyspace-events", ""),
    ("save", ""),
    ("timeout", "0"),
];

/// `CONFIG GET pattern …`, `CONFIG RESETSTAT`
pub fn config(arguments: &Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Refusal> {
    let subcommand = arguments.get(1);
    if is(subcommand, "GET") {
        if arguments.len() < 3 {
            return Err(wrong_number("config|get"));
        }
        let is_asked = |name: &str| {
            arguments.from(2).any(|pattern| glob::is_match(&pattern.to_ascii_lowercase(), name.as_bytes()))
        };
        let asked: Vec<_> = CONFIGURATION.iter().filter(|(name, _)| is_asked(name)).collect();
        reply.map(asked.len());
        for (name, value) in asked {
            reply.bulk(name.as_bytes());
            reply.bulk(value.as_bytes());
        }
    } else if is(subcommand, "RESETSTAT") {
        reply.ok();
    } else if is(subcommand, "SET") {
        return Err("ERR CONFIG SET is not supported: the group's params and the node's flags say how it runs".into());
    } else {
        return Err(unknown_subcommand(subcommand, "CONFIG"));
    }
    Ok(())
}

/// `COMMAND`, `COMMAND COUNT`, `DOCS`, `INFO`, `LIST`
pub fn command(arguments: &Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Refusal> {
    let subcommand = arguments.get(1);
    if arguments.len() == 1 || (is(subcommand, "INFO") && arguments.len() == 2) {
        reply.array(COMMANDS.len());
        COMMANDS.iter().for_each(|command| describe(command, reply));
    } else if is(subcommand, "COUNT") {
        reply.count(COMMANDS.len());
    } else if is(subcommand, "DOCS") {
        reply.map(0);
    } else if is(subcommand, "INFO") {
        reply.array(arguments.len() - 2);
        for name in arguments.from(2) {
            match find(name) {
                Some(command) => describe(command, reply),
                None => reply.null(),
            }
        }
    } else if is(subcommand, "LIST") {
        reply.array(COMMANDS.len());
        COMMANDS.iter().for_each(|command| reply.bulk(command.name.to_ascii_lowercase().as_bytes()));
    } else {
        return Err(unknown_subcommand(subcommand, "COMMAND"));
    }
    Ok(())
}

/// Name, arity, flags, keys; no categories, tips, key specifications, subcommands.
fn describe(command: &Command, reply: &mut Reply<'_>) {
    reply.array(10);
    reply.bulk(command.name.to_ascii_lowercase().as_bytes());
    reply.integer(command.arity.into());
    reply.set(1);
    reply.simple(match command.action {
        Action::Write(_) => "write",
        Action::Read(_) | Action::Scan(_) => "readonly",
        Action::Own(_) => "fast",
    });
    let (first, last, step) = command.keys;
    [first, last, step].into_iter().for_each(|number| reply.integer(number.into()));
    reply.set(0);
    (0..3).for_each(|_| reply.array(0));
}

/// `INFO [section …]`
pub fn info(node: &Node, figures: &Figures, sections: &[Vec<u8>], reply: &mut Reply<'_>) {
    let Figures { keys, expiring, version } = figures;
    let seconds = node.now_ms.saturating_sub(node.since_ms) / 1_000;
    let keyspace = if *keys == 0 { String::new() } else { format!("db0:keys={keys},expires={expiring},avg_ttl=0\r\n") };
    let all = [
        (
            "Server",
            format!(
                "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nstatehouse_version:{}\r\n\
                 statehouse_node:{}\r\nuptime_in_seconds:{seconds}\r\nuptime_in_days:{}\r\n",
                env!("CARGO_PKG_VERSION"),
                node.id,
                seconds / 86_400,
            ),
        ),
        ("Clients", format!("connected_clients:{}\r\nblocked_clients:0\r\n", node.connections)),
        ("Persistence", "loading:0\r\naof_enabled:1\r\nrdb_bgsave_in_progress:0\r\n".to_owned()),
        (
            "Stats",
            format!(
                "total_commands_processed:{}\r\npubsub_channels:{}\r\npubsub_patterns:{}\r\nstore_version:{version}\r\n",
                node.requests, node.channels.0, node.channels.1
            ),
        ),
        (
            "Replication",
            format!(
                "role:master\r\nconnected_slaves:0\r\ngroup_has_leader:{}\r\ngroup_leads:{}\r\n",
                u8::from(node.leader.0),
                u8::from(node.leader.1)
            ),
        ),
        ("Cluster", "cluster_enabled:0\r\n".to_owned()),
        ("Keyspace", keyspace),
    ];
    let wants = |name: &str| {
        let is_any = |section: &Vec<u8>| ["all", "default", "everything", name].iter().any(|word| is(section, word));
        sections.is_empty() || sections.iter().any(is_any)
    };
    let parts: Vec<String> =
        all.iter().filter(|(name, _)| wants(name)).map(|(name, text)| format!("# {name}\r\n{text}")).collect();
    reply.text(&parts.join("\r\n"));
}
