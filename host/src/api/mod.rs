//! The HTTP API: a [`Service`] on a TCP port. It knows nothing of the node below that trait.
//!
//! - `server.rs` accepts connections, counts requests, and lets replies out on the way down; `patient.rs` gives up clients that
//!   take nothing.
//! - `request.rs` and `problem.rs` are the edges of every handler: what it takes, how it fails.
//! - `modules.rs`, `groups.rs`, `membership.rs`, `commands.rs`, `sessions.rs`, `events.rs`, `files.rs`, `status.rs` hold the handlers.
//! - `schema.rs` and `openapi.rs` are what clients may rely on.
//!
//! The path of a command is kept short: its bytes are taken from the connection's buffer and given
//! to the service as they are, and so is the reply.
//!
//! This is the edge of the program, where clocks, sockets and tasks are the machine's own.
#![allow(clippy::disallowed_methods)]

mod commands;
mod events;
#[cfg(test)]
pub(crate) mod fake;
mod files;
mod groups;
mod membership;
mod modules;
mod openapi;
mod patient;
pub mod problem;
pub mod request;
pub mod schema;
mod server;
mod sessions;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::MethodRouter;
use axum::routing::delete;
use axum::routing::get;
use axum::routing::post;
use axum::routing::put;
use hyper::HeaderMap;
use hyper::StatusCode;
use hyper::header;
use serde::Serialize;
use tokio::sync::watch;

pub use self::openapi::document;
pub use self::server::ApiServer;
pub use self::server::serve;
use crate::config::ServeConfig;
use crate::observe::HttpMetrics;
use crate::service::Service;

/// The log index an answer belongs to.
pub const INDEX: &str = "statehouse-index";
/// The digest of a snapshot file.
pub const DIGEST: &str = "statehouse-digest";

/// What the API is told.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// The largest command or query, bytes.
    pub command_bytes_max: u64,
    /// The largest module, bytes.
    pub module_bytes_max: u64,
    /// How long a query may take when the request does not say so, milliseconds.
    pub request_timeout_ms: u64,
    /// How many connections are served at once.
    pub connections_max: u64,
    /// How long a client may take for a request's headers, milliseconds.
    pub header_timeout_ms: u64,
    /// After how long without an event a subscriber gets a comment, milliseconds: it keeps proxies from
    /// closing the connection, and shows a dead one.
    pub keep_alive_ms: u64,
}

impl From<&ServeConfig> for ApiOptions {
    fn from(config: &ServeConfig) -> Self {
        Self {
            command_bytes_max: config.command_bytes_max,
            module_bytes_max: config.module_bytes_max,
            request_timeout_ms: config.request_timeout_ms,
            connections_max: config.http_connections_max,
            header_timeout_ms: config.http_header_timeout_ms,
            keep_alive_ms: 15_000,
        }
    }
}

/// What every handler sees.
struct Context {
    service: Arc<dyn Service>,
    options: ApiOptions,
    metrics: HttpMetrics,
    /// Turns true when the server goes down: streams end then.
    stopping: watch::Receiver<bool>,
}

type Shared = Arc<Context>;

/// Every path and its methods. The test of the OpenAPI document goes through this list.
fn routes() -> Vec<(&'static str, MethodRouter<Shared>)> {
    vec![
        ("/v1/modules", get(modules::list).post(modules::add)),
        ("/v1/modules/check", post(modules::check)),
        ("/v1/modules/{name}", get(modules::show).delete(modules::remove)),
        ("/v1/modules/{name}/file", get(modules::file)),
        ("/v1/groups", get(groups::list).post(groups::create)),
        ("/v1/groups/{name}", get(groups::show).delete(groups::remove)),
        ("/v1/groups/{name}/digest", get(groups::digest)),
        ("/v1/groups/{name}/module", put(groups::change_module)),
        ("/v1/groups/{name}/module/try", post(groups::try_module)),
        ("/v1/groups/{name}/snapshot", get(files::save).post(groups::snapshot)),
        ("/v1/groups/{name}/restore", post(files::restore)),
        (
            "/v1/groups/{name}/members",
            get(membership::members).post(membership::add_member).put(membership::set_members),
        ),
        ("/v1/groups/{name}/members/{id}", delete(membership::remove_member)),
        ("/v1/groups/{name}/members/{id}/promote", post(membership::promote_member)),
        ("/v1/groups/{name}/members/{id}/demote", post(membership::demote_member)),
        ("/v1/groups/{name}/move", post(membership::move_group)),
        ("/v1/groups/{name}/leader", post(membership::transfer)),
        ("/v1/groups/{name}/apply", post(commands::apply)),
        ("/v1/groups/{name}/query", post(commands::query)),
        ("/v1/groups/{name}/events", get(events::subscribe)),
        ("/v1/groups/{name}/sessions", post(sessions::open)),
        ("/v1/groups/{name}/sessions/{id}", delete(sessions::close)),
        ("/v1/groups/{name}/sessions/{id}/touch", post(sessions::touch)),
        ("/v1/leaders/balance", post(membership::balance)),
        ("/v1/nodes", get(membership::nodes).post(membership::add_node)),
        ("/v1/nodes/{id}", delete(membership::remove_node)),
        ("/v1/nodes/{id}/demote", post(membership::demote_node)),
        ("/v1/nodes/{id}/priority", post(membership::set_priority)),
        ("/v1/changes", get(membership::changes)),
        ("/v1/changes/{id}", get(membership::change).delete(membership::cancel)),
        ("/v1/status", get(status::cluster)),
        ("/v1/doctor", get(status::doctor)),
        ("/v1/node", get(status::node)),
        ("/v1/node/counters", get(status::counters)),
        ("/healthz", get(status::healthz)),
        ("/readyz", get(status::readyz)),
        ("/metrics", get(status::metrics)),
        ("/openapi.json", get(openapi::serve_document)),
    ]
}

fn router(context: Shared) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    router.with_state(context)
}

/// An answer in JSON.
fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => problem::Problem::new(
            crate::service::ErrorCode::Internal,
            format!("the answer cannot be written as JSON: {error}"),
        )
        .into_response(),
    }
}

/// How long a request with these headers may take.
fn patience(headers: &HeaderMap, options: &ApiOptions) -> Result<std::time::Duration, Box<problem::Problem>> {
    Ok(std::time::Duration::from_millis(request::timeout_ms(headers)?.unwrap_or(options.request_timeout_ms)))
}
