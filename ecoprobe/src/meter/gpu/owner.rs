//! Whose a process is: what the meter asks, and of whom it is told nothing more.

use crate::base::id::User;

/// Tells the GPU meter whose a process is. Asked from the poller's thread, with the driver's pids:
/// those of the initial pid namespace.
pub trait PidOwner: Send + 'static {
    /// Whose the process is that has this pid now.
    fn living(&self, pid: u32) -> Whose;

    /// Who had this pid last and has exited, and when, CLOCK_MONOTONIC in nanoseconds; `None` if that
    /// is not known.
    fn exited(&self, _pid: u32) -> Option<(User, u64)> {
        None
    }

    /// Whether the pids that the driver gives mean anything here.
    fn sees_host_pids(&self) -> bool {
        true
    }
}

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    User(User),
    /// There is no such process.
    Gone,
    /// It is there, and whose it is cannot be told: why. Its use of a device is nobody's, not that of
    /// `other`.
    Unknown(String),
}

impl<F: Fn(u32) -> Option<User> + Send + 'static> PidOwner for F {
    fn living(&self, pid: u32) -> Whose {
        self(pid).map_or(Whose::Gone, Whose::User)
    }
}

/// Who used a device; `None`: one who cannot be told (any more).
pub(super) type Owner = Option<User>;

/// Who has a pid, or was last seen to have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Present {
    User(User),
    Gone,
    Unknown,
}

/// Who has had a pid of late.
#[derive(Debug, Clone, Copy)]
pub(super) struct History {
    pub(super) exited: Option<(User, u64)>,
    pub(super) present: Present,
}

impl History {
    /// Who had it at that instant.
    pub(super) fn owner_at(self, at_ns: u64) -> Owner {
        match (self.exited, self.present) {
            // Whoever has the pid now came later, unless only a thread of it has exited: all the same.
            (Some((user, exit_ns)), _) if exit_ns >= at_ns => Some(user),
            (_, Present::User(user)) => Some(user),
            (_, Present::Unknown) => None,
            // A driver may speak of a process for a moment after its exit.
            (exited, Present::Gone) => exited.map(|(user, _)| user),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::WorkloadId;

    #[test]
    fn who_had_a_pid_before_and_who_has_it_now_are_told_apart() {
        let [a, b] = [2, 3].map(|id| User::Workload(WorkloadId(id)));
        let at = |present, ns| History { exited: Some((a, 1000)), present }.owner_at(ns);
        assert_eq!(
            [900, 1000, 1100].map(|ns| at(Present::User(b), ns)),
            [Some(a), Some(a), Some(b)]
        );
        // Nobody has it now: a sample that is late by a little still means who had it.
        assert_eq!([900, 1000, 1100].map(|ns| at(Present::Gone, ns)), [Some(a); 3]);
        // Somebody has it, and it is not the one before.
        assert_eq!([900, 1000, 1100].map(|ns| at(Present::Unknown, ns)), [Some(a), Some(a), None]);
        let never = History { exited: None, present: Present::Gone };
        assert_eq!(never.owner_at(1), None);
    }
}
