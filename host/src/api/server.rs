//! Connections: accepting, serving, and the way down.
//!
//! What holds: no connection is accepted over the limit (further ones wait in the kernel's queue), and none is held by who
//! takes nothing of its answer; after [`ApiServer::shutdown`] began, no request is started, and those that run are answered.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::HeaderMap;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header;
use hyper::server::conn::http1;
use hyper::service::Service as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;

use super::ApiOptions;
use super::Context;
use super::patient::Patient;
use super::problem;
use super::problem::Problem;
use super::router;
use crate::observe::HttpMetrics;
use crate::observe::RequestClass;
use crate::service::Service;

/// After an accept that failed for want of a file descriptor or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running HTTP server.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl ApiServer {
    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, ends event streams, answers the requests that run, and closes; what is not done
    /// after `grace` is cut off.
    pub async fn shutdown(mut self, grace: Duration) {
        self.stop.send_replace(true);
        if tokio::time::timeout(grace, &mut self.task).await.is_err() {
            tracing::warn!(grace_ms = grace.as_millis() as u64, "cutting off HTTP requests that did not end in time");
            self.task.abort();
        }
    }
}

/// Serves `service` on `listener` until [`ApiServer::shutdown`].
pub fn serve(listener: TcpListener, service: Arc<dyn Service>, options: ApiOptions) -> io::Result<ApiServer> {
    let address = listener.local_addr()?;
    let (stop, stopping) = watch::channel(false);
    let context = Arc::new(Context { service, options, metrics: HttpMetrics::new(), stopping });
    let task = tokio::spawn(accept(listener, context));
    Ok(ApiServer { address, stop, task })
}

async fn accept(listener: TcpListener, context: Arc<Context>) {
    let router = router(context.clone());
    let room = Arc::new(Semaphore::new(
        usize::try_from(context.options.connections_max).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS),
    ));
    let mut stopping = context.stopping.clone();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = async {
                let place = room.clone().acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (place, Ok((stream, _))) => {
                let (router, context) = (router.clone(), context.clone());
                connections.spawn(async move {
                    serve_connection(stream, router, context).await;
                    drop(place);
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits until the server goes down.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server is dropped: down as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn serve_connection(stream: TcpStream, router: Router, context: Arc<Context>) {
    // Replies are small and each is waited for: they must not sit in Nagle's buffer.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let mut stopping = context.stopping.clone();
    let header_timeout = Duration::from_millis(context.options.header_timeout_ms);
    let _counted = context.metrics.connection();
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| answer(&router, &context, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .serve_connection(TokioIo::new(Patient::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

async fn answer(
    router: &TowerToHyperService<Router>,
    context: &Context,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let started = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let class = RequestClass::of(uri.path());
    let _in_flight = context.metrics.in_flight();
    let response = match stranger(request.headers()) {
        None => router.call(request).await?,
        Some(origin) => Problem::cross_origin(origin).into_response(),
    };
    let response = problem::render(method.as_str(), uri.path(), response);
    context.metrics.answered(class, response.status().as_u16(), started.elapsed());
    Ok(response)
}

/// The site whose page a browser sends this request for, if it is not this server's own. There is no
/// password yet, and a browser lets any page send commands to a port of its machine.
fn stranger(headers: &HeaderMap) -> Option<&str> {
    let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or("?");
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    (origin.strip_prefix("http://") != host || host.is_none()).then_some(origin)
}
