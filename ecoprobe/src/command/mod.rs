//! One file a subcommand.

pub mod child;
pub mod doctor;
pub mod replay;
pub mod settings;
