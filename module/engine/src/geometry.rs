// SPDX-License-Identifier: GPL-2.0-only

//! Units: sector, block, area.

/// Bytes of a sector, the unit of bios.
pub const SECTOR_BYTES: u32 = 512;
/// Bytes of a block, the unit of tracking, copying and deltas.
pub const BLOCK_BYTES: u32 = 4096;
/// Sectors of a block.
pub const BLOCK_SECTORS: u32 = 8;
/// log2 of the sectors of a block.
pub const BLOCK_SECTORS_SHIFT: u32 = 3;
/// Blocks of an area, the unit of features and scores (64 KiB).
pub const AREA_BLOCKS: u32 = 16;
/// log2 of the blocks of an area.
pub const AREA_BLOCKS_SHIFT: u32 = 4;

/// Returns the first block and the number of blocks that `sectors` sectors from `sector` touch.
///
/// A length of zero touches nothing.
pub const fn blocks_touched(sector: u64, sectors: u32) -> (u64, u64) {
    let first = sector >> BLOCK_SECTORS_SHIFT;
    if sectors == 0 {
        return (first, 0);
    }
    let last = sector.saturating_add((sectors as u64).wrapping_sub(1)) >> BLOCK_SECTORS_SHIFT;
    (first, last.wrapping_sub(first).wrapping_add(1))
}

/// Returns the area of a block.
pub const fn area_of(block: u64) -> u64 {
    block >> AREA_BLOCKS_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_at_borders() {
        for (sector, sectors, first, count) in [
            (0, 0, 0, 0),
            (0, 1, 0, 1),
            (7, 1, 0, 1),
            (7, 2, 0, 2),
            (8, 8, 1, 1),
            (9, 8, 1, 2),
            (u64::MAX, 8, u64::MAX >> 3, 1),
        ] {
            assert_eq!(blocks_touched(sector, sectors), (first, count));
        }
    }
}
