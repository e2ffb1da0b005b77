//! What is counted, for four-letter words: of the server, and of each connection.

use std::collections::BTreeMap;

/// How long requests took, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    min_ms: u64,
    pub max_ms: u64,
    pub total_ms: u64,
    pub count: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { min_ms: u64::MAX, max_ms: 0, total_ms: 0, count: 0 }
    }
}

impl Latency {
    /// Counts one request.
    pub fn add(&mut self, took_ms: u64) {
        self.min_ms = self.min_ms.min(took_ms);
        self.max_ms = self.max_ms.max(took_ms);
        self.total_ms = self.total_ms.saturating_add(took_ms);
        self.count += 1;
    }

    /// The shortest; 0 without any.
    pub fn min_ms(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min_ms }
    }

    /// The mean, in whole milliseconds.
    pub fn whole_average_ms(&self) -> u64 {
        self.total_ms.checked_div(self.count).unwrap_or(0)
    }

    /// The mean as ZooKeeper prints it: at most four places, at least one.
    pub fn average_text(&self) -> String {
        decimal(self.total_ms, self.count)
    }
}

/// How long requests took, with how many took how long: ZooKeeper keeps a sample of 4,096 for its percentiles, here each is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    pub all: Latency,
    /// How many took so long. Times are rounded down to three binary digits, so that there are few of them however long one takes.
    counts: BTreeMap<u64, u64>,
}

impl Percentiles {
    /// Counts one request.
    pub fn add(&mut self, took_ms: u64) {
        self.all.add(took_ms);
        let dropped = took_ms.checked_ilog2().unwrap_or(0).saturating_sub(2);
        *self.counts.entry(took_ms >> dropped << dropped).or_default() += 1;
    }

    /// So long at most took `of_thousand` of a thousand of them, to the digits that are kept; 0 without any.
    pub fn at(&self, of_thousand: u64) -> u64 {
        let wanted = (u128::from(self.all.count) * u128::from(of_thousand)).div_ceil(1_000);
        let mut seen = 0_u128;
        let reaches = |(_, count): &(&u64, &u64)| {
            seen += u128::from(**count);
            seen >= wanted
        };
        self.counts.iter().find(reaches).map_or(0, |(took_ms, _)| *took_ms)
    }
}

/// `total / count` with at most four decimal places, at least one: `0.0`, `1.5`, `0.3333`.
pub fn decimal(total: u64, count: u64) -> String {
    let ten_thousandths = (u128::from(total) * 10_000 + u128::from(count) / 2).checked_div(u128::from(count));
    let text = ten_thousandths.map_or_else(String::new, |value| format!("{}.{:04}", value / 10_000, value % 10_000));
    match text.trim_end_matches('0') {
        "" => "0.0".to_owned(),
        short if short.ends_with('.') => format!("{short}0"),
        short => short.to_owned(),
    }
}

/// Of the server, since its start or the last `srst`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    pub received: u64,
    pub sent: u64,
    pub received_bytes: u64,
    pub latency: Latency,
    pub read_latency: Percentiles,
    pub update_latency: Percentiles,
    /// Times without a leader.
    pub leaderless: Latency,
    /// Those of them that ended with this node leading.
    pub elections: Latency,
    /// Bytes of replies: the last, the smallest, the largest; none since the reset is `None`.
    pub response_bytes: Option<(u64, u64, u64)>,
    pub auth_failed: u64,
    pub connections_rejected: u64,
    pub connection_requests: u64,
    pub revalidations: u64,
    pub stale_replies: u64,
    pub throttled: u64,
    pub unsuccessful_handshakes: u64,
    pub watch_bytes: u64,
    /// Requests by operation.
    pub operations: BTreeMap<&'static str, u64>,
}

impl ServerStats {
    /// Counts a reply of so many bytes.
    pub fn replied(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        let (_, min, max) = self.response_bytes.unwrap_or((0, u64::MAX, 0));
        self.response_bytes = Some((bytes, min.min(bytes), max.max(bytes)));
        self.sent += 1;
    }
}

/// Of one connection, since it was opened or the last `crst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionStats {
    pub received: u64,
    pub sent: u64,
    pub latency: Latency,
    pub last_latency_ms: u64,
    /// What was answered last: its name in `cons`.
    pub last_operation: &'static str,
    /// Its xid; -1: none, or one below 0.
    pub last_xid: i64,
    /// The zxid of that answer; -1: none yet.
    pub last_zxid: i64,
    /// When it was answered, Unix milliseconds.
    pub last_response_ms: u64,
}

impl Default for ConnectionStats {
    fn default() -> Self {
        Self {
            received: 0,
            sent: 0,
            latency: Latency::default(),
            last_latency_ms: 0,
            last_operation: "NA",
            last_xid: -1,
            last_zxid: -1,
            last_response_ms: 0,
        }
    }
}

impl ConnectionStats {
    /// Counts an answer.
    pub fn answered(&mut self, operation: &'static str, xid: i64, zxid: i64, took_ms: u64, now_ms: u64) {
        if xid >= 0 {
            self.last_xid = xid;
        }
        self.last_zxid = zxid;
        self.last_operation = operation;
        self.last_response_ms = now_ms;
        self.last_latency_ms = took_ms;
        self.latency.add(took_ms);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_requests_to_three_binary_digits() {
        let mut latencies = Percentiles::default();
        assert_eq!([500, 999].map(|part| latencies.at(part)), [0, 0]);
        (0..990).for_each(|_| latencies.add(1));
        (0..9).for_each(|_| latencies.add(7));
        latencies.add(1_000);
        assert_eq!([500, 950, 990, 999, 1_000].map(|part| latencies.at(part)), [1, 1, 1, 7, 896]);
        assert_eq!((latencies.all.count, latencies.all.max_ms), (1_000, 1_000));
        [0, u64::MAX].into_iter().for_each(|took_ms| latencies.add(took_ms));
        assert_eq!(latencies.at(0), 0);
    }

    #[test]
    fn averages_are_written_as_zookeeper_does() {
        let texts = [(0, 0), (0, 7), (3, 2), (1, 3), (2, 3), (70, 7)].map(|(total, count)| decimal(total, count));
        assert_eq!(texts, ["0.0", "0.0", "1.5", "0.3333", "0.6667", "10.0"]);
    }
}
