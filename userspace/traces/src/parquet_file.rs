// SPDX-License-Identifier: GPL-2.0-only

//! Parquet: one row a request, columns `t_ns` int64, `op` string, `sector` int64, `nsectors` int32.

use std::cell::Cell;
use std::fs::File;
use std::panic::UnwindSafe;
use std::path::Path;
use std::sync::Once;

use anyhow::{bail, Context, Result};
use parquet::column::reader::{get_typed_column_reader, ColumnReader};
use parquet::data_type::{ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use presnap_engine::record::{IoKind, IoRecord};

use crate::Trace;

/// Rows asked for at a time.
const ROWS_AT_ONCE: usize = 1 << 16;

thread_local! {
    /// A panic of this thread is caught, and its message is not for people.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic becomes an error. The library panics on some files that are no good Parquet.
fn without_panic<T>(f: impl FnOnce() -> Result<T> + UnwindSafe) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                before(info);
            }
        }));
    });
    CAUGHT.set(true);
    let result = std::panic::catch_unwind(f);
    CAUGHT.set(false);
    result.unwrap_or_else(|_| bail!("its structure is damaged"))
}

/// Reads all values of a column of a row group; a missing value is an error.
fn column<T: DataType>(group: &dyn RowGroupReader, name: &str) -> Result<Vec<T::T>> {
    let schema = group.metadata().schema_descr();
    let at = schema.columns().iter().position(|c| c.name() == name);
    let Some(at) = at else { bail!("it has no column `{name}`") };
    let physical = group.metadata().column(at).column_type();
    if physical != T::get_physical_type() {
        bail!("column `{name}` is {physical}, {} is needed", T::get_physical_type());
    }
    let rows = usize::try_from(group.metadata().num_rows()).context("number of rows")?;
    let reader: ColumnReader = group.get_column_reader(at)?;
    let mut reader = get_typed_column_reader::<T>(reader);
    // The number of rows is what the file says. It is not believed before they are there.
    let mut values = Vec::new();
    // Columns may be declared optional; their definition levels are then asked for, and all rows must have a value.
    let mut levels = Vec::new();
    while values.len() < rows {
        let most = (rows - values.len()).min(ROWS_AT_ONCE);
        let (read, _, _) = reader.read_records(most, Some(&mut levels), None, &mut values)?;
        if read == 0 {
            break;
        }
    }
    if values.len() != rows {
        bail!("column `{name}` has missing values");
    }
    Ok(values)
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Trace> {
    without_panic(|| read_rows(path))
}

fn read_rows(path: &Path) -> Result<Trace> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let mut trace = Trace::default();
    let mut op = 0;
    for i in 0..reader.num_row_groups() {
        let group = reader.get_row_group(i)?;
        let times = column::<Int64Type>(group.as_ref(), "t_ns")?;
        let kinds = column::<ByteArrayType>(group.as_ref(), "op")?;
        let sectors = column::<Int64Type>(group.as_ref(), "sector")?;
        let lengths = column::<Int32Type>(group.as_ref(), "nsectors")?;
        for (((time, kind), sector), length) in times.iter().zip(&kinds).zip(&sectors).zip(&lengths)
        {
            let kind = match kind.data() {
                b"R" | b"r" => IoKind::Read,
                b"W" | b"w" => IoKind::Write,
                b"D" | b"d" => IoKind::Discard,
                other => bail!("row with unknown op {:?}", String::from_utf8_lossy(other)),
            };
            op += u64::from(kind.modifies());
            trace.records.push(IoRecord {
                time_ns: u64::try_from(*time).context("a negative time")?,
                op,
                sector: u64::try_from(*sector).context("a negative sector")?,
                sectors: u32::try_from(*length).context("a negative length")?,
                kind,
            });
        }
    }
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The project's own traces, where they are at hand.
    #[test]
    fn reads_the_shared_traces() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces");
        let path = dir.join("dc-mysql.parquet");
        if !path.exists() {
            eprintln!("{} is not here: skipped", path.display());
            return;
        }
        let trace = Trace::read(&path).unwrap();
        let s = trace.summary();
        assert_eq!(trace.records.len(), 80_793);
        assert_eq!(s.kinds[1] * 100 / 80_793, 91);
        assert!((3599..3601).contains(&(s.duration_ns / 1_000_000_000)));
        assert_eq!((s.blocks_written * 4096) >> 20, 485);
    }

    #[test]
    fn what_is_no_parquet_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        std::fs::write(&path, b"PAR1 and then nothing of the sort").unwrap();
        assert!(Trace::read(&path).is_err());
    }
}
