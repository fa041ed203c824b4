//! The scripts on a real server, most of them on a clock that the test turns.

mod acquire;
mod entries;
mod rig;
