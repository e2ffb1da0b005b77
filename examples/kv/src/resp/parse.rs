//! Requests out of a client's bytes: multi-bulk and inline, as Redis reads them.
//!
//! Invariants:
//! * A length that a client claims allocates nothing: bytes are taken as they come, and counted.
//! * However the bytes are cut, each is looked at a bounded number of times: [`Parser`] goes on where
//!   it stopped.

use std::borrow::Cow;

/// A line (inline request, count, length) is at most this long: Redis's own limit.
const LINE_BYTES_MAX: usize = 64 << 10;

/// How many arguments a request may have.
pub const ARGUMENTS_MAX: usize = 20_000;

/// The arguments of one request, the command's name first.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    bytes: &'a [u8],
    ranges: &'a [(u32, u32)],
}

impl<'a> Arguments<'a> {
    /// How many, with the name.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Argument `at`; empty if there is none.
    pub fn get(&self, at: usize) -> &'a [u8] {
        self.ranges.get(at).map_or(&[], |range| self.slice(*range))
    }

    /// The arguments from `at` on.
    pub fn from(&self, at: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let this = *self;
        this.ranges.get(at..).unwrap_or_default().iter().map(move |range| this.slice(*range))
    }

    fn slice(&self, (start, end): (u32, u32)) -> &'a [u8] {
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }
}

/// What the bytes so far hold.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// No whole request yet.
    More,
    /// Nothing to do (an empty line), so many bytes long.
    Nothing(usize),
    /// A request, so many bytes long.
    Request(Arguments<'a>, usize),
    /// What cannot be read on from: the connection is to be closed with this.
    Refused(Cow<'static, str>),
}

/// Reads one request after the other; keeps its place in one that is not whole.
#[derive(Debug, Default)]
pub struct Parser {
    /// Where to go on, from the request's start; 0 before it.
    at: usize,
    /// Where the search for the end of a line goes on.
    searched: usize,
    /// How many arguments are still to come, once the count is read.
    missing: usize,
    /// The length of the argument under way.
    length: Option<usize>,
    ranges: Vec<(u32, u32)>,
    /// An inline request's arguments without their quotes.
    inline: Vec<u8>,
}

impl Parser {
    /// Reads from `bytes`, which begin where the last request ended and grow until it is whole.
    /// `limit`: the largest request, bytes.
    pub fn parse<'a>(&'a mut self, bytes: &'a [u8], limit: usize) -> Parsed<'a> {
        if self.at == 0 {
            self.missing = 0;
            self.length = None;
            self.ranges.clear();
            if self.ranges.capacity() > 64 {
                self.ranges = Vec::new();
            }
            match bytes.first() {
                None => return Parsed::More,
                Some(b'*') => {}
                Some(_) => return self.inline(bytes),
            }
            let Some((line, next)) = self.line(bytes, 1) else {
                return self.unfinished_line(bytes, 0, "too big mbulk count string");
            };
            match integer(line) {
                Some(count) if count <= 0 => {
                    self.restart();
                    return Parsed::Nothing(next);
                }
                Some(count) if count as u64 <= ARGUMENTS_MAX as u64 => self.missing = count as usize,
                _ => return Parsed::Refused("invalid multibulk length".into()),
            }
            self.at = next;
        }
        while self.missing > 0 {
            let length = match self.length {
                Some(length) => length,
                None => {
                    match bytes.get(self.at) {
                        None => return Parsed::More,
                        Some(b'$') => {}
                        Some(other) => {
                            return Parsed::Refused(format!("expected '$', got '{}'", char::from(*other)).into());
                        }
                    }
                    let Some((line, next)) = self.line(bytes, self.at + 1) else {
                        return self.unfinished_line(bytes, self.at, "too big bulk count string");
                    };
                    match integer(line).and_then(|length| usize::try_from(length).ok()) {
                        Some(length) if length.saturating_add(next) <= limit => {
                            self.at = next;
                            *self.length.insert(length)
                        }
                        _ => return Parsed::Refused("invalid bulk length".into()),
                    }
                }
            };
            // Redis does not look at the two bytes behind an argument either.
            let end = self.at + length;
            if bytes.len() < end + 2 {
                return Parsed::More;
            }
            self.ranges.push((self.at as u32, end as u32));
            self.at = end + 2;
            self.length = None;
            self.missing -= 1;
        }
        let length = self.at;
        self.restart();
        Parsed::Request(Arguments { bytes, ranges: &self.ranges }, length)
    }

    /// Forgets the place: what comes next begins a request.
    fn restart(&mut self) {
        self.at = 0;
        self.searched = 0;
    }

    /// The line from `start` without its `\r\n`, and where the next begins.
    fn line<'a>(&mut self, bytes: &'a [u8], start: usize) -> Option<(&'a [u8], usize)> {
        let from = self.searched.max(start);
        let Some(end) = bytes.get(from..)?.iter().position(|byte| *byte == b'\r').map(|at| from + at) else {
            self.searched = bytes.len();
            return None;
        };
        self.searched = end;
        (end + 2 <= bytes.len()).then(|| (bytes.get(start..end).unwrap_or_default(), end + 2))
    }

    fn unfinished_line(&self, bytes: &[u8], start: usize, refusal: &'static str) -> Parsed<'static> {
        let is_too_long = bytes.len().saturating_sub(start) > LINE_BYTES_MAX;
        if is_too_long { Parsed::Refused(refusal.into()) } else { Parsed::More }
    }

    fn inline<'a>(&'a mut self, bytes: &'a [u8]) -> Parsed<'a> {
        let tail = bytes.get(self.searched..).unwrap_or_default();
        let Some(end) = tail.iter().position(|byte| *byte == b'\n').map(|at| self.searched + at) else {
            self.searched = bytes.len();
            return if bytes.len() > LINE_BYTES_MAX {
                Parsed::Refused("too big inline request".into())
            } else {
                Parsed::More
            };
        };
        self.restart();
        let line = bytes.get(..end).unwrap_or_default();
        self.inline.clear();
        if split_inline(line.strip_suffix(b"\r").unwrap_or(line), &mut self.inline, &mut self.ranges).is_none() {
            return Parsed::Refused("unbalanced quotes in request".into());
        }
        if self.ranges.is_empty() {
            return Parsed::Nothing(end + 1);
        }
        Parsed::Request(Arguments { bytes: &self.inline, ranges: &self.ranges }, end + 1)
    }
}

/// The words of a line. `"…"` knows `\n \r \t \b \a \xhh` and takes any other escaped byte as it is,
/// `'…'` knows `\'`; a word ends where its quote does. `None` if a quote is not closed, or something
/// follows it at once.
fn split_inline(line: &[u8], words: &mut Vec<u8>, ranges: &mut Vec<(u32, u32)>) -> Option<()> {
    let is_space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b || byte == 0;
    let mut rest = line.iter().copied().peekable();
    loop {
        while rest.next_if(|byte| is_space(*byte)).is_some() {}
        if rest.peek().is_none() {
            return Some(());
        }
        let start = words.len();
        let mut quote = None;
        while let Some(byte) = rest.next() {
            match (quote, byte) {
                (None, b'"' | b'\'') => quote = Some(byte),
                (None, byte) if is_space(byte) => break,
                (Some(open), byte) if open == byte => {
                    if rest.peek().is_some_and(|next| !is_space(*next)) {
                        return None;
                    }
                    quote = None;
                    break;
                }
                (Some(b'"'), b'\\') => words.push(escaped(&mut rest)?),
                (Some(b'\''), b'\\') if rest.next_if_eq(&b'\'').is_some() => words.push(b'\''),
                (_, byte) => words.push(byte),
            }
        }
        if quote.is_some() {
            return None;
        }
        ranges.push((start as u32, words.len() as u32));
    }
}

/// The byte that an escape of a double-quoted word stands for; `rest` is behind its backslash.
fn escaped(rest: &mut std::iter::Peekable<impl Iterator<Item = u8> + Clone>) -> Option<u8> {
    Some(match rest.next()? {
        b'x' => {
            let mut ahead = rest.clone();
            let digits = [ahead.next(), ahead.next()].map(|digit| char::from(digit.unwrap_or(b'-')).to_digit(16));
            let [Some(high), Some(low)] = digits else { return Some(b'x') };
            *rest = ahead;
            (high << 4 | low) as u8
        }
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    })
}

/// A decimal number as Redis takes one: no plus, no leading zero, no space.
pub fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_plain = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', more @ ..] => more.len() < 19 && more.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !is_plain {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn words(parsed: Parsed<'_>) -> Vec<String> {
        let Parsed::Request(arguments, _) = parsed else { panic!("{parsed:?}") };
        arguments.from(0).map(|word| word.escape_ascii().to_string()).collect()
    }

    fn refusal(bytes: &[u8]) -> String {
        match Parser::default().parse(bytes, 1 << 20) {
            Parsed::Refused(text) => text.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_the_same_however_its_bytes_are_cut() {
        let bytes = b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$4\r\n\r\n\0\xff\r\n";
        let mut parser = Parser::default();
        for cut in 0..bytes.len() {
            assert!(matches!(parser.parse(&bytes[..cut], 100), Parsed::More), "cut at {cut}");
        }
        assert_eq!(words(parser.parse(bytes, 100)), ["SET", "", "\\r\\n\\x00\\xff"]);
        assert_eq!(words(parser.parse(b"*1\r\n$4\r\nPING\r\nrest", 100)), ["PING"]);
    }

    #[test]
    fn inline_words_may_be_quoted() {
        let mut parser = Parser::default();
        let line = b"set \"a b\\x41\\n\\q\" 'c\\'\\n' d\"\" \r\n";
        assert_eq!(words(parser.parse(line, 100)), ["set", "a bA\\nq", "c\\'\\\\n", "d"]);
        assert!(matches!(parser.parse(b"\r\n", 100), Parsed::Nothing(2)));
        assert!(matches!(parser.parse(b"*0\r\n", 100), Parsed::Nothing(4)));
        assert!(matches!(parser.parse(b"*-1\r\n", 100), Parsed::Nothing(5)));
    }

    #[test]
    fn what_is_no_request_is_refused_in_rediss_words() {
        assert_eq!(refusal(b"*x\r\n"), "invalid multibulk length");
        assert_eq!(refusal(b"*1000000000\r\n"), "invalid multibulk length");
        assert_eq!(refusal(b"*1\r\n:3\r\n"), "expected '$', got ':'");
        assert_eq!(refusal(b"*1\r\n$-1\r\n"), "invalid bulk length");
        assert_eq!(refusal(b"*1\r\n$2000000\r\n"), "invalid bulk length");
        assert_eq!(refusal(b"*1\r\n$18446744073709551615\r\n"), "invalid bulk length");
        assert_eq!(refusal(b"get \"a\n"), "unbalanced quotes in request");
        assert_eq!(refusal(b"get \"a\"b\n"), "unbalanced quotes in request");
        assert_eq!(refusal(&[b'a'; 70_000]), "too big inline request");
        assert_eq!(refusal(&[b'*'; 70_000]), "too big mbulk count string");
        assert_eq!(refusal(&[b"*1\r\n", &[b'$'; 70_000][..]].concat()), "too big bulk count string");
    }

    /// All arguments together are bounded, not only each: many lengths just below the limit would
    /// otherwise make a request of any size.
    #[test]
    fn a_request_is_bounded_as_a_whole() {
        let mut bytes = b"*3\r\n$3\r\nDEL\r\n$60\r\n".to_vec();
        bytes.extend([b'k'; 60]);
        bytes.extend(b"\r\n$60\r\n");
        assert!(matches!(Parser::default().parse(&bytes, 100), Parsed::Refused(_)));
    }

    #[test]
    fn numbers_are_written_one_way() {
        for (text, number) in
            [("0", 0), ("-1", -1), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)]
        {
            assert_eq!(integer(text.as_bytes()), Some(number));
        }
        for text in ["", "-", "+1", "01", "-0", " 1", "1 ", "1.0", "9223372036854775808", "99999999999999999999"] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
    }
}
