//! `ecoprobe --cgroup NAME`: what is already running.

use std::process::ExitCode;

use nix::sys::signal::Signal;

use super::measure::{Alive, Measurement, Wake, runtime};
use super::run::child::Signals;
use crate::base::error::EXIT_FAILED;
use crate::cli::WatchArgs;
use crate::collector::Collector;
use crate::output;
use crate::workload::hierarchy::Hierarchies;
use crate::workload::names::{Selection, resolve};
use crate::workload::scope;

pub fn watch(args: &WatchArgs) -> anyhow::Result<ExitCode> {
    output::distinct(args.measure.record.as_deref(), &args.measure.output)?;
    let roots = args.measure.roots.host();
    let selection = resolve(&args.cgroups, &roots)?;
    scope::clean_up_stale(&Hierarchies::find(&roots)?);
    let output = output::open(&args.measure.output)?;
    runtime()?.block_on(measure(args, selection, output))
}

async fn measure(
    args: &WatchArgs,
    mut selection: Selection,
    output: Box<dyn output::Output>,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen()?;
    let mut collector = Collector::open(&args.measure, &selection.hierarchy, &selection.workloads)?;
    for warning in std::mem::take(&mut selection.warnings) {
        collector.warn(warning);
    }
    let mut alive = Alive::new(&selection.hierarchy, &selection.workloads);
    // What was made or removed before the probe could tell.
    for workload in selection.rescan() {
        alive.insert(&selection.hierarchy, &workload);
        collector.add(workload)?;
    }
    alive.sweep();

    let mut run = Measurement::start(&args.measure, collector, output, signals)?;
    while !alive.is_empty() || selection.has_globs() {
        match run.next().await? {
            Wake::Tick => {
                run.tick();
                if run.output_failed() {
                    break;
                }
            }
            Wake::Cgroups(changes) => {
                let new =
                    if changes.lost { selection.rescan() } else { selection.made(&changes.made) };
                for workload in new {
                    alive.insert(&selection.hierarchy, &workload);
                    run.collector().add(workload)?;
                }
                alive.remove(&changes.removed);
                if changes.lost {
                    alive.sweep();
                }
            }
            Wake::Deadline => break,
            Wake::Signal(Signal::SIGUSR1 | Signal::SIGUSR2) => {}
            Wake::Signal(_) => break,
        }
    }
    let gone = alive.is_empty().then(|| "every watched cgroup is gone".to_owned());
    run.last_tick();
    let complete = run.finish(gone.into_iter().collect());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}
