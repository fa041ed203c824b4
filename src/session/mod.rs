//! Sessions.
#![allow(dead_code, unused_imports)] // while it is being built

mod device;
mod fields;
mod record;
mod token;

pub use self::{device::Device, fields::FieldsError, token::SessionToken};
use self::{
    fields::{Changes, Class, Fields},
    record::{DecodeError, Live, Moved, Record},
    token::TokenDigest,
};
