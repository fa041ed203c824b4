//! Sessions.
#![allow(dead_code, unused_imports)] // while it is being built

mod token;

pub use self::token::SessionToken;
use self::token::TokenDigest;
