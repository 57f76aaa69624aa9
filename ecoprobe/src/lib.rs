//! ecoprobe: joules per cgroup.
//!
//! Data moves one way. [`probe`] and [`meter`] read counters, [`collector`] makes each reading into
//! events ([`event`]), [`energy`] keeps the books of them, [`view`] shapes the books for whoever asks
//! and [`output`] writes that down; `pipeline` leads the events past all of them and past
//! [`recording`]. Nothing on the left knows anything on its right: `docs/imports.md` has the picture.

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
