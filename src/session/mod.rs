//! Sessions.
#![allow(dead_code, unused_imports)] // while it is being built

mod index;
mod queue;
mod token;

pub use self::token::SessionToken;
use self::token::TokenDigest;
