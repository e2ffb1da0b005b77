//! A node's name, numbers and data in one piece of memory.
//!
//! ```text
//! flags u8: 1 has an owner, 2 was changed, 4 has or had children, 8 has a list of its own, 16 wide, 32 long name, 64 has data
//! 1: owner i64
//! 2: mzxid i64, mtime i64, version i32, aversion i32   (else czxid, ctime, 0, 0)
//! 4: pzxid i64, created i32, child_changes i32, first, last, children, child_went u32   (else czxid, 0, 0, none, none, 0, 0)
//! 8: acl u32   (else everything for everybody)
//! 16: czxid i64, ctime i64   (else czxid u40, ctime u40 from 2020 on: 10¹² entries, 34 years)
//! 32: length of the name u32   (else u8)
//! name
//! 64: data, to the end
//! ```
//!
//! Most nodes were made and never touched again; for these there are twelve bytes beside name and data, and one
//! allocation with one header. What is changed again and again has a fixed width and is changed in its place: the
//! host pays for each page that an entry has written to. Where each part lies follows from the flags.
//!
//! Invariants:
//! * The flags follow from the fields: a change that was taken back leaves nothing behind.
//! * It never leaves the module: a snapshot has a form of its own.

use crate::acl::AclId;
use crate::tree::node::Change;
use crate::tree::node::Family;
use crate::tree::node::Fields;

const OWNED: u8 = 1;
const CHANGED: u8 = 2;
const HAD_CHILDREN: u8 = 4;
const LISTED: u8 = 8;
const WIDE: u8 = 16;
const LONG_NAME: u8 = 32;
const HAS_DATA: u8 = 64;

/// The first moment of 2020, Unix milliseconds.
const EPOCH_MS: i64 = 1_577_836_800_000;

/// What stands before the name, bytes, by the flags.
#[allow(clippy::indexing_slicing, reason = "a constant: it would not compile")]
const HEAD: [u8; HAS_DATA as usize] = {
    let mut lengths = [0; HAS_DATA as usize];
    let mut flags = 0;
    while flags < HAS_DATA {
        let mut length = 1;
        length += if flags & OWNED != 0 { 8 } else { 0 };
        length += if flags & CHANGED != 0 { 24 } else { 0 };
        length += if flags & HAD_CHILDREN != 0 { 32 } else { 0 };
        length += if flags & LISTED != 0 { 4 } else { 0 };
        length += if flags & WIDE != 0 { 16 } else { 10 };
        length += if flags & LONG_NAME != 0 { 4 } else { 1 };
        lengths[flags as usize] = length;
        flags += 1;
    }
    lengths
};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Packed(Box<[u8]>);

impl Packed {
    /// A node's bytes. The name is text.
    #[inline(never)]
    pub fn new(name: &[u8], fields: &Fields, data: Option<&[u8]>) -> Self {
        let Fields { czxid, ctime, owner, change, family, acl } = *fields;
        let flag = |condition: bool, flag: u8| if condition { flag } else { 0 };
        let flags = flag(owner != 0, OWNED)
            | flag(change != Change::none(czxid, ctime), CHANGED)
            | flag(family != Family::none(czxid), HAD_CHILDREN)
            | flag(acl != AclId::OPEN, LISTED)
            | flag(narrow(czxid, ctime).is_none(), WIDE)
            | flag(name.len() > 0xFF, LONG_NAME)
            | flag(data.is_some(), HAS_DATA);
        let data = data.unwrap_or_default();
        let mut bytes = Vec::with_capacity(head_bytes(flags) + name.len() + data.len());
        bytes.push(flags);
        if flags & OWNED != 0 {
            bytes.extend_from_slice(&owner.to_le_bytes());
        }
        if flags & CHANGED != 0 {
            bytes.extend_from_slice(&change.to_bytes());
        }
        if flags & HAD_CHILDREN != 0 {
            bytes.extend_from_slice(&family.to_bytes());
        }
        if flags & LISTED != 0 {
            bytes.extend_from_slice(&acl.number().to_le_bytes());
        }
        match narrow(czxid, ctime) {
            Some(narrow) => bytes.extend_from_slice(&narrow),
            None => {
                bytes.extend_from_slice(&czxid.to_le_bytes());
                bytes.extend_from_slice(&ctime.to_le_bytes());
            }
        }
        // What is in memory here is below 4 GiB.
        let length = (name.len() as u32).to_le_bytes();
        bytes.extend_from_slice(if flags & LONG_NAME != 0 { &length } else { &length[..1] });
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(data);
        Self(bytes.into_boxed_slice())
    }

    fn flags(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }

    /// A part, if it is there. `flag` is its own.
    fn part<const N: usize>(&self, flag: u8) -> Option<&[u8; N]> {
        let flags = self.flags();
        (flags & flag != 0).then(|| self.at(place(flags, flag)))
    }

    /// The same, to change.
    fn part_mut<const N: usize>(&mut self, flag: u8) -> Option<&mut [u8; N]> {
        let flags = self.flags();
        (flags & flag != 0).then(|| match self.0.get_mut(place(flags, flag)..).and_then(<[u8]>::first_chunk_mut) {
            Some(part) => part,
            None => torn(),
        })
    }

    fn at<const N: usize>(&self, place: usize) -> &[u8; N] {
        match self.0.get(place..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => bytes,
            None => torn(),
        }
    }

    /// The name, which is text.
    pub fn name(&self) -> &[u8] {
        self.split().0
    }

    /// The name, and the data's bytes.
    fn split(&self) -> (&[u8], &[u8]) {
        let flags = self.flags();
        let head = head_bytes(flags);
        let length = match flags & LONG_NAME {
            0 => self.at::<1>(head - 1)[0].into(),
            _ => u32::from_le_bytes(*self.at(head - 4)) as usize,
        };
        match self.0.get(head..).and_then(|rest| rest.split_at_checked(length)) {
            Some(parts) => parts,
            None => torn(),
        }
    }

    /// When it was made: czxid and ctime.
    fn made(&self) -> (i64, i64) {
        let flags = self.flags();
        let place = place(flags, WIDE);
        if flags & WIDE != 0 {
            return (i64::from_le_bytes(*self.at(place)), i64::from_le_bytes(*self.at(place + 8)));
        }
        let [a, b, c, d, e, rest @ ..] = *self.at::<10>(place);
        let [f, g, h, i, j] = rest;
        let ctime = i64::from_le_bytes([f, g, h, i, j, 0, 0, 0]);
        (i64::from_le_bytes([a, b, c, d, e, 0, 0, 0]), ctime + EPOCH_MS)
    }

    /// The data; `None` is null, which clients can tell from empty.
    pub fn data(&self) -> Option<&[u8]> {
        (self.flags() & HAS_DATA != 0).then(|| self.split().1)
    }

    /// The entry that made it.
    pub fn czxid(&self) -> i64 {
        self.made().0
    }

    /// The owner's number.
    pub fn owner(&self) -> i64 {
        self.part(OWNED).map_or(0, |part| i64::from_le_bytes(*part))
    }

    /// The ACL list.
    pub fn acl(&self) -> AclId {
        self.part(LISTED).map_or(AclId::OPEN, |part| AclId::at(u32::from_le_bytes(*part)))
    }

    /// What tells of the last change.
    pub fn change(&self) -> Change {
        match self.part(CHANGED) {
            Some(part) => Change::from_bytes(part),
            None => {
                let (czxid, ctime) = self.made();
                Change::none(czxid, ctime)
            }
        }
    }

    /// The children.
    pub fn family(&self) -> Family {
        match self.part(HAD_CHILDREN) {
            Some(part) => Family::from_bytes(part),
            None => Family::none(self.czxid()),
        }
    }

    /// All but name and data.
    pub fn fields(&self) -> Fields {
        let (czxid, ctime) = self.made();
        let change = self.part(CHANGED).map_or_else(|| Change::none(czxid, ctime), Change::from_bytes);
        let family = self.part(HAD_CHILDREN).map_or_else(|| Family::none(czxid), Family::from_bytes);
        Fields { czxid, ctime, owner: self.owner(), change, family, acl: self.acl() }
    }

    /// Changes all but name and data. Not in line: fuel is paid for the dearest way, and most changes go another.
    #[inline(never)]
    pub fn set_fields(&mut self, fields: &Fields) {
        *self = Self::new(self.name(), fields, self.data());
    }

    /// Changes what tells of the last change.
    pub fn set_change(&mut self, change: Change) {
        match self.part_mut(CHANGED) {
            Some(part) if change.is_some() => *part = change.to_bytes(),
            _ => self.set_fields(&Fields { change, ..self.fields() }),
        }
    }

    /// Changes the children.
    pub fn set_family(&mut self, family: Family) {
        match self.part_mut(HAD_CHILDREN) {
            Some(part) if family.is_some() => *part = family.to_bytes(),
            _ => self.set_fields(&Fields { family, ..self.fields() }),
        }
    }

    /// Changes the ACL list.
    pub fn set_acl(&mut self, acl: AclId) {
        match self.part_mut(LISTED) {
            Some(part) if acl != AclId::OPEN => *part = acl.number().to_le_bytes(),
            _ => self.set_fields(&Fields { acl, ..self.fields() }),
        }
    }

    /// As it would be with other data.
    #[inline(never)]
    pub fn with_data(&self, data: Option<&[u8]>) -> Self {
        Self::of_parts(&self.head_with(data), data)
    }

    /// Changes the data: in its place where it fits, else the old is gone before the new is made, which may then have its place.
    pub fn set_data(&mut self, data: Option<&[u8]>) {
        let (is, new) = (self.split().1.len(), data.unwrap_or_default());
        if is == new.len() {
            let from = self.0.len().saturating_sub(is);
            if let Some(place) = self.0.get_mut(from..) {
                place.copy_from_slice(new);
            }
            // Null and empty are as long.
            if let Some(flags) = self.0.first_mut() {
                *flags = with_data_flag(*flags, data);
            }
        } else {
            self.make_anew(data);
        }
    }

    #[inline(never)]
    fn make_anew(&mut self, data: Option<&[u8]>) {
        let head = self.head_with(data);
        self.0 = Box::default();
        *self = Self::of_parts(&head, data);
    }

    /// All before the data, for a node that has this one.
    fn head_with(&self, data: Option<&[u8]>) -> Vec<u8> {
        let until = self.0.len().saturating_sub(self.split().1.len());
        let mut head = self.0.get(..until).unwrap_or_default().to_vec();
        if let Some(flags) = head.first_mut() {
            *flags = with_data_flag(*flags, data);
        }
        head
    }

    fn of_parts(head: &[u8], data: Option<&[u8]>) -> Self {
        Self([head, data.unwrap_or_default()].concat().into_boxed_slice())
    }
}

/// Where the part of a flag begins: before what stands there without it and all behind.
fn place(flags: u8, flag: u8) -> usize {
    // Of no part: the narrow form of when it was made, and a short length.
    const NONE: usize = 10 + 1;
    head_bytes(flags & flag.wrapping_sub(1)) - NONE
}

/// What stands before the name.
fn head_bytes(flags: u8) -> usize {
    HEAD.get(usize::from(flags & !HAS_DATA)).copied().unwrap_or(0).into()
}

/// When a node was made, in the form that takes less room, where it fits.
fn narrow(czxid: i64, ctime: i64) -> Option<[u8; 10]> {
    let ctime = ctime.wrapping_sub(EPOCH_MS);
    let [a, b, c, d, e, 0, 0, 0] = czxid.to_le_bytes() else { return None };
    let [f, g, h, i, j, 0, 0, 0] = ctime.to_le_bytes() else { return None };
    Some([a, b, c, d, e, f, g, h, i, j])
}

fn with_data_flag(flags: u8, data: Option<&[u8]>) -> u8 {
    flags & !HAS_DATA | if data.is_some() { HAS_DATA } else { 0 }
}

/// Bytes that are read one field after the other.
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => torn(),
        }
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.take())
    }

    pub(super) fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.take())
    }
}

/// Bytes that are no node's would be a bug of this crate, and the entry that meets them is rolled back.
#[cold]
fn torn() -> ! {
    panic!("the bytes of a node end too early: a bug in the tree")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::tree::arena::NodeId;

    /// Fields of which each part is there or not, as the bits of `parts` say.
    fn fields(parts: u32, czxid: i64, ctime: i64) -> Fields {
        let has = |flag: u8| parts & u32::from(flag) != 0;
        let mut fields = Fields {
            czxid,
            ctime,
            owner: 0,
            change: Change::none(czxid, ctime),
            family: Family::none(czxid),
            acl: AclId::OPEN,
        };
        if has(OWNED) {
            fields.owner = i64::MIN;
        }
        if has(CHANGED) {
            fields.change = Change { mzxid: -2, mtime: i64::MAX - 1, version: 0, aversion: 0 };
        }
        if has(HAD_CHILDREN) {
            let (first_child, last_child) = (NodeId::of(3), NodeId::of(4));
            let (pzxid, created, child_changes, children, child_went) = (i64::MIN, -7, i32::MAX, 2, u32::MAX);
            fields.family = Family { pzxid, created, child_changes, first_child, last_child, children, child_went };
        }
        if has(LISTED) {
            fields.acl = AclId::at(7);
        }
        fields
    }

    #[test]
    fn whatever_a_node_has_is_read_back_and_changed_into_whatever_it_may_have_next() {
        let contents = [None, Some(&b""[..]), Some(b"x"), Some(b"y"), Some(&[0xFF; 300])];
        for (czxid, ctime) in [(0, 0), (1, 1_700_000_000_000), (1 << 40, EPOCH_MS), (0, EPOCH_MS - 1), (-1, i64::MIN)] {
            let all: Vec<_> = (0..16).map(|parts| fields(parts, czxid, ctime)).collect();
            for name in ["", "a", &"ü".repeat(200)] {
                let name = name.as_bytes();
                for (before, data) in all.iter().flat_map(|before| contents.map(|data| (before, data))) {
                    let packed = Packed::new(name, before, data);
                    for after in &all {
                        let mut packed = packed.clone();
                        packed.set_family(after.family);
                        packed.set_change(after.change);
                        packed.set_acl(after.acl);
                        let expected = Fields { owner: before.owner, ..*after };
                        assert_eq!(packed.0, Packed::new(name, &expected, data).0, "{before:?} to {after:?}");
                        assert_eq!((packed.name(), packed.data()), (name, data));
                        assert_eq!(packed.fields(), expected);
                        let parts = (packed.owner(), packed.change(), packed.family(), packed.acl());
                        assert_eq!(parts, (before.owner, after.change, after.family, after.acl));
                    }
                    for next in contents {
                        let mut packed = packed.clone();
                        let other = packed.with_data(next);
                        packed.set_data(next);
                        assert_eq!(packed.0, Packed::new(name, before, next).0);
                        assert_eq!(packed.0, other.0);
                    }
                }
            }
        }
    }

    #[test]
    fn a_node_that_was_never_changed_has_twelve_bytes_beside_name_and_data() {
        // The last entry and the last moment for which that holds, in 2054.
        let last = (1 << 40) - 1;
        let bytes = |czxid: i64, ctime: i64| Packed::new(b"name", &fields(0, czxid, ctime), Some(b"data")).0.len();
        assert_eq!([bytes(0, EPOCH_MS), bytes(last, EPOCH_MS + last)], [12 + 8; 2]);
        assert_eq!([bytes(last + 1, EPOCH_MS), bytes(0, EPOCH_MS + last + 1)], [18 + 8; 2]);
    }
}
