//! `/openapi.json`: the API described by the attributes on its handlers.

use std::sync::OnceLock;

use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use hyper::header;
use utoipa::Modify;
use utoipa::OpenApi;
use utoipa::openapi;
use utoipa::openapi::RefOr;
use utoipa::openapi::Schema;
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::schema::Type;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Statehouse",
        description = "Runs your WebAssembly state machine as a replicated service. Any node answers. Errors are \
            application/problem+json with a stable `code`.",
        license(name = "Apache-2.0")
    ),
    paths(
        super::modules::list,
        super::modules::add,
        super::modules::check,
        super::modules::show,
        super::modules::remove,
        super::modules::file,
        super::groups::list,
        super::groups::create,
        super::groups::show,
        super::groups::remove,
        super::groups::change_module,
        super::groups::try_module,
        super::groups::digest,
        super::groups::snapshot,
        super::files::save,
        super::files::restore,
        super::membership::nodes,
        super::membership::add_node,
        super::membership::remove_node,
        super::membership::demote_node,
        super::membership::set_priority,
        super::membership::members,
        super::membership::add_member,
        super::membership::promote_member,
        super::membership::demote_member,
        super::membership::remove_member,
        super::membership::set_members,
        super::membership::move_group,
        super::membership::transfer,
        super::membership::balance,
        super::membership::changes,
        super::membership::change,
        super::membership::cancel,
        super::commands::apply,
        super::commands::query,
        super::events::subscribe,
        super::sessions::open,
        super::sessions::close,
        super::sessions::touch,
        super::status::cluster,
        super::status::doctor,
        super::status::node,
        super::status::counters,
        super::status::healthz,
        super::status::readyz,
        super::status::metrics,
        serve_document,
    ),
    modifiers(&NeverNull)
)]
struct Document;

/// A parameter that may be left out is told of as one that may be null, which no header and no query string can say.
struct NeverNull;

impl Modify for NeverNull {
    fn modify(&self, document: &mut openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
            for parameter in
                operations.into_iter().flatten().flat_map(|operation| operation.parameters.iter_mut().flatten())
            {
                let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema else { continue };
                let SchemaType::Array(kinds) = &schema.schema_type else { continue };
                if let Some(kind) = kinds.iter().find(|kind| **kind != Type::Null).cloned() {
                    schema.schema_type = SchemaType::Type(kind);
                }
            }
        }
    }
}

/// The OpenAPI document, JSON.
pub fn document() -> String {
    Document::openapi().to_json().unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "status", responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = Object)))]
pub(super) async fn serve_document() -> Response {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.get_or_init(|| document().into()).clone()).into_response()
}
