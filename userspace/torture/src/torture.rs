// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-torture`: the oracle of content. It writes self-describing sectors to a device from many threads while a
//! command takes snapshots of it, and proves for each image that it is a consistent cut of what was written.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use clap::Parser;

use crate::device::{Buffer, Device, Way, MAX_IO};
use crate::history::{History, Kind};
use crate::record;
use crate::rng::Rng;
use crate::sector::{fill, SECTOR};
use crate::snapshots::{Snapshots, Templates};
use crate::writer::{Counts, Discard, Shared, Writer, Zones};

/// Torture a device while snapshots of it are taken, and check each image.
///
/// All content of the device is destroyed. In the templates, {id} is the snapshot's id, {prev} the id verified before
/// it (empty for the first), {n} its number counted from 1, {device} the device.
/// Exit status: 0 all snapshots verified without a violation, 1 otherwise, 2 wrong usage, 3 writers hang.
#[derive(Parser)]
#[command(version, about, long_about)]
struct Args {
    /// Device (or file) to write to, 2 MiB to 4 GiB; 64 to 256 MiB are sensible
    #[arg(long)]
    device: PathBuf,
    /// Seconds of writing; snapshots are spread over them
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Writer threads (by turns: random, buffered, hot, sequential)
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Snapshots to take
    #[arg(long, default_value_t = 0)]
    snapshots: u32,
    /// Shell command that takes a snapshot and prints its id (the first number of its output)
    #[arg(long, requires = "verify_cmd")]
    snapshot_cmd: Option<String>,
    /// Shell command that makes image {id} readable and prints its path (the last line of its output)
    #[arg(long)]
    verify_cmd: Option<String>,
    /// Shell command run after image {id} was checked (to remove it)
    #[arg(long)]
    done_cmd: Option<String>,
    /// Check a snapshot only when this many later ones were taken
    #[arg(long, default_value_t = 0)]
    lag: usize,
    /// Take a snapshot only when all earlier ones were checked and removed, so that there is no image to be guarded
    #[arg(long, conflicts_with = "lag")]
    alone: bool,
    /// How many snapshot commands may fail without failing the run
    #[arg(long, default_value_t = 0)]
    allow_failed: u32,
    /// What a discard leaves: zeroes, maybe (zeroes or the old content), none (send no discards)
    #[arg(long, default_value = "auto", value_parser = ["auto", "zeroes", "maybe", "none"])]
    discard: String,
    /// Pause of each thread between two requests, microseconds
    #[arg(long, default_value_t = 0)]
    pause_us: u64,
    /// Bound of the history, in millions of sectors written and not yet checked (4 bytes each)
    #[arg(long, default_value_t = 16)]
    history_millions: u64,
    /// Give up when no request completes for this many seconds
    #[arg(long, default_value_t = 120)]
    stall_seconds: u64,
    /// Shell command run again and again while there is writing; what was durable at {stamp} is so when it runs
    #[arg(long, requires = "history")]
    mark_cmd: Option<String>,
    /// Milliseconds between two runs of it
    #[arg(long, default_value_t = 100)]
    mark_ms: u64,
    /// Keep all that was written, and write it to this file in the end, for presnap-powerloss
    #[arg(long)]
    history: Option<PathBuf>,
    /// Write what happens to this file, too
    #[arg(long)]
    log: Option<PathBuf>,
    /// Print a JSON summary before the last line
    #[arg(long)]
    json: bool,
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("presnap-torture: {e:#}");
            ExitCode::from(1)
        }
    }
}

/// Writes the whole device: even MiB carry stamps, odd ones are zero. Returns the stamp of each sector.
fn prepare(s: &Shared) -> Result<Vec<u64>> {
    let mut stamps = vec![0; s.device.sectors as usize];
    let mut buffer = Buffer::new(MAX_IO);
    let step = (MAX_IO / SECTOR) as u64;
    let mut at = 0;
    while at < s.device.sectors {
        let n = step.min(s.device.sectors - at);
        let data = buffer.slice(n as usize * SECTOR);
        let zero = at / step % 2 == 1;
        let kind = if zero { Kind::Zero } else { Kind::Data };
        let stamp = s.history.begin(0, at, n, kind);
        if zero {
            data.fill(0);
        } else {
            fill(data, at, stamp, s.run, 0, 0);
            stamps[at as usize..(at + n) as usize].fill(stamp);
        }
        s.device.write(Way::Direct, at, data).context("filling the device")?;
        s.history.complete(0, stamp);
        at += n;
    }
    let begin = s.history.stamp();
    s.device.flush().context("filling the device")?;
    s.history.flushed(begin);
    Ok(stamps)
}

/// Tries out what discard and write-zeroes do here, on the first MiB.
fn probe(device: &Device, wanted: &str) -> Result<(Discard, bool)> {
    let mut buffer = Buffer::new(MAX_IO);
    let data = buffer.slice(MAX_IO);
    data.fill(0xa5);
    device.write(Way::Direct, 0, data).context("writing the first MiB")?;
    let sectors = (MAX_IO / SECTOR) as u64;
    let discard = match wanted {
        "zeroes" => Discard::Zeroes,
        "maybe" => Discard::Maybe,
        "none" => Discard::None,
        _ if device.discard(0, sectors).is_err() => Discard::None,
        _ => {
            // A device that zeroes once may still keep parts another time (unaligned ends), so only `zeroes` on the
            // command line promises it.
            Discard::Maybe
        }
    };
    Ok((discard, device.zero(0, sectors).is_ok()))
}

fn run(args: Args) -> Result<bool> {
    if args.snapshots > 0 && (args.snapshot_cmd.is_none() || args.verify_cmd.is_none()) {
        bail!("--snapshots {}: --snapshot-cmd and --verify-cmd are needed", args.snapshots);
    }
    let device = Device::open(&args.device)?;
    let (discard, zeroout) = probe(&device, &args.discard)?;
    let run = Rng::new(args.seed ^ u64::from(std::process::id()) << 32).next();
    let threads = usize::from(args.threads);
    let zones = Zones::new(device.sectors, threads as u64, device.unit);
    if zones.own < 1024 {
        bail!(
            "--threads {threads}: too many for {} sectors, each needs 512 KiB of its own",
            device.sectors
        );
    }
    let whole = device.is_block_device;
    let history = History::new(threads, args.history_millions.saturating_mul(1_000_000));
    let shared = Shared {
        device,
        history,
        run,
        threads: threads as u64,
        discard,
        no_discard: AtomicBool::new(false),
        zeroout,
        whole,
        pause: Duration::from_micros(args.pause_us),
        ordered: args.history.is_some(),
        stop: AtomicBool::new(false),
        counts: Counts::default(),
    };
    eprintln!(
        "presnap-torture: {} MiB, {threads} threads, seed {}, discard leaves {discard:?}, logical block {} bytes",
        shared.device.sectors / 2048,
        args.seed,
        shared.device.unit * SECTOR as u64,
    );
    let stamps = prepare(&shared)?;
    let templates = Templates {
        snapshot: args.snapshot_cmd.clone().unwrap_or_default(),
        verify: args.verify_cmd.clone().unwrap_or_default(),
        done: args.done_cmd.clone(),
        device: args.device.display().to_string(),
    };
    let mut snapshots =
        Snapshots::new(&shared, templates, args.lag, args.alone, args.log.as_deref())?;
    snapshots.keep_history = args.history.is_some();
    let snapshots = snapshots;
    let finished = AtomicBool::new(false);
    let mut failed = 0;
    std::thread::scope(|scope| {
        let mut writers = Vec::new();
        for id in 0..args.threads {
            let from = (u64::from(id) * zones.own) as usize;
            let mine = stamps[from..from + zones.own as usize].to_vec();
            let mut writer = Writer::new(&shared, id, args.seed, zones, mine);
            writers.push(scope.spawn(move || writer.run()));
        }
        let verifier = scope.spawn(|| snapshots.verify_loop());
        scope.spawn(|| watch(&shared, &finished, args.stall_seconds));
        if let Some(command) = &args.mark_cmd {
            scope.spawn(|| mark(&shared, command, args.mark_ms));
        }
        failed = take(&args, &snapshots);
        snapshots.no_more();
        let _ = verifier.join();
        shared.stop.store(true, Ordering::Relaxed);
        for w in writers {
            let _ = w.join();
        }
        finished.store(true, Ordering::Relaxed);
    });
    snapshots.verify_device(&args.device)?;
    if let Some(path) = &args.history {
        record::save(path, &shared).with_context(|| format!("--history {}", path.display()))?;
    }
    Ok(summary(&args, &shared, &snapshots, failed))
}

/// Takes the snapshots at random instants; returns how many commands failed.
fn take(args: &Args, snapshots: &Snapshots<'_>) -> u32 {
    let mut rng = Rng::new(args.seed ^ 0x7357);
    let start = Instant::now();
    let end = start + Duration::from_secs(args.seconds);
    let mut failed = 0;
    for n in 0..args.snapshots {
        // The remaining time is shared by the remaining snapshots; each waits between 0 and twice its share.
        let left = end.saturating_duration_since(Instant::now());
        let share = left.as_micros() as u64 / u64::from(args.snapshots - n);
        std::thread::sleep(Duration::from_micros(rng.below(2 * share + 1)));
        if let Err(e) = snapshots.take(n + 1) {
            failed += 1;
            snapshots.say(&format!("snapshot {} of {}: {e:#}", n + 1, args.snapshots));
        }
    }
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    failed
}

/// Tells, again and again, what is durable.
fn mark(shared: &Shared, command: &str, every_ms: u64) {
    while !shared.stop.load(Ordering::Relaxed) {
        let command = command.replace("{stamp}", &shared.history.stamp().to_string());
        match std::process::Command::new("sh").arg("-c").arg(&command).status() {
            Ok(status) if status.success() => {}
            other => {
                eprintln!("`{command}`: {other:?}");
                Counts::add(&shared.counts.errors, 1);
            }
        }
        std::thread::sleep(Duration::from_millis(every_ms));
    }
}

/// Ends the process when the writers hang: a hang is a finding, and must not look like a slow machine.
fn watch(shared: &Shared, finished: &AtomicBool, stall_seconds: u64) {
    let c = &shared.counts;
    let done = || {
        [&c.writes, &c.zeroes, &c.discards, &c.flushes, &c.reads, &c.errors]
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    let (mut last, mut since) = (done(), Instant::now());
    while !finished.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(200));
        let now = done();
        if now != last || shared.history.is_full() {
            (last, since) = (now, Instant::now());
        } else if since.elapsed().as_secs() >= stall_seconds {
            println!("HANG: no request has completed for {stall_seconds} s");
            std::process::exit(3);
        }
    }
}

/// Prints the results; true if all is well.
fn summary(args: &Args, shared: &Shared, snapshots: &Snapshots<'_>, failed: u32) -> bool {
    let c = &shared.counts;
    let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let (verified, violations) = snapshots.totals();
    let violations = violations + get(&c.read_violations);
    let errors = get(&c.errors);
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "snapshots": args.snapshots, "verified": verified, "failed": failed,
                "violations": violations, "read_violations": get(&c.read_violations),
                "io_errors": errors, "writes": get(&c.writes), "bytes": get(&c.bytes),
                "zeroes": get(&c.zeroes), "discards": get(&c.discards), "flushes": get(&c.flushes),
                "reads": get(&c.reads),
            })
        );
    }
    eprintln!(
        "presnap-torture: {} writes ({} MiB), {} zeroings, {} discards, {} flushes, {} reads, {errors} errors, {failed} failed snapshots",
        get(&c.writes),
        get(&c.bytes) >> 20,
        get(&c.zeroes),
        get(&c.discards),
        get(&c.flushes),
        get(&c.reads),
    );
    println!("{verified} snapshots verified, {violations} violations");
    violations == 0
        && errors == 0
        && failed <= args.allow_failed
        && verified + failed == args.snapshots
}
