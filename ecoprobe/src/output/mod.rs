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
pub mod units;

use std::borrow::Cow;
use std::fs;
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::base::error::Error;
use crate::cli::{Format, OutputArgs};
use crate::event::Header;
use crate::host::stdout;
use crate::view::report::{Report, WindowReport};

pub use progress::note;

/// Where a run shows its windows while it goes on, and its report when it is done. An error of any
/// method is a whole sentence with the path in it.
pub trait Output: std::fmt::Debug {
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
pub fn distinct(recording: Option<&Path>, args: &OutputArgs) -> Result<(), Error> {
    let (Some(recording), Some(output)) = (recording, args.output.as_deref()) else {
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
pub fn open(args: &OutputArgs) -> anyhow::Result<Box<dyn Output>> {
    build(args, true)
}

/// Opens the output with no live view and no progress: for `replay`, which is over in a moment,
/// and for a command that owns the terminal itself.
pub fn open_quiet(args: &OutputArgs) -> anyhow::Result<Box<dyn Output>> {
    build(args, false)
}

fn build(args: &OutputArgs, watched: bool) -> anyhow::Result<Box<dyn Output>> {
    use progress::Progress;
    use target::{Document, Stream};

    let path = args.output.as_deref();
    Ok(match args.format {
        Format::Table => {
            let screen = path.is_none() && stdout::real().is_terminal();
            let document = Document::open(path)?;
            Box::new(table::Table::new(document, screen, watched, Progress::start(watched)))
        }
        Format::Json => {
            let document = Document::open(path)?;
            Box::new(json::Json { document, progress: Progress::start(watched) })
        }
        Format::Jsonl => {
            let stream = Stream::open(path)?;
            let progress = Progress::start(watched && !stdout_is_screen(args));
            Box::new(jsonl::JsonLines { stream, progress, cpu_energy: None })
        }
        Format::Csv => {
            let stream = Stream::open(path)?;
            Box::new(csv::Csv::new(stream, Progress::start(watched && !stdout_is_screen(args))))
        }
    })
}

/// Whether notes stand in what is shown anyway: the table on a screen ends with them.
pub(crate) fn shows_notes(args: &OutputArgs) -> bool {
    args.format == Format::Table && stdout_is_screen(args)
}

/// Lines that scroll by on the screen are progress enough.
fn stdout_is_screen(args: &OutputArgs) -> bool {
    args.output.is_none() && stdout::real().is_terminal()
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
pub fn rescue(report: &Report) {
    let text = table::plain(report);
    let _ = io::stderr().write_all(text.as_bytes());
}

/// `text` with nothing in it that a terminal would act on: cgroup names may hold anything.
fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::table::fixtures::{report, window};
    use super::*;

    fn written(format: Format, windows: &[WindowReport]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("result");
        let mut output = open_quiet(&OutputArgs { format, output: Some(path.clone()) }).unwrap();
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
    fn a_table_in_a_file_is_the_summary_alone() {
        let text = written(Format::Table, &[window(2)]);
        assert!(text.starts_with("60.0 s on node01"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains("job-1"), "{text}");
    }

    #[test]
    fn only_a_result_that_nobody_reads_is_a_closed_pipe() {
        let full = OutputArgs { format: Format::Csv, output: Some("/dev/full".into()) };
        let error = open_quiet(&full).unwrap().finish(&report()).unwrap_err();
        assert!(!is_closed_pipe(&error.into()));
        let elsewhere = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(!is_closed_pipe(&elsewhere.into()));
        let ours = target::named(Path::new("x").display())(io::ErrorKind::BrokenPipe.into());
        assert!(is_closed_pipe(&anyhow::Error::from(ours).context("on the way")));
    }
}
