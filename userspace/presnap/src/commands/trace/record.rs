// SPDX-License-Identifier: GPL-2.0-only

//! `presnap trace record`: follows `/dev/presnap` and writes a compact trace.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{bail, Context, Result};
use presnap_engine::record::{IoRecord, RECORD_BYTES};
use presnap_engine::trace::TraceHeader;
use presnap_traces::Writer;

use crate::output::Progress;
use crate::source::Source;
use crate::sysfs;
use crate::units;

/// Kind of the pseudo record that counts losses.
const LOSSES: u8 = 255;

/// Record the I/O of a device to a compact trace, until stopped (Ctrl-C) or for --seconds
///
/// Begins with what the device still remembers. The file is readable up to its last whole block at any time.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device
    #[arg(value_name = "DEV")]
    device: String,
    /// The trace file
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Stop after so many seconds
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// Leave out what happened before now
    #[arg(long)]
    new_only: bool,
}

impl Args {
    /// Records.
    pub(crate) fn run(self) -> Result<()> {
        let seconds = self.seconds.map(|s| Duration::from_secs_f64(s.clamp(0.0, 1e9)));
        let (count, lost) = record(&self.device, &self.output, seconds, self.new_only)?;
        println!("{count} records in {}", self.output.display());
        if lost > 0 {
            eprintln!("presnap: {lost} records were lost: reading was too slow");
        }
        Ok(())
    }
}

/// Records a device into a file, for a time or until stopped; returns the number of records and of those lost.
pub(crate) fn record(
    device: &str,
    output: &Path,
    time: Option<Duration>,
    new_only: bool,
) -> Result<(u64, u64)> {
    let (dm, table) = Source::live(device)?;
    let number = sysfs::read(&sysfs::block(&dm.kernel_name).join("dev"))?;
    let path = std::env::var("PRESNAP_RECORDS").unwrap_or_else(|_| "/dev/presnap".into());
    let mut input = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("{path} (is the module loaded?)"))?;
    // One write: the kernel takes the number whole.
    input
        .write_all(format!("{number}\n").as_bytes())
        .with_context(|| format!("{path}: {} is not known", dm.name))?;
    let shown = || format!("output {}", output.display());
    let file = File::create(output).with_context(shown)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start_ns = presnap_blockio::monotonic_ns();
    let header = TraceHeader {
        flags: 0,
        origin_sectors: table.sectors,
        start_realtime_ns: now.as_nanos() as u64,
        start_ns,
    };
    let stop = presnap_blockio::stop_on_signals();
    let mut writer = Writer::new(BufWriter::new(file), header)?;
    let until = time.map(|t| Instant::now() + t);
    let from_ns = if new_only { start_ns } else { 0 };
    let lost = follow(&mut input, &mut writer, from_ns, stop, until)?;
    Ok((writer.finish().with_context(shown)?, lost))
}

/// Copies records until told to stop; returns how many were lost.
fn follow<W: Write + Seek>(
    input: &mut impl Read,
    writer: &mut Writer<W>,
    from_ns: u64,
    stop: &AtomicBool,
    until: Option<Instant>,
) -> Result<u64> {
    let mut progress = Progress::new(false);
    let mut buffer = vec![0; 2048 * RECORD_BYTES];
    let (mut lost, mut flushed) = (0, Instant::now());
    loop {
        let over = stop.load(Ordering::Relaxed) || until.is_some_and(|u| Instant::now() >= u);
        let asked = Instant::now();
        let n = match input.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e).context("reading records"),
        };
        if n % RECORD_BYTES != 0 {
            bail!("the kernel gave {n} bytes, no whole records");
        }
        for bytes in buffer.get(..n).unwrap_or_default().as_chunks_of_records() {
            if bytes.get(28) == Some(&LOSSES) {
                let count =
                    bytes.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
                lost += count.unwrap_or(0);
                writer.lost();
                continue;
            }
            let record = IoRecord::from_bytes(bytes)
                .context("the kernel gave a record of an unknown kind")?;
            if record.time_ns >= from_ns {
                writer.push(record)?;
            }
        }
        // What was there when the end came is still taken.
        if over {
            return Ok(lost);
        }
        if flushed.elapsed() > Duration::from_secs(5) {
            writer.flush()?;
            flushed = Instant::now();
        }
        // The kernel waits some 100 ms before it says that there is nothing; be patient with one that does not.
        if n == 0 && asked.elapsed() < Duration::from_millis(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let count = writer.count();
        progress.show(|| format!("{count} records ({}), {lost} lost", units::bytes(count * 32)));
    }
}

/// Splitting into records, which slices offer as such only in later versions of Rust.
trait Records {
    fn as_chunks_of_records(&self) -> impl Iterator<Item = &[u8; RECORD_BYTES]>;
}

impl Records for [u8] {
    fn as_chunks_of_records(&self) -> impl Iterator<Item = &[u8; RECORD_BYTES]> {
        self.chunks_exact(RECORD_BYTES).filter_map(|c| c.first_chunk())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use presnap_engine::record::IoKind;
    use std::io::Cursor;

    #[test]
    fn losses_are_counted_and_old_records_left_out() {
        let record =
            |time_ns| IoRecord { time_ns, op: 1, sector: 8, sectors: 8, kind: IoKind::Write };
        let mut bytes = Vec::new();
        for t in [5, 10, 20] {
            bytes.extend(record(t).to_bytes());
        }
        let mut losses = IoRecord { time_ns: 0, op: 77, ..record(0) }.to_bytes();
        losses[28] = LOSSES;
        bytes.extend(losses);
        bytes.extend(record(30).to_bytes());
        let mut out = Cursor::new(Vec::new());
        let mut writer = Writer::new(&mut out, TraceHeader::default()).unwrap();
        let stop = AtomicBool::new(true);
        let lost = follow(&mut bytes.as_slice(), &mut writer, 10, &stop, None).unwrap();
        assert_eq!((lost, writer.finish().unwrap()), (77, 3));
        let mut bad = record(1).to_bytes().to_vec();
        bad.pop();
        let mut writer = Writer::new(Cursor::new(Vec::new()), TraceHeader::default()).unwrap();
        assert!(follow(&mut bad.as_slice(), &mut writer, 0, &stop, None).is_err());
    }
}
