//! `/v1/groups/{name}/events`: server-sent events.
//!
//! An event's id is `INDEX.NUMBER`: the entry that emitted it and its place among that entry's events. A
//! subscriber that comes back with `Last-Event-ID` goes on after that event and misses none; a bare
//! `INDEX` as id stands for the place before that entry's first event. When events in between are no
//! longer kept, a `gap` event says from where to where.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use hyper::HeaderMap;
use hyper::header;
use serde::Deserialize;
use tokio::sync::watch;

use super::Shared;
use super::problem::Problem;
use super::request::Name;
use super::request::Params;
use super::server::stopped;
use crate::service::Event;
use crate::service::EventItem;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParams {
    from: Option<u64>,
}

/// Where a subscriber stands: it has seen everything before `index`, and of `index` the events before `number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u64,
    number: u64,
}

impl Place {
    /// The place after the event with this id.
    fn after(id: &str) -> Option<Self> {
        match id.trim().split_once('.') {
            Some((index, number)) => {
                Some(Self { index: index.parse().ok()?, number: number.parse::<u64>().ok()?.checked_add(1)? })
            }
            None => Some(Self { index: id.trim().parse().ok()?, number: 0 }),
        }
    }

    fn has_seen(&self, event: &Event) -> bool {
        (event.index, u64::from(event.number)) < (self.index, self.number)
    }
}

/// The group's events, as server-sent events
///
/// `id` is `INDEX.NUMBER`, `data` the event's bytes as text; bytes that are no plain text come as `event: hex`.
/// `event: gap` with `{"from","next"}` says that the events of these entries are no longer kept: look at the state by
/// a query.
#[utoipa::path(
    get, path = "/v1/groups/{name}/events", tag = "commands",
    params(
        ("name" = String, Path),
        ("from" = Option<u64>, Query, description = "the first log index to hear of; the next one when left out"),
        ("Last-Event-ID" = Option<String>, Header, description = "go on after this event"),
    ),
    responses(
        (status = 200, description = "the stream", body = String, content_type = "text/event-stream"),
        (status = 404, description = "group_not_found", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn subscribe(
    State(context): State<Shared>,
    Name(group): Name,
    Params(params): Params<EventParams>,
    headers: HeaderMap,
) -> Result<Response, Box<Problem>> {
    let place = match (headers.get("last-event-id"), params.from) {
        (Some(id), _) => id
            .to_str()
            .ok()
            .and_then(Place::after)
            .ok_or_else(|| Problem::bad_request(format!("Last-Event-ID is {id:?}, not INDEX.NUMBER")))?,
        (None, Some(index)) => Place { index, number: 0 },
        // The subscriber is told at once where it stands, so that one that loses the connection before
        // the first event comes back to the same place.
        (None, None) => {
            Place { index: context.service.group_get(group.clone()).await?.applied.saturating_add(1), number: 0 }
        }
    };
    let events = context.service.events(group, Some(place.index)).await?;
    let keep_alive = Duration::from_millis(context.options.keep_alive_ms);
    let state = Stream { events, place, stopping: context.stopping.clone(), keep_alive };
    let opening = Bytes::from(format!("id: {}\n\n", Id(place)));
    let body =
        stream::iter([opening]).chain(stream::unfold(state, Stream::next)).map(Ok::<_, std::convert::Infallible>);
    Ok(([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")], Body::from_stream(body))
        .into_response())
}

/// How a place is written as an event id.
struct Id(Place);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.number.checked_sub(1) {
            Some(last) => write!(f, "{}.{last}", self.0.index),
            None => write!(f, "{}", self.0.index),
        }
    }
}

struct Stream {
    events: BoxStream<'static, EventItem>,
    place: Place,
    stopping: watch::Receiver<bool>,
    keep_alive: Duration,
}

impl Stream {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            let item = tokio::select! {
                biased;
                () = stopped(&mut self.stopping) => return None,
                item = tokio::time::timeout(self.keep_alive, self.events.next()) => item,
            };
            match item {
                Err(_) => return Some((Bytes::from_static(b":\n\n"), self)),
                Ok(None) => return None,
                Ok(Some(EventItem::Gap { from, next })) => {
                    let text = format!("id: {next}\nevent: gap\ndata: {{\"from\":{from},\"next\":{next}}}\n\n");
                    return Some((text.into(), self));
                }
                Ok(Some(EventItem::Event(event))) if self.place.has_seen(&event) => {}
                Ok(Some(EventItem::Event(event))) => return Some((write_event(&event), self)),
            }
        }
    }
}

fn write_event(event: &Event) -> Bytes {
    let mut text = format!("id: {}.{}\n", event.index, event.number);
    match std::str::from_utf8(&event.data) {
        // A carriage return would end a line on the other side, and a null byte is not carried by all clients.
        Ok(data) if !data.contains(['\r', '\0']) => {
            for line in data.split('\n') {
                text.push_str("data: ");
                text.push_str(line);
                text.push('\n');
            }
        }
        _ => {
            text.push_str("event: hex\ndata: ");
            text.push_str(&hex::encode(&event.data));
            text.push('\n');
        }
    }
    text.push('\n');
    text.into()
}
