//! Lists of words, spoken to in lines: every request of the gateway's can be made by hand, and every answer
//! shows the index it comes from. For tests.
//!
//! A client's requests are numbered from 1; an answer begins with its request's number and `:`.
//!
//! | request | answer |
//! |---|---|
//! | `open MS` | `session ID SECRET MS ATTACHMENT` |
//! | `attach ID SECRET` | the same; the connection's commands are in this session from now on |
//! | `add LIST WORD` | `added LENGTH @INDEX` |
//! | `get LIST`, `get! LIST` | `list WORD,… @INDEX`, from this node's state; from the latest |
//! | `watch` | `watching`; from now on `event TEXT @INDEX` |
//! | `close` | `closed @INDEX` |
//! | `touch`, `echo TEXT`, `flood BYTES`, `later MS`, `status`, `boom`, `trap`, `bye` | |
//!
//! What goes wrong: `error CODE`. A session that is lost: `lost ended|moved @INDEX`, without a number.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;
use statehouse_sdk::Context;
use statehouse_sdk::QueryContext;
use statehouse_sdk::Reject;
use statehouse_sdk::StateMachine;
use statehouse_sdk::adapter::Adapter;
use statehouse_sdk::adapter::ConnectionId;
use statehouse_sdk::adapter::Consistency;
use statehouse_sdk::adapter::Input;
use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Lost;
use statehouse_sdk::adapter::Outcome;
use statehouse_sdk::adapter::Token;

/// The lists.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Lists(BTreeMap<String, Vec<String>>);

fn text(bytes: &[u8]) -> Result<&str, Reject> {
    std::str::from_utf8(bytes).map_err(|_| Reject::new("not text"))
}

impl StateMachine for Lists {
    type Command = Vec<u8>;
    type Reply = Vec<u8>;
    type Query = Vec<u8>;
    type Answer = Vec<u8>;

    fn apply(&mut self, context: &mut Context<'_>, command: Vec<u8>) -> Result<Vec<u8>, Reject> {
        let (list, word) = text(&command)?.split_once(' ').ok_or_else(|| Reject::new("not LIST WORD"))?;
        assert!(word != "trap", "asked to");
        let words = self.0.entry(list.to_owned()).or_default();
        words.push(word.to_owned());
        let length = words.len();
        context.emit(format!("{list} {word}").as_bytes());
        Ok(length.to_string().into_bytes())
    }

    fn query(&self, _: &QueryContext, query: Vec<u8>) -> Result<Vec<u8>, Reject> {
        let words = self.0.get(text(&query)?).map(|words| words.join(",")).unwrap_or_default();
        Ok(words.into_bytes())
    }

    fn on_session_end(&mut self, context: &mut Context<'_>, session: u64) {
        context.emit(format!("ended {session}").as_bytes());
    }
}

#[derive(Debug, Default)]
struct Client {
    unread: Vec<u8>,
    requests: u64,
    session: Option<u64>,
    /// It had a session, which is another's now or has ended.
    lost: bool,
}

/// The protocol.
#[derive(Debug, Default)]
pub struct Lines {
    clients: BTreeMap<ConnectionId, Client>,
    watching: BTreeSet<ConnectionId>,
    /// Who asked what: connection, number of the request.
    asked: BTreeMap<Token, (ConnectionId, u64)>,
    last_token: Token,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn secret(text: &str) -> [u8; 16] {
    let number = u128::from_str_radix(text, 16).unwrap_or(0);
    number.to_be_bytes()
}

fn failure(outcome: &Outcome<'_>) -> String {
    match outcome {
        Outcome::Ok(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Outcome::Rejected(_) => "error rejected".to_owned(),
        Outcome::Trapped(_) => "error trapped".to_owned(),
        Outcome::Failed { code, .. } => format!("error {code}"),
    }
}

impl Lines {
    fn say(io: &mut Io<'_>, connection: ConnectionId, number: u64, text: &str) {
        io.send(connection, format!("{number}: {text}\n").as_bytes());
    }

    fn answer(&mut self, io: &mut Io<'_>, token: Token, text: &str) -> Option<ConnectionId> {
        let (connection, number) = self.asked.remove(&token)?;
        Self::say(io, connection, number, text);
        Some(connection)
    }

    fn line(&mut self, io: &mut Io<'_>, connection: ConnectionId, line: &str) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        client.requests += 1;
        let (number, session, lost) = (client.requests, client.session, client.lost);
        self.last_token += 1;
        let token = self.last_token;
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let told = match (verb, session) {
            ("open", _) => {
                io.open_session(token, rest.parse().unwrap_or(0));
                None
            }
            ("attach", _) => {
                let (id, own) = rest.split_once(' ').unwrap_or((rest, ""));
                io.attach_session(token, id.parse().unwrap_or(0), &secret(own));
                None
            }
            // Outside of a session it would have no order with what was added in one.
            ("add", _) if lost => Some("error session_moved".to_owned()),
            ("add", _) => {
                io.propose(token, session, rest.as_bytes());
                None
            }
            ("get", _) => {
                io.query(token, Consistency::Local, session, rest.as_bytes());
                None
            }
            ("get!", _) => {
                io.query(token, Consistency::Linearizable, session, rest.as_bytes());
                None
            }
            ("close", Some(session)) => {
                io.close_session(token, session);
                None
            }
            ("status", _) => {
                io.ask(token, "status");
                None
            }
            ("later", _) => {
                io.set_timer(token, io.time_ms() + rest.parse::<u64>().unwrap_or(0));
                None
            }
            ("touch", Some(session)) => {
                io.touch(session);
                Some("touched".to_owned())
            }
            ("watch", _) => {
                self.watching.insert(connection);
                Some("watching".to_owned())
            }
            ("echo", _) => Some(rest.to_owned()),
            ("flood", _) => Some("x".repeat(rest.parse().unwrap_or(0))),
            ("boom", _) => panic!("boom"),
            ("bye", _) => {
                Self::say(io, connection, number, "bye");
                io.close(connection);
                return;
            }
            _ => Some("error what".to_owned()),
        };
        match told {
            Some(text) => Self::say(io, connection, number, &text),
            None => drop(self.asked.insert(token, (connection, number))),
        }
    }
}

impl Adapter for Lines {
    fn open(settings: &[u8], _: &mut Io<'_>) -> Result<Self, Reject> {
        let settings: serde_json::Value =
            serde_json::from_slice(settings).map_err(|error| Reject::new(error.to_string()))?;
        match settings.get("listen").and_then(|listen| listen.get("refuse")) {
            Some(why) => Err(Reject::new(format!("told to refuse: {why}"))),
            None => Ok(Self::default()),
        }
    }

    fn input(&mut self, io: &mut Io<'_>, input: Input<'_>) {
        match input {
            Input::Opened { connection, .. } => {
                self.clients.insert(connection, Client::default());
            }
            Input::Data { connection, bytes } => {
                let Some(client) = self.clients.get_mut(&connection) else { return };
                client.unread.extend_from_slice(bytes);
                let unread = std::mem::take(&mut client.unread);
                let whole = unread.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
                let (lines, rest) = unread.split_at(whole);
                client.unread = rest.to_vec();
                for line in String::from_utf8_lossy(lines).lines() {
                    self.line(io, connection, line);
                }
            }
            Input::Closed { connection } => {
                self.clients.remove(&connection);
                self.watching.remove(&connection);
            }
            Input::Applied { token, index, outcome: Outcome::Ok(reply) } => {
                let text = match reply {
                    b"" => format!("closed @{index}"),
                    reply => format!("added {} @{index}", String::from_utf8_lossy(reply)),
                };
                self.answer(io, token, &text);
            }
            Input::Answered { token, index, outcome: Outcome::Ok(answer) } => {
                self.answer(io, token, &format!("list {} @{index}", String::from_utf8_lossy(answer)));
            }
            Input::Applied { token, outcome, .. } | Input::Answered { token, outcome, .. } => {
                self.answer(io, token, &failure(&outcome));
            }
            Input::Event { index, bytes, .. } => {
                for connection in &self.watching {
                    io.send(*connection, format!("event {} @{index}\n", String::from_utf8_lossy(bytes)).as_bytes());
                }
            }
            Input::Session { token, session: Ok(session), .. } => {
                let text = format!(
                    "session {} {} {} {}",
                    session.id,
                    hex(&session.secret),
                    session.timeout_ms,
                    session.attachment
                );
                let connection = self.answer(io, token, &text);
                if let Some(client) = connection.and_then(|connection| self.clients.get_mut(&connection)) {
                    client.session = Some(session.id);
                }
            }
            Input::Session { token, session: Err(outcome), .. } => {
                self.answer(io, token, &failure(&outcome));
            }
            Input::SessionLost { session, index, why, .. } => {
                let why = if why == Lost::Ended { "ended" } else { "moved" };
                for (connection, client) in &mut self.clients {
                    if client.session == Some(session) {
                        client.session = None;
                        client.lost = true;
                        io.send(*connection, format!("lost {why} @{index}\n").as_bytes());
                    }
                }
            }
            Input::Timer { id } => drop(self.answer(io, id, "now")),
            Input::Told { token, outcome } => {
                self.answer(io, token, &failure(&outcome));
            }
        }
    }
}

statehouse_sdk::export!(Lists, raw, adapter = Lines);
