//! What other nodes ask of this replica: Raft's requests, commands and read indexes they forward, snapshots.

use std::pin::pin;
use std::sync::Arc;
use std::sync::PoisonError;
use std::task::Poll;

use super::*;
use crate::peer::transfer::count;
use crate::snapshot::SnapshotFile;

/// Messages of leaders that may wait here at once. One leader has 16 under way.
pub(super) const APPENDS_MAX: usize = 256;

/// What has come of a snapshot is kept for so long after its last part.
const TRANSFER_KEPT: Duration = Duration::from_secs(600);

impl<P: Platform, T: Transport> Group<P, T> {
    /// Runs one Raft request of node `from`.
    pub async fn handle(
        self: &Arc<Self>,
        from: NodeId,
        request: PeerRequest<RtOf<P>>,
    ) -> Result<PeerResponse<RtOf<P>>, String> {
        if matches!(&request, PeerRequest::Propose { .. } | PeerRequest::ReadIndex { .. }) {
            self.hurry.mark(from);
        }
        let text = |error: &dyn std::fmt::Display| format!("group {}: {error}", self.name);
        match request {
            PeerRequest::Vote(..) | PeerRequest::PreVote(..) | PeerRequest::TransferLeader(..) if !self.may_vote() => {
                Err(text(&"this replica began empty and does not vote until it has caught up"))
            }
            PeerRequest::TransferLeader(..) if self.never_stands_in() => Err(text(&"this node never leads")),
            // Heartbeats are taken: this node follows, and comes after when it has space again.
            PeerRequest::Append(_, rpc) if self.space.is_spent() && !self.takes_when_spent(&rpc.entries) => {
                self.hear_of(from);
                Err(text(&"this node has no disk space left but what its log needs; it takes no entries until it has"))
            }
            PeerRequest::Append(_, rpc) => {
                // A log that waits for disk space answers nothing, heartbeats neither, and its leader asks again for as long.
                let Ok(_place) = self.appends.try_acquire() else {
                    self.hear_of(from);
                    return Err(text(&format!(
                        "{APPENDS_MAX} messages of its leader wait for this node's log already"
                    )));
                };
                self.check_leader(&rpc.vote)?;
                let _not_with_a_snapshot = self.taking.read().await;
                // Before, because a disk may take its time, and after, because it may be the first word of a new leader.
                self.hear_of(from);
                let answer = self.raft.append_entries(rpc).await.map_err(|error| text(&error));
                self.hear_of(from);
                answer.map(PeerResponse::Append)
            }
            PeerRequest::Vote(_, rpc) => {
                self.raft.vote(rpc).await.map(PeerResponse::Vote).map_err(|error| text(&error))
            }
            PeerRequest::PreVote(_, rpc) => {
                self.raft.pre_vote(rpc).await.map(PeerResponse::Vote).map_err(|error| text(&error))
            }
            PeerRequest::TransferLeader(_, request) => {
                let answer = self.raft.handle_transfer_leader(request).await;
                answer.map(PeerResponse::TransferLeader).map_err(|error| text(&error))
            }
            PeerRequest::Propose { term, proposals, .. } => Ok(self.propose_for_peer(term, proposals).await),
            PeerRequest::ReadIndex { lease, .. } => Ok(self.read_index_for_peer(lease).await),
            PeerRequest::Lead(_) => {
                let next = self.willing_successor(Some(from)).await.map_err(|error| text(&error))?;
                self.raft.trigger().transfer_leader(next).await.map_err(|error| text(&error))?;
                Ok(PeerResponse::Done)
            }
            PeerRequest::Roster(_) => self.roster().await.map(PeerResponse::Roster),
            PeerRequest::LeadersRoster(_) => self.leaders_roster().await.map(PeerResponse::Roster),
            PeerRequest::ChangeMembers { seen, change, .. } => {
                self.change_members(seen, change).await.map(|()| PeerResponse::Done)
            }
            PeerRequest::HandOver { to, .. } => self.hand_over_to(to).await.map(|_| PeerResponse::Done),
            PeerRequest::Touch(_, sessions) => {
                // Told to the leader all the same; only who waits for it asks again.
                self.hear(sessions);
                let leader = self.leader();
                Ok(if leader == Some(self.node) { PeerResponse::Done } else { PeerResponse::NotLeader(leader) })
            }
            PeerRequest::SnapshotBegin(offer) => {
                self.check_sender(from)?;
                // It was installed, and the answer was lost; or this replica wrote the same by itself.
                let is_offered = |file: &SnapshotFile| file.digest() == offer.digest && file.size() == offer.size;
                if self.shared.current_snapshot().is_some_and(|(_, file)| is_offered(&file)) {
                    return Ok(PeerResponse::SnapshotOffset(offer.size));
                }
                let offset = self.receive(move |receiver| receiver.begin(offer.digest, offer.size)).await?;
                let offset = offset.map_err(|error| error.to_string())?;
                count(&self.transfers.counts().received_resumed, u64::from(offset > 0));
                Ok(PeerResponse::SnapshotOffset(offset))
            }
            PeerRequest::SnapshotChunk { digest, offset, checksum, data, .. } => {
                let length = data.len() as u64;
                let next = self.receive(move |receiver| receiver.part(digest, offset, checksum, &data)).await?;
                let counts = self.transfers.counts();
                match &next {
                    Ok(next) if *next == offset.saturating_add(length) => count(&counts.received_bytes, length),
                    Ok(_) => {}
                    Err(_) => count(&counts.refused_parts, 1),
                }
                next.map(PeerResponse::SnapshotOffset).or_else(refusal)
            }
            PeerRequest::SnapshotEnd { digest, vote, .. } => {
                self.check_leader(&vote)?;
                let installed = self.install(digest, vote).await;
                self.hear_of(from);
                installed
            }
            other => Err(format!("{other:?} is not for a group")),
        }
    }

    /// Snapshots come from the leader that this replica follows: what a deposed one offers would push aside what its successor
    /// has sent already.
    fn check_sender(&self, from: NodeId) -> Result<(), String> {
        match self.raft.metrics().borrow_watched().current_leader.filter(|leader| *leader != from) {
            Some(leader) => Err(format!("group {}: node {leader} leads, not node {from}", self.name)),
            None => Ok(()),
        }
    }

    /// One step of an incoming snapshot, where the disk may be waited for; an error of its own when it was not even tried.
    async fn receive<R: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Receiver) -> Result<R, SnapshotError> + Send + 'static,
    ) -> Result<Result<R, SnapshotError>, String> {
        *self.received_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(InstantOf::<P>::now());
        let receiver = self.receiver.clone();
        let done = self.platform.run_guest(move || step(&mut receiver.lock().unwrap_or_else(PoisonError::into_inner)));
        let done = done.await.ok_or("a file job failed")?;
        if let Err(error) = &done {
            replica::die_of_sync(&self.platform, error);
        }
        Ok(done)
    }

    /// Removes what has come of a snapshot that nobody goes on with: the log may have brought it all since.
    pub(super) async fn forget_stale_transfer(&self) {
        let stale = {
            let mut received_at = self.received_at.lock().unwrap_or_else(PoisonError::into_inner);
            received_at.take_if(|at| InstantOf::<P>::now() - *at > TRANSFER_KEPT).is_some()
        };
        if !stale {
            return;
        }
        let receiver = self.receiver.clone();
        let forget = move || receiver.lock().unwrap_or_else(PoisonError::into_inner).forget();
        if let Some(Err(error)) = self.platform.run_guest(forget).await {
            tracing::warn!(group = self.id, %error, "the rest of a snapshot's transfer is still there");
        }
    }

    async fn install(&self, digest: [u8; 32], vote: Vote) -> Result<PeerResponse<RtOf<P>>, String> {
        // Kept until it is installed.
        let received;
        let (head, file) = match self.shared.newest_snapshot().filter(|(_, file)| file.digest() == digest) {
            Some(newest) => newest,
            None => {
                received = match self.receive(move |receiver| receiver.end(digest)).await? {
                    Ok(received) => received,
                    Err(error) => return refusal(error),
                };
                (received.head.clone(), received.file.clone())
            }
        };
        if head.group != self.id {
            return Err(format!("the snapshot is of group {}, not {}", head.group, self.id));
        }
        // openraft takes a snapshot that contradicts its vote for forged and panics; say it in words instead.
        if head.last_log_id.committed_leader_id().term > vote.leader_id.term {
            return Err("the snapshot is of a later term than its sender's vote".to_string());
        }
        // The same leader's entries may have come further while the snapshot was on its way. openraft then moves its
        // log progress back, and panics where it checks that. The commit index gets there by itself; until then, refuse.
        // No entries are taken from here until openraft has the snapshot, or they could overtake it still.
        let alone = self.taking.write().await;
        let covered = head.last_log_id.index;
        let further = self.raft.with_raft_state(move |state| {
            let last = state.log_ids.last().filter(|last| last.index > covered);
            *state.vote_ref() == vote
                && last.is_some_and(|last| last.committed_leader_id().term == vote.leader_id.term)
                && state.local_committed().is_none_or(|committed| committed.index < covered)
        });
        if further.await.map_err(|error| error.to_string())? {
            return Err(format!("the snapshot covers up to index {covered}; the log has come further by entries"));
        }
        let meta = openraft::SnapshotMeta { last_log_id: Some(head.last_log_id), last_membership: head.membership };
        let snapshot = openraft::Snapshot { meta, snapshot: file };
        let mut installing = pin!(self.raft.install_full_snapshot(vote, snapshot));
        // Polled once, it has its place in openraft's queue, before what is taken later.
        let response = match futures_util::poll!(&mut installing) {
            Poll::Ready(response) => response,
            Poll::Pending => {
                drop(alone);
                installing.await
            }
        };
        let response = response.map_err(|error| error.to_string())?;
        tracing::info!(group = self.id, index = head.last_log_id.index, "snapshot of the leader installed");
        Ok(PeerResponse::SnapshotInstalled(response.vote))
    }
}

/// What a sender is told of a step that failed. A file that is damaged where it lies is its own matter.
fn refusal<RT: AsyncRuntime>(error: SnapshotError) -> Result<PeerResponse<RT>, String> {
    match error {
        SnapshotError::SentDamaged { .. } => Ok(PeerResponse::SnapshotDamaged(error.to_string())),
        error => Err(error.to_string()),
    }
}
