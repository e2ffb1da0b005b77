//! What the fuzzers do with bytes, on a desk: a client sends them, in any pieces, and others look on. A module does not
//! have this; only native builds do.

use statehouse_sdk::testing_adapter::Client;
use statehouse_sdk::testing_adapter::Desk;

use super::Codec;
use super::Resp;
use super::command::COMMANDS;
use crate::Kv;

const WORDS: [&[u8]; 24] = [
    b"",
    b"a",
    b"b",
    b"ab",
    b"*",
    b"[^a-b]*",
    b"0",
    b"1",
    b"-1",
    b"10",
    b"9223372036854775807",
    b"3",
    b"2",
    b"NX",
    b"XX",
    b"EX",
    b"PX",
    b"GET",
    b"KEEPTTL",
    b"MATCH",
    b"COUNT",
    b"SETNAME",
    b"LIST",
    b"everything",
];

/// Sends `bytes` as they are, and as the requests they stand for. What comes back is RESP, whatever it was; and another
/// client, at another node, is served as if nothing had been.
pub fn bytes(bytes: &[u8]) {
    let (piece, rest) = bytes.split_first().map_or((0, bytes), |(piece, rest)| (*piece, rest));
    for sent in [rest, &requests(rest)] {
        let mut desk: Desk<Kv, Codec, Resp> = Desk::new(2, "{}", r#"{"params":{},"listen":{},"node":1}"#);
        let (client, listener) = (desk.connect(0, "127.0.0.1:7"), desk.connect(1, "127.0.0.1:8"));
        desk.send(listener, b"PSUBSCRIBE *\r\n");
        for (number, part) in sent.chunks(usize::from(piece) + 1).enumerate() {
            desk.send(client, part);
            match piece.wrapping_add(number as u8) % 8 {
                0 => desk.run(),
                1 => desk.advance(1 + u64::from(piece) * 100),
                2 => desk.lead(None),
                3 => desk.lead(Some(0)),
                _ => {}
            }
        }
        desk.lead(Some(0));
        desk.run();
        assert_replies(&desk.take(client));
        assert_replies(&desk.take(listener));
        for honest in [desk.connect(0, "127.0.0.1:9"), desk.connect(1, "127.0.0.1:9")] {
            assert_eq!(ask(&mut desk, honest, b"SET honest 1\r\nGET honest\r\n"), b"+OK\r\n$1\r\n1\r\n");
        }
        desk.hang_up(client);
        // Whatever was given a time to live is over by now, for all nodes alike.
        desk.advance(1_000_000);
        for honest in [desk.connect(0, "127.0.0.1:9"), desk.connect(1, "127.0.0.1:9")] {
            assert_eq!(ask(&mut desk, honest, b"GET honest\r\n"), b"$1\r\n1\r\n");
        }
    }
}

fn ask(desk: &mut Desk<Kv, Codec, Resp>, client: Client, request: &[u8]) -> Vec<u8> {
    desk.send(client, request);
    desk.run();
    desk.take(client)
}

/// The requests that bytes stand for: of each a command, how many arguments, and which words these are.
fn requests(bytes: &[u8]) -> Vec<u8> {
    let mut requests = Vec::new();
    let mut rest = bytes.iter().copied();
    while let (Some(command), Some(count)) = (rest.next(), rest.next()) {
        let Some(command) = COMMANDS.get(usize::from(command) % COMMANDS.len()) else { return requests };
        let count = usize::from(count % 6);
        requests.extend(format!("*{}\r\n${}\r\n{}\r\n", count + 1, command.name.len(), command.name).into_bytes());
        for _ in 0..count {
            let word = WORDS.get(usize::from(rest.next().unwrap_or(0)) % WORDS.len()).copied().unwrap_or_default();
            requests.extend(format!("${}\r\n", word.len()).into_bytes());
            requests.extend_from_slice(word);
            requests.extend_from_slice(b"\r\n");
        }
    }
    requests
}

/// All of `bytes` are whole replies.
fn assert_replies(bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match reply(rest) {
            Some(behind) => rest = behind,
            None => panic!("this is no reply: {}", rest.escape_ascii()),
        }
    }
}

/// What is behind the first reply; `None` if it is not whole, or none at all.
fn reply(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = (bytes.get(1..end)?, bytes.get(end + 2..)?);
    let number = || std::str::from_utf8(line).ok()?.parse::<i64>().ok();
    let items = |count: i64| (0..count).try_fold(rest, |rest, _| reply(rest));
    match bytes.first()? {
        b'+' | b'-' => (!line.contains(&b'\n')).then_some(rest),
        b':' => number().map(|_| rest),
        b'_' => line.is_empty().then_some(rest),
        b'#' => matches!(line, b"t" | b"f").then_some(rest),
        b',' | b'(' => (!line.is_empty()).then_some(rest),
        b'$' | b'=' if line == b"-1" => Some(rest),
        b'$' | b'=' => rest.get(usize::try_from(number()?).ok()?..)?.strip_prefix(b"\r\n"),
        b'*' if line == b"-1" => Some(rest),
        b'*' | b'~' | b'>' => items(number().filter(|count| *count >= 0)?),
        b'%' => items(number().filter(|count| *count >= 0)?.checked_mul(2)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    /// A first round of fuzzing on every test run.
    #[test]
    fn random_requests_are_answered_with_replies() {
        let rounds = std::env::var("STATEHOUSE_SEEDS").map_or(300, |seeds| seeds.parse().unwrap());
        let mut state = 1_u64;
        for _ in 0..rounds {
            let mut byte = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            let bytes: Vec<u8> = (0..120).map(|_| byte()).collect();
            super::bytes(&bytes);
        }
    }

    #[test]
    fn what_is_no_reply_is_found() {
        for whole in ["+OK\r\n", ":-3\r\n", "$0\r\n\r\n", "*2\r\n$-1\r\n_\r\n", "%1\r\n+a\r\n:1\r\n", ">1\r\n#t\r\n"] {
            super::assert_replies(whole.as_bytes());
            for cut in 1..whole.len() {
                assert!(super::reply(&whole.as_bytes()[..cut]).is_none(), "{whole:?} cut at {cut}");
            }
        }
        assert!(super::reply(b"OK\r\n").is_none() && super::reply(b"$1\r\nab\r\n").is_none());
    }
}
