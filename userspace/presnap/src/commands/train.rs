// SPDX-License-Identifier: GPL-2.0-only

//! `presnap train`: the trainer, which also takes a running device for a trace.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::trace::record;
use crate::dm::Dm;
use crate::units;

/// Train a model that predicts where the next writes land
///
/// Learns from recorded I/O (trace files, or a presnap device, which is then recorded for --record), quantises to int8
/// and judges on the last part of the time, against the heuristics that need no training. Beside FILE.psm it writes
/// FILE.card.json and FILE.card.txt (data, quality, hashes) and FILE.vectors (for `presnap model verify`). The same
/// data and seed give the same files.
#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    trainer: presnap_train::cli::Args,
    /// How long to record where --from names a presnap device instead of a file; what the device remembers is used, too
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::duration)]
    record: std::time::Duration,
}

impl Args {
    /// Records devices, then trains.
    pub(crate) fn run(mut self) -> Result<()> {
        let mut recorded = Vec::new();
        for from in &mut self.trainer.from {
            let name = from.display().to_string();
            if from.is_file() || Dm::find(&name)?.is_none() {
                continue;
            }
            let file = self.trainer.out.with_extension(format!("{}.trace", recorded.len()));
            eprintln!("presnap: recording {name} for {} s", self.record.as_secs_f64());
            record::record(&name, &file, Some(self.record), false)
                .with_context(|| format!("--from {name}"))?;
            from.clone_from(&file);
            recorded.push(file);
        }
        let result = presnap_train::cli::run(self.trainer);
        // Traces stay beside the model that was made from them: its card names them.
        let shown: Vec<String> =
            recorded.iter().map(|f: &PathBuf| f.display().to_string()).collect();
        if !shown.is_empty() {
            eprintln!("presnap: trained from {}", shown.join(", "));
        }
        result
    }
}
