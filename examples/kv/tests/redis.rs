//! The same requests to a real Redis (Debian's `redis-server` 7.0, if it is installed) and to the
//! adapter: the same bytes come back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use kv::Kv;
use kv::resp::Codec;
use kv::resp::Resp;
use kv::resp::parse::Parsed;
use kv::resp::parse::Parser;
use statehouse_sdk::testing_adapter::Client;
use statehouse_sdk::testing_adapter::Desk;

/// A Redis of our own, ended with the test.
struct Redis {
    process: Child,
    replies: BufReader<TcpStream>,
}

impl Redis {
    /// `None` where none is installed.
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port_text = port.to_string();
        let flags =
            ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--databases", "1"];
        let started = Command::new("redis-server").args(flags).stdout(Stdio::piped()).spawn();
        let Ok(mut process) = started else {
            println!("skipped: there is no redis-server to compare with");
            return None;
        };
        let mut log = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("Ready to accept connections") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "redis-server ended before it was ready");
        }
        let replies = BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap());
        Some(Self { process, replies })
    }

    fn ask(&mut self, request: &[u8], replies: usize) -> Vec<u8> {
        self.replies.get_mut().write_all(request).unwrap();
        let mut bytes = Vec::new();
        (0..replies).for_each(|_| read_reply(&mut self.replies, &mut bytes));
        bytes
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One reply, whatever it holds.
fn read_reply(from: &mut impl BufRead, into: &mut Vec<u8>) {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line).unwrap();
    into.extend(&line);
    let number = || std::str::from_utf8(&line[1..]).unwrap().trim().parse::<i64>().unwrap();
    match line[0] {
        b'$' | b'=' if number() >= 0 => {
            let mut bytes = vec![0; number() as usize + 2];
            from.read_exact(&mut bytes).unwrap();
            into.extend(bytes);
        }
        b'*' | b'~' | b'>' => (0..number()).for_each(|_| read_reply(from, into)),
        b'%' => (0..number() * 2).for_each(|_| read_reply(from, into)),
        _ => {}
    }
}

/// The adapter, and one client.
struct Ours(Desk<Kv, Codec, Resp>, Client);

impl Ours {
    fn new() -> Self {
        let mut desk = Desk::new(1, "{}", "{}");
        let client = desk.connect(0, "127.0.0.1:7");
        Self(desk, client)
    }

    fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        self.0.send(self.1, request);
        self.0.run();
        self.0.take(self.1)
    }
}

/// How many replies these bytes hold.
fn replies_in(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while !bytes.is_empty() {
        read_reply(&mut bytes, &mut Vec::new());
        count += 1;
    }
    count
}

/// The words of a line, as multi-bulk.
fn request(line: &str) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut parser = Parser::default();
    let line = format!("{line}\n");
    let Parsed::Request(arguments, _) = parser.parse(line.as_bytes(), 1 << 20) else { panic!("{line}") };
    let words: Vec<Vec<u8>> = arguments.from(0).map(<[u8]>::to_vec).collect();
    let bytes = multi_bulk(&words);
    (words, bytes)
}

fn multi_bulk(words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend(word);
        bytes.extend(b"\r\n");
    }
    bytes
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[track_caller]
fn compare(redis: &mut Redis, ours: &mut Ours, lines: &str) -> usize {
    let mut different = Vec::new();
    let mut count = 0;
    for line in lines.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (words, bytes) = request(line);
        let mine = ours.ask(&bytes);
        // What we leave unanswered, or answer with several replies, is what it would be there too.
        let theirs = redis.ask(&bytes, replies_in(&mine).max(1));
        let is_hello =
            words[0].eq_ignore_ascii_case(b"hello") && mine.starts_with(if mine[0] == b'%' { b"%" } else { b"*" });
        if mine != theirs && !is_hello {
            different.push(format!("{line}\n  redis {}\n  ours  {}", shown(&theirs), shown(&mine)));
        }
        count += 1;
    }
    assert!(different.is_empty(), "{} of {count}:\n{}", different.len(), different.join("\n"));
    count
}

#[test]
fn recorded_requests_are_answered_as_redis_answers_them() {
    let lines = include_str!("requests.txt");
    for hello in ["HELLO 2", "HELLO 3"] {
        let Some(mut redis) = Redis::start() else { return };
        let mut ours = Ours::new();
        let mut all = hello.to_owned() + "\n";
        // RESET goes back to RESP2, and HELLO 2 is one of the requests.
        for line in lines.lines() {
            all.push_str(line);
            all.push('\n');
            if line.starts_with("RESET") || line.starts_with("HELLO 2") {
                all.push_str(hello);
                all.push('\n');
            }
        }
        let count = compare(&mut redis, &mut ours, &all);
        println!("{count} requests after {hello}");
    }
}

/// A generator of numbers that are the same in each run (Steele and Vigna's SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % bound
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

const KEYS: [&str; 6] = ["a", "b", "c", "ab", "\"\\x00\\xff\"", "n"];
const VALUES: [&str; 8] = ["1", "-7", "x", "\"\"", "9223372036854775807", "\"a b\"", "hello", "01"];
const NUMBERS: [&str; 8] = ["0", "1", "-1", "3", "-3", "100", "x", "9223372036854775807"];
const TIMES: [&str; 4] = ["4102444800", "4102444900", "1", "0"];

/// Requests that delete nothing: a key that was absent, was set and deleted again counts as touched for Redis only.
const WATCHING: [&str; 10] =
    ["GET K", "SET K V", "INCR K", "APPEND K V", "PERSIST K", "WATCH K", "WATCH K K", "UNWATCH", "MULTI", "EXEC"];

/// Requests whose replies depend on nothing but the requests before them: not on the time, and not on how soon a key
/// whose time has come is removed, which `DBSIZE` would show.
fn random_request(random: &mut Random) -> String {
    const SHAPES: [&str; 48] = [
        "GET K",
        "GET K",
        "SET K V",
        "SET K V",
        "SET K V NX",
        "SET K V XX",
        "SET K V GET",
        "SET K V KEEPTTL",
        "SET K V EXAT T",
        "SET K V XX GET KEEPTTL",
        "SETNX K V",
        "GETSET K V",
        "GETDEL K",
        "GETEX K EXAT 4102444800",
        "GETEX K PERSIST",
        "MGET K K K",
        "MSET K V K V",
        "MSETNX K V K V",
        "DEL K",
        "DEL K K",
        "UNLINK K",
        "EXISTS K K",
        "TYPE K",
        "STRLEN K",
        "APPEND K V",
        "GETRANGE K N N",
        "SETRANGE K 3 V",
        "INCR K",
        "DECR K",
        "INCRBY K N",
        "DECRBY K N",
        "EXPIREAT K T",
        "EXPIREAT K T NX",
        "EXPIREAT K T XX",
        "EXPIREAT K T GT",
        "EXPIREAT K T LT",
        "EXPIRETIME K",
        "PERSIST K",
        "RENAME K K",
        "RENAMENX K K",
        "MGET K K",
        "MULTI",
        "EXEC",
        "DISCARD",
        "ECHO V",
        "UNWATCH",
        "TTL missing",
        "PING V",
    ];
    random_words(random, &SHAPES)
}

fn random_words(random: &mut Random, shapes: &[&str]) -> String {
    let shape = random.of(shapes);
    let words = shape.split(' ').map(|word| match word {
        "K" => random.of(&KEYS),
        "V" => random.of(&VALUES),
        "N" => random.of(&NUMBERS),
        "T" => random.of(&TIMES),
        word => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn random_requests_are_answered_as_redis_answers_them() {
    let Some(mut redis) = Redis::start() else { return };
    let mut ours = Ours::new();
    let mut random = Random(7);
    let lines: Vec<String> = (0..4_000).map(|_| random_request(&mut random)).collect();
    compare(&mut redis, &mut ours, &lines.join("\n"));
}

#[test]
fn random_transactions_fail_when_redis_lets_them_fail() {
    let Some(mut redis) = Redis::start() else { return };
    let mut ours = Ours::new();
    let mut random = Random(10);
    let lines: Vec<String> = (0..2_000).map(|_| random_words(&mut random, &WATCHING)).collect();
    compare(&mut redis, &mut ours, &lines.join("\n"));
}

/// Pipelined, in pieces cut anywhere.
#[test]
fn pipelines_are_answered_as_redis_answers_them() {
    let Some(mut redis) = Redis::start() else { return };
    let mut ours = Ours::new();
    let mut random = Random(8);
    for _ in 0..40 {
        let lines: Vec<String> = (0..1 + random.below(60)).map(|_| random_request(&mut random)).collect();
        let bytes: Vec<u8> = lines.iter().flat_map(|line| request(line).1).collect();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(1 + random.below(rest.len()));
            ours.0.send(ours.1, piece);
            if random.below(2) == 0 {
                ours.0.run();
            }
            rest = more;
        }
        ours.0.run();
        let mine = ours.0.take(ours.1);
        let theirs = redis.ask(&bytes, lines.len());
        assert_eq!(shown(&mine), shown(&theirs), "{lines:?}");
    }
}

/// Whatever comes, the adapter goes on, and other clients are served. (Runs without Redis.)
#[test]
fn garbage_and_half_valid_requests_do_no_harm() {
    let mut random = Random(9);
    let mut desk = Desk::<Kv, Codec, Resp>::new(1, "{}", "{}");
    let witness = desk.connect(0, "127.0.0.1:7");
    for _ in 0..600 {
        let client = desk.connect(0, "127.0.0.1:8");
        let mut bytes = Vec::new();
        for _ in 0..1 + random.below(12) {
            match random.below(6) {
                0 => bytes.extend((0..random.below(40)).map(|_| random.below(256) as u8)),
                1 => bytes.extend(format!("*{}\r\n${}\r\n", random.below(9), random.below(9)).bytes()),
                2 => bytes.extend(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$18446744073709551617\r\n"),
                // A valid request with one byte changed.
                3 => {
                    let mut request = request(&random_request(&mut random)).1;
                    let at = random.below(request.len());
                    request[at] = random.below(256) as u8;
                    bytes.extend(request);
                }
                4 => {
                    let commands = kv::resp::command::COMMANDS;
                    let name = commands[random.below(commands.len())].name;
                    let mut words = vec![name.as_bytes().to_vec()];
                    words.extend((0..random.below(5)).map(|_| {
                        let words =
                            ["a", "0", "-1", "3", "GET", "MATCH", "*", "[", "COUNT", "SETNAME", "99999999999999"];
                        random.of(&words).as_bytes().to_vec()
                    }));
                    bytes.extend(multi_bulk(&words));
                }
                _ => bytes.extend(request(&random_request(&mut random)).1),
            }
        }
        desk.send(client, &bytes);
        if random.below(3) == 0 {
            desk.hang_up(client);
        }
        desk.run();
    }
    desk.send(witness, b"SET sane 1\r\nGET sane\r\n");
    desk.run();
    assert_eq!(desk.take(witness), b"+OK\r\n$1\r\n1\r\n");
}
