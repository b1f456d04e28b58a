// SPDX-License-Identifier: GPL-2.0-only

//! The command line: all subcommands, each with its arguments in its own file.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::commands as c;

/// Predictive snapshots of block devices, and their replication
///
/// A presnap device lies between its users and their disk (the origin). It learns where the next writes will land and
/// copies ahead of the snapshot into a reserved device (the region), so that a snapshot neither stalls the writers nor
/// takes long. The usual way:
///
///   presnap format --origin /dev/vg/data /dev/nvme1n1
///   presnap open data /dev/vg/data /dev/nvme1n1
///   mount /dev/mapper/data /srv
///   presnap snapshot data
///   presnap send data 1 | ssh replica presnap receive /dev/vg/copy
///
/// DEV is the name of a presnap device, /dev/mapper/NAME or /dev/dm-N; list, show, send and check also take the region
/// of a device that does not run. Exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong usage; `check --repair`
/// has more.
#[derive(Parser)]
#[command(name = "presnap", version, propagate_version = true, max_term_width = 100)]
#[command(verbatim_doc_comment)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Format(c::format::Args),
    Open(c::open::OpenArgs),
    Close(c::open::CloseArgs),
    Snapshot(c::snapshot::Args),
    List(c::list::Args),
    Show(c::show::Args),
    Rm(c::rm::Args),
    Grow(c::grow::Args),
    Status(c::status::Args),
    Image(c::image::Args),
    Send(c::send::Args),
    Receive(c::receive::Args),
    Check(c::check::Args),
    Trace(c::trace::Args),
    Model(c::model::Args),
    Train(c::train::Args),
    Stats(c::knobs::StatsArgs),
    Get(c::knobs::GetArgs),
    Set(c::knobs::SetArgs),
    #[command(hide = true)]
    Man(c::man::Args),
}

impl Cli {
    /// Runs what was asked for.
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Format(a) => a.run(),
            Command::Open(a) => a.run(),
            Command::Close(a) => a.run(),
            Command::Snapshot(a) => a.run(),
            Command::List(a) => a.run(),
            Command::Show(a) => a.run(),
            Command::Rm(a) => a.run(),
            Command::Grow(a) => a.run(),
            Command::Status(a) => a.run(),
            Command::Image(a) => a.run(),
            Command::Send(a) => a.run(),
            Command::Receive(a) => a.run(),
            Command::Check(a) => a.run(),
            Command::Trace(a) => a.run(),
            Command::Model(a) => a.run(),
            Command::Train(a) => a.run(),
            Command::Stats(a) => a.run(),
            Command::Get(a) => a.run(),
            Command::Set(a) => a.run(),
            Command::Man(a) => a.run(),
        }
    }
}
