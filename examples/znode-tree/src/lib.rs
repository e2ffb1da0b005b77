//! ZooKeeper's tree as a Statehouse module.
//!
//! * [`jute`], [`wire`]: ZooKeeper's serialisation, numbers and records;
//! * [`call`]: the bytes between the adapter and the state machine;
//! * [`tree`], [`acl`], [`path`], [`quota`]: the state, which knows no requests;
//! * [`ops`]: requests, checked in ZooKeeper's order, one kind a file;
//! * [`adapter`]: ZooKeeper's client protocol;
//! * [`reconfig`], [`plan`]: what clients want the members to be; [`keeper`]: what ClickHouse adds; [`params`]: what a group is made with;
//! * [`snapshot`]: the state as bytes; `fuzz`: clients that mean no good, for tests;
//! * this file: all of it as a state machine, with the timers.

pub mod acl;
pub mod adapter;
pub mod call;
#[cfg(not(target_arch = "wasm32"))]
pub mod fuzz;
pub mod jute;
pub mod keeper;
pub mod ops;
pub mod params;
pub mod path;
pub mod plan;
pub mod quota;
pub mod reconfig;
pub mod snapshot;
pub mod tree;
pub mod wire;

use std::collections::BTreeSet;

use statehouse_sdk::Context;
use statehouse_sdk::QueryContext;
use statehouse_sdk::Reject;
use statehouse_sdk::StateMachine;

use crate::acl::Acl;
use crate::call::ANSWER_BYTES_MAX;
use crate::call::Call;
use crate::call::ChangeWriter;
use crate::call::Identity;
use crate::call::LongAnswer;
use crate::call::Piece;
use crate::call::Route;
use crate::call::own;
use crate::call::route;
use crate::jute::Malformed;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::ops::Txn;
use crate::ops::Write;
use crate::ops::load::Import;
use crate::params::Compatibility;
use crate::params::Params;
use crate::tree::Moment;
use crate::tree::Tree;
use crate::tree::arena::NodeId;
use crate::tree::node::Numbers;
use crate::wire::ErrorCode;
use crate::wire::op;
use crate::wire::perms;

/// The timer by which containers and nodes with a TTL are looked through.
const REAP_TIMER: u64 = 1;
/// The timer by which an ended session's nodes go that were too many for one entry.
const ENDED_TIMER: u64 = 2;
/// How many nodes go by themselves in one entry; the others in the next.
pub(crate) const REAPED_PER_ENTRY: usize = 1_000;
/// How many nodes of ended sessions go in one entry. (An entry has 10⁹ units of fuel; a node that goes takes some 10,000.)
const ENDED_PER_ENTRY: usize = 50_000;
/// Bytes of events after which no more nodes go in one entry: with one more it stays below the host's 16 MiB.
const GONE_EVENT_BYTES: usize = 8 << 20;

/// The state machine.
#[derive(Debug)]
pub struct ZnodeTree {
    pub(crate) params: Params,
    pub(crate) tree: Tree,
    /// When [`REAP_TIMER`] is set for; 0: not set.
    pub(crate) armed_at_ms: u64,
    /// Sessions that are over and still own nodes.
    pub(crate) ended: BTreeSet<u64>,
    pub(crate) import: Import,
}

impl Default for ZnodeTree {
    fn default() -> Self {
        Self::with_params(Params::default(), 0)
    }
}

impl StateMachine for ZnodeTree {
    /// See [`call`].
    type Command = Vec<u8>;
    type Reply = Vec<u8>;
    type Query = Vec<u8>;
    type Answer = Vec<u8>;

    fn init(&mut self, ctx: &mut Context<'_>, params: statehouse_sdk::Params<'_>) -> Result<(), Reject> {
        let params: Params = params.parse()?;
        params.check()?;
        *self = Self::with_params(params, ctx.random_u64());
        self.make_system_nodes();
        Ok(())
    }

    fn apply(&mut self, ctx: &mut Context<'_>, command: Vec<u8>) -> Result<Vec<u8>, Reject> {
        let call = Call::decode(&command).map_err(|_| "these bytes are no call: see znode-tree's call.rs")?;
        let mut reply = empty_reply();
        if let own::LOAD_BEGIN..=own::LOAD_END = call.operation {
            self.import(&call, &mut Writer::new(&mut reply))?;
            self.arm(ctx);
            return Ok(reply);
        }
        let mut txn = self.txn(ctx, &call.identities);
        if let Err(code) = self.command(&mut txn, &call, &mut reply) {
            reply = call::error_reply(code);
        }
        txn.changes.events().for_each(|event| ctx.emit(event));
        self.arm(ctx);
        Ok(reply)
    }

    fn query(&self, ctx: &QueryContext, query: Vec<u8>) -> Result<Vec<u8>, Reject> {
        let malformed = |Malformed| Reject::from("these bytes are no call: see znode-tree's call.rs");
        let call = Call::decode(&query).map_err(malformed)?;
        if call.operation == own::PIECE {
            let mut reader = Reader::new(call.body);
            let from = reader.i64().map_err(malformed)?;
            let whole = self.answer(ctx, &Call::decode(reader.rest()).map_err(malformed)?);
            return Ok(Piece::of(&whole, self.tree.seed(), from as u64).encode());
        }
        let answer = self.answer(ctx, &call);
        if answer.len() > ANSWER_BYTES_MAX {
            return Ok(LongAnswer { length: answer.len() as u64, call: &query }.encode());
        }
        Ok(answer)
    }

    fn on_timer(&mut self, ctx: &mut Context<'_>, id: u64) {
        match id {
            REAP_TIMER => self.reap(ctx),
            _ => self.remove_nodes_of_ended(ctx),
        }
        self.arm(ctx);
    }

    fn on_session_end(&mut self, ctx: &mut Context<'_>, session: u64) {
        self.ended.insert(session);
        self.remove_nodes_of_ended(ctx);
        self.arm(ctx);
    }
}

/// The error 0, and room for a path and a stat behind it.
fn empty_reply() -> Vec<u8> {
    let mut reply = Vec::with_capacity(252);
    reply.extend_from_slice(&[0; 4]);
    reply
}

impl ZnodeTree {
    /// A write of this entry.
    fn txn<'a>(&self, ctx: &Context<'_>, identities: &'a [Identity<'a>]) -> Txn<'a> {
        let zxid = self.params.zxid_base.wrapping_add(ctx.index() as i64);
        let moment = Moment { zxid, time_ms: ctx.time_ms() as i64 };
        Txn { moment, session: ctx.session(), identities, changes: ChangeWriter::default() }
    }

    /// A tree of a root alone.
    pub(crate) fn with_params(params: Params, seed: u64) -> Self {
        let tree = Tree::new(seed, params.container_max_never_used_ms);
        Self { params, tree, armed_at_ms: 0, ended: BTreeSet::new(), import: Import::default() }
    }

    /// The answer to a query, however long.
    fn answer(&self, ctx: &QueryContext, call: &Call<'_>) -> Vec<u8> {
        let mut answer = empty_reply();
        let result = match self.is_refused(call) {
            true => Err(ErrorCode::Unimplemented),
            false if self.is_loading(call.operation) => Err(ErrorCode::ConnectionLoss),
            false => self.read(ctx.session(), call, &mut answer),
        };
        result.map_or_else(call::error_reply, |()| answer)
    }

    /// The tree, for callers that use this as a plain library.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whether this is to behave as ClickHouse Keeper where that differs from ZooKeeper.
    pub(crate) fn is_clickhouse(&self) -> bool {
        self.params.compatibility == Compatibility::ClickHouse
    }

    /// The nodes that are there from the beginning, with all numbers 0.
    fn make_system_nodes(&mut self) {
        let open = [Acl::for_everybody(perms::ALL)];
        let read_only = [Acl::for_everybody(perms::READ)];
        let root = self.tree.root();
        let none = Numbers::default();
        if !self.is_clickhouse() {
            let zookeeper = self.tree.create(root, path::ZOOKEEPER, Some(b""), &open, none);
            self.tree.create(zookeeper, path::QUOTA, Some(b""), &open, none);
            // ZooKeeper sets this one's list when it starts, which leaves that mark.
            let config = Numbers { aversion: -1, ..none };
            self.tree.create(zookeeper, path::CONFIG, Some(b""), &read_only, config);
            return;
        }
        let keeper = self.tree.create(root, path::KEEPER, Some(b""), &open, none);
        let flags = keeper::flag_bits(&self.params.feature_flags);
        let mut leaf = |path: &str, data: &[u8]| -> NodeId { self.tree.create(keeper, path, Some(data), &open, none) };
        leaf(keeper::API_VERSION, keeper::API_VERSION_DATA);
        leaf(keeper::FEATURE_FLAGS, &flags);
        leaf(keeper::CONFIG, b"");
        if let Some(zone) = &self.params.availability_zone {
            leaf(keeper::AVAILABILITY_ZONE, zone.as_bytes());
        }
    }

    /// Whether an operation is none of this group's.
    fn is_refused(&self, call: &Call<'_>) -> bool {
        match call.operation {
            op::FILTERED_LIST..=op::LIST_RECURSIVE if !self.is_clickhouse() => true,
            // ZooKeeper knows it in a multi alone.
            op::CHECK if !self.is_clickhouse() => true,
            own::STATUS..=own::MAY_READ => false,
            operation => {
                route(operation) == Route::Unknown
                    || keeper::has_switched_off(operation, call.body, &self.params.feature_flags)
            }
        }
    }

    fn command(&mut self, txn: &mut Txn<'_>, call: &Call<'_>, reply: &mut Vec<u8>) -> Result<(), ErrorCode> {
        if self.is_refused(call) {
            return Err(ErrorCode::Unimplemented);
        }
        if self.is_loading(call.operation) {
            return Err(ErrorCode::ConnectionLoss);
        }
        if call.operation != own::SET_CONFIG && self.import == Import::Possible {
            self.import = Import::Over;
        }
        if call.operation == op::MULTI {
            return self.multi(txn, call.body, reply);
        }
        let write = Write::read(call.operation, &mut Reader::new(call.body))?.ok_or(ErrorCode::Unimplemented)?;
        self.check_room(write.growth_bytes())?;
        self.write(txn, &write, &mut Writer::new(reply))
    }

    /// Whether there is room for a write that adds about so many bytes.
    pub(crate) fn check_room(&self, growth_bytes: i64) -> Result<(), ErrorCode> {
        let limit_bytes = self.params.memory_soft_limit_bytes;
        let is_full = limit_bytes > 0 && growth_bytes > 0 && self.tree.memory_bytes() >= limit_bytes;
        if is_full { Err(ErrorCode::OutOfMemory) } else { Ok(()) }
    }

    /// Whether clients must wait for an import.
    fn is_loading(&self, operation: i32) -> bool {
        matches!(self.import, Import::Running(_)) && !(own::STATUS..=own::MAY_READ).contains(&operation)
    }

    fn import(&mut self, call: &Call<'_>, out: &mut Writer<'_>) -> Result<(), Reject> {
        match call.operation {
            own::LOAD_BEGIN => self.load_begin(out),
            own::LOAD => self.load(call.body, out),
            _ => {
                let expected = Reader::new(call.body).i64().map_err(|_| "there is no count of nodes")?;
                self.load_end(expected, out)
            }
        }
    }

    /// Removes containers and nodes with a TTL whose time has come.
    fn reap(&mut self, ctx: &mut Context<'_>) {
        self.armed_at_ms = 0;
        let due = self.tree.due_paths(ctx.time_ms(), REAPED_PER_ENTRY);
        let mut txn = self.txn(ctx, &[]);
        let mut was_cut = due.len() == REAPED_PER_ENTRY;
        for path in &due {
            if txn.changes.len() > GONE_EVENT_BYTES {
                was_cut = true;
                break;
            }
            self.remove_by_itself(&mut txn, path);
        }
        txn.changes.events().for_each(|event| ctx.emit(event));
        let is_more_due = self.tree.first_due().is_some_and(|(due_ms, _)| due_ms <= ctx.time_ms());
        if was_cut && is_more_due {
            self.armed_at_ms = ctx.time_ms().max(1);
            ctx.set_timer(REAP_TIMER, self.armed_at_ms);
        }
    }

    /// Sets the timer for the first look at or after the first time at which a node goes by itself.
    /// Looks are at multiples of the interval, so that many nodes go in one entry, and an idle group
    /// writes none. During an import none goes.
    fn arm(&mut self, ctx: &mut Context<'_>) {
        if matches!(self.import, Import::Running(_)) {
            return;
        }
        let Some((due_ms, _)) = self.tree.first_due() else { return };
        let interval_ms = self.params.container_check_interval_ms.max(1);
        let looks = due_ms.max(ctx.time_ms()) / interval_ms + 1;
        let at_ms = looks.saturating_mul(interval_ms);
        if self.armed_at_ms == 0 || at_ms < self.armed_at_ms {
            self.armed_at_ms = at_ms;
            ctx.set_timer(REAP_TIMER, at_ms);
        }
    }

    /// Removes nodes of sessions that are over, as many as are good for one entry.
    fn remove_nodes_of_ended(&mut self, ctx: &mut Context<'_>) {
        let mut txn = self.txn(ctx, &[]);
        let mut left = ENDED_PER_ENTRY;
        while let Some(session) = self.ended.first().copied() {
            for id in self.tree.some_of_session(session, left) {
                if txn.changes.len() > GONE_EVENT_BYTES {
                    break;
                }
                left = left.saturating_sub(1);
                let path = self.tree.path_of(id);
                self.remove_by_itself(&mut txn, &path);
            }
            if self.tree.owns_nodes(session) {
                ctx.set_timer(ENDED_TIMER, ctx.time_ms());
                break;
            }
            self.ended.remove(&session);
        }
        txn.changes.events().for_each(|event| ctx.emit(event));
    }
}

statehouse_sdk::export!(ZnodeTree, raw, adapter = adapter::ZooKeeper);
