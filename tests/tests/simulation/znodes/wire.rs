//! ZooKeeper's protocol from the client's side: requests into frames, frames into what they tell.

use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimClient;
use znode_tree::jute::Malformed;
use znode_tree::jute::Reader;
use znode_tree::jute::Writer;
use znode_tree::wire::EventType;
use znode_tree::wire::MultiHeader;
use znode_tree::wire::Stat;
use znode_tree::wire::op;
use znode_tree::wire::perms;

/// How long a client waits for an answer before it gives the connection up.
const PATIENCE: Duration = Duration::from_secs(4);
/// The xid of a setWatches.
pub const SET_WATCHES_XID: i32 = -8;
const NOTIFICATION_XID: i32 = -1;

/// How a node is made.
pub mod flags {
    pub const PERSISTENT: i32 = 0;
    pub const EPHEMERAL: i32 = 1;
    pub const SEQUENTIAL: i32 = 2;
    pub const EPHEMERAL_SEQUENTIAL: i32 = 3;
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Create {
        path: String,
        value: u64,
        flags: i32,
    },
    Set {
        path: String,
        value: u64,
        version: i32,
    },
    Delete {
        path: String,
        version: i32,
    },
    Get {
        path: String,
        watch: bool,
    },
    Exists {
        path: String,
        watch: bool,
    },
    Children {
        path: String,
        watch: bool,
    },
    Sync {
        path: String,
    },
    /// Sets some nodes, after checking that one has a version.
    Multi {
        check: Option<(String, i32)>,
        sets: Vec<(String, u64)>,
    },
    SetWatches {
        zxid: i64,
        data: Vec<String>,
        exist: Vec<String>,
        child: Vec<String>,
    },
    CloseSession,
}

/// What a reply tells when it is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Created {
        path: String,
        stat: Stat,
    },
    Stat(Stat),
    Data {
        value: Option<u64>,
        stat: Stat,
    },
    Children {
        names: Vec<String>,
        stat: Stat,
    },
    /// The stats of the sets of a multi, or the errors of its parts.
    Multi(Result<Vec<Stat>, Vec<i32>>),
    Nothing,
}

/// A frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Reply { xid: i32, zxid: i64, error: i32, body: Vec<u8> },
    Event { zxid: i64, event: EventType, path: String },
}

impl Request {
    /// Whether it goes through the log.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Set { .. } | Self::Delete { .. } | Self::Multi { .. })
    }

    fn operation(&self) -> i32 {
        match self {
            Self::Create { .. } => op::CREATE2,
            Self::Set { .. } => op::SET_DATA,
            Self::Delete { .. } => op::DELETE,
            Self::Get { .. } => op::GET_DATA,
            Self::Exists { .. } => op::EXISTS,
            Self::Children { .. } => op::GET_CHILDREN2,
            Self::Sync { .. } => op::SYNC,
            Self::Multi { .. } => op::MULTI,
            Self::SetWatches { .. } => op::SET_WATCHES,
            Self::CloseSession => op::CLOSE_SESSION,
        }
    }

    /// The whole frame.
    pub fn frame(&self, xid: i32) -> Vec<u8> {
        let mut body = Vec::new();
        let mut out = Writer::new(&mut body);
        out.i32(xid).i32(self.operation());
        match self {
            Self::Create { path, value, flags } => {
                out.text(path).text(&value.to_string()).count(1).i32(perms::ALL).text("world").text("anyone");
                out.i32(*flags);
            }
            Self::Set { path, value, version } => drop(out.text(path).text(&value.to_string()).i32(*version)),
            Self::Delete { path, version } => drop(out.text(path).i32(*version)),
            Self::Get { path, watch } | Self::Exists { path, watch } | Self::Children { path, watch } => {
                out.text(path).bool(*watch);
            }
            Self::Sync { path } => drop(out.text(path)),
            Self::Multi { check, sets } => {
                if let Some((path, version)) = check {
                    MultiHeader { op: op::CHECK, done: false, err: -1 }.write(&mut out);
                    out.text(path).i32(*version);
                }
                for (path, value) in sets {
                    MultiHeader { op: op::SET_DATA, done: false, err: -1 }.write(&mut out);
                    out.text(path).text(&value.to_string()).i32(-1);
                }
                MultiHeader::END.write(&mut out);
            }
            Self::SetWatches { zxid, data, exist, child } => {
                out.i64(*zxid);
                for list in [data, exist, child] {
                    out.texts(list.iter());
                }
            }
            Self::CloseSession => {}
        }
        framed(&body)
    }

    /// What the reply's body says.
    pub fn read(&self, body: &[u8]) -> Result<Body, Malformed> {
        let mut reader = Reader::new(body);
        let read = match self {
            Self::Create { .. } => {
                let path = reader.text()?.unwrap_or_default().to_owned();
                Body::Created { path, stat: Stat::read(&mut reader)? }
            }
            Self::Set { .. } | Self::Exists { .. } => Body::Stat(Stat::read(&mut reader)?),
            Self::Get { .. } => {
                let value = reader.text()?.and_then(|text| text.parse().ok());
                Body::Data { value, stat: Stat::read(&mut reader)? }
            }
            Self::Children { .. } => {
                let names = reader.texts()?.into_iter().map(str::to_owned).collect();
                Body::Children { names, stat: Stat::read(&mut reader)? }
            }
            Self::Sync { .. } => {
                reader.text()?;
                Body::Nothing
            }
            Self::Multi { .. } => Body::Multi(read_multi(&mut reader)?),
            Self::Delete { .. } | Self::SetWatches { .. } | Self::CloseSession => Body::Nothing,
        };
        if reader.rest().is_empty() { Ok(read) } else { Err(Malformed) }
    }
}

fn read_multi(reader: &mut Reader<'_>) -> Result<Result<Vec<Stat>, Vec<i32>>, Malformed> {
    let (mut stats, mut errors) = (Vec::new(), Vec::new());
    loop {
        let header = MultiHeader::read(reader)?;
        match header.op {
            _ if header.done => break,
            op::ERROR => errors.push(reader.i32()?),
            op::SET_DATA => stats.push(Stat::read(reader)?),
            _ => {}
        }
    }
    Ok(if errors.is_empty() { Ok(stats) } else { Err(errors) })
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// What a server says to a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    Session {
        id: u64,
        password: [u8; 16],
        timeout_ms: i32,
    },
    /// The session that was asked for is over.
    Over,
    /// The connection was closed, or nothing came.
    Nothing,
}

/// A connection, cut into frames.
pub struct Wire {
    client: SimClient,
    unread: Vec<u8>,
}

impl Wire {
    pub fn new(client: SimClient) -> Self {
        Self { client, unread: Vec::new() }
    }

    pub fn send(&self, bytes: &[u8]) {
        self.client.send(bytes);
    }

    async fn body(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((length, rest)) = self.unread.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if let Some(body) = rest.get(..length) {
                    let body = body.to_vec();
                    self.unread.drain(..4 + length);
                    return Some(body);
                }
            }
            self.unread.extend_from_slice(&self.client.receive().await?);
        }
    }

    /// The next frame; `None` when the connection is over, or nothing came for too long.
    pub async fn frame(&mut self) -> Option<Result<Frame, Malformed>> {
        let body = LifeRuntime::timeout(PATIENCE, self.body()).await.ok().flatten()?;
        Some(read(&body))
    }

    /// The handshake: a session of one's own (`None`), or one that is there, by a client that has seen `zxid`.
    pub async fn greet(&mut self, zxid: i64, timeout_ms: i32, session: Option<(u64, [u8; 16])>) -> Greeting {
        let (id, password) = session.unwrap_or_default();
        let mut body = Vec::new();
        Writer::new(&mut body).i32(0).i64(zxid).i32(timeout_ms).i64(id as i64).buffer(Some(&password)).bool(false);
        self.send(&framed(&body));
        let Ok(Some(body)) = LifeRuntime::timeout(PATIENCE, self.body()).await else { return Greeting::Nothing };
        let mut reader = Reader::new(&body);
        let mut greeting = || {
            reader.i32()?;
            let (timeout_ms, id) = (reader.i32()?, reader.i64()? as u64);
            let password = reader.buffer()?.and_then(|bytes| bytes.try_into().ok()).ok_or(Malformed)?;
            Ok::<_, Malformed>(match id {
                0 => Greeting::Over,
                id => Greeting::Session { id, password, timeout_ms },
            })
        };
        greeting().expect("a server's greeting")
    }
}

fn read(body: &[u8]) -> Result<Frame, Malformed> {
    let mut reader = Reader::new(body);
    let (xid, zxid, error) = (reader.i32()?, reader.i64()?, reader.i32()?);
    if xid != NOTIFICATION_XID {
        return Ok(Frame::Reply { xid, zxid, error, body: reader.rest().to_vec() });
    }
    let event = u8::try_from(reader.i32()?).ok().and_then(EventType::from_number).ok_or(Malformed)?;
    reader.i32()?;
    Ok(Frame::Event { zxid, event, path: reader.text()?.ok_or(Malformed)?.to_owned() })
}
