// SPDX-License-Identifier: GPL-2.0-only

//! `presnap`: the command. Each subcommand is a file of its own; this one only chooses.

mod cli;
mod commands;
mod delta;
mod dm;
mod output;
mod replica;
mod source;
mod store;
mod sysfs;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A reader that goes away (`presnap list | head`) ends us quietly, as it does other commands.
    presnap_blockio::default_sigpipe();
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if let Some(output::Status(status)) = e.downcast_ref() {
                return ExitCode::from(*status);
            }
            eprintln!("presnap: {e:#}");
            ExitCode::from(if e.is::<output::Usage>() { 2 } else { 1 })
        }
    }
}
