// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-fsx`: exercises a file system, so that snapshots are taken of one that is at work: single files against a model of
//! their content, and a tree of files against nothing but the kernel's word. Runs in the VM, as root.

mod file;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use clap::Parser;

/// Exercise a file system.
///
/// Exit status: 0 all content right and no error that speaks of damage, 1 otherwise.
#[derive(Parser)]
#[command(version, about, long_about)]
struct Args {
    /// Directory to work in
    dir: PathBuf,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many files are exercised against a model
    #[arg(long, default_value_t = 2)]
    files: u64,
    /// How many threads work in the tree
    #[arg(long, default_value_t = 2)]
    trees: u64,
    /// Most bytes of a file with a model
    #[arg(long, default_value_t = 512 << 10)]
    length: u64,
}

/// When to end, and whether somebody has found an error.
struct Limits {
    end: Instant,
    failed: AtomicBool,
}

impl Limits {
    fn over(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || Instant::now() >= self.end
    }
}

fn run(args: &Args) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let limits = Limits { end, failed: AtomicBool::new(false) };
    let limits = &limits;
    let note = |result: Result<u64>| {
        if result.is_err() {
            limits.failed.store(true, Ordering::Relaxed);
        }
        result
    };
    let sum = |threads: Vec<thread::ScopedJoinHandle<'_, Result<u64>>>| {
        threads.into_iter().try_fold(0, |sum, t| match t.join() {
            Ok(done) => Ok(sum + done?),
            Err(_) => bail!("a thread died"),
        })
    };
    thread::scope(|scope| {
        let files = (0..args.files)
            .map(|n| {
                let path = args.dir.join(format!("file{n}"));
                let work = move || file::exercise(&path, args.seed + n, args.length, limits);
                scope.spawn(move || note(work()))
            })
            .collect();
        let trees = (0..args.trees)
            .map(|n| {
                let seed = args.seed + 1000 + n;
                scope.spawn(move || note(tree::exercise(&args.dir, seed, limits)))
            })
            .collect();
        let (files, trees): (Result<u64>, Result<u64>) = (sum(files), sum(trees));
        Ok(format!("{} operations on files, {} in the tree", files?, trees?))
    })
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("presnap-fsx: {e:#}");
            ExitCode::FAILURE
        }
    }
}
