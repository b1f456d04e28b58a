// SPDX-License-Identifier: GPL-2.0-only

//! `presnap check`: verifies a region offline.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use presnap_blockio::Buffer;
use presnap_engine::crc32c::crc32c;
use presnap_engine::manifest::Chunk;
use presnap_engine::region::intent::replay;
use presnap_engine::region::layout::{INTENT_BLOCKS, LOG_BLOCKS, LOG_START_BLOCK};
use presnap_engine::region::root::{ROOT_AFTER_CRASH, ROOT_CLEAN, ROOT_FULL_NEEDED};
use presnap_engine::region::{
    Copy2, IndexBlock, IndexEntry, IndexPick, IntentMap, Layout, SlotKind, SnapshotRecord,
    SnapshotState,
};
use serde::Serialize;

use super::send::read_piece;
use crate::delta::Piece;
use crate::output::{self, Progress};
use crate::source::Source;
use crate::store::{Store, BLOCK};
use crate::units;

/// Verify a region: structure and checksums, with --data also every preserved block
///
/// Reads only. A region in use may change under the check; close the device for a verdict that counts. Exit status 1
/// if anything is damaged.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The region (or a device that has one)
    region: PathBuf,
    /// Read all data, too
    #[arg(long)]
    data: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    region_uuid: String,
    origin_id: String,
    origin_sectors: u64,
    slots: u32,
    used_slots: u64,
    clean: bool,
    full_needed: bool,
    after_crash: bool,
    /// Extents that count as changed after a crash, of so many blocks.
    intent_extents: u64,
    extent_blocks: u64,
    /// Pages of the dirty map that count.
    dirty_pages: usize,
    snapshots: usize,
    chunks: u64,
    data_checked: bool,
    /// Damage that loses data.
    errors: Vec<String>,
    /// Damage that does not: the other copy serves, or slots are wasted.
    warnings: Vec<String>,
}

impl Args {
    /// Checks.
    pub(crate) fn run(self) -> Result<()> {
        let name = self.region.display().to_string();
        let source = Source::find(&name)?;
        if let Source::Live(dm, _) = &source {
            eprintln!("presnap: {} runs, so what is found may be changes under way", dm.name);
        }
        let store = source.store()?;
        let flags = store.root.header.flags;
        let mut report = Report {
            region_uuid: units::uuid(&store.superblock.region_uuid),
            origin_id: units::hex(&store.superblock.origin_id),
            origin_sectors: store.superblock.origin_sectors,
            slots: store.layout.slots,
            used_slots: 0,
            clean: flags & ROOT_CLEAN != 0,
            full_needed: flags & ROOT_FULL_NEEDED != 0,
            after_crash: flags & ROOT_AFTER_CRASH != 0,
            intent_extents: 0,
            extent_blocks: 0,
            dirty_pages: 0,
            snapshots: store.root.len(),
            chunks: 0,
            data_checked: self.data,
            errors: Vec::new(),
            warnings: store.faults.clone(),
        };
        read_intent(&store, &mut report)?;
        let index = read_index(&store, &mut report)?;
        for record in store.root.iter() {
            check_snapshot(&store, record, &index, self.data, &mut report);
        }
        if self.data {
            check_slots(&store, &index, &mut report)?;
        }
        let bad = report.errors.len();
        if self.json {
            output::json(&report)?;
        } else {
            print(&report);
        }
        if bad > 0 {
            bail!("{name}: {bad} errors");
        }
        Ok(())
    }
}

fn print(r: &Report) {
    println!("region {}: {} snapshots, {} chunks", r.region_uuid, r.snapshots, r.chunks);
    println!("  {} of {} slots in use ({})", r.used_slots, r.slots, units::blocks(r.used_slots));
    if !r.clean {
        println!(
            "  not shut down in order: numbering goes on after a gap; {} extents of {} count as changed",
            r.intent_extents,
            units::blocks(r.extent_blocks)
        );
    }
    if r.full_needed {
        println!("  the next send must be full");
    }
    r.warnings.iter().for_each(|w| println!("  warning: {w}"));
    r.errors.iter().for_each(|e| println!("  error: {e}"));
    if r.errors.is_empty() {
        let data = if r.data_checked { "structure and data are" } else { "structure is" };
        println!("  {data} sound");
    }
}

/// Reads the intent map and the log after it.
fn read_intent(store: &Store, report: &mut Report) -> Result<()> {
    let limits = store.limits();
    let read = |block, count: u64| store.blocks(block, count as usize).context("reading intent");
    let a = read(Layout::intent_block(Copy2::A), INTENT_BLOCKS)?;
    let b = read(Layout::intent_block(Copy2::B), INTENT_BLOCKS)?;
    let log = read(LOG_START_BLOCK, LOG_BLOCKS)?;
    let picked = match IntentMap::pick(&a, &b, &limits) {
        Ok(picked) => picked,
        Err(e) => {
            report.errors.push(format!("{e} (both copies): the next delta will be full"));
            return Ok(());
        }
    };
    // Copy B of a fresh region was never written.
    let blank = b.iter().all(|&byte| byte == 0);
    if let Some(fault) = picked.other_fault.filter(|_| !blank) {
        report.warnings.push(format!("{fault} (copy {:?})", picked.copy.other()));
    }
    let map = picked.value;
    let bytes = if picked.copy == Copy2::A { &a } else { &b };
    let masks: Vec<u16> = IntentMap::masks(bytes).collect();
    let mut extents: HashSet<u32> = (0..map.extents.count)
        .filter(|e| masks.get(*e as usize / 16).is_some_and(|mask| mask >> (e % 16) & 1 != 0))
        .collect();
    let replayed = replay(&log, &map, limits.region_tag(), |run| {
        extents.extend(run.start..run.start.saturating_add(run.len));
    });
    if replayed.gap {
        let words = "the intent log lacks a record: the next delta will be full";
        report.errors.push(words.into());
    }
    report.intent_extents = extents.len() as u64;
    report.extent_blocks = 1 << map.extents.shift;
    Ok(())
}

/// All used slots.
type Index = HashMap<u32, IndexEntry>;

fn read_index(store: &Store, report: &mut Report) -> Result<Index> {
    let limits = store.limits();
    let mut index = Index::new();
    let mut progress = Progress::new(false);
    for no in 0..store.layout.index_blocks {
        let both = store
            .blocks(store.layout.index_copy_block(no, Copy2::A), 2)
            .context("reading the index")?;
        let (a, b) = both.split_at(BLOCK);
        match IndexBlock::pick(a, b, no, &limits) {
            Ok(IndexPick::Blank { fault }) => {
                report
                    .warnings
                    .extend(fault.map(|f| format!("{f} (index block {no}, first write)")));
            }
            Ok(IndexPick::Found(picked)) => {
                let fault = picked.other_fault;
                report.warnings.extend(fault.map(|f| format!("{f} (index block {no}, one copy)")));
                index.extend(picked.value.used());
            }
            Err(e) => report.errors.push(format!("{e} (index block {no}, both copies)")),
        }
        progress.show(|| format!("index block {no} of {}", store.layout.index_blocks));
    }
    report.used_slots = index.len() as u64;
    let base = store.root.header.base_id;
    let dirty_page = |e: &&IndexEntry| e.kind == SlotKind::Dirty && e.snapshot > base;
    report.dirty_pages = index.values().filter(dirty_page).count();
    let orphan = |e: &&IndexEntry| store.root.find(e.snapshot).is_none() && !dirty_page(e);
    let orphans = index.values().filter(orphan).count();
    // Slots staged for the next snapshot are of a number that is not in the table yet.
    let staged = index
        .values()
        .filter(|e| e.snapshot == limits.next_snapshot && e.kind != SlotKind::Dirty)
        .count();
    if orphans > staged {
        report.warnings.push(format!("{} slots belong to no snapshot", orphans - staged));
    }
    Ok(index)
}

fn check_snapshot(
    store: &Store,
    record: &SnapshotRecord,
    index: &Index,
    data: bool,
    report: &mut Report,
) {
    let id = record.id;
    if record.state != SnapshotState::Sealed {
        report.warnings.push(format!("snapshot {id} is {}", record.state.as_str()));
        return;
    }
    let chunks = match store.manifest(record) {
        Ok(chunks) => chunks,
        Err(e) => return report.errors.push(format!("{e:#}")),
    };
    report.chunks += chunks.len() as u64;
    let blocks: u64 = chunks.iter().map(|c| u64::from(c.length_blocks)).sum();
    if blocks != record.delta_blocks {
        report.errors.push(format!(
            "snapshot {id}: the manifest has {blocks} blocks, the record says {}",
            record.delta_blocks
        ));
    }
    for chunk in chunks.iter().filter(|c| !c.is_zero()) {
        if let Err(e) = check_chunk(store, id, chunk, index, data) {
            report
                .errors
                .push(format!("snapshot {id}, chunk at block {}: {e:#}", chunk.start_block));
        }
    }
}

fn check_chunk(store: &Store, id: u32, chunk: &Chunk, index: &Index, data: bool) -> Result<()> {
    for i in 0..chunk.length_blocks {
        let slot = chunk.slot.saturating_add(i);
        let block = chunk.start_block + u64::from(i);
        match index.get(&slot) {
            Some(e) if e.kind == SlotKind::Data && e.block == block && e.snapshot == id => {}
            Some(e) => bail!(
                "slot {slot} should hold block {block}, the index says block {} of snapshot {}",
                e.block,
                e.snapshot
            ),
            None => bail!("slot {slot} should hold block {block}, the index says it is free"),
        }
    }
    if data {
        let piece = Piece { start: chunk.start_block, length: chunk.length_blocks, chunk: *chunk };
        read_piece(store, &piece, |_, _| Ok(()))?;
    }
    Ok(())
}

/// Reads every used slot and compares its checksum with the index.
fn check_slots(store: &Store, index: &Index, report: &mut Report) -> Result<()> {
    let mut slots: Vec<u32> = index.keys().copied().collect();
    slots.sort_unstable();
    let mut progress = Progress::new(false);
    let mut page = Buffer::new(BLOCK);
    for (n, slot) in slots.iter().enumerate() {
        let Some(entry) = index.get(slot) else { continue };
        if let Err(e) = store.read_slots(*slot, &mut page) {
            report.errors.push(format!("{e:#}"));
            continue;
        }
        // Slots of the coming snapshot are still being written to.
        let found = crc32c(0, &page);
        let counts = match entry.kind {
            SlotKind::Dirty => entry.snapshot > store.root.header.base_id,
            // Of an entry without its data, the origin still has the block.
            SlotKind::Unconfirmed => false,
            _ => store.root.find(entry.snapshot).is_some(),
        };
        if found != entry.crc && counts {
            report.errors.push(format!(
                "slot {slot} (block {} of snapshot {}) has checksum {found:08x}, the index says {:08x}",
                entry.block, entry.snapshot, entry.crc
            ));
        }
        progress.show(|| format!("slot {n} of {}", slots.len()));
    }
    Ok(())
}
