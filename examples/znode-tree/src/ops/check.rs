//! check, checkNotExists, checkStat: conditions of a multi.

use crate::ZnodeTree;
use crate::ops::Txn;
use crate::ops::check_version;
use crate::path;
use crate::tree::arena::NodeId;
use crate::wire::ErrorCode;
use crate::wire::PathVersion;
use crate::wire::Stat;
use crate::wire::perms;

impl ZnodeTree {
    /// The node has this version.
    pub(crate) fn check(&self, txn: &Txn<'_>, request: PathVersion<'_>) -> Result<(), ErrorCode> {
        self.checked(txn, request).map(|_| ())
    }

    fn checked(&self, txn: &Txn<'_>, request: PathVersion<'_>) -> Result<NodeId, ErrorCode> {
        path::check(request.path)?;
        self.check_not_keeper(request.path)?;
        let id = self.node(request.path)?;
        self.permit(id, perms::READ, txn.identities)?;
        check_version(self.tree.get(id).packed.change().version, request.version)?;
        Ok(id)
    }

    /// There is no such node, or none of this version.
    pub(crate) fn check_not_exists(&self, txn: &Txn<'_>, request: PathVersion<'_>) -> Result<(), ErrorCode> {
        path::check(request.path)?;
        self.check_not_keeper(request.path)?;
        let Some(id) = self.tree.find(request.path) else { return Ok(()) };
        self.permit(id, perms::READ, txn.identities)?;
        match check_version(self.tree.get(id).packed.change().version, request.version) {
            Ok(()) => Err(ErrorCode::NodeExists),
            Err(_) => Ok(()),
        }
    }

    /// The node has this version and this stat, where -1 is any.
    pub(crate) fn check_stat(&self, txn: &Txn<'_>, request: PathVersion<'_>, wanted: &Stat) -> Result<(), ErrorCode> {
        let is = self.stat(self.checked(txn, request)?);
        let longs = [
            (wanted.czxid, is.czxid),
            (wanted.mzxid, is.mzxid),
            (wanted.ctime, is.ctime),
            (wanted.mtime, is.mtime),
            (wanted.ephemeral_owner, is.ephemeral_owner),
            (wanted.pzxid, is.pzxid),
        ];
        let ints = [
            (wanted.version, is.version),
            (wanted.cversion, is.cversion),
            (wanted.aversion, is.aversion),
            (wanted.data_length, is.data_length),
            (wanted.num_children, is.num_children),
        ];
        let fits = longs.iter().all(|(wanted, is)| *wanted == -1 || wanted == is)
            && ints.iter().all(|(wanted, is)| *wanted == -1 || wanted == is);
        if fits { Ok(()) } else { Err(ErrorCode::BadVersion) }
    }
}
