//! Asking the handler, and storing its answer: in a task of its own, which goes on when the client
//! that caused it has gone.

use std::{
    future::{Future, poll_fn},
    hash::{BuildHasher, Hasher, RandomState},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, response};
use http_body::Body;
use siphasher::sip128::{Hasher128, SipHasher13};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot as channel},
    time::{Instant, timeout},
};
use tower_service::Service;

use super::{
    CacheTags, Outcome, Policy, ResponseBody, Source,
    body::{Piece, into_bytes},
    control::{self, Forward, RequestFacts, Reuse, Storable, Wishes},
    entry::{Stored, StoredResponse},
    flight::{Landing, Leader},
    handle::{FlightKey, Landed, Within},
    key, reply,
    service::{Ask, Inside, Rules},
    shelf::{Found, Looked, variant},
    tags::{TagError, TagList, stored as tag},
    turn::Queue,
};
use crate::{
    RequestHead, clock,
    lease::Lease,
    marks::SessionMark,
    problem::Problem,
    storage::{Storage, Tag},
};

/// One request to the handler whose answer may be stored.
pub(super) struct Fill {
    rules: Arc<Rules>,
    ask: Ask,
    /// What is stored but stale, and the fence from before.
    looked: Looked,
    forwarded: Forward,
    /// `None`: nobody waits for the answer but who asked.
    leader: Option<Leader<FlightKey, Landed>>,
}

type Answer<R, E> = Result<Response<ResponseBody<R>>, E>;

/// Whether others may wait for the answer to this request.
pub(super) fn is_shareable(policy: &Policy, wishes: &Wishes, looked: &Looked) -> bool {
    if wishes.authorization && !policy.rules.keyed_principal {
        return false;
    }
    // In HTTP mode the handler sees the client's conditions, and may answer 304 or 206.
    !wishes.conditional || policy.rules.output.is_some() || condition(looked).is_some()
}

/// The condition under which what is stored need not be made anew.
fn condition(looked: &Looked) -> Option<control::Condition> {
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

/// What is kept of the request while the handler has it.
struct Client {
    headers: HeaderMap,
    facts: RequestFacts,
    mark: Option<SessionMark>,
    host: Vec<u8>,
    /// The implicit tags: of the target, the host, the route.
    implicit: Vec<Tag>,
    /// The tags that the policy derives from the request.
    derived: Vec<String>,
    /// It was asked whether what is stored is still good.
    conditional: bool,
    asked: Instant,
}

impl Fill {
    pub(super) fn new(
        rules: &Arc<Rules>,
        ask: Ask,
        looked: Looked,
        forwarded: Forward,
        leader: Option<Leader<FlightKey, Landed>>,
    ) -> Self {
        Self { rules: Arc::clone(rules), ask, looked, forwarded, leader }
    }

    /// Fills, and waits for the head of the answer.
    pub(super) async fn run<S, B, R>(self, inner: S, request: Request<B>) -> Answer<R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Send + 'static,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Send,
    {
        let (reply, answer) = channel::channel();
        tokio::spawn(self.fill(inner, request, reply));
        // Without a reply the handler has panicked, in a task where that ends no connection.
        answer.await.unwrap_or_else(|_| {
            Ok(problem(StatusCode::INTERNAL_SERVER_ERROR, "the handler has panicked"))
        })
    }

    /// Fills in the background.
    pub(super) fn renew<S, B, R>(self, inner: S, request: Request<B>, permit: OwnedSemaphorePermit)
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Send + 'static,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Send,
    {
        tokio::spawn(async move {
            let (reply, _answer) = channel::channel();
            self.fill(inner, request, reply).await;
            drop(permit);
        });
    }

    async fn fill<S, B, R>(
        mut self,
        inner: S,
        mut request: Request<B>,
        reply: channel::Sender<Answer<R, S::Error>>,
    ) where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body,
    {
        let rules = Arc::clone(&self.rules);
        let shared = &rules.handle.shared;
        let _lease = match self.wait_for_turn(request.headers()).await {
            Turn::Ours(lease) => lease,
            Turn::Done(ttl) => return self.give_found(request.headers(), ttl, reply),
        };
        let _permit = match self.looked.fence {
            Some(_) => None,
            None => match timeout(rules.policy.fill_timeout, shared.outage.acquire()).await {
                Ok(permit) => permit.ok(),
                Err(_) => {
                    let _ = reply.send(Ok(busy()));
                    return;
                }
            },
        };
        let client = self.prepare(&mut request);
        if let Some(leader) = &self.leader {
            leader.depart();
        }
        let answer = Within::run(None, shared, &self.ask.key, oneshot(inner, request)).await;
        let failed = match &answer {
            Ok(response) => is_failure(response.status()).then(|| Some(response.status())),
            Err(_) => Some(None),
        };
        if let Some(status) = failed
            && let Some(stale) = self.stale_instead_of_error(status)
        {
            return self.give_stale(stale, status, &client, reply);
        }
        let (mut parts, body) = match answer {
            Ok(response) => response.into_parts(),
            Err(error) => {
                // The others are told by the drop of the leader, and one of them tries again.
                let _ = reply.send(Err(error));
                return;
            }
        };
        if parts.status == StatusCode::NOT_MODIFIED && client.conditional {
            return self.revalidated(client, parts, reply).await;
        }
        match self.draft(&client, &mut parts, &body) {
            Ok(draft) => self.store(draft, client, parts, body, reply).await,
            Err(refusal) => {
                if refusal.is_remembered {
                    shared.remember_miss(&self.ask.key);
                }
                let failed = parts.status.is_server_error();
                let outcome = Outcome::new(Source::Handler).with_reason(refusal.reason);
                let response = Response::from_parts(parts, body);
                let response = reply::pass(&rules.policy, response, self.forwarded, outcome);
                let _ = reply.send(Ok(response));
                self.land(if failed { Landing::Failed } else { Landing::Alone });
            }
        }
    }

    /// Lets one node fill at a time, if the policy wants that.
    async fn wait_for_turn(&mut self, request: &HeaderMap) -> Turn {
        let rules = Arc::clone(&self.rules);
        let Some(ttl) = rules.policy.lease else { return Turn::Ours(None) };
        if self.leader.is_none() || self.looked.fence.is_none() {
            return Turn::Ours(None);
        }
        let (shelf, patience) = (&rules.handle.shared.shelf, rules.policy.fill_timeout);
        let Some(mut queue) = Queue::new(shelf, &self.looked.key, ttl, patience) else {
            return Turn::Ours(None);
        };
        loop {
            let turn = queue.try_enter().await;
            let now = rules.look_up(&self.ask, request).await;
            if let Reuse::Fresh { ttl_seconds: ttl } = rules.reuse(&now, &self.ask.wishes) {
                self.looked = now;
                return Turn::Done(ttl);
            }
            // The key stays: the others wait for this one.
            self.looked = Looked { key: self.looked.key.clone(), ..now };
            if let Some(lease) = turn {
                return Turn::Ours(lease);
            }
            queue.pause().await;
        }
    }

    /// Remembers what is needed of the request, and leaves the handler only what may influence an
    /// answer that others are given.
    fn prepare<B>(&self, request: &mut Request<B>) -> Client {
        let policy = &self.rules.policy;
        let head = RequestHead::new(request);
        let mut derived = policy.tags.clone();
        derived.extend(policy.request_tags.iter().flat_map(|tags| tags(head)));
        let mut implicit = vec![tag::uri(&policy.key.resource(key::target(head)))];
        let host = key::host(head);
        implicit.extend(host.as_deref().map(tag::host));
        #[cfg(feature = "axum")]
        if let Some(route) = head.extensions().get::<axum::extract::MatchedPath>() {
            implicit.push(tag::route(route.as_str().as_bytes()));
        }
        let facts = RequestFacts::new(head, &policy.rules);
        let mark = head.extensions().get::<SessionMark>().cloned();
        Inside::enter(&self.rules, request.extensions_mut());
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
                    for value in client.get_all(&name) {
                        headers.append(&name, value.clone());
                    }
                }
            }
            control::unconditional(headers);
        } else {
            key::strip_overrides(headers, &policy.key.headers);
        }
        let condition = condition(&self.looked);
        if let Some(condition) = &condition {
            condition.apply(headers);
        }
        Client {
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

    fn is_personal(&self, client: &Client) -> bool {
        !self.rules.policy.rules.keyed_principal
            && client.mark.as_ref().is_some_and(SessionMark::is_touched)
    }

    /// What is to be stored of an answer, as far as its head tells.
    fn draft<R: Body>(
        &self,
        client: &Client,
        parts: &mut response::Parts,
        body: &R,
    ) -> Result<Draft, NotStored> {
        let rules = &self.rules;
        if self.is_personal(client) {
            return Err(NotStored { reason: "session", is_remembered: true });
        }
        let (now, delay) = (clock::since_epoch(), client.asked.elapsed());
        let (headers, control) = (&parts.headers, &rules.policy.rules);
        let mut storable =
            control::store(&client.facts, parts.status, headers, control, now, delay)?;
        storable.freshness = jittered(storable.freshness, rules.policy.jitter);
        let max = rules.policy.max_body as u64;
        let length = content_length(headers);
        if length.is_some_and(|length| length > max) || body.size_hint().lower() > max {
            return Err(TOO_LARGE);
        }
        let own = parts.extensions.remove::<CacheTags>();
        let tag_rule = rules.policy.tag_rule;
        let derived = client.derived.iter().map(|tag| tag.as_bytes());
        let own = tag_rule.collect(own.as_ref(), headers, derived)?;
        tag_rule.forward(&mut parts.headers, &own);
        // If it is there, the policy strips it; who asks first gets no other answer than the rest.
        parts.headers.remove(header::SET_COOKIE);
        let headers = control::stored_headers(&parts.headers, control, now);
        Ok(Draft { storable, own, groups: control::groups(&parts.headers), headers, length })
    }

    /// Passes the body on while it comes, and stores it when it has come to a clean end.
    async fn store<R: Body, E>(
        self,
        draft: Draft,
        client: Client,
        parts: response::Parts,
        body: R,
        reply: channel::Sender<Answer<R, E>>,
    ) {
        let rules = Arc::clone(&self.rules);
        let (shared, policy) = (&rules.handle.shared, &rules.policy);
        let fill_time = client.asked.elapsed();
        let size = body.size_hint();
        let mut body = Box::pin(body);
        let mut chunks = Chunks::default();
        let at_once = now_or_later(chunks.read(&mut body, policy.max_body, |_| {})).await;
        let is_whole = |chunks: &Chunks, draft: &Draft| {
            draft.length.is_none_or(|length| length == chunks.length as u64)
        };
        if let Some(End::Whole) = at_once
            && is_whole(&chunks, &draft)
        {
            let stored = draft.response(parts.status, chunks.join(), fill_time, policy);
            let ttl = draft.storable.freshness.ttl_seconds(Duration::ZERO);
            let outcome = Outcome::new(Source::Handler).with_ttl(ttl);
            let outcome = Outcome { stored: self.looked.fence.is_some(), ..outcome };
            // Only what comes from another cache is not of this moment.
            let has_age = parts.headers.contains_key(header::AGE);
            let age = has_age.then(|| draft.storable.freshness.age(Duration::ZERO));
            let answer = || {
                let stored = Arc::clone(&stored);
                let (headers, wishes) = (&client.headers, &self.ask.wishes);
                reply::send(policy, stored, age, headers, wishes.head, self.forwarded, outcome)
            };
            if shared.shelf.storage.capabilities().local {
                // The next request of whoever gets this finds it.
                let answer = answer();
                let landing = self.keep(&draft, &client, stored).await;
                let _ = reply.send(Ok(answer));
                self.land(landing);
            } else {
                // Who comes before it is stored waits for the landing.
                let _ = reply.send(Ok(answer()));
                let landing = self.keep(&draft, &client, stored).await;
                self.land(landing);
            }
            return;
        }

        let (pieces, live) = mpsc::unbounded_channel();
        for chunk in &chunks.chunks {
            let _ = pieces.send(Piece::Data(chunk.clone()));
        }
        let outcome =
            Outcome { stored: self.looked.fence.is_some(), ..Outcome::new(Source::Handler) }
                .with_ttl(draft.storable.freshness.ttl_seconds(Duration::ZERO));
        let status = parts.status;
        let response = Response::from_parts(parts, ());
        let mut response = reply::pass_head(policy, response, self.forwarded, outcome);
        response.extensions_mut().insert(outcome);
        let _ = reply.send(Ok(response.map(|()| ResponseBody::live(live, size))));

        let end = match at_once {
            Some(end) => end,
            None => {
                let pass_on = |chunk: &Bytes| {
                    let _ = pieces.send(Piece::Data(chunk.clone()));
                };
                let rest = chunks.read(&mut body, policy.max_body, pass_on);
                timeout(policy.fill_timeout, rest).await.unwrap_or(End::TooLong)
            }
        };
        let landing = match end {
            End::Whole if is_whole(&chunks, &draft) => {
                let stored = draft.response(status, chunks.join(), fill_time, policy);
                let landing = self.keep(&draft, &client, stored).await;
                let _ = pieces.send(Piece::End);
                landing
            }
            End::Whole => {
                let _ = pieces.send(Piece::End);
                Landing::Alone
            }
            End::Trailers(trailers) => {
                let _ = pieces.send(Piece::Trailers(trailers));
                let _ = pieces.send(Piece::Rest(body));
                shared.remember_miss(&self.ask.key);
                Landing::Alone
            }
            End::TooLong => {
                let _ = pieces.send(Piece::Rest(body));
                shared.remember_miss(&self.ask.key);
                Landing::Alone
            }
            End::Failed(error) => {
                let _ = pieces.send(Piece::Failed(error));
                Landing::Failed
            }
        };
        self.land(landing);
    }

    /// Stores a complete response, and says what the others are to be told.
    async fn keep(&self, draft: &Draft, client: &Client, stored: Arc<Stored>) -> Landing<Landed> {
        let shared = &self.rules.handle.shared;
        let primary = &self.ask.key;
        // A streaming body may have looked at the session.
        if self.is_personal(client) {
            shared.remember_miss(primary);
            return Landing::Alone;
        }
        let vary = &draft.storable.vary;
        if let Some(fence) = self.looked.fence {
            let [uri, ..] = &client.implicit[..] else { return Landing::Alone };
            let tags = draft.tags(client);
            let put = shared.shelf.put_response(
                primary,
                &stored,
                vary,
                &client.headers,
                draft.storable.keep,
                fence,
                (uri, &tags),
            );
            match put.await {
                Ok(true) => {}
                Ok(false) => {
                    event!(debug, "an answer was invalidated while it was made");
                }
                Err(error) => {
                    event!(debug, %error, "an answer could not be stored");
                }
            }
        }
        let found = Found::new(stored);
        let fresh = draft.storable.freshness.reuse(Duration::ZERO, false, &Wishes::default());
        if !matches!(fresh, Reuse::Fresh { .. }) {
            // Stored only to be revalidated: nobody else could use it as it is.
            shared.remember_miss(primary);
            return Landing::Alone;
        }
        shared.forget_miss(primary);
        let key =
            if vary.is_empty() { primary.clone() } else { variant(primary, vary, &client.headers) };
        Landing::Shared(Landed { found, vary: vary[..].into(), key, instead_of_error: false })
    }

    /// The handler says that what is stored is still good.
    async fn revalidated<R: Body, E>(
        self,
        client: Client,
        parts: response::Parts,
        reply: channel::Sender<Answer<R, E>>,
    ) {
        let rules = Arc::clone(&self.rules);
        let (policy, control) = (&rules.policy, &rules.policy.rules);
        let Some(old) = self.looked.found.as_ref().and_then(Found::response) else { return };
        let (now, delay) = (clock::since_epoch(), client.asked.elapsed());
        let headers = control::freshen(&old.headers, &parts.headers, control, now);
        let storable = control::revalidated(
            &client.facts,
            old.status,
            &headers,
            &parts.headers,
            &old.freshness,
            control,
            now,
            delay,
        );
        let own = parts.extensions.get::<CacheTags>();
        // The new tags, if there are any, and the policy's; otherwise those that it had.
        let derived = client.derived.iter().map(|tag| tag.as_bytes());
        let own = match policy.tag_rule.collect(own, &parts.headers, []) {
            Ok(new) if new.is_empty() => Ok(old.tags.clone()),
            Ok(_) => policy.tag_rule.collect(own, &parts.headers, derived),
            Err(error) => Err(error),
        };
        let mut stored = StoredResponse { headers, ..old.clone() };
        let mut outcome = Outcome::new(Source::Revalidated);
        outcome.handler_status = Some(parts.status);
        let storable = storable.map_err(NotStored::from);
        let landing = match storable.and_then(|storable| Ok((storable, own?))) {
            Ok((storable, own)) => {
                stored.tags = own.clone();
                stored.freshness = jittered(storable.freshness, policy.jitter);
                outcome = outcome.with_ttl(stored.freshness.ttl_seconds(Duration::ZERO));
                outcome.stored = self.looked.fence.is_some();
                let groups = control::groups(&stored.headers);
                let headers = HeaderMap::new();
                let draft = Draft { storable, own, groups, headers, length: None };
                self.keep(&draft, &client, Arc::new(Stored::Response(stored.clone()))).await
            }
            Err(refusal) => {
                outcome = outcome.with_reason(refusal.reason);
                Landing::Alone
            }
        };
        let age = stored.freshness.age(Duration::ZERO);
        let (headers, forwarded) = (&client.headers, self.forwarded);
        let head = self.ask.wishes.head;
        let answer = reply::send(
            policy,
            Arc::new(Stored::Response(stored)),
            Some(age),
            headers,
            head,
            forwarded,
            outcome,
        );
        let _ = reply.send(Ok(answer));
        self.land(landing);
    }

    /// What is stored, if it may be given instead of an error.
    fn stale_instead_of_error(&self, status: Option<StatusCode>) -> Option<Found> {
        let found = self.looked.found.as_ref()?;
        let (freshness, resident) = (&found.response()?.freshness, found.resident());
        let unreachable = status.is_none_or(|status| matches!(status.as_u16(), 502 | 504));
        let may = freshness.may_serve_on_error(resident)
            || unreachable && freshness.may_serve_unreachable(resident, &self.rules.policy.rules);
        may.then(|| found.clone())
    }

    fn give_stale<R: Body, E>(
        self,
        stale: Found,
        status: Option<StatusCode>,
        client: &Client,
        reply: channel::Sender<Answer<R, E>>,
    ) {
        let mut outcome = Outcome::new(Source::Stale).with_reason("stale-if-error");
        outcome.handler_status = status;
        outcome.ttl = stale.stale_ttl();
        let looked =
            Looked { found: Some(stale.clone()), fence: None, key: self.looked.key.clone() };
        let (policy, forwarded) = (&self.rules.policy, self.forwarded);
        let answer = reply::hit(policy, looked, &client.headers, &self.ask, forwarded, outcome);
        let _ = reply.send(Ok(answer));
        let vary = stale.response().and_then(|stored| control::vary(&stored.headers));
        let landing = match vary {
            Some(vary) => Landing::Shared(Landed {
                found: stale,
                vary: vary.into(),
                key: self.looked.key.clone(),
                instead_of_error: true,
            }),
            None => Landing::Alone,
        };
        self.land(landing);
    }

    /// Another node has stored it while this one waited for its turn.
    fn give_found<R: Body, E>(
        self,
        request: &HeaderMap,
        ttl: i64,
        reply: channel::Sender<Answer<R, E>>,
    ) {
        let Looked { found, fence, key } = &self.looked;
        let looked = Looked { found: found.clone(), fence: *fence, key: key.clone() };
        let outcome = Outcome::new(Source::Collapsed).with_ttl(ttl);
        let (policy, forwarded) = (&self.rules.policy, self.forwarded);
        let answer = reply::hit(policy, looked, request, &self.ask, forwarded, outcome);
        let _ = reply.send(Ok(answer));
        let found = self.looked.found.clone();
        let vary =
            found.as_ref().and_then(Found::response).and_then(|it| control::vary(&it.headers));
        let landing = match found.zip(vary) {
            Some((found, vary)) => {
                let key = if vary.is_empty() {
                    self.ask.key.clone()
                } else {
                    variant(&self.ask.key, &vary, request)
                };
                Landing::Shared(Landed { found, vary: vary.into(), key, instead_of_error: false })
            }
            None => Landing::Alone,
        };
        self.land(landing);
    }

    fn land(self, landing: Landing<Landed>) {
        if let Some(leader) = self.leader {
            leader.land(landing);
        }
    }
}

enum Turn {
    /// To fill, with the lease if there is one.
    Ours(Option<Lease>),
    /// Somebody else has filled it; this is its time to live.
    Done(i64),
}

/// What is to be stored, but for the body.
struct Draft {
    storable: Storable,
    own: TagList,
    groups: Vec<String>,
    headers: HeaderMap,
    length: Option<u64>,
}

impl Draft {
    fn tags(&self, client: &Client) -> Vec<Tag> {
        let own = self.own.iter().map(tag::own);
        let groups = self.groups.iter().map(|group| tag::group(&client.host, group.as_bytes()));
        client.implicit.iter().cloned().chain(own).chain(groups).collect()
    }

    fn response(
        &self,
        status: StatusCode,
        body: Bytes,
        fill_time: Duration,
        policy: &Policy,
    ) -> Arc<Stored> {
        let mut headers = self.headers.clone();
        let wanted = policy.etag && status == StatusCode::OK;
        if wanted && !headers.contains_key(header::ETAG) {
            headers.insert(header::ETAG, etag(&body));
        }
        Arc::new(Stored::Response(StoredResponse {
            status,
            headers,
            freshness: self.storable.freshness,
            fill_time,
            tags: self.own.clone(),
            body,
        }))
    }
}

/// Why an answer is not stored.
struct NotStored {
    reason: &'static str,
    /// The next answer will not be stored either, most likely.
    is_remembered: bool,
}

const TOO_LARGE: NotStored = NotStored { reason: "too-large", is_remembered: true };

impl From<control::Refusal> for NotStored {
    fn from(refusal: control::Refusal) -> Self {
        Self { reason: refusal.as_str(), is_remembered: refusal.is_remembered() }
    }
}

impl From<TagError> for NotStored {
    fn from(error: TagError) -> Self {
        event!(warn, reason = error.reason(), "an answer was not stored because of its tags");
        Self { reason: error.reason(), is_remembered: true }
    }
}

/// What has been read of a body.
#[derive(Default)]
struct Chunks {
    chunks: Vec<Bytes>,
    length: usize,
}

/// How reading a body has ended.
enum End<E> {
    Whole,
    Trailers(HeaderMap),
    TooLong,
    Failed(E),
}

impl Chunks {
    /// Reads on. Dropped, it has lost nothing.
    async fn read<R: Body>(
        &mut self,
        body: &mut Pin<Box<R>>,
        max: usize,
        mut pass_on: impl FnMut(&Bytes),
    ) -> End<R::Error> {
        loop {
            let frame = match poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                None => return End::Whole,
                Some(Err(error)) => return End::Failed(error),
                Some(Ok(frame)) => frame,
            };
            let data = match frame.into_data() {
                Ok(data) => into_bytes(data),
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => return End::Trailers(trailers),
                    Err(_) => continue,
                },
            };
            pass_on(&data);
            self.length += data.len();
            self.chunks.push(data);
            if self.length > max {
                return End::TooLong;
            }
        }
    }

    /// All of it, without a copy if it came in one.
    fn join(&mut self) -> Bytes {
        if let [whole] = &self.chunks[..] {
            return whole.clone();
        }
        let mut whole = BytesMut::with_capacity(self.length);
        self.chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
        whole.freeze()
    }
}

/// What the future has to say at its first poll, if it has.
async fn now_or_later<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx: &mut Context<'_>| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}

/// Calls a service when it is ready.
pub(super) async fn oneshot<S, B>(
    mut service: S,
    request: Request<B>,
) -> Result<S::Response, S::Error>
where
    S: Service<Request<B>>,
{
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}

/// A statement of the cache itself.
pub(super) fn problem<R: Body>(
    status: StatusCode,
    detail: &'static str,
) -> Response<ResponseBody<R>> {
    Problem::from_status(status).with_detail(detail).into_response().map(ResponseBody::whole)
}

fn busy<R: Body>() -> Response<ResponseBody<R>> {
    let detail = "the cache is out of order, and too many requests wait for what is behind it";
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, detail);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The statuses for which RFC 5861 §4 gives a stale answer.
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn jittered(mut freshness: control::Freshness, share: f64) -> control::Freshness {
    if share > 0.0 {
        freshness.lifetime = freshness.lifetime.mul_f64(1.0 - share * random());
    }
    freshness
}

/// A strong one, by the content. Of ours, so that it is told from the handler's.
fn etag(body: &[u8]) -> HeaderValue {
    let mut hasher = SipHasher13::new();
    hasher.write(body);
    let hash = hasher.finish128().as_u128();
    HeaderValue::from_str(&format!("{OWN_ETAG}{hash:032x}\"")).expect("letters and digits")
}

const OWN_ETAG: &str = "\"tk-";

fn is_own(etag: &HeaderValue) -> bool {
    etag.as_bytes().starts_with(OWN_ETAG.as_bytes())
}

/// From 0 up to 1, not for secrets.
pub(super) fn random() -> f64 {
    // Every state has keys of its own. 53 bits are what a double holds.
    (RandomState::new().build_hasher().finish() >> 11) as f64 / (1_u64 << 53) as f64
}
