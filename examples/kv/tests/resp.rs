//! Redis's protocol on a desk: clients, an adapter on each node, one log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use kv::Kv;
use kv::resp::Codec;
use kv::resp::Resp;
use statehouse_sdk::adapter::Asked;
use statehouse_sdk::testing_adapter::Client;
use statehouse_sdk::testing_adapter::Desk as AnyDesk;

/// A group and its clients.
struct Desk(AnyDesk<Kv, Codec, Resp>);

impl Desk {
    fn new(nodes: usize) -> Self {
        Self(AnyDesk::new(nodes, "{}", r#"{"params":{},"listen":{},"node":1}"#))
    }

    fn connect(&mut self, node: usize) -> Client {
        self.0.connect(node, "127.0.0.1:7")
    }

    fn send(&mut self, client: Client, lines: &[&str]) {
        let bytes: Vec<u8> = lines.iter().flat_map(|line| request(line)).collect();
        self.0.send(client, &bytes);
    }

    /// What came since the last look, line breaks as spaces.
    fn take(&mut self, client: Client) -> String {
        let bytes = self.0.take(client);
        bytes.escape_ascii().to_string().replace("\\r\\n", " ").replace("\\'", "'").trim_end().to_owned()
    }

    /// Sends all in one piece, lets everything happen, and reads the replies.
    fn ask(&mut self, client: Client, lines: &[&str]) -> String {
        self.send(client, lines);
        self.0.run();
        self.take(client)
    }

    #[track_caller]
    fn expect(&mut self, client: Client, line: &str, reply: &str) {
        assert_eq!(self.ask(client, &[line]), reply, "{line}");
    }

    /// How many entries and how many queries were asked for since the last look.
    fn asked(&mut self) -> (usize, usize) {
        let asked = self.0.take_asked();
        let entries = asked.iter().filter(|(_, asked)| matches!(asked, Asked::Propose { .. })).count();
        let queries = asked.iter().filter(|(_, asked)| matches!(asked, Asked::Query { .. })).count();
        (entries, queries)
    }
}

/// A request of the words of a line; `''` is an empty one.
fn request(line: &str) -> Vec<u8> {
    let words: Vec<&str> = line.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

#[test]
fn strings_are_set_and_read() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    for (line, reply) in [
        ("PING", "+PONG"),
        ("ping hello", "$5 hello"),
        ("ECHO x", "$1 x"),
        ("GET a", "$-1"),
        ("SET a 1", "+OK"),
        ("GET a", "$1 1"),
        ("SET a 2 NX", "$-1"),
        ("SET a 2 XX GET", "$1 1"),
        ("SET b 2 XX", "$-1"),
        ("SETNX b 3", ":1"),
        ("SETNX b 4", ":0"),
        ("GETSET b 5", "$1 3"),
        ("GETDEL b", "$1 5"),
        ("GETDEL b", "$-1"),
        ("MSET c 1 d 2", "+OK"),
        ("MGET c x d", "*3 $1 1 $-1 $1 2"),
        ("MSETNX e 1 d 2", ":0"),
        ("MSETNX e 1 f 2", ":1"),
        ("EXISTS e e x", ":2"),
        ("DEL e f x", ":2"),
        ("INCR n", ":1"),
        ("INCRBY n 41", ":42"),
        ("DECRBY n 2", ":40"),
        ("DECR n", ":39"),
        ("APPEND n x", ":3"),
        ("INCR n", "-ERR value is not an integer or out of range"),
        ("STRLEN n", ":3"),
        ("GETRANGE n 0 -2", "$2 39"),
        ("SETRANGE n 1 abc", ":4"),
        ("GET n", "$4 3abc"),
        ("TYPE n", "+string"),
        ("RENAME n m", "+OK"),
        ("RENAME n m", "-ERR no such key"),
        ("DBSIZE", ":4"),
        ("KEYS [cd]", "*2 $1 c $1 d"),
        ("FLUSHALL", "+OK"),
        ("DBSIZE", ":0"),
        ("RANDOMKEY", "$-1"),
    ] {
        desk.expect(client, line, reply);
    }
}

#[test]
fn keys_expire_in_the_groups_time() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    desk.expect(client, "SET a 1 PX 1500", "+OK");
    desk.expect(client, "PTTL a", ":1500");
    desk.expect(client, "TTL a", ":2");
    desk.0.advance(600);
    desk.expect(client, "PTTL a", ":900");
    desk.expect(client, "SET a 2 KEEPTTL", "+OK");
    desk.expect(client, "PTTL a", ":900");
    desk.0.advance(900);
    desk.expect(client, "GET a", "$-1");
    desk.expect(client, "TTL a", ":-2");
    desk.expect(client, "SETEX a 10 1", "+OK");
    desk.expect(client, "EXPIRE a 5 GT", ":0");
    desk.expect(client, "EXPIRE a 20 GT", ":1");
    desk.expect(client, "PERSIST a", ":1");
    desk.expect(client, "TTL a", ":-1");
    desk.expect(client, "EXPIRE a -1", ":1");
    desk.expect(client, "EXISTS a", ":0");
    desk.expect(client, "SET a 1 EX 0", "-ERR invalid expire time in 'set' command");
}

/// HTTP clients and Redis clients see the same keys, and the same events.
#[test]
fn json_commands_see_the_same_keys() {
    use statehouse_sdk::testing::Harness;
    let mut group = Harness::<Kv, Codec>::new();
    group.apply_bytes(0, br#"{"Put":{"key":"a","value":"json"}}"#).unwrap();
    let set = [&b"\x01\x00"[..], b"\x20\x01b\x02\xff\x00\x00\x00\x00"].concat();
    assert_eq!(group.apply_bytes(0, &set).unwrap(), b"\x05\0\0\0+OK\r\n");
    let get = b"\x01\x00\x00\x00\x01\x01a";
    assert_eq!(group.query_bytes(get).unwrap(), b"\x0a\0\0\0$4\r\njson\r\n");
    let item = group.query_bytes(br#"{"Get":{"key":"b"}}"#).unwrap();
    assert_eq!(item, br#"{"key":"b","value":{"hex":"ff00"},"version":2}"#);
    let events: Vec<String> =
        group.take_events().iter().map(|event| String::from_utf8_lossy(&event.0).into()).collect();
    assert_eq!(events[1], r#"{"change":"put","key":"b","value":{"hex":"ff00"},"version":2}"#);
    // What is no batch changes nothing.
    for bytes in [&b"\x01\x00"[..], b"\x01\x00\xff", b"\x01\x04\x01\x01a", &[&set[..], b"\0"].concat()] {
        assert_eq!(group.apply_bytes(0, bytes).unwrap_err().text(), "the batch is malformed");
    }
    let no_query = [&b"\x01\x00\x00"[..], &set[1..]].concat();
    assert!(group.query_bytes(&no_query).unwrap_err().text().contains("no query"));
}

/// What makes it fast: requests that come together share an entry.
#[test]
fn writes_of_many_clients_share_an_entry() {
    let mut desk = Desk::new(1);
    let clients: Vec<Client> = (0..20).map(|_| desk.connect(0)).collect();
    desk.0.run();
    desk.0.keep_asked();
    for client in &clients {
        desk.send(*client, &["INCR n", "GET n", "INCR n"]);
    }
    desk.0.run();
    assert_eq!(desk.asked(), (1, 0), "a read behind a write goes with it");
    let replies: Vec<String> = clients.iter().map(|client| desk.take(*client)).collect();
    assert_eq!(replies[0], ":1 $1 1 :2");
    assert_eq!(replies[19], ":39 $2 39 :40");
    for client in &clients {
        desk.send(*client, &["GET n", "GET x"]);
    }
    desk.0.run();
    assert_eq!(desk.asked(), (0, 1));
    assert_eq!(desk.take(clients[7]), "$2 40 $-1");
}

#[test]
fn replies_keep_the_order_of_requests() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    let lines = ["GET a", "PING", "SET a 1", "PING 2", "GET a", "FOO", "KEYS *", "DEL a", "GET a", "DBSIZE"];
    let replies = "$-1 +PONG +OK $1 2 $1 1 -ERR unknown command 'FOO', with args beginning with:  *1 $1 a :1 $-1 :0";
    assert_eq!(desk.ask(client, &lines), replies);
    // Byte by byte too.
    for byte in lines.iter().flat_map(|line| request(line)) {
        desk.0.send(client, &[byte]);
    }
    desk.0.run();
    assert_eq!(desk.take(client), replies);
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let mut desk = Desk::new(1);
    let (one, other) = (desk.connect(0), desk.connect(0));
    desk.0.keep_asked();
    let lines = ["MULTI", "SET a 1", "PING", "INCR a", "GET a", "EXPIRE a x", "EXEC"];
    let replies = "+OK +QUEUED +QUEUED +QUEUED +QUEUED +QUEUED *5 +OK +PONG :2 $1 2 \
                   -ERR value is not an integer or out of range";
    assert_eq!(desk.ask(one, &lines), replies);
    assert_eq!(desk.asked(), (1, 0));
    assert_eq!(
        desk.ask(one, &["MULTI", "SET a 9", "NOPE", "EXEC", "GET a"]),
        "+OK +QUEUED -ERR unknown command 'NOPE', with args beginning with:  \
         -EXECABORT Transaction discarded because of previous errors. $1 2"
    );
    assert_eq!(desk.ask(one, &["MULTI", "SET a 9", "DISCARD", "GET a"]), "+OK +QUEUED +OK $1 2");
    assert_eq!(desk.ask(one, &["MULTI", "EXEC", "EXEC"]), "+OK *0 -ERR EXEC without MULTI");

    desk.expect(one, "WATCH a b", "+OK");
    desk.expect(other, "SET b 1", "+OK");
    assert_eq!(desk.ask(one, &["MULTI", "SET a 9", "EXEC", "GET a"]), "+OK +QUEUED *-1 $1 2");
    assert_eq!(desk.ask(one, &["WATCH a b", "MULTI", "SET a 9", "EXEC", "GET a"]), "+OK +OK +QUEUED *1 +OK $1 9");
    desk.expect(one, "WATCH a", "+OK");
    desk.expect(other, "EXPIRE a 100", ":1");
    assert_eq!(desk.ask(one, &["MULTI", "EXEC"]), "+OK *-1");
    desk.expect(one, "WATCH a", "+OK");
    desk.expect(other, "SET a 9", "+OK");
    assert_eq!(desk.ask(one, &["UNWATCH", "MULTI", "SCAN 0", "EXEC"]), "+OK +OK +QUEUED *1 *2 $1 0 *2 $1 a $1 b");
}

/// `WATCH` on a node that is behind must not let through what it did not see.
#[test]
fn a_watch_on_a_node_that_is_behind_fails_safely() {
    let mut desk = Desk::new(3);
    let (near, far) = (desk.connect(0), desk.connect(2));
    desk.expect(near, "SET a 1", "+OK");
    desk.0.lag(2, true);
    desk.expect(near, "SET a 2", "+OK");
    assert_eq!(desk.ask(far, &["WATCH a", "GET a"]), "+OK $1 1");
    desk.send(far, &["MULTI", "SET a 9", "EXEC"]);
    desk.0.run();
    desk.0.lag(2, false);
    desk.0.run();
    assert_eq!(desk.take(far), "+OK +QUEUED *-1");
    desk.expect(far, "GET a", "$1 2");
}

#[test]
fn messages_reach_subscribers_on_all_nodes_in_order() {
    let mut desk = Desk::new(2);
    let (sender, near, far) = (desk.connect(0), desk.connect(0), desk.connect(1));
    desk.expect(near, "SUBSCRIBE c d", "*3 $9 subscribe $1 c :1 *3 $9 subscribe $1 d :2");
    desk.expect(far, "PSUBSCRIBE c*", "*3 $10 psubscribe $2 c* :1");
    assert_eq!(desk.ask(sender, &["PUBLISH c 1", "PUBLISH x 2", "PUBLISH cc 3"]), ":1 :0 :0");
    assert_eq!(desk.take(near), "*3 $7 message $1 c $1 1");
    assert_eq!(desk.take(far), "*4 $8 pmessage $2 c* $1 c $1 1 *4 $8 pmessage $2 c* $2 cc $1 3");
    assert_eq!(desk.ask(sender, &["MULTI", "PUBLISH d 4", "PUBLISH d 5", "EXEC"]), "+OK +QUEUED +QUEUED *2 :1 :1");
    assert_eq!(desk.take(near), "*3 $7 message $1 d $1 4 *3 $7 message $1 d $1 5");
    desk.expect(
        near,
        "GET a",
        "-ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in \
         this context",
    );
    desk.expect(near, "PING", "*2 $4 pong $0");
    desk.expect(near, "UNSUBSCRIBE", "*3 $11 unsubscribe $1 c :1 *3 $11 unsubscribe $1 d :0");
    desk.expect(near, "UNSUBSCRIBE", "*3 $11 unsubscribe $-1 :0");
    desk.expect(near, "GET a", "$-1");
    desk.0.hang_up(far);
    desk.expect(sender, "PUBLISH c 6", ":0");
}

#[test]
fn resp3_has_its_own_nulls_maps_and_pushes() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    let hello = desk.ask(client, &["HELLO 3 AUTH default x SETNAME me"]);
    assert!(hello.starts_with("%7 $6 server $5 redis") && hello.contains("$5 proto :3"), "{hello}");
    desk.expect(client, "CLIENT GETNAME", "$2 me");
    desk.expect(client, "GET a", "_");
    desk.expect(client, "MGET a", "*1 _");
    desk.expect(client, "CONFIG GET save", "%1 $4 save $0");
    desk.expect(client, "SUBSCRIBE c", ">3 $9 subscribe $1 c :1");
    desk.expect(client, "GET a", "_");
    desk.expect(client, "PUBLISH c m", ">3 $7 message $1 c $1 m :1");
    desk.expect(client, "RESET", "+RESET");
    desk.expect(client, "GET a", "$-1");
    desk.expect(client, "HELLO 4", "-NOPROTO unsupported protocol version");
}

/// Every key that is there throughout is returned, whatever else comes and goes.
#[test]
fn a_scan_survives_changes() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    for number in 0..50 {
        desk.expect(client, &format!("SET stays:{number} x"), "+OK");
    }
    let (mut cursor, mut found, mut rounds) = ("0".to_owned(), String::new(), 0);
    loop {
        let reply = desk.ask(client, &[&format!("SCAN {cursor} COUNT 7 MATCH stays:*")]);
        let (_, rest) = reply.split_once(' ').unwrap();
        let (_, rest) = rest.split_once(' ').unwrap();
        let (next, keys) = rest.split_once(' ').unwrap();
        (cursor, found) = (next.to_owned(), found + " " + keys + " ");
        rounds += 1;
        // The key that comes next is deleted, others are set.
        desk.expect(client, &format!("SET a:{rounds} x"), "+OK");
        desk.expect(client, &format!("SET stays:{}x x", 60 - rounds), "+OK");
        desk.expect(client, &format!("DEL stays:{}x", 61 - rounds), if rounds == 1 { ":0" } else { ":1" });
        if cursor == "0" {
            break;
        }
    }
    assert!(rounds >= 8);
    for number in 0..50 {
        assert!(found.contains(&format!(" stays:{number} ")), "stays:{number} in {found}");
    }
    assert!(!found.contains("a:"));
    assert!(desk.ask(client, &["SCAN 12345"]).starts_with("-ERR invalid cursor"));
    desk.expect(client, "SCAN x", "-ERR invalid cursor");
    desk.expect(client, "SCAN 0 TYPE list", "*2 $1 0 *0");
}

#[test]
fn without_a_leader_writes_fail_and_reads_go_on() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    desk.expect(client, "SET a 1", "+OK");
    desk.0.lead(None);
    desk.expect(client, "SET a 2", "-CLUSTERDOWN nobody leads");
    assert_eq!(
        desk.ask(client, &["GET a", "INCR a", "PING", "INCR a", "GET a"]),
        "$1 1 -CLUSTERDOWN nobody leads +PONG -CLUSTERDOWN nobody leads -CLUSTERDOWN nobody leads"
    );
    assert_eq!(desk.ask(client, &["MULTI", "INCR a", "EXEC"]), "+OK +QUEUED -CLUSTERDOWN nobody leads");
    desk.0.lead(Some(0));
    desk.expect(client, "INCR a", ":2");
}

/// Other clients' replies in the same entry must not be put at risk by large ones.
#[test]
fn large_replies_are_spread_over_entries_and_queries() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    let value = "v".repeat(120_000);
    desk.expect(client, &format!("SET big {value}"), "+OK");
    let mut lines = vec!["GET big"; 50];
    lines.insert(0, "INCR n");
    desk.send(client, &lines);
    desk.0.run();
    assert_eq!(desk.0.take(client).len(), 4 + 50 * (120_000 + 11));
    desk.send(client, &["GET big"; 50]);
    desk.0.run();
    assert_eq!(desk.0.take(client).len(), 50 * (120_000 + 11));
    let many = format!("MGET {}", ["big"; 30].join(" "));
    assert!(desk.ask(client, &[&many]).starts_with("-ERR the answer would be larger than"));
    desk.0.keep_asked();
    desk.send(client, &["APPEND big x"; 60]);
    desk.0.run();
    desk.take(client);
    assert!(desk.asked().0 > 5, "events are bounded as well");
    desk.expect(client, "STRLEN big", ":120060");
    desk.expect(
        client,
        &format!("APPEND big {value}"),
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)",
    );
}

#[test]
fn clients_that_break_the_protocol_are_told_and_cut() {
    for (bytes, told) in [
        (&b"*1\r\n$x\r\n"[..], "-ERR Protocol error: invalid bulk length"),
        (b"*99999999\r\n", "-ERR Protocol error: invalid multibulk length"),
        (b"SET a 1\r\nGET \"a\r\n", "+OK -ERR Protocol error: unbalanced quotes in request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", ""),
        (b"SET a 1\r\nQUIT\r\nSET a 2\r\n", "+OK +OK"),
    ] {
        let mut desk = Desk::new(1);
        let client = desk.connect(0);
        desk.0.send(client, bytes);
        desk.0.run();
        assert_eq!(desk.take(client), told);
        assert!(desk.0.is_closed(client));
        let other = desk.connect(0);
        desk.expect(other, "PING", "+PONG");
    }
}

/// A client that sends without waiting is held back, and nothing is lost.
#[test]
fn a_client_with_too_much_under_way_is_held() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    let value = "v".repeat(1_000);
    let line = format!("APPEND a {value}");
    desk.0.lag(0, true);
    for _ in 0..100 {
        let piece: Vec<u8> = std::iter::repeat_n(request(&line), 10).flatten().collect();
        desk.0.send(client, &piece);
        desk.0.run();
    }
    assert!(desk.0.is_held(client));
    desk.0.lag(0, false);
    desk.0.run();
    assert!(!desk.0.is_held(client));
    let replies = desk.take(client);
    assert_eq!((replies.matches(':').count(), replies.matches("-ERR").count()), (131, 869));
}

/// Behind a write that is not done, what is answered at once has to wait too. A client that goes on with large echoes
/// must not fill the adapter with their replies: nothing more is read from it, and then all of them come, in order.
#[test]
fn replies_that_wait_are_bounded() {
    let mut desk = Desk::new(1);
    desk.0.lag(0, true);
    // All that may be under way is, so that the next entry stays open and takes more.
    for number in 0..4 {
        let other = desk.connect(0);
        desk.ask(other, &[&format!("SET other {number}")]);
    }
    let client = desk.connect(0);
    desk.ask(client, &["SET a 1"]);
    let large = "x".repeat(100 << 10);
    let mut sent = 0;
    while !desk.0.is_held(client) {
        assert!(sent < 20, "the replies to {sent} large echoes are kept");
        desk.ask(client, &[&format!("ECHO {sent}"), &format!("ECHO {large}")]);
        sent += 1;
    }
    assert!(sent >= 10);
    desk.0.lag(0, false);
    desk.0.run();
    let replies = desk.take(client).replace(&large, "large");
    let expected: String =
        (0..sent).map(|number| format!(" ${} {number} $102400 large", number.to_string().len())).collect();
    assert_eq!(replies, format!("+OK{expected}"));
}

/// What a connection makes the adapter remember as long as it lasts is bounded in bytes, not in number alone.
#[test]
fn what_is_remembered_of_a_connection_is_bounded() {
    let mut desk = Desk::new(1);
    let client = desk.connect(0);
    let name = |letter: &str| letter.repeat(400 << 10);
    for (letter, fits) in [("a", true), ("b", true), ("c", false)] {
        let reply = desk.ask(client, &["HELLO 3", &format!("SUBSCRIBE {}", name(letter))]);
        assert_eq!(!reply.contains("-ERR too many subscriptions"), fits, "{letter}");
    }
    desk.ask(client, &[&format!("UNSUBSCRIBE {}", name("a"))]);
    assert!(!desk.ask(client, &[&format!("SUBSCRIBE {}", name("c"))]).contains("-ERR"));
    for (letter, fits) in [("a", true), ("b", true), ("c", false)] {
        let reply = desk.ask(client, &[&format!("WATCH {}", name(letter))]);
        assert_eq!(reply == "+OK", fits, "{letter}");
    }
    assert_eq!(desk.ask(client, &["UNWATCH", &format!("WATCH {}", name("c"))]), "+OK +OK");
    let named = desk.ask(client, &[&format!("CLIENT SETNAME {}", name("n"))]);
    assert!(named.contains("cannot be longer"), "{named}");
}

#[test]
fn settings_that_are_not_known_are_refused() {
    use statehouse_sdk::Header;
    use statehouse_sdk::adapter::Adapter;
    use statehouse_sdk::adapter::Io;
    let open = |settings: &str| {
        let mut out = Vec::new();
        Resp::open(settings.as_bytes(), &mut Io::new(Header::default(), 0, &mut out)).map(drop)
    };
    assert!(open(r#"{"params":{"max_value_bytes":5},"listen":{"read_consistency":"lease"},"node":1}"#).is_ok());
    assert!(open(r#"{"listen":{"read_consistency":"eventual"}}"#).unwrap_err().text().contains("eventual"));
    assert!(open(r#"{"listen":{"consistency":"local"}}"#).unwrap_err().text().contains("unknown field"));
}
