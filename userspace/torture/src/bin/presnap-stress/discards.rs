// SPDX-License-Identifier: GPL-2.0-only

//! Discards and zeroing of all sizes and alignments, against a model of the content.
//!
//! Each case has a place of its own, and every fourth thread takes every fourth case, so that neighbours are at work at once.
//! Under an image each of them has to be guarded, to the sector; and each block of them is dirty afterwards, no others.

use std::fs::File;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use presnap_blockio::dm::Control;

use crate::device::{fill, open, read_all, write_all, BLOCK, SECTOR};

const VIEW: &str = "stress-view";
const THREADS: usize = 4;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the presnap device
    #[arg(long)]
    name: String,
    /// Seed of the order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many times, with and without an image in turn
    #[arg(long, default_value_t = 2)]
    rounds: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Discard,
    Zero,
}

#[derive(Clone, Copy)]
struct Case {
    op: Op,
    sector: u64,
    sectors: u64,
}

impl Case {
    fn bytes(&self) -> std::ops::Range<usize> {
        let at = self.sector as usize * SECTOR;
        at..at + self.sectors as usize * SECTOR
    }

    fn blocks(&self) -> u64 {
        (self.sector + self.sectors).div_ceil(8) - self.sector / 8
    }
}

/// All sizes from a sector to beyond two blocks at all places in two blocks; around an area of 64 KiB, and an extent of
/// 256 KiB; and more than goes to the device at once (4 MiB). With a whole block of its own on each side.
fn cases() -> (Vec<Case>, u64) {
    let small = (1..=17).flat_map(|sectors| (0..16).map(move |skew| (sectors, skew)));
    let areas = [127, 128, 129, 513];
    let areas = areas.into_iter().flat_map(|sectors| [0, 1, 7, 8, 127].map(|skew| (sectors, skew)));
    let shapes: Vec<(u64, u64)> = small.chain(areas).chain([(8193, 3)]).collect();
    let mut cases = Vec::new();
    let mut next: u64 = 8;
    for (sectors, skew) in shapes {
        for op in [Op::Discard, Op::Zero] {
            // A skew that means a place in an area needs one that begins there.
            let start = if skew > 16 || sectors > 17 { next.next_multiple_of(128) } else { next };
            cases.push(Case { op, sector: start + skew, sectors });
            next = (start + skew + sectors).next_multiple_of(8) + 8;
        }
    }
    (cases, next)
}

struct Rig {
    name: String,
    dm: Control,
    device: File,
    sectors: u64,
}

impl Rig {
    fn message(&self, words: &str) -> Result<String> {
        self.dm.message(&self.name, words).with_context(|| format!("message {words}"))
    }

    /// Takes a snapshot of scope image and waits for it.
    fn snapshot(&self) -> Result<u32> {
        let id = self.message("snapshot scope image")?.parse().context("a snapshot's number")?;
        let begin = Instant::now();
        loop {
            let state = self.message(&format!("state {id}"))?;
            if state.contains(" sealed ") {
                return Ok(id);
            }
            let late = begin.elapsed() > Duration::from_secs(60);
            ensure!(!late && !state.contains("dropped"), "no snapshot: {state}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Deletes it and waits for that.
    fn delete(&self, id: u32) -> Result<()> {
        self.message(&format!("delete {id}"))?;
        let begin = Instant::now();
        while self.message(&format!("state {id}"))?.contains("sealed") {
            ensure!(begin.elapsed() < Duration::from_secs(60), "snapshot {id} is not deleted");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Number of dirty blocks.
    fn dirty(&self) -> Result<u64> {
        let status = self.dm.status(&self.name)?;
        let word = status.split(' ').nth(2).and_then(|word| word.parse().ok());
        word.with_context(|| format!("status: {status}"))
    }

    /// What the view of a snapshot shows.
    fn image(&self, id: u32, len: usize) -> Result<Vec<u8>> {
        let params = format!("/dev/mapper/{} {id}", self.name);
        let node = self.dm.create(VIEW, self.sectors, "presnap-image", &params, true)?;
        let content = open(&node, false, false).and_then(|file| read_all(&file, len));
        self.dm.remove(VIEW).context("removing the view")?;
        content
    }
}

pub(crate) fn run(args: &Args) -> Result<String> {
    let path = PathBuf::from(format!("/dev/mapper/{}", args.name));
    let device = open(&path, true, false)?;
    let sectors = presnap_blockio::size(&device)? / SECTOR as u64;
    let rig = Rig { name: args.name.clone(), dm: Control::open()?, device, sectors };
    let (mut cases, end) = cases();
    ensure!(end <= sectors, "the device has {sectors} sectors, {end} are needed");
    let mut rng = fastrand::Rng::with_seed(args.seed);
    for round in 0..args.rounds {
        rng.shuffle(&mut cases);
        let kind = if round % 2 == 1 { "under an image" } else { "alone" };
        one_round(&rig, &cases, end, round).with_context(|| format!("round {round}, {kind}"))?;
    }
    Ok(format!(
        "{} discards and zeroings in {} rounds",
        cases.len() as u64 * args.rounds,
        args.rounds
    ))
}

fn one_round(rig: &Rig, cases: &[Case], end: u64, round: u64) -> Result<()> {
    let mut model = vec![0; end as usize * SECTOR];
    fill(&mut model, 0, round);
    write_all(&rig.device, &model)?;
    // What is in a delta is copied anyhow. So the image is that of a second snapshot: all of it has to be guarded.
    let under_image = round % 2 == 1;
    let snapshots = if under_image { vec![rig.snapshot()?, rig.snapshot()?] } else { Vec::new() };
    let before = model.clone();
    let issue = |case: &Case| {
        let bytes = case.bytes();
        let (start, len) = (bytes.start as u64, bytes.len() as u64);
        let done = match case.op {
            Op::Discard => presnap_blockio::discard(&rig.device, start, len),
            Op::Zero => presnap_blockio::zero(&rig.device, start, len),
        };
        done.with_context(|| format!("sectors {} and {} after it", case.sector, case.sectors))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|t| scope.spawn(move || cases.iter().skip(t).step_by(THREADS).try_for_each(issue)))
            .collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| bail!("a thread died")))
    })?;
    let got = read_all(&rig.device, model.len())?;
    for case in cases {
        for at in case.bytes().step_by(SECTOR) {
            let (got, model) = (&got[at..at + SECTOR], &mut model[at..at + SECTOR]);
            let zero = got.iter().all(|&b| b == 0);
            // Discarded sectors are zero or as before, just as the device likes it.
            let right = zero || (case.op == Op::Discard && got == model);
            ensure!(right, "sector {} has other content after it was zeroed", at / SECTOR);
            model.copy_from_slice(got);
        }
    }
    same("the device", &got, &model)?;
    if let Some(&id) = snapshots.last() {
        let blocks: u64 = cases.iter().map(Case::blocks).sum();
        let dirty = rig.dirty()?;
        ensure!(dirty == blocks, "{dirty} blocks are dirty, and {blocks} were changed");
        same("the image", &rig.image(id, before.len())?, &before)?;
    }
    snapshots.into_iter().try_for_each(|id| rig.delete(id))
}

fn same(what: &str, got: &[u8], want: &[u8]) -> Result<()> {
    match got.chunks(SECTOR).zip(want.chunks(SECTOR)).position(|(a, b)| a != b) {
        Some(sector) => {
            bail!(
                "{what}: sector {sector} (block {}) is not what it must be",
                sector * SECTOR / BLOCK
            )
        }
        None => Ok(()),
    }
}
