// SPDX-License-Identifier: GPL-2.0-only

//! Bitmap and ring under every interleaving that loom can find.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release --test loom_storage`.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use presnap_engine::bitmap::{AtomicU64, Bitmap};
use presnap_engine::record::{IoKind, IoRecord};
use presnap_engine::ring::{RecordRing, RingSlot};

type Map = Bitmap<Vec<AtomicU64>, Vec<AtomicU64>>;

fn bitmap() -> Arc<Map> {
    let words = || vec![AtomicU64::new(0)];
    Arc::new(Bitmap::new(words(), words(), 64).unwrap())
}

/// Explores with at most `preemptions` involuntary switches, all if `None`.
fn explore(preemptions: Option<usize>, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(body);
}

/// One sets and looks while another clears, which empties the word, and sweeps it.
#[test]
fn a_set_bit_survives_a_sweep() {
    explore(None, || {
        let map = bitmap();
        map.set_range(1, 1);
        let other = map.clone();
        let sweeper = thread::spawn(move || {
            other.clear_range(1, 1);
            other.next_set(0);
        });
        map.set_range(0, 1);
        assert_eq!(map.next_set(0), Some(0));
        sweeper.join().unwrap();
        assert_eq!((map.next_set(0), map.count()), (Some(0), 1));
    });
}

/// The word is empty under a set summary bit; one sweeps, one sets, a third looks after that.
#[test]
fn a_search_during_a_sweep_finds() {
    explore(Some(3), || {
        let map = bitmap();
        map.set_range(1, 1);
        map.clear_range(1, 1);
        let other = map.clone();
        let sweeper = thread::spawn(move || {
            other.next_set(0);
        });
        let other = map.clone();
        let setter = thread::spawn(move || {
            other.set_range(0, 1);
        });
        // Sets the same bit: when that returns the bit is set, by whomever.
        map.set_range(0, 1);
        assert_eq!(map.next_area(0), Some(0));
        sweeper.join().unwrap();
        setter.join().unwrap();
        assert_eq!((map.next_set(0), map.count()), (Some(0), 1));
    });
}

/// Two sweep at once while a third sets and looks.
#[test]
fn two_sweeps_at_once() {
    explore(Some(3), || {
        let map = bitmap();
        map.set_range(1, 1);
        map.clear_range(1, 1);
        let sweepers: Vec<_> = (0..2)
            .map(|_| {
                let map = map.clone();
                thread::spawn(move || {
                    map.next_set(0);
                })
            })
            .collect();
        map.set_range(0, 1);
        assert_eq!(map.next_set(0), Some(0));
        for sweeper in sweepers {
            sweeper.join().unwrap();
        }
        assert_eq!(map.next_set(0), Some(0));
    });
}

/// Every bit is newly set, and newly cleared, by exactly one.
#[test]
fn each_change_is_counted_once() {
    explore(None, || {
        let map = bitmap();
        let other = map.clone();
        let first = thread::spawn(move || other.set_range(0, 4) - other.clear_range(2, 2));
        let second = map.set_range(2, 4) - map.clear_area(0, 0x0001 << 2) as u64 / 4;
        let sum = first.join().unwrap() + second;
        let left = (0..64).filter(|&i| map.test(i)).count() as u64;
        assert_eq!((sum, map.count()), (left, left));
    });
}

fn record(n: u64) -> IoRecord {
    IoRecord { time_ns: n, op: n, sector: n, sectors: n as u32, kind: IoKind::Write }
}

fn ring(slots: usize) -> Arc<RecordRing<Vec<RingSlot>>> {
    Arc::new(RecordRing::new((0..slots).map(|_| RingSlot::new()).collect::<Vec<_>>()).unwrap())
}

/// Reads what is there; no record may be torn. Returns (records, lost).
fn drain(ring: &RecordRing<Vec<RingSlot>>, cursor: &mut u64) -> (Vec<u64>, u64) {
    let mut out = [record(0); 4];
    let outcome = ring.read(cursor, &mut out);
    let seen: Vec<_> = out[..outcome.count].iter().map(|r| r.op).collect();
    for r in &out[..outcome.count] {
        assert_eq!(*r, record(r.op));
    }
    (seen, outcome.lost)
}

/// A reader runs beside a producer that overwrites the slot it reads.
#[test]
fn no_torn_record() {
    explore(Some(3), || {
        let ring = ring(1);
        let other = ring.clone();
        let producer = thread::spawn(move || {
            other.push(record(1));
            other.push(record(2));
        });
        let mut cursor = 0;
        let (mut seen, mut lost) = drain(&ring, &mut cursor);
        producer.join().unwrap();
        let rest = drain(&ring, &mut cursor);
        seen.extend(rest.0);
        lost += rest.1;
        assert_eq!((seen.len() as u64 + lost, cursor), (2, 2));
        assert!(seen.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(seen.last(), Some(&2));
    });
}

/// Producers that meet in a slot: none waits, none spoils the other's record, all losses are counted.
#[test]
fn producers_that_lap_each_other() {
    explore(Some(2), || {
        let ring = ring(1);
        let producers: Vec<_> = (1..3)
            .map(|n| {
                let ring = ring.clone();
                thread::spawn(move || ring.push(record(n)))
            })
            .collect();
        let mut cursor = 0;
        let (mut seen, mut lost) = drain(&ring, &mut cursor);
        ring.push(record(3));
        for producer in producers {
            producer.join().unwrap();
        }
        let rest = drain(&ring, &mut cursor);
        seen.extend(rest.0);
        lost += rest.1;
        assert_eq!((seen.len() as u64 + lost, cursor), (3, 3));
    });
}

/// Producers in different slots: nothing is lost.
#[test]
fn producers_side_by_side() {
    explore(Some(3), || {
        let ring = ring(2);
        let other = ring.clone();
        let producer = thread::spawn(move || other.push(record(1)));
        ring.push(record(2));
        let mut cursor = 0;
        let (mut seen, lost) = drain(&ring, &mut cursor);
        producer.join().unwrap();
        let rest = drain(&ring, &mut cursor);
        seen.extend(rest.0);
        seen.sort_unstable();
        assert_eq!((seen, lost + rest.1), (vec![1, 2], 0));
    });
}
