//! What people and programs see of a run: one file a format. The result goes to standard output or
//! `--output`, everything else to standard error.
//!
//! A reader that goes away (`ecoprobe … | head`) ends the run with exit code 1 and no message: see
//! [`is_closed_pipe`].

mod csv;
mod json;
mod jsonl;
mod progress;
mod table;
mod target;
mod text;
pub(crate) mod units;
pub(crate) mod writer;

use std::fs;
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::base::Error;
use crate::event::Header;
use crate::host::stdout;
use crate::view::report::{Report, WindowReport};

pub use progress::note;
pub(crate) use text::{printable, printable_json};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One document at the end.
    Json,
    /// A line a window, and the report as the last line.
    Jsonl,
    /// A row per window and workload.
    Csv,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Self::Table => "txt",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }
}

/// What is written, and where.
#[derive(Debug, Clone, Default)]
pub struct Target {
    pub format: Format,
    /// `None`: standard output.
    pub file: Option<PathBuf>,
    /// Whether somebody else has written to standard output, or may at any time; the result then goes
    /// elsewhere.
    pub others: Option<Arc<AtomicBool>>,
}

/// Where a run shows its windows while it goes on, and its report when it is done. An error of any
/// method is a whole sentence with the path in it.
pub trait Output: std::fmt::Debug + Send {
    /// Called once, before the first window: what the figures rest on.
    fn begin(&mut self, _header: &Header) -> io::Result<()> {
        Ok(())
    }

    /// Whether anybody sees windows. Where nobody does they are not worked out: with thousands of
    /// workloads that takes longer than all of the measuring.
    fn shows_windows(&self) -> bool {
        true
    }

    fn window(&mut self, window: &WindowReport) -> io::Result<()>;

    /// A note or warning for standard error, without spoiling what is on the screen.
    fn note(&mut self, message: &str) -> io::Result<()>;

    fn finish(&mut self, report: &Report) -> io::Result<()>;
}

/// Refuses to write the result over a recording.
///
/// # Errors
///
/// Both are the same file, by path or by link.
pub(crate) fn distinct(recording: Option<&Path>, target: &Target) -> Result<(), Error> {
    let (Some(recording), Some(output)) = (recording, target.file.as_deref()) else {
        return Ok(());
    };
    let same_file = || {
        let (one, other) = (fs::metadata(recording).ok()?, fs::metadata(output).ok()?);
        Some(one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()))
    };
    if std::path::absolute(recording).ok() != std::path::absolute(output).ok()
        && !same_file().unwrap_or(false)
    {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} cannot be the recording and the --output at once; name another file",
        output.display()
    )))
}

/// Opens the output for a run that somebody may be watching: the table redraws in place on a
/// terminal, other formats show a progress line.
pub(crate) fn open(target: &Target) -> anyhow::Result<Box<dyn Output>> {
    build(target, true)
}

/// Opens the output with no live view and no progress: for `replay`, which is over in a moment,
/// and for a command that owns the terminal itself.
pub fn open_quiet(target: &Target) -> anyhow::Result<Box<dyn Output>> {
    build(target, false)
}

fn build(target: &Target, watched: bool) -> anyhow::Result<Box<dyn Output>> {
    use progress::Progress;
    use target::{Document, Others, Stream};

    let path = target.file.as_deref();
    let others =
        target.others.clone().map(|used| Others { used, extension: target.format.extension() });
    Ok(match target.format {
        Format::Table => {
            let screen = path.is_none() && stdout::real().is_terminal();
            let document = Document::open(path, others)?;
            Box::new(table::Table::new(document, screen, watched, Progress::start(watched)))
        }
        Format::Json => {
            let document = Document::open(path, others)?;
            Box::new(json::Json { document, progress: Progress::start(watched) })
        }
        Format::Jsonl => {
            let stream = Stream::open(path, others)?;
            let progress = Progress::start(watched && !stdout_is_screen(target));
            Box::new(jsonl::JsonLines { stream, progress, cpu_energy: None })
        }
        Format::Csv => {
            let stream = Stream::open(path, others)?;
            let screen = stdout_is_screen(target);
            Box::new(csv::Csv::new(stream, screen, Progress::start(watched && !screen)))
        }
    })
}

/// Whether notes stand in what is shown anyway: the table on a screen ends with them.
pub(crate) fn shows_notes(target: &Target) -> bool {
    target.format == Format::Table && stdout_is_screen(target)
}

/// Lines that scroll by on the screen are progress enough.
fn stdout_is_screen(target: &Target) -> bool {
    target.file.is_none() && stdout::real().is_terminal()
}

fn dumb_terminal() -> bool {
    std::env::var_os("TERM").is_none_or(|terminal| terminal.is_empty() || terminal == "dumb")
}

/// Nobody reads the result any more. That is no fault worth a message, but the result did not
/// arrive either: exit code 1. (SIGPIPE stays ignored, or `run` could not clean up behind itself.)
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|error| {
        error.kind() == io::ErrorKind::BrokenPipe
            && error.get_ref().is_some_and(|inner| inner.is::<target::WriteError>())
    })
}

/// Shows a report that could not be delivered where there is still somebody to read it, standard
/// error: what was measured cannot be measured again.
pub(crate) fn rescue_to_stderr(report: &Report) {
    progress::to_stderr(&table::plain(report));
}

/// As [`rescue_to_stderr`], where the one who reads the result may be the one who reads standard
/// error: into a file of the temporary directory. Says `why`.
pub(crate) fn rescue_to_file(report: &Report, why: &str) {
    note(&match rescue_into(&std::env::temp_dir(), report) {
        Ok(path) => format!("{why}: the report is in {}", path.display()),
        Err(error) => format!("{why}, and the report is lost: {error}"),
    });
}

fn rescue_into(directory: &Path, report: &Report) -> io::Result<PathBuf> {
    // Not over a file, and not through a link, that somebody else has put there.
    let prefix = format!("ecoprobe-report-{}-", std::process::id());
    let permissions = fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".json")
        .permissions(permissions)
        .tempfile_in(directory)?;
    let mut text = serde_json::to_vec_pretty(report)?;
    text.push(b'\n');
    file.write_all(&printable_json(text))?;
    Ok(file.keep().map_err(|error| error.error)?.1)
}

/// Writes a result of one piece to standard output.
pub(crate) fn to_stdout(text: &[u8]) -> io::Result<()> {
    target::Stream::open(None, None)?.write(text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::table::fixtures::{report, window};
    use super::*;

    fn written(format: Format, windows: &[WindowReport]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("result");
        let mut output =
            open_quiet(&Target { format, file: Some(path.clone()), others: None }).unwrap();
        for window in windows {
            output.window(window).unwrap();
        }
        output.finish(&report()).unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn jsonl_is_a_line_a_window_and_the_report_last() {
        let text = written(Format::Jsonl, &[window(2), window(3)]);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert!(text.starts_with(r#"{"type":"window","start_s":0.0,"#), "{text}");
        assert_eq!(lines[1]["workloads"].as_array().unwrap().len(), 3);
        assert_eq!(lines[0]["workloads"][1]["energy_j"]["cpu"], 2.0);
        assert!(lines[0]["workloads"][1]["energy_j"]["gpu"].is_null());
        let mut last = lines[2].clone();
        assert_eq!(last.as_object_mut().unwrap().remove("type").unwrap(), "report");
        assert_eq!(last, serde_json::to_value(report()).unwrap());
    }

    #[test]
    fn json_is_one_document() {
        let text = written(Format::Json, &[window(2)]);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document, serde_json::to_value(report()).unwrap());
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn csv_is_a_row_a_window_and_workload_and_missing_cells_are_empty() {
        let mut odd = window(1);
        odd.workloads[0].name = "a,\"b\"".into();
        odd.start_s = 1.0;
        let text = written(Format::Csv, &[window(2), odd]);
        let expected = "\
start_s,seconds,workload,cpu_seconds,cpu_j,dram_j,gpu_j,idle_share_j,total_j,mean_power_w,cpu_energy
0.0,1.0,kubepods/burstable/job-0,0.25,1.0,,,,1.0,1.0,
0.0,1.0,kubepods/burstable/job-1,0.25,2.0,,,,2.0,2.0,
1.0,1.0,\"a,\"\"b\"\"\",0.25,1.0,,,,1.0,1.0,
";
        assert_eq!(text, expected);
        let empty = written(Format::Csv, &[]);
        assert_eq!(empty.lines().count(), 1, "the header tells an empty run from no run");
    }

    #[test]
    fn each_rescued_report_has_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let mut odd = report();
        odd.workloads[0].name = "a\u{202e}b".into();
        let paths = [&report(), &odd].map(|report| rescue_into(directory.path(), report).unwrap());
        let texts = paths.map(|path| std::fs::read_to_string(path).unwrap());
        let read = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&texts[0]), serde_json::to_value(report()).unwrap());
        assert_eq!(read(&texts[1]), serde_json::to_value(&odd).unwrap());
        assert!(!texts[1].contains('\u{202e}'), "{}", texts[1]);
    }

    #[test]
    fn a_table_in_a_file_is_the_summary_alone() {
        let text = written(Format::Table, &[window(2)]);
        assert!(text.starts_with("60.0 s on node01"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains("job-1"), "{text}");
    }

    #[test]
    fn only_a_result_that_nobody_reads_is_a_closed_pipe() {
        let full = Target { format: Format::Csv, file: Some("/dev/full".into()), others: None };
        let error = open_quiet(&full).unwrap().finish(&report()).unwrap_err();
        assert!(!is_closed_pipe(&error.into()));
        let elsewhere = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(!is_closed_pipe(&elsewhere.into()));
        let ours = target::named(Path::new("x").display())(io::ErrorKind::BrokenPipe.into());
        assert!(is_closed_pipe(&anyhow::Error::from(ours).context("on the way")));
    }
}
