// SPDX-License-Identifier: GPL-2.0-only

//! `presnap rm`: deletes snapshots.

use std::time::Duration;

use anyhow::{Context, Result};

use super::snapshot::State;
use crate::output::Progress;
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
            dm.message(&["delete", &id.to_string()])
                .with_context(|| format!("cannot delete snapshot {id}"))?;
            // It is deleted in the background; the next one is the oldest only once it is gone.
            let mut progress = Progress::new(false);
            while State::ask(&dm, id)?.state != "unknown" {
                progress.show(|| format!("deleting snapshot {id}"));
                let pause = progress.elapsed() / 4;
                std::thread::sleep(
                    pause.clamp(Duration::from_millis(5), Duration::from_millis(500)),
                );
            }
        }
        Ok(())
    }
}
