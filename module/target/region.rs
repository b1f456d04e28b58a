// SPDX-License-Identifier: GPL-2.0-only

//! Opening a region: reading what is there, and deciding what of it counts.

use crate::device::{block_map, empty_slots, BlockMap, Device, Parts, RootTable, Slots};
use crate::presnap::layout_error;
use crate::worker::Found;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::clock::crc32c;
use presnap_abi::dm::{BlockDevice, Constructor};
use presnap_abi::io::{Client, Durability, Transfer};
use presnap_abi::memory::array_of;
use presnap_abi::thread::Wake;
use presnap_engine::geometry::{AREA_BLOCKS_SHIFT, BLOCK_BYTES, BLOCK_SECTORS};
use presnap_engine::intent::IntentOrder;
use presnap_engine::region::index::DIRTY_PAGE_BLOCKS;
use presnap_engine::region::intent::{replay, ExtentRun, INTENT_MAP_BYTES};
use presnap_engine::region::layout::{INTENT_START_BLOCKS, LOG_BLOCKS, LOG_START_BLOCK};
use presnap_engine::region::root::{
    MAX_SNAPSHOTS, OP_RESERVE, ROOT_AFTER_CRASH, ROOT_BYTES, ROOT_CLEAN, ROOT_FULL_NEEDED,
};
use presnap_engine::region::{
    Copy2, Extents, FormatError, IndexBlock, IndexEntry, IndexPick, IntentMap, Layout, Limits,
    OriginError, OriginGrowth, Picked, Root, RootHeader, Scope, SlotKind, SnapshotRecord,
    SnapshotState, Superblock, NO_SLOT,
};
use presnap_engine::slots::{Doubt, SlotError};
use presnap_engine::table::Features;

/// The most that is read at once: both copies of the intent map, and the log.
const BUFFER_BLOCKS: u64 = LOG_START_BLOCK + LOG_BLOCKS - INTENT_START_BLOCKS[0];
/// Nothing that counts that far was counted; what would be written next might not count.
const EXHAUSTED: &CStr = c"Region has used up its numbers: format it anew";
/// A table of another length than the region is for.
const ORIGIN_SMALLER: &CStr =
    c"Region belongs to a smaller origin: load that length, resume, then reload with the larger one";
pub(crate) const ORIGIN_LARGER: &CStr =
    c"Region belongs to a larger origin: it does not shrink; format it anew, without its snapshots";
const BUFFER_BYTES: usize = BUFFER_BLOCKS as usize * BLOCK_BYTES as usize;

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
    pub(crate) const BLANK: Self =
        Self { seq: 0, next: Copy2::A, in_flight: false, outdated: false };
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
    pub(crate) found: Found,
    /// To be set before the device is used.
    pub(crate) mark: Mark,
}

/// What has changed since the last snapshot, as far as the region says.
struct Changes {
    extents: Extents,
    intents: BlockMap,
    dirty: BlockMap,
    dirty_pages: KVVec<u32>,
    /// Blocks that only intent speaks for.
    superset_blocks: u64,
    order: IntentOrder,
    /// The highest number of a snapshot that a page of the dirty map is for.
    newest_page: u32,
    /// Nothing can be said of what has changed.
    lost: bool,
    /// Then: the map to begin anew with, and where it goes.
    fresh: Option<(IntentMap, Copy2)>,
}

/// Why a region was refused, for whoever asked for it.
#[derive(Default)]
pub(crate) struct Words(Option<&'static CStr>);

impl Words {
    pub(crate) fn error(&mut self, words: &'static CStr) {
        self.0 = Some(words);
    }

    /// Hands them to a constructor, which has its own for what has none.
    pub(crate) fn tell(&self, ctor: &mut Constructor<'_>) {
        if let Some(words) = self.0 {
            ctor.error(words);
        }
    }

    pub(crate) fn as_str(&self) -> &'static str {
        self.0.and_then(|words| words.to_str().ok()).unwrap_or("not enough memory")
    }
}

struct Reader<'a> {
    ctor: &'a mut Words,
    region: BlockDevice,
    transfer: KBox<Transfer>,
}

impl Reader<'_> {
    fn read(&mut self, block: u64, blocks: u32) -> Result<&mut [u8]> {
        let bytes = blocks as usize * BLOCK_BYTES as usize;
        let sector = block.saturating_mul(BLOCK_SECTORS.into());
        if self.transfer.read_wait(&self.region, sector, bytes).is_err() {
            self.ctor.error(c"Cannot read the region device");
            return Err(EIO);
        }
        self.transfer.buffer().and_then(|b| b.get_mut(..bytes)).ok_or(EIO)
    }

    /// Writes what is in the buffer, durably.
    fn write(&mut self, block: u64, bytes: usize) -> Result {
        let sector = block.saturating_mul(BLOCK_SECTORS.into());
        if self.transfer.write_wait(&self.region, sector, bytes, Durability::Barrier).is_err() {
            self.ctor.error(c"Cannot write to the region device");
            return Err(EIO);
        }
        Ok(())
    }

    fn refuse<T>(&mut self, error: FormatError, message: &'static CStr) -> Result<T> {
        pr_err!("{}: {}\n", self.region.number(), format_args!("{error}"));
        self.ctor.error(message);
        Err(EINVAL)
    }

    /// The superblock, and the copy of it that is not good.
    fn superblock(&mut self, layout: &Layout) -> Result<(Superblock, Option<Copy2>)> {
        let (a, b) = (layout.superblock_block(Copy2::A), layout.superblock_block(Copy2::B));
        let offset = b.saturating_sub(a) as usize * BLOCK_BYTES as usize;
        let count = b.saturating_sub(a).saturating_add(1) as u32;
        let buf = self.read(a, count)?;
        let second = buf.get(offset..).unwrap_or(&[]);
        match Superblock::pick(buf, second) {
            Ok(Picked { value, other_fault, copy }) => {
                if let Some(fault) = other_fault {
                    pr_warn!(
                        "{}: one copy of the {}\n",
                        self.region.number(),
                        format_args!("{fault}")
                    );
                }
                Ok((value, other_fault.map(|_| copy.other())))
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
        if let Err(e) = picked.value.check_room() {
            return self.refuse(e, EXHAUSTED);
        }
        let bytes = if picked.copy == Copy2::A { a } else { b };
        match Root::decode(bytes, records, limits) {
            Ok(root) => Ok((root, picked.copy.other())),
            Err(e) => self.refuse(e, c"Region is damaged: no valid root"),
        }
    }

    fn table(&mut self, layout: &Layout, limits: &Limits) -> Result<Table> {
        let mut slots = empty_slots(layout)?;
        let mut states = array_of(layout.index_blocks as usize, IndexState::BLANK)?;
        let mut budget = slots.load_budget();
        let mut first = 0;
        while first < layout.index_blocks {
            let pairs = layout.index_run(first).max(1);
            let block = layout.index_copy_block(first, Copy2::A);
            let region = self.region;
            let buf = self.read(block, pairs.saturating_mul(2))?;
            let mut numbers = first..layout.index_blocks;
            for pair in buf.chunks_exact(2 * BLOCK_BYTES as usize) {
                let Some(number) = numbers.next() else { break };
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
                if let Err(e) = picked.value.check_room() {
                    return self.refuse(e, EXHAUSTED);
                }
                if let Some(state) = states.get_mut(number as usize) {
                    state.seq = picked.value.seq();
                    state.next = picked.copy.other();
                }
                let crowded = picked
                    .value
                    .used()
                    .any(|(slot, e)| slots.load(slot, &e, &mut budget) == Err(SlotError::Crowded));
                if crowded {
                    pr_err!("{}: {}\n", region.number(), SlotError::Crowded.as_str());
                    self.ctor.error(c"Region is damaged: its index cannot be");
                    return Err(EINVAL);
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

    /// Frees slots that do not hold what their entries say, of those of which that can be.
    ///
    /// A guard writes data and entry at the same time if it may, and lets its writer go when both are durable: of an entry
    /// without its data the origin still has the block. Such entries are marked, and few.
    fn settle_doubts(&mut self, layout: &Layout, t: &mut Table) -> Result {
        for slot in 0..t.slots.total() {
            let Some(doubt) = t.slots.doubt(slot) else { continue };
            let Some(e) = t.slots.entry(slot) else { continue };
            // Of two that are both right, the first stays: it was found right before.
            let second = matches!(doubt, Doubt::Double { other } if other < slot);
            if second || !self.verify(layout, slot, e.crc)? {
                t.free(layout, slot);
            } else if e.kind == SlotKind::Unconfirmed {
                t.slots.confirm(slot);
                t.note_change(layout, slot);
            }
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
        let mut highest = 0u32;
        for slot in 0..t.slots.total() {
            let old_page =
                |e: &IndexEntry| e.kind == SlotKind::Dirty && e.snapshot <= root.header.base_id;
            // Pages of the dirty map of generations that are in a snapshot have no use any more.
            if t.slots.entry(slot).as_ref().is_some_and(old_page) {
                t.free(layout, slot);
            }
        }
        let orphan = |e: &IndexEntry| e.kind != SlotKind::Dirty && root.find(e.snapshot).is_none();
        for slot in 0..t.slots.total() {
            // Each turn takes one orphan of this block away, at last the one in this slot. Of how many snapshots there
            // are orphans does not matter: who made the region may have made that many.
            while let Some(e) = t.slots.entry(slot).filter(orphan) {
                highest = highest.max(e.snapshot);
                let heir = newest.filter(|&n| {
                    image
                        && n < e.snapshot
                        && e.kind == SlotKind::Data
                        && t.slots.lookup(n, e.block).is_none()
                });
                // The smallest number has the oldest content.
                let oldest = heir.and_then(|heir| {
                    let (_, from) = t.slots.lookup_at_or_after(heir.saturating_add(1), e.block)?;
                    Some((heir, from, t.slots.entry(from)?.crc))
                });
                let Some((heir, from, crc)) = oldest else {
                    t.free(layout, slot);
                    continue;
                };
                if self.verify(layout, from, crc)? && t.slots.reassign(from, heir).is_ok() {
                    t.note_change(layout, from);
                } else {
                    t.free(layout, from);
                }
            }
        }
        Ok(highest)
    }

    /// Finds out what has changed since the last snapshot: what is in pages of the dirty map, and all of the extents
    /// that there is intent for.
    ///
    /// Below block `from`, what there is intent for has not changed.
    fn changes(
        &mut self,
        layout: &Layout,
        limits: &Limits,
        slots: &Slots,
        from: u64,
    ) -> Result<Changes> {
        let extents = Extents::for_origin(limits.origin_blocks);
        let intents = block_map(extents.count.into())?;
        let region = self.region;
        let (map_bytes, tag) = (2 * INTENT_MAP_BYTES, limits.region_tag());
        let buf = self.read(INTENT_START_BLOCKS[0], BUFFER_BLOCKS as u32)?;
        let (maps, log) = buf.split_at_checked(map_bytes).ok_or(EIO)?;
        let (a, b) = maps.split_at_checked(INTENT_MAP_BYTES).ok_or(EIO)?;
        let mut lost = false;
        let picked = match IntentMap::pick(a, b, limits) {
            Ok(picked) => picked,
            Err(e) => {
                pr_err!("{}: {}: the next delta is full\n", region.number(), format_args!("{e}"));
                lost = true;
                Picked { copy: Copy2::B, value: IntentMap::fresh(extents), other_fault: None }
            }
        };
        let map = picked.value;
        if !lost {
            let bytes = if picked.copy == Copy2::A { a } else { b };
            for (area, mask) in (0..intents.areas()).zip(IntentMap::masks(bytes)) {
                intents.set_area(area, mask);
            }
        }
        let replayed = replay(log, &map, tag, |run| {
            intents.set_range(run.start.into(), run.len.into());
        });
        if replayed.gap && !lost {
            pr_err!("{}: the intent log is damaged: the next delta is full\n", region.number());
            lost = true;
        }
        let mut order = IntentOrder::new(map.seq, picked.copy, map.log_seq, replayed.last_seq);
        let mut fresh = None;
        if lost {
            // Begin anew, behind all that is there; but not before the root says that the next delta is full.
            intents.clear_all();
            let newest = replayed.newest_seq.max(map.log_seq);
            let next = IntentMap { seq: map.seq.saturating_add(1), log_seq: newest, extents };
            fresh = Some((next, picked.copy.other()));
            order = IntentOrder::new(next.seq, picked.copy.other(), newest, newest);
        }
        let dirty = block_map(limits.origin_blocks)?;
        let pages = limits.origin_blocks.div_ceil(DIRTY_PAGE_BLOCKS);
        let mut dirty_pages = array_of(pages as usize, NO_SLOT)?;
        let mut superset_blocks = 0u64;
        let mut newest_page = 0;
        for slot in 0..slots.total() {
            let dirty_page = |e: &IndexEntry| e.kind == SlotKind::Dirty;
            let Some(e) = slots.entry(slot).filter(dirty_page) else { continue };
            // Of two pages with one number, each has some of the blocks.
            let data = self.read(layout.slot_block(slot), 1)?;
            let first = e.block.saturating_mul(DIRTY_PAGE_BLOCKS);
            if crc32c(data) == e.crc {
                let first_area = first >> AREA_BLOCKS_SHIFT;
                for (area, pair) in (first_area..dirty.areas()).zip(data.chunks_exact(2)) {
                    let mask = pair.first_chunk::<2>().map_or(0, |pair| u16::from_le_bytes(*pair));
                    dirty.set_area(area, mask);
                }
            } else {
                pr_warn!("{}: page {} of the dirty map is damaged\n", region.number(), e.block);
                let blocks = limits.origin_blocks.saturating_sub(first).min(DIRTY_PAGE_BLOCKS);
                superset_blocks = superset_blocks.saturating_add(dirty.set_range(first, blocks));
            }
            newest_page = newest_page.max(e.snapshot);
            if let Some(place) = dirty_pages.get_mut(e.block as usize) {
                *place = slot;
            }
        }
        let mut extent = 0;
        while let Some(next) = intents.next_set(extent) {
            let (first, count) = extents.blocks(next);
            let end = first.saturating_add(count).min(limits.origin_blocks);
            let first = first.max(from);
            let count = end.saturating_sub(first);
            superset_blocks = superset_blocks.saturating_add(dirty.set_range(first, count));
            extent = next.saturating_add(1);
        }
        Ok(Changes {
            extents,
            intents,
            dirty,
            dirty_pages,
            superset_blocks,
            order,
            newest_page,
            lost,
            fresh,
        })
    }
}

/// Whether a snapshot is there whose image can be read.
pub(crate) fn image_is_live(root: &RootTable) -> bool {
    root.iter().any(|r| r.scope == Scope::Image && r.state == SnapshotState::Sealed)
}

/// Forgets what is not sealed. No such record is written by this target, and all else relies on it: on the content of
/// an image, and on the base of the next delta, which without it is not known.
fn forget_unsealed(region: BlockDevice, root: &mut RootTable) {
    while let Some(r) = root.iter().find(|r| r.state != SnapshotState::Sealed).copied() {
        pr_warn!("{}: snapshot {} is {}: forgotten\n", region.number(), r.id, r.state.as_str());
        let _ = root.remove(r.id);
        root.header.flags |= ROOT_FULL_NEEDED;
    }
}

/// Begins to read a region.
fn begin(words: &mut Words, region: BlockDevice) -> Result<(Reader<'_>, Layout)> {
    let layout = Layout::for_region(region.sectors() / u64::from(BLOCK_SECTORS)).map_err(|e| {
        words.error(layout_error(e));
        EINVAL
    })?;
    let client = Client::new()?;
    let wake = Arc::pin_init(Wake::new(), GFP_KERNEL)?;
    let transfer = Transfer::new(&client, &wake, BUFFER_BYTES)?;
    Ok((Reader { ctor: words, region, transfer }, layout))
}

/// Makes a closed region one of a larger origin, as `presnap_engine::region::origin` has it; returns the first block that may
/// have changed because there is intent for it. Sleeps.
pub(crate) fn grow_origin(words: &mut Words, region: BlockDevice, sectors: u64) -> Result<u64> {
    let (mut reader, layout) = begin(words, region)?;
    let (superblock, _) = reader.superblock(&layout)?;
    let layout = Layout::for_region(superblock.region_blocks).map_err(|_| EINVAL)?;
    let mut limits = Limits {
        region_uuid: superblock.region_uuid,
        slots: layout.slots,
        origin_blocks: superblock.origin_blocks(),
        next_snapshot: u32::MAX,
    };
    let (root, _) = reader.root(&layout, &limits)?;
    limits.next_snapshot = root.header.next_snapshot;
    let closed = root.header.flags & ROOT_CLEAN != 0;
    let buf = reader.read(INTENT_START_BLOCKS[0], BUFFER_BLOCKS as u32)?;
    let (maps, log) = buf.split_at_checked(2 * INTENT_MAP_BYTES).ok_or(EIO)?;
    let maps = maps.split_at_checked(INTENT_MAP_BYTES).ok_or(EIO)?;
    let extents = Extents::for_origin(sectors / u64::from(BLOCK_SECTORS));
    let intents = block_map(extents.count.into())?;
    let add = |run: ExtentRun| {
        intents.set_range(run.start.into(), run.len.into());
    };
    let plan = match OriginGrowth::plan(&superblock, &limits, closed, maps, log, sectors, add) {
        Ok(plan) => plan,
        Err(OriginError::Damaged(e)) => {
            return reader.refuse(e, c"Region is damaged: no valid intent map")
        }
        Err(OriginError::NotClosed) => {
            reader.ctor.error(c"Region was not closed in order");
            return Err(EIO);
        }
        Err(OriginError::Shrinks) => {
            reader.ctor.error(ORIGIN_LARGER);
            return Err(EINVAL);
        }
        Err(OriginError::TooLarge) => {
            reader.ctor.error(c"Origin is too large");
            return Err(EINVAL);
        }
    };
    let out = reader.transfer.buffer().and_then(|b| b.first_chunk_mut());
    let masks = (0..intents.areas()).map(|area| intents.area_mask(area));
    plan.map.encode(out.ok_or(EIO)?, limits.region_uuid, masks, crc32c);
    reader.write(Layout::intent_block(plan.copy), INTENT_MAP_BYTES)?;
    for copy in [Copy2::A, Copy2::B] {
        let out = reader.transfer.buffer().and_then(|b| b.first_chunk_mut());
        plan.superblock.encode(out.ok_or(EIO)?);
        reader.write(layout.superblock_block(copy), BLOCK_BYTES as usize)?;
    }
    pr_info!("{}: the origin has grown to {sectors} sectors\n", region.number());
    Ok(if plan.only_new { plan.first_new } else { 0 })
}

/// Reads a region and checks that it belongs to the origin. Sleeps.
///
/// `intent_from`: below this block, what there is intent for has not changed.
///
/// Not inlined: its caller goes on to what takes stack of its own.
#[inline(never)]
pub(crate) fn open(
    words: &mut Words,
    origin: BlockDevice,
    region: BlockDevice,
    sectors: u64,
    features: &Features,
    intent_from: u64,
) -> Result<Opened> {
    let (mut reader, layout) = begin(words, region)?;
    let (sb, bad_copy) = reader.superblock(&layout)?;
    // The device may have grown since; when it is resumed, the region does.
    let layout = Layout::for_region(sb.region_blocks).map_err(|_| EINVAL)?;
    if sb.region_blocks > region.sectors() / u64::from(BLOCK_SECTORS) {
        reader.ctor.error(c"Region device is smaller than when it was formatted");
        return Err(EINVAL);
    }
    if sb.origin_sectors != sectors {
        let size = sb.origin_sectors;
        pr_err!("{}: the region is for an origin of {size} sectors\n", region.number());
        reader.ctor.error(if size < sectors { ORIGIN_SMALLER } else { ORIGIN_LARGER });
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
    forget_unsealed(region, &mut root);
    limits.next_snapshot = root.header.next_snapshot;
    let mut table = reader.table(&layout, &limits)?;
    let clean = root.header.flags & ROOT_CLEAN != 0;
    reader.settle_doubts(&layout, &mut table)?;
    let highest = reader.adopt_orphans(&layout, &root, &mut table)?;
    // A number that was used for something unfinished is not used again: its remains on disk must
    // not be taken for the new one's.
    root.header.next_snapshot = root.header.next_snapshot.max(highest.saturating_add(1));

    let mut changes = reader.changes(&layout, &limits, &table.slots, intent_from)?;
    // Nor one that a page of the dirty map has, before that snapshot is taken.
    root.header.next_snapshot = root.header.next_snapshot.max(changes.newest_page);
    let Table { slots, index } = table;
    if !clean {
        pr_warn!(
            "{}: was not closed in order; {} blocks more than were written may pass for changed\n",
            region.number(),
            changes.superset_blocks
        );
        root.header.flags |= ROOT_AFTER_CRASH;
    }
    if changes.lost {
        root.header.flags |= ROOT_FULL_NEEDED;
    }
    let full_needed = root.header.flags & ROOT_FULL_NEEDED != 0;
    if full_needed {
        // The next snapshot has no base, and no use for a part of what has changed since.
        changes.dirty.clear_all();
        root.header.superset_blocks = 0;
        changes.superset_blocks = 0;
    }
    // Those of earlier crashes may lie in pages of the dirty map by now, and then look like all others.
    changes.superset_blocks = changes
        .superset_blocks
        .saturating_add(root.header.superset_blocks)
        .min(changes.dirty.count());
    root.header.superset_blocks = changes.superset_blocks;
    let after_crash = root.header.flags & ROOT_AFTER_CRASH != 0;
    let Changes { extents, intents, dirty, dirty_pages, superset_blocks, order, fresh, .. } =
        changes;
    let parts = Parts {
        region_uuid: sb.region_uuid,
        origin,
        region,
        layout,
        origin_sectors: sectors,
        slots,
        root,
        full_needed,
        after_crash,
        superset_blocks,
        extents,
        intents,
        dirty,
    };
    let flags = parts.root.header.flags;
    let mark = Mark { transfer: reader.transfer, next: root_next, flags, fresh };
    let root_next = mark.root_next();
    let found = Found { index, superblock: sb, bad_copy, root_next, intent: order, dirty_pages };
    Ok(Opened { parts, found, mark })
}

/// What says on disk that a region is open.
pub(crate) struct Mark {
    transfer: KBox<Transfer>,
    next: Copy2,
    flags: u32,
    /// An intent map without intent, for a region whose own are damaged.
    fresh: Option<(IntentMap, Copy2)>,
}

impl Mark {
    /// Where the next version of the root goes once the mark is set.
    fn root_next(&self) -> Copy2 {
        self.next.other()
    }

    /// Writes the root without the mark of an orderly close. Sleeps.
    pub(crate) fn set(&mut self, device: &Device) -> Result {
        self.write(device, 0, OP_RESERVE)?;
        let Some((map, copy)) = self.fresh else { return Ok(()) };
        // Only now: whoever finds this map must find as well that the next delta is full.
        let sector = Layout::intent_block(copy).saturating_mul(BLOCK_SECTORS.into());
        let out = self.transfer.buffer().and_then(|b| b.first_chunk_mut::<INTENT_MAP_BYTES>());
        map.encode(out.ok_or(EIO)?, device.region_uuid, core::iter::empty(), crc32c);
        self.transfer.write_wait(&device.region, sector, INTENT_MAP_BYTES, Durability::Barrier)
    }

    /// Takes that back: the device has not been used. Sleeps.
    pub(crate) fn take_back(&mut self, device: &Device) {
        if self.write(device, self.flags & ROOT_CLEAN, 0).is_err() {
            pr_err!("{}: the region could not be closed in order\n", device.region.number());
        }
    }

    fn write(&mut self, device: &Device, clean: u32, reserve: u64) -> Result {
        let sector = device.layout().root_block(self.next).saturating_mul(BLOCK_SECTORS.into());
        self.next = self.next.other();
        let mut root = device.root.lock();
        let first_op = root.header.next_op;
        root.header.flags = (self.flags & !ROOT_CLEAN) | clean;
        root.header.seq = root.header.seq.saturating_add(1);
        root.header.next_op = first_op.saturating_add(reserve);
        let out = self.transfer.buffer().and_then(|b| b.first_chunk_mut::<ROOT_BYTES>());
        root.encode_into(out.ok_or(EIO)?);
        root.header.next_op = first_op;
        drop(root);
        self.transfer.write_wait(&device.region, sector, ROOT_BYTES, Durability::Barrier)
    }
}
