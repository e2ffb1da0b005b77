//! The transport of production: one TCP connection per peer and lane, opened by the one who asks. Frames of
//! many groups go out in one write.
//!
//! A connection begins with a handshake in which both sides must agree on protocol version, cluster and who
//! they are; a stranger is told why. Formats: `docs/formats.md`.
//!
//! Invariants:
//! - What waits for a peer, or is being written to it, is bounded in bytes: a peer that hangs, while its kernel accepts, costs
//!   no more, and who calls is told at once.
//! - A connection that takes nothing for a while is given up. Of its calls those are lost whose frame was taken whole; the peer
//!   cannot have seen the others.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::CallError;
use super::Handler;
use super::Lane;
use super::Transport;
use super::frame;
use super::frame::Frame;
use super::frame::Hello;
use super::frame::Kind;
use super::guests::Guests;
use crate::repeats::Repeats;
use crate::types::NodeId;

/// How long connecting and shaking hands may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// After a failed attempt, calls fail at once for this long: a dead peer costs no pile of attempts.
const COOL_DOWN: Duration = Duration::from_millis(50);
/// Who says no says it again: each time twice as long, up to this.
const REFUSED_COOL_DOWN_MAX: Duration = Duration::from_secs(1);
/// Answers written in one go.
const WRITE_FRAMES: usize = 256;
/// Requests are gathered up to this many bytes to be written in one go.
const WRITE_BYTES: usize = 1 << 20;
/// What a call costs beside its request's bytes, about.
const CALL_BYTES: usize = 256;

type Reply = oneshot::Sender<Result<Bytes, CallError>>;

/// How much is kept for a peer that takes nothing, and for how long.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// A call is refused while this much of its link waits to be taken, bytes: four groups' entries, as far as they are
    /// pipelined, or the largest module.
    held_bytes: usize,
    /// A connection that takes no byte for so long is given up.
    stalled: Duration,
}

const LIMITS: Limits = Limits { held_bytes: 64 << 20, stalled: Duration::from_secs(10) };

impl Limits {
    /// Files may go through a line that is slow enough to take a buffer's worth in that time; nobody is elected over one.
    fn stalled(&self, lane: Lane) -> Duration {
        match lane {
            Lane::Consensus | Lane::Control => self.stalled,
            Lane::Bulk | Lane::Join => self.stalled * 3,
        }
    }
}

/// A call's part of what its link holds, until its frame is taken or the call is given up.
struct Place {
    bytes: usize,
    held: Arc<AtomicUsize>,
}

impl Place {
    /// There is one while less than `limit` is held, also for a call that goes beyond it: a file is longer than what is left.
    fn find(held: &Arc<AtomicUsize>, bytes: usize, limit: usize) -> Option<Self> {
        let more = |held: usize| (held < limit).then(|| held.saturating_add(bytes));
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { bytes, held: held.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Outgoing {
    request: Bytes,
    reply: Reply,
    place: Option<Place>,
}

/// The way into the queue of a peer's lane.
#[derive(Clone)]
struct Link {
    queue: mpsc::UnboundedSender<Outgoing>,
    /// Bytes that wait or are being written.
    held: Arc<AtomicUsize>,
}

struct Inner {
    node: NodeId,
    cluster: [u8; 16],
    life: u64,
    limits: Limits,
    addresses: Mutex<BTreeMap<NodeId, String>>,
    links: Mutex<BTreeMap<(NodeId, Lane), Link>>,
}

/// Calls other nodes over TCP.
#[derive(Clone)]
pub struct TcpTransport(Arc<Inner>);

impl TcpTransport {
    /// A transport of node `node` of `cluster` that knows `addresses`; `life` names this process.
    pub fn new(node: NodeId, cluster: [u8; 16], life: u64, addresses: BTreeMap<NodeId, String>) -> Self {
        Self::limited(node, cluster, life, addresses, LIMITS)
    }

    fn limited(
        node: NodeId,
        cluster: [u8; 16],
        life: u64,
        addresses: BTreeMap<NodeId, String>,
        limits: Limits,
    ) -> Self {
        let (addresses, links) = (Mutex::new(addresses), Mutex::default());
        Self(Arc::new(Inner { node, cluster, life, limits, addresses, links }))
    }

    fn link(&self, to: NodeId, lane: Lane) -> Link {
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links.entry((to, lane)).or_insert_with(|| {
            let (sender, queue) = mpsc::unbounded_channel();
            spawn(run_link(Arc::downgrade(&self.0), to, lane, queue));
            Link { queue: sender, held: Arc::default() }
        });
        link.clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "this file is tokio's side of the transport; the simulator has its own")]
fn spawn<F: Future<Output: Send> + Send + 'static>(future: F) -> JoinHandle<F::Output> {
    tokio::spawn(future)
}

#[expect(clippy::disallowed_methods, reason = "as above")]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

impl Transport for TcpTransport {
    fn call(&self, to: NodeId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (reply, answer) = oneshot::channel();
        let (link, limit) = (self.link(to, lane), self.0.limits.held_bytes);
        let Some(place) = Place::find(&link.held, request.len().saturating_add(CALL_BYTES), limit) else {
            let reason = format!("it does not take what waits for it already, more than {limit} bytes");
            return Box::pin(std::future::ready(Err(CallError::NotSent { node: to, reason })));
        };
        let gone = CallError::NotSent { node: to, reason: "this node is stopping".to_string() };
        if link.queue.send(Outgoing { request, reply, place: Some(place) }).is_err() {
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
    let mut cool_down = COOL_DOWN;
    while let Some(first) = queue.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        let stalled = inner.limits.stalled(lane);
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(&inner, to, lane)).await;
        drop(inner);
        let connected =
            connected.unwrap_or_else(|_| Err(io::Error::other(format!("no answer within {CONNECT_TIMEOUT:?}"))));
        match connected {
            Ok(stream) => {
                said.clear();
                cool_down = COOL_DOWN;
                tracing::debug!(peer = to, ?lane, "connected");
                match serve_link(stream, to, first, &mut queue, stalled).await {
                    Ended::Broke => tracing::debug!(peer = to, ?lane, "disconnected"),
                    Ended::Stalled => {
                        let reason = format!("it took nothing for {stalled:?}");
                        tracing::warn!(peer = to, ?lane, %reason, "connecting to the peer again");
                        while let Ok(outgoing) = queue.try_recv() {
                            refuse(outgoing, to, &reason);
                        }
                    }
                }
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != said {
                    tracing::warn!(peer = to, ?lane, %reason, "cannot reach the peer");
                    said.clone_from(&reason);
                }
                refuse(first, to, &reason);
                let cool = pause(cool_down);
                let refused = error.kind() == io::ErrorKind::PermissionDenied;
                cool_down = if refused { (cool_down * 2).min(REFUSED_COOL_DOWN_MAX) } else { COOL_DOWN };
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
    greet(&address, Hello { cluster: inner.cluster, from: inner.node, to, lane, life: inner.life }).await
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
    // Who joins is a member of nothing yet.
    let hello = Hello { cluster, from: node, to: 0, lane: Lane::Join, life: 0 };
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
    let first = Outgoing { request, reply, place: None };
    let answered = tokio::time::timeout(patience, async {
        tokio::select! {
            _ = serve_link(stream, 0, first, &mut queue, patience) => Err("the connection broke".to_owned()),
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

/// Small frames go at once, and a machine that is gone is noticed: without this the kernel sends again what it got no word for after
/// ever longer pauses, up to two minutes, so that nodes that were cut off for long would find each other late.
fn prepare(stream: &TcpStream, gone_after: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(gone_after))?;
    // In whole seconds.
    let interval = (gone_after / 4).max(Duration::from_secs(1));
    let probes = TcpKeepalive::new().with_time(gone_after).with_interval(interval);
    socket.set_tcp_keepalive(&probes)
}

/// Connects and shakes hands. A refusal in words is [`io::ErrorKind::PermissionDenied`].
async fn greet(address: &str, hello: Hello) -> io::Result<TcpStream> {
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    let mut stream = TcpStream::connect(address).await.map_err(explain)?;
    prepare(&stream, LIMITS.stalled(hello.lane))?;
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

/// Why a connection is no more.
enum Ended {
    Broke,
    /// The peer's machine took nothing for too long.
    Stalled,
}

struct Pending {
    reply: Reply,
    /// Where its frame ends in what is written to the connection.
    end: u64,
}

/// The calls of one connection.
#[derive(Default)]
struct Calls {
    /// Those without an answer, by id.
    pending: BTreeMap<u64, Pending>,
    last_id: u64,
    /// What is to be written.
    out: BytesMut,
    /// Of the calls in it.
    places: Vec<Place>,
    /// Bytes that were written.
    written: u64,
}

impl Calls {
    /// One more is to be written; none that nobody waits for any more.
    fn put(&mut self, Outgoing { request, reply, place }: Outgoing) {
        if reply.is_closed() {
            return;
        }
        self.last_id += 1;
        frame::encode(self.last_id, Kind::Request, &request, &mut self.out);
        self.pending.insert(self.last_id, Pending { reply, end: self.written + self.out.len() as u64 });
        self.places.extend(place);
    }

    fn wrote(&mut self, count: usize) {
        self.written += count as u64;
        if self.out.is_empty() {
            // Not to be kept: the longest frame was a file.
            self.out = BytesMut::new();
            self.places.clear();
        }
    }

    /// Hands out the answers that came.
    fn answer(&mut self, incoming: &mut BytesMut, node: NodeId) -> Result<(), String> {
        while let Some(Frame { id, kind, payload }) = frame::decode(incoming).map_err(|error| error.to_string())? {
            let reason = || String::from_utf8_lossy(&payload).into_owned();
            let answer = match kind {
                Kind::Failure => Err(CallError::Refused { node, reason: reason() }),
                Kind::Response => Ok(payload),
                Kind::Request => return Err("the peer sent a request as an answer".to_string()),
            };
            if let Some(pending) = self.pending.remove(&id) {
                let _gave_up = pending.reply.send(answer);
            }
        }
        Ok(())
    }

    fn end(self, node: NodeId, reason: &str) {
        for Pending { reply, end } in self.pending.into_values() {
            let reason = reason.to_owned();
            let seen = end <= self.written;
            let error = if seen { CallError::Lost { node, reason } } else { CallError::NotSent { node, reason } };
            let _gave_up = reply.send(Err(error));
        }
    }
}

/// Writes what goes without waiting; how much. A kernel says that there is room only when a third of its buffer is free, megabytes
/// perhaps, which a slow line takes long for.
fn press(writer: &OwnedWriteHalf, out: &mut BytesMut) -> usize {
    let count = rustix::io::write(writer.as_ref(), out).unwrap_or(0);
    out.advance(count);
    count
}

/// Sends and matches answers until the connection breaks, or takes nothing for as long as `stalled`.
async fn serve_link(
    stream: TcpStream,
    to: NodeId,
    first: Outgoing,
    queue: &mut mpsc::UnboundedReceiver<Outgoing>,
    stalled: Duration,
) -> Ended {
    let (mut reader, mut writer) = stream.into_split();
    let mut incoming = BytesMut::with_capacity(64 << 10);
    let mut calls = Calls::default();
    calls.put(first);
    let mut taken_at = Instant::now();
    let (ended, reason) = loop {
        let writes = !calls.out.is_empty();
        tokio::select! {
            biased;
            written = writer.write_buf(&mut calls.out), if writes => match written {
                Ok(count) => {
                    calls.wrote(count);
                    taken_at = Instant::now();
                }
                Err(error) => break (Ended::Broke, error.to_string()),
            },
            read = reader.read_buf(&mut incoming) => match read {
                Ok(0) => break (Ended::Broke, "the peer closed it".to_string()),
                Err(error) => break (Ended::Broke, error.to_string()),
                Ok(_) => if let Err(reason) = calls.answer(&mut incoming, to) {
                    break (Ended::Broke, reason);
                },
            },
            () = tokio::time::sleep_until(taken_at + stalled), if writes => match press(&writer, &mut calls.out) {
                0 => break (Ended::Stalled, format!("it took nothing for {stalled:?}")),
                count => {
                    calls.wrote(count);
                    taken_at = Instant::now();
                }
            },
            next = queue.recv(), if !writes => {
                let Some(next) = next else { break (Ended::Broke, "this node is stopping".to_string()) };
                calls.put(next);
                while calls.out.len() < WRITE_BYTES && let Ok(next) = queue.try_recv() {
                    calls.put(next);
                }
                taken_at = Instant::now();
            }
        }
    };
    calls.end(to, &reason);
    ended
}

/// Accepts peers until the task is aborted; those of any cluster while this node belongs to none.
pub async fn serve(listener: Arc<TcpListener>, node: NodeId, cluster: Option<[u8; 16]>, handler: Arc<dyn Handler>) {
    let mut connections = tokio::task::JoinSet::new();
    let guests = Guests::default();
    let ends: Arc<Repeats<Instant>> = Arc::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let (handler, guests, ends) = (handler.clone(), guests.clone(), ends.clone());
                    connections.spawn(async move {
                        if let Err(error) = serve_peer(stream, node, cluster, guests, handler).await
                            && let Some(times) = ends.came(&format!("{}: {error}", address.ip()), Instant::now())
                        {
                            tracing::warn!(peer = %address, %error, times, "a peer's connection ended");
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

/// What the peer says first; `Err` inside is the refusal in words. What another version says may be shorter, so only its beginning is
/// waited for.
async fn read_hello(stream: &mut TcpStream) -> io::Result<Result<Hello, String>> {
    let mut bytes = [0; Hello::BYTES];
    let Some((version, rest)) = bytes.split_first_chunk_mut::<{ Hello::VERSION_BYTES }>() else {
        return Ok(Err(String::new()));
    };
    stream.read_exact(version).await?;
    if let Err(reason) = Hello::check_version(version) {
        // What is left unread would take the answer away with the connection.
        stream.try_read(rest).ok();
        return Ok(Err(reason));
    }
    stream.read_exact(rest).await?;
    Ok(Hello::decode(&bytes))
}

async fn serve_peer(
    mut stream: TcpStream,
    node: NodeId,
    cluster: Option<[u8; 16]>,
    guests: Guests,
    handler: Arc<dyn Handler>,
) -> io::Result<()> {
    // Before it is known what the connection is for.
    prepare(&stream, LIMITS.stalled(Lane::Bulk))?;
    let read = tokio::time::timeout(CONNECT_TIMEOUT, read_hello(&mut stream)).await;
    let hello = read.map_err(|_| io::Error::other("no handshake within a second"))??;
    let hello = hello.and_then(|hello| hello.check(node, cluster.as_ref()));
    let (hello, guest) = match hello.and_then(|hello| Ok((hello, guests.welcome(&hello)?))) {
        Ok(welcome) => welcome,
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
    let stalled = LIMITS.stalled(hello.lane);
    let mut writing = spawn(async move {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, WRITE_FRAMES).await > 0 {
            let mut out = BytesMut::new();
            for (id, answer) in batch.drain(..) {
                match answer {
                    Ok(bytes) => frame::encode(id, Kind::Response, &bytes, &mut out),
                    Err(text) => frame::encode(id, Kind::Failure, text.as_bytes(), &mut out),
                }
            }
            while !out.is_empty() {
                match tokio::time::timeout(stalled, writer.write_buf(&mut out)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return error,
                    Err(_) if press(&writer, &mut out) > 0 => {}
                    Err(_) => return io::Error::other(format!("it took no answer for {stalled:?}")),
                }
            }
        }
        io::Error::other("nobody answers any more")
    });
    let mut incoming = BytesMut::with_capacity(64 << 10);
    let ended = loop {
        tokio::select! {
            biased;
            read = reader.read_buf(&mut incoming) => match read {
                Ok(0) => break Ok(()),
                Err(error) => break Err(error),
                Ok(_) if guest.spoke() => {}
                Ok(_) => {
                    let why = "it was silent for long, and another process speaks for the same node by now";
                    break Err(io::Error::other(why));
                }
            },
            // Requests whose answers go nowhere are not taken.
            error = &mut writing => break Err(error.unwrap_or_else(io::Error::other)),
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

#[cfg(test)]
mod tests;
