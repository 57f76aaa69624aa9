//! The project's own commands: `cargo xtask <command>`.

mod ebpf;
mod imports;
mod test;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Build, test and measure ecoprobe")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the BPF objects from ecoprobe-ebpf/ and put them where they are embedded.
    BuildEbpf {
        /// Build them again and fail unless that gives the committed ones, byte for byte; where there
        /// is no BPF toolchain, compare digests.
        #[arg(long)]
        check: bool,
    },
    /// Write which folder imports which to docs/imports.md; fail if one imports what it may not.
    Imports {
        /// Write nothing; fail if the document is not what is imported.
        #[arg(long)]
        check: bool,
    },
    /// Build ecoprobe and let it measure a busy loop for five seconds (with sudo if you are not
    /// root).
    Demo,
    /// The benchmark suite; `cargo xtask bench help` lists its categories.
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Every test that this machine can run; as root, those of the real kernel too.
    Test {
        /// Passed on to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::BuildEbpf { check: true } => ebpf::check(),
        Task::BuildEbpf { check: false } => ebpf::build(),
        Task::Bench { arguments } => bench(&arguments),
        Task::Imports { check } => imports::run(check),
        Task::Demo => demo(),
        Task::Test { arguments } => test::test(&arguments),
    }
}

/// Builds the suite and all that it measures; exits as it does.
fn bench(arguments: &[String]) -> Result<()> {
    run(cargo().args(["build", "--release", "--workspace", "--exclude", "xtask"]))?;
    let suite = target_dir().join("release/ecoprobe-bench");
    // In our place: whoever sends us a signal means the suite, which has to clean up.
    let error = Command::new(&suite).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", suite.display()))
}

fn demo() -> Result<()> {
    run(cargo().args(["build", "--release", "--package", "ecoprobe"]))?;
    let ecoprobe = target_dir().join("release/ecoprobe");
    let mut command = if is_root()? {
        Command::new(ecoprobe)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(ecoprobe);
        sudo
    };
    let busy = "timeout 5 sh -c 'while :; do :; done' || true";
    run(command.args(["run", "--interval", "500ms", "--", "sh", "-c", busy]))
}

/// The workspace's root.
fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

fn is_root() -> Result<bool> {
    let id = Command::new("id").arg("-u").output().context("cannot run `id`")?;
    Ok(id.stdout.trim_ascii() == b"0")
}

fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
