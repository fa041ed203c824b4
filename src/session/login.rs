//! Who logs in.

use std::{fmt, time::Duration};

use super::Device;

/// Who logs in, and how.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::session::Login;
///
/// let login = Login::new("alice").with_lifetime(Duration::from_secs(8 * 3_600));
/// # let _ = login;
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub(super) principal: String,
    pub(super) device: Option<Device>,
    pub(super) lifetime: Option<Duration>,
}

impl Login {
    /// A login of this principal: the name or number by which the application knows the user for
    /// ever, as text. Rather not an e-mail address, which can pass to somebody else. Nobody logs in as
    /// the empty text.
    pub fn new(principal: impl Into<String>) -> Self {
        Self { principal: principal.into(), device: None, lifetime: None }
    }

    /// What the user recognises the session by. Default: what the
    /// [policy](super::Policy::with_device) makes of the request.
    #[must_use]
    pub fn with_device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// An absolute lifetime shorter than the policy's, as for "do not remember me".
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }
}

/// Not who it is.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("device", &self.device)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl<P: Into<String>> From<P> for Login {
    fn from(principal: P) -> Self {
        Self::new(principal)
    }
}
