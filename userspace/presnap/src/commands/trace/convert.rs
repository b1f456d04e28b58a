// SPDX-License-Identifier: GPL-2.0-only

//! `presnap trace convert`: any trace to the compact form.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use anyhow::{Context, Result};
use presnap_engine::trace::{TraceHeader, TRACE_LOSSY};
use presnap_traces::{Trace, Writer};

/// Convert a trace to presnap's compact form
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A trace of presnap (a damaged one is mended by leaving out its end), or a Parquet file
    input: PathBuf,
    /// The compact trace
    output: PathBuf,
}

impl Args {
    /// Converts.
    pub(crate) fn run(self) -> Result<()> {
        let trace = Trace::read(&self.input)?;
        let shown = || self.output.display().to_string();
        let header = TraceHeader {
            flags: if trace.lossy || trace.damage.is_some() { TRACE_LOSSY } else { 0 },
            origin_sectors: trace.origin_sectors,
            start_realtime_ns: trace.start_realtime_ns,
            start_ns: trace.start_ns,
        };
        let file = File::create(&self.output).with_context(shown)?;
        let mut writer = Writer::new(BufWriter::new(file), header).with_context(shown)?;
        for record in trace.records {
            writer.push(record).with_context(shown)?;
        }
        let count = writer.finish().with_context(shown)?;
        println!("{count} records in {}", self.output.display());
        Ok(())
    }
}
