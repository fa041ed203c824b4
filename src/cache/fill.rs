//! Asking the handler, and storing its answer: in a task of its own, which goes on when the client
//! that caused it has gone.

mod client;
mod draft;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header, response};
use http_body::Body;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot as channel},
    time::timeout,
};
use tower_service::Service;

pub(super) use self::draft::jittered;
use self::{
    client::{Client, condition},
    draft::{Draft, INNER_CACHE, NotStored, TOO_LARGE, content_length},
};
use super::{
    CacheTags, Outcome, Policy, ResponseBody, Source,
    control::{self, Forward, Reuse, Wishes},
    entry::{Stored, StoredResponse},
    flight::{Landing, Leader},
    handle::{FlightKey, Landed, Within},
    outcome::STALE_IF_ERROR,
    reply,
    service::{Ask, Inside, Rules},
    shelf::{Found, Looked, variant},
    turn::Queue,
};
use crate::{
    body::{
        chunks::{Chunks, End, now_or_later},
        live::Piece,
    },
    lease::Lease,
    service::oneshot,
    storage::Storage,
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
        let rules = Arc::clone(&self.rules);
        rules.handle.shared.tasks().spawn(self.fill(inner, request, reply, false));
        // Without a reply the handler has panicked, in a task where that ends no connection.
        answer.await.unwrap_or_else(|_| {
            Ok(reply::problem(StatusCode::INTERNAL_SERVER_ERROR, "the handler has panicked"))
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
        let patience = self.rules.policy.fill_timeout;
        let rules = Arc::clone(&self.rules);
        rules.handle.shared.tasks().spawn(async move {
            let (reply, _answer) = channel::channel();
            let mut fill = pin!(self.fill(inner, request, reply, true));
            // A handler that hangs must not keep others from being renewed.
            if timeout(patience, fill.as_mut()).await.is_err() {
                drop(permit);
                fill.await;
            }
        });
    }

    async fn fill<S, B, R>(
        mut self,
        inner: S,
        mut request: Request<B>,
        reply: channel::Sender<Answer<R, S::Error>>,
        is_renewal: bool,
    ) where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body,
    {
        let rules = Arc::clone(&self.rules);
        let shared = &rules.handle.shared;
        let lease = match self.wait_for_turn(request.headers()).await {
            Turn::Ours(lease) => lease,
            Turn::Done(ttl) => return self.give_found(request.headers(), ttl, reply),
        };
        let _permit = match self.looked.fence {
            Some(_) => None,
            // One further out has a place already.
            None if self.ask.depth > 0 => None,
            None => match timeout(rules.policy.fill_timeout, shared.outage.acquire()).await {
                Ok(permit) => permit.ok(),
                Err(_) => {
                    let _ = reply.send(Ok(reply::busy()));
                    return;
                }
            },
        };
        let turn = lease.is_some().then(|| self.ask.key.clone());
        Inside::enter(&rules, is_renewal, turn, request.extensions_mut());
        let client = Client::prepare(&rules, &self.looked, &mut request);
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
                if refusal.is_remembered && !client.facts.is_credentialed {
                    shared.remember_miss(&self.ask);
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
        if self.leader.is_none() || self.looked.fence.is_none() || self.ask.has_turn {
            return Turn::Ours(None);
        }
        let (shelf, patience) = (&rules.handle.shared.shelf, rules.policy.fill_timeout);
        let Some(mut queue) = Queue::new(shelf, &self.looked.key, ttl, patience) else {
            return Turn::Ours(None);
        };
        loop {
            let turn = queue.try_enter().await;
            let now = rules.look_up(&self.ask, request).await;
            if let Reuse::Fresh { ttl_seconds: ttl } =
                rules.reuse(&now, now.resident(), &self.ask.wishes)
            {
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

    fn is_personal(&self, client: &Client) -> bool {
        !self.rules.policy.rules.keyed_principal && client.mark.is_touched()
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
        if parts.extensions.get::<Outcome>().is_some() {
            // A layer inside has decided, by a policy that knows more of the route.
            return Err(INNER_CACHE);
        }
        let arrival = client.arrival();
        let (headers, control) = (&parts.headers, &rules.policy.rules);
        let mut storable = control::store(&client.facts, parts.status, headers, control, arrival)?;
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
        let headers = control::stored_headers(&parts.headers, control, arrival.now);
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
        let outcome = self.outcome(&draft);
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
            // Only what comes from another cache is not of this moment.
            let has_age = parts.headers.contains_key(header::AGE);
            let age = has_age.then(|| draft.storable.freshness.age(Duration::ZERO));
            let (whole, headers, wishes) = (Arc::clone(&stored), &client.headers, &self.ask.wishes);
            let mut answer =
                reply::send(policy, whole, age, headers, wishes, self.forwarded, outcome);
            // What the handler says to outer layers.
            answer.extensions_mut().extend(parts.extensions);
            if shared.shelf.storage.capabilities().local {
                // The next request of whoever gets this finds it.
                let landing = self.keep(&draft, &client, stored).await;
                let _ = reply.send(Ok(answer));
                self.land(landing);
            } else {
                // Who comes before it is stored waits for the landing.
                let _ = reply.send(Ok(answer));
                let landing = self.keep(&draft, &client, stored).await;
                self.land(landing);
            }
            return;
        }

        let (pieces, live) = mpsc::unbounded_channel();
        for chunk in &chunks.chunks {
            let _ = pieces.send(Piece::Data(chunk.clone()));
        }
        let status = parts.status;
        let response = Response::from_parts(parts, ());
        let response = reply::pass_head(policy, response, self.forwarded, outcome);
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
                shared.remember_miss(&self.ask);
                Landing::Alone
            }
            End::TooLong => {
                let _ = pieces.send(Piece::Rest(body));
                shared.remember_miss(&self.ask);
                Landing::Alone
            }
            End::Failed(error) => {
                let _ = pieces.send(Piece::Failed(error));
                Landing::Failed
            }
        };
        self.land(landing);
    }

    /// What becomes of an answer that may be stored, if its body comes to a clean end.
    fn outcome(&self, draft: &Draft) -> Outcome {
        let mut outcome = Outcome::new(Source::Handler);
        if self.looked.fence.is_some() {
            outcome.stored = true;
            outcome.ttl = Some(draft.storable.freshness.ttl_seconds(Duration::ZERO));
        } else if self.rules.handle.shared.is_bypassed() {
            outcome.reason = Some("purge-pending");
        } else {
            outcome.reason = Some("storage-unavailable");
        }
        outcome
    }

    /// Stores a complete response, and says what the others are to be told.
    async fn keep(&self, draft: &Draft, client: &Client, stored: Arc<Stored>) -> Landing<Landed> {
        let shared = &self.rules.handle.shared;
        let primary = &self.ask.key;
        // A streaming body may have looked at the session.
        if self.is_personal(client) {
            shared.remember_miss(&self.ask);
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
            shared.remember_miss(&self.ask);
            return Landing::Alone;
        }
        shared.forget_miss(&self.ask);
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
        let arrival = client.arrival();
        let mut headers = control::freshen(&old.headers, &parts.headers, control, arrival.now);
        let storable = control::revalidated(
            &client.facts,
            old.status,
            &headers,
            &parts.headers,
            &old.freshness,
            control,
            arrival,
        );
        let own = parts.extensions.get::<CacheTags>();
        // The new tags, if there are any, and the policy's; otherwise those that it had.
        let derived = client.derived.iter().map(|tag| tag.as_bytes());
        let own = match policy.tag_rule.collect(own, &parts.headers, []) {
            Ok(new) if new.is_empty() => Ok(old.tags.clone()),
            Ok(_) => policy.tag_rule.collect(own, &parts.headers, derived),
            Err(error) => Err(error),
        };
        // Those of the 304 are no more the client's than those of the first answer.
        policy.tag_rule.forward(&mut headers, own.as_ref().unwrap_or(&old.tags));
        let mut stored = StoredResponse { headers, ..old.clone() };
        let mut outcome = Outcome::new(Source::Revalidated);
        outcome.handler_status = Some(parts.status);
        let storable = match parts.extensions.get::<Outcome>() {
            // Only the layer inside knows for how long.
            Some(_) => Err(INNER_CACHE),
            None => storable.map_err(NotStored::from),
        };
        let landing = match storable.and_then(|storable| Ok((storable, own?))) {
            Ok((storable, own)) => {
                stored.tags = own.clone();
                stored.freshness = jittered(storable.freshness, policy.jitter);
                outcome = outcome.with_ttl(stored.freshness.ttl_seconds(Duration::ZERO));
                outcome.stored = self.looked.fence.is_some() && !self.is_personal(&client);
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
        if let Some(inner) = parts.extensions.get::<Outcome>() {
            outcome = *inner;
        }
        let age = stored.freshness.age(Duration::ZERO);
        let (headers, forwarded) = (&client.headers, self.forwarded);
        let wishes = &self.ask.wishes;
        let answer = reply::send(
            policy,
            Arc::new(Stored::Response(stored)),
            Some(age),
            headers,
            wishes,
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
        let mut outcome = Outcome::new(Source::Stale).with_reason(STALE_IF_ERROR);
        outcome.handler_status = status;
        outcome.ttl = stale.stale_ttl();
        let looked = Looked { found: Some(stale), fence: None, key: self.looked.key.clone() };
        let (policy, headers, resident) = (&self.rules.policy, &client.headers, looked.resident());
        let answer =
            reply::hit(policy, looked, resident, headers, &self.ask, self.forwarded, outcome);
        let _ = reply.send(Ok(answer));
        self.land_found(true);
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
        let (policy, resident) = (&self.rules.policy, looked.resident());
        let answer =
            reply::hit(policy, looked, resident, request, &self.ask, self.forwarded, outcome);
        let _ = reply.send(Ok(answer));
        self.land_found(false);
    }

    /// What was found is for all who wait, if it is their variant.
    fn land_found(self, instead_of_error: bool) {
        let found = self.looked.found.clone();
        let stored = found.as_ref().and_then(Found::response);
        let vary = stored.and_then(|stored| control::vary(&stored.headers));
        let landing = match found.zip(vary) {
            Some((found, vary)) => {
                let key = self.looked.key.clone();
                Landing::Shared(Landed { found, vary: vary.into(), key, instead_of_error })
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

/// The statuses for which RFC 5861 §4 gives a stale answer.
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// From 0 up to 1, not for secrets.
pub(super) fn random() -> f64 {
    // Every state has keys of its own. 53 bits are what a double holds.
    (RandomState::new().build_hasher().finish() >> 11) as f64 / (1_u64 << 53) as f64
}
