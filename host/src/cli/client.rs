//! The HTTP client of the verbs.
//!
//! What holds: a request is sent to a second server only if the first one cannot have acted on it (no
//! connection, or it said that it is not available), or if sending it twice is harmless. A request that
//! changes something and breaks after it may have left is [`Failure::OutcomeUnknown`], never a success
//! and never a plain failure.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::HeaderMap;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioTimer;
use serde::de::DeserializeOwned;

use super::failure::Failure;
use crate::api::INDEX;
use crate::api::problem;
use crate::api::problem::Problem;
use crate::service::ErrorCode;
use crate::service::FileStream;

/// How long making a connection may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// How long an answer may take when the call does not say.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// Idle connections are given up well before the server closes them.
const IDLE_TIME_MAX: Duration = Duration::from_secs(20);
/// The pieces in which a body with progress is sent.
const PIECE_BYTES: usize = 64 << 10;
/// … and a file is read.
const FILE_PIECE_BYTES: usize = 256 << 10;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Gives a body's pieces, from its beginning, as often as it is sent.
pub type Source = Arc<dyn Fn() -> FileStream + Send + Sync>;

/// What a request carries.
#[derive(Clone)]
enum Cargo {
    Bytes(Bytes),
    /// So many bytes, as they come.
    Stream(Source, u64),
}

impl Cargo {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stream(_, length) => *length,
        }
    }

    fn pieces(&self) -> FileStream {
        match self {
            Self::Bytes(bytes) => {
                let pieces = stream::unfold(bytes.clone(), |mut rest| {
                    let piece = rest.split_to(rest.len().min(PIECE_BYTES));
                    std::future::ready((!piece.is_empty()).then_some((Ok(piece), rest)))
                });
                pieces.boxed()
            }
            Self::Stream(source, _) => source(),
        }
    }
}

/// A file's pieces.
pub fn file_source(file: Arc<File>, length: u64) -> Source {
    Arc::new(move || {
        let file = file.clone();
        let pieces = stream::unfold(Some(0), move |offset| {
            let read = offset.filter(|offset| *offset < length).map(|offset| {
                let left = usize::try_from(length - offset).unwrap_or(FILE_PIECE_BYTES);
                let mut piece = vec![0; left.min(FILE_PIECE_BYTES)];
                match file.read_exact_at(&mut piece, offset) {
                    Ok(()) => (Ok(Bytes::from(piece)), Some(offset + left.min(FILE_PIECE_BYTES) as u64)),
                    Err(error) => (Err(error), None),
                }
            });
            std::future::ready(read)
        });
        pieces.boxed()
    })
}

/// What may be done with a request whose fate is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It changes nothing: send it again.
    Reads,
    /// It changes something, and twice does the same as once: send it again.
    Harmless,
    /// Sending it twice may act twice.
    Never,
}

/// Is told how many bytes of a body were handed to the connection.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// One request.
#[derive(Clone)]
pub struct Call {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Cargo,
    repeat: Repeat,
    time_max: Duration,
    progress: Option<Progress>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Call {
    fn new(method: Method, path: String, repeat: Repeat) -> Self {
        Self {
            method,
            path,
            headers: HeaderMap::new(),
            body: Cargo::Bytes(Bytes::new()),
            repeat,
            time_max: ANSWER_TIME_MAX,
            progress: None,
        }
    }

    /// Asks for something.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path.into(), Repeat::Reads)
    }

    /// Sends something.
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>, repeat: Repeat) -> Self {
        Self { body: Cargo::Bytes(body.into()), ..Self::new(Method::POST, path.into(), repeat) }
    }

    /// Says how something is to be.
    pub fn put(path: impl Into<String>, body: impl Into<Bytes>, repeat: Repeat) -> Self {
        Self { body: Cargo::Bytes(body.into()), ..Self::new(Method::PUT, path.into(), repeat) }
    }

    /// Sends so many bytes, piece by piece.
    pub fn post_stream(path: impl Into<String>, source: Source, length: u64, repeat: Repeat) -> Self {
        Self { body: Cargo::Stream(source, length), ..Self::new(Method::POST, path.into(), repeat) }
    }

    /// Removes something. A second removal would answer "not there", which is not what happened.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path.into(), Repeat::Never)
    }

    /// Adds a header; a value that no header can hold is left out, and the server says what it misses.
    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// How long the answer may take.
    pub fn within(mut self, time_max: Duration) -> Self {
        self.time_max = time_max;
        self
    }

    /// Tells how much of the body is sent.
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    fn body(&self) -> Body {
        let progress = match (&self.body, self.progress.clone()) {
            (Cargo::Bytes(bytes), None) => {
                return Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync();
            }
            (_, progress) => progress,
        };
        let pieces = self.body.pieces().map(move |piece| {
            if let (Some(progress), Ok(piece)) = (&progress, &piece) {
                progress(piece.len() as u64);
            }
            piece.map(Frame::data)
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    fn request(&self, server: &str) -> Result<Request<Body>, String> {
        let mut request = Request::builder().method(self.method.clone()).uri(format!("{server}{}", self.path));
        if let Some(headers) = request.headers_mut() {
            *headers = self.headers.clone();
            headers.insert(
                header::USER_AGENT,
                HeaderValue::from_static(concat!("statehouse/", env!("CARGO_PKG_VERSION"))),
            );
            if self.method == Method::POST {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
            }
        }
        request.body(self.body()).map_err(|error| error.to_string())
    }
}

/// An answer below 400.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The header `Statehouse-Index`.
    pub index: Option<u64>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::here(
                format!("the server's answer is not what this version expects: {error}"),
                "use the same version on both sides",
            )
        })
    }
}

/// Speaks to one of several servers.
#[derive(Clone, Debug)]
pub struct Client {
    servers: Arc<Vec<String>>,
    /// The server that answered last.
    current: Arc<AtomicUsize>,
    http: legacy::Client<HttpConnector, Body>,
}

/// Why one server gave no answer.
enum Miss {
    /// It cannot have acted on the request.
    Untouched(String),
    /// It may have.
    Unclear(String),
}

impl Client {
    /// A client of these servers: `http://HOST:PORT`, or `HOST:PORT`.
    pub fn new(servers: &[String]) -> Result<Self, Failure> {
        let servers = servers.iter().map(|server| base_url(server)).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err(Failure::usage("--server names no server", "leave it out for http://127.0.0.1:7070"));
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIME_MAX));
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME_MAX)
            .build(connector);
        Ok(Self { servers: Arc::new(servers), current: Arc::new(AtomicUsize::new(0)), http })
    }

    /// Sends the call and reads the whole answer.
    pub async fn send(&self, call: Call) -> Result<Answer, Failure> {
        let response = self.open(&call).await?;
        let index =
            response.headers().get(INDEX).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
        match tokio::time::timeout(call.time_max, response.into_body().collect()).await {
            Ok(Ok(body)) => Ok(Answer { index, body: body.to_bytes() }),
            // The status said success: only its text is lost. Still, the caller asked for it.
            Ok(Err(error)) => Err(unclear(&call, format!("the answer broke off: {}", chain(&error)))),
            Err(_) => Err(unclear(&call, "the answer broke off: no more came in time".into())),
        }
    }

    /// Sends the call; the answer's head is there, its body comes as it comes.
    pub async fn open(&self, call: &Call) -> Result<Response<Incoming>, Failure> {
        let mut misses: Vec<String> = Vec::new();
        // Whether one of them may have acted.
        let mut touched = false;
        let first = self.current.load(Ordering::Relaxed);
        for number in 0..self.servers.len() {
            let number = (first + number) % self.servers.len();
            let Some(server) = self.servers.get(number) else { break };
            match self.ask(server, call).await {
                Ok(response) if response.status().as_u16() < 400 => {
                    self.current.store(number, Ordering::Relaxed);
                    return Ok(response);
                }
                Ok(response) => {
                    let problem = read_problem(response).await;
                    let unknown = problem.code == ErrorCode::OutcomeUnknown.as_str() && call.repeat == Repeat::Harmless;
                    let next = unknown || problem.code == ErrorCode::Unavailable.as_str();
                    let last = misses.len() + 1 == self.servers.len();
                    // That this server did nothing says nothing of the one before; nor does that the session is not there any more.
                    let gone = [ErrorCode::SessionNotFound, ErrorCode::SessionMoved, ErrorCode::GroupNotFound];
                    let is_gone = gone.iter().any(|code| problem.code == code.as_str());
                    let settled = !touched || (problem.status < 500 && !is_gone);
                    if settled && (last || !next) {
                        return Err((*problem).into());
                    }
                    touched |= unknown;
                    misses.push(format!("{server}: {}", problem.detail));
                    if !next {
                        break;
                    }
                }
                Err(Miss::Untouched(why)) => misses.push(format!("{server}: {why}")),
                Err(Miss::Unclear(why)) => {
                    touched |= call.repeat != Repeat::Reads;
                    misses.push(format!("{server}: {why}"));
                    if call.repeat == Repeat::Never {
                        break;
                    }
                }
            }
        }
        let misses = misses.join("; ");
        if touched {
            Err(unclear(call, misses))
        } else {
            Err(Failure::Unreachable { what: format!("no server answers: {misses}") })
        }
    }

    async fn ask(&self, server: &str, call: &Call) -> Result<Response<Incoming>, Miss> {
        let request = call.request(server).map_err(Miss::Untouched)?;
        match tokio::time::timeout(call.time_max, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(Miss::Untouched(chain(&error))),
            Ok(Err(error)) => Err(Miss::Unclear(chain(&error))),
            Err(_) => Err(Miss::Unclear(format!("no answer within {} s", call.time_max.as_secs()))),
        }
    }
}

/// The failure of a call that was sent and whose answer was not seen.
fn unclear(call: &Call, what: String) -> Failure {
    let remedy = match call.repeat {
        Repeat::Reads => return Failure::Unreachable { what },
        Repeat::Harmless => "it may or may not have taken effect: run the same line again, twice does the same as once",
        Repeat::Never => {
            "it may or may not have taken effect: look first (a query, `statehouse group ls`), or send commands in a \
             session with a sequence number"
        }
    };
    Failure::OutcomeUnknown { what, remedy: remedy.into() }
}

async fn read_problem(response: Response<Incoming>) -> Box<Problem> {
    let status = response.status();
    let is_problem = response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == problem::CONTENT_TYPE);
    let body = match tokio::time::timeout(CONNECT_TIME_MAX, response.into_body().collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    };
    match serde_json::from_slice(&body) {
        Ok(problem) if is_problem => problem,
        _ => not_a_statehouse(status),
    }
}

fn not_a_statehouse(status: StatusCode) -> Box<Problem> {
    let mut problem = Problem::new(ErrorCode::Internal, format!("the server answered {status} without saying why"));
    problem.remedy = "check that --server names a statehouse and no other program or proxy".into();
    problem
}

/// The last words of an error and its causes, which are the most telling.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts.dedup();
    // "client error (Connect)" and "tcp connect error" say less than what follows them.
    let skip = texts.len().saturating_sub(2);
    texts.split_off(skip).join(": ")
}

/// `http://HOST:PORT` without a slash at the end.
pub fn base_url(server: &str) -> Result<String, Failure> {
    let server = server.trim();
    if server.starts_with("https://") {
        return Err(Failure::usage(
            format!("{server}: this version does not speak TLS"),
            "name the server with http://",
        ));
    }
    let url = format!("http://{}", server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/'));
    match url.parse::<hyper::Uri>() {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) && uri.path() == "/" && uri.query().is_none() => {
            Ok(url)
        }
        _ => Err(Failure::usage(format!("{server:?} is not a server's address"), "write http://HOST:PORT")),
    }
}

/// A path segment or query value, percent-encoded.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// The lines of a body as they come.
pub fn lines(body: Incoming) -> impl futures_util::Stream<Item = Result<String, String>> + Unpin {
    let state = (body.into_data_stream(), Vec::<u8>::new());
    Box::pin(stream::unfold(Some(state), |state| async move {
        let (mut data, mut pending) = state?;
        loop {
            if let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let rest = pending.split_off(end + 1);
                pending.pop();
                return Some((Ok(String::from_utf8_lossy(&pending).into_owned()), Some((data, rest))));
            }
            match data.next().await {
                Some(Ok(more)) => pending.extend_from_slice(&more),
                Some(Err(error)) => return Some((Err(chain(&error)), None)),
                None => return None,
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn servers_are_written_with_or_without_the_scheme() {
        assert_eq!(base_url("127.0.0.1:7070").unwrap(), "http://127.0.0.1:7070");
        assert_eq!(base_url(" http://a:1/ ").unwrap(), "http://a:1");
        for bad in ["", "https://a:1", "http://a/v1", "http://", "a b"] {
            assert_eq!(base_url(bad).unwrap_err().code(), 2, "{bad}");
        }
    }

    #[test]
    fn odd_names_survive_the_path() {
        assert_eq!(encode("a-b.c_d"), "a-b.c_d");
        assert_eq!(encode("a/b ?é"), "a%2Fb%20%3F%C3%A9");
    }

    /// Two servers. The first takes one request and dies; the second answers one with `reply`, or is not there.
    async fn send_to_two(call: Call, reply: Option<&str>) -> (Result<Answer, Failure>, bool) {
        use tokio::io::AsyncReadExt;
        use tokio::io::AsyncWriteExt;
        let first = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let second = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let servers = [first.local_addr().unwrap().to_string(), second.local_addr().unwrap().to_string()];
        let dies = tokio::spawn(async move {
            let (mut stream, _) = first.accept().await.unwrap();
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        });
        let answers = reply.map(|reply| {
            let reply = reply.to_owned();
            tokio::spawn(async move {
                let (mut stream, _) = second.accept().await.unwrap();
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                stream.write_all(reply.as_bytes()).await.unwrap();
            })
        });
        let result = Client::new(&servers).unwrap().send(call).await;
        dies.await.unwrap();
        let asked = match answers {
            Some(task) if task.is_finished() => true,
            Some(task) => {
                task.abort();
                task.await.is_ok()
            }
            None => false,
        };
        (result, asked)
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

    /// What was sent to a server that died must not be read as "nothing happened".
    #[tokio::test]
    async fn a_command_whose_connection_breaks_is_of_unknown_outcome_and_goes_to_no_other_server() {
        let (result, asked) = send_to_two(Call::post("/v1/groups/c/apply", "x", Repeat::Never), Some(OK)).await;
        assert_eq!((result.unwrap_err().code(), asked), (4, false));
    }

    #[tokio::test]
    async fn what_is_harmless_to_repeat_goes_to_the_next_server() {
        let (result, _) = send_to_two(Call::post("/v1/modules", "x", Repeat::Harmless), Some(OK)).await;
        assert_eq!(result.unwrap().body, "ok");
        // Nobody else is there: reading failed, but the change may have been made.
        let (result, _) = send_to_two(Call::get("/v1/groups"), None).await;
        assert_eq!(result.unwrap_err().code(), 3);
        let (result, _) = send_to_two(Call::post("/v1/modules", "x", Repeat::Harmless), None).await;
        assert_eq!(result.unwrap_err().code(), 4);
    }

    /// "Nothing was done" from the second server is true of the second server only.
    #[tokio::test]
    async fn a_second_servers_refusal_does_not_settle_what_the_first_did() {
        let reply = |status: u16, code, text: &str| {
            let body = serde_json::to_string(&Problem::new(code, text)).unwrap();
            format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                problem::CONTENT_TYPE,
                body.len()
            )
        };
        let no_leader = reply(503, ErrorCode::NoLeader, "no leader");
        let (result, _) = send_to_two(Call::post("/v1/modules", "x", Repeat::Harmless), Some(&no_leader)).await;
        assert_eq!(result.unwrap_err().code(), 4);
        let (result, _) = send_to_two(Call::get("/v1/groups"), Some(&no_leader)).await;
        assert_eq!(result.unwrap_err().code(), 1);
        // The session may have ended after the first one had applied the command.
        let gone = reply(404, ErrorCode::SessionNotFound, "no session 7");
        let (result, _) = send_to_two(Call::post("/v1/groups/c/apply", "x", Repeat::Harmless), Some(&gone)).await;
        assert_eq!(result.unwrap_err().code(), 4);
        let rejected = reply(422, ErrorCode::Rejected, "no such thing");
        let (result, _) = send_to_two(Call::post("/v1/groups/c/apply", "x", Repeat::Harmless), Some(&rejected)).await;
        assert_eq!(result.unwrap_err().code(), 1);
    }
}
