//! The API over real connections, in front of the service in `fake.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::HeaderMap;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use super::fake::CODES;
use super::fake::Fake;
use super::problem;
use super::problem::Problem;
use super::*;
use crate::service::Event;
use crate::service::EventItem;

struct Api {
    server: ApiServer,
    fake: Arc<Fake>,
    address: SocketAddr,
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }

    /// The problem, after checking what every problem must be.
    fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), problem::CONTENT_TYPE, "{}", self.text());
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.r#type, format!("urn:statehouse:problem:{}", problem.code));
        assert!(!problem.title.is_empty() && !problem.detail.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
        problem
    }
}

impl Api {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut ApiOptions)) -> Self {
        let mut options = ApiOptions {
            command_bytes_max: 100,
            module_bytes_max: 100_000,
            ..ApiOptions::from(&ServeConfig::default())
        };
        change(&mut options);
        let fake = Arc::new(Fake::new(4));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = serve(listener, fake.clone(), options).unwrap();
        let address = server.address();
        Self { server, fake, address }
    }

    /// With the module `counter` and the group `c1` that runs it.
    async fn with_group() -> Self {
        let api = Self::start().await;
        api.make_group().await;
        api
    }

    async fn make_group(&self) {
        assert_eq!(self.call("POST", "/v1/modules?name=counter", &[], "\0asm").await.status, 201);
        assert_eq!(self.call("POST", "/v1/groups", &[], r#"{"name":"c1","module":"counter"}"#).await.status, 201);
    }

    async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request =
            Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path).header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let response = self.open(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        Reply { status: parts.status.as_u16(), headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, body: &str) -> Reply {
        self.call("POST", path, &[], body.to_owned()).await
    }

    /// Sends these bytes as they are and reads until the server closes.
    async fn raw(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }
}

#[tokio::test]
async fn every_error_arrives_as_a_problem_with_its_code_status_reason_and_index() {
    let api = Api::with_group().await;
    for code in CODES {
        let reply = api.post("/v1/groups/c1/apply", &format!("fail {}", code.as_str())).await;
        let problem = reply.problem();
        assert_eq!((problem.code.as_str(), problem.status), (code.as_str(), code.status()));
        assert_eq!(
            (problem.reason.as_deref(), problem.index, problem.instance.as_str()),
            (Some("why"), Some(9), "/v1/groups/c1/apply")
        );
        assert_eq!((problem.remedy.as_str(), reply.header("statehouse-index")), (code.remedy(), "9"));
    }
}

#[tokio::test]
async fn the_life_of_a_module_and_its_group() {
    let api = Api::start().await;
    let added = api.call("POST", "/v1/modules?name=counter", &[], "\0asm").await;
    assert_eq!((added.status, added.json()["size"].as_u64()), (201, Some(4)));
    assert_eq!(
        api.call("POST", "/v1/modules?name=counter", &[], "\0asm").await.status,
        201,
        "the same bytes again are a success"
    );
    assert_eq!(api.call("POST", "/v1/modules?name=counter", &[], "\0asm2").await.problem().code, "already_exists");
    assert_eq!(
        api.call("POST", "/v1/modules?name=no", &[], "text").await.problem().reason.as_deref(),
        Some("not_wasm")
    );
    assert_eq!(api.call("POST", "/v1/modules/check", &[], "\0asm").await.status, 200);
    assert_eq!(api.call("POST", "/v1/modules/check", &[], "text").await.problem().code, "module_refused");
    assert_eq!(api.post("/v1/groups", r#"{"name":"c1","module":"nope"}"#).await.problem().code, "module_not_found");
    let group = api.post("/v1/groups", r#"{"name":"c1","module":"counter","params":{"start":3}}"#).await;
    assert_eq!(
        (group.status, group.json()["params"]["start"].as_u64(), group.json()["leader"].as_u64()),
        (201, Some(3), Some(4))
    );
    assert_eq!(api.post("/v1/groups", r#"{"name":"c1","module":"counter"}"#).await.problem().code, "already_exists");
    assert_eq!(api.get("/v1/groups").await.json()["groups"][0]["name"], "c1");
    assert_eq!(api.get("/v1/groups/c1").await.json()["state"], "leader");
    assert_eq!(api.get("/v1/groups/c2").await.problem().code, "group_not_found");
    assert_eq!(api.get("/v1/groups/c1/digest").await.json()["applied"], 1);
    assert_eq!(api.post("/v1/groups/c1/snapshot", "").await.json()["index"], 1);
    assert_eq!(api.get("/v1/modules").await.json()["modules"][0]["groups"][0], "c1");
    assert_eq!(api.call("DELETE", "/v1/modules/counter", &[], "").await.problem().code, "module_in_use");
    assert_eq!(api.call("DELETE", "/v1/groups/c1", &[], "").await.status, 204);
    assert_eq!(api.call("DELETE", "/v1/modules/counter", &[], "").await.status, 204);
    assert_eq!(api.get("/v1/modules/counter").await.problem().code, "module_not_found");
}

#[tokio::test]
async fn a_groups_state_goes_out_as_a_file_and_comes_in_as_another_group() {
    let api = Api::with_group().await;
    api.post("/v1/groups/c1/apply", "41").await;
    let saved = api.get("/v1/groups/c1/snapshot").await;
    assert_eq!((saved.status, saved.header("statehouse-index"), saved.header("content-length")), (200, "2", "6"));
    assert_eq!(
        (saved.header("statehouse-digest").len(), saved.header("content-type")),
        (64, "application/octet-stream")
    );
    let path = "/v1/groups/c2/restore?module=counter&listen=a:1,b:2&listen_params=%7B%22x%22%3A1%7D";
    let restored = api.call("POST", path, &[], saved.body).await;
    assert_eq!(restored.status, 201, "{}", restored.text());
    let (listen, params) = (&restored.json()["listen"], &restored.json()["listen_params"]);
    assert_eq!((listen, params), (&serde_json::json!(["a:1", "b:2"]), &serde_json::json!({ "x": 1 })));
    assert_eq!(api.post("/v1/groups/c2/query", "").await.text(), "41 Linearizable None");
    assert_eq!(api.get("/v1/modules/counter/file").await.body, Bytes::from_static(b"\0asm"));

    for (path, code) in [
        ("/v1/groups/c2/restore", "already_exists"),
        ("/v1/groups/c3/restore?module=nope", "module_not_found"),
        ("/v1/groups/C3/restore", "bad_request"),
        ("/v1/groups/c3/restore?listen_params=5", "bad_request"),
        ("/v1/groups/c3/restore?replica=5", "bad_request"),
    ] {
        assert_eq!(api.post(path, "sum 5").await.problem().code, code, "{path}");
    }
    let damaged = api.post("/v1/groups/c3/restore", "sun 5").await.problem();
    assert_eq!((damaged.code.as_str(), damaged.status), ("file_damaged", 422));
    // A body that ends before its declared length.
    let cut = "POST /v1/groups/c3/restore HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nsum 5";
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    stream.write_all(cut.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream.read_to_end(&mut Vec::new()).await);
    assert_eq!(api.get("/v1/groups/c3").await.problem().code, "group_not_found");
}

#[tokio::test]
async fn replies_are_bytes_and_say_their_index() {
    let api = Api::with_group().await;
    let reply = api.post("/v1/groups/c1/apply", "5").await;
    assert_eq!((reply.status, reply.text().as_str(), reply.header("statehouse-index")), (200, "5", "2"));
    let bytes = Bytes::from_static(&[0, 255, 10]);
    assert_eq!(api.call("POST", "/v1/groups/c1/apply", &[], bytes.clone()).await.body, bytes);
    let reply = api.post("/v1/groups/c1/query?consistency=local", "").await;
    assert_eq!((reply.text().as_str(), reply.header("statehouse-index")), ("5 Local None", "3"));
    assert_eq!(api.post("/v1/groups/c1/query", "").await.text(), "5 Linearizable None");
    let session = format!("7:{}", "00".repeat(16));
    assert_eq!(
        api.call("POST", "/v1/groups/c1/query", &[("Statehouse-Session", &session)], "").await.text(),
        format!("5 Linearizable Some((7, {:?}))", [0; 16])
    );
    let late = api.call("POST", "/v1/groups/c1/query", &[("Statehouse-Timeout-Ms", "1")], "never").await.problem();
    assert_eq!((late.code.as_str(), late.status), ("timeout", 504));
}

#[tokio::test]
async fn a_retry_in_a_session_is_answered_and_not_applied_again() {
    let api = Api::with_group().await;
    let opened = api.post("/v1/groups/c1/sessions", r#"{"timeout_ms":9000}"#).await;
    assert_eq!((opened.status, opened.json()["timeout_ms"].as_u64()), (201, Some(9000)));
    let (id, secret) = (opened.json()["id"].as_u64().unwrap(), opened.json()["secret"].as_str().unwrap().to_owned());
    let session = format!("{id}:{secret}");
    let apply = [("Statehouse-Session", session.as_str()), ("Statehouse-Sequence", "1")];
    let first = api.call("POST", "/v1/groups/c1/apply", &apply, "5").await;
    let second = api.call("POST", "/v1/groups/c1/apply", &apply, "5").await;
    assert_eq!((first.text(), first.header("statehouse-index")), (second.text(), second.header("statehouse-index")));
    let wrong = format!("{id}:{}", "00".repeat(16));
    let touch = format!("/v1/groups/c1/sessions/{id}/touch");
    assert_eq!(api.call("POST", &touch, &[("Statehouse-Session", &session)], "").await.status, 204);
    assert_eq!(api.call("POST", &touch, &[("Statehouse-Session", &wrong)], "").await.problem().code, "wrong_secret");
    assert!(api.call("POST", &touch, &[], "").await.problem().detail.contains("statehouse-session is missing"));
    assert!(
        api.call("POST", "/v1/groups/c1/sessions/999/touch", &[("Statehouse-Session", &session)], "")
            .await
            .problem()
            .detail
            .contains("999")
    );
    let close = format!("/v1/groups/c1/sessions/{id}");
    assert_eq!(api.call("DELETE", &close, &[("Statehouse-Session", &session)], "").await.status, 204);
    assert_eq!(
        api.call("DELETE", &close, &[("Statehouse-Session", &session)], "").await.problem().code,
        "session_not_found"
    );
}

#[tokio::test]
async fn headers_that_make_no_sense_are_named() {
    let api = Api::with_group().await;
    for (name, value, code) in [
        ("Statehouse-Sequence", "1", "bad_sequence"),
        ("Statehouse-Sequence", "x", "bad_request"),
        ("Statehouse-Session", "7", "bad_request"),
        ("Statehouse-Session", "7:abcd", "bad_request"),
        ("Statehouse-Timeout-Ms", "-1", "bad_request"),
        ("Statehouse-Timeout-Ms", "0", "bad_request"),
    ] {
        let problem = api.call("POST", "/v1/groups/c1/apply", &[(name, value)], "5").await.problem();
        assert_eq!(problem.code, code, "{name}: {value}");
        assert!(problem.detail.contains(&name.to_lowercase()), "{}", problem.detail);
    }
    assert_eq!(api.post("/v1/groups/c1/query", "").await.text(), "0 Linearizable None", "nothing was applied");
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_declared_or_streamed_and_at_the_limit_taken() {
    let api = Api::with_group().await;
    assert_eq!(api.call("POST", "/v1/groups/c1/apply", &[], vec![b'x'; 100]).await.body.len(), 100);
    // Declared: larger than any socket's buffers, and still the client sees the answer.
    for length in [101, 5 << 20] {
        let problem = api.call("POST", "/v1/groups/c1/apply", &[], vec![b'x'; length]).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (413, "too_large"));
        assert!(problem.detail.contains("100 bytes") && problem.remedy.contains("--command-bytes-max"), "{problem:?}");
    }
    // In pieces, their sum unknown before.
    let head =
        "POST /v1/groups/c1/apply HTTP/1.1\r\nhost: t\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("32\r\n{}\r\n", "y".repeat(50));
    let answer = api.raw(&format!("{head}{chunk}{chunk}0\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&"y".repeat(100)), "{answer}");
    let answer = api.raw(&format!("{head}{chunk}{chunk}{chunk}0\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("too_large"), "{answer}");
    // Asked for first: nothing is sent, nothing is waited for.
    let answer = api
        .raw("POST /v1/groups/c1/apply HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 9999999\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let long = format!(r#"{{"name":"c2","module":"counter","params":{{"x":"{}"}}}}"#, "x".repeat(1 << 20));
    assert_eq!(api.post("/v1/groups", &long).await.problem().code, "too_large");
}

#[tokio::test]
async fn what_the_libraries_refuse_is_a_problem_too() {
    let api = Api::with_group().await;
    for (method, path, body, status, code, telling) in [
        ("GET", "/v2/nothing", "", 404, "route_not_found", "/v2/nothing"),
        ("GET", "/v1/groups/c1/apply", "", 405, "method_not_allowed", "does not take GET"),
        ("PUT", "/v1/groups", "", 405, "method_not_allowed", "does not take PUT"),
        ("POST", "/v1/modules", "x", 400, "bad_request", "missing field `name`"),
        ("POST", "/v1/modules?name=a&color=red", "x", 400, "bad_request", "unknown field `color`"),
        ("POST", "/v1/groups/c1/query?consistency=quick", "", 400, "bad_request", "linearizable"),
        ("POST", "/v1/groups/c1/query?consistncy=local", "", 400, "bad_request", "consistncy"),
        ("POST", "/v1/groups/c1/apply?sequence=1", "x", 400, "bad_request", "unknown field `sequence`"),
        ("POST", "/v1/groups", "{", 400, "bad_request", "line 1"),
        ("POST", "/v1/groups", "{\"name\":\"a\"}", 400, "bad_request", "missing field `module`"),
        (
            "POST",
            "/v1/groups",
            "{\"name\":\"a\",\"module\":\"b\",\"parms\":{}}",
            400,
            "bad_request",
            "unknown field `parms`",
        ),
        ("POST", "/v1/groups", "{\"name\":\"a\",\"module\":\"b\",\"params\":3}", 400, "bad_request", "not an object"),
        ("POST", "/v1/groups/c1/sessions", "{}", 400, "bad_request", "timeout_ms"),
        ("POST", "/v1/groups/c1/sessions/x/touch", "", 400, "bad_request", "\"x\" in the path is not a number"),
        ("GET", "/v1/groups/%ff", "", 400, "bad_request", "UTF-8"),
        ("GET", "/v1/groups/c1/events?from=x", "", 400, "bad_request", "query string"),
    ] {
        let problem = api.call(method, path, &[], body).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (status, code), "{method} {path}");
        assert!(problem.detail.contains(telling), "{method} {path}: {}", problem.detail);
    }
    assert_eq!(api.call("GET", "/v1/groups/c1/apply", &[], "").await.header("allow"), "POST");
}

#[tokio::test]
async fn names_are_checked_wherever_they_come_in() {
    let api = Api::with_group().await;
    let long = "a".repeat(64);
    for name in ["", "A", "-a", ".a", "a%20b", "a%2Fb", "é", &long] {
        if !name.is_empty() {
            let problem = api.get(&format!("/v1/groups/{}", name.replace('é', "%C3%A9"))).await.problem();
            assert!(problem.detail.contains("not a group name"), "{name}: {}", problem.detail);
        }
        let problem = api
            .call("POST", &format!("/v1/modules?name={}", name.replace('é', "%C3%A9")), &[], "\0asm")
            .await
            .problem();
        assert!(
            problem.detail.contains("not a module name") && problem.remedy.contains("63"),
            "{name}: {}",
            problem.detail
        );
    }
    for name in ["a", "0", "a.b_c-d", &long[..63]] {
        assert_eq!(api.call("POST", &format!("/v1/modules?name={name}"), &[], "\0asm").await.status, 201, "{name}");
    }
    assert!(
        api.call("POST", "/v1/modules?name=check", &[], "\0asm").await.problem().detail.contains("/v1/modules/check")
    );
}

/// A page of any site can make its visitor's browser send a command to a port of the visitor's machine.
#[tokio::test]
async fn pages_of_other_sites_may_not_send_anything() {
    let api = Api::with_group().await;
    for origin in ["http://evil.example", "https://test", "null", "http://test:81"] {
        let problem = api.call("POST", "/v1/groups/c1/apply", &[("Origin", origin)], "5").await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (403, "cross_origin"), "{origin}");
        assert!(problem.detail.contains(origin), "{}", problem.detail);
    }
    assert_eq!(api.call("POST", "/v1/groups/c1/apply", &[("Origin", "http://test")], "5").await.text(), "5");
}

/// Reads the stream until its text ends with `end`.
async fn read_until(response: Response<Incoming>, end: &str) -> (String, Incoming) {
    assert_eq!(
        (response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()),
        (200, "text/event-stream")
    );
    let mut body = response.into_body();
    let mut text = String::new();
    while !text.ends_with(end) {
        let frame = body.frame().await.unwrap_or_else(|| panic!("the stream ended after {text:?}")).unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    (text, body)
}

fn event(index: u64, number: u32, data: &'static [u8]) -> EventItem {
    EventItem::Event(Event { index, number, data: Bytes::from_static(data) })
}

#[tokio::test]
async fn events_come_in_order_and_a_subscriber_goes_on_where_it_was() {
    let api = Api::start_with(|options| options.keep_alive_ms = 20).await;
    api.make_group().await;
    for item in [
        event(5, 0, b"a"),
        event(5, 1, b"b\nc"),
        EventItem::Gap { from: 6, next: 9 },
        event(9, 0, &[0xff, 0]),
        event(10, 0, b""),
    ] {
        api.fake.add_event("c1", item);
    }
    let all = "id: 5.0\ndata: a\n\nid: 5.1\ndata: b\ndata: c\n\nid: 9\nevent: gap\ndata: {\"from\":6,\"next\":9}\n\n\
               id: 9.0\nevent: hex\ndata: ff00\n\nid: 10.0\ndata: \n\n";
    // A comment follows when nothing happens: the connection is alive.
    let (text, _) = read_until(api.open("GET", "/v1/groups/c1/events?from=1", &[], "").await, ":\n\n").await;
    assert_eq!(text, format!("id: 1\n\n{all}:\n\n"));
    let (text, _) =
        read_until(api.open("GET", "/v1/groups/c1/events?from=1", &[("Last-Event-ID", "5.0")], "").await, ":\n\n")
            .await;
    assert!(text.starts_with("id: 5.0\n\nid: 5.1\n"), "{text}");
    let (text, _) =
        read_until(api.open("GET", "/v1/groups/c1/events", &[("Last-Event-ID", "9")], "").await, ":\n\n").await;
    assert!(text.starts_with("id: 9\n\nid: 9.0\n"), "{text}");
    // Without a place: from the next entry on, and the subscriber is told which that is.
    let (text, _) = read_until(api.open("GET", "/v1/groups/c1/events", &[], "").await, ":\n\n").await;
    assert!(text.starts_with("id: 2\n\n"), "{text}");
    for bad in ["x", "5.", ".1", "5.18446744073709551615"] {
        assert!(
            api.call("GET", "/v1/groups/c1/events", &[("Last-Event-ID", bad)], "")
                .await
                .problem()
                .detail
                .contains("Last-Event-ID"),
            "{bad}"
        );
    }
    assert_eq!(api.get("/v1/groups/c9/events").await.problem().code, "group_not_found");
}

#[tokio::test]
async fn the_node_says_how_it_is() {
    let api = Api::start().await;
    assert_eq!(api.get("/healthz").await.text(), "ok\n");
    assert_eq!(api.get("/readyz").await.text(), "ready\n");
    assert_eq!(api.get("/v1/node").await.json()["node"], 4);
    assert_eq!(api.get("/v1/node/counters").await.json()["syncs"], 7);
    api.fake.set_ready(false);
    let problem = api.get("/readyz").await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (503, "unavailable"));
    assert!(problem.detail.contains("group c1 has no leader; the catalog catches up"), "{}", problem.detail);
    let verbose = api.get("/readyz?verbose").await;
    assert_eq!((verbose.status, verbose.json()["reasons"].as_array().unwrap().len()), (503, 2));
    assert_eq!(api.get("/healthz").await.status, 200, "not ready is not dead");
    let metrics = api.get("/metrics").await.text();
    assert!(
        metrics.contains("fake 1\n")
            && metrics.contains("statehouse_http_requests_total{kind=\"other\",status=\"2xx\"}"),
        "{metrics}"
    );
    assert_eq!(metrics.matches("# EOF").count(), 1);
}

/// `list`, `show` and `remove` were each the name of two operations, of groups and of modules: generators refuse such a document.
#[test]
fn each_operation_of_the_openapi_document_has_a_name_of_its_own() {
    let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
    let items = document["paths"].as_object().unwrap().values();
    let mut names: Vec<&str> = items
        .flat_map(|item| item.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!((all > 20, names.len()), (true, all));
}

/// Commands, replies, modules and snapshots were arrays of int32 in the document: a generated client would have sent a JSON list of
/// numbers to the module. JSON bodies are schemas, everything else is text or bytes as they are.
#[test]
fn the_bodies_of_the_openapi_document_are_what_is_sent() {
    let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
    let mut bytes = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let asked = operation.get("requestBody").into_iter();
            for body in asked.chain(operation["responses"].as_object().unwrap().values()) {
                let Some(content) = body.get("content") else { continue };
                for (kind, media) in content.as_object().unwrap() {
                    let schema = &media["schema"];
                    let told = (schema["type"].as_str(), schema["format"].as_str());
                    match kind.as_str() {
                        "application/octet-stream" | "application/wasm" => {
                            assert_eq!(told, (Some("string"), Some("binary")), "{method} {path}: {media}");
                            bytes += 1;
                        }
                        "text/plain" | "text/event-stream" | "application/openmetrics-text" => {
                            assert_eq!(told.0, Some("string"), "{method} {path}")
                        }
                        "application/json" | "application/problem+json" => {
                            assert!(
                                schema.get("$ref").is_some() || told.0 == Some("object"),
                                "{method} {path}: {media}"
                            );
                        }
                        other => panic!("{method} {path} has a body of {other}"),
                    }
                }
            }
        }
    }
    assert!(bytes >= 9, "apply and query there and back, three modules, a snapshot there and back: {bytes}");
}

/// The page of metrics was told of as `text/plain`, and so was the JSON of `/readyz?verbose`.
#[tokio::test]
async fn what_a_page_is_of_is_what_the_openapi_document_says() {
    let api = Api::start().await;
    let document = api.get("/openapi.json").await.json();
    for path in
        ["/healthz", "/readyz", "/readyz?verbose", "/metrics", "/openapi.json", "/v1/node", "/v1/status", "/v1/modules"]
    {
        let answer = api.get(path).await;
        let path = path.split('?').next().unwrap();
        let kind = answer.header("content-type").split(';').next().unwrap();
        let described = &document["paths"][path]["get"]["responses"]["200"]["content"];
        assert!(described.get(kind).is_some(), "{path} is {kind}, and described as {described}");
    }
}

/// A generator stops at the first name that leads nowhere, and makes calls with `{name}` in them of a parameter that is not declared.
#[test]
fn whatever_the_openapi_document_names_is_in_it() {
    fn references<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(serde_json::Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50, "{}", found.len());
    for reference in found {
        let place = reference.strip_prefix('#').unwrap_or("/elsewhere");
        assert!(document.pointer(place).is_some(), "{reference} leads nowhere");
    }
    for (path, item) in document["paths"].as_object().unwrap() {
        let mut in_path: Vec<&str> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        in_path.sort_unstable();
        for (method, operation) in item.as_object().unwrap() {
            let parameters = operation.get("parameters").and_then(serde_json::Value::as_array);
            let parameters = parameters.into_iter().flatten().filter(|parameter| parameter["in"] == "path");
            let mut declared: Vec<&str> = parameters
                .inspect(|parameter| assert_eq!(parameter["required"], true, "{method} {path}"))
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            declared.sort_unstable();
            assert_eq!(declared, in_path, "{method} {path}");
            // A generated client took a sequence number for something that may be null, and could not send it.
            for parameter in operation.get("parameters").and_then(serde_json::Value::as_array).into_iter().flatten() {
                assert!(parameter["schema"]["type"].is_string(), "{method} {path}: {parameter}");
            }
        }
    }
}

#[tokio::test]
async fn the_openapi_document_has_every_route_and_no_other() {
    let api = Api::start().await;
    let document = api.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    let mut served = Vec::new();
    for (path, _) in routes() {
        // What the server answers to a method it does not take is the truth about which it takes.
        let concrete = path.replace("{name}", "a").replace("{id}", "1");
        let allow = api.call("PATCH", &concrete, &[], "").await;
        assert_eq!(allow.status, 405, "{path}");
        let methods = allow
            .header("allow")
            .split(',')
            .filter(|method| *method != "HEAD")
            .map(|method| format!("{} {path}", method.to_lowercase()));
        served.extend(methods);
    }
    let mut described: Vec<String> = paths
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| format!("{method} {path}")))
        .collect();
    served.sort();
    described.sort();
    assert_eq!(served, described);
    assert!(document["components"]["schemas"]["Problem"]["properties"]["code"].is_object());
    assert!(document["components"]["schemas"]["Group"]["properties"]["applied"].is_object());
}

/// A change is begun, asked for and given up; the record says the same everywhere.
#[tokio::test]
async fn changes_of_membership_have_a_record_each() {
    let api = Api::with_group().await;
    let begun = api.call("POST", "/v1/groups/c1/members", &[], r#"{"node":4,"learner":true}"#).await;
    assert_eq!((begun.status, begun.header("location")), (202, "/v1/changes/1"));
    let begun = begun.json();
    assert_eq!((&begun["state"], &begun["group"]), (&"running".into(), &"c1".into()));
    assert_eq!(begun["change"], "add node 4 to group c1 as a learner");
    assert_eq!(api.get("/v1/changes/1").await.json(), begun);
    let given_up = api.call("DELETE", "/v1/changes/1", &[], "").await.json();
    assert_eq!((&given_up["state"], &given_up["code"]), (&"failed".into(), &"cancelled".into()));
    let again = api.call("DELETE", "/v1/changes/1", &[], "").await;
    assert_eq!((again.status, again.problem().code.as_str()), (404, "change_not_found"));

    for (method, path, body, words) in [
        ("POST", "/v1/nodes", r#"{"node":4}"#, "add node 4"),
        ("DELETE", "/v1/nodes/4", "", "remove node 4"),
        ("POST", "/v1/groups/c1/members/4/promote", "", "promote node 4 in group c1"),
        ("DELETE", "/v1/groups/c1/members/4", "", "remove node 4 from group c1"),
        ("POST", "/v1/groups/c1/move", r#"{"from":1,"to":4}"#, "move group c1 from node 1 to node 4"),
    ] {
        let begun = api.call(method, path, &[], body).await;
        assert_eq!((begun.status, begun.json()["change"].as_str()), (202, Some(words)), "{method} {path}");
        let done = api.get(&format!("{}?wait_ms=10", begun.header("location"))).await;
        assert_eq!(done.json()["state"], "done");
    }
    assert_eq!(api.get("/v1/changes").await.json()["changes"].as_array().unwrap().len(), 6);
    let refused = api.call("DELETE", "/v1/nodes/1", &[], "").await;
    assert_eq!((refused.status, refused.problem().code.as_str()), (409, "last_voter"));
    assert_eq!(api.call("DELETE", "/v1/nodes/x", &[], "").await.status, 400);
    assert_eq!(api.call("POST", "/v1/groups/c1/members", &[], r#"{"nodes":4}"#).await.status, 400);
    assert_eq!(api.get("/v1/nodes").await.json()["nodes"][1]["role"], "learner");
    assert_eq!(api.get("/v1/groups/c1/members").await.json()["members"][0]["role"], "voter");
    let said = api.call("POST", "/v1/nodes/2/priority", &[], r#"{"priority":0}"#).await;
    assert_eq!((said.status, &said.json()["priority"]), (200, &0.into()));
    for (path, body, status) in [
        ("/v1/nodes/2/priority", r#"{"priority":null}"#, 200),
        ("/v1/nodes/9/priority", r#"{"priority":1}"#, 404),
        ("/v1/nodes/2/priority", r#"{"priority":256}"#, 400),
        ("/v1/nodes/2/priority", r#"{"prio":1}"#, 400),
    ] {
        assert_eq!(api.call("POST", path, &[], body).await.status, status, "{path} {body}");
    }
    let moved = api.call("POST", "/v1/groups/c1/leader", &[], r#"{"to":3}"#).await;
    assert_eq!((moved.status, &moved.json()["leader"]), (200, &3.into()));
}

#[tokio::test]
async fn going_down_answers_what_runs_ends_streams_and_takes_nothing_new() {
    let api = Api::with_group().await;
    let (_, mut stream) = read_until(api.open("GET", "/v1/groups/c1/events", &[], "").await, "\n\n").await;
    // This request has begun: its head is written and the service works on it.
    let mut running = TcpStream::connect(api.address).await.unwrap();
    running.write_all(b"POST /v1/groups/c1/apply HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nwait").await.unwrap();
    // It and the one that asks.
    let both = "statehouse_http_requests_in_flight 2.0\n";
    let mut asked = 0;
    while !api.get("/metrics").await.text().contains(both) {
        asked += 1;
        assert!(asked < 10_000, "the request never began");
    }
    let Api { server, fake, address } = api;
    let down = tokio::spawn(server.shutdown(Duration::from_secs(30)));
    // Only when the stream has ended is the server known to be on its way down.
    assert!(stream.frame().await.is_none(), "the event stream ended");
    assert!(!down.is_finished(), "a request still runs");
    fake.release();
    down.await.unwrap();
    let mut answer = String::new();
    running.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("waited"), "{answer}");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_their_turn() {
    let api = Api::start_with(|options| options.connections_max = 1).await;
    let mut first = TcpStream::connect(api.address).await.unwrap();
    first.write_all(b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    let mut begin = [0; 15];
    first.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200 OK");
    let second = tokio::spawn({
        let address = api.address;
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    });
    // The first connection still is served, on the same connection; the second is not.
    first.write_all(b"GET /healthz HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(!second.is_finished());
    let mut rest = String::new();
    first.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("ok\n"), "{rest}");
    assert!(second.await.unwrap().starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_sends_half_a_head_is_cut_off() {
    let api = Api::start_with(|options| options.header_timeout_ms = 30).await;
    assert_eq!(api.raw("GET /healthz HTTP/1.1\r\nho").await, "");
}

#[tokio::test]
async fn what_is_no_http_at_all_is_answered_and_closed() {
    let api = Api::start().await;
    assert!(api.raw("\u{16}\u{3}\u{1} hello\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert_eq!(api.get("/healthz").await.status, 200);
}
