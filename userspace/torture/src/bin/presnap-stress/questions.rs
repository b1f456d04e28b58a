// SPDX-License-Identifier: GPL-2.0-only

//! Questions without a pause, from several threads: they share locks, and must not make up an answer for want of one.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use presnap_blockio::dm::Control;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the presnap device
    #[arg(long)]
    name: String,
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

/// Number of snapshots, the newest, and the unfinished one.
fn snapshots(status: &str) -> Option<[&str; 3]> {
    let mut words = status.split(' ').skip(3);
    Some([words.next()?, words.next()?, words.next()?])
}

pub(crate) fn run(args: &Args) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let ask = |question: &'static str| {
        let dm = Control::open()?;
        let ask = || match question {
            "status" => dm.status(&args.name),
            message => dm.message(&args.name, message),
        };
        let first = ask().context(question)?;
        let mut asked = 1u64;
        while Instant::now() < end {
            let answer = ask().context(question)?;
            let same = match question {
                "status" => snapshots(&answer) == snapshots(&first),
                _ => answer == first,
            };
            ensure!(same, "{question}: {answer}, and before: {first}");
            asked += 1;
        }
        Ok(asked)
    };
    let questions = ["status", "list", "state 1", "list", "status", "list"];
    let asked = thread::scope(|scope| {
        let threads = questions.map(|question| scope.spawn(move || ask(question)));
        let mut asked = 0;
        for t in threads {
            asked += t.join().unwrap_or_else(|_| bail!("a thread died"))?;
        }
        anyhow::Ok(asked)
    })?;
    Ok(format!("{asked} questions"))
}
