//! The node's numbers, read where they live at the moment they are asked for.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

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
            .gauge(
                "statehouse_log_waits_for_room",
                "1 while the log has no room for its next segment, and all writes wait",
                &[],
                f64::from(u8::from(log.waits_for_room)),
            )
            .gauge("statehouse_log_live_bytes", "Bytes of entries not purged", &[], log.live_bytes as f64)
            .gauge("statehouse_log_cached_bytes", "Bytes of entries in memory", &[], log.cached_bytes as f64)
            .gauge(
                "statehouse_ready",
                "1 when the node is ready",
                &[],
                f64::from(u8::from(self.not_ready().is_empty())),
            );
        let space = &self.0.common.space;
        page.gauge(
            "statehouse_disk_short",
            "1 when the disk is full but for its reserve, and no commands are taken",
            &[],
            f64::from(u8::from(space.is_short())),
        );
        for (name, help, count) in self.transfer_counts() {
            page.counter(name, help, &[], count);
        }
        page.gauge(
            "statehouse_transfers_under_way",
            "Snapshots that are being sent or wait for their turn",
            &[],
            self.0.common.transfers.counts().under_way.load(Ordering::Relaxed) as f64,
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

    fn transfer_counts(&self) -> Vec<(&'static str, &'static str, u64)> {
        let counts = self.0.common.transfers.counts();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("statehouse_transfers_begun", "Snapshots whose sending was begun or taken up again", read(&counts.begun)),
            ("statehouse_transfers_resumed", "Of these, taken up again where they were cut", read(&counts.resumed)),
            ("statehouse_transfers_finished", "Snapshots sent and installed", read(&counts.finished)),
            ("statehouse_transfers_failed", "Transfers cut, refused or given up", read(&counts.failed)),
            ("statehouse_transfer_sent_bytes", "Bytes of snapshots sent", read(&counts.sent_bytes)),
            (
                "statehouse_transfer_resumed_bytes",
                "Bytes of snapshots that did not have to be sent again after a cut",
                read(&counts.resumed_bytes),
            ),
            (
                "statehouse_transfer_throttled_microseconds",
                "Time for which the limits held transfers up",
                read(&counts.throttled_micros),
            ),
            ("statehouse_transfer_received_bytes", "Bytes of snapshots received", read(&counts.received_bytes)),
            (
                "statehouse_transfers_received_resumed",
                "Incoming transfers that went on with what was here already",
                read(&counts.received_resumed),
            ),
            (
                "statehouse_transfer_refused_parts",
                "Parts of incoming snapshots that did not check out",
                read(&counts.refused_parts),
            ),
        ]
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
        let transfers = self.transfer_counts().into_iter();
        counters.extend(transfers.map(|(name, _, count)| (name.trim_start_matches("statehouse_").to_string(), count)));
        for group in lock(&self.0.groups).values() {
            counters.insert(format!("applied/{}", group.name()), group.applied());
        }
        counters
    }
}
