// SPDX-License-Identifier: GPL-2.0-only

//! What a region says, read from its blocks with nothing but the engine's formats.

use presnap_engine::manifest::{Chunk, ManifestReader};
use presnap_engine::region::intent::INTENT_MAP_BYTES;
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES};
use presnap_engine::region::superblock::SUPERBLOCK_BYTES;
use presnap_engine::region::{
    Copy2, Extents, IndexBlock, IndexEntry, IndexPick, IntentMap, Layout, Limits, Root, RootHeader,
    SnapshotRecord, Superblock,
};
use presnap_machine::blocks::{Block, Blocks, BLOCK, BLOCK_SECTORS};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A region that was read.
pub(crate) struct Region<'a> {
    blocks: &'a Blocks,
    layout: Layout,
    limits: Limits,
    /// The root.
    pub(crate) root: Root<Vec<SnapshotRecord>>,
    /// What the slots in use hold.
    pub(crate) index: BTreeMap<u32, IndexEntry>,
}

/// Writes a fresh region, as `presnap format` does.
pub(crate) fn format(region_blocks: u64, origin_sectors: u64, uuid: [u8; 16]) -> Blocks {
    let mut blocks = Blocks::zeroed(region_blocks);
    let layout = Layout::for_region(region_blocks).expect("a region of this size");
    let mut root = Box::new([0; ROOT_BYTES]);
    Root::new(Vec::<SnapshotRecord>::new(), RootHeader::fresh(uuid)).encode_into(&mut root);
    blocks.write(layout.root_block(Copy2::A) * BLOCK_SECTORS, &root[..]);
    let extents = Extents::for_origin(origin_sectors.div_ceil(BLOCK_SECTORS));
    let mut map = Box::new([0; INTENT_MAP_BYTES]);
    let masks = std::iter::empty();
    IntentMap::fresh(extents).encode(&mut map, uuid, masks, crc32c::crc32c);
    blocks.write(Layout::intent_block(Copy2::A) * BLOCK_SECTORS, &map[..]);
    let superblock = Superblock {
        region_uuid: uuid,
        origin_id: [0; 16],
        origin_sectors,
        region_blocks,
        slots: layout.slots,
        created_realtime_s: 1_700_000_000,
    };
    let mut block = [0; SUPERBLOCK_BYTES];
    superblock.encode(&mut block);
    for copy in [Copy2::A, Copy2::B] {
        blocks.write(layout.superblock_block(copy) * BLOCK_SECTORS, &block);
    }
    blocks
}

fn bytes(blocks: &Blocks, first: u64, count: u64) -> Vec<u8> {
    blocks.read(first * BLOCK_SECTORS, count * BLOCK_SECTORS)
}

impl<'a> Region<'a> {
    /// Reads superblock, root and index.
    pub(crate) fn read(blocks: &'a Blocks) -> Result<Self, String> {
        let layout = Layout::for_region(blocks.len()).map_err(|e| e.to_string())?;
        let [a, b] = [Copy2::A, Copy2::B].map(|c| bytes(blocks, layout.superblock_block(c), 1));
        let superblock = Superblock::pick(&a, &b).map_err(|e| e.to_string())?.value;
        // The disk may have grown since.
        let layout = Layout::for_region(superblock.region_blocks).map_err(|e| e.to_string())?;
        let mut limits = Limits {
            region_uuid: superblock.region_uuid,
            slots: layout.slots,
            origin_blocks: superblock.origin_blocks(),
            next_snapshot: u32::MAX,
        };
        let root_blocks = (ROOT_BYTES / BLOCK) as u64;
        let [a, b] = [Copy2::A, Copy2::B].map(|c| bytes(blocks, layout.root_block(c), root_blocks));
        let decode =
            |bytes: &[u8]| Root::decode(bytes, vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS], &limits);
        let root = match (decode(&a), decode(&b)) {
            (Ok(a), Ok(b)) if b.header.seq > a.header.seq => b,
            (Ok(a), _) => a,
            (Err(_), Ok(b)) => b,
            (Err(e), Err(_)) => return Err(e.to_string()),
        };
        limits.next_snapshot = root.header.next_snapshot;
        let mut index = BTreeMap::new();
        for number in 0..layout.index_blocks {
            let both = [Copy2::A, Copy2::B].map(|c| layout.index_copy_block(number, c));
            let [a, b] = both.map(|block| &blocks.block(block)[..]);
            match IndexBlock::pick(a, b, number, &limits) {
                Ok(IndexPick::Blank { .. }) => {}
                Ok(IndexPick::Found(picked)) => index.extend(picked.value.used()),
                Err(e) => return Err(format!("index block {number}: {e}")),
            }
        }
        Ok(Self { blocks, layout, limits, root, index })
    }

    /// Blocks of the origin that it is for.
    pub(crate) fn origin_blocks(&self) -> u64 {
        self.limits.origin_blocks
    }

    /// The content of a slot.
    pub(crate) fn slot(&self, slot: u32) -> &Rc<Block> {
        self.blocks.block(self.layout.slot_block(slot))
    }

    /// The chunks of a snapshot, and the slots of its manifest.
    pub(crate) fn manifest(
        &self,
        record: &SnapshotRecord,
    ) -> Result<(Vec<Chunk>, Vec<u32>), String> {
        let mut reader = ManifestReader::new(record, &self.limits);
        let (mut chunks, mut pages) = (Vec::new(), Vec::new());
        let mut next = Some(record.manifest_head_slot).filter(|_| record.manifest_pages > 0);
        while let Some(slot) = next {
            let page =
                reader.page(&self.slot(slot)[..]).map_err(|e| format!("slot {slot}: {e}"))?;
            chunks.extend(page.chunks());
            pages.push(slot);
            next = page.next_page_slot;
        }
        reader.finish().map_err(|e| e.to_string())?;
        Ok((chunks, pages))
    }
}
