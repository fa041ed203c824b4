//! The service.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Extensions, HeaderMap, Request, Response, StatusCode, header};
use http_body::Body;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};
use tower_service::Service;

use super::{
    CacheHandle, Outcome, Policy, ResponseBody, ResponseFuture, Source,
    control::{self, Entrance, Forward, Reuse, Wishes},
    fill::{self, Fill},
    flight::{Boarding, Landing, Moment},
    handle::Landed,
    key::{CacheKey, host},
    outcome::STALE_IF_ERROR,
    purge::Purge,
    reply,
    shelf::{Found, Looked, variant},
    tags::stored as tag,
};
use crate::{
    RequestHead,
    marks::SessionMark,
    service::oneshot,
    storage::{Result as StorageResult, Tag, at_once},
};

/// How often a request waits for another fill after one has failed.
const RETRIES: u32 = 2;

/// A service whose responses are stored. See the [module documentation](super) for an example.
///
/// It is always ready: a stored response does not wait for the inner service. That is asked for its
/// readiness when a request gets to it.
#[derive(Debug, Clone)]
pub struct Cache<S> {
    inner: S,
    rules: Arc<Rules>,
}

/// What the services of one layer share.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) handle: CacheHandle,
    pub(super) policy: Policy,
}

impl<S> Cache<S> {
    /// Stores the responses of `inner`.
    pub fn new(inner: S, handle: CacheHandle, policy: Policy) -> Self {
        Self::from_rules(inner, Arc::new(Rules { handle, policy }))
    }

    pub(super) fn from_rules(inner: S, rules: Arc<Rules>) -> Self {
        Self { inner, rules }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service inside.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service inside.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

/// A request that may be answered from the storage.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) key: CacheKey,
    pub(super) wishes: Wishes,
    /// How many fills of the same cache the request is inside of.
    pub(super) depth: usize,
    /// Whether one of the fills that it is inside of is in the background.
    pub(super) in_renewal: bool,
    /// Whether one of them holds the lease of this key.
    pub(super) has_turn: bool,
}

/// What is to become of a request.
enum Plan {
    Ask(Ask),
    /// It goes to the handler, and its answer may invalidate.
    Invalidate,
    /// It goes to the handler, for this reason.
    Pass(Forward, &'static str),
}

/// In the extensions of a request that is inside of fills.
#[derive(Debug, Clone)]
pub(super) struct Inside {
    handle: usize,
    is_renewal: bool,
    /// The key whose lease the fill holds.
    turn: Option<CacheKey>,
    outer: Option<Arc<Inside>>,
}

impl Inside {
    /// Marks a request that goes inside of this cache.
    pub(super) fn enter(
        rules: &Rules,
        is_renewal: bool,
        turn: Option<CacheKey>,
        extensions: &mut Extensions,
    ) {
        let outer = extensions.remove::<Self>().map(Arc::new);
        extensions.insert(Self { handle: rules.handle.address(), is_renewal, turn, outer });
    }

    fn any(&self, is: &impl Fn(&Self) -> bool) -> bool {
        is(self) || self.outer.as_ref().is_some_and(|outer| outer.any(is))
    }

    fn depth(&self, rules: &Rules) -> usize {
        let outer = self.outer.as_ref().map_or(0, |outer| outer.depth(rules));
        outer + usize::from(self.handle == rules.handle.address())
    }
}

impl Rules {
    fn plan<B: Body>(&self, request: &Request<B>) -> Plan {
        let head = RequestHead::new(request);
        let wishes = match control::enter(head, has_body(request), &self.policy.rules) {
            Entrance::Lookup(wishes) => wishes,
            Entrance::Invalidates => return Plan::Invalidate,
            Entrance::Pass(why) => return Plan::Pass(why.forward(), why.as_str()),
        };
        let mark = head.extensions().get::<SessionMark>();
        if !self.policy.rules.keyed_principal && mark.is_some_and(SessionMark::is_touched) {
            return Plan::Pass(Forward::Bypass, "session");
        }
        match self.policy.key.key(head) {
            Some(key) => {
                let inside = head.extensions().get::<Inside>();
                let depth = inside.map_or(0, |inside| inside.depth(self));
                let any = |is: &dyn Fn(&Inside) -> bool| inside.is_some_and(|it| it.any(&is));
                let in_renewal = any(&|it| it.is_renewal);
                let has_turn = any(&|it| it.turn.as_ref() == Some(&key));
                Plan::Ask(Ask { key, wishes, depth, in_renewal, has_turn })
            }
            None if self.policy.key.principal.is_some() => {
                Plan::Pass(Forward::Bypass, "no-principal")
            }
            None => Plan::Pass(Forward::Bypass, "ambiguous-host"),
        }
    }

    /// Looks at the storage. Without a fence nothing can be stored: the storage gives no answer, or
    /// a purge of this process is not known to have happened.
    pub(super) async fn look_up(&self, ask: &Ask, request: &HeaderMap) -> Looked {
        let nothing = || Looked { found: None, fence: None, key: ask.key.clone() };
        let shared = &self.handle.shared;
        if shared.is_bypassed() {
            return nothing();
        }
        let looked: StorageResult<Looked> =
            shared.shelf.look_up(&ask.key, request, self.policy.max_body).await;
        match looked {
            // A purge may have failed in between.
            Ok(_) if shared.is_bypassed() => nothing(),
            Ok(looked) => looked,
            Err(error) => {
                event!(debug, %error, "a lookup failed; the cache is passed by");
                nothing()
            }
        }
    }

    /// What a stored answer is good for that has been stored for so long.
    pub(super) fn reuse(&self, looked: &Looked, resident: Duration, wishes: &Wishes) -> Reuse {
        let Some(found) = &looked.found else { return Reuse::Unusable };
        let Some(response) = found.response() else { return Reuse::Unusable };
        response.freshness.reuse(resident, found.stale, wishes)
    }

    /// Whether to renew an answer before its end (XFetch: Vattani et al., VLDB 2015).
    fn renews_early(&self, looked: &Looked, ttl: i64) -> bool {
        let Some(eagerness) = self.policy.early_refresh else { return false };
        let Some(response) = looked.found.as_ref().and_then(|found| found.response()) else {
            return false;
        };
        let left = Duration::from_secs(ttl.max(0) as u64);
        is_early(response.fill_time, left, eagerness)
    }
}

/// Whether an answer that took so long to make should be renewed with so much of its life left.
pub(super) fn is_early(fill_time: Duration, left: Duration, eagerness: f64) -> bool {
    // 1 - x lies in (0, 1], where the logarithm is finite.
    let lead = fill_time.as_secs_f64() * eagerness * -(1.0 - fill::random()).ln();
    lead >= left.as_secs_f64()
}

impl<S, B, R> Service<Request<B>> for Cache<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Send,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<R, S::Error>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let ask = match self.rules.plan(&request) {
            Plan::Ask(ask) => ask,
            Plan::Invalidate => {
                let (rules, inner) = (Arc::clone(&self.rules), self.inner.clone());
                return ResponseFuture::waiting(invalidate(rules, inner, request));
            }
            Plan::Pass(forwarded, reason) => {
                let (rules, inner) = (Arc::clone(&self.rules), self.inner.clone());
                return ResponseFuture::waiting(pass(rules, inner, request, forwarded, reason));
            }
        };
        let before = self.rules.handle.shared.flights.now();
        let (mut looked, mut early) = (None, false);
        if self.rules.handle.shared.shelf.storage.answers_at_once() {
            let now = at_once(self.rules.look_up(&ask, request.headers()));
            let resident = now.resident_when_read();
            if let Reuse::Fresh { ttl_seconds: ttl } = self.rules.reuse(&now, resident, &ask.wishes)
            {
                early = self.rules.renews_early(&now, ttl);
                if !early {
                    let (policy, headers) = (&self.rules.policy, request.headers());
                    let outcome = Outcome::new(Source::Hit).with_ttl(ttl);
                    let response =
                        reply::hit(policy, now, resident, headers, &ask, Forward::Stale, outcome);
                    return ResponseFuture::ready(response);
                }
            }
            looked = Some(now);
        }
        let (rules, inner) = (Arc::clone(&self.rules), self.inner.clone());
        ResponseFuture::waiting(answer(rules, inner, request, ask, before, looked, early))
    }
}

/// Answers a request that may be answered from the storage. `early`: the dice have fallen for what
/// was looked up.
async fn answer<S, B, R>(
    rules: Arc<Rules>,
    inner: S,
    request: Request<B>,
    ask: Ask,
    mut before: Moment,
    mut looked: Option<Looked>,
    early: bool,
) -> Result<Response<ResponseBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Send,
{
    let (policy, shared) = (&rules.policy, &rules.handle.shared);
    let began = Instant::now();
    let mut failures = 0;
    loop {
        let mut now = match looked.take() {
            Some(looked) => looked,
            None => {
                before = shared.flights.now();
                rules.look_up(&ask, request.headers()).await
            }
        };
        let forwarded = match rules.reuse(&now, now.resident(), &ask.wishes) {
            Reuse::Fresh { ttl_seconds: ttl } => {
                let outcome = Outcome::new(Source::Hit).with_ttl(ttl);
                let early = early || rules.renews_early(&now, ttl);
                return Ok(give(&rules, inner, request, ask, before, now, outcome, early));
            }
            // Who renews an answer must not be given the old one.
            Reuse::StaleWhileRevalidate { .. } if ask.in_renewal => Forward::Stale,
            Reuse::StaleWhileRevalidate { ttl_seconds: ttl } => {
                let outcome =
                    Outcome::new(Source::Stale).with_ttl(ttl).with_reason("stale-while-revalidate");
                return Ok(give(&rules, inner, request, ask, before, now, outcome, true));
            }
            Reuse::Revalidate if ask.wishes.directives.no_cache => Forward::Request,
            Reuse::Revalidate => Forward::Stale,
            Reuse::Unusable => {
                let missing = now.found.take().is_none();
                if missing && now.key == ask.key {
                    Forward::UriMiss
                } else if missing {
                    Forward::VaryMiss
                } else {
                    Forward::Bypass
                }
            }
        };
        if ask.wishes.directives.only_if_cached {
            return Ok(reply::problem(StatusCode::GATEWAY_TIMEOUT, "there is no stored response"));
        }
        if ask.wishes.head {
            // Its answer must not be stored for GET, and is not worth storing by itself.
            return pass(Arc::clone(&rules), inner, request, forwarded, "head").await;
        }
        let alone = failures > RETRIES
            || shared.is_hit_for_miss(&ask)
            || !fill::is_shareable(policy, &ask.wishes, &now);
        let follower =
            match (!alone).then(|| shared.board(&now, before, ask.depth, policy.fill_timeout)) {
                None => {
                    let fill = Fill::new(&rules, ask, now, forwarded, None);
                    return fill.run(inner, request).await;
                }
                Some(Boarding::Lead(leader)) => {
                    let fill = Fill::new(&rules, ask, now, forwarded, Some(leader));
                    return fill.run(inner, request).await;
                }
                Some(Boarding::Follow(follower)) => follower,
                Some(Boarding::Landed) => continue,
            };
        let left = policy.fill_timeout.saturating_sub(began.elapsed());
        match timeout(left, follower.landing()).await {
            Ok(Landing::Shared(landed)) => {
                if let Some(response) = share(&rules, landed, &request, &ask, forwarded) {
                    return Ok(response);
                }
                // Another variant, or not for this request.
                failures += 1;
            }
            Ok(Landing::Failed) => {
                failures += 1;
                looked = Some(now);
            }
            Ok(Landing::TooEarly) => looked = Some(now),
            Ok(Landing::Alone) | Err(_) => {
                failures = RETRIES + 1;
                looked = Some(now);
            }
        }
    }
}

/// Answers from the storage, and perhaps renews what is there with the request, which is needed no
/// longer.
#[expect(clippy::too_many_arguments, reason = "all of it is the request")]
fn give<S, B, R>(
    rules: &Arc<Rules>,
    inner: S,
    request: Request<B>,
    ask: Ask,
    before: Moment,
    looked: Looked,
    outcome: Outcome,
    renew: bool,
) -> Response<ResponseBody<R>>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Send,
{
    if !renew || ask.wishes.head {
        let resident = looked.resident();
        let (policy, headers) = (&rules.policy, request.headers());
        return reply::hit(policy, looked, resident, headers, &ask, Forward::Stale, outcome);
    }
    let shared = &rules.handle.shared;
    let old = Looked { found: looked.found.clone(), fence: looked.fence, key: looked.key.clone() };
    let (policy, headers, resident) = (&rules.policy, request.headers(), looked.resident());
    let response = reply::hit(policy, old, resident, headers, &ask, Forward::Stale, outcome);
    if let Ok(permit) = Arc::clone(&shared.refreshes).try_acquire_owned()
        && let Boarding::Lead(leader) =
            shared.board(&looked, before, ask.depth, policy.fill_timeout)
    {
        let fill = Fill::new(rules, ask, looked, Forward::Stale, Some(leader));
        fill.renew(inner, request, permit);
    }
    response
}

/// What another request's fill has brought, if it is good for this one.
fn share<B, R: Body>(
    rules: &Rules,
    landed: Landed,
    request: &Request<B>,
    ask: &Ask,
    forwarded: Forward,
) -> Option<Response<ResponseBody<R>>> {
    let Landed { found, vary, key, instead_of_error } = landed;
    let wanted = match vary.is_empty() {
        true => ask.key.clone(),
        false => variant(&ask.key, &vary, request.headers()),
    };
    // Fields that are implied are not among these: then it is looked up again.
    if wanted != key {
        return None;
    }
    let looked = Looked { found: Some(found), fence: None, key };
    let resident = looked.resident();
    let outcome = match rules.reuse(&looked, resident, &ask.wishes) {
        Reuse::Fresh { ttl_seconds: ttl } => Outcome::new(Source::Collapsed).with_ttl(ttl),
        Reuse::Revalidate | Reuse::StaleWhileRevalidate { .. } if instead_of_error => {
            let ttl = looked.found.as_ref().and_then(Found::stale_ttl);
            Outcome { ttl, ..Outcome::new(Source::Stale).with_reason(STALE_IF_ERROR) }
        }
        _ => return None,
    };
    Some(reply::hit(&rules.policy, looked, resident, request.headers(), ask, forwarded, outcome))
}

/// Lets a request pass, and stores nothing.
async fn pass<S, B, R>(
    rules: Arc<Rules>,
    inner: S,
    request: Request<B>,
    forwarded: Forward,
    reason: &'static str,
) -> Result<Response<ResponseBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    let response = oneshot(inner, request).await?;
    let outcome = Outcome::new(Source::Passed).with_reason(reason);
    Ok(reply::pass(&rules.policy, response, forwarded, outcome))
}

/// Lets an unsafe request pass and invalidates what its answer says, before that is released: who
/// wrote reads what he wrote.
async fn invalidate<S, B, R>(
    rules: Arc<Rules>,
    inner: S,
    request: Request<B>,
) -> Result<Response<ResponseBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    let method = request.method().clone();
    let target = RequestHead::new(&request).target().clone();
    let host = host(RequestHead::new(&request)).unwrap_or_default();
    let mut unanswered = Unanswered {
        rules: Arc::clone(&rules),
        uri: Some(tag::uri(&rules.policy.key.resource(&target))),
    };
    let response = oneshot(inner, request).await;
    unanswered.uri = None;
    let response = response?;
    let (status, headers) = (response.status(), response.headers());
    let uris = control::invalidated(&target, std::str::from_utf8(&host).ok(), status, headers);
    let groups = control::invalidated_groups(&method, status, headers);
    let tags: Vec<_> = uris
        .iter()
        .filter_map(|uri| uri.parse().ok())
        .map(|uri| tag::uri(&rules.policy.key.resource(&uri)))
        .chain(groups.iter().map(|group| tag::group(&host, group.as_bytes())))
        .collect();
    if let Err(error) = rules.handle.shared.purge(Purge::hard(tags)).await {
        event!(warn, %error, "what an unsafe request changed could not be purged at once");
    }
    let outcome = Outcome::new(Source::Passed).with_reason("method");
    Ok(reply::pass(&rules.policy, response, Forward::Method, outcome))
}

/// An unsafe request that has not been answered. If it never is, for its client has gone or the
/// handler has panicked, what it wrote until then may stay, so its target is purged.
struct Unanswered {
    rules: Arc<Rules>,
    uri: Option<Tag>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let (Some(uri), Ok(runtime)) = (self.uri.take(), Handle::try_current()) else { return };
        let shared = Arc::clone(&self.rules.handle.shared);
        let tasks = shared.tasks().clone();
        tasks.spawn_on(async move { shared.purge(Purge::hard(vec![uri])).await }, &runtime);
    }
}

/// A body, also one of unknown length, or the announcement of one.
fn has_body<B: Body>(request: &Request<B>) -> bool {
    let announced = request.headers().contains_key(header::TRANSFER_ENCODING)
        || request.headers().get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    announced || !request.body().is_end_stream() && request.body().size_hint().exact() != Some(0)
}
