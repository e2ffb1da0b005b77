//! delete, deleteContainer, tryRemove, removeRecursive; and what goes by itself: with its session, or
//! when its time has come.

use crate::ZnodeTree;
use crate::ops::Txn;
use crate::ops::check_version;
use crate::path;
use crate::quota;
use crate::tree::arena::NodeId;
use crate::tree::node::Owner;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::PathVersion;
use crate::wire::perms;

impl ZnodeTree {
    pub(crate) fn delete(&mut self, txn: &mut Txn<'_>, request: PathVersion<'_>) -> Result<(), ErrorCode> {
        let (parent, id) = self.removable(txn, request.path)?;
        check_version(self.tree.get(id).packed.change().version, request.version)?;
        self.check_childless(id)?;
        self.remove(txn, request.path, parent, id);
        Ok(())
    }

    /// The parent of a path that shall be removed, where the caller may, and the node there.
    fn removable(&self, txn: &Txn<'_>, path: &str) -> Result<(NodeId, NodeId), ErrorCode> {
        let (parent_path, _) = path::split_removable(path)?;
        self.check_not_keeper(path)?;
        let parent = self.node(parent_path)?;
        self.permit(parent, perms::DELETE, txn.identities)?;
        Ok((parent, self.node(path)?))
    }

    fn check_childless(&self, id: NodeId) -> Result<(), ErrorCode> {
        if self.tree.get(id).children() == 0 { Ok(()) } else { Err(ErrorCode::NotEmpty) }
    }

    /// ZooKeeper sends this to itself when a container's time has come, and takes it from a client as
    /// well, without asking for a permission. Here it is for containers and nodes with a TTL alone,
    /// and a client needs DELETE.
    pub(crate) fn delete_container(&mut self, txn: &mut Txn<'_>, path: &str) -> Result<(), ErrorCode> {
        let (parent, id) = self.removable(txn, path)?;
        self.check_childless(id)?;
        if !matches!(self.tree.get(id).owner(), Owner::Container | Owner::Ttl(_)) {
            return Err(ErrorCode::BadVersion);
        }
        self.remove(txn, path, parent, id);
        Ok(())
    }

    /// As delete, but a node that is not there, has children or another version is no error.
    pub(crate) fn try_remove(&mut self, txn: &mut Txn<'_>, request: PathVersion<'_>) -> Result<(), ErrorCode> {
        match self.delete(txn, request) {
            Err(ErrorCode::NoNode | ErrorCode::NotEmpty | ErrorCode::BadVersion) => Ok(()),
            other => other,
        }
    }

    /// Removes a node and all below it, if these are at most `limit` and each may be removed. Nothing
    /// there is no error.
    pub(crate) fn remove_recursive(&mut self, txn: &mut Txn<'_>, path: &str, limit: u32) -> Result<(), ErrorCode> {
        let (parent, top) = match self.removable(txn, path) {
            Err(ErrorCode::NoNode) => return Ok(()),
            other => other?,
        };
        let mut all = Vec::new();
        for id in std::iter::once(top).chain(self.tree.descendants(top)) {
            if all.len() >= limit as usize {
                return Err(ErrorCode::NotEmpty);
            }
            self.permit(id, perms::DELETE, txn.identities)?;
            all.push(id);
        }
        // Children before their parents.
        for id in all.into_iter().rev() {
            if id == top {
                self.remove(txn, path, parent, top);
            } else {
                let path = self.tree.path_of(id);
                self.remove(txn, &path, self.tree.get(id).parent, id);
            }
        }
        Ok(())
    }

    /// Removes a node that may be removed.
    fn remove(&mut self, txn: &mut Txn<'_>, path: &str, parent: NodeId, id: NodeId) {
        self.tell(txn, EventType::NodeDeleted, path, id);
        let bytes = self.tree.get(id).data_length() as i64;
        self.tree.remove(id, path);
        if self.is_clickhouse() {
            self.tree.lose_child(parent, txn.moment.zxid);
        } else {
            self.tree.touch_parent(parent, txn.moment.zxid, false);
        }
        quota::count(&mut self.tree, path, -1, -bytes);
        let parent_path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.tell(txn, EventType::NodeChildrenChanged, parent_path, parent);
    }

    /// Removes a node that goes by itself. One that got children meanwhile stays.
    pub(crate) fn remove_by_itself(&mut self, txn: &mut Txn<'_>, path: &str) {
        let Some(id) = self.tree.find(path) else { return };
        if self.tree.get(id).children() == 0
            && let Some(parent) = self.tree.get(id).parent.some()
        {
            self.remove(txn, path, parent, id);
        }
    }
}
