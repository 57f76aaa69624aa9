//! `ecoprobe replay`: a recording through the same consumers as a live run.

use std::process::ExitCode;

use crate::base::Patience;
use crate::base::error::EXIT_FAILED;
use crate::config::Replay;
use crate::output::writer::Pace;
use crate::pipeline::{Consumers, Pipeline};
use crate::{host, output, recording};

pub(super) fn replay(config: &Replay) -> anyhow::Result<ExitCode> {
    let (mut header, events) = recording::read(&config.file)?;
    let gpus = &header.sources.gpu_energy;
    header.settings = config.wishes.apply(header.settings, &header.domains, gpus)?;
    let consumers = Consumers {
        recorder: None,
        output: output::open_quiet(&config.output)?,
        notes_in_report: output::shows_notes(&config.output),
        pace: Pace::Patient,
    };
    let mut pipeline = Pipeline::open(header, consumers)?;
    for event in events {
        match event {
            Ok(event) => pipeline.event(&event),
            Err(error) => {
                pipeline.abandon();
                return Err(error);
            }
        }
        if pipeline.output_failed() {
            break;
        }
    }
    let complete = pipeline.finish(host::own::so_far(), &Patience::default());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}
