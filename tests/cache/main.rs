//! The response cache, as its users see it.

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod commands;
mod stampede;
