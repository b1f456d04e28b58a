// SPDX-License-Identifier: GPL-2.0-only

//! `presnap model`: models in files and in the kernel.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context, Result};
use presnap_engine::features::{FeatureVector, FEATURES, SCHEMA_HASH};
use presnap_engine::model::{Model, BLOB_BYTES_MAX};
use serde_json::json;

use crate::dm::Dm;
use crate::output;
use crate::source::Source;
use crate::sysfs;
use crate::units;

/// Put models into the kernel, look at them, verify them
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Put a model to use in a device: checked here and again by the kernel, which keeps the old one if it refuses
    ///
    /// The predictor is not changed: `presnap set DEV predictor model` makes it use the model.
    Push {
        /// The device
        #[arg(value_name = "DEV")]
        device: String,
        /// The model (`presnap train` makes one)
        file: PathBuf,
    },
    /// Go back to the model that was in use before
    Rollback {
        /// The device
        #[arg(value_name = "DEV")]
        device: String,
    },
    /// Show what a model file is, and whether this version accepts it
    Info {
        /// The model
        file: PathBuf,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check that the kernel's model answers bit for bit as it should
    ///
    /// Without --vectors, random and extreme features are compared with what the engine here computes from FILE.
    Verify {
        /// The device; the model must be in use there
        #[arg(value_name = "DEV")]
        device: String,
        /// The model
        file: PathBuf,
        /// Test vectors, as `presnap train` writes them beside a model
        #[arg(long, value_name = "FILE")]
        vectors: Option<PathBuf>,
    },
}

impl Args {
    /// Runs the subcommand.
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Push { device, file } => push(&device, &file),
            Command::Rollback { device } => rollback(&device),
            Command::Info { file, json } => info(&file, json),
            Command::Verify { device, file, vectors } => verify(&device, &file, vectors.as_deref()),
        }
    }
}

fn load(file: &Path) -> Result<Model<Vec<u8>>> {
    let shown = file.display();
    let size = std::fs::metadata(file).with_context(|| format!("model {shown}"))?.len();
    if size > BLOB_BYTES_MAX as u64 {
        bail!("model {shown}: {size} bytes, at most {BLOB_BYTES_MAX} are accepted");
    }
    let bytes = std::fs::read(file).with_context(|| format!("model {shown}"))?;
    Model::parse(bytes).map_err(|e| anyhow!("model {shown}: {e}"))
}

/// The kernel's words for its last refusal.
fn refusal(dm: &Dm) -> String {
    sysfs::read(&dm.attribute("model/error")).unwrap_or_else(|_| "no reason given".into())
}

fn state(dm: &Dm) -> Result<String> {
    sysfs::read(&dm.attribute("model/state"))
}

fn push(device: &str, file: &Path) -> Result<()> {
    let (dm, _) = Source::live(device)?;
    let model = load(file)?;
    let refused = |e: std::io::Error| {
        anyhow!(
            "{}: the kernel refused the model: {} ({e}); the old one stays",
            dm.name,
            refusal(&dm)
        )
    };
    sysfs::write(&dm.attribute("model/blob"), model.as_bytes()).map_err(refused)?;
    sysfs::write(&dm.attribute("model/commit"), b"1").map_err(refused)?;
    println!("{}: {}", dm.name, state(&dm)?);
    Ok(())
}

fn rollback(device: &str) -> Result<()> {
    let (dm, _) = Source::live(device)?;
    sysfs::write(&dm.attribute("model/rollback"), b"1")
        .map_err(|e| anyhow!("{}: {} ({e})", dm.name, refusal(&dm)))?;
    println!("{}: {}", dm.name, state(&dm)?);
    Ok(())
}

fn info(file: &Path, json: bool) -> Result<()> {
    let model = load(file)?;
    let m = model.metadata();
    let inputs = std::iter::once(FEATURES as u8);
    let widths: Vec<u8> = inputs.chain(model.widths()).collect();
    let permille = |p: u16| f64::from(p) / 1000.0;
    if json {
        return output::json(&json!({
            "family": model.family().name(),
            "widths": widths,
            "bytes": model.as_bytes().len(),
            "multiplications": model.multiplications(),
            "schema": format!("{SCHEMA_HASH:08x}"),
            "crc": format!("{:08x}", model.checksum()),
            "name": m.name(),
            "seed": m.seed,
            "data_hash": format!("{:016x}", m.data_hash),
            "samples": m.samples,
            "base": permille(m.base_permille),
            "ap": permille(m.ap_permille),
            "ap_ewma": permille(m.ap_ewma_permille),
            "auc": permille(m.auc_permille),
            "auc_ewma": permille(m.auc_ewma_permille),
        }));
    }
    let shape: Vec<String> = widths.iter().map(ToString::to_string).collect();
    println!("{} ({}), {} bytes", model.family().name(), shape.join("-"), model.as_bytes().len());
    println!("  name        {}", m.name());
    println!("  schema      {SCHEMA_HASH:08x}, checksum {:08x}", model.checksum());
    println!("  cost        {} multiplications an area", model.multiplications());
    println!("  trained on  {} samples (seed {}, data {:016x})", m.samples, m.seed, m.data_hash);
    if m.data_end_realtime_s > 0 {
        let end = m.data_end_realtime_s.saturating_mul(1_000_000_000);
        println!("  data until  {}", units::realtime(end));
    }
    println!(
        "  quality     average precision {:.3} (ewma {:.3}, chance {:.3}), AUC {:.3} (ewma {:.3})",
        permille(m.ap_permille),
        permille(m.ap_ewma_permille),
        permille(m.base_permille),
        permille(m.auc_permille),
        permille(m.auc_ewma_permille)
    );
    Ok(())
}

/// Vectors of one upload: as many as fit a page, the most that sysfs passes on at once.
const BATCH: usize = 4096 / (FEATURES * 2);

fn verify(device: &str, file: &Path, vectors: Option<&Path>) -> Result<()> {
    let (dm, _) = Source::live(device)?;
    let model = load(file)?;
    let state = state(&dm)?;
    let crc = format!("crc={:08x}", model.checksum());
    if !state.split_whitespace().any(|w| w == crc) {
        bail!("{} does not use this model ({crc}) but: {state}", dm.name);
    }
    let cases = match vectors {
        Some(path) => read_vectors(path)?,
        None => random_vectors(&model),
    };
    // The file of vectors must agree with the engine here before the kernel is blamed.
    for (i, (features, want)) in cases.iter().enumerate() {
        let got = model.infer(features).0;
        if got != *want {
            bail!("vector {}: the engine here gives {got}, the file says {want}", i + 1);
        }
    }
    let path = dm.attribute("model/vectors");
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    let mut done = 0;
    for batch in cases.chunks(BATCH) {
        let bytes: Vec<u8> =
            batch.iter().flat_map(|(f, _)| f.0.iter().flat_map(|v| v.to_le_bytes())).collect();
        file.write_all_at(&bytes, 0).with_context(|| path.display().to_string())?;
        let mut answers = vec![0; batch.len() * 2];
        file.read_exact_at(&mut answers, 0).with_context(|| path.display().to_string())?;
        for ((features, want), got) in batch.iter().zip(answers.chunks_exact(2)) {
            let got = u16::from_le_bytes([got[0], got[1]]);
            if got != *want {
                bail!(
                    "vector {}: the kernel gives {got}, {want} is right (features {:?})",
                    done + 1,
                    features.0
                );
            }
            done += 1;
        }
    }
    println!("{done} vectors: the kernel agrees bit for bit");
    Ok(())
}

/// Reads lines of twelve features, `=`, probability; `#` begins a comment.
fn read_vectors(path: &Path) -> Result<Vec<(FeatureVector, u16)>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("--vectors {shown}"))?;
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let case = parse_vector(line);
        out.push(case.with_context(|| {
            format!(
                "--vectors {shown}, line {}: {FEATURES} numbers, `=` and a probability are needed",
                i + 1
            )
        })?);
    }
    if out.is_empty() {
        bail!("--vectors {shown}: there are no vectors in it");
    }
    Ok(out)
}

fn parse_vector(line: &str) -> Option<(FeatureVector, u16)> {
    let (features, probability) = line.split_once('=')?;
    let values: Vec<i16> =
        features.split_whitespace().map(|w| w.parse().ok()).collect::<Option<_>>()?;
    Some((FeatureVector(values.try_into().ok()?), probability.trim().parse().ok()?))
}

/// Random vectors, those at the ends of the range among them, with what the engine here answers.
fn random_vectors(model: &Model<Vec<u8>>) -> Vec<(FeatureVector, u16)> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 32
    };
    (0..1000)
        .map(|_| {
            let features = FeatureVector(std::array::from_fn(|_| match next() % 6 {
                0 => i16::MIN,
                1 => i16::MAX,
                2 => (next() % 256) as i16,
                _ => next() as i16,
            }));
            (features, model.infer(&features).0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_as_text() {
        let line = "1 2 3 4 5 6 7 8 9 10 -11 12 = 65535";
        let (f, p) = parse_vector(line).unwrap();
        assert_eq!((f.0[10], p), (-11, 65535));
        for bad in
            ["", "1 2 = 3", "1 2 3 4 5 6 7 8 9 10 11 12", "1 2 3 4 5 6 7 8 9 10 11 99999 = 1"]
        {
            assert!(parse_vector(bad).is_none(), "{bad}");
        }
    }
}
