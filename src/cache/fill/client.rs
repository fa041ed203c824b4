//! What is known of who asked, while the handler has the request.

use http::{HeaderMap, Request, header};
use tokio::time::Instant;

use super::draft::is_own;
use crate::{
    RequestHead,
    cache::{
        control::{self, Arrival, RequestFacts},
        key,
        service::Rules,
        shelf::Looked,
        tags::stored as tag,
    },
    clock,
    marks::SessionMark,
    storage::Tag,
};

/// What is kept of the request while the handler has it.
pub(super) struct Client {
    pub(super) headers: HeaderMap,
    pub(super) facts: RequestFacts,
    pub(super) mark: SessionMark,
    pub(super) host: Vec<u8>,
    /// The implicit tags: of the target, the host, the route.
    pub(super) implicit: Vec<Tag>,
    /// The tags that the policy derives from the request.
    pub(super) derived: Vec<String>,
    /// It was asked whether what is stored is still good.
    pub(super) conditional: bool,
    pub(super) asked: Instant,
}

impl Client {
    /// That of the answer, if it has come by now.
    pub(super) fn arrival(&self) -> Arrival {
        Arrival { now: clock::since_epoch(), delay: self.asked.elapsed() }
    }

    /// Remembers what is needed of the request, and leaves the handler only what may influence an
    /// answer that others are given.
    pub(super) fn prepare<B>(rules: &Rules, looked: &Looked, request: &mut Request<B>) -> Self {
        let policy = &rules.policy;
        let head = RequestHead::new(request);
        let mut derived = policy.tags.clone();
        derived.extend(policy.request_tags.iter().flat_map(|tags| tags(head)));
        let mut implicit = vec![tag::uri(&policy.key.resource(head.target()))];
        let host = key::host(head);
        implicit.extend(host.as_deref().map(tag::host));
        #[cfg(feature = "axum")]
        if let Some(route) = head.extensions().get::<axum::extract::MatchedPath>() {
            implicit.push(tag::route(route.as_str().as_bytes()));
        }
        let facts = RequestFacts::new(head, &policy.rules);
        // Layers inside find it there, also if none outside has put one.
        let mark = request.extensions_mut().get_or_insert_default::<SessionMark>().clone();
        if let Some(target) = policy.key.query.kept(request.uri()) {
            *request.uri_mut() = target;
        }

        let client = request.headers().clone();
        let headers = request.headers_mut();
        if policy.rules.output.is_some() {
            key::strip_unkeyed(headers, &policy.key.headers, &policy.visible);
            if policy.rules.keyed_principal {
                // His own answer may depend on them.
                for name in [header::AUTHORIZATION, header::COOKIE] {
                    headers.remove(&name);
                    for value in client.get_all(&name) {
                        headers.append(&name, value.clone());
                    }
                }
            }
            control::unconditional(headers);
        } else {
            key::strip_overrides(headers, &policy.key.headers, &policy.visible);
        }
        let condition = condition(looked);
        if let Some(condition) = &condition {
            condition.apply(headers);
        }
        Self {
            headers: client,
            facts,
            mark,
            host: host.unwrap_or_default(),
            implicit,
            derived,
            conditional: condition.is_some(),
            asked: Instant::now(),
        }
    }
}

/// The condition under which what is stored need not be made anew.
pub(super) fn condition(looked: &Looked) -> Option<control::Condition> {
    let headers = &looked.found.as_ref()?.response()?.headers;
    // A handler that is asked for an entity tag it has never given must ignore the date
    // (RFC 9110 §13.1.3), and so never confirms anything.
    if headers.contains_key(header::LAST_MODIFIED) && headers.get(header::ETAG).is_some_and(is_own)
    {
        let mut dated = headers.clone();
        dated.remove(header::ETAG);
        return control::revalidation(&dated);
    }
    control::revalidation(headers)
}
