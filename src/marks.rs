//! What layers tell one another about a request.
//!
//! Marks ride in the extensions. No layer knows another; who reads a mark need not know who set it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// Whether a request has looked at who is asking: its session, its user.
///
/// A session layer puts a mark into the extensions of every request and touches it when the session
/// is first read or written. The [cache](crate::cache) stores no answer of a touched request, and
/// gives nobody else's to it. An authentication layer of your own can do the same. Clones are one
/// mark.
///
/// # Examples
///
/// ```
/// use tower_keep::marks::SessionMark;
///
/// let mark = SessionMark::new();
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(mark.clone());
/// // Later, where the session is read:
/// request.extensions().get::<SessionMark>().unwrap().touch();
/// assert!(mark.is_touched());
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
