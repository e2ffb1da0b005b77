//! A connection to a ZooKeeper server: frames out of one buffer, frames into another.
//!
//! Invariants:
//! * Memory follows the bytes that came, not the lengths they promise: the buffer doubles when it is full, and
//!   a frame over [`FRAME_BYTES_MAX`] is an error.
//! * [`Connection::exchange`] reads while it writes: a server that waits for its answers to be read before it
//!   reads on is never waited for in turn.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::jute::Malformed;
use super::wire;
use super::wire::Connected;

/// The children of a few million nodes fit.
const FRAME_BYTES_MAX: usize = 256 << 20;
const INPUT_BYTES: usize = 8 << 10;
/// Making a connection, and the handshake, each may take this long.
const OPENING_TIME_MAX: Duration = Duration::from_secs(20);

/// What goes wrong with a server.
#[derive(Clone, Debug, Error)]
pub(super) enum ClientError {
    #[error("{server}: cannot connect: {detail}")]
    Unreachable { server: Arc<str>, detail: String },
    #[error("{server}: no answer to {what} within {seconds} s")]
    Silent { server: Arc<str>, what: &'static str, seconds: u64 },
    #[error("{server}: the server closed the connection instead of answering {what}")]
    Closed { server: Arc<str>, what: &'static str },
    #[error("{server}: the connection broke: {detail}")]
    Broken { server: Arc<str>, detail: String },
    #[error("{server}: the server refused a session")]
    Refused { server: Arc<str> },
    #[error("{server}: the answer to {what} is not ZooKeeper's: {detail}")]
    NotZooKeeper { server: Arc<str>, what: &'static str, detail: String },
    #[error("{server}: {what} failed: {code}")]
    Failed { server: Arc<str>, what: String, code: String },
}

impl ClientError {
    /// The name it is counted under: ZooKeeper's own, where a client's library would say it.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Silent { .. } => "OperationTimeout",
            Self::NotZooKeeper { .. } => "MarshallingError",
            Self::Refused { .. } => "SessionExpired",
            Self::Unreachable { .. } | Self::Closed { .. } | Self::Broken { .. } | Self::Failed { .. } => {
                "ConnectionLoss"
            }
        }
    }
}

/// An open session on a connection.
#[derive(Debug)]
pub(super) struct Connection {
    server: Arc<str>,
    stream: TcpStream,
    /// What is to be sent: whole frames.
    pub out: Vec<u8>,
    input: Input,
    /// The session's timeout as the server granted it.
    pub session_timeout: Duration,
}

impl Connection {
    /// Connects to `server` (`HOST:PORT`) and opens a session.
    pub(super) async fn open(server: &Arc<str>, session_timeout_ms: u32) -> Result<Self, ClientError> {
        let seconds = OPENING_TIME_MAX.as_secs();
        let connecting = tokio::time::timeout(OPENING_TIME_MAX, TcpStream::connect(&**server)).await;
        let unreachable = |detail: String| ClientError::Unreachable { server: server.clone(), detail };
        let stream = connecting
            .map_err(|_| unreachable(format!("no answer within {seconds} s")))?
            .map_err(|error| unreachable(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
        let input = Input::default();
        let mut this = Self { server: server.clone(), stream, out: Vec::new(), input, session_timeout: Duration::ZERO };
        let timeout_ms = i32::try_from(session_timeout_ms).unwrap_or(i32::MAX);
        wire::put_connect(&mut this.out, timeout_ms);
        let handshake = tokio::time::timeout(OPENING_TIME_MAX, this.handshake()).await;
        let connected =
            handshake.map_err(|_| ClientError::Silent { server: server.clone(), what: "the handshake", seconds })??;
        this.session_timeout = match u64::try_from(connected.timeout_ms) {
            Ok(granted @ 1..) => Duration::from_millis(granted),
            _ => return Err(ClientError::Refused { server: server.clone() }),
        };
        Ok(this)
    }

    pub(super) fn server(&self) -> &Arc<str> {
        &self.server
    }

    async fn handshake(&mut self) -> Result<Connected, ClientError> {
        const WHAT: &str = "the handshake";
        loop {
            self.exchange(WHAT).await?;
            let read = self.next_frame(WHAT)?.map(Connected::read);
            if let Some(connected) = read {
                return connected.map_err(|error| self.malformed(WHAT, error));
            }
        }
    }

    /// Sends what is there to be sent and reads what comes, at least one byte. Cancel safe.
    pub(super) async fn exchange(&mut self, what: &'static str) -> Result<(), ClientError> {
        loop {
            let (mut reading, mut writing) = self.stream.split();
            let space = self.input.space();
            let read = if self.out.is_empty() {
                reading.read(space).await
            } else {
                tokio::select! {
                    biased;
                    written = writing.write(&self.out) => {
                        let written = written.map_err(|error| broken(&self.server, &error))?;
                        self.out.drain(..written.min(self.out.len()));
                        continue;
                    }
                    read = reading.read(space) => read,
                }
            };
            return match read {
                Ok(0) => Err(ClientError::Closed { server: self.server.clone(), what }),
                Ok(read) => {
                    self.input.filled(read);
                    Ok(())
                }
                Err(error) => Err(broken(&self.server, &error)),
            };
        }
    }

    /// The next frame that came in whole, without its length.
    pub(super) fn next_frame(&mut self, what: &'static str) -> Result<Option<&[u8]>, ClientError> {
        self.input.next_frame().map_err(|detail| ClientError::NotZooKeeper {
            server: self.server.clone(),
            what,
            detail,
        })
    }

    pub(super) fn malformed(&self, what: &'static str, error: Malformed) -> ClientError {
        ClientError::NotZooKeeper { server: self.server.clone(), what, detail: error.to_string() }
    }
}

fn broken(server: &Arc<str>, error: &std::io::Error) -> ClientError {
    ClientError::Broken { server: server.clone(), detail: error.to_string() }
}

/// Bytes that came in: `start..end` of them are not read yet.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// Where the next bytes go; never empty.
    fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.bytes.len() {
            // Twice as much as what waits: a frame of any length is moved a few times, not once a read.
            let waiting = self.end - self.start;
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, waiting);
            let wanted = (2 * waiting).max(INPUT_BYTES);
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted, 0);
            }
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    fn next_frame(&mut self) -> Result<Option<&[u8]>, String> {
        let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((head, rest)) = waiting.split_first_chunk::<4>() else { return Ok(None) };
        let length = i32::from_be_bytes(*head);
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= FRAME_BYTES_MAX) else {
            let beginning: String = waiting.iter().take(16).map(|byte| char::from(*byte)).collect();
            return Err(format!("a frame of {length} bytes, which begins {beginning:?}"));
        };
        match rest.get(..length) {
            Some(frame) => {
                self.start += 4 + length;
                Ok(Some(frame))
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn feed(input: &mut Input, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = input.space();
            let count = space.len().min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            input.filled(count);
            rest = &rest[count..];
        }
    }

    fn frame(content: &[u8]) -> Vec<u8> {
        [&(content.len() as i32).to_be_bytes()[..], content].concat()
    }

    #[test]
    fn frames_come_out_however_the_bytes_come_in() {
        let contents: Vec<Vec<u8>> = [0, 1, 5000, 100_000, 3].iter().map(|length| vec![7; *length]).collect();
        let bytes: Vec<u8> = contents.iter().flat_map(|content| frame(content)).collect();
        for step in [1, 7, 4096, bytes.len()] {
            let (mut input, mut got) = (Input::default(), Vec::new());
            for piece in bytes.chunks(step) {
                feed(&mut input, piece);
                while let Some(frame) = input.next_frame().unwrap() {
                    got.push(frame.to_vec());
                }
            }
            assert!(got == contents, "in steps of {step}");
            assert!(input.bytes.len() < 300_000, "{}", input.bytes.len());
        }
    }

    #[test]
    fn a_promised_length_is_not_memory() {
        let mut input = Input::default();
        feed(&mut input, &(200_i32 << 20).to_be_bytes());
        assert_eq!(input.next_frame(), Ok(None));
        input.space();
        assert!(input.bytes.len() <= INPUT_BYTES);
    }

    #[test]
    fn what_is_no_frame_is_shown() {
        let mut input = Input::default();
        feed(&mut input, b"HTTP/1.1 400 Bad Request\r\n");
        assert!(input.next_frame().unwrap_err().contains("HTTP/1.1"));
        let mut input = Input::default();
        feed(&mut input, &[0xff, 0xff, 0xff, 0xfe]);
        assert!(input.next_frame().unwrap_err().contains("-2 bytes"));
    }
}
