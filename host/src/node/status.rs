//! How this node stands, and how the cluster does as far as it can see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::roster::ANSWER_TIME_MAX;
use crate::group::Group;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::platform::Platform;
use crate::status::ClusterStatus;
use crate::status::Diagnosis;
use crate::status::DiskStatus;
use crate::status::Known;
use crate::status::KnownNode;
use crate::status::NodeReport;
use crate::status::ReplicaReport;
use crate::status::diagnose;
use crate::types::NodeId;

/// Between the doctor's two looks. A healthy follower is told of a commit within a heartbeat.
const DOCTOR_PAUSE: Duration = Duration::from_millis(1000);

impl<P: Platform, T: Transport> Node<P, T> {
    /// What this node says of itself.
    pub(super) async fn report(&self) -> NodeReport {
        let uptime = <P::Runtime as AsyncRuntime>::Instant::now() - self.0.started;
        let replicas = self.all_groups().into_iter().map(|group| self.report_of(group));
        let mut groups = futures_util::future::join_all(replicas).await;
        groups.sort_by_key(|replica| replica.group);
        NodeReport {
            node: self.id(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            uptime_s: uptime.as_secs(),
            reasons: self.not_ready(),
            priority: self.0.common.priorities.own(),
            disk: self.disk_status().await,
            groups,
        }
    }

    async fn report_of(&self, group: Arc<Group<P, T>>) -> ReplicaReport {
        let standing = group.standing();
        // One that has stopped has no roster to tell.
        let roster = group.roster().await.unwrap_or_default();
        let snapshot = group.snapshot_status();
        ReplicaReport {
            group: group.id(),
            name: group.name().to_string(),
            roster: crate::membership::Roster { node: self.id(), ..roster },
            state: standing.state,
            term: standing.term,
            commit: standing.commit,
            applied: standing.applied,
            purged: standing.purged,
            snapshot: self.0.setup.platform.run_guest(snapshot).await.flatten(),
        }
    }

    async fn disk_status(&self) -> DiskStatus {
        let log = self.0.setup.log.stats();
        let (disk, data_dir) = (self.0.setup.disk.clone(), self.0.setup.data_dir.clone());
        // A disk that does not answer is one without space: nobody takes it for a healthy one.
        let space = move || {
            let free = disk.free_space(&data_dir).unwrap_or(0);
            (free, disk.total_space(&data_dir).unwrap_or(0))
        };
        let (free_bytes, total_bytes) = self.0.setup.platform.run_guest(space).await.unwrap_or_default();
        DiskStatus {
            free_bytes,
            total_bytes,
            reserve_bytes: self.0.common.space.reserve_bytes(),
            log_bytes: log.segment_bytes,
            log_live_bytes: log.live_bytes,
            syncs_measured: log.recent_syncs_micros.len() as u64,
            sync_p50_micros: log.recent_sync_micros(50),
            sync_p99_micros: log.recent_sync_micros(99),
        }
    }

    async fn report_at(&self, node: NodeId) -> Result<NodeReport, String> {
        match self.ask(node, PeerRequest::Report, ANSWER_TIME_MAX).await? {
            PeerResponse::Report(report) => Ok(*report),
            other => Err(format!("node {node} answered {other:?}")),
        }
    }

    /// How the cluster stands. Of what this node knows by itself, so that it can be asked when nobody leads.
    pub(super) async fn cluster_status(&self) -> ClusterStatus {
        let mut known: BTreeMap<NodeId, (String, String)> =
            self.0.setup.members.iter().map(|(id, address)| (*id, (address.clone(), "unknown".to_string()))).collect();
        let members = self.0.catalog.standing().members;
        if !members.is_empty() {
            known = members.into_iter().map(|member| (member.id, (member.address, member.role))).collect();
        }
        // One that was removed does not belong to the others any more, and still says how it stands itself.
        known.entry(self.id()).or_insert_with(|| (String::new(), "none".to_string()));
        let asked = known.into_iter().map(|(id, (address, role))| async move {
            (id, KnownNode { address, role, report: self.report_at(id).await })
        });
        let nodes = futures_util::future::join_all(asked).await.into_iter().collect();
        let setup = &self.0.setup;
        let at_ms = setup.platform.wall_ms();
        let status =
            Known { cluster: setup.cluster, node: self.id(), at_ms, catalog: &self.0.view.get(), nodes }.status();
        ClusterStatus { files: self.files_wait().await, ..status }
    }

    /// What is wrong with the cluster.
    pub(super) async fn diagnosis(&self) -> Diagnosis {
        let before = self.cluster_status().await;
        P::Runtime::sleep(DOCTOR_PAUSE).await;
        let now = self.cluster_status().await;
        let between_ms = u64::try_from(DOCTOR_PAUSE.as_millis()).unwrap_or(u64::MAX);
        diagnose(&before, &now, between_ms, &self.0.view.get())
    }
}
