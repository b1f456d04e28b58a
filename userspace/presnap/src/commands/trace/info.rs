// SPDX-License-Identifier: GPL-2.0-only

//! `presnap trace info`: numbers about a trace.

use std::path::PathBuf;

use anyhow::Result;
use presnap_traces::Trace;
use serde_json::json;

use crate::output;
use crate::units;

/// Show what a trace holds
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A trace of presnap, or a Parquet file with the columns t_ns, op, sector, nsectors
    file: PathBuf,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Shows it.
    pub(crate) fn run(self) -> Result<()> {
        let trace = Trace::read(&self.file)?;
        let s = trace.summary();
        let [reads, writes, discards, zeroes, flushes] = s.kinds;
        if self.json {
            return output::json(&json!({
                "records": trace.records.len(),
                "reads": reads, "writes": writes, "discards": discards,
                "write_zeroes": zeroes, "flushes": flushes,
                "seconds": s.duration_ns as f64 / 1e9,
                "bytes_read": s.bytes_read, "bytes_written": s.bytes_written,
                "end_sector": s.end_sector, "origin_sectors": trace.origin_sectors,
                "blocks_written": s.blocks_written,
                "lossy": trace.lossy, "damage": trace.damage,
            }));
        }
        println!("{} records in {}", trace.records.len(), units::ns(s.duration_ns));
        println!("  reads        {reads} ({})", units::bytes(s.bytes_read));
        println!("  writes       {writes} ({})", units::bytes(s.bytes_written));
        println!("  discards     {discards}, write-zeroes {zeroes}, flushes {flushes}");
        println!("  working set  {} written", units::blocks(s.blocks_written));
        println!("  device       {} touched", units::bytes(s.end_sector.saturating_mul(512)));
        if trace.lossy {
            println!("  records were lost while recording");
        }
        if let Some(damage) = &trace.damage {
            println!("  only the start is readable: {damage}");
        }
        Ok(())
    }
}
