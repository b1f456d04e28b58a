// SPDX-License-Identifier: GPL-2.0-only

//! Where the parts of a region lie, in blocks of 4 KiB from its start.

use core::fmt;

use super::index::INDEX_ENTRIES;
use super::Copy2;

/// The two copies of the superblock.
pub const SUPERBLOCK_BLOCKS: [u64; 2] = [0, 15];
/// The first blocks of the two copies of the root.
pub const ROOT_START_BLOCKS: [u64; 2] = [16, 24];
/// Blocks of one copy of the root.
pub const ROOT_BLOCKS: u64 = 8;
/// The first blocks of the two copies of the intent map.
pub const INTENT_START_BLOCKS: [u64; 2] = [32, 40];
/// Blocks of one copy of the intent map.
pub const INTENT_BLOCKS: u64 = 8;
/// The first block of the intent log.
pub const LOG_START_BLOCK: u64 = 48;
/// Blocks of the intent log, a ring.
pub const LOG_BLOCKS: u64 = 64;
/// The first segment: an index part and the slots it describes.
pub const SEGMENTS_START_BLOCK: u64 = 128;
/// Blocks of a whole segment.
pub const SEGMENT_BLOCKS: u64 = 4096;
/// Index blocks of a segment.
const SEGMENT_INDEX_BLOCKS: u32 = 16;
/// Copies of an index block.
const INDEX_COPIES: u64 = 2;
/// Blocks of a segment before its slots.
const SEGMENT_HEAD: u64 = INDEX_COPIES * SEGMENT_INDEX_BLOCKS as u64;
/// Slots of a whole segment: as many as its index blocks describe.
pub const SEGMENT_SLOTS: u32 = SEGMENT_INDEX_BLOCKS * INDEX_ENTRIES;
/// The smallest useful number of slots (4 MiB of data).
pub const MIN_SLOTS: u64 = 1024;
/// The largest region: 16 TiB. Slot numbers fit in 32 bits with room for "none".
pub const MAX_REGION_BLOCKS: u64 = 1 << 32;

const _: () = assert!(SEGMENT_HEAD + SEGMENT_SLOTS as u64 == SEGMENT_BLOCKS);
const _: () = assert!(LOG_START_BLOCK + LOG_BLOCKS <= SEGMENTS_START_BLOCK);

/// Why a region cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// It has no room for [`MIN_SLOTS`] slots.
    TooSmall,
    /// It is larger than [`MAX_REGION_BLOCKS`].
    TooLarge,
}

impl LayoutError {
    /// Returns the words for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooSmall => {
                "the region is too small: it must hold at least 1024 slots (4736 KiB)"
            }
            Self::TooLarge => "the region is too large: at most 16 TiB are supported",
        }
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The layout of a region. It follows from the size alone, and a larger region only adds to it: segments of
/// slots, each behind the index blocks that describe them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of the region in blocks.
    pub region_blocks: u64,
    /// Number of index blocks, each in two copies.
    pub index_blocks: u32,
    /// Number of slots.
    pub slots: u32,
}

impl Layout {
    /// Lays out a region of `region_blocks` blocks.
    pub const fn for_region(region_blocks: u64) -> Result<Self, LayoutError> {
        if region_blocks > MAX_REGION_BLOCKS {
            return Err(LayoutError::TooLarge);
        }
        let usable = region_blocks.saturating_sub(SEGMENTS_START_BLOCK);
        let rest = (usable % SEGMENT_BLOCKS).saturating_sub(SEGMENT_HEAD);
        let slots = usable / SEGMENT_BLOCKS * SEGMENT_SLOTS as u64 + rest;
        if slots < MIN_SLOTS {
            return Err(LayoutError::TooSmall);
        }
        Ok(Self {
            region_blocks,
            index_blocks: slots.div_ceil(INDEX_ENTRIES as u64) as u32,
            slots: slots as u32,
        })
    }

    const fn segment_block(segment: u32) -> u64 {
        SEGMENTS_START_BLOCK + segment as u64 * SEGMENT_BLOCKS
    }

    /// Returns the block of a slot.
    pub const fn slot_block(&self, slot: u32) -> u64 {
        Self::segment_block(slot / SEGMENT_SLOTS) + SEGMENT_HEAD + (slot % SEGMENT_SLOTS) as u64
    }

    /// Returns how many slots from `slot` on lie next to each other on disk.
    pub const fn slot_run(&self, slot: u32) -> u32 {
        let in_segment = SEGMENT_SLOTS - slot % SEGMENT_SLOTS;
        let left = self.slots.saturating_sub(slot);
        if left < in_segment {
            left
        } else {
            in_segment
        }
    }

    /// Whether `count` slots from `slot` on lie next to each other on disk.
    pub const fn contiguous(slot: u32, count: u32) -> bool {
        count <= SEGMENT_SLOTS && slot % SEGMENT_SLOTS + count <= SEGMENT_SLOTS
    }

    /// Returns the index block of a slot and the number of its entry there.
    pub const fn index_block(&self, slot: u32) -> (u32, u32) {
        (slot / INDEX_ENTRIES, slot % INDEX_ENTRIES)
    }

    /// Returns the slot of the first entry of an index block.
    pub const fn index_first_slot(&self, index_no: u32) -> u32 {
        index_no.saturating_mul(INDEX_ENTRIES)
    }

    /// Returns the place of a copy of an index block.
    pub const fn index_copy_block(&self, index_no: u32, copy: Copy2) -> u64 {
        let in_segment = (index_no % SEGMENT_INDEX_BLOCKS) as u64;
        Self::segment_block(index_no / SEGMENT_INDEX_BLOCKS)
            + INDEX_COPIES * in_segment
            + copy as u64
    }

    /// Returns how many index blocks from `index_no` on lie next to each other on disk, with their copies.
    pub const fn index_run(&self, index_no: u32) -> u32 {
        let in_segment = SEGMENT_INDEX_BLOCKS - index_no % SEGMENT_INDEX_BLOCKS;
        let left = self.index_blocks.saturating_sub(index_no);
        if left < in_segment {
            left
        } else {
            in_segment
        }
    }

    /// Returns the runs of index blocks that a region of this layout has and the smaller one `before` had not: the first
    /// block on disk, and how many with both copies.
    pub fn added_index(&self, before: &Self) -> impl Iterator<Item = (u64, u32)> {
        let layout = *self;
        let mut next = before.index_blocks;
        core::iter::from_fn(move || {
            let run = layout.index_run(next);
            let block = layout.index_copy_block(next, Copy2::A);
            next = next.saturating_add(run);
            (run > 0).then_some((block, run.saturating_mul(INDEX_COPIES as u32)))
        })
    }

    /// Returns the block of a record of the intent log.
    pub const fn log_block(seq: u64) -> u64 {
        LOG_START_BLOCK + seq % LOG_BLOCKS
    }

    /// Returns the first block of a copy of the intent map.
    pub const fn intent_block(copy: Copy2) -> u64 {
        match copy {
            Copy2::A => INTENT_START_BLOCKS[0],
            Copy2::B => INTENT_START_BLOCKS[1],
        }
    }

    /// Returns the place of a copy of the superblock.
    pub const fn superblock_block(&self, copy: Copy2) -> u64 {
        match copy {
            Copy2::A => SUPERBLOCK_BLOCKS[0],
            Copy2::B => SUPERBLOCK_BLOCKS[1],
        }
    }

    /// Returns the first block of a copy of the root.
    pub const fn root_block(&self, copy: Copy2) -> u64 {
        match copy {
            Copy2::A => ROOT_START_BLOCKS[0],
            Copy2::B => ROOT_START_BLOCKS[1],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_adds_to_what_was_there() {
        let sizes = [1184, 1185, 2000, 4223, 4224, 4225, 4257, 8320, 8352, 8353, 60_000];
        for (i, &small) in sizes.iter().enumerate() {
            for &large in &sizes[i..] {
                let [before, after] = [small, large].map(|n| Layout::for_region(n).unwrap());
                let added: Vec<u64> = after
                    .added_index(&before)
                    .flat_map(|(block, blocks)| block..block + u64::from(blocks))
                    .collect();
                let both = |no| [Copy2::A, Copy2::B].map(|c| after.index_copy_block(no, c));
                let expected: Vec<u64> =
                    (before.index_blocks..after.index_blocks).flat_map(both).collect();
                assert_eq!(added, expected, "{small} to {large}");
                // Not where anything was before.
                let data: Vec<u64> = (0..before.slots).map(|s| before.slot_block(s)).collect();
                assert!(added.iter().all(|block| data.binary_search(block).is_err()));
                assert!((0..before.slots).all(|s| before.slot_block(s) == after.slot_block(s)));
            }
        }
    }

    #[test]
    fn fits_and_is_covered() {
        let smallest = (0..).find(|&n| Layout::for_region(n).is_ok()).unwrap();
        assert_eq!(smallest, 1184); // the 4736 KiB of the error message
        for blocks in (smallest..smallest + 9000).chain([1 << 20, (1 << 32) - 1, 1 << 32]) {
            let l = Layout::for_region(blocks).unwrap();
            let last = l.slots - 1;
            // All but the index part of a segment too short for a slot is used.
            let rest = (blocks - SEGMENTS_START_BLOCK) % SEGMENT_BLOCKS;
            let used = if rest <= SEGMENT_HEAD { blocks - rest } else { blocks };
            assert_eq!(l.slot_block(last), used - 1);
            let (index_no, entry) = l.index_block(last);
            assert!(index_no == l.index_blocks - 1 && entry < INDEX_ENTRIES);
            assert_eq!(l.index_first_slot(index_no) + entry, last);
            assert!(u64::from(l.slots) >= MIN_SLOTS);
        }
        assert_eq!(Layout::for_region(smallest - 1), Err(LayoutError::TooSmall));
        assert_eq!(Layout::for_region(0), Err(LayoutError::TooSmall));
        assert_eq!(Layout::for_region((1 << 32) + 1), Err(LayoutError::TooLarge));
        assert_eq!(Layout::for_region(u64::MAX), Err(LayoutError::TooLarge));
    }

    #[test]
    fn nothing_overlaps() {
        let l = Layout::for_region(3 * SEGMENT_BLOCKS + 1000).unwrap();
        let mut used = vec![0u8; l.region_blocks as usize];
        let mut claim = |first: u64, count: u64| {
            (first..first + count).for_each(|b| used[b as usize] += 1);
        };
        for copy in [Copy2::A, Copy2::B] {
            claim(l.superblock_block(copy), 1);
            claim(l.root_block(copy), ROOT_BLOCKS);
            claim(Layout::intent_block(copy), INTENT_BLOCKS);
            (0..l.index_blocks).for_each(|i| claim(l.index_copy_block(i, copy), 1));
        }
        (0..LOG_BLOCKS).for_each(|seq| claim(Layout::log_block(seq), 1));
        (0..l.slots).for_each(|slot| claim(l.slot_block(slot), 1));
        assert!(used.iter().all(|&n| n <= 1));
    }

    #[test]
    fn neighbours() {
        let l = Layout::for_region(2 * SEGMENT_BLOCKS + 500).unwrap();
        for slot in (0..l.slots - 16).step_by(7) {
            let distance = l.slot_block(slot + 15) - l.slot_block(slot);
            assert_eq!(Layout::contiguous(slot, 16), distance == 15);
        }
        let mut no = 0;
        while no < l.index_blocks {
            let run = l.index_run(no);
            let last = l.index_copy_block(no + run - 1, Copy2::B);
            assert_eq!(last - l.index_copy_block(no, Copy2::A), 2 * u64::from(run) - 1);
            no += run;
        }
        assert_eq!(no, l.index_blocks);
    }

    #[test]
    fn growing_moves_nothing() {
        let small = Layout::for_region(5000).unwrap();
        let large = Layout::for_region(50_000).unwrap();
        assert!((0..small.slots).all(|s| small.slot_block(s) == large.slot_block(s)));
        let places = |l: &Layout, no| l.index_copy_block(no, Copy2::B);
        assert!((0..small.index_blocks).all(|no| places(&small, no) == places(&large, no)));
    }
}
