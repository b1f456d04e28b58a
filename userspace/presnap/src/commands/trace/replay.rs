// SPDX-License-Identifier: GPL-2.0-only

//! `presnap trace replay`: does to a device what a trace says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use presnap_blockio::{monotonic_ns, Buffer, Mode};
use presnap_engine::record::{IoKind, IoRecord};
use presnap_traces::Trace;
use serde_json::{json, Value};

use crate::commands::format::content;
use crate::output::{self, Progress};
use crate::units;

/// Sectors of one request at most; longer ones are cut short.
const MAX_SECTORS: u64 = 2048;
const SECTOR: u64 = 512;

/// How fast a trace is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Speed {
    /// So many times as fast as it was recorded.
    Times(f64),
    /// As fast as the device takes it.
    Max,
}

fn speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    match text.trim_end_matches('x').parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(Speed::Times(x)),
        _ => Err("a number above 0 or `max` is needed".into()),
    }
}

/// Replay a trace onto a device: its content is overwritten
///
/// Each request is issued when it is due (times --speed), whether or not those before it are done, as long as fewer than
/// --qd are in flight; latency counts from when it was due. Places beyond the end of TARGET are folded back into it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A trace of presnap, or a Parquet file with the columns t_ns, op, sector, nsectors
    file: PathBuf,
    /// Device or file to do the I/O on
    target: PathBuf,
    /// Times as fast as recorded, or `max`
    #[arg(long, default_value = "1", value_parser = speed)]
    speed: Speed,
    /// Requests in flight at most
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    qd: u16,
    /// Seed of the data written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Begin at this second of the trace
    #[arg(long, default_value_t = 0.0)]
    from: f64,
    /// Replay so many seconds of the trace
    #[arg(long)]
    seconds: Option<f64>,
    /// Leave out reads
    #[arg(long)]
    no_reads: bool,
    /// Overwrite a target that holds something
    #[arg(long)]
    force: bool,
    /// Print latencies as JSON
    #[arg(long)]
    json: bool,
}

/// What all workers share.
struct Shared<'a> {
    file: &'a File,
    records: &'a [IoRecord],
    sectors: u64,
    unit: u64,
    origin_ns: u64,
    start_ns: u64,
    speed: Speed,
    next: AtomicUsize,
    errors: AtomicU64,
    failure: Mutex<Option<String>>,
    stop: &'a AtomicBool,
}

/// Latencies in nanoseconds.
#[derive(Default)]
struct Latencies {
    reads: Vec<u64>,
    writes: Vec<u64>,
    others: Vec<u64>,
    late: u64,
    bytes: u64,
}

impl Args {
    /// Replays.
    pub(crate) fn run(self) -> Result<()> {
        let records = self.records()?;
        let shown = self.target.display();
        let mode = Mode { write: true, direct: true, exclusive: true, dsync: false };
        let file =
            presnap_blockio::open(&self.target, mode).map_err(|e| match e.raw_os_error() {
                Some(libc::EBUSY) => anyhow!("{shown} is mounted or otherwise in use"),
                _ => anyhow!("{shown}: {e}"),
            })?;
        let bytes = presnap_blockio::size(&file).with_context(|| shown.to_string())?;
        let unit = presnap_blockio::logical_block_bytes(&file)? / SECTOR;
        let sectors = bytes / SECTOR / 8 * 8;
        if sectors < MAX_SECTORS {
            bail!("{shown}: {bytes} bytes are too few, 1 MiB at least");
        }
        if !self.force {
            if let Some(found) = content(&file, bytes)? {
                bail!("{shown} holds {found}; --force overwrites it all the same");
            }
        }
        let shared = Shared {
            file: &file,
            records: &records,
            sectors,
            // Files are most often on file systems of 4 KiB blocks.
            unit: if presnap_blockio::is_block_device(&file)? { unit } else { 8 },
            origin_ns: records.first().map_or(0, |r| r.time_ns),
            start_ns: monotonic_ns(),
            speed: self.speed,
            next: AtomicUsize::new(0),
            errors: AtomicU64::new(0),
            failure: Mutex::new(None),
            stop: presnap_blockio::stop_on_signals(),
        };
        let all = self.replay(&shared);
        let seconds = (monotonic_ns() - shared.start_ns) as f64 / 1e9;
        self.report(&shared, all, seconds)
    }

    /// The records to be replayed, in order of time.
    fn records(&self) -> Result<Vec<IoRecord>> {
        let trace = Trace::read(&self.file)?;
        if let Some(damage) = &trace.damage {
            eprintln!("presnap: {}: {damage}; the part before is replayed", self.file.display());
        }
        let mut records = trace.records;
        records.sort_by_key(|r| r.time_ns);
        let first = records.first().map_or(0, |r| r.time_ns);
        let ns = |s: f64| (s.clamp(0.0, 1e9) * 1e9) as u64;
        let from = first.saturating_add(ns(self.from));
        let to = self.seconds.map_or(u64::MAX, |s| from.saturating_add(ns(s)));
        records.retain(|r| {
            (from..to).contains(&r.time_ns) && !(self.no_reads && r.kind == IoKind::Read)
        });
        if records.is_empty() {
            bail!("{}: there is nothing to replay", self.file.display());
        }
        Ok(records)
    }

    fn replay(&self, shared: &Shared<'_>) -> Latencies {
        let mut progress = Progress::new(false);
        let finished = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.qd)
                .map(|i| {
                    let finished = &finished;
                    let seed = self.seed.wrapping_mul(1009).wrapping_add(u64::from(i));
                    scope.spawn(move || {
                        let out = work(shared, seed);
                        finished.fetch_add(1, Ordering::Relaxed);
                        out
                    })
                })
                .collect();
            while finished.load(Ordering::Relaxed) < workers.len() {
                std::thread::sleep(Duration::from_millis(50));
                let done = shared.next.load(Ordering::Relaxed).min(shared.records.len());
                progress.show(|| format!("{done} of {} requests", shared.records.len()));
            }
            let mut all = Latencies::default();
            for l in workers.into_iter().filter_map(|w| w.join().ok()) {
                all.reads.extend(l.reads);
                all.writes.extend(l.writes);
                all.others.extend(l.others);
                all.late += l.late;
                all.bytes += l.bytes;
            }
            all
        })
    }

    fn report(&self, shared: &Shared<'_>, mut all: Latencies, seconds: f64) -> Result<()> {
        let done = all.reads.len() + all.writes.len() + all.others.len();
        let errors = shared.errors.load(Ordering::Relaxed);
        let (reads, writes) = (numbers(&mut all.reads), numbers(&mut all.writes));
        let others = numbers(&mut all.others);
        if self.json {
            output::json(&json!({
                "requests": done, "errors": errors, "seconds": seconds, "bytes": all.bytes,
                "iops": (done as f64 / seconds).round(), "late": all.late,
                "reads": reads, "writes": writes, "others": others,
            }))?;
        } else {
            println!(
                "{done} requests in {seconds:.1} s: {:.0} a second, {} a second; {} began more than 1 ms late",
                done as f64 / seconds,
                units::bytes((all.bytes as f64 / seconds) as u64),
                all.late
            );
            let heading = ["", "COUNT", "MEAN us", "P50", "P99", "P99.9", "MAX"];
            let mut rows = vec![heading.map(String::from).to_vec()];
            for (name, n) in [("reads", &reads), ("writes", &writes), ("others", &others)] {
                let keys = ["count", "mean_us", "p50_us", "p99_us", "p999_us", "max_us"];
                let mut row = vec![name.to_string()];
                row.extend(keys.iter().map(|k| n[*k].to_string()));
                rows.push(row);
            }
            output::table(&rows);
        }
        let failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failure {
            Some(first) => bail!("{errors} requests failed, the first: {first}"),
            None => Ok(()),
        }
    }
}

/// Percentiles, in microseconds.
fn numbers(latencies: &mut [u64]) -> Value {
    latencies.sort_unstable();
    let us = |ns: u64| (ns as f64 / 10.0).round() / 100.0;
    let at = |p: f64| {
        let rank = (latencies.len() as f64 * p).ceil() as usize;
        us(latencies.get(rank.saturating_sub(1)).copied().unwrap_or(0))
    };
    let n = latencies.len() as u64;
    let mean = latencies.iter().sum::<u64>().checked_div(n).unwrap_or(0);
    json!({
        "count": n, "mean_us": us(mean), "p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99),
        "p999_us": at(0.999), "max_us": us(latencies.last().copied().unwrap_or(0)),
    })
}

/// Folds a place into a device of `sectors` sectors; keeps its place within 4 KiB, and obeys logical blocks of `unit`.
fn fold(sector: u64, n: u64, sectors: u64, unit: u64) -> (u64, u64) {
    let n = n.clamp(1, MAX_SECTORS).next_multiple_of(unit);
    let mut at = sector % sectors / unit * unit;
    if at + n > sectors {
        at -= (at + n - sectors).next_multiple_of(8);
    }
    (at, n)
}

fn work(shared: &Shared<'_>, seed: u64) -> Latencies {
    let mut out = Latencies::default();
    let mut buffer = Buffer::new((MAX_SECTORS * SECTOR) as usize);
    let mut word = seed | 1;
    for bytes in buffer.chunks_exact_mut(8) {
        word = word.wrapping_mul(0xd129_0d3b_3d8d_29b5).rotate_left(17) ^ 0x5851_f42d;
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut read_buffer = Buffer::new((MAX_SECTORS * SECTOR) as usize);
    loop {
        let i = shared.next.fetch_add(1, Ordering::Relaxed);
        let Some(record) = shared.records.get(i) else { return out };
        if shared.stop.load(Ordering::Relaxed) {
            return out;
        }
        let due = match shared.speed {
            Speed::Max => monotonic_ns(),
            Speed::Times(x) => {
                let after = (record.time_ns - shared.origin_ns) as f64 / x;
                shared.start_ns.saturating_add(after as u64)
            }
        };
        let now = monotonic_ns();
        if due > now {
            std::thread::sleep(Duration::from_nanos(due - now));
        } else if now - due > 1_000_000 {
            out.late += 1;
        }
        let (sector, n) = fold(record.sector, record.sectors.into(), shared.sectors, shared.unit);
        let (at, len) = (sector * SECTOR, n * SECTOR);
        let result = match record.kind {
            IoKind::Read => shared.file.read_exact_at(read_buffer.slice(len as usize), at),
            IoKind::Write => {
                // Each write differs, so that nobody can save it.
                if let Some(first) = buffer.first_chunk_mut::<8>() {
                    *first = (seed ^ i as u64).to_le_bytes();
                }
                shared.file.write_all_at(buffer.slice(len as usize), at)
            }
            IoKind::Discard => presnap_blockio::discard(shared.file, at, len),
            IoKind::WriteZeroes => presnap_blockio::zero(shared.file, at, len),
            IoKind::Flush => shared.file.sync_data(),
        };
        let latency = monotonic_ns().saturating_sub(due);
        if let Err(e) = result {
            shared.errors.fetch_add(1, Ordering::Relaxed);
            let mut failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure
                .get_or_insert_with(|| format!("{:?} of sectors {sector}+{n}: {e}", record.kind));
            continue;
        }
        match record.kind {
            IoKind::Read => out.reads.push(latency),
            IoKind::Write => out.writes.push(latency),
            _ => out.others.push(latency),
        }
        if matches!(record.kind, IoKind::Read | IoKind::Write) {
            out.bytes += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_stays_inside_and_keeps_alignment() {
        assert_eq!(fold(10_000, 8, 4096, 1), (10_000 % 4096, 8));
        for unit in [1, 8] {
            for sector in (0..20_000).step_by(7) {
                for n in [0, 1, 3, 8, 100, 5000] {
                    let (at, len) = fold(sector, n, 4096, unit);
                    assert!(at + len <= 4096 && len >= 1 && at % unit == 0 && len % unit == 0);
                    if unit == 1 {
                        assert_eq!(at % 8, sector % 8);
                    }
                }
            }
        }
    }

    #[test]
    fn speeds() {
        assert_eq!(speed("max"), Ok(Speed::Max));
        assert_eq!(speed("2.5x"), Ok(Speed::Times(2.5)));
        for bad in ["0", "-1", "inf", "fast", ""] {
            assert!(speed(bad).is_err(), "{bad}");
        }
    }
}
