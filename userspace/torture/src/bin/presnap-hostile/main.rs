// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-hostile`: loads hostile regions and hostile models into the kernel, by the thousand, and checks what it makes
//! of them: refused with words, or accepted and then as good as any other. Runs in the VM, as root.

mod bases;
mod blobs;
mod crowd;
mod kernel_log;
mod regions;
mod rig;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Load hostile regions or models, and check what the kernel makes of them.
///
/// Regions are made by the kernel itself first, then changed: bytes flipped, fields set to what they cannot be, parts
/// exchanged, most with their checksums put right. All content of both devices is destroyed. Exit status: 0 all as it
/// should be, 1 otherwise.
#[derive(Parser)]
#[command(version, about, long_about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Regions
    Regions(Common),
    /// Model blobs
    Blobs(Common),
    /// One region whose index is made to take for ever
    Crowd(Common),
}

#[derive(clap::Args)]
struct Common {
    /// The origin: a small device, of which every block is compared again and again
    #[arg(long)]
    origin: PathBuf,
    /// The region, just as large as a region must be
    #[arg(long)]
    region: PathBuf,
    /// How many
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Seed of all that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this one (of those that the seed makes)
    #[arg(long)]
    only: Option<u64>,
}

impl Common {
    fn numbers(&self) -> Box<dyn Iterator<Item = u64>> {
        match self.only {
            Some(i) => Box::new(std::iter::once(i)),
            None => Box::new(0..self.count),
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    match &args.command {
        Command::Regions(common) => regions::run(common),
        Command::Blobs(common) => blobs::run(common),
        Command::Crowd(common) => crowd::run(common),
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("presnap-hostile: {e:#}");
            ExitCode::from(1)
        }
    }
}
