//! What a group of this module is created with.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use statehouse_sdk::Reject;
use statehouse_sdk::ensure;

use crate::keeper;

/// Whose behaviour is wanted where ZooKeeper and ClickHouse Keeper differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compatibility {
    /// Apache ZooKeeper 3.9.
    #[default]
    ZooKeeper,
    /// ClickHouse Keeper: `/keeper` nodes, its own `cversion`, no checks by `ip`.
    ClickHouse,
}

/// The group's params, a JSON object; each may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// `zookeeper` or `clickhouse`.
    pub compatibility: Compatibility,
    /// `super:base64(sha1(super:password))`: who proves to be this digest may do everything.
    pub super_digest: Option<String>,
    /// No permission is asked for.
    pub skip_acl: bool,
    /// A quota that is exceeded refuses the write; otherwise it is only logged.
    pub enforce_quota: bool,
    /// Nodes with a TTL may be created.
    pub extended_types: bool,
    /// The longest TTL, milliseconds.
    pub max_ttl_ms: i64,
    /// How often containers and nodes with a TTL are looked through, milliseconds.
    pub container_check_interval_ms: u64,
    /// A container that never had a child goes after this time, milliseconds; 0: never.
    pub container_max_never_used_ms: u64,
    /// When nodes take about so many bytes, creates, sets and multis that add more than they remove are
    /// refused with ClickHouse's `OutOfMemory`, so that deletes still find room; 0: never.
    pub memory_soft_limit_bytes: u64,
    /// A client that may write `/zookeeper/config` may change the cluster's members, at nodes whose host allows it.
    pub reconfig_enabled: bool,
    /// The longest request, bytes: what the adapter takes as a frame.
    pub jute_maxbuffer: u32,
    /// ClickHouse: names of feature flags to switch on or off.
    pub feature_flags: BTreeMap<String, bool>,
    /// What zxids are counted from: the newest zxid of the tree that is imported into the group, so that clients of its
    /// former servers have seen nothing newer.
    pub zxid_base: i64,
    /// ClickHouse: the data of `/keeper/availability_zone`, if the node shall be there.
    pub availability_zone: Option<String>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            compatibility: Compatibility::default(),
            super_digest: None,
            skip_acl: false,
            enforce_quota: false,
            extended_types: false,
            // Five bytes: what ZooKeeper keeps of it in a node's ephemeralOwner.
            max_ttl_ms: 0x00FF_FFFF_FFFF,
            container_check_interval_ms: 60_000,
            container_max_never_used_ms: 0,
            memory_soft_limit_bytes: 0,
            reconfig_enabled: false,
            jute_maxbuffer: 0xF_FFFF,
            feature_flags: BTreeMap::new(),
            zxid_base: 0,
            availability_zone: None,
        }
    }
}

impl Params {
    /// What JSON cannot say is wrong.
    pub fn check(&self) -> Result<(), Reject> {
        // Five bytes: what ZooKeeper keeps of it in a node's ephemeralOwner.
        const MOST: i64 = 0x00FF_FFFF_FFFF;
        ensure!(
            (1..=MOST).contains(&self.max_ttl_ms),
            "params: max_ttl_ms is {}, and must be from 1 to {MOST}",
            self.max_ttl_ms
        );
        ensure!(self.zxid_base >= 0, "params: zxid_base is {}, and must not be negative", self.zxid_base);
        for name in self.feature_flags.keys() {
            let is_known = keeper::FLAGS.iter().any(|(known, ..)| known == name);
            ensure!(is_known, "params: feature_flags: there is no {name:?}");
        }
        Ok(())
    }
}
