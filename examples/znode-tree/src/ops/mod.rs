//! Operations: a request, checked as ZooKeeper checks it and in its order, then done.
//!
//! * [`create`], [`remove`], [`set`], [`check`]: one kind of write a file;
//! * [`multi`]: several of them, or none;
//! * [`load`]: the import of another server's tree;
//! * [`read`], [`list`]: what is asked without changing anything;
//! * this file: what they share.
//!
//! Every write checks all it needs before its first change, so that one that fails has changed
//! nothing. Only a multi takes changes back.

pub mod check;
pub mod create;
pub mod list;
pub mod load;
pub mod multi;
pub mod read;
pub mod remove;
pub mod set;

use crate::ZnodeTree;
use crate::acl;
use crate::acl::Acl;
use crate::call::ChangeWriter;
use crate::call::Identity;
use crate::call::LONG_ANSWER_BYTES_MAX;
use crate::call::own;
use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::path;
use crate::tree::Moment;
use crate::tree::arena::NodeId;
use crate::wire;
use crate::wire::CreateRequest;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::PathVersion;
use crate::wire::SetAclRequest;
use crate::wire::SetDataRequest;
use crate::wire::Stat;
use crate::wire::op;

/// A write under way: when, by whom, and what it has changed so far.
#[derive(Debug)]
pub struct Txn<'a> {
    /// The entry.
    pub moment: Moment,
    /// The caller's session.
    pub session: Option<u64>,
    /// Who the caller is.
    pub identities: &'a [Identity<'a>],
    /// For the watches.
    pub changes: ChangeWriter,
}

/// A write's request.
#[derive(Clone, Debug)]
pub enum Write<'a> {
    /// create, create2, createContainer, createTTL, createIfNotExists: which, and the request.
    Create(i32, CreateRequest<'a>),
    /// delete.
    Delete(PathVersion<'a>),
    /// deleteContainer.
    DeleteContainer(&'a str),
    /// tryRemove.
    TryRemove(PathVersion<'a>),
    /// removeRecursive, with the most nodes that it may remove.
    RemoveRecursive(&'a str, u32),
    /// setData.
    SetData(SetDataRequest<'a>),
    /// setACL.
    SetAcl(SetAclRequest<'a>),
    /// check.
    Check(PathVersion<'a>),
    /// checkNotExists.
    CheckNotExists(PathVersion<'a>),
    /// checkStat.
    CheckStat(PathVersion<'a>, Stat),
    /// [`own::SET_CONFIG`].
    SetConfig(&'a [u8]),
}

impl<'a> Write<'a> {
    /// Reads the request of an operation; `None` when it is no single write.
    pub fn read(operation: i32, reader: &mut Reader<'a>) -> Result<Option<Self>, Malformed> {
        Ok(Some(match operation {
            op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL | op::CREATE_IF_NOT_EXISTS => {
                Self::Create(operation, CreateRequest::read(operation, reader)?)
            }
            op::DELETE => Self::Delete(PathVersion::read(reader)?),
            op::DELETE_CONTAINER => Self::DeleteContainer(wire::path(reader)?),
            op::TRY_REMOVE => Self::TryRemove(PathVersion::read(reader)?),
            op::REMOVE_RECURSIVE => Self::RemoveRecursive(wire::path(reader)?, reader.u32()?),
            op::SET_DATA => Self::SetData(SetDataRequest::read(reader)?),
            op::SET_ACL => Self::SetAcl(SetAclRequest::read(reader)?),
            op::CHECK => Self::Check(PathVersion::read(reader)?),
            op::CHECK_NOT_EXISTS => Self::CheckNotExists(PathVersion::read(reader)?),
            op::CHECK_STAT => Self::CheckStat(PathVersion::read(reader)?, Stat::read(reader)?),
            own::SET_CONFIG => Self::SetConfig(reader.buffer()?.unwrap_or_default()),
            _ => return Ok(None),
        }))
    }

    /// About how many bytes more there are when it is done: roughly, as ClickHouse Keeper reckons.
    pub fn growth_bytes(&self) -> i64 {
        match self {
            Self::Create(_, request) => {
                let data_bytes = request.data.map_or(0, <[u8]>::len);
                (request.path.len() + data_bytes + acl::request_bytes(&request.acl)) as i64
            }
            Self::SetAcl(request) => acl::request_bytes(&request.acl) as i64,
            Self::SetData(request) => request.data.map_or(0, <[u8]>::len) as i64,
            Self::Delete(request) | Self::TryRemove(request) => -(request.path.len() as i64),
            _ => 0,
        }
    }
}

impl ZnodeTree {
    /// Does one write and appends the body of its reply. One that fails changes nothing (but may
    /// have written to `out`).
    pub(crate) fn write(
        &mut self,
        txn: &mut Txn<'_>,
        write: &Write<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        match write {
            Write::Create(operation, request) => self.create(txn, *operation, request, out),
            Write::Delete(request) => self.delete(txn, *request),
            Write::DeleteContainer(path) => self.delete_container(txn, path),
            Write::TryRemove(request) => self.try_remove(txn, *request),
            Write::RemoveRecursive(path, limit) => self.remove_recursive(txn, path, *limit),
            Write::SetData(request) => self.set_data(txn, request, out),
            Write::SetAcl(request) => self.set_acl(txn, request, out),
            Write::Check(request) => self.check(txn, *request),
            Write::CheckNotExists(request) => self.check_not_exists(txn, *request),
            Write::CheckStat(request, stat) => self.check_stat(txn, *request, stat),
            Write::SetConfig(members) => self.set_config(txn, members, out),
        }
    }

    /// The node at a path.
    pub(crate) fn node(&self, path: &str) -> Result<NodeId, ErrorCode> {
        self.tree.find(path).ok_or(ErrorCode::NoNode)
    }

    /// What is under `/keeper` is the server's own and differs between versions: no client changes it, and no multi
    /// depends on it.
    pub(crate) fn check_not_keeper(&self, path: &str) -> Result<(), ErrorCode> {
        let is_keepers = self.is_clickhouse() && path::is_within(path, path::KEEPER);
        if is_keepers { Err(ErrorCode::BadArguments) } else { Ok(()) }
    }

    /// Whether the caller may do one of `wanted` (bits) at a node.
    pub(crate) fn permit(&self, id: NodeId, wanted: i32, identities: &[Identity<'_>]) -> Result<(), ErrorCode> {
        let permitted = self.params.skip_acl || acl::allows(self.tree.acl(id), wanted, identities);
        if permitted { Ok(()) } else { Err(ErrorCode::NoAuth) }
    }

    /// A node's stat as clients see it.
    pub(crate) fn stat(&self, id: NodeId) -> Stat {
        self.tree.get(id).stat(self.is_clickhouse())
    }

    /// Tells the watches of a change at a node. A node that is removed must still be there.
    pub(crate) fn tell(&self, txn: &mut Txn<'_>, event: EventType, path: &str, id: NodeId) {
        let path = if path.is_empty() { "/" } else { path };
        if self.params.skip_acl || self.tree.acls().is_readable_by_all(self.tree.get(id).packed.acl()) {
            txn.changes.push(event, path.as_bytes(), None::<std::iter::Empty<_>>);
            return;
        }
        let readers: Vec<_> = self
            .tree
            .acl(id)
            .iter()
            .filter(|acl| acl.perms & crate::wire::perms::READ != 0)
            .map(Acl::identity)
            .collect();
        txn.changes.push(event, path.as_bytes(), Some(readers.into_iter()));
    }
}

/// Whether an answer under way can still be given.
pub(crate) fn check_length(out: &Writer<'_>) -> Result<(), ErrorCode> {
    if out.len() <= LONG_ANSWER_BYTES_MAX { Ok(()) } else { Err(ErrorCode::SystemError) }
}

/// A version that was asked for against the one that is.
pub(crate) fn check_version(is: i32, wanted: i32) -> Result<(), ErrorCode> {
    if wanted == -1 || wanted == is { Ok(()) } else { Err(ErrorCode::BadVersion) }
}

/// The version after this one. It never becomes -1, which stands for any version.
pub(crate) fn next_version(version: i32) -> i32 {
    match version.wrapping_add(1) {
        -1 => 0,
        next => next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_goes_round_without_becoming_any() {
        assert_eq!(next_version(0), 1);
        assert_eq!(next_version(i32::MAX), i32::MIN);
        assert_eq!(next_version(-2), 0, "-1 is any version");
    }
}
