// SPDX-License-Identifier: GPL-2.0-only

//! The preserved blocks: what the index says of them, and what they hold.
//!
//! Of a block in a manifest there are two checksums, the index' and that of the chunk, over all of its blocks. If the chunk's is
//! right, so is the content, whatever the index says. If it is wrong, a block whose own is wrong may be found in another slot:
//! with its own checksum and that of the chunk.

use std::collections::{BTreeMap, HashMap};

use presnap_engine::crc32c::crc32c;
use presnap_engine::manifest::Chunk;
use presnap_engine::region::{IndexEntry, SlotKind};

use crate::medium::{read, Medium, BLOCK};
use crate::region::{Work, Write};
use crate::report::Remedy;
use crate::snapshots::{words_of, Manifest};
use crate::Watch;

const FROZEN: &str = "the index block cannot be repaired";
/// Slots read at once.
const STEP: u32 = 256;

/// Checks the blocks of all manifests, and with `data` all others that belong to snapshots.
pub(crate) fn check(
    work: &mut Work,
    medium: &dyn Medium,
    manifests: &[Manifest],
    watch: Watch<'_>,
) {
    let total = work.entries.len() as u64;
    let (mut done, mut places) = (0, None);
    for manifest in manifests {
        for chunk in manifest.chunks.iter().filter(|c| !c.is_zero()) {
            check_chunk(work, medium, manifest.id, chunk, &mut places);
            done += u64::from(chunk.length_blocks);
            if work.options.data {
                watch("slot", done, total);
            }
        }
    }
    // Before it is decided of single blocks whether an image needs them.
    work.drop_damaged();
    if work.options.data {
        check_others(work, medium, done, total, watch);
        work.drop_damaged();
    }
}

fn check_chunk(
    work: &mut Work,
    medium: &dyn Medium,
    id: u32,
    chunk: &Chunk,
    places: &mut Option<Places>,
) {
    let slots =
        || (0..chunk.length_blocks).map(|i| (chunk.slot + i, chunk.start_block + u64::from(i)));
    let mine = |e: &IndexEntry, block: u64| {
        e.kind == SlotKind::Data && e.block == block && e.snapshot == id
    };
    let wrong: Vec<(u32, u64)> = slots()
        .filter(|(slot, block)| !work.entries.get(slot).is_some_and(|e| mine(e, *block)))
        .collect();
    if wrong.is_empty() && !work.options.data {
        return;
    }
    let begin = format!("snapshot {id}, chunk at block {}", chunk.start_block);
    let mut content = read_slots(work, medium, chunk.slot, chunk.length_blocks);
    let found = crc32c(0, &content);
    if let Some(&(slot, block)) = wrong.first() {
        let entry = work.entries.get(&slot).copied();
        let words = format!(
            "{begin}: slot {slot} should hold block {block}, the index says {} ({} such slots)",
            words_of(entry),
            wrong.len()
        );
        if found != chunk.checksum {
            return work.damage(id, words);
        }
        if wrong.iter().any(|(slot, _)| work.is_frozen(*slot)) {
            return work.error(words, Remedy::Left(FROZEN.into()));
        }
        if !wrong.iter().all(|(slot, _)| restorable(work, medium, *slot)) {
            return work.damage(id, words);
        }
        {
            for (slot, block) in wrong {
                let at = (slot - chunk.slot) as usize * BLOCK;
                let crc = crc32c(0, &content[at..at + BLOCK]);
                let entry = IndexEntry { block, kind: SlotKind::Data, snapshot: id, crc };
                work.set_entry(slot, Some(entry));
            }
            let remedy = "the entries restored: the content has the checksum of the manifest";
            work.error(words, Remedy::Repair(remedy.into()));
        }
    }
    let crc_of = |content: &[u8], slot: u32| {
        crc32c(0, &content[(slot - chunk.slot) as usize * BLOCK..][..BLOCK])
    };
    let differ: Vec<(u32, IndexEntry, u32)> = slots()
        .filter_map(|(slot, _)| {
            let (entry, crc) = (*work.entries.get(&slot)?, crc_of(&content, slot));
            (entry.crc != crc).then_some((slot, entry, crc))
        })
        .collect();
    if found == chunk.checksum {
        for (slot, entry, crc) in differ {
            let words = words_of_slot(slot, &entry, crc);
            if work.is_frozen(slot) {
                work.error(words, Remedy::Left(FROZEN.into()));
            } else {
                work.set_entry(slot, Some(IndexEntry { crc, ..entry }));
                let remedy = "the index put right: the content has the checksum of the manifest";
                work.error(words, Remedy::Repair(remedy.into()));
            }
        }
        return;
    }
    let mut words = format!(
        "{begin}: the region is damaged: blocks {}+{} have checksum {found:08x}, the manifest says {:08x}",
        chunk.start_block, chunk.length_blocks, chunk.checksum
    );
    for (slot, entry, crc) in &differ {
        words += &format!("; {}", words_of_slot(*slot, entry, *crc));
    }
    let mut writes = Vec::new();
    for (slot, entry, _) in &differ {
        let places = places.get_or_insert_with(|| Places::of(work));
        let Some(bytes) = elsewhere(places, work, medium, *slot, entry) else { break };
        content[(slot - chunk.slot) as usize * BLOCK..][..BLOCK].copy_from_slice(&bytes);
        writes.push(Write { block: work.layout.slot_block(*slot), bytes });
    }
    if !differ.is_empty() && writes.len() == differ.len() && crc32c(0, &content) == chunk.checksum {
        work.slots.extend(writes);
        let remedy = "written again from other slots that have the same content, by the checksums of index and manifest";
        work.error(words, Remedy::Repair(remedy.into()));
    } else {
        work.damage(id, words);
    }
}

/// Whether an entry may be put in the place of what the index says of a slot.
fn restorable(work: &Work, medium: &dyn Medium, slot: u32) -> bool {
    let counts = |e: &IndexEntry| match e.kind {
        SlotKind::Dirty => e.snapshot > work.root.header.base_id,
        _ => work.root.find(e.snapshot).is_some(),
    };
    match work.entries.get(&slot) {
        // It would be this that the slot holds.
        Some(e) if counts(e) => crc32c(0, &read_slots(work, medium, slot, 1)) != e.crc,
        _ => true,
    }
}

/// A block's content in another slot, by block and checksum.
fn elsewhere(
    places: &Places,
    work: &Work,
    medium: &dyn Medium,
    slot: u32,
    entry: &IndexEntry,
) -> Option<Vec<u8>> {
    let others = places.0.get(&(entry.block, entry.crc))?;
    others.iter().filter(|&&other| other != slot).find_map(|&other| {
        let bytes = read(medium, work.layout.slot_block(other), 1);
        (crc32c(0, &bytes) == entry.crc && bytes.len() == BLOCK).then_some(bytes)
    })
}

/// The slots of each block and checksum; made when it is needed.
struct Places(HashMap<(u64, u32), Vec<u32>>);

impl Places {
    fn of(work: &Work) -> Self {
        let mut places = HashMap::new();
        for (&slot, e) in work.entries.iter().filter(|(_, e)| e.kind == SlotKind::Data) {
            places.entry((e.block, e.crc)).or_insert_with(Vec::new).push(slot);
        }
        Self(places)
    }
}

/// Reads slots of one segment; zeroes for those that cannot be read.
fn read_slots(work: &Work, medium: &dyn Medium, slot: u32, count: u32) -> Vec<u8> {
    let all = read(medium, work.layout.slot_block(slot), count.into());
    if !all.is_empty() {
        return all;
    }
    (slot..slot + count)
        .flat_map(|slot| {
            let bytes = read(medium, work.layout.slot_block(slot), 1);
            if bytes.is_empty() {
                vec![0; BLOCK]
            } else {
                bytes
            }
        })
        .collect()
}

fn words_of_slot(slot: u32, entry: &IndexEntry, found: u32) -> String {
    format!(
        "slot {slot} (block {} of snapshot {}) has checksum {found:08x}, the index says {:08x}",
        entry.block, entry.snapshot, entry.crc
    )
}

/// Blocks that are in no manifest: preserved for images, or of manifests that are damaged.
fn check_others(work: &mut Work, medium: &dyn Medium, done: u64, total: u64, watch: Watch<'_>) {
    let others: BTreeMap<u32, IndexEntry> = work
        .entries
        .iter()
        .filter(|(slot, e)| {
            e.kind != SlotKind::Dirty
                && work.root.find(e.snapshot).is_some()
                && !work.claimed.contains_key(slot)
        })
        .map(|(slot, e)| (*slot, *e))
        .collect();
    let mut done = done;
    let mut next = 0;
    while let Some((&first, _)) = others.range(next..).next() {
        let most = work.layout.slot_run(first).clamp(1, STEP);
        let count = (0..most).take_while(|i| others.contains_key(&(first + i))).count() as u32;
        let content = read_slots(work, medium, first, count);
        for (slot, block) in (first..first + count).zip(content.chunks_exact(BLOCK)) {
            let (Some(entry), crc) = (others.get(&slot), crc32c(0, block)) else { continue };
            if entry.crc != crc {
                bad_other(work, slot, entry, crc);
            }
        }
        done += u64::from(count);
        next = first + count;
        watch("slot", done, total);
    }
}

/// A block in no manifest that does not hold what the index says.
fn bad_other(work: &mut Work, slot: u32, entry: &IndexEntry, crc: u32) {
    let words = words_of_slot(slot, entry, crc);
    // Image N reads S(N), then S(N+1), ...: so its own snapshot's, and all older ones that have not got the block.
    let images = work.images_up_to(entry.snapshot);
    let needed = entry.kind == SlotKind::Data && !images.is_empty();
    let free = "the slot freed";
    if work.is_frozen(slot) {
        work.error(words, Remedy::Left(FROZEN.into()));
    } else if !needed {
        work.set_entry(slot, None);
        work.warning(words, Remedy::Repair(format!("{free}: nobody reads it")));
    } else if let Some(images) = work.lose_images(entry.snapshot) {
        work.set_entry(slot, None);
        work.error(words, Remedy::Repair(format!("{free}{images}")));
    } else {
        let images: Vec<String> = images.iter().map(u32::to_string).collect();
        let why = format!(
            "preserved for images, and nowhere else (images up to {}: {}); --drop-damaged gives the images up",
            entry.snapshot,
            images.join(", ")
        );
        work.error(words, Remedy::Left(why));
    }
}
