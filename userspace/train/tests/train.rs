// SPDX-License-Identifier: GPL-2.0-only

//! The trainer from a trace file to a model that the engine runs.

use presnap_engine::features::FeatureVector;
use presnap_engine::model::Model;
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::trace::TraceHeader;
use presnap_traces::Writer;
use presnap_train::cli::{run, Args, FamilyArg};
use presnap_train::random::Random;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Ten areas written every 7 s, and thirty now and then.
fn load(seconds: u64) -> Vec<IoRecord> {
    let mut random = Random::new(9);
    let mut records = Vec::new();
    for ms in 0..seconds * 1000 {
        let mut write = |area: u64| {
            let sector = area * 1024 + random.below(8) * 8;
            let (time_ns, op) = (ms * 1_000_000, records.len() as u64 + 1);
            records.push(IoRecord { time_ns, op, sector, sectors: 8, kind: IoKind::Write });
        };
        if ms % 7000 < 10 {
            write(ms % 7000);
        }
        if ms % 1000 == 500 {
            let area = Random::new(ms).below(30);
            write(100 + area);
        }
    }
    records
}

fn trace(dir: &Path, records: &[IoRecord]) -> PathBuf {
    let path = dir.join("load.pst");
    let header =
        TraceHeader { start_realtime_ns: 1_000_000_000_000_000_000, ..TraceHeader::default() };
    let mut writer = Writer::new(File::create(&path).unwrap(), header).unwrap();
    records.iter().for_each(|r| writer.push(*r).unwrap());
    writer.finish().unwrap();
    path
}

fn args(from: &Path, out: PathBuf) -> Args {
    Args {
        from: vec![from.to_owned()],
        family: FamilyArg::Mlp,
        out,
        seed: 3,
        epochs: 5,
        interval: 30,
        json: false,
        quiet: true,
    }
}

#[test]
fn from_a_trace_to_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let from = trace(dir.path(), &load(240));
    let out = dir.path().join("models/x.psm");
    run(args(&from, out.clone())).unwrap();

    let blob = std::fs::read(&out).unwrap();
    let model = Model::parse(&blob[..]).unwrap();
    assert_eq!(model.widths().collect::<Vec<_>>(), [16, 8, 1]);
    assert_eq!((model.metadata().name(), model.metadata().seed), ("x", 3));
    assert_eq!(model.metadata().data_end_realtime_s, 1_000_000_239);
    assert!(model.metadata().ap_permille > model.metadata().ap_ewma_permille + 50);

    let card = std::fs::read_to_string(out.with_extension("card.json")).unwrap();
    let card: serde_json::Value = serde_json::from_str(&card).unwrap();
    assert_eq!(card["bytes"], blob.len());
    assert_eq!(card["crc32c"], format!("{:08x}", model.checksum()));
    assert!(card["int8_ap_loss"].as_f64().unwrap() < 0.05);
    let text = std::fs::read_to_string(out.with_extension("card.txt")).unwrap();
    assert!(text.contains("presnap train --from") && text.contains("ewma"));

    let vectors = std::fs::read_to_string(out.with_extension("vectors")).unwrap();
    let mut count = 0;
    for line in vectors.lines().filter(|l| !l.starts_with('#')) {
        let (features, want) = line.split_once(" = ").unwrap();
        let features: Vec<i16> = features.split(' ').map(|w| w.parse().unwrap()).collect();
        let features = FeatureVector(features.try_into().unwrap());
        assert_eq!(model.infer(&features).0, want.parse::<u16>().unwrap());
        count += 1;
    }
    assert_eq!(count, 256);

    // Once more into another directory: the same model and vectors, byte for byte.
    let again = dir.path().join("again/x.psm");
    run(args(&from, again.clone())).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), blob);
    assert_eq!(std::fs::read_to_string(again.with_extension("vectors")).unwrap(), vectors);
}

#[test]
fn a_linear_model() {
    let dir = tempfile::tempdir().unwrap();
    let from = trace(dir.path(), &load(60));
    let out = dir.path().join("l.psm");
    run(Args { family: FamilyArg::Linear, epochs: 1, ..args(&from, out.clone()) }).unwrap();
    let model = Model::parse(std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((model.family().name(), model.multiplications()), ("linear", 24));
}

#[test]
fn what_cannot_be_learned_from_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.psm");
    let refused = |from: &Path| format!("{:#}", run(args(from, out.clone())).unwrap_err());
    let from = trace(dir.path(), &load(5));
    assert!(refused(&from).contains("too few"), "{}", refused(&from));
    let burst: Vec<_> =
        load(200).iter().map(|r| IoRecord { time_ns: r.time_ns / 100, ..*r }).collect();
    let from = trace(dir.path(), &burst);
    assert!(refused(&from).contains("too short"), "{}", refused(&from));
    std::fs::write(&from, "not a trace").unwrap();
    assert!(refused(&from).contains("load.pst"), "{}", refused(&from));
    assert!(refused(&dir.path().join("none")).contains("cannot read"));
    assert!(!out.exists());
}
