// SPDX-License-Identifier: GPL-2.0-only

//! Sequential streams, and the areas that lie ahead of them.
//!
//! Bulk writes go to areas nobody has seen, so their history cannot predict them; the stream that
//! leads there can. Every write starts or moves a stream *head*, kept in a hash of thousands, so
//! that random writes do not flush the streams (a table of 64 reached no area at all in the study).
//! A head that has come far enough ([`GATE_SECTORS`]) becomes a *leader*; only leaders look ahead,
//! by twice what their measured rate covers within the horizon, and no further than twice their
//! length so far, because most streams stop.
//!
//! The caller's storage holds both: the first part the leaders, the rest the hash. Zeroed memory is
//! an empty table.

use crate::fixed::ns_to_ms;
use crate::geometry::{AREA_BLOCKS_SHIFT, BLOCK_SECTORS_SHIFT};
use crate::record::{IoKind, IoRecord};
use core::ops::{Deref, DerefMut};

/// A stream this long (256 KiB) may look ahead.
pub const GATE_SECTORS: u64 = 512;
/// A stream of this many writes may look ahead.
pub const GATE_WRITES: u32 = 4;
/// A stream that has not moved for this long is dead.
pub const LIVE_MS: u64 = 15_000;
/// Most sectors that are looked ahead (64 MiB).
pub const DEPTH_MAX_SECTORS: u64 = 131_072;
/// Leaders at most.
pub const LEADERS: usize = 64;

/// Entries of a set of the hash.
const WAYS: usize = 8;
/// How far from the expected sector a write may start and still continue the stream (64 KiB).
const SLACK_SECTORS: u64 = 128;
/// log2 of the sectors of a hash bucket (1 MiB): a stream changes its set once a mebibyte.
const BUCKET_SHIFT: u32 = 11;
/// log2 of the sectors of an area.
const AREA_SHIFT: u32 = BLOCK_SECTORS_SHIFT + AREA_BLOCKS_SHIFT;
/// The rate is measured over this time at most; after it, the past counts half.
const WINDOW_MS: u64 = 16_000;
/// The shortest time a rate is measured over.
const WINDOW_MIN_MS: u64 = 100;

/// A front that no sector is near.
const NO_LEADER: u64 = 1 << 63;

/// The front of a sequential stream. All zero is an empty entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamHead {
    /// The sector after the last write.
    next_sector: u64,
    last_ms: u64,
    window_start_ms: u64,
    window_sectors: u64,
    /// Sectors the stream has come so far.
    sectors: u64,
    writes: u32,
}

impl StreamHead {
    /// An empty entry.
    pub const EMPTY: Self = Self {
        next_sector: 0,
        last_ms: 0,
        window_start_ms: 0,
        window_sectors: 0,
        sectors: 0,
        writes: 0,
    };

    const fn is_empty(&self) -> bool {
        self.writes == 0
    }

    const fn front(&self) -> u64 {
        if self.is_empty() {
            NO_LEADER
        } else {
            self.next_sector
        }
    }

    const fn is_live(&self, now_ms: u64) -> bool {
        self.writes != 0 && now_ms.saturating_sub(self.last_ms) <= LIVE_MS
    }

    const fn passes_gate(&self) -> bool {
        self.sectors >= GATE_SECTORS && self.writes >= GATE_WRITES
    }

    /// Whether a write of `[start, end)` goes on where the stream ended.
    const fn continued_by(&self, start: u64, end: u64) -> bool {
        self.writes != 0
            && end >= self.next_sector
            && start.abs_diff(self.next_sector) <= SLACK_SECTORS
    }

    fn advance(&mut self, end: u64, now_ms: u64) {
        let moved = end.saturating_sub(self.next_sector);
        self.next_sector = end;
        self.sectors = self.sectors.saturating_add(moved);
        self.window_sectors = self.window_sectors.saturating_add(moved);
        self.writes = self.writes.saturating_add(1);
        self.last_ms = self.last_ms.max(now_ms);
        let span = self.last_ms.saturating_sub(self.window_start_ms);
        if span > WINDOW_MS {
            self.window_start_ms = self.last_ms.saturating_sub(span / 2);
            self.window_sectors /= 2;
        }
    }

    /// Sectors per second over the recent past, at least 1.
    fn rate_sectors(&self, now_ms: u64) -> u64 {
        let span = now_ms.saturating_sub(self.window_start_ms).max(WINDOW_MIN_MS);
        (self.window_sectors.saturating_mul(1000) / span).max(1)
    }

    /// The furthest this stream is trusted.
    fn reach_sectors(&self) -> u64 {
        self.sectors.saturating_mul(2).min(DEPTH_MAX_SECTORS)
    }

    /// What the stream says about an area, `None` if it does not reach it.
    fn about(&self, area: u64, now_ms: u64) -> Option<AreaAhead> {
        if !self.is_live(now_ms) {
            return None;
        }
        let start = area.checked_mul(1 << AREA_SHIFT)?;
        let end = start.checked_add(1 << AREA_SHIFT)?;
        if self.next_sector >= end {
            return None;
        }
        let distance = start.saturating_sub(self.next_sector);
        if distance > self.reach_sectors() {
            return None;
        }
        let eta_ms = distance
            .saturating_mul(1000)
            .checked_div(self.rate_sectors(now_ms))
            .unwrap_or(u64::MAX);
        Some(AreaAhead {
            area,
            eta_ns: eta_ms.saturating_mul(1_000_000),
            stream_blocks: self.sectors >> BLOCK_SECTORS_SHIFT,
            distance_blocks: distance >> BLOCK_SECTORS_SHIFT,
        })
    }
}

/// An area that a stream is heading for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AreaAhead {
    /// The area.
    pub area: u64,
    /// When the stream is expected there, from now.
    pub eta_ns: u64,
    /// Length of the stream so far.
    pub stream_blocks: u64,
    /// Blocks from the stream's end to the area.
    pub distance_blocks: u64,
}

/// The streams of a device, in storage of the caller.
#[derive(Debug)]
pub struct StreamTable<S> {
    heads: S,
    /// `next_sector` of each leader, [`NO_LEADER`] of an empty place. Every write looks at all of
    /// them, and nearly always finds none: they are kept close together for that.
    fronts: [u64; LEADERS],
    sets: u64,
}

impl<S: Deref<Target = [StreamHead]>> StreamTable<S> {
    /// Takes over the storage, whose content must be zeroed or come from another table.
    ///
    /// `None` if there is no room for [`LEADERS`] leaders and a set.
    pub fn new(heads: S) -> Option<Self> {
        let sets = (heads.len().checked_sub(LEADERS)? / WAYS) as u64;
        if sets == 0 || sets > 1 << 31 {
            return None;
        }
        let mut fronts = [NO_LEADER; LEADERS];
        for (front, head) in fronts.iter_mut().zip(heads.iter()) {
            *front = head.front();
        }
        Some(Self { heads, fronts, sets })
    }

    /// The earliest live stream heading for an area.
    pub fn heading_for(&self, area: u64, now_ns: u64) -> Option<AreaAhead> {
        let now_ms = ns_to_ms(now_ns);
        let end = area.checked_add(1)?.checked_mul(1 << AREA_SHIFT)?;
        // The area's end is beyond the front, and its start no more than the greatest depth.
        let near = |front: &u64| {
            end.wrapping_sub(*front).wrapping_sub(1) < DEPTH_MAX_SECTORS + (1 << AREA_SHIFT)
        };
        let mut earliest: Option<AreaAhead> = None;
        for (head, front) in self.heads.iter().zip(self.fronts.iter()) {
            if !near(front) {
                continue;
            }
            let ahead = head.about(area, now_ms);
            if ahead.is_some_and(|a| earliest.is_none_or(|e| a.eta_ns < e.eta_ns)) {
                earliest = ahead;
            }
        }
        earliest
    }

    /// Fills `out` with the areas that live streams are expected to reach within `horizon_ns`, with
    /// a factor of two to spare, and returns how many. An area may appear for several streams.
    ///
    /// If there is no room for all, another stream comes first at another time.
    pub fn ahead(&self, now_ns: u64, horizon_ns: u64, out: &mut [AreaAhead]) -> usize {
        let now_ms = ns_to_ms(now_ns);
        let turn = (now_ms / 100) as usize % LEADERS;
        let mut places = out.iter_mut();
        let mut count = 0usize;
        for leader in self.leaders().skip(turn).chain(self.leaders().take(turn)) {
            if !leader.is_live(now_ms) {
                continue;
            }
            let by_rate =
                leader.rate_sectors(now_ms).saturating_mul(ns_to_ms(horizon_ns) / 8) / (1000 / 16);
            let depth = by_rate.min(leader.reach_sectors());
            let first = leader.next_sector >> AREA_SHIFT;
            let last = leader.next_sector.saturating_add(depth) >> AREA_SHIFT;
            for area in first..=last {
                let Some(ahead) = leader.about(area, now_ms) else { continue };
                let Some(place) = places.next() else { return count };
                *place = ahead;
                count = count.saturating_add(1);
            }
        }
        count
    }

    /// Number of live streams that look ahead.
    pub fn live_leaders(&self, now_ns: u64) -> usize {
        let now_ms = ns_to_ms(now_ns);
        self.leaders().fold(0, |n: usize, l| n.wrapping_add(usize::from(l.is_live(now_ms))))
    }

    fn leaders(&self) -> impl Iterator<Item = &StreamHead> {
        self.heads.iter().take(LEADERS).filter(|l| !l.is_empty())
    }

    fn set_start(&self, sector: u64) -> usize {
        let hash = (sector >> BUCKET_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        // The product of two numbers below 2^32 fits, and its upper half is below `sets`.
        let set = (hash.wrapping_mul(self.sets) >> 32) as usize;
        LEADERS.wrapping_add(set.wrapping_mul(WAYS))
    }
}

impl<S: DerefMut<Target = [StreamHead]>> StreamTable<S> {
    /// Accounts a bio; only writes and write-zeroes make streams.
    pub fn observe(&mut self, record: &IoRecord) {
        if !matches!(record.kind, IoKind::Write | IoKind::WriteZeroes) || record.sectors == 0 {
            return;
        }
        let start = record.sector;
        let end = start.saturating_add(u64::from(record.sectors));
        let now_ms = ns_to_ms(record.time_ns);
        if self.advance_leader(start, end, now_ms) {
            return;
        }
        // The expected sector is within the slack of `start`, so in one of two buckets.
        let below = self.set_start(start.saturating_sub(SLACK_SECTORS));
        let above = self.set_start(start.saturating_add(SLACK_SECTORS));
        let mut head = match self.take(below, start, end) {
            Some(head) => head,
            None => match self.take(above, start, end) {
                Some(head) => head,
                None => StreamHead {
                    next_sector: start,
                    last_ms: now_ms,
                    window_start_ms: now_ms,
                    ..StreamHead::EMPTY
                },
            },
        };
        head.advance(end, now_ms);
        if head.passes_gate() {
            self.lead(head);
        } else {
            self.put(head, now_ms);
        }
    }

    /// Moves the leader that a write continues; `false` if there is none.
    fn advance_leader(&mut self, start: u64, end: u64, now_ms: u64) -> bool {
        let slack = start.wrapping_add(SLACK_SECTORS);
        let near = |front: u64| slack.wrapping_sub(front) <= 2 * SLACK_SECTORS;
        for (fronts, heads) in self.fronts.chunks_mut(8).zip(self.heads.chunks_mut(8)) {
            // No branch for each: hardly ever is one of them near.
            if !fronts.iter().fold(false, |any, &front| any | near(front)) {
                continue;
            }
            for (front, leader) in fronts.iter_mut().zip(heads) {
                if leader.continued_by(start, end) {
                    leader.advance(end, now_ms);
                    *front = leader.front();
                    return true;
                }
            }
        }
        false
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.heads.fill(StreamHead::EMPTY);
        self.fronts = [NO_LEADER; LEADERS];
    }

    /// Takes the head that a write continues out of a set.
    fn take(&mut self, set: usize, start: u64, end: u64) -> Option<StreamHead> {
        let set = self.heads.get_mut(set..set.wrapping_add(WAYS))?;
        let found = set.iter_mut().find(|h| h.continued_by(start, end))?;
        Some(core::mem::replace(found, StreamHead::EMPTY))
    }

    /// Puts a head into its set, in place of an empty, a dead, or else the shortest one.
    fn put(&mut self, head: StreamHead, now_ms: u64) {
        let set = self.set_start(head.next_sector);
        let Some(set) = self.heads.get_mut(set..set.wrapping_add(WAYS)) else { return };
        let victim = set.iter_mut().min_by_key(|h| {
            (!h.is_empty(), if h.is_live(now_ms) { h.sectors } else { 0 }, h.last_ms)
        });
        if let Some(victim) = victim {
            *victim = head;
        }
    }

    /// Makes a head a leader, in place of an empty one or the one that has rested longest.
    fn lead(&mut self, head: StreamHead) {
        let mut found: Option<(&mut StreamHead, &mut u64)> = None;
        for (head, front) in self.heads.iter_mut().zip(self.fronts.iter_mut()) {
            let rank = |h: &StreamHead| (!h.is_empty(), h.last_ms);
            if found.as_ref().is_none_or(|(victim, _)| rank(head) < rank(victim)) {
                found = Some((head, front));
            }
        }
        if let Some((victim, front)) = found {
            *front = head.front();
            *victim = head;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    fn table() -> StreamTable<Vec<StreamHead>> {
        StreamTable::new(vec![StreamHead::EMPTY; LEADERS + 4096]).unwrap()
    }

    fn write(t: &mut StreamTable<Vec<StreamHead>>, time_ns: u64, sector: u64, sectors: u32) {
        t.observe(&IoRecord { time_ns, op: 0, sector, sectors, kind: IoKind::Write });
    }

    #[test]
    fn needs_room() {
        assert!(StreamTable::new(vec![StreamHead::EMPTY; LEADERS + 7]).is_none());
        assert!(StreamTable::new(vec![StreamHead::EMPTY; 3]).is_none());
    }

    #[test]
    fn a_stream_looks_ahead_by_rate() {
        let mut t = table();
        // 64 KiB each 10 ms: 100 areas a second.
        for i in 0..200 {
            write(&mut t, i * 10 * MS, i * 128, 128);
        }
        let now = 2 * S;
        assert_eq!(t.live_leaders(now), 1);
        let mut out = [AreaAhead::default(); 500];
        let n = t.ahead(now, S, &mut out);
        assert!((190..=210).contains(&n), "{n}");
        assert_eq!(out[0], t.heading_for(200, now).unwrap());
        assert_eq!((out[0].area, out[0].eta_ns, out[0].stream_blocks), (200, 0, 3200));
        let eta = t.heading_for(300, now).unwrap().eta_ns;
        assert!((900 * MS..1100 * MS).contains(&eta), "{eta}");
        assert!(t.heading_for(199, now).is_none());
        assert!(t.heading_for(700, now).is_none(), "more than twice the length");
        assert_eq!(t.ahead(now, S, &mut out[..3]), 3);
        assert_eq!(t.ahead(now + 20 * S, S, &mut out), 0, "dead");
        assert!(t.heading_for(200, now + 20 * S).is_none());
    }

    #[test]
    fn short_streams_do_not() {
        let mut t = table();
        for i in 0..3 {
            write(&mut t, i, i * 1024, 1024);
        }
        assert_eq!(t.live_leaders(1), 0);
        for i in 0..60 {
            write(&mut t, i, 1_000_000 + i * 8, 8);
        }
        assert_eq!(t.live_leaders(1), 0);
        for i in 60..64 {
            write(&mut t, i, 1_000_000 + i * 8, 8);
        }
        assert_eq!(t.live_leaders(1), 1);
    }

    #[test]
    fn random_writes_do_not_flush_a_slow_stream() {
        let mut t = table();
        let mut x = 1u64;
        for i in 0..100u64 {
            write(&mut t, i * 100 * MS, 5_000_000 + i * 16, 16);
            for _ in 0..300 {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                write(&mut t, i * 100 * MS, (x >> 20) & !7, 8);
            }
        }
        assert!(t.heading_for((5_000_000 + 1600) / 128 + 2, 10 * S).is_some());
    }

    #[test]
    fn a_rewritten_tail_and_a_small_gap_go_on() {
        let mut t = table();
        let mut at = 8_000;
        for i in 0..100u64 {
            write(&mut t, i * MS, at, 16);
            at += if i % 2 == 0 { 8 } else { 24 };
        }
        assert_eq!(t.live_leaders(0), 1);
    }

    #[test]
    fn extremes_do_not_panic() {
        let mut t = table();
        for sector in [0, u64::MAX - 8, u64::MAX] {
            for time in [0, u64::MAX] {
                write(&mut t, time, sector, u32::MAX);
            }
        }
        let mut out = [AreaAhead::default(); 8];
        t.ahead(u64::MAX, u64::MAX, &mut out);
        t.heading_for(u64::MAX, u64::MAX);
    }
}
