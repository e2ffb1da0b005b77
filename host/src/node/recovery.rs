//! A node whose others are lost for good goes on alone, asked by an adapter on behalf of an operator: what `statehouse recover` does to a
//! stopped node, without stopping the process.
//!
//! Invariants:
//! - Nobody is asked whether it is meant, so it is refused wherever there may be something to lose by it: while a group has a leader that
//!   others follow, while a majority of any group's voters answers (they may be electing one this moment), and at a node that does
//!   not vote. What may be lost all the same is told in the log.
//! - What is done to the directory is done as the command does it, after the node has ended and under the same lock.
//! - Until the first write the directory is the old cluster's. From then on it is the new one's, and whoever starts on it finishes what
//!   was begun: what was asked for once is not asked for again by a node that cannot start.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use tokio::sync::Notify;

use super::Node;
use super::identity;
use super::lock;
use super::roster::ANSWER_TIME_MAX;
use crate::disk::Disk;
use crate::disk::RealDisk;
use crate::gateway::Recoverer;
use crate::group::Standing;
use crate::offline::Directory;
use crate::offline::recover::Plan;
use crate::offline::recover::RecoverError;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::platform::Platform;
use crate::platform::RealPlatform;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::types::CATALOG_NAME;
use crate::types::NodeId;

/// What is said to everyone for whom this is not the way.
const OTHERWISE: &str = "Nothing was changed. If it is meant all the same, stop the node and run `statehouse recover`";

/// Whether this node was asked to go on without the others, and would.
#[derive(Debug, Default)]
pub(super) struct LostOthers {
    asked: Mutex<bool>,
    told: Notify,
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// For the adapter of a group. It does not keep the node from ending.
    pub(super) fn recoverer(&self) -> Recoverer {
        let node = Arc::downgrade(&self.0);
        Arc::new(move |only_check: bool| -> BoxFuture<'static, ServiceResult<()>> {
            let node = node.upgrade().map(Self);
            Box::pin(async move {
                let node = node.ok_or_else(|| ServiceError::new(ErrorCode::Unavailable, "the node has ended"))?;
                node.check_others_are_lost().await?;
                if !only_check {
                    tracing::warn!("a client of an adapter asked that this node goes on without the others");
                    *lock(&node.0.lost_others.asked) = true;
                    node.0.lost_others.told.notify_waiters();
                }
                Ok(())
            })
        })
    }

    /// Waits until this node was asked to go on without the others, and there was nothing against it.
    ///
    /// Whoever waits ends the node at once and makes its directory a cluster of its own. The others may come back in the second or two
    /// before that is written. Their states do not mix with this one's even then: the new cluster's id keeps them out, both ways. What
    /// they acknowledge without this node is not here, as with all that they ever acknowledged; what they acknowledged with it is.
    pub async fn asked_to_recover(&self) {
        loop {
            let told = self.0.lost_others.told.notified();
            if *lock(&self.0.lost_others.asked) {
                return;
            }
            told.await;
        }
    }

    async fn check_others_are_lost(&self) -> ServiceResult<()> {
        let own = self.id();
        let refuse = |why: String| Err(ServiceError::new(ErrorCode::BadRequest, format!("{why}. {OTHERWISE}")));
        if self.is_stopping() {
            return Err(ServiceError::new(ErrorCode::Unavailable, "this node is stopping"));
        }
        if !self.may_vote() {
            return refuse(format!(
                "Node {own} does not vote: it has not all that its cluster has. Ask another survivor"
            ));
        }
        if let Some(why) = self.removal() {
            return refuse(format!("{why}. Ask another survivor"));
        }
        if !voters(&self.catalog().standing()).contains(&own) {
            return refuse(format!(
                "Node {own} is no voter of the cluster: what was acknowledged need not be here. Ask a voter"
            ));
        }
        let groups = self.all_groups();
        let others: BTreeSet<NodeId> = groups.iter().flat_map(|group| voters(&group.standing())).collect();
        let others = others.into_iter().filter(|node| *node != own);
        let answers = join_all(others.map(|node| async move {
            self.ask(node, PeerRequest::Status, ANSWER_TIME_MAX).await.is_ok().then_some(node)
        }));
        let mut there: BTreeSet<NodeId> = answers.await.into_iter().flatten().collect();
        there.insert(own);
        for group in groups {
            let standing = group.standing();
            if let Some(why) = why_not_lost(own, group.name(), &voters(&standing), standing.leader, &there) {
                return refuse(why);
            }
        }
        Ok(())
    }
}

fn voters(standing: &Standing) -> BTreeSet<NodeId> {
    standing.members.iter().filter(|member| member.role == "voter").map(|member| member.id).collect()
}

/// What speaks against giving up a group's other members.
fn why_not_lost(
    own: NodeId,
    group: &str,
    voters: &BTreeSet<NodeId>,
    leader: Option<NodeId>,
    there: &BTreeSet<NodeId>,
) -> Option<String> {
    // A group that is only here loses nothing. The catalog that is only here says that there is nobody to be given up.
    if voters.iter().eq([&own]) && group != CATALOG_NAME {
        return None;
    }
    if let Some(leader) = leader {
        return Some(format!("Group {group} is led by node {leader}: there is nothing to recover from"));
    }
    let there: Vec<NodeId> = voters.intersection(there).copied().collect();
    (there.len().saturating_mul(2) > voters.len()).then(|| {
        format!("Of the voters {voters:?} of group {group}, {there:?} are there: a majority, which will have a leader")
    })
}

/// Makes the directory of an ended node a cluster of its own, as `statehouse recover` does; what that command prints goes to the
/// log. `held` is the directory's lock.
pub fn recover(held: &File, data_dir: &Path) -> Result<(), RecoverError> {
    let (directory, _) = Directory::open_held(held, data_dir)?;
    let mut plan = Plan::make(&directory, None, RealPlatform.wall_ms())?;
    plan.identity.resumes = true;
    for line in plan.words().lines().filter(|line| !line.is_empty()) {
        tracing::warn!("{line}");
    }
    for kept in &plan.kept {
        let (last, known_committed) = (kept.last.index, kept.committed);
        tracing::warn!(group = kept.name, last, known_committed, voters_before = ?kept.voters, "the group goes on from here");
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut drawn = [0; 16];
    RealPlatform.fill_random(&mut drawn);
    let cluster = plan.carry_out(&disk, data_dir, drawn)?;
    tracing::warn!(node = plan.identity.node, cluster, "this node is a cluster of its own now");
    Ok(())
}

/// Finishes a recovery that was asked of the running node and cut short.
pub(super) fn resume(held: &File, data_dir: &Path) -> Result<(), RecoverError> {
    let identity = identity::read(&RealDisk, data_dir);
    // What cannot be read is told by those who need more of it.
    if identity.is_ok_and(|found| found.is_some_and(|found| found.recovering && found.resumes)) {
        return recover(held, data_dir);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn others_are_lost_when_no_group_has_a_leader_or_a_majority_that_answers() {
        let why = |group: &str, voters: &[NodeId], leader: Option<NodeId>, there: &[NodeId]| {
            let [voters, there] = [voters, there].map(|nodes| nodes.iter().copied().collect());
            why_not_lost(1, group, &voters, leader, &there)
        };
        assert_eq!(why("store", &[1, 2, 3], None, &[1]), None);
        assert_eq!(why("store", &[1, 2, 3, 4, 5], None, &[1, 5]), None);
        assert_eq!(why("store", &[1, 2], None, &[1]), None);
        assert!(why("store", &[1, 2, 3], Some(2), &[1]).unwrap().contains("led by node 2"));
        // Between two leaders nobody is lost.
        assert!(why("store", &[1, 2, 3], None, &[1, 3]).unwrap().contains("{1, 2, 3} of group store, [1, 3] are"));
        // Of a group that has no voter here, it is the others that count.
        assert!(why("store", &[2, 3], None, &[1, 2, 3]).is_some() && why("store", &[2, 3], None, &[1, 2]).is_none());
        // A group of this node alone goes on either way; a cluster of it alone has nobody to give up.
        assert_eq!(why("store", &[1], Some(1), &[1]), None);
        assert!(why(CATALOG_NAME, &[1], Some(1), &[1]).is_some() && why(CATALOG_NAME, &[1], None, &[1]).is_some());
    }
}
