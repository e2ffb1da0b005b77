//! The tree before and after the load: made and removed in transactions of many nodes, several under way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::connection::ClientError;
use super::connection::Connection;
use super::generator::Material;
use super::random::Random;
use super::tree::Node;
use super::wire;
use super::wire::Kind;
use super::wire::Part;
use super::wire::ReplyHeader;

/// A transaction ends with the first of these that is reached.
const BATCH_NODES: usize = 100;
const BATCH_BYTES: usize = 128 << 10;
const UNDER_WAY_MAX: usize = 16;
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
const WHAT: &str = "a request";

/// A session for the preparations.
pub(super) struct Control {
    connection: Connection,
    xid: i32,
    under_way: VecDeque<i32>,
}

/// An answer: the error's code, and the record.
struct Answer {
    error: i32,
    body: Vec<u8>,
}

impl Control {
    /// A session at the first server that gives one; else the first server's error.
    pub(super) async fn open(servers: &[Arc<str>], session_timeout_ms: u32) -> Result<Self, ClientError> {
        let mut first_error = None;
        for server in servers {
            match Connection::open(server, session_timeout_ms).await {
                Ok(connection) => return Ok(Self { connection, xid: 0, under_way: VecDeque::new() }),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| ClientError::Unreachable {
            server: "no server".into(),
            detail: "none was given".into(),
        }))
    }

    /// Makes the tree. Answers the ancestors of the prefix that were not there, the prefix itself last; refuses
    /// a prefix that is there.
    pub(super) async fn make(
        &mut self,
        material: &Material,
        seed: u64,
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<String>, ClientError> {
        let tree = &material.tree;
        let mut made = Vec::new();
        let ends: Vec<usize> = tree.prefix.match_indices('/').map(|(place, _)| place).skip(1).collect();
        for end in ends.into_iter().chain([tree.prefix.len()]) {
            let path = tree.prefix.get(..end).unwrap_or_default();
            let answer = self.call(Kind::Create, |out| {
                wire::put_create_body(out, |out| out.extend_from_slice(path.as_bytes()), b"");
            });
            match answer.await?.error {
                0 => made.push(path.to_owned()),
                wire::NODE_EXISTS if end < tree.prefix.len() => {}
                error => return Err(self.failed(format!("creating {path}"), error)),
            }
        }
        let mut random = Random::new(seed);
        let nodes = [Node::Hot, Node::Pool, Node::Churn].into_iter().chain((0..tree.keys).map(Node::Key));
        let put = |out: &mut Vec<u8>, node: Node| {
            wire::put_part(out, Part::Create);
            let value: &[u8] = match node {
                Node::Hot | Node::Key(_) => material.value(&mut random),
                Node::Pool | Node::Churn => b"",
            };
            wire::put_create_body(out, |out| tree.put_path(out, node), value);
        };
        self.in_batches("creating the tree", nodes, put, &mut progress).await?;
        Ok(made)
    }

    /// Removes the tree with all that the load has put into it, and what [`Control::make`] made above it.
    pub(super) async fn remove(
        &mut self,
        material: &Material,
        nodes_under_keys: bool,
        made: &[String],
        mut progress: impl FnMut(u64),
    ) -> Result<(), ClientError> {
        let tree = &material.tree;
        if nodes_under_keys {
            let keys: Vec<String> = (0..tree.keys).map(|key| tree.path(Node::Key(key))).collect();
            self.empty(&keys, &mut progress).await?;
        }
        self.empty(&[tree.path(Node::Pool), tree.path(Node::Churn)], &mut progress).await?;
        self.empty(std::slice::from_ref(&tree.prefix), &mut progress).await?;
        for path in made.iter().rev() {
            let answer = self.call(Kind::Remove, |out| {
                wire::put_remove_body(out, |out| out.extend_from_slice(path.as_bytes()));
            });
            match answer.await?.error {
                0 | wire::NO_NODE => {}
                error => return Err(self.failed(format!("removing {path}"), error)),
            }
        }
        Ok(())
    }

    /// Removes the children of all these nodes.
    async fn empty(&mut self, parents: &[String], progress: &mut impl FnMut(u64)) -> Result<(), ClientError> {
        // Some parents at a time: the paths of all their children are held.
        for parents in parents.chunks(1000) {
            let children = self.list(parents).await?;
            let put = |out: &mut Vec<u8>, path: String| {
                wire::put_part(out, Part::Remove);
                wire::put_remove_body(out, |out| out.extend_from_slice(path.as_bytes()));
            };
            self.in_batches("removing the tree", children.into_iter(), put, progress).await?;
        }
        Ok(())
    }

    /// The paths of the children of all these nodes.
    async fn list(&mut self, parents: &[String]) -> Result<Vec<String>, ClientError> {
        let mut unsent = parents.iter();
        let mut paths = Vec::new();
        for parent in parents {
            while self.under_way.len() < UNDER_WAY_MAX {
                let Some(next) = unsent.next() else { break };
                self.send(Kind::List, |out| wire::put_read_body(out, |out| out.extend_from_slice(next.as_bytes())));
            }
            let answer = self.receive().await?;
            match answer.error {
                0 => {
                    let names = wire::read_children(&answer.body);
                    let names = names.map_err(|error| self.connection.malformed(WHAT, error))?;
                    paths.extend(names.into_iter().map(|name| format!("{parent}/{name}")));
                }
                wire::NO_NODE => {}
                error => return Err(self.failed(format!("listing {parent}"), error)),
            }
        }
        Ok(paths)
    }

    /// Sends items in transactions, several under way.
    async fn in_batches<T>(
        &mut self,
        what: &str,
        items: impl Iterator<Item = T>,
        mut put: impl FnMut(&mut Vec<u8>, T),
        progress: &mut impl FnMut(u64),
    ) -> Result<(), ClientError> {
        let mut items = items.peekable();
        let mut sizes = VecDeque::new();
        while items.peek().is_some() || !sizes.is_empty() {
            if items.peek().is_some() && sizes.len() < UNDER_WAY_MAX {
                let mut size = 0;
                self.send(Kind::Multi, |out| {
                    let start = out.len();
                    while size < BATCH_NODES && out.len() - start < BATCH_BYTES {
                        let Some(item) = items.next() else { break };
                        put(out, item);
                        size += 1;
                    }
                    wire::put_multi_end(out);
                });
                sizes.push_back(size);
                continue;
            }
            let answer = self.receive().await?;
            let error = match answer.error {
                0 => wire::judge(Kind::Multi, &answer.body).map_err(|error| self.connection.malformed(WHAT, error))?,
                error => error,
            };
            if error != 0 {
                return Err(self.failed(what.to_owned(), error));
            }
            progress(sizes.pop_front().unwrap_or(0) as u64);
        }
        Ok(())
    }

    async fn call(&mut self, kind: Kind, body: impl FnOnce(&mut Vec<u8>)) -> Result<Answer, ClientError> {
        self.send(kind, body);
        self.receive().await
    }

    fn send(&mut self, kind: Kind, body: impl FnOnce(&mut Vec<u8>)) {
        self.xid += 1;
        wire::put_request(&mut self.connection.out, self.xid, kind, body);
        self.under_way.push_back(self.xid);
    }

    /// The answer to the oldest request under way.
    async fn receive(&mut self) -> Result<Answer, ClientError> {
        let receiving = async {
            loop {
                while let Some(frame) = self.connection.next_frame(WHAT)? {
                    let read = ReplyHeader::read(frame).map(|(header, body)| (header, body.to_vec()));
                    let (header, body) = read.map_err(|error| self.connection.malformed(WHAT, error))?;
                    if self.under_way.front() == Some(&header.xid) {
                        self.under_way.pop_front();
                        return Ok(Answer { error: header.error, body });
                    }
                }
                self.connection.exchange(WHAT).await?;
            }
        };
        match tokio::time::timeout(ANSWER_TIME_MAX, receiving).await {
            Ok(received) => received,
            Err(_) => Err(ClientError::Silent {
                server: self.connection.server().clone(),
                what: WHAT,
                seconds: ANSWER_TIME_MAX.as_secs(),
            }),
        }
    }

    /// Ends the session.
    pub(super) async fn close(mut self) {
        wire::put_close(&mut self.connection.out, self.xid + 1);
        // The server answers and closes; whichever comes first, or neither, is the end.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.connection.exchange("the end of a session")).await;
    }

    fn failed(&self, what: String, error: i32) -> ClientError {
        let (server, code) = (self.connection.server().clone(), wire::error_name(error));
        ClientError::Failed { server, what, code }
    }
}
