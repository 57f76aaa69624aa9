//! `ecoprobe run -- COMMAND`: a command in a cgroup of its own.

pub(crate) mod child;
mod relay;

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use self::child::Child;
use self::relay::{Relay, Remaining};
use super::measure::{Measurement, Results, Wake, runtime};
use super::signals::Signals;
use crate::base::error::EXIT_FAILED;
use crate::collector::{Collector, Newcomers};
use crate::config;
use crate::host::stdout;
use crate::output::{self, Format, Target};
use crate::recording::Recorder;
use crate::workload::hierarchy::Hierarchies;
use crate::workload::names::Change;
use crate::workload::scope::{Scope, clean_up_stale};

/// How long the command has to end after --duration has passed.
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn run(config: &config::Run) -> anyhow::Result<ExitCode> {
    let roots = &config.measure.collect.roots;
    clean_up_stale(&Hierarchies::find(roots)?);
    let mut target = config.measure.output.clone();
    // The real one: descriptor 1 becomes standard error before a GPU library is loaded.
    let (mut relay, mut for_command) = (None, Stdio::from(stdout::duplicate()?));
    match target.format {
        _ if !would_mix(&target) => {}
        Format::Json => {
            let (started, write) = Relay::start(stdout::duplicate()?)
                .context("cannot pass on the command's standard output")?;
            target.others = Some(started.used());
            (relay, for_command) = (Some(started), write.into());
        }
        // What is written as it comes cannot wait for whether the command writes: it would stand in
        // two places.
        _ => target.others = Some(Arc::new(AtomicBool::new(true))),
    }
    let output = output::open_quiet(&target)?;
    let recorder = config.measure.record.as_deref().map(Recorder::create).transpose()?;
    let scope = Scope::create(roots)?;
    let runtime = runtime()?;
    let measured = runtime.block_on(measure(config, &scope, (output, recorder), for_command));
    let (mut run, mut code) = match measured? {
        Measured::Whole(run, code) => (*run, code),
        Measured::NoCommand(code) => return Ok(ExitCode::from(code)),
    };
    run.leave_loop(runtime);
    // Passed on while the last sample is taken.
    relay.iter().for_each(Relay::stop);
    run.last_tick();
    let mut complete = true;
    // Before the result, which comes after all that the command wrote.
    let remaining = relay.map_or(Ok(None), |relay| relay.finish(run.patience()));
    let remaining = remaining.unwrap_or_else(|error| {
        complete = false;
        run.warn(format!("what the command wrote to standard output is not all there: {error}"));
        None
    });
    let left_behind = scope.close();
    complete &= run.finish(left_behind.into_iter().collect());
    if let Some(Err(error)) = remaining.map(Remaining::leave_behind) {
        complete = false;
        output::note(&format!(
            "what is left of the command's standard output is lost: no process can be made that \
             passes it on: {error}"
        ));
    }
    // The command's own failure is the one that its caller must hear of.
    if code == 0 && !complete {
        code = EXIT_FAILED;
    }
    Ok(ExitCode::from(code))
}

/// Whether a result for programs would stand among what the command prints.
fn would_mix(target: &Target) -> bool {
    target.format != Format::Table && target.file.is_none() && !stdout::real().is_terminal()
}

/// What has become of a run, with the code to exit with.
enum Measured {
    /// Up to the command's end.
    Whole(Box<Measurement>, u8),
    /// It never began.
    NoCommand(u8),
}

async fn measure(
    config: &config::Run,
    scope: &Scope,
    results: Results,
    for_command: Stdio,
) -> anyhow::Result<Measured> {
    let signals = Signals::listen()?;
    let began = Change::Began(scope.workload(&name(config)));
    let options = &config.measure.collect;
    let opened = Collector::open(options, scope.hierarchy(), vec![began], Newcomers::Ignored)?;
    let mut run = Measurement::start(&config.measure, opened, results, signals)?;
    // Nobody can have told the command yet, not even the terminal.
    if let Some(signal) = run.end_already().await {
        return Ok(Measured::NoCommand(child::killed_by(signal as i32)));
    }
    let mut child = match Child::spawn(&config.command, scope, for_command) {
        Ok(child) => child,
        Err(error) => {
            output::note(&error.to_string());
            return Ok(Measured::NoCommand(error.exit_code()));
        }
    };
    let status = until_it_ends(&mut run, &mut child).await;
    // What was measured until then cannot be measured again.
    let code = status.map(child::exit_code).unwrap_or_else(|error| {
        run.warn(format!("the measurement ended early: {error:#}"));
        EXIT_FAILED
    });
    Ok(Measured::Whole(Box::new(run), code))
}

async fn until_it_ends(run: &mut Measurement, child: &mut Child) -> anyhow::Result<ExitStatus> {
    let mut asked_to_end = false;
    loop {
        let wake = tokio::select! {
            biased;
            status = child.wait() => return Ok(status?),
            wake = run.next() => wake?,
        };
        match wake {
            Wake::Tick(due) => run.tick(due),
            // One that may not be signalled (it has taken other rights) goes on, and so does the run.
            Wake::Signal(signal) => {
                if let Err(error) = child.forward(signal) {
                    run.warn(format!("{signal} could not be passed on to the command: {error}"));
                }
            }
            Wake::Cgroups(_) | Wake::Asked => {}
            Wake::Deadline => {
                let (signal, next) = match asked_to_end {
                    false => (Signal::SIGTERM, Some(GRACE)),
                    true => (Signal::SIGKILL, None),
                };
                if let Err(error) = child.forward(signal) {
                    run.warn(format!("the command could not be ended with {signal}: {error}"));
                }
                asked_to_end = true;
                run.end_after(next);
            }
        }
    }
}

/// The command's own name, without its directory.
fn name(config: &config::Run) -> String {
    let command = config.command.first().map(Path::new);
    let name = command.and_then(Path::file_name).unwrap_or_default();
    name.to_string_lossy().into_owned()
}
