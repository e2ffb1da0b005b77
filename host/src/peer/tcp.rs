//! The transport of production: one TCP connection per peer and lane, opened by the one who asks. Frames of
//! many groups go out in one write.
//!
//! A connection begins with a handshake in which both sides must agree on protocol version, cluster and who
//! they are; a stranger is told why. Formats: `docs/formats.md`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::CallError;
use super::Handler;
use super::Lane;
use super::Transport;
use super::frame;
use super::frame::Frame;
use super::frame::Hello;
use super::frame::Kind;
use crate::types::NodeId;

/// How long connecting and shaking hands may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// After a failed attempt, calls fail at once for this long: a dead peer costs no pile of attempts.
const COOL_DOWN: Duration = Duration::from_millis(50);
/// Frames written in one go.
const WRITE_FRAMES: usize = 256;

type Reply = oneshot::Sender<Result<Bytes, CallError>>;

struct Outgoing {
    request: Bytes,
    reply: Reply,
}

struct Inner {
    node: NodeId,
    cluster: [u8; 16],
    addresses: Mutex<BTreeMap<NodeId, String>>,
    links: Mutex<BTreeMap<(NodeId, Lane), mpsc::UnboundedSender<Outgoing>>>,
}

/// Calls other nodes over TCP.
#[derive(Clone)]
pub struct TcpTransport(Arc<Inner>);

impl TcpTransport {
    /// A transport of node `node` of `cluster` that knows `addresses`.
    pub fn new(node: NodeId, cluster: [u8; 16], addresses: BTreeMap<NodeId, String>) -> Self {
        Self(Arc::new(Inner { node, cluster, addresses: Mutex::new(addresses), links: Mutex::default() }))
    }

    fn link(&self, to: NodeId, lane: Lane) -> mpsc::UnboundedSender<Outgoing> {
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links.entry((to, lane)).or_insert_with(|| {
            let (sender, queue) = mpsc::unbounded_channel();
            spawn(run_link(Arc::downgrade(&self.0), to, lane, queue));
            sender
        });
        link.clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "this file is tokio's side of the transport; the simulator has its own")]
fn spawn<F: Future<Output = ()> + Send + 'static>(future: F) -> JoinHandle<()> {
    tokio::spawn(future)
}

#[expect(clippy::disallowed_methods, reason = "as above")]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

impl Transport for TcpTransport {
    fn call(&self, to: NodeId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (reply, answer) = oneshot::channel();
        let gone = CallError::NotSent { node: to, reason: "this node is stopping".to_string() };
        if self.link(to, lane).send(Outgoing { request, reply }).is_err() {
            return Box::pin(std::future::ready(Err(gone)));
        }
        Box::pin(async move { answer.await.unwrap_or(Err(gone)) })
    }

    fn address(&self, node: NodeId) -> Option<String> {
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    fn learn(&self, node: NodeId, address: &str) {
        // A connection that is there stays; when it breaks, the next goes to the new address.
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner).insert(node, address.to_owned());
    }
}

/// Owns one connection to one peer: connects when there is something to send, again after it broke.
async fn run_link(inner: std::sync::Weak<Inner>, to: NodeId, lane: Lane, mut queue: mpsc::UnboundedReceiver<Outgoing>) {
    let mut said = String::new();
    while let Some(first) = queue.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(&inner, to, lane)).await;
        drop(inner);
        let connected =
            connected.unwrap_or_else(|_| Err(io::Error::other(format!("no answer within {CONNECT_TIMEOUT:?}"))));
        match connected {
            Ok(stream) => {
                said.clear();
                tracing::debug!(peer = to, ?lane, "connected");
                serve_link(stream, to, first, &mut queue).await;
                tracing::debug!(peer = to, ?lane, "disconnected");
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != said {
                    tracing::warn!(peer = to, ?lane, %reason, "cannot reach the peer");
                    said.clone_from(&reason);
                }
                refuse(first, to, &reason);
                let cool = pause(COOL_DOWN);
                tokio::pin!(cool);
                loop {
                    tokio::select! {
                        biased;
                        () = &mut cool => break,
                        next = queue.recv() => match next {
                            Some(outgoing) => refuse(outgoing, to, &reason),
                            None => return,
                        },
                    }
                }
            }
        }
    }
}

fn refuse(outgoing: Outgoing, node: NodeId, reason: &str) {
    let _gave_up = outgoing.reply.send(Err(CallError::NotSent { node, reason: reason.to_string() }));
}

async fn connect(inner: &Inner, to: NodeId, lane: Lane) -> io::Result<TcpStream> {
    let address = inner.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&to).cloned();
    let address = address.ok_or_else(|| io::Error::other(format!("no address of node {to} is known")))?;
    greet(&address, Hello { cluster: inner.cluster, from: inner.node, to, lane }).await
}

/// Why a node that wants to join has no answer.
#[derive(Debug, thiserror::Error)]
pub enum StrangerError {
    /// Nobody answers there (yet).
    #[error("{0}")]
    NoAnswer(String),
    /// Who answers says no.
    #[error("{0}")]
    Refused(String),
}

/// Whether the node at `address` takes this one for one of its cluster.
pub async fn greet_as_stranger(address: &str, node: NodeId, cluster: [u8; 16]) -> Result<(), StrangerError> {
    greet_at(address, node, cluster).await.map(|_| ())
}

async fn greet_at(address: &str, node: NodeId, cluster: [u8; 16]) -> Result<TcpStream, StrangerError> {
    let hello = Hello { cluster, from: node, to: 0, lane: Lane::Join };
    match tokio::time::timeout(CONNECT_TIMEOUT, greet(address, hello)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(StrangerError::Refused(error.to_string()))
        }
        Ok(Err(error)) => Err(StrangerError::NoAnswer(error.to_string())),
        Err(_) => Err(StrangerError::NoAnswer(format!("{address}: no answer within {CONNECT_TIMEOUT:?}"))),
    }
}

/// Asks one thing of the node at `address`, as a node that does not know its cluster, on [`Lane::Join`].
pub async fn ask_as_stranger(
    address: &str,
    node: NodeId,
    cluster: Option<[u8; 16]>,
    request: Bytes,
    patience: Duration,
) -> Result<Bytes, StrangerError> {
    let no_answer = |error: String| StrangerError::NoAnswer(format!("{address}: {error}"));
    let stream = greet_at(address, node, cluster.unwrap_or_default()).await?;
    let (reply, answer) = oneshot::channel();
    let (_open, mut queue) = mpsc::unbounded_channel();
    let answered = tokio::time::timeout(patience, async {
        tokio::select! {
            () = serve_link(stream, 0, Outgoing { request, reply }, &mut queue) => Err("the connection broke".to_owned()),
            answer = answer => answer.map_err(|_| "the connection broke".to_owned()),
        }
    });
    match answered.await {
        Ok(Ok(Ok(bytes))) => Ok(bytes),
        Ok(Ok(Err(CallError::Refused { reason, .. }))) => Err(StrangerError::Refused(format!("{address}: {reason}"))),
        Ok(Ok(Err(error))) => Err(no_answer(error.to_string())),
        Ok(Err(error)) => Err(no_answer(error)),
        Err(_) => Err(no_answer(format!("no answer within {patience:?}"))),
    }
}

/// Connects and shakes hands. A refusal in words is [`io::ErrorKind::PermissionDenied`].
async fn greet(address: &str, hello: Hello) -> io::Result<TcpStream> {
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    let mut stream = TcpStream::connect(address).await.map_err(explain)?;
    stream.set_nodelay(true)?;
    stream.write_all(&hello.encode()).await.map_err(explain)?;
    let mut head = [0; 3];
    stream.read_exact(&mut head).await.map_err(explain)?;
    let [status, low, high] = head;
    if status == 0 {
        return Ok(stream);
    }
    let mut text = vec![0; usize::from(u16::from_le_bytes([low, high]))];
    stream.read_exact(&mut text).await.map_err(explain)?;
    let words = format!("{address} refused: {}", String::from_utf8_lossy(&text));
    Err(io::Error::new(io::ErrorKind::PermissionDenied, words))
}

/// Sends and matches answers until the connection breaks.
async fn serve_link(stream: TcpStream, to: NodeId, first: Outgoing, queue: &mut mpsc::UnboundedReceiver<Outgoing>) {
    let (mut reader, mut writer) = stream.into_split();
    let mut pending: BTreeMap<u64, Reply> = BTreeMap::new();
    let mut next_id: u64 = 0;
    let mut incoming = BytesMut::with_capacity(64 << 10);
    let mut batch = vec![first];
    let reason = 'connection: loop {
        if !batch.is_empty() {
            let mut out = BytesMut::new();
            for outgoing in batch.drain(..) {
                next_id += 1;
                frame::encode(next_id, Kind::Request, &outgoing.request, &mut out);
                pending.insert(next_id, outgoing.reply);
            }
            if let Err(error) = writer.write_all(&out).await {
                break error.to_string();
            }
        }
        tokio::select! {
            biased;
            read = reader.read_buf(&mut incoming) => match read {
                Ok(0) => break "the peer closed it".to_string(),
                Err(error) => break error.to_string(),
                Ok(_) => loop {
                    match frame::decode(&mut incoming) {
                        Ok(Some(Frame { id, kind, payload })) => {
                            let answer = match kind {
                                Kind::Response => Ok(payload),
                                Kind::Failure => Err(CallError::Refused {
                                    node: to,
                                    reason: String::from_utf8_lossy(&payload).into_owned(),
                                }),
                                Kind::Request => break 'connection "the peer sent a request as an answer".to_string(),
                            };
                            if let Some(reply) = pending.remove(&id) {
                                let _gave_up = reply.send(answer);
                            }
                        }
                        Ok(None) => break,
                        Err(error) => break 'connection error.to_string(),
                    }
                },
            },
            count = queue.recv_many(&mut batch, WRITE_FRAMES) => if count == 0 {
                break "this node is stopping".to_string();
            },
        }
    };
    for reply in pending.into_values() {
        let _gave_up = reply.send(Err(CallError::Lost { node: to, reason: reason.clone() }));
    }
}

/// Accepts peers until the task is aborted.
pub async fn serve(listener: TcpListener, node: NodeId, cluster: [u8; 16], handler: Arc<dyn Handler>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let handler = handler.clone();
                    connections.spawn(async move {
                        if let Err(error) = serve_peer(stream, node, cluster, handler).await {
                            tracing::warn!(peer = %address, %error, "a peer's connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer");
                    pause(COOL_DOWN).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_peer(
    mut stream: TcpStream,
    node: NodeId,
    cluster: [u8; 16],
    handler: Arc<dyn Handler>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; Hello::BYTES];
    let read = tokio::time::timeout(CONNECT_TIMEOUT, stream.read_exact(&mut bytes)).await;
    read.map_err(|_| io::Error::other("no handshake within a second"))??;
    let hello = match Hello::decode(&bytes).and_then(|hello| hello.check(node, &cluster)) {
        Ok(hello) => hello,
        Err(reason) => {
            let text = reason.as_bytes();
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes();
            stream.write_all(&[&[1], &length[..], text].concat()).await?;
            return Err(io::Error::other(format!("refused: {reason}")));
        }
    };
    stream.write_all(&[0, 0, 0]).await?;
    let (mut reader, mut writer) = stream.into_split();
    let (answers, mut queue) = mpsc::unbounded_channel::<(u64, Result<Bytes, String>)>();
    let writing = spawn(async move {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, WRITE_FRAMES).await > 0 {
            let mut out = BytesMut::new();
            for (id, answer) in batch.drain(..) {
                match answer {
                    Ok(bytes) => frame::encode(id, Kind::Response, &bytes, &mut out),
                    Err(text) => frame::encode(id, Kind::Failure, text.as_bytes(), &mut out),
                }
            }
            if writer.write_all(&out).await.is_err() {
                return;
            }
        }
    });
    let mut incoming = BytesMut::with_capacity(64 << 10);
    let ended = loop {
        match reader.read_buf(&mut incoming).await {
            Ok(0) => break Ok(()),
            Err(error) => break Err(error),
            Ok(_) => {}
        }
        loop {
            match frame::decode(&mut incoming) {
                Ok(None) => break,
                Ok(Some(Frame { id, kind: Kind::Request, payload })) => {
                    let mut handling = handler.handle(hello.from, hello.lane, payload);
                    // Polled here first, so that requests reach consensus in the order they came in.
                    match (&mut handling).now_or_never() {
                        Some(answer) => {
                            let _writer_ended = answers.send((id, answer));
                        }
                        None => {
                            let answers = answers.clone();
                            spawn(async move {
                                let _writer_ended = answers.send((id, handling.await));
                            });
                        }
                    }
                }
                Ok(Some(_)) => return Err(io::Error::other("an answer that nobody asked for")),
                Err(error) => return Err(error),
            }
        }
        if incoming.capacity() > (1 << 20) && !incoming.has_remaining() {
            incoming = BytesMut::with_capacity(64 << 10);
        }
    };
    drop(answers);
    writing.abort();
    ended
}
