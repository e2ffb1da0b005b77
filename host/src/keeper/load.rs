//! A dump as the calls by which the module `znode-tree` takes it in: `begin`, batches of nodes, `end` (its `call.rs` has
//! the bytes).

use std::collections::BTreeMap;

use serde_json::Value;

use super::dump::Dump;
use super::dump::jute::Acl;
use super::dump::tree::Node;
use super::dump::tree::Stored;
use super::dump::tree::Tree;

/// The version byte of a call.
const VERSION: u8 = 1;
const LOAD_BEGIN: i32 = 10_004;
const LOAD: i32 = 10_005;
const LOAD_END: i32 = 10_006;

/// A batch is closed when it has so many bytes or nodes: well below what a node takes as a command, and what an entry
/// may cost.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_NODES: u32 = 2_000;

/// What a server has of its own, and another tree does not bring.
const CONFIG: &str = "/zookeeper/config";
const ZOOKEEPER: &str = "/zookeeper";
/// What is there before anything is loaded.
const SYSTEM: [&str; 3] = ["/", ZOOKEEPER, "/zookeeper/quota"];

/// Some nodes as one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The call.
    pub call: Vec<u8>,
    /// How many nodes are in it.
    pub nodes: u32,
    /// The first of them.
    pub first: String,
}

/// The nodes that are to be loaded.
#[derive(Debug)]
pub struct Load<'a> {
    tree: &'a Tree,
    /// Children of each node that has some.
    children: BTreeMap<&'a str, u32>,
    is_clickhouse: bool,
}

fn call(operation: i32) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(operation.to_be_bytes());
    // No identities: nobody asks for permission.
    bytes.extend(0_u16.to_be_bytes());
    bytes
}

/// The call that begins.
pub fn begin() -> Vec<u8> {
    call(LOAD_BEGIN)
}

/// The call that ends, after so many nodes.
pub fn end(nodes: u64) -> Vec<u8> {
    let mut bytes = call(LOAD_END);
    bytes.extend(nodes.to_be_bytes());
    bytes
}

/// The number that the module answers, or the error that it is.
pub fn number(reply: &[u8]) -> Result<u64, String> {
    let unexpected = || format!("an answer of {} bytes that this version does not know", reply.len());
    let (error, body) = reply.split_first_chunk::<4>().ok_or_else(unexpected)?;
    match i32::from_be_bytes(*error) {
        0 => body.first_chunk::<8>().map(|number| u64::from_be_bytes(*number)).ok_or_else(unexpected),
        error => Err(format!("error {error}")),
    }
}

/// The params of a group that takes this dump in, out of those that it has, or is to have: new transactions count on
/// from where the old servers were, so that their clients find nothing here older than what they saw.
pub fn params(before: &Value, dump: &Dump) -> Value {
    let mut params = before.as_object().cloned().unwrap_or_default();
    params.insert("zxid_base".to_owned(), dump.zxid.into());
    if dump.tree.nodes().any(|(_, node)| node.stored.is_ttl()) {
        params.insert("extended_types".to_owned(), true.into());
    }
    Value::Object(params)
}

impl<'a> Load<'a> {
    /// What a group of these params is to be given of `dump`.
    pub fn new(dump: &'a Dump, params: &Value) -> Self {
        Self::of(&dump.tree, params)
    }

    /// The same of a tree.
    pub fn of(tree: &'a Tree, params: &Value) -> Self {
        let mut children: BTreeMap<&str, u32> = BTreeMap::new();
        for (path, _) in tree.nodes() {
            if let Some((parent, _)) = path.rsplit_once('/') {
                *children.entry(parent).or_default() += 1;
            }
        }
        let is_clickhouse = params.get("compatibility").is_some_and(|whose| whose == "clickhouse");
        Self { tree, children, is_clickhouse }
    }

    /// Whether the group takes this node. `/zookeeper/config` is each server's own; ClickHouse Keeper has no
    /// `/zookeeper`, and `/keeper` is its own.
    fn takes(&self, path: &str) -> bool {
        let is_within = |top: &str| path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let is_foreign = self.is_clickhouse && (is_within(ZOOKEEPER) || is_within("/keeper"));
        !is_within(CONFIG) && !is_foreign
    }

    /// The nodes, each after its parent; the root is at `/`.
    fn nodes(&self) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let nodes = self.tree.nodes().map(|(path, node)| (if path.is_empty() { "/" } else { path }, node));
        nodes.filter(|(path, _)| self.takes(path))
    }

    /// How many nodes are loaded.
    pub fn count(&self) -> u64 {
        self.nodes().count() as u64
    }

    /// How many of them are new to a group that has just been made.
    pub fn new_count(&self) -> u64 {
        let is_there = |path: &&str| SYSTEM.iter().take(if self.is_clickhouse { 1 } else { 3 }).any(|own| own == path);
        self.count() - self.nodes().filter(|(path, _)| is_there(path)).count() as u64
    }

    /// How many nodes are left out.
    pub fn left_out(&self) -> u64 {
        self.tree.len() as u64 - self.count()
    }

    /// The batches, in order.
    pub fn batches(&self) -> impl Iterator<Item = Batch> {
        let mut nodes = self.nodes().peekable();
        let mut before: u64 = 0;
        std::iter::from_fn(move || {
            let first = nodes.peek()?.0.to_owned();
            let mut body = Vec::new();
            let mut count: u32 = 0;
            while count < BATCH_NODES {
                let fits = |(path, node): &(&str, &Node)| body.len() + size(path, node) <= BATCH_BYTES;
                let Some((path, node)) = nodes.next_if(|next| count == 0 || fits(next)) else { break };
                self.write(path, node, &mut body);
                count += 1;
            }
            let mut call = call(LOAD);
            call.extend(before.to_be_bytes());
            call.extend(count.to_be_bytes());
            call.extend(body);
            before += u64::from(count);
            Some(Batch { call, nodes: count, first })
        })
    }

    fn write(&self, path: &str, node: &Node, out: &mut Vec<u8>) {
        buffer(Some(path.as_bytes()), out);
        buffer(node.data.as_deref(), out);
        let acl = self.tree.acl(node.acl);
        out.extend(length(acl.len()));
        for Acl { perms, scheme, id } in acl {
            out.extend(perms.to_be_bytes());
            buffer(Some(scheme.as_bytes()), out);
            buffer(Some(id.as_bytes()), out);
        }
        let Stored { czxid, mzxid, ctime, mtime, version, cversion, aversion, owner, pzxid } = node.stored;
        for number in [czxid, mzxid, pzxid, ctime, mtime, owner] {
            out.extend(number.to_be_bytes());
        }
        let children = self.children.get(if path == "/" { "" } else { path }).copied().unwrap_or(0);
        // Each child that came, and each that went.
        let changes = cversion.wrapping_mul(2).wrapping_sub_unsigned(children);
        for number in [version, aversion, cversion, changes] {
            out.extend(number.to_be_bytes());
        }
    }
}

/// About how many bytes a node takes.
fn size(path: &str, node: &Node) -> usize {
    path.len() + node.data.as_ref().map_or(0, |data| data.len()) + 128
}

fn length(length: usize) -> [u8; 4] {
    i32::try_from(length).unwrap_or(i32::MAX).to_be_bytes()
}

fn buffer(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    match bytes {
        None => out.extend((-1_i32).to_be_bytes()),
        Some(bytes) => {
            out.extend(length(bytes.len()));
            out.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::keeper::dump;

    fn dump() -> Dump {
        let plain = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/keeper/plain"));
        dump::read(plain, plain, &|_| {}).unwrap()
    }

    #[test]
    fn all_nodes_come_once_parents_first_but_the_servers_own() {
        let dump = dump();
        let load = Load::new(&dump, &json!({}));
        let paths: Vec<_> = load.nodes().map(|(path, _)| path).collect();
        assert_eq!(paths[0], "/");
        assert!(paths.contains(&"/zookeeper/quota/app/zookeeper_limits") && !paths.contains(&"/zookeeper/config"));
        assert_eq!((load.count(), load.left_out()), (dump.tree.len() as u64 - 1, 1));
        assert_eq!(load.new_count(), load.count() - 3);
        for (number, path) in paths.iter().enumerate().skip(1) {
            let parent = path.rsplit_once('/').unwrap().0;
            let parent = if parent.is_empty() { "/" } else { parent };
            assert!(paths[..number].contains(&parent), "{path}");
        }
        let sent: u64 = load.batches().map(|batch| u64::from(batch.nodes)).sum();
        assert_eq!(sent, load.count());
    }

    #[test]
    fn clickhouse_gets_nothing_of_zookeepers_own() {
        let dump = dump();
        let load = Load::new(&dump, &json!({"compatibility": "clickhouse"}));
        assert!(load.nodes().all(|(path, _)| !path.starts_with("/zookeeper")));
        assert_eq!(load.new_count(), load.count() - 1);
    }

    #[test]
    fn a_group_counts_on_and_knows_times_to_live_if_there_are_some() {
        let dump = dump();
        assert_eq!(
            params(&json!({"skip_acl": true, "zxid_base": 1}), &dump),
            json!({"skip_acl": true, "zxid_base": dump.zxid, "extended_types": true})
        );
    }

    #[test]
    fn an_answer_is_a_number_or_an_error() {
        assert_eq!(number(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]), Ok(7));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfc]), Err("error -4".to_owned()));
        assert!(number(&[0, 0, 0]).is_err() && number(&[0, 0, 0, 0, 1]).is_err());
    }
}
