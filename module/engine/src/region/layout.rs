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
/// The first block of the index.
pub const INDEX_START_BLOCK: u64 = 32;
/// Copies of an index block.
const INDEX_COPIES: u64 = 2;
/// The first slot lies on a multiple of this.
pub const DATA_ALIGN_BLOCKS: u64 = 16;
/// The smallest useful number of slots (4 MiB of data).
pub const MIN_SLOTS: u64 = 1024;
/// The largest region: 16 TiB. Slot numbers fit in 32 bits with room for "none".
pub const MAX_REGION_BLOCKS: u64 = 1 << 32;

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
                "the region is too small: it must hold at least 1024 slots (4288 KiB)"
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

/// The layout of a region. It follows from the size alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of the region in blocks.
    pub region_blocks: u64,
    /// Number of index blocks, each in two copies.
    pub index_blocks: u32,
    /// Number of slots.
    pub slots: u32,
    /// Block of slot 0.
    pub data_start: u64,
}

impl Layout {
    /// Lays out a region of `region_blocks` blocks.
    pub const fn for_region(region_blocks: u64) -> Result<Self, LayoutError> {
        if region_blocks > MAX_REGION_BLOCKS {
            return Err(LayoutError::TooLarge);
        }
        let usable = region_blocks.saturating_sub(INDEX_START_BLOCK);
        let index_blocks = usable.div_ceil(INDEX_ENTRIES as u64 + INDEX_COPIES);
        let index_end = INDEX_START_BLOCK + INDEX_COPIES * index_blocks;
        let data_start = index_end.div_ceil(DATA_ALIGN_BLOCKS) * DATA_ALIGN_BLOCKS;
        // At most the entries of the index: the index was sized without the loss by alignment.
        let slots = region_blocks.saturating_sub(data_start);
        if slots < MIN_SLOTS {
            return Err(LayoutError::TooSmall);
        }
        Ok(Self {
            region_blocks,
            index_blocks: index_blocks as u32,
            slots: slots as u32,
            data_start,
        })
    }

    /// Returns the block of a slot.
    pub const fn slot_block(&self, slot: u32) -> u64 {
        self.data_start.saturating_add(slot as u64)
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
        INDEX_START_BLOCK + INDEX_COPIES * index_no as u64 + copy as u64
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
    fn fits_and_is_covered() {
        let smallest = (0..).find(|&n| Layout::for_region(n).is_ok()).unwrap();
        assert_eq!(smallest, 1072); // the 4288 KiB of the error message
        for blocks in (smallest..smallest + 2000).chain([1 << 20, (1 << 32) - 1, 1 << 32]) {
            let l = Layout::for_region(blocks).unwrap();
            assert_eq!(l.data_start % DATA_ALIGN_BLOCKS, 0);
            let last = l.slots - 1;
            assert_eq!(l.slot_block(last), blocks - 1);
            let (index_no, entry) = l.index_block(last);
            assert!(index_no < l.index_blocks && entry < INDEX_ENTRIES);
            assert_eq!(l.index_first_slot(index_no) + entry, last);
            assert!(l.index_copy_block(l.index_blocks - 1, Copy2::B) < l.data_start);
            assert!(u64::from(l.slots) >= MIN_SLOTS);
        }
        assert_eq!(Layout::for_region(smallest - 1), Err(LayoutError::TooSmall));
        assert_eq!(Layout::for_region(0), Err(LayoutError::TooSmall));
        assert_eq!(Layout::for_region((1 << 32) + 1), Err(LayoutError::TooLarge));
        assert_eq!(Layout::for_region(u64::MAX), Err(LayoutError::TooLarge));
    }
}
