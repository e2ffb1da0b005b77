//! What handlers take out of a request: names, sessions, bodies within a limit. Everything that can be
//! wrong with these becomes a [`Problem`] here, in one style.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::body::HttpBody;
use axum::extract::FromRequestParts;
use axum::extract::RawPathParams;
use bytes::Bytes;
use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::Uri;
use hyper::header;
use hyper::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::problem::Problem;
use crate::service::ErrorCode;
use crate::service::FileStream;

/// Session id and secret: `ID:SECRET`.
pub const SESSION: &str = "statehouse-session";
/// The command's number in the session.
pub const SEQUENCE: &str = "statehouse-sequence";
/// How long the client waits, milliseconds.
pub const TIMEOUT: &str = "statehouse-timeout-ms";

/// How many bytes of a body that is over its limit are read and dropped, so that a client that only
/// reads after it wrote still gets to see the answer.
const DRAIN_BYTES_MAX: u64 = 64 << 20;
/// … and for how long.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// The longest pause within a body.
const BODY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The largest JSON document the API takes.
pub const JSON_BYTES_MAX: u64 = 1 << 20;

/// Checks a module's or group's name: 1 to 63 of `a-z 0-9 . _ -`, the first a letter or digit.
pub fn check_name(what: &str, name: &str) -> Result<(), Box<Problem>> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let all = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte));
    if first && all && name.len() <= 63 {
        return Ok(());
    }
    let mut problem =
        Problem::bad_request(format!("{:?} is not a {what} name", name.chars().take(80).collect::<String>()));
    problem.remedy =
        "a name is 1 to 63 characters of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit".into();
    Err(problem)
}

/// The `{name}` of the path.
#[derive(Debug)]
pub struct Name(pub String);

/// The `{id}` of the path.
#[derive(Debug)]
pub struct Id(pub u64);

async fn path_param<S: Send + Sync>(parts: &mut Parts, state: &S, wanted: &str) -> Result<String, Box<Problem>> {
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|error| Problem::bad_request(error.body_text()))?;
    let found = params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned());
    found.ok_or_else(|| Problem::new(ErrorCode::Internal, format!("this route has no {{{wanted}}}")))
}

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Box<Problem>;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Box<Problem>> {
        let name = path_param(parts, state, "name").await?;
        check_name(if parts.uri.path().starts_with("/v1/modules") { "module" } else { "group" }, &name)?;
        Ok(Self(name))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Box<Problem>;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Box<Problem>> {
        let id = path_param(parts, state, "id").await?;
        id.parse().map(Self).map_err(|_| Problem::bad_request(format!("{id:?} in the path is not a number")))
    }
}

/// The query string as `T`; unknown keys are errors where `T` says so.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Box<Problem>;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Box<Problem>> {
        parse_query(&parts.uri).map(Self)
    }
}

/// No query string: what is put there is not ignored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

fn parse_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Box<Problem>> {
    match axum::extract::Query::<T>::try_from_uri(uri) {
        Ok(query) => Ok(query.0),
        Err(error) => Err(Problem::bad_request(format!("the query string does not fit: {}", root_cause(&error)))),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

fn number(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, Box<Problem>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| Problem::bad_request(format!("the header {name} is {value:?}, not a number")))
}

/// The header `Statehouse-Session`: id and secret.
pub fn session(headers: &HeaderMap) -> Result<Option<(u64, [u8; 16])>, Box<Problem>> {
    let Some(value) = headers.get(SESSION) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse_session);
    // The secret is not repeated: answers end up in logs.
    parsed.map(Some).ok_or_else(|| {
        Problem::bad_request("the header statehouse-session is not ID:SECRET, a number and 32 hexadecimal digits")
    })
}

/// Reads `ID:SECRET`.
pub fn parse_session(text: &str) -> Option<(u64, [u8; 16])> {
    let (id, secret) = text.trim().split_once(':')?;
    let mut bytes = [0; 16];
    hex::decode_to_slice(secret, &mut bytes).ok()?;
    Some((id.parse().ok()?, bytes))
}

/// The header `Statehouse-Sequence`.
pub fn sequence(headers: &HeaderMap) -> Result<Option<u64>, Box<Problem>> {
    number(headers, SEQUENCE)
}

/// The header `Statehouse-Timeout-Ms`.
pub fn timeout_ms(headers: &HeaderMap) -> Result<Option<u64>, Box<Problem>> {
    match number(headers, TIMEOUT)? {
        Some(0) => {
            Err(Problem::bad_request("the header statehouse-timeout-ms is 0: give it at least 1, or leave it out"))
        }
        other => Ok(other),
    }
}

/// Reads a body of at most `limit` bytes. Not more than the limit is ever held; a longer body is
/// refused at its declared length or at the byte that is too many. A body that came in one piece, as
/// commands do, is not copied.
pub async fn read_body(headers: &HeaderMap, mut body: Body, limit: u64, setting: &str) -> Result<Bytes, Box<Problem>> {
    if body.size_hint().lower() > limit {
        // Who asked first (`Expect: 100-continue`) has not sent anything yet.
        if !headers.contains_key(header::EXPECT) {
            drain(&mut body).await;
        }
        return Err(Problem::too_large(limit, setting));
    }
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout(BODY_PAUSE_MAX, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                return Err(Problem::bad_request(format!("the body broke off: {}", root_cause(&error))));
            }
            Err(_) => {
                return Err(Problem::new(
                    ErrorCode::Timeout,
                    format!("no byte of the body came for {} s", BODY_PAUSE_MAX.as_secs()),
                ));
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        let length = first.len() as u64 + rest.len() as u64 + data.len() as u64;
        if length > limit {
            drop((first, rest));
            drain(&mut body).await;
            return Err(Problem::too_large(limit, setting));
        }
        if first.is_empty() && rest.is_empty() {
            // A copy: what came is a view of the connection's read buffer, and a command is kept for long.
            first = Bytes::copy_from_slice(&data);
        } else {
            if rest.is_empty() {
                rest.reserve(usize::try_from(body.size_hint().lower().max(length)).unwrap_or(0));
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// A body of any length, as it comes; and what reads the rest of it, so that a client that only reads after it wrote gets to see
/// the answer.
pub fn stream_body(body: Body) -> (FileStream, impl Future<Output = ()> + Send) {
    let shared = Arc::new(Mutex::new(body));
    let rest = shared.clone();
    let pieces = stream::unfold(Some(shared), |shared| async move {
        let shared = shared?;
        let broke = loop {
            let mut body = shared.lock().await;
            match tokio::time::timeout(BODY_PAUSE_MAX, body.frame()).await {
                Ok(None) => return None,
                Ok(Some(Ok(frame))) => {
                    drop(body);
                    if let Ok(data) = frame.into_data() {
                        return Some((Ok(data), Some(shared)));
                    }
                }
                Ok(Some(Err(error))) => break root_cause(&error),
                Err(_) => break format!("no byte came for {} s", BODY_PAUSE_MAX.as_secs()),
            }
        };
        Some((Err(std::io::Error::other(broke)), None))
    });
    (pieces.boxed(), async move { drain(&mut *rest.lock().await).await })
}

async fn drain(body: &mut Body) {
    let drained = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(less) = left.checked_sub(length) else { break };
            left = less;
        }
    };
    // What is not read within the time closes the connection instead.
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, drained).await;
}

/// Reads a JSON body.
pub async fn read_json<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Box<Problem>> {
    let bytes = read_body(headers, body, JSON_BYTES_MAX, "").await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Problem::bad_request(format!("the body is not the JSON that is expected here: {error}")))
}
