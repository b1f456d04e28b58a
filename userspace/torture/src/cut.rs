// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-cut`: makes of the disk of a QEMU that was killed what the disk would have held, had its cache been lost.
//!
//! QEMU gave every write to the host, which has it. But QEMU logged the writes, too (blklogwrites), and the disk's content
//! from before is known: so what was not flushed can be taken back, wholly or in part.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use presnap_blockio::{Buffer, Mode};

use crate::rng::Rng;
use crate::sector::SECTOR;
use crate::writelog::{lose_cached, WriteLog};

/// Take back from a disk what was not flushed.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    /// The disk: a file, as it was left
    #[arg(long)]
    disk: PathBuf,
    /// A copy of it from before
    #[arg(long)]
    before: PathBuf,
    /// The log of what was written since
    #[arg(long)]
    log: PathBuf,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("presnap-cut: {e:#}");
            ExitCode::from(1)
        }
    }
}

fn put(state: &mut [u8], sector: u64, data: &[u8]) -> Result<()> {
    let from = sector as usize * SECTOR;
    let to = state.get_mut(from..from + data.len()).context("a write beyond the end")?;
    to.copy_from_slice(data);
    Ok(())
}

fn run(args: &Args) -> Result<()> {
    let mut state =
        std::fs::read(&args.before).with_context(|| args.before.display().to_string())?;
    let mode = Mode { write: true, ..Mode::default() };
    let disk = presnap_blockio::open(&args.disk, mode)?;
    let mut left = Buffer::new(state.len());
    ensure!(presnap_blockio::size(&disk)? == left.len() as u64, "the sizes differ");
    disk.read_exact_at(&mut left, 0)?;
    // A request that was logged later may have been the first to get there; what is missing before it, nobody knows.
    // Then the cache was not lost: that may be, too.
    let mut log = match WriteLog::open(&args.log) {
        Ok(log) => log,
        Err(e) => {
            println!("nothing is lost: {e:#}");
            return Ok(());
        }
    };
    let flushed = log.entries.len();
    log.read_on((left.len() / SECTOR) as u64);
    let last = log.entries.iter().rposition(|e| e.is_flush()).map_or(0, |i| i + 1);
    for i in 0..last {
        log.apply(i, |_| true, &mut |sector, data| put(&mut state, sector, data))?;
    }
    let mut rng = Rng::new(args.seed);
    let end = log.entries.len();
    let all: u64 = log.entries.iter().skip(last).map(|e| e.sectors).sum();
    let mut kept = 0;
    let tail: Vec<usize> = (last..end).collect();
    lose_cached(&mut log, &tail, &mut rng, &mut |sector, data| {
        kept += (data.len() / SECTOR) as u64;
        put(&mut state, sector, data)
    })?;
    let both = state.chunks(SECTOR).zip(left.chunks(SECTOR));
    let differ = both.filter(|(a, b)| a != b).count();
    println!(
        "{flushed} requests up to the last flush; of {} after it {} of {all} sectors are lost, {differ} are other than they were",
        end - last,
        all - kept,
    );
    for (i, piece) in state.chunks(1 << 20).enumerate() {
        disk.write_all_at(piece, (i as u64) << 20)?;
    }
    Ok(())
}
