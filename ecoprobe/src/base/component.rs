//! What a domain belongs to.

use serde::{Deserialize, Serialize};

/// Everything kept by component is an array indexed by it: `array[component as usize]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    Cpu,
    Dram,
    Gpu,
}

impl Component {
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Dram, Self::Gpu];
    pub const COUNT: usize = Self::ALL.len();
}
