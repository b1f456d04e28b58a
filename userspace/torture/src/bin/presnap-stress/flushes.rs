// SPDX-License-Identifier: GPL-2.0-only

//! Storms of flushes: writers that flush each write, FUA writes, and threads that do nothing but flush.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use presnap_blockio::Buffer;

use crate::device::{fill, open, BLOCK};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device
    #[arg(long)]
    device: PathBuf,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Threads of each of the three kinds
    #[arg(long, default_value_t = 4)]
    threads: u64,
    /// First block to use; each writer has 64
    #[arg(long, default_value_t = 0)]
    first: u64,
}

const BLOCKS: u64 = 64;

struct Storm<'a> {
    args: &'a Args,
    end: Instant,
    flushes: AtomicU64,
    writes: AtomicU64,
}

impl Storm<'_> {
    fn flushing(&self) -> Result<()> {
        let file = open(&self.args.device, true, false)?;
        while Instant::now() < self.end {
            file.sync_data().context("a flush")?;
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writer number `n` has blocks of its own, and reads them back.
    fn writing(&self, n: u64, fua: bool) -> Result<()> {
        let file = open(&self.args.device, true, fua)?;
        let (mut out, mut back) = (Buffer::new(BLOCK), Buffer::new(BLOCK));
        let mut last = [0; BLOCKS as usize];
        let mut rng = fastrand::Rng::with_seed(n);
        let first = self.args.first + n * BLOCKS;
        let mut version = 0;
        while Instant::now() < self.end {
            version += 1;
            let i = rng.u64(..BLOCKS);
            let block = first + i;
            fill(&mut out, block * 8, version << 8 | n);
            file.write_all_at(&out, block * BLOCK as u64).context("a write")?;
            last[i as usize] = version;
            if !fua {
                file.sync_data().context("the flush of a write")?;
                self.flushes.fetch_add(1, Ordering::Relaxed);
            }
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        for (block, version) in (first..).zip(last).filter(|&(_, version)| version > 0) {
            fill(&mut out, block * 8, version << 8 | n);
            file.read_exact_at(&mut back, block * BLOCK as u64)?;
            ensure!(out[..] == back[..], "block {block} does not have its version {version}");
        }
        Ok(())
    }
}

pub(crate) fn run(args: &Args) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let storm = Storm { args, end, flushes: AtomicU64::new(0), writes: AtomicU64::new(0) };
    let storm = &storm;
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for n in 0..args.threads {
            threads.push(scope.spawn(move || storm.flushing()));
            threads.push(scope.spawn(move || storm.writing(2 * n, false)));
            threads.push(scope.spawn(move || storm.writing(2 * n + 1, true)));
        }
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| bail!("a thread died")))
    })?;
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    Ok(format!("{} flushes, {} writes", count(&storm.flushes), count(&storm.writes)))
}
