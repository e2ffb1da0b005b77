//! What an adapter asks of the host itself, in words: how it stands, and what only a host can do for it.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::Shared;
use crate::group::state::Answer;
use crate::peer::Transport;
use crate::platform::Platform;
use crate::service::ErrorCode;
use crate::service::MemberView;
use crate::service::ServiceError;

impl<P: Platform, T: Transport> Shared<P, T> {
    /// Answers it.
    pub(super) async fn tell(&self, what: &str) -> Answer {
        let group = &self.options.group;
        let (word, rest) = what.split_once(' ').unwrap_or((what, ""));
        let told = match word {
            "status" => self.status().await,
            "snapshot" => serde_json::json!({ "index": group.snapshot().await? }),
            "lead" => {
                group.take_lead().await?;
                serde_json::json!({ "leads": group.leads() })
            }
            "yield" => {
                group.hand_over().await;
                serde_json::json!({ "leads": group.leads() })
            }
            "reset" => {
                self.count_anew();
                serde_json::json!({})
            }
            "change" => self.change(rest).await?,
            "recover" => self.recover(rest).await?,
            other => {
                let known = "status, reset, snapshot, lead, yield, change, recover";
                let detail = format!("there is no {other:?} to ask for: {known}");
                return Err(ServiceError::new(ErrorCode::BadRequest, detail));
            }
        };
        Ok(Bytes::from(told.to_string()))
    }

    /// This adapter's summaries begin anew.
    fn count_anew(&self) {
        let group = &self.options.group;
        group.count_anew(group.id());
        self.options.log.count_anew(group.id());
    }

    async fn change(&self, wish: &str) -> Result<serde_json::Value, ServiceError> {
        let Some(changer) = &self.options.changer else {
            let detail = format!("node {} was not started with --adapters-change-nodes", self.options.group.node());
            return Err(ServiceError::new(ErrorCode::Forbidden, detail));
        };
        let changes = serde_json::from_str(wish)
            .map_err(|error| ServiceError::new(ErrorCode::BadRequest, format!("change: {error}")))?;
        let roster = changer(changes).await?;
        Ok(serde_json::json!({ "done": true, "leader": roster.leader, "members": self.members(&roster.views()) }))
    }

    async fn recover(&self, how: &str) -> Result<serde_json::Value, ServiceError> {
        let only_check = match how {
            "" => false,
            "check" => true,
            other => {
                let detail = format!("recover: {other:?} is neither `check` nor nothing");
                return Err(ServiceError::new(ErrorCode::BadRequest, detail));
            }
        };
        let Some(recoverer) = &self.options.recoverer else {
            let (node, group) = (self.options.group.node(), self.name());
            let detail = format!("node {node} was not started to be recovered by clients of group {group}");
            return Err(ServiceError::new(ErrorCode::Forbidden, detail));
        };
        recoverer(only_check).await?;
        Ok(serde_json::json!({ "recovers": !only_check }))
    }

    /// Members, with how much each is to lead.
    fn members(&self, members: &[MemberView]) -> serde_json::Value {
        let member = |member: &MemberView| {
            let mut told = serde_json::json!(member);
            if let Some(told) = told.as_object_mut() {
                told.insert("priority".to_owned(), self.options.group.priority_of(member.id).into());
            }
            told
        };
        members.iter().map(member).collect()
    }

    /// What the operator has set, as far as it may interest who watches over a listener.
    fn settings(&self) -> serde_json::Value {
        let (clients, log) = (&self.options.clients, self.options.log.options());
        let mut settings = self.options.group.settings();
        if let Some(settings) = settings.as_object_mut() {
            let request_timeout_ms = u64::try_from(clients.request_timeout.as_millis()).unwrap_or(u64::MAX);
            settings.insert("request_timeout_ms".to_owned(), request_timeout_ms.into());
            settings.insert("connections_max".to_owned(), clients.connections_max.into());
            let of_one_address = clients.connections_per_address_max.into();
            settings.insert("connections_per_address_max".to_owned(), of_one_address);
            settings.insert("log_segment_bytes".to_owned(), log.segment_bytes.into());
            settings.insert("log_cache_bytes".to_owned(), log.cache_bytes.into());
        }
        settings
    }

    async fn status(&self) -> serde_json::Value {
        let group = &self.options.group;
        let standing = group.standing();
        let terms = group.log_terms();
        let (sessions, timers) = group.tables();
        let voters = standing.members.iter().filter(|member| member.role == "voter").count();
        let role = if group.leads() && voters == 1 { "standalone" } else { standing.state.as_str() };
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let uptime = <P::Runtime as AsyncRuntime>::Instant::now() - self.started;
        let platform = self.options.platform.clone();
        // It reads a folder with an entry a connection.
        let files = self.options.platform.run_guest(move || platform.open_files()).await.flatten();
        serde_json::json!({
            "node": group.node(),
            "group": group.name(),
            "role": role,
            "term": standing.term,
            "first_term": terms.map(|(first, _)| first),
            "last_term": terms.map(|(_, last)| last),
            "leader": standing.leader,
            "applied": standing.applied,
            "commit": standing.commit,
            "last": standing.last,
            "snapshot": standing.snapshot,
            "purged": standing.purged,
            "snapshot_bytes": group.snapshot_bytes(),
            "log_bytes": self.options.log.stats().live_bytes,
            "proposed": group.proposed(group.id()),
            "sync_micros": self.options.log.sync_times(group.id()),
            "snapshot_micros": group.snapshot_times(group.id()),
            "data_dir": self.options.data_dir.display().to_string(),
            "members": self.members(&standing.members),
            "settings": self.settings(),
            "sessions": sessions,
            "timers": timers,
            "held_sessions": self.sessions.load(Ordering::Relaxed),
            "connections": self.open_connections(),
            "received_bytes": count(&self.counts.received_bytes),
            "sent_bytes": count(&self.counts.sent_bytes),
            "reads": count(&self.counts.reads),
            "writes": count(&self.counts.writes),
            "waiting": group.waiting(),
            "uptime_s": uptime.as_secs(),
            "open_files": files.map(|(open, _)| open),
            "max_files": files.map(|(_, max)| max),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}
