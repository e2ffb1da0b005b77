//! One znode as it lies in memory.

use crate::acl::AclId;
use crate::tree::arena::NodeId;
use crate::wire::Stat;

/// A node's owner that marks a container.
pub const CONTAINER_OWNER: i64 = i64::MIN;
/// The high byte of an owner that marks a TTL; the two bytes below are 0, the other five the TTL.
const TTL_MARK: u64 = 0xFF00_0000_0000_0000;
/// The bits of an owner that hold a TTL, milliseconds.
const TTL_BITS: u64 = 0x0000_00FF_FFFF_FFFF;

/// What a node's owner means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nothing: the node stays.
    Nobody,
    /// The node goes with this session.
    Session(u64),
    /// The node goes some time after its last child.
    Container,
    /// The node goes when it had no child and no new data for so many milliseconds.
    Ttl(u64),
}

impl Owner {
    /// The owner in a stat's `ephemeralOwner`. (A session's id whose high byte is 0xff would read as
    /// a TTL; the host counts them up from 1.)
    pub fn from_number(number: i64) -> Self {
        match number as u64 {
            0 => Self::Nobody,
            _ if number == CONTAINER_OWNER => Self::Container,
            bits if bits & !TTL_BITS == TTL_MARK => Self::Ttl(bits & TTL_BITS),
            session => Self::Session(session),
        }
    }

    /// As a stat's `ephemeralOwner`.
    pub fn number(self) -> i64 {
        match self {
            Self::Nobody => 0,
            Self::Session(session) => session as i64,
            Self::Container => CONTAINER_OWNER,
            Self::Ttl(ttl_ms) => (TTL_MARK | (ttl_ms & TTL_BITS)) as i64,
        }
    }
}

/// The numbers of a node that operations change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// See [`Stat`].
    pub czxid: i64,
    /// See [`Stat`].
    pub mzxid: i64,
    /// See [`Stat`].
    pub pzxid: i64,
    /// See [`Stat`].
    pub ctime: i64,
    /// See [`Stat`].
    pub mtime: i64,
    /// See [`Owner`].
    pub owner: i64,
    /// See [`Stat`].
    pub version: i32,
    /// See [`Stat`].
    pub aversion: i32,
    /// How many children were ever created here: the next sequence number, and half of ZooKeeper's
    /// `cversion`.
    pub created: i32,
    /// What ClickHouse Keeper shows as `cversion`: children created, removed and set.
    pub child_changes: i32,
}

/// A znode. Its path is the names from the root down; only its own is kept here.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The stat's stored part.
    pub numbers: Numbers,
    /// Its name within its parent; empty for the root.
    pub name: Box<str>,
    /// Its data; `None` is null, which clients can tell from empty.
    pub data: Option<Box<[u8]>>,
    /// Its ACL list.
    pub acl: AclId,
    /// Where it hangs.
    pub parent: NodeId,
    /// The oldest of its children.
    pub first_child: NodeId,
    /// The youngest of its children.
    pub last_child: NodeId,
    /// The next younger child of its parent.
    pub next: NodeId,
    /// The next older child of its parent.
    pub previous: NodeId,
    /// How many children it has.
    pub children: u32,
    /// Where the pzxid is ClickHouse's: how much later its last child went, [`u32::MAX`] for that or more.
    pub child_went: u32,
    /// Hash of its path.
    pub hash: u32,
    /// The next node in the same chain of the index.
    pub next_in_chain: NodeId,
}

/// With the chain's head in the index, and two allocations' headers (8 bytes each) and rounding (4
/// on average) around name and data, a small znode costs about 140 bytes beyond path and data.
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<Node>() <= 120);

impl Node {
    /// What its owner means.
    pub fn owner(&self) -> Owner {
        Owner::from_number(self.numbers.owner)
    }

    /// The last change of its list of children, or something later. ClickHouse Keeper's pzxid knows of no removal.
    pub fn children_zxid(&self) -> i64 {
        match self.child_went {
            u32::MAX => i64::MAX,
            later => self.numbers.pzxid.saturating_add(later.into()),
        }
    }

    /// Bytes of its data.
    pub fn data_length(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.len())
    }

    /// The stat that clients see. ZooKeeper counts each child that came, and each that came and went
    /// twice, and tells of no owner but a session; ClickHouse Keeper shows what it keeps.
    pub fn stat(&self, is_clickhouse: bool) -> Stat {
        let numbers = &self.numbers;
        let children = self.children as i32;
        let (cversion, ephemeral_owner) = match (is_clickhouse, self.owner()) {
            (true, _) => (numbers.child_changes, numbers.owner),
            (false, Owner::Session(_)) => (numbers.created.wrapping_mul(2).wrapping_sub(children), numbers.owner),
            (false, _) => (numbers.created.wrapping_mul(2).wrapping_sub(children), 0),
        };
        Stat {
            czxid: numbers.czxid,
            mzxid: numbers.mzxid,
            ctime: numbers.ctime,
            mtime: numbers.mtime,
            version: numbers.version,
            cversion,
            aversion: numbers.aversion,
            ephemeral_owner,
            data_length: self.data_length() as i32,
            num_children: children,
            pzxid: numbers.pzxid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_zookeepers_numbers() {
        let marks = [
            (Owner::Nobody, 0),
            (Owner::Session(0x1001), 0x1001),
            (Owner::Container, i64::MIN),
            (Owner::Ttl(1), 0xFF00_0000_0000_0001_u64 as i64),
            (Owner::Ttl(0xFF_FFFF_FFFF), 0xFF00_00FF_FFFF_FFFF_u64 as i64),
        ];
        for (owner, number) in marks {
            assert_eq!(owner.number(), number);
            assert_eq!(Owner::from_number(number), owner);
        }
    }
}
