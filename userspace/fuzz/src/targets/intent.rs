// SPDX-License-Identifier: GPL-2.0-only

//! Durable intent: the two copies of the map, and the log that is played back onto the newer one.

use std::collections::BTreeSet;

use presnap_engine::crc32c::crc32c;
use presnap_engine::region::intent::{
    replay, ExtentRun, LogRecord, INTENT_MAP_BYTES, LOG_RECORD_BYTES, LOG_RUNS,
};
use presnap_engine::region::layout::LOG_BLOCKS;
use presnap_engine::region::{Extents, IntentMap, Limits};

use crate::bytes::{mend, says, Input};

const LIMITS: Limits =
    Limits { region_uuid: [5; 16], slots: 2000, origin_blocks: 100_000, next_snapshot: 1 };
const EXTENTS: Extents = Extents::for_origin(LIMITS.origin_blocks);
/// Fields of map and record: offset and width.
const MAP_FIELDS: &[(usize, usize)] = &[(16, 8), (40, 8), (48, 4), (52, 4), (128, 8), (320, 8)];
const RECORD_FIELDS: &[(usize, usize)] = &[(4, 4), (8, 8), (28, 4), (32, 4), (36, 4)];

/// A structure: a byte of choices, its first fields, patches. Without input it is blank.
fn structure(
    input: &mut Input<'_>,
    bytes: usize,
    head: usize,
    fields: &[(usize, usize)],
    crc_at: usize,
) -> Vec<u8> {
    let mut out = vec![0; bytes];
    if input.is_empty() {
        return out;
    }
    let raw = input.u8() & 1 != 0;
    input.fill(&mut out, head);
    input.patch(&mut out);
    let numbers = [0, 1, 2, 64, 65, LOG_RUNS as u64, EXTENTS.count.into(), u64::MAX >> 1, u64::MAX];
    input.tie(&mut out, fields, &numbers);
    if !raw {
        mend(&mut out, crc_at);
    }
    out
}

fn map(input: &mut Input<'_>) -> Vec<u8> {
    structure(input, INTENT_MAP_BYTES, 136, MAP_FIELDS, 12)
}

/// An accepted map is one that could have been written, and has no extent beyond the origin.
fn sound(map: &IntentMap, bytes: &[u8]) {
    let mut again = Box::new([0xee; INTENT_MAP_BYTES]);
    map.encode(&mut again, LIMITS.region_uuid, IntentMap::masks(bytes), |b| crc32c(0, b));
    assert!(again[..] == *bytes, "{map:?} is not what was read");
    let highest = (0u32..)
        .zip(IntentMap::masks(bytes))
        .filter(|(_, mask)| *mask != 0)
        .map(|(i, mask)| i * 16 + mask.ilog2())
        .last();
    assert!(highest.is_none_or(|extent| extent < map.extents.count));
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (a, b) = (map(&mut input), map(&mut input));
    for bytes in [&a, &b] {
        match IntentMap::decode(bytes, &LIMITS) {
            Ok(map) => sound(&map, bytes),
            Err(e) => says(e),
        }
    }
    let mut ring = vec![0; LOG_BLOCKS as usize * LOG_RECORD_BYTES];
    let mut valid = BTreeSet::new();
    for _ in 0..3 {
        let record = structure(&mut input, LOG_RECORD_BYTES, 48, RECORD_FIELDS, 24);
        let seq = match LogRecord::decode(&record, EXTENTS, LIMITS.region_tag()) {
            Ok(decoded) => {
                let inside = |run: ExtentRun| run.len > 0 && run.start + run.len <= EXTENTS.count;
                assert!(decoded.runs().all(inside) && decoded.runs().count() <= LOG_RUNS);
                valid.insert(decoded.seq);
                decoded.seq
            }
            Err(e) => {
                says(e);
                input.u8().into()
            }
        };
        let at = (seq % LOG_BLOCKS) as usize * LOG_RECORD_BYTES;
        ring[at..at + LOG_RECORD_BYTES].copy_from_slice(&record);
    }
    let Ok(picked) = IntentMap::pick(&a, &b, &LIMITS) else { return };
    let mut added = 0u64;
    let replayed =
        replay(&ring, &picked.value, LIMITS.region_tag(), |run| added += u64::from(run.len));
    let log_seq = picked.value.log_seq;
    assert_eq!(replayed.last_seq - log_seq, replayed.records.into());
    assert!(u64::from(replayed.records) <= LOG_BLOCKS);
    // What was played back was there; what is left over means that something is lacking.
    assert!((log_seq + 1..=replayed.last_seq).all(|seq| valid.contains(&seq)));
    assert!(replayed.gap == (replayed.newest_seq > replayed.last_seq));
    assert!(added == 0 || replayed.records > 0);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut map = Box::new([0; INTENT_MAP_BYTES]);
    let header = IntentMap { seq: 4, log_seq: 1, extents: EXTENTS };
    header.encode(&mut map, LIMITS.region_uuid, [7, 0x8000].into_iter(), |b| crc32c(0, b));
    let map = [&[0], &map[..136], &[0]].concat();
    let mut out = vec![Vec::new(), map.clone(), [&map[..], &map].concat()];
    let mut all = [&map[..], &map].concat();
    for seq in 2..5 {
        let mut record = [0; LOG_RECORD_BYTES];
        let runs = [ExtentRun { start: 9, len: seq as u32 }, ExtentRun { start: 1562, len: 1 }];
        LogRecord::encode(&mut record, LIMITS.region_tag(), seq, EXTENTS, &runs, |b| crc32c(0, b));
        all.extend([&[0], &record[..48], &[0]].concat());
    }
    out.push(all);
    out
}
