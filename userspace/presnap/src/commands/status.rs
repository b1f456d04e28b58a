// SPDX-License-Identifier: GPL-2.0-only

//! `presnap status`: how a device does.

use anyhow::Result;
use serde::Serialize;

use crate::dm::Status;
use crate::output;
use crate::source::Source;
use crate::units;

/// Show the state of a presnap device
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    name: String,
    origin: String,
    region: String,
    sectors: u64,
    #[serde(flatten)]
    status: Status,
}

impl Args {
    /// Shows the state.
    pub(crate) fn run(self) -> Result<()> {
        let (dm, table) = Source::live(&self.device)?;
        let status = dm.status()?;
        let report = Report {
            name: dm.name.clone(),
            origin: table.origin,
            region: table.region,
            sectors: table.sectors,
            status,
        };
        if self.json {
            return output::json(&report);
        }
        let s = &report.status;
        let percent = s.used_slots as f64 * 100.0 / (s.total_slots.max(1)) as f64;
        println!("{} (/dev/{}): {}", report.name, dm.kernel_name, s.mode);
        println!("  origin     {} ({})", report.origin, units::bytes(report.sectors * 512));
        println!(
            "  region     {}: {} of {} in use ({percent:.1} %)",
            report.region,
            units::blocks(s.used_slots),
            units::blocks(s.total_slots)
        );
        println!("  operation  {}", s.op);
        println!("  dirty      {}", units::blocks(s.dirty_blocks));
        println!("  snapshots  {}, newest sealed: {}", s.snapshots, s.newest_sealed);
        if s.active != "-" {
            println!("  under way  {}", s.active);
        }
        for flag in &s.flags {
            println!("  attention  {}", explain(flag));
        }
        Ok(())
    }
}

fn explain(flag: &str) -> String {
    let words = match flag {
        "full-needed" => {
            "the changes since the last snapshot are not known: the next send must be full"
        }
        "overflow" => "the region was full and a snapshot was dropped",
        _ => match flag.strip_prefix("superset:") {
            Some(n) => {
                return format!(
                    "{flag}: the last shutdown was not clean; {n} blocks may pass for changed that are not"
                )
            }
            None => return flag.into(),
        },
    };
    format!("{flag}: {words}")
}
