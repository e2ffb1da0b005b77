//! How fit this node is to take commands and to lead: it looks after the disk's free space, tells the other nodes of that and of
//! its priority, and lets a better one lead. See [`crate::group::space`] and [`crate::group::priority`].

use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;

use super::Node;
use crate::catalog::CatalogCommand;
use crate::group::priority;
use crate::membership::no_node;
use crate::peer::Transport;
use crate::platform::Platform;
use crate::service::ErrorCode;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::types::CATALOG;
use crate::types::CATALOG_NAME;
use crate::types::NodeId;

/// Between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// A node that is as fit as ever says so, and looks for a better leader, every so many looks.
const QUIET_LOOKS: u32 = 4;
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1000);

impl<P: Platform, T: Transport> Node<P, T> {
    /// Runs as long as the node.
    pub(super) async fn stay_fit(self) {
        let mut looks: u32 = 0;
        while !self.is_stopping() {
            let changed = self.look_at_space().await;
            self.heed_priorities();
            self.all_groups().iter().for_each(|group| group.stand_in());
            if changed || self.0.common.space.is_short() || looks.is_multiple_of(QUIET_LOOKS) {
                self.tell_fitness();
                let groups = self.all_groups();
                futures_util::future::join_all(groups.iter().map(|group| group.yield_lead())).await;
            }
            looks = looks.wrapping_add(1);
            P::Runtime::sleep(LOOK_PAUSE).await;
        }
    }

    /// How much a node is to lead from now on; `None`: as it was started.
    pub(super) async fn set_priority(&self, node: NodeId, priority: Option<u8>) -> ServiceResult<()> {
        if !self.wait_leaders_roster(CATALOG, CATALOG_NAME).await?.members.contains_key(&node) {
            return Err(no_node(node));
        }
        if priority.is_some_and(|priority| priority > 0) && self.0.common.priorities.is_never(node) {
            let detail = format!("node {node} was started with --never-lead");
            return Err(ServiceError::new(ErrorCode::BadRequest, detail));
        }
        self.change_catalog(&CatalogCommand::SetPriority { node, priority }).await?;
        // Whoever is told that it is done finds it so here; done it is, whether this node hears of it in time or not.
        if let Err(error) = self.fresh_catalog().await {
            tracing::debug!(node, %error, "a priority was set that is not known here yet");
        }
        self.heed_priorities();
        Ok(())
    }

    /// Takes over what the catalog says of priorities. At every look too: a group that begins to vote meanwhile may have gone by
    /// the former one.
    pub(super) fn heed_priorities(&self) {
        let priorities = &self.0.common.priorities;
        if priorities.set(&self.0.view.get().priorities) {
            tracing::info!(priority = priorities.own(), "this node has another priority to lead");
        }
        self.all_groups().iter().for_each(|group| group.stand_by_priority());
    }

    /// Whether it has changed that there is space.
    async fn look_at_space(&self) -> bool {
        let space = &self.0.common.space;
        let log_waits = self.0.setup.log.stats().waits_for_room;
        // A file system that cannot say how much is free is not a full one, and what others said grows old all the same.
        let mut free = None;
        if space.reserve_bytes() > 0 || log_waits || space.is_short() {
            let (disk, data_dir) = (self.0.setup.disk.clone(), self.0.setup.data_dir.clone());
            let asked = self.0.setup.platform.run_guest(move || disk.free_space(&data_dir)).await;
            free = asked.and_then(Result::ok);
        }
        let changed = space.look(free.unwrap_or(u64::MAX), log_waits);
        let (free_mib, reserve_mib) = (free.map(|free| free >> 20), space.reserve_bytes() >> 20);
        match changed {
            Some(true) => tracing::error!(
                free_mib,
                reserve_mib,
                "the disk is full but for its reserve: no commands are taken until there is space again; reads go on"
            ),
            Some(false) => tracing::info!(free_mib, "there is disk space again: commands are taken"),
            None => {}
        }
        changed.is_some()
    }

    fn tell_fitness(&self) {
        for member in self.0.catalog.standing().members.into_iter().filter(|member| member.id != self.id()) {
            let node = self.clone();
            // Who does not hear it is told again soon, or goes by its own look.
            drop(P::Runtime::spawn(async move {
                let (transport, common) = (&node.0.setup.transport, &node.0.common);
                priority::exchange::<P::Runtime, T>(
                    transport,
                    &common.space,
                    &common.priorities,
                    member.id,
                    ANSWER_TIME_MAX,
                )
                .await;
            }));
        }
    }
}
