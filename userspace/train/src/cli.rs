// SPDX-License-Identifier: GPL-2.0-only

//! The command `presnap train`.

use crate::card::{Card, Data};
use crate::network::{self, Input};
use crate::progress::Progress;
use crate::quantise::{normalise, normalisers, Quantised};
use crate::random::Random;
use crate::report::{average, judge, Comparison};
use crate::samples::{sample, Plan, Samples, TRAINING_PERCENT};
use crate::source::{read_all, Trace};
use anyhow::{ensure, Context, Result};
use clap::ValueEnum;
use presnap_engine::features::{FeatureVector, FEATURES, SCHEMA_HASH};
use presnap_engine::model::{Metadata, Model};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Train a model that predicts where the next writes land.
///
/// Replays recorded I/O through the predictor of the kernel module, trains on the first 70 % of the
/// time, quantises to int8 and judges on the rest, against the heuristics that need no training.
/// Beside the model FILE.psm it writes FILE.card.json and FILE.card.txt (data, quality, hashes) and
/// FILE.vectors (features and the probability the kernel must answer, to compare bit for bit).
/// The same data and seed give the same files. An hour of records takes about a minute.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Trace to learn from: a presnap trace (`presnap trace record`) or a Parquet file with the
    /// columns t_ns, op, sector, nsectors. Several give one model for all of them
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub from: Vec<PathBuf>,
    /// Kind of model
    #[arg(long, value_enum, default_value_t = FamilyArg::Mlp)]
    pub family: FamilyArg,
    /// Where to write the model
    #[arg(long, value_name = "FILE.psm")]
    pub out: PathBuf,
    /// Seed of all random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Rounds over the training samples
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub epochs: u32,
    /// Longest horizon in seconds: how far apart snapshots are taken, at least 1
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub interval: u32,
    /// Print the model card as JSON
    #[arg(long)]
    pub json: bool,
    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// Families that can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FamilyArg {
    /// Int8 network of 12-16-8-1 units
    Mlp,
    /// Logistic regression
    Linear,
}

impl FamilyArg {
    /// Widths of the hidden layers.
    pub const fn hidden(self) -> &'static [usize] {
        match self {
            Self::Mlp => &[16, 8],
            Self::Linear => &[],
        }
    }

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mlp => "mlp",
            Self::Linear => "linear",
        }
    }
}

/// What to train.
#[derive(Clone, Debug)]
pub struct Options {
    /// Family.
    pub family: FamilyArg,
    /// Seed.
    pub seed: u64,
    /// Epochs.
    pub epochs: u32,
    /// Longest horizon in seconds.
    pub interval_s: u32,
    /// Name of the model, file name and name in the blob.
    pub name: String,
    /// The command that makes it again, for the card.
    pub command: String,
}

/// A trained model with all that belongs to it.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The blob.
    pub blob: Vec<u8>,
    /// The card.
    pub card: Card,
    /// The test vectors, as text.
    pub vectors: String,
}

/// Test vectors of a model.
const VECTORS: usize = 256;
/// Samples to calibrate the quantisation with.
const CALIBRATION: usize = 20_000;
/// Instants to train on, of all traces together.
const TRAINING_INSTANTS: usize = 1000;
/// Instants to train on, of each trace.
const TRAINING_INSTANTS_MIN: usize = 500;
/// Instants to judge by, of each trace.
const JUDGING_INSTANTS: usize = 150;

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut progress = Progress::new(args.quiet);
    progress.step("reading");
    let traces = read_all(&args.from)?;
    let records: usize = traces.iter().map(|t| t.records.len()).sum();
    progress.finish(&format!(", {records} records"));
    let options = Options {
        family: args.family,
        seed: args.seed,
        epochs: args.epochs,
        interval_s: args.interval,
        name: args.out.file_stem().unwrap_or(args.out.as_os_str()).to_string_lossy().into_owned(),
        command: command(&args),
    };
    let trained = train(&traces, &options, &mut progress)?;
    write_files(&args.out, &trained)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&trained.card)?);
    } else {
        print!("{}", trained.card.text());
        println!("written: {}", args.out.display());
    }
    Ok(())
}

/// Writes the model and, beside it, card and vectors.
pub fn write_files(out: &Path, trained: &Trained) -> Result<()> {
    if let Some(dir) = out.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    write(
        &out.with_extension("card.json"),
        (serde_json::to_string_pretty(&trained.card)? + "\n").as_bytes(),
    )?;
    write(&out.with_extension("card.txt"), trained.card.text().as_bytes())?;
    write(&out.with_extension("vectors"), trained.vectors.as_bytes())?;
    // The model last: where there is a model, there is all of it.
    write(out, &trained.blob)
}

/// Trains, quantises, verifies and judges.
pub fn train(traces: &[Trace], options: &Options, progress: &mut Progress) -> Result<Trained> {
    let plan = Plan {
        training_instants: (TRAINING_INSTANTS / traces.len().max(1)).max(TRAINING_INSTANTS_MIN),
        judging_instants: JUDGING_INSTANTS,
        areas: 300,
        horizons: 2,
        interval_ns: u64::from(options.interval_s) * 1_000_000_000,
        seed: options.seed,
    };
    let mut samples = Vec::new();
    for trace in traces {
        progress.step(format!("replaying {}", trace.name));
        let of = sample(trace, &plan, progress)?;
        progress.finish(&format!(", {} samples", of.training.len() + of.held_out.len()));
        samples.push(of);
    }
    let training: Vec<_> = samples.iter().flat_map(|s| &s.training).collect();
    let features: Vec<_> = training.iter().map(|s| s.features).collect();
    let normalisers = normalisers(&features);
    let inputs: Vec<(Input, bool)> =
        training.iter().map(|s| (normalise(&normalisers, &s.features), s.written)).collect();
    progress.step(format!("training on {} samples", inputs.len()));
    let hidden = options.family.hidden();
    let network = network::train(&inputs, hidden, options.epochs, options.seed, progress)?;

    progress.step("quantising and judging");
    let stride = inputs.len().div_ceil(CALIBRATION).max(1);
    let calibration: Vec<_> = inputs.iter().step_by(stride).map(|s| s.0).collect();
    let quantised = Quantised::of(&network, normalisers, &calibration)?;
    let positive = inputs.iter().filter(|s| s.1).count();
    let base = positive as f64 / inputs.len() as f64;
    let mut metadata = Metadata {
        seed: options.seed,
        data_hash: data_hash(traces),
        data_end_realtime_s: traces.iter().map(|t| t.end_realtime_s).max().unwrap_or(0),
        samples: u32::try_from(inputs.len())?,
        base_permille: permille(base),
        ..Metadata::named(&options.name)
    };
    // Judged first without its notes on quality, which do not change what it answers.
    let model = Model::parse(quantised.encode(metadata)?)?;
    let mut quality = Vec::new();
    for (trace, samples) in traces.iter().zip(&samples) {
        let input = |j: &crate::samples::Judged| normalise(&normalisers, &j.sample.features);
        quality.push(judge(&trace.name, &samples.held_out, &model, &network, input));
    }
    let mean = average(quality.iter().filter_map(|r| r.mean.as_ref()));
    if let Some(c) = &mean {
        metadata.ap_permille = permille(c.model.ap);
        metadata.ap_ewma_permille = permille(c.ewma.ap);
        metadata.auc_permille = permille(c.model.auc);
        metadata.auc_ewma_permille = permille(c.ewma.auc);
    }
    let blob = quantised.encode(metadata)?;
    let model = Model::parse(blob.clone()).context("the engine refuses the trained model")?;
    let vectors = vectors(&model, &quantised, &samples, options.seed)?;
    let loss = |c: &Comparison| ((c.model_float.ap - c.model.ap) * 1e4).round() / 1e4;
    let card = Card {
        model: options.name.clone(),
        family: model.family().name().into(),
        widths: [FEATURES].into_iter().chain(model.widths().map(usize::from)).collect(),
        bytes: blob.len(),
        sha256: hex(&Sha256::digest(&blob)),
        crc32c: format!("{:08x}", model.checksum()),
        schema: format!("{SCHEMA_HASH:08x}"),
        command: options.command.clone(),
        seed: options.seed,
        epochs: options.epochs,
        interval_s: options.interval_s.into(),
        training_percent: TRAINING_PERCENT,
        base: (base * 1e4).round() / 1e4,
        data: traces.iter().zip(&samples).map(|(t, s)| data(t, s)).collect(),
        int8_ap_loss: mean.as_ref().map(loss),
        mean,
        quality,
        vectors: VECTORS,
    };
    progress.finish("");
    Ok(Trained { blob, card, vectors })
}

fn data(trace: &Trace, samples: &Samples) -> Data {
    Data {
        name: trace.name.clone(),
        sha256: hex(&trace.sha256),
        records: trace.records.len(),
        writes: trace.records.iter().filter(|r| r.kind.modifies()).count(),
        seconds: (trace.duration_ns() / 1_000_000) as f64 / 1e3,
        damage: trace.damage.clone(),
        training_samples: samples.training.len(),
        held_out_samples: samples.held_out.len(),
        evictions: samples.evictions,
    }
}

/// Makes test vectors and checks the engine against the reference on each.
///
/// A line is twelve features, an equals sign, and the probability in 1/65535.
fn vectors(
    model: &Model<Vec<u8>>,
    quantised: &Quantised,
    samples: &[Samples],
    seed: u64,
) -> Result<String> {
    let mut random = Random::new(seed ^ 0x7665_6374);
    let all: Vec<_> = samples.iter().flat_map(|s| &s.training).collect();
    let mut text = format!(
        "# presnap test vectors 1, schema {SCHEMA_HASH:08x}, model {:08x}: features = probability\n",
        model.checksum()
    );
    for no in 0..VECTORS {
        let features = match no % 4 {
            // Any numbers at all, the ends of the range among them.
            0 => FeatureVector(std::array::from_fn(|_| match random.below(8) {
                0 => i16::MIN,
                1 => i16::MAX,
                _ => random.bits() as i16,
            })),
            _ => all[random.below(all.len() as u64) as usize].features,
        };
        let (got, want) = (model.logit_q8(&features), quantised.reference_logit_q8(&features));
        ensure!(got == want, "engine and reference differ on {features:?}: {got} and {want}");
        let words: Vec<_> = features.0.iter().map(ToString::to_string).collect();
        writeln!(text, "{} = {}", words.join(" "), model.infer(&features).0)?;
    }
    Ok(text)
}

/// The first eight bytes of the hash over the hashes of the data.
fn data_hash(traces: &[Trace]) -> u64 {
    let mut hash = Sha256::new();
    traces.iter().for_each(|t| hash.update(t.sha256));
    hash.finalize().iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn permille(x: f64) -> u16 {
    (x * 1000.0).round().clamp(0.0, 1000.0) as u16
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn command(args: &Args) -> String {
    let from: Vec<_> = args.from.iter().map(|p| p.display().to_string()).collect();
    format!(
        "presnap train --from {} --family {} --out {} --seed {} --epochs {} --interval {}",
        from.join(" "),
        args.family.name(),
        args.out.display(),
        args.seed,
        args.epochs,
        args.interval
    )
}

/// Writes a file as a whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
    std::fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
}
