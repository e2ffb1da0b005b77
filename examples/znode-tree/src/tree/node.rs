//! One znode as it lies in memory.

use crate::acl::AclId;
use crate::tree::arena::NodeId;
use crate::tree::packed::Cursor;
use crate::tree::packed::Packed;
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

/// What tells of a node's last change; see [`Stat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Change {
    pub mzxid: i64,
    pub mtime: i64,
    pub version: i32,
    pub aversion: i32,
}

impl Change {
    /// Of a node that was never changed.
    pub(super) fn none(czxid: i64, ctime: i64) -> Self {
        Self { mzxid: czxid, mtime: ctime, version: 0, aversion: 0 }
    }

    /// Whether no new node can have it, whenever it was made.
    pub(super) fn is_some(&self) -> bool {
        (self.version, self.aversion) != (0, 0)
    }

    pub(super) fn from_bytes(bytes: &[u8; 24]) -> Self {
        let mut cursor = Cursor(bytes);
        Self { mzxid: cursor.i64(), mtime: cursor.i64(), version: cursor.i32(), aversion: cursor.i32() }
    }

    pub(super) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let mut rest = &mut bytes[..];
        put(&mut rest, self.mzxid.to_le_bytes());
        put(&mut rest, self.mtime.to_le_bytes());
        put(&mut rest, self.version.to_le_bytes());
        put(&mut rest, self.aversion.to_le_bytes());
        bytes
    }
}

/// The children of a node, and what tells of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// See [`Stat`].
    pub pzxid: i64,
    /// See [`Numbers`].
    pub created: i32,
    /// See [`Numbers`].
    pub child_changes: i32,
    /// The oldest of them.
    pub first_child: NodeId,
    /// The youngest of them.
    pub last_child: NodeId,
    /// How many there are.
    pub children: u32,
    /// Where the pzxid is ClickHouse's: how much later the last child went, [`u32::MAX`] for that or more.
    pub child_went: u32,
}

impl Family {
    /// Of a node that never had children.
    pub(super) fn none(czxid: i64) -> Self {
        let none = NodeId::NONE;
        let (first_child, last_child) = (none, none);
        Self { pzxid: czxid, created: 0, child_changes: 0, first_child, last_child, children: 0, child_went: 0 }
    }

    /// Whether no new node can have it, whenever it was made.
    pub(super) fn is_some(&self) -> bool {
        self.children != 0 || (self.created, self.child_changes) != (0, 0)
    }

    pub(super) fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut cursor = Cursor(bytes);
        Self {
            pzxid: cursor.i64(),
            created: cursor.i32(),
            child_changes: cursor.i32(),
            first_child: NodeId::of(cursor.u32()),
            last_child: NodeId::of(cursor.u32()),
            children: cursor.u32(),
            child_went: cursor.u32(),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let mut rest = &mut bytes[..];
        put(&mut rest, self.pzxid.to_le_bytes());
        put(&mut rest, self.created.to_le_bytes());
        put(&mut rest, self.child_changes.to_le_bytes());
        put(&mut rest, self.first_child.number().to_le_bytes());
        put(&mut rest, self.last_child.number().to_le_bytes());
        put(&mut rest, self.children.to_le_bytes());
        put(&mut rest, self.child_went.to_le_bytes());
        bytes
    }
}

/// Puts a field where there is room for it, and moves on.
fn put<const N: usize>(rest: &mut &mut [u8], field: [u8; N]) {
    if let Some((room, behind)) = std::mem::take(rest).split_first_chunk_mut() {
        *room = field;
        *rest = behind;
    }
}

/// What a node has beside name, data and its place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Fields {
    pub czxid: i64,
    pub ctime: i64,
    /// See [`Owner`].
    pub owner: i64,
    pub change: Change,
    pub family: Family,
    pub acl: AclId,
}

impl Fields {
    /// Of a node with these numbers and no children.
    pub fn new(numbers: Numbers, acl: AclId) -> Self {
        let Numbers { czxid, ctime, owner, .. } = numbers;
        let none = Self { czxid, ctime, owner, change: Change::none(czxid, ctime), family: Family::none(czxid), acl };
        none.with(numbers)
    }

    /// With other numbers.
    pub fn with(self, numbers: Numbers) -> Self {
        let Numbers { czxid, mzxid, pzxid, ctime, mtime, owner, version, aversion, created, child_changes } = numbers;
        let change = Change { mzxid, mtime, version, aversion };
        let family = Family { pzxid, created, child_changes, ..self.family };
        Self { czxid, ctime, owner, change, family, acl: self.acl }
    }

    /// The numbers.
    pub fn numbers(&self) -> Numbers {
        let Self { czxid, ctime, owner, change, family, .. } = *self;
        let Change { mzxid, mtime, version, aversion } = change;
        let Family { pzxid, created, child_changes, .. } = family;
        Numbers { czxid, mzxid, pzxid, ctime, mtime, owner, version, aversion, created, child_changes }
    }
}

/// A znode. Its path is the names from the root down; only its own is kept here.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name within its parent (empty for the root), its [`Fields`] and its data.
    pub packed: Packed,
    /// Where it hangs.
    pub parent: NodeId,
    /// The next younger child of its parent.
    pub next: NodeId,
    /// The next older child of its parent.
    pub previous: NodeId,
    /// Hash of its path.
    pub hash: u32,
    /// The next node in the same chain of the index.
    pub next_in_chain: NodeId,
}

/// With the chain's head in the index (4 bytes), some 12 bytes beside name and data in [`Packed`], and that allocation's header
/// (4 bytes) and rounding (4 on average), a node that was never changed costs about 50 bytes beyond its name and data: in
/// WebAssembly a million with names of 12 bytes and 100 bytes of data take 160 MB. The first change costs 24 more, the first child 32.
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<Node>() <= 28);

impl Node {
    /// What its owner means.
    pub fn owner(&self) -> Owner {
        Owner::from_number(self.packed.owner())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        // It came as text.
        std::str::from_utf8(self.packed.name()).unwrap_or_default()
    }

    /// The stat's stored part.
    pub fn numbers(&self) -> Numbers {
        self.packed.fields().numbers()
    }

    /// How many children it has.
    pub fn children(&self) -> u32 {
        self.packed.family().children
    }

    /// The last change of its list of children, or something later. ClickHouse Keeper's pzxid knows of no removal.
    pub fn children_zxid(&self) -> i64 {
        let family = self.packed.family();
        match family.child_went {
            u32::MAX => i64::MAX,
            later => family.pzxid.saturating_add(later.into()),
        }
    }

    /// Its data; `None` is null, which clients can tell from empty.
    pub fn data(&self) -> Option<&[u8]> {
        self.packed.data()
    }

    /// Bytes of its data.
    pub fn data_length(&self) -> usize {
        self.data().map_or(0, <[u8]>::len)
    }

    /// The stat that clients see. ZooKeeper counts each child that came, and each that came and went
    /// twice, and tells of no owner but a session; ClickHouse Keeper shows what it keeps.
    pub fn stat(&self, is_clickhouse: bool) -> Stat {
        let Fields { czxid, ctime, owner, change, family, .. } = self.packed.fields();
        let children = family.children as i32;
        let (cversion, ephemeral_owner) = match (is_clickhouse, Owner::from_number(owner)) {
            (true, _) => (family.child_changes, owner),
            (false, Owner::Session(_)) => (family.created.wrapping_mul(2).wrapping_sub(children), owner),
            (false, _) => (family.created.wrapping_mul(2).wrapping_sub(children), 0),
        };
        Stat {
            czxid,
            mzxid: change.mzxid,
            ctime,
            mtime: change.mtime,
            version: change.version,
            cversion,
            aversion: change.aversion,
            ephemeral_owner,
            data_length: self.data_length() as i32,
            num_children: children,
            pzxid: family.pzxid,
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
