// SPDX-License-Identifier: GPL-2.0-only

//! `presnap man`: writes the manual pages, for packages.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;

/// Write the manual pages into a directory
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The directory; made if missing
    directory: PathBuf,
}

impl Args {
    /// Writes them.
    pub(crate) fn run(self) -> Result<()> {
        let dir = &self.directory;
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let command = crate::cli::Cli::command();
        clap_mangen::generate_to(command, dir).with_context(|| dir.display().to_string())
    }
}
