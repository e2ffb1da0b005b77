//! A small HTTP/1.1 client: one connection, one request at a time, and it knows whether a request that
//! failed may have acted. It is none of the host's code, so that the tests do not believe what they test.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// How long a request may take, unless it says otherwise.
const PATIENCE: Duration = Duration::from_secs(40);

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Header names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    /// The `code` of a problem document; empty when it is none.
    pub fn code(&self) -> String {
        match self.headers.get("content-type").map(String::as_str) {
            Some("application/problem+json") => self.json()["code"].as_str().unwrap_or_default().to_owned(),
            _ => String::new(),
        }
    }

    /// The header `Statehouse-Index`.
    pub fn index(&self) -> Option<u64> {
        self.headers.get("statehouse-index")?.parse().ok()
    }

    /// The answer, if its status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Checks a refusal: status and code, and that the detail says all of `words`.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, code: &str, words: &[&str]) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{self}");
        let problem = self.json();
        let detail = problem["detail"].as_str().unwrap_or_default();
        for word in words {
            assert!(detail.contains(word), "{word:?} is not in {detail:?}");
        }
        assert!(!problem["remedy"].as_str().unwrap_or_default().is_empty(), "no remedy in {self}");
        assert_eq!(problem["status"], status, "{self}");
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.status, self.text())
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Trouble {
    /// No connection: the request did nothing.
    NotSent(io::Error),
    /// The connection broke after the request may have left.
    Unclear(io::Error),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    method: &'a str,
    path: String,
    headers: Vec<(&'a str, String)>,
    body: &'a [u8],
    patience: Duration,
}

impl<'a> Request<'a> {
    /// A request without a body.
    pub fn new(method: &'a str, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: &[], patience: PATIENCE }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'a str, value: impl fmt::Display) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// Gives it a body.
    pub fn body(mut self, body: &'a [u8]) -> Self {
        self.body = body;
        self
    }

    /// How long to wait for each part of the answer.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn head(&self, host: SocketAddr) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || self.method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head + "\r\n"
    }
}

/// A client of one server. The connection is kept, and made anew after it broke.
#[derive(Debug)]
pub struct Http {
    server: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

impl Http {
    /// A client of `server`; connects when there is something to send.
    pub fn new(server: SocketAddr) -> Self {
        Self { server, stream: None }
    }

    /// Sends a request and reads the whole answer.
    pub fn send(&mut self, request: &Request<'_>) -> Result<Answer, Trouble> {
        let reused = self.stream.is_some();
        match self.send_once(request) {
            // A server may close an idle connection at any time: a kept one that breaks before a byte of the answer
            // came is no sign of trouble. Only what is harmless twice is sent twice.
            Err(Trouble::Unclear(error))
                if reused && request.method == "GET" && error.kind() == io::ErrorKind::UnexpectedEof =>
            {
                self.send_once(request)
            }
            other => other,
        }
    }

    fn send_once(&mut self, request: &Request<'_>) -> Result<Answer, Trouble> {
        // Taken out: unless the answer is whole, the connection is not used again.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => BufReader::new(connect(self.server).map_err(Trouble::NotSent)?),
        };
        let answer = exchange(&mut stream, self.server, request).map_err(Trouble::Unclear)?;
        if answer.headers.get("connection").is_none_or(|value| value != "close") {
            self.stream = Some(stream);
        }
        Ok(answer)
    }

    /// The same, for who will not go on without an answer.
    #[track_caller]
    pub fn ask(&mut self, request: &Request<'_>) -> Answer {
        match self.send(request) {
            Ok(answer) => answer,
            Err(trouble) => panic!("{} {} at {}: {trouble:?}", request.method, request.path, self.server),
        }
    }

    /// `GET`.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask(&Request::new("GET", path))
    }

    /// `POST`.
    #[track_caller]
    pub fn post(&mut self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask(&Request::new("POST", path).body(body.as_ref()))
    }

    /// `DELETE`.
    #[track_caller]
    pub fn delete(&mut self, path: &str) -> Answer {
        self.ask(&Request::new("DELETE", path))
    }
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

fn exchange(stream: &mut BufReader<TcpStream>, server: SocketAddr, request: &Request<'_>) -> io::Result<Answer> {
    stream.get_ref().set_read_timeout(Some(request.patience))?;
    let mut bytes = request.head(server).into_bytes();
    bytes.extend_from_slice(request.body);
    // A server that refuses a body early may have closed its side: what it said is still to be read.
    let written = stream.get_mut().write_all(&bytes);
    let (status, headers) = match read_head(stream) {
        Ok(head) => head,
        Err(error) => return Err(written.err().unwrap_or(error)),
    };
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        while read_chunk(stream, &mut body)? {}
    } else if status != 204 {
        let length = headers.get("content-length").and_then(|value| value.parse().ok());
        body.resize(length.ok_or_else(|| broken("an answer without a length"))?, 0);
        stream.read_exact(&mut body)?;
    }
    Ok(Answer { status, headers, body })
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_head(stream: &mut impl BufRead) -> io::Result<(u16, BTreeMap<String, String>)> {
    let first = read_line(stream)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| broken(&format!("no status in {first:?}")))?;
    let mut headers = BTreeMap::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| broken("a header without a colon"))?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// Appends the next chunk to `body`; false after the last one.
fn read_chunk(stream: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<bool> {
    let line = read_line(stream)?;
    let length = usize::from_str_radix(&line, 16).map_err(|_| broken("no chunk length"))?;
    let start = body.len();
    body.resize(start + length, 0);
    stream.read_exact(&mut body[start..])?;
    read_line(stream)?;
    Ok(length > 0)
}

/// A server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `INDEX.NUMBER`.
    pub id: String,
    /// `gap`, `hex`, or empty for a plain one.
    pub kind: String,
    /// The data.
    pub data: String,
}

/// A stream of events, read chunk by chunk.
#[derive(Debug)]
pub struct EventStream {
    stream: BufReader<TcpStream>,
    buffer: Vec<u8>,
    last_id: String,
}

impl EventStream {
    /// Opens `path` at `server`, after the event `last_id` when it is not empty.
    #[track_caller]
    pub fn open(server: SocketAddr, path: &str, last_id: &str) -> Self {
        let mut request = Request::new("GET", path);
        if !last_id.is_empty() {
            request = request.header("last-event-id", last_id);
        }
        let mut stream = BufReader::new(connect(server).unwrap());
        stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        stream.get_mut().write_all(request.head(server).as_bytes()).unwrap();
        let (status, headers) = read_head(&mut stream).unwrap();
        assert_eq!((status, headers["content-type"].as_str()), (200, "text/event-stream"));
        Self { stream, buffer: Vec::new(), last_id: last_id.to_owned() }
    }

    /// The last id that was seen: where to go on after the connection is lost.
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// The next event with data; an error when the connection ends or nothing comes for a long time.
    pub fn receive(&mut self) -> io::Result<Event> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = self.take(&String::from_utf8_lossy(&block)) {
                    return Ok(event);
                }
                continue;
            }
            if !read_chunk(&mut self.stream, &mut self.buffer)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn take(&mut self, block: &str) -> Option<Event> {
        let mut event = Event { id: String::new(), kind: String::new(), data: String::new() };
        let mut data = Vec::new();
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", id)) => event.id = id.to_owned(),
                Some(("event", kind)) => event.kind = kind.to_owned(),
                Some(("data", text)) => data.push(text),
                _ => {}
            }
        }
        if !event.id.is_empty() {
            self.last_id.clone_from(&event.id);
        }
        event.data = data.join("\n");
        (!data.is_empty()).then_some(event)
    }
}
