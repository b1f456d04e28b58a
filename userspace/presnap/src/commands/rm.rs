// SPDX-License-Identifier: GPL-2.0-only

//! `presnap rm`: deletes snapshots.

use anyhow::{Context, Result};

use crate::source::Source;

/// Delete snapshots; the space they took is free again
///
/// Only the oldest snapshot can be deleted, so several ids are deleted in ascending order. A snapshot that is being
/// sent is not deleted.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// Snapshots to delete
    #[arg(required = true, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    ids: Vec<u32>,
}

impl Args {
    /// Deletes.
    pub(crate) fn run(mut self) -> Result<()> {
        let (dm, _) = Source::live(&self.device)?;
        self.ids.sort_unstable();
        self.ids.dedup();
        for id in self.ids {
            let words = dm.message(&["delete", &id.to_string()]).with_context(|| {
                let list = dm.message(&["list"]).unwrap_or_default();
                let oldest = list.lines().next().and_then(|l| l.split(' ').next()).unwrap_or("none");
                format!("cannot delete snapshot {id} (only the oldest can be, which is {oldest}; not while it is sent or viewed)")
            })?;
            if !words.is_empty() {
                println!("{words}");
            }
        }
        Ok(())
    }
}
