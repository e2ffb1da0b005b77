//! RESP, as it goes to a client.

/// Which version of the protocol a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// As after connecting.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// Appends replies to bytes.
#[derive(Debug)]
pub struct Reply<'out> {
    /// Where they go.
    pub out: &'out mut Vec<u8>,
    /// How what differs is written.
    pub protocol: Protocol,
}

impl<'out> Reply<'out> {
    /// Replies of this protocol, appended to `out`.
    pub fn new(out: &'out mut Vec<u8>, protocol: Protocol) -> Self {
        Self { out, protocol }
    }

    /// `+OK`
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }

    /// A word without line breaks.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// An error: a word in capitals, then what is wrong. Line breaks become spaces.
    pub fn error(&mut self, text: &str) {
        self.out.push(b'-');
        self.out.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
        self.out.extend_from_slice(b"\r\n");
    }

    /// A number.
    pub fn integer(&mut self, number: i64) {
        self.number(b':', number);
    }

    /// A count.
    pub fn count(&mut self, count: usize) {
        self.integer(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.number(b'$', i64::try_from(bytes.len()).unwrap_or(i64::MAX));
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Text for people, which RESP3 marks as such.
    pub fn text(&mut self, text: &str) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => {
                self.number(b'=', i64::try_from(text.len().saturating_add(4)).unwrap_or(i64::MAX));
                self.out.extend_from_slice(b"txt:");
                self.out.extend_from_slice(text.as_bytes());
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Nothing, where bytes could be.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// Nothing, where an array could be.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// What was found.
    pub fn maybe(&mut self, found: Option<&[u8]>) {
        match found {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// The head of an array; its items follow.
    pub fn array(&mut self, items: usize) {
        self.number(b'*', i64::try_from(items).unwrap_or(i64::MAX));
    }

    /// The head of a map; keys and values follow in turn. RESP2 has an array of both.
    pub fn map(&mut self, pairs: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(pairs.saturating_mul(2)),
            Protocol::Resp3 => self.number(b'%', i64::try_from(pairs).unwrap_or(i64::MAX)),
        }
    }

    /// The head of a set.
    pub fn set(&mut self, items: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(items),
            Protocol::Resp3 => self.number(b'~', i64::try_from(items).unwrap_or(i64::MAX)),
        }
    }

    /// The head of something nobody asked for: a published message, a subscription.
    pub fn push(&mut self, items: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(items),
            Protocol::Resp3 => self.number(b'>', i64::try_from(items).unwrap_or(i64::MAX)),
        }
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.push(kind);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }

    fn number(&mut self, kind: u8, number: i64) {
        let mut digits = [0; 20];
        let text = decimal(number, &mut digits);
        self.line(kind, text);
    }
}

/// The number's digits, in `digits`. (Formatting through `fmt` takes several times as long.)
pub fn decimal(number: i64, digits: &mut [u8; 20]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        start = at;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        start = start.saturating_sub(1);
        if let Some(sign) = digits.get_mut(start) {
            *sign = b'-';
        }
    }
    digits.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_all_their_digits() {
        for number in [0, 7, -7, 10, 1_234_567_890, i64::MAX, i64::MIN] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn golden_bytes_of_both_protocols() {
        let write = |protocol| {
            let mut out = Vec::new();
            let mut reply = Reply::new(&mut out, protocol);
            reply.ok();
            reply.error("ERR two\r\nlines");
            reply.integer(-12);
            reply.bulk(b"\0\r\n");
            reply.null();
            reply.null_array();
            reply.map(1);
            reply.set(1);
            reply.push(3);
            reply.text("hi");
            out.escape_ascii().to_string()
        };
        let resp2 = r"+OK\r\n-ERR two  lines\r\n:-12\r\n$3\r\n\x00\r\n\r\n$-1\r\n*-1\r\n*2\r\n*1\r\n*3\r\n$2\r\nhi\r\n";
        let resp3 = r"+OK\r\n-ERR two  lines\r\n:-12\r\n$3\r\n\x00\r\n\r\n_\r\n_\r\n%1\r\n~1\r\n>3\r\n=6\r\ntxt:hi\r\n";
        assert_eq!(write(Protocol::Resp2), resp2);
        assert_eq!(write(Protocol::Resp3), resp3);
    }
}
