//! One file a subcommand.

pub mod replay;
pub mod settings;
