//! openraft's network on a [`Transport`]: replication is pipelined over the lane's order, snapshots go over
//! the bulk lane in parts.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
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
use crate::codec;
use crate::snapshot::SnapshotFile;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::Types;
use crate::types::Vote;

/// AppendEntries requests that may be under way to one follower at once.
const PIPELINE_DEPTH: usize = 16;

/// So many requests in a row may say the same: a chance repetition is no harm.
const REPEATED_MAX: u32 = 3;

/// Bytes of a snapshot in one message.
const SNAPSHOT_PART_BYTES: usize = 256 << 10;

/// How long one part of a snapshot may take.
const SNAPSHOT_PART_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the follower may take to verify and install a whole snapshot.
const SNAPSHOT_INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes the clients of one group.
pub struct GroupNetwork<RT: AsyncRuntime, T> {
    group: GroupId,
    transport: T,
    hurry: Hurry<RT>,
}

impl<RT: AsyncRuntime, T> GroupNetwork<RT, T> {
    /// The network of `group` over `transport`; nodes in `hurry` are told of commits at once.
    pub fn new(group: GroupId, transport: T, hurry: Hurry<RT>) -> Self {
        Self { group, transport, hurry }
    }
}

impl<RT: AsyncRuntime, T: Transport> RaftNetworkFactory<Types<RT>> for GroupNetwork<RT, T> {
    type Network = GroupClient<RT, T>;

    async fn new_client(&mut self, target: NodeId, node: &openraft::BasicNode) -> Self::Network {
        self.transport.learn(target, &node.addr);
        GroupClient { group: self.group, target, transport: self.transport.clone(), hurry: self.hurry.clone() }
    }
}

/// Sends one group's messages to one node.
pub struct GroupClient<RT: AsyncRuntime, T> {
    group: GroupId,
    target: NodeId,
    transport: T,
    hurry: Hurry<RT>,
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

impl<RT: AsyncRuntime, T: Transport> GroupClient<RT, T> {
    fn call(
        &self,
        lane: Lane,
        timeout: Duration,
        request: &PeerRequest<RT>,
    ) -> impl Future<Output = Result<PeerResponse<RT>, CallError>> + Send + use<RT, T> {
        let node = self.target;
        let answer = call(&self.transport, node, lane, request);
        async move {
            match RT::timeout(timeout, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(CallError::Lost { node, reason: format!("no answer within {timeout:?}") }),
            }
        }
    }

    fn append(
        &self,
        rpc: AppendEntriesRequest<Types<RT>>,
        option: &RPCOption,
    ) -> impl Future<Output = Result<AppendEntriesResponse<Types<RT>>, RPCError<Types<RT>>>> + Send + use<RT, T> {
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
        request: PeerRequest<RT>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<RT>>, RPCError<Types<RT>>> {
        let answer = self.call(Lane::Consensus, option.soft_ttl(), &request).await;
        match answer.map_err(|error| unreachable(&error))? {
            PeerResponse::Vote(response) => Ok(response),
            other => Err(unreachable(&unexpected(self.target, &other))),
        }
    }

    async fn send_snapshot(&self, vote: Vote, file: SnapshotFile) -> Result<Vote, CallError> {
        let node = self.target;
        let local =
            |error: std::io::Error| CallError::NotSent { node, reason: format!("cannot read the snapshot: {error}") };
        let offer = SnapshotOffer { group: self.group, digest: file.digest(), size: file.size() };
        let begun = self.call(Lane::Bulk, SNAPSHOT_PART_TIMEOUT, &PeerRequest::SnapshotBegin(offer)).await?;
        let mut offset = match begun {
            PeerResponse::SnapshotOffset(offset) => offset.min(file.size()),
            other => return Err(unexpected(node, &other)),
        };
        while offset < file.size() {
            let data = file.read(offset, SNAPSHOT_PART_BYTES).map_err(local)?;
            if data.is_empty() {
                return Err(local(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let part = PeerRequest::SnapshotChunk {
                group: self.group,
                digest: file.digest(),
                offset,
                data: Bytes::from(data),
            };
            offset = match self.call(Lane::Bulk, SNAPSHOT_PART_TIMEOUT, &part).await? {
                PeerResponse::SnapshotOffset(next) if next > offset => next,
                other => return Err(unexpected(node, &other)),
            };
        }
        let end = PeerRequest::SnapshotEnd { group: self.group, digest: file.digest(), vote };
        match self.call(Lane::Bulk, SNAPSHOT_INSTALL_TIMEOUT, &end).await? {
            PeerResponse::SnapshotInstalled(vote) => Ok(vote),
            other => Err(unexpected(node, &other)),
        }
    }
}

/// A request of a stream on its way.
enum Sending<A, W, R> {
    Sent(A),
    Waits(W, R),
    Never,
}

impl<RT: AsyncRuntime, T: Transport> RaftNetworkV2<Types<RT>> for GroupClient<RT, T> {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types<RT>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<RT>>, RPCError<Types<RT>>> {
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
        Result<BoxStream<'s, Result<StreamAppendResult<Types<RT>>, RPCError<Types<RT>>>>, RPCError<Types<RT>>>,
    >
    where
        S: futures_util::Stream<Item = AppendEntriesRequest<Types<RT>>> + OptionalSend + Unpin + 'static,
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
                    (Sending::Waits(held.hold::<RT>(), request), None)
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
        rpc: VoteRequest<Types<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<RT>>, RPCError<Types<RT>>> {
        self.vote_call(PeerRequest::Vote(self.group, rpc), option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<RT>>, RPCError<Types<RT>>> {
        self.vote_call(PeerRequest::PreVote(self.group, rpc), option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types<RT>, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types<RT>>, StreamingError<Types<RT>>> {
        let sending = self.send_snapshot(vote, snapshot.snapshot);
        match RT::select2(Box::pin(cancel), Box::pin(sending)).await {
            openraft::async_runtime::Select2::First(closed) => Err(StreamingError::Closed(closed)),
            openraft::async_runtime::Select2::Second(Ok(vote)) => Ok(SnapshotResponse::new(vote)),
            openraft::async_runtime::Select2::Second(Err(error)) => Err(streaming(&error)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<RT>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<RT>>, RPCError<Types<RT>>> {
        let request = PeerRequest::TransferLeader(self.group, request);
        let answer = self.call(Lane::Consensus, option.soft_ttl(), &request).await;
        match answer.map_err(|error| unreachable(&error))? {
            PeerResponse::TransferLeader(response) => Ok(response),
            other => Err(unreachable(&unexpected(self.target, &other))),
        }
    }
}
