//! Where a result goes: standard output or the file of `--output`.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::Rewritten;
use crate::host::stdout;

/// A write that failed, and what was being written. It travels inside an [`io::Error`] of the same
/// kind, so that the sentence survives a bare `?`.
#[derive(Debug)]
pub(super) struct WriteError {
    name: String,
    source: io::Error,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to {}", self.name)
    }
}

impl std::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

pub(super) fn named(name: impl fmt::Display) -> impl Fn(io::Error) -> io::Error {
    move |source| io::Error::new(source.kind(), WriteError { name: name.to_string(), source })
}

/// Written piece by piece, and seen by readers as it comes.
#[derive(Debug)]
pub(super) struct Stream {
    name: String,
    file: BufWriter<Rewritten>,
    others: Option<Others>,
}

/// Others who may write to the same standard output.
#[derive(Debug)]
pub(super) struct Others {
    /// They have.
    pub(super) used: Arc<AtomicBool>,
    /// Of the file that the result then goes to.
    pub(super) extension: &'static str,
}

impl Stream {
    /// `others` is about standard output.
    pub(super) fn open(output: Option<&Path>, others: Option<Others>) -> io::Result<Self> {
        let Some(path) = output else { return Self::stdout(others) };
        let file = Rewritten::open(path).map_err(named(path.display()))?;
        Ok(Self { name: path.display().to_string(), file: BufWriter::new(file), others: None })
    }

    fn stdout(others: Option<Others>) -> io::Result<Self> {
        const NAME: &str = "standard output";
        // A plain descriptor: one buffer, not the line buffer of `std::io::stdout` below another,
        // and every error seen.
        let descriptor = stdout::duplicate().map_err(named(NAME))?;
        let file = BufWriter::new(File::from(descriptor).into());
        Ok(Self { name: NAME.to_owned(), file, others })
    }

    /// Writes `bytes` and hands them to the kernel.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(others) = self.others.take_if(|others| others.used.load(Ordering::Acquire)) {
            self.go_elsewhere(others.extension)?;
        }
        let written = self.file.write_all(bytes).and_then(|()| self.file.flush());
        written.map_err(named(&self.name))
    }

    /// From here on the result goes to a file of its own.
    fn go_elsewhere(&mut self, extension: &str) -> io::Result<()> {
        let name = format!("ecoprobe-run-{}.{extension}", std::process::id());
        let create = |path: PathBuf| {
            // Not over a file, and not through a link, that is there already.
            let file = File::options().write(true).create_new(true).open(&path)?;
            Ok::<_, io::Error>((path, file))
        };
        let here = std::env::current_dir().and_then(|directory| create(directory.join(&name)));
        let (path, file) =
            here.or_else(|_| create(std::env::temp_dir().join(&name))).map_err(named(&name))?;
        super::note(&format!(
            "standard output is the command's too: the result is in {}; choose with --output",
            path.display()
        ));
        (self.name, self.file) = (path.display().to_string(), BufWriter::new(file.into()));
        Ok(())
    }
}

/// Written once, at the end.
#[derive(Debug)]
pub(super) enum Document {
    /// What cannot be replaced: its readers see it being written.
    Stream(Stream),
    /// A regular file, replaced by `rename`: its readers see the old contents or the new, never half of
    /// either.
    Replace(PathBuf),
}

impl Document {
    /// Finds out now whether the file can be written, not after hours of measuring.
    pub(super) fn open(output: Option<&Path>, others: Option<Others>) -> io::Result<Self> {
        let Some(path) = output else { return Stream::open(None, others).map(Self::Stream) };
        let Some(path) = to_be_replaced(path).map_err(named(path.display()))? else {
            return Stream::open(Some(path), None).map(Self::Stream);
        };
        match temporary_beside(&path) {
            Ok(_) => Ok(Self::Replace(path)),
            // A writable file in a directory that is not: written in place.
            Err(_) if path.exists() => Stream::open(Some(&path), None).map(Self::Stream),
            Err(error) => Err(named(path.display())(error)),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write(bytes),
            Self::Replace(path) => replace(path, bytes).map_err(named(path.display())),
        }
    }
}

/// The regular file, there or still to be made, that stands for `path`; `None` for what must be
/// written to and never replaced: devices, pipes, and whatever is known by a name in `/dev` or
/// `/proc` (`/dev/stdout` is a symlink to a symlink to no path at all).
fn to_be_replaced(path: &Path) -> io::Result<Option<PathBuf>> {
    if ["/dev", "/proc"].iter().any(|root| path.starts_with(root)) {
        return Ok(None);
    }
    match fs::metadata(path) {
        // What a symlink points to is replaced, not the symlink.
        Ok(metadata) if metadata.is_file() => fs::canonicalize(path).map(Some),
        Ok(_) => Ok(None),
        // A symlink to nothing yet: only opening it makes the file in the right place.
        Err(_) if path.is_symlink() => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(path.to_owned())),
        Err(error) => Err(error),
    }
}

fn temporary_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // The mode of any new file (less the umask), not the private one of temporary files; or that
    // of the file to be replaced.
    let permissions = fs::metadata(path)
        .map_or_else(|_| fs::Permissions::from_mode(0o666), |metadata| metadata.permissions());
    tempfile::Builder::new().prefix(".ecoprobe-").permissions(permissions).tempfile_in(directory)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = temporary_beside(path)?;
    file.write_all(bytes)?;
    // Some file systems report a full disk only here.
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_document_appears_whole_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mut document = Document::open(Some(&path), None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old", "untouched until there is something to say");
        document.write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_symlink_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&real, "old").unwrap();
        symlink(&real, &link).unwrap();
        Document::open(Some(&link), None).unwrap().write(b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");
    }

    #[test]
    fn only_regular_files_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        symlink(at("later"), at("dangling")).unwrap();
        symlink("/dev/null", at("null")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(at("file"), "").unwrap();
        for name in ["dangling", "null", "fifo"] {
            assert_eq!(to_be_replaced(&at(name)).unwrap(), None, "{name}");
        }
        for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/null"] {
            assert_eq!(to_be_replaced(Path::new(name)).unwrap(), None, "{name}");
        }
        let file = File::open(at("file")).unwrap();
        let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(to_be_replaced(Path::new(&descriptor)).unwrap(), None);
        for name in ["file", "new"] {
            let real = fs::canonicalize(directory.path()).unwrap().join(name);
            assert_eq!(to_be_replaced(&at(name)).unwrap(), Some(real), "{name}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_written_is_refused_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no/such/report.json");
        for error in [
            Document::open(Some(&missing), None).unwrap_err(),
            Document::open(Some(directory.path()), None).unwrap_err(),
            Stream::open(Some(&missing), None).unwrap_err(),
        ] {
            assert!(error.to_string().starts_with("cannot write to /"), "{error}");
        }
    }

    #[test]
    fn a_full_device_is_written_to_and_named() {
        let mut document = Document::open(Some(Path::new("/dev/full")), None).unwrap();
        let error = document.write(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(error.to_string(), "cannot write to /dev/full");
    }
}
