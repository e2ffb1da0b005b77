//! Reads of many nodes.
//!
//! Children come in the order of their creation, which is the same on every replica. (ZooKeeper's is
//! that of a hash table.)

use crate::ZnodeTree;
use crate::call::Identity;
use crate::call::LONG_ANSWER_BYTES_MAX;
use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::ops::check_length;
use crate::path;
use crate::tree::arena::NodeId;
use crate::tree::node::Owner;
use crate::wire::ErrorCode;
use crate::wire::PathWatch;
use crate::wire::op;
use crate::wire::perms;

/// Which children a filtered list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    All,
    Persistent,
    Ephemeral,
}

impl Filter {
    fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            0 => Ok(Self::All),
            1 => Ok(Self::Persistent),
            2 => Ok(Self::Ephemeral),
            _ => Err(Malformed),
        }
    }
}

impl ZnodeTree {
    pub(crate) fn get_children(
        &self,
        operation: i32,
        identities: &[Identity<'_>],
        path: &str,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        let id = self.node(path)?;
        self.permit(id, perms::READ, identities)?;
        self.names(id, out)?;
        if operation == op::GET_CHILDREN2 {
            self.stat(id).write(out);
        }
        Ok(())
    }

    fn names(&self, id: NodeId, out: &mut Writer<'_>) -> Result<(), ErrorCode> {
        out.count(self.tree.get(id).children() as usize);
        for (_, child) in self.tree.children(id) {
            out.buffer(Some(child.packed.name()));
            check_length(out)?;
        }
        Ok(())
    }

    /// How many nodes there are below a path.
    pub(crate) fn get_all_children_number(
        &self,
        identities: &[Identity<'_>],
        path: &str,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        let id = self.node(path)?;
        self.permit(id, perms::READ, identities)?;
        let number = if id == self.tree.root() {
            // By its other name ZooKeeper counts the root too.
            self.tree.node_count().saturating_sub(usize::from(!path.is_empty()))
        } else {
            self.tree.descendants(id).count()
        };
        out.count(number);
        Ok(())
    }

    /// ClickHouse's lists: `{path, watch, filter}`, and `{…, with stats, with data}` in the later one.
    /// What is told of a child beyond its name needs READ on it.
    pub(crate) fn filtered_list(
        &self,
        operation: i32,
        identities: &[Identity<'_>],
        reader: &mut Reader<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        let PathWatch { path, .. } = PathWatch::read(reader)?;
        let has_options = operation == op::FILTERED_LIST_WITH_STATS_AND_DATA;
        let filter = Filter::from_number(reader.u8()?)?;
        let (with_stats, with_data) = if has_options { (reader.bool()?, reader.bool()?) } else { (false, false) };
        let id = self.node(path)?;
        self.permit(id, perms::READ, identities)?;
        if filter == Filter::All && !with_stats && !with_data {
            self.names(id, out)?;
            self.stat(id).write(out);
            if has_options {
                out.count(0).count(0);
            }
            return Ok(());
        }
        let mut children = Vec::new();
        for (child, node) in self.tree.children(id) {
            self.permit(child, perms::READ, identities)?;
            let is_ephemeral = matches!(node.owner(), Owner::Session(_));
            if filter == Filter::All || is_ephemeral == (filter == Filter::Ephemeral) {
                children.push((child, node));
            }
        }
        out.texts(children.iter().map(|(_, node)| node.name()));
        self.stat(id).write(out);
        if has_options {
            let stats = if with_stats { children.as_slice() } else { &[] };
            out.count(stats.len());
            stats.iter().for_each(|(child, _)| self.stat(*child).write(out));
            let data = if with_data { children.as_slice() } else { &[] };
            out.count(data.len());
            for (_, node) in data {
                out.buffer(Some(node.data().unwrap_or_default()));
                check_length(out)?;
            }
        }
        Ok(())
    }

    /// The paths below a path, breadth first, at most `limit`. What the caller may not read is left
    /// out, with all below it.
    pub(crate) fn list_recursive(
        &self,
        identities: &[Identity<'_>],
        path: &str,
        limit: u32,
        out: &mut Writer<'_>,
    ) -> Result<(), ErrorCode> {
        let top = self.node(path)?;
        self.permit(top, perms::READ, identities)?;
        let mut found = vec![(top, path.trim_end_matches('/').to_owned())];
        let (mut at, mut bytes) = (0, 0);
        'all: while let Some((parent, parent_path)) = found.get(at).cloned() {
            at += 1;
            for (child, node) in self.tree.children(parent) {
                if self.permit(child, perms::READ, identities).is_err() {
                    continue;
                }
                if found.len() > limit as usize {
                    break 'all;
                }
                let path = format!("{parent_path}/{}", node.name());
                bytes += path.len();
                if bytes > LONG_ANSWER_BYTES_MAX {
                    return Err(ErrorCode::SystemError);
                }
                found.push((child, path));
            }
        }
        out.texts(found.iter().skip(1).map(|(_, path)| path));
        Ok(())
    }

    /// Where the configuration of the ensemble is read.
    pub(crate) fn config_path(&self) -> &'static str {
        if self.is_clickhouse() { crate::keeper::CONFIG } else { path::CONFIG }
    }
}
