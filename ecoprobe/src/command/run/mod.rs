//! `ecoprobe run -- COMMAND`: a command in a cgroup of its own.

pub mod child;

use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;

use self::child::{Child, Signals};
use super::measure::{Measurement, Wake, runtime};
use crate::base::error::EXIT_FAILED;
use crate::cli::RunArgs;
use crate::collector::Collector;
use crate::output;
use crate::workload::hierarchy::Hierarchies;
use crate::workload::scope::{Scope, clean_up_stale};

/// How long the command has to end after --duration has passed.
const GRACE: Duration = Duration::from_secs(10);

pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    output::distinct(args.measure.record.as_deref(), &args.measure.output)?;
    let roots = args.measure.roots.host();
    clean_up_stale(&Hierarchies::find(&roots)?);
    let output = output::open_quiet(&args.measure.output)?;
    let scope = Scope::create(&roots)?;
    runtime()?.block_on(measure(args, scope, output))
}

async fn measure(
    args: &RunArgs,
    scope: Scope,
    output: Box<dyn output::Output>,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen()?;
    let workload = scope.workload(&name(args));
    let collector = Collector::open(&args.measure, scope.hierarchy(), &[workload])?;
    let mut run = Measurement::start(&args.measure, collector, output, signals)?;
    let mut child = match Child::spawn(&args.command, &scope) {
        Ok(child) => child,
        Err(error) => {
            output::note(&error.to_string());
            return Ok(ExitCode::from(error.exit_code()));
        }
    };
    let status = until_it_ends(&mut run, &mut child).await?;
    run.last_tick();
    let left_behind = scope.close();
    let complete = run.finish(left_behind.into_iter().collect());
    // The command's own failure is the one that its caller must hear of.
    let code = child::exit_code(status);
    Ok(ExitCode::from(if code == 0 && !complete { EXIT_FAILED } else { code }))
}

async fn until_it_ends(run: &mut Measurement, child: &mut Child) -> anyhow::Result<ExitStatus> {
    loop {
        let wake = tokio::select! {
            biased;
            status = child.wait() => return Ok(status?),
            wake = run.next() => wake?,
        };
        match wake {
            Wake::Tick => run.tick(),
            Wake::Signal(signal) => child.forward(signal)?,
            Wake::Cgroups(_) | Wake::Asked => {}
            Wake::Deadline => {
                child.forward(Signal::SIGTERM)?;
                let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await else {
                    child.forward(Signal::SIGKILL)?;
                    return Ok(child.wait().await?);
                };
                return Ok(status?);
            }
        }
    }
}

/// The command's own name, without its directory.
fn name(args: &RunArgs) -> String {
    let command = args.command.first().map(Path::new);
    let name = command.and_then(Path::file_name).unwrap_or_default();
    name.to_string_lossy().into_owned()
}
