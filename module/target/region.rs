// SPDX-License-Identifier: GPL-2.0-only

//! Opening a region: reading what is there, and deciding what of it counts.

use crate::device::{empty_slots, Parts, RootTable, Slots};
use crate::presnap::layout_error;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::clock::crc32c;
use presnap_abi::dm::{BlockDevice, Constructor};
use presnap_abi::io::{Client, Durability, Transfer};
use presnap_abi::memory::array_of;
use presnap_abi::thread::Wake;
use presnap_engine::geometry::{BLOCK_BYTES, BLOCK_SECTORS};
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES, ROOT_CLEAN, ROOT_FULL_NEEDED};
use presnap_engine::region::{
    Copy2, FormatError, IndexBlock, IndexPick, Layout, Limits, Picked, Root, RootHeader, Scope,
    SlotKind, SnapshotRecord, SnapshotState, Superblock,
};
use presnap_engine::table::Features;

/// Operation numbers reserved ahead: after a crash, numbering goes on behind them.
pub(crate) const OP_RESERVE: u64 = 1 << 40;

/// Index blocks read at once: 64 pairs.
const INDEX_PAIRS: u32 = 64;
const BUFFER_BYTES: usize = (INDEX_PAIRS as usize) * 2 * BLOCK_BYTES as usize;

/// What is known of an index block on disk.
#[derive(Clone, Copy)]
pub(crate) struct IndexState {
    /// Sequence number of the newest copy; 0 if there is none.
    pub(crate) seq: u64,
    /// Where the next version goes.
    pub(crate) next: Copy2,
    /// Whether it is being written.
    pub(crate) in_flight: bool,
    /// The slot table was changed while the region was opened: the newest copy says something else.
    pub(crate) outdated: bool,
}

impl IndexState {
    const BLANK: Self = Self { seq: 0, next: Copy2::A, in_flight: false, outdated: false };
}

/// What a region's slots hold, and what is known of the index blocks that say so.
struct Table {
    slots: Slots,
    index: KVVec<IndexState>,
}

impl Table {
    fn note_change(&mut self, layout: &Layout, slot: u32) {
        if let Some(state) = self.index.get_mut(layout.index_block(slot).0 as usize) {
            state.outdated = true;
        }
    }

    fn free(&mut self, layout: &Layout, slot: u32) {
        self.slots.free(slot);
        self.note_change(layout, slot);
    }
}

/// An opened region.
pub(crate) struct Opened {
    pub(crate) parts: Parts,
    pub(crate) index: KVVec<IndexState>,
    /// Where the next version of the root goes.
    pub(crate) root_next: Copy2,
}

struct Reader<'a, 'c> {
    ctor: &'a mut Constructor<'c>,
    region: BlockDevice,
    transfer: KBox<Transfer>,
}

impl Reader<'_, '_> {
    fn read(&mut self, block: u64, blocks: u32) -> Result<&mut [u8]> {
        let bytes = blocks as usize * BLOCK_BYTES as usize;
        let sector = block.saturating_mul(BLOCK_SECTORS.into());
        if self.transfer.read_wait(&self.region, sector, bytes).is_err() {
            self.ctor.error(c"Cannot read the region device");
            return Err(EIO);
        }
        self.transfer.buffer().and_then(|b| b.get_mut(..bytes)).ok_or(EIO)
    }

    fn refuse<T>(&mut self, error: FormatError, message: &'static CStr) -> Result<T> {
        pr_err!("{}: {}\n", self.region.number(), format_args!("{error}"));
        self.ctor.error(message);
        Err(EINVAL)
    }

    fn superblock(&mut self, layout: &Layout) -> Result<Superblock> {
        let (a, b) = (layout.superblock_block(Copy2::A), layout.superblock_block(Copy2::B));
        let offset = b.saturating_sub(a) as usize * BLOCK_BYTES as usize;
        let count = b.saturating_sub(a).saturating_add(1) as u32;
        let buf = self.read(a, count)?;
        let second = buf.get(offset..).unwrap_or(&[]);
        match Superblock::pick(buf, second) {
            Ok(Picked { value, other_fault, .. }) => {
                if let Some(fault) = other_fault {
                    pr_warn!(
                        "{}: one copy of the {}\n",
                        self.region.number(),
                        format_args!("{fault}")
                    );
                }
                Ok(value)
            }
            Err(e) => self.refuse(e, c"Region is not formatted, or its superblocks are damaged"),
        }
    }

    fn root(&mut self, layout: &Layout, limits: &Limits) -> Result<(RootTable, Copy2)> {
        let records = array_of(MAX_SNAPSHOTS, SnapshotRecord::ZERO)?;
        let start = layout.root_block(Copy2::A);
        let blocks = (2 * ROOT_BYTES) as u32 / BLOCK_BYTES;
        let buf = self.read(start, blocks)?;
        let (a, b) = buf.split_at_checked(ROOT_BYTES).ok_or(EIO)?;
        let picked = match RootHeader::pick(a, b, limits) {
            Ok(picked) => picked,
            Err(e) => return self.refuse(e, c"Region is damaged: no valid root"),
        };
        let bytes = if picked.copy == Copy2::A { a } else { b };
        match Root::decode(bytes, records, limits) {
            Ok(root) => Ok((root, picked.copy.other())),
            Err(e) => self.refuse(e, c"Region is damaged: no valid root"),
        }
    }

    fn table(&mut self, layout: &Layout, limits: &Limits) -> Result<Table> {
        let mut slots = empty_slots(layout)?;
        let mut states = array_of(layout.index_blocks as usize, IndexState::BLANK)?;
        let mut first = 0;
        while first < layout.index_blocks {
            let pairs = INDEX_PAIRS.min(layout.index_blocks.saturating_sub(first));
            let block = layout.index_copy_block(first, Copy2::A);
            let region = self.region;
            let buf = self.read(block, pairs.saturating_mul(2))?;
            for (i, pair) in (0u32..).zip(buf.chunks_exact(2 * BLOCK_BYTES as usize)) {
                let number = first.saturating_add(i);
                let (a, b) = pair.split_at_checked(BLOCK_BYTES as usize).ok_or(EIO)?;
                let picked = match IndexBlock::pick(a, b, number, limits) {
                    Ok(IndexPick::Found(picked)) => picked,
                    Ok(IndexPick::Blank { .. }) => continue,
                    Err(e) => {
                        pr_err!(
                            "{}: index block {number}: {}\n",
                            region.number(),
                            format_args!("{e}")
                        );
                        self.ctor.error(c"Region is damaged: an index block is not valid");
                        return Err(EINVAL);
                    }
                };
                if let Some(state) = states.get_mut(number as usize) {
                    state.seq = picked.value.seq();
                    state.next = picked.copy.other();
                }
                for (slot, e) in picked.value.used() {
                    // Two slots for one block: of a copy that was made again before the index
                    // block of the first was written. Neither snapshot nor block is sealed then.
                    let _ = slots.insert(slot, e.snapshot, e.block, e.kind, e.crc);
                }
            }
            first = first.saturating_add(pairs);
        }
        Ok(Table { slots, index: states })
    }

    /// Whether the slot holds what its index entry says.
    fn verify(&mut self, layout: &Layout, slot: u32, crc: u32) -> Result<bool> {
        let data = self.read(layout.slot_block(slot), 1)?;
        Ok(crc32c(data) == crc)
    }

    /// Frees slots of images that do not hold what their entries say, after a crash.
    ///
    /// A guard writes data and entry at the same time if it may, and lets its writer go when both are
    /// durable: of an entry without its data the origin still has the block.
    fn free_unfinished(&mut self, layout: &Layout, root: &RootTable, t: &mut Table) -> Result {
        let Some(oldest) = root.iter().find(|r| r.scope == Scope::Image).map(|r| r.id) else {
            return Ok(());
        };
        let mut first = 0;
        while first < layout.slots {
            let count = (INDEX_PAIRS * 2).min(layout.slots.saturating_sub(first));
            let wanted = |slots: &Slots, i: u32| {
                let slot = first.saturating_add(i);
                let entry = slots.entry(slot)?;
                let image = entry.kind == SlotKind::Data && entry.snapshot >= oldest;
                image.then_some((slot, entry.crc))
            };
            if (0..count).any(|i| wanted(&t.slots, i).is_some()) {
                let data = self.read(layout.slot_block(first), count)?;
                for (i, block) in (0..count).zip(data.chunks_exact(BLOCK_BYTES as usize)) {
                    if let Some((slot, crc)) = wanted(&t.slots, i) {
                        if crc32c(block) != crc {
                            t.free(layout, slot);
                        }
                    }
                }
            }
            first = first.saturating_add(count);
        }
        Ok(())
    }

    /// Frees what belongs to no sealed snapshot: the remains of one that was under way.
    ///
    /// If an image is live, what an unfinished snapshot preserved may be the only copy of what the
    /// image needs (it reads S(N), then S(N+1), ...): that goes to the newest sealed one, unless it
    /// has the block itself. Returns the highest snapshot number seen.
    fn adopt_orphans(&mut self, layout: &Layout, root: &RootTable, t: &mut Table) -> Result<u32> {
        let newest = root.newest().map(|r| r.id);
        let image = image_is_live(root);
        let mut last = 0u32;
        // The smallest number first: it is the oldest content.
        loop {
            let orphans = (0..t.slots.total()).filter_map(|slot| t.slots.entry(slot));
            let ids = orphans.map(|e| e.snapshot).filter(|&id| id > last);
            let Some(id) = ids.filter(|&id| root.find(id).is_none()).min() else { break };
            last = id;
            for slot in 0..t.slots.total() {
                let Some(e) = t.slots.entry(slot).filter(|e| e.snapshot == id) else { continue };
                let heir = newest.filter(|&n| {
                    image
                        && n < id
                        && e.kind == SlotKind::Data
                        && t.slots.lookup(n, e.block).is_none()
                });
                match heir {
                    Some(heir) if self.verify(layout, slot, e.crc)? => {
                        let _ = t.slots.reassign(slot, heir);
                        t.note_change(layout, slot);
                    }
                    _ => t.free(layout, slot),
                }
            }
        }
        Ok(last)
    }
}

/// Whether a snapshot is there whose image can be read.
pub(crate) fn image_is_live(root: &RootTable) -> bool {
    root.iter().any(|r| r.scope == Scope::Image && r.state == SnapshotState::Sealed)
}

/// Reads a region and checks that it belongs to the origin. Sleeps.
pub(crate) fn open(
    ctor: &mut Constructor<'_>,
    origin: BlockDevice,
    region: BlockDevice,
    sectors: u64,
    features: &Features,
) -> Result<Opened> {
    let layout = Layout::for_region(region.sectors() / u64::from(BLOCK_SECTORS)).map_err(|e| {
        ctor.error(layout_error(e));
        EINVAL
    })?;
    let client = Client::new()?;
    let wake = Arc::pin_init(Wake::new(), GFP_KERNEL)?;
    let transfer = Transfer::new(&client, &wake, BUFFER_BYTES)?;
    let mut reader = Reader { ctor, region, transfer };

    let sb = reader.superblock(&layout)?;
    // The region may have grown since it was formatted; what it was formatted for counts.
    let layout = Layout::for_region(sb.region_blocks).map_err(|_| EINVAL)?;
    if sb.region_blocks > region.sectors() / u64::from(BLOCK_SECTORS) {
        reader.ctor.error(c"Region device is smaller than when it was formatted");
        return Err(EINVAL);
    }
    if sb.origin_sectors != sectors {
        reader.ctor.error(c"Region belongs to an origin of another size");
        return Err(EINVAL);
    }
    if features.origin_id.is_some_and(|id| sb.origin_id != [0; 16] && sb.origin_id != id) {
        reader.ctor.error(c"Region belongs to another origin");
        return Err(EINVAL);
    }
    let mut limits = Limits {
        region_uuid: sb.region_uuid,
        slots: layout.slots,
        origin_blocks: sb.origin_blocks(),
        next_snapshot: u32::MAX,
    };
    let (mut root, root_next) = reader.root(&layout, &limits)?;
    limits.next_snapshot = root.header.next_snapshot;
    let mut table = reader.table(&layout, &limits)?;
    let clean = root.header.flags & ROOT_CLEAN != 0;
    if !clean {
        reader.free_unfinished(&layout, &root, &mut table)?;
    }
    let highest = reader.adopt_orphans(&layout, &root, &mut table)?;
    let Table { slots, index } = table;
    // A number that was used for something unfinished is not used again: its remains on disk must
    // not be taken for the new one's.
    root.header.next_snapshot = root.header.next_snapshot.max(highest.saturating_add(1));

    if !clean {
        pr_warn!("{}: was not closed in order; the next delta is full\n", region.number());
    }
    let full_needed = !clean || root.header.flags & ROOT_FULL_NEEDED != 0;
    // What was written since the last snapshot is only in memory, so after any reopening the next
    // snapshot's delta is not known, unless nothing was written.
    let parts = Parts {
        region_uuid: sb.region_uuid,
        origin,
        region,
        layout,
        origin_sectors: sectors,
        slots,
        root,
        full_needed,
    };
    let mut opened = Opened { parts, index, root_next };
    mark_open(&mut opened, &mut reader)?;
    Ok(opened)
}

/// Writes the root without the mark of an orderly close.
fn mark_open(opened: &mut Opened, reader: &mut Reader<'_, '_>) -> Result {
    let header = &mut opened.parts.root.header;
    header.flags &= !ROOT_CLEAN;
    header.seq = header.seq.saturating_add(1);
    let first_op = header.next_op;
    header.next_op = first_op.saturating_add(OP_RESERVE);
    let block = opened.parts.layout.root_block(opened.root_next);
    let sector = block.saturating_mul(BLOCK_SECTORS.into());
    let written = {
        let buf = reader.transfer.buffer().ok_or(EIO)?;
        let out = buf.first_chunk_mut::<ROOT_BYTES>().ok_or(EIO)?;
        opened.parts.root.encode_into(out);
        reader.transfer.write_wait(&reader.region, sector, ROOT_BYTES, Durability::Barrier)
    };
    opened.parts.root.header.next_op = first_op;
    opened.root_next = opened.root_next.other();
    if written.is_err() {
        reader.ctor.error(c"Cannot write to the region device");
        return Err(EIO);
    }
    Ok(())
}
