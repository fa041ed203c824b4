//! What is asked of keys, and what becomes of them.

mod choices;
mod error;
mod scope;

use self::error::MOST_IN_FLIGHT;
pub(super) use self::scope::{Scope, ScopeUnavailable};
pub use self::{
    choices::{InFlight, MissingScope, Outage, Repeat},
    error::PolicyError,
};

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method};

use super::{
    FingerprintRules, KeySyntax,
    classify::{Answer, Disposition},
    headers::HeaderRules,
    key::KeyRules,
    record::Compression,
    recover::{Recovery, Vanished},
};
use crate::{
    RequestHead,
    storage::{Identity, Name},
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Below this, what is kept back for clocks and timers would be most of the lease.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

type RecoveryFuture = Pin<Box<dyn Future<Output = Recovery> + Send>>;
pub(super) type Recover = dyn Fn(Vanished) -> RecoveryFuture + Send + Sync;
type Classify = dyn Fn(&Answer<'_>) -> Disposition + Send + Sync;

/// What is asked of keys, and what becomes of them.
///
/// A policy begins with whose keys they are, for without that everybody who knows or guesses a key
/// is given the answer that belongs to it: [`scope`](Self::scope), [`scope_async`](Self::scope_async)
/// or, for services that know nobody, [`scope_public`](Self::scope_public). All else has a default.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::idempotency::{InFlight, Policy, Repeat};
///
/// # #[derive(Clone)] struct UserId(u64);
/// let policy = Policy::scope(|head| Some(head.extensions().get::<UserId>()?.0.to_string()))
///     .with_required_key()
///     .with_repeat(Repeat::AtMostOnce)
///     .with_in_flight(InFlight::Wait(Duration::from_secs(5)))
///     .with_retention(Duration::from_secs(7 * 24 * 3_600));
/// # let _ = policy;
/// ```
#[derive(Clone)]
pub struct Policy {
    name: String,
    pub(super) scope: Scope,
    pub(super) missing_scope: MissingScope,
    pub(super) methods: Vec<Method>,
    pub(super) required: bool,
    pub(super) key: KeyRules,
    pub(super) per_route: bool,
    pub(super) fingerprint: FingerprintRules,
    pub(super) max_request: usize,
    pub(super) lease: Duration,
    pub(super) longest_run: Duration,
    pub(super) retention: Duration,
    pub(super) timeout: Duration,
    pub(super) repeat: Repeat,
    pub(super) commit_point: bool,
    pub(super) recover: Option<Arc<Recover>>,
    pub(super) in_flight: InFlight,
    pub(super) max_waiting: usize,
    pub(super) max_running: usize,
    pub(super) retry_after: Duration,
    classify: Option<Arc<Classify>>,
    pub(super) failure: Disposition,
    pub(super) headers: HeaderRules,
    pub(super) max_response: usize,
    pub(super) body_timeout: Duration,
    pub(super) compression: Option<Compression>,
    pub(super) outage: Outage,
    pub(super) most_in_flight: Option<u32>,
    pub(super) most_stored: Option<u32>,
    pub(super) documentation: Option<Arc<str>>,
}

impl Policy {
    fn with_scope(scope: Scope) -> Self {
        Self {
            name: "keys".to_owned(),
            scope,
            missing_scope: MissingScope::default(),
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            key: KeyRules::default(),
            per_route: true,
            fingerprint: FingerprintRules::new(),
            max_request: 1 << 20,
            lease: Duration::from_secs(30),
            longest_run: 15 * MINUTE,
            retention: DAY,
            timeout: Duration::from_millis(500),
            repeat: Repeat::default(),
            commit_point: false,
            recover: None,
            in_flight: InFlight::default(),
            max_waiting: 1_024,
            max_running: 10_000,
            retry_after: Duration::from_secs(1),
            classify: None,
            failure: Disposition::Store,
            headers: HeaderRules::default(),
            max_response: 1 << 20,
            body_timeout: MINUTE,
            compression: None,
            outage: Outage::default(),
            most_in_flight: None,
            most_stored: None,
            documentation: None,
        }
    }

    /// Keys belong to whom this closure finds in the request: the user, the tenant, the API key, as
    /// the *authentication* outside of this layer has found them out.
    ///
    /// # Security
    ///
    /// Never a header field that a client can choose freely: an answer is given to everybody with an
    /// equal scope, key and request.
    pub fn scope<I: Into<Identity>>(
        scope: impl Fn(RequestHead<'_>) -> Option<I> + Send + Sync + 'static,
    ) -> Self {
        Self::with_scope(Scope::Found(Arc::new(move |head| scope(head).map(Into::into))))
    }

    /// The same for a scope that has to be waited for, such as the principal of a session.
    ///
    /// With an error the request is refused, 503 with `Retry-After`, whatever the policy says of
    /// [outages](Self::with_outage): under another scope its key would be another.
    ///
    /// A session that is loaded, not only identified, makes a replay `private`, as the first answer was.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "session")] {
    /// use tower_keep::{
    ///     idempotency::Policy,
    ///     session::{SessionError, SessionHandle},
    /// };
    ///
    /// let policy = Policy::scope_async(|head| {
    ///     let session: Option<SessionHandle> = SessionHandle::of(head);
    ///     async move {
    ///         let Some(session) = session else { return Ok::<_, SessionError>(None) };
    ///         session.load().await?;
    ///         Ok(session.principal())
    ///     }
    /// });
    /// # let _ = policy;
    /// # }
    /// ```
    pub fn scope_async<F, I, E>(
        scope: impl Fn(RequestHead<'_>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Option<I>, E>> + Send + 'static,
        I: Into<Identity>,
        E: fmt::Display,
    {
        Self::with_scope(Scope::Asked(Arc::new(move |head| {
            let scope = scope(head);
            Box::pin(async move {
                match scope.await {
                    Ok(scope) => Ok(scope.map(Into::into)),
                    Err(error) => {
                        let _ = &error; // without events
                        event!(warn, %error, "whose idempotency key it is could not be found out");
                        Err(ScopeUnavailable)
                    }
                }
            })
        })))
    }

    /// Keys belong to nobody in particular.
    ///
    /// # Security
    ///
    /// Whoever sends a key that somebody else has used, with an equal request, is given that answer.
    pub fn scope_public() -> Self {
        Self::with_scope(Scope::Public)
    }

    /// Keys of different names are apart, also with one storage. Default: `keys`.
    ///
    /// Names that cannot be used are refused where the policy is.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// What becomes of a request that has a key and no scope. Default: it is refused.
    #[must_use]
    pub fn with_missing_scope(mut self, missing_scope: MissingScope) -> Self {
        self.missing_scope = missing_scope;
        self
    }

    /// The methods whose requests may have a key. Default: POST and PATCH. All others pass by: PUT and
    /// DELETE are idempotent by themselves (RFC 9110 §9.2.2).
    #[must_use]
    pub fn with_methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Refuses requests without a key: 400. By default they go to the handler, unprotected.
    #[must_use]
    pub fn with_required_key(mut self) -> Self {
        self.required = true;
        self
    }

    /// The name of the header field. Default: `Idempotency-Key`.
    ///
    /// # Panics
    ///
    /// If that is no name of a header field.
    #[must_use]
    #[track_caller]
    pub fn with_header(mut self, name: &str) -> Self {
        self.key.header = header_name(name);
        // An echo is of this request alone.
        self.headers.extra_dropped.push(self.key.header.clone());
        self
    }

    /// How keys are written. Default: quoted, as the IETF's draft has it, or bare.
    #[must_use]
    pub fn with_syntax(mut self, syntax: KeySyntax) -> Self {
        self.key.syntax = syntax;
        self
    }

    /// How many characters a key has, at least and at most. Default: 1 to 255.
    ///
    /// A least length of 16 or more keeps clients from sending keys that somebody may guess.
    #[must_use]
    pub fn with_key_length(mut self, min: usize, max: usize) -> Self {
        (self.key.min_length, self.key.max_length) = (min, max);
        self
    }

    /// Lets a key mean one request on all routes and methods: on another one it is refused, 422. By
    /// default each route has its own keys, told apart by method and path.
    #[must_use]
    pub fn with_keys_shared_by_routes(mut self) -> Self {
        self.per_route = false;
        self
    }

    /// What makes two requests the same. Default: method, path, query, content type and body.
    #[must_use]
    pub fn with_fingerprint(mut self, fingerprint: FingerprintRules) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    /// The largest request body, in bytes: 1 MiB unless set. It is read before the handler runs, as it
    /// belongs to the fingerprint; larger ones are refused, 413.
    #[must_use]
    pub fn with_max_request_body(mut self, bytes: usize) -> Self {
        self.max_request = bytes;
        self
    }

    /// How long an owner may be silent before it counts as vanished: 30 s unless set. A running
    /// handler extends it at each third.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long the lease of a running handler is extended: 15 minutes unless set. A handler that takes
    /// longer counts as vanished a lease later.
    #[must_use]
    pub fn with_longest_run(mut self, longest: Duration) -> Self {
        self.longest_run = longest;
        self
    }

    /// How long a key is remembered: 24 hours unless set. Publish it: a key that is used again later is
    /// a new request.
    #[must_use]
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// How long the storage may take to answer: half a second unless set.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What a duplicate may do after the owner has vanished. Default: run the handler again.
    #[must_use]
    pub fn with_repeat(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }

    /// Says that the handlers call [`begin`](super::Idempotency::begin) before anything that must not
    /// be done twice. What they answer before it frees the key, whatever the status; what they answer
    /// after it is kept. And an owner that vanished before it has done nothing.
    #[must_use]
    pub fn with_commit_point(mut self) -> Self {
        self.commit_point = true;
        self
    }

    /// [At most once](Repeat::AtMostOnce), with a way to find out what a vanished owner has done: a
    /// look at the ledger, a question to the payment provider.
    ///
    /// It is called by a duplicate, by one at a time; the duplicate waits for it. Not under
    /// [`Repeat::AtLeastOnce`], which a later [`with_repeat`](Self::with_repeat) would bring back.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::Response;
    /// use tower_keep::idempotency::{Policy, Recovery};
    ///
    /// # #[derive(Clone, Copy)] struct Ledger;
    /// # impl Ledger { async fn find(&self, _: &str) -> Result<Option<String>, ()> { Ok(None) } }
    /// # let ledger = Ledger;
    /// let policy = Policy::scope_public().with_recovery(move |vanished| async move {
    ///     match ledger.find(&vanished.child_key("charge")).await {
    ///         Ok(Some(receipt)) => Recovery::Completed(Response::new(receipt.into())),
    ///         Ok(None) => Recovery::NotExecuted,
    ///         Err(_) => Recovery::Unknown,
    ///     }
    /// });
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn with_recovery<F>(
        mut self,
        recover: impl Fn(Vanished) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Recovery> + Send + 'static,
    {
        self.repeat = Repeat::AtMostOnce;
        self.recover = Some(Arc::new(move |vanished| Box::pin(recover(vanished))));
        self
    }

    /// What a duplicate is told while the first is under way. Default: 409.
    #[must_use]
    pub fn with_in_flight(mut self, in_flight: InFlight) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// How many duplicates of this process may wait at once: 1,024 unless set. More are told 409.
    #[must_use]
    pub fn with_max_waiting(mut self, most: usize) -> Self {
        self.max_waiting = most;
        self
    }

    /// How many handlers with a key may run at once in this process: 10,000 unless set. More are
    /// refused, 503.
    ///
    /// Handlers run on when their clients go away, so limits on connections or on requests outside of
    /// this layer do not bound them.
    #[must_use]
    pub fn with_max_running(mut self, most: usize) -> Self {
        self.max_running = most;
        self
    }

    /// What `Retry-After` says to a duplicate whose first is under way: a second unless set.
    #[must_use]
    pub fn with_retry_after(mut self, pause: Duration) -> Self {
        self.retry_after = pause;
        self
    }

    /// Decides by the head of an answer what becomes of its key. [`Answer::usual`] is the default, for
    /// all that the closure does not care about.
    ///
    /// Not asked before the [commit point](Self::with_commit_point) of a policy that has one, or when the
    /// answer bears a [`Disposition`]. After [`begin`](super::Idempotency::begin) it only chooses between
    /// storing and sealing: [`Release`](Disposition::Release) is taken for
    /// [`Store`](Disposition::Store).
    ///
    /// # Examples
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_keep::idempotency::{Disposition, Policy};
    ///
    /// let policy = Policy::scope_public().with_classifier(|answer| match answer.status() {
    ///     StatusCode::BAD_GATEWAY => Disposition::Release,
    ///     _ => answer.usual(),
    /// });
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn with_classifier(
        mut self,
        classify: impl Fn(&Answer<'_>) -> Disposition + Send + Sync + 'static,
    ) -> Self {
        self.classify = Some(Arc::new(classify));
        self
    }

    /// What becomes of the key when the handler panics or its service fails with an error. Default:
    /// [`Store`](Disposition::Store), of a plain 500, as part of the work may be done.
    #[must_use]
    pub fn with_failure(mut self, disposition: Disposition) -> Self {
        self.failure = disposition;
        self
    }

    /// Drops a header field from what is stored and replayed, beside those that
    /// [never are](crate::idempotency#what-a-replay-carries).
    ///
    /// # Panics
    ///
    /// If that is no name of a header field.
    #[must_use]
    #[track_caller]
    pub fn add_dropped_header(mut self, name: &str) -> Self {
        self.headers.extra_dropped.push(header_name(name));
        self
    }

    /// Stores and replays these header fields only.
    ///
    /// # Panics
    ///
    /// If one is no name of a header field.
    #[must_use]
    #[track_caller]
    pub fn with_kept_headers<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut kept = Vec::new();
        for name in names {
            kept.push(header_name(name));
        }
        self.headers.allow_only = Some(kept);
        self
    }

    /// The largest response body that is stored, in bytes: 1 MiB unless set. A larger one streams
    /// through, and its key is sealed: executed, and the response not kept.
    #[must_use]
    pub fn with_max_response_body(mut self, bytes: usize) -> Self {
        self.max_response = bytes;
        self
    }

    /// How long a response body may take to its end: a minute unless set. One that takes longer
    /// streams on, and its key is sealed.
    #[must_use]
    pub fn with_body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// Compresses stored bodies of at least this many bytes with zstd, where that makes them smaller.
    #[cfg(feature = "zstd")]
    #[cfg_attr(docsrs, doc(cfg(feature = "zstd")))]
    #[must_use]
    pub fn with_compression(mut self, at_least: usize) -> Self {
        self.compression = Some(Compression::at_least(at_least));
        self
    }

    /// What becomes of a request with a key while the storage gives no answer. Default: 503.
    #[must_use]
    pub fn with_outage(mut self, outage: Outage) -> Self {
        self.outage = outage;
        self
    }

    /// How many keys of one scope may be in flight at once, on all nodes: 1 to 1,000. More are
    /// refused, 429. Default: no bound.
    ///
    /// Costs an operation of the storage before each first request, and one after. A place of an owner
    /// that vanished is free an hour later.
    #[must_use]
    pub fn with_max_in_flight(mut self, most: u32) -> Self {
        self.most_in_flight = Some(most);
        self
    }

    /// How many bytes of response bodies are kept for one scope, in KiB, over the retention. When they
    /// are used up keys are sealed instead: executed, and the response not kept. Default: no bound.
    ///
    /// Costs an operation of the storage after each first request.
    #[must_use]
    pub fn with_max_stored(mut self, kibibytes: u32) -> Self {
        self.most_stored = Some(kibibytes);
        self
    }

    /// Where clients find how keys are used here: the `type` of problems, and `Link` with
    /// `rel="describedby"`, as the IETF's draft has it.
    ///
    /// # Panics
    ///
    /// If the address cannot stand in a header field.
    #[must_use]
    #[track_caller]
    pub fn with_documentation(mut self, url: &str) -> Self {
        let fits = HeaderValue::from_str(url).is_ok() && !url.contains(['<', '>', ' ']);
        assert!(fits, "{url:?} cannot be linked to in a header field");
        self.documentation = Some(url.into());
        self
    }

    /// What becomes of the key after this answer.
    pub(super) fn classify(&self, answer: &Answer<'_>) -> Disposition {
        match &self.classify {
            Some(classify) => classify(answer),
            None => answer.usual(),
        }
    }

    /// The namespace of the keys, if the policy can be used.
    pub(super) fn check(&self) -> Result<Name, PolicyError> {
        let Self { lease, retention, .. } = *self;
        if lease < SHORTEST_LEASE {
            return Err(PolicyError::Lease(lease));
        }
        if retention <= lease {
            return Err(PolicyError::Retention(retention));
        }
        if self.timeout.is_zero() {
            return Err(PolicyError::Timeout);
        }
        if self.methods.is_empty() {
            return Err(PolicyError::Methods);
        }
        let (min, max) = (self.key.min_length, self.key.max_length);
        if min > max || max == 0 {
            return Err(PolicyError::KeyLength { min, max });
        }
        if let Some(most) = self.most_in_flight
            && !(1..=MOST_IN_FLIGHT).contains(&most)
        {
            return Err(PolicyError::InFlight(most));
        }
        if self.max_running == 0 {
            return Err(PolicyError::Running);
        }
        match Name::try_new(&self.name) {
            Ok(_) if self.name.len() <= 40 => Ok(Name::new(&format!("idempotency.{}", self.name))),
            _ => Err(PolicyError::Name(self.name.clone())),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("methods", &self.methods)
            .field("required", &self.required)
            .field("lease", &self.lease)
            .field("retention", &self.retention)
            .field("repeat", &self.repeat)
            .field("in_flight", &self.in_flight)
            .field("outage", &self.outage)
            .finish_non_exhaustive()
    }
}

#[track_caller]
fn header_name(name: &str) -> HeaderName {
    // A closure would be its own caller.
    match HeaderName::try_from(name) {
        Ok(name) => name,
        Err(_) => panic!("{name:?} cannot be the name of a header field"),
    }
}
