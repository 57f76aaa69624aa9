//! `ecoprobe replay`: a recording through the same session and outputs as a live run.

use std::process::ExitCode;

use crate::cli::ReplayArgs;
use crate::command::settings::settings;
use crate::event::Event;
use crate::session::Session;
use crate::{host, output, recording};

pub fn replay(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    output::distinct(Some(&args.file), &args.output)?;
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
            Event::Warning { message } if !output::shows_notes(&args.output) => {
                output.note(message)?;
            }
            _ => {}
        }
    }
    output.finish(&session.report(host::own::so_far()))?;
    Ok(ExitCode::SUCCESS)
}
