//! The words themselves: units, ids, components, time, errors; and what every folder needs alike.
//! Imports nothing of ours.

pub mod component;
pub mod error;
pub mod id;
pub mod own;
pub mod patience;
pub mod rewritten;
pub mod time;
pub mod units;

pub use component::Component;
pub use error::Error;
pub use id::{Account, User, WorkloadId};
pub use patience::Patience;
pub use rewritten::Rewritten;
pub use time::monotonic_ns;
pub use units::{Joules, Seconds, Watts};
