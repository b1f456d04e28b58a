// SPDX-License-Identifier: GPL-2.0-only

//! Trace files of block I/O, read whole: presnap's compact form (written by `presnap trace record`), and Parquet with
//! the columns `t_ns`, `op` ('R' or 'W'), `sector`, `nsectors`, the common form of public traces.

mod compact;
mod parquet_file;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use presnap_engine::record::{IoKind, IoRecord};

pub use compact::Writer;

/// A trace in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The records, in the order of the file.
    pub records: Vec<IoRecord>,
    /// Size of the device, 0 if not known.
    pub origin_sectors: u64,
    /// When recording began, nanoseconds since 1970, 0 if not known.
    pub start_realtime_ns: u64,
    /// When recording began on the clock of the records.
    pub start_ns: u64,
    /// Records were lost while recording.
    pub lossy: bool,
    /// What is wrong with the end of the file, if it is cut short; the records before are good.
    pub damage: Option<String>,
}

/// Numbers about a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of records of each kind, by the number of the kind.
    pub kinds: [u64; 5],
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written (data only).
    pub bytes_written: u64,
    /// Time from the first to the last record.
    pub duration_ns: u64,
    /// One past the highest sector touched.
    pub end_sector: u64,
    /// Different blocks of 4 KiB changed.
    pub blocks_written: u64,
}

impl Trace {
    /// Reads a file, of whichever kind it is.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is neither a trace of presnap nor Parquet with the right columns. A compact file that
    /// is cut short is no error: see [`Trace::damage`].
    pub fn read(path: &Path) -> Result<Self> {
        let shown = || format!("trace {}", path.display());
        let mut file = File::open(path).with_context(shown)?;
        let mut magic = [0u8; 4];
        let n = file.read(&mut magic).with_context(shown)?;
        if magic.get(..n) == Some(b"PAR1") {
            return parquet_file::read(path).with_context(shown);
        }
        compact::read(path).with_context(shown)
    }

    /// Counts.
    pub fn summary(&self) -> Summary {
        let mut s = Summary::default();
        let mut blocks = Vec::new();
        for r in &self.records {
            if let Some(n) = s.kinds.get_mut(r.kind as usize) {
                *n += 1;
            }
            let bytes = u64::from(r.sectors) * 512;
            match r.kind {
                IoKind::Read => s.bytes_read = s.bytes_read.saturating_add(bytes),
                IoKind::Write => s.bytes_written = s.bytes_written.saturating_add(bytes),
                _ => {}
            }
            s.end_sector = s.end_sector.max(r.sector.saturating_add(u64::from(r.sectors)));
            if r.kind.modifies() && r.sectors > 0 {
                let (first, count) = presnap_engine::geometry::blocks_touched(r.sector, r.sectors);
                blocks.push((first, first.saturating_add(count)));
            }
        }
        let times = || self.records.iter().map(|r| r.time_ns);
        s.duration_ns = times().max().unwrap_or(0) - times().min().unwrap_or(0);
        // The union of the runs.
        blocks.sort_unstable();
        let mut end = 0;
        for (from, to) in blocks {
            s.blocks_written += to.saturating_sub(from.max(end));
            end = end.max(to);
        }
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_overlapping_writes() {
        let r = |time_ns, sector, sectors, kind| IoRecord { time_ns, op: 0, sector, sectors, kind };
        let trace = Trace {
            records: vec![
                r(10, 0, 16, IoKind::Write),
                r(20, 8, 16, IoKind::Discard),
                r(50, 100, 8, IoKind::Read),
                r(30, 81, 1, IoKind::Write),
            ],
            ..Trace::default()
        };
        let s = trace.summary();
        assert_eq!((s.kinds, s.blocks_written), ([1, 2, 1, 0, 0], 4));
        assert_eq!((s.bytes_written, s.bytes_read, s.duration_ns), (17 * 512, 4096, 40));
        assert_eq!(s.end_sector, 108);
        assert_eq!(Trace::default().summary(), Summary::default());
    }
}
