//! What layers tell one another about a request.
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
