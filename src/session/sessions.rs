//! The sessions of a layer, from outside of their requests.

use std::{
    cmp::Reverse,
    fmt,
    future::Future,
    marker::PhantomData,
    panic::resume_unwind,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    Device, Notice, Policy, PolicyError, SaveFailure, SessionError,
    cookie::Cookies,
    index::{Cursor, Member},
    store::{Loaded, Look, Seen, Store},
};
use crate::{
    clock,
    storage::{Error, ErrorKind, Storage},
};

/// The sessions of a layer: to list and end those of a principal from anywhere, such as when an
/// administrator locks an account.
///
/// Clones are the same sessions.
///
/// # Examples
///
/// ```
/// use tower_keep::{MemoryStorage, SessionLayer, session::Policy};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_keep::session::SessionError> {
/// let layer = SessionLayer::new(MemoryStorage::new(), Policy::new());
/// let sessions = layer.sessions().clone();
/// // Later, wherever the account is locked: one operation, whose effect all nodes see at once.
/// sessions.end_all("alice").await?;
/// # Ok(())
/// # }
/// ```
pub struct Sessions<R = ()> {
    shared: Arc<Shared>,
    realm: PhantomData<fn() -> R>,
}

pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) cookies: Cookies,
}

impl Sessions {
    /// Sessions on this storage.
    ///
    /// # Panics
    ///
    /// If the policy cannot be used. For settings from outside use [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new(storage: impl Storage, policy: Policy) -> Self {
        Self::try_new(storage, policy).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sessions on this storage, if the policy can be used.
    ///
    /// # Errors
    ///
    /// If its name, its times, its cap or its cookie cannot be used.
    pub fn try_new(storage: impl Storage, policy: Policy) -> Result<Self, PolicyError> {
        policy.check(true)?;
        Self::build(storage, policy)
    }

    /// Sessions for a realm of their own. See [`SessionLayer::in_realm`](super::SessionLayer::in_realm).
    ///
    /// # Errors
    ///
    /// As [`try_new`](Self::try_new), and without a [name](Policy::named) of their own.
    pub fn in_realm<R: 'static>(
        storage: impl Storage,
        policy: Policy,
    ) -> Result<Sessions<R>, PolicyError> {
        policy.check(std::any::TypeId::of::<R>() == std::any::TypeId::of::<()>())?;
        Sessions::build(storage, policy)
    }
}

impl<R> Sessions<R> {
    fn build(storage: impl Storage, policy: Policy) -> Result<Self, PolicyError> {
        let (cookies, namespace) = (policy.cookies()?, policy.namespace()?);
        let store = Store::new(storage.erase(), policy, namespace);
        Ok(Self { shared: Arc::new(Shared { store, cookies }), realm: PhantomData })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The sessions of a principal, a page at a time.
    ///
    /// The list is a hint: a session that began at this moment, on a node that then died, may be
    /// missing in it. [`end_all`](Self::end_all) ends it all the same.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer.
    pub async fn list(
        &self,
        principal: &str,
        at: SessionCursor,
    ) -> Result<SessionPage, SessionError> {
        self.shared.list(principal, at, None).await
    }

    /// Ends one session of a principal by its public id. Other principals' sessions are out of reach,
    /// and one that has ended stays so.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer: the session may go on. It is safe to repeat.
    pub async fn end(&self, principal: &str, public_id: Uuid) -> Result<(), SessionError> {
        self.shared.end(principal, public_id).await
    }

    /// Ends all sessions of a principal, on every node, with all saves that are under way to them, and
    /// all logins that have begun. One operation, however many they are.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer: the sessions may go on. It is safe to repeat.
    pub async fn end_all(&self, principal: &str) -> Result<(), SessionError> {
        Ok(self.shared.store.end_all(principal).await?)
    }

    /// Ends all sessions of all principals, as [`end_all`](Self::end_all) those of one: after a breach.
    /// Sessions of visitors who have not logged in go on.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer: the sessions may go on. It is safe to repeat.
    pub async fn end_everybody(&self) -> Result<(), SessionError> {
        Ok(self.shared.store.end_everybody().await?)
    }
}

impl Shared {
    /// Tells of a save that has failed.
    pub(super) fn report(&self, settled: Result<(), SessionError>) -> Result<(), SessionError> {
        if let Err(error) = &settled {
            event!(error, %error, "what a handler changed in its session was not saved");
            self.store.policy.observe(&Notice::NotSaved(SaveFailure::of(error)));
        }
        settled
    }

    /// Carries work out to its end, also if nobody waits for it any more.
    pub(super) async fn shielded<T, F>(&self, work: F) -> Result<T, SessionError>
    where
        F: Future<Output = Result<T, SessionError>> + Send + 'static,
        T: Send + 'static,
    {
        let Ok(runtime) = Handle::try_current() else { return work.await };
        match self.store.storage.tasks().spawn_on(work, &runtime).await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => {
                    let message = "the runtime is shutting down";
                    Err(Error::new(ErrorKind::Unavailable, message).into())
                }
            },
        }
    }

    pub(super) async fn end(&self, principal: &str, public_id: Uuid) -> Result<(), SessionError> {
        self.store.end(principal, public_id).await?;
        self.store.forget(principal, public_id).await;
        Ok(())
    }

    pub(super) async fn list(
        &self,
        principal: &str,
        at: SessionCursor,
        current: Option<&Loaded>,
    ) -> Result<SessionPage, SessionError> {
        let store = &self.store;
        let read = store.timed(store.index.read(principal, at.0)).await?;
        let looks = read.members().iter().map(|member| store.look(member.id));
        let (mut sessions, mut dead, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        for (member, seen) in read.members().iter().zip(join_all(looks).await) {
            let Seen { session, unused } = match seen? {
                Look::Alive(seen) => *seen,
                // A replaced one may be back in a moment.
                Look::Unreadable | Look::Replaced => continue,
                Look::Dead => {
                    dead.push(*member);
                    continue;
                }
            };
            // The index is a hint; what the record says counts.
            let live = &session.live;
            if live.principal.as_deref() != Some(principal) || live.handle != member.handle {
                dead.push(*member);
                continue;
            }
            if session.id != member.id {
                moved.push(Member { id: session.id, ..*member });
            }
            sessions.push(info(&session, unused));
        }
        if let Some(current) = current {
            for session in &mut sessions {
                session.current = session.public_id == current.live.handle;
            }
            // Where there are more pages it is on one of them.
            let is_only = at == SessionCursor::START && read.next().is_none();
            if is_only && !sessions.iter().any(|session| session.current) {
                let mut present = info(current, Duration::ZERO);
                present.current = true;
                sessions.push(present);
            }
        }
        sessions.sort_by_key(|session| Reverse(session.last_use));
        let next = read.next().map(SessionCursor);
        store.heal(principal, read, &dead, &moved).await;
        Ok(SessionPage { sessions, next })
    }
}

fn info(session: &Loaded, unused: Duration) -> SessionInfo {
    let now = clock::now();
    let ago = |duration: Duration| now.checked_sub(duration).unwrap_or(now);
    SessionInfo {
        public_id: session.live.handle,
        created: ago(session.age()),
        last_use: ago(unused),
        ends: now.checked_add(session.life_left()).unwrap_or(now),
        device: session.live.device.clone(),
        current: false,
    }
}

/// A session in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The public name by which it can be [ended](Sessions::end). Not the id: it opens nothing.
    pub public_id: Uuid,
    /// When the principal has logged in.
    pub created: SystemTime,
    /// When it was last used, give or take the policy's
    /// [slack](super::Policy::with_touch_slack).
    pub last_use: SystemTime,
    /// When it ends at the latest.
    pub ends: SystemTime,
    /// What the user can recognise it by.
    pub device: Device,
    /// Whether it is the session of the request that asks.
    pub current: bool,
}

/// Some of a principal's sessions, the most recently used first. Sessions may move from one page to
/// another meanwhile, and then be seen twice.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionPage {
    /// At most 64, or 65 with the one that asks, where the list does not have it yet.
    pub sessions: Vec<SessionInfo>,
    /// Where to go on, if there are more.
    pub next: Option<SessionCursor>,
}

/// A place in a list of sessions. As text it can be handed to a client and back.
///
/// # Examples
///
/// ```
/// use tower_keep::session::SessionCursor;
///
/// let start = SessionCursor::default();
/// assert_eq!(start.to_string().parse(), Ok(start));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionCursor(Cursor);

impl SessionCursor {
    /// The beginning.
    pub const START: Self = Self(Cursor::START);
}

impl Default for SessionCursor {
    fn default() -> Self {
        Self::START
    }
}

impl fmt::Display for SessionCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.bucket, self.0.buckets)
    }
}

/// Why a text is no [`SessionCursor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseCursorError;

impl fmt::Display for ParseCursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a place in a list of sessions: use the text that the last page gave")
    }
}

impl std::error::Error for ParseCursorError {}

impl FromStr for SessionCursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (bucket, buckets) = text.split_once('-').ok_or(ParseCursorError)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| ParseCursorError);
        let (bucket, buckets) = (number(bucket)?, number(buckets)?);
        if bucket >= buckets {
            return Err(ParseCursorError);
        }
        Ok(Self(Cursor { bucket, buckets }))
    }
}

impl<R> Clone for Sessions<R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), realm: PhantomData }
    }
}

impl<R> fmt::Debug for Sessions<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("policy", &self.shared.store.policy)
            .finish_non_exhaustive()
    }
}
