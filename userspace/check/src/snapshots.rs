// SPDX-License-Identifier: GPL-2.0-only

//! The manifests of the snapshots, and the slots that they say are theirs.

use presnap_engine::crc32c::crc32c;
use presnap_engine::manifest::{Chunk, ManifestReader};
use presnap_engine::region::{IndexEntry, SlotKind, SnapshotRecord};

use crate::medium::{read, Medium};
use crate::region::Work;
use crate::report::Remedy;
use crate::Watch;

/// The chunks of a snapshot.
pub(crate) struct Manifest {
    pub(crate) id: u32,
    pub(crate) chunks: Vec<Chunk>,
}

/// A page, where it lies and what it holds.
pub(crate) struct Page {
    pub(crate) slot: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Reads all manifests; those that are damaged are rebuilt, or left out.
pub(crate) fn manifests(work: &mut Work, medium: &dyn Medium, watch: Watch<'_>) -> Vec<Manifest> {
    let mut out = Vec::new();
    let records: Vec<SnapshotRecord> = work.root.iter().copied().collect();
    for (n, record) in (0..).zip(&records) {
        watch("manifest", n, records.len() as u64);
        let id = record.id;
        let (chunks, pages) = match read_manifest(work, medium, record) {
            Ok(read) => read,
            // It cannot be made again: the index does not know of zero blocks, nor of other blocks whether they
            // are of the delta or were preserved for an image.
            Err(words) => {
                work.damage(id, format!("manifest of snapshot {id}: {words}"));
                continue;
            }
        };
        let blocks: u64 = chunks.iter().map(|c| u64::from(c.length_blocks)).sum();
        if blocks != record.delta_blocks {
            let says = record.delta_blocks;
            let words =
                format!("snapshot {id}: the manifest has {blocks} blocks, the record says {says}");
            work.damage(id, words);
        }
        claim(work, id, &chunks, &pages);
        work.count_chunks(chunks.len());
        out.push(Manifest { id, chunks });
    }
    out
}

/// Reads a manifest; why it cannot be.
fn read_manifest(
    work: &Work,
    medium: &dyn Medium,
    record: &SnapshotRecord,
) -> Result<(Vec<Chunk>, Vec<Page>), String> {
    let mut reader = ManifestReader::new(record, &work.limits());
    let (mut chunks, mut pages) = (Vec::new(), Vec::new());
    let mut next = Some(record.manifest_head_slot).filter(|_| record.manifest_pages > 0);
    while let Some(slot) = next {
        let bytes = read(medium, work.layout.slot_block(slot), 1);
        let page = reader.page(&bytes).map_err(|e| format!("{e} (slot {slot})"))?;
        chunks.extend(page.chunks());
        next = page.next_page_slot;
        pages.push(Page { slot, bytes });
    }
    reader.finish().map_err(|e| e.to_string())?;
    Ok((chunks, pages))
}

/// Notes the slots of a snapshot. Of two snapshots that have the same slot, one is wrong, and which cannot be told.
fn claim(work: &mut Work, id: u32, chunks: &[Chunk], pages: &[Page]) {
    let data = chunks.iter().filter(|c| !c.is_zero());
    let slots = data
        .flat_map(|c| c.slot..c.slot.saturating_add(c.length_blocks))
        .chain(pages.iter().map(|p| p.slot));
    let mut twice = None;
    for slot in slots {
        if let Some(other) = work.claimed.insert(slot, id) {
            twice = twice.or(Some((slot, other)));
        }
    }
    if let Some((slot, other)) = twice {
        if other != id {
            work.damaged.insert(other);
        }
        let words =
            format!("snapshot {id}: slot {slot} is in the manifest of snapshot {other}, too");
        work.damage(id, words);
    }
    for (no, page) in (0u64..).zip(pages) {
        let crc = crc32c(0, &page.bytes);
        let entry = IndexEntry { block: no, kind: SlotKind::Manifest, snapshot: id, crc };
        let found = work.entries.get(&page.slot).copied();
        if found == Some(entry) {
            continue;
        }
        let words = format!(
            "snapshot {id}: slot {} should hold page {no} of the manifest, the index says {}",
            page.slot,
            words_of(found)
        );
        if work.is_frozen(page.slot) {
            work.error(words, Remedy::Left("the index block cannot be repaired".into()));
        } else {
            work.set_entry(page.slot, Some(entry));
            let remedy = "the entry restored: the page has the checksum that the root has";
            work.error(words, Remedy::Repair(remedy.into()));
        }
    }
}

/// What an entry says.
pub(crate) fn words_of(entry: Option<IndexEntry>) -> String {
    match entry {
        None => "it is free".into(),
        Some(e) => {
            let what = match e.kind {
                SlotKind::Data | SlotKind::Unconfirmed | SlotKind::Free => "block",
                SlotKind::Manifest => "manifest page",
                SlotKind::Dirty => "page of the dirty map",
            };
            format!("{what} {} of snapshot {}, checksum {:08x}", e.block, e.snapshot, e.crc)
        }
    }
}
