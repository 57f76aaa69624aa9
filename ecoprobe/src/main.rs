//! Parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use ecoprobe::base::error;
use ecoprobe::cli::{Cli, Command};
use ecoprobe::{command, host, output};

fn main() -> ExitCode {
    // SIGPIPE stays ignored, as the Rust runtime leaves it: a reader that goes away is an error that
    // unwinds like any other, past what has to be cleaned up. Children get the default back from
    // `std::process::Command`.
    host::stdout::keep();
    run(&Cli::parse()).unwrap_or_else(|error| {
        if !output::is_closed_pipe(&error) {
            output::note(&format!("{error:#}"));
        }
        error::exit_code(&error)
    })
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        None => command::watch::watch(&cli.watch),
        Some(Command::Run(args)) => command::run::run(args),
        Some(Command::Replay(args)) => command::replay::replay(args),
        Some(Command::Doctor(args)) => command::doctor::doctor(args),
    }
}
