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

/// Returns the bit of a block in the mask of its area.
pub const fn bit_of(block: u64) -> u16 {
    1u16.wrapping_shl((block % AREA_BLOCKS as u64) as u32)
}

/// Returns the areas that `count` blocks from `first` lie in, each with the mask of those blocks, the
/// area's first block lowest.
pub const fn areas_masked(first: u64, count: u64) -> AreasMasked {
    AreasMasked { next: first, end: first.saturating_add(count) }
}

/// See [`areas_masked`].
#[derive(Clone, Debug)]
pub struct AreasMasked {
    next: u64,
    end: u64,
}

impl Iterator for AreasMasked {
    type Item = (u64, u16);

    fn next(&mut self) -> Option<(u64, u16)> {
        let left = self.end.checked_sub(self.next).filter(|&n| n != 0)?;
        let area = area_of(self.next);
        let at = (self.next % u64::from(AREA_BLOCKS)) as u32;
        let here = left.min(u64::from(AREA_BLOCKS.wrapping_sub(at))) as u32; // 1..=16
        self.next = self.next.saturating_add(here.into());
        let ones = u16::MAX.wrapping_shr(AREA_BLOCKS.wrapping_sub(here));
        Some((area, ones.wrapping_shl(at)))
    }
}

/// Returns the blocks of an area that a mask has, ascending.
pub fn blocks_of_mask(area: u64, mask: u16) -> impl Iterator<Item = u64> + Clone {
    let first = area << AREA_BLOCKS_SHIFT;
    let mut left = mask;
    core::iter::from_fn(move || {
        let lowest = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (lowest < AREA_BLOCKS).then_some(first | u64::from(lowest))
    })
}

/// Returns the lowest `n` bits of a mask that are set.
pub const fn lowest_bits(mask: u16, n: u32) -> u16 {
    let mut without = mask;
    let mut i = 0;
    while i < n && without != 0 {
        without &= without.wrapping_sub(1);
        i = i.wrapping_add(1);
    }
    mask & !without
}

/// Returns `mask` and up to `reach` bits of `within` right before and after each of its runs.
pub const fn widened(mask: u16, within: u16, reach: u32) -> u16 {
    let mut all = mask;
    let mut i = 0;
    while i < reach {
        all |= (all << 1 | all >> 1) & within;
        i = i.wrapping_add(1);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_stays_within() {
        for (mask, within, reach, want) in [
            (0, 0xffff, 16, 0),
            (1, 0xffff, 16, 0xffff),
            (1, 0xffff, 2, 7),
            (1, 0, 2, 1),
            (0x0100, 0x0ff0, 2, 0x07c0),
            (0x0010, 0xf0f3, 2, 0x0070),
            (0x0110, 0xf0f3, 9, 0x01f0),
            (0x8000, 0xc001, 2, 0xc000),
        ] {
            assert_eq!(widened(mask, within, reach), want, "{mask:#x} {within:#x} {reach}");
        }
    }

    #[test]
    fn masks_cover_exactly_the_blocks() {
        for (first, count) in
            [(0, 0), (0, 1), (15, 1), (15, 2), (0, 16), (3, 40), (31, 17), (16, 32)]
        {
            let blocks: Vec<u64> =
                areas_masked(first, count).flat_map(|(a, m)| blocks_of_mask(a, m)).collect();
            assert_eq!(blocks, (first..first + count).collect::<Vec<_>>());
        }
        assert_eq!(areas_masked(u64::MAX, 5).count(), 0);
    }

    #[test]
    fn lowest_bits_of_masks() {
        for (mask, n, want) in [
            (0, 3, 0),
            (0xffff, 0, 0),
            (0xffff, 16, 0xffff),
            (0xffff, 3, 7),
            (0x8421, 2, 0x21),
            (0x8421, 9, 0x8421),
        ] {
            assert_eq!(lowest_bits(mask, n), want);
        }
    }

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
