//! create, create2, createContainer, createTTL, createIfNotExists.

use crate::ZnodeTree;
use crate::acl;
use crate::jute::Writer;
use crate::ops::Txn;
use crate::path;
use crate::quota;
use crate::tree::node::Numbers;
use crate::tree::node::Owner;
use crate::wire::CreateMode;
use crate::wire::CreateRequest;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::op;
use crate::wire::perms;

impl ZnodeTree {
    /// Creates a node; appends its path, and its stat where the operation's reply has one.
    pub(crate) fn create(
        &mut self,
        txn: &mut Txn<'_>,
        operation: i32,
        request: &CreateRequest<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        let mode = CreateMode::from_flags(request.flags).ok_or(ErrorCode::BadArguments)?;
        let owner = self.owner_of_new(txn, operation, mode, request.ttl)?;
        let (parent_path, _) = path::split(request.path)?;
        let list = acl::resolve(&request.acl, txn.identities, !self.is_clickhouse())?;
        let parent = self.node(parent_path)?;
        self.permit(parent, perms::CREATE, txn.identities)?;
        let numbered;
        let path = if mode.is_sequential() {
            numbered = format!("{}{:010}", request.path, self.tree.get(parent).packed.family().created);
            &numbered
        } else {
            request.path
        };
        path::check(path)?;
        self.check_not_keeper(path)?;
        if self.tree.find(path).is_some() {
            if operation == op::CREATE_IF_NOT_EXISTS {
                out.text(path);
                return Ok(());
            }
            return Err(ErrorCode::NodeExists);
        }
        match self.tree.get(parent).owner() {
            Owner::Session(_) => return Err(ErrorCode::NoChildrenForEphemerals),
            Owner::Ttl(_) if self.is_clickhouse() => return Err(ErrorCode::BadArguments),
            _ => {}
        }
        let bytes = request.data.map_or(0, <[u8]>::len) as i64;
        quota::check(&self.tree, path, 1, bytes, self.params.enforce_quota)?;

        let moment = txn.moment;
        self.tree.touch_parent(parent, moment.zxid, true);
        let numbers = Numbers {
            czxid: moment.zxid,
            mzxid: moment.zxid,
            pzxid: moment.zxid,
            ctime: moment.time_ms,
            mtime: moment.time_ms,
            owner: owner.number(),
            ..Numbers::default()
        };
        let id = self.tree.create(parent, path, request.data, &list, numbers);
        out.text(path);
        if has_stat(operation) {
            self.stat(id).write(out);
        }
        quota::count_anew(&mut self.tree, path, id);
        quota::count(&mut self.tree, path, 1, bytes);
        self.tell(txn, EventType::NodeCreated, path, id);
        self.tell(txn, EventType::NodeChildrenChanged, parent_path, parent);
        Ok(())
    }

    /// What the new node's owner is, or why there can be none such. The operation says more than the
    /// flags: a createContainer makes a container with any flags.
    fn owner_of_new(&self, txn: &Txn<'_>, operation: i32, mode: CreateMode, ttl: i64) -> Result<Owner, ErrorCode> {
        if mode.is_ttl() && !self.params.extended_types {
            return Err(ErrorCode::Unimplemented);
        }
        let is_good_ttl = if mode.is_ttl() { (1..=self.params.max_ttl_ms).contains(&ttl) } else { ttl < 0 };
        if !is_good_ttl || (operation == op::CREATE_TTL && !mode.is_ttl()) {
            return Err(ErrorCode::BadArguments);
        }
        if operation == op::CREATE_IF_NOT_EXISTS && mode.is_sequential() {
            return Err(ErrorCode::BadArguments);
        }
        if mode.is_ttl() {
            return Ok(Owner::Ttl(ttl as u64));
        }
        if operation == op::CREATE_CONTAINER {
            return Ok(Owner::Container);
        }
        match mode {
            CreateMode::Ephemeral | CreateMode::EphemeralSequential => {
                txn.session.map(Owner::Session).ok_or(ErrorCode::SessionExpired)
            }
            _ => Ok(Owner::Nobody),
        }
    }
}

/// Whether an operation's reply has the new node's stat.
pub(crate) fn has_stat(operation: i32) -> bool {
    matches!(operation, op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL)
}
