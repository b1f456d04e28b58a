// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-load`: a load generator for benchmarks in virtual time, where each instruction costs a nanosecond of the
//! guest's clock. So the loop does little: io_uring with registered buffers, all random places drawn before the start,
//! one look at the clock for each batch of completions, and latencies kept in memory that is there from the start.

mod engine;
mod loads;
mod report;
mod zipf;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use clap::{Parser, ValueEnum};
use presnap_blockio::{monotonic_ns, Mode};
use serde_json::{json, Map, Value};

use crate::engine::Engine;
use crate::loads::Plan;
use crate::report::{summary, windows};

/// Load a device and report latencies before and after an event
///
/// Prints JSON: `before` covers the time from --warmup until the command of --at starts (or until the end), `after` the
/// --after seconds from then on, `windows` the whole course. Latencies are microseconds. All content of the device is
/// destroyed.
#[derive(Parser)]
#[command(version, about, long_about)]
struct Args {
    /// What to do
    #[arg(value_enum)]
    load: Load,
    /// Device or file to write to
    device: PathBuf,
    /// Seconds to run (of the guest's clock); ignored by fill
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Requests in flight; default: 16, for seq 4, for fill 8
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    qd: Option<u32>,
    /// Skew of the random places: 0 is uniform
    #[arg(long, default_value_t = 1.1)]
    theta: f64,
    /// Neighbouring pages that are equally hot
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    cluster: u32,
    /// Use only the first MiB of the device
    #[arg(long, value_name = "MIB")]
    span: Option<u64>,
    /// Share of reads in `mixed`, percent
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(0..=100))]
    reads: u32,
    /// Issue so many requests a second instead of as many as possible; latency then counts from when each was due
    #[arg(long, default_value_t = 0)]
    iops: u64,
    /// Seconds at the start that do not count
    #[arg(long, default_value_t = 0.2)]
    warmup: f64,
    /// Run a shell command at this second, beside the load
    #[arg(long, requires = "command")]
    at: Option<f64>,
    /// The command of --at
    #[arg(long, requires = "at")]
    command: Option<String>,
    /// Seconds after the command's start that `after` covers
    #[arg(long, default_value_t = 2.0)]
    after: f64,
    /// Milliseconds of a window
    #[arg(long, default_value_t = 100)]
    window_ms: u64,
    /// Write the whole span once before the load starts
    #[arg(long)]
    prefill: bool,
    /// Also report the bytes that this disk (`nvme0n1`, `nullb1`) wrote meanwhile
    #[arg(long, value_name = "NAME")]
    stat: Vec<String>,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests whose latency is kept at most
    #[arg(long, default_value_t = 2_000_000)]
    max_ios: usize,
}

/// The loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    /// 4 KiB random writes, hot places more often
    Zipf,
    /// 64 KiB writes one after the other
    Seq,
    /// Like a database: page writes of 4 to 16 KiB at hot places, reads, and a log of 4 to 8 KiB writes with FUA
    Mixed,
    /// Write everything once, 1 MiB at a time
    Fill,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("presnap-load: {e:#}");
            ExitCode::from(1)
        }
    }
}

fn ns(seconds: f64) -> u64 {
    (seconds.clamp(0.0, 1e9) * 1e9) as u64
}

/// Bytes written by a disk since boot.
fn written(disk: &str) -> Result<u64> {
    let path = format!("/sys/block/{disk}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("--stat {disk}: {path}"))?;
    let sectors = text.split_whitespace().nth(6).and_then(|w| w.parse::<u64>().ok());
    Ok(sectors.with_context(|| format!("--stat {disk}: cannot understand {path}"))? * 512)
}

fn written_all(disks: &[String]) -> Result<Vec<u64>> {
    disks.iter().map(|d| written(d)).collect()
}

fn run(args: &Args) -> Result<()> {
    let shown = args.device.display();
    let mode = Mode { write: true, direct: true, exclusive: true, dsync: false };
    let file =
        presnap_blockio::open(&args.device, mode).with_context(|| format!("device {shown}"))?;
    let size = presnap_blockio::size(&file).with_context(|| format!("device {shown}"))?;
    let span = args.span.map_or(size, |mib| (mib << 20).min(size)) >> 20 << 20;
    if span < 4 << 20 {
        bail!("device {shown}: {size} bytes are too few, 4 MiB at least");
    }
    if args.prefill && args.load != Load::Fill {
        let mut plan = Plan::new(Load::Fill, span, args.theta, 1, 0, args.seed);
        let mut engine = Engine::new(&file, 8, plan.max_bytes(), 0)?;
        engine.run(&mut plan, u64::MAX, 0)?;
    }
    let qd = args.qd.unwrap_or(match args.load {
        Load::Seq => 4,
        Load::Fill => 8,
        _ => 16,
    });
    let mut plan = Plan::new(args.load, span, args.theta, args.cluster, args.reads, args.seed);
    let mut engine = Engine::new(&file, qd, plan.max_bytes(), args.max_ios)?;
    let before_bytes = written_all(&args.stat)?;
    let start = monotonic_ns();
    let end = if args.load == Load::Fill { u64::MAX } else { start + ns(args.seconds) };
    let event = AtomicU64::new(u64::MAX);
    let (result, command) = std::thread::scope(|scope| {
        let event = &event;
        let wait = |at| scope.spawn(move || event_at(args, start + ns(at), start, event));
        let child = args.at.map(wait);
        let result = engine.run(&mut plan, end, args.iops).map(|()| monotonic_ns());
        (result, child.map(|c| c.join()))
    });
    let finish = result.with_context(|| format!("device {shown}"))?;
    let event = event.load(Ordering::Relaxed);
    let samples = engine.samples(start);
    let warm = ns(args.warmup);
    let total = finish - start;
    let mut out = Map::new();
    let name = args.load.to_possible_value().map(|v| v.get_name().to_string());
    out.insert("load".into(), name.into());
    out.insert("device".into(), shown.to_string().into());
    out.insert("qd".into(), qd.into());
    out.insert("seconds".into(), (total as f64 / 1e9).into());
    out.insert("unrecorded".into(), engine.unrecorded().into());
    if event == u64::MAX {
        out.insert("before".into(), summary(&samples, warm, total));
    } else {
        let at = event - start;
        out.insert("before".into(), summary(&samples, warm, at));
        out.insert("after".into(), summary(&samples, at, (at + ns(args.after)).min(total)));
        let command = command.and_then(std::result::Result::ok);
        out.insert("command".into(), command.unwrap_or_else(|| json!({"error": "lost"})));
    }
    let mut wrote = Map::new();
    for ((disk, before), after) in args.stat.iter().zip(&before_bytes).zip(written_all(&args.stat)?)
    {
        wrote.insert(disk.clone(), (after - before).into());
    }
    out.insert("written".into(), wrote.into());
    out.insert("windows".into(), windows(&samples, args.window_ms.max(1) * 1_000_000, total));
    println!("{}", serde_json::to_string(&Value::Object(out))?);
    Ok(())
}

/// Waits until `at` and runs the command there; says when it began.
fn event_at(args: &Args, at: u64, start: u64, event: &AtomicU64) -> Value {
    std::thread::sleep(Duration::from_nanos(at.saturating_sub(monotonic_ns())));
    let began = monotonic_ns();
    event.store(began, Ordering::Relaxed);
    let command = args.command.as_deref().unwrap_or("true");
    let out = Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).output();
    let seconds = |t: u64| (t - start) as f64 / 1e9;
    let mut v =
        json!({ "command": command, "start_s": seconds(began), "end_s": seconds(monotonic_ns()) });
    match out {
        Ok(out) => {
            v["status"] = out.status.code().into();
            v["stdout"] = String::from_utf8_lossy(&out.stdout).trim().into();
            v["stderr"] = String::from_utf8_lossy(&out.stderr).trim().into();
        }
        Err(e) => v["error"] = e.to_string().into(),
    }
    v
}
