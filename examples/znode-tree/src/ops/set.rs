//! setData, setACL, and the configuration node.

use crate::ZnodeTree;
use crate::acl;
use crate::call::Identity;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::ops::Txn;
use crate::ops::check_version;
use crate::ops::next_version;
use crate::path;
use crate::quota;
use crate::reconfig::ReconfigRequest;
use crate::tree::arena::NodeId;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::SetAclRequest;
use crate::wire::SetDataRequest;
use crate::wire::perms;

/// What stands before the version of a configuration, in its last line.
const VERSION: &[u8] = b"version=";

impl ZnodeTree {
    /// Sets a node's data; appends its stat.
    pub(crate) fn set_data(
        &mut self,
        txn: &mut Txn<'_>,
        request: &SetDataRequest<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        path::check(request.path)?;
        self.check_not_keeper(request.path)?;
        let id = self.node(request.path)?;
        self.permit(id, perms::WRITE, txn.identities)?;
        let before = self.tree.get(id).data_length() as i64;
        let more = request.data.map_or(0, <[u8]>::len) as i64 - before;
        quota::check(&self.tree, request.path, 0, more, self.params.enforce_quota)?;
        check_version(self.tree.get(id).packed.change().version, request.version)?;

        self.put_data(txn, id, request.data);
        if self.is_clickhouse()
            && let Some(parent) = self.tree.get(id).parent.some()
        {
            self.tree.count_child_change(parent);
        }
        self.stat(id).write(out);
        quota::count(&mut self.tree, request.path, 0, more);
        self.tell(txn, EventType::NodeDataChanged, request.path, id);
        Ok(())
    }

    /// Replaces a node's data, with the numbers that tell of it.
    fn put_data(&mut self, txn: &Txn<'_>, id: NodeId, data: Option<&[u8]>) {
        self.tree.replace_data(id, data);
        self.tree.touch(id, |change| {
            change.version = next_version(change.version);
            change.mzxid = txn.moment.zxid;
            change.mtime = txn.moment.time_ms;
        });
    }

    /// Sets a node's ACL list; appends its stat. No watch waits for it.
    pub(crate) fn set_acl(
        &mut self,
        txn: &mut Txn<'_>,
        request: &SetAclRequest<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        path::check(request.path)?;
        self.check_not_keeper(request.path)?;
        let list = acl::resolve(&request.acl, txn.identities, !self.is_clickhouse())?;
        let id = self.node(request.path)?;
        self.permit(id, perms::ADMIN, txn.identities)?;
        check_version(self.tree.get(id).packed.change().aversion, request.version)?;
        self.tree.replace_acl(id, &list);
        self.tree.touch(id, |change| change.aversion = next_version(change.aversion));
        self.stat(id).write(out);
        Ok(())
    }

    /// The members of the cluster have changed, or are told for the first time.
    pub(crate) fn set_config(
        &mut self,
        txn: &mut Txn<'_>,
        members: &[u8],
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        let path = self.config_path();
        let id = self.node(path)?;
        let is = self.tree.get(id).data().unwrap_or_default();
        let is_same = match is.strip_prefix(members) {
            Some(rest) if self.is_clickhouse() => rest.is_empty(),
            Some(rest) => rest.starts_with(VERSION),
            None => false,
        };
        if is_same {
            self.write_data(id, out);
            return Ok(());
        }
        let mut data = members.to_vec();
        if !self.is_clickhouse() {
            // Clients go by it: of two configurations the one with the greater version is the newer.
            data.extend_from_slice(VERSION);
            data.extend_from_slice(format!("{:x}", txn.moment.zxid).as_bytes());
        }
        self.put_data(txn, id, Some(&data));
        self.tell(txn, EventType::NodeDataChanged, path, id);
        self.write_data(id, out);
        Ok(())
    }

    /// Whether a client may ask for other members, in ZooKeeper's order of checks; who the members are the host knows.
    pub(crate) fn may_reconfigure(
        &self,
        identities: &[Identity<'_>],
        reader: &mut Reader<'_>,
    ) -> Result<(), ErrorCode> {
        let request = ReconfigRequest::read(reader)?;
        if !self.params.reconfig_enabled {
            return Err(ErrorCode::ReconfigDisabled);
        }
        // ClickHouse's is another one, with other addresses.
        if self.is_clickhouse() {
            return Err(ErrorCode::Unimplemented);
        }
        let id = self.node(self.config_path())?;
        request.check_version(config_version(self.tree.get(id).data().unwrap_or_default()))?;
        request.wish()?;
        self.permit(id, perms::WRITE, identities)
    }
}

/// The version at the end of a configuration; 0 while there is none.
fn config_version(data: &[u8]) -> i64 {
    let last = data.rsplit(|byte| *byte == b'\n').next().and_then(|line| line.strip_prefix(VERSION));
    let digits = last.and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| i64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}
