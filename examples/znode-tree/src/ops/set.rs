//! setData, setACL, and the configuration node.

use crate::ZnodeTree;
use crate::acl;
use crate::jute::Writer;
use crate::ops::Txn;
use crate::ops::check_version;
use crate::ops::next_version;
use crate::path;
use crate::quota;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::SetAclRequest;
use crate::wire::SetDataRequest;
use crate::wire::perms;

impl ZnodeTree {
    /// Sets a node's data; appends its stat.
    pub(crate) fn set_data(
        &mut self,
        txn: &mut Txn<'_>,
        request: &SetDataRequest<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        path::check(request.path)?;
        if self.is_clickhouse() && path::is_within(request.path, path::KEEPER) {
            return Err(ErrorCode::BadArguments);
        }
        let id = self.node(request.path)?;
        self.permit(id, perms::WRITE, txn.identities)?;
        let before = self.tree.get(id).data_length() as i64;
        let more = request.data.map_or(0, <[u8]>::len) as i64 - before;
        quota::check(&self.tree, request.path, 0, more, self.params.enforce_quota)?;
        check_version(self.tree.get(id).numbers.version, request.version)?;

        let moment = txn.moment;
        self.tree.replace_data(id, request.data);
        self.tree.renumber(id, |numbers| {
            numbers.version = next_version(numbers.version);
            numbers.mzxid = moment.zxid;
            numbers.mtime = moment.time_ms;
        });
        if self.is_clickhouse()
            && let Some(parent) = self.tree.get(id).parent.some()
        {
            self.tree.renumber(parent, |numbers| numbers.child_changes = numbers.child_changes.wrapping_add(1));
        }
        self.stat(id).write(out);
        quota::count(&mut self.tree, request.path, 0, more);
        self.tell(txn, EventType::NodeDataChanged, request.path, id);
        Ok(())
    }

    /// Sets a node's ACL list; appends its stat. No watch waits for it.
    pub(crate) fn set_acl(
        &mut self,
        txn: &mut Txn<'_>,
        request: &SetAclRequest<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        path::check(request.path)?;
        if self.is_clickhouse() && path::is_within(request.path, path::KEEPER) {
            return Err(ErrorCode::BadArguments);
        }
        let list = acl::resolve(&request.acl, txn.identities, !self.is_clickhouse())?;
        let id = self.node(request.path)?;
        self.permit(id, perms::ADMIN, txn.identities)?;
        check_version(self.tree.get(id).numbers.aversion, request.version)?;
        self.tree.replace_acl(id, &list);
        self.tree.renumber(id, |numbers| numbers.aversion = next_version(numbers.aversion));
        self.stat(id).write(out);
        Ok(())
    }

    /// The members of the cluster have changed, or are told for the first time.
    pub(crate) fn set_config(&mut self, txn: &mut Txn<'_>, data: Option<&[u8]>) -> Result<(), ErrorCode> {
        let path = self.config_path();
        let id = self.node(path)?;
        if self.tree.get(id).data.as_deref() == data {
            return Ok(());
        }
        let moment = txn.moment;
        self.tree.replace_data(id, data);
        self.tree.renumber(id, |numbers| {
            numbers.version = next_version(numbers.version);
            numbers.mzxid = moment.zxid;
            numbers.mtime = moment.time_ms;
        });
        self.tell(txn, EventType::NodeDataChanged, path, id);
        Ok(())
    }
}
