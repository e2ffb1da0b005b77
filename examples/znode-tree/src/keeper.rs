//! What ClickHouse adds to ZooKeeper: the nodes under `/keeper`, by which its servers know what they
//! may ask, and the feature flags in one of them.

use std::collections::BTreeMap;

use crate::jute::Malformed;
use crate::jute::Reader;
use crate::ops::Write;
use crate::wire;
use crate::wire::MultiHeader;
use crate::wire::PathWatch;
use crate::wire::op;

/// Which version of Keeper's interface this is: the one with multiRead. ClickHouse stopped counting there, in this node
/// and in the word `apiv`; newer servers look at the flags.
pub const API_VERSION: &str = "/keeper/api_version";
/// A bit for each [`FLAGS`].
pub const FEATURE_FLAGS: &str = "/keeper/feature_flags";
/// The ensemble's configuration.
pub const CONFIG: &str = "/keeper/config";
/// Where this is, for servers that prefer what is near.
pub const AVAILABILITY_ZONE: &str = "/keeper/availability_zone";

/// The data of [`API_VERSION`].
pub const API_VERSION_DATA: &[u8] = b"2";

/// A feature flag: its name, whether it is on unless said otherwise, and the operations that are
/// refused when it is switched off.
pub type Flag = (&'static str, bool, &'static [i32]);

/// All feature flags, in the order of their bits.
pub const FLAGS: [Flag; 14] = [
    ("filtered_list", true, &[op::FILTERED_LIST]),
    ("multi_read", true, &[op::MULTI_READ]),
    ("check_not_exists", true, &[op::CHECK_NOT_EXISTS]),
    ("create_if_not_exists", true, &[op::CREATE_IF_NOT_EXISTS]),
    ("remove_recursive", true, &[op::REMOVE_RECURSIVE]),
    ("multi_watches", true, &[]),
    ("check_stat", true, &[op::CHECK_STAT]),
    ("persistent_watches", true, &[op::ADD_WATCH, op::SET_WATCHES2]),
    ("create_with_stats", false, &[op::CREATE2]),
    ("try_remove", true, &[op::TRY_REMOVE]),
    ("list_with_stat_and_data", true, &[op::FILTERED_LIST_WITH_STATS_AND_DATA]),
    ("get_children_recursive", true, &[op::LIST_RECURSIVE]),
    ("create_ttl", false, &[op::CREATE_TTL]),
    ("max_request_size", false, &[]),
];

/// Whether a flag is on.
pub fn is_on((name, default, _): &Flag, switched: &BTreeMap<String, bool>) -> bool {
    switched.get(*name).copied().unwrap_or(*default)
}

/// The data of [`FEATURE_FLAGS`]: a bit for each flag, the first one the highest of the first byte.
pub fn flag_bits(switched: &BTreeMap<String, bool>) -> Vec<u8> {
    let bits = |flags: &[Flag]| {
        flags.iter().zip(0_u32..).fold(0, |byte, (flag, place)| byte | u8::from(is_on(flag, switched)) << (7 - place))
    };
    FLAGS.chunks(8).map(bits).collect()
}

/// Whether an operation was switched off. (One whose flag is merely not on by default is done all the
/// same: only ClickHouse asks the flags, other clients just send it.)
pub fn is_switched_off(operation: i32, switched: &BTreeMap<String, bool>) -> bool {
    let is_of = |flag: &&Flag| flag.2.contains(&operation);
    !switched.is_empty() && FLAGS.iter().find(is_of).is_some_and(|(name, ..)| switched.get(*name) == Some(&false))
}

/// As [`is_switched_off`], of a request: a multi and a multiRead are as good as what is in them. As far as they can be
/// read: what is malformed is the tree's to refuse.
pub fn has_switched_off(operation: i32, body: &[u8], switched: &BTreeMap<String, bool>) -> bool {
    if is_switched_off(operation, switched) {
        return true;
    }
    let is_many = matches!(operation, op::MULTI | op::MULTI_READ);
    is_many && !switched.is_empty() && holds_switched_off(&mut Reader::new(body), switched).unwrap_or(false)
}

fn holds_switched_off(reader: &mut Reader<'_>, switched: &BTreeMap<String, bool>) -> Result<bool, Malformed> {
    loop {
        let header = MultiHeader::read(reader)?;
        if header.done {
            return Ok(false);
        }
        if is_switched_off(header.op, switched) {
            return Ok(true);
        }
        if Write::read(header.op, reader)?.is_none() {
            skip_read(header.op, reader)?;
        }
    }
}

/// Passes over the request of a read in a multiRead.
fn skip_read(operation: i32, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    if operation == op::LIST_RECURSIVE {
        wire::path(reader)?;
        return reader.u32().map(drop);
    }
    PathWatch::read(reader)?;
    let options = match operation {
        op::FILTERED_LIST => 1,
        op::FILTERED_LIST_WITH_STATS_AND_DATA => 3,
        _ => 0,
    };
    for _ in 0..options {
        reader.u8()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_bits_from_the_highest_down() {
        assert_eq!(flag_bits(&BTreeMap::new()), [0b1111_1111, 0b0111_0000]);
        let switched = BTreeMap::from([("filtered_list".to_owned(), false), ("create_ttl".to_owned(), true)]);
        assert_eq!(flag_bits(&switched), [0b0111_1111, 0b0111_1000]);
        assert!(is_switched_off(op::FILTERED_LIST, &switched));
        assert!(!is_switched_off(op::CREATE2, &switched) && !is_switched_off(op::CREATE, &switched));
    }
}
