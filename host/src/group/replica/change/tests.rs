#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::disallowed_methods)]
use std::io::Read;
use std::io::Write;

use futures_util::FutureExt;
use openraft::EntryPayload;
use openraft::vote::leader_id_std::CommittedLeaderId;

use super::*;
use crate::disk::RealDisk;
use crate::group::model::FrozenModel;
use crate::group::waiters::Delivered;
use crate::module::Outcome;
use crate::platform::RealPlatform;
use crate::types::Origin;

/// Remembers what it was told, and which modules told it: a module says `NUMBER:` before each word. That of the number 13 reads
/// nothing, 14 cannot be run here, 15 does not write its state.
#[derive(Clone)]
struct Words {
    module: u8,
    text: String,
}

impl Words {
    fn of(module: [u8; 32], text: String) -> Self {
        Self { module: module[0], text }
    }
}

struct WordsFactory;

impl ModelFactory for WordsFactory {
    fn first(&self) -> ModuleRef {
        ModuleRef { digest: [1; 32], name: "one".into() }
    }
    fn made(&self, module: &str) -> Vec<u8> {
        let made = crate::snapshot::Made {
            group: "words".into(),
            module: module.into(),
            params: serde_json::Value::Null,
            limits: crate::module::Limits::default(),
        };
        serde_json::to_vec(&made).unwrap()
    }
    fn create(&self) -> Result<(Box<dyn Model>, Effects), ModelError> {
        Ok((Box::new(Words::of([1; 32], String::new())), Effects::default()))
    }
    fn restore(&self, module: [u8; 32], payload: &mut (dyn Read + Send)) -> Result<Box<dyn Model>, ModelError> {
        let mut text = String::new();
        payload.read_to_string(&mut text).unwrap();
        Ok(Box::new(Words::of(module, text)))
    }
    fn succeed(
        &self,
        module: [u8; 32],
        context: &Context,
        old: Box<dyn FrozenModel>,
    ) -> Result<Box<dyn Model>, Refusal> {
        let mut bytes = Vec::new();
        old.export(&mut bytes)?;
        match module[0] {
            13 => Err(Refusal::Outcome(Outcome::Rejected("13 reads nothing".into()))),
            14 => Err(Refusal::Fault(Fault { what: "no memory".into() })),
            _ => Ok(Box::new(Words::of(module, String::from_utf8(bytes).unwrap() + &format!("[{}]", context.index)))),
        }
    }
}

impl Model for Words {
    fn apply(&mut self, _: &Context, command: &[u8], effects: &mut Effects) -> Result<Outcome, Fault> {
        effects.clear();
        self.text += &format!("{}:{} ", self.module, String::from_utf8_lossy(command));
        Ok(Outcome::Reply(self.text.clone().into_bytes()))
    }
    fn timer(&mut self, _: &Context, _: u64, _: &mut Effects) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(Vec::new()))
    }
    fn session_end(&mut self, _: &Context, _: &mut Effects) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(Vec::new()))
    }
    fn query(&mut self, _: &Context, _: &[u8]) -> Result<Outcome, Fault> {
        Ok(Outcome::Reply(self.text.clone().into_bytes()))
    }
    fn freeze(&mut self) -> Result<Box<dyn FrozenModel>, Fault> {
        Ok(Box::new(self.clone()))
    }
}

impl FrozenModel for Words {
    fn write(self: Box<Self>, out: &mut (dyn Write + Send)) -> io::Result<()> {
        out.write_all(self.text.as_bytes())
    }
    fn export(self: Box<Self>, out: &mut (dyn Write + Send)) -> Result<(), Refusal> {
        if self.module == 15 {
            return Err(Refusal::Outcome(Outcome::Rejected("15 says nothing".into())));
        }
        out.write_all(self.text.as_bytes()).unwrap();
        Ok(())
    }
}

/// A replica of words, and its answers.
struct Speaker {
    shared: Arc<Shared>,
    index: u64,
}

impl Speaker {
    fn new(newest: Option<(Head, SnapshotFile)>) -> Self {
        let index = newest.as_ref().map_or(0, |(head, _)| head.last_log_id.index);
        Self { shared: Arc::new(Shared::open(3, 1, 5, 0, 1, &WordsFactory, newest).unwrap()), index }
    }

    fn entry(&mut self, kind: EntryKind) -> Result<Answer, Fault> {
        self.index += 1;
        let (number, mut receiver) = self.shared.waiters.register(false);
        let origin = Origin { node: 1, incarnation: 5, number };
        let log_id = LogId::new(CommittedLeaderId::new(2), self.index);
        let payload = EntryPayload::Normal(Proposal { time_ms: 1000 + self.index, origin, kind });
        let mut loud = 0;
        self.shared.core().apply(&self.shared, &WordsFactory, Entry { log_id, payload }, &mut loud)?;
        match receiver.try_recv().unwrap() {
            Delivered::Applied { answer, .. } => Ok(answer),
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, word: &'static str) -> String {
        let kind = EntryKind::Command { session: None, payload: Bytes::from_static(word.as_bytes()) };
        String::from_utf8(self.entry(kind).unwrap().unwrap().to_vec()).unwrap()
    }

    fn change(&mut self, change: u64, module: u8) -> Answer {
        self.entry(EntryKind::ChangeModule { change, module: [module; 32], name: format!("m{module}") }).unwrap()
    }

    fn runs(&self) -> (u8, String) {
        let ModuleRef { digest, name } = self.shared.module();
        (digest[0], name)
    }
}

#[test]
fn a_change_of_module_takes_the_state_over_at_its_entry_and_snapshots_say_which_module_wrote_them() {
    let mut one = Speaker::new(None);
    let inbox = Inbox::new(Arc::default());
    one.shared.listen(inbox.clone());
    one.say("a");
    one.change(4, 2).unwrap();
    assert!(matches!(inbox.take(usize::MAX).0[..], [Note::Jumped]), "the old module's adapter begins anew");
    assert_eq!(one.say("b"), "1:a [2]2:b ");
    assert_eq!(one.runs(), (2, "m2".to_owned()));

    let folder = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(Arc::new(RealDisk), folder.path().to_owned(), 2, 0).unwrap();
    one.shared.write_snapshot::<crate::platform::RealPlatform>(&store, &WordsFactory, None).unwrap();
    let newest = store.newest().unwrap().found.unwrap();
    assert_eq!((newest.0.module, newest.0.change), ([2; 32], 4));
    assert_eq!(newest.0.made().unwrap().unwrap().module, "m2");
    let mut again = Speaker::new(Some(newest));
    assert_eq!(again.runs(), (2, "m2".to_owned()));
    assert_eq!((again.say("c"), one.say("c")), ("1:a [2]2:b 2:c ".to_owned(), "1:a [2]2:b 2:c ".to_owned()));
    assert_eq!(again.change(4, 3).unwrap_err().code, ErrorCode::Rejected, "its number was used before the snapshot");
}

#[test]
fn a_change_that_a_module_refuses_changes_nothing_and_one_that_comes_again_does_nothing() {
    let mut one = Speaker::new(None);
    one.say("a");
    let refused = one.change(4, 13).unwrap_err();
    assert_eq!((refused.code, refused.index), (ErrorCode::Rejected, Some(2)));
    assert!(refused.detail.contains("13 reads nothing"), "{refused}");
    assert_eq!((one.runs(), one.say("b")), ((1, "one".to_owned()), "1:a 1:b ".to_owned()));
    // Whatever would come of it now: it has been answered.
    assert_eq!(one.change(4, 2).unwrap_err().code, ErrorCode::Rejected);
    one.change(7, 15).unwrap();
    one.change(7, 15).unwrap();
    assert_eq!(one.say("c"), "1:a 1:b [5]15:c ", "once");
    let late = one.change(5, 2).unwrap_err();
    assert_eq!((late.code, late.index), (ErrorCode::Rejected, Some(8)));
    let silent = one.change(8, 2).unwrap_err();
    assert!(silent.detail.contains("15 says nothing"), "{silent}");
    assert_eq!(one.runs().0, 15);
}

/// Rule 5: a failure that is the machine's and not the module's is never an outcome.
#[test]
fn a_machine_that_cannot_run_the_new_module_stops_its_replica() {
    let mut one = Speaker::new(None);
    one.say("a");
    let fault = one.entry(EntryKind::ChangeModule { change: 1, module: [14; 32], name: "m14".into() }).unwrap_err();
    assert!(fault.to_string().contains("no memory"), "{fault}");
    assert!(one.shared.fault().unwrap().contains("no memory"));
    assert_eq!(one.shared.applied(), 0, "the entry is not applied here");
}

/// A node tried a new module on the states of two groups at once, which is as many as it has memory for. Whoever had asked went
/// away, and took the turns along; the trials went on, and the node began two more.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_keeps_its_turn_until_it_has_ended_also_when_nobody_waits_for_it() {
    let speaker = Speaker::new(None);
    let turns = Arc::new(tokio::sync::Semaphore::new(1));
    {
        let turn = turns.clone().try_acquire_owned().unwrap();
        let state = speaker.shared.core();
        assert!(speaker.shared.try_module(&RealPlatform, WordsFactory, turn).now_or_never().is_none());
        assert_eq!(turns.available_permits(), 0, "the trial is under way, and waits for the state");
        drop(state);
    }
    let _turn = turns.acquire().await.unwrap();
}
