//! What to say when the kernel refuses the probe. Its verifier explains itself in up to megabytes:
//! the end of that is said, and the whole goes to a file.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use aya::programs::ProgramError;

use crate::base::Error;

/// How many lines of the verifier's log are said; the last are those that matter.
const LINES: usize = 40;

/// The error for a program that did not load.
pub(super) fn refused(what: &str, error: &ProgramError) -> Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return super::load::cannot(what, error);
    };
    let log = verifier_log.to_string();
    if log.trim().is_empty() {
        return super::load::cannot(what, io_error);
    }
    let file = keep(&std::env::temp_dir(), &log);
    Error::Cannot(message(what, io_error, &log, file))
}

fn message(what: &str, error: &io::Error, log: &str, file: io::Result<PathBuf>) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    let mut text = format!("cannot {what}: the kernel's verifier refused it ({error}).");
    let whole = match file {
        Ok(path) => format!("the whole is in {}; please report it", path.display()),
        Err(error) => format!("the whole could not be kept: {error}"),
    };
    let _ = write!(text, " The end of its log ({whole}):");
    for line in tail {
        // Escapes: what a kernel says ends up on a terminal.
        let _ = write!(text, "\n  {}", line.escape_debug());
    }
    text
}

fn keep(directory: &Path, log: &str) -> io::Result<PathBuf> {
    let mut file = tempfile::Builder::new()
        .prefix("ecoprobe-verifier-")
        .suffix(".log")
        .tempfile_in(directory)?;
    file.write_all(log.as_bytes())?;
    let (_, path) = file.keep().map_err(|error| error.error)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_the_end_of_the_log_and_the_file_has_all() {
        let log: String = (0..100_000).map(|number| format!("{number}: (79) r1 = r2\n")).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = keep(directory.path(), &log).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), log);
        let denied = io::Error::from_raw_os_error(libc::EINVAL);
        let text = message("load the probe", &denied, &log, Ok(path.clone()));
        assert_eq!(text.lines().count(), LINES + 1, "{text}");
        assert!(text.ends_with("99999: (79) r1 = r2"), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
    }

    #[test]
    fn a_short_log_and_a_full_disk() {
        let file = keep(Path::new("/nonexistent/directory"), "why");
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let text = message("load the probe", &denied, "why \x1b[31m\n", file);
        assert!(text.contains("could not be kept") && text.ends_with("why \\u{1b}[31m"), "{text}");
    }
}
