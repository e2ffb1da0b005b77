//! Who may do what: lists of permissions, each kept once however many nodes have it.
//!
//! Invariants of [`AclTable`]:
//! * Equal lists have one [`AclId`], and a list is there as long as a node refers to it.
//! * [`AclId::OPEN`], everything for everybody, is always there.
//! * `bytes` is the sum over the lists that are there: equal on all replicas.
//! * Ids are this replica's own (see [`arena`](crate::tree::arena)).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

use crate::call::Identity;
use crate::wire::AclEntry;
use crate::wire::ErrorCode;
use crate::wire::perms;

/// What one list may take, bytes as a snapshot counts its entries. An event names the readers of a list beside a path
/// (see [`ChangeWriter`](crate::call::ChangeWriter)), and `auth` stands for as many entries as the caller has identities.
pub const LIST_BYTES_MAX: usize = 512 << 10;

/// What an entry takes in a snapshot, bytes: three numbers, scheme and id.
fn entry_bytes(scheme: &str, id: &str) -> usize {
    12 + scheme.len() + id.len()
}

/// What a list takes, bytes.
pub fn list_bytes(list: &[Acl]) -> usize {
    list.iter().map(|acl| entry_bytes(&acl.scheme, &acl.id)).sum()
}

/// About what a request's list will take, bytes; most nodes have the one list that is always there.
pub fn request_bytes(entries: &[AclEntry<'_>]) -> usize {
    let each = |entry: &AclEntry<'_>| entry_bytes(entry.scheme.unwrap_or_default(), entry.id.unwrap_or_default());
    if entries == [AclEntry::OPEN] { 0 } else { entries.iter().map(each).sum() }
}

/// An entry of a list that nodes have: schemes and ids checked, `auth` resolved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acl {
    /// Bits of [`perms`].
    pub perms: i32,
    /// `world`, `digest`, `ip`, …
    pub scheme: Box<str>,
    /// Whom of the scheme.
    pub id: Box<str>,
}

impl Acl {
    /// Whom it means.
    pub fn identity(&self) -> Identity<'_> {
        Identity { scheme: &self.scheme, id: &self.id }
    }

    /// An entry for everybody.
    pub fn for_everybody(perms: i32) -> Self {
        Self { perms, scheme: "world".into(), id: "anyone".into() }
    }
}

/// A list's place in its [`AclTable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AclId(u32);

impl AclId {
    /// Everything for everybody.
    pub const OPEN: Self = Self(0);

    /// The id of this number.
    pub(crate) fn at(number: u32) -> Self {
        Self(number)
    }

    /// As a number.
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    /// As an index into a vector of all ids.
    pub fn place(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
struct Slot {
    list: Rc<[Acl]>,
    references: usize,
    is_readable_by_all: bool,
}

impl Slot {
    fn new(list: Rc<[Acl]>) -> Self {
        let reads = |acl: &Acl| acl.perms & perms::READ != 0 && &*acl.scheme == "world";
        let is_readable_by_all = list.is_empty() || list.iter().any(reads);
        Self { list, references: 1, is_readable_by_all }
    }
}

/// All lists.
#[derive(Debug)]
pub struct AclTable {
    slots: Vec<Slot>,
    ids: BTreeMap<Rc<[Acl]>, AclId>,
    free: Vec<AclId>,
    bytes: usize,
}

impl Default for AclTable {
    fn default() -> Self {
        let list: Rc<[Acl]> = [Acl::for_everybody(perms::ALL)].into();
        let ids = BTreeMap::from([(Rc::clone(&list), AclId::OPEN)]);
        // One reference that nobody gives back.
        Self { slots: vec![Slot::new(list)], ids, free: Vec::new(), bytes: 0 }
    }
}

impl AclTable {
    /// The id of a list, which one more node refers to. An empty list is [`AclId::OPEN`], by the way.
    pub fn acquire(&mut self, list: &[Acl]) -> AclId {
        if list.is_empty() {
            self.acquire_again(AclId::OPEN);
            return AclId::OPEN;
        }
        if let Some(id) = self.ids.get(list).copied() {
            self.acquire_again(id);
            return id;
        }
        self.bytes += list_bytes(list);
        let list: Rc<[Acl]> = list.into();
        let slot = Slot::new(Rc::clone(&list));
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(place) = self.slots.get_mut(id.place()) {
                    *place = slot;
                }
                id
            }
            None => {
                self.slots.push(slot);
                AclId(u32::try_from(self.slots.len().saturating_sub(1)).unwrap_or(u32::MAX))
            }
        };
        self.ids.insert(list, id);
        id
    }

    /// One more node refers to a list.
    pub fn acquire_again(&mut self, id: AclId) {
        if let Some(slot) = self.slots.get_mut(id.place()) {
            slot.references += 1;
        }
    }

    /// One node less refers to a list.
    pub fn release(&mut self, id: AclId) {
        let Some(slot) = self.slots.get_mut(id.place()) else { return };
        slot.references = slot.references.saturating_sub(1);
        if slot.references == 0 {
            self.bytes = self.bytes.saturating_sub(list_bytes(&slot.list));
            self.ids.remove(&slot.list);
            slot.list = Rc::from([]);
            self.free.push(id);
        }
    }

    /// Whether a list lets everybody read.
    pub fn is_readable_by_all(&self, id: AclId) -> bool {
        self.slots.get(id.place()).is_some_and(|slot| slot.is_readable_by_all)
    }

    /// A list.
    pub fn get(&self, id: AclId) -> &[Acl] {
        self.slots.get(id.place()).map_or(&[], |slot| &slot.list)
    }

    /// Bytes of all lists but [`AclId::OPEN`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many places there are, for a vector with one item each.
    pub fn places(&self) -> usize {
        self.slots.len()
    }
}

/// Whether a list lets the caller do one of `wanted` (bits).
pub fn allows(list: &[Acl], wanted: i32, identities: &[Identity<'_>]) -> bool {
    let granted = |acl: &Acl| acl.perms & wanted != 0 && matches(identities, acl.identity());
    list.is_empty() || list.iter().any(granted) || is_super(identities)
}

/// Whether one of `identities` is one of `entries`: the same scheme and id, an address in the net of
/// an `ip` entry, or `world:anyone`; whoever has an identity of the scheme `super` is.
pub fn is_one_of(identities: &[Identity<'_>], entries: &[Identity<'_>]) -> bool {
    is_super(identities) || entries.iter().any(|entry| matches(identities, *entry))
}

/// Whether the caller is the super user.
pub fn is_super(identities: &[Identity<'_>]) -> bool {
    identities.iter().any(|identity| identity.scheme == "super")
}

/// Whether an entry means one of the identities.
fn matches(identities: &[Identity<'_>], entry: Identity<'_>) -> bool {
    if entry.scheme == "world" {
        return entry.id == "anyone";
    }
    identities.iter().any(|identity| {
        identity.scheme == entry.scheme
            && if entry.scheme == "ip" { is_in_net(identity.id, entry.id) } else { identity.id == entry.id }
    })
}

/// Makes of a request's list what a node gets: without repetitions, with `auth` replaced by the
/// caller's identities; or says that it is not valid, in ZooKeeper's order of checks: one that is too long
/// ([`LIST_BYTES_MAX`]) is not. Everything for everybody, which most nodes have, is given as an empty list.
pub fn resolve(entries: &[AclEntry<'_>], identities: &[Identity<'_>], takes_ip: bool) -> Result<Vec<Acl>, ErrorCode> {
    if entries == [AclEntry::OPEN] {
        return Ok(Vec::new());
    }
    if entries.is_empty() {
        return Err(ErrorCode::InvalidAcl);
    }
    let mut list = Vec::new();
    let mut room = LIST_BYTES_MAX;
    let mut add = |perms: i32, scheme: &str, id: &str| {
        room = room.checked_sub(entry_bytes(scheme, id)).ok_or(ErrorCode::InvalidAcl)?;
        list.push(Acl { perms, scheme: scheme.into(), id: id.into() });
        Ok::<(), ErrorCode>(())
    };
    let mut seen = BTreeSet::new();
    for AclEntry { perms, scheme, id } in entries.iter().filter(|entry| seen.insert(**entry)).copied() {
        let scheme = scheme.ok_or(ErrorCode::InvalidAcl)?;
        if scheme == "auth" {
            let mut proved = identities.iter().filter(|who| !matches!(who.scheme, "ip" | "super")).peekable();
            if proved.peek().is_none() {
                return Err(ErrorCode::InvalidAcl);
            }
            proved.try_for_each(|who| add(perms, who.scheme, who.id))?;
            continue;
        }
        let is_valid: fn(&str) -> bool = match scheme {
            "world" => |id| id == "anyone",
            "digest" => is_digest,
            "ip" if takes_ip => |id| parse_net(id).is_some(),
            _ => return Err(ErrorCode::InvalidAcl),
        };
        // ZooKeeper trips over a null here.
        let id = id.ok_or(ErrorCode::MarshallingError)?;
        if !is_valid(id) {
            return Err(ErrorCode::InvalidAcl);
        }
        add(perms, scheme, id)?;
    }
    Ok(list)
}

/// `user:hash`. ZooKeeper splits at `:` and wants two parts, not counting empty ones at the end.
fn is_digest(id: &str) -> bool {
    let parts = id.trim_end_matches(':');
    !parts.is_empty() && parts.matches(':').count() == 1
}

/// What a caller without ADMIN sees of a digest: its user.
pub fn without_hash(acl: &Acl) -> Acl {
    match acl.id.split_once(':') {
        Some((user, _)) if &*acl.scheme == "digest" => Acl { id: format!("{user}:x").into(), ..acl.clone() },
        _ => acl.clone(),
    }
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
fn parse_net(net: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = match net.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (net, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let widest = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(widest), |bits| bits.parse().ok())?;
    (bits <= widest).then_some((address, bits))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    const ANNA: Identity<'_> = Identity { scheme: "digest", id: "anna:hash" };
    const HOME: Identity<'_> = Identity { scheme: "ip", id: "10.1.2.3" };

    fn entry<'a>(perms: i32, scheme: &'a str, id: &'a str) -> AclEntry<'a> {
        AclEntry { perms, scheme: Some(scheme), id: Some(id) }
    }

    #[test]
    fn equal_lists_are_kept_once_and_go_with_their_last_node() {
        let mut table = AclTable::default();
        let read = [Acl::for_everybody(perms::READ)];
        assert_eq!(table.acquire(&[Acl::for_everybody(perms::ALL)]), AclId::OPEN);
        let id = table.acquire(&read);
        assert_eq!(table.acquire(&read), id);
        table.release(id);
        assert_eq!(table.get(id), read);
        table.release(id);
        assert!(table.get(id).is_empty());
        let other = [Acl::for_everybody(perms::WRITE)];
        assert_eq!(table.acquire(&other), id, "the place is used again");
        for _ in 0..5 {
            table.release(AclId::OPEN);
            table.acquire_again(AclId::OPEN);
        }
        assert!(!table.get(AclId::OPEN).is_empty());
    }

    #[test]
    fn auth_stands_for_what_the_caller_has_proved() {
        let list = resolve(&[entry(31, "auth", "")], &[HOME, ANNA], true).unwrap();
        assert_eq!(list, [Acl { perms: 31, scheme: "digest".into(), id: "anna:hash".into() }]);
        assert_eq!(resolve(&[entry(31, "auth", "")], &[HOME], true), Err(ErrorCode::InvalidAcl));
    }

    #[test]
    fn lists_that_make_no_sense_are_invalid() {
        let invalid: [&[AclEntry<'_>]; 8] = [
            &[],
            &[entry(31, "world", "somebody")],
            &[entry(31, "digest", "anna")],
            &[entry(31, "digest", "anna:")],
            &[entry(31, "digest", "a:b:c")],
            &[entry(31, "ip", "10.0.0.1/33")],
            &[entry(31, "super", "")],
            &[entry(1, "world", "anyone"), AclEntry { perms: 1, scheme: None, id: None }],
        ];
        for list in invalid {
            assert_eq!(resolve(list, &[ANNA], true), Err(ErrorCode::InvalidAcl), "{list:?}");
        }
        let null = AclEntry { perms: 1, scheme: Some("world"), id: None };
        assert_eq!(resolve(&[null], &[], true), Err(ErrorCode::MarshallingError));
        let twice = [entry(1, "world", "anyone"), entry(1, "world", "anyone"), entry(2, "world", "anyone")];
        assert_eq!(resolve(&twice, &[], true).unwrap().len(), 2);
        assert_eq!(resolve(&[entry(1, "ip", "::1")], &[], false), Err(ErrorCode::InvalidAcl));
    }

    /// Each entry was once looked for among all before it: a list of a frame's length took minutes of everybody's time.
    #[test]
    fn repetitions_go_and_the_order_stays() {
        let ids: Vec<String> = (0..16_000_u32).map(|number| format!("u{:05}:h", number * 7_919 % 16_000)).collect();
        let mut entries: Vec<_> = ids.iter().map(|id| entry(1, "digest", id)).collect();
        entries.extend(ids.iter().rev().map(|id| entry(1, "digest", id)));
        let list = resolve(&entries, &[], true).unwrap();
        assert!(list.iter().map(|acl| &*acl.id).eq(ids.iter().map(String::as_str)));
        assert_eq!(list_bytes(&list), request_bytes(&entries) / 2);
    }

    #[test]
    fn a_list_is_bounded_whatever_auth_stands_for() {
        let ids: Vec<String> = (0..1_000).map(|number| format!("user{number}:{}", "h".repeat(28))).collect();
        let identities: Vec<_> = ids.iter().map(|id| Identity { scheme: "digest", id }).collect();
        let auth: Vec<_> = (0..31).map(|perms| entry(perms, "auth", "")).collect();
        assert!(list_bytes(&resolve(&auth[..9], &identities, true).unwrap()) <= LIST_BYTES_MAX);
        assert_eq!(resolve(&auth, &identities, true), Err(ErrorCode::InvalidAcl));
    }

    #[test]
    fn bytes_are_those_of_the_lists_that_are_there() {
        let mut table = AclTable::default();
        let (one, two) = ([Acl::for_everybody(1)], [Acl::for_everybody(1), Acl::for_everybody(2)]);
        let ids = [table.acquire(&one), table.acquire(&two), table.acquire(&two)];
        assert_eq!(table.bytes(), list_bytes(&one) + list_bytes(&two));
        ids.into_iter().for_each(|id| table.release(id));
        assert_eq!(table.bytes(), 0);
    }

    #[test]
    fn an_address_is_in_a_net_by_its_leading_bits() {
        for (net, inside) in [
            ("10.1.2.3", true),
            ("10.1.2.4", false),
            ("10.1.0.0/16", true),
            ("10.2.0.0/16", false),
            ("0.0.0.0/0", true),
            ("::/0", false),
            ("10.1.2.2/31", true),
        ] {
            assert_eq!(is_in_net("10.1.2.3", net), inside, "{net}");
        }
        assert!(is_in_net("fd00::1", "fd00::/8") && !is_in_net("fe00::1", "fd00::/8"));
    }

    #[test]
    fn permission_is_a_bit_granted_to_somebody_the_caller_is() {
        let list = resolve(&[entry(perms::READ, "world", "anyone"), entry(perms::WRITE, "auth", "")], &[ANNA], true);
        let list = list.unwrap();
        assert!(allows(&list, perms::READ, &[]));
        assert!(!allows(&list, perms::WRITE, &[HOME]));
        assert!(allows(&list, perms::WRITE, &[HOME, ANNA]));
        assert!(!allows(&list, perms::ADMIN, &[ANNA]));
        assert!(allows(&list, perms::ADMIN, &[Identity { scheme: "super", id: "" }]));
        assert_eq!(without_hash(&list[1]).id, "anna:x".into());
    }
}
