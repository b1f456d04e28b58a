// SPDX-License-Identifier: GPL-2.0-only

//! `presnap trace`: records of I/O, taken, looked at, converted and replayed.

mod convert;
mod info;
pub(crate) mod record;
mod replay;

use anyhow::Result;

/// Record, show, convert and replay I/O
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Record(record::Args),
    Replay(replay::Args),
    Info(info::Args),
    Convert(convert::Args),
}

impl Args {
    /// Runs the subcommand.
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Record(a) => a.run(),
            Command::Replay(a) => a.run(),
            Command::Info(a) => a.run(),
            Command::Convert(a) => a.run(),
        }
    }
}
