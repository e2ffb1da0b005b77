//! One session's closed loop: a request goes out when there is room among those under way.
//!
//! Invariants:
//! * Answers come in the order of the requests; one that does not is an error of the server.
//! * A session that loses its connection counts what was under way as lost and opens another session at the
//!   next server; it does so until the end.
//! * Counted is what begins and ends within the time that is measured.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;

use super::connection::ClientError;
use super::connection::Connection;
use super::generator::Generator;
use super::generator::Material;
use super::random::Random;
use super::stats::Stats;
use super::wire;
use super::wire::Kind;
use super::wire::ReplyHeader;
use super::workload::Workload;

/// How long a server may be silent while requests are under way.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long after the end answers are waited for.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(10);
/// Before a connection is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// So many connections are made at once, a thread: listen queues are short.
pub(super) const OPENING_AT_ONCE: usize = 16;

/// The time that is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub begin: Instant,
    pub end: Instant,
}

/// What a load is, for all threads.
#[derive(Debug)]
pub(super) struct Load {
    pub servers: Vec<Arc<str>>,
    pub workload: Workload,
    pub prefix: String,
    pub sessions: u32,
    /// Requests under way, a session.
    pub pipeline: u32,
    pub session_timeout_ms: u32,
    pub seed: u64,
    pub watched: Watched,
}

/// What the threads and the one that waits for them tell each other.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub answers: AtomicU64,
    pub errors: AtomicU64,
    /// Send nothing more.
    pub stop: AtomicBool,
}

/// What a session needs of its thread.
pub(super) struct Thread {
    pub load: Arc<Load>,
    pub material: Rc<Material>,
    pub stats: RefCell<Stats>,
    pub opening: Semaphore,
    pub opened: mpsc::UnboundedSender<Result<(), ClientError>>,
    pub window: watch::Receiver<Option<Window>>,
}

struct UnderWay {
    xid: i32,
    kind: Kind,
    since: Instant,
}

pub(super) struct Session {
    number: u32,
    thread: Rc<Thread>,
    generator: Generator,
    connection: Connection,
    under_way: VecDeque<UnderWay>,
    xid: i32,
    tick: Interval,
    last_sent: Instant,
    last_heard: Instant,
}

impl Session {
    /// Opens session `number`, waits for the begin, loads until the end.
    pub(super) async fn run(number: u32, thread: Rc<Thread>) {
        let opening = async {
            // The semaphore is never closed.
            let _permit = thread.opening.acquire().await;
            Self::open(number, 0, thread.clone()).await
        };
        let session = match opening.await {
            Ok(session) => session,
            Err(error) => {
                // Nobody listens any more: another session has failed before.
                let _ = thread.opened.send(Err(error));
                return;
            }
        };
        let _ = thread.opened.send(Ok(()));
        session.load().await;
    }

    async fn open(number: u32, attempt: u32, thread: Rc<Thread>) -> Result<Self, ClientError> {
        let load = &thread.load;
        let server = load.servers.get((number as usize + attempt as usize) % load.servers.len().max(1));
        let Some(server) = server else { return Err(no_server()) };
        let connection = Connection::open(server, load.session_timeout_ms).await?;
        // A session that is opened again has other names for its nodes.
        let seed = Random::seed_of(load.seed, number, attempt);
        let generator = Generator::new(thread.material.clone(), &load.workload, seed);
        let mut tick = tokio::time::interval(connection.session_timeout.div_f64(6.0).min(Duration::from_secs(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        let under_way = VecDeque::new();
        let mut session =
            Self { number, thread, generator, connection, under_way, xid: 0, tick, last_sent: now, last_heard: now };
        session.catch_up().await?;
        Ok(session)
    }

    /// The tree was made at some server: the one of this session must have it too.
    async fn catch_up(&mut self) -> Result<(), ClientError> {
        let (xid, prefix) = (self.next_xid(), self.thread.load.prefix.clone());
        wire::put_request(&mut self.connection.out, xid, Kind::Sync, |out| {
            wire::put_sync_body(out, |out| out.extend_from_slice(prefix.as_bytes()));
        });
        self.push(xid, Kind::Sync, Instant::now());
        while !self.under_way.is_empty() {
            self.turn().await?;
            if let Some(code) = self.take_answers(None)? {
                let code = wire::error_name(code);
                return Err(ClientError::Failed {
                    server: self.connection.server().clone(),
                    what: "sync".into(),
                    code,
                });
            }
        }
        Ok(())
    }

    async fn load(mut self) {
        let mut window = self.thread.window.clone();
        let mut attempt = 0;
        loop {
            let Err(error) = self.load_until_it_breaks(&mut window).await else { return };
            self.count_lost(&error);
            let Some(end) = window.borrow().map(|window| window.end) else { return };
            // Another session in place of this one.
            loop {
                if Instant::now() >= end || self.stopped() {
                    self.thread.stats.borrow_mut().sessions_lost += 1;
                    return;
                }
                tokio::time::sleep(PAUSE).await;
                attempt += 1;
                match Self::open(self.number, attempt, self.thread.clone()).await {
                    Ok(session) => {
                        self.thread.stats.borrow_mut().sessions_reopened += 1;
                        self = session;
                        break;
                    }
                    Err(error) => self.thread.stats.borrow_mut().first_error.get_or_insert_with(|| error.to_string()),
                };
            }
        }
    }

    async fn load_until_it_breaks(&mut self, window: &mut watch::Receiver<Option<Window>>) -> Result<(), ClientError> {
        let window = loop {
            if let Some(window) = *window.borrow_and_update() {
                break window;
            }
            tokio::select! {
                changed = window.changed() => if changed.is_err() {
                    return self.close().await;
                },
                turned = self.turn() => turned?,
            }
            self.take_answers(None)?;
        };
        loop {
            let now = Instant::now();
            let over = now >= window.end || self.stopped();
            if over && self.under_way.is_empty() {
                return self.close().await;
            }
            if over && now >= window.end + LAST_ANSWERS_MAX {
                // Not left out in silence: what waits longest would be missing from what is told.
                let (server, seconds) = (self.connection.server().clone(), LAST_ANSWERS_MAX.as_secs());
                return Err(ClientError::Silent { server, what: "a request", seconds });
            }
            while !over && self.under_way.len() < self.thread.load.pipeline as usize {
                let xid = self.next_xid();
                let kind = self.generator.put_next(&mut self.connection.out, xid);
                self.push(xid, kind, now);
            }
            self.turn().await?;
            self.take_answers(Some(window))?;
        }
    }

    /// Sends, and waits for what comes or for the clock.
    async fn turn(&mut self) -> Result<(), ClientError> {
        tokio::select! {
            biased;
            exchanged = self.connection.exchange("a request") => {
                exchanged?;
                self.last_heard = Instant::now();
                return Ok(());
            }
            _ = self.tick.tick() => {}
        }
        let now = Instant::now();
        if !self.under_way.is_empty() && now - self.last_heard > SILENCE_MAX {
            let (server, seconds) = (self.connection.server().clone(), SILENCE_MAX.as_secs());
            return Err(ClientError::Silent { server, what: "a request", seconds });
        }
        if now - self.last_sent > self.connection.session_timeout / 3 {
            wire::put_ping(&mut self.connection.out);
            self.last_sent = now;
        }
        Ok(())
    }

    /// Judges the answers that came in, counts them in the window, and answers the last error's code if there was any.
    fn take_answers(&mut self, window: Option<Window>) -> Result<Option<i32>, ClientError> {
        const WHAT: &str = "a request";
        let now = self.last_heard;
        let thread = self.thread.clone();
        let mut stats = thread.stats.borrow_mut();
        let (mut answers, mut errors, mut last_error) = (0, 0, None);
        while let Some(frame) = self.connection.next_frame(WHAT)? {
            let read = ReplyHeader::read(frame).and_then(|(header, body)| {
                let front = self.under_way.front().filter(|request| request.xid == header.xid);
                let error = match front {
                    Some(request) if header.error == 0 => wire::judge(request.kind, body)?,
                    _ => header.error,
                };
                Ok((header.xid, error))
            });
            let (xid, error) = read.map_err(|error| self.connection.malformed(WHAT, error))?;
            if [wire::PING_XID, wire::WATCH_XID].contains(&xid) {
                continue;
            }
            let Some(UnderWay { kind, since, .. }) = self.under_way.pop_front_if(|request| request.xid == xid) else {
                let due = self.under_way.front().map_or("none".into(), |request| request.xid.to_string());
                let detail = format!("it answers request {xid}, and {due} is due");
                let server = self.connection.server().clone();
                return Err(ClientError::NotZooKeeper { server, what: WHAT, detail });
            };
            let counted = window.filter(|window| since >= window.begin && now <= window.end);
            if error != 0 {
                last_error = Some(error);
                errors += 1;
            } else {
                answers += 1;
            }
            if let Some(window) = counted {
                if error == 0 {
                    let latency_ns = u64::try_from((now - since).as_nanos()).unwrap_or(u64::MAX);
                    stats.answer(kind, latency_ns, (now - window.begin).as_secs());
                } else {
                    let code = wire::error_name(error);
                    stats.error(kind, &code, || format!("{}: {}: {code}", self.connection.server(), kind.name()));
                }
            }
        }
        if window.is_some() {
            let watched = &thread.load.watched;
            watched.answers.fetch_add(answers, Ordering::Relaxed);
            watched.errors.fetch_add(errors, Ordering::Relaxed);
        }
        Ok(last_error)
    }

    /// Ends the session, so that the server has nothing left to expire.
    async fn close(&mut self) -> Result<(), ClientError> {
        let xid = self.next_xid();
        wire::put_close(&mut self.connection.out, xid);
        // The server answers and closes; whichever comes first, or neither, is the end.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.connection.exchange("the end of a session")).await;
        Ok(())
    }

    /// What was under way got no answer.
    fn count_lost(&mut self, error: &ClientError) {
        let mut stats = self.thread.stats.borrow_mut();
        for request in self.under_way.drain(..) {
            stats.error(request.kind, error.code(), || error.to_string());
            self.thread.load.watched.errors.fetch_add(1, Ordering::Relaxed);
        }
        stats.first_error.get_or_insert_with(|| error.to_string());
    }

    fn push(&mut self, xid: i32, kind: Kind, now: Instant) {
        if self.under_way.is_empty() {
            // Silence begins now, not with the last answer.
            self.last_heard = now;
        }
        self.under_way.push_back(UnderWay { xid, kind, since: now });
        self.last_sent = now;
    }

    fn next_xid(&mut self) -> i32 {
        // Negative numbers have meanings of their own.
        self.xid = self.xid.checked_add(1).unwrap_or(1);
        self.xid
    }

    fn stopped(&self) -> bool {
        self.thread.load.watched.stop.load(Ordering::Relaxed)
    }
}

fn no_server() -> ClientError {
    ClientError::Unreachable { server: "no server".into(), detail: "none was given".into() }
}
