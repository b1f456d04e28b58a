// SPDX-License-Identifier: GPL-2.0-only

//! Damaged and forged trace files of both kinds: read as far as they are good, or refused with words; never a panic, and
//! never more memory than the file could fill.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::trace::TraceHeader;
use presnap_fuzz::bytes::{get_u32, mend, put_u32};
use presnap_traces::{Trace, Writer};

const FILES: u64 = 3000;

fn record(i: u64) -> IoRecord {
    let kind = if i % 3 == 0 { IoKind::Read } else { IoKind::Write };
    IoRecord { time_ns: i * 1000, op: i, sector: i * 7919 % 10_000, sectors: 8, kind }
}

fn compact(path: &Path) -> Vec<u8> {
    let header = TraceHeader { origin_sectors: 10_008, ..TraceHeader::default() };
    let mut w = Writer::new(File::create(path).expect("made"), header).expect("begun");
    for i in 0..400 {
        w.push(record(i)).expect("written");
        if i % 100 == 99 {
            w.flush().expect("written");
        }
    }
    assert_eq!(w.finish().expect("written"), 400);
    std::fs::read(path).expect("read")
}

fn parquet(path: &Path) -> Vec<u8> {
    let schema = "message t { required int64 t_ns; required binary op (UTF8); required int64 sector; required int32 nsectors; }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let properties = Arc::new(WriterProperties::builder().build());
    let file = File::create(path).expect("made");
    let mut w = SerializedFileWriter::new(file, schema, properties).expect("begun");
    for group in 0..2 {
        let records: Vec<_> = (group * 200..group * 200 + 200).map(record).collect();
        let mut rows = w.next_row_group().expect("a group");
        let times: Vec<_> = records.iter().map(|r| r.time_ns as i64).collect();
        let kinds: Vec<_> = records
            .iter()
            .map(|r| ByteArray::from(if r.kind == IoKind::Read { "R" } else { "W" }))
            .collect();
        let sectors: Vec<_> = records.iter().map(|r| r.sector as i64).collect();
        let lengths: Vec<_> = records.iter().map(|r| r.sectors as i32).collect();
        macro_rules! column {
            ($kind:ty, $values:expr) => {
                let mut column = rows.next_column().expect("a column").expect("one more");
                column.typed::<$kind>().write_batch($values, None, None).expect("written");
                column.close().expect("written");
            };
        }
        column!(Int64Type, &times);
        column!(ByteArrayType, &kinds);
        column!(Int64Type, &sectors);
        column!(Int32Type, &lengths);
        rows.close().expect("written");
    }
    w.close().expect("written");
    std::fs::read(path).expect("read")
}

/// Changes some bytes, mostly of the last ones if `tail` (where Parquet says what is where), or cuts the file.
fn forge(rng: &mut fastrand::Rng, good: &[u8], tail: usize) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..rng.usize(1..5) {
        let near_end = tail > 0 && rng.u8(..3) > 0;
        let at =
            if near_end { bytes.len() - 1 - rng.usize(..tail) } else { rng.usize(..bytes.len()) };
        bytes[at] = match rng.u8(..4) {
            0 => rng.u8(..),
            1 => [0, 1, 0x7f, 0x80, 0xff][rng.usize(..5)],
            _ => bytes[at] ^ 1 << rng.u8(..8),
        };
    }
    match rng.u8(..20) {
        0 => bytes.truncate(rng.usize(..bytes.len())),
        1 => bytes.extend(good),
        _ => {}
    }
    bytes
}

/// Reads it; returns the number of records.
fn read(path: &Path, bytes: &[u8], what: &str) -> Option<usize> {
    std::fs::write(path, bytes).expect("written");
    match Trace::read(path) {
        Ok(trace) => {
            let s = trace.summary();
            assert_eq!(s.kinds.iter().sum::<u64>(), trace.records.len() as u64, "{what}");
            assert!(trace.damage.is_none_or(|words| words.len() > 10), "{what}");
            Some(trace.records.len())
        }
        Err(e) => {
            assert!(format!("{e:#}").len() > 10, "{what}");
            None
        }
    }
}

#[test]
fn compact_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("t");
    let good = compact(&path);
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut whole, mut part) = (0, 0);
    for no in 0..FILES {
        let mut bytes = forge(&mut rng, &good, 0);
        // With good checksums, most often.
        let blocks = if no % 4 == 0 || bytes.len() < 64 { bytes.len() } else { 64 };
        if blocks == 64 {
            mend(&mut bytes[..64], 12);
        }
        let mut at = blocks;
        while let Some(block) = bytes.get_mut(at..).filter(|b| b.len() > 40) {
            let len = (40 + get_u32(block, 8) as usize).clamp(41, block.len());
            put_u32(block, 8, len as u32 - 40);
            mend(&mut block[..len], 4);
            at += len;
        }
        match read(&path, &bytes, &format!("file {no}")) {
            Some(400) => whole += 1,
            Some(_) => part += 1,
            None => {}
        }
    }
    println!("{whole} read whole, {part} in part, of {FILES}");
    assert!(whole > 50 && part > 50);
}

#[test]
fn parquet_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("t");
    let good = parquet(&path);
    assert_eq!(read(&path, &good, "the good one"), Some(400));
    let mut rng = fastrand::Rng::with_seed(2);
    let mut taken = 0;
    for no in 0..FILES {
        let bytes = forge(&mut rng, &good, 600);
        taken += u32::from(read(&path, &bytes, &format!("file {no}")).is_some());
    }
    println!("{taken} of {FILES} taken");
    assert!(taken > 50);
}
