// SPDX-License-Identifier: GPL-2.0-only

//! Hostile models: the kernel's verdict, words and answers are those of the engine in userspace, and its answers those
//! of a plainer computation.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use presnap_engine::model::Model;
use presnap_fuzz::hostile::Forger;
use presnap_fuzz::net::{samples, Net};

use crate::rig::Rig;
use crate::Common;

pub(crate) fn run(args: &Common) -> Result<bool> {
    println!("seed {}", args.seed);
    let mut rig = Rig::new(args)?;
    rig.format()?;
    let mapped = rig.map()?.context("a fresh region is refused")?;
    let dir = rig.sysfs(&mapped);
    std::fs::write(dir.join("predictor"), "model").context("predictor")?;
    std::fs::write(dir.join("tick_ms"), "10").context("tick_ms")?;
    let samples = samples();
    let (mut accepted, mut refused, mut failed) = (0u64, 0u64, 0);
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for i in args.numbers() {
        let seed = args.seed.wrapping_mul(1_000_003).wrapping_add(i);
        let blob = Forger::new(seed).blob(&samples[i as usize % samples.len()]);
        match one(&mut rig, &dir.join("model"), &blob) {
            Ok(None) => accepted += 1,
            Ok(Some(words)) => {
                refused += 1;
                // Without its numbers.
                let words = words.split(':').next().unwrap_or_default();
                let kind: Vec<&str> = words
                    .split(' ')
                    .filter(|w| !w.contains(|c: char| c.is_ascii_digit()))
                    .collect();
                *reasons.entry(kind.join(" ")).or_default() += 1;
            }
            Err(e) => {
                failed += 1;
                println!("FAILED: blob {i}: {e:#}");
                ensure!(failed < 20, "that is enough");
            }
        }
        // What was accepted is put to use: it scores what is written.
        if i % 16 == 0 {
            rig.write(&mapped, 2)?;
        }
        if i % 256 == 255 {
            ensure!(rig.snapshot("within 30")?.1, "a snapshot was dropped");
        }
    }
    rig.unmap(mapped)?;
    rig.origin_is_right()?;
    for (words, n) in &reasons {
        println!("{n:6}  {words}");
    }
    println!("{} hostile blobs: {accepted} accepted, {refused} refused", accepted + refused);
    Ok(failed == 0)
}

fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(bytes)
}

/// Uploads and commits a blob; returns the words of its refusal.
fn one(rig: &mut Rig, dir: &Path, blob: &[u8]) -> Result<Option<String>> {
    rig.log.mark()?;
    put(&dir.join("blob"), blob).context("upload")?;
    let committed = put(&dir.join("commit"), b"1");
    let error = std::fs::read_to_string(dir.join("error")).context("error")?.trim().to_string();
    let model = match (committed, Model::parse(blob)) {
        (Ok(()), Ok(model)) => model,
        (Err(e), Err(why)) => {
            ensure!(e.raw_os_error() == Some(22), "refused with {e}");
            let why = why.to_string();
            ensure!(error == why, "the words are `{error}`, not `{why}`");
            let words = rig.log.words()?;
            ensure!(words.iter().any(|w| w.contains(&why)), "not in the log: {words:?}");
            return Ok(Some(why));
        }
        (kernel, engine) => {
            anyhow::bail!("the kernel says {kernel:?}, the engine {:?}", engine.map(|_| "yes"))
        }
    };
    ensure!(error == "-", "accepted, and error is {error}");
    let state = std::fs::read_to_string(dir.join("state")).context("state")?;
    let shown = format!("crc={:08x} ", model.checksum());
    ensure!(state.contains(&shown), "state is {state}, and not of {shown}");
    let vectors = Net::read(blob).extremes();
    let bytes: Vec<u8> = vectors.iter().flat_map(|v| v.0).flat_map(i16::to_le_bytes).collect();
    put(&dir.join("vectors"), &bytes).context("vectors")?;
    let answers = std::fs::read(dir.join("vectors")).context("answers")?;
    ensure!(answers.len() == 2 * vectors.len(), "{} bytes of answers", answers.len());
    let net = Net::read(blob);
    for (vector, answer) in vectors.iter().zip(answers.chunks_exact(2)) {
        let want = net.answer(vector);
        ensure!(want.reach <= i128::from(i32::MAX), "an accumulator reaches {}", want.reach);
        let want = presnap_engine::fixed::sigmoid(want.logit_q8);
        ensure!(answer == want.0.to_le_bytes() && model.infer(vector) == want, "{vector:?}");
    }
    Ok(None)
}
