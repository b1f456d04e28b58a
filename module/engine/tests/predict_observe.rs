// SPDX-License-Identifier: GPL-2.0-only

//! Observation and scores: drift over long times, eviction, and any record whatever.

use presnap_engine::activity::{ActivityTable, AreaState, COUNT_ONE};
use presnap_engine::model::Model;
use presnap_engine::predictor::{Predictor, PredictorKind};
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::stream::{AreaAhead, StreamHead};
use proptest::prelude::*;
use std::collections::HashMap;

const MS: u64 = 1_000_000;

fn write(ms: u64, area: u64) -> IoRecord {
    IoRecord { time_ns: ms * MS, op: 0, sector: area * 128, sectors: 8, kind: IoKind::Write }
}

/// A year of writes at random distances: the counters stay within 0.1 % of the exact ones.
#[test]
fn counters_do_not_drift() {
    for mean_gap_ms in [3u64, 50, 1_000, 20_000, 400_000] {
        let mut table = ActivityTable::new(vec![AreaState::EMPTY; 8]).unwrap();
        let mut exact = [0f64; 3];
        let (mut now, mut last, mut x) = (0u64, 0u64, 12345u64);
        for _ in 0..80_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            now += (x >> 33) % (2 * mean_gap_ms + 1);
            for (value, tau) in exact.iter_mut().zip([10e3, 60e3, 600e3]) {
                *value = *value * (-((now - last) as f64) / tau).exp() + 1.0;
            }
            last = now;
            table.observe(&write(now, 1));
        }
        let a = table.get(1).unwrap();
        for (got, want) in [a.d10, a.d60, a.d600].into_iter().zip(exact) {
            let got = f64::from(got) / f64::from(COUNT_ONE);
            assert!((got - want).abs() < 0.001 * want, "gap {mean_gap_ms}: {got} {want}");
        }
        assert_eq!(a.writes, 80_000);
        // And they are all gone after a while, whatever they were.
        let later = now + 600_000 * 40;
        assert_eq!((a.d10_at(later), a.d60_at(later), a.d600_at(later)), (0, 0, 0));
    }
}

/// Under a flood far beyond the capacity, the table keeps the areas with the largest memory.
#[test]
fn eviction_keeps_the_long_memory() {
    let mut table = ActivityTable::new(vec![AreaState::EMPTY; 2048]).unwrap();
    let mut exact: HashMap<u64, (f64, u64)> = HashMap::new();
    let mut x = 1u64;
    for now in 0..300_000u64 {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let r = x >> 33;
        // Half of the writes go to 500 areas, the rest anywhere in 100,000.
        let area = if r & 1 == 0 { (r >> 1) % 500 * 32 } else { 20_000 + (r >> 1) % 100_000 * 16 };
        table.observe(&write(now * 10, area));
        let (value, last) = exact.entry(area).or_insert((0.0, now * 10));
        *value = *value * (-((now * 10 - *last) as f64) / 600e3).exp() + 1.0;
        *last = now * 10;
    }
    let kept = (0..500u64).filter(|a| table.get(a * 32).is_some()).count();
    assert!(kept == 500, "{kept}");
    for a in 0..500u64 {
        let state = table.get(a * 32).unwrap();
        let got = f64::from(state.d600) / f64::from(COUNT_ONE);
        let want = exact[&(a * 32)].0;
        assert!((got - want).abs() < 0.01 * want, "{got} {want}");
    }
}

#[test]
fn an_area_is_never_remembered_twice() {
    let mut table = ActivityTable::new(vec![AreaState::EMPTY; 64]).unwrap();
    for i in 0..10_000u64 {
        table.observe(&write(i, i * i % 97));
        let (mut cursor, mut all) = (0, Vec::new());
        loop {
            let mut out = [0; 64];
            let n = table.iter_active(&mut cursor, &mut out);
            all.extend_from_slice(&out[..n]);
            if cursor == 0 {
                break;
            }
        }
        let len = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), len);
    }
}

fn record() -> impl Strategy<Value = IoRecord> {
    let kind = prop::sample::select(vec![
        IoKind::Read,
        IoKind::Write,
        IoKind::Write,
        IoKind::Discard,
        IoKind::WriteZeroes,
        IoKind::Flush,
    ]);
    let number = prop_oneof![0..100_000u64, any::<u64>(), Just(u64::MAX)];
    let length = prop_oneof![0..4096u32, any::<u32>()];
    (number.clone(), number, length, kind).prop_map(|(time_ns, sector, sectors, kind)| IoRecord {
        time_ns,
        op: 0,
        sector,
        sectors,
        kind,
    })
}

proptest! {
    /// Whatever is observed, scoring answers, and a longer horizon is never less likely.
    #[test]
    fn any_record(
        records in prop::collection::vec(record(), 1..200),
        asks in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..20),
    ) {
        let mut p = Predictor::new(
            vec![AreaState::EMPTY; 128],
            vec![StreamHead::EMPTY; 256],
        ).unwrap();
        for r in &records {
            p.observe(r);
        }
        let mut out = [AreaAhead::default(); 32];
        for (area, now, horizon) in asks {
            for area in [area, records[0].sector >> 7] {
                p.features(area, now, horizon);
                for kind in PredictorKind::ALL {
                    let near = p.score(kind, None::<&Model<&[u8]>>, area, now, horizon / 2);
                    let far = p.score(kind, None::<&Model<&[u8]>>, area, now, horizon);
                    prop_assert!(near <= far, "{:?}", kind);
                }
            }
            prop_assert!(p.ahead(now, horizon, &mut out) <= out.len());
        }
    }

    /// What `ahead` names, `heading_for` knows too, not later than said.
    #[test]
    fn ahead_agrees_with_heading_for(
        streams in prop::collection::vec((0..10_000_000u64, 8u32..256, 1..50u64), 1..8),
        horizon_ms in 1..20_000u64,
    ) {
        let mut p = Predictor::new(
            vec![AreaState::EMPTY; 128],
            vec![StreamHead::EMPTY; 1024],
        ).unwrap();
        for i in 0..100u64 {
            for (start, sectors, every_ms) in &streams {
                let sector = start * 8 + i * u64::from(*sectors);
                let time_ns = i * every_ms * MS;
                p.observe(&IoRecord { time_ns, op: 0, sector, sectors: *sectors, kind: IoKind::Write });
            }
        }
        let now = 100 * MS;
        let mut out = [AreaAhead::default(); 4096];
        let n = p.ahead(now, horizon_ms * MS, &mut out);
        for a in &out[..n] {
            let known = p.streams().heading_for(a.area, now);
            prop_assert!(known.is_some_and(|k| k.eta_ns <= a.eta_ns));
            prop_assert!(a.eta_ns <= 2 * horizon_ms * MS + 1000 * MS || a.distance_blocks <= 16);
        }
    }
}
