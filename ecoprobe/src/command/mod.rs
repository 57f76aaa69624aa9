//! One file a subcommand.

pub mod doctor;
mod measure;
pub mod replay;
pub mod run;
pub mod settings;
pub mod watch;
