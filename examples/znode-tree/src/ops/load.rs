//! The import of another server's tree, node by node with all numbers: `begin`, batches, `end`.
//!
//! Invariants:
//! * Only a group that no client has written to is loaded; once it is over, nothing begins it again.
//! * While it lasts, clients are answered `ErrorCode::ConnectionLoss`: nobody sees half a tree. And no node goes by
//!   itself: a container without children may be one whose children are still to come.
//! * A batch is loaded whole or not at all. It says how many nodes came before it, so that one that is
//!   sent again is known.

use statehouse_sdk::Reject;
use statehouse_sdk::ensure;

use crate::ZnodeTree;
use crate::acl;
use crate::acl::Acl;
use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::path;
use crate::tree::node::Numbers;
use crate::wire::AclEntry;

/// Whether another server's tree may be, or is being, loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Import {
    /// No client has written yet.
    #[default]
    Possible,
    /// So many nodes were loaded, and more may come.
    Running(u64),
    /// Clients write.
    Over,
}

/// A node as it comes.
struct Loaded<'a> {
    path: &'a str,
    data: Option<&'a [u8]>,
    acl: Vec<AclEntry<'a>>,
    numbers: Numbers,
}

impl<'a> Loaded<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            path: reader.text()?.ok_or(Malformed)?,
            data: reader.buffer()?,
            acl: AclEntry::read_all(reader)?,
            numbers: Numbers {
                czxid: reader.i64()?,
                mzxid: reader.i64()?,
                pzxid: reader.i64()?,
                ctime: reader.i64()?,
                mtime: reader.i64()?,
                owner: reader.i64()?,
                version: reader.i32()?,
                aversion: reader.i32()?,
                created: reader.i32()?,
                child_changes: reader.i32()?,
            },
        })
    }
}

impl ZnodeTree {
    /// Begins; appends how many nodes there are. Beginning again before the first batch is beginning.
    pub(crate) fn load_begin(&mut self, out: &mut Writer<'_>) -> Result<(), Reject> {
        match self.import {
            Import::Possible => self.import = Import::Running(0),
            Import::Running(_) => {}
            Import::Over => return Err("clients have written to this group: only a new one can be loaded".into()),
        }
        out.i64(self.tree.node_count() as i64);
        Ok(())
    }

    /// Loads a batch; appends how many nodes were loaded.
    pub(crate) fn load(&mut self, body: &[u8], out: &mut Writer<'_>) -> Result<(), Reject> {
        let Import::Running(loaded) = self.import else { return Err("no import was begun".into()) };
        let mut reader = Reader::new(body);
        let malformed = |Malformed| Reject::from("these bytes are no batch: see znode-tree's call.rs");
        let before = reader.i64().map_err(malformed)?;
        let count = reader.u32().map_err(malformed)?;
        let known = i64::try_from(loaded).unwrap_or(i64::MAX);
        if known == before.saturating_add(count.into()) && count > 0 {
            // This very batch, sent again.
            out.i64(known);
            return Ok(());
        }
        ensure!(known == before, "the batch comes after {before} nodes, but {known} were loaded");
        self.tree.begin();
        for _ in 0..count {
            let node = Loaded::read(&mut reader).map_err(malformed);
            if let Err(reject) = node.and_then(|node| self.load_one(&node)) {
                self.tree.roll_back();
                return Err(reject);
            }
        }
        self.tree.commit();
        self.import = Import::Running(loaded + u64::from(count));
        out.i64(known.saturating_add(count.into()));
        Ok(())
    }

    fn load_one(&mut self, node: &Loaded<'_>) -> Result<(), Reject> {
        let Loaded { path, data, acl, numbers } = node;
        ensure!(path::check(path).is_ok(), "{path:?} is not a path, or over {} bytes long", path::BYTES_MAX);
        let list_bytes = acl::request_bytes(acl);
        ensure!(
            list_bytes <= acl::LIST_BYTES_MAX,
            "{path:?} has an ACL list of {list_bytes} bytes, over {}",
            acl::LIST_BYTES_MAX
        );
        ensure!(!path::is_within(path, path::KEEPER) || !self.is_clickhouse(), "{path:?} is this server's own");
        ensure!(!path::is_within(path, path::CONFIG), "{path:?} is this server's own");
        ensure!(
            [numbers.czxid, numbers.mzxid, numbers.pzxid].iter().all(|zxid| *zxid <= self.params.zxid_base),
            "{path:?} has a zxid over the group's zxid_base, {}",
            self.params.zxid_base
        );
        let list: Vec<Acl> = acl
            .iter()
            .map(|AclEntry { perms, scheme, id }| Acl {
                perms: *perms,
                scheme: scheme.unwrap_or_default().into(),
                id: id.unwrap_or_default().into(),
            })
            .collect();
        let Some(id) = self.tree.find(path) else {
            let parent = path.rsplit_once('/').and_then(|(parent, _)| self.tree.find(parent));
            let parent = parent.ok_or_else(|| Reject::from(format!("the parent of {path:?} was not loaded")))?;
            self.tree.create(parent, path, *data, &list, *numbers);
            return Ok(());
        };
        ensure!(matches!(*path, "/" | path::ZOOKEEPER | path::QUOTA), "{path:?} was loaded already");
        self.tree.renumber(id, *numbers);
        self.tree.replace_data(id, *data);
        self.tree.replace_acl(id, &list);
        Ok(())
    }

    /// Ends; appends how many nodes there are.
    pub(crate) fn load_end(&mut self, expected: i64, out: &mut Writer<'_>) -> Result<(), Reject> {
        let Import::Running(loaded) = self.import else { return Err("no import was begun".into()) };
        ensure!(i64::try_from(loaded) == Ok(expected), "{loaded} nodes were loaded, {expected} were sent");
        self.import = Import::Over;
        out.i64(self.tree.node_count() as i64);
        Ok(())
    }
}
