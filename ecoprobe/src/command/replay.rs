//! `ecoprobe replay`: a recording through the same session and outputs as a live run.

use std::process::ExitCode;

use crate::cli::{Format, ReplayArgs};
use crate::command::settings::settings;
use crate::sample::Event;
use crate::session::Session;
use crate::{host, output, recording};

pub fn replay(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let (mut header, events) = recording::read(&args.file)?;
    let gpus = &header.sources.gpu_energy;
    header.settings = settings(&args.settings, header.settings, &header.domains, gpus)?;

    let mut output = output::open_quiet(&args.output)?;
    output.begin(&header)?;
    let mut session = Session::new(header);
    for event in events {
        let event = event?;
        session.apply(&event);
        match &event {
            Event::Sample(_) => {
                if let Some(window) = session.window() {
                    output.window(&window)?;
                }
            }
            // The table lists them itself.
            Event::Warning { message } if args.output.format != Format::Table => {
                output.note(message)?;
            }
            _ => {}
        }
    }
    output.finish(&session.report(host::own::so_far()))?;
    Ok(ExitCode::SUCCESS)
}
