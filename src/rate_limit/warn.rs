//! A word, once, about a service behind a proxy that does not know it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use http::{HeaderMap, HeaderName, header};

use super::address::X_FORWARDED_FOR;
use crate::RequestHead;

/// Looking costs two searches, so it ends after the first requests of the process.
const LOOKS: u32 = 1_000;

/// How many looks are left.
struct Watch(AtomicU32);

static WATCH: Watch = Watch(AtomicU32::new(LOOKS));

/// Warns if no proxy is trusted and the request looks as if it came through one.
#[inline]
pub(super) fn look_for_proxy(head: RequestHead<'_>) {
    if let Some(header) = WATCH.first_sign(head.headers()) {
        warn(&header);
    }
}

#[cold]
fn warn(header: &HeaderName) {
    tracing::warn!(
        target: "tower_keep::rate_limit",
        %header,
        "a request has a forwarding header but no proxy is trusted, so clients behind one proxy \
         share its limit: configure ClientAddress::behind_proxies([..]), behind_hops(n) or \
         platform_header(..); if clients connect directly, nothing is wrong (this is said once)"
    );
}

impl Watch {
    fn first_sign(&self, headers: &HeaderMap) -> Option<HeaderName> {
        let left = self.0.load(Relaxed);
        if left == 0 {
            return None;
        }
        let found =
            [X_FORWARDED_FOR, header::FORWARDED].into_iter().find(|h| headers.contains_key(h));
        match found {
            // The swap decides who of several threads says it.
            Some(header) => (self.0.swap(0, Relaxed) > 0).then_some(header),
            None => {
                // Lost updates are looks too many, and harmless; a silence is never undone.
                let _ = self.0.compare_exchange(left, left - 1, Relaxed, Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName) -> HeaderMap {
        HeaderMap::from_iter([(name, "192.0.2.1".parse().unwrap())])
    }

    #[test]
    fn a_forwarding_header_is_noticed_once() {
        let watch = Watch(AtomicU32::new(LOOKS));
        assert_eq!(watch.first_sign(&with(header::HOST)), None);
        assert_eq!(watch.first_sign(&with(X_FORWARDED_FOR)), Some(X_FORWARDED_FOR));
        assert_eq!(watch.first_sign(&with(header::FORWARDED)), None);
    }

    #[test]
    fn looking_ends_after_the_first_requests() {
        let watch = Watch(AtomicU32::new(LOOKS));
        for _ in 0..LOOKS {
            assert_eq!(watch.first_sign(&HeaderMap::new()), None);
        }
        assert_eq!(watch.first_sign(&with(header::FORWARDED)), None);
    }
}
