//! Quotas: how many nodes and bytes may be below a path.
//!
//! A quota of `/a` is the node `/zookeeper/quota/a/zookeeper_limits` with the limits as text, made by
//! a client; what there is is kept in `zookeeper_stats` beside it, without a new version or a watch
//! event, as ZooKeeper does.

use statehouse_sdk::warn;

use crate::path;
use crate::tree::Tree;
use crate::tree::arena::NodeId;
use crate::wire::ErrorCode;

const LIMITS: &str = "zookeeper_limits";
const STATS: &str = "zookeeper_stats";

/// The path that a limit node is about, if `path` is one's.
pub fn path_of_limit(path: &str) -> Option<&str> {
    subject(path, LIMITS)
}

fn subject<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let subject = path.strip_suffix(name)?.strip_suffix('/')?.strip_prefix(path::QUOTA)?;
    subject.starts_with('/').then_some(subject)
}

/// Numbers as ZooKeeper's `StatsTrack` writes them; what is not there, or is no number, is -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Track {
    count: i64,
    bytes: i64,
    hard_count: i64,
    hard_bytes: i64,
}

impl Track {
    fn parse(data: Option<&[u8]>) -> Self {
        let mut track = Self { count: -1, bytes: -1, hard_count: -1, hard_bytes: -1 };
        let text = String::from_utf8_lossy(data.unwrap_or_default());
        for pair in text.split([',', ';']) {
            let mut parts = pair.split('=');
            let field = match parts.next() {
                Some("count") => &mut track.count,
                Some("bytes") => &mut track.bytes,
                Some("countHardLimit") => &mut track.hard_count,
                Some("byteHardLimit") => &mut track.hard_bytes,
                _ => continue,
            };
            *field = parts.next().and_then(|number| number.parse().ok()).unwrap_or(-1);
        }
        track
    }
}

fn stats_text(count: i64, bytes: i64) -> String {
    format!("count={count},bytes={bytes}")
}

/// The deepest path with a quota that is `path` or above it.
fn quota_of<'t>(tree: &'t Tree, path: &str) -> Option<&'t str> {
    if tree.quotas().is_empty() {
        return None;
    }
    let mut at = path;
    while !at.is_empty() {
        if let Some(quota) = tree.quotas().get(at) {
            return Some(quota);
        }
        at = at.rsplit_once('/')?.0;
    }
    None
}

fn beside(tree: &Tree, quota: &str, name: &str) -> Option<NodeId> {
    tree.find(&format!("{}{quota}/{name}", path::QUOTA))
}

/// Whether `nodes` more nodes and `bytes` more bytes at `path` are within its quota. One that is not
/// is told in the log; a hard limit refuses it if quotas are enforced.
pub fn check(tree: &Tree, path: &str, nodes: i64, bytes: i64, is_enforced: bool) -> Result<(), ErrorCode> {
    let Some(quota) = quota_of(tree, path) else { return Ok(()) };
    let (Some(limits), Some(stats)) = (beside(tree, quota, LIMITS), beside(tree, quota, STATS)) else {
        return Ok(());
    };
    let limits = Track::parse(tree.get(limits).data());
    let stats = Track::parse(tree.get(stats).data());
    let kinds = [
        ("nodes", nodes, stats.count, limits.count, limits.hard_count),
        ("bytes", bytes, stats.bytes, limits.bytes, limits.hard_bytes),
    ];
    for (what, more, now, soft, hard) in kinds {
        let (limit, is_hard) = if hard > -1 { (hard, true) } else { (soft, false) };
        let then = now.saturating_add(more);
        if more == 0 || limit <= -1 || then <= limit {
            continue;
        }
        let kind = if is_hard { "hard" } else { "soft" };
        warn!("the {kind} quota of {quota} is exceeded: {then} {what}, the limit is {limit}");
        if is_hard && is_enforced {
            return Err(ErrorCode::QuotaExceeded);
        }
    }
    Ok(())
}

/// Keeps the stats of the quota that `path` is under.
pub fn count(tree: &mut Tree, path: &str, nodes: i64, bytes: i64) {
    let Some(stats) = quota_of(tree, path).and_then(|quota| beside(tree, quota, STATS)) else { return };
    let now = Track::parse(tree.get(stats).data());
    let text = stats_text(now.count.saturating_add(nodes), now.bytes.saturating_add(bytes));
    tree.replace_data(stats, Some(text.as_bytes()));
}

/// A node was made at `path`: if it is to hold a quota's stats, counts what there is.
pub fn count_anew(tree: &mut Tree, path: &str, id: NodeId) {
    let Some(subject) = subject(path, STATS) else { return };
    let (mut nodes, mut bytes) = (0_i64, 0_i64);
    if let Some(top) = tree.find(subject) {
        for id in std::iter::once(top).chain(tree.descendants(top)) {
            nodes += 1;
            bytes += tree.get(id).data_length() as i64;
        }
    }
    tree.replace_data(id, Some(stats_text(nodes, bytes).as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_node_names_its_path() {
        assert_eq!(path_of_limit("/zookeeper/quota/a/b/zookeeper_limits"), Some("/a/b"));
        for path in ["/zookeeper/quota/zookeeper_limits", "/zookeeper/quotas/a/zookeeper_limits", "/a/zookeeper_limits"]
        {
            assert_eq!(path_of_limit(path), None, "{path}");
        }
    }

    #[test]
    fn limits_are_read_as_the_client_tools_of_all_versions_write_them() {
        let track = |count, bytes, hard_count, hard_bytes| Track { count, bytes, hard_count, hard_bytes };
        for (text, expected) in [
            ("count=3,bytes=-1", track(3, -1, -1, -1)),
            ("count=3,bytes=4=;byteHardLimit=6;countHardLimit=5", track(3, 4, 5, 6)),
            ("", track(-1, -1, -1, -1)),
            ("count=,bytes=x;;what=1", track(-1, -1, -1, -1)),
        ] {
            assert_eq!(Track::parse(Some(text.as_bytes())), expected, "{text}");
        }
    }
}
