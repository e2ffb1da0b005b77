//! ZooKeeper's tree as a Statehouse module.
//!
//! * [`jute`], [`wire`]: ZooKeeper's serialisation, numbers and records;
//! * [`call`]: the bytes between the adapter and the state machine.

pub mod acl;
pub mod call;
pub mod jute;
pub mod params;
pub mod wire;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use statehouse_sdk::Context;
use statehouse_sdk::QueryContext;
use statehouse_sdk::Reject;
use statehouse_sdk::StateMachine;

use crate::call::Call;
use crate::call::ChangeWriter;
use crate::jute::Reader;
use crate::jute::Writer;
use crate::params::Params;
use crate::wire::CreateRequest;
use crate::wire::ErrorCode;
use crate::wire::EventType;
use crate::wire::PathWatch;
use crate::wire::Stat;
use crate::wire::op;

/// The state machine. (First version: create and getData over a plain map.)
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ZnodeTree {
    params: Params,
    nodes: BTreeMap<String, (Option<Vec<u8>>, i64, i64)>,
}

impl StateMachine for ZnodeTree {
    type Command = Vec<u8>;
    type Reply = Vec<u8>;
    type Query = Vec<u8>;
    type Answer = Vec<u8>;

    fn init(&mut self, _: &mut Context<'_>, params: statehouse_sdk::Params<'_>) -> Result<(), Reject> {
        self.params = params.parse()?;
        self.nodes.insert("/".to_owned(), (None, 0, 0));
        Ok(())
    }

    fn apply(&mut self, ctx: &mut Context<'_>, command: Vec<u8>) -> Result<Vec<u8>, Reject> {
        let call = Call::decode(&command).map_err(|_| "not a call")?;
        let mut reply = vec![0; 4];
        match self.write(ctx, &call, &mut Writer::new(&mut reply)) {
            Ok(()) => Ok(reply),
            Err(code) => Ok(call::error_reply(code)),
        }
    }

    fn query(&self, _: &QueryContext, query: Vec<u8>) -> Result<Vec<u8>, Reject> {
        let call = Call::decode(&query).map_err(|_| "not a call")?;
        let mut answer = vec![0; 4];
        match self.read(&call, &mut Writer::new(&mut answer)) {
            Ok(()) => Ok(answer),
            Err(code) => Ok(call::error_reply(code)),
        }
    }
}

impl ZnodeTree {
    fn write(&mut self, ctx: &mut Context<'_>, call: &Call<'_>, out: &mut Writer<'_>) -> Result<(), ErrorCode> {
        if call.operation != op::CREATE {
            return Err(ErrorCode::Unimplemented);
        }
        let request = CreateRequest::read(call.operation, &mut Reader::new(call.body))?;
        let (parent, _) = request.path.rsplit_once('/').ok_or(ErrorCode::BadArguments)?;
        let parent = if parent.is_empty() { "/" } else { parent };
        if !self.nodes.contains_key(parent) {
            return Err(ErrorCode::NoNode);
        }
        if self.nodes.contains_key(request.path) {
            return Err(ErrorCode::NodeExists);
        }
        let (zxid, time_ms) = (ctx.index() as i64, ctx.time_ms() as i64);
        self.nodes.insert(request.path.to_owned(), (request.data.map(<[u8]>::to_vec), zxid, time_ms));
        out.text(request.path);
        let mut changes = ChangeWriter::default();
        for (event, path) in [(EventType::NodeCreated, request.path), (EventType::NodeChildrenChanged, parent)] {
            changes.push(event, path.as_bytes(), None::<std::iter::Empty<_>>);
        }
        changes.events().for_each(|event| ctx.emit(event));
        Ok(())
    }

    fn read(&self, call: &Call<'_>, out: &mut Writer<'_>) -> Result<(), ErrorCode> {
        if call.operation != op::GET_DATA {
            return Err(ErrorCode::Unimplemented);
        }
        let request = PathWatch::read(&mut Reader::new(call.body))?;
        let (data, zxid, time) = self.nodes.get(request.path).ok_or(ErrorCode::NoNode)?;
        out.buffer(data.as_deref());
        let data_length = data.as_ref().map_or(0, Vec::len) as i32;
        Stat { czxid: *zxid, mzxid: *zxid, pzxid: *zxid, ctime: *time, mtime: *time, data_length, ..Stat::default() }
            .write(out);
        Ok(())
    }
}

statehouse_sdk::export!(ZnodeTree, raw);
