//! Errors that decide an exit code. Everything else is `anyhow` with context and exits with 1.

use std::process::ExitCode;

/// The documented exit codes (README, "What the output means"). `run` adds the command's own.
pub const EXIT_FAILED: u8 = 1;
pub const EXIT_USAGE: u8 = 2;
pub const EXIT_NO_WORKLOAD: u8 = 3;
pub const EXIT_CANNOT: u8 = 4;

/// An error whose kind is part of the outside contract. The message is one sentence that says what
/// to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or an input file asks for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// No workload, or more than one, answers to a name.
    #[error("{0}")]
    NoWorkload(String),
    /// This host cannot do it, as things are.
    #[error("{0}")]
    Cannot(String),
    /// The kernel refused it for want of permission.
    #[error("{0}")]
    Denied(String),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::NoWorkload(_) => EXIT_NO_WORKLOAD,
            Self::Cannot(_) | Self::Denied(_) => EXIT_CANNOT,
        }
    }
}

/// The exit code of a failed command: that of the first [`Error`] in the chain, else 1.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    ExitCode::from(code.map_or(EXIT_FAILED, Error::exit_code))
}
