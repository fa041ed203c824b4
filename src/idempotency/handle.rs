//! What a handler knows of its key.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{Extensions, HeaderValue, Response, StatusCode, header};

use super::{
    IdempotencyKey, KeyHandle, fingerprint,
    record::{Phase, Record, State},
    shared::{Shared, Ticket},
};
use crate::{
    RequestHead,
    lease::{Extension, Hold},
    problem::Problem,
    storage,
};

/// The key of a request, and its attempt to be executed: for handlers that want to do more than run
/// once.
///
/// An extractor: `Idempotency` for routes where a key is required,
/// `Option<Idempotency>` where it is not. Clones are the same.
///
/// # Examples
///
/// ```
/// use axum::{Router, http::StatusCode, routing::post};
/// use tower_keep::{
///     IdempotencyLayer, MemoryStorage,
///     idempotency::{BeginError, Idempotency, Policy},
/// };
///
/// async fn pay(attempt: Idempotency, amount: String) -> Result<StatusCode, BeginError> {
///     let Ok(amount) = amount.parse::<u32>() else {
///         return Ok(StatusCode::UNPROCESSABLE_ENTITY); // The key is free again.
///     };
///     attempt.begin().await?;
///     charge(amount, &attempt.child_key("charge")).await; // From here on the answer is kept.
///     Ok(StatusCode::CREATED)
/// }
/// # async fn charge(_: u32, _: &str) {}
///
/// let policy = Policy::scope_public().with_required_key().with_commit_point();
/// let app: Router = Router::new()
///     .route("/payments", post(pay))
///     .layer(IdempotencyLayer::new(MemoryStorage::new(), policy));
/// # let _ = app;
/// ```
#[derive(Clone)]
pub struct Idempotency {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    key: IdempotencyKey,
    digest: [u8; 32],
    record: Record,
    /// `None` while the storage is away, and the policy lets the handler run.
    hold: Option<Arc<Hold>>,
    start: Mutex<Start>,
    /// The handler was told not to begin.
    refused: AtomicBool,
    sealed: AtomicBool,
}

/// Whether the handler has begun. A task that the handler has left behind may ask to, just when the key
/// is to be freed as nothing was begun: only one of the two gets its way.
#[derive(Default)]
struct Start {
    begun: bool,
    /// How many calls ask the storage.
    asking: usize,
    /// The key is being freed.
    closed: bool,
}

/// A call that asks the storage whether the handler may begin.
struct Asking<'a>(&'a Inner);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.start().asking -= 1;
    }
}

impl Inner {
    fn start(&self) -> MutexGuard<'_, Start> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Among the extensions of a request, the handles of layers further out than the innermost.
#[derive(Clone, Default)]
struct FurtherOut(Vec<Idempotency>);

/// Among the extensions of a request that came through the layer without a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoKey;

impl Idempotency {
    pub(super) fn new(
        shared: Arc<Shared>,
        key: IdempotencyKey,
        ticket: &Ticket,
        record: Record,
        hold: Option<Arc<Hold>>,
    ) -> Self {
        let inner = Inner {
            shared,
            key,
            digest: ticket.digest,
            record,
            hold,
            start: Mutex::default(),
            refused: false.into(),
            sealed: false.into(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Goes along with a request; the handler sees the handle of the innermost layer.
    pub(super) fn enter(&self, extensions: &mut Extensions) {
        if let Some(outer) = extensions.insert(self.clone()) {
            extensions.get_or_insert_default::<FurtherOut>().0.push(outer);
        }
    }

    /// The handles of all layers that a request came through with a key.
    pub(super) fn all(extensions: &Extensions) -> impl Iterator<Item = &Self> {
        let further = extensions.get::<FurtherOut>().into_iter().flat_map(|further| &further.0);
        extensions.get::<Self>().into_iter().chain(further)
    }

    /// That of a request, for services without axum. `None` if the request has no key, or came through
    /// no layer.
    pub fn of(head: RequestHead<'_>) -> Option<Self> {
        head.extensions().get().cloned()
    }

    /// The client's key, without quotes.
    pub fn key(&self) -> &IdempotencyKey {
        &self.inner.key
    }

    /// By which operators find the key: no secret, and good for logs.
    pub fn handle(&self) -> KeyHandle {
        KeyHandle(self.inner.digest)
    }

    /// Which attempt this is, from 1 on. It is higher if an owner before this one has vanished: the work
    /// may be done in part.
    pub fn attempt(&self) -> u32 {
        self.inner.record.attempt
    }

    /// The fencing number: higher than that of every earlier attempt with this key.
    ///
    /// Hand it along with each write to a database that refuses numbers lower than the highest it has
    /// seen: so an attempt that was believed dead cannot overwrite what a later one did. It rises as
    /// [versions](crate::storage) do. 0 while the storage is away and [`Outage`](super::Outage) is open.
    pub fn fence(&self) -> u64 {
        self.inner.hold.as_ref().map_or(0, |hold| hold.fence().as_u64())
    }

    /// A key for a call to another service: the same for each attempt of this request, and different
    /// for each `name`, key, scope and request.
    ///
    /// It has the form of a UUID, tells nothing of the client's key, and makes the call safe to repeat
    /// if the other service takes idempotency keys, too.
    pub fn child_key(&self, name: &str) -> String {
        fingerprint::child_key(&self.inner.digest, &self.inner.record.fingerprint, name)
    }

    /// The commit point: from here on the answer is kept, whatever it is. Call it before the first
    /// thing that must not be done twice.
    ///
    /// It makes sure that the key is still this attempt's, and notes in the storage that the handler
    /// has come this far: one round trip. With [`Policy::with_commit_point`](super::Policy::with_commit_point)
    /// everything that is answered before it frees the key, and an owner that vanishes before it is
    /// known to have done nothing. A second call does nothing.
    ///
    /// # Errors
    ///
    /// If the key is somebody else's by now, or the storage gives no answer. Then the handler has to
    /// return: nothing is done yet.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, the handler has not begun; what the storage knows may be more.
    pub async fn begin(&self) -> Result<(), BeginError> {
        let inner = &self.inner;
        let Some(hold) = &inner.hold else { return Ok(()) };
        let asking = {
            let mut start = inner.start();
            if start.begun {
                return Ok(());
            }
            if start.closed {
                inner.refused.store(true, SeqCst);
                return Err(BeginError { kind: BeginErrorKind::Lost });
            }
            start.asking += 1;
            Asking(inner)
        };
        let record = Record { state: State::Pending(Phase::AfterCommit), ..inner.record.clone() };
        let value = inner.shared.encode(&record, &inner.digest);
        let kind = match inner.shared.in_time(hold.change(value)).await {
            Ok(Extension::Extended) => {
                inner.start().begun = true;
                return Ok(());
            }
            Ok(Extension::Lost) => BeginErrorKind::Lost,
            Err(error) => BeginErrorKind::Unavailable(error),
        };
        drop(asking);
        inner.refused.store(true, SeqCst);
        Err(BeginError { kind })
    }

    /// Keeps the answer out of the storage: it holds a secret that is shown once. The request counts as
    /// executed, and duplicates are told so, with its status and its `Location` (unless the policy
    /// [drops](super::Policy::add_dropped_header) that).
    ///
    /// An answer that frees the key, such as 422 before [`begin`](Self::begin), frees it all the same.
    /// [`Disposition::Seal`](super::Disposition::Seal) in the response seals in any case.
    pub fn seal(&self) {
        self.inner.sealed.store(true, SeqCst);
    }

    /// Whether the lease is lost: this attempt may be taken for dead, and another one may run.
    pub fn is_lost(&self) -> bool {
        self.inner.hold.as_ref().is_some_and(|hold| hold.is_over())
    }

    /// Resolves when the lease is lost. Never while the storage is away and
    /// [`Outage`](super::Outage) is open.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; it changes nothing.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let lost = self.inner.hold.as_ref().map(|hold| hold.lost());
        async move {
            match lost {
                Some(lost) => lost.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Says whether the handler has not begun, and is not about to; if so, it never will.
    pub(super) fn close(&self) -> bool {
        let mut start = self.inner.start();
        start.closed |= !start.begun && start.asking == 0;
        start.closed
    }

    pub(super) fn was_refused(&self) -> bool {
        self.inner.refused.load(SeqCst)
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.inner.sealed.load(SeqCst)
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("attempt", &self.attempt())
            .field("fence", &self.fence())
            .finish_non_exhaustive()
    }
}

/// Why a handler must not [begin](Idempotency::begin).
///
/// A response for axum: 409 or 503, both with `Retry-After`.
#[derive(Debug)]
pub struct BeginError {
    kind: BeginErrorKind,
}

/// What happened, to be matched on.
#[derive(Debug)]
#[non_exhaustive]
pub enum BeginErrorKind {
    /// The attempt was taken for dead, and the key is somebody else's.
    Lost,
    /// The storage gave no answer.
    Unavailable(storage::Error),
}

impl BeginError {
    /// What happened.
    pub fn kind(&self) -> &BeginErrorKind {
        &self.kind
    }

    /// The response that it is answered with, for services without axum.
    pub fn to_response(&self) -> Response<Bytes> {
        let (status, code, detail) = match self.kind {
            BeginErrorKind::Lost => {
                (StatusCode::CONFLICT, "in-flight", "the same request is under way elsewhere")
            }
            BeginErrorKind::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the key cannot be checked for now; nothing was done",
            ),
        };
        let problem = Problem::from_status(status).with_detail(detail).with_member("code", code);
        let mut response = problem.into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        // Nothing was done, whatever the policy makes of the status.
        response.extensions_mut().insert(super::Disposition::Release);
        response
    }
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            BeginErrorKind::Lost => f.write_str(
                "the attempt was silent for longer than its lease, and another may be under way",
            ),
            BeginErrorKind::Unavailable(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BeginError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            BeginErrorKind::Lost => None,
            BeginErrorKind::Unavailable(error) => Some(error),
        }
    }
}
