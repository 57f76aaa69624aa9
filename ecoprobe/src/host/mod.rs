//! Facts about this machine.

pub mod btf;
pub mod topology;
