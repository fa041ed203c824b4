//! Mistakes in how the cookie is set up, each with what to do about it.

use std::fmt;

/// Why a [`CookieSettings`](super::CookieSettings) makes no cookie that browsers keep.
///
/// Texts are cut after 64 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CookieError {
    /// The text cannot name a cookie (RFC 6265, section 4.1.1), or is longer than 256 bytes.
    Name {
        /// The text.
        name: String,
    },
    /// The name begins with a prefix that promises what the attributes do not keep.
    Prefix {
        /// The name.
        name: String,
        /// The prefix.
        prefix: &'static str,
    },
    /// The text is no domain.
    Domain {
        /// The text.
        domain: String,
    },
    /// The text is no path, or is longer than 1024 bytes.
    Path {
        /// The text.
        path: String,
    },
    /// `SameSite=None` without `Secure`.
    SameSiteNone,
    /// `Partitioned` without `Secure`.
    Partitioned,
    /// The secret is shorter than 32 bytes.
    #[cfg(feature = "secure-cookies")]
    #[cfg_attr(docsrs, doc(cfg(feature = "secure-cookies")))]
    ShortSecret {
        /// How many bytes it has.
        length: usize,
    },
}

pub(super) fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

impl fmt::Display for CookieError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { name } => write!(
                f,
                "{name:?} cannot name a cookie: use up to 256 letters, digits, '-' and '_', such as \"sid\""
            ),
            Self::Prefix { name, prefix: prefix @ ("__Host-" | "__Host-Http-") } => write!(
                f,
                "browsers refuse {name:?}: {prefix} allows no domain, no path but \"/\" and no insecure_for_development(); do without these or without the prefix"
            ),
            Self::Prefix { name, prefix } => write!(
                f,
                "browsers refuse {name:?}: {prefix} allows no insecure_for_development(); do without it or without the prefix"
            ),
            Self::Domain { domain } => write!(
                f,
                "{domain:?} is no domain: write it as in \"example.com\", in Punycode if it has other letters, without scheme and port"
            ),
            Self::Path { path } => write!(
                f,
                "{path:?} is no path of a cookie: begin it with '/', percent-encode it, leave ';' out, and keep to 1024 bytes"
            ),
            Self::SameSiteNone => f.write_str(
                "browsers refuse SameSite=None without Secure: use SameSite::Lax while insecure_for_development() is on, or serve HTTPS",
            ),
            Self::Partitioned => f.write_str(
                "browsers refuse Partitioned without Secure: leave partitioned() out while insecure_for_development() is on, or serve HTTPS",
            ),
            #[cfg(feature = "secure-cookies")]
            Self::ShortSecret { length } => write!(
                f,
                "a secret of {length} bytes can be guessed: use at least 32 random bytes, such as those of `openssl rand 32`"
            ),
        }
    }
}

impl std::error::Error for CookieError {}
