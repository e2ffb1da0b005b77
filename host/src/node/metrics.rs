//! The node's numbers, read where they live at the moment they are asked for.

use std::collections::BTreeMap;

use super::Node;
use super::lock;
use crate::observe::Page;
use crate::peer::Transport;
use crate::platform::Platform;

impl<P: Platform, T: Transport> Node<P, T> {
    /// Prometheus text.
    pub(super) fn metrics_page(&self) -> String {
        let mut page = Page::new();
        let log = self.0.setup.log.stats();
        page.counter("statehouse_log_syncs", "Syncs of the node's log, one a batch", &[], log.batches)
            .counter("statehouse_log_operations", "Operations written to the log", &[], log.operations)
            .counter("statehouse_log_written_bytes", "Bytes written to the log", &[], log.written_bytes)
            .counter("statehouse_log_sync_microseconds", "Time spent in syncs of the log", &[], log.sync_micros)
            .counter("statehouse_log_slow_syncs", "Syncs of the log that took over a second", &[], log.slow_syncs)
            .counter("statehouse_log_recycled_segments", "Segments used again", &[], log.recycled_segments)
            .gauge("statehouse_log_segments", "Segments of the log", &[], log.segments as f64)
            .gauge("statehouse_log_live_bytes", "Bytes of entries not purged", &[], log.live_bytes as f64)
            .gauge("statehouse_log_cached_bytes", "Bytes of entries in memory", &[], log.cached_bytes as f64)
            .gauge(
                "statehouse_ready",
                "1 when the node is ready",
                &[],
                f64::from(u8::from(self.not_ready().is_empty())),
            );
        for group in self.all_groups() {
            let standing = group.standing();
            let labels = [("group", group.name())];
            page.gauge(
                "statehouse_group_leader",
                "1 when this node leads the group",
                &labels,
                f64::from(u8::from(group.leads())),
            )
            .gauge("statehouse_group_term", "Current term", &labels, standing.term as f64)
            .gauge("statehouse_group_commit_index", "Commit index", &labels, standing.commit as f64)
            .gauge("statehouse_group_applied_index", "Applied index", &labels, standing.applied as f64)
            .gauge("statehouse_group_last_index", "Last index in the log", &labels, standing.last as f64)
            .gauge(
                "statehouse_group_snapshot_index",
                "Index the newest snapshot covers",
                &labels,
                standing.snapshot as f64,
            )
            .gauge(
                "statehouse_group_waiting_commands",
                "Commands of this node's clients under way",
                &labels,
                group.waiting() as f64,
            );
        }
        for (id, running) in lock(&self.0.gateways).iter() {
            let (Some(gateway), Some(group)) = (running.gateway(), self.group_by_id(*id)) else { continue };
            let labels = [("group", group.name())];
            page.gauge(
                "statehouse_gateway_connections",
                "Client connections that are open",
                &labels,
                gateway.connections() as f64,
            )
            .gauge(
                "statehouse_gateway_sessions",
                "Sessions that this node's adapter holds",
                &labels,
                gateway.sessions() as f64,
            );
            for (name, help, count) in gateway.counters() {
                page.counter(name, help, &labels, count);
            }
        }
        page.text()
    }

    /// The same numbers for programs.
    pub(super) fn counter_map(&self) -> BTreeMap<String, u64> {
        let log = self.0.setup.log.stats();
        let mut counters = BTreeMap::from([
            ("log_syncs".to_string(), log.batches),
            ("log_operations".to_string(), log.operations),
            ("log_written_bytes".to_string(), log.written_bytes),
            ("log_sync_micros".to_string(), log.sync_micros),
        ]);
        for group in lock(&self.0.groups).values() {
            counters.insert(format!("applied/{}", group.name()), group.applied());
        }
        counters
    }
}
