// SPDX-License-Identifier: GPL-2.0-only

//! Chunks: runs of blocks copied as one, of a length that is decided at run time.
//!
//! With high confidence a chunk is exact: only the blocks asked for. With low confidence it grows
//! over the gaps between them, because a few clean blocks cost less than another seek and may be
//! wanted anyway. Runs of neighbouring areas merge up to [`RUN_BLOCKS_MAX`].

use crate::fixed::Prob;
use crate::geometry::{AREA_BLOCKS, AREA_BLOCKS_SHIFT};

/// Longest run (1 MiB).
pub const RUN_BLOCKS_MAX: u32 = 256;

/// How sure a probability is: certain at 0 and 1, not at all at 1/2.
pub const fn confidence(p: Prob) -> Prob {
    let distance = p.0.abs_diff(p.complement().0);
    Prob(distance)
}

/// The widest gap of blocks nobody asked for that a chunk may cover.
pub fn gap_blocks(confidence: Prob) -> u32 {
    match confidence.permille() {
        900.. => 0,
        700.. => 1,
        500.. => 2,
        250.. => 4,
        _ => AREA_BLOCKS,
    }
}

/// Splits the mask of an area into chunks of `(first block in the area, blocks)`, ascending.
pub fn chunks(mask: u16, confidence: Prob) -> Chunks {
    Chunks { left: mask, gap: gap_blocks(confidence) }
}

/// See [`chunks`].
#[derive(Clone, Debug)]
pub struct Chunks {
    left: u16,
    gap: u32,
}

impl Iterator for Chunks {
    type Item = (u8, u8);

    fn next(&mut self) -> Option<(u8, u8)> {
        if self.left == 0 {
            return None;
        }
        let start = self.left.trailing_zeros();
        // Positions in 0..=16, so none of this can overflow; 32-bit shifts by at most 16.
        let mut end = start;
        let mask = u32::from(self.left);
        while mask.wrapping_shr(end) != 0 {
            let clear = mask.wrapping_shr(end).trailing_zeros();
            if end != start && clear > self.gap {
                break;
            }
            let run_start = end.wrapping_add(clear);
            end = run_start.wrapping_add((!mask.wrapping_shr(run_start)).trailing_zeros());
        }
        self.left = (mask & u32::MAX.wrapping_shl(end)) as u16;
        Some((start as u8, end.wrapping_sub(start) as u8))
    }
}

/// A run of blocks of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub start_block: u64,
    /// Length.
    pub blocks: u32,
    /// Highest score of the areas it is made of.
    pub score: Prob,
}

impl Run {
    /// The block after the last.
    pub const fn end_block(&self) -> u64 {
        self.start_block.saturating_add(self.blocks as u64)
    }

    /// The run of a chunk of an area.
    pub const fn of_area(area: u64, chunk: (u8, u8), score: Prob) -> Self {
        let start_block = (area << AREA_BLOCKS_SHIFT).saturating_add(chunk.0 as u64);
        Self { start_block, blocks: chunk.1 as u32, score }
    }
}

/// Merges runs that are pushed in ascending order.
#[derive(Clone, Debug, Default)]
pub struct Merger {
    open: Option<Run>,
}

impl Merger {
    /// Starts with nothing.
    pub const fn new() -> Self {
        Self { open: None }
    }

    /// Adds a run; returns the one before it when the two cannot be one.
    ///
    /// Runs merge if they touch, or are at most `gap` blocks apart, and the result is not longer
    /// than [`RUN_BLOCKS_MAX`].
    pub fn push(&mut self, run: Run, gap: u32) -> Option<Run> {
        let Some(open) = self.open else {
            self.open = Some(run);
            return None;
        };
        let near = run.start_block >= open.end_block()
            && run.start_block <= open.end_block().saturating_add(u64::from(gap));
        let length = run.end_block().saturating_sub(open.start_block);
        if near && length <= u64::from(RUN_BLOCKS_MAX) {
            self.open = Some(Run {
                start_block: open.start_block,
                blocks: length as u32,
                score: open.score.max(run.score),
            });
            return None;
        }
        self.open = Some(run);
        Some(open)
    }

    /// Returns the last run.
    pub fn finish(&mut self) -> Option<Run> {
        self.open.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mask: u16, permille: u32) -> Vec<(u8, u8)> {
        chunks(mask, Prob::from_permille(permille)).collect()
    }

    #[test]
    fn exact_when_sure() {
        assert_eq!(of(0, 1000), []);
        assert_eq!(of(0xffff, 1000), [(0, 16)]);
        assert_eq!(of(0b1000_0000_0000_0001, 1000), [(0, 1), (15, 1)]);
        assert_eq!(of(0b0110_1101, 1000), [(0, 1), (2, 2), (5, 2)]);
    }

    #[test]
    fn wider_when_not() {
        assert_eq!(of(0b0110_1101, 700), [(0, 7)]);
        assert_eq!(of(0b1000_0001_1001, 500), [(0, 5), (11, 1)]);
        assert_eq!(of(0b1000_0001_1001, 100), [(0, 12)]);
        assert_eq!(of(0x8001, 0), [(0, 16)]);
    }

    #[test]
    fn all_masks() {
        for mask in 0..=u16::MAX {
            for permille in [0, 300, 600, 800, 1000] {
                let gap = gap_blocks(Prob::from_permille(permille));
                let mut covered = 0u32;
                let mut last_end = None;
                for (start, len) in of(mask, permille) {
                    let run = ((1u32 << len) - 1) << start;
                    assert_eq!(covered & run, 0);
                    assert!(mask as u32 >> start & 1 == 1, "starts at a wanted block");
                    assert!(mask as u32 >> (start + len - 1) & 1 == 1, "ends at one");
                    if let Some(end) = last_end {
                        assert!(u32::from(start) > end + gap, "split only at wide gaps");
                    }
                    last_end = Some(u32::from(start + len));
                    covered |= run;
                }
                assert_eq!(covered & u32::from(mask), u32::from(mask));
                if gap == 0 {
                    assert_eq!(covered, u32::from(mask));
                }
            }
        }
    }

    #[test]
    fn confidence_of_probabilities() {
        assert_eq!(confidence(Prob::ZERO), Prob::ONE);
        assert_eq!(confidence(Prob::ONE), Prob::ONE);
        assert!(confidence(Prob::HALF).0 <= 1);
        assert_eq!(confidence(Prob::from_permille(250)).permille(), 500);
    }

    #[test]
    fn merging() {
        let run = |start_block, blocks, score| Run { start_block, blocks, score: Prob(score) };
        let mut m = Merger::new();
        assert_eq!(m.finish(), None);
        assert_eq!(m.push(run(0, 16, 1), 0), None);
        assert_eq!(m.push(run(16, 16, 5), 0), None);
        assert_eq!(m.push(run(34, 6, 2), 2), None);
        assert_eq!(m.push(run(43, 1, 2), 2), Some(run(0, 40, 5)));
        assert_eq!(m.push(run(10, 1, 2), 100), Some(run(43, 1, 2)), "out of order");
        assert_eq!(m.push(run(11, 256, 0), 0), Some(run(10, 1, 2)), "too long");
        assert_eq!(m.finish(), Some(run(11, 256, 0)));
        assert_eq!(Run::of_area(2, (3, 4), Prob(9)), run(35, 4, 9));
    }
}
