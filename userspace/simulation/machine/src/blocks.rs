// SPDX-License-Identifier: GPL-2.0-only

//! The content of a disk: blocks that copies share until one of them is written.

use std::rc::Rc;

/// Bytes of a sector: it is written as a whole or not at all.
pub const SECTOR: usize = 512;
/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Sectors of a block.
pub const BLOCK_SECTORS: u64 = (BLOCK / SECTOR) as u64;

/// A block.
pub type Block = [u8; BLOCK];

/// What a request writes.
#[derive(Clone)]
pub enum Content {
    /// Zeroes.
    Zero,
    /// Whole blocks.
    Blocks(Rc<[Rc<Block>]>),
    /// Any sectors.
    Bytes(Rc<[u8]>),
}

impl Content {
    /// The content of a write to `sector`.
    pub fn new(sector: u64, data: &[u8]) -> Self {
        if sector % BLOCK_SECTORS == 0 && data.len() % BLOCK == 0 {
            Self::Blocks(data.chunks_exact(BLOCK).map(|b| Rc::new(as_block(b))).collect())
        } else {
            Self::Bytes(data.into())
        }
    }

    /// The bytes of sector number `i`.
    fn sector(&self, i: usize) -> &[u8] {
        const ZERO: [u8; SECTOR] = [0; SECTOR];
        let per_block = BLOCK_SECTORS as usize;
        match self {
            Self::Zero => &ZERO,
            Self::Blocks(blocks) => &blocks[i / per_block][i % per_block * SECTOR..][..SECTOR],
            Self::Bytes(bytes) => &bytes[i * SECTOR..][..SECTOR],
        }
    }
}

fn as_block(bytes: &[u8]) -> Block {
    let mut block = [0; BLOCK];
    block.copy_from_slice(bytes);
    block
}

/// The content of a disk. Cloning it is cheap.
#[derive(Clone)]
pub struct Blocks(Vec<Rc<Block>>);

impl Blocks {
    /// So many blocks of zeroes.
    pub fn zeroed(blocks: u64) -> Self {
        let zero = Rc::new([0; BLOCK]);
        Self((0..blocks).map(|_| zero.clone()).collect())
    }

    /// Number of blocks.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Adds blocks; they have what others have, so that what is taken for blank shows.
    pub fn grow(&mut self, blocks: u64) {
        for i in 0..blocks as usize {
            let old = self.0[i].clone();
            self.0.push(old);
        }
    }

    /// Adds what a larger content has more.
    pub fn extend(&mut self, larger: &Self) {
        self.0.extend_from_slice(&larger.0[self.0.len()..]);
    }

    /// Only the first `blocks` blocks.
    pub fn truncated(&self, blocks: u64) -> Self {
        Self(self.0[..blocks as usize].to_vec())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of sectors.
    pub fn sectors(&self) -> u64 {
        self.len() * BLOCK_SECTORS
    }

    /// A block.
    pub fn block(&self, number: u64) -> &Rc<Block> {
        &self.0[number as usize]
    }

    /// Whether two contents have the same block, or another one of the same bytes.
    pub fn same(&self, other: &Self, number: u64) -> bool {
        let (a, b) = (self.block(number), other.block(number));
        Rc::ptr_eq(a, b) || a == b
    }

    /// Reads sectors.
    pub fn read(&self, sector: u64, sectors: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(sectors as usize * SECTOR);
        let (mut at, end) = (sector, sector + sectors);
        while at < end {
            let within = at % BLOCK_SECTORS;
            let n = (BLOCK_SECTORS - within).min(end - at);
            let from = within as usize * SECTOR;
            let block = self.block(at / BLOCK_SECTORS);
            out.extend_from_slice(&block[from..from + n as usize * SECTOR]);
            at += n;
        }
        out
    }

    /// Writes bytes, whole sectors, from `sector` on.
    pub fn write(&mut self, sector: u64, data: &[u8]) {
        let content = Content::new(sector, data);
        self.apply(sector, (data.len() / SECTOR) as u64, &content, |_| true);
    }

    /// Writes those sectors of a content that are `wanted`, by their number in it.
    pub fn apply(
        &mut self,
        sector: u64,
        sectors: u64,
        content: &Content,
        mut wanted: impl FnMut(usize) -> bool,
    ) {
        let mut i = 0;
        while i < sectors as usize {
            let at = sector + i as u64;
            let block = &mut self.0[(at / BLOCK_SECTORS) as usize];
            let within = (at % BLOCK_SECTORS) as usize;
            let n = (BLOCK_SECTORS as usize - within).min(sectors as usize - i);
            let mut mask = 0u32;
            for k in 0..n {
                mask |= u32::from(wanted(i + k)) << k;
            }
            match content {
                Content::Blocks(blocks) if mask == 0xff => {
                    *block = blocks[i / BLOCK_SECTORS as usize].clone();
                }
                _ if mask == 0 => {}
                _ => {
                    let block = Rc::make_mut(block);
                    for k in (0..n).filter(|k| mask & 1 << k != 0) {
                        block[(within + k) * SECTOR..][..SECTOR]
                            .copy_from_slice(content.sector(i + k));
                    }
                }
            }
            i += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut a = Blocks::zeroed(4);
        let before = a.clone();
        let data: Vec<u8> = (0..5 * SECTOR).map(|i| (i / 7) as u8).collect();
        a.write(6, &data);
        assert_eq!(a.read(6, 5), data);
        assert!(before.block(0).iter().all(|&b| b == 0), "a copy is not changed");
        a.apply(8, 8, &Content::new(8, &[7; BLOCK]), |_| true);
        assert!(a.block(1).iter().all(|&b| b == 7));
        a.apply(8, 8, &Content::Zero, |i| i == 1);
        assert_eq!(a.block(1)[SECTOR - 1..][..3], [7, 0, 0]);
        assert!(!a.same(&before, 1) && a.same(&before, 3));
    }
}
