//! Whose quota a request counts against.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::HeaderName;

use super::ClientAddress;
use crate::{RequestHead, storage::Identity};

/// Finds the [`Identity`] whose quota a request counts against.
///
/// The default is the client's address as the policy's [`ClientAddress`] sees it.
///
/// # Examples
///
/// ```
/// use tower_keep::{RequestHead, rate_limit::KeyExtractor, storage::Identity};
///
/// // By API key, and by address for those who send none.
/// let key = KeyExtractor::header("x-api-key").or(KeyExtractor::client_address());
///
/// let request = http::Request::builder().header("x-api-key", "k-1").body(()).unwrap();
/// assert_eq!(key.extract(RequestHead::new(&request)), Some(Identity::new("k-1")));
/// ```
///
/// # Security
///
/// Only what a client cannot choose freely limits it: an address, a verified user, a key that an
/// outer layer has checked. A header that nobody checks gives everybody as many quotas as they can
/// make up values.
#[derive(Clone)]
pub struct KeyExtractor(Kind);

type Extract = dyn Fn(RequestHead<'_>) -> Option<Identity> + Send + Sync;

#[derive(Clone)]
enum Kind {
    Address,
    Global,
    Header(HeaderName),
    Function(Arc<Extract>),
    Or(Arc<[KeyExtractor; 2]>),
    And(Arc<[KeyExtractor; 2]>),
}

impl KeyExtractor {
    /// The client's address: IPv4 whole, IPv6 by its prefix.
    pub fn client_address() -> Self {
        Self(Kind::Address)
    }

    /// One quota for everybody.
    pub fn global() -> Self {
        Self(Kind::Global)
    }

    /// The value of a header field, such as an API key. Several lines are one identity of several
    /// parts, never the first of them; an empty value is an identity, a missing field is none.
    ///
    /// # Panics
    ///
    /// If the name is not a header name in lower case.
    #[track_caller]
    pub fn header(name: &'static str) -> Self {
        Self(Kind::Header(HeaderName::from_static(name)))
    }

    /// Any function of the request's head.
    pub fn from_fn<F, I>(extract: F) -> Self
    where
        F: Fn(RequestHead<'_>) -> Option<I> + Send + Sync + 'static,
        I: Into<Identity>,
    {
        Self(Kind::Function(Arc::new(move |head| extract(head).map(Into::into))))
    }

    /// This identity, or the other's where a request has none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(Kind::Or(Arc::new([self, other])))
    }

    /// This identity and the other's together, such as user and route. None if either is missing.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(Kind::And(Arc::new([self, other])))
    }

    /// The identity of a request whose client address is found as by
    /// [`ClientAddress::peer`].
    pub fn extract(&self, head: RequestHead<'_>) -> Option<Identity> {
        self.extract_with(head, &ClientAddress::peer())
    }

    /// Whether a missing identity may be a missing peer address.
    pub(super) fn needs_address(&self) -> bool {
        match &self.0 {
            Kind::Address => true,
            Kind::Or(both) | Kind::And(both) => both.iter().any(Self::needs_address),
            Kind::Global | Kind::Header(_) | Kind::Function(_) => false,
        }
    }

    pub(super) fn extract_with(
        &self,
        head: RequestHead<'_>,
        address: &ClientAddress,
    ) -> Option<Identity> {
        match &self.0 {
            Kind::Address => address.identity(head),
            Kind::Global => Some(Identity::global()),
            Kind::Header(name) => {
                let mut values = head.headers().get_all(name).iter();
                let first = Identity::new(values.next()?);
                Some(values.fold(first, |identity, value| identity.and(value)))
            }
            Kind::Function(extract) => extract(head),
            Kind::Or(either) => either[0]
                .extract_with(head, address)
                .or_else(|| either[1].extract_with(head, address)),
            Kind::And(both) => {
                let first = both[0].extract_with(head, address)?;
                Some(first.and(both[1].extract_with(head, address)?.as_bytes()))
            }
        }
    }
}

impl Default for KeyExtractor {
    fn default() -> Self {
        Self::client_address()
    }
}

impl fmt::Debug for KeyExtractor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Address => f.write_str("ClientAddress"),
            Kind::Global => f.write_str("Global"),
            Kind::Header(name) => write!(f, "Header({name})"),
            Kind::Function(_) => f.write_str("Function"),
            Kind::Or(either) => write!(f, "{:?} or {:?}", either[0], either[1]),
            Kind::And(both) => write!(f, "{:?} and {:?}", both[0], both[1]),
        }
    }
}

pub(super) type IdentityFuture = Pin<Box<dyn Future<Output = Option<Identity>> + Send>>;

/// Finds an identity that has to be waited for.
#[derive(Clone)]
pub(super) struct AsyncKey(Arc<dyn Fn(RequestHead<'_>) -> IdentityFuture + Send + Sync>);

impl AsyncKey {
    pub(super) fn from_fn<F, R, I>(extract: F) -> Self
    where
        F: Fn(RequestHead<'_>) -> R + Send + Sync + 'static,
        R: Future<Output = Option<I>> + Send + 'static,
        I: Into<Identity>,
    {
        Self(Arc::new(move |head| {
            let identity = extract(head);
            Box::pin(async move { identity.await.map(Into::into) })
        }))
    }

    pub(super) fn extract(&self, head: RequestHead<'_>) -> IdentityFuture {
        (self.0)(head)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn extract(key: &KeyExtractor, lines: &[&'static [u8]]) -> Option<Identity> {
        let mut request = Request::new(());
        for line in lines {
            request.headers_mut().append("x-api-key", http::HeaderValue::from_bytes(line).unwrap());
        }
        key.extract(RequestHead::new(&request))
    }

    #[test]
    fn every_line_of_a_header_counts_and_empty_is_not_absent() {
        let key = KeyExtractor::header("x-api-key");
        assert_eq!(extract(&key, &[]), None);
        assert_eq!(extract(&key, &[b""]), Some(Identity::new("")));
        assert_eq!(extract(&key, &[b"\xff"]), Some(Identity::new(b"\xff")));
        assert_ne!(extract(&key, &[b"a", b"b"]), extract(&key, &[b"a"]));
        assert_ne!(extract(&key, &[b"a", b"b"]), extract(&key, &[b"b", b"a"]));
    }

    #[test]
    fn extractors_combine() {
        let key = KeyExtractor::header("x-api-key");
        let either = key.clone().or(KeyExtractor::global());
        assert_eq!(extract(&either, &[]), Some(Identity::global()));
        let both = key.and(KeyExtractor::from_fn(|head| Some(head.uri().path().to_owned())));
        assert_eq!(extract(&both, &[]), None);
        assert_ne!(extract(&both, &[b"a"]), extract(&either, &[b"a"]));
    }
}
