// SPDX-License-Identifier: GPL-2.0-only

//! Writers whose device may go away under them: what was acknowledged must be on the origin, and what was not, whole or not at all.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use presnap_blockio::Buffer;

use crate::device::{fill, open, BLOCK};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device that is written to
    #[arg(long)]
    device: PathBuf,
    /// The device that is looked at in the end
    #[arg(long)]
    origin: PathBuf,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 8)]
    threads: u64,
    /// Blocks of each thread
    #[arg(long, default_value_t = 256)]
    blocks: u64,
    /// The device must fail before the time is over
    #[arg(long)]
    fails: bool,
}

/// What one thread has done: the last acknowledged version of each of its blocks, and the write that failed.
struct Done {
    versions: Vec<u64>,
    failed: Option<(u64, u64)>,
    writes: u64,
}

fn write(args: &Args, n: u64, device: &File, end: Instant) -> Done {
    let mut done = Done { versions: vec![0; args.blocks as usize], failed: None, writes: 0 };
    let mut rng = fastrand::Rng::with_seed(n);
    let mut out = Buffer::new(BLOCK);
    while Instant::now() < end {
        let (i, version) = (rng.u64(..args.blocks), done.writes + 1);
        let block = n * args.blocks + i;
        fill(&mut out, block * 8, version << 8 | n);
        if device.write_all_at(&out, block * BLOCK as u64).is_err() {
            done.failed = Some((i, version));
            break;
        }
        done.versions[i as usize] = version;
        done.writes = version;
    }
    done
}

fn check(args: &Args, n: u64, origin: &File, done: &Done) -> Result<u64> {
    let (mut want, mut got) = (Buffer::new(BLOCK), Buffer::new(BLOCK));
    let mut written = 0;
    for (i, &version) in (0..).zip(&done.versions) {
        let block = n * args.blocks + i;
        origin.read_exact_at(&mut got, block * BLOCK as u64)?;
        let mut has = |version: u64| {
            fill(&mut want, block * 8, version << 8 | n);
            want[..] == got[..]
        };
        let unsure = done.failed.filter(|failed| failed.0 == i).map(|failed| failed.1);
        if version == 0 && !unsure.is_some_and(&mut has) {
            continue;
        }
        let right = has(version) || unsure.is_some_and(&mut has);
        ensure!(right, "block {block} on the origin does not have version {version}");
        written += 1;
    }
    Ok(written)
}

pub(crate) fn run(args: &Args) -> Result<String> {
    let device = open(&args.device, true, false)?;
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let all: Result<Vec<Done>> = thread::scope(|scope| {
        let device = &device;
        let threads: Vec<_> =
            (0..args.threads).map(|n| scope.spawn(move || write(args, n, device, end))).collect();
        let join = |t: thread::ScopedJoinHandle<'_, Done>| t.join().ok().context("a thread died");
        threads.into_iter().map(join).collect()
    });
    let all = all?;
    // What it was may only go when nobody has it open.
    drop(device);
    let failed = all.iter().filter(|done| done.failed.is_some()).count();
    if args.fails && failed < all.len() {
        bail!("the device has not failed for {} of {} writers", all.len() - failed, all.len());
    }
    if !args.fails && failed > 0 {
        bail!("the device has failed for {failed} of {} writers", all.len());
    }
    let origin = open(&args.origin, false, false).context("the origin")?;
    let mut blocks = 0;
    for (n, done) in (0..).zip(&all) {
        blocks += check(args, n, &origin, done)?;
    }
    let writes: u64 = all.iter().map(|done| done.writes).sum();
    Ok(format!("{writes} writes {blocks} blocks"))
}
