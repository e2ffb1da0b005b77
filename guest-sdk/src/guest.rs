//! A module's inside without the WebAssembly: bytes in, bytes out. The exports
//! ([`export!`](crate::export!)) and the test harness both go through here, so native tests run
//! what the host will run.

use std::io;
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
        self.machine = whole(input, M::restore)?;
        Ok(())
    }

    /// `migrate`: the state is made from an older module's snapshot; kept as it was on an error.
    pub fn migrate(&mut self, input: &mut dyn Read) -> Result<(), Reject>
    where
        M: Migrate,
    {
        self.machine = whole(input, M::migrate)?;
        Ok(())
    }
}

/// Reads a state that `input` must hold exactly. Snapshots need not describe themselves (bincode
/// does not), so bytes left over are the usual trace of a state whose type has changed.
fn whole<M>(input: &mut dyn Read, read: fn(&mut dyn Read) -> io::Result<M>) -> Result<M, Reject> {
    const REMEDY: &str = "if the state's type has changed since it was written, the module needs `Migrate`";
    let machine =
        read(input).map_err(|why| reject!("the snapshot does not hold this module's state: {why}; {REMEDY}"))?;
    match input.read(&mut [0])? {
        0 => Ok(machine),
        _ => Err(reject!("the snapshot holds more than this module's state; {REMEDY}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use serde::Deserialize;
    use serde::Serialize;

    use super::*;
    use crate::codec::Bincode;
    use crate::codec::Json;
    use crate::codec::Raw;
    use crate::context::Effects;

    /// Remembers the last word, as whatever type.
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Last<T>(T);

    impl<T: Default + Clone + Serialize + serde::de::DeserializeOwned + 'static> StateMachine for Last<T> {
        type Command = T;
        type Reply = T;
        type Query = ();
        type Answer = T;
        fn apply(&mut self, _: &mut Context<'_>, command: T) -> Result<T, Reject> {
            Ok(std::mem::replace(&mut self.0, command))
        }
        fn query(&self, _: &QueryContext, (): ()) -> Result<T, Reject> {
            Ok(self.0.clone())
        }
    }

    fn apply<M: StateMachine, C: Codec<M>>(guest: &mut Guest<M, C>, command: &[u8]) -> Result<Vec<u8>, Reject> {
        let argument = [&Header::default().to_bytes(), command].concat();
        let mut reply = Vec::new();
        guest.apply(&mut Effects::default(), &argument, &mut reply).map(|()| reply)
    }

    #[test]
    fn json_commands_are_refused_with_the_reason_and_the_type() {
        let mut guest = Guest::<Last<u8>, Json>::default();
        assert_eq!(apply(&mut guest, b"7").unwrap(), b"0");
        let text = apply(&mut guest, b"300").unwrap_err().text().to_owned();
        assert!(text.starts_with("not a command: invalid value: integer `300`, expected u8"), "{text}");
        assert_eq!(guest.machine(), &Last(7), "a refused command changes nothing");
        assert!(apply(&mut guest, b"7 7").unwrap_err().text().contains("trailing characters"));
    }

    #[test]
    fn bincode_commands_are_refused_when_short_or_long() {
        let mut guest = Guest::<Last<String>, Bincode>::default();
        assert_eq!(apply(&mut guest, b"\x02hi").unwrap(), b"\0");
        let text = |outcome: Result<Vec<u8>, Reject>| outcome.unwrap_err().text().to_owned();
        let short = text(apply(&mut guest, b"\x03hi"));
        assert_eq!(short, "not a command: the bytes end too early; expected, in bincode, string");
        let long = text(apply(&mut guest, b"\x01hi"));
        assert_eq!(long, "not a command: 1 bytes are left over after the 2 it takes; expected, in bincode, string");
        let bad = text(apply(&mut guest, b"\x01\xff"));
        assert_eq!(bad, "not a command: a text is not UTF-8; expected, in bincode, string");
    }

    #[derive(Default, Serialize, Deserialize)]
    struct Echo;
    impl StateMachine for Echo {
        type Command = Vec<u8>;
        type Reply = Vec<u8>;
        type Query = Vec<u8>;
        type Answer = &'static str;
        fn apply(&mut self, _: &mut Context<'_>, command: Vec<u8>) -> Result<Vec<u8>, Reject> {
            Ok(command)
        }
        fn query(&self, _: &QueryContext, _: Vec<u8>) -> Result<&'static str, Reject> {
            Ok("echo")
        }
    }

    #[test]
    fn raw_bytes_pass_as_they_are() {
        assert_eq!(apply(&mut Guest::<Echo, Raw>::default(), b"\xff\x00").unwrap(), b"\xff\x00");
    }

    #[test]
    fn a_snapshot_of_another_type_is_refused_and_the_state_kept() {
        let old = Guest::<Last<(u32, String)>, Json>::default();
        let mut bytes = Vec::new();
        old.snapshot(&mut bytes).unwrap();
        let mut new = Guest::<Last<u32>, Json>::default();
        apply(&mut new, b"5").unwrap();
        let long = new.restore(&mut &bytes[..]).unwrap_err();
        assert!(long.text().starts_with("the snapshot holds more than") && long.text().contains("Migrate"), "{long}");
        let short = new.restore(&mut &bytes[..0]).unwrap_err();
        assert!(short.text().contains("the bytes end too early"), "{short}");
        assert_eq!(new.machine(), &Last(5));
    }
}
