//! ecoprobe: joules per cgroup.
//!
//! Data moves one way: `meter` reads counters, `collector` puts the readings of one instant into a
//! [`sample::Sample`], `session` and the pure `energy` turn samples into a ledger, `output` shows
//! it. Nothing on the left knows anything on its right.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod base;
pub mod carbon;
pub mod cli;
pub mod collector;
pub mod command;
pub mod config;
pub mod door;
pub mod energy;
pub mod event;
pub mod host;
pub mod meter;
pub mod output;
pub(crate) mod pipeline;
pub mod probe;
pub mod recording;
pub mod view;
pub mod workload;
