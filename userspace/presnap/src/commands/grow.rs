// SPDX-License-Identifier: GPL-2.0-only

//! `presnap grow`: uses what the region device has more than before.

use std::time::Duration;

use anyhow::{bail, Context, Result};
use presnap_blockio::Mode;
use presnap_engine::geometry::BLOCK_SECTORS;

use crate::dm::{dmsetup, path_of, with_kernel_words, Dm};
use crate::output::Progress;
use crate::source::Source;

/// Use what the region device, or the origin, has more than before
///
/// Enlarge the device first (with `lvextend`, for example); reads, writes and snapshots go on meanwhile. The region also
/// grows when the presnap device is resumed. When the origin grows the device is suspended for a moment, and a snapshot under way is
/// dropped; close the views first. Nothing shrinks.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// The origin has grown, not the region: map all of it
    #[arg(long)]
    origin: bool,
    /// As JSON: slots, or sectors of the origin, before and after
    #[arg(long)]
    json: bool,
}

/// A kernel that does not write for so long has failed.
const PATIENCE: Duration = Duration::from_secs(600);

impl Args {
    /// Grows, and waits until it has.
    pub(crate) fn run(self) -> Result<()> {
        let (dm, _) = Source::live(&self.device)?;
        if self.origin {
            return self.grow_origin(&dm);
        }
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

    /// Reloads the table with the length that the origin has now.
    fn grow_origin(&self, dm: &Dm) -> Result<()> {
        let table = dm.table()?;
        let path = path_of(&table.origin)?;
        let origin = || format!("origin {}", path.display());
        let file = presnap_blockio::open(&path, Mode::default()).with_context(origin)?;
        let sectors = presnap_blockio::size(&file).with_context(origin)? / 512;
        drop(file);
        let (before, after) = (table.sectors, sectors - sectors % u64::from(BLOCK_SECTORS));
        if after < before {
            bail!(
                "{} has {after} sectors, and {} maps {before}: it does not shrink",
                origin(),
                dm.name
            );
        }
        if after > before {
            let line = dmsetup(&["table", &dm.name])?;
            let mut words: Vec<&str> = line.split_whitespace().collect();
            let length = after.to_string();
            *words.get_mut(1).context("the table has no length")? = &length;
            let load = |line: &str| {
                dmsetup(&["load", &dm.name, "--table", line]).map_err(with_kernel_words)?;
                dmsetup(&["resume", &dm.name]).map_err(with_kernel_words)
            };
            if let Err(e) = load(&words.join(" ")) {
                // It may be suspended now, with the table that was refused.
                let back = load(&line).err().map_or_else(String::new, |e| {
                    format!("; {} does not go on as it was either: {e:#}", dm.name)
                });
                return Err(e.context(format!("the origin does not grow{back}")));
            }
        }
        if self.json {
            let json =
                serde_json::json!({ "origin_sectors_before": before, "origin_sectors": after });
            println!("{json}");
        } else if before == after {
            println!("the origin has not grown: {after} sectors");
        } else {
            println!("the origin has {after} sectors now, {before} before");
        }
        Ok(())
    }
}
