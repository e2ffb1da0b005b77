//! A client that speaks Redis's protocol, over TCP.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// A connection.
#[derive(Debug)]
pub struct Redis {
    reader: BufReader<TcpStream>,
}

impl Redis {
    /// Connects.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends inline requests, one a line.
    pub fn send(&mut self, lines: &str) -> io::Result<()> {
        self.reader.get_mut().write_all(format!("{lines}\r\n").as_bytes())
    }

    /// The next reply: bytes as they are, an array's items with spaces between; a null is `nil`.
    pub fn receive(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let length = line.get(1..).and_then(|text| text.parse::<i64>().ok()).unwrap_or(-1);
        match line.as_bytes().first() {
            Some(b'$' | b'*') if length < 0 => Ok("nil".to_owned()),
            Some(b'$') => {
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0) + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Some(b'*') => Ok((0..length).map(|_| self.receive()).collect::<io::Result<Vec<_>>>()?.join(" ")),
            _ => Ok(line.to_owned()),
        }
    }

    /// Sends one request and waits for its reply.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.try_ask(line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// As [`ask`](Self::ask), where the connection may end.
    pub fn try_ask(&mut self, line: &str) -> io::Result<String> {
        self.send(line)?;
        self.receive()
    }
}
