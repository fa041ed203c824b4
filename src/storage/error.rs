//! The one error of every storage operation.

use std::fmt;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What a storage operation returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a storage operation failed.
///
/// Absence and conflict are values, never errors: an error always means that the storage could not
/// do its work or was asked for something that it cannot do. Whether the operation was applied is
/// unknown unless [`ErrorKind`] says otherwise.
///
/// # Security
///
/// Neither `Debug` nor `Display` shows a key, a value or a password; backends build the message
/// from parts that are safe to log.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Source>,
}

/// The class of an [`Error`], for deciding what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The backend cannot be reached, or refuses to work for now. Trying later may help.
    Unavailable,
    /// No answer came within the operation's deadline. It may have been applied.
    Timeout,
    /// What is stored under the key is not ours or is damaged. Nothing was changed.
    Corrupt,
    /// There is no room left for something that must not be evicted. Nothing was changed.
    Full,
    /// The arguments break the contract (two charges with one key, a tag without a fence).
    /// Nothing was changed; the caller is to be mended.
    Invalid,
    /// The backend cannot do this at all; see
    /// [`Capabilities`](crate::storage::Capabilities). Nothing was changed.
    Unsupported,
    /// The set-up is wrong: an address that cannot be parsed, a password that is refused.
    /// Nothing was changed.
    Configuration,
    /// Anything else.
    Other,
}

impl Error {
    /// An error of this kind, with a message for the person who operates the service.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps the cause, for [`source`](std::error::Error::source).
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later without anybody changing the set-up.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Full)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug.field("kind", &self.kind).field("message", &self.message);
        if let Some(source) = &self.source {
            debug.field("source", source);
        }
        debug.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_kind_and_its_source() {
        let error = Error::new(ErrorKind::Timeout, "no answer within 100 ms")
            .with_source(std::io::Error::other("reset"));
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.is_transient());
        assert_eq!(error.to_string(), "no answer within 100 ms");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "reset");
    }
}
