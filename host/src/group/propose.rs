//! From a command to its answer: queue, batch, leader, retry.

use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use openraft::Instant;
use openraft::alias::OneshotReceiverOf;
use openraft::async_runtime::AsyncRuntime;
use openraft::errors::ClientWriteError;
use openraft::impls::OneshotResponder;
use openraft::raft::ClientWriteResult;
use tokio::sync::mpsc;

use super::*;
use crate::codec;

/// Proposals that go to the leader in one message: so many at most,
pub(super) const BATCH_PROPOSALS: usize = 512;
/// and so many bytes of commands, or one. A peer's frame has its limit, and what breaks a connection breaks it for all groups.
pub(super) const BATCH_BYTES: usize = 8 << 20;

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
        // Whether an earlier try may have reached a log: from then on nobody can say that nothing was done.
        let mut unclear = false;
        loop {
            if space::waits_for_space(&kind) && !unclear {
                self.check_space()?;
            }
            let (number, receiver) = self.shared.waiters.register(retry_safe);
            let origin = Origin { node: self.node, incarnation: self.incarnation, number };
            // The leader stamps the time; zero until then.
            let proposal = Proposal { time_ms: 0, origin, kind: kind.clone() };
            if self.proposals.try_send(proposal).is_err() {
                self.shared.waiters.forget(number);
                if unclear {
                    return Err(self.unknown_outcome(timeout));
                }
                let (code, detail) = if self.is_stopped() {
                    (ErrorCode::Unavailable, "it is being closed on this node".to_string())
                } else {
                    (ErrorCode::Overloaded, format!("{PROPOSALS_MAX} commands wait already"))
                };
                return Err(self.error(code, detail));
            }
            match RtOf::<P>::timeout_at(deadline, receiver).await {
                Ok(Ok(Delivered::Applied { answer: Err(error), .. }))
                    if unclear && !error.code.settles_earlier_tries() =>
                {
                    // The session may have ended, or moved, after an earlier try was applied.
                    return Err(self.unknown_outcome(timeout));
                }
                Ok(Ok(Delivered::Applied { index, answer })) => return Ok((index, answer)),
                Ok(Ok(Delivered::Refused(_))) => {
                    // It reached no log: nothing was done, and it can be proposed again.
                    let pause = Duration::from_millis(pause_ms);
                    if InstantOf::<P>::now() + pause >= deadline || self.is_stopped() {
                        return Err(if unclear { self.unknown_outcome(timeout) } else { self.not_taken(timeout) });
                    }
                    RtOf::<P>::sleep(pause).await;
                    pause_ms = (pause_ms * 2).min(50);
                }
                Ok(Ok(Delivered::Unknown)) => {
                    unclear = true;
                    let pause = Duration::from_millis(pause_ms);
                    if !retry_safe || InstantOf::<P>::now() + pause >= deadline || self.is_stopped() {
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

    /// Proposes `kind` once, in the order of the calls; notes with `ticket` say what became of it. The number to
    /// [forget](Self::forget) it by.
    pub fn propose_to(
        &self,
        inbox: &Arc<Inbox>,
        ticket: Ticket,
        retry_safe: bool,
        kind: EntryKind,
    ) -> ServiceResult<u64> {
        let number = self.shared.waiters.register_inbox(retry_safe, inbox.clone(), ticket);
        let origin = Origin { node: self.node, incarnation: self.incarnation, number };
        if self.proposals.try_send(Proposal { time_ms: 0, origin, kind }).is_ok() {
            return Ok(number);
        }
        self.shared.waiters.forget(number);
        Err(self.error(ErrorCode::Overloaded, format!("{PROPOSALS_MAX} commands wait already")))
    }

    /// Nobody waits for this proposal any more.
    pub fn forget(&self, number: u64) {
        self.shared.waiters.forget(number);
    }

    fn not_taken(&self, timeout: Duration) -> ServiceError {
        let leader = self.leader().filter(|leader| self.space.short_nodes(self.node).contains(leader));
        let within = format!("within {} ms", timeout.as_millis());
        match leader {
            Some(leader) => {
                let detail =
                    format!("node {leader}, which leads, is short of disk space, and nobody took over {within}");
                self.error(ErrorCode::DiskFull, detail)
            }
            None => self.error(ErrorCode::NoLeader, format!("no leader took the command {within}")),
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

    /// Proposes another node's commands here, if this node leads in `term`.
    pub async fn propose_for_peer(&self, term: u64, proposals: Vec<Proposal>) -> PeerResponse<RtOf<P>> {
        let fate = self.enqueue(term, proposals).await.fate().await;
        PeerResponse::Proposed { refused: fate.refused, unknown: fate.unknown, leader: fate.leader }
    }

    /// Stamps proposals and gives them to this node's Raft, in order, for its log of `term` and no other.
    async fn enqueue(&self, term: u64, proposals: Vec<Proposal>) -> Enqueued<RtOf<P>> {
        let time_ms = self.platform.wall_ms();
        let mut enqueued = Enqueued(Vec::with_capacity(proposals.len()));
        for proposal in proposals {
            if !self.has_space_for(&proposal.kind) {
                enqueued.0.push(None);
                continue;
            }
            let (responder, receiver) = OneshotResponder::new_pair();
            let proposal = Proposal { time_ms, ..proposal };
            self.count_proposed(term, &proposal);
            let write = self.raft.write(proposal).responder(responder).with_leader(term);
            // A Raft that has stopped drops the responder, and the receiver says so.
            let _stopped = write.await;
            enqueued.0.push(Some(receiver));
        }
        enqueued
    }

    fn count_proposed(&self, term: u64, proposal: &Proposal) {
        // What cannot be encoded comes into no log.
        let Ok(bytes) = codec::size(proposal) else { return };
        let mut proposed = self.proposed.lock().unwrap_or_else(PoisonError::into_inner);
        if proposed.0 != term {
            proposed.0 = term;
            proposed.1.forget_values();
        }
        proposed.1.add(bytes);
    }

    /// Proposes once, in this node's log of `term` and in no other; nobody waits for what comes of it.
    pub(super) async fn propose_in(&self, term: u64, kinds: Vec<EntryKind>) {
        // No waiter has this number.
        let origin = Origin { node: self.node, incarnation: self.incarnation, number: 0 };
        let proposals = kinds.into_iter().map(|kind| Proposal { time_ms: 0, origin, kind }).collect();
        drop(self.enqueue(term, proposals).await);
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
    async fn dispatch(self: &Arc<Self>, batch: Vec<Proposal>) {
        let numbers: Vec<u64> = batch.iter().map(|proposal| proposal.origin.number).collect();
        let all = 0..u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let (leader, term) = self.leader_and_term();
        let Some(leader) = leader.filter(|_| self.shared.waiters.sending(&numbers, term)) else {
            return self.settle(&numbers, &Fate { refused: all.collect(), ..Fate::default() });
        };
        let group = self.clone();
        if leader == self.node {
            let enqueued = self.enqueue(term, batch).await;
            drop(P::Runtime::spawn(async move { group.settle(&numbers, &enqueued.fate().await) }));
            return;
        }
        let request = PeerRequest::Propose { group: self.id, term, proposals: batch };
        let sent = call::<RtOf<P>, T>(&self.transport, leader, Lane::Consensus, &request);
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

/// A command on its way through this node's Raft.
type Written<RT> = OneshotReceiverOf<Types<RT>, ClientWriteResult<Types<RT>>>;

/// Commands on their way; `None` for those that this node has no disk space for.
struct Enqueued<RT: AsyncRuntime>(Vec<Option<Written<RT>>>);

impl<RT: AsyncRuntime> Enqueued<RT> {
    /// Waits until what became of each is known.
    async fn fate(self) -> Fate {
        let mut fate = Fate::default();
        for (place, receiver) in (0u32..).zip(self.0) {
            let Some(receiver) = receiver else {
                fate.refused.push(place);
                continue;
            };
            match receiver.await {
                Ok(Ok(_)) => {}
                Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                    fate.refused.push(place);
                    fate.leader = forward.leader_id;
                }
                // Discarded here, it may still be committed by another leader.
                Ok(Err(_)) | Err(_) => fate.unknown.push(place),
            }
        }
        fate
    }
}

/// How many of these go into one message.
fn first_part(batch: &[Proposal]) -> usize {
    let mut bytes = 0_usize;
    let fits = batch.iter().take_while(|proposal| {
        if let EntryKind::Command { payload, .. } = &proposal.kind {
            bytes = bytes.saturating_add(payload.len());
        }
        bytes <= BATCH_BYTES
    });
    fits.count().max(1)
}

/// Takes proposals off the queue, as many as are there, until the group is gone.
pub async fn run<P: Platform, T: Transport>(group: Weak<Group<P, T>>, mut queue: mpsc::Receiver<Proposal>) {
    loop {
        let mut batch = Vec::new();
        if queue.recv_many(&mut batch, BATCH_PROPOSALS).await == 0 {
            return;
        }
        let Some(group) = group.upgrade() else { return };
        while !batch.is_empty() {
            let rest = batch.split_off(first_part(&batch));
            group.dispatch(std::mem::replace(&mut batch, rest)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Hundreds of commands of a mebibyte went into one message. The leader's node took it for a broken one and closed the connection, with
    /// the heartbeats of all groups; then they were all sent again, together.
    #[test]
    fn commands_that_wait_together_go_in_messages_of_some_bytes() {
        let proposal = |bytes: usize| {
            let origin = Origin { node: 1, incarnation: 1, number: 1 };
            let payload = Bytes::from(vec![0; bytes]);
            Proposal { time_ms: 0, origin, kind: EntryKind::Command { session: None, payload } }
        };
        let parts = |bytes: &[usize]| {
            let mut batch: Vec<Proposal> = bytes.iter().copied().map(proposal).collect();
            let mut parts = Vec::new();
            while !batch.is_empty() {
                let part = first_part(&batch);
                parts.push(part);
                batch.drain(..part);
            }
            parts
        };
        assert_eq!(parts(&[100; 500]), [500]);
        assert_eq!(parts(&[1 << 20; 20]), [8, 8, 4]);
        assert_eq!(parts(&[64 << 20, 64 << 20, 1]), [1, 1, 1], "one that is longer goes alone");
    }
}
