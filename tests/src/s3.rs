//! A small S3-compatible server for tests: one bucket in memory, with what a backup asks of one. It checks every signature
//! (AWS Signature Version 4) by itself, and none of it is the host's code.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;

use sha2::Digest;
use sha2::Sha256;

/// The key that the server knows, and its secret.
pub const KEY: (&str, &str) = ("test-key", "test-secret");
/// The region it is in.
pub const REGION: &str = "eu-test-1";
/// Its bucket.
pub const BUCKET: &str = "bucket";

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    /// How many uploads were begun.
    begun: usize,
    /// What is answered to writes from now on, if not success.
    refusal: Option<u16>,
    refused_signatures: usize,
}

/// The server; its thread ends with the process.
#[derive(Clone, Debug)]
pub struct S3 {
    /// Where it is.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn hmac(key: &[u8], data: &str) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(data).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits: Vec<u8> = rest.by_ref().take(2).collect();
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl Request {
    fn read(stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let query = pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (decode(key), decode(value)));
        let (path, query) = (path.to_owned(), query.collect());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        Some(Self { method, path, query, headers, body })
    }

    fn is_signed(&self) -> bool {
        let Some(told) = self.headers.get("authorization").and_then(|text| text.strip_prefix("AWS4-HMAC-SHA256 "))
        else {
            return false;
        };
        let parts: BTreeMap<&str, &str> = told.split(',').filter_map(|part| part.trim().split_once('=')).collect();
        let header = |name: &str| self.headers.get(name).map_or("", String::as_str);
        let content = header("x-amz-content-sha256");
        if content != hex(&Sha256::digest(&self.body)) {
            return false;
        }
        let names = parts["SignedHeaders"];
        let headers: String = names.split(';').map(|name| format!("{name}:{}\n", header(name))).collect();
        let query: Vec<String> =
            self.query.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
        let canonical = format!("{}\n{}\n{}\n{headers}\n{names}\n{content}", self.method, self.path, query.join("&"));
        let time = header("x-amz-date");
        let scope = format!("{}/{REGION}/s3/aws4_request", &time[..8]);
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
        let mut key = format!("AWS4{}", KEY.1).into_bytes();
        for part in [&time[..8], REGION, "s3", "aws4_request"] {
            key = hmac(&key, part);
        }
        parts["Credential"] == format!("{}/{scope}", KEY.0) && parts["Signature"] == hex(&hmac(&key, &text))
    }
}

impl S3 {
    /// Starts the server on a free port of loopback.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let accepting = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (accepting.clone(), stream.unwrap());
                std::thread::spawn(move || server.serve(stream));
            }
        });
        server
    }

    /// The names of its objects.
    pub fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
    }

    /// How many large objects were begun, and how many are neither finished nor given up.
    pub fn uploads(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.begun, state.uploads.len())
    }

    /// Flips a bit of an object.
    pub fn damage(&self, name: &str) {
        let mut state = self.state.lock().unwrap();
        let object = state.objects.get_mut(name).unwrap();
        let middle = object.len() / 2;
        object[middle] ^= 1;
    }

    /// From now on objects cannot be written, or can again.
    pub fn refuse_writes(&self, status: Option<u16>) {
        self.state.lock().unwrap().refusal = status;
    }

    /// How many requests were not signed as they must be.
    pub fn refused_signatures(&self) -> usize {
        self.state.lock().unwrap().refused_signatures
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some(request) = Request::read(&mut reader) {
            let (status, headers, body) = self.answer(&request);
            let length = if request.method == "HEAD" && status == 200 { None } else { Some(body.len()) };
            let length = length.map(|length| format!("content-length: {length}\r\n")).unwrap_or_default();
            let head = format!("HTTP/1.1 {status} X\r\n{length}{headers}\r\n");
            let body: &[u8] = if request.method == "HEAD" { b"" } else { &body };
            if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> (u16, String, Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        let fail = |status: u16, code: &str| {
            (status, String::new(), format!("<Error><Code>{code}</Code></Error>").into_bytes())
        };
        let done = |body: String| (200, "etag: \"e\"\r\n".to_owned(), body.into_bytes());
        if !request.is_signed() {
            state.refused_signatures += 1;
            return fail(403, "SignatureDoesNotMatch");
        }
        let path = decode(&request.path);
        let Some(rest) = path.strip_prefix(&format!("/{BUCKET}")) else { return fail(404, "NoSuchBucket") };
        let key = rest.trim_start_matches('/').to_owned();
        let query = |name: &str| request.query.get(name).map(String::as_str);
        if let (true, Some(status)) = (matches!(request.method.as_str(), "PUT" | "POST"), state.refusal) {
            return fail(status, "AccessDenied");
        }
        match (request.method.as_str(), query("uploadId")) {
            ("GET", _) if key.is_empty() => {
                done(list(&state.objects, query("prefix").unwrap_or(""), query("delimiter")))
            }
            ("POST", None) if query("uploads").is_some() => {
                state.begun += 1;
                let id = format!("upload-{}", state.begun);
                state.uploads.insert(id.clone(), BTreeMap::new());
                done(format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            ("PUT", Some(id)) => match state.uploads.get_mut(id) {
                Some(parts) => {
                    parts.insert(query("partNumber").unwrap().parse().unwrap(), request.body.clone());
                    done(String::new())
                }
                None => fail(404, "NoSuchUpload"),
            },
            ("POST", Some(id)) => match state.uploads.remove(id) {
                Some(parts) => {
                    state.objects.insert(key, parts.into_values().flatten().collect());
                    done("<CompleteMultipartUploadResult><ETag>\"e\"</ETag></CompleteMultipartUploadResult>".to_owned())
                }
                None => fail(404, "NoSuchUpload"),
            },
            ("DELETE", Some(id)) => {
                state.uploads.remove(id);
                (204, String::new(), Vec::new())
            }
            ("PUT", None) => {
                state.objects.insert(key, request.body.clone());
                done(String::new())
            }
            ("DELETE", None) => {
                state.objects.remove(&key);
                (204, String::new(), Vec::new())
            }
            ("GET" | "HEAD", None) => match state.objects.get(&key) {
                Some(object) => {
                    let mut headers = "etag: \"e\"\r\nlast-modified: Sun, 22 Nov 2026 08:00:00 GMT\r\n".to_owned();
                    if request.method == "HEAD" {
                        headers.push_str(&format!("content-length: {}\r\n", object.len()));
                    }
                    (200, headers, object.clone())
                }
                None => fail(404, "NoSuchKey"),
            },
            _ => fail(501, "NotImplemented"),
        }
    }
}

fn list(objects: &BTreeMap<String, Vec<u8>>, prefix: &str, delimiter: Option<&str>) -> String {
    let mut body = String::from("<ListBucketResult><IsTruncated>false</IsTruncated>");
    let mut folders = std::collections::BTreeSet::new();
    for (key, object) in objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
        match delimiter.and_then(|delimiter| key[prefix.len()..].split_once(delimiter)) {
            Some((folder, _)) => {
                folders.insert(format!("{prefix}{folder}/"));
            }
            None => body.push_str(&format!(
                "<Contents><Key>{key}</Key><LastModified>2026-11-22T08:00:00.000Z</LastModified><ETag>\"e\"</ETag><Size>{}</Size></Contents>",
                object.len()
            )),
        }
    }
    for folder in folders {
        body.push_str(&format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"));
    }
    body + "</ListBucketResult>"
}
