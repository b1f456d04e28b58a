// SPDX-License-Identifier: GPL-2.0-only

//! Slots that belong to nobody, or twice to somebody; and pages of the dirty map.

use std::collections::BTreeMap;

use presnap_engine::crc32c::crc32c;
use presnap_engine::region::index::DIRTY_PAGE_BLOCKS;
use presnap_engine::region::{IndexEntry, Scope, SlotKind};

use crate::medium::{read, Medium};
use crate::region::Work;
use crate::report::Remedy;

/// Frees what an opening would free, and as it would.
pub(crate) fn check(work: &mut Work, medium: &dyn Medium) {
    let base = work.root.header.base_id;
    let orphan = |work: &Work, e: &IndexEntry| match e.kind {
        SlotKind::Dirty => e.snapshot <= base,
        _ => work.root.find(e.snapshot).is_none(),
    };
    let all = work.entries.values().filter(|e| orphan(work, e)).count();
    // Slots staged for the next snapshot are of a number that is not in the table yet.
    let next = work.root.header.next_snapshot;
    let staged = |e: &&IndexEntry| e.snapshot == next && e.kind != SlotKind::Dirty;
    let staged = work.entries.values().filter(staged).count();
    if all <= staged {
        return;
    }
    let words = format!("{} slots belong to no snapshot", all - staged);
    if work.index.iter().any(|state| state.frozen) {
        let why = "while an index block cannot be repaired; an opening frees them";
        work.warning(words, Remedy::Left(why.into()));
        return;
    }
    work.warning(words, Remedy::Repair("freed, as an opening frees them".into()));
    let mut blocks: BTreeMap<u64, Vec<(u32, u32, u32)>> = BTreeMap::new();
    let mut highest = 0;
    let orphans: Vec<(u32, IndexEntry)> =
        work.entries.iter().filter(|(_, e)| orphan(work, e)).map(|(slot, e)| (*slot, *e)).collect();
    for (slot, e) in orphans {
        if e.kind != SlotKind::Dirty {
            highest = highest.max(e.snapshot);
        }
        work.set_entry(slot, None);
        if e.kind == SlotKind::Data {
            blocks.entry(e.block).or_default().push((e.snapshot, slot, e.crc));
        }
    }
    adopt(work, medium, blocks);
    // A number that was used is not used again: an older copy of the index may have its remains.
    let header = &mut work.root.header;
    if header.next_snapshot <= highest {
        header.next_snapshot = highest.saturating_add(1);
        work.root_changed = true;
    }
}

/// If an image is live, what an unfinished snapshot preserved may be the only copy of what the image needs: it goes to
/// the newest snapshot, unless that has the block. The oldest copy whose checksum is right counts.
fn adopt(work: &mut Work, medium: &dyn Medium, blocks: BTreeMap<u64, Vec<(u32, u32, u32)>>) {
    let live = work.root.iter().any(|r| r.scope == Scope::Image);
    let Some(heir) = work.root.newest().map(|r| r.id).filter(|_| live) else { return };
    let data = |e: &&IndexEntry| e.kind == SlotKind::Data && e.snapshot == heir;
    let has: std::collections::HashSet<u64> =
        work.entries.values().filter(data).map(|e| e.block).collect();
    for (block, mut copies) in blocks {
        copies.retain(|(snapshot, _, _)| *snapshot > heir);
        if has.contains(&block) {
            continue;
        }
        copies.sort_unstable();
        let good = copies.into_iter().find(|(_, slot, crc)| {
            crc32c(0, &read(medium, work.layout.slot_block(*slot), 1)) == *crc
        });
        if let Some((_, slot, crc)) = good {
            let entry = IndexEntry { block, kind: SlotKind::Data, snapshot: heir, crc };
            work.set_entry(slot, Some(entry));
        }
    }
}

/// Two slots for one block of one snapshot: that of its manifest counts, else one with the right checksum, and rather one
/// that no manifest has; else the first.
pub(crate) fn duplicates(work: &mut Work, medium: &dyn Medium) {
    let mut kept: BTreeMap<(u32, u64), u32> = BTreeMap::new();
    let mut free = Vec::new();
    for (&slot, e) in work.entries.iter() {
        if e.kind != SlotKind::Data || work.root.find(e.snapshot).is_none() {
            continue;
        }
        let rank = |slot: u32| {
            let wrong = || {
                let crc = work.entries.get(&slot).map(|e| e.crc);
                Some(crc32c(0, &read(medium, work.layout.slot_block(slot), 1))) != crc
            };
            match work.claimed.get(&slot) {
                Some(id) if *id == e.snapshot => (0, slot),
                None => (1 + 2 * u8::from(wrong()), slot),
                Some(_) => (2 + 2 * u8::from(wrong()), slot),
            }
        };
        if let Some(best) = kept.get_mut(&(e.snapshot, e.block)) {
            let (this, other) = (rank(slot), rank(*best));
            *best = this.min(other).1;
            free.push((this.max(other), *e));
        } else {
            kept.insert((e.snapshot, e.block), slot);
        }
    }
    for ((rank, slot), e) in free {
        let words = format!("block {} of snapshot {} lies in two slots", e.block, e.snapshot);
        if work.is_frozen(slot) || rank == 0 {
            work.warning(words, Remedy::Left("which of them counts is not certain".into()));
        } else {
            work.set_entry(slot, None);
            work.warning(words, Remedy::Repair(format!("slot {slot} freed")));
        }
    }
}

/// Pages of the dirty map that cannot be relied on: all of their blocks pass for changed.
pub(crate) fn dirty_pages(work: &mut Work, medium: &dyn Medium) {
    let base = work.root.header.base_id;
    let pages: Vec<(u32, IndexEntry)> = work
        .entries
        .iter()
        .filter(|(_, e)| e.kind == SlotKind::Dirty && e.snapshot > base)
        .map(|(slot, e)| (*slot, *e))
        .collect();
    for (slot, e) in pages {
        if crc32c(0, &read(medium, work.layout.slot_block(slot), 1)) == e.crc {
            continue;
        }
        let words = format!("page {} of the dirty map has a wrong checksum (slot {slot})", e.block);
        if work.is_frozen(slot) {
            work.warning(words, Remedy::Left("the index block cannot be repaired".into()));
            continue;
        }
        let first = e.block * DIRTY_PAGE_BLOCKS;
        let end = work.superblock.origin_blocks();
        work.intent.set_blocks(first, end.saturating_sub(first).min(DIRTY_PAGE_BLOCKS));
        work.set_entry(slot, None);
        let remedy = "the slot freed; all of its blocks pass for changed, by durable intent";
        work.warning(words, Remedy::Repair(remedy.into()));
    }
}
