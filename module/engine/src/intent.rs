// SPDX-License-Identifier: GPL-2.0-only

//! The order of intent's writes: which record of the log, or which map, may be written next.
//!
//! A write to the origin may be issued once a durable record, or a durable map, has its extents. Two rules make
//! that hold over any crash:
//! - One record is written at a time, so that the log on disk has no holes but its end.
//! - A record goes to a place of the ring only when the durable map has in it the record that lies there.

use crate::region::layout::LOG_BLOCKS;
use crate::region::Copy2;

/// A map is written when so many records of the log are in use, so that the log hardly ever waits for it.
const MAP_DUE: u64 = LOG_BLOCKS / 2;

/// See the module. Sequence numbers as in [`crate::region::intent`].
#[derive(Clone, Debug)]
pub struct IntentOrder {
    /// Last durable record.
    log_seq: u64,
    logging: bool,
    /// The durable map, and the last record in it.
    map_seq: u64,
    map_log_seq: u64,
    /// Where the next map goes.
    map_next: Copy2,
    /// The last record in the map that is being written.
    mapping: Option<u64>,
    /// Somebody wants a map: extents were taken away.
    wanted: bool,
}

/// A map to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapWrite {
    /// Where to.
    pub copy: Copy2,
    /// Its version.
    pub seq: u64,
    /// The last record that it has in it.
    pub log_seq: u64,
}

impl IntentOrder {
    /// Goes on from what was found on disk: the newer map, the copy it lies in, the last record of the log.
    pub const fn new(map_seq: u64, map_copy: Copy2, map_log_seq: u64, log_seq: u64) -> Self {
        Self {
            log_seq,
            logging: false,
            map_seq,
            map_log_seq,
            map_next: map_copy.other(),
            mapping: None,
            wanted: false,
        }
    }

    /// Whether anything is being written.
    pub const fn in_flight(&self) -> bool {
        self.logging || self.mapping.is_some()
    }

    /// Whether a map is due, is wanted, or is being written.
    pub const fn map_pending(&self) -> bool {
        self.wanted || self.mapping.is_some()
    }

    /// Asks for a map: something was taken away.
    pub fn want_map(&mut self) {
        self.wanted = true;
    }

    /// Begins a record and returns its number; `None` if one is being written, or the ring is full.
    pub fn begin_record(&mut self) -> Option<u64> {
        let seq = self.log_seq.saturating_add(1);
        if self.logging || seq > self.map_log_seq.saturating_add(LOG_BLOCKS) {
            return None;
        }
        self.logging = true;
        Some(seq)
    }

    /// The record is durable: its extents may be written to.
    pub fn record_durable(&mut self) {
        if core::mem::take(&mut self.logging) {
            self.log_seq = self.log_seq.saturating_add(1);
        }
    }

    /// Begins a map, if one is due or wanted and none is being written.
    ///
    /// It is to be made of the extents that are durable now: all records up to `log_seq` are in it.
    pub fn begin_map(&mut self) -> Option<MapWrite> {
        let used = self.log_seq.saturating_sub(self.map_log_seq);
        if self.mapping.is_some() || !(self.wanted || used >= MAP_DUE) {
            return None;
        }
        self.wanted = false;
        self.mapping = Some(self.log_seq);
        let seq = self.map_seq.saturating_add(1);
        Some(MapWrite { copy: self.map_next, seq, log_seq: self.log_seq })
    }

    /// The map is durable: records that it has in it may be overwritten.
    pub fn map_durable(&mut self) {
        if let Some(log_seq) = self.mapping.take() {
            self.map_seq = self.map_seq.saturating_add(1);
            self.map_log_seq = log_seq;
            self.map_next = self.map_next.other();
        }
    }

    /// A write failed. The region is not written to any more.
    pub fn failed(&mut self) {
        self.logging = false;
        self.mapping = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crc32c::crc32c;
    use crate::region::intent::{
        replay, ExtentRun, Extents, IntentMap, LogRecord, INTENT_MAP_BYTES, LOG_RECORD_BYTES,
    };
    use crate::region::Limits;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn one_record_at_a_time_and_never_over_what_is_needed() {
        let mut order = IntentOrder::new(1, Copy2::A, 0, 0);
        for seq in 1..=LOG_BLOCKS {
            assert_eq!(order.begin_record(), Some(seq));
            assert_eq!(order.begin_record(), None);
            order.record_durable();
        }
        assert_eq!(order.begin_record(), None);
        let map = order.begin_map().unwrap();
        assert_eq!(map, MapWrite { copy: Copy2::B, seq: 2, log_seq: LOG_BLOCKS });
        assert_eq!((order.begin_map(), order.begin_record()), (None, None));
        order.map_durable();
        assert_eq!(order.begin_record(), Some(LOG_BLOCKS + 1));
        assert_eq!(order.begin_map(), None);
        order.want_map();
        let map = order.begin_map().unwrap();
        // The record under way is not in it.
        assert_eq!(map, MapWrite { copy: Copy2::A, seq: 3, log_seq: LOG_BLOCKS });
    }

    const LIMITS: Limits =
        Limits { region_uuid: [5; 16], slots: 2000, origin_blocks: 64 * 200, next_snapshot: 1 };
    const EXTENTS: Extents = Extents::for_origin(LIMITS.origin_blocks);

    /// What is on disk: two maps and the log.
    #[derive(Clone)]
    struct Disk {
        maps: [Box<[u8; INTENT_MAP_BYTES]>; 2],
        log: Vec<u8>,
    }

    impl Disk {
        fn recover(&self) -> (BTreeSet<u32>, IntentOrder) {
            let [a, b] = &self.maps;
            let picked = IntentMap::pick(&a[..], &b[..], &LIMITS).unwrap();
            let bytes = &self.maps[picked.copy.index()][..];
            let mut set: BTreeSet<u32> = (0..)
                .zip(IntentMap::masks(bytes))
                .flat_map(|(i, mask)| {
                    (0..16).filter(move |b| mask >> b & 1 != 0).map(move |b| i * 16 + b)
                })
                .collect();
            let map = picked.value;
            let replayed = replay(&self.log, &map, LIMITS.region_tag(), |run| {
                set.extend(run.start..run.start + run.len);
            });
            assert!(!replayed.gap);
            (set, IntentOrder::new(map.seq, picked.copy, map.log_seq, replayed.last_seq))
        }
    }

    fn map_bytes(write: MapWrite, set: &BTreeSet<u32>) -> Box<[u8; INTENT_MAP_BYTES]> {
        let mut out = Box::new([0; INTENT_MAP_BYTES]);
        let header = IntentMap { seq: write.seq, log_seq: write.log_seq, extents: EXTENTS };
        let mask =
            |i: u32| (0..16).filter(|b| set.contains(&(i * 16 + b))).fold(0, |m, b| m | 1u16 << b);
        header.encode(&mut out, LIMITS.region_uuid, (0..13).map(mask), |b| crc32c(0, b));
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever is added and taken away, and wherever the power is cut with the writes under way torn: the extents
        /// that were durable are there, and what was taken away for good is not.
        #[test]
        fn survives_cuts(steps in prop::collection::vec((0u8..8, 0u32..200, any::<u64>()), 1..300)) {
            let fresh = MapWrite { copy: Copy2::A, seq: 1, log_seq: 0 };
            let mut disk = Disk {
                maps: [map_bytes(fresh, &BTreeSet::new()), Box::new([0; INTENT_MAP_BYTES])],
                log: vec![0; LOG_BLOCKS as usize * LOG_RECORD_BYTES],
            };
            let mut order = IntentOrder::new(1, Copy2::A, 0, 0);
            // Durable and relied on; on disk at most (not yet taken away by a map).
            let mut set = BTreeSet::<u32>::new();
            let mut at_most = BTreeSet::<u32>::new();
            let mut record: Option<(u64, u32, Vec<u8>)> = None;
            let mut map: Option<(MapWrite, BTreeSet<u32>)> = None;
            for (what, extent, random) in steps {
                match what {
                    0..=2 if record.is_none() => {
                        if let Some(seq) = order.begin_record() {
                            let mut bytes = [0; LOG_RECORD_BYTES];
                            let run = ExtentRun { start: extent, len: 1 };
                            LogRecord::encode(&mut bytes, LIMITS.region_tag(), seq, EXTENTS, &[run], |b| crc32c(0, b));
                            record = Some((seq, extent, bytes.to_vec()));
                        }
                    }
                    0..=3 => if let Some((seq, extent, bytes)) = record.take() {
                        let at = (seq % LOG_BLOCKS) as usize * LOG_RECORD_BYTES;
                        disk.log[at..at + LOG_RECORD_BYTES].copy_from_slice(&bytes);
                        order.record_durable();
                        set.insert(extent);
                        at_most.insert(extent);
                    },
                    4 => if set.remove(&extent) || random % 3 == 0 {
                        order.want_map();
                    },
                    5 => if map.is_none() {
                        map = order.begin_map().map(|write| (write, set.clone()));
                    },
                    6 => if let Some((write, content)) = map.take() {
                        disk.maps[write.copy.index()] = map_bytes(write, &content);
                        order.map_durable();
                        // What was added since lies in later records.
                        at_most = &content | &set;
                    },
                    _ => {
                        // The cut. Writes under way are whole, torn, or not there.
                        if let Some((seq, _, bytes)) = record.take() {
                            let at = (seq % LOG_BLOCKS) as usize * LOG_RECORD_BYTES;
                            let n = (random % 9) as usize * 512;
                            disk.log[at..at + n].copy_from_slice(&bytes[..n]);
                        }
                        if let Some((write, content)) = map.take() {
                            let n = (random >> 8) as usize % 65 * 512;
                            let bytes = map_bytes(write, &content);
                            disk.maps[write.copy.index()][..n].copy_from_slice(&bytes[..n]);
                        }
                        let (found, next) = disk.recover();
                        prop_assert!(found.is_superset(&set), "lost {:?}", &set - &found);
                        let surplus: Vec<_> = found.difference(&at_most).collect();
                        prop_assert!(surplus.len() <= 1, "came back: {surplus:?}");
                        order = next;
                        set = found.clone();
                        at_most = found;
                    }
                }
            }
        }
    }
}
