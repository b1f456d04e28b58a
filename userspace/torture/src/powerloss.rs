// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-powerloss`: loads presnap on what a power loss would have left, again and again, and checks all that it promises.
//!
//! The origin and the region lay side by side on dm-log-writes while presnap-torture wrote to half of the device and a file
//! system had the other half. Marks in the log tell what had been promised when:
//!
//! | mark | |
//! |---|---|
//! | `begin` | from here on |
//! | `durable:STAMP:op:OP` | what presnap-torture had made durable at STAMP; an operation number that was seen |
//! | `sealed:ID` | a snapshot was reported |
//! | `deleting:ID`, `deleted:ID` | around the deletion of all up to ID |
//! | `fs:N` | the file system's writer was told that its Nth round is durable |
//!
//! What both disks hold is kept in memory and grows with the points. For each, two disks are made equal to it. Several
//! such pairs are used at a time.

mod point;
mod promises;
mod replay;
mod tools;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{anyhow, ensure, Context, Result};
use clap::Parser;

use crate::record;
use crate::sector::SECTOR;
use crate::writelog::WriteLog;
use point::{Bench, Shown};
use replay::Replay;

/// Replay a log of dm-log-writes to power losses, and check presnap after each.
#[derive(Parser)]
#[command(version, about)]
pub(crate) struct Args {
    /// The log
    #[arg(long)]
    log: PathBuf,
    /// Sectors of the origin, which comes first; behind it lies the region
    #[arg(long)]
    split: u64,
    /// Sectors of the region
    #[arg(long)]
    region_sectors: u64,
    /// Disk to be the origin; may be repeated, so that several are used at a time
    #[arg(long, required = true)]
    origin: Vec<PathBuf>,
    /// Disk to be the region, as often
    #[arg(long, required = true)]
    region: Vec<PathBuf>,
    /// What presnap-torture has written
    #[arg(long)]
    history: PathBuf,
    /// Directory with a replica of each snapshot, named by its id
    #[arg(long)]
    replicas: PathBuf,
    /// The file system's files come from this one
    #[arg(long)]
    noise: PathBuf,
    /// Use the command and look at the file system at every so many points
    #[arg(long, default_value_t = 15)]
    tools_each: usize,
    /// How many points; default: all
    #[arg(long)]
    points: Option<usize>,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Give up after so many bad points
    #[arg(long, default_value_t = 5)]
    most_bad: usize,
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("presnap-powerloss: {e:#}");
            ExitCode::from(1)
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    ensure!(args.origin.len() == args.region.len(), "an --origin for each --region");
    let log = WriteLog::open(&args.log).with_context(|| args.log.display().to_string())?;
    let record = record::load(&args.history)?;
    let replay = Mutex::new(Replay::new(args, log, &record)?);
    let noise = std::fs::read(&args.noise).context("--noise")?;
    let mut replicas = HashMap::new();
    for entry in std::fs::read_dir(&args.replicas).context("--replicas")? {
        let path = entry?.path();
        let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        let replica = std::fs::read(&path)?;
        let shown = path.display();
        ensure!(replica.len() as u64 == args.split * SECTOR as u64, "{shown}: its size");
        replicas.insert(id.with_context(|| format!("{shown}: no id"))?, replica);
    }
    let bad = AtomicUsize::new(0);
    let start = Instant::now();
    let mut shown = Shown::default();
    std::thread::scope(|scope| -> Result<()> {
        let work = |no| {
            let bench = Bench::new(args, no, record.sectors, &replicas, &noise)?;
            work(args, &replay, bench, &bad)
        };
        let all: Vec<_> = (0..args.origin.len()).map(|no| scope.spawn(move || work(no))).collect();
        for worker in all {
            shown.add(worker.join().map_err(|_| anyhow!("a worker panicked"))??);
        }
        Ok(())
    })?;
    shown.print();
    println!("{} points in {} s, {} bad", shown.points, start.elapsed().as_secs(), shown.bad);
    Ok(shown.bad == 0 && shown.points > 0)
}

/// Looks at points until there are no more.
fn work(
    args: &Args,
    replay: &Mutex<Replay>,
    mut bench: Bench<'_>,
    bad: &AtomicUsize,
) -> Result<Shown> {
    loop {
        let mut all = replay.lock().unwrap_or_else(PoisonError::into_inner);
        bench.over("wait");
        if bad.load(Ordering::Relaxed) >= args.most_bad {
            all.stop();
        }
        let Some(case) = all.next(&mut bench.disks)? else { break };
        drop(all);
        bench.over("replay");
        bench.shown.points += 1;
        if let Err(e) = bench.look_at(&case) {
            println!(
                "VIOLATION at {:?}, {} more, {:?}: {e:#}",
                case.point, case.more, case.promises
            );
            bench.shown.bad += 1;
            bad.fetch_add(1, Ordering::Relaxed);
            bench.clear().context("after a bad point")?;
        }
    }
    Ok(bench.shown)
}
