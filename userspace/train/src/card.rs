// SPDX-License-Identifier: GPL-2.0-only

//! The model card: what a model was made of and how good it is, as JSON and as text.

use crate::report::{Comparison, TraceReport};
use serde::Serialize;
use std::fmt::Write;

/// A trace a model was trained on.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    /// Name.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Records.
    pub records: usize,
    /// Those that write.
    pub writes: usize,
    /// From the first record to the last.
    pub seconds: f64,
    /// What is wrong with the file, though it could be used.
    pub damage: Option<String>,
    /// Samples to train on.
    pub training_samples: usize,
    /// Samples to judge by.
    pub held_out_samples: usize,
    /// Areas forgotten in the replay for lack of memory.
    pub evictions: u64,
}

/// A model card.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// File name of the model.
    pub model: String,
    /// Family and widths.
    pub family: String,
    /// Widths of the layers, inputs first.
    pub widths: Vec<usize>,
    /// Bytes of the model.
    pub bytes: usize,
    /// SHA-256 of the model.
    pub sha256: String,
    /// The model's own checksum.
    pub crc32c: String,
    /// Feature schema.
    pub schema: String,
    /// The command that makes it again.
    pub command: String,
    /// Seed.
    pub seed: u64,
    /// Epochs.
    pub epochs: u32,
    /// Longest horizon in seconds.
    pub interval_s: f64,
    /// Share of the time that was trained on, in percent; the rest is held out.
    pub training_percent: u64,
    /// Share of the training samples that were written.
    pub base: f64,
    /// Data.
    pub data: Vec<Data>,
    /// Mean over traces and horizons.
    pub mean: Option<Comparison>,
    /// Average precision lost by quantising.
    pub int8_ap_loss: Option<f64>,
    /// By trace.
    pub quality: Vec<TraceReport>,
    /// Test vectors on which the engine gave bit for bit what the reference gave.
    pub vectors: usize,
}

impl Card {
    /// The card for people.
    pub fn text(&self) -> String {
        let mut t = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut t);
        t
    }

    fn write(&self, t: &mut String) -> std::fmt::Result {
        let widths: Vec<_> = self.widths.iter().map(ToString::to_string).collect();
        writeln!(t, "{}: {} {}, {} bytes", self.model, self.family, widths.join("-"), self.bytes)?;
        writeln!(t, "  sha256   {}", self.sha256)?;
        writeln!(t, "  crc32c   {}, feature schema {}", self.crc32c, self.schema)?;
        writeln!(t, "  made by  {}", self.command)?;
        writeln!(t)?;
        writeln!(
            t,
            "Data (first {} % of the time trained on, the rest held out):",
            self.training_percent
        )?;
        for d in &self.data {
            writeln!(
                t,
                "  {}: {} records, {} writes, {:.0} s, {} training and {} held-out samples{}",
                d.name,
                d.records,
                d.writes,
                d.seconds,
                d.training_samples,
                d.held_out_samples,
                d.damage.as_ref().map_or(String::new(), |d| format!(" ({d})"))
            )?;
            writeln!(t, "    sha256 {}", d.sha256)?;
        }
        writeln!(t)?;
        writeln!(t, "Quality on the held-out part, AUC / AP (base: share of areas written):")?;
        writeln!(
            t,
            "  {:<18} {:>7} {:>6}  {:>13}  {:>13}  {:>13}  {:>13}",
            "trace", "horizon", "base", "model int8", "model float", "ewma", "age"
        )?;
        let line = |t: &mut String, name: &str, horizon: &str, c: &Comparison| {
            let score = |s: crate::report::Score| format!("{:.3} / {:.3}", s.auc, s.ap);
            writeln!(
                t,
                "  {name:<18} {horizon:>7} {:>6.3}  {:>13}  {:>13}  {:>13}  {:>13}",
                c.base,
                score(c.model),
                score(c.model_float),
                score(c.ewma),
                score(c.age)
            )
        };
        for report in &self.quality {
            for (seconds, c) in &report.horizons {
                line(t, &report.trace, &format!("{seconds} s"), c)?;
            }
            if let Some(c) = &report.mean {
                line(t, &report.trace, "mean", c)?;
            }
        }
        match &self.mean {
            Some(c) if self.quality.len() > 1 => line(t, "all", "mean", c)?,
            Some(_) => {}
            None => writeln!(t, "  too short to judge: record longer")?,
        }
        writeln!(t)?;
        for report in &self.quality {
            writeln!(
                t,
                "  {}: calibration error {:.3}, Brier score {:.3} (ewma {:.3})",
                report.trace, report.calibration_error, report.brier, report.brier_ewma
            )?;
        }
        if let Some(loss) = self.int8_ap_loss {
            writeln!(t, "  AP lost by int8: {loss:.4}")?;
        }
        writeln!(t, "  engine equals the reference on {} test vectors", self.vectors)
    }
}
