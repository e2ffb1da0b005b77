//! Queries of a replica's state, many in one go.

use super::*;
use crate::group::inbox::Ticket;

/// Those that wait.
#[derive(Default)]
pub(super) struct Queries {
    waiting: Vec<Query>,
    /// Whose reader has enough to read: they wait until it has read.
    parked: Vec<Query>,
    running: bool,
}

struct Query {
    session: u64,
    query: Bytes,
    to: AnswerTo,
}

enum AnswerTo {
    Caller(oneshot::Sender<(u64, Answer)>),
    Inbox(Arc<Inbox>, Ticket),
}

impl Queries {
    /// The gateway listens no more.
    pub(super) fn give_up_parked_of(&mut self, inbox: &Arc<Inbox>) {
        self.parked.retain(|query| !matches!(&query.to, AnswerTo::Inbox(other, _) if Arc::ptr_eq(other, inbox)));
    }
}

impl Shared {
    /// Answers `query` from this replica's state as it is now. Queries that come while others run are
    /// answered in one go.
    pub async fn query<P: Platform>(self: &Arc<Self>, platform: &P, session: u64, query: Bytes) -> (u64, Answer) {
        let (sender, receiver) = oneshot::channel();
        let start = {
            let mut queries = lock(&self.queries);
            queries.waiting.push(Query { session, query, to: AnswerTo::Caller(sender) });
            !std::mem::replace(&mut queries.running, true)
        };
        if start {
            self.start_queries(platform).await;
        }
        receiver.await.unwrap_or_else(|_| {
            let detail = format!("the query of group {} was not answered: a guest job failed", self.group);
            (0, Err(ServiceError::new(ErrorCode::Internal, detail)))
        })
    }

    /// Answers queries by notes, from this replica's state as it is when their turn comes.
    pub async fn query_to<P: Platform>(
        self: &Arc<Self>,
        platform: &P,
        inbox: &Arc<Inbox>,
        asked: impl IntoIterator<Item = (Ticket, u64, Bytes)>,
    ) {
        if self.enqueue(inbox, asked) {
            self.start_queries(platform).await;
        }
    }

    /// As [`Self::query_to`], on this thread, which is one for guest code.
    pub fn query_here(&self, inbox: &Arc<Inbox>, asked: impl IntoIterator<Item = (Ticket, u64, Bytes)>) {
        if self.enqueue(inbox, asked) {
            self.run_queries();
        }
    }

    /// Adds queries, and those that were held up. Whether the caller has to run them.
    fn enqueue(&self, inbox: &Arc<Inbox>, asked: impl IntoIterator<Item = (Ticket, u64, Bytes)>) -> bool {
        let mut queries = lock(&self.queries);
        let to = |ticket| AnswerTo::Inbox(inbox.clone(), ticket);
        let parked = std::mem::take(&mut queries.parked);
        queries.waiting.extend(parked);
        let asked = asked.into_iter().map(|(ticket, session, query)| Query { session, query, to: to(ticket) });
        queries.waiting.extend(asked);
        !queries.waiting.is_empty() && !std::mem::replace(&mut queries.running, true)
    }

    async fn start_queries<P: Platform>(self: &Arc<Self>, platform: &P) {
        let shared = self.clone();
        // One that is lost gives up for itself; one that was never begun belongs to a node that stops.
        let _lost = platform.run_guest(move || shared.run_queries()).await;
    }

    /// A job that ran queries ended before its time.
    fn give_up_queries(&self) {
        let core = self.core();
        let mut queries = lock(&self.queries);
        queries.running = false;
        queries.waiting.clear();
        // Whose queries went with the job is not known: all readers begin anew.
        for inbox in &core.inboxes {
            inbox.jump(self.applied());
            inbox.wake();
        }
    }

    fn run_queries(&self) {
        struct Running<'a>(&'a Shared);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.give_up_queries();
                }
            }
        }
        let _running = Running(self);
        loop {
            let batch = {
                let mut queries = lock(&self.queries);
                if queries.waiting.is_empty() {
                    queries.running = false;
                    return;
                }
                std::mem::take(&mut queries.waiting)
            };
            let mut parked = Vec::new();
            let mut core = self.core();
            for Query { session, query, to } in batch {
                if let AnswerTo::Inbox(inbox, _) = &to {
                    // Its gateway listens no more: parked, it would hold up all that come after it, for ever.
                    if !core.inboxes.iter().any(|other| Arc::ptr_eq(other, inbox)) {
                        continue;
                    }
                    if !parked.is_empty() || inbox.is_full() {
                        parked.push(Query { session, query, to });
                        continue;
                    }
                }
                let (index, answer) = core.query(self.seed, session, &query);
                match to {
                    AnswerTo::Caller(sender) => drop(sender.send((index, answer))),
                    AnswerTo::Inbox(inbox, ticket) => inbox.push(Note::Answered { ticket, index, answer }),
                }
            }
            // Still under the core's lock, so that `unlisten` finds them; and before the readers are told to look, or one
            // could have room again and nobody would know of what waits for it.
            if !parked.is_empty() {
                lock(&self.queries).parked.append(&mut parked);
                core.inboxes.iter().for_each(|inbox| inbox.hold_up());
            }
            core.inboxes.iter().for_each(|inbox| inbox.wake());
        }
    }
}

impl Core {
    fn query(&mut self, seed: u64, session: u64, query: &[u8]) -> (u64, Answer) {
        let context = Context { session, ..self.context(seed) };
        let index = context.index;
        let answer = match self.sound().and_then(|()| self.model.query(&context, query)) {
            Ok(outcome) => state::answer_of(outcome, index),
            Err(fault) => Err(stopped(&fault)),
        };
        (index, answer)
    }
}
