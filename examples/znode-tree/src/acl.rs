//! Who may do what.

use std::net::IpAddr;

use crate::call::Identity;

/// Whether one of `identities` is one of `entries`: the same scheme and id, an address in the net of
/// an `ip` entry, or `world:anyone`; whoever has an identity of the scheme `super` is.
pub fn is_one_of(identities: &[Identity<'_>], entries: &[Identity<'_>]) -> bool {
    if is_super(identities) {
        return true;
    }
    entries.iter().any(|entry| matches(identities, *entry))
}

/// Whether the caller is the super user.
pub fn is_super(identities: &[Identity<'_>]) -> bool {
    identities.iter().any(|identity| identity.scheme == "super")
}

/// Whether an entry means one of the identities.
pub(crate) fn matches(identities: &[Identity<'_>], entry: Identity<'_>) -> bool {
    if entry.scheme == "world" {
        return entry.id == "anyone";
    }
    identities.iter().any(|identity| {
        identity.scheme == entry.scheme
            && if entry.scheme == "ip" { is_in_net(identity.id, entry.id) } else { identity.id == entry.id }
    })
}

/// An address in `net` (`address` or `address/bits`), both of one family.
fn is_in_net(address: &str, net: &str) -> bool {
    let Some((prefix, bits)) = parse_net(net) else { return false };
    match (address.parse::<IpAddr>(), prefix) {
        (Ok(IpAddr::V4(address)), IpAddr::V4(prefix)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
            u32::from(address) & mask == u32::from(prefix) & mask
        }
        (Ok(IpAddr::V6(address)), IpAddr::V6(prefix)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
            u128::from(address) & mask == u128::from(prefix) & mask
        }
        _ => false,
    }
}

/// A net's address and its bits; `None` when it is none.
pub(crate) fn parse_net(net: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = match net.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (net, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let widest = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(widest), |bits| bits.parse().ok())?;
    (bits <= widest).then_some((address, bits))
}
