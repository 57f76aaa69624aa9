//! Facts about this machine.

pub mod own;
pub mod topology;
