//! Moments in which other threads have to wait.

use std::marker::PhantomData;

/// The calling thread goes before every ordinary one (`SCHED_FIFO`) until this is dropped.
///
/// On a busy machine, which is the one that people measure, whoever wakes up may preempt a thread
/// between any two of its instructions, for milliseconds. A few dozen microseconds of work are better
/// done in one go. Needs CAP_SYS_NICE; without it, and for a thread that has a real-time policy
/// already, nothing changes.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Undisturbed {
    /// The policy to go back to; `None`: nothing was changed.
    before: Option<libc::c_int>,
    /// Only the thread that began it can end it: not `Send`.
    of_this_thread: PhantomData<*const ()>,
}

impl Undisturbed {
    pub fn begin() -> Self {
        // SAFETY: plain system calls on the calling thread.
        let before = unsafe { libc::sched_getscheduler(0) };
        let ordinary = matches!(
            before & !libc::SCHED_RESET_ON_FORK,
            libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE
        );
        let inherited = before & libc::SCHED_RESET_ON_FORK;
        let raised = ordinary && set(libc::SCHED_FIFO | inherited, 1);
        Self { before: raised.then_some(before), of_this_thread: PhantomData }
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            set(before, 0);
        }
    }
}

/// A thread's nice value survives its time in another class.
fn set(policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: a plain system call on the calling thread; `parameters` outlives it.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: a plain system call on the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn what_was_changed_is_changed_back() {
        let before = policy();
        let moment = Undisturbed::begin();
        match moment.before {
            Some(was) => assert_eq!((was, policy()), (before, libc::SCHED_FIFO)),
            None => assert_eq!(policy(), before, "without permission"),
        }
        drop(moment);
        assert_eq!(policy(), before);
    }

    #[test]
    #[ignore = "needs root: it takes a real-time priority"]
    fn whoever_has_a_priority_keeps_it() {
        // On a thread of its own, whose priority ends with it.
        let thread = std::thread::spawn(|| {
            assert!(set(libc::SCHED_RR, 7));
            drop(Undisturbed::begin());
            policy()
        });
        assert_eq!(thread.join().unwrap(), libc::SCHED_RR);
    }
}
