//! The benchmark suite: what ecoprobe costs, and how wrong it can be. One category a file.

mod probe;
mod statistics;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "ecoprobe's benchmark suite")]
struct Cli {
    #[command(subcommand)]
    category: Category,
}

#[derive(Subcommand)]
enum Category {
    /// Nanoseconds per context switch: our probe, an empty program, a clock reader.
    Probe(probe::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().category {
        Category::Probe(args) => probe::bench(&args),
    }
}
