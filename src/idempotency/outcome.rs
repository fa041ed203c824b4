//! What the layer did with a request.

/// What the layer did with a request that it had something to do with: among the extensions of its
/// response, for layers outside that count or log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The handler ran.
    Executed,
    /// The handler ran without protection, as the storage gave no answer.
    Unprotected,
    /// A stored response was given.
    Replayed,
    /// A [recovery](super::Policy::with_recovery) said what the response was.
    Recovered,
    /// The request was executed, and its response is not kept. 409.
    Sealed,
    /// Another request with the key is under way. 409.
    InFlight,
    /// What came of the request is unknown. 409.
    Unknown,
    /// The key was used for another request. 422.
    Mismatch,
    /// There is no key. 400.
    KeyMissing,
    /// The key cannot be read. 400.
    KeyInvalid,
    /// Nobody knows whose key it is. 400.
    ScopeMissing,
    /// The request's body is too large. 413.
    BodyTooLarge,
    /// The request's body broke off. 400.
    BodyFailed,
    /// The scope has too many keys in flight. 429.
    TooManyInFlight,
    /// Too many handlers are running. 503.
    Busy,
    /// The storage gave no answer, or one that cannot be read. 503.
    Unavailable,
    /// The server is set up wrongly, or is stopping. 500 or 503.
    Failed,
}

impl Outcome {
    /// As one word, for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Unprotected => "unprotected",
            Self::Replayed => "replayed",
            Self::Recovered => "recovered",
            Self::Sealed => "sealed",
            Self::InFlight => "in-flight",
            Self::Unknown => "unknown",
            Self::Mismatch => "mismatch",
            Self::KeyMissing => "key-missing",
            Self::KeyInvalid => "key-invalid",
            Self::ScopeMissing => "scope-missing",
            Self::BodyTooLarge => "body-too-large",
            Self::BodyFailed => "body-failed",
            Self::TooManyInFlight => "too-many-in-flight",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }
}
