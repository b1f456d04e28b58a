// SPDX-License-Identifier: GPL-2.0-only

//! The origin grows: what is written to a region that was closed in order, so that it belongs to a larger one.
//!
//! First an intent map for the larger origin, with intent for all that is new and for what had it before, in the copy that is not current; when that is
//! durable superblock A, then B. Before the first superblock is durable the region is one of the smaller origin: for that
//! the new map does not fit, and the older copy counts. (It fits if the division into extents is the same; then an extent passes for
//! changed that is not.) From then on the new map counts: nobody knows what the replica has where the origin has grown, so that passes for
//! changed.

use super::intent::{replay, ExtentRun, IntentMap};
use super::{Copy2, Extents, FormatError, Limits, Superblock, MAX_ORIGIN_BLOCKS};

/// Why the origin of a region cannot grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginError {
    /// It was not closed in order.
    NotClosed,
    /// The new size is not larger.
    Shrinks,
    /// The new size is beyond what a region can be for.
    TooLarge,
    /// Neither intent map is valid.
    Damaged(FormatError),
}

/// What is to be written, in this order: the map, superblock A, superblock B; each durable before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginGrowth {
    /// The superblock of the larger origin.
    pub superblock: Superblock,
    /// The map, to be encoded with the extents that [`Self::plan`] handed out.
    pub map: IntentMap,
    /// Where it goes.
    pub copy: Copy2,
    /// The first block that is new.
    pub first_new: u64,
    /// There was no intent before: below [`Self::first_new`], an extent passes for changed only because blocks in it are new.
    pub only_new: bool,
}

impl OriginGrowth {
    /// Plans it for a region with this superblock, of which `limits` are known; `closed`: its root says that it was closed in order.
    /// `a` and `b` are the copies of its intent map, `ring` is its intent log. Hands out the extents of the larger origin that have
    /// intent.
    pub fn plan(
        superblock: &Superblock,
        limits: &Limits,
        closed: bool,
        (a, b): (&[u8], &[u8]),
        ring: &[u8],
        origin_sectors: u64,
        mut add: impl FnMut(ExtentRun),
    ) -> Result<Self, OriginError> {
        let first_new = superblock.origin_blocks();
        let superblock = Superblock { origin_sectors, ..*superblock };
        let blocks = superblock.origin_blocks();
        if blocks <= first_new {
            return Err(OriginError::Shrinks);
        }
        if blocks > MAX_ORIGIN_BLOCKS {
            return Err(OriginError::TooLarge);
        }
        let picked = IntentMap::pick(a, b, limits).map_err(OriginError::Damaged)?;
        let bytes = if picked.copy == Copy2::A { a } else { b };
        let before = picked.value.extents;
        let extents = Extents::for_origin(blocks);
        // Extents may be larger than before, never smaller.
        let mut only_new = true;
        let mut keep = |first: u64, count: u64| {
            only_new = false;
            let (start, _) = before.blocks(first);
            let (end, _) = before.blocks(first.saturating_add(count));
            let (first, count) = extents.of(start, end.min(first_new).saturating_sub(start));
            add(ExtentRun { start: first as u32, len: count as u32 });
        };
        let mut extent = 0u64;
        for mask in IntentMap::masks(bytes) {
            for bit in 0..16 {
                if mask.wrapping_shr(bit) & 1 != 0 {
                    keep(extent.saturating_add(bit.into()), 1);
                }
            }
            extent = extent.saturating_add(16);
        }
        let replayed = replay(ring, &picked.value, limits.region_tag(), |run| {
            keep(run.start.into(), run.len.into());
        });
        if !closed || replayed.gap {
            return Err(OriginError::NotClosed);
        }
        let (first, count) = extents.of(first_new, blocks.saturating_sub(first_new));
        add(ExtentRun { start: first as u32, len: count as u32 });
        let seq = picked.value.seq.saturating_add(1);
        let map = IntentMap { seq, log_seq: replayed.last_seq, extents };
        Ok(Self { superblock, map, copy: picked.copy.other(), first_new, only_new })
    }
}

#[cfg(test)]
mod tests {
    use super::super::intent::{LogRecord, INTENT_MAP_BYTES, LOG_RECORD_BYTES};
    use super::super::{Layout, Picked};
    use super::*;
    use crate::crc32c::crc32c;
    use crate::region::layout::LOG_BLOCKS;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const UUID: [u8; 16] = [5; 16];

    fn superblock(blocks: u64) -> Superblock {
        Superblock {
            region_uuid: UUID,
            origin_id: [0; 16],
            origin_sectors: blocks * 8,
            region_blocks: 2000,
            slots: Layout::for_region(2000).unwrap().slots,
            created_realtime_s: 1,
        }
    }

    fn limits(blocks: u64) -> Limits {
        Limits { region_uuid: UUID, slots: 1000, origin_blocks: blocks, next_snapshot: 1 }
    }

    type Map = Box<[u8; INTENT_MAP_BYTES]>;

    fn map(blocks: u64, seq: u64, log_seq: u64, masks: &[u16]) -> Map {
        let mut out = Box::new([0xaa; INTENT_MAP_BYTES]);
        let header = IntentMap { seq, log_seq, extents: Extents::for_origin(blocks) };
        header.encode(&mut out, UUID, masks.iter().copied(), |b| crc32c(0, b));
        out
    }

    /// A log with records up to `last`, each of one extent.
    fn ring(blocks: u64, last: u64) -> Vec<u8> {
        let mut ring = vec![0; LOG_BLOCKS as usize * LOG_RECORD_BYTES];
        let extents = Extents::for_origin(blocks);
        for seq in last.saturating_sub(LOG_BLOCKS - 1).max(1)..=last {
            let at = (seq % LOG_BLOCKS) as usize * LOG_RECORD_BYTES;
            let place = ring[at..].first_chunk_mut().unwrap();
            let runs = [ExtentRun { start: seq as u32 % extents.count, len: 1 }];
            let tag = limits(blocks).region_tag();
            LogRecord::encode(place, tag, seq, extents, &runs, |b| crc32c(0, b));
        }
        ring
    }

    /// The extents with intent, and the blocks of one, as an opening with the size `blocks` has it.
    fn intent(blocks: u64, (a, b): (&Map, &Map), ring: &[u8]) -> (BTreeSet<u64>, u32) {
        let limits = limits(blocks);
        let Picked { copy, value, .. } = IntentMap::pick(&a[..], &b[..], &limits).unwrap();
        let bytes = if copy == Copy2::A { a } else { b };
        let mut found: BTreeSet<u64> = (0..)
            .zip(IntentMap::masks(&bytes[..]))
            .flat_map(|(i, mask)| {
                (0..16).filter(move |bit| mask >> bit & 1 != 0).map(move |b| i * 16 + b)
            })
            .collect();
        let replayed = replay(ring, &value, limits.region_tag(), |run| {
            found.extend(u64::from(run.start)..u64::from(run.start + run.len));
        });
        assert!(!replayed.gap);
        (found, value.extents.shift)
    }

    /// A plan, and the map that it makes.
    fn grow(
        blocks: (u64, u64),
        closed: bool,
        (a, b): (&Map, &Map),
        ring: &[u8],
    ) -> Result<(OriginGrowth, Map), OriginError> {
        let (before, after) = blocks;
        let mut bits = vec![0u16; INTENT_MAP_BYTES / 2];
        let (sb, maps) = (superblock(before), (&a[..], &b[..]));
        let plan =
            OriginGrowth::plan(&sb, &limits(before), closed, maps, ring, after * 8, |run| {
                for extent in run.start..run.start + run.len {
                    bits[extent as usize / 16] |= 1 << (extent % 16);
                }
            })?;
        let mut out = Box::new([0xaa; INTENT_MAP_BYTES]);
        plan.map.encode(&mut out, UUID, bits.into_iter(), |b| crc32c(0, b));
        Ok((plan, out))
    }

    #[test]
    fn refuses_what_it_must() {
        let (a, b) = (map(1000, 3, 7, &[]), map(1000, 2, 5, &[]));
        let log = ring(1000, 7);
        let plan = |closed, a: &Map, log: &[u8], blocks: u64| {
            grow((1000, blocks), closed, (a, &b), log).map(|(plan, _)| plan)
        };
        let good = plan(true, &a, &log, 1001).unwrap();
        assert_eq!((good.copy, good.first_new, good.only_new), (Copy2::B, 1000, true));
        for blocks in [0, 1, 999, 1000] {
            assert_eq!(plan(true, &a, &log, blocks), Err(OriginError::Shrinks));
        }
        assert_eq!(plan(true, &a, &log, MAX_ORIGIN_BLOCKS + 1), Err(OriginError::TooLarge));
        assert_eq!(plan(false, &a, &log, 2000), Err(OriginError::NotClosed));
        let mut hole = ring(1000, 9);
        hole[8 * LOG_RECORD_BYTES] = 0;
        assert_eq!(plan(true, &a, &hole, 2000), Err(OriginError::NotClosed));
        let damaged = Box::new([0; INTENT_MAP_BYTES]);
        let bad = grow((1000, 2000), true, (&damaged, &damaged), &log);
        assert!(matches!(bad, Err(OriginError::Damaged(_))));
        // Intent in the map, or in a record.
        for (a, log) in [(map(1000, 3, 7, &[4]), log), (a, ring(1000, 8))] {
            assert!(!plan(true, &a, &log, 2000).unwrap().only_new);
        }
    }

    proptest! {
        /// Whatever is durable of the three writes: an opening with the size that the superblock says finds intent for all that had it, and
        /// for all that is new to that size.
        #[test]
        fn every_step_is_a_region(
            before in prop_oneof![1u64..5000, (1u64 << 22)..(1 << 25), Just(261_120 << 6)],
            more in prop_oneof![1u64..200, 1u64..(1 << 25)],
            newer in any::<bool>(),
            last in 0u64..100,
            unmapped in 0u64..3,
            mask in prop_oneof![Just(0u16), any::<u16>()],
        ) {
            let after = before + more;
            let count = Extents::for_origin(before).count;
            let mask = if count < 16 { mask & ((1 << count) - 1) } else { mask };
            let mapped = last.saturating_sub(unmapped);
            let (mut a, mut b) = (map(before, 3, mapped, &[mask]), map(before, 2, mapped / 2, &[]));
            if newer {
                core::mem::swap(&mut a, &mut b);
            }
            let log = ring(before, last);
            let (had, shift) = intent(before, (&a, &b), &log);
            let (plan, grown) = grow((before, after), true, (&a, &b), &log).unwrap();
            prop_assert_eq!((plan.first_new, plan.only_new), (before, had.is_empty()));
            prop_assert_eq!(plan.copy, if newer { Copy2::A } else { Copy2::B });
            *(if newer { &mut a } else { &mut b }) = grown;
            // The map is there, the superblock still the old one.
            let (found, _) = intent(before, (&a, &b), &log);
            if Extents::for_origin(before) == Extents::for_origin(after) {
                prop_assert!(found.is_superset(&had) && found.len() <= had.len() + 1);
            } else {
                prop_assert_eq!(&found, &had);
            }
            // The superblock is the new one.
            let (found, larger) = intent(after, (&a, &b), &log);
            let new = (before >> larger)..=((after - 1) >> larger);
            let wanted: BTreeSet<u64> = had.iter().map(|e| e << shift >> larger).chain(new).collect();
            prop_assert_eq!(found, wanted);
            let mut block = [0; 4096];
            plan.superblock.encode(&mut block);
            prop_assert_eq!(Superblock::decode(&block).unwrap().origin_blocks(), after);
        }
    }
}
