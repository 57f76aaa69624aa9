//! Facts about this machine.

pub mod topology;
