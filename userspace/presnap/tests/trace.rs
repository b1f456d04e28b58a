// SPDX-License-Identifier: GPL-2.0-only

//! Traces: info, convert and replay on files.

mod common;

use std::fs::File;

use common::{ok, path, presnap, refused};
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::trace::TraceHeader;
use presnap_traces::{Trace, Writer};
use serde_json::Value;

fn write_trace(file: &std::path::Path, records: &[IoRecord]) {
    let header = TraceHeader { origin_sectors: 1 << 20, ..TraceHeader::default() };
    let mut w = Writer::new(File::create(file).expect("made"), header).expect("begun");
    records.iter().for_each(|r| w.push(*r).expect("written"));
    w.finish().expect("finished");
}

fn records() -> Vec<IoRecord> {
    let kinds = [IoKind::Write, IoKind::Read, IoKind::Write, IoKind::Flush, IoKind::WriteZeroes];
    (0..500u64)
        .map(|i| IoRecord {
            time_ns: 5_000_000_000 + i * 1_000_000,
            op: i,
            sector: i * 4001,
            sectors: 8 + (i % 3) as u32 * 8,
            kind: kinds[(i % 5) as usize],
        })
        .collect()
}

#[test]
fn info_convert_and_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write_trace(&a, &records());
    let info: Value =
        serde_json::from_str(&ok(presnap(&["trace", "info", path(&a), "--json"]))).expect("JSON");
    assert_eq!((&info["records"], &info["writes"]), (&500.into(), &200.into()));
    ok(presnap(&["trace", "convert", path(&a), path(&b)]));
    assert_eq!(std::fs::read(&a).expect("read"), std::fs::read(&b).expect("read"));
    let bytes = std::fs::read(&a).expect("read");
    std::fs::write(&a, &bytes[..bytes.len() - 1]).expect("written");
    assert!(ok(presnap(&["trace", "info", path(&a)])).contains("only the start is readable"));
    std::fs::write(&a, &bytes[..20]).expect("written");
    refused(presnap(&["trace", "info", path(&a)]), "cut short");
    std::fs::write(&a, b"PAR1 no parquet").expect("written");
    refused(presnap(&["trace", "info", path(&a)]), path(&a));
    refused(presnap(&["trace", "info", "/nonexistent"]), "/nonexistent");
}

#[test]
fn replay() {
    let dir = tempfile::tempdir().expect("a directory");
    let (trace, target) = (dir.path().join("t"), dir.path().join("target"));
    write_trace(&trace, &records());
    File::create(&target).and_then(|f| f.set_len(8 << 20)).expect("made");
    let args = ["trace", "replay", path(&trace), path(&target), "--speed", "max", "--json"];
    let report: Value = serde_json::from_str(&ok(presnap(&args))).expect("JSON");
    assert_eq!((&report["requests"], &report["errors"]), (&500.into(), &0.into()));
    assert_eq!(report["writes"]["count"], 200);
    assert!(std::fs::read(&target).expect("read").iter().any(|&b| b != 0));
    assert_eq!(std::fs::metadata(&target).expect("there").len(), 8 << 20);
    refused(presnap(&args), "--force");
    // In real time, and a part only: half a second of trace at ten times the speed.
    let args = [
        "trace",
        "replay",
        path(&trace),
        path(&target),
        "--force",
        "--speed",
        "10",
        "--from",
        "0.1",
        "--seconds",
        "0.2",
        "--no-reads",
        "--json",
    ];
    let report: Value = serde_json::from_str(&ok(presnap(&args))).expect("JSON");
    assert_eq!(report["requests"], 160);
    assert!(report["seconds"].as_f64().is_some_and(|s| s > 0.015));
    let small = dir.path().join("small");
    std::fs::write(&small, vec![0; 4096]).expect("written");
    refused(presnap(&["trace", "replay", path(&trace), path(&small)]), "too few");
    write_trace(&trace, &[]);
    refused(
        presnap(&["trace", "replay", path(&trace), path(&target), "--force"]),
        "nothing to replay",
    );
}

#[test]
fn shared_parquet_traces_convert() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/traces/dc-mysql.parquet");
    if !file.exists() {
        eprintln!("{} is not here: skipped", file.display());
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("t");
    ok(presnap(&["trace", "convert", path(&file), path(&out)]));
    assert_eq!(Trace::read(&file).expect("read").records, Trace::read(&out).expect("read").records);
}
