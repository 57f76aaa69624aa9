//! `ecoprobe --cgroup NAME`: what is already running.

use std::process::ExitCode;

use nix::sys::signal::Signal;

use super::measure::{Measurement, Wake, runtime};
use super::run::child::Signals;
use crate::base::error::EXIT_FAILED;
use crate::cli::WatchArgs;
use crate::collector::Collector;
use crate::output;
use crate::workload::hierarchy::Hierarchies;
use crate::workload::names::{Change, Selection, resolve};
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
    let workloads: Vec<_> = selection.start().into_iter().filter_map(Change::workload).collect();
    let mut collector = Collector::open(&args.measure, &selection.hierarchy, &workloads)?;
    for warning in std::mem::take(&mut selection.warnings) {
        collector.warn(warning);
    }
    // What was made or removed before the probe could tell.
    for change in selection.update(&[], &[], true) {
        collector.apply(change)?;
    }

    let mut run = Measurement::start(&args.measure, collector, output, signals)?;
    while !selection.is_over() {
        run.wake_at(selection.wake_at());
        match run.next().await? {
            Wake::Tick => {
                run.tick();
                for change in selection.update(&[], &[], false) {
                    run.collector().apply(change)?;
                }
                if run.output_failed() {
                    break;
                }
            }
            Wake::Cgroups(changes) => {
                let news = selection.update(&changes.made, &changes.removed, changes.lost);
                for change in news {
                    run.collector().apply(change)?;
                }
            }
            Wake::Asked => {
                for change in selection.update(&[], &[], false) {
                    run.collector().apply(change)?;
                }
            }
            Wake::Deadline => break,
            Wake::Signal(Signal::SIGUSR1 | Signal::SIGUSR2) => {}
            Wake::Signal(_) => break,
        }
    }
    let gone = selection.is_over().then(|| "every watched cgroup is gone".to_owned());
    run.last_tick();
    let complete = run.finish(gone.into_iter().collect());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}
