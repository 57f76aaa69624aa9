//! A stand-in for `libnvidia-ml.so.1`: the functions that ecoprobe calls, under the names and with
//! the structures of the real library, on a machine that is made up.
//!
//! The machine is a [`Scenario`], a JSON file: the one that the environment variable
//! `FAKE_NVML_SCENARIO` names, else `scenario.json` beside the library. The latter lets tests in one
//! process have machines of their own, each with its own copy of the library.

mod abi;
mod scenario;

pub use scenario::{Device, Fault, Process, Scenario, Utilisation};
