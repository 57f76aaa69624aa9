//! Parse, configure, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use ecoprobe::base::error;
use ecoprobe::{Cli, Config};

fn main() -> ExitCode {
    // SIGPIPE stays ignored, as the Rust runtime leaves it: a reader that goes away is an error that
    // unwinds like any other, past what has to be cleaned up. Children get the default back from
    // `std::process::Command`.
    ecoprobe::keep_stdout();
    let elevated = ecoprobe::is_elevated();
    let config = Config::new(Cli::parse(), elevated).map_err(Into::into);
    config.and_then(|config| ecoprobe::execute(&config)).unwrap_or_else(|error| {
        if !ecoprobe::is_closed_pipe(&error) {
            ecoprobe::note(&format!("{error:#}"));
        }
        error::exit_code(&error)
    })
}
