//! How a stored response, or one that passes by, is sent.

use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode};
use http_body::Body;

use super::{
    Outcome, Policy, ResponseBody, StatusHeader,
    control::{self, Forwarded, Selection},
    entry::StoredResponse,
    service::Ask,
    shelf::Looked,
    tags,
};

/// The stored response as this request wants it: whole, a part of it, or the news that the client has
/// it already.
///
/// # Panics
///
/// If what was looked up is not a response.
pub(super) fn hit<R: Body>(
    policy: &Policy,
    looked: Looked,
    request: &HeaderMap,
    ask: &Ask,
    outcome: Outcome,
) -> Response<ResponseBody<R>> {
    let found = looked.found.expect("a hit has found something");
    let resident = found.resident();
    let stored = found.into_response().expect("a hit has found a response");
    let age = stored.freshness.age(resident);
    let forwarded = Forwarded::Stale;
    send(policy, stored, Some(age), request, ask.wishes.head, forwarded, outcome)
}

/// A stored response; with an age unless it was made just now.
pub(super) fn send<R: Body>(
    policy: &Policy,
    stored: Arc<StoredResponse>,
    age: Option<std::time::Duration>,
    request: &HeaderMap,
    head: bool,
    forwarded: Forwarded,
    outcome: Outcome,
) -> Response<ResponseBody<R>> {
    let length = stored.body.len() as u64;
    let selection = control::select(request, head, stored.status, &stored.headers, length);
    // Without a copy, if nobody else has it.
    let StoredResponse { status, headers, body, .. } = Arc::unwrap_or_clone(stored);
    let (status, mut headers) = control::answer(status, headers, selection, age, length);
    outcome.write(forwarded, policy, &mut headers);
    let body = match selection {
        Selection::Full => body,
        Selection::Range { start, end } => body.slice(start as usize..end as usize),
        Selection::Head
        | Selection::NotModified
        | Selection::PreconditionFailed
        | Selection::Unsatisfiable => bytes::Bytes::new(),
    };
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.extensions_mut().insert(outcome);
    response
}

/// A response with which the cache has nothing to do, without what is meant for the cache alone.
pub(super) fn pass<R: Body>(
    policy: &Policy,
    response: Response<R>,
    forwarded: Forwarded,
    outcome: Outcome,
) -> Response<ResponseBody<R>> {
    pass_head(policy, response, forwarded, outcome).map(ResponseBody::inner)
}

/// The same, whatever the body.
pub(super) fn pass_head<R>(
    policy: &Policy,
    mut response: Response<R>,
    forwarded: Forwarded,
    outcome: Outcome,
) -> Response<R> {
    let own = response.extensions_mut().remove();
    let headers = response.headers_mut();
    tags::forward_passing(headers, own, policy.forwarding);
    if let Some(target) = &policy.rules.target {
        headers.remove(target);
    }
    outcome.write(forwarded, policy, headers);
    response.extensions_mut().insert(outcome);
    response
}
