//! A module's inside without the WebAssembly: bytes in, bytes out. The exports ([`export!`](crate::export!))
//! and the test harness both go through here, so native tests run what the host will run.

use std::io::Read;
use std::io::Write;
use std::marker::PhantomData;

use crate::codec::Codec;
use crate::codec::Decode;
use crate::codec::Encode;
use crate::context::Context;
use crate::context::Header;
use crate::context::Host;
use crate::context::QueryContext;
use crate::machine::Migrate;
use crate::machine::Params;
use crate::machine::StateMachine;
use crate::reject;
use crate::reject::Reject;

/// One instance of the machine `M`, spoken to in the codec `C`.
#[derive(Debug)]
pub struct Guest<M, C> {
    machine: M,
    codec: PhantomData<fn() -> C>,
}

impl<M: Default, C> Default for Guest<M, C> {
    fn default() -> Self {
        Self { machine: M::default(), codec: PhantomData }
    }
}

impl<M: StateMachine, C: Codec<M>> Guest<M, C> {
    /// The state.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// `init`: a new group's state from its params.
    pub fn init(&mut self, host: &mut dyn Host, argument: &[u8]) -> Result<(), Reject> {
        let (header, params) = Header::split(argument)?;
        self.machine = M::default();
        self.machine.init(&mut Context::new(header, host), Params::new(params))
    }

    /// `apply`: one command; its reply is appended to `reply`.
    pub fn apply(&mut self, host: &mut dyn Host, argument: &[u8], reply: &mut Vec<u8>) -> Result<(), Reject> {
        self.apply_typed(host, argument, reply).map(drop)
    }

    /// [`apply`](Self::apply) that also gives the reply as a value.
    pub(crate) fn apply_typed(
        &mut self,
        host: &mut dyn Host,
        argument: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<M::Reply, Reject> {
        let (header, payload) = Header::split(argument)?;
        let command = <C as Decode<M::Command>>::decode(payload).map_err(|why| reject!("not a command: {why}"))?;
        let value = self.machine.apply(&mut Context::new(header, host), command)?;
        // Too late to refuse: the state has changed. A panic makes the host roll it back.
        if let Err(why) = <C as Encode<M::Reply>>::encode(&value, reply) {
            panic!("the reply cannot be encoded: {why}");
        }
        Ok(value)
    }

    /// `query`: one query; its answer is appended to `answer`.
    pub fn query(&self, argument: &[u8], answer: &mut Vec<u8>) -> Result<(), Reject> {
        self.query_typed(argument, answer).map(drop)
    }

    /// [`query`](Self::query) that also gives the answer as a value.
    pub(crate) fn query_typed(&self, argument: &[u8], answer: &mut Vec<u8>) -> Result<M::Answer, Reject> {
        let (header, payload) = Header::split(argument)?;
        let query = <C as Decode<M::Query>>::decode(payload).map_err(|why| reject!("not a query: {why}"))?;
        let value = self.machine.query(&QueryContext::new(header), query)?;
        if let Err(why) = <C as Encode<M::Answer>>::encode(&value, answer) {
            panic!("the answer cannot be encoded: {why}");
        }
        Ok(value)
    }

    /// `timer`: the payload is the timer's id.
    pub fn timer(&mut self, host: &mut dyn Host, argument: &[u8]) -> Result<(), Reject> {
        let (header, payload) = Header::split(argument)?;
        let id = payload.first_chunk().ok_or_else(|| reject!("a timer call without the timer's id"))?;
        self.machine.on_timer(&mut Context::new(header, host), u64::from_le_bytes(*id));
        Ok(())
    }

    /// `session_end`: the session is in the header.
    pub fn session_end(&mut self, host: &mut dyn Host, argument: &[u8]) -> Result<(), Reject> {
        let (header, _) = Header::split(argument)?;
        self.machine.on_session_end(&mut Context::new(header, host), header.session);
        Ok(())
    }

    /// `snapshot`: the whole state, to `out`.
    pub fn snapshot(&self, out: &mut dyn Write) -> Result<(), Reject> {
        self.machine.snapshot(out)?;
        Ok(())
    }

    /// `restore`: the state is replaced by the one in `input`; kept as it was on an error.
    pub fn restore(&mut self, input: &mut dyn Read) -> Result<(), Reject> {
        self.machine = M::restore(input)?;
        Ok(())
    }

    /// `migrate`: the state is made from an older module's snapshot.
    pub fn migrate(&mut self, input: &mut dyn Read) -> Result<(), Reject>
    where
        M: Migrate,
    {
        self.machine = M::migrate(input)?;
        Ok(())
    }
}
