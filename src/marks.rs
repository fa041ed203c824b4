//! What layers tell one another about a request or its response.
//!
//! Marks ride in the extensions. No layer knows another; who reads a mark need not know who set it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// Whether a request has looked at who is asking: its session, its user.
///
/// A session layer touches the mark among the extensions of a request when the session is first read
/// or written. The [cache](crate::cache) stores no answer of a touched request, and gives nobody
/// else's to it. An authentication layer of your own can do the same. Clones are one mark.
///
/// Take the mark that is there, if there is one, and insert one otherwise, as `get_or_insert_default`
/// does: a cache further out holds the one that is there, and would not notice another.
///
/// # Examples
///
/// ```
/// use tower_keep::marks::SessionMark;
///
/// let mut request = http::Request::new(());
/// let mark = request.extensions_mut().get_or_insert_default::<SessionMark>().clone();
/// // Later, where the session is read:
/// mark.touch();
/// assert!(request.extensions().get::<SessionMark>().unwrap().is_touched());
/// ```
#[derive(Debug, Clone, Default)]
pub struct SessionMark(Arc<AtomicBool>);

impl SessionMark {
    /// A mark that was not touched.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that the request depends on who is asking.
    pub fn touch(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether it does.
    pub fn is_touched(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// Among the extensions of a response: it repeats a stored answer, and the handler did not run.
///
/// An idempotency layer puts it there when it repeats the answer to an earlier request of the same
/// key; one of your own can do the same. A rate limit further out then gives the request's units
/// back, so that a client that tries again is not punished for it, unless its policy
/// counts replays (`rate_limit::Policy::with_replays_counted`).
///
/// A request that is turned away because its twin is still running is no replay: nothing was
/// repeated.
///
/// # Examples
///
/// ```
/// use tower_keep::marks::ReplayMark;
///
/// let mut response = http::Response::new("paid");
/// response.extensions_mut().insert(ReplayMark);
/// // Later, in a layer further out:
/// assert!(response.extensions().get::<ReplayMark>().is_some());
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ReplayMark;
