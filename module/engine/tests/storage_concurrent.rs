// SPDX-License-Identifier: GPL-2.0-only

//! Bitmap and ring: against plain models, and under real threads (loom_storage.rs explores all interleavings).
#![cfg(not(loom))]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use presnap_engine::bitmap::{leaf_words, summary_words, Bitmap};
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::ring::{RecordRing, RingSlot};
use proptest::prelude::*;

type Map = Bitmap<Vec<AtomicU64>, Vec<AtomicU64>>;

fn words(n: usize) -> Vec<AtomicU64> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

fn bitmap(bits: u64) -> Map {
    Bitmap::new(words(leaf_words(bits)), words(summary_words(bits)), bits).unwrap()
}

#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64),
    Clear(u64, u64),
    SetArea(u64, u16),
    ClearArea(u64, u16),
    ClearAll,
    Look(u64, u64),
}

fn ops(bits: u64) -> impl Strategy<Value = Vec<Op>> {
    let at = 0..bits + 20;
    let len = prop_oneof![0u64..4, 0u64..200, Just(u64::MAX)];
    let area = 0..bits / 16 + 3;
    let op = prop_oneof![
        6 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Set(at, len)),
        6 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Clear(at, len)),
        3 => (area.clone(), any::<u16>()).prop_map(|(area, mask)| Op::SetArea(area, mask)),
        3 => (area, any::<u16>()).prop_map(|(area, mask)| Op::ClearArea(area, mask)),
        1 => Just(Op::ClearAll),
        8 => (at, len).prop_map(|(at, len)| Op::Look(at, len)),
    ];
    prop::collection::vec(op, 1..60)
}

fn apply(map: &Map, model: &mut BTreeSet<u64>, op: Op) -> Result<(), TestCaseError> {
    let range = |at: u64, len: u64| at..at.saturating_add(len).min(map.bits()).max(at);
    let in_area = |area: u64, mask: u16| {
        (0..16)
            .filter(move |i| mask >> i & 1 != 0)
            .map(move |i| area * 16 + i)
            .filter(|&i| i < map.bits())
    };
    match op {
        Op::Set(at, len) => {
            let new = range(at, len).filter(|&i| model.insert(i)).count();
            prop_assert_eq!(map.set_range(at, len), new as u64);
        }
        Op::Clear(at, len) => {
            let cleared = range(at, len).filter(|i| model.remove(i)).count();
            prop_assert_eq!(map.clear_range(at, len), cleared as u64);
        }
        Op::SetArea(area, mask) => {
            let new = in_area(area, mask).filter(|&i| model.insert(i));
            let new = new.fold(0u16, |bits, i| bits | 1 << (i % 16));
            prop_assert_eq!(map.set_area(area, mask), new);
        }
        Op::ClearArea(area, mask) => {
            let cleared = in_area(area, mask).filter(|i| model.remove(i));
            let cleared = cleared.fold(0u16, |bits, i| bits | 1 << (i % 16));
            prop_assert_eq!(map.clear_area(area, mask), cleared);
        }
        Op::ClearAll => {
            prop_assert_eq!(map.clear_all(), model.len() as u64);
            model.clear();
        }
        Op::Look(at, len) => {
            prop_assert_eq!(map.test(at), model.contains(&at));
            prop_assert_eq!(map.all_set(at, len), range(at, len).all(|i| model.contains(&i)));
            prop_assert_eq!(map.any_set(at, len), range(at, len).any(|i| model.contains(&i)));
            prop_assert_eq!(map.next_set(at), model.range(at..).next().copied());
            let area = at / 16;
            prop_assert_eq!(map.next_area(area), model.range(area * 16..).next().map(|i| i / 16));
            let mask = (0..16).filter(|i| model.contains(&(area * 16 + i)));
            prop_assert_eq!(map.area_mask(area), mask.fold(0, |mask, i| mask | 1 << i));
        }
    }
    prop_assert_eq!(map.count(), model.len() as u64);
    Ok(())
}

proptest! {
    #[test]
    fn bitmap_behaves_like_a_set(
        (bits, ops) in prop_oneof![0u64..200, 4000u64..9000]
            .prop_flat_map(|bits| (Just(bits), ops(bits))),
    ) {
        let map = bitmap(bits);
        let mut model = BTreeSet::new();
        for op in ops {
            apply(&map, &mut model, op)?;
        }
    }
}

/// Each thread owns every fourth area. What it has set it must find, whatever the others set, clear and sweep.
#[test]
fn what_is_set_is_found() {
    const THREADS: u64 = 4;
    let map = bitmap(64 * 64 * 3);
    let areas = map.areas();
    thread::scope(|scope| {
        for own in 0..THREADS {
            let map = &map;
            scope.spawn(move || {
                let mut random = own + 1;
                for _ in 0..40_000 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let area = (random >> 33) % (areas / THREADS) * THREADS + own;
                    let bit = area * 16 + (random >> 60);
                    assert_eq!(map.set_range(bit, 1), 1);
                    let found = map.next_set(area * 16).unwrap();
                    assert_eq!(found, bit);
                    assert_eq!(map.next_area(area), Some(area));
                    let earlier = map.next_area(area.saturating_sub(random >> 40 & 255));
                    assert!(earlier.unwrap() <= area);
                    assert_eq!(map.clear_area(area, 0xffff).count_ones(), 1);
                }
            });
        }
    });
    assert_eq!((map.count(), map.next_set(0)), (0, None));
}

#[test]
fn ring_loses_nothing_uncounted() {
    const PRODUCERS: u64 = 3;
    const EACH: u64 = 20_000;
    for size in [4, 1024] {
        let ring = RecordRing::new((0..size).map(|_| RingSlot::new()).collect::<Vec<_>>()).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let (ring, done) = (&ring, &done);
            let producers: Vec<_> = (0..PRODUCERS)
                .map(|p| {
                    scope.spawn(move || {
                        for i in 0..EACH {
                            let n = p << 32 | i;
                            let kind = IoKind::from_wire((n % 5) as u8).unwrap();
                            ring.push(IoRecord {
                                time_ns: n,
                                op: !n,
                                sector: n ^ 0x5555,
                                sectors: i as u32,
                                kind,
                            });
                        }
                    })
                })
                .collect();
            for _ in 0..2 {
                scope.spawn(move || {
                    let (mut cursor, mut seen, mut lost) = (0, 0, 0);
                    let mut last = [None; PRODUCERS as usize];
                    let zero =
                        IoRecord { time_ns: 0, op: 0, sector: 0, sectors: 0, kind: IoKind::Read };
                    let mut out = [zero; 7];
                    loop {
                        let over = done.load(Ordering::Acquire);
                        let outcome = ring.read(&mut cursor, &mut out);
                        for r in &out[..outcome.count] {
                            let n = r.time_ns;
                            assert_eq!((r.op, r.sector), (!n, n ^ 0x5555));
                            assert_eq!((r.sectors, r.kind as u64), (n as u32, n % 5));
                            let last = &mut last[(n >> 32) as usize];
                            assert!(last.is_none_or(|last| last < n));
                            *last = Some(n);
                        }
                        seen += outcome.count as u64;
                        lost += outcome.lost;
                        assert_eq!(cursor, seen + lost);
                        if over && cursor == ring.head() {
                            break;
                        }
                    }
                    assert_eq!(seen + lost, PRODUCERS * EACH);
                });
            }
            for producer in producers {
                producer.join().unwrap();
            }
            done.store(true, Ordering::Release);
        });
    }
}
