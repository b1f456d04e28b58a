// SPDX-License-Identifier: GPL-2.0-only

//! What is remembered of the writes to each area, in bounded memory.
//!
//! A set-associative hash of eight ways holds an [`AreaState`] for every area that was written, and
//! one for every *region* of 16 areas (1 MiB), so that neighbours can be asked cheaply. All counters
//! decay lazily: they are valid at the area's last write and are brought forward when read. When a
//! set is full, the entry with the smallest 600 s counter goes: the study found that the signal is
//! in long memory, so a flood of areas written once must not flush the ones written again and again.
//!
//! A zeroed [`AreaState`] is an empty one, so zeroed memory is an empty table.

use crate::fixed::{decay, ns_to_ms, Tau};
use crate::geometry::{area_of, blocks_touched};
use crate::record::{IoKind, IoRecord};
use core::ops::{Deref, DerefMut};

/// Entries of a set.
pub const WAYS: usize = 8;
/// One write in the decayed counters.
pub const COUNT_ONE: u32 = 1 << 12;
/// Areas of a bio that are accounted; the rest of a huge one (a discard) is not.
pub const MAX_AREAS_PER_BIO: u64 = 64;
/// log2 of the areas of a region.
pub const REGION_AREAS_SHIFT: u32 = 4;
/// Writes to an area that follow each other faster than this are one visit: they change no gap.
pub const SAME_VISIT_MS: u64 = 200;

/// Tag in the key that tells a region from an area.
const REGION_TAG: u64 = 1 << 63;

/// The history of an area (or region), valid at its last write. All zero is an empty entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AreaState {
    /// Key of the entry plus one; 0 is empty.
    key: u64,
    /// Time of the last write.
    pub last_write_ms: u64,
    /// Time of the first write that is remembered.
    pub first_write_ms: u64,
    /// Writes, decayed with 10 s, in units of 1/[`COUNT_ONE`].
    pub d10: u32,
    /// Writes, decayed with 60 s.
    pub d60: u32,
    /// Writes, decayed with 600 s.
    pub d600: u32,
    /// Time between the last two visits, 0 if there was one only.
    pub last_gap_ms: u32,
    /// Running mean of the gaps (weight 1/4 for the newest), 0 if there is none.
    pub mean_gap_ms: u32,
    /// Writes since the first one.
    pub writes: u32,
    /// Visits since the first one: writes less than [`SAME_VISIT_MS`] apart are one visit.
    pub visits: u32,
    /// Time of the last read, in seconds plus one; 0 if none since the first write.
    last_read_s: u32,
}

impl AreaState {
    /// An empty entry.
    pub const EMPTY: Self = Self {
        key: 0,
        last_write_ms: 0,
        first_write_ms: 0,
        d10: 0,
        d60: 0,
        d600: 0,
        last_gap_ms: 0,
        mean_gap_ms: 0,
        writes: 0,
        visits: 0,
        last_read_s: 0,
    };

    /// Whether the entry holds nothing.
    pub const fn is_empty(&self) -> bool {
        self.key == 0
    }

    /// The area, `None` if the entry is empty or stands for a region.
    pub const fn area(&self) -> Option<u64> {
        if self.key == 0 || self.key & REGION_TAG != 0 {
            return None;
        }
        Some(self.key.wrapping_sub(1))
    }

    /// Time since the last write.
    pub const fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.last_write_ms)
    }

    /// Seconds since the last read, `None` if none is remembered.
    pub fn read_age_s(&self, now_ms: u64) -> Option<u64> {
        let at = self.last_read_s.checked_sub(1)?;
        Some((now_ms / 1000).saturating_sub(u64::from(at)))
    }

    /// The 10 s counter at `now_ms`.
    pub fn d10_at(&self, now_ms: u64) -> u32 {
        decay(self.d10, self.age_ms(now_ms), Tau::SECONDS_10)
    }

    /// The 60 s counter at `now_ms`.
    pub fn d60_at(&self, now_ms: u64) -> u32 {
        decay(self.d60, self.age_ms(now_ms), Tau::SECONDS_60)
    }

    /// The 600 s counter at `now_ms`.
    pub fn d600_at(&self, now_ms: u64) -> u32 {
        decay(self.d600, self.age_ms(now_ms), Tau::SECONDS_600)
    }

    /// Accounts a write that stands for `weight` like it.
    fn write(&mut self, now_ms: u64, weight: u32) {
        let gap = self.age_ms(now_ms);
        if self.writes == 0 {
            self.first_write_ms = now_ms;
            self.visits = 1;
        } else if gap >= SAME_VISIT_MS {
            let gap = u32::try_from(gap).unwrap_or(u32::MAX);
            self.mean_gap_ms = match self.last_gap_ms {
                0 => gap,
                _ => ((u64::from(self.mean_gap_ms) * 3 + u64::from(gap) + 2) / 4) as u32,
            };
            self.last_gap_ms = gap;
            self.visits = self.visits.saturating_add(1);
        }
        let count = COUNT_ONE.saturating_mul(weight);
        self.d10 = self.d10_at(now_ms).saturating_add(count);
        self.d60 = self.d60_at(now_ms).saturating_add(count);
        self.d600 = self.d600_at(now_ms).saturating_add(count);
        self.writes = self.writes.saturating_add(weight);
        self.last_write_ms = self.last_write_ms.max(now_ms);
    }
}

/// Set-associative table of [`AreaState`] in storage of the caller.
#[derive(Debug)]
pub struct ActivityTable<A> {
    entries: A,
    sets: u64,
    /// Entries that stand for areas.
    areas: usize,
    evictions: u64,
}

impl<A: Deref<Target = [AreaState]>> ActivityTable<A> {
    /// Takes over the storage, whose content must be zeroed or come from another table.
    ///
    /// Whole sets of [`WAYS`] entries are used. `None` if there is not even one.
    pub fn new(entries: A) -> Option<Self> {
        let sets = (entries.len() / WAYS) as u64;
        if sets == 0 || sets > 1 << 31 {
            return None;
        }
        let in_use = |n: usize, e: &AreaState| n.saturating_add(e.area().is_some().into());
        let areas = entries.iter().fold(0, in_use);
        Some(Self { entries, sets, areas, evictions: 0 })
    }

    /// Entries in all.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// How many entries had to go for others.
    pub const fn evictions(&self) -> u64 {
        self.evictions
    }

    /// The history of an area, `None` if it is not remembered.
    pub fn get(&self, area: u64) -> Option<&AreaState> {
        self.find(area_key(area))
    }

    /// The history of the region of 16 areas that holds `area`.
    pub fn region(&self, area: u64) -> Option<&AreaState> {
        self.find(region_key(area))
    }

    /// Fills `out` with remembered areas from the cursor on, and returns how many.
    ///
    /// The cursor starts at 0, is moved on, and is 0 again when the whole table has been seen.
    /// At most `8 * out.len() + 64` entries are looked at in one call.
    pub fn iter_active(&self, cursor: &mut usize, out: &mut [u64]) -> usize {
        let mut found = 0usize;
        let mut looked = 0usize;
        let limit = out.len().saturating_mul(8).saturating_add(64);
        let mut slots = out.iter_mut();
        let mut slot = slots.next();
        for entry in self.entries.iter().skip(*cursor) {
            if slot.is_none() || looked >= limit {
                *cursor = cursor.saturating_add(looked);
                return found;
            }
            looked = looked.saturating_add(1);
            if let Some(area) = entry.area() {
                if let Some(place) = slot {
                    *place = area;
                    found = found.saturating_add(1);
                }
                slot = slots.next();
            }
        }
        *cursor = 0;
        found
    }

    /// Number of areas remembered.
    pub const fn count(&self) -> usize {
        self.areas
    }

    fn set_start(&self, key: u64) -> usize {
        // The product of two numbers below 2^32 fits, and its upper half is below `sets`.
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((hash.wrapping_mul(self.sets) >> 32) as usize).wrapping_mul(WAYS)
    }

    fn find(&self, key: u64) -> Option<&AreaState> {
        let start = self.set_start(key);
        self.entries.get(start..start.wrapping_add(WAYS))?.iter().find(|e| e.key == key)
    }
}

impl<A: DerefMut<Target = [AreaState]>> ActivityTable<A> {
    /// Accounts a bio: O(areas touched), at most [`MAX_AREAS_PER_BIO`].
    ///
    /// A read marks areas that are remembered already and adds none.
    pub fn observe(&mut self, record: &IoRecord) {
        self.observe_weighted(record, 1);
    }

    /// Accounts a bio that stands for `weight` like it: of a flood, a sample is enough.
    pub fn observe_weighted(&mut self, record: &IoRecord, weight: u32) {
        let (block, blocks) = blocks_touched(record.sector, record.sectors);
        if blocks == 0 || record.kind == IoKind::Flush {
            return;
        }
        let first = area_of(block);
        let last = area_of(block.saturating_add(blocks - 1))
            .min(first.saturating_add(MAX_AREAS_PER_BIO - 1));
        let now_ms = ns_to_ms(record.time_ns);
        if record.kind.modifies() {
            for area in first..=last {
                self.write(area_key(area), now_ms, weight);
            }
            for region in first >> REGION_AREAS_SHIFT..=last >> REGION_AREAS_SHIFT {
                self.write(region_key(region << REGION_AREAS_SHIFT), now_ms, weight);
            }
        } else {
            let stamp = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX).saturating_add(1);
            for area in first..=last {
                if let Some(entry) = self.find_mut(area_key(area)) {
                    entry.last_read_s = stamp;
                }
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.fill(AreaState::EMPTY);
        self.areas = 0;
        self.evictions = 0;
    }

    fn find_mut(&mut self, key: u64) -> Option<&mut AreaState> {
        let start = self.set_start(key);
        self.entries.get_mut(start..start.wrapping_add(WAYS))?.iter_mut().find(|e| e.key == key)
    }

    fn write(&mut self, key: u64, now_ms: u64, weight: u32) {
        if let Some(entry) = self.find_mut(key) {
            entry.write(now_ms, weight);
            return;
        }
        let start = self.set_start(key);
        let Some(set) = self.entries.get_mut(start..start.wrapping_add(WAYS)) else { return };
        // An empty entry has counters of zero and is the oldest, so it is the first choice.
        let victim =
            set.iter_mut().min_by_key(|e| (!e.is_empty(), e.d600_at(now_ms), e.last_write_ms));
        if let Some(entry) = victim {
            if !entry.is_empty() {
                self.evictions = self.evictions.saturating_add(1);
            }
            let gone = usize::from(entry.area().is_some());
            *entry = AreaState { key, ..AreaState::EMPTY };
            entry.write(now_ms, weight);
            let come = usize::from(entry.area().is_some());
            self.areas = self.areas.saturating_add(come).saturating_sub(gone);
        }
    }
}

/// Key of an area. Areas are below 2^57 (sectors are 64-bit), so the tag bit is free.
const fn area_key(area: u64) -> u64 {
    (area & (REGION_TAG - 1)).saturating_add(1) & !REGION_TAG
}

const fn region_key(area: u64) -> u64 {
    (area >> REGION_AREAS_SHIFT).saturating_add(1) | REGION_TAG
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rec(ms: u64, kind: IoKind, block: u64, blocks: u32) -> IoRecord {
        IoRecord { time_ns: ms * 1_000_000, op: 0, sector: block * 8, sectors: blocks * 8, kind }
    }

    fn table(entries: usize) -> ActivityTable<Vec<AreaState>> {
        ActivityTable::new(vec![AreaState::EMPTY; entries]).unwrap()
    }

    #[test]
    fn an_entry_fits_a_cache_line() {
        assert!(core::mem::size_of::<AreaState>() <= 64);
        assert!(ActivityTable::new(vec![AreaState::EMPTY; 7]).is_none());
    }

    #[test]
    fn writes_are_counted_and_decay() {
        let mut t = table(64);
        t.observe(&rec(1_000, IoKind::Write, 16, 17));
        assert!(t.get(0).is_none());
        assert_eq!(t.get(1).unwrap().d10, COUNT_ONE);
        assert_eq!(t.get(2).unwrap().writes, 1);
        assert_eq!(t.region(2).unwrap().writes, 1);
        t.observe(&rec(11_000, IoKind::Write, 16, 1));
        let a = t.get(1).unwrap();
        assert_eq!((a.last_gap_ms, a.mean_gap_ms, a.writes, a.visits), (10_000, 10_000, 2, 2));
        assert!(a.d10.abs_diff(COUNT_ONE + 1507) <= 1, "{}", a.d10);
        assert!(a.d600 > a.d60 && a.d60 > a.d10);
        assert_eq!(a.age_ms(12_000), 1_000);
        // Within a visit the gap stays.
        t.observe(&rec(11_100, IoKind::WriteZeroes, 16, 1));
        let a = t.get(1).unwrap();
        assert_eq!((a.last_gap_ms, a.writes, a.visits), (10_000, 3, 2));
    }

    #[test]
    fn a_sample_counts_for_what_it_stands() {
        let (mut all, mut sampled) = (table(64), table(64));
        for i in 0..40 {
            all.observe(&rec(1_000 + i, IoKind::Write, 16, 1));
            if i % 8 == 0 {
                sampled.observe_weighted(&rec(1_000 + i, IoKind::Write, 16, 1), 8);
            }
        }
        let (a, s) = (*all.get(1).unwrap(), *sampled.get(1).unwrap());
        assert_eq!((a.writes, a.visits), (s.writes, s.visits));
        assert!(a.d10.abs_diff(s.d10) < COUNT_ONE / 4 && a.d600.abs_diff(s.d600) < COUNT_ONE / 4);
    }

    #[test]
    fn time_that_steps_back_is_harmless() {
        let mut t = table(64);
        t.observe(&rec(5_000, IoKind::Write, 0, 1));
        t.observe(&rec(4_000, IoKind::Write, 0, 1));
        let a = t.get(0).unwrap();
        assert_eq!((a.last_write_ms, a.writes, a.last_gap_ms), (5_000, 2, 0));
    }

    #[test]
    fn reads_add_nothing() {
        let mut t = table(64);
        t.observe(&rec(1_000, IoKind::Read, 0, 1));
        assert_eq!(t.count(), 0);
        t.observe(&rec(1_000, IoKind::Write, 0, 1));
        t.observe(&rec(3_000, IoKind::Read, 0, 1));
        assert_eq!(t.get(0).unwrap().read_age_s(8_000), Some(5));
        assert_eq!(t.get(0).unwrap().last_write_ms, 1_000);
    }

    #[test]
    fn a_huge_bio_is_capped() {
        let mut t = table(4096);
        t.observe(&rec(0, IoKind::Discard, 8, u32::MAX / 8));
        assert_eq!(t.count(), MAX_AREAS_PER_BIO as usize);
        t.observe(&IoRecord {
            time_ns: u64::MAX,
            op: 0,
            sector: u64::MAX,
            sectors: u32::MAX,
            kind: IoKind::Write,
        });
    }

    #[test]
    fn hot_areas_survive_a_flood() {
        let mut t = table(1024);
        // 100 areas written 20 times each over ten minutes.
        for round in 0..20 {
            for area in 0..100 {
                t.observe(&rec(round * 30_000, IoKind::Write, area * 16, 1));
            }
        }
        // 20,000 areas written once each.
        for i in 0..20_000u64 {
            t.observe(&rec(600_000 + i, IoKind::Write, (1000 + i * 16) * 16, 1));
        }
        let kept = (0..100).filter(|&a| t.get(a).is_some()).count();
        assert!(kept >= 98, "{kept}");
        assert!(t.evictions() > 10_000);
    }

    #[test]
    fn the_cursor_sees_every_area_once() {
        let mut t = table(1024);
        for area in 0..200 {
            t.observe(&rec(0, IoKind::Write, area * 16, 1));
        }
        let (mut cursor, mut seen) = (0, Vec::new());
        loop {
            let mut out = [0; 7];
            let n = t.iter_active(&mut cursor, &mut out);
            seen.extend_from_slice(&out[..n]);
            if cursor == 0 {
                break;
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
    }
}
