// SPDX-License-Identifier: GPL-2.0-only

//! Reading a region: superblock, root, manifests and slots, each checked by the engine. Never writes.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
use presnap_blockio::{Buffer, Mode};
use presnap_engine::geometry::BLOCK_BYTES;
use presnap_engine::manifest::{Chunk, ManifestReader};
use presnap_engine::region::layout::{ROOT_BLOCKS, ROOT_START_BLOCKS, SUPERBLOCK_BLOCKS};
use presnap_engine::region::root::{MAX_SNAPSHOTS, ROOT_BYTES};
use presnap_engine::region::{
    Copy2, FormatError, Layout, Limits, Root, RootHeader, SnapshotRecord, SnapshotState, Superblock,
};

/// Bytes of a block, for buffers.
pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;

/// An opened region.
pub(crate) struct Store {
    file: File,
    /// The superblock.
    pub(crate) superblock: Superblock,
    /// Its layout.
    pub(crate) layout: Layout,
    /// The snapshot table.
    pub(crate) root: Root<Vec<SnapshotRecord>>,
    /// Copies that were found damaged; the other one serves.
    pub(crate) faults: Vec<String>,
}

/// Turns a fault of the engine's formats into an error.
pub(crate) fn format_error(e: FormatError) -> anyhow::Error {
    anyhow!("{e}")
}

impl Store {
    /// Whether `path` begins with the magic number of a region.
    pub(crate) fn probe(path: &Path) -> bool {
        let mut head = [0u8; 16];
        let read = File::open(path).and_then(|mut f| f.read_exact(&mut head));
        read.is_ok() && Superblock::probe(&head)
    }

    /// Opens and checks a region.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mode = Mode { direct: true, ..Mode::default() };
        let file = presnap_blockio::open(path, mode)?;
        let size = presnap_blockio::size(&file)?;
        let mut faults = Vec::new();
        let copies = SUPERBLOCK_BLOCKS.map(|block| read_blocks(&file, block, 1));
        let [a, b] = copies;
        let (a, b) = (a.unwrap_or_else(|_| Buffer::new(0)), b.unwrap_or_else(|_| Buffer::new(0)));
        let picked = Superblock::pick(&a, &b).map_err(|e| {
            if a.iter().chain(b.iter()).all(|&x| x == 0) {
                anyhow!("this is no region: it is blank (see `presnap format`)")
            } else if Superblock::probe(&a) || Superblock::probe(&b) {
                format_error(e)
            } else {
                anyhow!("this is no region of presnap: {e}")
            }
        })?;
        if let Some(fault) = picked.other_fault {
            faults.push(format!(
                "{fault} (copy at block {})",
                SUPERBLOCK_BLOCKS[1 - picked.copy.index()]
            ));
        }
        let superblock = picked.value;
        if size / u64::from(BLOCK_BYTES) < superblock.region_blocks {
            bail!(
                "the region was {} blocks when it was formatted, and has {} now: its end is missing",
                superblock.region_blocks,
                size / u64::from(BLOCK_BYTES)
            );
        }
        let layout = Layout::for_region(superblock.region_blocks).map_err(|e| anyhow!("{e}"))?;
        let root = Self::read_root(&file, &superblock, &mut faults)?;
        Ok(Self { file, superblock, layout, root, faults })
    }

    fn read_root(
        file: &File,
        superblock: &Superblock,
        faults: &mut Vec<String>,
    ) -> Result<Root<Vec<SnapshotRecord>>> {
        let limits = limits(superblock, 0);
        // The kernel rewrites one copy at a time: a second look tells a write under way from damage.
        let mut tries = 3;
        loop {
            tries -= 1;
            let [a, b] =
                ROOT_START_BLOCKS.map(|start| read_blocks(file, start, ROOT_BLOCKS as usize));
            let (a, b) = (a.context("reading the root")?, b.context("reading the root")?);
            debug_assert_eq!(a.len(), ROOT_BYTES);
            match RootHeader::pick(&a, &b, &limits) {
                Ok(picked) if picked.other_fault.is_none() || tries == 0 || blank(&a, &b) => {
                    let bytes = if picked.copy == Copy2::A { &a } else { &b };
                    if let (Some(fault), false) = (picked.other_fault, blank(&a, &b)) {
                        faults.push(format!("{fault} (copy {:?})", picked.copy.other()));
                    }
                    let records = vec![SnapshotRecord::ZERO; MAX_SNAPSHOTS];
                    return Root::decode(bytes, records, &limits).map_err(format_error);
                }
                Err(e) if tries == 0 => return Err(format_error(e)),
                _ => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
    }

    /// What the fields of index and manifests are checked against.
    pub(crate) fn limits(&self) -> Limits {
        limits(&self.superblock, self.root.header.next_snapshot)
    }

    /// The record of a snapshot.
    pub(crate) fn find(&self, id: u32) -> Result<&SnapshotRecord> {
        self.root.find(id).ok_or_else(|| {
            let ids: Vec<String> = self.root.iter().map(|r| r.id.to_string()).collect();
            let have = if ids.is_empty() { "none".into() } else { ids.join(", ") };
            anyhow!("there is no snapshot {id} in the region (there are: {have})")
        })
    }

    /// The record of a snapshot that is sealed.
    pub(crate) fn find_sealed(&self, id: u32) -> Result<&SnapshotRecord> {
        let record = self.find(id)?;
        if record.state != SnapshotState::Sealed {
            bail!("snapshot {id} is {}, not sealed", record.state.as_str());
        }
        Ok(record)
    }

    /// Reads and checks the manifest of a sealed snapshot.
    pub(crate) fn manifest(&self, record: &SnapshotRecord) -> Result<Vec<Chunk>> {
        let mut reader = ManifestReader::new(record, &self.limits());
        let mut chunks = Vec::new();
        let mut next = Some(record.manifest_head_slot).filter(|_| record.manifest_pages > 0);
        let mut page = Buffer::new(BLOCK);
        while let Some(slot) = next {
            self.read_slots(slot, &mut page)?;
            let checked = reader
                .page(&page)
                .map_err(|e| anyhow!("manifest of snapshot {}: {e} (slot {slot})", record.id))?;
            chunks.extend(checked.chunks());
            next = checked.next_page_slot;
        }
        reader.finish().map_err(|e| anyhow!("manifest of snapshot {}: {e}", record.id))?;
        Ok(chunks)
    }

    /// Reads consecutive slots into `out` (whole blocks).
    pub(crate) fn read_slots(&self, slot: u32, out: &mut [u8]) -> Result<()> {
        let at = self.layout.slot_block(slot) * u64::from(BLOCK_BYTES);
        self.file.read_exact_at(out, at).with_context(|| format!("reading slot {slot}"))
    }
}

fn blank(a: &[u8], b: &[u8]) -> bool {
    [a, b].iter().any(|copy| copy.iter().all(|&x| x == 0))
}

fn limits(superblock: &Superblock, next_snapshot: u32) -> Limits {
    Limits {
        region_uuid: superblock.region_uuid,
        slots: superblock.slots,
        origin_blocks: superblock.origin_blocks(),
        next_snapshot,
    }
}

fn read_blocks(file: &File, block: u64, count: usize) -> Result<Buffer> {
    let mut out = Buffer::new(count * BLOCK);
    file.read_exact_at(&mut out, block * u64::from(BLOCK_BYTES))
        .with_context(|| format!("reading block {block}"))?;
    Ok(out)
}
