//! Reads of single nodes, and what sessions and watches ask.

use crate::ZnodeTree;
use crate::acl;
use crate::acl::Acl;
use crate::call::Call;
use crate::call::Identity;
use crate::call::own;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::tree::arena::NodeId;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::PathWatch;
use crate::wire::SetWatches;
use crate::wire::op;
use crate::wire::path;
use crate::wire::perms;

impl ZnodeTree {
    /// Answers a query and appends the body.
    pub(crate) fn read(&self, session: Option<u64>, call: &Call<'_>, out: &mut Vec<u8>) -> Result<(), ErrorCode> {
        let mut reader = Reader::new(call.body);
        let writer = &mut Writer::new(out);
        match call.operation {
            op::MULTI_READ => self.multi_read(&call.identities, call.body, out),
            op::GET_EPHEMERALS => self.get_ephemerals(session, reader.text()?, writer),
            op::SET_WATCHES | op::SET_WATCHES2 => {
                let request = SetWatches::read(call.operation, &mut reader)?;
                self.missed_events(&request, writer);
                Ok(())
            }
            op::ADD_WATCH => {
                path(&mut reader)?;
                // ZooKeeper trips over a mode that it does not know.
                match reader.i32()? {
                    0 | 1 => writer.i32(0),
                    _ => return Err(ErrorCode::MarshallingError),
                };
                Ok(())
            }
            op::RECONFIG => self.may_reconfigure(&call.identities, &mut reader),
            own::STATUS => {
                self.status(writer);
                Ok(())
            }
            own::EPHEMERALS => {
                self.all_ephemerals(writer);
                Ok(())
            }
            own::MAY_READ => self.may_read(&call.identities, &mut reader, writer),
            operation => self.read_one(operation, &call.identities, &mut reader, writer),
        }
    }

    /// A read that may be an entry of a multiRead.
    pub(crate) fn read_one(
        &self,
        operation: i32,
        identities: &[Identity<'_>],
        reader: &mut Reader<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        match operation {
            op::GET_DATA => self.get_data(identities, PathWatch::read(reader)?.path, out),
            op::EXISTS => self.exists(identities, PathWatch::read(reader)?.path, out),
            op::GET_ACL => self.get_acl(identities, path(reader)?, out),
            op::GET_CHILDREN | op::GET_CHILDREN2 => {
                self.get_children(operation, identities, PathWatch::read(reader)?.path, out)
            }
            op::GET_ALL_CHILDREN_NUMBER => self.get_all_children_number(identities, path(reader)?, out),
            op::FILTERED_LIST | op::FILTERED_LIST_WITH_STATS_AND_DATA if self.is_clickhouse() => {
                self.filtered_list(operation, identities, reader, out)
            }
            op::LIST_RECURSIVE if self.is_clickhouse() => {
                let (path, limit) = (path(reader)?, reader.u32()?);
                self.list_recursive(identities, path, limit, out)
            }
            _ => Err(ErrorCode::Unimplemented),
        }
    }

    fn get_data(&self, identities: &[Identity<'_>], path: &str, out: &mut Writer<'_>) -> Result<(), ErrorCode> {
        let id = self.node(path)?;
        self.permit(id, perms::READ, identities)?;
        self.write_data(id, out);
        Ok(())
    }

    /// What a getData answers.
    pub(crate) fn write_data(&self, id: NodeId, out: &mut Writer<'_>) {
        out.buffer(self.tree.get(id).data());
        self.stat(id).write(out);
    }

    fn exists(&self, identities: &[Identity<'_>], path: &str, out: &mut Writer<'_>) -> Result<(), ErrorCode> {
        if path.contains('\0') {
            return Err(ErrorCode::BadArguments);
        }
        let id = self.node(path)?;
        // ClickHouse Keeper lets everybody know.
        if !self.is_clickhouse() {
            self.permit(id, perms::READ, identities)?;
        }
        self.stat(id).write(out);
        Ok(())
    }

    /// Whoever may not change the list sees the users in it but not their hashes.
    fn get_acl(&self, identities: &[Identity<'_>], path: &str, out: &mut Writer<'_>) -> Result<(), ErrorCode> {
        let id = self.node(path)?;
        self.permit(id, perms::READ | perms::ADMIN, identities)?;
        let hides_hashes = !self.is_clickhouse() && self.permit(id, perms::ADMIN, identities).is_err();
        let list = self.tree.acl(id);
        out.count(list.len());
        for acl in list {
            let Acl { perms, scheme, id } = if hides_hashes { &acl::without_hash(acl) } else { acl };
            out.i32(*perms).text(scheme).text(id);
        }
        self.stat(id).write(out);
        Ok(())
    }

    /// Of the session that asks, those that start with a prefix: of the text, as in ZooKeeper, not of
    /// the path's parts.
    fn get_ephemerals(
        &self,
        session: Option<u64>,
        prefix: Option<&str>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        let mut paths = session.map(|session| self.tree.paths_of_session(session)).unwrap_or_default();
        let prefix = prefix.unwrap_or("");
        // Java trims control characters, too.
        if !matches!(prefix.trim_matches(|character| character <= ' '), "" | "/") {
            paths.retain(|path| path.starts_with(prefix));
        }
        out.texts(paths.iter());
        Ok(())
    }

    /// What a client that comes back with its watches has missed since the last zxid it saw.
    fn missed_events(&self, request: &SetWatches<'_>, out: &mut Writer<'_>) {
        let since = request.relative_zxid;
        let mut missed = Vec::new();
        for path in &request.data {
            match self.tree.find(path).map(|id| self.tree.get(id)) {
                None => missed.push((EventType::NodeDeleted, *path)),
                Some(node) if node.packed.change().mzxid > since => missed.push((EventType::NodeDataChanged, *path)),
                Some(_) => {}
            }
        }
        for path in &request.exist {
            if self.tree.find(path).is_some() {
                missed.push((EventType::NodeCreated, *path));
            }
        }
        for path in &request.child {
            match self.tree.find(path).map(|id| self.tree.get(id)) {
                None => missed.push((EventType::NodeDeleted, *path)),
                Some(node) if node.children_zxid() > since => missed.push((EventType::NodeChildrenChanged, *path)),
                Some(_) => {}
            }
        }
        out.count(missed.len());
        for (event, path) in missed {
            out.i32(event as i32).text(path);
        }
    }

    fn status(&self, out: &mut Writer<'_>) {
        out.i64(self.tree.node_count() as i64).i64(self.tree.ephemerals() as i64);
        out.i64(self.tree.sessions().len() as i64);
        out.i64(self.tree.data_bytes() as i64).i64(self.tree.path_bytes() as i64);
    }

    fn all_ephemerals(&self, out: &mut Writer<'_>) {
        let sessions = self.tree.sessions();
        out.count(sessions.len());
        for session in sessions {
            out.i64(session as i64).texts(self.tree.paths_of_session(session).iter());
        }
    }

    fn may_read(
        &self,
        identities: &[Identity<'_>],
        reader: &mut Reader<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        for path in reader.texts()? {
            out.u8(match self.tree.find(path) {
                None => 2,
                Some(id) => u8::from(self.permit(id, perms::READ, identities).is_ok()),
            });
        }
        Ok(())
    }
}
