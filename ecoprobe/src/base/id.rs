//! Who energy is billed to.

use serde::{Deserialize, Serialize};

/// A workload. Within a ledger an id never comes back, whatever becomes of cgroups and their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadId(pub u64);

/// Who used a domain. Written as the workload's id, or `null` for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Option<WorkloadId>", into = "Option<WorkloadId>")]
pub enum User {
    Workload(WorkloadId),
    /// Cgroups that were not asked for, and the kernel's own threads.
    Other,
}

/// Where a joule can be posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    Workload(WorkloadId),
    /// Cgroups that were not asked for, and the kernel's own threads.
    Other,
    /// What the hardware draws with nothing running.
    Idle,
    /// Energy with nobody to bill.
    Unattributed,
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        match user {
            User::Workload(id) => Self::Workload(id),
            User::Other => Self::Other,
        }
    }
}

impl From<Option<WorkloadId>> for User {
    fn from(id: Option<WorkloadId>) -> Self {
        id.map_or(Self::Other, Self::Workload)
    }
}

impl From<User> for Option<WorkloadId> {
    fn from(user: User) -> Self {
        match user {
            User::Workload(id) => Some(id),
            User::Other => None,
        }
    }
}
