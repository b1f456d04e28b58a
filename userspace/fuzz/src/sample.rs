// SPDX-License-Identifier: GPL-2.0-only

//! A good region in memory: three sealed snapshots, one of them with a manifest of two pages, blocks staged for the next,
//! and older versions in the other copies of root and index.

use std::collections::BTreeMap;

use presnap_engine::crc32c::crc32c;
use presnap_engine::manifest::{
    chain_crc, Chunk, PageBuilder, CHUNK_DISCARDED, CHUNK_ZERO, PAGE_BYTES, PAGE_CHUNKS,
};
use presnap_engine::region::index::{INDEX_BYTES, INDEX_ENTRIES};
use presnap_engine::region::intent::INTENT_MAP_BYTES;
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES};
use presnap_engine::region::superblock::SUPERBLOCK_BYTES;
use presnap_engine::region::{
    region_tag, Copy2, Extents, IndexBlock, IndexEntry, IntentMap, Layout, Root, RootHeader, Scope,
    SlotKind, SnapshotRecord, SnapshotState, Superblock, NO_SLOT,
};

use crate::recover::BLOCK;

/// Blocks of the region: the least there can be.
pub const REGION_BLOCKS: u64 = 1184;
/// Blocks of the origin.
pub const ORIGIN_BLOCKS: u64 = 600;
/// Identity of the region.
pub const UUID: [u8; 16] = *b"presnap-fuzz-reg";

struct Maker {
    bytes: Vec<u8>,
    layout: Layout,
    entries: BTreeMap<u32, IndexEntry>,
    root: Root<Vec<SnapshotRecord>>,
    next_slot: u32,
}

/// Content of a block in a generation.
pub fn content(block: u64, generation: u32) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    // Only its beginning tells it: a region is checksummed as a whole, again and again.
    out[..8].copy_from_slice(&block.to_le_bytes());
    out[8..12].copy_from_slice(&generation.to_le_bytes());
    out
}

impl Maker {
    fn write(&mut self, block: u64, bytes: &[u8]) {
        self.bytes[block as usize * BLOCK..][..bytes.len()].copy_from_slice(bytes);
    }

    fn slot(&mut self, bytes: &[u8], block: u64, kind: SlotKind, snapshot: u32) -> u32 {
        let slot = self.next_slot;
        self.next_slot += 1;
        self.write(self.layout.slot_block(slot), bytes);
        self.entries.insert(slot, IndexEntry { block, kind, snapshot, crc: crc32c(0, bytes) });
        slot
    }

    /// A sealed snapshot of these runs; of `period` of them the first is data, or all but the last, the others are zero.
    fn snapshot(&mut self, runs: &[(u64, u32)], period: usize) {
        let id = self.root.header.next_snapshot;
        let mut chunks = Vec::new();
        for (i, &(start_block, length_blocks)) in runs.iter().enumerate() {
            let data = if period > 4 { i % period == 0 } else { i % period != period - 1 };
            if !data {
                let flags = if i % 8 == 3 { CHUNK_ZERO } else { CHUNK_ZERO | CHUNK_DISCARDED };
                let zero =
                    Chunk { start_block, length_blocks, slot: NO_SLOT, flags, ..Chunk::default() };
                chunks.push(zero);
                continue;
            }
            let slot = self.next_slot;
            let mut checksum = 0;
            for block in start_block..start_block + u64::from(length_blocks) {
                let data = content(block, id);
                checksum = crc32c(checksum, &data);
                self.slot(&data, block, SlotKind::Data, id);
            }
            chunks.push(Chunk { start_block, length_blocks, slot, score: 9, flags: 0, checksum });
        }
        let pages: Vec<_> = chunks.chunks(PAGE_CHUNKS as usize).collect();
        let (head, mut crc) = (self.next_slot, 0);
        for (no, part) in (0u32..).zip(&pages) {
            let mut page = [0; PAGE_BYTES];
            let mut builder = PageBuilder::new(&mut page, id, no);
            part.iter().for_each(|c| builder.push(c).expect("room"));
            let next = (no as usize + 1 < pages.len()).then_some(self.next_slot + 1);
            crc = chain_crc(crc, builder.finish(next));
            self.slot(&page, no.into(), SlotKind::Manifest, id);
        }
        let record = SnapshotRecord {
            id,
            base_id: id - 1,
            state: SnapshotState::Sealed,
            scope: if id == 2 { Scope::Image } else { Scope::Delta },
            predictor: 2,
            op_first: u64::from(id) * 100,
            op_last: u64::from(id) * 100 + 99,
            t0_realtime_ns: 1_700_000_000_000_000_000 + u64::from(id),
            delta_blocks: chunks.iter().map(|c| u64::from(c.length_blocks)).sum(),
            manifest_pages: pages.len() as u32,
            manifest_chunks: chunks.len() as u32,
            manifest_crc: crc,
            manifest_head_slot: head,
            ..SnapshotRecord::ZERO
        };
        self.root.insert(record).expect("room in the root");
        self.root.header.next_snapshot = id + 1;
    }

    /// Writes the next version of root and index.
    fn flush(&mut self) {
        let seq = self.root.header.seq;
        let copy = if seq % 2 == 0 { Copy2::B } else { Copy2::A };
        for no in 0..self.layout.index_blocks {
            let first = self.layout.index_first_slot(no);
            let entries: Vec<_> = (first..first + INDEX_ENTRIES)
                .map(|slot| self.entries.get(&slot).copied().unwrap_or(IndexEntry::FREE))
                .collect();
            if entries.iter().all(|e| *e == IndexEntry::FREE) {
                continue;
            }
            let mut block = [0; INDEX_BYTES];
            IndexBlock::encode(&mut block, region_tag(&UUID), no, seq, entries.into_iter());
            self.write(self.layout.index_copy_block(no, copy), &block);
        }
        let mut bytes = vec![0; ROOT_BYTES];
        self.root.encode_into(bytes.first_chunk_mut().expect("32 KiB"));
        self.write(self.layout.root_block(copy), &bytes);
        self.root.header.seq += 1;
    }
}

/// Makes the region.
pub fn region() -> Vec<u8> {
    let layout = Layout::for_region(REGION_BLOCKS).expect("a size that can be");
    let superblock = Superblock {
        region_uuid: UUID,
        origin_id: [3; 16],
        origin_sectors: ORIGIN_BLOCKS * 8,
        region_blocks: REGION_BLOCKS,
        slots: layout.slots,
        created_realtime_s: 1_700_000_000,
    };
    let header = RootHeader { next_op: 1000, ..RootHeader::fresh(UUID) };
    let mut m = Maker {
        bytes: vec![0; REGION_BLOCKS as usize * BLOCK],
        layout,
        entries: BTreeMap::new(),
        root: Root::new(vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS], header),
        next_slot: 0,
    };
    let mut map = vec![0; INTENT_MAP_BYTES];
    let fresh = IntentMap::fresh(Extents::for_origin(ORIGIN_BLOCKS));
    let place = map.first_chunk_mut().expect("32 KiB");
    fresh.encode(place, UUID, std::iter::empty(), |bytes| crc32c(0, bytes));
    m.write(Layout::intent_block(Copy2::A), &map);
    let mut block = [0; SUPERBLOCK_BYTES];
    superblock.encode(&mut block);
    for copy in [Copy2::A, Copy2::B] {
        m.write(layout.superblock_block(copy), &block);
    }
    m.snapshot(&[(0, 3), (10, 2), (40, 12), (100, 20), (590, 10)], 4);
    m.flush();
    // Few of its many chunks are data: they are all read, again and again.
    m.snapshot(&(0..150).map(|i| (4 * i, 1)).collect::<Vec<_>>(), 15);
    m.flush();
    m.snapshot(&[(1, 4), (42, 1)], 4);
    let next = m.root.header.next_snapshot;
    for block in [7, 8, 300] {
        m.slot(&content(block, next), block, SlotKind::Data, next);
    }
    m.flush();
    m.bytes
}
