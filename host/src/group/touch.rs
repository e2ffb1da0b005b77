//! Sessions' signs of life.
//!
//! Invariant: who is told that a session was heard of is told so of a session that was there when it was asked, as a quorum's leader
//! knows, by a node that leads. A leader that comes after gives every session its full timeout again.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;

use super::*;

/// Between two tries to tell the leader.
const AGAIN_PAUSE: Duration = Duration::from_millis(20);

impl<P: Platform, T: Transport> Group<P, T> {
    /// A session's sign of life; the leader hears of it with others, soon.
    pub fn touch(&self, id: u64, secret: [u8; 16]) -> ServiceResult<()> {
        self.check_session(id, secret)?;
        self.hear(vec![id]);
        Ok(())
    }

    /// The same, and the leader has heard of it.
    pub async fn touch_at_leader(self: &Arc<Self>, id: u64, secret: [u8; 16], timeout: Duration) -> ServiceResult<()> {
        let told = async {
            loop {
                // What this replica has not applied yet may be the session's end, or its beginning.
                self.wait_read_index(false).await?;
                self.check_session(id, secret)?;
                if self.tell_leader(id).await {
                    return Ok(());
                }
                RtOf::<P>::sleep(AGAIN_PAUSE).await;
            }
        };
        RtOf::<P>::timeout(timeout, told).await.unwrap_or_else(|_| {
            let code = if self.leader().is_some() { ErrorCode::Timeout } else { ErrorCode::NoLeader };
            let detail = format!("no leader has heard of session {id} within {} ms", timeout.as_millis());
            Err(self.error(code, detail))
        })
    }

    /// Signs of life, from clients here or told by another node.
    pub fn hear(&self, mut sessions: Vec<u64>) {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).append(&mut sessions);
    }

    fn check_session(&self, id: u64, secret: [u8; 16]) -> ServiceResult<()> {
        match self.shared.secret(id) {
            None => Err(self.error(ErrorCode::SessionNotFound, format!("no session {id}"))),
            Some(known) if known != secret => {
                Err(self.error(ErrorCode::WrongSecret, format!("the secret of session {id} is another")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether the leader has heard of the session.
    async fn tell_leader(&self, id: u64) -> bool {
        match self.leader() {
            None => false,
            Some(leader) if leader == self.node => {
                self.hear(vec![id]);
                true
            }
            Some(leader) => {
                let request = PeerRequest::Touch(self.id, vec![id]);
                matches!(self.ask_leader(leader, &request).await, Ok(PeerResponse::Done))
            }
        }
    }
}
