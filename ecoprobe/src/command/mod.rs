//! One file a subcommand.

pub mod doctor;
pub mod replay;
pub mod settings;
