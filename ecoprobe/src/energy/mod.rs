//! The arithmetic: from readings to joules, from joules and usage to postings, from postings to the
//! books. Pure: no I/O, no clock, no unsafe.

#![forbid(unsafe_code)]

mod attribute;
pub(crate) mod books;
mod counter;
mod delta;
pub(crate) mod estimate;
mod ledger;
pub(crate) mod model;
mod usage;
