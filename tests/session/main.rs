//! Sessions, as their users see them.

#[path = "../support/race.rs"]
mod race;
#[path = "../support/staged.rs"]
mod staged;
#[path = "../support/mod.rs"]
mod support;

mod asvs;
mod basics;
mod cancel;
mod commands;
mod cookies;
mod data;
mod layers;
mod nodes;
mod outage;
mod principals;
mod probes;
mod races;
mod reviewed;
mod reviewed_http;
mod shop;
mod time;
mod watched;

use race::redis_storage;
