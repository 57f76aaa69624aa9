//! The project's own commands: `cargo xtask <command>`.

mod ebpf;

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
    /// Build the BPF object from ecoprobe-ebpf/ and put it where the agent embeds it.
    BuildEbpf {
        /// Build nothing; fail if the committed object does not match its sources.
        #[arg(long)]
        check: bool,
    },
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
        Task::Test { arguments } => test(&arguments),
    }
}

/// Builds the suite and all that it measures; exits as it does.
fn bench(arguments: &[String]) -> Result<()> {
    run(cargo().args(["build", "--quiet", "--release", "--workspace", "--exclude", "xtask"]))?;
    let suite = target_dir().join("release/ecoprobe-bench");
    let mut command = Command::new(&suite);
    let status = command
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {}", suite.display()))?;
    std::process::exit(status.code().unwrap_or(1));
}

fn test(arguments: &[String]) -> Result<()> {
    run(cargo().args(["test", "--workspace"]).args(arguments))
}

/// The workspace's root.
fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
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
