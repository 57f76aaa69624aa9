//! One file a subcommand.

pub mod child;
