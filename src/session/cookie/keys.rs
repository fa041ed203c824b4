//! Secrets under which cookies are signed or encrypted.

use std::fmt;

use ::cookie::{Cookie, CookieJar, Key};

use super::CookieError;

/// What `Key::derive_from` takes at least.
const SHORTEST_SECRET: usize = 32;

/// The secrets that sign or encrypt a session cookie: the current one, and those before it.
///
/// To change the secret, deploy it as the current one with the old one as a previous one. Cookies
/// under the old secret are still accepted, and sent again under the new one. Remove the old secret
/// once all of its sessions have been used or have expired.
///
/// # Security
///
/// A secret is random bytes, not a passphrase: nothing makes guessing expensive. Two applications, or
/// two policies of one, need two secrets, as a signature does not cover the cookie's name. `Debug`
/// shows how many secrets there are and nothing of them.
///
/// # Examples
///
/// ```
/// use tower_keep::session::{CookieError, KeyRing};
///
/// let (new, old) = ([0x5a; 32], [0xa5; 32]); // from wherever the service keeps secrets
/// let ring = KeyRing::new(&new)?.add_previous(&old)?;
/// assert_eq!(format!("{ring:?}"), "KeyRing { previous: 1, .. }");
///
/// assert_eq!(KeyRing::new(b"guess me").unwrap_err(), CookieError::ShortSecret { length: 8 });
/// # Ok::<(), CookieError>(())
/// ```
#[derive(Clone)]
pub struct KeyRing {
    current: Key,
    previous: Vec<Key>,
}

impl KeyRing {
    /// With a secret of at least 32 random bytes.
    ///
    /// # Errors
    ///
    /// If there are fewer.
    pub fn new(secret: &[u8]) -> Result<Self, CookieError> {
        Ok(Self { current: key(secret)?, previous: Vec::new() })
    }

    /// Also accepts what was signed or encrypted under this secret.
    ///
    /// # Errors
    ///
    /// If it has fewer than 32 bytes.
    pub fn add_previous(mut self, secret: &[u8]) -> Result<Self, CookieError> {
        self.previous.push(key(secret)?);
        Ok(self)
    }

    pub(super) fn sign(&self, text: String) -> String {
        let mut jar = CookieJar::new();
        jar.signed_mut(&self.current).add(("", text));
        value_of(&jar, "")
    }

    /// The text that was signed.
    pub(super) fn verify(&self, value: &str) -> Option<Opened> {
        let cookie = Cookie::new("", value.to_owned());
        self.first(|key| CookieJar::new().signed(key).verify(cookie.clone()))
    }

    pub(super) fn encrypt(&self, name: &str, text: String) -> String {
        let mut jar = CookieJar::new();
        jar.private_mut(&self.current).add((name.to_owned(), text));
        value_of(&jar, name)
    }

    /// The text that was encrypted for a cookie of this name.
    pub(super) fn decrypt(&self, name: &str, value: &str) -> Option<Opened> {
        let cookie = Cookie::new(name.to_owned(), value.to_owned());
        self.first(|key| CookieJar::new().private(key).decrypt(cookie.clone()))
    }

    fn first(&self, open: impl Fn(&Key) -> Option<Cookie<'static>>) -> Option<Opened> {
        let opened = |cookie: Cookie<'_>, renew| Opened { text: cookie.value().to_owned(), renew };
        if let Some(cookie) = open(&self.current) {
            return Some(opened(cookie, false));
        }
        self.previous.iter().find_map(open).map(|cookie| opened(cookie, true))
    }
}

pub(super) struct Opened {
    pub(super) text: String,
    /// A previous key did it.
    pub(super) renew: bool,
}

fn key(secret: &[u8]) -> Result<Key, CookieError> {
    if secret.len() < SHORTEST_SECRET {
        return Err(CookieError::ShortSecret { length: secret.len() });
    }
    Ok(Key::derive_from(secret))
}

fn value_of(jar: &CookieJar, name: &str) -> String {
    jar.get(name).map(|cookie| cookie.value().to_owned()).expect("what was added is there")
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("previous", &self.previous.len()).finish_non_exhaustive()
    }
}
