// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-stress`: what a block device must stand: discards and zeroing of all sizes and alignments, storms of flushes,
//! questions without end, and writers whose device goes away. Runs in the VM, as root.

mod device;
mod discards;
mod flushes;
mod questions;
mod writers;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Stress a presnap device, and check what became of it.
///
/// All content of the device is destroyed. Exit status: 0 all as it should be, 1 otherwise.
#[derive(Parser)]
#[command(version, about, long_about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Discards and zeroing of all sizes and alignments, on the device alone and under the image of a snapshot
    Discards(discards::Args),
    /// Flushes, FUA writes and writes with a flush, from many threads
    Flushes(flushes::Args),
    /// Status and messages without a pause, while nothing changes: the answers must not either
    Questions(questions::Args),
    /// Writers that go on until their device fails or the time is over; what was acknowledged must be on the origin
    Writers(writers::Args),
}

fn run(args: &Args) -> Result<String> {
    match &args.command {
        Command::Discards(args) => discards::run(args),
        Command::Flushes(args) => flushes::run(args),
        Command::Questions(args) => questions::run(args),
        Command::Writers(args) => writers::run(args),
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("presnap-stress: {e:#}");
            ExitCode::FAILURE
        }
    }
}
