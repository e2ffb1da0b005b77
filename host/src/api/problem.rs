//! Errors as clients see them: `application/problem+json` (RFC 9457) with a stable `code`.
//!
//! A handler answers `Result<_, Box<Problem>>`. The problem travels to the edge of the server in the
//! response's extensions; [`render`] writes the body there, where the request's path is known, and
//! also gives one to whatever error the libraries below answered on their own.

use axum::response::IntoResponse;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header;
use hyper::header::HeaderValue;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::service::ErrorCode;
use crate::service::ServiceError;

/// The content type of every error.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// What went wrong and what to do about it (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:statehouse:problem:` and the code.
    pub r#type: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// A stable word that programs may rely on.
    pub code: String,
    /// What happened, to which module, group or index.
    pub detail: String,
    /// What the caller can do, one sentence.
    pub remedy: String,
    /// A finer stable word where there is one: why the upload gate refused, how the module trapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The log index the outcome belongs to, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The path of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
}

impl Problem {
    fn build(code: &str, status: u16, title: &str, detail: String, remedy: &str) -> Box<Self> {
        Box::new(Self {
            r#type: format!("urn:statehouse:problem:{code}"),
            title: title.to_owned(),
            status,
            code: code.to_owned(),
            detail,
            remedy: remedy.to_owned(),
            reason: None,
            index: None,
            instance: String::new(),
        })
    }

    /// A problem of one of the service's codes.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Box<Self> {
        Self::build(code.as_str(), code.status(), title(code), detail.into(), code.remedy())
    }

    /// The request is malformed: `detail` says which part of it and how.
    pub fn bad_request(detail: impl Into<String>) -> Box<Self> {
        Self::new(ErrorCode::BadRequest, detail)
    }

    /// The body is over `limit` bytes.
    pub fn too_large(limit: u64, setting: &str) -> Box<Self> {
        let mut problem =
            Self::new(ErrorCode::TooLarge, format!("the body is larger than this node's limit of {limit} bytes"));
        problem.remedy = if setting.is_empty() {
            "send less".to_owned()
        } else {
            format!("send less, or start the nodes with a larger --{setting}")
        };
        problem
    }

    /// No route has this path.
    pub fn no_route(path: &str) -> Box<Self> {
        Self::build(
            "route_not_found",
            404,
            "No such path",
            format!("there is nothing at {path}"),
            "/openapi.json lists the paths",
        )
    }

    /// A browser sends this for a page of another site.
    pub fn cross_origin(origin: &str) -> Box<Self> {
        Self::build(
            "cross_origin",
            403,
            "Not for other sites' pages",
            format!("a page of {origin:?} made this request, and pages of other sites may not"),
            "send it from a program, or from a page of this address: without the header Origin",
        )
    }

    /// The route does not take this method.
    pub fn no_method(method: &str, path: &str) -> Box<Self> {
        Self::build(
            "method_not_allowed",
            405,
            "The path does not take this method",
            format!("{path} does not take {method}"),
            "the header Allow lists the methods it takes",
        )
    }
}

impl From<ServiceError> for Box<Problem> {
    fn from(error: ServiceError) -> Self {
        let mut problem = Problem::new(error.code, error.detail);
        (problem.reason, problem.index) = (error.reason, error.index);
        problem
    }
}

impl IntoResponse for Box<Problem> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the problem that a handler left in `response`, or makes one for an error that has none.
pub fn render(method: &str, path: &str, mut response: Response) -> Response {
    let mut problem = match response.extensions_mut().remove::<Box<Problem>>() {
        Some(problem) => problem,
        None if response.status().as_u16() < 400 || is_json(&response) => return response,
        None => match response.status() {
            StatusCode::NOT_FOUND => Problem::no_route(path),
            StatusCode::METHOD_NOT_ALLOWED => Problem::no_method(method, path),
            status if status.is_client_error() => Problem::bad_request(format!("the request was refused: {status}")),
            status => Problem::new(ErrorCode::Internal, format!("the request failed: {status}")),
        },
    };
    let status = response.status();
    (problem.instance, problem.status) = (path.to_owned(), status.as_u16());
    let allow = response.headers_mut().remove(header::ALLOW);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
    if let Some(allow) = allow {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    if let Some(index) = problem.index {
        response.headers_mut().insert(super::INDEX, HeaderValue::from(index));
    }
    if problem.code == ErrorCode::Overloaded.as_str() || problem.code == ErrorCode::NoLeader.as_str() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The libraries answer their errors in plain text: what is JSON is a handler's own.
fn is_json(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json")
}

fn title(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::BadRequest => "The request is malformed",
        ErrorCode::Rejected => "The module refused it",
        ErrorCode::Trapped => "The module was stopped",
        ErrorCode::ModuleRefused => "The module was refused",
        ErrorCode::TooLarge => "The body is too large",
        ErrorCode::ModuleNotFound => "No such module",
        ErrorCode::GroupNotFound => "No such group",
        ErrorCode::AlreadyExists => "The name is taken",
        ErrorCode::ModuleInUse => "The module is in use",
        ErrorCode::SessionNotFound => "No such session",
        ErrorCode::SessionMoved => "The session is held by another",
        ErrorCode::WrongSecret => "Wrong session secret",
        ErrorCode::SequenceTooOld => "The sequence number is too old",
        ErrorCode::BadSequence => "The sequence number is not the next one",
        ErrorCode::NoLeader => "No leader",
        ErrorCode::Overloaded => "Overloaded",
        ErrorCode::OutcomeUnknown => "The outcome is unknown",
        ErrorCode::Timeout => "Out of time",
        ErrorCode::DiskFull => "The disk is full",
        ErrorCode::GroupStopped => "The group has stopped",
        ErrorCode::Unavailable => "Not available",
        ErrorCode::Internal => "A fault of the host",
        ErrorCode::NodeNotFound => "No such node",
        ErrorCode::MemberNotFound => "No such member",
        ErrorCode::ChangeNotFound => "No such change",
        ErrorCode::ChangeInProgress => "Another change is running",
        ErrorCode::LastVoter => "It is the last voter",
        ErrorCode::NotCaughtUp => "The learner lags behind",
        ErrorCode::Cancelled => "The change was cancelled",
        ErrorCode::Forbidden => "The node does not allow it",
        ErrorCode::FileDamaged => "The file is damaged",
    }
}
