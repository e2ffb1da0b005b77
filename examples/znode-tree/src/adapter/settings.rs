//! What a listener is set to: the group's params, and those of the listener itself.

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error;
use statehouse_sdk::Reject;
use statehouse_sdk::adapter::Consistency;
use statehouse_sdk::ensure;

use super::words::RECOVER;
use crate::params::Compatibility;
use crate::params::Params;

/// The longest tick: a day. Twenty of it are a session timeout that a client can be told.
const TICK_TIME_MS_MAX: u64 = 86_400_000;

/// What the host hands to `Adapter::open`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Opening {
    params: Params,
    listen: Listen,
    node: u64,
    address: Option<String>,
}

/// The listener's own settings (`group create --listen-param NAME=VALUE`, the flags of `statehouse
/// keeper`); each may be left out. Numbers may come as text.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Listen {
    #[serde(deserialize_with = "number")]
    tick_time_ms: Option<u64>,
    #[serde(deserialize_with = "number")]
    min_session_timeout_ms: Option<u64>,
    #[serde(deserialize_with = "number")]
    max_session_timeout_ms: Option<u64>,
    #[serde(deserialize_with = "number")]
    jute_maxbuffer: Option<u64>,
    #[serde(deserialize_with = "number")]
    outstanding_limit: Option<u64>,
    #[serde(deserialize_with = "number")]
    sync_limit_ticks: Option<u64>,
    four_letter_words: Option<String>,
    super_digest: Option<String>,
    #[serde(deserialize_with = "flag")]
    digest_auth: Option<bool>,
    #[serde(deserialize_with = "flag")]
    quorum_reads: Option<bool>,
    #[serde(deserialize_with = "flag")]
    read_only_mode: Option<bool>,
    #[serde(deserialize_with = "flag")]
    skip_acl: Option<bool>,
    #[serde(deserialize_with = "flag")]
    audit: Option<bool>,
    #[serde(deserialize_with = "number")]
    client_port: Option<u64>,
}

/// A number, or the text of one: a command line knows no types.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Option::<Either>::deserialize(from)? {
        None => Ok(None),
        Some(Either::Number(number)) => Ok(Some(number)),
        Some(Either::Text(text)) => {
            let number = text.trim().parse();
            number.map(Some).map_err(|_| D::Error::custom(format!("`{text}` is not a whole number")))
        }
    }
}

/// A boolean, or the text of one.
fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Flag(bool),
        Text(String),
    }
    match Option::<Either>::deserialize(from)? {
        None => Ok(None),
        Some(Either::Flag(flag)) => Ok(Some(flag)),
        Some(Either::Text(text)) => match text.trim() {
            "true" | "yes" => Ok(Some(true)),
            "false" | "no" => Ok(Some(false)),
            _ => Err(D::Error::custom(format!("`{text}` is neither true nor false"))),
        },
    }
}

/// What the adapter goes by. Times in milliseconds, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's number.
    pub node: u64,
    /// Whose behaviour is wanted where ZooKeeper and ClickHouse Keeper differ.
    pub compatibility: Compatibility,
    /// ZooKeeper's unit of time.
    pub tick_time_ms: u64,
    /// The shortest session that is granted.
    pub min_session_timeout_ms: u64,
    /// The longest.
    pub max_session_timeout_ms: u64,
    /// The longest frame that a client may send.
    pub jute_maxbuffer: usize,
    /// How many requests of one connection may be under way before no more are read from it.
    pub outstanding_limit: usize,
    /// A node that knows no leader for so long disconnects its clients: what they read grows stale.
    pub sync_limit_ms: u64,
    /// The four-letter words that are answered.
    pub words: AllowList,
    /// `super:base64(sha1(super:password))`: whoever proves to be it is the super user.
    pub super_digest: Option<String>,
    /// Whether the scheme `digest` is known.
    pub digest_auth: bool,
    /// Whether every read sees all that was acknowledged anywhere before.
    pub quorum_reads: bool,
    /// Whether clients that would take it may read here when there is no leader. ZooKeeper's.
    pub read_only_mode: bool,
    /// The clients here need no permission.
    pub skip_acl: bool,
    /// Whether who changed what is written to the log.
    pub audit: bool,
    /// The port that `conf` shows; 0 when it is not known.
    pub client_port: u64,
    /// How often containers and nodes with a TTL are looked through.
    pub container_check_interval_ms: u64,
    /// What zxids are counted from.
    pub zxid_base: i64,
    /// ClickHouse's feature flags that were switched.
    pub feature_flags: std::collections::BTreeMap<String, bool>,
}

impl Settings {
    /// Reads what the host hands over.
    pub fn parse(json: &[u8]) -> Result<Self, Reject> {
        let Opening { params, listen, node, address } = statehouse_sdk::Params::new(json).parse()?;
        let is_clickhouse = params.compatibility == Compatibility::ClickHouse;
        let tick_time_ms = listen.tick_time_ms.unwrap_or(2_000);
        ensure!(
            (1..=TICK_TIME_MS_MAX).contains(&tick_time_ms),
            "listen: tick_time_ms is {tick_time_ms}, and must be from 1 to {TICK_TIME_MS_MAX}"
        );
        let (min, max) = if is_clickhouse { (10_000, 100_000) } else { (tick_time_ms * 2, tick_time_ms * 20) };
        let min_session_timeout_ms = listen.min_session_timeout_ms.unwrap_or(min);
        let max_session_timeout_ms = listen.max_session_timeout_ms.unwrap_or(max.max(min_session_timeout_ms));
        ensure!(
            min_session_timeout_ms <= max_session_timeout_ms && max_session_timeout_ms <= i32::MAX as u64,
            "listen: min_session_timeout_ms is {min_session_timeout_ms} and max_session_timeout_ms \
             {max_session_timeout_ms}: the first must not be above the second, nor that above 2147483647"
        );
        let jute_maxbuffer = listen.jute_maxbuffer.unwrap_or(u64::from(params.jute_maxbuffer));
        ensure!(jute_maxbuffer >= 1_024, "listen: jute_maxbuffer is {jute_maxbuffer}; it must be at least 1024");
        let port = address.as_deref().and_then(|address| address.rsplit_once(':')?.1.parse().ok());
        Ok(Self {
            node,
            compatibility: params.compatibility,
            tick_time_ms,
            min_session_timeout_ms,
            max_session_timeout_ms,
            jute_maxbuffer: usize::try_from(jute_maxbuffer).unwrap_or(usize::MAX),
            outstanding_limit: listen
                .outstanding_limit
                .map_or(1_000, |limit| usize::try_from(limit).unwrap_or(usize::MAX).max(1)),
            sync_limit_ms: tick_time_ms.saturating_mul(listen.sync_limit_ticks.unwrap_or(5)),
            words: AllowList::parse(listen.four_letter_words.as_deref(), params.compatibility),
            super_digest: listen.super_digest.or(params.super_digest),
            digest_auth: listen.digest_auth.unwrap_or(true),
            quorum_reads: listen.quorum_reads.unwrap_or(false),
            read_only_mode: listen.read_only_mode.unwrap_or(false) && !is_clickhouse,
            skip_acl: listen.skip_acl.unwrap_or(false),
            audit: listen.audit.unwrap_or(false),
            client_port: listen.client_port.or(port).unwrap_or(0),
            container_check_interval_ms: params.container_check_interval_ms,
            zxid_base: params.zxid_base,
            feature_flags: params.feature_flags,
        })
    }

    /// The zxid of an index of the group's log.
    pub fn zxid(&self, index: u64) -> i64 {
        self.zxid_base.wrapping_add(index as i64)
    }

    /// How fresh what clients read must be. (What one client wrote through this node it reads here either way.)
    pub fn consistency(&self) -> Consistency {
        if self.quorum_reads { Consistency::Linearizable } else { Consistency::Local }
    }

    /// Whether ClickHouse Keeper's behaviour is wanted.
    pub fn is_clickhouse(&self) -> bool {
        self.compatibility == Compatibility::ClickHouse
    }

    /// The session timeout for a client that asks for `wanted_ms`.
    pub fn negotiate(&self, wanted_ms: i32) -> u64 {
        let wanted_ms = match u64::try_from(wanted_ms).unwrap_or(0) {
            // ClickHouse takes 0 for "no wish".
            0 if self.is_clickhouse() => 30_000,
            wanted_ms => wanted_ms,
        };
        wanted_ms.clamp(self.min_session_timeout_ms, self.max_session_timeout_ms)
    }
}

/// Which four-letter words are answered: by their names, or by `*` all but the one that gives up the other servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowList(Vec<String>);

impl AllowList {
    /// Words with commas between, `*` for all. Left out: what ZooKeeper and ClickHouse Keeper allow, without `rcvr`.
    fn parse(list: Option<&str>, compatibility: Compatibility) -> Self {
        let list = list.unwrap_or(match compatibility {
            Compatibility::ZooKeeper => "srvr",
            Compatibility::ClickHouse => {
                "jmst,jmfp,jmep,jmdp,conf,cons,crst,envi,ruok,srst,srvr,stat,wchs,dirs,mntr,isro,apiv,csnp,lgif,rqld,\
                 rclc,clrs,ftfl,ydld,pfev,lgrq"
            }
        });
        Self(list.split(',').map(|word| word.trim().to_owned()).collect())
    }

    /// Whether this word is answered.
    pub fn allows(&self, word: &str) -> bool {
        let names = |name: &str| self.0.iter().any(|allowed| allowed == name);
        names(word) || names("*") && word.as_bytes() != RECOVER
    }

    /// As it is configured.
    pub fn text(&self) -> String {
        self.0.join(",")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn without_settings_zookeepers_defaults_hold() {
        let settings = Settings::parse(b"{}").unwrap();
        assert_eq!([0, -1, 1, 4_001, i32::MAX].map(|ms| settings.negotiate(ms)), [4_000, 4_000, 4_000, 4_001, 40_000]);
        assert!(settings.words.allows("srvr") && !settings.words.allows("mntr"));
        assert_eq!((settings.jute_maxbuffer, settings.sync_limit_ms), (0xf_ffff, 10_000));
    }

    #[test]
    fn clickhouse_mode_has_clickhouses_defaults() {
        let settings = Settings::parse(br#"{"params":{"compatibility":"clickhouse"},"node":3}"#).unwrap();
        assert_eq!([0, 1, i32::MAX].map(|ms| settings.negotiate(ms)), [30_000, 10_000, 100_000]);
        assert!(settings.words.allows("mntr") && !settings.words.allows("wchc"));
    }

    /// ClickHouse has it in its default list.
    #[test]
    fn the_word_that_gives_up_the_other_servers_is_allowed_by_its_name_alone() {
        let allows = |listen: &str| {
            let of = |mode: &str| {
                let json = format!(r#"{{"params":{{"compatibility":"{mode}"}},"listen":{listen}}}"#);
                Settings::parse(json.as_bytes()).unwrap().words.allows("rcvr")
            };
            assert_eq!(of("zookeeper"), of("clickhouse"), "{listen}");
            of("clickhouse")
        };
        assert!(
            !allows("{}") && !allows(r#"{"four_letter_words":"*"}"#) && !allows(r#"{"four_letter_words":"ruok,*"}"#)
        );
        assert!(allows(r#"{"four_letter_words":"ruok,rcvr"}"#) && allows(r#"{"four_letter_words":"*, rcvr"}"#));
    }

    #[test]
    fn settings_of_a_command_line_are_text() {
        let json =
            br#"{"listen":{"tick_time_ms":"100","max_session_timeout_ms":500,"four_letter_words":" ruok , mntr"},
                        "address":"127.0.0.1:2181"}"#;
        let settings = Settings::parse(json).unwrap();
        assert_eq!([1, 9_999].map(|ms| settings.negotiate(ms)), [200, 500]);
        assert!(settings.words.allows("mntr") && !settings.words.allows("srvr"));
        assert_eq!(settings.client_port, 2181);
        assert!(Settings::parse(br#"{"listen":{"four_letter_words":"*"}}"#).unwrap().words.allows("dump"));
    }

    #[test]
    fn a_setting_that_cannot_be_is_refused_by_its_name() {
        for (json, word) in [
            (r#"{"listen":{"tick_time_ms":"soon"}}"#, "soon"),
            (r#"{"listen":{"tick_tim_ms":1}}"#, "tick_tim_ms"),
            (r#"{"listen":{"tick_time_ms":0}}"#, "tick_time_ms is 0"),
            (r#"{"listen":{"tick_time_ms":86400001}}"#, "tick_time_ms is 86400001"),
            (r#"{"listen":{"tick_time_ms":18446744073709551615}}"#, "tick_time_ms is 18446744073709551615"),
            (r#"{"listen":{"min_session_timeout_ms":9,"max_session_timeout_ms":8}}"#, "min_session_timeout_ms"),
            (r#"{"listen":{"jute_maxbuffer":10}}"#, "jute_maxbuffer"),
        ] {
            let error = Settings::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
