//! The arithmetic: counter deltas, the power model, attribution, the ledger. Pure: no I/O, no
//! clock, no unsafe.

#![forbid(unsafe_code)]

pub mod counter;
pub mod delta;
pub mod estimate;
pub mod ledger;
pub mod model;
