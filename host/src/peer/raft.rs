//! openraft's network on a [`Transport`]: replication is pipelined over the lane's order, snapshots go over
//! the bulk lane in parts, each answered before the next one goes.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use openraft::Instant;
use openraft::OptionalSend;
use openraft::RaftNetworkFactory;
use openraft::RaftNetworkV2;
use openraft::alias::SnapshotOf;
use openraft::async_runtime::AsyncRuntime;
use openraft::errors::NetworkError;
use openraft::errors::RPCError;
use openraft::errors::ReplicationClosed;
use openraft::errors::StreamingError;
use openraft::errors::Unreachable;
use openraft::network::RPCOption;
use openraft::raft::AppendEntriesRequest;
use openraft::raft::AppendEntriesResponse;
use openraft::raft::SnapshotResponse;
use openraft::raft::StreamAppendResult;
use openraft::raft::TransferLeaderRequest;
use openraft::raft::TransferLeaderResponse;
use openraft::raft::VoteRequest;
use openraft::raft::VoteResponse;

use super::CallError;
use super::Lane;
use super::Transport;
use super::commit::Held;
use super::commit::Hurry;
use super::commit::Wait;
use super::message::PeerRequest;
use super::message::PeerResponse;
use super::message::SnapshotOffer;
use super::transfer::Transfers;
use super::transfer::count;
use crate::codec;
use crate::platform::Platform;
use crate::snapshot::SnapshotError;
use crate::snapshot::SnapshotFile;
use crate::snapshot::part_checksum;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::Types;
use crate::types::Vote;

/// AppendEntries requests that may be under way to one follower at once.
const PIPELINE_DEPTH: usize = 16;

/// So many requests in a row may say the same: a chance repetition is no harm.
const REPEATED_MAX: u32 = 3;

/// How long the follower may take to look at what it has of a snapshot already.
const SNAPSHOT_BEGIN_TIMEOUT: Duration = Duration::from_secs(120);

/// How long one part of a snapshot may take.
const SNAPSHOT_PART_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the follower may take to verify and install a whole snapshot.
const SNAPSHOT_INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes the clients of one group.
pub struct GroupNetwork<P: Platform, T> {
    group: GroupId,
    transport: T,
    hurry: Hurry<P::Runtime>,
    transfers: Transfers<P>,
}

impl<P: Platform, T> GroupNetwork<P, T> {
    /// The network of `group` over `transport`; nodes in `hurry` are told of commits at once, snapshots are sent as
    /// `transfers` allows.
    pub fn new(group: GroupId, transport: T, hurry: Hurry<P::Runtime>, transfers: Transfers<P>) -> Self {
        Self { group, transport, hurry, transfers }
    }
}

impl<P: Platform, T: Transport> RaftNetworkFactory<Types<P::Runtime>> for GroupNetwork<P, T> {
    type Network = GroupClient<P, T>;

    async fn new_client(&mut self, target: NodeId, node: &openraft::BasicNode) -> Self::Network {
        self.transport.learn(target, &node.addr);
        GroupClient {
            group: self.group,
            target,
            transport: self.transport.clone(),
            hurry: self.hurry.clone(),
            transfers: self.transfers.clone(),
        }
    }
}

/// Sends one group's messages to one node.
pub struct GroupClient<P: Platform, T> {
    group: GroupId,
    target: NodeId,
    transport: T,
    hurry: Hurry<P::Runtime>,
    transfers: Transfers<P>,
}

/// Sends `request` and decodes the response. The request has its place in the lane when this returns.
pub fn call<RT: AsyncRuntime, T: Transport>(
    transport: &T,
    to: NodeId,
    lane: Lane,
    request: &PeerRequest<RT>,
) -> impl Future<Output = Result<PeerResponse<RT>, CallError>> + Send + use<RT, T> {
    let sent = match codec::encode(request) {
        Ok(bytes) => Ok(transport.call(to, lane, Bytes::from(bytes))),
        Err(error) => Err(CallError::NotSent { node: to, reason: error.to_string() }),
    };
    async move {
        let answer = sent?.await?;
        codec::decode(&answer).map_err(|error| CallError::Lost { node: to, reason: error.to_string() })
    }
}

fn unexpected<RT: AsyncRuntime>(to: NodeId, answer: &PeerResponse<RT>) -> CallError {
    CallError::Refused { node: to, reason: format!("it answered something else: {answer:?}") }
}

type Appended<RT> = Result<AppendEntriesResponse<Types<RT>>, RPCError<Types<RT>>>;

/// Everything a call can fail of is, to openraft, an unreachable node: it backs off and tries again.
fn unreachable<RT: AsyncRuntime>(error: &CallError) -> RPCError<Types<RT>> {
    match error {
        // Retried at once: the connection was there a moment ago.
        CallError::Lost { .. } => RPCError::Network(NetworkError::new(error)),
        _ => RPCError::Unreachable(Unreachable::new(error)),
    }
}

fn streaming<RT: AsyncRuntime>(error: &CallError) -> StreamingError<Types<RT>> {
    StreamingError::Unreachable(Unreachable::new(error))
}

impl<P: Platform, T: Transport> GroupClient<P, T> {
    fn call(
        &self,
        lane: Lane,
        timeout: Duration,
        request: &PeerRequest<P::Runtime>,
    ) -> impl Future<Output = Result<PeerResponse<P::Runtime>, CallError>> + Send + use<P, T> {
        let node = self.target;
        let answer = call(&self.transport, node, lane, request);
        async move {
            match P::Runtime::timeout(timeout, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(CallError::Lost { node, reason: format!("no answer within {timeout:?}") }),
            }
        }
    }

    fn append(
        &self,
        rpc: AppendEntriesRequest<Types<P::Runtime>>,
        option: &RPCOption,
    ) -> impl Future<Output = Appended<P::Runtime>> + Send + use<P, T> {
        let node = self.target;
        let no_previous = rpc.prev_log_id.is_none();
        let answer = self.call(Lane::Consensus, option.soft_ttl(), &PeerRequest::Append(self.group, rpc));
        async move {
            match answer.await.map_err(|error| unreachable(&error))? {
                // openraft takes it for granted that nothing conflicts with the empty log.
                PeerResponse::Append(AppendEntriesResponse::Conflict) if no_previous => {
                    let reason = "it reports a conflict with the empty log".to_string();
                    Err(unreachable(&CallError::Refused { node, reason }))
                }
                PeerResponse::Append(response) => Ok(response),
                other => Err(unreachable(&unexpected(node, &other))),
            }
        }
    }

    async fn vote_call(
        &self,
        request: PeerRequest<P::Runtime>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<P::Runtime>>, RPCError<Types<P::Runtime>>> {
        let answer = self.call(Lane::Consensus, option.soft_ttl(), &request).await;
        match answer.map_err(|error| unreachable(&error))? {
            PeerResponse::Vote(response) => Ok(response),
            other => Err(unreachable(&unexpected(self.target, &other))),
        }
    }

    async fn send_snapshot(&self, vote: Vote, index: u64, file: SnapshotFile) -> Result<Vote, CallError> {
        let (node, digest, transfers) = (self.target, file.digest(), &self.transfers);
        if transfers.doubted(self.group) == Some(digest) {
            let reason = "this node's snapshot is being looked at: it may be damaged".to_owned();
            return Err(CallError::NotSent { node, reason });
        }
        let local = |error: SnapshotError| {
            transfers.doubt(self.group, digest);
            CallError::NotSent { node, reason: format!("cannot read the snapshot: {error}") }
        };
        let failed = |source: std::io::Error| local(SnapshotError::Io { path: file.path().to_owned(), source });
        let refused = |answer: PeerResponse<P::Runtime>| match answer {
            PeerResponse::SnapshotDamaged(reason) => {
                transfers.doubt(self.group, digest);
                CallError::Refused { node, reason }
            }
            other => unexpected(node, &other),
        };
        let counts = transfers.counts();
        let mut transfer = transfers.transfer(self.group, node, index);
        let held = file.hold().map_err(local)?;
        let offer = PeerRequest::SnapshotBegin(SnapshotOffer { group: self.group, digest, size: file.size() });
        let mut offset = match self.call(Lane::Bulk, SNAPSHOT_BEGIN_TIMEOUT, &offer).await? {
            PeerResponse::SnapshotOffset(offset) => offset.min(file.size()),
            other => return Err(unexpected(node, &other)),
        };
        transfer.has(offset, file.size());
        count(&counts.begun, 1);
        count(&counts.resumed, u64::from(offset > 0));
        count(&counts.resumed_bytes, offset);
        tracing::info!(group = self.group, to = node, bytes = file.size(), from = offset, "sending a snapshot");
        while offset < file.size() {
            // Only now that the follower answers: one that is silent takes nobody's turn.
            transfer.turn().await;
            let data = transfers.read(&held, offset).await.map_err(failed)?;
            if data.is_empty() {
                return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            transfers.pace(data.len()).await;
            transfer.seen();
            let (length, checksum) = (data.len() as u64, part_checksum(offset, &data));
            let part =
                PeerRequest::SnapshotChunk { group: self.group, digest, offset, checksum, data: Bytes::from(data) };
            let asked = <P::Runtime as AsyncRuntime>::Instant::now();
            offset = match self.call(Lane::Bulk, SNAPSHOT_PART_TIMEOUT, &part).await? {
                PeerResponse::SnapshotOffset(next) if next > offset => next,
                other => return Err(refused(other)),
            };
            transfer.has(offset, file.size());
            transfer.waited(<P::Runtime as AsyncRuntime>::Instant::now() - asked);
            count(&counts.sent_bytes, length);
        }
        transfer.all_sent();
        let end = PeerRequest::SnapshotEnd { group: self.group, digest, vote };
        match self.call(Lane::Bulk, SNAPSHOT_INSTALL_TIMEOUT, &end).await? {
            PeerResponse::SnapshotInstalled(vote) => {
                transfer.finished();
                Ok(vote)
            }
            other => Err(refused(other)),
        }
    }
}

/// A request of a stream on its way.
enum Sending<A, W, R> {
    Sent(A),
    Waits(W, R),
    Never,
}

impl<P: Platform, T: Transport> RaftNetworkV2<Types<P::Runtime>> for GroupClient<P, T> {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types<P::Runtime>>,
        option: RPCOption,
    ) -> Appended<P::Runtime> {
        self.append(rpc, &option).await
    }

    /// Sends requests without waiting for the answers of earlier ones. The lane keeps their order and
    /// `buffered` yields the answers in it; the first failure ends the stream. A request that only tells of a commit waits
    /// a moment for the next one to take it along (see [`super::commit`]); the stream's first does not, it may be a probe.
    ///
    /// Requests that only repeat the one before them end the stream: the entries they were to carry are purged, and only a
    /// new stream makes openraft look what the follower needs now.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<Types<P::Runtime>>, RPCError<Types<P::Runtime>>>>,
            RPCError<Types<P::Runtime>>,
        >,
    >
    where
        S: futures_util::Stream<Item = AppendEntriesRequest<Types<P::Runtime>>> + OptionalSend + Unpin + 'static,
    {
        let client = &*self;
        let mut held = Held::default();
        let mut before = None;
        let mut repeated = 0;
        let answers = input
            .map(move |request| {
                let previous = request.prev_log_id;
                let last = request.entries.last().map_or(previous, |entry| Some(entry.log_id));
                let says = (previous, request.leader_commit, last);
                let said = before.replace(says);
                let begins = said.is_none();
                repeated = if said == Some(says) { repeated + 1 } else { 0 };
                let barren = repeated >= REPEATED_MAX;
                let (sending, passengers) = if barren {
                    (Sending::Never, None)
                } else if request.entries.is_empty() && !begins && !client.hurry.has(client.target) {
                    (Sending::Waits(held.hold::<P::Runtime>(), request), None)
                } else {
                    let passengers = held.board();
                    (Sending::Sent(client.append(request, &option)), Some(passengers))
                };
                let option = option.clone();
                async move {
                    let response = match sending {
                        Sending::Sent(answer) => answer.await?,
                        Sending::Never => {
                            let reason = format!("the entries after {previous:?} are no longer in the log");
                            return Err(unreachable(&CallError::NotSent { node: client.target, reason }));
                        }
                        Sending::Waits(wait, request) => match wait.await {
                            // The entries before it were accepted in this stream, or it would have ended.
                            Wait::Carried => AppendEntriesResponse::Success,
                            Wait::Alone => client.append(request, &option).await?,
                            Wait::Failed => {
                                let reason = "the message that carried this commit was not accepted".to_string();
                                return Err(unreachable(&CallError::Lost { node: client.target, reason }));
                            }
                        },
                    };
                    let partial = matches!(&response, AppendEntriesResponse::PartialSuccess(up_to) if *up_to != last);
                    if let (AppendEntriesResponse::Success, Some(passengers)) = (&response, passengers) {
                        passengers.arrived();
                    }
                    Ok((response.into_stream_result(previous, last), partial))
                }
            })
            .buffered(PIPELINE_DEPTH)
            .scan(false, |ended, answer| {
                let item = if *ended {
                    None
                } else {
                    *ended = !matches!(&answer, Ok((Ok(_), false)));
                    Some(answer.map(|(result, _)| result))
                };
                std::future::ready(item)
            });
        let answers: BoxStream<'s, _> = answers.boxed();
        Box::pin(std::future::ready(Ok(answers)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types<P::Runtime>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<P::Runtime>>, RPCError<Types<P::Runtime>>> {
        self.vote_call(PeerRequest::Vote(self.group, rpc), option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types<P::Runtime>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<P::Runtime>>, RPCError<Types<P::Runtime>>> {
        self.vote_call(PeerRequest::PreVote(self.group, rpc), option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types<P::Runtime>, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types<P::Runtime>>, StreamingError<Types<P::Runtime>>> {
        let index = snapshot.meta.last_log_id.map_or(0, |log_id| log_id.index);
        let sending = self.send_snapshot(vote, index, snapshot.snapshot);
        match P::Runtime::select2(Box::pin(cancel), Box::pin(sending)).await {
            openraft::async_runtime::Select2::First(closed) => Err(StreamingError::Closed(closed)),
            openraft::async_runtime::Select2::Second(Ok(vote)) => Ok(SnapshotResponse::new(vote)),
            openraft::async_runtime::Select2::Second(Err(error)) => Err(streaming(&error)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<P::Runtime>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<P::Runtime>>, RPCError<Types<P::Runtime>>> {
        let request = PeerRequest::TransferLeader(self.group, request);
        let answer = self.call(Lane::Consensus, option.soft_ttl(), &request).await;
        match answer.map_err(|error| unreachable(&error))? {
            PeerResponse::TransferLeader(response) => Ok(response),
            other => Err(unreachable(&unexpected(self.target, &other))),
        }
    }
}
