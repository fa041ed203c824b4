//! How a stored response, or one that passes by, is sent.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body;

use super::{
    CacheTags, Outcome, Policy, ResponseBody, Source,
    control::{self, Forward, Selection, Wishes},
    entry::{Stored, StoredResponse},
    service::Ask,
    shelf::Looked,
};
use crate::problem::Problem;

/// The stored response, which has been stored for so long, as this request wants it: whole, a part of
/// it, or the news that the client has it already.
///
/// # Panics
///
/// If what was looked up is not a response.
pub(super) fn hit<R: Body>(
    policy: &Policy,
    looked: Looked,
    resident: Duration,
    request: &HeaderMap,
    ask: &Ask,
    forwarded: Forward,
    outcome: Outcome,
) -> Response<ResponseBody<R>> {
    let found = looked.found.expect("a hit has found something");
    let age = found.response().map(|stored| stored.freshness.age(resident));
    send(policy, found.stored, age, request, &ask.wishes, forwarded, outcome)
}

/// A stored response; with an age unless it was made just now.
pub(super) fn send<R: Body>(
    policy: &Policy,
    stored: Arc<Stored>,
    age: Option<Duration>,
    request: &HeaderMap,
    wishes: &Wishes,
    forwarded: Forward,
    outcome: Outcome,
) -> Response<ResponseBody<R>> {
    // Without a copy, if nobody else has it.
    let Stored::Response(stored) = Arc::unwrap_or_clone(stored) else {
        unreachable!("only responses are sent");
    };
    let StoredResponse { status, headers, body, .. } = stored;
    let length = body.len() as u64;
    let selection = match wishes {
        Wishes { conditional: true, head, .. } => {
            control::select(request, *head, status, &headers, length)
        }
        // Nothing to look for.
        Wishes { head: true, .. } => Selection::Head,
        Wishes { head: false, .. } => Selection::Full,
    };
    let mut headers = headers;
    let status = control::into_answer(status, &mut headers, selection, age, length);
    outcome.write(forwarded, policy, &mut headers);
    let body = match selection {
        Selection::Full => body,
        Selection::Range { start, end } => body.slice(start as usize..end as usize),
        Selection::Head | Selection::NotModified | Selection::Unsatisfiable => bytes::Bytes::new(),
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
    forwarded: Forward,
    outcome: Outcome,
) -> Response<ResponseBody<R>> {
    pass_head(policy, response, forwarded, outcome).map(ResponseBody::inner)
}

/// The same, whatever the body.
pub(super) fn pass_head<R>(
    policy: &Policy,
    mut response: Response<R>,
    forwarded: Forward,
    outcome: Outcome,
) -> Response<R> {
    let own = response.extensions_mut().remove::<CacheTags>();
    let headers = response.headers_mut();
    policy.tag_rule.pass(headers, own.as_ref());
    if let Some(target) = &policy.rules.target {
        headers.remove(target);
    }
    outcome.write(forwarded, policy, headers);
    // What a cache inside has said is said more exactly.
    if response.extensions().get::<Outcome>().is_none() {
        response.extensions_mut().insert(outcome);
    }
    response
}

/// A statement of the cache itself.
pub(super) fn problem<R: Body>(
    status: StatusCode,
    detail: &'static str,
) -> Response<ResponseBody<R>> {
    let mut response = Problem::from_status(status).with_detail(detail).into_response();
    response.extensions_mut().insert(Outcome::new(Source::Passed).with_reason("cache"));
    response.map(ResponseBody::whole)
}

/// The same to who has waited in vain for a place in an outage.
pub(super) fn busy<R: Body>() -> Response<ResponseBody<R>> {
    let detail = "the cache is out of order, and too many requests wait for what is behind it";
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, detail);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
