// SPDX-License-Identifier: GPL-2.0-only

//! The file that keeps what was written, and when it was durable: text, the first line the run, then one line a write.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::str::FromStr;

use anyhow::{bail, Context, Result};

use crate::history::{Durable, Kind, Write, PENDING};
use crate::writer::Shared;

/// A write, and the stamp at which it was known to be durable, or [`PENDING`].
pub(crate) type Recorded = (Write, u64);

/// What a run wrote.
pub(crate) struct Record {
    /// The run, as sectors name it.
    pub(crate) run: u64,
    /// Size of the device.
    pub(crate) sectors: u64,
    /// All writes.
    pub(crate) writes: Vec<Recorded>,
}

/// Saves the history of a run.
pub(crate) fn save(path: &Path, shared: &Shared) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    writeln!(out, "{} {}", shared.run, shared.device.sectors)?;
    for (w, durable) in with_durable(&shared.history.copy(), shared.history.copy_durable()) {
        let kind = match w.kind {
            Kind::Data => 0,
            Kind::Zero => 1,
            Kind::MaybeZero => 2,
        };
        writeln!(
            out,
            "{} {} {durable} {} {} {kind} {}",
            w.submit, w.complete, w.sector, w.sectors, w.writer
        )?;
    }
    Ok(out.flush()?)
}

/// Finds for each write when it was durable.
fn with_durable(writes: &[Write], mut durable: Durable) -> Vec<Recorded> {
    let at_once: HashSet<u64> = durable.at_once.into_iter().collect();
    // Of the flushes that begin at one or later, the earliest end.
    durable.flushes.sort_unstable();
    let mut earliest = PENDING;
    for flush in durable.flushes.iter_mut().rev() {
        earliest = earliest.min(flush.1);
        flush.1 = earliest;
    }
    let since = |complete: u64| {
        let next = durable.flushes.partition_point(|f| f.0 <= complete);
        durable.flushes.get(next).map_or(PENDING, |f| f.1)
    };
    writes
        .iter()
        .map(|w| match w.complete {
            PENDING => (*w, PENDING),
            complete if at_once.contains(&w.submit) => (*w, complete),
            complete => (*w, since(complete)),
        })
        .collect()
}

fn numbers<T: FromStr>(line: &str) -> Result<Vec<T>, T::Err> {
    line.split(' ').map(T::from_str).collect()
}

/// Reads it again.
pub(crate) fn load(path: &Path) -> Result<Record> {
    let shown = || format!("--history {}", path.display());
    let mut lines = BufReader::new(File::open(path).with_context(shown)?).lines();
    let first = numbers(&lines.next().with_context(shown)??).with_context(shown)?;
    let [run, sectors] = first[..] else { bail!("{}: no history", shown()) };
    let mut writes = Vec::new();
    for line in lines {
        let line: Vec<u64> = numbers(&line?).with_context(shown)?;
        let [submit, complete, durable, sector, sectors, kind, writer] = line[..] else {
            bail!("{}: a line that is not one of a write: {line:?}", shown());
        };
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::Zero,
            _ => Kind::MaybeZero,
        };
        let (sector, sectors, writer) =
            (u32::try_from(sector)?, u32::try_from(sectors)?, u16::try_from(writer)?);
        let write = Write { submit, complete, sector, sectors, kind, whole: false, writer };
        writes.push((write, durable));
    }
    Ok(Record { run, sectors, writes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_makes_durable_what_completed_before_it_began() {
        let write = |submit, complete| Write {
            submit,
            complete,
            sector: 0,
            sectors: 1,
            kind: Kind::Data,
            whole: false,
            writer: 0,
        };
        let writes = [write(1, 2), write(3, 10), write(4, PENDING), write(5, 6), write(30, 31)];
        let durable = Durable { at_once: vec![5], flushes: vec![(8, 25), (12, 14), (7, 20)] };
        let got: Vec<u64> = with_durable(&writes, durable).iter().map(|w| w.1).collect();
        assert_eq!(got, [14, 14, PENDING, 6, PENDING]);
    }
}
