// SPDX-License-Identifier: GPL-2.0-only

//! `presnap grow`: uses what the region device has more than before.

use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::output::Progress;
use crate::source::Source;

/// Use what the region device has more than before
///
/// Enlarge the device first (with `lvextend`, for example); reads, writes and snapshots go on meanwhile. The region also
/// grows when the presnap device is resumed. It cannot shrink.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// As JSON: slots before and after
    #[arg(long)]
    json: bool,
}

/// A kernel that does not write for so long has failed.
const PATIENCE: Duration = Duration::from_secs(600);

impl Args {
    /// Grows, and waits until it has.
    pub(crate) fn run(self) -> Result<()> {
        let (dm, _) = Source::live(&self.device)?;
        let answer = dm.message(&["grow"]).context("the region does not grow")?;
        let mut numbers = answer.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(before)), Some(Ok(after))) = (numbers.next(), numbers.next()) else {
            bail!("the kernel answered {answer:?} to the message grow");
        };
        let mut progress = Progress::new(false);
        loop {
            let status = dm.status()?;
            if status.total_slots >= after {
                break;
            }
            if status.mode != "rw" {
                bail!("the region has failed while it was growing (see the kernel's log)");
            }
            if progress.elapsed() > PATIENCE {
                bail!("the region has not grown to {after} slots in 10 minutes");
            }
            progress.show(|| format!("growing to {after} slots"));
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.json {
            println!("{}", serde_json::json!({ "slots_before": before, "slots": after }));
        } else if before == after {
            println!("the region device has not grown: {after} slots");
        } else {
            println!("the region has {after} slots now, {before} before");
        }
        Ok(())
    }
}
