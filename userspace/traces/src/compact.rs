// SPDX-License-Identifier: GPL-2.0-only

//! The compact form, by the engine's format.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{anyhow, Context, Result};
use presnap_engine::record::IoRecord;
use presnap_engine::trace::{
    decode_block, BlockEncoder, TraceHeader, TRACE_HEADER_BYTES, TRACE_LOSSY,
};

use crate::Trace;

/// Records of a block at most: a recorder that is stopped loses less than this many.
const BLOCK_BYTES: usize = 64 << 10;

/// Reads a file up to its last whole block.
pub(crate) fn read(path: &Path) -> Result<Trace> {
    let bytes = std::fs::read(path)?;
    let header = TraceHeader::decode(&bytes).map_err(|e| anyhow!("{e}"))?;
    let mut trace = Trace {
        origin_sectors: header.origin_sectors,
        start_realtime_ns: header.start_realtime_ns,
        start_ns: header.start_ns,
        lossy: header.flags & TRACE_LOSSY != 0,
        ..Trace::default()
    };
    let mut rest = bytes.get(TRACE_HEADER_BYTES..).unwrap_or_default();
    for sequence in 0.. {
        if rest.is_empty() {
            break;
        }
        let block = decode_block(rest, sequence).and_then(|(records, length)| {
            records.collect::<Result<Vec<IoRecord>, _>>().map(|records| (records, length))
        });
        match block {
            Ok((records, length)) => {
                trace.records.extend(records);
                rest = rest.get(length..).unwrap_or_default();
            }
            Err(e) => {
                let at = bytes.len() - rest.len();
                trace.damage = Some(format!("{e} (at byte {at})"));
                break;
            }
        }
    }
    Ok(trace)
}

/// Writes a compact trace block by block, so that what was written is readable at any time.
pub struct Writer<W: Write + Seek> {
    out: W,
    header: TraceHeader,
    pending: Vec<IoRecord>,
    buffer: Vec<u8>,
    sequence: u32,
    written: u64,
}

impl<W: Write + Seek> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn new(mut out: W, header: TraceHeader) -> Result<Self> {
        let mut bytes = [0; TRACE_HEADER_BYTES];
        header.encode(&mut bytes);
        out.write_all(&bytes)?;
        let buffer = vec![0; BLOCK_BYTES];
        Ok(Self { out, header, pending: Vec::new(), buffer, sequence: 0, written: 0 })
    }

    /// Adds a record.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn push(&mut self, record: IoRecord) -> Result<()> {
        self.pending.push(record);
        // A record takes at least 2 bytes, so so many may fill a block.
        if self.pending.len() >= BLOCK_BYTES / 4 {
            self.flush_block()?;
        }
        Ok(())
    }

    /// Notes that records were lost.
    pub fn lost(&mut self) {
        self.header.flags |= TRACE_LOSSY;
    }

    /// Records written or waiting.
    pub fn count(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    fn flush_block(&mut self) -> Result<()> {
        let mut left = self.pending.as_slice();
        while !left.is_empty() {
            let mut block =
                BlockEncoder::new(&mut self.buffer, self.sequence).context("a trace block")?;
            while left.first().is_some_and(|record| block.push(record)) {
                left = left.get(1..).unwrap_or_default();
            }
            let length = block.finish();
            self.out.write_all(self.buffer.get(..length).unwrap_or_default())?;
            self.sequence += 1;
        }
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes what is waiting as a block, so that a reader sees it.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.flush_block()?;
        Ok(self.out.flush()?)
    }

    /// Completes the file and returns the number of records.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        if self.header.flags != 0 {
            let mut bytes = [0; TRACE_HEADER_BYTES];
            self.header.encode(&mut bytes);
            self.out.seek(SeekFrom::Start(0))?;
            self.out.write_all(&bytes)?;
            self.out.flush()?;
        }
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use presnap_engine::record::IoKind;
    use std::fs::File;

    fn record(i: u64) -> IoRecord {
        IoRecord {
            time_ns: i * 1000,
            op: i,
            sector: i * 7919 % 100_000,
            sectors: 8,
            kind: IoKind::Write,
        }
    }

    #[test]
    fn round_trip_and_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let header = TraceHeader { origin_sectors: 100_008, ..TraceHeader::default() };
        let mut w = Writer::new(File::create(&path).unwrap(), header).unwrap();
        (0..100_000).for_each(|i| w.push(record(i)).unwrap());
        w.lost();
        assert_eq!(w.finish().unwrap(), 100_000);
        let trace = Trace::read(&path).unwrap();
        assert!(trace.records.iter().copied().eq((0..100_000).map(record)));
        assert!(trace.lossy && trace.damage.is_none() && trace.origin_sectors == 100_008);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() < 100_000 * 10, "{} bytes", bytes.len());
        for cut in [bytes.len() - 1, bytes.len() / 2, TRACE_HEADER_BYTES + 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let part = Trace::read(&path).unwrap();
            assert!(part.damage.is_some() && trace.records.starts_with(&part.records));
        }
        std::fs::write(&path, &bytes[..10]).unwrap();
        assert!(Trace::read(&path).is_err());
        std::fs::write(&path, b"something else entirely").unwrap();
        assert!(Trace::read(&path).is_err());
    }
}
