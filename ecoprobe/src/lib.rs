//! ecoprobe: joules per cgroup.
//!
//! Data moves one way. `probe` and `meter` read counters, `collector` makes each reading into
//! events ([`event`]), `energy` keeps the books of them, `view` shapes the books for whoever asks
//! and `output` writes that down; `pipeline` leads the events past all of them and past
//! `recording`. Nothing on the left knows anything on its right: `docs/imports.md` has the picture.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod base;
mod carbon;
mod cli;
mod collector;
mod command;
mod config;
pub mod door;
mod energy;
pub mod event;
mod host;
mod meter;
mod output;
mod pipeline;
mod probe;
mod recording;
mod view;
mod workload;

pub use crate::cli::Cli;
pub use crate::command::execute;
pub use crate::config::Config;
pub use crate::host::is_elevated;
pub use crate::host::stdout::keep as keep_stdout;
pub use crate::output::{is_closed_pipe, note};
