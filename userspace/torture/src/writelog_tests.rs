// SPDX-License-Identifier: GPL-2.0-only

//! Losses from a small log.

use super::*;
use crate::sector::fill;

const PAGE: usize = 4096;

/// A log of 4096-byte sectors: each entry is (sector, sectors, flags, the byte its data consist of).
fn log(name: &str, entries: &[(u64, u64, u64, u8)]) -> WriteLog {
    try_log(name, entries, entries.len()).unwrap()
}

/// One whose head speaks of `n` entries.
fn try_log(name: &str, entries: &[(u64, u64, u64, u8)], n: usize) -> Result<WriteLog> {
    let page = |words: [u64; 4], mark: &str| {
        let mut page = vec![0; PAGE];
        for (to, word) in page.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        page[32..32 + mark.len()].copy_from_slice(mark.as_bytes());
        page
    };
    let mut bytes = page([MAGIC, 1, n as u64, PAGE as u64], "");
    for &(sector, sectors, flags, data) in entries {
        let mark = if flags == MARK { "m" } else { "" };
        bytes.extend(page([sector, sectors, flags, mark.len() as u64], mark));
        if flags & DISCARD == 0 {
            bytes.extend(vec![data; sectors as usize * PAGE]);
        }
    }
    let path = std::env::temp_dir().join(format!("writelog-{name}-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let log = WriteLog::open(&path);
    std::fs::remove_file(&path).unwrap();
    log
}

#[test]
fn a_log_goes_on_behind_its_number() {
    let blank = (0, 0, 0, 0);
    let entries =
        [(0, 1, 0, 7), (0, 0, FLUSH, 0), (2, 1, 0, 8), (1, 1, DISCARD, 0), blank, (0, 1, 0, 9)];
    let mut log = try_log("on", &entries, 2).unwrap();
    assert_eq!(log.entries.len(), 2);
    log.read_on(24);
    assert_eq!(log.entries.len(), 4);
    let mut state = state(3);
    log.apply(2, |_| true, &mut |sector, data| state.put(sector, data)).unwrap();
    assert_eq!(pages(&state), [0, 0, 8]);
    // One that lies beyond the end of the disk is none.
    let mut log = try_log("beyond", &entries, 2).unwrap();
    log.read_on(16);
    assert_eq!(log.entries.len(), 2);
    // What is missing before the number cannot be skipped.
    assert!(try_log("hole", &entries, 6).is_err());
}

fn state(pages: usize) -> State {
    State(Buffer::new(pages * PAGE))
}

/// The first byte of each page.
fn pages(state: &State) -> Vec<u8> {
    state.0.chunks(PAGE).map(|page| page[0]).collect()
}

#[test]
fn entries_are_replayed_in_order() {
    let entries =
        [(0, 2, 0, 7), (0, 0, FLUSH, 0), (0, 0, MARK, 0), (1, 1, FUA, 8), (0, 1, DISCARD, 0)];
    let mut log = log("order", &entries);
    assert_eq!(log.entries[2].mark.as_deref(), Some("m"));
    let mut state = state(3);
    for i in 0..log.entries.len() {
        log.apply(i, |_| true, &mut |sector, data| state.put(sector, data)).unwrap();
    }
    assert_eq!(pages(&state), [0, 8, 0]);
    assert!(state.put(24, &[0; SECTOR]).is_err());
}

#[test]
fn a_flush_loses_its_batch_and_a_fua_write_itself() {
    let entries = [
        (0, 1, FUA, 1),
        (1, 1, 0, 2),
        (2, 1, 0, 3),
        (0, 0, FLUSH, 0),
        (0, 0, FLUSH, 0),
        (3, 1, FUA, 4),
    ];
    let mut log = log("batch", &entries);
    let mut rng = Rng::new(1);
    let points = choose(&log, 1, 1 << 40, None, &mut rng);
    let point = |durable, end, loss| Point { durable, end, loss };
    assert_eq!(
        points,
        [
            point(1, 4, Loss::Batch),
            point(1, 4, Loss::Batch),
            point(4, 4, Loss::Nothing),
            point(5, 6, Loss::Fua),
            point(6, 6, Loss::Nothing)
        ]
    );
    assert_eq!(choose(&log, 1, 1 << 40, Some(3), &mut rng).len(), 3);
    // All combinations turn up, and nothing else.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..400 {
        let mut state = state(4);
        lose(&mut log, points[0], &mut rng, &mut |sector, data| state.put(sector, data)).unwrap();
        seen.insert(pages(&state));
    }
    let all = [[0, 0, 0, 0], [0, 0, 3, 0], [0, 2, 0, 0], [0, 2, 3, 0]];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
    // A FUA write may be torn.
    let mut torn = false;
    for _ in 0..100 {
        let mut state = state(4);
        lose(&mut log, points[3], &mut rng, &mut |sector, data| state.put(sector, data)).unwrap();
        let last: Vec<u8> = state.0[3 * PAGE..].chunks(SECTOR).map(|s| s[0]).collect();
        torn |= last.contains(&0) && last.contains(&4);
        assert_eq!(pages(&state)[..3], [0, 0, 0]);
    }
    assert!(torn);
}

#[test]
fn metadata_are_told_from_data() {
    let entries =
        [(5, 1, FUA, 0), (10, 8, FUA, 0), (60, 1, FUA, 0), (138, 1, FUA, 0), (400, 1, FUA, 0)];
    let log = log("class", &entries);
    let class: Vec<usize> = (0..5).map(|i| log.class(i..i + 1, 80)).collect();
    // The region begins at block 10.
    assert_eq!(class, [2, 1, 0, 1, 2]);
    // A write to the origin behind an intent, both in the cache; or before it.
    assert_eq!((log.class(0..3, 80), log.class(2..5, 80)), (1, 1));
    let entries = [(60, 1, 0, 0), (5, 1, 0, 0), (0, 0, FLUSH, 0)];
    assert_eq!(self::log("intent", &entries).class(0..3, 80), 0);
}

#[test]
fn the_newer_of_two_writes_stays() {
    let mut state = state(1);
    let sector = |stamp| {
        let mut bytes = vec![0; SECTOR];
        fill(&mut bytes, 3, stamp, 1, 0, 0);
        bytes
    };
    for (stamp, stays) in [(5, 5), (4, 5), (6, 6)] {
        state.put(2, &sector(stamp)).unwrap();
        assert_eq!(state.0[2 * SECTOR..3 * SECTOR], sector(stays), "{stamp}");
    }
    state.put(2, &[9; SECTOR]).unwrap();
    assert_eq!(state.0[2 * SECTOR], 9);
}
