//! From a command to its answer: queue, batch, leader, retry.

use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use openraft::errors::ClientWriteError;
use tokio::sync::mpsc;

use super::*;

/// Proposals that go to the leader in one message.
const BATCH_PROPOSALS: usize = 512;

/// What became of a batch: places of the refused ones, places of those nobody knows about.
#[derive(Debug, Default)]
struct Fate {
    refused: Vec<u32>,
    unknown: Vec<u32>,
    leader: Option<NodeId>,
}

impl<P: Platform, T: Transport> Group<P, T> {
    /// Proposes `kind` until it is applied, or the deadline passes. The index and what applying it gave.
    pub async fn propose(&self, kind: EntryKind, timeout: Duration) -> ServiceResult<(u64, Answer)> {
        let retry_safe = matches!(&kind, EntryKind::Command { session: Some(used), .. } if used.sequence.is_some());
        let deadline = InstantOf::<P>::now() + timeout;
        let mut pause_ms = 2;
        loop {
            let (number, receiver) = self.shared.waiters.register(retry_safe);
            let origin = Origin { node: self.node, incarnation: self.incarnation, number };
            // The leader stamps the time; zero until then.
            let proposal = Proposal { time_ms: 0, origin, kind: kind.clone() };
            if self.proposals.try_send(proposal).is_err() {
                self.shared.waiters.forget(number);
                let (code, detail) = if self.is_stopped() {
                    (ErrorCode::Unavailable, "it is being closed on this node".to_string())
                } else {
                    (ErrorCode::Overloaded, format!("{PROPOSALS_MAX} commands wait already"))
                };
                return Err(self.error(code, detail));
            }
            match RtOf::<P>::timeout_at(deadline, receiver).await {
                Ok(Ok(Delivered::Applied { index, answer })) => return Ok((index, answer)),
                Ok(Ok(Delivered::Refused(_))) => {
                    // It reached no log: nothing was done, and it can be proposed again.
                    let pause = Duration::from_millis(pause_ms);
                    if InstantOf::<P>::now() + pause >= deadline || self.is_stopped() {
                        let detail = format!("no leader took the command within {} ms", timeout.as_millis());
                        return Err(self.error(ErrorCode::NoLeader, detail));
                    }
                    RtOf::<P>::sleep(pause).await;
                    pause_ms = (pause_ms * 2).min(50);
                }
                Ok(Ok(Delivered::Unknown)) => {
                    let pause = Duration::from_millis(pause_ms);
                    if InstantOf::<P>::now() + pause >= deadline || self.is_stopped() {
                        return Err(self.unknown_outcome(timeout));
                    }
                    RtOf::<P>::sleep(pause).await;
                    pause_ms = (pause_ms * 2).min(50);
                }
                Ok(Err(_)) | Err(_) => {
                    self.shared.waiters.forget(number);
                    return Err(self.unknown_outcome(timeout));
                }
            }
        }
    }

    fn unknown_outcome(&self, timeout: Duration) -> ServiceError {
        let standing = self.standing();
        let leader = standing.leader.map_or("no leader is known".to_string(), |leader| format!("node {leader} leads"));
        let detail = format!(
            "the command was sent and not seen applied within {} ms; {leader}, this node is {}",
            timeout.as_millis(),
            standing.state
        );
        self.error(ErrorCode::OutcomeUnknown, detail)
    }

    /// Proposes another node's commands here, if this node leads.
    pub async fn propose_for_peer(&self, proposals: Vec<Proposal>) -> PeerResponse<RtOf<P>> {
        let fate = self.propose_here(proposals).await;
        PeerResponse::Proposed { refused: fate.refused, unknown: fate.unknown, leader: fate.leader }
    }

    /// Stamps and writes proposals to this node's Raft; returns when the fate of all is known.
    async fn propose_here(&self, mut proposals: Vec<Proposal>) -> Fate {
        let time_ms = self.platform.wall_ms();
        for proposal in &mut proposals {
            proposal.time_ms = time_ms;
        }
        let count = u32::try_from(proposals.len()).unwrap_or(u32::MAX);
        let mut fate = Fate::default();
        let mut results = match self.raft.client_write_many(proposals).await {
            Ok(results) => results,
            Err(fatal) => {
                tracing::warn!(group = self.id, %fatal, "commands were not taken");
                fate.refused = (0..count).collect();
                return fate;
            }
        };
        for place in 0..count {
            match results.next().await {
                Some(Ok(Ok(_))) => {}
                Some(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => {
                    fate.refused.push(place);
                    fate.leader = forward.leader_id;
                }
                // Discarded here, it may still be committed by another leader.
                Some(_) | None => fate.unknown.push(place),
            }
        }
        fate
    }

    fn settle(&self, numbers: &[u64], fate: &Fate) {
        let number = |place: &u32| usize::try_from(*place).ok().and_then(|place| numbers.get(place).copied());
        for number in fate.refused.iter().filter_map(number) {
            self.shared.waiters.refused(number, fate.leader);
        }
        for number in fate.unknown.iter().filter_map(number) {
            self.shared.waiters.unknown(number);
        }
    }

    /// Sends one batch to whoever leads. Returns as soon as the batch has its place in the order.
    fn dispatch(self: &Arc<Self>, batch: Vec<Proposal>) {
        let numbers: Vec<u64> = batch.iter().map(|proposal| proposal.origin.number).collect();
        let all = 0..u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let group = self.clone();
        match self.leader() {
            None => self.settle(&numbers, &Fate { refused: all.collect(), ..Fate::default() }),
            Some(leader) if leader == self.node => drop(P::Runtime::spawn(async move {
                let fate = group.propose_here(batch).await;
                group.settle(&numbers, &fate);
            })),
            Some(leader) => {
                let sent = call::<RtOf<P>, T>(&self.transport, leader, Lane::Consensus, &PeerRequest::Propose(self.id, batch));
                drop(P::Runtime::spawn(async move {
                    let fate = match sent.await {
                        Ok(PeerResponse::Proposed { refused, unknown, leader }) => Fate { refused, unknown, leader },
                        Err(CallError::NotSent { .. }) => Fate { refused: all.collect(), ..Fate::default() },
                        Ok(_) | Err(_) => Fate { unknown: all.collect(), ..Fate::default() },
                    };
                    group.settle(&numbers, &fate);
                }));
            }
        }
    }
}

/// Takes proposals off the queue, as many as are there, until the group is gone.
pub async fn run<P: Platform, T: Transport>(group: Weak<Group<P, T>>, mut queue: mpsc::Receiver<Proposal>) {
    loop {
        let mut batch = Vec::new();
        if queue.recv_many(&mut batch, BATCH_PROPOSALS).await == 0 {
            return;
        }
        let Some(group) = group.upgrade() else { return };
        group.dispatch(batch);
    }
}
