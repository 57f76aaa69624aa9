//! Parse, configure, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use ecoprobe::base::error;
use ecoprobe::cli::Cli;
use ecoprobe::config::Config;
use ecoprobe::{command, host, output};

fn main() -> ExitCode {
    // SIGPIPE stays ignored, as the Rust runtime leaves it: a reader that goes away is an error that
    // unwinds like any other, past what has to be cleaned up. Children get the default back from
    // `std::process::Command`.
    host::stdout::keep();
    let elevated = host::is_elevated();
    let config = Config::new(Cli::parse(), elevated).map_err(Into::into);
    config.and_then(|config| command::execute(&config)).unwrap_or_else(|error| {
        if !output::is_closed_pipe(&error) {
            output::note(&format!("{error:#}"));
        }
        error::exit_code(&error)
    })
}
