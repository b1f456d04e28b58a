// SPDX-License-Identifier: GPL-2.0-only

//! What a region says, by the engine's own checks, in the order in which kernel and tools read it; and which of its
//! snapshots are not what they say.

use std::collections::BTreeMap;

use presnap_engine::crc32c::crc32c;
use presnap_engine::geometry::BLOCK_BYTES;
use presnap_engine::manifest::{Chunk, ManifestReader};
use presnap_engine::region::layout::ROOT_BLOCKS;
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES};
use presnap_engine::region::{
    Copy2, IndexBlock, IndexEntry, IndexPick, Layout, Limits, Root, RootHeader, SnapshotRecord,
    SnapshotState, Superblock,
};

/// Bytes of a block.
pub const BLOCK: usize = BLOCK_BYTES as usize;

/// A region's content.
pub trait Blocks {
    /// The region's size.
    fn count(&self) -> u64;
    /// A block; `None` beyond the end.
    fn block(&self, no: u64) -> Option<&[u8]>;

    /// Neighbouring blocks.
    fn run(&self, first: u64, count: u64) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for no in first..first.checked_add(count)? {
            out.extend_from_slice(self.block(no)?);
        }
        Some(out)
    }
}

impl Blocks for [u8] {
    fn count(&self) -> u64 {
        (self.len() / BLOCK) as u64
    }

    fn block(&self, no: u64) -> Option<&[u8]> {
        self.chunks_exact(BLOCK).nth(usize::try_from(no).ok()?)
    }
}

/// A region that was accepted.
pub struct Recovered {
    /// The superblock.
    pub superblock: Superblock,
    /// Where everything lies.
    pub layout: Layout,
    /// The snapshots.
    pub root: Root<Vec<SnapshotRecord>>,
    /// The copy of the root that counts.
    pub root_copy: Copy2,
    /// What the slots hold.
    pub entries: BTreeMap<u32, IndexEntry>,
    /// The copy of each index block that counts; none of those never written.
    pub index_copies: BTreeMap<u32, Copy2>,
}

/// What the fields of a region are checked against.
pub fn limits(superblock: &Superblock, next_snapshot: u32) -> Limits {
    Limits {
        region_uuid: superblock.region_uuid,
        slots: superblock.slots,
        origin_blocks: superblock.origin_blocks(),
        next_snapshot,
    }
}

/// Reads a region; or says why it is refused.
pub fn recover(region: &(impl Blocks + ?Sized)) -> Result<Recovered, String> {
    let words = |e: presnap_engine::region::FormatError| e.to_string();
    let [a, b] = [0, 15].map(|no| region.block(no).unwrap_or_default());
    let superblock = Superblock::pick(a, b).map_err(words)?.value;
    let layout = Layout::for_region(superblock.region_blocks).map_err(|e| e.to_string())?;
    if superblock.region_blocks > region.count() {
        return Err("its end is missing".into());
    }
    let missing = || String::from("a block that cannot be read");
    let mut copies = Vec::new();
    for copy in [Copy2::A, Copy2::B] {
        copies.push(region.run(layout.root_block(copy), ROOT_BLOCKS).ok_or_else(missing)?);
    }
    debug_assert_eq!(copies[0].len(), ROOT_BYTES);
    let limits = limits(&superblock, u32::MAX);
    let picked = RootHeader::pick(&copies[0], &copies[1], &limits).map_err(words)?;
    let records = vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS];
    let root = Root::decode(&copies[picked.copy.index()], records, &limits).map_err(words)?;
    let limits = Limits { next_snapshot: root.header.next_snapshot, ..limits };
    let (mut entries, mut index_copies) = (BTreeMap::new(), BTreeMap::new());
    for no in 0..layout.index_blocks {
        let [a, b] = [Copy2::A, Copy2::B].map(|c| region.block(layout.index_copy_block(no, c)));
        let (a, b) = (a.ok_or_else(missing)?, b.ok_or_else(missing)?);
        if let IndexPick::Found(picked) = IndexBlock::pick(a, b, no, &limits).map_err(words)? {
            entries.extend(picked.value.used());
            index_copies.insert(no, picked.copy);
        }
    }
    Ok(Recovered { superblock, layout, root, root_copy: picked.copy, entries, index_copies })
}

impl Recovered {
    /// What the fields are checked against.
    pub fn limits(&self) -> Limits {
        limits(&self.superblock, self.root.header.next_snapshot)
    }

    /// An index block that cannot be gone on from.
    pub fn index_without_room(&self, region: &(impl Blocks + ?Sized)) -> Option<u32> {
        let limits = self.limits();
        let exhausted = |(&no, &copy): (&u32, &Copy2)| {
            let bytes = region.block(self.layout.index_copy_block(no, copy))?;
            IndexBlock::decode(bytes, no, &limits).ok()?.check_room().err().map(|_| no)
        };
        self.index_copies.iter().find_map(exhausted)
    }

    /// The chunks of a snapshot, and the slots of its manifest.
    pub fn manifest(
        &self,
        region: &(impl Blocks + ?Sized),
        record: &SnapshotRecord,
    ) -> Result<(Vec<Chunk>, Vec<u32>), String> {
        let mut reader = ManifestReader::new(record, &self.limits());
        let (mut chunks, mut slots) = (Vec::new(), Vec::new());
        let mut next = Some(record.manifest_head_slot).filter(|_| record.manifest_pages > 0);
        while let Some(slot) = next {
            // The reader counts pages, so a list that bites its tail ends, too.
            assert!(slots.len() < record.manifest_pages as usize, "a manifest without end");
            let bytes =
                region.block(self.layout.slot_block(slot)).ok_or("a slot that is not there")?;
            let page = reader.page(bytes).map_err(|e| e.to_string())?;
            chunks.extend(page.chunks());
            slots.push(slot);
            next = page.next_page_slot;
        }
        reader.finish().map_err(|e| e.to_string())?;
        Ok((chunks, slots))
    }

    /// The content of a chunk.
    pub fn content(&self, region: &(impl Blocks + ?Sized), chunk: &Chunk) -> Vec<u8> {
        if chunk.is_zero() {
            return vec![0; chunk.length_blocks as usize * BLOCK];
        }
        region
            .run(self.layout.slot_block(chunk.slot), chunk.length_blocks.into())
            .unwrap_or_default()
    }

    /// The sealed snapshots whose manifest is refused, or whose content is not what the manifest says.
    pub fn damaged(&self, region: &(impl Blocks + ?Sized)) -> Vec<u32> {
        let sealed = self.root.iter().filter(|r| r.state == SnapshotState::Sealed);
        let bad = sealed.filter(|r| match self.manifest(region, r) {
            Ok((chunks, _)) => chunks
                .iter()
                .any(|c| !c.is_zero() && crc32c(0, &self.content(region, c)) != c.checksum),
            Err(_) => true,
        });
        bad.map(|r| r.id).collect()
    }
}
