//! Files that are written anew.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// A file that is emptied by the first write to it: what stands in it survives a start that fails.
#[derive(Debug)]
pub struct Rewritten {
    file: File,
    /// Something may stand in it that is not ours.
    old: bool,
}

impl Rewritten {
    /// Opens what is there, or creates it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path);
        // Without O_CREAT where there is something: a FIFO of another user in a sticky directory
        // cannot be opened with it.
        let file = File::options().write(true).create(found.is_err()).truncate(false).open(path)?;
        // Devices and FIFOs have no length; what is known by a descriptor (`/dev/stdout`) is written to
        // by others too.
        let shared = ["/dev", "/proc"].iter().any(|root| path.starts_with(root));
        Ok(Self { file, old: !shared && found.is_ok_and(|metadata| metadata.is_file()) })
    }
}

/// To be gone on with, as it is.
impl From<File> for Rewritten {
    fn from(file: File) -> Self {
        Self { file, old: false }
    }
}

impl Write for Rewritten {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.old {
            self.file.set_len(0)?;
            self.old = false;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_file_stays_until_there_is_something_to_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "the result of the run before").unwrap();
        drop(Rewritten::open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "the result of the run before");
        let mut file = Rewritten::open(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.write_all(b"er").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
    }

    #[test]
    fn what_others_write_to_is_not_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "theirs").unwrap();
        let theirs = File::open(&path).unwrap();
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&theirs));
        Rewritten::open(Path::new(&name)).unwrap().write_all(b"x").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "xheirs");
    }

    #[test]
    fn what_is_no_file_is_written_to_and_what_is_not_there_is_made() {
        Rewritten::open(Path::new("/dev/null")).unwrap().write_all(b"x").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        Rewritten::open(&path).unwrap().write_all(b"x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }
}
