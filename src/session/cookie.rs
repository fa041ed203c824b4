//! The cookie that carries a token.

mod error;
#[cfg(feature = "secure-cookies")]
mod keys;
mod seal;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, fmt, io::BufRead as _, time::Duration};

use ::cookie::{
    Cookie, CookieBuilder,
    time::{Duration as Seconds, OffsetDateTime},
};
use http::HeaderValue;

pub use self::error::CookieError;
#[cfg(feature = "secure-cookies")]
pub use self::keys::KeyRing;
use self::{error::cut, seal::Seal};
use super::{SessionToken, presented::Presented};

/// Browsers cut a longer `Max-Age` (RFC 6265bis).
const LONGEST_LIFE: Duration = Duration::from_secs(400 * 86_400);
/// With these a whole `Set-Cookie` stays below 4096 bytes, above which browsers drop cookies.
const LONGEST_NAME: usize = 256;
const LONGEST_DOMAIN: usize = 253;
/// Browsers ignore a longer attribute (RFC 6265bis).
const LONGEST_PATH: usize = 1024;

/// What a name must begin with so that browsers hold the cookie to it (RFC 6265bis, section 4.1.3),
/// the most specific first.
const PREFIXES: [&str; 4] = ["__Host-Http-", "__Host-", "__Secure-", "__Http-"];

/// When a browser sends the cookie along with requests that another site has caused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SameSite {
    /// Only if the user follows a link. The default.
    #[default]
    Lax,
    /// Never: whoever follows a link from another site or from a mail arrives without a session.
    Strict,
    /// Always, for a service that other sites embed.
    ///
    /// # Security
    ///
    /// Any site can then cause requests in the user's name: check where they come from.
    None,
}

/// How the session cookie is sent.
///
/// The default is `__Host-<name>` with `Secure`, `HttpOnly`, `SameSite=Lax` and `Path=/`, without
/// `Domain`, and with a `Max-Age` of what is left of the session's absolute lifetime, at most 400
/// days. The name is the policy's. Mistakes are found when the policy is finished.
///
/// # Security
///
/// Only the host itself can set a cookie whose name begins with `__Host-`, and only by HTTPS, so that
/// nobody on a sister domain or on the network can plant one. `HttpOnly` cannot be switched off. The
/// storage and not the cookie decides how long a session lives.
///
/// The value is 256 random bits, which nobody can guess. Signing or encrypting it
/// (feature `secure-cookies`) adds that strangers' values never reach the storage.
///
/// # Examples
///
/// ```
/// use tower_keep::session::{CookieSettings, SameSite};
///
/// let cookie = CookieSettings::new().with_same_site(SameSite::Strict).until_browser_closes();
/// assert!(format!("{cookie:?}").contains("same_site: Strict"));
/// ```
///
/// With secrets, of which nothing is ever shown:
///
/// ```
/// # #[cfg(feature = "secure-cookies")] {
/// use tower_keep::session::{CookieSettings, KeyRing};
///
/// let secret = [7; 32]; // from wherever the service keeps secrets
/// let cookie = CookieSettings::new().encrypted(KeyRing::new(&secret)?);
/// assert!(format!("{cookie:?}").contains("Encrypted(KeyRing { previous: 0, .. })"));
/// # }
/// # Ok::<(), tower_keep::session::CookieError>(())
/// ```
#[derive(Debug, Clone)]
pub struct CookieSettings {
    /// Instead of a prefix and the policy's name.
    exact_name: Option<String>,
    same_site: SameSite,
    domain: Option<String>,
    path: Cow<'static, str>,
    partitioned: bool,
    until_browser_closes: bool,
    secure: bool,
    seal: Seal,
}

impl CookieSettings {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            exact_name: None,
            same_site: SameSite::default(),
            domain: None,
            path: Cow::Borrowed("/"),
            partitioned: false,
            until_browser_closes: false,
            secure: true,
            seal: Seal::None,
        }
    }

    /// Sends the cookie under exactly this name, without adding a prefix to it.
    ///
    /// # Security
    ///
    /// Under a name without the prefix `__Host-`, any host of the same site and anybody on the network
    /// can plant a cookie. If it arrives beside ours, the request has no session.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        self.exact_name = Some(name.to_owned());
        self
    }

    /// When the cookie comes with requests that another site has caused.
    #[must_use]
    pub fn with_same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Sends the cookie also to all subdomains of this domain.
    ///
    /// # Security
    ///
    /// All of these hosts get the session and can plant one. As the prefix `__Host-` is for one host,
    /// `__Secure-` takes its place, and an event warns of it.
    #[must_use]
    pub fn with_domain(mut self, domain: &str) -> Self {
        // RFC 6265, section 5.2.3: a leading dot means nothing.
        self.domain = Some(domain.strip_prefix('.').unwrap_or(domain).to_owned());
        self
    }

    /// Sends the cookie only below this path.
    ///
    /// # Security
    ///
    /// This keeps no secret from the rest of the host, whose pages can open those below the path. As
    /// the prefix `__Host-` is for the path `/`, `__Secure-` takes its place, and an event warns of it.
    #[must_use]
    pub fn with_path(mut self, path: &str) -> Self {
        self.path = Cow::Owned(path.to_owned());
        self
    }

    /// Keeps one session for each site in which this one is embedded (`Partitioned`, CHIPS), where
    /// browsers give third parties no other cookie. Usually together with [`SameSite::None`].
    #[must_use]
    pub fn partitioned(mut self) -> Self {
        self.partitioned = true;
        self
    }

    /// Asks the browser to forget the cookie when it closes, by leaving `Max-Age` out.
    ///
    /// Browsers that reopen their windows keep it nevertheless.
    #[must_use]
    pub fn until_browser_closes(mut self) -> Self {
        self.until_browser_closes = true;
        self
    }

    /// Lets the cookie travel over plain HTTP: no `Secure`, and the name without a prefix.
    ///
    /// Most browsers accept `Secure` cookies from `http://localhost`, so this is for other names, such
    /// as a phone that opens the developer's machine by its address.
    ///
    /// # Security
    ///
    /// Everybody on the network can then read the session and plant one. An event warns of it.
    #[must_use]
    pub fn insecure_for_development(mut self) -> Self {
        self.secure = false;
        self
    }

    /// Signs the value (HMAC-SHA-256), in place of encrypting it.
    ///
    /// Cookies that were sent before are no longer accepted.
    #[cfg(feature = "secure-cookies")]
    #[cfg_attr(docsrs, doc(cfg(feature = "secure-cookies")))]
    #[must_use]
    pub fn signed(mut self, keys: KeyRing) -> Self {
        self.seal = Seal::Signed(keys);
        self
    }

    /// Encrypts the value (AES-256-GCM), in place of signing it.
    ///
    /// Cookies that were sent before are no longer accepted.
    #[cfg(feature = "secure-cookies")]
    #[cfg_attr(docsrs, doc(cfg(feature = "secure-cookies")))]
    #[must_use]
    pub fn encrypted(mut self, keys: KeyRing) -> Self {
        self.seal = Seal::Encrypted(keys);
        self
    }

    /// The cookie of a policy of this name.
    pub(crate) fn build(self, name: &str) -> Result<Cookies, CookieError> {
        if let Some(domain) = self.domain.as_ref().filter(|domain| !is_domain(domain)) {
            return Err(CookieError::Domain { domain: cut(domain) });
        }
        if !is_path(&self.path) {
            return Err(CookieError::Path { path: cut(&self.path) });
        }
        if !self.secure && self.same_site == SameSite::None {
            return Err(CookieError::SameSiteNone);
        }
        if !self.secure && self.partitioned {
            return Err(CookieError::Partitioned);
        }
        let name = self.name(name)?;
        if !self.secure {
            event!(
                warn,
                cookie = %name,
                "the session cookie travels over plain HTTP, where everybody on the network can read \
                 and plant it: call insecure_for_development() in development only"
            );
        } else if self.exact_name.is_none() && !self.is_for_one_host() {
            event!(
                warn,
                cookie = %name,
                "the session cookie has a domain or a path, so its name begins with __Secure- in place \
                 of __Host-, and sister hosts can plant one: do without both if you can"
            );
        }
        let mut cookies = Cookies { name, settings: self, removal: HeaderValue::from_static("") };
        let removal = cookies.with_attributes(String::new()).max_age(Seconds::ZERO);
        cookies.removal = value(removal.expires(OffsetDateTime::UNIX_EPOCH));
        Ok(cookies)
    }

    fn name(&self, policy: &str) -> Result<String, CookieError> {
        let name = match &self.exact_name {
            Some(name) => name.clone(),
            None if !self.secure => policy.to_owned(),
            None if self.is_for_one_host() => format!("__Host-{policy}"),
            None => format!("__Secure-{policy}"),
        };
        let asked = self.exact_name.as_deref().unwrap_or(policy);
        if asked.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(is_token) {
            return Err(CookieError::Name { name: cut(asked) });
        }
        // Browsers compare the prefixes without regard to case (RFC 6265bis).
        let begins = |prefix: &&str| {
            let start = name.as_bytes().get(..prefix.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        match PREFIXES.into_iter().find(begins) {
            Some(prefix) if !self.keeps(prefix) => {
                Err(CookieError::Prefix { name: cut(&name), prefix })
            }
            _ => Ok(name),
        }
    }

    fn keeps(&self, prefix: &str) -> bool {
        self.secure && (self.is_for_one_host() || !prefix.starts_with("__Host-"))
    }

    fn is_for_one_host(&self) -> bool {
        self.domain.is_none() && self.path == "/"
    }
}

impl Default for CookieSettings {
    fn default() -> Self {
        Self::new()
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    text.len() <= LONGEST_DOMAIN && text.split('.').all(is_label)
}

/// RFC 6265, section 4.1.1, and no space, which no request line has.
fn is_path(text: &str) -> bool {
    text.len() <= LONGEST_PATH
        && text.starts_with('/')
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';')
}

/// Reads and writes the session cookie.
#[derive(Clone)]
pub(crate) struct Cookies {
    name: String,
    settings: CookieSettings,
    removal: HeaderValue,
}

impl Cookies {
    /// As it is sent, prefix and all.
    #[cfg(test)]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the `Cookie` lines bring, of which HTTP/2 may send several (RFC 9113, section 8.2.3).
    ///
    /// The line is split here, as a parser of text has no answer for a line in which somebody else's
    /// cookie is not UTF-8, and `Cookie::split_parse` trims every whitespace of Unicode: a browser
    /// lets a sister host plant U+2000 before `__Host-`, for it is another name, and that parser would
    /// read ours. No quotes are understood either, so none can hide a `;`.
    pub(crate) fn read<'l>(&self, lines: impl Iterator<Item = &'l HeaderValue>) -> Presented {
        let mut found = None;
        for line in lines {
            let mut rest = line.as_bytes();
            while !rest.is_empty() {
                let pair;
                (pair, rest) = split_at_semicolon(rest);
                let Some(value) = self.value_in(pair) else { continue };
                match found {
                    Some(other) if other != value => return Presented::Ambiguous,
                    _ => found = Some(value),
                }
            }
        }
        found.map_or(Presented::None, |value| self.settings.seal.open(&self.name, value))
    }

    fn value_in<'l>(&self, pair: &'l [u8]) -> Option<&'l [u8]> {
        // Spaces and tabs: a header field has no other ASCII whitespace.
        let pair = pair.trim_ascii_start();
        let value = pair.strip_prefix(self.name.as_bytes())?.strip_prefix(b"=")?;
        Some(value.trim_ascii_end())
    }

    /// A `Set-Cookie` for a session with this much of its absolute lifetime left.
    pub(crate) fn write(&self, token: &SessionToken, life_left: Duration) -> HeaderValue {
        let mut cookie = self.with_attributes(self.settings.seal.close(&self.name, token));
        if !self.settings.until_browser_closes {
            cookie = cookie.max_age(Seconds::seconds(max_age(life_left)));
        }
        let mut value = value(cookie);
        // Neither Debug nor the tables of HPACK (RFC 7541, section 7.1.3) are to keep it.
        value.set_sensitive(true);
        value
    }

    /// A `Set-Cookie` by which the browser forgets the cookie. Its attributes are those with which it
    /// was set, as otherwise it would be another cookie, or be refused.
    pub(crate) fn removal(&self) -> HeaderValue {
        self.removal.clone()
    }

    fn with_attributes(&self, value: String) -> CookieBuilder<'_> {
        let settings = &self.settings;
        let mut cookie = Cookie::build((&*self.name, value))
            .http_only(true)
            .same_site(match settings.same_site {
                SameSite::Lax => ::cookie::SameSite::Lax,
                SameSite::Strict => ::cookie::SameSite::Strict,
                SameSite::None => ::cookie::SameSite::None,
            })
            .secure(settings.secure)
            .path(&*settings.path);
        if settings.partitioned {
            cookie = cookie.partitioned(true);
        }
        if let Some(domain) = &settings.domain {
            cookie = cookie.domain(domain);
        }
        cookie
    }
}

/// By the standard library's `memchr`, which costs a tenth of a loop on a long line, and half of one
/// on an ordinary line.
fn split_at_semicolon(line: &[u8]) -> (&[u8], &[u8]) {
    let mut rest = line;
    let length = rest.skip_until(b';').unwrap_or(line.len());
    let first = &line[..length];
    (first.strip_suffix(b";").unwrap_or(first), rest)
}

/// In whole seconds, rounded up: the cookie does not end before the session does.
fn max_age(life_left: Duration) -> i64 {
    let life = life_left.min(LONGEST_LIFE);
    let seconds = life.as_secs() + u64::from(life.subsec_nanos() > 0);
    i64::try_from(seconds).expect("400 days are few seconds")
}

fn value(cookie: CookieBuilder<'_>) -> HeaderValue {
    HeaderValue::try_from(cookie.build().to_string())
        .expect("the name, the attributes and Base64 are visible ASCII")
}

impl fmt::Debug for Cookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cookies").field("name", &self.name).finish_non_exhaustive()
    }
}
