//! Reads: what this replica says, as fresh as was asked.
//!
//! Invariant: a linearizable answer comes from a state that has applied all that was acknowledged when it was asked: the
//! leader's commit index, confirmed by a majority in a round that waiting reads share.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant;
use openraft::ReadPolicy;
use openraft::async_runtime::AsyncRuntime;
use openraft::async_runtime::Select2;

use super::barrier::Entered;
use super::inbox::Inbox;
use super::inbox::Note;
use super::inbox::Ticket;
use super::*;

/// Between two looks at who leads while the leader is asked.
const LEADER_LOOK: Duration = Duration::from_millis(50);

impl<P: Platform, T: Transport> Group<P, T> {
    /// Answers a query.
    pub async fn query(
        self: &Arc<Self>,
        consistency: Consistency,
        query: Bytes,
        session: u64,
        timeout: Duration,
    ) -> (u64, Answer) {
        let read = async {
            self.be_fresh(consistency).await?;
            Ok(self.shared.query(&self.platform, session, query).await)
        };
        match RtOf::<P>::timeout(timeout, read).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => (0, Err(error)),
            Err(_) => {
                let detail = format!("the query was not answered within {} ms", timeout.as_millis());
                (0, Err(self.error(ErrorCode::Timeout, detail)))
            }
        }
    }

    /// Answers queries by notes, all of one consistency.
    pub async fn query_to(
        self: &Arc<Self>,
        inbox: &Arc<Inbox>,
        consistency: Consistency,
        asked: Vec<(Ticket, u64, Bytes)>,
        timeout: Duration,
    ) {
        let error = match RtOf::<P>::timeout(timeout, self.be_fresh(consistency)).await {
            Ok(Ok(())) => return self.shared.query_to(&self.platform, inbox, asked).await,
            Ok(Err(error)) => error,
            Err(_) => {
                self.error(ErrorCode::Timeout, format!("the query was not answered within {} ms", timeout.as_millis()))
            }
        };
        for (ticket, _, _) in asked {
            inbox.push(Note::Answered { ticket, index: 0, answer: Err(error.clone()) });
        }
        inbox.wake();
    }

    /// Answers queries of this replica's state as it is now, by notes, on this thread, which must be one for guest code.
    pub fn query_here(&self, inbox: &Arc<Inbox>, asked: Vec<(Ticket, u64, Bytes)>) {
        self.shared.query_here(inbox, asked);
    }

    /// Waits until this replica is as fresh as `consistency` asks.
    async fn be_fresh(self: &Arc<Self>, consistency: Consistency) -> ServiceResult<()> {
        match consistency {
            Consistency::Local => Ok(()),
            Consistency::Lease => self.wait_read_index(true).await,
            Consistency::Linearizable => self.wait_read_index(false).await,
        }
    }

    /// Waits until this node has applied all that was acknowledged when this was called.
    pub async fn wait_read_index(self: &Arc<Self>, lease: bool) -> ServiceResult<()> {
        let index = self.read_index(lease).await?;
        let gone = |_| self.error(ErrorCode::Unavailable, "it is being closed on this node");
        self.shared.wait_applied(index).await.map_err(gone)
    }

    /// The index a read must wait for, from a round shared with other reads.
    async fn read_index(self: &Arc<Self>, lease: bool) -> ServiceResult<u64> {
        let barrier = if lease { &self.lease } else { &self.linearizable };
        let receiver = match barrier.enter() {
            Entered::Wait(receiver) => receiver,
            Entered::Drive(receiver) => {
                let group = self.clone();
                drop(P::Runtime::spawn(async move {
                    let barrier = if lease { &group.lease } else { &group.linearizable };
                    let driven = group.clone();
                    barrier
                        .drive(move || {
                            let group = driven.clone();
                            Box::pin(async move { group.read_round(lease).await })
                        })
                        .await;
                }));
                receiver
            }
        };
        receiver.await.unwrap_or_else(|_| Err(self.error(ErrorCode::Unavailable, "it is being closed on this node")))
    }

    /// One round: here when this node leads, else at the leader.
    async fn read_round(&self, lease: bool) -> ServiceResult<u64> {
        let start = InstantOf::<P>::now();
        // Long enough for an election; whoever waits has a deadline of his own.
        let patience = Duration::from_millis(self.timing.election_timeout_ms.saturating_mul(6));
        let mut pause_ms = 5;
        loop {
            let failed = match self.leader() {
                None => "no leader is known".to_string(),
                Some(leader) if leader == self.node => match self.read_index_here(lease).await {
                    Ok(index) => return Ok(index),
                    Err(error) => error,
                },
                Some(leader) => {
                    let request = PeerRequest::ReadIndex { group: self.id, lease };
                    match self.ask_leader(leader, &request).await {
                        Ok(PeerResponse::ReadIndex(index)) => return Ok(index),
                        Ok(PeerResponse::NotLeader(_)) => format!("node {leader} does not lead any more"),
                        Ok(other) => format!("node {leader} answered {other:?}"),
                        Err(error) => error,
                    }
                }
            };
            if InstantOf::<P>::now() - start > patience || self.is_stopped() {
                return Err(self.error(ErrorCode::NoLeader, failed));
            }
            RtOf::<P>::sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = (pause_ms * 2).min(100);
        }
    }

    /// Asks the leader something that may be asked twice; for no longer than this replica takes it for the leader.
    pub(super) async fn ask_leader(
        &self,
        leader: NodeId,
        request: &PeerRequest<RtOf<P>>,
    ) -> Result<PeerResponse<RtOf<P>>, String> {
        let limit = Duration::from_millis(self.timing.election_timeout_ms.saturating_mul(2));
        let asked = RtOf::<P>::timeout(limit, call::<RtOf<P>, T>(&self.transport, leader, Lane::Consensus, request));
        let replaced = async {
            while self.leader() == Some(leader) {
                RtOf::<P>::sleep(LEADER_LOOK).await;
            }
        };
        match RtOf::<P>::select2(pin!(asked), pin!(replaced)).await {
            Select2::First(Ok(answered)) => answered.map_err(|error| error.to_string()),
            Select2::First(Err(_)) | Select2::Second(()) => Err(format!("node {leader} did not answer")),
        }
    }

    /// The read index, if this node leads.
    pub async fn read_index_here(&self, lease: bool) -> Result<u64, String> {
        let policy = if lease { ReadPolicy::LeaseRead } else { ReadPolicy::ReadIndex };
        match self.raft.get_read_log_id(policy).await {
            Ok((read, _)) => Ok(read.log_id().index),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The read index for another node's round.
    pub async fn read_index_for_peer(self: &Arc<Self>, lease: bool) -> PeerResponse<RtOf<P>> {
        if !self.leads() {
            return PeerResponse::NotLeader(self.leader());
        }
        match self.read_index_here(lease).await {
            Ok(index) => PeerResponse::ReadIndex(index),
            Err(_) => PeerResponse::NotLeader(self.leader().filter(|leader| *leader != self.node)),
        }
    }
}
