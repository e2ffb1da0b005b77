//! What clients, nemesis and oracle of one run share.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use statehouse::service::Applied;
use statehouse::service::ApplyRequest;
use statehouse::service::Consistency;
use statehouse::service::ErrorCode;
use statehouse::service::Service;
use statehouse::service::ServiceError;
use statehouse::service::ServiceResult;
use statehouse::service::SessionView;
use statehouse::sim::CallError;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimCluster;
use statehouse::sim::SimRandom;
use statehouse::types::NodeId;

/// Virtual nanoseconds since the run began.
pub fn now() -> u64 {
    u64::try_from(openraft_rt_sim::SimInstant::try_now().unwrap().elapsed_since_start().as_nanos()).unwrap()
}

/// Virtual milliseconds since the run began.
pub fn now_ms() -> u64 {
    now() / 1_000_000
}

pub async fn sleep_ms(ms: u64) {
    LifeRuntime::sleep(Duration::from_millis(ms)).await;
}

/// How a request ended, as far as its client knows.
#[derive(Clone, Debug)]
pub enum Told {
    /// It was applied.
    Done(Applied),
    /// It was applied or looked at, and this was the answer.
    Answered(ServiceError),
    /// It had no effect.
    #[expect(dead_code, reason = "for the reader of the trace")]
    Nothing(String),
    /// It may have had one.
    Unknown(String),
}

/// A client's session.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: u64,
    pub secret: [u8; 16],
    pub sequence: u64,
}

/// See the file's head.
pub struct World {
    pub cluster: SimCluster,
    problems: Mutex<Vec<String>>,
    /// Clients stop when it is set.
    stop: AtomicBool,
    /// Counts of what happened, for the report on coverage.
    counts: Mutex<BTreeMap<&'static str, u64>>,
    trace: Mutex<(u64, Vec<String>)>,
    keep_trace: bool,
    pub sabotage: Sabotage,
}

/// What is broken on purpose, to see whether the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    Nothing,
    /// Syncs do nothing: what was acknowledged gets lost.
    SyncsLie,
    /// Commands are retried without a sequence number: some are applied twice.
    RetriesAreUnsafe,
    /// Reads that should be linearizable are answered from any node's own state.
    ReadsAreLocal,
}

pub type Shared = Arc<World>;

impl World {
    pub fn new(cluster: SimCluster, keep_trace: bool, sabotage: Sabotage) -> Shared {
        Arc::new(Self {
            cluster,
            problems: Mutex::default(),
            stop: AtomicBool::new(false),
            counts: Mutex::default(),
            trace: Mutex::default(),
            keep_trace,
            sabotage,
        })
    }

    /// Something that must not be.
    pub fn problem(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("PROBLEM {what}"));
        let mut problems = self.problems.lock().unwrap();
        // The first ones tell the story.
        if problems.len() < 20 {
            problems.push(what);
        }
    }

    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap().clone()
    }

    pub fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap().clone()
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Adds a line to the trace.
    pub fn note(&self, line: String) {
        let mut trace = self.trace.lock().unwrap();
        let mut text = String::new();
        write!(text, "{:>13.6} {line}", now() as f64 / 1e9).unwrap();
        for byte in text.bytes() {
            trace.0 = (trace.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.keep_trace {
            eprintln!("{text}");
            trace.1.push(text);
        }
    }

    /// A hash of all lines, and the lines if they are kept.
    pub fn trace(&self) -> (u64, Vec<String>) {
        self.trace.lock().unwrap().clone()
    }

    /// Any node, also one that is down: a client does not know.
    pub fn any_node(&self, random: &mut SimRandom) -> NodeId {
        *random.pick(&self.cluster.ids()).unwrap()
    }

    /// Sends a command to a node once.
    pub async fn apply_once(&self, node: NodeId, request: ApplyRequest, patience_ms: Option<u64>) -> Told {
        let applying = self.cluster.call(node, move |node| async move { node.apply(request).await });
        let called = match patience_ms {
            None => applying.await,
            Some(ms) => match LifeRuntime::timeout(Duration::from_millis(ms), applying).await {
                Ok(called) => called,
                Err(_) => return Told::Unknown("the client gave up".to_string()),
            },
        };
        told(called)
    }

    /// Sends a command with a sequence number until its outcome is known.
    pub async fn apply_surely(
        &self,
        random: &mut SimRandom,
        group: &str,
        session: &mut Session,
        command: &[u8],
    ) -> Result<Applied, ServiceError> {
        session.sequence += 1;
        let sequence = session.sequence;
        self.apply_numbered(random, group, session, sequence, command, false).await
    }

    /// The same with a given sequence number. `early`: it may be sent before its predecessor is applied.
    pub async fn apply_numbered(
        &self,
        random: &mut SimRandom,
        group: &str,
        session: &Session,
        sequence: u64,
        command: &[u8],
        early: bool,
    ) -> Result<Applied, ServiceError> {
        let mut unknown = false;
        loop {
            let request = ApplyRequest {
                group: group.to_string(),
                session: Some((session.id, session.secret)),
                sequence: (self.sabotage != Sabotage::RetriesAreUnsafe).then_some(sequence),
                command: Bytes::copy_from_slice(command),
                timeout_ms: Some(random.between(100, 3000)),
            };
            let node = self.any_node(random);
            let patience = random.chance(50).then(|| random.between(1, 50));
            let told = self.apply_once(node, request, patience).await;
            self.note(format!("{group} {}/{sequence} at {node}: {told:?}", session.id));
            match told {
                Told::Done(applied) => {
                    if unknown {
                        self.count("outcomes learned by a retry");
                    }
                    return Ok(applied);
                }
                Told::Answered(error) if early && error.code == ErrorCode::BadSequence => sleep_ms(5).await,
                Told::Answered(error) => return Err(error),
                Told::Nothing(_) => sleep_ms(random.between(5, 100)).await,
                Told::Unknown(_) => {
                    unknown = true;
                    self.count("unknown outcomes in sessions");
                    sleep_ms(random.between(0, 50)).await;
                }
            }
        }
    }

    /// Queries a node once.
    pub async fn query_once(&self, node: NodeId, group: &str, consistency: Consistency, query: &[u8]) -> Told {
        let consistency = if self.sabotage == Sabotage::ReadsAreLocal { Consistency::Local } else { consistency };
        let (group, query) = (group.to_string(), Bytes::copy_from_slice(query));
        let called =
            self.cluster.call(node, move |node| async move { node.query(group, consistency, query, None).await });
        // A query changes nothing, so it is done or not.
        match told(called.await) {
            Told::Unknown(why) => Told::Nothing(why),
            told => told,
        }
    }

    /// Queries until there is an answer.
    pub async fn query_surely(
        &self,
        random: &mut SimRandom,
        group: &str,
        query: &[u8],
    ) -> Result<Applied, ServiceError> {
        loop {
            let node = self.any_node(random);
            match self.query_once(node, group, Consistency::Linearizable, query).await {
                Told::Done(applied) => return Ok(applied),
                Told::Answered(error) => return Err(error),
                Told::Nothing(_) | Told::Unknown(_) => sleep_ms(random.between(5, 100)).await,
            }
        }
    }

    /// Opens a session, whatever it takes.
    pub async fn open_session(&self, random: &mut SimRandom, group: &str, timeout_ms: u64) -> Session {
        loop {
            let node = self.any_node(random);
            let name = group.to_string();
            let opened = self.cluster.call(node, move |node| async move { node.session_open(name, timeout_ms).await });
            match opened.await {
                Ok(Ok(view)) => {
                    self.note(format!("{group} session {} opened at {node}", view.id));
                    return session(&view);
                }
                Ok(Err(error)) if definite(&error) => {
                    self.problem(format!("no session of {group}: {error}"));
                }
                _ => {}
            }
            sleep_ms(random.between(5, 100)).await;
        }
    }

    /// Calls until it succeeds; errors that retrying does not cure are problems.
    pub async fn surely<T, F, W>(&self, random: &mut SimRandom, what: &str, work: W) -> T
    where
        T: Send + 'static,
        F: Future<Output = ServiceResult<T>> + Send + 'static,
        W: Fn(statehouse::sim::SimNode) -> F,
    {
        loop {
            let node = self.any_node(random);
            let Some(handle) = self.cluster.node(node) else {
                sleep_ms(20).await;
                continue;
            };
            let work = work(handle);
            match self.cluster.call(node, move |_| work).await {
                Ok(Ok(done)) => return done,
                Ok(Err(error)) => {
                    self.note(format!("{what} at {node}: {error}"));
                    if definite(&error) {
                        self.problem(format!("{what}: {error}"));
                    }
                }
                Err(error) => self.note(format!("{what} at {node}: {error:?}")),
            }
            sleep_ms(random.between(5, 100)).await;
        }
    }
}

fn session(view: &SessionView) -> Session {
    let mut secret = [0; 16];
    for (at, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&view.secret[at * 2..at * 2 + 2], 16).unwrap();
    }
    Session { id: view.id, secret, sequence: 0 }
}

/// Whether the same request would get the same answer again.
fn definite(error: &ServiceError) -> bool {
    !matches!(
        error.code,
        ErrorCode::NoLeader
            | ErrorCode::Overloaded
            | ErrorCode::Timeout
            | ErrorCode::Unavailable
            | ErrorCode::OutcomeUnknown
            | ErrorCode::GroupStopped
            | ErrorCode::DiskFull
            | ErrorCode::Internal
    )
}

fn told(called: Result<ServiceResult<Applied>, CallError>) -> Told {
    match called {
        Ok(Ok(applied)) => Told::Done(applied),
        Ok(Err(error)) if definite(&error) => Told::Answered(error),
        Ok(Err(error)) => match error.code {
            ErrorCode::OutcomeUnknown | ErrorCode::Internal | ErrorCode::GroupStopped => {
                Told::Unknown(error.to_string())
            }
            _ => Told::Nothing(error.to_string()),
        },
        Err(CallError::Down) => Told::Nothing("the node is down".to_string()),
        Err(CallError::Crashed) => Told::Unknown("the node crashed".to_string()),
    }
}
