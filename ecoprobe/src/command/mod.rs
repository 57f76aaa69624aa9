//! One file a subcommand.

pub(crate) mod doctor;
mod measure;
mod replay;
pub(crate) mod run;
pub(crate) mod signals;
mod watch;

use std::process::ExitCode;

use crate::config::Config;

/// Does what was asked for, and says what to exit with.
pub fn execute(config: &Config) -> anyhow::Result<ExitCode> {
    signals::ignore_file_limit();
    match config {
        Config::Watch(config) => watch::watch(config),
        Config::Run(config) => run::run(config),
        Config::Replay(config) => replay::replay(config),
        Config::Doctor(config) => doctor::doctor(config),
    }
}
