//! The closed loop: each connection sends its next request when it has the answer to the last.

use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::client::conn::http1::SendRequest;
use hyper::header;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::histogram::Histogram;
use crate::api::problem::Problem;
use crate::cli::Failure;

/// After a connection that broke or an answer that was an error: a loop that only fails must not burn
/// the machine it measures.
const PAUSE: Duration = Duration::from_millis(20);

/// What is sent, how often at once, how long.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub servers: Vec<String>,
    pub path: String,
    pub body: Bytes,
    pub connections: u32,
    pub warmup: Duration,
    pub duration: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct LoadResult {
    pub latencies: Histogram,
    pub errors: u64,
    pub first_error: Option<String>,
    pub took: Duration,
}

impl Load {
    pub(super) async fn run(self) -> Result<LoadResult, Failure> {
        let begin = Instant::now() + self.warmup;
        let end = begin + self.duration;
        let mut workers = JoinSet::new();
        for (number, server) in (0..self.connections).zip(self.servers.iter().cycle()) {
            let Some(address) = server.strip_prefix("http://").map(str::to_owned) else { continue };
            let worker = Worker { number, address, path: self.path.clone(), body: self.body.clone(), begin, end };
            workers.spawn(worker.run());
        }
        let mut all = LoadResult { took: self.duration, ..LoadResult::default() };
        while let Some(one) = workers.join_next().await {
            let one = one.map_err(|error| {
                Failure::here(
                    format!("a connection's task failed: {error}"),
                    "this is a fault of the program: report it",
                )
            })?;
            all.latencies.merge(&one.latencies);
            all.errors += one.errors;
            all.first_error = all.first_error.or(one.first_error);
        }
        Ok(all)
    }
}

struct Worker {
    number: u32,
    address: String,
    path: String,
    body: Bytes,
    begin: Instant,
    end: Instant,
}

impl Worker {
    async fn run(self) -> LoadResult {
        let mut result = LoadResult::default();
        let mut connection = None;
        // Not all at the same moment.
        tokio::time::sleep(Duration::from_micros(u64::from(self.number % 1000) * 50)).await;
        loop {
            let start = Instant::now();
            if start >= self.end {
                return result;
            }
            let answered =
                match tokio::time::timeout_at((self.end + Duration::from_secs(10)).into(), self.ask(&mut connection))
                    .await
                {
                    Ok(answered) => answered,
                    Err(_) => Err("no answer within 10 s after the end".to_owned()),
                };
            let done = Instant::now();
            match answered {
                // Only what lies within the time that is measured, whole.
                Ok(()) if start >= self.begin && done <= self.end => {
                    result.latencies.record(u64::try_from((done - start).as_nanos()).unwrap_or(u64::MAX));
                }
                Ok(()) => {}
                Err(error) => {
                    result.errors += 1;
                    result.first_error.get_or_insert(error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn ask(&self, connection: &mut Option<SendRequest<Full<Bytes>>>) -> Result<(), String> {
        let mut sender = match connection.take() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await.map_err(|error| error.to_string())?;
        let request = Request::post(&self.path).header(header::HOST, &self.address).body(Full::new(self.body.clone()));
        let response = sender
            .send_request(request.map_err(|error| error.to_string())?)
            .await
            .map_err(|error| format!("{}: {error}", self.address))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        *connection = Some(sender);
        if status.is_success() {
            return Ok(());
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(format!("{} ({})", problem.detail, problem.code)),
            Err(_) => Err(format!("{}: {status}", self.address)),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let cannot = |error: std::io::Error| format!("{}: {error}", self.address);
        let stream = TcpStream::connect(&self.address).await.map_err(cannot)?;
        stream.set_nodelay(true).map_err(cannot)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // How it ends shows in the next request.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}
