// SPDX-License-Identifier: GPL-2.0-only

//! A region under examination: superblock and root, what is wrong, and what is to be written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use presnap_engine::region::layout::{ROOT_BLOCKS, SUPERBLOCK_BLOCKS};
use presnap_engine::region::root::{
    MAX_SNAPSHOTS, OP_RESERVE, ROOT_AFTER_CRASH, ROOT_CLEAN, ROOT_FULL_NEEDED,
};
use presnap_engine::region::superblock::SUPERBLOCK_BYTES;
use presnap_engine::region::{
    Copy2, FormatError, IndexEntry, Layout, Limits, Picked, Root, RootHeader, Scope,
    SnapshotRecord, SnapshotState, Superblock,
};

use crate::index::IndexState;
use crate::intent::Intent;
use crate::medium::{read, Medium};
use crate::report::{Fault, Remedy, Report};
use crate::Options;

/// A repair writes at most that many versions of anything.
pub(crate) const VERSIONS: u64 = 2;

const DIFFER: presnap_engine::region::Fault = presnap_engine::region::Fault::Copies;
const ANEW: &str = "format the region anew";

/// Why nothing can be said of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Blocks to be written.
pub(crate) struct Write {
    pub(crate) block: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The examination: what is there, as it will be.
pub(crate) struct Work {
    pub(crate) options: Options,
    pub(crate) superblock: Superblock,
    pub(crate) layout: Layout,
    /// The root, with all that is to be changed in it.
    pub(crate) root: Root<Vec<SnapshotRecord>>,
    /// Where the current one lies.
    pub(crate) root_copy: Copy2,
    /// The other one is damaged.
    root_copy_lost: bool,
    /// The root has to be written.
    pub(crate) root_changed: bool,
    pub(crate) intent: Intent,
    /// What the slots hold, with all that is to be changed in it.
    pub(crate) entries: BTreeMap<u32, IndexEntry>,
    /// Each index block.
    pub(crate) index: Vec<IndexState>,
    /// Those that have to be written.
    pub(crate) index_changed: BTreeSet<u32>,
    /// Slots that manifests say are theirs, and the snapshots.
    pub(crate) claimed: BTreeMap<u32, u32>,
    /// New content of slots.
    pub(crate) slots: Vec<Write>,
    /// Copies of the superblock.
    pub(crate) superblocks: Vec<Write>,
    /// Snapshots whose delta is damaged.
    pub(crate) damaged: BTreeSet<u32>,
    /// Snapshots whose images, and those of all older ones, cannot be relied on.
    pub(crate) images_lost: Option<u32>,
    /// Numbers are used up, or would be: nothing may be written.
    pub(crate) exhausted: bool,
    /// How it was found.
    pub(crate) clean: bool,
    faults: Vec<Fault>,
    found: (u64, u64, u64),
    chunks: u64,
}

impl Work {
    /// Reads superblock and root.
    pub(crate) fn open(medium: &dyn Medium, options: Options) -> Result<Self, Refused> {
        let copies = SUPERBLOCK_BLOCKS.map(|block| read(medium, block, 1));
        let mut faults = Vec::new();
        let mut superblocks = Vec::new();
        let (superblock, bad) = pick_superblock(medium, &copies)?;
        if let Some((copy, fault)) = bad {
            let block = SUPERBLOCK_BLOCKS[copy.index()];
            let mut bytes = vec![0; SUPERBLOCK_BYTES];
            if let Some(place) = bytes.first_chunk_mut() {
                superblock.encode(place);
            }
            superblocks.push(Write { block, bytes });
            faults.push(Fault {
                what: format!("{fault} (copy at block {block})"),
                // As A counts, nobody opens the region if that is the wrong one.
                error: copy == Copy2::A && fault.fault == DIFFER,
                remedy: Remedy::Repair("rewritten from the other copy".into()),
            });
        }
        if medium.blocks() < superblock.region_blocks {
            return Err(Refused(format!(
                "the region was {} blocks when it was formatted, and has {} now: its end is missing",
                superblock.region_blocks,
                medium.blocks()
            )));
        }
        let layout =
            Layout::for_region(superblock.region_blocks).map_err(|e| Refused(e.to_string()))?;
        let limits = limits(&superblock, u32::MAX);
        let (picked, bytes) = read_root(medium, &layout, &limits, options.live)?;
        let records = vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS];
        let root = Root::decode(&bytes, records, &limits).map_err(|e| Refused(e.to_string()))?;
        let mut work = Self {
            options,
            superblock,
            layout,
            clean: root.header.flags & ROOT_CLEAN != 0,
            root,
            root_copy: picked.copy,
            root_copy_lost: false,
            root_changed: false,
            intent: Intent::default(),
            entries: BTreeMap::new(),
            index: Vec::new(),
            index_changed: BTreeSet::new(),
            claimed: BTreeMap::new(),
            slots: Vec::new(),
            superblocks,
            damaged: BTreeSet::new(),
            images_lost: None,
            exhausted: false,
            faults,
            found: (0, 0, 0),
            chunks: 0,
        };
        if let Some(fault) = picked.other_fault {
            (work.root_changed, work.root_copy_lost) = (true, true);
            work.warning(
                format!("{fault} (copy {:?})", picked.copy.other()),
                Remedy::Repair("rewritten from the other copy".into()),
            );
        }
        work.forget_unsealed();
        Ok(work)
    }

    /// What is not sealed is forgotten, as at an opening.
    fn forget_unsealed(&mut self) {
        while let Some(r) =
            self.root.iter().find(|r| r.state != SnapshotState::Sealed).map(|r| (r.id, r.state))
        {
            self.root.remove(r.0);
            self.need_full();
            self.root_changed = true;
            self.warning(
                format!("snapshot {} is {}", r.0, r.1.as_str()),
                Remedy::Repair("forgotten; the next delta is full".into()),
            );
        }
    }

    /// Whether the numbers can be counted on from.
    pub(crate) fn check_room(&mut self) {
        if let Err(e) = self.root.header.check_room() {
            self.exhausted(&e);
        }
        let mut header = self.root.header;
        header.seq = header.seq.saturating_add(VERSIONS);
        header.next_op = header.next_op.saturating_add(OP_RESERVE);
        header.next_snapshot = header.next_snapshot.saturating_add(2);
        self.exhausted |= header.check_room().is_err();
    }

    /// The numbers of something have come too far.
    pub(crate) fn exhausted(&mut self, e: &FormatError) {
        self.exhausted = true;
        self.error(e.to_string(), Remedy::Left(ANEW.into()));
    }

    /// What the fields are checked against.
    pub(crate) fn limits(&self) -> Limits {
        limits(&self.superblock, self.root.header.next_snapshot)
    }

    /// A fault that loses data.
    pub(crate) fn error(&mut self, what: String, remedy: Remedy) {
        self.faults.push(Fault { what, error: true, remedy });
    }

    /// A fault that does not.
    pub(crate) fn warning(&mut self, what: String, remedy: Remedy) {
        self.faults.push(Fault { what, error: false, remedy });
    }

    /// From now on nothing is known of the changes since the last snapshot; whether it was until now.
    pub(crate) fn need_full(&mut self) -> bool {
        let new = self.root.header.flags & ROOT_FULL_NEEDED == 0;
        self.root.header.flags |= ROOT_FULL_NEEDED;
        self.root_changed |= new;
        new
    }

    /// The snapshots up to `id` whose images can be read.
    pub(crate) fn images_up_to(&self, id: u32) -> Vec<u32> {
        let image = |r: &&SnapshotRecord| r.scope == Scope::Image && r.id <= id;
        self.root.iter().filter(image).map(|r| r.id).collect()
    }

    /// The damage of a snapshot's delta: what is done about it.
    pub(crate) fn damage(&mut self, id: u32, what: String) {
        self.damaged.insert(id);
        let images = self.images_up_to(id);
        let remedy = if self.options.drop_damaged {
            let images = words_of_images(&images, "the images of", "given up");
            Remedy::Repair(format!("snapshot {id} removed{images}"))
        } else {
            let images = words_of_images(&images, "the images of", "are wrong, too");
            Remedy::Left(format!(
                "the content is nowhere else{images}; --drop-damaged removes the snapshot"
            ))
        };
        self.error(what, remedy);
    }

    /// Images that may be wrong, those up to `id`: given up if that is allowed. What is done; `None` if it is not allowed.
    pub(crate) fn lose_images(&mut self, id: u32) -> Option<String> {
        let images = self.images_up_to(id);
        if images.is_empty() {
            return Some(String::new());
        }
        if !self.options.drop_damaged {
            return None;
        }
        self.images_lost = self.images_lost.max(Some(id));
        Some(words_of_images(&images, "the images of", "given up"))
    }

    /// Changes what a slot holds.
    pub(crate) fn set_entry(&mut self, slot: u32, entry: Option<IndexEntry>) {
        match entry {
            Some(entry) => self.entries.insert(slot, entry),
            None => self.entries.remove(&slot),
        };
        self.index_changed.insert(self.layout.index_block(slot).0);
    }

    /// Whether what the index says of a slot must stay as it is.
    pub(crate) fn is_frozen(&self, slot: u32) -> bool {
        let no = self.layout.index_block(slot).0;
        self.index.get(no as usize).is_none_or(|state| state.frozen)
    }

    pub(crate) fn count_chunks(&mut self, n: usize) {
        self.chunks += n as u64;
    }

    /// How it was found, before anything is changed.
    pub(crate) fn note_found(&mut self, used: u64, dirty_pages: u64) {
        self.found = (used, dirty_pages, self.root.len() as u64);
    }

    /// Removes what is damaged, if that is allowed.
    pub(crate) fn drop_damaged(&mut self) {
        if !self.options.drop_damaged {
            return;
        }
        for id in std::mem::take(&mut self.damaged) {
            self.root.remove(id);
            self.root_changed = true;
            self.claimed.retain(|_, claimer| *claimer != id);
            self.images_lost = self.images_lost.max(Some(id));
        }
        let Some(lost) = self.images_lost else { return };
        for id in self.images_up_to(lost) {
            if let Some(record) = self.root.find_mut(id) {
                record.scope = Scope::Delta;
                self.root_changed = true;
            }
        }
    }

    /// The last decisions: whether the region may go on to pass for closed in order.
    pub(crate) fn finish(&mut self) {
        // The other copy may have said that the region is open. As the next version goes there, not more than that can
        // have been written since; but operation numbers were handed out.
        if self.clean && self.root_copy_lost && self.intent.extents() > 0 {
            let header = &mut self.root.header;
            header.flags = header.flags & !ROOT_CLEAN | ROOT_AFTER_CRASH;
            header.next_op = header.next_op.saturating_add(OP_RESERVE);
            self.root_changed = true;
        }
        if self.exhausted {
            // What would be written next might not count.
            for fault in &mut self.faults {
                fault.remedy = Remedy::Left(ANEW.into());
            }
        }
    }

    pub(crate) fn report(&self) -> Report {
        let flags = self.root.header.flags;
        Report {
            region_uuid: self.superblock.region_uuid,
            origin_id: self.superblock.origin_id,
            origin_sectors: self.superblock.origin_sectors,
            slots: self.layout.slots,
            used_slots: self.found.0,
            clean: self.clean,
            full_needed: flags & ROOT_FULL_NEEDED != 0,
            after_crash: flags & ROOT_AFTER_CRASH != 0,
            intent_extents: self.intent.extents(),
            extent_blocks: self.intent.extent_blocks(),
            dirty_pages: self.found.1,
            snapshots: self.found.2,
            chunks: self.chunks,
            faults: self.faults.clone(),
        }
    }
}

fn words_of_images(ids: &[u32], before: &str, after: &str) -> String {
    if ids.is_empty() {
        return String::new();
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    format!(", {before} {} {after}", ids.join(", "))
}

fn limits(superblock: &Superblock, next_snapshot: u32) -> Limits {
    Limits {
        region_uuid: superblock.region_uuid,
        slots: superblock.slots,
        origin_blocks: superblock.origin_blocks(),
        next_snapshot,
    }
}

/// The copy of the superblock that counts, and what is wrong with the other.
fn pick_superblock(
    medium: &dyn Medium,
    [a, b]: &[Vec<u8>; 2],
) -> Result<(Superblock, Option<(Copy2, FormatError)>), Refused> {
    let Picked { copy, value, other_fault } = Superblock::pick(a, b).map_err(|e| {
        Refused(if a.iter().chain(b).all(|&x| x == 0) {
            "this is no region: it is blank (see `presnap format`)".into()
        } else if Superblock::probe(a) || Superblock::probe(b) {
            e.to_string()
        } else {
            format!("this is no region of presnap: {e}")
        })
    })?;
    // If both are valid and differ, the root says which of them is this region's.
    if let (Ok(second), Some(fault)) = (Superblock::decode(b), other_fault) {
        let has_root = |sb: &Superblock| {
            let layout = Layout::for_region(sb.region_blocks).ok()?;
            read_root(medium, &layout, &limits(sb, u32::MAX), false).ok()
        };
        if copy == Copy2::A && has_root(&value).is_none() && has_root(&second).is_some() {
            return Ok((second, Some((Copy2::A, fault))));
        }
    }
    Ok((value, other_fault.map(|fault| (copy.other(), fault))))
}

/// The current root. Of a copy that was never written nothing is wrong.
fn read_root(
    medium: &dyn Medium,
    layout: &Layout,
    limits: &Limits,
    live: bool,
) -> Result<(Picked<RootHeader>, Vec<u8>), Refused> {
    // The kernel rewrites one copy at a time: a second look tells a write under way from damage.
    let mut tries = if live { 3 } else { 1 };
    loop {
        tries -= 1;
        let copies =
            [Copy2::A, Copy2::B].map(|copy| read(medium, layout.root_block(copy), ROOT_BLOCKS));
        match RootHeader::pick(&copies[0], &copies[1], limits) {
            Ok(mut picked) => {
                let [a, b] = copies;
                let (bytes, other) = if picked.copy == Copy2::A { (a, b) } else { (b, a) };
                if picked.value.seq == 1 && !other.is_empty() && other.iter().all(|&x| x == 0) {
                    picked.other_fault = None;
                }
                if picked.other_fault.is_none() || tries == 0 {
                    return Ok((picked, bytes));
                }
            }
            Err(e) if tries == 0 => return Err(Refused(e.to_string())),
            Err(_) => {}
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
