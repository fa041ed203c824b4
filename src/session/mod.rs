//! Sessions.
#![allow(dead_code, unused_imports)] // while it is being built

mod cookie;
mod presented;
mod privacy;
mod token;

#[cfg(feature = "secure-cookies")]
#[cfg_attr(docsrs, doc(cfg(feature = "secure-cookies")))]
pub use self::cookie::KeyRing;
pub use self::cookie::{CookieError, CookieSettings, SameSite};
pub use self::token::SessionToken;
use self::token::TokenDigest;
