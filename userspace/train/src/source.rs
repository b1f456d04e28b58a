// SPDX-License-Identifier: GPL-2.0-only

//! The traces to learn from, with what names them: files of either kind that `presnap-traces` reads.

use anyhow::{bail, ensure, Context, Result};
use presnap_engine::record::IoRecord;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A trace in memory.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Short name: the file's, without its ending.
    pub name: String,
    /// Records in the order of time.
    pub records: Vec<IoRecord>,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// Wall-clock time of the newest record, 0 if not known.
    pub end_realtime_s: u64,
    /// What is wrong with the trace, though it can be used: cut short, records lost.
    pub damage: Option<String>,
}

impl Trace {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let read = presnap_traces::Trace::read(path)?;
        let last = read.records.iter().map(|r| r.time_ns).max().unwrap_or(0);
        let end_ns = match read.start_realtime_ns {
            0 => 0,
            start => start.saturating_add(last.saturating_sub(read.start_ns)),
        };
        let lossy = read.lossy.then(|| "records were lost while recording".to_owned());
        let mut trace = Self {
            name: path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            records: read.records,
            sha256: Sha256::digest(&bytes).into(),
            end_realtime_s: end_ns / 1_000_000_000,
            damage: read.damage.or(lossy),
        };
        trace.check().with_context(|| path.display().to_string())?;
        Ok(trace)
    }

    /// Makes a trace of records that were read elsewhere, say from a live device.
    pub fn of_records(name: &str, records: Vec<IoRecord>, end_realtime_s: u64) -> Result<Self> {
        let mut hash = Sha256::new();
        records.iter().for_each(|r| hash.update(r.to_bytes()));
        let sha256 = hash.finalize().into();
        let mut trace = Self { name: name.into(), records, sha256, end_realtime_s, damage: None };
        trace.check()?;
        Ok(trace)
    }

    /// Sorts by time and checks that there is something to learn from.
    fn check(&mut self) -> Result<()> {
        self.records.sort_by_key(|r| r.time_ns);
        let writes = self.records.iter().filter(|r| r.kind.modifies()).count();
        ensure!(
            writes >= 100,
            "only {writes} writes: too few to learn from, at least 100 are needed"
        );
        ensure!(
            self.duration_ns() >= 10_000_000_000,
            "only {:.1} s long: too short to learn from, at least 10 s are needed",
            self.duration_ns() as f64 / 1e9
        );
        Ok(())
    }

    /// Time of the first record.
    pub fn start_ns(&self) -> u64 {
        self.records.first().map_or(0, |r| r.time_ns)
    }

    /// Time of the last record.
    pub fn end_ns(&self) -> u64 {
        self.records.last().map_or(0, |r| r.time_ns)
    }

    /// Time from the first record to the last.
    pub fn duration_ns(&self) -> u64 {
        self.end_ns() - self.start_ns()
    }
}

/// Reads several files; one that is given twice is refused.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Trace>> {
    let mut traces: Vec<Trace> = Vec::new();
    for path in paths {
        let trace = Trace::read(path)?;
        let known = traces.iter().find(|t| t.sha256 == trace.sha256);
        if let Some(known) = known {
            bail!("{} has the same content as {}", path.display(), known.name);
        }
        traces.push(trace);
    }
    Ok(traces)
}
