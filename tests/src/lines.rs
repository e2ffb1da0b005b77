//! A client of the test module `lines`, over TCP.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// A connection to an adapter that speaks in lines.
#[derive(Debug)]
pub struct Lines {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

/// A session as its opening or attaching answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: u64,
    /// Its secret, hexadecimal.
    pub secret: String,
    /// Which attachment this is.
    pub attachment: u64,
}

impl Lines {
    /// Connects.
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let writer = TcpStream::connect(address)?;
        writer.set_nodelay(true)?;
        writer.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        let reader = BufReader::new(writer.try_clone()?);
        Ok(Self { reader, writer })
    }

    /// The same connection again: to send while another thread receives.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        let writer = self.writer.try_clone()?;
        Ok(Self { reader: BufReader::new(writer.try_clone()?), writer })
    }

    /// Sends text as it is.
    pub fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.writer.write_all(text.as_bytes())
    }

    /// The next line; empty when the connection was closed.
    pub fn receive(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Sends one request and waits for its answer, passing over lines without a number.
    #[track_caller]
    pub fn ask(&mut self, request: &str) -> String {
        self.send(&format!("{request}\n")).unwrap();
        loop {
            let line = self.receive().unwrap();
            assert!(!line.is_empty(), "the connection was closed instead of answering {request:?}");
            if let Some((number, answer)) = line.split_once(": ")
                && number.parse::<u64>().is_ok()
            {
                return answer.to_owned();
            }
        }
    }

    /// Opens a session.
    #[track_caller]
    pub fn open(&mut self, timeout_ms: u64) -> Session {
        let answer = self.ask(&format!("open {timeout_ms}"));
        Session::parse(&answer).unwrap_or_else(|| panic!("no session: {answer}"))
    }

    /// Attaches to a session.
    #[track_caller]
    pub fn attach(&mut self, session: &Session) -> Session {
        let answer = self.ask(&format!("attach {} {}", session.id, session.secret));
        Session::parse(&answer).unwrap_or_else(|| panic!("no session: {answer}"))
    }
}

impl Session {
    /// From the text of an answer.
    pub fn parse(answer: &str) -> Option<Self> {
        let mut words = answer.strip_prefix("session ")?.split(' ');
        let (id, secret) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        words.next()?;
        Some(Self { id, secret, attachment: words.next()?.parse().ok()? })
    }
}
