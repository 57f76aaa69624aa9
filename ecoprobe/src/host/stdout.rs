//! Standard output holds the result and nothing else, whatever foreign libraries print.
//!
//! Libraries that are loaded (a GPU driver's) may write to descriptor 1 at any time: a banner while
//! they start, a message from a thread of theirs, what their stdio has buffered when the process
//! exits. So [`keep`] puts the real standard output elsewhere at the start, and before a library is
//! loaded, descriptor 1 becomes standard error, for good. What we write, and what a child inherits,
//! goes through here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

static REAL: OnceLock<OwnedFd> = OnceLock::new();

/// Remembers what standard output is. For the start of the program; without it, as in tests and for
/// those who use this as a library, descriptor 1 stays what it is.
pub fn keep() {
    // Not inherited by children: the copy has CLOEXEC. Where there is no copy to be had (no
    // descriptor left), descriptor 1 stays what it is, too.
    if let Ok(copy) = io::stdout().as_fd().try_clone_to_owned() {
        let _ = REAL.set(copy);
    }
}

/// The real standard output.
pub(crate) fn real() -> BorrowedFd<'static> {
    static NOT_KEPT: OnceLock<io::Stdout> = OnceLock::new();
    match REAL.get() {
        Some(real) => real.as_fd(),
        None => NOT_KEPT.get_or_init(io::stdout).as_fd(),
    }
}

/// The real standard output, for a child to inherit or for a writer to own.
///
/// # Errors
///
/// There is no descriptor left.
pub(crate) fn duplicate() -> io::Result<OwnedFd> {
    real().try_clone_to_owned()
}

/// Makes descriptor 1 standard error, if the real one is kept elsewhere.
pub(crate) fn keep_from_libraries() {
    if REAL.get().is_none() {
        return;
    }
    // Without success there is nothing better to do than to go on: it can only fail for lack of
    // memory in the kernel.
    let _ = nix::unistd::dup2_stdout(io::stderr().as_fd());
}
